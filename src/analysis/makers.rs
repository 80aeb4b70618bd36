//! Counts closes by process, unit, container, destination, local port or network namespace. The *maker* of a bucket is the process
//! that closed the connection.
//!
//! Memory is bounded: there are at most [`MAX_GROUPS`] groups, and one more group that counts the closes of all further groups together.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::model::close::{Close, MakerFacts, Outcome, Role};
use crate::model::container::Runtime;
use crate::model::port::Port;

/// The maximum number of groups.
pub const MAX_GROUPS: usize = 16 * 1024;

/// The length of TIME_WAIT in seconds, on every kernel without `tcp_tw_timeout`.
const SECONDS: usize = 60;

/// The attribute by which closes are grouped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the words of the command line")]
pub enum MakerGroupBy {
    Process,
    Unit,
    Container,
    Destination,
    LocalPort,
    Netns,
}

/// A group of closes, or of the buckets that they left.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MakerGroupKey {
    /// A process.
    Process(Arc<ProcessKey>),
    /// A systemd unit.
    Unit(String),
    /// A container: the name of its runtime, and its id.
    Container(Option<&'static str>, String),
    /// The remote end of a connection, unless a listener on this machine accepted the connection.
    Destination(IpAddr, Port),
    /// A client of a server on this machine, by its address.
    Client(IpAddr),
    /// The local port.
    LocalPort(Port),
    /// The inode number of the network namespace.
    Netns(u64),
    /// The process is known and belongs to no unit, or to no container.
    Outside,
    /// The process, or its cgroup, is unknown.
    Unknown,
    /// All groups after the first [`MAX_GROUPS`], counted together.
    Others,
}

/// A process in the table of groups: its identity, and the values that its row shows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProcessKey {
    /// The process id.
    pub pid: u32,
    /// Whether `pid` is valid in twtool's own pid namespace. Otherwise, it is valid in the initial pid namespace.
    pub own_pid_namespace: bool,
    /// The name of the process (comm).
    pub comm: String,
    /// The systemd unit of the process.
    pub unit: Option<String>,
    /// The container of the process: the name of its runtime, and its id.
    pub container: Option<(Option<&'static str>, String)>,
}

impl ProcessKey {
    fn new(facts: &MakerFacts) -> Self {
        Self {
            pid: facts.pid,
            own_pid_namespace: facts.own_pid_namespace,
            comm: facts.comm.clone(),
            unit: facts.unit().map(str::to_owned),
            container: facts.container().map(|one| (one.runtime.map(Runtime::name), one.id.to_owned())),
        }
    }
}

impl MakerGroupKey {
    /// The key of a process.
    #[must_use]
    pub fn of_process(facts: &MakerFacts) -> Self {
        Self::Process(Arc::new(ProcessKey::new(facts)))
    }

    /// The key of a process's unit; [`Self::Unknown`] if the cgroup of the process is unknown.
    #[must_use]
    pub fn of_unit(facts: &MakerFacts) -> Self {
        facts.unit().map_or_else(|| Self::without(facts), |unit| Self::Unit(unit.to_owned()))
    }

    /// The key of a process's container; [`Self::Unknown`] if the cgroup of the process is unknown.
    #[must_use]
    pub fn of_container(facts: &MakerFacts) -> Self {
        let container = facts.container();
        container.map_or_else(
            || Self::without(facts),
            |container| Self::Container(container.runtime.map(Runtime::name), container.id.to_owned()),
        )
    }

    /// The key of a process's container. Without a container: the key of its unit. Without a unit: the key of the process itself.
    #[must_use]
    pub fn of_program(facts: &MakerFacts) -> Self {
        match (facts.container(), facts.unit()) {
            (Some(_), _) => Self::of_container(facts),
            (None, Some(_)) => Self::of_unit(facts),
            (None, None) => Self::of_process(facts),
        }
    }

    const fn without(facts: &MakerFacts) -> Self {
        if facts.cgroup.is_some() { Self::Outside } else { Self::Unknown }
    }
}

#[derive(Clone, Debug)]
struct MakerCounter {
    closes: u64,
    /// The value of `closes` when [`Makers::table`] was called last.
    before: u64,
    /// The buckets made in each of the last 60 seconds, by the second modulo 60.
    made: Box<[u32; SECONDS]>,
    /// The latest second that `made` covers.
    last: u64,
}

impl MakerCounter {
    fn new() -> Self {
        Self { closes: 0, before: 0, made: Box::new([0; SECONDS]), last: 0 }
    }

    /// Clears the seconds that are older than a minute.
    fn advance(&mut self, second: u64) {
        let stale = second.saturating_sub(self.last).min(SECONDS as u64);
        for back in 0..stale {
            self.made[slot(second - back)] = 0;
        }
        self.last = self.last.max(second);
    }
}

fn slot(second: u64) -> usize {
    usize::try_from(second % SECONDS as u64).unwrap_or(0)
}

/// A row of the table of groups.
#[derive(Clone, Debug, PartialEq)]
pub struct MakerRow {
    /// The group.
    pub key: MakerGroupKey,
    /// The number of closes of the group.
    pub closes: u64,
    /// The closes of the group per second since the previous table. In the final table: since the start.
    pub per_second: f64,
    /// The share of the group in all closes, 0 to 1.
    pub share: f64,
    /// The number of buckets that the group made in the last 60 s, including FIN_WAIT_2 buckets.
    pub buckets: u64,
}

/// Counts closes by group.
#[derive(Debug)]
pub struct Makers {
    by: MakerGroupBy,
    groups: HashMap<MakerGroupKey, MakerCounter>,
    closes: u64,
    /// When [`Self::table`] was called last.
    marked: Duration,
}

impl Makers {
    /// Creates a counter without closes.
    #[must_use]
    pub fn new(by: MakerGroupBy) -> Self {
        Self { by, groups: HashMap::new(), closes: 0, marked: Duration::ZERO }
    }

    /// The number of closes in all groups.
    #[must_use]
    pub const fn closes(&self) -> u64 {
        self.closes
    }

    /// Adds a close. `elapsed` is the time from the start until the close was seen.
    pub fn add(&mut self, close: &Close, elapsed: Duration) {
        let mut key = self.key(close);
        if self.groups.len() >= MAX_GROUPS && !self.groups.contains_key(&key) {
            key = MakerGroupKey::Others;
        }
        let count = self.groups.entry(key).or_insert_with(MakerCounter::new);
        count.closes += 1;
        self.closes += 1;
        let second = elapsed.as_secs();
        count.advance(second);
        if matches!(close.outcome, Outcome::TimeWait | Outcome::FinWait2) {
            count.made[slot(second)] += 1;
        }
    }

    fn key(&self, close: &Close) -> MakerGroupKey {
        match self.by {
            MakerGroupBy::Netns => return MakerGroupKey::Netns(close.netns),
            MakerGroupBy::LocalPort => return MakerGroupKey::LocalPort(close.tuple.local_port()),
            MakerGroupBy::Destination if close.role == Role::Accepted => {
                return MakerGroupKey::Client(close.tuple.remote_addr());
            }
            MakerGroupBy::Destination => {
                return MakerGroupKey::Destination(close.tuple.remote_addr(), close.tuple.remote_port());
            }
            MakerGroupBy::Process | MakerGroupBy::Unit | MakerGroupBy::Container => {}
        }
        let Some(maker) = &close.maker else { return MakerGroupKey::Unknown };
        let facts = &maker.facts;
        match self.by {
            MakerGroupBy::Unit => MakerGroupKey::of_unit(facts),
            MakerGroupBy::Container => MakerGroupKey::of_container(facts),
            _ => MakerGroupKey::of_process(facts),
        }
    }

    /// The groups with the most closes. With `last`, this is the final table, and rates count from the start. Otherwise they count
    /// from the previous table.
    pub fn table(&mut self, top: usize, elapsed: Duration, last: bool) -> Vec<MakerRow> {
        let since = if last { elapsed } else { elapsed.saturating_sub(self.marked) }.as_secs_f64();
        self.marked = elapsed;
        let all = self.closes;
        let row = |(key, count): (&MakerGroupKey, &mut MakerCounter)| {
            count.advance(elapsed.as_secs());
            let recent = if last { count.closes } else { count.closes - count.before };
            count.before = count.closes;
            MakerRow {
                key: key.clone(),
                closes: count.closes,
                per_second: if since > 0.0 { float(recent) / since } else { 0.0 },
                share: if all > 0 { float(count.closes) / float(all) } else { 0.0 },
                buckets: count.made.iter().map(|made| u64::from(*made)).sum(),
            }
        };
        let mut rows: Vec<MakerRow> = self.groups.iter_mut().map(row).collect();
        // Groups with the same number of closes keep a stable order.
        rows.sort_by_cached_key(|row| (std::cmp::Reverse(row.closes), format!("{:?}", row.key)));
        rows.truncate(top);
        rows
    }
}

#[expect(clippy::cast_precision_loss, reason = "a rate needs fewer digits")]
const fn float(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::close::{Maker, Method};
    use crate::model::socket::FourTuple;
    use crate::model::user::User;
    use std::slice;
    use std::time::SystemTime;

    fn close(pid: Option<u32>, cgroup: Option<&str>, role: Role, outcome: Outcome) -> Close {
        let facts = |pid| MakerFacts {
            pid,
            own_pid_namespace: true,
            comm: "web".into(),
            cgroup: cgroup.map(str::to_owned),
            ..MakerFacts::default()
        };
        let user = User { uid: 0, name: None };
        let maker = |pid| Maker { facts: Arc::new(facts(pid)), tid: pid, thread: "web".into(), user: user.clone() };
        let end = |addr: &str, port| (addr.parse().expect("an address"), Port(port));
        Close {
            at: SystemTime::UNIX_EPOCH,
            netns: 7,
            cookie: None,
            tuple: FourTuple::new(end("10.0.0.1", 80), end("10.0.0.2", 40000)),
            interface: None,
            mark: None,
            outcome,
            role,
            maker: pid.map(maker),
            method: Method::Bpf,
        }
    }

    fn keys(by: MakerGroupBy, closes: &[Close]) -> Vec<(MakerGroupKey, u64)> {
        let mut makers = Makers::new(by);
        for close in closes {
            makers.add(close, Duration::ZERO);
        }
        makers.table(9, Duration::from_secs(2), true).into_iter().map(|row| (row.key, row.closes)).collect()
    }

    #[test]
    fn closes_are_counted_by_the_requested_attribute() {
        let web = close(Some(5), Some("/system.slice/web.service"), Role::Accepted, Outcome::TimeWait);
        let bare = close(Some(6), Some("/"), Role::Connected, Outcome::TimeWait);
        let unknown = close(None, None, Role::Unknown, Outcome::TimeWait);
        let closes = [web.clone(), web, bare, unknown];
        let remote = || "10.0.0.2".parse().expect("an address");
        assert_eq!(
            keys(MakerGroupBy::Unit, &closes),
            [(MakerGroupKey::Unit("web.service".into()), 2), (MakerGroupKey::Outside, 1), (MakerGroupKey::Unknown, 1)]
        );
        assert_eq!(keys(MakerGroupBy::Netns, &closes), [(MakerGroupKey::Netns(7), 4)]);
        assert_eq!(keys(MakerGroupBy::LocalPort, &closes), [(MakerGroupKey::LocalPort(Port(80)), 4)]);
        assert_eq!(
            keys(MakerGroupBy::Destination, &closes),
            [(MakerGroupKey::Client(remote()), 2), (MakerGroupKey::Destination(remote(), Port(40000)), 2)]
        );
        assert_eq!(keys(MakerGroupBy::Container, &closes), [(MakerGroupKey::Outside, 3), (MakerGroupKey::Unknown, 1)]);
        assert_eq!(keys(MakerGroupBy::Process, &closes).len(), 3);
        let without_cgroup = close(Some(7), None, Role::Accepted, Outcome::TimeWait);
        for by in [MakerGroupBy::Unit, MakerGroupBy::Container] {
            assert_eq!(keys(by, slice::from_ref(&without_cgroup)), [(MakerGroupKey::Unknown, 1)], "{by:?}");
        }
    }

    #[test]
    fn rates_count_from_the_previous_table_and_buckets_count_for_a_minute() {
        let mut makers = Makers::new(MakerGroupBy::Netns);
        let made = close(None, None, Role::Accepted, Outcome::TimeWait);
        let aborted = close(None, None, Role::Accepted, Outcome::Aborted);
        let at = Duration::from_secs;
        makers.add(&made, at(0));
        makers.add(&aborted, at(1));
        let numbers = |rows: Vec<MakerRow>| rows.iter().map(|row| (row.per_second, row.buckets)).collect::<Vec<_>>();
        assert_eq!(numbers(makers.table(9, at(2), false)), [(1.0, 1)]);
        makers.add(&made, at(59));
        assert_eq!(numbers(makers.table(9, at(59), false)), [(1.0 / 57.0, 2)]);
        assert_eq!(numbers(makers.table(9, at(60), false)), [(0.0, 1)], "the first bucket is a minute old");
        assert_eq!(numbers(makers.table(9, at(1000), false)), [(0.0, 0)]);
        assert_eq!(numbers(makers.table(9, at(1000), true)), [(0.003, 0)]);
    }

    #[test]
    fn groups_after_the_maximum_number_are_counted_together() {
        let mut makers = Makers::new(MakerGroupBy::Process);
        for pid in 0..=u32::try_from(MAX_GROUPS).expect("small") {
            makers.add(&close(Some(pid), None, Role::Accepted, Outcome::TimeWait), Duration::ZERO);
        }
        let rows = makers.table(usize::MAX, Duration::ZERO, true);
        assert_eq!(rows.len(), MAX_GROUPS + 1);
        assert!(rows.iter().any(|row| row.key == MakerGroupKey::Others));
    }
}
