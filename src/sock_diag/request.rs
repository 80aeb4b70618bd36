//! Encodes requests: for a dump of TCP sockets, or for one socket (`struct inet_diag_req`, `struct inet_diag_req_v2`).

use std::fmt;
use std::num::NonZeroU32;

use netlink_packet_core::{
    DefaultNla, Emitable, NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable,
};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP, SOCK_DIAG_BY_FAMILY};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};

use crate::model::socket::{Cookie, Family, FourTuple, StateSet};

/// The message type `TCPDIAG_GETSOCK`, which is older than SOCK_DIAG_BY_FAMILY. For this type, the kernel ignores the family of a
/// request and lists IPv4 and IPv6 in one walk.
pub const TCPDIAG_GETSOCK: u16 = 18;

/// The attribute of a request that contains a program (uapi/linux/inet_diag.h).
const INET_DIAG_REQ_BYTECODE: u16 = 1;

/// The sequence number of every dump and look-up. A netlink socket has one outstanding request at a time, and is not
/// used again after an unfinished dump, so the number need not change.
pub const SEQUENCE: u32 = 1;

/// Which walk of the kernel's table a request starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Walk {
    /// Both families in one walk, listeners first.
    BothFamilies,
    /// `AF_INET` only.
    Ipv4,
    /// `AF_INET6` only, which includes IPv4-mapped sockets.
    Ipv6,
}

impl fmt::Display for Walk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BothFamilies => "TCP",
            Self::Ipv4 => "TCP over IPv4",
            Self::Ipv6 => "TCP over IPv6",
        })
    }
}

/// A request for a dump of TCP sockets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The walk that the request starts.
    pub walk: Walk,
    /// The kernel returns sockets in these states.
    pub states: StateSet,
    /// If there is a program (see `bytecode`), the kernel returns only sockets that the program accepts.
    pub program: Option<Vec<u8>>,
    /// Whether the kernel adds `struct tcp_info` (INET_DIAG_INFO) to each full socket.
    pub tcp_info: bool,
}

/// The older form of a request, which the kernel calls compat (`inet_diag_rcv_msg_compat`). It is a `struct inet_diag_req`: family,
/// two address lengths, extensions, a `struct inet_diag_sockid`, states, and a field `idiag_dbs` that the kernel ignores.
struct CompatRequest {
    states: StateSet,
    extensions: u8,
}

impl CompatRequest {
    const LENGTH: usize = 60;
    const EXTENSIONS: usize = 3;
    const STATES: usize = 52;
}

impl NetlinkSerializable for CompatRequest {
    fn message_type(&self) -> u16 {
        TCPDIAG_GETSOCK
    }

    fn buffer_len(&self) -> usize {
        Self::LENGTH
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.fill(0);
        buffer[0] = AF_INET;
        buffer[Self::EXTENSIONS] = self.extensions;
        buffer[Self::STATES..Self::STATES + 4].copy_from_slice(&self.states.bits().to_ne_bytes());
    }
}

impl Request {
    /// Encodes the request as a datagram.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let extensions = if self.tcp_info { ExtensionFlags::INFO.bits() } else { 0 };
        let by_family = |family, socket_id| {
            SockDiagMessage::InetRequest(InetRequest {
                family,
                protocol: IPPROTO_TCP,
                extensions: ExtensionFlags::from_bits_retain(extensions),
                // The crate has no names for the states after TCP_CLOSING.
                states: StateFlags::from_bits_retain(self.states.bits()),
                socket_id,
            })
        };
        let mut datagram = match self.walk {
            Walk::BothFamilies => message(CompatRequest { states: self.states, extensions }, DUMP),
            Walk::Ipv4 => message(by_family(AF_INET, SocketId::new_v4()), DUMP),
            Walk::Ipv6 => message(by_family(AF_INET6, SocketId::new_v6()), DUMP),
        };
        if let Some(program) = &self.program {
            let attribute = DefaultNla::new(INET_DIAG_REQ_BYTECODE, program.clone());
            let length = datagram.len();
            datagram.resize(length + attribute.buffer_len(), 0);
            attribute.emit(&mut datagram[length..]);
            let total = u32::try_from(datagram.len()).unwrap_or(u32::MAX);
            NetlinkBuffer::new(&mut datagram).set_length(total);
        }
        datagram
    }

    /// Decodes a datagram of [`Self::encode`]; `None` for any other bytes. Requests with a program or with tcp_info are
    /// not supported, because recordings never contain them.
    #[must_use]
    pub fn decode(datagram: &[u8]) -> Option<Self> {
        let byte_at = |at: usize| datagram.get(at).copied();
        let u32_at = |at: usize| Some(u32::from_ne_bytes(datagram.get(at..at + 4)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(datagram.get(4..6)?.try_into().ok()?);
        let (walk, states) = match (kind, byte_at(16)?) {
            (TCPDIAG_GETSOCK, _) => (Walk::BothFamilies, u32_at(16 + CompatRequest::STATES)?),
            (SOCK_DIAG_BY_FAMILY, AF_INET) => (Walk::Ipv4, u32_at(20)?),
            (SOCK_DIAG_BY_FAMILY, AF_INET6) => (Walk::Ipv6, u32_at(20)?),
            _ => return None,
        };
        let request = Self { walk, states: StateSet::from_bits(states), program: None, tcp_info: false };
        (request.encode() == datagram).then_some(request)
    }
}

/// Without a cookie the request matches nothing: the kernel never assigns cookie 0. An IPv4-mapped socket is requested as AF_INET6,
/// with its mapped addresses.
pub(super) fn for_one_socket(tuple: &FourTuple, interface: Option<NonZeroU32>, cookie: Option<Cookie>) -> InetRequest {
    let (source_address, destination_address) = tuple.addrs();
    let number = cookie.map_or(0, Cookie::number);
    // The kernel uses two words in host byte order, the low word first.
    let half = |shift: u32| u32::try_from(number >> shift & u64::from(u32::MAX)).unwrap_or_default().to_ne_bytes();
    let mut words = [0; 8];
    words[..4].copy_from_slice(&half(0));
    words[4..].copy_from_slice(&half(32));
    InetRequest {
        family: if tuple.family == Family::Ipv4 { AF_INET } else { AF_INET6 },
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        // The kernel ignores the states in a request for one socket.
        states: StateFlags::all(),
        socket_id: SocketId {
            source_port: tuple.local_port().0,
            destination_port: tuple.remote_port().0,
            source_address,
            destination_address,
            interface_id: interface.map_or(0, NonZeroU32::get),
            cookie: words,
        },
    }
}

const DUMP: u16 = NLM_F_REQUEST | NLM_F_DUMP;

pub(super) fn message<T: NetlinkSerializable>(payload: T, flags: u16) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    header.sequence_number = SEQUENCE;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(payload));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::socket::TcpState;

    #[test]
    fn the_compat_request_is_76_bytes_with_the_states_near_its_end() {
        let states = StateSet::of(&[TcpState::Listen, TcpState::TimeWait]);
        let bytes = Request { walk: Walk::BothFamilies, states, program: None, tcp_info: false }.encode();
        assert_eq!(bytes.len(), 16 + 60);
        assert_eq!(bytes[0..4], 76_u32.to_ne_bytes());
        assert_eq!(bytes[4..6], 18_u16.to_ne_bytes());
        assert_eq!(bytes[6..8], 0x301_u16.to_ne_bytes(), "NLM_F_REQUEST | NLM_F_DUMP");
        assert_eq!(bytes[68..72], (1_u32 << 10 | 1 << 6).to_ne_bytes());
    }

    #[test]
    fn the_request_by_family_is_72_bytes_and_keeps_states_without_a_name_in_the_netlink_crate() {
        let bytes = Request { walk: Walk::Ipv6, states: StateSet::ALL, program: None, tcp_info: false }.encode();
        assert_eq!((bytes.len(), bytes[16], bytes[17]), (72, 10, 6));
        assert_eq!(bytes[20..24], 0x3ffe_u32.to_ne_bytes());
    }

    #[test]
    fn tcp_info_is_a_bit_of_the_extensions_in_either_request() {
        let extensions = |walk, at: usize| {
            let request = |tcp_info| Request { walk, states: StateSet::ALL, program: None, tcp_info }.encode()[at];
            [request(false), request(true)]
        };
        assert_eq!(extensions(Walk::BothFamilies, 16 + 3), [0, 2], "1 << (INET_DIAG_INFO - 1)");
        assert_eq!(extensions(Walk::Ipv4, 16 + 2), [0, 2]);
    }

    #[test]
    fn a_program_is_an_attribute_after_the_request_and_counts_in_its_length() {
        let program = vec![2, 8, 12, 0, 0, 0, 80, 0];
        let bytes = Request {
            walk: Walk::BothFamilies,
            states: StateSet::ALL,
            program: Some(program.clone()),
            tcp_info: false,
        }
        .encode();
        assert_eq!(bytes[0..4], 88_u32.to_ne_bytes());
        assert_eq!(bytes[76..80], [12_u16.to_ne_bytes(), 1_u16.to_ne_bytes()].concat());
        assert_eq!(bytes[80..], program);
    }

    #[test]
    fn a_request_can_be_read_back_and_other_bytes_are_rejected() {
        for walk in [Walk::BothFamilies, Walk::Ipv4, Walk::Ipv6] {
            let request = Request { walk, states: StateSet::of(&[TcpState::TimeWait]), program: None, tcp_info: false };
            let bytes = request.encode();
            assert_eq!(Request::decode(&bytes), Some(request));
            for cut in 0..bytes.len() {
                assert_eq!(Request::decode(&bytes[..cut]), None);
            }
        }
        assert_eq!(Request::decode(&[0; 72]), None);
    }
}
