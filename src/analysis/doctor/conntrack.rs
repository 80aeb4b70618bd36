//! The check of connection tracking.

use super::{Check, Datum, Status, Subject};
use crate::model::health::{Health, SettingValue};
use crate::model::setting::{NF_CONNTRACK_COUNT, NF_CONNTRACK_MAX, Sysctl};

/// The share of nf_conntrack_max, in percent, at which the check warns.
const NEARLY_FULL: u64 = 90;

pub(super) fn check(health: &Health) -> Check {
    let subject = Subject {
        id: "nf_conntrack",
        does: "Counts the connections that netfilter tracks in this network namespace, for NAT and stateful firewalls. At \
               nf_conntrack_max the kernel drops the packets of a new connection.",
        does_not: "An entry for a closed connection (nf_conntrack_tcp_timeout_time_wait, 120 s by default) is not a \
                   TIME_WAIT socket. It keeps no socket and blocks no bind().",
        sources: &["Documentation/networking/nf_conntrack-sysctl.rst, nf_conntrack_count and nf_conntrack_max"],
    };
    if *health.settings.value(NF_CONNTRACK_COUNT.key()) == SettingValue::Absent {
        return Check::ok(subject, Datum::Unknown, Datum::Unknown)
            .found(Status::Ok, "The kernel does not track connections here.");
    }
    let number = |setting: &Sysctl| health.settings.number(setting.key()).and_then(|number| u64::try_from(number).ok());
    let (Some(count), Some(most)) = (number(&NF_CONNTRACK_COUNT), number(&NF_CONNTRACK_MAX)) else {
        let finding = "nf_conntrack_count or nf_conntrack_max could not be read.";
        return Check::ok(subject, Datum::Unknown, Datum::Unknown).found(Status::Unknown, finding);
    };
    let check = Check::ok(subject, Some(count).into(), Datum::Unknown).with("nf_conntrack_max", Some(most));
    // `__nf_conntrack_alloc` in net/netfilter/nf_conntrack_core.c: 0 means that there is no maximum.
    let Some(part) = count.saturating_mul(100).checked_div(most) else {
        return check.found(Status::Ok, format!("{count} tracked, and there is no maximum."));
    };
    let finding = format!("{count} of nf_conntrack_max {most} ({part} %).");
    if part < NEARLY_FULL {
        return check.found(Status::Ok, finding);
    }
    check.found(Status::Warning, finding).advising(
        "Track fewer connections, or raise net.netfilter.nf_conntrack_max in the initial network namespace. When the table is \
         full, the kernel drops new connections and logs \"nf_conntrack: table full, dropping packet\". That can happen although \
         ports are left.",
    )
}
