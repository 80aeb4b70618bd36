//! What standard output and error are: a terminal or not, and how wide.

use std::io::IsTerminal;
use std::os::fd::AsFd;

/// Whether standard output is a terminal.
#[must_use]
pub fn stdout_is_terminal() -> bool {
    std::io::stdout().is_terminal()
}

/// Columns of the terminal on standard output; `None` where it is none.
#[must_use]
pub fn stdout_width() -> Option<usize> {
    width_of(std::io::stdout())
}

/// Columns of the terminal on standard error; `None` where it is none.
#[must_use]
pub fn stderr_width() -> Option<usize> {
    width_of(std::io::stderr())
}

fn width_of(descriptor: impl AsFd) -> Option<usize> {
    let (width, _) = terminal_size::terminal_size_of(descriptor)?;
    Some(usize::from(width.0)).filter(|&width| width > 0)
}
