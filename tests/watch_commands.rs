//! The commands that `twtool watch` prints in the details of a row. The tests run each kind of command as it is printed, and check
//! its effect in the namespace that the command names.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::bucket_namespaces::{BucketNamespace, make_bucket, show_only_own_processes};
use crate::support::private_proc::{self, OwnPidNamespace, in_new_namespace, inode};
use crate::support::procfs::time_wait;
use crate::support::screen::Screen;
use crate::support::situations::{bucket_of_client, bucket_of_server, listen};
use crate::support::twtool::{PATH, command};
use crate::support::{commands, kernel, suite};

suite! {
    pure: [],
    netns: [
        each_kind_of_command_works_in_the_namespace_of_twtool,
        each_removal_removes_the_sockets_of_its_row,
        commands_name_the_namespace_of_their_row,
    ],
}

/// At this width, each printed command is on one line.
const WIDE: (u16, u16) = (300, 50);

/// A row that is selected on the screen.
struct Chosen {
    keys: &'static str,
    /// The beginning of the title of the details.
    title: &'static str,
    /// For each printed command: the words after `twtool`, and a text in the output. The last command, which removes sockets, is left out.
    commands: &'static [(&'static str, &'static str)],
}

/// The first and the last row of the table of sockets, and the first row of the tables 3, 4 and 5.
const ROWS: [Chosen; 5] = [
    Chosen { keys: "1s\x1b[H\x1b[B\r", title: "── socket", commands: &[("bind-test 9090", "9090")] },
    Chosen {
        keys: "1\x1b[F\r", title: "── socket", commands: &[("capacity --to 127.0.0.1:8080", "127.0.0.1:8080")]
    },
    Chosen {
        keys: "3\x1b[H\x1b[B\r",
        title: "── 9090",
        commands: &[("bind-test 9090", "9090"), ("list --local-port 9090", "2 TIME_WAIT")],
    },
    Chosen {
        keys: "4\x1b[H\x1b[B\r", title: "── 127.0.0.1", commands: &[("list --remote 127.0.0.1", "3 TIME_WAIT")]
    },
    Chosen { keys: "5\x1b[H\x1b[B\r", title: "── netns", commands: &[("doctor", "tcp_max_tw_buckets")] },
];

/// The commands of twtool on the screen.
fn printed(screen: &Screen) -> Vec<String> {
    let text = screen.text();
    text.lines().map(str::trim).filter(|line| line.starts_with(PATH)).map(str::to_owned).collect()
}

/// Makes two buckets of a server on port 9090, and one bucket of a client that was connected to port 8080. The client's own port is
/// higher than 9090, so that the client's row is the last one if the rows are sorted by their local end.
fn situation() -> [twtool::lab::Server; 2] {
    let (server, other) = (listen("127.0.0.1:9090"), listen("127.0.0.1:8080"));
    bucket_of_client(&other, "127.0.0.1:8080");
    bucket_of_server(&server, "127.0.0.1:9090");
    bucket_of_server(&server, "127.0.0.1:9090");
    [server, other]
}

fn each_kind_of_command_works_in_the_namespace_of_twtool() {
    kernel::needs(kernel::destroys_buckets(), "SOCK_DESTROY for buckets");
    let _servers = situation();
    let mut screen = Screen::start(command(["watch", "--interval", "200ms"]), WIDE);
    screen.until_shown("3 TIME_WAIT");
    for Chosen { keys, title, commands } in &ROWS {
        screen.types(keys);
        screen.until_shown(title);
        let lines = printed(&screen);
        let (removal, others) = lines.split_last().expect("commands");
        assert_eq!(others.len(), commands.len(), "{}", screen.text());
        for (line, (words, shown)) in others.iter().zip(*commands) {
            assert_eq!(line.strip_prefix(PATH).map(str::trim), Some(*words));
            let run = commands::run(line);
            // bind-test exits with 1, because a server listens on the port. doctor exits with 1 if it finds a problem.
            let may_fail = ["bind-test", "doctor"].iter().any(|word| words.starts_with(word));
            assert!(run.code == Some(0) || (may_fail && run.code == Some(1)), "{run}");
            assert!(run.stdout.contains(shown), "{shown}{run}");
        }
        assert!(removal.contains(" kill "), "{lines:?}");
        let dry = commands::succeeds(&format!("{removal} --dry-run -o ndjson")).ndjson();
        assert!(!dry.is_empty() && dry.len() <= 3, "{removal}: {dry:?}");
        screen.types("x");
        screen.until(|screen| !screen.text().contains(title));
    }
    screen.types("q");
    assert_eq!(screen.end().code(), Some(0));
}

/// This test is separate from the previous one, because on a slow machine the buckets may expire before both are done.
fn each_removal_removes_the_sockets_of_its_row() {
    kernel::needs(kernel::destroys_buckets(), "SOCK_DESTROY for buckets");
    let _servers = situation();
    let mut screen = Screen::start(command(["watch", "--interval", "200ms"]), WIDE);
    screen.until_shown("3 TIME_WAIT");
    // Each removal removes only the sockets of its row: first the two sockets of a port, then one socket.
    for (keys, left) in [("3\x1b[H\x1b[B\r", 1), ("1\x1b[F\r", 0)] {
        screen.types(keys);
        screen.until(|screen| printed(screen).iter().any(|line| line.contains(" kill ")));
        let removal = printed(&screen).pop().expect("commands");
        let run = commands::succeeds(&format!("{removal} --yes"));
        assert_eq!(time_wait().len(), left, "{run}");
        screen.types("x");
        screen.until_shown(&format!("{left} TIME_WAIT, "));
    }
    screen.types("q");
    assert_eq!(screen.end().code(), Some(0));
}

fn commands_name_the_namespace_of_their_row() {
    kernel::needs(kernel::destroys_buckets(), "SOCK_DESTROY for buckets");
    let pid_namespace = OwnPidNamespace::enter();
    let server = listen("127.0.0.1:8080");
    make_bucket(&server, "127.0.0.1:8080", 42_000);
    let named = in_new_namespace(|| {
        private_proc::name_this_namespace("web");
        BucketNamespace::make_here(42_001)
    });
    let unnamed = BucketNamespace::make(42_002);
    let (own_inode, inner_pid) = (inode(), unnamed.resident.inner_pid());
    if !show_only_own_processes(&pid_namespace) {
        return;
    }
    let mut screen = Screen::start(command(["watch", "--all-netns", "--interval", "200ms"]), WIDE);
    screen.until_shown("3 network namespaces");
    screen.until_shown("3 TIME_WAIT, 0 FIN_WAIT_2; complete; each namespace has its own tcp_max_tw_buckets");
    screen.types("5");
    screen.until_shown(&format!("{inner_pid}:cat"));
    assert!(screen.text().contains("web "), "{}", screen.text());
    // A new namespace appears, and disappears when it ends.
    let mut short_lived =
        Command::new("unshare").args(["--net", "cat"]).stdin(Stdio::piped()).spawn().expect("unshare(1)");
    screen.until_shown("4 network namespaces");
    short_lived.kill().expect("our own child");
    short_lived.wait().expect("our own child");
    screen.until_shown("3 network namespaces");
    screen.types("1");
    screen.until_shown("NETNS ");
    // Each namespace has one row. The rows are sorted by both ends, and the client's port identifies the namespace.
    screen.types("s");
    screen.until_shown("s sort: local");
    screen.types("\x1b[H");
    let inodes = BTreeMap::from([("42000", own_inode), ("42001", named.inode), ("42002", unnamed.inode)]);
    let mut seen = BTreeSet::new();
    for _ in 0..3 {
        screen.types("\x1b[B\r");
        screen.until_shown("── socket");
        let lines = printed(&screen);
        let port = inodes.keys().copied().find(|port| lines.iter().any(|line| line.contains(port)));
        let port = port.unwrap_or_else(|| panic!("{}", screen.text()));
        assert!(seen.insert(port), "{}", screen.text());
        for line in &lines {
            assert!(line.contains(" --netns "), "{line}");
            let line = if line.contains(" kill ") { format!("{line} --yes --json") } else { format!("{line} --json") };
            let run = commands::run(&line);
            assert!(matches!(run.code, Some(0 | 1)), "{run}");
            let document: Value = run.json();
            assert_eq!(document["netns"], inodes[port], "{run}");
        }
        screen.types("x");
        screen.until(|screen| !screen.text().contains("── socket"));
        // The removed row disappears, and then no row is selected.
        screen.until_shown(&format!("{} TIME_WAIT", 3 - seen.len()));
        screen.types("\x1b[H");
    }
    screen.types("q");
    assert_eq!(screen.end().code(), Some(0));
}
