//! Network namespaces: the argument that names one, its identity, and its name.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::str::FromStr;

use super::container::ContainerArg;
use super::name::text_of;

/// The accepted forms of a namespace argument, for error messages.
pub const NETNS_ARG_FORMS: &str =
    "a name that `ip netns list` shows, a path with a '/' in it, or the number of a process, 1-2147483647";

/// A namespace as the user typed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetnsArg {
    /// Digits only: the namespace of the process with this pid in the pid namespace of twtool.
    Process(u32),
    /// With a slash: a file of the namespace, for example `/proc/1/ns/net` or `/run/netns/web`.
    Path(PathBuf),
    /// A name of ip-netns(8). It is the name of a file, so it may have bytes that are not UTF-8.
    Name(OsString),
    /// The namespace of a container: the typed id, and the pid of a process in the container.
    Container(ContainerArg, u32),
}

impl TryFrom<OsString> for NetnsArg {
    type Error = String;

    fn try_from(word: OsString) -> Result<Self, String> {
        let form = |why: &str| format!("{why}; a network namespace is {NETNS_ARG_FORMS}");
        let bytes = word.as_bytes();
        if bytes.contains(&b'/') {
            return Ok(Self::Path(word.into()));
        }
        if !bytes.is_empty() && bytes.iter().all(u8::is_ascii_digit) {
            let number = word.to_str().and_then(|digits| digits.parse().ok());
            let number = number.filter(|&pid| pid > 0 && i32::try_from(pid).is_ok());
            return number.map(Self::Process).ok_or_else(|| form("no process has this number"));
        }
        match bytes {
            b"" => Err(form("it is empty")),
            // Names are files in /run/netns, and these two are folders.
            b"." | b".." => Err(form("no namespace has this name")),
            _ => Ok(Self::Name(word)),
        }
    }
}

impl FromStr for NetnsArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        OsString::from(text).try_into()
    }
}

impl NetnsArg {
    /// The option that selects the namespace on a command line.
    #[must_use]
    pub const fn option(&self) -> &'static str {
        if let Self::Container(..) = self { "--container" } else { "--netns" }
    }

    /// The value of the option that selects the namespace.
    #[must_use]
    pub fn word(&self) -> OsString {
        match self {
            Self::Container(container, _) => container.to_string().into(),
            Self::Process(pid) => pid.to_string().into(),
            Self::Path(path) => path.clone().into(),
            Self::Name(name) => name.clone(),
        }
    }
}

impl fmt::Display for NetnsArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&text_of(self.word().as_bytes()))
    }
}

/// The identity of a namespace: its inode in nsfs, and the device of that nsfs (namespaces(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetnsId {
    /// Device number of nsfs.
    pub device: u64,
    /// The inode number, which `readlink /proc/PID/ns/net` and the records show.
    pub inode: u64,
}

/// The name of a namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NetnsName {
    /// The name in ip-netns(8).
    FromIpNetns(OsString),
    /// The process with the lowest pid that was found in the namespace. The process chooses its comm, so escape it for a terminal.
    LowestPid {
        /// Its pid in the pid namespace of twtool.
        pid: u32,
        /// Its command name.
        comm: String,
    },
}

impl fmt::Display for NetnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FromIpNetns(name) => f.write_str(&text_of(name.as_bytes())),
            Self::LowestPid { pid, comm } => write!(f, "{pid}:{comm}"),
        }
    }
}

/// A network namespace: its identity and its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Netns {
    /// The identity of the namespace.
    pub id: NetnsId,
    /// Its name, if it is known.
    pub name: Option<NetnsName>,
}

impl Netns {
    /// The name of the namespace in ip-netns(8), if it has one.
    #[must_use]
    pub fn ip_netns_name(&self) -> Option<&OsStr> {
        match &self.name {
            Some(NetnsName::FromIpNetns(name)) => Some(name),
            Some(NetnsName::LowestPid { .. }) | None => None,
        }
    }
}

/// Prints the name of the namespace, or `net:[INODE]` if the name is unknown.
impl fmt::Display for Netns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => fmt::Display::fmt(name, f),
            None => write!(f, "net:[{}]", self.id.inode),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStringExt;

    #[test]
    fn an_argument_is_a_process_if_it_is_a_number_a_path_if_it_has_a_slash_and_else_a_name() {
        let parse = |text: &str| text.parse::<NetnsArg>();
        assert_eq!(parse("1"), Ok(NetnsArg::Process(1)));
        assert_eq!(parse("./1"), Ok(NetnsArg::Path("./1".into())));
        assert_eq!(parse("/proc/1/ns/net"), Ok(NetnsArg::Path("/proc/1/ns/net".into())));
        for name in ["web", "1a", "-1", "a b", "1.0"] {
            assert_eq!(parse(name), Ok(NetnsArg::Name(name.into())));
        }
        let name = OsString::from_vec(b"a\xff".to_vec());
        assert_eq!(NetnsArg::try_from(name.clone()), Ok(NetnsArg::Name(name)));
        for bad in ["", "0", "2147483648", "99999999999999999999", ".", ".."] {
            assert!(parse(bad).is_err_and(|why| why.contains(NETNS_ARG_FORMS)), "{bad}");
        }
    }

    #[test]
    fn an_argument_prints_as_it_was_typed() {
        for text in ["4711", "/run/netns/web", "web"] {
            assert_eq!(text.parse::<NetnsArg>().map(|arg| arg.to_string()), Ok(text.to_owned()));
        }
    }

    #[test]
    fn a_namespace_without_a_name_is_printed_with_its_inode_number() {
        let id = NetnsId { device: 4, inode: 4_026_531_840 };
        let text = |name| Netns { id, name }.to_string();
        assert_eq!(text(Some(NetnsName::FromIpNetns("web".into()))), "web");
        assert_eq!(text(Some(NetnsName::LowestPid { pid: 1, comm: "init".into() })), "1:init");
        assert_eq!(text(None), "net:[4026531840]");
        assert_eq!(text(Some(NetnsName::FromIpNetns(OsString::from_vec(b"a\xff".to_vec())))), r"a\xff");
    }
}
