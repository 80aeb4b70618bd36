//! Finds lost sockets again by a second dump (step 4 of the parent module's documentation).

use std::collections::HashMap;
use std::ops::ControlFlow;

use super::error::DumpError;
use super::reader::Reader;
use super::receiver::Receiver;
use super::resumption::{Resumption, Resumptions};
use crate::model::socket::{Cookie, Socket};
use crate::sock_diag::request::Request;
use crate::sock_diag::transport::Transport;

/// The most sockets between the two sides of a place. More means that the sockets after it have gone.
const MOST_BETWEEN: usize = 4096;

/// What a second dump found.
pub(super) struct Recovery {
    /// Sockets that the first dump lost, and new ones beside them.
    pub(super) sockets: Vec<Socket>,
    /// Whether every place was found again and the kernel flagged nothing.
    pub(super) complete: bool,
}

/// Reads a second dump for the sockets at these places of the first one.
pub(super) fn recover(
    places: &[Resumption],
    transport: &mut dyn Transport,
    request: &Request,
) -> Result<Recovery, DumpError> {
    let mut search = Search::new(places);
    let mut receiver = Receiver::ask(transport, request)?;
    let mut reader = Reader::new(request, Resumptions::unchecked());
    let mut buffer = Vec::new();
    loop {
        let datagram = receiver.recv(&mut buffer);
        let end = reader.read(datagram, &buffer, &mut |socket| {
            search.pass(socket);
            ControlFlow::Continue(())
        })?;
        if end.is_some() {
            break;
        }
    }
    search.end();
    let complete = !reader.interrupted && search.found.iter().all(|found| *found);
    Ok(Recovery { sockets: search.sockets, complete })
}

/// On which side of which places a socket lies.
#[derive(Clone, Copy, Default)]
struct Landmark {
    /// The last place that it lies before.
    before: Option<usize>,
    /// The first place that it lies after.
    after: Option<usize>,
}

struct Search<'a> {
    places: &'a [Resumption],
    landmarks: HashMap<Cookie, Landmark>,
    /// The place that the dump has come to: a socket before it was read, and none after it.
    open: Option<usize>,
    /// Unknown sockets since then.
    between: Vec<Socket>,
    /// Whether each place was found: sockets on both of its sides are still there.
    found: Vec<bool>,
    /// Unknown sockets of all places.
    sockets: Vec<Socket>,
}

impl<'a> Search<'a> {
    fn new(places: &'a [Resumption]) -> Self {
        let mut landmarks: HashMap<Cookie, Landmark> = HashMap::new();
        for (place, resumption) in places.iter().enumerate() {
            for cookie in &resumption.before {
                landmarks.entry(*cookie).or_default().before = Some(place);
            }
            for cookie in &resumption.after {
                landmarks.entry(*cookie).or_default().after.get_or_insert(place);
            }
        }
        Self {
            places,
            landmarks,
            open: places.first().filter(|first| first.from_the_start).map(|_| 0),
            between: vec![],
            found: vec![false; places.len()],
            sockets: vec![],
        }
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

    /// The end of the dump lies after the last places.
    fn end(&mut self) {
        while let Some(place) = self.open.filter(|&place| self.places.get(place).is_some_and(|p| p.to_the_end)) {
            self.close();
            self.open = Some(place + 1);
        }
    }

    fn close(&mut self) {
        if let Some(place) = self.open.take() {
            self.found[place] = true;
            self.sockets.append(&mut self.between);
        }
    }
}
