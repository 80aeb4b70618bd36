//! `twtool bind-test`: why bind() fails on a port, and what would help; and the textbook experiment that shows it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU32;

use clap::{Args, ValueEnum};

use super::netns::NetnsArgs;
use super::{Answer, CommandError, Context, Format, GlobalArgs, bad_value, interrupted};
use crate::analysis::advice::{self, Evidence};
use crate::analysis::{conflict, direction, verdict};
use crate::filter::{End, Filter};
use crate::lab;
use crate::model::addr::ScopedAddr;
use crate::model::bind::{Attempt, BindAddr, Cause, Holder, ReuseOptions, Verdict};
use crate::model::demo::DemoRun;
use crate::model::facts::{Facts, Setting};
use crate::model::listeners::Listeners;
use crate::model::port::{Port, PortArg, PortRange};
use crate::model::process::Owners;
use crate::model::row::Direction;
use crate::model::socket::{Socket, StateSet, TcpState};
use crate::source::{self, Choice, Origin, Source};
use crate::sys;
use crate::view;
use crate::view::bind_test::BindTest;
use crate::view::json::Envelope;

/// How often the two looks, at the sockets and by binding, are repeated until they fit together.
const LOOKS: u32 = 3;

/// Arguments of `twtool bind-test`.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = "\
What a probe can disturb: each attempt really binds the port and closes it again within microseconds. A server that \
starts in that moment can get EADDRINUSE. On kernels before 6.18 a port that was bound explicitly also stays out of \
connect()'s choice as long as a bucket is on it. The note that a bind with SO_REUSEPORT leaves in the kernel is taken back \
by a last bind of the port, on a loopback address that nobody uses. A probe never listens unless --listen is given; with \
it, a real client could connect to the probe and be closed.

Exit codes: 0 free or reusable, 1 blocked or denied, 2 could not be tested.

Examples:
  twtool bind-test 8080                        would my server, with SO_REUSEADDR, get the port?
  twtool bind-test 8080 --with none            and without any option?
  twtool bind-test https --addr 192.0.2.1 --addr ::1
  twtool bind-test 8080 --netns 4711           in the network namespace of process 4711
  twtool bind-test 8080 --json | jq -r '.cause, .free_in_ms'
  twtool bind-test 8080 --demo                 see TIME_WAIT block a port, in a private namespace
")]
pub struct BindTestArgs {
    /// Port to test: a number or a TCP service name of /etc/services; 0 lets the kernel choose
    #[arg(value_name = "PORT", allow_negative_numbers = true)]
    port: PortArg,
    /// Address to bind; repeat for more [default: 0.0.0.0 and ::]
    #[arg(long, value_name = "ADDR", conflicts_with = "demo")]
    addr: Vec<ScopedAddr>,
    /// What your server sets before bind()
    #[arg(long, value_enum, default_value_t = With::Reuseaddr, value_name = "OPTIONS", conflicts_with = "demo")]
    with: With,
    /// Also listen(); it can take a real connection for a moment
    #[arg(long, conflicts_with = "demo")]
    listen: bool,
    /// Show on this kernel how TIME_WAIT blocks the port, in a private network namespace (no root, host untouched)
    #[arg(long, conflicts_with = "netns")]
    demo: bool,
    #[command(flatten)]
    netns: NetnsArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum With {
    /// No option
    None,
    /// SO_REUSEADDR
    Reuseaddr,
    /// SO_REUSEPORT
    Reuseport,
    /// Both
    Both,
}

impl With {
    const fn options(self) -> ReuseOptions {
        match self {
            Self::None => ReuseOptions::NONE,
            Self::Reuseaddr => ReuseOptions::REUSEADDR,
            Self::Reuseport => ReuseOptions::REUSEPORT,
            Self::Both => ReuseOptions::BOTH,
        }
    }
}

/// Answers.
///
/// # Errors
/// See [`CommandError`].
pub fn run(args: &BindTestArgs, global: &GlobalArgs, context: &mut Context) -> Result<Answer, CommandError> {
    if global.format() == Format::Csv {
        return Err(bad_value(
            &"csv",
            "--output <FORMAT>",
            "a bind test is not flat; there are table, json and ndjson",
        ));
    }
    args.netns.within(|| answer(args, global, context))
}

fn answer(args: &BindTestArgs, global: &GlobalArgs, context: &mut Context) -> Result<Answer, CommandError> {
    let facts = source::kernel_facts();
    let port = single_port(&args.port, &facts)?;
    if args.demo {
        return demo(port, global, context);
    }
    let mut warnings = facts.gaps(&Setting::ALL);
    let known = warnings.is_empty();
    let addrs = addresses(args, global, &facts, &mut warnings)?;

    let Look { attempts, sockets, consistent } = look(&addrs, port, args.listen)?;
    warnings.extend((!sockets.complete).then(interrupted));
    warnings.extend((!consistent).then(|| {
        "what binding says and what the kernel lists did not fit together in three looks: sockets come and go, or one is \
         not listed"
            .into()
    }));
    warnings.extend(sockets.warnings);
    let list = sockets.list;
    let holders = holders(&attempts, list);
    warnings.extend(hidden_owners(&holders));
    let with = args.with.options();
    let conclusion = verdict::conclude(&facts, port, with, &attempts, &holders);
    let bound_sockets_are_listed = sockets.origin == Origin::SockDiag;
    // Where a holder may exist that the source cannot show, the answer is not whole.
    let unseen = conclusion.cause == Cause::Unknown && !bound_sockets_are_listed;
    let complete = known && sockets.complete && !unseen;
    let evidence = Evidence {
        facts: &facts,
        port,
        with,
        attempts: &attempts,
        holders: &holders,
        conclusion,
        bound_sockets_are_listed,
    };
    let advice = advice::advise(&evidence);
    let chosen_port = attempts.first().and_then(|attempt| attempt.bound).filter(|_| port.reserved_by_rfc());

    context.warn(&warnings);
    let test = BindTest { evidence, chosen_port, advice: &advice };
    let envelope = Envelope { schema: "twtool.bind-test/1", facts: &facts, complete, warnings: &warnings };
    match global.format() {
        Format::Json => view::bind_test::document(context.out, envelope, &test)?,
        Format::Ndjson => view::bind_test::ndjson(context.out, &test)?,
        Format::Table | Format::Csv => view::bind_test::page(context.out, &test, context.look)?,
    }
    Ok(match conclusion.verdict {
        _ if !complete => Answer::Incomplete,
        Verdict::Free | Verdict::Reusable => Answer::Yes,
        Verdict::Blocked | Verdict::Denied => Answer::No,
    })
}

fn single_port(arg: &PortArg, facts: &Facts) -> Result<Port, CommandError> {
    let range = facts.ports(arg).map_err(|why| bad_value(arg, "<PORT>", &why))?;
    if range.first() != range.last() {
        return Err(bad_value(arg, "<PORT>", "one port is tested at a time: a number 0-65535 or a service name"));
    }
    Ok(range.first())
}

/// Where to bind, each address once.
fn addresses(
    args: &BindTestArgs,
    global: &GlobalArgs,
    facts: &Facts,
    warnings: &mut Vec<String>,
) -> Result<Vec<BindAddr>, CommandError> {
    let family = global.ipv4_on_the_wire();
    if args.addr.is_empty() {
        let mut addrs = vec![];
        if family != Some(false) {
            addrs.push(BindAddr { addr: Ipv4Addr::UNSPECIFIED.into(), scope: None });
        }
        let v6 = BindAddr { addr: Ipv6Addr::UNSPECIFIED.into(), scope: None };
        match family {
            Some(true) => {}
            Some(false) => addrs.push(v6),
            None => match sys::bind::no_ipv6_sockets() {
                None => addrs.push(v6),
                Some(why) => warnings.push(format!("IPv6 sockets cannot be made here, so :: is left out: {why}")),
            },
        }
        return Ok(addrs);
    }
    let mut addrs: Vec<BindAddr> = vec![];
    for typed in &args.addr {
        let argument = "--addr <ADDR>";
        let scope = typed.scope.as_deref().map(|scope| facts.interface_index(scope)).transpose();
        let scope = scope.map_err(|why| bad_value(typed, argument, &why))?;
        if scope.is_some() && !matches!(typed.addr, IpAddr::V6(v6) if v6.is_unicast_link_local()) {
            return Err(bad_value(typed, argument, "only a link-local address (fe80::/10) has a scope (ipv6(7))"));
        }
        let ipv4 = matches!(typed.addr.to_canonical(), IpAddr::V4(_));
        if family.is_some_and(|wanted| wanted != ipv4) {
            let flag = if ipv4 { "-6" } else { "-4" };
            return Err(bad_value(typed, argument, &format!("it is not of the family that {flag} asks for")));
        }
        let at = BindAddr { addr: typed.addr, scope };
        if !addrs.contains(&at) {
            addrs.push(at);
        }
    }
    Ok(addrs)
}

/// What binding says, and what the kernel's list says.
struct Look {
    attempts: Vec<Attempt>,
    sockets: Sockets,
    consistent: bool,
}

/// Every socket on the port, in a stable order.
struct Sockets {
    list: Vec<(Socket, Direction)>,
    complete: bool,
    origin: Origin,
    warnings: Vec<String>,
}

/// Looks at the sockets and then binds, again where a socket came or went in between.
fn look(addrs: &[BindAddr], port: Port, listen: bool) -> Result<Look, CommandError> {
    let mut looks = 0;
    loop {
        let sockets = sockets_on(port)?;
        let attempts = sys::bind::attempts(addrs, port, listen)?;
        looks += 1;
        let shown: Vec<Socket> = sockets.list.iter().map(|(socket, _)| *socket).collect();
        // Port 0 is nobody's, so nothing of it is listed.
        let consistent = port.reserved_by_rfc() || conflict::consistent(&attempts, &shown);
        if consistent || looks == LOOKS {
            return Ok(Look { attempts, sockets, consistent });
        }
    }
}

/// Every socket whose local port this is.
fn sockets_on(port: Port) -> Result<Sockets, CommandError> {
    // Port 0 is nobody's.
    if port.reserved_by_rfc() {
        return Ok(Sockets { list: vec![], complete: true, origin: Origin::SockDiag, warnings: vec![] });
    }
    let mut source = Source::kernel(Choice::Auto)?;
    let facts = source.facts().clone();
    let ((listeners, mut sockets), end) = source.collect(
        StateSet::ALL,
        &Filter::Port(End::Local, PortRange::one(port)),
        || (Listeners::default(), vec![]),
        |(listeners, sockets), socket| {
            if socket.tuple().local_port() == port {
                if let Socket::Full(full) = socket
                    && full.state == TcpState::Listen
                {
                    listeners.add(full);
                }
                sockets.push(socket);
            }
        },
    )?;
    sockets.sort_by_key(|socket| {
        let tuple = socket.tuple();
        let rank = match socket {
            Socket::Full(full) => u8::from(full.state != TcpState::Listen),
            Socket::Bucket(_) => 2,
        };
        (rank, tuple.local_addr(), tuple.remote_addr(), tuple.remote_port(), socket.cookie())
    });
    let inferred = |socket: Socket| {
        let direction = match socket.state() {
            // Nobody has connected.
            TcpState::Listen | TcpState::Closed | TcpState::BoundInactive => Direction::Unknown,
            _ => direction::infer(&facts, &listeners, socket.tuple(), socket.interface()),
        };
        (socket, direction)
    };
    let list = sockets.into_iter().map(inferred).collect();
    Ok(Sockets { list, complete: end.complete, origin: source.origin(), warnings: source.warnings() })
}

/// The sockets with who has them open, and whether they are in the way.
fn holders(attempts: &[Attempt], sockets: Vec<(Socket, Direction)>) -> Vec<Holder> {
    let inode = |socket: &Socket| match socket {
        Socket::Full(full) => full.inode,
        Socket::Bucket(_) => None,
    };
    let inodes: BTreeSet<NonZeroU32> = sockets.iter().filter_map(|(socket, _)| inode(socket)).collect();
    let owners = sys::owners::of(&inodes);
    let holder = |(socket, direction)| Holder {
        socket,
        direction,
        owners: inode(&socket).and_then(|inode| owners.get(&inode).cloned()).unwrap_or(Owners::Nobody),
        blocks: conflict::blocks(attempts, &socket),
    };
    sockets.into_iter().map(holder).collect()
}

/// Why the processes of some holders are not named.
fn hidden_owners(holders: &[Holder]) -> Vec<String> {
    let any = |owners: &Owners| holders.iter().any(|holder| holder.owners == *owners);
    let mut warnings = vec![];
    if any(&Owners::NotPermitted) {
        warnings.push(
            "not every process may be looked into, so some holders have no process named: root or CAP_SYS_PTRACE may \
             read every /proc/PID/fd"
                .into(),
        );
    }
    if any(&Owners::NotVisible) {
        warnings.push(
            "some holders belong to no process that is visible here: they live in another pid namespace (a container), \
             or are the kernel's own"
                .into(),
        );
    }
    warnings
}

fn demo(port: Port, global: &GlobalArgs, context: &mut Context) -> Result<Answer, CommandError> {
    if port.reserved_by_rfc() {
        return Err(bad_value(&port, "<PORT>", "--demo needs a port of its own, 1-65535; 0 lets the kernel choose"));
    }
    let runs = lab::demo::run(port)?;
    // Of the private namespace in which it ran last.
    let facts = source::kernel_facts();
    match global.format() {
        Format::Json => {
            let envelope = Envelope { schema: "twtool.bind-test-demo/1", facts: &facts, complete: true, warnings: &[] };
            view::bind_test::demo_document(context.out, envelope, &runs)?;
        }
        Format::Ndjson => view::bind_test::demo_ndjson(context.out, &facts, &runs)?,
        Format::Table | Format::Csv => view::bind_test::demo_page(context.out, port, &facts, &runs, context.look)?,
    }
    let documented = runs.iter().all(DemoRun::as_documented);
    if !documented {
        context.warn(&["this kernel did not do what socket(7) says; please report it with this output".to_owned()]);
    }
    Ok(if documented { Answer::Yes } else { Answer::No })
}
