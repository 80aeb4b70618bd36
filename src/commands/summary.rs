//! `twtool summary`: what all timewait buckets together are, and the closes of the last minute, from one walk.

use clap::{Args, ValueEnum};

use super::netns::ManyNetnsArgs;
use super::recording::RecordingArgs;
use super::{CommandError, Context, ExitStatus, Format, GlobalArgs, bad_value};
use crate::analysis::groups::By;
use crate::snapshot::{Answer, Choice, Snapshot};
use crate::view;
use crate::view::json::Envelope;
use crate::view::summary::Content;

/// The usual number of lines of a group: what a person takes in at once, or more for a program.
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
    #[command(flatten)]
    recording: RecordingArgs,
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

/// Runs the command.
///
/// # Errors
/// See [`CommandError`].
pub fn run(args: &SummaryArgs, global: &GlobalArgs, context: &mut Context) -> Result<ExitStatus, CommandError> {
    if global.format() == Format::Csv {
        return Err(bad_value(&"csv", "--output <FORMAT>", "a summary is not flat; there are table, json and ndjson"));
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
    // A recording may be of another machine, and commands are for one namespace.
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
