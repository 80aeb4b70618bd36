//! `--tracer`: the socket of a running `twtool trace --serve`, which has recorded the processes that made buckets.

use std::path::{Path, PathBuf};

use clap::Args;

use super::{CommandError, Context, bad_value};
use crate::model::command::{Caller, Privilege, Shell, quoted};
use crate::snapshot::bucket_owners::{TracedOwners, TracerAnswer};
use crate::snapshot::owner_feed::OwnerFeed;
use crate::view::human;

/// The default of `--tracer`.
const DEFAULT_SOCKET: &str = "/run/twtool.sock";

/// Arguments of commands that ask a tracer for the owners of buckets.
#[derive(Args, Clone, Debug)]
pub(super) struct TracerArgs {
    /// Ask the tracer that listens on this Unix socket (twtool trace --serve) [default: /run/twtool.sock, if a tracer serves it]
    #[arg(long, value_name = "SOCKET")]
    tracer: Option<PathBuf>,
}

impl TracerArgs {
    /// Reads what the tracer has recorded. If a command calls this function before it reads the buckets, the makers of the newest
    /// buckets (the processes that closed the connections) can be unknown. The result is empty if `--tracer` is not given and the tracer of
    /// the default socket does not answer.
    pub(super) fn read(&self) -> Result<TracedOwners, CommandError> {
        let Some(path) = &self.tracer else {
            let path = Path::new(DEFAULT_SOCKET);
            return Ok(TracedOwners::read(path).unwrap_or_else(|error| TracedOwners::unread(path, &error)));
        };
        TracedOwners::read(path).map_err(|error| {
            let why = match TracerAnswer::failed(path, &error) {
                TracerAnswer::Unreadable(why) => why,
                TracerAnswer::Off | TracerAnswer::Complete => format!("no tracer answers there: {error}"),
            };
            bad_value(&path.display(), "--tracer <SOCKET>", &why)
        })
    }

    /// Returns a feed that asks the tracer repeatedly. Fails if no tracer serves the socket of `--tracer`.
    pub(super) fn feed(&self) -> Result<OwnerFeed, CommandError> {
        if self.tracer.is_some() {
            self.read()?;
        }
        Ok(OwnerFeed::new(self.tracer.clone().unwrap_or_else(|| DEFAULT_SOCKET.into())))
    }

    /// Prints how to learn the owners of later buckets, or why the tracer cannot be read, if no tracer has answered and more than half
    /// of the `all` buckets have an unknown owner.
    pub(super) fn hint(traced: &TracedOwners, unknown: u64, all: u64, context: &mut Context) {
        if unknown * 2 <= all {
            return;
        }
        match traced.answer() {
            TracerAnswer::Complete => return,
            TracerAnswer::Unreadable(why) => {
                let _ = writeln!(context.err, "hint: {}", human::escape(why));
                return;
            }
            TracerAnswer::Off => {}
        }
        let shell = Shell { netns: None, caller: context.caller.clone() };
        let line = shell.twtool(Privilege::Root, &["trace", "--serve", DEFAULT_SOCKET]);
        if line.obstacle.is_none() {
            let start = human::escape(&line.text);
            let _ = writeln!(context.err, "hint: no tracer runs. To record the owners of later sockets, run: {start}");
        }
    }

    /// Rejects `--tracer` if `given` is false. `other` names what `--tracer` needs, for the message.
    pub(super) fn needs(&self, other: &str, given: bool) -> Result<(), CommandError> {
        if self.tracer.is_some() && !given {
            return Err(CommandError::Usage(format!("'--tracer' needs {other}")));
        }
        Ok(())
    }
}

/// Explains how the caller can get the capabilities for BPF.
pub(super) fn how_to_permit(caller: &Caller) -> String {
    if caller.root {
        return "the root user of a container or of a user namespace cannot use BPF; run twtool as root of the host"
            .into();
    }
    let program = &caller.twtool_for_root;
    // setcap needs a path.
    let file = if program.contains('/') {
        quoted(program.as_str()).into_owned()
    } else {
        format!("\"$(command -v {program})\"")
    };
    format!("BPF sees every close. Run twtool as root, or run once: sudo setcap cap_bpf,cap_perfmon+ep {file}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn setcap_gets_a_path() {
        let caller = |twtool: &str| Caller { twtool_for_root: twtool.into(), ..Caller::default() };
        let hint = how_to_permit(&caller("twtool"));
        assert!(hint.ends_with("sudo setcap cap_bpf,cap_perfmon+ep \"$(command -v twtool)\""), "{hint}");
        assert!(how_to_permit(&caller("/opt/my tools/twtool")).ends_with("+ep '/opt/my tools/twtool'"));
        assert!(!how_to_permit(&Caller { root: true, ..Caller::default() }).contains("setcap"));
    }
}
