//! Reads what `twtool doctor` judges: settings, counters, listeners, sockets in CLOSE_WAIT, and what the caller may do.
//!
//! Nothing here fails as a whole: what could not be read is in the answer as that.

use std::collections::BTreeSet;
use std::io;
use std::ops::ControlFlow;

use super::{Carrier, Choice, Source, SourceError, kernel_bucket_facts, kernel_facts, known};
use crate::filter::Filter;
use crate::model::facts::{Facts, Unread};
use crate::model::health::{CloseWait, Health, OpenListener, OpenSockets, Reading, Settings};
use crate::model::process::Owners;
use crate::model::socket::{Cookie, FullSocket, Socket, StateSet, TcpState};
use crate::sock_diag::bytecode;
use crate::sock_diag::dump::{self, DumpError};
use crate::sock_diag::request::{Request, Walk};
use crate::sys;

/// Everything, in the calling thread's network namespace, now.
#[must_use]
pub fn read() -> Health {
    let mut facts = kernel_facts();
    let mut unread = Unread::default();
    let buckets = kernel_bucket_facts(&mut unread);
    let sockets = sockets(&facts, &mut unread).map_err(|error| error.to_string());
    let capabilities = known(&mut unread, "/proc/thread-self/status", sys::capabilities::effective());
    facts.unread.0.extend(unread.0);
    Health {
        settings: Settings(Settings::NAMES.into_iter().map(|name| (name, setting(name))).collect()),
        buckets,
        sockets,
        capabilities,
        facts,
    }
}

fn setting(name: &str) -> Reading {
    match sys::sysctl::read(name) {
        Ok(value) => Reading::Value(value),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Reading::Absent,
        Err(error) => Reading::Unreadable(error.to_string()),
    }
}

fn sockets(facts: &Facts, unread: &mut Unread) -> Result<OpenSockets, SourceError> {
    let mut source = Source::kernel(Choice::Auto)?.with_tcp_info();
    let states = StateSet::of(&[TcpState::Listen, TcpState::CloseWait]);
    let (mut found, end) = source.collect(states, &Filter::TRUE, Vec::new, |found: &mut Vec<FullSocket>, socket| {
        if let Socket::Full(full) = socket {
            found.push(*full);
        }
    })?;
    found.sort_by_key(|full| {
        let tuple = full.tuple;
        (tuple.local_port(), tuple.local_addr(), tuple.remote_addr(), tuple.remote_port(), full.cookie)
    });
    // The kernel's answer to a filter of its own; asked for only where a listener makes it matter.
    let ephemeral = |full: &FullSocket| facts.ephemeral(full.tuple.local_port()) == Some(true);
    let any = found.iter().any(|full| full.state == TcpState::Listen && ephemeral(full));
    let autobound = if any { source.autobound_listeners()? } else { None };

    let needs_owner = |full: &&FullSocket| full.state == TcpState::CloseWait || ephemeral(full);
    let sys::owners::Found { owners, failure } = sys::owners::find(found.iter().filter(needs_owner));
    if let Some(why) = failure {
        unread.add("some processes", &why);
    }
    let owners = |full: &FullSocket| full.inode.and_then(|i| owners.get(&i).cloned()).unwrap_or(Owners::Nobody);
    let (listeners, close_wait): (Vec<_>, Vec<_>) = found.into_iter().partition(|full| full.state == TcpState::Listen);
    Ok(OpenSockets {
        listeners: listeners
            .into_iter()
            .map(|socket| OpenListener {
                owners: owners(&socket),
                autobound: autobound.as_ref().zip(socket.cookie).map(|(chosen, cookie)| chosen.contains(&cookie)),
                socket,
            })
            .collect(),
        close_wait: close_wait.into_iter().map(|socket| CloseWait { owners: owners(&socket), socket }).collect(),
        fallback: source.refusal.as_ref().map(ToString::to_string),
        complete: end.complete,
    })
}

impl Source {
    /// The listeners whose port the kernel chose; `None` where only a kernel can tell and this is none, or does not.
    fn autobound_listeners(&mut self) -> Result<Option<BTreeSet<Cookie>>, SourceError> {
        let Carrier::Kernel(netlink) = &mut self.carrier else { return Ok(None) };
        let states = StateSet::of(&[TcpState::Listen]);
        let program = bytecode::autobound();
        if program.is_none() {
            return Ok(None);
        }
        let request = Request { walk: Walk::BothFamilies, states, program, tcp_info: false };
        let mut chosen = BTreeSet::new();
        let end = dump::run(netlink, &request, &mut |socket| {
            chosen.extend(socket.cookie());
            ControlFlow::Continue(())
        });
        match end {
            Ok(end) => Ok((!end.interrupted).then_some(chosen)),
            // This kernel does not know the question.
            Err(DumpError::Refused { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}
