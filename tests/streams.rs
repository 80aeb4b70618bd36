//! Exit codes and streams: a closed pipe, a full disk, a closed stdout, help and usage errors, colour.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Command, Stdio};

use nix::pty::openpty;
use twtool::lab::Server;
use twtool::model::name::is_hidden;

use crate::support::private_proc::{self, Resident};
use crate::support::situations::{Mixed, bucket_of_server, listen, many_buckets};
use crate::support::twtool::{PATH, Run, command, twtool};
use crate::support::{not_checked, suite};

suite! {
    pure: [
        without_a_command_twtool_prints_help_to_stderr_and_fails,
        short_help_and_long_help_go_to_stdout,
        the_version_goes_to_stdout,
        usage_errors_leave_stdout_empty,
        a_closed_stderr_does_not_change_the_exit_code_of_an_error,
    ],
    netns: [
        a_closed_pipe_ends_quietly_with_success,
        a_full_disk_is_an_error_with_its_reason,
        a_closed_output_is_an_error,
        piped_output_has_no_escape_sequences_by_default,
        machine_formats_are_never_coloured,
        names_with_escape_sequences_do_not_control_the_terminal,
    ],
}

fn without_a_command_twtool_prints_help_to_stderr_and_fails() {
    let run = twtool([] as [&str; 0]).code(2);
    assert!(run.stdout.is_empty(), "{run}");
    run.says("Usage:").says("bind-test").says("list").says("port");
}

fn short_help_and_long_help_go_to_stdout() {
    for subcommand in [[].as_slice(), &["list"], &["port"], &["bind-test"], &["wait"], &["kill"]] {
        let short = twtool([subcommand, &["-h"]].concat()).ok().prints("Usage:");
        let long = twtool([subcommand, &["--help"]].concat()).ok().prints("Usage:");
        assert!(long.stdout.len() > short.stdout.len(), "{short}{long}");
        assert!(!long.stdout.contains('\x1b'), "{long}");
        assert!(long.stdout.to_lowercase().contains("example"), "long help has examples{long}");
    }
    twtool(["--help"]).ok().prints("TCP");
}

fn the_version_goes_to_stdout() {
    let version = format!("twtool {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(twtool(["-V"]).ok().stdout, version);
    let long = twtool(["--version"]).ok().stdout;
    let details = long.strip_prefix(&version).expect("the same first line");
    assert!(details.starts_with("commit: ") && details.contains("\nfeatures: cli"), "{long}");
}

fn usage_errors_leave_stdout_empty() {
    for (args, word) in [
        (["nosuch"].as_slice(), "nosuch"),
        (&["list", "--nosuch"], "--nosuch"),
        (&["list", "extra"], "extra"),
        (&["list", "--limit", "many"], "many"),
        (&["list", "--limit", "-1"], "-1"),
        (&["list", "--json", "-o", "csv"], "--json"),
        (&["list", "-o"], "-o"),
        (&["completions", "tcsh"], "tcsh"),
    ] {
        twtool(args).refused(word);
    }
    for args in [["port"].as_slice(), &["bind-test"], &["wait"], &["completions"]] {
        let run = twtool(args).code(2);
        assert!(run.stdout.is_empty() && !run.stderr.is_empty(), "{run}");
    }
}

fn a_closed_stderr_does_not_change_the_exit_code_of_an_error() {
    let script = r#""$0" list --nosuch 2>&-"#;
    let run = Run::of(Command::new("sh").args(["-c", script, PATH]).stdin(Stdio::null()));
    assert_eq!((run.code, run.stdout.as_str()), (Some(2), ""), "{run}");
}

fn a_closed_pipe_ends_quietly_with_success() {
    let server = listen("127.0.0.1:8080");
    many_buckets(&server, "127.0.0.1:8080", 3000);
    for format in ["table", "json", "ndjson", "csv"] {
        let mut command = command(["list", "-o", format]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("twtool can be started");
        let mut reader = BufReader::new(child.stdout.take().expect("a pipe"));
        if format == "json" {
            // The output may be a single line, so read only a part of it.
            reader.read_exact(&mut [0; 100]).expect("100 bytes");
        } else {
            let mut line = String::new();
            reader.read_line(&mut line).expect("a line");
            assert!(line.len() > 10, "{format}: {line:?}");
        }
        // The rest does not fit into the pipe, so twtool has not written all of it yet.
        drop(reader);
        let output = child.wait_with_output().expect("it ends");
        let run = Run::ended(&command, &output);
        assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""), "{format}{run}");
    }
}

fn full() -> Stdio {
    File::options().write(true).open("/dev/full").expect("/dev/full can be opened").into()
}

fn a_full_disk_is_an_error_with_its_reason() {
    let server = listen("127.0.0.1:8080");
    bucket_of_server(&server, "127.0.0.1:8080");
    for args in [
        ["list"].as_slice(),
        &["list", "--json"],
        &["list", "-o", "ndjson"],
        &["list", "-o", "csv"],
        &["list", "--count"],
        &["port", "80"],
        &["port", "80", "--json"],
        &["bind-test", "9000"],
        &["wait", "9000"],
        &["wait", "9000", "-o", "ndjson"],
        &["kill", "--all", "--dry-run"],
        &["kill", "--all", "--dry-run", "--json"],
        &["completions", "bash"],
        &["man"],
        &["--help"],
        &["list", "-h"],
        &["--version"],
    ] {
        let mut command = command(args);
        let output =
            command.stdout(full()).stderr(Stdio::piped()).spawn().and_then(std::process::Child::wait_with_output);
        let run = Run::ended(&command, &output.expect("it ran")).code(2);
        run.says("No space left on device");
    }
    let mut quiet = command(["list", "-q"]);
    let status = quiet.stdout(full()).status().expect("it ran");
    assert_eq!(status.code(), Some(0), "a run without output needs no space");
}

fn a_closed_output_is_an_error() {
    let server = listen("127.0.0.1:8080");
    bucket_of_server(&server, "127.0.0.1:8080");
    for args in [
        "list",
        "list --json",
        "list -o ndjson",
        "list --count",
        "port 80",
        "bind-test 9000",
        "wait 9000",
        "--help",
        "man",
    ] {
        let script = format!("exec \"$0\" {args} >&-");
        let run = Run::of(Command::new("sh").args(["-c", &script, PATH]).stdin(Stdio::null())).code(2);
        assert!(!run.stderr.is_empty(), "stderr has the reason{run}");
    }
    let run = Run::of(Command::new("sh").args(["-c", "exec \"$0\" list -q >&-", PATH]).stdin(Stdio::null()));
    assert_eq!(run.code, Some(0), "a run without output needs no stdout{run}");
}

fn piped_output_has_no_escape_sequences_by_default() {
    let mixed = Mixed::make();
    for args in [
        ["list"].as_slice(),
        &["list", "--fin-wait-2"],
        &["list", "--color", "auto"],
        &["list", "--color", "never"],
        &["port", "0", "80", "8080", "60000"],
        &["bind-test", "8080"],
        &["bind-test", "9000"],
        &["list", "--nosuch"],
        &["--help"],
        &["list", "--help"],
    ] {
        for environment in [("TERM", "xterm-256color"), ("COLORTERM", "truecolor")] {
            let run = Run::of(command(args).env(environment.0, environment.1));
            assert!(!run.stdout.contains('\x1b') && !run.stderr.contains('\x1b'), "{run}");
        }
    }
    for args in [["list"].as_slice(), &["port", "80", "8080"]] {
        let plain = twtool([args, &["--color", "never"]].concat()).ok();
        let coloured = twtool([args, &["--color", "always"]].concat()).ok();
        assert!(coloured.stdout.contains("\x1b["), "{coloured}");
        assert_eq!(
            without_escapes(&coloured.stdout).lines().count(),
            plain.stdout.lines().count(),
            "colour does not change the number of lines{plain}{coloured}"
        );
        let asked = Run::of(command([args, &["--color", "always"]].concat()).env("NO_COLOR", "1"));
        assert!(asked.stdout.contains("\x1b["), "--color overrides NO_COLOR{asked}");
    }
    mixed.end();
}

fn machine_formats_are_never_coloured() {
    let mixed = Mixed::make();
    for format in ["json", "ndjson", "csv"] {
        let run = twtool(["list", "-o", format, "--color", "always"]).ok();
        assert!(!run.stdout.contains('\x1b') && !run.stdout.contains("\\u001b"), "{run}");
    }
    let run = twtool(["list", "--count", "--color", "always"]).ok();
    assert_eq!(run.stdout, format!("{}\n", Mixed::TIME_WAIT));
    mixed.end();
}

fn names_with_escape_sequences_do_not_control_the_terminal() {
    const SERVICE: &str = "s\u{9b}2J\u{202e}\x1b[31m,\"\u{2066}\u{200b}";
    const NETNS: &str = "n\u{9b}2J\u{202e}\x1b]0;x\x07,\"\n\u{2029}";
    const COMM: &str = "c\u{9b}\u{202e}\x1b[m\n";
    const INTERFACE: &str = "i\u{9b}\u{202e}\x1b[m\"";
    private_proc::mount_private_folders();
    let server = listen("127.0.0.1:8080");
    private_proc::name_this_namespace(NETNS);
    let rename = Command::new("ip").args(["link", "set", "lo", "down"]).status().is_ok_and(|status| status.success())
        && Command::new("ip")
            .args(["link", "set", "lo", "name", INTERFACE])
            .status()
            .is_ok_and(|status| status.success())
        && Command::new("ip").args(["link", "set", INTERFACE, "up"]).status().is_ok_and(|status| status.success());
    let device = if rename {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        socket.bind_device(Some(INTERFACE.as_bytes())).expect("SO_BINDTODEVICE");
        let server = Server::listen_on(socket, "127.0.0.1:8081".parse().expect("an address")).expect("a listener");
        bucket_of_server(&server, "127.0.0.1:8081");
        Some(server)
    } else {
        not_checked("an interface with a hostile name: ip(8) does not rename lo here");
        None
    };
    bucket_of_server(&server, "127.0.0.1:8080");
    let folder = tempfile::tempdir().expect("a folder");
    let program = folder.path().join(COMM);
    let folders = std::env::var_os("PATH").expect("a PATH");
    let cat = std::env::split_paths(&folders).map(|folder| folder.join("cat")).find(|path| path.exists());
    std::fs::copy(cat.expect("a cat"), &program).expect("copied");
    let (there, resident) = private_proc::in_new_namespace(|| {
        let server = listen("127.0.0.1:8080");
        bucket_of_server(&server, "127.0.0.1:8080");
        (server, Resident::start_as(&program))
    });
    let pid = resident.pid();
    // In /etc/services, a line feed ends an entry, so the name of the service has none.
    std::fs::write("/etc/services", format!("{SERVICE} 8080/tcp\n{SERVICE}2 8081/tcp\n")).expect("written");

    let own = "/proc/self/ns/net";
    for args in [
        ["list"].as_slice(),
        &["list", "--netns", own, "--netns", &pid],
        &["list", "--columns", "local,interface,netns_name"],
        &["summary"],
        &["summary", "--netns", own, "--netns", &pid],
        &["summary", "--by", "local-port"],
        &["port", "8080", "8081"],
        &["bind-test", "8080"],
        &["bind-test", "8081"],
        &["bind-test", "8080", "--netns", &pid],
        &["wait", "8080", "--timeout", "0"],
        &["capacity"],
        &["capacity", "--netns", NETNS],
        &["connect-test", "127.0.0.1:8080", "--from", "127.0.0.1:8081"],
        &["doctor"],
        &["kill", "--all", "--dry-run"],
        &["list", "dev", "nosuch"],
        &["list", "--netns", "nosuch"],
    ] {
        for format in ["table", "json", "ndjson", "csv"] {
            let args = [args, &["-o", format]].concat();
            let (piped, shown) = (twtool(&args), on_a_terminal(&args));
            let hidden = |c: char| c != '\n' && is_hidden(c);
            let steers = |text: &str| text.contains(hidden);
            assert!(!steers(&piped.stderr), "{:?}", piped.stderr);
            assert!(format == "csv" || !steers(&piped.stdout), "{args:?} {:?}", piped.stdout);
            assert!(!steers(&without_escapes(&shown)), "{args:?} {shown:?}");
            assert_eq!(shown.is_empty(), piped.stdout.is_empty(), "{args:?}");
            match format {
                "ndjson" => drop(piped.ndjson()),
                "json" if !piped.stdout.is_empty() => drop(piped.json()),
                _ => {}
            }
        }
    }
    // ndjson and csv contain the original names. On a slow machine the buckets may have expired, so make new ones.
    bucket_of_server(&server, "127.0.0.1:8080");
    if let Some(server) = &device {
        bucket_of_server(server, "127.0.0.1:8081");
    }
    let records = twtool(["list", "-o", "ndjson"]).ok().ndjson();
    let of = |port: u64| records.iter().find(|record| record["local_port"] == port).expect("a record");
    assert_eq!((&of(8080)["local_service"], &of(8080)["netns_name"]), (&SERVICE.into(), &NETNS.into()));
    assert!(device.is_none() || of(8081)["interface"] == INTERFACE, "{records:?}");
    let (header, rows) = twtool(["list", "-o", "csv"]).ok().csv();
    let service = header.iter().position(|key| key == "local_service").expect("a column");
    assert!(rows.iter().any(|row| row[service] == SERVICE), "{rows:?}");
    drop(there);
}

/// Runs twtool with a terminal as stdout, and returns the text that the terminal gets.
fn on_a_terminal(args: &[&str]) -> String {
    let terminal = openpty(None, None).expect("a terminal");
    let mut command = command(args);
    let mut child = command.stdout(terminal.slave).stderr(Stdio::null()).spawn().expect("twtool can be started");
    // This closes the copy of the slave end in `command`. Otherwise read() on the master end would not report the end of the child.
    command.stdout(Stdio::null());
    let mut shown = vec![];
    // At the end, read() fails with EIO.
    let _ = File::from(terminal.master).read_to_end(&mut shown);
    child.wait().expect("it ends");
    // The terminal prints each line feed as a carriage return and a line feed.
    String::from_utf8(shown).expect("UTF-8").replace("\r\n", "\n")
}

/// The text without SGR sequences (ECMA-48, section 8.3.117).
fn without_escapes(text: &str) -> String {
    let mut parts = text.split("\x1b[");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        plain.push_str(part.split_once('m').expect("an SGR sequence").1);
    }
    plain
}
