//! Every network namespace that can be found: through /run/netns and the processes of /proc.
//!
//! One that only a descriptor or a mount elsewhere keeps alive is not found. One that goes, or a process that ends, while
//! this looks is passed over, because it is gone.
//!
//! None is held open: each is opened when it is entered, so that a small limit of descriptors is enough.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::error::{NetnsErrorKind, gone};
use super::names::{OWN, given_names, id, own_id, path_of_name};
use super::open::{Handle, OpenNetns, open_file};
use super::processes::{comm, is_kernel_thread, namespace_of, process_name};
use crate::model::name::text_of;
use crate::model::netns::{Netns, NetnsId, NetnsName};
use crate::sys::errno::Refusal;
use crate::sys::folder::{metadata, pids, proc_gap};

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
    let at = |id, path: &Path| OpenNetns { netns: Netns { id, name: None }, handle: Handle::Path(path.to_owned()) };
    let own = own_id();
    match &own {
        Ok(id) => drop(found.insert(*id, at(*id, Path::new(OWN)))),
        Err(error) => unseen.push(format!("the network namespace of twtool itself: it cannot be opened: {error}")),
    }
    let own = own.ok();
    let names = given_names().unwrap_or_else(|error| {
        unseen.push(format!("network namespaces may be missing: /run/netns cannot be listed: {error}"));
        vec![]
    });
    for name in names {
        let path = path_of_name(&name);
        match open_file(&path) {
            Ok(opened) => {
                let id = opened.netns.id;
                let netns = &mut found.entry(id).or_insert_with(|| at(id, &path)).netns;
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
        match metadata(&path).map(|file| id(&file)) {
            Ok(id) => {
                let netns = &mut found.entry(id).or_insert_with(|| at(id, &path)).netns;
                if netns.name.is_none() {
                    match process_name(pid, id) {
                        Ok(name) => netns.name = name,
                        Err(error) => refused.push((pid, error)),
                    }
                }
            }
            Err(error) if gone(&error) => {}
            // The kernel's own threads are in the first namespace of all, and process 1 stands for that one.
            Err(_) if pid > 1 && is_kernel_thread(pid) => {}
            Err(error) => refused.push((pid, error)),
        }
    }
    unseen.extend(refusals(&refused));
    unseen.extend(match proc_gap() {
        Ok(None) => None,
        Ok(Some(gap)) => Some(format!("network namespaces may be missing that only processes are in: {gap}")),
        Err(error) => Some(format!("network namespaces may be missing: /proc cannot be looked into: {error}")),
    });
    let mut namespaces: Vec<OpenNetns> = found.into_values().collect();
    namespaces.sort_by(|a, b| {
        let rank = |open: &OpenNetns| (Some(open.netns.id) != own, open.netns.name.is_none());
        rank(a).cmp(&rank(b)).then_with(|| (&a.netns.name, a.netns.id).cmp(&(&b.netns.name, b.netns.id)))
    });
    Found { namespaces, unseen }
}

/// The processes that were not looked into, the first of them by name.
fn refusals(refused: &[(u32, io::Error)]) -> Option<String> {
    let (_, why) = refused.first()?;
    let called =
        |(pid, _): &(u32, io::Error)| comm(*pid).map_or_else(|_| pid.to_string(), |comm| format!("{pid}:{comm}"));
    let mut names: Vec<String> = refused.iter().take(NAMED).map(called).collect();
    if refused.len() > NAMED {
        names.push(format!("{} more", refused.len() - NAMED));
    }
    let advice = if Refusal::of(why) == Refusal::Refused {
        "; root or CAP_SYS_PTRACE may look into every /proc/PID/ns/net"
    } else {
        ""
    };
    Some(format!(
        "network namespaces may be missing: those of {} cannot be looked into: {why}{advice}",
        names.join(", ")
    ))
}
