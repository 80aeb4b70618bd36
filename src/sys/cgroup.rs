//! Reads the control groups of processes and of sockets (cgroups(7)).
//!
//! - /proc/PID/cgroup has the paths of a process.
//! - sock_diag reports the cgroup in which a socket was created, as a number (`INET_DIAG_CGROUP_ID`), to every user. The number is
//!   the inode of the cgroup's folder in the unified hierarchy (cgroup v2). The cgroup stays the same when the socket is passed to
//!   another process. systemd creates the sockets of a socket unit in the cgroup of that unit
//!   (`socket_address_listen_in_cgroup` in systemd's src/core/socket.c). The systemd manager then holds these sockets open.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{DirEntryExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use super::errno::{if_present, retry};
use crate::model::container::Container;
use crate::model::name::text_of;

/// Finds the path of a process's cgroup in /proc/PID/cgroup, which has lines of the form `number:controllers:path`.
///
/// Returns the path in systemd's own hierarchy if cgroup v1 is mounted, otherwise the path in the unified hierarchy. If this path
/// names no container, but the path in another hierarchy names one, returns that path.
#[must_use]
pub fn path_of_process(cgroups: &[u8]) -> Option<String> {
    let fields = |line| {
        let mut fields = <[u8]>::splitn(line, 3, |byte| *byte == b':');
        Some((fields.next()?, fields.next()?, fields.next()?))
    };
    let lines: Vec<(&[u8], &[u8], &[u8])> = cgroups.split(|byte| *byte == b'\n').filter_map(fields).collect();
    let of_systemd = |controllers: &[u8]| controllers.split(|byte| *byte == b',').any(|one| one == b"name=systemd");
    let systemd = lines.iter().find(|(_, controllers, _)| of_systemd(controllers));
    let unified = || lines.iter().find(|(number, controllers, _)| *number == b"0" && controllers.is_empty());
    let usual = systemd.or_else(unified).map(|(_, _, path)| text_of(path));
    let all = lines.iter().map(|(_, _, path)| text_of(path));
    usual.clone().into_iter().chain(all).find(|path| Container::of_cgroup(path).is_some()).or(usual)
}

/// Finds the folder of the unified hierarchy. systemd mounts it at /sys/fs/cgroup, or at /sys/fs/cgroup/unified if it also mounts
/// cgroup v1.
#[must_use]
pub fn unified_hierarchy() -> Option<PathBuf> {
    /// `CGROUP2_SUPER_MAGIC` in linux/magic.h.
    const MAGIC: u64 = 0x6367_7270;
    let is_unified = |path: &PathBuf| {
        let mounted = retry(|| Ok(rustix::fs::statfs(path)?));
        mounted.is_ok_and(|mounted| u64::try_from(mounted.f_type).is_ok_and(|magic| magic == MAGIC))
    };
    ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(PathBuf::from).into_iter().find(is_unified)
}

/// The maximum number of folders of the hierarchy that a search reads.
const MAX_FOLDERS: usize = 20_000;

/// Finds the paths of cgroups by their numbers. A cgroup is not in the result if it has been removed, if this cgroup namespace does not
/// show it, or if the search ends before it reaches the cgroup (`MAX_FOLDERS`).
///
/// # Errors
/// A folder that still exists could not be read.
pub fn paths_of(ids: &BTreeSet<u64>) -> io::Result<BTreeMap<u64, String>> {
    let mut found = BTreeMap::new();
    let Some(root) = unified_hierarchy().filter(|_| !ids.is_empty()) else { return Ok(found) };
    // The loop below finds only folders inside the root. If a container has its own cgroup namespace, all its sockets can belong to
    // the root of that namespace.
    let own = if_present(retry(|| fs::metadata(&root)))?.map(|folder| folder.ino());
    found.extend(own.filter(|id| ids.contains(id)).map(|id| (id, "/".to_owned())));
    let mut unread = vec![root.clone()];
    for _ in 0..MAX_FOLDERS {
        let Some(folder) = unread.pop().filter(|_| found.len() < ids.len()) else { break };
        let Some(entries) = if_present(retry(|| fs::read_dir(&folder)))? else { continue };
        for entry in entries {
            let Some(entry) = if_present(entry)? else { break };
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let path = entry.path();
            if ids.contains(&entry.ino()) {
                found.insert(entry.ino(), below(&root, &path));
            }
            unread.push(path);
        }
    }
    Ok(found)
}

/// The path of a folder of the hierarchy, in the form of /proc/PID/cgroup.
fn below(root: &Path, folder: &Path) -> String {
    let relative = folder.strip_prefix(root).unwrap_or(folder);
    format!("/{}", text_of(relative.as_os_str().as_encoded_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_container_the_path_is_from_systemds_or_the_unified_hierarchy() {
        let path = |text: &[u8]| path_of_process(text);
        assert_eq!(path(b"0::/a:b\n").as_deref(), Some("/a:b"));
        assert_eq!(path(b"3:cpu,cpuacct:/x\n1:name=systemd:/unit\n0::/\n").as_deref(), Some("/unit"));
        assert_eq!(path(b"0::/\xff\n").as_deref(), Some(r"/\xff"));
        assert_eq!((path(b"3:cpu:/x\n"), path(b"0::"), path(b"")), (None, Some(String::new()), None));
        assert_eq!(path(b"0:cpu,:/x\n"), None);
    }

    #[test]
    fn the_cgroup_of_a_container_is_found_in_any_hierarchy() {
        let id = "0123456789abcdef".repeat(4);
        for (cgroups, path) in [
            ("0::/system.slice/docker-ID.scope\n", "/system.slice/docker-ID.scope"),
            ("12:pids:/docker/ID\n1:name=systemd:/docker/ID\n0::/\n", "/docker/ID"),
            ("12:pids:/docker/ID\n1:name=systemd:/docker/ID/init.scope\n0::/\n", "/docker/ID/init.scope"),
            ("3:cpu,cpuacct:/kubepods/besteffort/pod1/ID\n2:pids:/\n", "/kubepods/besteffort/pod1/ID"),
            ("3:cpu:/docker/ID\n1:name=systemd:/system.slice/docker.service\n0::/\n", "/docker/ID"),
        ] {
            let cgroups = cgroups.replace("ID", &id);
            assert_eq!(path_of_process(cgroups.as_bytes()), Some(path.replace("ID", &id)), "{cgroups}");
        }
        let none = b"2:pids:/docker/0123456789ab\n1:name=systemd:/system.slice/web.service\n";
        assert_eq!(path_of_process(none).as_deref(), Some("/system.slice/web.service"));
    }
}
