//! A bucket with what was inferred about it: what filters judge and views print.

use super::socket::TimeWaitBucket;

/// Who opened the connection that left the bucket. **An inference**: the kernel does not keep it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// The local port has a listener that covers the address.
    Inbound,
    /// No such listener, the local port is in the ephemeral range, and the remote port is not.
    Outbound,
    /// Neither can be said.
    Unknown,
}

impl Direction {
    /// The name that scripts see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
            Self::Unknown => "unknown",
        }
    }
}

/// One line of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// What the kernel said.
    pub bucket: TimeWaitBucket,
    /// What follows from it.
    pub direction: Direction,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::model::port::Port;
    use crate::model::socket::{Cookie, FourTuple};

    /// A bucket with 10 s to go.
    pub(crate) fn row(local: &str, local_port: u16, remote: &str, remote_port: u16) -> Row {
        let end = |addr: &str, port| (addr.parse().expect("address"), Port(port));
        let bucket = TimeWaitBucket {
            tuple: FourTuple::new(end(local, local_port), end(remote, remote_port)),
            fin_wait_2: false,
            expires_ms: 10_000,
            interface: None,
            mark: None,
            cookie: Cookie::new(1),
        };
        Row { bucket, direction: Direction::Unknown }
    }
}
