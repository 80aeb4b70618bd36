//! Situations on the real kernel, made with twtool's own lab: each function leaves the calling thread's network
//! namespace in a state that its name says.
//!
//! Ports are fixed, for the namespace is the test's own. What must stay open for the situation to last is returned.

use std::cell::Cell;
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::time::{Duration, Instant};

use socket2::Socket as OsSocket;
use twtool::lab::{ActiveCloser, Connection, Server};
use twtool::model::bind::ReuseOptions;
use twtool::sys::sysctl;

use super::{kernel, procfs};

/// `127.0.0.1:80`, `[::1]:80`.
#[track_caller]
pub(crate) fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap_or_else(|_| panic!("no socket address: {text}"))
}

/// A server as most are: with SO_REUSEADDR.
#[track_caller]
pub(crate) fn listen(at: &str) -> Server {
    Server::listen(addr(at), ReuseOptions::REUSEADDR).unwrap_or_else(|error| panic!("listening on {at}: {error}"))
}

thread_local! {
    /// The next client's port: in Linux's ephemeral range, of the registered class, and no server's in these tests.
    static CLIENT_PORT: Cell<u16> = const { Cell::new(41_000) };
}

/// A connection to `to`, from a port of the ephemeral range that no connection of this test has had yet. The kernel's
/// own choice would be one of 14,000, and now and then meet the server's bucket of an earlier connection: a SYN from its
/// port ends that bucket.
#[track_caller]
pub(crate) fn connect(server: &Server, to: &str) -> Connection {
    let port = CLIENT_PORT.replace(CLIENT_PORT.get() + 1);
    let from = if addr(to).is_ipv4() { format!("127.0.0.1:{port}") } else { format!("[::1]:{port}") };
    connect_from(server, to, &from)
}

/// A connection to `to` from this address and port.
#[track_caller]
pub(crate) fn connect_from(server: &Server, to: &str, from: &str) -> Connection {
    server.connect(addr(to), Some(addr(from))).unwrap_or_else(|error| panic!("connecting {from} to {to}: {error}"))
}

/// A TIME_WAIT bucket on the port of the server.
#[track_caller]
pub(crate) fn bucket_of_server(server: &Server, to: &str) {
    connect(server, to).close(ActiveCloser::Server).expect("the server's bucket");
}

/// A TIME_WAIT bucket on the client's port, which is ephemeral.
#[track_caller]
pub(crate) fn bucket_of_client(server: &Server, to: &str) {
    connect(server, to).close(ActiveCloser::Client).expect("the client's bucket");
}

/// A FIN_WAIT_2 bucket on the end that closes first; it lasts while the socket that is returned does.
///
/// Now and then the kernel keeps such an orphan as a full socket: where the ACK of its FIN arrives in the last moments
/// of close(), while the socket is still locked (the "bad case" in `tcp_rcv_state_process`). That one is reset, which
/// leaves nothing, and another is made.
#[track_caller]
pub(crate) fn half_closed(server: &Server, to: &str, first: ActiveCloser) -> OsSocket {
    for _ in 0..20 {
        let open = connect(server, to).close_half(first).expect("half closed");
        let end = |addr: socket2::SockAddr| addr.as_socket().map(|addr| (addr.ip().to_canonical(), addr.port()));
        let (local, remote) = (open.peer_addr().map(end).expect("a peer"), open.local_addr().map(end).expect("a name"));
        let plain = |(addr, port): (IpAddr, u16)| Some((addr.to_canonical(), port));
        if procfs::buckets().iter().any(|entry| plain(entry.local) == local && plain(entry.remote) == remote) {
            return open;
        }
        open.set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
    }
    panic!("20 orphans in FIN_WAIT_2, and none of them a bucket");
}

/// One bucket of every kind, among sockets that are no buckets. Its FIN_WAIT_2 buckets last while it lives.
pub(crate) struct Mixed {
    servers: Vec<Server>,
    open: Vec<OsSocket>,
}

impl Mixed {
    /// TIME_WAIT buckets in it.
    pub(crate) const TIME_WAIT: usize = 7;
    /// FIN_WAIT_2 buckets in it.
    pub(crate) const FIN_WAIT_2: usize = 3;

    /// IPv4, IPv6 and mapped; either end the active closer; beside them listeners, an established connection, and two
    /// FIN_WAIT_2 sockets that are full ones: one still open, one orphaned but kept whole by a long tcp_fin_timeout.
    pub(crate) fn make() -> Self {
        // Ephemeral ports of one class, and none that a server here has.
        sysctl::write("ipv4.ip_local_port_range", "41000 41999").expect("the namespace is ours");
        let v4 = listen("127.0.0.1:8080");
        bucket_of_server(&v4, "127.0.0.1:8080");
        bucket_of_client(&v4, "127.0.0.1:8080");
        let v6 = listen("[::1]:8081");
        bucket_of_server(&v6, "[::1]:8081");
        bucket_of_client(&v6, "[::1]:8081");
        // Dual-stack: an IPv4 client leaves a mapped bucket on the server's side, a plain one on its own.
        let dual = listen("[::]:8082");
        bucket_of_server(&dual, "127.0.0.2:8082");
        bucket_of_client(&dual, "127.0.0.2:8082");
        bucket_of_server(&dual, "[::1]:8082");

        let mut open = vec![
            half_closed(&v4, "127.0.0.1:8080", ActiveCloser::Server),
            half_closed(&v6, "[::1]:8081", ActiveCloser::Client),
            half_closed(&dual, "127.0.0.2:8082", ActiveCloser::Server),
        ];

        let established = connect(&v4, "127.0.0.1:8080");
        open.extend([established.client, established.server]);
        let shut = connect(&v4, "127.0.0.1:8080");
        shut.server.shutdown(Shutdown::Write).expect("shutdown()");
        open.extend([shut.client, shut.server]);
        let usual = sysctl::read("ipv4.tcp_fin_timeout").expect("tcp_fin_timeout");
        sysctl::write("ipv4.tcp_fin_timeout", "120").expect("the namespace is ours");
        open.push(connect(&v4, "127.0.0.1:8080").close_half(ActiveCloser::Server).expect("half closed"));
        sysctl::write("ipv4.tcp_fin_timeout", &usual).expect("the namespace is ours");

        Self::check();
        Self { servers: vec![v4, v6, dual], open }
    }

    /// Checks that the kernel has made of it what was meant.
    fn check() {
        let buckets = procfs::buckets();
        let half = buckets.iter().filter(|entry| entry.state == 5).count();
        assert_eq!((buckets.len() - half, half), (Self::TIME_WAIT, Self::FIN_WAIT_2), "{buckets:?}");
        let full = procfs::sockets().into_iter().filter(|entry| entry.state == 5 && entry.timer != 3).count();
        assert_eq!(full, 2, "two full sockets are in FIN_WAIT_2");
    }

    /// Ends it; to be called last, for the FIN_WAIT_2 buckets are none any more.
    pub(crate) fn end(self) {
        drop(self.open);
        drop(self.servers);
    }
}

/// At least this many more TIME_WAIT buckets on the server's port.
///
/// On a machine with much other work a few connections in a thousand have been seen to leave none; others are made in
/// their place, so what is there in the end is to be counted.
#[track_caller]
pub(crate) fn many_buckets(server: &Server, to: &str, count: usize) {
    let wanted = procfs::time_wait().len() + count;
    let deadline = Instant::now() + kernel::patience(Duration::from_secs(20));
    loop {
        let missing = wanted.saturating_sub(procfs::time_wait().len());
        if missing == 0 {
            return;
        }
        assert!(Instant::now() < deadline, "{missing} of {count} buckets are missing");
        for first in (0..missing).step_by(BATCH) {
            let connections: Vec<_> = (first..missing.min(first + BATCH)).map(|_| connect(server, to)).collect();
            let (clients, servers): (Vec<_>, Vec<_>) = connections.into_iter().map(|c| (c.client, c.server)).unzip();
            drop(servers);
            drop(clients);
        }
        // The last segments may still be under way.
        let since = Instant::now();
        while procfs::time_wait().len() < wanted && since.elapsed() < Duration::from_secs(1) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Connections that are open at once: the descriptors of all tests that run at the same time share one limit.
const BATCH: usize = 50;
