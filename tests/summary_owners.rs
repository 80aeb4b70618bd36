//! `twtool summary --by owner,unit,container`: the processes, units and containers that made the buckets, with the evidence.

use std::collections::BTreeMap;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use twtool::lab::ActiveCloser;

use crate::support::cgroup::Cgroup;
use crate::support::netns::on_thread_in_new_namespace;
use crate::support::records::number;
use crate::support::situations::{bucket_of_client, bucket_of_server, connect, half_closed, listen};
use crate::support::tracer::Tracer;
use crate::support::twtool::{Run, twtool};
use crate::support::{not_checked, suite};

suite! {
    pure: [
        recordings_and_unusable_tracers_are_refused,
    ],
    netns: [
        a_tracer_names_the_owners_of_groups,
        inferred_owners_are_labelled_and_counted_per_process,
        buckets_with_unknown_owner_form_one_group,
        groups_agree_with_the_owners_of_a_list,
        in_the_group_of_units_the_processes_of_a_unit_count_as_one_candidate,
        each_namespace_has_its_own_owners,
    ],
}

fn summary(args: &[&str]) -> Run {
    twtool([&["summary"], args].concat())
}

fn lines(document: &Value, group: &str) -> Vec<Value> {
    document["groups"][group]["top"].as_array().unwrap_or_else(|| panic!("no {group}: {document}")).clone()
}

fn recordings_and_unusable_tracers_are_refused() {
    for by in ["owner", "unit", "class,container"] {
        summary(&["--by", by, "--record", "/nowhere/file"]).refused("a recording has no processes");
        summary(&["--by", by, "--replay", "/nowhere/file"]).refused("a recording has no processes");
        summary(&["--by", by, "--tracer", "/nowhere/socket"]).refused("'/nowhere/socket'");
    }
    summary(&["--tracer", "/nowhere"]).refused("'--tracer'").says("--by owner, unit or container");
    summary(&["--by", "class", "--tracer", "/nowhere"]).refused("'--tracer'");
    summary(&["--by", "process"]).refused("'process'").says("owner");
    twtool(["list", "--tracer", "/nowhere"]).refused("'--tracer'").says("--owner");
}

fn a_tracer_names_the_owners_of_groups() {
    let folder = TempDir::new().expect("a folder");
    let (tracer, socket, expected) = Tracer::serve(&folder);
    let run = summary(&["--by", "owner,unit", "--top", "1000", "--tracer", &socket, "--json"]).ok();
    let document = run.json();
    let pid = &expected[1]["pid"];
    let line = lines(&document, "owner").into_iter().find(|line| line["pid"] == *pid).expect("the process");
    let made = expected.iter().filter(|close| close["pid"] == *pid && close["outcome"] == "time-wait").count();
    let evidence = json!({"traced": made, "sampled": 0, "listener": 0, "same_destination": 0});
    assert_eq!((&line["evidence"], &line["count"]), (&evidence, &json!(made)), "{run}");
    assert_eq!((&line["group"], &line["pid_namespace"]), (&json!("process"), &json!("own")), "{run}");
    assert_eq!((&line["comm"], &line["candidates"]), (&json!("python3"), &json!(1)), "{run}");
    let sum: u64 = lines(&document, "unit").iter().map(|line| number(&line["evidence"], "traced")).sum();
    assert_eq!(json!(sum), document["owners"]["traced"], "{run}");
    let page = summary(&["--by", "owner", "--top", "1000", "--tracer", &socket]).ok();
    assert!(page.stdout.contains("traced") && !page.stdout.contains("traced?"), "{page}");
    tracer.stop(Signal::SIGTERM);
}

fn inferred_owners_are_labelled_and_counted_per_process() {
    let server = listen("127.0.0.1:8080");
    bucket_of_server(&server, "127.0.0.1:8080");
    bucket_of_client(&server, "127.0.0.1:8080");
    let _half = half_closed(&server, "127.0.0.1:8080", ActiveCloser::Server);
    let _open = connect(&server, "127.0.0.1:8080");
    let run = summary(&["--by", "owner", "--json"]).ok();
    let document = run.json();
    let own = lines(&document, "owner");
    assert_eq!(own.len(), 1, "{run}");
    let evidence = json!({"traced": 0, "sampled": 0, "listener": 2, "same_destination": 1});
    assert_eq!((&own[0]["pid"], &own[0]["evidence"]), (&json!(std::process::id()), &evidence), "{run}");
    assert_eq!((&own[0]["count"], &own[0]["fin_wait_2"]), (&json!(3), &json!(1)), "{run}");
    let owners = json!({"traced": 0, "sampled": 0, "listener": 2, "same_destination": 1, "unknown": 0});
    assert_eq!(document["owners"], owners, "{run}");
    let page = summary(&["--by", "owner"]).ok().prints("OWNER").prints("EVIDENCE");
    page.prints("listener?: 2, same-destination?: 1").prints("0 with a known owner, 3 with an inferred one, 0 unknown");
}

fn buckets_with_unknown_owner_form_one_group() {
    let run = summary(&["--by", "owner,unit,container", "--json"]).ok();
    let empty = json!({"top": [], "others": 0, "distinct": 0});
    assert_eq!(run.json()["groups"], json!({"owner": empty, "unit": empty, "container": empty}), "{run}");
    let server = listen("127.0.0.1:8080");
    bucket_of_client(&server, "127.0.0.1:8080");
    bucket_of_server(&server, "127.0.0.1:8080");
    connect(&server, "127.0.0.1:8080").close(ActiveCloser::Server).expect("a bucket");
    drop(server);
    let run = summary(&["--by", "owner,unit,container", "--json"]).ok();
    let document = run.json();
    let evidence = json!({"traced": 0, "sampled": 0, "listener": 0, "same_destination": 0});
    let unknown = |keys: &[&str]| {
        let mut line =
            json!({"group": "unknown", "evidence": evidence, "candidates": null, "count": 3, "fin_wait_2": 0});
        for key in keys {
            line[key] = Value::Null;
        }
        [line]
    };
    assert_eq!(lines(&document, "owner"), unknown(&["pid", "pid_namespace", "comm", "unit", "container"]), "{run}");
    assert_eq!(lines(&document, "unit"), unknown(&["unit"]), "{run}");
    assert_eq!(lines(&document, "container"), unknown(&["container"]), "{run}");
    assert_eq!(document["owners"]["unknown"], 3, "{run}");
    let page = summary(&["--by", "unit"]).code(0);
    page.prints("unknown      3  -").prints("0 with a known owner, 0 with an inferred one, 3 unknown");
    let record = summary(&["--by", "unit", "-o", "ndjson"]).ok().ndjson();
    assert_eq!((record.len(), &record[0]["owners"]), (1, &document["owners"]));
    assert_eq!(summary(&["--json"]).ok().json()["owners"], Value::Null, "no owners are counted");
}

fn groups_agree_with_the_owners_of_a_list() {
    let server = listen("[::]:8080");
    (0..5).for_each(|_| bucket_of_server(&server, "127.0.0.1:8080"));
    (0..3).for_each(|_| bucket_of_client(&server, "[::1]:8080"));
    let gone = listen("127.0.0.1:8081");
    bucket_of_server(&gone, "127.0.0.1:8081");
    drop(gone);
    for family in ["-4", "-6"] {
        let mut counted: BTreeMap<String, u64> = BTreeMap::new();
        for record in twtool(["list", "--owner", "-o", "ndjson", family]).ok().ndjson() {
            *counted.entry(record["owner"]["pid"].to_string()).or_default() += 1;
        }
        let run = summary(&["--by", "owner", "--json", family]).ok();
        let grouped: BTreeMap<String, u64> =
            lines(&run.json(), "owner").iter().map(|line| (line["pid"].to_string(), number(line, "count"))).collect();
        assert_eq!(grouped, counted, "{run}");
    }
}

/// A process that holds a socket as its standard input. Dropping this value ends the process.
struct Holder {
    child: Child,
    cgroup: Option<Cgroup>,
}

impl Holder {
    fn of(listener: &TcpListener) -> Self {
        let socket: OwnedFd = listener.try_clone().expect("a descriptor").into();
        let child = Command::new("sleep").arg("60").stdin(socket).stdout(Stdio::null()).spawn().expect("sleep");
        Self { child, cgroup: None }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.child.kill().expect("our own child");
        self.child.wait().expect("our own child");
        drop(self.cgroup.take());
    }
}

/// Opens a listener on this address, and leaves one bucket on its port: the server's end of a connection closes first.
fn listener_with_bucket(at: &str) -> TcpListener {
    let listener = TcpListener::bind(at).expect("a listener");
    let client = TcpStream::connect(at).expect("a connection");
    drop(listener.accept().expect("a connection"));
    drop(client);
    listener
}

/// Moves the process into a new cgroup with this name. Returns the reason if that is not possible here.
fn move_to_cgroup(holder: &mut Holder, name: &str) -> Result<(), String> {
    let cgroup = Cgroup::make(name)?;
    let added = cgroup.add(holder.child.id()).map_err(|error| format!("moving a process: {error}"));
    holder.cgroup = Some(cgroup);
    added
}

fn in_the_group_of_units_the_processes_of_a_unit_count_as_one_candidate() {
    let id = "4f5a1c0de0123456789abcdef0123456789abcdef0123456789abcdef0123456";
    let web = listener_with_bucket("127.0.0.1:8080");
    let mut workers = [Holder::of(&web), Holder::of(&web)];
    let docker_server = listener_with_bucket("127.0.0.1:8081");
    let mut in_container = Holder::of(&docker_server);
    drop((web, docker_server));
    let [first, second] = &mut workers;
    let ready = move_to_cgroup(first, "web.service")
        .and_then(|()| {
            let cgroup = first.cgroup.as_ref().expect("just made");
            cgroup.add(second.child.id()).map_err(|error| format!("moving a process: {error}"))
        })
        .and_then(|()| move_to_cgroup(&mut in_container, &format!("docker-{id}.scope")));
    if let Err(why) = ready {
        return not_checked(format!("units of buckets: {why}"));
    }
    let run = summary(&["--by", "owner,unit,container", "--json"]).ok();
    let document = run.json();
    let pid = first.child.id().min(second.child.id());
    let owner = lines(&document, "owner").into_iter().find(|line| line["pid"] == pid).expect("a worker");
    assert_eq!((&owner["candidates"], &owner["unit"]), (&json!(2), &json!("web.service")), "{run}");
    let unit = lines(&document, "unit").into_iter().find(|line| line["unit"] == "web.service").expect("the unit");
    assert_eq!((&unit["candidates"], &unit["evidence"]["listener"]), (&json!(1), &json!(1)), "{run}");
    assert_eq!((&unit["group"], &unit["count"]), (&json!("unit"), &json!(1)), "{run}");
    let containers = lines(&document, "container");
    let docker = json!({"runtime": "docker", "id": id});
    let inside = containers.iter().find(|line| line["container"] == docker).expect("the container");
    assert_eq!((&inside["group"], &inside["count"]), (&json!("container"), &json!(1)), "{run}");
    let outside = containers.iter().find(|line| line["group"] == "none").expect("the workers are in no container");
    assert_eq!((&outside["container"], &outside["count"]), (&Value::Null, &json!(1)), "{run}");
    let page = summary(&["--by", "owner,unit,container"]).ok().prints(&format!("sleep ({pid}, web.service)"));
    let page = page.prints("listener? 1 of 2").prints("docker container 4f5a1c0de012").prints("no container");
    let unit = page.stdout.lines().find(|line| line.contains("web.service") && !line.contains('('));
    assert!(unit.is_some_and(|line| !line.contains("1 of")), "{page}");
}

fn each_namespace_has_its_own_owners() {
    // In each namespace, another process has a listener on port 8080.
    let make_holder = || {
        let listener = listener_with_bucket("127.0.0.1:8080");
        Holder::of(&listener)
    };
    let (here, there) = (make_holder(), on_thread_in_new_namespace(make_holder));
    let pids = [here.child.id(), there.child.id()].map(|pid| pid.to_string());
    let run = summary(&["--by", "owner", "--json", "--netns", &pids[0], "--netns", &pids[1]]).ok();
    let found: BTreeMap<String, u64> =
        lines(&run.json(), "owner").iter().map(|line| (line["pid"].to_string(), number(line, "count"))).collect();
    assert_eq!(found, pids.map(|pid| (pid, 1)).into(), "{run}");
}
