//! The kernel's own counts of timewait buckets, and the settings about them.
//!
//! `None` means "unknown" or "this kernel does not have it", never 0.

use std::collections::BTreeMap;

/// The `TcpExt` counters of one network namespace since the namespace was made (/proc/net/netstat; names as in `snmp4_net_list` of
/// net/ipv4/proc.c).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TcpExt(pub BTreeMap<String, u64>);

impl TcpExt {
    /// A counter's value; `None` if this kernel has no such counter.
    #[must_use]
    pub fn count(&self, name: &str) -> Option<u64> {
        self.0.get(name).copied()
    }
}

/// The counters that `twtool watch` reads: some of `Tcp` (/proc/net/snmp) and of `TcpExt` (/proc/net/netstat), by the kernel's names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters(pub BTreeMap<String, u64>);

impl Counters {
    /// The names that are read. No name occurs in both files.
    pub const NAMES: [&str; 12] = [
        // Tcp
        "ActiveOpens",
        "PassiveOpens",
        "EstabResets",
        "InSegs",
        "OutRsts",
        // TcpExt
        "TW",
        "TWRecycled",
        "TWKilled",
        "TCPTimeWaitOverflow",
        "PAWSActive",
        "PAWSEstab",
        "PAWSTimewait",
    ];

    /// A counter's value; `None` if it could not be read, or this kernel does not have it.
    #[must_use]
    pub fn count(&self, name: &str) -> Option<u64> {
        self.0.get(name).copied()
    }

    /// By how much a counter has grown since the counters `since` were read; `None` if one of the two does not have this counter, or if
    /// the counter has become smaller.
    #[must_use]
    pub fn growth(&self, since: &Self, name: &str) -> Option<u64> {
        self.count(name)?.checked_sub(since.count(name)?)
    }
}

/// The line `TCP:` of /proc/net/sockstat. The counts cover IPv4 and IPv6 together in one network namespace, unless the comment of a
/// field differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpSockstat {
    /// Full sockets (not timewait buckets) in the kernel's tables; only IPv4.
    pub inuse: u64,
    /// Full sockets that no process has open any more, on the whole machine (measured on Linux 6.18).
    pub orphan: u64,
    /// Timewait buckets: TIME_WAIT and orphaned FIN_WAIT_2.
    pub tw: u64,
    /// TCP sockets of the whole machine.
    pub alloc: u64,
    /// Memory pages of the buffers of TCP sockets, of the whole machine.
    pub mem: u64,
}

/// Counts and settings about buckets, at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BucketFacts {
    /// `net.ipv4.tcp_max_tw_buckets`: if there are this many buckets (TIME_WAIT and orphaned FIN_WAIT_2), the kernel keeps no bucket
    /// after a further close. For a negative number, see [`super::facts::Facts::negative_maximum_is_none`].
    pub max_tw_buckets: Option<i64>,
    /// `net.ipv4.tcp_tw_timeout` in seconds: how long TIME_WAIT lasts. Only kernels of some vendors have this setting.
    pub tw_timeout_s: Option<u64>,
    /// /proc/net/sockstat.
    pub sockstat: Option<TcpSockstat>,
    /// /proc/net/netstat.
    pub tcp_ext: Option<TcpExt>,
    /// The size of a bucket in its slab, in bytes.
    pub bucket_bytes: Option<u64>,
}

impl BucketFacts {
    /// Merges the facts of two network namespaces. A fact that one of them lacks becomes unknown, except the size of a bucket,
    /// which is the same on the whole machine. The maximum becomes unknown, because each namespace has its own maximum. `tw_timeout_s`
    /// becomes unknown if it differs. In sockstat, only `tw` is summed; the other counts are those of the first namespace.
    #[must_use]
    pub fn merged(&self, other: &Self) -> Self {
        let tcp_ext = self.tcp_ext.as_ref().zip(other.tcp_ext.as_ref()).map(|(a, b)| {
            TcpExt(a.0.iter().filter_map(|(name, count)| Some((name.clone(), count + b.count(name)?))).collect())
        });
        let sockstat = self.sockstat.zip(other.sockstat).map(|(a, b)| TcpSockstat { tw: a.tw + b.tw, ..a });
        Self {
            max_tw_buckets: None,
            tw_timeout_s: self.tw_timeout_s.filter(|seconds| other.tw_timeout_s == Some(*seconds)),
            sockstat,
            tcp_ext,
            bucket_bytes: self.bucket_bytes.or(other.bucket_bytes),
        }
    }

    /// A `TcpExt` counter; `None` if it could not be read, or if this kernel has no counter of that name.
    #[must_use]
    pub fn counter(&self, name: &str) -> Option<u64> {
        self.tcp_ext.as_ref()?.count(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(tw: u64, timeout_s: u64, counters: &[(&str, u64)]) -> BucketFacts {
        let counters = counters.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        BucketFacts {
            max_tw_buckets: Some(10),
            tw_timeout_s: Some(timeout_s),
            sockstat: Some(TcpSockstat { inuse: 1, orphan: 1, tw, alloc: 1, mem: 1 }),
            tcp_ext: Some(TcpExt(counters)),
            bucket_bytes: Some(256),
        }
    }

    #[test]
    fn counts_of_two_namespaces_are_added_and_facts_that_differ_become_unknown() {
        let (one, other) = (facts(3, 60, &[("TW", 5), ("TWKilled", 1)]), facts(4, 20, &[("TW", 6)]));
        let both = one.merged(&other);
        assert_eq!(both.sockstat.map(|sockstat| sockstat.tw), Some(7));
        assert_eq!((both.counter("TW"), both.counter("TWKilled")), (Some(11), None));
        assert_eq!((both.max_tw_buckets, both.tw_timeout_s, both.bucket_bytes), (None, None, Some(256)));
        assert_eq!(one.merged(&facts(4, 60, &[])).tw_timeout_s, Some(60));
        let unread = BucketFacts { sockstat: None, tcp_ext: None, bucket_bytes: None, ..other };
        let both = one.merged(&unread);
        assert_eq!((both.sockstat, both.counter("TW"), both.bucket_bytes), (None, None, Some(256)));
    }
}
