//! The list of one network namespace, or of a recording: each kind of answer from one source.

use std::ops::ControlFlow;
use std::slice;

use super::ListArgs;
use super::rows::{Gathered, Limit, OrderedRows};
use crate::commands::selection::Query;
use crate::commands::{Answer, CommandError, Context, Format, GlobalArgs, interrupted};
use crate::filter::Filter;
use crate::model::listeners::Listeners;
use crate::model::row::Order;
use crate::model::socket::Socket;
use crate::sock_diag::bytecode;
use crate::source::{Source, WalkEnd};
use crate::view;
use crate::view::column::Column;
use crate::view::list::{Stream, Survey};

/// Answers from the calling thread's network namespace, or from the recording that was asked for.
pub(super) fn answer(args: &ListArgs, global: &GlobalArgs, context: &mut Context) -> Result<Answer, CommandError> {
    let format = global.format();
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
    } else if args.streams(format) {
        stream(&query, &mut source, context, args, format)
    } else {
        let columns = args.table_columns(format, query.with_state());
        gather(&query, &mut source, &columns, args.order(format), args.shown())
            .and_then(|gathered| gathered.answer(args, format, context))
    };
    // The recording of a failed dump is the bug report of that failure, so it is finished in either case.
    source.finish()?;
    answer
}

fn quiet(query: &Query, source: &mut Source, context: &mut Context) -> Result<Answer, CommandError> {
    let facts = source.facts().clone();
    let records = source.records();
    let (mut listeners, mut any) = (Listeners::default(), false);
    let end = source.walk(query.states, &query.filter, &mut |socket| {
        any |= query.row(&mut listeners, &facts, socket).is_some();
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
    let (count, end) = if query.everything {
        // Nothing of a bucket is looked at then, and hardly anything decoded.
        let count = |count: &mut usize, socket: &Socket| *count += usize::from(matches!(socket, Socket::Bucket(_)));
        source.collect(query.states, &query.filter, || 0, count)?
    } else {
        let ((_, count), end) = source.collect(
            query.states,
            &query.filter,
            || (Listeners::default(), 0_usize),
            |(listeners, count), socket| *count += usize::from(query.row(listeners, &facts, socket).is_some()),
        )?;
        (count, end)
    };
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
    let records = source.records();
    let columns = args.csv_columns();
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
            && let Some(row) = query.row(&mut listeners, &facts, socket)
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
    let (gaps, complete) = query.direction_gaps(&facts);
    context.warn(&gaps);
    Ok(Answer::complete(end.complete && complete))
}

/// All of its rows, with what is to be said about them.
pub(super) fn gather(
    query: &Query,
    source: &mut Source,
    columns: &[&'static Column],
    order: Option<Order>,
    limit: Limit,
) -> Result<Gathered, CommandError> {
    let facts = source.facts().clone();
    let ((_, survey, rows), end) = source.collect(
        query.states,
        &query.filter,
        || {
            (
                Listeners::default(),
                Survey::new(columns.to_vec(), slice::from_ref(&facts)),
                OrderedRows::new(order, limit),
            )
        },
        |(listeners, survey, rows), socket| {
            if let Some(row) = query.row(listeners, &facts, socket) {
                survey.add(&row, &facts);
                rows.push(row);
            }
        },
    )?;
    Ok(Gathered { survey, ..gathered(query, source, rows, end)? })
}

/// The same, this many rows at a time, and the last of them returned. As in [`stream`], no dump is repeated.
pub(super) fn gather_by_and_by(
    query: &Query,
    source: &mut Source,
    at_a_time: usize,
    hand_over: &mut (dyn FnMut(Gathered) -> ControlFlow<()> + Send),
) -> Result<Gathered, CommandError> {
    let facts = source.facts().clone();
    let whole = WalkEnd { complete: true };
    // What is to be said comes with the last.
    let empty =
        Gathered { complete: true, warnings: vec![], ..gathered(query, source, OrderedRows::default(), whole)? };
    let (mut listeners, mut rows) = (Listeners::default(), OrderedRows::default());
    let end = source.walk(query.states, &query.filter, &mut |socket| {
        if let Some(row) = query.row(&mut listeners, &facts, socket) {
            rows.push(row);
        }
        if rows.len() < at_a_time {
            ControlFlow::Continue(())
        } else {
            hand_over(Gathered { rows: std::mem::take(&mut rows), ..empty.clone() })
        }
    })?;
    gathered(query, source, rows, end)
}

fn gathered(query: &Query, source: &Source, rows: OrderedRows, end: WalkEnd) -> Result<Gathered, CommandError> {
    query.judged()?;
    let facts = source.facts().clone();
    // Asked for now, so that the answer can say which names are missing.
    facts.interfaces.look_up(rows.iter().filter_map(|row| row.bucket.interface));
    let (mut warnings, complete) = query.direction_gaps(&facts);
    let complete = end.complete && complete;
    if !end.complete {
        warnings.push(interrupted());
    }
    warnings.extend(source.warnings());
    let source = source.origin().name();
    let survey = Survey::default();
    Ok(Gathered { rows, facts: vec![facts], survey, source, complete, typed: query.warnings.clone(), warnings })
}
