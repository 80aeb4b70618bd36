//! Receives the datagrams of one dump and measures how long the kernel paused between them.

use std::io;
use std::time::{Duration, Instant};

use super::error::DumpError;
use crate::sock_diag::request::Request;
use crate::sock_diag::transport::Transport;

/// What is known about a received datagram apart from its bytes.
pub(super) struct Received {
    /// Its true length, or the error of recv(2).
    pub(super) length: io::Result<usize>,
    /// An upper bound of the time that passed in the kernel between this datagram and the next one.
    pub(super) pause: Duration,
}

/// Receives the response to one request.
///
/// The kernel prepares each datagram in advance: recv(2) returns datagram n and then walks the table for datagram n + 1
/// (`netlink_recvmsg` in net/netlink/af_netlink.c). So the walk pauses between two calls of recv(2), and also while the
/// thread waits for a processor inside one of the two calls.
pub(super) struct Receiver<'a> {
    transport: &'a mut dyn Transport,
    /// Number of datagrams.
    pub(super) datagrams: usize,
    /// Total time inside recv(2).
    pub(super) receiving: Duration,
    /// Total time between two calls of recv(2).
    pub(super) reading: Duration,
    /// The time at which the last call of recv(2) returned.
    returned: Instant,
    /// The clocks when the last call of recv(2) returned, or when a wait between two calls ended.
    clocks: Clocks,
    /// How long the thread waited for a processor during the last call.
    waited: Duration,
}

/// Wall time and processor time of the thread.
#[derive(Clone, Copy)]
struct Clocks {
    wall: Instant,
    processor: Duration,
}

impl Clocks {
    fn read(transport: &dyn Transport) -> Self {
        Self { wall: transport.now(), processor: transport.processor_time() }
    }

    /// Time since `earlier` in which the thread did not run.
    fn waited_since(self, earlier: Self) -> Duration {
        (self.wall - earlier.wall).saturating_sub(self.processor.saturating_sub(earlier.processor))
    }
}

impl<'a> Receiver<'a> {
    /// Sends the request and starts the clocks.
    pub(super) fn start(transport: &'a mut dyn Transport, request: &Request) -> Result<Self, DumpError> {
        let clocks = Clocks::read(transport);
        transport.send(request).map_err(|source| DumpError::Send { walk: request.walk, source })?;
        let returned = transport.now();
        Ok(Self {
            transport,
            datagrams: 0,
            receiving: Duration::ZERO,
            reading: Duration::ZERO,
            returned,
            clocks,
            waited: Duration::ZERO,
        })
    }

    /// Restarts the clocks after a wait for another thread. That wait lies between two calls of recv(2), and `recv`
    /// counts the time between two calls anyway.
    pub(super) fn forget_wait(&mut self) {
        self.clocks = Clocks::read(self.transport);
    }

    /// Receives the next datagram.
    pub(super) fn recv(&mut self, buffer: &mut Vec<u8>) -> Received {
        let called = self.transport.now();
        let gap = called - self.returned;
        let length = self.transport.recv(buffer);
        self.returned = self.transport.now();
        self.datagrams += 1;
        self.reading += gap;
        self.receiving += self.returned - called;
        let before = std::mem::replace(&mut self.clocks, Clocks::read(self.transport));
        let waited = self.clocks.waited_since(before);
        let pause = gap + waited + std::mem::replace(&mut self.waited, waited);
        Received { length, pause }
    }
}
