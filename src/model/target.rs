//! What `kill` selects: a timewait bucket, or an orphan (a closing socket that no process has open any more).

use std::cmp::Ordering;

use super::row::{Direction, Order, Row};
use super::socket::{FullSocket, Socket, StateSet, TcpState, TimeWaitBucket};

/// The states in which a full socket without an inode is an orphan: its process has closed it, and the socket exists until its
/// peer has answered or a timer of the kernel ends it. In ESTABLISHED and CLOSE_WAIT a full socket without an inode is a connection that
/// its server has not accepted yet.
pub const ORPHAN_STATES: StateSet =
    StateSet::of(&[TcpState::FinWait1, TcpState::FinWait2, TcpState::Closing, TcpState::LastAck]);

impl FullSocket {
    /// Whether it is an orphan; see [`ORPHAN_STATES`].
    #[must_use]
    pub const fn is_orphan(&self) -> bool {
        self.inode.is_none() && ORPHAN_STATES.contains(self.state)
    }
}

/// A bucket or an orphan that `kill` can destroy, with its inferred direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The bucket or the orphan.
    pub socket: Socket,
    /// The end that probably opened the connection.
    pub direction: Direction,
}

impl From<Row> for Target {
    fn from(row: Row) -> Self {
        Self { socket: Socket::Bucket(row.bucket), direction: row.direction }
    }
}

impl Target {
    /// Converts the target to a row, which filters, sorting and SOCK_DESTROY need. The row of an orphan has a remaining time of
    /// `u32::MAX` ms.
    #[must_use]
    pub const fn row(&self) -> Row {
        let bucket = match self.socket {
            Socket::Bucket(bucket) => bucket,
            Socket::Full(full) => TimeWaitBucket {
                tuple: full.tuple,
                fin_wait_2: matches!(full.state, TcpState::FinWait2),
                expires_ms: u32::MAX,
                interface: full.interface,
                mark: full.mark,
                cookie: full.cookie,
            },
        };
        Row { bucket, direction: self.direction, netns: 0 }
    }

    /// Whether it is an orphan, and not a bucket.
    #[must_use]
    pub const fn is_orphan(&self) -> bool {
        matches!(self.socket, Socket::Full(_))
    }

    /// Compares two targets for the order of a list: buckets by remaining time, then orphans.
    #[must_use]
    pub fn compare(&self, other: &Self) -> Ordering {
        self.is_orphan().cmp(&other.is_orphan()).then_with(|| Order::Expires.compare(&self.row(), &other.row()))
    }
}

/// Counts the targets of each kind, and returns the counts as text: `5 TIME_WAIT, 2 FIN_WAIT_2, 1 orphan in FIN_WAIT_1`.
#[must_use]
pub fn count_by_kind<'a>(targets: impl Iterator<Item = &'a Target>) -> String {
    // Buckets come first in the text.
    let mut counts: Vec<((bool, TcpState), usize)> =
        vec![((false, TcpState::TimeWait), 0), ((false, TcpState::FinWait2), 0)];
    for target in targets {
        let kind = (target.is_orphan(), target.socket.state());
        match counts.iter_mut().find(|(other, _)| *other == kind) {
            Some((_, count)) => *count += 1,
            None => counts.push((kind, 1)),
        }
    }
    counts.retain(|(_, count)| *count > 0);
    if counts.is_empty() {
        return "0 TIME_WAIT".into();
    }
    let words = counts.into_iter().map(|((orphan, state), count)| {
        let name = state.upper_name();
        match (orphan, count) {
            (false, count) => format!("{count} {name}"),
            (true, 1) => format!("1 orphan in {name}"),
            (true, count) => format!("{count} orphans in {name}"),
        }
    });
    words.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::model::row::tests::row;
    use std::num::NonZeroU32;

    /// A full socket in this state. No process has it open if `inode` is 0.
    pub(crate) fn full(state: TcpState, inode: u32) -> FullSocket {
        let bucket = row("10.0.0.1", 80, "10.0.0.2", 40000).bucket;
        FullSocket {
            tuple: bucket.tuple,
            state,
            uid: 1000,
            inode: NonZeroU32::new(inode),
            interface: None,
            mark: None,
            v6only: None,
            last_ack_ms: None,
            cookie: bucket.cookie,
        }
    }

    #[test]
    fn only_a_closing_socket_without_an_owner_is_an_orphan() {
        use TcpState::{Closing, FinWait1, FinWait2, LastAck};
        for state in TcpState::ALL {
            let closing = [FinWait1, FinWait2, Closing, LastAck].contains(&state);
            assert_eq!(full(state, 0).is_orphan(), closing, "{state:?}");
            assert!(!full(state, 7).is_orphan(), "{state:?} with an owner");
        }
    }

    #[test]
    fn each_kind_is_counted_and_singular_and_plural_agree() {
        let orphan = |state| Target { socket: Socket::Full(full(state, 0)), direction: Direction::Unknown };
        let bucket = Target::from(row("10.0.0.1", 80, "10.0.0.2", 40000));
        let orphans = [orphan(TcpState::FinWait1), orphan(TcpState::LastAck), orphan(TcpState::LastAck)];
        assert_eq!(count_by_kind(orphans.iter()), "1 orphan in FIN_WAIT_1, 2 orphans in LAST_ACK");
        assert_eq!(count_by_kind([bucket, orphans[0]].iter()), "1 TIME_WAIT, 1 orphan in FIN_WAIT_1");
        let mut fin_wait_2 = row("10.0.0.1", 80, "10.0.0.2", 40000);
        fin_wait_2.bucket.fin_wait_2 = true;
        assert_eq!(count_by_kind([Target::from(fin_wait_2)].iter()), "1 FIN_WAIT_2");
        assert_eq!(count_by_kind([].iter()), "0 TIME_WAIT");
        assert!(bucket.compare(&orphans[0]).is_lt());
    }
}
