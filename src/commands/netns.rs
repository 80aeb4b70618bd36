//! `--netns` and `--all-netns`: the network namespaces that a command reads.

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};

use super::{CommandError, Context};
use crate::model::command::Shell;
use crate::model::netns::NetnsArg;
use crate::snapshot::{Namespaces, Snapshot};

/// Parses the value of `--netns` from bytes, because the name of a file need not be UTF-8.
fn netns_arg() -> impl TypedValueParser<Value = NetnsArg> {
    OsStringValueParser::new().try_map(NetnsArg::try_from)
}

/// Arguments of commands that read one network namespace.
#[derive(Args, Clone, Debug)]
pub struct NetnsArgs {
    /// Use this network namespace: a name of `ip netns`, a path, or a process ID
    #[arg(long, value_name = "NAME|PATH|PID", value_parser = netns_arg(), allow_negative_numbers = true)]
    netns: Option<NetnsArg>,
}

impl NetnsArgs {
    /// The shell in which the user runs the commands that twtool prints.
    #[must_use]
    pub fn shell(&self, context: &Context) -> Shell {
        Shell { netns: self.netns.clone(), caller: context.caller.clone() }
    }

    /// A snapshot source for the selected network namespace.
    ///
    /// # Errors
    /// The namespace does not exist or cannot be opened.
    pub fn snapshot(&self) -> Result<Snapshot, CommandError> {
        Ok(Snapshot::of(Namespaces::named(self.netns.as_slice())?))
    }
}

/// Arguments of commands that read one or several network namespaces.
#[derive(Args, Clone, Debug)]
pub struct ManyNetnsArgs {
    /// Use this network namespace: a name of `ip netns`, a path, or a process ID; repeat for more
    #[arg(
        long,
        value_name = "NAME|PATH|PID",
        value_parser = netns_arg(),
        allow_negative_numbers = true,
        conflicts_with = "replay"
    )]
    netns: Vec<NetnsArg>,
    /// Use every network namespace that /proc/PID/ns/net and /run/netns show
    #[arg(long, conflicts_with_all = ["netns", "record", "replay"])]
    all_netns: bool,
}

impl ManyNetnsArgs {
    /// The shell in which the user runs the commands that twtool prints; `None` if the answer can cover several namespaces.
    #[must_use]
    pub fn shell(&self, context: &Context) -> Option<Shell> {
        (!self.several()).then(|| Shell { netns: self.netns.first().cloned(), caller: context.caller.clone() })
    }

    /// Whether the answer can cover more than one network namespace.
    #[must_use]
    pub fn several(&self) -> bool {
        self.all_netns || self.netns.len() > 1
    }

    /// Rejects several namespaces if `flag`, which supports only one, was given.
    ///
    /// # Errors
    /// The flag was given together with several namespaces.
    pub fn one_with(&self, flag: &str, given: bool) -> Result<(), CommandError> {
        if given && self.several() {
            return Err(CommandError::Usage(format!("'{flag}' works on one network namespace; give at most one '--netns'")));
        }
        Ok(())
    }

    /// Finds the selected namespaces. A namespace with several names is returned once.
    ///
    /// # Errors
    /// A selected namespace does not exist or cannot be opened.
    pub fn namespaces(&self) -> Result<Namespaces, CommandError> {
        Ok(if self.all_netns { Namespaces::all() } else { Namespaces::named(&self.netns)? })
    }
}
