//! Advice for a port that a client used as its source port: a connection to itself, or a fixed source port.

use super::{BindEvidence, blocking};
use crate::model::bind::Holder;
use crate::model::row::Direction;
use crate::model::socket::Socket;

fn outbound<'a>(evidence: &BindEvidence<'a>) -> impl Iterator<Item = &'a Holder> + Clone {
    blocking(evidence).filter(|holder| holder.direction == Direction::Outbound)
}

fn is_self_connection(holder: &Holder) -> bool {
    holder.socket.tuple().is_self_connection()
}

/// The blocking outbound connections that [`sentences`] does not explain. It explains connections of a socket to itself, and
/// connections whose source port lies outside the ephemeral range, because their client bound the port.
pub(super) fn unexplained<'a>(evidence: &BindEvidence<'a>) -> impl Iterator<Item = &'a Holder> + Clone {
    let fixed = evidence.facts.ephemeral(evidence.port) == Some(false);
    outbound(evidence).filter(move |holder| !fixed && !is_self_connection(holder))
}

pub(super) fn sentences(evidence: &BindEvidence) -> Vec<String> {
    let to_itself = outbound(evidence).find(|holder| is_self_connection(holder));
    let other = outbound(evidence).find(|holder| !is_self_connection(holder));
    let fixed = evidence.facts.ephemeral(evidence.port) == Some(false);
    let to_itself = to_itself.map(|holder| self_connection(evidence, holder));
    let other = other.filter(|_| fixed).map(|holder| fixed_port(evidence, holder));
    to_itself.into_iter().chain(other).collect()
}

fn self_connection(evidence: &BindEvidence, holder: &Holder) -> String {
    let BindEvidence { facts, port, .. } = *evidence;
    let addr = holder.socket.tuple().local_addr();
    let what = match holder.socket {
        Socket::Bucket(_) => "The TIME_WAIT socket is from a connection to itself",
        Socket::Full(_) => "A connection to itself holds the port",
    };
    let how = if facts.ephemeral(port) == Some(true) {
        "A client connected to the port while no server listened there, and the kernel probably chose the same port as \
         the source port. A client that reconnects in a loop does this sooner or later (RFC 9293, section 3.5, \
         simultaneous open)."
    } else if facts.ephemeral(port) == Some(false) {
        "A client bound the port as its source port and connected to it while no server listened there."
    } else {
        "A client connected to the port while no server listened there. The client bound the port, or the kernel chose it."
    };
    let cure = if facts.ephemeral(port) == Some(true) && facts.locally_reserved(port) == Some(false) {
        " Reserve the port: connect() never chooses a reserved port."
    } else {
        ""
    };
    format!("{what}: both ends are {addr} port {port}. {how}{cure}")
}

fn fixed_port(evidence: &BindEvidence, holder: &Holder) -> String {
    let (port, tuple) = (evidence.port, holder.socket.tuple());
    format!(
        "A client on this machine connected from port {port} to {} port {} (inferred). The port is outside \
         net.ipv4.ip_local_port_range, so the client bound it as a fixed source port. If the client is your program, \
         let the kernel choose the source port, or set SO_REUSEADDR before each bind(). If the old and the new socket \
         have the option and the old connection had timestamps, connect() to the same destination takes over the \
         TIME_WAIT socket of that connection.",
        tuple.remote_addr(),
        tuple.remote_port(),
    )
}
