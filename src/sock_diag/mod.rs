//! The kernel's sock_diag interface (sock_diag(7), uapi/linux/inet_diag.h): sends requests and receives sockets.
//!
//! - `request` and `response` encode and decode messages, without I/O.
//! - `dump` lists the sockets that a request selects, `lookup` finds one socket, and `destroy` removes sockets (SOCK_DESTROY).
//! - `bytecode` compiles a filter into the program that the kernel runs on each socket of a dump.
//! - `transport` carries the datagrams.
//!
//! This module decodes responses itself, because netlink-packet-sock-diag drops the remaining time of a bucket.

pub mod bytecode;
pub mod destroy;
pub mod dump;
pub mod lookup;
pub mod request;
pub mod response;
pub mod transport;
