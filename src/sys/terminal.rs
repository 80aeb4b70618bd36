//! Determines which standard descriptors are terminals, how wide the terminals are, and which characters they show.

use std::io::IsTerminal;
use std::os::fd::AsFd;

/// Whether standard output is a terminal.
#[must_use]
pub fn stdout_is_terminal() -> bool {
    std::io::stdout().is_terminal()
}

/// Whether standard input is a terminal.
#[must_use]
pub fn stdin_is_terminal() -> bool {
    std::io::stdin().is_terminal()
}

/// Whether the terminal cannot move the cursor: `TERM` is `dumb`, empty or not set.
#[must_use]
pub fn is_dumb() -> bool {
    std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb")
}

/// Whether standard error is a terminal.
#[must_use]
pub fn stderr_is_terminal() -> bool {
    std::io::stderr().is_terminal()
}

/// The number of columns of the terminal on standard output; `None` if that is not a terminal or its size is unknown.
#[must_use]
pub fn stdout_width() -> Option<usize> {
    width_of(std::io::stdout())
}

/// The number of columns of the terminal on standard error; `None` if that is not a terminal or its size is unknown.
#[must_use]
pub fn stderr_width() -> Option<usize> {
    width_of(std::io::stderr())
}

fn width_of(descriptor: impl AsFd) -> Option<usize> {
    let (width, _) = terminal_size::terminal_size_of(descriptor)?;
    Some(usize::from(width.0)).filter(|&width| width > 0)
}

/// Whether the output may contain characters other than ASCII. This requires a locale with UTF-8 (the first of LC_ALL,
/// LC_CTYPE and LANG that is not empty; locale(7)), and a terminal that is neither `dumb` nor the kernel's console,
/// whose fonts lack most block characters.
#[must_use]
pub fn shows_unicode() -> bool {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set);
    let plain = set("TERM").is_some_and(|term| term == "dumb" || term == "linux");
    !plain && locale.is_some_and(|locale| is_utf8(&locale))
}

/// Accepts names like `de_DE.UTF-8` and `C.utf8`.
fn is_utf8(locale: &str) -> bool {
    let locale = locale.to_ascii_lowercase();
    locale.contains("utf-8") || locale.contains("utf8")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_encoding_is_part_of_the_name_of_a_locale() {
        for (locale, utf8) in
            [("C.UTF-8", true), ("de_DE.utf8", true), ("C", false), ("POSIX", false), ("de_DE@euro", false)]
        {
            assert_eq!(is_utf8(locale), utf8, "{locale}");
        }
    }
}
