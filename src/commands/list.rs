//! `twtool list`: lists the timewait buckets of one network namespace, of several, or of a recording.

use std::io;
use std::ops::ControlFlow;
use std::path::Path;

use clap::{Args, ValueEnum};

use super::columns::ColumnParser;
use super::netns::ManyNetnsArgs;
use super::recording::RecordingArgs;
use super::selection::SelectionArgs;
use super::tracer::TracerArgs;
use super::{CommandError, Context, ExitStatus, Format, GlobalArgs, bad_value};
use crate::filter::Filter;
use crate::model::row::Order;
use crate::snapshot::bucket_owners;
use crate::snapshot::{Answer, Buckets, RowLimit, Selection, Snapshot, SourceChoice};
use crate::view;
use crate::view::column::Column;
use crate::view::json::Envelope;
use crate::view::list::{ListTable, RowMeasurements, Stream};
use crate::view::owner::OwnedRows;

/// Arguments of `twtool list`.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = "\
FILTER is an expression of ss. Tests: sport and dport, with = != < <= > >= (or eq ne lt le gt ge) and a port; src and dst with \
an address or prefix, with :PORT, or with both together; dev; fwmark with a mask; autobound. Combine tests with 'and', 'or', 'not' and \
parentheses. Two tests without a word between them are combined with 'and'. As in ss, 'and' and 'or' have the same precedence \
and are evaluated from left to right. Tests that ss does not have: expires < 10s, class = dynamic (of the local port; also \
remote-class), direction = inbound, state = fin-wait-2, service = https, and mapped (an IPv4 connection of an IPv6 socket). \
Flags are short forms of the same tests. A row must match the filter and every flag that you give. If you repeat a flag, the row \
must match one of its values. For a TIME_WAIT socket, autobound means only that the local port lies in the ephemeral range, because \
the kernel does not store how the port was chosen.

Exit codes: 0 the list is complete, even if it is empty. 2 the answer is missing or incomplete, or wrong usage. With --quiet: 0 if any \
socket matches, 1 if none.

Examples:
  twtool list                                      list every TIME_WAIT socket, the next to expire first
  twtool list --local-port https                   list the sockets of local port 443
  twtool list 'sport = :443'                       do the same with a filter of ss
  twtool list 'dst 10.0.0.0/8 and expires < 5s'    combine a remote network with the remaining time
  twtool list 'not ( src 127.0.0.0/8 or src [::1] )'
  twtool list 'direction = outbound and dport = :5432' --count
  twtool list -q --port 443 && echo busy           exit with 0 if any socket has port 443 at either end
  twtool list -o ndjson | jq -r .remote_addr | sort | uniq -c
  twtool list -o csv --columns local,remote,expires_ms
  twtool list --explain-filter 'sport = :443 and expires < 5s'
  twtool list --owner --limit 20                   show which processes made the sockets, as far as evidence shows it
  twtool list --netns web                          use the network namespace web of `ip netns`
  twtool list --netns 4711 --local-port 8080       use the network namespace of process 4711
  twtool list --all-netns -o ndjson | jq -r .netns_name | sort | uniq -c
  twtool list --record bug.twrec                   record the kernel's data for --replay
")]
#[expect(clippy::struct_excessive_bools, reason = "flags of a command line")]
pub struct ListArgs {
    #[command(flatten)]
    selection: SelectionArgs,
    /// Show which part of the filter the kernel evaluates and which part twtool evaluates; list nothing
    #[arg(long, conflicts_with_all = ["record", "replay", "quiet", "count"])]
    explain_filter: bool,
    /// Sort order of the rows [default: expires; none for ndjson and csv]
    #[arg(long, value_enum, value_name = "KEY")]
    sort: Option<SortKey>,
    /// Reverse the sort order
    #[arg(long)]
    reverse: bool,
    /// Show at most this many rows
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Columns of a table or csv: JSON keys, or `local` and `remote` for address:port
    #[arg(long, value_name = "A,B,C", value_delimiter = ',', value_parser = ColumnParser)]
    columns: Vec<&'static Column>,
    /// Omit the header line, the line with the totals below a table, and the line that stands for an empty table
    #[arg(long)]
    no_header: bool,
    /// Print only the number of rows
    #[arg(long)]
    count: bool,
    /// Print no sockets, only warnings and errors; exit with 0 if any socket matches, 1 if none
    #[arg(short, long)]
    quiet: bool,
    /// Show the process that made each socket, as far as evidence shows it; an inference has a question mark
    #[arg(long, conflicts_with_all = ["record", "replay", "quiet", "count", "explain_filter"])]
    owner: bool,
    #[command(flatten)]
    tracer: TracerArgs,
    /// Kernel interface to read
    #[arg(long, value_enum, default_value_t = SourceArg::Auto, value_name = "SOURCE")]
    #[arg(conflicts_with_all = ["record", "replay"])]
    source: SourceArg,
    #[command(flatten)]
    recording: RecordingArgs,
    #[command(flatten)]
    namespaces: ManyNetnsArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SourceArg {
    /// sock_diag, or procfs if sock_diag is absent or refused
    Auto,
    /// sock_diag only
    #[value(name = "sock_diag")]
    SockDiag,
    /// /proc/net/tcp and tcp6: slower, times in steps of 10 ms, no cookie, mark or interface
    Procfs,
}

impl From<SourceArg> for SourceChoice {
    fn from(arg: SourceArg) -> Self {
        match arg {
            SourceArg::Auto => Self::Auto,
            SourceArg::SockDiag => Self::SockDiag,
            SourceArg::Procfs => Self::Procfs,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SortKey {
    /// By remaining time
    Expires,
    /// By local address and port
    Local,
    /// By remote address and port
    Remote,
    /// In the order of the kernel
    None,
}

/// Runs the command.
///
/// # Errors
/// See [`CommandError`].
pub fn run(args: &ListArgs, global: &GlobalArgs, context: &mut Context) -> Result<ExitStatus, CommandError> {
    let format = global.format();
    check(args, format)?;
    let input = args.recording.input(args.source.into());
    let snapshot = Snapshot { namespaces: args.namespaces.namespaces()?, input };
    let selection = args.selection.selection(global);
    if args.explain_filter {
        explain_filter(&snapshot, &selection, context)
    } else if args.quiet {
        let any = snapshot.any_bucket(&selection)?;
        context.warn(&any.sentences());
        Ok(match (any.value, any.complete) {
            (true, _) => ExitStatus::Yes,
            (false, true) => ExitStatus::No,
            (false, false) => ExitStatus::Incomplete,
        })
    } else if args.count {
        let count = snapshot.count_buckets(&selection)?;
        context.warn(&count.sentences());
        writeln!(context.out, "{}", count.value.min(args.limit.unwrap_or(usize::MAX)))?;
        Ok(ExitStatus::complete(count.complete))
    } else if args.owner {
        print_owners(&snapshot, &selection, args, format, context)
    } else if args.streams(format) {
        stream(&snapshot, &selection, args, format, context)
    } else {
        // The widths of the columns of a table are measured while the rows arrive. With a limit, they are measured later, because
        // only the rows that are shown count.
        let measured = format == Format::Table && args.limit.is_none();
        let measurements = |buckets: &Buckets| {
            measured.then(|| RowMeasurements::new(args.table_columns(buckets.with_state), &buckets.facts))
        };
        let answer = snapshot.observed_buckets(&selection, args.order(), args.row_limit(), &measurements)?;
        print_collected(answer, args, format, context)
    }
}

fn explain_filter(
    snapshot: &Snapshot,
    selection: &Selection,
    context: &mut Context,
) -> Result<ExitStatus, CommandError> {
    let parts = snapshot.filter_parts(selection)?;
    context.warn(&parts.sentences());
    let text = |filter: &Filter| (*filter != Filter::TRUE).then(|| filter.to_string());
    let [whole, by_kernel, left_over] = [&parts.value.filter, &parts.value.by_kernel, &parts.value.left_over].map(text);
    view::list::explain(context.out, whole.as_deref(), by_kernel.as_deref(), left_over.as_deref())?;
    Ok(ExitStatus::Yes)
}

/// Writes rows as they arrive, and keeps none in memory.
fn stream(
    snapshot: &Snapshot,
    selection: &Selection,
    args: &ListArgs,
    format: Format,
    context: &mut Context,
) -> Result<ExitStatus, CommandError> {
    let columns = args.csv_columns();
    let mut out = match format {
        Format::Csv => Stream::csv(context.out, &columns, !args.no_header),
        _ => Stream::ndjson(context.out),
    };
    let mut left = args.limit.unwrap_or(usize::MAX);
    let mut any = false;
    let mut written: io::Result<()> = Ok(());
    let answer = snapshot.for_each_bucket(selection, &mut |row, facts| {
        if left > 0 {
            any = true;
            left -= 1;
            written = out.write(row, facts);
        }
        if left == 0 || written.is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    written?;
    // After a failure, write the rows that arrived before it, but not a header alone.
    if any || answer.is_ok() {
        out.finish()?;
    }
    let answer = answer?;
    context.warn(&answer.sentences());
    Ok(ExitStatus::complete(answer.complete))
}

fn print_owners(
    snapshot: &Snapshot,
    selection: &Selection,
    args: &ListArgs,
    format: Format,
    context: &mut Context,
) -> Result<ExitStatus, CommandError> {
    let order = if args.streams(format) { None } else { args.order() };
    let answer = snapshot.buckets(selection, order, args.row_limit())?;
    let traced = args.tracer.read()?;
    context.warn(&answer.sentences());
    let mut warnings = answer.sentences();
    let Answer { value: mut buckets, mut complete, .. } = answer;
    let merged = buckets.merged_facts();
    let (total, facts) = (buckets.rows.total(), &buckets.facts);
    let mut rows = buckets.rows.sorted();
    if args.reverse {
        rows.reverse();
    }
    let found = bucket_owners::find(&snapshot.namespaces, &rows, facts, &traced)?;
    context.warn(&found.sentences());
    warnings.extend(found.sentences());
    complete &= found.complete;
    let owned = OwnedRows { rows: &rows, owners: &found.value, facts };
    match format {
        Format::Json => {
            let envelope = Envelope { schema: "twtool.list/1", facts: &merged, complete, warnings: &warnings };
            owned.document(context.out, envelope, buckets.origin.name())?;
        }
        Format::Table => {
            let columns = args.table_columns(buckets.with_state);
            owned.table(context.out, &columns, !args.no_header, total, context.style)?;
            let unknown = found.value.iter().filter(|owner| owner.is_none()).count();
            TracerArgs::hint(&traced, unknown as u64, rows.len() as u64, context);
        }
        Format::Ndjson => owned.ndjson(context.out)?,
        Format::Csv => unreachable!("refused by check"),
    }
    Ok(ExitStatus::complete(complete))
}

fn print_collected(
    answer: Answer<(Buckets, Vec<Option<RowMeasurements>>)>,
    args: &ListArgs,
    format: Format,
    context: &mut Context,
) -> Result<ExitStatus, CommandError> {
    context.warn(&answer.sentences());
    let warnings = answer.sentences();
    let Answer { value: (mut buckets, measurements), complete, .. } = answer;
    let merged = buckets.merged_facts();
    let total = buckets.rows.total();
    let facts = &buckets.facts;
    let mut rows = buckets.rows.sorted();
    if args.reverse {
        rows.reverse();
    }
    match format {
        Format::Json => {
            let envelope = Envelope { schema: "twtool.list/1", facts: &merged, complete, warnings: &warnings };
            view::list::document(context.out, envelope, buckets.origin.name(), &rows, facts)?;
        }
        Format::Table => {
            let columns = args.table_columns(buckets.with_state);
            let measurements = measurements.into_iter().flatten().reduce(RowMeasurements::joined);
            let measurements = measurements.unwrap_or_else(|| RowMeasurements::of_rows(&rows, facts, &columns));
            let table = ListTable { rows: &rows, facts, measurements, total, header: !args.no_header };
            view::list::table(context.out, &table, context.style)?;
        }
        Format::Ndjson => view::list::ndjson(context.out, &rows, facts)?,
        Format::Csv => view::list::csv(context.out, &rows, facts, &args.csv_columns(), !args.no_header)?,
    }
    Ok(ExitStatus::complete(complete))
}

impl ListArgs {
    /// The recording to read.
    #[must_use]
    pub fn replayed(&self) -> Option<&Path> {
        self.recording.replayed()
    }

    /// Whether rows are written as they arrive.
    fn streams(&self, format: Format) -> bool {
        matches!(format, Format::Ndjson | Format::Csv) && self.sort.unwrap_or(SortKey::None) == SortKey::None
    }

    /// The order of rows that are collected in memory.
    fn order(&self) -> Option<Order> {
        match self.sort.unwrap_or(SortKey::Expires) {
            SortKey::None => None,
            SortKey::Expires => Some(Order::Expires),
            SortKey::Local => Some(Order::Local),
            SortKey::Remote => Some(Order::Remote),
        }
    }

    fn row_limit(&self) -> RowLimit {
        RowLimit { rows: self.limit.unwrap_or(usize::MAX), from_the_end: self.reverse }
    }

    /// The columns of a table. `with_state` tells whether rows can be in a state other than TIME_WAIT.
    fn table_columns(&self, with_state: bool) -> Vec<&'static Column> {
        if self.columns.is_empty() {
            Column::of_table(self.namespaces.several(), with_state)
        } else {
            self.columns.clone()
        }
    }

    fn csv_columns(&self) -> Vec<&'static Column> {
        if self.columns.is_empty() { Column::of_record().collect() } else { self.columns.clone() }
    }
}

/// Rejects combinations of arguments that clap cannot check.
fn check(args: &ListArgs, format: Format) -> Result<(), CommandError> {
    let unsorted =
        args.sort == Some(SortKey::None) || (args.sort.is_none() && matches!(format, Format::Ndjson | Format::Csv));
    if args.reverse && unsorted {
        return Err(CommandError::Usage("'--reverse' needs a sort order; give --sort expires, local or remote".into()));
    }
    if args.explain_filter && (format != Format::Table || args.source == SourceArg::Procfs) {
        return Err(CommandError::Usage(
            "'--explain-filter' prints text about sock_diag; it cannot be used with another format or --source procfs"
                .into(),
        ));
    }
    if !args.columns.is_empty() && matches!(format, Format::Json | Format::Ndjson) {
        return Err(CommandError::Usage(
            "'--columns' cannot be used with JSON, whose records have every key; use a table or csv".into(),
        ));
    }
    if args.owner && format == Format::Csv {
        return Err(bad_value(&"csv", "--output <FORMAT>", "with --owner, records are not flat; use ndjson"));
    }
    args.tracer.needs("--owner", args.owner)?;
    args.namespaces.one_with("--record", args.recording.records())?;
    args.namespaces.one_with("--explain-filter", args.explain_filter)
}
