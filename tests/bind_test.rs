//! `twtool bind-test` in real situations: the verdict, cause, holders (sockets on the port), advice and exit code of each. Every attempt
//! of twtool must have the same result as the same bind by the test. support/bind.rs checks one situation.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use caps::Capability;
use nix::sys::socket::setsockopt;
use nix::{setsockopt_impl, sockopt_impl};
use serde_json::json;
use socket2::{Domain, Socket, Type};
use twtool::lab::{ActiveCloser, Connection, Server};
use twtool::model::bind::ReuseOptions;
use twtool::sys::sysctl;

use crate::support::bind::{BindCase, KEYS, OpenSockets, bind, bind_case, check_all};
use crate::support::commands;
use crate::support::limits::{drop_capability, refuse_ipv6};
use crate::support::records::{number, text};
use crate::support::situations::{self, addr, connect, connect_from};
use crate::support::twtool::{Keys, twtool};
use crate::support::{kernel, not_checked, procfs, services, suite};

suite! {
    pure: [],
    netns: [
        the_bucket_of_a_server_is_reusable_if_the_old_and_the_new_socket_share_an_option,
        the_bucket_of_a_client_without_reuseaddr_blocks_and_the_advice_reserves_an_ephemeral_port,
        the_advised_reservation_keeps_clients_off_the_port,
        fin_wait_2_buckets_block_as_time_wait_buckets_do,
        listeners_block_the_addresses_that_they_cover,
        the_table_names_the_bind_that_a_socket_blocks,
        connections_block_unless_both_sockets_set_reuseaddr,
        an_ipv6_connection_of_a_dual_stack_server_blocks_the_ipv4_wildcard,
        sockets_that_are_only_bound_are_listed,
        only_with_so_reuseport_two_bound_sockets_can_both_listen,
        the_worst_holder_and_the_worst_address_decide,
        the_verdict_is_denied_if_the_failure_is_not_about_other_sockets,
        port_0_lets_the_kernel_choose_the_port,
        a_port_with_two_hundred_buckets_is_free_when_the_last_one_ends,
        family_flags_choose_among_the_default_addresses,
        arguments_that_cannot_be_tested_are_refused,
        a_mistyped_option_is_named,
        ndjson_is_the_payload_on_one_line,
        the_name_of_a_service_is_accepted_as_port,
    ],
}

const NONE: ReuseOptions = ReuseOptions::NONE;
const REUSEADDR: ReuseOptions = ReuseOptions::REUSEADDR;
const REUSEPORT: ReuseOptions = ReuseOptions::REUSEPORT;
const BOTH: ReuseOptions = ReuseOptions::BOTH;

fn an_ipv6_connection_of_a_dual_stack_server_blocks_the_ipv4_wildcard() {
    let dual = || Server::listen(addr("[::]:8080"), NONE).expect("listening");
    let open = connect(&dual(), "[::1]:8080");
    let answer = |at: &str| twtool(["bind-test", "8080", "--addr", at, "--json"]).json();
    let of = |at: &str| {
        let document = answer(at);
        let blocks = document["holders"].as_array().expect("holders").iter().any(|one| one["blocks"] == true);
        assert!(
            !document["warnings"].to_string().contains("not consistent, although twtool tried three times"),
            "{document}"
        );
        (document["cause"].as_str().expect("a cause").to_owned(), blocks)
    };
    assert_eq!([of("0.0.0.0"), of("127.0.0.1")], [("connection".into(), true), ("none".into(), false)]);
    open.close(ActiveCloser::Server).expect("a bucket");
    let blocked = ("time-wait-without-reuseaddr".to_owned(), true);
    assert_eq!([of("0.0.0.0"), of("127.0.0.1"), of("::1")], [blocked.clone(), ("none".into(), false), blocked]);
    assert!(number(&answer("0.0.0.0"), "free_in_ms") > 50_000);
    let wait =
        twtool(["wait", "8080", "--addr", "0.0.0.0", "--with", "none", "--timeout", "0", "--json"]).code(1).json();
    assert_eq!(
        (&wait["cause"], wait["blocked_by"].as_array().map(Vec::len)),
        (&json!("time-wait-without-reuseaddr"), Some(1))
    );
}

fn nothing() -> OpenSockets {
    Box::new(())
}

fn set(setting: &str, value: &str) {
    sysctl::write(setting, value).unwrap_or_else(|error| panic!("writing {setting}: {error}"));
}

#[track_caller]
fn server(at: &str, options: ReuseOptions) -> Server {
    Server::listen(addr(at), options).unwrap_or_else(|error| panic!("listening on {at}: {error}"))
}

/// Leaves the bucket of a server that had these options, closed a connection first, and ended.
#[track_caller]
fn left_by(at: &str, options: ReuseOptions) -> OpenSockets {
    let server = server(at, options);
    connect(&server, at).close(ActiveCloser::Server).expect("a bucket");
    drop(server);
    nothing()
}

#[track_caller]
fn bound(at: &str, options: ReuseOptions) -> Socket {
    let socket = twtool::sys::bind::socket(addr(at).ip(), options).expect("a socket");
    socket.bind(&addr(at).into()).unwrap_or_else(|error| panic!("binding {at}: {error}"));
    socket
}

fn v6only_listener(at: &str) -> Server {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, None).expect("a socket");
    socket.set_only_v6(true).expect("IPV6_V6ONLY");
    Server::listen_on(socket, addr(at)).expect("a server")
}

/// A connection that stays open after its listener is closed.
fn connection(at: &str, options: ReuseOptions) -> OpenSockets {
    let server = server(at, options);
    let connection = connect(&server, at);
    drop(server);
    Box::new((connection.client, connection.server))
}

fn the_bucket_of_a_server_is_reusable_if_the_old_and_the_new_socket_share_an_option() {
    let reusable = |name, make, args| bind_case(name, make, args).is("reusable", "time-wait").held("time-wait", true);
    let blocked = |name, make, args| {
        bind_case(name, make, args).is("blocked", "time-wait-without-reuseaddr").held("time-wait", true)
    };
    // The cause depends on the result with SO_REUSEADDR, whatever the value of --with is.
    let avoidable = |name, make, args| bind_case(name, make, args).is("blocked", "time-wait").held("time-wait", true);
    let shared = |name, make, args| {
        bind_case(name, make, args).is("reusable", "time-wait-without-reuseaddr").held("time-wait", true)
    };
    let plain: fn() -> OpenSockets = || left_by("127.0.0.1:8080", NONE);
    let reuseaddr: fn() -> OpenSockets = || left_by("127.0.0.1:8080", REUSEADDR);
    let reuseport: fn() -> OpenSockets = || left_by("127.0.0.1:8080", REUSEPORT);
    let both: fn() -> OpenSockets = || left_by("127.0.0.1:8080", BOTH);
    check_all(&[
        bind_case("no socket on the port", nothing, "8080"),
        bind_case("no socket on the port, and listen()", nothing, "8080 --listen"),
        reusable("old server with SO_REUSEADDR", reuseaddr, "8080").advises("SO_REUSEADDR"),
        reusable("old server with SO_REUSEADDR, and listen()", reuseaddr, "8080 --listen").advises("SO_REUSEADDR"),
        reusable("old SO_REUSEADDR, new both", reuseaddr, "8080 --with both"),
        avoidable("old SO_REUSEADDR, new none", reuseaddr, "8080 --with none").advises("Set SO_REUSEADDR"),
        avoidable("old SO_REUSEADDR, new SO_REUSEPORT", reuseaddr, "8080 --with reuseport").advises("Set SO_REUSEADDR"),
        blocked("old server without options", plain, "8080")
            .advises("of the old and of the new socket")
            .does_not_advise("Set SO_REUSEPORT on"),
        blocked("old none, new both", plain, "8080 --with both").advises("of the old and of the new socket"),
        blocked("old none, new none", plain, "8080 --with none").advises("of the old and of the new socket"),
        blocked("old server with SO_REUSEPORT", reuseport, "8080").advises("Set SO_REUSEPORT on"),
        blocked("old SO_REUSEPORT, new none", reuseport, "8080 --with none").advises("Set SO_REUSEPORT on"),
        shared("old SO_REUSEPORT, new SO_REUSEPORT", reuseport, "8080 --with reuseport").advises("SO_REUSEPORT"),
        shared("old SO_REUSEPORT, new both", reuseport, "8080 --with both"),
        reusable("old server with both", both, "8080"),
        reusable("old both, new SO_REUSEPORT", both, "8080 --with reuseport"),
        reusable("old both, new both", both, "8080 --with both"),
        avoidable("old both, new none", both, "8080 --with none").advises("Set SO_REUSEADDR"),
        reusable("the option set late, on the accepted socket alone", set_late, "8080").advises("SO_REUSEADDR"),
        reusable("IPv6", || left_by("[::1]:8080", REUSEADDR), "8080"),
        blocked("IPv6 without options", || left_by("[::1]:8080", NONE), "8080"),
        bind_case("IPv6 beside IPv4", || left_by("[::1]:8080", NONE), "8080 --addr 0.0.0.0").held("time-wait", false),
        bind_case("IPv4 beside IPv6", plain, "8080 --addr ::1").held("time-wait", false),
        reusable("IPv4-mapped", || mapped(REUSEADDR), "8080"),
        blocked("IPv4-mapped without options", || mapped(NONE), "8080 --addr 127.0.0.1"),
        blocked("IPv4 against a mapped address", plain, "8080 --addr ::ffff:127.0.0.1"),
        reusable("a wildcard against a specific address", reuseaddr, "8080 --addr 0.0.0.0"),
        bind_case("another specific address", plain, "8080 --addr 127.0.0.2").held("time-wait", false),
        blocked("one bucket with the option and one without", with_and_without, "8080").held("time-wait", true),
        bind_case("a bucket on another port", || left_by("127.0.0.1:8081", NONE), "8080"),
    ]);
}

fn set_late() -> OpenSockets {
    let server = server("127.0.0.1:8080", NONE);
    let connection = connect(&server, "127.0.0.1:8080");
    connection.server.set_reuse_address(true).expect("SO_REUSEADDR");
    connection.close(ActiveCloser::Server).expect("a bucket");
    drop(server);
    nothing()
}

fn mapped(options: ReuseOptions) -> OpenSockets {
    let server = server("[::]:8080", options);
    connect(&server, "127.0.0.1:8080").close(ActiveCloser::Server).expect("a bucket");
    drop(server);
    assert_eq!(procfs::buckets()[0].local.0, "::ffff:127.0.0.1".parse::<IpAddr>().expect("an address"));
    nothing()
}

fn with_and_without() -> OpenSockets {
    left_by("127.0.0.1:8080", REUSEADDR);
    left_by("127.0.0.2:8080", NONE)
}

fn connect_from_any(server: &Server, to: &str) -> Connection {
    server.connect(addr(to), None).unwrap_or_else(|error| panic!("connecting to {to}: {error}"))
}

/// The bucket of a client whose port the kernel chose: 40000, the only port of the range.
fn outbound() -> OpenSockets {
    set("ipv4.ip_local_port_range", "40000 40000");
    let server = server("127.0.0.1:443", REUSEADDR);
    connect_from_any(&server, "127.0.0.1:443").close(ActiveCloser::Client).expect("a bucket");
    drop(server);
    set("ipv4.ip_local_port_range", "32768 60999");
    nothing()
}

fn outbound_beside_reserved_ports() -> OpenSockets {
    set("ipv4.ip_local_reserved_ports", "8080,9000-9010");
    outbound()
}

fn the_bucket_of_a_client_without_reuseaddr_blocks_and_the_advice_reserves_an_ephemeral_port() {
    let blocked = |name, make, args| {
        bind_case(name, make, args).is("blocked", "time-wait-without-reuseaddr").held("time-wait", true)
    };
    check_all(&[
        blocked("an outbound connection", outbound, "40000")
            .advises("Reserve it for servers")
            .advises("as its source port"),
        blocked("while other ports are reserved", outbound_beside_reserved_ports, "40000")
            .advises("Reserve it for servers"),
        blocked("while its port is reserved already", outbound_then_reserved, "40000").does_not_advise("Reserve it"),
        blocked("a port outside the ephemeral range", outbound_below_the_range, "8080")
            .does_not_advise("reserved_ports"),
        bind_case("a client that set SO_REUSEADDR", outbound_with_reuseaddr, "40000")
            .is("reusable", "time-wait")
            .held("time-wait", true)
            .advises("SO_REUSEADDR"),
    ]);
}

fn outbound_then_reserved() -> OpenSockets {
    let kept = outbound();
    set("ipv4.ip_local_reserved_ports", "39999-40001");
    kept
}

fn outbound_below_the_range() -> OpenSockets {
    let server = server("127.0.0.1:443", REUSEADDR);
    connect_from(&server, "127.0.0.1:443", "127.0.0.1:8080").close(ActiveCloser::Client).expect("a bucket");
    drop(server);
    nothing()
}

fn outbound_with_reuseaddr() -> OpenSockets {
    let server = server("127.0.0.1:443", REUSEADDR);
    let connection = connect_from(&server, "127.0.0.1:443", "127.0.0.1:40000");
    connection.client.set_reuse_address(true).expect("SO_REUSEADDR");
    connection.close(ActiveCloser::Client).expect("a bucket");
    drop(server);
    nothing()
}

fn the_advised_reservation_keeps_clients_off_the_port() {
    outbound_beside_reserved_ports();
    let document = twtool(["bind-test", "40000", "--json"]).code(1).json();
    assert_eq!(document["lasting"], json!([]), "no sysctl.d file, because it would change another namespace");
    commands::succeeds(document["reserve"][0]["command"].as_str().expect("a command"));
    assert_eq!(sysctl::read("ipv4.ip_local_reserved_ports").expect("the setting"), "8080,9000-9010,40000");
    set("ipv4.ip_local_port_range", "40000 40001");
    let server = server("127.0.0.1:443", REUSEADDR);
    let connection = connect_from_any(&server, "127.0.0.1:443");
    let local = connection.client.local_addr().ok().and_then(|local| local.as_socket()).expect("an address");
    assert_eq!(local.port(), 40001);
}

fn fin_wait_2_buckets_block_as_time_wait_buckets_do() {
    check_all(&[
        bind_case("FIN_WAIT_2 without options", || half_closed(NONE), "8080")
            .is("blocked", "time-wait-without-reuseaddr")
            .held("fin-wait-2", true)
            .advises("FIN_WAIT_2")
            .advises("fresh"),
        bind_case("FIN_WAIT_2 with SO_REUSEADDR", || half_closed(REUSEADDR), "8080")
            .is("reusable", "time-wait")
            .held("fin-wait-2", true),
        bind_case("FIN_WAIT_2 and TIME_WAIT", || half_and_whole(NONE), "8080")
            .is("blocked", "time-wait-without-reuseaddr")
            .held("fin-wait-2", true)
            .held("time-wait", true)
            .advises("fresh"),
        bind_case("FIN_WAIT_2 and TIME_WAIT with SO_REUSEADDR", || half_and_whole(REUSEADDR), "8080")
            .is("reusable", "time-wait")
            .held("fin-wait-2", true)
            .held("time-wait", true),
        bind_case("a FIN_WAIT_2 socket that is not a bucket", half_closed_but_whole, "8080")
            .is("blocked", "connection")
            .held("fin-wait-2", true),
    ]);
}

fn half_closed(options: ReuseOptions) -> OpenSockets {
    let server = server("127.0.0.1:8080", options);
    let open = situations::half_closed(&server, "127.0.0.1:8080", ActiveCloser::Server);
    drop(server);
    Box::new(open)
}

fn half_and_whole(options: ReuseOptions) -> OpenSockets {
    let server = server("127.0.0.1:8080", options);
    let half = situations::half_closed(&server, "127.0.0.1:8080", ActiveCloser::Server);
    connect(&server, "127.0.0.1:8080").close(ActiveCloser::Server).expect("closed");
    drop(server);
    Box::new(half)
}

/// An orphan that stays a full socket, because tcp_fin_timeout is more than 60 s.
fn half_closed_but_whole() -> OpenSockets {
    set("ipv4.tcp_fin_timeout", "120");
    let server = server("127.0.0.1:8080", NONE);
    Box::new(connect(&server, "127.0.0.1:8080").close_half(ActiveCloser::Server).expect("half closed"))
}

fn listeners_block_the_addresses_that_they_cover() {
    let blocked = |name, make, args| bind_case(name, make, args).is("blocked", "listener").held("listen", true);
    let free = |name, make, args| bind_case(name, make, args).held("listen", false);
    let any: fn() -> OpenSockets = || Box::new(server("0.0.0.0:8080", REUSEADDR));
    let one: fn() -> OpenSockets = || Box::new(server("127.0.0.1:8080", REUSEADDR));
    let dual: fn() -> OpenSockets = || Box::new(server("[::]:8080", REUSEADDR));
    let v6only: fn() -> OpenSockets = || Box::new(v6only_listener("[::]:8080"));
    let shared: fn() -> OpenSockets = || Box::new(server("0.0.0.0:8080", REUSEPORT));
    check_all(&[
        blocked("on 0.0.0.0", any, "8080").advises("Port 8080 has a listener: "),
        blocked("on 0.0.0.0, and a specific address", any, "8080 --addr 127.0.0.1"),
        free("on 0.0.0.0, and IPv6", any, "8080 --addr ::1"),
        blocked("on 127.0.0.1", one, "8080"),
        blocked("on 127.0.0.1, and a mapped address", one, "8080 --addr ::ffff:127.0.0.1"),
        free("on 127.0.0.1, and another address", one, "8080 --addr 127.0.0.2"),
        blocked("dual-stack", dual, "8080"),
        blocked("dual-stack, and IPv4", dual, "8080 --addr 0.0.0.0"),
        blocked("dual-stack, and one IPv4 address", dual, "8080 --addr 127.0.0.2"),
        free("v6only, and IPv4", v6only, "8080 --addr 0.0.0.0"),
        blocked("v6only, and IPv6", v6only, "8080 --addr ::"),
        blocked("v6only, and one IPv6 address", v6only, "8080 --addr ::1"),
        blocked("v6only, and both default addresses", v6only, "8080"),
        free("IPv4, and :: where sockets are v6only", listener_beside_v6only_sockets, "8080 --addr ::"),
        blocked("with SO_REUSEPORT", shared, "8080").does_not_advise("Set SO_REUSEPORT on"),
        bind_case("with SO_REUSEPORT, and a new socket with SO_REUSEPORT", shared, "8080 --with reuseport")
            .is("reusable", "listener")
            .held("listen", true),
        bind_case("with SO_REUSEPORT, and --listen", shared, "8080 --with reuseport --listen")
            .is("reusable", "listener")
            .held("listen", true),
        blocked("bound to an interface", on_an_interface, "8080"),
        blocked("with a connection not accepted yet", not_accepted, "8080").held("established", true),
        blocked("with a handshake under way", handshake, "8080").held("syn-recv", false),
        blocked("and a bucket", listener_and_bucket, "8080").held("time-wait", true),
        blocked("on 0.0.0.0 and on v6only ::", one_of_each, "8080").held("listen", true),
    ]);
}

fn the_table_names_the_bind_that_a_socket_blocks() {
    let _bucket = left_by("0.0.0.0:8080", REUSEADDR);
    let bind = |reuseaddr| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.set_reuse_address(reuseaddr).expect("SO_REUSEADDR");
        socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 8080)).into()).is_ok()
    };
    assert_eq!([bind(false), bind(true)], [false, true]);
    let page = twtool(["bind-test", "8080"]).code(0).prints("reusable with SO_REUSEADDR");
    let table = page.stdout.lines().skip_while(|line| !line.starts_with("STATE")).collect::<Vec<_>>();
    let column = table[0].find("BLOCKS PLAIN BIND").expect("the column");
    assert!(table[1][column..].starts_with("yes "), "{page}");
    let document = twtool(["bind-test", "8080", "--json"]).code(0).json();
    assert_eq!(document["holders"][0]["blocks"], true);
}

fn listener_beside_v6only_sockets() -> OpenSockets {
    set("ipv6.bindv6only", "1");
    Box::new(server("0.0.0.0:8080", REUSEADDR))
}

fn on_an_interface() -> OpenSockets {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind_device(Some(b"lo")).expect("SO_BINDTODEVICE");
    Box::new(Server::listen_on(socket, addr("127.0.0.1:8080")).expect("a server"))
}

fn not_accepted() -> OpenSockets {
    let server = server("127.0.0.1:8080", REUSEADDR);
    let client = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    client.connect(&addr("127.0.0.1:8080").into()).expect("connected");
    Box::new((server, client))
}

sockopt_impl!(DeferAccept, SetOnly, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, u32);

/// A connection in SYN_RECV: the listener completes the handshake only when data arrives (tcp(7), TCP_DEFER_ACCEPT), and no data comes.
fn handshake() -> OpenSockets {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    setsockopt(&socket, DeferAccept, &30).expect("TCP_DEFER_ACCEPT");
    let server = Server::listen_on(socket, addr("127.0.0.1:8080")).expect("a server");
    let client = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    client.connect(&addr("127.0.0.1:8080").into()).expect("connected");
    Box::new((server, client))
}

fn listener_and_bucket() -> OpenSockets {
    let server = server("127.0.0.1:8080", REUSEADDR);
    connect(&server, "127.0.0.1:8080").close(ActiveCloser::Server).expect("a bucket");
    Box::new(server)
}

fn one_of_each() -> OpenSockets {
    Box::new((server("0.0.0.0:8080", REUSEADDR), v6only_listener("[::]:8080")))
}

fn connections_block_unless_both_sockets_set_reuseaddr() {
    let blocked = |name, make, args| bind_case(name, make, args).is("blocked", "connection");
    let reusable = |name, make, args| bind_case(name, make, args).is("reusable", "connection");
    check_all(&[
        reusable("established, with SO_REUSEADDR", || connection("127.0.0.1:8080", REUSEADDR), "8080")
            .held("established", true)
            .advises("SO_REUSEADDR"),
        blocked("established, without SO_REUSEADDR", || connection("127.0.0.1:8080", NONE), "8080")
            .held("established", true),
        blocked("established, IPv6", || connection("[::1]:8080", NONE), "8080").held("established", true),
        blocked("CLOSE_WAIT, without SO_REUSEADDR", || close_wait(NONE), "8080")
            .held("close-wait", true)
            .advises("close-wait"),
        reusable("CLOSE_WAIT, with SO_REUSEADDR", || close_wait(REUSEADDR), "8080").held("close-wait", true),
        blocked("a client's own connection", outbound_established, "40000").held("established", true),
        bind_case("a client's own connection, another address", outbound_established, "40000 --addr 127.0.0.2")
            .held("established", false),
    ]);
}

fn close_wait(options: ReuseOptions) -> OpenSockets {
    let server = server("127.0.0.1:8080", options);
    let open = connect(&server, "127.0.0.1:8080").close_half(ActiveCloser::Client).expect("half closed");
    drop(server);
    Box::new(open)
}

fn outbound_established() -> OpenSockets {
    let server = server("127.0.0.1:443", REUSEADDR);
    let connection = connect_from(&server, "127.0.0.1:443", "127.0.0.1:40000");
    Box::new((server, connection.client, connection.server))
}

fn sockets_that_are_only_bound_are_listed() {
    kernel::needs(kernel::lists_bound_sockets(), "list of sockets that are only bound");
    let idle: fn() -> OpenSockets = || Box::new(bound("0.0.0.0:8080", NONE));
    let willing: fn() -> OpenSockets = || Box::new(bound("0.0.0.0:8080", REUSEADDR));
    let sharing: fn() -> OpenSockets = || Box::new(bound("0.0.0.0:8080", REUSEPORT));
    let blocked = |name, make, args| bind_case(name, make, args).is("blocked", "bound").held("bound-inactive", true);
    let reusable = |name, make, args| bind_case(name, make, args).is("reusable", "bound").held("bound-inactive", true);
    check_all(&[
        blocked("bound", idle, "8080").advises("bound"),
        blocked("bound, IPv6", || Box::new(bound("[::1]:8080", NONE)), "8080"),
        bind_case("bound to another address", || Box::new(bound("127.0.0.1:8080", NONE)), "8080 --addr 127.0.0.2")
            .held("bound-inactive", false),
        reusable("bound with SO_REUSEADDR", willing, "8080").advises("the second listen() fails"),
        blocked("bound with SO_REUSEPORT", sharing, "8080")
            .advises("Set SO_REUSEPORT on")
            .does_not_advise("the second listen() fails"),
        reusable("bound with SO_REUSEPORT, and a new socket with it", sharing, "8080 --with reuseport --listen")
            .does_not_advise("the second listen() fails"),
        reusable("bound with SO_REUSEADDR, and --listen", willing, "8080 --listen"),
        blocked("bound with SO_REUSEADDR, and a new socket without it", willing, "8080 --with none"),
        bind_case("two bound sockets with SO_REUSEADDR", two_bound, "8080 --listen")
            .is("reusable", "bound")
            .held("bound-inactive", true)
            .held("bound-inactive", true),
        bind_case("two sockets with SO_REUSEADDR, of which one listens", two_bound_one_listening, "8080 --listen")
            .is("blocked", "listener")
            .held("bound-inactive", true)
            .held("listen", true),
    ]);
}

/// The advice depends on this behavior of the kernel.
fn only_with_so_reuseport_two_bound_sockets_can_both_listen() {
    for (options, both) in [(REUSEADDR, false), (REUSEPORT, true), (BOTH, true)] {
        let [first, second] = [bound("127.0.0.1:8080", options), bound("127.0.0.1:8080", options)];
        first.listen(1).expect("the first one listens");
        assert_eq!(second.listen(1).is_ok(), both, "{options}");
    }
}

fn two_bound() -> OpenSockets {
    Box::new([bound("0.0.0.0:8080", REUSEADDR), bound("0.0.0.0:8080", REUSEADDR)])
}

fn two_bound_one_listening() -> OpenSockets {
    let sockets = [bound("0.0.0.0:8080", REUSEADDR), bound("0.0.0.0:8080", REUSEADDR)];
    sockets[0].listen(1).expect("the first to listen");
    Box::new(sockets)
}

/// One holder of each kind from number `from` on, each on an address of its own. The numbers go from the strongest cause to the
/// weakest: 0 is a listener, 1 a connection, 2 a bound socket, 3 a bucket.
fn one_of_every_kind(from: usize, options: ReuseOptions) -> OpenSockets {
    let bucket = left_by("127.0.0.1:8080", options);
    let idle = (from < 3).then(|| bound("127.0.0.2:8080", options));
    let established = (from < 2).then(|| connection("127.0.0.3:8080", options));
    let listener = (from < 1).then(|| server("127.0.0.4:8080", options));
    Box::new((bucket, idle, established, listener))
}

fn the_worst_holder_and_the_worst_address_decide() {
    let mut situations: Vec<BindCase> = vec![
        bind_case("a bucket alone", || one_of_every_kind(3, NONE), "8080")
            .is("blocked", "time-wait-without-reuseaddr")
            .held("time-wait", true),
        bind_case(
            "one address is blocked",
            || left_by("127.0.0.1:8080", NONE),
            "8080 --addr 127.0.0.2 --addr 127.0.0.1",
        )
        .is("blocked", "time-wait-without-reuseaddr")
        .held("time-wait", true),
        bind_case("one address is reusable", || left_by("[::1]:8080", REUSEADDR), "8080 --addr ::1 --addr 127.0.0.1")
            .is("reusable", "time-wait")
            .held("time-wait", true),
        bind_case(
            "one address is blocked, one is reusable",
            blocked_and_reusable,
            "8080 --addr 127.0.0.1 --addr 127.0.0.2",
        )
        .is("blocked", "time-wait-without-reuseaddr")
        .held("time-wait", true)
        .held("time-wait", true),
        bind_case(
            "one address is blocked, one is denied",
            || left_by("127.0.0.1:8080", NONE),
            "8080 --addr 127.0.0.1 --addr 192.0.2.1",
        )
        .is("denied", "address-not-local")
        .held("time-wait", true),
        bind_case("the same address twice", nothing, "8080 --addr 127.0.0.1 --addr 127.0.0.1"),
        bind_case("the same address in two notations", nothing, "8080 --addr ::1 --addr 0:0:0:0:0:0:0:1").on(&["::1"]),
    ];
    if kernel::lists_bound_sockets() {
        situations.extend([
            bind_case("all kinds", || one_of_every_kind(0, NONE), "8080")
                .is("blocked", "listener")
                .held("time-wait", true)
                .held("bound-inactive", true)
                .held("established", true)
                .held("listen", true),
            bind_case("all but a listener", || one_of_every_kind(1, NONE), "8080")
                .is("blocked", "connection")
                .held("time-wait", true)
                .held("bound-inactive", true)
                .held("established", true),
            bind_case("all but a listener, with SO_REUSEADDR", || one_of_every_kind(1, REUSEADDR), "8080")
                .is("reusable", "connection")
                .held("time-wait", true)
                .held("bound-inactive", true)
                .held("established", true),
            bind_case("a bound socket and a bucket", || one_of_every_kind(2, NONE), "8080")
                .is("blocked", "bound")
                .held("time-wait", true)
                .held("bound-inactive", true),
            bind_case("only the bucket is on the address", || one_of_every_kind(0, NONE), "8080 --addr 127.0.0.1")
                .is("blocked", "time-wait-without-reuseaddr")
                .held("time-wait", true)
                .held("bound-inactive", false)
                .held("established", false)
                .held("listen", false),
        ]);
    }
    check_all(&situations);
}

fn blocked_and_reusable() -> OpenSockets {
    left_by("127.0.0.1:8080", NONE);
    left_by("127.0.0.2:8080", REUSEADDR)
}

fn the_verdict_is_denied_if_the_failure_is_not_about_other_sockets() {
    let denied = |name, make, args, cause| bind_case(name, make, args).is("denied", cause);
    check_all(&[
        bind_case("a privileged port, with the capability", nothing, "80"),
        denied("a privileged port, without the capability", without_bind_service, "80", "privileged-port")
            .advises("ip_unprivileged_port_start")
            .advises("CAP_NET_BIND_SERVICE")
            .does_not_advise("TIME_WAIT"),
        denied("a privileged port with a bucket", privileged_and_bucket, "80", "privileged-port")
            .held("time-wait", false),
        bind_case("an unprivileged port, without the capability", without_bind_service, "8080"),
        bind_case("a lower start of the unprivileged ports", lowered_start, "80"),
        denied("a higher start of the unprivileged ports", raised_start, "8080", "privileged-port").advises("9000"),
        denied("an address that is not local", nothing, "8080 --addr 192.0.2.1", "address-not-local")
            .advises("192.0.2.1"),
        denied("an IPv6 address that is not local", nothing, "8080 --addr 2001:db8::1", "address-not-local"),
        bind_case("an address that need not be local", nonlocal, "8080 --addr 192.0.2.1"),
        denied("::1 while IPv6 is off", without_ipv6_addresses, "8080 --addr ::1", "address-not-local"),
        bind_case("the default while IPv6 is off", without_ipv6_addresses, "8080"),
        bind_case("the default without IPv6 sockets", without_ipv6_sockets, "8080").on(&["0.0.0.0"]).warns("::"),
        bind_case("a bucket, without IPv6 sockets", bucket_without_ipv6_sockets, "8080")
            .on(&["0.0.0.0"])
            .warns("::")
            .is("reusable", "time-wait")
            .held("time-wait", true),
        denied("::1 without IPv6 sockets", without_ipv6_sockets, "8080 --addr ::1", "family-unsupported")
            .advises("IPv6"),
        denied(":: without IPv6 sockets", without_ipv6_sockets, "8080 --addr :: --listen", "family-unsupported"),
        denied("a link-local address without a scope", nothing, "8080 --addr fe80::1", "unknown").advises("scope"),
        denied("a link-local address that is not there", nothing, "8080 --addr fe80::1%lo", "address-not-local"),
    ]);
}

fn without_bind_service() -> OpenSockets {
    drop_capability(Capability::CAP_NET_BIND_SERVICE);
    nothing()
}

fn privileged_and_bucket() -> OpenSockets {
    left_by("127.0.0.1:80", REUSEADDR);
    without_bind_service()
}

fn lowered_start() -> OpenSockets {
    set("ipv4.ip_unprivileged_port_start", "80");
    without_bind_service()
}

fn raised_start() -> OpenSockets {
    set("ipv4.ip_unprivileged_port_start", "9000");
    without_bind_service()
}

fn nonlocal() -> OpenSockets {
    set("ipv4.ip_nonlocal_bind", "1");
    nothing()
}

fn without_ipv6_addresses() -> OpenSockets {
    set("ipv6.conf.all.disable_ipv6", "1");
    nothing()
}

fn without_ipv6_sockets() -> OpenSockets {
    refuse_ipv6();
    nothing()
}

fn bucket_without_ipv6_sockets() -> OpenSockets {
    left_by("127.0.0.1:8080", REUSEADDR);
    without_ipv6_sockets()
}

fn port_0_lets_the_kernel_choose_the_port() {
    check_all(&[
        bind_case("port 0", nothing, "0"),
        bind_case("port 0, and listen()", nothing, "0 --listen"),
        bind_case(
            "port 0 of a narrow range",
            || {
                set("ipv4.ip_local_port_range", "40000 40001");
                nothing()
            },
            "0",
        ),
        bind_case("port 0 of a full range", full_range, "0").is("blocked", "unknown").advises("ip_local_port_range"),
    ]);
}

/// An ephemeral range in which every port is bound.
fn full_range() -> OpenSockets {
    set("ipv4.ip_local_port_range", "40000 40003");
    let sockets = ["[::]:40000", "[::]:40001", "[::]:40002", "[::]:40003"].map(|at| bound(at, NONE));
    assert_eq!(bind("0.0.0.0", 0, &[], false).0, "EADDRINUSE");
    Box::new(sockets)
}

fn a_port_with_two_hundred_buckets_is_free_when_the_last_one_ends() {
    let server = server("127.0.0.1:8080", NONE);
    let connections: Vec<_> =
        (20_000..20_200).map(|port| connect_from(&server, "127.0.0.1:8080", &format!("127.0.0.1:{port}"))).collect();
    let (clients, servers): (Vec<_>, Vec<_>) = connections.into_iter().map(|c| (c.client, c.server)).unzip();
    drop((server, servers));
    drop(clients);
    let deadline = Instant::now() + kernel::patience(Duration::from_secs(5));
    while procfs::time_wait().len() < 200 {
        assert!(Instant::now() < deadline, "{} of 200 buckets", procfs::bucket_count());
        std::thread::sleep(Duration::from_millis(1));
    }
    let longest = || procfs::buckets().iter().map(|bucket| bucket.when * procfs::UNIT_MS).max().expect("buckets");
    let before = longest();
    let run = twtool(["bind-test", "8080", "--json"]).code(1);
    let after = longest();
    let document = run.json();
    let free_in = number(&document, "free_in_ms");
    assert!(free_in <= before + procfs::UNIT_MS && free_in + procfs::UNIT_MS >= after, "{before} {free_in} {after}");
    let holders = document["holders"].as_array().expect("holders");
    assert_eq!(holders.len(), 200);
    assert_eq!(holders.iter().map(|holder| number(holder, "expires_ms")).max(), Some(free_in));
    let page = twtool(["bind-test", "8080"]).code(1);
    assert!(page.stdout.lines().count() < 40 && page.stdout.contains("more"), "{page}");
}

fn family_flags_choose_among_the_default_addresses() {
    let addrs = |args: &[&str]| -> Vec<String> {
        let run = twtool([&["bind-test", "8080", "--json"], args].concat()).ok();
        let mut addrs: Vec<_> =
            run.records("attempts").iter().map(|attempt| text(attempt, "addr").to_owned()).collect();
        addrs.dedup();
        addrs
    };
    assert_eq!(addrs(&[]), ["0.0.0.0", "::"]);
    assert_eq!(addrs(&["-4"]), ["0.0.0.0"]);
    assert_eq!(addrs(&["-6"]), ["::"]);
    assert_eq!(addrs(&["-6", "--addr", "::1"]), ["::1"]);
    twtool(["bind-test", "8080", "-4", "--addr", "::1"]).refused("::1");
    twtool(["bind-test", "8080", "-6", "--addr", "127.0.0.1"]).refused("127.0.0.1");
}

fn arguments_that_cannot_be_tested_are_refused() {
    for (args, word) in [
        (["8080", "--addr", "fe80::1%nosuch"].as_slice(), "nosuch"),
        (&["8080", "--addr", "127.0.0.1%lo"], "lo"),
        (&["8080", "--addr", "127.0.0.1/8"], "127.0.0.1/8"),
        (&["8080", "--addr", "localhost"], "localhost"),
        (&["8080", "--with", "everything"], "everything"),
        (&["8080-8090"], "8080-8090"),
        (&["65536"], "65536"),
        (&["-1"], "-1"),
        (&["httpz"], "httpz"),
        (&[""], "''"),
        (&["8080", "8081"], "8081"),
        (&["8080", "-o", "csv"], "csv"),
        (&["8080", "--demo", "-o", "csv"], "csv"),
    ] {
        twtool([&["bind-test"], args].concat()).refused(word);
    }
}

fn a_mistyped_option_is_named() {
    for args in [["8080", "--frob"], ["--frob", "8080"]] {
        twtool([["bind-test"].as_slice(), &args].concat()).refused("--frob");
    }
    twtool(["bind-test", "--adr", "::1", "8080"]).refused("--adr");
}

fn ndjson_is_the_payload_on_one_line() {
    left_by("127.0.0.1:8080", NONE);
    let document = twtool(["bind-test", "8080", "--json"]).code(1).json();
    let run = twtool(["bind-test", "8080", "-o", "ndjson"]).code(1);
    let [record] = run.ndjson().try_into().unwrap_or_else(|_| panic!("one line{run}"));
    assert_eq!(Keys::of(&run.stdout), KEYS);
    for key in
        KEYS.into_iter().filter(|key| !["free_in_ms", "holders", "advice", "next", "reserve", "lasting"].contains(key))
    {
        assert_eq!(record[key], document[key], "{key}{run}");
    }
    assert_eq!(record["holders"][0]["cookie"], document["holders"][0]["cookie"]);
}

fn the_name_of_a_service_is_accepted_as_port() {
    let Some(name) = services::name(443) else {
        return not_checked("a service's name as port: /etc/services has no 443");
    };
    let document = twtool(["bind-test", &name, "--json"]).ok().json();
    assert_eq!((&document["port"], &document["service"]), (&json!(443), &json!(name)));
    let page = twtool(["bind-test", &name]).ok();
    assert!(page.stdout.lines().next().is_some_and(|line| line.contains("443") && line.contains(&name)), "{page}");
}
