//! The words of the lab: scenarios, the two sides, what happened in which order, and what was expected of it.
//!
//! Nothing here is made up for the transcript: segments were seen on a wire, states and timers are the kernel's answers.

use std::fmt;
use std::time::{Duration, SystemTime};

use super::bind::Errno;
use super::socket::TcpState;

/// An experiment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "title() says it")]
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
    /// Every scenario, in the order in which they are best watched.
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

    /// Its name on the command line and in JSON.
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

    /// What it shows, in a line.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::FourWay => "how a connection ends, and which end is left in TIME_WAIT",
            Self::LostAck => "reason one for TIME_WAIT: the last ACK may be lost",
            Self::StaleSegment => "reason two: old data must not land in a new connection",
            Self::Assassination => "a RST can end TIME_WAIT early (RFC 1337)",
            Self::Reuse => "which options let a server bind over TIME_WAIT: 16 cases",
            Self::Exhaustion => "eight ephemeral ports used up, and how long until it heals",
            Self::Length => "how long TIME_WAIT really lasts here (takes about 62 s)",
            Self::PortZero => "which port the kernel chooses for bind(0) and for connect()",
        }
    }

    /// Whether the order of segments between the two ends is what it is about. The others make many connections, and
    /// what counts there is what the calls say.
    #[must_use]
    pub const fn is_about_segments(self) -> bool {
        matches!(self, Self::FourWay | Self::LostAck | Self::StaleSegment | Self::Assassination)
    }
}

/// An end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one that connects.
    Client,
    /// The one that accepts.
    Server,
}

impl Side {
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }

    /// The one at the other end.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

/// Who did something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Actor {
    /// A program at this end, or the kernel in its name.
    Side(Side),
    /// The wire between them, which loses and delays.
    Wire,
    /// The experimenter, who changes settings and removes sockets.
    Lab,
}

impl Actor {
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Side(side) => side.name(),
            Self::Wire => "wire",
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
    /// The names of those that are set.
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
    /// Who sent it.
    pub from: Side,
    /// Its control bits.
    pub flags: Flags,
    /// Its sequence number, counted from the sender's first one in this connection.
    pub seq: u32,
    /// What it acknowledges, counted from the other side's first one; `None` without ACK.
    pub ack: Option<u32>,
    /// The sequence number on the wire.
    pub raw_seq: u32,
    /// The acknowledgement number on the wire.
    pub raw_ack: Option<u32>,
    /// What it carries.
    pub payload: Vec<u8>,
    /// When it was on the wire.
    pub at: SystemTime,
    /// The whole Ethernet frame, its TCP checksum computed.
    pub frame: Vec<u8>,
}

/// The states of both ends as their kernels listed them; `None`: no such socket is listed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the two ends")]
pub struct States {
    pub client: Option<TcpState>,
    pub server: Option<TcpState>,
}

/// What was expected, and what happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// In which part of the scenario.
    pub part: String,
    /// Of what.
    pub what: String,
    /// As RFCs, man pages and earlier measurements have it.
    pub expected: String,
    /// As this kernel did it.
    pub observed: String,
    /// Whether that agrees.
    pub agrees: bool,
}

/// What a wire does to a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It arrived.
    Arrived,
    /// A copy of it arrived long after.
    Late,
    /// It never arrived.
    Lost,
}

/// What came of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReturnValue {
    /// It was done.
    Done,
    /// It failed.
    Failed(Errno),
    /// It gave these bytes; none is the end of the stream.
    Read(String),
    /// It gave something else: a port, an option's value.
    Value(String),
}

impl ReturnValue {
    /// What failed, where it did.
    #[must_use]
    pub const fn errno(&self) -> Option<Errno> {
        match self {
            Self::Failed(errno) => Some(*errno),
            _ => None,
        }
    }
}

/// What kind of thing happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A part of the scenario begins.
    Part,
    /// Somebody called or changed something.
    Call {
        /// What, as one would write it.
        call: String,
        /// What came of it.
        outcome: ReturnValue,
    },
    /// A segment was sent.
    Segment {
        /// Which.
        segment: Segment,
        /// What became of it.
        fate: Fate,
    },
    /// A look at the kernel's list.
    Observation,
    /// Time passes, this much of it; for a countdown, no event of the experiment.
    Waiting(Duration),
    /// A part's result.
    Comparison(Comparison),
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabEvent {
    /// In which experiment.
    pub scenario: Scenario,
    /// In which part of it, by its title.
    pub part: String,
    /// Number of the step that it belongs to; a step is a call and what follows from it, or one more segment.
    pub step: u32,
    /// Time since the experiment began.
    pub since: Duration,
    /// It only leads to where the part begins, so a page may shorten it.
    pub routine: bool,
    /// Who did it.
    pub actor: Actor,
    /// What.
    pub kind: EventKind,
    /// The states, where they were looked at. With a segment: the sender's while it was under way, the receiver's
    /// after it had arrived.
    pub states: Option<States>,
    /// The remaining time of the timewait bucket that one of the ends is.
    pub timer: Option<Duration>,
    /// Why.
    pub note: Option<String>,
}
