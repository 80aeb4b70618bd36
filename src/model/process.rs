//! The owners of a socket: processes, a part of the kernel, or the reason why none was found.

use std::fmt;
use std::net::SocketAddr;

use super::container::{self, Container};
use super::user::User;

/// A process that has a socket open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// Its pid in the pid namespace of twtool.
    pub pid: i32,
    /// The command name of /proc/PID/stat (at most 15 bytes). The process chooses it, so escape it for a terminal.
    pub comm: String,
    /// The pid of its parent process. `None` if the parent could not be read, or is not in the pid namespace of twtool.
    pub parent: Option<i32>,
    /// Its path in the cgroup hierarchy, if it could be read.
    pub cgroup: Option<String>,
    /// Its effective user, if it could be read.
    pub user: Option<User>,
    /// Its arguments, with the name of the program, if they could be read. The process can change them.
    pub cmdline: Option<Vec<String>>,
    /// The socket unit whose socket this process holds, if the process is a systemd manager and the kernel shows the unit.
    pub socket_unit: Option<String>,
}

/// The systemd unit in a cgroup path: the last component with the suffix of a unit. This is an inference, because any program can choose
/// such a name.
#[must_use]
pub fn unit_of_cgroup(path: &str) -> Option<&str> {
    let ends = [".service", ".socket", ".scope", ".slice"];
    path.rsplit('/').find(|part| ends.iter().any(|end| part.ends_with(end)))
}

/// The container or the unit in a cgroup path, for a sentence: `docker container 0123456789ab`, `nginx.service`.
#[must_use]
pub fn place_of_cgroup(path: &str) -> Option<String> {
    let container = Container::of_cgroup(path).map(|container| container.text());
    container.or_else(|| unit_of_cgroup(path).map(str::to_owned))
}

impl Process {
    /// The socket unit whose socket the process holds as a systemd manager, otherwise the unit in its cgroup path.
    #[must_use]
    pub fn unit(&self) -> Option<&str> {
        self.socket_unit.as_deref().or_else(|| unit_of_cgroup(self.cgroup.as_deref()?))
    }

    /// The container in which the process runs, if its cgroup path names one.
    #[must_use]
    pub fn container(&self) -> Option<Container<'_>> {
        Container::of_cgroup(self.cgroup.as_deref()?)
    }

    /// The address to which the process forwards connections, if it is docker-proxy (also of rootless Docker).
    #[must_use]
    pub fn forwards_to(&self) -> Option<SocketAddr> {
        container::forward_target(&self.comm, self.cmdline.as_deref()?)
    }

    /// Whether the process is a systemd manager, which holds the sockets of its socket units.
    #[must_use]
    pub fn is_manager(&self) -> bool {
        self.comm == "systemd"
    }

    /// The container or the unit of the process, and the address to which it forwards connections, for a sentence.
    #[must_use]
    pub fn details(&self) -> Vec<String> {
        let place = match (&self.socket_unit, self.cgroup.as_deref()) {
            (Some(unit), _) => Some(unit.clone()),
            (None, cgroup) => cgroup.and_then(place_of_cgroup),
        };
        let forward = match self.forwards_to() {
            Some(to) => Some(format!("forwards to {to}")),
            // rootlessport gets the address from podman through standard input, so its arguments do not contain it.
            None => (self.comm == "rootlessport").then(|| "forwards to a container".to_owned()),
        };
        place.into_iter().chain(forward).collect()
    }

    /// The service that `systemctl stop` may stop to end this process: a system service that runs only its own processes. A service
    /// inside a container does not count, because `systemctl` would stop the service of the host with the same name.
    #[must_use]
    pub fn own_service(&self) -> Option<&str> {
        let mut parts = self.cgroup.as_deref()?.strip_prefix("/system.slice/")?.split('/');
        let unit = parts.next_back().filter(|unit| !unit.starts_with('-'))?;
        unit.strip_suffix(".service")?;
        let own = parts.all(|part| part.strip_suffix(".slice").is_some()) && !SHARED_SERVICES.contains(&unit);
        own.then_some(unit)
    }
}

/// Services that run containers, jobs or sessions. `systemctl stop` could also end those, so twtool does not propose
/// it.
const SHARED_SERVICES: [&str; 10] = [
    "atd.service",
    "containerd.service",
    "cron.service",
    "crond.service",
    "crio.service",
    "docker.service",
    "kubelet.service",
    "podman.service",
    "ssh.service",
    "sshd.service",
];

/// The maximum number of pids in a text. JSON has all of them.
const PIDS: usize = 20;

/// Returns texts like `nginx (pid 7, nginx.service)` and `worker (pids 7, 8, 9)`. Escape them before you write them to a terminal.
fn name_all(processes: &[Process]) -> Vec<String> {
    let mut groups: Vec<(&Process, Vec<String>)> = vec![];
    for process in processes {
        let same = |group: &&mut (&Process, Vec<String>)| {
            group.0.comm == process.comm && group.0.details() == process.details()
        };
        match groups.iter_mut().find(same) {
            Some((_, pids)) => pids.push(process.pid.to_string()),
            None => groups.push((process, vec![process.pid.to_string()])),
        }
    }
    let name = |(process, pids): &(&Process, Vec<String>)| {
        let word = if pids.len() == 1 { "pid" } else { "pids" };
        let shown = &pids[..pids.len().min(PIDS)];
        let more = if pids.len() > PIDS { format!(" and {} more", pids.len() - PIDS) } else { String::new() };
        let pids = format!("{word} {}{more}", shown.join(", "));
        let details = [vec![pids], process.details()].concat().join(", ");
        format!("{} ({details})", process.comm)
    };
    groups.iter().map(name).collect()
}

/// Which processes /proc shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Processes {
    /// Every process of the machine: /proc belongs to the initial pid namespace.
    All,
    /// The processes of one pid namespace, for example of a container. Other processes may exist outside it.
    OfPidNamespace,
}

/// A part of the kernel that has its own TCP sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum KernelPart {
    /// The listener of an MPTCP endpoint with a port (ip-mptcp(8)). The kernel lists the endpoint, so this is certain.
    MptcpEndpoint,
    /// Inferred: no process has the socket open, this module is loaded, and it uses this port.
    Module {
        /// What the module does, for example `NFS server`.
        does: &'static str,
        /// Its name in /sys/module.
        module: &'static str,
    },
}

/// The form for a sentence: `the kernel (MPTCP endpoint)`.
impl fmt::Display for KernelPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MptcpEndpoint => f.write_str("the kernel (MPTCP endpoint)"),
            Self::Module { does, module } => write!(f, "probably the kernel ({does}, module {module})"),
        }
    }
}

/// The owners of a socket, or the reason why they are unknown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owners {
    /// The kernel reports that no process has the socket open: a bucket, an orphan, or a connection that is not accepted yet.
    Nobody,
    /// These processes have the socket open. The socket is closed only when all of them have closed it.
    Found(Vec<Process>),
    /// The kernel itself uses the socket.
    Kernel(KernelPart),
    /// The caller has no permission to inspect some processes (that needs root, or CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH), and none
    /// of the inspected processes has the socket open.
    NotPermitted,
    /// Some processes could not be read although the caller has the permission, and none of the other processes has the socket open.
    NotRead,
    /// All of these processes were inspected, and none has the socket open.
    NotFound(Processes),
}

impl Owners {
    /// Whether the cgroup in which the socket was created is useful additional information.
    #[must_use]
    pub fn need_cgroup(&self) -> bool {
        match self {
            Self::Found(processes) => processes.iter().any(Process::is_manager),
            Self::NotPermitted | Self::NotRead | Self::NotFound(_) => true,
            Self::Nobody | Self::Kernel(_) => false,
        }
    }

    /// Names the socket unit whose socket a systemd manager holds: systemd creates the socket in the cgroup of the unit.
    pub fn name_socket_unit(&mut self, created_in: Option<&str>) {
        let Self::Found(processes) = self else { return };
        let Some(unit) = created_in.and_then(unit_of_cgroup).filter(|unit| unit.ends_with(".socket")) else { return };
        for manager in processes.iter_mut().filter(|process| process.is_manager()) {
            manager.socket_unit = Some(unit.to_owned());
        }
    }

    /// The owners for a sentence: a text for each group of processes with the same name and details, or one phrase if no process is known.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let unnamed = match self {
            Self::Found(processes) => return name_all(processes),
            Self::Nobody => "a socket that no process has open".to_owned(),
            Self::Kernel(part) => part.to_string(),
            Self::NotPermitted => "a process that this user has no permission to see".into(),
            Self::NotRead => "an unknown holder (not every process could be read)".into(),
            Self::NotFound(Processes::All) => "an unknown holder (no process found)".into(),
            Self::NotFound(Processes::OfPidNamespace) => {
                "an unknown holder (no process found in this pid namespace)".into()
            }
        };
        vec![unnamed]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: i32, comm: &str, cgroup: Option<&str>) -> Process {
        Process { pid, comm: comm.into(), cgroup: cgroup.map(str::to_owned), ..Process::default() }
    }

    #[test]
    fn the_unit_is_the_last_cgroup_component_that_names_a_unit() {
        let unit = |cgroup: &str| process(1, "x", Some(cgroup)).unit().map(str::to_owned);
        assert_eq!(unit("/system.slice/nginx.service").as_deref(), Some("nginx.service"));
        assert_eq!(unit("/system.slice/docker-abc.scope/app").as_deref(), Some("docker-abc.scope"));
        assert_eq!(unit("/"), None);
    }

    #[test]
    fn a_process_is_named_with_its_container_its_socket_unit_and_its_forwarding() {
        let names = |process: Process| Owners::Found(vec![process]).names().join(", ");
        let id = "0123456789abcdef".repeat(4);
        let nginx = process(7, "nginx", Some(&format!("/system.slice/docker-{id}.scope")));
        assert_eq!(names(nginx), "nginx (pid 7, docker container 0123456789ab)");
        let manager = Process { socket_unit: Some("ssh.socket".into()), ..process(1, "systemd", Some("/init.scope")) };
        assert_eq!(names(manager.clone()), "systemd (pid 1, ssh.socket)");
        assert_eq!(manager.unit(), Some("ssh.socket"));
        let words = "docker-proxy -container-ip fd00::2 -container-port 80".split(' ').map(str::to_owned).collect();
        let proxy =
            Process { cmdline: Some(words), ..process(9, "docker-proxy", Some("/system.slice/docker.service")) };
        assert_eq!(names(proxy), "docker-proxy (pid 9, docker.service, forwards to [fd00::2]:80)");
        assert_eq!(names(process(9, "rootlessport", None)), "rootlessport (pid 9, forwards to a container)");
    }

    #[test]
    fn only_a_system_service_that_runs_only_its_own_processes_may_be_stopped() {
        let service = |cgroup: &str| process(1, "x", Some(cgroup)).own_service().map(str::to_owned);
        assert_eq!(service("/system.slice/nginx.service").as_deref(), Some("nginx.service"));
        assert_eq!(service("/system.slice/system-x.slice/x@1.service").as_deref(), Some("x@1.service"));
        for other in [
            "/",
            "/lxc.payload.web/system.slice/nginx.service",
            "/system.slice/docker-abc.scope/system.slice/sshd.service",
            "/system.slice/docker.service",
            "/system.slice/--help.service",
            "/system.slice/a.service/b.service",
            "/user.slice/user-1000.slice/user@1000.service/app.slice/foo.service",
        ] {
            assert_eq!(service(other), None, "{other}");
        }
    }

    #[test]
    fn every_process_is_named_and_processes_with_equal_names_and_details_share_one_text() {
        let nginx = |pid| process(pid, "nginx", Some("/system.slice/nginx.service"));
        let processes = [nginx(7), process(8, "sh", None), nginx(9), process(10, "nginx", None)];
        let expected = ["nginx (pids 7, 9, nginx.service)", "sh (pid 8)", "nginx (pid 10)"];
        assert_eq!(Owners::Found(processes.to_vec()).names(), expected);
    }

    #[test]
    fn the_text_mentions_the_pid_namespace_only_if_proc_does_not_show_all_processes() {
        for owners in [Owners::NotFound(Processes::All), Owners::NotFound(Processes::OfPidNamespace)] {
            assert!(owners.names()[0].contains("no process found"), "{owners:?}");
        }
        assert!(!Owners::NotFound(Processes::All).names()[0].contains("namespace"));
    }
}
