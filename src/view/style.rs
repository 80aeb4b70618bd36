//! The style of text output: colours, width and character set.

use std::fmt;

use anstyle::{AnsiColor, Style};

/// The meaning of a text, which selects its colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say what they mean")]
pub enum Meaning {
    Heading,
    Good,
    Caution,
    Bad,
    Aside,
}

/// The style of text output: colours, width and character set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextStyle {
    /// Whether to colour.
    pub color: bool,
    /// The width of the terminal in columns; `None` if it is unknown, or if there is no terminal.
    pub width: Option<usize>,
    /// Whether drawings may use characters beyond ASCII.
    pub unicode: bool,
}

impl TextStyle {
    /// Wraps a text in the colour codes of its meaning.
    pub fn paint<T: fmt::Display>(self, meaning: Meaning, text: T) -> impl fmt::Display {
        let style = match meaning {
            _ if !self.color => Style::new(),
            Meaning::Heading => Style::new().bold(),
            Meaning::Good => AnsiColor::Green.on_default().bold(),
            Meaning::Caution => AnsiColor::Yellow.on_default().bold(),
            Meaning::Bad => AnsiColor::Red.on_default().bold(),
            Meaning::Aside => Style::new().dimmed(),
        };
        PaintedText { style, text }
    }
}

struct PaintedText<T> {
    style: Style,
    text: T,
}

impl<T: fmt::Display> fmt::Display for PaintedText<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}{}", self.style.render(), self.text, self.style.render_reset())
    }
}
