//! Makes situations on the real kernel, with `twtool::lab`. Each function creates the sockets that its name describes, in the network
//! namespace of the calling thread. It returns the sockets that must stay open.
//!
//! The ports of servers are fixed, because each test has its own namespace.

use std::cell::Cell;
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::time::{Duration, Instant};

use socket2::Socket as OsSocket;
use twtool::lab::{ActiveCloser, Connection, Server};
use twtool::model::bind::ReuseOptions;
use twtool::sys::sysctl;

use super::{kernel, procfs};

/// Parses a socket address, such as `127.0.0.1:80` or `[::1]:80`.
#[track_caller]
pub(crate) fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap_or_else(|_| panic!("not a socket address: {text}"))
}

/// Starts a server with SO_REUSEADDR, as most servers do.
#[track_caller]
pub(crate) fn listen(at: &str) -> Server {
    super::netns::assert_isolated();
    Server::listen(addr(at), ReuseOptions::REUSEADDR).unwrap_or_else(|error| panic!("listening on {at}: {error}"))
}

thread_local! {
    /// The port of the next client. It is in Linux's ephemeral range and of the registered class, and no server of a test uses it.
    static CLIENT_PORT: Cell<u16> = const { Cell::new(41_000) };
}

/// Connects to `to` from a port of the ephemeral range that no earlier connection of this test has used. Otherwise the kernel would
/// sometimes choose the port of an earlier connection, and the SYN would end the bucket that the server has from that connection.
#[track_caller]
pub(crate) fn connect(server: &Server, to: &str) -> Connection {
    let port = CLIENT_PORT.replace(CLIENT_PORT.get() + 1);
    let from = if addr(to).is_ipv4() { format!("127.0.0.1:{port}") } else { format!("[::1]:{port}") };
    connect_from(server, to, &from)
}

#[track_caller]
pub(crate) fn connect_from(server: &Server, to: &str, from: &str) -> Connection {
    server.connect(addr(to), Some(addr(from))).unwrap_or_else(|error| panic!("connecting {from} to {to}: {error}"))
}

/// Makes a TIME_WAIT bucket on the server's port.
#[track_caller]
pub(crate) fn bucket_of_server(server: &Server, to: &str) {
    connect(server, to).close(ActiveCloser::Server).expect("the server's bucket");
}

/// Makes a TIME_WAIT bucket on the client's port, which is ephemeral.
#[track_caller]
pub(crate) fn bucket_of_client(server: &Server, to: &str) {
    connect(server, to).close(ActiveCloser::Client).expect("the client's bucket");
}

/// Makes a FIN_WAIT_2 bucket on the end that closes first. When the returned socket is closed, the bucket enters TIME_WAIT.
///
/// Sometimes the kernel keeps the closed end as a full socket, because the ACK of its FIN arrives at the end of close(), while
/// the socket is still locked (the "bad case" in `tcp_rcv_state_process`). Then this function resets that connection, which
/// leaves no socket, and makes another one.
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

/// Buckets of every kind, and sockets that are not buckets. The buckets in FIN_WAIT_2 stay in this state as long as this value exists.
pub(crate) struct Mixed {
    servers: Vec<Server>,
    open: Vec<OsSocket>,
}

impl Mixed {
    pub(crate) const TIME_WAIT: usize = 7;
    pub(crate) const FIN_WAIT_2: usize = 3;

    /// Makes IPv4, IPv6 and mapped buckets, with either end as the active closer. Also makes listeners, an established
    /// connection, and two full sockets in FIN_WAIT_2: one is open, the other is an orphan with a long tcp_fin_timeout.
    pub(crate) fn make() -> Self {
        // With this range, all ephemeral ports have the class `registered`, and none of them is a server's port.
        sysctl::write("ipv4.ip_local_port_range", "41000 41999").expect("the namespace is ours");
        let v4 = listen("127.0.0.1:8080");
        bucket_of_server(&v4, "127.0.0.1:8080");
        bucket_of_client(&v4, "127.0.0.1:8080");
        let v6 = listen("[::1]:8081");
        bucket_of_server(&v6, "[::1]:8081");
        bucket_of_client(&v6, "[::1]:8081");
        // Dual-stack: the bucket of an IPv4 connection is mapped on the server's side, and plain IPv4 on the client's side.
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

    fn check() {
        let buckets = procfs::buckets();
        let half = buckets.iter().filter(|entry| entry.state == 5).count();
        assert_eq!((buckets.len() - half, half), (Self::TIME_WAIT, Self::FIN_WAIT_2), "{buckets:?}");
        let full = procfs::sockets().into_iter().filter(|entry| entry.state == 5 && entry.timer != 3).count();
        assert_eq!(full, 2, "two full sockets are in FIN_WAIT_2");
    }

    /// Closes all sockets. The buckets in FIN_WAIT_2 then enter TIME_WAIT, so this is the last call of a test.
    pub(crate) fn end(self) {
        drop(self.open);
        drop(self.servers);
    }
}

/// Makes at least this many more TIME_WAIT buckets on the server's port.
///
/// On a busy machine, a few connections in a thousand leave no bucket. More connections replace them, so there can be more than
/// `count` buckets.
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
        // The last connections may still be closing.
        let since = Instant::now();
        while procfs::time_wait().len() < wanted && since.elapsed() < Duration::from_secs(1) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// The number of connections that are open at the same time. A usual limit is 1024 descriptors.
const BATCH: usize = 50;
