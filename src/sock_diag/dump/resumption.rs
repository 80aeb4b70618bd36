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

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::time::Duration;

use super::reader::{Reader, sockets};
use super::{DumpError, Receiver};
use crate::model::socket::{Cookie, Socket, TcpState};
use crate::sock_diag::lookup;
use crate::sock_diag::request::Request;
use crate::sock_diag::response;
use crate::sock_diag::transport::{Commands, Transport};

/// Sockets on either side of a pause by which its place is known again: so many do not go at once, and a chain that is
/// longer is rare.
const LANDMARKS: usize = 8;

/// Of them, the nearest ones before the pause are looked up: the done ones of a chain, but for rare chains.
const LOOKED_UP: usize = 4;

/// A datagram is made in a fifth of this. A look-up costs 1.3 µs, measured, so those of a longer pause are next to nothing.
const SHORT: Duration = Duration::from_micros(300);

/// A dump of 100,000 sockets takes about as long as this, so after a longer pause a second one is no great matter.
const LONG: Duration = Duration::from_millis(20);

/// Second dumps. They are read without pauses, so that one is nearly always enough.
const ATTEMPTS: usize = 3;

/// How long the kernel may have paused behind a datagram.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pause {
    Short,
    Middling,
    Long,
}

/// A place where sockets may have been passed over.
struct Doubt {
    before: Vec<Cookie>,
    after: Vec<Cookie>,
    /// Those of `before` that tell by having gone. `None`: whether or not.
    telling: Option<Vec<Socket>>,
}

impl Doubt {
    fn new(before: &[Socket], after: Vec<Cookie>, pause: Pause) -> Self {
        // Only of these a look-up is certain, and only these lie in the same chains.
        let connected =
            |socket: &&Socket| !matches!(socket.state(), TcpState::Listen | TcpState::BoundInactive | TcpState::Closed);
        let nearest = || before.iter().rev().filter(connected).take(LOOKED_UP).copied().collect();
        Self {
            before: before.iter().filter_map(Socket::cookie).collect(),
            after,
            telling: (pause == Pause::Middling).then(nearest),
        }
    }

    fn stands(&self, kernel: &mut dyn Commands) -> bool {
        let Some(telling) = &self.telling else { return true };
        // No answer is no assurance.
        telling.iter().any(|socket| !matches!(lookup::find(kernel, socket), Ok(Some(_))))
    }
}

/// The places where the kernel resumed a dump, as it is read.
pub(super) struct Resumptions {
    /// Whether there is a kernel that can be asked again. A replay is not asked, and what its pauses were is not known.
    live: bool,
    /// The last sockets of the datagram before, in their order; none where the kernel did not pause for long.
    before: Vec<Socket>,
    /// Behind that datagram.
    pause: Pause,
    doubts: Vec<Doubt>,
}

impl Resumptions {
    pub(super) const fn new(live: bool) -> Self {
        Self { live, before: vec![], pause: Pause::Short, doubts: vec![] }
    }

    /// The next datagram. Returns the length of its beginning that repeats the end of the one before.
    pub(super) fn resumed(&mut self, datagram: &[u8]) -> usize {
        if self.before.is_empty() {
            return 0;
        }
        let known = |payload| {
            response::cookie(payload)
                .is_some_and(|cookie| self.before.iter().any(|socket| socket.cookie() == Some(cookie)))
        };
        let repeated = sockets(datagram).take_while(|&(payload, _)| known(payload)).last().map_or(0, |(_, end)| end);
        let rest = datagram.get(repeated..).unwrap_or_default();
        let after: Vec<_> =
            sockets(rest).take(LANDMARKS).filter_map(|(payload, _)| response::cookie(payload)).collect();
        if self.live && !after.is_empty() {
            self.doubts.push(Doubt::new(&self.before, after, self.pause));
        }
        repeated
    }

    /// The end of a datagram; `window` is the time in which the kernel made it, paused and made the next.
    pub(super) fn paused(&mut self, datagram: &[u8], window: Duration) {
        self.pause = match window {
            _ if window <= SHORT => Pause::Short,
            _ if window <= LONG => Pause::Middling,
            _ => Pause::Long,
        };
        self.before.clear();
        if !self.live || self.pause != Pause::Short {
            let payloads: Vec<_> = sockets(datagram).map(|(payload, _)| payload).collect();
            let last = &payloads[payloads.len().saturating_sub(LANDMARKS)..];
            self.before.extend(last.iter().filter_map(|payload| response::decode(payload).ok()));
        }
    }

    /// What was passed over, after the dump's end, on the transport that carried it; and whether some of it may still be
    /// missing.
    pub(super) fn settle(
        self,
        transport: &mut dyn Transport,
        request: &Request,
    ) -> Result<(Vec<Socket>, bool), DumpError> {
        let mut doubts = self.doubts;
        if let Some(kernel) = transport.commands() {
            doubts.retain(|doubt| doubt.stands(kernel));
        }
        let mut found = vec![];
        for _ in 0..ATTEMPTS {
            if doubts.is_empty() {
                break;
            }
            let mut second = SecondDump::new(&doubts);
            second.read(transport, request)?;
            found.extend(second.found.into_iter().map(|(_, socket)| socket));
            let mut settled = second.settled.into_iter();
            doubts.retain(|_| !settled.next().unwrap_or_default());
        }
        Ok((found, !doubts.is_empty()))
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
    /// The place whose last socket before it has been read, and none behind it.
    open: Option<usize>,
    /// What lies there.
    between: Vec<Socket>,
    settled: Vec<bool>,
    /// What lay at which place.
    found: Vec<(usize, Socket)>,
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
        Self { landmarks, open: None, between: vec![], settled: vec![false; doubts.len()], found: vec![] }
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
        let doubts = reader.resumptions.doubts;
        if let Some(kernel) = transport.commands() {
            crossed.retain(|&(_, doubt)| doubts.get(doubt).is_some_and(|doubt| doubt.stands(kernel)));
        }
        for (place, _) in crossed {
            self.settled[place] = false;
            self.found.retain(|&(found, _)| found != place);
        }
        Ok(())
    }

    fn pass(&mut self, socket: &Socket) {
        let landmark = socket.cookie().and_then(|cookie| self.landmarks.get(&cookie)).copied();
        match (landmark, self.open) {
            (None, Some(_)) => self.between.push(*socket),
            (None, None) => {}
            (Some(landmark), open) => {
                if let (Some(place), true) = (open, landmark.after == open) {
                    self.settled[place] = true;
                    self.found.extend(self.between.drain(..).map(|socket| (place, socket)));
                }
                self.between.clear();
                self.open = landmark.before;
            }
        }
    }
}
