//! The checks of the port settings: the ephemeral range, the reserved ports, and the rules of bind().

use super::{Check, Datum, Status, Subject};
use crate::model::facts;
use crate::model::health::Health;
use crate::model::port::Port;
use crate::model::setting::{self, DEFAULT_PORT_RANGE, DEFAULT_PORT_START};

/// The range in the form that sysctl(8) accepts: `32768 60999`.
fn range_text((low, high): (u16, u16)) -> Datum {
    Datum::Text(format!("{low} {high}"))
}

fn unreadable_check(subject: Subject, default: Datum, setting: facts::Setting) -> Check {
    let finding = format!("{} could not be read.", setting.name());
    Check::ok(subject, Datum::Unknown, default).found(Status::Unknown, finding)
}

pub(super) fn local_port_range(health: &Health) -> Check {
    let subject = Subject::of_setting(&setting::IP_LOCAL_PORT_RANGE);
    let default = range_text(DEFAULT_PORT_RANGE);
    let Some(range) = health.facts.local_port_range else {
        return unreadable_check(subject, default, facts::Setting::LocalPortRange);
    };
    let (low, high) = (range.0.first().0, range.0.last().0);
    let size = u64::from(high - low) + 1;
    let check = Check::ok(subject, range_text((low, high)), default).with("size", Some(size));
    if (low, high) == DEFAULT_PORT_RANGE {
        return check;
    }
    let usual = u64::from(DEFAULT_PORT_RANGE.1 - DEFAULT_PORT_RANGE.0) + 1;
    let finding = format!(
        "The range has {}; the default has {usual}. The size limits the simultaneous connections from one \
         local address to one destination.",
        if size == 1 { "1 port".to_owned() } else { format!("{size} ports") }
    );
    check.found(if size < usual { Status::Note } else { Status::Ok }, finding)
}

pub(super) fn local_reserved_ports(health: &Health) -> Check {
    let subject = Subject::of_setting(&setting::IP_LOCAL_RESERVED_PORTS);
    let default = Datum::List(vec![]);
    let Some(reserved) = &health.facts.local_reserved_ports else {
        return unreadable_check(subject, default, facts::Setting::LocalReservedPorts);
    };
    let list = reserved.0.iter().map(|range| Datum::Text(range.to_string())).collect();
    let check = Check::ok(subject, Datum::List(list), default);
    let Some(range) = health.facts.local_port_range else { return check };
    let left = reserved.count_unreserved(range.0);
    let size = usize::from(range.0.last().0 - range.0.first().0) + 1;
    let check = check.with("ports_left_in_ephemeral_range", left);
    match (left, size - left) {
        (0, _) => check
            .found(
                Status::Warning,
                "Every port of ip_local_port_range is reserved: connect() fails with EADDRNOTAVAIL, and bind() to \
                     port 0 with EADDRINUSE.",
            )
            .advising("Remove ports from the list, or widen net.ipv4.ip_local_port_range."),
        (_, 0) => check,
        (left, taken) => {
            check.found(Status::Ok, format!("Reserved in ip_local_port_range: {taken} of {size}. Left: {left}."))
        }
    }
}

pub(super) fn unprivileged_port_start(health: &Health) -> Check {
    let subject = Subject::of_setting(&setting::IP_UNPRIVILEGED_PORT_START);
    let default = Datum::Number(DEFAULT_PORT_START.into());
    let Some(start) = health.facts.unprivileged_port_start else {
        return unreadable_check(subject, default, facts::Setting::UnprivilegedPortStart);
    };
    let check = Check::ok(subject, Datum::Number(start.into()), default);
    // Port 0 needs no privilege: it asks the kernel to choose a port.
    match start {
        DEFAULT_PORT_START => check,
        0 | 1 => check.found(Status::Note, "Every program may bind every port."),
        2 => check.found(Status::Note, "Port 1 needs CAP_NET_BIND_SERVICE."),
        start => check.found(Status::Note, format!("Ports 1-{} need CAP_NET_BIND_SERVICE.", start - 1)),
    }
}

pub(super) fn autobind_reuse(check: Check, value: i64) -> Check {
    match value {
        0 => check,
        _ => check.found(
            Status::Note,
            format!("{value}: for bind() to port 0 the kernel may choose a port that another socket has."),
        ),
    }
}

pub(super) fn nonlocal_bind(check: Check, value: i64) -> Check {
    match value {
        0 => check,
        _ => check.found(Status::Note, format!("{value}: bind() also accepts an address that is not local.")),
    }
}

pub(super) fn bindv6only(check: Check, value: i64) -> Check {
    match value {
        0 => check,
        _ => check
            .found(Status::Note, format!("{value}: a server on :: does not accept IPv4 unless it clears IPV6_V6ONLY.")),
    }
}

/// Whether connect(), or bind() to port 0, may choose the port; `None` if a setting could not be read.
pub(super) fn chosen_by_the_kernel(health: &Health, port: Port) -> Option<bool> {
    Some(health.facts.ephemeral(port)? && !health.facts.locally_reserved(port)?)
}
