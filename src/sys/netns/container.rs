//! Finds a container through the cgroups of its processes (cgroups(7)), without its container runtime.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use procfs::process::Process;

use super::error::{NetnsError, NetnsErrorKind};
use crate::model::container::{Container, ContainerArg};
use crate::sys::errno::{if_visible, retry};
use crate::sys::folder::pids;
use crate::sys::{cgroup, file};

/// The maximum size of /proc/PID/cgroup in bytes: a line for each hierarchy, with a path of at most 4096 bytes.
const MAX_BYTES: u64 = 64 * 1024;

/// Returns the pid of the oldest process of a container. The younger processes may be in other network namespaces.
pub fn process_of_container(arg: &ContainerArg) -> Result<u32, NetnsError> {
    let failed = |why| NetnsError::new(arg, why);
    // The oldest process of each selected container: its start time in clock ticks, and its pid.
    let mut found: BTreeMap<String, (u64, u32)> = BTreeMap::new();
    let (mut others, mut names) = (BTreeSet::new(), BTreeMap::new());
    for pid in retry(pids).map_err(|error| failed(NetnsErrorKind::NotSearched(error)))? {
        let path = cgroup_of(pid).map_err(|error| failed(NetnsErrorKind::NotSearched(error)))?;
        let Some(container) = path.as_deref().and_then(Container::of_cgroup) else { continue };
        names.insert(container.id.to_owned(), container.text());
        if arg.selects(container) {
            let process = (start_time(pid).unwrap_or(u64::MAX), pid);
            found.entry(container.id.to_owned()).and_modify(|first| *first = process.min(*first)).or_insert(process);
        } else {
            others.insert(container.id.to_owned());
        }
    }
    let text = |id: &String| names.get(id).cloned();
    match (found.len(), found.first_key_value()) {
        (1, Some((_, (_, pid)))) => Ok(*pid),
        (_, Some(_)) => Err(failed(NetnsErrorKind::SeveralContainers(found.keys().filter_map(text).collect()))),
        (_, None) => Err(failed(NetnsErrorKind::NoSuchContainer(others.iter().filter_map(text).collect()))),
    }
}

/// The path of the cgroup of a process; `None` if the process has ended or is hidden.
fn cgroup_of(pid: u32) -> io::Result<Option<String>> {
    let bytes = if_visible(retry(|| file::read(Path::new(&format!("/proc/{pid}/cgroup")), MAX_BYTES)))?;
    Ok(bytes.and_then(|bytes| cgroup::path_of_process(&bytes)))
}

fn start_time(pid: u32) -> Option<u64> {
    Some(Process::new(i32::try_from(pid).ok()?).ok()?.stat().ok()?.starttime)
}
