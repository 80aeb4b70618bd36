//! `twtool summary`: counts timewait buckets by groups and shows the closes of the last minute, from one dump.

use std::path::Path;

use clap::{Args, ValueEnum};

use super::netns::ManyNetnsArgs;
use super::recording::RecordingArgs;
use super::tracer::TracerArgs;
use super::{CommandError, Context, ExitStatus, Format, GlobalArgs, bad_value, hide_refused};
use crate::analysis::groups::GroupBy;
use crate::snapshot::{Answer, Snapshot, SourceChoice, bucket_owners};
use crate::view;
use crate::view::json::Envelope;
use crate::view::summary::Content;

/// The default of `--top` for a table.
const TOP_ON_THE_SCREEN: usize = 5;
/// The default of `--top` for JSON and ndjson.
const TOP: usize = 10;

/// Arguments of `twtool summary`.
#[derive(Args, Clone, Debug)]
#[command(mut_args(|arg| hide_refused(arg, &[], &[Format::Csv])), after_long_help = "\
The history comes from a single read: TIME_WAIT lasts 60 s, so a socket with 12 s left entered TIME_WAIT 48 s ago. The summary \
ends with a list of what a single read cannot show. In JSON, the key `limits` contains this list. FIN_WAIT_2 sockets are \
counted, but they are not closes of the last minute. The counts of groups include both states.

A TIME_WAIT socket belongs to no process. With --by owner, unit or container, twtool shows what made the sockets, with the evidence that \
`twtool list --owner` uses. An inference has a question mark. Sockets without evidence are counted as unknown.

Exit codes: 0 the answer is complete, 2 the answer is missing or incomplete.

Examples:
  twtool summary                               summarize on one screen
  twtool summary --by destination --top 20     show the 20 most frequent destinations
  twtool summary --by local-port,direction
  twtool summary --by unit                     show which systemd units made the sockets, if there is evidence
  twtool summary --json | jq '.history.closes | add'
  twtool summary --json | jq '.groups.destination.top[] | [.remote_addr, .remote_port, .count]' -c
  twtool summary --netns web                   use the network namespace web of `ip netns`
  twtool summary --all-netns --by netns        compare network namespaces and containers
  twtool summary --record bug.twrec            record the kernel's data for --replay
")]
pub struct SummaryArgs {
    /// Keys to group by, separated by commas; repeat for more [default: class,direction,local-port,remote-addr,destination; with several
    /// network namespaces also netns]
    #[arg(long, value_enum, value_name = "GROUP", value_delimiter = ',')]
    by: Vec<SummaryByArg>,
    /// Show the N most frequent values of each key, and the sum of the others [default: 5 in a table, else 10]
    #[arg(long, value_name = "N")]
    top: Option<usize>,
    #[command(flatten)]
    tracer: TracerArgs,
    #[command(flatten)]
    recording: RecordingArgs,
    #[command(flatten)]
    namespaces: ManyNetnsArgs,
}

impl SummaryArgs {
    /// The recording to read.
    #[must_use]
    pub fn replayed(&self) -> Option<&Path> {
        self.recording.replayed()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SummaryByArg {
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
    /// Which side opened the connection, inferred from listeners and port ranges
    Direction,
    /// Network namespace
    Netns,
    /// Process that made the sockets, as far as evidence shows it
    Owner,
    /// systemd unit of that process
    Unit,
    /// Container of that process
    Container,
}

impl From<SummaryByArg> for GroupBy {
    fn from(arg: SummaryByArg) -> Self {
        match arg {
            SummaryByArg::LocalPort => Self::LocalPort,
            SummaryByArg::RemoteAddr => Self::RemoteAddr,
            SummaryByArg::RemotePort => Self::RemotePort,
            SummaryByArg::Destination => Self::Destination,
            SummaryByArg::Class => Self::Class,
            SummaryByArg::Direction => Self::Direction,
            SummaryByArg::Netns => Self::Netns,
            SummaryByArg::Owner => Self::Owner,
            SummaryByArg::Unit => Self::Unit,
            SummaryByArg::Container => Self::Container,
        }
    }
}

/// Runs `twtool summary`.
///
/// # Errors
/// See [`CommandError`].
pub fn run(args: &SummaryArgs, global: &GlobalArgs, context: &mut Context) -> Result<ExitStatus, CommandError> {
    if global.format() == Format::Csv {
        return Err(bad_value(&"csv", "--output <FORMAT>", "a summary is not a flat table; use table, json or ndjson"));
    }
    check(args)?;
    let input = args.recording.input(SourceChoice::Auto);
    let snapshot = Snapshot { namespaces: args.namespaces.namespaces()?, input };
    let by = groups(args);
    let answer = snapshot.summary(&by, global.ipv4_on_the_wire())?;
    let Answer { value: mut summarized, mut complete, mut warnings, .. } = answer;
    let mut traced = None;
    if by.iter().any(|by| by.needs_owners()) {
        let traced = traced.insert(args.tracer.read()?);
        let found = bucket_owners::count(&snapshot.namespaces, &mut summarized, traced)?;
        complete &= found.complete;
        warnings.extend(found.sentences());
    }
    context.warn(&warnings);

    let merged = summarized.merged_facts();
    let facts = summarized.facts.clone();
    let source = summarized.origin.name();
    let default_top = if global.format() == Format::Table { TOP_ON_THE_SCREEN } else { TOP };
    let summary = summarized.summary(args.top.unwrap_or(default_top));
    // The suggested commands read one namespace of this machine. A recording may come from another machine.
    let shell = args.namespaces.shell(context).filter(|_| !args.recording.replays());
    let help = shell.map(|shell| summary.help(&shell)).unwrap_or_default();
    let several = args.namespaces.several();
    let shown = Content { summary: &summary, facts: &merged, namespaces: &facts, several, help: &help, source };
    match global.format() {
        Format::Json => {
            let envelope = Envelope { schema: "twtool.summary/1", facts: &merged, complete, warnings: &warnings };
            view::summary::document(context.out, envelope, &shown)?;
        }
        Format::Ndjson => view::summary::ndjson(context.out, &shown)?,
        Format::Table | Format::Csv => {
            view::summary::page(context.out, &shown, context.style)?;
            if let (Some(traced), Some(evidence)) = (&traced, summary.evidence()) {
                let all = summary.totals.all();
                TracerArgs::hint(traced, all - evidence.iter().sum::<u64>(), all, context);
            }
        }
    }
    Ok(ExitStatus::complete(complete))
}

/// Rejects combinations of arguments that clap cannot check.
fn check(args: &SummaryArgs) -> Result<(), CommandError> {
    let owners = groups(args).into_iter().find(|by| by.needs_owners());
    args.tracer.needs("--by owner, unit or container", owners.is_some())?;
    if let Some(by) = owners
        && (args.recording.records() || args.recording.replays())
    {
        let reason = "a recording has no processes; leave out --record and --replay";
        return Err(bad_value(&by.name(), "--by <GROUP>", reason));
    }
    args.namespaces.one_with("--record", args.recording.records())
}

/// The groups of `--by` without duplicates, or the default groups.
fn groups(args: &SummaryArgs) -> Vec<GroupBy> {
    let mut by: Vec<GroupBy> = vec![];
    for group in args.by.iter().copied().map(GroupBy::from) {
        if !by.contains(&group) {
            by.push(group);
        }
    }
    if by.is_empty() {
        by.extend(args.namespaces.several().then_some(GroupBy::Netns));
        by.extend(GroupBy::DEFAULT);
    }
    by
}
