//! Prints the plan of `twtool kill` with its risks, and the results of the removals, in each output format.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::ops::Range;

use serde::Serialize;

use super::column::Column;
use super::human;
use super::json::{self, Envelope};
use super::list;
use super::record::SocketRecord;
use super::style::{Meaning, TextStyle};
use super::table;
use super::text::{self, Text};
use super::value::Value;
use crate::model::facts::Facts;
use crate::model::removal::RemovalResult;
use crate::model::target::{Target, count_by_kind};

/// The maximum number of rows that a plan shows.
const SHOWN: usize = 20;

/// The risks of removing a TIME_WAIT bucket, one line each.
const RISKS: [&str; 2] = [
    "risk: an old, delayed segment can reach a new connection (RFC 1337)",
    "risk: a peer that missed the last ACK gets a RST (RFC 9293, section 3.10.7.4)",
];

/// The risk of removing an orphan, a closing socket without a process.
const ORPHAN_RISK: &str = "risk: the peer of an orphan may get a RST, and loses the data that it has not received yet";

/// The sockets that `twtool kill` is about to remove.
pub struct Plan<'a> {
    /// The selected buckets and orphans, in any order.
    pub targets: &'a [Target],
    /// The facts that name interfaces and services.
    pub facts: &'a Facts,
    /// Whether sockets can be in another state than TIME_WAIT.
    pub with_state: bool,
}

/// Writes the first sockets of the plan in the order of `twtool list`, and the risks of removing them.
pub fn plan(out: &mut (dyn Write + Send), plan: &Plan, style: TextStyle) -> io::Result<()> {
    let Plan { targets, facts, with_state } = *plan;
    let mut sorted: Vec<&Target> = targets.iter().collect();
    sorted.sort_unstable_by(|a, b| a.compare(b));
    let shown = &sorted[..targets.len().min(SHOWN)];
    let columns = Column::of_table(false, with_state);
    let cells = |target: &&Target| {
        let record = SocketRecord::new(&target.socket, target.direction, facts);
        let cell = |column: &&'static Column| {
            let mut text = Text::default();
            column.append_cell(&record, &mut text);
            String::from(text)
        };
        columns.iter().map(cell).collect::<Vec<String>>()
    };
    let rows: Vec<Vec<String>> = shown.iter().map(cells).collect();
    table::write(out, &list::headings(&columns), true, &rows, style)?;
    let cut = if shown.len() < targets.len() { format!(", the first {} shown", shown.len()) } else { String::new() };
    let line = format!("selected: {}{cut}", count_by_kind(targets.iter()));
    writeln!(out, "{}", style.paint(Meaning::Aside, line))?;
    let (orphans, buckets) = numbers(targets);
    let of_buckets = RISKS.iter().filter(|_| buckets > 0);
    let of_orphans = [ORPHAN_RISK].into_iter().filter(|_| orphans > 0);
    of_buckets.copied().chain(of_orphans).try_for_each(|risk| human::break_lines(out, risk, "", "  ", style.width))
}

/// The numbers of orphans and of buckets.
fn numbers(targets: &[Target]) -> (usize, usize) {
    let orphans = targets.iter().filter(|target| target.is_orphan()).count();
    (orphans, targets.len() - orphans)
}

/// Writes the question whether to remove the sockets. The user types the answer on the same line.
pub fn question(out: &mut (dyn Write + Send), targets: &[Target]) -> io::Result<()> {
    let (orphans, buckets) = numbers(targets);
    let count = |number: usize, word: &str| format!("{number} {word}{}", if number == 1 { "" } else { "s" });
    let parts = [(buckets, "bucket"), (orphans, "orphan")].into_iter().filter(|(number, _)| *number > 0);
    let parts: Vec<String> = parts.map(|(number, word)| count(number, word)).collect();
    write!(out, "Remove {}? [y/N] ", parts.join(" and "))?;
    out.flush()
}

/// The results of a removal.
pub struct RemovalReport<'a> {
    /// The selected sockets.
    pub targets: &'a [Target],
    /// The result for each socket, in the order of `targets`.
    pub outcomes: &'a [RemovalResult],
    /// The facts that name interfaces and services.
    pub facts: &'a Facts,
    /// Whether `--fin-wait-2` was given.
    pub fin_wait_2: bool,
    /// Whether `--orphans` was given.
    pub orphans: bool,
    /// Whether `--dry-run` was given.
    pub dry_run: bool,
}

impl<'a> RemovalReport<'a> {
    fn count(&self, outcome: RemovalResult) -> usize {
        self.outcomes.iter().filter(|other| **other == outcome).count()
    }

    /// The sockets that could not be removed, each with its errno, in the order of `twtool list`.
    fn failed(&self) -> Vec<(&'a Target, Option<&'static str>)> {
        let failed = self.targets.iter().zip(self.outcomes).filter_map(|(target, outcome)| match outcome {
            RemovalResult::Failed(errno) => Some((target, *errno)),
            _ => None,
        });
        let mut failed: Vec<_> = failed.collect();
        failed.sort_by(|a, b| a.0.compare(b.0));
        failed
    }
}

/// Writes the summary line: `12 destroyed, 1 already gone, 0 failed`.
pub fn summary(out: &mut (dyn Write + Send), report: &RemovalReport, style: TextStyle) -> io::Result<()> {
    if report.targets.is_empty() {
        let fin_wait_2 = if report.fin_wait_2 { " or FIN_WAIT_2" } else { "" };
        return writeln!(
            out,
            "no TIME_WAIT{fin_wait_2} socket {}matches",
            if report.orphans { "or orphan " } else { "" }
        );
    }
    if report.dry_run {
        return writeln!(out, "dry run: nothing was removed");
    }
    let failed = report.failed();
    let (destroyed, gone) = (report.count(RemovalResult::Destroyed), report.count(RemovalResult::Gone));
    let errnos: BTreeSet<_> = failed.iter().map(|(_, errno)| errno.unwrap_or("no answer")).collect();
    let errnos: Vec<_> = errnos.into_iter().collect();
    let why = if errnos.is_empty() { String::new() } else { format!(" ({})", errnos.join(", ")) };
    let line = format!("{destroyed} destroyed, {gone} already gone, {} failed{why}", failed.len());
    let meaning = if failed.is_empty() { Meaning::Good } else { Meaning::Bad };
    writeln!(out, "{}", style.paint(meaning, line))
}

#[derive(Serialize)]
struct Payload<'a> {
    matched: usize,
    destroyed: usize,
    gone: usize,
    failed: Vec<FailureRecord<'a>>,
    dry_run: bool,
}

fn record_of<'a>(target: &'a Target, facts: &'a Facts) -> SocketRecord<'a> {
    SocketRecord::new(&target.socket, target.direction, facts)
}

#[derive(Serialize)]
struct FailureRecord<'a> {
    record: SocketRecord<'a>,
    errno: Option<&'static str>,
}

/// Writes the JSON document.
pub fn document(out: &mut (dyn Write + Send), envelope: Envelope, report: &RemovalReport) -> io::Result<()> {
    let record = |(target, errno)| FailureRecord { record: record_of(target, report.facts), errno };
    let payload = Payload {
        matched: report.targets.len(),
        destroyed: report.count(RemovalResult::Destroyed),
        gone: report.count(RemovalResult::Gone),
        failed: report.failed().into_iter().map(record).collect(),
        dry_run: report.dry_run,
    };
    json::document(out, envelope, payload)
}

fn word(word: Option<&'static str>) -> Value<'static> {
    word.map_or(Value::Unknown, Value::Word)
}

/// Writes one JSON record per socket: the keys of `twtool list`, `outcome` and `errno`.
pub fn ndjson(out: &mut (dyn Write + Send), report: &RemovalReport) -> io::Result<()> {
    lines(out, report, &|record, outcome, text| {
        record.append_json(text);
        // Remove the closing brace to add two keys.
        text.truncate(text.len() - 1);
        text.push_str(",\"outcome\":");
        Value::Word(outcome.name()).append_json(text);
        text.push_str(",\"errno\":");
        word(outcome.errno()).append_json(text);
        text.push_str("}\n");
    })
}

/// Writes one csv line per socket, with a header line.
pub fn csv(out: &mut (dyn Write + Send), report: &RemovalReport) -> io::Result<()> {
    let keys = Column::of_record().map(|column| column.key).chain(["outcome", "errno"]);
    writeln!(out, "{}", keys.collect::<Vec<_>>().join(","))?;
    lines(out, report, &|record, outcome, text| {
        record.append_csv(text);
        text.push(',');
        Value::append_csv_line([Value::Word(outcome.name()), word(outcome.errno())], text);
    })
}

fn lines(
    out: &mut (dyn Write + Send),
    report: &RemovalReport,
    append: &(impl Fn(&SocketRecord, RemovalResult, &mut Text) + Sync),
) -> io::Result<()> {
    text::write(out, report.targets.len(), &|range: Range<usize>, text: &mut Text| {
        for (target, outcome) in report.targets[range.clone()].iter().zip(&report.outcomes[range]) {
            append(&record_of(target, report.facts), *outcome, text);
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::facts::tests::facts;
    use crate::model::row::tests::row;
    use crate::model::socket::{Socket, TcpState};
    use crate::model::target::tests::full;

    const PLAIN: TextStyle = TextStyle { color: false, width: None, unicode: true };

    fn text(write: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> String {
        let mut out = vec![];
        write(&mut out).expect("written");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn a_long_plan_is_cut_and_shows_the_total() {
        let facts = facts();
        let mut rows = vec![row("10.0.0.1", 80, "10.0.0.2", 40000); SHOWN + 5];
        rows[SHOWN + 1].bucket.fin_wait_2 = true;
        let mut rows: Vec<Target> = rows.into_iter().map(Target::from).collect();
        let shown =
            |targets: &[Target]| text(|out| plan(out, &Plan { targets, facts: &facts, with_state: true }, PLAIN));
        let long = shown(&rows);
        assert_eq!(long.matches("10.0.0.2:40000").count(), SHOWN);
        assert!(long.contains("\nselected: 24 TIME_WAIT, 1 FIN_WAIT_2, the first 20 shown\nrisk: "), "{long}");
        let short = shown(&rows[..2]);
        assert!(short.contains("\nselected: 2 TIME_WAIT\n"), "{short}");
        assert!(short.contains("RFC 1337") && short.contains("RFC 9293") && !short.contains("orphan"), "{short}");
        rows[1].socket = Socket::Full(full(TcpState::FinWait1, 0));
        let both = shown(&rows[..2]);
        assert!(
            both.contains("selected: 1 TIME_WAIT, 1 orphan in FIN_WAIT_1\n")
                && both.contains("a RST, and loses the data"),
            "{both}"
        );
        assert!(both.lines().any(|line| line.starts_with("fin-wait-1") && line.ends_with('-')), "no time: {both}");
        assert_eq!(text(|out| question(out, &rows[..2])), "Remove 1 bucket and 1 orphan? [y/N] ");
        assert_eq!(text(|out| question(out, &rows[2..4])), "Remove 2 buckets? [y/N] ");
    }

    #[test]
    fn every_outcome_is_counted_and_failures_keep_their_errno() {
        let facts = facts();
        let rows: Vec<_> = (1..=5).map(|port| Target::from(row("10.0.0.1", port, "10.0.0.2", 40000))).collect();
        let outcomes = [
            RemovalResult::Destroyed,
            RemovalResult::Failed(None),
            RemovalResult::Gone,
            RemovalResult::Destroyed,
            RemovalResult::Failed(Some("EINVAL")),
        ];
        let report = RemovalReport {
            targets: &rows,
            outcomes: &outcomes,
            facts: &facts,
            fin_wait_2: false,
            orphans: false,
            dry_run: false,
        };
        assert_eq!(
            text(|out| summary(out, &report, PLAIN)),
            "2 destroyed, 1 already gone, 2 failed (EINVAL, no answer)\n"
        );
        let envelope = Envelope { schema: "twtool.kill/1", facts: &facts, complete: true, warnings: &[] };
        let document: serde_json::Value =
            serde_json::from_str(&text(|out| document(out, envelope, &report))).expect("json");
        assert_eq!(
            (&document["matched"], &document["destroyed"], &document["gone"]),
            (&5.into(), &2.into(), &1.into())
        );
        let failed = document["failed"].as_array().expect("a list");
        assert_eq!((&failed[0]["record"]["local_port"], &failed[0]["errno"]), (&2.into(), &serde_json::Value::Null));
        assert_eq!((&failed[1]["record"]["local_port"], &failed[1]["errno"]), (&5.into(), &"EINVAL".into()));
        let lines = text(|out| ndjson(out, &report));
        let line = |n| serde_json::from_str::<serde_json::Value>(lines.lines().nth(n).expect("a line")).expect("json");
        assert_eq!((&line(0)["outcome"], &line(0)["errno"]), (&"destroyed".into(), &serde_json::Value::Null));
        assert_eq!((&line(4)["outcome"], &line(4)["errno"]), (&"failed".into(), &"EINVAL".into()));
        let table = text(|out| csv(out, &report));
        assert!(table.lines().all(|line| line.split(',').count() == Column::of_record().count() + 2), "{table}");
        assert!(table.ends_with(",failed,EINVAL\n"), "{table}");
    }

    #[test]
    fn an_empty_selection_and_a_dry_run_are_reported() {
        let facts = facts();
        let none = RemovalReport {
            targets: &[],
            outcomes: &[],
            facts: &facts,
            fin_wait_2: false,
            orphans: false,
            dry_run: true,
        };
        assert_eq!(text(|out| summary(out, &none, PLAIN)), "no TIME_WAIT socket matches\n");
        let none = RemovalReport { orphans: true, ..none };
        assert_eq!(text(|out| summary(out, &none, PLAIN)), "no TIME_WAIT socket or orphan matches\n");
        let none = RemovalReport { fin_wait_2: true, ..none };
        assert_eq!(text(|out| summary(out, &none, PLAIN)), "no TIME_WAIT or FIN_WAIT_2 socket or orphan matches\n");
        let rows = [Target::from(row("10.0.0.1", 80, "10.0.0.2", 40000))];
        let dry = RemovalReport { targets: &rows, outcomes: &[RemovalResult::Matched], ..none };
        assert_eq!(text(|out| summary(out, &dry, PLAIN)), "dry run: nothing was removed\n");
    }
}
