//! One look at who holds which port of the ephemeral range, and at what decides when it is given back: what `capacity` and
//! `doctor` conclude from.

use super::selection::NO_V6ONLY;
use crate::analysis::advice::count;
use crate::analysis::capacity::sockets::Sockets;
use crate::analysis::history::Length;
use crate::filter::{End, Filter};
use crate::model::facts::Unread;
use crate::model::port::PortRange;
use crate::model::socket::StateSet;
use crate::model::tw_reuse::TwReuse;
use crate::source::{self, Source, SourceError, WalkEnd};
use crate::sys;

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
    /// The most sockets that are bound without being among them.
    pub(super) unlisted: u32,
    /// What of that is unknown, and why: sentences.
    pub(super) gaps: Vec<String>,
}

/// Walks over the sockets whose local port is in the range.
pub(super) fn look(source: &mut Source, range: PortRange) -> Result<PortsInUse, SourceError> {
    let mut unread = Unread::default();
    let reuse = source::tw_reuse(&mut unread);
    let (sockets, end) =
        source.collect(StateSet::ALL, &Filter::Port(End::Local, range), || Sockets::new(range), Sockets::add)?;
    let length = Length::learn(source::tw_timeout_s(&mut unread), sockets.largest_expiry_ms());
    let most = if source.lists_bound_sockets() { Ok(Some(0)) } else { sys::counts::most_unlisted_tcp_sockets() };
    let most = most.unwrap_or_else(|error| {
        unread.add("the number of sockets that are in no list", &error);
        None
    });
    let unlisted = most.and_then(|most| u32::try_from(most).ok()).unwrap_or(u32::MAX);
    let mut gaps = unread.sentences();
    let undirected = sockets.undirected();
    if undirected > 0 {
        let counted = count(undirected, "connection");
        gaps.push(format!("{counted} of unknown direction left out: {NO_V6ONLY}"));
    }
    Ok(PortsInUse { sockets, end, reuse, length, unlisted, gaps })
}
