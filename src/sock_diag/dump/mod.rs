//! A netlink dump (netlink(7)): lists all sockets of a request, and detects lost and repeated sockets.
//!
//! A dump is not a snapshot. The kernel walks its hash table chain by chain and fills one datagram at a time. Between two
//! datagrams it keeps its position as two numbers: the chain, and how many sockets of that chain are done (`cb->args` in
//! `inet_diag_dump_icsk`, net/ipv4/inet_diag.c). New sockets enter a chain at its head. So a change in that chain moves the
//! sockets but not the number. Then the kernel continues at the wrong socket, and nothing in the response reports that:
//!
//! ```text
//! the datagram ends after 3 sockets                     a b c | d e
//! b is removed: the first 3 are now a, c and d          a c d | e        d is lost
//! x is added: the first 3 are now x, a and b            x a b | c d e    c is repeated
//! ```
//!
//! What this module does about it:
//!
//! 1. It drops a socket whose cookie was at the end of the previous datagram (`repeats`).
//! 2. It keeps the cookies of all sockets (`cookie_list`).
//! 3. Near the start and at the end of a long dump, it reads counts of the kernel's tables. They give an upper bound of the number of
//!    sockets that were removed from the tables in between ([`TableCounts`](crate::sys::counts::TableCounts)).
//! 4. If more than one socket was removed for every 1,000 hash chains (`CHAINS_PER_REMOVAL`), or if this cannot be determined, it reads
//!    a second dump and passes on the sockets that the first dump does not contain. Each of them was lost or is new. Both kinds
//!    belong in the result.
//!
//! The counts are necessary, because the position also counts sockets that the request excludes, such as connections in a dump of
//! buckets. The cookies of a dump do not show the removal of such a socket.
//!
//! A socket can still be lost:
//! - if both dumps lose the same socket;
//! - if fewer sockets were removed than step 4 requires;
//! - if sockets were removed before the first reading of the counts, which is after the first, second or third datagram. In a short
//!   dump, the counts are not read at all;
//! - if the removed sockets are inbound handshakes in progress, or only bound, because no count includes them.
//!
//! A socket can still be in the result twice if the kernel resumes inside a chain of more than 16 sockets, because it describes such a
//! chain in pieces.
//!
//! Another kind of loss is visible in the records themselves. The kernel collects up to 16 sockets of a chain under a lock, and writes
//! their records after it has released the lock. The record of a connection that becomes a bucket in between lacks the local port
//! (`inet_put_port`), and its bucket gets no record at all. Then the dump counts as interrupted. Measured: one such socket in 700
//! dumps during 55,000 closes per second (Linux 6.18).

mod cookie_list;
mod datagram;
mod error;
mod reader;
mod receiver;
mod repeats;
#[cfg(test)]
mod tests;

use std::io;
use std::ops::ControlFlow;
use std::sync::mpsc;

use self::cookie_list::CookieList;
use self::datagram::is_last;
pub use self::error::DumpError;
pub use self::reader::DumpEnd;
use self::reader::Reader;
use self::receiver::Receiver;
use super::request::Request;
use super::transport::Transport;
use crate::model::socket::{Socket, StateSet, TcpState};
use crate::parallel::Workers;
use crate::sys::counts::{ReadPass, TableCounts};

/// The number of datagrams that one thread receives and reads before a second thread may start. A short dump has fewer.
const SEQUENTIAL_DATAGRAMS: usize = 5;

/// A second thread starts if reading takes more than 1/5 of the time that receiving takes.
const RECEIVING_TO_READING: u32 = 5;

/// If at most one socket for every 1,000 chains was removed from the tables during a dump, there is no second dump.
///
/// The removal of a socket causes a loss only if the kernel pauses in the chain of this socket at that time, at a position after it.
/// By calculation, with one removal for every 1,000 chains, fewer than one in 2,000 dumps of connections and buckets loses a socket. A
/// server with 262,144 chains may have 262 removals during one dump. There, a dump of 100,000 buckets takes 30 ms.
const CHAINS_PER_REMOVAL: u64 = 1000;

/// The number of datagrams in one message to the other thread. Waking that thread takes a large fraction of the time that
/// receiving one datagram takes, so datagrams are sent in batches.
const BATCH: usize = 8;

/// The number of batches in the queue to the other thread. If the queue is full, the receiving thread waits, and the kernel
/// produces no further datagram. So with a slow reader of the output, memory stays bounded and no rows are lost.
const QUEUED_BATCHES: usize = 2;

/// Dumps the sockets of the request and passes every one to `each`, until `each` breaks or the dump ends. Skips sockets
/// in states that the request excludes, because a recording may contain more states.
///
/// In a long dump the kernel's walk and the work of `each` run in parallel, if that is faster and there is a second
/// core.
///
/// # Errors
/// See [`DumpError`].
pub fn run(
    transport: &mut dyn Transport,
    request: &Request,
    each: &mut (impl FnMut(&Socket) -> ControlFlow<()> + Send),
) -> Result<DumpEnd, DumpError> {
    let is_faster = |receiver: &Receiver| {
        receiver.datagrams >= SEQUENTIAL_DATAGRAMS && receiver.reading * RECEIVING_TO_READING > receiver.receiving
    };
    run_with(transport, request, &is_faster, each)
}

/// `overlaps` decides whether a second thread starts to read.
fn run_with(
    transport: &mut dyn Transport,
    request: &Request,
    overlaps: &dyn Fn(&Receiver) -> bool,
    each: &mut (impl FnMut(&Socket) -> ControlFlow<()> + Send),
) -> Result<DumpEnd, DumpError> {
    // A recording contains one dump, so a second dump from it would have the same sockets.
    let seen = transport.commands().is_some().then(CookieList::default);
    let mut reader = Reader::new(request, seen);
    let mut receiver = Receiver::start(transport, request)?;
    let mut end = receive(&mut receiver, &mut reader, overlaps, each)?;
    let (is_long, counts) = (receiver.is_long, receiver.counts);
    if let Some(seen) = reader.seen
        && is_long
        && !end.stopped
        && !few_removed(counts, transport)
    {
        let added = add_unseen(seen, transport, request, each).map_err(DumpError::of_second_dump)?;
        end.interrupted |= added.interrupted;
        end.stopped = added.stopped;
        end.recovered = added.recovered;
    }
    Ok(end)
}

fn add_unseen(
    seen: CookieList,
    transport: &mut dyn Transport,
    request: &Request,
    each: &mut (impl FnMut(&Socket) -> ControlFlow<()> + Send),
) -> Result<DumpEnd, DumpError> {
    let seen = seen.into_sorted();
    // The caller has inferred the direction of earlier buckets without this listener.
    let listener_is_late =
        |socket: &Socket| socket.state() == TcpState::Listen && request.states != StateSet::of(&[TcpState::Listen]);
    let (mut late_listener, mut recovered) = (false, 0);
    let mut each = |socket: &Socket| {
        if socket.cookie().is_some_and(|cookie| seen.binary_search(&cookie.number()).is_ok()) {
            return ControlFlow::Continue(());
        }
        late_listener |= listener_is_late(socket);
        recovered += 1;
        each(socket)
    };
    let end =
        receive(&mut Receiver::start(transport, request)?, &mut Reader::new(request, None), &|_| false, &mut each)?;
    Ok(DumpEnd { interrupted: end.interrupted || late_listener, recovered, ..end })
}

fn few_removed(earlier: Option<TableCounts>, transport: &dyn Transport) -> bool {
    let Some((earlier, later)) = earlier.zip(transport.table_counts(ReadPass::Later)) else { return false };
    let removed = later.removed_since(&earlier);
    removed == 0 || transport.chains().is_some_and(|chains| removed.saturating_mul(CHAINS_PER_REMOVAL) <= chains)
}

fn receive(
    receiver: &mut Receiver,
    reader: &mut Reader,
    overlaps: &dyn Fn(&Receiver) -> bool,
    each: &mut (impl FnMut(&Socket) -> ControlFlow<()> + Send),
) -> Result<DumpEnd, DumpError> {
    let mut buffer = Vec::new();
    let mut may_overlap = true;
    loop {
        if may_overlap && overlaps(receiver) {
            match read_on_worker(receiver, reader, each) {
                Some(end) => return end,
                None => may_overlap = false,
            }
        }
        let length = receiver.recv(&mut buffer);
        if let Some(end) = reader.read(length, &buffer, each)? {
            return Ok(end);
        }
    }
}

/// Receives the rest of a dump on this thread while a worker reads it. Returns `None` if no worker is free. The
/// kernel's walk stays on this core, because a core that has not walked the table recently takes a quarter longer.
fn read_on_worker(
    receiver: &mut Receiver,
    reader: &mut Reader,
    each: &mut (impl FnMut(&Socket) -> ControlFlow<()> + Send),
) -> Option<Result<DumpEnd, DumpError>> {
    let mut end = Err(DumpError::Framing("the list ends without NLMSG_DONE".into()));
    Workers::take()?.beside(|scope| {
        let (full, batches) = mpsc::sync_channel::<Vec<(io::Result<usize>, Vec<u8>)>>(QUEUED_BATCHES);
        let (recycle, used) = mpsc::channel();
        let end = &mut end;
        scope.spawn(move |_| {
            for batch in batches {
                for (length, buffer) in batch {
                    if let Some(read) = reader.read(length, &buffer, each).transpose() {
                        *end = read;
                        return;
                    }
                    // The send fails if the receiving thread has received its last datagram.
                    let _ = recycle.send(buffer);
                }
            }
        });
        let mut last = false;
        while !last {
            let mut batch = Vec::with_capacity(BATCH);
            while batch.len() < BATCH && !last {
                let mut buffer = used.try_recv().unwrap_or_default();
                let length = receiver.recv(&mut buffer);
                last = length.is_err() || is_last(&buffer);
                batch.push((length, buffer));
            }
            // The send fails if the reading thread has stopped.
            last |= full.send(batch).is_err();
        }
    });
    Some(end)
}
