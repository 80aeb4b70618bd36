//! Checks of what the answers of this program rest on: the kernel's interface, and what the caller may see.

use super::{Check, Datum, Status, Subject};
use crate::model::health::{Capability, Health};
use crate::model::process::Owners;

pub(super) fn checks(health: &Health) -> Vec<Check> {
    vec![tcp_diag(health), capabilities(health)]
}

fn tcp_diag(health: &Health) -> Check {
    let subject = Subject {
        id: "tcp_diag",
        does: "Lists sockets by sock_diag, of which the kernel's tcp_diag is the part for TCP: with exact remaining times, \
               cookies, and sockets that are bound and do not listen.",
        does_not: "It needs no privilege. Without it the answers come from /proc/net/tcp, which is poorer and slower.",
        sources: &["sock_diag(7)", "proc_pid_net(5), /proc/net/tcp"],
    };
    let answers = |by: &str| Check::ok(subject, Datum::Text(by.into()), Datum::Unknown);
    match &health.sockets {
        Ok(open) => match &open.fallback {
            None => answers("sock_diag"),
            Some(why) => {
                answers("procfs").found(Status::Note, format!("{why}; /proc/net/tcp answers instead.")).advising(
                    "Load it on the host (modprobe tcp_diag), or let a container's seccomp profile allow AF_NETLINK.",
                )
            }
        },
        Err(why) => Check::ok(subject, Datum::Unknown, Datum::Unknown)
            .found(Status::Unknown, format!("Neither sock_diag nor /proc/net/tcp answers: {why}.")),
    }
}

/// What it adds to the answers.
const fn adds(capability: Capability) -> &'static str {
    match capability {
        Capability::Kill => "processes of other users can be ended",
        Capability::NetBindService => "bind-test can try the ports below ip_unprivileged_port_start",
        Capability::NetAdmin => "records have the mark (SO_MARK) and twtool kill may remove buckets",
        Capability::SysPtrace => "the processes of other users are named",
        Capability::SysAdmin => "other network namespaces can be entered",
    }
}

fn capabilities(health: &Health) -> Check {
    let subject = Subject {
        id: "capabilities",
        does: "What this caller may. CAP_NET_BIND_SERVICE: bind-test can try the ports below ip_unprivileged_port_start. \
               CAP_NET_ADMIN: records have the mark (SO_MARK), and twtool kill may remove buckets. CAP_SYS_PTRACE: processes of \
               other users are named. CAP_SYS_ADMIN: other network namespaces can be entered.",
        does_not: "None of them names the owner of a bucket: it has none. A capability counts in the user namespace in which \
                   it is held, and not on the host outside.",
        sources: &["capabilities(7)", "user_namespaces(7)", "sock_diag(7)", "setns(2)", "proc_pid_fd(5)"],
    };
    let Some(held) = health.capabilities else {
        let finding = "/proc/thread-self/status does not tell the effective set.";
        return Check::ok(subject, Datum::Unknown, Datum::Unknown).found(Status::Unknown, finding);
    };
    let (has, lacks): (Vec<Capability>, Vec<_>) = Capability::ALL.into_iter().partition(|one| held.has(*one));
    let names = |list: &[Capability]| list.iter().map(|one| Datum::Text(one.name().into())).collect();
    let check =
        Check::ok(subject, Datum::List(names(&has)), Datum::Unknown).with("missing", Datum::List(names(&lacks)));
    let hidden = health.sockets.as_ref().is_ok_and(|open| {
        let listeners = open.listeners.iter().map(|one| &one.owners);
        listeners.chain(open.close_wait.iter().map(|one| &one.owners)).any(|owners| *owners == Owners::NotPermitted)
    });
    if hidden {
        let why = if held.has(Capability::SysPtrace) {
            "CAP_SYS_PTRACE is held in a user namespace that is not theirs, or /proc hides them"
        } else {
            "CAP_SYS_PTRACE is missing"
        };
        let finding =
            format!("Some sockets have no process named here, for not every /proc/PID/fd may be read: {why}.");
        return check.found(Status::Note, finding);
    }
    if lacks.is_empty() {
        return check;
    }
    let gains: Vec<String> = lacks.iter().map(|one| format!("{} {}", one.name(), adds(*one))).collect();
    check.found(Status::Ok, format!("Nothing was missed here. With {}.", gains.join(", with ")))
}
