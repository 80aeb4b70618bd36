//! Tests of texts on the screen: long help, proposals and filters, messages, warnings, and the interval.

use std::time::Duration;

use ratatui::crossterm::event::KeyCode;

use super::super::draw;
use super::super::state::{Action, FilterLine, Overlay};
use super::{Screen, clients};

#[test]
fn long_texts_scroll_to_their_end_and_no_further() {
    let mut screen = Screen::of(clients(3), (60, 10));
    screen.press(KeyCode::Char('?'));
    assert!(screen.shows("choose the table") && !screen.shows("quit"));
    screen.press(KeyCode::End);
    let end = screen.drawn();
    assert!(screen.shows("q, Ctrl-C   quit"));
    for key in [KeyCode::Down, KeyCode::PageDown, KeyCode::End] {
        screen.press(key);
        assert_eq!(screen.drawn(), end, "{key:?}");
    }
    screen.press(KeyCode::PageUp);
    screen.with_rows(|state, rows| state.scroll(-100, rows));
    assert!(screen.shows("choose the table"));
    // If the screen grows, the text scrolls back to fill it.
    screen.press(KeyCode::End);
    screen.size = (80, 40);
    assert!(screen.shows("choose the table") && screen.shows("q, Ctrl-C   quit"));
}

#[test]
fn y_runs_the_command_only_if_the_end_of_the_text_is_visible() {
    let command = || Some("twtool kill x".to_owned());
    for size in [(40, 5), (20, 8), (80, 24)] {
        let mut screen = Screen::of(clients(3), size);
        let lines = (0..12).map(|line| format!("line {line}")).collect();
        screen.state.overlay = Some(Overlay { command: command(), ..Overlay::text("remove", lines) });
        let whole = screen.shows("line 11");
        assert_eq!(screen.press(KeyCode::Char('y')).is_some(), whole, "{size:?}");
        if !whole {
            assert!(screen.state.overlay.is_some());
            screen.press(KeyCode::End);
            assert!(screen.shows("line 11"), "{size:?}");
            assert_eq!(screen.press(KeyCode::Char('y')), command().map(Action::RunKill), "{size:?}");
        }
    }
}

#[test]
fn a_filter_of_a_million_letters_shows_its_end() {
    // If the work grew with the square of the length, this test would take far too long.
    let mut screen = Screen::of(clients(3), (80, 24));
    let text = format!("{}漢字", "sport = :1 or ".repeat(70_000));
    screen.state.typed = Some(FilterLine { cursor: text.len(), text, error: None });
    let last = screen.drawn().pop().expect("a line");
    assert!(last.starts_with("filter: ") && last.replace(' ', "").ends_with("or漢字"), "{last}");
    // The screen shows the mark of an error, wherever in the filter the error is.
    let line = screen.state.typed.as_mut().expect("it is typed");
    line.error = Some(format!("wrong\n  {}sprt\n  {}^^^^", "x".repeat(5000), " ".repeat(5000)));
    let lines = screen.drawn();
    assert_eq!(lines[lines.len() - 2].find("sprt"), lines[lines.len() - 1].find("^^^^"));
    assert!(lines[lines.len() - 1].contains("^^^^"));
}

#[test]
fn a_message_may_have_several_lines_and_warnings_are_counted() {
    let mut screen = Screen::of(clients(30), (80, 24));
    screen.state.message = Some("to see the recording:\ntwtool watch --replay x".into());
    let lines = screen.drawn();
    assert_eq!(lines[22..], ["to see the recording:", "twtool watch --replay x"]);
    screen.state.message = None;
    screen.latest.sample.warnings = vec!["short".into()];
    assert!(screen.drawn()[3] == "short");
    screen.latest.sample.warnings = vec!["long ".repeat(40)];
    assert!(screen.drawn()[3].ends_with("press ! for all of it"));
    screen.latest.failure = Some("first".into());
    assert!(screen.drawn()[3].starts_with("first ") && screen.drawn()[3].ends_with("press ! for all 2 warnings"));
    assert_eq!(screen.press(KeyCode::Char('!')), Some(Action::Warnings));
}

#[test]
fn an_interval_below_a_second_is_shown_in_milliseconds() {
    let mut screen = Screen::of(clients(1), (120, 24));
    for (key, shown) in [('-', "every 500ms"), ('-', "every 250ms")] {
        screen.press(KeyCode::Char(key));
        let interval = screen.state.interval;
        assert_eq!(draw::interval_text(interval), shown.trim_start_matches("every "));
    }
    assert_eq!(draw::interval_text(Duration::from_millis(2449)), "2.4s");
    assert_eq!(draw::interval_text(Duration::from_secs(60)), "60s");
}
