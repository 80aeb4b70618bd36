//! `twtool summary`: what all timewait buckets together are, and the closes of the last minute, from one walk.

use std::ops::ControlFlow;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::netns::{HandOver, Heard, ManyNetnsArgs, Where, in_order, joint, of};
use super::{Answer, CommandError, Context, Format, GlobalArgs, bad_value, interrupted};
use crate::analysis::direction;
use crate::analysis::groups::By;
use crate::analysis::limits::{self, Limit};
use crate::analysis::summary::Tally;
use crate::filter::Filter;
use crate::model::facts::{Facts, Setting};
use crate::model::kernel_counts::BucketFacts;
use crate::model::listeners::Listeners;
use crate::model::row::Direction;
use crate::model::socket::{Socket, StateSet, TcpState};
use crate::source::{Choice, Origin, Source, WalkEnd};
use crate::sys::netns::{self, Found, OpenNetns};
use crate::view;
use crate::view::json::Envelope;
use crate::view::summary::Content;

/// How many lines of a group there are where nothing was said: all that a person takes in at once, or more for a program.
const TOP_ON_THE_SCREEN: usize = 5;
const TOP: usize = 10;

/// Arguments of `twtool summary`.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = "\
The minute is read off one look: TIME_WAIT lasts 60 s, so a bucket with 12 s to go entered it 48 s ago. What such a look \
cannot show is said below the screen, and under limits in JSON. FIN_WAIT_2 buckets are counted, and are no closes of the \
minute. Counts of groups are of both states.

Exit codes: 0 answered, 2 could not answer, or not completely.

Examples:
  twtool summary                               one screen
  twtool summary --by destination --top 20     whom did we connect to most?
  twtool summary --by local-port,direction
  twtool summary --json | jq '.history.closes | add'
  twtool summary --json | jq '.groups.destination.top[] | [.remote_addr, .remote_port, .count]' -c
  twtool summary --netns web                   of the network namespace that `ip netns` calls web
  twtool summary --all-netns --by netns        which container has them?
  twtool summary --record bug.twrec            keep what the kernel said; --replay answers from it
")]
pub struct SummaryArgs {
    /// What to group by, separated by commas; repeat for more [default: class,direction,local-port,remote-addr,destination]
    #[arg(long, value_enum, value_name = "GROUP", value_delimiter = ',')]
    by: Vec<ByArg>,
    /// Show the N largest of each group, and the others in one sum [default: 10, on the screen 5]
    #[arg(long, value_name = "N")]
    top: Option<usize>,
    /// Write down what the kernel says and all that the answer depends on
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Replace the file of --record where it exists
    #[arg(long, requires = "record")]
    force: bool,
    /// Read from a recording of this command or of list --fin-wait-2 instead of the kernel
    #[arg(long, value_name = "FILE", conflicts_with = "record")]
    replay: Option<PathBuf>,
    #[command(flatten)]
    namespaces: ManyNetnsArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ByArg {
    /// Local port
    LocalPort,
    /// Remote address
    RemoteAddr,
    /// Remote port
    RemotePort,
    /// Remote address and port
    Destination,
    /// RFC 6335 class of the local port
    Class,
    /// Who connected, as inferred from listeners and port ranges
    Direction,
    /// Network namespace
    Netns,
}

impl From<ByArg> for By {
    fn from(arg: ByArg) -> Self {
        match arg {
            ByArg::LocalPort => Self::LocalPort,
            ByArg::RemoteAddr => Self::RemoteAddr,
            ByArg::RemotePort => Self::RemotePort,
            ByArg::Destination => Self::Destination,
            ByArg::Class => Self::Class,
            ByArg::Direction => Self::Direction,
            ByArg::Netns => Self::Netns,
        }
    }
}

/// Answers.
///
/// # Errors
/// See [`CommandError`].
pub fn run(args: &SummaryArgs, global: &GlobalArgs, context: &mut Context) -> Result<Answer, CommandError> {
    if global.format() == Format::Csv {
        return Err(bad_value(&"csv", "--output <FORMAT>", "a summary is not flat; there are table, json and ndjson"));
    }
    args.namespaces.one_with("--record", args.record.is_some())?;
    let by = groups(args);
    let counted = match args.namespaces.find()? {
        Where::Here => count(args, global, &by)?,
        Where::In(netns) => netns::within(&netns, || count(args, global, &by))??,
        Where::Among(found) => {
            let Some(counted) = count_all(&found, args, global, &by)? else {
                // Not even one's own was found.
                context.warn(&found.unseen);
                return Ok(Answer::Incomplete);
            };
            counted
        }
    };
    let several = args.namespaces.several();
    let Counted { tally, mut kernel, own, facts, source, complete, warnings } = counted;
    // Each has its own.
    kernel.max_tw_buckets = kernel.max_tw_buckets.filter(|_| !several);
    let usual = if global.format() == Format::Table { TOP_ON_THE_SCREEN } else { TOP };
    let summary = tally.summary(kernel, own, args.top.unwrap_or(usual), global.ipv4_on_the_wire().is_some());

    context.warn(&warnings);
    let joint = joint(&facts, several);
    let envelope = Envelope { schema: "twtool.summary/1", facts: &joint, complete, warnings: &warnings };
    // A recording may be of another machine, and commands are for one namespace.
    let shell = args.namespaces.shell(context).filter(|_| args.replay.is_none());
    let help = shell.map(|shell| summary.help(&shell)).unwrap_or_default();
    let shown = Content { summary: &summary, facts: &joint, namespaces: &facts, several, help: &help, source };
    match global.format() {
        Format::Json => view::summary::document(context.out, envelope, &shown)?,
        Format::Ndjson => view::summary::ndjson(context.out, &shown)?,
        Format::Table | Format::Csv => view::summary::page(context.out, &shown, context.look)?,
    }
    Ok(Answer::complete(complete))
}

/// The groups that were asked for, each once, or the usual ones.
fn groups(args: &SummaryArgs) -> Vec<By> {
    let mut by: Vec<By> = vec![];
    for asked in args.by.iter().copied().map(By::from) {
        if !by.contains(&asked) {
            by.push(asked);
        }
    }
    if by.is_empty() {
        by.extend(args.namespaces.several().then_some(By::Netns));
        by.extend(By::USUAL);
    }
    by
}

/// What of the facts a summary uses and could not be read. Direction depends on the ephemeral range.
fn gaps(by: &[By], facts: &Facts) -> Vec<String> {
    let needed: &[Setting] = if by.contains(&By::Direction) { &[Setting::LocalPortRange] } else { &[] };
    facts.gaps(needed)
}

/// What was counted, in one network namespace or in several.
struct Counted {
    tally: Tally,
    kernel: BucketFacts,
    /// What the merged counts do not tell any more: that one has as many buckets as it may, that lengths differ.
    own: Vec<Limit>,
    /// Those of each namespace. At least one.
    facts: Vec<Facts>,
    source: &'static str,
    complete: bool,
    warnings: Vec<String>,
}

/// Counts in the calling thread's namespace, or in the recording that was asked for.
fn count(args: &SummaryArgs, global: &GlobalArgs, by: &[By]) -> Result<Counted, CommandError> {
    let mut source = match (&args.record, &args.replay) {
        (Some(path), _) => Source::recorded_kernel(path, args.force)?,
        (_, Some(path)) => Source::replay(path)?,
        (None, None) => Source::kernel(Choice::Auto)?,
    };
    let kernel = source.bucket_facts();
    let facts = source.facts().clone();
    let walked = walk(&mut source, by, &facts, &kernel, global.ipv4_on_the_wire());
    let (origin, refusals) = (source.origin(), source.warnings());
    // The recording of a failed dump is the bug report of that failure, so it is finished in either case.
    source.finish()?;
    let (tally, end) = walked?;

    let mut warnings = gaps(by, &facts);
    let complete = end.complete && warnings.is_empty();
    warnings.extend((!end.complete).then(interrupted));
    warnings.extend(refusals);
    let own = tally.at_maximum(&kernel).into_iter().collect();
    let mut facts = facts;
    facts.interfaces.keep([]);
    Ok(Counted { tally, kernel, own, facts: vec![facts], source: origin.name(), complete, warnings })
}

/// Counts in all of them, and says what some of them refuse.
///
/// # Errors
/// The first one's, where none answers.
fn count_all(
    found: &Found,
    args: &SummaryArgs,
    global: &GlobalArgs,
    by: &[By],
) -> Result<Option<Counted>, CommandError> {
    let mut heard = Heard::new(found);
    let mut all: Option<Counted> = None;
    let look = |netns: &OpenNetns, hand_over: &mut HandOver<_>| {
        let counted = netns::within(netns, || count(args, global, by));
        let _ = hand_over(counted.unwrap_or_else(|error| Err(error.into())));
    };
    in_order(&found.namespaces, &look, &mut |netns, counted| {
        if let Some(mut one) = heard.hear(netns, counted) {
            heard.told(netns, one.complete, one.warnings.drain(..));
            one.own.iter_mut().for_each(|limit| limit.text = of(netns, &limit.text));
            match &mut all {
                Some(all) => all.add(one),
                None => all = Some(one),
            }
        }
        ControlFlow::Continue(())
    });
    let (complete, warnings) = heard.end()?;
    Ok(all.map(|all| Counted { complete, warnings, ..all }))
}

impl Counted {
    /// Adds what was counted in further namespaces.
    fn add(&mut self, other: Self) {
        // Once they have differed, the merged ones know no length.
        let differ = self.kernel.tw_timeout_s != other.kernel.tw_timeout_s;
        if differ && self.own.iter().all(|limit| limit.id != "length") {
            self.own.push(limits::lengths_differ());
        }
        self.tally.merge(other.tally);
        self.kernel = self.kernel.merged(&other.kernel);
        self.own.extend(other.own);
        self.facts.extend(other.facts);
        if other.source != self.source {
            self.source = Origin::Procfs.name();
        }
    }
}

/// Counts every bucket in one walk; `ipv4`: only those of IPv4, or of IPv6, on the wire.
fn walk(
    source: &mut Source,
    by: &[By],
    facts: &Facts,
    kernel: &BucketFacts,
    ipv4: Option<bool>,
) -> Result<(Tally, WalkEnd), CommandError> {
    let states = StateSet::of(&[TcpState::Listen, TcpState::TimeWait, TcpState::FinWait2]);
    // Listeners of either family tell the direction of a bucket, so the family is judged here.
    let filter = ipv4.map_or(Filter::TRUE, Filter::ipv4_on_the_wire);
    let wanted = |bucket_is_ipv4| ipv4.is_none_or(|ipv4| ipv4 == bucket_is_ipv4);
    let infers_direction = by.contains(&By::Direction);
    let ((_, tally), end) = source.collect(
        states,
        &filter,
        || (Listeners::default(), Tally::new(by, kernel)),
        |(listeners, tally), socket| match socket {
            Socket::Full(full) if full.state == TcpState::Listen => listeners.add(*full),
            Socket::Bucket(bucket) if wanted(bucket.tuple.family.ipv4_on_the_wire()) => {
                let direction = if infers_direction {
                    direction::infer(facts, listeners, &bucket.tuple, bucket.interface)
                } else {
                    Direction::Unknown
                };
                tally.add(bucket, direction);
            }
            // Of the other family; or a FIN_WAIT_2 that is no bucket and still has its owner.
            Socket::Bucket(_) | Socket::Full(_) => {}
        },
    )?;
    Ok((tally, end))
}
