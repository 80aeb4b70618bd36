//! What `bind-test` and `wait` share: the port and the addresses that were meant, every socket on the port, who has it
//! open, and whether it is in the way.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU32;

use clap::ValueEnum;

use super::{CommandError, GlobalArgs, bad_value, without_value};
use crate::analysis::conflict::Obstacles;
use crate::analysis::direction;
use crate::filter::{End, Filter};
use crate::model::addr::{AddrError, ScopedAddr};
use crate::model::bind::{Attempt, BindAddr, Holder, ReuseOptions};
use crate::model::facts::Facts;
use crate::model::listeners::Listeners;
use crate::model::port::{Port, PortArg, PortRange};
use crate::model::process::{Owners, Processes};
use crate::model::row::Direction;
use crate::model::socket::{FullSocket, Socket, StateSet, TcpState};
use crate::source::Source;
use crate::sys;

/// What a server sets before bind().
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum With {
    /// No option
    None,
    /// SO_REUSEADDR
    Reuseaddr,
    /// SO_REUSEPORT
    Reuseport,
    /// Both
    Both,
}

impl With {
    pub(super) const fn options(self) -> ReuseOptions {
        match self {
            Self::None => ReuseOptions::NONE,
            Self::Reuseaddr => ReuseOptions::REUSEADDR,
            Self::Reuseport => ReuseOptions::REUSEPORT,
            Self::Both => ReuseOptions::BOTH,
        }
    }
}

/// An address as it was typed.
pub(super) fn addr_arg(text: &str) -> Result<ScopedAddr, String> {
    text.parse().map_err(|error: AddrError| without_value(text, &error.to_string()).to_owned())
}

/// The one port that an argument names.
pub(super) fn single_port(arg: &PortArg, facts: &Facts) -> Result<Port, CommandError> {
    let range = facts.ports(arg).map_err(|why| bad_value(arg, "<PORT>", &why))?;
    if range.first() != range.last() {
        return Err(bad_value(arg, "<PORT>", "only one port can be tested: a number or a service name"));
    }
    Ok(range.first())
}

/// Where to bind, each address once.
pub(super) fn addresses(
    typed: &[ScopedAddr],
    global: &GlobalArgs,
    facts: &Facts,
    warnings: &mut Vec<String>,
) -> Result<Vec<BindAddr>, CommandError> {
    let family = global.ipv4_on_the_wire();
    if typed.is_empty() {
        let mut addrs = vec![];
        if family != Some(false) {
            addrs.push(BindAddr { addr: Ipv4Addr::UNSPECIFIED.into(), scope: None });
        }
        let v6 = BindAddr { addr: Ipv6Addr::UNSPECIFIED.into(), scope: None };
        match family {
            Some(true) => {}
            Some(false) => addrs.push(v6),
            None => match sys::bind::no_ipv6_sockets()? {
                None => addrs.push(v6),
                Some(why) => warnings.push(format!("IPv6 sockets cannot be made here, so :: is left out: {why}")),
            },
        }
        return Ok(addrs);
    }
    let mut addrs: Vec<BindAddr> = vec![];
    for typed in typed {
        let argument = "--addr <ADDR>";
        let scope = typed.scope.as_deref().map(|scope| facts.interface_index(scope)).transpose();
        let scope = scope.map_err(|why| bad_value(typed, argument, &why))?;
        if scope.is_some() && !matches!(typed.addr, IpAddr::V6(v6) if v6.is_unicast_link_local()) {
            return Err(bad_value(typed, argument, "only a link-local address (fe80::/10) has a scope (ipv6(7))"));
        }
        let ipv4 = matches!(typed.addr.to_canonical(), IpAddr::V4(_));
        if family.is_some_and(|wanted| wanted != ipv4) {
            let flag = if ipv4 { "-6" } else { "-4" };
            return Err(bad_value(typed, argument, &format!("it is not of the family that {flag} asks for")));
        }
        let at = BindAddr { addr: typed.addr, scope };
        if !addrs.contains(&at) {
            addrs.push(at);
        }
    }
    Ok(addrs)
}

/// Every socket on the port, in a stable order.
pub(super) struct Sockets {
    /// With who opened the connection, as far as that can be inferred.
    pub(super) list: Vec<(Socket, Direction)>,
    /// Whether the kernel said nothing against its completeness.
    pub(super) complete: bool,
    /// Whether the list has every socket that is bound without listening; else those were looked for in processes.
    pub(super) bound_sockets_are_listed: bool,
    /// Why one of those may be missing, where the reason is not permission.
    pub(super) unread: Option<String>,
    /// What is poorer because sock_diag was refused.
    pub(super) warnings: Vec<String>,
}

/// Every socket whose local port this is.
pub(super) fn sockets_on(source: &mut Source, port: Port) -> Result<Sockets, CommandError> {
    // Port 0 is nobody's.
    if port.reserved_by_rfc() {
        return Ok(Sockets {
            list: vec![],
            complete: true,
            bound_sockets_are_listed: true,
            unread: None,
            warnings: vec![],
        });
    }
    let facts = source.facts().clone();
    let ((listeners, mut sockets), end) = source.collect(
        StateSet::ALL,
        &Filter::Port(End::Local, PortRange::one(port)),
        || (Listeners::default(), vec![]),
        |(listeners, sockets), socket| {
            // A walk has every listener, whatever the filter: one at the other end tells a client, too.
            if let Socket::Full(full) = socket
                && full.state == TcpState::Listen
            {
                listeners.add(*full);
            }
            if socket.tuple().local_port() == port {
                sockets.push(*socket);
            }
        },
    )?;
    let mut unread = None;
    if !source.lists_bound_sockets() {
        let found = sys::unlisted::bound_to(port);
        sockets.extend(found.sockets.into_iter().map(Socket::Full));
        unread = found
            .failure
            .map(|why| format!("a socket that is bound without listening may be missing among the holders: {why}"));
    }
    sockets.sort_by_key(|socket| {
        let tuple = socket.tuple();
        let rank = match socket {
            Socket::Full(full) => u8::from(full.state != TcpState::Listen),
            Socket::Bucket(_) => 2,
        };
        (rank, tuple.local_addr(), tuple.remote_addr(), tuple.remote_port(), socket.cookie())
    });
    let inferred = |socket: Socket| {
        let direction = match socket.state() {
            // Nobody has connected.
            TcpState::Listen | TcpState::Closed | TcpState::BoundInactive => Direction::Unknown,
            _ => direction::infer(&facts, &listeners, socket.tuple(), socket.interface()),
        };
        (socket, direction)
    };
    let list = sockets.into_iter().map(inferred).collect();
    Ok(Sockets {
        list,
        complete: end.complete,
        bound_sockets_are_listed: source.lists_bound_sockets(),
        unread,
        warnings: source.warnings_where_processes_are_searched(),
    })
}

/// The sockets with who has them open, and whether one of these attempts may have run into them.
/// `known` owners of inodes are not looked for again. Beside them why holders may be missing, if they may.
pub(super) fn holders(
    attempts: &[Attempt],
    sockets: Vec<(Socket, Direction)>,
    known: BTreeMap<NonZeroU32, Owners>,
) -> (Vec<Holder>, Option<String>) {
    let full = |socket: &Socket| match socket {
        Socket::Full(full) => Some(*full),
        Socket::Bucket(_) => None,
    };
    let inode = |socket: &Socket| full(socket).and_then(|full| full.inode);
    let is_unknown = |full: &FullSocket| full.inode.is_some_and(|inode| !known.contains_key(&inode));
    let unknown: Vec<FullSocket> = sockets.iter().filter_map(|(socket, _)| full(socket)).filter(is_unknown).collect();
    let found = sys::owners::find(&unknown);
    let mut owners = known;
    owners.extend(found.owners);
    let failure =
        found.failure.map(|why| format!("some processes could not be read, so holders may be missing: {why}"));
    let all: Vec<Socket> = sockets.iter().map(|(socket, _)| *socket).collect();
    let obstacles = Obstacles::new(attempts, &all.iter());
    let holder = |(socket, direction)| Holder {
        socket,
        direction,
        owners: inode(&socket).and_then(|inode| owners.get(&inode).cloned()).unwrap_or(Owners::Nobody),
        blocks: obstacles.has(&socket),
    };
    (sockets.into_iter().map(holder).collect(), failure)
}

/// Why the processes of some holders are not named.
pub(super) fn hidden_owners(holders: &[Holder]) -> Vec<String> {
    let any = |owners: &Owners| holders.iter().any(|holder| holder.owners == *owners);
    let mut warnings = vec![];
    if any(&Owners::NotPermitted) {
        let why = match sys::folder::proc_gap() {
            Ok(Some(gap)) => gap.to_string(),
            _ => "not every process may be looked into".into(),
        };
        warnings.push(format!(
            "some holders have no process named, because {why}: root or CAP_SYS_PTRACE may read every /proc/PID/fd"
        ));
    }
    if any(&Owners::NotFound(Processes::OfPidNamespace)) {
        warnings.push(
            "no process was found for some holders: /proc shows this pid namespace alone, so a process of another pid \
             namespace may have them open, or the kernel itself; on the host, the same question can find it"
                .into(),
        );
    }
    if any(&Owners::NotFound(Processes::All)) {
        warnings.push(
            "no process was found for some holders, although every process was read: the kernel itself may have them open, \
             an io_uring instance may, or they are on their way from one process to another (SCM_RIGHTS)"
                .into(),
        );
    }
    warnings
}
