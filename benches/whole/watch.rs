//! Measures `watch -o ndjson` at its default interval of one second: the share of a core, and the peak memory.

use std::error::Error;
use std::io::{self, Write};

use super::TWTOOL;
use super::population::Population;
use super::process::{Cost, Process};
use super::report::{Machine, load, mib};

/// The numbers of buckets, each with the limit for the share of a core in percent.
const SIZES: [(usize, f64); 2] = [(10, 0.5), (100_000, 8.0)];

/// The number of samples of a run. 31 samples take 30 s, so no bucket expires before the run ends.
const SAMPLES: &str = "31";

pub(crate) fn bench(machine: &Machine) -> Result<(), Box<dyn Error>> {
    let mut out = io::stdout().lock();
    let Machine { processor, kernel, date } = machine;
    writeln!(out, "{processor}, Linux {kernel}, {date}, load {}; `cargo bench --bench whole -- watch`.\n", load()?)?;
    writeln!(out, "| buckets | share of a core | limit | peak memory |\n|--:|--:|--:|--:|")?;
    for (buckets, limit) in SIZES {
        let watch = |samples| Process::new(TWTOOL, &["watch", "-o", "ndjson", "--count", samples]);
        let _population = Population::make(buckets)?;
        let Cost { wall, processor } = watch(SAMPLES).run()?;
        let share = processor.as_secs_f64() / wall.as_secs_f64() * 100.0;
        let peak = mib(watch("6").peak_kib()?.into());
        writeln!(out, "| {buckets} | {share:.2} % | {limit} % | {peak} |")?;
    }
    Ok(())
}
