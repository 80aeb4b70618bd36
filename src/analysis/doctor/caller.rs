//! The checks of what twtool itself needs: the kernel's interface to list sockets, and the caller's capabilities.

use super::{Check, Datum, Status, Subject};
use crate::model::health::{Capability, Health};
use crate::model::process::Owners;

pub(super) fn checks(health: &Health) -> Vec<Check> {
    vec![tcp_diag(health), capabilities(health)]
}

fn tcp_diag(health: &Health) -> Check {
    let subject = Subject {
        id: "tcp_diag",
        does: "Lets twtool list sockets with exact remaining times and cookies, and sockets that are bound and do not listen. \
               tcp_diag is the TCP part of the kernel's sock_diag interface.",
        does_not: "It needs no privilege. Without it twtool reads /proc/net/tcp, which is slower and shows less.",
        sources: &["sock_diag(7)", "proc_pid_net(5), /proc/net/tcp"],
    };
    let answers = |by: &str| Check::ok(subject, Datum::Text(by.into()), Datum::Unknown);
    match &health.sockets {
        Ok(open) => match &open.fallback {
            None => answers("sock_diag"),
            Some(why) => {
                answers("procfs").found(Status::Note, format!("{why}; /proc/net/tcp answers instead.")).advising(
                    "Load tcp_diag on the host (modprobe tcp_diag), or let the container's seccomp profile allow AF_NETLINK.",
                )
            }
        },
        Err(why) => Check::ok(subject, Datum::Unknown, Datum::Unknown)
            .found(Status::Unknown, format!("Neither sock_diag nor /proc/net/tcp answers: {why}.")),
    }
}

/// What the caller gains with the capability, for example after the words `With CAP_NET_ADMIN, `.
const fn effect_of_capability(capability: Capability) -> &'static str {
    match capability {
        Capability::Kill => "the caller can run the kill commands that twtool prints for processes of other users",
        Capability::NetBindService => "bind-test can try the ports below ip_unprivileged_port_start",
        Capability::NetAdmin => "records have the mark (SO_MARK) and twtool kill may remove buckets",
        Capability::DacReadSearch | Capability::SysPtrace => {
            "twtool can name the processes of other users (CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH together)"
        }
        Capability::SysAdmin => "twtool can enter other network namespaces",
    }
}

fn capabilities(health: &Health) -> Check {
    let subject = Subject {
        id: "capabilities",
        does: "Lists what the caller may do. CAP_NET_BIND_SERVICE: bind-test can try the ports below \
               ip_unprivileged_port_start. CAP_NET_ADMIN: records have the mark (SO_MARK), and twtool kill may remove buckets. \
               CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH: twtool can name the processes of other users, because /proc/PID/fd \
               needs both. CAP_SYS_ADMIN: twtool can enter other network namespaces.",
        does_not: "No capability reveals the owner of a bucket, because a bucket has no owner. A capability is valid in the \
                   user namespace in which the caller holds it, not on the host outside.",
        sources: &["capabilities(7)", "user_namespaces(7)", "sock_diag(7)", "setns(2)", "proc_pid_fd(5)"],
    };
    let Some(held) = health.capabilities else {
        let finding = "/proc/thread-self/status does not show the effective set of capabilities.";
        return Check::ok(subject, Datum::Unknown, Datum::Unknown).found(Status::Unknown, finding);
    };
    let (has, lacks): (Vec<Capability>, Vec<_>) = Capability::REPORTED.into_iter().partition(|one| held.has(*one));
    let names = |list: &[Capability]| list.iter().map(|one| Datum::Text(one.name().into())).collect();
    let check =
        Check::ok(subject, Datum::List(names(&has)), Datum::Unknown).with("missing", Datum::List(names(&lacks)));
    let hidden = health.sockets.as_ref().is_ok_and(|open| {
        let listeners = open.listeners.iter().map(|one| &one.owners);
        listeners.chain(open.close_wait.iter().map(|one| &one.owners)).any(|owners| *owners == Owners::NotPermitted)
    });
    if hidden {
        let needed = [Capability::SysPtrace, Capability::DacReadSearch];
        let missing: Vec<&str> = needed.into_iter().filter(|one| !held.has(*one)).map(Capability::name).collect();
        let why = match missing.as_slice() {
            [] => "the caller holds CAP_SYS_PTRACE in another user namespace than these processes, or /proc hides them"
                .into(),
            [one] => format!("{one} is missing"),
            several => format!("{} are missing", several.join(" and ")),
        };
        let finding = format!(
            "twtool cannot name the processes of some sockets, because it has no permission to read every \
             /proc/PID/fd: {why}."
        );
        return check.found(Status::Note, finding);
    }
    if lacks.is_empty() {
        return check;
    }
    let lacks_both = [Capability::SysPtrace, Capability::DacReadSearch].iter().all(|one| lacks.contains(one));
    // These two capabilities have this effect only together, so a single sentence names them if both are missing.
    let gaining = lacks.iter().filter(|one| !(lacks_both && **one == Capability::SysPtrace));
    let gains: Vec<String> =
        gaining.map(|one| format!("with {}, {}", one.name(), effect_of_capability(*one))).collect();
    let hidden = if health.sockets.is_ok() { "No process was hidden. " } else { "" };
    check.found(Status::Ok, format!("{hidden}More is possible: {}.", gains.join("; ")))
}
