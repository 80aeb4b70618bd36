//! `twtool summary`: counts timewait buckets by groups and shows the closes of the last minute, from one dump.

use std::path::Path;

use clap::{Args, ValueEnum};

use super::netns::ManyNetnsArgs;
use super::recording::RecordingArgs;
use super::{CommandError, Context, ExitStatus, Format, GlobalArgs, bad_value};
use crate::analysis::groups::By;
use crate::snapshot::{Answer, Choice, Snapshot};
use crate::view;
use crate::view::json::Envelope;
use crate::view::summary::Content;

/// The number of lines of a group in a table and in JSON, unless `--top` is given.
const TOP_ON_THE_SCREEN: usize = 5;
const TOP: usize = 10;

/// Arguments of `twtool summary`.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = "\
The history comes from a single read: TIME_WAIT lasts 60 s, so a socket with 12 s left entered TIME_WAIT 48 s ago. The summary \
ends with a list of what a single read cannot show. In JSON, the key `limits` contains this list. FIN_WAIT_2 sockets are \
counted, but they are not closes of the last minute. The counts of groups include both states.

Exit codes: 0 the answer is complete, 2 the answer is missing or incomplete.

Examples:
  twtool summary                               summarize on one screen
  twtool summary --by destination --top 20     show the 20 most frequent destinations
  twtool summary --by local-port,direction
  twtool summary --json | jq '.history.closes | add'
  twtool summary --json | jq '.groups.destination.top[] | [.remote_addr, .remote_port, .count]' -c
  twtool summary --netns web                   use the network namespace web of `ip netns`
  twtool summary --all-netns --by netns        compare network namespaces and containers
  twtool summary --record bug.twrec            record the kernel's data for --replay
")]
pub struct SummaryArgs {
    /// Keys to group by, separated by commas; repeat for more [default: class,direction,local-port,remote-addr,destination]
    #[arg(long, value_enum, value_name = "GROUP", value_delimiter = ',')]
    by: Vec<ByArg>,
    /// Show the N most frequent values of each key, and the sum of the others [default: 5 in a table, else 10]
    #[arg(long, value_name = "N")]
    top: Option<usize>,
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
    /// Which side opened the connection, inferred from listeners and port ranges
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

/// Runs the command.
///
/// # Errors
/// See [`CommandError`].
pub fn run(args: &SummaryArgs, global: &GlobalArgs, context: &mut Context) -> Result<ExitStatus, CommandError> {
    if global.format() == Format::Csv {
        return Err(bad_value(&"csv", "--output <FORMAT>", "a summary is not a flat table; use table, json or ndjson"));
    }
    args.namespaces.one_with("--record", args.recording.records())?;
    let input = args.recording.input(Choice::Auto);
    let snapshot = Snapshot { namespaces: args.namespaces.namespaces()?, input };
    let answer = snapshot.summary(&groups(args), global.ipv4_on_the_wire())?;
    context.warn(&answer.warnings);
    let Answer { value: summarized, complete, warnings, .. } = answer;

    let merged = summarized.merged_facts();
    let facts = summarized.facts.clone();
    let source = summarized.origin.name();
    let usual = if global.format() == Format::Table { TOP_ON_THE_SCREEN } else { TOP };
    let summary = summarized.summary(args.top.unwrap_or(usual));
    // No commands for a recording, which may come from another machine, nor for several namespaces.
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
        Format::Table | Format::Csv => view::summary::page(context.out, &shown, context.style)?,
    }
    Ok(ExitStatus::complete(complete))
}

/// The groups of `--by` without duplicates, or the default groups.
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
