//! `twtool trace`: shows live which processes close connections.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::netns::SomeNetnsArgs;
use super::selection::SelectionArgs;
use super::tracer::how_to_permit;
use super::{CommandError, Context, ExitStatus, Format, GlobalArgs, bad_value, hide_refused};
use crate::analysis::makers::{MakerGroupBy, Makers};
use crate::filter::parser::parse_duration;
use crate::model::close::{Close, Method};
use crate::model::facts::Facts;
use crate::snapshot::closes::{Closes, MethodChoice, Signal};
use crate::view;
use crate::view::human;
use crate::view::json::Envelope;
use crate::view::trace::{FOREIGN_PIDS, loss_warnings};

/// The time between two tables on a terminal.
const REFRESH: Duration = Duration::from_secs(1);

/// The maximum number of network namespaces whose names are stored for the table of `--by netns`.
const MAX_NAMES: usize = 8192;

/// Arguments of `twtool trace`.
#[derive(Args, Clone, Debug)]
#[command(mut_args(|arg| hide_refused(arg, &[], &[Format::Csv])), after_long_help = "\
A TIME_WAIT socket belongs to no process, so a list of sockets does not contain the process that made it. twtool trace sees each \
close when it happens, and names the process that closed first: its end of the connection gets the TIME_WAIT socket. Without \
--netns and --container, twtool covers every network namespace of the machine. twtool prints the line for a close only when the \
connection has ended on this side (see OUTCOME). A BPF program collects the closes. The kernel removes this program when twtool ends, \
even if SIGKILL ends twtool.

OUTCOME is TIME_WAIT, FIN_WAIT_2 (the peer has not closed yet; TIME_WAIT follows when it closes), aborted (a RST or an error ended \
the connection, so there is no TIME_WAIT), or unknown (the data of the kernel do not show it). ROLE is accepted, connected, or unknown \
(for example, if a client bound a port outside the ephemeral range). The process is unknown if it called close() before \
twtool started and the connection ends later, or if the kernel does not show it.

With --by, twtool counts closes by group: on a terminal the table is refreshed each second; otherwise it is printed once at the end. \
BUCKETS is the number of TIME_WAIT and FIN_WAIT_2 sockets that the group made in the last 60 seconds.

FILTER and its flags select closes as in `twtool list`. A filter with `expires`, and --expires-under, are errors, because a close \
has no remaining time. direction = inbound selects accepted connections. --fin-wait-2 has no effect: \
closes that leave a FIN_WAIT_2 socket are always included.

BPF needs CAP_BPF and CAP_PERFMON, and Linux 5.12 with type information (BTF). Without them, twtool takes samples of the open sockets of \
its own network namespace, or of the selected ones, every 20 ms. Samples find the process of most connections that last 50 ms, but only \
of few connections that last 1 ms.

Exit codes: 0 after --count or --duration, or if the reader closes the pipe. 2 wrong usage, closes cannot be traced, closes were lost \
or may have been missed, or twtool used samples. 130 interrupted.

Examples:
  twtool trace                                   show each close of every network namespace
  twtool trace 'sport = :443'                    show the closes of one server
  twtool trace --netns web --duration 10s        trace one network namespace for ten seconds
  twtool trace --by unit                         count by systemd unit until Ctrl-C
  twtool trace --by process --top 5 --duration 10s
  twtool trace -o ndjson --count 100 | jq -r '.process.comm'
  twtool trace --serve /run/twtool.sock >/dev/null   let list, summary, doctor and watch ask this tracer
  twtool trace --by destination -o json --duration 30s
")]
pub struct TraceArgs {
    #[command(flatten)]
    selection: SelectionArgs,
    /// Count closes by this key, and print a table
    #[arg(long, value_enum, value_name = "KEY")]
    by: Option<TraceByArg>,
    /// Number of groups to print
    #[arg(long, value_name = "N", default_value_t = 20, requires = "by", allow_negative_numbers = true)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    top: u32,
    /// How to find the process of a close
    #[arg(long, value_enum, default_value_t = MethodArg::Auto, value_name = "METHOD")]
    method: MethodArg,
    /// Listen on this Unix socket (mode 0600), and report which processes made the TIME_WAIT sockets of the last two minutes;
    /// `twtool list --owner`, `summary --by owner`, `doctor` and `watch` use it
    #[arg(long, value_name = "SOCKET")]
    serve: Option<PathBuf>,
    /// End after this time, like 30s or 10m
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, allow_negative_numbers = true)]
    duration: Option<Duration>,
    /// End after this number of closes
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), allow_negative_numbers = true)]
    count: Option<u64>,
    #[command(flatten)]
    namespaces: SomeNetnsArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum MethodArg {
    /// bpf, or sampled if BPF is not possible
    Auto,
    /// A BPF program that sees each close
    Bpf,
    /// Samples of the open sockets, without privilege: misses the process of short connections
    Sampled,
}

impl From<MethodArg> for MethodChoice {
    fn from(method: MethodArg) -> Self {
        match method {
            MethodArg::Auto => Self::Auto,
            MethodArg::Bpf => Self::Bpf,
            MethodArg::Sampled => Self::Sampled,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum TraceByArg {
    /// Process
    Process,
    /// systemd unit
    Unit,
    /// Container
    Container,
    /// Remote address and port; for accepted connections, the remote address alone
    Destination,
    /// Local port
    LocalPort,
    /// Network namespace
    Netns,
}

impl TraceByArg {
    const fn name(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Unit => "unit",
            Self::Container => "container",
            Self::Destination => "destination",
            Self::LocalPort => "local-port",
            Self::Netns => "netns",
        }
    }
}

impl From<TraceByArg> for MakerGroupBy {
    fn from(by: TraceByArg) -> Self {
        match by {
            TraceByArg::Process => Self::Process,
            TraceByArg::Unit => Self::Unit,
            TraceByArg::Container => Self::Container,
            TraceByArg::Destination => Self::Destination,
            TraceByArg::LocalPort => Self::LocalPort,
            TraceByArg::Netns => Self::Netns,
        }
    }
}

/// Runs `twtool trace`.
///
/// # Errors
/// See [`CommandError`].
pub fn run(args: &TraceArgs, global: &GlobalArgs, context: &mut Context) -> Result<ExitStatus, CommandError> {
    let format = global.format();
    match (format, args.by) {
        (Format::Csv, _) => {
            return Err(bad_value(&"csv", "--output <FORMAT>", "the process of a close is no flat record; use ndjson"));
        }
        (Format::Json, None) => {
            let why = "closes are reported when they happen; use ndjson, or --by for one document at the end";
            return Err(bad_value(&"json", "--output <FORMAT>", why));
        }
        _ => {}
    }
    let namespaces = args.namespaces.namespaces()?;
    let mut started = Closes::start(&args.selection.selection(global), namespaces, args.method.into())?;
    if let Some(path) = &args.serve {
        started.value.serve(path)?;
    }
    context.warn(&started.sentences());
    let complete = started.complete;
    if started.value.lacks_privilege() {
        let hint = how_to_permit(&context.caller);
        let _ = writeln!(context.err, "hint: {}", human::escape(&hint));
    }
    let mut warnings = started.warnings;
    let mut closes = started.value;
    if closes.method() == Method::Bpf && !closes.own_pid_namespace() {
        context.warn(&[FOREIGN_PIDS.to_owned()]);
        warnings.push(FOREIGN_PIDS.to_owned());
    }
    let signal = match args.by {
        None => {
            if format == Format::Table {
                view::trace::header(context.out)?;
                context.out.flush()?;
            }
            follow(args, &mut closes, &mut CloseLines { out: context.out, format })?
        }
        Some(by) => {
            let live = format == Format::Table && context.style.width.is_some();
            let drawn = live.then_some(Duration::ZERO);
            let mut groups =
                CloseGroups { makers: Makers::new(by.into()), names: BTreeMap::new(), args, by, drawn, context };
            let signal = follow(args, &mut closes, &mut groups)?;
            groups.finish(&closes, format, warnings)?;
            signal
        }
    };
    let totals = closes.totals();
    if format == Format::Table {
        // Standard output has only closes or groups of closes, so the totals go to standard error.
        let _ = writeln!(context.err, "{}", view::trace::totals(totals));
    }
    context.warn(&loss_warnings(totals));
    context.out.flush()?;
    if let Some(signal) = signal {
        closes.deliver(signal)?;
    }
    Ok(ExitStatus::complete(complete && loss_warnings(totals).is_empty()))
}

trait CloseSink {
    fn close(&mut self, close: &Close, facts: &Facts, elapsed: Duration) -> io::Result<()>;

    /// Called after each batch of closes, and after a time without closes.
    fn pause(&mut self, elapsed: Duration) -> io::Result<()>;
}

/// Passes closes to `sink` until --count, --duration or a signal ends the trace. Returns the signal, if there was one.
fn follow(args: &TraceArgs, closes: &mut Closes, sink: &mut dyn CloseSink) -> Result<Option<Signal>, CommandError> {
    let mut left = args.count.unwrap_or(u64::MAX);
    loop {
        let elapsed = closes.elapsed();
        let time = args.duration.map_or(REFRESH, |end| end.saturating_sub(elapsed));
        let mut written = Ok(());
        let signal = closes.next(time, &mut |close, facts| {
            left -= 1;
            written = sink.close(&close, facts, elapsed);
            if left == 0 || written.is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        written?;
        let elapsed = closes.elapsed();
        sink.pause(elapsed)?;
        if signal.is_some() || left == 0 || args.duration.is_some_and(|end| elapsed >= end) {
            return Ok(signal);
        }
    }
}

struct CloseLines<'a> {
    out: &'a mut (dyn Write + Send),
    format: Format,
}

impl CloseSink for CloseLines<'_> {
    fn close(&mut self, close: &Close, facts: &Facts, _: Duration) -> io::Result<()> {
        match self.format {
            Format::Table => view::trace::line(self.out, close, facts),
            _ => view::trace::record(self.out, close, facts),
        }
    }

    fn pause(&mut self, _: Duration) -> io::Result<()> {
        self.out.flush()
    }
}

struct CloseGroups<'a, 'b> {
    makers: Makers,
    /// The names of network namespaces by inode number.
    names: BTreeMap<u64, String>,
    args: &'a TraceArgs,
    by: TraceByArg,
    /// When the table was drawn last; `None` if it is drawn only at the end.
    drawn: Option<Duration>,
    context: &'a mut Context<'b>,
}

impl CloseGroups<'_, '_> {
    fn table(&mut self, elapsed: Duration, last: bool) -> io::Result<()> {
        let rows = self.makers.table(self.args.top as usize, elapsed, last);
        let names = |inode| self.names.get(&inode).cloned();
        view::trace::groups(self.context.out, self.by.into(), &rows, &names, self.context.style)
    }

    fn finish(mut self, closes: &Closes, format: Format, warnings: Vec<String>) -> Result<(), CommandError> {
        let (elapsed, totals) = (closes.elapsed(), closes.totals());
        if format == Format::Table {
            if self.drawn.is_some() {
                self.context.out.write_all(CLEAR)?;
            }
            return Ok(self.table(elapsed, true)?);
        }
        let rows = self.makers.table(self.args.top as usize, elapsed, true);
        if format == Format::Ndjson {
            return Ok(view::trace::group_records(self.context.out, &rows)?);
        }
        let missing = loss_warnings(totals);
        let complete = missing.is_empty() && closes.method() == Method::Bpf;
        let warnings: Vec<String> = warnings.into_iter().chain(missing).collect();
        let facts = Facts { netns: None, netns_name: None, ..closes.own_facts().clone() };
        let envelope = Envelope { schema: "twtool.trace/1", facts: &facts, complete, warnings: &warnings };
        Ok(view::trace::document(self.context.out, envelope, self.by.name(), closes.method(), &rows, totals)?)
    }
}

/// Moves to the top left corner and clears the screen.
const CLEAR: &[u8] = b"\x1b[H\x1b[J";

impl CloseSink for CloseGroups<'_, '_> {
    fn close(&mut self, close: &Close, facts: &Facts, elapsed: Duration) -> io::Result<()> {
        if let Some(name) = &facts.netns_name
            && self.by == TraceByArg::Netns
            && self.names.len() < MAX_NAMES
            && !self.names.contains_key(&close.netns)
        {
            self.names.insert(close.netns, name.clone());
        }
        self.makers.add(close, elapsed);
        Ok(())
    }

    fn pause(&mut self, elapsed: Duration) -> io::Result<()> {
        if self.drawn.is_none_or(|drawn| elapsed < drawn + REFRESH) {
            return Ok(());
        }
        self.drawn = Some(elapsed);
        self.context.out.write_all(CLEAR)?;
        self.table(elapsed, false)?;
        self.context.out.flush()
    }
}
