//! A list of buckets with their owners: a table with two more columns, or records with one more key.

use std::io::{self, Write};

use serde::Serialize;

use super::column::Column;
use super::human;
use super::json::{self, Envelope};
use super::record::SocketRecord;
use super::style::{Meaning, TextStyle};
use super::table::{self, Heading};
use super::text::Text;
use crate::model::container::Runtime;
use crate::model::facts::Facts;
use crate::model::owner::Owner;
use crate::model::row::Row;

/// Rows with their owners, in the same order.
pub struct Owned<'a> {
    /// The rows.
    pub rows: &'a [&'a Row],
    /// Their owners.
    pub owners: &'a [Option<Owner>],
    /// The facts of each network namespace, by the index in the row.
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
struct ContainerRecord<'a> {
    runtime: Option<&'static str>,
    id: &'a str,
}

impl<'a> OwnerRecord<'a> {
    fn new(owner: &'a Owner) -> Self {
        let process = &*owner.process;
        Self {
            pid: process.pid,
            pid_namespace: if process.own_pid_namespace { "own" } else { "initial" },
            comm: &process.comm,
            unit: process.unit(),
            container: process
                .container()
                .map(|container| ContainerRecord { runtime: container.runtime.map(Runtime::name), id: container.id }),
            evidence: owner.evidence.name(),
            candidates: owner.candidates,
        }
    }
}

impl Owned<'_> {
    fn append_record(&self, i: usize, text: &mut Text) -> io::Result<()> {
        SocketRecord::of_row(self.rows[i], &self.facts[self.rows[i].netns as usize]).append_json(text);
        // Continue the object.
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

    /// Writes a JSON document. `source` is the kernel interface that the rows were read from.
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
        if self.rows.is_empty() {
            return writeln!(out, "{}", style.paint(Meaning::Aside, "no TIME_WAIT sockets"));
        }
        let heading =
            |column: &&'static Column| Heading { title: column.title, right: column.right, spare: column.spare };
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
            cells.extend(match &self.owners[i] {
                Some(owner) => [name(owner), evidence(owner)],
                None => ["-".into(), "-".into()],
            });
            cells
        };
        let rows: Vec<Vec<String>> = (0..self.rows.len()).map(row).collect();
        table::write(out, &headings, header, &rows, style)?;
        if header {
            let named = self.owners.iter().flatten().filter(|owner| owner.evidence.is_certain()).count();
            let inferred = self.owners.iter().flatten().count() - named;
            let unknown = self.owners.len() - named - inferred;
            let owners = format!("{named} with a known owner, {inferred} with an inferred one, {unknown} unknown");
            let shown = if total > rows.len() { format!("{} of {total} shown: ", rows.len()) } else { String::new() };
            writeln!(out, "{}", style.paint(Meaning::Aside, format!("{shown}{owners}")))?;
        }
        Ok(())
    }
}

/// `nginx (4711, nginx.service)`.
fn name(owner: &Owner) -> String {
    let process = &owner.process;
    let place = process.container().map(|container| container.text()).or_else(|| process.unit().map(str::to_owned));
    let place = place.map(|place| format!(", {place}")).unwrap_or_default();
    let text = format!("{} ({}{place})", process.comm, process.pid);
    human::escape(&text).into_owned()
}

/// The evidence. An inference has a question mark and the number of candidates, so that it does not look like a fact.
fn evidence(owner: &Owner) -> String {
    let name = owner.evidence.name();
    match (owner.evidence.is_certain(), owner.candidates) {
        (true, _) => name.to_owned(),
        (false, 1) => format!("{name}?"),
        (false, candidates) => format!("{name}? 1 of {candidates}"),
    }
}
