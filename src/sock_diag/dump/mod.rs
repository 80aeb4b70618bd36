//! A netlink dump (netlink(7)): lists all sockets of a request, and detects lost and repeated ones.
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
//! 1. It drops a socket whose cookie was in the previous datagram (`resumption`).
//! 2. It measures how long the kernel paused between two datagrams (`receiver`). After a pause of more than 0.3 ms it keeps
//!    a *resumption*: the cookies before and after that point of the dump.
//! 3. After the dump it looks up the last sockets before each resumption. If all of them still exist, the kernel's
//!    position was right.
//! 4. If one of them is gone, it reads a second dump. Sockets in that dump between the last known socket before the
//!    resumption and the first known socket after it were lost, or are new. Both belong in the result (`recovery`).
//! 5. If the second dump does not contain known sockets on both sides of a resumption, the dump counts as interrupted.
//!
//! It cannot detect a loss or repetition that is caused by:
//! - the removal of a socket during a shorter pause;
//! - the removal of a socket that the request excludes: the dump has no cookie of it, but the kernel counts it. Measured on a busy
//!   machine: 6 of 1,200 dumps beside 1,000 closes per second lost one of 5,000 buckets (Linux 6.18);
//! - a resumption inside a chain of more than 16 sockets, which the kernel describes in pieces;
//! - a socket that closes during the pause, on kernels that insert its bucket at the head of the chain and not at the place
//!   of the socket.
//!
//! A different kind of loss can be detected in the records themselves. The kernel collects up to 16 sockets of a chain under a lock
//! and describes them after it has released the lock. A connection that becomes a bucket in between is described without its
//! local port (`inet_put_port`), and its bucket is not described at all. Then the dump counts as interrupted. Measured: one
//! such socket in 700 dumps during 55,000 closes per second (Linux 6.18).

mod datagram;
mod error;
mod reader;
mod receiver;
mod recovery;
mod resumption;
#[cfg(test)]
mod tests;

use std::ops::ControlFlow;
use std::sync::mpsc;

use self::datagram::is_last;
pub use self::error::DumpError;
pub use self::reader::DumpEnd;
use self::reader::Reader;
use self::receiver::{Received, Receiver};
use self::recovery::{Recovery, recover};
use self::resumption::Resumptions;
use super::request::Request;
use super::transport::Transport;
use crate::model::socket::{Socket, TcpState};
use crate::parallel::Workers;

/// Datagrams that one thread receives and reads before a second thread may start. A short dump ends before that.
const SEQUENTIAL_DATAGRAMS: usize = 5;

/// A second thread starts if reading takes more than 1/5 of the time that receiving takes.
const RECEIVING_TO_READING: u32 = 5;

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
    let pays = |receiver: &Receiver| {
        receiver.datagrams >= SEQUENTIAL_DATAGRAMS && receiver.reading * RECEIVING_TO_READING > receiver.receiving
    };
    run_with(transport, request, &pays, each)
}

/// Implements [`run`]. `overlaps` decides whether a second thread starts to read.
fn run_with(
    transport: &mut dyn Transport,
    request: &Request,
    overlaps: &dyn Fn(&Receiver) -> bool,
    each: &mut (impl FnMut(&Socket) -> ControlFlow<()> + Send),
) -> Result<DumpEnd, DumpError> {
    // A recording holds one dump. It cannot answer look-ups, and a second replay gives the same sockets.
    let resumptions = if transport.commands().is_some() { Resumptions::checked() } else { Resumptions::unchecked() };
    let mut reader = Reader::new(request, resumptions);
    let mut receiver = Receiver::start(transport, request)?;
    let mut end = receive(&mut receiver, &mut reader, overlaps, each)?;
    if end.stopped {
        return Ok(end);
    }
    let suspicious = reader.resumptions.suspicious(transport)?;
    if !suspicious.is_empty() {
        let Recovery { sockets, complete } =
            recover(&suspicious, transport, request).map_err(DumpError::of_second_dump)?;
        // The caller has inferred the direction of earlier rows without the late listener.
        let late_listener = sockets.iter().any(|socket| socket.state() == TcpState::Listen);
        end.interrupted |= !complete || late_listener;
        end.recovered = sockets.len();
        end.stopped = sockets.iter().any(|socket| each(socket).is_break());
    }
    Ok(end)
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
        let datagram = receiver.recv(&mut buffer);
        if let Some(end) = reader.read(datagram, &buffer, each)? {
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
        let (full, batches) = mpsc::sync_channel::<Vec<(Received, Vec<u8>)>>(QUEUED_BATCHES);
        let (recycle, used) = mpsc::channel();
        let end = &mut end;
        scope.spawn(move |_| {
            for batch in batches {
                for (datagram, buffer) in batch {
                    if let Some(read) = reader.read(datagram, &buffer, each).transpose() {
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
                let datagram = receiver.recv(&mut buffer);
                last = datagram.length.is_err() || is_last(&buffer);
                batch.push((datagram, buffer));
            }
            // The send fails if the reading thread has stopped.
            last |= full.send(batch).is_err();
            receiver.forget_wait();
        }
    });
    Some(end)
}
