//! Prints buckets with their owners, and formats the names of owners and groups for other pages.

use std::io::{self, Write};

use serde::Serialize;

use super::column::Column;
use super::human;
use super::json::{self, Envelope};
use super::list;
use super::record::SocketRecord;
use super::style::{Meaning, TextStyle};
use super::table::{self, Heading};
use super::text::Text;
use crate::analysis::groups::GroupBy;
use crate::analysis::makers::MakerGroupKey;
use crate::analysis::owner_counts::{EvidenceCount, OwnerGroup};
use crate::model::container::{Container, Runtime};
use crate::model::facts::Facts;
use crate::model::owner::{Evidence, Owner};
use crate::model::row::Row;

/// Rows with their owners.
pub struct OwnedRows<'a> {
    /// The rows.
    pub rows: &'a [&'a Row],
    /// The owners of the rows, in the same order.
    pub owners: &'a [Option<Owner>],
    /// The facts of each network namespace. Each row contains the index of its namespace.
    pub facts: &'a [Facts],
}

#[derive(Serialize)]
struct OwnerRecord<'a> {
    pid: u32,
    pid_namespace: &'static str,
    comm: &'a str,
    unit: Option<&'a str>,
    container: Option<ContainerRecord<'a>>,
    evidence: &'static str,
    candidates: usize,
}

#[derive(Serialize)]
pub(super) struct ContainerRecord<'a> {
    pub(super) runtime: Option<&'static str>,
    pub(super) id: &'a str,
}

impl<'a> ContainerRecord<'a> {
    pub(super) fn new(container: Container<'a>) -> Self {
        Self { runtime: container.runtime.map(Runtime::name), id: container.id }
    }
}

/// `own` if a pid belongs to twtool's own pid namespace, otherwise `initial`.
pub(super) const fn pid_namespace(own: bool) -> &'static str {
    if own { "own" } else { "initial" }
}

impl<'a> OwnerRecord<'a> {
    fn new(owner: &'a Owner) -> Self {
        let process = owner.process();
        Self {
            pid: process.pid,
            pid_namespace: pid_namespace(process.own_pid_namespace),
            comm: &process.comm,
            unit: process.unit(),
            container: process.container().map(ContainerRecord::new),
            evidence: owner.evidence.name(),
            candidates: owner.candidates.len(),
        }
    }
}

impl OwnedRows<'_> {
    fn append_record(&self, i: usize, text: &mut Text) -> io::Result<()> {
        SocketRecord::of_row(self.rows[i], &self.facts[self.rows[i].netns as usize]).append_json(text);
        // Remove the closing brace to add a key.
        text.truncate(text.len() - 1);
        text.push_str(",\"owner\":");
        text.push_str(&json::to_string(&self.owners[i].as_ref().map(OwnerRecord::new))?);
        text.push('}');
        Ok(())
    }

    /// Writes ndjson.
    ///
    /// # Errors
    /// Writing failed.
    pub fn ndjson(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut text = Text::default();
        for i in 0..self.rows.len() {
            self.append_record(i, &mut text)?;
            text.push('\n');
            out.write_all(text.as_bytes())?;
            text.truncate(0);
        }
        Ok(())
    }

    /// Writes a JSON document. `source` is the name of the kernel interface from which the rows were read.
    ///
    /// # Errors
    /// Writing failed.
    pub fn document(&self, out: &mut dyn Write, envelope: Envelope, source: &str) -> io::Result<()> {
        json::open_document(out, envelope)?;
        write!(out, ",\"source\":\"{source}\",\"sockets\":[")?;
        let mut text = Text::default();
        for i in 0..self.rows.len() {
            if i > 0 {
                text.push(',');
            }
            self.append_record(i, &mut text)?;
            out.write_all(text.as_bytes())?;
            text.truncate(0);
        }
        out.write_all(b"]}\n")
    }

    /// Writes a table.
    ///
    /// # Errors
    /// Writing failed.
    pub fn table(
        &self,
        out: &mut (dyn Write + Send),
        columns: &[&'static Column],
        header: bool,
        total: usize,
        style: TextStyle,
    ) -> io::Result<()> {
        if self.rows.is_empty() && total == 0 {
            return if header { list::write_empty(out, self.facts) } else { Ok(()) };
        }
        let heading = |column: &&'static Column| Heading {
            title: column.title,
            right: column.right,
            drop_order: column.drop_order,
        };
        let mut headings: Vec<Heading> = columns.iter().map(heading).collect();
        headings.extend([Heading::new("OWNER"), Heading::new("EVIDENCE")]);
        let row = |i: usize| {
            let record = SocketRecord::of_row(self.rows[i], &self.facts[self.rows[i].netns as usize]);
            let cell = |column: &&'static Column| {
                let mut cell = Text::default();
                column.append_cell(&record, &mut cell);
                String::from(cell)
            };
            let mut cells: Vec<String> = columns.iter().map(cell).collect();
            cells.extend(self::cells(self.owners[i].as_ref()));
            cells
        };
        let rows: Vec<Vec<String>> = (0..self.rows.len()).map(row).collect();
        table::write(out, &headings, header, &rows, style)?;
        if header {
            let certain = |certain| move |owner: &&Owner| owner.evidence.is_certain() == certain;
            let count = |is_certain| self.owners.iter().flatten().filter(certain(is_certain)).count() as u64;
            let owners = totals(count(true), count(false), self.owners.len() as u64);
            let shown = if total > rows.len() { format!("{} of {total} shown: ", rows.len()) } else { String::new() };
            writeln!(out, "{}", style.paint(Meaning::Aside, format!("{shown}{owners}")))?;
        }
        Ok(())
    }
}

/// Says how many buckets have a known owner, an inferred owner, and an unknown owner.
pub(super) fn totals(known: u64, inferred: u64, all: u64) -> String {
    let [unknown, known, inferred] = [all - known - inferred, known, inferred].map(human::with_separators);
    format!("{known} with a known owner, {inferred} with an inferred one, {unknown} unknown")
}

/// Formats an owner as one cell: its name, and the evidence unless it is [`Evidence::Traced`].
#[must_use]
pub fn cell(owner: Option<&Owner>) -> String {
    match owner {
        None => "-".into(),
        Some(owner) if owner.evidence == Evidence::Traced => name(owner),
        Some(owner) => format!("{} {}", name(owner), evidence(owner.evidence, owner.candidates.len())),
    }
}

/// Formats an owner as two cells: its name, and the evidence.
#[must_use]
pub fn cells(owner: Option<&Owner>) -> [String; 2] {
    match owner {
        Some(owner) => [name(owner), evidence(owner.evidence, owner.candidates.len())],
        None => ["-".into(), "-".into()],
    }
}

/// Formats the name of an owner: `nginx (4711, nginx.service)`.
fn name(owner: &Owner) -> String {
    let process = owner.process();
    let place = process.container().map(|container| container.text()).or_else(|| process.unit().map(str::to_owned));
    process_name(&process.comm, process.pid, place.as_deref())
}

fn process_name(comm: &str, pid: u32, place: Option<&str>) -> String {
    let place = place.map(|place| format!(", {place}")).unwrap_or_default();
    human::escape(&format!("{comm} ({pid}{place})")).into_owned()
}

/// Formats the name of a group of buckets: the process, the unit or the container that made them.
#[must_use]
pub fn group_name(group: &OwnerGroup, by: GroupBy) -> String {
    let container = |runtime: Option<&str>, id: &str| {
        let runtime = runtime.map_or(String::new(), |runtime| format!("{runtime} "));
        format!("{runtime}container {}", id.get(..12).unwrap_or(id))
    };
    match &group.key {
        MakerGroupKey::Process(process) => {
            let place = process.container.as_ref().map(|(runtime, id)| container(*runtime, id));
            process_name(&process.comm, process.pid, place.or_else(|| process.unit.clone()).as_deref())
        }
        MakerGroupKey::Unit(unit) => human::escape(unit).into_owned(),
        MakerGroupKey::Container(runtime, id) => container(*runtime, id),
        MakerGroupKey::Outside if by == GroupBy::Unit => "no unit".into(),
        MakerGroupKey::Outside => "no container".into(),
        _ => "unknown".into(),
    }
}

/// Formats the evidence for the owner of a group of buckets. If there are several kinds of evidence, each has its number of buckets.
#[must_use]
pub fn group_evidence(group: &OwnerGroup) -> String {
    let found = Evidence::ALL.into_iter().zip(group.evidence).filter(|(_, evidence)| evidence.buckets > 0);
    let found: Vec<(Evidence, EvidenceCount)> = found.collect();
    let text = |&(kind, EvidenceCount { buckets, candidates }): &(Evidence, EvidenceCount)| {
        let kind = evidence(kind, candidates);
        if found.len() == 1 { kind } else { format!("{kind}: {}", human::with_separators(buckets)) }
    };
    if found.is_empty() { "-".into() } else { found.iter().map(text).collect::<Vec<_>>().join(", ") }
}

/// Formats evidence. An inference has a question mark, so that it does not look like a fact. If there are several candidates, their number
/// follows.
fn evidence(evidence: Evidence, candidates: usize) -> String {
    let name = evidence.name();
    match (evidence.is_certain(), candidates) {
        (true, _) => name.to_owned(),
        (false, 1) => format!("{name}?"),
        (false, candidates) => format!("{name}? 1 of {candidates}"),
    }
}
