//! A single host: a network namespace whose connections run over `lo`. The lab captures every segment on `lo`.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use socket2::Socket as OsSocket;

use super::frame::InitialSequences;
use super::transcript::Transcript;
use super::{LabError, Server, step};
use crate::model::bind::{Errno, ReuseOptions};
use crate::model::experiment::{Actor, ReturnValue, Side};
use crate::sys;
use crate::sys::packet::PacketSocket;
use crate::sys::sandbox;

/// The first port for clients. Servers of the lab use lower ports.
const FIRST_CLIENT_PORT: u16 = 32_768;

pub(super) const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// The namespace of the calling thread, with a capture of its segments.
pub(super) struct Loopback {
    packets: PacketSocket,
    /// The initial sequence numbers of each connection, by the client's port.
    sequences: BTreeMap<u16, InitialSequences>,
}

impl Loopback {
    /// Moves the calling thread into a new namespace.
    pub(super) fn enter() -> Result<Self, LabError> {
        sandbox::enter_network_namespace()?;
        let packets = PacketSocket::open().map_err(step("opening a packet socket"))?;
        Ok(Self { packets, sequences: BTreeMap::new() })
    }

    /// Reports the segments since the last call. If `routine` is true, the text output leaves them out.
    pub(super) fn report_segments(&mut self, transcript: &mut Transcript, routine: bool) -> Result<(), LabError> {
        while let Some(frame) = self.packets.receive(Duration::ZERO).map_err(step("receiving from a packet socket"))? {
            // The ports are the first two fields of the TCP header (16 bits each), behind 14 bytes of Ethernet and 20 bytes of IPv4.
            let ports = |at: usize| frame.bytes.get(at..at + 2).and_then(|two| two.try_into().ok());
            let client = [34, 36].into_iter().filter_map(ports).map(u16::from_be_bytes).max().unwrap_or_default();
            let sender = |port| if port >= FIRST_CLIENT_PORT { Side::Client } else { Side::Server };
            if let Some(segment) = self.sequences.entry(client).or_default().read(frame, sender) {
                let before = std::mem::replace(&mut transcript.routine, routine);
                transcript.captured(segment)?;
                transcript.routine = before;
            }
        }
        Ok(())
    }
}

/// Changes a setting of the calling thread's namespace, and reports the change.
pub(super) fn write_setting(
    transcript: &mut Transcript,
    setting: &str,
    value: &str,
    note: &str,
) -> Result<(), LabError> {
    sys::sysctl::write(setting, value).map_err(step("changing a sysctl of the lab"))?;
    let name = setting.rsplit('.').next().unwrap_or(setting);
    transcript.call(Actor::Lab, &format!("{name} = {value}"), note)
}

/// Starts a server that listens on every IPv4 address.
pub(super) fn listen(port: u16) -> Result<Server, LabError> {
    Server::listen(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)), ReuseOptions::NONE)
}

/// The result of a call for which the kernel chooses a port: the socket and its port, or the errno.
pub(super) type ChosenSocket = Result<(OsSocket, u16), Errno>;

/// Calls connect() on a new socket. The kernel chooses the local port.
pub(super) fn connect(to: SocketAddr) -> Result<ChosenSocket, LabError> {
    let socket = sys::bind::socket(to.ip(), ReuseOptions::NONE).map_err(step("socket()"))?;
    let connected = socket.connect(&to.into());
    chosen_socket(socket, connected)
}

pub(super) fn bind_to_zero() -> Result<ChosenSocket, LabError> {
    let socket = sys::bind::socket(LOCALHOST, ReuseOptions::NONE).map_err(step("socket()"))?;
    let bound = socket.bind(&SocketAddr::from((LOCALHOST, 0)).into());
    chosen_socket(socket, bound)
}

fn chosen_socket(socket: OsSocket, called: std::io::Result<()>) -> Result<ChosenSocket, LabError> {
    if let Err(error) = called {
        return Ok(Err(sys::bind::errno(&error)));
    }
    let port = super::inet(&socket.local_addr().map_err(step("getsockname()"))?)?.port();
    Ok(Ok((socket, port)))
}

pub(super) fn outcome(chosen: &ChosenSocket) -> ReturnValue {
    match chosen {
        Ok((_, port)) => ReturnValue::Value(format!("port {port}")),
        Err(errno) => ReturnValue::Failed(*errno),
    }
}

/// Returns `ok`, or the name of the errno.
pub(super) fn word(chosen: &ChosenSocket) -> &'static str {
    chosen.as_ref().map_or_else(|errno| errno.name(), |_| "ok")
}
