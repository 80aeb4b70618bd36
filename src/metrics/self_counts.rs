//! The samples about twtool itself.

use std::time::SystemTime;

use super::family::MetricFamily;
use super::samples::Samples;
use super::survey::{NO_LABELS, seconds_since_1970};
use crate::snapshot::survey::Surveys;
use crate::sys;

/// What twtool counts about itself since it started.
#[derive(Clone, Copy, Debug)]
pub struct SelfCounts {
    started: SystemTime,
    repeats: u64,
    recovered: u64,
}

impl SelfCounts {
    /// Starts to count. The present time becomes the start time of the process.
    #[must_use]
    pub fn start() -> Self {
        Self { started: sys::clock::now(), repeats: 0, recovered: 0 }
    }

    /// Adds the repeated reads and the recovered sockets of a collection to the counts.
    pub fn count(&mut self, surveys: &Surveys) {
        for survey in &surveys.namespaces {
            self.repeats += u64::from(survey.repeats);
            self.recovered += survey.recovered as u64;
        }
    }

    /// Adds the samples about twtool itself to `samples`.
    pub fn add(&self, samples: &mut Samples) {
        samples.add(MetricFamily::BuildInfo, [env!("CARGO_PKG_VERSION")], true);
        samples.add(MetricFamily::DumpRepeats, NO_LABELS, self.repeats);
        samples.add(MetricFamily::DumpRecovered, NO_LABELS, self.recovered);
        samples.add(MetricFamily::ProcessCpu, NO_LABELS, sys::clock::processor_time().as_secs_f64());
        samples.add_known(MetricFamily::ProcessMemory, NO_LABELS, sys::own_process::resident_bytes().ok());
        samples.add_known(MetricFamily::ProcessStart, NO_LABELS, seconds_since_1970(self.started));
    }
}
