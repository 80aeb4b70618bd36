//! Carries datagrams to and from the kernel's sock_diag, records them, and replays recordings.
//!
//! A real netlink socket, a recorder, a replay, and the fake kernels of tests implement [`Transport`].

use std::collections::VecDeque;
use std::io;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};

use super::request::Request;
use crate::sys::counts::{self, ReadPass, TableCounts};

/// The size of a receive buffer in bytes. The kernel sends at most about 32 KiB in one datagram (`netlink_dump` in
/// net/netlink/af_netlink.c), and less if the buffer is smaller.
pub const BUFFER: usize = 64 * 1024;

/// Sends dump requests and receives datagrams.
pub trait Transport {
    /// Sends one request.
    fn send(&mut self, request: &Request) -> io::Result<()>;

    /// Replaces the buffer's content with the next datagram. Returns its true length, which is larger than the buffer's
    /// length if the datagram did not fit.
    fn recv(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize>;

    /// Counts that show how many sockets are removed from the kernel's tables. `None` if they are unknown.
    fn table_counts(&self, _: ReadPass) -> Option<TableCounts> {
        None
    }

    /// The number of chains in the kernel's table of connections and buckets. `None` if it is unknown.
    fn chains(&self) -> Option<u64> {
        None
    }

    /// Returns the interface for look-ups and commands, if this transport has one. It must not be used during a dump.
    fn commands(&mut self) -> Option<&mut dyn Commands> {
        None
    }
}

/// Sends requests other than dumps: look-ups of one socket, and commands that destroy sockets. Recorders and replays do not
/// implement it.
pub trait Commands: Transport {
    /// Sends a datagram of one or more requests.
    fn send_bytes(&mut self, datagram: &[u8]) -> io::Result<()>;
}

/// The errnos that distinguish the responses to commands.
#[expect(missing_docs, reason = "the kernel's names, see errno(3)")]
pub mod errno {
    pub const EPERM: i32 = libc::EPERM;
    pub const ENOENT: i32 = libc::ENOENT;
    pub const EOPNOTSUPP: i32 = libc::EOPNOTSUPP;
}

/// A netlink socket that is connected to the kernel. It is not `Clone`, although the inner socket is, because dropping
/// a clone would close the descriptor.
pub struct Netlink(Socket);

impl Netlink {
    /// Opens a socket in the calling thread's network namespace. This needs no privilege.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        // Accept datagrams from the kernel only.
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self(socket))
    }
}

/// The maximum number of repeats of a request for which the kernel had no memory.
const REPEATS: u32 = 3;

fn retry_interrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

fn no_memory(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::ENOMEM))
}

impl Transport for Netlink {
    fn send(&mut self, request: &Request) -> io::Result<()> {
        self.send_bytes(&request.encode())
    }

    fn recv(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        retry_interrupted(|| {
            buffer.clear();
            buffer.reserve(BUFFER);
            self.0.recv(buffer, libc::MSG_TRUNC)
        })
    }

    fn table_counts(&self, reading: ReadPass) -> Option<TableCounts> {
        counts::table_counts(reading).ok()
    }

    fn chains(&self) -> Option<u64> {
        counts::chains().ok()
    }

    fn commands(&mut self) -> Option<&mut dyn Commands> {
        Some(self)
    }
}

impl Commands for Netlink {
    fn send_bytes(&mut self, datagram: &[u8]) -> io::Result<()> {
        let mut repeats = 0;
        loop {
            match retry_interrupted(|| self.0.send(datagram, 0)) {
                // The kernel has not received the request, so it can be sent again.
                Err(error) if no_memory(&error) && repeats < REPEATS => repeats += 1,
                sent => return sent.map(drop),
            }
        }
    }
}

/// One event on a transport, as a recording stores it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TransportEvent {
    /// A request was sent.
    Request(Request),
    /// A datagram was received.
    Datagram(Vec<u8>),
    /// The call of recv(2) failed with this errno.
    RecvFailed(i32),
}

/// The destination of a recording.
pub trait EventSink {
    /// Writes one event.
    fn keep(&mut self, event: &TransportEvent) -> io::Result<()>;
}

/// A transport that records every event of another transport.
pub struct RecordingTransport<T, S> {
    inner: T,
    sink: S,
}

/// Writes an event. A failure gets its own text, so that it does not look like a failure of the kernel.
fn keep(sink: &mut impl EventSink, event: &TransportEvent) -> io::Result<()> {
    sink.keep(event).map_err(|error| io::Error::other(format!("writing the recording failed: {error}")))
}

impl<T: Transport, S: EventSink> RecordingTransport<T, S> {
    /// Records the events of `inner`.
    pub const fn new(inner: T, sink: S) -> Self {
        Self { inner, sink }
    }

    /// Ends the recording and returns its destination.
    pub fn into_sink(self) -> S {
        self.sink
    }
}

impl<T: Transport, S: EventSink> Transport for RecordingTransport<T, S> {
    fn send(&mut self, request: &Request) -> io::Result<()> {
        keep(&mut self.sink, &TransportEvent::Request(request.clone()))?;
        self.inner.send(request)
    }

    fn recv(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        match self.inner.recv(buffer) {
            Ok(length) => {
                keep(&mut self.sink, &TransportEvent::Datagram(buffer.clone()))?;
                Ok(length)
            }
            Err(error) => {
                if let Some(errno) = error.raw_os_error() {
                    keep(&mut self.sink, &TransportEvent::RecvFailed(errno))?;
                }
                Err(error)
            }
        }
    }
}

/// Answers requests from a recording. It replays the response to the last recorded request that has the same walk and includes
/// the requested states. The caller skips sockets in other states. A recording contains every socket of a walk, so the program
/// of a request is ignored.
pub struct Replay {
    events: Vec<TransportEvent>,
    pending: VecDeque<TransportEvent>,
}

/// Why a [`Replay`] failed. The `io::Error` of `send` or `recv` contains it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// No recorded request has the same walk and includes the requested states.
    #[error("the recording does not contain sockets in the requested states")]
    NotRecorded,
    /// The recorded response ends before NLMSG_DONE.
    #[error("the recorded response of the kernel ends before NLMSG_DONE")]
    Ended,
}

impl From<ReplayError> for io::Error {
    fn from(error: ReplayError) -> Self {
        Self::other(error)
    }
}

impl Replay {
    /// Replays these events, which are in the order in which they happened.
    #[must_use]
    pub const fn new(events: Vec<TransportEvent>) -> Self {
        Self { events, pending: VecDeque::new() }
    }
}

impl Transport for Replay {
    fn send(&mut self, request: &Request) -> io::Result<()> {
        // Use the last request that matches: if a dump was interrupted and repeated, this is the last attempt.
        let answers = |event: &TransportEvent| match event {
            TransportEvent::Request(r) => r.walk == request.walk && r.states.contains_all(request.states),
            _ => false,
        };
        let at = self.events.iter().rposition(answers).ok_or(ReplayError::NotRecorded)?;
        let answer = self.events[at + 1..].iter().take_while(|event| !matches!(event, TransportEvent::Request(_)));
        self.pending = answer.cloned().collect();
        Ok(())
    }

    fn recv(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        match self.pending.pop_front() {
            Some(TransportEvent::Datagram(bytes)) => {
                *buffer = bytes;
                Ok(buffer.len())
            }
            Some(TransportEvent::RecvFailed(errno)) => Err(io::Error::from_raw_os_error(errno)),
            Some(TransportEvent::Request(_)) | None => Err(ReplayError::Ended.into()),
        }
    }
}
