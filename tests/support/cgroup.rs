//! Makes control groups for a test, if the machine allows it. A group is made in the unified hierarchy. If systemd's hierarchy
//! (/sys/fs/cgroup/systemd) is mounted, the group is made there, too, because twtool prefers that hierarchy.

use std::fs;
use std::io;
use std::path::PathBuf;

use twtool::sys::cgroup;

/// A cgroup in a parent of its own. Dropping this value removes the cgroup and its parent. By then, the processes of the cgroup must have
/// ended or left.
pub(crate) struct Cgroup {
    folders: Vec<PathBuf>,
    parent: String,
}

impl Cgroup {
    pub(crate) fn make(name: &str) -> Result<Self, String> {
        let unified = cgroup::unified_hierarchy().ok_or("cgroup v2 is not mounted")?;
        let systemd = PathBuf::from("/sys/fs/cgroup/systemd");
        let parent = format!("twtool-test-{}-{name}.slice", std::process::id());
        let roots = [unified].into_iter().chain(systemd.join("cgroup.procs").exists().then_some(systemd));
        let made = Self { folders: roots.map(|root| root.join(&parent).join(name)).collect(), parent };
        for folder in &made.folders {
            fs::create_dir_all(folder).map_err(|error| format!("making a cgroup: {error}"))?;
        }
        Ok(made)
    }

    /// The path of the cgroup, as /proc/PID/cgroup shows it.
    pub(crate) fn path(&self) -> String {
        let name = self.folders[0].file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        format!("/{}/{name}", self.parent)
    }

    /// The files to which a process writes its ID to move into this cgroup.
    pub(crate) fn files(&self) -> Vec<String> {
        self.folders.iter().map(|folder| folder.join("cgroup.procs").to_string_lossy().into_owned()).collect()
    }

    /// The `cgroup.procs` files of the root cgroups. A process writes its ID to them to leave this cgroup.
    pub(crate) fn root_files(&self) -> Vec<String> {
        let root = |folder: &PathBuf| folder.parent()?.parent().map(|root| root.join("cgroup.procs"));
        self.folders.iter().filter_map(root).map(|file| file.to_string_lossy().into_owned()).collect()
    }

    pub(crate) fn add(&self, pid: u32) -> io::Result<()> {
        self.files().iter().try_for_each(|file| fs::write(file, pid.to_string()))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for folder in &self.folders {
            // A process that has just ended can still be in the cgroup for a moment.
            for _ in 0..200 {
                if fs::remove_dir(folder).is_ok() {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            let _ = folder.parent().map(fs::remove_dir);
        }
    }
}
