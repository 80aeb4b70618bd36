//! The identity, cookie and keys of the records of `twtool list`.

use serde_json::Value;

use super::procfs::{Entry, Identity};

/// The keys of a record of `twtool list`, in the order of docs/json.md.
pub(crate) const LIST_KEYS: [&str; 17] = [
    "netns",
    "netns_name",
    "family",
    "state",
    "local_addr",
    "local_port",
    "local_class",
    "local_service",
    "remote_addr",
    "remote_port",
    "remote_class",
    "remote_service",
    "direction",
    "expires_ms",
    "interface",
    "mark",
    "cookie",
];

/// The common keys, with which every JSON document begins, in the order of docs/json.md.
pub(crate) const DOCUMENT_KEYS: [&str; 6] = ["schema", "taken_at", "kernel", "netns", "complete", "warnings"];

#[track_caller]
pub(crate) fn text<'a>(record: &'a Value, key: &str) -> &'a str {
    record[key].as_str().unwrap_or_else(|| panic!("no text {key:?} in {record}"))
}

#[track_caller]
pub(crate) fn number(record: &Value, key: &str) -> u64 {
    record[key].as_u64().unwrap_or_else(|| panic!("no number {key:?} in {record}"))
}

/// The identity of the socket of a record, in the form of [`Entry::identity`].
#[track_caller]
pub(crate) fn identity(record: &Value) -> Identity {
    (
        text(record, "family").into(),
        text(record, "local_addr").into(),
        number(record, "local_port"),
        text(record, "remote_addr").into(),
        number(record, "remote_port"),
        text(record, "state").into(),
    )
}

/// The sorted identities of records.
pub(crate) fn of_records(records: &[Value]) -> Vec<Identity> {
    sorted(records.iter().map(identity))
}

/// The sorted identities of procfs entries.
pub(crate) fn of_entries(entries: &[Entry]) -> Vec<Identity> {
    sorted(entries.iter().map(Entry::identity))
}

#[track_caller]
pub(crate) fn cookies(records: &[Value]) -> Vec<u64> {
    let cookie = |record| text(record, "cookie").parse().unwrap_or_else(|_| panic!("no decimal cookie in {record}"));
    records.iter().map(cookie).collect()
}

pub(crate) fn sorted<T: Ord>(values: impl IntoIterator<Item = T>) -> Vec<T> {
    let mut values: Vec<_> = values.into_iter().collect();
    values.sort();
    values
}

/// A JSON value as a csv field: null is an empty field, and text has no quotes.
pub(crate) fn csv_field(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
