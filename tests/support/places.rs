//! Network namespaces with the same bucket in each, told apart by the client's port, and what `twtool list` says of them.

use serde_json::Value;
use twtool::lab::{ActiveCloser, Server};

use super::island::{self, Island, Resident, hop, inode};
use super::not_checked;
use super::records::number;
use super::situations::{connect_from, listen};
use super::twtool::{Run, twtool};

/// `twtool list` with these arguments.
pub(crate) fn list(args: &[&str]) -> Run {
    twtool([&["list"], args].concat())
}

/// A bucket on the server's port, whose client had this port.
pub(crate) fn bucket(server: &Server, at: &str, client: u16) {
    connect_from(server, at, &format!("127.0.0.1:{client}")).close(ActiveCloser::Server).expect("a bucket");
}

/// A namespace with a bucket on 127.0.0.1:8080, a process in it, and a listener there if that is kept.
pub(crate) struct Place {
    pub(crate) inode: u64,
    pub(crate) resident: Resident,
    pub(crate) server: Server,
}

impl Place {
    /// Elsewhere; the client's port tells it from others.
    pub(crate) fn make(client: u16) -> Self {
        hop(|| Self::here(client))
    }

    /// In the calling thread's.
    pub(crate) fn here(client: u16) -> Self {
        let server = listen("127.0.0.1:8080");
        bucket(&server, "127.0.0.1:8080", client);
        Self { inode: inode(), resident: Resident::start(), server }
    }
}

/// Namespace and client's port of each record.
pub(crate) fn clients(records: &[Value]) -> Vec<(u64, u64)> {
    records.iter().map(|record| (number(record, "netns"), number(record, "remote_port"))).collect()
}

/// Whether /proc shows the island alone.
pub(crate) fn closed(_: &Island) -> bool {
    let closed = island::show_its_processes();
    if !closed {
        not_checked("--all-netns among namespaces of the test's own: no /proc of its own can be mounted here");
    }
    closed
}
