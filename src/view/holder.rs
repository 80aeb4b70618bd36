//! Prints the holders of a port (the sockets that use it) as JSON, and their processes as JSON and as a table.

use std::io::{self, Write};
use std::time::Duration;

use serde::Serialize;

use super::human;
use super::record::SocketRecord;
use super::style::{Meaning, TextStyle};
use super::table::{self, Heading};
use crate::model::bind::{Holder, ServerSetup};
use crate::model::command::quoted;
use crate::model::container::{Container, Runtime};
use crate::model::facts::Facts;
use crate::model::process::{Owners, Process};
use crate::model::socket::{Socket, TcpState};
use crate::model::user::User;

/// The maximum number of processes in a table. JSON contains all of them.
const PROCESSES_SHOWN: usize = 12;

/// The maximum width of a command line in a table, in columns. JSON contains the whole command line.
const COMMAND_WIDTH: usize = 80;

/// The options of the tested server besides the reuse options, as JSON. An option that was not given is null.
#[derive(Serialize)]
pub(super) struct SetupRecord {
    v6only: Option<bool>,
    dev: Option<String>,
    freebind: Option<bool>,
    transparent: Option<bool>,
    mptcp: Option<bool>,
    uid: Option<u32>,
    together: Option<bool>,
}

impl SetupRecord {
    pub(super) fn new(setup: &ServerSetup, facts: &Facts) -> Self {
        let asked = |flag: bool| flag.then_some(true);
        Self {
            v6only: setup.v6only,
            dev: setup.device.map(|device| facts.interface_name(device)),
            freebind: asked(setup.freebind),
            transparent: asked(setup.transparent),
            mptcp: asked(setup.mptcp),
            uid: setup.user.map(|user| user.uid),
            together: asked(setup.together),
        }
    }
}

/// A holder as JSON: the socket, the processes that have it open, and whether it blocks the bind.
#[derive(Serialize)]
pub(super) struct HolderRecord<'a> {
    #[serde(flatten)]
    socket: SocketRecord<'a>,
    uid: Option<u32>,
    user: Option<&'a str>,
    inode: Option<u32>,
    processes: Option<Vec<ProcessRecord<'a>>>,
    created_in: Option<&'a str>,
    blocks: bool,
}

#[derive(Serialize)]
pub(super) struct ProcessRecord<'a> {
    pid: i32,
    comm: &'a str,
    cmdline: Option<&'a [String]>,
    uid: Option<u32>,
    user: Option<&'a str>,
    cgroup: Option<&'a str>,
    unit: Option<&'a str>,
    container: Option<ContainerRecord<'a>>,
    forwards_to: Option<String>,
}

#[derive(Serialize)]
struct ContainerRecord<'a> {
    runtime: Option<&'static str>,
    id: &'a str,
}

impl<'a> ProcessRecord<'a> {
    pub(super) fn new(process: &'a Process) -> Self {
        let record = |container: Container<'a>| ContainerRecord {
            runtime: container.runtime.map(Runtime::name),
            id: container.id,
        };
        Self {
            pid: process.pid,
            comm: &process.comm,
            cmdline: process.cmdline.as_deref(),
            uid: process.user.as_ref().map(|user| user.uid),
            user: name(process.user.as_ref()),
            cgroup: process.cgroup.as_deref(),
            unit: process.unit(),
            container: process.container().map(record),
            forwards_to: process.forwards_to().map(|to| to.to_string()),
        }
    }
}

fn name(user: Option<&User>) -> Option<&str> {
    user.and_then(|user| user.name.as_deref())
}

impl<'a> HolderRecord<'a> {
    pub(super) fn new(holder: &'a Holder, facts: &'a Facts) -> Self {
        let inode = match holder.socket {
            // The kernel reports inode 0 for a bucket, as a placeholder.
            Socket::Bucket(_) => None,
            Socket::Full(full) => full.inode.map(std::num::NonZeroU32::get),
        };
        let processes = match &holder.owners {
            Owners::Nobody | Owners::Kernel(_) => Some(vec![]),
            Owners::Found(processes) => Some(processes.iter().map(ProcessRecord::new).collect()),
            Owners::NotPermitted | Owners::NotRead | Owners::NotFound(_) => None,
        };
        Self {
            socket: SocketRecord::new(&holder.socket, holder.direction, facts),
            uid: holder.user.as_ref().map(|user| user.uid),
            user: name(holder.user.as_ref()),
            inode,
            processes,
            created_in: holder.created_in.as_deref(),
            blocks: holder.blocks,
        }
    }
}

/// Writes a table of the processes that have the sockets open, with their users and command lines. The table has each process once.
/// Writes nothing if no process is known.
pub(super) fn write_processes<'a>(
    out: &mut (dyn Write + Send),
    holders: impl IntoIterator<Item = &'a Holder>,
    style: TextStyle,
) -> io::Result<()> {
    let mut processes: Vec<&Process> = vec![];
    for holder in holders {
        let Owners::Found(found) = &holder.owners else { continue };
        processes.extend(found.iter());
    }
    processes.sort_by_key(|process| process.pid);
    processes.dedup_by_key(|process| process.pid);
    if processes.is_empty() {
        return Ok(());
    }
    let row = |process: &&Process| {
        let unknown = || "-".to_owned();
        let user = process.user.as_ref().map_or_else(unknown, |user| user.name.clone().unwrap_or(user.uid.to_string()));
        let command = process.cmdline.as_deref().map_or_else(unknown, command_line);
        vec![process.pid.to_string(), human::escape(&user).into_owned(), command]
    };
    let rows: Vec<Vec<String>> = processes.iter().take(PROCESSES_SHOWN).map(row).collect();
    let headings = [Heading::new("PID").right(), Heading::new("USER"), Heading::new("COMMAND")];
    writeln!(out)?;
    table::write(out, &headings, true, rows.as_slice(), style)?;
    if processes.len() > PROCESSES_SHOWN {
        let more = format!("and {} more; -o json has all", processes.len() - PROCESSES_SHOWN);
        writeln!(out, "{}", style.paint(Meaning::Aside, more))?;
    }
    Ok(())
}

/// Formats arguments as a shell reads them, cut to [`COMMAND_WIDTH`] columns. Hidden characters are escaped. If the program has replaced
/// its arguments by a title, as nginx does (`nginx: worker process`), the title is not quoted.
pub(super) fn command_line(arguments: &[String]) -> String {
    let text = match arguments {
        [title] if title.contains(' ') => human::escape(title).into_owned(),
        arguments => {
            // Each argument takes at least one column, so further arguments would be cut anyway.
            let words = arguments.iter().take(COMMAND_WIDTH);
            words.map(|word| quoted(word.as_str())).collect::<Vec<_>>().join(" ")
        }
    };
    human::cut(&text, COMMAND_WIDTH)
}

/// Says when the holders free the port: `free in 12.1s`. If a FIN_WAIT_2 bucket is one of the blocking holders, the text adds `at the
/// earliest`, because the timer of this bucket restarts when the peer closes.
pub(super) fn free_in(time: Duration, holders: &[Holder]) -> String {
    let half = |holder: &Holder| {
        holder.blocks && matches!(holder.socket, Socket::Bucket(_)) && holder.socket.state() == TcpState::FinWait2
    };
    let earliest = if holders.iter().any(half) { " at the earliest" } else { "" };
    format!("free in {}{earliest}", human::duration(time))
}
