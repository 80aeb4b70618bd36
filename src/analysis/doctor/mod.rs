//! The checks of `twtool doctor`. Each check explains its subject, and may report a finding.
//!
//! A setting that differs from the kernel's default is not a fault. A warning means that something fails now, has failed, or
//! will probably fail: soon, or when a program starts again.

mod caller;
mod conntrack;
mod destinations;
mod makers;
mod ports;
mod settings;
pub mod sockets;
mod timewait;

use std::time::Duration;

use crate::model::command::{Shell, Suggestions};
use crate::model::health::Health;
use crate::model::setting::Sysctl;

pub use destinations::OutboundConnections;
pub use makers::BucketsByMaker;

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// Something fails, has failed, or will probably fail.
    Warning,
    /// Something that the check needs could not be read.
    Unknown,
    /// Nothing fails, but the reader should know the finding.
    Note,
    /// The check found no problem.
    Ok,
}

impl Status {
    /// Every status, the most serious first.
    pub const ALL: [Self; 4] = [Self::Warning, Self::Unknown, Self::Note, Self::Ok];

    /// The name that scripts see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Warning => "warning",
            Self::Unknown => "unknown",
            Self::Note => "note",
            Self::Ok => "ok",
        }
    }
}

/// A value or a piece of evidence, in a form that JSON can represent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Datum {
    /// The value is unknown, or there is none.
    Unknown,
    /// A number. Every counter and every setting fits.
    Number(i128),
    /// A text.
    Text(String),
    /// A list of values.
    List(Vec<Self>),
    /// Named values.
    Record(Vec<(&'static str, Self)>),
}

impl<T: Into<i128>> From<Option<T>> for Datum {
    fn from(number: Option<T>) -> Self {
        number.map_or(Self::Unknown, |number| Self::Number(number.into()))
    }
}

impl From<String> for Datum {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<usize> for Datum {
    fn from(number: usize) -> Self {
        Self::Number(i128::try_from(number).unwrap_or(i128::MAX))
    }
}

/// The subject of a check: the part that does not depend on the finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The name that scripts see.
    pub id: &'static str,
    /// What the setting does, or what is counted.
    pub does: &'static str,
    /// What the subject does not do.
    pub does_not: &'static str,
    /// The sources: man page sections, RFC sections, files of the kernel's documentation or source.
    pub sources: &'static [&'static str],
}

impl Subject {
    fn of_setting(setting: &Sysctl) -> Self {
        let Sysctl { name, check, does, does_not, sources, .. } = setting;
        Self { id: check.unwrap_or(name), does, does_not, sources }
    }
}

/// One check and what it found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// The subject.
    pub subject: Subject,
    /// The result.
    pub status: Status,
    /// The value of the setting or counter, the number of sockets, or another fact about the subject.
    pub value: Datum,
    /// The kernel's default; unknown if there is none or it cannot be computed.
    pub default: Datum,
    /// What was found, with the numbers.
    pub finding: Option<String>,
    /// The data behind the finding, by name.
    pub evidence: Vec<(&'static str, Datum)>,
    /// Commands and advice.
    pub help: Suggestions,
}

impl Check {
    pub(crate) fn ok(subject: Subject, value: Datum, default: Datum) -> Self {
        Self {
            subject,
            status: Status::Ok,
            value,
            default,
            finding: None,
            evidence: vec![],
            help: Suggestions::default(),
        }
    }

    fn found(self, status: Status, finding: impl Into<String>) -> Self {
        Self { status, finding: Some(finding.into()), ..self }
    }

    /// Adds a piece of evidence.
    fn with(mut self, name: &'static str, datum: impl Into<Datum>) -> Self {
        self.evidence.push((name, datum.into()));
        self
    }

    fn helped_by(mut self, help: Suggestions) -> Self {
        self.help.append(help);
        self
    }

    fn advising(mut self, advice: impl Into<String>) -> Self {
        self.help.advice.push(advice.into());
        self
    }
}

/// Decides when sockets in CLOSE_WAIT count as a leak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeakThreshold {
    /// A socket counts as silent if the last ACK of its peer is at least this old.
    pub silent: Duration,
}

impl LeakThreshold {
    /// The number of silent sockets of one process that counts as a leak. A single one can be intended, because a peer may
    /// close its half and wait for the response. If ten are silent at the same time, a close() is probably missing.
    pub const SOCKETS: usize = 10;
}

/// Makes every check, in a fixed order. An error in `outbound` is the reason why the destinations are unknown. If no tracer runs, `made`
/// is `None`, and the check of the makers is absent. The suggested commands are for `shell`.
#[must_use]
pub fn examine(
    health: &Health,
    outbound: Result<OutboundConnections, &str>,
    made: Option<&BucketsByMaker>,
    leak: LeakThreshold,
    shell: &Shell,
) -> Vec<Check> {
    let mut checks = settings::checks(health, shell);
    checks.push(conntrack::check(health));
    checks.push(destinations::check(outbound, &health.facts, shell));
    checks.extend(sockets::checks(health, leak, shell));
    checks.extend(caller::checks(health));
    checks.extend(made.map(makers::check));
    checks
}

#[cfg(test)]
mod tests;
