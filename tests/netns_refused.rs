//! Errors of `--netns` and `--all-netns`: arguments that are not a network namespace, namespaces that have ended, and namespaces that
//! the caller has no permission to read.

use std::fs;

use crate::support::bucket_namespaces::{BucketNamespace, clients, list, make_bucket, show_only_own_processes};
use crate::support::limits::drop_capabilities_but_setfcap;
use crate::support::private_proc::{self, OwnPidNamespace, in_new_namespace, inode};
use crate::support::situations::listen;
use crate::support::suite;
use crate::support::twtool::{subcommands, twtool};

suite! {
    pure: [
        an_error_names_an_argument_that_is_not_a_network_namespace,
        arguments_that_cannot_be_combined_are_refused,
    ],
    netns: [
        a_process_that_has_ended_is_refused,
        a_name_without_its_mount_is_refused,
        readable_namespaces_are_listed_and_a_warning_names_the_unreadable_ones,
        the_callers_own_namespace_needs_no_privilege,
    ],
}

fn a_process_that_has_ended_is_refused() {
    const COMMANDS: &[&[&str]] = &[
        &["list"],
        &["summary"],
        &["port", "80"],
        &["bind-test", "8080"],
        &["wait", "8080"],
        &["kill", "--all", "--yes"],
        &["capacity"],
        &["connect-test", "127.0.0.1:8080"],
        &["doctor"],
        &["watch", "-o", "ndjson", "--count", "1"],
        &["trace", "--count", "1"],
        &["metrics"],
        &["exporter", "--listen", "127.0.0.1:0"],
    ];
    let mut place = BucketNamespace::make(42_001);
    let pid = place.resident.pid();
    list(&["--netns", &pid]).ok();
    place.resident.become_zombie();
    for name in subcommands() {
        let takes_it = twtool([name.as_str(), "-h"]).ok().stdout.contains("--netns <");
        let is_here = COMMANDS.iter().any(|command| command[0] == name);
        assert_eq!(is_here, takes_it, "the list COMMANDS must contain `{name}` if and only if it takes --netns");
    }
    for command in COMMANDS {
        twtool(command.iter().copied().chain(["--netns", &pid])).refused(&pid).says("ended");
    }
    drop(place);
}

fn a_name_without_its_mount_is_refused() {
    private_proc::mount_private_folders();
    fs::write("/run/netns/stale", "").expect("written");
    list(&["--netns", "stale"]).refused("stale").says("gone").says("hint:");
    list(&["--netns", "nosuch"]).refused("nosuch").says("stale");
    list(&["--netns", "/run/netns/stale"]).refused("/run/netns/stale").says("plain file");
}

fn readable_namespaces_are_listed_and_a_warning_names_the_unreadable_ones() {
    let pid_namespace = OwnPidNamespace::enter();
    let own = inode();
    make_bucket(&listen("127.0.0.1:8080"), "127.0.0.1:8080", 42_000);
    let named = in_new_namespace(|| {
        private_proc::name_this_namespace("web");
        BucketNamespace::make_here(42_001)
    });
    let unnamed = BucketNamespace::make(42_002);
    let pid = unnamed.resident.inner_pid().to_string();
    if !show_only_own_processes(&pid_namespace) {
        return;
    }
    drop_capabilities_but_setfcap();
    let run = list(&["--all-netns", "--json"]).code(2);
    let document = run.json();
    assert_eq!(clients(&run.records("sockets")), [(own, 42_000)], "{run}");
    assert_eq!(document["complete"], false, "{run}");
    let warnings = document["warnings"].to_string();
    for words in ["'web'", "Operation not permitted", &format!("{pid}:cat"), "Permission denied", "CAP_SYS_PTRACE"] {
        assert!(warnings.contains(words), "expected {words}{run}");
        assert!(run.stderr.contains(words), "expected {words} on stderr, too{run}");
    }
    for (args, stdout) in [(["--count"].as_slice(), "1\n"), (&["-q", "--remote-port", "42001"], "")] {
        let run = list(&[&["--all-netns"], args].concat()).code(2).says("'web'");
        assert_eq!(run.stdout, stdout, "{run}");
    }
    assert_eq!(clients(&list(&["--all-netns", "-o", "ndjson"]).code(2).says("'web'").ndjson()), [(own, 42_000)]);
    list(&["--all-netns", "-q", "--remote-port", "42000"]).code(0);
    // If the only selected namespace cannot be read, there is no answer.
    list(&["--netns", "web"]).refused("web").says("CAP_SYS_ADMIN");
    list(&["--netns", &pid]).refused(&pid).says("CAP_SYS_PTRACE");
    drop(named);
}

fn the_callers_own_namespace_needs_no_privilege() {
    make_bucket(&listen("127.0.0.1:8080"), "127.0.0.1:8080", 42_000);
    let own = inode();
    drop_capabilities_but_setfcap();
    let run = list(&["--netns", "/proc/self/ns/net", "-o", "ndjson"]).ok();
    assert_eq!(clients(&run.ndjson()), [(own, 42_000)], "{run}");
}

fn an_error_names_an_argument_that_is_not_a_network_namespace() {
    for command in [
        ["list"].as_slice(),
        &["port", "80"],
        &["bind-test", "8080"],
        &["kill", "--all", "--yes"],
        &["summary"],
        &["list", "--json"],
        &["list", "-q"],
    ] {
        for (word, why) in [
            ("nosuch", "/run/netns"),
            ("999999999", "does not exist"),
            ("/etc/passwd", "plain file"),
            ("/proc/self/ns/mnt", "mnt:["),
            ("/dev/zero", "special file"),
            ("/proc", "folder"),
            ("/nosuch/path", "No such file"),
            ("0", "1-2147483647"),
            ("99999999999999999999", "1-2147483647"),
            ("..", "ip netns list"),
            ("-1", "/run/netns"),
        ] {
            twtool(command.iter().copied().chain(["--netns", word])).refused(word).says(why);
        }
        let run = twtool(command.iter().copied().chain(["--netns", ""])).code(2).says("ip netns list");
        assert!(run.stdout.is_empty(), "{run}");
        let hostile = twtool(command.iter().copied().chain(["--netns", "\x1b[2J"])).code(2);
        assert!(!hostile.stderr.contains('\x1b'), "{:?}", hostile.stderr);
    }
    // One of several arguments is wrong.
    twtool(["list", "--netns", "/proc/self/ns/net", "--netns", "nosuch"]).refused("nosuch");
}

fn arguments_that_cannot_be_combined_are_refused() {
    twtool(["list", "--all-netns", "--netns", "1"]).refused("--netns");
    twtool(["list", "--all-netns", "--record", "/nosuch/file"]).refused("--record");
    twtool(["list", "--all-netns", "--replay", "/nosuch/file"]).refused("--replay");
    twtool(["list", "--netns", "1", "--replay", "/nosuch/file"]).refused("--replay");
    twtool(["list", "--all-netns", "--explain-filter"]).refused("--explain-filter");
    twtool(["list", "--netns", "1", "--netns", "2", "--explain-filter"]).refused("--explain-filter");
    twtool(["bind-test", "8080", "--netns", "1", "--demo"]).refused("--demo");
    twtool(["summary", "--netns", "1", "--replay", "/nosuch/file"]).refused("--replay");
    // These commands accept one namespace only.
    twtool(["port", "80", "--netns", "1", "--netns", "2"]).refused("--netns");
    twtool(["bind-test", "80", "--all-netns"]).refused("--all-netns");
}
