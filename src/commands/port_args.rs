//! Arguments that `bind-test` and `wait` share: the address, the options and the user of the server whose bind is tested.

use clap::{Args, ValueEnum};

use crate::model::addr::{AddrError, ScopedAddr};
use crate::model::bind::ReuseOptions;
use crate::model::port::PortArg;
use crate::model::user::UserArg;
use crate::snapshot::error::without_value;
use crate::snapshot::port::{PortQuestion, ServerQuestion};

/// The address, the options and the user of a server.
#[derive(Args, Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(super) struct ServerArgs {
    /// Address to bind; repeat for more [default: 0.0.0.0 and ::]
    #[arg(long, value_name = "ADDR", value_parser = addr_arg)]
    pub(super) addr: Vec<ScopedAddr>,
    /// Socket options that the server sets before bind()
    #[arg(long, value_enum, default_value_t = WithArg::Reuseaddr, value_name = "OPTIONS")]
    pub(super) with: WithArg,
    /// Set or clear IPV6_V6ONLY on IPv6 sockets [default: the value of net.ipv6.bindv6only]
    #[arg(long, value_enum, value_name = "YES|NO")]
    v6only: Option<YesNo>,
    /// Bind the sockets to this interface (SO_BINDTODEVICE), by its name or number
    #[arg(long, value_name = "IFACE")]
    dev: Option<String>,
    /// Set IP_FREEBIND, to bind an address that does not exist yet
    #[arg(long)]
    freebind: bool,
    /// Set IP_TRANSPARENT, to bind an address of another machine (needs CAP_NET_ADMIN or CAP_NET_RAW)
    #[arg(long)]
    transparent: bool,
    /// Use Multipath TCP sockets (IPPROTO_MPTCP)
    #[arg(long)]
    mptcp: bool,
    /// Bind as this user, a name in /etc/passwd or a number (needs CAP_SETUID and CAP_SETGID)
    #[arg(long, value_name = "NAME|UID", allow_negative_numbers = true)]
    user: Option<UserArg>,
    /// Bind all addresses and listen on them at the same time, as a server with several addresses does
    #[arg(long)]
    together: bool,
}

/// Parses the argument of a command that takes one port. A range is rejected later, when the names of services are resolved.
pub(super) fn one_port(text: &str) -> Result<PortArg, String> {
    text.parse::<PortArg>().map_err(|error| error.for_one_port())
}

/// The clap ids of the arguments in [`ServerArgs`], so that other arguments can declare a conflict with them.
pub(super) const SERVER_ARGS: [&str; 9] =
    ["addr", "with", "v6only", "dev", "freebind", "transparent", "mptcp", "user", "together"];

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum YesNo {
    /// Set the option
    Yes,
    /// Clear the option
    No,
}

impl ServerArgs {
    pub(super) fn question(&self, port: &PortArg, ipv4: Option<bool>) -> PortQuestion {
        let server = ServerQuestion {
            v6only: self.v6only.map(|value| value == YesNo::Yes),
            device: self.dev.clone(),
            freebind: self.freebind,
            transparent: self.transparent,
            mptcp: self.mptcp,
            user: self.user.clone(),
            together: self.together,
        };
        PortQuestion { port: port.clone(), addrs: self.addr.clone(), ipv4, server }
    }

    /// The words of all these arguments except `--addr` and `--with`, for printed commands.
    pub(super) fn setup_words(&self) -> Vec<String> {
        let v6only = self.v6only.map(|value| if value == YesNo::Yes { "yes" } else { "no" });
        let user = self.user.as_ref().map(ToString::to_string);
        let values = [("--v6only", v6only), ("--dev", self.dev.as_deref()), ("--user", user.as_deref())];
        let flags = [
            ("--freebind", self.freebind),
            ("--transparent", self.transparent),
            ("--mptcp", self.mptcp),
            ("--together", self.together),
        ];
        let with_value = values.into_iter().filter_map(|(name, value)| Some([name, value?])).flatten();
        let set = flags.into_iter().filter_map(|(name, set)| set.then_some(name));
        with_value.chain(set).map(str::to_owned).collect()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum WithArg {
    /// No option
    None,
    /// SO_REUSEADDR
    Reuseaddr,
    /// SO_REUSEPORT
    Reuseport,
    /// SO_REUSEADDR and SO_REUSEPORT
    Both,
}

impl WithArg {
    pub(super) const fn options(self) -> ReuseOptions {
        match self {
            Self::None => ReuseOptions::NONE,
            Self::Reuseaddr => ReuseOptions::REUSEADDR,
            Self::Reuseport => ReuseOptions::REUSEPORT,
            Self::Both => ReuseOptions::BOTH,
        }
    }
}

pub(super) fn addr_arg(text: &str) -> Result<ScopedAddr, String> {
    text.parse().map_err(|error: AddrError| without_value(text, &error.to_string()).to_owned())
}
