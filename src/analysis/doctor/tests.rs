//! Each check in each of its states, and what holds for all of them together.

use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;

use super::*;
use crate::analysis::capacity::sockets::ConnectionEnds;
use crate::analysis::capacity::{Conditions, Destination, Pool};
use crate::analysis::history::Length;
use crate::model::command::{Caller, RootPower};
use crate::model::facts::Facts;
use crate::model::health::tests::healthy;
use crate::model::health::{Capabilities, CloseWait, OpenListener, Reading};
use crate::model::kernel_counts::TcpSockstat;
use crate::model::port::{LocalPortRange, LocalReservedPorts, Port, PortRange};
use crate::model::port_set::PortSet;
use crate::model::process::{Owners, Process};
use crate::model::setting::{DefaultValue, Form, SETTINGS};
use crate::model::socket::{Cookie, FourTuple, FullSocket, TcpState};
use crate::model::tw_reuse::{ReuseMode, TwReuse};
use crate::model::user::User;

const LEAK: Leak = Leak { silent: Duration::from_secs(60) };

/// The checks of a machine from which nothing is connected to anybody.
fn examine_without_destinations(health: &Health) -> Vec<Check> {
    let pool = pool();
    examine(health, Ok(Outbound { destinations: &[], conditions: conditions(&pool) }), LEAK, &shell())
}

/// Root's, in the caller's own namespace.
fn shell() -> Shell {
    let caller = Caller {
        root: true,
        power: RootPower::default(),
        in_initial_netns: true,
        twtool: "twtool".into(),
        twtool_for_root: "twtool".into(),
        arguments: vec![],
    };
    Shell { netns: None, caller }
}

/// Everything that helps, as one text.
fn help(check: &Check) -> String {
    let Help { commands, lasting, advice } = &check.help;
    let commands = commands.iter().map(|step| step.command.as_str());
    let lines = lasting.iter().map(|one| one.line.as_str());
    commands.chain(lines).chain(advice.iter().map(String::as_str)).collect::<Vec<_>>().join(" ")
}

/// A hundred ports.
fn pool() -> Pool {
    let range = range(40000, 40099).expect("forwards");
    Pool::new(range, &LocalReservedPorts::default(), &PortSet::default(), &PortSet::default(), 0)
}

fn conditions(pool: &Pool) -> Conditions<'_> {
    let (mode, delay) = (Some(ReuseMode::LoopbackOnly), Duration::from_secs(1));
    let reuse = TwReuse { mode, delay, whole_seconds: false, timestamps: Some(true) };
    Conditions { pool, reuse, length: Length::learn(None, None) }
}

/// So many free ports of a hundred to 192.0.2.1:443.
fn destination(free: u32, exhausted_in: Option<Duration>) -> Destination {
    let remote_addr = IpAddr::from([192, 0, 2, 1]);
    let local_addr = IpAddr::from([192, 0, 2, 9]);
    Destination {
        ends: ConnectionEnds { ipv6: false, local_addr, remote_addr, remote_port: Port(443), interface: None },
        established: 0,
        time_wait: 100 - free,
        other: 0,
        reusable: Some(0),
        reusable_within_1s: Some(0),
        free,
        uncertain: 0,
        closes_per_s: None,
        closes_per_s_now: None,
        sustainable_per_s: None,
        exhausted_in,
        first_released: None,
    }
}

/// A change to the healthy machine, and what one check then comes to, with words of its finding and its advice.
struct Case {
    id: &'static str,
    change: Box<dyn Fn(&mut Health)>,
    status: Status,
    finding: &'static str,
    advice: &'static str,
}

fn case(id: &'static str, change: impl Fn(&mut Health) + 'static, status: Status, finding: &'static str) -> Case {
    Case { id, change: Box::new(change), status, finding, advice: "" }
}

impl Case {
    fn advises(self, advice: &'static str) -> Self {
        Self { advice, ..self }
    }

    fn health(&self) -> Health {
        let mut health = healthy();
        (self.change)(&mut health);
        health
    }
}

fn set(name: &'static str, value: &'static str) -> impl Fn(&mut Health) {
    move |health| drop(health.settings.0.insert(name, Reading::Value(value.into())))
}

fn both(a: impl Fn(&mut Health), b: impl Fn(&mut Health)) -> impl Fn(&mut Health) {
    move |health| {
        a(health);
        b(health);
    }
}

fn gone(name: &'static str) -> impl Fn(&mut Health) {
    move |health| drop(health.settings.0.insert(name, Reading::Absent))
}

fn counter(name: &'static str, value: u64) -> impl Fn(&mut Health) {
    move |health| {
        let counters = health.buckets.tcp_ext.as_mut().expect("counters");
        counters.0.insert(name.into(), value);
    }
}

fn buckets(tw: u64) -> impl Fn(&mut Health) {
    move |health| health.buckets.sockstat = Some(TcpSockstat { inuse: 0, orphan: 0, tw, alloc: 0, mem: 0 })
}

fn facts(change: impl Fn(&mut Facts)) -> impl Fn(&mut Health) {
    move |health| change(&mut health.facts)
}

fn range(low: u16, high: u16) -> Option<PortRange> {
    PortRange::new(Port(low), Port(high))
}

fn full(state: TcpState, port: u16, last_ack_ms: Option<u32>) -> FullSocket {
    let local = (IpAddr::from(Ipv4Addr::LOCALHOST), Port(port));
    let remote = (IpAddr::from(Ipv4Addr::UNSPECIFIED), Port(0));
    FullSocket {
        tuple: FourTuple::new(local, remote),
        state,
        uid: 1000,
        inode: NonZeroU32::new(4711),
        interface: None,
        mark: None,
        v6only: None,
        last_ack_ms,
        cookie: Cookie::new(1),
    }
}

fn nginx() -> Owners {
    let cgroup = Some("/system.slice/nginx.service".into());
    Owners::Found(vec![Process { pid: 7, comm: "nginx".into(), cgroup, ..Process::default() }])
}

fn listens(port: u16, autobound: Option<bool>, owners: fn() -> Owners) -> impl Fn(&mut Health) {
    move |health| {
        let socket = full(TcpState::Listen, port, None);
        let open = health.sockets.as_mut().expect("sockets");
        open.listeners.push(OpenListener { socket, autobound, owners: owners() });
    }
}

fn forgets(count: usize, last_ack_ms: Option<u32>, owners: fn() -> Owners) -> impl Fn(&mut Health) {
    move |health| {
        let socket = full(TcpState::CloseWait, 8080, last_ack_ms);
        let open = health.sockets.as_mut().expect("sockets");
        let user = User { uid: 1000, name: None };
        open.close_wait.extend((0..count).map(|_| CloseWait { socket, owners: owners(), user: user.clone() }));
    }
}

fn timewait_cases() -> Vec<Case> {
    use Status::{Note, Ok, Unknown, Warning};
    let (reuse, stamps) = ("ipv4.tcp_tw_reuse", "ipv4.tcp_timestamps");
    vec![
        case("tcp_tw_reuse", set(reuse, "1"), Ok, "every destination"),
        case("tcp_tw_reuse", set(reuse, "0"), Note, "Off"),
        case("tcp_tw_reuse", set(reuse, "3"), Note, "3 is a value"),
        case("tcp_tw_reuse", set(reuse, "on"), Unknown, "holds 'on'"),
        case("tcp_tw_reuse", gone(reuse), Unknown, "no /proc/sys/net/ipv4/tcp_tw_reuse"),
        case("tcp_tw_reuse_delay", set("ipv4.tcp_tw_reuse_delay", "50"), Note, "50 ms"),
        case("tcp_tw_reuse_delay", gone("ipv4.tcp_tw_reuse_delay"), Ok, "does not have the setting"),
        case("tcp_tw_recycle", set("ipv4.tcp_tw_recycle", "0"), Ok, "Off"),
        case("tcp_tw_recycle", set("ipv4.tcp_tw_recycle", "1"), Warning, "NAT").advises("tcp_tw_recycle=0"),
        case("tcp_tw_timeout", set("ipv4.tcp_tw_timeout", "20"), Note, "20: only kernels of some vendors"),
        case("tcp_max_tw_buckets", buckets(117_964), Ok, "117964 buckets"),
        case("tcp_max_tw_buckets", buckets(117_965), Warning, "117965 buckets").advises("tcp_max_tw_buckets=262144"),
        case(
            "tcp_max_tw_buckets",
            set("ipv4.tcp_max_tw_buckets", "1000"),
            Note,
            "1000 is less than the kernel's default 131072",
        ),
        case("tcp_max_tw_buckets", set("ipv4.tcp_max_tw_buckets", "0"), Warning, "No close leaves").advises("=131072"),
        case("tcp_max_tw_buckets", |health| health.buckets.sockstat = None, Unknown, "sockstat"),
        case(
            "tcp_max_tw_buckets",
            |health| {
                let why = Reading::Unreadable("Permission denied".into());
                health.settings.0.insert("ipv4.tcp_max_tw_buckets", why);
            },
            Unknown,
            "tcp_max_tw_buckets failed: Permission denied",
        ),
        case("tcp_timewait_overflow", counter("TCPTimeWaitOverflow", 1), Warning, "1 close has left")
            .advises("again later"),
        case("tcp_timewait_overflow", counter("TCPTimeWaitOverflow", 37), Warning, "37 closes have left"),
        case("tcp_timewait_overflow", |health| health.buckets.tcp_ext = None, Unknown, "netstat"),
        case("tcp_fin_timeout", set("ipv4.tcp_fin_timeout", "15"), Note, "after 15 s. TIME_WAIT is not affected"),
        case("tcp_timestamps", both(set(stamps, "0"), set(reuse, "0")), Note, "PAWS"),
        case("tcp_timestamps", set(stamps, "0"), Note, "(2)"),
        case("tcp_timestamps", both(set(stamps, "0"), set(reuse, "1")), Warning, "(1)").advises("tcp_timestamps=1"),
        case("tcp_timestamps", set(stamps, "2"), Ok, "no random offset"),
        case("tcp_timestamps", set(stamps, "9"), Note, "9 is a value"),
        case("tcp_fin_timeout", set("ipv4.tcp_fin_timeout", "-1"), Note, "-1: the kernel ends"),
        case("tcp_max_tw_buckets", set("ipv4.tcp_max_tw_buckets", "-1"), Note, "-1: the kernel compares"),
        case(
            "tcp_max_tw_buckets",
            both(set("ipv4.tcp_max_tw_buckets", "-1"), facts(|facts| facts.kernel = "5.10.0".into())),
            Warning,
            "-1: no close leaves a bucket",
        )
        .advises("tcp_max_tw_buckets=131072"),
        case(
            "tcp_max_tw_buckets",
            both(set("ipv4.tcp_max_tw_buckets", "0"), gone("ipv4.tcp_ehash_entries")),
            Warning,
            "No close leaves",
        )
        .advises("TCP established hash table entries"),
        case(
            "tcp_max_tw_buckets",
            |health| {
                gone("ipv4.tcp_ehash_entries")(health);
                set("ipv4.tcp_max_tw_buckets", "10")(health);
                buckets(9)(health);
            },
            Warning,
            "9 buckets",
        )
        .advises("tcp_max_tw_buckets=20"),
        case(
            "tcp_max_tw_buckets",
            |health| {
                let why = Reading::Unreadable("Input/output error".into());
                health.settings.0.insert("ipv4.tcp_ehash_entries", why);
            },
            Unknown,
            "tcp_ehash_entries failed: Input/output error",
        ),
        case("tcp_rfc1337", set("ipv4.tcp_rfc1337", "1"), Ok, "does not end"),
        case("tcp_rfc1337", set("ipv4.tcp_rfc1337", "7"), Note, "7 is a value"),
    ]
}

fn port_cases() -> Vec<Case> {
    use Status::{Note, Ok, Unknown, Warning};
    let ranged = |low, high| facts(move |facts| facts.local_port_range = range(low, high).map(LocalPortRange));
    let reserved = |low, high| {
        facts(move |facts| {
            facts.local_reserved_ports = Some(LocalReservedPorts(range(low, high).into_iter().collect()));
        })
    };
    vec![
        case("ip_local_port_range", ranged(50000, 50099), Note, "The range has 100 ports; the default has 28232"),
        case("ip_local_port_range", ranged(1024, 65535), Ok, "has 64512 ports"),
        case("ip_local_port_range", facts(|facts| facts.local_port_range = None), Unknown, "ip_local_port_range"),
        case("ip_local_reserved_ports", reserved(32768, 32777), Ok, "10 of 28232. Left: 28222"),
        case("ip_local_reserved_ports", reserved(30000, 65535), Warning, "EADDRNOTAVAIL").advises("Remove ports"),
        case("ip_local_reserved_ports", facts(|facts| facts.local_reserved_ports = None), Unknown, "ip_local_reserved"),
        case(
            "ip_unprivileged_port_start",
            facts(|facts| facts.unprivileged_port_start = Some(0)),
            Note,
            "Every program",
        ),
        case("ip_unprivileged_port_start", facts(|facts| facts.unprivileged_port_start = Some(80)), Note, "Ports 1-79"),
        case(
            "ip_unprivileged_port_start",
            facts(|facts| facts.unprivileged_port_start = Some(2)),
            Note,
            "Port 1 needs",
        ),
        case("nf_conntrack", tracked("89", "100"), Ok, "89 of nf_conntrack_max 100 (89 %)"),
        case("nf_conntrack", tracked("90", "100"), Warning, "90 of nf_conntrack_max 100 (90 %)").advises("table full"),
        case("nf_conntrack", tracked("90", "0"), Ok, "there is no maximum"),
        case("nf_conntrack", set("netfilter.nf_conntrack_count", "90"), Unknown, "could not be read"),
        case(
            "ip_unprivileged_port_start",
            facts(|facts| facts.unprivileged_port_start = None),
            Unknown,
            "could not be",
        ),
        case("ip_autobind_reuse", set("ipv4.ip_autobind_reuse", "1"), Note, "another socket has"),
        case("ip_autobind_reuse", gone("ipv4.ip_autobind_reuse"), Ok, "does not have the setting"),
        case("ip_nonlocal_bind", set("ipv4.ip_nonlocal_bind", "1"), Note, "wrong address"),
        case("ip_nonlocal_bind", gone("ipv4.ip_nonlocal_bind"), Unknown, "no /proc/sys/net/ipv4/ip_nonlocal_bind"),
        case("ipv6_ip_nonlocal_bind", set("ipv6.ip_nonlocal_bind", "1"), Note, "wrong address"),
        case("ipv6_ip_nonlocal_bind", gone("ipv6.ip_nonlocal_bind"), Ok, "IPv6 is missing"),
        case("ipv6_bindv6only", set("ipv6.bindv6only", "1"), Note, "does not take IPv4"),
        case("ipv6_bindv6only", gone("ipv6.bindv6only"), Ok, "IPv6 is missing"),
    ]
}

fn socket_cases() -> Vec<Case> {
    use Status::{Note, Ok, Unknown, Warning};
    let id = "ephemeral_listeners";
    let nobody = || Owners::Nobody;
    let hidden = || Owners::NotPermitted;
    let fails: fn(&mut Health) = |health| health.sockets = Err("refused".into());
    vec![
        case(
            id,
            listens(40000, Some(false), nginx),
            Warning,
            "1 server port lies in ip_local_port_range and is not reserved: 40000 (nginx pid 7 (nginx.service))",
        )
        .advises("net.ipv4.ip_local_reserved_ports = 8000,40000 connect() never"),
        case(
            id,
            both(listens(40001, Some(false), nginx), listens(40000, Some(false), hidden)),
            Warning,
            "2 server ports lie in ip_local_port_range and are not reserved: 40000, 40001 (nginx",
        )
        .advises("= 8000,40000-40001 connect() never"),
        case(id, both(listens(40000, Some(true), nginx), listens(40000, Some(false), nginx)), Warning, "40000"),
        case(id, listens(40000, None, nginx), Note, "It is unknown whether the kernel or the program")
            .advises("= 8000,40000 connect() never"),
        case(
            id,
            both(listens(40000, Some(false), nginx), facts(|facts| facts.local_port_range = None)),
            Unknown,
            "range",
        ),
        case(id, fails, Unknown, "refused"),
        case("close_wait", forgets(12, Some(3000), nginx), Ok, "12 sockets, none silent for 60 s"),
        case(
            "close_wait",
            forgets(9, Some(60_000), nginx),
            Note,
            "nginx pid 7 (nginx.service) has 9, the oldest for at least 60 s",
        ),
        case("close_wait", forgets(10, Some(59_999), nginx), Ok, "none silent"),
        case("close_wait", forgets(10, Some(61_500), nginx), Warning, "has 10, the oldest for at least 61.5 s")
            .advises("close()"),
        case("close_wait", forgets(10, Some(60_000), nobody), Warning, "the accept queue of port 8080"),
        case("close_wait", forgets(10, Some(60_000), hidden), Warning, "an unknown process of uid 1000"),
        case("close_wait", both(forgets(9, Some(60_000), nginx), forgets(9, Some(60_000), hidden)), Note, "nginx"),
        case("close_wait", forgets(10, None, nginx), Note, "unknown for how long"),
        case("close_wait", forgets(1, None, nginx), Ok, "1 socket"),
        case("close_wait", fails, Unknown, "refused"),
        case(
            "tcp_diag",
            |health| health.sockets.as_mut().expect("sockets").fallback = Some("no netlink".into()),
            Note,
            "no netlink; /proc/net/tcp answers",
        )
        .advises("seccomp"),
        case("tcp_diag", fails, Unknown, "refused"),
        case("capabilities", |_| {}, Ok, "With CAP_NET_BIND_SERVICE bind-test can"),
        case("capabilities", forgets(1, Some(0), hidden), Note, "CAP_SYS_PTRACE is missing"),
        case(
            "capabilities",
            both(forgets(1, Some(0), hidden), |health| health.capabilities = Some(Capabilities(u64::MAX))),
            Note,
            "another user namespace",
        ),
        case("capabilities", |health| health.capabilities = Some(Capabilities(u64::MAX)), Ok, ""),
        case("capabilities", |health| health.capabilities = None, Unknown, "effective set"),
    ]
}

fn tracked(count: &'static str, most: &'static str) -> impl Fn(&mut Health) {
    both(set("netfilter.nf_conntrack_count", count), set("netfilter.nf_conntrack_max", most))
}

fn all_cases() -> Vec<Case> {
    [timewait_cases(), port_cases(), socket_cases()].into_iter().flatten().collect()
}

#[track_caller]
fn check(health: &Health, id: &str) -> Check {
    let mut checks = examine_without_destinations(health);
    checks.retain(|check| check.subject.id == id);
    assert_eq!(checks.len(), 1, "one check has the id {id}");
    checks.remove(0)
}

#[test]
fn a_machine_as_delivered_is_in_order_in_every_check() {
    for check in examine_without_destinations(&healthy()) {
        assert_eq!((check.status, &check.help), (Status::Ok, &Help::default()), "{check:?}");
    }
}

#[test]
fn each_check_says_what_was_found_and_what_to_do() {
    for case in all_cases() {
        let check = check(&case.health(), case.id);
        assert_eq!(check.status, case.status, "{check:?}");
        let finding = check.finding.as_deref().unwrap_or_default();
        assert!(finding.contains(case.finding), "expected {:?}: {check:?}", case.finding);
        assert!(help(&check).contains(case.advice), "expected {:?}: {check:?}", case.advice);
        for step in &check.help.commands {
            assert!(!step.command.contains('\n') && !step.purpose.ends_with('.'), "{step:?}");
        }
        assert!(
            check.status != Status::Warning || check.help != Help::default(),
            "a warning says what to do: {check:?}"
        );
    }
}

#[test]
fn a_change_alters_no_check_but_those_it_concerns() {
    // What one setting means for another.
    let concerned = |id: &str, other: &str| {
        id == other
            || matches!((id, other), ("ip_local_port_range", "ip_local_reserved_ports"))
            || matches!((id, other), ("ephemeral_listeners", "ip_local_port_range" | "ip_local_reserved_ports"))
            || matches!((id, other), ("tcp_timestamps", "tcp_tw_reuse"))
            || ["ephemeral_listeners", "close_wait", "tcp_diag", "capabilities"].contains(&other)
    };
    let usual = examine_without_destinations(&healthy());
    for case in all_cases() {
        for (before, after) in usual.iter().zip(examine_without_destinations(&case.health())) {
            if !concerned(case.id, before.subject.id) {
                let said =
                    |check: &Check| (check.status, check.value.clone(), check.finding.clone(), check.help.clone());
                assert_eq!(said(before), said(&after), "{} after {}", before.subject.id, case.id);
            }
        }
    }
}

#[test]
fn every_setting_with_a_check_is_explained_and_has_its_number_and_default() {
    let mut health = healthy();
    for setting in SETTINGS.iter().filter(|setting| setting.form == Form::Number) {
        health.settings.0.insert(setting.key(), Reading::Value("7".into()));
    }
    for setting in SETTINGS {
        let Some(id) = setting.check else { continue };
        let check = check(&health, id);
        assert_eq!((check.subject.does, check.subject.does_not), (setting.does, setting.does_not), "{id}");
        if setting.form == Form::Number {
            assert_eq!(check.value, Datum::Number(7), "{id}");
        }
        if let DefaultValue::Number(number) = setting.default {
            assert_eq!(check.default, Datum::Number(number.into()), "{id}");
        }
    }
}

#[test]
fn every_status_is_reached_by_the_cases() {
    for status in Status::ALL {
        assert!(all_cases().iter().any(|case| case.status == status), "{status:?}");
    }
}

/// What must not be printed, of which some words are fit for one check alone.
#[test]
fn no_check_gives_a_folk_remedy_in_any_state() {
    const NEVER: [&str; 20] = [
        "SO_REUSEPORT",
        "sudo",
        "kill the",
        "kill it",
        "kill -",
        "as root",
        "restart",
        "uid 0",
        "49152",
        "harmless",
        "tcp_tw_recycle=1",
        "tcp_fin_timeout=",
        "fin_timeout sets",
        "fin_timeout controls",
        "TIME_WAIT is on",
        "listener in TIME_WAIT",
        "of the port range are in TIME_WAIT",
        "lower tcp_max",
        "is a leak",
        "SO_LINGER",
    ];
    const ONLY_IN: [(&str, &[&str]); 4] = [
        ("tcp_tw_recycle", &["tcp_tw_recycle"]),
        ("SO_REUSEADDR", &["ip_autobind_reuse"]),
        // For connects alone.
        ("tcp_tw_reuse=1", &["destinations"]),
        ("tcp_tw_reuse", &["destinations", "tcp_tw_reuse", "tcp_tw_reuse_delay", "tcp_tw_timeout", "tcp_timestamps"]),
    ];
    let machines = all_cases().into_iter().map(|case| case.health()).chain([healthy()]);
    let outbound = [destination(3, None), destination(0, Some(Duration::ZERO))].map(|one| check_of(&[one]));
    for check in machines
        .flat_map(|health| examine_without_destinations(&health))
        .chain(outbound)
        .chain([unknown_destinations()])
    {
        let Subject { id, does, does_not, sources } = check.subject;
        let text = [does, does_not, check.finding.as_deref().unwrap_or_default(), &help(&check)].join(" ");
        for never in NEVER {
            assert!(!text.contains(never), "{id} says {never:?}: {text}");
        }
        for (words, fit) in ONLY_IN {
            assert!(!text.contains(words) || fit.contains(&id), "{id} says {words:?}: {text}");
        }
        assert!(!text.split(' ').any(|word| word == "lower") || text.contains("removes protection"), "{text}");
        assert!(!sources.is_empty() && !does.is_empty() && !does_not.is_empty(), "{id}");
    }
}

#[test]
fn every_source_is_a_man_page_an_rfc_or_a_file_of_the_kernel() {
    for check in examine_without_destinations(&healthy()) {
        for source in check.subject.sources {
            let first = source.split([' ', ',']).next().unwrap_or_default();
            let known = first.ends_with(')')
                || first == "RFC"
                || ["Documentation/", "net/", "include/", "/proc/"].iter().any(|folder| first.starts_with(folder));
            assert!(known, "{}: {source}", check.subject.id);
        }
    }
}

#[test]
fn the_default_of_the_bucket_limit_follows_the_kernels_hash_table() {
    let check_of = |entries: Reading| {
        let mut health = healthy();
        health.settings.0.insert("ipv4.tcp_ehash_entries", entries);
        check(&health, "tcp_max_tw_buckets")
    };
    assert_eq!(check_of(Reading::Value("-8192".into())).default, Datum::Number(4096));
    assert_eq!(check_of(Reading::Value("8192".into())).default, Datum::Number(4096));
    let unknown = check_of(Reading::Absent);
    assert_eq!((unknown.default, unknown.status), (Datum::Unknown, Status::Ok));
    let unreadable = check_of(Reading::Unreadable("Input/output error".into()));
    assert_eq!((unreadable.default, unreadable.status), (Datum::Unknown, Status::Unknown));
    // Nothing that was read gives a number, so no command has one.
    let mut health = healthy();
    health.settings.0.insert("ipv4.tcp_ehash_entries", Reading::Absent);
    health.settings.0.insert("ipv4.tcp_max_tw_buckets", Reading::Value("0".into()));
    assert_eq!(check(&health, "tcp_max_tw_buckets").help.commands, []);
}

#[test]
fn the_default_of_reuse_is_that_of_the_kernels_age() {
    let check_of = |kernel: &str, value: &'static str| {
        let mut health = healthy();
        health.facts.kernel = kernel.into();
        set("ipv4.tcp_tw_reuse", value)(&mut health);
        let check = check(&health, "tcp_tw_reuse");
        (check.default, check.status)
    };
    assert_eq!(check_of("6.18.44-1-amd64", "0"), (Datum::Number(2), Status::Note));
    assert_eq!(check_of("4.19.0", "2"), (Datum::Number(2), Status::Ok));
    assert_eq!(check_of("4.14.336", "0"), (Datum::Number(0), Status::Ok));
    assert_eq!(check_of("strange", "2"), (Datum::Unknown, Status::Ok));
}

#[test]
fn servers_that_took_what_the_kernel_gave_or_that_are_reserved_are_no_finding() {
    let mut health = healthy();
    listens(40000, Some(true), nginx)(&mut health);
    // 8000 is reserved, and outside the range besides.
    listens(8000, Some(false), nginx)(&mut health);
    let found = check(&health, "ephemeral_listeners");
    assert_eq!((found.status, found.value), (Status::Ok, Datum::Number(0)));
    assert!(found.evidence.contains(&("ports_the_kernel_chose", Datum::Number(1))), "{:?}", found.evidence);
    health.facts.local_reserved_ports = Some(LocalReservedPorts(range(40000, 40010).into_iter().collect()));
    listens(40005, Some(false), nginx)(&mut health);
    assert_eq!(check(&health, "ephemeral_listeners").status, Status::Ok);
}

#[test]
fn a_leak_is_counted_by_process_and_the_worst_comes_first() {
    let mut health = healthy();
    forgets(10, Some(90_000), || Owners::NotPermitted)(&mut health);
    forgets(11, Some(70_000), nginx)(&mut health);
    let found = check(&health, "close_wait");
    assert_eq!(found.value, Datum::Number(21));
    let Some((_, Datum::List(owners))) = found.evidence.iter().find(|(key, _)| *key == "owners") else {
        panic!("no owners: {found:?}");
    };
    let of = |owner: &Datum, key| match owner {
        Datum::Record(fields) => fields.iter().find(|(name, _)| *name == key).map(|(_, datum)| datum.clone()),
        other => panic!("no record: {other:?}"),
    };
    let numbers = |key| owners.iter().map(|owner| of(owner, key)).collect::<Option<Vec<_>>>();
    assert_eq!(numbers("pid"), Some(vec![Datum::Number(7), Datum::Unknown]));
    assert_eq!(numbers("silent"), Some(vec![Datum::Number(11), Datum::Number(10)]));
    assert_eq!(numbers("longest_ms"), Some(vec![Datum::Number(70_000), Datum::Number(90_000)]));
}

fn check_of(destinations: &[Destination]) -> Check {
    let pool = pool();
    let outbound = Outbound { destinations, conditions: conditions(&pool) };
    let mut checks = examine(&healthy(), Ok(outbound), LEAK, &shell());
    checks.retain(|check| check.subject.id == "destinations");
    checks.remove(0)
}

fn unknown_destinations() -> Check {
    let mut checks = examine(&healthy(), Err("no range"), LEAK, &shell());
    checks.retain(|check| check.subject.id == "destinations");
    checks.remove(0)
}

#[test]
fn a_destination_that_has_less_than_a_tenth_of_its_ports_or_will_run_out_is_warned_of() {
    let (in_order, few) =
        (check_of(&[destination(10, None)]), check_of(&[destination(9, None), destination(50, None)]));
    assert_eq!((in_order.status, in_order.value), (Status::Ok, Datum::Number(0)));
    assert_eq!((few.status, few.value.clone()), (Status::Warning, Datum::Number(1)));
    assert_eq!(few.finding.as_deref(), Some("From 192.0.2.9 to 192.0.2.1:443, 9 of 100 ports are left."));
    assert!(few.evidence.contains(&("all_destinations", Datum::Number(2))), "{few:?}");
    assert!(help(&few).contains("91 ports are in TIME_WAIT"), "{few:?}");
    let soon = check_of(&[destination(60, Some(Duration::from_millis(3750)))]);
    assert!(soon.finding.is_some_and(|finding| {
        finding.ends_with("60 of 100 ports are left (at the rate of the last 10 s, the last one is used in 3.7 s).")
    }));
    let uncertain = check_of(&[Destination { uncertain: 2, ..destination(5, None) }]);
    assert!(uncertain.finding.is_some_and(|finding| finding.contains("at most 5 of 100")));
    let many = check_of(&[(); 25].map(|()| destination(1, None)));
    assert!(many.finding.is_some_and(|finding| finding.ends_with("; 22 more.")), "all are counted");
    let unknown = unknown_destinations();
    assert_eq!((unknown.status, unknown.value), (Status::Unknown, Datum::Unknown));
    assert!(unknown.finding.is_some_and(|finding| finding.contains("no range")));
}
