//! A row of a list: a bucket with its inferred direction. Filters test rows, and views print them.

use std::cmp::Ordering;

use super::facts::Facts;
use super::port::Port;
use super::socket::TimeWaitBucket;

/// Which end opened the connection that left the bucket. This is **an inference**, because the kernel does not store it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// The local port has a listener that covers the local address.
    Inbound,
    /// This end called connect(): `analysis::direction` lists the evidence.
    Outbound,
    /// The evidence does not show the direction.
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

/// One row of a list of buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The bucket as the kernel reports it.
    pub bucket: TimeWaitBucket,
    /// The inferred direction.
    pub direction: Direction,
    /// The index of its network namespace in the answer's list of namespaces.
    pub netns: u32,
}

/// A sort order of rows. Each order compares the field in its name first, then the rest of both ends, the namespace and the cookie. Among
/// addresses, IPv4 on the wire comes before IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// By remaining time, then by both ports, then by both addresses. Ports come before addresses, because buckets that expire
    /// in the same millisecond mostly have few addresses and many ports.
    Expires,
    /// By local address and port.
    Local,
    /// By remote address and port.
    Remote,
}

impl Order {
    /// The first part of the comparison as one number. A row with a lower number comes first. For IPv4 rows this number alone
    /// almost always decides.
    #[must_use]
    #[inline]
    pub fn key(self, row: &Row) -> u128 {
        let tuple = &row.bucket.tuple;
        let local = (tuple.local_bits(), tuple.local_port());
        let remote = (tuple.remote_bits(), tuple.remote_port());
        match self {
            Self::Expires => {
                let ports = u128::from(local.1.0) << 16 | u128::from(remote.1.0);
                u128::from(row.bucket.expires_ms) << 96
                    | ports << 64
                    | row.ends_key((local.0, Port(0)), (remote.0, Port(0))) >> 64
            }
            Self::Local => row.ends_key(local, remote),
            Self::Remote => row.ends_key(remote, local),
        }
    }

    /// Compares two rows. The lesser row comes first.
    #[must_use]
    #[inline]
    pub fn compare(self, a: &Row, b: &Row) -> Ordering {
        self.key(a).cmp(&self.key(b)).then_with(|| self.compare_all(a, b))
    }

    fn compare_all(self, a: &Row, b: &Row) -> Ordering {
        let all = |row: &Row| {
            let tuple = &row.bucket.tuple;
            let ipv6 = !tuple.family.ipv4_on_the_wire();
            let (local, remote) = (tuple.local_bits(), tuple.remote_bits());
            let (local_port, remote_port) = (tuple.local_port(), tuple.remote_port());
            let ends = match self {
                Self::Expires => (ipv6, local, Port(0), remote, Port(0)),
                Self::Local => (ipv6, local, local_port, remote, remote_port),
                Self::Remote => (ipv6, remote, remote_port, local, local_port),
            };
            let first = if self == Self::Expires {
                (row.bucket.expires_ms, local_port, remote_port)
            } else {
                (0, Port(0), Port(0))
            };
            (first, ends, row.netns, row.bucket.cookie)
        };
        all(a).cmp(&all(b))
    }
}

impl Row {
    /// A number that orders rows by their ends: the highest bit is set for IPv6 on the wire, and each address with its port follows. IPv4
    /// addresses take only the 32 bits that can differ, so that both ends fit. For IPv6, only the upper 127 bits of the first address
    /// fit.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "the other bits of a mapped address are always the same")]
    const fn ends_key(&self, (first, first_port): (u128, Port), (second, second_port): (u128, Port)) -> u128 {
        if self.bucket.tuple.family.ipv4_on_the_wire() {
            (first as u32 as u128) << 95
                | (first_port.0 as u128) << 79
                | (second as u32 as u128) << 47
                | (second_port.0 as u128) << 31
        } else {
            1 << 127 | first >> 1
        }
    }
}

/// Observes the rows of a network namespace as they arrive, for example to measure the widths of the columns of a table.
pub trait RowObserver: Send {
    /// Observes a row. If the dump has to be repeated, a new observer sees the rows of the new dump.
    fn observe(&mut self, row: &Row, facts: &Facts);
}

impl RowObserver for () {
    fn observe(&mut self, _: &Row, _: &Facts) {}
}

impl<O: RowObserver> RowObserver for Option<O> {
    #[inline]
    fn observe(&mut self, row: &Row, facts: &Facts) {
        if let Some(observer) = self {
            observer.observe(row, facts);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::model::socket::{Cookie, FourTuple};
    use proptest::prelude::*;

    /// A row with these ends. Its bucket has a remaining time of 10 s.
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

    proptest! {
        #[test]
        fn comparing_the_keys_first_gives_the_same_order_as_comparing_all_fields(
            rows in proptest::collection::vec((0_u32..3, 0..3, any::<[u8; 2]>(), any::<[u16; 2]>(), any::<u8>()), 2),
        ) {
            let rows: Vec<Row> = rows.into_iter().map(|(expires_ms, kind, addrs, ports, cookie)| {
                let form = |byte: u8| match kind {
                    0 => format!("10.0.{}.{}", byte >> 4, byte & 15),
                    1 => format!("::ffff:10.0.{}.{}", byte >> 4, byte & 15),
                    _ => format!("2001:db8::{:x}:{:x}", byte >> 4, byte & 15),
                };
                let mut row = row(&form(addrs[0]), ports[0], &form(addrs[1]), ports[1]);
                row.bucket.expires_ms = expires_ms;
                row.bucket.cookie = Cookie::new(cookie.into());
                row
            }).collect();
            for order in [Order::Expires, Order::Local, Order::Remote] {
                let (a, b) = (&rows[0], &rows[1]);
                prop_assert_eq!(order.compare(a, b), order.compare_all(a, b), "{:?}", order);
            }
        }
    }
}
