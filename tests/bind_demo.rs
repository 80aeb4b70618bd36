//! `bind-test --demo`: the experiment runs in private namespaces and needs no root.

use caps::Capability;
use seccompiler::SeccompCmpOp;
use serde_json::{Value, json};

use crate::support::bind::own_netns;
use crate::support::limits::{drop_capabilities_but_setfcap, drop_capability, refuse};
use crate::support::procfs;
use crate::support::records::{DOCUMENT_KEYS, LIST_KEYS, number, text};
use crate::support::situations::listen;
use crate::support::suite;
use crate::support::twtool::{Keys, Run, twtool};

suite! {
    pure: [
        port_0_has_no_demonstration,
        options_of_the_server_cannot_be_combined_with_the_demonstration,
    ],
    netns: [
        the_demonstration_shows_what_the_documentation_says,
        the_table_describes_each_run,
        ndjson_has_one_line_for_each_run,
        the_demonstration_on_port_80_needs_no_privilege,
        the_callers_namespace_is_not_touched,
        root_can_run_the_demo_without_user_namespaces,
        an_error_explains_how_to_allow_forbidden_namespaces,
    ],
}

/// The results of bind() if the old socket had not set SO_REUSEADDR (socket(7)). The order of the new socket's options: none,
/// SO_REUSEADDR, SO_REUSEPORT, both.
const OLD_WITHOUT_REUSEADDR: [&str; 4] = ["EADDRINUSE"; 4];
/// The results of bind(), in the same order, if the old socket had set SO_REUSEADDR.
const OLD_WITH_REUSEADDR: [&str; 4] = ["EADDRINUSE", "ok", "EADDRINUSE", "ok"];

#[track_caller]
fn as_documented(run: &Value, port: u16, old: &[&str], binds: [&str; 4]) {
    assert_eq!(run["old_socket_options"], json!(old));
    let [bucket] = run["buckets"].as_array().expect("buckets").as_slice() else { panic!("one bucket in {run}") };
    assert_eq!((text(bucket, "state"), number(bucket, "local_port")), ("time-wait", port.into()));
    assert!(number(bucket, "expires_ms") > 0, "{bucket}");
    assert!(LIST_KEYS.iter().all(|key| bucket.get(key).is_some()), "a bucket has the keys of list: {bucket}");
    let sets = [json!([]), json!(["SO_REUSEADDR"]), json!(["SO_REUSEPORT"]), json!(["SO_REUSEADDR", "SO_REUSEPORT"])];
    let attempts: Vec<Value> = sets
        .into_iter()
        .zip(binds)
        .map(|(options, bind)| {
            let listening = (bind == "ok").then_some("ok");
            json!({ "addr": bucket["local_addr"], "options": options, "bind": bind, "listen": listening })
        })
        .collect();
    assert_eq!(run["attempts"], json!(attempts));
    let stages: Vec<_> =
        run["stages"].as_array().expect("stages").iter().map(|s| (&s["server"], &s["client"])).collect();
    let (established, fin_wait_2) = (json!("established"), json!("fin-wait-2"));
    let (close_wait, time_wait, gone) = (json!("close-wait"), json!("time-wait"), json!(null));
    assert_eq!(stages, [(&established, &established), (&fin_wait_2, &close_wait), (&time_wait, &gone)], "{run}");
}

#[track_caller]
fn both_runs(runs: &[Value], port: u16) {
    let [without, with] = runs else { panic!("two runs in {runs:?}") };
    as_documented(without, port, &[], OLD_WITHOUT_REUSEADDR);
    as_documented(with, port, &["SO_REUSEADDR"], OLD_WITH_REUSEADDR);
}

fn demo(port: u16, format: &str) -> Run {
    twtool(["bind-test", &port.to_string(), "--demo", "-o", format])
}

fn the_demonstration_shows_what_the_documentation_says() {
    for port in [8080, 80, 1, 40000, 65535] {
        let run = demo(port, "json").ok();
        assert_eq!(Keys::of(&run.stdout), [DOCUMENT_KEYS.as_slice(), &["runs"]].concat());
        let document = run.json();
        assert_eq!(document["schema"], "twtool.bind-test-demo/1");
        assert_eq!((&document["complete"], &document["warnings"]), (&json!(true), &json!([])));
        assert_ne!(number(&document, "netns"), own_netns(), "the demonstration has a namespace of its own");
        both_runs(&run.records("runs"), port);
    }
}

fn the_table_describes_each_run() {
    let run = demo(8080, "table").ok();
    for text in ["8080", "EADDRINUSE", "TIME_WAIT", "SO_REUSEADDR", "fin-wait-2", "close-wait", "time-wait"] {
        assert!(run.stdout.contains(text), "expected {text}{run}");
    }
    assert!(!run.stdout.contains('\x1b'), "no escape sequences in a pipe{run}");
}

fn ndjson_has_one_line_for_each_run() {
    let run = demo(8080, "ndjson").ok();
    both_runs(&run.ndjson(), 8080);
}

fn the_demonstration_on_port_80_needs_no_privilege() {
    drop_capabilities_but_setfcap();
    both_runs(&demo(80, "json").ok().records("runs"), 80);
    demo(80, "table").ok().prints("EADDRINUSE");
}

fn the_callers_namespace_is_not_touched() {
    let server = listen("0.0.0.0:8080");
    let before = procfs::sockets();
    both_runs(&demo(8080, "json").ok().records("runs"), 8080);
    assert_eq!(procfs::sockets(), before, "the demonstration works beside a listener here, and changes no socket");
    drop(server);
    demo(8081, "table").ok();
    assert!(procfs::sockets().iter().all(|entry| entry.local.1 != 8081 && entry.remote.1 != 8081));
    assert_eq!(procfs::bucket_count(), 0);
}

fn root_can_run_the_demo_without_user_namespaces() {
    refuse(libc::SYS_unshare, Some((0, SeccompCmpOp::MaskedEq(user_namespace()), user_namespace())), libc::EPERM);
    both_runs(&demo(8080, "json").ok().records("runs"), 8080);
    // Without CAP_SYS_ADMIN, root needs a user namespace as every other user does.
    drop_capability(Capability::CAP_SYS_ADMIN);
    forbidden();
}

fn user_namespace() -> u64 {
    u64::from(libc::CLONE_NEWUSER.unsigned_abs())
}

#[track_caller]
fn forbidden() {
    for format in ["table", "json", "ndjson"] {
        let run = demo(8080, format).refused("namespace").says("hint:");
        for way in ["user.max_user_namespaces", "kernel.unprivileged_userns_clone", "seccomp"] {
            assert!(run.stderr.contains(way), "expected {way} in the hint{run}");
        }
        assert!(run.stderr.contains("Operation not permitted"), "the reason{run}");
    }
}

fn an_error_explains_how_to_allow_forbidden_namespaces() {
    refuse(libc::SYS_unshare, None, libc::EPERM);
    forbidden();
}

fn port_0_has_no_demonstration() {
    twtool(["bind-test", "0", "--demo"]).refused("'0'");
}

fn options_of_the_server_cannot_be_combined_with_the_demonstration() {
    for (option, word) in
        [(["--addr", "::1"].as_slice(), "--addr"), (&["--listen"], "--listen"), (&["--with", "none"], "--with")]
    {
        twtool([["bind-test", "8080", "--demo"].as_slice(), option].concat()).refused("--demo").says(word);
    }
}
