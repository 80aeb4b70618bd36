//! Changes interfaces of the calling thread's network namespace through rtnetlink(7). For example, it sets `lo` up, and creates a
//! veth pair. twtool uses this module only in private namespaces, never in the namespace of the host.

use std::io;
use std::net::Ipv4Addr;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NLMSG_ERROR, NetlinkBuffer, NetlinkMessage,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::errno::retry;

/// The index of `lo`, which is the same in every namespace.
pub const LOOPBACK: u32 = 1;

/// One end of a veth pair.
#[derive(Clone, Copy, Debug)]
pub struct VethEnd<'a> {
    /// The index of the interface, which must be unused in this namespace.
    pub index: u32,
    /// The name of the interface.
    pub name: &'a str,
    /// The Ethernet address of the interface.
    pub mac: [u8; 6],
}

impl VethEnd<'_> {
    fn link(self) -> LinkMessage {
        let mut link = LinkMessage::default();
        link.header.index = self.index;
        link.attributes = vec![LinkAttribute::IfName(self.name.into()), LinkAttribute::Address(self.mac.into())];
        link
    }
}

/// Sets an interface up.
pub fn raise(interface: u32) -> io::Result<()> {
    let mut link = LinkMessage::default();
    link.header.index = interface;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    request(RouteNetlinkMessage::NewLink(link), 0)
}

/// Creates a pair of virtual Ethernet devices. If both are up, frames that are sent on one arrive at the other
/// (veth(4)).
pub fn create_veth(one: VethEnd, other: VethEnd) -> io::Result<()> {
    let mut link = one.link();
    let peer = InfoData::Veth(InfoVeth::Peer(other.link()));
    link.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(peer)]));
    request(RouteNetlinkMessage::NewLink(link), NLM_F_CREATE | NLM_F_EXCL)
}

/// Adds an IPv4 address to an interface. If the interface is up, the kernel also adds the route to the network of the address.
pub fn add_address(interface: u32, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = prefix;
    message.header.index = interface;
    message.attributes = vec![AddressAttribute::Local(address.into()), AddressAttribute::Address(address.into())];
    request(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL)
}

/// Adds a permanent neighbour entry with an Ethernet address, so that the kernel sends no ARP request.
pub fn add_neighbour(interface: u32, address: Ipv4Addr, mac: [u8; 6]) -> io::Result<()> {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = interface;
    message.header.state = NeighbourState::Permanent;
    message.attributes = vec![
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)),
        NeighbourAttribute::LinkLayerAddress(mac.into()),
    ];
    request(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_EXCL)
}

fn request(message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
    let mut message = NetlinkMessage::from(message);
    message.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    message.finalize();
    let mut datagram = vec![0; message.buffer_len()];
    message.serialize(&mut datagram);

    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    retry(|| socket.send(&datagram, 0))?;
    let mut answer = Vec::with_capacity(4096);
    retry(|| socket.recv(&mut answer, 0))?;
    acknowledgement(&answer)
}

/// Parses the kernel's response: the first word of NLMSG_ERROR is a negative errno, or 0.
pub fn acknowledgement(answer: &[u8]) -> io::Result<()> {
    let answer = NetlinkBuffer::new_checked(answer).map_err(io::Error::other)?;
    if answer.message_type() != NLMSG_ERROR {
        return Err(io::Error::from(io::ErrorKind::InvalidData));
    }
    match answer.payload().first_chunk().copied().map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(code @ i32::MIN..0) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        _ => Err(io::Error::from(io::ErrorKind::InvalidData)),
    }
}
