//! Defines the errors of network namespaces.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt as _;

use crate::model::health::Capability;
use crate::model::name::text_of;
use crate::sys::capabilities;
use crate::sys::errno::FailureClass;
use crate::sys::folder::ProcGap;

/// The error for a network namespace that cannot be opened or entered.
#[derive(Debug, thiserror::Error)]
#[error("network namespace '{word}': {why}")]
pub struct NetnsError {
    /// The typed argument, or the name of the namespace.
    pub word: String,
    /// The reason.
    pub why: NetnsErrorKind,
}

/// The reason why a network namespace cannot be opened or entered.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages describe the variants")]
pub enum NetnsErrorKind {
    #[error("/run/netns does not have this name; {}", list_names(.0))]
    NoSuchName(io::Result<Vec<OsString>>),
    #[error("no process is in a container with such an id; {}", containers(.0))]
    NoSuchContainer(Vec<String>),
    #[error("several containers have an id that begins like this: {}", .0.join(", "))]
    SeveralContainers(Vec<String>),
    #[error("the containers cannot be searched: {0}")]
    NotSearched(io::Error),
    #[error("this process does not exist")]
    NoSuchProcess,
    #[error("this process does not exist, or it is hidden: {0}")]
    NotVisible(ProcGap),
    #[error("that process has ended and has no network namespace any more")]
    ProcessEnded,
    #[error("the namespace is gone, and only a plain file in /run/netns remains")]
    MountGone,
    #[error("that is not a network namespace, but {0}")]
    NotNetns(String),
    #[error("the namespace is gone")]
    Gone,
    #[error("the namespace cannot be opened: {0}")]
    NotOpened(io::Error),
    #[error("the name of the namespace cannot be determined: {0}")]
    Unnamed(io::Error),
    #[error("the namespace cannot be entered: {0}")]
    NotEntered(io::Error),
    #[error("no thread can be started in the namespace: {0}")]
    NoThread(io::Error),
}

fn list_names(names: &io::Result<Vec<OsString>>) -> String {
    match names {
        Ok(names) if names.is_empty() => "it has no names".into(),
        Ok(names) => {
            let names: Vec<String> = names.iter().map(|name| text_of(name.as_bytes())).collect();
            format!("it has {}", names.join(", "))
        }
        Err(error) => format!("its names cannot be listed: {error}"),
    }
}

fn containers(names: &[String]) -> String {
    if names.is_empty() {
        "no process is in any container".into()
    } else {
        format!("the containers with processes are: {}", names.join(", "))
    }
}

impl NetnsError {
    /// Whether the namespace does not exist any more.
    #[must_use]
    pub const fn is_gone(&self) -> bool {
        matches!(self.why, NetnsErrorKind::Gone)
    }

    pub(super) fn new(word: &impl ToString, why: NetnsErrorKind) -> Self {
        Self { word: word.to_string(), why }
    }

    /// Advice for the user, if there is any.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match &self.why {
            NetnsErrorKind::NotEntered(error) if error.kind() == io::ErrorKind::PermissionDenied => Some(
                "setns(2) needs CAP_SYS_ADMIN in the user namespace that owns the network namespace, and in the user \
                 namespace of twtool. Root of the host has both. For a rootless container, the user of the container \
                 can run twtool inside: `nsenter -t PID -U --preserve-credentials -n twtool ...`",
            ),
            NetnsErrorKind::NotOpened(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                Some(who_reads_namespaces())
            }
            NetnsErrorKind::NoSuchContainer(_) => Some(
                "twtool finds a container through the cgroups of its processes, and does not ask the container \
                 runtime. So the container must run. A rootless container without systemd has no cgroup of its own; \
                 --netns PID works for every container",
            ),
            NetnsErrorKind::SeveralContainers(_) => Some("type more digits of the id"),
            NetnsErrorKind::MountGone => Some("`ip netns delete NAME` removes the remaining file"),
            _ => None,
        }
    }
}

/// Advice on how to read the namespaces of other users' processes. It must not name a privilege that the caller already has.
pub(super) fn who_reads_namespaces() -> &'static str {
    if capabilities::effective().is_ok_and(|held| held.has(Capability::SysPtrace)) {
        "twtool has CAP_SYS_PTRACE here, so either the process belongs to another user namespace, or a security policy of this \
         machine refuses the access"
    } else {
        "root, or a process with CAP_SYS_PTRACE, can read every /proc/PID/ns/net"
    }
}

/// If a process ends while its folder in /proc is open, the kernel returns ESRCH.
pub(super) fn is_absent(error: &io::Error) -> bool {
    FailureClass::of(error) == FailureClass::Absent
}
