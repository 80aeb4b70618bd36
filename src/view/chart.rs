//! Draws a bar chart over time, with one bar per second. On a narrow terminal, each bar shows the mean of several seconds.

use std::fmt::Write as _;
use std::io::{self, Write};

use super::human;
use super::style::{Meaning, TextStyle};

/// The default height of the bars in lines.
pub const HEIGHT: usize = 6;

/// The assumed width in columns if the width is unknown.
const ASSUMED_WIDTH: usize = 80;

/// The maximum width of a bar in columns.
const WIDEST: usize = 2;

/// Parts of a bar, from zero to eight eighths of a line: the block elements U+2581 to U+2588, and similar ASCII characters.
const BLOCKS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
const ASCII: [char; 9] = [' ', '.', '.', '.', ':', ':', ':', '#', '#'];

/// A bar chart of numbers per second.
#[derive(Clone, Copy, Debug)]
pub struct Chart<'a> {
    /// The number of each second, the newest last; `None` if it is unknown.
    pub seconds: &'a [Option<u64>],
    /// The height of the bars in lines. The axis below them takes two more lines.
    pub height: usize,
}

struct BarLayout {
    /// The width in columns of the numbers on the left of the chart.
    label: usize,
    /// The number of seconds per bar.
    per_bar: usize,
    /// The width of a bar in columns.
    columns: usize,
}

impl Chart<'_> {
    /// The number of seconds per bar. If there are several, the bar shows their mean.
    #[must_use]
    pub fn seconds_per_bar(&self, style: TextStyle) -> usize {
        self.layout(style).per_bar
    }

    fn layout(&self, style: TextStyle) -> BarLayout {
        let most = self.seconds.iter().flatten().max().copied().unwrap_or(0);
        let label = human::with_separators(most).len();
        let room = style.width.unwrap_or(ASSUMED_WIDTH).saturating_sub(label + 2).max(1);
        let count = self.seconds.len().max(1);
        let divides = |per_bar: &usize| count.is_multiple_of(*per_bar) && count / per_bar <= room;
        let per_bar = (1..=count).find(divides).unwrap_or(count);
        BarLayout { label, per_bar, columns: (room / (count / per_bar)).clamp(1, WIDEST) }
    }

    /// Writes the bars, the scale on the left, and the time axis.
    pub fn write(&self, out: &mut dyn Write, style: TextStyle) -> io::Result<()> {
        let BarLayout { label, per_bar, columns } = self.layout(style);
        let bars: Vec<Option<f64>> = self.seconds.chunks(per_bar).map(mean).collect();
        let top = bars.iter().flatten().copied().fold(0.0, f64::max);
        let (levels, wall, corner, floor) =
            if style.unicode { (BLOCKS, '│', '└', '─') } else { (ASCII, '|', '+', '-') };
        for line in (0..self.height).rev() {
            let scale = if line + 1 == self.height { text_of(top) } else { String::new() };
            let bar = |bar: &Option<f64>| match bar {
                Some(value) => levels[eighths(*value, top, line, self.height)],
                None if line == 0 => '?',
                None => ' ',
            };
            let drawn: String = bars.iter().flat_map(|value| std::iter::repeat_n(bar(value), columns)).collect();
            writeln!(out, "{}", format!("{scale:>label$} {wall}{drawn}").trim_end())?;
        }
        let width = bars.len() * columns;
        let axis: String = std::iter::repeat_n(floor, width).collect();
        writeln!(out, "{:>label$} {corner}{axis}", 0)?;
        writeln!(out, "{}{}", " ".repeat(label + 2), style.paint(Meaning::Aside, time_axis(self.seconds.len(), width)))
    }
}

#[expect(clippy::cast_precision_loss, reason = "drawn in eighths of a line")]
fn mean(seconds: &[Option<u64>]) -> Option<f64> {
    let known: Vec<u64> = seconds.iter().flatten().copied().collect();
    (!known.is_empty()).then(|| known.iter().sum::<u64>() as f64 / known.len() as f64)
}

/// The number of eighths that a bar fills of this line. Line 0 is at the bottom. A value above 0 fills at least one eighth of line 0.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "0 to 8 a line"
)]
fn eighths(value: f64, top: f64, line: usize, height: usize) -> usize {
    if value <= 0.0 {
        return 0;
    }
    let filled = (value / top * (height * 8) as f64).round().max(1.0) as usize;
    filled.saturating_sub(line * 8).min(8)
}

/// Formats a mean: with one decimal, or without decimals if it is a whole number or at least 100.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of closes")]
#[must_use]
pub fn text_of(mean: f64) -> String {
    if mean.fract() == 0.0 || mean >= 100.0 {
        human::with_separators(mean.round() as u64)
    } else {
        format!("{mean:.1}")
    }
}

/// Formats the labels of the time axis, `-60 s ... -30 s ... now`, with as many marks as fit.
fn time_axis(seconds: usize, width: usize) -> String {
    let now = "now";
    for marks in [4, 2, 1] {
        let mut text = String::new();
        for mark in 0..marks {
            let at = width * mark / marks;
            if text.len() < at {
                text.push_str(&" ".repeat(at - text.len()));
            }
            // Writing to a String cannot fail.
            let _ = write!(text, "-{} s ", seconds * (marks - mark) / marks);
        }
        let fits = width.checked_sub(now.len()).filter(|last| text.len() <= *last);
        let apart = width / marks >= "-60 s".len() + 2;
        if let Some(last) = fits
            && apart
        {
            return format!("{text:<last$}{now}");
        }
    }
    String::new()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use unicode_width::UnicodeWidthStr;

    fn drawn(seconds: &[Option<u64>], width: Option<usize>, unicode: bool) -> Vec<String> {
        let mut out = vec![];
        Chart { seconds, height: HEIGHT }.write(&mut out, TextStyle { color: false, width, unicode }).expect("written");
        String::from_utf8(out).expect("text").lines().map(str::to_owned).collect()
    }

    /// One close 60 s ago, and a rising number in the last 19 s.
    fn rising() -> Vec<Option<u64>> {
        (0_u64..60).map(|second| Some(if second == 0 { 1 } else { second.saturating_sub(40) * 10 })).collect()
    }

    #[test]
    fn each_second_has_one_column_and_the_newest_is_on_the_right() {
        let lines = drawn(&rising(), Some(80), true);
        assert_eq!(lines.len(), HEIGHT + 2);
        assert!(lines[0].starts_with("190 │") && lines[0].ends_with("▃▅█"), "{}", lines.join("\n"));
        assert!(lines[5].starts_with("    │▁ "), "a value above 0 is visible: {}", lines[5]);
        assert_eq!(lines[6], format!("  0 └{}", "─".repeat(60)));
        assert_eq!(lines[7].trim_start(), "-60 s          -45 s          -30 s          -15 s       now");
        assert_eq!(lines.iter().map(|line| line.width()).max(), Some(65));
    }

    #[test]
    fn a_second_has_two_columns_on_a_wide_terminal_and_half_a_column_on_a_narrow_one() {
        let lines = drawn(&rising(), Some(130), true);
        assert_eq!(lines[6].width(), 125);
        let lines = drawn(&rising(), Some(40), true);
        assert_eq!(lines[6].width(), 35, "30 bars of two seconds each");
        assert!(lines[0].starts_with("185 │") && lines[0].ends_with('█'), "{}", lines.join("\n"));
        assert_eq!(lines[7].trim_start(), "-60 s          -30 s       now");
    }

    #[test]
    fn an_ascii_chart_has_only_ascii_characters() {
        let lines = drawn(&rising(), Some(80), false);
        assert!(lines.iter().all(|line| line.is_ascii()));
        assert!(lines[0].ends_with(":#") && lines[5].starts_with("    |. "), "{}", lines.join("\n"));
    }

    #[test]
    fn an_unknown_second_is_not_drawn_as_zero() {
        let mut seconds = vec![None; 40];
        seconds.extend(vec![Some(0); 19]);
        seconds.push(Some(3));
        let lines = drawn(&seconds, None, true);
        assert_eq!(lines[5], format!("  │{}{}█", "?".repeat(40), " ".repeat(19)));
    }

    proptest! {
        #[test]
        fn no_line_is_wider_than_the_terminal(
            seconds in proptest::collection::vec(proptest::option::of(0_u64..1_000_000), 60),
            width in 15_usize..200,
            unicode in any::<bool>(),
        ) {
            for line in drawn(&seconds, Some(width), unicode) {
                prop_assert!(line.width() <= width, "{line}");
            }
        }
    }
}
