//! Which buckets are meant: the flags and the filter that every command about buckets takes, and what they ask for with
//! every name resolved against the facts of the source that answers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::{CommandError, GlobalArgs, bad_value};
use crate::analysis::direction;
use crate::filter::parser::{self, Parsed};
use crate::filter::{End, Filter};
use crate::model::addr::ScopedPrefix;
use crate::model::facts::{Facts, Setting};
use crate::model::listeners::Listeners;
use crate::model::port::{PortArg, PortClass};
use crate::model::row::{Direction, Row};
use crate::model::socket::{FullSocket, Socket, StateSet, TcpState};
use crate::model::target::Target;

/// Which buckets: an expression, and flags that are shorthands for its tests.
#[derive(Args, Clone, Debug)]
pub(super) struct SelectionArgs {
    /// Which rows: an expression of ss, like 'dst 10.0.0.0/8 and expires < 5s'
    #[arg(value_name = "FILTER")]
    filter: Vec<String>,
    /// Local or remote port: number, range or service name; 80,443 or repeat for more
    #[arg(long, value_name = "PORT", value_delimiter = ',', allow_negative_numbers = true)]
    port: Vec<PortArg>,
    /// Local port; 80,443 or repeat for more
    #[arg(long, value_name = "PORT", value_delimiter = ',', allow_negative_numbers = true)]
    local_port: Vec<PortArg>,
    /// Remote port; 80,443 or repeat for more
    #[arg(long, value_name = "PORT", value_delimiter = ',', allow_negative_numbers = true)]
    remote_port: Vec<PortArg>,
    /// Local address or prefix, like 10.0.0.0/8; repeat for more
    #[arg(long, value_name = "ADDR")]
    local: Vec<ScopedPrefix>,
    /// Remote address or prefix; repeat for more
    #[arg(long, value_name = "ADDR")]
    remote: Vec<ScopedPrefix>,
    /// RFC 6335 class of the local port; repeat for more
    #[arg(long, value_enum, value_name = "CLASS")]
    class: Vec<ClassArg>,
    /// Who connected, as inferred from listeners and port ranges; repeat for more
    #[arg(long, value_enum, value_name = "DIRECTION")]
    direction: Vec<DirectionArg>,
    /// Less remaining time than this: 500ms, 10s, 1m
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    expires_under: Option<Duration>,
    /// Include orphaned FIN_WAIT_2, which lives in a timewait bucket too
    #[arg(long = "fin-wait-2")]
    fin_wait_2: bool,
}

impl SelectionArgs {
    /// Whether an interface may be named, in a scope or behind `dev`.
    pub(super) fn may_name_an_interface(&self) -> bool {
        let in_filter = |word: &String| word.contains("dev") || word.contains('%');
        let scoped = |typed: &ScopedPrefix| typed.scope.is_some();
        self.filter.iter().any(in_filter) || self.local.iter().chain(&self.remote).any(scoped)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ClassArg {
    /// 0-1023
    WellKnown,
    /// 1024-49151
    Registered,
    /// 49152-65535
    Dynamic,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum DirectionArg {
    /// A listener covers the local end
    Inbound,
    /// None does, the local port is ephemeral and the remote one is not
    Outbound,
    /// Neither can be said
    Unknown,
}

/// A time as somebody types it, `500ms`, `1m`.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    parser::parse_duration(text).ok_or_else(|| parser::DURATION_FORMS.to_owned())
}

/// What a filter looks at that not every source tells.
struct Needs {
    mark: bool,
    direction: bool,
}

impl Needs {
    fn of(filter: &Filter) -> Self {
        Self {
            mark: filter.mentions(&|test| matches!(test, Filter::Mark { .. })),
            direction: filter.mentions(&|test| matches!(test, Filter::Direction(_))),
        }
    }
}

/// What is asked, with every name resolved.
pub(super) struct Query {
    pub(super) states: StateSet,
    pub(super) filter: Filter,
    pub(super) warnings: Vec<String>,
    needs: Needs,
    /// Whether the filter is none.
    pub(super) everything: bool,
    /// Whether rows get a direction: a number or an exit code rests on it only where the filter does.
    pub(super) infers_direction: bool,
    /// A row came of which it could not be said whether it passes.
    unjudged: AtomicBool,
    /// A row came whose direction depends on an IPV6_V6ONLY that the source does not report.
    undirected: AtomicBool,
}

impl Query {
    /// Resolves what was typed. Whether rows are shown with their direction is for the caller to say.
    pub(super) fn new(
        args: &SelectionArgs,
        global: &GlobalArgs,
        facts: &Facts,
        shows_direction: bool,
    ) -> Result<Self, CommandError> {
        let ports = |argument: &str, list: &[PortArg], ends: &[End]| -> Result<Filter, CommandError> {
            let mut any = vec![];
            for port in list {
                let range = facts.ports(port).map_err(|why| bad_value(port, argument, &why))?;
                any.extend(ends.iter().map(|&end| Filter::Port(end, range)));
            }
            Ok(Filter::any(any))
        };
        let addrs = |argument: &str, list: &[ScopedPrefix], end: End| -> Result<Filter, CommandError> {
            let mut any = vec![];
            for typed in list {
                let interface = typed.scope.as_deref().map(|scope| facts.interface_index(scope)).transpose();
                let interface = interface.map_err(|why| bad_value(typed, argument, &why))?;
                let mut tests = vec![Filter::Addr(end, typed.prefix)];
                tests.extend(interface.map(|index| Filter::Interface(Some(index))));
                any.push(Filter::all(tests));
            }
            Ok(Filter::any(any))
        };
        let class = |class: &ClassArg| {
            let class = match class {
                ClassArg::WellKnown => PortClass::WellKnown,
                ClassArg::Registered => PortClass::Registered,
                ClassArg::Dynamic => PortClass::Dynamic,
            };
            Filter::Port(End::Local, class.bounds())
        };
        let direction = |direction: &DirectionArg| {
            Filter::Direction(match direction {
                DirectionArg::Inbound => Direction::Inbound,
                DirectionArg::Outbound => Direction::Outbound,
                DirectionArg::Unknown => Direction::Unknown,
            })
        };
        let choices = [
            ports("--port <PORT>", &args.port, &[End::Local, End::Remote])?,
            ports("--local-port <PORT>", &args.local_port, &[End::Local])?,
            ports("--remote-port <PORT>", &args.remote_port, &[End::Remote])?,
            addrs("--local <ADDR>", &args.local, End::Local)?,
            addrs("--remote <ADDR>", &args.remote, End::Remote)?,
            Filter::any(args.class.iter().map(class).collect()),
            Filter::any(args.direction.iter().map(direction).collect()),
        ];
        let Parsed { filter, warnings } = parser::parse(&args.filter.join(" "), facts)?;
        // A flag that was not given makes an empty choice, and no test.
        let mut tests: Vec<Filter> = choices.into_iter().filter(|test| *test != Filter::FALSE).collect();
        tests.extend(args.expires_under.map(Filter::ExpiresUnder));
        tests.extend(global.ipv4_on_the_wire().map(Filter::ipv4_on_the_wire));

        if filter != Filter::TRUE {
            tests.push(filter);
        }
        let filter = Filter::all(tests);
        let mut states = StateSet::of(&[TcpState::TimeWait]);
        // Who names the state in a filter wants it to be looked at.
        if args.fin_wait_2 || filter.mentions(&|test| *test == Filter::FinWait2) {
            states = states.union(StateSet::of(&[TcpState::FinWait2]));
        }
        let needs = Needs::of(&filter);
        let infers_direction = needs.direction || shows_direction;
        // Listeners tell the direction; else the kernel need not look for them.
        if infers_direction {
            states = states.union(StateSet::of(&[TcpState::Listen]));
        }
        let everything = filter == Filter::TRUE;
        let (unjudged, undirected) = <(AtomicBool, AtomicBool)>::default();
        Ok(Self { states, filter, warnings, needs, everything, infers_direction, unjudged, undirected })
    }

    /// Whether rows may be in another state than TIME_WAIT.
    pub(super) fn with_state(&self) -> bool {
        self.states.contains(TcpState::FinWait2)
    }

    /// Makes rows of what a walk gives, and keeps those that are asked for.
    #[expect(clippy::inline_always, reason = "written to memory and read back, a socket costs more than its judgement")]
    #[inline(always)]
    pub(super) fn row(&self, listeners: &mut Listeners, facts: &Facts, socket: &Socket) -> Option<Row> {
        match *socket {
            Socket::Full(full) => {
                // Listeners come first in a walk. A FIN_WAIT_2 that is no bucket still has its owner.
                if full.state == TcpState::Listen {
                    listeners.add(full);
                }
                None
            }
            Socket::Bucket(bucket) => {
                let direction = if self.infers_direction {
                    direction::infer(facts, listeners, &bucket.tuple, bucket.interface)
                } else {
                    Direction::Unknown
                };
                let row = Row { bucket, direction, netns: 0 };
                let passes = self.filter.judge(&row);
                if passes.is_none() {
                    self.unjudged.store(true, Ordering::Relaxed);
                }
                if direction == Direction::Unknown && listeners.lack_v6only(&bucket.tuple, bucket.interface) {
                    self.note_undirected(&row);
                }
                (passes == Some(true)).then_some(row)
            }
        }
    }

    /// The orphan, if it is asked for. It has no remaining time, so a test on that selects none.
    pub(super) fn orphan(&self, listeners: &Listeners, facts: &Facts, full: &FullSocket) -> Option<Target> {
        if self.filter.mentions(&|test| matches!(test, Filter::ExpiresUnder(_))) {
            return None;
        }
        let direction = direction::infer(facts, listeners, &full.tuple, full.interface);
        let target = Target { socket: Socket::Full(*full), direction };
        let passes = self.filter.judge(&target.row());
        if passes.is_none() {
            self.unjudged.store(true, Ordering::Relaxed);
        }
        (passes == Some(true)).then_some(target)
    }

    /// Notes that a row whose direction cannot be inferred would pass if it had the right one.
    #[cold]
    fn note_undirected(&self, row: &Row) {
        let passes = |direction| self.filter.judge(&Row { direction, ..*row }) == Some(true);
        if Direction::ALL.into_iter().any(passes) {
            self.undirected.store(true, Ordering::Relaxed);
        }
    }

    /// That a bare number or exit code does not rest on a direction that could not be inferred.
    pub(super) fn directed(&self, facts: &Facts) -> Result<(), CommandError> {
        if !self.needs.direction {
            return Ok(());
        }
        if facts.local_port_range.is_none() {
            return Err(CommandError::Unjudged(
                "direction depends on net.ipv4.ip_local_port_range, which could not be read",
            ));
        }
        if self.undirected.load(Ordering::Relaxed) {
            return Err(CommandError::Unjudged(NO_V6ONLY));
        }
        Ok(())
    }

    /// What could not be read, and why the direction of rows is unknown although it might be known, a sentence for each
    /// reason, and whether the rows are complete all the same. To be asked after the walk.
    pub(super) fn direction_gaps(&self, facts: &Facts) -> (Vec<String>, bool) {
        let mut sentences = if self.infers_direction { gaps(facts) } else { facts.other_gaps() };
        let undirected = self.undirected.load(Ordering::Relaxed);
        // Without a test on the direction every row is there, and its direction says that it is unknown.
        let complete = sentences.is_empty() && !(undirected && self.needs.direction);
        sentences.extend(undirected.then(|| NO_V6ONLY.to_owned()));
        (sentences, complete)
    }

    /// That every row could be judged; else no list is better than a short one.
    pub(super) fn judged(&self) -> Result<(), CommandError> {
        if !self.unjudged.load(Ordering::Relaxed) {
            return Ok(());
        }
        Err(CommandError::Unjudged(if self.needs.mark {
            "the kernel tells the mark of a socket (fwmark) to CAP_NET_ADMIN alone, and by sock_diag alone"
        } else {
            "/proc/net/tcp does not tell the interface of a socket (dev)"
        }))
    }
}

/// Why a listener on `::` tells no direction of IPv4 connections.
pub(super) const NO_V6ONLY: &str = "/proc/net/tcp6 does not report IPV6_V6ONLY, so it is unknown whether a listener on :: also takes \
                         IPv4 connections: their direction is unknown (sock_diag reports it)";

/// What of the facts a list uses and could not be read. Direction depends on the ephemeral range.
pub(super) fn gaps(facts: &Facts) -> Vec<String> {
    facts.gaps(&[Setting::LocalPortRange])
}
