//! Reads names and ports for shell completion. To be fast, it reads only the first sockets, so a list of ports may be incomplete.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::ops::ControlFlow;

use super::{Snapshot, SnapshotError};
use crate::filter::Filter;
use crate::model::port::Port;
use crate::model::services::Services;
use crate::model::socket::{Socket, StateSet, TcpState};
use crate::source::{Source, SourceChoice};
use crate::sys;

/// The maximum number of sockets to read, which takes about 4 ms (Linux 6.18, 2026-11-28). The kernel sends listeners first, so
/// the limit mostly cuts off buckets.
const MAX_SOCKETS: usize = 10_000;

/// The sockets on a port: whether any listens, and how many are in TIME_WAIT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UsedPort {
    /// Whether a socket listens on the port.
    pub listening: bool,
    /// The number of TIME_WAIT sockets among the sockets that were read.
    pub time_wait: usize,
}

/// The names that network namespaces have in ip-netns(8); empty if the names cannot be read.
#[must_use]
pub fn netns_names() -> Vec<OsString> {
    sys::netns::ip_netns_names().unwrap_or_default()
}

impl Snapshot {
    /// The names of the interfaces of one network namespace.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn interface_names(&self) -> Result<Vec<String>, SnapshotError> {
        self.namespaces.within(|| Ok(sys::interfaces::here().list().into_values().collect()))
    }

    /// The ports that sockets use in one network namespace, and the names of services. If `remote`, these are the remote ports of TIME_WAIT
    /// sockets; otherwise the local ports of listeners and of TIME_WAIT sockets.
    ///
    /// # Errors
    /// The namespace cannot be entered, or its sockets cannot be read.
    pub fn used_ports(&self, remote: bool) -> Result<(BTreeMap<Port, UsedPort>, Services), SnapshotError> {
        self.namespaces.within(|| {
            let mut ports: BTreeMap<Port, UsedPort> = BTreeMap::new();
            let mut read = 0;
            let states = StateSet::of(&[TcpState::Listen, TcpState::TimeWait]);
            let mut source = Source::kernel(SourceChoice::Auto)?;
            source.walk(states, &Filter::TRUE, &mut |socket| {
                let tuple = socket.tuple();
                match socket {
                    Socket::Full(_) if remote => {}
                    Socket::Full(_) => ports.entry(tuple.local_port()).or_default().listening = true,
                    Socket::Bucket(_) => {
                        let port = if remote { tuple.remote_port() } else { tuple.local_port() };
                        ports.entry(port).or_default().time_wait += 1;
                    }
                }
                read += 1;
                if read < MAX_SOCKETS { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
            Ok((ports, source.facts().services.clone()))
        })
    }
}
