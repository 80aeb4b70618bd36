//! Tests of dumps during which the kernel's table changes.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::sock_diag::transport::Commands;

/// A new socket at the head of a chain, or a socket that is removed.
#[derive(Clone, Copy, Debug)]
enum Change {
    Add(usize),
    Remove(u64),
}

/// A kernel whose table changes during the dump. It keeps the cookies of sockets in chains. Each receive returns the datagram
/// that was prepared before, then changes the table, then prepares the next datagram. The next datagram begins where the last
/// one ended: at a chain, and at an index in that chain.
struct ChangingKernel {
    chains: Vec<Vec<u64>>,
    changes: VecDeque<Vec<Change>>,
    /// How long the kernel pauses for changes.
    pause: Duration,
    /// The time, which only pauses change.
    now: Instant,
    /// Sockets in a datagram.
    per_datagram: usize,
    position: (usize, usize),
    prepared: Vec<u8>,
    look_up_response: Option<Vec<u8>>,
    dumps: usize,
    newest: u64,
    /// The errno with which sending a look-up fails.
    refuses_look_ups: Option<i32>,
}

impl ChangingKernel {
    fn new(chains: &[&[u64]], pause: Duration, changes: &[&[Change]]) -> Self {
        Self {
            chains: chains.iter().map(|chain| chain.to_vec()).collect(),
            changes: changes.iter().map(|changes| changes.to_vec()).collect(),
            pause,
            now: Instant::now(),
            per_datagram: 3,
            position: (0, 0),
            prepared: vec![],
            look_up_response: None,
            dumps: 0,
            newest: 1000,
            refuses_look_ups: None,
        }
    }

    fn record(cookie: u64) -> Vec<u8> {
        let mut m = bucket(u16::try_from(cookie).expect("a small number"));
        m[16 + 44..16 + 52].copy_from_slice(&cookie.to_le_bytes());
        m
    }

    fn make(&mut self) {
        let mut records = vec![];
        let (first, numbered) = self.position;
        for (at, chain) in self.chains.iter().enumerate().skip(first) {
            for (number, cookie) in chain.iter().enumerate().skip(if at == first { numbered } else { 0 }) {
                if records.len() == self.per_datagram {
                    self.position = (at, number);
                    self.prepared = records.concat();
                    return;
                }
                records.push(Self::record(*cookie));
            }
        }
        self.position = (self.chains.len(), 0);
        self.prepared = if records.is_empty() { done(0) } else { records.concat() };
    }

    fn change(&mut self) {
        // Only the first dump has changes. The module does not check the second dump, so changes there could lose a socket in
        // both dumps. A real kernel was never seen to do that.
        let changes = if self.dumps == 1 { self.changes.pop_front().unwrap_or_default() } else { vec![] };
        if !changes.is_empty() {
            self.now += self.pause;
        }
        for change in changes {
            match change {
                Change::Add(chain) => {
                    self.newest += 1;
                    let newest = self.newest;
                    let at = chain % self.chains.len();
                    self.chains[at].insert(0, newest);
                }
                Change::Remove(cookie) => self.chains.iter_mut().for_each(|chain| chain.retain(|&c| c != cookie)),
            }
        }
    }

    /// Returns the cookies in the order of the dump, and its end.
    fn read(&mut self) -> (Vec<u64>, DumpEnd) {
        let request = Request { walk: Walk::Ipv4, states: StateSet::ALL, program: None, tcp_info: false };
        let mut cookies = vec![];
        let end = run_with(self, &request, &|_| false, &mut |socket| {
            cookies.extend(socket.cookie().map(crate::model::socket::Cookie::number));
            ControlFlow::Continue(())
        });
        (cookies, end.expect("done"))
    }

    /// Returns the error of a dump that fails.
    fn fail(&mut self) -> DumpError {
        let request = Request { walk: Walk::Ipv4, states: StateSet::ALL, program: None, tcp_info: false };
        run_with(self, &request, &|_| false, &mut |_| ControlFlow::Continue(())).expect_err("a failure")
    }
}

impl Transport for ChangingKernel {
    fn send(&mut self, _: &Request) -> io::Result<()> {
        self.dumps += 1;
        self.position = (0, 0);
        self.make();
        Ok(())
    }

    fn recv(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        *buffer = self.look_up_response.take().unwrap_or_else(|| {
            let datagram = std::mem::take(&mut self.prepared);
            self.change();
            self.make();
            datagram
        });
        Ok(buffer.len())
    }

    fn now(&self) -> Instant {
        self.now
    }

    fn processor_time(&self) -> Duration {
        Duration::ZERO
    }

    fn commands(&mut self) -> Option<&mut dyn Commands> {
        Some(self)
    }
}

impl Commands for ChangingKernel {
    fn send_bytes(&mut self, look_up: &[u8]) -> io::Result<()> {
        if let Some(errno) = self.refuses_look_ups {
            return Err(io::Error::from_raw_os_error(errno));
        }
        // The cookie is at the end of struct inet_diag_sockid, in struct inet_diag_req_v2 after struct nlmsghdr.
        let cookie = u64::from_le_bytes(look_up[16 + 48..16 + 56].try_into().expect("8 bytes"));
        let there = self.chains.iter().flatten().any(|&c| c == cookie);
        let gone = || message(NLMSG_ERROR, 0, SEQUENCE, &(-2_i32).to_ne_bytes());
        self.look_up_response = Some(if there { Self::record(cookie) } else { gone() });
        Ok(())
    }
}

/// A pause after which the reader checks whether the dump missed sockets.
const PAUSE: Duration = Duration::from_micros(1500);

/// Returns the cookies in the order of the dump, its end, and the number of dumps.
fn read(mut kernel: ChangingKernel) -> (Vec<u64>, DumpEnd, usize) {
    let (cookies, end) = kernel.read();
    (cookies, end, kernel.dumps)
}

#[test]
fn a_socket_skipped_after_a_removal_is_recovered() {
    let kernel = ChangingKernel::new(&[&[1], &[2, 3, 4, 5], &[6]], PAUSE, &[&[Change::Remove(2)]]);
    let (cookies, end, dumps) = read(kernel);
    assert_eq!(cookies, [1, 2, 3, 5, 6, 4], "5 moved to the index of 4, at which the kernel resumed");
    assert_eq!((end.interrupted, dumps), (false, 2));
}

#[test]
fn a_failed_look_up_is_not_reported_as_a_malformed_message() {
    let mut kernel = ChangingKernel::new(&[&[1], &[2, 3, 4, 5], &[6]], PAUSE, &[&[Change::Remove(6)]]);
    kernel.refuses_look_ups = Some(libc::ENOBUFS);
    let error = kernel.fail();
    assert!(matches!(error, DumpError::LookUp(_)), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("sending a look-up of one socket to the kernel failed: No buffer space"), "{text}");
    assert!(!text.contains("malformed"), "{text}");
}

#[test]
fn a_socket_repeated_after_an_addition_is_reported_once() {
    let kernel = ChangingKernel::new(&[&[1], &[2, 3, 4, 5], &[6]], PAUSE, &[&[Change::Add(1)]]);
    let (cookies, end, dumps) = read(kernel);
    assert_eq!((cookies, end.interrupted, dumps), (vec![1, 2, 3, 4, 5, 6], false, 1));
}

#[test]
fn the_last_socket_is_not_repeated_however_short_the_pause() {
    let kernel = ChangingKernel::new(&[&[1], &[2, 3, 4, 5], &[6]], Duration::ZERO, &[&[Change::Add(1)]]);
    let (cookies, end, dumps) = read(kernel);
    assert_eq!((cookies, end.interrupted, dumps), (vec![1, 2, 3, 4, 5, 6], false, 1));
}

#[test]
fn a_removal_after_the_position_causes_no_second_dump() {
    let kernel = ChangingKernel::new(&[&[1, 2], &[3, 4, 5, 6], &[7]], PAUSE, &[&[Change::Remove(7)]]);
    let (cookies, end, dumps) = read(kernel);
    assert_eq!((cookies, end.interrupted, dumps), (vec![1, 2, 3, 4, 5, 6], false, 1));
}

#[test]
fn a_resumption_that_is_not_found_is_an_interruption() {
    let all = [Change::Remove(1), Change::Remove(2), Change::Remove(3)];
    let chains: [&[u64]; 4] = [&[7, 8, 9], &[1], &[2, 3, 4, 5], &[6]];
    let mut kernel = ChangingKernel::new(&chains, PAUSE, &[&[], &all]);
    let (cookies, end) = kernel.read();
    assert_eq!(
        (cookies, end.interrupted),
        (vec![7, 8, 9, 1, 2, 3, 6], true),
        "it is unknown whether 4 and 5 existed before"
    );
}

#[test]
fn the_start_of_the_dump_is_a_landmark_if_the_first_sockets_are_removed() {
    let all = [Change::Remove(1), Change::Remove(2), Change::Remove(3)];
    let mut kernel = ChangingKernel::new(&[&[1], &[2, 3, 4, 5], &[6]], PAUSE, &[&all]);
    let (cookies, end) = kernel.read();
    assert_eq!((cookies, end.interrupted), (vec![1, 2, 3, 6, 4, 5], false));
}

#[test]
fn a_lost_last_socket_is_recovered_at_the_end_of_the_dump() {
    let kernel = ChangingKernel::new(&[&[1], &[2, 3, 4]], PAUSE, &[&[Change::Remove(2)]]);
    let (cookies, end, dumps) = read(kernel);
    assert_eq!((cookies, end.interrupted, dumps), (vec![1, 2, 3, 4], false, 2));
}

#[test]
fn the_end_of_the_dump_is_a_landmark_if_the_last_sockets_are_removed() {
    let changes: [&[Change]; 2] = [&[Change::Remove(2)], &[Change::Remove(5), Change::Remove(6)]];
    let mut kernel = ChangingKernel::new(&[&[1], &[2, 3, 4, 5], &[6]], PAUSE, &changes);
    let (cookies, end) = kernel.read();
    assert_eq!((cookies, end.interrupted), (vec![1, 2, 3, 5, 6, 4], false));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_socket_that_is_not_removed_is_reported_once_or_the_dump_is_interrupted(
        lengths in proptest::collection::vec(0_usize..4, 10..30),
        // A real datagram has room for hundreds of sockets, which is more than a chain has.
        per_datagram in 8_usize..16,
        changes in proptest::collection::vec(proptest::collection::vec((any::<bool>(), 0_usize..50), 0..8), 0..8),
    ) {
        let mut numbers = 1..;
        let chains: Vec<Vec<u64>> = lengths.iter().map(|&n| numbers.by_ref().take(n).collect()).collect();
        let all: Vec<u64> = chains.iter().flatten().copied().collect();
        let change = |&(adds, at): &(bool, usize)| if adds { Change::Add(at) } else { Change::Remove(at as u64 + 1) };
        let changes: Vec<Vec<Change>> = changes.iter().map(|c| c.iter().map(change).collect()).collect();
        let mut kernel = ChangingKernel::new(&[], PAUSE, &[]);
        (kernel.chains, kernel.per_datagram, kernel.changes) = (chains, per_datagram, changes.clone().into());
        let (cookies, end) = kernel.read();
        let times = |cookie| cookies.iter().filter(|&&c| c == cookie).count();
        prop_assert!(cookies.iter().all(|&cookie| times(cookie) == 1), "{cookies:?}");
        prop_assert!(cookies.iter().all(|cookie| all.contains(cookie) || (1001..=kernel.newest).contains(cookie)));
        let gone = |cookie| changes.iter().flatten().any(|change| matches!(change, Change::Remove(c) if *c == cookie));
        let missed: Vec<_> = all.iter().filter(|&&cookie| !gone(cookie) && times(cookie) == 0).collect();
        prop_assert!(missed.is_empty() || end.interrupted, "{missed:?} of {all:?}, {cookies:?}");
    }
}
