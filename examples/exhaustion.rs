//! Prints how many ports are free for the destination that is nearest to exhaustion, as a metric in Prometheus' text format.
//!
//! cargo run --example exhaustion

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "an example prints")]

use twtool::{CapacityQuestion, Snapshot, SnapshotError};

fn main() -> Result<(), SnapshotError> {
    let answer = Snapshot::here().capacity(&CapacityQuestion::default())?;
    for warning in answer.sentences() {
        eprintln!("warning: {warning}");
    }
    println!("# HELP destination_free_ports Local ports that are free for the destination.");
    println!("# TYPE destination_free_ports gauge");
    if let Some(nearest) = answer.value.destinations.first() {
        let (addr, port) = (nearest.ends.remote_addr, nearest.ends.remote_port.0);
        println!("destination_free_ports{{remote_addr=\"{addr}\",remote_port=\"{port}\"}} {}", nearest.free);
    }
    Ok(())
}
