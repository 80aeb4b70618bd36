//! The protocol of a netlink dump (netlink(7)): which messages are sockets, which end it, and every way it can fail.
//!
//! A dump is not a snapshot. The kernel resumes it by hash bucket at each receive, so under churn a socket may be
//! missed or repeated; `DumpEnd::interrupted` is the kernel's own word for that, where it gives one.
//!
//! There is one loss that can be seen in the records. The kernel takes up to 16 sockets of a hash bucket under its lock and
//! describes them after it (inet_diag_dump_icsk). One that becomes a timewait bucket in between is described without its
//! local port (inet_put_port), and the bucket is not. Measured on 6.18: a port 0 in one of 700 dumps beside 55,000 closes a
//! second.

use std::io;
use std::ops::ControlFlow;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use netlink_packet_core::{NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR, NLMSG_NOOP, NLMSG_OVERRUN, NetlinkBuffer};
use netlink_packet_sock_diag::constants::SOCK_DIAG_BY_FAMILY;

use super::request::{Request, SEQUENCE, TCPDIAG_GETSOCK, Walk};
use super::response::{self, Malformed};
use super::transport::Transport;
use crate::model::port::Port;
use crate::model::socket::{Socket, StateSet, TcpState};
use crate::parallel::Workers;

/// How a dump ended when it did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DumpEnd {
    /// The table changed in a way that may have lost or repeated sockets: the kernel set NLM_F_DUMP_INTR, or, where live
    /// sockets and buckets were asked for, a socket lost its port as it was described.
    pub interrupted: bool,
    /// The callback said that it had seen enough. The transport holds an unfinished dump and must not be used again.
    pub stopped: bool,
}

/// Why a dump has no complete answer.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// The request could not be sent.
    #[error("asking the kernel for {walk} sockets failed: {source}")]
    Send {
        /// Which walk.
        walk: Walk,
        /// Why.
        source: io::Error,
    },
    /// Receiving failed; ENOBUFS among the reasons.
    #[error("receiving {walk} sockets from the kernel failed: {source}")]
    Recv {
        /// Which walk.
        walk: Walk,
        /// Why.
        source: io::Error,
    },
    /// NLMSG_ERROR before any socket: the kernel's answer to the request is no.
    #[error("the kernel refuses to list {walk} sockets: {errno}")]
    Refused {
        /// Which walk.
        walk: Walk,
        /// Its reason.
        errno: io::Error,
    },
    /// NLMSG_DONE or NLMSG_ERROR with an errno after the dump had begun.
    #[error("the kernel broke off the list of {walk} sockets: {errno}")]
    BrokenOff {
        /// Which walk.
        walk: Walk,
        /// Its reason.
        errno: io::Error,
    },
    /// NLMSG_OVERRUN: the kernel lost data.
    #[error("the kernel lost part of the list of {walk} sockets (NLMSG_OVERRUN)")]
    Overrun {
        /// Which walk.
        walk: Walk,
    },
    /// A datagram that did not fit into the buffer.
    #[error("a datagram of {length} bytes was cut to {room}")]
    Truncated {
        /// Its length.
        length: usize,
        /// The buffer's.
        room: usize,
    },
    /// Bytes that are no netlink message of this dump.
    #[error("a malformed netlink message from the kernel: {0}")]
    Framing(String),
    /// A message that is no socket.
    #[error("a malformed netlink message from the kernel: {0}")]
    Malformed(#[from] Malformed),
}

/// Datagrams that are received and read in turn before a second thread may receive ahead: a short list is done by then,
/// and a thread costs more than it gains.
const IN_TURN: usize = 4;

/// What part of the receiving the reading must be, so that a second thread gains more than it costs: handing over makes
/// receiving about a tenth slower. To count is less, to write a line is more.
const WORTH_A_THREAD: u32 = 5;

/// Datagrams that are handed over at once: waking the other thread costs about as much as receiving one.
const BATCH: usize = 4;

/// Batches that may be received ahead. When they are full the kernel waits, so a slow reader of the output costs neither
/// memory nor rows.
const AHEAD: usize = 2;

/// Received datagrams, each with its true length or why there is none.
type Batch = Vec<(io::Result<usize>, Vec<u8>)>;

/// Asks for the sockets and hands each to `each`, until it breaks or the kernel is done; those in states that were not
/// asked for, as a replay may have them, are passed over. In a long dump the kernel's walk and the work of `each` overlap,
/// where that pays and there is a second core.
pub fn run(
    transport: &mut dyn Transport,
    request: &Request,
    each: &mut impl FnMut(&Socket) -> ControlFlow<()>,
) -> Result<DumpEnd, DumpError> {
    run_overlapping(transport, request, Overlap::WhereItPays, each)
}

/// Whether a second thread receives ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Overlap {
    WhereItPays,
    #[cfg(test)]
    Never,
    #[cfg(test)]
    FromTheFirst,
}

impl Overlap {
    fn begins(self, received: usize, receiving: Duration, reading: Duration) -> bool {
        match self {
            Self::WhereItPays => received >= IN_TURN && reading * WORTH_A_THREAD > receiving,
            #[cfg(test)]
            Self::Never => false,
            #[cfg(test)]
            Self::FromTheFirst => true,
        }
    }
}

fn run_overlapping(
    transport: &mut dyn Transport,
    request: &Request,
    overlap: Overlap,
    each: &mut impl FnMut(&Socket) -> ControlFlow<()>,
) -> Result<DumpEnd, DumpError> {
    let walk = request.walk;
    transport.send(request).map_err(|source| DumpError::Send { walk, source })?;
    let through_life = [TcpState::FinWait1, TcpState::TimeWait].into_iter().all(|state| request.states.contains(state));
    let mut reader = Reader { walk, states: request.states, through_life, began: false, interrupted: false, each };
    let mut buffer = Vec::new();
    let mut received = 0_usize;
    let (mut receiving, mut reading) = (Duration::ZERO, Duration::ZERO);
    let mut overlaps = true;
    let mut before = Instant::now();
    loop {
        if overlaps && overlap.begins(received, receiving, reading) {
            match run_ahead(transport, &mut reader) {
                Some(end) => return end,
                None => overlaps = false,
            }
        }
        let length = transport.recv(&mut buffer);
        let came = Instant::now();
        if let Some(end) = reader.read(length, &buffer)? {
            return Ok(end);
        }
        let done = Instant::now();
        receiving += came - before;
        reading += done - came;
        before = done;
        received += 1;
    }
}

/// The rest of a dump, received ahead by a worker. `None`: there is none.
fn run_ahead<F: FnMut(&Socket) -> ControlFlow<()>>(
    transport: &mut dyn Transport,
    reader: &mut Reader<F>,
) -> Option<Result<DumpEnd, DumpError>> {
    Workers::take()?.beside(|scope| {
        let (full, batches) = mpsc::sync_channel::<Batch>(AHEAD);
        let (recycle, empty) = mpsc::channel::<Batch>();
        let receive = move |_: &_| {
            let mut last = false;
            while !last {
                let mut used = empty.try_recv().unwrap_or_default();
                let mut batch = Batch::with_capacity(BATCH);
                while batch.len() < BATCH && !last {
                    let mut buffer = used.pop().map(|(_, buffer)| buffer).unwrap_or_default();
                    let length = transport.recv(&mut buffer);
                    last = length.is_err() || ends(&buffer);
                    batch.push((length, buffer));
                }
                // The other side hangs up when it has seen enough.
                if full.send(batch).is_err() {
                    return;
                }
            }
        };
        scope.spawn(receive);
        for mut batch in batches {
            for (length, buffer) in &mut batch {
                match reader.read(std::mem::replace(length, Ok(0)), buffer) {
                    Ok(None) => {}
                    Ok(Some(end)) => return Some(Ok(end)),
                    Err(error) => return Some(Err(error)),
                }
            }
            // The other side may have its last batch already.
            let _ = recycle.send(batch);
        }
        Some(Err(DumpError::Framing("the list ends without NLMSG_DONE".into())))
    })
}

/// Whether a datagram is the dump's last: it has an NLMSG_DONE or an errno, or what nothing is read behind.
fn ends(datagram: &[u8]) -> bool {
    let mut rest = datagram;
    while !rest.is_empty() {
        let Ok(message) = NetlinkBuffer::new_checked(rest) else { return true };
        match message.message_type() {
            _ if message.sequence_number() != SEQUENCE => return true,
            SOCK_DIAG_BY_FAMILY | TCPDIAG_GETSOCK | NLMSG_NOOP => {}
            // An acknowledgement.
            NLMSG_ERROR if matches!(errno(message.payload()), Ok(None)) => {}
            _ => return true,
        }
        rest = rest.get(aligned(&message)..).unwrap_or_default();
    }
    datagram.is_empty()
}

/// NLMSG_ALIGN of a message's length: messages start at multiples of 4; the last one may end unpadded.
fn aligned(message: &NetlinkBuffer<&[u8]>) -> usize {
    (message.length() as usize).next_multiple_of(4)
}

/// Reads the datagrams of one dump in their order.
struct Reader<'a, F> {
    walk: Walk,
    states: StateSet,
    /// Whether a connection is looked for before its close and after it, so that it is there all the time.
    through_life: bool,
    /// A socket has come.
    began: bool,
    interrupted: bool,
    each: &'a mut F,
}

impl<F: FnMut(&Socket) -> ControlFlow<()>> Reader<'_, F> {
    /// Reads one datagram, or why there is none; the end, if it is in there.
    fn read(&mut self, length: io::Result<usize>, datagram: &[u8]) -> Result<Option<DumpEnd>, DumpError> {
        let walk = self.walk;
        let length = length.map_err(|source| DumpError::Recv { walk, source })?;
        if length > datagram.len() {
            return Err(DumpError::Truncated { length, room: datagram.len() });
        }
        if datagram.is_empty() {
            return Err(DumpError::Framing("an empty datagram".into()));
        }
        let mut rest = datagram;
        while !rest.is_empty() {
            let message = NetlinkBuffer::new_checked(rest).map_err(|e| DumpError::Framing(format!("{e:#}")))?;
            if message.sequence_number() != SEQUENCE {
                let number = message.sequence_number();
                return Err(DumpError::Framing(format!("it answers request {number}, which was not asked")));
            }
            self.interrupted |= message.flags() & NLM_F_DUMP_INTR != 0;
            match message.message_type() {
                SOCK_DIAG_BY_FAMILY | TCPDIAG_GETSOCK => {
                    self.began = true;
                    let socket = response::decode(message.payload())?;
                    let tuple = socket.tuple();
                    self.interrupted |=
                        self.through_life && tuple.local_port() == Port(0) && tuple.remote_port() != Port(0);
                    if self.states.contains(socket.state()) && (self.each)(&socket).is_break() {
                        return Ok(Some(DumpEnd { interrupted: self.interrupted, stopped: true }));
                    }
                }
                NLMSG_NOOP => {}
                NLMSG_OVERRUN => return Err(DumpError::Overrun { walk }),
                // The kernel may carry errors in either; 0 is success in both.
                kind @ (NLMSG_DONE | NLMSG_ERROR) => match errno(message.payload())? {
                    None if kind == NLMSG_DONE => {
                        return Ok(Some(DumpEnd { interrupted: self.interrupted, stopped: false }));
                    }
                    None => {}
                    Some(errno) if self.began => return Err(DumpError::BrokenOff { walk, errno }),
                    Some(errno) => return Err(DumpError::Refused { walk, errno }),
                },
                other => return Err(DumpError::Framing(format!("it is of type {other}, which was not asked for"))),
            }
            rest = rest.get(aligned(&message)..).unwrap_or_default();
        }
        Ok(None)
    }
}

/// The negative errno at the start of NLMSG_DONE and NLMSG_ERROR; `None` for 0.
fn errno(payload: &[u8]) -> Result<Option<io::Error>, DumpError> {
    let code = payload.first_chunk::<4>().copied().map(i32::from_ne_bytes);
    match code {
        Some(0) => Ok(None),
        Some(code @ i32::MIN..0) => Ok(Some(io::Error::from_raw_os_error(code.saturating_neg()))),
        _ => Err(DumpError::Framing("an end of the list without a status".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A kernel that answers every request with these datagrams.
    struct FakeKernel(Vec<io::Result<Vec<u8>>>);

    impl Transport for FakeKernel {
        fn send(&mut self, _: &Request) -> io::Result<()> {
            Ok(())
        }

        fn recv(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize> {
            assert!(!self.0.is_empty(), "the dump asks for more than the kernel has");
            *buffer = self.0.remove(0)?;
            Ok(buffer.len())
        }
    }

    fn message(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
        let mut m = u32::try_from(16 + payload.len()).expect("short").to_ne_bytes().to_vec();
        m.extend_from_slice(&kind.to_ne_bytes());
        m.extend_from_slice(&flags.to_ne_bytes());
        m.extend_from_slice(&sequence.to_ne_bytes());
        m.extend_from_slice(&0_u32.to_ne_bytes());
        m.extend_from_slice(payload);
        m
    }

    fn bucket(port: u16) -> Vec<u8> {
        let mut m = vec![0; response::LENGTH];
        m[..4].copy_from_slice(&[2, 6, 3, 0]);
        m[4..6].copy_from_slice(&port.to_be_bytes());
        message(SOCK_DIAG_BY_FAMILY, 2, SEQUENCE, &m)
    }

    fn done(code: i32) -> Vec<u8> {
        message(NLMSG_DONE, 2, SEQUENCE, &code.to_ne_bytes())
    }

    fn dump(datagrams: Vec<io::Result<Vec<u8>>>) -> (Vec<u16>, Result<DumpEnd, DumpError>) {
        dump_of(StateSet::of(&[TcpState::TimeWait]), datagrams)
    }

    /// Received in turn, and ahead where there is a second core: what is read is the same.
    fn dump_of(states: StateSet, datagrams: Vec<io::Result<Vec<u8>>>) -> (Vec<u16>, Result<DumpEnd, DumpError>) {
        let request = Request { walk: Walk::BothFamilies, states, program: None, tcp_info: false };
        let again = |datagram: &io::Result<Vec<u8>>| match datagram {
            Ok(bytes) => Ok(bytes.clone()),
            Err(error) => Err(io::Error::from_raw_os_error(error.raw_os_error().unwrap_or_default())),
        };
        let copy = datagrams.iter().map(again).collect();
        let read = |datagrams, overlap| {
            let mut ports = vec![];
            let end = run_overlapping(&mut FakeKernel(datagrams), &request, overlap, &mut |socket| {
                ports.push(socket.tuple().local_port().0);
                ControlFlow::Continue(())
            });
            (ports, end)
        };
        let (in_turn, ahead) = (read(datagrams, Overlap::Never), read(copy, Overlap::FromTheFirst));
        assert_eq!(format!("{in_turn:?}"), format!("{ahead:?}"));
        in_turn
    }

    #[test]
    fn sockets_come_from_every_datagram_until_done() {
        let (ports, end) =
            dump(vec![Ok([bucket(1), bucket(2)].concat()), Ok(bucket(3)), Ok([bucket(4), done(0)].concat())]);
        assert_eq!(ports, [1, 2, 3, 4]);
        assert_eq!(end.expect("done"), DumpEnd { interrupted: false, stopped: false });
    }

    #[test]
    fn a_dump_of_many_datagrams_comes_in_order_wherever_it_ends() {
        for count in [1, BATCH - 1, BATCH, BATCH + 1, 3 * BATCH * AHEAD] {
            let count = u16::try_from(count).expect("few");
            let mut datagrams: Vec<_> = (1..=count).map(|port| Ok(bucket(port))).collect();
            let end = if count % 2 == 0 { vec![Ok(done(0))] } else { vec![Ok([bucket(count + 1), done(0)].concat())] };
            datagrams.extend(end);
            let (ports, end) = dump(datagrams);
            assert!(end.is_ok() && ports.is_sorted() && ports.len() >= usize::from(count), "{count}: {ports:?}");
        }
    }

    #[test]
    fn a_dump_that_is_received_ahead_stops_when_told() {
        let request = Request { walk: Walk::Ipv4, states: StateSet::ALL, program: None, tcp_info: false };
        let datagrams = (1..100).map(|port| Ok(bucket(port))).chain([Ok(done(0))]).collect();
        let mut seen = 0;
        let end = run_overlapping(&mut FakeKernel(datagrams), &request, Overlap::FromTheFirst, &mut |_| {
            seen += 1;
            if seen == 50 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert!(end.expect("stopped").stopped && seen == 50);
    }

    #[test]
    fn an_interrupted_dump_is_said_also_when_only_its_end_is_flagged() {
        for flagged in [0, 1] {
            let mut messages = [bucket(1), done(0)];
            messages[flagged][6] |= 16;
            assert!(dump(vec![Ok(messages.concat())]).1.expect("done").interrupted);
        }
    }

    #[test]
    fn a_connection_that_lost_its_port_while_it_was_described_is_an_interruption_where_its_bucket_is_looked_for_too() {
        // What a 6.18 kernel sent: state TCP_CLOSE or still FIN_WAIT_1, no local port, remote port 443, no timer.
        let lost = |state: TcpState, remote_port: u16| {
            let mut m = bucket(0);
            m[16..19].copy_from_slice(&[2, state as u8, 0]);
            m[22..24].copy_from_slice(&remote_port.to_be_bytes());
            vec![Ok([m, done(0)].concat())]
        };
        let interrupted = |states, state, port| dump_of(states, lost(state, port)).1.expect("done").interrupted;
        for state in [TcpState::Closed, TcpState::FinWait1] {
            assert!(interrupted(StateSet::ALL, state, 443));
            // A listener that closed leaves nothing behind.
            assert!(!interrupted(StateSet::ALL, state, 0));
            // The bucket was not there when the dump began.
            assert!(!interrupted(StateSet::of(&[TcpState::FinWait2, TcpState::TimeWait]), state, 443));
        }
    }

    #[test]
    fn an_error_before_any_socket_is_a_refusal_and_later_a_list_broken_off() {
        let enoent = message(NLMSG_ERROR, 0, SEQUENCE, &(-2_i32).to_ne_bytes());
        let (_, end) = dump(vec![Ok(enoent.clone())]);
        assert!(matches!(end, Err(DumpError::Refused { errno, .. }) if errno.raw_os_error() == Some(2)));
        let (_, end) = dump(vec![Ok(done(-22))]);
        assert!(matches!(end, Err(DumpError::Refused { errno, .. }) if errno.raw_os_error() == Some(22)));
        for broken in [enoent, done(-2)] {
            let (ports, end) = dump(vec![Ok(bucket(1)), Ok(broken)]);
            assert_eq!(ports, [1]);
            assert!(matches!(end, Err(DumpError::BrokenOff { errno, .. }) if errno.raw_os_error() == Some(2)));
        }
    }

    #[test]
    fn an_acknowledgement_and_a_noop_are_passed_over() {
        let ack = message(NLMSG_ERROR, 0, SEQUENCE, &0_i32.to_ne_bytes());
        let (ports, end) =
            dump(vec![Ok(ack), Ok([message(NLMSG_NOOP, 0, SEQUENCE, &[]), bucket(1), done(0)].concat())]);
        assert!(end.is_ok() && ports == [1]);
    }

    #[test]
    fn lost_cut_foreign_and_failed_datagrams_are_errors() {
        let overrun = message(NLMSG_OVERRUN, 0, SEQUENCE, &[]);
        assert!(matches!(dump(vec![Ok(overrun)]).1, Err(DumpError::Overrun { .. })));
        let enobufs = io::Error::from_raw_os_error(105);
        assert!(matches!(dump(vec![Err(enobufs)]).1, Err(DumpError::Recv { .. })));
        for bad in [
            vec![],
            bucket(1)[..40].to_vec(),
            message(SOCK_DIAG_BY_FAMILY, 0, SEQUENCE + 1, &[0; 72]),
            message(99, 0, SEQUENCE, &[]),
            message(NLMSG_DONE, 0, SEQUENCE, &[]),
            message(NLMSG_DONE, 0, SEQUENCE, &1_i32.to_ne_bytes()),
        ] {
            assert!(matches!(dump(vec![Ok(bad)]).1, Err(DumpError::Framing(_))));
        }
        let short = message(SOCK_DIAG_BY_FAMILY, 0, SEQUENCE, &[0; 71]);
        // Behind a socket that cannot be understood the kernel goes on.
        assert!(matches!(dump(vec![Ok(short), Ok(done(0))]).1, Err(DumpError::Malformed(Malformed::Short(71)))));
    }

    #[test]
    fn a_datagram_longer_than_the_buffer_is_an_error() {
        struct Cutting;
        impl Transport for Cutting {
            fn send(&mut self, _: &Request) -> io::Result<()> {
                Ok(())
            }
            fn recv(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize> {
                *buffer = bucket(1);
                Ok(buffer.len() + 1)
            }
        }
        let request = Request { walk: Walk::Ipv4, states: StateSet::ALL, program: None, tcp_info: false };
        let end = run(&mut Cutting, &request, &mut |_| panic!("a cut datagram gave a socket"));
        assert!(matches!(end, Err(DumpError::Truncated { .. })));
    }

    #[test]
    fn the_callback_can_stop_the_dump() {
        let request = Request { walk: Walk::Ipv4, states: StateSet::ALL, program: None, tcp_info: false };
        let mut kernel = FakeKernel(vec![Ok([bucket(1), bucket(2)].concat())]);
        let mut seen = 0;
        let end = run(&mut kernel, &request, &mut |_| {
            seen += 1;
            ControlFlow::Break(())
        });
        assert!(end.expect("stopped").stopped && seen == 1);
    }

    proptest! {
        #[test]
        fn arbitrary_datagrams_never_panic_and_end(datagrams in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..4)) {
            let mut datagrams: Vec<_> = datagrams.into_iter().map(Ok).collect();
            datagrams.push(Err(io::Error::from_raw_os_error(105)));
            let _ = dump(datagrams);
        }

        #[test]
        fn a_valid_stream_with_changed_bytes_never_panics(at in 0_usize..200, value in any::<u8>()) {
            let mut datagram = [bucket(1), bucket(2), done(0)].concat();
            let at = at % datagram.len();
            datagram[at] = value;
            let _ = dump(vec![Ok(datagram), Err(io::Error::from_raw_os_error(105))]);
        }
    }
}
