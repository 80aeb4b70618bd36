//! Colour, where it is wanted. Whether it is, is decided once, by the caller.

use std::fmt;

use anstyle::{AnsiColor, Style};

/// What a text means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the meanings themselves")]
pub enum Meaning {
    Heading,
    Good,
    Caution,
    Bad,
    Aside,
}

/// How output looks: colour or not, how many columns it may take, and of which characters it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextStyle {
    /// Whether to colour.
    pub color: bool,
    /// The terminal's width; `None`: no terminal, nothing is fitted or cut.
    pub width: Option<usize>,
    /// Whether characters beyond ASCII may be drawn with.
    pub unicode: bool,
}

impl TextStyle {
    /// The text in the colour of its meaning.
    pub fn paint<T: fmt::Display>(self, meaning: Meaning, text: T) -> impl fmt::Display {
        let style = match meaning {
            _ if !self.color => Style::new(),
            Meaning::Heading => Style::new().bold(),
            Meaning::Good => AnsiColor::Green.on_default().bold(),
            Meaning::Caution => AnsiColor::Yellow.on_default().bold(),
            Meaning::Bad => AnsiColor::Red.on_default().bold(),
            Meaning::Aside => Style::new().dimmed(),
        };
        Painted { style, text }
    }
}

struct Painted<T> {
    style: Style,
    text: T,
}

impl<T: fmt::Display> fmt::Display for Painted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}{}", self.style.render(), self.text, self.style.render_reset())
    }
}
