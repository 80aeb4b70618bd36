//! The screen of `twtool watch`: terminals that accept no text, are small, are resized, or are shared with a shell; and the pause, filters,
//! warnings and recordings.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use tempfile::TempDir;
use twtool::lab::ActiveCloser;

use crate::support::crowd::reset;
use crate::support::procfs::time_wait;
use crate::support::screen::Screen;
use crate::support::situations::{bucket_of_server, connect, half_closed, listen, many_buckets};
use crate::support::twtool::{PATH, command, twtool};
use crate::support::{commands, suite};

suite! {
    pure: [],
    netns: [
        a_signal_ends_watch_while_the_terminal_accepts_no_text,
        rare_signals_that_end_watch_restore_the_terminal,
        a_shell_stops_and_continues_watch,
        a_resize_keeps_the_selection_and_the_wheel_scrolls,
        long_texts_scroll_on_a_small_screen,
        no_key_makes_a_paused_screen_read_sockets,
        a_new_filter_also_applies_to_old_events,
        a_bucket_that_a_rst_ends_is_shown_as_gone,
        every_warning_can_be_read,
        a_replay_that_fails_is_reported_after_the_screen,
        a_filter_works_after_the_end_of_a_replay,
        the_printed_command_replays_a_recording_with_any_name,
    ],
}

const SMALL: (u16, u16) = (80, 24);

fn watch(args: &[&str]) -> Screen {
    Screen::start(command([&["watch"], args].concat()), SMALL)
}

#[track_caller]
fn quits(mut screen: Screen) {
    screen.types("q");
    assert_eq!(screen.end().code(), Some(0), "{}", screen.text());
    assert!(screen.is_restored());
}

fn a_signal_ends_watch_while_the_terminal_accepts_no_text() {
    let server = listen("127.0.0.1:8080");
    bucket_of_server(&server, "127.0.0.1:8080");
    let folder = TempDir::new().expect("a folder");
    for name in ["stopped", "unread"] {
        let path = folder.path().join(name);
        let args = ["watch", "--interval", "50ms", "--record", path.to_str().expect("UTF-8")];
        let mut screen = Screen::start(command(args), (200, 60));
        screen.until_shown("1 TIME_WAIT");
        if name == "stopped" {
            screen.stop_output();
            screen.types("\x0c");
        } else {
            // The test does not read its side of the pseudo-terminal, so a few redraws fill the buffer of the terminal.
            screen.types(&"\x0c".repeat(100));
        }
        // watch is now usually blocked in write(2). SIGTERM must end it there, too.
        std::thread::sleep(Duration::from_millis(200));
        screen.signal(Signal::SIGTERM);
        let status = screen.ends_without_a_reader();
        assert_eq!(status.and_then(|status| status.signal()), Some(Signal::SIGTERM as i32), "{name}: {status:?}");
        assert!(screen.has_its_modes(), "{name}");
        let samples = twtool(["watch", "-o", "ndjson", "--replay", path.to_str().expect("UTF-8")]).ok();
        assert!(!samples.ndjson().is_empty(), "the recording has no sample");
    }
}

fn rare_signals_that_end_watch_restore_the_terminal() {
    // Without this limit, SIGQUIT and SIGXCPU could leave a core file.
    setrlimit(Resource::RLIMIT_CORE, 0, 0).expect("a lower limit");
    for signal in [
        Signal::SIGQUIT,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGALRM,
        Signal::SIGVTALRM,
        Signal::SIGPROF,
        Signal::SIGIO,
        Signal::SIGPWR,
        Signal::SIGSTKFLT,
        Signal::SIGXCPU,
    ] {
        let mut screen = watch(&[]);
        screen.until_shown("0 TIME_WAIT");
        screen.signal(signal);
        let status: ExitStatus = screen.end();
        assert_eq!(status.signal(), Some(signal as i32));
        assert!(screen.is_restored(), "{signal}");
    }
}

fn a_shell_stops_and_continues_watch() {
    // dash does not change the modes of the terminal. A shell has job control only on its controlling terminal, which setsid(1) sets.
    commands::needs_program("setsid");
    commands::needs_program("dash");
    let server = listen("127.0.0.1:8080");
    bucket_of_server(&server, "127.0.0.1:8080");
    let mut shell = Command::new("setsid");
    shell.args(["--wait", "--ctty", "dash", "-i"]).env("PS1", "ready: ").env_remove("ENV");
    let mut screen = Screen::start(shell, SMALL);
    screen.until_shown("ready:");
    screen.types(&format!("{PATH} watch --interval 200ms\n"));
    screen.until_shown("1 TIME_WAIT");
    for round in 1..=2 {
        screen.types("\x1a");
        screen.until(Screen::is_restored);
        // After a failed stop, twtool would have entered the alternate screen once more.
        assert_eq!(String::from_utf8_lossy(&screen.written).matches("\x1b[?1049h").count(), round);
        // A process in the background must not change the terminal, so the kernel stops twtool again (SIGTTOU).
        screen.types("clear; bg\n");
        screen.until_shown("watch --interval");
        let mut asked = 0;
        while !screen.text().contains("Stopped (tty output)") {
            asked += 1;
            assert!(asked < 300, "{}", screen.text());
            screen.types("jobs\n");
            std::thread::sleep(Duration::from_millis(100));
            screen.drain();
        }
        assert!(screen.is_restored());
        screen.types("fg\n");
        screen.until(|screen| !screen.is_restored() && screen.text().contains("TIME_WAIT, 0 FIN_WAIT_2"));
    }
    bucket_of_server(&server, "127.0.0.1:8080");
    screen.until_shown("2 TIME_WAIT");
    screen.types("q");
    screen.until(Screen::is_restored);
    screen.types("exit\n");
    assert_eq!(screen.end().code(), Some(0));
}

fn a_resize_keeps_the_selection_and_the_wheel_scrolls() {
    let server = listen("127.0.0.1:8080");
    many_buckets(&server, "127.0.0.1:8080", 100);
    let all = time_wait().len();
    let mut screen = watch(&["--interval", "1h"]);
    screen.until_shown(&format!("1 of {all}"));
    // The mouse wheel turns down and up, in xterm's mouse mode 1006 (SGR).
    screen.types("\x1b[<65;10;20M\x1b[<65;10;20M");
    screen.until_shown(&format!("7 of {all}"));
    screen.types("\x1b[<64;10;20M");
    screen.until_shown(&format!("4 of {all}"));
    screen.types("\x1b[B\x1b[B");
    screen.until_shown(&format!("5 of {all}"));
    for size in [(200, 60), (40, 10), (20, 3)] {
        screen.resize(size);
        screen.until_shown("twtool ");
    }
    screen.resize((1, 1));
    screen.resize((80, 24));
    screen.until_shown(&format!("5 of {all}"));
    screen.until_shown("sockets 2 destinations");
    quits(screen);
}

fn long_texts_scroll_on_a_small_screen() {
    let server = listen("127.0.0.1:8080");
    bucket_of_server(&server, "127.0.0.1:8080");
    let mut screen = Screen::start(command(["watch", "--interval", "1h"]), (60, 7));
    screen.until_shown("1 TIME_WAIT");
    screen.types("?");
    screen.until_shown("choose the table");
    for _ in 0..40 {
        screen.types("\x1b[B");
    }
    screen.until_shown("q, Ctrl-C   quit");
    screen.types("\x1b[<64;1;1M\x1b[<64;1;1M\x1b[<64;1;1M\x1b[<64;1;1M\x1b[<64;1;1M\x1b[<64;1;1M\x1b[<64;1;1M");
    screen.until_shown("choose the table");
    screen.types("x");
    screen.until_shown("LOCAL");
    // The question is below the end of the screen, so y does not answer it.
    screen.types("\x1b[Bk");
    screen.until_shown("This command removes");
    screen.types("y");
    screen.until_shown("scroll to the end first");
    assert_eq!(time_wait().len(), 1);
    screen.types("\x1b[F");
    screen.until_shown("Run it now? [y/N]");
    screen.types("n");
    screen.until_shown("nothing was removed");
    quits(screen);
}

fn no_key_makes_a_paused_screen_read_sockets() {
    let folder = TempDir::new().expect("a folder");
    let server = listen("127.0.0.1:8080");
    bucket_of_server(&server, "127.0.0.1:8080");
    let mut watch = command(["watch", "--interval", "200ms"]);
    watch.current_dir(folder.path());
    let mut screen = Screen::start(watch, SMALL);
    screen.until_shown("1 TIME_WAIT");
    screen.types("p");
    screen.until_shown("PAUSED");
    bucket_of_server(&server, "127.0.0.1:8080");
    let unread = |screen: &mut Screen, keys: &str, shown: &str| {
        screen.types(keys);
        screen.until_shown(shown);
        assert!(!screen.text().contains("2 TIME_WAIT"), "{keys:?}: {}", screen.text());
    };
    unread(&mut screen, "w", "the recording begins when you press p");
    // The collector (the thread that reads sockets) handles requests in order. It applies a new filter to the rows of its last read.
    unread(&mut screen, "/dport = :8080\r", "0 TIME_WAIT");
    unread(&mut screen, "/\x15sport = :8080\r", "1 TIME_WAIT");
    unread(&mut screen, "/\x15sprt\r", "invalid filter");
    unread(&mut screen, "\x15dev lo\r", "a filter with an interface needs");
    unread(&mut screen, "\x15\r", "1 TIME_WAIT");
    screen.until_shown("? help");
    unread(&mut screen, "w", "nothing was recorded");
    unread(&mut screen, "2", "free ports are unknown");
    unread(&mut screen, "1", "EXPIRES");
    screen.types("p");
    screen.until_shown("2 TIME_WAIT");
    // w ends a recording even while the screen is paused and reads nothing.
    screen.types("w");
    screen.until_shown("RECORDING");
    bucket_of_server(&server, "127.0.0.1:8080");
    screen.until_shown("3 TIME_WAIT");
    screen.types("p");
    screen.until_shown("PAUSED");
    screen.types("w");
    screen.until(|_| {
        fs::read_dir(folder.path())
            .expect("a folder")
            .any(|file| file.expect("a file").file_name().to_string_lossy().ends_with(".twrec"))
    });
    quits(screen);
}

fn a_new_filter_also_applies_to_old_events() {
    let (server, other) = (listen("127.0.0.1:8080"), listen("127.0.0.1:8081"));
    let mut screen = watch(&["--interval", "200ms"]);
    screen.until_shown("0 TIME_WAIT");
    screen.types("6");
    bucket_of_server(&server, "127.0.0.1:8080");
    bucket_of_server(&other, "127.0.0.1:8081");
    let shown = |screen: &Screen, port: &str| screen.text().contains(&format!("127.0.0.1:{port}"));
    screen.until(|screen| shown(screen, "8080") && shown(screen, "8081"));
    screen.types("/sport = :8081\r");
    screen.until_shown("1 TIME_WAIT");
    screen.until(|screen| !shown(screen, "8080") && shown(screen, "8081"));
    quits(screen);
}

fn a_bucket_that_a_rst_ends_is_shown_as_gone() {
    let server = listen("127.0.0.1:8080");
    let mut screen = watch(&["--interval", "200ms"]);
    // A RST on an open connection leaves no bucket, so there is no event.
    let open = connect(&server, "127.0.0.1:8080");
    reset(open.client.into());
    drop(open.server);
    let peer = half_closed(&server, "127.0.0.1:8080", ActiveCloser::Server);
    screen.until_shown("0 TIME_WAIT, 1 FIN_WAIT_2");
    screen.types("6");
    reset(peer.into());
    screen.until_shown("0 TIME_WAIT, 0 FIN_WAIT_2");
    screen.until_shown("gone ");
    screen.types("\x1b[B\r");
    let inference = "A RST, a new connection or SOCK_DESTROY may have removed it.";
    screen.until(|screen| screen.words().contains(inference));
    screen.types("x");
    quits(screen);
}

fn every_warning_can_be_read() {
    let mut screen = watch(&["--interval", "1h", "sport > 0 or sport > 1 and sport > 2"]);
    screen.until_shown("press ! for all of it");
    assert!(!screen.text().contains("sport >= 3"), "{}", screen.text());
    screen.types("!");
    screen.until_shown("sport >= 3");
    // A new filter removes the warnings of the old filter, even on a paused screen.
    screen.types("xp/\x15sport > 0\r");
    screen.until(|screen| !screen.text().contains("press ! for all of it"));
    quits(screen);
    let mut screen = watch(&["--interval", "1h"]);
    screen.types("!");
    screen.until_shown("there is no warning");
    quits(screen);
}

/// Records a series of two samples, and returns its path.
fn series(folder: &TempDir, name: &str) -> String {
    let path = folder.path().join(name).to_str().expect("UTF-8").to_owned();
    twtool(["watch", "-o", "ndjson", "--interval", "1s", "--count", "2", "--record", &path]).code(0);
    path
}

fn a_replay_that_fails_is_reported_after_the_screen() {
    let folder = TempDir::new().expect("a folder");
    let path = series(&folder, "series");
    let whole = fs::read_to_string(&path).expect("read");
    let second = whole.match_indices("{\"format\"").nth(1).expect("two samples").0;
    fs::write(&path, &whole[..second]).expect("cut");
    let mut screen = watch(&["--replay", &path]);
    screen.until_shown("the replay has ended early");
    screen.types("q");
    assert_eq!(screen.end().code(), Some(2));
    let written = String::from_utf8_lossy(&screen.written).into_owned();
    let (_, behind) = written.split_once("\x1b[?1049l").expect("it leaves the alternate screen");
    assert!(behind.contains("its end is missing, so it was cut off"), "{behind:?}");
    assert!(screen.is_restored());
}

fn a_filter_works_after_the_end_of_a_replay() {
    let server = listen("127.0.0.1:8080");
    bucket_of_server(&server, "127.0.0.1:8080");
    let folder = TempDir::new().expect("a folder");
    let path = series(&folder, "series");
    let mut screen = watch(&["--replay", &path]);
    screen.until_shown("end of the recording");
    screen.types("/sport = :1\r");
    screen.until_shown("0 TIME_WAIT");
    screen.types("/\x15dev lo\r");
    screen.until_shown("the recording has ended");
    screen.types("\x15\r");
    screen.until_shown("1 TIME_WAIT");
    quits(screen);
}

fn the_printed_command_replays_a_recording_with_any_name() {
    let folder = TempDir::new().expect("a folder");
    for name in ["plain.twrec", "a b's $HOME.twrec", "\u{1b}[31mred\u{202e}.twrec", "-x.twrec"] {
        let path = folder.path().join(name);
        let mut watch = command(["watch", "--interval", "100ms", "--record"]);
        watch.arg(&path);
        let mut screen = Screen::start(watch, (200, 24));
        screen.until_shown("RECORDING");
        screen.types("w");
        screen.until_shown("to see the recording:");
        let text = screen.text();
        let line = text.lines().find(|line| line.starts_with(PATH)).expect("the command").to_owned();
        screen.until(|_| path.exists());
        quits(screen);
        let mut shell = vec!["bash"];
        shell.retain(|shell| commands::has(shell));
        // twtool quotes a name with control characters in the notation of bash ($'...'), which sh may not know.
        let run = commands::run_in(if shell.is_empty() { &["sh"] } else { &shell }, &format!("{line} -o ndjson"));
        if shell.is_empty() && line.contains("$'") {
            continue;
        }
        assert!(!run.ok().ndjson().is_empty(), "{name:?}");
    }
}
