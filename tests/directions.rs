//! The inferred direction of sockets that are connected to themselves, and of clients with a fixed source port. Also the interface in
//! tables.

use socket2::{Domain, Socket};
use twtool::lab::ActiveCloser;

use crate::support::records::{number, text};
use crate::support::situations::{addr, connect_from, listen};
use crate::support::suite;
use crate::support::twtool::twtool;
use crate::support::varied::Varied;
use crate::support::{kernel, procfs};

suite! {
    pure: [],
    netns: [
        a_socket_connected_to_itself_is_outbound_in_each_state,
        a_socket_connected_to_itself_is_not_a_destination_of_capacity,
        a_client_with_a_fixed_source_port_is_outbound_while_its_server_listens,
        a_replay_infers_the_same_direction,
        tables_show_the_interface_of_a_socket,
    ],
}

fn connected_to_itself(at: &str) -> Socket {
    let socket = Socket::new(Domain::for_address(addr(at)), socket2::Type::STREAM, None).expect("a socket");
    socket.bind(&addr(at).into()).expect("bound");
    socket.connect(&addr(at).into()).expect("connected to itself");
    socket
}

/// Closes the socket, and waits for its bucket. The kernel makes one bucket, because both ends of the connection are the same socket.
fn close_and_await_the_bucket(socket: Socket) {
    let before = procfs::time_wait().len();
    drop(socket);
    while procfs::time_wait().len() == before {
        std::thread::yield_now();
    }
    assert_eq!(procfs::time_wait().len(), before + 1);
}

fn a_socket_connected_to_itself_is_outbound_in_each_state() {
    for at in ["127.0.0.1:40000", "[::1]:40001", "127.0.0.1:8080"] {
        let port = addr(at).port().to_string();
        let socket = connected_to_itself(at);
        let holder = &twtool(["bind-test", &port, "--json"]).records("holders")[0];
        assert_eq!((text(holder, "state"), text(holder, "direction")), ("established", "outbound"), "{at}");
        let ephemeral = addr(at).port() >= 40_000;
        let advises = |words: &[&str]| {
            let advice = twtool(["bind-test", &port, "--json"]).json()["advice"].to_string();
            assert!(words.iter().all(|word| advice.contains(word)), "{words:?} in {advice}");
            assert!(!advice.contains("let the server set"), "a server's advice: {advice}");
            assert_eq!(advice.contains("ip_local_reserved_ports"), ephemeral, "{advice}");
        };
        advises(&["connection to itself", "both ends"]);
        close_and_await_the_bucket(socket);
        advises(&["is from a connection to itself", "both ends"]);
        for source in ["sock_diag", "procfs"] {
            let row = &twtool(["list", "--local-port", &port, "--json", "--source", source]).ok().records("sockets")[0];
            assert_eq!(text(row, "direction"), "outbound", "{at} from {source}");
        }
    }
    let direction = |direction| twtool(["list", "--count", "--direction", direction]).ok().stdout;
    assert_eq!((direction("outbound").as_str(), direction("unknown").as_str()), ("3\n", "0\n"));
}

fn a_socket_connected_to_itself_is_not_a_destination_of_capacity() {
    close_and_await_the_bucket(connected_to_itself("127.0.0.1:40000"));
    let open = connected_to_itself("[::1]:40001");
    let run = twtool(["capacity", "--json"]);
    assert_eq!(run.records("destinations"), [serde_json::Value::Null; 0], "{run}");
    // The bucket and the open socket still use one port each.
    let run = twtool(["capacity", "--to", "127.0.0.1:40000", "--from", "127.0.0.1", "--json"]);
    let destination = &run.records("destinations")[0];
    assert_eq!(number(destination, "time_wait"), 0, "{run}");
    assert_eq!(number(destination, "free"), number(&run.json(), "pool"), "{run}");
    let (bound, uncertain) = (number(&run.json(), "explicitly_bound"), number(&run.json(), "uncertain"));
    if kernel::has_port_range_option() {
        assert_eq!(bound, 2, "{run}");
    } else {
        // On this kernel, twtool cannot test single ports.
        assert!(bound <= 2 && bound + uncertain >= 2, "{run}");
    }
    drop(open);
}

fn a_client_with_a_fixed_source_port_is_outbound_while_its_server_listens() {
    for (server_at, to, from) in [
        ("127.0.0.1:443", "127.0.0.1:443", "127.0.0.1:15060"),
        ("0.0.0.0:444", "127.0.0.2:444", "127.0.0.3:15061"),
        ("[::]:445", "127.0.0.1:445", "127.0.0.1:15062"),
        ("[::1]:446", "[::1]:446", "[::1]:15063"),
    ] {
        let server = listen(server_at);
        connect_from(&server, to, from).close(ActiveCloser::Client).expect("the client's bucket");
        let port = addr(from).port().to_string();
        let list = || {
            text(&twtool(["list", "--local-port", &port, "--json"]).ok().records("sockets")[0], "direction").to_owned()
        };
        assert_eq!(list(), "outbound", "{from} to {to}");
        let holders = twtool(["bind-test", &port, "--json"]).records("holders");
        assert_eq!(text(&holders[0], "direction"), "outbound", "{from} to {to}, in bind-test");
        let advice = twtool(["bind-test", &port, "--json"]).json()["advice"].to_string();
        assert!(advice.contains("a fixed source port") && advice.contains(&format!("from port {port} to")), "{advice}");
        assert!(!advice.contains("let the server set"), "a server's advice: {advice}");
        drop(server);
        assert_eq!(list(), "unknown", "without the listener, no fact shows the direction");
    }
}

fn a_replay_infers_the_same_direction() {
    let server = listen("127.0.0.1:443");
    connect_from(&server, "127.0.0.1:443", "127.0.0.1:15060").close(ActiveCloser::Client).expect("a bucket");
    close_and_await_the_bucket(connected_to_itself("127.0.0.1:40000"));
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("recording").into_os_string().into_string().expect("UTF-8");
    let live = twtool(["list", "--json", "--record", &file]).ok();
    drop(server);
    let replayed = twtool(["list", "--json", "--replay", &file]).ok();
    assert_eq!(live.stdout, replayed.stdout);
    assert!(replayed.records("sockets").iter().all(|row| text(row, "direction") == "outbound"), "{replayed}");
}

fn tables_show_the_interface_of_a_socket() {
    let varied = Varied::make();
    let buckets = procfs::time_wait().len();
    let list = twtool(["list", "dev lo"]).ok();
    let rows = |text: &str| text.lines().filter(|line| line.contains("%lo:") || line.contains("%lo]:")).count();
    assert_eq!(rows(&list.stdout), 2, "two sockets are bound to lo{list}");
    assert_eq!(rows(&twtool(["list"]).ok().stdout), 2, "no other socket is bound to lo");
    let kill = twtool(["kill", "dev lo", "--dry-run"]).ok();
    assert_eq!(rows(&kill.stdout), 2, "{kill}");
    // csv has a column for the interface, so the addresses are without `%lo`.
    let csv = twtool(["list", "dev lo", "-o", "csv", "--columns", "local,interface"]).ok();
    assert!(!csv.stdout.contains('%') && csv.stdout.contains(",lo\n"), "{csv}");
    assert_eq!(procfs::time_wait().len(), buckets);
    varied.end();
}
