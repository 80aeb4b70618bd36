//! Explains why bind(), listen() or connect() failed in a watched program. The explanation uses the facts that twtool read while
//! the program was stopped.
//!
//! Whether another socket option would have helped is unknown, because twtool makes no bind of its own.

mod connect;
mod in_use;

use std::collections::BTreeSet;
use std::time::Duration;

use super::advice;
use super::capacity::{Conditions, Destination};
use super::next::{self, Failure};
use super::verdict;
use crate::model::bind::{Attempt, Cause, Errno, Holder, ServerSetup, Verdict};
use crate::model::call::{CallCause, CallName, CalledAddr, CalledSocket, SocketCall};
use crate::model::command::{Privilege, Shell, Step, Suggestions, quoted};
use crate::model::facts::Facts;

/// A failed call, with the facts that twtool read while the program was stopped.
#[derive(Clone, Copy, Debug)]
pub struct FailedCall<'a> {
    /// The call.
    pub call: &'a SocketCall,
    /// The bind or listen as an attempt of a bind test; `None` for a connect.
    pub attempt: Option<&'a Attempt>,
    /// The facts of the program's network namespace; `None` if they were not read.
    pub facts: Option<&'a Facts>,
    /// The sockets on the local port.
    pub holders: &'a [Holder],
    /// Whether the source of `holders` (sock_diag or procfs) lists sockets that are bound and do not listen.
    pub bound_sockets_are_listed: bool,
    /// The ports left for the destination of a connect(); `None` if twtool did not count them.
    pub ports_left: Option<PortsLeft<'a>>,
    /// The processes that are watched.
    pub watched: &'a BTreeSet<i32>,
    /// The effective user of twtool.
    pub uid: u32,
    /// The words of the watched command; empty if twtool watches a process that was already running.
    pub command: &'a [String],
    /// The shell in which twtool runs.
    pub shell: &'a Shell,
}

/// The ports left for a destination.
#[derive(Clone, Copy, Debug)]
pub enum PortsLeft<'a> {
    /// The destinations that match the call, with their free ports, and the conditions that are the same for all of them.
    Counted(&'a [Destination], Conditions<'a>),
    /// The kernel reports that no connection is possible, for this reason.
    Unreachable(&'a str),
}

/// Why a call failed, and what helps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The verdict; `None` if it is unknown.
    pub verdict: Option<Verdict>,
    /// The cause.
    pub cause: CallCause,
    /// The reason in a few words. It contains names of processes, so escape it for a terminal.
    pub headline: String,
    /// The time until the port is free, if only buckets block it.
    pub free_in: Option<Duration>,
    /// Whether watched processes own all blocking sockets, apart from sockets that no process can own; `None` if that is unknown. False if
    /// no process can own any of them.
    pub held_by_itself: Option<bool>,
    /// Commands that help now, lines for configuration files, and advice with reasons.
    pub help: Suggestions,
}

impl Explanation {
    fn new(verdict: Option<Verdict>, cause: CallCause, headline: impl Into<String>) -> Self {
        Self {
            verdict,
            cause,
            headline: headline.into(),
            free_in: None,
            held_by_itself: Some(false),
            help: Suggestions::default(),
        }
    }

    /// The explanation if the sockets of the program could not be read.
    #[must_use]
    pub fn unread(why: &str) -> Self {
        let headline = format!("the sockets of the program's network namespace could not be read: {why}");
        Self { held_by_itself: None, ..Self::new(None, CallCause::Port(Cause::Unknown), headline) }
    }
}

/// Whether twtool explains the failure of this call. It explains every failed bind() and listen(), and a connect() of a TCP socket if
/// the errno has a cause on this machine. It does not explain a refused connection or a timeout, whose cause is usually elsewhere.
#[must_use]
pub fn is_explained(call: &SocketCall) -> bool {
    let tcp = call.socket.as_ref().is_none_or(CalledSocket::uses_tcp);
    match (call.name, call.errno()) {
        (_, None) => false,
        (CallName::Bind | CallName::Listen, Some(_)) => true,
        // Many programs connect a UDP socket to find out which source address the kernel would use (RFC 6724). If that fails, they use
        // another address.
        (CallName::Connect, Some(errno)) => {
            tcp && matches!(
                errno,
                Errno::AddrInUse | Errno::AddrNotAvailable | Errno::Access | Errno::Other("ENETUNREACH" | "EPERM")
            )
        }
    }
}

/// Whether the errno of a connect() only reports the state of a connection, and not a failure.
#[must_use]
pub fn is_progress(call: &SocketCall) -> bool {
    call.name == CallName::Connect
        && matches!(call.errno(), Some(Errno::Other("EALREADY" | "EISCONN" | "EINPROGRESS" | "EAGAIN" | "EINTR")))
}

/// Explains why a call failed, and what helps.
#[must_use]
pub fn explain(failed: &FailedCall) -> Explanation {
    let FailedCall { call, .. } = *failed;
    let (Some(addr), Some(socket)) = (&call.addr, &call.socket) else {
        let why = call.unread.as_ref().map_or("unknown", |why| &why.text);
        let what = if call.addr.is_some() { "the socket" } else { "the address" };
        let mut explanation = Explanation::new(
            None,
            CallCause::Port(Cause::Unknown),
            format!("{what} of the call could not be read: {why}"),
        );
        let not_permitted = call.unread.as_ref().is_some_and(|why| why.not_permitted);
        explanation.help.advice.extend(not_permitted.then(|| {
            "The kernel does not let twtool read the process, for example because the process has changed its user, \
             or because its user has no permission to read the program file (ptrace(2), PR_SET_DUMPABLE). The errno \
             is certain. As root, twtool can read such processes."
                .into()
        }));
        return explanation;
    };
    if !socket.uses_tcp() {
        return not_tcp(failed, addr, socket);
    }
    let Some((facts, errno)) = failed.facts.zip(call.errno()) else {
        return Explanation::new(None, CallCause::Port(Cause::Unknown), "the reason is unknown");
    };
    let called = FailedTcpCall { failed: *failed, errno, facts, addr, socket };
    match (call.name, failed.attempt) {
        (CallName::Connect, _) | (_, None) => connect::explain(&called),
        (_, Some(attempt)) if errno == Errno::AddrInUse => in_use::explain(&called, attempt),
        (_, Some(attempt)) => explain_denial(&called, attempt),
    }
}

/// A failed call on a TCP socket, if twtool could read the address, the socket and the facts of the namespace.
struct FailedTcpCall<'a> {
    failed: FailedCall<'a>,
    errno: Errno,
    facts: &'a Facts,
    addr: &'a CalledAddr,
    socket: &'a CalledSocket,
}

fn not_tcp(failed: &FailedCall, addr: &CalledAddr, socket: &CalledSocket) -> Explanation {
    let name = if socket.protocol == "udp" { "UDP".to_owned() } else { format!("protocol {}", socket.protocol) };
    // A network namespace has the same addresses for all protocols.
    if failed.call.name == CallName::Bind && failed.call.errno() == Some(Errno::AddrNotAvailable) {
        let headline = format!("{} is not an address of this network namespace, or not usable yet", addr.addr);
        return Explanation::new(Some(Verdict::Denied), CallCause::Port(Cause::AddressNotLocal), headline);
    }
    let in_use = failed.call.errno() == Some(Errno::AddrInUse);
    let headline = format!("this is a {name} socket; twtool knows the state of TCP ports only");
    let verdict = if in_use { Verdict::Blocked } else { Verdict::Denied };
    let mut explanation = Explanation::new(Some(verdict), CallCause::NotTcp, headline);
    if socket.protocol == "udp" && in_use {
        let port = format!("sport = :{}", addr.port);
        let list = failed.shell.run(Privilege::None, &["ss", "-Hulnp", &port]);
        explanation.help.commands.push(Step::new(list, "list the UDP sockets on the port"));
        explanation.help.advice.push("TCP and UDP have separate ports, so TIME_WAIT does not matter here.".into());
    }
    explanation
}

fn explain_denial(called: &FailedTcpCall, attempt: &Attempt) -> Explanation {
    let FailedTcpCall { failed, facts, errno, addr, socket } = *called;
    let call = failed.call;
    let port = addr.port;
    let cause = verdict::cause(facts, port, std::slice::from_ref(attempt), failed.holders, false);
    if let Some(explanation) = unfit_socket(called) {
        return explanation;
    }
    if cause == Cause::PrivilegedPort && call.process.lost_privilege {
        let mut explanation = Explanation::new(
            Some(Verdict::Denied),
            CallCause::Port(cause),
            format!(
                "port {port} needs CAP_NET_BIND_SERVICE, which the program file gives to the process, but not while \
                 twtool watches"
            ),
        );
        explanation.help.advice.push(
            "twtool causes this failure: without twtool, the process gets the privilege of the program file. If twtool \
             has CAP_SYS_ADMIN and CAP_SYS_PTRACE (root on the host), the process gets the privilege, too."
                .into(),
        );
        return explanation;
    }
    let on = attempt.at.text(facts);
    let has_privilege = call.process.cap_net_bind_service == Some(true);
    let mut explanation = match cause {
        Cause::PrivilegedPort if has_privilege => Explanation::new(
            Some(Verdict::Denied),
            CallCause::Port(Cause::Unknown),
            format!(
                "port {port} needs CAP_NET_BIND_SERVICE, and the kernel or a security module refuses the bind although the process \
                 has the capability in its own user namespace"
            ),
        ),
        Cause::PrivilegedPort => Explanation::new(
            Some(Verdict::Denied),
            CallCause::Port(cause),
            format!("port {port} needs CAP_NET_BIND_SERVICE, which the process does not have"),
        ),
        Cause::AddressNotLocal => Explanation::new(
            Some(Verdict::Denied),
            CallCause::Port(cause),
            format!("{on} is not an address of this network namespace, or not usable yet"),
        ),
        Cause::FamilyUnsupported => Explanation::new(
            Some(Verdict::Denied),
            CallCause::Port(cause),
            format!("{} sockets cannot be created here", attempt.at.family()),
        ),
        _ => Explanation::new(
            Some(Verdict::Denied),
            CallCause::Port(cause),
            format!("the kernel refuses {}() on {on} port {port}", call.name.name()),
        ),
    };
    let help = &mut explanation.help;
    if cause == Cause::PrivilegedPort && has_privilege {
        help.advice.push(
            "The kernel requires the capability in the user namespace that owns the network namespace \
             (network_namespaces(7)). A process in another user namespace has it only for network namespaces that were \
             made there. A security module can refuse the bind, too."
                .into(),
        );
    } else {
        help.commands = next_steps(called, cause, attempt, None);
        help.advice.push(advice::denial(facts, port, attempt, errno));
    }
    help.advice.push(options_text(socket));
    explanation
}

/// Explains a failure whose reason is the socket or the form of the address; `None` if that is not the reason.
fn unfit_socket(called: &FailedTcpCall) -> Option<Explanation> {
    let FailedTcpCall { failed, errno, addr, socket, .. } = *called;
    let explanation = |cause, headline: String, advice: &str| {
        let mut explanation = Explanation::new(Some(Verdict::Denied), cause, headline);
        explanation.help.advice.push(advice.into());
        Some(explanation)
    };
    let unknown = CallCause::Port(Cause::Unknown);
    match (errno, failed.call.name, socket.local.filter(|local| local.port() != 0)) {
        // The kernel first checks the length of the address. A `sockaddr_in` is too short for an IPv6 socket (EINVAL). If the length
        // is sufficient, the kernel refuses the family (EAFNOSUPPORT).
        (Errno::FamilyNotSupported | Errno::Other("EINVAL"), CallName::Bind, _)
            if socket.ipv6 && addr.addr.is_ipv4() =>
        {
            explanation(
                unknown,
                format!("{} is an IPv4 address (AF_INET), and the socket is an IPv6 socket", addr.addr),
                "Write the address as IPv4-mapped (AF_INET6, like ::ffff:127.0.0.1), or use an AF_INET socket (ipv6(7)).",
            )
        }
        (Errno::FamilyNotSupported | Errno::Other("EINVAL"), CallName::Bind, _)
            if !socket.ipv6 && addr.addr.is_ipv6() =>
        {
            explanation(
                unknown,
                format!("{} is an IPv6 address (AF_INET6), and the socket is an IPv4 socket", addr.addr),
                "Use an AF_INET6 socket for this address.",
            )
        }
        (Errno::Other("EINVAL"), CallName::Bind, Some(local)) => explanation(
            CallCause::AlreadyBound,
            format!("the socket is bound to {local} already"),
            "A socket can be bound once (bind(2)). Use a new socket for the second address.",
        ),
        (Errno::Other("EINVAL"), CallName::Listen, _) => explanation(
            unknown,
            "the socket is connected, or a connect() on it has begun".into(),
            "Such a socket cannot listen (listen(2)). Use a new socket for the listener.",
        ),
        _ => None,
    }
}

fn options_text(socket: &CalledSocket) -> String {
    if socket.options().is_empty() {
        return "The socket of the call has none of the options on which bind() depends.".into();
    }
    format!("The socket of the call has {}.", socket.options_text())
}

/// The arguments of `bind-test` and `wait` for a server with this socket.
fn setup_words(socket: &CalledSocket, attempt: &Attempt) -> Vec<String> {
    // IPV6_V6ONLY matters only for `::`.
    let matters = attempt.at.addr.is_ipv6() && attempt.at.addr.is_unspecified();
    let v6only = matters.then_some(if socket.v6only { "yes" } else { "no" });
    let valued = [("--v6only", v6only), ("--dev", socket.device.as_deref())];
    let flags = [
        ("--freebind", socket.freebind),
        ("--transparent", socket.transparent),
        ("--mptcp", socket.protocol == "mptcp"),
    ];
    let valued = valued.into_iter().filter_map(|(name, value)| Some([name, value?])).flatten();
    valued.chain(flags.into_iter().filter_map(|(name, set)| set.then_some(name))).map(str::to_owned).collect()
}

/// The commands that a failed bind test prints, with the watched command instead of the example `./server`.
fn next_steps(called: &FailedTcpCall, cause: Cause, attempt: &Attempt, free_in: Option<Duration>) -> Vec<Step> {
    let FailedTcpCall { failed, facts, addr, socket, .. } = *called;
    // Do not suggest a command that ends the watched program.
    let holders: Vec<Holder> =
        failed.holders.iter().filter(|holder| !in_use::is_held_by(holder, failed.watched)).cloned().collect();
    let setup = ServerSetup { device: attempt.device.filter(|_| socket.device.is_some()), ..ServerSetup::default() };
    let mut steps = next::steps(&Failure {
        shell: failed.shell,
        uid: failed.uid,
        facts,
        port: addr.port,
        addrs: std::slice::from_ref(&attempt.at),
        with: attempt.options,
        setup,
        setup_words: &setup_words(socket, attempt),
        cause,
        holders: &holders,
        free_in,
        waited: false,
        ends_orphans: None,
    });
    let words: Vec<_> = failed.command.iter().map(quoted).collect();
    for step in &mut steps {
        if let (Some(wait), false) = (step.command.strip_suffix("./server"), words.is_empty()) {
            step.command = format!("{wait}{}", words.join(" "));
            "start the command as soon as its bind works".clone_into(&mut step.purpose);
        }
    }
    steps
}

#[cfg(test)]
mod tests;
