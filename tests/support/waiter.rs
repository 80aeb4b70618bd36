//! Runs `twtool wait` beside a test, and reads its records and its processor time while it waits.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, ChildStderr, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::twtool::{Run, command};

/// A running `twtool wait -o ndjson`. Dropping this value ends the process.
pub(crate) struct Waiter {
    command: Command,
    child: Child,
    records: BufReader<ChildStdout>,
    errors: BufReader<ChildStderr>,
    began: Instant,
}

pub(crate) struct Ended {
    /// The exit code of the process, and the output that was not read before.
    pub(crate) run: Run,
    /// The last record on stdout that was not read before, or null.
    pub(crate) last: Value,
}

impl Waiter {
    /// Starts `twtool wait` with these arguments, the port first.
    #[track_caller]
    pub(crate) fn start(args: &[&str]) -> Self {
        let mut command = command([&["wait", "-o", "ndjson"], args].concat());
        let started = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = started.expect("twtool can be started");
        let records = BufReader::new(child.stdout.take().expect("a pipe"));
        let errors = BufReader::new(child.stderr.take().expect("a pipe"));
        Self { command, child, records, errors, began: Instant::now() }
    }

    #[track_caller]
    pub(crate) fn record(&mut self) -> Value {
        let mut line = String::new();
        self.records.read_line(&mut line).expect("a line");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?} is not a record: {error}"))
    }

    /// Reads the next line on standard error. A wait with a command writes its records there.
    #[track_caller]
    pub(crate) fn error_line(&mut self) -> String {
        let mut line = String::new();
        self.errors.read_line(&mut line).expect("a line");
        line
    }

    /// Reads the next record, and asserts that it reports the port as blocked for this reason.
    #[track_caller]
    pub(crate) fn blocked(&mut self, cause: &str) -> Value {
        let record = self.record();
        assert_eq!((&record["bindable"], &record["cause"]), (&false.into(), &cause.into()), "{record}");
        record
    }

    /// The processor time of the main thread so far (`sum_exec_runtime` in /proc/PID/schedstat). `None` if it cannot be read.
    pub(crate) fn cpu(&self) -> Option<Duration> {
        let text = std::fs::read_to_string(format!("/proc/{}/schedstat", self.child.id())).ok()?;
        let ns = text.split(' ').next()?.parse().ok().filter(|ns| *ns > 0)?;
        Some(Duration::from_nanos(ns))
    }

    pub(crate) fn age(&self) -> Duration {
        self.began.elapsed()
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("our own child").is_some()
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    #[track_caller]
    pub(crate) fn end(mut self) -> Ended {
        let (mut stdout, mut stderr) = (vec![], vec![]);
        self.records.read_to_end(&mut stdout).expect("its records");
        self.errors.read_to_end(&mut stderr).expect("its warnings");
        let status = self.child.wait().expect("our own child");
        let run = Run::ended(&self.command, &Output { status, stdout, stderr });
        let last = run.ndjson().pop().unwrap_or(Value::Null);
        Ended { run, last }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        // After a failed assertion, the process is still running.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
