//! Receives the datagrams of one dump.

use std::io;
use std::time::{Duration, Instant};

use super::datagram::is_last;
use super::error::DumpError;
use crate::sock_diag::request::Request;
use crate::sock_diag::transport::Transport;
use crate::sys::counts::{ReadPass, TableCounts};

/// A length in bytes. A dump is long if one of its datagrams is longer than this, or if it does not end within three datagrams. If
/// the kernel has enough memory, it fills all datagrams except the first and the last to about 32 KiB (`netlink_dump`).
const LONG: usize = 16 * 1024;

pub(super) struct Receiver<'a> {
    transport: &'a mut dyn Transport,
    pub(super) datagrams: usize,
    pub(super) receiving: Duration,
    /// The total time between the receives, in which the caller reads the datagrams.
    pub(super) reading: Duration,
    /// The time at which the last datagram was received.
    returned: Instant,
    pub(super) is_long: bool,
    /// The counts of the tables when the dump became long.
    pub(super) counts: Option<TableCounts>,
}

impl<'a> Receiver<'a> {
    pub(super) fn start(transport: &'a mut dyn Transport, request: &Request) -> Result<Self, DumpError> {
        transport.send(request).map_err(|source| DumpError::Send { walk: request.walk, source })?;
        Ok(Self {
            transport,
            datagrams: 0,
            receiving: Duration::ZERO,
            reading: Duration::ZERO,
            returned: Instant::now(),
            is_long: false,
            counts: None,
        })
    }

    pub(super) fn recv(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        let called = Instant::now();
        self.reading += called - self.returned;
        let length = self.transport.recv(buffer);
        self.datagrams += 1;
        if !self.is_long && (buffer.len() > LONG || self.datagrams == 3 && !is_last(buffer)) {
            self.is_long = true;
            self.counts = self.transport.table_counts(ReadPass::Earlier);
        }
        self.returned = Instant::now();
        self.receiving += self.returned - called;
        length
    }
}
