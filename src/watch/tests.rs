//! Tests of the tracker and the history with samples that are plain values, without a kernel.

use std::time::Duration;

use super::events::EventKind;
use super::history::{CloseHistory, MAX_EVENTS, MAX_SECONDS};
use super::sample::{NetnsSample, Sample};
use super::tracker::{Tracker, pair};
use crate::model::facts::tests::facts;
use crate::model::kernel_counts::Counters;
use crate::model::row::tests::row;
use crate::model::row::{Direction, Row};
use crate::model::socket::Cookie;
use crate::snapshot::Selection;
use crate::snapshot::bucket_sample::{BucketSample, Occupant};

use EventKind::{BecameTimeWait, Destroyed, Entered, Expired, Gone, Reset, Restarted, TakenOver};

fn bucket(cookie: u64, expires_ms: u32) -> Row {
    let mut row = row("127.0.0.1", 80, "127.0.0.1", 40_000);
    row.bucket.cookie = Cookie::new(cookie);
    row.bucket.expires_ms = expires_ms;
    row
}

fn fin_wait_2(cookie: u64, expires_ms: u32) -> Row {
    let mut row = bucket(cookie, expires_ms);
    row.bucket.fin_wait_2 = true;
    row
}

fn outbound(cookie: u64, expires_ms: u32) -> Row {
    Row { direction: Direction::Outbound, ..bucket(cookie, expires_ms) }
}

/// A whole sample whose walk began `at_ms` milliseconds after the watch began, and took 10 ms.
fn walk(at_ms: u64, rows: Vec<Row>) -> BucketSample {
    BucketSample {
        facts: facts(),
        rows,
        others: vec![],
        walked: (Duration::from_millis(at_ms), Duration::from_millis(at_ms + 10)),
        whole: true,
        before: counters(0, 0),
        after: counters(0, 0),
        max_tw_buckets: None,
        tw_timeout_s: None,
        complete: true,
    }
}

fn counters(segments: u64, recycled: u64) -> Counters {
    Counters([("InSegs".to_owned(), segments), ("TWRecycled".to_owned(), recycled)].into())
}

/// Follows these samples, and returns the last one. `occupant` is what now has the addresses and ports of each missing bucket.
fn last_sample(walks: impl IntoIterator<Item = BucketSample>, occupant: Occupant) -> NetnsSample {
    let mut tracker = Tracker::default();
    let mut sample = None;
    for (walk, first) in walks.into_iter().zip(std::iter::once(true).chain(std::iter::repeat(false))) {
        sample = Some(tracker.follow(walk, first, true, &mut |_| occupant));
    }
    sample.expect("a sample")
}

fn events(walks: impl IntoIterator<Item = BucketSample>, occupant: Occupant) -> Vec<(u64, EventKind, bool)> {
    let found = last_sample(walks, occupant).events;
    let cookie = |row: &Row| row.bucket.cookie.map_or(0, Cookie::number);
    found.iter().map(|event| (cookie(&event.row), event.kind, event.certain)).collect()
}

/// How the bucket of this row ended, if it is missing after 1 s in which `InSegs` and `TWRecycled` grew by the numbers `grown`.
fn end_of(row: Row, grown: (u64, u64), occupant: Occupant) -> (EventKind, bool) {
    let second = BucketSample { after: counters(grown.0, grown.1), ..walk(1000, vec![]) };
    let [(_, kind, certain)] = events([walk(0, vec![row]), second], occupant)[..] else { panic!("one event") };
    (kind, certain)
}

#[test]
fn the_first_sample_has_no_events_and_buckets_that_stay_have_none() {
    assert_eq!(events([walk(0, vec![bucket(1, 60_000)])], Occupant::Nobody), []);
    let stays = [
        walk(0, vec![bucket(1, 50_000), fin_wait_2(2, 9000)]),
        walk(1000, vec![bucket(1, 49_004), fin_wait_2(2, 7995)]),
    ];
    assert_eq!(events(stays, Occupant::Nobody), []);
    let due = [walk(0, vec![bucket(1, 0)]), walk(1000, vec![bucket(1, 0)])];
    assert_eq!(events(due, Occupant::Nobody), []);
}

#[test]
fn a_new_cookie_has_entered_if_its_timer_started_since_the_last_sample() {
    let new = |row| events([walk(0, vec![]), walk(1000, vec![row])], Occupant::Nobody);
    assert_eq!(new(bucket(1, 59_500)), [(1, Entered, true)]);
    assert_eq!(new(fin_wait_2(1, 2000)), [(1, Entered, true)]);
    assert_eq!(new(bucket(1, 30_000)), [], "an old bucket that the last sample has missed");
    let not_whole = BucketSample { whole: false, ..walk(0, vec![]) };
    assert_eq!(events([not_whole, walk(1000, vec![fin_wait_2(1, 2000)])], Occupant::Nobody), []);
}

#[test]
fn a_change_of_a_bucket_is_recognized_by_its_cookie() {
    let changed = |was, now| events([walk(0, vec![was]), walk(1000, vec![now])], Occupant::Nobody);
    assert_eq!(changed(fin_wait_2(1, 57_000), bucket(1, 59_900)), [(1, BecameTimeWait, true)]);
    assert_eq!(changed(bucket(1, 40_000), bucket(1, 59_900)), [(1, Restarted, true)]);
    assert_eq!(changed(bucket(1, 0), bucket(1, 59_900)), [(1, Restarted, true)], "it was due");
    assert_eq!(changed(bucket(1, 40_000), bucket(1, 39_030)), [], "the sample took 10 ms, and the kernel rounds");
    assert_eq!(
        changed(bucket(1, 59_000), bucket(1, 59_500)),
        [(1, Restarted, true)],
        "the old timer would have 58 s left"
    );
    let later = |was, now| events([walk(0, vec![was]), walk(19_000, vec![now])], Occupant::Nobody);
    assert_eq!(later(bucket(1, 59_990), bucket(1, 41_033)), [], "the kernel has lost ticks");
    assert_eq!(later(bucket(1, 45_000), bucket(1, 26_043)), [], "the kernel has lost ticks");
    assert_eq!(later(fin_wait_2(1, 45_000), fin_wait_2(1, 26_043)), [], "the kernel has lost ticks");
    assert_eq!(later(bucket(1, 59_000), bucket(1, 42_000)), [(1, Restarted, true)], "it restarted after 1 s");
}

#[test]
fn a_bucket_that_is_missing_when_due_has_expired() {
    assert_eq!(end_of(bucket(1, 0), (99, 0), Occupant::Another), (Expired, true), "it was due in the last sample");
    assert_eq!(end_of(bucket(1, 900), (99, 0), Occupant::Nobody), (Expired, true));
    assert_eq!(
        end_of(bucket(1, 900), (99, 0), Occupant::Another),
        (Expired, false),
        "another socket may have taken it over"
    );
    assert_eq!(
        end_of(outbound(1, 900), (99, 0), Occupant::Another),
        (Expired, true),
        "a later connect() uses the same ends"
    );
    assert_eq!(end_of(bucket(1, 995), (0, 0), Occupant::Nobody), (Expired, true), "due during the sample");
    assert_eq!(end_of(fin_wait_2(1, 900), (0, 0), Occupant::Nobody), (Expired, true));
}

#[test]
fn expiry_is_uncertain_if_much_time_was_left_in_the_last_sample() {
    let after = |left| {
        let walks = [walk(0, vec![bucket(1, left)]), walk(21_000, vec![])];
        events(walks, Occupant::Nobody)
    };
    assert_eq!(after(2000), [(1, Expired, true)]);
    assert_eq!(after(18_000), [(1, Expired, false)], "twtool kill could have removed it");
}

#[test]
fn expiry_is_uncertain_if_something_else_removed_buckets_between_the_two_samples() {
    let first = || walk(0, vec![bucket(1, 0), bucket(2, 900), bucket(3, 50_000)]);
    let killed = [first(), walk(1000, vec![])];
    assert_eq!(events(killed, Occupant::Nobody), [(1, Expired, true), (2, Expired, false), (3, Destroyed, true)]);
    let recycled = BucketSample { after: counters(9, 1), ..walk(1000, vec![bucket(3, 49_000)]) };
    assert_eq!(events([first(), recycled], Occupant::Nobody), [(1, Expired, true), (2, Expired, false)]);
}

#[test]
fn a_cause_is_named_only_if_no_other_cause_is_possible() {
    let early = |grown, occupant| end_of(bucket(1, 50_000), grown, occupant);
    assert_eq!(early((0, 0), Occupant::Nobody), (Destroyed, true));
    assert_eq!(early((1, 0), Occupant::Nobody), (Gone, false), "the segment may be a RST");
    assert_eq!(early((0, 1), Occupant::Nobody), (Gone, false), "a connect() may have taken it over");
    assert_eq!(early((0, 0), Occupant::Unknown), (Gone, false));
    assert_eq!(early((9, 0), Occupant::Another), (TakenOver, true), "by a SYN");
    let connect = |recycled| end_of(outbound(1, 50_000), (9, recycled), Occupant::Another);
    assert_eq!(connect(1), (TakenOver, true));
    assert_eq!(connect(0), (Gone, false), "the bucket was gone before the new connection");

    let on_kernel = |version: &str, row| {
        let mut second = BucketSample { after: counters(9, 0), ..walk(1000, vec![]) };
        second.facts.kernel = version.into();
        events([walk(0, vec![row]), second], Occupant::Nobody)
    };
    assert_eq!(on_kernel("5.10.0", outbound(1, 50_000)), [(1, Reset, true)]);
    assert_eq!(
        on_kernel("5.10.0", bucket(1, 50_000)),
        [(1, Gone, false)],
        "a SYN may have replaced it by a connection that has ended since"
    );
    for version in ["5.11.0", "6.0.0"] {
        assert_eq!(on_kernel(version, outbound(1, 50_000)), [(1, Gone, false)], "SOCK_DESTROY may remove buckets");
    }
}

#[test]
fn counters_since_the_last_whole_sample_decide_whether_a_cause_is_possible() {
    let after_gap = |grown: (u64, u64)| {
        let not_whole = BucketSample {
            whole: false,
            before: counters(grown.0, grown.1),
            after: counters(grown.0, grown.1),
            ..walk(1000, vec![])
        };
        // The counters do not grow between the second sample and the third one.
        let third = BucketSample {
            before: counters(grown.0, grown.1),
            after: counters(grown.0, grown.1),
            ..walk(2000, vec![])
        };
        events([walk(0, vec![bucket(1, 50_000)]), not_whole, third], Occupant::Nobody)
    };
    assert_eq!(after_gap((0, 0)), [(1, Destroyed, true)]);
    assert_eq!(after_gap((1, 0)), [(1, Gone, false)], "a RST may have ended it before the sample that missed it");
    assert_eq!(after_gap((0, 1)), [(1, Gone, false)], "a connect() may have taken it over before that sample");
}

#[test]
fn counters_that_are_unknown_prove_nothing() {
    let second = BucketSample { after: Counters::default(), ..walk(1000, vec![]) };
    assert_eq!(events([walk(0, vec![bucket(1, 50_000)]), second], Occupant::Nobody), [(1, Gone, false)]);
    let second = BucketSample { after: Counters::default(), ..walk(1000, vec![]) };
    let taken = events([walk(0, vec![outbound(1, 50_000)]), second], Occupant::Another);
    assert_eq!(taken, [(1, TakenOver, false)], "the new connection may have come after the end of the bucket");
}

#[test]
fn a_sample_that_is_not_whole_ends_no_bucket_and_the_next_one_reports_what_happened() {
    let first = || walk(0, vec![bucket(1, 50_000), bucket(2, 1500), bucket(3, 50_000)]);
    let not_whole = || BucketSample { whole: false, ..walk(1000, vec![bucket(3, 49_000)]) };
    assert_eq!(events([first(), not_whole()], Occupant::Nobody), []);
    let next = walk(2000, vec![bucket(1, 48_000), bucket(3, 48_000)]);
    assert_eq!(events([first(), not_whole(), next], Occupant::Nobody), [(2, Expired, true)]);
    let next = walk(2000, vec![bucket(1, 59_000), bucket(3, 48_000)]);
    assert_eq!(events([first(), not_whole(), next], Occupant::Nobody), [(1, Restarted, true), (2, Expired, true)]);
    let long_gap = || BucketSample { whole: false, ..walk(55_000, vec![]) };
    let gone = [walk(0, vec![bucket(1, 50_000)]), long_gap(), walk(56_000, vec![])];
    assert_eq!(events(gone, Occupant::Nobody), [(1, Expired, false)], "SOCK_DESTROY may have removed it before");
    let next = walk(2000, vec![bucket(1, 58_500), bucket(3, 48_000)]);
    let early = events([first(), not_whole(), next], Occupant::Nobody);
    assert_eq!(early, [(1, Restarted, true), (2, Expired, true)], "it restarted before the sample that missed it");
}

#[test]
fn a_bucket_that_a_sample_has_missed_is_not_gone() {
    let walks = [walk(0, vec![bucket(1, 50_000)]), walk(1000, vec![])];
    assert_eq!(events(walks, Occupant::Itself), []);
    let walks = [walk(0, vec![bucket(1, 50_000)]), walk(1000, vec![]), walk(2000, vec![bucket(1, 48_000)])];
    assert_eq!(events(walks, Occupant::Itself), []);
    // The look-up of the second sample finds the bucket 1 s before its end, unless a segment has restarted the timer.
    for (segments, certain) in [(0, true), (1, false)] {
        let second = BucketSample { after: counters(segments, 0), ..walk(5000, vec![]) };
        let mut tracker = Tracker::default();
        for (walk, occupant) in [(walk(0, vec![bucket(1, 6000)]), Occupant::Nobody), (second, Occupant::Itself)] {
            tracker.follow(walk, true, true, &mut |_| occupant);
        }
        let events = tracker.follow(walk(7000, vec![]), false, true, &mut |_| Occupant::Nobody).events;
        assert_eq!(events.iter().map(|event| (event.kind, event.certain)).collect::<Vec<_>>(), [(Expired, certain)]);
    }
}

#[test]
fn only_events_of_selected_buckets_are_reported_and_a_new_selection_causes_no_event() {
    let unselected = |rows| BucketSample { rows: vec![], others: rows, ..walk(0, vec![]) };
    assert_eq!(events([unselected(vec![bucket(1, 50_000)]), walk(1000, vec![])], Occupant::Nobody), []);
    assert_eq!(
        events([unselected(vec![bucket(1, 50_000)]), walk(1000, vec![bucket(1, 49_000)])], Occupant::Nobody),
        []
    );
    let other = BucketSample { others: vec![bucket(1, 59_900)], ..walk(1000, vec![]) };
    assert_eq!(events([walk(0, vec![fin_wait_2(1, 50_000)]), other], Occupant::Nobody), [(1, BecameTimeWait, true)]);
}

#[test]
fn buckets_without_cookies_are_counted_and_have_no_events() {
    let row = |expires_ms| {
        let mut row = bucket(1, expires_ms);
        row.bucket.cookie = None;
        row
    };
    let walks = [walk(0, vec![row(50_000)]), walk(1000, vec![row(49_000), row(59_500)])];
    let sample = last_sample(walks, Occupant::Nobody);
    assert_eq!((sample.time_wait, sample.events.len()), (2, 0));
    assert_eq!(sample.closes.values().sum::<u64>(), 1);
}

#[test]
fn closes_are_counted_by_the_second_in_which_the_timer_started() {
    let first = walk(0, vec![bucket(1, 59_999), bucket(2, 59_000), bucket(3, 500), bucket(4, 0)]);
    let sample = last_sample([first], Occupant::Nobody);
    assert_eq!(sample.closes, [(-60, 1), (-1, 2)].into());
    assert_eq!(sample.closes_per_s, Some(2.0), "of the last second");

    let walks = || {
        [walk(0, vec![fin_wait_2(1, 9000)]), walk(2500, vec![bucket(1, 59_000), bucket(2, 57_600), bucket(3, 59_990)])]
    };
    let sample = last_sample(walks(), Occupant::Nobody);
    assert_eq!(sample.closes, [(0, 1), (1, 1), (2, 1)].into());
    assert_eq!(sample.closes_per_s, Some(1.2));
    let not_whole = walks().map(|walk| BucketSample { whole: false, ..walk });
    assert_eq!(last_sample(not_whole, Occupant::Nobody).closes_per_s, None);
}

fn sample(netns: NetnsSample, elapsed_ms: u64, closes_begin: bool) -> Sample {
    Sample {
        at: std::time::SystemTime::UNIX_EPOCH,
        elapsed: Duration::from_millis(elapsed_ms),
        interval: Duration::from_secs(1),
        took: Duration::ZERO,
        processor_time: Duration::ZERO,
        namespaces: vec![netns],
        closes_begin,
        complete: true,
        warnings: vec![],
    }
}

fn history(walks: Vec<BucketSample>) -> CloseHistory {
    let (mut tracker, mut history) = (Tracker::default(), CloseHistory::default());
    for (number, walk) in walks.into_iter().enumerate() {
        let elapsed_ms = u64::try_from(walk.walked.0.as_millis()).expect("short");
        let netns = tracker.follow(walk, number == 0, false, &mut |_| Occupant::Nobody);
        history.add(&sample(netns, elapsed_ms, number == 0));
    }
    history
}

#[test]
fn a_history_begins_with_one_minute_and_grows_to_ten_minutes() {
    let first = history(vec![walk(0, vec![bucket(1, 59_500), bucket(2, 59_400), bucket(3, 30_500)])]);
    let closes: Vec<_> = first.closes().collect();
    assert_eq!((closes.len(), closes[59], closes[30], closes[0]), (60, Some(2), Some(1), Some(0)));
    assert_eq!((first.mean(), first.peak(), first.now()), (Some(0.05), Some(2), Some(2.0)));

    let walks = (0..700).map(|second| walk(second * 1000 + 500, vec![bucket(second + 1, 59_700)])).collect();
    let long = history(walks);
    let closes: Vec<_> = long.closes().collect();
    assert_eq!(closes.len(), MAX_SECONDS);
    assert!(closes.iter().all(|closes| *closes == Some(1)), "{closes:?}");
    assert_eq!(long.events().len(), MAX_EVENTS);
}

#[test]
fn the_current_second_is_shown_when_it_is_complete() {
    let walks = |last| vec![walk(0, vec![]), walk(1300, vec![bucket(1, 59_900)]), last];
    let shown = |last| history(walks(last)).closes().skip(60).collect::<Vec<_>>();
    assert_eq!(shown(walk(1800, vec![bucket(1, 59_400), bucket(2, 59_900)])), [Some(0)]);
    assert_eq!(shown(walk(2100, vec![bucket(1, 59_100), bucket(2, 59_500)])), [Some(0), Some(2)]);
}

#[test]
fn seconds_that_no_whole_sample_covers_are_unknown() {
    let late = history(vec![walk(0, vec![]), walk(100_000, vec![bucket(1, 59_500)])]);
    let closes: Vec<_> = late.closes().collect();
    assert_eq!((closes[59], closes[60], closes[99], closes[100], closes[159]), (Some(0), None, None, Some(0), Some(1)));
    let not_whole = |at_ms| BucketSample { whole: false, ..walk(at_ms, vec![bucket(1, 59_500)]) };
    let gap = history(vec![walk(0, vec![]), not_whole(1000), walk(2000, vec![bucket(1, 58_500)])]);
    assert_eq!(gap.closes().skip(60).collect::<Vec<_>>(), [Some(1), Some(0)], "the next sample has shown that second");
    let unknown = history(vec![walk(0, vec![]), not_whole(1000)]);
    assert_eq!(unknown.closes().skip(60).collect::<Vec<_>>(), [None]);
}

#[test]
fn a_new_selection_restarts_the_count_of_closes() {
    let (mut tracker, mut history) = (Tracker::default(), CloseHistory::default());
    let mut add = |walk: BucketSample, begins| {
        let elapsed_ms = u64::try_from(walk.walked.0.as_millis()).expect("short");
        let netns = tracker.follow(walk, begins, false, &mut |_| Occupant::Nobody);
        history.add(&sample(netns, elapsed_ms, begins));
        history.closes().map(|closes| closes.unwrap_or(99)).sum::<u64>()
    };
    let (one, other) = (bucket(1, 50_000), bucket(2, 50_000));
    assert_eq!(add(walk(0, vec![one, other]), true), 2);
    let rest = BucketSample { others: vec![bucket(2, 49_000)], ..walk(1000, vec![bucket(1, 49_000)]) };
    assert_eq!(add(rest, true), 1);
}

#[test]
fn the_order_of_the_rows_does_not_matter() {
    // The lists have more buckets than the comparison searches ahead (16).
    let first: Vec<Row> = (1..=300).map(|cookie| bucket(cookie, 50_000)).collect();
    let mut second: Vec<Row> =
        (1..=300).filter(|cookie| cookie % 3 != 0).map(|cookie| bucket(cookie, 49_000)).collect();
    second.extend((301..=350).map(|cookie| bucket(cookie, 59_900)));
    let expected = |events: Vec<(u64, EventKind, bool)>| {
        let of = |kind| events.iter().filter(|event| event.1 == kind).map(|event| event.0).collect::<Vec<_>>();
        let (mut entered, gone) = (of(Entered), of(Destroyed));
        entered.sort_unstable();
        assert_eq!(entered, (301..=350).collect::<Vec<_>>());
        assert_eq!(gone, (1..=100).map(|third| third * 3).collect::<Vec<_>>());
        assert_eq!(events.len(), 150);
    };
    for reversed in [false, true] {
        let mut second = second.clone();
        if reversed {
            second.reverse();
        }
        expected(events([walk(0, first.clone()), walk(1000, second)], Occupant::Nobody));
    }
}

/// The numbers of pairs, of old rows without a partner, and of new rows without a partner.
fn counts(was: &[Row], now: &[Row]) -> (usize, usize, usize) {
    let (mut paired, mut ended, mut new) = (0, 0, 0);
    pair(was, now, |was, now| match (was, now) {
        (Some(was), Some(now)) => {
            assert_eq!(was.bucket.cookie, now.bucket.cookie);
            paired += 1;
        }
        (Some(_), None) => ended += 1,
        (None, _) => new += 1,
    });
    (paired, ended, new)
}

fn rows(cookies: impl IntoIterator<Item = u64>) -> Vec<Row> {
    cookies.into_iter().map(|cookie| bucket(cookie, 50_000)).collect()
}

#[test]
fn rows_that_stay_are_paired_although_thousands_of_rows_beside_them_change() {
    // After cookie 1000, 2,000 rows are gone and 3,000 are new. After cookie 4000, 100 rows are gone and 500 are new.
    let now = rows((1..=1000).chain(6001..=9000).chain(3001..=4000).chain(9001..=9500).chain(4101..=5000));
    assert_eq!(counts(&rows(1..=5000), &now), (2900, 2100, 3500));
}

#[test]
fn most_rows_are_paired_although_some_rows_change_their_place() {
    let was = rows(1..=5000);
    let to_the_front = rows((1..=100).chain([5000]).chain(101..=4999));
    let (paired, ended, new) = counts(&was, &to_the_front);
    assert!(paired >= 4999 && ended == new, "{paired} {ended} {new}");
    // After a change of the filter, the old list has the rows of the previous filter first, then the others. The new list has the kernel's
    // order, which mixes them.
    let selected_first = rows((1..=5000).filter(|n| n % 10 != 0).chain((1..=5000).filter(|n| n % 10 == 0)));
    let (paired, ended, new) = counts(&selected_first, &was);
    assert!(paired >= 4500 && ended == new, "{paired} {ended} {new}");
    assert_eq!(counts(&was, &rows((1..=5000).rev())), (5000, 0, 0));
}

#[test]
fn another_selection_needs_no_sample_and_causes_no_event() {
    let other = |expires_ms| {
        let mut row = row("127.0.0.1", 81, "127.0.0.1", 40_000);
        (row.bucket.cookie, row.bucket.expires_ms) = (Cookie::new(2), expires_ms);
        row
    };
    let mut tracker = Tracker::default();
    let follow = |tracker: &mut Tracker, walk, first| tracker.follow(walk, first, true, &mut |_| Occupant::Nobody);
    follow(&mut tracker, walk(0, vec![bucket(1, 30_000), other(59_500)]), true);
    assert!(tracker.select(&Selection::expression("sprt")).is_err());
    let selected = tracker.select(&Selection::expression("sport = :81")).expect("a filter");
    let again = tracker.keep_selected(None, selected).expect("there was a sample");
    assert_eq!((again.rows.as_slice(), again.closes_per_s), (&[other(59_500)][..], 1.0));
    assert_eq!(again.closes.values().sum::<u64>(), 1);
    let stays = BucketSample { others: vec![bucket(1, 29_000)], ..walk(1000, vec![other(58_500)]) };
    let sample = follow(&mut tracker, stays, false);
    assert!(sample.events.is_empty(), "{:?}", sample.events);
    let sample = follow(&mut tracker, walk(2000, vec![]), false);
    let kinds: Vec<_> = sample.events.iter().map(|event| (event.row.bucket.cookie, event.kind)).collect();
    assert_eq!(kinds, [(Cookie::new(2), Destroyed)], "bucket 1 is not selected");
}
