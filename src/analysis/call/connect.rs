//! Explains a connect() that failed: no route, no port left, or a connection with the same addresses and ports.

use std::net::{IpAddr, SocketAddr};

use super::{Explanation, FailedCall, FailedTcpCall, PortsLeft};
use crate::analysis::advice::owner_names;
use crate::analysis::capacity::{self, Conditions, Destination};
use crate::model::bind::{Cause, Errno, Verdict};
use crate::model::call::{CallCause, CalledAddr, CalledSocket};
use crate::model::command::{Privilege, Shell, Step};
use crate::model::facts::Facts;
use crate::model::socket::Socket;

pub(super) fn explain(called: &FailedTcpCall) -> Explanation {
    let FailedTcpCall { failed, facts, errno, addr: to, socket } = *called;
    let shell = failed.shell;
    let fixed = socket.local.filter(|local| local.port() != 0);
    let word = to.addr.to_canonical().to_string();
    let route = || {
        let from = socket.local.map(|local| local.ip().to_canonical()).filter(|from| !from.is_unspecified());
        let from = from.map(|from| from.to_string());
        let valued = [("from", from.as_deref()), ("oif", socket.device.as_deref())];
        let valued = valued.into_iter().filter_map(|(name, value)| Some([name, value?])).flatten();
        let words: Vec<&str> = ["ip", "route", "get", &word].into_iter().chain(valued).collect();
        Step::new(shell.run(Privilege::None, &words), "show the route and the source address that the kernel would use")
    };
    match errno {
        Errno::Other("ENETUNREACH") => {
            let verdict = Some(Verdict::Denied);
            if let Some(why) = ipv4_from_ipv6(to, socket) {
                let text = format!("{word} is an IPv4 address, and {why}");
                let mut explanation = Explanation::new(verdict, CallCause::NoRoute, text);
                explanation.help.advice.push("Use an AF_INET socket for IPv4 destinations (ipv6(7)).".into());
                explanation
            } else {
                let text = format!("the kernel has no route to {word}");
                let mut explanation = Explanation::new(verdict, CallCause::NoRoute, text);
                explanation.help.commands.push(route());
                let advice = "Ports are not the problem: the kernel found no route in this network namespace.";
                explanation.help.advice.push(advice.into());
                explanation
            }
        }
        Errno::Access => {
            let mut explanation = Explanation::new(
                Some(Verdict::Denied),
                CallCause::Port(Cause::Unknown),
                "a route of type prohibit, or a security module, refuses the connection (EACCES)",
            );
            explanation.help.commands.push(route());
            explanation
        }
        Errno::Other("EPERM") => Explanation::new(
            Some(Verdict::Denied),
            CallCause::Port(Cause::Unknown),
            "a firewall or a security module refuses the connection (EPERM)",
        ),
        _ => match (fixed, failed.ports_left) {
            (Some(local), _) => fixed_port(&failed, to, local),
            (None, Some(PortsLeft::Counted(destinations, conditions))) => {
                explain_ports_left(destinations, &conditions, facts, shell, to)
            }
            (None, Some(PortsLeft::Unreachable(why))) => {
                let mut explanation = Explanation::new(
                    Some(Verdict::Denied),
                    CallCause::NoRoute,
                    format!("no local address can reach {}: {why}", to.addr),
                );
                explanation.help.commands.push(route());
                explanation.help.advice.push(
                    "Ports are not the problem. The kernel has no usable source address: this machine has no address \
                     of the family, the address is still being checked (duplicate address detection), or IPv6 is off."
                        .into(),
                );
                explanation
            }
            (None, None) => Explanation::new(None, CallCause::Port(Cause::Unknown), "the reason is unknown"),
        },
    }
}

/// Explains why an IPv6 socket cannot connect to an IPv4-mapped address (`tcp_v6_connect` in net/ipv6/tcp_ipv6.c).
fn ipv4_from_ipv6(to: &CalledAddr, socket: &CalledSocket) -> Option<String> {
    if to.addr.is_ipv4() || !to.addr.to_canonical().is_ipv4() {
        return None;
    }
    let ipv6_source =
        socket.local.map(|local| local.ip()).filter(|local| !local.is_unspecified() && local.to_canonical().is_ipv6());
    match ipv6_source {
        // The kernel sets IPV6_V6ONLY when it binds an IPv6 address other than :: and IPv4-mapped addresses.
        Some(source) => Some(format!("the socket is bound to the IPv6 address {source}")),
        None => socket.v6only.then(|| "the socket accepts IPv6 only (IPV6_V6ONLY)".into()),
    }
}

fn end(addr: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(addr.to_canonical(), port)
}

fn explain_ports_left(
    destinations: &[Destination],
    conditions: &Conditions,
    facts: &Facts,
    shell: &Shell,
    to: &CalledAddr,
) -> Explanation {
    let pool = conditions.pool;
    let to = end(to.addr, to.port.0);
    let Some(one) = destinations.first() else {
        return Explanation::new(None, CallCause::Port(Cause::Unknown), format!("no connection to {to} is known"));
    };
    let left = capacity::advice::ports_left(one, pool.size);
    let mut explanation = if one.free <= one.uncertain {
        Explanation::new(
            Some(Verdict::Blocked),
            CallCause::Exhausted,
            format!("no port is left for connections to {to}"),
        )
    } else {
        Explanation::new(
            None,
            CallCause::Port(Cause::Unknown),
            format!("the ports are not exhausted now: {}", left.replacen("From", "from", 1)),
        )
    };
    let help = &mut explanation.help;
    let show = shell.twtool(Privilege::None, &["capacity", "--to", &to.to_string()]);
    if explanation.cause == CallCause::Exhausted {
        help.append(capacity::advice::advise(destinations, conditions, facts, shell));
        help.advice.insert(0, format!("{left}."));
    } else {
        help.advice.push(
            "A port may have become free since the call. A socket that limits its own range (IP_LOCAL_PORT_RANGE) has fewer \
             ports."
                .into(),
        );
    }
    help.commands.push(Step::new(show, "show what uses the ports of this destination"));
    explanation
}

fn fixed_port(failed: &FailedCall, to: &CalledAddr, local: SocketAddr) -> Explanation {
    let destination = end(to.addr, to.port.0);
    let ends = format!("from port {} to {destination}", local.port());
    match failed.holders.iter().find(|holder| holder.blocks) {
        Some(holder) if matches!(holder.socket, Socket::Bucket(_)) => {
            let mut explanation = Explanation::new(
                Some(Verdict::Blocked),
                CallCause::Port(Cause::TimeWait),
                format!("a {} socket {ends} exists", holder.socket.state().upper_name()),
            );
            if let Socket::Bucket(bucket) = holder.socket {
                explanation.free_in = Some(bucket.expires());
            }
            explanation.help.advice.push(
                "Let the kernel choose the source port, or wait until the socket has ended. connect() takes over a \
                 TIME_WAIT socket only if the old connection had TCP timestamps (net.ipv4.tcp_tw_reuse has no effect \
                 with a fixed source port)."
                    .into(),
            );
            explanation
        }
        Some(holder) => Explanation::new(
            Some(Verdict::Blocked),
            CallCause::AddressInUse,
            format!("another connection {ends} exists: {}", owner_names(std::iter::once(holder))),
        ),
        None => Explanation::new(
            None,
            CallCause::Port(Cause::Unknown),
            format!("no other connection {ends} is listed, so the reason is unknown"),
        ),
    }
}
