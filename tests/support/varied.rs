//! Makes buckets that differ in the values that a filter can test. Each bucket has a letter. A test lists the letters of the buckets
//! that a filter must select.

use socket2::Socket as OsSocket;
use twtool::lab::{ActiveCloser, Connection, Server};
use twtool::model::bind::ReuseOptions;

use super::situations::{addr, connect_from, half_closed, listen};
use super::{addresses, procfs};

/// The buckets in TIME_WAIT, each with its letter, local end and remote end.
///
/// - `a`-`j` and `l` are IPv4, `k` is mapped, and the other buckets are IPv6.
/// - `d`, `h`, `l`, `n`, `p` and `r` are on the client's end, because the client closed first. The other buckets are on the
///   server's end.
/// - `g` and `r` are bound to lo.
/// - `e` and `f` have the mark 0x13, `h` and `s` the mark 1.
pub(crate) const BUCKETS: [(char, &str, &str); 20] = [
    ('a', "127.0.0.1:443", "127.0.0.1:1024"),
    ('b', "127.0.0.1:443", "127.0.0.1:40000"),
    ('c', "127.0.0.1:443", "127.0.0.1:50000"),
    ('d', "10.0.0.1:33333", "127.0.0.1:443"),
    ('e', "10.1.2.3:22", "127.0.0.1:40006"),
    ('f', "10.1.2.3:22", "192.168.1.9:60006"),
    ('g', "127.0.0.1:80", "127.0.0.2:1023"),
    ('h', "127.0.0.1:40010", "127.0.0.1:443"),
    ('i', "127.0.0.3:49152", "127.0.0.2:65535"),
    ('j', "127.0.0.1:65535", "127.0.0.1:1"),
    ('k', "10.1.2.3:8080", "127.0.0.1:40001"),
    ('l', "127.0.0.1:40004", "127.0.0.1:8080"),
    ('m', "[2001:db8::1]:8080", "[::1]:40002"),
    ('n', "[::1]:40003", "[2001:db8:1::2]:8080"),
    ('o', "[2001:db8::1]:5432", "[2001:db8:1::2]:32768"),
    ('p', "[2001:db8:1::2]:60999", "[2001:db8::1]:5432"),
    ('q', "[::1]:443", "[::1]:49151"),
    ('r', "[::1]:40011", "[::1]:8080"),
    ('s', "[::1]:8080", "[2001:db8::1]:61000"),
    ('t', "[2001:db8:1::2]:65535", "[2001:db8:1::2]:1"),
];

/// The buckets in FIN_WAIT_2, each with its letter and local end. They stay in FIN_WAIT_2 as long as [`Varied`] exists, at most 60 s.
pub(crate) const FIN_WAIT_2_BUCKETS: [(char, &str); 2] = [('u', "127.0.0.1:443"), ('v', "[2001:db8::1]:8080")];

/// The sockets that are still open: listeners, and the peers of the FIN_WAIT_2 buckets. The listeners of `g`, `i`, `j` and `t` are
/// closed.
pub(crate) struct Varied {
    servers: Vec<Server>,
    halves: Vec<OsSocket>,
}

impl Varied {
    /// Makes all buckets in an empty namespace.
    pub(crate) fn make() -> Self {
        for extra in ["10.0.0.1", "10.1.2.3", "192.168.1.9", "2001:db8::1", "2001:db8:1::2"] {
            addresses::add(extra);
        }
        let web = listen("127.0.0.1:443");
        let web6 = listen("[::1]:443");
        let dual = listen("[::]:8080");
        let database = listen("[2001:db8::1]:5432");
        let marked = with("10.1.2.3:22", |socket| socket.set_mark(0x13));
        let bound = with("127.0.0.1:80", |socket| socket.bind_device(Some(b"lo")));
        let gone = ["127.0.0.3:49152", "127.0.0.1:65535", "[2001:db8:1::2]:65535"].map(listen);
        for (letter, local, remote) in BUCKETS {
            let client_first = "dhlnpr".contains(letter);
            let (from, to) = if client_first { (local, remote) } else { (remote, local) };
            let server = match letter {
                'a'..='d' | 'h' => &web,
                'e' | 'f' => &marked,
                'g' => &bound,
                'i' => &gone[0],
                'j' => &gone[1],
                't' => &gone[2],
                'q' => &web6,
                'o' | 'p' => &database,
                _ => &dual,
            };
            let connection = connect_from(server, to, from);
            set_options(letter, &connection);
            connection.close(if client_first { ActiveCloser::Client } else { ActiveCloser::Server }).expect("a bucket");
        }
        drop(bound);
        drop(gone);
        let halves = vec![
            half_closed(&web, FIN_WAIT_2_BUCKETS[0].1, ActiveCloser::Server),
            half_closed(&dual, FIN_WAIT_2_BUCKETS[1].1, ActiveCloser::Server),
        ];
        let this = Self { servers: vec![web, web6, dual, database, marked], halves };
        assert_eq!(procfs::time_wait().len(), BUCKETS.len());
        assert_eq!(procfs::buckets().len(), BUCKETS.len() + FIN_WAIT_2_BUCKETS.len());
        this
    }

    /// Closes all sockets. This is the last call of a test.
    pub(crate) fn end(self) {
        drop(self.halves);
        drop(self.servers);
    }
}

/// The sorted letters of the buckets with these local and remote ends.
#[track_caller]
pub(crate) fn letters<'a>(rows: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let letter = |(local, remote): (&str, &str)| {
        let whole = BUCKETS.iter().find(|bucket| (bucket.1, bucket.2) == (local, remote)).map(|bucket| bucket.0);
        let half = || FIN_WAIT_2_BUCKETS.iter().find(|bucket| bucket.1 == local).map(|bucket| bucket.0);
        whole.or_else(half).unwrap_or_else(|| panic!("no bucket was made from {local} to {remote}"))
    };
    let mut letters: Vec<char> = rows.into_iter().map(letter).collect();
    letters.sort_unstable();
    letters.into_iter().collect()
}

fn with(at: &str, option: impl Fn(&OsSocket) -> std::io::Result<()>) -> Server {
    let at = addr(at);
    let socket = twtool::sys::bind::socket(at.ip(), ReuseOptions::REUSEADDR).expect("a socket");
    option(&socket).expect("an option");
    Server::listen_on(socket, at).expect("a server")
}

/// Sets the options of the closing socket. The bucket keeps their values.
fn set_options(letter: char, connection: &Connection) {
    match letter {
        'h' => connection.client.set_mark(1).expect("SO_MARK"),
        's' => connection.server.set_mark(1).expect("SO_MARK"),
        'r' => connection.client.bind_device(Some(b"lo")).expect("SO_BINDTODEVICE"),
        _ => {}
    }
}
