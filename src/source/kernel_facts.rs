//! Reads the facts, counts and settings of the calling thread's network namespace from this kernel.

use std::io;
use std::time::Duration;

use crate::model::facts::{Facts, Setting, UnreadFacts};
use crate::model::kernel_counts::BucketFacts;
use crate::model::netns::Netns;
use crate::model::setting::{self, Sysctl};
use crate::model::tw_reuse::{ReuseMode, TwReuse};
use crate::sys;
use crate::sys::errno::if_present;

/// Reads the facts of the calling thread's network namespace.
#[must_use]
pub fn kernel_facts() -> Facts {
    let mut unread = UnreadFacts::default();
    let netns = sys::netns::current().unwrap_or_else(|error| {
        unread.add("the network namespace", &error);
        None
    });
    let services = sys::services::read(netns.as_ref().and_then(Netns::ip_netns_name), &mut unread);
    Facts {
        taken_at: sys::clock::now(),
        kernel: sys::netns::kernel_release(),
        netns: netns.as_ref().map(|netns| netns.id.inode),
        netns_name: netns.as_ref().and_then(|netns| netns.name.as_ref()).map(ToString::to_string),
        local_port_range: read_fact(&mut unread, Setting::LocalPortRange.name(), sys::sysctl::local_port_range()),
        local_reserved_ports: read_fact(
            &mut unread,
            Setting::LocalReservedPorts.name(),
            sys::sysctl::local_reserved_ports(),
        ),
        unprivileged_port_start: read_fact(
            &mut unread,
            Setting::UnprivilegedPortStart.name(),
            sys::sysctl::unprivileged_port_start(),
        ),
        services,
        interfaces: sys::interfaces::here(),
        unread,
    }
}

/// Reads the kernel's counts and settings about buckets in the calling thread's network namespace.
pub fn kernel_bucket_facts(unread: &mut UnreadFacts) -> BucketFacts {
    BucketFacts {
        max_tw_buckets: number(unread, &setting::TCP_MAX_TW_BUCKETS),
        tw_timeout_s: tw_timeout_s(unread),
        sockstat: read_fact(unread, "/proc/net/sockstat", sys::counts::tcp_sockstat()),
        tcp_ext: read_fact(unread, "/proc/net/netstat", sys::counts::tcp_ext()),
        bucket_bytes: read_fact(unread, "the size of a bucket", sys::slab::timewait_bucket_bytes()).flatten(),
    }
}

/// Reads the settings about buckets, but no counts.
pub(super) fn kernel_bucket_settings(unread: &mut UnreadFacts) -> BucketFacts {
    BucketFacts {
        max_tw_buckets: number(unread, &setting::TCP_MAX_TW_BUCKETS),
        tw_timeout_s: tw_timeout_s(unread),
        ..BucketFacts::default()
    }
}

/// Returns the value, or `None` if it is absent or could not be read. If it could not be read, adds the reason to `unread`.
pub(crate) fn read_fact<T>(unread: &mut UnreadFacts, what: &str, read: io::Result<T>) -> Option<T> {
    if_present(read).unwrap_or_else(|error| {
        unread.add(what, &error);
        None
    })
}

fn number(unread: &mut UnreadFacts, setting: &Sysctl) -> Option<i64> {
    read_fact(unread, setting.name, sys::sysctl::number(setting.key()))
}

/// Reads `net.ipv4.tcp_tw_timeout` of the calling thread's network namespace, in seconds. `None` if the kernel does not have this
/// setting, or if it could not be read.
pub fn tw_timeout_s(unread: &mut UnreadFacts) -> Option<u64> {
    unsigned(unread, &setting::TCP_TW_TIMEOUT)
}

/// Reads a setting that the kernel does not allow to be negative.
fn unsigned(unread: &mut UnreadFacts, setting: &Sysctl) -> Option<u64> {
    number(unread, setting)?.try_into().ok()
}

/// Reads the settings that decide when connect() may take over a bucket, from the calling thread's network namespace.
pub fn tw_reuse(unread: &mut UnreadFacts) -> TwReuse {
    let delay = unsigned(unread, &setting::TCP_TW_REUSE_DELAY);
    TwReuse {
        mode: unsigned(unread, &setting::TCP_TW_REUSE).and_then(ReuseMode::from_number),
        delay: delay.map_or(TwReuse::WHOLE_SECOND, Duration::from_millis),
        whole_seconds: delay.is_none(),
        timestamps: number(unread, &setting::TCP_TIMESTAMPS).map(|number| number != 0),
    }
}
