//! `twtool watch`: samples the buckets repeatedly, and reports how many there are and what happened to each.

use std::path::Path;
use std::time::Duration;

use clap::Args;

use super::netns::ManyNetnsArgs;
use super::recording::RecordingArgs;
use super::selection::SelectionArgs;
use super::tracer::{TracerArgs, how_to_permit};
use super::{CommandError, Context, ExitStatus, Format, GlobalArgs, bad_value, hide_refused};
use crate::filter::parser::parse_duration;
use crate::model::command::Shell;
use crate::snapshot::Namespaces;
use crate::snapshot::bucket_sample::SampleSource;
use crate::watch::screen::{self, FindNamespaces, ScreenError, ScreenOptions};
use crate::watch::{Sample, Sampler, stream};

/// Arguments of `twtool watch`.
#[derive(Args, Clone, Debug)]
#[command(mut_args(|arg| hide_refused(arg, &["json"], &[Format::Json, Format::Csv])), after_long_help = "\
On a terminal, twtool shows a screen: totals, a chart of the closes per second, and tables of sockets, destinations, local ports, \
remote addresses, network namespaces, events, and makers (the processes that made the sockets). Press ? for the \
keys: 1-7 choose the table, / filters, Enter shows a row with advice, k proposes `twtool kill` for the row, t traces the processes \
that make the sockets, w records, p pauses, q quits. Hold Shift to select text with the mouse.

While a tracer runs (twtool trace --serve, or the key t, which needs CAP_BPF and CAP_PERFMON), the screen shows the process that closed \
each connection: in the column OWNER, and as a table of makers. It shows only processes that the tracer has recorded, never an inference.

With -o ndjson, twtool prints a record of each sample, and a record of each event between two samples. It needs no terminal. \
twtool recognizes a socket by its cookie, a number that the kernel gives to one socket only. The events are:

  entered            a new TIME_WAIT socket, or a new FIN_WAIT_2 bucket
  became-time-wait   the peer of a FIN_WAIT_2 bucket has closed
  restarted          the timer started again: the peer retransmitted its FIN, or sent an ACK
  expired            the timer ran out
  taken-over         another socket now has the same addresses and ports
  destroyed          removed before its time, and no TCP segment can have done it (SOCK_DESTROY, twtool kill)
  reset              removed by a RST. twtool can prove this only on Linux 5.10 and earlier; on later kernels it reports gone
  gone               removed before its time, and several causes are possible

The JSON key `certain` is true if the event has only one possible cause, under two assumptions: nothing removes a bucket in \
the last 2 s before its timer ends; and if a new connection has the addresses and ports of a bucket, it took the bucket over.

FILTER and its flags select rows and events as in `twtool list`. FIN_WAIT_2 buckets are always included, so --fin-wait-2 has no \
effect. twtool follows every socket, including sockets that the filter rejects; the filter only \
selects what is printed. So there is no event when a socket begins to match, for example with expires < 10s.

If reading the sockets would use more than a quarter of a CPU core, twtool makes the interval longer and prints a warning.

Exit codes: 0 after q, --count, --duration or the end of a replay, or if the reader closes the pipe. 2 wrong usage, an \
error, or (with -o ndjson) missing or incomplete samples. 130 interrupted.

Examples:
  twtool watch                                    show the live screen
  twtool watch --netns web 'sport = :443'         watch one port of the network namespace web
  twtool watch -o ndjson --count 10               take ten samples
  twtool watch -o ndjson | jq -c 'select(.type == \"sample\") | [.at, .time_wait, .closes_per_s]'
  twtool watch -o ndjson 'sport = :443' | jq -r 'select(.type == \"event\") | .event'
  twtool watch -o ndjson --all-netns --interval 5s --duration 1m
")]
pub struct WatchArgs {
    #[command(flatten)]
    selection: SelectionArgs,
    /// Time between the starts of two reads, like 500ms, 1s or 1m
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = interval, allow_negative_numbers = true)]
    #[arg(conflicts_with = "replay")]
    interval: Duration,
    /// End after this time, like 30s or 10m
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, allow_negative_numbers = true)]
    duration: Option<Duration>,
    /// End after this number of samples
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), allow_negative_numbers = true)]
    count: Option<u64>,
    #[command(flatten)]
    recording: RecordingArgs,
    #[command(flatten)]
    namespaces: ManyNetnsArgs,
    #[command(flatten)]
    tracer: TracerArgs,
}

fn interval(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        Duration::ZERO => Err("two reads need a time between them; use 500ms, 1s or 1m".into()),
        time => Ok(time),
    }
}

/// Runs `twtool watch`.
///
/// # Errors
/// See [`CommandError`].
pub fn run(args: &WatchArgs, global: &GlobalArgs, context: &mut Context) -> Result<ExitStatus, CommandError> {
    let can_ask = global.format() == Format::Table && !args.recording.replays();
    args.tracer.needs("the live screen, without --replay", can_ask)?;
    match global.format() {
        Format::Ndjson => {}
        Format::Table => return show_screen(args, global, context),
        Format::Json | Format::Csv => {
            let format = if global.format() == Format::Csv { "csv" } else { "json" };
            let why = "samples and events are reported when they happen; use ndjson";
            return Err(bad_value(&format, "--output <FORMAT>", why));
        }
    }
    let mut sampler = Sampler::new(args.samples()?, args.selection.selection(global), args.interval, false);
    if let Some((path, replace)) = args.recording.recorded() {
        sampler.record(path, replace)?;
    }
    let streamed = stream(args, &mut sampler, context);
    // The recording keeps the samples so far, even if the reader has closed the pipe.
    let finished = sampler.finish();
    let complete = streamed?;
    finished?;
    Ok(ExitStatus::complete(complete))
}

fn show_screen(args: &WatchArgs, global: &GlobalArgs, context: &mut Context) -> Result<ExitStatus, CommandError> {
    let selection = args.selection.selection(global);
    let sampler = Sampler::new(args.samples()?, selection.clone(), args.interval, true);
    let options = ScreenOptions {
        selection,
        interval: args.interval,
        style: context.style,
        shell: args.namespaces.shell(context).unwrap_or_else(|| Shell { netns: None, caller: context.caller.clone() }),
        several: args.namespaces.several(),
        namespaces: args.find_namespaces(),
        owners: if args.recording.replays() { None } else { Some(args.tracer.feed()?) },
        permit_tracing: how_to_permit(&context.caller),
        record: args.recording.recorded().map(|(path, replace)| (path.to_owned(), replace)),
        duration: args.duration,
        count: args.count,
    };
    match screen::run(sampler, options) {
        Ok(()) => Ok(ExitStatus::Yes),
        Err(ScreenError::Snapshot(error)) => Err(error.into()),
        Err(error) => Err(CommandError::Usage(error.to_string())),
    }
}

/// Writes samples until the end. Returns whether all were complete.
fn stream(args: &WatchArgs, sampler: &mut Sampler, context: &mut Context) -> Result<bool, CommandError> {
    // A recording has an interval of its own, so the warning about a longer interval must not appear.
    let selected = if args.recording.replays() { Duration::MAX } else { args.interval };
    let mut reporter = Reporter { selected, ..Reporter::default() };
    let (mut count, mut complete) = (0, true);
    let mut next = Duration::ZERO;
    loop {
        match sampler.take() {
            Ok(None) => break,
            Ok(Some(sample)) => {
                reporter.warn(&sample, context);
                stream::write(context.out, &sample)?;
                complete &= sample.complete;
                count += 1;
                next = sample.elapsed + sample.interval;
            }
            // An error of the kernel, such as a lack of memory, may be temporary. An error of a recording's file is permanent.
            Err(error) if count > 0 && !args.recording.records() && !args.recording.replays() => {
                reporter.warn_once(&[error.to_string()], context);
                complete = false;
                next += args.interval;
            }
            Err(error) => return Err(error.into()),
        }
        if args.count == Some(count) || args.duration.is_some_and(|end| next > end) || !sampler.wait(next)? {
            break;
        }
    }
    Ok(complete)
}

/// Prints a warning only if the previous sample did not have it.
#[derive(Default)]
struct Reporter {
    /// The interval that the user selected; the maximum for a recording.
    selected: Duration,
    /// The warnings of the previous sample.
    last: Vec<String>,
    /// Whether the warning about a longer interval has been printed.
    stretched: bool,
}

impl Reporter {
    fn warn_once(&mut self, warnings: &[String], context: &mut Context) {
        let is_new = |warning: &&String| !self.last.contains(warning);
        let new: Vec<String> = warnings.iter().filter(is_new).cloned().collect();
        context.warn(&new);
        self.last = warnings.to_vec();
    }

    fn warn(&mut self, sample: &Sample, context: &mut Context) {
        self.warn_once(&sample.warnings, context);
        // Compare whole milliseconds, because the text and the records show whole milliseconds.
        if sample.interval.as_millis() > self.selected.as_millis() && !self.stretched {
            self.stretched = true;
            context.warn(&[format!(
                "reading takes {} ms of processor time, so the interval is {} ms: watch uses at most a quarter of a core",
                sample.processor_time.as_millis(),
                sample.interval.as_millis()
            )]);
        }
    }
}

impl WatchArgs {
    /// The recording to read.
    #[must_use]
    pub fn replayed(&self) -> Option<&Path> {
        self.recording.replayed()
    }

    /// Returns a function that finds the namespaces again, for the screen's table of destinations. `None` for a recorded series.
    fn find_namespaces(&self) -> Option<FindNamespaces> {
        let arguments = self.namespaces.clone();
        let find = move || match arguments.namespaces() {
            Ok(namespaces) => Ok(namespaces),
            Err(CommandError::Snapshot(error)) => Err(error),
            // `ManyNetnsArgs::namespaces` returns no other error.
            Err(_) => Ok(Namespaces::own()),
        };
        self.recording.replayed().is_none().then(|| Box::new(find) as FindNamespaces)
    }

    fn samples(&self) -> Result<SampleSource, CommandError> {
        if let Some(path) = self.recording.replayed() {
            return Ok(SampleSource::of_series(path)?);
        }
        self.namespaces.one_with("--record", self.recording.records())?;
        if self.namespaces.are_all() {
            return Ok(SampleSource::of_every_namespace());
        }
        Ok(SampleSource::of_kernel(self.namespaces.namespaces()?))
    }
}
