//! Two hosts and the wire between them. This program is the wire: a segment arrives only when the lab delivers it. So the lab
//! can read the states of both hosts while a segment is under way, drop the segment, or deliver a copy much later.
//!
//! Each host is a network namespace of the real kernel, and no segment is forged: a host has sent every segment that the lab delivers.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use socket2::Socket as OsSocket;

use super::frame::InitialSequences;
use super::host::{Host, HostAddress};
use super::transcript::{EventDetails, Transcript};
use super::{Connection, Endpoints, LabError, PATIENCE, Server, step};
use crate::model::bind::ReuseOptions;
use crate::model::experiment::{Actor, Fate, Segment, Side, States};
use crate::model::port::Port;
use crate::model::socket::{Socket, TcpState};
use crate::sys;

/// The maximum time that the lab waits for an expected state. After that, the present state is the result.
const SETTLING: Duration = Duration::from_secs(3);

const CLIENT: HostAddress = HostAddress { address: Ipv4Addr::new(192, 0, 2, 1), mac: [2, 0, 0, 0, 0, 1] };
const SERVER: HostAddress = HostAddress { address: Ipv4Addr::new(192, 0, 2, 2), mac: [2, 0, 0, 0, 0, 2] };

const SERVER_PORT: u16 = 8080;
/// Fixed, so that a second connection can have the same addresses and ports.
const CLIENT_PORT: u16 = 40_000;

/// The expected states: of the sender while the segment is under way, and of the receiver after the segment has arrived. `None` means
/// that the socket is gone.
pub(super) type ExpectedStates = (Option<TcpState>, Option<TcpState>);

/// The sequence of states of a side, without repetitions.
type Path = Vec<Option<TcpState>>;

pub(super) struct Wire {
    client: Host,
    server: Host,
    sequences: InitialSequences,
    under_way: VecDeque<Segment>,
    /// For each side: the last delivered segment with SYN, FIN or data. `take` drops a retransmission of this segment. `None`: there is no
    /// such segment yet, or a retransmission is expected.
    last: [Option<SequenceRange>; 2],
    paths: [Path; 2],
    carried: Vec<String>,
    /// Whether the server answers a SYN with a cookie and stores no request socket (`tcp_syncookies` = 2).
    syn_cookies: bool,
}

impl Wire {
    pub(super) fn create() -> Result<Self, LabError> {
        let client = Host::create(CLIENT, SERVER)?;
        let server = Host::create(SERVER, CLIENT)?;
        let (sequences, under_way) = (InitialSequences::default(), VecDeque::new());
        let (paths, carried) = ([vec![], vec![]], vec![]);
        Ok(Self { client, server, sequences, under_way, last: [None, None], paths, carried, syn_cookies: false })
    }

    /// Makes the server answer every SYN with a cookie. Then the server's initial sequence numbers of two connections between
    /// the same ports differ by as much as the client's, unless the kernel's minute counter changes in between
    /// (`secure_tcp_syn_cookie` in net/ipv4/syncookies.c).
    pub(super) fn use_syn_cookies(&mut self) -> Result<(), LabError> {
        self.syn_cookies = true;
        self.set(Side::Server, "ipv4.tcp_syncookies", "2")
    }

    /// The sequence number of the last delivered segment of this side with SYN, FIN or data.
    pub(super) const fn last_sequence(&self, side: Side) -> Option<u32> {
        match self.last[side as usize] {
            Some((sequence, _)) => Some(sequence),
            None => None,
        }
    }

    pub(super) const fn show_raw_client_numbers(&mut self) {
        self.sequences.client_raw = true;
    }

    const fn host(&self, side: Side) -> &Host {
        match side {
            Side::Client => &self.client,
            Side::Server => &self.server,
        }
    }

    pub(super) fn set(&self, side: Side, setting: &str, value: &str) -> Result<(), LabError> {
        self.host(side).enter()?;
        sys::sysctl::write(setting, value).map_err(step("changing a sysctl of the lab"))
    }

    fn ends(side: Side) -> Endpoints {
        let client = Endpoints {
            local: (CLIENT.address.into(), Port(CLIENT_PORT)),
            remote: (SERVER.address.into(), Port(SERVER_PORT)),
        };
        if side == Side::Client { client } else { client.reversed() }
    }

    /// The socket that the kernel lists for the connection on this side. A socket in state CLOSED counts as gone: kernels that list
    /// bound sockets also list a socket that a program still has open after its connection has ended.
    pub(super) fn find(&self, side: Side) -> Result<Option<Socket>, LabError> {
        self.host(side).enter()?;
        Ok(Self::ends(side).find()?.filter(|socket| socket.state() != TcpState::Closed))
    }

    /// Waits until this side is in the expected state, for at most [`SETTLING`], and returns its socket. Also adds the last state to
    /// the path of this side.
    fn settle(&mut self, side: Side, expected: Option<TcpState>) -> Result<Option<Socket>, LabError> {
        let deadline = Instant::now() + SETTLING;
        let found = loop {
            let found = self.find(side)?;
            if found.map(|socket| socket.state()) == expected || Instant::now() > deadline {
                break found;
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        let state = found.map(|socket| socket.state());
        let path = &mut self.paths[side as usize];
        if path.last() != Some(&state) {
            path.push(state);
        }
        Ok(found)
    }

    /// Makes a listener on the server, and begins a connect() of the client. After that, the SYN is on the wire.
    pub(super) fn begin_connection(&mut self, initial_sequence: u32) -> Result<(Server, OsSocket), LabError> {
        self.server.enter()?;
        let at = SocketAddr::from((SERVER.address, SERVER_PORT));
        let server = Server::listen(at, ReuseOptions::REUSEADDR)?;
        self.client.enter()?;
        let client = sys::bind::socket(CLIENT.address.into(), ReuseOptions::NONE).map_err(step("socket()"))?;
        if initial_sequence != 0 {
            sys::tcp_repair::set_initial_sequence(&client, initial_sequence).map_err(step("TCP_REPAIR"))?;
        }
        let from = SocketAddr::from((CLIENT.address, CLIENT_PORT));
        client.bind(&from.into()).map_err(step("bind() of the client"))?;
        // The lab has not delivered the response yet, so connect() must not block.
        client.set_nonblocking(true).map_err(step("O_NONBLOCK"))?;
        match client.connect(&at.into()) {
            Err(error) if error.raw_os_error() == Some(Errno::EINPROGRESS as i32) => Ok((server, client)),
            Err(error) => Err(step("connect()")(error)),
            Ok(()) => Err(step("connect()")(io::Error::other("it succeeded before the lab delivered a segment"))),
        }
    }

    /// Connects with the three-way handshake. The listener closes after accept(), so that only the connection remains.
    ///
    /// The text output may shorten the handshake, unless `in_full` is true.
    pub(super) fn connect(
        &mut self,
        transcript: &mut Transcript,
        initial_sequence: u32,
        in_full: bool,
    ) -> Result<Connection, LabError> {
        use TcpState::{Established, SynRecv, SynSent};
        let routine = std::mem::replace(&mut transcript.routine, !in_full);
        transcript.call(Actor::Side(Side::Client), "connect()", "")?;
        let (listener, client) = self.begin_connection(initial_sequence)?;
        let answering = (!self.syn_cookies).then_some(SynRecv);
        self.carry(transcript, Side::Client, (Some(SynSent), answering), "")?;
        self.carry(transcript, Side::Server, (answering, Some(Established)), "")?;
        self.carry(transcript, Side::Client, (Some(Established), Some(Established)), "")?;
        transcript.routine = routine;
        client.set_nonblocking(false).map_err(step("O_NONBLOCK"))?;
        let server = listener.accept()?;
        for socket in [&client, &server] {
            socket.set_read_timeout(Some(PATIENCE)).map_err(step("SO_RCVTIMEO"))?;
        }
        Ok(Connection { client, server })
    }

    /// Delivers the server's FIN and all later segments of the close. The client closes in between. `left` is the expected state of
    /// the server after the client's FIN: TIME_WAIT, or `None` if the server makes no buckets.
    pub(super) fn finish_close(
        &mut self,
        transcript: &mut Transcript,
        client: OsSocket,
        left: Option<TcpState>,
    ) -> Result<(), LabError> {
        use TcpState::{CloseWait, FinWait1, FinWait2, LastAck};
        self.carry(transcript, Side::Server, (Some(FinWait1), Some(CloseWait)), "")?;
        self.carry(transcript, Side::Client, (Some(CloseWait), Some(FinWait2)), "")?;
        transcript.call(Actor::Side(Side::Client), "close()", "")?;
        drop(client);
        self.carry(transcript, Side::Client, (Some(LastAck), left), "")?;
        self.carry(transcript, Side::Server, (left, None), "")?;
        Ok(())
    }

    /// Takes the next segment that this side has sent, without delivering it.
    pub(super) fn take(&mut self, transcript: &mut Transcript, from: Side) -> Result<Segment, LabError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.under_way.iter().position(|segment| segment.from == from) {
                let segment = self.under_way.remove(at).ok_or(LabError::NoSegment { side: from })?;
                if self.last[from as usize].is_some_and(|last| Some(last) == sequence_range(&segment)) {
                    let note = "Sent again, because this machine was slow. The wire drops it.";
                    transcript.segment(segment, Fate::Lost, EventDetails { note, ..EventDetails::default() })?;
                    continue;
                }
                return Ok(segment);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(LabError::NoSegment { side: from });
            }
            if let Some(frame) = self.host(from).next_frame(left)? {
                let sender = |port| if port == SERVER_PORT { Side::Server } else { Side::Client };
                self.under_way.extend(self.sequences.read(frame, sender));
            }
        }
    }

    /// Delivers the next segment of this side to the other, and returns it.
    pub(super) fn carry(
        &mut self,
        transcript: &mut Transcript,
        from: Side,
        expected: ExpectedStates,
        note: &str,
    ) -> Result<Segment, LabError> {
        let segment = self.take(transcript, from)?;
        self.arrive(transcript, segment, expected, note)
    }

    /// Drops the next segment of this side, and returns it.
    pub(super) fn lose(
        &mut self,
        transcript: &mut Transcript,
        from: Side,
        sender: Option<TcpState>,
        note: &str,
    ) -> Result<Segment, LabError> {
        let segment = self.take(transcript, from)?;
        let (one, other) = (self.settle(from, sender)?, self.find(from.other())?);
        // If the lost segment is an ACK, the other side retransmits the acknowledged segment. `take` must return that
        // retransmission, and not drop it.
        self.last[from.other() as usize] = None;
        self.carried.push(format!("{} (lost)", segment.flags));
        transcript.segment(segment.clone(), Fate::Lost, state_details(from, one, other, note))?;
        Ok(segment)
    }

    /// Waits until each side has sent a segment. Then delivers both segments, the client's first.
    pub(super) fn cross(
        &mut self,
        transcript: &mut Transcript,
        expected: ExpectedStates,
        note: &str,
    ) -> Result<(), LabError> {
        let (sender, receiver) = expected;
        let segments = [self.take(transcript, Side::Client)?, self.take(transcript, Side::Server)?];
        let before = [self.settle(Side::Client, sender)?, self.settle(Side::Server, sender)?];
        for segment in &segments {
            self.host(segment.from.other()).deliver(&segment.frame)?;
        }
        let after = [self.settle(Side::Client, receiver)?, self.settle(Side::Server, receiver)?];
        for (segment, note) in segments.into_iter().zip(["", note]) {
            let from = segment.from;
            self.remember_delivered(&segment);
            self.carried.push(segment.flags.to_string());
            let seen = state_details(from, before[from as usize], after[from.other() as usize], note);
            transcript.segment(segment, Fate::Arrived, seen)?;
        }
        Ok(())
    }

    /// Delivers a segment that was under way.
    pub(super) fn arrive(
        &mut self,
        transcript: &mut Transcript,
        segment: Segment,
        expected: ExpectedStates,
        note: &str,
    ) -> Result<Segment, LabError> {
        self.deliver(transcript, segment, Fate::Arrived, expected, note)
    }

    /// Delivers a copy of an old segment.
    pub(super) fn arrive_late(
        &mut self,
        transcript: &mut Transcript,
        old: &Segment,
        expected: ExpectedStates,
        note: &str,
    ) -> Result<(), LabError> {
        let copy = Segment { at: sys::clock::now(), ..old.clone() };
        self.deliver(transcript, copy, Fate::Late, expected, note).map(drop)
    }

    fn deliver(
        &mut self,
        transcript: &mut Transcript,
        segment: Segment,
        fate: Fate,
        (sender, receiver): ExpectedStates,
        note: &str,
    ) -> Result<Segment, LabError> {
        let from = segment.from;
        let one = self.settle(from, sender)?;
        self.host(from.other()).deliver(&segment.frame)?;
        let other = self.settle(from.other(), receiver)?;
        if fate == Fate::Arrived {
            self.remember_delivered(&segment);
        }
        let late = if fate == Fate::Late { " (late)" } else { "" };
        self.carried.push(format!("{}{late}", segment.flags));
        transcript.segment(segment.clone(), fate, state_details(from, one, other, note))?;
        Ok(segment)
    }

    fn remember_delivered(&mut self, segment: &Segment) {
        if let Some(range) = sequence_range(segment) {
            self.last[segment.from as usize] = Some(range);
        }
    }

    pub(super) fn observe(&self) -> Result<EventDetails<'static>, LabError> {
        Ok(state_details(Side::Client, self.find(Side::Client)?, self.find(Side::Server)?, ""))
    }

    /// Makes a host close without TIME_WAIT. SOCK_DESTROY would not be enough, because it cannot remove a bucket on Linux 5.10.
    pub(super) fn make_no_buckets(&self, transcript: &mut Transcript, side: Side) -> Result<(), LabError> {
        self.set(side, "ipv4.tcp_max_tw_buckets", "0")?;
        let call = format!("tcp_max_tw_buckets = 0 at the {}", side.name());
        transcript.call(
            Actor::Lab,
            &call,
            "The kernel makes no timewait bucket, so the connection ends without TIME_WAIT.",
        )
    }

    /// Compares the states of both sides, and the delivered and lost segments, with the expected ones.
    pub(super) fn check(
        &mut self,
        transcript: &mut Transcript,
        states: [&str; 2],
        segments: &str,
    ) -> Result<(), LabError> {
        for (side, expected) in [Side::Client, Side::Server].into_iter().zip(states) {
            let path = std::mem::take(&mut self.paths[side as usize]);
            let observed: Vec<&str> = path.into_iter().map(state_name).collect();
            transcript.check(format!("states of the {}", side.name()), expected, observed.join(", "))?;
        }
        transcript.check("segments", segments, std::mem::take(&mut self.carried).join(", "))
    }
}

/// The first sequence number of a segment, and how many sequence numbers it uses: one for each byte of data, for SYN and for FIN. A
/// retransmission has the same range.
type SequenceRange = (u32, usize);

/// `None` if the segment uses no sequence numbers. Such a segment, for example an ACK, is never retransmitted.
fn sequence_range(segment: &Segment) -> Option<SequenceRange> {
    let length = segment.payload.len() + usize::from(segment.flags.syn) + usize::from(segment.flags.fin);
    (length > 0).then_some((segment.raw_seq, length))
}

/// The name of a state; `gone` if the kernel lists no socket.
pub(super) fn state_name(state: Option<TcpState>) -> &'static str {
    state.map_or("gone", TcpState::name)
}

fn state_details(side: Side, one: Option<Socket>, other: Option<Socket>, note: &str) -> EventDetails<'_> {
    let (client, server) = if side == Side::Client { (one, other) } else { (other, one) };
    let state = |socket: Option<Socket>| socket.map(|socket| socket.state());
    let timer = [server, client].into_iter().flatten().find_map(|socket| match socket {
        Socket::Bucket(bucket) => Some(bucket.expires()),
        Socket::Full(_) => None,
    });
    EventDetails { states: Some(States { client: state(client), server: state(server) }), timer, note }
}
