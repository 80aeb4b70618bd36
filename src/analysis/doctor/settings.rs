//! The checks of settings: each entry of [`SETTINGS`] that has a check, with its verdict.

use super::{Check, Datum, Status, Subject, ports, timewait};
use crate::model::command::Shell;
use crate::model::health::{Health, SettingValue};
use crate::model::setting::{DefaultValue, Form, SETTINGS, Sysctl, TCP_EHASH_ENTRIES};

pub(super) fn checks(health: &Health, shell: &Shell) -> Vec<Check> {
    let mut checks = vec![];
    for setting in SETTINGS.iter().filter(|setting| setting.check.is_some()) {
        let check = match setting.form {
            Form::PortRange => ports::local_port_range(health),
            Form::Ports => ports::local_reserved_ports(health),
            Form::PortStart => ports::unprivileged_port_start(health),
            Form::Number => number(setting, health, |check, value| verdict(check, value, health, shell)),
        };
        // For two settings, a counter shows their effect.
        match check.subject.id {
            "tcp_tw_reuse" => checks.push(check.with("buckets_taken_over", health.buckets.counter("TWRecycled"))),
            "tcp_max_tw_buckets" => checks.extend([check, timewait::overflow(health)]),
            _ => checks.push(check),
        }
    }
    checks
}

/// The verdict on a numeric setting. A setting without an arm here is only shown and explained.
fn verdict(check: Check, value: i64, health: &Health, shell: &Shell) -> Check {
    match check.subject.id {
        "tcp_tw_reuse" => timewait::tw_reuse(check, value),
        "tcp_tw_reuse_delay" => timewait::tw_reuse_delay(check, value),
        "tcp_tw_recycle" => timewait::tw_recycle(check, value, shell),
        "tcp_tw_timeout" => timewait::tw_timeout(check, value),
        "tcp_max_tw_buckets" => timewait::max_tw_buckets(check, value, health, shell),
        "tcp_fin_timeout" => timewait::fin_timeout(check, value),
        "tcp_timestamps" => timewait::timestamps(check, value, health, shell),
        "tcp_rfc1337" => timewait::rfc1337(check, value),
        "ip_autobind_reuse" => ports::autobind_reuse(check, value),
        "ip_nonlocal_bind" | "ipv6_ip_nonlocal_bind" => ports::nonlocal_bind(check, value),
        "ipv6_bindv6only" => ports::bindv6only(check, value),
        _ => check,
    }
}

fn default(setting: &Sysctl, health: &Health) -> Option<i64> {
    match setting.default {
        DefaultValue::Number(number) => Some(number),
        DefaultValue::Since(major, minor, [before, since]) => {
            health.facts.kernel_since(major, minor).map(|is_since| if is_since { since } else { before })
        }
        DefaultValue::HalfOfHashTable => {
            health.settings.number(TCP_EHASH_ENTRIES.key()).map(|entries| entries.saturating_abs() / 2)
        }
        DefaultValue::PortRange(_) | DefaultValue::NoPorts | DefaultValue::Unknown => None,
    }
}

/// The check of a numeric setting. `judge` is called only if the setting could be read and is a number.
fn number(setting: &Sysctl, health: &Health, judge: impl FnOnce(Check, i64) -> Check) -> Check {
    let (subject, default) = (Subject::of_setting(setting), default(setting, health));
    let file = format!("/proc/sys/{}", setting.name.split('.').collect::<Vec<_>>().join("/"));
    let nothing = |status, finding| {
        let default = if setting.absent.is_some() && status == Status::Ok { Datum::Unknown } else { default.into() };
        Check::ok(subject, Datum::Unknown, default).found(status, finding)
    };
    match health.settings.value(setting.key()) {
        SettingValue::Value(text) => match text.parse::<i64>() {
            Ok(number) => judge(Check::ok(subject, Datum::Number(number.into()), default.into()), number),
            Err(_) => nothing(Status::Unknown, format!("{file} holds '{text}', which is not a number.")),
        },
        SettingValue::Absent => match setting.absent {
            Some(then) => nothing(Status::Ok, then.to_owned()),
            None => nothing(
                Status::Unknown,
                format!(
                    "There is no {file} here. There are two possible reasons. The kernel is older: then the setting exists \
                     once for the whole machine, and only the initial network namespace shows it. Or a sandbox hides the file."
                ),
            ),
        },
        SettingValue::Unreadable(why) => nothing(Status::Unknown, format!("Reading {file} failed: {why}.")),
    }
}
