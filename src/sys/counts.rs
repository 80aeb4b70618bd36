//! The kernel's own counts of the calling thread's network namespace: /proc/net/netstat and /proc/net/sockstat
//! (proc_pid_net(5)).

use std::fs;

use crate::model::kernel_counts::{TcpExt, TcpSockstat};

/// The `TcpExt` counters; `None` where they cannot be read.
#[must_use]
pub fn tcp_ext() -> Option<TcpExt> {
    parse_tcp_ext(&fs::read_to_string("/proc/thread-self/net/netstat").ok()?)
}

/// The counts of TCP sockets; `None` where they cannot be read.
#[must_use]
pub fn tcp_sockstat() -> Option<TcpSockstat> {
    parse_tcp_sockstat(&fs::read_to_string("/proc/thread-self/net/sockstat").ok()?)
}

/// A line of names, and below it a line of as many numbers, both begun by `TcpExt:`.
fn parse_tcp_ext(text: &str) -> Option<TcpExt> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt:"));
    let (names, numbers) = (lines.next()?.split_whitespace(), lines.next()?.split_whitespace());
    names
        .zip(numbers)
        .map(|(name, number)| Some((name.to_owned(), number.parse().ok()?)))
        .collect::<Option<_>>()
        .map(TcpExt)
}

/// `TCP: inuse 1 orphan 0 tw 5 alloc 2 mem 346`.
fn parse_tcp_sockstat(text: &str) -> Option<TcpSockstat> {
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

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_and_never_panics(text in "(TcpExt:|TCP:)?[ a-z0-9\n]{0,80}") {
            let _ = (parse_tcp_ext(&text), parse_tcp_sockstat(&text));
        }
    }
}
