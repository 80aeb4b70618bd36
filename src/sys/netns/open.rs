//! Opens the network namespace of an argument, and opens a known one again.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{NSFS_MAGIC, fstatfs};

use super::error::{NetnsError, NetnsErrorKind, gone};
use super::names::{given_name, given_names, id, path_of_name};
use super::processes::{first_process, path_of};
use crate::model::netns::{Netns, NetnsArg, NetnsName};
use crate::sys::errno::retry;
use crate::sys::folder::metadata;

/// A namespace that can be entered.
#[derive(Debug)]
pub struct OpenNetns {
    /// Which one, and what it is called.
    pub netns: Netns,
    pub(super) handle: Handle,
}

/// How a namespace is entered.
#[derive(Debug)]
pub(super) enum Handle {
    /// By this file. The namespace lives at least as long as this does.
    Open(OwnedFd),
    /// By the file that has this path, which is opened each time: a machine may have more namespaces than a process may have
    /// descriptors.
    Path(PathBuf),
}

/// Opens the namespace of an argument. A name in the argument becomes its name; without one, its name is searched for.
pub fn open(arg: &NetnsArg) -> Result<OpenNetns, NetnsError> {
    let opened = match arg {
        NetnsArg::Process(pid) => open_of_process(*pid),
        NetnsArg::Path(path) => open_file(path).and_then(named),
        NetnsArg::Name(name) => open_name(name),
    };
    opened.map_err(|why| NetnsError::new(arg, why))
}

fn open_of_process(pid: u32) -> Result<OpenNetns, NetnsErrorKind> {
    let folder = PathBuf::from(format!("/proc/{pid}"));
    match open_file(&folder.join("ns/net")) {
        // A process that has ended and was not waited for yet is there, and its namespace is not.
        Err(NetnsErrorKind::NotOpened(error)) if gone(&error) && metadata(&folder).is_ok() => {
            Err(NetnsErrorKind::ProcessEnded)
        }
        Err(NetnsErrorKind::NotOpened(error)) if gone(&error) => Err(NetnsErrorKind::NoSuchProcess),
        opened => opened.and_then(named),
    }
}

fn open_name(name: &OsStr) -> Result<OpenNetns, NetnsErrorKind> {
    let path = path_of_name(name);
    match open_file(&path) {
        Ok(mut opened) => {
            opened.netns.name = Some(NetnsName::Given(name.to_owned()));
            Ok(opened)
        }
        Err(NetnsErrorKind::NotOpened(error)) if gone(&error) => Err(NetnsErrorKind::NoSuchName(given_names())),
        Err(NetnsErrorKind::AnotherThing(_)) if is_file(&path) => Err(NetnsErrorKind::MountGone),
        Err(why) => Err(why),
    }
}

fn is_file(path: &Path) -> bool {
    metadata(path).is_ok_and(|file| file.is_file())
}

fn named(mut opened: OpenNetns) -> Result<OpenNetns, NetnsErrorKind> {
    let name = || match given_name(opened.netns.id)? {
        None => first_process(opened.netns.id),
        given => Ok(given),
    };
    opened.netns.name = name().map_err(NetnsErrorKind::Unnamed)?;
    Ok(opened)
}

/// Opens a file of nsfs that stands for a network namespace, still without a name.
///
/// Anything else is not opened: to open a device or a FIFO does something. So an O_PATH descriptor is looked at first,
/// whether it is of nsfs; its link tells the kind, `net:[4026531840]` (namespaces(7)), unless it is of a mount, where
/// setns() finds out.
pub(super) fn open_file(path: &Path) -> Result<OpenNetns, NetnsErrorKind> {
    let open = |path: &Path, flags| retry(|| OpenOptions::new().read(true).custom_flags(flags).open(path));
    let seen = open(path, libc::O_PATH).map_err(NetnsErrorKind::NotOpened)?;
    let itself = format!("/proc/thread-self/fd/{}", seen.as_raw_fd());
    let stat = retry(|| Ok(fstatfs(&seen)?)).map_err(NetnsErrorKind::NotOpened)?;
    if stat.filesystem_type() != NSFS_MAGIC {
        return Err(NetnsErrorKind::AnotherThing(what_it_is(&seen).into()));
    }
    let link = retry(|| fs::read_link(&itself)).map_err(NetnsErrorKind::NotOpened)?;
    let link = link.to_string_lossy();
    if !link.starts_with('/') && !link.starts_with("net:") {
        return Err(NetnsErrorKind::AnotherThing(format!("a namespace of another kind, {link}")));
    }
    let file = open(Path::new(&itself), 0).map_err(NetnsErrorKind::NotOpened)?;
    let id = id(&retry(|| file.metadata()).map_err(NetnsErrorKind::NotOpened)?);
    Ok(OpenNetns { netns: Netns { id, name: None }, handle: Handle::Open(file.into()) })
}

/// Opens a namespace that was found at this path. The path may stand for another one by now, or for none: then a process that
/// is in the namespace is searched for.
pub(super) fn open_again(netns: &Netns, path: &Path) -> Result<OwnedFd, NetnsErrorKind> {
    let open_it = |path: &Path| match open_file(path) {
        Ok(OpenNetns { netns: found, handle: Handle::Open(file) }) if found.id == netns.id => Ok(Some(file)),
        Err(NetnsErrorKind::NotOpened(error)) if !gone(&error) => Err(NetnsErrorKind::NotOpened(error)),
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
