//! Counts the TIME_WAIT buckets on ports, and finds out which of these ports have a listener.

use std::collections::HashMap;

use super::{Answer, Snapshot, SnapshotError, interrupted};
use crate::filter::Filter;
use crate::model::facts::{Facts, Setting};
use crate::model::port::{Port, PortArg, PortUse};
use crate::model::socket::{Socket, StateSet, TcpState};
use crate::source::{self, Source, SourceChoice};

use super::error::BadValue;

/// Ports, each with the number of its TIME_WAIT buckets and whether a socket listens on it.
#[derive(Clone, Debug)]
pub struct PortUses {
    /// The facts of the network namespace.
    pub facts: Facts,
    /// Each port with its use; `None` if the sockets could not be read.
    pub ports: Vec<(Port, Option<PortUse>)>,
}

impl Snapshot {
    /// Counts the TIME_WAIT buckets on ports, and finds listeners, in one network namespace. `ipv4` selects IPv4 (true) or IPv6
    /// (false) on the wire. If the sockets cannot be read, this function returns an incomplete answer and not an error,
    /// because the class, service and ranges of a port do not depend on sockets.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub fn port_uses(&self, ports: &[PortArg], ipv4: Option<bool>) -> Result<Answer<PortUses>, SnapshotError> {
        self.kernel_namespaces()?.within(|| {
            let facts = source::kernel_facts();
            let mut numbers = vec![];
            for argument in ports {
                let range = facts.ports(argument).map_err(|why| BadValue::new(argument, "<PORT>...", &why))?;
                numbers.extend(range.ports());
            }
            let mut answer = Answer { warnings: facts.gaps(&Setting::ALL), ..Answer::whole(()) };
            answer.complete = answer.warnings.is_empty();
            let uses = match count_uses(ipv4, &facts) {
                Ok(uses) => {
                    let unknown = |port: &Port| uses.value.get(port).is_some_and(|one| one.listening.is_none());
                    if numbers.iter().any(unknown) {
                        answer.complete = false;
                        answer.warnings.push(
                            "/proc/net/tcp6 does not report whether a listener on :: also takes IPv4 connections"
                                .into(),
                        );
                    }
                    answer.complete &= uses.complete;
                    answer.warnings.extend(uses.warnings);
                    Some(uses.value)
                }
                Err(error) => {
                    answer.complete = false;
                    answer.warnings.push(error.to_string());
                    None
                }
            };
            let of = |port| Some(*uses.as_ref()?.get(&port).unwrap_or(&PortUse::NONE));
            let ports = numbers.into_iter().map(|port| (port, of(port))).collect();
            Ok(answer.with(PortUses { facts, ports }))
        })
    }
}

fn count_uses(ipv4: Option<bool>, facts: &Facts) -> Result<Answer<HashMap<Port, PortUse>>, SnapshotError> {
    let states = StateSet::of(&[TcpState::Listen, TcpState::TimeWait]);
    let mut source = Source::kernel_with(SourceChoice::Auto, facts.clone())?;
    let (by_port, end) = source.collect(states, &Filter::TRUE, HashMap::new, |by_port, socket| {
        let matches = ipv4.map_or(Some(true), |ipv4| uses_ip_version(socket, ipv4));
        let port_use: &mut PortUse = by_port.entry(socket.tuple().local_port()).or_insert(PortUse::NONE);
        match socket {
            Socket::Full(_) => {
                port_use.listening = match (port_use.listening, matches) {
                    (Some(true), _) | (_, Some(true)) => Some(true),
                    (None, _) | (_, None) => None,
                    (Some(false), Some(false)) => Some(false),
                }
            }
            Socket::Bucket(_) => port_use.time_wait += u64::from(matches == Some(true)),
        }
    })?;
    let mut warnings: Vec<String> = (!end.complete).then(interrupted).into_iter().collect();
    warnings.extend(source.warnings());
    Ok(Answer { complete: end.complete, warnings, ..Answer::whole(by_port) })
}

/// A dual-stack listener uses both versions. `None` if the source does not report whether a listener is dual-stack.
fn uses_ip_version(socket: &Socket, ipv4: bool) -> Option<bool> {
    let tuple = socket.tuple();
    match socket {
        _ if tuple.family.ipv4_on_the_wire() == ipv4 => Some(true),
        Socket::Full(full) if ipv4 && tuple.local_addr().is_unspecified() => full.v6only.map(|v6only| !v6only),
        _ => Some(false),
    }
}
