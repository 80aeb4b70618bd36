//! One look at who holds which port of the ephemeral range, and at what decides when it is given back: what `capacity` and
//! `doctor` conclude from.

use crate::analysis::capacity::sockets::Sockets;
use crate::analysis::history::Length;
use crate::filter::{End, Filter};
use crate::model::facts::Facts;
use crate::model::port::PortRange;
use crate::model::socket::StateSet;
use crate::model::tw_reuse::TwReuse;
use crate::source::{self, Origin, Source, SourceError, WalkEnd};

/// What the look gave.
pub(super) struct PortsInUse {
    /// By whom.
    pub(super) sockets: Sockets,
    /// How the walk ended.
    pub(super) end: WalkEnd,
    /// When connect() may take a bucket over.
    pub(super) reuse: TwReuse,
    /// How long TIME_WAIT lasts.
    pub(super) length: Length,
    /// Whether sockets that are bound and not connected are among them.
    pub(super) unconnected_are_listed: bool,
}

/// Walks over the sockets whose local port is in the range.
pub(super) fn look(source: &mut Source, facts: &Facts, range: PortRange) -> Result<PortsInUse, SourceError> {
    let reuse = source::tw_reuse();
    let (sockets, end) =
        source.collect(StateSet::ALL, &Filter::Port(End::Local, range), || Sockets::new(range), Sockets::add)?;
    let length = Length::learn(source::tw_timeout_s(), sockets.largest_expiry_ms());
    let unconnected_are_listed = source.origin() == Origin::SockDiag && facts.kernel_since(6, 8) != Some(false);
    Ok(PortsInUse { sockets, end, reuse, length, unconnected_are_listed })
}
