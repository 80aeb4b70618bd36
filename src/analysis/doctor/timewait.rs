//! Checks of what makes, keeps and ends timewait buckets.

use super::settings::Setting;
use super::{Check, Datum, Status, Subject};
use crate::model::command::Shell;
use crate::model::health::{Health, Reading};

/// From this part of tcp_max_tw_buckets on, in percent, there is a warning.
const NEARLY_FULL: u64 = 90;

const MAXIMUM: &str = "net.ipv4.tcp_max_tw_buckets";

/// Has more buckets allowed where `most` was reached: as many as the kernel's default, or twice as many as now. Without
/// either number there is no command.
fn allow_more_buckets(check: Check, default: Option<u64>, most: u64, shell: &Shell) -> Check {
    let more = default.into_iter().chain(Some(most.saturating_mul(2))).max().filter(|more| *more > 0);
    match more {
        // The setting is an int.
        Some(more) => {
            let more = more.min(i32::MAX.unsigned_abs().into());
            check.helped_by(shell.change(MAXIMUM, &more.to_string(), "allow more buckets"))
        }
        None => check.advising(
            "Set net.ipv4.tcp_max_tw_buckets to the kernel's own default. It is half of the number that the kernel logs when it \
             starts: dmesg shows it as 'TCP established hash table entries'. It is unknown here, because \
             net.ipv4.tcp_ehash_entries is not there to be read.",
        ),
    }
}

pub(super) fn checks(health: &Health, shell: &Shell) -> Vec<Check> {
    vec![
        tw_reuse(health),
        tw_reuse_delay(health),
        tw_recycle(health, shell),
        tw_timeout(health),
        max_tw_buckets(health, shell),
        overflow(health),
        fin_timeout(health),
        timestamps(health, shell),
        rfc1337(health),
    ]
}

fn tw_reuse(health: &Health) -> Check {
    let subject = Subject {
        id: "tcp_tw_reuse",
        does: "Lets connect() take over a timewait bucket of the very same addresses and ports once its last segment is \
               older than tcp_tw_reuse_delay, where the old connection had timestamps and the new one offers them. 0: \
               never. 1: to any destination. 2: on loopback alone.",
        does_not: "It does nothing for bind() and nothing for a server whose port has buckets, and it does not shorten \
                   TIME_WAIT.",
        sources: &[
            "Documentation/networking/ip-sysctl.rst, tcp_tw_reuse",
            "tcp(7), tcp_tw_reuse",
            "RFC 7323, section 5",
            "net/ipv4/tcp_ipv4.c, tcp_twsk_unique()",
        ],
    };
    let default = health.facts.kernel_since(4, 19).map(|since| if since { 2 } else { 0 });
    let taken_over = health.buckets.counter("TWRecycled");
    Setting { subject, name: "ipv4.tcp_tw_reuse", default, absent: None }
        .check(health, |check, value| match value {
            0 if default == Some(0) => check,
            0 => check.found(
                Status::Note,
                "Off: every connect() waits for the bucket of its addresses and ports to end, on loopback too.",
            ),
            1 if default == Some(1) => check,
            1 => check.found(Status::Ok, "On for every destination."),
            2 => check,
            other => check.found(Status::Note, format!("{other} is a value that this program does not know.")),
        })
        .with("buckets_taken_over", taken_over)
}

fn tw_reuse_delay(health: &Health) -> Check {
    let subject = Subject {
        id: "tcp_tw_reuse_delay",
        does: "How many milliseconds must have passed since the last segment of a bucket before connect() may take it \
               over by tcp_tw_reuse.",
        does_not: "It does nothing where tcp_tw_reuse is 0 or there are no timestamps, and it does not change when a \
                   bucket ends.",
        sources: &[
            "Documentation/networking/ip-sysctl.rst, tcp_tw_reuse_delay",
            "net/ipv4/tcp_ipv4.c, tcp_twsk_unique()",
        ],
    };
    let absent = Some("This kernel has no such setting: there a bucket may be taken over after about 1 s, always.");
    Setting { subject, name: "ipv4.tcp_tw_reuse_delay", default: Some(1000), absent }.check(health, |check, value| {
        match value {
            1000 => check,
            other => check.found(Status::Note, format!("{other} ms, where the default is 1000 ms.")),
        }
    })
}

fn tw_recycle(health: &Health, shell: &Shell) -> Check {
    let subject = Subject {
        id: "tcp_tw_recycle",
        does: "Kernels before 4.12 had it. It dropped SYNs by the timestamps that other hosts behind the same address had \
               sent, and so refused clients behind NAT.",
        does_not: "It cannot be switched on where it is absent, and advice to do so is of before 2017.",
        sources: &["tcp(7), tcp_tw_recycle (Linux 2.4 to Linux 4.11)"],
    };
    let absent = Some("Absent, as on every kernel since 4.12.");
    Setting { subject, name: "ipv4.tcp_tw_recycle", default: Some(0), absent }.check(health, |check, value| match value
    {
        0 => check.found(Status::Ok, "Off."),
        _ => check
            .found(Status::Warning, format!("{value}: clients that share an address (NAT) are refused now and then."))
            .helped_by(shell.change("net.ipv4.tcp_tw_recycle", "0", "switch it off")),
    })
}

fn tw_timeout(health: &Health) -> Check {
    let subject = Subject {
        id: "tcp_tw_timeout",
        does: "Sets how long TIME_WAIT lasts, on the kernels of some vendors. Mainline Linux has no such setting: there \
               it is 60 s, a constant.",
        does_not: "No other setting changes that length: neither tcp_fin_timeout nor tcp_tw_reuse does.",
        sources: &["include/net/tcp.h, TCP_TIMEWAIT_LEN", "RFC 9293, section 3.6.1"],
    };
    let absent = Some("Absent, as on mainline kernels: TIME_WAIT lasts 60 s (TCP_TIMEWAIT_LEN).");
    Setting { subject, name: "ipv4.tcp_tw_timeout", default: None, absent }.check(health, |check, value| {
        check.found(
            Status::Note,
            format!("{value}: a vendor's kernel, on which TIME_WAIT may last another time than 60 s."),
        )
    })
}

fn max_tw_buckets(health: &Health, shell: &Shell) -> Check {
    let subject = Subject {
        id: "tcp_max_tw_buckets",
        does: "The most timewait buckets, TIME_WAIT and orphaned FIN_WAIT_2, that this network namespace keeps. At that \
               number a further close leaves no bucket, so old segments of that connection can reach its successor. \
               The default is half of the entries of the kernel's TCP hash table, which depends on memory.",
        does_not: "It is no tuning: a lower number takes protection away and makes nothing faster. It limits neither \
                   connections nor ports.",
        sources: &[
            "Documentation/networking/ip-sysctl.rst, tcp_max_tw_buckets",
            "tcp(7), tcp_max_tw_buckets",
            "RFC 9293, section 3.6.1",
        ],
    };
    // `tcp_set_hashinfo` in net/ipv4/tcp_ipv4.c: half of the hash table. A namespace that shares the first one's table
    // shows its size as a negative number (ip-sysctl, tcp_ehash_entries).
    let default = health.settings.number("ipv4.tcp_ehash_entries").map(|entries| entries.saturating_abs() / 2);
    let name = "ipv4.tcp_max_tw_buckets";
    Setting { subject, name, default, absent: None }.check(health, |check, most| {
        let Ok(most) = u64::try_from(most) else { return negative_maximum(check, most, health, shell) };
        let default = default.map(i64::unsigned_abs);
        let Some(sockstat) = health.buckets.sockstat else {
            return check.found(Status::Unknown, "/proc/net/sockstat does not say how many buckets there are.");
        };
        let check = check.with("buckets", Some(sockstat.tw));
        if sockstat.tw.saturating_mul(100) >= most.saturating_mul(NEARLY_FULL) {
            let finding = match sockstat.tw.saturating_mul(100).checked_div(most) {
                Some(part) => format!("{}, and the most is {most} ({part} %).", there_are(sockstat.tw)),
                None => "No close leaves a bucket, so no connection is protected.".to_owned(),
            };
            allow_more_buckets(check.found(Status::Warning, finding), default, most, shell)
                .advising(
                    "Each bucket takes about 1/4 KiB of memory. If this end keeps connections open for several requests, it \
                     closes fewer of them.",
                )
        } else if default.is_some_and(|default| most < default) {
            check.found(Status::Note, format!("{most} is less than the kernel's own {}.", default.unwrap_or_default()))
        } else if let Reading::Unreadable(why) = health.settings.reading("ipv4.tcp_ehash_entries") {
            let finding = format!(
                "Whether {most} is less than the kernel's own default is unknown: reading \
                 /proc/sys/net/ipv4/tcp_ehash_entries failed: {why}."
            );
            check.found(Status::Unknown, finding)
        } else {
            check.found(Status::Ok, format!("{}, and the most is {most}.", there_are(sockstat.tw)))
        }
    })
}

/// `There is 1 bucket`.
fn there_are(buckets: u64) -> String {
    if buckets == 1 { "There is 1 bucket".into() } else { format!("There are {buckets} buckets") }
}

/// `inet_twsk_alloc` in net/ipv4/inet_timewait_sock.c compares the count and the setting as unsigned numbers on 6.1 and
/// later, and as signed numbers on 5.10.
fn negative_maximum(check: Check, most: i64, health: &Health, shell: &Shell) -> Check {
    let since = |major, minor| health.facts.kernel_since(major, minor);
    let (status, meaning) = match (since(6, 1), since(5, 11)) {
        (Some(true), _) => (Status::Note, "the kernel compares it as an unsigned number, so there is no maximum"),
        (_, Some(false)) => (Status::Warning, "no close leaves a bucket, so no connection is protected"),
        _ => (Status::Note, "on some kernels that is no maximum, and on others no close leaves a bucket"),
    };
    let check = check.found(status, format!("{most}: {meaning}."));
    if status != Status::Warning {
        return check;
    }
    let default = health.settings.number("ipv4.tcp_ehash_entries").map(|entries| entries.unsigned_abs() / 2);
    allow_more_buckets(check, default, 0, shell)
}

fn overflow(health: &Health) -> Check {
    let subject = Subject {
        id: "tcp_timewait_overflow",
        does: "TcpExt TCPTimeWaitOverflow counts the closes that left no bucket, because there were tcp_max_tw_buckets \
               already, since this network namespace was made.",
        does_not: "It does not count lost connections or lost data: those connections were closed in order. It does not \
                   say when.",
        sources: &["/proc/net/netstat, TCPTimeWaitOverflow", "net/ipv4/tcp_minisocks.c, tcp_time_wait()"],
    };
    let count = health.buckets.counter("TCPTimeWaitOverflow");
    let check = Check::ok(subject, count.into(), Datum::Unknown);
    match count {
        None => check.found(Status::Unknown, "/proc/net/netstat does not have TcpExt TCPTimeWaitOverflow."),
        Some(0) => check,
        Some(1) => overflowed(check, "1 close has"),
        Some(n) => overflowed(check, &format!("{n} closes have")),
    }
}

fn overflowed(check: Check, closes: &str) -> Check {
    check
        .found(
            Status::Warning,
            format!("{closes} left no bucket since this network namespace was made: tcp_max_tw_buckets was reached."),
        )
        .advising("Look again later: while the number grows, tcp_max_tw_buckets is too low for this machine.")
}

fn fin_timeout(health: &Health) -> Check {
    let subject = Subject {
        id: "tcp_fin_timeout",
        does: "How many seconds an orphan stays in FIN_WAIT_2: this end has closed, and the peer has not.",
        does_not: "It does not change TIME_WAIT, which comes after FIN_WAIT_2.",
        sources: &[
            "Documentation/networking/ip-sysctl.rst, tcp_fin_timeout",
            "tcp(7), tcp_fin_timeout and TCP_LINGER2",
            "include/net/tcp.h, TCP_TIMEWAIT_LEN",
        ],
    };
    let setting = Setting { subject, name: "ipv4.tcp_fin_timeout", default: Some(60), absent: None };
    setting.check(health, |check, value| match value {
        60 => check,
        1.. => check.found(
            Status::Note,
            format!("The kernel gives up an orphan in FIN_WAIT_2 after {value} s. TIME_WAIT lasts as long as before."),
        ),
        // `tcp_fin_time` in include/net/tcp.h: never less than 3.5 retransmission timeouts.
        _ => check.found(
            Status::Note,
            format!(
                "{value}: the kernel gives up an orphan in FIN_WAIT_2 after 3.5 retransmission timeouts of its connection \
                 (0.7 s on loopback). TIME_WAIT lasts as long as before."
            ),
        ),
    })
}

fn timestamps(health: &Health, shell: &Shell) -> Check {
    let subject = Subject {
        id: "tcp_timestamps",
        does: "Offers timestamps on every segment. By them both ends tell old segments from new (PAWS), and by them alone \
               tcp_tw_reuse can take over a bucket. 1: with an offset of its own for each connection. 2: without.",
        does_not: "It does not change how long TIME_WAIT lasts, and a connection has timestamps only where both ends \
                   offer them.",
        sources: &[
            "Documentation/networking/ip-sysctl.rst, tcp_timestamps",
            "tcp(7), tcp_timestamps",
            "RFC 7323, sections 3 and 5",
        ],
    };
    let reuse = health.settings.number("ipv4.tcp_tw_reuse");
    let setting = Setting { subject, name: "ipv4.tcp_timestamps", default: Some(1), absent: None };
    setting.check(health, |check, value| match (value, reuse) {
        (1, _) => check,
        (0, Some(1)) => check
            .found(Status::Warning, "Off, so that tcp_tw_reuse, which is 1, has no effect on new connections.")
            .helped_by(shell.change("net.ipv4.tcp_timestamps", "1", "switch timestamps on")),
        (0, Some(2)) => check.found(
            Status::Note,
            "Off: PAWS does not protect connections, and tcp_tw_reuse, which is 2, has no effect on loopback either.",
        ),
        (0, _) => check.found(Status::Note, "Off: PAWS does not protect connections, and no bucket can be taken over."),
        (2, _) => check.found(Status::Ok, "On, with one clock for all connections (no random offset)."),
        (other, _) => check.found(Status::Note, format!("{other} is a value that this program does not know.")),
    })
}

fn rfc1337(health: &Health) -> Check {
    let subject = Subject {
        id: "tcp_rfc1337",
        does: "0: a RST that fits a bucket ends it at once, before its time (RFC 1337 calls that assassination). 1: such a \
               RST is ignored.",
        does_not: "It does not change how long a bucket lasts that nobody resets, nor how many there are.",
        sources: &["RFC 1337", "tcp(7), tcp_rfc1337", "net/ipv4/tcp_minisocks.c"],
    };
    let setting = Setting { subject, name: "ipv4.tcp_rfc1337", default: Some(0), absent: None };
    setting.check(health, |check, value| match value {
        0 => check,
        1 => check.found(Status::Ok, "On: a RST does not end a bucket."),
        other => check.found(Status::Note, format!("{other} is a value that this program does not know.")),
    })
}
