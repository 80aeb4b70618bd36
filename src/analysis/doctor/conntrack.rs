//! The check of connection tracking, whose table runs out before the ports do on a machine that translates addresses.

use super::{Check, Datum, Status, Subject};
use crate::model::health::{Health, Reading};
use crate::model::setting::{NF_CONNTRACK_COUNT, NF_CONNTRACK_MAX, Sysctl};

/// From this part of nf_conntrack_max on, in percent, there is a warning.
const NEARLY_FULL: u64 = 90;

pub(super) fn check(health: &Health) -> Check {
    let subject = Subject {
        id: "nf_conntrack",
        does: "Counts the connections that netfilter tracks in this network namespace, for NAT and stateful firewalls. At \
               nf_conntrack_max the kernel drops the packets of a new connection.",
        does_not: "Its entry for a closed connection (nf_conntrack_tcp_timeout_time_wait, 120 s by default) is no TIME_WAIT \
                   socket and holds no port of this machine.",
        sources: &["Documentation/networking/nf_conntrack-sysctl.rst, nf_conntrack_count and nf_conntrack_max"],
    };
    if *health.settings.reading(NF_CONNTRACK_COUNT.key()) == Reading::Absent {
        return Check::ok(subject, Datum::Unknown, Datum::Unknown)
            .found(Status::Ok, "Connections are not tracked here.");
    }
    let number = |setting: &Sysctl| health.settings.number(setting.key()).and_then(|number| u64::try_from(number).ok());
    let (Some(count), Some(most)) = (number(&NF_CONNTRACK_COUNT), number(&NF_CONNTRACK_MAX)) else {
        let finding = "nf_conntrack_count or nf_conntrack_max could not be read.";
        return Check::ok(subject, Datum::Unknown, Datum::Unknown).found(Status::Unknown, finding);
    };
    let check = Check::ok(subject, Some(count).into(), Datum::Unknown).with("nf_conntrack_max", Some(most));
    // `__nf_conntrack_alloc` in net/netfilter/nf_conntrack_core.c: 0 is no maximum.
    let Some(part) = count.saturating_mul(100).checked_div(most) else {
        return check.found(Status::Ok, format!("{count} tracked, and there is no maximum."));
    };
    let finding = format!("{count} of nf_conntrack_max {most} ({part} %).");
    if part < NEARLY_FULL {
        return check.found(Status::Ok, finding);
    }
    check.found(Status::Warning, finding).advising(
        "When the table is full, the kernel drops new connections and logs \"nf_conntrack: table full, dropping packet\". NAT \
         runs out there before it runs out of ports. Track fewer connections, or raise net.netfilter.nf_conntrack_max, which \
         the initial network namespace alone may change.",
    )
}
