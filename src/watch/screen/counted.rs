//! The buckets of a sample, counted by local port and by remote address.

use crate::analysis::groups::{By, Count, Groups, Key};
use crate::model::row::Row;

/// Counts with their keys, the largest count first.
#[derive(Clone, Debug, Default)]
pub(super) struct Counted {
    local_ports: Vec<(Key, Count)>,
    remote_addrs: Vec<(Key, Count)>,
}

impl Counted {
    /// Counts the rows of all namespaces together.
    #[must_use]
    pub(super) fn of<'a>(namespaces: impl Iterator<Item = &'a [Row]>) -> Self {
        let mut groups = Groups::new(&[By::LocalPort, By::RemoteAddr], 0);
        namespaces.flatten().for_each(|row| groups.add(&row.bucket, row.direction));
        let mut counted = Self::default();
        for ranking in groups.top(usize::MAX) {
            match ranking.by {
                By::LocalPort => counted.local_ports = ranking.top,
                _ => counted.remote_addrs = ranking.top,
            }
        }
        counted
    }

    /// The counts by local port, or by remote address.
    #[must_use]
    pub(super) fn by(&self, by: By) -> &[(Key, Count)] {
        if by == By::LocalPort { &self.local_ports } else { &self.remote_addrs }
    }
}
