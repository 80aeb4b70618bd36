//! Writes JSON: documents, each with one answer, and records, one per line.

use std::io::{self, Write};

use serde::Serialize;

use super::human;
use crate::model::facts::Facts;
use crate::model::name::json_escaped;

/// The keys that every JSON document has beside its payload.
#[derive(Clone, Copy, Debug)]
pub struct Envelope<'a> {
    /// `twtool.<command>/<number>`; the number grows when a key is renamed or changes its meaning.
    pub schema: &'static str,
    /// The facts that contain the time, the kernel release and the network namespace.
    pub facts: &'a Facts,
    /// Whether the answer is complete.
    pub complete: bool,
    /// The warnings.
    pub warnings: &'a [String],
}

impl<'a> Envelope<'a> {
    fn with<P>(self, payload: P) -> Document<'a, P> {
        let Self { schema, facts, complete, warnings } = self;
        let taken_at = human::timestamp(facts.taken_at);
        Document { schema, taken_at, kernel: &facts.kernel, netns: facts.netns, complete, warnings, payload }
    }
}

#[derive(Serialize)]
struct Document<'a, P> {
    schema: &'static str,
    taken_at: String,
    kernel: &'a str,
    netns: Option<u64>,
    complete: bool,
    warnings: &'a [String],
    #[serde(flatten)]
    payload: P,
}

/// Writes one document on one line. `payload` is a struct. Its fields become keys beside the keys of the envelope.
pub fn document(out: &mut dyn Write, envelope: Envelope, payload: impl Serialize) -> io::Result<()> {
    line(out, &envelope.with(payload))
}

/// Writes a document without payload and without its closing brace. The caller writes both.
pub fn open_document(out: &mut dyn Write, envelope: Envelope) -> io::Result<()> {
    #[derive(Serialize)]
    struct EmptyPayload {}
    let mut document = to_string(&envelope.with(EmptyPayload {}))?;
    document.pop();
    out.write_all(document.as_bytes())
}

/// Writes one record on one line. The record is built in memory first, because a serializer makes dozens of small writes.
pub fn line(out: &mut dyn Write, record: &impl Serialize) -> io::Result<()> {
    let mut line = to_string(record)?;
    line.push('\n');
    out.write_all(line.as_bytes())
}

/// The JSON text of a value, without characters that control a terminal.
pub(super) fn to_string(value: &(impl Serialize + ?Sized)) -> serde_json::Result<String> {
    serde_json::to_string(value).map(json_escaped)
}
