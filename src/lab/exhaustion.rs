//! Exhaustion of the ephemeral ports: connect() to one destination finds no free port, until a bucket ends or can be taken over. Other
//! destinations are not affected.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use super::loopback::{self, ChosenSocket, LOCALHOST, Loopback, listen, outcome, word, write_setting};
use super::transcript::{EventDetails, Transcript};
use super::{ActiveCloser, Connection, LabError, Server, step};
use crate::model::experiment::{Actor, Side};
use crate::model::socket::Socket;
use crate::model::tw_reuse::TwReuse;
use crate::sys;
use crate::sys::errno::if_present;

const RANGE: &str = "40000 40007";
const PORTS: u32 = 8;
const CLIENT: Actor = Actor::Side(Side::Client);

/// The maximum time that the lab waits until connect() works again.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) fn play(transcript: &mut Transcript) -> Result<(), LabError> {
    transcript.part(
        "Eight ports, one destination",
        "The client closes every connection first, so its port gets the TIME_WAIT.",
    )?;
    let mut lo = Loopback::enter()?;
    write_setting(transcript, "ipv4.ip_local_port_range", RANGE, "")?;
    write_setting(
        transcript,
        "ipv4.tcp_tw_reuse",
        "0",
        "By default (2), the kernel would reuse TIME_WAIT on loopback after about 1 s.",
    )?;
    let server = listen(8080)?;
    let other = listen(8081)?;
    let to = SocketAddr::from((LOCALHOST, 8080));
    let began = Instant::now();
    let mut used = vec![];
    for number in 1..=PORTS {
        used.push(connect(transcript, &mut lo, &server, to, "", number > 1)?);
    }
    let ninth = connect(
        transcript,
        &mut lo,
        &server,
        to,
        "Every port of the range has a TIME_WAIT to this destination.",
        false,
    )?;
    let elsewhere = SocketAddr::from((LOCALHOST, 8081));
    let note = "Another port of the same host is another destination: all eight ports are free for it.";
    let other_port = connect(transcript, &mut lo, &other, elsewhere, note, false)?;
    let elsewhere = SocketAddr::from((Ipv4Addr::new(127, 0, 0, 2), 8080));
    let other_address =
        connect(transcript, &mut lo, &server, elsewhere, "Another address is another destination, too.", true)?;
    let bound = loopback::bind_to_zero()?;
    let note = "bind(0) does not know the destination yet, so it needs a port that no conflicting socket uses.";
    transcript.called(CLIENT, "bind(0)", outcome(&bound), EventDetails { note, ..EventDetails::default() })?;
    transcript.check(format!("connects 1 to {PORTS}"), vec!["ok"; used.len()].join(", "), used.join(", "))?;
    transcript.check("connect 9 to the same destination", "EADDRNOTAVAIL", ninth)?;
    transcript.check("connect to another port", "ok", other_port)?;
    transcript.check("connect to another address", "ok", other_address)?;
    transcript.check("bind(0)", "EADDRINUSE", word(&bound))?;
    test_recovery(transcript, &mut lo, &server, began)
}

/// Connects to a server, and closes first. Returns the result of connect().
fn connect(
    transcript: &mut Transcript,
    lo: &mut Loopback,
    server: &Server,
    to: SocketAddr,
    note: &str,
    routine: bool,
) -> Result<&'static str, LabError> {
    let chosen = loopback::connect(to)?;
    transcript.called(
        CLIENT,
        &format!("connect() to {to}"),
        outcome(&chosen),
        EventDetails { note, ..EventDetails::default() },
    )?;
    let result = word(&chosen);
    if let Ok((client, _)) = chosen {
        Connection { client, server: server.accept()? }.close(ActiveCloser::Client)?;
    }
    lo.report_segments(transcript, routine)?;
    Ok(result)
}

fn connect_at_last(to: SocketAddr) -> Result<ChosenSocket, LabError> {
    let began = Instant::now();
    loop {
        let chosen = loopback::connect(to)?;
        if chosen.is_ok() || began.elapsed() > PATIENCE {
            return Ok(chosen);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn test_recovery(
    transcript: &mut Transcript,
    lo: &mut Loopback,
    server: &Server,
    began: Instant,
) -> Result<(), LabError> {
    let note =
        "Without tcp_tw_reuse, connect() works when the first timer ends. With tcp_tw_reuse, it works much sooner.";
    transcript.part("How long until connect() works again", note)?;
    let to = SocketAddr::from((LOCALHOST, 8080));
    let mut first = None::<Duration>;
    super::for_each_socket(&mut |socket| {
        if let Socket::Bucket(bucket) = socket
            && bucket.tuple.remote_port().0 == 8080
        {
            first = Some(first.map_or(bucket.expires(), |first| first.min(bucket.expires())));
        }
    })?;
    let note = "The shortest remaining time of a bucket. With tcp_tw_reuse = 0, connect() fails until then.";
    transcript.observe(Actor::Lab, EventDetails { timer: first, note, ..EventDetails::default() })?;
    write_setting(
        transcript,
        "ipv4.tcp_tw_reuse",
        "1",
        "connect() may take over a bucket that is older than about 1 s.",
    )?;
    let early = loopback::connect(to)?;
    transcript.called(CLIENT, &format!("connect() to {to}"), outcome(&early), EventDetails::default())?;
    let recovered = if early.is_ok() { early } else { connect_at_last(to)? };
    let after = began.elapsed();
    let result = word(&recovered);
    let note = "twtool repeats connect() every 10 ms. Reuse is safe here: the peer has no bucket, and timestamps show which \
                segments are old.";
    transcript.called(
        CLIENT,
        &format!("connect() to {to}"),
        outcome(&recovered),
        EventDetails { note, ..EventDetails::default() },
    )?;
    if let Ok((client, _)) = recovered {
        Connection { client, server: server.accept()? }.close(ActiveCloser::Client)?;
    }
    let newest = Instant::now();
    lo.report_segments(transcript, true)?;

    let setting =
        if_present(sys::sysctl::number("ipv4.tcp_tw_reuse_delay")).map_err(step("reading tcp_tw_reuse_delay"))?;
    let setting = setting.and_then(|delay| u64::try_from(delay).ok());
    let setting = setting.map(Duration::from_millis);
    let delay = setting.unwrap_or(TwReuse::WHOLE_SECOND);
    // Wait until every bucket is old enough to be taken over.
    std::thread::sleep((delay + Duration::from_millis(20)).saturating_sub(newest.elapsed()));
    write_setting(transcript, "ipv4.tcp_tw_reuse", "0", "")?;
    let note = "All buckets are old enough by now, but without tcp_tw_reuse the age does not matter.";
    let without = connect(transcript, lo, server, to, note, true)?;
    write_setting(transcript, "ipv4.tcp_tw_reuse", "2", "The default: like 1, but only on loopback.")?;
    let default = connect_at_last(to)?;
    let default_result = word(&default);
    transcript.called(CLIENT, &format!("connect() to {to}"), outcome(&default), EventDetails::default())?;
    drop(default);
    lo.report_segments(transcript, true)?;

    let left =
        |time: Option<Duration>| time.map_or("no timer".into(), |time| format!("in {:.1} s", time.as_secs_f64()));
    let near_60 = first.is_some_and(|first| (50..=60).contains(&first.as_secs()));
    transcript.report_comparison(
        "with tcp_tw_reuse = 0 the first port is free",
        "in 50 to 60 s",
        left(first),
        near_60,
    )?;
    let expected = match setting {
        Some(delay) => format!("ok when the first bucket is {} ms old", delay.as_millis()),
        None => "ok when the kernel's clock has begun one or two new seconds".into(),
    };
    let observed = format!("{result} after {} ms", after.as_millis());
    let in_time = setting.is_none_or(|delay| after >= delay);
    transcript.report_comparison("with tcp_tw_reuse = 1", expected, observed, result == "ok" && in_time)?;
    transcript.check("with tcp_tw_reuse = 0, when every bucket is old enough", "EADDRNOTAVAIL", without)?;
    transcript.check("with tcp_tw_reuse = 2, on loopback", "ok", default_result)
}
