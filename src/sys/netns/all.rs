//! Lists the network namespaces that have a name in /run/netns or a process in /proc.
//!
//! A namespace is not found if only an open descriptor, another mount, or a thread other than a main thread keeps it alive. A
//! namespace or a process that ends during the search is skipped.
//!
//! The search holds no namespace open. Each is opened when it is entered, so that a small limit of descriptors is
//! enough.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::error::{NetnsErrorKind, is_absent, who_reads_namespaces};
use super::names::{OWN, id, ip_netns_names, own_id, path_of_name};
use super::open::{Handle, OpenNetns, open_file};
use super::processes::{comm, is_kernel_thread, namespace_of, process_name};
use crate::model::name::text_of;
use crate::model::netns::{Netns, NetnsId, NetnsName};
use crate::sys::errno::FailureClass;
use crate::sys::folder::{metadata, pids, proc_gap};

/// The maximum number of processes that one warning names.
const NAMED_PROCESSES: usize = 8;

/// The network namespaces that [`all`] found, and what it could not read.
#[derive(Debug)]
pub struct NetnsList {
    /// Each namespace once, in this order: the namespace of the caller, namespaces with a name of ip-netns(8) (sorted by name),
    /// namespaces that are named after a process (sorted by pid), and namespaces without a name.
    pub namespaces: Vec<OpenNetns>,
    /// Sentences that say what could not be read, and why.
    pub unseen: Vec<String>,
}

/// Lists every network namespace that can be found.
#[must_use]
pub fn all() -> NetnsList {
    let mut found: BTreeMap<NetnsId, OpenNetns> = BTreeMap::new();
    let mut unseen = vec![];
    let at = |id, path: &Path| OpenNetns { netns: Netns { id, name: None }, handle: Handle::Path(path.to_owned()) };
    let own = own_id();
    match &own {
        Ok(id) => drop(found.insert(*id, at(*id, Path::new(OWN)))),
        Err(error) => unseen.push(format!("the network namespace of twtool itself cannot be opened: {error}")),
    }
    let own = own.ok();
    let names = ip_netns_names().unwrap_or_else(|error| {
        unseen.push(format!("network namespaces may be missing: /run/netns cannot be listed: {error}"));
        vec![]
    });
    for name in names {
        let path = path_of_name(&name);
        match open_file(&path) {
            Ok(opened) => {
                let id = opened.netns.id;
                let netns = &mut found.entry(id).or_insert_with(|| at(id, &path)).netns;
                netns.name.get_or_insert(NetnsName::FromIpNetns(name));
            }
            // The file in /run/netns remains, but its namespace is gone.
            Err(NetnsErrorKind::NotNetns(_)) => {}
            Err(NetnsErrorKind::NotOpened(error)) if is_absent(&error) => {}
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
            Err(error) if is_absent(&error) => {}
            // Kernel threads are in the initial namespace, as process 1 usually is.
            Err(_) if pid > 1 && is_kernel_thread(pid) => {}
            Err(error) => refused.push((pid, error)),
        }
    }
    unseen.extend(refusals(&refused));
    unseen.extend(match proc_gap() {
        Ok(None) => None,
        Ok(Some(gap)) => Some(format!("network namespaces without a name in /run/netns may be missing: {gap}")),
        Err(error) => Some(format!("network namespaces may be missing: /proc cannot be read: {error}")),
    });
    let mut namespaces: Vec<OpenNetns> = found.into_values().collect();
    namespaces.sort_by(|a, b| {
        let rank = |open: &OpenNetns| (Some(open.netns.id) != own, open.netns.name.is_none());
        rank(a).cmp(&rank(b)).then_with(|| (&a.netns.name, a.netns.id).cmp(&(&b.netns.name, b.netns.id)))
    });
    NetnsList { namespaces, unseen }
}

fn refusals(refused: &[(u32, io::Error)]) -> Option<String> {
    let (_, why) = refused.first()?;
    let called =
        |(pid, _): &(u32, io::Error)| comm(*pid).map_or_else(|_| pid.to_string(), |comm| format!("{pid}:{comm}"));
    let mut names: Vec<String> = refused.iter().take(NAMED_PROCESSES).map(called).collect();
    if refused.len() > NAMED_PROCESSES {
        names.push(format!("{} more", refused.len() - NAMED_PROCESSES));
    }
    let advice = if FailureClass::of(why) == FailureClass::Refused {
        format!("; {}", who_reads_namespaces())
    } else {
        String::new()
    };
    let namespaces = if refused.len() == 1 { "the namespace" } else { "the namespaces" };
    Some(format!(
        "network namespaces may be missing: {namespaces} of {} cannot be read: {why}{advice}",
        names.join(", ")
    ))
}
