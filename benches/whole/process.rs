//! Measurements of whole processes: time and peak memory.

use std::error::Error;
use std::io::{self, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use nix::unistd::Pid;

use super::THIS;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    /// The wall time from before the fork until the end of the process.
    pub(crate) wall: Duration,
    /// The processor time of all threads, in user and kernel mode.
    pub(crate) processor: Duration,
}

fn processor_time_of_children() -> Result<Duration, Box<dyn Error>> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let time = usage.user_time() + usage.system_time();
    Ok(Duration::from_micros(time.num_microseconds().try_into()?))
}

/// A program and its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    program: String,
    arguments: Vec<String>,
}

impl Process {
    pub(crate) fn new(program: impl Into<String>, arguments: &[&str]) -> Self {
        Self { program: program.into(), arguments: arguments.iter().map(|&word| word.to_owned()).collect() }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    /// Runs the program and returns its output.
    pub(crate) fn answer(&self) -> Result<String, Box<dyn Error>> {
        let output = self.command().stdout(Stdio::piped()).stderr(Stdio::inherit()).output()?;
        if output.status.success() {
            Ok(String::from_utf8(output.stdout)?)
        } else {
            Err(format!("{self:?}: {}", output.status).into())
        }
    }

    /// Runs the program with its output to /dev/null.
    pub(crate) fn run(&self) -> Result<Cost, Box<dyn Error>> {
        let (processor, begun) = (processor_time_of_children()?, Instant::now());
        let status = self.command().status()?;
        let cost = Cost { wall: begun.elapsed(), processor: processor_time_of_children()?.saturating_sub(processor) };
        if status.success() { Ok(cost) } else { Err(format!("{self:?}: {status}").into()) }
    }

    /// The peak resident set in KiB. A small separate process measures it ([`watch`]), because the kernel keeps only one maximum for all
    /// children of a process, and because the maximum of a child is at least the resident set of its parent at the fork.
    pub(crate) fn peak_kib(&self) -> Result<u32, Box<dyn Error>> {
        let mut watcher = Command::new(THIS);
        let output = watcher.arg(WATCH).arg(&self.program).args(&self.arguments).stderr(Stdio::inherit()).output()?;
        Ok(String::from_utf8(output.stdout)?.trim().parse().map_err(|_| format!("no peak memory of {self:?}"))?)
    }

    pub(crate) fn installed(program: &str) -> bool {
        Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
    }
}

/// The hidden first argument of a process that runs [`watch`].
pub(crate) const WATCH: &str = "--watch-peak-memory";

/// Runs the program with these arguments and prints its peak resident set in KiB.
pub(crate) fn watch(words: &[String]) -> Result<(), Box<dyn Error>> {
    let (program, arguments) = words.split_first().ok_or("no program")?;
    let process = Process { program: program.clone(), arguments: arguments.to_vec() };
    process.run()?;
    Ok(writeln!(io::stdout(), "{}", getrusage(UsageWho::RUSAGE_CHILDREN)?.max_rss())?)
}

/// Runs a closure, and the processes that it starts, on the first core that the calling thread may use.
pub(crate) fn on_one_core<T>(run: impl FnOnce() -> T) -> nix::Result<T> {
    let own_thread = Pid::from_raw(0);
    let all = sched_getaffinity(own_thread)?;
    let mut one = CpuSet::new();
    one.set((0..CpuSet::count()).find(|&core| all.is_set(core) == Ok(true)).unwrap_or(0))?;
    sched_setaffinity(own_thread, &one)?;
    let result = run();
    sched_setaffinity(own_thread, &all)?;
    Ok(result)
}
