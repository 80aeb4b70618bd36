//! How a connection ends (RFC 9293, section 3.6): either end first, both at once, one direction alone, and by a reset.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::time::Duration;

use super::transcript::{Details, Transcript};
use super::wire::Wire;
use super::{Connection, LabError, step};
use crate::model::bind::Errno;
use crate::model::experiment::{Actor, ReturnValue, Side};
use crate::model::socket::TcpState::{CloseWait, Closing, FinWait1, FinWait2, LastAck, TimeWait};
use crate::sys;

const CONNECTED: [&str; 2] = ["syn-sent, established", "syn-recv, established"];

pub(super) fn play(transcript: &mut Transcript) -> Result<(), LabError> {
    orderly(transcript, Side::Server)?;
    orderly(transcript, Side::Client)?;
    both_at_once(transcript)?;
    half(transcript)?;
    reset(transcript)
}

/// The states of both ends after they connected, each followed by what is its own.
fn after_connecting(client: &str, server: &str) -> [String; 2] {
    [format!("{}, {client}", CONNECTED[0]), format!("{}, {server}", CONNECTED[1])]
}

fn check(transcript: &mut Transcript, wire: &mut Wire, client: &str, server: &str, segments: &str) -> Result<(), LabError> {
    let [client, server] = after_connecting(client, server);
    wire.check(transcript, [&client, &server], &format!("SYN, SYN ACK, ACK, {segments}"))
}

/// The four segments, this side first.
fn orderly(transcript: &mut Transcript, first: Side) -> Result<(), LabError> {
    let second = first.other();
    let (title, why) = match first {
        Side::Server => ("The server closes first", "So TIME_WAIT will be on the server's port."),
        Side::Client => ("The client closes first", "So TIME_WAIT will be on the client's ephemeral port."),
    };
    transcript.part(title, why)?;
    let mut wire = Wire::lay()?;
    let Connection { client, server } = wire.connect(transcript, 0, first == Side::Server)?;
    let (one, other) = if first == Side::Server { (server, client) } else { (client, server) };
    transcript.call(Actor::Side(first), "close()", "")?;
    drop(one);
    wire.carry(transcript, first, (Some(FinWait1), Some(CloseWait)), "FIN: \"I have nothing more to send.\"")?;
    let note = "The kernel acknowledges it by itself. The program has not closed yet, and may go on sending.";
    wire.carry(transcript, second, (Some(CloseWait), Some(FinWait2)), note)?;
    transcript.call(Actor::Side(second), "close()", "")?;
    drop(other);
    let note = "The other direction ends too. Whoever closed first now waits, without a process.";
    wire.carry(transcript, second, (Some(LastAck), Some(TimeWait)), note)?;
    let note = "The last ACK. Nobody acknowledges it, so its sender cannot know whether it arrived: that is what \
                TIME_WAIT is for.";
    wire.carry(transcript, first, (Some(TimeWait), None), note)?;
    let waiting = "fin-wait-1, fin-wait-2, time-wait";
    let passive = "close-wait, last-ack, gone";
    let [client, server] = if first == Side::Server { [passive, waiting] } else { [waiting, passive] };
    check(transcript, &mut wire, client, server, "FIN ACK, ACK, FIN ACK, ACK")
}

/// Both FINs are under way before either arrives.
fn both_at_once(transcript: &mut Transcript) -> Result<(), LabError> {
    transcript.part("Both close at the same time", "Each FIN is under way when the other is sent.")?;
    let mut wire = Wire::lay()?;
    let Connection { client, server } = wire.connect(transcript, 0, false)?;
    transcript.call(Actor::Side(Side::Client), "close()", "")?;
    drop(client);
    transcript.call(Actor::Side(Side::Server), "close()", "")?;
    drop(server);
    let note = "A FIN came where an ACK was awaited: CLOSING.";
    wire.cross(transcript, (Some(FinWait1), Some(Closing)), note)?;
    let note = "Both were first, so both ends keep TIME_WAIT.";
    wire.cross(transcript, (Some(Closing), Some(TimeWait)), note)?;
    let states = "fin-wait-1, closing, time-wait";
    check(transcript, &mut wire, states, states, "FIN ACK, FIN ACK, ACK, ACK")
}

/// One direction ends, and the other goes on.
fn half(transcript: &mut Transcript) -> Result<(), LabError> {
    transcript.part("Half-close", "shutdown(SHUT_WR) ends one direction; the other goes on as long as it likes.")?;
    let mut wire = Wire::lay()?;
    let Connection { mut client, mut server } = wire.connect(transcript, 0, false)?;
    transcript.call(Actor::Side(Side::Client), "shutdown(SHUT_WR)", "")?;
    client.shutdown(Shutdown::Write).map_err(step("shutdown()"))?;
    wire.carry(transcript, Side::Client, (Some(FinWait1), Some(CloseWait)), "")?;
    wire.carry(transcript, Side::Server, (Some(CloseWait), Some(FinWait2)), "The client still reads.")?;
    transcript.call(Actor::Side(Side::Server), "write(\"more\")", "")?;
    server.write_all(b"more").map_err(step("write()"))?;
    wire.carry(transcript, Side::Server, (Some(CloseWait), Some(FinWait2)), "Data after the FIN of the other side.")?;
    wire.carry(transcript, Side::Client, (Some(FinWait2), Some(CloseWait)), "")?;
    let mut buffer = [0; 64];
    let length = client.read(&mut buffer).map_err(step("read()"))?;
    let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
    transcript.called(Actor::Side(Side::Client), "read()", ReturnValue::Read(text.clone()), Details::default())?;
    transcript.call(Actor::Side(Side::Server), "close()", "")?;
    drop(server);
    wire.carry(transcript, Side::Server, (Some(LastAck), Some(TimeWait)), "")?;
    let note = "CLOSE_WAIT lasted as long as the server's program wanted; a program that never closes is the leak.";
    wire.carry(transcript, Side::Client, (Some(TimeWait), None), note)?;
    let (client, server) = ("fin-wait-1, fin-wait-2, time-wait", "close-wait, last-ack, gone");
    check(transcript, &mut wire, client, server, "FIN ACK, ACK, PSH ACK, ACK, FIN ACK, ACK")?;
    transcript.check("read by the client after its FIN", "more", text)
}

/// SO_LINGER with 0 s.
fn reset(transcript: &mut Transcript) -> Result<(), LabError> {
    transcript.part("A reset", "SO_LINGER with 0 s makes close() throw the connection away.")?;
    let mut wire = Wire::lay()?;
    let Connection { mut client, server } = wire.connect(transcript, 0, false)?;
    transcript.call(Actor::Side(Side::Server), "close() with SO_LINGER {1, 0}", "")?;
    server.set_linger(Some(Duration::ZERO)).map_err(step("SO_LINGER"))?;
    drop(server);
    let note = "No goodbye, so no TIME_WAIT, and what was still under way is lost. It is no cure.";
    wire.carry(transcript, Side::Server, (None, None), note)?;
    let failed = client.read(&mut [0; 64]).err();
    let outcome = failed.map_or(ReturnValue::Done, |error| ReturnValue::Failed(sys::bind::errno(&error)));
    let observed = outcome.errno().map_or("ok", Errno::name);
    transcript.called(Actor::Side(Side::Client), "read()", outcome, Details::default())?;
    check(transcript, &mut wire, "gone", "gone", "RST ACK")?;
    transcript.check("read() of the client", "ECONNRESET", observed)
}
