//! Shows which port the kernel chooses for bind() to port 0, and for connect() of an unbound socket
//! (`inet_csk_find_open_port` in net/ipv4/inet_connection_sock.c, `__inet_hash_connect` in net/ipv4/inet_hashtables.c).

use std::net::SocketAddr;

use super::loopback::{self, ChosenSocket, LOCALHOST, Loopback, listen, write_setting};
use super::transcript::{EventDetails, Transcript};
use super::{LabError, step};
use crate::model::bind::{Errno, ReuseOptions};
use crate::model::experiment::{Actor, ReturnValue, Side};
use crate::sys;

/// The number of times that each call is made in the current range.
const SAMPLE: usize = 8;
const FIRST: u16 = 40_000;
const LAST: u16 = 40_015;
const RESERVED: std::ops::RangeInclusive<u16> = 40_002..=40_005;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Call {
    Bind,
    Connect,
}

impl Call {
    const fn name(self) -> &'static str {
        match self {
            Self::Bind => "bind(0)",
            Self::Connect => "connect()",
        }
    }

    fn make(self) -> Result<ChosenSocket, LabError> {
        match self {
            Self::Bind => loopback::bind_to_zero(),
            Self::Connect => loopback::connect(SocketAddr::from((LOCALHOST, 8080))),
        }
    }

    const fn errno_without_free_port(self) -> Errno {
        match self {
            Self::Bind => Errno::AddrInUse,
            Self::Connect => Errno::AddrNotAvailable,
        }
    }
}

pub(super) fn play(transcript: &mut Transcript) -> Result<(), LabError> {
    sample(transcript)?;
    until_full(transcript, Call::Bind)?;
    until_full(transcript, Call::Connect)?;
    reserved(transcript)
}

fn choose(transcript: &mut Transcript, call: Call, times: usize) -> Result<(Vec<u16>, Option<Errno>), LabError> {
    let (mut held, mut ports, mut failed) = (vec![], vec![], None);
    while ports.len() < times && failed.is_none() {
        match call.make()? {
            Ok((socket, port)) => {
                held.push(socket);
                ports.push(port);
            }
            Err(errno) => failed = Some(errno),
        }
    }
    let text = ports.iter().map(u16::to_string).collect::<Vec<_>>().join(" ");
    let what = format!("{}, {} times", call.name(), ports.len());
    transcript.called(Actor::Side(Side::Client), &what, ReturnValue::Value(text), EventDetails::default())?;
    if let Some(errno) = failed {
        let what = format!("{} once more", call.name());
        transcript.called(Actor::Side(Side::Client), &what, ReturnValue::Failed(errno), EventDetails::default())?;
    }
    Ok((ports, failed))
}

fn parity(ports: &[u16]) -> &'static str {
    match (ports.iter().any(|port| port % 2 == 0), ports.iter().any(|port| port % 2 == 1)) {
        (true, true) => "even and odd ports",
        (true, false) => "even ports",
        (false, true) => "odd ports",
        (false, false) => "no ports",
    }
}

/// connect() first chooses ports with the parity of the lowest port of the range, and bind(0) ports with the other parity.
const fn first_parity(call: Call, low: u16) -> &'static str {
    if low.is_multiple_of(2) == matches!(call, Call::Connect) { "even ports" } else { "odd ports" }
}

fn sample(transcript: &mut Transcript) -> Result<(), LabError> {
    transcript.part(
        "The current range",
        "Both calls choose a port from ip_local_port_range. One begins with the even ports, the other with the odd ports.",
    )?;
    let mut lo = Loopback::enter()?;
    let range = sys::sysctl::local_port_range();
    let text = sys::sysctl::read("ipv4.ip_local_port_range").map_err(step("reading ip_local_port_range"))?;
    let text = text.split_whitespace().collect::<Vec<_>>().join(" to ");
    transcript.called(Actor::Lab, "ip_local_port_range", ReturnValue::Value(text.clone()), EventDetails::default())?;
    let _server = listen(8080)?;
    let (bound, _) = choose(transcript, Call::Bind, SAMPLE)?;
    let (connected, _) = choose(transcript, Call::Connect, SAMPLE)?;
    lo.report_segments(transcript, true)?;
    let (low, high) = range.map_or((0, 0), |range| (range.0.first().0, range.0.last().0));
    let inside = bound.iter().chain(&connected).filter(|&&port| low <= port && port <= high).count();
    transcript.check(format!("ports inside {text}"), (2 * SAMPLE).to_string(), inside.to_string())?;
    transcript.check("bind(0) chooses", first_parity(Call::Bind, low), parity(&bound))?;
    transcript.check("connect() chooses", first_parity(Call::Connect, low), parity(&connected))
}

fn narrow_port_range(transcript: &mut Transcript) -> Result<Loopback, LabError> {
    let lo = Loopback::enter()?;
    write_setting(transcript, "ipv4.ip_local_port_range", &format!("{FIRST} {LAST}"), "")?;
    Ok(lo)
}

fn until_full(transcript: &mut Transcript, call: Call) -> Result<(), LabError> {
    let title = format!("{} until sixteen ports are used up", call.name());
    transcript.part(&title, "The call first takes the ports of one parity. After that, it takes the others.")?;
    let mut lo = narrow_port_range(transcript)?;
    let _server = listen(8080)?;
    let (ports, failed) = choose(transcript, call, usize::MAX)?;
    lo.report_segments(transcript, true)?;
    let half = ports.len() / 2;
    let (first, second) = (parity(&ports[..half]), parity(&ports[half..]));
    let other = if call == Call::Bind { Call::Connect } else { Call::Bind };
    let count = usize::from(LAST - FIRST) + 1;
    transcript.check("ports", count.to_string(), ports.len().to_string())?;
    transcript.check("chosen first", first_parity(call, FIRST), first)?;
    transcript.check("chosen after that", first_parity(other, FIRST), second)?;
    transcript.check("when all are used up", call.errno_without_free_port().name(), failed.map_or("ok", Errno::name))
}

fn reserved(transcript: &mut Transcript) -> Result<(), LabError> {
    transcript.part(
        "Reserved ports",
        "The kernel never chooses a port from ip_local_reserved_ports. An explicit bind() can still use it.",
    )?;
    let lo = narrow_port_range(transcript)?;
    let text = format!("{}-{}", RESERVED.start(), RESERVED.end());
    write_setting(transcript, "ipv4.ip_local_reserved_ports", &text, "")?;
    let (ports, failed) = choose(transcript, Call::Bind, usize::MAX)?;
    let socket = sys::bind::socket(LOCALHOST, ReuseOptions::NONE).map_err(step("socket()"))?;
    let explicit = socket.bind(&SocketAddr::from((LOCALHOST, *RESERVED.start())).into());
    let explicit = explicit.map_or_else(|error| ReturnValue::Failed(sys::bind::errno(&error)), |()| ReturnValue::Done);
    let word = explicit.errno().map_or("ok", Errno::name);
    transcript.called(
        Actor::Side(Side::Server),
        &format!("bind({})", RESERVED.start()),
        explicit,
        EventDetails::default(),
    )?;
    drop(lo);
    let chosen = ports.iter().filter(|port| RESERVED.contains(port)).count();
    transcript.check("reserved ports that bind(0) chose", "0", chosen.to_string())?;
    transcript.check(
        "when the others are used up",
        Call::Bind.errno_without_free_port().name(),
        failed.map_or("ok", Errno::name),
    )?;
    transcript.check(format!("an explicit bind of {}", RESERVED.start()), "ok", word)
}
