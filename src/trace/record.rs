//! Decodes the record that the BPF program sends for each close.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU32;

use crate::model::close::Outcome;
use crate::model::name::text_of;
use crate::model::port::{LocalPortRange, Port, PortRange};
use crate::model::socket::{Cookie, FourTuple, TcpState};

/// The size of a record in bytes.
pub const LENGTH: i16 = 256;

// The offsets of the fields in bytes. The names of the task and of its cgroup end with a NUL.
/// CLOCK_MONOTONIC in ns, u64.
pub(super) const TIME: i16 = 0;
/// The cookie of the socket, u64.
pub(super) const COOKIE: i16 = 8;
/// The id of the cgroup in the unified hierarchy, u64.
pub(super) const CGROUP: i16 = 16;
/// When the process started, CLOCK_BOOTTIME in ns, u64.
pub(super) const START: i16 = 24;
/// The pid in the upper half and the tid in the lower half, u64.
pub(super) const TASK: i16 = 32;
/// The flags of the socket, bits of enum sock_flags, u64.
pub(super) const FLAGS: i16 = 40;
/// The inode number of the network namespace, u32.
pub(super) const NETNS: i16 = 48;
/// The real uid of the thread, u32.
pub(super) const UID: i16 = 52;
/// `TCP_LINGER2` if the state before CLOSE was FIN_WAIT_2, i32.
pub(super) const LINGER2: i16 = 56;
/// The error of the socket, `sk_err`, u32.
pub(super) const ERROR: i16 = 60;
/// The flags of the task, bits of `PF_*`, u32.
pub(super) const TASK_FLAGS: i16 = 64;
/// Whether a system call had locked the socket at the change to FIN_WAIT_1, `sk_lock.owned`, u32.
pub(super) const OWNED: i16 = 68;
/// The backlog, `sk_max_ack_backlog`, u32. See [`BpfRecord::accepted`].
pub(super) const BACKLOG: i16 = 72;
/// The index of the interface that the socket was bound to, u32; 0 for none.
pub(super) const INTERFACE: i16 = 76;
/// `SO_MARK`, u32.
pub(super) const MARK: i16 = 80;
/// AF_INET or AF_INET6, u16.
pub(super) const FAMILY: i16 = 84;
/// The state before CLOSE, u8.
pub(super) const OLD_STATE: i16 = 86;
/// Whether the record has a task, u8.
pub(super) const HAS_TASK: i16 = 87;
/// The local port, u16 in the byte order of the machine.
pub(super) const LOCAL_PORT: i16 = 88;
/// The remote port, u16 in the byte order of the network.
pub(super) const REMOTE_PORT: i16 = 90;
/// Whether a copy of the BPF program (see `program`) has sent the record, u8.
pub(super) const SENT: i16 = 92;
/// The local address, 4 or 16 bytes in the byte order of the network.
pub(super) const LOCAL_ADDR: i16 = 96;
/// The remote address, in the form of [`LOCAL_ADDR`].
pub(super) const REMOTE_ADDR: i16 = 112;
/// The name of the process, 16 bytes.
pub(super) const COMM: i16 = 128;
/// The name of the thread, 16 bytes.
pub(super) const THREAD: i16 = 144;
/// `ip_local_port_range` of the network namespace. Since Linux 6.8: `low | high << 16`, u32. Before: two u32. The second u32 is then not 0,
/// because the highest port is not 0.
pub(super) const PORT_RANGE: i16 = 160;
/// The last component of the path of the cgroup, 88 bytes. `cri-containerd-ID.scope` has 85.
pub(super) const CGROUP_NAME: i16 = 168;

/// `SOCK_DONE` of enum sock_flags: the FIN of the peer has arrived.
const SOCK_DONE: u64 = 1 << 1;
/// `SOCK_DEAD`: no process has the socket open.
const SOCK_DEAD: u64 = 1;
/// `PF_KTHREAD`: the thread belongs to the kernel (include/linux/sched.h).
const PF_KTHREAD: u32 = 0x0020_0000;

/// A close, as the BPF program saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BpfRecord {
    /// When this end closed (CLOCK_MONOTONIC in ns). Without a task: when the socket ended.
    pub time_ns: u64,
    /// The cookie of the socket and of its bucket.
    pub cookie: Option<Cookie>,
    /// The inode number of the network namespace.
    pub netns: u32,
    /// `ip_local_port_range` of the network namespace; `None` if the kernel stores it in an unknown form.
    pub port_range: Option<LocalPortRange>,
    /// Both ends.
    pub tuple: FourTuple,
    /// The interface that the socket was bound to.
    pub interface: Option<NonZeroU32>,
    /// `SO_MARK`.
    pub mark: u32,
    /// The state before CLOSE.
    pub old_state: Option<TcpState>,
    /// What the socket left when it ended.
    pub outcome: Outcome,
    /// Whether a listener accepted the connection. An accepted socket is a copy of its listener, whose backlog is in `sk_max_ack_backlog`.
    /// After connect(), this member is 0. It is also 0 after `listen(fd, 0)`, so only `true` is certain.
    pub accepted: bool,
    /// The task that was running when the socket changed to FIN_WAIT_1; `None` if the program did not see this change, or if the map
    /// PENDING (see `program`) has evicted the record.
    pub task: Option<Task>,
}

/// A task that was running when a socket changed to FIN_WAIT_1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// The pid in the initial pid namespace.
    pub pid: u32,
    /// The tid in the initial pid namespace.
    pub tid: u32,
    /// The real uid of the task in the initial user namespace (bpf_get_current_uid_gid).
    pub uid: u32,
    /// The name of the process.
    pub comm: String,
    /// The name of the thread.
    pub thread: String,
    /// When the process started (CLOCK_BOOTTIME).
    pub start_ns: u64,
    /// The id of the task's cgroup in the unified hierarchy.
    pub cgroup: u64,
    /// The last component of the path of that cgroup; empty if the program could not read it.
    pub cgroup_name: String,
    /// Whether the task is a thread of the kernel.
    pub kernel: bool,
    /// Whether the task closed the socket: the socket was locked for a system call. Otherwise the task only happened to run when the
    /// kernel handled a packet (Fast Open, shutdown() in SYN_RECV), and has nothing to do with the socket.
    pub closed_socket: bool,
}

/// Reads the fields of a record. A field outside the record is 0.
struct RecordFields<'a>(&'a [u8]);

impl RecordFields<'_> {
    fn bytes<const N: usize>(&self, at: i16) -> [u8; N] {
        let at = usize::from(at.unsigned_abs());
        self.0.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or([0; N])
    }

    fn u16(&self, at: i16) -> u16 {
        u16::from_ne_bytes(self.bytes(at))
    }

    fn u32(&self, at: i16) -> u32 {
        u32::from_ne_bytes(self.bytes(at))
    }

    fn u64(&self, at: i16) -> u64 {
        u64::from_ne_bytes(self.bytes(at))
    }

    /// Reads a text of `N` bytes, up to the first NUL.
    fn text<const N: usize>(&self, at: i16) -> String {
        let bytes: [u8; N] = self.bytes(at);
        text_of(bytes.split(|byte| *byte == 0).next().unwrap_or_default())
    }
}

impl BpfRecord {
    /// Decodes a record; `None` if it is too short, or if its address family is neither IPv4 nor IPv6.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        const AF_INET: u16 = 2;
        const AF_INET6: u16 = 10;
        if bytes.len() < usize::from(LENGTH.unsigned_abs()) {
            return None;
        }
        let fields = RecordFields(bytes);
        let addr = |at| match fields.u16(FAMILY) {
            AF_INET => Some(IpAddr::V4(Ipv4Addr::from(fields.bytes::<4>(at)))),
            AF_INET6 => Some(IpAddr::V6(Ipv6Addr::from(fields.bytes::<16>(at)))),
            _ => None,
        };
        let local = (addr(LOCAL_ADDR)?, Port(fields.u16(LOCAL_PORT)));
        let remote = (addr(REMOTE_ADDR)?, Port(u16::from_be_bytes(fields.bytes(REMOTE_PORT))));
        let old_state = TcpState::from_number(fields.bytes::<1>(OLD_STATE)[0]);
        Some(Self {
            time_ns: fields.u64(TIME),
            cookie: Cookie::new(fields.u64(COOKIE)),
            netns: fields.u32(NETNS),
            port_range: port_range(fields.u32(PORT_RANGE), fields.u32(PORT_RANGE + 4)),
            tuple: FourTuple::new(local, remote),
            interface: NonZeroU32::new(fields.u32(INTERFACE)),
            mark: fields.u32(MARK),
            old_state,
            outcome: outcome(old_state, fields.u64(FLAGS), fields.u32(ERROR), fields.u32(LINGER2).cast_signed()),
            accepted: fields.u32(BACKLOG) != 0,
            task: (fields.bytes::<1>(HAS_TASK)[0] != 0).then(|| task(&fields)),
        })
    }
}

fn port_range(first: u32, second: u32) -> Option<LocalPortRange> {
    let (low, high) = if second == 0 { (first & 0xffff, first >> 16) } else { (first, second) };
    let port = |number: u32| u16::try_from(number).ok().filter(|port| *port != 0).map(Port);
    PortRange::new(port(low)?, port(high)?).map(LocalPortRange)
}

fn task(fields: &RecordFields) -> Task {
    let number = fields.u64(TASK);
    Task {
        pid: u32::try_from(number >> 32).unwrap_or(0),
        tid: u32::try_from(number & 0xffff_ffff).unwrap_or(0),
        uid: fields.u32(UID),
        comm: fields.text::<16>(COMM),
        thread: fields.text::<16>(THREAD),
        start_ns: fields.u64(START),
        cgroup: fields.u64(CGROUP),
        cgroup_name: fields.text::<88>(CGROUP_NAME),
        kernel: fields.u32(TASK_FLAGS) & PF_KTHREAD != 0,
        closed_socket: fields.u32(OWNED) != 0,
    }
}

/// Infers what a socket leaves when it ends (measured on Linux 6.18).
fn outcome(old_state: Option<TcpState>, flags: u64, error: u32, linger2: i32) -> Outcome {
    if error != 0 {
        Outcome::Aborted
    } else if flags & SOCK_DONE != 0 {
        Outcome::TimeWait
    } else if old_state == Some(TcpState::FinWait2) && flags & SOCK_DEAD != 0 {
        if linger2 < 0 { Outcome::Aborted } else { Outcome::FinWait2 }
    } else {
        Outcome::Unknown
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(fields: &[(i16, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; 256];
        for (at, field) in fields {
            let at = usize::from(at.unsigned_abs());
            bytes[at..at + field.len()].copy_from_slice(field);
        }
        bytes
    }

    #[test]
    fn the_fields_of_a_record_are_decoded() {
        let bytes = bytes(&[
            (TIME, &7_u64.to_ne_bytes()),
            (COOKIE, &8_u64.to_ne_bytes()),
            (CGROUP, &9_u64.to_ne_bytes()),
            (TASK, &(5_u64 << 32 | 6).to_ne_bytes()),
            (FLAGS, &3_u64.to_ne_bytes()),
            (NETNS, &10_u32.to_ne_bytes()),
            (OWNED, &1_u32.to_ne_bytes()),
            (PORT_RANGE, &(60999_u32 * 0x1_0000 + 32768).to_ne_bytes()),
            (BACKLOG, &511_u32.to_ne_bytes()),
            (FAMILY, &2_u16.to_ne_bytes()),
            (OLD_STATE, &[5, 1]),
            (LOCAL_PORT, &443_u16.to_ne_bytes()),
            (REMOTE_PORT, &40000_u16.to_be_bytes()),
            (LOCAL_ADDR, &[10, 0, 0, 1]),
            (REMOTE_ADDR, &[10, 0, 0, 2]),
            (COMM, b"nginx\0junk"),
            (THREAD, b"exactly 16 bytes"),
            (CGROUP_NAME, b"web.service\0"),
        ]);
        let record = BpfRecord::decode(&bytes).expect("a record");
        let end = |addr: &str, port| (addr.parse().expect("an address"), Port(port));
        assert_eq!(record.tuple, FourTuple::new(end("10.0.0.1", 443), end("10.0.0.2", 40000)));
        assert_eq!((record.time_ns, record.cookie, record.netns, record.accepted), (7, Cookie::new(8), 10, true));
        assert_eq!(record.port_range.map(|range| range.0), PortRange::new(Port(32768), Port(60999)));
        assert_eq!((record.outcome, record.old_state), (Outcome::TimeWait, Some(TcpState::FinWait2)));
        let task = record.task.expect("a task");
        assert_eq!((task.pid, task.tid, task.cgroup, task.kernel, task.closed_socket), (5, 6, 9, false, true));
        assert_eq!([&*task.comm, &*task.thread, &*task.cgroup_name], ["nginx", "exactly 16 bytes", "web.service"]);
    }

    #[test]
    fn the_port_range_is_one_number_or_two() {
        let range = PortRange::new(Port(2000), Port(2999)).map(LocalPortRange);
        assert_eq!([port_range(2999 * 0x1_0000 + 2000, 0), port_range(2000, 2999)], [range, range]);
        // Not read, reversed, or not a port.
        assert_eq!([port_range(0, 0), port_range(2999, 2000), port_range(2000, 70_000)], [None, None, None]);
    }

    #[test]
    fn the_outcome_depends_on_the_old_state_the_flags_the_error_and_linger2() {
        // Old states: 4 is FIN_WAIT_1, 5 is FIN_WAIT_2, 11 is CLOSING. Flags: 0b01 is SOCK_DEAD, 0b10 is SOCK_DONE.
        let of = |old, flags, error| outcome(TcpState::from_number(old), flags, error, 0);
        assert_eq!(of(5, 0b10, 0), Outcome::TimeWait);
        assert_eq!(of(11, 0b11, 0), Outcome::TimeWait);
        assert_eq!(of(5, 0b01, 0), Outcome::FinWait2);
        assert_eq!(of(4, 0b01, 0), Outcome::Unknown);
        assert_eq!(of(5, 0b11, 104), Outcome::Aborted);
        let fin_wait_2 = |flags, linger2| outcome(Some(TcpState::FinWait2), flags, 0, linger2);
        assert_eq!([fin_wait_2(0b01, -1), fin_wait_2(0b01, 3000)], [Outcome::Aborted, Outcome::FinWait2]);
        assert_eq!(fin_wait_2(0b11, -1), Outcome::TimeWait);
    }

    #[test]
    fn a_record_of_another_family_or_a_short_record_is_refused() {
        assert_eq!(BpfRecord::decode(&bytes(&[])), None);
        assert_eq!(BpfRecord::decode(&bytes(&[(FAMILY, &2_u16.to_ne_bytes())])[..255]), None);
        assert!(
            BpfRecord::decode(&bytes(&[(FAMILY, &10_u16.to_ne_bytes())])).is_some_and(|record| record.task.is_none())
        );
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = BpfRecord::decode(&bytes);
        }
    }
}
