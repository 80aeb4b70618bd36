//! Is this machine's handling of TIME_WAIT and ports in order? One check for each setting, counter and kind of socket:
//! what it is, what it does and does not do, and a finding where the evidence carries one.
//!
//! A setting that differs from the kernel's default is no fault. A warning says that something fails now, has failed, or
//! will fail at the next start of a program, and has the number that shows it.

mod caller;
mod conntrack;
mod destinations;
mod ports;
mod settings;
mod sockets;
mod timewait;

use std::time::Duration;

use crate::model::command::{Help, Shell};
use crate::model::health::Health;
use crate::model::setting::Sysctl;

pub use destinations::Outbound;

/// What a check comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// Something fails, has failed, or will.
    Warning,
    /// What the check is about could not be read.
    Unknown,
    /// Nothing fails, and it is worth knowing.
    Note,
    /// In order.
    Ok,
}

impl Status {
    /// Every status, the gravest first.
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

/// A value or a piece of evidence, as JSON has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Datum {
    /// Not known, or there is none.
    Unknown,
    /// A number; every counter and every setting fits.
    Number(i128),
    /// A text.
    Text(String),
    /// Several.
    List(Vec<Self>),
    /// Several with names.
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

/// What is always true of a check, whatever is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The name that scripts see.
    pub id: &'static str,
    /// What the setting does, or what is counted.
    pub does: &'static str,
    /// What it does not do, although it is often said to.
    pub does_not: &'static str,
    /// Where that is written: man page sections, RFC sections, files of the kernel's documentation or source.
    pub sources: &'static [&'static str],
}

impl Subject {
    /// The subject of a setting that has a check.
    fn of_setting(setting: &Sysctl) -> Self {
        let Sysctl { name, check, does, does_not, sources, .. } = setting;
        Self { id: check.unwrap_or(name), does, does_not, sources }
    }
}

/// One check and what it found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What it is about.
    pub subject: Subject,
    /// What it comes to.
    pub status: Status,
    /// The setting's value, the counter, the number of sockets.
    pub value: Datum,
    /// The kernel's own default for it; unknown where there is none or it cannot be computed.
    pub default: Datum,
    /// A sentence with the numbers.
    pub finding: Option<String>,
    /// The numbers that the finding rests on.
    pub evidence: Vec<(&'static str, Datum)>,
    /// What helps.
    pub help: Help,
}

impl Check {
    /// A check in order, with nothing to say.
    fn ok(subject: Subject, value: Datum, default: Datum) -> Self {
        Self { subject, status: Status::Ok, value, default, finding: None, evidence: vec![], help: Help::default() }
    }

    /// The same with a finding.
    fn found(self, status: Status, finding: impl Into<String>) -> Self {
        Self { status, finding: Some(finding.into()), ..self }
    }

    /// The same with a number that the finding rests on.
    fn with(mut self, name: &'static str, datum: impl Into<Datum>) -> Self {
        self.evidence.push((name, datum.into()));
        self
    }

    /// The same with more help.
    fn helped_by(mut self, help: Help) -> Self {
        self.help.append(help);
        self
    }

    /// The same with a sentence of advice.
    fn advising(mut self, advice: impl Into<String>) -> Self {
        self.help.advice.push(advice.into());
        self
    }
}

/// From when on a silent socket in CLOSE_WAIT counts, and how many of one owner are a leak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leak {
    /// How long the peer must have been silent.
    pub silent: Duration,
}

impl Leak {
    /// So many silent sockets of one process are called a leak. One may be meant (a peer that only sends may close its
    /// half and wait for the answer); ten at once, each without an ACK for so long, are a missing close().
    pub const SOCKETS: usize = 10;
}

/// Makes every check, in a fixed order. An error in `outbound` says why nothing is known of it; `shell` is where the reader
/// types the commands.
#[must_use]
pub fn examine(health: &Health, outbound: Result<Outbound, &str>, leak: Leak, shell: &Shell) -> Vec<Check> {
    let mut checks = settings::checks(health, shell);
    checks.push(conntrack::check(health));
    checks.push(destinations::check(outbound, &health.facts, shell));
    checks.extend(sockets::checks(health, leak, shell));
    checks.extend(caller::checks(health));
    checks
}

#[cfg(test)]
mod tests;
