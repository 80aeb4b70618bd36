//! What standard output and error are: a terminal or not, how wide, and which characters are shown.

use std::io::IsTerminal;
use std::os::fd::AsFd;

/// Whether standard output is a terminal.
#[must_use]
pub fn stdout_is_terminal() -> bool {
    std::io::stdout().is_terminal()
}

/// Whether standard error is a terminal.
#[must_use]
pub fn stderr_is_terminal() -> bool {
    std::io::stderr().is_terminal()
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

/// Whether what is printed may go beyond ASCII: the locale's character encoding is UTF-8 (locale(7): the first of LC_ALL,
/// LC_CTYPE and LANG that is set and not empty), and the terminal is neither `dumb` nor the kernel's console, whose fonts
/// lack most block characters.
#[must_use]
pub fn shows_unicode() -> bool {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set);
    let plain = set("TERM").is_some_and(|term| term == "dumb" || term == "linux");
    !plain && locale.is_some_and(|locale| is_utf8(&locale))
}

/// `de_DE.UTF-8`, `C.utf8`.
fn is_utf8(locale: &str) -> bool {
    let locale = locale.to_ascii_lowercase();
    locale.contains("utf-8") || locale.contains("utf8")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_locale_names_its_encoding() {
        for (locale, utf8) in
            [("C.UTF-8", true), ("de_DE.utf8", true), ("C", false), ("POSIX", false), ("de_DE@euro", false)]
        {
            assert_eq!(is_utf8(locale), utf8, "{locale}");
        }
    }
}
