//! The first reason for TIME_WAIT: reliable termination. If the last ACK is lost, the peer retransmits its FIN, and a socket
//! must still exist to acknowledge it (RFC 9293, section 3.6.1).

use std::net::Shutdown;
use std::time::Duration;

use socket2::Socket;

use super::transcript::{Details, Transcript};
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

/// Makes a connection whose last ACK is lost. The server is `left` in TIME_WAIT, or gone. Both programs keep their sockets
/// open, because the client's shows later how the connection ended.
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
    wire.lose(transcript, Side::Server, left, "The client is left in LAST_ACK, and does not know why.")?;
    Ok(Connection { client, server })
}

/// The result that the client's program reads: SO_ERROR.
fn verdict(transcript: &mut Transcript, client: &Socket) -> Result<&'static str, LabError> {
    let error = client.take_error().map_err(step("SO_ERROR"))?;
    let outcome = error.map_or(ReturnValue::Value("0".into()), |error| ReturnValue::Failed(sys::bind::errno(&error)));
    let name = outcome.errno().map_or("0", Errno::name);
    transcript.called(Actor::Side(Side::Client), "getsockopt(SO_ERROR)", outcome, Details::default())?;
    Ok(name)
}

fn with_time_wait(transcript: &mut Transcript) -> Result<(), LabError> {
    transcript.part("The last ACK is lost, and TIME_WAIT is there", "")?;
    let mut wire = Wire::lay()?;
    let Connection { client, server: _server } = lose_last_ack(transcript, &mut wire, Some(TimeWait))?;
    for note in ["Its retransmission timer sends the FIN again. That one is lost too.", ""] {
        wire.lose(transcript, Side::Client, Some(LastAck), note)?;
    }
    let fin = wire.take(transcript, Side::Client)?;
    let before = wire.observe()?;
    let timer_before = before.timer;
    transcript.observe(Actor::Lab, Details { note: "The timer, just before the FIN arrives once more.", ..before })?;
    wire.arrive(transcript, fin, (Some(LastAck), Some(TimeWait)), "The FIN arrives: the timer starts anew.")?;
    let timer_after = wire.observe()?.timer;
    let note = "TIME_WAIT answers without any process, and now the client knows.";
    wire.carry(transcript, Side::Server, (Some(TimeWait), None), note)?;
    let so_error = verdict(transcript, &client)?;
    let segments = "FIN ACK (lost), FIN ACK (lost), FIN ACK, ACK";
    wire.check(transcript, [CLIENT, &format!("{TO_FIN_WAIT_2}, time-wait")], &format!("{TO_LAST_ACK}, {segments}"))?;
    let seconds = |time: Option<Duration>| time.map_or("none".into(), |time| format!("{:.1} s", time.as_secs_f64()));
    let observed = format!("{} before, {} after", seconds(timer_before), seconds(timer_after));
    transcript.judged("TIME_WAIT's timer when the FIN came again", "starts anew", observed, timer_after > timer_before)?;
    transcript.check("SO_ERROR of the client", "0", so_error)
}

fn without(transcript: &mut Transcript) -> Result<(), LabError> {
    transcript.part("The last ACK is lost, and there is no TIME_WAIT", "What would happen without TIME_WAIT.")?;
    let mut wire = Wire::lay()?;
    wire.make_no_buckets(transcript, Side::Server)?;
    let Connection { client, server: _server } = lose_last_ack(transcript, &mut wire, None)?;
    wire.carry(transcript, Side::Client, (Some(LastAck), None), "The FIN comes again, to nobody.")?;
    let note = "A RST instead of the ACK: the client must take a connection that ended well for a broken one.";
    wire.carry(transcript, Side::Server, (None, None), note)?;
    let so_error = verdict(transcript, &client)?;
    wire.check(transcript, [CLIENT, &format!("{TO_FIN_WAIT_2}, gone")], &format!("{TO_LAST_ACK}, FIN ACK, RST"))?;
    transcript.check("SO_ERROR of the client", "ECONNRESET", so_error)
}
