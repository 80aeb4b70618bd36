//! Tests, without a kernel, how many ports are left for a destination.

use super::*;
use crate::model::command::{Caller, RootPower, Shell};
use crate::model::facts::tests::facts;
use crate::model::socket::{FourTuple, FullSocket, Socket, TcpState, TimeWaitBucket};
use crate::model::tw_reuse::ReuseMode;
use sockets::tests::{LOW, full};

const TO: (&str, u16) = ("192.0.2.1", 443);
const FROM: &str = "192.0.2.9";

fn tuple(local_port: u16) -> FourTuple {
    let end = |addr: &str, port| (addr.parse().expect(addr), Port(port));
    FourTuple::new(end(FROM, local_port), end(TO.0, TO.1))
}

fn bucket(local_port: u16, expires_ms: u32) -> Socket {
    let tuple = tuple(local_port);
    Socket::Bucket(TimeWaitBucket { tuple, fin_wait_2: false, expires_ms, interface: None, mark: None, cookie: None })
}

fn off() -> TwReuse {
    TwReuse { mode: Some(ReuseMode::Off), delay: Duration::from_secs(1), whole_seconds: false, timestamps: Some(true) }
}

fn on(delay_ms: u64) -> TwReuse {
    TwReuse { mode: Some(ReuseMode::On), delay: Duration::from_millis(delay_ms), ..off() }
}

fn destinations_of(size: u16, reuse: TwReuse, found: &[Socket], uncertain: &[u16]) -> Vec<Destination> {
    let range = PortRange::new(Port(LOW), Port(LOW + size - 1)).expect("forwards");
    let mut sockets = RangeSockets::new(range);
    for socket in found {
        sockets.add(socket);
    }
    let uncertain = uncertain.iter().copied().map(Port).collect();
    let pool = Pool::new(range, &LocalReservedPorts::default(), &sockets.bound().clone(), &uncertain, 0);
    let conditions = Conditions { pool: &pool, reuse, length: Length::learn(None, sockets.largest_expiry_ms()) };
    destinations(sockets, &conditions, &DestinationFilter::default(), None)
}

fn one(size: u16, reuse: TwReuse, found: &[Socket]) -> Destination {
    let mut all = destinations_of(size, reuse, found, &[]);
    assert_eq!(all.len(), 1);
    all.remove(0)
}

#[test]
fn a_pool_counts_each_port_once() {
    let range = PortRange::new(Port(100), Port(115)).expect("forwards");
    let reserved = LocalReservedPorts(PortRange::new(Port(90), Port(103)).into_iter().collect());
    let ports = |numbers: &[u16]| numbers.iter().copied().map(Port).collect::<PortSet>();
    let pool = Pool::new(range, &reserved, &ports(&[103, 104, 200]), &ports(&[100, 104, 105, 300]), 0);
    assert_eq!((pool.reserved.to_string().as_str(), pool.explicitly_bound.to_string().as_str()), ("100-103", "104"));
    assert_eq!((pool.uncertain.to_string().as_str(), pool.size), ("105", 11));
}

#[test]
fn a_bucket_is_reusable_when_its_age_reaches_the_delay() {
    // Four buckets: three are 2 s, 600 ms and 100 ms old, and the timer of the fourth has run out.
    let found = [bucket(LOW, 58_000), bucket(LOW + 1, 59_400), bucket(LOW + 2, 59_900), bucket(LOW + 3, 0)];
    let counts = |reuse| {
        let Destination { free, time_wait, reusable, reusable_within_1s, .. } = one(16, reuse, &found);
        (free, time_wait, reusable, reusable_within_1s)
    };
    assert_eq!(counts(off()), (12, 4, Some(0), Some(0)));
    assert_eq!(counts(on(1000)), (14, 4, Some(2), Some(4)));
    assert_eq!(counts(on(1500)), (14, 4, Some(2), Some(3)));
    assert_eq!(counts(on(0)), (16, 4, Some(4), Some(4)));
    assert_eq!(counts(TwReuse { timestamps: Some(false), ..on(0) }), (12, 4, Some(0), Some(0)));
    assert_eq!(counts(TwReuse { timestamps: None, ..on(0) }), (12, 4, None, None), "not known, so not free");
    assert_eq!(counts(TwReuse { mode: Some(ReuseMode::LoopbackOnly), ..on(0) }), (12, 4, Some(0), Some(0)));
}

#[test]
fn a_bucket_is_perhaps_reusable_if_the_kernel_compares_whole_seconds() {
    let half = |local_port| {
        let Socket::Bucket(bucket) = bucket(local_port, 59_000) else { unreachable!("a bucket") };
        Socket::Bucket(TimeWaitBucket { fin_wait_2: true, ..bucket })
    };
    // Five buckets: three are 2 s, 1 s and 600 ms old, and two more are in FIN_WAIT_2. The port of one of these two also has an
    // open connection.
    let found = [
        bucket(LOW, 58_000),
        bucket(LOW + 1, 59_000),
        bucket(LOW + 2, 59_400),
        half(LOW + 3),
        half(LOW + 4),
        full(FROM, LOW + 4, TO.0, TO.1, TcpState::Established),
    ];
    let whole = TwReuse { whole_seconds: true, ..on(1000) };
    let counts = |reuse, uncertain: &[u16]| {
        let Destination { free, uncertain, reusable, .. } = destinations_of(16, reuse, &found, uncertain)[0];
        (free, uncertain, reusable)
    };
    assert_eq!(counts(on(1000), &[]), (13, 0, Some(2)));
    assert_eq!(counts(whole, &[]), (15, 2, Some(2)));
    assert_eq!(counts(whole, &[LOW + 2, LOW + 4, LOW + 9]), (15, 3, Some(2)), "each port counts once");
    assert_eq!(counts(TwReuse { mode: Some(ReuseMode::Off), ..whole }, &[]), (11, 0, Some(0)));
}

#[test]
fn each_unlisted_socket_makes_one_more_port_uncertain() {
    let range = PortRange::new(Port(LOW), Port(LOW + 15)).expect("forwards");
    let uncertain = [Port(LOW)].into_iter().collect();
    let counts = |found: &[Socket], unlisted| {
        let mut sockets = RangeSockets::new(range);
        for socket in found {
            sockets.add(socket);
        }
        let pool = Pool::new(range, &LocalReservedPorts::default(), &PortSet::default(), &uncertain, unlisted);
        let conditions = Conditions { pool: &pool, reuse: off(), length: Length::learn(None, None) };
        let one = &destinations(sockets, &conditions, &DestinationFilter::default(), None)[0];
        (one.free, one.uncertain, pool.most_uncertain())
    };
    let open = |port| full(FROM, port, TO.0, TO.1, TcpState::Established);
    assert_eq!(counts(&[open(LOW + 1)], 3), (15, 4, 4));
    assert_eq!(counts(&[open(LOW)], 3), (15, 3, 4));
    assert_eq!(counts(&[open(LOW)], u32::MAX), (15, 15, 16));
}

#[test]
fn a_port_that_is_also_bound_is_not_reusable() {
    let found =
        [full("127.0.0.1", LOW, "0.0.0.0", 0, TcpState::BoundInactive), bucket(LOW, 10_000), bucket(LOW + 1, 10_000)];
    let destination = one(16, on(1), &found);
    assert_eq!((destination.free, destination.time_wait, destination.reusable), (15, 2, Some(1)));
}

#[test]
fn closes_per_s_covers_the_last_minute_and_closes_per_s_now_the_last_10_s() {
    // 50 closes, one per second, the last of them 10.5 s ago. Then 5 closes per second.
    let mut found: Vec<Socket> = (0..50).map(|i| bucket(LOW + i, 49_500 - u32::from(i) * 1000)).collect();
    found.extend((0..50).map(|i| bucket(LOW + 100 + i, 59_900 - u32::from(i) * 200)));
    let destination = one(1000, off(), &found);
    assert_eq!((destination.closes_per_s, destination.closes_per_s_now), (Some(100.0 / 60.0), Some(5.0)));
    assert_eq!(destination.sustainable_per_s, Some(1000.0 / 60.0));
    assert_eq!(destination.exhausted_in, None, "5 closes per second need 300 ports for 60 s each, and 900 are free");
    // If connect() can take over buckets after 2 s, the rate of the last 2 s counts, and the sustainable rate is higher.
    let destination = one(1000, on(2000), &found);
    assert_eq!((destination.closes_per_s_now, destination.sustainable_per_s), (Some(5.0), Some(500.0)));
    let destination = one(1000, on(0), &found);
    assert_eq!((destination.closes_per_s_now, destination.sustainable_per_s), (None, None));
}

#[test]
fn a_present_rate_above_the_sustainable_rate_gives_the_time_of_exhaustion() {
    // 50 closes in the last 10 s; the first port is released in 50 s. Of 200 ports, 150 are left, which last for 30 s.
    let found: Vec<Socket> = (0..50).map(|i| bucket(LOW + i, 59_900 - u32::from(i) * 200)).collect();
    assert_eq!(one(200, off(), &found).exhausted_in, Some(Duration::from_secs(30)));
    assert_eq!(one(200, on(1000), &found).exhausted_in, None, "connect() can take over each bucket after a second");
    assert_eq!(one(50, off(), &found).exhausted_in, Some(Duration::ZERO));
}

#[test]
fn an_uncertain_port_counts_only_if_it_is_free_for_the_destination() {
    let found = [bucket(LOW, 10_000), bucket(LOW + 1, 10_000)];
    let uncertain = |size, ports: &[u16]| destinations_of(size, off(), &found, ports)[0].uncertain;
    assert_eq!((uncertain(16, &[]), uncertain(16, &[LOW, LOW + 5]), uncertain(16, &[LOW + 20])), (0, 1, 0));
    // In a range with an odd number of ports, the kernel may skip the highest or the lowest port.
    assert_eq!((uncertain(17, &[]), uncertain(17, &[LOW + 5])), (1, 2));
    assert_eq!(
        destinations_of(3, off(), &[bucket(LOW, 1), bucket(LOW + 2, 1)], &[])[0].uncertain,
        0,
        "both are in use"
    );
    assert_eq!(destinations_of(1, off(), &[bucket(LOW, 1)], &[])[0].uncertain, 0);
}

#[test]
fn the_destination_that_runs_out_first_comes_before_one_with_fewer_free_ports() {
    // The traffic to the first destination began 3 s ago, with 10 closes per second.
    let burst = (0..30).map(|i| bucket(LOW + i, 59_900 - u32::from(i) * 90));
    let idle = (0..60).map(|i| full(FROM, LOW + i, TO.0, 1, TcpState::Established));
    let all = destinations_of(100, off(), &burst.chain(idle).collect::<Vec<_>>(), &[]);
    let shown = all.iter().map(|one| (one.ends.remote_port.0, one.free, one.exhausted_in.map(|time| time.as_secs())));
    assert_eq!(shown.collect::<Vec<_>>(), [(TO.1, 70, Some(7)), (1, 40, None)]);
}

#[test]
fn destinations_with_fewer_free_ports_come_first_and_the_requested_destination_is_always_included() {
    let other = |port, to_port| full(FROM, port, TO.0, to_port, TcpState::Established);
    let found = [other(LOW, 1), other(LOW, 2), other(LOW + 1, 2), other(LOW + 2, 2), other(LOW + 1, 1), other(LOW, 3)];
    let ports = |all: &[Destination]| all.iter().map(|one| (one.ends.remote_port.0, one.free)).collect::<Vec<_>>();
    let all = destinations_of(16, off(), &found, &[]);
    assert_eq!(ports(&all), [(2, 13), (1, 14), (3, 15)]);

    let range = PortRange::new(Port(LOW), Port(LOW + 15)).expect("forwards");
    let pool = Pool::new(range, &LocalReservedPorts::default(), &PortSet::default(), &PortSet::default(), 0);
    let conditions = Conditions { pool: &pool, reuse: off(), length: Length::learn(None, None) };
    let wanted = DestinationFilter { remote_port: Some(Port(9)), ..DestinationFilter::default() };
    let also = ConnectionEnds { remote_port: Port(9), ..all[0].ends };
    assert_eq!(ports(&destinations(RangeSockets::new(range), &conditions, &wanted, Some(also))), [(9, 16)]);
    assert!(destinations(RangeSockets::new(range), &conditions, &wanted, None).is_empty());
}

#[test]
fn a_minimum_is_a_number_or_a_share_of_the_pool() {
    let missed =
        |min: MinFree| [(0, 0), (0, 10), (1, 10), (2, 10), (10, 10)].map(|(free, pool)| min.is_missed(free, pool));
    assert_eq!(missed(MinFree::Ports(2)), [true, true, true, false, false]);
    assert_eq!(missed(MinFree::Percent(20)), [true, true, true, false, false]);
    assert_eq!(missed(MinFree::Percent(0)), [false; 5]);
    assert_eq!(missed(MinFree::Percent(100)), [true, true, true, true, false]);
}

#[test]
fn advice_names_what_uses_the_ports_and_the_settings_that_help() {
    let found: Vec<Socket> = (0..15).map(|i| bucket(LOW + i, 1000)).collect();
    let range = PortRange::new(Port(LOW), Port(LOW + 15)).expect("forwards");
    let advice = |found: &[Socket], bound: &[u16], reuse: TwReuse| {
        let mut sockets = RangeSockets::new(range);
        for socket in found {
            sockets.add(socket);
        }
        let bound = bound.iter().copied().map(Port).collect();
        let pool = Pool::new(range, &LocalReservedPorts::default(), &bound, &PortSet::default(), 0);
        let conditions = Conditions { pool: &pool, reuse, length: Length::learn(None, None) };
        let all = destinations(sockets, &conditions, &DestinationFilter::default(), None);
        let caller = Caller {
            root: true,
            power: RootPower::default(),
            in_initial_netns: true,
            twtool: String::new(),
            twtool_for_root: String::new(),
            arguments: vec![],
        };
        let help = advice::advise(&all, &conditions, &facts(), &Shell { netns: None, caller });
        let commands = help.commands.into_iter().map(|step| step.command);
        help.advice.into_iter().chain(commands).collect::<Vec<_>>().join("\n")
    };
    let short = advice(&found, &[], off());
    for part in [
        "15 ports are in TIME_WAIT",
        "RFC 9112",
        "IP_BIND_ADDRESS_NO_PORT",
        "sysctl -w 'net.ipv4.ip_local_port_range=1024 65535'",
        "tcp_tw_reuse is 0",
        "sysctl -w net.ipv4.tcp_tw_reuse=1",
    ] {
        assert!(short.contains(part), "{part}: {short}");
    }
    assert!(!short.contains("explicitly"), "{short}");
    assert_eq!(advice(&found[..5], &[], off()), "", "11 of 16 are left");
    let bound = advice(&found[..5], &[LOW + 9], off());
    assert!(bound.starts_with("1 port of the range is bound explicitly by a socket (40009)"), "{bound}");
    let untimed = advice(&found, &[], TwReuse { timestamps: Some(false), ..off() });
    assert!(!untimed.contains("With 1") && untimed.contains("tcp_timestamps=1"), "{untimed}");
    let open: Vec<Socket> = (0..15).map(|i| full(FROM, LOW + i, TO.0, TO.1, TcpState::Established)).collect();
    assert!(advice(&open, &[], off()).contains(
        "From 192.0.2.9 to 192.0.2.1:443, 15 ports are in use by open connections, and 0 ports by TIME_WAIT"
    ));
    let mut half_closed = open;
    half_closed.truncate(10);
    half_closed.extend((10..15).map(|i| full(FROM, LOW + i, TO.0, TO.1, TcpState::FinWait2)));
    let mixed = advice(&half_closed, &[], off());
    assert!(mixed.contains("10 ports are in use by open connections, 5 ports by sockets in other states"), "{mixed}");
    assert!(mixed.contains("until both ends have closed"), "{mixed}");
}

#[test]
fn sockets_in_other_states_hold_ports_but_do_not_count_as_closes() {
    let half = Socket::Bucket(TimeWaitBucket {
        tuple: tuple(LOW),
        fin_wait_2: true,
        expires_ms: 59_000,
        interface: None,
        mark: None,
        cookie: None,
    });
    let Socket::Full(open) = full(FROM, LOW + 1, TO.0, TO.1, TcpState::CloseWait) else { unreachable!() };
    let sent = Socket::Full(FullSocket { state: TcpState::SynSent, tuple: tuple(LOW + 2), ..open });
    let destination = one(16, on(1), &[half, Socket::Full(open), sent]);
    let Destination { established, time_wait, other, free, closes_per_s, .. } = destination;
    assert_eq!((established, time_wait, other, free, closes_per_s), (0, 0, 3, 13, Some(0.0)));
}
