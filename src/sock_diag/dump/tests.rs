//! Tests of dumps. Each test provides the datagrams that the kernel would send.

mod changing;

use std::collections::HashSet;
use std::io;
use std::thread;
use std::time::Duration;

use netlink_packet_core::{NLMSG_DONE, NLMSG_ERROR, NLMSG_NOOP, NLMSG_OVERRUN};
use netlink_packet_sock_diag::constants::SOCK_DIAG_BY_FAMILY;
use proptest::prelude::*;

use super::*;
use crate::model::socket::{StateSet, TcpState};
use crate::sock_diag::request::{SEQUENCE, Walk};
use crate::sock_diag::response::{self, MalformedSocket};

/// A kernel that responds to a request with these datagrams.
struct ScriptedKernel(Vec<io::Result<Vec<u8>>>);

impl Transport for ScriptedKernel {
    fn send(&mut self, _: &Request) -> io::Result<()> {
        Ok(())
    }

    fn recv(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        assert!(!self.0.is_empty(), "the dump receives after the last datagram");
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
    // AF_INET, TIME_WAIT, timer 3, no retransmissions.
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

/// Dumps on one thread, and on two threads if there is a second core. Both must give the same result.
fn dump_of(states: StateSet, datagrams: Vec<io::Result<Vec<u8>>>) -> (Vec<u16>, Result<DumpEnd, DumpError>) {
    let request = Request { walk: Walk::BothFamilies, states, program: None, tcp_info: false };
    let again = |datagram: &io::Result<Vec<u8>>| match datagram {
        Ok(bytes) => Ok(bytes.clone()),
        Err(error) => Err(io::Error::from_raw_os_error(error.raw_os_error().unwrap_or_default())),
    };
    let copy = datagrams.iter().map(again).collect();
    let read = |datagrams, overlap: &dyn Fn(&Receiver) -> bool| {
        let mut ports = vec![];
        let end = run_with(&mut ScriptedKernel(datagrams), &request, overlap, &mut |socket| {
            ports.push(socket.tuple().local_port().0);
            ControlFlow::Continue(())
        });
        (ports, end)
    };
    let (on_one, on_two) = (read(datagrams, &|_| false), read(copy, &|_| true));
    assert_eq!(format!("{on_one:?}"), format!("{on_two:?}"));
    on_one
}

#[test]
fn sockets_come_from_every_datagram_until_done() {
    let (ports, end) =
        dump(vec![Ok([bucket(1), bucket(2)].concat()), Ok(bucket(3)), Ok([bucket(4), done(0)].concat())]);
    assert_eq!(ports, [1, 2, 3, 4]);
    assert_eq!(end.expect("done"), DumpEnd { interrupted: false, stopped: false, recovered: 0 });
}

#[test]
fn the_sockets_of_many_datagrams_arrive_in_order() {
    for count in [1, BATCH - 1, BATCH, BATCH + 1, 9 * BATCH] {
        let count = u16::try_from(count).expect("few");
        let mut datagrams: Vec<_> = (1..=count).map(|port| Ok(bucket(port))).collect();
        let end = if count % 2 == 0 { vec![Ok(done(0))] } else { vec![Ok([bucket(count + 1), done(0)].concat())] };
        datagrams.extend(end);
        let (ports, end) = dump(datagrams);
        assert!(end.is_ok() && ports.is_sorted() && ports.len() >= usize::from(count), "{count}: {ports:?}");
    }
}

#[test]
fn the_callback_can_stop_a_dump_on_two_threads() {
    let request = Request { walk: Walk::Ipv4, states: StateSet::ALL, program: None, tcp_info: false };
    let datagrams = (1..100).map(|port| Ok(bucket(port))).chain([Ok(done(0))]).collect();
    let mut seen = 0;
    let end = run_with(&mut ScriptedKernel(datagrams), &request, &|_| true, &mut |_| {
        seen += 1;
        if seen == 50 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(end.expect("stopped").stopped && seen == 50);
}

#[test]
fn a_worker_reads_the_received_datagrams_in_order() {
    let request = Request { walk: Walk::Ipv4, states: StateSet::ALL, program: None, tcp_info: false };
    let alone = thread::available_parallelism().is_ok_and(|cores| cores.get() == 1);
    for _ in 0..100 {
        let datagrams = (1..=100).map(|port| Ok(bucket(port))).chain([Ok(done(0))]).collect();
        let (mut ports, mut threads) = (vec![], HashSet::new());
        let end = run_with(&mut ScriptedKernel(datagrams), &request, &|_| true, &mut |socket| {
            ports.push(socket.tuple().local_port().0);
            threads.insert(thread::current().id());
            thread::sleep(Duration::from_millis(1));
            ControlFlow::Continue(())
        });
        assert!(end.is_ok() && ports.into_iter().eq(1..=100));
        assert_eq!(threads.len(), 1);
        // While another test uses the pool, the calling thread reads.
        if alone || !threads.contains(&thread::current().id()) {
            return;
        }
    }
    panic!("the pool has never read");
}

#[test]
fn the_interruption_flag_of_a_socket_or_of_the_end_marks_the_dump_as_interrupted() {
    for flagged in [0, 1] {
        let mut messages = [bucket(1), done(0)];
        // NLM_F_DUMP_INTR.
        messages[flagged][6] |= 16;
        assert!(dump(vec![Ok(messages.concat())]).1.expect("done").interrupted);
    }
}

#[test]
fn a_connection_without_its_local_port_interrupts_a_dump_of_connections_and_buckets() {
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
        // Without a remote port, the socket was a listener. No bucket replaces a closed listener.
        assert!(!interrupted(StateSet::ALL, state, 0));
        // This request does not include connections in FIN_WAIT_1.
        assert!(!interrupted(StateSet::of(&[TcpState::FinWait2, TcpState::TimeWait]), state, 443));
    }
}

#[test]
fn an_error_before_the_first_socket_is_a_refusal_and_a_later_one_breaks_off_the_list() {
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
fn an_acknowledgement_and_a_noop_are_skipped() {
    let ack = message(NLMSG_ERROR, 0, SEQUENCE, &0_i32.to_ne_bytes());
    let (ports, end) = dump(vec![Ok(ack), Ok([message(NLMSG_NOOP, 0, SEQUENCE, &[]), bucket(1), done(0)].concat())]);
    assert!(end.is_ok() && ports == [1]);
}

#[test]
fn malformed_and_unexpected_datagrams_are_errors() {
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
    // The dump fails at this record. With two threads, the receiving thread still receives the next datagram, because only the
    // other thread decodes records.
    assert!(matches!(dump(vec![Ok(short), Ok(done(0))]).1, Err(DumpError::Malformed(MalformedSocket::Short(71)))));
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
    let mut kernel = ScriptedKernel(vec![Ok([bucket(1), bucket(2)].concat())]);
    let mut seen = 0;
    let end = run(&mut kernel, &request, &mut |_| {
        seen += 1;
        ControlFlow::Break(())
    });
    assert!(end.expect("stopped").stopped && seen == 1);
}

proptest! {
    #[test]
    fn arbitrary_datagrams_end_the_dump_without_a_panic(datagrams in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..4)) {
        let mut datagrams: Vec<_> = datagrams.into_iter().map(Ok).collect();
        // ENOBUFS.
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
