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
//! What cannot be seen: what goes in a short pause. The sockets of the chain that nobody asked for also count for the
//! place, so after a long pause the second dump is read in any case; after a middling one, such a loss stays. So does one
//! within a chain of more than 16 sockets, which the kernel describes in pieces, for their pauses are not seen; tables of the
//! usual size, one chain for each of the sockets or more, have no such chain. And where a bucket does not take the place of
//! its closing socket in the chain, but comes in at the head (older kernels; not measured), one that closes in the pause.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::time::Duration;

use super::reader::{Reader, ends, sockets};
use super::{DumpError, Receiver};
use crate::model::socket::{Cookie, Socket, TcpState};
use crate::sock_diag::lookup::{self, LookupError};
use crate::sock_diag::request::Request;
use crate::sock_diag::response;
use crate::sock_diag::transport::{Commands, Transport};

/// The last sockets before a pause that are looked up: those of one chain, but for rare chains.
const LOOKED_UP: usize = 4;

/// Doubts for which all sockets of two datagrams are kept, so that the place is known again although many have gone: what
/// closed together lies together in the table, and expires together. A dump with more doubts than this took so long that
/// even that is in vain for most, and its memory matters.
const WELL_MARKED: usize = 256;

/// Sockets on either side that are kept for the others.
const FEW: usize = 8;

/// A shorter pause is not looked into: of sockets that live for a minute, one of 200,000 goes in it. A look-up costs 1.3 µs,
/// measured, so those of a longer one are next to nothing.
const SHORT: Duration = Duration::from_micros(300);

/// On a machine that has a core for us there is hardly a pause as long as this, and who waits for one waits 3 or 4 ms. Then
/// a second dump is read in any case: it may cost as much again, but what those did that nobody asked for is not known.
const LONG: Duration = Duration::from_millis(2);

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
    /// Whether nothing came before `before`: then the beginning is a landmark, too.
    at_the_start: bool,
    /// Whether nothing came behind `after`: then the end is one.
    at_the_end: bool,
    pause: Pause,
    /// The last ones before, which tell by having gone.
    telling: Vec<Socket>,
    /// A second dump was crossed here, too.
    crossed: bool,
}

impl Doubt {
    /// Whether something before the place has gone, or cannot be asked for. No answer is no assurance.
    fn holds(&self, kernel: &mut dyn Commands) -> Result<bool, LookupError> {
        for socket in &self.telling {
            match lookup::find(kernel, socket) {
                Ok(Some(_)) => {}
                Ok(None) | Err(LookupError::Unnamed | LookupError::Refused(_)) => return Ok(true),
                // What may still come would be taken for another answer.
                Err(error) => return Err(error),
            }
        }
        Ok(self.telling.is_empty())
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
    /// How many have been read.
    datagrams: usize,
    /// Behind the last datagram.
    pause: Pause,
    /// Its sockets, in their order; none where the kernel did not pause.
    before: Vec<Cookie>,
    /// The last of them.
    telling: Vec<Socket>,
    /// The very last one.
    last: Option<Cookie>,
    doubts: Vec<Doubt>,
}

impl Resumptions {
    pub(super) const fn new(live: bool) -> Self {
        Self { live, datagrams: 0, pause: Pause::Short, before: vec![], telling: vec![], last: None, doubts: vec![] }
    }

    /// The next datagram, without those of its sockets that repeat some of the one before.
    pub(super) fn resumed<'a>(&mut self, datagram: &'a [u8]) -> Cow<'a, [u8]> {
        if let Some(doubt) = self.doubts.last_mut() {
            doubt.at_the_end &= sockets(datagram).next().is_none();
        }
        if self.before.is_empty() {
            // In a short pause hardly more than one may come, and it lets the last one be repeated.
            let first = sockets(datagram).next().filter(|(payload, _)| response::cookie(payload) == self.last);
            return match first {
                Some((_, bytes)) if self.last.is_some() => {
                    Cow::Owned([&datagram[..bytes.start], &datagram[bytes.end..]].concat())
                }
                _ => Cow::Borrowed(datagram),
            };
        }
        if !(ends(datagram) || sockets(datagram).next().is_some()) {
            return Cow::Borrowed(datagram);
        }
        let mut before = std::mem::take(&mut self.before);
        let known: HashSet<_> = before.iter().copied().collect();
        let is_repeated = |(payload, _): &(&[u8], _)| response::cookie(payload).is_some_and(|c| known.contains(&c));
        // Others that came may lie before them and between them.
        let repeated: Vec<_> = sockets(datagram).filter(is_repeated).map(|(_, bytes)| bytes).collect();
        let mut datagram = Cow::Borrowed(datagram);
        for bytes in repeated.into_iter().rev() {
            datagram.to_mut().drain(bytes);
        }
        let mut after: Vec<_> = sockets(&datagram).filter_map(|(payload, _)| response::cookie(payload)).collect();
        if self.live {
            let well_marked = self.doubts.len() < WELL_MARKED;
            if !well_marked {
                before.drain(..before.len().saturating_sub(FEW));
                after.truncate(FEW);
            }
            before.shrink_to_fit();
            after.shrink_to_fit();
            let telling = std::mem::take(&mut self.telling);
            self.doubts.push(Doubt {
                before,
                after,
                at_the_start: well_marked && self.datagrams == 1,
                at_the_end: well_marked,
                pause: self.pause,
                telling,
                crossed: false,
            });
        }
        datagram
    }

    /// The end of a datagram, and its last socket, behind which the kernel paused so long at most.
    pub(super) fn paused(&mut self, datagram: &[u8], last: &[u8], pause: Duration) {
        self.last = response::cookie(last);
        self.datagrams += 1;
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
    /// missing. After an error the transport must not be used again.
    pub(super) fn settle(
        self,
        transport: &mut dyn Transport,
        request: &Request,
    ) -> Result<(Vec<Socket>, bool), DumpError> {
        let broken_off = |error| match error {
            // No longer a reason to ask elsewhere, for an answer has been handed out.
            DumpError::Send { walk, source } => DumpError::Recv { walk, source },
            DumpError::Refused { walk, errno } => DumpError::BrokenOff { walk, errno },
            error => error,
        };
        let mut doubts = vec![];
        for doubt in self.doubts {
            if doubt.pause == Pause::Long || holds(&doubt, transport)? {
                doubts.push(doubt);
            }
        }
        let mut found: Vec<Socket> = vec![];
        let mut missing = false;
        for _ in 0..ATTEMPTS {
            if doubts.is_empty() {
                break;
            }
            let mut second = SecondDump::new(&doubts);
            missing |= second.read(transport, request).map_err(broken_off)?;
            for socket in second.found {
                if found.iter().all(|known| known.cookie() != socket.cookie()) {
                    found.push(socket);
                }
            }
            let mut places = second.places.into_iter();
            doubts.retain_mut(|doubt| match places.next() {
                Some(Place::Crossed) => {
                    doubt.crossed = true;
                    true
                }
                Some(Place::Settled) | None => false,
                // What has gone stays away.
                Some(Place::NotFound) => {
                    missing |= !doubt.crossed;
                    false
                }
            });
        }
        Ok((found, missing))
    }
}

/// [`Doubt::holds`], where the kernel can be asked.
fn holds(doubt: &Doubt, transport: &mut dyn Transport) -> Result<bool, DumpError> {
    let Some(kernel) = transport.commands() else { return Ok(true) };
    doubt.holds(kernel).map_err(|error| DumpError::Framing(error.to_string()))
}

/// What a socket means for the places: each is one of those that a list of doubts has.
#[derive(Clone, Copy, Default)]
struct Landmark {
    /// The last place that it lies before.
    before: Option<usize>,
    /// The first place that it lies behind.
    after: Option<usize>,
}

/// Another dump, read for what lies at the places.
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
            open: doubts.first().filter(|doubt| doubt.at_the_start).map(|_| 0),
            between: vec![],
            places: vec![Place::NotFound; doubts.len()],
            found: vec![],
        }
    }

    /// Says whether the kernel flagged it.
    fn read(&mut self, transport: &mut dyn Transport, request: &Request) -> Result<bool, DumpError> {
        let live = transport.commands().is_some();
        let mut receiver = Receiver::ask(transport, request)?;
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
        for (place, doubt) in crossed {
            let holds = match reader.resumptions.doubts.get(doubt) {
                Some(doubt) => holds(doubt, transport)?,
                None => false,
            };
            if holds && self.places[place] == Place::Settled {
                self.places[place] = Place::Crossed;
            }
        }
        Ok(reader.interrupted)
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
