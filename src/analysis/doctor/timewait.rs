//! Verdicts on settings that make, keep and end timewait buckets, and the check of their overflow.

use super::{Check, Datum, Status, Subject};
use crate::model::command::Shell;
use crate::model::health::{Health, Reading};
use crate::model::setting;

/// From this part of tcp_max_tw_buckets on, in percent, there is a warning.
const NEARLY_FULL: u64 = 90;

const MAXIMUM: &str = setting::TCP_MAX_TW_BUCKETS.name;

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

pub(super) fn tw_reuse(check: Check, value: i64) -> Check {
    match value {
        0 if check.default == Datum::Number(0) => check,
        0 => check.found(
            Status::Note,
            "Off: every connect() waits for the bucket of its addresses and ports to end, on loopback too.",
        ),
        1 => check.found(Status::Ok, "On for every destination."),
        2 => check,
        other => check.found(Status::Note, format!("{other} is a value that this program does not know.")),
    }
}

pub(super) fn tw_reuse_delay(check: Check, value: i64) -> Check {
    match value {
        1000 => check,
        other => check.found(Status::Note, format!("{other} ms, where the default is 1000 ms.")),
    }
}

pub(super) fn tw_recycle(check: Check, value: i64, shell: &Shell) -> Check {
    match value {
        0 => check.found(Status::Ok, "Off."),
        _ => check
            .found(Status::Warning, format!("{value}: clients that share an address (NAT) are refused now and then."))
            .helped_by(shell.change(setting::TCP_TW_RECYCLE.name, "0", "switch it off")),
    }
}

pub(super) fn tw_timeout(check: Check, value: i64) -> Check {
    check
        .found(Status::Note, format!("{value}: a vendor's kernel, on which TIME_WAIT may last another time than 60 s."))
}

pub(super) fn max_tw_buckets(check: Check, most: i64, health: &Health, shell: &Shell) -> Check {
    let Ok(most) = u64::try_from(most) else { return negative_maximum(check, most, health, shell) };
    let default = default_number(&check);
    let Some(sockstat) = health.buckets.sockstat else {
        return check.found(Status::Unknown, "/proc/net/sockstat does not say how many buckets there are.");
    };
    let check = check.with("buckets", Some(sockstat.tw));
    if sockstat.tw.saturating_mul(100) >= most.saturating_mul(NEARLY_FULL) {
        let finding = match sockstat.tw.saturating_mul(100).checked_div(most) {
            Some(part) => format!("{}, and the most is {most} ({part} %).", there_are(sockstat.tw)),
            None => "No close leaves a bucket, so no connection is protected.".to_owned(),
        };
        allow_more_buckets(check.found(Status::Warning, finding), default, most, shell).advising(
            "Each bucket takes about 1/4 KiB of memory. If this end keeps connections open for several requests, it \
                     closes fewer of them.",
        )
    } else if default.is_some_and(|default| most < default) {
        check.found(Status::Note, format!("{most} is less than the kernel's own {}.", default.unwrap_or_default()))
    } else if let Reading::Unreadable(why) = health.settings.reading(setting::TCP_EHASH_ENTRIES.key()) {
        let finding = format!(
            "Whether {most} is less than the kernel's own default is unknown: reading \
                 /proc/sys/net/ipv4/tcp_ehash_entries failed: {why}."
        );
        check.found(Status::Unknown, finding)
    } else {
        check.found(Status::Ok, format!("{}, and the most is {most}.", there_are(sockstat.tw)))
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
    let default = default_number(&check);
    allow_more_buckets(check, default, 0, shell)
}

pub(super) fn overflow(health: &Health) -> Check {
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

pub(super) fn fin_timeout(check: Check, value: i64) -> Check {
    match value {
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
    }
}

pub(super) fn timestamps(check: Check, value: i64, health: &Health, shell: &Shell) -> Check {
    let reuse = health.settings.number(setting::TCP_TW_REUSE.key());
    match (value, reuse) {
        (1, _) => check,
        (0, Some(1)) => check
            .found(Status::Warning, "Off, so that tcp_tw_reuse, which is 1, has no effect on new connections.")
            .helped_by(shell.change(setting::TCP_TIMESTAMPS.name, "1", "switch timestamps on")),
        (0, Some(2)) => check.found(
            Status::Note,
            "Off: PAWS does not protect connections, and tcp_tw_reuse, which is 2, has no effect on loopback either.",
        ),
        (0, _) => check.found(Status::Note, "Off: PAWS does not protect connections, and no bucket can be taken over."),
        (2, _) => check.found(Status::Ok, "On, with one clock for all connections (no random offset)."),
        (other, _) => check.found(Status::Note, format!("{other} is a value that this program does not know.")),
    }
}

pub(super) fn rfc1337(check: Check, value: i64) -> Check {
    match value {
        0 => check,
        1 => check.found(Status::Ok, "On: a RST does not end a bucket."),
        other => check.found(Status::Note, format!("{other} is a value that this program does not know.")),
    }
}
