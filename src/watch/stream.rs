//! Writes samples and events as ndjson: for each namespace, a record of the sample, followed by a record of each event.

use std::io::{self, Write};

use serde::Serialize;

use super::sample::{NetnsSample, Sample};
use crate::view::human;
use crate::view::json;
use crate::view::record::SocketRecord;
use crate::view::text::Text;

/// The number of bytes to collect before a write: the size of the buffer of standard output.
const CHUNK: usize = 64 * 1024;

#[derive(Serialize)]
struct SampleRecord<'a> {
    r#type: &'static str,
    at: &'a str,
    netns: Option<u64>,
    netns_name: Option<&'a str>,
    time_wait: usize,
    fin_wait_2: usize,
    all_buckets: usize,
    max_tw_buckets: Option<i64>,
    overflows: Option<u64>,
    closes_per_s: Option<f64>,
    interval_ms: u64,
    complete: bool,
}

impl<'a> SampleRecord<'a> {
    fn new(netns: &'a NetnsSample, sample: &Sample, at: &'a str) -> Self {
        Self {
            r#type: "sample",
            at,
            netns: netns.facts.netns,
            netns_name: netns.facts.netns_name.as_deref(),
            time_wait: netns.time_wait,
            fin_wait_2: netns.fin_wait_2,
            all_buckets: netns.all_buckets,
            max_tw_buckets: netns.max_tw_buckets,
            overflows: netns.counters.count("TCPTimeWaitOverflow"),
            closes_per_s: netns.closes_per_s.map(|rate| (rate * 1000.0).round() / 1000.0),
            interval_ms: u64::try_from(sample.interval.as_millis()).unwrap_or(u64::MAX),
            complete: netns.complete,
        }
    }
}

/// Writes the records of a sample, and flushes them, so that the reader of a pipe gets them immediately.
///
/// # Errors
/// Writing failed.
pub fn write(out: &mut (dyn Write + Send), sample: &Sample) -> io::Result<()> {
    let at = human::timestamp(sample.at);
    let mut lines = Text::default();
    for netns in &sample.namespaces {
        json::line(out, &SampleRecord::new(netns, sample, &at))?;
        for event in &netns.events {
            lines.push_str("{\"type\":\"event\",\"at\":\"");
            lines.push_str(&at);
            lines.push_str("\",\"event\":\"");
            lines.push_str(event.kind.name());
            lines.push_str(if event.certain { "\",\"certain\":true" } else { "\",\"certain\":false" });
            SocketRecord::of_row(&event.row, &event.facts).append_json_keys(&mut lines);
            lines.push_str("}\n");
            if lines.len() >= CHUNK {
                out.write_all(lines.as_bytes())?;
                lines.truncate(0);
            }
        }
        out.write_all(lines.as_bytes())?;
        lines.truncate(0);
    }
    out.flush()
}
