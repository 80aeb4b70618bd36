//! The state of the screen, and what each key does to it. The state is a plain value. This module reads no clock, no terminal and
//! no kernel.

use std::time::Duration;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::tables::{RowIdentity, ScreenTable};

/// The intervals that `+` and `-` choose from.
const INTERVALS_MS: [u64; 8] = [250, 500, 1000, 2000, 5000, 10_000, 30_000, 60_000];

/// The lines that a turn of the mouse wheel scrolls.
pub(super) const WHEEL: isize = 3;

/// Each key and its effect, as the help shows them.
pub(super) const KEYS: [(&str, &str); 19] = [
    ("1-7, Tab", "choose the table"),
    ("Up, Down", "select a row; it stays selected when other rows come and go"),
    ("PgUp, PgDn", "move the selection by a page; the mouse wheel scrolls by 3 rows"),
    ("Home, End", "go to the first or last row; Home also ends the selection"),
    ("Enter", "show the selected row in full, with advice"),
    ("/", "filter rows in the language of 'twtool list'; an empty filter shows all"),
    ("s", "change the sort order"),
    ("r", "reverse the sort order"),
    ("p, Space", "pause: read nothing until the key is pressed again"),
    ("+, -", "lengthen or shorten the interval"),
    ("k", "propose 'twtool kill' for the selected row"),
    ("t", "trace who makes the sockets: start a tracer, or end it"),
    ("w", "begin a recording for --replay, or end it"),
    ("!", "show every warning in full"),
    ("?", "show or hide this help"),
    ("Esc", "close what is open; then clear the filter; then end the selection"),
    ("Ctrl-L", "draw the whole screen again"),
    ("Ctrl-Z", "stop twtool, and return to the shell"),
    ("q, Ctrl-C", "quit"),
];

/// What a key requests if [`ScreenState`] alone cannot carry it out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Quit,
    /// Ctrl-C.
    Interrupt,
    /// Ctrl-Z.
    Stop,
    /// Ctrl-L.
    Redraw,
    /// Check this filter, and use it if it has no mistake.
    Filter(String),
    Details,
    Warnings,
    /// Propose to remove the sockets of the selected row.
    Kill,
    RunKill(String),
    Record,
    /// Start a tracer, or end it.
    Trace,
}

/// The order and the position of one table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Position {
    /// The index of the order in [`ScreenTable::orders`].
    pub(super) order: usize,
    pub(super) reverse: bool,
    /// The first row on the screen.
    pub(super) top: usize,
    pub(super) selected: Option<(usize, RowIdentity)>,
}

/// A text that lies over the table until it is closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Overlay {
    pub(super) title: String,
    pub(super) lines: Vec<String>,
    /// The number of columns by which the continuation of a long line is indented.
    pub(super) indent: usize,
    /// The index of the first line on the screen, counted after long lines are wrapped.
    pub(super) top: usize,
    /// The command that `y` runs.
    pub(super) command: Option<String>,
}

impl Overlay {
    /// Creates an overlay that runs no command.
    #[must_use]
    pub(super) fn text(title: &str, lines: Vec<String>) -> Self {
        Self { title: title.to_owned(), lines, indent: 2, top: 0, command: None }
    }

    #[must_use]
    pub(super) fn help() -> Self {
        const COLUMN: usize = 12;
        let lines = KEYS.iter().map(|(key, what)| format!("{key:<width$} {what}", width = COLUMN - 1)).collect();
        Self { indent: COLUMN, ..Self::text("keys", lines) }
    }
}

/// The line below the table, while a filter is typed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct FilterLine {
    pub(super) text: String,
    /// The position of the cursor in bytes.
    pub(super) cursor: usize,
    /// The mistake in the text, as `list` reports it.
    pub(super) error: Option<String>,
}

/// What the handling of a key needs to know about the rows of the table and about the overlay.
#[derive(Clone, Copy)]
pub(super) struct RowFacts<'a> {
    pub(super) count: usize,
    /// The number of rows on the screen.
    pub(super) visible: usize,
    pub(super) identity: &'a dyn Fn(usize) -> Option<RowIdentity>,
    /// The largest [`Overlay::top`], at which the end of the text is on the screen.
    pub(super) overlay_end: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ScreenState {
    pub(super) table: ScreenTable,
    positions: [Position; ScreenTable::ALL.len()],
    /// The filter in use. An empty one selects every row.
    pub(super) filter: String,
    /// The filter that is being typed.
    pub(super) typed: Option<FilterLine>,
    pub(super) paused: bool,
    /// The file of the recording that is being made.
    pub(super) recording: Option<String>,
    /// The interval of `--interval`, or the one that the user chose with + or -.
    pub(super) interval: Duration,
    pub(super) overlay: Option<Overlay>,
    /// A message in place of the last line, until the next key. It can have several lines.
    pub(super) message: Option<String>,
}

impl ScreenState {
    #[must_use]
    pub(super) fn new(interval: Duration) -> Self {
        Self {
            table: ScreenTable::Sockets,
            positions: Default::default(),
            filter: String::new(),
            typed: None,
            paused: false,
            recording: None,
            interval,
            overlay: None,
            message: None,
        }
    }

    /// The order and the position of the table on the screen.
    #[must_use]
    pub(super) fn position(&self) -> &Position {
        &self.positions[self.table as usize]
    }

    pub(super) fn position_mut(&mut self) -> &mut Position {
        &mut self.positions[self.table as usize]
    }

    pub(super) fn press(&mut self, key: KeyEvent, rows: RowFacts) -> Option<Action> {
        self.message = None;
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            match key.code {
                KeyCode::Char('c') => return Some(Action::Interrupt),
                KeyCode::Char('z') => return Some(Action::Stop),
                KeyCode::Char('l') => return Some(Action::Redraw),
                _ => {}
            }
        }
        if let Some(line) = &mut self.typed {
            return match line.press(key) {
                Typing::Continues => None,
                Typing::Entered => Some(Action::Filter(line.text.trim().to_owned())),
                Typing::Cancelled => {
                    self.typed = None;
                    None
                }
            };
        }
        if self.overlay.is_some() {
            return self.press_in_overlay(key, rows);
        }
        match key.code {
            KeyCode::Char('q') => return Some(Action::Quit),
            KeyCode::Char('?') => self.overlay = Some(Overlay::help()),
            KeyCode::Char('/') => {
                let text = self.filter.clone();
                self.typed = Some(FilterLine { cursor: text.len(), text, error: None });
            }
            KeyCode::Char(digit @ '1'..='7') => {
                self.table = ScreenTable::ALL[digit as usize - '1' as usize];
            }
            KeyCode::Tab => self.table = self.table.next(),
            KeyCode::BackTab => self.table = self.table.previous(),
            KeyCode::Char('s') => {
                let orders = self.table.orders().len();
                let position = self.position_mut();
                position.order = (position.order + 1) % orders;
                position.top = 0;
            }
            KeyCode::Char('r') => {
                let position = self.position_mut();
                position.reverse = !position.reverse;
                position.top = 0;
            }
            KeyCode::Char('p' | ' ') => self.paused = !self.paused,
            KeyCode::Char('+' | '=') => self.interval = longer(self.interval),
            KeyCode::Char('-') => self.interval = shorter(self.interval),
            KeyCode::Up => self.select_by(-1, rows),
            KeyCode::Down => self.select_by(1, rows),
            KeyCode::PageUp => self.select_by(-page(rows), rows),
            KeyCode::PageDown => self.select_by(page(rows), rows),
            KeyCode::Home => *self.position_mut() = Position { top: 0, selected: None, ..self.position().clone() },
            KeyCode::End => self.select(rows.count.saturating_sub(1), rows),
            KeyCode::Enter => {
                return self.position().selected.as_ref().map(|_| Action::Details).or_else(|| self.ask_to_select());
            }
            KeyCode::Char('k') => {
                return self.position().selected.as_ref().map(|_| Action::Kill).or_else(|| self.ask_to_select());
            }
            KeyCode::Char('w') => return Some(Action::Record),
            KeyCode::Char('t') => return Some(Action::Trace),
            KeyCode::Char('!') => return Some(Action::Warnings),
            KeyCode::Esc if !self.filter.is_empty() => return Some(Action::Filter(String::new())),
            KeyCode::Esc => self.position_mut().selected = None,
            _ => {}
        }
        None
    }

    fn ask_to_select(&mut self) -> Option<Action> {
        self.message = Some("select a row first, with Down".into());
        None
    }

    fn press_in_overlay(&mut self, key: KeyEvent, rows: RowFacts) -> Option<Action> {
        let overlay = self.overlay.as_mut()?;
        let end = rows.overlay_end;
        let move_to = |top: usize| top.min(end);
        match key.code {
            KeyCode::Up => overlay.top = move_to(overlay.top).saturating_sub(1),
            KeyCode::Down => overlay.top = move_to(overlay.top + 1),
            KeyCode::PageUp => overlay.top = move_to(overlay.top).saturating_sub(rows.visible.max(1)),
            KeyCode::PageDown => overlay.top = move_to(overlay.top + rows.visible.max(1)),
            KeyCode::Home => overlay.top = 0,
            KeyCode::End => overlay.top = end,
            KeyCode::Char('y' | 'Y') if overlay.command.is_some() && overlay.top < end => {
                self.message = Some("scroll to the end first: the end of this text is not on the screen".into());
            }
            KeyCode::Char('y' | 'Y') if overlay.command.is_some() => {
                return self.overlay.take().and_then(|overlay| overlay.command).map(Action::RunKill);
            }
            KeyCode::Char('q') if overlay.command.is_none() => return Some(Action::Quit),
            _ => {
                if overlay.command.is_some() {
                    self.message = Some("nothing was removed".into());
                }
                self.overlay = None;
            }
        }
        None
    }

    /// Scrolls without a change of the selection.
    pub(super) fn scroll(&mut self, lines: isize, rows: RowFacts) {
        if let Some(overlay) = &mut self.overlay {
            overlay.top = overlay.top.saturating_add_signed(lines).min(rows.overlay_end);
            return;
        }
        let most = rows.count.saturating_sub(rows.visible);
        let position = self.position_mut();
        position.top = position.top.saturating_add_signed(lines).min(most);
    }

    fn select_by(&mut self, distance: isize, rows: RowFacts) {
        let position = self.position();
        let to = match &position.selected {
            Some((row, _)) => row.saturating_add_signed(distance),
            None if distance.unsigned_abs() == 1 => position.top,
            None => position.top.saturating_add_signed(distance),
        };
        self.select(to.min(rows.count.saturating_sub(1)), rows);
    }

    fn select(&mut self, row: usize, rows: RowFacts) {
        let position = self.position_mut();
        position.selected = (rows.identity)(row).map(|identity| (row, identity));
        position.show(row, rows);
    }

    /// Moves the selection to the new place of the selected row; `None`: the row is gone.
    pub(super) fn follow(&mut self, rows: RowFacts, place: Option<usize>) {
        let position = self.position_mut();
        let gone = position.selected.is_some() && place.is_none();
        if let Some((row, identity)) = position.selected.take()
            && let Some(now) = place
        {
            // The selected row stays on its line of the screen.
            position.top = (position.top + now).saturating_sub(row);
            position.selected = Some((now, identity));
            position.show(now, rows);
        }
        position.top = position.top.min(rows.count.saturating_sub(rows.visible));
        if gone {
            self.message = Some("the selected row is gone".into());
        }
    }
}

impl Position {
    /// Scrolls as little as possible so that the row is on the screen.
    fn show(&mut self, row: usize, rows: RowFacts) {
        let visible = rows.visible.max(1);
        self.top = self.top.clamp((row + 1).saturating_sub(visible), row);
    }
}

fn page(rows: RowFacts) -> isize {
    isize::try_from(rows.visible).unwrap_or(isize::MAX).max(1)
}

fn longer(interval: Duration) -> Duration {
    let mut choices = INTERVALS_MS.into_iter().map(Duration::from_millis);
    choices.find(|choice| *choice > interval).unwrap_or(interval)
}

fn shorter(interval: Duration) -> Duration {
    let mut choices = INTERVALS_MS.into_iter().rev().map(Duration::from_millis);
    choices.find(|choice| *choice < interval).unwrap_or(interval)
}

/// The effect of a key on the typed filter.
enum Typing {
    Continues,
    /// Enter: the filter is complete.
    Entered,
    /// Esc: the user has given up the filter.
    Cancelled,
}

impl FilterLine {
    fn press(&mut self, key: KeyEvent) -> Typing {
        let before = self.text[..self.cursor].chars().next_back().map_or(0, char::len_utf8);
        let after = self.text[self.cursor..].chars().next().map_or(0, char::len_utf8);
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Enter => return Typing::Entered,
            KeyCode::Esc => return Typing::Cancelled,
            KeyCode::Char('u') if control => {
                self.text.drain(..self.cursor);
                self.cursor = 0;
            }
            KeyCode::Char(letter) if !control => {
                self.text.insert(self.cursor, letter);
                self.cursor += letter.len_utf8();
                self.error = None;
            }
            KeyCode::Backspace if before > 0 => {
                self.cursor -= before;
                self.text.remove(self.cursor);
                self.error = None;
            }
            KeyCode::Delete if after > 0 => {
                self.text.remove(self.cursor);
                self.error = None;
            }
            KeyCode::Left => self.cursor -= before,
            KeyCode::Right => self.cursor += after,
            KeyCode::Home => self.cursor = 0,
            KeyCode::End => self.cursor = self.text.len(),
            _ => {}
        }
        Typing::Continues
    }
}
