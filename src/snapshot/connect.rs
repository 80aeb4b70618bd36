//! Gathers what decides whether connect() finds an address and a port: results of bind(), the route, the sockets on the
//! source port, and the free ports for the destination. It sends no packet.
//!
//! It never calls connect() with the destination on a TCP socket. Even a connect() that delays its SYN (TCP_FASTOPEN_CONNECT)
//! destroys the bucket that it takes over (measured on Linux 6.18).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU32;

use super::capacity::{CapacityQuestion, capacity_here, destination_port};
use super::error::{BadValue, SnapshotError};
use super::holders::{hidden_owners, holders, sockets_on};
use super::port::until_consistent;
use super::{Answer, Snapshot, interrupted};
use crate::analysis::conflict;
use crate::analysis::connect::{PortChoice, Situation};
use crate::model::addr::{ScopedAddr, ScopedEnd};
use crate::model::bind::{Attempt, BindAddr, CallResult, Errno, Holder, ReuseOptions};
use crate::model::facts::{Facts, Setting, UnreadFacts};
use crate::model::port::{Port, PortArg, PortRange};
use crate::source::{self, Source, SourceChoice};
use crate::sys;
use crate::sys::errno::FailureClass;

const TO: &str = "<ADDR:PORT>";
const FROM: &str = "--from <ADDR[:PORT]>";

/// A connection that a client would make. Names are resolved in the network namespace of the question.
#[derive(Clone, Debug)]
pub struct ConnectQuestion {
    /// The destination.
    pub to: ScopedEnd,
    /// What the client binds before connect(): an address, or an address and a port.
    pub from: Option<ScopedEnd>,
    /// Whether the client sets SO_REUSEADDR before bind().
    pub reuseaddr: bool,
    /// Whether the client sets IP_BIND_ADDRESS_NO_PORT before it binds an address without a port.
    pub bind_address_no_port: bool,
    /// Only IPv4 (true) or IPv6 (false) on the wire.
    pub ipv4: Option<bool>,
}

impl Snapshot {
    /// Gathers what decides whether a client can connect, in one network namespace. To test a fixed source port, twtool binds it
    /// and holds it for microseconds.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub fn connect(&self, question: &ConnectQuestion) -> Result<Answer<Situation>, SnapshotError> {
        self.kernel_namespaces()?.within(|| connect_here(question))
    }
}

fn connect_here(question: &ConnectQuestion) -> Result<Answer<Situation>, SnapshotError> {
    let facts = source::kernel_facts();
    let ResolvedEnds { to, to_port, from, from_port } = ResolvedEnds::resolve(question, &facts)?;
    let mut answer = Answer { warnings: facts.gaps(&Setting::ALL), ..Answer::whole(()) };
    answer.complete = answer.warnings.is_empty();

    let remote = sys::bind::socket_addr(to, to_port);
    let route = match sys::route::source(from.map(|at| sys::bind::socket_addr(at, Port(0))), remote) {
        Ok(local) => Ok(local.to_canonical()),
        Err(source) if matches!(FailureClass::of(&source), FailureClass::Exhausted | FailureClass::Interrupted) => {
            return Err(SnapshotError::system("looking up a route")(source));
        }
        Err(error) => Err(sys::bind::errno(&error)),
    };
    let bound = bind_as_client(from, from_port, question.reuseaddr, &facts, &mut answer)?;

    let mut unread = UnreadFacts::default();
    let reuse = source::tw_reuse(&mut unread);
    let mut situation = Situation {
        facts,
        to,
        to_port,
        from,
        from_port,
        with: if question.reuseaddr { ReuseOptions::REUSEADDR } else { ReuseOptions::NONE },
        bind_address_no_port: question.bind_address_no_port,
        attempts: bound.attempts,
        route,
        holders: bound.holders,
        bound_sockets_are_listed: bound.bound_sockets_are_listed,
        reuse,
        choice: None,
        uid: sys::capabilities::effective_user(),
    };
    for at in 0..situation.holders.len() {
        // bind() may work beside this socket, but connect() can fail, because the new connection would have the same two ends.
        situation.holders[at].blocks |= situation.is_same_connection(&situation.holders[at].socket);
    }
    let denied = situation
        .attempts
        .first()
        .is_some_and(|one| !matches!(one.bind, CallResult::Ok | CallResult::Failed(Errno::AddrInUse)));
    if let (Ok(local), None, false) = (route, from_port, denied) {
        situation.choice = choose(&situation, local, &mut answer)?;
    } else {
        answer.complete &= unread.sentences().is_empty();
        answer.warnings.extend(unread.sentences());
    }
    Ok(answer.with(situation))
}

fn choose(situation: &Situation, local: IpAddr, answer: &mut Answer<()>) -> Result<Option<PortChoice>, SnapshotError> {
    let Situation { facts, to, to_port, from, .. } = situation;
    let scoped = |at: &BindAddr| ScopedAddr {
        addr: at.addr.to_canonical(),
        scope: at.scope.map(|index| facts.interface_name(index)),
    };
    let question = CapacityQuestion {
        to: Some(ScopedEnd { addr: scoped(to), port: Some(PortArg::Range(PortRange::one(*to_port))) }),
        from: from.as_ref().filter(|at| !at.addr.to_canonical().is_unspecified()).map(scoped),
        ipv4: None,
        probe: true,
    };
    let found = capacity_here(&question)?;
    answer.complete &= found.complete;
    for warning in found.warnings {
        if !answer.warnings.contains(&warning) {
            answer.warnings.push(warning);
        }
    }
    let interface = from.and_then(|at| at.scope).or(to.scope);
    let capacity = found.value;
    let mut destinations = capacity.destinations.into_iter();
    let destination = destinations.find(|one| one.ends.local_addr == local && one.ends.interface == interface);
    Ok(destination.map(|destination| PortChoice { pool: capacity.pool, length: capacity.length, destination }))
}

struct ClientBind {
    attempts: Vec<Attempt>,
    holders: Vec<Holder>,
    bound_sockets_are_listed: bool,
}

fn bind_as_client(
    from: Option<BindAddr>,
    port: Option<Port>,
    reuseaddr: bool,
    facts: &Facts,
    answer: &mut Answer<()>,
) -> Result<ClientBind, SnapshotError> {
    let Some(at) = from else {
        return Ok(ClientBind { attempts: vec![], holders: vec![], bound_sockets_are_listed: true });
    };
    let Some(port) = port else {
        let attempts = vec![sys::bind::attempt_once(at, Port(0), false)?];
        return Ok(ClientBind { attempts, holders: vec![], bound_sockets_are_listed: true });
    };
    let mut source = Source::kernel_with(SourceChoice::Auto, facts.clone())?;
    let (own, sockets, consistent) = until_consistent(|| {
        let own = sys::bind::attempt_once(at, port, reuseaddr)?;
        let sockets = sockets_on(&mut source, port)?;
        // With SO_REUSEADDR, a bind can work although another socket is on the port.
        let consistent = if reuseaddr { conflict::explained } else { conflict::consistent };
        let consistent = consistent(&[own], &sockets.sockets());
        Ok(((own, sockets, consistent), consistent))
    })?;
    let may_help = own.bind == CallResult::Failed(Errno::AddrInUse) && !reuseaddr;
    let other = if may_help { Some(sys::bind::attempt_once(at, port, true)?) } else { None };
    answer.complete &= sockets.complete && sockets.unread.is_none();
    answer.warnings.extend((!sockets.complete).then(interrupted));
    answer.warnings.extend((!consistent).then(|| {
        "the bind result and the kernel's list of sockets were not consistent, although twtool tried three times: sockets come and go, or the \
         list lacks one"
            .into()
    }));
    answer.warnings.extend(sockets.warnings);
    answer.warnings.extend(sockets.unread);
    let (holders, unread) = holders(&mut source, &[own], sockets.list, BTreeMap::new());
    answer.complete &= unread.is_none();
    answer.warnings.extend(unread);
    answer.warnings.extend(hidden_owners(&holders));
    let attempts = std::iter::once(own).chain(other).collect();
    Ok(ClientBind { attempts, holders, bound_sockets_are_listed: sockets.bound_sockets_are_listed })
}

struct ResolvedEnds {
    to: BindAddr,
    to_port: Port,
    from: Option<BindAddr>,
    from_port: Option<Port>,
}

impl ResolvedEnds {
    fn resolve(question: &ConnectQuestion, facts: &Facts) -> Result<Self, BadValue> {
        let ConnectQuestion { to: typed_to, from: typed_from, ipv4, .. } = question;
        let Some(to_port) = &typed_to.port else {
            let why = if typed_to.addr.addr.is_ipv6() {
                "a destination needs a port, like [2001:db8::1]:443"
            } else {
                "a destination needs a port, like 192.0.2.1:443"
            };
            return Err(BadValue::new(typed_to, TO, why));
        };
        let to_port = destination_port(to_port, TO, facts)?;
        let mut to = resolve_addr(&typed_to.addr, TO, facts)?;
        if to.addr.to_canonical().is_unspecified() {
            let own: IpAddr =
                if to.addr.to_canonical().is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
            let why = format!("a destination is a single address (connect() to this wildcard address reaches {own})");
            return Err(BadValue::new(&typed_to.addr, TO, &why));
        }
        if ipv4.is_some_and(|ipv4| ipv4 != to.addr.to_canonical().is_ipv4()) {
            let flag = if *ipv4 == Some(true) { "-4" } else { "-6" };
            return Err(BadValue::new(&typed_to.addr, TO, &format!("{flag} selects the other IP version")));
        }
        let Some(typed_from) = typed_from else { return Ok(Self { to, to_port, from: None, from_port: None }) };
        let mut from = resolve_addr(&typed_from.addr, FROM, facts)?;
        let from_port = typed_from.port.as_ref().map(|port| source_port(port, facts)).transpose()?.flatten();
        // An AF_INET6 socket that is bound to :: can also connect to an IPv4-mapped address. In all other cases both ends must have
        // the same IP version.
        let mapped = |at: &BindAddr| at.addr.is_ipv6() && at.addr.to_canonical().is_ipv4();
        let any = from.addr == IpAddr::V6(Ipv6Addr::UNSPECIFIED) && mapped(&to);
        if !any && from.addr.to_canonical().is_ipv4() != to.addr.to_canonical().is_ipv4() {
            return Err(BadValue::new(
                &typed_from.addr,
                FROM,
                &format!("{} is an address of the other IP version", to.addr),
            ));
        }
        // One socket has both ends. If one of them is written as an IPv4-mapped address, the socket is an AF_INET6 socket.
        let as_ipv6 = mapped(&to) || mapped(&from);
        for one in [&mut to, &mut from] {
            if let (IpAddr::V4(v4), true) = (one.addr, as_ipv6) {
                one.addr = v4.to_ipv6_mapped().into();
            }
        }
        let from = (from_port.is_some() || !from.addr.to_canonical().is_unspecified()).then_some(from);
        Ok(Self { to, to_port, from, from_port })
    }
}

fn resolve_addr(typed: &ScopedAddr, argument: &str, facts: &Facts) -> Result<BindAddr, BadValue> {
    let scope = typed.scope.as_deref().map(|scope| facts.interface_index(scope)).transpose();
    let scope: Option<NonZeroU32> = scope.map_err(|why| BadValue::new(typed, argument, &why))?;
    if typed.addr.to_canonical().is_multicast() {
        return Err(BadValue::new(typed, argument, "a TCP connection has no multicast address"));
    }
    if scope.is_some() && !matches!(typed.addr, IpAddr::V6(v6) if v6.is_unicast_link_local()) {
        return Err(BadValue::new(typed, argument, "only a link-local address (fe80::/10) has a scope (ipv6(7))"));
    }
    Ok(BindAddr { addr: typed.addr, scope })
}

/// The fixed source port; `None` for port 0, for which bind() chooses a port.
fn source_port(arg: &PortArg, facts: &Facts) -> Result<Option<Port>, BadValue> {
    let range = facts.ports(arg).map_err(|why| BadValue::new(arg, FROM, &why))?;
    if range.first() != range.last() {
        return Err(BadValue::new(arg, FROM, "a client has one source port: a number or a service name"));
    }
    Ok(Some(range.first()).filter(|port| !port.reserved_by_rfc()))
}
