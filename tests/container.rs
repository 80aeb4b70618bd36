//! `--container ID`: the namespace of a container, found through the cgroup of its processes.

use std::process::{Child, Command, Stdio};

use serde_json::json;
use twtool::lab::Server;
use twtool::model::bind::ReuseOptions;

use crate::support::cgroup::Cgroup;
use crate::support::commands;
use crate::support::netns::on_thread_in_new_namespace;
use crate::support::situations::{addr, bucket_of_server};
use crate::support::twtool::twtool;
use crate::support::{not_checked, suite};

suite! {
    pure: [],
    netns: [
        the_namespace_of_a_container_is_found_through_the_cgroup_of_its_processes,
        an_id_that_selects_no_container_or_several_is_refused,
        an_argument_that_is_not_a_container_id_is_refused,
    ],
}

/// A container ID. All IDs of one test begin with the same ten digits, which no other test and no simultaneous run uses.
fn id(test: u8, number: u8) -> String {
    format!("{test:02x}{:08x}{number:02x}{}", std::process::id(), "0123456789abcdef".repeat(4))
        .chars()
        .take(64)
        .collect()
}

/// A process in a new network namespace and in the cgroup of a container.
struct Container {
    process: Child,
    cgroup: Option<Cgroup>,
}

impl Container {
    /// Makes a container with a TIME_WAIT bucket on port 8080 in its namespace; `None` if the test may not make a cgroup or move a
    /// process.
    fn make(name: &str) -> Option<Self> {
        let cgroup = Cgroup::make(name).map_err(|why| not_checked(format!("--container: {why}"))).ok()?;
        let process = on_thread_in_new_namespace(|| {
            let server = Server::listen(addr("127.0.0.1:8080"), ReuseOptions::NONE).expect("a server");
            bucket_of_server(&server, "127.0.0.1:8080");
            Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().expect("sleep can be started")
        });
        let made = Self { process, cgroup: Some(cgroup) };
        let added = made.cgroup.as_ref().map(|cgroup| cgroup.add(made.process.id()));
        if let Some(Err(error)) = added {
            not_checked(format!("--container: a process cannot be moved to another cgroup: {error}"));
            return None;
        }
        Some(made)
    }

    fn pid(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.process.kill().expect("our own child");
        self.process.wait().expect("our own child");
        drop(self.cgroup.take());
    }
}

fn the_namespace_of_a_container_is_found_through_the_cgroup_of_its_processes() {
    let first = id(1, 1);
    let Some(container) = Container::make(&format!("docker-{first}.scope")) else { return };
    let inode = std::fs::metadata(format!("/proc/{}/ns/net", container.pid()));
    let inode = std::os::unix::fs::MetadataExt::ino(&inode.expect("its namespace"));
    for id in [first.as_str(), &first[..12]] {
        for command in ["list", "summary", "doctor", "capacity"] {
            let run = twtool([command, "--json", "--container", id]);
            assert_eq!(run.json()["netns"], inode, "{run}");
        }
        assert_eq!(twtool(["list", "--json", "--container", id]).ok().records("sockets").len(), 1);
    }
    let run = twtool(["bind-test", "8080", "--json", "--container", &first]).code(1);
    let steps = run.json()["next"].clone();
    let commands: Vec<&str> =
        steps.as_array().expect("a list").iter().filter_map(|step| step["command"].as_str()).collect();
    assert!(commands.iter().all(|command| command.contains(&format!("--container {first}"))), "{run}");
    // Other programs have no option --container. So twtool prints their commands with nsenter, through a process of the container.
    let run = twtool(["bind-test", "8080", "--json", "--addr", "192.0.2.1", "--container", &first]).code(1);
    let enter = format!("nsenter --net=/proc/{}/ns/net ip address", container.pid());
    assert_eq!(run.json()["next"][0]["command"], json!(enter), "{run}");
    commands::succeeds(&enter);
    let kill = commands.iter().find(|command| command.contains(" kill "));
    let Some(kill) = kill else {
        return not_checked("the printed kill of a container: this kernel cannot remove buckets");
    };
    commands::succeeds(&format!("{kill} --yes"));
    assert_eq!(twtool(["list", "--json", "--container", &first]).ok().records("sockets").len(), 0);
}

fn an_id_that_selects_no_container_or_several_is_refused() {
    let [one, other] = [1, 2].map(|number| id(2, number));
    let Some(first) = Container::make(&format!("libpod-{one}.scope")) else { return };
    let Some(_second) = Container::make(&format!("crio-{other}.scope")) else { return };
    let run = twtool(["list", "--container", &one[..10]]).refused(&one[..10]);
    assert!(
        run.stderr.contains(&format!("podman container {}, cri-o container {}", &one[..12], &other[..12])),
        "{run}"
    );
    twtool(["list", "--container", &one[..12]]).ok();
    let run = twtool(["list", "--container", "0000"]).refused("0000").says("hint: twtool finds a container through");
    assert!(
        run.stderr.contains("containers with processes are: ")
            && run.stderr.contains(&format!("podman container {}", &one[..12])),
        "{run}"
    );
    // --container can be repeated, and combined with --netns. A namespace that both select is listed once.
    let both = twtool(["list", "--json", "--container", &one, "--container", &other]).ok();
    assert_eq!(both.records("sockets").len(), 2, "{both}");
    let pid = first.pid().to_string();
    assert_eq!(twtool(["list", "--json", "--container", &one, "--netns", &pid]).ok().records("sockets").len(), 1);
}

fn an_argument_that_is_not_a_container_id_is_refused() {
    for word in ["web", "", "4F5A", "4f5a/.."] {
        for command in [&["list"][..], &["bind-test", "8080"], &["wait", "8080"]] {
            twtool(command.iter().chain(&["--container", word])).refused("--container");
        }
    }
    twtool(["bind-test", "8080", "--netns", "1", "--container", "4f"]).refused("--container");
    twtool(["list", "--all-netns", "--container", "4f"]).refused("--container");
}
