//! Counts closes by unit, container or process name, on a thread of its own (`--trace`).
//!
//! 1. The thread loads the BPF program while it has the capabilities of the exporter.
//! 2. The thread drops its capabilities, and confines itself. Before Linux 5.19, if kernel.unprivileged_bpf_disabled is set, the thread
//!    needs CAP_BPF to read the counters of its BPF program. So it first tries to read them without CAP_BPF, and keeps CAP_BPF only if
//!    that fails. The exporter waits until this step is done.
//! 3. The thread reads the ring buffer at least every 50 ms, and counts the closes. A collection copies the counts.

use std::collections::BTreeSet;
use std::io;
use std::ops::ControlFlow;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::log::{Level, Log};
use super::{ExporterError, ExporterOptions};
use crate::metrics::CloseCounts;
use crate::snapshot::SnapshotError;
use crate::snapshot::closes::Closes;
use crate::sys::capabilities::{self, Need};
use crate::sys::confinement;

/// A function that starts to trace closes.
pub type StartTracing = Box<dyn FnOnce() -> Result<Closes, SnapshotError> + Send>;

pub(super) struct ClosesThread(Mutex<TracingState>);

struct TracingState {
    counts: CloseCounts,
    elapsed: Duration,
    /// Why the thread has ended.
    failed: Option<String>,
}

impl ClosesThread {
    /// Starts the thread, and waits until it traces.
    pub(super) fn start(
        trace: StartTracing,
        options: &ExporterOptions,
        confine: bool,
    ) -> Result<Arc<Self>, ExporterError> {
        let counts = CloseCounts::new(options.bounds.destinations, options.bounds.namespaces);
        let tracing = Arc::new(Self(Mutex::new(TracingState { counts, elapsed: Duration::ZERO, failed: None })));
        let (send, started) = channel();
        let (log, state) = (Log(options.log), Arc::clone(&tracing));
        let work = move || {
            if let Some(why) = state.run(trace, confine, &send, log) {
                log.event(Level::Error, "tracing ended", &[("reason", &why)]);
                state.state().failed = Some(why);
            }
        };
        thread::Builder::new().name("trace".into()).spawn(work).map_err(ExporterError::Start)?;
        let ended = || Err(ExporterError::Start(io::Error::other("the thread that traces has ended")));
        started.recv().unwrap_or_else(|_| ended())?;
        Ok(tracing)
    }

    fn state(&self) -> MutexGuard<'_, TracingState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Traces until a signal ends the exporter, or until tracing fails. Sends the result of the start to `started`. Returns a later
    /// failure.
    fn run(
        &self,
        trace: StartTracing,
        confine: bool,
        started: &Sender<Result<(), ExporterError>>,
        log: Log,
    ) -> Option<String> {
        let prepare = || -> Result<(Closes, Vec<&str>), ExporterError> {
            let mut closes = trace()?;
            let read = capabilities::without_effective(|| self.read(&mut closes, Duration::ZERO).map(drop));
            let needs: &[Need] = match read.map_err(ExporterError::Capabilities)? {
                Ok(()) => &[],
                Err(_) => &[Need::CountersOfBpf],
            };
            let kept = capabilities::keep_only(needs).map_err(ExporterError::Capabilities)?;
            if confine {
                confinement::for_tracing();
            }
            Ok((closes, kept))
        };
        let (mut closes, kept) = match prepare() {
            Ok(prepared) => prepared,
            Err(error) => {
                let _ = started.send(Err(error));
                return None;
            }
        };
        log.event(Level::Info, "tracing", &[("capabilities", &super::list(&kept))]);
        let _ = started.send(Ok(()));
        loop {
            match self.read(&mut closes, Duration::MAX) {
                Ok(None) => {}
                // The kernel may report a signal to this thread instead of running the signal handlers of the server. So deliver
                // the signal again.
                Ok(Some(signal)) => return closes.deliver(signal).err().map(|error| error.to_string()),
                Err(error) => return Some(error.to_string()),
            }
        }
    }

    /// Waits for closes, at most this time, and counts them. Returns a signal, if one arrived.
    fn read(
        &self,
        closes: &mut Closes,
        time: Duration,
    ) -> Result<Option<crate::snapshot::closes::Signal>, SnapshotError> {
        let elapsed = closes.elapsed();
        let signal = closes.next(time, &mut |close, _| {
            self.state().counts.add(&close, elapsed);
            ControlFlow::Continue(())
        })?;
        let totals = closes.totals();
        let mut state = self.state();
        state.elapsed = elapsed;
        (state.counts.lost, state.counts.skipped) = (totals.lost, totals.skipped);
        Ok(signal)
    }

    /// Returns the counts, and the reason if they are incomplete. First forgets the namespaces that `inodes` does not contain and that had
    /// no close for 10 minutes.
    pub(super) fn counts(&self, inodes: &BTreeSet<u64>) -> (CloseCounts, Option<String>) {
        let mut state = self.state();
        let elapsed = state.elapsed;
        state.counts.keep(inodes, elapsed);
        let failed = state.failed.as_ref().map(|why| format!("closes are not traced any more: {why}"));
        (state.counts.clone(), failed)
    }
}
