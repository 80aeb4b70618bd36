//! What a bind test and a wait say of a socket on the port, and of an address that was tried, as JSON.

use std::io::{self, Write};

use serde::Serialize;

use super::human;
use super::record::SocketRecord;
use super::style::Look;
use crate::model::bind::Holder;
use crate::model::command::Step;
use crate::model::facts::Facts;
use crate::model::process::{Owners, Process};
use crate::model::socket::Socket;

/// A socket, who has it open, and whether it is in the way.
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

/// A command that helps, and what it does.
#[derive(Serialize)]
pub(super) struct StepRecord<'a> {
    command: &'a str,
    purpose: &'a str,
}

impl<'a> StepRecord<'a> {
    pub(super) fn all(steps: &'a [Step]) -> Vec<Self> {
        steps.iter().map(|Step { command, purpose }| Self { command, purpose }).collect()
    }
}

/// Writes each command on a line of its own, for pasting: it is never broken. What it does stands above it.
pub(super) fn write_steps(out: &mut dyn Write, steps: &[Step], look: Look) -> io::Result<()> {
    for Step { command, purpose } in steps {
        writeln!(out)?;
        let mut letters = purpose.chars();
        let first = letters.next().map(|letter| letter.to_uppercase().to_string()).unwrap_or_default();
        human::break_lines(out, &format!("{first}{}:", letters.as_str()), "", "", look.width)?;
        writeln!(out, "  {command}")?;
    }
    Ok(())
}
