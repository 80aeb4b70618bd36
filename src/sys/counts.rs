//! Reads the kernel's counts for the calling thread's network namespace: the files netstat, snmp, sockstat, sockstat6 and protocols
//! in /proc/net (proc_pid_net(5)).

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use super::errno::{if_present, retry};
use super::{file, sysctl};
use crate::model::kernel_counts::{Counters, TcpExt, TcpSockstat};

/// Reads the `TcpExt` counters.
pub fn tcp_ext() -> io::Result<TcpExt> {
    read("/proc/thread-self/net/netstat", parse_tcp_ext)
}

/// Reads the counters of [`Counters::NAMES`].
pub fn counters() -> io::Result<Counters> {
    let mut all = read("/proc/thread-self/net/netstat", |text| parse_counters(text, "TcpExt:"))?;
    all.append(&mut read("/proc/thread-self/net/snmp", |text| parse_counters(text, "Tcp:"))?);
    all.retain(|name, _| Counters::NAMES.contains(&name.as_str()));
    Ok(Counters(all))
}

/// Reads the counts of TCP sockets.
pub fn tcp_sockstat() -> io::Result<TcpSockstat> {
    read("/proc/thread-self/net/sockstat", parse_tcp_sockstat)
}

/// Counts of the kernel's tables of connections, buckets and listeners in the calling thread's network namespace.
/// [`TableCounts::removed_since`] compares two values that were read one after the other.
///
/// No count includes inbound handshakes in progress, or sockets that are only bound. `opens` does not include a connection that TCP_REPAIR
/// restored, or a connection whose connect() failed before the first segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableCounts {
    /// Connections opened, actively and passively, of both families. The number only grows.
    pub opens: u64,
    /// Connections and listeners of both families.
    pub in_use: u64,
    /// Buckets of both families.
    pub buckets: u64,
}

impl TableCounts {
    /// Returns an upper bound of the number of sockets that were removed from the tables since an earlier reading. One exception:
    /// each new listener can hide one closed connection, because `in_use` counts both.
    #[must_use]
    pub const fn removed_since(&self, earlier: &Self) -> u64 {
        let opened = self.opens.wrapping_sub(earlier.opens);
        let connections = opened.saturating_add(earlier.in_use).saturating_sub(self.in_use);
        // Each closed connection may have left a bucket.
        let buckets = connections.saturating_add(earlier.buckets).saturating_sub(self.buckets);
        connections.saturating_add(buckets)
    }
}

/// Whether a reading of [`TableCounts`] is the first or the second. The order in which [`table_counts`] reads the files depends on this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadPass {
    /// The first reading.
    Earlier,
    /// The second reading.
    Later,
}

/// Reads the counts of the tables. Reading the three files takes about 50 µs (Linux 6.18, 2026-11-29).
///
/// The files are not read at the same moment. The first reading reads `opens` before the other counts, and the second reading reads
/// it after them. So the difference of `opens` includes every connection that was opened between the two readings of the other counts.
pub fn table_counts(reading: ReadPass) -> io::Result<TableCounts> {
    let unknown = || io::Error::new(io::ErrorKind::InvalidData, "its format is unknown");
    let opens = || {
        let tcp = read("/proc/thread-self/net/snmp", |text| parse_counters(text, "Tcp:"))?;
        let (active, passive) = tcp.get("ActiveOpens").zip(tcp.get("PassiveOpens")).ok_or_else(unknown)?;
        Ok::<_, io::Error>(active.wrapping_add(*passive))
    };
    let in_tables = || {
        let sockstat = tcp_sockstat()?;
        // A kernel without IPv6 has no sockstat6.
        let sockstat6 = if_present(text_of("/proc/thread-self/net/sockstat6"))?.unwrap_or_default();
        let in_use_ipv6 = parse_in_use_ipv6(&sockstat6).ok_or_else(unknown)?;
        Ok::<_, io::Error>((sockstat.inuse.saturating_add(in_use_ipv6), sockstat.tw))
    };
    let (opens, (in_use, buckets)) = match reading {
        ReadPass::Earlier => (opens()?, in_tables()?),
        ReadPass::Later => {
            let in_tables = in_tables()?;
            (opens()?, in_tables)
        }
    };
    Ok(TableCounts { opens, in_use, buckets })
}

/// Reads the number of chains in the kernel's table of connections and buckets (`tcp_ehash_entries`, since Linux 6.1).
pub fn chains() -> io::Result<u64> {
    // The number is negative if the namespace has no table of its own.
    sysctl::number("ipv4.tcp_ehash_entries").map(i64::unsigned_abs)
}

fn read<T>(path: &str, parse: fn(&str) -> Option<T>) -> io::Result<T> {
    parse(&text_of(path)?).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "its format is unknown"))
}

fn text_of(path: &str) -> io::Result<String> {
    /// The maximum size of a file in bytes. The kernel writes a few kilobytes.
    const MAX_BYTES: u64 = 1 << 20;
    String::from_utf8(retry(|| file::read(Path::new(path), MAX_BYTES))?)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Returns an upper bound of the number of TCP sockets in the calling thread's network namespace that are not in the kernel's tables of
/// connections and listeners. Such sockets are not bound, or they are bound but neither listen nor are connected. (Since Linux 6.8,
/// sock_diag can list the bound ones.) `None` if the kernel does not report the counts.
///
/// Two of the kernel's counts are upper bounds of the TCP sockets in this namespace: `alloc` counts the TCP sockets of the whole machine,
/// and `used` counts the sockets of every protocol in this namespace. `inuse` counts the TCP sockets in this namespace that are in these
/// tables. `used` also counts Unix sockets. /proc/net/protocols has their number, so it is subtracted.
pub fn most_unlisted_tcp_sockets() -> io::Result<Option<u64>> {
    let read = |name: &str| if_present(text_of(&format!("/proc/thread-self/net/{name}")));
    let Some(sockstat) = read("sockstat")? else { return Ok(None) };
    let sockstat6 = read("sockstat6")?.unwrap_or_default();
    let most = parse_most_unlisted(&sockstat, &sockstat6, 0);
    // The number of Unix sockets must not be subtracted if it includes sockets that the kernel itself made, because `used` does not
    // count such sockets. The module sunrpc (NFS) makes them, to connect to local services. If this module is loaded, the
    // namespace has the folder /proc/net/rpc.
    if most.is_none_or(|most| most == 0) || Path::new("/proc/thread-self/net/rpc").exists() {
        return Ok(most);
    }
    let unix = |text: Option<String>| text.as_deref().and_then(parse_unix_sockets).unwrap_or(0);
    let before = unix(read("protocols")?);
    let sockstat = read("sockstat")?.unwrap_or_default();
    // Unix sockets can come and go while sockstat is read, so the smaller number is subtracted.
    let both = before.min(unix(read("protocols")?));
    Ok(parse_most_unlisted(&sockstat, &sockstat6, both).or(most))
}

fn parse_most_unlisted(sockstat: &str, sockstat6: &str, unix_sockets: u64) -> Option<u64> {
    let tcp = parse_tcp_sockstat(sockstat)?;
    let used: u64 = sockstat.lines().find_map(|line| line.strip_prefix("sockets: used "))?.trim().parse().ok()?;
    let in_use = tcp.inuse.saturating_add(parse_in_use_ipv6(sockstat6)?);
    Some(tcp.alloc.min(used.saturating_sub(unix_sockets)).saturating_sub(in_use))
}

/// Parses the number of TCP sockets in use from /proc/net/sockstat6. Returns 0 if the file has no line for TCP.
fn parse_in_use_ipv6(sockstat6: &str) -> Option<u64> {
    let number = sockstat6.lines().find_map(|line| line.strip_prefix("TCP6: inuse "));
    number.map_or(Some(0), |number| number.trim().parse().ok())
}

/// Parses the number of Unix sockets in /proc/net/protocols. Since Linux 5.15, stream sockets have a line of their own.
fn parse_unix_sockets(text: &str) -> Option<u64> {
    let number = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let name = words.next()?;
        matches!(name, "UNIX" | "UNIX-STREAM").then(|| words.nth(1)?.parse::<u64>().ok())?
    };
    text.lines().filter_map(number).reduce(u64::saturating_add)
}

/// Parses the `TcpExt` counters of /proc/net/netstat: a line of names and a line of numbers, which both begin with `TcpExt:`.
#[must_use]
pub fn parse_tcp_ext(text: &str) -> Option<TcpExt> {
    parse_counters(text, "TcpExt:").map(TcpExt)
}

/// Parses a line of names and a line of numbers, which both begin with `prefix`. A negative number is left out, because it is not a
/// counter: `MaxConn` of `Tcp:` is -1.
fn parse_counters(text: &str, prefix: &str) -> Option<BTreeMap<String, u64>> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(prefix));
    let (names, numbers) = (lines.next()?.split_whitespace(), lines.next()?.split_whitespace());
    let counters = names.zip(numbers).filter(|(_, number)| !number.starts_with('-'));
    counters.map(|(name, number)| Some((name.to_owned(), number.parse().ok()?))).collect()
}

/// Parses the counts of TCP sockets in /proc/net/sockstat: a line like `TCP: inuse 1 orphan 0 tw 5 alloc 2 mem 346`.
#[must_use]
pub fn parse_tcp_sockstat(text: &str) -> Option<TcpSockstat> {
    let words: Vec<&str> = text.lines().find_map(|line| line.strip_prefix("TCP:"))?.split_whitespace().collect();
    let number = |name| {
        let (pairs, _) = words.as_chunks::<2>();
        pairs.iter().find(|[key, _]| *key == name)?[1].parse().ok()
    };
    Some(TcpSockstat {
        inuse: number("inuse")?,
        orphan: number("orphan")?,
        tw: number("tw")?,
        alloc: number("alloc")?,
        mem: number("mem")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn removed_since_is_an_upper_bound_of_the_removed_sockets() {
        let counts = |opens, in_use, buckets| TableCounts { opens, in_use, buckets };
        let start = counts(100, 20, 50);
        for (later, removed, what) in [
            (counts(100, 20, 50), 0, "nothing"),
            (counts(104, 24, 50), 0, "four connections opened"),
            (counts(100, 20, 43), 7, "seven buckets expired"),
            (counts(100, 17, 53), 3, "three connections became buckets"),
            (counts(100, 17, 50), 6, "three connections closed, and possibly three buckets"),
            (counts(104, 20, 54), 4, "four connections opened, and four became buckets"),
            (counts(100, 21, 50), 0, "a listener opened"),
        ] {
            assert_eq!(later.removed_since(&start), removed, "{what}");
        }
        assert_eq!(
            counts(1, 1, 0).removed_since(&counts(u64::MAX, 0, 0)),
            2,
            "the counter of opened connections wraps"
        );
    }

    proptest! {
        #[test]
        fn removed_since_is_at_least_the_decrease_of_each_count(numbers in any::<[u64; 6]>()) {
            let [opens, in_use, buckets, opens_later, in_use_later, buckets_later] = numbers;
            let earlier = TableCounts { opens, in_use, buckets };
            let later = TableCounts { opens: opens_later, in_use: in_use_later, buckets: buckets_later };
            let removed = later.removed_since(&earlier);
            prop_assert!(removed >= in_use.saturating_sub(in_use_later) && removed >= buckets.saturating_sub(buckets_later));
        }
    }

    #[test]
    fn counters_are_found_by_name_and_an_absent_counter_is_unknown() {
        let text = "TcpExt: SyncookiesSent TW TWRecycled\nTcpExt: 1 23 18446744073709551615\nIpExt: TW\nIpExt: 7\n";
        let counters = parse_tcp_ext(text).expect("counters");
        assert_eq!([counters.count("TW"), counters.count("TWRecycled")], [Some(23), Some(u64::MAX)]);
        assert_eq!(counters.count("PAWSTimewait"), None);
        assert_eq!(parse_tcp_ext("TcpExt: TW\n"), None);
        assert_eq!(parse_tcp_ext("TcpExt: TW\nTcpExt: many\n"), None);
    }

    #[test]
    fn sockstat_is_read_by_name() {
        let text = "sockets: used 13\nTCP: inuse 1 orphan 2 tw 3 alloc 4 mem 346\nUDP: inuse 0 mem 0\n";
        let expected = TcpSockstat { inuse: 1, orphan: 2, tw: 3, alloc: 4, mem: 346 };
        assert_eq!(parse_tcp_sockstat(text), Some(expected));
        assert_eq!(parse_tcp_sockstat("TCP: inuse 1 orphan 2\n"), None);
    }

    #[test]
    fn the_smaller_count_bounds_the_unlisted_sockets() {
        let text = |used, alloc| format!("sockets: used {used}\nTCP: inuse 3 orphan 0 tw 0 alloc {alloc} mem 0\n");
        let most = |used, alloc, v6| parse_most_unlisted(&text(used, alloc), v6, 0);
        assert_eq!(most(100, 9, "TCP6: inuse 2\nUDP6: inuse 7\n"), Some(4));
        assert_eq!(most(7, 900, "TCP6: inuse 2\n"), Some(2));
        assert_eq!(most(7, 5, ""), Some(2));
        assert_eq!(most(1, 1, ""), Some(0), "the counts were read at different moments");
        assert_eq!(parse_most_unlisted("TCP: inuse 1 orphan 0 tw 0 alloc 2 mem 0\n", "", 0), None);
        assert_eq!(parse_most_unlisted(&text(10, 900), "", 5), Some(2), "5 Unix sockets are subtracted");
        assert_eq!(parse_most_unlisted(&text(10, 900), "", 50), Some(0));
        assert_eq!(most(1, 1, "TCP6: inuse many\n"), None);
    }

    #[test]
    fn the_numbers_of_both_lines_of_unix_sockets_are_added() {
        let text = "protocol  size sockets  memory press\nUNIX-STREAM 1152     30      -1   NI\nUNIX      1152      2      -1   NI\n\
                    UNIXES 1 7 -1\nTCP       2304      7     287   no\n";
        assert_eq!(parse_unix_sockets(text), Some(32));
        assert_eq!((parse_unix_sockets("UNIX 1\n"), parse_unix_sockets("")), (None, None));
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in "(TcpExt:|TCP:|UNIX )?[ a-z0-9\n]{0,80}") {
            let _ = (parse_tcp_ext(&text), parse_tcp_sockstat(&text), parse_most_unlisted(&text, &text, 1), parse_unix_sockets(&text));
        }
    }
}
