//! The record of a socket, from which the columns of [`super::column`] take their values.

use std::net::IpAddr;

use crate::model::facts::Facts;
use crate::model::port::Port;
use crate::model::row::{Direction, Row};
use crate::model::socket::{Cookie, FourTuple, Socket, TcpState, TimeWaitBucket};

/// One socket, with the facts that name its interface and services.
#[derive(Clone, Debug)]
pub struct SocketRecord<'a> {
    pub(super) tuple: &'a FourTuple,
    pub(super) state: TcpState,
    pub(super) direction: Direction,
    pub(super) expires_ms: Option<u32>,
    pub(super) interface: Option<String>,
    pub(super) mark: Option<u32>,
    pub(super) cookie: Option<Cookie>,
    pub(super) facts: &'a Facts,
}

impl<'a> SocketRecord<'a> {
    /// Creates the record of a row.
    #[must_use]
    #[inline]
    pub fn of_row(row: &'a Row, facts: &'a Facts) -> Self {
        Self::of_bucket(&row.bucket, row.direction, facts)
    }

    /// Creates the record of a bucket.
    #[inline]
    pub(super) fn of_bucket(bucket: &'a TimeWaitBucket, direction: Direction, facts: &'a Facts) -> Self {
        Self {
            tuple: &bucket.tuple,
            state: bucket.state(),
            direction,
            expires_ms: Some(bucket.expires_ms),
            interface: bucket.interface.map(|index| facts.interface_name(index)),
            mark: bucket.mark,
            cookie: bucket.cookie,
            facts,
        }
    }

    /// Creates the record of any socket.
    #[must_use]
    pub fn new(socket: &'a Socket, direction: Direction, facts: &'a Facts) -> Self {
        match socket {
            Socket::Bucket(bucket) => Self::of_bucket(bucket, direction, facts),
            Socket::Full(full) => Self {
                tuple: &full.tuple,
                state: full.state,
                direction,
                expires_ms: None,
                interface: full.interface.map(|index| facts.interface_name(index)),
                mark: full.mark,
                cookie: full.cookie,
                facts,
            },
        }
    }

    /// Returns the remote end; `None` for a socket without a connection, because the kernel fills that end with zeros.
    pub(super) fn remote(&self) -> Option<(IpAddr, Port)> {
        let connected = !matches!(self.state, TcpState::Listen | TcpState::Closed | TcpState::BoundInactive);
        connected.then(|| (self.tuple.remote_addr(), self.tuple.remote_port()))
    }

    /// The name of a port in /etc/services.
    pub(super) fn service(&self, port: Port) -> Option<&'a str> {
        self.facts.services.name(port)
    }
}
