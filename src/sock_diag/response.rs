//! Decodes `struct inet_diag_msg` (uapi/linux/inet_diag.h) from received bytes, without allocation. Any bytes give a
//! socket or an error, never a panic.
//!
//! ```text
//! struct inet_diag_msg {                     offset
//!   __u8  idiag_family, idiag_state;              0
//!   __u8  idiag_timer, idiag_retrans;             2
//!   struct inet_diag_sockid {
//!     __be16 idiag_sport, idiag_dport;            4
//!     __be32 idiag_src[4], idiag_dst[4];          8, 24
//!     __u32  idiag_if;                           40
//!     __u32  idiag_cookie[2];                    44
//!   } id;
//!   __u32 idiag_expires, idiag_rqueue,           52, 56
//!         idiag_wqueue, idiag_uid, idiag_inode;  60, 64, 68
//! };                                             72 bytes, then attributes
//! ```

use std::net::Ipv4Addr;
use std::num::NonZeroU32;

use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, INET_DIAG_INFO, INET_DIAG_MARK, INET_DIAG_SKV6ONLY};

use crate::model::port::Port;
use crate::model::socket::{Cookie, FourTuple, FullSocket, Socket, TcpState, TimeWaitBucket};

/// The length of `struct inet_diag_msg` in bytes. Attributes follow it.
pub const LENGTH: usize = 72;

/// The attribute with the cgroup of a socket, in uapi/linux/inet_diag.h.
const INET_DIAG_CGROUP_ID: u16 = 21;

/// The value of `idiag_timer` for a timewait bucket in any state (`inet_twsk_diag_fill` in net/ipv4/inet_diag.c). Full
/// sockets have other values.
const TIMER_TIMEWAIT: u8 = 3;

/// Why bytes do not describe a socket.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MalformedSocket {
    /// The bytes are shorter than `struct inet_diag_msg`.
    #[error("a socket record of {0} bytes, but struct inet_diag_msg has {LENGTH}")]
    Short(usize),
    /// The family is neither AF_INET nor AF_INET6.
    #[error("a socket record of address family {0}")]
    Family(u8),
    /// The state is not in net/tcp_states.h, or contradicts the timer.
    #[error("a socket record in state {state} with timer {timer}")]
    State {
        /// `idiag_state`.
        state: u8,
        /// `idiag_timer`.
        timer: u8,
    },
    /// An attribute is cut off, or has a length that is impossible for its type or in its message.
    #[error("an attribute that does not fit into its message")]
    Attribute,
}

#[inline]
fn bytes<const N: usize>(message: &[u8; LENGTH], at: usize) -> [u8; N] {
    std::array::from_fn(|i| message[at + i])
}

/// The cookie is two words in host byte order, the low word first (`sock_diag_save_cookie` in net/core/sock_diag.c).
#[inline]
fn cookie_of(message: &[u8; LENGTH]) -> Option<Cookie> {
    let word = |at| u64::from(u32::from_ne_bytes(bytes(message, at)));
    Cookie::new(word(44) | word(48) << 32)
}

/// Returns the cookie of the socket that a message describes.
#[must_use]
pub fn cookie(payload: &[u8]) -> Option<Cookie> {
    cookie_of(payload.first_chunk()?)
}

/// Returns the number of the cgroup in which the socket of a well-formed message was created (`INET_DIAG_CGROUP_ID`).
#[must_use]
pub fn cgroup(payload: &[u8]) -> Option<u64> {
    let mut rest = payload.get(LENGTH..)?;
    loop {
        let header = rest.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let value = rest.get(4..length)?;
        if u16::from_ne_bytes([header[2], header[3]]) == INET_DIAG_CGROUP_ID {
            return value.first_chunk().copied().map(u64::from_ne_bytes);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

/// Decodes the socket in a message of type SOCK_DIAG_BY_FAMILY or TCPDIAG_GETSOCK.
///
/// # Errors
/// [`MalformedSocket`] names the problem in the bytes.
#[expect(clippy::inline_always, reason = "returning a socket through memory costs more than decoding it")]
#[inline(always)]
pub fn decode(payload: &[u8]) -> Result<Socket, MalformedSocket> {
    let Some((message, attributes)) = payload.split_first_chunk::<LENGTH>() else {
        return Err(MalformedSocket::Short(payload.len()));
    };
    let u32_at = |at| u32::from_ne_bytes(bytes(message, at));
    let port_at = |at| Port(u16::from_be_bytes(bytes(message, at)));
    let ipv4 = match message[0] {
        AF_INET => true,
        AF_INET6 => false,
        other => return Err(MalformedSocket::Family(other)),
    };
    let addr_at = |at| {
        if ipv4 {
            Ipv4Addr::from(bytes::<4>(message, at)).to_ipv6_mapped().to_bits()
        } else {
            u128::from_be_bytes(bytes(message, at))
        }
    };
    let tuple = FourTuple::of_bits(ipv4, (addr_at(8), port_at(4)), (addr_at(24), port_at(6)));
    let interface = NonZeroU32::new(u32_at(40));
    let cookie = cookie_of(message);
    let (state, timer) = (message[1], message[2]);
    let contradiction = MalformedSocket::State { state, timer };
    let state = TcpState::from_number(state).ok_or(contradiction.clone())?;
    let attributes = SocketAttributes::read(attributes)?;

    if timer == TIMER_TIMEWAIT {
        let fin_wait_2 = match state {
            TcpState::TimeWait => false,
            TcpState::FinWait2 => true,
            _ => return Err(contradiction),
        };
        let bucket =
            TimeWaitBucket { tuple, fin_wait_2, expires_ms: u32_at(52), interface, mark: attributes.mark, cookie };
        return Ok(Socket::Bucket(bucket));
    }
    let state = match state {
        TcpState::TimeWait => return Err(contradiction),
        // In a dump of bound sockets the kernel reports their own state, TCP_CLOSE, and not the state in the request.
        TcpState::Closed if tuple.local_port() != Port(0) && tuple.remote_port() == Port(0) => TcpState::BoundInactive,
        other => other,
    };
    Ok(Socket::Full(FullSocket {
        tuple,
        state,
        uid: u32_at(64),
        inode: NonZeroU32::new(u32_at(68)),
        interface,
        mark: attributes.mark,
        v6only: attributes.v6only,
        last_ack_ms: attributes.last_ack_ms,
        cookie,
    }))
}

#[derive(Default)]
struct SocketAttributes {
    mark: Option<u32>,
    v6only: Option<bool>,
    last_ack_ms: Option<u32>,
}

/// The offset of `tcpi_last_ack_recv` in `struct tcp_info` (uapi/linux/tcp.h), in bytes: 8 bytes and 12 u32 fields precede it.
const LAST_ACK_RECV: usize = 56;

impl SocketAttributes {
    /// Reads a list of `struct nlattr`: a length and a type of 16 bits each, then the value, padded to 4 bytes.
    #[inline]
    fn read(mut rest: &[u8]) -> Result<Self, MalformedSocket> {
        const HEADER: usize = 4;
        let mut found = Self::default();
        while !rest.is_empty() {
            let header = rest.first_chunk::<HEADER>().ok_or(MalformedSocket::Attribute)?;
            let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
            let value = rest.get(HEADER..length).ok_or(MalformedSocket::Attribute)?;
            match u16::from_ne_bytes([header[2], header[3]]) {
                INET_DIAG_MARK => {
                    found.mark = Some(u32::from_ne_bytes(value.try_into().map_err(|_| MalformedSocket::Attribute)?));
                }
                // If the struct is too short for this field, the value is unknown.
                INET_DIAG_INFO => {
                    let field = value.get(LAST_ACK_RECV..).and_then(<[u8]>::first_chunk);
                    found.last_ack_ms = field.copied().map(u32::from_ne_bytes);
                }
                INET_DIAG_SKV6ONLY => found.v6only = Some(*value.first().ok_or(MalformedSocket::Attribute)? != 0),
                _ => {}
            }
            rest = rest.get(length.next_multiple_of(HEADER)..).unwrap_or_default();
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_core::Parseable;
    use netlink_packet_sock_diag::inet::InetResponse;
    use proptest::prelude::*;

    /// A bucket as a 6.18 kernel sent it to a caller with CAP_NET_ADMIN: 127.0.0.1:8080 -> 127.0.0.1:40000, mark 7.
    fn sample() -> Vec<u8> {
        let mut m = vec![0; LENGTH];
        m[..4].copy_from_slice(&[AF_INET, 6, 3, 0]);
        m[4..6].copy_from_slice(&8080_u16.to_be_bytes());
        m[6..8].copy_from_slice(&40000_u16.to_be_bytes());
        m[8..12].copy_from_slice(&[127, 0, 0, 1]);
        m[24..28].copy_from_slice(&[127, 0, 0, 1]);
        m[44..48].copy_from_slice(&0x2_u32.to_ne_bytes());
        m[48..52].copy_from_slice(&0x1_u32.to_ne_bytes());
        m[52..56].copy_from_slice(&59976_u32.to_ne_bytes());
        m.extend_from_slice(&8_u16.to_ne_bytes());
        m.extend_from_slice(&INET_DIAG_MARK.to_ne_bytes());
        m.extend_from_slice(&7_u32.to_ne_bytes());
        m
    }

    #[test]
    fn a_bucket_has_the_remaining_time_that_the_kernel_sent() {
        let Ok(Socket::Bucket(bucket)) = decode(&sample()) else { panic!("no bucket") };
        assert_eq!(bucket.expires_ms, 59976);
        assert_eq!(bucket.cookie, Cookie::new(0x1_0000_0002));
        assert_eq!((bucket.tuple.local_port(), bucket.tuple.remote_port()), (Port(8080), Port(40000)));
        assert_eq!((bucket.mark, bucket.interface, bucket.fin_wait_2), (Some(7), None, false));
    }

    #[test]
    fn the_time_since_the_last_ack_is_read_from_tcp_info_and_is_unknown_without_the_field() {
        let with_info = |info: &[u8]| {
            let mut m = sample()[..LENGTH].to_vec();
            m[1..3].copy_from_slice(&[TcpState::CloseWait as u8, 0]);
            m.extend_from_slice(&u16::try_from(4 + info.len()).expect("short").to_ne_bytes());
            m.extend_from_slice(&INET_DIAG_INFO.to_ne_bytes());
            m.extend_from_slice(info);
            match decode(&m) {
                Ok(Socket::Full(full)) => full.last_ack_ms,
                other => panic!("no full socket: {other:?}"),
            }
        };
        let mut info = vec![0xff; 240];
        info[56..60].copy_from_slice(&61_234_u32.to_ne_bytes());
        assert_eq!(with_info(&info), Some(61_234));
        assert_eq!(with_info(&info[..60]), Some(61_234));
        assert_eq!(with_info(&info[..56]), None);
    }

    #[test]
    fn the_cgroup_of_a_socket_is_found_after_other_attributes() {
        let mut m = sample();
        assert_eq!(cgroup(&m), None);
        m.extend_from_slice(&12_u16.to_ne_bytes());
        m.extend_from_slice(&INET_DIAG_CGROUP_ID.to_ne_bytes());
        m.extend_from_slice(&0x1_0000_002c_u64.to_ne_bytes());
        assert_eq!(cgroup(&m), Some(0x1_0000_002c));
        let broken = m.len() - 1;
        assert_eq!(cgroup(&m[..broken]), None);
        // An attribute with the length 0 must not cause an endless loop.
        m[LENGTH..LENGTH + 2].copy_from_slice(&[0, 0]);
        assert_eq!(cgroup(&m), None);
    }

    #[test]
    fn a_bucket_is_recognized_by_its_timer_and_not_by_its_state() {
        let mut m = sample();
        // The state FIN_WAIT_2, first with timer 3, then with timer 2 (keepalive).
        m[1] = 5;
        assert!(matches!(decode(&m), Ok(Socket::Bucket(b)) if b.state() == TcpState::FinWait2));
        m[2] = 2;
        assert!(matches!(decode(&m), Ok(Socket::Full(f)) if f.state == TcpState::FinWait2));
    }

    #[test]
    fn contradictions_and_short_records_are_errors() {
        let with = |at: usize, value: u8| {
            let mut m = sample();
            m[at] = value;
            decode(&m)
        };
        assert_eq!(with(0, 1), Err(MalformedSocket::Family(1)));
        assert_eq!(with(1, 1), Err(MalformedSocket::State { state: 1, timer: 3 }));
        assert_eq!(with(1, 0), Err(MalformedSocket::State { state: 0, timer: 3 }));
        assert_eq!(with(2, 0), Err(MalformedSocket::State { state: 6, timer: 0 }));
        assert_eq!(decode(&sample()[..71]), Err(MalformedSocket::Short(71)));
        assert_eq!(decode(&sample()[..75]), Err(MalformedSocket::Attribute));
        assert_eq!(with(72, 9), Err(MalformedSocket::Attribute));
        assert_eq!(with(72, 3), Err(MalformedSocket::Attribute), "an attribute is never shorter than its header");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
        }

        /// Compares the fields that both this decoder and netlink-packet-sock-diag provide.
        #[test]
        fn ends_interface_cookie_uid_and_inode_agree_with_the_decoder_of_the_netlink_crate(
            v6 in any::<bool>(), state in 1_u8..=11, bucket in any::<bool>(), body in proptest::array::uniform32(any::<u8>()),
            more in proptest::array::uniform32(any::<u8>()),
        ) {
            let mut m = vec![if v6 { AF_INET6 } else { AF_INET }, state, if bucket { 3 } else { 0 }, 0];
            m.extend_from_slice(&body);
            m.extend_from_slice(&more);
            m.extend_from_slice(&[1, 2, 3, 4]);
            let theirs = InetResponse::parse(m.as_slice());
            if let Ok(ours) = decode(&m) {
                let theirs = theirs.expect("the crate reads what we read").header;
                let tuple = ours.tuple();
                prop_assert_eq!(theirs.socket_id.source_port, tuple.local_port().0);
                prop_assert_eq!(theirs.socket_id.destination_port, tuple.remote_port().0);
                prop_assert_eq!(theirs.socket_id.source_address.to_canonical(), tuple.local_addr());
                prop_assert_eq!(theirs.socket_id.destination_address.to_canonical(), tuple.remote_addr());
                prop_assert_eq!(theirs.socket_id.interface_id, ours.interface().map_or(0, NonZeroU32::get));
                prop_assert_eq!(u64::from_ne_bytes(theirs.socket_id.cookie), ours.cookie().map_or(0, Cookie::number));
                if let Socket::Full(full) = ours {
                    prop_assert_eq!((theirs.uid, theirs.inode), (full.uid, full.inode.map_or(0, NonZeroU32::get)));
                }
            }
        }
    }
}
