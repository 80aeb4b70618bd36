//! Network namespaces: that of the calling thread, and going into another.
//!
//! A namespace is the thread's and not the process's (setns(2)). So [`within`] runs something on a thread of its own in
//! another one: the sockets that are made there, /proc/thread-self/net and /proc/sys/net are then that namespace's, and
//! the caller stays where it is. `open` finds out which one is meant, `all` which ones there are.

mod all;
mod open;

use std::cell::RefCell;
use std::ffi::{OsStr, OsString};
use std::fs::Metadata;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::panic::resume_unwind;
use std::path::Path;
use std::thread;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};

pub use self::all::{Found, all};
use self::open::{Handle, open_again};
pub use self::open::{OpenNetns, open};

use crate::model::name::text_of;
use crate::model::netns::{Netns, NetnsId, NetnsName};
use crate::sys::errno::{if_present, if_visible};
use crate::sys::folder::{self, metadata};

/// Why a namespace cannot be looked into.
#[derive(Debug, thiserror::Error)]
#[error("network namespace '{word}': {why}")]
pub struct NetnsError {
    /// What was typed, or what the namespace is called.
    pub word: String,
    /// What is in the way.
    pub why: NetnsErrorKind,
}

/// What is in the way of a namespace.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum NetnsErrorKind {
    #[error("there is no such name in /run/netns; {}", there_are(.0))]
    NoSuchName(io::Result<Vec<OsString>>),
    #[error("there is no such process")]
    NoSuchProcess,
    #[error("that process has ended and has no network namespace any more")]
    ProcessEnded,
    #[error("it has gone, and left a plain file in /run/netns")]
    MountGone,
    #[error("that is no network namespace, but {0}")]
    AnotherThing(String),
    #[error("it has gone")]
    Gone,
    #[error("it cannot be opened: {0}")]
    NotOpened(io::Error),
    #[error("what it is called cannot be found out: {0}")]
    Unnamed(io::Error),
    #[error("it cannot be entered: {0}")]
    NotEntered(io::Error),
    #[error("no thread can be started for it: {0}")]
    NoThread(io::Error),
}

fn there_are(names: &io::Result<Vec<OsString>>) -> String {
    match names {
        Ok(names) if names.is_empty() => "it has no names".into(),
        Ok(names) => {
            let names: Vec<String> = names.iter().map(|name| text_of(name.as_bytes())).collect();
            format!("it has {}", names.join(", "))
        }
        Err(error) => format!("its names cannot be listed: {error}"),
    }
}

impl NetnsError {
    /// Whether the namespace is there no more.
    #[must_use]
    pub const fn is_gone(&self) -> bool {
        matches!(self.why, NetnsErrorKind::Gone)
    }

    fn new(word: &impl ToString, why: NetnsErrorKind) -> Self {
        Self { word: word.to_string(), why }
    }

    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match &self.why {
            NetnsErrorKind::NotEntered(error) if error.kind() == io::ErrorKind::PermissionDenied => Some(
                "setns(2) needs CAP_SYS_ADMIN in the user namespace that owns the network namespace, and in the caller's own: \
                 root of the host has it. For a rootless container, its user can run twtool inside: \
                 `nsenter -t PID -U --preserve-credentials -n twtool ...`",
            ),
            NetnsErrorKind::NotOpened(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                Some("root or CAP_SYS_PTRACE may look into every /proc/PID/ns/net")
            }
            NetnsErrorKind::MountGone => Some("ip netns delete removes what is left of it"),
            _ => None,
        }
    }
}

/// Where ip-netns(8) keeps names. /var/run is the same folder, or was before /run came.
const NAMES: [&str; 2] = ["/run/netns", "/var/run/netns"];

const OWN: &str = "/proc/thread-self/ns/net";

thread_local! {
    /// The namespace that [`within`] has brought the thread into.
    static ENTERED: RefCell<Option<Netns>> = const { RefCell::new(None) };
}

fn id(file: &Metadata) -> NetnsId {
    NetnsId { device: file.dev(), inode: file.ino() }
}

fn own_id() -> io::Result<NetnsId> {
    metadata(Path::new(OWN)).map(|file| id(&file))
}

/// The calling thread's namespace.
///
/// Where nobody has asked for it by [`within`], its name is looked for only where that costs next to nothing: in
/// /run/netns, and process 1, for no process has a lower number. Else it has none here.
///
/// `None` where /proc does not show it.
pub fn current() -> io::Result<Option<Netns>> {
    if let Some(entered) = ENTERED.with_borrow(Clone::clone) {
        return Ok(Some(entered));
    }
    let Some(id) = if_present(own_id())? else { return Ok(None) };
    let name = match given_name(id)? {
        None => all::process_name(1, id)?,
        given => given,
    };
    Ok(Some(Netns { id, name }))
}

/// Runs something in the namespace, on a thread of its own. One's own is not entered, so that it needs no privilege.
pub fn within<T: Send>(netns: &OpenNetns, run: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
    let failed = |why| NetnsError::new(&netns.netns, why);
    let own = own_id().is_ok_and(|id| id == netns.netns.id);
    let enter_and_run = || {
        if !own {
            let reopened;
            let file = match &netns.handle {
                Handle::Open(file) => file.as_fd(),
                Handle::Path(path) => {
                    reopened = open_again(&netns.netns, path)?;
                    reopened.as_fd()
                }
            };
            setns(file, CloneFlags::CLONE_NEWNET).map_err(|errno| match errno {
                Errno::EINVAL => NetnsErrorKind::AnotherThing("a namespace of another kind".into()),
                errno => NetnsErrorKind::NotEntered(errno.into()),
            })?;
        }
        ENTERED.set(Some(netns.netns.clone()));
        Ok(run())
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("netns".into()).spawn_scoped(scope, enter_and_run);
        let thread = thread.map_err(|error| failed(NetnsErrorKind::NoThread(error)))?;
        thread.join().unwrap_or_else(|panic| resume_unwind(panic)).map_err(failed)
    })
}

/// The files of /run/netns, in order; none where that folder does not exist.
fn given_names() -> io::Result<Vec<OsString>> {
    for place in NAMES {
        if let Some(mut names) = if_present(folder::names_in(place))? {
            names.sort_unstable();
            return Ok(names);
        }
    }
    Ok(vec![])
}

fn path_of_name(name: &OsStr) -> std::path::PathBuf {
    // One that cannot be looked at may be there: opening a file in it reports why.
    let there = |folder: &&Path| !metadata(folder).is_err_and(|error| all::gone(&error));
    let folder = NAMES.iter().map(Path::new).find(there).unwrap_or(Path::new(NAMES[0]));
    folder.join(name)
}

fn given_name(wanted: NetnsId) -> io::Result<Option<NetnsName>> {
    for name in if_visible(given_names())?.unwrap_or_default() {
        if if_visible(metadata(&path_of_name(&name)))?.is_some_and(|file| id(&file) == wanted) {
            return Ok(Some(NetnsName::Given(name)));
        }
    }
    Ok(None)
}

/// `uname -r`.
#[must_use]
pub fn kernel_release() -> String {
    nix::sys::utsname::uname().map_or_else(|_| "unknown".into(), |name| name.release().to_string_lossy().into_owned())
}
