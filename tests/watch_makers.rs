//! The owners of sockets and the makers (the processes that made buckets) on the screen of `twtool watch`. They come from a tracer
//! that serves a Unix socket, or from the tracer that the key t starts.

use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;
use twtool::lab::ActiveCloser;

use crate::support::screen::Screen;
use crate::support::situations::{bucket_of_server, connect, listen};
use crate::support::tracer::{Tracer, close, needs_bpf, own_netns, until};
use crate::support::twtool::{command, twtool};
use crate::support::{not_checked, suite};
use crate::trace::loaded_bpf_programs;

suite! {
    pure: [
        the_option_tracer_is_refused_without_the_screen_or_with_a_recording,
    ],
    netns: [
        a_tracer_with_a_socket_names_owners_and_makers,
        a_tracer_that_starts_later_is_found,
        without_permission_the_key_t_shows_the_reason,
        with_permission_the_key_t_starts_and_ends_a_tracer,
        a_replay_has_no_makers,
    ],
}

/// At this size, no cell of a table is truncated.
const WIDE: (u16, u16) = (150, 40);

fn the_option_tracer_is_refused_without_the_screen_or_with_a_recording() {
    twtool(["watch", "-o", "ndjson", "--tracer", "/nowhere"]).refused("'--tracer'").says("the live screen");
    twtool(["watch", "--replay", "/nowhere/file", "--tracer", "/nowhere"]).refused("'--tracer'");
    twtool(["watch", "--tracer", "/nowhere/socket"]).refused("'/nowhere/socket'");
}

fn row(screen: &Screen, beginning: &str) -> Option<String> {
    screen.text().lines().find(|line| line.starts_with(beginning)).map(str::to_owned)
}

/// Waits until the screen shows the socket of this close with its owner. The newest sockets must be the first rows.
#[track_caller]
fn shows_owner(screen: &mut Screen, close: &Value) {
    let local = format!("127.0.0.1:{} ", close["local"]);
    screen.until(|screen| row(screen, &local).is_some());
    let owner = format!("python3 ({}", close["pid"]);
    screen.until(|screen| row(screen, &local).is_some_and(|row| row.contains(&owner) && !row.contains('?')));
}

#[track_caller]
fn quits(mut screen: Screen) {
    screen.types("q");
    assert_eq!(screen.end().code(), Some(0), "{}", screen.text());
    assert!(screen.is_restored());
}

/// A process listens on the port of the first bucket, so `list --owner` infers that this process is the owner. The screen only shows
/// owners that the tracer has recorded.
fn a_tracer_with_a_socket_names_owners_and_makers() {
    needs_bpf();
    let server = listen("127.0.0.1:8080");
    bucket_of_server(&server, "127.0.0.1:8080");
    let folder = TempDir::new().expect("a folder");
    let (tracer, socket, expected) = Tracer::serve(&folder);
    let listed = twtool(["list", "--owner", "--tracer", &socket, "--local-port", "8080"]).code(0);
    assert!(listed.stdout.contains("listener?"), "{listed}");
    let mut screen = Screen::start(command(["watch", "--interval", "200ms", "--tracer", &socket]), WIDE);
    screen.until_shown("TRACING");
    screen.types("r");
    shows_owner(&mut screen, &expected[1]);
    screen.types("r");
    screen.until(|screen| row(screen, "127.0.0.1:8080 ").is_some_and(|row| row.ends_with(" -")));
    screen.types("7");
    let maker = format!("python3 ({}", expected[1]["pid"]);
    screen.until(|screen| row(screen, &maker).is_some_and(|row| row.contains("  1  ") && row.ends_with("traced")));
    screen.until(|screen| row(screen, "unknown").is_some_and(|row| row.ends_with(" -")));
    assert!(!screen.text().contains("listener"), "{}", screen.text());
    let connection = connect(&server, "127.0.0.1:8080");
    connection.close(ActiveCloser::Server).expect("a bucket");
    let own = format!("({}", std::process::id());
    screen.until(|screen| screen.text().lines().any(|line| line.contains(&own) && line.ends_with("traced")));
    screen.types("t");
    screen.until_shown("a tracer runs already, and serves ");
    tracer.stop(Signal::SIGTERM);
    screen.until(|screen| !screen.text().contains("TRACING"));
    assert!(row(&screen, &maker).is_some(), "the recorded makers stay: {}", screen.text());
    quits(screen);
}

fn a_tracer_that_starts_later_is_found() {
    needs_bpf();
    crate::support::private_proc::mount_private_folders();
    let mut screen = Screen::start(command(["watch", "--interval", "200ms"]), WIDE);
    screen.types("7");
    screen.until_shown("no tracer runs; press t to start one");
    let folder = TempDir::new().expect("a folder");
    let (_tracer, socket, expected) = Tracer::serve(&folder);
    std::os::unix::fs::symlink(socket, "/run/twtool.sock").expect("a link");
    let maker = format!("python3 ({}", expected[1]["pid"]);
    screen.until(|screen| row(screen, &maker).is_some_and(|row| row.ends_with("traced")));
    quits(screen);
}

fn without_permission_the_key_t_shows_the_reason() {
    // The tests are in a user namespace, where the kernel refuses BPF even to root.
    let mut screen = Screen::start(command(["watch", "--interval", "200ms"]), WIDE);
    screen.until_shown("0 TIME_WAIT");
    screen.types("t");
    screen.until_shown("closes cannot be traced: ");
    assert!(!screen.text().contains("TRACING"));
    if screen.text().contains("BPF_MAP_CREATE returned EPERM") {
        screen.until_shown("run twtool as root of the host");
    }
    let server = listen("127.0.0.1:8080");
    bucket_of_server(&server, "127.0.0.1:8080");
    screen.until_shown("1 TIME_WAIT");
    screen.types("7");
    screen.until_shown("no tracer runs; press t to start one");
    quits(screen);
}

fn with_permission_the_key_t_starts_and_ends_a_tracer() {
    needs_bpf();
    let before = loaded_bpf_programs();
    let Some(mut screen) = Screen::outside(&format!("watch --interval 200ms --netns {}", own_netns()), WIDE) else {
        return not_checked("the key that starts a tracer: the terminal has no path");
    };
    screen.until_shown("0 TIME_WAIT");
    screen.types("t");
    screen.until_shown("a tracer records who closes connections from now on; t ends it");
    screen.types("r");
    screen.until_shown("TRACING");
    let own: Vec<u32> = loaded_bpf_programs().difference(&before).copied().collect();
    assert!(!own.is_empty(), "a program is loaded");
    let expected = close(&["close", "accepted"]);
    let closed: Vec<&Value> = expected.iter().filter(|close| close["absent"] != true).collect();
    assert_eq!(closed.len(), 2);
    for close in &closed {
        shows_owner(&mut screen, close);
    }
    screen.types("7");
    // One process has closed both connections.
    let maker = format!("python3 ({}", closed[0]["pid"]);
    screen.until(|screen| row(screen, &maker).is_some_and(|row| row.contains("  2  ") && row.ends_with("traced")));
    screen.types("\x1b[B\r");
    screen.until_shown("A client that closes first gets the TIME_WAIT socket");
    screen.types("xt");
    screen.until_shown("the tracer has ended");
    // `own` may also have programs of the tracer of another test. So the test waits until one of the programs is gone.
    until("the program is gone", || (!own.iter().all(|id| loaded_bpf_programs().contains(id))).then_some(()));
    assert!(row(&screen, &maker).is_some(), "the recorded makers stay: {}", screen.text());
    quits(screen);
}

fn a_replay_has_no_makers() {
    let folder = TempDir::new().expect("a folder");
    let file = folder.path().join("file");
    let file = file.to_str().expect("UTF-8");
    twtool(["watch", "-o", "ndjson", "--count", "2", "--interval", "50ms", "--record", file]).ok();
    assert!(Path::new(file).exists());
    let watch: Command = command(["watch", "--replay", file]);
    let mut screen = Screen::start(watch, WIDE);
    screen.until_shown("end of the recording");
    screen.types("7");
    screen.until_shown("a recording has no processes");
    screen.types("1t");
    screen.until_shown("a recording has no processes");
    quits(screen);
}
