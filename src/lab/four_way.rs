//! How a connection ends (RFC 9293, section 3.6): either end first, both at once, one direction alone, and by a reset.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::time::Duration;

use super::story::{Seen, Story};
use super::wire::Wire;
use super::{Connection, LabError, step};
use crate::model::bind::Errno;
use crate::model::experiment::{Actor, Outcome, Side};
use crate::model::socket::TcpState::{CloseWait, Closing, FinWait1, FinWait2, LastAck, TimeWait};
use crate::sys;

const CONNECTED: [&str; 2] = ["syn-sent, established", "syn-recv, established"];

pub(super) fn play(story: &mut Story) -> Result<(), LabError> {
    orderly(story, Side::Server)?;
    orderly(story, Side::Client)?;
    both_at_once(story)?;
    half(story)?;
    reset(story)
}

/// The states of both ends after they connected, each followed by what is its own.
fn after_connecting(client: &str, server: &str) -> [String; 2] {
    [format!("{}, {client}", CONNECTED[0]), format!("{}, {server}", CONNECTED[1])]
}

fn check(story: &mut Story, wire: &mut Wire, client: &str, server: &str, segments: &str) -> Result<(), LabError> {
    let [client, server] = after_connecting(client, server);
    wire.check(story, [&client, &server], &format!("SYN, SYN ACK, ACK, {segments}"))
}

/// The four segments, this side first.
fn orderly(story: &mut Story, first: Side) -> Result<(), LabError> {
    let second = first.other();
    let (title, why) = match first {
        Side::Server => ("The server closes first", "So TIME_WAIT will be on the server's port."),
        Side::Client => ("The client closes first", "So TIME_WAIT will be on the client's ephemeral port."),
    };
    story.part(title, why)?;
    let mut wire = Wire::lay()?;
    let Connection { client, server } = wire.connect(story, 0, first == Side::Server)?;
    let (one, other) = if first == Side::Server { (server, client) } else { (client, server) };
    story.call(Actor::Side(first), "close()", "")?;
    drop(one);
    wire.carry(story, first, (Some(FinWait1), Some(CloseWait)), "FIN: \"I have nothing more to send.\"")?;
    let note = "The kernel acknowledges it by itself. The program has not closed yet, and may go on sending.";
    wire.carry(story, second, (Some(CloseWait), Some(FinWait2)), note)?;
    story.call(Actor::Side(second), "close()", "")?;
    drop(other);
    let note = "The other direction ends too. Whoever closed first now waits, without a process.";
    wire.carry(story, second, (Some(LastAck), Some(TimeWait)), note)?;
    let note = "The last ACK. Nobody acknowledges it, so its sender cannot know whether it arrived: that is what \
                TIME_WAIT is for.";
    wire.carry(story, first, (Some(TimeWait), None), note)?;
    let waiting = "fin-wait-1, fin-wait-2, time-wait";
    let passive = "close-wait, last-ack, gone";
    let [client, server] = if first == Side::Server { [passive, waiting] } else { [waiting, passive] };
    check(story, &mut wire, client, server, "FIN ACK, ACK, FIN ACK, ACK")
}

/// Both FINs are under way before either arrives.
fn both_at_once(story: &mut Story) -> Result<(), LabError> {
    story.part("Both close at the same time", "Each FIN is under way when the other is sent.")?;
    let mut wire = Wire::lay()?;
    let Connection { client, server } = wire.connect(story, 0, false)?;
    story.call(Actor::Side(Side::Client), "close()", "")?;
    drop(client);
    story.call(Actor::Side(Side::Server), "close()", "")?;
    drop(server);
    let note = "A FIN came where an ACK was awaited: CLOSING.";
    wire.cross(story, (Some(FinWait1), Some(Closing)), note)?;
    let note = "Both were first, so both ends keep TIME_WAIT.";
    wire.cross(story, (Some(Closing), Some(TimeWait)), note)?;
    let states = "fin-wait-1, closing, time-wait";
    check(story, &mut wire, states, states, "FIN ACK, FIN ACK, ACK, ACK")
}

/// One direction ends, and the other goes on.
fn half(story: &mut Story) -> Result<(), LabError> {
    story.part("Half-close", "shutdown(SHUT_WR) ends one direction; the other goes on as long as it likes.")?;
    let mut wire = Wire::lay()?;
    let Connection { mut client, mut server } = wire.connect(story, 0, false)?;
    story.call(Actor::Side(Side::Client), "shutdown(SHUT_WR)", "")?;
    client.shutdown(Shutdown::Write).map_err(step("shutdown()"))?;
    wire.carry(story, Side::Client, (Some(FinWait1), Some(CloseWait)), "")?;
    wire.carry(story, Side::Server, (Some(CloseWait), Some(FinWait2)), "The client still reads.")?;
    story.call(Actor::Side(Side::Server), "write(\"more\")", "")?;
    server.write_all(b"more").map_err(step("write()"))?;
    wire.carry(story, Side::Server, (Some(CloseWait), Some(FinWait2)), "Data after the FIN of the other side.")?;
    wire.carry(story, Side::Client, (Some(FinWait2), Some(CloseWait)), "")?;
    let mut buffer = [0; 64];
    let length = client.read(&mut buffer).map_err(step("read()"))?;
    let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
    story.called(Actor::Side(Side::Client), "read()", Outcome::Read(text.clone()), Seen::default())?;
    story.call(Actor::Side(Side::Server), "close()", "")?;
    drop(server);
    wire.carry(story, Side::Server, (Some(LastAck), Some(TimeWait)), "")?;
    let note = "CLOSE_WAIT lasted as long as the server's program wanted; a program that never closes is the leak.";
    wire.carry(story, Side::Client, (Some(TimeWait), None), note)?;
    let (client, server) = ("fin-wait-1, fin-wait-2, time-wait", "close-wait, last-ack, gone");
    check(story, &mut wire, client, server, "FIN ACK, ACK, PSH ACK, ACK, FIN ACK, ACK")?;
    story.check("read by the client after its FIN", "more", text)
}

/// SO_LINGER with 0 s.
fn reset(story: &mut Story) -> Result<(), LabError> {
    story.part("A reset", "SO_LINGER with 0 s makes close() throw the connection away.")?;
    let mut wire = Wire::lay()?;
    let Connection { mut client, server } = wire.connect(story, 0, false)?;
    story.call(Actor::Side(Side::Server), "close() with SO_LINGER {1, 0}", "")?;
    server.set_linger(Some(Duration::ZERO)).map_err(step("SO_LINGER"))?;
    drop(server);
    let note = "No goodbye, so no TIME_WAIT, and what was still under way is lost. It is no cure.";
    wire.carry(story, Side::Server, (None, None), note)?;
    let failed = client.read(&mut [0; 64]).err();
    let outcome = failed.map_or(Outcome::Done, |error| Outcome::Failed(sys::bind::errno(&error)));
    let observed = outcome.errno().map_or("ok", Errno::name);
    story.called(Actor::Side(Side::Client), "read()", outcome, Seen::default())?;
    check(story, &mut wire, "gone", "gone", "RST ACK")?;
    story.check("read() of the client", "ECONNRESET", observed)
}
