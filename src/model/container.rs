//! Finds the container of a process in the path of the process's cgroup.
//!
//! Each runtime gives the cgroup of a container a name with the container's id. The form depends on the runtime and on its
//! cgroup driver (systemd or cgroupfs):
//!
//! | runtime | last component of the container's own cgroup |
//! |---|---|
//! | docker | `docker-ID.scope`, or `ID` in a cgroup `docker` |
//! | podman | `libpod-ID.scope`, `libpod-ID`, or `libpod-payload-ID` |
//! | containerd | `cri-containerd-ID.scope`, `nerdctl-ID.scope`, or `SLICE:cri-containerd:ID` |
//! | cri-o | `crio-ID.scope` or `crio-ID` |
//! | kubelet with cgroupfs, and others | `ID`: the path does not name the runtime |
//!
//! `libpod-conmon-ID.scope` and `crio-conmon-ID.scope` do not count: they contain conmon, which watches a container from outside.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

/// A program that runs containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "their names")]
pub enum Runtime {
    Docker,
    Podman,
    Containerd,
    CriO,
}

impl Runtime {
    /// The name that scripts see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
            Self::Containerd => "containerd",
            Self::CriO => "cri-o",
        }
    }
}

/// A container, inferred from the name of a cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Container<'a> {
    /// The runtime that runs the container, if the name of the cgroup shows it.
    pub runtime: Option<Runtime>,
    /// The id of the container: 64 hexadecimal digits.
    pub id: &'a str,
}

const ID_DIGITS: usize = 64;

/// As in `docker ps` and `podman ps`.
const SHORT_ID_DIGITS: usize = 12;

/// The names of cgroups that consist of a prefix and an id, with or without the suffix `.scope`.
const PREFIXES: [(&str, Runtime); 6] = [
    ("docker-", Runtime::Docker),
    ("libpod-payload-", Runtime::Podman),
    ("libpod-", Runtime::Podman),
    ("cri-containerd-", Runtime::Containerd),
    ("nerdctl-", Runtime::Containerd),
    ("crio-", Runtime::CriO),
];

impl<'a> Container<'a> {
    /// The innermost container of a process, from its path in the cgroup hierarchy.
    #[must_use]
    pub fn of_cgroup(path: &'a str) -> Option<Self> {
        let parts: Vec<&str> = path.split('/').collect();
        (0..parts.len()).rev().find_map(|at| Self::of_component(parts[at], at.checked_sub(1).map(|above| parts[above])))
    }

    fn of_component(name: &'a str, parent: Option<&str>) -> Option<Self> {
        if is_id(name) {
            return Some(Self { runtime: (parent == Some("docker")).then_some(Runtime::Docker), id: name });
        }
        if let Some((_, id)) = name.rsplit_once(":cri-containerd:") {
            return is_id(id).then_some(Self { runtime: Some(Runtime::Containerd), id });
        }
        let name = name.strip_suffix(".scope").unwrap_or(name);
        let fits = |(prefix, runtime): (&str, Runtime)| {
            let id = name.strip_prefix(prefix).filter(|id| is_id(id))?;
            Some(Self { runtime: Some(runtime), id })
        };
        PREFIXES.into_iter().find_map(fits)
    }

    /// The form for a sentence: `docker container 0123456789ab`.
    #[must_use]
    pub fn text(&self) -> String {
        let runtime = self.runtime.map_or(String::new(), |runtime| format!("{} ", runtime.name()));
        format!("{runtime}container {}", self.short_id())
    }

    /// The start of the id, as `docker ps` shows it.
    #[must_use]
    pub fn short_id(&self) -> &'a str {
        &self.id[..SHORT_ID_DIGITS]
    }
}

fn is_id(text: &str) -> bool {
    text.len() == ID_DIGITS && is_hexadecimal(text)
}

fn is_hexadecimal(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// The id of a container as the user typed it: the whole id, or its first digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerArg(String);

impl ContainerArg {
    /// Whether the typed id selects this container.
    #[must_use]
    pub fn selects(&self, container: Container) -> bool {
        container.id.starts_with(&self.0)
    }
}

impl FromStr for ContainerArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if !text.is_empty() && text.len() <= ID_DIGITS && is_hexadecimal(text) {
            return Ok(Self(text.to_owned()));
        }
        Err("write the id of the container, or its first digits: 1-64 digits of 0-9 and a-f; only the container \
             runtime knows names (`docker ps`, `podman ps`, `crictl ps` show the ids)"
            .into())
    }
}

impl fmt::Display for ContainerArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The address of a container to which docker-proxy forwards connections, from its arguments.
#[must_use]
pub fn forward_target(comm: &str, cmdline: &[String]) -> Option<SocketAddr> {
    // `rootlesskit-doc` is the comm of rootlesskit-docker-proxy, because a comm has at most 15 bytes.
    if !matches!(comm, "docker-proxy" | "rootlesskit-doc") {
        return None;
    }
    let value = |flag: &str| cmdline.windows(2).find(|pair| pair[0] == flag).map(|pair| pair[1].as_str());
    let addr: IpAddr = value("-container-ip")?.parse().ok()?;
    let port: u16 = value("-container-port")?.parse().ok()?;
    Some(SocketAddr::new(addr, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const B: &str = "fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210";
    const POD: &str = "kubepods-burstable-pod2c48913c_b29f_11e7_9350_020968147796.slice";

    /// Paths as the runtimes make them, with `A` instead of ID, and the runtime that each path shows.
    fn recorded() -> Vec<(String, Option<Runtime>)> {
        use Runtime::{Containerd, CriO, Docker, Podman};
        let user = "/user.slice/user-1000.slice/user@1000.service";
        let paths = [
            ("/docker/ID".to_owned(), Some(Docker)),
            ("/system.slice/docker-ID.scope".into(), Some(Docker)),
            ("/system.slice/docker-ID.scope/init.scope".into(), Some(Docker)),
            (format!("{user}/user.slice/docker-ID.scope"), Some(Docker)),
            (format!("/kubepods.slice/kubepods-burstable.slice/{POD}/docker-ID.scope"), Some(Docker)),
            ("/machine.slice/libpod-ID.scope".into(), Some(Podman)),
            ("/machine.slice/libpod-ID.scope/container".into(), Some(Podman)),
            ("/machine.slice/machine-libpod_pod_9f.slice/libpod-ID.scope/container".into(), Some(Podman)),
            ("/libpod_parent/libpod-ID".into(), Some(Podman)),
            ("/system.slice/web.service/libpod-payload-ID".into(), Some(Podman)),
            (format!("{user}/user.slice/libpod-ID.scope/container"), Some(Podman)),
            (format!("{user}/app.slice/web.service/libpod-payload-ID"), Some(Podman)),
            ("/system.slice/nerdctl-ID.scope".into(), Some(Containerd)),
            (format!("/kubepods.slice/kubepods-burstable.slice/{POD}/cri-containerd-ID.scope"), Some(Containerd)),
            (format!("/system.slice/containerd.service/{POD}:cri-containerd:ID"), Some(Containerd)),
            (format!("/kubepods.slice/kubepods-burstable.slice/{POD}/crio-ID.scope"), Some(CriO)),
            (format!("/kubepods.slice/kubepods-burstable.slice/{POD}/crio-ID.scope/container"), Some(CriO)),
            ("/kubepods/burstable/pod2c48913c-b29f-11e7-9350-020968147796/crio-ID".into(), Some(CriO)),
            ("/kubepods/besteffort/pod2c48913c-b29f-11e7-9350-020968147796/ID".into(), None),
            ("/default/ID".into(), None),
        ];
        paths.map(|(path, runtime)| (path.replace("ID", A), runtime)).to_vec()
    }

    #[test]
    fn the_container_and_its_runtime_are_found_in_a_cgroup_path() {
        for (path, runtime) in recorded() {
            assert_eq!(Container::of_cgroup(&path), Some(Container { runtime, id: A }), "{path}");
        }
        for path in [
            "/".to_owned(),
            "/system.slice/docker.service".into(),
            "/init.scope".into(),
            format!("/machine.slice/libpod-conmon-{A}.scope"),
            format!("/kubepods.slice/{POD}/crio-conmon-{A}.scope"),
            format!("/docker/{}", &A[..12]),
            format!("/docker/{}", A.to_uppercase()),
            format!("/docker/{A}0"),
            "/lxc.payload.web".into(),
        ] {
            assert_eq!(Container::of_cgroup(&path), None, "{path}");
        }
    }

    #[test]
    fn a_container_is_selected_by_the_beginning_of_its_id() {
        let arg = |text: &str| text.parse::<ContainerArg>();
        let container = Container { runtime: None, id: A };
        for (text, selects) in [("0", true), (&A[..12], true), (A, true), ("1", false), (B, false)] {
            assert_eq!(arg(text).map(|arg| arg.selects(container)), Ok(selects), "{text}");
        }
        for bad in ["", "web", "0123X", "ABC", &format!("{A}0")] {
            assert!(arg(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_innermost_of_nested_containers_is_found() {
        let path = format!("/docker/{A}/docker/{B}/system.slice/x.service");
        let container = Container::of_cgroup(&path).expect("a container");
        assert_eq!(container, Container { runtime: Some(Runtime::Docker), id: B });
        assert_eq!(container.text(), "docker container fedcba987654");
    }

    #[test]
    fn the_arguments_of_docker_proxy_name_the_address_that_it_forwards_to() {
        let line = "/usr/bin/docker-proxy -proto tcp -host-ip :: -host-port 8080 -container-ip 172.17.0.2 -container-port 80 \
                    -use-listen-fd";
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let expected = Some("172.17.0.2:80".parse().expect("an address"));
        assert_eq!(forward_target("docker-proxy", &words), expected);
        assert_eq!(forward_target("rootlesskit-doc", &words), expected);
        assert_eq!(forward_target("nginx", &words), None);
        assert_eq!(forward_target("docker-proxy", &words[..9]), None);
    }
}
