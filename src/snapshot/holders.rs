//! Lists the sockets on a port, and finds the processes that have them open.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use super::error::SnapshotError;
use crate::analysis::conflict::FailedAttempts;
use crate::analysis::direction;
use crate::filter::{End, Filter};
use crate::model::bind::{Attempt, Holder};
use crate::model::listeners::Listeners;
use crate::model::port::{Port, PortRange};
use crate::model::process::{Owners, Processes};
use crate::model::row::Direction;
use crate::model::socket::{Cookie, FullSocket, Socket, StateSet, TcpState};
use crate::source::Source;
use crate::sys;

/// Every socket on the port, in a stable order.
pub(super) struct PortSockets {
    /// Each socket with its direction: the end that probably opened the connection.
    pub(super) list: Vec<(Socket, Direction)>,
    /// Whether the dump was not interrupted.
    pub(super) complete: bool,
    /// Whether the source lists sockets that are bound and do not listen. If not, they are found through the descriptors of
    /// processes.
    pub(super) bound_sockets_are_listed: bool,
    /// Why sockets that are bound and do not listen may be missing, if the reason is not a missing permission.
    pub(super) unread: Option<String>,
    /// What the source does not report.
    pub(super) warnings: Vec<String>,
}

impl PortSockets {
    pub(super) fn sockets(&self) -> Vec<Socket> {
        self.list.iter().map(|(socket, _)| *socket).collect()
    }
}

/// Lists every socket whose local port is `port`.
pub(super) fn sockets_on(source: &mut Source, port: Port) -> Result<PortSockets, SnapshotError> {
    // No socket has port 0.
    if port.reserved_by_rfc() {
        return Ok(PortSockets {
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
            // Listeners on every port arrive, because the filter does not apply to them. A listener on the remote port shows that
            // the local end is a client.
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
            .map(|why| format!("a socket that is bound and does not listen may be missing among the holders: {why}"));
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
            // Sockets in these states have no connection.
            TcpState::Listen | TcpState::Closed | TcpState::BoundInactive => Direction::Unknown,
            _ => direction::infer(&facts, &listeners, socket.tuple(), socket.interface()),
        };
        (socket, direction)
    };
    let list = sockets.into_iter().map(inferred).collect();
    Ok(PortSockets {
        list,
        complete: end.complete,
        bound_sockets_are_listed: source.lists_bound_sockets(),
        unread,
        warnings: source.warnings_where_processes_are_searched(),
    })
}

/// Finds the processes that have the sockets open, and whether each socket may be the reason why an attempt failed. The
/// owners in `known` are not searched again. The second value is a sentence about processes that may be missing.
pub(super) fn holders(
    source: &mut Source,
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
    let failure = found.failure.map(|why| format!("some processes could not be read, so owners may be missing: {why}"));
    let all: Vec<Socket> = sockets.iter().map(|(socket, _)| *socket).collect();
    let failed_attempts = FailedAttempts::new(attempts, &all.iter());
    let mut created_in = creation_cgroups(source, &all, &owners);
    let mut holder = |(socket, direction): (Socket, Direction)| {
        let created_in = socket.cookie().and_then(|cookie| created_in.remove(&cookie));
        let mut owners = inode(&socket).and_then(|inode| owners.get(&inode).cloned()).unwrap_or(Owners::Nobody);
        owners.name_socket_unit(created_in.as_deref());
        Holder {
            socket,
            direction,
            owners,
            user: full(&socket).and_then(|full| sys::users::user(full.uid)),
            created_in,
            blocks: failed_attempts.can_be_blocked_by(&socket),
        }
    };
    (sockets.into_iter().map(&mut holder).collect(), failure)
}

/// The maximum number of sockets whose cgroup is looked up. The connections of one server usually have the same cgroup.
const MAX_LOOK_UPS: usize = 64;

/// The cgroups in which sockets were created, if [`Owners::need_cgroup`] is true for their owners. A failure is not reported, because
/// these cgroups are only additional information.
fn creation_cgroups(
    source: &mut Source,
    sockets: &[Socket],
    owners: &BTreeMap<NonZeroU32, Owners>,
) -> BTreeMap<Cookie, String> {
    let wanted = |socket: &&Socket| match socket {
        Socket::Full(full) => full.inode.and_then(|inode| owners.get(&inode)).is_some_and(Owners::need_cgroup),
        Socket::Bucket(_) => false,
    };
    let mut ids = BTreeMap::new();
    for socket in sockets.iter().filter(wanted).take(MAX_LOOK_UPS) {
        let id = source.cgroup(socket).ok().flatten();
        ids.extend(socket.cookie().zip(id));
    }
    let paths = sys::cgroup::paths_of(&ids.values().copied().collect()).unwrap_or_default();
    ids.into_iter().filter_map(|(cookie, id)| Some((cookie, paths.get(&id)?.clone()))).collect()
}

/// Sentences about holders whose processes are unknown.
pub(super) fn hidden_owners(holders: &[Holder]) -> Vec<String> {
    let any = |owners: &Owners| holders.iter().any(|holder| holder.owners == *owners);
    let mut warnings = vec![];
    if any(&Owners::NotPermitted) {
        let why = match sys::folder::proc_gap() {
            Ok(Some(gap)) => gap.to_string(),
            _ => "this user has no permission to read the descriptors of every process".into(),
        };
        warnings.push(format!(
            "the processes of some holders are unknown, because {why}; root, or a user with CAP_SYS_PTRACE and \
             CAP_DAC_READ_SEARCH, can read every /proc/PID/fd"
        ));
    }
    if any(&Owners::NotFound(Processes::OfPidNamespace)) {
        warnings.push(
            "no process was found for some holders. /proc shows only this pid namespace, so a process of another pid \
             namespace, or the kernel itself, may have them open. Run the same command on the host to find the \
             process"
                .into(),
        );
    }
    if any(&Owners::NotFound(Processes::All)) {
        warnings.push(
            "no process was found for some holders, although every process was read. The kernel itself, an io_uring \
             instance, or a message that passes them to another process (SCM_RIGHTS) may have them open"
                .into(),
        );
    }
    warnings
}
