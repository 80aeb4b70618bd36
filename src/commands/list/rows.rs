//! Rows that were gathered before they are printed: their order, and each format.

use super::{ListArgs, SortKey};
use crate::commands::{Answer, CommandError, Context, Format};
use crate::model::facts::Facts;
use crate::model::row::Row;
use crate::view;
use crate::view::column::table_columns;
use crate::view::json::Envelope;
use crate::view::list::ListTable;

/// Rows, of one network namespace or of several.
#[derive(Clone)]
pub(super) struct Gathered {
    pub(super) rows: Vec<Row>,
    /// The facts of each namespace; rows have its place in here. At least one.
    pub(super) facts: Vec<Facts>,
    /// Whether rows may be in another state than TIME_WAIT.
    pub(super) with_state: bool,
    /// The interface of the kernel that they came from.
    pub(super) source: &'static str,
    pub(super) complete: bool,
    /// What is to be said of the words that were typed; it has been said on stderr.
    pub(super) typed: Vec<String>,
    /// What else is to be said.
    pub(super) warnings: Vec<String>,
}

impl Gathered {
    /// Sorts and prints them.
    pub(super) fn answer(self, args: &ListArgs, format: Format, context: &mut Context) -> Result<Answer, CommandError> {
        let Self { mut rows, facts, with_state, source, complete, typed, warnings } = self;
        let default = if args.streams(format) { SortKey::None } else { SortKey::Expires };
        sort(&mut rows, args.sort.unwrap_or(default), args.reverse);
        let total = rows.len();
        rows.truncate(args.limit.unwrap_or(usize::MAX));

        context.warn(&warnings);
        match format {
            Format::Json => {
                let warnings = [typed, warnings].concat();
                let joint = joint(&facts, args.namespaces.several());
                let envelope = Envelope { schema: "twtool.list/1", facts: &joint, complete, warnings: &warnings };
                view::list::document(context.out, envelope, source, &rows, &facts)?;
            }
            Format::Table => {
                let chosen = if args.columns.is_empty() {
                    table_columns(args.namespaces.several(), with_state)
                } else {
                    args.columns.clone()
                };
                let table = ListTable { rows: &rows, facts: &facts, columns: &chosen, total, header: !args.no_header };
                view::list::table(context.out, &table, context.look)?;
            }
            Format::Ndjson => view::list::ndjson(context.out, &rows, &facts)?,
            Format::Csv => view::list::csv(context.out, &rows, &facts, &args.csv_columns(), !args.no_header)?,
        }
        Ok(Answer::complete(complete))
    }
}

/// What is said of all of them: the first one's facts, of the time when reading began, and of no namespace where it may be
/// about several.
fn joint(facts: &[Facts], several: bool) -> Facts {
    let mut joint = facts[0].clone();
    if several {
        joint.netns = None;
        joint.netns_name = None;
        joint.taken_at = facts.iter().map(|facts| facts.taken_at).min().unwrap_or(joint.taken_at);
    }
    joint
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
