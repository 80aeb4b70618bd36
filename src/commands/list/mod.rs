//! `twtool list`: the timewait buckets of this network namespace, or of others. What was typed; how each kind of answer is
//! made from one namespace is in `one`, from several in `many`, how it is printed where it was gathered first in `rows`.

mod columns;
mod many;
mod one;
mod rows;

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use self::columns::ColumnParser;
use self::rows::Limit;
use super::netns::{ManyNetnsArgs, Where};
use super::selection::SelectionArgs;
use super::{Answer, CommandError, Context, Format, GlobalArgs};
use crate::model::row::Order;
use crate::source::Choice;
use crate::sys;
use crate::view::column::Column;

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
  twtool list --netns web                          in the network namespace web of `ip netns`
  twtool list --netns 4711 --local-port 8080       in that of process 4711
  twtool list --all-netns -o ndjson | jq -r .netns_name | sort | uniq -c
  twtool list --record bug.twrec                   keep what the kernel said, for --replay
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
    /// Reverse the sort order
    #[arg(long)]
    reverse: bool,
    /// Show at most this many rows
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Columns of a table or csv, by JSON key, or local and remote for address:port
    #[arg(long, value_name = "A,B,C", value_delimiter = ',', value_parser = ColumnParser)]
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
    /// Read from a recording instead of the kernel
    #[arg(long, value_name = "FILE", conflicts_with = "record")]
    replay: Option<PathBuf>,
    #[command(flatten)]
    namespaces: ManyNetnsArgs,
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

/// Answers.
///
/// # Errors
/// See [`CommandError`].
pub fn run(args: &ListArgs, global: &GlobalArgs, context: &mut Context) -> Result<Answer, CommandError> {
    check(args, global.format())?;
    match args.namespaces.find()? {
        Where::Here => one::answer(args, global, context),
        Where::In(netns) => sys::netns::within(&netns, || one::answer(args, global, context))?,
        Where::Among(found) => many::answer(&found, args, global, context),
    }
}

impl ListArgs {
    /// Whether rows are written as they come.
    fn streams(&self, format: Format) -> bool {
        matches!(format, Format::Ndjson | Format::Csv) && self.sort.unwrap_or(SortKey::None) == SortKey::None
    }

    /// The order of rows that are not written as they come.
    fn order(&self, format: Format) -> Option<Order> {
        let usual = if self.streams(format) { SortKey::None } else { SortKey::Expires };
        match self.sort.unwrap_or(usual) {
            SortKey::None => None,
            SortKey::Expires => Some(Order::Expires),
            SortKey::Local => Some(Order::Local),
            SortKey::Remote => Some(Order::Remote),
        }
    }

    /// How many rows are shown, from which end.
    fn shown(&self) -> Limit {
        Limit { rows: self.limit.unwrap_or(usize::MAX), from_the_end: self.reverse }
    }

    /// The columns of a table, where the answer is one; rows may be in another state than TIME_WAIT.
    fn table_columns(&self, format: Format, with_state: bool) -> Vec<&'static Column> {
        match format {
            Format::Table if self.columns.is_empty() => Column::of_table(self.namespaces.several(), with_state),
            Format::Table => self.columns.clone(),
            Format::Json | Format::Ndjson | Format::Csv => vec![],
        }
    }

    /// The columns of csv.
    fn csv_columns(&self) -> Vec<&'static Column> {
        if self.columns.is_empty() { Column::of_record().collect() } else { self.columns.clone() }
    }
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
    args.namespaces.one_with("--record", args.record.is_some())?;
    args.namespaces.one_with("--explain-filter", args.explain_filter)
}
