//! The verdicts on the settings about timewait buckets, and the check of the counter TCPTimeWaitOverflow.

use super::{Check, Datum, Status, Subject};
use crate::model::command::Shell;
use crate::model::health::{Health, SettingValue};
use crate::model::setting;

/// The share of tcp_max_tw_buckets, in percent, at which the check warns.
const NEARLY_FULL: u64 = 90;

const MAXIMUM: &str = setting::TCP_MAX_TW_BUCKETS.name;

/// Adds the command that raises the limit `most` to the kernel's default or to twice `most`, whichever is larger. If that is 0, adds
/// advice instead.
fn allow_more_buckets(check: Check, default: Option<u64>, most: u64, shell: &Shell) -> Check {
    let more = default.into_iter().chain(Some(most.saturating_mul(2))).max().filter(|more| *more > 0);
    match more {
        // The kernel stores the setting as a signed number of 32 bits.
        Some(more) => {
            let more = more.min(i32::MAX.unsigned_abs().into());
            check.helped_by(shell.change(MAXIMUM, &more.to_string(), "allow more buckets"))
        }
        None => check.advising(
            "Set net.ipv4.tcp_max_tw_buckets to the kernel's default: half of the number that dmesg shows as 'TCP established \
             hash table entries'. twtool could not compute that number, because it could not read \
             net.ipv4.tcp_ehash_entries.",
        ),
    }
}

pub(super) fn tw_reuse(check: Check, value: i64) -> Check {
    match value {
        0 if check.default == Datum::Number(0) => check,
        0 => check.found(Status::Note, "Off: connect() takes over a bucket only if the program bound the source port."),
        1 => check.found(Status::Ok, "On for every destination."),
        2 => check,
        other => check.found(Status::Note, format!("{other} is a value that twtool does not know.")),
    }
}

pub(super) fn tw_reuse_delay(check: Check, value: i64) -> Check {
    match value {
        1000 => check,
        other => check.found(Status::Note, format!("{other} ms; the default is 1000 ms.")),
    }
}

pub(super) fn tw_recycle(check: Check, value: i64, shell: &Shell) -> Check {
    match value {
        0 => check.found(Status::Ok, "Off."),
        _ => check
            .found(
                Status::Warning,
                format!("{value}: the kernel sometimes refuses clients that share an address (NAT)."),
            )
            .helped_by(shell.change(setting::TCP_TW_RECYCLE.name, "0", "switch it off")),
    }
}

pub(super) fn tw_timeout(check: Check, value: i64) -> Check {
    check.found(
        Status::Note,
        format!(
            "{value}: only kernels of some vendors have this setting. TIME_WAIT may last longer or shorter than 60 s."
        ),
    )
}

pub(super) fn max_tw_buckets(check: Check, most: i64, health: &Health, shell: &Shell) -> Check {
    let Ok(most) = u64::try_from(most) else { return negative_maximum(check, most, health, shell) };
    let default = default_number(&check);
    let Some(sockstat) = health.buckets.sockstat else {
        return check.found(Status::Unknown, "/proc/net/sockstat does not show the number of buckets.");
    };
    let check = check.with("buckets", Some(sockstat.tw));
    if sockstat.tw.saturating_mul(100) >= most.saturating_mul(NEARLY_FULL) {
        let finding = match sockstat.tw.saturating_mul(100).checked_div(most) {
            Some(part) => format!("{}; the limit is {most} ({part} % used).", there_are(sockstat.tw)),
            None => {
                "The kernel keeps no bucket after a close, so old segments of a closed connection can reach a new one."
                    .into()
            }
        };
        allow_more_buckets(check.found(Status::Warning, finding), default, most, shell).advising(
            "Or close fewer connections: keep them open for several requests. Each bucket takes about 1/4 KiB of memory.",
        )
    } else if default.is_some_and(|default| most < default) {
        check.found(Status::Note, format!("{most} is less than the kernel's default {}.", default.unwrap_or_default()))
    } else if let SettingValue::Unreadable(why) = health.settings.value(setting::TCP_EHASH_ENTRIES.key()) {
        let finding = format!(
            "It is unknown whether {most} is less than the kernel's default: reading /proc/sys/net/ipv4/tcp_ehash_entries \
             failed: {why}."
        );
        check.found(Status::Unknown, finding)
    } else {
        check.found(Status::Ok, format!("{}; the limit is {most}.", there_are(sockstat.tw)))
    }
}

fn default_number(check: &Check) -> Option<u64> {
    match check.default {
        Datum::Number(number) => number.try_into().ok(),
        _ => None,
    }
}

/// `There is 1 bucket`.
fn there_are(buckets: u64) -> String {
    if buckets == 1 { "There is 1 bucket".into() } else { format!("There are {buckets} buckets") }
}

fn negative_maximum(check: Check, most: i64, health: &Health, shell: &Shell) -> Check {
    let (status, meaning) = match health.facts.negative_maximum_is_none() {
        Some(true) => (Status::Note, "the kernel compares it as an unsigned number, so there is no limit"),
        Some(false) => (
            Status::Warning,
            "the kernel keeps no bucket after a close, so old segments of a closed connection can reach a new one",
        ),
        None => (Status::Note, "with a negative value, some kernels have no limit, and others keep no bucket at all"),
    };
    let check = check.found(status, format!("{most}: {meaning}."));
    if status != Status::Warning {
        return check;
    }
    let default = default_number(&check);
    allow_more_buckets(check, default, 0, shell)
}

pub(super) fn overflow(health: &Health) -> Check {
    let subject = Subject {
        id: "tcp_timewait_overflow",
        does: "TcpExt TCPTimeWaitOverflow counts the closes after which the kernel kept no bucket, usually because \
               tcp_max_tw_buckets was reached (or for lack of memory). It counts since this network namespace was made.",
        does_not: "It does not count lost connections or lost data: the connections closed normally, and only the bucket is \
                   missing. It does not show when these closes happened.",
        sources: &["/proc/net/netstat, TCPTimeWaitOverflow", "net/ipv4/tcp_minisocks.c, tcp_time_wait()"],
    };
    let count = health.buckets.counter("TCPTimeWaitOverflow");
    let check = Check::ok(subject, count.into(), Datum::Unknown);
    match count {
        None => check.found(Status::Unknown, "/proc/net/netstat does not have TcpExt TCPTimeWaitOverflow."),
        Some(0) => check,
        Some(1) => with_overflow(check, "1 close"),
        Some(n) => with_overflow(check, &format!("{n} closes")),
    }
}

fn with_overflow(check: Check, closes: &str) -> Check {
    check
        .found(
            Status::Warning,
            format!(
                "For {closes} since this network namespace was made, the kernel kept no bucket, usually because tcp_max_tw_buckets \
                 was reached."
            ),
        )
        .advising("Run doctor again later. If the number grows, tcp_max_tw_buckets is probably too low for this machine.")
}

pub(super) fn fin_timeout(check: Check, value: i64) -> Check {
    match value {
        60 => check,
        // `tcp_fin_time` in include/net/tcp.h: never less than 3.5 retransmission timeouts.
        1.. => check.found(
            Status::Note,
            format!(
                "The kernel ends an orphan in FIN_WAIT_2 after {value} s, or after 3.5 retransmission timeouts of its \
                 connection if that is longer. TIME_WAIT is not affected."
            ),
        ),
        _ => check.found(
            Status::Note,
            format!(
                "{value}: the kernel ends an orphan in FIN_WAIT_2 after 3.5 retransmission timeouts of its connection \
                 (0.7 s on loopback). TIME_WAIT is not affected."
            ),
        ),
    }
}

pub(super) fn timestamps(check: Check, value: i64, health: &Health, shell: &Shell) -> Check {
    let reuse = health.settings.number(setting::TCP_TW_REUSE.key());
    match (value, reuse) {
        (1, _) => check,
        (0, Some(1)) => check
            .found(
                Status::Warning,
                "Off: connections that begin now have no timestamps, so connect() cannot take over their buckets later, although \
                 tcp_tw_reuse is 1.",
            )
            .helped_by(shell.change(setting::TCP_TIMESTAMPS.name, "1", "switch timestamps on")),
        (0, Some(2)) => check.found(
            Status::Note,
            "Off: connections that begin now have no PAWS protection, and connect() cannot take over their buckets later, not \
             even on loopback (tcp_tw_reuse is 2).",
        ),
        (0, _) => check.found(
            Status::Note,
            "Off: connections that begin now have no PAWS protection, and connect() cannot take over their buckets later.",
        ),
        (2, _) => check.found(Status::Ok, "On, with one clock for all connections (no random offset)."),
        (other, _) => check.found(Status::Note, format!("{other} is a value that twtool does not know.")),
    }
}

pub(super) fn rfc1337(check: Check, value: i64) -> Check {
    match value {
        0 => check,
        1 => check.found(Status::Ok, "On: a RST does not end a bucket."),
        other => check.found(Status::Note, format!("{other} is a value that twtool does not know.")),
    }
}
