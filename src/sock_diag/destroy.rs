//! Removes sockets with SOCK_DESTROY (uapi/linux/sock_diag.h): sends requests in batches and reads the responses.
//!
//! 1. A request names both ends, the interface and the cookie from the dump. So it removes that socket or none: a new
//!    socket with the same ends has another cookie, and the kernel returns ENOENT.
//! 2. The kernel executes a batch inside send(2). It sends no response to a request that succeeded, and one NLMSG_ERROR
//!    to each request that failed, in the order of the requests.
//! 3. The last request of a batch sets NLM_F_ACK, so the kernel always responds to it. That response ends the batch,
//!    and every request without a response has succeeded.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_REQUEST, NLMSG_ERROR, NLMSG_NOOP, NetlinkBuffer, NetlinkHeader, NetlinkMessage,
};
use netlink_packet_sock_diag::{SockDiagDestroy, SockDiagMessage};

use super::request::{self, SEQUENCE};
use super::transport::{Commands, errno};
use crate::model::row::Row;
use crate::model::socket::{Cookie, TimeWaitBucket};

/// The number of requests in a batch. If all of them fail, the responses must fit into the receive buffer, because the kernel drops
/// responses that do not fit. On Linux 6.18, a response takes 832 bytes of the buffer, so 256 responses fit into the 208 KiB of
/// `net.core.rmem_default`. A batch of 1024 requests was no faster.
const BATCH: usize = 128;

/// The kernel's response to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acknowledgement {
    /// Unknown: the request was not sent, or a response to its batch was lost or malformed.
    None,
    /// The socket was destroyed.
    Done,
    /// The socket does not exist (ENOENT).
    NotFound,
    /// The request failed with this errno.
    Failed(i32),
}

/// Why a removal of sockets failed.
#[derive(Debug, thiserror::Error)]
pub enum DestroyError {
    /// A batch could not be sent.
    #[error("sending SOCK_DESTROY requests to the kernel failed: {0}")]
    Send(io::Error),
    /// The responses could not be received. ENOBUFS is one of the possible reasons.
    #[error("receiving the kernel's responses to SOCK_DESTROY failed: {0}")]
    Recv(io::Error),
    /// A message that is not a response to one of the requests.
    #[error("the kernel sent a malformed response to SOCK_DESTROY: {0}")]
    Framing(String),
    /// The caller has no permission to destroy sockets (EPERM).
    #[error("the kernel refuses to destroy sockets: EPERM (Operation not permitted)")]
    NotPermitted,
    /// EOPNOTSUPP for a bucket, from a kernel that destroys other sockets.
    #[error("this kernel can destroy other sockets, but not timewait buckets: EOPNOTSUPP (Operation not supported)")]
    NoBuckets,
    /// EOPNOTSUPP for every socket: the kernel was built without SOCK_DESTROY.
    #[error("this kernel cannot destroy sockets: EOPNOTSUPP (Operation not supported)")]
    NotBuilt,
}

impl DestroyError {
    /// Whether the requests that failed had no effect. After a lost or malformed response this is unknown, because the kernel
    /// acts before it responds.
    #[must_use]
    pub const fn changed_nothing(&self) -> bool {
        match self {
            Self::Send(_) | Self::NotPermitted | Self::NoBuckets | Self::NotBuilt => true,
            Self::Recv(_) | Self::Framing(_) => false,
        }
    }

    /// What the user can do about the error.
    #[must_use]
    pub const fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NotPermitted => Some(
                "SOCK_DESTROY needs CAP_NET_ADMIN in the user namespace that owns this network namespace; root in a \
                 container has this capability only if the container was started with it",
            ),
            Self::NoBuckets => Some(
                "Linux 6.1 and later destroy timewait buckets. On this kernel the port is free when the timer ends, or earlier \
                 for a server that sets SO_REUSEADDR: `twtool bind-test PORT` shows whether that works",
            ),
            Self::NotBuilt => Some(
                "this kernel was built without CONFIG_INET_DIAG_DESTROY (see /proc/config.gz or /boot/config-*); use \
                 a kernel that was built with this option",
            ),
            Self::Send(_) | Self::Recv(_) | Self::Framing(_) => None,
        }
    }
}

/// The result of a removal of sockets.
#[derive(Debug)]
pub struct Destruction {
    /// The response for each row, in the order of the rows.
    pub answers: Vec<Acknowledgement>,
    /// Why the removal ended before the last row, if it did.
    pub end: Result<(), DestroyError>,
}

/// Requests that the kernel destroys the sockets of these rows.
///
/// The first batch has one request, so that a kernel that refuses it gets no request for another row. After EPERM or EOPNOTSUPP, the
/// remaining batches are not sent.
pub fn run(kernel: &mut dyn Commands, rows: &[Row]) -> Destruction {
    let mut answers = vec![Acknowledgement::None; rows.len()];
    let end = run_batches(kernel, rows, &mut answers);
    Destruction { answers, end }
}

fn run_batches(kernel: &mut dyn Commands, rows: &[Row], answers: &mut [Acknowledgement]) -> Result<(), DestroyError> {
    let mut requester = Requester { kernel, last_sequence: SEQUENCE, buffer: vec![] };
    let first = rows.len().min(1);
    let batches = rows[..first].chunks(BATCH).chain(rows[first..].chunks(BATCH));
    let mut from = 0;
    for batch in batches {
        let answers = &mut answers[from..from + batch.len()];
        requester.send_batch(batch.iter().map(|row| (&row.bucket, row.bucket.cookie)), answers)?;
        if let Some(refused) = answers.iter().position(|answer| *answer == Acknowledgement::Failed(errno::EOPNOTSUPP)) {
            return Err(requester.why_not_supported(&batch[refused].bucket)?);
        }
        if answers.contains(&Acknowledgement::Failed(errno::EPERM)) {
            return Err(DestroyError::NotPermitted);
        }
        from += batch.len();
    }
    Ok(())
}

/// Each request has its own sequence number, which identifies its response.
struct Requester<'a> {
    kernel: &'a mut dyn Commands,
    /// The sequence number of the last request. Dumps use a lower number.
    last_sequence: u32,
    buffer: Vec<u8>,
}

impl Requester<'_> {
    fn send_batch<'b>(
        &mut self,
        batch: impl ExactSizeIterator<Item = (&'b TimeWaitBucket, Option<Cookie>)>,
        answers: &mut [Acknowledgement],
    ) -> Result<(), DestroyError> {
        let first = self.last_sequence.wrapping_add(1);
        let length = batch.len();
        let mut datagram = Vec::with_capacity(length * LENGTH);
        for (i, (bucket, cookie)) in batch.enumerate() {
            self.last_sequence = self.last_sequence.wrapping_add(1);
            append(bucket, cookie, self.last_sequence, i + 1 == length, &mut datagram);
        }
        self.kernel.send_bytes(&datagram).map_err(DestroyError::Send)?;
        while !self.receive(first, answers)? {}
        answers
            .iter_mut()
            .filter(|answer| **answer == Acknowledgement::None)
            .for_each(|answer| *answer = Acknowledgement::Done);
        Ok(())
    }

    /// Receives one datagram of responses. `first` is the sequence number of the first request of the batch. Returns whether the batch
    /// is done.
    fn receive(&mut self, first: u32, answers: &mut [Acknowledgement]) -> Result<bool, DestroyError> {
        let length = self.kernel.recv(&mut self.buffer).map_err(DestroyError::Recv)?;
        if length != self.buffer.len() || length == 0 {
            return Err(DestroyError::Framing(format!("{length} bytes, cut to {}", self.buffer.len())));
        }
        let mut rest = self.buffer.as_slice();
        let mut last = false;
        while !rest.is_empty() {
            let message = NetlinkBuffer::new_checked(rest).map_err(|e| DestroyError::Framing(format!("{e:#}")))?;
            let (kind, number) = (message.message_type(), message.sequence_number());
            match kind {
                NLMSG_NOOP => {}
                NLMSG_ERROR => {
                    let code = message.payload().first_chunk().copied().map(i32::from_ne_bytes);
                    let code = code.filter(|code| *code <= 0).map(i32::unsigned_abs).map(u32::cast_signed);
                    let at = usize::try_from(number.wrapping_sub(first)).unwrap_or(usize::MAX);
                    let (Some(code), Some(answer)) = (code, answers.get_mut(at)) else {
                        return Err(DestroyError::Framing(format!("code {code:?} for request {number}")));
                    };
                    *answer = match code {
                        0 => Acknowledgement::Done,
                        errno::ENOENT => Acknowledgement::NotFound,
                        code => Acknowledgement::Failed(code),
                    };
                    last |= at + 1 == answers.len();
                }
                other => return Err(DestroyError::Framing(format!("a message of type {other}"))),
            }
            rest = rest.get((message.length() as usize).next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(last)
    }

    /// Finds the reason for EOPNOTSUPP with a request for a socket that cannot exist: no socket has cookie 0. A kernel without
    /// CONFIG_INET_DIAG_DESTROY returns EOPNOTSUPP before it searches for the socket. Any other kernel searches first, and
    /// returns ENOENT (`inet_diag_cmd_exact` in net/ipv4/inet_diag.c).
    fn why_not_supported(&mut self, bucket: &TimeWaitBucket) -> Result<DestroyError, DestroyError> {
        let mut answer = [Acknowledgement::None];
        self.send_batch(std::iter::once((bucket, None)), &mut answer)?;
        Ok(if answer == [Acknowledgement::Failed(errno::EOPNOTSUPP)] {
            DestroyError::NotBuilt
        } else {
            DestroyError::NoBuckets
        })
    }
}

/// The length of a request in bytes: `struct nlmsghdr` and `struct inet_diag_req_v2`.
const LENGTH: usize = 16 + 56;

fn append(bucket: &TimeWaitBucket, cookie: Option<Cookie>, sequence: u32, acknowledge: bool, datagram: &mut Vec<u8>) {
    let request = request::for_one_socket(&bucket.tuple, bucket.interface, cookie);
    let mut header = NetlinkHeader::default();
    header.flags = if acknowledge { NLM_F_REQUEST | NLM_F_ACK } else { NLM_F_REQUEST };
    header.sequence_number = sequence;
    let destroy = SockDiagDestroy::new(SockDiagMessage::InetRequest(request));
    let mut message = NetlinkMessage::new(header, destroy.into());
    message.finalize();
    let at = datagram.len();
    datagram.resize(at + LENGTH, 0);
    message.serialize(&mut datagram[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::row::tests::row;
    use crate::sock_diag::request::Request;
    use crate::sock_diag::transport::Transport;
    use netlink_packet_core::Parseable;
    use netlink_packet_sock_diag::inet::InetRequest;
    use proptest::prelude::*;
    use std::collections::VecDeque;
    use std::net::IpAddr;
    use std::num::NonZeroU32;

    const INVALID: i32 = 22;

    /// `rule` gets the index and the cookie of a request, and returns its errno, or 0 if it succeeds.
    struct DestroyingKernel<F> {
        rule: F,
        answers: VecDeque<Vec<u8>>,
        batches: Vec<usize>,
        requests: usize,
    }

    impl<F: FnMut(usize, u64) -> i32> DestroyingKernel<F> {
        fn new(rule: F) -> Self {
            Self { rule, answers: VecDeque::new(), batches: vec![], requests: 0 }
        }
    }

    fn error(sequence: [u8; 4], code: i32) -> Vec<u8> {
        let mut m = 20_u32.to_ne_bytes().to_vec();
        m.extend(NLMSG_ERROR.to_ne_bytes());
        m.extend([0; 2]);
        m.extend(sequence);
        m.extend([0; 4]);
        m.extend((-code).to_ne_bytes());
        m
    }

    impl<F: FnMut(usize, u64) -> i32> Transport for DestroyingKernel<F> {
        fn send(&mut self, _: &Request) -> io::Result<()> {
            panic!("nothing is dumped")
        }

        fn recv(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize> {
            *buffer = self.answers.pop_front().expect("the caller stops receiving after the last response");
            Ok(buffer.len())
        }
    }

    impl<F: FnMut(usize, u64) -> i32> Commands for DestroyingKernel<F> {
        fn send_bytes(&mut self, datagram: &[u8]) -> io::Result<()> {
            assert!(self.answers.is_empty(), "the caller reads the responses to a batch before it sends the next");
            self.batches.push(datagram.len() / LENGTH);
            for request in datagram.chunks(LENGTH) {
                let word = |at: usize| u32::from_ne_bytes(request[at..at + 4].try_into().expect("4 bytes"));
                let cookie = u64::from(word(64)) | u64::from(word(68)) << 32;
                let code = (self.rule)(self.requests, cookie);
                self.requests += 1;
                if code != 0 || request[6] & 4 != 0 {
                    self.answers.push_back(error(request[8..12].try_into().expect("4 bytes"), code));
                }
            }
            Ok(())
        }
    }

    fn rows(count: u64) -> Vec<Row> {
        let mut rows = vec![row("10.0.0.1", 80, "10.0.0.2", 40000); usize::try_from(count).expect("few")];
        rows.iter_mut().zip(1..).for_each(|(row, cookie)| row.bucket.cookie = Cookie::new(cookie));
        rows
    }

    #[test]
    fn a_request_has_both_ends_the_interface_and_the_cookie() {
        for (local, remote, family) in [
            ("10.0.0.1", "10.0.0.2", 2),
            ("2001:db8::1", "2001:db8::2", 10),
            ("::ffff:10.0.0.1", "::ffff:10.0.0.2", 10),
        ] {
            let mut row = row(local, 80, remote, 40000);
            row.bucket.interface = NonZeroU32::new(7);
            let mut bytes = vec![];
            append(&row.bucket, Cookie::new(0x1_0000_0002), 9, false, &mut bytes);
            assert_eq!(bytes.len(), LENGTH);
            assert_eq!(bytes[..4], 72_u32.to_ne_bytes());
            assert_eq!(bytes[4..8], [21_u16.to_ne_bytes(), NLM_F_REQUEST.to_ne_bytes()].concat());
            assert_eq!(bytes[8..12], 9_u32.to_ne_bytes());
            assert_eq!(bytes[64..72], [2_u32.to_ne_bytes(), 1_u32.to_ne_bytes()].concat(), "the low word first");
            let request = InetRequest::parse(&bytes[16..]).expect("a request").socket_id;
            assert_eq!((bytes[16], bytes[17]), (family, 6));
            assert_eq!(request.source_address, local.parse::<IpAddr>().expect("an address"), "an unchanged address");
            assert_eq!(request.destination_address, remote.parse::<IpAddr>().expect("an address"));
            assert_eq!((request.source_port, request.destination_port, request.interface_id), (80, 40000, 7));
        }
    }

    #[test]
    fn no_response_means_success_and_each_error_belongs_to_its_bucket() {
        let mut kernel = DestroyingKernel::new(|_, cookie| match cookie {
            3 | 300 => errno::ENOENT,
            200 => INVALID,
            _ => 0,
        });
        let Destruction { answers, end } = run(&mut kernel, &rows(300));
        assert!(end.is_ok());
        assert_eq!(kernel.batches, [1, 128, 128, 43], "the first alone");
        let expected = (1..=300).map(|cookie| match cookie {
            3 | 300 => Acknowledgement::NotFound,
            200 => Acknowledgement::Failed(INVALID),
            _ => Acknowledgement::Done,
        });
        assert_eq!(answers, expected.collect::<Vec<_>>());
    }

    #[test]
    fn without_sockets_no_request_is_sent() {
        let mut kernel = DestroyingKernel::new(|_, _| panic!("a request was sent"));
        assert!(run(&mut kernel, &[]).end.is_ok() && kernel.batches.is_empty());
    }

    #[test]
    fn after_a_request_that_is_not_permitted_no_further_batch_is_sent() {
        let mut kernel = DestroyingKernel::new(|_, _| errno::EPERM);
        let Destruction { answers, end } = run(&mut kernel, &rows(1000));
        assert!(matches!(end, Err(DestroyError::NotPermitted)));
        assert_eq!(kernel.requests, 1);
        assert_eq!(answers[..2], [Acknowledgement::Failed(errno::EPERM), Acknowledgement::None]);
        // The kernel checks the permission only after it has found the socket.
        let mut kernel = DestroyingKernel::new(|i, _| if i == 0 { errno::ENOENT } else { errno::EPERM });
        let Destruction { answers, end } = run(&mut kernel, &rows(1000));
        assert!(matches!(end, Err(DestroyError::NotPermitted)));
        assert_eq!(kernel.batches, [1, 128]);
        assert!(!answers.contains(&Acknowledgement::Done));
    }

    #[test]
    fn a_kernel_that_cannot_destroy_buckets_and_one_that_destroys_no_socket_are_distinguished() {
        let mut without = DestroyingKernel::new(|_, _| errno::EOPNOTSUPP);
        assert!(matches!(run(&mut without, &rows(5)).end, Err(DestroyError::NotBuilt)));
        let mut old = DestroyingKernel::new(|_, cookie| if cookie == 0 { errno::ENOENT } else { errno::EOPNOTSUPP });
        assert!(matches!(run(&mut old, &rows(5)).end, Err(DestroyError::NoBuckets)));
        assert_eq!((without.requests, old.requests), (2, 2), "the bucket, and a socket that does not exist");
        for error in [DestroyError::NotBuilt, DestroyError::NoBuckets, DestroyError::NotPermitted] {
            assert!(error.hint().is_some(), "{error}");
        }
    }

    #[test]
    fn a_failed_send_or_a_lost_or_malformed_response_is_an_error() {
        /// Fails to send, or receives one datagram. The second value is the number of its bytes that did not fit into the buffer.
        struct Broken(Option<io::Result<Vec<u8>>>, usize);
        impl Transport for Broken {
            fn send(&mut self, _: &Request) -> io::Result<()> {
                panic!("nothing is dumped")
            }
            fn recv(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize> {
                *buffer = self.0.take().expect("one datagram")?;
                Ok(buffer.len() + self.1)
            }
        }
        impl Commands for Broken {
            fn send_bytes(&mut self, _: &[u8]) -> io::Result<()> {
                if self.0.is_some() { Ok(()) } else { Err(io::Error::from_raw_os_error(errno::EPERM)) }
            }
        }
        let end = |mut kernel: Broken| {
            let Destruction { answers, end } = run(&mut kernel, &rows(2));
            assert!(!answers.contains(&Acknowledgement::Done));
            end.expect_err("an end")
        };
        let mine = (SEQUENCE + 1).to_ne_bytes();
        assert!(matches!(end(Broken(None, 0)), DestroyError::Send(_)));
        // 105 is ENOBUFS.
        assert!(matches!(end(Broken(Some(Err(io::Error::from_raw_os_error(105))), 0)), DestroyError::Recv(_)));
        for bad in [vec![], vec![0; 7], error(9_u32.to_ne_bytes(), 0), error(mine, -1), error(mine, 0)[..16].to_vec()] {
            assert!(matches!(end(Broken(Some(Ok(bad.clone())), 0)), DestroyError::Framing(_)), "{bad:?}");
        }
        assert!(matches!(end(Broken(Some(Ok(error(mine, 0))), 1)), DestroyError::Framing(_)), "cut");
        let mut other = error(mine, 0);
        other[4] = 20;
        assert!(matches!(end(Broken(Some(Ok(other)), 0)), DestroyError::Framing(_)), "a socket");
    }

    proptest! {
        #[test]
        fn arbitrary_responses_never_panic(datagrams in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 0..4)) {
            struct Noise(VecDeque<Vec<u8>>);
            impl Transport for Noise {
                fn send(&mut self, _: &Request) -> io::Result<()> {
                    Ok(())
                }
                fn recv(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize> {
                    *buffer = self.0.pop_front().ok_or_else(|| io::Error::from_raw_os_error(105))?;
                    Ok(buffer.len())
                }
            }
            impl Commands for Noise {
                fn send_bytes(&mut self, _: &[u8]) -> io::Result<()> {
                    Ok(())
                }
            }
            let _ = run(&mut Noise(datagrams.into()), &rows(3));
        }
    }
}
