//! Shares one collection of samples among the scrapes (requests for the metrics) that arrive within a short time.
//!
//! 1. If the last collection began less than the minimum interval ago, a scrape gets the result of that collection.
//! 2. Otherwise the scrape waits for the collection that runs. If none runs, the scrape starts one, on a thread of its own.
//! 3. A scrape that has waited as long as the deadline fails. The collection continues, and a later scrape waits for the same
//!    collection instead of starting a second one beside it.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::watch;

use super::log::{Level, Log};
use super::tracing::ClosesThread;
use super::{Collect, Jobs};
use crate::metrics::{self, MetricsFormat, SampleLimits, Samples, SelfCounts, encoding};

pub(super) struct Collection {
    began: Instant,
    /// The samples, or why there are none.
    pub(super) samples: Result<Samples, String>,
    texts: [OnceLock<Bytes>; 2],
}

impl Collection {
    /// The samples as text. They are encoded only once for each format.
    pub(super) fn text(&self, samples: &Samples, format: MetricsFormat) -> Bytes {
        self.texts[format as usize].get_or_init(|| encoding::encode_part(samples, format).into()).clone()
    }
}

/// Why a scrape gets no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoCollection {
    /// The deadline has passed.
    Deadline,
    /// The collection has panicked or could not be started.
    Broken,
}

struct CollectorState {
    last: Option<Arc<Collection>>,
    running: Option<watch::Receiver<Option<Arc<Collection>>>>,
    self_counts: SelfCounts,
    collections: u64,
    failures: u64,
    /// The warnings of the last collection. A collection logs only warnings that are not among them.
    warnings: Vec<String>,
}

pub(super) struct Collector {
    collect: Box<Collect>,
    tracing: Option<Arc<ClosesThread>>,
    bounds: SampleLimits,
    min_interval: Duration,
    deadline: Duration,
    log: Log,
    jobs: Jobs,
    state: Mutex<CollectorState>,
}

impl Collector {
    pub(super) fn new(
        collect: Box<Collect>,
        tracing: Option<Arc<ClosesThread>>,
        bounds: SampleLimits,
        min_interval: Duration,
        deadline: Duration,
        log: Log,
        jobs: Jobs,
    ) -> Arc<Self> {
        let (self_counts, warnings) = (SelfCounts::start(), vec![]);
        let state = CollectorState { last: None, running: None, self_counts, collections: 0, failures: 0, warnings };
        Arc::new(Self { collect, tracing, bounds, min_interval, deadline, log, jobs, state: state.into() })
    }

    fn state(&self) -> MutexGuard<'_, CollectorState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The samples about twtool itself, and the numbers of collections and of failures.
    pub(super) fn self_counts(&self) -> (Samples, u64, u64) {
        let (self_counts, collections, failures) = {
            let state = self.state();
            (state.self_counts, state.collections, state.failures)
        };
        let mut samples = Samples::default();
        self_counts.add(&mut samples);
        (samples, collections, failures)
    }

    pub(super) async fn latest(self: &Arc<Self>) -> Result<Arc<Collection>, NoCollection> {
        let mut running = {
            let mut state = self.state();
            if let Some(last) = state.last.as_ref().filter(|last| last.began.elapsed() < self.min_interval) {
                return Ok(Arc::clone(last));
            }
            match &state.running {
                Some(running) => running.clone(),
                None => self.start(&mut state)?,
            }
        };
        let arrived = tokio::time::timeout(self.deadline, running.wait_for(Option::is_some)).await;
        let arrived = arrived.map(|outcome| outcome.ok().and_then(|outcome| outcome.clone()));
        match arrived {
            Err(_) => Err(NoCollection::Deadline),
            Ok(Some(outcome)) => Ok(outcome),
            // The thread has ended without a result. Another scrape may have started the next collection.
            Ok(None) => {
                self.state().running.take_if(|present| present.same_channel(&running));
                Err(NoCollection::Broken)
            }
        }
    }

    fn start(
        self: &Arc<Self>,
        state: &mut CollectorState,
    ) -> Result<watch::Receiver<Option<Arc<Collection>>>, NoCollection> {
        let (send, running) = watch::channel(None);
        let collector = Arc::clone(self);
        let work = move || {
            let outcome = collector.run();
            let mut state = collector.state();
            state.running = None;
            state.last = Some(Arc::clone(&outcome));
            // The send fails if no scrape waits any more.
            let _ = send.send(Some(outcome));
        };
        self.jobs.send(Some(Box::new(work))).map_err(|_| NoCollection::Broken)?;
        state.running = Some(running.clone());
        Ok(running)
    }

    fn run(&self) -> Arc<Collection> {
        let began = Instant::now();
        let result = (self.collect)();
        let mut state = self.state();
        state.collections += 1;
        let (samples, warnings) = match result {
            Ok(mut collected) => {
                if let Some(tracing) = &self.tracing {
                    let (closes, failed) = tracing.counts(&collected.inodes());
                    collected.answer.complete &= failed.is_none();
                    collected.answer.warnings.extend(failed);
                    collected.closes = Some(closes);
                }
                state.self_counts.count(&collected.answer.value);
                (Ok(metrics::collect(&collected, self.bounds)), collected.answer.warnings)
            }
            Err(why) => {
                state.failures += 1;
                (Err(why.clone()), vec![why])
            }
        };
        let level = if samples.is_ok() { Level::Warn } else { Level::Error };
        for warning in warnings.iter().filter(|warning| !state.warnings.contains(warning)) {
            self.log.event(level, "collection incomplete", &[("reason", warning)]);
        }
        if warnings.is_empty() && !state.warnings.is_empty() {
            self.log.event(Level::Info, "collection complete again", &[]);
        }
        state.warnings = warnings;
        Arc::new(Collection { began, samples, texts: Default::default() })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::mpsc::{Sender, channel};

    use super::*;
    use crate::exporter::log::LogFormat;
    use crate::exporter::start_jobs;

    /// Returns a collector, a sender, and the number of collections so far. Each send ends one collection with a failure.
    fn collector(deadline: Duration) -> (Arc<Collector>, Sender<()>, Arc<AtomicU64>) {
        let (finish, wait) = channel();
        let wait = Mutex::new(wait);
        let count = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&count);
        let collect = move || {
            counted.fetch_add(1, Ordering::Relaxed);
            let _ = wait.lock().unwrap_or_else(PoisonError::into_inner).recv();
            Err("no namespace".to_owned())
        };
        let bounds = SampleLimits { destinations: 1, namespaces: 1 };
        let log = Log(LogFormat::Logfmt);
        let (jobs, work) = channel();
        std::thread::spawn(move || start_jobs(&work));
        (Collector::new(Box::new(collect), None, bounds, Duration::from_secs(3600), deadline, log, jobs), finish, count)
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(future)
    }

    #[test]
    fn later_scrapes_wait_for_a_collection_that_exceeds_the_deadline() {
        let (collector, finish, count) = collector(Duration::from_millis(10));
        block_on(async {
            for _ in 0..3 {
                assert_eq!(collector.latest().await.err(), Some(NoCollection::Deadline));
            }
            finish.send(()).expect("the collection waits");
            let outcome = loop {
                if let Ok(outcome) = collector.latest().await {
                    break outcome;
                }
            };
            assert_eq!(outcome.samples.as_ref().err().map(String::as_str), Some("no namespace"));
        });
        assert_eq!(count.load(Ordering::Relaxed), 1);
        assert_eq!(
            (collector.self_counts().1, collector.self_counts().2),
            (1, 1),
            "the collection counts as a failure"
        );
    }

    #[test]
    fn scrapes_at_the_same_time_share_a_collection() {
        let (collector, finish, count) = collector(Duration::from_secs(60));
        let outcomes = block_on(async {
            let all: Vec<_> = (0..10)
                .map(|_| {
                    let collector = Arc::clone(&collector);
                    tokio::spawn(async move { collector.latest().await })
                })
                .collect();
            tokio::task::yield_now().await;
            finish.send(()).expect("the collection waits");
            let mut outcomes = vec![];
            for one in all {
                outcomes.push(one.await.expect("no panic").expect("a collection"));
            }
            outcomes
        });
        assert!(outcomes.iter().all(|one| Arc::ptr_eq(one, &outcomes[0])));
        assert_eq!(count.load(Ordering::Relaxed), 1);
    }
}
