//! `twtool why`: its report about a program equals what the program did, and the program runs as it does without twtool.
//!
//! In some tests, the watched program is `twtool bind-test`: it binds with every set of options, and reports each result.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use serde_json::Value;
use twtool::model::bind::ReuseOptions;

use crate::support::commands::needs_program;
use crate::support::limits::refuse;
use crate::support::situations::{bucket_of_server, listen};
use crate::support::suite;
use crate::support::twtool::{PATH, Run, command, twtool};

suite! {
    pure: [
        wrong_usage_is_refused,
    ],
    netns: [
        every_failure_of_a_program_is_reported_with_its_errno_and_options,
        a_listen_is_reported_with_the_port_that_the_kernel_chose,
        a_port_that_the_program_holds_itself_is_reported_as_such,
        why_returns_the_exit_status_of_the_command,
        only_the_command_uses_stdin_and_stdout,
        a_program_that_daemonises_is_watched_to_its_end,
        a_daemon_whose_parent_ends_at_once_runs_on,
        without_a_seccomp_filter_no_call_needs_twtool_after_the_end_of_the_command,
        each_failure_is_explained_by_its_own_reason,
        a_prohibited_route_is_not_reported_as_a_firewall,
        a_connection_with_the_same_ends_blocks_a_fixed_source_port,
        the_program_keeps_the_action_of_sigpipe,
        the_reason_why_a_process_cannot_be_traced_is_reported,
        a_log_that_cannot_be_written_is_reported,
        a_thousand_short_processes_are_watched,
        a_refused_ptrace_gives_the_exact_reason,
        why_inside_of_why_is_refused_with_the_reason,
        the_commands_that_are_printed_work,
        the_end_repeats_the_cause_of_each_failure,
        without_a_seccomp_filter_the_slower_way_reports_the_same,
    ],
}

/// Runs `twtool why -o ndjson` with a command, and returns the run and its records.
pub(crate) fn why(words: &[&str]) -> (Run, Vec<Value>) {
    let run = twtool(["why", "-o", "ndjson", "--"].iter().chain(words));
    let records = records(&run);
    (run, records)
}

/// The lines of standard error that are records.
#[track_caller]
pub(crate) fn records(run: &Run) -> Vec<Value> {
    let lines = run.stderr.lines().filter(|line| line.starts_with('{'));
    lines.map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}{run}"))).collect()
}

pub(crate) fn of_type<'a>(records: &'a [Value], wanted: &str) -> Vec<&'a Value> {
    records.iter().filter(|record| record["type"] == wanted).collect()
}

/// The address, the options and the errno of each failed bind, in a stable order.
type Failures = BTreeSet<(String, Vec<String>, String)>;

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|name| name.as_str().map(str::to_owned)).collect()
}

fn failures_of_bind_test(run: &Run) -> Failures {
    let failed = |attempt: &&Value| attempt["bind"] != "ok";
    let attempts = run.records("attempts");
    attempts
        .iter()
        .filter(failed)
        .map(|attempt| {
            let text = |key: &str| attempt[key].as_str().expect("a text").to_owned();
            (text("addr"), strings(&attempt["options"]), text("bind"))
        })
        .collect()
}

/// The failures that `why` reports about a program. Options other than the two of bind-test are left out.
fn failures_of_why(records: &[Value]) -> Failures {
    let reuse = |options: Vec<String>| options.into_iter().filter(|name| name.starts_with("SO_REUSE")).collect();
    of_type(records, "call")
        .into_iter()
        .filter(|record| record["call"] == "bind" && !record["errno"].is_null())
        .map(|record| {
            let text = |key: &str| record[key].as_str().expect("a text").to_owned();
            assert_eq!(record["port"], 8080, "{record}");
            (text("addr"), reuse(strings(&record["socket"]["options"])), text("errno"))
        })
        .collect()
}

fn every_failure_of_a_program_is_reported_with_its_errno_and_options() {
    let bind_test = |addr: &'static str| [PATH, "bind-test", "8080", "--json", "--addr", addr];
    let check = |addr: &'static str, cause: &str| {
        let (run, records) = why(&bind_test(addr));
        let expected = failures_of_bind_test(&run);
        assert_eq!(failures_of_why(&records), expected, "{addr}{run}");
        assert!(!expected.is_empty(), "{addr}{run}");
        for record in of_type(&records, "call") {
            let plain = strings(&record["socket"]["options"]).iter().all(|name| name != "SO_REUSEADDR");
            let expected = if cause == "time-wait-without-reuseaddr" && plain { "time-wait" } else { cause };
            assert_eq!(record["cause"], expected, "{addr} {record}{run}");
        }
    };
    check("192.0.2.7", "address-not-local");
    {
        let _server = listen("127.0.0.1:8080");
        for addr in ["0.0.0.0", "127.0.0.1", "::"] {
            check(addr, "listener");
        }
    }
    let old = twtool::lab::Server::listen("127.0.0.2:8080".parse().expect("an address"), ReuseOptions::NONE);
    bucket_of_server(&old.expect("a server"), "127.0.0.2:8080");
    check("127.0.0.2", "time-wait-without-reuseaddr");
}

fn a_listen_is_reported_with_the_port_that_the_kernel_chose() {
    let (run, records) = why(&[PATH, "bind-test", "0", "--addr", "127.0.0.1", "--listen", "--json"]);
    let run = run.code(0);
    let listening = of_type(&records, "end")[0]["listening"].as_array().expect("a list").clone();
    assert_eq!(listening.len(), 4, "{run}");
    assert!(listening.iter().all(|one| one["port"].as_u64().is_some_and(|port| port > 1024)), "{run}");
    assert!(listening.iter().any(|one| one["port"] == run.json()["chosen_port"]), "{run}");
}

fn the_end_repeats_the_cause_of_each_failure() {
    let _server = listen("127.0.0.1:8080");
    let words = ["why", PATH, "bind-test", "8080", "--addr", "127.0.0.1"];
    let run = twtool(words).code(1);
    let (_, end) = run.stderr.split_once("calls failed:\n").unwrap_or_else(|| panic!("no end{run}"));
    let end = end.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(end.contains("bind() to 127.0.0.1:8080: EADDRINUSE; blocked by a listener: "), "{end}");
    let (run, records) = why(&words[1..]);
    let failed = of_type(&records, "end")[0]["failed"].as_array().expect("a list");
    assert!(failed.len() == 4 && failed.iter().all(|one| one["cause"] == "listener"), "{run}");
    // A refused connection is counted, but not explained.
    needs_program("python3");
    let script = "import socket\ntry: socket.create_connection(('127.0.0.1', 1))\nexcept OSError: pass";
    let (run, records) = why(&["python3", "-c", script]);
    let failed = &of_type(&records, "end")[0]["failed"][0];
    assert_eq!((&failed["errno"], &failed["cause"]), (&"ECONNREFUSED".into(), &Value::Null), "{run}");
}

fn a_port_that_the_program_holds_itself_is_reported_as_such() {
    let python = "import socket\na = socket.create_server(('127.0.0.1', 8080))\nb = socket.socket()\ntry: b.bind(('0.0.0.0', 8080))\nexcept OSError: pass\n";
    needs_program("python3");
    let (run, records) = why(&["python3", "-c", python]);
    let calls = of_type(&records, "call");
    let failed: Vec<_> = calls.iter().filter(|call| call["errno"] == "EADDRINUSE").collect();
    assert_eq!(failed.len(), 1, "{run}");
    assert_eq!(failed[0]["held_by_itself"], true, "{run}");
    let _server = listen("127.0.0.1:8081");
    let other = python.replace("8080", "8082").replace("('0.0.0.0', 8082)", "('0.0.0.0', 8081)");
    let (run, records) = why(&["python3", "-c", &other]);
    let failed: Vec<_> = of_type(&records, "call").into_iter().filter(|call| call["errno"] == "EADDRINUSE").collect();
    assert_eq!((failed.len(), &failed[0]["held_by_itself"]), (1, &Value::Bool(false)), "{run}");
}

fn why_returns_the_exit_status_of_the_command() {
    for (script, code) in [("exit 0", 0), ("exit 7", 7), ("exit 255", 255), ("kill -9 $$", 137), ("kill -TERM $$", 143)]
    {
        twtool(["why", "-q", "sh", "-c", script]).code(code);
        twtool(["why", "-q", "--detach", "sh", "-c", script]).code(code);
    }
    // If PATH has a folder that the user is not permitted to search, the exit code is 126, as with env(1). So the test sets PATH to folders
    // that every user can search.
    let missing = Run::of(command(["why", "no-such-program"]).env("PATH", "/usr/bin:/bin")).code(127);
    assert!(missing.stderr.starts_with("error: running 'no-such-program' failed"), "{missing}");
    assert_eq!(missing.stderr.lines().count(), 1, "{missing}");
    twtool(["why", "/etc/passwd"]).code(126);
}

fn only_the_command_uses_stdin_and_stdout() {
    let script = "printf 'a\\nb\\n' | \"$0\" why cat";
    let run = Run::of(Command::new("sh").args(["-c", script, PATH])).code(0);
    assert_eq!(run.stdout, "a\nb\n", "{run}");
    assert!(run.stderr.contains("no bind(), listen() or connect()"), "{run}");
    // The signal mask and the limits of descriptors are the same as without twtool.
    let facts = "grep -E '^(SigBlk|NoNewPrivs)' /proc/self/status; ulimit -n; ulimit -Hn";
    let plain = Run::of(Command::new("sh").args(["-c", facts])).stdout;
    let watched = twtool(["why", "-q", "sh", "-c", facts]).code(0).stdout;
    let without_nnp =
        |text: &str| text.lines().filter(|line| !line.starts_with("NoNew")).collect::<Vec<_>>().join("\n");
    assert_eq!(without_nnp(&watched), without_nnp(&plain));
}

/// Without PTRACE_EVENT_FORK, the watch ended too early in 13 of 40 runs, and the daemon was killed.
fn a_daemon_whose_parent_ends_at_once_runs_on() {
    let folder = tempfile::tempdir().expect("a folder");
    for i in 0..30 {
        let file = folder.path().join(i.to_string());
        let script = format!("(sleep 0.02; : >{}) & exit 0", file.display());
        let run = twtool(["why", "-q", "sh", "-c", &script]).code(0);
        assert!(file.exists(), "run {i}: the daemon was killed{run}");
    }
}

/// Each entry has Python code that fails, words that the explanation must have, and words that it must not have.
const REASONS: [(&str, &str, &[&str]); 7] = [
    // The kernel reports no owner for a connection that is not accepted yet. The connection belongs to the listening program, so twtool
    // must not advise to kill it, or to wait.
    (
        "a = create_server(('127.0.0.2', 6100)); c = create_connection(('127.0.0.2', 6100))\nsocket().bind(('127.0.0.2', 6100))",
        "The program itself holds the port",
        &["kill ", "twtool wait"],
    ),
    (
        "s = socket(AF_INET6); s.setsockopt(IPPROTO_IPV6, IPV6_V6ONLY, 1); s.connect(('::ffff:127.0.0.2', 80))",
        "the socket accepts IPv6 only (IPV6_V6ONLY)",
        &["no route", "ip route"],
    ),
    (
        "s = socket(AF_INET6); s.bind(('::1', 0)); s.connect(('::ffff:127.0.0.2', 80))",
        "the socket is bound to the IPv6 address ::1",
        &["no route", "ip route"],
    ),
    (
        "a = create_server(('127.0.0.1', 6001)); c = create_connection(('127.0.0.1', 6001)); c.listen()",
        "the socket is connected",
        &["bound to 127.0.0.1", "second address"],
    ),
    (
        "import ctypes, struct; s = socket(AF_INET6)\nctypes.CDLL(None).bind(s.fileno(), struct.pack('=HH4s8x', 2, htons(8080), b'\\x7f\\0\\0\\1'), 16)",
        "127.0.0.1 is an IPv4 address (AF_INET), and the socket is an IPv6 socket",
        &["ipv6.disable", "cannot be made"],
    ),
    (
        "import ctypes, struct; s = socket(AF_INET6)\nctypes.CDLL(None).bind(s.fileno(), struct.pack('=HH4s20x', 2, htons(8080), b'\\x7f\\0\\0\\1'), 28)",
        "127.0.0.1 is an IPv4 address (AF_INET), and the socket is an IPv6 socket",
        &["ipv6.disable", "cannot be made"],
    ),
    (
        "s = socket(); s.bind(('127.0.0.1', 6003)); s.bind(('127.0.0.1', 6004))",
        "the socket is bound to 127.0.0.1:6003 already",
        &["kill ", "is connected"],
    ),
];

fn each_failure_is_explained_by_its_own_reason() {
    needs_program("python3");
    for (code, reason, wrong) in REASONS {
        let run = twtool(["why", "python3", "-c", &format!("from socket import *\n{code}")]);
        let text = run.stderr.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(text.to_lowercase().contains(&reason.to_lowercase()), "{code}: expected {reason:?}{run}");
        let explanation = run.stderr.split("Traceback").next().unwrap_or_default();
        assert!(wrong.iter().all(|word| !explanation.contains(word)), "{code}: {wrong:?}{run}");
    }
}

fn a_prohibited_route_is_not_reported_as_a_firewall() {
    needs_program("python3");
    needs_program("ip");
    Run::of(Command::new("ip").args(["route", "add", "prohibit", "198.51.101.0/24"])).code(0);
    let code = "from socket import *\ntry: socket().connect(('198.51.101.1', 80))\nexcept OSError as e: print(e.errno)";
    let (run, records) = why(&["python3", "-c", code]);
    assert_eq!(run.stdout, format!("{}\n", libc::EACCES), "{run}");
    let failed = of_type(&records, "call")[0];
    let step = failed["next"][0]["command"].as_str().unwrap_or_else(|| panic!("no step{run}"));
    assert!(step.contains("ip route get 198.51.101.1"), "{step}");
    let shown = Run::of(Command::new("sh").args(["-c", step]));
    assert!(shown.stderr.contains("Permission denied"), "the route is shown to be prohibited{shown}");
    let text = twtool(["why", "python3", "-c", code]);
    assert!(text.stderr.contains("A route of type prohibit"), "{text}");
}

fn a_connection_with_the_same_ends_blocks_a_fixed_source_port() {
    needs_program("python3");
    let _servers = [listen("127.0.0.1:6200"), listen("127.0.0.2:6200")];
    // Every client is bound to the wildcard address, so the route chooses its address. The second client has the same ends as the
    // first one.
    let code = "from socket import *\ndef client(to):\n  s = socket(); s.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1); s.bind(('', 6201))\n  \
                try: s.connect((to, 6200))\n  except OSError as e: print(e.errno)\n  return s\n\
                a = client('127.0.0.1'); b = client('127.0.0.1'); c = client('127.0.0.2')";
    let (run, records) = why(&["python3", "-c", code]);
    assert_eq!(run.stdout, format!("{}\n", libc::EADDRNOTAVAIL), "{run}");
    let calls = of_type(&records, "call");
    let failed: Vec<_> = calls.iter().filter(|call| !call["errno"].is_null()).collect();
    assert_eq!((failed.len(), &failed[0]["cause"]), (1, &"address-in-use".into()), "{run}");
    let holders = failed[0]["holders"].as_array().expect("holders");
    let blocks: Vec<_> = holders.iter().filter(|holder| holder["blocks"] == true).collect();
    assert_eq!(blocks.len(), 1, "{run}");
    assert_eq!((&blocks[0]["state"], &blocks[0]["remote_port"]), (&"established".into(), &6200.into()), "{run}");
}

fn the_program_keeps_the_action_of_sigpipe() {
    /// The bit of SIGPIPE in the mask of ignored signals. The mask has other bits, too: glibc's posix_spawn ignores its internal
    /// signals 32 and 33.
    const PIPE: u64 = 1 << (libc::SIGPIPE - 1);
    let ignored = |trap: &str, command: &str| {
        let script = format!("{trap}\nexec {command} grep SigIgn /proc/self/status");
        let run = Run::of(Command::new("sh").args(["-c", &script])).code(0);
        let mask = run.stdout.trim().rsplit('\t').next().and_then(|mask| u64::from_str_radix(mask, 16).ok());
        mask.unwrap_or_else(|| panic!("no mask{run}")) & PIPE
    };
    for (trap, expected) in [("trap '' PIPE", PIPE), ("trap - PIPE", 0)] {
        for command in ["env".to_owned(), format!("{PATH} why -q --"), format!("{PATH} wait 8080 -q --")] {
            assert_eq!(ignored(trap, &command), expected, "{trap}: {command}");
        }
    }
}

fn the_reason_why_a_process_cannot_be_traced_is_reported() {
    let run = Run::of(Command::new("sh").args(["-c", &format!("exec {PATH} why --pid $$")])).code(125);
    assert!(run.stderr.contains("it is twtool itself"), "{run}");
    let mut child = Command::new("true").stdout(Stdio::piped()).spawn().expect("true can be started");
    // The output of the process ends before the process itself. So wait until the process is a zombie.
    std::io::copy(&mut child.stdout.take().expect("a pipe"), &mut std::io::sink()).expect("read");
    let status = format!("/proc/{}/status", child.id());
    while !std::fs::read_to_string(&status).expect("a status").contains("State:\tZ") {
        std::thread::yield_now();
    }
    let run = twtool(["why", "--pid", &child.id().to_string()]).code(125);
    assert!(run.stderr.contains("it has ended") && !run.stderr.contains("as root"), "{run}");
    child.wait().expect("our own child");
}

fn a_log_that_cannot_be_written_is_reported() {
    let run = twtool(["why", "--log", "/dev/full", "true"]).code(0);
    assert!(run.stderr.contains("the log '/dev/full' is not complete: No space left"), "{run}");
}

fn a_program_that_daemonises_is_watched_to_its_end() {
    // The command ends at once. The process that it has started binds later.
    let script = format!("(sleep 2; exec {PATH} bind-test 8080 --addr 192.0.2.7 >/dev/null) & exit 3");
    let (run, records) = why(&["sh", "-c", &script]);
    let run = run.code(3);
    let text = runs_on(&records).unwrap_or_else(|| panic!("no note{run}"));
    assert!(
        text.contains(
            "twtool runs until they end, because without twtool their bind(), listen() and connect() calls would fail"
        ),
        "{text}"
    );
    assert_eq!(of_type(&records, "call").len(), 4, "{run}");
}

/// The text of the note that other processes run after the end of the command.
fn runs_on(records: &[Value]) -> Option<String> {
    let notes = of_type(records, "note");
    let note = notes.iter().find(|note| note["note"] == "runs-on")?;
    Some(note["text"].as_str()?.to_owned())
}

fn without_a_seccomp_filter_no_call_needs_twtool_after_the_end_of_the_command() {
    let command = ["sh", "-c", "sleep 2 & exit 3"];
    let text_of = |more: &[&str], until: &str| {
        let run = twtool(["why", "-o", "ndjson"].iter().chain(more).chain(&["--"]).chain(&command)).code(3);
        let text = runs_on(&self::records(&run)).unwrap_or_else(|| panic!("no note{run}"));
        assert!(text.contains(until) && !text.contains("would fail"), "{text}");
    };
    text_of(&["--detach"], "twtool continues to watch it until it listens or it ends. ");
    // 22 is PR_SET_SECCOMP.
    refuse(libc::SYS_prctl, Some((0, seccompiler::SeccompCmpOp::Eq, 22)), libc::EPERM);
    text_of(&[], "twtool continues to watch it until it ends. ");
}

fn a_thousand_short_processes_are_watched() {
    let run =
        twtool(["why", "sh", "-c", "i=0; while [ $i -lt 1000 ]; do /bin/true || exit 9; i=$((i+1)); done; exit 5"]);
    run.code(5);
}

fn a_refused_ptrace_gives_the_exact_reason() {
    refuse(libc::SYS_ptrace, None, libc::EPERM);
    let run = twtool(["why", "echo", "started"]).code(125);
    assert!(run.stderr.contains("a seccomp filter of this sandbox answers ptrace(2)"), "{run}");
    assert!(run.stderr.contains("hint: ") && run.stdout.is_empty(), "{run}");
}

fn why_inside_of_why_is_refused_with_the_reason() {
    let run = twtool(["why", "-q", PATH, "why", "echo", "started"]).code(125);
    assert!(run.stderr.contains("traces the process already"), "{run}");
    assert!(run.stdout.is_empty(), "{run}");
}

fn without_a_seccomp_filter_the_slower_way_reports_the_same() {
    let _server = listen("127.0.0.1:8080");
    let words = [PATH, "bind-test", "8080", "--json", "--addr", "127.0.0.1"];
    let (fast, expected) = why(&words);
    assert!(of_type(&expected, "note").is_empty(), "{fast}");
    // 22 is PR_SET_SECCOMP.
    refuse(libc::SYS_prctl, Some((0, seccompiler::SeccompCmpOp::Eq, 22)), libc::EPERM);
    let (slow, records) = why(&words);
    assert!(of_type(&records, "note").iter().any(|note| note["note"] == "slow"), "{slow}");
    assert_eq!(failures_of_why(&records), failures_of_why(&expected), "{slow}");
}

fn wrong_usage_is_refused() {
    twtool(["why"]).refused("required");
    twtool(["why", "--pid", "1", "true"]).refused("--pid");
    twtool(["why", "--pid", "0"]).refused("0");
    twtool(["why", "--timeout", "1s", "true"]).refused("--timeout");
    twtool(["why", "-o", "csv", "true"]).refused("csv");
    twtool(["why", "-o", "json", "true"]).refused("json");
    twtool(["why", "--log", "/no/such/folder/x", "true"]).refused("/no/such/folder/x");
    // twtool does not interpret options after the command.
    let run = Run::of(&mut command(["why", "-q", "echo", "--pid", "-q"])).code(0);
    assert_eq!(run.stdout, "--pid -q\n");
}

/// Runs a Python program in which one call fails, and returns the commands that twtool prints for this call.
#[track_caller]
fn printed(python: &str) -> (Run, Vec<String>) {
    let (run, records) = why(&["python3", "-c", python]);
    let explained: Vec<_> = of_type(&records, "call").into_iter().filter(|call| !call["errno"].is_null()).collect();
    let [call] = explained.as_slice() else { panic!("one call{run}") };
    let steps = call["next"].as_array().expect("steps");
    let commands = steps.iter().map(|step| step["command"].as_str().expect("a command").to_owned()).collect();
    (run, commands)
}

fn the_commands_that_are_printed_work() {
    needs_program("python3");
    needs_program("ss");
    needs_program("ip");
    let run_one = |run: &Run, commands: &[String], begin: &str| {
        let command = commands.iter().find(|command| command.contains(begin));
        let command = command.unwrap_or_else(|| panic!("no {begin} in {commands:?}{run}"));
        Run::of(Command::new("sh").args(["-c", command]))
    };
    // A UDP port is in use.
    let _udp = std::net::UdpSocket::bind("127.0.0.1:5353").expect("bound");
    let (run, commands) = printed(
        "import socket\ntry: socket.socket(type=socket.SOCK_DGRAM).bind(('127.0.0.1', 5353))\nexcept OSError: pass",
    );
    run_one(&run, &commands, "ss ").prints("127.0.0.1:5353");
    let absent =
        "import socket\ntry: socket.socket(type=socket.SOCK_DGRAM).bind(('192.0.2.7', 53))\nexcept OSError: pass";
    let run = twtool(["why", "-o", "ndjson", "--", "python3", "-c", absent]).code(0);
    assert!(run.stderr.contains(r#""cause":"address-not-local""#), "the cause is the same for UDP{run}");
    // The destination has no route.
    let (run, commands) =
        printed("import socket\ntry: socket.socket().connect(('203.0.113.1', 9))\nexcept OSError: pass");
    let route = run_one(&run, &commands, "ip route get");
    assert!(route.stderr.contains("unreachable"), "{route}");
    // A bucket of a server with SO_REUSEADDR blocks the port. Only a bind shows that the option helps.
    let server = listen("127.0.0.1:8080");
    bucket_of_server(&server, "127.0.0.1:8080");
    drop(server);
    let (run, commands) =
        printed("import socket\ntry: socket.socket().bind(('127.0.0.1', 8080))\nexcept OSError: pass");
    run_one(&run, &commands, "bind-test").code(0).prints("reusable with SO_REUSEADDR");
    // All ephemeral ports are in use.
    twtool::sys::sysctl::write("ipv4.ip_local_port_range", "40000 40003").expect("written");
    let _server = listen("127.0.0.1:9000");
    let (run, commands) = printed(
        "import socket\nkept = []\ntry:\n for i in range(9): kept.append(socket.create_connection(('127.0.0.1', 9000)))\nexcept OSError: pass",
    );
    run_one(&run, &commands, "capacity").prints("127.0.0.1:9000");
    let records = records(&run);
    let call = of_type(&records, "call")[0];
    assert_eq!((&call["errno"], &call["cause"]), (&"EADDRNOTAVAIL".into(), &"exhausted".into()), "{run}");
}
