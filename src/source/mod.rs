//! Reads facts and sockets from this kernel or from a recording, behind one interface.
//!
//! A live source can also record the datagrams, so that a replay decodes the same bytes with the same code.

mod error;
mod kernel_facts;
pub mod recording;
mod walk;

use std::collections::BTreeSet;
use std::io;
use std::num::NonZeroU32;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use crate::filter::Filter;
use crate::model::facts::Facts;
use crate::model::kernel_counts::BucketFacts;
use crate::model::socket::{Cookie, FourTuple, Socket, StateSet, TcpState};
use crate::sock_diag::bytecode;
use crate::sock_diag::dump::{self, DumpError};
use crate::sock_diag::lookup::{self, LookupError};
use crate::sock_diag::request::{Request, Walk};
use crate::sock_diag::transport::{self, Netlink, Replay};
use crate::sys::errno::retry;

pub use self::error::SourceError;
use self::kernel_facts::kernel_bucket_settings;
pub(crate) use self::kernel_facts::read_fact;
pub use self::kernel_facts::{kernel_bucket_facts, kernel_facts, tw_reuse, tw_timeout_s};
use self::recording::{RecordingContent, RecordingFile, SeriesFile};
pub use self::walk::WalkEnd;
use self::walk::{walk_procfs, walk_sock_diag, with_listeners};

/// The maximum number of repeats of an interrupted dump.
const RETRIES: u32 = 3;

/// Returns the connection or bucket that has this tuple now, whatever its cookie.
pub fn look_up_by_ends(
    netlink: &mut Netlink,
    tuple: &FourTuple,
    interface: Option<NonZeroU32>,
) -> Result<Option<Socket>, SourceError> {
    Ok(lookup::find_by_ends(netlink, tuple, interface)?)
}

/// Opens a sock_diag socket in the calling thread's network namespace.
pub fn open_netlink() -> Result<Netlink, SourceError> {
    retry(Netlink::open).map_err(SourceError::Open)
}

/// Which of the kernel's interfaces to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceChoice {
    /// sock_diag, or procfs if sock_diag is absent or refused.
    Auto,
    /// Only sock_diag.
    SockDiag,
    /// Only /proc/net/tcp and tcp6.
    Procfs,
}

/// The interface that the sockets came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// sock_diag(7), live or in a recording.
    SockDiag,
    /// /proc/net/tcp and tcp6.
    Procfs,
}

impl Origin {
    /// The name that scripts see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SockDiag => "sock_diag",
            Self::Procfs => "procfs",
        }
    }
}

enum Carrier {
    Kernel(Netlink),
    Procfs,
    Recorder(transport::RecordingTransport<Netlink, RecordingFile>),
    /// Records one sample of a series (see [`SeriesFile`]).
    SeriesRecorder(transport::RecordingTransport<Netlink, SeriesFile>),
    Replay(Replay),
}

/// Facts and sockets of one network namespace, from this kernel or from a recording.
pub struct Source {
    facts: Facts,
    /// The kernel's counts and settings, if this source records or replays them. `None` in a source that reads them live.
    buckets: Option<BucketFacts>,
    carrier: Carrier,
    fall_back: bool,
    tcp_info: bool,
    refusal: Option<SourceError>,
}

impl Source {
    fn new(facts: Facts, carrier: Carrier) -> Self {
        Self { facts, buckets: None, carrier, fall_back: false, tcp_info: false, refusal: None }
    }

    /// Opens this kernel, in the calling thread's network namespace.
    pub fn kernel(choice: SourceChoice) -> Result<Self, SourceError> {
        Self::kernel_with(choice, kernel_facts())
    }

    /// Opens this kernel for a caller that has already read the facts of the calling thread's network namespace.
    pub fn kernel_with(choice: SourceChoice, facts: Facts) -> Result<Self, SourceError> {
        if choice == SourceChoice::Procfs {
            return Ok(Self::new(facts, Carrier::Procfs));
        }
        match open_netlink() {
            Ok(socket) => {
                Ok(Self { fall_back: choice == SourceChoice::Auto, ..Self::new(facts, Carrier::Kernel(socket)) })
            }
            Err(error) if choice == SourceChoice::Auto && error.refuses_sock_diag() => {
                Ok(Self { refusal: Some(error), ..Self::new(facts, Carrier::Procfs) })
            }
            Err(error) => Err(error),
        }
    }

    /// Opens this kernel and begins a recording. The file gets its name when [`Self::finish`] is called.
    pub fn recorded_kernel(path: &Path, replace: bool) -> Result<Self, SourceError> {
        let socket = open_netlink()?;
        let mut facts = kernel_facts();
        let buckets = kernel_bucket_facts(&mut facts.unread);
        let file = RecordingFile::create(path, replace, &facts, &buckets)?;
        let carrier = Carrier::Recorder(transport::RecordingTransport::new(socket, file));
        Ok(Self { buckets: Some(buckets), ..Self::new(facts, carrier) })
    }

    /// Opens a live source and begins to record one sample of a series. The source takes the file out of `file`;
    /// [`Self::into_series`] returns it. On an error, the file stays in `file`.
    pub fn recorded_sample(file: &mut Option<SeriesFile>) -> Result<Self, SourceError> {
        let socket = open_netlink()?;
        let mut facts = kernel_facts();
        let buckets = kernel_bucket_settings(&mut facts.unread);
        if let Some(file) = file {
            file.begin(&facts, &buckets)?;
        }
        let carrier = match file.take() {
            Some(file) => Carrier::SeriesRecorder(transport::RecordingTransport::new(socket, file)),
            None => Carrier::Kernel(socket),
        };
        Ok(Self { buckets: Some(buckets), ..Self::new(facts, carrier) })
    }

    /// The file of the series that this source records, if there is one.
    #[must_use]
    pub fn into_series(self) -> Option<SeriesFile> {
        match self.carrier {
            Carrier::SeriesRecorder(recorder) => Some(recorder.into_sink()),
            _ => None,
        }
    }

    /// Opens a recording.
    pub fn replay(path: &Path) -> Result<Self, SourceError> {
        Ok(Self::replayed(recording::read(path)?))
    }

    /// Opens the content of a recording.
    #[must_use]
    pub fn replayed(recorded: RecordingContent) -> Self {
        let RecordingContent { facts, buckets, events, .. } = recorded;
        Self { buckets: Some(buckets), ..Self::new(facts, Carrier::Replay(Replay::new(events))) }
    }

    /// Requests `struct tcp_info` with each full socket. Procfs and recordings do not have it.
    #[must_use]
    pub fn with_tcp_info(self) -> Self {
        Self { tcp_info: true, ..self }
    }

    /// The interface that the sockets of the last walk came from.
    #[must_use]
    pub const fn origin(&self) -> Origin {
        match self.carrier {
            Carrier::Procfs => Origin::Procfs,
            Carrier::Kernel(_) | Carrier::Recorder(_) | Carrier::SeriesRecorder(_) | Carrier::Replay(_) => {
                Origin::SockDiag
            }
        }
    }

    /// Whether this source lists sockets that are bound but neither listen nor are connected. sock_diag lists them
    /// since Linux 6.8. /proc/net/tcp never lists them.
    #[must_use]
    pub fn lists_bound_sockets(&self) -> bool {
        self.origin() == Origin::SockDiag && self.facts.kernel_since(6, 8) != Some(false)
    }

    /// Warnings about what is missing from the answer because sock_diag was refused.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        self.warnings_with("They do not list a socket that is bound and does not listen")
    }

    /// Like [`Self::warnings`], but for a caller that finds bound sockets through the descriptors of processes.
    #[must_use]
    pub fn warnings_where_processes_are_searched(&self) -> Vec<String> {
        self.warnings_with(
            "twtool finds a socket that is bound and does not listen only if this user has permission to trace its process",
        )
    }

    fn warnings_with(&self, bound_sockets: &str) -> Vec<String> {
        let warning = |refusal: &SourceError| {
            format!(
                "{refusal}; twtool reads /proc/net/tcp and tcp6 instead. They have times in steps of 10 ms, and no cookie, \
                 mark, interface or IPV6_V6ONLY. {bound_sockets}"
            )
        };
        self.refusal.iter().map(warning).collect()
    }

    /// The facts that an answer depends on, besides the sockets.
    #[must_use]
    pub const fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The kernel's counts and settings about buckets, read now or from the recording. If one cannot be read, the facts keep the
    /// reason.
    pub fn bucket_facts(&mut self) -> BucketFacts {
        let unread = &mut self.facts.unread;
        self.buckets.clone().unwrap_or_else(|| kernel_bucket_facts(unread))
    }

    /// The settings about buckets. Unlike [`Self::bucket_facts`], this reads no count.
    pub fn bucket_settings(&mut self) -> BucketFacts {
        let unread = &mut self.facts.unread;
        self.buckets.clone().unwrap_or_else(|| kernel_bucket_settings(unread))
    }

    /// Whether this source records. Then a walk must not stop early, because the recording must be complete.
    #[must_use]
    pub const fn records(&self) -> bool {
        matches!(self.carrier, Carrier::Recorder(_) | Carrier::SeriesRecorder(_))
    }

    /// Passes the TCP sockets in these states to `each`, IPv4 and IPv6. After a [`ControlFlow::Break`] the source must
    /// not be used again.
    ///
    /// - Listeners come first, if `states` includes them. The filter does not apply to them.
    /// - Of the other sockets, `each` sees all that `filter` accepts. It may also see sockets that the filter
    ///   rejects, because the kernel may evaluate only a part of the filter, or nothing.
    /// - Sockets that only a second dump contains come last. If one of them is a listener, the walk is incomplete, because the caller
    ///   has already inferred the directions of buckets without it.
    /// - An interrupted dump is reported and not repeated, because `each` has already seen its sockets.
    pub fn walk(
        &mut self,
        states: StateSet,
        filter: &Filter,
        each: &mut (impl FnMut(&Socket) -> ControlFlow<()> + Send),
    ) -> Result<WalkEnd, SourceError> {
        let whole = Request { walk: Walk::BothFamilies, states, program: None, tcp_info: false };
        let answer = match &mut self.carrier {
            Carrier::Kernel(socket) => {
                let request = Request { program: bytecode::compile(filter), tcp_info: self.tcp_info, ..whole };
                walk_sock_diag(socket, &request, each)
            }
            // A recording contains every socket of a walk, and the listeners that a replay may need.
            Carrier::Recorder(recorder) => walk_sock_diag(recorder, &with_listeners(whole), each),
            Carrier::SeriesRecorder(recorder) => walk_sock_diag(recorder, &with_listeners(whole), each),
            Carrier::Replay(replay) => walk_sock_diag(replay, &whole, each),
            Carrier::Procfs => return walk_procfs(states, each),
        };
        match answer.map_err(SourceError::from) {
            // `each` has not seen a socket yet.
            Err(error) if self.fall_back && error.refuses_sock_diag() => {
                self.refusal = Some(error);
                self.carrier = Carrier::Procfs;
                walk_procfs(states, each)
            }
            answer => answer,
        }
    }

    /// Collects a [`Self::walk`] in memory. An interrupted dump is repeated up to three times, each time into a new
    /// value from `begin`.
    pub fn collect<T: Send>(
        &mut self,
        states: StateSet,
        filter: &Filter,
        mut begin: impl FnMut() -> T,
        mut each: impl FnMut(&mut T, &Socket) + Send,
    ) -> Result<(T, WalkEnd), SourceError> {
        let mut repeats = 0;
        loop {
            let mut collected = begin();
            let end = self.walk(states, filter, &mut |socket| {
                each(&mut collected, socket);
                ControlFlow::Continue(())
            })?;
            if end.complete || repeats == RETRIES {
                return Ok((collected, WalkEnd { repeats, ..end }));
            }
            repeats += 1;
        }
    }

    /// Whether [`Self::look_up`] is supported.
    #[must_use]
    pub const fn looks_up(&self) -> bool {
        matches!(self.carrier, Carrier::Kernel(_))
    }

    /// Returns the number of the cgroup in which a socket was created; `None` if this source does not report it, or if the socket has
    /// no cookie or is gone.
    pub fn cgroup(&mut self, socket: &Socket) -> Result<Option<u64>, SourceError> {
        match &mut self.carrier {
            Carrier::Kernel(netlink) if socket.cookie().is_some() => Ok(lookup::cgroup(netlink, socket)?),
            _ => Ok(None),
        }
    }

    /// Returns the current state of a socket, or `None` if the kernel does not find it any more. `sock_diag::lookup`
    /// describes for which sockets `None` proves that the socket is gone.
    pub fn look_up(&mut self, socket: &Socket) -> Result<Option<Socket>, SourceError> {
        match &mut self.carrier {
            Carrier::Kernel(netlink) => Ok(lookup::find(netlink, socket)?),
            _ => Err(LookupError::Send(io::ErrorKind::Unsupported.into()).into()),
        }
    }

    /// The cookies of the listeners whose port the kernel chose; `None` if this source or this kernel does not report them, or if the
    /// dump was interrupted.
    pub fn autobound_listeners(&mut self) -> Result<Option<BTreeSet<Cookie>>, SourceError> {
        let (Carrier::Kernel(netlink), Some(program)) = (&mut self.carrier, bytecode::autobound()) else {
            return Ok(None);
        };
        let states = StateSet::of(&[TcpState::Listen]);
        let request = Request { walk: Walk::BothFamilies, states, program: Some(program), tcp_info: false };
        let mut chosen = BTreeSet::new();
        let end = dump::run(netlink, &request, &mut |socket| {
            chosen.extend(socket.cookie());
            ControlFlow::Continue(())
        });
        match end {
            Ok(end) => Ok((!end.interrupted).then_some(chosen)),
            // An older kernel refuses the bytecode instruction of `bytecode::autobound`.
            Err(DumpError::Refused { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Why sock_diag was refused, if the source has fallen back to procfs.
    #[must_use]
    pub fn refusal(&self) -> Option<String> {
        self.refusal.as_ref().map(ToString::to_string)
    }

    /// Ends the recording, if there is one, and gives the file its name.
    pub fn finish(self) -> Result<(), SourceError> {
        match self.carrier {
            Carrier::Recorder(recorder) => Ok(recorder.into_sink().finish()?),
            _ => Ok(()),
        }
    }

    /// Ends the recording, if there is one, after the command has failed. If the file already exists, this function does not replace
    /// it and returns its path.
    pub fn finish_failed(self) -> Result<Option<PathBuf>, SourceError> {
        match self.carrier {
            Carrier::Recorder(recorder) => Ok(recorder.into_sink().finish_failed()?),
            _ => Ok(None),
        }
    }
}
