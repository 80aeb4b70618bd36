//! The commands that stop the processes, services and containers that have sockets on a port, and that end orphans there.

use std::collections::BTreeSet;

use super::{Failure, is_clients, is_orphan, on_the_port, test_as_root};
use crate::model::command::{Privilege, Shell, Step};
use crate::model::container::{Container, Runtime};
use crate::model::health::Capability;
use crate::model::process::{KernelPart, Owners, Process};
use crate::model::socket::Socket;

pub(super) fn stop(failure: &Failure) -> Vec<Step> {
    let blocking = || failure.holders.iter().filter(|holder| holder.blocks);
    let here = Shell { netns: None, ..failure.shell.clone() };
    let (mut seen, mut steps) = (BTreeSet::new(), vec![]);
    for holder in blocking() {
        if matches!(holder.socket, Socket::Bucket(_)) {
            continue;
        }
        if holder.owners == Owners::Kernel(KernelPart::MptcpEndpoint) {
            let show = failure.shell.run(Privilege::None, &["ip", "mptcp", "endpoint", "show"]);
            if seen.insert(show.text.clone()) {
                steps.push(Step::new(
                    show,
                    "find the id of the endpoint, then delete it with `ip mptcp endpoint delete id ID`",
                ));
            }
        }
        let Owners::Found(processes) = &holder.owners else { continue };
        let is_own = holder.user.as_ref().is_some_and(|user| user.uid == failure.uid);
        let privilege = if is_own { Privilege::None } else { Privilege::Capability(Capability::Kill) };
        // A systemd manager does not count as a parent: to stop its socket unit does not stop the service.
        let starts = |other: &Process, process: &Process| Some(other.pid) == process.parent && !other.is_manager();
        let is_started_by_another = |process: &&Process| processes.iter().any(|other| starts(other, process));
        let roots: Vec<&Process> = processes.iter().filter(|process| !is_started_by_another(process)).collect();
        let others = processes.len() - roots.len();
        for process in &roots {
            let Some(mut step) = stop_process(failure, &here, privilege, process) else { continue };
            if others > 0 {
                let others = match others {
                    1 => "1 more process that has the socket open".into(),
                    others => format!("{others} more processes that have the socket open"),
                };
                let parent = if roots.len() == 1 { "the parent of" } else { "one of the parents of" };
                step.purpose = format!("{}, {parent} {others}", step.purpose);
            }
            if is_clients(holder) {
                step.purpose.push_str(", a client whose connection uses the port (inferred)");
            }
            if seen.insert(step.command.clone()) {
                steps.push(step);
            }
        }
    }
    let more = steps.len().saturating_sub(SHOWN);
    steps.truncate(SHOWN);
    if let Some(last) = steps.last_mut().filter(|_| more > 0) {
        let commands = if more == 1 { "1 more command is" } else { &format!("{more} more commands are") };
        last.purpose = format!("{} ({commands} necessary; --json lists all holders)", last.purpose);
    }
    let hidden = blocking().any(|holder| holder.owners == Owners::NotPermitted);
    steps.extend(
        (hidden && failure.uid != 0)
            .then(|| test_as_root(failure, Capability::SysPtrace, "show the process that holds the port")),
    );
    let orphans = blocking().filter(|holder| is_orphan(holder)).count();
    if orphans > 0 && failure.ends_orphans != Some(false) {
        let on_the_port = on_the_port(failure);
        let mut words = vec!["kill", "--orphans"];
        words.extend(on_the_port.iter().map(String::as_str));
        let sockets = if orphans == 1 { "the socket".to_owned() } else { format!("the {orphans} sockets") };
        let tries = if failure.ends_orphans.is_none() { "tests whether this kernel can do it, " } else { "" };
        steps.push(Step::new(
            failure.shell.twtool(Privilege::Capability(Capability::NetAdmin), &words),
            format!("end {sockets} that no process has open (the command {tries}explains the risk and asks first)"),
        ));
    }
    steps
}

/// The maximum number of commands that stop processes or show what to stop.
const SHOWN: usize = 4;

/// The command that stops a process, or that shows what to stop. `None` if only another user can run the necessary command.
fn stop_process(failure: &Failure, shell: &Shell, privilege: Privilege, process: &Process) -> Option<Step> {
    if process.forwards_to().is_some() {
        // The process is docker-proxy, which forwards the port to a container. The container continues when docker-proxy ends.
        let published = format!("publish={}", failure.port);
        return Some(Step::new(
            shell.run(privilege_of_owner(failure, process)?, &["docker", "ps", "--filter", &published]),
            "find the container that publishes the port, then stop it with `docker stop`",
        ));
    }
    if let Some(step) = process.container().and_then(|container| stop_container(failure, shell, process, container)) {
        return Some(step);
    }
    if process.is_manager() && process.container().is_none() {
        return stop_socket_unit(failure, shell, process);
    }
    let pid = process.pid.to_string();
    Some(match process.own_service() {
        Some(unit) => {
            Step::new(shell.run(Privilege::Root, &["systemctl", "stop", unit]), format!("stop the unit {unit}"))
        }
        None => {
            Step::new(shell.run(privilege, &["kill", &pid]), format!("end {} (pid {pid}) with SIGTERM", process.comm))
        }
    })
}

/// The command that stops a socket unit, whose sockets the systemd manager holds.
fn stop_socket_unit(failure: &Failure, shell: &Shell, manager: &Process) -> Option<Step> {
    let (privilege, user) = match manager.pid {
        1 => (Privilege::Root, None),
        _ if manager.user.as_ref().is_some_and(|user| user.uid == failure.uid) => (Privilege::None, Some("--user")),
        // A plain systemctl does not reach the manager of another user.
        _ => return None,
    };
    let systemctl = |privilege, words: &[&str]| {
        let words: Vec<&str> = ["systemctl"].into_iter().chain(user).chain(words.iter().copied()).collect();
        shell.run(privilege, &words)
    };
    Some(match &manager.socket_unit {
        Some(unit) if !unit.starts_with('-') => {
            Step::new(systemctl(privilege, &["stop", unit]), format!("stop the socket unit {unit}"))
        }
        _ => Step::new(
            systemctl(Privilege::None, &["list-sockets", "--all"]),
            match user {
                None => "find the socket unit that has the port, then stop it with `systemctl stop`",
                Some(_) => "find the socket unit that has the port, then stop it with `systemctl --user stop`",
            },
        ),
    })
}

/// The privilege for the tool that manages a process: root, or no privilege if the process is in the slice of the current user. `None`
/// if only another user can use the tool.
fn privilege_of_owner(failure: &Failure, process: &Process) -> Option<Privilege> {
    let Some(path) = process.cgroup.as_deref().and_then(|path| path.strip_prefix("/user.slice/user-")) else {
        return Some(Privilege::Root);
    };
    let uid: u32 = path.split_once(".slice/")?.0.parse().ok()?;
    (uid == failure.uid).then_some(Privilege::None)
}

/// The command that stops a container, for runtimes whose own tool can do it. Processes of a rootless container are in a slice
/// of the user that started it, and only a tool that this user runs finds the container.
fn stop_container(failure: &Failure, shell: &Shell, process: &Process, container: Container) -> Option<Step> {
    let tool = match container.runtime? {
        Runtime::Docker => "docker",
        Runtime::Podman => "podman",
        Runtime::Containerd | Runtime::CriO => return None,
    };
    let privilege = privilege_of_owner(failure, process)?;
    let line = shell.run(privilege, &[tool, "stop", container.short_id()]);
    Some(Step::new(
        line,
        format!("stop the {}, in which {} (pid {}) runs", container.text(), process.comm, process.pid),
    ))
}

#[cfg(test)]
mod tests {
    use super::super::steps;
    use super::*;
    use crate::model::bind::{Cause, Holder, ReuseOptions, ServerSetup};
    use crate::model::command::Caller;
    use crate::model::facts::{Facts, tests::facts};
    use crate::model::port::Port;
    use crate::model::row::Direction;
    use crate::model::row::tests::row;
    use crate::model::socket::{FullSocket, TcpState};
    use crate::model::user::User;

    fn caller(root: bool) -> Shell {
        Shell { netns: None, caller: Caller { root, ..Caller::default() } }
    }

    fn failure<'a>(shell: &'a Shell, facts: &'a Facts) -> Failure<'a> {
        Failure {
            shell,
            uid: 0,
            facts,
            port: Port(8080),
            addrs: &[],
            with: ReuseOptions::REUSEADDR,
            setup: ServerSetup::default(),
            setup_words: &[],
            cause: Cause::Listener,
            holders: &[],
            free_in: None,
            waited: false,
            ends_orphans: None,
        }
    }

    fn stop_command(uid: u32, process: &Process) -> Option<String> {
        let (shell, facts) = (caller(uid == 0), facts());
        let failure = Failure { uid, ..failure(&shell, &facts) };
        stop_process(&failure, &shell, Privilege::None, process).map(|step| step.command)
    }

    #[test]
    fn the_command_uses_the_service_manager_or_container_runtime_if_the_user_can_use_them() {
        let id = "0123456789abcdef".repeat(4);
        let process = |pid, comm: &str, cgroup: &str| Process {
            pid,
            comm: comm.into(),
            cgroup: Some(cgroup.replace("ID", &id)),
            user: Some(User { uid: 1000, name: None }),
            ..Process::default()
        };
        let socket = |process| Process { socket_unit: Some("ssh.socket".into()), ..process };
        let manager = || process(1, "systemd", "/init.scope");
        let own = "/user.slice/user-1000.slice/user@1000.service";
        let users = || process(700, "systemd", &format!("{own}/init.scope"));
        let words = "docker-proxy -container-ip 172.17.0.2 -container-port 80".split(' ').map(str::to_owned).collect();
        let proxy = Process { cmdline: Some(words), ..process(9, "docker-proxy", "/system.slice/docker.service") };
        for (process, as_root, as_user) in [
            (
                process(7, "nginx", "/system.slice/nginx.service"),
                "systemctl stop nginx.service",
                "sudo systemctl stop nginx.service",
            ),
            (process(7, "nginx", "/"), "kill 7", "kill 7"),
            (socket(manager()), "systemctl stop ssh.socket", "sudo systemctl stop ssh.socket"),
            (manager(), "systemctl list-sockets --all", "systemctl list-sockets --all"),
            (socket(users()), "", "systemctl --user stop ssh.socket"),
            (users(), "", "systemctl --user list-sockets --all"),
            (process(7, "nginx", "/docker/ID"), "docker stop 0123456789ab", "sudo docker stop 0123456789ab"),
            (
                process(7, "nginx", &format!("{own}/user.slice/libpod-ID.scope/container")),
                "kill 7",
                "podman stop 0123456789ab",
            ),
            (process(7, "nginx", "/kubepods/besteffort/podx/ID"), "kill 7", "kill 7"),
            (proxy, "docker ps --filter publish=8080", "sudo docker ps --filter publish=8080"),
        ] {
            let both = [0, 1000].map(|uid| stop_command(uid, &process).unwrap_or_default());
            assert_eq!(both, [as_root, as_user], "{process:?}");
        }
    }

    #[test]
    fn the_advice_is_to_wait_for_an_orphan_that_the_kernel_cannot_destroy() {
        let orphan = FullSocket {
            tuple: row("127.0.0.1", 8080, "127.0.0.1", 41000).bucket.tuple,
            state: TcpState::FinWait1,
            uid: 0,
            inode: None,
            interface: None,
            mark: None,
            v6only: None,
            last_ack_ms: None,
            cookie: None,
        };
        let (socket, direction) = (Socket::Full(orphan), Direction::Unknown);
        let holders = [Holder::of(socket, direction, true)];
        let (shell, facts) = (caller(true), facts());
        let commands = |ends_orphans, waited| {
            let failure = failure(&shell, &facts);
            let steps =
                steps(&Failure { cause: Cause::Connection, holders: &holders, waited, ends_orphans, ..failure });
            steps.into_iter().map(|step| (step.command, step.purpose.contains("tests whether"))).collect::<Vec<_>>()
        };
        let kill = || "twtool kill --orphans --local-port 8080".to_owned();
        let wait = || "twtool wait 8080 --timeout 10m -- ./server".to_owned();
        assert_eq!(commands(Some(true), false), [(kill(), false), (wait(), false)]);
        assert_eq!(commands(None, false), [(kill(), true), (wait(), false)]);
        assert_eq!(commands(Some(false), false), [(wait(), false)]);
        assert_eq!(commands(Some(false), true), []);
    }
}
