//! `twtool list`: the timewait buckets of this network namespace. What was typed, and how each kind of answer is made.

use std::ops::ControlFlow;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::selection::{Query, SelectionArgs, gaps};
use super::{Answer, CommandError, Context, Format, GlobalArgs, interrupted};
use crate::filter::Filter;
use crate::model::listeners::Listeners;
use crate::model::row::Row;
use crate::model::socket::TcpState;
use crate::sock_diag::bytecode;
use crate::source::{Choice, Source};
use crate::view;
use crate::view::column::{Column, RECORD_COLUMNS, table_columns};
use crate::view::json::Envelope;
use crate::view::list::{ListTable, Stream};

/// Arguments of `twtool list`.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = "\
FILTER is an expression of ss: sport and dport with = != < <= > >= (or eq ne lt le gt ge) and a port, src and dst with an \
address, a prefix, :PORT or both, dev, fwmark with a mask, autobound, joined by and, or, not, parentheses, or nothing, which \
is and. As in ss, and and or bind equally, from left to right. Beyond ss: expires < 10s, class = dynamic (of the local port; \
also remote-class), direction = inbound, state = fin-wait-2, service = https, mapped. Flags are shorthands for the same \
tests and are and-ed with it. For a bucket the kernel does not keep who chose the port: autobound means that the local port \
lies in the ephemeral range.

Examples:
  twtool list                                      every TIME_WAIT socket, the next to go first
  twtool list --local-port https                   those on this machine's port 443
  twtool list 'sport = :443'                       the same, in ss's words
  twtool list 'dst 10.0.0.0/8 and expires < 5s'    gone within 5 seconds, to that network
  twtool list 'not ( src 127.0.0.0/8 or src [::1] )'
  twtool list 'direction = outbound and dport = :5432' --count
  twtool list -q --local-port 8080 && echo busy    exit code 0 if any, 1 if none
  twtool list -o ndjson | jq -r .remote_addr | sort | uniq -c
  twtool list -o csv --columns local,remote,expires_ms
  twtool list --explain-filter 'sport = :443 and expires < 5s'
  twtool list --record bug.twrec                   keep what the kernel said; --replay answers from it
")]
#[expect(clippy::struct_excessive_bools, reason = "flags of a command line")]
pub struct ListArgs {
    #[command(flatten)]
    selection: SelectionArgs,
    /// Say what of the filter the kernel judges and what is judged here, and list nothing
    #[arg(long, conflicts_with_all = ["record", "replay", "quiet", "count"])]
    explain_filter: bool,
    /// Order of the rows [default: expires; none, as they come, for ndjson and csv]
    #[arg(long, value_enum, value_name = "KEY")]
    sort: Option<SortKey>,
    /// Turn the order round
    #[arg(long)]
    reverse: bool,
    /// Show at most this many rows
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Columns of a table or csv, by JSON key, or local and remote for address:port
    #[arg(long, value_name = "A,B,C", value_delimiter = ',', value_parser = parse_column)]
    columns: Vec<&'static Column>,
    /// Leave out the header line, and the table's last line
    #[arg(long)]
    no_header: bool,
    /// Print the number of rows only
    #[arg(long)]
    count: bool,
    /// Print nothing: exit code 0 if there is any, 1 if none
    #[arg(short, long)]
    quiet: bool,
    /// Which interface of the kernel to ask
    #[arg(long, value_enum, default_value_t = SourceArg::Auto, value_name = "SOURCE")]
    #[arg(conflicts_with_all = ["record", "replay"])]
    source: SourceArg,
    /// Write down what the kernel says and all that the answer depends on
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Replace the file of --record where it exists
    #[arg(long, requires = "record")]
    force: bool,
    /// Answer from such a file instead of the kernel
    #[arg(long, value_name = "FILE", conflicts_with = "record")]
    replay: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SourceArg {
    /// sock_diag, and procfs where that is refused
    Auto,
    /// sock_diag alone
    #[value(name = "sock_diag")]
    SockDiag,
    /// /proc/net/tcp and tcp6: slower, times in steps of 10 ms, no cookie, mark or interface
    Procfs,
}

impl From<SourceArg> for Choice {
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
    /// As the kernel gives them
    None,
}

fn parse_column(key: &str) -> Result<&'static Column, String> {
    Column::find(key).ok_or_else(|| {
        let keys: Vec<_> = Column::keys().collect();
        format!("no such column; there are {}", keys.join(", "))
    })
}

/// Answers.
///
/// # Errors
/// See [`CommandError`].
pub fn run(args: &ListArgs, global: &GlobalArgs, context: &mut Context) -> Result<Answer, CommandError> {
    let format = global.format();
    check(args, format)?;
    let mut source = match (&args.record, &args.replay) {
        (Some(path), _) => Source::recorded_kernel(path, args.force)?,
        (_, Some(path)) => Source::replay(path)?,
        (None, None) => Source::kernel(args.source.into())?,
    };
    let query = Query::new(&args.selection, global, source.facts(), !(args.count || args.quiet))?;
    // JSON has its warnings in the document as well.
    context.warn(&query.warnings);
    let answer = if args.explain_filter {
        let text = |filter: &Filter| (*filter != Filter::TRUE).then(|| filter.to_string());
        let by_kernel = text(&bytecode::judged_by_kernel(&query.filter));
        let left = text(&bytecode::left_over(&query.filter));
        view::list::explain(context.out, text(&query.filter).as_deref(), by_kernel.as_deref(), left.as_deref())?;
        Ok(Answer::Yes)
    } else if args.quiet {
        quiet(&query, &mut source, context)
    } else if args.count {
        count(&query, &mut source, context, args.limit)
    } else if matches!(format, Format::Ndjson | Format::Csv) && args.sort.unwrap_or(SortKey::None) == SortKey::None {
        stream(&query, &mut source, context, args, format)
    } else {
        sorted(&query, &mut source, context, args, format)
    };
    // The recording of a failed dump is the bug report of that failure, so it is finished in either case.
    source.finish()?;
    answer
}

/// Combinations that clap cannot judge.
fn check(args: &ListArgs, format: Format) -> Result<(), CommandError> {
    let unsorted =
        args.sort == Some(SortKey::None) || (args.sort.is_none() && matches!(format, Format::Ndjson | Format::Csv));
    if args.reverse && unsorted {
        return Err(CommandError::Usage("'--reverse' needs an order; give --sort expires, local or remote".into()));
    }
    if args.explain_filter && (format != Format::Table || args.source == SourceArg::Procfs) {
        return Err(CommandError::Usage(
            "'--explain-filter' is for reading, and about sock_diag; it goes with no other format or source".into(),
        ));
    }
    if !args.columns.is_empty() && matches!(format, Format::Json | Format::Ndjson) {
        return Err(CommandError::Usage("'--columns' is for tables and csv; JSON records have every key".into()));
    }
    Ok(())
}

fn quiet(query: &Query, source: &mut Source, context: &mut Context) -> Result<Answer, CommandError> {
    let facts = source.facts().clone();
    let records = source.records();
    let (mut listeners, mut any) = (Listeners::default(), false);
    let end = source.walk(query.states, &query.filter, &mut |socket| {
        any |= query.row(&mut listeners, &facts, &socket).is_some();
        // A recording must hold everything.
        if any && !records { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    context.warn(&source.warnings());
    query.directed(&facts)?;
    // One row that passes for sure is enough.
    if any {
        return Ok(Answer::Yes);
    }
    query.judged()?;
    if !end.complete {
        context.warn(&[interrupted()]);
        return Ok(Answer::Incomplete);
    }
    Ok(Answer::No)
}

fn count(
    query: &Query,
    source: &mut Source,
    context: &mut Context,
    limit: Option<usize>,
) -> Result<Answer, CommandError> {
    let facts = source.facts().clone();
    let ((_, count), end) = source.collect(
        query.states,
        &query.filter,
        || (Listeners::default(), 0_usize),
        |(listeners, count), socket| *count += usize::from(query.row(listeners, &facts, &socket).is_some()),
    )?;
    context.warn(&source.warnings());
    query.judged()?;
    query.directed(&facts)?;
    if !end.complete {
        context.warn(&[interrupted()]);
    }
    writeln!(context.out, "{}", count.min(limit.unwrap_or(usize::MAX)))?;
    Ok(Answer::complete(end.complete))
}

fn stream(
    query: &Query,
    source: &mut Source,
    context: &mut Context,
    args: &ListArgs,
    format: Format,
) -> Result<Answer, CommandError> {
    let facts = source.facts().clone();
    context.warn(&gaps(&facts));
    let records = source.records();
    let columns = csv_columns(args);
    let mut out = match format {
        Format::Csv => Stream::csv(context.out, &columns, !args.no_header),
        _ => Stream::ndjson(context.out),
    };
    let mut listeners = Listeners::default();
    let mut left = args.limit.unwrap_or(usize::MAX);
    let mut any = false;
    let mut written = Ok(());
    let end = source.walk(query.states, &query.filter, &mut |socket| {
        if left > 0
            && written.is_ok()
            && let Some(row) = query.row(&mut listeners, &facts, &socket)
        {
            any = true;
            left -= 1;
            written = out.write(&row, &facts);
        }
        // A recording must hold everything, whether or not anybody still reads the rows.
        let enough = (left == 0 || written.is_err()) && !records;
        if enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    written?;
    // What came before a failure is shown; a header alone is not.
    if any || (end.is_ok() && query.judged().is_ok()) {
        out.finish()?;
    }
    let end = end?;
    context.warn(&source.warnings());
    query.judged()?;
    if !end.complete {
        context.warn(&[interrupted()]);
    }
    Ok(Answer::complete(end.complete && gaps(&facts).is_empty()))
}

fn csv_columns(args: &ListArgs) -> Vec<&'static Column> {
    if args.columns.is_empty() { RECORD_COLUMNS.iter().collect() } else { args.columns.clone() }
}

fn sorted(
    query: &Query,
    source: &mut Source,
    context: &mut Context,
    args: &ListArgs,
    format: Format,
) -> Result<Answer, CommandError> {
    let facts = source.facts().clone();
    let ((_, mut rows), end) = source.collect(
        query.states,
        &query.filter,
        || (Listeners::default(), vec![]),
        |(listeners, rows), socket| rows.extend(query.row(listeners, &facts, &socket)),
    )?;
    query.judged()?;
    sort(&mut rows, args.sort.unwrap_or(SortKey::Expires), args.reverse);
    let total = rows.len();
    rows.truncate(args.limit.unwrap_or(usize::MAX));

    let mut warnings = gaps(&facts);
    let complete = end.complete && warnings.is_empty();
    if !end.complete {
        warnings.push(interrupted());
    }
    warnings.extend(source.warnings());
    context.warn(&warnings);
    warnings.splice(..0, query.warnings.iter().cloned());
    match format {
        Format::Json => {
            let envelope = Envelope { schema: "twtool.list/1", facts: &facts, complete, warnings: &warnings };
            view::list::document(context.out, envelope, source.origin().name(), &rows)?;
        }
        Format::Table => {
            let chosen = if args.columns.is_empty() {
                table_columns(query.states.contains(TcpState::FinWait2))
            } else {
                args.columns.clone()
            };
            let table = ListTable { rows: &rows, facts: &facts, columns: &chosen, total, header: !args.no_header };
            view::list::table(context.out, &table, context.look)?;
        }
        Format::Ndjson => view::list::ndjson(context.out, &rows, &facts)?,
        Format::Csv => view::list::csv(context.out, &rows, &facts, &csv_columns(args), !args.no_header)?,
    }
    Ok(Answer::complete(complete))
}

fn sort(rows: &mut [Row], key: SortKey, reverse: bool) {
    match key {
        SortKey::None => return,
        SortKey::Expires => rows.sort_unstable_by(Row::by_expires),
        SortKey::Local => rows.sort_unstable_by(Row::by_local),
        SortKey::Remote => rows.sort_unstable_by(Row::by_remote),
    }
    if reverse {
        rows.reverse();
    }
}
