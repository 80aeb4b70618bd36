//! The types of the lab: scenarios, the two sides, events, and comparisons of expected and observed results.
//!
//! No segment, state or timer is simulated: segments are captured, and the kernel reports states and timers.

use std::fmt;
use std::time::{Duration, SystemTime};

use super::bind::Errno;
use super::socket::TcpState;

/// An experiment of `twtool demo`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "title() describes each")]
pub enum Scenario {
    FourWay,
    LostAck,
    StaleSegment,
    Assassination,
    Reuse,
    Exhaustion,
    Length,
    PortZero,
}

impl Scenario {
    /// Every scenario, in the recommended order.
    pub const ALL: [Self; 8] = [
        Self::FourWay,
        Self::LostAck,
        Self::StaleSegment,
        Self::Assassination,
        Self::Reuse,
        Self::Exhaustion,
        Self::Length,
        Self::PortZero,
    ];

    /// The name of the scenario on the command line and in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::FourWay => "four-way",
            Self::LostAck => "lost-ack",
            Self::StaleSegment => "stale-segment",
            Self::Assassination => "assassination",
            Self::Reuse => "reuse",
            Self::Exhaustion => "exhaustion",
            Self::Length => "length",
            Self::PortZero => "port-zero",
        }
    }

    /// The title of the scenario, in one line.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::FourWay => "how a connection ends, and which end is left in TIME_WAIT",
            Self::LostAck => "reason one for TIME_WAIT: the last ACK may be lost",
            Self::StaleSegment => "reason two: old data must not reach a new connection",
            Self::Assassination => "a RST can end TIME_WAIT early (RFC 1337)",
            Self::Reuse => "which options let a server bind over TIME_WAIT: 16 cases",
            Self::Exhaustion => "connect() with all eight ports in use, and when it works again",
            Self::Length => "how long TIME_WAIT really lasts here (takes about 62 s)",
            Self::PortZero => "which port the kernel chooses for bind(0) and for connect()",
        }
    }

    /// Whether the scenario is about the order of segments, so both ends have a column in the text output. The other scenarios are about
    /// the results of calls, and about times.
    #[must_use]
    pub const fn is_about_segments(self) -> bool {
        matches!(self, Self::FourWay | Self::LostAck | Self::StaleSegment | Self::Assassination)
    }
}

/// An end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The side that connects.
    Client,
    /// The side that accepts.
    Server,
}

impl Side {
    /// The name of the side.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }

    /// The side at the other end.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

/// The source of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Actor {
    /// A program or the kernel on this side.
    Side(Side),
    /// The lab, which changes settings and reads the kernel's list of sockets.
    Lab,
}

impl Actor {
    /// The name of the actor.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Side(side) => side.name(),
            Self::Lab => "lab",
        }
    }
}

/// Control bits of a segment (RFC 9293, section 3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, clippy::struct_excessive_bools, reason = "the RFC's names; each is a bit")]
pub struct Flags {
    pub fin: bool,
    pub syn: bool,
    pub rst: bool,
    pub psh: bool,
    pub ack: bool,
}

impl Flags {
    /// The names of the bits that are set.
    #[must_use]
    pub fn names(self) -> Vec<&'static str> {
        [(self.syn, "SYN"), (self.fin, "FIN"), (self.rst, "RST"), (self.psh, "PSH"), (self.ack, "ACK")]
            .into_iter()
            .filter_map(|(set, name)| set.then_some(name))
            .collect()
    }
}

impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.names().join(" "))
    }
}

/// A TCP segment as it was on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The side that sent the segment.
    pub from: Side,
    /// Its control bits.
    pub flags: Flags,
    /// Its sequence number, relative to the first number of the sender in this connection. In `stale-segment`, the client's numbers
    /// are not relative.
    pub seq: u32,
    /// The acknowledgement number, relative to the first number of the other side as in `seq`; `None` without ACK.
    pub ack: Option<u32>,
    /// The sequence number on the wire.
    pub raw_seq: u32,
    /// The acknowledgement number on the wire.
    pub raw_ack: Option<u32>,
    /// Its data.
    pub payload: Vec<u8>,
    /// When the segment was captured.
    pub at: SystemTime,
    /// The whole Ethernet frame, with a computed TCP checksum.
    pub frame: Vec<u8>,
}

/// The states of both ends as the kernel lists them; `None` if it lists no such socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the two ends")]
pub struct States {
    pub client: Option<TcpState>,
    pub server: Option<TcpState>,
}

/// An expected result with the observed one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// The part of the scenario.
    pub part: String,
    /// What is compared.
    pub what: String,
    /// The result according to RFCs, man pages and earlier measurements.
    pub expected: String,
    /// The result on this kernel.
    pub observed: String,
    /// Whether both results agree.
    pub agrees: bool,
}

/// What the wire does to a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It arrived.
    Arrived,
    /// A copy of it arrived after the connection had ended.
    Late,
    /// It never arrived.
    Lost,
}

/// The result of a call in an experiment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReturnValue {
    /// The call succeeded.
    Done,
    /// The call failed.
    Failed(Errno),
    /// The call read these bytes. No bytes mean the end of the stream.
    Read(String),
    /// The call returned another value: a port, or the value of an option.
    Value(String),
}

impl ReturnValue {
    /// The errno, if the call failed.
    #[must_use]
    pub const fn errno(&self) -> Option<Errno> {
        match self {
            Self::Failed(errno) => Some(*errno),
            _ => None,
        }
    }
}

/// The kind of an event, with its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LabEventKind {
    /// A part of the scenario begins.
    Part,
    /// A call, or a change of a setting.
    Call {
        /// The text of the call.
        call: String,
        /// Its result.
        outcome: ReturnValue,
    },
    /// A segment was sent.
    Segment {
        /// The segment.
        segment: Segment,
        /// Whether it arrived.
        fate: Fate,
    },
    /// An observation of the kernel's list of sockets.
    Observation,
    /// The remaining time of a pause, for a countdown.
    Waiting(Duration),
    /// A comparison of an expected result with the observed one.
    Comparison(Comparison),
}

/// An event of an experiment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabEvent {
    /// The experiment.
    pub scenario: Scenario,
    /// The title of the part.
    pub part: String,
    /// The number of the step that the event belongs to. A part, a call or an observation begins a step. On the wire between two hosts,
    /// the first segment after a call or an observation belongs to the same step, and each further segment is a step of its own. On
    /// `lo`, every segment belongs to the step of the call before it.
    pub step: u32,
    /// Time since the experiment began.
    pub since: Duration,
    /// Whether the event only prepares the part, so that the text output may shorten it.
    pub routine: bool,
    /// The source of the event.
    pub actor: Actor,
    /// The kind and data of the event.
    pub kind: LabEventKind,
    /// The states, if they were observed. For a segment: the sender's state while the segment was under way, and the receiver's
    /// state after it had arrived.
    pub states: Option<States>,
    /// The remaining time of the timewait bucket, if one end is a bucket.
    pub timer: Option<Duration>,
    /// An explanation.
    pub note: Option<String>,
}
