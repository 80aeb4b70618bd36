//! The owners of buckets and the evidence for them: `twtool list --owner`, `twtool doctor` and `twtool trace --method sampled`.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;
use twtool::lab::ActiveCloser;

use crate::support::screen::Screen;
use crate::support::situations::{bucket_of_client, bucket_of_server, connect, listen};
use crate::support::suite;
use crate::support::tracer::{Tracer, until};
use crate::support::twtool::{command, twtool};
use crate::support::{kernel, limits, private_proc, procfs};

suite! {
    pure: [
        invalid_arguments_are_refused,
    ],
    netns: [
        a_tracer_names_the_owners_of_buckets,
        doctor_names_the_programs_that_made_buckets,
        an_owner_from_a_listener_or_a_connection_is_an_inference,
        a_bucket_without_evidence_has_no_owner,
        the_hint_names_the_tracer_that_records_owners,
        a_tracer_that_this_user_may_not_read_is_not_reported_as_missing,
        samples_name_the_process_of_a_connection_that_lasts,
        without_bpf_twtool_takes_samples_and_prints_a_hint,
    ],
}

fn invalid_arguments_are_refused() {
    twtool(["list", "--tracer", "/nowhere"]).code(2).says("--owner");
    twtool(["list", "--owner", "-o", "csv"]).refused("'csv'");
    twtool(["list", "--owner", "--count"]).refused("--count");
    twtool(["list", "--owner", "--tracer", "/nowhere/socket"]).refused("'/nowhere/socket'");
    twtool(["trace", "--serve", "/nowhere/socket", "--duration", "0s"]).refused("'/nowhere/socket'");
    twtool(["trace", "--method", "guess"]).refused("'guess'");
}

/// The owners in `list --owner`, by local port.
fn owners(more: &[&str]) -> BTreeMap<u64, Value> {
    let arguments = ["list", "--owner", "-o", "ndjson"].iter().chain(more);
    let records = twtool(arguments).ok().ndjson();
    let owner = |record: &Value| (record["local_port"].as_u64().expect("a port"), record["owner"].clone());
    records.iter().map(owner).collect()
}

fn a_tracer_names_the_owners_of_buckets() {
    let folder = TempDir::new().expect("a folder");
    let (tracer, socket, expected) = Tracer::serve(&folder);
    let closed = &expected[1];
    let found = owners(&["--tracer", &socket]);
    let owner = &found[&closed["local"].as_u64().expect("a port")];
    assert_eq!(owner["pid"], closed["pid"], "{owner}");
    assert_eq!((owner["evidence"].as_str(), owner["candidates"].as_u64()), (Some("traced"), Some(1)), "{owner}");
    let table = twtool(["list", "--owner", "--tracer", &socket]).ok();
    assert!(table.stdout.contains("traced") && !table.stdout.contains("traced?"), "{table}");
    tracer.stop(Signal::SIGTERM);
    assert!(!std::path::Path::new(&socket).exists(), "the socket is removed");
    twtool(["list", "--owner", "--tracer", &socket]).refused("no tracer");
}

fn doctor_names_the_programs_that_made_buckets() {
    let makers = |more: &[&str]| {
        let checks = twtool([&["doctor", "--json"], more].concat()).ok().records("checks");
        checks.into_iter().find(|check| check["id"] == "time_wait_makers")
    };
    let folder = TempDir::new().expect("a folder");
    let (tracer, socket, _) = Tracer::serve(&folder);
    // A bucket that was recorded with the outcome `fin-wait-2` may be in TIME_WAIT now. So the records are selected by their cookies.
    let cookies = kernel::bucket_cookies();
    let cookie_of = |record: &Value| record["cookie"].as_str().and_then(|cookie| cookie.parse().ok());
    let made: Vec<Value> = tracer
        .records()
        .into_iter()
        .filter(|record| cookie_of(record).is_some_and(|cookie| cookies.contains(&cookie)))
        .collect();
    let check = makers(&["--tracer", &socket]).expect("the check");
    let evidence = &check["evidence"];
    // On a slow machine, some buckets may be older than the tracer.
    let all = procfs::time_wait().len();
    assert_eq!((&check["status"], &evidence["time_wait"]), (&json!("note"), &json!(all)), "{check}");
    assert_eq!(evidence["traced"], json!(made.len()), "{check}");
    let programs = evidence["makers"].as_array().expect("a list");
    for role in ["accepted", "connected"] {
        let of_role = |record: &&Value| record["role"] == role;
        let counted: u64 = programs.iter().filter(of_role).filter_map(|program| program["time_wait"].as_u64()).sum();
        assert_eq!(counted, made.iter().filter(of_role).count() as u64, "{role}: {check}");
    }
    assert_eq!(makers(&[]), None, "no tracer serves the default socket");
    twtool(["doctor", "--tracer", "/nowhere/socket"]).refused("'/nowhere/socket'");
}

fn an_owner_from_a_listener_or_a_connection_is_an_inference() {
    let server = listen("127.0.0.1:8080");
    bucket_of_server(&server, "127.0.0.1:8080");
    bucket_of_client(&server, "127.0.0.1:8080");
    let _open = connect(&server, "127.0.0.1:8080");
    let own = u64::from(std::process::id());
    let found = owners(&[]);
    for (port, owner) in &found {
        let evidence = if *port == 8080 { "listener" } else { "same-destination" };
        assert_eq!(owner["evidence"], evidence, "{port}: {owner}");
        assert_eq!((owner["pid"].as_u64(), owner["candidates"].as_u64()), (Some(own), Some(1)), "{port}: {owner}");
    }
    assert_eq!(found.len(), 2, "{found:?}");
    let table = twtool(["list", "--owner"]).ok();
    assert!(table.stdout.contains("listener?") && table.stdout.contains("same-destination?"), "{table}");
    let document = twtool(["list", "--owner", "--json"]).ok();
    assert!(document.records("sockets").iter().all(|record| record["owner"]["pid"] == own), "{document}");
}

fn a_bucket_without_evidence_has_no_owner() {
    let server = listen("127.0.0.1:8080");
    bucket_of_client(&server, "127.0.0.1:8080");
    connect(&server, "127.0.0.1:8080").close(ActiveCloser::Server).expect("a bucket");
    drop(server);
    let found = owners(&[]);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found.values().all(Value::is_null), "{found:?}");
    let table = twtool(["list", "--owner"]).code(0);
    assert!(table.stdout.contains("2 unknown"), "{table}");
}

fn the_hint_names_the_tracer_that_records_owners() {
    const START: &str = "no tracer runs. To record the owners of later sockets, run: ";
    // The default socket of this test is in a private /run.
    private_proc::mount_private_folders();
    let server = listen("127.0.0.1:8080");
    bucket_of_client(&server, "127.0.0.1:8080");
    connect(&server, "127.0.0.1:8080").close(ActiveCloser::Server).expect("a bucket");
    let questions = [&["list", "--owner"][..], &["summary", "--by", "unit,owner"]];
    for question in questions {
        let run = twtool(question).ok();
        assert_eq!(run.stderr.matches("hint: ").count(), 0, "no hint if one of the two buckets has an owner{run}");
    }
    drop(server);
    for question in questions {
        let run = twtool(question).code(0);
        assert_eq!(run.stderr.matches("hint: ").count(), 1, "{run}");
        let json = twtool(question.iter().chain(&["--json"])).ok();
        assert!(json.stderr.is_empty(), "{json}");
    }
    let run = twtool(["list", "--owner"]).code(0);
    let command = run.stderr.trim_end().split_once(START).expect("the hint").1.to_owned();
    assert!(command.ends_with(" trace --serve /run/twtool.sock"), "{run}");
    // In the user namespace of the tests, the tracer takes samples, because the kernel refuses BPF there.
    let tracer = Command::new("sh")
        .args(["-c", &format!("exec {}", command.trim_start_matches("sudo "))])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let mut tracer = tracer.expect("a shell");
    until("the socket", || std::path::Path::new("/run/twtool.sock").exists().then_some(()));
    let run = twtool(["list", "--owner"]);
    kill(Pid::from_raw(tracer.id().cast_signed()), Signal::SIGTERM).expect("a signal");
    let _ = tracer.wait();
    run.ok();
}

fn a_tracer_that_this_user_may_not_read_is_not_reported_as_missing() {
    const SOCKET: &str = "/run/twtool.sock";
    private_proc::mount_private_folders();
    let server = listen("127.0.0.1:8080");
    connect(&server, "127.0.0.1:8080").close(ActiveCloser::Server).expect("a bucket");
    drop(server);
    // Without CAP_DAC_OVERRIDE, the mode of the file counts for the owner, too.
    let listener = UnixListener::bind(SOCKET).expect("a socket");
    std::fs::set_permissions(SOCKET, std::fs::Permissions::from_mode(0o000)).expect("a mode");
    limits::drop_capabilities_but_setfcap();
    let expected =
        format!("no permission to read the tracer at {SOCKET}; run twtool as root or as the user who started");
    for question in [&["list", "--owner"][..], &["summary", "--by", "unit,owner"]] {
        let run = twtool(question).code(0).says(&expected);
        assert_eq!((run.stderr.matches("hint: ").count(), run.stderr.contains("no tracer")), (1, false), "{run}");
    }
    let run = twtool(["list", "--owner", "--tracer", SOCKET]).refused(SOCKET).says("no permission to read the tracer");
    assert!(!run.stderr.contains("no tracer"), "{run}");
    let mut screen = Screen::start(command(["watch", "--interval", "200ms"]), (200, 40));
    screen.types("7");
    screen.until_shown("no permission to read the tracer at /run/twtool.sock");
    assert!(!screen.text().contains("no tracer runs"), "{}", screen.text());
    screen.types("q");
    assert_eq!(screen.end().code(), Some(0), "{}", screen.text());
    // After the end of the tracer, the file has no server. The kernel checks the mode first, so the answer stays the same.
    drop(listener);
    twtool(["list", "--owner"]).code(0).says(&expected);
    std::fs::set_permissions(SOCKET, std::fs::Permissions::from_mode(0o600)).expect("a mode");
    twtool(["list", "--owner"]).code(0).says("no tracer runs");
}

/// A running tracer of the namespace of the calling thread, without BPF.
struct Sampled {
    child: Child,
    records: Receiver<Value>,
}

impl Sampled {
    fn start() -> Self {
        let mut child = command(["trace", "--method", "sampled", "-o", "ndjson"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("twtool starts");
        let out = BufReader::new(child.stdout.take().expect("a pipe"));
        let (send, records) = channel();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if send.send(serde_json::from_str(&line).expect("a record")).is_err() {
                    return;
                }
            }
        });
        Self { child, records }
    }
}

impl Drop for Sampled {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn samples_name_the_process_of_a_connection_that_lasts() {
    let mut sampled = Sampled::start();
    let server = TcpListener::bind("127.0.0.1:8097").expect("a server");
    let own = u64::from(std::process::id());
    let record = until("a record with a process", || {
        let client = TcpStream::connect("127.0.0.1:8097").expect("a connection");
        let accepted = server.accept().expect("a connection");
        // twtool takes a sample every 20 ms, or less often on a slow machine.
        std::thread::sleep(Duration::from_millis(200));
        drop(client);
        drop(accepted);
        std::thread::sleep(Duration::from_millis(200));
        // If both ends close at the same time, both leave a bucket. This selects the record of the client.
        let is_client = |record: &Value| record["remote_port"] == 8097 && !record["process"].is_null();
        sampled.records.try_iter().find(is_client)
    });
    assert_eq!(record["process"]["pid"].as_u64(), Some(own), "{record}");
    assert_eq!((record["method"].as_str(), record["certain"].as_bool()), (Some("sampled"), Some(true)), "{record}");
    assert_eq!(record["role"], "connected", "{record}");
    kill(Pid::from_raw(sampled.child.id().cast_signed()), Signal::SIGTERM).expect("a signal");
    assert!(!sampled.child.wait().expect("it ends").success());
}

fn without_bpf_twtool_takes_samples_and_prints_a_hint() {
    // The tests are in a user namespace, where the kernel refuses BPF even to root.
    let run = twtool(["trace", "--duration", "0s"]).code(2).says("because BPF is not possible: ");
    let bpf = ["trace", "--method", "bpf", "--duration", "0s"];
    if run.stderr.contains("is too old") {
        twtool(bpf).refused("since Linux 5.12");
    } else {
        run.says("BPF_MAP_CREATE").says("hint: ");
        twtool(bpf).refused("BPF_MAP_CREATE").says("CAP_BPF and CAP_PERFMON");
    }
    let run = twtool(["trace", "--by", "process", "-o", "json", "--duration", "0s"]).code(2);
    let document = run.json();
    assert_eq!((document["method"].as_str(), document["complete"].as_bool()), (Some("sampled"), Some(false)), "{run}");
}
