//! SOCK_DESTROY (uapi/linux/sock_diag.h) for timewait buckets: requests in batches, and the kernel's answer to each.
//!
//! A request names both ends, the interface and the cookie that the dump gave, so it hits that bucket or nothing: a socket
//! that has taken its place has another cookie, and the answer is ENOENT. The kernel works through a batch while it is being
//! sent. It is silent about a request that worked, and reports one that failed in a message of its own, in their order; the
//! last of a batch asks for an answer in either case (NLM_F_ACK), so that the batch's end is known.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_REQUEST, NLMSG_ERROR, NLMSG_NOOP, NetlinkBuffer, NetlinkHeader, NetlinkMessage,
};
use netlink_packet_sock_diag::{SockDiagDestroy, SockDiagMessage};

use super::request::{self, SEQUENCE};
use super::transport::{Commands, errno};
use crate::model::row::Row;
use crate::model::socket::{Cookie, TimeWaitBucket};

/// Requests in a batch. Were all of them to fail, the reports must fit into the receive buffer, for the kernel drops what
/// does not: 256 do on Linux 6.18, where each takes 832 bytes of the 208 KiB of `net.core.rmem_default`. A batch of 1024 was
/// no faster.
const BATCH: usize = 128;

/// What the kernel said to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acknowledgement {
    /// Nothing: it was not asked, or its answer was lost.
    None,
    /// It worked.
    Done,
    /// There is no such bucket, or no longer (ENOENT).
    NotFound,
    /// It failed with this errno.
    Failed(i32),
}

/// Why not every bucket was asked for.
#[derive(Debug, thiserror::Error)]
pub enum DestroyError {
    /// A batch could not be sent.
    #[error("asking the kernel to destroy sockets failed: {0}")]
    Send(io::Error),
    /// Its answers could not be received; ENOBUFS among the reasons.
    #[error("receiving the kernel's answers to SOCK_DESTROY failed: {0}")]
    Recv(io::Error),
    /// Bytes that answer nothing that was asked.
    #[error("a malformed answer from the kernel to SOCK_DESTROY: {0}")]
    Framing(String),
    /// EPERM.
    #[error("the kernel refuses to destroy sockets: EPERM (Operation not permitted)")]
    NotPermitted,
    /// EOPNOTSUPP for this bucket, while the kernel looks for sockets to destroy.
    #[error("this kernel destroys other sockets, but no timewait buckets: EOPNOTSUPP (Operation not supported)")]
    NoBuckets,
    /// EOPNOTSUPP for whatever is asked.
    #[error("this kernel cannot destroy sockets: EOPNOTSUPP (Operation not supported)")]
    NotBuilt,
}

impl DestroyError {
    /// Whether the request in question had no effect. An answer that is lost proves nothing: the kernel has acted by then.
    #[must_use]
    pub const fn changed_nothing(&self) -> bool {
        match self {
            Self::Send(_) | Self::NotPermitted | Self::NoBuckets | Self::NotBuilt => true,
            Self::Recv(_) | Self::Framing(_) => false,
        }
    }

    /// What would help.
    #[must_use]
    pub const fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NotPermitted => Some(
                "SOCK_DESTROY needs CAP_NET_ADMIN in the user namespace that owns this network namespace; root of a \
                 container has it only where it was granted",
            ),
            Self::NoBuckets => Some(
                "this kernel is too old for that; Linux 6.1 can. Here the port is free when the timer ends, or SO_REUSEADDR in \
                 the new server helps: `twtool bind-test PORT` finds out which",
            ),
            Self::NotBuilt => Some(
                "it was built without CONFIG_INET_DIAG_DESTROY (/proc/config.gz or /boot/config-* may say so); only \
                 another kernel can",
            ),
            Self::Send(_) | Self::Recv(_) | Self::Framing(_) => None,
        }
    }
}

/// What came of it.
#[derive(Debug)]
pub struct Destruction {
    /// The answer for each bucket, in the order of the buckets.
    pub answers: Vec<Acknowledgement>,
    /// Why it ended early, where it did.
    pub end: Result<(), DestroyError>,
}

/// Asks the kernel to destroy the buckets of these rows.
///
/// The first goes alone: what is not permitted or not supported for one is not for any, and is then known before anything
/// is gone. Should that come later, no further batch is sent.
pub fn run(kernel: &mut dyn Commands, rows: &[Row]) -> Destruction {
    let mut answers = vec![Acknowledgement::None; rows.len()];
    let end = run_batches(kernel, rows, &mut answers);
    Destruction { answers, end }
}

fn run_batches(kernel: &mut dyn Commands, rows: &[Row], answers: &mut [Acknowledgement]) -> Result<(), DestroyError> {
    let mut asker = Asker { kernel, asked: SEQUENCE, buffer: vec![] };
    let first = rows.len().min(1);
    let batches = rows[..first].chunks(BATCH).chain(rows[first..].chunks(BATCH));
    let mut from = 0;
    for batch in batches {
        let answers = &mut answers[from..from + batch.len()];
        asker.ask(batch.iter().map(|row| (&row.bucket, row.bucket.cookie)), answers)?;
        if let Some(refused) = answers.iter().position(|answer| *answer == Acknowledgement::Failed(errno::EOPNOTSUPP)) {
            return Err(asker.why_not_supported(&batch[refused].bucket)?);
        }
        if answers.contains(&Acknowledgement::Failed(errno::EPERM)) {
            return Err(DestroyError::NotPermitted);
        }
        from += batch.len();
    }
    Ok(())
}

/// Sends batches, each request with a sequence number of its own, and tells whose answer came.
struct Asker<'a> {
    kernel: &'a mut dyn Commands,
    /// The number of the last request. A dump's is below all of them.
    asked: u32,
    buffer: Vec<u8>,
}

impl Asker<'_> {
    /// Sends one batch and notes the answers.
    fn ask<'b>(
        &mut self,
        batch: impl ExactSizeIterator<Item = (&'b TimeWaitBucket, Option<Cookie>)>,
        answers: &mut [Acknowledgement],
    ) -> Result<(), DestroyError> {
        let first = self.asked.wrapping_add(1);
        let length = batch.len();
        let mut datagram = Vec::with_capacity(length * LENGTH);
        for (i, (bucket, cookie)) in batch.enumerate() {
            self.asked = self.asked.wrapping_add(1);
            append(bucket, cookie, self.asked, i + 1 == length, &mut datagram);
        }
        self.kernel.send_bytes(&datagram).map_err(DestroyError::Send)?;
        while !self.receive(first, answers)? {}
        // The kernel was silent about these, and is done with all of them.
        answers
            .iter_mut()
            .filter(|answer| **answer == Acknowledgement::None)
            .for_each(|answer| *answer = Acknowledgement::Done);
        Ok(())
    }

    /// Receives a datagram of answers to the requests from `first` on; whether that of the last was among them.
    fn receive(&mut self, first: u32, answers: &mut [Acknowledgement]) -> Result<bool, DestroyError> {
        let length = self.kernel.recv(&mut self.buffer).map_err(DestroyError::Recv)?;
        if length != self.buffer.len() || length == 0 {
            return Err(DestroyError::Framing(format!("{length} bytes, of which {} came", self.buffer.len())));
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

    /// Tells the two reasons for EOPNOTSUPP apart: without CONFIG_INET_DIAG_DESTROY the kernel says it before it looks for
    /// the socket, else it looks first (`inet_diag_cmd_exact` in net/ipv4/inet_diag.c). So it is asked for a socket that
    /// there cannot be: the bucket's ends with the cookie 0, which is nobody's.
    fn why_not_supported(&mut self, bucket: &TimeWaitBucket) -> Result<DestroyError, DestroyError> {
        let mut answer = [Acknowledgement::None];
        self.ask(std::iter::once((bucket, None)), &mut answer)?;
        Ok(if answer == [Acknowledgement::Failed(errno::EOPNOTSUPP)] {
            DestroyError::NotBuilt
        } else {
            DestroyError::NoBuckets
        })
    }
}

/// Bytes of a request: `struct nlmsghdr` and `struct inet_diag_req_v2`.
const LENGTH: usize = 16 + 56;

/// Appends the request for one bucket. Without a cookie it is for nobody: the kernel never gives out 0.
fn append(bucket: &TimeWaitBucket, cookie: Option<Cookie>, sequence: u32, acknowledge: bool, datagram: &mut Vec<u8>) {
    let request = request::of_one(&bucket.tuple, bucket.interface, cookie);
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

    /// A kernel that answers by a rule: the errno for the request of this number and cookie, 0 for one that works.
    struct FakeKernel<F> {
        rule: F,
        answers: VecDeque<Vec<u8>>,
        batches: Vec<usize>,
        requests: usize,
    }

    impl<F: FnMut(usize, u64) -> i32> FakeKernel<F> {
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

    impl<F: FnMut(usize, u64) -> i32> Transport for FakeKernel<F> {
        fn send(&mut self, _: &Request) -> io::Result<()> {
            panic!("nothing is dumped")
        }

        fn recv(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize> {
            *buffer = self.answers.pop_front().expect("more is received than the kernel has answered");
            Ok(buffer.len())
        }
    }

    impl<F: FnMut(usize, u64) -> i32> Commands for FakeKernel<F> {
        fn send_bytes(&mut self, datagram: &[u8]) -> io::Result<()> {
            assert!(self.answers.is_empty(), "the answers to a batch are read before the next");
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
            assert_eq!(request.source_address, local.parse::<IpAddr>().expect("an address"), "as the socket has it");
            assert_eq!(request.destination_address, remote.parse::<IpAddr>().expect("an address"));
            assert_eq!((request.source_port, request.destination_port, request.interface_id), (80, 40000, 7));
        }
    }

    #[test]
    fn silence_is_success_and_every_error_is_that_of_its_bucket() {
        let mut kernel = FakeKernel::new(|_, cookie| match cookie {
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
    fn nothing_to_destroy_asks_nothing() {
        let mut kernel = FakeKernel::new(|_, _| panic!("asked"));
        assert!(run(&mut kernel, &[]).end.is_ok() && kernel.batches.is_empty());
    }

    #[test]
    fn what_is_not_permitted_is_tried_once() {
        let mut kernel = FakeKernel::new(|_, _| errno::EPERM);
        let Destruction { answers, end } = run(&mut kernel, &rows(1000));
        assert!(matches!(end, Err(DestroyError::NotPermitted)));
        assert_eq!(kernel.requests, 1);
        assert_eq!(answers[..2], [Acknowledgement::Failed(errno::EPERM), Acknowledgement::None]);
        // Whether it may is asked only for a bucket that is there.
        let mut kernel = FakeKernel::new(|i, _| if i == 0 { errno::ENOENT } else { errno::EPERM });
        let Destruction { answers, end } = run(&mut kernel, &rows(1000));
        assert!(matches!(end, Err(DestroyError::NotPermitted)));
        assert_eq!(kernel.batches, [1, 128]);
        assert!(!answers.contains(&Acknowledgement::Done));
    }

    #[test]
    fn an_old_kernel_and_one_without_the_option_are_told_apart() {
        let mut without = FakeKernel::new(|_, _| errno::EOPNOTSUPP);
        assert!(matches!(run(&mut without, &rows(5)).end, Err(DestroyError::NotBuilt)));
        let mut old = FakeKernel::new(|_, cookie| if cookie == 0 { errno::ENOENT } else { errno::EOPNOTSUPP });
        assert!(matches!(run(&mut old, &rows(5)).end, Err(DestroyError::NoBuckets)));
        assert_eq!((without.requests, old.requests), (2, 2), "the bucket, and one that is not there");
        for error in [DestroyError::NotBuilt, DestroyError::NoBuckets, DestroyError::NotPermitted] {
            assert!(error.hint().is_some(), "{error}");
        }
    }

    #[test]
    fn lost_cut_and_foreign_answers_end_it_and_leave_the_rest_unanswered() {
        /// Fails to send, or receives just this.
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
        fn arbitrary_answers_never_panic(datagrams in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 0..4)) {
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
