//! The protocol of a netlink dump (netlink(7)): which messages are sockets, which end it, and every way it can fail.
//!
//! A dump is not a snapshot. At each receive the kernel resumes it by a place that others may have shifted; `resumption` finds
//! again what it passes over there, and drops what it repeats.
//!
//! There is another loss that can be seen in the records. The kernel takes up to 16 sockets of a hash bucket under its lock and
//! describes them after it (inet_diag_dump_icsk). One that becomes a timewait bucket in between is described without its
//! local port (inet_put_port), and the bucket is not. Measured on 6.18: a port 0 in one of 700 dumps beside 55,000 closes a
//! second.

mod reader;
mod resumption;
#[cfg(test)]
mod tests;

use std::io;
use std::ops::ControlFlow;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use self::reader::{Reader, ends};
use super::request::{Request, Walk};
use super::response::Malformed;
use super::transport::{Transport, processor_time};
use crate::model::socket::{Socket, TcpState};
use crate::parallel::Workers;

/// How a dump ended when it did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DumpEnd {
    /// The table changed in a way that may have lost or repeated sockets: the kernel set NLM_F_DUMP_INTR; or a place where it
    /// resumed the dump was not known again; or, where live sockets and buckets were asked for, a socket lost its port as it
    /// was described.
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

/// Datagrams that are received and read in turn before a second thread may read: a short list is done by then, and a thread
/// costs more than it gains.
const IN_TURN: usize = 5;

/// What part of the receiving the reading must be, so that a second thread gains more than it costs.
const WORTH_A_THREAD: u32 = 5;

/// Datagrams that are handed over at once: to wake the other thread costs a good part of receiving one.
const BATCH: usize = 8;

/// Batches that may wait to be read, beside the one that is handed over. When they are full the kernel waits, so a slow reader
/// of the output costs neither memory nor rows.
const AHEAD: usize = 2;

/// What is known of a datagram beside its bytes.
struct Received {
    /// Its true length, or why there is none.
    length: io::Result<usize>,
    /// At most so long did the kernel pause between it and the next one: at each receive it hands over the datagram that it
    /// has, and makes one more (`netlink_recvmsg` in net/netlink/af_netlink.c).
    pause: Duration,
}

/// Receives the answer to a request, with a clock.
struct Receiver<'a> {
    transport: &'a mut dyn Transport,
    /// How many datagrams have come.
    datagrams: usize,
    /// When the last one came.
    came: Instant,
    /// Time spent in receives.
    receiving: Duration,
    /// Time spent between them.
    reading: Duration,
    /// Since when the thread is watched, and its processor time then.
    watched: (Instant, Duration),
    /// Time that it waited until the last datagram came.
    waited: Duration,
}

impl<'a> Receiver<'a> {
    fn ask(transport: &'a mut dyn Transport, request: &Request) -> Result<Self, DumpError> {
        let watched = watch();
        transport.send(request).map_err(|source| DumpError::Send { walk: request.walk, source })?;
        Ok(Self {
            transport,
            datagrams: 0,
            came: Instant::now(),
            receiving: Duration::ZERO,
            reading: Duration::ZERO,
            watched,
            waited: Duration::ZERO,
        })
    }

    /// Goes on after a wait, which is part of the gap before the next receive and not of the receive.
    fn go_on(&mut self) {
        self.watched = watch();
    }

    fn recv(&mut self, buffer: &mut Vec<u8>) -> Received {
        let now = Instant::now();
        let gap = now - self.came;
        let length = self.transport.recv(buffer);
        self.came = Instant::now();
        self.datagrams += 1;
        self.reading += gap;
        self.receiving += self.came - now;
        let (since, worked) = std::mem::replace(&mut self.watched, watch());
        let waited = (self.watched.0 - since).saturating_sub(self.watched.1.saturating_sub(worked));
        // The datagram was made in the receive before this one, and after it the thread may have waited there as well.
        let pause = gap + waited + std::mem::replace(&mut self.waited, waited);
        Received { length, pause }
    }
}

/// Now, and the thread's processor time. Unknown, it stands still, and all time looks like a pause: rather look once more.
fn watch() -> (Instant, Duration) {
    (Instant::now(), processor_time().unwrap_or_default())
}

/// Asks for the sockets and hands each to `each`, until it breaks or the kernel is done; those in states that were not
/// asked for, as a replay may have them, are passed over. In a long dump the kernel's walk and the work of `each` overlap,
/// where that pays and there is a second core.
pub fn run(
    transport: &mut dyn Transport,
    request: &Request,
    each: &mut (impl FnMut(&Socket) -> ControlFlow<()> + Send),
) -> Result<DumpEnd, DumpError> {
    run_overlapping(transport, request, Overlap::WhereItPays, each)
}

/// Whether a second thread reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Overlap {
    WhereItPays,
    #[cfg(test)]
    Never,
    #[cfg(test)]
    FromTheFirst,
}

impl Overlap {
    fn begins(self, receiver: &Receiver) -> bool {
        match self {
            Self::WhereItPays => {
                receiver.datagrams >= IN_TURN && receiver.reading * WORTH_A_THREAD > receiver.receiving
            }
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
    each: &mut (impl FnMut(&Socket) -> ControlFlow<()> + Send),
) -> Result<DumpEnd, DumpError> {
    let mut reader = Reader::new(request, transport.commands().is_some());
    let mut receiver = Receiver::ask(transport, request)?;
    let mut end = receive(&mut receiver, &mut reader, overlap, each)?;
    if !end.stopped {
        let (passed_over, missing) = reader.resumptions.settle(transport, request)?;
        // Whoever judges by listeners has judged without them.
        let late = |socket: &Socket| socket.state() == TcpState::Listen;
        end.interrupted |= missing || passed_over.iter().any(late);
        end.stopped = passed_over.iter().any(|socket| each(socket).is_break());
    }
    Ok(end)
}

fn receive(
    receiver: &mut Receiver,
    reader: &mut Reader,
    overlap: Overlap,
    each: &mut (impl FnMut(&Socket) -> ControlFlow<()> + Send),
) -> Result<DumpEnd, DumpError> {
    let mut buffer = Vec::new();
    let mut overlaps = true;
    loop {
        if overlaps && overlap.begins(receiver) {
            match read_beside(receiver, reader, each) {
                Some(end) => return end,
                None => overlaps = false,
            }
        }
        let datagram = receiver.recv(&mut buffer);
        if let Some(end) = reader.read(datagram, &buffer, each)? {
            return Ok(end);
        }
    }
}

/// The rest of a dump, read by a worker while this thread receives it. The kernel's walk takes longest, mostly, and on a core
/// that has not walked the table lately a quarter longer: so it stays here. `None`: there is no worker.
fn read_beside(
    receiver: &mut Receiver,
    reader: &mut Reader,
    each: &mut (impl FnMut(&Socket) -> ControlFlow<()> + Send),
) -> Option<Result<DumpEnd, DumpError>> {
    let mut end = Err(DumpError::Framing("the list ends without NLMSG_DONE".into()));
    Workers::take()?.beside(|scope| {
        let (full, batches) = mpsc::sync_channel::<Vec<(Received, Vec<u8>)>>(AHEAD);
        let (recycle, used) = mpsc::channel();
        let end = &mut end;
        scope.spawn(move |_| {
            for batch in batches {
                for (datagram, buffer) in batch {
                    if let Some(read) = reader.read(datagram, &buffer, each).transpose() {
                        *end = read;
                        return;
                    }
                    // The other side may have its last datagram already.
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
                last = datagram.length.is_err() || ends(&buffer);
                batch.push((datagram, buffer));
            }
            // The other side hangs up when it has seen enough.
            last |= full.send(batch).is_err();
            receiver.go_on();
        }
    });
    Some(end)
}
