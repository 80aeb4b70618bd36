//! The commands that twtool suggests, and how they are quoted for the shell.
//!
//! A user can paste each printed command into the shell in which twtool ran:
//! - A command about another network namespace enters that namespace with `ip netns exec` or `nsenter`.
//! - A command that starts twtool selects the namespace with `--netns` or `--container`.
//! - A command that needs root begins with `sudo`, unless the caller is root.
//! - A command that twtool knows to fail in this shell has the reason beside it (the *obstacle*).

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;

use super::health::{Capabilities, Capability};
use super::name::is_hidden;
use super::netns::NetnsArg;
use super::port::{LocalReservedPorts, Port, PortRange};

/// The reason why the caller cannot change settings below /proc/sys/net.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SettingsLock {
    /// The folder is mounted read-only, as in most containers. No user can write there.
    ReadOnly,
    /// The kernel does not let the caller write there.
    Refused,
}

/// What root can do in the caller's shell. Root is the caller itself, or a command that the caller starts with `sudo`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RootPower {
    /// The capabilities that root has; `None` if they are unknown.
    pub capabilities: Option<Capabilities>,
    /// Whether no program gets more privileges than the caller has (`PR_SET_NO_NEW_PRIVS`), so that sudo cannot work.
    pub no_new_privs: bool,
    /// Why the caller cannot change settings; `None` if it can, or if that is unknown.
    pub settings: Option<SettingsLock>,
}

/// The user who ran twtool, and the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Whether the caller is root.
    pub root: bool,
    /// What root can do here.
    pub power: RootPower,
    /// Whether the caller's network namespace is the initial one. Only the settings of the initial namespace come from files of
    /// sysctl.d(5). `false` if twtool cannot find out.
    pub in_initial_netns: bool,
    /// The word that starts twtool here: its name, or the path that the user typed.
    pub twtool: String,
    /// The word that starts twtool after `sudo`, whose search path may lack the folder of the executable.
    pub twtool_for_root: String,
    /// The arguments that the user typed.
    pub arguments: Vec<OsString>,
}

impl Default for Caller {
    /// An ordinary user who has twtool in the search path, in the initial network namespace.
    fn default() -> Self {
        Self {
            root: false,
            power: RootPower::default(),
            in_initial_netns: true,
            twtool: "twtool".into(),
            twtool_for_root: "twtool".into(),
            arguments: vec![],
        }
    }
}

/// The shell in which twtool ran, and the network namespace that it read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shell {
    /// The namespace given by `--netns` or `--container`; `None` for the caller's own.
    pub netns: Option<NetnsArg>,
    /// The caller.
    pub caller: Caller,
}

/// A suggested command, and its purpose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The line to type.
    pub command: String,
    /// What the command does, as an imperative without a full stop: `wait until the port is free`.
    pub purpose: String,
    /// Why the command fails in the caller's shell, if that is known: `needs CAP_NET_ADMIN, which root lacks here`.
    pub obstacle: Option<String>,
}

impl Step {
    /// A step with this command and purpose.
    pub fn new(line: Line, purpose: impl Into<String>) -> Self {
        Self { command: line.text, purpose: purpose.into(), obstacle: line.obstacle }
    }
}

/// A line to type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The words, quoted.
    pub text: String,
    /// Why the line fails in the caller's shell, if that is known.
    pub obstacle: Option<String>,
}

/// A line for a file of sysctl.d(5), so that a setting keeps its value after a restart of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SysctlLine {
    /// The file.
    pub file: String,
    /// The line: `key = value`.
    pub line: String,
}

/// Suggestions for a problem.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Suggestions {
    /// Commands to run, the most useful first.
    pub commands: Vec<Step>,
    /// Lines of files that keep a setting after a restart.
    pub sysctl_lines: Vec<SysctlLine>,
    /// Sentences: what else to do, and why.
    pub advice: Vec<String>,
}

impl Suggestions {
    /// Appends other suggestions to these.
    pub fn append(&mut self, other: Self) {
        self.commands.extend(other.commands);
        self.sysctl_lines.extend(other.sysctl_lines);
        self.advice.extend(other.advice);
    }
}

const RESERVED: &str = super::setting::IP_LOCAL_RESERVED_PORTS.name;

/// The maximum number of port ranges in a command. A longer command is unreadable.
const MAX_RANGES: usize = 100;

/// The maximum length in bytes of a line that a user copies into a file. For a longer line, twtool prints a command that writes the file.
pub const LONGEST_LINE: usize = 1000;

/// The number of bytes that sysctl(8) reads of a line in a file (procps 4.0.2).
const SYSCTL_READS: usize = 4096;

/// The privilege that a command needs. In a container, root may lack the capability or the permission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// Any user may run it.
    None,
    /// The user root. No capability is necessary.
    Root,
    /// Root with this capability.
    Capability(Capability),
    /// Root with the permission to write below /proc/sys/net.
    Settings,
}

impl Shell {
    /// The line that runs a program in the namespace. To enter another namespace, the line also needs root.
    #[must_use]
    pub fn run(&self, privilege: Privilege, words: &[&str]) -> Line {
        let enter: Vec<OsString> = match &self.netns {
            None => vec![],
            Some(NetnsArg::Name(name)) => vec!["ip".into(), "netns".into(), "exec".into(), name.into()],
            Some(NetnsArg::Path(path)) => {
                let mut option = OsString::from("--net=");
                option.push(path);
                vec!["nsenter".into(), option]
            }
            Some(NetnsArg::Process(pid) | NetnsArg::Container(_, pid)) => {
                vec!["nsenter".into(), format!("--net=/proc/{pid}/ns/net").into()]
            }
        };
        let enters = (!enter.is_empty()).then_some(Privilege::Capability(Capability::SysAdmin));
        let words = enter.iter().map(OsString::as_os_str).chain(words.iter().map(OsStr::new));
        let mut line = self.line(enters.unwrap_or(privilege), words);
        line.obstacle = line.obstacle.or_else(|| self.obstacle(privilege));
        line
    }

    /// The line that runs twtool itself on the namespace.
    #[must_use]
    pub fn twtool(&self, privilege: Privilege, words: &[&str]) -> Line {
        let netns = self.netns.as_ref().map(|netns| (netns.option(), netns.word()));
        // The words after `--` belong to another program.
        let end = words.iter().position(|word| *word == "--").unwrap_or(words.len());
        let (options, rest) = words.split_at(end);
        let program = if self.needs_sudo(privilege) { &self.caller.twtool_for_root } else { &self.caller.twtool };
        let words = std::iter::once(OsStr::new(program))
            .chain(options.iter().map(OsStr::new))
            .chain(netns.iter().flat_map(|(option, word)| [OsStr::new(option), word]))
            .chain(rest.iter().map(OsStr::new));
        self.line(privilege, words)
    }

    /// The user's command line with this privilege, and with one more flag after the name of the subcommand.
    #[must_use]
    pub fn again_with(&self, privilege: Privilege, subcommand: &str, flag: &str) -> Line {
        let Caller { twtool, twtool_for_root, arguments, .. } = &self.caller;
        let program = if self.needs_sudo(privilege) { twtool_for_root } else { twtool };
        let place = arguments.iter().position(|word| word == subcommand).map_or(0, |place| place + 1);
        let (before, behind) = arguments.split_at(place);
        let words = std::iter::once(OsStr::new(program))
            .chain(before.iter().map(OsString::as_os_str))
            .chain(std::iter::once(OsStr::new(flag)))
            .chain(behind.iter().map(OsString::as_os_str));
        self.line(privilege, words)
    }

    /// The command that sets a setting with a single value (`net.ipv4.tcp_timestamps`) until the next restart.
    #[must_use]
    pub fn set(&self, name: &str, value: &str) -> Line {
        self.run(Privilege::Settings, &["sysctl", "-w", &format!("{name}={value}")])
    }

    /// The suggestions that set a setting with a single value, now and after a restart.
    #[must_use]
    pub fn change(&self, name: &str, value: &str, purpose: &str) -> Suggestions {
        let commands = vec![Step::new(self.set(name, value), purpose)];
        Suggestions { commands, sysctl_lines: self.sysctl_line(name, value).into_iter().collect(), advice: vec![] }
    }

    /// The suggestions that reserve ports for servers, now and after a restart. `reserved`: the present list, if it is known.
    #[must_use]
    pub fn reserve(&self, ports: impl IntoIterator<Item = Port>, reserved: Option<&LocalReservedPorts>) -> Suggestions {
        let added = LocalReservedPorts::default().with(ports);
        let ranges = added.0.as_slice();
        let mut help = Suggestions::default();
        if ranges.is_empty() {
            return help;
        }
        if ranges.len() > MAX_RANGES {
            help.advice.push(format!(
                "These ports form {} ranges, too many for one command. Move the ephemeral range with \
                 net.ipv4.ip_local_port_range, or reserve the ports in several steps.",
                ranges.len()
            ));
            return help;
        }
        let what = if added.to_string().parse::<u16>().is_ok() { "port" } else { "ports" };
        let others = if reserved.is_some_and(|list| list.0.is_empty()) { "" } else { ", and keep the others reserved" };
        help.commands.push(Step::new(self.add_reserved(ranges), format!("reserve the {what}{others}")));
        let after = reserved.map(|reserved| reserved.with(ranges.iter().flat_map(|range| range.ports())));
        let Some(entry) = after.and_then(|list| self.sysctl_line(RESERVED, &list.to_string())) else { return help };
        if entry.line.len() > LONGEST_LINE {
            help.commands.push(Step::new(
                self.save_reserved(&entry.file),
                "then write the whole list to a file, which keeps it after a restart",
            ));
        }
        if entry.line.len() > SYSCTL_READS {
            help.advice.push(
                "Load the file with systemd-sysctl: it reads a list of more than 4 KB completely. sysctl -p keeps only the \
                 first 4 KB, and reports no error."
                    .into(),
            );
        }
        help.sysctl_lines.push(entry);
        help
    }

    /// The command that adds ports to the reserved ones, until the next restart.
    ///
    /// A write at the beginning of the file replaces the list; a write behind the beginning adds to it (`proc_do_large_bitmap` in
    /// kernel/sysctl.c). So the line first reads from the file, and then writes through the same descriptor. It does not contain the
    /// present list, so it is short and cannot be out of date. `sysctl -w` would replace the list, and would keep only about 4 KB of a
    /// longer list. Each range is one write(2), so that no shell splits a number.
    fn add_reserved(&self, ports: &[PortRange]) -> Line {
        let ranges: Vec<String> = ports.iter().map(ToString::to_string).collect();
        let write = match ranges.as_slice() {
            [range] => format!("echo {range} >&0"),
            ranges => format!("for p in {}; do echo $p >&0; done", ranges.join(" ")),
        };
        let script = format!("{{ read x; {write}; }} <>/proc/sys/net/ipv4/ip_local_reserved_ports");
        self.run(Privilege::Settings, &["sh", "-c", &script])
    }

    /// The line of a file that gives a setting this value at each start of the machine. `None` if the namespace is not the initial one.
    #[must_use]
    pub fn sysctl_line(&self, name: &str, value: &str) -> Option<SysctlLine> {
        let last = name.rsplit('.').next().unwrap_or(name);
        // If several files set a value, the last file in the order of names decides. This name comes after Debian's 99-sysctl.conf,
        // which is a link to /etc/sysctl.conf.
        let file = format!("/etc/sysctl.d/99-twtool-{last}.conf");
        let initial = self.netns.is_none() && self.caller.in_initial_netns;
        initial.then(|| SysctlLine { file, line: format!("{name} = {value}") })
    }

    /// The line that copies the kernel's list of reserved ports to a file, for a list that is too long to copy by hand. dd(1) gets the
    /// whole list, because it calls read(2) with 1 MiB; cat(1) calls read(2) with only 128 KiB.
    fn save_reserved(&self, file: &str) -> Line {
        let script = format!(
            "{{ printf '{RESERVED} = '; dd bs=1M count=1 2>/dev/null </proc/sys/net/ipv4/ip_local_reserved_ports; }} >{file}"
        );
        self.run(Privilege::Root, &["sh", "-c", &script])
    }

    fn needs_sudo(&self, privilege: Privilege) -> bool {
        privilege != Privilege::None && !self.caller.root
    }

    fn line<'a>(&self, privilege: Privilege, words: impl Iterator<Item = &'a OsStr>) -> Line {
        let sudo = self.needs_sudo(privilege).then_some(OsStr::new("sudo"));
        let words: Vec<Cow<str>> = sudo.into_iter().chain(words).map(quoted).collect();
        Line { text: words.join(" "), obstacle: self.obstacle(privilege) }
    }

    /// Why a command that needs this privilege fails here; `None` if no reason is known.
    ///
    /// A write to a setting needs no capability from uid 0 of the initial user namespace (`test_perm` in fs/proc/proc_sysctl.c), so
    /// twtool asks the kernel with access(2) whether the caller may write. A refusal is valid only for the caller itself in its
    /// own network namespace, not for a command that sudo starts.
    fn obstacle(&self, privilege: Privilege) -> Option<String> {
        let Caller { root, power, .. } = &self.caller;
        if self.needs_sudo(privilege) && power.no_new_privs {
            return Some("needs root, and sudo cannot work here: no_new_privs is set".into());
        }
        let lacks = |capability: Capability| {
            let who = if *root { "root lacks here" } else { "sudo cannot give here" };
            format!("needs {}, which {who}", capability.name())
        };
        let has = |capability| power.capabilities.is_none_or(|set| set.has(capability));
        match privilege {
            Privilege::None | Privilege::Root => None,
            Privilege::Settings => match power.settings {
                Some(SettingsLock::ReadOnly) => Some("cannot work here: /proc/sys/net is mounted read-only".into()),
                Some(SettingsLock::Refused) if *root && self.netns.is_none() => Some(lacks(Capability::NetAdmin)),
                Some(SettingsLock::Refused) | None => None,
            },
            Privilege::Capability(capability) => (!has(capability)).then(|| lacks(capability)),
        }
    }
}

/// Quotes a word for bash, unless the word is safe without quotes. A word gets ANSI-C quotes (`$'...'`) if it has bytes that are not
/// UTF-8, or characters that a terminal interprets or does not show, so that the line can be read and pasted.
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
mod tests;
