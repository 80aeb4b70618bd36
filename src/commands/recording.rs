//! `--record`, `--force` and `--replay`: whether a command reads the kernel or a recording.

use std::path::PathBuf;

use clap::Args;

use crate::snapshot::{Choice, Input};

/// For commands that can record and replay what they read.
#[derive(Args, Clone, Debug)]
pub(super) struct RecordingArgs {
    /// Write down what the kernel says and all that the answer depends on
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Replace the file of --record where it exists, if there is an answer
    #[arg(long, requires = "record")]
    force: bool,
    /// Read from a recording instead of the kernel
    #[arg(long, value_name = "FILE", conflicts_with = "record")]
    replay: Option<PathBuf>,
}

impl RecordingArgs {
    /// What is read; `choice` is for the kernel.
    pub(super) fn input(&self, choice: Choice) -> Input {
        match (&self.record, &self.replay) {
            (Some(path), _) => Input::Recorded { path: path.clone(), replace: self.force },
            (None, Some(path)) => Input::Recording(path.clone()),
            (None, None) => Input::Kernel(choice),
        }
    }

    /// Whether a recording is written.
    pub(super) const fn records(&self) -> bool {
        self.record.is_some()
    }

    /// Whether a recording is read.
    pub(super) const fn replays(&self) -> bool {
        self.replay.is_some()
    }
}
