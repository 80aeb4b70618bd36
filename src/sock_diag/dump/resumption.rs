//! What a dump lost or repeated where the kernel resumed it.
//!
//! Between two datagrams the kernel keeps its place as a number: the chain of its hash table, and how many sockets of that
//! chain are done (`cb->args` in `inet_diag_dump_icsk`, net/ipv4/inet_diag.c). New sockets come in at a chain's head. So one
//! that comes in the meantime lets the kernel repeat the last socket, and one that goes, of those already done, lets it pass
//! over the next. Nothing in the answer says so. Measured on 6.18, 5,000 buckets in 8,192 chains beside 1,000 others a second
//! that live for 50 ms: one bucket missed in 32 dumps.
//!
//! A repeated socket is known by its cookie. Where the kernel paused for so long that something may well have happened, it is
//! asked after the dump whether the last sockets before the pause are still there. If one is not, a second dump is read for
//! what lies between the last sockets before the pause and the first behind it, for the order of a chain stays the same; that
//! is what was passed over, or is new.
//!
//! What cannot be seen: the sockets of the chain that nobody asked for also count for the place. So after a long pause the
//! second dump is read in any case. After a short one, such a loss stays; and so does one within a chain of more than 16
//! sockets, which the kernel describes in pieces, for their pauses are not seen. Tables of the usual size, one chain for
//! each of the sockets or more, have no such chain.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::time::Duration;

use super::reader::{Reader, ends, sockets};
use super::{DumpError, Receiver};
use crate::model::socket::{Cookie, Socket, TcpState};
use crate::sock_diag::lookup;
use crate::sock_diag::request::Request;
use crate::sock_diag::response;
use crate::sock_diag::transport::{Commands, Transport};

/// Sockets of one chain that are looked at on either side of a pause; a longer chain is rare.
const CHAIN: usize = 8;

/// Of them, the last ones before the pause are looked up.
const LOOKED_UP: usize = 4;

/// Doubts for which all sockets of two datagrams are kept, so that the place is known again although many have gone: what
/// closed together lies together in the table, and expires together. A dump with more doubts than this took so long that
/// even that is in vain for most, and its memory is bounded.
const WELL_MARKED: usize = 256;

/// A shorter pause is not looked into: of sockets that live for a minute, one of 200,000 goes in it. A look-up costs 1.3 µs,
/// measured, so those of a longer one are next to nothing.
const SHORT: Duration = Duration::from_micros(300);

/// So long does nobody pause on a machine that has a core for us, and for 3 or 4 ms does who waits for one. Then a second dump
/// is read in any case: it may cost as much again, but what those did that nobody asked for is not known.
const LONG: Duration = Duration::from_millis(2);

/// Two datagrams are made in this at most, with a table that is nearly empty and as large as the kernel makes it by itself
/// (524,288 chains). More is a pause.
const MADE: Duration = Duration::from_millis(1);

/// Second dumps, of which one is nearly always enough.
const ATTEMPTS: usize = 3;

/// More than this is not what lies at one place, but the landmarks behind it have gone.
const MOST_BETWEEN: usize = 4096;

/// How long the kernel may have paused behind a datagram.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pause {
    Short,
    Middling,
    Long,
}

/// A place where sockets may have been passed over, and the landmarks by which it is known again.
struct Doubt {
    before: Vec<Cookie>,
    after: Vec<Cookie>,
    /// Whether nothing came behind `after`: then the end is a landmark, too.
    at_the_end: bool,
    pause: Pause,
    /// The last ones before, which tell by having gone.
    telling: Vec<Socket>,
    /// A second dump was crossed here, too.
    crossed: bool,
}

impl Doubt {
    /// Whether something before the place has gone. No answer is no assurance.
    fn holds(&self, kernel: &mut dyn Commands) -> bool {
        self.telling.iter().any(|socket| !matches!(lookup::find(kernel, socket), Ok(Some(_))))
    }
}

/// Whether a look-up of the socket is certain. The others lie in other tables, too.
fn is_connected(socket: &Socket) -> bool {
    !matches!(socket.state(), TcpState::Listen | TcpState::BoundInactive | TcpState::Closed)
}

/// The places where the kernel resumed a dump, as it is read.
pub(super) struct Resumptions {
    /// Whether there is a kernel that is to be asked again. For a recording it is not, so that a replay gives the same.
    live: bool,
    /// What the kernel takes without a pause, which depends on how full its table is: the shortest window so far.
    made: Duration,
    /// Behind the last datagram.
    pause: Pause,
    /// Its sockets, in their order; none where the kernel did not pause.
    before: Vec<Cookie>,
    /// The last of them.
    telling: Vec<Socket>,
    doubts: Vec<Doubt>,
}

impl Resumptions {
    pub(super) const fn new(live: bool) -> Self {
        Self { live, made: Duration::ZERO, pause: Pause::Short, before: vec![], telling: vec![], doubts: vec![] }
    }

    /// The next datagram, without those of its first sockets that repeat the last ones before.
    pub(super) fn resumed<'a>(&mut self, datagram: &'a [u8]) -> Cow<'a, [u8]> {
        if let Some(doubt) = self.doubts.last_mut() {
            doubt.at_the_end &= sockets(datagram).next().is_none();
        }
        if self.before.is_empty() || !(ends(datagram) || sockets(datagram).next().is_some()) {
            return Cow::Borrowed(datagram);
        }
        let mut before = std::mem::take(&mut self.before);
        let last = &before[before.len().saturating_sub(CHAIN)..];
        let is_repeated = |(payload, _): &(&[u8], _)| response::cookie(payload).is_some_and(|c| last.contains(&c));
        // Others that came may lie between them.
        let repeated: Vec<_> = sockets(datagram).take(2 * CHAIN).filter(is_repeated).map(|(_, bytes)| bytes).collect();
        let mut datagram = Cow::Borrowed(datagram);
        for bytes in repeated.into_iter().rev() {
            datagram.to_mut().drain(bytes);
        }
        let mut after: Vec<_> = sockets(&datagram).filter_map(|(payload, _)| response::cookie(payload)).collect();
        if self.live {
            if self.doubts.len() >= WELL_MARKED {
                before.drain(..before.len().saturating_sub(CHAIN));
                after.truncate(CHAIN);
            }
            before.shrink_to_fit();
            after.shrink_to_fit();
            let telling = std::mem::take(&mut self.telling);
            self.doubts.push(Doubt { before, after, at_the_end: true, pause: self.pause, telling, crossed: false });
        }
        datagram
    }

    /// The end of a datagram; `window` is the time in which the kernel made it, paused and made the next.
    pub(super) fn paused(&mut self, datagram: &[u8], window: Duration) {
        let pause = window.saturating_sub(self.made);
        self.made = window.min(if self.made.is_zero() { MADE } else { self.made });
        self.pause = match pause {
            _ if pause <= SHORT => Pause::Short,
            _ if pause <= LONG => Pause::Middling,
            _ => Pause::Long,
        };
        if self.live && self.pause == Pause::Short {
            return;
        }
        let payloads: Vec<_> = sockets(datagram).map(|(payload, _)| payload).collect();
        self.before = payloads.iter().filter_map(|payload| response::cookie(payload)).collect();
        let from_the_end = payloads.iter().rev().filter_map(|payload| response::decode(payload).ok());
        self.telling = from_the_end.filter(is_connected).take(LOOKED_UP).collect();
    }

    /// What was passed over, after the dump's end, on the transport that carried it; and whether some of it may still be
    /// missing.
    pub(super) fn settle(self, transport: &mut dyn Transport, request: &Request) -> (Vec<Socket>, bool) {
        let mut doubts = self.doubts;
        if let Some(kernel) = transport.commands() {
            doubts.retain(|doubt| doubt.pause == Pause::Long || doubt.holds(kernel));
        }
        let mut found: Vec<Socket> = vec![];
        for _ in 0..ATTEMPTS {
            if doubts.is_empty() {
                break;
            }
            let mut second = SecondDump::new(&doubts);
            if second.read(transport, request).is_err() {
                return (found, true);
            }
            for socket in second.found {
                if found.iter().all(|known| known.cookie() != socket.cookie()) {
                    found.push(socket);
                }
            }
            let mut places = second.places.into_iter();
            doubts.retain_mut(|doubt| {
                let place = places.next();
                doubt.crossed |= place == Some(Place::Crossed);
                place != Some(Place::Settled)
            });
        }
        (found, doubts.iter().any(|doubt| !doubt.crossed))
    }
}

/// What a socket means for the places: each is one of those that a list of doubts has.
#[derive(Clone, Copy, Default)]
struct Landmark {
    /// The last place that it lies before.
    before: Option<usize>,
    /// The first place that it lies behind.
    after: Option<usize>,
}

struct SecondDump {
    landmarks: HashMap<Cookie, Landmark>,
    /// Of each place, whether the end is a landmark behind it.
    at_the_end: Vec<bool>,
    /// The place whose last socket before it has been read, and none behind it.
    open: Option<usize>,
    /// What lies there.
    between: Vec<Socket>,
    places: Vec<Place>,
    /// What lay there.
    found: Vec<Socket>,
}

/// What a second dump makes of a place.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Not enough of its landmarks are still there.
    NotFound,
    /// This one was resumed there, too, and something had gone. It is as unlikely as in the first dump, and by now as in
    /// both, that another was passed over.
    Crossed,
    Settled,
}

impl SecondDump {
    fn new(doubts: &[Doubt]) -> Self {
        let mut landmarks: HashMap<Cookie, Landmark> = HashMap::new();
        for (place, doubt) in doubts.iter().enumerate() {
            for cookie in &doubt.before {
                landmarks.entry(*cookie).or_default().before = Some(place);
            }
            for cookie in &doubt.after {
                landmarks.entry(*cookie).or_default().after.get_or_insert(place);
            }
        }
        Self {
            landmarks,
            at_the_end: doubts.iter().map(|doubt| doubt.at_the_end).collect(),
            open: None,
            between: vec![],
            places: vec![Place::NotFound; doubts.len()],
            found: vec![],
        }
    }

    fn read(&mut self, transport: &mut dyn Transport, request: &Request) -> Result<(), DumpError> {
        transport.send(request).map_err(|source| DumpError::Send { walk: request.walk, source })?;
        let live = transport.commands().is_some();
        let mut receiver = Receiver::new(transport);
        let mut reader = Reader::new(request, live);
        let mut buffer = Vec::new();
        // Where this one was resumed within a place, and as which of its own doubts.
        let mut crossed = vec![];
        loop {
            let datagram = receiver.recv(&mut buffer);
            let end = reader.read(datagram, &buffer, &mut |socket| {
                self.pass(socket);
                ControlFlow::Continue(())
            })?;
            if end.is_some() {
                break;
            }
            if let (Some(place), true) = (self.open, reader.resumptions.pause != Pause::Short) {
                crossed.push((place, reader.resumptions.doubts.len()));
            }
        }
        // Two at most are at the end: before the last sockets, and behind them.
        while let Some(place) = self.open.filter(|&place| self.at_the_end.get(place) == Some(&true)) {
            self.close();
            self.open = Some(place + 1);
        }
        let doubts = reader.resumptions.doubts;
        if let Some(kernel) = transport.commands() {
            crossed.retain(|&(_, doubt)| doubts.get(doubt).is_some_and(|doubt| doubt.holds(kernel)));
        }
        for (place, _) in crossed {
            if self.places[place] == Place::Settled {
                self.places[place] = Place::Crossed;
            }
        }
        Ok(())
    }

    fn pass(&mut self, socket: &Socket) {
        let landmark = socket.cookie().and_then(|cookie| self.landmarks.get(&cookie)).copied();
        match (landmark, self.open) {
            (None, Some(_)) if self.between.len() < MOST_BETWEEN => self.between.push(*socket),
            (None, Some(_)) => self.open = None,
            (None, None) => {}
            (Some(landmark), open) => {
                if open.is_some() && landmark.after == open {
                    self.close();
                }
                self.between.clear();
                self.open = landmark.before;
            }
        }
    }

    fn close(&mut self) {
        if let Some(place) = self.open.take() {
            self.places[place] = Place::Settled;
            self.found.append(&mut self.between);
        }
    }
}
