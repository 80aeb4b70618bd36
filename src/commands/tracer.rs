//! `--tracer`: the socket of a running `twtool trace --serve`, which has recorded the processes that made buckets.

use std::path::{Path, PathBuf};

use clap::Args;

use super::{CommandError, bad_value};
use crate::snapshot::bucket_owners::Traced;

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

    /// Rejects the option without the other one that gives it a meaning.
    pub(super) fn needs(&self, other: &str, given: bool) -> Result<(), CommandError> {
        if self.tracer.is_some() && !given {
            return Err(CommandError::Usage(format!("'--tracer' needs {other}")));
        }
        Ok(())
    }
}
