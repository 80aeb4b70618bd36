//! Causes one event for each of a thousand buckets on the real kernel, and checks which event `twtool watch` reports for each.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4};
use std::ops::Range;
use std::time::{Duration, Instant};

use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};
use twtool::sys::{sysctl, tcp_repair};

use crate::support::crowd::{Killer, make_room, reset};
use crate::support::kernel;
use crate::support::records::{number, text};
use crate::support::watcher::Watcher;
use crate::support::{measured, netns, not_checked, suite};

suite! {
    pure: [],
    netns: [
        the_events_of_a_thousand_buckets_are_correct,
    ],
}

/// The number of buckets in each of the ten groups. If the machine is too slow for a number, the test tries the next one.
const SIZES: [u16; 3] = [100, 30, 10];

/// The initial sequence number of each client of `connect`, so that the test can forge its segments.
const INITIAL: u32 = 1000;
/// The sequence number of the client's FIN, and the number after it.
const FIN: u32 = INITIAL + 1;
const NEXT: u32 = FIN + 1;

const SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 8080);

fn client_addr(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)
}

fn listen() -> Socket {
    let server = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    server.set_reuse_address(true).expect("SO_REUSEADDR");
    server.bind(&SERVER.into()).expect("bound");
    server.listen(1024).expect("listening");
    server
}

/// Connects from this port. Returns the socket of the client and the socket of the server.
fn connect(server: &Socket, port: u16) -> (Socket, Socket) {
    let client = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    tcp_repair::set_initial_sequence(&client, INITIAL).expect("TCP_REPAIR");
    client.set_reuse_address(true).expect("SO_REUSEADDR");
    client.bind(&client_addr(port).into()).expect("bound");
    client.connect(&SERVER.into()).expect("connected");
    (client, server.accept().expect("a connection").0)
}

/// Closes the first socket, then the second one after it has received the FIN.
fn close(first: Socket, mut second: Socket) {
    drop(first);
    assert_eq!(second.read(&mut [0]).expect("the end of the stream"), 0);
}

/// Closes the server's socket, which becomes a bucket in FIN_WAIT_2. shutdown() comes first, because after close() alone the kernel
/// sometimes keeps a full socket: the ACK of the FIN can arrive while close() still has the socket locked.
fn orphan(accepted: Socket) {
    accepted.shutdown(Shutdown::Write).expect("shutdown");
    drop(accepted);
}

/// Sends a forged segment to the server, with the address and port of a client as its source.
fn forge(raw: &Socket, port: u16, seq: u32, flags: u8) {
    let (from, to) = (Ipv4Addr::LOCALHOST.octets(), Ipv4Addr::LOCALHOST.octets());
    let mut segment = vec![];
    segment.extend(port.to_be_bytes());
    segment.extend(SERVER.port().to_be_bytes());
    segment.extend(seq.to_be_bytes());
    segment.extend([0; 4]);
    // A header of five words without options, the flags, the largest window, the checksum (set below) and no urgent pointer.
    segment.extend([5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    // The pseudo-header of RFC 9293, section 3.1: both addresses, the protocol number 6 of TCP, and the length.
    let length = u8::try_from(segment.len()).expect("short");
    let pseudo = [from.as_slice(), &to, &[0, 6, 0, length], &segment].concat();
    let sum = pseudo.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum::<u32>();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from((folded & 0xffff) + (folded >> 16)).expect("folded");
    segment[16..18].copy_from_slice(&checksum.to_be_bytes());
    raw.send_to(&segment, &client_addr(0).into()).expect("sent");
}

const FLAG_FIN_ACK: u8 = 0x11;
const FLAG_RST: u8 = 0x04;

/// Ten groups of buckets. Each group has its own client ports and gets one kind of event.
#[derive(Clone, Copy)]
struct Groups {
    size: u16,
}

impl Groups {
    fn ports(self, number: u16) -> Range<u16> {
        let first = 41_000 + number * self.size;
        first..first + self.size
    }
}

/// A running `twtool watch`, and the time at which the first bucket was made.
struct Watched {
    watcher: Watcher,
    made: Instant,
}

impl Watched {
    /// Waits for these numbers of buckets. Returns [`TooSlow`] if buckets may have expired before the test caused their events.
    #[track_caller]
    fn wait_for_buckets(&mut self, time_wait: usize, fin_wait_2: usize) -> Result<(), TooSlow> {
        let left = kernel::SAFE_AGE.saturating_sub(self.made.elapsed());
        let patience = kernel::patience(Duration::from_secs(20)).min(left);
        let settled = self.watcher.try_to_wait_for_buckets(time_wait, fin_wait_2, patience);
        if !kernel::is_young(self.made) {
            return Err(TooSlow);
        }
        settled.unwrap_or_else(|why| panic!("{why}"));
        Ok(())
    }
}

struct TooSlow;

fn the_events_of_a_thousand_buckets_are_correct() {
    kernel::needs(kernel::destroys_buckets(), "SOCK_DESTROY for buckets");
    for size in SIZES {
        let groups = Groups { size };
        match netns::on_thread_in_new_namespace(|| fates(groups)) {
            Ok(events) => return check(groups, &events),
            Err(TooSlow) => {
                not_checked(format!("watch_fates: {} buckets on this machine, which is too slow", 10 * size));
            }
        }
    }
    kernel::needs_time(false);
}

/// Makes buckets and causes one event for each. Returns the events that watch reports.
fn fates(groups: Groups) -> Result<Vec<Value>, TooSlow> {
    make_room();
    sysctl::write("ipv4.tcp_fin_timeout", "60").expect("the namespace is ours");
    let count = usize::from(groups.size);
    let group = |number| groups.ports(number);
    let server = listen();
    let watcher = Watcher::start("50ms", &[]);
    let mut run = Watched { watcher, made: Instant::now() };

    // In groups 0-4, the server closes first, so it has buckets in TIME_WAIT. In group 5, the client closes first. In groups 6-8, the
    // server has orphans in FIN_WAIT_2. Group 9 is made at the end.
    let mut peers = BTreeMap::new();
    for number in 0..9 {
        for port in group(number) {
            let (client, accepted) = connect(&server, port);
            match number {
                0..=4 => close(accepted, client),
                5 => close(client, accepted),
                _ => {
                    orphan(accepted);
                    peers.insert(port, client);
                }
            }
        }
    }
    run.wait_for_buckets(6 * count, 3 * count)?;

    // Groups 0 and 6: SOCK_DESTROY.
    let mut killer = Killer::new();
    for number in [0, 6] {
        group(number).for_each(|port| killer.destroy((SERVER.into(), client_addr(port).into())));
        run.wait_for_buckets(5 * count, if number == 0 { 3 } else { 2 } * count)?;
    }

    // Groups 1 and 7: a RST, to buckets in TIME_WAIT and in FIN_WAIT_2.
    let raw = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP)).expect("CAP_NET_RAW");
    group(1).for_each(|port| forge(&raw, port, NEXT, FLAG_RST));
    run.wait_for_buckets(4 * count, 2 * count)?;
    group(7).for_each(|port| peers.remove(&port).into_iter().for_each(|peer| reset(peer.into())));
    run.wait_for_buckets(4 * count, count)?;

    // Groups 2 and 3: the client sends its FIN again, as if the last ACK of the server was lost. The bucket answers with an ACK. The
    // real client has no socket any more, so the kernel answers this ACK with a RST. tcp_rfc1337=1 protects the bucket against this RST.
    sysctl::write("ipv4.tcp_rfc1337", "1").expect("the namespace is ours");
    group(2).chain(group(3)).for_each(|port| forge(&raw, port, FIN, FLAG_FIN_ACK));
    run.wait_for_buckets(4 * count, count)?;

    // Groups 4 and 5: new connections with the same addresses and ports. In group 4, the SYN reaches a bucket of the server. In
    // group 5, connect() takes over a bucket of the client.
    let new: Vec<_> = group(4).chain(group(5)).map(|port| connect_again(&server, port)).collect();
    run.wait_for_buckets(2 * count, count)?;

    // Group 8: the peers close. Group 9: orphans in FIN_WAIT_2 expire.
    group(8).for_each(|port| drop(peers.remove(&port)));
    run.wait_for_buckets(3 * count, 0)?;
    // The timer of group 9 must be longer than a slow machine needs to make all its buckets and to sample them.
    let timeout = if kernel::slowness() > 1 { "15" } else { "3" };
    sysctl::write("ipv4.tcp_fin_timeout", timeout).expect("the namespace is ours");
    let open: Vec<_> = group(9).map(|port| connect(&server, port)).collect();
    let open: Vec<_> = open.into_iter().map(|(client, accepted)| (client, orphan(accepted))).collect();
    run.wait_for_buckets(3 * count, count)?;
    run.wait_for_buckets(3 * count, 0)?;
    drop((new, open));
    Ok(std::mem::take(&mut run.watcher.events))
}

fn connect_again(server: &Socket, port: u16) -> (Socket, Socket) {
    let client = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    client.set_reuse_address(true).expect("SO_REUSEADDR");
    client.bind(&client_addr(port).into()).expect("bound");
    client.connect(&SERVER.into()).expect("connected");
    (client, server.accept().expect("a connection").0)
}

fn check(groups: Groups, events: &[Value]) {
    let fates = [
        (0, "destroyed"),
        (1, "reset"),
        (2, "restarted"),
        (3, "restarted"),
        (4, "taken-over"),
        (5, "taken-over"),
        (6, "destroyed"),
        (7, "reset"),
        (8, "became-time-wait"),
        (9, "expired"),
    ];
    let mut certain = BTreeMap::<&str, usize>::new();
    for (number_of_group, fate) in fates {
        for port in groups.ports(number_of_group) {
            let of_port =
                |event: &&Value| [number(event, "local_port"), number(event, "remote_port")].contains(&port.into());
            // A sample may show a bucket while it is still in FIN_WAIT_2. Then the bucket has one more event, which is left out here.
            let is_fate = |event: &&Value| fate == "became-time-wait" || text(event, "event") != "became-time-wait";
            let events: Vec<&Value> = events.iter().filter(of_port).filter(is_fate).collect();
            let names: Vec<&str> = events.iter().map(|event| text(event, "event")).collect();
            assert_eq!(names.first(), Some(&"entered"), "{port}: {events:?}");
            assert_eq!(names.len(), 2, "{port}: {events:?}");
            // If nothing proves the event, twtool reports the uncertain event `gone` instead. For example, no counter proves a RST.
            assert!(
                names[1] == fate || (names[1] == "gone" && events[1]["certain"] == false),
                "{port} {fate}: {events:?}"
            );
            *certain.entry(fate).or_default() += usize::from(names[1] == fate && events[1]["certain"] == true);
        }
    }
    let size = groups.size;
    measured(format!("watch: certain events, of {size} or {} of each kind: {certain:?}", 2 * size));
    let all = |fate: &str| usize::from(size) * fates.iter().filter(|(_, name)| *name == fate).count();
    // On an idle machine, every event of these five kinds is certain (Linux 6.18, 2026-11-29). On a busy machine, a late sample makes some
    // events uncertain.
    for (fate, percent) in
        [("expired", 99), ("restarted", 99), ("became-time-wait", 99), ("taken-over", 90), ("destroyed", 90)]
    {
        assert!(certain[fate] * 100 >= all(fate) * percent, "{fate}: {certain:?}");
    }
}
