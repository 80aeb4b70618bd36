//! Explains the verdict of a connect test: the commands that help now, the permanent solution, and the reason.

use super::headline::{blocking, lacks_scope, none_left};
use super::{ConnectCause, ConnectConclusion, ConnectVerdict, FailingCall, Situation};
use crate::analysis::advice::{counted_noun, denial};
use crate::analysis::capacity;
use crate::analysis::next::{self, Failure, with_name};
use crate::model::bind::{self, CallResult, Errno, Holder, ReuseOptions, ServerSetup};
use crate::model::command::{Privilege, Shell, Step, Suggestions};
use crate::model::port::Port;
use crate::model::socket::Socket;

fn link_local_addresses(shell: &Shell) -> Step {
    Step::new(
        shell.run(Privilege::None, &["ip", "-6", "address", "show", "scope", "link"]),
        "list the interfaces that have link-local addresses",
    )
}

/// The commands that help now, the lines that keep a change after a restart, and the reasons.
#[must_use]
pub fn advise(
    situation: &Situation,
    conclusion: &ConnectConclusion,
    shell: &Shell,
    ends_orphans: Option<bool>,
) -> Suggestions {
    let mut help = Suggestions::default();
    match (conclusion.failure, situation.from_port) {
        (Some((FailingCall::Bind, _)), None) if situation.bind_finds_no_port() => {
            if connect_may_find_a_port(situation) {
                let words = end_words(situation);
                let words = ["connect-test"].into_iter().chain(words.iter().map(String::as_str));
                let words: Vec<&str> = words.chain(["--with", "bind-address-no-port"]).collect();
                help.commands.push(Step::new(
                    shell.twtool(Privilege::None, &words),
                    "test a client that sets IP_BIND_ADDRESS_NO_PORT before bind()",
                ));
            }
            help.append(used_ports(situation, shell));
        }
        (Some((FailingCall::Bind | FailingCall::Socket, _)), _) => {
            help.commands = bind_steps(situation, conclusion, shell, ends_orphans);
            help.advice = bind_reasons(situation, conclusion);
        }
        (Some((FailingCall::Connect, _)), _) if lacks_scope(situation, conclusion) => {
            help.commands.push(link_local_addresses(shell));
            help.advice.push(format!(
                "Name the interface in the destination, like {}%eth0: each interface has its own link (ipv6(7)).",
                situation.to.addr
            ));
        }
        (Some((FailingCall::Connect, _)), _) if conclusion.cause == ConnectCause::NoRoute => {
            help.commands.push(routes(situation, shell));
        }
        (Some((FailingCall::Connect, _)), Some(_)) => {
            let cause = match (conclusion.cause, conclusion.inferred) {
                // connect() probably takes the bucket over, so there is no reason to remove it.
                (ConnectCause::TimeWait, Some(ConnectVerdict::Free)) => bind::Cause::None,
                (ConnectCause::TimeWait, _) => bind::Cause::TimeWait,
                _ => bind::Cause::Connection,
            };
            help.commands = holder_steps(situation, conclusion, cause, shell, ends_orphans);
            help.advice = same_connection_reasons(situation, conclusion);
        }
        (Some((FailingCall::Connect, _)), None) => help.append(used_ports(situation, shell)),
        (None, _) => {}
    }
    help.advice.extend(plain_bind(situation, conclusion));
    help
}

fn connect_may_find_a_port(situation: &Situation) -> bool {
    situation.chosen_by_connect().verdict != ConnectVerdict::Blocked
}

fn used_ports(situation: &Situation, shell: &Shell) -> Suggestions {
    let mut help = Suggestions { commands: vec![capacity_step(situation, shell)], ..Suggestions::default() };
    if let Some(choice) = &situation.choice {
        let destinations = std::slice::from_ref(&choice.destination);
        help.append(capacity::advice::advise(destinations, &situation.conditions(choice), &situation.facts, shell));
    }
    help
}

fn end_words(situation: &Situation) -> Vec<String> {
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

fn bind_steps(
    situation: &Situation,
    conclusion: &ConnectConclusion,
    shell: &Shell,
    ends_orphans: Option<bool>,
) -> Vec<Step> {
    let mut steps = vec![];
    // Even if bind() works with SO_REUSEADDR, connect() may fail.
    let purpose = match situation.with_reuseaddr().map(|conclusion| conclusion.verdict) {
        Some(ConnectVerdict::Free) => Some("test a client that sets SO_REUSEADDR before bind(), which works now"),
        Some(ConnectVerdict::Unknown) => Some(
            "test a client that sets SO_REUSEADDR before bind(): its bind() works now, and its connect() depends on the TCP \
             timestamps of the old connection",
        ),
        Some(ConnectVerdict::Blocked | ConnectVerdict::Denied) | None => None,
    };
    if let Some(purpose) = purpose {
        let words = end_words(situation);
        let words = ["connect-test"].into_iter().chain(words.iter().map(String::as_str));
        let words: Vec<&str> = words.chain(["--with", "reuseaddr"]).collect();
        steps.push(Step::new(shell.twtool(Privilege::None, &words), purpose));
    }
    if lacks_scope(situation, conclusion) {
        steps.push(link_local_addresses(shell));
        return steps;
    }
    let cause = situation.bind_cause();
    if (conclusion.verdict, cause) == (ConnectVerdict::Denied, bind::Cause::Unknown) {
        // Neither a socket nor a shortage of ports is the reason.
        return steps;
    }
    let others = holder_steps(situation, conclusion, cause, shell, ends_orphans);
    // Buckets end by themselves, so the `wait` command comes first. For other sockets, the commands that end them come first.
    let block_ends = conclusion.cause == ConnectCause::TimeWait || !others.is_empty();
    let wait = wait(situation, shell).filter(|_| conclusion.verdict == ConnectVerdict::Blocked && block_ends);
    if conclusion.cause == ConnectCause::TimeWait {
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

fn holder_steps(
    situation: &Situation,
    conclusion: &ConnectConclusion,
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
        // `true` omits the `wait` command of `next::steps`, which starts a server. `bind_steps` adds its own `wait` command.
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

fn bind_reasons(situation: &Situation, conclusion: &ConnectConclusion) -> Vec<String> {
    let mut advice = vec![];
    match (conclusion.verdict, situation.bind_cause()) {
        (ConnectVerdict::Denied, _) => {
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
            "Set SO_REUSEADDR in the client before bind(). bind() then works, because the old socket had the option too \
             (socket(7), SO_REUSEADDR). {}",
            if situation.holders.iter().any(|holder| situation.is_same_connection(&holder.socket)) {
                "connect() takes over the old socket of this connection if it had TCP timestamps, and fails with \
                 EADDRNOTAVAIL if not."
            } else {
                "connect() finds the port free for this destination."
            },
        )),
        (_, bind::Cause::TimeWaitWithoutReuseaddr) => {
            advice.push(
                "Let connect() choose the source port, if the peer does not need this port. Otherwise set SO_REUSEADDR \
                 in the client before each bind(): later reconnects then work. Until the old socket ends, bind() still \
                 fails, because Linux checks the option of the old and of the new socket, and the old one did not have \
                 it (socket(7), SO_REUSEADDR)."
                    .into(),
            );
            advice.push("net.ipv4.tcp_tw_reuse does not help, because bind() fails before connect() is called.".into());
        }
        (_, bind::Cause::Unknown) => advice.push(unlisted_socket_advice(situation)),
        _ => advice.push(
            "Use another source port or address, or let connect() choose the port. A fixed source port can serve several \
             destinations if each of its sockets sets SO_REUSEADDR before bind() and none of them listens (socket(7))."
                .into(),
        ),
    }
    if conclusion.verdict == ConnectVerdict::Blocked && conclusion.cause == ConnectCause::TimeWait {
        advice.extend(timers(situation));
    }
    advice
}

fn unlisted_socket_advice(situation: &Situation) -> String {
    let hidden = if situation.bound_sockets_are_listed {
        ""
    } else {
        " The list does not have sockets that are bound and do not listen: only sock_diag lists them, since Linux 6.8."
    };
    format!(
        "No listed socket explains the failure.{hidden} A socket can have ended after the test and before the list was read."
    )
}

fn timers(situation: &Situation) -> Option<String> {
    let half = |holder: &Holder| matches!(holder.socket, Socket::Bucket(bucket) if holder.blocks && bucket.fin_wait_2);
    Some(if situation.holders.iter().any(half) {
        "When the peer of a FIN_WAIT_2 socket closes, the socket becomes TIME_WAIT with a fresh timer, 60 s on an unmodified \
         kernel."
            .into()
    } else if blocking(situation).next().is_some() {
        "The timer of a TIME_WAIT socket can end some seconds late, and a retransmitted FIN restarts it (RFC 9293, \
         section 3.10.7.4)."
            .into()
    } else {
        return None;
    })
}

fn same_connection_reasons(situation: &Situation, conclusion: &ConnectConclusion) -> Vec<String> {
    if conclusion.verdict == ConnectVerdict::Blocked {
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

fn plain_bind(situation: &Situation, conclusion: &ConnectConclusion) -> Option<String> {
    let bind =
        situation.bind().filter(|_| situation.from_port.is_none() && conclusion.cause != ConnectCause::NoRoute)?;
    let by_connect = situation.chosen_by_connect();
    let left = by_connect.free.zip(situation.choice.as_ref()).filter(|_| connect_may_find_a_port(situation));
    match (bind, situation.bind_address_no_port) {
        (CallResult::Failed(Errno::AddrInUse), false) => left.map(|(free, choice)| {
            let pool = counted_noun(choice.pool.size as usize, "port");
            let most = if choice.destination.uncertain > 0 { "at most " } else { "" };
            format!(
                "Set IP_BIND_ADDRESS_NO_PORT before bind(): connect() then chooses the port, and {most}{free} of {pool} can serve \
                 this destination. Without the option, bind() needs a port that no socket on the address has (ip(7))."
            )
        }),
        (CallResult::Failed(Errno::AddrInUse), true) => Some(
            "Without IP_BIND_ADDRESS_NO_PORT, bind() of the address fails with EADDRINUSE now: it needs a port that no socket on the \
             address has (ip(7))."
                .into(),
        ),
        (CallResult::Ok, false) if by_connect.verdict == ConnectVerdict::Blocked => Some(format!(
            "With IP_BIND_ADDRESS_NO_PORT, connect() would fail with EADDRNOTAVAIL now, because {}. bind() may choose a port that \
             is explicitly bound on another address, and connect() may not (ip(7)).",
            none_left(situation)
        )),
        (CallResult::Ok, true) if conclusion.verdict == ConnectVerdict::Blocked => Some(
            "A client that binds the address without IP_BIND_ADDRESS_NO_PORT still gets a port: bind() may choose a port that is \
             explicitly bound on another address (ip(7))."
                .into(),
        ),
        _ => None,
    }
}

/// A warning if the value of `--with` has no effect for this client.
#[must_use]
pub fn ignored_option(situation: &Situation) -> Option<&'static str> {
    if situation.with != ReuseOptions::NONE && situation.from_port.is_none() {
        return Some("--with reuseaddr has no effect without a source port in --from");
    }
    let alone = situation.from.is_some() && situation.from_port.is_none();
    (situation.bind_address_no_port && !alone)
        .then_some("--with bind-address-no-port has an effect only with an address without a port in --from")
}

/// The value of `--with` that stands for the options of this client.
#[must_use]
pub fn option_name(situation: &Situation) -> &'static str {
    if situation.bind_address_no_port { "bind-address-no-port" } else { with_name(situation.with) }
}
