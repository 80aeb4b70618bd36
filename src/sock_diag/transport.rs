//! Datagrams to and from the kernel's sock_diag, and the copies of them that a recording keeps.
//!
//! The trait is the seam: below it a real netlink socket, a recording of one, or a test's fake kernel. Nothing here
//! looks into a datagram beyond which request it belongs to.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};
use nix::time::{ClockId, clock_gettime};

use super::request::Request;

/// Room for one datagram. The kernel fills at most about 32 KiB of it (`netlink_dump` in net/netlink/af_netlink.c), and
/// smaller buffers make it hand over less at a time.
pub const BUFFER: usize = 64 * 1024;

/// Carries datagrams.
pub trait Transport {
    /// Sends one request.
    fn send(&mut self, request: &Request) -> io::Result<()>;

    /// Replaces the buffer's content by the next datagram. Returns its true length, which is larger than the buffer's
    /// when the datagram did not fit.
    fn recv(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize>;

    /// The kernel behind it, where it can be asked about single sockets; not while a dump is under way. A recording has none:
    /// what it keeps is one answer, and a replay gives the same.
    fn commands(&mut self) -> Option<&mut dyn Commands> {
        None
    }
}

/// Carries other requests than dumps as well: look-ups of one socket, and commands, which change something. No recording has
/// them, and no replay.
pub trait Commands: Transport {
    /// Sends a datagram of one or more requests.
    fn send_bytes(&mut self, datagram: &[u8]) -> io::Result<()>;
}

/// The errnos by which answers to commands are told apart.
#[expect(missing_docs, reason = "the kernel's names, see errno(3)")]
pub mod errno {
    pub const EPERM: i32 = libc::EPERM;
    pub const ENOENT: i32 = libc::ENOENT;
    pub const EOPNOTSUPP: i32 = libc::EOPNOTSUPP;
}

/// A netlink socket connected to the kernel. Not `Clone`, although the socket inside is: a clone's drop would close it.
pub struct Netlink(Socket);

impl Netlink {
    /// Opens a socket in the calling thread's network namespace. Needs no privilege.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        // Only the kernel may answer.
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self(socket))
    }
}

/// Processor time of the calling thread. Less than has passed means that it waited: for a processor, for what else.
pub fn processor_time() -> io::Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}

/// How often a request is sent again for which the kernel had no memory.
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

    fn commands(&mut self) -> Option<&mut dyn Commands> {
        Some(self)
    }
}

impl Commands for Netlink {
    fn send_bytes(&mut self, datagram: &[u8]) -> io::Result<()> {
        let mut repeats = 0;
        loop {
            match retry_interrupted(|| self.0.send(datagram, 0)) {
                // The kernel has seen nothing of it.
                Err(error) if no_memory(&error) && repeats < REPEATS => repeats += 1,
                sent => return sent.map(drop),
            }
        }
    }
}

/// One thing that happened on a transport.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A request went out.
    Request(Request),
    /// A datagram came in, whole.
    Datagram(Vec<u8>),
    /// Receiving failed with this errno.
    RecvFailed(i32),
}

/// Where a recording goes.
pub trait EventSink {
    /// Keeps one event.
    fn keep(&mut self, event: &Event) -> io::Result<()>;
}

/// A transport that also keeps what passes.
pub struct Recording<T, S> {
    inner: T,
    sink: S,
}

/// Keeps an event. That it could not be kept must not look like the kernel's failure.
fn keep(sink: &mut impl EventSink, event: &Event) -> io::Result<()> {
    sink.keep(event).map_err(|error| io::Error::other(format!("writing the recording failed: {error}")))
}

impl<T: Transport, S: EventSink> Recording<T, S> {
    /// Records what `inner` carries.
    pub const fn new(inner: T, sink: S) -> Self {
        Self { inner, sink }
    }

    /// Ends the recording.
    pub fn into_sink(self) -> S {
        self.sink
    }
}

impl<T: Transport, S: EventSink> Transport for Recording<T, S> {
    fn send(&mut self, request: &Request) -> io::Result<()> {
        keep(&mut self.sink, &Event::Request(request.clone()))?;
        self.inner.send(request)
    }

    fn recv(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        match self.inner.recv(buffer) {
            Ok(length) => {
                keep(&mut self.sink, &Event::Datagram(buffer.clone()))?;
                Ok(length)
            }
            Err(error) => {
                if let Some(errno) = error.raw_os_error() {
                    keep(&mut self.sink, &Event::RecvFailed(errno))?;
                }
                Err(error)
            }
        }
    }
}

/// Answers requests from a recording, which holds whole walks: a request's program is passed over. A request is answered by the recorded one of the same walk that asked for at
/// least the same states; whoever asks for fewer drops the rest.
pub struct Replay {
    events: Vec<Event>,
    pending: VecDeque<Event>,
}

/// Why [`Replay`] cannot answer; inside the `io::Error` of `send` or `recv`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// No recorded request covers this one.
    #[error("the recording does not hold these sockets: it was made without asking for them")]
    NotRecorded,
    /// The answer ends before NLMSG_DONE.
    #[error("the recorded answer ends before the kernel said that it was done")]
    Ended,
}

impl From<ReplayError> for io::Error {
    fn from(error: ReplayError) -> Self {
        Self::other(error)
    }
}

impl Replay {
    /// Answers from these events, in the order in which they happened.
    #[must_use]
    pub const fn new(events: Vec<Event>) -> Self {
        Self { events, pending: VecDeque::new() }
    }
}

impl Transport for Replay {
    fn send(&mut self, request: &Request) -> io::Result<()> {
        // The last one that fits: a dump that was interrupted and asked again is answered by its best attempt.
        let answers = |event: &Event| match event {
            Event::Request(r) => r.walk == request.walk && r.states.contains_all(request.states),
            _ => false,
        };
        let at = self.events.iter().rposition(answers).ok_or(ReplayError::NotRecorded)?;
        let answer = self.events[at + 1..].iter().take_while(|event| !matches!(event, Event::Request(_)));
        self.pending = answer.cloned().collect();
        Ok(())
    }

    fn recv(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        match self.pending.pop_front() {
            Some(Event::Datagram(bytes)) => {
                *buffer = bytes;
                Ok(buffer.len())
            }
            Some(Event::RecvFailed(errno)) => Err(io::Error::from_raw_os_error(errno)),
            Some(Event::Request(_)) | None => Err(ReplayError::Ended.into()),
        }
    }
}
