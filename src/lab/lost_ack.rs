//! The first reason for TIME_WAIT: reliable termination. If the last ACK is lost, the peer retransmits its FIN. A socket must
//! still exist then to acknowledge the FIN (RFC 9293, section 3.10.7.4).

use std::net::Shutdown;
use std::time::Duration;

use socket2::Socket;

use super::transcript::{EventDetails, Transcript};
use super::wire::Wire;
use super::{Connection, LabError, step};
use crate::model::bind::Errno;
use crate::model::experiment::{Actor, ReturnValue, Side};
use crate::model::socket::TcpState::{self, CloseWait, FinWait1, FinWait2, LastAck, TimeWait};
use crate::sys;

const TO_LAST_ACK: &str = "SYN, SYN ACK, ACK, FIN ACK, ACK, FIN ACK, ACK (lost)";
const CLIENT: &str = "syn-sent, established, close-wait, last-ack, gone";
const TO_FIN_WAIT_2: &str = "syn-recv, established, fin-wait-1, fin-wait-2";

pub(super) fn play(transcript: &mut Transcript) -> Result<(), LabError> {
    with_time_wait(transcript)?;
    without(transcript)
}

/// Makes a connection whose last ACK is lost. `left` is the state of the server after that: TIME_WAIT, or gone. Both
/// sockets stay open. The client's socket reports later how the connection ended (SO_ERROR).
fn lose_last_ack(transcript: &mut Transcript, wire: &mut Wire, left: Option<TcpState>) -> Result<Connection, LabError> {
    let Connection { client, server } = wire.connect(transcript, 0, false)?;
    // With close() instead of shutdown(), the socket would already become a timewait bucket in FIN_WAIT_2.
    transcript.call(Actor::Side(Side::Server), "shutdown(SHUT_WR)", "")?;
    server.shutdown(Shutdown::Write).map_err(step("shutdown()"))?;
    wire.carry(transcript, Side::Server, (Some(FinWait1), Some(CloseWait)), "")?;
    wire.carry(transcript, Side::Client, (Some(CloseWait), Some(FinWait2)), "")?;
    transcript.call(Actor::Side(Side::Client), "shutdown(SHUT_WR)", "")?;
    client.shutdown(Shutdown::Write).map_err(step("shutdown()"))?;
    wire.carry(transcript, Side::Client, (Some(LastAck), left), "")?;
    wire.lose(transcript, Side::Server, left, "The client stays in LAST_ACK. It cannot know that the ACK was lost.")?;
    Ok(Connection { client, server })
}

fn read_so_error(transcript: &mut Transcript, client: &Socket) -> Result<&'static str, LabError> {
    let error = client.take_error().map_err(step("SO_ERROR"))?;
    let outcome = error.map_or(ReturnValue::Value("0".into()), |error| ReturnValue::Failed(sys::bind::errno(&error)));
    let name = outcome.errno().map_or("0", Errno::name);
    transcript.called(Actor::Side(Side::Client), "getsockopt(SO_ERROR)", outcome, EventDetails::default())?;
    Ok(name)
}

fn with_time_wait(transcript: &mut Transcript) -> Result<(), LabError> {
    transcript.part("The last ACK is lost, with TIME_WAIT", "")?;
    let mut wire = Wire::create()?;
    let Connection { client, server: _server } = lose_last_ack(transcript, &mut wire, Some(TimeWait))?;
    for note in ["The retransmission timer of the client sends the FIN again. This FIN is lost too.", ""] {
        wire.lose(transcript, Side::Client, Some(LastAck), note)?;
    }
    let fin = wire.take(transcript, Side::Client)?;
    let before = wire.observe()?;
    let timer_before = before.timer;
    transcript.observe(
        Actor::Lab,
        EventDetails { note: "The remaining time of TIME_WAIT, just before the FIN arrives again.", ..before },
    )?;
    wire.arrive(transcript, fin, (Some(LastAck), Some(TimeWait)), "The FIN arrives, so TIME_WAIT restarts its timer.")?;
    let timer_after = wire.observe()?.timer;
    let note = "The kernel answers from TIME_WAIT, without a process. This ACK ends the connection of the client.";
    wire.carry(transcript, Side::Server, (Some(TimeWait), None), note)?;
    let so_error = read_so_error(transcript, &client)?;
    let segments = "FIN ACK (lost), FIN ACK (lost), FIN ACK, ACK";
    wire.check(transcript, [CLIENT, &format!("{TO_FIN_WAIT_2}, time-wait")], &format!("{TO_LAST_ACK}, {segments}"))?;
    let seconds = |time: Option<Duration>| time.map_or("none".into(), |time| format!("{:.1} s", time.as_secs_f64()));
    let observed = format!("{} before, {} after", seconds(timer_before), seconds(timer_after));
    transcript.report_comparison(
        "timer of TIME_WAIT when the FIN arrived again",
        "restarts",
        observed,
        timer_after > timer_before,
    )?;
    transcript.check("SO_ERROR of the client", "0", so_error)
}

fn without(transcript: &mut Transcript) -> Result<(), LabError> {
    transcript.part("The last ACK is lost, without TIME_WAIT", "The same loss, but the server keeps no TIME_WAIT.")?;
    let mut wire = Wire::create()?;
    wire.make_no_buckets(transcript, Side::Server)?;
    let Connection { client, server: _server } = lose_last_ack(transcript, &mut wire, None)?;
    wire.carry(
        transcript,
        Side::Client,
        (Some(LastAck), None),
        "The client sends the FIN again, but the server has no socket for it.",
    )?;
    let note = "The server's kernel sends a RST instead of an ACK. To the client, a connection that ended normally looks broken.";
    wire.carry(transcript, Side::Server, (None, None), note)?;
    let so_error = read_so_error(transcript, &client)?;
    wire.check(transcript, [CLIENT, &format!("{TO_FIN_WAIT_2}, gone")], &format!("{TO_LAST_ACK}, FIN ACK, RST"))?;
    transcript.check("SO_ERROR of the client", "ECONNRESET", so_error)
}
