//! Lists the ports that connect() may choose from, and the destinations that use them.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::num::NonZeroU32;

use super::error::{BadValue, SnapshotError};
use super::query::NO_V6ONLY;
use super::{Answer, Snapshot, interrupted};
use crate::analysis::advice::counted_noun;
use crate::analysis::capacity::sockets::{ConnectionEnds, RangeSockets};
use crate::analysis::capacity::{self, Conditions, Destination, DestinationFilter, Pool};
use crate::analysis::history::Length;
use crate::filter::{End, Filter};
use crate::model::addr::{ScopedAddr, ScopedEnd};
use crate::model::bind::BindAddr;
use crate::model::facts::{Facts, Setting, UnreadFacts};
use crate::model::port::{Port, PortArg};
use crate::model::port_set::PortSet;
use crate::model::socket::StateSet;
use crate::model::tw_reuse::TwReuse;
use crate::source::{self, Origin, Source, SourceChoice, WalkEnd};
use crate::sys;
use crate::sys::errno::FailureClass;

/// Selects the destinations of a question about capacity. Names are resolved in the network namespace of the question.
#[derive(Clone, Debug, Default)]
pub struct CapacityQuestion {
    /// Only this destination.
    pub to: Option<ScopedEnd>,
    /// Only from this local address.
    pub from: Option<ScopedAddr>,
    /// Only connections with IPv4 (true) or IPv6 (false) on the wire.
    pub ipv4: Option<bool>,
    /// Whether to test which ports are explicitly bound (by bind(), so that connect() does not choose them). The test calls
    /// connect(), sends nothing and holds each port for 1-2 µs. Without the test, ports that may be bound stay uncertain.
    pub probe: bool,
}

/// The ports that connect() may choose from, and the destinations that use them.
#[derive(Debug)]
pub struct Capacity {
    /// The facts of the network namespace.
    pub facts: Facts,
    /// The interface of the kernel that listed the sockets.
    pub origin: Origin,
    /// The ports.
    pub pool: Pool,
    /// When connect() may take over a bucket.
    pub reuse: TwReuse,
    /// How long TIME_WAIT lasts.
    pub length: Length,
    /// The destinations; the most urgent one comes first.
    pub destinations: Vec<Destination>,
}

impl Capacity {
    /// The conditions that the destinations depend on.
    #[must_use]
    pub const fn conditions(&self) -> Conditions<'_> {
        Conditions { pool: &self.pool, reuse: self.reuse, length: self.length }
    }
}

impl Snapshot {
    /// Calculates how many more connections each destination can have, in one network namespace.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub fn capacity(&self, question: &CapacityQuestion) -> Result<Answer<Capacity>, SnapshotError> {
        self.kernel_namespaces()?.within(|| capacity_here(question))
    }
}

pub(super) fn capacity_here(question: &CapacityQuestion) -> Result<Answer<Capacity>, SnapshotError> {
    let mut source = Source::kernel(SourceChoice::Auto)?;
    let facts = source.facts().clone();
    let asked = ResolvedQuestion::new(question, &facts)?;
    let range = facts.local_port_range.ok_or(SnapshotError::Unread(Setting::LocalPortRange))?.0;

    let mut unread = UnreadFacts::default();
    let reuse = source::tw_reuse(&mut unread);
    let (sockets, end) = source.collect(
        StateSet::ALL,
        &Filter::Port(End::Local, range),
        || RangeSockets::new(range),
        RangeSockets::add,
    )?;
    conclude(&source, facts, (sockets, end), (reuse, unread), &asked, question.probe)
}

/// Makes the answer from a walk that has listed every socket on a port of the ephemeral range. `reuse` was read before the walk. `unread`
/// lists the settings that could not be read for `reuse`.
pub(super) fn conclude(
    source: &Source,
    facts: Facts,
    (sockets, end): (RangeSockets, WalkEnd),
    (reuse, mut unread): (TwReuse, UnreadFacts),
    asked: &ResolvedQuestion,
    probe: bool,
) -> Result<Answer<Capacity>, SnapshotError> {
    let length = Length::learn(source::tw_timeout_s(&mut unread), sockets.largest_expiry_ms());
    // The maximum number of bound sockets that the source does not list.
    let most = if source.lists_bound_sockets() { Ok(Some(0)) } else { sys::counts::most_unlisted_tcp_sockets() };
    let most = most.unwrap_or_else(|error| {
        unread.add("the number of sockets that the kernel does not list", &error);
        None
    });
    let unlisted = most.and_then(|most| u32::try_from(most).ok()).unwrap_or(u32::MAX);

    let mut answer = Answer { warnings: facts.gaps(&[Setting::LocalReservedPorts]), ..Answer::whole(()) };
    answer.warnings.extend(unread.sentences());
    let of_unknown_direction = sockets.of_unknown_direction();
    if of_unknown_direction > 0 {
        let counted = counted_noun(of_unknown_direction, "connection");
        answer.warnings.push(format!("{counted} of unknown direction left out: {NO_V6ONLY}"));
    }
    if reuse.mode.is_none() || reuse.timestamps.is_none() {
        answer.warnings.push(
            "net.ipv4.tcp_tw_reuse or net.ipv4.tcp_timestamps could not be read. So it is unknown which buckets \
             connect() may take over, and their ports do not count as free"
                .into(),
        );
    }
    answer.complete = end.complete && answer.warnings.is_empty();
    answer.warnings.extend((!end.complete).then(interrupted));
    answer.warnings.extend(source.warnings());

    let pool = pool(&sockets, &facts, unlisted, probe, &mut answer);
    let route = asked.route();
    let conditions = Conditions { pool: &pool, reuse, length };
    let ends = route.as_ref().and_then(|ends| ends.as_ref().ok().copied());
    let destinations = capacity::destinations(sockets, &conditions, &asked.wanted, ends);
    if let Some(Err(unreachable)) = route
        && (destinations.is_empty() || !unreachable.is_answer_about_route())
    {
        return Err(unreachable);
    }
    facts.interfaces.look_up(destinations.iter().filter_map(|one| one.ends.interface));
    if let Some(failure) = facts.interfaces.failure() {
        answer.complete = false;
        answer.warnings.push(failure);
    }
    Ok(answer.with(Capacity { facts, origin: source.origin(), pool, reuse, length, destinations }))
}

/// The ports that connect() may choose from. For `probe`, see [`CapacityQuestion::probe`].
fn pool(sockets: &RangeSockets, facts: &Facts, unlisted: u32, probe: bool, answer: &mut Answer<()>) -> Pool {
    let reserved = facts.local_reserved_ports.clone().unwrap_or_default();
    let mut bound = sockets.bound().clone();
    let mut uncertain = sockets.may_be_bound();
    let mut unlisted = unlisted;
    if probe {
        // A socket that is not listed may have any port of the range.
        let doubtful: PortSet = if unlisted == 0 { uncertain.clone() } else { sockets.range().ports().collect() };
        let is_doubtful = |port: &Port| !reserved.contains(*port) && !bound.contains(*port);
        let doubtful: Vec<Port> = doubtful.iter().filter(is_doubtful).collect();
        match sys::port_probe::skipped_by_connect(&doubtful) {
            Ok(skipped) => {
                skipped.iter().for_each(|port| bound.insert(port));
                (uncertain, unlisted) = (PortSet::default(), 0);
            }
            Err(why) => {
                // If the test can never work here (old kernel, sandbox), the answer counts as complete: a repeated attempt would not help.
                answer.complete &= why.is_definite();
                answer.warnings.push(format!(
                    "it is unknown which ports are explicitly bound, because they could not be tested \
                     ({why}); ports of connections count as not explicitly bound"
                ));
            }
        }
    }
    Pool::new(sockets.range(), &reserved, &bound, &uncertain, unlisted)
}

/// A question about capacity with every name resolved. The default asks about all destinations.
#[derive(Default)]
pub(super) struct ResolvedQuestion {
    wanted: DestinationFilter,
    /// The destination that the answer must contain, and the text that the user typed for it.
    to: Option<(SocketAddr, String)>,
    from: Option<SocketAddr>,
}

fn socket_addr(addr: IpAddr, port: u16, scope: Option<NonZeroU32>) -> SocketAddr {
    match addr {
        IpAddr::V4(_) => SocketAddr::new(addr, port),
        IpAddr::V6(v6) => SocketAddrV6::new(v6, port, 0, scope.map_or(0, NonZeroU32::get)).into(),
    }
}

impl ResolvedQuestion {
    fn new(question: &CapacityQuestion, facts: &Facts) -> Result<Self, BadValue> {
        const TO: &str = "--to <ADDR[:PORT]>";
        const FROM: &str = "--from <ADDR>";
        let ipv4 = question.ipv4;
        let resolve = |argument: &str, typed: &ScopedAddr| -> Result<(IpAddr, Option<NonZeroU32>), BadValue> {
            let scope = typed.scope.as_deref().map(|scope| facts.interface_index(scope)).transpose();
            let scope = scope.map_err(|why| BadValue::new(typed, argument, &why))?;
            let addr = typed.addr.to_canonical();
            if addr.is_unspecified() || addr.is_multicast() {
                return Err(BadValue::new(
                    typed,
                    argument,
                    "a TCP connection has a single address at each end, not a wildcard or multicast address",
                ));
            }
            if ipv4.is_some_and(|ipv4| ipv4 != addr.is_ipv4()) {
                let flag = if addr.is_ipv4() { "-6" } else { "-4" };
                return Err(BadValue::new(typed, argument, &format!("{flag} selects the other IP version")));
            }
            Ok((addr, scope))
        };
        let to = question.to.as_ref().map(|typed| resolve(TO, &typed.addr)).transpose()?;
        let from = question.from.as_ref().map(|typed| resolve(FROM, typed)).transpose()?;
        if let (Some((to, _)), Some((from, _)), Some(typed)) = (to, from, &question.from)
            && to.is_ipv4() != from.is_ipv4()
        {
            return Err(BadValue::new(typed, FROM, &format!("{to} is an address of the other IP version")));
        }
        let port = question.to.as_ref().and_then(|typed| typed.port.as_ref());
        let port = port.map(|port| destination_port(port, TO, facts)).transpose()?;
        let scope = to.and_then(|(_, scope)| scope).or_else(|| from.and_then(|(_, scope)| scope));
        let wanted = DestinationFilter {
            remote_addr: to.map(|(addr, _)| addr),
            remote_port: port,
            local_addr: from.map(|(addr, _)| addr),
            interface: scope,
            ipv4,
        };
        let destination = to.zip(port).map(|((addr, _), port)| socket_addr(addr, port.0, scope));
        let typed = question.to.as_ref().map(ToString::to_string).unwrap_or_default();
        Ok(Self {
            wanted,
            to: destination.map(|to| (to, typed)),
            from: from.map(|(addr, _)| socket_addr(addr, 0, scope)),
        })
    }

    /// The ends of a connection to the destination that the answer must contain. Such a connection need not exist. The local
    /// address is the one in the question, or else the one that the kernel would choose. The error comes from the route look-up.
    fn route(&self) -> Option<Result<ConnectionEnds, SnapshotError>> {
        let (to, typed) = self.to.as_ref()?;
        let local = sys::route::source(self.from, *to);
        Some(match local {
            Ok(local_addr) => Ok(ConnectionEnds {
                ipv6: to.is_ipv6(),
                local_addr,
                remote_addr: to.ip(),
                remote_port: Port(to.port()),
                interface: self.wanted.interface,
            }),
            Err(source) if matches!(FailureClass::of(&source), FailureClass::Exhausted | FailureClass::Interrupted) => {
                Err(SnapshotError::system("looking up a route")(source))
            }
            Err(source) => Err(SnapshotError::Unreachable {
                to: typed.clone(),
                lacks_scope: source.kind() == std::io::ErrorKind::InvalidInput
                    && BindAddr { addr: to.ip(), scope: self.wanted.interface }.lacks_scope(),
                source,
            }),
        })
    }
}

pub(super) fn destination_port(arg: &PortArg, argument: &str, facts: &Facts) -> Result<Port, BadValue> {
    let range = facts.ports(arg).map_err(|why| BadValue::new(arg, argument, &why))?;
    if range.first() != range.last() || range.first().reserved_by_rfc() {
        return Err(BadValue::new(arg, argument, "a destination has one port: a number 1-65535 or a service name"));
    }
    Ok(range.first())
}
