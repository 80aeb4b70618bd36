//! Reads and writes recordings. A recording is a file with the raw datagrams of a walk, and with every fact that an answer depends on.
//!
//! A recording consists of lines of JSON, so that people can read it in a bug report:
//! 1. The first line has the facts.
//! 2. Each of the next lines has one event: a request, a datagram as hexadecimal bytes, or a failed receive.
//! 3. The last line has the number of lines and a checksum, which detect a damaged file.
//!
//! Inside the datagrams, numbers other than ports have the byte order of the recording machine. The first line names this byte order.

mod header;
mod series;

use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use self::header::{Header, MAX_HEADER_LENGTH};
pub use self::series::{MAX_OCCUPANTS, Occupant, RecordedSample, SeriesFile, SeriesReader};
use crate::model::facts::Facts;
use crate::model::kernel_counts::BucketFacts;
use crate::sock_diag::request::Request;
use crate::sock_diag::transport::{EventSink, TransportEvent};
use crate::sys;

/// Why a recording cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// The file could not be read.
    #[error("reading the recording '{}' failed: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The file could not be written.
    #[error("writing the recording '{}' failed: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The file exists already.
    #[error("the recording '{}' exists; --force replaces a regular file", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The recording was not written, because a replay would not accept it.
    #[error("the recording '{}' cannot be made: {what}", path.display())]
    Unfit {
        /// The file.
        path: PathBuf,
        /// The part that a replay would not accept.
        what: String,
    },
    /// The content is damaged, or is not a recording.
    #[error("'{}' cannot be replayed: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The problem.
        what: String,
    },
}

/// The content of a recording.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordingContent {
    /// The facts of the recording machine.
    pub facts: Facts,
    /// The kernel's counts and settings about buckets. All of them are unknown if the file does not contain them.
    pub buckets: BucketFacts,
    /// The requests, datagrams and failures in the order in which they happened.
    pub events: Vec<TransportEvent>,
    /// In a series: the times and counters of the sample.
    pub sample: Option<RecordedSample>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum RecordingLine {
    Request(String),
    Datagram(String),
    RecvFailed(i32),
    #[serde(rename = "look")]
    Sample(RecordedSample),
    End {
        lines: u64,
        crc32: u32,
    },
    /// The last line of a series: the number of samples.
    #[serde(rename = "looks")]
    Samples(u64),
}

/// The maximum length in bytes of a line after the first. The longest lines are those of samples: for up to [`MAX_OCCUPANTS`] buckets
/// that disappeared, they say which socket now has both ends ([`Occupant`]), in at most 33 bytes each. A datagram needs less: two digits
/// for each byte of `sock_diag::transport::BUFFER`.
const MAX_LINE_LENGTH: u64 = 1 << 20;

/// Writes a recording.
pub struct RecordingFile {
    path: PathBuf,
    file: sys::file::NewFile,
    checksum: crc32fast::Hasher,
    lines: u64,
}

impl RecordingFile {
    /// Creates the file and writes the facts.
    pub fn create(path: &Path, replace: bool, facts: &Facts, buckets: &BucketFacts) -> Result<Self, RecordingError> {
        let mut this = Self::open(path, replace)?;
        this.begin(facts, buckets)?;
        Ok(this)
    }

    fn open(path: &Path, replace: bool) -> Result<Self, RecordingError> {
        let file = sys::file::NewFile::create(path, replace).map_err(|error| Self::write_error(path, error))?;
        Ok(Self { path: path.to_owned(), file, checksum: crc32fast::Hasher::new(), lines: 0 })
    }

    fn begin(&mut self, facts: &Facts, buckets: &BucketFacts) -> Result<(), RecordingError> {
        let header = Header::new(facts, buckets).line(facts, buckets);
        let header = header.map_err(|what| RecordingError::Unfit { path: self.path.clone(), what })?;
        self.checksum = crc32fast::Hasher::new();
        self.lines = 0;
        self.write(&header).map_err(|error| Self::write_error(&self.path, error))
    }

    fn end(&mut self) -> io::Result<()> {
        self.line(&RecordingLine::End { lines: self.lines, crc32: self.checksum.clone().finalize() })
    }

    fn write_error(path: &Path, source: io::Error) -> RecordingError {
        let path = path.to_owned();
        if source.kind() == io::ErrorKind::AlreadyExists {
            RecordingError::Exists { path }
        } else {
            RecordingError::Write { path, source }
        }
    }

    fn line(&mut self, line: &RecordingLine) -> io::Result<()> {
        let mut line = serde_json::to_string(line)?;
        line.push('\n');
        if line.len() as u64 > MAX_LINE_LENGTH {
            let why = "a line would be too long for a recording";
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        self.write(&line)
    }

    fn write(&mut self, line: &str) -> io::Result<()> {
        self.checksum.update(line.as_bytes());
        self.lines += 1;
        self.file.write_all(line.as_bytes())
    }

    /// Finishes the file after the command has failed. An existing file is not replaced, because it may be the recording of a
    /// successful command. Returns the path of the existing file, if there is one.
    pub fn finish_failed(mut self) -> Result<Option<PathBuf>, RecordingError> {
        self.file.keep_existing();
        match self.finish() {
            Err(RecordingError::Exists { path }) => Ok(Some(path)),
            finished => finished.map(|()| None),
        }
    }

    /// Writes the last line and gives the file its name.
    pub fn finish(mut self) -> Result<(), RecordingError> {
        let path = self.path.clone();
        self.end().and_then(|()| self.file.finish()).map_err(|error| Self::write_error(&path, error))
    }
}

impl EventSink for RecordingFile {
    fn keep(&mut self, event: &TransportEvent) -> io::Result<()> {
        let line = match event {
            TransportEvent::Request(request) => RecordingLine::Request(hex(&request.encode())),
            TransportEvent::Datagram(bytes) => RecordingLine::Datagram(hex(bytes)),
            TransportEvent::RecvFailed(errno) => RecordingLine::RecvFailed(*errno),
        };
        self.line(&line)
    }
}

/// Reads a recording file.
///
/// # Errors
/// The file cannot be read, is damaged, or is not a recording.
pub fn read(path: &Path) -> Result<RecordingContent, RecordingError> {
    let content = sys::file::open(path).map_err(Problem::Unread).and_then(|file| parse_only(BufReader::new(file)));
    content.map_err(|problem| problem.of(path))
}

/// Parses the bytes of a recording. The error names the problem.
pub fn parse(bytes: &[u8]) -> Result<RecordingContent, String> {
    parse_only(bytes).map_err(|problem| match problem {
        Problem::Unread(error) => error.to_string(),
        Problem::Damaged(what) => what,
    })
}

enum Problem {
    Unread(io::Error),
    Damaged(String),
}

impl From<String> for Problem {
    fn from(what: String) -> Self {
        Self::Damaged(what)
    }
}

impl Problem {
    fn cut_off() -> Self {
        Self::Damaged("its end is missing, so it was cut off".into())
    }

    fn of(self, path: &Path) -> RecordingError {
        let path = path.to_owned();
        match self {
            Self::Unread(source) => RecordingError::Read { path, source },
            Self::Damaged(what) => RecordingError::Damaged { path, what },
        }
    }
}

/// Reads line by line, so that a file of another kind is refused after its first line, whatever its size.
struct LineReader<R> {
    reader: R,
    /// The line that was read last, with its line feed.
    line: Vec<u8>,
    /// The number of this line, from 1.
    number: u64,
}

impl<R: BufRead> LineReader<R> {
    const fn new(reader: R) -> Self {
        Self { reader, line: vec![], number: 0 }
    }

    /// Reads the next line, which may have at most `most` bytes. At the end of the file, the line is empty.
    fn next(&mut self, most: u64) -> Result<(), Problem> {
        self.number += 1;
        sys::file::read_line(&mut self.reader, most, &mut self.line).map_err(|error| {
            if error.kind() == io::ErrorKind::InvalidData {
                self.bad(&error.to_string()).into()
            } else {
                Problem::Unread(error)
            }
        })
    }

    fn bad(&self, what: &str) -> String {
        format!("line {}: {what}", self.number)
    }

    /// The problem of a line that cannot be parsed. If the line has no line feed, the file was cut off inside this line.
    fn unparsed(&self, what: &str) -> Problem {
        if self.line.ends_with(b"\n") { self.bad(what).into() } else { Problem::cut_off() }
    }

    /// Fails if another line follows.
    fn end(&mut self) -> Result<(), Problem> {
        self.next(MAX_LINE_LENGTH)?;
        if self.line.is_empty() { Ok(()) } else { Err(self.bad("the file continues after its end").into()) }
    }
}

/// Parses a recording that is not part of a series.
fn parse_only(reader: impl BufRead) -> Result<RecordingContent, Problem> {
    let mut lines = LineReader::new(reader);
    lines.next(MAX_HEADER_LENGTH)?;
    let recorded = parse_one(&mut lines)?;
    if recorded.sample.is_some() {
        return Err(Problem::Damaged("it is a series of samples; replay it with `twtool watch`".into()));
    }
    lines.end()?;
    Ok(recorded)
}

/// Parses a recording whose first line has been read.
fn parse_one(lines: &mut LineReader<impl BufRead>) -> Result<RecordingContent, Problem> {
    if lines.line.is_empty() {
        return Err(Problem::Damaged("it is empty".into()));
    }
    let (facts, buckets) = Header::read(&lines.line)?.content()?;
    let first = lines.number;
    let mut checksum = crc32fast::Hasher::new();
    let (mut events, mut sample) = (vec![], None);
    loop {
        checksum.update(&lines.line);
        lines.next(MAX_LINE_LENGTH)?;
        if lines.line.is_empty() {
            return Err(Problem::cut_off());
        }
        match serde_json::from_slice(&lines.line).map_err(|_| lines.unparsed("neither an event nor the end"))? {
            RecordingLine::Request(text) => {
                let request = unhex(&text).and_then(|bytes| Request::decode(&bytes));
                events.push(TransportEvent::Request(request.ok_or_else(|| lines.bad("not a request"))?));
            }
            RecordingLine::Datagram(text) => {
                events.push(TransportEvent::Datagram(unhex(&text).ok_or_else(|| lines.bad("not hexadecimal bytes"))?));
            }
            RecordingLine::RecvFailed(errno) => events.push(TransportEvent::RecvFailed(errno)),
            RecordingLine::Sample(line) => sample = Some(line),
            RecordingLine::Samples(_) => return Err(lines.bad("the end of the sample is missing").into()),
            RecordingLine::End { lines: count, crc32 } => {
                if count != lines.number - first || crc32 != checksum.finalize() {
                    return Err(Problem::Damaged("its checksum does not match, so its content was changed".into()));
                }
                return Ok(RecordingContent { facts, buckets, events, sample });
            }
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs.iter().map(|&[high, low]| Some(digit(high)? << 4 | digit(low)?)).collect()
}

#[cfg(test)]
mod tests;
