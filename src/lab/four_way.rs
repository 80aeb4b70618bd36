//! How a connection ends (RFC 9293, section 3.6): one side closes first, both close at the same time, half-close, and a reset.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::time::Duration;

use super::transcript::{EventDetails, Transcript};
use super::wire::Wire;
use super::{Connection, LabError, step};
use crate::model::bind::Errno;
use crate::model::experiment::{Actor, ReturnValue, Side};
use crate::model::socket::TcpState::{CloseWait, Closing, FinWait1, FinWait2, LastAck, TimeWait};
use crate::sys;

const CONNECTED: [&str; 2] = ["syn-sent, established", "syn-recv, established"];

pub(super) fn play(transcript: &mut Transcript) -> Result<(), LabError> {
    close_both_directions(transcript, Side::Server)?;
    close_both_directions(transcript, Side::Client)?;
    both_at_once(transcript)?;
    close_one_direction(transcript)?;
    close_with_reset(transcript)
}

fn with_handshake(client: &str, server: &str) -> [String; 2] {
    [format!("{}, {client}", CONNECTED[0]), format!("{}, {server}", CONNECTED[1])]
}

fn check(
    transcript: &mut Transcript,
    wire: &mut Wire,
    client: &str,
    server: &str,
    segments: &str,
) -> Result<(), LabError> {
    let [client, server] = with_handshake(client, server);
    wire.check(transcript, [&client, &server], &format!("SYN, SYN ACK, ACK, {segments}"))
}

/// Closes both directions one after the other, with four segments. `first` is the side that closes first.
fn close_both_directions(transcript: &mut Transcript, first: Side) -> Result<(), LabError> {
    let second = first.other();
    let (title, why) = match first {
        Side::Server => ("The server closes first", "So TIME_WAIT will be on the server's port."),
        Side::Client => ("The client closes first", "So TIME_WAIT will be on the client's ephemeral port."),
    };
    transcript.part(title, why)?;
    let mut wire = Wire::create()?;
    let Connection { client, server } = wire.connect(transcript, 0, first == Side::Server)?;
    let (one, other) = if first == Side::Server { (server, client) } else { (client, server) };
    transcript.call(Actor::Side(first), "close()", "")?;
    drop(one);
    wire.carry(transcript, first, (Some(FinWait1), Some(CloseWait)), "FIN: \"I have nothing more to send.\"")?;
    let note =
        "The kernel acknowledges the FIN by itself. The program has not closed its socket yet, and can still send.";
    wire.carry(transcript, second, (Some(CloseWait), Some(FinWait2)), note)?;
    transcript.call(Actor::Side(second), "close()", "")?;
    drop(other);
    let note = "The other direction ends too. The side that closed first now waits in TIME_WAIT, without a process.";
    wire.carry(transcript, second, (Some(LastAck), Some(TimeWait)), note)?;
    let note = "The last ACK. No segment acknowledges it, so its sender cannot know whether it arrived. That is why \
                TIME_WAIT exists.";
    wire.carry(transcript, first, (Some(TimeWait), None), note)?;
    let waiting = "fin-wait-1, fin-wait-2, time-wait";
    let passive = "close-wait, last-ack, gone";
    let [client, server] = if first == Side::Server { [passive, waiting] } else { [waiting, passive] };
    check(transcript, &mut wire, client, server, "FIN ACK, ACK, FIN ACK, ACK")
}

fn both_at_once(transcript: &mut Transcript) -> Result<(), LabError> {
    transcript
        .part("Both close at the same time", "Each side sends its FIN before the FIN of the other side arrives.")?;
    let mut wire = Wire::create()?;
    let Connection { client, server } = wire.connect(transcript, 0, false)?;
    transcript.call(Actor::Side(Side::Client), "close()", "")?;
    drop(client);
    transcript.call(Actor::Side(Side::Server), "close()", "")?;
    drop(server);
    let note = "Each side expects an ACK but gets a FIN, so it enters CLOSING.";
    wire.cross(transcript, (Some(FinWait1), Some(Closing)), note)?;
    let note = "Each side closed before it got the FIN of the other side, so both keep TIME_WAIT.";
    wire.cross(transcript, (Some(Closing), Some(TimeWait)), note)?;
    let states = "fin-wait-1, closing, time-wait";
    check(transcript, &mut wire, states, states, "FIN ACK, FIN ACK, ACK, ACK")
}

fn close_one_direction(transcript: &mut Transcript) -> Result<(), LabError> {
    transcript.part("Half-close", "shutdown(SHUT_WR) ends one direction. The other direction stays open.")?;
    let mut wire = Wire::create()?;
    let Connection { mut client, mut server } = wire.connect(transcript, 0, false)?;
    transcript.call(Actor::Side(Side::Client), "shutdown(SHUT_WR)", "")?;
    client.shutdown(Shutdown::Write).map_err(step("shutdown()"))?;
    wire.carry(transcript, Side::Client, (Some(FinWait1), Some(CloseWait)), "")?;
    wire.carry(transcript, Side::Server, (Some(CloseWait), Some(FinWait2)), "The client can still read.")?;
    transcript.call(Actor::Side(Side::Server), "write(\"more\")", "")?;
    server.write_all(b"more").map_err(step("write()"))?;
    wire.carry(
        transcript,
        Side::Server,
        (Some(CloseWait), Some(FinWait2)),
        "The server sends data after the FIN of the client.",
    )?;
    wire.carry(transcript, Side::Client, (Some(FinWait2), Some(CloseWait)), "")?;
    let mut buffer = [0; 64];
    let length = client.read(&mut buffer).map_err(step("read()"))?;
    let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
    transcript.called(Actor::Side(Side::Client), "read()", ReturnValue::Read(text.clone()), EventDetails::default())?;
    transcript.call(Actor::Side(Side::Server), "close()", "")?;
    drop(server);
    wire.carry(transcript, Side::Server, (Some(LastAck), Some(TimeWait)), "")?;
    let note =
        "CLOSE_WAIT lasts until the server's program closes the socket. A program that never does so leaks sockets.";
    wire.carry(transcript, Side::Client, (Some(TimeWait), None), note)?;
    let (client, server) = ("fin-wait-1, fin-wait-2, time-wait", "close-wait, last-ack, gone");
    check(transcript, &mut wire, client, server, "FIN ACK, ACK, PSH ACK, ACK, FIN ACK, ACK")?;
    transcript.check("read by the client after its FIN", "more", text)
}

fn close_with_reset(transcript: &mut Transcript) -> Result<(), LabError> {
    transcript.part("A reset", "With SO_LINGER and 0 s, close() drops the connection at once.")?;
    let mut wire = Wire::create()?;
    let Connection { mut client, server } = wire.connect(transcript, 0, false)?;
    transcript.call(Actor::Side(Side::Server), "close() with SO_LINGER {1, 0}", "")?;
    server.set_linger(Some(Duration::ZERO)).map_err(step("SO_LINGER"))?;
    drop(server);
    let note = "The server sends a RST instead of a FIN, so there is no TIME_WAIT. Data under way is lost, so this is not a solution.";
    wire.carry(transcript, Side::Server, (None, None), note)?;
    let failed = client.read(&mut [0; 64]).err();
    let outcome = failed.map_or(ReturnValue::Done, |error| ReturnValue::Failed(sys::bind::errno(&error)));
    let observed = outcome.errno().map_or("ok", Errno::name);
    transcript.called(Actor::Side(Side::Client), "read()", outcome, EventDetails::default())?;
    check(transcript, &mut wire, "gone", "gone", "RST ACK")?;
    transcript.check("read() of the client", "ECONNRESET", observed)
}
