//! The commands that help now when a bind fails. Each can be pasted into the shell in which twtool ran. Only the placeholder `./server`
//! must be replaced.

mod stop;

use std::time::Duration;

use self::stop::stop;
use crate::model::bind::{BindAddr, Cause, Holder, ReuseOptions, ServerSetup};
use crate::model::command::{Privilege, Shell, Step, Suggestions};
use crate::model::facts::Facts;
use crate::model::health::Capability;
use crate::model::netns::NetnsArg;
use crate::model::port::Port;
use crate::model::process::Owners;
use crate::model::row::Direction;
use crate::model::setting;
use crate::model::socket::Socket;

/// The default timeout of `twtool wait`.
const WAIT: Duration = Duration::from_secs(120);

/// A failed bind, and the facts on which the suggested commands depend.
#[derive(Clone, Copy, Debug)]
pub struct Failure<'a> {
    /// The shell in which twtool ran.
    pub shell: &'a Shell,
    /// The effective user ID of twtool.
    pub uid: u32,
    /// The facts of the network namespace.
    pub facts: &'a Facts,
    /// The port.
    pub port: Port,
    /// The addresses that the user named; empty for the default addresses.
    pub addrs: &'a [BindAddr],
    /// The options that the server sets.
    pub with: ReuseOptions,
    /// The other options of the server.
    pub setup: ServerSetup,
    /// The arguments of the command line for these options.
    pub setup_words: &'a [String],
    /// Why the bind fails.
    pub cause: Cause,
    /// The sockets on the port.
    pub holders: &'a [Holder],
    /// The time until the port is free without any action; `None` if this time is unknown.
    pub free_in: Option<Duration>,
    /// Whether the user has already waited for the port.
    pub waited: bool,
    /// Whether SOCK_DESTROY ends an orphan on this kernel; `None` if that is unknown, or if no orphan blocks
    /// the port.
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
                // A client's connection usually ends by itself, so the command that stops the client comes last. If the user named the
                // namespace by the process to stop, `wait` must open the namespace before this process ends.
                wait.into_iter().chain(steps).collect()
            } else {
                // A stopped process can leave TIME_WAIT sockets, so `wait` comes last.
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
                // With --user, the test binds as another user, so it lacks the privilege even if root starts it.
                (failure.uid != 0 && failure.setup.user.is_none())
                    .then(|| test_as_root(failure, Capability::NetBindService, "test the bind with the privilege")),
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
pub fn reserve(shell: &Shell, facts: &Facts, port: Port) -> Suggestions {
    if facts.ephemeral(port) == Some(true) && facts.locally_reserved(port) == Some(false) {
        shell.reserve([port], facts.local_reserved_ports.as_ref())
    } else {
        Suggestions::default()
    }
}

fn test_as_root(failure: &Failure, needs: Capability, purpose: &str) -> Step {
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

/// Whether the user named the network namespace by a process that holds the port.
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
    // Timers can end some seconds late, so the timeout must be at least 10 s longer than the remaining time.
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
        // twtool runs the command after `--` in the namespace of twtool, not in the namespace of --netns.
        (_, Some(name)) => {
            words.extend(["--", "ip", "netns", "exec", name, "./server"]);
            start
        }
        _ if is_named_by_a_holder(failure) => {
            "first, in another terminal: wait until the bind works (start this before you end the process)"
        }
        _ => "wait until the bind works",
    };
    Step::new(shell.twtool(Privilege::None, &words), purpose)
}

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

/// The arguments of `kill` that select the sockets on the port, limited to the interface and the addresses that the user named.
fn on_the_port(failure: &Failure) -> Vec<String> {
    let Failure { facts, port, addrs, setup, .. } = *failure;
    let mut words = vec!["--local-port".into(), port.to_string()];
    // Sockets that are bound to another interface do not block the bind.
    words.extend(setup.device.map(|device| {
        let name = facts.interface_name(device);
        let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        let device = if plain { name } else { device.to_string() };
        format!("dev = {device} or dev = 0")
    }));
    if addrs.iter().all(|at| !at.addr.to_canonical().is_unspecified()) {
        // A bind to an IPv4-mapped address conflicts with AF_INET sockets, and with AF_INET6 sockets that use IPv4. `--local` with the IPv4
        // address selects both.
        let local = |at: &BindAddr| BindAddr { addr: at.addr.to_canonical(), ..*at }.text(facts);
        words.extend(addrs.iter().flat_map(|at| ["--local".into(), local(at)]));
    } else if addrs.iter().all(|at| at.addr.to_canonical().is_ipv4()) {
        words.push("-4".into());
    } else if !failure.holders.iter().any(|holder| holder.blocks && is_ipv4(holder)) {
        // No IPv4 socket blocks the bind (with IPV6_V6ONLY, none can), so `kill` need not select IPv4.
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
