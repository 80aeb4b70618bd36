//! Reads what `twtool doctor` examines: settings, counters, listeners, sockets in CLOSE_WAIT, ports and capabilities.
//!
//! If a value cannot be read, the answer reports which value is missing, and why.

use std::io;

use super::capacity::{Capacity, CapacityQuestion, capacity_here};
use super::{Answer, Snapshot, SnapshotError, interrupted};
use crate::analysis::doctor::{self, BucketsByMaker, Check, LeakThreshold, OutboundConnections};
use crate::filter::Filter;
use crate::model::command::Shell;
use crate::model::facts::{Facts, Setting, UnreadFacts};
use crate::model::health::{CloseWait, Health, OpenListener, OpenSockets, SettingValue, Settings};
use crate::model::process::Owners;
use crate::model::socket::{FullSocket, Socket, StateSet, TcpState};
use crate::source::{Source, SourceChoice, SourceError, kernel_bucket_facts, kernel_facts, read_fact};
use crate::sys;

/// What `doctor` examines in one network namespace.
#[derive(Debug)]
pub struct Checkup {
    /// Settings, counters, listeners, and sockets in CLOSE_WAIT.
    pub health: Health,
    /// The ports of outbound connections, or why they are unknown.
    pub outbound: Result<Capacity, String>,
    /// The TIME_WAIT buckets by the program that closed their connections. [`Snapshot::health`] returns `None`; `twtool doctor` sets
    /// the value if a tracer runs.
    pub made: Option<BucketsByMaker>,
}

impl Checkup {
    /// Describes each setting, counter and kind of socket, with a finding if there is evidence of a problem. The commands in
    /// the result are quoted for `shell`.
    #[must_use]
    pub fn checks(&self, leak: LeakThreshold, shell: &Shell) -> Vec<Check> {
        let outbound = self.outbound.as_ref().map_err(String::as_str);
        let outbound = outbound.map(|capacity| OutboundConnections {
            destinations: &capacity.destinations,
            conditions: capacity.conditions(),
        });
        doctor::examine(&self.health, outbound, self.made.as_ref(), leak, shell)
    }
}

impl Snapshot {
    /// Reads settings, counters and sockets of one network namespace. `ipv4` selects sockets with IPv4 (true) or IPv6
    /// (false) on the wire. Ports are not tested, so it stays uncertain whether some of them are explicitly bound (see
    /// [`CapacityQuestion::probe`]).
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub fn health(&self, ipv4: Option<bool>) -> Result<Answer<Checkup>, SnapshotError> {
        self.kernel_namespaces()?.within(|| {
            let mut health = read();
            if let Some(ipv4) = ipv4 {
                keep_family(&mut health, ipv4);
            }
            let outbound = outbound(&health.facts, ipv4);
            let dump_interrupted = health.sockets.as_ref().is_ok_and(|open| !open.complete);
            let mut warnings: Vec<String> = dump_interrupted.then(interrupted).into_iter().collect();
            warnings.extend(health.facts.other_gaps());
            let outbound = outbound.map(|answer| {
                // If the capacity answer is complete, its warnings are only about the fallback to procfs. They are dropped,
                // because the fallback does not change the checks of the ports.
                let new = answer.warnings.into_iter().filter(|warning| !answer.complete && !warnings.contains(warning));
                warnings.extend(new.collect::<Vec<_>>());
                answer.value
            });
            let complete = warnings.is_empty();
            Ok(Answer { complete, warnings, ..Answer::whole(Checkup { health, outbound, made: None }) })
        })
    }
}

/// Counts the ports of outbound connections. This needs a separate dump, because the dump for the other checks requests
/// `struct tcp_info`, for which the kernel locks each connection.
fn outbound(facts: &Facts, ipv4: Option<bool>) -> Result<Answer<Capacity>, String> {
    if facts.local_reserved_ports.is_none() {
        return Err(SnapshotError::Unread(Setting::LocalReservedPorts).to_string());
    }
    capacity_here(&CapacityQuestion { ipv4, ..CapacityQuestion::default() }).map_err(|error| error.to_string())
}

/// Keeps the sockets with IPv4, or with IPv6, on the wire. A listener on `::` may use both.
fn keep_family(health: &mut Health, ipv4: bool) {
    if let Ok(OpenSockets { listeners, close_wait, .. }) = &mut health.sockets {
        close_wait.retain(|one| one.socket.tuple.family.ipv4_on_the_wire() == ipv4);
        listeners.retain(|one| {
            let dual = one.socket.tuple.local_addr().is_unspecified() && one.socket.v6only != Some(true);
            one.socket.tuple.family.ipv4_on_the_wire() == ipv4 || (ipv4 && dual)
        });
    }
}

fn read() -> Health {
    let mut facts = kernel_facts();
    let mut unread = UnreadFacts::default();
    let buckets = kernel_bucket_facts(&mut unread);
    let sockets = sockets(&facts, &mut unread).map_err(|error| error.to_string());
    let capabilities = read_fact(&mut unread, "/proc/thread-self/status", sys::capabilities::effective());
    facts.unread.0.extend(unread.0);
    Health { settings: settings(), buckets, sockets, capabilities, facts }
}

pub(super) fn settings() -> Settings {
    Settings(Settings::keys().map(|name| (name, setting(name))).collect())
}

fn setting(name: &str) -> SettingValue {
    match sys::sysctl::read(name) {
        Ok(value) => SettingValue::Value(value),
        Err(error) if error.kind() == io::ErrorKind::NotFound => SettingValue::Absent,
        Err(error) => SettingValue::Unreadable(error.to_string()),
    }
}

fn sockets(facts: &Facts, unread: &mut UnreadFacts) -> Result<OpenSockets, SourceError> {
    let mut source = Source::kernel_with(SourceChoice::Auto, facts.clone())?.with_tcp_info();
    let states = StateSet::of(&[TcpState::Listen, TcpState::CloseWait]);
    let (found, end) = source.collect(states, &Filter::TRUE, Vec::new, |found: &mut Vec<FullSocket>, socket| {
        if let Socket::Full(full) = socket {
            found.push(*full);
        }
    })?;
    let mut open = open_sockets(&mut source, facts, found, end.complete)?;
    find_owners([(facts, &mut open)], unread);
    Ok(open)
}

/// Separates listeners from sockets in CLOSE_WAIT, sorts both, and asks the kernel which listeners have a port that it chose.
pub(super) fn open_sockets(
    source: &mut Source,
    facts: &Facts,
    mut found: Vec<FullSocket>,
    complete: bool,
) -> Result<OpenSockets, SourceError> {
    found.sort_by_key(|full| {
        let tuple = full.tuple;
        (tuple.local_port(), tuple.local_addr(), tuple.remote_addr(), tuple.remote_port(), full.cookie)
    });
    // `autobound_listeners` makes another dump, so it is called only if a listener has a port in the ephemeral range.
    let ephemeral = |full: &FullSocket| facts.ephemeral(full.tuple.local_port()) == Some(true);
    let any = found.iter().any(|full| full.state == TcpState::Listen && ephemeral(full));
    let autobound = if any { source.autobound_listeners()? } else { None };
    let (listeners, close_wait): (Vec<_>, Vec<_>) = found.into_iter().partition(|full| full.state == TcpState::Listen);
    Ok(OpenSockets {
        listeners: listeners
            .into_iter()
            .map(|socket| OpenListener {
                owners: Owners::Nobody,
                autobound: autobound.as_ref().zip(socket.cookie).map(|(chosen, cookie)| chosen.contains(&cookie)),
                socket,
            })
            .collect(),
        close_wait: close_wait
            .into_iter()
            .map(|socket| CloseWait { owners: Owners::Nobody, user: sys::users::user(socket.uid), socket })
            .collect(),
        fallback: source.refusal(),
        complete,
    })
}

/// Finds the owners of the sockets of one or several network namespaces, in one search through the processes.
pub(super) fn find_owners<'a>(
    namespaces: impl IntoIterator<Item = (&'a Facts, &'a mut OpenSockets)>,
    unread: &mut UnreadFacts,
) {
    let mut wanted: Vec<(FullSocket, &mut Owners)> = vec![];
    for (facts, OpenSockets { listeners, close_wait, .. }) in namespaces {
        let ephemeral = |one: &&mut OpenListener| facts.ephemeral(one.socket.tuple.local_port()) == Some(true);
        wanted.extend(listeners.iter_mut().filter(ephemeral).map(|one| (one.socket, &mut one.owners)));
        wanted.extend(close_wait.iter_mut().map(|one| (one.socket, &mut one.owners)));
    }
    let sys::owners::SocketOwners { owners, failure } = sys::owners::find(wanted.iter().map(|(socket, _)| socket));
    if let Some(why) = failure {
        unread.add("some processes", &why);
    }
    for (socket, found) in wanted {
        *found = socket.inode.and_then(|inode| owners.get(&inode).cloned()).unwrap_or(Owners::Nobody);
    }
}
