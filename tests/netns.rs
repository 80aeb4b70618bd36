//! `--netns` and `--all-netns`: namespaces are distinguished, found, and skipped if they end.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::{Value, json};
use twtool::lab::Server;
use twtool::sys::sysctl;

use crate::support::bucket_namespaces::{BucketNamespace, clients, list, make_bucket, show_only_own_processes};
use crate::support::private_proc::{self, OwnPidNamespace, Resident, in_new_namespace, inode};
use crate::support::procfs;
use crate::support::records::{number, sorted, text};
use crate::support::situations::{bucket_of_client, bucket_of_server, connect_from, listen, many_buckets};
use crate::support::twtool::{PATH, Run, command, twtool};
use crate::support::waiter::Waiter;
use crate::support::{kernel, not_checked, suite};

suite! {
    pure: [],
    netns: [
        three_namespaces_with_equal_ports_are_distinguished,
        each_namespace_has_its_own_settings_and_listeners,
        a_name_a_path_and_a_process_lead_to_the_same_namespace,
        a_namespace_that_ip_netns_names_has_its_own_services,
        a_namespace_that_several_arguments_select_is_listed_once,
        port_bind_test_and_summary_answer_for_the_selected_namespace,
        capacity_and_doctor_read_settings_and_test_ports_in_the_other_namespace,
        a_wait_tests_the_other_namespace_and_its_command_runs_in_the_namespace_of_twtool,
        a_summary_of_several_namespaces_is_their_sum_and_has_the_number_of_each,
        kill_removes_only_the_bucket_of_the_selected_namespace,
        reading_another_namespace_does_not_change_the_list_of_the_callers_own_namespace,
        every_namespace_is_found_once_with_its_name,
        namespaces_and_processes_that_end_are_skipped,
        a_limit_applies_to_all_namespaces_together,
        rows_of_large_namespaces_are_complete_and_not_mixed,
        a_low_limit_of_descriptors_hides_no_namespace,
        an_interface_filter_matches_only_in_namespaces_that_have_the_interface,
        a_recording_of_another_namespace_gives_the_same_bytes,
        control_characters_in_the_name_of_a_process_do_not_reach_the_terminal,
        names_that_are_not_utf8_are_found_and_stay_different,
    ],
}

fn three_namespaces_with_equal_ports_are_distinguished() {
    let own = inode();
    make_bucket(&listen("127.0.0.1:8080"), "127.0.0.1:8080", 42_000);
    let (a, b) = (BucketNamespace::make(42_001), BucketNamespace::make(42_002));
    let (pid_a, pid_b) = (a.resident.pid(), b.resident.pid());
    let args = ["--netns", &pid_a, "--netns", "/proc/self/ns/net", "--netns", &pid_b];
    let expected = [(a.inode, 42_001), (own, 42_000), (b.inode, 42_002)];
    assert_eq!(expected.iter().map(|(netns, _)| netns).collect::<BTreeSet<_>>().len(), 3, "three namespaces");

    let run = list(&[&args[..], &["--json"]].concat()).ok();
    let document = run.json();
    assert_eq!((&document["netns"], &document["complete"]), (&json!(null), &json!(true)), "{run}");
    let records = run.records("sockets");
    assert_eq!(sorted(clients(&records)), sorted(expected), "{run}");
    assert!(records.iter().all(|record| record["local_port"] == 8080), "{run}");

    // The records are in the order of the arguments.
    let ndjson = list(&[&args[..], &["-o", "ndjson"]].concat()).ok();
    assert_eq!(clients(&ndjson.ndjson()), expected);
    let csv = list(&[&args[..], &["-o", "csv", "--columns", "netns,remote_port"]].concat()).ok().csv().1;
    assert_eq!(csv, expected.map(|(netns, port)| vec![netns.to_string(), port.to_string()]));
    let table = list(&args).ok();
    assert!(table.stdout.starts_with("NETNS") && table.stdout.contains("\n3 TIME_WAIT in 3 namespaces, "), "{table}");
    for words in [format!("{pid_a}:cat"), format!("{pid_b}:cat"), "127.0.0.1:42000".into()] {
        assert!(table.stdout.contains(&words), "expected {words}{table}");
    }
    assert_eq!(list(&[&args[..], &["--count"]].concat()).ok().stdout, "3\n");
    list(&[&args[..], &["-q", "--remote-port", "42002"]].concat()).code(0);
    list(&[&args[..], &["-q", "--remote-port", "42003"]].concat()).code(1);
    let one = list(&["--netns", &pid_a, "--json"]).ok();
    assert_eq!((one.json()["netns"].clone(), clients(&one.records("sockets"))), (json!(a.inode), vec![expected[0]]));
    assert!(!list(&["--netns", &pid_a]).ok().stdout.contains("NETNS"));
}

fn each_namespace_has_its_own_settings_and_listeners() {
    let a = BucketNamespace::make(42_001);
    let b = BucketNamespace::make(42_002);
    drop(b.server);
    let (c, resident) = in_new_namespace(|| {
        sysctl::write("ipv4.ip_local_port_range", "8080 8090").expect("the namespace is ours");
        make_bucket(&listen("127.0.0.1:8080"), "127.0.0.1:8080", 42_003);
        (inode(), Resident::start())
    });
    let pids = [a.resident.pid(), b.resident.pid(), resident.pid()];
    let args: Vec<&str> = pids.iter().flat_map(|pid| ["--netns", pid]).chain(["-o", "ndjson"]).collect();
    let records = list(&args).ok().ndjson();
    let of = |netns: u64| records.iter().find(|record| record["netns"] == netns).expect("a record of each");
    assert_eq!(of(a.inode)["direction"], "inbound", "its listener is there");
    assert_eq!(
        of(b.inode)["direction"],
        "unknown",
        "its listener has ended; the listeners of other namespaces do not count"
    );
    assert_eq!(of(c)["direction"], "outbound", "8080 is ephemeral only in this namespace");
    let ephemeral =
        |pid: &str| twtool(["port", "8080", "--json", "--netns", pid]).ok().records("ports")[0]["ephemeral"].clone();
    assert_eq!([ephemeral(&pids[0]), ephemeral(&pids[2])], [json!(false), json!(true)]);
}

fn a_name_a_path_and_a_process_lead_to_the_same_namespace() {
    private_proc::mount_private_folders();
    let (web, other) = (
        in_new_namespace(|| {
            private_proc::name_this_namespace("web");
            BucketNamespace::make_here(42_001)
        }),
        BucketNamespace::make(42_002),
    );
    let pid = web.resident.pid();
    for word in ["web", "/run/netns/web", &format!("/proc/{pid}/ns/net"), &pid] {
        let records = list(&["--netns", word, "-o", "ndjson"]).ok().ndjson();
        assert_eq!(clients(&records), [(web.inode, 42_001)], "{word}");
        assert_eq!(records[0]["netns_name"], "web", "the argument does not change the name: {word}");
    }
    // If `ip netns` has no name for a namespace, `netns_name` has its process with the lowest ID.
    let second = hop_into(&other, Resident::start);
    let first: u32 =
        other.resident.pid().parse::<u32>().expect("a number").min(second.pid().parse().expect("a number"));
    for word in [other.resident.pid(), second.pid()] {
        assert_eq!(list(&["--netns", &word, "-o", "ndjson"]).ok().ndjson()[0]["netns_name"], format!("{first}:cat"));
    }
}

/// Runs a function in the network namespace `other`, and returns to the namespace of the caller.
fn hop_into<T>(other: &BucketNamespace, run: impl FnOnce() -> T) -> T {
    in_new_namespace(|| {
        let there = fs::File::open(format!("/proc/{}/ns/net", other.resident.pid())).expect("a namespace");
        nix::sched::setns(there, nix::sched::CloneFlags::CLONE_NEWNET).expect("entered");
        run()
    })
}

fn a_namespace_that_ip_netns_names_has_its_own_services() {
    private_proc::mount_private_folders();
    fs::write("/etc/services", "everywhere 8080/tcp\n").expect("written");
    fs::create_dir("/etc/netns/web").expect("a folder");
    fs::write("/etc/netns/web/services", "inside 8080/tcp\n").expect("written");
    let web = in_new_namespace(|| {
        private_proc::name_this_namespace("web");
        BucketNamespace::make_here(42_001)
    });
    let other = BucketNamespace::make(42_002);
    let service = |word: &str| list(&["--netns", word, "-o", "ndjson"]).ok().ndjson()[0]["local_service"].clone();
    assert_eq!([service("web"), service(&other.resident.pid())], [json!("inside"), json!("everywhere")]);
    let both = ["--netns", "web", "--netns", &other.resident.pid(), "-o", "ndjson"];
    let services: Vec<_> = list(&both).ok().ndjson().iter().map(|record| record["local_service"].clone()).collect();
    assert_eq!(services, ["inside", "everywhere"]);
    // If only one namespace has the service name, the answer is incomplete.
    let run = list(&[&both[..], &["--local-port", "inside"]].concat()).code(2);
    assert_eq!(clients(&run.ndjson()), [(web.inode, 42_001)], "{run}");
    run.says(&other.resident.pid()).says("'inside'");
    list(&["--netns", &other.resident.pid(), "--local-port", "inside"]).refused("inside");
    twtool(["port", "inside", "--netns", "web"]).ok().prints("8080");
}

fn a_namespace_that_several_arguments_select_is_listed_once() {
    let other = BucketNamespace::make(42_001);
    let (pid, path) = (other.resident.pid(), format!("/proc/{}/ns/net", other.resident.pid()));
    let run = list(&["--netns", &pid, "--netns", &path, "--netns", &pid, "--json"]).ok();
    assert_eq!(clients(&run.records("sockets")), [(other.inode, 42_001)], "{run}");
}

fn port_bind_test_and_summary_answer_for_the_selected_namespace() {
    let (busy, waiting) = (BucketNamespace::make(42_001), BucketNamespace::make(42_002));
    drop(waiting.server);
    let (busy_pid, waiting_pid) = (busy.resident.pid(), waiting.resident.pid());
    let port = |args: &[&str]| {
        let run = twtool([&["port", "8080", "--json"], args].concat()).ok();
        let record = run.records("ports").remove(0);
        (run.json()["netns"].clone(), record["listening"].clone(), record["time_wait"].clone())
    };
    assert_eq!(port(&[]), (json!(inode()), json!(false), json!(0)));
    assert_eq!(port(&["--netns", &busy_pid]), (json!(busy.inode), json!(true), json!(1)));
    assert_eq!(port(&["--netns", &waiting_pid]), (json!(waiting.inode), json!(false), json!(1)));

    let test = |args: &[&str]| twtool([&["bind-test", "8080", "--json"], args].concat());
    assert_eq!(test(&[]).code(0).json()["verdict"], "free");
    let blocked = test(&["--netns", &busy_pid]).code(1);
    assert_eq!((&blocked.json()["cause"], &blocked.json()["netns"]), (&json!("listener"), &json!(busy.inode)));
    let holders = blocked.records("holders");
    assert!(
        holders.iter().all(|holder| holder["netns"] == busy.inode && holder["netns_name"] == format!("{busy_pid}:cat"))
    );
    assert_eq!(test(&["--netns", &waiting_pid]).code(0).json()["cause"], "time-wait");

    // `summary` also reads /proc/net/sockstat of the selected namespace.
    let summary = |args: &[&str]| twtool([&["summary", "--json"], args].concat()).ok().json();
    let other = summary(&["--netns", &busy_pid]);
    assert_eq!((&other["netns"], &other["totals"]["sockstat_tw"]), (&json!(busy.inode), &json!(1)), "{other}");
    assert_eq!(summary(&[])["totals"]["sockstat_tw"], 0);
}

fn a_summary_of_several_namespaces_is_their_sum_and_has_the_number_of_each() {
    let (a, b) = (BucketNamespace::make(42_001), BucketNamespace::make(42_002));
    let (resident, c) = in_new_namespace(|| {
        // The client has the same address and port as a client of another namespace, so the summary has one destination for
        // both.
        make_bucket(&listen("127.0.0.1:8080"), "127.0.0.1:8080", 42_001);
        make_bucket(&listen("127.0.0.1:8081"), "127.0.0.1:8081", 42_003);
        (Resident::start(), inode())
    });
    let pids = [a.resident.pid(), b.resident.pid(), resident.pid()];
    let args: Vec<&str> = pids.iter().flat_map(|pid| ["--netns", pid]).collect();
    let run = twtool([&["summary", "--json"], &args[..]].concat()).ok();
    let document = run.json();
    assert_eq!((&document["netns"], &document["complete"]), (&json!(null), &json!(true)), "{run}");
    let totals = &document["totals"];
    let totals = ["time_wait", "sockstat_tw", "max_tw_buckets"].map(|key| totals[key].clone());
    assert_eq!(totals, [json!(4), json!(4), json!(null)], "{run}");
    assert_eq!(document["history"]["total"], 4);
    let top = |group: &str| document["groups"][group]["top"].as_array().expect("a group").clone();
    let of_each = top("netns").iter().map(|line| (number(line, "netns"), number(line, "count"))).collect::<Vec<_>>();
    assert_eq!(of_each, [(c, 2), (a.inode, 1), (b.inode, 1)]);
    assert_eq!(text(&top("netns")[1], "netns_name"), format!("{}:cat", a.resident.pid()));
    let shared = top("destination").into_iter().find(|line| line["remote_port"] == 42_001).expect("the destination");
    assert_eq!(shared["count"], 2);
    // The counter of the summary is the sum of the counters of the three namespaces.
    let made = number(&document["counters"], "tw");
    let alone: u64 = pids
        .iter()
        .map(|pid| number(&twtool(["summary", "--json", "--netns", pid]).ok().json()["counters"], "tw"))
        .sum();
    assert_eq!(made, alone);

    let page = twtool([&["summary", "--by", "netns"], &args[..]].concat()).ok();
    for words in [
        "4 TIME_WAIT buckets in 3 network namespaces",
        "each namespace has its own tcp_max_tw_buckets",
        &format!("{}:cat", a.resident.pid()),
    ] {
        assert!(page.stdout.contains(words), "expected {words}{page}");
    }
    // If a namespace has reached its own maximum, an entry of `limits` names the namespace.
    let full = in_new_namespace(|| {
        sysctl::write("ipv4.tcp_max_tw_buckets", "1").expect("the namespace is ours");
        BucketNamespace::make_here(42_004)
    });
    let run = twtool(["summary", "--json", "--netns", &pids[0], "--netns", &full.resident.pid()]).ok().json();
    let limit = &run["limits"][0];
    assert_eq!((&limit["id"], &limit["count"]), (&json!("at-maximum"), &json!(1)), "{run}");
    assert!(text(limit, "text").contains(&format!("{}:cat", full.resident.pid())), "{run}");
    // If the process of one argument has ended, `summary` fails, even if another argument is correct.
    let mut gone = BucketNamespace::make(42_005);
    let gone_pid = gone.resident.pid();
    gone.resident.become_zombie();
    twtool(["summary", "--netns", &pids[0], "--netns", &gone_pid]).refused(&gone_pid);
    let one = twtool(["summary", "--by", "netns", "--json", "--netns", &a.resident.pid()]).ok().json();
    assert_eq!((&one["groups"]["netns"]["top"][0]["netns"], &one["netns"]), (&json!(a.inode), &json!(a.inode)));
    twtool([&["summary", "--record", "x"], &args[..]].concat()).refused("--record");
}

fn capacity_and_doctor_read_settings_and_test_ports_in_the_other_namespace() {
    kernel::needs(kernel::has_port_range_option(), "IP_LOCAL_PORT_RANGE");
    let (there, resident, kept) = in_new_namespace(|| {
        sysctl::write("ipv4.ip_local_port_range", "42000 42015").expect("the namespace is ours");
        let server = listen("127.0.0.1:42000");
        // The client called bind(). Only a test of the port in that namespace shows this.
        let open = connect_from(&server, "127.0.0.1:42000", "127.0.0.1:42001");
        (inode(), Resident::start(), (server, open))
    });
    let pid = resident.pid();
    let capacity = |args: &[&str]| {
        let run = twtool([&["capacity", "--to", "127.0.0.1:9", "--from", "127.0.0.1", "--json"], args].concat()).ok();
        let document = run.json();
        (document["netns"].clone(), document["range"]["low"].clone(), document["destinations"][0]["free"].clone())
    };
    assert_eq!(capacity(&["--netns", &pid]), (json!(there), json!(42_000), json!(14)));
    assert_ne!(capacity(&[]).1, 42_000);

    let doctor = |args: &[&str], code| {
        let run = twtool([&["doctor", "--json"], args].concat()).code(code);
        let checks = run.records("checks");
        let of = |id: &str| checks.iter().find(|check| check["id"] == id).expect("the check")["value"].clone();
        (run.json()["netns"].clone(), of("ephemeral_listeners"), of("ip_local_port_range"))
    };
    assert_eq!(doctor(&["--netns", &pid], 1), (json!(there), json!(1), json!("42000 42015")));
    assert_eq!(doctor(&[], 0).1, 0);
    drop(kept);
}

fn a_wait_tests_the_other_namespace_and_its_command_runs_in_the_namespace_of_twtool() {
    kernel::needs(kernel::destroys_buckets(), "SOCK_DESTROY of buckets");
    let other = BucketNamespace::make(42_001);
    drop(other.server);
    let pid = other.resident.pid();
    let shell = ["--", "sh", "-c", "readlink /proc/self/ns/net"];
    let wait = |args: &[&str]| twtool([&["wait", "8080", "--with", "none", "--timeout", "0"], args].concat());
    wait(&[]).code(0);
    let blocked = wait(&["--netns", &pid, "--json"]).code(1);
    let document = blocked.json();
    assert_eq!((&document["netns"], &document["blocked_by"][0]["remote_port"]), (&json!(other.inode), &json!(42_001)));
    assert_eq!(wait(&[&["--netns", &pid], &shell[..]].concat()).code(1).stdout, "");

    let mut waiter = Waiter::start(&["8080", "--with", "none", "--netns", &pid]);
    assert_eq!(waiter.blocked("time-wait")["blocked_by"][0]["netns"], other.inode);
    twtool(["kill", "--local-port", "8080", "--netns", &pid, "--yes"]).ok();
    assert_eq!(waiter.end().last["bindable"], true);
    let run = wait(&[&["--netns", &pid], &shell[..]].concat()).ok();
    assert_eq!(run.stdout, format!("net:[{}]\n", inode()));
}

fn kill_removes_only_the_bucket_of_the_selected_namespace() {
    kernel::needs(kernel::destroys_buckets(), "SOCK_DESTROY of buckets");
    make_bucket(&listen("127.0.0.1:8080"), "127.0.0.1:8080", 42_000);
    let (a, b) = (BucketNamespace::make(42_001), BucketNamespace::make(42_002));
    let pid = a.resident.pid();
    let run = twtool(["kill", "--local-port", "8080", "--netns", &pid, "--yes", "--json"]).ok();
    assert_eq!((&run.json()["netns"], &run.json()["destroyed"]), (&json!(a.inode), &json!(1)), "{run}");
    let left = |there: &BucketNamespace| list(&["--netns", &there.resident.pid(), "--count"]).ok().stdout;
    assert_eq!([left(&a), left(&b), list(&["--count"]).ok().stdout], ["0\n", "1\n", "1\n"]);
    assert_eq!(procfs::time_wait().len(), 1, "the bucket of the caller's own namespace stays");
}

fn reading_another_namespace_does_not_change_the_list_of_the_callers_own_namespace() {
    let other = BucketNamespace::make(42_001);
    let run = list(&["--netns", &other.resident.pid(), "--netns", "/proc/self/ns/net", "--json"]).ok();
    assert_eq!(
        clients(&run.records("sockets")),
        [(other.inode, 42_001)],
        "the test's own namespace has no bucket{run}"
    );
}

/// The names of the namespaces in the records. The key is the inode number of the namespace.
fn names(records: &[Value]) -> BTreeMap<u64, String> {
    records.iter().map(|record| (number(record, "netns"), text(record, "netns_name").to_owned())).collect()
}

fn every_namespace_is_found_once_with_its_name() {
    let pid_namespace = OwnPidNamespace::enter();
    let own = inode();
    bucket_of_server(&listen("127.0.0.1:8080"), "127.0.0.1:8080");
    let with_process = in_new_namespace(|| {
        private_proc::name_this_namespace("web");
        BucketNamespace::make_here(42_001)
    });
    let without = in_new_namespace(|| {
        // Two names, and no process.
        private_proc::name_this_namespace("db");
        private_proc::name_this_namespace("attic");
        bucket_of_server(&listen("127.0.0.1:8080"), "127.0.0.1:8080");
        inode()
    });
    let unnamed = BucketNamespace::make(42_003);
    let more = hop_into(&unnamed, Resident::start);
    let first = unnamed.resident.inner_pid().min(more.inner_pid());
    let expected = BTreeMap::from([
        (own, "1:cat".to_owned()),
        (with_process.inode, "web".into()),
        (without, "attic".into()),
        (unnamed.inode, format!("{first}:cat")),
    ]);
    fs::write("/run/netns/stale", "").expect("written");
    if !show_only_own_processes(&pid_namespace) {
        return;
    }
    let json = list(&["--all-netns", "--json"]).ok();
    let document = json.json();
    assert_eq!((&document["netns"], &document["complete"]), (&json!(null), &json!(true)), "{json}");
    let records = json.records("sockets");
    assert_eq!((records.len(), names(&records)), (4, expected.clone()), "{json}");
    let ndjson = list(&["--all-netns", "-o", "ndjson"]).ok();
    // The order: the caller's own namespace, then the named namespaces in the order of their names, then the other namespaces in the
    // order of the process IDs.
    let order = [own, without, with_process.inode, unnamed.inode];
    assert_eq!(ndjson.ndjson().iter().map(|record| number(record, "netns")).collect::<Vec<_>>(), order, "{ndjson}");
    assert_eq!(names(&ndjson.ndjson()), expected);
    assert_eq!(list(&["--all-netns", "--count"]).ok().stdout, "4\n");
    let mixed = list(&["--all-netns", "-o", "ndjson", "sport > 0 or sport > 0 and sport > 0"]).code(0);
    assert_eq!(mixed.ndjson().len(), 4, "{mixed}");
    assert_eq!(mixed.stderr.matches("left to right").count(), 1, "one warning for all namespaces{mixed}");
    // Without --netns, twtool does not search for processes. The namespace still has a name, because process 1 is in the namespace.
    assert_eq!(list(&["-o", "ndjson"]).ok().ndjson()[0]["netns_name"], "1:cat");
}

fn namespaces_and_processes_that_end_are_skipped() {
    const ROUNDS: usize = 25;
    let pid_namespace = OwnPidNamespace::enter();
    let mut residents: Vec<Vec<Resident>> = vec![];
    // The namespaces are made before /proc shows only the pid namespace, because entering a namespace reads /proc.
    for _ in 0..ROUNDS {
        residents.push((0..4).map(|_| in_new_namespace(Resident::start)).collect());
    }
    // The bucket lasts a minute, so it is made last.
    let other = BucketNamespace::make(42_001);
    let born = Instant::now();
    let expected = (other.inode, 42_001);
    if !show_only_own_processes(&pid_namespace) {
        return;
    }
    for round in 0..ROUNDS {
        let format = ["ndjson", "json"][round % 2];
        let mut command = command(["list", "--all-netns", "-o", format]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("twtool can be started");
        // Processes and their namespaces end during the search.
        drop(residents.pop());
        let run = Run::ended(&command, &child.wait_with_output().expect("it ends")).ok();
        let records = if format == "json" { run.records("sockets") } else { run.ndjson() };
        if !kernel::is_young(born) {
            return not_checked(format!(
                "{} of {ROUNDS} lists while namespaces end: on this slow machine, the bucket may have ended",
                ROUNDS - round
            ));
        }
        assert_eq!(clients(&records), [expected], "{run}");
    }
}

fn a_limit_applies_to_all_namespaces_together() {
    let others: Vec<_> = (42_001..42_005).map(BucketNamespace::make).collect();
    let pids: Vec<String> = others.iter().map(|other| other.resident.pid()).collect();
    let args: Vec<&str> = pids.iter().flat_map(|pid| ["--netns", pid]).collect();
    let run = |more: &[&str]| list(&[&args[..], more].concat()).ok();
    for limit in 0..=5_usize {
        let wanted: Vec<_> = others.iter().map(|other| other.inode).take(limit).collect();
        let ndjson = run(&["--limit", &limit.to_string(), "-o", "ndjson"]).ndjson();
        assert_eq!(ndjson.iter().map(|record| number(record, "netns")).collect::<Vec<_>>(), wanted);
        let csv = run(&["--limit", &limit.to_string(), "-o", "csv"]).csv().1;
        assert_eq!(csv.len(), limit.min(4));
        let json = run(&["--limit", &limit.to_string(), "--json", "--sort", "remote"]).records("sockets");
        assert_eq!(json.iter().map(|record| number(record, "netns")).collect::<Vec<_>>(), wanted);
    }
}

fn rows_of_large_namespaces_are_complete_and_not_mixed() {
    let crowded = || {
        in_new_namespace(|| {
            let server = listen("127.0.0.1:8080");
            many_buckets(&server, "127.0.0.1:8080", 2500);
            (inode(), Resident::start(), procfs::time_wait().len())
        })
    };
    let (a, b) = (crowded(), crowded());
    let (pid_a, pid_b) = (a.1.pid(), b.1.pid());
    for format in ["ndjson", "csv"] {
        let run = list(&["--netns", &pid_a, "--netns", &pid_b, "-o", format]).ok();
        let first = |line: &str| line.trim_start_matches("{\"netns\":").split(',').next().map(str::to_owned);
        let mut netns: Vec<_> = run.stdout.lines().skip(usize::from(format == "csv")).filter_map(first).collect();
        assert_eq!(netns.len(), a.2 + b.2, "{format}");
        netns.dedup();
        assert_eq!(netns, [a.0.to_string(), b.0.to_string()], "{format}");
        let distinct: BTreeSet<_> = run.stdout.lines().map(|line| line.rsplit(',').next().map(str::to_owned)).collect();
        assert_eq!(distinct.len(), a.2 + b.2 + usize::from(format == "csv"), "no cookie twice");
    }
    // If the reader closes the pipe, `list` ends with exit code 0.
    let mut command = command(["list", "--netns", &pid_a, "--netns", &pid_b, "-o", "ndjson"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("twtool can be started");
    child.stdout.take().expect("a pipe").read_exact(&mut [0; 100]).expect("100 bytes");
    Run::ended(&command, &child.wait_with_output().expect("it ends")).ok();
}

fn a_low_limit_of_descriptors_hides_no_namespace() {
    let pid_namespace = OwnPidNamespace::enter();
    let names: Vec<String> = (10..40).map(|i| format!("box{i}")).collect();
    for name in &names {
        in_new_namespace(|| {
            private_proc::name_this_namespace(name);
            bucket_of_server(&listen("127.0.0.1:8080"), "127.0.0.1:8080");
        });
    }
    if !show_only_own_processes(&pid_namespace) {
        return;
    }
    for ulimit in ["-Sn 16", "-n 16", "-n 11"] {
        let list = format!("ulimit {ulimit} && exec \"$0\" list --all-netns -o csv --columns netns_name --no-header");
        let run = Run::of(Command::new("sh").args(["-c", &list, PATH])).ok();
        assert_eq!(run.stdout.lines().collect::<Vec<_>>(), names, "{run}");
    }
}

fn an_interface_filter_matches_only_in_namespaces_that_have_the_interface() {
    let bound = |client: u16| {
        let socket = twtool::sys::bind::socket(
            std::net::Ipv4Addr::LOCALHOST.into(),
            twtool::model::bind::ReuseOptions::REUSEADDR,
        );
        let socket = socket.expect("a socket");
        socket.bind_device(Some(&device())).expect("SO_BINDTODEVICE");
        let server = Server::listen_on(socket, "127.0.0.1:8080".parse().expect("an address")).expect("a listener");
        make_bucket(&server, "127.0.0.1:8080", client);
        (inode(), Resident::start())
    };
    let (a, resident_a) = in_new_namespace(|| bound(42_001));
    let (b, resident_b) = in_new_namespace(|| {
        crate::support::addresses::rename_loopback("inner0");
        bound(42_002)
    });
    let (pid_a, pid_b) = (resident_a.pid(), resident_b.pid());
    let run = |filter: &str| list(&["--netns", &pid_a, "--netns", &pid_b, "-o", "ndjson", filter]);
    let found = |filter: &str| clients(&run(filter).ok().ndjson());
    let (of_a, of_b) = ((a, 42_001), (b, 42_002));
    assert_eq!(found("dev lo"), [of_a]);
    assert_eq!(found("dev inner0"), [of_b]);
    assert_eq!(found("not dev inner0"), [of_a]);
    assert_eq!(found("dev inner0 or dev lo"), [of_a, of_b]);
    let records = run("sport = 8080").ok().ndjson();
    let interfaces: Vec<_> = records.iter().map(|record| text(record, "interface")).collect();
    assert_eq!(interfaces, ["lo", "inner0"], "both interfaces have the number 1, and each has its own name");
    run("dev nosuch").refused("invalid filter").says("nosuch").says("inner0");
}

/// The name of interface 1, the loopback.
fn device() -> Vec<u8> {
    let list = nix::net::if_::if_nameindex().expect("interfaces");
    let name =
        list.iter().find(|interface| interface.index() == 1).map(|interface| interface.name().to_bytes().to_vec());
    name.expect("a loopback")
}

fn a_recording_of_another_namespace_gives_the_same_bytes() {
    let other = BucketNamespace::make(42_001);
    let pid = other.resident.pid();
    let folder = tempfile::tempdir().expect("a folder");
    for format in ["table", "json", "ndjson", "csv"] {
        let file = folder.path().join(format).into_os_string().into_string().expect("UTF-8");
        let live = list(&["--netns", &pid, "-o", format, "--record", &file]).ok();
        assert!(live.stdout.contains("42001"), "the list has the bucket{live}");
        assert_eq!(live.stdout, list(&["-o", format, "--replay", &file]).ok().stdout);
    }
    let second = BucketNamespace::make(42_002);
    let file = folder.path().join("two").into_os_string().into_string().expect("UTF-8");
    list(&["--netns", &pid, "--netns", &second.resident.pid(), "--record", &file]).refused("--record");
    assert!(!Path::new(&file).exists());
}

fn control_characters_in_the_name_of_a_process_do_not_reach_the_terminal() {
    let folder = tempfile::tempdir().expect("a folder");
    let evil = folder.path().join("\x1b[31m,\"\n");
    fs::copy(cat(), &evil).expect("copied");
    let resident = in_new_namespace(|| {
        bucket_of_client(&listen("127.0.0.1:8080"), "127.0.0.1:8080");
        Resident::start_as(&evil)
    });
    let pid = resident.pid();
    let name = format!("{pid}:\x1b[31m,\"\n");
    let args = ["--netns", &pid, "--netns", "/proc/self/ns/net"];
    let table = list(&args).ok();
    assert!(table.stdout.contains("\\u{1b}") && !table.stdout.contains('\x1b'), "{:?}", table.stdout);
    assert_eq!(list(&[&args[..], &["--json"]].concat()).ok().records("sockets")[0]["netns_name"], name);
    assert_eq!(list(&[&args[..], &["-o", "ndjson"]].concat()).ok().ndjson()[0]["netns_name"], name);
    assert_eq!(list(&[&args[..], &["-o", "csv"]].concat()).ok().csv().1[0][1], name);
}

fn names_that_are_not_utf8_are_found_and_stay_different() {
    let bytes = |name: &'static [u8]| OsStr::from_bytes(name);
    let pid_namespace = OwnPidNamespace::enter();
    let own = inode();
    let named: Vec<(u64, String)> = [(b"web\xff", 42_001), (b"web\xfe", 42_002)]
        .map(|(name, client)| {
            in_new_namespace(|| {
                private_proc::name_this_namespace(bytes(name));
                make_bucket(&listen("127.0.0.1:8080"), "127.0.0.1:8080", client);
                (inode(), format!(r"web\x{:02x}", name[3]))
            })
        })
        .into();
    let folder = tempfile::tempdir().expect("a folder");
    let program = folder.path().join(bytes(b"cat\xff"));
    fs::copy(cat(), &program).expect("copied");
    let (of_process, resident) = in_new_namespace(|| {
        make_bucket(&listen("127.0.0.1:8080"), "127.0.0.1:8080", 42_003);
        (inode(), Resident::start_as(&program))
    });
    let services = Path::new("/etc/netns").join(bytes(b"web\xff"));
    fs::create_dir(&services).expect("a folder");
    fs::write(services.join("services"), "its-own 8080/tcp\n").expect("written");

    // The argument has the bytes of the name, and the output has the name with an escape for the byte that is not UTF-8.
    let web = command(["list", "-o", "ndjson", "--netns"]).arg(bytes(b"web\xff")).output().expect("it ran");
    let web = Run::ended(&command(["list"]), &web).ok();
    assert_eq!(web.ndjson()[0]["netns_name"], r"web\xff", "{web}");
    assert_eq!(web.ndjson()[0]["local_service"], "its-own", "{web}");
    let path = command(["list", "--count", "--netns"]).arg(bytes(b"/run/netns/web\xfe")).output().expect("it ran");
    assert_eq!(Run::ended(&command(["list"]), &path).ok().stdout, "1\n");
    let nosuch = command(["list", "--netns"]).arg(bytes(b"nosuch\xff")).output().expect("it ran");
    Run::ended(&command(["list"]), &nosuch).refused(r"nosuch\xff").says(r"web\xfe, web\xff");

    let mut expected = BTreeMap::from_iter(named);
    expected.insert(of_process, format!(r"{}:cat\xff", resident.inner_pid()));
    if !show_only_own_processes(&pid_namespace) {
        return;
    }
    let run = list(&["--all-netns", "--json"]).ok();
    assert_eq!((run.json()["complete"].clone(), names(&run.records("sockets"))), (json!(true), expected), "{run}");
    assert!(
        run.records("sockets").iter().all(|record| number(record, "netns") != own),
        "the caller's own namespace has no bucket"
    );
}

fn cat() -> PathBuf {
    let folders = std::env::var_os("PATH").expect("a PATH");
    std::env::split_paths(&folders).map(|folder| folder.join("cat")).find(|path| path.exists()).expect("a cat")
}
