//! Finds a container through the cgroups of its processes (cgroups(7)). No runtime is asked.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use procfs::process::Process;

use super::error::{NetnsError, NetnsErrorKind};
use crate::model::container::{Container, ContainerArg};
use crate::model::name::text_of;
use crate::sys::errno::{if_visible, retry};
use crate::sys::file;
use crate::sys::folder::pids;

/// The most bytes of /proc/PID/cgroup: a line for each hierarchy, with a path of at most 4096 bytes.
const MOST: u64 = 64 * 1024;

/// The process of a container that started first. Others may be in network namespaces of their own.
pub fn process_of_container(arg: &ContainerArg) -> Result<u32, NetnsError> {
    let failed = |why| NetnsError::new(arg, why);
    let mut found: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    let (mut others, mut names) = (vec![], BTreeMap::new());
    for pid in retry(pids).map_err(|error| failed(NetnsErrorKind::NotSearched(error)))? {
        let cgroups = cgroups_of(pid).map_err(|error| failed(NetnsErrorKind::NotSearched(error)))?;
        let Some(container) = container_in(&cgroups) else { continue };
        names.insert(container.id.to_owned(), container.text());
        if arg.selects(container) {
            found.entry(container.id.to_owned()).or_default().push(pid);
        } else {
            others.push(container.id.to_owned());
        }
    }
    let texts = |ids: Vec<String>| ids.into_iter().filter_map(|id| names.get(&id).cloned()).collect();
    let mut ids: Vec<String> = found.keys().cloned().collect();
    match ids.len() {
        0 => {
            others.sort_unstable();
            others.dedup();
            Err(failed(NetnsErrorKind::NoSuchContainer(texts(others))))
        }
        1 => {
            let pids = ids.pop().and_then(|id| found.remove(&id)).unwrap_or_default();
            let first = pids.into_iter().min_by_key(|pid| start_time(*pid).unwrap_or(u64::MAX));
            first.ok_or_else(|| failed(NetnsErrorKind::ProcessEnded))
        }
        _ => Err(failed(NetnsErrorKind::SeveralContainers(texts(ids)))),
    }
}

/// The file of a process that has ended, or that is hidden, is empty here.
fn cgroups_of(pid: u32) -> io::Result<String> {
    let bytes = if_visible(retry(|| file::read(Path::new(&format!("/proc/{pid}/cgroup")), MOST)))?;
    Ok(bytes.map(|bytes| text_of(&bytes)).unwrap_or_default())
}

/// The container in lines of the form `number:controllers:path`. With cgroup v1 each hierarchy has a line.
fn container_in(cgroups: &str) -> Option<Container<'_>> {
    cgroups.lines().find_map(|line| Container::of_cgroup(line.splitn(3, ':').nth(2)?))
}

/// In clock ticks since the machine started.
fn start_time(pid: u32) -> Option<u64> {
    Some(Process::new(i32::try_from(pid).ok()?).ok()?.stat().ok()?.starttime)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_found_in_any_hierarchy() {
        let id = "0123456789abcdef".repeat(4);
        for cgroups in [
            format!("0::/system.slice/docker-{id}.scope\n"),
            format!("12:pids:/docker/{id}\n1:name=systemd:/docker/{id}\n0::/\n"),
            format!("3:cpu,cpuacct:/kubepods/besteffort/pod1/{id}\n2:pids:/\n"),
            format!("0::/system.slice/containerd.service/kubepods-pod1.slice:cri-containerd:{id}\n"),
        ] {
            assert_eq!(container_in(&cgroups).map(|container| container.id), Some(id.as_str()), "{cgroups}");
        }
        for cgroups in ["", "0::/\n", "broken", "0::/user.slice/user-1000.slice/session-1.scope\n"] {
            assert_eq!(container_in(cgroups), None, "{cgroups}");
        }
    }
}
