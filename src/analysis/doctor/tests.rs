//! Tests the findings and the advice of checks, and the rules that apply to all checks.

use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;

use super::*;
use crate::analysis::capacity::sockets::ConnectionEnds;
use crate::analysis::capacity::{Conditions, Destination, Pool};
use crate::analysis::history::Length;
use crate::model::command::{Caller, RootPower};
use crate::model::facts::Facts;
use crate::model::health::tests::healthy;
use crate::model::health::{Capabilities, CloseWait, OpenListener, SettingValue};
use crate::model::kernel_counts::TcpSockstat;
use crate::model::port::{LocalPortRange, LocalReservedPorts, Port, PortRange};
use crate::model::port_set::PortSet;
use crate::model::process::{Owners, Process};
use crate::model::setting::{DefaultValue, Form, SETTINGS};
use crate::model::socket::{Cookie, FourTuple, FullSocket, TcpState};
use crate::model::tw_reuse::{ReuseMode, TwReuse};
use crate::model::user::User;

mod cases;

use cases::{all_cases, close_waits, listens, nginx, range, set};

const LEAK: LeakThreshold = LeakThreshold { silent: Duration::from_secs(60) };

fn examine_without_destinations(health: &Health) -> Vec<Check> {
    let pool = pool();
    examine(health, Ok(OutboundConnections { destinations: &[], conditions: conditions(&pool) }), None, LEAK, &shell())
}

/// The shell of root, in the caller's own namespace.
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

fn help(check: &Check) -> String {
    let Suggestions { commands, sysctl_lines, advice } = &check.help;
    let commands = commands.iter().map(|step| step.command.as_str());
    let lines = sysctl_lines.iter().map(|one| one.line.as_str());
    commands.chain(lines).chain(advice.iter().map(String::as_str)).collect::<Vec<_>>().join(" ")
}

/// A pool of a hundred ports.
fn pool() -> Pool {
    let range = range(40000, 40099).expect("a range");
    Pool::new(range, &LocalReservedPorts::default(), &PortSet::default(), &PortSet::default(), 0)
}

fn conditions(pool: &Pool) -> Conditions<'_> {
    let (mode, delay) = (Some(ReuseMode::LoopbackOnly), Duration::from_secs(1));
    let reuse = TwReuse { mode, delay, whole_seconds: false, timestamps: Some(true) };
    Conditions { pool, reuse, length: Length::learn(None, None) }
}

/// A destination 192.0.2.1:443 with this number of free ports of a hundred.
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

#[track_caller]
fn check(health: &Health, id: &str) -> Check {
    let mut checks = examine_without_destinations(health);
    checks.retain(|check| check.subject.id == id);
    assert_eq!(checks.len(), 1, "one check has the id {id}");
    checks.remove(0)
}

#[test]
fn a_healthy_machine_has_no_findings() {
    for check in examine_without_destinations(&healthy()) {
        assert_eq!((check.status, &check.help), (Status::Ok, &Suggestions::default()), "{check:?}");
    }
}

#[test]
fn each_check_has_the_expected_finding_and_advice() {
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
            check.status != Status::Warning || check.help != Suggestions::default(),
            "a warning says what to do: {check:?}"
        );
    }
}

#[test]
fn a_change_affects_only_the_checks_that_depend_on_it() {
    // Whether a change that belongs to the check `changed` may also change the result of `check`.
    let may_change = |changed: &str, check: &str| {
        changed == check
            || matches!((changed, check), ("ip_local_port_range", "ip_local_reserved_ports"))
            || matches!((changed, check), ("ephemeral_listeners", "ip_local_port_range" | "ip_local_reserved_ports"))
            || matches!((changed, check), ("tcp_timestamps", "tcp_tw_reuse"))
            || ["ephemeral_listeners", "close_wait", "tcp_diag", "capabilities"].contains(&check)
    };
    let of_healthy = examine_without_destinations(&healthy());
    for case in all_cases() {
        for (before, after) in of_healthy.iter().zip(examine_without_destinations(&case.health())) {
            if !may_change(case.id, before.subject.id) {
                let result =
                    |check: &Check| (check.status, check.value.clone(), check.finding.clone(), check.help.clone());
                assert_eq!(result(before), result(&after), "{} after {}", before.subject.id, case.id);
            }
        }
    }
}

#[test]
fn every_setting_with_a_check_is_explained_and_has_its_number_and_default() {
    let mut health = healthy();
    for setting in SETTINGS.iter().filter(|setting| setting.form == Form::Number) {
        health.settings.0.insert(setting.key(), SettingValue::Value("7".into()));
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
fn the_cases_cover_every_status() {
    for status in Status::ALL {
        assert!(all_cases().iter().any(|case| case.status == status), "{status:?}");
    }
}

#[test]
fn no_check_gives_a_common_wrong_remedy() {
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
    // Words that are right only in the named checks.
    const ONLY_IN: [(&str, &[&str]); 4] = [
        ("tcp_tw_recycle", &["tcp_tw_recycle"]),
        ("SO_REUSEADDR", &["ip_autobind_reuse"]),
        // This helps connect() only.
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
        // A text may mention a lower setting only together with the protection that is lost.
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
    let check_of = |entries: SettingValue| {
        let mut health = healthy();
        health.settings.0.insert("ipv4.tcp_ehash_entries", entries);
        check(&health, "tcp_max_tw_buckets")
    };
    assert_eq!(check_of(SettingValue::Value("-8192".into())).default, Datum::Number(4096));
    assert_eq!(check_of(SettingValue::Value("8192".into())).default, Datum::Number(4096));
    let unknown = check_of(SettingValue::Absent);
    assert_eq!((unknown.default, unknown.status), (Datum::Unknown, Status::Ok));
    let unreadable = check_of(SettingValue::Unreadable("Input/output error".into()));
    assert_eq!((unreadable.default, unreadable.status), (Datum::Unknown, Status::Unknown));
    // The default is unknown and the limit is 0, so twtool has no number to suggest, and prints no command.
    let mut health = healthy();
    health.settings.0.insert("ipv4.tcp_ehash_entries", SettingValue::Absent);
    health.settings.0.insert("ipv4.tcp_max_tw_buckets", SettingValue::Value("0".into()));
    assert_eq!(check(&health, "tcp_max_tw_buckets").help.commands, []);
}

#[test]
fn the_default_of_tcp_tw_reuse_depends_on_the_kernel_version() {
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
fn servers_that_asked_for_port_0_and_servers_on_reserved_ports_are_not_a_finding() {
    let mut health = healthy();
    listens(40000, Some(true), nginx)(&mut health);
    // 8000 is reserved and also outside the range.
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
    close_waits(10, Some(90_000), || Owners::NotPermitted)(&mut health);
    close_waits(11, Some(70_000), nginx)(&mut health);
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
    let outbound = OutboundConnections { destinations, conditions: conditions(&pool) };
    let mut checks = examine(&healthy(), Ok(outbound), None, LEAK, &shell());
    checks.retain(|check| check.subject.id == "destinations");
    checks.remove(0)
}

fn unknown_destinations() -> Check {
    let mut checks = examine(&healthy(), Err("no range"), None, LEAK, &shell());
    checks.retain(|check| check.subject.id == "destinations");
    checks.remove(0)
}

#[test]
fn a_destination_short_of_ports_causes_a_warning() {
    let (enough, few) = (check_of(&[destination(10, None)]), check_of(&[destination(9, None), destination(50, None)]));
    assert_eq!((enough.status, enough.value), (Status::Ok, Datum::Number(0)));
    assert_eq!((few.status, few.value.clone()), (Status::Warning, Datum::Number(1)));
    assert_eq!(few.finding.as_deref(), Some("From 192.0.2.9 to 192.0.2.1:443, 9 of 100 ports are left."));
    assert!(few.evidence.contains(&("all_destinations", Datum::Number(2))), "{few:?}");
    assert!(help(&few).contains("91 ports are in TIME_WAIT"), "{few:?}");
    let soon = check_of(&[destination(60, Some(Duration::from_millis(3750)))]);
    assert!(soon.finding.is_some_and(|finding| {
        finding.ends_with("60 of 100 ports are left (at the present rate, none is left in 3.7 s).")
    }));
    let uncertain = check_of(&[Destination { uncertain: 2, ..destination(5, None) }]);
    assert!(uncertain.finding.is_some_and(|finding| finding.contains("at most 5 of 100")));
    let many = check_of(&[(); 25].map(|()| destination(1, None)));
    assert!(many.finding.is_some_and(|finding| finding.ends_with("; 22 more.")), "all are counted");
    let unknown = unknown_destinations();
    assert_eq!((unknown.status, unknown.value), (Status::Unknown, Datum::Unknown));
    assert!(unknown.finding.is_some_and(|finding| finding.contains("no range")));
}
