//! The live screen of `twtool watch` on a pseudo-terminal: it reacts to keys, and restores the terminal when a key, a signal or a panic
//! ends it.

use std::ffi::OsStr;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use twtool::lab::Server;
use twtool::watch::screen::terminal::TerminalGuard;

use crate::support::kernel;
use crate::support::procfs::time_wait;
use crate::support::screen::Screen;
use crate::support::situations::{bucket_of_client, bucket_of_server, listen, many_buckets};
use crate::support::suite;
use crate::support::twtool::{Run, command, twtool};

suite! {
    pure: [
        without_a_terminal_the_error_names_the_stream,
        a_panic_restores_the_terminal,
    ],
    netns: [
        keys_change_what_the_screen_shows,
        a_typed_filter_is_checked_and_applied,
        keys_and_signals_that_end_watch_restore_the_terminal,
        a_stop_restores_the_terminal_until_watch_continues,
        a_lost_terminal_ends_watch,
        a_paused_screen_does_not_read_sockets,
        the_key_k_proposes_a_kill_and_asks_before_it_runs,
        a_recording_can_be_replayed,
        options_and_environment_select_colours_and_characters,
        only_changes_are_written_to_the_terminal,
        count_and_duration_end_the_screen,
    ],
}

const SMALL: (u16, u16) = (80, 24);

fn watch(args: &[&str]) -> Screen {
    Screen::start(command([&["watch"], args].concat()), SMALL)
}

/// Starts a server on port 8080, and makes this number of buckets on its port.
fn server_of(count: usize) -> Server {
    let server = listen("127.0.0.1:8080");
    for _ in 0..count {
        bucket_of_server(&server, "127.0.0.1:8080");
    }
    server
}

#[track_caller]
fn quits(mut screen: Screen) {
    screen.types("q");
    let status = screen.end();
    assert_eq!(status.code(), Some(0), "{}", screen.text());
    assert!(screen.is_restored());
}

fn without_a_terminal_the_error_names_the_stream() {
    twtool(["watch"]).refused("-o ndjson");
    let screen = |term: &str| {
        let mut command = command(["watch"]);
        command.env("TERM", term);
        Screen::start(command, SMALL)
    };
    for term in ["dumb", ""] {
        let mut screen = screen(term);
        assert_eq!(screen.end().code(), Some(2));
        let written = String::from_utf8_lossy(&screen.written).into_owned();
        assert!(written.contains("TERM is dumb") && written.contains("-o ndjson"), "{written}");
        assert!(screen.is_restored());
    }
    let mut piped = command(["watch"]);
    piped.stdin(Stdio::null());
    Run::of(&mut piped).refused("terminal");
}

/// The environment variable with which this test program only calls [`panic_on_a_screen`].
pub(crate) const PANICKING: &str = "TWTOOL_TEST_PANICKING_SCREEN";

/// Panics while the screen is on the terminal. The panic is on another thread, because the thread that takes samples may panic.
pub(crate) fn panic_on_a_screen() {
    let _guard = TerminalGuard::take().expect("a terminal");
    let _ = std::thread::spawn(|| panic!("in the middle of the screen")).join();
    // With panic = "abort" in a release build, nothing runs after the panic hook. abort() imitates this.
    std::process::abort();
}

fn a_panic_restores_the_terminal() {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.env(PANICKING, "yes");
    let mut screen = Screen::start(command, SMALL);
    assert_eq!(screen.end().signal(), Some(Signal::SIGABRT as i32));
    let written = String::from_utf8_lossy(&screen.written).into_owned();
    let (before, behind) = written.split_once("\x1b[?1049l").expect("it leaves the alternate screen");
    assert!(before.contains("\x1b[?1049h") && behind.contains("in the middle of the screen"), "{written:?}");
    assert!(screen.is_restored(), "{written:?}");
}

fn keys_change_what_the_screen_shows() {
    let server = server_of(3);
    bucket_of_client(&server, "127.0.0.1:8080");
    let mut screen = watch(&["--interval", "200ms"]);
    screen.until_shown("4 TIME_WAIT, 0 FIN_WAIT_2");
    screen.until_shown("127.0.0.1:8080 (http-alt)");
    screen.types("3");
    screen.until_shown("LOCAL PORT ");
    screen.types("\t");
    screen.until_shown("REMOTE ADDRESS ");
    screen.types("2");
    // The client's connection is the only outbound one.
    screen.until_shown("not at this rate");
    screen.types("6");
    screen.until_shown("no events since the first read");
    bucket_of_server(&server, "127.0.0.1:8080");
    screen.until_shown("entered");
    screen.until_shown("5 TIME_WAIT");
    screen.types("?");
    screen.until_shown("propose 'twtool kill' for the selected row");
    screen.types("x1r");
    screen.until_shown("s sort: expires, reversed");
    screen.resize((200, 60));
    screen.until_shown("2 destinations 3 local ports");
    screen.until(|screen| screen.text().lines().count() == 60);
    screen.types("+");
    // On a slow machine, the text is "every 800ms instead of 250ms". A narrow screen would truncate it if the version of the kernel
    // is long.
    screen.until_shown("250ms");
    quits(screen);
}

fn a_typed_filter_is_checked_and_applied() {
    let server = server_of(3);
    bucket_of_client(&server, "127.0.0.1:8080");
    let mut screen = watch(&["--interval", "200ms", "sport = :8080"]);
    screen.until_shown("3 TIME_WAIT");
    screen.until_shown("/ filter: sport = :8080");
    screen.types("/\x15sprt = :80\r");
    screen.until_shown("  ^^^^");
    screen.until_shown("invalid filter: expected a test");
    screen.types("\x15not sport = :8080\r");
    screen.until_shown("1 TIME_WAIT");
    screen.types("\x1b");
    screen.until_shown("4 TIME_WAIT");
    quits(screen);
}

fn keys_and_signals_that_end_watch_restore_the_terminal() {
    let _server = server_of(1);
    let ended = |end: &dyn Fn(&mut Screen)| {
        let mut screen = watch(&[]);
        screen.until_shown("1 TIME_WAIT");
        assert!(!screen.is_restored());
        end(&mut screen);
        let status = screen.end();
        assert!(screen.is_restored(), "{:?}", String::from_utf8_lossy(&screen.written));
        status
    };
    assert_eq!(ended(&|screen| screen.types("q")).code(), Some(0));
    assert_eq!(ended(&|screen| screen.types("\x03")).signal(), Some(Signal::SIGINT as i32));
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        assert_eq!(ended(&|screen| screen.signal(signal)).signal(), Some(signal as i32));
        // The signal also ends twtool while the user types a filter.
        let status = ended(&|screen| {
            screen.types("/abc");
            screen.until_shown("filter: abc");
            screen.signal(signal);
        });
        assert_eq!(status.signal(), Some(signal as i32));
    }
}

fn a_stop_restores_the_terminal_until_watch_continues() {
    let server = server_of(1);
    let mut screen = watch(&["--interval", "200ms"]);
    screen.until_shown("1 TIME_WAIT");
    for by_key in [true, false] {
        if by_key {
            screen.types("\x1a");
        } else {
            screen.signal(Signal::SIGTSTP);
        }
        screen.await_stop();
        screen.drain();
        assert!(screen.is_restored());
        screen.signal(Signal::SIGCONT);
        screen.until(|screen| !screen.is_restored() && screen.text().contains("1 TIME_WAIT"));
    }
    bucket_of_server(&server, "127.0.0.1:8080");
    screen.until_shown("2 TIME_WAIT");
    quits(screen);
}

fn a_lost_terminal_ends_watch() {
    let mut screen = watch(&[]);
    screen.until_shown("0 TIME_WAIT");
    assert_eq!(screen.hang_up().code(), Some(2));
}

fn a_paused_screen_does_not_read_sockets() {
    let server = server_of(1);
    let mut screen = watch(&["--interval", "10ms"]);
    screen.until_shown("1 TIME_WAIT");
    screen.types("p");
    screen.until_shown("PAUSED");
    bucket_of_server(&server, "127.0.0.1:8080");
    // During 20 changes of the table, a screen that reads sockets every 10 ms would show the second bucket.
    for turn in 0..20 {
        let table = ["3", "1"][turn % 2];
        screen.types(table);
        screen.until_shown(["LOCAL PORT", "EXPIRES"][turn % 2]);
        assert!(screen.text().contains("1 TIME_WAIT, "), "{}", screen.text());
    }
    screen.types("p");
    screen.until_shown("2 TIME_WAIT, ");
    quits(screen);
}

fn the_key_k_proposes_a_kill_and_asks_before_it_runs() {
    kernel::needs(kernel::destroys_buckets(), "SOCK_DESTROY of timewait buckets");
    let _server = server_of(3);
    let mut screen = Screen::start(command(["watch", "--interval", "200ms"]), (200, 24));
    screen.until_shown("3 TIME_WAIT");
    screen.types("\x1b[B\x1b[Bk");
    screen.until_shown("Run it now? [y/N]");
    screen.until_shown("kill 'src 127.0.0.1:8080 and dst 127.0.0.1:");
    screen.types("n");
    screen.until_shown("nothing was removed");
    screen.types("ky");
    screen.until_shown("Remove 1 bucket? [y/N]");
    assert!(screen.text().contains("risk: ") && time_wait().len() == 3);
    screen.types("y\n");
    screen.until_shown("1 destroyed, ");
    screen.until_shown("press Enter to return");
    assert_eq!(time_wait().len(), 2);
    screen.types("\n");
    screen.until_shown("2 TIME_WAIT");
    quits(screen);
}

fn a_recording_can_be_replayed() {
    let server = server_of(2);
    let folder = tempfile::tempdir().expect("a folder");
    let mut watch = command(["watch", "--interval", "100ms"]);
    watch.current_dir(folder.path());
    let mut screen = Screen::start(watch, SMALL);
    screen.until_shown("2 TIME_WAIT");
    screen.types("w");
    screen.until_shown("RECORDING");
    bucket_of_server(&server, "127.0.0.1:8080");
    screen.until_shown("3 TIME_WAIT");
    screen.types("w");
    // The length of the path of twtool decides where the line is broken.
    screen.until(|screen| screen.words().contains(" watch --replay twtool-"));
    screen.until(|screen| !screen.text().contains("RECORDING"));
    quits(screen);
    let files: Vec<_> =
        std::fs::read_dir(folder.path()).expect("a folder").map(|file| file.expect("a file").path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    let stream = twtool([
        OsStr::new("watch"),
        OsStr::new("--replay"),
        files[0].as_os_str(),
        OsStr::new("-o"),
        OsStr::new("ndjson"),
    ]);
    assert!(stream.ok().stdout.contains("\"time_wait\":3"));
    let mut screen = Screen::start(command([OsStr::new("watch"), OsStr::new("--replay"), files[0].as_os_str()]), SMALL);
    screen.until_shown("end of the recording");
    screen.until_shown("3 TIME_WAIT");
    screen.types("2");
    screen.until_shown("free ports are unknown");
    quits(screen);
}

fn options_and_environment_select_colours_and_characters() {
    let server = listen("127.0.0.1:8080");
    many_buckets(&server, "127.0.0.1:8080", 30);
    let written = |args: &[&str], name: &str, value: &str| {
        let mut command = command([&["watch", "--interval", "200ms"], args].concat());
        command.env(name, value);
        let mut screen = Screen::start(command, SMALL);
        screen.until_shown("30 TIME_WAIT");
        // The mark below a mistake in a filter is red.
        screen.types("/(\r");
        screen.until_shown("^");
        // The test waits after Esc, because Esc and q together would be Alt-q.
        screen.types("\x1b");
        screen.until(|screen| !screen.text().contains("filter: "));
        screen.types("q");
        screen.end();
        String::from_utf8(screen.written).expect("UTF-8")
    };
    let red = "\x1b[38;5;1";
    assert!(written(&[], "LC_ALL", "C.UTF-8").contains(red));
    assert!(!written(&[], "NO_COLOR", "1").contains(red));
    assert!(!written(&["--color", "never"], "LC_ALL", "C.UTF-8").contains(red));
    assert!(written(&["--color", "always"], "NO_COLOR", "1").contains(red));
    assert!(written(&[], "LC_ALL", "C").is_ascii());
    assert!(!written(&[], "LC_ALL", "C.UTF-8").is_ascii());
}

fn only_changes_are_written_to_the_terminal() {
    let server = listen("127.0.0.1:8080");
    many_buckets(&server, "127.0.0.1:8080", 500);
    let mut screen = watch(&["--interval", "1h"]);
    screen.until_shown("500 TIME_WAIT");
    screen.types("p");
    screen.until_shown("PAUSED");
    screen.drain();
    let before = screen.written.len();
    // This key highlights one line, so only few bytes change on the screen.
    screen.types("\x1b[B");
    screen.until(|screen| screen.written.len() > before);
    screen.drain();
    let changed = screen.written.len() - before;
    assert!(changed < 600, "{changed} bytes of {before} for one line");
    quits(screen);
}

fn count_and_duration_end_the_screen() {
    let _server = server_of(1);
    for args in [
        ["--interval", "1h", "--count", "1"],
        ["--interval", "50ms", "--count", "2"],
        ["--interval", "50ms", "--duration", "100ms"],
    ] {
        let mut screen = watch(&args);
        assert_eq!(screen.end().code(), Some(0));
        assert!(screen.is_restored());
    }
}
