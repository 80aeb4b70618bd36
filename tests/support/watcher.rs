//! Runs `twtool watch -o ndjson` beside a test. The test waits for samples instead of sleeping.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::kernel;
use super::records::{number, text};
use super::twtool::command;

/// A running `twtool watch` of the namespace of the calling thread. Dropping this value ends it.
pub(crate) struct Watcher {
    child: Child,
    records: Receiver<Value>,
    pub(crate) events: Vec<Value>,
}

impl Watcher {
    /// Starts the watch, and waits for the first sample.
    pub(crate) fn start(interval: &str, more: &[&str]) -> Self {
        let args = [["watch", "-o", "ndjson", "--interval", interval].as_slice(), more].concat();
        let mut child = command(args).stdout(Stdio::piped()).spawn().expect("twtool starts");
        let out = BufReader::new(child.stdout.take().expect("a pipe"));
        let (send, records) = channel();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                let record = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"));
                if send.send(record).is_err() {
                    return;
                }
            }
        });
        let mut watcher = Self { child, records, events: vec![] };
        watcher.next_sample();
        watcher
    }

    /// Reads up to the next sample, adds the events before it to `events`, and returns the sample.
    #[track_caller]
    pub(crate) fn next_sample(&mut self) -> Value {
        loop {
            let record = self.records.recv_timeout(kernel::patience(Duration::from_secs(30))).expect("a sample");
            if text(&record, "type") == "sample" {
                return record;
            }
            self.events.push(record);
        }
    }

    /// Waits for a sample with these numbers of buckets, and then for two more samples. The first of the two began after all changes
    /// that led to these numbers, and its events come before the second one. So `events` then has the events of all these changes.
    #[track_caller]
    pub(crate) fn wait_for_buckets(&mut self, time_wait: usize, fin_wait_2: usize) {
        let patience = kernel::patience(Duration::from_secs(20));
        self.try_to_wait_for_buckets(time_wait, fin_wait_2, patience).unwrap_or_else(|why| panic!("{why}"));
    }

    /// Like [`Self::wait_for_buckets`], but returns an error after this time. The error has the numbers of buckets in the last sample.
    #[track_caller]
    pub(crate) fn try_to_wait_for_buckets(
        &mut self,
        time_wait: usize,
        fin_wait_2: usize,
        patience: Duration,
    ) -> Result<(), String> {
        let expected = (time_wait as u64, fin_wait_2 as u64);
        let mut last = (0, 0);
        let began = Instant::now();
        while began.elapsed() < patience {
            let sample = self.next_sample();
            last = (number(&sample, "time_wait"), number(&sample, "fin_wait_2"));
            if last == expected {
                self.next_sample();
                self.next_sample();
                return Ok(());
            }
        }
        Err(format!("{last:?} buckets instead of {expected:?}"))
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
