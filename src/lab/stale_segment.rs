//! Why TIME_WAIT exists, the second reason: a segment of the old connection that comes late must not land in a new one
//! between the same addresses and ports (RFC 9293, section 3.6.1).

use std::io::{Read as _, Write as _};
use std::net::Shutdown;

use super::story::{Seen, Story};
use super::wire::Wire;
use super::{Connection, LabError, step};
use crate::model::experiment::{Actor, Outcome, Segment, Side};
use crate::model::socket::TcpState::{Established, TimeWait};

/// The first connection's initial sequence number. The second one's lies as much before it as the new data is long,
/// so that the old segment is exactly what the server awaits next; by a clock that wraps around, that comes to pass
/// after 4 GiB.
const OLD_SEQUENCE: u32 = 1000;
const NEW_SEQUENCE: u32 = 990;
const OLD: &str = "old-bytes!";
const NEW: &str = "new-bytes.";

const FIRST: &str = "SYN, SYN ACK, ACK, PSH ACK, ACK, FIN ACK, ACK, FIN ACK, ACK";

pub(super) fn play(story: &mut Story) -> Result<(), LabError> {
    with_time_wait(story)?;
    without(story)
}

/// What the application reads now.
fn read(story: &mut Story, socket: &mut socket2::Socket) -> Result<String, LabError> {
    let mut buffer = [0; 64];
    let length = socket.read(&mut buffer).map_err(step("read()"))?;
    let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
    story.called(Actor::Side(Side::Server), "read()", Outcome::Read(text.clone()), Seen::default())?;
    Ok(text)
}

/// The first connection, from SYN to TIME_WAIT. Returns its data segment, of which the wire keeps a copy, and the server's
/// socket, which the application still has open.
fn first_connection(
    story: &mut Story,
    wire: &mut Wire,
    in_full: bool,
) -> Result<(Segment, socket2::Socket, String), LabError> {
    story.routine = !in_full;
    for side in [Side::Client, Side::Server] {
        wire.set(side, "ipv4.tcp_timestamps", "0")?;
    }
    wire.tell_raw_numbers_of_client();
    let note = "With timestamps (RFC 7323) the kernel would know old segments by them; not every peer has them.";
    story.call(Actor::Lab, "tcp_timestamps = 0 at both ends", note)?;
    let Connection { mut client, mut server } = wire.connect(story, OLD_SEQUENCE, in_full)?;
    story.call(Actor::Side(Side::Client), &format!("write(\"{OLD}\")"), "")?;
    client.write_all(OLD.as_bytes()).map_err(step("write()"))?;
    let note = "The wire keeps a copy, as a network does that delays a segment and delivers its repetition.";
    let old = wire.carry(story, Side::Client, (Some(Established), Some(Established)), note)?;
    wire.carry(story, Side::Server, (Some(Established), Some(Established)), "")?;
    let text = read(story, &mut server)?;
    story.call(Actor::Side(Side::Server), "shutdown(SHUT_WR)", "")?;
    server.shutdown(Shutdown::Write).map_err(step("shutdown()"))?;
    wire.close_behind_the_server(story, client)?;
    story.routine = false;
    Ok((old, server, text))
}

fn with_time_wait(story: &mut Story) -> Result<(), LabError> {
    story.part("The old data meets TIME_WAIT", "The client's sequence numbers are shown as they are on the wire.")?;
    let mut wire = Wire::lay()?;
    let (old, mut server, mut text) = first_connection(story, &mut wire, true)?;
    wire.arrive_late(story, &old, (None, Some(TimeWait)), "The copy arrives at last, after the connection has ended.")?;
    let note = "TIME_WAIT says what it awaits, and delivers nothing. (The wire loses this one; 'assassination' shows what \
                it could do.)";
    wire.lose(story, Side::Server, Some(TimeWait), note)?;
    text += &read(story, &mut server)?;
    let client = "syn-sent, established, close-wait, last-ack, gone";
    let server = "syn-recv, established, fin-wait-1, fin-wait-2, time-wait";
    wire.check(story, [client, server], &format!("{FIRST}, PSH ACK (late), ACK (lost)"))?;
    story.check("read by the server's application", OLD, text)
}

fn without(story: &mut Story) -> Result<(), LabError> {
    let note = "The lab removes the bucket, and the same two ports are connected again at once.";
    story.part("The old data meets a new connection", note)?;
    let mut wire = Wire::lay()?;
    let (old, server, _) = first_connection(story, &mut wire, false)?;
    drop(server);
    wire.destroy(Side::Server)?;
    story.called(Actor::Lab, "SOCK_DESTROY of the server's bucket", Outcome::Done, wire.look()?)?;
    let Connection { mut client, mut server } = wire.connect(story, NEW_SEQUENCE, true)?;
    story.call(Actor::Side(Side::Client), &format!("write(\"{NEW}\")"), "")?;
    client.write_all(NEW.as_bytes()).map_err(step("write()"))?;
    wire.carry(story, Side::Client, (Some(Established), Some(Established)), "")?;
    wire.carry(story, Side::Server, (Some(Established), Some(Established)), "The server awaits number 1001 next.")?;
    let note = "The copy of the old segment begins with just that number. Nothing in it says that it is old.";
    wire.arrive_late(story, &old, (Some(Established), Some(Established)), note)?;
    let note = "The server acknowledges bytes that this client has never sent.";
    wire.carry(story, Side::Server, (Some(Established), Some(Established)), note)?;
    let text = read(story, &mut server)?;
    let client = "syn-sent, established, close-wait, last-ack, gone, syn-sent, established";
    let server = "syn-recv, established, fin-wait-1, fin-wait-2, time-wait, gone, syn-recv, established";
    let second = "SYN, SYN ACK, ACK, PSH ACK, ACK, PSH ACK (late), ACK";
    wire.check(story, [client, server], &format!("{FIRST}, {second}"))?;
    story.check("read by the server's application in the new connection", format!("{NEW}{OLD}"), text)
}
