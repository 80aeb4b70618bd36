//! What `twtool list` asks for, with every name resolved against the facts of the source that answers.

use std::cell::Cell;

use super::{ClassArg, DirectionArg, ListArgs};
use crate::analysis::direction;
use crate::commands::{CommandError, GlobalArgs, bad_value};
use crate::filter::parser::{self, Parsed};
use crate::filter::{End, Filter};
use crate::model::addr::ScopedPrefix;
use crate::model::facts::{Facts, Setting};
use crate::model::listeners::Listeners;
use crate::model::port::{PortArg, PortClass};
use crate::model::row::{Direction, Row};
use crate::model::socket::{Socket, StateSet, TcpState};

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
    /// Whether rows get a direction: a number or an exit code rests on it only where the filter does.
    pub(super) infers_direction: bool,
    /// A row came of which it could not be said whether it passes.
    unjudged: Cell<bool>,
}

impl Query {
    pub(super) fn new(args: &ListArgs, global: &GlobalArgs, facts: &Facts) -> Result<Self, CommandError> {
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
                let interface = interface.map_err(|why| bad_value(&typed.prefix, argument, &why))?;
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
        let Parsed { filter, warnings } =
            parser::parse(&args.filter.join(" "), facts).map_err(|why| CommandError::Usage(why.to_string()))?;
        // A flag that was not given makes an empty choice, and no test.
        let mut tests: Vec<Filter> = choices.into_iter().filter(|test| *test != Filter::FALSE).collect();
        tests.extend(args.expires_under.map(Filter::ExpiresUnder));
        tests.extend(global.ipv4_on_the_wire().map(Filter::ipv4_on_the_wire));

        if filter != Filter::TRUE {
            tests.push(filter);
        }
        let filter = Filter::all(tests);
        let mut states = StateSet::of(&[TcpState::Listen, TcpState::TimeWait]);
        // Who names the state in a filter wants it to be looked at.
        if args.fin_wait_2 || filter.mentions(&|test| *test == Filter::FinWait2) {
            states = states.union(StateSet::of(&[TcpState::FinWait2]));
        }
        let needs = Needs::of(&filter);
        let infers_direction = needs.direction || !(args.count || args.quiet);
        Ok(Self { states, filter, warnings, needs, infers_direction, unjudged: Cell::new(false) })
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
                let row = Row { bucket, direction };
                let passes = self.filter.judge(&row);
                self.unjudged.set(self.unjudged.get() || passes.is_none());
                (passes == Some(true)).then_some(row)
            }
        }
    }

    /// That a bare number or exit code does not rest on a direction that could not be inferred.
    pub(super) fn directed(&self, facts: &Facts) -> Result<(), CommandError> {
        if self.needs.direction && !gaps(facts).is_empty() {
            return Err(CommandError::Unjudged(
                "direction hangs on net.ipv4.ip_local_port_range, which could not be read",
            ));
        }
        Ok(())
    }

    /// That every row could be judged; else no list is better than a short one.
    pub(super) fn judged(&self) -> Result<(), CommandError> {
        if !self.unjudged.get() {
            return Ok(());
        }
        Err(CommandError::Unjudged(if self.needs.mark {
            "the kernel tells the mark of a socket (fwmark) to CAP_NET_ADMIN alone, and by sock_diag alone"
        } else {
            "/proc/net/tcp does not tell the interface of a socket (dev)"
        }))
    }
}

/// What of the facts a list uses and could not be read: direction hangs on the ephemeral range.
pub(super) fn gaps(facts: &Facts) -> Vec<String> {
    facts.gaps(&[Setting::LocalPortRange])
}
