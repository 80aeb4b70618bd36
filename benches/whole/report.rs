//! Prints the figures for docs/performance.md as Markdown tables.

use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write};

use twtool::source::kernel_facts;

use super::Case;
use super::floor::Floor;
use super::process::Cost;

pub(crate) struct Machine {
    pub(crate) processor: String,
    pub(crate) kernel: String,
    pub(crate) date: String,
}

impl Machine {
    pub(crate) fn here() -> io::Result<Self> {
        let cores = std::thread::available_parallelism()?;
        let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Ok(Self {
            processor: format!("{cores} cores of {}", model.map_or("an unnamed processor", |(_, model)| model)),
            kernel: kernel_facts().kernel,
            date: jiff::Timestamp::now().strftime("%Y-%m-%d").to_string(),
        })
    }
}

/// The one-minute load average.
pub(crate) fn load() -> io::Result<String> {
    let text = fs::read_to_string("/proc/loadavg")?;
    Ok(text.split(' ').next().unwrap_or_default().to_owned())
}

#[derive(Default)]
pub(crate) struct Measured {
    /// The costs of the floor and of the command in each pair of runs, in the order of the runs.
    pub(crate) pairs: Vec<(Cost, Cost)>,
    pub(crate) peak_kib: u32,
}

pub(crate) struct Size {
    pub(crate) buckets: u32,
    /// The numbers of buckets at different times of the measurement.
    pub(crate) seen: Vec<u32>,
    /// The one-minute load average before and after all measurements of this size.
    pub(crate) load: (String, String),
    pub(crate) floor_peak_kib: u32,
    pub(crate) cases: Vec<(Case, Measured)>,
}

/// The median, and the quartiles around it.
pub(crate) struct Spread {
    pub(crate) low: f64,
    pub(crate) median: f64,
    pub(crate) high: f64,
}

impl Spread {
    pub(crate) fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let at = |quarters: usize| values.get(values.len() * quarters / 4).copied().unwrap_or(f64::NAN);
        Self { low: at(1), median: at(2), high: at(3) }
    }
}

impl Measured {
    /// The wall time, as a multiple of the floor.
    pub(crate) fn ratio(&self) -> Spread {
        Spread::of(self.pairs.iter().map(|(floor, own)| own.wall.div_duration_f64(floor.wall)))
    }

    /// The processor time, as a multiple of the floor.
    pub(crate) fn processor_ratio(&self) -> Spread {
        Spread::of(self.pairs.iter().map(|(floor, own)| own.processor.div_duration_f64(floor.processor)))
    }

    pub(crate) fn wall(&self) -> Spread {
        Spread::of(self.pairs.iter().map(|(_, own)| own.wall.as_secs_f64()))
    }
}

impl Size {
    fn named(&self, name: &str) -> Option<&Measured> {
        self.cases.iter().find(|(case, _)| case.name == name).map(|(_, measured)| measured)
    }

    /// The time of the other program as a multiple of the time of twtool: the median over the rounds.
    fn rival_ratio(&self, measured: &Measured, rival: &str) -> Option<f64> {
        let rounds = self.named(rival)?.pairs.iter().zip(&measured.pairs);
        Some(Spread::of(rounds.map(|((_, theirs), (_, ours))| theirs.wall.div_duration_f64(ours.wall))).median)
    }

    fn floor_wall(&self, of: Floor, one_core: bool) -> Spread {
        let cases = self.cases.iter().filter(|(case, _)| case.floor == of && case.one_core == one_core);
        Spread::of(cases.flat_map(|(_, measured)| &measured.pairs).map(|(floor, _)| floor.wall.as_secs_f64()))
    }

    fn population(&self) -> String {
        let (fewest, most) = (self.seen.iter().min(), self.seen.iter().max());
        match (fewest, most) {
            (Some(&fewest), Some(&most)) if fewest < most => format!("{}–{}", grouped(fewest), grouped(most)),
            _ => grouped(most.copied().unwrap_or(0)),
        }
    }
}

/// `1,000,000`
fn grouped(number: u32) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

pub(crate) fn ms(seconds: f64) -> String {
    let ms = seconds * 1e3;
    if ms < 100.0 { format!("{ms:.1} ms") } else { format!("{ms:.0} ms") }
}

pub(crate) fn mib(kib: f64) -> String {
    format!("{:.1} MiB", kib / 1024.0)
}

fn or_blank(value: Option<String>) -> String {
    value.unwrap_or_default()
}

pub(crate) fn write(out: &mut dyn Write, machine: &Machine, sizes: &[Size]) -> Result<(), Box<dyn Error>> {
    let Machine { processor, kernel, date } = machine;
    writeln!(out, "{processor}, Linux {kernel}, {date}; `cargo bench --bench whole`. Whole processes, output to")?;
    writeln!(
        out,
        "/dev/null; medians, and the quartiles of the ratios. The floor receives the same dump and discards"
    )?;
    writeln!(out, "it.\n")?;
    writeln!(
        out,
        "| command | wall | ratio to the floor | limit | CPU time, ratio | times faster than ss | limit | peak memory | limit |"
    )?;
    writeln!(out, "|---|--:|--:|--:|--:|--:|--:|--:|--:|")?;
    sizes.iter().try_for_each(|size| write_size(out, size))?;
    let find = |buckets: u32| sizes.iter().find(|size| size.buckets == buckets);
    if let (Some(small), Some(large)) = (find(100_000), find(1_000_000)) {
        write_growth(out, small, large)?;
    }
    Ok(())
}

fn write_size(out: &mut dyn Write, size: &Size) -> Result<(), Box<dyn Error>> {
    let pairs = size.cases.first().map_or(0, |(_, measured)| measured.pairs.len());
    let (before, after) = &size.load;
    writeln!(
        out,
        "| **{} buckets** ({} seen; {pairs} pairs; load {before}–{after}) | | | | | | | | |",
        grouped(size.buckets),
        size.population()
    )?;
    for (name, floor, one_core) in [
        ("the floor", Floor::All, false),
        ("the floor of `sport = :443`", Floor::Port443, false),
        ("the floor, one core", Floor::All, true),
    ] {
        if size.cases.iter().any(|(case, _)| case.floor == floor && case.one_core == one_core) {
            let peak = if floor == Floor::All && !one_core { mib(size.floor_peak_kib.into()) } else { String::new() };
            writeln!(out, "| {name} | {} | 1 | | 1 | | | {peak} | |", ms(size.floor_wall(floor, one_core).median))?;
        }
    }
    for (case, measured) in &size.cases {
        let ratio = measured.ratio();
        let (theirs, wanted) = match case.rival {
            Some((rival, wanted)) => (size.rival_ratio(measured, rival), Some(wanted)),
            None => (None, None),
        };
        let wanted = wanted.filter(|_| case.at_most.is_some());
        let most_kib =
            case.bytes_a_bucket.map(|bytes| 8.0 * 1024.0 + f64::from(bytes) * f64::from(size.buckets) / 1024.0);
        let mut line = String::new();
        write!(line, "| `{}` | {} | ", case.name, ms(measured.wall().median))?;
        write!(line, "{:.2} ({:.2}–{:.2}) | ", ratio.median, ratio.low, ratio.high)?;
        write!(line, "{} | ", or_blank(case.at_most.map(|ratio| ratio.to_string())))?;
        write!(line, "{:.2} | ", measured.processor_ratio().median)?;
        write!(line, "{} | ", or_blank(theirs.map(|ratio| format!("{ratio:.1}"))))?;
        write!(line, "{} | ", or_blank(wanted.map(|ratio| ratio.to_string())))?;
        write!(line, "{} | {} |", mib(measured.peak_kib.into()), or_blank(most_kib.map(mib)))?;
        writeln!(out, "{line}")?;
    }
    Ok(())
}

/// Writes, for each command that is compared with another program, its ratio to the floor in the large population, divided by its ratio
/// in the small population.
fn write_growth(out: &mut dyn Write, small: &Size, large: &Size) -> Result<(), Box<dyn Error>> {
    let floor = large.floor_wall(Floor::All, false).median / small.floor_wall(Floor::All, false).median;
    writeln!(
        out,
        "\nThe floor takes {floor:.1} times as long with 1,000,000 buckets as with 100,000. Growth of the ratios (limit 1.2):\n"
    )?;
    for (case, measured) in large.cases.iter().filter(|(case, _)| case.rival.is_some()) {
        if let Some(before) = small.named(case.name) {
            writeln!(out, "- `{}`: {:.2}", case.name, measured.ratio().median / before.ratio().median)?;
        }
    }
    Ok(())
}
