//! Network namespaces that each have a bucket on the same server port. The client's port differs, so that the tests can find out
//! which namespace a record of `twtool list` comes from.

use serde_json::Value;
use twtool::lab::{ActiveCloser, Server};

use super::not_checked;
use super::private_proc::{self, OwnPidNamespace, Resident, in_new_namespace, inode};
use super::records::number;
use super::situations::{connect_from, listen};
use super::twtool::{Run, twtool};

pub(crate) fn list(args: &[&str]) -> Run {
    twtool([&["list"], args].concat())
}

/// Makes a bucket on `server_end`, the address and port of the server.
pub(crate) fn make_bucket(server: &Server, server_end: &str, client_port: u16) {
    connect_from(server, server_end, &format!("127.0.0.1:{client_port}"))
        .close(ActiveCloser::Server)
        .expect("a bucket");
}

/// A namespace with a bucket on 127.0.0.1:8080, a process, and a listener as long as `server` exists.
pub(crate) struct BucketNamespace {
    pub(crate) inode: u64,
    pub(crate) resident: Resident,
    pub(crate) server: Server,
}

impl BucketNamespace {
    pub(crate) fn make(client: u16) -> Self {
        in_new_namespace(|| Self::make_here(client))
    }

    pub(crate) fn make_here(client: u16) -> Self {
        let server = listen("127.0.0.1:8080");
        make_bucket(&server, "127.0.0.1:8080", client);
        Self { inode: inode(), resident: Resident::start(), server }
    }
}

/// The namespace and the client's port of each record.
pub(crate) fn clients(records: &[Value]) -> Vec<(u64, u64)> {
    records.iter().map(|record| (number(record, "netns"), number(record, "remote_port"))).collect()
}

/// Makes /proc show only the processes of the pid namespace. Returns false if the kernel does not allow it.
pub(crate) fn show_only_own_processes(_: &OwnPidNamespace) -> bool {
    let shown = private_proc::mount_proc_of_pid_namespace();
    if !shown {
        not_checked("--all-netns with only the namespaces of the test: a private /proc cannot be mounted here");
    }
    shown
}
