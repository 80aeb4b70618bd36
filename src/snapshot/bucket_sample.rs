//! Samples all buckets of one or several network namespaces repeatedly, and follows each bucket from one sample to the next.
//!
//! A sample ([`BucketSample`]) is the result of one walk over the buckets, with the kernel's counters from before and after the walk. It
//! has every bucket, also the buckets that the selection excludes, because an earlier sample may have selected them.
//!
//! The caller compares the buckets with the previous sample on a thread in the namespace. Only there can it look up which socket now has
//! both ends of a missing bucket ([`Occupant`]).

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::buckets::rows_answer;
use super::query::{Query, Selection};
use super::{Answer, Namespaces, PassOn, SnapshotError};
use crate::filter::Filter;
use crate::model::facts::{Facts, UnreadFacts};
use crate::model::kernel_counts::Counters;
use crate::model::listeners::Listeners;
use crate::model::row::Row;
use crate::model::socket::TimeWaitBucket;
use crate::sock_diag::transport::Netlink;
pub use crate::source::recording::Occupant;
use crate::source::recording::{MAX_OCCUPANTS, RecordedSample, RecordingContent, SeriesFile, SeriesReader};
use crate::source::{self, Source, SourceChoice, SourceError, read_fact};
use crate::sys;
use crate::sys::clock::Stopwatch;
use crate::sys::interrupt::{Interrupts, Signal};

/// Sampling uses at most a quarter of a core: the shortest interval is the processor time of a sample times this number.
pub const MIN_INTERVAL_PER_CPU_TIME: u32 = 4;

/// One sample of the buckets of a network namespace.
#[derive(Debug)]
pub struct BucketSample {
    /// The facts of the namespace.
    pub facts: Facts,
    /// The selected buckets, in the kernel's order.
    pub rows: Vec<Row>,
    /// The buckets that the selection excludes.
    pub others: Vec<Row>,
    /// The beginning and the end of the walk, as times since the [`SampleSource`] was made. The kernel reported each remaining time
    /// between these two times.
    pub walked: (Duration, Duration),
    /// Whether nothing indicates that the walk has missed a bucket.
    pub whole: bool,
    /// The counters before the walk.
    pub before: Counters,
    /// The counters after the walk.
    pub after: Counters,
    /// `net.ipv4.tcp_max_tw_buckets`.
    pub max_tw_buckets: Option<i64>,
    /// `net.ipv4.tcp_tw_timeout` in seconds, which only the kernels of some vendors have.
    pub tw_timeout_s: Option<u64>,
    /// Whether neither buckets nor facts are missing.
    pub complete: bool,
}

/// Finds the socket that now has both ends of a missing bucket.
pub type FindOccupant<'a> = dyn FnMut(&TimeWaitBucket) -> Occupant + 'a;

/// One sample of every namespace.
#[derive(Debug)]
pub struct TakenSample<T> {
    /// The time from the making of the [`SampleSource`] to the beginning of this sample (CLOCK_MONOTONIC).
    pub elapsed: Duration,
    /// How long the sample took.
    pub took: Duration,
    /// The processor time that all threads of this process used during the sample.
    pub processor_time: Duration,
    /// The time from the beginning of this sample to the beginning of the next one. It is longer than requested if sampling would
    /// otherwise use more than a quarter of a core.
    pub interval: Duration,
    /// The value that `follow` returned for each namespace, whether nothing is missing, and warnings.
    pub answer: Answer<Vec<T>>,
}

/// Takes samples from the kernel or from a recorded series.
pub struct SampleSource {
    input: SampleInput,
    clock: Stopwatch,
    series: Option<SeriesFile>,
    /// Blocks SIGINT and SIGTERM while a series is recorded, because the file gets its name only when the recording is finished.
    interrupts: Option<Interrupts>,
    signal: Option<Signal>,
    room: ExpectedRows,
}

/// The numbers of selected and of other buckets in the last sample of a single namespace. The next sample reserves its memory with them,
/// because a `Vec` that grows step by step takes 1.5 times as much memory.
#[derive(Default)]
struct ExpectedRows([AtomicUsize; 2]);

impl ExpectedRows {
    fn rows(&self) -> [Vec<Row>; 2] {
        let room = |last: &AtomicUsize| {
            let last = last.load(Ordering::Relaxed);
            Vec::with_capacity(last + last / 16)
        };
        [room(&self.0[0]), room(&self.0[1])]
    }

    fn remember(&self, rows: &[Row], others: &[Row]) {
        self.0[0].store(rows.len(), Ordering::Relaxed);
        self.0[1].store(others.len(), Ordering::Relaxed);
    }
}

enum SampleInput {
    Kernel(Namespaces),
    /// Every namespace that can be found at the time of a sample.
    Every,
    Series(SeriesReader),
}

impl SampleSource {
    fn of(input: SampleInput) -> Self {
        Self {
            input,
            clock: Stopwatch::start(),
            series: None,
            interrupts: None,
            signal: None,
            room: ExpectedRows::default(),
        }
    }

    /// Samples these namespaces.
    #[must_use]
    pub fn of_kernel(namespaces: Namespaces) -> Self {
        Self::of(SampleInput::Kernel(namespaces))
    }

    /// Samples every namespace that can be found at the time of each sample.
    #[must_use]
    pub fn of_every_namespace() -> Self {
        Self::of(SampleInput::Every)
    }

    /// Reads samples from a recorded series.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn of_series(path: &Path) -> Result<Self, SnapshotError> {
        Ok(Self::of(SampleInput::Series(SeriesReader::open(path).map_err(SourceError::from)?)))
    }

    /// Records the following samples, until [`Self::finish`]. It blocks SIGINT and SIGTERM in the calling thread, and [`Self::wait`]
    /// reports them. Other threads must block these signals, too.
    ///
    /// # Errors
    /// The samples are not from the kernel or are of several network namespaces, or the file cannot be created.
    pub fn record(&mut self, path: &Path, replace: bool) -> Result<(), SnapshotError> {
        match &self.input {
            SampleInput::Kernel(namespaces) if !namespaces.are_several() => {}
            _ => return Err(SnapshotError::OneNamespace),
        }
        self.series = Some(SeriesFile::create(path, replace).map_err(SourceError::from)?);
        self.interrupts = Some(Interrupts::block().map_err(SnapshotError::system("blocking signals"))?);
        Ok(())
    }

    /// Ends the recording, if there is one, and gives the file its name. Then this function delivers the signal that
    /// [`Self::wait`] has reported.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn finish(&mut self) -> Result<(), SnapshotError> {
        let finished = self.series.take().map_or(Ok(()), SeriesFile::finish).map_err(SourceError::from);
        if let (Some(interrupts), Some(signal)) = (&self.interrupts, self.signal.take()) {
            interrupts.deliver(signal).map_err(SnapshotError::system("delivering a signal"))?;
        }
        self.interrupts = None;
        Ok(finished?)
    }

    /// Sleeps until the time `until`, which is counted from the making of the [`SampleSource`]. Returns false if a blocked signal has
    /// arrived. The samples of a recorded series need no sleep.
    ///
    /// # Errors
    /// The sleep failed.
    pub fn wait(&mut self, until: Duration) -> Result<bool, SnapshotError> {
        if matches!(self.input, SampleInput::Series(_)) {
            return Ok(true);
        }
        let left = until.saturating_sub(self.clock.elapsed());
        match &self.interrupts {
            Some(interrupts) => {
                self.signal = interrupts.wait(left).map_err(SnapshotError::system("waiting for signals"))?;
            }
            None => sys::clock::sleep(left),
        }
        Ok(self.signal.is_none())
    }

    /// Takes one sample; `None` after the last sample of a recorded series. `interval` is the wanted time between two samples.
    /// `follow` is called for each namespace, on a thread in this namespace.
    ///
    /// # Errors
    /// See [`SnapshotError`]. The next sample may succeed.
    pub fn take_sample<T: Send>(
        &mut self,
        selection: &Selection,
        interval: Duration,
        follow: &(impl Fn(BucketSample, &mut FindOccupant<'_>) -> T + Sync),
    ) -> Result<Option<TakenSample<T>>, SnapshotError> {
        let every;
        let namespaces = match &mut self.input {
            SampleInput::Kernel(namespaces) => namespaces,
            SampleInput::Every => {
                every = Namespaces::all();
                &every
            }
            SampleInput::Series(series) => {
                let next = series.next_sample().map_err(SourceError::from)?;
                return next.map(|(recorded, rest)| replay(recorded, &rest, selection, follow)).transpose();
            }
        };
        let clock = self.clock;
        let (elapsed, processor_before) = (clock.elapsed(), sys::clock::processor_time());
        let room = (!namespaces.are_several()).then_some(&self.room);
        let series = Mutex::new(self.series.take().map(|file| (file, RecordedSample::default())));
        let ask = |_, pass_on: &mut PassOn<T>| {
            // If there is a series, there is one namespace, and so only one thread.
            let mut recorder = series.lock().unwrap_or_else(PoisonError::into_inner).take();
            let taken = sample_here(&mut recorder, selection, clock, room, follow);
            if recorder.is_some() {
                *series.lock().unwrap_or_else(PoisonError::into_inner) = recorder;
            }
            let (followed, answer) = taken?;
            let _ = pass_on(followed);
            Ok(answer)
        };
        let mut all = vec![];
        let answer = namespaces.ask(&ask, &mut |followed| {
            all.push(followed);
            ControlFlow::Continue(())
        });
        let processor_time = sys::clock::processor_time().saturating_sub(processor_before);
        let interval = interval.max(processor_time * MIN_INTERVAL_PER_CPU_TIME);
        let took = clock.elapsed().saturating_sub(elapsed);
        if let Some((mut file, sample)) = series.into_inner().unwrap_or_else(PoisonError::into_inner) {
            let sample = answer.is_ok().then_some(RecordedSample { elapsed, took, processor_time, interval, ..sample });
            let ended = file.end(sample).map_err(SourceError::from);
            self.series = Some(file);
            ended?;
        }
        let answer = answer?;
        if all.is_empty() {
            return Err(SnapshotError::NoNamespace(answer.warnings));
        }
        Ok(Some(TakenSample { elapsed, took, processor_time, interval, answer: answer.with(all) }))
    }
}

fn sample_here<T>(
    recorder: &mut Option<(SeriesFile, RecordedSample)>,
    selection: &Selection,
    clock: Stopwatch,
    room: Option<&ExpectedRows>,
    follow: &impl Fn(BucketSample, &mut FindOccupant<'_>) -> T,
) -> Result<(T, Answer<()>), SnapshotError> {
    let Some((file, mut rest)) = recorder.take() else {
        let mut source = Source::kernel(SourceChoice::Auto)?;
        let (sample, answer) = sample(&mut source, selection, &mut SampleMeasurements::now(clock), room)?;
        let mut look_up = occupants();
        return Ok((follow(sample, &mut |bucket| look_up(bucket).unwrap_or(Occupant::Unknown)), answer));
    };
    let mut file = Some(file);
    let taken = Source::recorded_sample(&mut file).map_err(SnapshotError::from).and_then(|mut source| {
        let taken = sample(&mut source, selection, &mut SampleMeasurements::now(clock), room);
        file = source.into_series();
        let (sample, answer) = taken?;
        rest.walked = sample.walked;
        rest.before.clone_from(&sample.before.0);
        rest.after.clone_from(&sample.after.0);
        let (mut look_up, mut found, mut is_whole) = (occupants(), BTreeMap::new(), true);
        let followed = follow(sample, &mut |bucket| {
            let occupant = look_up(bucket);
            if let (Some(cookie), Some(occupant)) = (bucket.cookie, occupant) {
                found.insert(cookie.number(), occupant);
            }
            is_whole &= occupant.is_some();
            occupant.unwrap_or(Occupant::Unknown)
        });
        rest.set_occupants(found, is_whole);
        Ok((followed, answer))
    });
    *recorder = file.map(|file| (file, rest));
    taken
}

fn replay<T>(
    recorded: RecordingContent,
    rest: &RecordedSample,
    selection: &Selection,
    follow: &impl Fn(BucketSample, &mut FindOccupant<'_>) -> T,
) -> Result<TakenSample<T>, SnapshotError> {
    let (sample, answer) =
        sample(&mut Source::replayed(recorded), selection, &mut SampleMeasurements::Recorded(rest), None)?;
    let followed = follow(sample, &mut |bucket| rest.occupant(bucket.cookie));
    let RecordedSample { elapsed, took, processor_time, interval, .. } = *rest;
    Ok(TakenSample { elapsed, took, processor_time, interval, answer: answer.with(vec![followed]) })
}

enum SampleMeasurements<'a> {
    Now(Stopwatch, UnreadFacts),
    Recorded(&'a RecordedSample),
}

impl SampleMeasurements<'_> {
    fn now(clock: Stopwatch) -> Self {
        Self::Now(clock, UnreadFacts::default())
    }

    /// The counters and the time before the walk. The time is read last.
    fn before(&mut self) -> (Counters, Duration) {
        match self {
            Self::Now(clock, unread) => (counters(unread), clock.elapsed()),
            Self::Recorded(sample) => (Counters(sample.before.clone()), sample.walked.0),
        }
    }

    /// The counters and the time after the walk. The time is read first.
    fn after(&mut self) -> (Counters, Duration) {
        match self {
            Self::Now(clock, unread) => {
                let ended = clock.elapsed();
                (counters(unread), ended)
            }
            Self::Recorded(sample) => (Counters(sample.after.clone()), sample.walked.1),
        }
    }
}

fn counters(unread: &mut UnreadFacts) -> Counters {
    read_fact(unread, "the counters of TCP", sys::counts::counters()).unwrap_or_default()
}

fn sample(
    source: &mut Source,
    selection: &Selection,
    measured: &mut SampleMeasurements,
    room: Option<&ExpectedRows>,
) -> Result<(BucketSample, Answer<()>), SnapshotError> {
    let facts = source.facts().clone();
    let query = Query::new(&Selection { fin_wait_2: true, ..selection.clone() }, &facts, true)?;
    let buckets = source.bucket_settings();
    let (before, began) = measured.before();
    let ((_, rows, others), end) = source.collect(
        query.states,
        &Filter::TRUE,
        || {
            let [rows, others] = room.map(ExpectedRows::rows).unwrap_or_default();
            (Listeners::default(), rows, others)
        },
        |(listeners, rows, others), socket| {
            if let Some((row, selected)) = query.judged_row(listeners, &facts, socket) {
                if selected { rows.push(row) } else { others.push(row) }
            }
        },
    )?;
    if let Some(room) = room {
        room.remember(&rows, &others);
    }
    let (after, ended) = measured.after();
    let mut answer = rows_answer(&query, source, &facts, end)?;
    if let SampleMeasurements::Now(_, unread) = measured {
        answer.warnings.extend(unread.sentences());
    }
    let sample = BucketSample {
        facts,
        rows,
        others,
        walked: (began, ended),
        whole: end.complete,
        before,
        after,
        max_tw_buckets: buckets.max_tw_buckets,
        tw_timeout_s: buckets.tw_timeout_s,
        complete: answer.complete,
    };
    Ok((sample, Answer { filter_warnings: query.warnings, ..answer }))
}

/// Applies a selection to the rows of a sample that has been taken. Returns the selected rows and the other rows.
///
/// # Errors
/// The selection has a mistake, or tests something that the rows lack.
pub fn select(
    selection: &Selection,
    facts: &Facts,
    rows: impl Iterator<Item = Row>,
) -> Result<[Vec<Row>; 2], SnapshotError> {
    let query = Query::new(selection, facts, true)?;
    let (mut selected, mut others) = (vec![], vec![]);
    for row in rows {
        if query.selects(&row) { selected.push(row) } else { others.push(row) }
    }
    query.check_filter()?;
    Ok([selected, others])
}

/// Returns a function that looks up occupants in the kernel, and returns `None` after [`MAX_OCCUPANTS`] look-ups.
fn occupants() -> impl FnMut(&TimeWaitBucket) -> Option<Occupant> {
    let mut netlink: Option<Netlink> = None;
    let mut left = MAX_OCCUPANTS;
    move |bucket| {
        left = left.checked_sub(1)?;
        if netlink.is_none() {
            netlink = source::open_netlink().ok();
        }
        let Some(open) = &mut netlink else { return Some(Occupant::Unknown) };
        Some(match source::look_up_by_ends(open, &bucket.tuple, bucket.interface) {
            Ok(None) => Occupant::Nobody,
            Ok(Some(found)) if found.cookie() == bucket.cookie => Occupant::Itself,
            Ok(Some(_)) => Occupant::Another,
            // Open a new netlink socket, because a late response on this one could be mistaken for the response to the next request.
            Err(_) => {
                netlink = None;
                Occupant::Unknown
            }
        })
    }
}
