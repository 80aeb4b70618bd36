//! The places where the kernel resumed a dump, and whether it lost or repeated a socket there (steps 1 to 3 of the parent
//! module's documentation).

use std::borrow::Cow;
use std::collections::HashSet;
use std::time::Duration;

use super::datagram::{is_last, sockets};
use super::error::DumpError;
use crate::model::socket::{Cookie, Socket, TcpState};
use crate::sock_diag::lookup::{self, LookupError};
use crate::sock_diag::response;
use crate::sock_diag::transport::Transport;

/// A shorter pause needs no check: of sockets that live for a minute, one in 200,000 goes in it. A look-up costs 1.3 µs
/// (Linux 6.18, 2026-11-25), which is little beside a longer pause.
const SHORT: Duration = Duration::from_micros(300);

/// The sockets before a pause that are looked up: more than a chain has, but for rare chains.
const LOOKED_UP: usize = 4;

/// Resumptions that keep all cookies of the two datagrams beside them. Connections that closed together lie together in
/// the table and expire together, so a few cookies may all be gone. A dump with more resumptions belongs to a slow
/// reader, and there memory matters more.
const FULLY_KEPT: usize = 256;

/// Cookies on each side that every further resumption keeps.
const FEW: usize = 8;

/// A place where the kernel resumed a dump after a pause, and the sockets on both sides.
pub(super) struct Resumption {
    /// Cookies before the place.
    pub(super) before: Vec<Cookie>,
    /// Cookies after it.
    pub(super) after: Vec<Cookie>,
    /// Whether `before` begins at the start of the dump.
    pub(super) from_the_start: bool,
    /// Whether `after` ends at the end of the dump.
    pub(super) to_the_end: bool,
    /// The last sockets before the place.
    last: Vec<Socket>,
}

impl Resumption {
    /// Whether one of the last sockets before the place has gone, or cannot be looked up.
    fn lost_one(&self, transport: &mut dyn Transport) -> Result<bool, DumpError> {
        let Some(kernel) = transport.commands() else { return Ok(false) };
        for socket in &self.last {
            match lookup::find(kernel, socket) {
                Ok(Some(_)) => {}
                Ok(None) | Err(LookupError::Unnamed | LookupError::Refused(_)) => return Ok(true),
                // A late answer would be taken for the answer to the next request.
                Err(error) => return Err(DumpError::LookUp(error)),
            }
        }
        Ok(self.last.is_empty())
    }
}

/// Whether the kernel finds this socket by its cookie with certainty. Listeners and bound sockets lie in other tables.
fn is_connected(socket: &Socket) -> bool {
    !matches!(socket.state(), TcpState::Listen | TcpState::BoundInactive | TcpState::Closed)
}

/// The datagram before a pause.
struct Before {
    cookies: Vec<Cookie>,
    last: Vec<Socket>,
}

/// The resumptions of one dump, in order.
pub(super) struct Resumptions {
    /// Whether resumptions are kept for a check. A recording cannot be asked, and a second dump is not checked itself.
    kept: Option<Vec<Resumption>>,
    /// Number of datagrams that have been read.
    datagrams: usize,
    /// The datagram before, if the kernel paused after it.
    before: Option<Before>,
    /// The last cookie of the datagram before.
    last: Option<Cookie>,
}

impl Resumptions {
    /// Keeps resumptions for [`Self::suspicious`].
    pub(super) const fn checked() -> Self {
        Self { kept: Some(vec![]), datagrams: 0, before: None, last: None }
    }

    /// Only drops repeated sockets.
    pub(super) const fn unchecked() -> Self {
        Self { kept: None, datagrams: 0, before: None, last: None }
    }

    /// The datagram without the sockets that the datagram before it had already.
    pub(super) fn without_repeats<'a>(&mut self, datagram: &'a [u8]) -> Cow<'a, [u8]> {
        let has_sockets = sockets(datagram).next().is_some();
        if let Some(resumption) = self.kept.iter_mut().flatten().last() {
            resumption.to_the_end &= !has_sockets;
        }
        let Some(before) = self.before.take() else {
            // In a short pause hardly more than one socket comes, and then only the last one is repeated.
            let first = sockets(datagram).next().filter(|(payload, _)| response::cookie(payload) == self.last);
            return match first {
                Some((_, bytes)) if self.last.is_some() => without(datagram, [bytes]),
                _ => Cow::Borrowed(datagram),
            };
        };
        if !has_sockets && !is_last(datagram) {
            self.before = Some(before);
            return Cow::Borrowed(datagram);
        }
        let known: HashSet<Cookie> = before.cookies.iter().copied().collect();
        // New sockets may lie before the repeated ones and between them.
        let repeated = sockets(datagram)
            .filter(|(payload, _)| response::cookie(payload).is_some_and(|cookie| known.contains(&cookie)))
            .map(|(_, bytes)| bytes);
        let datagram = without(datagram, repeated.collect::<Vec<_>>());
        self.keep(before, &datagram);
        datagram
    }

    fn keep(&mut self, before: Before, datagram: &[u8]) {
        let from_the_start = self.datagrams == 1;
        let Some(kept) = &mut self.kept else { return };
        let Before { cookies: mut before, last } = before;
        let mut after: Vec<Cookie> = sockets(datagram).filter_map(|(payload, _)| response::cookie(payload)).collect();
        let fully = kept.len() < FULLY_KEPT;
        if !fully {
            before.drain(..before.len().saturating_sub(FEW));
            after.truncate(FEW);
        }
        before.shrink_to_fit();
        after.shrink_to_fit();
        kept.push(Resumption { before, after, from_the_start: fully && from_the_start, to_the_end: fully, last });
    }

    /// Notes the end of a datagram, its last socket, and how long the kernel paused after it.
    pub(super) fn paused(&mut self, datagram: &[u8], last: &[u8], pause: Duration) {
        self.last = response::cookie(last);
        self.datagrams += 1;
        if self.kept.is_some() && pause <= SHORT {
            return;
        }
        let payloads: Vec<_> = sockets(datagram).map(|(payload, _)| payload).collect();
        let from_the_end = payloads.iter().rev().filter_map(|payload| response::decode(payload).ok());
        self.before = Some(Before {
            cookies: payloads.iter().filter_map(|payload| response::cookie(payload)).collect(),
            last: from_the_end.filter(is_connected).take(LOOKED_UP).collect(),
        });
    }

    /// The resumptions at which the kernel may have lost a socket.
    pub(super) fn suspicious(self, transport: &mut dyn Transport) -> Result<Vec<Resumption>, DumpError> {
        let mut suspicious = vec![];
        for resumption in self.kept.into_iter().flatten() {
            if resumption.lost_one(transport)? {
                suspicious.push(resumption);
            }
        }
        Ok(suspicious)
    }
}

/// The datagram without these messages.
fn without(datagram: &[u8], messages: impl IntoIterator<Item = std::ops::Range<usize>>) -> Cow<'_, [u8]> {
    let mut kept = Cow::Borrowed(datagram);
    let mut removed = 0;
    for bytes in messages {
        kept.to_mut().drain(bytes.start - removed..bytes.end - removed);
        removed += bytes.len();
    }
    kept
}
