//! The lab: experiments on the real kernel, in private network namespaces. The lab controls both ends of each connection.
//!
//! `demo` is the experiment of `bind-test --demo`. [`run`] plays the scenarios of `twtool demo`, in the user namespace that
//! [`enter`] makes. The tests use the same functions to make connections and buckets.
//!
//! If the order of single segments matters, two namespaces act as two hosts (`host`), and this program carries the segments
//! between them (`wire`). Every scenario reports its events to a `transcript`.

mod assassination;
pub mod demo;
mod exhaustion;
mod four_way;
mod frame;
mod host;
mod length;
mod loopback;
mod lost_ack;
pub mod orphan;
mod port_zero;
mod reuse;
mod stale_segment;
mod transcript;
mod wire;

/// A file to which captured segments are written.
pub use crate::sys::file::NewFile as CaptureFile;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use socket2::Socket as OsSocket;

pub use self::transcript::LabEventSink;
use self::transcript::Transcript;
use crate::model::bind::ReuseOptions;
use crate::model::experiment::{Comparison, Scenario, Side};
use crate::model::port::Port;
use crate::model::socket::{Socket, StateSet, TcpState};
use crate::sock_diag::dump::{self, DumpError};
use crate::sock_diag::request::{Request, Walk};
use crate::sock_diag::transport::Netlink;
use crate::sys;
use crate::sys::sandbox::{self, SandboxError};

/// The maximum time that the lab waits for the kernel. On loopback, the kernel needs microseconds.
const PATIENCE: Duration = Duration::from_secs(5);

/// An error in an experiment.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A system call failed.
    #[error("{step} failed: {source}")]
    Step {
        /// The step that failed.
        step: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The sockets could not be listed.
    #[error(transparent)]
    Dump(#[from] DumpError),
    /// A socket did not reach a state in time.
    #[error("the {end} did not reach {} within 5 s", state.name())]
    StateNotReached {
        /// The end, for the message, for example `server`.
        end: &'static str,
        /// The expected state.
        state: TcpState,
    },
    /// A bind attempt could not be made.
    #[error(transparent)]
    Attempt(#[from] sys::bind::AttemptError),
    /// The private namespace could not be made.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The veth pair of a host could not be made.
    #[error("a veth pair cannot be made in a private network namespace: {0}")]
    Veth(io::Error),
    /// A host did not send an expected segment.
    #[error("the {} sent nothing within 5 s", side.name())]
    NoSegment {
        /// The side that should have sent the segment.
        side: Side,
    },
    /// The events could not be written.
    #[error("writing the output failed: {0}")]
    Report(io::Error),
}

/// Moves the process permanently into a new user namespace, which [`run`] needs. The process must have a single thread. In the new
/// namespace, root has no capabilities over files of other users and groups, so the mode bits of these files apply to root, too.
pub fn enter() -> Result<(), LabError> {
    Ok(sandbox::enter_user_namespace()?)
}

/// Plays a scenario in new network namespaces, and returns the expected and observed results. The calling thread stays in the
/// last namespace.
pub fn run(scenario: Scenario, sink: LabEventSink) -> Result<Vec<Comparison>, LabError> {
    let mut transcript = Transcript::begin(scenario, sink);
    let played = match scenario {
        Scenario::FourWay => four_way::play(&mut transcript),
        Scenario::LostAck => lost_ack::play(&mut transcript),
        Scenario::StaleSegment => stale_segment::play(&mut transcript),
        Scenario::Assassination => assassination::play(&mut transcript),
        Scenario::Reuse => reuse::play(&mut transcript),
        Scenario::Exhaustion => exhaustion::play(&mut transcript),
        Scenario::Length => length::play(&mut transcript),
        Scenario::PortZero => port_zero::play(&mut transcript),
    };
    match played {
        // No call failed, but this kernel behaves differently. That is a result, not an error.
        Err(LabError::NoSegment { side }) => {
            transcript.check(
                "the experiment continues",
                format!("a segment from the {}", side.name()),
                "none within 5 s",
            )?;
        }
        Err(LabError::StateNotReached { end, state }) => {
            transcript.check("the experiment continues", format!("the {end} in {}", state.name()), "not within 5 s")?;
        }
        played => played?,
    }
    Ok(transcript.end())
}

fn step(step: &'static str) -> impl FnOnce(io::Error) -> LabError {
    move |source| LabError::Step { step, source }
}

/// The end that closes first, and therefore keeps TIME_WAIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the two ends")]
pub enum ActiveCloser {
    Server,
    Client,
}

/// A server of the lab: a socket that listens.
pub struct Server(OsSocket);

impl Server {
    /// Creates a socket with these options, binds it, and listens.
    pub fn listen(at: SocketAddr, options: ReuseOptions) -> Result<Self, LabError> {
        Self::listen_on(sys::bind::socket(at.ip(), options).map_err(step("socket()"))?, at)
    }

    /// Binds a socket of the caller and listens on it.
    pub fn listen_on(socket: OsSocket, at: SocketAddr) -> Result<Self, LabError> {
        socket.bind(&at.into()).map_err(step("bind() of the server"))?;
        socket.listen(128).map_err(step("listen()"))?;
        Ok(Self(socket))
    }

    /// The address on which the server listens.
    pub fn addr(&self) -> Result<SocketAddr, LabError> {
        inet(&self.0.local_addr().map_err(step("getsockname()"))?)
    }

    /// Connects a client to `to`. If `from` is given, the client binds it first.
    pub fn connect(&self, to: SocketAddr, from: Option<SocketAddr>) -> Result<Connection, LabError> {
        let client = sys::bind::socket(to.ip(), ReuseOptions::NONE).map_err(step("socket()"))?;
        if let Some(from) = from {
            client.bind(&from.into()).map_err(step("bind() of the client"))?;
        }
        client.connect(&to.into()).map_err(step("connect()"))?;
        Ok(Connection { client, server: self.accept()? })
    }

    /// Accepts a connection.
    pub fn accept(&self) -> Result<OsSocket, LabError> {
        self.0.accept().map(|(socket, _)| socket).map_err(step("accept()"))
    }
}

fn inet(addr: &socket2::SockAddr) -> Result<SocketAddr, LabError> {
    addr.as_socket().ok_or_else(|| step("getsockname()")(io::Error::from(io::ErrorKind::InvalidData)))
}

/// An established connection.
pub struct Connection {
    /// The end that connected.
    pub client: OsSocket,
    /// The end that was accepted.
    pub server: OsSocket,
}

impl Connection {
    /// Closes both ends, and waits until the kernel lists a bucket in TIME_WAIT for the end that closes first.
    pub fn close(self, first: ActiveCloser) -> Result<(), LabError> {
        let (first, second) = match first {
            ActiveCloser::Server => (self.server, self.client),
            ActiveCloser::Client => (self.client, self.server),
        };
        let ends = Endpoints::of(&first)?;
        drop(first);
        ends.wait_for("active closer", TcpState::FinWait2)?;
        drop(second);
        ends.wait_for("active closer", TcpState::TimeWait).map(drop)
    }

    /// Closes one end only, waits until the kernel lists it in FIN_WAIT_2, and returns the open end. The closed end becomes a
    /// bucket, or stays a full socket if `tcp_fin_timeout` is above 60 s. Immediately after the close, it can still be a full socket
    /// in both cases.
    pub fn close_half(self, first: ActiveCloser) -> Result<OsSocket, LabError> {
        let (first, second) = match first {
            ActiveCloser::Server => (self.server, self.client),
            ActiveCloser::Client => (self.client, self.server),
        };
        let ends = Endpoints::of(&first)?;
        drop(first);
        ends.wait_for("active closer", TcpState::FinWait2)?;
        Ok(second)
    }
}

/// The addresses and ports of one connection, to find its socket in the kernel's list.
#[derive(Clone, Copy, Debug)]
struct Endpoints {
    local: (IpAddr, Port),
    remote: (IpAddr, Port),
}

impl Endpoints {
    fn of(socket: &OsSocket) -> Result<Self, LabError> {
        let local = inet(&socket.local_addr().map_err(step("getsockname()"))?)?;
        let remote = inet(&socket.peer_addr().map_err(step("getpeername()"))?)?;
        let plain = |addr: SocketAddr| (addr.ip().to_canonical(), Port(addr.port()));
        Ok(Self { local: plain(local), remote: plain(remote) })
    }

    const fn reversed(self) -> Self {
        Self { local: self.remote, remote: self.local }
    }

    fn find(self) -> Result<Option<Socket>, DumpError> {
        let mut found = None;
        for_each_socket(&mut |socket| {
            let tuple = socket.tuple();
            if (tuple.local_addr(), tuple.local_port()) == self.local
                && (tuple.remote_addr(), tuple.remote_port()) == self.remote
            {
                found = Some(*socket);
            }
        })?;
        Ok(found)
    }

    fn wait_for(self, end: &'static str, state: TcpState) -> Result<Socket, LabError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.find()? {
                Some(socket) if socket.state() == state => return Ok(socket),
                _ if Instant::now() > deadline => return Err(LabError::StateNotReached { end, state }),
                _ => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }
}

/// Calls `each` with every TCP socket of the namespace.
pub fn for_each_socket(each: &mut (dyn FnMut(&Socket) + Send)) -> Result<(), DumpError> {
    let request = Request { walk: Walk::BothFamilies, states: StateSet::ALL, program: None, tcp_info: false };
    let mut socket = Netlink::open().map_err(|source| DumpError::Send { walk: request.walk, source })?;
    dump::run(&mut socket, &request, &mut |socket| {
        each(socket);
        ControlFlow::Continue(())
    })
    .map(drop)
}
