//! The second reason for TIME_WAIT: a late segment of an old connection must not be accepted by a new connection between the
//! same addresses and ports (RFC 9293, section 3.3.2).

use std::io::{Read as _, Write as _};
use std::net::Shutdown;

use super::transcript::{EventDetails, Transcript};
use super::wire::Wire;
use super::{Connection, LabError, step};
use crate::model::experiment::{Actor, ReturnValue, Segment, Side};
use crate::model::socket::TcpState::{self, Established, TimeWait};

/// The client's initial sequence numbers in the first and in the second connection. They differ by the length of the new data. So after
/// the new data, the server expects exactly the number with which the old segment begins. In practice this can happen when sequence
/// numbers wrap around, after 4 GiB.
const OLD_SEQUENCE: u32 = 1000;
const NEW_SEQUENCE: u32 = 990;
const OLD: &str = "old-bytes!";
const NEW: &str = "new-bytes.";
/// The server's response, as long as the new data (see [`new_connection`]).
const ANSWER: &str = "an-answer.";

/// The maximum number of attempts to make a new connection in which the server's sequence numbers fit the old segment, too. About one
/// attempt in 1000 fails (on a slow machine, one in 40), because the kernel's minute counter changes.
const TRIES: u32 = 5;

const FIRST: &str = "SYN, SYN ACK, ACK, PSH ACK, ACK, FIN ACK, ACK, FIN ACK, ACK";

pub(super) fn play(transcript: &mut Transcript) -> Result<(), LabError> {
    with_time_wait(transcript)?;
    without(transcript)
}

fn read_at_server(transcript: &mut Transcript, socket: &mut socket2::Socket) -> Result<String, LabError> {
    let mut buffer = [0; 64];
    let length = socket.read(&mut buffer).map_err(step("read()"))?;
    let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
    transcript.called(Actor::Side(Side::Server), "read()", ReturnValue::Read(text.clone()), EventDetails::default())?;
    Ok(text)
}

/// Plays the first connection. `left` is the server's state at its end: TIME_WAIT, or gone. Returns the data segment, the server's socket,
/// which is still open, and the data that the server has read.
fn first_connection(
    transcript: &mut Transcript,
    wire: &mut Wire,
    left: Option<TcpState>,
) -> Result<(Segment, socket2::Socket, String), LabError> {
    // Without TIME_WAIT this connection only prepares the experiment.
    transcript.routine = left.is_none();
    for side in [Side::Client, Side::Server] {
        wire.set(side, "ipv4.tcp_timestamps", "0")?;
    }
    wire.show_raw_client_numbers();
    let note = "With timestamps (RFC 7323), the kernel would detect the old segment. Not every peer uses timestamps.";
    transcript.call(Actor::Lab, "tcp_timestamps = 0 at both ends", note)?;
    let Connection { mut client, mut server } = wire.connect(transcript, OLD_SEQUENCE, left.is_some())?;
    transcript.call(Actor::Side(Side::Client), &format!("write(\"{OLD}\")"), "")?;
    client.write_all(OLD.as_bytes()).map_err(step("write()"))?;
    let note = "The wire keeps a copy. In a real network, a delayed segment can arrive after its retransmission.";
    let old = wire.carry(transcript, Side::Client, (Some(Established), Some(Established)), note)?;
    wire.carry(transcript, Side::Server, (Some(Established), Some(Established)), "")?;
    let text = read_at_server(transcript, &mut server)?;
    transcript.call(Actor::Side(Side::Server), "shutdown(SHUT_WR)", "")?;
    server.shutdown(Shutdown::Write).map_err(step("shutdown()"))?;
    wire.finish_close(transcript, client, left)?;
    transcript.routine = false;
    Ok((old, server, text))
}

fn with_time_wait(transcript: &mut Transcript) -> Result<(), LabError> {
    let note = "The client's sequence numbers are not relative here. They are the numbers on the wire.";
    transcript.part("The old data meets TIME_WAIT", note)?;
    let mut wire = Wire::create()?;
    let (old, mut server, mut text) = first_connection(transcript, &mut wire, Some(TimeWait))?;
    wire.arrive_late(transcript, &old, (None, Some(TimeWait)), "The copy arrives after the connection has ended.")?;
    let note = "TIME_WAIT answers with the number that it expects, and delivers no data. (The wire drops this ACK. \
                'assassination' shows what it can cause.)";
    wire.lose(transcript, Side::Server, Some(TimeWait), note)?;
    text += &read_at_server(transcript, &mut server)?;
    let client = "syn-sent, established, close-wait, last-ack, gone";
    let server = "syn-recv, established, fin-wait-1, fin-wait-2, time-wait";
    wire.check(transcript, [client, server], &format!("{FIRST}, PSH ACK (late), ACK (lost)"))?;
    transcript.check("read by the server's application", OLD, text)
}

fn without(transcript: &mut Transcript) -> Result<(), LabError> {
    for left in (0..TRIES).rev() {
        let note = "Without TIME_WAIT, the same two ports can be connected again at once.";
        transcript.part("The old data meets a new connection", note)?;
        let mut wire = Wire::create()?;
        wire.make_no_buckets(transcript, Side::Server)?;
        wire.use_syn_cookies()?;
        let note = "With SYN cookies, the server derives its first number from the client's. So the numbers match without a wrap-around.";
        transcript.call(Actor::Lab, "tcp_syncookies = 2 at the server", note)?;
        let (old, server, _) = first_connection(transcript, &mut wire, None)?;
        drop(server);
        let connection = wire.connect(transcript, NEW_SEQUENCE, true)?;
        let expected = old.raw_ack.map(|number| number.wrapping_sub(1 + OLD_SEQUENCE - NEW_SEQUENCE));
        if wire.last_sequence(Side::Server) == expected || left == 0 {
            return new_connection(transcript, &mut wire, &old, connection);
        }
        transcript.call(
            Actor::Lab,
            "start again",
            "The kernel's minute counter has changed, so the server's first number does not match.",
        )?;
    }
    Ok(())
}

/// Delivers the old segment when the new connection expects exactly its numbers. Before that, each side sends 10 bytes, the difference
/// between the initial numbers of the two connections. The server must send, too, because a kernel drops a segment that acknowledges
/// data that was never sent in the connection (RFC 5961, section 5.2).
fn new_connection(
    transcript: &mut Transcript,
    wire: &mut Wire,
    old: &Segment,
    connection: Connection,
) -> Result<(), LabError> {
    let established = (Some(Established), Some(Established));
    let Connection { mut client, mut server } = connection;
    transcript.call(Actor::Side(Side::Client), &format!("write(\"{NEW}\")"), "")?;
    client.write_all(NEW.as_bytes()).map_err(step("write()"))?;
    wire.carry(transcript, Side::Client, established, "")?;
    wire.carry(transcript, Side::Server, established, "The server expects number 1001 next.")?;
    transcript.call(Actor::Side(Side::Server), &format!("write(\"{ANSWER}\")"), "")?;
    server.write_all(ANSWER.as_bytes()).map_err(step("write()"))?;
    wire.carry(transcript, Side::Server, established, "")?;
    wire.carry(transcript, Side::Client, established, "")?;
    let note = "The copy of the old segment begins with exactly that number. Nothing in it shows that it is old.";
    wire.arrive_late(transcript, old, established, note)?;
    let note = "The server acknowledges bytes that the client has not sent in this connection.";
    wire.carry(transcript, Side::Server, established, note)?;
    let text = read_at_server(transcript, &mut server)?;
    let client = "syn-sent, established, close-wait, last-ack, gone, syn-sent, established";
    let server = "gone, established, fin-wait-1, fin-wait-2, gone, established";
    let second = "SYN, SYN ACK, ACK, PSH ACK, ACK, PSH ACK, ACK, PSH ACK (late), ACK";
    wire.check(transcript, [client, server], &format!("{FIRST}, {second}"))?;
    transcript.check("read by the server's application in the new connection", format!("{NEW}{OLD}"), text)
}
