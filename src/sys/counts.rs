//! Reads the kernel's counts for the calling thread's network namespace: /proc/net/netstat, /proc/net/snmp and
//! /proc/net/sockstat (proc_pid_net(5)).

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use super::errno::{if_present, retry};
use super::file;
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

fn read<T>(path: &str, parse: fn(&str) -> Option<T>) -> io::Result<T> {
    parse(&text_of(path)?).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "its format is unknown"))
}

fn text_of(path: &str) -> io::Result<String> {
    /// The kernel writes a few kilobytes.
    const MOST: u64 = 1 << 20;
    String::from_utf8(retry(|| file::read(Path::new(path), MOST))?)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Returns an upper bound of the TCP sockets in the calling thread's network namespace that no list contains. Such
/// sockets are bound but neither listen nor are connected, or they are not bound. `None` if the kernel does not report
/// the counts.
///
/// Two of the kernel's counts are upper bounds: `alloc` counts the TCP sockets of the whole machine, and `used` counts
/// the sockets of every protocol in this namespace. `inuse` counts the TCP sockets in this namespace that are in a
/// list. /proc/net/protocols has the number of Unix sockets, which `used` counts, too.
pub fn most_unlisted_tcp_sockets() -> io::Result<Option<u64>> {
    let read = |name: &str| if_present(text_of(&format!("/proc/thread-self/net/{name}")));
    let Some(sockstat) = read("sockstat")? else { return Ok(None) };
    // A kernel without IPv6 has no sockstat6.
    let sockstat6 = read("sockstat6")?.unwrap_or_default();
    let most = parse_most_unlisted(&sockstat, &sockstat6, 0);
    // `used` does not count sockets that the kernel itself made, and the number of Unix sockets does. Only NFS makes such ones: its
    // module sunrpc connects to local services. Then the namespace has the folder rpc.
    if most.is_none_or(|most| most == 0) || Path::new("/proc/thread-self/net/rpc").exists() {
        return Ok(most);
    }
    let unix = |text: Option<String>| text.as_deref().and_then(parse_unix_sockets).unwrap_or(0);
    let before = unix(read("protocols")?);
    let sockstat = read("sockstat")?.unwrap_or_default();
    // Sockets can come and go between two files.
    let both = before.min(unix(read("protocols")?));
    Ok(parse_most_unlisted(&sockstat, &sockstat6, both).or(most))
}

fn parse_most_unlisted(sockstat: &str, sockstat6: &str, others: u64) -> Option<u64> {
    let tcp = parse_tcp_sockstat(sockstat)?;
    let used: u64 = sockstat.lines().find_map(|line| line.strip_prefix("sockets: used "))?.trim().parse().ok()?;
    let inuse6 = sockstat6.lines().find_map(|line| line.strip_prefix("TCP6: inuse "));
    let inuse6: u64 = inuse6.map_or(Some(0), |number| number.trim().parse().ok())?;
    Some(tcp.alloc.min(used.saturating_sub(others)).saturating_sub(tcp.inuse + inuse6))
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

/// Parses a line of names and a line of numbers. Both begin with `TcpExt:`.
#[must_use]
pub fn parse_tcp_ext(text: &str) -> Option<TcpExt> {
    parse_counters(text, "TcpExt:").map(TcpExt)
}

/// Parses a line of names and a line of numbers. Both begin with `prefix`. A negative number is not a counter: `MaxConn` of
/// `Tcp:` is -1.
fn parse_counters(text: &str, prefix: &str) -> Option<BTreeMap<String, u64>> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(prefix));
    let (names, numbers) = (lines.next()?.split_whitespace(), lines.next()?.split_whitespace());
    let counters = names.zip(numbers).filter(|(_, number)| !number.starts_with('-'));
    counters.map(|(name, number)| Some((name.to_owned(), number.parse().ok()?))).collect()
}

/// Parses a line like `TCP: inuse 1 orphan 0 tw 5 alloc 2 mem 346`.
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
    fn counters_are_read_by_name_and_an_absent_one_is_unknown() {
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
    fn unlisted_sockets_are_at_most_what_the_lower_count_leaves() {
        let text = |used, alloc| format!("sockets: used {used}\nTCP: inuse 3 orphan 0 tw 0 alloc {alloc} mem 0\n");
        let most = |used, alloc, v6| parse_most_unlisted(&text(used, alloc), v6, 0);
        assert_eq!(most(100, 9, "TCP6: inuse 2\nUDP6: inuse 7\n"), Some(4));
        assert_eq!(most(7, 900, "TCP6: inuse 2\n"), Some(2));
        assert_eq!(most(7, 5, ""), Some(2));
        assert_eq!(most(1, 1, ""), Some(0), "counts of different moments");
        assert_eq!(parse_most_unlisted("TCP: inuse 1 orphan 0 tw 0 alloc 2 mem 0\n", "", 0), None);
        assert_eq!(parse_most_unlisted(&text(10, 900), "", 5), Some(2), "without other sockets");
        assert_eq!(parse_most_unlisted(&text(10, 900), "", 50), Some(0));
        assert_eq!(most(1, 1, "TCP6: inuse many\n"), None);
    }

    #[test]
    fn unix_sockets_are_counted_over_both_lines() {
        let text = "protocol  size sockets  memory press\nUNIX-STREAM 1152     30      -1   NI\nUNIX      1152      2      -1   NI\n\
                    UNIXES 1 7 -1\nTCP       2304      7     287   no\n";
        assert_eq!(parse_unix_sockets(text), Some(32));
        assert_eq!((parse_unix_sockets("UNIX 1\n"), parse_unix_sockets("")), (None, None));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_and_never_panics(text in "(TcpExt:|TCP:|UNIX )?[ a-z0-9\n]{0,80}") {
            let _ = (parse_tcp_ext(&text), parse_tcp_sockstat(&text), parse_most_unlisted(&text, &text, 1), parse_unix_sockets(&text));
        }
    }
}
