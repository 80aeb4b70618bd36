//! The types of a bind test: options, addresses, attempts and their results, the sockets on the port (*holders*), verdict
//! and cause.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU32;

use super::facts::Facts;
use super::port::Port;
use super::process::Owners;
use super::row::Direction;
use super::socket::Socket;
use super::user::User;

/// The options that a program sets on a socket before bind() so that the socket can share its port (socket(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReuseOptions {
    /// `SO_REUSEADDR`.
    pub reuseaddr: bool,
    /// `SO_REUSEPORT`.
    pub reuseport: bool,
}

impl ReuseOptions {
    /// No option: a plain bind.
    pub const NONE: Self = Self { reuseaddr: false, reuseport: false };
    /// `SO_REUSEADDR` alone, as most servers set it.
    pub const REUSEADDR: Self = Self { reuseaddr: true, reuseport: false };
    /// `SO_REUSEPORT` alone.
    pub const REUSEPORT: Self = Self { reuseaddr: false, reuseport: true };
    /// Both options.
    pub const BOTH: Self = Self { reuseaddr: true, reuseport: true };
    /// Every set of options, in the order of the output.
    pub const ALL: [Self; 4] = [Self::NONE, Self::REUSEADDR, Self::REUSEPORT, Self::BOTH];

    /// The documented result of bind() and listen() with these options, if the port has a TIME_WAIT bucket and `old` are the options
    /// of the socket that the bucket replaced. The bind works only if both sockets have an option in common (socket(7)).
    #[must_use]
    pub const fn over_time_wait_of(self, old: Self) -> CallResult {
        if self.reuseaddr && old.reuseaddr || self.reuseport && old.reuseport {
            CallResult::Ok
        } else {
            CallResult::Failed(Errno::AddrInUse)
        }
    }

    /// The names of the options that are set.
    #[must_use]
    pub fn names(self) -> Vec<&'static str> {
        [(self.reuseaddr, "SO_REUSEADDR"), (self.reuseport, "SO_REUSEPORT")]
            .into_iter()
            .filter_map(|(set, name)| set.then_some(name))
            .collect()
    }
}

/// The form for a sentence: `no option`, `SO_REUSEADDR and SO_REUSEPORT`.
impl fmt::Display for ReuseOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::NONE { f.write_str("no option") } else { f.write_str(&self.names().join(" and ")) }
    }
}

/// The options of a server, except its reuse options and its addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a socket option")]
pub struct ServerSetup {
    /// `IPV6_V6ONLY` of IPv6 sockets; `None`: the value of `net.ipv6.bindv6only`.
    pub v6only: Option<bool>,
    /// The device that the server binds its sockets to (`SO_BINDTODEVICE`), by index.
    pub device: Option<NonZeroU32>,
    /// `IP_FREEBIND`: bind an address that does not exist yet.
    pub freebind: bool,
    /// `IP_TRANSPARENT`: bind an address of another machine.
    pub transparent: bool,
    /// Multipath TCP sockets (`IPPROTO_MPTCP`).
    pub mptcp: bool,
    /// The user that the server runs as; `None`: the caller.
    pub user: Option<UserIds>,
    /// Whether the server keeps the sockets of all its addresses open at the same time, and listens on them.
    pub together: bool,
}

/// The uid and the gid of a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserIds {
    /// The user.
    pub uid: u32,
    /// Its primary group, if /etc/passwd has the user.
    pub gid: Option<u32>,
}

/// An option that the user did not specify for a bind test. twtool also tests the port with another value of this option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnspecifiedOption {
    /// `IPV6_V6ONLY` with this value.
    V6only(bool),
    /// `IP_FREEBIND`.
    Freebind,
}

impl UnspecifiedOption {
    /// The arguments that select this value of the option.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::V6only(true) => "--v6only yes",
            Self::V6only(false) => "--v6only no",
            Self::Freebind => "--freebind",
        }
    }
}

/// The verdict and the cause with another value of an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OtherVerdict {
    /// The option.
    pub option: UnspecifiedOption,
    /// The verdict with it.
    pub verdict: Verdict,
    /// The cause with it.
    pub cause: Cause,
}

/// The result of one system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallResult {
    /// The call succeeded.
    Ok,
    /// The call failed with this errno.
    Failed(Errno),
}

/// An errno of a socket call, such as bind() or connect(). The ones that the analysis distinguishes have their own variants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the kernel's names, see bind(2)")]
pub enum Errno {
    AddrInUse,
    Access,
    AddrNotAvailable,
    FamilyNotSupported,
    /// Any other errno, by its symbolic name.
    Other(&'static str),
}

impl Errno {
    /// The symbolic name, for example `EADDRINUSE`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::AddrInUse => "EADDRINUSE",
            Self::Access => "EACCES",
            Self::AddrNotAvailable => "EADDRNOTAVAIL",
            Self::FamilyNotSupported => "EAFNOSUPPORT",
            Self::Other(name) => name,
        }
    }
}

impl CallResult {
    /// `ok`, or the errno's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed(errno) => errno.name(),
        }
    }
}

/// An address on which a bind is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BindAddr {
    /// The address; IPv4-mapped stays `AF_INET6`.
    pub addr: IpAddr,
    /// The scope of a link-local address.
    pub scope: Option<NonZeroU32>,
}

impl BindAddr {
    /// `IPv4` or `IPv6`: the family of the socket that a bind to this address needs.
    #[must_use]
    pub const fn family(&self) -> &'static str {
        if self.addr.is_ipv6() { "IPv6" } else { "IPv4" }
    }

    /// The address with its scope by name, as `--addr` takes it.
    #[must_use]
    pub fn text(self, facts: &Facts) -> String {
        match self.scope {
            Some(scope) => format!("{}%{}", self.addr, facts.interface_name(scope)),
            None => self.addr.to_string(),
        }
    }

    /// Whether this is a link-local IPv6 address without an interface. The kernel needs an interface for such an address (ipv6(7)).
    #[must_use]
    pub fn lacks_scope(&self) -> bool {
        self.scope.is_none() && matches!(self.addr, IpAddr::V6(v6) if v6.is_unicast_link_local())
    }
}

/// One bind attempt and its results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The address.
    pub at: BindAddr,
    /// The options.
    pub options: ReuseOptions,
    /// Whether the socket had IPV6_V6ONLY (false for IPv4).
    pub v6only: bool,
    /// The device that the socket was bound to, by SO_BINDTODEVICE or by the scope of the address.
    pub device: Option<NonZeroU32>,
    /// Whether the bind fails only because the same server already has another of its addresses open.
    pub blocked_by_own_socket: bool,
    /// The result of bind(); of socket() if the family is not supported.
    pub bind: CallResult,
    /// The result of listen(), if it was requested and bind() succeeded.
    pub listen: Option<CallResult>,
    /// The port that the socket got, if bind() succeeded.
    pub bound: Option<Port>,
}

impl Attempt {
    /// The result of the first call that failed, or ok.
    #[must_use]
    pub fn outcome(&self) -> CallResult {
        match self.bind {
            CallResult::Ok => self.listen.unwrap_or(CallResult::Ok),
            failed @ CallResult::Failed(_) => failed,
        }
    }
}

/// The state of the kernel's SO_REUSEPORT note (`fastreuseport` in `struct inet_bind_bucket`) after a test. While the kernel
/// has the note, it does not check SO_REUSEPORT binds on the port for conflicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ReuseportNote {
    /// Binds have the same result as without the test.
    Unchanged,
    /// A bind with SO_REUSEPORT worked because of the note of a server on the port. The test cleared that note, and the same
    /// bind fails now.
    Lost,
    /// The test left a note, and no bind could clear it. Until a bind without SO_REUSEPORT works on the port, the kernel may allow a
    /// second server of the same user.
    Left,
}

impl ReuseportNote {
    /// The warning for the user, if there is one.
    #[must_use]
    pub const fn warning(self) -> Option<&'static str> {
        match self {
            Self::Unchanged => None,
            Self::Lost => Some(
                "the test cleared the kernel's note of an earlier SO_REUSEPORT bind on this port (fastreuseport). \
                 While the kernel had the note, it did not check further SO_REUSEPORT binds for conflicts. A server \
                 with SO_REUSEPORT whose bind worked before gets EADDRINUSE from now on",
            ),
            Self::Left => Some(
                "the kernel keeps the note of a SO_REUSEPORT bind of the test on this port (fastreuseport), because \
                 the sockets on the port prevent every bind that would clear the note. Until a bind without SO_REUSEPORT \
                 works, the kernel may allow a second server of this user, and the results for SO_REUSEPORT may be \
                 wrong (with CAP_NET_ADMIN twtool can clear the note)",
            ),
        }
    }
}

/// A socket that has the tested port as its local port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The socket as the kernel reports it.
    pub socket: Socket,
    /// Which end opened the connection of the socket; an inference.
    pub direction: Direction,
    /// The processes that have the socket open.
    pub owners: Owners,
    /// The user that created the socket; `None` for a bucket, and if the user is unknown.
    pub user: Option<User>,
    /// The cgroup in which the socket was created. twtool looks it up only if the processes are unknown, or if a systemd manager
    /// has the socket open.
    pub created_in: Option<String>,
    /// Whether the socket blocks the plain bind on at least one of the addresses.
    pub blocks: bool,
}

impl Holder {
    /// Makes a holder without a search for its owners: it has no processes, and its user has no name.
    #[must_use]
    pub fn of(socket: Socket, direction: Direction, blocks: bool) -> Self {
        let user = match socket {
            Socket::Full(full) => Some(User { uid: full.uid, name: None }),
            Socket::Bucket(_) => None,
        };
        Self { socket, direction, owners: Owners::Nobody, user, created_in: None, blocks }
    }
}

/// The verdict of a bind test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// A plain bind works.
    Free,
    /// A plain bind fails; a bind with the server's options works.
    Reusable,
    /// The bind also fails with the server's options.
    Blocked,
    /// The bind fails for a reason other than a port in use.
    Denied,
}

impl Verdict {
    /// The name that scripts see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Reusable => "reusable",
            Self::Blocked => "blocked",
            Self::Denied => "denied",
        }
    }
}

/// Why the plain bind fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names that scripts see, one to one")]
pub enum Cause {
    None,
    TimeWait,
    TimeWaitWithoutReuseaddr,
    Listener,
    Connection,
    Bound,
    PrivilegedPort,
    AddressNotLocal,
    FamilyUnsupported,
    OwnSocket,
    Unknown,
}

impl Cause {
    /// The name that scripts see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::TimeWait => "time-wait",
            Self::TimeWaitWithoutReuseaddr => "time-wait-without-reuseaddr",
            Self::Listener => "listener",
            Self::Connection => "connection",
            Self::Bound => "bound",
            Self::PrivilegedPort => "privileged-port",
            Self::AddressNotLocal => "address-not-local",
            Self::FamilyUnsupported => "family-unsupported",
            Self::OwnSocket => "own-socket",
            Self::Unknown => "unknown",
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An attempt without options, with this result of bind().
    pub(crate) fn attempt(addr: &str, bind: CallResult) -> Attempt {
        Attempt {
            at: BindAddr { addr: addr.parse().expect("an address"), scope: None },
            options: ReuseOptions::NONE,
            v6only: false,
            device: None,
            blocked_by_own_socket: false,
            bind,
            listen: None,
            bound: None,
        }
    }
}
