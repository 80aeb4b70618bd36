//! Compares the buckets of a sample with the buckets of the last sample (the one before it), by cookie.
//!
//! A bucket has the cookie of its connection. So a bucket of the last sample and a bucket of this sample are the same if they have
//! the same cookie. In a *walk*, the kernel lists the sockets for one sample. The kernel reports each remaining time at an unknown
//! moment of a walk, so the time between two reports of one bucket is known only up to the durations of both walks.
//!
//! The buckets that both samples contain usually come in the same order. So this module reads the rows of both samples side by side,
//! and looks up only rows without a partner in a map of rows. With 100,000 buckets, a map of all rows would take 13 MiB, and a third of
//! the processor time of a sample.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::RandomState;

use super::events::{Event, EventKind};
use super::sample::{NetnsSample, Reselection};
use crate::analysis::history::Length;
use crate::model::facts::Facts;
use crate::model::kernel_counts::Counters;
use crate::model::row::{Direction, Row};
use crate::model::socket::Cookie;
use crate::snapshot::bucket_sample::{self, BucketSample, FindOccupant, Occupant};
use crate::snapshot::{Selection, SnapshotError};

/// The largest error that rounding causes in the difference of two remaining times. The kernel counts in jiffies of up to 10 ms, and rounds
/// each report.
const ROUNDING_MS: i64 = 20;

/// The kernel's timers and CLOCK_MONOTONIC may drift apart by one part in a thousand while adjtimex(2) corrects the clock.
const DRIFT: i64 = 1000;

/// If a bucket had at most this much time left when it was last known to exist, neither SOCK_DESTROY nor a RST counts as a possible
/// cause of its end.
const SOON_MS: i64 = 2000;

/// The buckets of the last sample of one namespace.
#[derive(Debug, Default)]
pub(super) struct Tracker {
    /// The selected and the other buckets that the last sample has listed, in the order of that sample. [`NetnsSample::rows`] can share
    /// the memory of the selected buckets.
    listed: [Arc<Vec<Row>>; 2],
    /// Buckets that exist, or may exist, and that the last sample has not listed.
    missed: Vec<SeenBucket>,
    last: Option<LastSample>,
    /// When the last whole sample began.
    last_whole_ms: Option<i64>,
    /// The closes since the last whole sample.
    closes: u64,
    /// The longest remaining time of any bucket in TIME_WAIT so far.
    largest_ms: Option<u32>,
}

#[derive(Debug)]
struct LastSample {
    walked: (Duration, Duration),
    whole: bool,
    /// The counters when the last whole sample began. If no sample was whole: when the first sample began. A bucket that a later sample has
    /// missed may have ended at any time since then.
    counters: Counters,
    facts: Arc<Facts>,
    /// How long TIME_WAIT lasts.
    length_ms: i64,
}

/// A bucket as of the last sample.
#[derive(Debug)]
struct SeenBucket {
    row: Row,
    /// How much longer the remaining time may be than in the row, in ms: 0, unless a sample has missed the bucket.
    slack_ms: u16,
    /// The remaining time when a sample last listed the bucket.
    listed_ms: u32,
    /// An upper bound of the time from that sample to the last one, in ms: 0, unless a sample has missed the bucket.
    since_ms: i64,
    /// An upper bound of the remaining time when the bucket was last known to exist: listed, or found by a look-up.
    known_ms: u32,
    selected: bool,
}

impl SeenBucket {
    const fn listed(row: Row, selected: bool) -> Self {
        Self {
            row,
            slack_ms: 0,
            listed_ms: row.bucket.expires_ms,
            since_ms: 0,
            known_ms: row.bucket.expires_ms,
            selected,
        }
    }

    /// Whether the timer of a bucket in TIME_WAIT has started again, although less time is left than when a sample last listed the
    /// bucket. Two conditions must hold: the timer can have started with its full length since that sample, and clearly more time
    /// is left than the old timer would have. "Clearly" allows for a virtual machine that loses ticks, so that its timers are slow:
    /// by 43 ms in 19 s on an emulated processor.
    fn restarted(&self, left: i64, time: Elapsed, length_ms: i64) -> bool {
        let since = self.since_ms.saturating_add(time.most);
        let old_timer = i64::from(self.row.bucket.expires_ms) + i64::from(self.slack_ms) - time.least;
        left >= length_ms - since - time.tolerance() && left > old_timer.max(0) + time.tolerance() + since / 100
    }

    /// Subtracts the elapsed time from the remaining time of a bucket that a sample has missed.
    fn pass(&mut self, time: Elapsed) {
        let left = i64::from(self.row.bucket.expires_ms).saturating_sub(time.most);
        self.row.bucket.expires_ms = u32::try_from(left).unwrap_or(0);
        self.slack_ms = self.slack_ms.saturating_add(u16::try_from(time.most - time.least).unwrap_or(u16::MAX));
        self.since_ms = self.since_ms.saturating_add(time.most);
    }
}

/// The time between two reports of the same bucket, in ms. It is uncertain, because a walk reaches a bucket at an unknown moment.
#[derive(Clone, Copy, Debug)]
struct Elapsed {
    least: i64,
    most: i64,
}

impl Elapsed {
    /// The largest apparent error of a timer.
    const fn tolerance(self) -> i64 {
        ROUNDING_MS + self.most / DRIFT
    }
}

/// An event that does not yet have the time and the facts of its sample.
#[derive(Debug)]
struct PendingEvent {
    kind: EventKind,
    certain: bool,
    row: Row,
    selected: bool,
}

impl Tracker {
    /// Compares a sample with the last sample. For `closes_begin`, see `Sample::closes_begin`. With `keeps_rows`, the result has the
    /// selected buckets. `find` finds the socket that now has both ends of a missing bucket.
    pub(super) fn follow(
        &mut self,
        sample: BucketSample,
        closes_begin: bool,
        keeps_rows: bool,
        find: &mut FindOccupant<'_>,
    ) -> NetnsSample {
        let (began, ended) = sample.walked;
        let elapsed = self.last.as_ref().map(|last| Elapsed {
            least: ms(began.saturating_sub(last.walked.1)),
            most: ms(ended.saturating_sub(last.walked.0)) + 1,
        });
        let time_wait = sample.rows.iter().chain(&sample.others).filter(|row| !row.bucket.fin_wait_2);
        self.largest_ms = self.largest_ms.max(time_wait.map(|row| row.bucket.expires_ms).max());
        let length = Length::learn(sample.tw_timeout_s, self.largest_ms);
        let length_ms = i64::from(length.seconds) * 1000;
        let mut closes = CloseCounter { now_ms: ms(began), length_ms, ..CloseCounter::default() };
        let mut found = vec![];
        let mut add = |row: &Row, selected: bool, event: Option<PendingEvent>| {
            if selected && !row.bucket.fin_wait_2 {
                let is_close = match &event {
                    Some(event) => matches!(event.kind, EventKind::Entered | EventKind::BecameTimeWait),
                    // Without a cookie, a bucket is new if its timer started after the last sample.
                    None => row.bucket.cookie.is_none() && elapsed.is_some_and(|time| closes.age(row) <= time.least),
                };
                closes.add(row, is_close, closes_begin);
            }
            found.extend(event);
        };

        let with_cookie = |seen: SeenBucket| Some((seen.row.bucket.cookie?, seen));
        let mut missing: HashMap<Cookie, SeenBucket, RandomState> =
            self.missed.drain(..).filter_map(with_cookie).collect();
        let mut unknown = vec![];
        for ((was, now), selected) in self.listed.iter().zip([&sample.rows, &sample.others]).zip([true, false]) {
            pair(was, now, |was, now| match (was, now) {
                (Some(was), Some(now)) => {
                    let was = SeenBucket::listed(*was, selected);
                    add(now, selected, elapsed.and_then(|time| change(&was, now, selected, time, length_ms)));
                }
                (Some(was), None) => missing.extend(with_cookie(SeenBucket::listed(*was, selected))),
                (None, Some(now)) => unknown.push((now, selected)),
                (None, None) => {}
            });
        }
        for (row, selected) in unknown {
            let was = row.bucket.cookie.and_then(|cookie| missing.remove(&cookie));
            let event = elapsed.and_then(|time| match was {
                Some(was) => change(&was, row, selected, time, length_ms),
                None => self.entered(row, selected, time, length_ms),
            });
            add(row, selected, event);
        }
        let mut missing: Vec<SeenBucket> = missing.into_values().collect();
        missing.sort_unstable_by_key(|seen| seen.row.bucket.cookie);
        if let Some(elapsed) = elapsed {
            if sample.whole {
                missing = self.find_ends(missing, &sample, elapsed, find, &mut found);
            }
            for seen in &mut missing {
                seen.pass(elapsed);
            }
            self.missed = missing;
        }
        let closes_per_s = self.closes_per_s(&closes, sample.whole);
        found.retain(|event| event.selected);

        let BucketSample { mut facts, rows, others, walked, whole, before, after, max_tw_buckets, complete, .. } =
            sample;
        // This closes the descriptor for interface names.
        let shown = rows.iter().chain(found.iter().map(|event| &event.row));
        facts.interfaces.store_names(shown.filter_map(|row| row.bucket.interface).collect::<BTreeSet<_>>());
        let (at, facts) = (facts.taken_at, Arc::new(facts));
        let counters = match self.last.take() {
            Some(last) if !whole => last.counters,
            _ => before,
        };
        self.last = Some(LastSample { walked, whole, counters, facts: Arc::clone(&facts), length_ms });
        let event =
            |PendingEvent { kind, certain, row, .. }| Event { at, kind, certain, row, facts: Arc::clone(&facts) };
        let (rows, others) = (Arc::new(rows), Arc::new(others));
        let fin_wait_2 = rows.iter().filter(|row| row.bucket.fin_wait_2).count();
        let sample = NetnsSample {
            time_wait: rows.len() - fin_wait_2,
            fin_wait_2,
            all_buckets: rows.len() + others.len(),
            max_tw_buckets,
            counters: after,
            closes: closes.by_second,
            closes_per_s,
            events: found.into_iter().map(event).collect(),
            whole,
            complete,
            rows: if keeps_rows { Arc::clone(&rows) } else { Arc::default() },
            facts,
        };
        self.listed = [rows, others];
        sample
    }

    /// Selects among the buckets of the last sample: see [`bucket_sample::select`]. Returns `None` if there was no sample.
    pub(super) fn select(&self, selection: &Selection) -> Result<Option<[Vec<Row>; 2]>, SnapshotError> {
        let rows = || self.listed.iter().flat_map(|rows| rows.iter()).copied();
        self.last.as_ref().map(|last| bucket_sample::select(selection, &last.facts, rows())).transpose()
    }

    /// Keeps what [`Self::select`] has selected. Buckets that the last sample has missed belong to no selection until they are
    /// listed.
    pub(super) fn keep_selected(&mut self, netns: Option<u64>, rows: Option<[Vec<Row>; 2]>) -> Option<Reselection> {
        let (last, listed) = (self.last.as_ref()?, rows?);
        let mut closes =
            CloseCounter { now_ms: ms(last.walked.0), length_ms: last.length_ms, ..CloseCounter::default() };
        listed[0].iter().filter(|row| !row.bucket.fin_wait_2).for_each(|row| closes.add(row, false, true));
        self.missed.iter_mut().for_each(|seen| seen.selected = false);
        self.closes = 0;
        self.listed = listed.map(Arc::new);
        let rows = Arc::clone(&self.listed[0]);
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let closes_per_s = closes.in_last_second as f64;
        Some(Reselection { netns, rows, closes: closes.by_second, closes_per_s })
    }

    /// The event of a bucket that the last sample has not listed, if it is new.
    fn entered(&self, row: &Row, selected: bool, time: Elapsed, length_ms: i64) -> Option<PendingEvent> {
        // A bucket without a cookie cannot be recognized, so it may be an old one.
        row.bucket.cookie?;
        // A bucket that is older than the last sample is not new: that sample has missed it. The age of a bucket in FIN_WAIT_2 is unknown,
        // because its timer has no fixed length.
        let is_new = if row.bucket.fin_wait_2 {
            self.last.as_ref().is_some_and(|last| last.whole)
        } else {
            length_ms - i64::from(row.bucket.expires_ms) <= time.most + time.tolerance()
        };
        is_new.then_some(PendingEvent { kind: EventKind::Entered, certain: true, row: *row, selected })
    }

    /// Finds out what happened to the buckets that a whole sample does not list. Returns the buckets that still exist.
    fn find_ends(
        &self,
        missing: Vec<SeenBucket>,
        sample: &BucketSample,
        time: Elapsed,
        find: &mut FindOccupant<'_>,
        found: &mut Vec<PendingEvent>,
    ) -> Vec<SeenBucket> {
        // If a missing bucket has ended, it ended between some moment of the last whole walk and some moment of this walk.
        let grown = |name| self.last.as_ref().and_then(|last| sample.after.growth(&last.counters, name));
        let (segments, recycled) = (grown("InSegs"), grown("TWRecycled"));
        let mut still_there = vec![];
        // Indices in `found` of the buckets that became due since the last sample.
        let mut newly_due = vec![];
        let (mut taken_over, mut unexplained) = (0, 0);
        for mut seen in missing {
            let SeenBucket { row, slack_ms, known_ms, selected, .. } = seen;
            let left = i64::from(row.bucket.expires_ms);
            let mut end = |kind, certain| {
                let mut row = row;
                row.bucket.expires_ms = u32::try_from(left - time.least).unwrap_or(0);
                found.push(PendingEvent { kind, certain, row, selected });
            };
            if left + i64::from(slack_ms) == 0 {
                end(EventKind::Expired, true);
                continue;
            }
            let occupant = find(&row.bucket);
            if occupant == Occupant::Itself {
                let unless_restarted = u32::try_from(left + i64::from(slack_ms) - time.least).unwrap_or(0);
                // A segment of the peer can have restarted the timer, and the look-up does not report the remaining time.
                seen.known_ms = if segments == Some(0) { unless_restarted } else { u32::MAX };
                still_there.push(seen);
                continue;
            }
            // If TWRecycled did not grow, no connect() took a bucket over. So a socket that called connect() came after the bucket
            // had ended.
            let not_taken_over = row.direction == Direction::Outbound && recycled == Some(0);
            if left <= time.most + time.tolerance() {
                // SOCK_DESTROY and a RST leave no trace. In the last 2 s of a bucket they are very unlikely.
                let soon = i64::from(known_ms) <= SOON_MS + time.tolerance();
                end(EventKind::Expired, soon && (occupant != Occupant::Another || not_taken_over));
                newly_due.push(found.len() - 1);
                continue;
            }
            let outbound = row.direction == Direction::Outbound;
            let (kind, certain) = match occupant {
                Occupant::Another if !(outbound && recycled == Some(0)) => {
                    (EventKind::TakenOver, !outbound || recycled.is_some())
                }
                Occupant::Nobody if (segments, recycled) == (Some(0), Some(0)) => (EventKind::Destroyed, true),
                Occupant::Nobody if sample.facts.never_destroys_buckets() && recycled == Some(0) && outbound => {
                    (EventKind::Reset, true)
                }
                _ => (EventKind::Gone, false),
            };
            if kind == EventKind::TakenOver {
                taken_over += 1;
            } else {
                unexplained += 1;
            }
            end(kind, certain);
        }
        // What removed a bucket before its time may also have removed a bucket that became due since the last sample.
        if unexplained > 0 || recycled.is_some_and(|recycled| recycled > taken_over) {
            for index in newly_due {
                found[index].certain = false;
            }
        }
        still_there
    }

    fn closes_per_s(&mut self, closes: &CloseCounter, whole: bool) -> Option<f64> {
        self.closes += closes.since_last;
        if !whole {
            return None;
        }
        let (count, time_ms) = match self.last_whole_ms.replace(closes.now_ms) {
            Some(last) => (self.closes, closes.now_ms - last),
            None => (closes.in_last_second, 1000),
        };
        self.closes = 0;
        #[expect(clippy::cast_precision_loss, reason = "both are far below 2^52")]
        (time_ms > 0).then(|| count as f64 * 1000.0 / time_ms as f64)
    }
}

/// The event of a bucket that this sample lists and an earlier one has listed.
fn change(was: &SeenBucket, row: &Row, selected: bool, time: Elapsed, length_ms: i64) -> Option<PendingEvent> {
    let (before, now) = (&was.row.bucket, &row.bucket);
    let left = i64::from(now.expires_ms);
    let kind = if before.fin_wait_2 && !now.fin_wait_2 {
        EventKind::BecameTimeWait
    } else if !now.fin_wait_2 && (left > i64::from(was.listed_ms) + ROUNDING_MS || was.restarted(left, time, length_ms))
    {
        EventKind::Restarted
    } else {
        // The kernel never starts the timer of FIN_WAIT_2 again (`tcp_timewait_state_process` in net/ipv4/tcp_minisocks.c).
        return None;
    };
    Some(PendingEvent { kind, certain: true, row: *row, selected: selected || was.selected })
}

/// The number of rows to search in each list before an index is built.
const NEAR: usize = 16;

/// Pairs the rows of two lists by cookie. A row without a partner is passed to `each` alone. So are some rows whose partner is far away.
/// The function is fast if most rows are in the same order.
///
/// Since Linux 6.15 the buckets of one destination are neighbours in the kernel's table (`inet_ehashfn` adds the local port to the
/// hash of the rest), so thousands of rows may appear or disappear in one place. Sockets that a second dump has added are at the end of a
/// list.
pub(super) fn pair<'a>(was: &'a [Row], now: &'a [Row], mut each: impl FnMut(Option<&'a Row>, Option<&'a Row>)) {
    let mut paired = vec![false; was.len()];
    // The place in `was` where the partner of the next row is expected.
    let mut expected = 0;
    let mut index: Option<HashMap<Cookie, usize, RandomState>> = None;
    for (row, at) in now.iter().zip(1..) {
        let Some(cookie) = row.bucket.cookie else {
            each(None, Some(row));
            continue;
        };
        let is = |row: &Row, cookie| row.bucket.cookie == Some(cookie);
        let near =
            was[expected..].iter().take(NEAR).position(|old| is(old, cookie)).map(|distance| expected + distance);
        let place = near.or_else(|| {
            let next = was.get(expected).and_then(|old| old.bucket.cookie);
            if next.is_some_and(|next| now[at..].iter().take(NEAR).any(|row| is(row, next))) {
                // Only a few new rows come before the expected one. If `row` has a partner elsewhere in `was`, both are passed
                // alone, and the caller pairs them.
                return None;
            }
            let unpaired = || {
                let all = was.iter().zip(&paired).enumerate();
                all.filter_map(|(at, (old, paired))| (!paired).then_some((old.bucket.cookie?, at))).collect()
            };
            index.get_or_insert_with(unpaired).get(&cookie).copied()
        });
        match place.filter(|&place| !paired[place]) {
            Some(place) => {
                paired[place] = true;
                each(Some(&was[place]), Some(row));
                expected = place + 1;
            }
            None => each(None, Some(row)),
        }
    }
    for (old, _) in was.iter().zip(paired).filter(|(_, paired)| !paired) {
        each(Some(old), None);
    }
}

/// Counts the buckets that entered TIME_WAIT, by the second in which they entered.
#[derive(Debug, Default)]
struct CloseCounter {
    /// When the walk of the sample began, as `BucketSample::walked`.
    now_ms: i64,
    length_ms: i64,
    by_second: BTreeMap<i64, u64>,
    since_last: u64,
    in_last_second: u64,
}

impl CloseCounter {
    /// The time in ms since the bucket entered TIME_WAIT, or since its timer started again.
    fn age(&self, row: &Row) -> i64 {
        self.length_ms - i64::from(row.bucket.expires_ms)
    }

    /// Adds a bucket in TIME_WAIT. `is_close`: the bucket entered since the last sample. `all`: older buckets count by second, too.
    fn add(&mut self, row: &Row, is_close: bool, all: bool) {
        let age = self.age(row);
        self.since_last += u64::from(is_close);
        self.in_last_second += u64::from(age <= 1000);
        // The age of a bucket that is due is unknown.
        if is_close || (all && row.bucket.expires_ms > 0) {
            *self.by_second.entry((self.now_ms - age).div_euclid(1000)).or_default() += 1;
        }
    }
}

fn ms(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}
