//! Tests of the owners of sockets and of the table of makers, with and without a tracer.

use std::sync::{Arc, RwLock};
use std::time::{Duration, SystemTime};

use ratatui::crossterm::event::KeyCode;

use super::super::counted::{SampleCounts, SampleWithInterval};
use super::super::state::Action;
use super::super::tables::RowIdentity;
use super::{Screen, client, clients};
use crate::analysis::makers;
use crate::model::close::{CloseTotals, MakerFacts, Method, Role};
use crate::model::socket::Cookie;
use crate::snapshot::bucket_owners::TracedOwners;
use crate::snapshot::owner_feed::Tracing;
use crate::snapshot::recent_closes::RecentClose;
use crate::watch::{Event, EventKind};

/// A screen with 20 buckets. The owners of four of them (cookies 1 to 4) are recorded: three by BPF, and one by a tracer that samples
/// the sockets. The bucket with cookie 4 has entered TIME_WAIT since the previous sample.
fn traced() -> Screen {
    let facts =
        |pid, comm: &str| MakerFacts { pid, own_pid_namespace: true, comm: comm.into(), ..MakerFacts::default() };
    let (web, shop) = (Arc::new(facts(7, "web")), Arc::new(facts(8, "shop")));
    let close = |number: u16, facts: &Arc<MakerFacts>, method| RecentClose {
        number: number.into(),
        cookie: Cookie::new(number.into()).expect("not 0"),
        facts: Arc::clone(facts),
        method,
        role: Role::Accepted,
    };
    let mut screen = Screen::of(clients(20), (80, 24));
    let mut owners = TracedOwners::default();
    owners.add(vec![close(1, &web, Method::Bpf), close(2, &shop, Method::Sampled), close(3, &web, Method::Bpf)]);
    owners.add(vec![close(4, &web, Method::Bpf)]);
    screen.latest.owners = Arc::new(RwLock::new(owners));
    screen.latest.tracing = Some(Tracing::Own(CloseTotals { seen: 4, named: 4, lost: 0, skipped: 0 }));
    let event = Event {
        at: SystemTime::UNIX_EPOCH,
        kind: EventKind::Entered,
        certain: true,
        row: client(4, 400),
        facts: Arc::clone(&screen.latest.namespaces()[0].facts),
    };
    screen.latest.sample.namespaces[0].events.push(event);
    let sample = &screen.latest.sample;
    let rows = || sample.namespaces.iter().map(|netns| netns.rows.as_slice());
    let sample = SampleWithInterval { sample, time: Duration::from_secs(2) };
    let counted = SampleCounts::of(rows()).with_makers(&screen.latest.owners(), rows(), Some(sample));
    screen.latest.counted = counted;
    screen.list();
    screen
}

#[test]
fn a_tracer_adds_the_owners_and_makers_that_it_has_recorded() {
    let mut screen = traced();
    let lines = screen.drawn();
    assert!(lines[0].contains("  TRACING  "), "{}", lines.join("\n"));
    let line = |port: &str| lines.iter().find(|line| line.contains(port)).expect("a row").clone();
    assert!(line(":30001").ends_with("web (7)") && line(":30003").ends_with("web (7)"), "{}", lines.join("\n"));
    assert!(line(":30002").ends_with("shop (8) sampled"), "an owner that sampling has found is marked");
    assert!(line(":30005").ends_with(" -"), "{}", line(":30005"));
    screen.press(KeyCode::Char('7'));
    let lines = screen.drawn();
    let at = lines.iter().position(|line| line.starts_with("MAKER")).expect("the table");
    let cells = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(cells(&lines[at]), ["MAKER", "COUNT", "PER", "SECOND", "SHARE", "EVIDENCE"]);
    assert_eq!(cells(&lines[at + 1]), ["unknown", "16", "0.0", "████████", "-"]);
    assert_eq!(cells(&lines[at + 2]), ["web", "(7)", "3", "0.5", "█▌", "traced"]);
    assert_eq!(cells(&lines[at + 3]), ["shop", "(8)", "1", "0.0", "▌", "sampled"]);
    screen.types("s");
    assert!(screen.shows("s sort: closes"));
    assert!(matches!(
        screen.listing.identity(0, &screen.latest, &screen.history),
        Some(RowIdentity::Maker(makers::MakerGroupKey::Process(_)))
    ));
    screen.latest.tracing = Some(Tracing::Own(CloseTotals { seen: 4, named: 4, lost: 7, skipped: 0 }));
    assert!(screen.shows("7 closes are missing"));
    screen.latest.tracing = Some(Tracing::Failed("no memory".into()));
    assert!(screen.shows("the tracer has ended: no memory"));
    assert!(!screen.drawn()[0].contains("TRACING") && screen.shows("web (7)"), "the recorded owners stay");
}

#[test]
fn without_a_tracer_the_table_of_makers_shows_how_to_start_one() {
    let mut screen = Screen::of(clients(3), (80, 24));
    assert!(!screen.shows("OWNER"));
    screen.press(KeyCode::Char('7'));
    assert!(screen.shows("no tracer runs; press t to start one"));
    assert_eq!(screen.press(KeyCode::Char('t')), Some(Action::Trace));
    screen.latest.tracing = Some(Tracing::Unreadable("no permission to read the tracer".into()));
    assert!(screen.shows("no permission to read the tracer; or press t to start a tracer"));
    assert!(!screen.shows("no tracer runs"));
    assert_eq!(screen.press(KeyCode::Char('t')), Some(Action::Trace));
    screen.latest.tracing = Some(Tracing::Served("/run/twtool.sock".into()));
    assert!(screen.shows("the tracer has seen no close yet"));
    screen.latest.tracing = None;
    assert!(screen.shows("a recording has no processes"));
}
