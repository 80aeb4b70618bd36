//! The table of docs/privileges.md: each feature works with exactly the capabilities of its row, and not without them.

use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::str::FromStr as _;
use std::thread;

use caps::Capability;

use crate::support::island::{self, in_new_namespace};
use crate::support::limits::keep_only;
use crate::support::netns::has_user;
use crate::support::situations::{bucket_of_server, listen};
use crate::support::twtool::{Run, twtool};
use crate::support::{kernel, not_checked, suite};

suite! {
    pure: [],
    netns: [each_feature_needs_exactly_the_capabilities_of_its_row],
}

/// A user that is not the one of the test.
const OTHER: u32 = 33;

/// The rows of the table: a feature and its capabilities.
fn rows() -> Vec<(String, Vec<Capability>)> {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/privileges.md")).expect("the page");
    let rows = page.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| ")?.strip_suffix(" |")?.split(" | ");
        let (feature, names) = (cells.next()?, cells.last()?);
        let names = names.starts_with("CAP_").then_some(names)?;
        let capability = |name| Capability::from_str(name).unwrap_or_else(|_| panic!("no capability: {name}"));
        Some((feature.to_owned(), names.split(", ").map(capability).collect()))
    });
    rows.collect()
}

/// Runs twtool with exactly these capabilities.
fn with(kept: &[Capability], args: &[&str]) -> Run {
    thread::scope(|scope| {
        let run = scope.spawn(|| {
            keep_only(kept);
            twtool(args)
        });
        run.join().expect("twtool could be run")
    })
}

/// A process of the other user that listens on the port. Dropping this value ends it.
struct OfOther(Child);

impl OfOther {
    fn listens_on(port: u16) -> Self {
        let listener: OwnedFd = std::net::TcpListener::bind(("127.0.0.1", port)).expect("the port is free").into();
        let mut command = Command::new("sleep");
        command.arg("60").uid(OTHER).stdin(listener).stdout(Stdio::null());
        Self(command.spawn().expect("sleep can be started"))
    }
}

impl Drop for OfOther {
    fn drop(&mut self) {
        self.0.kill().and_then(|()| self.0.wait()).expect("it can be ended");
    }
}

/// Uses a feature with exactly these capabilities, and returns whether the answer shows that it worked.
type Trial = Box<dyn Fn(&[Capability]) -> bool>;

/// How to use the feature of a row; `None` if this machine cannot show it.
fn shows(feature: &str) -> Option<Trial> {
    let answer = |kept: &[Capability], words: &str| with(kept, &words.split(' ').collect::<Vec<_>>());
    Some(match feature {
        "`kill`" => {
            kernel::destroys_buckets().then_some(())?;
            let server = listen("127.0.0.1:8080");
            Box::new(move |kept| {
                bucket_of_server(&server, "127.0.0.1:8080");
                answer(kept, "kill --local-port 8080 --yes").code == Some(0)
            })
        }
        "the key `mark` in records" => {
            kernel::lists_marks_of_buckets().then_some(())?;
            let server = listen("127.0.0.1:8081");
            bucket_of_server(&server, "127.0.0.1:8081");
            Box::new(move |kept| answer(kept, "list -o ndjson --local-port 8081").ok().ndjson()[0]["mark"] == 0)
        }
        "`bind-test`, `wait`, `doctor`, `connect-test`: the names of other users' processes" => {
            has_user(OTHER).then_some(())?;
            let other = OfOther::listens_on(8082);
            let pid = format!("(pid {})", other.0.id());
            Box::new(move |kept| {
                let _holder = &other;
                answer(kept, "bind-test 8082").code(1).stdout.contains(&pid)
            })
        }
        "`bind-test`, `wait`: a port below `net.ipv4.ip_unprivileged_port_start`" => {
            Box::new(move |kept| answer(kept, "bind-test 80").code == Some(0))
        }
        "`bind-test`, `wait`: `--user` (`--user root` needs root)" => {
            has_user(OTHER).then_some(())?;
            Box::new(move |kept| answer(kept, &format!("bind-test 8083 --user {OTHER}")).code == Some(0))
        }
        "`bind-test`, `wait`: `--transparent`" => {
            Box::new(move |kept| answer(kept, "bind-test 8084 --addr 192.0.2.1 --transparent").code == Some(0))
        }
        "`--netns NAME`, `--all-netns`" => {
            island::folders();
            in_new_namespace(|| island::name("other"));
            Box::new(move |kept| answer(kept, "list --netns other").code == Some(0))
        }
        "`--netns PID`, `--container`, and `--all-netns` for namespaces without a name: processes of other users" => {
            has_user(OTHER).then_some(())?;
            let other = in_new_namespace(|| OfOther::listens_on(8085));
            let words = format!("list --netns {}", other.0.id());
            Box::new(move |kept| {
                let _resident = &other;
                answer(kept, &words).code == Some(0)
            })
        }
        other => panic!("docs/privileges.md has a feature without a test: {other}"),
    })
}

fn each_feature_needs_exactly_the_capabilities_of_its_row() {
    let rows = rows();
    assert_eq!(rows.len(), 8, "the rows of docs/privileges.md");
    for (feature, needed) in rows {
        let Some(works) = shows(&feature) else {
            not_checked(format!("the privileges of {feature}: this kernel or this user namespace cannot show it"));
            continue;
        };
        assert!(works(&needed), "{feature} with {needed:?}");
        for missing in &needed {
            let others: Vec<Capability> = needed.iter().copied().filter(|one| one != missing).collect();
            assert!(!works(&others), "{feature} without {missing}");
        }
    }
}
