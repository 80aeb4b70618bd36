//! Gathers everything that one answer needs, from one network namespace or from many, as plain values.
//!
//! A [`Snapshot`] names the [`Namespaces`] and the [`Input`]: the kernel or a recording. The methods in
//! the table ask a question and return an [`Answer`]: the value, whether it is complete, and warnings. `analysis` draws conclusions
//! from the values, and `view` prints them.
//!
//! | question | value | file |
//! |---|---|---|
//! | [`Snapshot::buckets`], `for_each_bucket`, `count_buckets`, `any_bucket` | [`Buckets`], rows, a number, yes or no | `buckets` |
//! | [`Snapshot::summary`] | [`CountedBuckets`] | `summary` |
//! | [`Snapshot::port_uses`] | listeners and TIME_WAIT sockets on ports | `port_use` |
//! | [`Snapshot::port`] | [`PortState`]: sockets, holders and bind attempts of a port | `port` |
//! | [`Snapshot::capacity`] | [`Capacity`]: the ports that connect() may choose, and destinations | `capacity` |
//! | [`Snapshot::connect`] | a [`Situation`](crate::analysis::connect::Situation): binds, route, holders, free ports | `connect` |
//! | [`Snapshot::health`] | [`Checkup`]: settings, counters, listeners | `health` |
//! | `Snapshot::surveys` (feature `exporter`) | the numbers for monitoring: buckets, ports, settings, counters | `survey` |
//!
//! `names` reads names and ports for shell completion.
//!
//! Only the first two rows of the table can be recorded and answered from a recording; only the kernel can answer the other questions.
//! Other modules do more than answer one question: `port_watch` waits for a port, `call` watches the socket calls of a program,
//! `removal` removes sockets and verifies that they are gone, `bucket_sample` samples buckets repeatedly (from the kernel or from a
//! recorded series), `closes` follows closes, and `bucket_owners` finds the processes of buckets. `recent_closes` and `owner_feed` pass
//! what a tracer records to other programs and to the screen of `watch`.

#[cfg(feature = "cli")]
pub mod bucket_owners;
#[cfg(feature = "watch")]
pub mod bucket_sample;
pub mod buckets;
#[cfg(feature = "cli")]
pub mod call;
pub mod capacity;
#[cfg(feature = "trace")]
pub mod closes;
pub mod connect;
pub mod error;
pub mod health;
mod holders;
pub mod names;
pub mod namespaces;
pub mod ordered_rows;
#[cfg(feature = "watch")]
pub mod owner_feed;
pub mod port;
pub mod port_use;
pub mod port_watch;
pub mod query;
#[cfg(feature = "cli")]
pub mod recent_closes;
pub mod removal;
#[cfg(feature = "trace")]
mod sampled;
pub mod summary;
#[cfg(feature = "exporter")]
pub mod survey;

use std::path::PathBuf;

pub use self::buckets::Buckets;
pub use self::capacity::{Capacity, CapacityQuestion};
pub use self::error::SnapshotError;
pub use self::health::Checkup;
pub use self::namespaces::{Namespaces, merged_facts};
pub use self::ordered_rows::RowLimit;
pub use self::port::PortState;
pub use self::query::Selection;
pub use self::summary::CountedBuckets;
use crate::model::facts::Facts;
pub use crate::parallel::PassOn;
use crate::source::{self, Source, SourceError};
pub use crate::source::{Origin, SourceChoice};

/// Answers questions about one or several network namespaces, from the kernel or from a recording.
#[derive(Debug)]
pub struct Snapshot {
    /// The network namespaces that the questions are about.
    pub namespaces: Namespaces,
    /// The kernel or a recording.
    pub input: Input,
}

/// The source of an answer: the kernel, with or without a new recording, or an existing recording.
#[derive(Clone, Debug)]
pub enum Input {
    /// The kernel.
    Kernel(SourceChoice),
    /// The kernel, whose responses are recorded. The file gets its name when the recording is finished.
    Recorded {
        /// The file.
        path: PathBuf,
        /// Whether the recording of a successful question replaces an existing file.
        replace: bool,
    },
    /// A recording.
    Recording(PathBuf),
}

impl Input {
    /// Opens the source, asks the question, and finishes the recording, if there is one.
    ///
    /// If the dump fails, the recording is finished, too, because it is useful in a bug report. But then it does not replace an
    /// existing file. If the question has a mistake, no recording is left.
    fn ask<T>(&self, ask: impl FnOnce(&mut Source) -> Result<T, SnapshotError>) -> Result<T, SnapshotError> {
        let mut source = self.open()?;
        match ask(&mut source) {
            Ok(answer) => {
                source.finish()?;
                Ok(answer)
            }
            Err(failure @ (SnapshotError::Value(_) | SnapshotError::Filter(_))) => Err(failure),
            Err(failure) => Err(match source.finish_failed()? {
                Some(path) => SnapshotError::NotReplaced { failure: failure.into(), path },
                None => failure,
            }),
        }
    }

    fn open(&self) -> Result<Source, SourceError> {
        match self {
            Self::Kernel(choice) => Source::kernel(*choice),
            Self::Recorded { path, replace } => Source::recorded_kernel(path, *replace),
            Self::Recording(path) => Source::replay(path),
        }
    }
}

impl Snapshot {
    /// Selects the kernel and the network namespace of the calling thread. Each question reads the kernel again.
    #[must_use]
    pub const fn here() -> Self {
        Self::of(Namespaces::own())
    }

    /// Selects the kernel and these network namespaces. Each question reads the kernel again.
    #[must_use]
    pub const fn of(namespaces: Namespaces) -> Self {
        Self { namespaces, input: Input::Kernel(SourceChoice::Auto) }
    }

    /// The namespaces for a question that only the kernel can answer.
    fn kernel_namespaces(&self) -> Result<&Namespaces, SnapshotError> {
        match self.input {
            Input::Kernel(_) => Ok(&self.namespaces),
            Input::Recorded { .. } | Input::Recording(_) => Err(SnapshotError::NotRecorded),
        }
    }

    /// Reads the facts of one network namespace: kernel, time, port ranges, names.
    ///
    /// # Errors
    /// The namespace cannot be entered, or the recording cannot be read.
    pub fn facts(&self) -> Result<Facts, SnapshotError> {
        self.namespaces.within(|| match &self.input {
            Input::Kernel(_) | Input::Recorded { .. } => Ok(source::kernel_facts()),
            Input::Recording(path) => Ok(Source::replay(path)?.facts().clone()),
        })
    }
}

/// The value that answers a question, whether it is complete, and warnings.
#[derive(Clone, Debug)]
pub struct Answer<T> {
    /// The value.
    pub value: T,
    /// Whether nothing is missing from the value.
    pub complete: bool,
    /// Warnings about the text of the question, for example about an ambiguous filter.
    pub filter_warnings: Vec<String>,
    /// Warnings about the value: what is missing or uncertain, and why.
    pub warnings: Vec<String>,
}

impl<T> Answer<T> {
    /// A complete answer without warnings.
    #[must_use]
    pub const fn whole(value: T) -> Self {
        Self { value, complete: true, filter_warnings: vec![], warnings: vec![] }
    }

    /// Replaces the value.
    #[must_use]
    pub fn with<U>(self, value: U) -> Answer<U> {
        Answer { value, complete: self.complete, filter_warnings: self.filter_warnings, warnings: self.warnings }
    }

    /// Changes the value.
    #[must_use]
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Answer<U> {
        let Self { value, complete, filter_warnings, warnings } = self;
        Answer { value: change(value), complete, filter_warnings, warnings }
    }

    /// All warnings.
    #[must_use]
    pub fn sentences(&self) -> Vec<String> {
        [self.filter_warnings.as_slice(), &self.warnings].concat()
    }
}

/// The warning about a dump that the kernel marked as interrupted.
fn interrupted() -> String {
    "the kernel's table changed while it was read: sockets may be missing or repeated".into()
}

#[cfg(test)]
mod tests {
    use super::port::{PortQuestion, ServerQuestion};
    use super::*;
    use crate::model::port::{Port, PortArg, PortRange};

    #[test]
    fn a_question_that_a_recording_cannot_answer_is_refused() {
        let input = Input::Recording("a recording".into());
        let snapshot = Snapshot { namespaces: Namespaces::own(), input };
        let port = PortArg::Range(PortRange::one(Port(80)));
        let question =
            PortQuestion { port: port.clone(), addrs: vec![], ipv4: None, server: ServerQuestion::default() };
        for refused in [
            snapshot.port_uses(&[port], None).err(),
            snapshot.port(&question, false).err(),
            snapshot.capacity(&CapacityQuestion::default()).err(),
            snapshot.health(None).err(),
        ] {
            assert!(matches!(refused, Some(SnapshotError::NotRecorded)), "{refused:?}");
        }
    }
}
