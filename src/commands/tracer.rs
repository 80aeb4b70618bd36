//! `--tracer`: the socket of a running `twtool trace --serve`, which has recorded the processes that made buckets.

use std::path::{Path, PathBuf};

use clap::Args;

use super::{CommandError, Context, bad_value};
use crate::model::command::{Privilege, Shell};
use crate::snapshot::bucket_owners::Traced;
use crate::view::human;

/// The default of `--tracer`.
const USUAL: &str = "/run/twtool.sock";

/// Arguments of commands that ask a tracer for the owners of buckets.
#[derive(Args, Clone, Debug)]
pub(super) struct TracerArgs {
    /// Ask the tracer that serves this socket (twtool trace --serve) [default: /run/twtool.sock, if a tracer serves it]
    #[arg(long, value_name = "SOCKET")]
    tracer: Option<PathBuf>,
}

impl TracerArgs {
    /// Reads what the tracer has recorded. Call it after reading the buckets, so that the reply includes the newest ones. Without
    /// `--tracer`, and if no tracer serves the default socket, the result is empty.
    pub(super) fn read(&self) -> Result<Traced, CommandError> {
        match &self.tracer {
            Some(path) => Traced::read(path).map_err(|error| {
                bad_value(&path.display(), "--tracer <SOCKET>", &format!("no tracer answers there: {error}"))
            }),
            None => Ok(Traced::read(Path::new(USUAL)).unwrap_or_default()),
        }
    }

    /// Prints how to learn the owners of later buckets, if no tracer has answered and most of these `all` buckets have no owner.
    pub(super) fn hint(traced: &Traced, unknown: u64, all: u64, context: &mut Context) {
        if traced.of_a_tracer() || unknown * 2 <= all {
            return;
        }
        let shell = Shell { netns: None, caller: context.caller.clone() };
        let line = shell.twtool(Privilege::Root, &["trace", "--serve", USUAL]);
        if line.obstacle.is_none() {
            let start = human::escape(&line.text);
            let _ =
                writeln!(context.err, "hint: no tracer runs; a tracer records the owners from its start on: {start}");
        }
    }

    /// Rejects the option without the other one that gives it a meaning.
    pub(super) fn needs(&self, other: &str, given: bool) -> Result<(), CommandError> {
        if self.tracer.is_some() && !given {
            return Err(CommandError::Usage(format!("'--tracer' needs {other}")));
        }
        Ok(())
    }
}
