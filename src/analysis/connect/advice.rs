//! Explains the verdict: the result of connect(), the commands that help now, then the permanent solution and the reason.

use super::{Call, Cause, Conclusion, Situation, Verdict};
use crate::analysis::advice::{buckets_counted, count, denial, is_connection, who};
use crate::analysis::capacity;
use crate::analysis::next::{self, Failure, with_name};
use crate::model::bind::{self, CallResult, Errno, Holder, ReuseOptions, ServerSetup};
use crate::model::command::{Help, Privilege, Shell, Step};
use crate::model::port::Port;
use crate::model::socket::{Socket, TcpState};

/// The error message of the C library for an errno, which programs print.
const fn message(errno: Errno) -> Option<&'static str> {
    Some(match errno.name().as_bytes() {
        b"EADDRINUSE" => "Address already in use",
        b"EADDRNOTAVAIL" => "Cannot assign requested address",
        b"EACCES" => "Permission denied",
        b"EPERM" => "Operation not permitted",
        b"EAFNOSUPPORT" => "Address family not supported by protocol",
        b"ENETUNREACH" => "Network is unreachable",
        b"EHOSTUNREACH" => "No route to host",
        b"EINVAL" => "Invalid argument",
        _ => return None,
    })
}

/// An errno and its message: `EADDRNOTAVAIL (Cannot assign requested address)`.
fn named(errno: Errno) -> String {
    message(errno).map_or_else(|| errno.name().into(), |text| format!("{} ({text})", errno.name()))
}

/// The result in a few words, which follow the verdict. It contains process names, so the caller must escape it.
#[must_use]
pub fn headline(situation: &Situation, conclusion: &Conclusion) -> String {
    let fails = conclusion.failure.map(|(call, errno)| format!("{}() fails with {}", call.name(), named(errno)));
    let fails = fails.unwrap_or_default();
    match (conclusion.verdict, conclusion.cause) {
        (Verdict::Free, _) => free(situation, conclusion),
        (Verdict::Unknown, Cause::TimeWait) if situation.from_port.is_some() => {
            let probably = match conclusion.inferred {
                Some(Verdict::Free) => ", probably free (inferred)",
                Some(_) => ", probably blocked (inferred)",
                None => "",
            };
            format!("{probably}: connect() takes over {} if the old connection had TCP timestamps", obstacle(situation))
        }
        (Verdict::Unknown, Cause::TimeWait) if conclusion.inferred.is_some() => {
            ", probably free (inferred): every port is in use, but connect() can take over a TIME_WAIT socket whose connection \
             had TCP timestamps"
                .into()
        }
        (Verdict::Unknown, _) => ": it is uncertain whether a port is left".into(),
        (_, Cause::Exhausted) => {
            format!(": {fails} because {}", none_left(situation))
        }
        (_, Cause::AddressNotLocal) => {
            let on = situation.from.map(|at| at.text(&situation.facts)).unwrap_or_default();
            format!(": {fails} because {on} is not an address of this network namespace")
        }
        (_, Cause::PrivilegedPort) => format!(": {fails} because the source port needs CAP_NET_BIND_SERVICE"),
        (Verdict::Denied, _) if lacks_scope(situation, conclusion) => {
            let at = if conclusion.cause == Cause::NoRoute { Some(situation.to) } else { situation.from };
            let addr = at.map(|at| at.text(&situation.facts)).unwrap_or_default();
            format!(": {fails} because the link-local address {addr} has no scope, which is its interface")
        }
        (_, Cause::NoRoute) => format!(": {fails} because {}", no_route(situation)),
        (_, Cause::FamilyUnsupported) => format!(": {fails} because IPv6 sockets cannot be created here"),
        (Verdict::Denied, _) => format!(": {fails}"),
        (_, Cause::AddressInUse) if conclusion.failure.is_some_and(|(call, _)| call == Call::Connect) => {
            format!(": {fails} because this connection exists already ({})", obstacle(situation))
        }
        _ => format!(": {fails} because of {}", obstacle(situation)),
    }
}

fn free(situation: &Situation, conclusion: &Conclusion) -> String {
    let Some((free, choice)) = conclusion.free.zip(situation.choice.as_ref()) else { return String::new() };
    let are = if free == 1 { "is" } else { "are" };
    let most = if choice.destination.uncertain > 0 { "at most " } else { "" };
    format!(", {most}{free} of {} {are} left", count(choice.pool.size as usize, "port"))
}

/// Why no port is left.
fn none_left(situation: &Situation) -> String {
    match situation.choice.as_ref().map(|choice| &choice.pool) {
        Some(pool) if pool.size == 0 => format!("all ports of {} are reserved or explicitly bound", pool.range),
        Some(pool) => format!("none of {} is left for this destination", count(pool.size as usize, "port")),
        None => "no port is left".into(),
    }
}

/// Whether the call fails because its link-local address has no scope. The scope of an address that was bound before is the
/// interface of the whole socket (`__inet6_bind` in net/ipv6/af_inet6.c, `tcp_v6_connect` in net/ipv6/tcp_ipv6.c).
fn lacks_scope(situation: &Situation, conclusion: &Conclusion) -> bool {
    match conclusion.failure {
        Some((Call::Bind, Errno::Other("EINVAL"))) => situation.from.is_some_and(|from| from.lacks_scope()),
        Some((Call::Connect, Errno::Other("EINVAL"))) => {
            situation.to.lacks_scope() && situation.from.is_none_or(|from| from.scope.is_none())
        }
        _ => false,
    }
}

fn link_local_addresses(shell: &Shell) -> Step {
    Step::new(
        shell.run(Privilege::None, &["ip", "-6", "address", "show", "scope", "link"]),
        "list the interfaces that have link-local addresses",
    )
}

/// What the kernel lacks for the route.
fn no_route(situation: &Situation) -> &'static str {
    match situation.route {
        Err(Errno::AddrNotAvailable) => "this network namespace has no address that can be the source",
        Err(Errno::Other("ENETUNREACH")) => "the kernel has no route to this address",
        Err(Errno::Other("EHOSTUNREACH")) => "a route of type unreachable forbids it, or the host is not reachable",
        Err(Errno::Access) => "a route of type prohibit, or a security module, forbids it",
        _ => "the routes do not allow these two addresses together, or a route of type blackhole forbids it",
    }
}

fn blocking(situation: &Situation) -> impl Iterator<Item = &Holder> + Clone {
    situation.holders.iter().filter(|holder| holder.blocks)
}

/// Describes the blocking sockets in a few words.
fn obstacle(situation: &Situation) -> String {
    let full = |fits: fn(TcpState) -> bool| {
        blocking(situation).filter(move |h| matches!(h.socket, Socket::Full(full) if fits(full.state)))
    };
    let listeners = full(|state| state == TcpState::Listen);
    let connections = full(is_connection);
    let bound = full(|state| matches!(state, TcpState::Closed | TcpState::BoundInactive));
    if listeners.clone().next().is_some() {
        return format!("a listener: {}", who(listeners));
    }
    if connections.clone().next().is_some() {
        let mut states: Vec<_> = connections.clone().map(|holder| holder.socket.state().upper_name()).collect();
        states.sort_unstable();
        states.dedup();
        let word = if connections.clone().count() == 1 { "a connection" } else { "connections" };
        return format!("{word} in {}: {}", states.join(", "), who(connections));
    }
    if bound.clone().next().is_some() {
        return format!("a bound socket: {}", who(bound));
    }
    let buckets = buckets_counted(blocking(situation));
    if buckets.is_empty() { "probably a socket that this kernel does not list".into() } else { buckets }
}

/// The commands that help now, the lines that keep a change after a restart, and the reasons.
#[must_use]
pub fn advise(situation: &Situation, conclusion: &Conclusion, shell: &Shell, ends_orphans: Option<bool>) -> Help {
    let mut help = Help::default();
    match (conclusion.failure, situation.from_port) {
        (Some((Call::Bind | Call::Socket, _)), _) => {
            help.commands = bind_steps(situation, conclusion, shell, ends_orphans);
            help.advice = bind_reasons(situation, conclusion);
        }
        (Some((Call::Connect, _)), _) if lacks_scope(situation, conclusion) => {
            help.commands.push(link_local_addresses(shell));
            help.advice.push(format!(
                "Name the interface in the destination, like {}%eth0: each interface has a link of its own (ipv6(7)).",
                situation.to.addr
            ));
        }
        (Some((Call::Connect, _)), _) if conclusion.cause == Cause::NoRoute => {
            help.commands.push(routes(situation, shell));
        }
        (Some((Call::Connect, _)), Some(_)) => {
            let cause = match (conclusion.cause, conclusion.inferred) {
                // connect() probably takes the bucket over, so there is no reason to remove it.
                (Cause::TimeWait, Some(Verdict::Free)) => bind::Cause::None,
                (Cause::TimeWait, _) => bind::Cause::TimeWait,
                _ => bind::Cause::Connection,
            };
            help.commands = holder_steps(situation, conclusion, cause, shell, ends_orphans);
            help.advice = same_connection_reasons(situation, conclusion);
        }
        (Some((Call::Connect, _)), None) => {
            help.commands.push(capacity_step(situation, shell));
            if let Some(choice) = &situation.choice {
                let destinations = std::slice::from_ref(&choice.destination);
                help.append(capacity::advice::advise(
                    destinations,
                    &situation.conditions(choice),
                    &situation.facts,
                    shell,
                ));
            }
        }
        (None, _) => {}
    }
    help.advice.extend(plain_bind(situation, conclusion));
    help
}

/// The words of the command line that name the two ends and the options.
fn ends(situation: &Situation) -> Vec<String> {
    let Situation { facts, to, to_port, from, from_port, .. } = situation;
    let end = |at: &bind::BindAddr, port: Option<Port>| match port {
        Some(port) if at.addr.is_ipv6() => format!("[{}]:{port}", at.text(facts)),
        Some(port) => format!("{}:{port}", at.text(facts)),
        None => at.text(facts),
    };
    let mut words = vec![end(to, Some(*to_port))];
    words.extend(from.iter().flat_map(|at| ["--from".into(), end(at, *from_port)]));
    words
}

fn bind_steps(situation: &Situation, conclusion: &Conclusion, shell: &Shell, ends_orphans: Option<bool>) -> Vec<Step> {
    let mut steps = vec![];
    // bind() works with the option, but connect() may still fail.
    let purpose = match situation.with_reuseaddr().map(|conclusion| conclusion.verdict) {
        Some(Verdict::Free) => Some("test a client that sets SO_REUSEADDR before bind(), which works now"),
        Some(Verdict::Unknown) => Some(
            "test a client that sets SO_REUSEADDR before bind(): its bind() works now, and its connect() depends on \
             the TCP timestamps of the old connection",
        ),
        Some(Verdict::Blocked | Verdict::Denied) | None => None,
    };
    if let Some(purpose) = purpose {
        let words = ends(situation);
        let words = ["connect-test"].into_iter().chain(words.iter().map(String::as_str));
        let words: Vec<&str> = words.chain(["--with", "reuseaddr"]).collect();
        steps.push(Step::new(shell.twtool(Privilege::None, &words), purpose));
    }
    if lacks_scope(situation, conclusion) {
        steps.push(link_local_addresses(shell));
        return steps;
    }
    let cause = situation.bind_cause();
    if (conclusion.verdict, cause) == (Verdict::Denied, bind::Cause::Unknown) {
        // Neither a socket nor a shortage of ports is the reason.
        return steps;
    }
    let others = holder_steps(situation, conclusion, cause, shell, ends_orphans);
    // Buckets end by themselves. For another holder, the command that ends it comes first.
    let ends = conclusion.cause == Cause::TimeWait || !others.is_empty();
    let wait = wait(situation, shell).filter(|_| conclusion.verdict == Verdict::Blocked && ends);
    if conclusion.cause == Cause::TimeWait {
        steps.extend(wait);
        steps.extend(others);
    } else {
        steps.extend(others);
        steps.extend(wait);
    }
    steps
}

fn wait(situation: &Situation, shell: &Shell) -> Option<Step> {
    let (at, port) = situation.from.zip(situation.from_port)?;
    let (addr, port) = (at.text(&situation.facts), port.to_string());
    let words = ["wait", &port, "--addr", &addr, "--with", with_name(situation.with)];
    Some(Step::new(shell.twtool(Privilege::None, &words), "wait until bind() works"))
}

/// The commands that remove the blocking sockets or stop their processes.
fn holder_steps(
    situation: &Situation,
    conclusion: &Conclusion,
    cause: bind::Cause,
    shell: &Shell,
    ends_orphans: Option<bool>,
) -> Vec<Step> {
    next::steps(&Failure {
        shell,
        uid: situation.uid,
        facts: &situation.facts,
        port: situation.from_port.unwrap_or(Port(0)),
        addrs: situation.from.as_slice(),
        with: situation.with,
        setup: ServerSetup::default(),
        setup_words: &[],
        cause,
        holders: &situation.holders,
        free_in: conclusion.free_in,
        // The `wait` step is added separately here, because no server waits for the port.
        waited: true,
        ends_orphans,
    })
}

fn routes(situation: &Situation, shell: &Shell) -> Step {
    let words: &[&str] = match (situation.to.addr.to_canonical().is_ipv4(), situation.route) {
        (false, Err(Errno::AddrNotAvailable)) => &["ip", "-6", "address"],
        (false, _) => &["ip", "-6", "route", "show", "table", "all"],
        (true, _) => &["ip", "route", "show", "table", "all"],
    };
    let what = if words.contains(&"address") { "addresses" } else { "routes" };
    Step::new(shell.run(Privilege::None, words), format!("list the {what} of this network namespace"))
}

fn capacity_step(situation: &Situation, shell: &Shell) -> Step {
    let at = situation.to.text(&situation.facts);
    let port = situation.to_port;
    let to = if situation.to.addr.is_ipv6() { format!("[{at}]:{port}") } else { format!("{at}:{port}") };
    let from = situation.from.map(|at| at.text(&situation.facts));
    let words = ["capacity", "--to", &to].into_iter().chain(from.iter().flat_map(|from| ["--from", from]));
    let words: Vec<&str> = words.collect();
    Step::new(shell.twtool(Privilege::None, &words), "show what uses the ports, and how fast")
}

/// Why bind() fails, and the permanent solution.
fn bind_reasons(situation: &Situation, conclusion: &Conclusion) -> Vec<String> {
    let mut advice = vec![];
    match (conclusion.verdict, situation.bind_cause()) {
        (Verdict::Denied, _) => {
            if let Some(attempt) = situation.attempts.first()
                && let CallResult::Failed(errno) = attempt.bind
            {
                advice.push(match errno {
                    Errno::AddrNotAvailable => format!(
                        "Bind an address of this network namespace, or let connect() choose the address. {} can also be an address \
                         that is not usable yet.",
                        attempt.at.text(&situation.facts)
                    ),
                    errno => denial(&situation.facts, situation.from_port.unwrap_or(Port(0)), attempt, errno),
                });
            }
        }
        (_, bind::Cause::TimeWait) => advice.push(format!(
            "Set SO_REUSEADDR in the client before bind(). {} That {}",
            "Linux checks the option of the old and of the new socket, and here the old one had it (socket(7), SO_REUSEADDR).",
            if situation.holders.iter().any(|holder| situation.is_same_connection(&holder.socket)) {
                "lets bind() work. connect() then takes over the old socket of this connection if it had TCP timestamps, \
                 and fails with EADDRNOTAVAIL if not."
            } else {
                "lets bind() work, and connect() finds the port free for this destination."
            },
        )),
        (_, bind::Cause::TimeWaitWithoutReuseaddr) => {
            advice.push(
                "Let connect() choose the source port, if the peer does not need this one. Otherwise set SO_REUSEADDR \
                 in the client before each bind(). Then the next reconnect works. This one still fails, because Linux \
                 checks the option of the old and of the new socket, and the old one did not have it (socket(7), \
                 SO_REUSEADDR)."
                    .into(),
            );
            advice.push("net.ipv4.tcp_tw_reuse does not help, because bind() fails before connect() is called.".into());
        }
        (_, bind::Cause::Unknown) => advice.push(unseen(situation)),
        _ => advice.push(
            "Use another source port or address, or let connect() choose the port. One port can serve several destinations only \
             if each of its sockets sets SO_REUSEADDR before bind() and none of them listens (socket(7))."
                .into(),
        ),
    }
    if conclusion.verdict == Verdict::Blocked && conclusion.cause == Cause::TimeWait {
        advice.extend(timers(situation));
    }
    advice
}

fn unseen(situation: &Situation) -> String {
    let why = if situation.bound_sockets_are_listed {
        "Kernels list sockets that are bound without listening only since about Linux 6.8."
    } else {
        "/proc/net/tcp does not list sockets that are bound without listening."
    };
    format!("No listed socket explains the failure. {why} A socket can also have ended after the bind.")
}

/// Explains how exact the remaining time is.
fn timers(situation: &Situation) -> Option<String> {
    let half = |holder: &Holder| matches!(holder.socket, Socket::Bucket(bucket) if holder.blocks && bucket.fin_wait_2);
    Some(if situation.holders.iter().any(half) {
        "When the peer of a FIN_WAIT_2 socket closes, the socket becomes TIME_WAIT with a fresh timer, 60 s on an unmodified \
         kernel."
            .into()
    } else if blocking(situation).next().is_some() {
        "These timers can end some seconds late, and a retransmitted FIN restarts one (RFC 9293, section 3.10.7.4)."
            .into()
    } else {
        return None;
    })
}

/// Why connect() fails, or may fail, on a fixed port that bind() accepts.
fn same_connection_reasons(situation: &Situation, conclusion: &Conclusion) -> Vec<String> {
    if conclusion.verdict == Verdict::Blocked {
        return vec![
            "bind() works, because each socket on the port has SO_REUSEADDR. But two connections cannot have the same source \
             address, source port, destination address and destination port. Use another source port, or end the other \
             connection first."
                .into(),
        ];
    }
    let setting = match situation.reuse.timestamps {
        Some(true) => {
            "net.ipv4.tcp_timestamps is on now, so the connection probably had timestamps if the peer uses them too \
             (inferred)."
        }
        Some(false) => "net.ipv4.tcp_timestamps is off now, so the connection probably had no timestamps (inferred).",
        None => "net.ipv4.tcp_timestamps could not be read.",
    };
    let mut advice = vec![format!(
        "connect() takes over the TIME_WAIT socket if the old connection had TCP timestamps, and fails with \
         EADDRNOTAVAIL if not. The kernel does not report whether the connection had timestamps, and twtool does not \
         try connect(), because that would destroy the socket. {setting} net.ipv4.tcp_tw_reuse has no effect with a \
         fixed source port."
    )];
    advice.extend(timers(situation));
    advice
}

/// The difference between a client that binds only its address, and one that lets connect() choose the port.
fn plain_bind(situation: &Situation, conclusion: &Conclusion) -> Option<String> {
    let bind = situation.bind().filter(|_| situation.from_port.is_none() && conclusion.cause != Cause::NoRoute)?;
    match (bind, conclusion.verdict) {
        (CallResult::Failed(Errno::AddrInUse), _) => Some(
            "Set IP_BIND_ADDRESS_NO_PORT before bind(). Without the option, bind() of the address chooses a port that \
             no destination uses, and now fails with EADDRINUSE (ip(7))."
                .into(),
        ),
        (CallResult::Ok, Verdict::Blocked) => Some(
            "A client that binds the address without IP_BIND_ADDRESS_NO_PORT still gets a port: bind() may choose a port that is \
             explicitly bound on another address (ip(7))."
                .into(),
        ),
        _ => None,
    }
}

/// Whether the question contains an option that has no effect.
#[must_use]
pub fn with_has_no_effect(situation: &Situation) -> bool {
    situation.with != ReuseOptions::NONE && situation.from_port.is_none()
}
