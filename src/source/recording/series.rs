//! A series of samples (`twtool watch --record`): a recording for each sample, one after the other, and a last line with the number
//! of samples. Unless its sample failed, a recording has an additional line with the times and counters of the sample.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::header::{Header, MAX_HEADER_LENGTH};
use super::{LineReader, Problem, RecordingContent, RecordingError, RecordingFile, RecordingLine, parse_one};
use crate::model::facts::Facts;
use crate::model::kernel_counts::BucketFacts;
use crate::model::socket::Cookie;
use crate::sock_diag::transport::{EventSink, TransportEvent};
use crate::sys;

/// The part of a sample that a series has in addition to the facts and the datagrams.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "snapshot::bucket_sample documents the fields")]
pub struct RecordedSample {
    pub elapsed: Duration,
    pub took: Duration,
    pub processor_time: Duration,
    pub interval: Duration,
    pub walked: (Duration, Duration),
    pub before: BTreeMap<String, u64>,
    pub after: BTreeMap<String, u64>,
    /// The occupants of missing buckets (the walk does not list them any more), by the cookie of the bucket.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub occupants: BTreeMap<u64, Occupant>,
    /// The occupant of each missing bucket that is not in `occupants`.
    #[serde(default, skip_serializing_if = "Occupant::is_nobody")]
    pub other_occupants: Occupant,
}

/// The maximum number of occupants that a sample looks up. Each look-up takes about 4 µs.
pub const MAX_OCCUPANTS: usize = 20_000;

impl RecordedSample {
    /// Sets the results of look-ups. `is_whole` tells whether every missing bucket was looked up.
    pub fn set_occupants(&mut self, mut occupants: BTreeMap<u64, Occupant>, is_whole: bool) {
        self.other_occupants = if is_whole { Occupant::Nobody } else { Occupant::Unknown };
        occupants.retain(|_, occupant| *occupant != self.other_occupants);
        self.occupants = occupants;
    }

    /// The occupant of a missing bucket with this cookie.
    #[must_use]
    pub fn occupant(&self, cookie: Option<Cookie>) -> Occupant {
        let known = cookie.and_then(|cookie| self.occupants.get(&cookie.number()));
        known.copied().unwrap_or(self.other_occupants)
    }
}

/// The socket that now has both ends of a missing bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Occupant {
    /// The bucket itself: the walk has missed it.
    Itself,
    /// Another socket: a connection in any state, or another bucket.
    Another,
    /// No socket.
    #[default]
    Nobody,
    /// It was not looked up, or the look-up failed.
    Unknown,
}

impl Occupant {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    fn is_nobody(&self) -> bool {
        *self == Self::Nobody
    }
}

/// Writes a series of samples.
pub struct SeriesFile {
    file: RecordingFile,
    samples: u64,
}

impl SeriesFile {
    /// Creates the file.
    pub fn create(path: &Path, replace: bool) -> Result<Self, RecordingError> {
        Ok(Self { file: RecordingFile::open(path, replace)?, samples: 0 })
    }

    /// Begins a sample.
    pub fn begin(&mut self, facts: &Facts, buckets: &BucketFacts) -> Result<(), RecordingError> {
        self.samples += 1;
        self.file.begin(facts, buckets)
    }

    /// Ends a sample. `sample` is `None` if the sample failed.
    pub fn end(&mut self, sample: Option<RecordedSample>) -> Result<(), RecordingError> {
        let line = sample.map_or(Ok(()), |sample| self.file.line(&RecordingLine::Sample(sample)));
        line.and_then(|()| self.file.end()).map_err(|error| RecordingFile::write_error(&self.file.path, error))
    }

    /// Writes the last line and gives the file its name.
    pub fn finish(mut self) -> Result<(), RecordingError> {
        let path = self.file.path.clone();
        let line = self.file.line(&RecordingLine::Samples(self.samples));
        line.and_then(|()| self.file.file.finish()).map_err(|error| RecordingFile::write_error(&path, error))
    }
}

impl EventSink for SeriesFile {
    fn keep(&mut self, event: &TransportEvent) -> io::Result<()> {
        self.file.keep(event)
    }
}

/// Reads the samples of a series one by one.
pub struct SeriesReader {
    path: PathBuf,
    lines: LineReader<BufReader<File>>,
    samples: u64,
    /// Whether one of the recordings so far has the line that only a series has.
    is_series: bool,
}

const NO_SERIES: &str =
    "it is no series of samples; replay it with the command that made it, for example `twtool list`";

impl SeriesReader {
    /// Opens the file.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn open(path: &Path) -> Result<Self, RecordingError> {
        let file = sys::file::open(path).map_err(|error| Problem::Unread(error).of(path))?;
        Ok(Self { path: path.to_owned(), lines: LineReader::new(BufReader::new(file)), samples: 0, is_series: false })
    }

    /// The next sample that has not failed; `None` after the last one.
    ///
    /// # Errors
    /// The file cannot be read, is damaged, or is not a series.
    pub fn next_sample(&mut self) -> Result<Option<(RecordingContent, RecordedSample)>, RecordingError> {
        self.parse_next().map_err(|problem| problem.of(&self.path))
    }

    fn parse_next(&mut self) -> Result<Option<(RecordingContent, RecordedSample)>, Problem> {
        loop {
            self.lines.next(MAX_HEADER_LENGTH)?;
            if self.samples > 0 && self.lines.line.is_empty() {
                return Err(if self.is_series { Problem::cut_off() } else { Problem::Damaged(NO_SERIES.into()) });
            }
            if let Ok(RecordingLine::Samples(samples)) = serde_json::from_slice(&self.lines.line) {
                if samples != self.samples {
                    return Err(Problem::Damaged(format!("it has {} of its {samples} samples", self.samples)));
                }
                self.lines.end()?;
                return Ok(None);
            }
            if self.samples > 0 && Header::read(&self.lines.line).is_err() {
                return Err(self.lines.unparsed("neither the beginning of a sample nor the end of the series"));
            }
            let mut recorded = parse_one(&mut self.lines)?;
            self.samples += 1;
            if let Some(sample) = recorded.sample.take() {
                self.is_series = true;
                return Ok(Some((recorded, sample)));
            }
        }
    }
}
