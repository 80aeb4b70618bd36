//! Builds netlink datagrams by hand, and recordings of them, so that tests can imitate kernels that this machine does not run.
//! The formats come from uapi/linux/netlink.h and inet_diag.h, not from twtool's decoder.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::Path;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;
use twtool::model::facts::{Facts, UnreadFacts};
use twtool::model::kernel_counts::BucketFacts;
use twtool::model::port::{LocalPortRange, LocalReservedPorts, Port, PortRange};
use twtool::model::services::Services;
use twtool::sock_diag::request::{Request, Walk};
use twtool::sock_diag::transport::{EventSink as _, TransportEvent};
use twtool::source::recording::RecordingFile;

pub(crate) const NLMSG_ERROR: u16 = 2;
pub(crate) const NLMSG_DONE: u16 = 3;
pub(crate) const NLMSG_OVERRUN: u16 = 4;
pub(crate) const TCPDIAG_GETSOCK: u16 = 18;
pub(crate) const SOCK_DIAG_BY_FAMILY: u16 = 20;

const NLM_F_REQUEST: u16 = 1;
const NLM_F_MULTI: u16 = 2;
const NLM_F_DUMP: u16 = 0x300;
pub(crate) const NLM_F_DUMP_INTR: u16 = 16;

pub(crate) const ENOENT: i32 = 2;
pub(crate) const ENOMEM: i32 = 12;
pub(crate) const EINVAL: i32 = 22;
pub(crate) const ENOBUFS: i32 = 105;

pub(crate) const TIME_WAIT: u8 = 6;
pub(crate) const FIN_WAIT_2: u8 = 5;
pub(crate) const LISTEN: u8 = 10;

/// A netlink message of this type, with NLM_F_MULTI and sequence number 1.
pub(crate) fn message(kind: u16, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(16 + payload.len()).expect("short");
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&NLM_F_MULTI.to_ne_bytes());
    bytes.extend_from_slice(&1_u32.to_ne_bytes());
    bytes.extend_from_slice(&0_u32.to_ne_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

pub(crate) fn flagged(mut message: Vec<u8>, flags: u16) -> Vec<u8> {
    let flags = u16::from_ne_bytes([message[6], message[7]]) | flags;
    message[6..8].copy_from_slice(&flags.to_ne_bytes());
    message
}

/// The NLMSG_DONE message that ends a dump, with 0 or an errno.
pub(crate) fn done(errno: i32) -> Vec<u8> {
    message(NLMSG_DONE, &(-errno).to_ne_bytes())
}

pub(crate) fn refusal(errno: i32) -> Vec<u8> {
    message(NLMSG_ERROR, &[(-errno).to_ne_bytes().as_slice(), &[0; 16]].concat())
}

/// A socket as a dump contains it.
#[derive(Clone, Copy)]
pub(crate) struct Sock {
    pub(crate) kind: u16,
    pub(crate) state: u8,
    pub(crate) timer: u8,
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    pub(crate) expires_ms: u32,
    pub(crate) interface: u32,
    pub(crate) cookie: u64,
}

impl Sock {
    pub(crate) fn bucket(local: &str, remote: &str, expires_ms: u32, cookie: u64) -> Self {
        let addr = super::situations::addr;
        let (local, remote) = (addr(local), addr(remote));
        Self { kind: TCPDIAG_GETSOCK, state: TIME_WAIT, timer: 3, local, remote, expires_ms, interface: 0, cookie }
    }

    /// A `struct inet_diag_msg`.
    pub(crate) fn payload(&self) -> Vec<u8> {
        let family: u8 = if self.local.is_ipv4() { 2 } else { 10 };
        let addr = |addr: SocketAddr| match addr {
            SocketAddr::V4(v4) => [v4.ip().octets().as_slice(), &[0; 12]].concat(),
            SocketAddr::V6(v6) => v6.ip().octets().to_vec(),
        };
        [
            [family, self.state, self.timer, 0].as_slice(),
            &self.local.port().to_be_bytes(),
            &self.remote.port().to_be_bytes(),
            &addr(self.local),
            &addr(self.remote),
            &self.interface.to_ne_bytes(),
            // The cookie is two 32-bit words in host order, the low word first.
            &u32::try_from(self.cookie & 0xffff_ffff).expect("32 bits").to_ne_bytes(),
            &u32::try_from(self.cookie >> 32).expect("32 bits").to_ne_bytes(),
            &self.expires_ms.to_ne_bytes(),
            &[0; 16],
        ]
        .concat()
    }

    pub(crate) fn message(&self) -> Vec<u8> {
        message(self.kind, &self.payload())
    }
}

/// The facts of an imaginary machine.
pub(crate) fn facts() -> Facts {
    let range = |first, last| PortRange::new(Port(first), Port(last)).expect("forwards");
    Facts {
        taken_at: SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123),
        kernel: "5.4.0-hand-made".into(),
        netns: Some(4_026_531_840),
        netns_name: Some("1:init".into()),
        local_port_range: Some(LocalPortRange(range(32768, 60999))),
        local_reserved_ports: Some(LocalReservedPorts(vec![])),
        unprivileged_port_start: Some(1024),
        services: Services::new([(Port(80), ["http"])]),
        interfaces: [(NonZeroU32::MIN, "lo".to_owned())].into_iter().collect(),
        unread: UnreadFacts::default(),
    }
}

/// The events of one dump in a recording: a request for every state, then the datagrams of the response.
pub(crate) fn dump_events(walk: Walk, answer: impl IntoIterator<Item = Vec<u8>>) -> Vec<TransportEvent> {
    const EVERY_STATE: u32 = 0x3ffe;
    const TCP: u8 = 6;
    // The states are near the end of struct inet_diag_req, and near the beginning of struct inet_diag_req_v2.
    let (kind, payload) = match walk {
        Walk::BothFamilies => {
            let states = EVERY_STATE.to_ne_bytes();
            (TCPDIAG_GETSOCK, [[2_u8].as_slice(), &[0; 51], &states, &[0; 4]].concat())
        }
        Walk::Ipv4 | Walk::Ipv6 => {
            let family = if walk == Walk::Ipv4 { 2 } else { 10 };
            let states = EVERY_STATE.to_ne_bytes();
            (SOCK_DIAG_BY_FAMILY, [[family, TCP, 0, 0].as_slice(), &states, &[0; 48]].concat())
        }
    };
    let mut bytes = message(kind, &payload);
    bytes[6..8].copy_from_slice(&(NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    let request = Request::decode(&bytes).expect("a request, byte for byte as twtool sends it");
    std::iter::once(TransportEvent::Request(request)).chain(answer.into_iter().map(TransportEvent::Datagram)).collect()
}

/// Writes a recording of these events, and returns its folder and its path. Dropping the folder removes the file.
pub(crate) fn recording(facts: &Facts, events: &[TransportEvent]) -> (TempDir, String) {
    recording_with_counts(facts, &BucketFacts::default(), events)
}

/// Like [`recording`], with these counts of the kernel.
pub(crate) fn recording_with_counts(
    facts: &Facts,
    buckets: &BucketFacts,
    events: &[TransportEvent],
) -> (TempDir, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("recording");
    write(&path, facts, buckets, events);
    let text = path.into_os_string().into_string().expect("UTF-8");
    (folder, text)
}

fn write(path: &Path, facts: &Facts, buckets: &BucketFacts, events: &[TransportEvent]) {
    let mut file = RecordingFile::create(path, true, facts, buckets).expect("a file");
    for event in events {
        file.keep(event).expect("kept");
    }
    file.finish().expect("finished");
}
