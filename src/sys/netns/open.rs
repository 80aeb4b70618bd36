//! Opens the network namespace that an argument selects, and reopens a namespace that `all` has found.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{NSFS_MAGIC, fstatfs};

use super::error::{NetnsError, NetnsErrorKind, is_absent};
use super::names::{id, ip_netns_name, ip_netns_names, path_of_name};
use super::processes::{lowest_process_name, path_of};
use crate::model::netns::{Netns, NetnsArg, NetnsName};
use crate::sys::errno::retry;
use crate::sys::folder::{metadata, proc_gap};

/// A network namespace that can be entered.
#[derive(Debug)]
pub struct OpenNetns {
    /// The identity and the name of the namespace.
    pub netns: Netns,
    pub(super) handle: Handle,
}

#[derive(Debug)]
pub(super) enum Handle {
    /// An open file, which keeps the namespace alive.
    Open(OwnedFd),
    /// The path of a file. It is opened only to enter the namespace, because a machine may have more namespaces than a process may
    /// have descriptors.
    Path(PathBuf),
}

/// Opens the network namespace that an argument selects. If the argument is not a name, this function also searches for the name of
/// the namespace.
pub fn open(arg: &NetnsArg) -> Result<OpenNetns, NetnsError> {
    let opened = match arg {
        NetnsArg::Process(pid) | NetnsArg::Container(_, pid) => open_of_process(*pid),
        NetnsArg::Path(path) => open_file(path).and_then(add_name),
        NetnsArg::Name(name) => open_name(name),
    };
    opened.map_err(|why| NetnsError::new(arg, why))
}

fn open_of_process(pid: u32) -> Result<OpenNetns, NetnsErrorKind> {
    let folder = PathBuf::from(format!("/proc/{pid}"));
    match open_file(&folder.join("ns/net")) {
        // A zombie process still has a folder in /proc, but has no namespace any more.
        Err(NetnsErrorKind::NotOpened(error)) if is_absent(&error) && metadata(&folder).is_ok() => {
            Err(NetnsErrorKind::ProcessEnded)
        }
        Err(NetnsErrorKind::NotOpened(error)) if is_absent(&error) => Err(match proc_gap() {
            Ok(Some(gap)) => NetnsErrorKind::NotVisible(gap),
            _ => NetnsErrorKind::NoSuchProcess,
        }),
        opened => opened.and_then(add_name),
    }
}

fn open_name(name: &OsStr) -> Result<OpenNetns, NetnsErrorKind> {
    let path = path_of_name(name);
    match open_file(&path) {
        Ok(mut opened) => {
            opened.netns.name = Some(NetnsName::FromIpNetns(name.to_owned()));
            Ok(opened)
        }
        Err(NetnsErrorKind::NotOpened(error)) if is_absent(&error) => Err(NetnsErrorKind::NoSuchName(ip_netns_names())),
        Err(NetnsErrorKind::NotNetns(_)) if is_file(&path) => Err(NetnsErrorKind::MountGone),
        Err(why) => Err(why),
    }
}

fn is_file(path: &Path) -> bool {
    metadata(path).is_ok_and(|file| file.is_file())
}

fn add_name(mut opened: OpenNetns) -> Result<OpenNetns, NetnsErrorKind> {
    let name = || match ip_netns_name(opened.netns.id)? {
        None => lowest_process_name(opened.netns.id),
        given => Ok(given),
    };
    opened.netns.name = name().map_err(NetnsErrorKind::Unnamed)?;
    Ok(opened)
}

/// Opens a file of nsfs that represents a network namespace. The result has no name yet.
///
/// Opening a device or a FIFO can have side effects. So this function first opens an O_PATH descriptor, and checks that the file
/// belongs to nsfs. The link of the descriptor contains the kind of the namespace: `net:[4026531840]` (namespaces(7)). For a mounted
/// file the link is a path; then setns() checks the kind.
pub(super) fn open_file(path: &Path) -> Result<OpenNetns, NetnsErrorKind> {
    let open = |path: &Path, flags| retry(|| OpenOptions::new().read(true).custom_flags(flags).open(path));
    let seen = open(path, libc::O_PATH).map_err(NetnsErrorKind::NotOpened)?;
    let itself = format!("/proc/thread-self/fd/{}", seen.as_raw_fd());
    let stat = retry(|| Ok(fstatfs(&seen)?)).map_err(NetnsErrorKind::NotOpened)?;
    if stat.filesystem_type() != NSFS_MAGIC {
        return Err(NetnsErrorKind::NotNetns(what_it_is(&seen).into()));
    }
    let link = retry(|| fs::read_link(&itself)).map_err(NetnsErrorKind::NotOpened)?;
    let link = link.to_string_lossy();
    if !link.starts_with('/') && !link.starts_with("net:") {
        return Err(NetnsErrorKind::NotNetns(format!("a namespace of another kind, {link}")));
    }
    let file = open(Path::new(&itself), 0).map_err(NetnsErrorKind::NotOpened)?;
    let id = id(&retry(|| file.metadata()).map_err(NetnsErrorKind::NotOpened)?);
    Ok(OpenNetns { netns: Netns { id, name: None }, handle: Handle::Open(file.into()) })
}

/// Opens a namespace that was found at this path. If the path does not represent that namespace any more, this function searches for
/// a process in the namespace.
pub(super) fn open_again(netns: &Netns, path: &Path) -> Result<OwnedFd, NetnsErrorKind> {
    let open_it = |path: &Path| match open_file(path) {
        Ok(OpenNetns { netns: found, handle: Handle::Open(file) }) if found.id == netns.id => Ok(Some(file)),
        Err(NetnsErrorKind::NotOpened(error)) if !is_absent(&error) => Err(NetnsErrorKind::NotOpened(error)),
        _ => Ok(None),
    };
    if let Some(file) = open_it(path)? {
        return Ok(file);
    }
    let elsewhere = path_of(netns.id).map_err(NetnsErrorKind::NotOpened)?;
    let file = elsewhere.map(|path| open_it(&path)).transpose()?.flatten();
    file.ok_or(NetnsErrorKind::Gone)
}

fn what_it_is(file: &File) -> &'static str {
    match retry(|| file.metadata()).map(|file| file.file_type()) {
        Ok(kind) if kind.is_dir() => "a folder",
        Ok(kind) if kind.is_file() => "a plain file",
        _ => "a special file",
    }
}
