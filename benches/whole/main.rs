//! Measures twtool as whole processes on 10, 1,000, 100,000 and 1,000,000 buckets. Compares it with the *floor*, a process that only
//! receives the same rows from the kernel, and with `ss` and `netstat` if they are installed.
//!
//! - `cargo bench --bench whole` measures all sizes.
//! - `cargo bench --bench whole -- --quick` leaves out 1,000,000 buckets.
//! - `cargo bench --bench whole -- 1000 100000` measures these sizes.
//! - `cargo bench --bench whole -- namespaces` measures 200 network namespaces of 100 buckets each.
//! - `cargo bench --bench whole -- watch` measures a stream of samples, without the floor.
//!
//! The benchmark runs each command and the floor in turns. Each pair of runs gives one ratio: the wall time of the command divided by that
//! of the floor. A busy machine slows both runs of a pair, so it hardly changes the ratio. The benchmark prints Markdown tables for
//! docs/performance.md, and never fails because of a time.

mod floor;
mod namespaces;
mod population;
mod process;
mod report;
mod watch;

use std::env;
use std::error::Error;
use std::fs;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use floor::Floor;
use population::Population;
use process::{Cost, Process, WATCH, on_one_core};
use report::{Machine, Measured, Size};
use twtool::sys::sandbox;

/// Copies of twtool and of this benchmark, because an installed program is a copy, too. The file that the linker wrote starts more slowly,
/// because the kernel maps it in smaller pieces: a short list takes 5 % longer.
const TWTOOL: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/twtool");
const THIS: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/whole");

fn install() -> io::Result<()> {
    fs::copy(env!("CARGO_BIN_EXE_twtool"), TWTOOL)?;
    fs::copy(env::current_exe()?, THIS).map(drop)
}

/// The hidden first argument of the floor process.
const FLOOR: &str = "--be-the-floor";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let done = match arguments.split_first() {
        Some((first, kind)) if first == FLOOR => floor::run(floor_of(kind)).map_err(Into::into),
        Some((first, words)) if first == WATCH => process::watch(words),
        Some((first, _)) if first == namespaces::FLOOR => namespaces::floor(),
        Some((first, _)) if first == namespaces::MAKE => namespaces::make(),
        // Cargo passes this word only for `cargo bench`.
        _ if arguments.iter().any(|word| word == "--bench") => bench(&arguments),
        _ => Ok(()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn floor_of(kind: &[String]) -> Floor {
    if kind.is_empty() { Floor::All } else { Floor::Port443 }
}

fn floor_process(floor: Floor) -> Process {
    match floor {
        Floor::All => Process::new(THIS, &[FLOOR]),
        Floor::Port443 => Process::new(THIS, &[FLOOR, "443"]),
    }
}

/// A command to measure, with its targets.
struct Case {
    name: &'static str,
    process: Process,
    floor: Floor,
    one_core: bool,
    /// Another program to compare with, by name, and how many times faster twtool should be.
    rival: Option<(&'static str, f64)>,
    /// The target for the wall time, as a multiple of the floor.
    at_most: Option<f64>,
    /// Whether the command removes the buckets, so that each run needs a new population.
    consumes: bool,
    /// The target for the peak memory: at most 8 MiB plus this number of bytes for each bucket.
    bytes_a_bucket: Option<u32>,
}

const SS: &str = "ss -tanoH state time-wait";
const SS_443: &str = "ss -tanoH state time-wait 'sport = :443'";
const NETSTAT: &str = "netstat -tano";

impl Case {
    fn twtool(name: &'static str, arguments: &[&str], at_most: Option<f64>) -> Self {
        let process = Process::new(TWTOOL, &[&["list"], arguments].concat());
        Self {
            name,
            process,
            floor: Floor::All,
            one_core: false,
            rival: None,
            at_most,
            consumes: false,
            bytes_a_bucket: None,
        }
    }

    fn kill(at_most: Option<f64>) -> Self {
        let process = Process::new(TWTOOL, &["kill", "--all", "--yes", "--json"]);
        Self { process, consumes: true, ..Self::twtool("kill --all --yes --json", &[], at_most) }
    }

    fn summary(at_most: Option<f64>) -> Self {
        Self { process: Process::new(TWTOOL, &["summary"]), ..Self::twtool("summary", &[], at_most) }
    }

    fn faster_than(self, rival: &'static str, times: f64) -> Self {
        Self { rival: Some((rival, times)), ..self }
    }

    fn bytes_a_bucket(self, bytes: u32) -> Self {
        Self { bytes_a_bucket: Some(bytes), ..self }
    }

    fn other(name: &'static str, floor: Floor, program: &str, arguments: &[&str]) -> Option<Self> {
        let process = Process::new(program, arguments);
        let case = Self { process, floor, ..Self::twtool(name, &[], None) };
        Process::installed(program).then_some(case)
    }

    fn all(buckets: u32) -> Vec<Self> {
        let filter = "sport = :443";
        let others = [
            Self::other(SS, Floor::All, "ss", &["-tanoH", "state", "time-wait"]),
            Self::other(SS_443, Floor::Port443, "ss", &["-tanoH", "state", "time-wait", filter]),
            Self::other(NETSTAT, Floor::All, "netstat", &["-tano"]),
        ];
        let target = |ratio: f64| (buckets == 100_000).then_some(ratio);
        let small = (buckets == 10).then_some(1.2);
        let twtool = if buckets == 10 {
            vec![Self::twtool("list", &[], small), Self::twtool("list -o ndjson", &["-o", "ndjson"], small)]
        } else {
            vec![
                Self::twtool("list -o ndjson", &["-o", "ndjson"], target(1.2)).faster_than(SS, 4.0).bytes_a_bucket(0),
                Self::twtool("list -o csv", &["-o", "csv"], target(1.2)).faster_than(SS, 4.0).bytes_a_bucket(0),
                Self::twtool("list", &[], target(1.5)).faster_than(SS, 3.0).bytes_a_bucket(96),
                Self::twtool("list --json", &["--json"], target(1.8)).faster_than(SS, 2.5).bytes_a_bucket(96),
                Self::twtool("list --count", &["--count"], target(1.05)).faster_than(SS, 4.0),
                Self::summary(target(1.15)),
                Self {
                    floor: Floor::Port443,
                    ..Self::twtool("list 'sport = :443'", &[filter], target(1.2)).faster_than(SS_443, 1.0)
                },
                Self { one_core: true, ..Self::twtool("list -o ndjson, one core", &["-o", "ndjson"], None) },
            ]
        };
        // Each run of `kill` needs new buckets, and it takes long to create a million of them.
        let kill = (1000..=100_000).contains(&buckets).then(|| Self::kill(target(6.0)));
        twtool.into_iter().chain(others.into_iter().flatten()).chain(kill).collect()
    }

    fn pair(&self, floor_first: bool) -> Result<(Cost, Cost), Box<dyn Error>> {
        let floor = floor_process(self.floor);
        let pair = || {
            if floor_first || self.consumes {
                let floor = floor.run()?;
                Ok((floor, self.process.run()?))
            } else {
                let own = self.process.run()?;
                Ok((floor.run()?, own))
            }
        };
        if self.one_core { on_one_core(pair)? } else { pair() }
    }
}

/// Whether an uncounted pair, which fills the caches, runs before a counted pair. With a million buckets, it would take too much of the
/// 60 s that the buckets last.
const fn warms_up(buckets: u32) -> bool {
    buckets <= 100_000
}

/// The number of pairs per command.
fn rounds(buckets: u32) -> u32 {
    match buckets {
        ..=1000 => 21,
        1001..500_000 => 11,
        _ => 5,
    }
}

fn bench(arguments: &[String]) -> Result<(), Box<dyn Error>> {
    let mut sizes: Vec<u32> = arguments.iter().filter_map(|word| word.parse().ok()).collect();
    if sizes.is_empty() {
        sizes = vec![10, 1000, 100_000, 1_000_000];
        if arguments.iter().any(|word| word == "--quick") {
            sizes.pop();
        }
    }
    install()?;
    let machine = Machine::here()?;
    // The process must have only one thread.
    sandbox::enter_user_namespace()?;
    if arguments.iter().any(|word| word == "namespaces") {
        return namespaces::bench(&machine);
    }
    if arguments.iter().any(|word| word == "watch") {
        return watch::bench(&machine);
    }
    let sizes: Vec<Size> = sizes.into_iter().map(measure).collect::<Result<_, _>>()?;
    report::write(&mut io::stdout().lock(), &machine, &sizes)?;
    Ok(())
}

/// Provides a population of buckets for each measurement.
struct Supply {
    buckets: u32,
    now: Option<Population>,
    seen: Vec<u32>,
}

impl Supply {
    fn ensure_outlives(&mut self, next: Duration) -> Result<(), Box<dyn Error>> {
        if self.now.as_ref().is_none_or(|population| !population.outlives(next)) {
            let begun = Instant::now();
            self.now = Some(Population::make(self.buckets as usize)?);
            let (made, seen) = (begun.elapsed(), Population::count_buckets()?);
            writeln!(io::stderr(), "{seen} of {} buckets made in {made:.1?}", self.buckets)?;
        }
        self.sample()
    }

    /// Must be called after each case.
    fn after(&mut self, case: &Case) -> Result<(), Box<dyn Error>> {
        if case.consumes {
            self.now = None;
            return Ok(());
        }
        self.sample()
    }

    fn sample(&mut self) -> Result<(), Box<dyn Error>> {
        self.seen.push(Population::count_buckets()?);
        Ok(())
    }
}

fn measure(buckets: u32) -> Result<Size, Box<dyn Error>> {
    let load_before = report::load()?;
    let mut supply = Supply { buckets, now: None, seen: vec![] };
    let cases = Case::all(buckets);
    let mut measured: Vec<Measured> = cases.iter().map(|_| Measured::default()).collect();
    let mut longest = vec![Duration::ZERO; cases.len()];
    for round in 0..rounds(buckets) {
        for ((case, measured), longest) in cases.iter().zip(&mut measured).zip(&mut longest) {
            // Twice, because an uncounted pair may run before the counted pair.
            supply.ensure_outlives(2 * *longest)?;
            // The previous case may have replaced the data in the caches.
            if warms_up(buckets) && !case.consumes {
                case.pair(round % 2 == 0)?;
            }
            let (floor, own) = case.pair(round % 2 == 0)?;
            supply.after(case)?;
            measured.pairs.push((floor, own));
            *longest = (*longest).max(floor.wall + own.wall);
        }
    }
    for ((case, measured), longest) in cases.iter().zip(&mut measured).zip(longest) {
        supply.ensure_outlives(longest)?;
        measured.peak_kib = case.process.peak_kib()?;
        supply.after(case)?;
    }
    supply.ensure_outlives(Duration::from_secs(2))?;
    let floor_peak_kib = floor_process(Floor::All).peak_kib()?;
    let load = (load_before, report::load()?);
    Ok(Size { buckets, seen: supply.seen, load, floor_peak_kib, cases: cases.into_iter().zip(measured).collect() })
}
