//! Finds the points at which the kernel resumed a dump, and whether it lost or repeated a socket there (steps 1 to 3 of
//! the parent module's documentation).

use std::borrow::Cow;
use std::collections::HashSet;
use std::time::Duration;

use super::datagram::{is_last, sockets};
use super::error::DumpError;
use crate::model::socket::{Cookie, Socket, TcpState};
use crate::sock_diag::lookup::{self, LookupError};
use crate::sock_diag::response;
use crate::sock_diag::transport::Transport;

/// Pauses up to this length are not checked. Of the sockets that live for a minute, one in 200,000 is removed during such a
/// pause. A look-up costs 1.3 µs (Linux 6.18, 2026-11-25), which is little compared with a longer pause.
const SHORT: Duration = Duration::from_micros(300);

/// The number of sockets before a pause that are looked up. Only rare chains have more sockets.
const LOOKED_UP: usize = 4;

/// The number of resumptions that keep all cookies of the datagrams before and after them. Connections that closed
/// together are adjacent in the table and expire together, so a few adjacent cookies may all be gone. More resumptions
/// than this mean that the output has a slow reader, and then memory matters more.
const FULLY_KEPT: usize = 256;

/// The number of cookies that every further resumption keeps on each side.
const FEW: usize = 8;

/// A point at which the kernel resumed a dump after a pause, and the sockets on both sides of it.
pub(super) struct Resumption {
    /// The cookies before it.
    pub(super) before: Vec<Cookie>,
    /// The cookies after it.
    pub(super) after: Vec<Cookie>,
    /// Whether `before` begins at the start of the dump.
    pub(super) from_the_start: bool,
    /// Whether `after` ends at the end of the dump.
    pub(super) to_the_end: bool,
    /// The last sockets before it.
    last: Vec<Socket>,
}

impl Resumption {
    /// Whether one of the last sockets before it is gone, or cannot be looked up.
    fn may_have_lost_a_socket(&self, transport: &mut dyn Transport) -> Result<bool, DumpError> {
        let Some(kernel) = transport.commands() else { return Ok(false) };
        for socket in &self.last {
            match lookup::find(kernel, socket) {
                Ok(Some(_)) => {}
                Ok(None) | Err(LookupError::Unnamed | LookupError::Refused(_)) => return Ok(true),
                // A late response would be read as the response to the next request.
                Err(error) => return Err(DumpError::LookUp(error)),
            }
        }
        Ok(self.last.is_empty())
    }
}

/// Whether a look-up finds this socket with certainty. The kernel keeps listeners and bound sockets in other tables.
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
    /// The resumptions to check. `None` if there is no check: a recording has no look-ups, and the second dump is not
    /// checked.
    kept: Option<Vec<Resumption>>,
    /// Number of datagrams that have been read.
    datagrams: usize,
    /// The previous datagram, if the kernel paused after it.
    before: Option<Before>,
    /// The last cookie of the previous datagram.
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

    /// Returns the datagram without the sockets that were in the previous datagram.
    pub(super) fn without_repeats<'a>(&mut self, datagram: &'a [u8]) -> Cow<'a, [u8]> {
        let has_sockets = sockets(datagram).next().is_some();
        if let Some(resumption) = self.kept.iter_mut().flatten().last() {
            resumption.to_the_end &= !has_sockets;
        }
        let Some(before) = self.before.take() else {
            // During a short pause hardly more than one new socket arrives, which repeats only the last socket.
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

    /// Records the end of a datagram: its last socket, and how long the kernel paused after it.
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
            if resumption.may_have_lost_a_socket(transport)? {
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
