//! Tests of what each key does.

use std::time::Duration;

use ratatui::crossterm::event::{KeyCode, KeyModifiers};

use super::super::state::{Action, FilterLine, Overlay, ScreenState, WHEEL};
use super::super::tables::{RowIdentity, ScreenTable};
use super::{Screen, clients};
use crate::analysis::groups::GroupKey;
use crate::model::port::Port;

#[test]
fn tab_and_digits_choose_the_table() {
    let mut screen = Screen::of(clients(20), (80, 24));
    let mut seen = vec![];
    for _ in ScreenTable::ALL {
        seen.push(screen.state.table);
        screen.press(KeyCode::Tab);
    }
    assert_eq!(seen, ScreenTable::ALL);
    assert_eq!(screen.state.table, ScreenTable::Sockets);
    screen.press(KeyCode::BackTab);
    assert_eq!(screen.state.table, ScreenTable::Makers);
    for (digit, table) in ('1'..).zip(ScreenTable::ALL) {
        screen.press(KeyCode::Char(digit));
        assert_eq!(screen.state.table, table);
        assert!(!screen.drawn().is_empty());
    }
    screen.press(KeyCode::Char('3'));
    assert!(screen.shows("80 (http)") && screen.shows("██████████"));
    screen.press(KeyCode::Char('4'));
    assert!(screen.shows("198.51.100.77"));
    screen.press(KeyCode::Char('5'));
    assert!(screen.shows("web"));
}

#[test]
fn keys_move_the_selection_and_the_wheel_does_not() {
    let mut screen = Screen::of(clients(100), (80, 24));
    screen.press(KeyCode::End);
    assert_eq!((screen.selected(), screen.state.position().top), (Some(100), 90));
    screen.press(KeyCode::PageUp);
    assert_eq!((screen.selected(), screen.state.position().top), (Some(90), 89));
    screen.press(KeyCode::PageDown);
    screen.press(KeyCode::Up);
    assert_eq!(screen.selected(), Some(99));
    screen.press(KeyCode::Home);
    assert_eq!((screen.selected(), screen.state.position().top), (None, 0));
    screen.with_rows(|state, rows| state.scroll(WHEEL, rows));
    screen.with_rows(|state, rows| state.scroll(WHEEL, rows));
    assert_eq!((screen.selected(), screen.state.position().top), (None, 6));
    screen.with_rows(|state, rows| state.scroll(-100, rows));
    assert_eq!(screen.state.position().top, 0);
    screen.with_rows(|state, rows| state.scroll(1000, rows));
    assert_eq!(screen.state.position().top, 90);
}

#[test]
fn s_and_r_change_only_the_order_of_the_table_on_the_screen() {
    let mut screen = Screen::of(clients(300), (80, 24));
    let first = |screen: &Screen| match screen.listing.identity(0, &screen.latest, &screen.history) {
        Some(RowIdentity::Socket(_, tuple, _)) => tuple.remote_port(),
        other => panic!("{other:?}"),
    };
    assert_eq!(first(&screen), Port(30_001));
    screen.press(KeyCode::Char('r'));
    assert_eq!(first(&screen), Port(30_300));
    screen.press(KeyCode::Char('s'));
    assert!(screen.shows("s sort: local, reversed"));
    screen.press(KeyCode::Char('3'));
    assert!(screen.shows("s sort: count "));
}

#[test]
fn a_filter_is_typed_checked_and_cleared() {
    let mut screen = Screen::of(clients(3), (80, 24));
    screen.press(KeyCode::Char('/'));
    // While a filter is typed, every letter is text, also `s`, `p`, `r`, `t` and `q`.
    assert_eq!(screen.types("sprt = :80q"), None);
    screen.press(KeyCode::Backspace);
    assert_eq!(screen.press(KeyCode::Enter), Some(Action::Filter("sprt = :80".into())));
    let line = screen.state.typed.as_mut().expect("the line stays until the filter is checked");
    line.error = Some(format!("expected a test: {}\n  sprt = :80\n  ^^^^", "sport, dport, ".repeat(6)));
    let lines = screen.drawn();
    let at = lines.iter().position(|line| line == "filter: sprt = :80").expect("the line");
    assert!(lines[at + 2].ends_with("dport,"), "the message is wrapped");
    assert_eq!(lines[at + 3..], ["  sprt = :80", "  ^^^^"]);
    for _ in 0..9 {
        screen.press(KeyCode::Left);
    }
    screen.types("o");
    assert_eq!(screen.press(KeyCode::Enter), Some(Action::Filter("soprt = :80".into())));
    screen.press(KeyCode::Backspace);
    screen.press(KeyCode::Right);
    screen.types("o");
    assert_eq!(screen.press(KeyCode::Enter), Some(Action::Filter("sport = :80".into())));
    screen.state.typed = None;
    screen.state.filter = "sport = :80".into();
    assert!(screen.shows("/ filter: sport = :80"));
    screen.press(KeyCode::Char('/'));
    assert_eq!(screen.state.typed.as_ref().map(|line| line.text.as_str()), Some("sport = :80"));
    assert_eq!(screen.press(KeyCode::Esc), None);
    assert_eq!(screen.state.typed, None);
    assert_eq!(screen.press(KeyCode::Esc), Some(Action::Filter(String::new())));
}

#[test]
fn keys_go_to_an_open_overlay_and_not_to_the_table() {
    let mut screen = Screen::of(clients(3), (80, 30));
    screen.press(KeyCode::Char('?'));
    assert!(screen.shows("propose 'twtool kill'"));
    screen.press(KeyCode::Char('3'));
    assert_eq!((screen.state.table, &screen.state.overlay), (ScreenTable::Sockets, &None));
    assert_eq!(screen.press(KeyCode::Enter), None, "nothing is selected");
    assert!(screen.shows("select a row first"));
    screen.press(KeyCode::Down);
    assert_eq!(screen.press(KeyCode::Enter), Some(Action::Details));
    assert_eq!(screen.press(KeyCode::Char('k')), Some(Action::Kill));
    let lines = vec!["  twtool kill x".to_owned()];
    let open = || Some(Overlay { command: Some("twtool kill x".into()), ..Overlay::text("remove", lines.clone()) });
    screen.state.overlay = open();
    assert!(screen.shows("  twtool kill x") && screen.shows("y runs the command"));
    for key in [KeyCode::Enter, KeyCode::Esc, KeyCode::Char('n'), KeyCode::Char('k'), KeyCode::Char('q')] {
        screen.state.overlay = open();
        assert_eq!(screen.press(key), None, "{key:?}");
        assert_eq!(screen.state.overlay, None, "{key:?}");
    }
    screen.state.overlay = open();
    assert_eq!(screen.press(KeyCode::Char('y')), Some(Action::RunKill("twtool kill x".into())));
}

#[test]
fn control_keys_work_everywhere_and_q_quits() {
    let mut screen = Screen::of(clients(3), (80, 24));
    for open in [
        |_: &mut ScreenState| {},
        |state: &mut ScreenState| state.overlay = Some(Overlay::help()),
        |state: &mut ScreenState| {
            state.typed = Some(FilterLine::default());
        },
    ] {
        open(&mut screen.state);
        for (letter, action) in [('c', Action::Interrupt), ('z', Action::Stop), ('l', Action::Redraw)] {
            assert_eq!(screen.press_with(KeyCode::Char(letter), KeyModifiers::CONTROL), Some(action));
        }
    }
    screen.state.typed = None;
    assert_eq!(screen.press(KeyCode::Char('q')), Some(Action::Quit));
}

#[test]
fn plus_and_minus_change_the_interval_and_p_pauses() {
    let mut screen = Screen::of(clients(3), (80, 24));
    let mut interval = |key| {
        screen.press(KeyCode::Char(key));
        screen.state.interval.as_millis()
    };
    assert_eq!([interval('+'), interval('+'), interval('-')], [2000, 5000, 2000]);
    assert_eq!([interval('-'), interval('-'), interval('-'), interval('-')], [1000, 500, 250, 250]);
    screen.state.interval = Duration::from_secs(3);
    screen.press(KeyCode::Char('+'));
    assert_eq!(screen.state.interval, Duration::from_secs(5));
    screen.press(KeyCode::Char('p'));
    assert!(screen.state.paused && screen.shows("PAUSED"));
    screen.press(KeyCode::Char('p'));
    assert!(!screen.state.paused && screen.shows(" 22:13:20Z"));
}

#[test]
fn a_group_is_selected_by_its_key() {
    let mut screen = Screen::of(clients(5), (80, 24));
    screen.press(KeyCode::Char('3'));
    screen.press(KeyCode::Down);
    let selected = screen.state.position().selected.clone();
    assert_eq!(selected, Some((0, RowIdentity::Group(GroupKey::LocalPort(Port(80))))));
}
