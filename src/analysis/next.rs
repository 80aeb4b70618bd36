//! The commands that help now when a bind fails. Each works when it is pasted into the shell in which twtool ran.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::model::bind::{BindAddr, Cause, Holder, ReuseOptions, ServerSetup};
use crate::model::command::{Help, Privilege, Shell, Step};
use crate::model::container::{Container, Runtime};
use crate::model::facts::Facts;
use crate::model::health::Capability;
use crate::model::netns::NetnsArg;
use crate::model::port::Port;
use crate::model::process::{KernelPart, Owners, Process};
use crate::model::row::Direction;
use crate::model::setting;
use crate::model::socket::Socket;

/// The default timeout of `twtool wait`; a longer wait needs the option.
const WAIT: Duration = Duration::from_secs(120);

/// A failed bind, with what the suggested commands depend on.
#[derive(Clone, Copy, Debug)]
pub struct Failure<'a> {
    /// The shell in which twtool ran.
    pub shell: &'a Shell,
    /// The effective user of twtool.
    pub uid: u32,
    /// The facts of the network namespace.
    pub facts: &'a Facts,
    /// The port.
    pub port: Port,
    /// The addresses that the user named; empty for the default ones.
    pub addrs: &'a [BindAddr],
    /// The options that the server sets.
    pub with: ReuseOptions,
    /// The other options of the server.
    pub setup: ServerSetup,
    /// The arguments for these options, as the user typed them.
    pub setup_words: &'a [String],
    /// Why the bind fails.
    pub cause: Cause,
    /// The sockets on the port.
    pub holders: &'a [Holder],
    /// The time until the port is free without any action.
    pub free_in: Option<Duration>,
    /// Whether the user has already waited for the port.
    pub waited: bool,
    /// Whether SOCK_DESTROY ends an orphan on this kernel; `None` if that could not be tried.
    pub ends_orphans: Option<bool>,
}

/// Whether an orphan blocks the bind, so that [`Failure::ends_orphans`] matters.
#[must_use]
pub fn is_blocked_by_orphan(holders: &[Holder]) -> bool {
    holders.iter().any(|holder| holder.blocks && is_orphan(holder))
}

const fn is_orphan(holder: &Holder) -> bool {
    matches!(holder.socket, Socket::Full(full) if full.is_orphan())
}

/// The value of the option `--with` for a set of socket options.
#[must_use]
pub const fn with_name(options: ReuseOptions) -> &'static str {
    match (options.reuseaddr, options.reuseport) {
        (false, false) => "none",
        (true, false) => "reuseaddr",
        (false, true) => "reuseport",
        (true, true) => "both",
    }
}

/// The commands to suggest, the most helpful first.
#[must_use]
pub fn steps(failure: &Failure) -> Vec<Step> {
    let Failure { shell, port, cause, .. } = *failure;
    match cause {
        Cause::TimeWait | Cause::TimeWaitWithoutReuseaddr => {
            let mut steps = vec![];
            steps.extend((!failure.waited).then(|| wait(failure)));
            steps.extend(kill(failure));
            steps
        }
        Cause::Listener | Cause::Connection | Cause::Bound => {
            let mut steps = stop(failure);
            // An orphan ends by itself, even if no command can end it.
            let ends = !steps.is_empty() || is_blocked_by_orphan(failure.holders);
            let wait = (!failure.waited && ends).then(|| wait(failure));
            if failure.holders.iter().filter(|holder| holder.blocks).all(is_clients) || is_named_by_a_holder(failure) {
                // A client's connection ends by itself, so the command that stops the client comes last. A namespace that
                // is named by the process to stop must be opened before the process ends.
                wait.into_iter().chain(steps).collect()
            } else {
                // A stopped process can leave TIME_WAIT sockets.
                steps.extend(wait);
                steps
            }
        }
        Cause::PrivilegedPort => {
            let start = Step::new(
                shell.set(setting::IP_UNPRIVILEGED_PORT_START.name, &port.to_string()),
                format!("let every user bind ports from {port} on, in this network namespace, until the next boot"),
            );
            let mut steps = vec![];
            steps.extend(
                // Root cannot give the privilege to a test as another user.
                (failure.uid != 0 && failure.setup.user.is_none())
                    .then(|| as_root(failure, Capability::NetBindService, "test the bind with the privilege")),
            );
            steps.push(start);
            steps
        }
        Cause::AddressNotLocal => {
            vec![Step::new(
                shell.run(Privilege::None, &["ip", "address"]),
                "list the addresses of this network namespace",
            )]
        }
        Cause::Unknown if port.reserved_by_rfc() => {
            vec![Step::new(
                shell.twtool(Privilege::None, &["capacity"]),
                "show which sockets use the ports of the range",
            )]
        }
        Cause::None | Cause::FamilyUnsupported | Cause::OwnSocket | Cause::Unknown => vec![],
    }
}

/// The commands that reserve the port for servers, if connect() may choose it.
#[must_use]
pub fn reserve(shell: &Shell, facts: &Facts, port: Port) -> Help {
    if facts.ephemeral(port) == Some(true) && facts.locally_reserved(port) == Some(false) {
        shell.reserve([port], facts.local_reserved_ports.as_ref())
    } else {
        Help::default()
    }
}

/// The command that runs the same bind test as root, with this capability.
fn as_root(failure: &Failure, needs: Capability, purpose: &str) -> Step {
    let server = server_words(failure);
    let words: Vec<&str> = ["bind-test"].into_iter().chain(server.iter().map(String::as_str)).collect();
    Step::new(failure.shell.twtool(Privilege::Capability(needs), &words), purpose)
}

/// The arguments that describe the server to `bind-test` and `wait`.
fn server_words(failure: &Failure) -> Vec<String> {
    let Failure { facts, port, addrs, with, setup_words, .. } = *failure;
    let mut words = vec![port.to_string()];
    words.extend(addrs.iter().flat_map(|at| ["--addr".to_owned(), at.text(facts)]));
    if with != ReuseOptions::REUSEADDR {
        words.extend(["--with".to_owned(), with_name(with).to_owned()]);
    }
    words.extend(setup_words.iter().cloned());
    words
}

/// Whether the network namespace is given by a process that holds the port.
fn is_named_by_a_holder(failure: &Failure) -> bool {
    let Some(NetnsArg::Process(pid) | NetnsArg::Container(_, pid)) = &failure.shell.netns else { return false };
    failure
        .holders
        .iter()
        .any(|holder| matches!(&holder.owners, Owners::Found(all) if all.iter().any(|one| u32::try_from(one.pid) == Ok(*pid))))
}

fn wait(failure: &Failure) -> Step {
    let Failure { shell, free_in, .. } = *failure;
    let server = server_words(failure);
    let mut words: Vec<&str> = ["wait"].into_iter().chain(server.iter().map(String::as_str)).collect();
    // Timers can end some seconds late.
    if free_in.is_none_or(|free_in| free_in + Duration::from_secs(10) > WAIT) {
        words.extend(["--timeout", "10m"]);
    }
    let start = "start ./server when its bind works (replace ./server with the command of your server)";
    let name = match &shell.netns {
        Some(NetnsArg::Name(name)) => name.to_str(),
        _ => None,
    };
    let purpose = match (&shell.netns, name) {
        (None, _) => {
            words.extend(["--", "./server"]);
            start
        }
        // twtool runs the command after -- in its own namespace.
        (_, Some(name)) => {
            words.extend(["--", "ip", "netns", "exec", name, "./server"]);
            start
        }
        _ if is_named_by_a_holder(failure) => {
            "first, in another terminal: wait until the bind works. twtool opens the namespace of the process while it exists"
        }
        _ => "wait until the bind works",
    };
    Step::new(shell.twtool(Privilege::None, &words), purpose)
}

/// The command that removes the buckets, unless this kernel cannot.
fn kill(failure: &Failure) -> Option<Step> {
    let Failure { shell, facts, holders, .. } = *failure;
    let fin_wait_2 =
        |holder: &Holder| matches!(holder.socket, Socket::Bucket(bucket) if holder.blocks && bucket.fin_wait_2);
    let on_the_port = on_the_port(failure);
    let mut words = vec!["kill"];
    words.extend(on_the_port.iter().map(String::as_str));
    words.extend(holders.iter().any(fin_wait_2).then_some("--fin-wait-2"));
    let step = || {
        Step::new(
            shell.twtool(Privilege::Capability(Capability::NetAdmin), &words),
            "remove the blocking sockets now (the command explains the risk and asks first)",
        )
    };
    (facts.destroys_buckets() != Some(false)).then(step)
}

/// The arguments of `kill` that select the blocking sockets, and no socket on an address that the user did not name.
fn on_the_port(failure: &Failure) -> Vec<String> {
    let Failure { facts, port, addrs, setup, .. } = *failure;
    let mut words = vec!["--local-port".into(), port.to_string()];
    // Sockets on other devices do not block the bind.
    words.extend(setup.device.map(|device| {
        let name = facts.interface_name(device);
        let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        let device = if plain { name } else { device.to_string() };
        format!("dev = {device} or dev = 0")
    }));
    if addrs.iter().all(|at| !at.addr.to_canonical().is_unspecified()) {
        // An IPv4-mapped address conflicts with sockets of both families, and an IPv4 address selects both.
        let local = |at: &BindAddr| BindAddr { addr: at.addr.to_canonical(), ..*at }.text(facts);
        words.extend(addrs.iter().flat_map(|at| ["--local".into(), local(at)]));
    } else if addrs.iter().all(|at| at.addr.to_canonical().is_ipv4()) {
        words.push("-4".into());
    } else if !failure.holders.iter().any(|holder| holder.blocks && is_ipv4(holder)) {
        // With IPV6_V6ONLY, sockets that are IPv4 on the wire do not block the bind.
        words.extend((!addrs.is_empty()).then(|| "-6".into()));
    }
    words
}

fn is_ipv4(holder: &Holder) -> bool {
    holder.socket.tuple().family.ipv4_on_the_wire()
}

/// Whether a client on this machine opened the connection (inferred).
fn is_clients(holder: &Holder) -> bool {
    holder.direction == Direction::Outbound
}

/// The commands that stop the processes on the port, and end its orphans.
fn stop(failure: &Failure) -> Vec<Step> {
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
        // Services that a systemd manager starts do not depend on the manager.
        let starts = |other: &Process, process: &Process| Some(other.pid) == process.parent && !other.is_manager();
        let is_started_by_another = |process: &&Process| processes.iter().any(|other| starts(other, process));
        let roots: Vec<&Process> = processes.iter().filter(|process| !is_started_by_another(process)).collect();
        let others = processes.len() - roots.len();
        for process in &roots {
            let Some(mut step) = stop_process(failure, &here, privilege, process) else { continue };
            if others > 0 {
                let others = if others == 1 { "1 process".into() } else { format!("{others} processes") };
                let parent = if roots.len() == 1 { "the parent of" } else { "one of the parents of" };
                step.purpose = format!("{}, {parent} {others} more that have the socket open", step.purpose);
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
        let holders = if more == 1 { "1 more holder" } else { &format!("{more} more holders") };
        last.purpose = format!("{} (and {holders}, which --json lists)", last.purpose);
    }
    let hidden = blocking().any(|holder| holder.owners == Owners::NotPermitted);
    steps.extend(
        (hidden && failure.uid != 0)
            .then(|| as_root(failure, Capability::SysPtrace, "show the process that holds the port")),
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

/// The maximum number of commands about processes and orphans.
const SHOWN: usize = 4;

/// The command that stops a process, or that shows what to stop. `None` if ending the process does not free the port.
fn stop_process(failure: &Failure, shell: &Shell, privilege: Privilege, process: &Process) -> Option<Step> {
    if process.forwards_to().is_some() {
        // The container and its network stay when its proxy ends.
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

/// The command that stops a socket unit. A systemd manager holds the sockets of its socket units, and the end of the manager
/// does not close them.
fn stop_socket_unit(failure: &Failure, shell: &Shell, manager: &Process) -> Option<Step> {
    let (privilege, user) = match manager.pid {
        1 => (Privilege::Root, None),
        _ if manager.user.as_ref().is_some_and(|user| user.uid == failure.uid) => (Privilege::None, Some("--user")),
        // systemctl reaches the manager of another user only with the help of systemd-machined.
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
            "find the socket unit that has the port, then stop it with `systemctl stop`",
        ),
    })
}

/// The privilege to use the tool that started a process: root, or none for the user in whose slice the process is. `None`: another
/// user's tool would be needed.
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
    use super::*;
    use crate::model::command::Caller;
    use crate::model::facts::tests::facts;
    use crate::model::row::tests::row;
    use crate::model::socket::{FullSocket, TcpState};
    use crate::model::user::User;

    fn caller(root: bool) -> Shell {
        Shell { netns: None, caller: Caller { root, ..Caller::default() } }
    }

    /// The command that stops a process for this user.
    fn stops(uid: u32, process: &Process) -> Option<String> {
        let shell = caller(uid == 0);
        let failure = Failure {
            shell: &shell,
            uid,
            facts: &facts(),
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
        };
        stop_process(&failure, &shell, Privilege::None, process).map(|step| step.command)
    }

    #[test]
    fn a_process_is_stopped_by_its_service_manager_or_container_runtime() {
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
            let both = [0, 1000].map(|uid| stops(uid, &process).unwrap_or_default());
            assert_eq!(both, [as_root, as_user], "{process:?}");
        }
    }

    #[test]
    fn the_advice_is_to_wait_for_an_orphan_that_the_kernel_does_not_end() {
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
        let shell = caller(true);
        let commands = |ends_orphans, waited| {
            let steps = steps(&Failure {
                shell: &shell,
                uid: 0,
                facts: &facts(),
                port: Port(8080),
                addrs: &[],
                with: ReuseOptions::REUSEADDR,
                setup: ServerSetup::default(),
                setup_words: &[],
                cause: Cause::Connection,
                holders: &holders,
                free_in: None,
                waited,
                ends_orphans,
            });
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
