//! Tests of the live screen. They draw the screen into memory.

mod keys;
mod makers;
mod texts;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::counted::SampleCounts;
use super::draw::{self, FrameContent};
use super::latest::LatestSample;
use super::state::{Action, RowFacts, ScreenState};
use super::tables::{Listing, RowIdentity};
use super::widths::Widths;
use crate::model::facts::Facts;
use crate::model::facts::tests::facts;
use crate::model::kernel_counts::Counters;
use crate::model::row::Row;
use crate::model::row::tests::row;
use crate::model::socket::Cookie;
use crate::snapshot::owner_feed::{SharedOwners, Tracing};
use crate::view::style::TextStyle;
use crate::watch::{CloseHistory, Event, EventKind, NetnsSample, Sample};

const PLAIN: TextStyle = TextStyle { color: false, width: None, unicode: true };

/// A bucket on port 80 with this cookie and remaining time.
fn client(cookie: u16, expires_ms: u32) -> Row {
    let mut row = row("192.0.2.1", 80, "198.51.100.77", 30_000 + cookie);
    row.bucket.cookie = Cookie::new(cookie.into());
    row.bucket.expires_ms = expires_ms;
    row
}

/// A sample of one namespace, `elapsed` seconds after the first sample.
fn sample(rows: Vec<Row>, elapsed: u64, events: Vec<Event>, facts: &Arc<Facts>) -> Sample {
    let second = i64::try_from(elapsed).expect("few");
    let netns = NetnsSample {
        facts: Arc::clone(facts),
        time_wait: rows.len(),
        fin_wait_2: 0,
        all_buckets: rows.len(),
        max_tw_buckets: Some(262_144),
        counters: Counters::default(),
        closes: BTreeMap::from([(second - 1, rows.len() as u64)]),
        closes_per_s: Some(12.5),
        events,
        whole: true,
        complete: true,
        rows: Arc::new(rows),
    };
    Sample {
        at: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + elapsed),
        elapsed: Duration::from_secs(elapsed),
        interval: Duration::from_secs(1),
        took: Duration::ZERO,
        processor_time: Duration::ZERO,
        namespaces: vec![netns],
        closes_begin: elapsed == 0,
        complete: true,
        warnings: vec![],
    }
}

fn latest(sample: Sample) -> LatestSample {
    let counted = SampleCounts::of(sample.namespaces.iter().map(|netns| netns.rows.as_slice()));
    LatestSample {
        sample,
        counted,
        capacity: vec![],
        owners: SharedOwners::default(),
        tracing: Some(Tracing::Off),
        failure: None,
    }
}

struct Screen {
    state: ScreenState,
    latest: LatestSample,
    history: CloseHistory,
    widths: Widths,
    listing: Listing,
    size: (u16, u16),
    style: TextStyle,
}

impl Screen {
    fn of(rows: Vec<Row>, size: (u16, u16)) -> Self {
        let sample = sample(rows, 0, vec![], &Arc::new(facts()));
        let mut history = CloseHistory::default();
        history.add(&sample);
        let latest = latest(sample);
        let state = ScreenState::new(Duration::from_secs(1));
        let listing = Listing::new(state.table, 0, false, &latest, &history);
        Self { state, latest, history, widths: Widths::default(), listing, size, style: PLAIN }
    }

    fn with_rows<T>(&mut self, change: impl FnOnce(&mut ScreenState, RowFacts) -> T) -> T {
        let Self { state, listing, latest, history, size, .. } = self;
        let area = ratatui::layout::Rect::new(0, 0, size.0, size.1);
        let visible = draw::visible_rows(area, state, latest);
        let overlay_end = draw::overlay_end(area, state, latest);
        let identity = |row: usize| listing.identity(row, latest, history);
        change(state, RowFacts { count: listing.len(), visible, identity: &identity, overlay_end })
    }

    fn list(&mut self) {
        self.listing = Listing::new(
            self.state.table,
            self.state.position().order,
            self.state.position().reverse,
            &self.latest,
            &self.history,
        );
    }

    fn press(&mut self, code: KeyCode) -> Option<Action> {
        self.press_with(code, KeyModifiers::NONE)
    }

    fn press_with(&mut self, code: KeyCode, modifiers: KeyModifiers) -> Option<Action> {
        let action = self.with_rows(|state, rows| state.press(KeyEvent::new(code, modifiers), rows));
        self.list();
        action
    }

    fn types(&mut self, text: &str) -> Option<Action> {
        text.chars().filter_map(|letter| self.press(KeyCode::Char(letter))).last()
    }

    /// Replaces the sample on the screen by the next one.
    fn sample(&mut self, rows: Vec<Row>, elapsed: u64, events: Vec<Event>) {
        self.latest = latest(sample(rows, elapsed, events, &self.latest.namespaces()[0].facts.clone()));
        self.history.add(&self.latest.sample);
        self.list();
        let selected = self.state.position().selected.clone();
        let place = selected.and_then(|(_, identity)| self.listing.find(&identity, &self.latest, &self.history));
        self.with_rows(|state, rows| state.follow(rows, place));
    }

    fn drawn_at(&mut self, age: Duration) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(self.size.0, self.size.1)).expect("in memory");
        let Self { state, latest, history, listing, widths, style, .. } = self;
        let interval = Duration::from_secs(1);
        let shown = FrameContent { latest, history, listing, age, interval, stretched: false, style: *style };
        terminal.draw(|frame| draw::draw(frame, state, &shown, widths)).expect("in memory");
        let buffer = terminal.backend().buffer();
        let line = |y| (0..self.size.0).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
        (0..self.size.1).map(line).collect()
    }

    fn drawn(&mut self) -> Vec<String> {
        self.drawn_at(Duration::ZERO)
    }

    fn shows(&mut self, text: &str) -> bool {
        self.drawn().iter().any(|line| line.contains(text))
    }

    /// The cookie of the selected socket.
    fn selected(&self) -> Option<u64> {
        match &self.state.position().selected {
            Some((_, RowIdentity::Socket(_, _, cookie))) => cookie.map(Cookie::number),
            _ => None,
        }
    }
}

fn clients(count: u16) -> Vec<Row> {
    (1..=count).map(|cookie| client(cookie, u32::from(cookie) * 100)).collect()
}

#[test]
fn each_size_shows_its_parts_and_tiny_screens_can_be_drawn() {
    for (size, chart, rows) in [((80, 24), true, 10), ((200, 60), true, 38), ((40, 12), false, 6)] {
        for unicode in [true, false] {
            let mut screen = Screen::of(clients(500), size);
            screen.style.unicode = unicode;
            let lines = screen.drawn();
            let page = lines.join("\n");
            assert!(lines[0].starts_with("twtool  netns web"), "{page}");
            assert!(lines[1].starts_with("500 TIME_WAIT, 0 FIN_WAIT_2"), "{page}");
            assert_eq!(page.contains("-60 s"), chart, "{page}");
            assert_eq!(lines.iter().filter(|line| line.contains("198.51.100.")).count(), rows, "{page}");
            assert!(page.contains("1 of 500"), "{page}");
            assert!(unicode || page.is_ascii(), "{page}");
        }
    }
    for width in 1..30 {
        for height in 1..20 {
            Screen::of(clients(3), (width, height)).drawn();
        }
    }
}

#[test]
fn sockets_count_down_between_samples() {
    let mut screen = Screen::of(vec![client(1, 41_399)], (80, 24));
    assert!(screen.drawn_at(Duration::ZERO).iter().any(|line| line.ends_with(" 41.3s")));
    assert!(screen.drawn_at(Duration::from_millis(1400)).iter().any(|line| line.ends_with(" 39.9s")));
    assert!(screen.drawn_at(Duration::from_secs(99)).iter().any(|line| line.ends_with(" 0.0s")));
}

#[test]
fn the_selected_row_stays_selected_on_the_same_line_of_the_screen() {
    let mut screen = Screen::of(clients(100), (80, 24));
    for _ in 0..3 {
        screen.press(KeyCode::Down);
    }
    assert_eq!((screen.selected(), screen.state.position().top), (Some(3), 0));
    // 40 new buckets expire earlier. The selected row moves down in the list, and the screen scrolls by 40 rows, too.
    let earlier = (200..240).map(|cookie| client(cookie, 1));
    let all: Vec<Row> = clients(100).into_iter().chain(earlier).collect();
    screen.sample(all, 1, vec![]);
    assert_eq!((screen.selected(), screen.state.position().top), (Some(3), 40));
    screen.sample(clients(100), 2, vec![]);
    assert_eq!((screen.selected(), screen.state.position().top), (Some(3), 0));
    let others: Vec<Row> = clients(100).into_iter().filter(|row| row.bucket.cookie != Cookie::new(3)).collect();
    screen.sample(others, 3, vec![]);
    assert_eq!(screen.selected(), None);
    assert!(screen.shows("the selected row is gone"));
}

#[test]
fn each_row_has_the_same_place_as_in_a_full_sort() {
    // Many rows have equal remaining times, and there are more rows than one sorted window has (256).
    let rows: Vec<Row> = (1..=2000).map(|cookie| client(cookie, u32::from(cookie) * 7919 % 97 * 10)).collect();
    let screen = Screen::of(rows.clone(), (80, 24));
    let mut sorted = rows;
    sorted.sort_by(|a, b| crate::model::row::Order::Expires.compare(a, b));
    for at in [0, 1999, 1000, 3, 500, 1001, 255, 256, 257, 1744, 1743] {
        let identity = screen.listing.identity(at, &screen.latest, &screen.history).expect("a row");
        let RowIdentity::Socket(_, _, cookie) = &identity else { panic!("{identity:?}") };
        assert_eq!(*cookie, sorted[at].bucket.cookie, "{at}");
        assert_eq!(screen.listing.find(&identity, &screen.latest, &screen.history), Some(at));
    }
    assert!(screen.listing.identity(2000, &screen.latest, &screen.history).is_none());
}

#[test]
fn events_show_the_newest_first() {
    let mut screen = Screen::of(clients(3), (120, 24));
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_001);
    let facts = Arc::clone(&screen.latest.namespaces()[0].facts);
    let event = |kind, certain, cookie| Event { at, kind, certain, row: client(cookie, 0), facts: Arc::clone(&facts) };
    screen.press(KeyCode::Char('6'));
    assert!(screen.shows("no events since the first read"));
    screen.sample(clients(1), 1, vec![event(EventKind::Expired, true, 2), event(EventKind::Gone, false, 3)]);
    let lines = screen.drawn();
    let at = lines.iter().position(|line| line.starts_with("TIME ")).expect("titles");
    assert!(lines[at + 1].starts_with("22:13:21Z  gone") && lines[at + 1].contains(" no "), "{}", lines.join("\n"));
    assert!(lines[at + 2].starts_with("22:13:21Z  expired") && lines[at + 2].contains(" yes "));
}

#[test]
fn text_from_outside_is_escaped_and_columns_stay_aligned() {
    let mut screen = Screen::of(clients(1), (80, 24));
    let mut named = facts();
    named.netns_name = Some("7:e\u{301}\u{1b}[31m漢字\u{202e}".into());
    screen.latest = latest(sample(clients(1), 0, vec![], &Arc::new(named)));
    screen.press(KeyCode::Char('5'));
    let mut terminal = Terminal::new(TestBackend::new(80, 24)).expect("in memory");
    let Screen { state, latest, history, listing, widths, style, .. } = &mut screen;
    let (age, interval) = (Duration::ZERO, Duration::from_secs(1));
    let shown = FrameContent { latest, history, listing, age, interval, stretched: false, style: *style };
    terminal.draw(|frame| draw::draw(frame, state, &shown, widths)).expect("in memory");
    let buffer = terminal.backend().buffer();
    let line = |y| (0..80).map(|x| buffer[(x, y)].symbol()).collect::<String>();
    let titles = (0..24).find(|y| line(*y).starts_with("NETNS ")).expect("titles");
    assert!(line(titles + 1).starts_with("7:e\u{301}\\u{1b}[31m漢"), "{}", line(titles + 1));
    // COUNT is aligned to the right: its last letter is above the number.
    let end_of_count = line(titles).find("COUNT").map(|at| at + 4).expect("COUNT");
    assert_eq!(buffer[(u16::try_from(end_of_count).expect("few"), titles + 1)].symbol(), "1");
}
