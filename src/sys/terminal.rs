//! What standard output is: a terminal or not, and how wide.

use std::io::IsTerminal;

/// Whether standard output is a terminal.
#[must_use]
pub fn stdout_is_terminal() -> bool {
    std::io::stdout().is_terminal()
}

/// Columns of the terminal on standard output; `None` where it is none.
#[must_use]
pub fn stdout_width() -> Option<usize> {
    let (width, _) = terminal_size::terminal_size_of(std::io::stdout())?;
    Some(usize::from(width.0)).filter(|&width| width > 0)
}
