//! Draws the screen from the state and the last sample. This module changes only the frame and the widths of the columns.
//!
//! From top to bottom: the head (namespace, totals, rate of closes, the first warning), the chart, the names of the tables, the
//! table, and the last line (keys, a message, or the filter that is being typed, with its mistake below it).

use std::time::Duration;

use ratatui::Frame;
use ratatui::buffer::Buffer;
use ratatui::layout::{Position as Cell, Rect};
use ratatui::style::{Color, Modifier, Style};

use super::latest::LatestSample;
use super::state::{FilterLine, Overlay, ScreenState};
use super::tables::{Listing, ScreenTable};
use super::widths::Widths;
use crate::view::chart::{self, Chart};
use crate::view::human;
use crate::view::style::{Meaning, TextStyle};
use crate::view::table;
use crate::watch::CloseHistory;

/// The number of lines below the bars: the axis, and its labels.
const AXIS: u16 = 2;

/// The numbers of seconds that the chart can cover. Each has many divisors, so that the bars fill most of nearly every width.
const SPANS: [usize; 5] = [60, 120, 180, 300, 600];

/// Everything that a frame shows in addition to the state.
pub(super) struct FrameContent<'a> {
    pub(super) latest: &'a LatestSample,
    pub(super) history: &'a CloseHistory,
    pub(super) listing: &'a Listing,
    /// The time since the last sample. Remaining times are shown shorter by this time.
    pub(super) age: Duration,
    /// The interval in use.
    pub(super) interval: Duration,
    /// Whether the interval in use is longer than the interval that the user chose, because reading takes long.
    pub(super) stretched: bool,
    pub(super) style: TextStyle,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Areas {
    head: Rect,
    chart: Rect,
    tabs: Rect,
    /// The titles and the rows.
    table: Rect,
    bottom: Rect,
}

impl Areas {
    fn new(area: Rect, state: &ScreenState, warned: bool) -> Self {
        let mut left = area;
        let take = |left: &mut Rect, lines: u16| {
            let height = lines.min(left.height);
            let taken = Rect { height, ..*left };
            *left = Rect { y: left.y + height, height: left.height - height, ..*left };
            taken
        };
        let bars = match area.height {
            0..18 => 0,
            18..36 => 6,
            36..50 => 10,
            _ => 14,
        };
        let head = take(&mut left, 3 + u16::from(warned));
        let chart = take(&mut left, if bars > 0 { bars + AXIS } else { 0 });
        let tabs = take(&mut left, 1);
        let bottom = match (&state.typed, &state.message) {
            (Some(line), _) => 1 + mistake(line, area.width).len(),
            (None, Some(message)) => wrap_lines(message.lines(), 0, area.width).len().max(1),
            (None, None) => 1,
        };
        let bottom = u16::try_from(bottom).unwrap_or(u16::MAX).min(left.height);
        let lines = left.height - bottom;
        let table = take(&mut left, lines);
        Self { head, chart, tabs, table, bottom: left }
    }

    /// The area of an overlay and its title: the chart, the tabs and the table. On a screen without a chart, also the head.
    fn overlay(self) -> Rect {
        let top = if self.chart.height > 0 { self.chart } else { self.head };
        Rect { height: self.table.bottom() - top.top(), ..top }
    }
}

/// The number of rows that fit on a screen of this size.
#[must_use]
pub(super) fn visible_rows(area: Rect, state: &ScreenState, latest: &LatestSample) -> usize {
    usize::from(Areas::new(area, state, latest.has_warning()).table.height.saturating_sub(1))
}

/// The largest [`Overlay::top`] on a screen of this size.
#[must_use]
pub(super) fn overlay_end(area: Rect, state: &ScreenState, latest: &LatestSample) -> usize {
    let Some(overlay) = &state.overlay else { return 0 };
    let area = Areas::new(area, state, latest.has_warning()).overlay();
    wrap_lines(overlay.lines.iter().map(String::as_str), overlay.indent, area.width).len().saturating_sub(room(area))
}

/// The number of lines of an overlay that fit below its title.
fn room(area: Rect) -> usize {
    usize::from(area.height.saturating_sub(1))
}

/// Breaks long lines at spaces, and indents the continuation lines. Control characters are escaped.
fn wrap_lines<'a>(lines: impl Iterator<Item = &'a str>, indent: usize, width: u16) -> Vec<String> {
    let mut text = vec![];
    for line in lines {
        // Writing to memory cannot fail.
        let _ = human::break_lines(&mut text, line, "", &" ".repeat(indent), Some(width.into()));
    }
    String::from_utf8_lossy(&text).lines().map(str::to_owned).collect()
}

pub(super) fn draw(frame: &mut Frame, state: &ScreenState, shown: &FrameContent, widths: &mut Widths) {
    let areas = Areas::new(frame.area(), state, shown.latest.has_warning());
    let buffer = frame.buffer_mut();
    head(buffer, areas.head, state, shown);
    draw_chart(buffer, areas.chart, shown);
    tabs(buffer, areas.tabs, state.table);
    rows(buffer, areas.table, state, shown, widths);
    if let Some(overlay) = &state.overlay {
        draw_overlay(buffer, areas.overlay(), overlay, shown.style);
    }
    if let Some(line) = &state.typed {
        let cursor = filter_line(buffer, areas.bottom, line, shown.style);
        frame.set_cursor_position(cursor);
    } else {
        last_line(buffer, areas.bottom, state, shown);
    }
}

/// The style of a meaning. Without colours, only bold and dim remain.
fn style_of(meaning: Meaning, style: TextStyle) -> Style {
    let colored = |color| if style.color { Style::new().fg(color) } else { Style::new() };
    match meaning {
        Meaning::Heading => Style::new().add_modifier(Modifier::BOLD),
        Meaning::Good => colored(Color::Green),
        Meaning::Caution => colored(Color::Yellow).add_modifier(Modifier::BOLD),
        Meaning::Bad => colored(Color::Red).add_modifier(Modifier::BOLD),
        Meaning::Aside => Style::new().add_modifier(Modifier::DIM),
    }
}

/// Writes one line of text into an area, and cuts the text at the end of the area. Returns the column behind the text.
fn put(buffer: &mut Buffer, area: Rect, line: u16, text: &str, style: Style) -> u16 {
    if line >= area.height {
        return area.x;
    }
    let text = human::cut(text, area.width.into());
    buffer.set_stringn(area.x, area.y + line, text, area.width.into(), style).0
}

/// Splits an area into a left and a right part. The right part is as wide as the text `right`. One blank separates the parts.
fn halves(area: Rect, right: &str) -> (Rect, Rect) {
    let width = u16::try_from(human::display_width(right)).unwrap_or(u16::MAX).min(area.width);
    let left = Rect { width: area.width.saturating_sub(width + 1), ..area };
    (left, Rect { x: area.right() - width, width, ..area })
}

fn head(buffer: &mut Buffer, area: Rect, state: &ScreenState, shown: &FrameContent) {
    let FrameContent { latest, history, style, interval, .. } = *shown;
    let chosen = || format!(" instead of {}, because reading takes long", interval_text(state.interval));
    let stretched = if shown.stretched { chosen() } else { String::new() };
    let title = format!("{}  every {}{stretched}", latest.title(), interval_text(interval));
    let tracing = if latest.is_traced() { "TRACING  " } else { "" };
    let recording = if state.recording.is_some() { "RECORDING  " } else { "" };
    let time = if state.paused { "PAUSED".into() } else { latest.time() };
    let right = format!("{tracing}{recording}{time}");
    let (left, right_area) = halves(area, &right);
    put(buffer, left, 0, &title, style_of(Meaning::Heading, style));
    let meaning = if state.paused { Meaning::Caution } else { Meaning::Aside };
    put(buffer, right_area, 0, &right, style_of(meaning, style));
    put(buffer, area, 1, &latest.totals(), Style::new());
    put(buffer, area, 2, &rate(history), Style::new());
    draw_warning(
        buffer,
        Rect { y: area.y + 3, height: area.height.saturating_sub(3), ..area },
        &latest.warnings(),
        style,
    );
}

/// Draws the first warning. If the warning is cut, or if there are more warnings, adds the hint to press `!`.
fn draw_warning(buffer: &mut Buffer, area: Rect, warnings: &[String], style: TextStyle) {
    let Some(first) = warnings.first() else { return };
    let caution = style_of(Meaning::Caution, style);
    let first = human::escape(first);
    let fits = human::display_width(&first) <= usize::from(area.width);
    let more = match warnings.len() {
        1 if fits => String::new(),
        1 => "press ! for all of it".into(),
        count => format!("press ! for all {count} warnings"),
    };
    let (left, right) = halves(area, &more);
    put(buffer, if more.is_empty() { area } else { left }, 0, &first, caution);
    put(buffer, right, 0, &more, caution);
}

fn rate(history: &CloseHistory) -> String {
    let rate = |rate: Option<f64>| rate.map_or_else(|| "unknown".into(), chart::text_of);
    let peak = history.peak().map_or_else(|| "unknown".into(), human::with_separators);
    let seconds = history.closes().len();
    let (now, mean) = (rate(history.now()), rate(history.mean()));
    format!("closes per second: now {now}; of the last {seconds} s: mean {mean}, peak {peak}")
}

/// An interval: `250ms`, `1s`, `2.4s`.
pub(super) fn interval_text(time: Duration) -> String {
    if time < Duration::from_secs(1) {
        return format!("{}ms", time.as_millis());
    }
    format!("{}s", chart::text_of((time.as_secs_f64() * 10.0).round() / 10.0))
}

fn draw_chart(buffer: &mut Buffer, area: Rect, shown: &FrameContent) {
    let height = usize::from(area.height.saturating_sub(AXIS));
    if height == 0 {
        return;
    }
    let all = shown.history.closes();
    // The chart covers the longest of the SPANS that the history fills, so the chart has no empty part.
    let span = SPANS.into_iter().rfind(|span| *span <= all.len()).unwrap_or(all.len());
    let skipped = all.len() - span;
    let seconds: Vec<Option<u64>> = all.skip(skipped).collect();
    let style = TextStyle { color: false, width: Some(area.width.into()), ..shown.style };
    let mut text = vec![];
    // Writing to memory cannot fail.
    let _ = Chart { seconds: &seconds, height }.write(&mut text, style);
    for (line, text) in (0..).zip(String::from_utf8_lossy(&text).lines()) {
        put(buffer, area, line, text, Style::new());
    }
}

fn tabs(buffer: &mut Buffer, area: Rect, on: ScreenTable) {
    if area.height == 0 {
        return;
    }
    let mut x = area.x;
    for (digit, table) in (1..).zip(ScreenTable::ALL) {
        let left = area.right().saturating_sub(x);
        let weight = if table == on { Modifier::REVERSED | Modifier::BOLD } else { Modifier::empty() };
        let text = format!("{digit} {}", table.name());
        x = buffer.set_stringn(x, area.y, text, left.into(), Style::new().add_modifier(weight)).0 + 1;
    }
}

fn rows(buffer: &mut Buffer, area: Rect, state: &ScreenState, shown: &FrameContent, widths: &mut Widths) {
    let FrameContent { latest, listing, history, age, style, .. } = *shown;
    let position = state.position();
    let count = usize::from(area.height.saturating_sub(1)).min(listing.len().saturating_sub(position.top));
    let lines: Vec<Vec<String>> = (position.top..position.top + count)
        .map(|row| listing.cells(row, latest, history, age, style.unicode))
        .collect();
    let headings = listing.headings(latest);
    let columns =
        table::fit_columns(&headings, widths.of(state.table, area.width, &headings, &lines), area.width.into());
    let line = |cell: &dyn Fn(usize) -> String| {
        let mut text = String::new();
        for &(column, width) in &columns {
            let cell = human::cut(&cell(column), width);
            let blanks = " ".repeat(width.saturating_sub(human::display_width(&cell)));
            let parts = if headings[column].right { [blanks, cell] } else { [cell, blanks] };
            text.extend(parts);
            text.push_str(&" ".repeat(table::GAP));
        }
        text
    };
    let title = |column: usize| headings[column].title.to_owned();
    put(buffer, area, 0, line(&title).trim_end(), style_of(Meaning::Heading, style));
    for (at, cells) in (1..).zip(&lines) {
        put(buffer, area, at, line(&|column| cells[column].clone()).trim_end(), Style::new());
    }
    if lines.is_empty() {
        let text = listing.empty_text(!state.filter.is_empty(), latest);
        let mut broken = vec![];
        // Writing to memory cannot fail.
        let _ = human::break_lines(&mut broken, &text, "", "", Some(area.width.into()));
        for (at, line) in (1..).zip(String::from_utf8_lossy(&broken).lines()) {
            put(buffer, area, at, line, style_of(Meaning::Aside, style));
        }
    }
    let selected = position.selected.as_ref().and_then(|(row, _)| row.checked_sub(position.top));
    if let Some(at) = selected.filter(|at| *at < count).and_then(|at| u16::try_from(at).ok()) {
        let line = Rect { y: area.y + 1 + at, height: 1, ..area };
        buffer.set_style(line, Style::new().add_modifier(Modifier::REVERSED));
    }
}

fn draw_overlay(buffer: &mut Buffer, area: Rect, overlay: &Overlay, style: TextStyle) {
    for y in area.top()..area.bottom() {
        for x in area.left()..area.right() {
            buffer[(x, y)].reset();
        }
    }
    let rule = if style.unicode { "─" } else { "-" };
    let width = usize::from(area.width);
    let title = human::cut(&overlay.title, width.saturating_sub(6));
    let line = format!("{rule}{rule} {title} ");
    let rest = rule.repeat(width.saturating_sub(human::display_width(&line)));
    put(buffer, area, 0, &format!("{line}{rest}"), style_of(Meaning::Heading, style));
    let lines = wrap_lines(overlay.lines.iter().map(String::as_str), overlay.indent, area.width);
    // The terminal may have become larger since the last key.
    let top = overlay.top.min(lines.len().saturating_sub(room(area)));
    for (at, text) in (1..area.height).zip(&lines[top..]) {
        put(buffer, area, at, text, Style::new());
    }
}

/// The mistake in the filter: the message, and the expression with a mark below it. Only the message is wrapped.
fn mistake(line: &FilterLine, width: u16) -> Vec<String> {
    let mut lines = line.error.iter().flat_map(|error| error.lines());
    let message = wrap_lines(lines.next().into_iter(), 0, width);
    let rest: Vec<_> = lines.map(human::escape).collect();
    // Skip the beginning of an expression that is too wide, so that the part above the mark is visible.
    let width = usize::from(width);
    let mark = rest.last().filter(|line| human::display_width(line) > width);
    let skipped = mark.map_or(0, |line| (line.len() - line.trim_start().len()).saturating_sub(width / 2));
    message.into_iter().chain(rest.iter().map(|line| line.chars().skip(skipped).collect())).collect()
}

/// The end of a text that fits into this number of columns. The function does not read the rest of the text.
fn tail(text: &str, room: usize) -> &str {
    let mut used = 0;
    let fits = |letter: &char| {
        used += human::display_width(letter.encode_utf8(&mut [0; 4]));
        used <= room
    };
    let length: usize = text.chars().rev().take_while(fits).map(char::len_utf8).sum();
    &text[text.len() - length..]
}

/// Draws the filter that is being typed. Returns the position of the cursor.
fn filter_line(buffer: &mut Buffer, area: Rect, line: &FilterLine, style: TextStyle) -> Cell {
    const PROMPT: &str = "filter: ";
    let (before, behind) = line.text.split_at(line.cursor);
    // The beginning of a long text is left out, so that the cursor is on the screen.
    let room = usize::from(area.width).saturating_sub(PROMPT.len() + 1);
    let before = human::escape(before);
    let before = tail(&before, room);
    put(buffer, area, 0, &format!("{PROMPT}{before}{}", human::escape(behind)), style_of(Meaning::Heading, style));
    for (at, text) in (1..).zip(mistake(line, area.width)) {
        put(buffer, area, at, &text, style_of(Meaning::Bad, style));
    }
    let column = PROMPT.len() + human::display_width(before);
    Cell::new(area.x + u16::try_from(column).unwrap_or(0), area.y)
}

fn last_line(buffer: &mut Buffer, area: Rect, state: &ScreenState, shown: &FrameContent) {
    let FrameContent { listing, style, .. } = *shown;
    if let Some(message) = &state.message {
        for (at, line) in (0..).zip(wrap_lines(message.lines(), 0, area.width)) {
            put(buffer, area, at, &line, style_of(Meaning::Caution, style));
        }
        return;
    }
    let position = state.position();
    let place = if listing.is_empty() {
        String::new()
    } else {
        let row = position.selected.as_ref().map_or(position.top, |(row, _)| *row) + 1;
        format!("{} of {}", human::with_separators(row as u64), human::with_separators(listing.len() as u64))
    };
    let text = match &state.overlay {
        None => hints(state),
        Some(Overlay { command: Some(_), .. }) => {
            "y runs the command shown; Up, Down scroll; Esc closes, and removes nothing".into()
        }
        Some(_) => "Up, Down scroll; Esc closes; q ends twtool".into(),
    };
    let (left, right) = halves(area, &place);
    put(buffer, left, 0, &human::escape(&text), style_of(Meaning::Aside, style));
    put(buffer, right, 0, &place, style_of(Meaning::Aside, style));
}

fn hints(state: &ScreenState) -> String {
    let position = state.position();
    let order = state.table.orders()[position.order];
    let reversed = if position.reverse { ", reversed" } else { "" };
    let filter = if state.filter.is_empty() { "/ filter".into() } else { format!("/ filter: {}", state.filter) };
    format!("? help  q quit  s sort: {order}{reversed}  {filter}  p pause  k kill  t trace  w record")
}
