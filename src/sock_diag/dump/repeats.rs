//! Drops the sockets that the kernel repeats (step 1 of the parent module's documentation).

use std::borrow::Cow;
use std::ops::Range;

use super::datagram::sockets;
use crate::model::socket::Cookie;
use crate::sock_diag::response;

/// The number of sockets at the end of a datagram that [`Repeats`] records. A hash chain rarely has more sockets.
pub(super) const MAX_SOCKETS: usize = 16;

/// The cookies of the sockets that the next datagram may repeat.
#[derive(Default)]
pub(super) struct Repeats {
    cookies: Vec<Cookie>,
}

impl Repeats {
    /// Returns the datagram without the sockets that were at the end of the previous datagram.
    pub(super) fn removed_from<'a>(&self, datagram: &'a [u8]) -> Cow<'a, [u8]> {
        let is_repeated = |payload: &[u8]| response::cookie(payload).is_some_and(|c| self.cookies.contains(&c));
        // Search twice as many sockets, because new sockets may lie before the repeated ones and between them.
        let first = sockets(datagram).take(2 * MAX_SOCKETS);
        without(datagram, first.filter(|(payload, _)| is_repeated(payload)).map(|(_, bytes)| bytes).collect())
    }

    /// Records the last sockets of a datagram, at most [`MAX_SOCKETS`]. If the datagram has no socket with a cookie, the sockets of the
    /// datagram before it stay recorded, because the kernel can still repeat them.
    pub(super) fn record_last<'a>(&mut self, last: impl Iterator<Item = &'a [u8]>) {
        let mut last = last.filter_map(response::cookie).peekable();
        if last.peek().is_some() {
            self.cookies.clear();
            self.cookies.extend(last);
        }
    }
}

fn without(datagram: &[u8], messages: Vec<Range<usize>>) -> Cow<'_, [u8]> {
    let mut kept = Cow::Borrowed(datagram);
    let mut removed = 0;
    for bytes in messages {
        kept.to_mut().drain(bytes.start - removed..bytes.end - removed);
        removed += bytes.len();
    }
    kept
}
