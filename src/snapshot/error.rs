//! The errors of [`Snapshot`](super::Snapshot).

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::filter::parser::FilterError;
use crate::model::facts::Setting;
use crate::sock_diag::destroy::DestroyError;
use crate::source::SourceError;
use crate::sys::bind::AttemptError;
use crate::sys::netns::NetnsError;

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// A value that its argument does not accept, or that does not exist in this network namespace.
    #[error(transparent)]
    Value(#[from] BadValue),
    /// A filter expression with a mistake.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// A filter tests something that the source does not report.
    #[error("the filter cannot be evaluated: {0}")]
    FilterNotEvaluable(&'static str),
    /// The sockets could not be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A bind attempt could not be made.
    #[error(transparent)]
    Attempt(#[from] AttemptError),
    /// No socket could be destroyed.
    #[error(transparent)]
    Destroy(#[from] DestroyError),
    /// A setting that the answer needs could not be read.
    #[error("{} could not be read", .0.name())]
    Unread(Setting),
    /// The look-up of a route to this destination failed.
    #[error("connect() to {to} would fail: {source}{}", if *lacks_scope { NO_SCOPE } else { "" })]
    Unreachable {
        /// The destination.
        to: String,
        /// The errno of the route look-up.
        source: io::Error,
        /// Whether the destination is a link-local address without its interface.
        lacks_scope: bool,
    },
    /// A network namespace could not be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// No network namespace was found.
    #[error("no network namespace could be found{}{}", if .0.is_empty() { "" } else { ": " }, .0.join("; "))]
    NoNamespace(Vec<String>),
    /// The observer of a wait could not write its report.
    #[error(transparent)]
    Observer(io::Error),
    /// A signal could not be blocked, received or delivered, a thread could not be started, or a route could not be looked up.
    #[error("{action} failed: {source}")]
    System {
        /// What failed, for example `waiting for signals`.
        action: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// There is no answer, so an existing recording is not replaced.
    #[error("{failure}; the existing recording '{}' is not replaced", path.display())]
    NotReplaced {
        /// Why there is no answer.
        failure: Box<Self>,
        /// The file.
        path: PathBuf,
    },
    /// A recording cannot answer the question.
    #[error(
        "a recording contains only the sockets and facts for list and summary; only the kernel can answer this \
         question"
    )]
    NotRecorded,
    /// Closes cannot be traced.
    #[cfg(feature = "trace")]
    #[error("closes cannot be traced: {0}")]
    Trace(#[from] crate::trace::TraceError),
    /// The question needs exactly one network namespace.
    #[error("this question needs exactly one network namespace")]
    OneNamespace,
}

impl SnapshotError {
    /// Converts the failure of an auxiliary system call (signals, threads, route look-up) to an error.
    pub(super) fn system(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { action, source }
    }

    /// What the user can do about the error.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Source(error) => error.hint(),
            Self::Attempt(error) => error.hint(),
            Self::Destroy(error) => error.hint(),
            Self::Netns(error) => error.hint(),
            Self::NotReplaced { failure, .. } => failure.hint(),
            #[cfg(feature = "trace")]
            Self::Trace(error) if error.is_about_privilege() => Some(
                "BPF needs CAP_BPF and CAP_PERFMON in the initial user namespace (or root there). A sandbox or a container can \
                 refuse bpf(2) even to root",
            ),
            _ => None,
        }
    }

    /// Whether closes cannot be traced because the kernel refused bpf(2), usually because a capability is missing.
    #[cfg(feature = "trace")]
    #[must_use]
    pub const fn lacks_privilege(&self) -> bool {
        matches!(self, Self::Trace(error) if error.is_about_privilege())
    }

    /// Whether an argument caused the error, so that another one can succeed.
    #[must_use]
    pub const fn is_about_the_selection(&self) -> bool {
        matches!(self, Self::Value(_) | Self::Filter(_) | Self::FilterNotEvaluable(_))
    }

    /// Whether the kernel reported that no connection is possible. A lack of memory is not such a report.
    pub(super) fn is_answer_about_route(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
}

/// The part of a message that explains why no route leads to a link-local address without a scope.
const NO_SCOPE: &str = "; a link-local address needs its interface as scope, like fe80::1%eth0 (ipv6(7))";

/// A value that its argument does not accept.
#[derive(Debug)]
pub struct BadValue {
    value: String,
    argument: String,
    why: String,
}

impl BadValue {
    /// Makes the error from the value, the argument that it was given for, and the reason.
    #[must_use]
    pub fn new(value: &dyn fmt::Display, argument: &str, why: &str) -> Self {
        Self { value: value.to_string(), argument: argument.to_owned(), why: why.to_owned() }
    }
}

impl std::error::Error for BadValue {}

impl fmt::Display for BadValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { value, argument, why } = self;
        write!(f, "invalid value '{value}' for '{argument}': {}", without_value(value, why))
    }
}

/// Removes the value from the beginning of a reason, because the message has already named it.
#[must_use]
pub fn without_value<'a>(value: &str, why: &'a str) -> &'a str {
    why.strip_prefix(&format!("'{value}' is ")).unwrap_or(why)
}
