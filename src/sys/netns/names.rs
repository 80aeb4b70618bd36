//! Identifies network namespaces, and reads the names that ip-netns(8) keeps.

use std::ffi::{OsStr, OsString};
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::error::is_absent;
use crate::model::netns::{NetnsId, NetnsName};
use crate::sys::errno::{if_present, if_visible};
use crate::sys::folder::{self, metadata};

/// The folders in which ip-netns(8) keeps names. /var/run is the same folder as /run, or a separate one on old systems.
const NAMES: [&str; 2] = ["/run/netns", "/var/run/netns"];

pub(super) const OWN: &str = "/proc/thread-self/ns/net";

pub(super) fn id(file: &Metadata) -> NetnsId {
    NetnsId { device: file.dev(), inode: file.ino() }
}

pub(super) fn own_id() -> io::Result<NetnsId> {
    metadata(Path::new(OWN)).map(|file| id(&file))
}

/// The names that ip-netns(8) keeps, sorted; empty if neither /run/netns nor /var/run/netns exists.
///
/// # Errors
/// The folder cannot be read.
pub fn ip_netns_names() -> io::Result<Vec<OsString>> {
    for place in NAMES {
        if let Some(mut names) = if_present(folder::names_in(place))? {
            names.sort_unstable();
            return Ok(names);
        }
    }
    Ok(vec![])
}

pub(super) fn path_of_name(name: &OsStr) -> PathBuf {
    // If the status of a folder cannot be read, the folder may exist. Then opening the file reports the reason.
    let there = |folder: &&Path| !metadata(folder).is_err_and(|error| is_absent(&error));
    let folder = NAMES.iter().map(Path::new).find(there).unwrap_or(Path::new(NAMES[0]));
    folder.join(name)
}

pub(super) fn ip_netns_name(wanted: NetnsId) -> io::Result<Option<NetnsName>> {
    for name in if_visible(ip_netns_names())?.unwrap_or_default() {
        if if_visible(metadata(&path_of_name(&name)))?.is_some_and(|file| id(&file) == wanted) {
            return Ok(Some(NetnsName::FromIpNetns(name)));
        }
    }
    Ok(None)
}
