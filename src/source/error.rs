//! Why a source cannot be read, and what the user can do about it.

use std::io;

use super::recording::RecordingError;
use crate::sock_diag::dump::DumpError;
use crate::sock_diag::lookup::LookupError;
use crate::sock_diag::transport::ReplayError;
use crate::sys::errno::FailureClass;

/// Why a source cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The netlink socket could not be opened.
    #[error("opening a sock_diag netlink socket failed: {0}")]
    Open(io::Error),
    /// /proc/net/tcp or tcp6 could not be read. The error names the file.
    #[error("reading {0}")]
    Procfs(io::Error),
    /// The dump failed.
    #[error(transparent)]
    Dump(#[from] DumpError),
    /// The look-up of one socket failed.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// The recording could not be read or written.
    #[error(transparent)]
    Recording(#[from] RecordingError),
}

impl SourceError {
    /// What the user can do about the error.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Open(error) if FailureClass::of(error).is_definite() => Some(
                "the kernel or a sandbox refuses NETLINK_SOCK_DIAG; in a container, its seccomp profile must allow \
                 AF_NETLINK sockets",
            ),
            Self::Dump(DumpError::Refused { errno, .. }) if errno.kind() == io::ErrorKind::NotFound => {
                Some("the kernel's tcp_diag module is not loaded; as root on the host: modprobe tcp_diag")
            }
            Self::Dump(DumpError::Send { source, .. }) if replay_error(source) == Some(ReplayError::NotRecorded) => {
                Some("record again with the options of the replay")
            }
            _ => None,
        }
    }

    /// Whether sock_diag is absent or refused, so that the source may fall back to procfs. After any other failure a
    /// second attempt with sock_diag may succeed, and procfs reports less.
    pub(super) fn refuses_sock_diag(&self) -> bool {
        match self {
            Self::Open(error)
            | Self::Dump(DumpError::Send { source: error, .. } | DumpError::Refused { errno: error, .. }) => {
                FailureClass::of(error).is_definite()
            }
            _ => false,
        }
    }
}

fn replay_error(error: &io::Error) -> Option<ReplayError> {
    error.get_ref()?.downcast_ref().copied()
}
