//! Arguments that `bind-test` and `wait` share: the socket options and the addresses of a server.

use clap::ValueEnum;

use crate::model::addr::{AddrError, ScopedAddr};
use crate::model::bind::ReuseOptions;
use crate::snapshot::error::without_value;

/// The socket options that a server sets before bind().
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum With {
    /// No option
    None,
    /// SO_REUSEADDR
    Reuseaddr,
    /// SO_REUSEPORT
    Reuseport,
    /// Both
    Both,
}

impl With {
    pub(super) const fn options(self) -> ReuseOptions {
        match self {
            Self::None => ReuseOptions::NONE,
            Self::Reuseaddr => ReuseOptions::REUSEADDR,
            Self::Reuseport => ReuseOptions::REUSEPORT,
            Self::Both => ReuseOptions::BOTH,
        }
    }
}

/// Parses an address with an optional scope.
pub(super) fn addr_arg(text: &str) -> Result<ScopedAddr, String> {
    text.parse().map_err(|error: AddrError| without_value(text, &error.to_string()).to_owned())
}
