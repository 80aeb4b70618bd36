//! `--netns` and `--all-netns`: in which network namespaces a command looks.

use clap::Args;

use super::CommandError;
use crate::model::netns::NetnsArg;
use crate::sys::netns::{self, Found, OpenNetns};

/// For commands that look into one namespace.
#[derive(Args, Clone, Debug)]
pub struct NetnsArgs {
    /// Look into this network namespace: a name of `ip netns`, a path, or a process by its number
    #[arg(long, value_name = "NAME|PATH|PID", allow_negative_numbers = true)]
    netns: Option<NetnsArg>,
}

impl NetnsArgs {
    /// Runs the command there: what it reads, and the sockets that it makes, are that namespace's.
    ///
    /// # Errors
    /// There is no such namespace, or it cannot be entered; what the command says.
    pub fn within<T: Send>(&self, run: impl FnOnce() -> Result<T, CommandError> + Send) -> Result<T, CommandError> {
        match &self.netns {
            None => run(),
            Some(arg) => netns::within(&netns::open(arg)?, run)?,
        }
    }
}

/// For commands that may look into several.
#[derive(Args, Clone, Debug)]
pub struct ManyNetnsArgs {
    /// Look into this network namespace: a name of `ip netns`, a path, or a process by its number; repeat for more
    #[arg(long, value_name = "NAME|PATH|PID", allow_negative_numbers = true, conflicts_with = "replay")]
    netns: Vec<NetnsArg>,
    /// Look into every network namespace that /proc/PID/ns/net and /run/netns show
    #[arg(long, conflicts_with_all = ["netns", "record", "replay", "explain_filter"])]
    all_netns: bool,
}

/// Where to look.
pub enum Where {
    /// Where twtool runs.
    Here,
    /// In this one.
    In(OpenNetns),
    /// In all of these.
    Among(Found),
}

impl ManyNetnsArgs {
    /// Whether the answer may be about more than one.
    #[must_use]
    pub fn several(&self) -> bool {
        self.all_netns || self.netns.len() > 1
    }

    /// Finds them, each once, whatever it was called.
    ///
    /// # Errors
    /// One that was asked for by name is not there.
    pub fn find(&self) -> Result<Where, CommandError> {
        if self.all_netns {
            return Ok(Where::Among(netns::all()));
        }
        let mut namespaces: Vec<OpenNetns> = vec![];
        for arg in &self.netns {
            let opened = netns::open(arg)?;
            if namespaces.iter().all(|other| other.netns.id != opened.netns.id) {
                namespaces.push(opened);
            }
        }
        Ok(match namespaces.len() {
            0 => Where::Here,
            1 => namespaces.pop().map_or(Where::Here, Where::In),
            _ => Where::Among(Found { namespaces, unseen: vec![] }),
        })
    }
}
