//! A close of a connection by this machine, and the process that closed it.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::SystemTime;

use super::container::Container;
use super::process::unit_of_cgroup;
use super::socket::{Cookie, FourTuple};
use super::user::User;

/// What a socket leaves in the kernel when it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// A bucket in TIME_WAIT.
    TimeWait,
    /// A bucket in FIN_WAIT_2: the peer has not closed yet. This can be wrong: if the maximum of buckets is reached, the kernel makes no
    /// bucket, and the record of the close is the same.
    FinWait2,
    /// No bucket: the connection ended with an error, for example a RST, or TCP_LINGER2 is below 0.
    Aborted,
    /// Not known.
    Unknown,
}

impl Outcome {
    /// The name that scripts see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::TimeWait => "time-wait",
            Self::FinWait2 => "fin-wait-2",
            Self::Aborted => "aborted",
            Self::Unknown => "unknown",
        }
    }
}

/// Which end opened the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// The peer opened it, and a listener on this machine accepted it. For [`Method::Sampled`] this is an inference from listeners.
    Accepted,
    /// This end opened it with connect(). This is an inference from ports, and for [`Method::Sampled`] also from listeners.
    Connected,
    /// Not known.
    Unknown,
}

impl Role {
    /// The name that scripts see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Connected => "connected",
            Self::Unknown => "unknown",
        }
    }
}

/// How the process that closed a connection was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// A BPF program saw the close.
    Bpf,
    /// A sample of the open sockets, which twtool takes repeatedly, contained the socket and its process.
    Sampled,
}

impl Method {
    /// The name that scripts see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bpf => "bpf",
            Self::Sampled => "sampled",
        }
    }
}

/// The facts of a process that closed connections. They are the same for all closes of the process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MakerFacts {
    /// Its pid. See [`MakerFacts::own_pid_namespace`].
    pub pid: u32,
    /// Whether the pid belongs to the pid namespace of twtool. If not, it belongs to the initial pid namespace.
    pub own_pid_namespace: bool,
    /// Its name. The process chooses it, so escape it for a terminal.
    pub comm: String,
    /// Its arguments, if the process still ran and the caller may read them.
    pub cmdline: Option<Vec<String>>,
    /// The path of its cgroup, or only the last component of the path.
    pub cgroup: Option<String>,
    /// Whether it is a thread of the kernel.
    pub kernel: bool,
}

impl MakerFacts {
    /// The systemd unit in the path of its cgroup.
    #[must_use]
    pub fn unit(&self) -> Option<&str> {
        unit_of_cgroup(self.cgroup.as_deref()?)
    }

    /// The container in the path of its cgroup.
    #[must_use]
    pub fn container(&self) -> Option<Container<'_>> {
        Container::of_cgroup(self.cgroup.as_deref()?)
    }
}

/// The process that closed a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Maker {
    /// The process.
    pub facts: Arc<MakerFacts>,
    /// The tid of the thread that closed the connection. It can be a worker thread of io_uring.
    pub tid: u32,
    /// The name of the thread.
    pub thread: String,
    /// The user of the thread.
    pub user: User,
}

/// One close of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Close {
    /// When this end closed. If the process is not known, when the socket ended.
    pub at: SystemTime,
    /// The inode number of the network namespace.
    pub netns: u64,
    /// The cookie of the socket, which its bucket inherits.
    pub cookie: Option<Cookie>,
    /// Both ends.
    pub tuple: FourTuple,
    /// The interface that the socket was bound to, by index.
    pub interface: Option<NonZeroU32>,
    /// `SO_MARK`, if it is known.
    pub mark: Option<u32>,
    /// What the socket left.
    pub outcome: Outcome,
    /// Which end opened the connection.
    pub role: Role,
    /// The process that closed it, if it is known.
    pub maker: Option<Maker>,
    /// How the process was found.
    pub method: Method,
}

/// The numbers of closes that a trace has seen and missed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CloseTotals {
    /// The closes that were seen in the selected network namespaces, whether the filter accepts them or not.
    pub seen: u64,
    /// The closes whose process is known.
    pub named: u64,
    /// Closes that twtool could not read in time.
    pub lost: u64,
    /// An upper bound of the closes that the BPF program missed, because it was already running on the same core.
    pub skipped: u64,
}
