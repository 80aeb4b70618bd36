//! `--netns`, `--container` and `--all-netns`: the network namespaces that a command reads.

use std::sync::OnceLock;

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};

use super::{CommandError, Context};
use crate::model::command::Shell;
use crate::model::container::ContainerArg;
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
    /// Use the network namespace of this container: its id in docker, podman, containerd or cri-o, or the beginning of it
    #[arg(long, value_name = "ID", conflicts_with = "netns")]
    container: Option<ContainerArg>,
    #[arg(skip)]
    selected: OnceLock<Vec<NetnsArg>>,
}

/// The selected namespaces. After the first success, this function does not search for containers again.
fn selected<'a>(
    found: &'a OnceLock<Vec<NetnsArg>>,
    netns: &[NetnsArg],
    containers: &[ContainerArg],
) -> Result<&'a [NetnsArg], CommandError> {
    if let Some(found) = found.get() {
        return Ok(found);
    }
    let mut all = netns.to_owned();
    for container in containers {
        all.push(Namespaces::container(container)?);
    }
    Ok(found.get_or_init(|| all))
}

impl NetnsArgs {
    /// The shell in which the user runs the commands that twtool prints.
    #[must_use]
    pub fn shell(&self, context: &Context) -> Shell {
        Shell { netns: self.selected().ok().and_then(<[_]>::first).cloned(), caller: context.caller.clone() }
    }

    fn selected(&self) -> Result<&[NetnsArg], CommandError> {
        selected(&self.selected, self.netns.as_slice(), self.container.as_slice())
    }

    /// A snapshot source for the selected network namespace.
    ///
    /// # Errors
    /// The namespace does not exist or cannot be opened.
    pub fn snapshot(&self) -> Result<Snapshot, CommandError> {
        Ok(Snapshot::of(Namespaces::named(self.selected()?)?))
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
        allow_negative_numbers = true
    )]
    netns: Vec<NetnsArg>,
    /// Use the network namespace of this container: its id in docker, podman, containerd or cri-o, or the beginning of it; repeat
    /// for more
    #[arg(long, value_name = "ID")]
    container: Vec<ContainerArg>,
    /// Use every network namespace that /proc/PID/ns/net and /run/netns show
    #[arg(long, conflicts_with_all = ["netns", "container"])]
    all_netns: bool,
    #[arg(skip)]
    selected: OnceLock<Vec<NetnsArg>>,
}

impl ManyNetnsArgs {
    /// The shell in which the user runs the commands that twtool prints; `None` if the answer can cover several namespaces.
    #[must_use]
    pub fn shell(&self, context: &Context) -> Option<Shell> {
        let netns = || self.selected().ok().and_then(<[_]>::first).cloned();
        (!self.several()).then(|| Shell { netns: netns(), caller: context.caller.clone() })
    }

    fn selected(&self) -> Result<&[NetnsArg], CommandError> {
        selected(&self.selected, &self.netns, &self.container)
    }

    /// Whether the answer can cover more than one network namespace.
    #[must_use]
    pub fn several(&self) -> bool {
        self.all_netns || self.netns.len() + self.container.len() > 1
    }

    /// Whether an option selects network namespaces.
    #[cfg(feature = "exporter")]
    #[must_use]
    pub const fn selects_namespaces(&self) -> bool {
        self.all_netns || !self.netns.is_empty() || !self.container.is_empty()
    }

    /// Whether the same selection can contain other namespaces later.
    #[cfg(feature = "exporter")]
    #[must_use]
    pub const fn can_change(&self) -> bool {
        self.all_netns || !self.container.is_empty()
    }

    /// Whether every namespace is selected, including namespaces that are made later.
    #[must_use]
    pub const fn are_all(&self) -> bool {
        self.all_netns
    }

    /// Rejects several namespaces if `flag`, which supports only one, was given.
    ///
    /// # Errors
    /// The flag was given together with several namespaces.
    pub fn one_with(&self, flag: &str, given: bool) -> Result<(), CommandError> {
        if given && self.several() {
            return Err(CommandError::Usage(format!(
                "'{flag}' works on one network namespace; give at most one '--netns' or '--container'"
            )));
        }
        Ok(())
    }

    /// Finds the selected namespaces. A namespace with several names is returned once.
    ///
    /// # Errors
    /// A selected namespace does not exist or cannot be opened.
    pub fn namespaces(&self) -> Result<Namespaces, CommandError> {
        Ok(if self.all_netns { Namespaces::all() } else { Namespaces::named(self.selected()?)? })
    }
}

/// Arguments of commands that cover every network namespace unless some are selected.
#[cfg(feature = "trace")]
#[derive(Args, Clone, Debug)]
pub struct SomeNetnsArgs {
    /// Only this network namespace: a name of `ip netns`, a path, or a process ID; repeat for more [default: all]
    #[arg(long, value_name = "NAME|PATH|PID", value_parser = netns_arg(), allow_negative_numbers = true)]
    netns: Vec<NetnsArg>,
    /// Only the network namespace of this container: its id in docker, podman, containerd or cri-o, or the beginning of it; repeat
    /// for more
    #[arg(long, value_name = "ID")]
    container: Vec<ContainerArg>,
    #[arg(skip)]
    selected: OnceLock<Vec<NetnsArg>>,
}

#[cfg(feature = "trace")]
impl SomeNetnsArgs {
    /// Finds the selected namespaces; `None` if no option selects one, which means every namespace.
    ///
    /// # Errors
    /// A selected namespace does not exist or cannot be opened.
    pub fn namespaces(&self) -> Result<Option<Namespaces>, CommandError> {
        let selected = selected(&self.selected, &self.netns, &self.container)?;
        Ok(if selected.is_empty() { None } else { Some(Namespaces::named(selected)?) })
    }
}
