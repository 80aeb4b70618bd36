//! Who has a socket open, and what can be said when nobody is found.

/// A process that has a socket open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number in our pid namespace.
    pub pid: i32,
    /// The command name of /proc/PID/stat (15 bytes at most). Chosen by the process: escape it before a terminal sees it.
    pub comm: String,
    /// Its path in the cgroup hierarchy, where one could be read.
    pub cgroup: Option<String>,
}

impl Process {
    /// The systemd unit in the cgroup path: the last component that ends like one. An inference from systemd's naming.
    #[must_use]
    pub fn unit(&self) -> Option<&str> {
        let ends = [".service", ".socket", ".scope", ".slice"];
        self.cgroup.as_deref()?.rsplit('/').find(|part| ends.iter().any(|end| part.ends_with(end)))
    }
}

/// What is known of the owners of a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owners {
    /// The kernel says that no process has it open: a bucket, an orphan, a connection not accepted yet.
    Nobody,
    /// These processes have it open.
    Found(Vec<Process>),
    /// Some processes may not be looked into (that needs root or CAP_SYS_PTRACE), and none of the others has it.
    NotPermitted,
    /// Every process that we see was looked into, and none has it: another pid namespace, or the kernel itself.
    NotVisible,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_is_the_last_cgroup_component_that_names_one() {
        let unit = |cgroup: &str| {
            let process = Process { pid: 1, comm: "x".into(), cgroup: Some(cgroup.into()) };
            process.unit().map(str::to_owned)
        };
        assert_eq!(unit("/system.slice/nginx.service").as_deref(), Some("nginx.service"));
        assert_eq!(unit("/system.slice/docker-abc.scope/app").as_deref(), Some("docker-abc.scope"));
        assert_eq!(unit("/"), None);
    }
}
