//! Takes the samples on a thread of its own, so that the screen reacts to keys meanwhile. The thread also counts the buckets by
//! port, address and process.
//!
//! The screen requests each sample, and requests the next one only after the reply. So replies never pile up while the terminal
//! accepts no text, and no sample begins while the screen is paused or stopped.
//!
//! If a tracer runs, the thread also asks it for the owners of the buckets, after each sample.

use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{PoisonError, RwLockReadGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::counted::{SampleCounts, SampleWithInterval};
use crate::snapshot::bucket_owners::TracedOwners;
use crate::snapshot::owner_feed::{OwnerFeed, SharedOwners, Tracing};
use crate::snapshot::{Answer, Capacity, CapacityQuestion, Namespaces, Selection, Snapshot, SnapshotError};
use crate::sys::screen_input::Waker;
use crate::watch::{Reselection, Sample, Sampler};

/// Finds the namespaces, to calculate the free ports of destinations.
pub type FindNamespaces = Box<dyn Fn() -> Result<Namespaces, SnapshotError> + Send>;

#[derive(Debug)]
pub(super) enum SampleRequest {
    BucketSample {
        interval: Duration,
        /// Another selection, if it has changed.
        selection: Option<Selection>,
        /// Whether to calculate the free ports of destinations.
        capacity: bool,
        /// A recording to begin or to end before the sample.
        recording: Option<RecordingChange>,
    },
    /// Apply another selection to the buckets of the last sample.
    Select(Selection),
    EndRecording,
    /// `true`: start a tracer in this program. `false`: end it.
    Trace(bool),
}

#[derive(Debug)]
pub(super) enum RecordingChange {
    /// The file, and whether to replace an existing one.
    Begin(PathBuf, bool),
    End,
}

#[derive(Debug)]
pub(super) enum SampleReply {
    Sampled {
        /// `None` after the last sample of a recorded series.
        sample: Box<Result<Option<(Sample, SampleCounts)>, SnapshotError>>,
        capacity: Vec<Result<Answer<Capacity>, SnapshotError>>,
        /// Whether the recording was begun or ended as requested.
        recording: Result<(), SnapshotError>,
        /// Where the owners of buckets come from; `None` for a recorded series.
        tracing: Option<Tracing>,
    },
    Selected(Result<(Vec<Reselection>, SampleCounts), SnapshotError>),
    EndedRecording(Result<(), SnapshotError>),
    Traced(Result<Tracing, SnapshotError>),
}

struct Work {
    sampler: Sampler,
    namespaces: Option<FindNamespaces>,
    feed: Option<OwnerFeed>,
    /// The owners of buckets, which the feed updates.
    owners: SharedOwners,
    /// When the last sample began, as [`Sample::elapsed`].
    last: Option<Duration>,
}

/// The thread that takes the samples.
pub(super) struct SampleThread {
    requests: Sender<SampleRequest>,
    replies: Receiver<SampleReply>,
    thread: JoinHandle<Result<(), SnapshotError>>,
    owners: SharedOwners,
    pub(super) busy: bool,
}

impl SampleThread {
    /// Starts the thread. `waker` wakes the screen for each reply.
    pub(super) fn start(
        sampler: Sampler,
        namespaces: Option<FindNamespaces>,
        feed: Option<OwnerFeed>,
        waker: Waker,
    ) -> io::Result<Self> {
        let (requests, asked) = mpsc::channel::<SampleRequest>();
        let (answer, replies) = mpsc::channel();
        let owners = feed.as_ref().map(OwnerFeed::owners).unwrap_or_default();
        let mut work = Work { sampler, namespaces, feed, owners: SharedOwners::clone(&owners), last: None };
        let work = move || {
            for request in asked {
                // The send fails if the screen has ended. Then the reply is not needed.
                let _ = answer.send(work.reply(request));
                waker.wake();
            }
            work.sampler.finish()
        };
        let thread = thread::Builder::new().name("collector".into()).spawn(work)?;
        Ok(Self { requests, replies, thread, owners, busy: false })
    }

    /// Returns the owners of buckets, which the thread updates with each sample.
    pub(super) fn owners(&self) -> SharedOwners {
        SharedOwners::clone(&self.owners)
    }

    pub(super) fn ask(&mut self, request: SampleRequest) {
        // If the thread is gone, Self::reply reports it.
        let _ = self.requests.send(request);
        self.busy = true;
    }

    /// Ends the recording and the thread.
    pub(super) fn finish(self) -> Result<(), SnapshotError> {
        drop(self.requests);
        // If the thread has panicked, the panic hook has reported that.
        self.thread.join().unwrap_or(Ok(()))
    }

    /// Waits for the reply to the request. Returns `None` if the thread is gone.
    pub(super) fn reply(&mut self) -> Option<SampleReply> {
        self.busy = false;
        self.replies.recv().ok()
    }
}

impl Work {
    fn reply(&mut self, request: SampleRequest) -> SampleReply {
        let Self { sampler, namespaces, feed, owners, last } = self;
        let (interval, selection, with_capacity, recording) = match request {
            SampleRequest::BucketSample { interval, selection, capacity, recording } => {
                (interval, selection, capacity, recording)
            }
            SampleRequest::Select(selection) => {
                let counted = |all: Vec<Reselection>| {
                    let rows = || all.iter().map(|one| one.rows.as_slice());
                    let counted = SampleCounts::of(rows()).with_makers(&lock_owners(owners), rows(), None);
                    (all, counted)
                };
                return SampleReply::Selected(sampler.select(selection).map(counted));
            }
            SampleRequest::EndRecording => return SampleReply::EndedRecording(sampler.finish()),
            SampleRequest::Trace(starts) => return SampleReply::Traced(trace(feed.as_mut(), starts)),
        };
        sampler.set_interval(interval);
        let recording = match &recording {
            Some(RecordingChange::Begin(path, replace)) => sampler.record(path, *replace),
            Some(RecordingChange::End) => sampler.finish(),
            None => Ok(()),
        };
        let sample = match selection {
            Some(selection) => sampler.take_selected(selection),
            None => sampler.take(),
        };
        // The tracer is asked after the sample, so that it can know the owners of the newest buckets.
        let tracing = feed.as_mut().map(OwnerFeed::update);
        let counted = |sample: Sample| {
            let last = last.replace(sample.elapsed).filter(|_| !sample.closes_begin);
            let since =
                last.map(|last| SampleWithInterval { sample: &sample, time: sample.elapsed.saturating_sub(last) });
            let rows = || sample.namespaces.iter().map(|netns| netns.rows.as_slice());
            let counted = SampleCounts::of(rows()).with_makers(&lock_owners(owners), rows(), since);
            (sample, counted)
        };
        let sample = sample.map(|sample| sample.map(counted));
        let capacity = match namespaces {
            Some(find) if with_capacity => match find() {
                Ok(namespaces) => namespaces.each().map(capacity).collect(),
                Err(error) => vec![Err(error)],
            },
            _ => vec![],
        };
        SampleReply::Sampled { sample: sample.into(), capacity, recording, tracing }
    }
}

fn lock_owners(owners: &SharedOwners) -> RwLockReadGuard<'_, TracedOwners> {
    owners.read().unwrap_or_else(PoisonError::into_inner)
}

fn trace(feed: Option<&mut OwnerFeed>, starts: bool) -> Result<Tracing, SnapshotError> {
    let Some(feed) = feed else { return Ok(Tracing::Off) };
    if starts {
        feed.start()?;
    } else {
        feed.stop();
    }
    Ok(feed.update())
}

/// Calculates the free ports from the list of sockets alone. The probe of `twtool capacity` would hold a port for a moment each
/// time.
fn capacity(namespaces: Namespaces) -> Result<Answer<Capacity>, SnapshotError> {
    let question = CapacityQuestion { probe: false, ..CapacityQuestion::default() };
    Snapshot::of(namespaces).capacity(&question)
}
