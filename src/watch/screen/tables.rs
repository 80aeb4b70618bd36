//! The tables of the screen: the rows of each table, their order, and the cells of a row.
//!
//! 1. [`Listing::new`] builds the list of rows after each sample, and after each change of the table, the order or the filter.
//! 2. Sockets are not sorted in step 1. [`Listing::at`] sorts only a window of `WINDOW` sockets around the requested row.
//! 3. [`Listing::cells`] formats one row. Only the rows on the screen are formatted.

use std::borrow::Cow;
use std::cell::RefCell;
use std::cmp::Reverse;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::counted::MakerCount;
use super::latest::{LatestSample, time_of_day};
use crate::analysis::capacity::Destination;
use crate::analysis::capacity::sockets::ConnectionEnds;
use crate::analysis::groups::{GroupBy, GroupKey, StateCounts};
use crate::analysis::makers;
use crate::model::facts::Facts;
use crate::model::row::{Order, Row};
use crate::model::socket::{Cookie, FourTuple};
use crate::snapshot::owner_feed::Tracing;
use crate::view::column::Column;
use crate::view::record::SocketRecord;
use crate::view::table::Heading;
use crate::view::text::Text;
use crate::view::{capacity, human, list, owner, summary};
use crate::watch::{CloseHistory, Event, EventKind};

/// The width of a bar in columns.
const BAR: usize = 10;

/// How many sockets are sorted at once. This is more than a screen shows.
const WINDOW: usize = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ScreenTable {
    Sockets,
    Destinations,
    LocalPorts,
    RemoteAddrs,
    Namespaces,
    Events,
    Makers,
}

impl ScreenTable {
    /// Every table, in the order of the keys 1 to 7.
    pub(super) const ALL: [Self; 7] = [
        Self::Sockets,
        Self::Destinations,
        Self::LocalPorts,
        Self::RemoteAddrs,
        Self::Namespaces,
        Self::Events,
        Self::Makers,
    ];

    /// The name in the line above the table. All names together fit into 80 columns.
    #[must_use]
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Sockets => "sockets",
            Self::Destinations => "destinations",
            Self::LocalPorts => "local ports",
            Self::RemoteAddrs => "peers",
            Self::Namespaces => "namespaces",
            Self::Events => "events",
            Self::Makers => "makers",
        }
    }

    /// The orders that `s` chooses from. Sockets have the orders of `list --sort` except `none`.
    #[must_use]
    pub(super) const fn orders(self) -> &'static [&'static str] {
        match self {
            Self::Sockets => &["expires", "local", "remote"],
            Self::Destinations => &["free", "time-wait", "closes"],
            Self::LocalPorts => &["count", "port"],
            Self::RemoteAddrs => &["count", "address"],
            Self::Namespaces => &["count", "name"],
            Self::Events => &["newest"],
            Self::Makers => &["count", "closes", "name"],
        }
    }

    #[must_use]
    pub(super) fn next(self) -> Self {
        Self::ALL[(self as usize + 1) % Self::ALL.len()]
    }

    #[must_use]
    pub(super) fn previous(self) -> Self {
        Self::ALL[(self as usize + Self::ALL.len() - 1) % Self::ALL.len()]
    }
}

/// Identifies a row even if rows before it are added or removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RowIdentity {
    /// The inode number of the network namespace, and the socket.
    Socket(Option<u64>, FourTuple, Option<Cookie>),
    /// The inode number of the network namespace, and the destination.
    Destination(Option<u64>, ConnectionEnds),
    Group(GroupKey),
    Maker(makers::MakerGroupKey),
    /// The inode number and the name of a network namespace.
    Netns(Option<u64>, Option<String>),
    Event(SystemTime, EventKind, FourTuple, Option<Cookie>),
}

/// A row of a table, with everything that its cells and the advice about it need.
#[derive(Debug)]
pub(super) enum SelectedRow<'a> {
    Socket(Row, &'a Arc<Facts>),
    Destination(&'a Destination, &'a crate::snapshot::Capacity),
    Group(GroupKey, StateCounts),
    Maker(&'a MakerCount),
    Netns(&'a Arc<Facts>, StateCounts),
    Event(&'a Event),
}

/// The rows of a table, in their order.
#[derive(Debug)]
pub(super) struct Listing(Items);

#[derive(Debug)]
enum Items {
    Sockets(RefCell<SocketRows>),
    /// The indices of the namespace and of the destination.
    Destinations(Vec<(usize, usize)>),
    /// Indices of the counts that `SampleCounts::by` returns.
    Groups(GroupBy, Vec<u32>),
    /// Indices of the namespaces.
    Namespaces(Vec<usize>),
    /// The number of rows, and whether the oldest comes first. Events have one order only.
    Events(usize, bool),
    /// Indices of the counts that `SampleCounts::makers` returns.
    Makers(Vec<usize>),
}

/// The rows of the table of sockets. Only a part of the rows is sorted. It contains the row that was requested last.
#[derive(Debug)]
struct SocketRows {
    order: Order,
    reverse: bool,
    /// The sort key, and the indices of namespace and row.
    keys: Vec<(u128, u32, u32)>,
    /// The part of `keys` that is sorted. No key before this part is higher, and no key behind it is lower.
    sorted: Range<usize>,
}

impl SocketRows {
    fn key(&self, row: &Row) -> u128 {
        let key = self.order.key(row);
        if self.reverse { !key } else { key }
    }

    fn at(&mut self, index: usize) -> Option<(u32, u32)> {
        if !self.sorted.contains(&index) {
            let count = self.keys.len();
            let start = index.saturating_sub(WINDOW / 2).min(count);
            let end = (start + WINDOW).min(count);
            if start > 0 && start < count {
                self.keys.select_nth_unstable(start);
            }
            if end < count {
                self.keys[start..].select_nth_unstable(end - start);
            }
            self.keys[start..end].sort_unstable();
            self.sorted = start..end;
        }
        self.keys.get(index).map(|&(_, netns, row)| (netns, row))
    }
}

impl Listing {
    /// Selects and orders the rows of a table. `order` is an index of [`ScreenTable::orders`].
    #[must_use]
    pub(super) fn new(
        table: ScreenTable,
        order: usize,
        reverse: bool,
        latest: &LatestSample,
        history: &CloseHistory,
    ) -> Self {
        let by = |by: GroupBy| {
            let counts = latest.counted.by(by);
            let mut places: Vec<u32> = (0..).take(counts.len()).collect();
            if order == 1 {
                places.sort_unstable_by_key(|place| match counts[*place as usize].0 {
                    GroupKey::LocalPort(port) => (None, port.0),
                    GroupKey::RemoteAddr(addr) => (Some(addr), 0),
                    _ => (None, 0),
                });
            }
            if reverse {
                places.reverse();
            }
            Items::Groups(by, places)
        };
        Self(match table {
            ScreenTable::Sockets => {
                let order = [Order::Expires, Order::Local, Order::Remote][order];
                let mut sockets = SocketRows { order, reverse, keys: vec![], sorted: 0..0 };
                let rows = latest.namespaces().iter().map(|netns| netns.rows.len()).sum();
                let mut keys = Vec::with_capacity(rows);
                for (place, netns) in (0..).zip(latest.namespaces()) {
                    keys.extend((0..).zip(netns.rows.iter()).map(|(at, row)| (sockets.key(row), place, at)));
                }
                sockets.keys = keys;
                Items::Sockets(RefCell::new(sockets))
            }
            ScreenTable::Destinations => {
                let mut all: Vec<(usize, usize)> = vec![];
                for (place, answer) in latest.capacity.iter().enumerate() {
                    all.extend((0..answer.value.destinations.len()).map(|at| (place, at)));
                }
                let one = |&(place, at): &(usize, usize)| &latest.capacity[place].value.destinations[at];
                match order {
                    // The destinations of each namespace are in this order already. The sort merges them.
                    0 => all.sort_by_key(|at| one(at).urgency()),
                    1 => all.sort_by_key(|at| Reverse(one(at).time_wait)),
                    _ => all.sort_by(|a, b| {
                        one(b).closes_per_s_now.unwrap_or(0.0).total_cmp(&one(a).closes_per_s_now.unwrap_or(0.0))
                    }),
                }
                if reverse {
                    all.reverse();
                }
                Items::Destinations(all)
            }
            ScreenTable::LocalPorts => by(GroupBy::LocalPort),
            ScreenTable::RemoteAddrs => by(GroupBy::RemoteAddr),
            ScreenTable::Namespaces => {
                let mut all: Vec<usize> = (0..latest.namespaces().len()).collect();
                let one = |place: &usize| &latest.namespaces()[*place];
                match order {
                    0 => all.sort_by_key(|place| Reverse(one(place).time_wait + one(place).fin_wait_2)),
                    _ => all.sort_by_key(|place| (one(place).facts.netns_name.clone(), one(place).facts.netns)),
                }
                if reverse {
                    all.reverse();
                }
                Items::Namespaces(all)
            }
            ScreenTable::Events => Items::Events(history.events().len(), reverse),
            ScreenTable::Makers => {
                let one = |place: &usize| &latest.counted.makers()[*place];
                let rate = |place: &usize| one(place).per_second.unwrap_or(0.0);
                let mut all: Vec<usize> = (0..latest.counted.makers().len()).collect();
                match order {
                    // The makers are in this order already.
                    0 => {}
                    1 => all.sort_by(|a, b| rate(b).total_cmp(&rate(a))),
                    _ => all.sort_by_cached_key(|place| owner::group_name(&one(place).group, GroupBy::Owner)),
                }
                if reverse {
                    all.reverse();
                }
                Items::Makers(all)
            }
        })
    }

    #[must_use]
    pub(super) fn len(&self) -> usize {
        match &self.0 {
            Items::Sockets(sockets) => sockets.borrow().keys.len(),
            Items::Destinations(all) => all.len(),
            Items::Groups(_, all) => all.len(),
            Items::Namespaces(all) | Items::Makers(all) => all.len(),
            Items::Events(count, _) => *count,
        }
    }

    #[must_use]
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    #[must_use]
    pub(super) fn at<'a>(
        &self,
        row: usize,
        latest: &'a LatestSample,
        history: &'a CloseHistory,
    ) -> Option<SelectedRow<'a>> {
        Some(match &self.0 {
            Items::Sockets(sockets) => {
                let (place, at) = sockets.borrow_mut().at(row)?;
                let netns = latest.namespaces().get(place as usize)?;
                SelectedRow::Socket(*netns.rows.get(at as usize)?, &netns.facts)
            }
            Items::Destinations(all) => {
                let &(place, at) = all.get(row)?;
                let capacity = &latest.capacity.get(place)?.value;
                SelectedRow::Destination(capacity.destinations.get(at)?, capacity)
            }
            Items::Groups(by, all) => {
                let &(key, count) = latest.counted.by(*by).get(*all.get(row)? as usize)?;
                SelectedRow::Group(key, count)
            }
            Items::Namespaces(all) => {
                let netns = latest.namespaces().get(*all.get(row)?)?;
                SelectedRow::Netns(&netns.facts, count_of(netns))
            }
            Items::Events(count, oldest_first) => {
                let newest = count.checked_sub(row + 1)?;
                SelectedRow::Event(history.events().get(if *oldest_first { row } else { newest })?)
            }
            Items::Makers(all) => SelectedRow::Maker(latest.counted.makers().get(*all.get(row)?)?),
        })
    }

    #[must_use]
    pub(super) fn identity(&self, row: usize, latest: &LatestSample, history: &CloseHistory) -> Option<RowIdentity> {
        Some(self.at(row, latest, history)?.identity())
    }

    /// Finds the index of the row with this identity.
    #[must_use]
    pub(super) fn find(&self, identity: &RowIdentity, latest: &LatestSample, history: &CloseHistory) -> Option<usize> {
        match (&self.0, identity) {
            (Items::Sockets(sockets), RowIdentity::Socket(inode, tuple, cookie)) => {
                let is_it = |row: &&Row| row.bucket.cookie == *cookie && row.bucket.tuple == *tuple;
                let netns = latest.namespaces().iter().find(|netns| netns.facts.netns == *inode)?;
                let row = netns.rows.iter().find(is_it)?;
                let sockets = sockets.borrow();
                let key = sockets.key(row);
                // In the sorted order, rows with equal keys are next to each other.
                let lower = sockets.keys.iter().filter(|(other, ..)| *other < key).count();
                let equal = sockets.keys.iter().filter(|(other, ..)| *other == key).count();
                drop(sockets);
                (lower..lower + equal).find(|row| self.identity(*row, latest, history).as_ref() == Some(identity))
            }
            _ => (0..self.len()).find(|row| self.identity(*row, latest, history).as_ref() == Some(identity)),
        }
    }

    #[must_use]
    pub(super) fn headings(&self, latest: &LatestSample) -> Vec<Heading> {
        const SHARE: Heading = Heading { drop_order: 6, ..Heading::new("SHARE") };
        const IN_USE: Heading = Heading { drop_order: 6, ..Heading::new("IN USE") };
        const COUNT: Heading = Heading::new("COUNT").right();
        let netns = || latest.are_several().then(|| Heading::new("NETNS"));
        match &self.0 {
            Items::Sockets(_) => {
                let owner = latest.shows_owners().then(|| Heading::new("OWNER"));
                list::headings(&columns(latest)).into_iter().chain(owner).collect()
            }
            Items::Destinations(_) => netns().into_iter().chain(capacity::HEADINGS).chain([IN_USE]).collect(),
            Items::Groups(by, _) => vec![Heading::new(summary::title(*by)), COUNT, SHARE],
            Items::Namespaces(_) => vec![Heading::new(summary::title(GroupBy::Netns)), COUNT, SHARE],
            Items::Events(..) => {
                let own = [Heading::new("TIME"), Heading::new("EVENT"), Heading::new("CERTAIN")];
                own.into_iter().chain(list::headings(&columns(latest))).collect()
            }
            Items::Makers(_) => {
                let evidence = Heading { drop_order: 6, ..Heading::new("EVIDENCE") };
                let share = Heading { drop_order: 5, ..SHARE };
                vec![Heading::new("MAKER"), COUNT, Heading::new("PER SECOND").right(), share, evidence]
            }
        }
    }

    /// The cells of a row. In the table of sockets, `age` is subtracted from remaining times.
    #[must_use]
    pub(super) fn cells(
        &self,
        row: usize,
        latest: &LatestSample,
        history: &CloseHistory,
        age: Duration,
        unicode: bool,
    ) -> Vec<String> {
        let all = || latest.namespaces().iter().map(|netns| count_of(netns).all()).sum::<u64>();
        let share = |count: StateCounts| bar(count.all(), all(), unicode);
        let counted =
            |label: String, count: StateCounts| vec![label, human::with_separators(count.all()), share(count)];
        match self.at(row, latest, history) {
            None => vec![],
            Some(SelectedRow::Socket(row, facts)) => {
                let owner = latest.shows_owners().then(|| owner::cell(latest.owner(&row).as_ref()));
                socket(&aged(row, age), facts, latest).into_iter().chain(owner).collect()
            }
            Some(SelectedRow::Destination(one, capacity)) => {
                let netns = latest.are_several().then(|| human::escape(&netns_name(&capacity.facts)).into_owned());
                let pool = capacity.pool.size;
                let used = bar((pool - one.free.min(pool)).into(), pool.into(), unicode);
                netns.into_iter().chain(capacity::cells(one, &capacity.facts)).chain([used]).collect()
            }
            Some(SelectedRow::Group(key, count)) => {
                // The key is a port or an address, so `label` needs no list of namespaces.
                let facts = latest.namespaces().first().map(|netns| &netns.facts);
                counted(facts.map_or_else(String::new, |facts| summary::label(&key, facts, &[])), count)
            }
            Some(SelectedRow::Netns(facts, count)) => counted(human::escape(&netns_name(facts)).into_owned(), count),
            Some(SelectedRow::Event(event)) => {
                let certain = if event.certain { "yes" } else { "no" };
                let own = [time_of_day(event.at), event.kind.name().to_owned(), certain.to_owned()];
                own.into_iter().chain(socket(&event.row, &event.facts, latest)).collect()
            }
            Some(SelectedRow::Maker(MakerCount { group, per_second })) => {
                let mut cells = counted(owner::group_name(group, GroupBy::Owner), group.count);
                cells.insert(2, per_second.map_or_else(|| "-".into(), |rate| format!("{rate:.1}")));
                cells.push(owner::group_evidence(group));
                cells
            }
        }
    }

    /// The sentence that an empty table shows.
    #[must_use]
    pub(super) fn empty_text(&self, filtered: bool, latest: &LatestSample) -> Cow<'static, str> {
        if let (Items::Makers(_), Some(Tracing::Unreadable(why))) = (&self.0, &latest.tracing) {
            return format!("{why}; or press t to start a tracer").into();
        }
        Cow::Borrowed(match &self.0 {
            Items::Destinations(_) if latest.capacity.is_empty() => {
                "free ports are unknown: not read yet, screen paused, or a recording"
            }
            Items::Destinations(_) => "no outbound connections on the ephemeral ports",
            Items::Events(..) => "no events since the first read",
            Items::Makers(_) if latest.tracing.is_none() => "a recording has no processes",
            Items::Makers(_) if !latest.is_traced() => "no tracer runs; press t to start one",
            Items::Makers(_) if latest.owners().is_empty() => "the tracer has seen no close yet",
            _ if filtered => "no socket passes the filter",
            _ => "no TIME_WAIT sockets",
        })
    }
}

impl SelectedRow<'_> {
    fn identity(&self) -> RowIdentity {
        match self {
            Self::Socket(row, facts) => RowIdentity::Socket(facts.netns, row.bucket.tuple, row.bucket.cookie),
            Self::Destination(one, capacity) => RowIdentity::Destination(capacity.facts.netns, one.ends),
            Self::Group(key, _) => RowIdentity::Group(*key),
            Self::Maker(maker) => RowIdentity::Maker(maker.group.key.clone()),
            Self::Netns(facts, _) => RowIdentity::Netns(facts.netns, facts.netns_name.clone()),
            Self::Event(event) => {
                RowIdentity::Event(event.at, event.kind, event.row.bucket.tuple, event.row.bucket.cookie)
            }
        }
    }
}

/// The row with the remaining time that it has `age` after the sample.
#[must_use]
pub(super) fn aged(mut row: Row, age: Duration) -> Row {
    let age = u32::try_from(age.as_millis()).unwrap_or(u32::MAX);
    row.bucket.expires_ms = row.bucket.expires_ms.saturating_sub(age);
    row
}

fn count_of(netns: &crate::watch::NetnsSample) -> StateCounts {
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    StateCounts { time_wait: count(netns.time_wait), fin_wait_2: count(netns.fin_wait_2) }
}

fn netns_name(facts: &Facts) -> String {
    let inode = || facts.netns.map_or_else(|| "unknown".into(), |inode| inode.to_string());
    facts.netns_name.clone().unwrap_or_else(inode)
}

fn columns(latest: &LatestSample) -> Vec<&'static Column> {
    Column::of_table(latest.are_several(), latest.sample.fin_wait_2() > 0)
}

fn socket(row: &Row, facts: &Facts, latest: &LatestSample) -> Vec<String> {
    let record = SocketRecord::of_row(row, facts);
    let cell = |column: &&'static Column| {
        let mut text = Text::default();
        column.append_cell(&record, &mut text);
        String::from(text)
    };
    columns(latest).iter().map(cell).collect()
}

/// A bar for a part of a whole. The whole takes [`BAR`] columns. A part above 0 is always visible.
fn bar(part: u64, whole: u64, unicode: bool) -> String {
    const PARTS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let steps = if unicode { 8 } else { 1 };
    let length = (BAR * steps) as u64;
    let filled = (part * length).checked_div(whole).unwrap_or(0).max(u64::from(part > 0)).min(length);
    let filled = usize::try_from(filled).unwrap_or(0);
    if unicode { "█".repeat(filled / 8) + PARTS[filled % 8] } else { "#".repeat(filled) }
}
