//! A TCP socket as sock_diag reports it: a timewait bucket or a full socket. They are two types, because a bucket lacks most
//! fields of a full socket.
//!
//! Fields have the meaning of `struct inet_diag_msg` (uapi/linux/inet_diag.h). Fields that the kernel fills with placeholders
//! (uid and inode of a bucket) do not exist here.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

use super::port::Port;

/// The state of a TCP socket, with its number in the kernel (include/net/tcp_states.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[expect(missing_docs, reason = "the kernel's names; RFC 9293, section 3.3.2, explains most of them")]
pub enum TcpState {
    Established = 1,
    SynSent = 2,
    SynRecv = 3,
    FinWait1 = 4,
    FinWait2 = 5,
    TimeWait = 6,
    Closed = 7,
    CloseWait = 8,
    LastAck = 9,
    Listen = 10,
    Closing = 11,
    NewSynRecv = 12,
    /// Bound, but neither listening nor connected. sock_diag lists such sockets since Linux 6.8.
    BoundInactive = 13,
}

impl TcpState {
    /// Every state, by its number.
    pub const ALL: [Self; 13] = [
        Self::Established,
        Self::SynSent,
        Self::SynRecv,
        Self::FinWait1,
        Self::FinWait2,
        Self::TimeWait,
        Self::Closed,
        Self::CloseWait,
        Self::LastAck,
        Self::Listen,
        Self::Closing,
        Self::NewSynRecv,
        Self::BoundInactive,
    ];

    /// The state with this kernel number, if there is one.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number).checked_sub(1)?).copied()
    }

    /// The name that scripts see, such as `time-wait`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Established => "established",
            Self::SynSent => "syn-sent",
            Self::SynRecv | Self::NewSynRecv => "syn-recv",
            Self::FinWait1 => "fin-wait-1",
            Self::FinWait2 => "fin-wait-2",
            Self::TimeWait => "time-wait",
            Self::Closed => "closed",
            Self::CloseWait => "close-wait",
            Self::LastAck => "last-ack",
            Self::Listen => "listen",
            Self::Closing => "closing",
            Self::BoundInactive => "bound-inactive",
        }
    }

    /// The name of the state in texts for people, such as `TIME_WAIT`.
    #[must_use]
    pub const fn upper_name(self) -> &'static str {
        match self {
            Self::Established => "ESTABLISHED",
            Self::SynSent => "SYN_SENT",
            Self::SynRecv | Self::NewSynRecv => "SYN_RECV",
            Self::FinWait1 => "FIN_WAIT_1",
            Self::FinWait2 => "FIN_WAIT_2",
            Self::TimeWait => "TIME_WAIT",
            Self::Closed => "CLOSED",
            Self::CloseWait => "CLOSE_WAIT",
            Self::LastAck => "LAST_ACK",
            Self::Listen => "LISTEN",
            Self::Closing => "CLOSING",
            Self::BoundInactive => "BOUND_INACTIVE",
        }
    }
}

/// A set of states, as the kernel's bit mask (`1 << state`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateSet(u32);

impl StateSet {
    /// The set of all states of [`TcpState::ALL`].
    pub const ALL: Self = Self::of(&TcpState::ALL);

    /// The set of these states.
    #[must_use]
    pub const fn of(states: &[TcpState]) -> Self {
        let mut bits = 0;
        let mut i = 0;
        while i < states.len() {
            bits |= 1 << states[i] as u8;
            i += 1;
        }
        Self(bits)
    }

    /// A set from the kernel's bit mask.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// The kernel's bit mask.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// The states that are in at least one of the two sets.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The states of this set that are not in the other set.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether the set has no state.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether the set has the state.
    #[must_use]
    pub const fn contains(self, state: TcpState) -> bool {
        self.0 & (1 << state as u8) != 0
    }

    /// Whether the set has every state of the other set.
    #[must_use]
    pub const fn contains_all(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// The address family of a socket, and the IP version of its packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// `AF_INET`.
    Ipv4,
    /// `AF_INET6` with IPv6 addresses.
    Ipv6,
    /// `AF_INET6` with IPv4-mapped addresses: an IPv4 connection of a dual-stack socket.
    Ipv4Mapped,
}

impl Family {
    /// The name that scripts see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
            Self::Ipv4Mapped => "ipv4-mapped",
        }
    }

    /// Whether its packets are IPv4.
    #[must_use]
    pub const fn ipv4_on_the_wire(self) -> bool {
        !matches!(self, Self::Ipv6)
    }
}

/// An address as two 64-bit numbers, each of which fits into a register. With a field of 16 bytes, the compiler assembles the address
/// byte by byte, and decoding a socket spends most of its time on that. The struct is packed, because the alignment of a `u64` would
/// make every bucket 8 bytes larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(Rust, packed(2))]
struct AddrHalves(u64, u64);

impl AddrHalves {
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "each half has 64 bits")]
    const fn of(bits: u128) -> Self {
        Self((bits >> 64) as u64, bits as u64)
    }

    #[inline]
    const fn bits(self) -> u128 {
        (self.0 as u128) << 64 | self.1 as u128
    }
}

/// Both ports in one register, the local one in the upper half. If each port were written alone, copying both at once would stall
/// the processor. The struct is packed for the same reason as [`AddrHalves`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(Rust, packed(2))]
struct Ports(u32);

impl Ports {
    #[inline]
    const fn of(local: Port, remote: Port) -> Self {
        Self((local.0 as u32) << 16 | remote.0 as u32)
    }

    #[inline]
    const fn local(self) -> Port {
        Port((self.0 >> 16) as u16)
    }

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "it is the lower half")]
    const fn remote(self) -> Port {
        Port(self.0 as u16)
    }
}

/// The upper 96 bits of an IPv4-mapped address (RFC 4291, section 2.5.5.2).
const MAPPED: u128 = 0xffff;

/// Both ends of a socket: addresses and ports. To keep the type small, an IPv4 address is stored in its mapped form
/// (`::ffff:192.0.2.1`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FourTuple {
    /// The family of both addresses.
    pub family: Family,
    local_addr: AddrHalves,
    remote_addr: AddrHalves,
    ports: Ports,
}

impl FourTuple {
    /// Makes a tuple of addresses that are both IPv4 or both IPv6. Mapped addresses give the family [`Family::Ipv4Mapped`].
    #[must_use]
    pub fn new(local: (IpAddr, Port), remote: (IpAddr, Port)) -> Self {
        let bits = |addr: IpAddr| match addr {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
            IpAddr::V6(v6) => v6.to_bits(),
        };
        Self::of_bits(local.0.is_ipv4(), (bits(local.0), local.1), (bits(remote.0), remote.1))
    }

    /// Makes a tuple of addresses of 128 bits. IPv4 addresses are in their mapped form.
    #[must_use]
    #[inline]
    pub(crate) const fn of_bits(ipv4: bool, local: (u128, Port), remote: (u128, Port)) -> Self {
        debug_assert!(!ipv4 || (local.0 >> 32 == MAPPED && remote.0 >> 32 == MAPPED), "IPv4 in its mapped form");
        let family = match (ipv4, local.0 >> 32) {
            (true, _) => Family::Ipv4,
            (false, MAPPED) => Family::Ipv4Mapped,
            (false, _) => Family::Ipv6,
        };
        Self {
            family,
            local_addr: AddrHalves::of(local.0),
            remote_addr: AddrHalves::of(remote.0),
            ports: Ports::of(local.1, remote.1),
        }
    }

    /// Both addresses as the kernel stores them: an IPv4-mapped address is an IPv6 address.
    #[must_use]
    pub fn addrs(&self) -> (IpAddr, IpAddr) {
        let (local, remote) = (Ipv6Addr::from_bits(self.local_bits()), Ipv6Addr::from_bits(self.remote_bits()));
        match self.family {
            Family::Ipv4 => (local.to_canonical(), remote.to_canonical()),
            Family::Ipv6 | Family::Ipv4Mapped => (local.into(), remote.into()),
        }
    }

    /// The address of this end. An IPv4-mapped address is returned as plain IPv4.
    #[must_use]
    pub fn local_addr(&self) -> IpAddr {
        Ipv6Addr::from_bits(self.local_bits()).to_canonical()
    }

    /// The address of the other end; the unspecified address for a listener. An IPv4-mapped address is returned as plain IPv4.
    #[must_use]
    pub fn remote_addr(&self) -> IpAddr {
        Ipv6Addr::from_bits(self.remote_bits()).to_canonical()
    }

    /// The address of this end as 128 bits. An IPv4 address is in its mapped form.
    #[must_use]
    pub const fn local_bits(&self) -> u128 {
        self.local_addr.bits()
    }

    /// The address of the other end as 128 bits. An IPv4 address is in its mapped form.
    #[must_use]
    pub const fn remote_bits(&self) -> u128 {
        self.remote_addr.bits()
    }

    /// The port of this end.
    #[must_use]
    pub const fn local_port(&self) -> Port {
        self.ports.local()
    }

    /// The port of the other end; 0 if there is no other end.
    #[must_use]
    pub const fn remote_port(&self) -> Port {
        self.ports.remote()
    }

    /// Whether both ends are the same, so that the socket is connected to itself. If a client connects to an
    /// ephemeral port of its own address on which nobody listens, and the kernel chooses this port as the source port, too, the socket is
    /// connected to itself (simultaneous open, RFC 9293, section 3.5).
    #[must_use]
    #[inline]
    pub const fn is_self_connection(&self) -> bool {
        self.local_port().0 == self.remote_port().0 && self.local_bits() == self.remote_bits()
    }

    /// The tuple as seen from the other end.
    #[must_use]
    #[inline]
    pub const fn reversed(&self) -> Self {
        Self {
            family: self.family,
            local_addr: self.remote_addr,
            remote_addr: self.local_addr,
            ports: Ports::of(self.remote_port(), self.local_port()),
        }
    }
}

/// The kernel's 64-bit identity of a socket (`SO_COOKIE`). It is unique while the socket exists, and a bucket keeps the cookie of
/// its socket. The kernel assigns a cookie when it is requested for the first time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cookie(NonZeroU64);

impl Cookie {
    /// The cookie with this number; `None` for 0, because the kernel counts cookies from 1.
    #[must_use]
    pub fn new(number: u64) -> Option<Self> {
        NonZeroU64::new(number).map(Self)
    }

    /// The cookie as a number.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0.get()
    }
}

impl fmt::Display for Cookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A timewait bucket (`struct inet_timewait_sock`): a socket in TIME_WAIT, or an orphan in FIN_WAIT_2. No process owns it,
/// and the kernel stores no uid and no inode for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeWaitBucket {
    /// Both ends.
    pub tuple: FourTuple,
    /// Whether it is in FIN_WAIT_2, because the peer has not closed yet. When the peer closes, the bucket enters TIME_WAIT with a new
    /// timer.
    pub fin_wait_2: bool,
    /// Remaining time in ms (`idiag_expires`). If it is 0, the kernel removes the bucket at the next step of its timer
    /// wheel (up to 2 s later with HZ=250, and 5 s with HZ=100).
    pub expires_ms: u32,
    /// The interface that the socket was bound to, by index.
    pub interface: Option<NonZeroU32>,
    /// `SO_MARK`. The kernel reports it only to a caller with CAP_NET_ADMIN, so `None` means "unknown", not "no mark".
    pub mark: Option<u32>,
    /// The kernel's identity of the socket; `None` if the source does not report it.
    pub cookie: Option<Cookie>,
}

impl TimeWaitBucket {
    /// The state of the bucket: TIME_WAIT or FIN_WAIT_2.
    #[must_use]
    pub const fn state(&self) -> TcpState {
        if self.fin_wait_2 { TcpState::FinWait2 } else { TcpState::TimeWait }
    }

    /// The remaining time; see [`Self::expires_ms`].
    #[must_use]
    pub const fn expires(&self) -> Duration {
        Duration::from_millis(self.expires_ms as u64)
    }
}

/// A socket that is not a timewait bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FullSocket {
    /// Both ends.
    pub tuple: FourTuple,
    /// Its state; never TIME_WAIT.
    pub state: TcpState,
    /// The user that created it. Older kernels report 0 for a socket that no process has open.
    pub uid: u32,
    /// Its inode in sockfs, which /proc/PID/fd shows. `None` if no process has it open (closed, or not accepted yet).
    pub inode: Option<NonZeroU32>,
    /// The interface that it is bound to, by index.
    pub interface: Option<NonZeroU32>,
    /// `SO_MARK`. The kernel reports it only to a caller with CAP_NET_ADMIN.
    pub mark: Option<u32>,
    /// `IPV6_V6ONLY`; `None` if it is unknown. sock_diag reports it only for listening and bound `AF_INET6` sockets, and procfs never.
    pub v6only: Option<bool>,
    /// The time since the last received ACK, in ms (`tcpi_last_ack_recv`), if `struct tcp_info` was requested.
    pub last_ack_ms: Option<u32>,
    /// The kernel's identity of the socket; `None` if the source does not report it.
    pub cookie: Option<Cookie>,
}

/// A socket in a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the two types are documented")]
pub enum Socket {
    Bucket(TimeWaitBucket),
    Full(FullSocket),
}

impl Socket {
    /// Both ends.
    #[must_use]
    pub const fn tuple(&self) -> &FourTuple {
        match self {
            Self::Bucket(bucket) => &bucket.tuple,
            Self::Full(full) => &full.tuple,
        }
    }

    /// Its state.
    #[must_use]
    pub const fn state(&self) -> TcpState {
        match self {
            Self::Bucket(bucket) => bucket.state(),
            Self::Full(full) => full.state,
        }
    }

    /// The kernel's identity of the socket.
    #[must_use]
    pub const fn cookie(&self) -> Option<Cookie> {
        match self {
            Self::Bucket(bucket) => bucket.cookie,
            Self::Full(full) => full.cookie,
        }
    }

    /// The interface that it is bound to, by index.
    #[must_use]
    pub const fn interface(&self) -> Option<NonZeroU32> {
        match self {
            Self::Bucket(bucket) => bucket.interface,
            Self::Full(full) => full.interface,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_takes_at_most_64_bytes() {
        assert!(size_of::<TimeWaitBucket>() <= 64, "{}", size_of::<TimeWaitBucket>());
    }

    #[test]
    fn every_state_is_found_by_its_number() {
        for state in TcpState::ALL {
            assert_eq!(TcpState::from_number(state as u8), Some(state));
        }
        assert_eq!((TcpState::from_number(0), TcpState::from_number(14)), (None, None));
    }

    #[test]
    fn mapped_addresses_become_ipv4_addresses_of_the_family_ipv4_mapped() {
        let mapped = ("::ffff:192.0.2.1".parse().expect("address"), Port(80));
        let tuple = FourTuple::new(mapped, mapped);
        assert_eq!(tuple.family, Family::Ipv4Mapped);
        assert_eq!(tuple.local_addr().to_string(), "192.0.2.1");
        let v6 = ("::".parse().expect("address"), Port(80));
        assert_eq!(FourTuple::new(v6, v6).family, Family::Ipv6);
    }
}
