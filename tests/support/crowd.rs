//! Makes many buckets that exist at the same time, and short-lived buckets that begin and end while a test lists the sockets.
//!
//! Every client closes first, so each bucket is on a port that the kernel has chosen. As long as the bucket exists, the kernel does
//! not choose that port again for the same destination, if tcp_tw_reuse is 0. So no new connection ends a bucket by accident.

use std::collections::VecDeque;
use std::io::Read as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage};
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_packet_sock_diag::{SockDiagDestroy, SockDiagMessage};
use netlink_sys::{Socket, SocketAddr as NetlinkAddr, protocols::NETLINK_SOCK_DIAG};
use twtool::sys::sysctl;

use super::{kernel, procfs};

/// The number of buckets that [`gather`] makes for one destination. With [`make_room`], the kernel has 63,001 ports for each destination.
const OF_ONE_DESTINATION: usize = 5000;

pub(crate) fn make_room() {
    sysctl::write("ipv4.ip_local_port_range", "2000 65000").expect("the namespace is ours");
    sysctl::write("ipv4.tcp_max_tw_buckets", "1000000").expect("the namespace is ours");
    // With tcp_tw_reuse, connect() may take over a bucket after 1 s.
    sysctl::write("ipv4.tcp_tw_reuse", "0").expect("the namespace is ours");
    // Buckets in FIN_WAIT_2 then last 1 s.
    sysctl::write("ipv4.tcp_fin_timeout", "1").expect("the namespace is ours");
}

/// Makes this many buckets in TIME_WAIT, in turn 5000 with IPv4 and 5000 with IPv6. Call [`make_room`] first. If this takes more than
/// [`kernel::SAFE_AGE`], the test ends as not checked, because the first buckets may have expired.
#[track_caller]
pub(crate) fn gather(count: usize) {
    let began = Instant::now();
    let wanted = procfs::bucket_count() + count;
    for (port, first) in (1500_u16..).zip((0..count).step_by(OF_ONE_DESTINATION)) {
        let host = if port % 2 == 0 { "127.0.0.1" } else { "::1" };
        let server = TcpListener::bind((host, port)).expect("a server");
        for _ in first..count.min(first + OF_ONE_DESTINATION) {
            leave_bucket(&server);
        }
    }
    // If buckets are missing after every connection is closed, make more.
    let server = TcpListener::bind(("127.0.0.1", 1499)).expect("a server");
    let deadline = Instant::now() + kernel::patience(Duration::from_secs(20));
    while procfs::bucket_count() < wanted {
        kernel::needs_young_buckets(began);
        assert!(Instant::now() < deadline, "{} of {count} buckets are missing", wanted - procfs::bucket_count());
        thread::sleep(Duration::from_millis(500));
        if !procfs::any_closing() {
            (procfs::bucket_count()..wanted).for_each(|_| leave_bucket(&server));
        }
    }
    kernel::needs_young_buckets(began);
}

/// Makes one bucket. The server waits for the client's FIN before it closes, because both ends would get a bucket if they closed at the
/// same time.
fn leave_bucket(server: &TcpListener) {
    let (client, mut accepted) = connect(server);
    drop(client);
    assert_eq!(accepted.read(&mut [0]).expect("the end of the stream"), 0);
}

fn connect(server: &TcpListener) -> (TcpStream, TcpStream) {
    let client = TcpStream::connect(server.local_addr().expect("a name")).expect("a connection");
    (client, server.accept().expect("a connection").0)
}

/// The numbers of buckets that [`churn`] has made.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    /// Buckets in TIME_WAIT, which SOCK_DESTROY removes after about 50 ms.
    pub(crate) destroyed: usize,
    /// Buckets in FIN_WAIT_2, which a RST from the other end removes after about 50 ms.
    pub(crate) reset: usize,
    /// Buckets in FIN_WAIT_2 whose timer ends after about 1 s.
    pub(crate) expired: usize,
    pub(crate) took: Duration,
}

impl Traffic {
    pub(crate) const fn all(&self) -> usize {
        self.destroyed + self.reset + self.expired
    }
}

/// Makes buckets until `stop` is true, at this rate, or as fast as possible if the machine is slower. Each bucket ends after about
/// 50 ms or 1 s, except the last ones, which still exist when this function returns. `made` counts the buckets.
pub(crate) fn churn(per_second: usize, stop: &AtomicBool, made: &AtomicUsize) -> Traffic {
    const MOMENT: Duration = Duration::from_millis(50);
    const TURN: Duration = Duration::from_millis(5);
    let server = TcpListener::bind(("127.0.0.9", 1400)).expect("a server");
    let mut killer = Killer::new();
    let began = Instant::now();
    let mut traffic = Traffic::default();
    let (mut to_destroy, mut to_reset, mut to_forget) = (VecDeque::new(), VecDeque::new(), VecDeque::new());
    while !stop.load(Ordering::Relaxed) {
        let due = began.elapsed().as_micros() * per_second as u128 / 1_000_000;
        while (traffic.all() as u128) < due && !stop.load(Ordering::Relaxed) {
            let (client, accepted) = connect(&server);
            let (now, ends) = (Instant::now(), client.local_addr().and_then(|c| Ok((c, client.peer_addr()?))));
            drop(client);
            match traffic.all() % 10 {
                0 => {
                    to_forget.push_back((now, accepted));
                    traffic.expired += 1;
                }
                1..=4 => {
                    to_reset.push_back((now, accepted));
                    traffic.reset += 1;
                }
                _ => {
                    drop(accepted);
                    to_destroy.push_back((now, ends.expect("two names")));
                    traffic.destroyed += 1;
                }
            }
            made.fetch_add(1, Ordering::Relaxed);
            // After 50 buckets, look at the queues below, so that no bucket exists much longer than planned.
            if traffic.all() % 50 == 0 {
                break;
            }
        }
        while to_destroy.front().is_some_and(|(since, _): &(Instant, _)| since.elapsed() > MOMENT) {
            to_destroy.pop_front().into_iter().for_each(|(_, ends)| killer.destroy(ends));
        }
        while to_reset.front().is_some_and(|(since, _): &(Instant, _)| since.elapsed() > MOMENT) {
            to_reset.pop_front().into_iter().for_each(|(_, accepted)| reset(accepted));
        }
        // After 1.25 s, these buckets have usually expired. If one still exists, the FIN of a plain close would make it enter TIME_WAIT.
        while to_forget.front().is_some_and(|(since, _): &(Instant, _)| since.elapsed() > 25 * MOMENT) {
            to_forget.pop_front().into_iter().for_each(|(_, accepted)| reset(accepted));
        }
        if (traffic.all() as u128) >= due {
            thread::sleep(TURN);
        }
    }
    traffic.took = began.elapsed();
    traffic
}

/// Closes with a RST.
pub(crate) fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
    drop(stream);
}

/// Sends SOCK_DESTROY requests, and ignores the responses, because a bucket may already have ended.
pub(crate) struct Killer(Socket);

impl Killer {
    pub(crate) fn new() -> Self {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG).expect("a netlink socket");
        socket.bind_auto().expect("bound");
        socket.connect(&NetlinkAddr::new(0, 0)).expect("connected");
        socket.set_non_blocking(true).expect("non-blocking");
        Self(socket)
    }

    /// Destroys the socket with these ends. For an IPv4-mapped socket, the addresses must be mapped, too.
    pub(crate) fn destroy(&mut self, (local, remote): (SocketAddr, SocketAddr)) {
        let socket_id = SocketId {
            source_port: local.port(),
            destination_port: remote.port(),
            source_address: local.ip(),
            destination_address: remote.ip(),
            // INET_DIAG_NOCOOKIE selects any socket with these ends.
            cookie: [0xff; 8],
            ..SocketId::new_v4()
        };
        let request = InetRequest {
            family: if local.is_ipv4() { AF_INET } else { AF_INET6 },
            protocol: IPPROTO_TCP,
            extensions: ExtensionFlags::empty(),
            states: StateFlags::all(),
            socket_id,
        };
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST;
        let destroy = SockDiagDestroy::new(SockDiagMessage::InetRequest(request));
        let mut message = NetlinkMessage::new(header, destroy.into());
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.0.send(&bytes, 0).expect("sent");
        let mut answer = Vec::with_capacity(4096);
        while self.0.recv(&mut answer, 0).is_ok() {
            answer.clear();
        }
    }
}
