//! Reads the capabilities and the user ids of threads (proc_pid_status(5)), and drops capabilities (capabilities(7)).

use std::fmt::Display;
use std::io;
use std::path::Path;

use super::errno::retry;
use super::file;
use crate::model::health::Capabilities;

/// The maximum size of a status file in bytes. One line lists the supplementary groups, and a thread can have 65,536 of them.
const MAX_BYTES: u64 = 1 << 20;

/// Reads /proc/thread-self/status. The content is not always UTF-8, because it contains the name of the program.
pub fn status() -> io::Result<Vec<u8>> {
    status_of("thread-self")
}

/// Reads /proc/THREAD/status. `thread` is the number of a thread, or `thread-self`.
pub fn status_of(thread: impl Display) -> io::Result<Vec<u8>> {
    retry(|| file::read(Path::new(&format!("/proc/{thread}/status")), MAX_BYTES))
}

/// Reads the effective capabilities of the calling thread.
pub fn effective() -> io::Result<Capabilities> {
    parse(&status()?).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it has no line CapEff"))
}

/// A task for which a confined process needs capabilities.
#[cfg(feature = "cli")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Reading the descriptors of processes of other users, to name the owners of sockets.
    OwnersOfSockets,
    /// Entering other network namespaces (setns(2)).
    OtherNamespaces,
    /// Reading files of other users.
    ReadingFiles,
    /// Reading the counters of a BPF program (bpf(2)), before Linux 5.19.
    #[cfg(feature = "exporter")]
    CountersOfBpf,
}

#[cfg(feature = "cli")]
impl Need {
    const fn capabilities(self) -> &'static [(rustix::thread::CapabilitySet, &'static str)] {
        use rustix::thread::CapabilitySet as Set;
        match self {
            // The folder /proc/PID/fd belongs to the user of the process and has the mode 0500.
            Self::OwnersOfSockets => {
                &[(Set::SYS_PTRACE, "CAP_SYS_PTRACE"), (Set::DAC_READ_SEARCH, "CAP_DAC_READ_SEARCH")]
            }
            Self::OtherNamespaces => &[(Set::SYS_ADMIN, "CAP_SYS_ADMIN")],
            Self::ReadingFiles => &[(Set::DAC_READ_SEARCH, "CAP_DAC_READ_SEARCH")],
            #[cfg(feature = "exporter")]
            Self::CountersOfBpf => &[(Set::BPF, "CAP_BPF")],
        }
    }
}

/// Drops every capability of the calling thread that none of the tasks needs, and returns the names of the remaining capabilities.
/// Other threads that already run keep their capabilities.
#[cfg(feature = "cli")]
pub fn keep_only(needs: &[Need]) -> io::Result<Vec<&'static str>> {
    use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};
    let permitted = capabilities(None)?.permitted;
    let mut needed: Vec<_> = needs.iter().flat_map(|need| need.capabilities()).copied().collect();
    // Root of a container often has CAP_DAC_OVERRIDE, but not CAP_DAC_READ_SEARCH. CAP_DAC_OVERRIDE also allows writing, so twtool
    // keeps it only as a replacement.
    let reads = |(one, _): &(CapabilitySet, _)| *one == CapabilitySet::DAC_READ_SEARCH;
    if needed.iter().any(reads) && !permitted.contains(CapabilitySet::DAC_READ_SEARCH) {
        needed.push((CapabilitySet::DAC_OVERRIDE, "CAP_DAC_OVERRIDE"));
    }
    needed.retain(|(one, _)| permitted.contains(*one));
    let held = needed.iter().fold(CapabilitySet::empty(), |set, (one, _)| set | *one);
    set_capabilities(None, CapabilitySets { effective: held, permitted: held, inheritable: CapabilitySet::empty() })?;
    Ok(needed.into_iter().map(|(_, name)| name).collect())
}

/// Runs a function while the calling thread has no effective capability.
#[cfg(feature = "exporter")]
pub fn without_effective<T>(run: impl FnOnce() -> T) -> io::Result<T> {
    use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};
    let held = capabilities(None)?;
    set_capabilities(None, CapabilitySets { effective: CapabilitySet::empty(), ..held })?;
    let result = run();
    set_capabilities(None, held)?;
    Ok(result)
}

/// The effective uid of the calling thread.
#[must_use]
pub fn effective_user() -> u32 {
    nix::unistd::geteuid().as_raw()
}

/// Parses the effective capabilities in a status file: the hexadecimal mask of the line `CapEff:`.
#[must_use]
pub fn parse(status: &[u8]) -> Option<Capabilities> {
    parse_set(status, "CapEff:")
}

/// Parses the bounding set in a status file: the line `CapBnd:`, which limits the capabilities that a thread can get from a file by
/// execve(2).
#[must_use]
pub fn parse_bounding(status: &[u8]) -> Option<Capabilities> {
    parse_set(status, "CapBnd:")
}

/// Parses no_new_privs in a status file (`NoNewPrivs:`, since Linux 4.10). If true, execve(2) never adds privileges. `None`: unknown.
#[must_use]
pub fn parse_no_new_privs(status: &[u8]) -> Option<bool> {
    match field(status, "NoNewPrivs:")? {
        b"0" => Some(false),
        b"1" => Some(true),
        _ => None,
    }
}

/// Parses the effective id in a line of a status file: `Uid: real effective saved filesystem`, or a line `Gid:` of the same form.
#[must_use]
pub fn effective_id(status: &[u8], name: &str) -> Option<u32> {
    str::from_utf8(field(status, name)?).ok()?.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// Finds the line of a status file that begins with `name`, and returns its value.
#[must_use]
pub fn field<'a>(status: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let value = |line: &'a [u8]| Some(line.strip_prefix(name.as_bytes())?.trim_ascii());
    status.split(|byte| *byte == b'\n').find_map(value)
}

fn parse_set(status: &[u8], name: &str) -> Option<Capabilities> {
    let mask = field(status, name)?;
    let digits = mask.iter().all(u8::is_ascii_hexdigit);
    u64::from_str_radix(str::from_utf8(mask).ok()?, 16).ok().filter(|_| digits).map(Capabilities)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_set_is_read_from_its_own_line() {
        let status = b"Name:\t\xff\nCapPrm:\t0000000000003000\nCapEff:\t0000000000001000\nCapBnd:\t000001ffffffffff\nNoNewPrivs:\t1\n";
        assert_eq!(parse(status), Some(Capabilities(0x1000)));
        assert_eq!(parse_bounding(status), Some(Capabilities(0x1ff_ffff_ffff)));
        assert_eq!(parse_no_new_privs(status), Some(true));
        assert_eq!(parse_no_new_privs(b"NoNewPrivs:\t0\n"), Some(false));
        assert_eq!(parse_no_new_privs(b"Name:\tsh\n"), None);
        assert_eq!(parse(b"Name:\tsh\n"), None);
        assert_eq!(parse(b"CapEff:\tx\n"), None);
        assert_eq!(parse(b"CapEff:\t+1\n"), None);
    }

    #[test]
    fn effective_id_is_the_second_number_of_its_line() {
        let uid = |status: &[u8]| effective_id(status, "Uid:");
        assert_eq!(uid(b"Name:\tUid:\nUid:\t1000\t33\t34\t35\nGid:\t1\t2\t3\t4\n"), Some(33));
        assert_eq!((uid(b"Name:\tx\n"), uid(b"Uid:\t1000\n")), (None, None));
    }
}
