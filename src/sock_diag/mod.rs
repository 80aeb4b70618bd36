//! The kernel's sock_diag interface (sock_diag(7), uapi/linux/inet_diag.h): requests out, sockets in.
//!
//! `request` and `response` are pure codecs, `dump` and `lookup` are the protocols between them (all sockets, and one),
//! `destroy` ends buckets by command, `transport` carries the datagrams. Responses are decoded here and not by netlink-packet-sock-diag, which drops the
//! remaining time of a bucket.

pub mod bytecode;
pub mod destroy;
pub mod dump;
pub mod lookup;
pub mod request;
pub mod response;
pub mod transport;
