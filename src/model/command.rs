//! Commands for a person to type: which shell they are for, and how they are quoted.
//!
//! Every command that twtool prints is right when it is pasted into the shell in which twtool ran. So a command about
//! another network namespace begins with the program that enters it, and a command that needs root begins with `sudo`
//! unless the caller is root.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;

use super::name::is_hidden;
use super::netns::NetnsArg;

/// The shell in which twtool ran, and the network namespace that it looked into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shell {
    /// The namespace given by `--netns`; `None` is the caller's own.
    pub netns: Option<NetnsArg>,
    /// Whether the caller is root.
    pub root: bool,
    /// What starts twtool here: the name, or the path that was typed.
    pub twtool: String,
}

/// A command, and what it does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The line to type.
    pub command: String,
    /// What it does, as an imperative without a full stop: `wait until the port is free`.
    pub purpose: String,
}

impl Step {
    /// A step with this command and purpose.
    pub fn new(command: impl Into<String>, purpose: impl Into<String>) -> Self {
        Self { command: command.into(), purpose: purpose.into() }
    }
}

/// Whether a command works only for root, or for a process with the capability that its documentation names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// Any user may run it.
    None,
    /// It needs root.
    Root,
}

impl Shell {
    /// The line that runs a program in the namespace. Entering another namespace needs root as well.
    #[must_use]
    pub fn run(&self, privilege: Privilege, words: &[&str]) -> String {
        let enter: Vec<OsString> = match &self.netns {
            None => vec![],
            Some(NetnsArg::Name(name)) => vec!["ip".into(), "netns".into(), "exec".into(), name.into()],
            Some(NetnsArg::Path(path)) => {
                let mut option = OsString::from("--net=");
                option.push(path);
                vec!["nsenter".into(), option]
            }
            Some(NetnsArg::Process(pid)) => vec!["nsenter".into(), format!("--net=/proc/{pid}/ns/net").into()],
        };
        let sudo = privilege == Privilege::Root || !enter.is_empty();
        self.line(sudo, enter.iter().map(OsString::as_os_str).chain(words.iter().map(OsStr::new)))
    }

    /// The line that runs twtool itself on the namespace.
    #[must_use]
    pub fn twtool(&self, privilege: Privilege, words: &[&str]) -> String {
        let netns = self.netns.as_ref().map(NetnsArg::word);
        // Behind `--` stands another program's command line.
        let end = words.iter().position(|word| *word == "--").unwrap_or(words.len());
        let (options, rest) = words.split_at(end);
        let words = std::iter::once(OsStr::new(&self.twtool))
            .chain(options.iter().map(OsStr::new))
            .chain(netns.iter().flat_map(|netns| [OsStr::new("--netns"), netns]))
            .chain(rest.iter().map(OsStr::new));
        self.line(privilege == Privilege::Root, words)
    }

    fn line<'a>(&self, sudo: bool, words: impl Iterator<Item = &'a OsStr>) -> String {
        let sudo = (sudo && !self.root).then_some(OsStr::new("sudo"));
        let words: Vec<Cow<str>> = sudo.into_iter().chain(words).map(quoted).collect();
        words.join(" ")
    }
}

/// The word as bash reads it: as it is where that is safe, else in quotes. ANSI-C quotes stand around a word with bytes that
/// are not UTF-8, or with characters that a terminal interprets or does not show, so that the line can be read and pasted.
#[must_use]
pub fn quoted(word: &(impl AsRef<OsStr> + ?Sized)) -> Cow<'_, str> {
    let word = word.as_ref();
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-+=./:,@%".contains(c);
    if let Some(text) = word.to_str() {
        if !text.is_empty() && text.chars().all(plain) {
            return text.into();
        }
        if !text.chars().any(is_hidden) {
            return format!("'{}'", text.replace('\'', r"'\''")).into();
        }
    }
    let mut text = String::from("$'");
    for &byte in word.as_bytes() {
        match byte {
            b'\'' | b'\\' => text.extend(['\\', byte.into()]),
            0x20..=0x7e => text.push(byte.into()),
            // Writing to a String cannot fail.
            _ => drop(write!(text, "\\x{byte:02x}")),
        }
    }
    text.push('\'');
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(netns: Option<&str>, root: bool) -> Shell {
        Shell { netns: netns.map(|text| text.parse().expect("a namespace")), root, twtool: "twtool".into() }
    }

    #[test]
    fn a_command_enters_the_namespace_in_the_way_in_which_it_was_named() {
        for (netns, expected) in [
            (None, "ss -tan"),
            (Some("web"), "ip netns exec web ss -tan"),
            (Some("4711"), "nsenter --net=/proc/4711/ns/net ss -tan"),
            (Some("/run/my nets/a"), "nsenter '--net=/run/my nets/a' ss -tan"),
        ] {
            assert_eq!(shell(netns, true).run(Privilege::None, &["ss", "-tan"]), expected);
        }
    }

    #[test]
    fn sudo_stands_before_what_needs_root_unless_the_caller_is_root() {
        let (here, web) = (shell(None, false), shell(Some("web"), false));
        assert_eq!(here.run(Privilege::None, &["ss"]), "ss");
        assert_eq!(here.run(Privilege::Root, &["ss"]), "sudo ss");
        assert_eq!(web.run(Privilege::None, &["ss"]), "sudo ip netns exec web ss");
        assert_eq!(web.twtool(Privilege::None, &["list"]), "twtool list --netns web");
        assert_eq!(shell(None, true).twtool(Privilege::Root, &["kill", "--all"]), "twtool kill --all");
    }

    #[test]
    fn the_namespace_of_twtool_stands_before_the_command_that_it_starts() {
        let line = shell(Some("web"), false).twtool(Privilege::None, &["wait", "80", "--", "./server", "--x"]);
        assert_eq!(line, "twtool wait 80 --netns web -- ./server --x");
    }

    #[test]
    fn words_are_quoted_as_a_shell_reads_them() {
        for (word, expected) in [
            ("a-b_c=1,2", "a-b_c=1,2"),
            ("", "''"),
            ("it's", r"'it'\''s'"),
            ("[::1]", "'[::1]'"),
            ("$(id)", "'$(id)'"),
            ("a\x1b'\\", r"$'a\x1b\'\\'"),
            ("a\u{202e}b", r"$'a\xe2\x80\xaeb'"),
            ("a\u{200b}b", r"$'a\xe2\x80\x8bb'"),
            ("a\u{9b}b", r"$'a\xc2\x9bb'"),
        ] {
            assert_eq!(quoted(word), expected);
        }
        assert_eq!(quoted(OsStr::from_bytes(b"a\xff")), r"$'a\xff'");
    }
}
