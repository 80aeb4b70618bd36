//! `--record`, `--force` and `--replay`: whether a command reads the kernel or a recording.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::snapshot::{Input, SourceChoice};

/// Arguments of commands that can record and replay what they read, and that have the arguments of `ManyNetnsArgs`.
#[derive(Args, Clone, Debug)]
pub(super) struct RecordingArgs {
    /// Record the data of the kernel and all facts that the output depends on
    #[arg(long, value_name = "FILE", conflicts_with = "all_netns")]
    record: Option<PathBuf>,
    /// Let --record replace an existing file
    #[arg(long, requires = "record")]
    force: bool,
    /// Read from a recording instead of the kernel
    #[arg(long, value_name = "FILE", conflicts_with_all = ["record", "netns", "container", "all_netns"])]
    replay: Option<PathBuf>,
}

impl RecordingArgs {
    /// Selects what to read: the kernel through the interface of `choice`, or a recording.
    pub(super) fn input(&self, choice: SourceChoice) -> Input {
        match (&self.record, &self.replay) {
            (Some(path), _) => Input::Recorded { path: path.clone(), replace: self.force },
            (None, Some(path)) => Input::Recording(path.clone()),
            (None, None) => Input::Kernel(choice),
        }
    }

    /// The file to record to, and whether to replace an existing one.
    #[cfg(feature = "watch")]
    pub(super) fn recorded(&self) -> Option<(&Path, bool)> {
        Some((self.record.as_deref()?, self.force))
    }

    /// The recording to read.
    pub(super) fn replayed(&self) -> Option<&Path> {
        self.replay.as_deref()
    }

    pub(super) const fn records(&self) -> bool {
        self.record.is_some()
    }

    pub(super) const fn replays(&self) -> bool {
        self.replay.is_some()
    }
}
