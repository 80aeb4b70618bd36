//! An old segment ends TIME_WAIT early (RFC 1337 calls this assassination). The bucket answers the old segment with an ACK. The peer
//! answers the ACK with a RST, and the RST removes the bucket. No segment is forged. The setting `tcp_rfc1337` decides whether the
//! kernel obeys the RST.

use std::io::{Read as _, Write as _};

use super::transcript::Transcript;
use super::wire::{Wire, state_name};
use super::{Connection, LabError, step};
use crate::model::experiment::{Actor, Side};
use crate::model::socket::TcpState::{Established, TimeWait};

pub(super) fn play(transcript: &mut Transcript) -> Result<(), LabError> {
    attempt(transcript, false)?;
    attempt(transcript, true)
}

fn attempt(transcript: &mut Transcript, protected: bool) -> Result<(), LabError> {
    let (title, value) = if protected { ("tcp_rfc1337 = 1", "1") } else { ("tcp_rfc1337 = 0, the default", "0") };
    transcript.part(title, "An old data segment arrives after the connection has ended, as in 'stale-segment'.")?;
    let mut wire = Wire::create()?;
    wire.set(Side::Server, "ipv4.tcp_rfc1337", value)?;
    transcript.call(Actor::Lab, &format!("tcp_rfc1337 = {value} at the server"), "")?;
    let Connection { mut client, mut server } = wire.connect(transcript, 0, false)?;
    transcript.call(Actor::Side(Side::Client), "write(\"old-bytes!\")", "")?;
    client.write_all(b"old-bytes!").map_err(step("write()"))?;
    let old = wire.carry(transcript, Side::Client, (Some(Established), Some(Established)), "The wire keeps a copy.")?;
    wire.carry(transcript, Side::Server, (Some(Established), Some(Established)), "")?;
    // A close() with unread bytes would send a RST.
    server.read_exact(&mut [0; 10]).map_err(step("read()"))?;
    transcript.call(Actor::Side(Side::Server), "close()", "")?;
    drop(server);
    wire.finish_close(transcript, client, Some(TimeWait))?;
    wire.arrive_late(transcript, &old, (None, Some(TimeWait)), "The copy arrives after the connection has ended.")?;
    wire.carry(
        transcript,
        Side::Server,
        (Some(TimeWait), None),
        "TIME_WAIT answers with an ACK, but the client has no socket for it.",
    )?;
    let (left, note) = if protected {
        (Some(TimeWait), "The server's kernel ignores the RST, so TIME_WAIT stays.")
    } else {
        (
            None,
            "The client's kernel does not know this connection and sends a RST. The RST ends TIME_WAIT long before its timer.",
        )
    };
    wire.carry(transcript, Side::Client, (None, left), note)?;
    let observed = wire.find(Side::Server)?.map(|socket| socket.state());
    let passive = "syn-sent, established, close-wait, last-ack, gone";
    let active = "syn-recv, established, fin-wait-1, fin-wait-2, time-wait";
    let active = if protected { active.to_owned() } else { format!("{active}, gone") };
    let segments = "SYN, SYN ACK, ACK, PSH ACK, ACK, FIN ACK, ACK, FIN ACK, ACK, PSH ACK (late), ACK, RST";
    wire.check(transcript, [passive, &active], segments)?;
    transcript.check("the server's socket after the RST", state_name(left), state_name(observed))
}
