//! Compares `twtool capacity` with the kernel: in each situation, the number of further connect() calls that succeed is `free`, or is
//! less than `free` by at most `uncertain`.

use std::any::Any;
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use caps::Capability;
use seccompiler::SeccompCmpOp;
use serde_json::{Value, json};
use socket2::Socket;

use crate::support::bind::OpenSockets;
use crate::support::limits::{drop_capability, refuse};
use crate::support::outbound::{
    LOW, bound, buckets, close_client_first, connect, connect_with, count_connects_until_full, narrow_range, serve, set,
};
use crate::support::records::number;
use crate::support::situations::addr;
use crate::support::twtool::{Run, twtool};
use crate::support::{addresses, kernel, netns, not_checked, procfs, suite};
use twtool::sys::sysctl;

suite! {
    pure: [],
    netns: [
        the_whole_range_is_free_without_connections,
        connections_and_buckets_of_the_same_destination_take_ports,
        other_destinations_and_source_addresses_have_ports_of_their_own,
        buckets_are_reusable_according_to_tcp_tw_reuse,
        buckets_without_timestamps_or_in_fin_wait_2_are_not_reusable,
        the_timestamps_of_the_old_connection_decide_and_not_the_present_setting,
        reserved_ports_are_not_free,
        explicitly_bound_ports_are_not_free,
        ports_of_clients_that_called_bind_are_not_free,
        ports_of_servers_in_the_range_are_not_free,
        ipv6_and_ipv4_share_explicitly_bound_ports,
        mapped_clients_take_ports_of_ipv4,
        the_answer_covers_the_source_address_that_the_routes_choose,
        the_route_look_up_uses_no_port_of_the_range,
        sockets_of_an_interface_have_ports_of_their_own,
        one_port_of_a_range_with_an_odd_size_is_uncertain,
        the_port_test_sends_nothing_and_leaves_no_socket,
        without_a_probe_the_true_number_is_within_the_uncertainty,
        a_warning_names_the_reason_if_ports_cannot_be_tested,
        without_sock_diag_the_answer_is_the_same,
        the_kernels_counts_give_an_upper_bound_of_the_number_of_unlisted_sockets,
        a_plain_user_gets_an_answer_even_if_high_ports_are_privileged,
    ],
}

const SIZE: u16 = 16;

/// A namespace with a range of 16 ports, the addresses of the situations, and servers on ports 443 and 444.
struct World {
    servers: Vec<TcpListener>,
}

impl World {
    fn make() -> Self {
        for extra in ["10.0.0.1", "10.0.0.2", "2001:db8::1", "2001:db8::2"] {
            addresses::add(extra);
        }
        narrow_range(SIZE);
        let at = ["127.0.0.1:443", "127.0.0.1:444", "10.0.0.1:443", "[::1]:443", "[2001:db8::1]:443"];
        Self { servers: at.map(serve).into() }
    }

    fn server(&self, at: &str) -> &TcpListener {
        let is_it = |server: &&TcpListener| server.local_addr().expect("a name") == addr(at);
        self.servers.iter().find(is_it).unwrap_or_else(|| panic!("no server at {at}"))
    }

    fn open(count: usize, from: &str, to: &str) -> Vec<OpenSockets> {
        let from = Some(from.parse().expect("an address"));
        (0..count).map(|_| Box::new(connect(from, addr(to)).expect("a connection")) as OpenSockets).collect()
    }

    /// Makes buckets.
    fn closed(&self, count: usize, from: &str, to: &str) -> Vec<OpenSockets> {
        buckets(count, from, self.server(to));
        vec![]
    }

    /// Makes a connection of a client that has called bind(). With port 0 in `from`, the kernel chooses the port.
    fn bound_client(from: &str, to: &str) -> Socket {
        let client = bound(from);
        client.connect(&addr(to).into()).expect("a connection");
        client
    }
}

fn keep(one: impl Any) -> Vec<OpenSockets> {
    vec![Box::new(one)]
}

/// Runs twtool. A warning is allowed if twtool cannot test single ports on this kernel.
#[track_caller]
fn answered(args: &[&str]) -> Run {
    let run = twtool(args);
    if kernel::has_port_range_option() { run.ok() } else { run.code(0) }
}

fn ask(from: Option<&str>, to: &str, more: &[&str]) -> (Value, Run) {
    let from: Vec<&str> = from.into_iter().flat_map(|from| ["--from", from]).collect();
    let run = answered(&[&["capacity", "--json", "--to", to], from.as_slice(), more].concat());
    let destinations = run.records("destinations");
    assert_eq!(destinations.len(), 1, "{run}");
    (destinations[0].clone(), run)
}

/// Makes the situation in a new namespace, runs twtool, and then connects until no port is left. `expected` is the number of connects
/// that must succeed.
#[track_caller]
fn check(name: &str, make: fn(&World) -> Vec<OpenSockets>, from: &str, to: &str, expected: u64) {
    let (free, uncertain, further) = compare(name, make, from, to);
    assert_eq!(further, expected, "{name}: the connects that succeeded");
    if kernel::has_port_range_option() {
        assert_eq!((free, uncertain), (expected, 0), "{name}: free and uncertain");
    }
}

/// Like [`check`], with buckets that are too young to be taken over. On a kernel that compares ages in whole seconds, twtool must report
/// them as uncertain.
#[track_caller]
fn check_young(name: &str, make: fn(&World) -> Vec<OpenSockets>, from: &str, to: &str, expected: u64) {
    if kernel::has_exact_ages() {
        return check(name, make, from, to, expected);
    }
    let began = Instant::now();
    let (free, uncertain, _) = compare(name, make, from, to);
    if began.elapsed() > Duration::from_secs(1) {
        // After 1 s, connect() can certainly take the buckets over.
        return not_checked(format!("capacity, {name}: this machine is too slow for young buckets"));
    }
    assert!(free > expected && uncertain >= free - expected, "{name}: {free} free, {uncertain} uncertain");
}

/// Returns the number of free ports that twtool reports, by how much this number may be too high, and the number of connects that
/// succeed.
#[track_caller]
fn compare(name: &str, make: fn(&World) -> Vec<OpenSockets>, from: &str, to: &str) -> (u64, u64, u64) {
    netns::on_thread_in_new_namespace(|| {
        let world = World::make();
        let kept = make(&world);
        let before = procfs::sockets().len();
        let (destination, run) = ask(Some(from), to, &[]);
        assert_eq!(procfs::sockets().len(), before, "{name}: twtool leaves the sockets as they are");
        let from = Some(from.parse().expect("an address"));
        let further = count_connects_until_full(|| connect(from, addr(to)));
        drop(kept);
        let (free, uncertain) = (number(&destination, "free"), number(&destination, "uncertain"));
        let further = further as u64;
        let range = free - uncertain..=free;
        assert!(range.contains(&further), "{name}: {further} connects succeeded, twtool says {range:?}{run}");
        (free, uncertain, further)
    })
}

fn the_whole_range_is_free_without_connections() {
    check("IPv4", |_| vec![], "127.0.0.1", "127.0.0.1:443", 16);
    check("IPv6", |_| vec![], "::1", "[::1]:443", 16);
}

fn connections_and_buckets_of_the_same_destination_take_ports() {
    let open = |_: &World| World::open(3, "127.0.0.1", "127.0.0.1:443");
    check("established", open, "127.0.0.1", "127.0.0.1:443", 13);
    let closed = |w: &World| w.closed(5, "127.0.0.1", "127.0.0.1:443");
    check("TIME_WAIT", closed, "127.0.0.1", "127.0.0.1:443", 11);
    let both = |w: &World| {
        [w.closed(2, "::1", "[::1]:443"), World::open(3, "::1", "[::1]:443")].into_iter().flatten().collect()
    };
    check("both, IPv6", both, "::1", "[::1]:443", 11);
    let half = |w: &World| {
        let client = connect(None, addr("127.0.0.1:443")).expect("a connection");
        let accepted = w.server("127.0.0.1:443").accept().expect("a connection");
        drop(client);
        keep(accepted)
    };
    check("FIN_WAIT_2", half, "127.0.0.1", "127.0.0.1:443", 15);
    // If the kernel chose the port in bind(), a connect() that fails releases it.
    let refused = |_: &World| {
        let client = bound("127.0.0.1:0");
        client.connect(&addr("127.0.0.1:1").into()).expect_err("nobody listens");
        keep(client)
    };
    check("a refused client", refused, "127.0.0.1", "127.0.0.1:443", 16);
    netns::on_thread_in_new_namespace(|| {
        let _world = World::make();
        let kept = World::open(SIZE.into(), "127.0.0.1", "127.0.0.1:443");
        let (destination, _) = ask(Some("127.0.0.1"), "127.0.0.1:443", &[]);
        assert_eq!((&destination["free"], &destination["exhausted_in_ms"]), (&json!(0), &json!(0)));
        assert_eq!(count_connects_until_full(|| connect(None, addr("127.0.0.1:443"))), 0);
        drop(kept);
    });
}

fn other_destinations_and_source_addresses_have_ports_of_their_own() {
    let full = |_: &World| World::open(SIZE.into(), "127.0.0.1", "127.0.0.1:443");
    check("another port", full, "127.0.0.1", "127.0.0.1:444", 16);
    check("another address", full, "127.0.0.1", "10.0.0.1:443", 16);
    check("another source", full, "127.0.0.2", "127.0.0.1:443", 16);
    let closed = |w: &World| w.closed(9, "10.0.0.2", "10.0.0.1:443");
    check("another source, TIME_WAIT", closed, "10.0.0.1", "10.0.0.1:443", 16);
    check("the same source, TIME_WAIT", closed, "10.0.0.2", "10.0.0.1:443", 7);
}

/// Makes five buckets, and sets `tcp_tw_reuse` and the age of the buckets.
fn reusable<const MODE: u32, const OLD: bool, const IPV6: bool, const LOOPBACK: bool>(
    world: &World,
) -> Vec<OpenSockets> {
    let (from, to) = match (IPV6, LOOPBACK) {
        (false, false) => ("10.0.0.2", "10.0.0.1:443"),
        (false, true) => ("127.0.0.1", "127.0.0.1:443"),
        (true, false) => ("2001:db8::2", "[2001:db8::1]:443"),
        (true, true) => ("::1", "[::1]:443"),
    };
    world.closed(5, from, to);
    set("ipv4.tcp_tw_reuse", MODE);
    set_age(OLD);
    vec![]
}

/// Makes every bucket old enough to be taken over, or none.
fn set_age(old: bool) {
    if kernel::has_exact_ages() {
        set("ipv4.tcp_tw_reuse_delay", if old { 1 } else { 50_000 });
        // Longer than a timer tick of any kernel (at most 10 ms, with HZ=100). The age of a bucket has this resolution, because twtool
        // computes it from the timer.
        std::thread::sleep(std::time::Duration::from_millis(25));
    } else if old {
        // This kernel compares ages in whole seconds.
        std::thread::sleep(std::time::Duration::from_millis(1025));
    }
}

fn buckets_are_reusable_according_to_tcp_tw_reuse() {
    let (v4, lo4) = (("10.0.0.2", "10.0.0.1:443"), ("127.0.0.1", "127.0.0.1:443"));
    let (v6, lo6) = (("2001:db8::2", "[2001:db8::1]:443"), ("::1", "[::1]:443"));
    // The number at the start of each name is the value of tcp_tw_reuse.
    check("0", reusable::<0, true, false, true>, lo4.0, lo4.1, 11);
    check("1", reusable::<1, true, false, false>, v4.0, v4.1, 16);
    check_young("1, too young", reusable::<1, false, false, false>, v4.0, v4.1, 11);
    check("2, loopback", reusable::<2, true, false, true>, lo4.0, lo4.1, 16);
    check_young("2, too young", reusable::<2, false, false, true>, lo4.0, lo4.1, 11);
    check("2, no loopback", reusable::<2, true, false, false>, v4.0, v4.1, 11);
    check("0, IPv6", reusable::<0, true, true, true>, lo6.0, lo6.1, 11);
    check("1, IPv6", reusable::<1, true, true, false>, v6.0, v6.1, 16);
    check("2, IPv6 loopback", reusable::<2, true, true, true>, lo6.0, lo6.1, 16);
    check("2, IPv6, no loopback", reusable::<2, true, true, false>, v6.0, v6.1, 11);
    let one_end = |w: &World| {
        w.closed(4, "10.0.0.2", "127.0.0.1:443");
        reusable::<2, true, false, false>(w)
    };
    check("2, one end loopback", one_end, "10.0.0.2", "127.0.0.1:443", 16);
}

fn buckets_without_timestamps_or_in_fin_wait_2_are_not_reusable() {
    let bare = |w: &World| {
        set("ipv4.tcp_timestamps", 0);
        reusable::<1, true, false, true>(w)
    };
    check("no timestamps", bare, "127.0.0.1", "127.0.0.1:443", 11);
    let half = |w: &World| {
        let client = connect(None, addr("127.0.0.1:443")).expect("a connection");
        let accepted = w.server("127.0.0.1:443").accept().expect("a connection");
        drop(client);
        set("ipv4.tcp_tw_reuse", 1);
        set_age(true);
        keep(accepted)
    };
    if kernel::has_exact_ages() {
        check("FIN_WAIT_2, tcp_tw_reuse", half, "127.0.0.1", "127.0.0.1:443", 15);
    } else {
        // An older kernel may take such a bucket over, so twtool reports its port as uncertain.
        let (free, uncertain, further) = compare("FIN_WAIT_2, tcp_tw_reuse", half, "127.0.0.1", "127.0.0.1:443");
        assert!((free - uncertain..=free).contains(&further), "{further} in {free} - {uncertain}..={free}");
    }
    let explicit = |w: &World| {
        close_client_first(World::bound_client("127.0.0.1:40005", "127.0.0.1:443"), w.server("127.0.0.1:443"));
        reusable::<1, true, false, true>(w)
    };
    check("an explicitly bound client's bucket", explicit, "127.0.0.1", "127.0.0.1:443", 15);
}

fn the_timestamps_of_the_old_connection_decide_and_not_the_present_setting() {
    for (old, new) in [(1, 0), (0, 1)] {
        netns::on_thread_in_new_namespace(|| {
            narrow_range(1);
            set("ipv4.tcp_timestamps", old);
            let server = serve("127.0.0.1:443");
            buckets(1, "127.0.0.1", &server);
            set("ipv4.tcp_timestamps", new);
            set("ipv4.tcp_tw_reuse", 1);
            set_age(true);
            let again = connect(None, addr("127.0.0.1:443"));
            let expected = if old == 1 { None } else { Some(std::io::ErrorKind::AddrNotAvailable) };
            assert_eq!(again.err().map(|error| error.kind()), expected, "timestamps {old}, then {new}");
        });
    }
}

fn reserved_ports_are_not_free() {
    let reserve = |_: &World| {
        let list = format!("22,{LOW}-{},{},50000", LOW + 3, LOW + 10);
        sysctl::write("ipv4.ip_local_reserved_ports", &list).expect("the namespace is ours");
        vec![]
    };
    check("reserved", reserve, "127.0.0.1", "127.0.0.1:443", 11);
    check("reserved, IPv6", reserve, "::1", "[::1]:443", 11);
    // A port that is reserved and also bound counts once.
    let both = |_: &World| {
        let list = format!("{LOW}-{}", LOW + 3);
        sysctl::write("ipv4.ip_local_reserved_ports", &list).expect("the namespace is ours");
        keep([bound("127.0.0.9:40002"), bound("127.0.0.9:40007")])
    };
    check("reserved and bound", both, "127.0.0.1", "127.0.0.1:443", 11);
}

fn explicitly_bound_ports_are_not_free() {
    check("idle", |_| keep(bound("127.0.0.9:40003")), "127.0.0.1", "127.0.0.1:443", 15);
    check("idle, port 0", |_| keep(bound("127.0.0.9:0")), "127.0.0.1", "127.0.0.1:443", 15);
    check("idle, wildcard", |_| keep(bound("0.0.0.0:40003")), "127.0.0.1", "127.0.0.1:443", 15);
    check("idle outside the range", |_| keep(bound("127.0.0.9:50003")), "127.0.0.1", "127.0.0.1:443", 16);
    check("gone", |_| drop_now(bound("127.0.0.9:40003")), "127.0.0.1", "127.0.0.1:443", 16);
    let beside = |_: &World| {
        let kept = World::open(SIZE.into(), "127.0.0.1", "127.0.0.1:443");
        let socket = bound("127.0.0.9:40003");
        [kept, keep(socket)].into_iter().flatten().collect()
    };
    check("idle beside connections of others", beside, "127.0.0.1", "127.0.0.1:444", 15);
}

fn drop_now(socket: Socket) -> Vec<OpenSockets> {
    drop(socket);
    vec![]
}

fn ports_of_clients_that_called_bind_are_not_free() {
    let port_0 = |_: &World| keep(World::bound_client("127.0.0.9:0", "127.0.0.1:443"));
    check("bind() to port 0", port_0, "127.0.0.1", "127.0.0.1:443", 15);
    check("bind() to port 0, connect() over IPv6", port_0, "::1", "[::1]:443", 15);
    let port = |_: &World| keep(World::bound_client("127.0.0.9:40005", "127.0.0.1:443"));
    check("bind() to a port", port, "127.0.0.1", "10.0.0.1:443", 15);
    let gone = |w: &World| {
        close_client_first(World::bound_client("127.0.0.9:40005", "10.0.0.1:443"), w.server("10.0.0.1:443"));
        close_client_first(World::bound_client("127.0.0.9:0", "127.0.0.1:443"), w.server("127.0.0.1:443"));
        vec![]
    };
    check("their TIME_WAIT", gone, "127.0.0.1", "127.0.0.1:444", 14);
    let no_port = |_: &World| World::open(4, "127.0.0.9", "127.0.0.1:443");
    check("IP_BIND_ADDRESS_NO_PORT", no_port, "127.0.0.1", "127.0.0.1:443", 16);
}

/// A server at 127.0.0.77:40006, a client of this server with a port outside the range, and the accepted end of the connection.
fn accepted() -> (TcpListener, Socket, std::net::TcpStream) {
    let server = serve("127.0.0.77:40006");
    let client = bound("127.0.0.3:50000");
    client.connect(&addr("127.0.0.77:40006").into()).expect("a connection");
    let (accepted, _) = server.accept().expect("a connection");
    (server, client, accepted)
}

fn ports_of_servers_in_the_range_are_not_free() {
    check("a listener", |_| keep(serve("127.0.0.77:40006")), "127.0.0.1", "127.0.0.1:443", 15);
    check("with a connection", |_| keep(accepted()), "127.0.0.1", "127.0.0.1:443", 15);
    let orphan = |_: &World| {
        let (server, client, accepted) = accepted();
        drop(server);
        keep((client, accepted))
    };
    check("a connection whose listener is gone", orphan, "127.0.0.1", "127.0.0.1:443", 15);
    let bucket = |_: &World| {
        let (server, client, accepted) = accepted();
        drop(server);
        drop(accepted);
        drop(client);
        let closed = || procfs::time_wait().iter().any(|entry| entry.local.1 == 40006);
        while !closed() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        vec![]
    };
    check("a bucket whose listener is gone", bucket, "127.0.0.1", "127.0.0.1:443", 15);
}

fn ipv6_and_ipv4_share_explicitly_bound_ports() {
    check("IPv6 socket, connect() over IPv4", |_| keep(bound("[::1]:40003")), "127.0.0.1", "127.0.0.1:443", 15);
    check("IPv4 socket, connect() over IPv6", |_| keep(bound("127.0.0.9:40003")), "::1", "[::1]:443", 15);
    check("dual-stack listener", |_| keep(serve("[::]:40003")), "127.0.0.1", "127.0.0.1:443", 15);
    let v6only = |_: &World| {
        let socket = Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None).expect("a socket");
        socket.set_only_v6(true).expect("IPV6_V6ONLY");
        socket.bind(&addr("[::]:40003").into()).expect("bound");
        socket.listen(1).expect("listening");
        keep(socket)
    };
    check("listener of IPv6 only", v6only, "127.0.0.1", "127.0.0.1:443", 15);
}

fn mapped_clients_take_ports_of_ipv4() {
    let mapped = |w: &World| {
        let one = || connect(None, addr("[::ffff:127.0.0.1]:443")).expect("a connection");
        close_client_first(one(), w.server("127.0.0.1:443"));
        keep([one(), one()])
    };
    check("mapped", mapped, "127.0.0.1", "127.0.0.1:443", 13);
}

fn the_answer_covers_the_source_address_that_the_routes_choose() {
    let _world = World::make();
    let kept = World::open(3, "127.0.0.1", "127.0.0.1:443");
    let elsewhere = World::open(2, "127.0.0.1", "10.0.0.1:443");
    let run = answered(&["capacity", "--json", "--to", "10.0.0.1:443"]);
    // For connections to 10.0.0.1 the kernel chooses 10.0.0.1 as the source. Connections from another address are listed, too.
    let of = |one: &Value| (one["local_addr"].clone(), one["free"].clone());
    let expected = [(json!("127.0.0.1"), json!(14)), (json!("10.0.0.1"), json!(16))];
    assert_eq!(run.records("destinations").iter().map(of).collect::<Vec<_>>(), expected, "{run}");
    let (destination, run) = ask(None, "127.0.0.1:443", &[]);
    assert_eq!(destination["local_addr"], "127.0.0.1", "{run}");
    let further = count_connects_until_full(|| connect(None, addr("127.0.0.1:443")));
    assert_eq!((number(&destination, "free"), further), (13, 13), "{run}");
    let (destination, run) = ask(None, "[2001:db8::1]:443", &[]);
    let further = count_connects_until_full(|| connect(None, addr("[2001:db8::1]:443")));
    assert_eq!((number(&destination, "free"), further), (16, 16), "{run}");
    drop((kept, elsewhere));
}

fn the_route_look_up_uses_no_port_of_the_range() {
    let world = World::make();
    let low = sysctl::local_port_range().expect("the range").0.first().0;
    // No UDP port of the range is left. This must not affect the answer about TCP.
    let udp: Vec<_> =
        (low..low + SIZE).map(|port| std::net::UdpSocket::bind(("0.0.0.0", port)).expect("ours")).collect();
    for from in [None, Some("127.0.0.1")] {
        let (destination, run) = ask(from, "127.0.0.1:443", &[]);
        assert_eq!(number(&destination, "free"), 16, "{run}");
    }
    assert_eq!(count_connects_until_full(|| connect(None, addr("127.0.0.1:443"))), 16);
    drop(udp);
    // If every port is reserved, the answer is that no port is left.
    sysctl::write("ipv4.ip_local_reserved_ports", &format!("{low}-{}", low + SIZE - 1)).expect("ours");
    let (destination, run) = ask(None, "10.0.0.1:443", &[]);
    assert_eq!((number(&destination, "free"), &destination["exhausted_in_ms"]), (0, &json!(0)), "{run}");
    assert_eq!(count_connects_until_full(|| connect(None, addr("10.0.0.1:443"))), 0);
    twtool(["capacity", "--to", "10.0.0.1:443", "--min-free", "1"]).code(1);
    drop(world);
}

fn sockets_of_an_interface_have_ports_of_their_own() {
    let to: SocketAddr = addr("127.0.0.1:443");
    let on_lo = || connect_with(None, to, |socket| socket.bind_device(Some(b"lo")));
    let _world = World::make();
    // The plain socket comes first. In the opposite order, it could get the port of a socket on lo.
    let plain = connect(None, to).expect("a connection");
    let kept = [on_lo().expect("a connection"), on_lo().expect("a connection")];
    let run = answered(&["capacity", "--json", "--to", "127.0.0.1:443"]);
    let of = |one: &Value| (one["interface"].clone(), number(one, "free"), number(one, "established"));
    // A socket on lo cannot use the port of the plain socket (16 - 1 - 2 are left). A plain socket can use the ports of the sockets on
    // lo (16 - 1 are left).
    let expected = [(json!("lo"), 13, 2), (Value::Null, 15, 1)];
    assert_eq!(run.records("destinations").iter().map(of).collect::<Vec<_>>(), expected, "{run}");
    assert_eq!(count_connects_until_full(on_lo), 13);
    assert_eq!(count_connects_until_full(|| connect(None, to)), 15);
    drop((kept, plain));
}

fn one_port_of_a_range_with_an_odd_size_is_uncertain() {
    for size in [15, 17, 3] {
        netns::on_thread_in_new_namespace(|| {
            narrow_range(size);
            let _server = serve("127.0.0.1:443");
            let (destination, run) = ask(None, "127.0.0.1:443", &[]);
            let (free, uncertain) = (number(&destination, "free"), number(&destination, "uncertain"));
            assert_eq!(free, u64::from(size), "{run}");
            // connect() tries an even number of ports (`__inet_hash_connect`), so it may miss one port of this range.
            assert!(uncertain == 1 || !kernel::has_port_range_option() && uncertain > 1, "{run}");
            let further = count_connects_until_full(|| connect(None, addr("127.0.0.1:443"))) as u64;
            assert!((free - uncertain..=free).contains(&further), "{further} succeeded{run}");
        });
    }
}

fn the_port_test_sends_nothing_and_leaves_no_socket() {
    kernel::needs(kernel::has_port_range_option(), "IP_LOCAL_PORT_RANGE");
    let world = World::make();
    world.closed(3, "127.0.0.1", "127.0.0.1:443");
    close_client_first(World::bound_client("127.0.0.9:40005", "127.0.0.1:443"), world.server("127.0.0.1:443"));
    let file = |name: &str| std::fs::read_to_string(format!("/proc/thread-self/net/{name}")).expect("counters");
    let all = || (file("dev"), file("snmp"), procfs::sockets().len());
    let before = all();
    let run = twtool(["capacity", "--json", "--to", "127.0.0.1:444"]).ok();
    assert_eq!(run.json()["explicitly_bound_ports"], "40005", "the port test ran{run}");
    assert_eq!(all(), before, "no packet, no connection, no socket");
}

fn without_a_probe_the_true_number_is_within_the_uncertainty() {
    kernel::needs(kernel::has_port_range_option(), "IP_LOCAL_PORT_RANGE");
    kernel::needs(kernel::lists_bound_sockets(), "list of sockets that are only bound");
    let _world = World::make();
    let kept =
        [World::bound_client("127.0.0.9:0", "127.0.0.1:443"), World::bound_client("127.0.0.9:0", "127.0.0.1:443")];
    let plain = World::open(3, "127.0.0.1", "127.0.0.1:443");
    let (probed, _) = ask(Some("127.0.0.1"), "127.0.0.1:443", &[]);
    let (destination, run) = ask(Some("127.0.0.1"), "127.0.0.1:443", &["--no-probe"]);
    assert_eq!((&probed["free"], &probed["uncertain"]), (&json!(11), &json!(0)));
    assert_eq!((&destination["free"], &destination["uncertain"]), (&json!(13), &json!(2)), "{run}");
    // Whether 12 ports are free depends on the uncertain ports.
    let ask = |minimum: &'static str, probe: &'static [&'static str]| {
        twtool([&["capacity", "--to", "127.0.0.1:443", "--from", "127.0.0.1", "--min-free", minimum], probe].concat())
    };
    ask("12", &["--no-probe"]).code(2);
    ask("11", &["--no-probe"]).code(0);
    ask("14", &["--no-probe"]).code(1);
    ask("12", &[]).code(1);
    ask("11", &[]).code(0);
    drop((kept, plain));
}

fn a_warning_names_the_reason_if_ports_cannot_be_tested() {
    kernel::needs(kernel::has_port_range_option(), "IP_LOCAL_PORT_RANGE");
    kernel::needs(kernel::lists_bound_sockets(), "list of sockets that are only bound");
    let world = World::make();
    let kept = World::bound_client("127.0.0.9:0", "127.0.0.1:443");
    // twtool tests a port with a connect() that delays its SYN (TCP_FASTOPEN_CONNECT). This works only with the client flag of
    // tcp_fastopen.
    set("ipv4.tcp_fastopen", 0);
    let run = twtool(["capacity", "--json", "--to", "127.0.0.1:444"]).code(0).says("TCP_FASTOPEN_CONNECT");
    let destination = run.records("destinations").remove(0);
    assert_eq!((&destination["free"], &destination["uncertain"]), (&json!(16), &json!(1)), "{run}");
    let uncertain = (run.json()["uncertain"].clone(), run.json()["explicitly_bound"].clone());
    assert_eq!(uncertain, (json!(1), json!(0)), "{run}");
    assert_eq!(count_connects_until_full(|| connect(None, addr("127.0.0.1:444"))), 15);
    drop((kept, world));
}

fn without_sock_diag_the_answer_is_the_same() {
    const NETLINK_SOCK_DIAG: u64 = 4;
    kernel::needs(kernel::has_port_range_option(), "IP_LOCAL_PORT_RANGE");
    let _world = World::make();
    let kept = [bound("127.0.0.9:40003"), World::bound_client("127.0.0.9:0", "127.0.0.1:443")];
    let open = World::open(3, "127.0.0.1", "127.0.0.1:443");
    refuse(libc::SYS_socket, Some((2, SeccompCmpOp::Eq, NETLINK_SOCK_DIAG)), libc::EPERM);
    // /proc/net/tcp does not list sockets that are only bound, so twtool tests every port.
    let run =
        twtool(["capacity", "--json", "--to", "127.0.0.1:443", "--from", "127.0.0.1"]).code(0).says("/proc/net/tcp");
    let destination = run.records("destinations").remove(0);
    assert_eq!((run.json()["source"].clone(), run.json()["explicitly_bound"].clone()), (json!("procfs"), json!(2)));
    let further = count_connects_until_full(|| connect(None, addr("127.0.0.1:443")));
    assert_eq!((number(&destination, "free"), further), (11, 11), "{run}");
    drop((kept, open));
}

/// Waits until the kernel counts this many sockets in the namespace. The kernel counts a netlink socket for 17-40 ms after it is closed
/// (Linux 6.18, 2026-11-29), so the sockets that made the addresses of a [`World`] are counted at first.
fn wait_until_used_sockets_are(expected: usize) {
    let began = Instant::now();
    loop {
        let counts = std::fs::read_to_string("/proc/thread-self/net/sockstat").expect("counts");
        if counts.lines().next() == Some(&format!("sockets: used {expected}")) {
            return;
        }
        assert!(began.elapsed() < kernel::patience(Duration::from_secs(5)), "expected {expected} sockets: {counts}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn the_kernels_counts_give_an_upper_bound_of_the_number_of_unlisted_sockets() {
    const NETLINK_SOCK_DIAG: u64 = 4;
    let world = World::make();
    // /proc/net/tcp does not list sockets that are only bound. Without the client flag of tcp_fastopen, twtool cannot test ports to find
    // these sockets.
    refuse(libc::SYS_socket, Some((2, SeccompCmpOp::Eq, NETLINK_SOCK_DIAG)), libc::EPERM);
    set("ipv4.tcp_fastopen", 0);
    let range = || -> (u64, u64) {
        let run = twtool(["capacity", "--json", "--to", "127.0.0.1:443", "--from", "127.0.0.1"]).code(0);
        let destination = run.records("destinations").remove(0);
        let (free, uncertain) = (number(&destination, "free"), number(&destination, "uncertain"));
        assert_eq!(
            run.json()["uncertain"],
            json!(uncertain),
            "without connections, the destination is as uncertain as the whole range{run}"
        );
        (free - uncertain, free)
    };
    wait_until_used_sockets_are(world.servers.len());
    let (least, most) = range();
    assert_eq!(most, 16);
    assert!(least > 8, "nearly every socket of this namespace is listed: {least}");
    let idle = [bound("127.0.0.9:40003"), bound("[::1]:40004"), bound("127.0.0.9:0")];
    let (less, most) = range();
    // The three sockets lower the smallest possible number of free ports by 3. If the first run counted one more socket, which has
    // ended since, the difference is 2.
    assert!(less + 2 <= least, "{least} without the three sockets, {less} with them");
    let further = count_connects_until_full(|| connect(None, addr("127.0.0.1:443"))) as u64;
    assert!(further == 13 && (less..=most).contains(&further), "{further} in {less}..={most}");
    drop(idle);
}

fn a_plain_user_gets_an_answer_even_if_high_ports_are_privileged() {
    let _world = World::make();
    drop_capability(Capability::CAP_NET_BIND_SERVICE);
    // The kernel does not accept privileged ports within the range, so the range is above them.
    sysctl::write("ipv4.ip_local_port_range", "65400 65415").expect("the namespace is ours");
    for start in [65_300, 65_400] {
        set("ipv4.ip_unprivileged_port_start", start);
        for from in [None, Some("127.0.0.1")] {
            let (destination, run) = ask(from, "127.0.0.1:443", &[]);
            assert_eq!(number(&destination, "free"), 16, "{run}");
        }
    }
    assert_eq!(count_connects_until_full(|| connect(None, addr("127.0.0.1:443"))), 16);
}
