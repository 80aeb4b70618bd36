//! Finds lost sockets in a second dump (steps 4 and 5 of the parent module's documentation).
//!
//! 1. Every known cookie becomes a [`Landmark`]: it lies before some resumptions of the first dump and after others.
//! 2. The search reads the second dump in order. After a landmark that lies before a resumption, that resumption is
//!    *open*, and unknown sockets are collected.
//! 3. At a landmark that lies after the open resumption, the resumption is found, and the collected sockets are kept.
//!    At any other landmark they are dropped.

use std::collections::HashMap;
use std::ops::ControlFlow;

use super::error::DumpError;
use super::reader::Reader;
use super::receiver::Receiver;
use super::resumption::{Resumption, Resumptions};
use crate::model::socket::{Cookie, Socket};
use crate::sock_diag::request::Request;
use crate::sock_diag::transport::Transport;

/// The maximum number of unknown sockets between the two sides of a resumption. If there are more, the known sockets after it are
/// gone.
const MOST_BETWEEN: usize = 4096;

/// The sockets that a second dump added.
pub(super) struct Recovery {
    /// Sockets that the first dump lost, and new sockets between them.
    pub(super) sockets: Vec<Socket>,
    /// Whether every resumption was found and the kernel did not mark the dump as interrupted.
    pub(super) complete: bool,
}

/// Reads a second dump for the sockets that the first one may have lost at these resumptions.
pub(super) fn recover(
    resumptions: &[Resumption],
    transport: &mut dyn Transport,
    request: &Request,
) -> Result<Recovery, DumpError> {
    let mut search = LostSocketSearch::new(resumptions);
    let mut receiver = Receiver::start(transport, request)?;
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

/// The position of a known socket relative to the resumptions, which are given by their indices.
#[derive(Clone, Copy, Default)]
struct Landmark {
    /// The last resumption that comes after the socket.
    before: Option<usize>,
    /// The first resumption that comes before the socket.
    after: Option<usize>,
}

struct LostSocketSearch<'a> {
    resumptions: &'a [Resumption],
    landmarks: HashMap<Cookie, Landmark>,
    /// The resumption that the second dump has reached: a socket before it has been read, and none after it.
    open: Option<usize>,
    /// Unknown sockets since then.
    between: Vec<Socket>,
    /// Whether each resumption was found: sockets on both of its sides still exist.
    found: Vec<bool>,
    /// Unknown sockets at all resumptions.
    sockets: Vec<Socket>,
}

impl<'a> LostSocketSearch<'a> {
    fn new(resumptions: &'a [Resumption]) -> Self {
        let mut landmarks: HashMap<Cookie, Landmark> = HashMap::new();
        for (index, resumption) in resumptions.iter().enumerate() {
            for cookie in &resumption.before {
                landmarks.entry(*cookie).or_default().before = Some(index);
            }
            for cookie in &resumption.after {
                landmarks.entry(*cookie).or_default().after.get_or_insert(index);
            }
        }
        Self {
            resumptions,
            landmarks,
            open: resumptions.first().filter(|first| first.from_the_start).map(|_| 0),
            between: vec![],
            found: vec![false; resumptions.len()],
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

    /// The end of the dump closes the last resumptions.
    fn end(&mut self) {
        while let Some(index) = self.open.filter(|&index| self.resumptions.get(index).is_some_and(|r| r.to_the_end)) {
            self.close();
            self.open = Some(index + 1);
        }
    }

    fn close(&mut self) {
        if let Some(index) = self.open.take() {
            self.found[index] = true;
            self.sockets.append(&mut self.between);
        }
    }
}
