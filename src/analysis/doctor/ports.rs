//! Checks of the ports' own settings: where the kernel looks for a port, and what it leaves out.

use super::settings::Setting;
use super::{Check, Datum, Status, Subject};
use crate::model::facts;
use crate::model::health::Health;
use crate::model::port::Port;

/// The first and last port of `ip_local_port_range` as the kernel sets it (`inet_init_net` in net/ipv4/af_inet.c).
const DEFAULT_RANGE: (u16, u16) = (32768, 60999);

/// Below it, by default, bind() needs a capability (`PROT_SOCK` in net/sock.h).
const DEFAULT_START: u32 = 1024;

pub(super) fn checks(health: &Health) -> Vec<Check> {
    vec![
        local_port_range(health),
        local_reserved_ports(health),
        unprivileged_port_start(health),
        autobind_reuse(health),
        nonlocal_bind(health, NONLOCAL_BIND, "ipv4.ip_nonlocal_bind"),
        nonlocal_bind(health, NONLOCAL_BIND_IPV6, "ipv6.ip_nonlocal_bind"),
        bindv6only(health),
    ]
}

/// The sysctl's own text, `32768 60999`.
fn range_text((low, high): (u16, u16)) -> Datum {
    Datum::Text(format!("{low} {high}"))
}

fn unreadable(subject: Subject, default: Datum, setting: facts::Setting) -> Check {
    let finding = format!("{} could not be read.", setting.name());
    Check::ok(subject, Datum::Unknown, default).found(Status::Unknown, finding)
}

fn local_port_range(health: &Health) -> Check {
    let subject = Subject {
        id: "ip_local_port_range",
        does: "The ephemeral range: where connect() and bind() to port 0 look for a port of their own.",
        does_not: "It is not RFC 6335's class of dynamic ports, and no limit for all connections together: each \
                   destination, an address and a port, has the range for itself. It does not bind servers, which may \
                   choose any port.",
        sources: &[
            "Documentation/networking/ip-sysctl.rst, ip_local_port_range",
            "ip(7), ip_local_port_range",
            "RFC 6335, section 6",
        ],
    };
    let default = range_text(DEFAULT_RANGE);
    let Some(range) = health.facts.local_port_range else {
        return unreadable(subject, default, facts::Setting::LocalPortRange);
    };
    let (low, high) = (range.0.first().0, range.0.last().0);
    let size = u64::from(high - low) + 1;
    let check = Check::ok(subject, range_text((low, high)), default).with("size", Some(size));
    if (low, high) == DEFAULT_RANGE {
        return check;
    }
    let usual = u64::from(DEFAULT_RANGE.1 - DEFAULT_RANGE.0) + 1;
    let finding = format!(
        "Size {size}, where the default range has {usual} ports: no more connections at a time from one address here to \
         one destination."
    );
    check.found(if size < usual { Status::Note } else { Status::Ok }, finding)
}

fn local_reserved_ports(health: &Health) -> Check {
    let subject = Subject {
        id: "ip_local_reserved_ports",
        does: "Ports that connect() and bind() to port 0 never choose, so that they are there when a server starts.",
        does_not: "It does not keep a program from binding such a port by its number, and it does not end a connection \
                   that has one already.",
        sources: &["Documentation/networking/ip-sysctl.rst, ip_local_reserved_ports"],
    };
    let default = Datum::List(vec![]);
    let Some(reserved) = &health.facts.local_reserved_ports else {
        return unreadable(subject, default, facts::Setting::LocalReservedPorts);
    };
    let list = reserved.0.iter().map(|range| Datum::Text(range.to_string())).collect();
    let check = Check::ok(subject, Datum::List(list), default);
    let Some(range) = health.facts.local_port_range else { return check };
    let left = reserved.leaves(range.0);
    let size = usize::from(range.0.last().0 - range.0.first().0) + 1;
    let check = check.with("ports_left_in_ephemeral_range", left);
    match (left, size - left) {
        (0, _) => check
            .found(
                Status::Warning,
                format!(
                    "No port of ip_local_port_range is left ({size} reserved): connect() fails with EADDRNOTAVAIL, and \
                     bind() to port 0 with EADDRINUSE."
                ),
            )
            .advising("Take ports off the list, or widen net.ipv4.ip_local_port_range."),
        (_, 0) => check,
        (left, taken) => {
            check.found(Status::Ok, format!("Reserved in ip_local_port_range: {taken} of {size}. Left: {left}."))
        }
    }
}

fn unprivileged_port_start(health: &Health) -> Check {
    let subject = Subject {
        id: "ip_unprivileged_port_start",
        does: "The first port that a program may bind without CAP_NET_BIND_SERVICE.",
        does_not: "It says nothing about connecting to such ports, and it need not be RFC 6335's bound of the well-known \
                   ports.",
        sources: &[
            "Documentation/networking/ip-sysctl.rst, ip_unprivileged_port_start",
            "capabilities(7), CAP_NET_BIND_SERVICE",
            "RFC 6335, section 6",
        ],
    };
    let default = Datum::Number(DEFAULT_START.into());
    let Some(start) = health.facts.unprivileged_port_start else {
        return unreadable(subject, default, facts::Setting::UnprivilegedPortStart);
    };
    let check = Check::ok(subject, Datum::Number(start.into()), default);
    // Port 0 is nobody's: it asks for another.
    match start {
        DEFAULT_START => check,
        0 | 1 => check.found(Status::Note, "Every program may bind every port."),
        2 => check.found(Status::Note, "Port 1 needs CAP_NET_BIND_SERVICE."),
        start => check.found(Status::Note, format!("Ports 1-{} need CAP_NET_BIND_SERVICE.", start - 1)),
    }
}

fn autobind_reuse(health: &Health) -> Check {
    let subject = Subject {
        id: "ip_autobind_reuse",
        does: "1: bind() to port 0 may choose a port that other sockets have, where all of them set SO_REUSEADDR.",
        does_not: "It does nothing for connect() without bind(). For bind() before connect() the preferred way is \
                   IP_BIND_ADDRESS_NO_PORT, which leaves the choice to connect().",
        sources: &["Documentation/networking/ip-sysctl.rst, ip_autobind_reuse", "ip(7), IP_BIND_ADDRESS_NO_PORT"],
    };
    let absent = Some("This kernel has no such setting, and behaves as with 0.");
    Setting { subject, name: "ipv4.ip_autobind_reuse", default: Some(0), absent }.check(health, |check, value| {
        match value {
            0 => check,
            _ => check.found(
                Status::Note,
                format!("{value}: a server that binds port 0 can be given a port that another socket has."),
            ),
        }
    })
}

const NONLOCAL_BIND: Subject = Subject {
    id: "ip_nonlocal_bind",
    does: "1: bind() takes IPv4 addresses that this machine does not have, or not yet.",
    does_not: "It does not help against EADDRINUSE, which is about the port.",
    sources: &["Documentation/networking/ip-sysctl.rst, ip_nonlocal_bind", "ip(7), ip_nonlocal_bind"],
};

const NONLOCAL_BIND_IPV6: Subject = Subject {
    id: "ipv6_ip_nonlocal_bind",
    does: "1: bind() takes IPv6 addresses that this machine does not have, or not yet.",
    does_not: "It does not help against EADDRINUSE, which is about the port.",
    sources: &["Documentation/networking/ip-sysctl.rst, ip_nonlocal_bind (IPv6 variables)"],
};

fn nonlocal_bind(health: &Health, subject: Subject, name: &'static str) -> Check {
    // The IPv6 settings are not there where there is no IPv6.
    let absent = name.starts_with("ipv6.").then_some("There is no such setting: no IPv6 here.");
    Setting { subject, name, default: Some(0), absent }.check(health, |check, value| match value {
        0 => check,
        _ => check.found(Status::Note, format!("{value}: bind() does not refuse a wrong address.")),
    })
}

fn bindv6only(health: &Health) -> Check {
    let subject = Subject {
        id: "ipv6_bindv6only",
        does: "Whether a new IPv6 socket is IPV6_V6ONLY. 0: a server on :: takes IPv4 connections too, and so conflicts \
               with one on 0.0.0.0.",
        does_not: "It does not change sockets that set IPV6_V6ONLY by themselves, nor those that are open.",
        sources: &["Documentation/networking/ip-sysctl.rst, bindv6only", "ipv6(7), IPV6_V6ONLY"],
    };
    let absent = Some("There is no such setting: no IPv6 here.");
    Setting { subject, name: "ipv6.bindv6only", default: Some(0), absent }.check(health, |check, value| match value {
        0 => check,
        _ => check.found(Status::Note, format!("{value}: a server on :: does not take IPv4 unless it says so.")),
    })
}

/// The range of the ports that the kernel may choose, where it is known, and whether the port is one of them.
pub(super) fn chosen_by_the_kernel(health: &Health, port: Port) -> Option<bool> {
    Some(health.facts.ephemeral(port)? && !health.facts.locally_reserved(port)?)
}
