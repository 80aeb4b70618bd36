//! Watches the socket calls of a program, and reads the facts that explain a failed call.
//!
//! The program is stopped at the call while this module reads the facts of the program's network namespace. The module does not
//! repeat the call, because the errno that the program gets is the evidence.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU32;

use super::capacity::{Capacity, CapacityQuestion, capacity_here};
use super::holders::{hidden_owners, holders, sockets_on};
use super::namespaces::Namespaces;
use super::{SnapshotError, interrupted};
use crate::analysis::connect::has_ends;
use crate::model::addr::{ScopedAddr, ScopedEnd};
use crate::model::bind::{BindAddr, Holder};
use crate::model::call::{CallName, SocketCall};
use crate::model::facts::{Facts, Setting};
use crate::model::netns::NetnsArg;
use crate::model::port::{Port, PortArg, PortRange};
use crate::model::socket::TcpState;
use crate::source::{self, Source, SourceChoice};
use crate::sys;
pub use crate::sys::socket_calls::{ProgramEvent, ProgramTarget, WatchEnd, WatchError, watch};

/// The facts that explain a failed call.
#[derive(Debug)]
pub struct CallSituation {
    /// The facts of the program's network namespace.
    pub facts: Facts,
    /// The program's network namespace, if it is not the one of twtool.
    pub netns: Option<NetnsArg>,
    /// Every socket on the local port of the call. [`Holder::blocks`] is true if the socket can be the reason for EADDRINUSE, or if it
    /// has both ends of the connection that connect() would make.
    pub holders: Vec<Holder>,
    /// The index of the interface that the program set with SO_BINDTODEVICE.
    pub device: Option<NonZeroU32>,
    /// Whether the source lists sockets that are bound and do not listen.
    pub bound_sockets_are_listed: bool,
    /// For a connect() without a fixed source port: the ports left for its destination, or the error of the route look-up.
    pub capacity: Option<Result<Capacity, SnapshotError>>,
    /// The effective user of twtool.
    pub uid: u32,
    /// What is missing or uncertain, and why.
    pub warnings: Vec<String>,
}

/// Reads the facts about a call on a TCP socket. Call this while the program is stopped.
///
/// # Errors
/// The network namespace of the program cannot be entered, or the sockets cannot be read.
pub fn situation(call: &SocketCall) -> Result<CallSituation, SnapshotError> {
    let own = sys::netns::current().ok().flatten().map(|netns| netns.id.inode);
    let elsewhere = call.process.netns.is_some() && call.process.netns != own;
    let arg = elsewhere.then(|| NetnsArg::Process(call.process.tid.cast_unsigned()));
    let mut situation = Namespaces::named(arg.as_slice())?.within(|| situation_here(call))?;
    if let Some(arg) = arg {
        // Prefer the name of the namespace, because a pid identifies the namespace only while the process runs.
        let name = sys::netns::open(&arg).ok().and_then(|open| Some(open.netns.ip_netns_name()?.to_owned()));
        situation.netns = Some(name.map_or(NetnsArg::Process(call.process.pid.cast_unsigned()), NetnsArg::Name));
    }
    Ok(situation)
}

fn situation_here(call: &SocketCall) -> Result<CallSituation, SnapshotError> {
    let facts = source::kernel_facts();
    let mut warnings = facts.gaps(&Setting::ALL);
    let device = call.socket.as_ref().and_then(|socket| facts.interface_index(socket.device.as_deref()?).ok());
    let local = match call.name {
        CallName::Bind | CallName::Listen => call.addr.as_ref().map(|addr| addr.port),
        CallName::Connect => {
            let local = call.socket.as_ref().and_then(|socket| socket.local);
            local.map(|local| Port(local.port()))
        }
    };
    let (mut held, mut bound_sockets_are_listed) = (vec![], true);
    if let Some(port) = local.filter(|port| !port.reserved_by_rfc()) {
        let mut source = Source::kernel_with(SourceChoice::Auto, facts.clone())?;
        let sockets = sockets_on(&mut source, port)?;
        warnings.extend((!sockets.complete).then(interrupted));
        warnings.extend(sockets.warnings);
        warnings.extend(sockets.unread);
        bound_sockets_are_listed = sockets.bound_sockets_are_listed;
        let attempt = call.as_attempt(device).filter(|_| call.name != CallName::Connect);
        let (holders, unread) = holders(&mut source, attempt.as_slice(), sockets.list, BTreeMap::new());
        warnings.extend(unread);
        warnings.extend(hidden_owners(&holders));
        held = holders;
        if let Some((local, remote)) = ends(call) {
            for holder in &mut held {
                holder.blocks |= has_ends(&holder.socket, local, remote, device);
            }
        }
        if call.name == CallName::Listen {
            // bind() succeeded, so only a listener can block listen().
            for holder in &mut held {
                holder.blocks &= holder.socket.state() == TcpState::Listen;
            }
        }
    }
    let capacity = (call.name == CallName::Connect && local.is_none_or(Port::reserved_by_rfc))
        .then(|| destination(call, &mut warnings))
        .flatten();
    let uid = sys::capabilities::effective_user();
    Ok(CallSituation { facts, netns: None, holders: held, device, bound_sockets_are_listed, capacity, uid, warnings })
}

fn destination(call: &SocketCall, warnings: &mut Vec<String>) -> Option<Result<Capacity, SnapshotError>> {
    let to = call.addr.as_ref().filter(|to| !to.port.reserved_by_rfc())?;
    let from = call.socket.as_ref().and_then(|socket| socket.local).map(|local| local.ip().to_canonical());
    let scope = Some(to.scope).filter(|scope| *scope != 0).map(|scope| scope.to_string());
    let question = CapacityQuestion {
        to: Some(ScopedEnd {
            addr: ScopedAddr { addr: to.addr.to_canonical(), scope },
            port: Some(PortArg::Range(PortRange::one(to.port))),
        }),
        from: from.filter(|from| !from.is_unspecified()).map(|addr| ScopedAddr { addr, scope: None }),
        ipv4: None,
        probe: false,
    };
    match capacity_here(&question) {
        Ok(answer) => {
            warnings.extend(answer.warnings);
            Some(Ok(answer.value))
        }
        Err(error) if error.is_answer_about_route() => Some(Err(error)),
        Err(error) => {
            warnings.push(format!("the ports that are left for the destination could not be counted: {error}"));
            None
        }
    }
}

/// The two ends of a connect() with a fixed source port. If the socket is not bound to an address, the route determines the local
/// address. `None` if there is no route, or if the call is not connect().
fn ends(call: &SocketCall) -> Option<(SocketAddr, SocketAddr)> {
    let to = call.addr.as_ref().filter(|_| call.name == CallName::Connect)?;
    let local = call.socket.as_ref()?.local?;
    let at = BindAddr { addr: to.addr, scope: NonZeroU32::new(to.scope) };
    let addr = match local.ip() {
        addr if addr.is_unspecified() => sys::route::source(None, sys::bind::socket_addr(at, to.port)).ok()?,
        addr => addr,
    };
    let remote = SocketAddr::new(to.addr.to_canonical(), to.port.0);
    Some((SocketAddr::new(addr.to_canonical(), local.port()), remote))
}
