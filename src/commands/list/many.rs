//! The list of several network namespaces: each is read on a thread inside it, as many at a time as there are cores, and
//! their rows are joined in the order of the namespaces.
//!
//! What one of them refuses is said, and the others are listed. Only where none answers is that the answer.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use super::ListArgs;
use super::one;
use super::rows::Gathered;
use crate::commands::netns::{HandOver, Heard, in_order};
use crate::commands::selection::Query;
use crate::commands::{Answer, CommandError, Context, Format, GlobalArgs};
use crate::source::{Origin, Source};
use crate::sys::interfaces;
use crate::sys::netns::{self, Found, OpenNetns};
use crate::view::list::Stream;

/// Rows of a namespace that are handed over together, where they are written as they come.
const PIECE: usize = 1024;

/// Answers from all of them.
pub(super) fn answer(
    found: &Found,
    args: &ListArgs,
    global: &GlobalArgs,
    context: &mut Context,
) -> Result<Answer, CommandError> {
    let format = global.format();
    let reader = Reader { found, args, global, interfaces: interfaces(found, args) };
    if args.quiet {
        quiet(&reader, context)
    } else if args.count {
        count(&reader, context)
    } else if args.streams(format) {
        stream(&reader, context, format)
    } else {
        sorted(&reader, context, format)
    }
}

fn quiet(reader: &Reader, context: &mut Context) -> Result<Answer, CommandError> {
    let mut any = false;
    let told = reader.read(&mut |part| {
        any = part.rows.total() > 0;
        if any { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    told.warn(context);
    Ok(match (any, told.complete) {
        // One row is enough.
        (true, _) => Answer::Yes,
        (false, true) => Answer::No,
        (false, false) => Answer::Incomplete,
    })
}

fn count(reader: &Reader, context: &mut Context) -> Result<Answer, CommandError> {
    let mut count = 0;
    let told = reader.read(&mut |part| {
        count += part.rows.total();
        ControlFlow::Continue(())
    })?;
    told.warn(context);
    writeln!(context.out, "{}", count.min(reader.args.limit.unwrap_or(usize::MAX)))?;
    Ok(Answer::complete(told.complete))
}

fn stream(reader: &Reader, context: &mut Context, format: Format) -> Result<Answer, CommandError> {
    let columns = reader.args.csv_columns();
    let mut out = match format {
        Format::Csv => Stream::csv(context.out, &columns, !reader.args.no_header),
        _ => Stream::ndjson(context.out),
    };
    let mut left = reader.args.limit.unwrap_or(usize::MAX);
    let mut written = Ok(());
    let mut unnamed = BTreeSet::new();
    let told = reader.read(&mut |part| {
        for row in part.rows.iter().take(left) {
            written = out.write(row, &part.facts[0]);
            if written.is_err() {
                return ControlFlow::Break(());
            }
        }
        unnamed.extend(part.facts[0].interfaces.failure());
        left = left.saturating_sub(part.rows.len());
        if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    written?;
    out.finish()?;
    told.warn(context);
    let unnamed: Vec<String> = unnamed.into_iter().collect();
    context.warn(&unnamed);
    Ok(Answer::complete(told.complete && unnamed.is_empty()))
}

fn sorted(reader: &Reader, context: &mut Context, format: Format) -> Result<Answer, CommandError> {
    let mut all: Option<Gathered> = None;
    let told = reader.read(&mut |mut part| {
        part.facts[0].interfaces.keep(part.rows.iter().filter_map(|row| row.bucket.interface));
        let Some(all) = &mut all else {
            all = Some(part);
            return ControlFlow::Continue(());
        };
        let place = u32::try_from(all.facts.len()).unwrap_or(u32::MAX);
        all.rows.append(&part.rows, place);
        all.facts.append(&mut part.facts);
        all.survey = std::mem::take(&mut all.survey).joined(part.survey);
        if part.source != all.source {
            all.source = Origin::Procfs.name();
        }
        ControlFlow::Continue(())
    })?;
    context.warn(&told.typed);
    let Told { complete, typed, warnings } = told;
    let Some(all) = all else {
        // Not even one's own was found.
        context.warn(&warnings);
        return Ok(Answer::Incomplete);
    };
    Gathered { complete, typed, warnings, ..all }.answer(reader.args, format, context)
}

/// What is to be said of an answer.
struct Told {
    complete: bool,
    /// Of the words that were typed.
    typed: Vec<String>,
    /// Of the namespaces.
    warnings: Vec<String>,
}

impl Told {
    fn warn(&self, context: &mut Context) {
        context.warn(&self.typed);
        context.warn(&self.warnings);
    }
}

struct Reader<'a> {
    found: &'a Found,
    args: &'a ListArgs,
    global: &'a GlobalArgs,
    /// Those of every namespace, where the words that were typed may name one: `dev eth0` passes nothing where there is no
    /// eth0, and is a mistake only where no namespace has one.
    interfaces: BTreeSet<String>,
}

fn interfaces(found: &Found, args: &ListArgs) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    if args.selection.may_name_an_interface() {
        let list = |netns: &OpenNetns, hand_over: &mut HandOver<_>| {
            // One that cannot be entered says so when it is read.
            let _ = hand_over(netns::within(netns, || interfaces::here().list()).unwrap_or_default());
        };
        in_order(&found.namespaces, &list, &mut |_, here| {
            names.extend(here.into_values());
            ControlFlow::Continue(())
        });
    }
    names
}

impl Reader<'_> {
    /// Hands over what each namespace has, in their order, until told to stop.
    ///
    /// # Errors
    /// The first one's, where no namespace answers: then it is what was typed, or it holds for all of them.
    fn read(&self, each: &mut dyn FnMut(Gathered) -> ControlFlow<()>) -> Result<Told, CommandError> {
        let mut heard = Heard::new(self.found);
        let mut typed = None;
        let read = |netns: &OpenNetns, hand_over: &mut HandOver<_>| {
            let last = self.read_one(netns, hand_over);
            let _ = hand_over(last);
        };
        in_order(&self.found.namespaces, &read, &mut |netns, part| {
            let Some(mut part) = heard.hear(netns, part) else { return ControlFlow::Continue(()) };
            typed.get_or_insert(std::mem::take(&mut part.typed));
            heard.told(netns, part.complete, part.warnings.drain(..));
            each(part)
        });
        let (complete, warnings) = heard.end()?;
        Ok(Told { complete, typed: typed.unwrap_or_default(), warnings })
    }

    /// Reads one; where rows are written as they come, they are handed over by and by, and the last of them returned.
    fn read_one(
        &self,
        netns: &OpenNetns,
        hand_over: &mut HandOver<Result<Gathered, CommandError>>,
    ) -> Result<Gathered, CommandError> {
        let gathers = self.args.count || self.args.quiet || !self.args.streams(self.global.format());
        netns::within(netns, || {
            let mut source = Source::kernel(self.args.source.into())?;
            let mut names = source.facts().clone();
            names.interfaces.add_absent(&self.interfaces);
            let query = Query::new(&self.args.selection, self.global, &names, !(self.args.count || self.args.quiet))?;
            if self.args.count || self.args.quiet {
                query.directed(source.facts())?;
            }
            if gathers {
                let format = self.global.format();
                let columns = self.args.table_columns(format, query.with_state());
                one::gather(&query, &mut source, &columns, self.args.order(format), self.args.shown())
            } else {
                one::gather_by_and_by(&query, &mut source, PIECE, &mut |piece| hand_over(Ok(piece)))
            }
        })?
    }
}
