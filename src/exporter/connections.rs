//! The open connections of the exporter, and counts of responses and of connections that the exporter closed.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hyper::StatusCode;
use tokio::sync::Notify;

use crate::metrics::survey::NO_LABELS;
use crate::metrics::{MetricFamily, Samples};

const MAX_CONNECTIONS: usize = 512;

#[derive(Default)]
pub(super) struct Connections {
    open: Mutex<BTreeMap<u64, Open>>,
    clock: AtomicU64,
    responses: Mutex<BTreeMap<u16, u64>>,
    timed_out: AtomicU64,
    replaced: AtomicU64,
}

struct Open {
    /// The value of `clock` at the last event of the connection: it was opened, or a request began or ended.
    active: u64,
    busy: bool,
    close: Arc<Notify>,
}

impl Connections {
    fn open(&self) -> MutexGuard<'_, BTreeMap<u64, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::Relaxed)
    }

    /// Registers a connection. If [`MAX_CONNECTIONS`] are open, closes the idle connection whose last event is the oldest. If all are
    /// busy, closes the busy connection whose last event is the oldest.
    pub(super) fn register(&self) -> (u64, Arc<Notify>) {
        let (id, close) = (self.now(), Arc::new(Notify::new()));
        let mut open = self.open();
        if open.len() >= MAX_CONNECTIONS
            && let Some(oldest) = open.iter().min_by_key(|(_, one)| (one.busy, one.active)).map(|(id, _)| *id)
            && let Some(one) = open.remove(&oldest)
        {
            one.close.notify_one();
            self.replaced.fetch_add(1, Ordering::Relaxed);
        }
        open.insert(id, Open { active: id, busy: false, close: Arc::clone(&close) });
        (id, close)
    }

    /// Records that a request of the connection begins (`busy`), or that its response is ready.
    pub(super) fn set_busy(&self, id: u64, busy: bool) {
        let now = self.now();
        if let Some(one) = self.open().get_mut(&id) {
            (one.active, one.busy) = (now, busy);
        }
    }

    /// Removes a connection that has ended, and counts it if a time limit ended it. Both happen under one lock, so that a scrape never
    /// sees only one of them.
    pub(super) fn remove(&self, id: u64, timed_out: bool) {
        let mut open = self.open();
        open.remove(&id);
        self.timed_out.fetch_add(timed_out.into(), Ordering::Relaxed);
    }

    pub(super) fn responded(&self, status: StatusCode) {
        let mut responses = self.responses.lock().unwrap_or_else(PoisonError::into_inner);
        *responses.entry(status.as_u16()).or_default() += 1;
    }

    pub(super) fn add(&self, samples: &mut Samples) {
        let open = self.open();
        samples.add(MetricFamily::ExporterConnections, NO_LABELS, open.len());
        let closed = |count: &AtomicU64| count.load(Ordering::Relaxed);
        samples.add(MetricFamily::ExporterClosed, ["timeout"], closed(&self.timed_out));
        samples.add(MetricFamily::ExporterClosed, ["replaced"], closed(&self.replaced));
        drop(open);
        let responses = self.responses.lock().unwrap_or_else(PoisonError::into_inner);
        for (code, count) in &*responses {
            samples.add(MetricFamily::ExporterRequests, [code.to_string()], *count);
        }
    }
}
