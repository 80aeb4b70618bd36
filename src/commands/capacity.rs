//! `twtool capacity`: how many further connects each destination takes, and when it runs out of ports.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::num::NonZeroU32;

use clap::Args;

use super::netns::NetnsArgs;
use super::ports_in_use::{self, PortsInUse};
use super::{Answer, CommandError, Context, Format, GlobalArgs, bad_value, interrupted};
use crate::analysis::capacity::sockets::{Ends, Sockets};
use crate::analysis::capacity::{self, Conditions, Destination, MinFree, Pool, Wanted, advice};
use crate::model::addr::{ScopedAddr, ScopedEnd};
use crate::model::command::Shell;
use crate::model::facts::{Facts, Setting};
use crate::model::port::{Port, PortArg};
use crate::model::port_set::PortSet;
use crate::source::{Choice, Source};
use crate::sys;
use crate::view;
use crate::view::capacity::Capacity;
use crate::view::json::Envelope;

/// How many destinations a table has where nothing was said.
const TOP_ON_THE_SCREEN: usize = 10;

/// Arguments of `twtool capacity`.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = "\
Free is the number of further connects that would succeed now, from that local address to that destination, by a client that \
leaves the port to connect(). The kernel looks through net.ipv4.ip_local_port_range and passes over what is in \
net.ipv4.ip_local_reserved_ports, over every port that some socket bound explicitly (a server, an idle socket, a client that \
used bind(), also when only its TIME_WAIT is left), and over those that have a connection to the same destination. TIME_WAIT \
that tcp_tw_reuse gives back at once counts as free: the connection must have had timestamps, which the kernel does not tell \
of a bucket, so net.ipv4.tcp_timestamps is taken for it. Which ports of connections are explicitly bound the kernel does not \
list, so it is asked, port by port, by connects to an unused loopback address that send nothing and hold the port for a \
microsecond or two. With --no-probe, or where it cannot be asked, such ports count as free, and as uncertain.

A model gives the time to exhaustion, an inference: connections are opened as fast as they are closed, at the rate of \
the last 10 seconds (or of tcp_tw_reuse_delay, where buckets are given back after that); what is in TIME_WAIT gives its \
ports back when its timers end. What is not exhausted within one TIME_WAIT then is not exhausted at this rate. The ceiling is \
the pool by the length of TIME_WAIT, 60 s (or by tcp_tw_reuse_delay).

A destination is one that this end connected to: a connection whose local port has a listener is left out. Where sock_diag is \
refused, it can be unknown whether a listener on :: takes IPv4; then its IPv4 connections are left out, a warning counts \
them, and the exit code is 2. Sockets with a \
narrower range of their own (IP_LOCAL_PORT_RANGE) have less.

Exit codes: 0 answered, 1 a destination has fewer free ports than --min-free, 2 could not tell.

Examples:
  twtool capacity                                   the destinations with the fewest free ports
  twtool capacity --to 192.0.2.10:443               how many more connects there?
  twtool capacity --to '[2001:db8::1]:https' --from 2001:db8::9
  twtool capacity --min-free 10% -o ndjson          for a health check
  twtool capacity --netns web                       in the network namespace web of `ip netns`
  twtool capacity --json | jq '.destinations[] | select(.exhausted_in_ms != null)'
")]
pub struct CapacityArgs {
    /// Only this destination: an address, or address and port like 192.0.2.1:443 or [2001:db8::1]:443
    #[arg(long, value_name = "ADDR[:PORT]")]
    to: Option<ScopedEnd>,
    /// Only from this local address
    #[arg(long, value_name = "ADDR")]
    from: Option<ScopedAddr>,
    /// Show the N destinations with the fewest free ports [default: all, in a table 10]
    #[arg(long, value_name = "N")]
    top: Option<usize>,
    /// Exit code 1 if any destination has fewer free ports than this, or than this share of the pool, like 10%
    #[arg(long, value_name = "N|N%", value_parser = parse_min_free)]
    min_free: Option<MinFree>,
    /// Do not ask the kernel which ports are explicitly bound; read its list alone
    #[arg(long)]
    no_probe: bool,
    #[command(flatten)]
    netns: NetnsArgs,
}

fn parse_min_free(text: &str) -> Result<MinFree, String> {
    let share = text.strip_suffix('%');
    let digits = share.unwrap_or(text);
    let number = Some(digits).filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
    let number = number.and_then(|digits| digits.parse().ok());
    let minimum = match (number, share) {
        (Some(percent @ 0..=100), Some(_)) => Some(MinFree::Percent(percent)),
        (Some(ports @ 0..=65536), None) => Some(MinFree::Ports(ports)),
        _ => None,
    };
    minimum.ok_or_else(|| "it is a number of ports, 0-65536, or a share of the pool, 0%-100%".into())
}

/// Answers.
///
/// # Errors
/// See [`CommandError`].
pub fn run(args: &CapacityArgs, global: &GlobalArgs, context: &mut Context) -> Result<Answer, CommandError> {
    let shell = args.netns.shell(context);
    args.netns.within(|| answer(args, global, context, &shell))
}

fn answer(
    args: &CapacityArgs,
    global: &GlobalArgs,
    context: &mut Context,
    shell: &Shell,
) -> Result<Answer, CommandError> {
    let mut source = Source::kernel(Choice::Auto)?;
    let facts = source.facts().clone();
    let asked = Asked::new(args, global, &facts)?;
    let range = facts.local_port_range.ok_or(CommandError::Unread(Setting::LocalPortRange))?.0;

    let PortsInUse { sockets, end, reuse, length, unlisted, gaps } = ports_in_use::look(&mut source, range)?;
    let mut warnings = facts.gaps(&[Setting::LocalReservedPorts]);
    warnings.extend(gaps);
    if reuse.mode.is_none() || reuse.timestamps.is_none() {
        warnings.push(
            "net.ipv4.tcp_tw_reuse or net.ipv4.tcp_timestamps could not be read: which buckets connect() may take over is \
             unknown, and they do not count as free"
                .into(),
        );
    }
    let mut complete = end.complete && warnings.is_empty();
    warnings.extend((!end.complete).then(interrupted));
    warnings.extend(source.warnings());

    let (pool, failed) = pool(&sockets, &facts, unlisted, args.no_probe, &mut warnings);
    complete &= !failed;
    let conditions = Conditions { pool: &pool, reuse, length };
    let also = asked.route();
    let mut destinations = capacity::destinations(
        sockets,
        &conditions,
        &asked.wanted,
        also.as_ref().and_then(|ends| ends.as_ref().ok().copied()),
    );
    if let Some(Err(unreachable)) = also
        && (destinations.is_empty() || !unreachable.says_so())
    {
        return Err(unreachable);
    }
    if destinations.is_empty() {
        warnings.extend(args.to.as_ref().and_then(perhaps_a_port));
    }
    let (answer, below) = judge(args.min_free, &destinations, pool.size);
    if answer == Answer::Incomplete {
        complete = false;
        warnings.push(
            "whether every destination has as many free ports as --min-free says hangs on ports of which it is not known \
             whether they are free"
                .into(),
        );
    }
    facts.interfaces.look_up(destinations.iter().filter_map(|one| one.ends.interface));
    if let Some(failure) = facts.interfaces.failure() {
        complete = false;
        warnings.push(failure);
    }
    let total = destinations.len();
    let usual = if global.format() == Format::Table { TOP_ON_THE_SCREEN } else { usize::MAX };
    destinations.truncate(args.top.unwrap_or(usual));
    let help = advice::advise(&destinations, &conditions, &facts, shell);

    context.warn(&warnings);
    let capacity = Capacity {
        facts: &facts,
        source: source.origin().name(),
        conditions,
        destinations: &destinations,
        total,
        below_min_free: below,
        help: &help,
    };
    match global.format() {
        Format::Json => {
            let envelope = Envelope { schema: "twtool.capacity/1", facts: &facts, complete, warnings: &warnings };
            view::capacity::document(context.out, envelope, &capacity)?;
        }
        Format::Table => view::capacity::page(context.out, &capacity, context.look)?,
        Format::Ndjson => view::capacity::ndjson(context.out, &capacity)?,
        Format::Csv => view::capacity::csv(context.out, &capacity)?,
    }
    Ok(if complete { answer } else { Answer::Incomplete })
}

/// What somebody may have meant by an IPv6 address that nothing is open to.
fn perhaps_a_port(to: &ScopedEnd) -> Option<String> {
    let typed = to.to_string();
    let (addr, port) = typed.rsplit_once(':').filter(|_| to.port.is_none())?;
    let meant = addr.parse::<Ipv6Addr>().is_ok() && port.parse::<u16>().is_ok();
    meant.then(|| format!("'{typed}' is one address; port {port} of {addr} is [{addr}]:{port}"))
}

/// What connect() may choose from: as the list has it, and as the kernel says where the list does not tell. Beside it whether
/// the kernel failed to answer, which says nothing about what it can do.
fn pool(sockets: &Sockets, facts: &Facts, unlisted: u32, no_probe: bool, warnings: &mut Vec<String>) -> (Pool, bool) {
    let reserved = facts.local_reserved_ports.clone().unwrap_or_default();
    let mut bound = sockets.bound().clone();
    let mut uncertain = sockets.may_be_bound();
    let mut unlisted = unlisted;
    let mut failed = false;
    if !no_probe {
        // A socket that is not listed may have any port.
        let doubtful: PortSet = if unlisted == 0 { uncertain.clone() } else { sockets.range().ports().collect() };
        let is_doubtful = |port: &Port| !reserved.contains(*port) && !bound.contains(*port);
        let doubtful: Vec<Port> = doubtful.iter().filter(is_doubtful).collect();
        match sys::port_probe::kept_from_connect(&doubtful) {
            Ok(kept) => {
                kept.iter().for_each(|port| bound.insert(port));
                (uncertain, unlisted) = (PortSet::default(), 0);
            }
            Err(why) => {
                failed = !why.is_answer();
                warnings.push(format!(
                    "the kernel cannot be asked which ports are explicitly bound ({why}); those of connections count as if they \
                     were not"
                ));
            }
        }
    }
    (Pool::new(sockets.range(), &reserved, &bound, &uncertain, unlisted), failed)
}

/// Whether every destination has as many free ports as it should, and how many have not. Where that hangs on ports of which
/// it is not known whether they are free, it cannot be told.
fn judge(min_free: Option<MinFree>, destinations: &[Destination], pool: u32) -> (Answer, Option<usize>) {
    let Some(min_free) = min_free else { return (Answer::Yes, None) };
    let below = destinations.iter().filter(|one| min_free.is_missed(one.free, pool)).count();
    let perhaps = destinations.iter().any(|one| min_free.is_missed(one.free - one.uncertain, pool));
    let answer = match (below, perhaps) {
        (0, false) => Answer::Yes,
        (0, true) => Answer::Incomplete,
        _ => Answer::No,
    };
    (answer, Some(below))
}

/// What was asked for, with every name resolved.
struct Asked {
    wanted: Wanted,
    /// The destination and the source address, where there must be an answer.
    to: Option<(SocketAddr, String)>,
    from: Option<SocketAddr>,
}

/// An address in the form in which sockets have it.
fn socket_addr(addr: IpAddr, port: u16, scope: Option<NonZeroU32>) -> SocketAddr {
    match addr {
        IpAddr::V4(_) => SocketAddr::new(addr, port),
        IpAddr::V6(v6) => SocketAddrV6::new(v6, port, 0, scope.map_or(0, NonZeroU32::get)).into(),
    }
}

impl Asked {
    fn new(args: &CapacityArgs, global: &GlobalArgs, facts: &Facts) -> Result<Self, CommandError> {
        const TO: &str = "--to <ADDR[:PORT]>";
        const FROM: &str = "--from <ADDR>";
        let ipv4 = global.ipv4_on_the_wire();
        let of = |argument: &str, typed: &ScopedAddr| -> Result<(IpAddr, Option<NonZeroU32>), CommandError> {
            let scope = typed.scope.as_deref().map(|scope| facts.interface_index(scope)).transpose();
            let scope = scope.map_err(|why| bad_value(typed, argument, &why))?;
            let addr = typed.addr.to_canonical();
            if addr.is_unspecified() || addr.is_multicast() {
                return Err(bad_value(typed, argument, "a TCP connection has one address at each end"));
            }
            if ipv4.is_some_and(|ipv4| ipv4 != addr.is_ipv4()) {
                let flag = if addr.is_ipv4() { "-6" } else { "-4" };
                return Err(bad_value(typed, argument, &format!("it is not of the family that {flag} asks for")));
            }
            Ok((addr, scope))
        };
        let to = args.to.as_ref().map(|typed| of(TO, &typed.addr)).transpose()?;
        let from = args.from.as_ref().map(|typed| of(FROM, typed)).transpose()?;
        if let (Some((to, _)), Some((from, _)), Some(typed)) = (to, from, &args.from)
            && to.is_ipv4() != from.is_ipv4()
        {
            return Err(bad_value(typed, FROM, &format!("{to} is of the other family")));
        }
        let port = args.to.as_ref().and_then(|typed| typed.port.as_ref()).map(|port| single_port(port, TO, facts));
        let port = port.transpose()?;
        let scope = to.and_then(|(_, scope)| scope).or_else(|| from.and_then(|(_, scope)| scope));
        let wanted = Wanted {
            remote_addr: to.map(|(addr, _)| addr),
            remote_port: port,
            local_addr: from.map(|(addr, _)| addr),
            interface: scope,
            ipv4,
        };
        let destination = to.zip(port).map(|((addr, _), port)| socket_addr(addr, port.0, scope));
        let typed = args.to.as_ref().map(ToString::to_string).unwrap_or_default();
        Ok(Self {
            wanted,
            to: destination.map(|to| (to, typed)),
            from: from.map(|(addr, _)| socket_addr(addr, 0, scope)),
        })
    }

    /// The connection that must be answered for, open or not: from the address that was given, or that the kernel would
    /// choose; or why there can be none.
    fn route(&self) -> Option<Result<Ends, CommandError>> {
        let (to, typed) = self.to.as_ref()?;
        let local = sys::route::source(self.from, *to);
        Some(match local {
            Ok(local_addr) => Ok(Ends {
                ipv6: to.is_ipv6(),
                local_addr,
                remote_addr: to.ip(),
                remote_port: Port(to.port()),
                interface: self.wanted.interface,
            }),
            Err(source) => Err(CommandError::Unreachable { to: typed.clone(), source }),
        })
    }
}

fn single_port(arg: &PortArg, argument: &str, facts: &Facts) -> Result<Port, CommandError> {
    let range = facts.ports(arg).map_err(|why| bad_value(arg, argument, &why))?;
    if range.first() != range.last() || range.first().reserved_by_rfc() {
        return Err(bad_value(arg, argument, "a destination has one port: a number 1-65535 or a service name"));
    }
    Ok(range.first())
}
