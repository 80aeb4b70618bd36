//! Follows which owners of buckets a tracer records, for a program that reads the buckets repeatedly.
//!
//! ```text
//!   twtool trace --serve SOCKET  --- closes since the last update --->  OwnerFeed  --->  TracedOwners, which the drawing thread shares
//!   an own tracer, on a thread   --- closes since the last update --->
//! ```
//!
//! If no tracer serves the socket, the program can start its own tracer ([`OwnerFeed::start`]). As long as the program has no own tracer,
//! each update asks the tracer that serves the socket, so a tracer that starts later is found, too.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::SnapshotError;
use super::bucket_owners::{TracedOwners, TracerAnswer};
use super::closes::Closes;
use super::recent_closes::RecentCloses;
use crate::model::close::CloseTotals;
use crate::sys::clock;

/// Owners of buckets that one thread updates and another thread shows.
pub type SharedOwners = Arc<RwLock<TracedOwners>>;

/// The tracer that owners of buckets come from, if there is one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Tracing {
    /// No tracer runs.
    #[default]
    Off,
    /// A tracer that serves this socket.
    Served(PathBuf),
    /// A tracer of this program. It counts the closes of all network namespaces.
    Own(CloseTotals),
    /// A tracer may serve the socket, but this program cannot read it. The sentence names the socket and the reason.
    Unreadable(String),
    /// A tracer of this program has failed, and why.
    Failed(String),
}

impl Tracing {
    /// Whether a tracer runs.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        matches!(self, Self::Served(_) | Self::Own(_))
    }
}

/// Keeps the owners of buckets up to date from a tracer.
pub struct OwnerFeed {
    /// The Unix socket of another program's tracer.
    socket: PathBuf,
    owners: SharedOwners,
    own: Option<OwnTracer>,
    failed: Option<String>,
}

impl OwnerFeed {
    /// Makes a feed without owners. [`Self::update`] asks the tracer that serves this socket.
    #[must_use]
    pub fn new(socket: PathBuf) -> Self {
        Self { socket, owners: SharedOwners::default(), own: None, failed: None }
    }

    /// The owners that [`Self::update`] has found so far.
    #[must_use]
    pub fn owners(&self) -> SharedOwners {
        Arc::clone(&self.owners)
    }

    /// Adds the closes since the last update, removes closes that are older than two minutes, and returns the state of the tracer.
    pub fn update(&mut self) -> Tracing {
        let newest = self.read(TracedOwners::newest);
        let now = clock::monotonic();
        let tracing = if let Some(own) = &self.own {
            let progress = own.wait_until_read(now);
            let closes = own.recent.since(newest);
            self.write(|owners| owners.add(closes));
            if let Some(why) = progress.failure {
                self.own = None;
                Tracing::Failed(self.failed.insert(why).clone())
            } else {
                Tracing::Own(progress.totals)
            }
        } else {
            match TracedOwners::read_since(&self.socket, newest) {
                Ok(newer) => {
                    self.failed = None;
                    self.write(|owners| owners.append(newer));
                    Tracing::Served(self.socket.clone())
                }
                Err(error) => match (&self.failed, TracerAnswer::failed(&self.socket, &error)) {
                    (Some(why), _) => Tracing::Failed(why.clone()),
                    (None, TracerAnswer::Unreadable(why)) => Tracing::Unreadable(why),
                    (None, TracerAnswer::Off | TracerAnswer::Complete) => Tracing::Off,
                },
            }
        };
        self.write(|owners| owners.forget(now));
        tracing
    }

    /// Starts a tracer on a thread of this program. It traces the closes of all network namespaces.
    ///
    /// # Errors
    /// Closes cannot be traced here.
    pub fn start(&mut self) -> Result<(), SnapshotError> {
        self.failed = None;
        self.own = Some(OwnTracer::start()?);
        Ok(())
    }

    /// Ends the own tracer. The owners that are already known remain.
    pub fn stop(&mut self) {
        (self.own, self.failed) = (None, None);
    }

    fn read<T>(&self, read: impl FnOnce(&TracedOwners) -> T) -> T {
        read(&self.owners.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write(&self, write: impl FnOnce(&mut TracedOwners)) {
        write(&mut self.owners.write().unwrap_or_else(PoisonError::into_inner));
    }
}

/// A tracer on a thread of its own. Dropping this value ends it.
struct OwnTracer {
    recent: RecentCloses,
    shared: Arc<SharedState>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct SharedState {
    stop: AtomicBool,
    progress: Mutex<Progress>,
    changed: Condvar,
}

#[derive(Clone, Default)]
struct Progress {
    /// See [`Closes::read_at`].
    read_at: Duration,
    totals: CloseTotals,
    failure: Option<String>,
}

impl SharedState {
    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The time after which the thread checks whether it must end.
const WAIT: Duration = Duration::from_millis(50);

impl OwnTracer {
    fn start() -> Result<Self, SnapshotError> {
        let (recent, shared) = (RecentCloses::default(), Arc::<SharedState>::default());
        let (started, starts) = mpsc::channel();
        let work = {
            let (recent, shared) = (recent.clone(), Arc::clone(&shared));
            move || match Closes::start_in_background(recent) {
                Ok(closes) => {
                    let _ = started.send(Ok(()));
                    trace(closes, &shared);
                }
                Err(error) => {
                    let _ = started.send(Err(error));
                }
            }
        };
        let thread = thread::Builder::new().name("tracer".into()).spawn(work);
        let thread = thread.map_err(SnapshotError::system("starting a thread"))?;
        wait_for_start(&starts)?;
        Ok(Self { recent, shared, thread: Some(thread) })
    }

    /// Waits until the closes before this time have been read, so that new buckets have their owners.
    fn wait_until_read(&self, time: Duration) -> Progress {
        /// The longest wait. After that, the caller continues without the newest closes.
        const PATIENCE: Duration = Duration::from_millis(500);
        let reads = |progress: &mut Progress| progress.read_at < time && progress.failure.is_none();
        let waited = self.shared.changed.wait_timeout_while(self.shared.progress(), PATIENCE, reads);
        waited.unwrap_or_else(PoisonError::into_inner).0.clone()
    }
}

impl Drop for OwnTracer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // If the thread has panicked, the panic hook has reported it.
            let _ = thread.join();
        }
    }
}

fn wait_for_start(starts: &Receiver<Result<(), SnapshotError>>) -> Result<(), SnapshotError> {
    starts.recv().unwrap_or_else(|_| {
        Err(SnapshotError::system("starting a tracer")(std::io::Error::other("the thread has ended")))
    })
}

fn trace(mut closes: Closes, shared: &SharedState) {
    while !shared.stop.load(Ordering::Relaxed) {
        let failure = closes.next(WAIT, &mut |_, _| ControlFlow::Continue(())).err().map(|error| error.to_string());
        let failed = failure.is_some();
        *shared.progress() = Progress { read_at: closes.read_at(), totals: closes.totals(), failure };
        shared.changed.notify_all();
        if failed {
            return;
        }
    }
}
