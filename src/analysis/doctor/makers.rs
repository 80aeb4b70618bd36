//! The check that names the *makers* of the TIME_WAIT buckets: the programs that closed the connections. It knows only the closes that a
//! tracer has recorded.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::IpAddr;

use super::{Check, Datum, Status, Subject};
use crate::analysis::makers::{MakerGroupKey, ProcessKey};
use crate::model::close::{MakerFacts, Role};

/// The maximum number of programs in the finding. A program counts once for each role.
const NAMED: usize = 3;

/// The maximum number of programs in the evidence, counted in the same way. `twtool summary --by owner` lists all of them.
const SHOWN: usize = 20;

/// The advice names a client if the client is the remote end of at least this share of a server's buckets, in percent.
const CLIENT_SHARE: u64 = 90;

/// The advice names a client only if the server has at least this number of buckets.
const MANY: u64 = 10;

/// The TIME_WAIT buckets of a network namespace, by the container, systemd unit or process that closed the connection.
#[derive(Clone, Debug, Default)]
pub struct BucketsByMaker {
    all: u64,
    /// The buckets of each program and role, by remote address.
    made: HashMap<(MakerGroupKey, Role), HashMap<IpAddr, u64>>,
}

struct ProgramBuckets<'a> {
    program: &'a MakerGroupKey,
    role: Role,
    buckets: u64,
    /// The remote address with the most of these buckets, and the number of buckets with this address.
    remote: (IpAddr, u64),
}

impl BucketsByMaker {
    /// Adds a bucket. `maker` is the process that closed the connection, and its role, if a tracer recorded them.
    pub fn add(&mut self, maker: Option<(&MakerFacts, Role)>, remote: IpAddr) {
        self.all += 1;
        let Some((facts, role)) = maker else { return };
        *self.made.entry((MakerGroupKey::of_program(facts), role)).or_default().entry(remote).or_default() += 1;
    }

    /// The finding of the check, then its advice.
    #[must_use]
    pub fn conclusions(&self) -> Vec<String> {
        let Check { finding, help, .. } = check(self);
        finding.into_iter().chain(help.advice).collect()
    }

    fn programs_by_buckets(&self) -> Vec<ProgramBuckets<'_>> {
        let mut programs = vec![];
        for ((program, role), remotes) in &self.made {
            let most = remotes.iter().max_by_key(|(addr, buckets)| (**buckets, Reverse(**addr)));
            let Some((addr, most)) = most else { continue };
            programs.push(ProgramBuckets {
                program,
                role: *role,
                buckets: remotes.values().sum(),
                remote: (*addr, *most),
            });
        }
        programs.sort_by(|a, b| (b.buckets, a.program, a.role).cmp(&(a.buckets, b.program, b.role)));
        programs
    }
}

/// The result is at most a note, because a TIME_WAIT bucket is not a fault.
pub(super) fn check(made: &BucketsByMaker) -> Check {
    let subject = Subject {
        id: "time_wait_makers",
        does: "Names the programs that made the most TIME_WAIT sockets, and whether they accepted or opened the connections. The end \
               that closes first gets the TIME_WAIT socket. A running tracer (twtool trace --serve) has recorded the closes of \
               the last two minutes.",
        does_not: "A TIME_WAIT socket is not a fault, and no process owns it. If no maker is recorded, the tracer did not run \
                   yet, did not see the close, or could not see the process.",
        sources: &["RFC 9293, section 3.6", "net/ipv4/tcp_minisocks.c, tcp_time_wait()", "twtool-trace(1)"],
    };
    let programs = made.programs_by_buckets();
    let traced: u64 = programs.iter().map(|one| one.buckets).sum();
    let check = Check::ok(subject, programs.first().map(|one| one.buckets).into(), Datum::Unknown)
        .with("time_wait", Some(made.all))
        .with("traced", Some(traced))
        .with("makers", Datum::List(programs.iter().take(SHOWN).map(record).collect()));
    if programs.is_empty() {
        return check;
    }
    let named: Vec<String> = programs.iter().take(NAMED).map(sentence).collect();
    let rest: u64 = programs.iter().skip(NAMED).map(|one| one.buckets).sum();
    let others = if rest > 0 { format!("; the remaining {rest} have other makers or roles") } else { String::new() };
    let unknown = made.all - traced;
    let unknown = if unknown > 0 { format!(" No maker is recorded for {unknown}.") } else { String::new() };
    let finding = format!("Of {} TIME_WAIT sockets, {}{others}.{unknown}", made.all, named.join("; "));
    let named = &programs[..programs.len().min(NAMED)];
    let has = |role| named.iter().any(|one| one.role == role);
    let mut check = check.found(Status::Note, finding);
    if has(Role::Connected) {
        check = check.advising(
            "A client that closes first gets the TIME_WAIT socket, which blocks a local port for its destination. Let the client \
             reuse connections: HTTP keep-alive, or a pool of connections. For the ports that are left, see twtool capacity.",
        );
    }
    if has(Role::Accepted) {
        check = check.advising(
            "A server that closes first gets the TIME_WAIT socket. To leave it to the clients, let the server keep idle \
             connections longer than its clients do, and let clients send several requests on one connection (HTTP keep-alive).",
        );
    }
    let from_one = |one: &&ProgramBuckets| {
        one.role == Role::Accepted && one.buckets >= MANY && one.remote.1 * 100 >= one.buckets * CLIENT_SHARE
    };
    for one in named.iter().filter(from_one) {
        let (addr, most) = one.remote;
        check = check.advising(format!(
            "{most} of the connections that {} closed came from {addr}. If these are health checks, make them less frequent, or let \
             them keep one connection.",
            name(one.program)
        ));
    }
    check
}

/// `nginx.service made 12: connections that it accepted`.
fn sentence(made: &ProgramBuckets) -> String {
    let role = match made.role {
        Role::Accepted => "connections that it accepted",
        // A tracer infers this from the local port.
        Role::Connected => "connections that it opened (inferred)",
        Role::Unknown => "it is unknown which end opened the connections",
    };
    format!("{} made {}: {role}", name(made.program), made.buckets)
}

fn name(program: &MakerGroupKey) -> String {
    match program {
        MakerGroupKey::Unit(unit) => unit.clone(),
        MakerGroupKey::Container(runtime, id) => format!("{} container {id}", runtime.unwrap_or("the")),
        MakerGroupKey::Process(process) => {
            let ProcessKey { comm, pid, own_pid_namespace, .. } = &**process;
            let of = if *own_pid_namespace { "" } else { " of the initial pid namespace" };
            format!("{comm} pid {pid}{of}")
        }
        _ => "an unknown program".into(),
    }
}

fn record(made: &ProgramBuckets) -> Datum {
    let text = |text: Option<&str>| text.map_or(Datum::Unknown, |text| Datum::Text(text.to_owned()));
    let (unit, container, process) = match made.program {
        MakerGroupKey::Unit(unit) => (Some(unit.as_str()), None, None),
        MakerGroupKey::Container(_, id) => (None, Some(id.as_str()), None),
        MakerGroupKey::Process(process) => (None, None, Some(process)),
        _ => (None, None, None),
    };
    let (addr, most) = made.remote;
    Datum::Record(vec![
        ("unit", text(unit)),
        ("container", text(container)),
        ("pid", process.map(|process| process.pid).into()),
        ("comm", text(process.map(|process| process.comm.as_str()))),
        ("role", made.role.name().to_owned().into()),
        ("time_wait", Some(made.buckets).into()),
        ("remote_addr", addr.to_string().into()),
        ("remote_addr_time_wait", Some(most).into()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(pid: u32, cgroup: Option<&str>) -> MakerFacts {
        MakerFacts {
            pid,
            own_pid_namespace: true,
            comm: "app".into(),
            cgroup: cgroup.map(Into::into),
            ..MakerFacts::default()
        }
    }

    fn addr(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    fn made() -> BucketsByMaker {
        let mut made = BucketsByMaker::default();
        for pid in 0..20 {
            let worker = facts(pid, Some("/system.slice/web.service"));
            made.add(Some((&worker, Role::Accepted)), addr(if pid == 0 { 2 } else { 1 }));
        }
        for last in 0..5 {
            made.add(Some((&facts(70, None), Role::Connected)), addr(last));
        }
        made.add(None, addr(9));
        made
    }

    #[test]
    fn the_finding_names_programs_roles_and_the_rest() {
        let check = check(&made());
        assert_eq!(
            check.finding.as_deref(),
            Some(
                "Of 26 TIME_WAIT sockets, web.service made 20: connections that it accepted; app pid 70 made 5: connections that it \
                 opened (inferred). No maker is recorded for 1."
            )
        );
        assert_eq!((check.status, &check.value), (Status::Note, &Datum::Number(20)));
        let [client, server, checks] = &check.help.advice[..] else { panic!("{:?}", check.help) };
        assert!(client.contains("pool") && server.contains("idle connections longer"), "{:?}", check.help);
        assert!(checks.starts_with("19 of the connections that web.service closed came from 10.0.0.1."), "{checks}");
    }

    #[test]
    fn the_advice_depends_on_the_roles_in_the_finding() {
        let of = |role, buckets: u8| {
            let mut made = BucketsByMaker::default();
            (0..buckets).for_each(|_| made.add(Some((&facts(7, None), role)), addr(1)));
            check(&made).help.advice
        };
        assert!(matches!(&of(Role::Connected, 50)[..], [client] if client.contains("HTTP keep-alive, or a pool")));
        assert!(matches!(&of(Role::Accepted, 9)[..], [server] if server.contains("A server that closes first")));
        assert_eq!((of(Role::Accepted, 10).len(), of(Role::Unknown, 10).len()), (2, 0));
    }

    #[test]
    fn the_finding_has_only_a_sum_for_programs_after_the_first_three() {
        let mut made = BucketsByMaker::default();
        for pid in 1..=5_u32 {
            (0..pid).for_each(|_| made.add(Some((&facts(pid, None), Role::Unknown)), addr(1)));
        }
        let finding = check(&made).finding.expect("a finding");
        assert!(finding.starts_with("Of 15 TIME_WAIT sockets, app pid 5 made 5"), "{finding}");
        assert!(finding.ends_with("; the remaining 3 have other makers or roles."), "{finding}");
    }

    #[test]
    fn without_a_recorded_maker_there_is_no_finding() {
        let mut made = BucketsByMaker::default();
        assert_eq!((check(&made).status, check(&made).value), (Status::Ok, Datum::Unknown));
        made.add(None, addr(1));
        assert_eq!((check(&made).status, check(&made).finding), (Status::Ok, None));
    }
}
