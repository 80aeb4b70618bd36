//! Takes the samples on a thread of its own, so that the screen reacts to keys meanwhile. The thread also counts the buckets by
//! port and address, which takes milliseconds if there are many.
//!
//! The screen requests each sample, and requests the next one only after the reply. So replies never pile up while the terminal
//! takes no text, and no sample is taken while the screen is paused or stopped.

use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::counted::Counted;
use crate::snapshot::{Answer, Capacity, CapacityQuestion, Namespaces, Selection, Snapshot, SnapshotError};
use crate::sys::screen_input::Waker;
use crate::watch::{Reselected, Sample, Sampler};

/// Finds the namespaces, to calculate the free ports of destinations.
pub type FindNamespaces = Box<dyn Fn() -> Result<Namespaces, SnapshotError> + Send>;

/// A request of the screen.
#[derive(Debug)]
pub(super) enum Request {
    /// A sample.
    BucketSample {
        interval: Duration,
        /// Another selection, if it has changed.
        selection: Option<Selection>,
        /// Whether to calculate the free ports of destinations.
        capacity: bool,
        /// Begins or ends a recording before the sample.
        recording: Option<Recording>,
    },
    /// Apply another selection to the buckets of the last sample.
    Select(Selection),
    /// The end of the recording.
    EndRecording,
}

/// A change of the recording.
#[derive(Debug)]
pub(super) enum Recording {
    /// With this file, and whether an existing one is replaced.
    Begin(PathBuf, bool),
    End,
}

/// The answer to a request.
#[derive(Debug)]
pub(super) enum Reply {
    Sampled {
        /// `None` after the last sample of a recorded series.
        sample: Result<Option<(Sample, Counted)>, SnapshotError>,
        capacity: Vec<Result<Answer<Capacity>, SnapshotError>>,
        /// Whether the recording was begun or ended as requested.
        recording: Result<(), SnapshotError>,
    },
    Selected(Result<(Vec<Reselected>, Counted), SnapshotError>),
    EndedRecording(Result<(), SnapshotError>),
}

/// The thread that takes the samples.
pub(super) struct Collector {
    requests: Sender<Request>,
    replies: Receiver<Reply>,
    thread: JoinHandle<Result<(), SnapshotError>>,
    /// Whether a request is under way.
    pub(super) busy: bool,
}

impl Collector {
    /// Starts the thread. `waker` wakes the screen for each reply.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(super) fn start(mut sampler: Sampler, namespaces: Option<FindNamespaces>, waker: Waker) -> io::Result<Self> {
        let (requests, asked) = mpsc::channel::<Request>();
        let (answer, replies) = mpsc::channel();
        let work = move || {
            for request in asked {
                // The send fails if the screen has ended, because it then needs no reply.
                let _ = answer.send(reply(&mut sampler, namespaces.as_ref(), request));
                waker.wake();
            }
            sampler.finish()
        };
        let thread = thread::Builder::new().name("looks".into()).spawn(work)?;
        Ok(Self { requests, replies, thread, busy: false })
    }

    /// Sends a request.
    pub(super) fn ask(&mut self, request: Request) {
        // If the thread is gone, Self::reply reports it.
        let _ = self.requests.send(request);
        self.busy = true;
    }

    /// Ends the recording and the thread.
    ///
    /// # Errors
    /// The recording cannot be written.
    pub(super) fn finish(self) -> Result<(), SnapshotError> {
        drop(self.requests);
        // The panic hook has reported a panic.
        self.thread.join().unwrap_or(Ok(()))
    }

    /// The reply; `None` if the thread is gone.
    pub(super) fn reply(&mut self) -> Option<Reply> {
        self.busy = false;
        self.replies.recv().ok()
    }
}

fn reply(sampler: &mut Sampler, namespaces: Option<&FindNamespaces>, request: Request) -> Reply {
    let (interval, selection, with_capacity, recording) = match request {
        Request::BucketSample { interval, selection, capacity, recording } => {
            (interval, selection, capacity, recording)
        }
        Request::Select(selection) => {
            let counted = |all: Vec<Reselected>| {
                let counted = Counted::of(all.iter().map(|one| one.rows.as_slice()));
                (all, counted)
            };
            return Reply::Selected(sampler.select(selection).map(counted));
        }
        Request::EndRecording => return Reply::EndedRecording(sampler.finish()),
    };
    sampler.set_interval(interval);
    let recording = match &recording {
        Some(Recording::Begin(path, replace)) => sampler.record(path, *replace),
        Some(Recording::End) => sampler.finish(),
        None => Ok(()),
    };
    let sample = match selection {
        Some(selection) => sampler.take_selected(selection),
        None => sampler.take(),
    };
    let counted = |sample: Sample| {
        let counted = Counted::of(sample.namespaces.iter().map(|netns| netns.rows.as_slice()));
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
    Reply::Sampled { sample, capacity, recording }
}

/// Reads only the list of sockets. The probe of `capacity` would hold a port for a moment each time.
fn capacity(namespaces: Namespaces) -> Result<Answer<Capacity>, SnapshotError> {
    let question = CapacityQuestion { probe: false, ..CapacityQuestion::default() };
    Snapshot::of(namespaces).capacity(&question)
}
