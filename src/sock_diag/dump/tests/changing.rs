//! Tests of dumps during which the kernel's table changes.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;
use crate::sock_diag::transport::Commands;
use crate::sys::counts::{ReadPass, TableCounts};

/// The cookies of sockets that the request excludes. The kernel counts these sockets in its position, but does not send them.
const EXCLUDED: std::ops::Range<u64> = 500..600;

/// The smallest cookie of an additional first chain. This chain fills the first two datagrams, so that the counts of the tables are
/// read before the first change.
const FIRST: u64 = 700;

/// Larger cookies belong to listeners.
const LISTENERS: u64 = 2000;

/// A change of the table: a new socket at the head of the chain with this index, or the removal of the socket with this cookie.
#[derive(Clone, Copy, Debug)]
enum Change {
    Add(usize),
    Remove(u64),
}

/// A kernel whose table changes during the dump. It keeps the cookies of sockets in chains. Each receive takes the prepared datagram,
/// then changes the table, then prepares the next datagram. The next datagram begins where the last one ended: at a chain, and at an
/// index in that chain.
struct ChangingKernel {
    chains: Vec<Vec<u64>>,
    changes: VecDeque<Vec<Change>>,
    per_datagram: usize,
    position: (usize, usize),
    prepared: Vec<u8>,
    dumps: usize,
    /// The cookie of the newest socket.
    newest: u64,
    reports_counts: bool,
    reported_chains: Option<u64>,
    /// Whether the transport is a kernel, and not a recording.
    is_kernel: bool,
    states: StateSet,
    /// The callback stops the dump at this cookie.
    stop_at: Option<u64>,
}

impl ChangingKernel {
    fn new(chains: &[&[u64]], changes: &[&[Change]]) -> Self {
        Self {
            chains: chains.iter().map(|chain| chain.to_vec()).collect(),
            changes: changes.iter().map(|changes| changes.to_vec()).collect(),
            per_datagram: 3,
            position: (0, 0),
            prepared: vec![],
            dumps: 0,
            newest: 1000,
            reports_counts: true,
            reported_chains: Some(chains.len() as u64),
            is_kernel: true,
            states: StateSet::of(&[TcpState::TimeWait]),
            stop_at: None,
        }
    }

    fn record(cookie: u64) -> Vec<u8> {
        let mut m = bucket(u16::try_from(cookie).expect("a small number"));
        m[16 + 44..16 + 52].copy_from_slice(&cookie.to_le_bytes());
        if cookie > LISTENERS {
            m[16 + 1..16 + 3].copy_from_slice(&[TcpState::Listen as u8, 0]);
        }
        m
    }

    /// A datagram that makes the dump a long one (`receiver::LONG`).
    fn datagram(records: &[Vec<u8>]) -> Vec<u8> {
        let rest = message(NLMSG_NOOP, 0, SEQUENCE, &vec![0; 20_000]);
        [records.concat(), rest].concat()
    }

    fn make(&mut self) {
        let mut records = vec![];
        let (first, numbered) = self.position;
        for (at, chain) in self.chains.iter().enumerate().skip(first) {
            for (number, cookie) in chain.iter().enumerate().skip(if at == first { numbered } else { 0 }) {
                if EXCLUDED.contains(cookie) {
                    continue;
                }
                if records.len() == self.per_datagram {
                    self.position = (at, number);
                    self.prepared = Self::datagram(&records);
                    return;
                }
                records.push(Self::record(*cookie));
            }
        }
        self.position = (self.chains.len(), 0);
        self.prepared = if records.is_empty() { done(0) } else { Self::datagram(&records) };
    }

    fn change(&mut self) {
        // Only the first dump has changes. If the table also changed during the second dump, both dumps could lose the same socket,
        // which is not detected.
        let changes = if self.dumps == 1 { self.changes.pop_front().unwrap_or_default() } else { vec![] };
        for change in changes {
            match change {
                Change::Add(chain) => {
                    self.newest += 1;
                    let newest = self.newest;
                    let at = 1 + chain % (self.chains.len() - 1);
                    self.chains[at].insert(0, newest);
                }
                Change::Remove(cookie) => self.chains.iter_mut().for_each(|chain| chain.retain(|&c| c != cookie)),
            }
        }
    }

    /// Returns the cookies in the order of the dump, and its end. The first change happens after the third datagram.
    fn read(&mut self) -> (Vec<u64>, DumpEnd) {
        let first = FIRST..FIRST + 2 * self.per_datagram as u64;
        self.chains.insert(0, first.clone().collect());
        self.changes = [vec![], vec![]].into_iter().chain(self.changes.drain(..)).collect();
        let request = Request { walk: Walk::Ipv4, states: self.states, program: None, tcp_info: false };
        let stop_at = self.stop_at;
        let mut cookies = vec![];
        let end = run_with(self, &request, &|_| false, &mut |socket| {
            let cookie = socket.cookie().map(crate::model::socket::Cookie::number);
            cookies.extend(cookie);
            if cookie == stop_at { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        cookies.retain(|cookie| !first.contains(cookie));
        (cookies, end.expect("done"))
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
        *buffer = std::mem::take(&mut self.prepared);
        self.change();
        self.make();
        Ok(buffer.len())
    }

    fn table_counts(&self, _: ReadPass) -> Option<TableCounts> {
        let buckets = self.chains.iter().flatten().count() as u64;
        // Every new bucket was a connection before, so it counts as an opened connection.
        self.reports_counts.then_some(TableCounts { opens: self.newest, in_use: 0, buckets })
    }

    fn chains(&self) -> Option<u64> {
        self.reported_chains
    }

    fn commands(&mut self) -> Option<&mut dyn Commands> {
        if self.is_kernel { Some(self) } else { None }
    }
}

impl Commands for ChangingKernel {
    fn send_bytes(&mut self, _: &[u8]) -> io::Result<()> {
        unreachable!("a dump sends no commands")
    }
}

/// Returns the cookies in the order of the dump, its end, and the number of dumps.
fn read(mut kernel: ChangingKernel) -> (Vec<u64>, DumpEnd, usize) {
    let (cookies, end) = kernel.read();
    (cookies, end, kernel.dumps)
}

#[test]
fn a_socket_skipped_after_a_removal_is_recovered() {
    let kernel = ChangingKernel::new(&[&[1], &[2, 3, 4, 5], &[6]], &[&[Change::Remove(2)]]);
    let (cookies, end, dumps) = read(kernel);
    assert_eq!(cookies, [1, 2, 3, 5, 6, 4], "5 moved to the index of 4, at which the kernel resumed");
    assert_eq!((end.interrupted, dumps), (false, 2));
}

#[test]
fn a_socket_skipped_after_the_removal_of_an_excluded_socket_is_recovered() {
    let kernel = ChangingKernel::new(&[&[1], &[501, 2, 3, 4, 5], &[6]], &[&[Change::Remove(501)]]);
    let (cookies, end, dumps) = read(kernel);
    assert_eq!(cookies, [1, 2, 3, 5, 6, 4], "5 moved to the index of 4, at which the kernel resumed");
    assert_eq!((end.interrupted, dumps), (false, 2));
}

#[test]
fn a_second_dump_is_read_if_many_sockets_were_removed_or_their_number_is_unknown() {
    let chains: Vec<Vec<u64>> = (1..=60).map(|cookie| vec![cookie]).collect();
    let chains: Vec<&[u64]> = chains.iter().map(Vec::as_slice).collect();
    let dumps = |removed: &[u64], reports_counts, reported_chains| {
        let removals: Vec<Change> = removed.iter().copied().map(Change::Remove).collect();
        let mut kernel = ChangingKernel::new(&chains, &[&[], &[], &[], &removals]);
        (kernel.reports_counts, kernel.reported_chains) = (reports_counts, reported_chains);
        let (cookies, end, dumps) = read(kernel);
        assert!(cookies.into_iter().eq(1..=60) && !end.interrupted);
        dumps
    };
    assert_eq!(dumps(&[], true, None), 1);
    assert_eq!(dumps(&[], false, Some(60)), 2);
    assert_eq!(dumps(&[1], true, None), 2);
    assert_eq!(dumps(&[1], true, Some(CHAINS_PER_REMOVAL)), 1);
    assert_eq!(dumps(&[1, 2], true, Some(CHAINS_PER_REMOVAL)), 2);
    assert_eq!(dumps(&[1, 2], true, Some(2 * CHAINS_PER_REMOVAL)), 1);
}

#[test]
fn a_socket_repeated_after_an_addition_is_reported_once() {
    let kernel = ChangingKernel::new(&[&[1], &[2, 3, 4, 5], &[6]], &[&[Change::Add(1)]]);
    let (cookies, end, dumps) = read(kernel);
    assert_eq!((cookies, end.interrupted, dumps), (vec![1, 2, 3, 4, 5, 6, 1001], false, 2));
}

#[test]
fn sockets_are_recovered_if_all_sockets_before_them_in_the_chain_are_removed() {
    let changes = [Change::Remove(1), Change::Remove(2), Change::Remove(3)];
    let later = [Change::Remove(6)];
    let chains: [&[u64]; 4] = [&[7, 8, 9], &[1], &[2, 3, 4, 5], &[6]];
    let (cookies, end, dumps) = read(ChangingKernel::new(&chains, &[&[], &changes, &later]));
    assert_eq!(cookies, [7, 8, 9, 1, 2, 3, 6, 4, 5], "4 and 5 moved before the index at which the kernel resumed");
    assert_eq!((end.interrupted, dumps, end.recovered), (false, 2, 2));
}

#[test]
fn a_new_socket_in_the_second_dump_is_reported() {
    let changes = [Change::Remove(2), Change::Add(0)];
    let (cookies, end, _) = read(ChangingKernel::new(&[&[1], &[2, 3, 4, 5], &[6]], &[&changes]));
    assert_eq!((cookies, end.interrupted), (vec![1, 2, 3, 5, 6, 1001, 4], false));
}

#[test]
fn the_callback_can_stop_the_second_dump() {
    let mut kernel = ChangingKernel::new(&[&[1], &[2, 3, 4, 5, 7], &[6]], &[&[Change::Remove(2), Change::Remove(3)]]);
    kernel.stop_at = Some(4);
    let (cookies, end, dumps) = read(kernel);
    assert_eq!((cookies, end.stopped, dumps), (vec![1, 2, 3, 7, 6, 4], true, 2));
}

#[test]
fn a_recording_is_not_read_twice() {
    let mut kernel = ChangingKernel::new(&[&[1], &[2, 3, 4, 5], &[6]], &[&[Change::Remove(2)]]);
    kernel.is_kernel = false;
    let (cookies, _, dumps) = read(kernel);
    assert_eq!((cookies, dumps), (vec![1, 2, 3, 5, 6], 1));
}

#[test]
fn a_listener_in_the_second_dump_interrupts_a_dump_of_listeners_and_buckets() {
    let listen = StateSet::of(&[TcpState::Listen]);
    for (states, interrupted) in [(StateSet::ALL, true), (listen, false)] {
        let mut kernel = ChangingKernel::new(&[&[1], &[2, 3, 4, 5], &[6]], &[&[Change::Add(0)]]);
        (kernel.newest, kernel.states) = (LISTENERS, states);
        let (mut cookies, end) = kernel.read();
        assert_eq!(
            (cookies.pop(), end.interrupted, end.recovered),
            (Some(LISTENERS + 1), interrupted, 1),
            "{states:?}"
        );
    }
}

#[test]
fn a_lost_last_socket_is_recovered() {
    let kernel = ChangingKernel::new(&[&[1], &[2, 3, 4]], &[&[Change::Remove(2)]]);
    let (cookies, end, dumps) = read(kernel);
    assert_eq!((cookies, end.interrupted, dumps), (vec![1, 2, 3, 4], false, 2));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn every_socket_that_is_not_removed_is_reported_once(
        lengths in proptest::collection::vec(0_usize..4, 10..30),
        excluded in proptest::collection::vec((0_usize..30, 0_usize..4), 0..20),
        // A real datagram has room for hundreds of sockets, which is more than a chain has.
        per_datagram in 8_usize..16,
        changes in proptest::collection::vec(proptest::collection::vec((any::<bool>(), 0_usize..70), 0..8), 0..8),
    ) {
        let mut numbers = 1..;
        let mut chains: Vec<Vec<u64>> = lengths.iter().map(|&n| numbers.by_ref().take(n).collect()).collect();
        let all: Vec<u64> = chains.iter().flatten().copied().collect();
        for (cookie, (chain, at)) in EXCLUDED.zip(excluded) {
            let chain = chain % chains.len();
            let at = at.min(chains[chain].len());
            chains[chain].insert(at, cookie);
        }
        let removed = |at: usize| if at < 50 { at as u64 + 1 } else { EXCLUDED.start + at as u64 - 50 };
        let change = |&(adds, at): &(bool, usize)| if adds { Change::Add(at) } else { Change::Remove(removed(at)) };
        let changes: Vec<Vec<Change>> = changes.iter().map(|c| c.iter().map(change).collect()).collect();
        let mut kernel = ChangingKernel::new(&[], &[]);
        (kernel.chains, kernel.per_datagram, kernel.changes) = (chains, per_datagram, changes.clone().into());
        let (cookies, end) = kernel.read();
        let times = |cookie| cookies.iter().filter(|&&c| c == cookie).count();
        prop_assert!(cookies.iter().all(|&cookie| times(cookie) == 1), "{cookies:?}");
        prop_assert!(cookies.iter().all(|cookie| all.contains(cookie) || (1001..=kernel.newest).contains(cookie)));
        let gone = |cookie| changes.iter().flatten().any(|change| matches!(change, Change::Remove(c) if *c == cookie));
        let missed: Vec<_> = all.iter().filter(|&&cookie| !gone(cookie) && times(cookie) == 0).collect();
        prop_assert!(missed.is_empty() && !end.interrupted, "{missed:?} of {all:?}, {cookies:?}");
    }
}
