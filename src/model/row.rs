//! A bucket with what was inferred about it: what filters judge and views print.

use std::cmp::Ordering;

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
    /// Every direction.
    pub const ALL: [Self; 3] = [Self::Inbound, Self::Outbound, Self::Unknown];

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
    /// The network namespace that it is in, by its place among those of the answer.
    pub netns: u32,
}

/// Orders. Rows that are equal by the key are ordered by both ends, namespace and cookie, so that each is stable. Compared piece by
/// piece, for most rows differ in the first; IPv4 on the wire goes before IPv6.
impl Row {
    /// By remaining time.
    #[must_use]
    pub fn by_expires(&self, other: &Self) -> Ordering {
        let expires = self.bucket.expires_ms.cmp(&other.bucket.expires_ms);
        expires.then_with(|| self.by_local(other))
    }

    /// By local address and port.
    #[must_use]
    pub fn by_local(&self, other: &Self) -> Ordering {
        self.local(other).then_with(|| self.remote(other)).then_with(|| self.cookie(other))
    }

    /// By remote address and port.
    #[must_use]
    pub fn by_remote(&self, other: &Self) -> Ordering {
        self.remote(other).then_with(|| self.local(other)).then_with(|| self.cookie(other))
    }

    fn family(&self, other: &Self) -> Ordering {
        let ipv6 = |row: &Self| !row.bucket.tuple.family.ipv4_on_the_wire();
        ipv6(self).cmp(&ipv6(other))
    }

    fn local(&self, other: &Self) -> Ordering {
        let end = |row: &Self| (row.bucket.tuple.local_bits(), row.bucket.tuple.local_port());
        self.family(other).then_with(|| end(self).cmp(&end(other)))
    }

    fn remote(&self, other: &Self) -> Ordering {
        let end = |row: &Self| (row.bucket.tuple.remote_bits(), row.bucket.tuple.remote_port());
        self.family(other).then_with(|| end(self).cmp(&end(other)))
    }

    fn cookie(&self, other: &Self) -> Ordering {
        (self.netns, self.bucket.cookie).cmp(&(other.netns, other.bucket.cookie))
    }
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
        Row { bucket, direction: Direction::Unknown, netns: 0 }
    }
}
