//! The JSON record of a socket that holds a port, for bind tests and waits.

use serde::Serialize;

use super::record::SocketRecord;
use crate::model::bind::Holder;
use crate::model::facts::Facts;
use crate::model::process::{Owners, Process};
use crate::model::socket::Socket;

/// A socket, the processes that have it open, and whether it blocks the bind.
#[derive(Serialize)]
pub(super) struct HolderRecord<'a> {
    #[serde(flatten)]
    socket: SocketRecord<'a>,
    uid: Option<u32>,
    inode: Option<u32>,
    processes: Option<Vec<ProcessRecord<'a>>>,
    blocks: bool,
}

#[derive(Serialize)]
struct ProcessRecord<'a> {
    pid: i32,
    comm: &'a str,
    cgroup: Option<&'a str>,
    unit: Option<&'a str>,
}

impl<'a> HolderRecord<'a> {
    pub(super) fn new(holder: &'a Holder, facts: &'a Facts) -> Self {
        let (uid, inode) = match holder.socket {
            // The zeros of a bucket are placeholders.
            Socket::Bucket(_) => (None, None),
            Socket::Full(full) => (Some(full.uid), full.inode.map(std::num::NonZeroU32::get)),
        };
        let record =
            |p: &'a Process| ProcessRecord { pid: p.pid, comm: &p.comm, cgroup: p.cgroup.as_deref(), unit: p.unit() };
        let processes = match &holder.owners {
            Owners::Nobody | Owners::Kernel(_) => Some(vec![]),
            Owners::Found(processes) => Some(processes.iter().map(record).collect()),
            Owners::NotPermitted | Owners::NotRead | Owners::NotFound(_) => None,
        };
        let socket = SocketRecord::new(&holder.socket, holder.direction, facts);
        Self { socket, uid, inode, processes, blocks: holder.blocks }
    }
}
