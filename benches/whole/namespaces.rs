//! Measures `list --all-netns` over 200 network namespaces of 100 buckets each, and compares it with two programs:
//!
//! - The *floor* enters each namespace, on one thread per core, and discards the response of the kernel.
//! - A shell runs `ss` in each namespace.
//!
//! The kernel keeps the sockets of all namespaces in one table and walks the whole table for each dump. So the floor causes 200
//! walks. The namespaces have names, as `ip netns add` makes them, in a private /run. The /proc of the benchmark shows only its own
//! processes, so the answer is complete.

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Write};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use twtool::sys::sandbox;

use super::floor::{self, Floor};
use super::population::make_here;
use super::process::Process;
use super::report::{Machine, Measured, Spread, load, mib, ms};
use super::{THIS, TWTOOL};

/// The hidden first argument of the floor process.
pub(crate) const FLOOR: &str = "--be-the-floor-of-namespaces";

/// The hidden first argument of the process that creates the namespaces.
pub(crate) const MAKE: &str = "--make-namespaces";

const NAMESPACES: usize = 200;
const BUCKETS: usize = 100;
const ROUNDS: usize = 11;

/// The time for which the benchmark uses the buckets, from the start of their creation. They exist for 60 s.
const TIME_OF_USE: Duration = Duration::from_secs(50);

const LOOP: &str = "for n in /run/netns/*; do nsenter --net=$n ss -tanoH state time-wait; done";

pub(crate) fn floor() -> Result<(), Box<dyn Error>> {
    let names: Vec<_> = fs::read_dir("/run/netns")?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    let workers = thread::available_parallelism()?.get();
    let dump_some = |worker: usize| -> io::Result<()> {
        names.iter().skip(worker).step_by(workers).try_for_each(|path| {
            setns(File::open(path)?, CloneFlags::CLONE_NEWNET)?;
            floor::run(Floor::All)
        })
    };
    thread::scope(|scope| {
        let dumps: Vec<_> = (0..workers).map(|worker| scope.spawn(move || dump_some(worker))).collect();
        dumps.into_iter().try_for_each(|dump| dump.join().unwrap_or_else(|_| Err(io::Error::other("panic"))))
    })?;
    Ok(())
}

/// Replaces the namespaces by new ones, and prints the total number of their buckets.
pub(crate) fn make() -> Result<(), Box<dyn Error>> {
    let none = None::<&str>;
    // This ends the namespaces of the previous call, because only the mounts in /run kept them alive.
    let _ = umount2("/run", MntFlags::MNT_DETACH);
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none)?;
    fs::create_dir("/run/netns")?;
    let mut seen = 0;
    for i in 0..NAMESPACES {
        sandbox::enter_network_namespace()?;
        seen += make_here(BUCKETS)?;
        let name = format!("/run/netns/box{i:03}");
        File::create(&name)?;
        mount(Some("/proc/thread-self/ns/net"), name.as_str(), none, MsFlags::MS_BIND, none)?;
    }
    Ok(writeln!(io::stdout(), "{seen}")?)
}

pub(crate) fn bench(machine: &Machine) -> Result<(), Box<dyn Error>> {
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID)?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    sandbox::enter_network_namespace()?;
    // The first child is the init of the pid namespace. If it ended, the kernel would end all processes of that namespace.
    let mut first = Command::new("cat").stdin(Stdio::piped()).spawn()?;
    Process::new("mount", &["-t", "proc", "proc", "/proc"]).run()?;

    let list = |arguments: &[&str]| Process::new(TWTOOL, &[&["list", "--all-netns"], arguments].concat());
    let mut cases = vec![
        ("list --all-netns -o ndjson", list(&["-o", "ndjson"])),
        ("list --all-netns", list(&[])),
        ("list --all-netns --json", list(&["--json"])),
        ("list --all-netns --count", list(&["--count"])),
    ];
    if Process::installed("ss") && Process::installed("nsenter") {
        cases.push(("`ss` in each, one after the other", Process::new("sh", &["-c", LOOP])));
    }
    let (floor, maker) = (Process::new(THIS, &[FLOOR]), Process::new(THIS, &[MAKE]));
    let load_before = load()?;
    let mut seen: Vec<u32> = vec![];
    let mut until = Instant::now();
    let mut ensure_outlives = |next: Duration| -> Result<(), Box<dyn Error>> {
        if Instant::now() + next > until {
            let begun = Instant::now();
            seen.push(maker.answer()?.trim().parse()?);
            until = begun + TIME_OF_USE;
        }
        Ok(())
    };
    let mut measured: Vec<Measured> = cases.iter().map(|_| Measured::default()).collect();
    // The time of the longest pair so far. 5 s is an assumption about the first pair.
    let mut longest = Duration::from_secs(5);
    for round in 0..ROUNDS {
        for ((_, process), measured) in cases.iter().zip(&mut measured) {
            ensure_outlives(longest)?;
            let pair = if round % 2 == 0 {
                (floor.run()?, process.run()?)
            } else {
                let own = process.run()?;
                (floor.run()?, own)
            };
            longest = longest.max(pair.0.wall + pair.1.wall);
            measured.pairs.push(pair);
        }
    }
    for ((_, process), measured) in cases.iter().zip(&mut measured) {
        ensure_outlives(longest)?;
        measured.peak_kib = process.peak_kib()?;
    }
    let floor_peak = floor.peak_kib()?;
    drop(first.stdin.take());
    let _ = first.kill();
    first.wait()?;

    let out = &mut io::stdout().lock();
    let Machine { processor, kernel, date } = machine;
    let (fewest, most) = (seen.iter().min().ok_or("none")?, seen.iter().max().ok_or("none")?);
    writeln!(
        out,
        "{NAMESPACES} network namespaces, {fewest}–{most} buckets; {ROUNDS} pairs; {processor}, Linux {kernel}, {date};"
    )?;
    writeln!(out, "load {load_before}–{}\n", load()?)?;
    writeln!(out, "| command | wall | ratio to the floor | CPU time, ratio | peak memory |")?;
    writeln!(out, "|---|--:|--:|--:|--:|")?;
    let floors = Spread::of(measured.iter().flat_map(|case| &case.pairs).map(|(floor, _)| floor.wall.as_secs_f64()));
    writeln!(out, "| the floor | {} | 1 | 1 | {} |", ms(floors.median), mib(floor_peak.into()))?;
    for ((name, _), case) in cases.iter().zip(&measured) {
        let (wall, ratio) = (case.wall(), case.ratio());
        let name = if name.starts_with('`') { (*name).to_owned() } else { format!("`{name}`") };
        writeln!(
            out,
            "| {name} | {} | {:.2} ({:.2}–{:.2}) | {:.2} | {} |",
            ms(wall.median),
            ratio.median,
            ratio.low,
            ratio.high,
            case.processor_ratio().median,
            mib(case.peak_kib.into())
        )?;
    }
    Ok(())
}
