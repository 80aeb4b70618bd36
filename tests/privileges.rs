//! The tables of docs/privileges.md: each feature works with exactly the capabilities of its row, and not if one of them is missing.
//! twtool gets the capabilities in the ways that the page describes: for one command, for a program file, or for a unit.

use std::fs::{self, Permissions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::str::FromStr as _;
use std::thread;

use caps::Capability;

use crate::support::commands::needs_program;
use crate::support::limits::keep_only;
use crate::support::netns::has_user;
use crate::support::private_proc::{self, in_new_namespace};
use crate::support::situations::{bucket_of_server, listen};
use crate::support::twtool::{PATH, Run, twtool};
use crate::support::{kernel, not_checked, suite};

suite! {
    pure: [both_tables_have_the_same_capabilities_for_a_feature],
    netns: [each_feature_needs_exactly_the_capabilities_of_its_row],
}

/// The ID of a user other than the user of the test.
const OTHER: u32 = 33;

/// The ID of the user that runs twtool with capabilities. The user is not root, because root's programs get capabilities in another way.
const CALLER: u32 = 34;

fn page() -> String {
    fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/privileges.md")).expect("the page")
}

fn cells(page: &str) -> impl Iterator<Item = Vec<&str>> {
    page.lines().filter_map(|line| Some(line.strip_prefix("| ")?.strip_suffix(" |")?.split(" | ").collect()))
}

/// The rows of the first table: a feature and its capabilities.
fn rows() -> Vec<(String, Vec<Capability>)> {
    let page = page();
    let rows = cells(&page).filter_map(|cells| {
        let (feature, names) = (cells.first()?, cells.last()?);
        let names = names.starts_with("CAP_").then_some(names)?;
        let capability = |name| Capability::from_str(name).unwrap_or_else(|_| panic!("no capability: {name}"));
        Some(((*feature).to_owned(), names.split(", ").map(capability).collect()))
    });
    rows.collect()
}

/// The rows of the second table: a feature, the argument of setcap, and the value of the settings of a unit.
fn ways() -> Vec<[String; 3]> {
    let page = page();
    let code = |cell: &str| Some(cell.strip_prefix('`')?.strip_suffix('`')?.to_owned());
    let rows = cells(&page).filter_map(|cells| {
        let [feature, file, unit] = cells[..] else { return None };
        let file = code(file)?.strip_prefix("setcap ")?.to_owned();
        Some([feature.to_owned(), file, code(unit)?])
    });
    rows.collect()
}

enum Means {
    /// The thread that starts twtool has only these capabilities.
    Thread(Vec<Capability>),
    /// This command runs twtool as [`CALLER`]. Its last word is the program.
    Command(Vec<String>),
}

impl Means {
    /// The setpriv command of the page, with these capabilities in place of net_admin.
    fn of_setpriv(program: &Path, words: &[String]) -> Self {
        let page = page();
        let command = page.split("sudo setpriv ").nth(1).and_then(|rest| rest.split(" twtool kill").next());
        let command = command.expect("the command of the page").replace("\\\n", "");
        let set: Vec<String> = words.iter().map(|word| format!("+{}", word.trim_start_matches("cap_"))).collect();
        let command = command.replace("\"$(id -u)\"", &CALLER.to_string()).replace("\"$(id -g)\"", &CALLER.to_string());
        // `--init-groups` needs a user with a name, and CALLER may have none.
        let command = command.replace("--init-groups", "--clear-groups").replace("+net_admin", &set.join(","));
        let words = ["setpriv"].into_iter().chain(command.split_whitespace()).map(str::to_owned);
        Self::Command(words.chain([program.display().to_string()]).collect())
    }

    /// A setpriv command that does what systemd does for `User=`, `NoNewPrivileges=yes`, and `AmbientCapabilities=` and
    /// `CapabilityBoundingSet=` with this value (systemd.exec(5)).
    fn of_unit(program: &Path, value: &str) -> Self {
        let set: Vec<String> =
            value.split(' ').map(|name| format!("+{}", &name.to_lowercase()["cap_".len()..])).collect();
        let sets = ["inh-caps", "ambient-caps", "bounding-set"].map(|name| format!("--{name}=-all,{}", set.join(",")));
        let user = format!("setpriv --reuid {CALLER} --regid {CALLER} --clear-groups --no-new-privs");
        let words = user.split(' ').map(str::to_owned).chain(sets).chain([program.display().to_string()]);
        Self::Command(words.collect())
    }

    /// Runs setcap with this argument on a copy of the program. CALLER runs the copy without any other capability.
    fn of_file(copy: &Path, argument: &str) -> Self {
        Run::of(Command::new("setcap").arg(argument).arg(copy)).ok();
        let user =
            format!("setpriv --reuid {CALLER} --regid {CALLER} --clear-groups --inh-caps=-all {}", copy.display());
        Self::Command(user.split(' ').map(str::to_owned).collect())
    }

    fn run(&self, args: &[&str]) -> Run {
        match self {
            Self::Thread(kept) => thread::scope(|scope| {
                let run = scope.spawn(|| {
                    keep_only(kept);
                    twtool(args)
                });
                run.join().expect("twtool could be run")
            }),
            Self::Command(words) => Run::of(Command::new(&words[0]).args(&words[1..]).args(args).stdin(Stdio::null())),
        }
    }
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

/// Uses a feature by these means, and returns whether the answer shows that it worked.
type Trial = Box<dyn Fn(&Means) -> bool>;

/// How to use the feature of a row; `None` if this machine cannot show it.
fn shows(feature: &str) -> Option<Trial> {
    let answer = |means: &Means, words: &str| means.run(&words.split(' ').collect::<Vec<_>>());
    Some(match feature {
        "`kill`" => {
            kernel::destroys_buckets().then_some(())?;
            let server = listen("127.0.0.1:8080");
            Box::new(move |means| {
                bucket_of_server(&server, "127.0.0.1:8080");
                answer(means, "kill --local-port 8080 --yes").code == Some(0)
            })
        }
        "the key `mark` in records" => {
            kernel::lists_marks_of_buckets().then_some(())?;
            let server = listen("127.0.0.1:8081");
            bucket_of_server(&server, "127.0.0.1:8081");
            Box::new(move |means| answer(means, "list -o ndjson --local-port 8081").ok().ndjson()[0]["mark"] == 0)
        }
        "`bind-test`, `wait`, `doctor`, `connect-test`: the names of other users' processes" => {
            has_user(OTHER).then_some(())?;
            let other = OfOther::listens_on(8082);
            let pid = format!("(pid {})", other.0.id());
            Box::new(move |means| {
                let _holder = &other;
                answer(means, "bind-test 8082").code(1).stdout.contains(&pid)
            })
        }
        "`bind-test`, `wait`: a port below `net.ipv4.ip_unprivileged_port_start`" => {
            Box::new(move |means| answer(means, "bind-test 80").code == Some(0))
        }
        "`bind-test`, `wait`: `--user` (`--user root` needs root)" => {
            has_user(OTHER).then_some(())?;
            Box::new(move |means| answer(means, &format!("bind-test 8083 --user {OTHER}")).code == Some(0))
        }
        "`bind-test`, `wait`: `--transparent`" => {
            Box::new(move |means| answer(means, "bind-test 8084 --addr 192.0.2.1 --transparent").code == Some(0))
        }
        "`--netns NAME`, `--all-netns`" => {
            private_proc::mount_private_folders();
            in_new_namespace(|| private_proc::name_this_namespace("other"));
            Box::new(move |means| answer(means, "list --netns other").code == Some(0))
        }
        "`--netns PID`, `--container`, and `--all-netns` for namespaces without a name: processes of other users" => {
            has_user(OTHER).then_some(())?;
            let other = in_new_namespace(|| OfOther::listens_on(8085));
            let words = format!("list --netns {}", other.0.id());
            Box::new(move |means| {
                let _resident = &other;
                answer(means, &words).code == Some(0)
            })
        }
        other => panic!("docs/privileges.md has a feature without a test: {other}"),
    })
}

fn each_feature_needs_exactly_the_capabilities_of_its_row() {
    let (rows, ways) = (rows(), ways());
    assert_eq!(rows.len(), 8, "the rows of docs/privileges.md");
    let folder = tempfile::tempdir().expect("a folder");
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).expect("the other user may enter it");
    let [plain, capable] = ["twtool", "capable"].map(|name| folder.path().join(name));
    for copy in [&plain, &capable] {
        fs::copy(PATH, copy).expect("a copy");
    }
    let users = has_user(CALLER);
    if users {
        needs_program("setpriv");
        needs_program("setcap");
    } else {
        not_checked("capabilities of another user, of a file and of a unit: this user namespace has only one user");
    }
    for (feature, needed) in rows {
        let Some(works) = shows(&feature) else {
            not_checked(format!("the privileges of {feature}: this kernel or this user namespace cannot show it"));
            continue;
        };
        assert!(works(&Means::Thread(needed.clone())), "{feature} with {needed:?}");
        for missing in &needed {
            let others: Vec<Capability> = needed.iter().copied().filter(|one| one != missing).collect();
            assert!(!works(&Means::Thread(others)), "{feature} without {missing}");
        }
        if !users {
            continue;
        }
        let [_, file, unit] = ways.iter().find(|way| way[0] == feature).expect("a row of the second table");
        let names: Vec<String> = needed.iter().map(|one| one.to_string().to_lowercase()).collect();
        assert!(works(&Means::of_setpriv(&plain, &names)), "{feature} for one command");
        assert!(works(&Means::of_file(&capable, file)), "{feature} for a program file: {file}");
        assert!(works(&Means::of_unit(&plain, unit)), "{feature} for a unit: {unit}");
    }
}

fn both_tables_have_the_same_capabilities_for_a_feature() {
    let mut ways = ways();
    assert_eq!(ways.last().map(|way| way[0].as_str()), Some("`trace`"));
    // packaging/check tests `trace`, because `trace` needs capabilities of the initial user namespace.
    let trace = ways.pop().expect("a row");
    assert_eq!(trace[1..], ["cap_bpf,cap_perfmon+ep", "CAP_BPF CAP_PERFMON"]);
    let expected = rows().into_iter().map(|(feature, needed)| {
        let names: Vec<String> = needed.iter().map(ToString::to_string).collect();
        [feature, format!("{}+ep", names.join(",").to_lowercase()), names.join(" ")]
    });
    assert_eq!(ways, expected.collect::<Vec<_>>());
}
