//! Measures how long TIME_WAIT lasts. Its timer has a constant length (`TCP_TIMEWAIT_LEN`, 60 s), which tcp_fin_timeout does not
//! change. The timer wheel of the kernel ends the timer up to 5.12 s late.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::loopback::{LOCALHOST, Loopback, write_setting};
use super::transcript::{EventDetails, Transcript};
use super::{ActiveCloser, LabError, Server, step};
use crate::model::bind::ReuseOptions;
use crate::model::experiment::{Actor, ReturnValue, Side, States};
use crate::model::port::Port;
use crate::model::socket::{Socket, TcpState};
use crate::sys;

/// `TCP_TIMEWAIT_LEN` of include/net/tcp.h.
const LENGTH: Duration = Duration::from_secs(60);

/// How late TIME_WAIT may end. For a timer of 60 s, a step of the timer wheel is 512 jiffies if HZ is 100 or 250, and 4096 jiffies if
/// HZ is 1000 (kernel/time/timer.c). The longest of these steps is 5.12 s. A loaded machine may add 1 s.
const LATE: Duration = Duration::from_millis(5120 + 1000);

/// The lab begins to measure the life of a bucket at most this long after the kernel has created it.
const FIRST_SEEN_AFTER: Duration = Duration::from_millis(500);

/// The maximum time that the lab waits for the end of the buckets.
const PATIENCE: Duration = Duration::from_secs(90);

struct WatchedBucket {
    port: Port,
    born: Instant,
    /// Whether its timer has reached 0.
    due: bool,
    /// How long the bucket existed; `None` until it is gone.
    gone: Option<Duration>,
}

pub(super) fn play(transcript: &mut Transcript) -> Result<(), LabError> {
    let title = "Two buckets, with different values of tcp_fin_timeout";
    transcript.part(title, "This takes about 62 s, because no setting of mainline Linux shortens TIME_WAIT.")?;
    let mut lo = Loopback::enter()?;
    let mut watched = vec![];
    for (port, fin_timeout) in [(8080, "60"), (8081, "5")] {
        write_setting(transcript, "ipv4.tcp_fin_timeout", fin_timeout, "")?;
        watched.push(leave_bucket(transcript, port)?);
        lo.report_segments(transcript, false)?;
    }
    let mut blocked_when_due = None;
    let began = Instant::now();
    while watched.iter().any(|bucket| bucket.gone.is_none()) && began.elapsed() < PATIENCE {
        let left = observe_buckets(transcript, &mut watched, &mut blocked_when_due)?;
        transcript.waiting(left)?;
        // To measure the time of the end, poll faster when the end is near.
        std::thread::sleep(left.clamp(Duration::from_millis(20), Duration::from_secs(1)));
    }
    let free = bind(transcript, Port(8080), "The bucket is gone, so the port is free again.")?;
    for (bucket, fin_timeout) in watched.iter().zip([60, 5]) {
        let what = format!("TIME_WAIT with tcp_fin_timeout = {fin_timeout} lasted");
        let observed = bucket.gone.map_or("longer than 90 s".into(), |life| format!("{:.2} s", life.as_secs_f64()));
        let agrees = bucket.gone.is_some_and(|life| life + FIRST_SEEN_AFTER >= LENGTH && life <= LENGTH + LATE);
        transcript.report_comparison(what, "60 s, and up to 5.12 s more for the timer wheel", observed, agrees)?;
    }
    if let Some(blocked) = blocked_when_due {
        transcript.check("bind() while the bucket still exists, with its timer at 0", "EADDRINUSE", blocked)?;
    }
    transcript.check("bind() after the bucket is gone", "ok", free)
}

/// Makes a connection that the server closes first, so that a bucket stays on the server's port.
fn leave_bucket(transcript: &mut Transcript, port: u16) -> Result<WatchedBucket, LabError> {
    let at = SocketAddr::from((LOCALHOST, port));
    let server = Server::listen(at, ReuseOptions::NONE)?;
    let connection = server.connect(at, None)?;
    drop(server);
    connection.close(ActiveCloser::Server)?;
    let born = Instant::now();
    let timer = bucket(Port(port))?;
    let call = format!("close() on port {port}, before the client");
    transcript.called(
        Actor::Side(Side::Server),
        &call,
        ReturnValue::Done,
        EventDetails { timer, states: Some(states(timer)), note: "" },
    )?;
    Ok(WatchedBucket { port: Port(port), born, due: false, gone: None })
}

fn states(timer: Option<Duration>) -> States {
    States { client: None, server: timer.map(|_| TcpState::TimeWait) }
}

/// The remaining time of the bucket on this port; `None` if it is gone.
fn bucket(port: Port) -> Result<Option<Duration>, LabError> {
    let mut left = None;
    super::for_each_socket(&mut |socket| match socket {
        Socket::Bucket(bucket) if bucket.tuple.local_port() == port => left = Some(bucket.expires()),
        _ => {}
    })?;
    Ok(left)
}

/// Reports changes of the buckets, and returns the shortest remaining time.
fn observe_buckets(
    transcript: &mut Transcript,
    watched: &mut [WatchedBucket],
    blocked_when_due: &mut Option<&'static str>,
) -> Result<Duration, LabError> {
    let mut least = LENGTH;
    for entry in watched.iter_mut().filter(|bucket| bucket.gone.is_none()) {
        let timer = bucket(entry.port)?;
        let seen = |note| EventDetails { timer, states: Some(states(timer)), note };
        match timer {
            None => {
                let life = entry.born.elapsed();
                entry.gone = Some(life);
                let what = format!("port {}: the bucket is gone, after {:.2} s", entry.port, life.as_secs_f64());
                transcript.called(Actor::Lab, &what, ReturnValue::Done, seen(""))?;
            }
            Some(Duration::ZERO) if !entry.due => {
                entry.due = true;
                let note = "A timer of 60 s is coarse: it ends at the next step of the kernel's timer wheel.";
                let what = format!("port {}: the timer is at 0", entry.port);
                transcript.called(Actor::Lab, &what, ReturnValue::Done, seen(note))?;
                if entry.port == Port(8080) {
                    let result = bind(transcript, entry.port, "")?;
                    // If the bucket ended in between, the result of the bind proves nothing.
                    *blocked_when_due = bucket(entry.port)?.map(|_| result);
                }
            }
            Some(_) => {}
        }
        least = least.min(timer.unwrap_or_default());
    }
    Ok(least)
}

/// Binds the port without socket options. Returns `ok`, or the name of the errno.
fn bind(transcript: &mut Transcript, port: Port, note: &str) -> Result<&'static str, LabError> {
    let socket = sys::bind::socket(LOCALHOST, ReuseOptions::NONE).map_err(step("socket()"))?;
    let bound = socket.bind(&SocketAddr::from((LOCALHOST, port.0)).into());
    let outcome =
        bound.map_or_else(|error| ReturnValue::Failed(sys::bind::errno(&error)), |()| ReturnValue::Value("ok".into()));
    let word = outcome.errno().map_or("ok", crate::model::bind::Errno::name);
    transcript.called(
        Actor::Side(Side::Server),
        &format!("bind() of port {port}"),
        outcome,
        EventDetails { note, ..EventDetails::default() },
    )?;
    Ok(word)
}
