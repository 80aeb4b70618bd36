//! Counts the TIME_WAIT sockets of all network namespaces by remote address, and prints the ten addresses with the most sockets.
//!
//! cargo run --example remote_ends -- 'direction = outbound'
//!
//! The argument is a filter expression. Without it, every TIME_WAIT socket counts.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "an example prints")]

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use twtool::{Namespaces, Selection, Snapshot, SnapshotError};

fn main() -> Result<(), SnapshotError> {
    let expression = std::env::args().skip(1).collect::<Vec<_>>().join(" ");
    let mut counts = BTreeMap::new();
    let answer =
        Snapshot::of(Namespaces::all()).for_each_bucket(&Selection::expression(&expression), &mut |row, _| {
            *counts.entry(row.bucket.tuple.remote_addr()).or_insert(0_u32) += 1;
            ControlFlow::Continue(())
        })?;
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    for (addr, count) in counts.iter().take(10) {
        println!("{count:>8}  {addr}");
    }
    for warning in answer.sentences() {
        eprintln!("warning: {warning}");
    }
    Ok(())
}
