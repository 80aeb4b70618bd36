//! Follows closes of connections live, and names the process, unit and container that made each close.
//!
//! The BPF program (`trace`) reports numbers and short names at the time of the close. This module adds what only user space can
//! read: the command line, the path of the cgroup, the names of users and of network namespaces. If the process has ended by then,
//! its command line is unknown. The path of its cgroup is found by the id of the cgroup. If the cgroup does not exist any more, only its
//! name is known.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::ops::ControlFlow;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::bucket_owners::TracedLine;
use super::error::BadValue;
use super::recent_closes::{RecentClose, RecentCloses};
use super::sampled::SocketSampler;
use super::{Answer, Namespaces, Selection, SnapshotError};
use crate::filter::Filter;
use crate::model::close::{Close, CloseTotals, Maker, MakerFacts, Method, Outcome, Role};
use crate::model::facts::Facts;
use crate::model::interfaces::Interfaces;
use crate::model::row::{Direction, Row};
use crate::model::socket::TimeWaitBucket;
use crate::model::user::User;
use crate::source;
use crate::sys::bpf::Wakes;
use crate::sys::clock::{self, Stopwatch};
use crate::sys::interrupt::Interrupts;
pub use crate::sys::interrupt::Signal;
use crate::sys::owner_socket::OwnerSocket;
use crate::sys::{cgroup, netns, owners, users};
use crate::trace::{BpfRecord, Task, TraceError, Tracer};

/// The maximum time between two reads of the ring buffer. The kernel wakes twtool earlier if the buffer fills.
const INTERVAL: Duration = Duration::from_millis(50);

/// The maximum number of processes whose facts are kept, and the maximum number of cgroups whose paths are kept.
const MAX_CACHED: usize = 8192;

/// Receives each selected close, with the facts of its network namespace.
pub type OnClose<'a> = dyn FnMut(Close, &Facts) -> ControlFlow<()> + 'a;

/// Follows closes of connections live.
pub struct Closes {
    engine: Engine,
    /// `None` if another part of the program reads the signals.
    interrupts: Option<Interrupts>,
    filter: Filter,
    /// The inode numbers of the selected namespaces; `None` selects all.
    selected: Option<BTreeSet<u64>>,
    namespaces: NamespaceFacts,
    makers: MakerCache,
    totals: CloseTotals,
    served: Option<OwnerSocket>,
    /// The recent closes, for readers of the socket or for another thread.
    recent: Option<RecentCloses>,
    lacks_privilege: bool,
    read_at: Duration,
    began: Stopwatch,
}

enum Engine {
    Bpf { tracer: Tracer, wakes: Wakes },
    Sampled(SocketSampler),
}

/// The choice of the method to find closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MethodChoice {
    /// With BPF, or by samples if BPF is not possible.
    Auto,
    /// With BPF only.
    Bpf,
    /// By samples.
    Sampled,
}

impl Closes {
    /// Starts to trace. From now on SIGINT and SIGTERM are blocked, and [`Self::next`] returns them.
    ///
    /// # Errors
    /// The selection has a mistake, or closes cannot be traced here.
    pub fn start(
        selection: &Selection,
        namespaces: Option<Namespaces>,
        how: MethodChoice,
    ) -> Result<Answer<Self>, SnapshotError> {
        let own = source::kernel_facts();
        let (filter, filter_warnings) = selection.resolve(&own)?;
        if filter.mentions(&|test| matches!(test, Filter::ExpiresUnder(_))) {
            return Err(SnapshotError::FilterNotEvaluable("a close has no remaining time, so expires has no meaning"));
        }
        let interrupts = Interrupts::block().map_err(SnapshotError::system("blocking signals"))?;
        let (tracer, refusal) = match how {
            MethodChoice::Sampled => (None, None),
            MethodChoice::Bpf => (Some(Tracer::start()?), None),
            MethodChoice::Auto => Tracer::start().map_or_else(|why| (None, Some(why)), |tracer| (Some(tracer), None)),
        };
        let inodes = namespaces.as_ref().map(Namespaces::inodes).transpose()?;
        let selected = inodes.map(|inodes| inodes.into_iter().collect());
        let warnings = match (&refusal, &tracer) {
            (Some(why), _) => {
                vec![format!("closes are found by samples, because BPF is not possible: {why}. {SAMPLES}")]
            }
            (None, None) => vec![format!("closes are found by samples. {SAMPLES}")],
            (None, Some(_)) => vec![],
        };
        let engine = if let Some(tracer) = tracer {
            Engine::bpf(tracer, Some(&interrupts))?
        } else {
            let mut sampler = SocketSampler::new(namespaces.unwrap_or_else(Namespaces::own));
            // Take the first sample now and report none of its buckets, because they were made before the start.
            sampler.sample(&mut |_, _| {})?;
            Engine::Sampled(sampler)
        };
        let closes = Self {
            filter,
            selected,
            lacks_privilege: refusal.is_some_and(|why| why.is_about_privilege()),
            ..Self::new(engine, Some(interrupts), own)
        };
        let complete = warnings.is_empty();
        Ok(Answer { complete, filter_warnings, warnings, ..Answer::whole(closes) })
    }

    /// Starts to trace every network namespace with BPF, for a program that reads its signals itself. The owners of the closes are
    /// added to `recent`.
    ///
    /// # Errors
    /// Closes cannot be traced here.
    #[cfg(feature = "watch")]
    pub fn start_in_background(recent: RecentCloses) -> Result<Self, SnapshotError> {
        let engine = Engine::bpf(Tracer::start()?, None)?;
        Ok(Self { recent: Some(recent), ..Self::new(engine, None, source::kernel_facts()) })
    }

    fn new(engine: Engine, interrupts: Option<Interrupts>, own: Facts) -> Self {
        Self {
            engine,
            interrupts,
            filter: Filter::TRUE,
            selected: None,
            namespaces: NamespaceFacts::new(own),
            makers: MakerCache::new(),
            totals: CloseTotals::default(),
            served: None,
            recent: None,
            lacks_privilege: false,
            read_at: Duration::ZERO,
            began: Stopwatch::start(),
        }
    }

    /// Whether closes are found by samples because a capability is missing.
    #[must_use]
    pub const fn lacks_privilege(&self) -> bool {
        self.lacks_privilege
    }

    /// How closes are found.
    #[must_use]
    pub const fn method(&self) -> Method {
        match self.engine {
            Engine::Bpf { .. } => Method::Bpf,
            Engine::Sampled(_) => Method::Sampled,
        }
    }

    /// Starts to serve the owners of the closes of the last two minutes on a Unix socket.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn serve(&mut self, path: &Path) -> Result<(), SnapshotError> {
        let failed = |error: io::Error| BadValue::new(&path.display(), "--serve <SOCKET>", &error.to_string());
        self.served = Some(OwnerSocket::open(path).map_err(failed)?);
        self.recent = Some(RecentCloses::default());
        Ok(())
    }

    /// The facts of twtool's own network namespace.
    #[must_use]
    pub fn own_facts(&self) -> &Facts {
        &self.namespaces.own
    }

    /// Whether the pids that BPF reports belong to the pid namespace of twtool. If not, they belong to the initial pid namespace.
    #[must_use]
    pub fn own_pid_namespace(&self) -> bool {
        self.makers.own_pid_namespace
    }

    /// The time since tracing began.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Waits for at most this time. Then passes to `each` the selected closes since the last call of this function. If a signal has
    /// arrived, this function returns the signal. Then the caller must finish its output and call [`Self::deliver`].
    ///
    /// # Errors
    /// A system call failed.
    pub fn next(&mut self, time: Duration, each: &mut OnClose) -> Result<Option<Signal>, SnapshotError> {
        let failed = |source| TraceError::Failed { call: "reading closes", source };
        let left = match &self.engine {
            Engine::Bpf { wakes, .. } => {
                wakes.wait(time.min(INTERVAL)).map_err(failed)?;
                Duration::ZERO
            }
            Engine::Sampled(sampler) => time.min(sampler.interval()),
        };
        let signal = self.interrupts.as_ref().map(|interrupts| interrupts.wait(left)).transpose().map_err(failed)?;
        // Accept the readers first, so that each one receives every close from before its request.
        let served = self.served.as_ref().map(OwnerSocket::readers).transpose();
        let readers = served.map_err(failed)?.unwrap_or_default();
        self.drain(each)?;
        if let Some(recent) = &self.recent {
            recent.forget(clock::monotonic());
            for (reader, socket) in readers.into_iter().zip(self.served.iter().cycle()) {
                let recent = recent.clone();
                socket.answer(reader, move |newest| lines(&recent, newest)).map_err(failed)?;
            }
        }
        Ok(signal.flatten())
    }

    /// Delivers a signal that [`Self::next`] returned.
    ///
    /// # Errors
    /// The signal cannot be raised.
    pub fn deliver(self, signal: Signal) -> Result<(), SnapshotError> {
        let Self { interrupts, served, .. } = self;
        // Remove the file of the socket now, because the signal ends twtool without running destructors.
        drop(served);
        let deliver = |interrupts: Interrupts| interrupts.deliver(signal);
        interrupts.map_or(Ok(()), deliver).map_err(SnapshotError::system("delivering a signal"))
    }

    /// When the closes were read last (CLOCK_MONOTONIC). Earlier closes have been passed on, or are lost.
    #[cfg(feature = "watch")]
    #[must_use]
    pub const fn read_at(&self) -> Duration {
        self.read_at
    }

    /// The counts of the closes so far.
    #[must_use]
    pub const fn totals(&self) -> CloseTotals {
        self.totals
    }

    fn drain(&mut self, each: &mut OnClose) -> Result<(), SnapshotError> {
        // Records have times of CLOCK_MONOTONIC. Both clocks are read each time, because the real-time clock can be set while twtool runs.
        let (now, monotonic) = (clock::now(), clock::monotonic());
        self.read_at = monotonic;
        let Self { engine, filter, selected, namespaces, makers, totals, recent, .. } = self;
        let mut flow = ControlFlow::Continue(());
        let mut add = |close: Close, facts: &Facts| {
            totals.seen += 1;
            totals.named += u64::from(close.maker.is_some());
            if let Some(recent) = recent {
                recent.add(&close, monotonic);
            }
            if flow.is_continue() && filter.accepts(&row(&close)) {
                flow = each(close, facts);
            }
        };
        let tracer = match engine {
            Engine::Sampled(sampler) => return sampler.sample(&mut |close, facts| add(close, facts)),
            Engine::Bpf { tracer, .. } => tracer,
        };
        tracer.drain(&mut |record| {
            let at = time_of(&record, now, monotonic);
            let inode = u64::from(record.netns);
            if selected.as_ref().is_none_or(|selected| selected.contains(&inode)) {
                let facts = namespaces.get(inode);
                add(close(record, at, makers), &facts);
            }
        });
        let failed = |call| move |source| TraceError::Failed { call, source };
        totals.lost = tracer.lost().map_err(failed("BPF_MAP_LOOKUP_ELEM"))?;
        totals.skipped = tracer.skipped().map_err(failed("BPF_OBJ_GET_INFO_BY_FD"))?;
        Ok(())
    }
}

const SAMPLES: &str = "Samples miss the process of most connections that last only a few milliseconds, and cover only \
                       this network namespace or those of --netns and --container; certain is true only if one process \
                       had the socket open";

impl Engine {
    fn bpf(tracer: Tracer, interrupts: Option<&Interrupts>) -> Result<Self, SnapshotError> {
        let wakes = Wakes::new(tracer.as_fd(), interrupts).map_err(SnapshotError::system("waiting for closes"))?;
        Ok(Self::Bpf { tracer, wakes })
    }
}

/// A line for each close after `newest`, which is the number of the newest close that the reader of the socket has.
fn lines(recent: &RecentCloses, newest: u64) -> Vec<u8> {
    let mut text = vec![];
    for RecentClose { number, cookie, facts, method, role } in recent.since(newest) {
        let line = TracedLine {
            number,
            cookie: cookie.to_string(),
            pid: facts.pid,
            own_pid_namespace: facts.own_pid_namespace,
            comm: facts.comm.clone(),
            cgroup: facts.cgroup.clone(),
            method: method.name().to_owned(),
            role: role.name().to_owned(),
        };
        // Writing to memory cannot fail.
        let _ = serde_json::to_writer(&mut text, &line);
        text.push(b'\n');
    }
    text
}

fn time_of(record: &BpfRecord, now: SystemTime, monotonic: Duration) -> SystemTime {
    let age = monotonic.saturating_sub(Duration::from_nanos(record.time_ns));
    now.checked_sub(age).unwrap_or(now)
}

fn close(record: BpfRecord, at: SystemTime, makers: &mut MakerCache) -> Close {
    let role = if record.accepted {
        Role::Accepted
    } else if record.port_range.is_some_and(|range| range.contains(record.tuple.local_port())) {
        Role::Connected
    } else {
        Role::Unknown
    };
    Close {
        at,
        netns: record.netns.into(),
        cookie: record.cookie,
        tuple: record.tuple,
        interface: record.interface,
        mark: Some(record.mark),
        outcome: record.outcome,
        role,
        maker: record.task.filter(|task| task.closed_socket).map(|task| makers.maker(task)),
        method: Method::Bpf,
    }
}

/// The close as the row of a bucket, for a filter.
fn row(close: &Close) -> Row {
    let bucket = TimeWaitBucket {
        tuple: close.tuple,
        fin_wait_2: close.outcome == Outcome::FinWait2,
        expires_ms: 0,
        interface: close.interface,
        mark: close.mark,
        cookie: close.cookie,
    };
    let direction = match close.role {
        Role::Accepted => Direction::Inbound,
        Role::Connected => Direction::Outbound,
        Role::Unknown => Direction::Unknown,
    };
    Row { bucket, direction, netns: 0 }
}

/// The facts of network namespaces by their inode number.
struct NamespaceFacts {
    own: Arc<Facts>,
    known: BTreeMap<u64, Arc<Facts>>,
    /// Measures the time since the names of all namespaces were last read.
    listed: Option<Stopwatch>,
}

impl NamespaceFacts {
    fn new(own: Facts) -> Self {
        Self { own: Arc::new(own), known: BTreeMap::new(), listed: None }
    }

    fn get(&mut self, inode: u64) -> Arc<Facts> {
        /// The minimum time between two lists of the namespaces, because reading the names of 1,000 namespaces takes some milliseconds.
        const LIST_AGAIN: Duration = Duration::from_secs(1);
        if self.own.netns == Some(inode) {
            return Arc::clone(&self.own);
        }
        if let Some(facts) = self.known.get(&inode) {
            return Arc::clone(facts);
        }
        if self.listed.is_none_or(|listed| listed.elapsed() >= LIST_AGAIN) {
            self.listed = Some(Stopwatch::start());
            self.known.clear();
            for open in netns::all().namespaces {
                let name = open.netns.name.as_ref().map(ToString::to_string);
                self.known.insert(open.netns.id.inode, self.of_other(open.netns.id.inode, name));
            }
        }
        match self.known.get(&inode) {
            Some(facts) => Arc::clone(facts),
            // The next list of namespaces may contain its name.
            None => self.of_other(inode, None),
        }
    }

    /// Facts for another namespace. Only its inode number and its name are its own. The names of its interfaces are unknown, and all other
    /// facts, such as the port ranges, are those of twtool's namespace.
    fn of_other(&self, inode: u64, name: Option<String>) -> Arc<Facts> {
        Arc::new(Facts {
            netns: Some(inode),
            netns_name: name,
            interfaces: Interfaces::default(),
            ..Facts::clone(&self.own)
        })
    }
}

struct MakerCache {
    own_pid_namespace: bool,
    /// By pid, start time and name, because execve(2) changes the name and the arguments.
    known: HashMap<(u32, u64, String), Arc<MakerFacts>, foldhash::fast::RandomState>,
    /// The paths of cgroups by their number in the unified hierarchy.
    cgroups: HashMap<u64, Option<String>, foldhash::fast::RandomState>,
}

impl MakerCache {
    fn new() -> Self {
        let own_pid_namespace = owners::in_initial_pid_namespace();
        Self { own_pid_namespace, known: HashMap::default(), cgroups: HashMap::default() }
    }

    fn maker(&mut self, task: Task) -> Maker {
        let key = (task.pid, task.start_ns, task.comm);
        if self.known.len() >= MAX_CACHED && !self.known.contains_key(&key) {
            self.known.clear();
        }
        let facts = if let Some(facts) = self.known.get(&key) {
            Arc::clone(facts)
        } else {
            let facts = Arc::new(self.read(&key, task.cgroup, &task.cgroup_name, task.kernel));
            self.known.insert(key, Arc::clone(&facts));
            facts
        };
        let user = users::user(task.uid).unwrap_or(User { uid: task.uid, name: None });
        Maker { facts, tid: task.tid, thread: task.thread, user }
    }

    fn read(&mut self, key: &(u32, u64, String), id: u64, name: &str, kernel: bool) -> MakerFacts {
        let (pid, start_ns, comm) = key;
        // The kernel reports pids of the initial pid namespace. In the /proc of another pid namespace, this pid is another process or
        // none.
        let process = if self.own_pid_namespace { owners::process_started_at(*pid, *start_ns) } else { None };
        let (cmdline, path) = process.map(|process| (process.cmdline, process.cgroup)).unwrap_or_default();
        let leaf = || (!name.is_empty()).then(|| format!("/{name}"));
        // With cgroup v1, /proc shows the root as the cgroup of a process that is ending.
        let is_certain = path.as_ref().is_some_and(|path| path != "/");
        let by_id = if is_certain { None } else { self.path(id).or_else(leaf) };
        MakerFacts {
            pid: *pid,
            own_pid_namespace: self.own_pid_namespace,
            comm: comm.clone(),
            cmdline,
            cgroup: by_id.or(path),
            kernel,
        }
    }

    /// The path of the cgroup with this id, for a process whose cgroup /proc does not show.
    fn path(&mut self, id: u64) -> Option<String> {
        if self.cgroups.len() >= MAX_CACHED {
            self.cgroups.clear();
        }
        let find = || cgroup::paths_of(&BTreeSet::from([id])).ok()?.remove(&id);
        self.cgroups.entry(id).or_insert_with(find).clone()
    }
}
