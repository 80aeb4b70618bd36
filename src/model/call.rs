//! A bind, listen or connect call of a watched program: its address, the socket, and the result.
//!
//! All values were read before the program continued. `None` means that a value could not be read, unless the comment of its
//! field says something else.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::time::Duration;

use super::bind::{Attempt, BindAddr, CallResult, Cause, Errno, ReuseOptions};
use super::command::quoted;
use super::port::Port;

/// The system calls that `twtool why` reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names of the calls")]
pub enum CallName {
    Bind,
    Listen,
    Connect,
}

impl CallName {
    /// The name of the call.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bind => "bind",
            Self::Listen => "listen",
            Self::Connect => "connect",
        }
    }
}

/// Why the address or the socket of a call could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnreadReason {
    /// The text of the error.
    pub text: String,
    /// Whether twtool lacks a permission.
    pub not_permitted: bool,
}

/// A watched call that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketCall {
    /// The call.
    pub name: CallName,
    /// The result that the program gets. EINPROGRESS counts as success.
    pub result: CallResult,
    /// The address in the call; for listen() the local address of the socket.
    pub addr: Option<CalledAddr>,
    /// The socket before the call.
    pub socket: Option<CalledSocket>,
    /// Why the address or the socket could not be read; `None` if both were read.
    pub unread: Option<UnreadReason>,
    /// The process that made the call.
    pub process: CallingProcess,
    /// When the call ended, since the start of the watch.
    pub at: Duration,
}

impl SocketCall {
    /// The errno, if the call failed.
    #[must_use]
    pub const fn errno(&self) -> Option<Errno> {
        match self.result {
            CallResult::Ok => None,
            CallResult::Failed(errno) => Some(errno),
        }
    }

    /// Converts a bind or listen call to the attempt of a bind test, so that the same rules find its cause. `None` if its address
    /// or socket is unknown. `device` is the index of the interface that the socket is bound to.
    #[must_use]
    pub fn as_attempt(&self, device: Option<NonZeroU32>) -> Option<Attempt> {
        let (addr, socket) = (self.addr.as_ref()?, self.socket.as_ref()?);
        let scope = NonZeroU32::new(addr.scope);
        let (bind, listen) = match self.name {
            CallName::Listen => (CallResult::Ok, Some(self.result)),
            CallName::Bind | CallName::Connect => (self.result, None),
        };
        let at = BindAddr { addr: addr.addr, scope };
        Some(Attempt {
            at,
            options: socket.reuse,
            v6only: socket.v6only,
            device: device.or(scope),
            blocked_by_own_socket: false,
            bind,
            listen,
            bound: None,
        })
    }
}

/// Why a call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallCause {
    /// A cause that `bind-test` also reports.
    Port(Cause),
    /// connect() found no free port for this destination.
    Exhausted,
    /// Another connection has the same addresses and ports.
    AddressInUse,
    /// There is no route to the destination.
    NoRoute,
    /// The socket is bound already.
    AlreadyBound,
    /// The socket is not a TCP socket. TCP and UDP have separate ports.
    NotTcp,
}

impl CallCause {
    /// The name that scripts see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Port(cause) => cause.name(),
            Self::Exhausted => "exhausted",
            Self::AddressInUse => "address-in-use",
            Self::NoRoute => "no-route",
            Self::AlreadyBound => "already-bound",
            Self::NotTcp => "not-tcp",
        }
    }
}

/// An Internet address in a call.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CalledAddr {
    /// The address; IPv4-mapped stays IPv6.
    pub addr: IpAddr,
    /// The port.
    pub port: Port,
    /// The index of the interface in `sin6_scope_id`; 0 for none.
    pub scope: u32,
}

/// The options and the local address of a socket when the call began.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a socket option")]
pub struct CalledSocket {
    /// Whether it is an `AF_INET6` socket.
    pub ipv6: bool,
    /// `SO_TYPE`: `stream`, `dgram`, or `other`.
    pub kind: &'static str,
    /// `SO_PROTOCOL`: `tcp`, `udp`, `mptcp`, or a number.
    pub protocol: String,
    /// SO_REUSEADDR and SO_REUSEPORT.
    pub reuse: ReuseOptions,
    /// IPV6_V6ONLY.
    pub v6only: bool,
    /// IP_FREEBIND or IPV6_FREEBIND.
    pub freebind: bool,
    /// IP_TRANSPARENT or IPV6_TRANSPARENT.
    pub transparent: bool,
    /// IP_BIND_ADDRESS_NO_PORT.
    pub bind_address_no_port: bool,
    /// The interface of SO_BINDTODEVICE; `None` if the socket has none.
    pub device: Option<String>,
    /// The local address, if the socket was bound.
    pub local: Option<SocketAddr>,
}

impl CalledSocket {
    /// Whether it is a TCP or MPTCP socket. MPTCP uses TCP's ports.
    #[must_use]
    pub fn uses_tcp(&self) -> bool {
        self.protocol == "tcp" || self.protocol == "mptcp"
    }

    /// The names of the options that are set.
    #[must_use]
    pub fn options(&self) -> Vec<&'static str> {
        let ip = |v4, v6| if self.ipv6 { v6 } else { v4 };
        let others = [
            (self.v6only, "IPV6_V6ONLY"),
            (self.device.is_some(), "SO_BINDTODEVICE"),
            (self.freebind, ip("IP_FREEBIND", "IPV6_FREEBIND")),
            (self.transparent, ip("IP_TRANSPARENT", "IPV6_TRANSPARENT")),
            (self.bind_address_no_port, "IP_BIND_ADDRESS_NO_PORT"),
        ];
        let others = others.into_iter().filter_map(|(set, name)| set.then_some(name));
        self.reuse.names().into_iter().chain(others).collect()
    }

    /// The options in a sentence: `SO_REUSEADDR and IPV6_V6ONLY`, `no option`.
    #[must_use]
    pub fn options_text(&self) -> String {
        let name = |name: &'static str| match (&self.device, name) {
            (Some(device), "SO_BINDTODEVICE") => format!("SO_BINDTODEVICE {}", quoted(device)),
            _ => name.to_owned(),
        };
        let names: Vec<String> = self.options().into_iter().map(name).collect();
        match names.split_last() {
            None => "no option".into(),
            Some((last, [])) => last.clone(),
            Some((last, first)) => format!("{} and {last}", first.join(", ")),
        }
    }
}

/// The process that made a call, as it was when the call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallingProcess {
    /// Its pid in the pid namespace of twtool.
    pub pid: i32,
    /// The thread that made the call.
    pub tid: i32,
    /// The command name of the thread. The process chooses it, so escape it for a terminal.
    pub comm: String,
    /// The effective user.
    pub uid: Option<u32>,
    /// Whether the process runs a program with a set-user-ID bit, a set-group-ID bit or file capabilities that has no privilege because
    /// twtool watches it.
    pub lost_privilege: bool,
    /// The inode of its network namespace.
    pub netns: Option<u64>,
    /// Whether no_new_privs is set, so that execve(2) gives no privilege (prctl(2)).
    pub no_new_privs: Option<bool>,
    /// Whether CAP_NET_BIND_SERVICE is in its effective set.
    pub cap_net_bind_service: Option<bool>,
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProgramEnd {
    /// The program exited with this status.
    Exited(u8),
    /// This signal ended the program.
    Signaled(i32),
}

impl ProgramEnd {
    /// The exit status as a shell reports it: 128+N after signal N.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Exited(code) => code,
            Self::Signaled(signal) => u8::try_from(128 + signal).unwrap_or(u8::MAX),
        }
    }
}

/// Why the program could not be watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnwatchableReason {
    /// What the kernel refused, and why.
    pub why: String,
    /// What would allow twtool to watch the program.
    pub hint: &'static str,
}

/// A fact about the watch itself that the user should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchNote {
    /// A process uses io_uring. twtool does not see its bind, listen and connect calls.
    IoUring(CallingProcess),
    /// A program with a set-user-ID bit, a set-group-ID bit or file capabilities runs without its privilege because twtool watches it.
    PrivilegeLost {
        /// The process that executed the program.
        process: CallingProcess,
        /// The path of the program.
        program: String,
        /// Whether the program has file capabilities. Otherwise it is a set-user-ID or set-group-ID program.
        capabilities: bool,
    },
    /// The command has ended, but other processes that it started still run.
    RunsOn {
        /// How the command ended.
        end: ProgramEnd,
        /// The number of these processes.
        processes: usize,
        /// Whether the processes have a seccomp filter that only works while twtool watches them.
        filtered: bool,
        /// Whether twtool detaches when one of the processes listens.
        detach: bool,
    },
    /// Every system call of the program stops it, so it runs slowly.
    Slow(SlowReason),
    /// twtool has detached from the program, which continues to run.
    Detached,
}

/// Why every system call stops the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlowReason {
    /// The program was already running: `--pid`.
    Running,
    /// twtool will detach from the program: `--detach`.
    Detach,
    /// No seccomp filter can be installed here.
    NoFilter,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_have_the_names_of_the_address_family() {
        let socket = CalledSocket {
            ipv6: true,
            kind: "stream",
            protocol: "tcp".into(),
            reuse: ReuseOptions::REUSEADDR,
            v6only: true,
            freebind: true,
            transparent: false,
            bind_address_no_port: false,
            device: Some("eth0".into()),
            local: None,
        };
        assert_eq!(socket.options_text(), "SO_REUSEADDR, IPV6_V6ONLY, SO_BINDTODEVICE eth0 and IPV6_FREEBIND");
        let plain = CalledSocket { reuse: ReuseOptions::NONE, v6only: false, freebind: false, device: None, ..socket };
        assert_eq!((plain.options_text().as_str(), plain.options().len()), ("no option", 0));
    }

    #[test]
    fn an_exit_status_equals_the_status_that_a_shell_reports() {
        assert_eq!(
            [ProgramEnd::Exited(7), ProgramEnd::Signaled(15), ProgramEnd::Signaled(64)].map(ProgramEnd::code),
            [7, 143, 192]
        );
    }
}
