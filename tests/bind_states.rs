//! The answers of `bind-test` about closing sockets, devices, users and UDP.

use std::any::Any;
use std::io::ErrorKind;
use std::net::{Shutdown, UdpSocket};

use socket2::{Domain, Socket, Type};
use twtool::lab::Server;
use twtool::model::bind::ReuseOptions;

use crate::next_steps::run_and_agree;
use crate::support::bind::{OpenSockets, bind, bind_case, check_all};
use crate::support::situations::{addr, connect};
use crate::support::twtool::twtool;
use crate::support::{kernel, not_checked, procfs, suite};

suite! {
    pure: [],
    netns: [
        each_closing_state_is_explained,
        the_printed_command_ends_an_orphan,
        a_port_in_use_on_one_device_is_free_on_another,
        the_advice_about_refused_reuseport_names_user_and_options,
        a_port_that_only_udp_uses_is_free_and_the_advice_mentions_udp,
        an_address_may_be_in_brackets_with_or_without_a_scope,
    ],
}

/// Makes a connection, and returns the server's end and the client's end. The client does not read, and the server has filled its send
/// buffer. So the kernel sends a FIN of the server only after the unsent data.
fn full_connection() -> (Socket, Socket) {
    let server = Server::listen(addr("127.0.0.1:8080"), ReuseOptions::NONE).expect("listening");
    let open = connect(&server, "127.0.0.1:8080");
    open.server.set_nonblocking(true).expect("O_NONBLOCK");
    let full = loop {
        if let Err(error) = open.server.send(&vec![0; 65_536]) {
            break error;
        }
    };
    assert_eq!(full.kind(), ErrorKind::WouldBlock);
    (open.server, open.client)
}

/// Waits until a socket on port 8080 has this state (the number of net/tcp_states.h). Returns `kept`.
fn wait_for_state(state: u8, kept: impl Any) -> OpenSockets {
    let has_it = |entry: &procfs::Entry| entry.local.1 == 8080 && entry.state == state;
    while !procfs::sockets().iter().any(has_it) {
        std::thread::yield_now();
    }
    Box::new(kept)
}

fn fin_wait_1_orphan() -> OpenSockets {
    let (server, client) = full_connection();
    drop(server);
    wait_for_state(4, client)
}

fn fin_wait_1() -> OpenSockets {
    let (server, client) = full_connection();
    server.shutdown(Shutdown::Write).expect("shutdown");
    wait_for_state(4, (server, client))
}

fn fin_wait_2() -> OpenSockets {
    let server = Server::listen(addr("127.0.0.1:8080"), ReuseOptions::NONE).expect("listening");
    let open = connect(&server, "127.0.0.1:8080");
    open.server.shutdown(Shutdown::Write).expect("shutdown");
    wait_for_state(5, (open.server, open.client))
}

/// Both ends have called shutdown(). The server receives the FIN of the client while its own FIN waits behind unsent data.
fn closing() -> OpenSockets {
    let (server, client) = full_connection();
    server.shutdown(Shutdown::Write).expect("shutdown");
    client.shutdown(Shutdown::Write).expect("shutdown");
    wait_for_state(11, (server, client))
}

/// The client has sent its FIN first. The FIN of the server waits behind unsent data.
fn last_ack() -> OpenSockets {
    let (server, client) = full_connection();
    client.shutdown(Shutdown::Write).expect("shutdown");
    drop(server);
    wait_for_state(9, client)
}

fn each_closing_state_is_explained() {
    let blocked = |name, make, state| bind_case(name, make, "8080").is("blocked", "connection").held(state, true);
    check_all(&[
        blocked("FIN_WAIT_1 without a process", fin_wait_1_orphan, "fin-wait-1")
            .advises("fin-wait-1 without a process")
            .advises("tcp_orphan_retries"),
        blocked("FIN_WAIT_1 with a process", fin_wait_1, "fin-wait-1").advises("fin-wait-1: ").advises("tcp_retries2"),
        blocked("FIN_WAIT_2 with a process", fin_wait_2, "fin-wait-2")
            .advises("fin-wait-2 with a process")
            .advises("No timer runs"),
        blocked("CLOSING", closing, "closing").advises("closing: ").advises("tcp_retries2"),
        blocked("LAST_ACK without a process", last_ack, "last-ack")
            .advises("last-ack: ")
            .advises("tcp_orphan_retries")
            .does_not_advise("leaves a TIME_WAIT"),
    ]);
}

fn the_printed_command_ends_an_orphan() {
    for orphan in [fin_wait_1_orphan, last_ack] {
        let kept = orphan();
        let document = twtool(["bind-test", "8080", "--json"]).code(1).json();
        let steps = document["next"].as_array().expect("steps");
        let line = steps[0]["command"].as_str().expect("a command");
        if !kernel::ends_orphans() {
            assert!(steps.len() == 1 && line.contains(" wait 8080"), "only waiting helps: {document}");
            let wait = twtool(["wait", "8080", "--timeout", "0", "--json"]).code(1).json();
            assert_eq!(wait["next"], serde_json::json!([]), "{wait}");
            drop(kept);
            continue;
        }
        assert!(line.contains("kill --orphans --local-port 8080"), "{line}");
        run_and_agree(line);
        assert_eq!(bind("0.0.0.0", 8080, &[], false).0, "ok", "{line}");
        drop(kept);
    }
}

fn a_port_in_use_on_one_device_is_free_on_another() {
    let bound = |device: &[u8]| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.bind_device(Some(device)).expect("SO_BINDTODEVICE");
        socket.bind(&addr("0.0.0.0:8080").into()).map(|()| socket)
    };
    let listener = bound(b"lo").expect("bound");
    listener.listen(1).expect("listening");
    twtool(["bind-test", "8080"]).code(1).prints("0.0.0.0%lo:8080").prints("another device can use it");
    // A listener that is not bound to a device blocks every device.
    let anywhere = Server::listen(addr("[::1]:8080"), ReuseOptions::NONE).expect("listening");
    let run = twtool(["bind-test", "8080"]).code(1);
    assert!(!run.stdout.contains("another device"), "{run}");
    drop(anywhere);
    let added =
        std::process::Command::new("ip").args(["link", "add", "d0", "type", "veth", "peer", "name", "d1"]).status();
    if !added.is_ok_and(|status| status.success()) {
        return not_checked("a bind on another device: no veth pair can be made here");
    }
    bound(b"d0").expect("the port is free on d0");
}

fn the_advice_about_refused_reuseport_names_user_and_options() {
    let _listener = Server::listen(addr("127.0.0.1:8080"), ReuseOptions::REUSEADDR).expect("listening");
    let advice = |with| twtool(["bind-test", "8080", "--with", with, "--json"]).code(1).json()["advice"].to_string();
    assert!(advice("reuseport").contains("the same (uid 0)"), "{}", advice("reuseport"));
    assert!(!advice("reuseaddr").contains("uid"), "{}", advice("reuseaddr"));
}

fn a_port_that_only_udp_uses_is_free_and_the_advice_mentions_udp() {
    let advice = || twtool(["bind-test", "8080", "--json"]).ok().json()["advice"].clone();
    assert_eq!(advice(), serde_json::json!([]));
    for at in ["127.0.0.1:8080", "[::1]:8080"] {
        let _udp = UdpSocket::bind(at).expect("bound");
        assert!(advice().to_string().contains("UDP"), "{at}: {}", advice());
        let _tcp = Server::listen(addr("127.0.0.1:8080"), ReuseOptions::NONE).expect("listening");
        let taken = twtool(["bind-test", "8080", "--json"]).code(1).json();
        assert!(!taken["advice"].to_string().contains("UDP"), "{taken}");
    }
}

fn an_address_may_be_in_brackets_with_or_without_a_scope() {
    for at in ["[fe80::1%lo]", "[fe80::1]%lo", "fe80::1%lo"] {
        let run = twtool(["bind-test", "8080", "--addr", at, "--json"]).code(1);
        assert_eq!(run.json()["attempts"][0]["addr"], "fe80::1%lo", "{run}");
        twtool(["wait", "8080", "--addr", at, "--timeout", "0"]).code(1);
    }
    twtool(["bind-test", "8080", "--addr", "[::1]"]).ok();
}
