//! Every network namespace that can be found: through /run/netns and the processes of /proc.
//!
//! One that only a descriptor or a mount elsewhere keeps alive is not found. One that goes, or a process that ends, while
//! this looks is passed over, for it is gone.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use procfs::process::Process;

use super::open::open_file;
use super::{NetnsErrorKind, OWN, OpenNetns, given_names, id, own_id, path_of_name};
use crate::model::name::text_of;
use crate::model::netns::{NetnsId, NetnsName};
use crate::sys::file;

/// The most processes that one warning names.
const NAMED: usize = 8;

/// What [`all`] finds.
#[derive(Debug)]
pub struct Found {
    /// Each namespace once: the caller's own, those that ip-netns(8) names in the order of their names, then in that of
    /// their first processes.
    pub namespaces: Vec<OpenNetns>,
    /// What could not be looked into, and why, a sentence each. Empty: these are all.
    pub unseen: Vec<String>,
}

/// Finds them.
#[must_use]
pub fn all() -> Found {
    let mut found: BTreeMap<NetnsId, OpenNetns> = BTreeMap::new();
    let mut unseen = vec![];
    let own = own_id();
    match open_file(Path::new(OWN)) {
        Ok(opened) => drop(found.insert(opened.netns.id, opened)),
        Err(why) => unseen.push(format!("the network namespace of twtool itself: {why}")),
    }
    let names = given_names().unwrap_or_else(|error| {
        unseen.push(format!("network namespaces may be missing: /run/netns cannot be listed: {error}"));
        vec![]
    });
    for name in names {
        match open_file(&path_of_name(&name)) {
            Ok(opened) => {
                let netns = &mut found.entry(opened.netns.id).or_insert(opened).netns;
                netns.name.get_or_insert(NetnsName::Given(name));
            }
            // A name whose namespace has gone.
            Err(NetnsErrorKind::AnotherThing(_)) => {}
            Err(NetnsErrorKind::NotOpened(error)) if gone(&error) => {}
            Err(why) => unseen.push(format!("network namespace '{}': {why}", text_of(name.as_bytes()))),
        }
    }
    let mut refused: Vec<(u32, io::Error)> = vec![];
    let pids = pids().unwrap_or_else(|error| {
        unseen.push(format!("network namespaces may be missing: /proc cannot be listed: {error}"));
        vec![]
    });
    for pid in pids {
        let path = namespace_of(pid);
        // Most processes are in a namespace that is known already.
        let opened = match fs::metadata(&path).map(|file| id(&file)) {
            Ok(id) if found.contains_key(&id) => Ok(id),
            Ok(_) => open_file(&path).map(|opened| {
                let id = opened.netns.id;
                found.entry(id).or_insert(opened);
                id
            }),
            Err(error) => Err(NetnsErrorKind::NotOpened(error)),
        };
        match opened {
            Ok(id) => {
                if let Some(opened) = found.get_mut(&id)
                    && opened.netns.name.is_none()
                {
                    opened.netns.name = process_name(pid, id);
                }
            }
            Err(NetnsErrorKind::NotOpened(error)) if gone(&error) => {}
            // The kernel's own threads are in the first namespace of all, and process 1 stands for that one.
            Err(NetnsErrorKind::NotOpened(_)) if pid > 1 && is_kernel_thread(pid) => {}
            Err(NetnsErrorKind::NotOpened(error)) => refused.push((pid, error)),
            Err(_) => {}
        }
    }
    unseen.extend(said(&refused));
    // Every pid namespace has a process 1.
    if !Path::new("/proc/1").exists() {
        unseen.push(
            "/proc hides the processes of other users (hidepid): network namespaces may be missing that only they are in"
                .into(),
        );
    }
    let mut namespaces: Vec<OpenNetns> = found.into_values().collect();
    namespaces.sort_by(|a, b| {
        let rank = |open: &OpenNetns| (Some(open.netns.id) != own, open.netns.name.is_none());
        rank(a).cmp(&rank(b)).then_with(|| (&a.netns.name, a.netns.id).cmp(&(&b.netns.name, b.netns.id)))
    });
    Found { namespaces, unseen }
}

/// The processes that were not looked into, the first of them by name.
fn said(refused: &[(u32, io::Error)]) -> Option<String> {
    let (_, why) = refused.first()?;
    let called =
        |(pid, _): &(u32, io::Error)| comm(*pid).map_or_else(|| pid.to_string(), |comm| format!("{pid}:{comm}"));
    let mut names: Vec<String> = refused.iter().take(NAMED).map(called).collect();
    if refused.len() > NAMED {
        names.push(format!("{} more", refused.len() - NAMED));
    }
    Some(format!(
        "network namespaces may be missing: those of {} cannot be looked into: {why}; root or CAP_SYS_PTRACE may look into \
         every /proc/PID/ns/net",
        names.join(", ")
    ))
}

fn namespace_of(pid: u32) -> PathBuf {
    format!("/proc/{pid}/ns/net").into()
}

/// The numbers of all processes, the lowest first.
fn pids() -> io::Result<Vec<u32>> {
    let names: Vec<OsString> = fs::read_dir("/proc")?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<_>>()?;
    // Other names in /proc are not numbers.
    let mut pids: Vec<u32> = names.iter().filter_map(|name| name.to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    Ok(pids)
}

fn comm(pid: u32) -> Option<String> {
    let comm = file::read(Path::new(&format!("/proc/{pid}/comm")), 4096).ok()?;
    Some(text_of(comm.strip_suffix(b"\n").unwrap_or(&comm)))
}

/// PF_KTHREAD of include/linux/sched.h, in the `flags` of proc_pid_stat(5).
fn is_kernel_thread(pid: u32) -> bool {
    const PF_KTHREAD: u32 = 0x0020_0000;
    let stat = i32::try_from(pid).ok().and_then(|pid| Process::new(pid).ok()?.stat().ok());
    stat.is_some_and(|stat| stat.flags & PF_KTHREAD != 0)
}

/// What a process names its namespace, if it is in this one. twtool itself names none: it has ended when that is read.
pub(super) fn process_name(pid: u32, netns: NetnsId) -> Option<NetnsName> {
    let in_it = || fs::metadata(namespace_of(pid)).is_ok_and(|file| id(&file) == netns);
    if pid == std::process::id() || !in_it() {
        return None;
    }
    Some(NetnsName::FirstProcess { pid, comm: comm(pid)? })
}

/// The lowest-numbered process in a namespace.
pub(super) fn first_process(netns: NetnsId) -> Option<NetnsName> {
    pids().ok()?.into_iter().find_map(|pid| process_name(pid, netns))
}

/// Whether a failure says that it is not there any more: ESRCH is what /proc gives for a process that ended while its
/// folder was open.
pub(super) fn gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
}
