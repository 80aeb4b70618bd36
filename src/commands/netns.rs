//! `--netns` and `--all-netns`: in which network namespaces a command looks.

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};

use super::{CommandError, Context};
use crate::model::command::Shell;
use crate::model::netns::NetnsArg;
use crate::snapshot::{Namespaces, Snapshot};

/// A name is that of a file, which need not be UTF-8.
fn netns_arg() -> impl TypedValueParser<Value = NetnsArg> {
    OsStringValueParser::new().try_map(NetnsArg::try_from)
}

/// For commands that look into one namespace.
#[derive(Args, Clone, Debug)]
pub struct NetnsArgs {
    /// Look into this network namespace: a name of `ip netns`, a path, or a process by its number
    #[arg(long, value_name = "NAME|PATH|PID", value_parser = netns_arg(), allow_negative_numbers = true)]
    netns: Option<NetnsArg>,
}

impl NetnsArgs {
    /// The shell that printed commands are for.
    #[must_use]
    pub fn shell(&self, context: &Context) -> Shell {
        Shell { netns: self.netns.clone(), caller: context.caller.clone() }
    }

    /// The kernel as seen from there.
    ///
    /// # Errors
    /// There is no such namespace, or it cannot be opened.
    pub fn snapshot(&self) -> Result<Snapshot, CommandError> {
        Ok(Snapshot::of(Namespaces::named(self.netns.as_slice())?))
    }
}

/// For commands that may look into several.
#[derive(Args, Clone, Debug)]
pub struct ManyNetnsArgs {
    /// Look into this network namespace: a name of `ip netns`, a path, or a process by its number; repeat for more
    #[arg(
        long,
        value_name = "NAME|PATH|PID",
        value_parser = netns_arg(),
        allow_negative_numbers = true,
        conflicts_with = "replay"
    )]
    netns: Vec<NetnsArg>,
    /// Look into every network namespace that /proc/PID/ns/net and /run/netns show
    #[arg(long, conflicts_with_all = ["netns", "record", "replay"])]
    all_netns: bool,
}

impl ManyNetnsArgs {
    /// The shell that printed commands are for; `None` if the answer may be about several namespaces.
    #[must_use]
    pub fn shell(&self, context: &Context) -> Option<Shell> {
        (!self.several()).then(|| Shell { netns: self.netns.first().cloned(), caller: context.caller.clone() })
    }

    /// Whether the answer may be about more than one.
    #[must_use]
    pub fn several(&self) -> bool {
        self.all_netns || self.netns.len() > 1
    }

    /// Refuses several namespaces if a flag was given that is about one.
    ///
    /// # Errors
    /// Several may be asked for, and the flag was given.
    pub fn one_with(&self, flag: &str, given: bool) -> Result<(), CommandError> {
        if given && self.several() {
            return Err(CommandError::Usage(format!("'{flag}' is about one network namespace; give one '--netns'")));
        }
        Ok(())
    }

    /// Finds them, each once, whatever it was called.
    ///
    /// # Errors
    /// A namespace that was named does not exist or cannot be opened.
    pub fn namespaces(&self) -> Result<Namespaces, CommandError> {
        Ok(if self.all_netns { Namespaces::all() } else { Namespaces::named(&self.netns)? })
    }
}
