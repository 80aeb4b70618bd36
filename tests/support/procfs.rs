//! Reads /proc/net/tcp and tcp6 (proc_pid_net(5)) with a parser that is independent of twtool. Tests compare its result with
//! twtool's answers.
//!
//! The kernel formats the lines of buckets in get_timewait4_sock and get_timewait6_sock. An address consists of 32-bit words in host order.
//! `tr` is the kind of timer (03 for a timewait bucket). `tm->when` is the remaining time of the timer in units of 10 ms.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The unit of `tm->when` in milliseconds. USER_HZ is 100 on every Linux architecture that Rust's std supports.
pub(crate) const UNIT_MS: u64 = 10;

/// A socket as /proc/net/tcp and tcp6 show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The local address and port. As in the file, a mapped address stays mapped.
    pub(crate) local: (IpAddr, u16),
    pub(crate) remote: (IpAddr, u16),
    /// `st`, the number of the state in net/tcp_states.h.
    pub(crate) state: u8,
    /// `tr`, the kind of timer.
    pub(crate) timer: u8,
    /// `tm->when`, in units of 10 ms.
    pub(crate) when: u64,
}

/// The identity of a socket, in the notation of `twtool list`: family, local address and port, remote address and port, state.
pub(crate) type Identity = (String, String, u64, String, u64, String);

impl Entry {
    pub(crate) fn identity(&self) -> Identity {
        let family = match self.local.0 {
            IpAddr::V4(_) => "ipv4",
            IpAddr::V6(addr) if addr.to_ipv4_mapped().is_some() => "ipv4-mapped",
            IpAddr::V6(_) => "ipv6",
        };
        let state = match self.state {
            6 => "time-wait",
            5 => "fin-wait-2",
            other => panic!("state {other:#04x} in a timewait bucket"),
        };
        let addr = |addr: IpAddr| addr.to_canonical().to_string();
        (
            family.into(),
            addr(self.local.0),
            self.local.1.into(),
            addr(self.remote.0),
            self.remote.1.into(),
            state.into(),
        )
    }

    fn is_bucket(&self) -> bool {
        self.timer == 3
    }
}

/// Every TCP socket that /proc/net/tcp and tcp6 list in the network namespace of the calling thread.
pub(crate) fn sockets() -> Vec<Entry> {
    let file = |name: &str| {
        std::fs::read_to_string(format!("/proc/thread-self/net/{name}"))
            .unwrap_or_else(|error| panic!("reading /proc/thread-self/net/{name} failed: {error}"))
    };
    let entries = |name: &str| -> Vec<_> { file(name).lines().skip(1).map(entry).collect() };
    [entries("tcp"), entries("tcp6")].concat()
}

/// The timewait buckets, including the ones in FIN_WAIT_2.
pub(crate) fn buckets() -> Vec<Entry> {
    sockets().into_iter().filter(Entry::is_bucket).collect()
}

pub(crate) fn time_wait() -> Vec<Entry> {
    buckets().into_iter().filter(|entry| entry.state == 6).collect()
}

/// Whether any socket is closing, and has neither ended nor become a bucket.
pub(crate) fn any_closing() -> bool {
    // FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK and CLOSING of net/tcp_states.h.
    sockets().iter().any(|entry| !entry.is_bucket() && matches!(entry.state, 4 | 5 | 8 | 9 | 11))
}

/// The number of timewait buckets that the kernel reports in /proc/net/sockstat.
pub(crate) fn bucket_count() -> usize {
    let text = std::fs::read_to_string("/proc/thread-self/net/sockstat").expect("sockstat can be read");
    let tcp = text.lines().find(|line| line.starts_with("TCP:")).expect("sockstat has a TCP line");
    let mut words = tcp.split_whitespace();
    words.find(|word| *word == "tw").expect("the TCP line has tw");
    words.next().and_then(|count| count.parse().ok()).expect("tw is a number")
}

fn entry(line: &str) -> Entry {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [_, local, remote, state, _, timer, ..] = fields[..] else { panic!("a line of an unknown form: {line}") };
    let (tr, when) = timer.split_once(':').expect("tr:tm->when");
    let number = |text: &str| u64::from_str_radix(text, 16).unwrap_or_else(|_| panic!("not hexadecimal: {text}"));
    let byte = |text: &str| u8::try_from(number(text)).expect("a byte");
    Entry { local: end(local), remote: end(remote), state: byte(state), timer: byte(tr), when: number(when) }
}

fn end(text: &str) -> (IpAddr, u16) {
    let (addr, port) = text.split_once(':').expect("address:port");
    let port = u16::from_str_radix(port, 16).expect("a port");
    let words: Vec<[u8; 4]> = addr
        .as_bytes()
        .chunks(8)
        .map(|word| {
            let word = std::str::from_utf8(word).expect("ASCII");
            u32::from_str_radix(word, 16).expect("a word of 8 hexadecimal digits").to_ne_bytes()
        })
        .collect();
    let addr = match words[..] {
        [v4] => Ipv4Addr::from(v4).into(),
        [a, b, c, d] => {
            let bytes: [u8; 16] = [a, b, c, d].concat().try_into().expect("four words");
            Ipv6Addr::from(bytes).into()
        }
        _ => panic!("not an address: {addr}"),
    };
    (addr, port)
}

/// The value of a TcpExt counter (/proc/net/netstat) of this network namespace.
#[track_caller]
pub(crate) fn tcp_ext(name: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/net/netstat").expect("netstat can be read");
    let lines: Vec<_> = text.lines().filter(|line| line.starts_with("TcpExt:")).collect();
    let (names, values) = (lines[0].split(' '), lines[1].split(' '));
    let value = names.zip(values).find(|(key, _)| *key == name).unwrap_or_else(|| panic!("no {name}")).1;
    value.parse().expect("a number")
}
