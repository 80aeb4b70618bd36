//! Looks up one socket: a SOCK_DIAG_BY_FAMILY request without NLM_F_DUMP (`inet_diag_find_one_icsk` in
//! net/ipv4/inet_diag.c). The kernel searches one hash chain, while a dump walks the whole table.
//!
//! A request names both ends, the interface that the socket is bound to, and the cookie. So the response never describes a new
//! socket with the same ends. Only [`find_by_ends`] accepts any cookie, because it searches for such a new socket.
//!
//! The kernel searches connections and buckets first. Then it selects one listener, as it does for a packet to that
//! address. So "not found" proves that a connection or a bucket is gone. For a listener it may mean that the kernel selected
//! another listener of a SO_REUSEPORT group. A socket that is only bound is never found.

use std::io;
use std::num::NonZeroU32;

use netlink_packet_core::{NLM_F_REQUEST, NLMSG_ERROR, NetlinkBuffer};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::SOCK_DIAG_BY_FAMILY;
use netlink_packet_sock_diag::inet::InetRequest;

use super::request::{self, SEQUENCE};
use super::response::{self, MalformedSocket};
use super::transport::Commands;
use crate::model::socket::{FourTuple, Socket};

/// The value that matches any cookie: INET_DIAG_NOCOOKIE in both words (uapi/linux/inet_diag.h).
const ANY_COOKIE: [u8; 8] = [0xff; 8];

/// Why a look-up failed.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// The cookie is unknown, so a request could match another socket.
    #[error("a socket whose cookie is unknown cannot be looked up")]
    Unnamed,
    /// The request could not be sent.
    #[error("sending a look-up of one socket to the kernel failed: {0}")]
    Send(io::Error),
    /// The response could not be received.
    #[error("receiving one socket from the kernel failed: {0}")]
    Recv(io::Error),
    /// NLMSG_ERROR with an errno other than ENOENT.
    #[error("the kernel refuses to look up a socket: {0}")]
    Refused(io::Error),
    /// A message that is not a response to the request.
    #[error("the kernel sent a malformed netlink message: {0}")]
    Framing(String),
    /// A message that does not describe a socket.
    #[error("the kernel sent a malformed netlink message: {0}")]
    Malformed(#[from] MalformedSocket),
}

/// Returns the current state of a socket, or `None` if the kernel does not find it any more.
pub fn find(kernel: &mut dyn Commands, socket: &Socket) -> Result<Option<Socket>, LookupError> {
    ask(kernel, socket, |_, found| found)
}

/// Returns the connection or bucket that has these two ends now, whatever its cookie; `None` if there is none. The kernel may then
/// return a listener, which this function ignores, because a listener does not have both ends.
pub fn find_by_ends(
    kernel: &mut dyn Commands,
    tuple: &FourTuple,
    interface: Option<NonZeroU32>,
) -> Result<Option<Socket>, LookupError> {
    let mut request = request::for_one_socket(tuple, interface, None);
    request.socket_id.cookie = ANY_COOKIE;
    let found = exchange(kernel, request, |_, found| found)?;
    Ok(found.filter(|found| found.tuple() == tuple))
}

/// Returns the number of the cgroup in which a socket was created. `None` if the kernel does not find the socket, or does not
/// report the cgroup (before Linux 5.8, or without CONFIG_SOCK_CGROUP_DATA).
pub fn cgroup(kernel: &mut dyn Commands, socket: &Socket) -> Result<Option<u64>, LookupError> {
    Ok(ask(kernel, socket, |payload, _| response::cgroup(payload))?.flatten())
}

fn ask<T>(
    kernel: &mut dyn Commands,
    socket: &Socket,
    take: impl FnOnce(&[u8], Socket) -> T,
) -> Result<Option<T>, LookupError> {
    let cookie = socket.cookie().ok_or(LookupError::Unnamed)?;
    let request = request::for_one_socket(socket.tuple(), socket.interface(), Some(cookie));
    let found = exchange(kernel, request, |payload, found| (found.cookie(), take(payload, found)))?;
    match found {
        Some((found, _)) if found != Some(cookie) => Err(LookupError::Framing("it is about another socket".into())),
        found => Ok(found.map(|(_, taken)| taken)),
    }
}

fn exchange<T>(
    kernel: &mut dyn Commands,
    request: InetRequest,
    take: impl FnOnce(&[u8], Socket) -> T,
) -> Result<Option<T>, LookupError> {
    let datagram = request::message(SockDiagMessage::InetRequest(request), NLM_F_REQUEST);
    kernel.send_bytes(&datagram).map_err(LookupError::Send)?;
    let mut buffer = Vec::new();
    let length = kernel.recv(&mut buffer).map_err(LookupError::Recv)?;
    if length > buffer.len() {
        return Err(LookupError::Framing(format!("{length} bytes, cut to {}", buffer.len())));
    }
    let message = NetlinkBuffer::new_checked(buffer.as_slice()).map_err(|e| LookupError::Framing(format!("{e:#}")))?;
    if message.sequence_number() != SEQUENCE {
        let number = message.sequence_number();
        return Err(LookupError::Framing(format!("it is a response to request {number}, which was not sent")));
    }
    match message.message_type() {
        SOCK_DIAG_BY_FAMILY => {
            let found = response::decode(message.payload())?;
            Ok(Some(take(message.payload(), found)))
        }
        NLMSG_ERROR => match message.payload().first_chunk::<4>().copied().map(i32::from_ne_bytes) {
            Some(code @ i32::MIN..0) => {
                let errno = io::Error::from_raw_os_error(code.saturating_neg());
                if errno.kind() == io::ErrorKind::NotFound { Ok(None) } else { Err(LookupError::Refused(errno)) }
            }
            _ => Err(LookupError::Framing("an error without an errno".into())),
        },
        other => Err(LookupError::Framing(format!("it has the unexpected type {other}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::port::Port;
    use crate::model::socket::{Cookie, TimeWaitBucket};
    use crate::sock_diag::request::Request;
    use crate::sock_diag::transport::Transport;
    use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
    use proptest::prelude::*;
    use std::net::IpAddr;

    const ENOENT: i32 = 2;
    const EINVAL: i32 = 22;

    /// A kernel that has one response and records the requests.
    struct LookupKernel {
        asked: Vec<Vec<u8>>,
        answer: io::Result<Vec<u8>>,
        /// The number of bytes of the response that did not fit into the buffer.
        cut: usize,
    }

    impl Transport for LookupKernel {
        fn send(&mut self, _: &Request) -> io::Result<()> {
            panic!("a look-up sends no dump request")
        }

        fn recv(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize> {
            *buffer = std::mem::replace(&mut self.answer, Ok(vec![]))?;
            Ok(buffer.len() + self.cut)
        }
    }

    impl Commands for LookupKernel {
        fn send_bytes(&mut self, datagram: &[u8]) -> io::Result<()> {
            self.asked.push(datagram.to_vec());
            Ok(())
        }
    }

    fn bucket(local: &str, remote: &str, cookie: u64) -> Socket {
        let end = |addr: &str, port| (addr.parse::<IpAddr>().expect("an address"), Port(port));
        Socket::Bucket(TimeWaitBucket {
            tuple: FourTuple::new(end(local, 8080), end(remote, 40000)),
            fin_wait_2: false,
            expires_ms: 1234,
            interface: NonZeroU32::new(7),
            mark: None,
            cookie: Cookie::new(cookie),
        })
    }

    fn message(kind: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
        let mut m = u32::try_from(16 + payload.len()).expect("short").to_ne_bytes().to_vec();
        m.extend_from_slice(&kind.to_ne_bytes());
        m.extend_from_slice(&[0; 2]);
        m.extend_from_slice(&sequence.to_ne_bytes());
        m.extend_from_slice(&[0; 4]);
        m.extend_from_slice(payload);
        m
    }

    /// The kernel's response about the bucket from 127.0.0.1 to 127.0.0.2.
    fn found(expires_ms: u32, cookie: u32) -> Vec<u8> {
        let mut m = vec![0; response::LENGTH];
        m[..4].copy_from_slice(&[AF_INET, 6, 3, 0]);
        m[4..8].copy_from_slice(&[0x1f, 0x90, 0x9c, 0x40]);
        m[8..12].copy_from_slice(&[127, 0, 0, 1]);
        m[24..28].copy_from_slice(&[127, 0, 0, 2]);
        m[40] = 7;
        m[44..48].copy_from_slice(&cookie.to_ne_bytes());
        m[52..56].copy_from_slice(&expires_ms.to_ne_bytes());
        message(SOCK_DIAG_BY_FAMILY, SEQUENCE, &m)
    }

    fn look_up(answer: io::Result<Vec<u8>>, cut: usize) -> Result<Option<Socket>, LookupError> {
        let mut kernel = LookupKernel { asked: vec![], answer, cut };
        find(&mut kernel, &bucket("127.0.0.1", "127.0.0.2", 9))
    }

    fn error(code: i32) -> Vec<u8> {
        message(NLMSG_ERROR, SEQUENCE, &(-code).to_ne_bytes())
    }

    #[test]
    fn the_request_names_both_ends_the_interface_and_the_cookie_and_is_not_a_dump() {
        let mut kernel = LookupKernel { asked: vec![], answer: Ok(error(ENOENT)), cut: 0 };
        let gone = find(&mut kernel, &bucket("127.0.0.1", "127.0.0.2", 0x1_0000_0002)).expect("an answer");
        assert_eq!(gone, None);
        let asked = &kernel.asked[0];
        assert_eq!(asked.len(), 72);
        assert_eq!(asked[4..6], SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        assert_eq!(asked[6..8], NLM_F_REQUEST.to_ne_bytes());
        // struct inet_diag_sockid begins at byte 16 + 8.
        assert_eq!(asked[16..18], [AF_INET, IPPROTO_TCP]);
        assert_eq!(asked[24..28], [0x1f, 0x90, 0x9c, 0x40]);
        assert_eq!((&asked[28..32], &asked[44..48]), ([127, 0, 0, 1].as_slice(), [127, 0, 0, 2].as_slice()));
        assert_eq!(asked[60..64], 7_u32.to_ne_bytes());
        assert_eq!(asked[64..72], [2_u32.to_ne_bytes(), 1_u32.to_ne_bytes()].concat());
    }

    #[test]
    fn a_mapped_socket_is_requested_with_its_mapped_addresses() {
        let mut kernel = LookupKernel { asked: vec![], answer: Ok(error(ENOENT)), cut: 0 };
        find(&mut kernel, &bucket("::ffff:127.0.0.1", "::ffff:127.0.0.2", 1)).expect("an answer");
        let asked = &kernel.asked[0];
        assert_eq!((asked[16], &asked[38..44]), (AF_INET6, [0xff, 0xff, 127, 0, 0, 1].as_slice()));
    }

    #[test]
    fn a_found_bucket_has_its_current_remaining_time() {
        let Ok(Some(Socket::Bucket(now))) = look_up(Ok(found(59_000, 9)), 0) else { panic!("no bucket") };
        assert_eq!(now.expires_ms, 59_000);
    }

    #[test]
    fn only_enoent_means_that_a_socket_is_gone() {
        assert!(matches!(look_up(Ok(error(ENOENT)), 0), Ok(None)));
        assert!(
            matches!(look_up(Ok(error(EINVAL)), 0), Err(LookupError::Refused(e)) if e.raw_os_error() == Some(EINVAL))
        );
        assert!(
            matches!(look_up(Ok(error(0)), 0), Err(LookupError::Framing(_))),
            "an acknowledgement is not an answer"
        );
    }

    #[test]
    fn a_malformed_response_or_a_response_to_another_request_is_an_error() {
        for bad in [
            vec![],
            found(1, 9)[..40].to_vec(),
            found(1, 8),
            message(SOCK_DIAG_BY_FAMILY, SEQUENCE + 1, &[0; 72]),
            message(99, SEQUENCE, &[]),
            message(NLMSG_ERROR, SEQUENCE, &[]),
        ] {
            assert!(matches!(look_up(Ok(bad.clone()), 0), Err(LookupError::Framing(_))), "{bad:?}");
        }
        assert!(matches!(look_up(Ok(found(1, 9)), 1), Err(LookupError::Framing(_))));
        let short = message(SOCK_DIAG_BY_FAMILY, SEQUENCE, &[0; 71]);
        assert!(matches!(look_up(Ok(short), 0), Err(LookupError::Malformed(_))));
        let enobufs = Err(io::Error::from_raw_os_error(105));
        assert!(matches!(look_up(enobufs, 0), Err(LookupError::Recv(_))));
        let mut kernel = LookupKernel { asked: vec![], answer: Ok(vec![]), cut: 0 };
        let unnamed = bucket("127.0.0.1", "127.0.0.2", 0);
        assert!(matches!(find(&mut kernel, &unnamed), Err(LookupError::Unnamed)) && kernel.asked.is_empty());
    }

    proptest! {
        #[test]
        fn arbitrary_responses_never_panic(answer in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = look_up(Ok(answer), 0);
        }
    }
}
