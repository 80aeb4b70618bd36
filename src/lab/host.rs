//! A machine of the lab: a network namespace with one Ethernet card, whose cable is in our hand.

use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use super::LabError;
use crate::sys::packet::{Frame, Interface, PacketSocket};
use crate::sys::rtnetlink::{self, VethEnd};
use crate::sys::sandbox::PrivateNetns;

/// The card's number, and that of the cable's end that we hold; above what a kernel may make by itself in a new namespace.
const CARD: u32 = 100;
const CABLE: u32 = 101;

/// The name of the end that we hold.
const CABLE_NAME: &str = "cable";

/// The prefix of the lab's network: RFC 5737's TEST-NET-1.
const PREFIX: u8 = 24;

/// Where a host is on the lab's network.
#[derive(Clone, Copy, Debug)]
pub(super) struct HostAddress {
    pub(super) address: Ipv4Addr,
    pub(super) mac: [u8; 6],
}

/// A namespace with a veth pair: the kernel has the address on one end, and the other end is the cable.
#[derive(Debug)]
pub(super) struct Host {
    netns: PrivateNetns,
    packets: PacketSocket,
    cable: Interface,
}

impl Host {
    /// Makes it; the calling thread is in its namespace then. It knows its neighbour without asking.
    pub(super) fn create(place: HostAddress, neighbour: HostAddress) -> Result<Self, LabError> {
        let netns = PrivateNetns::create()?;
        let card = VethEnd { index: CARD, name: "eth0", mac: place.mac };
        let outside = VethEnd { index: CABLE, name: CABLE_NAME, mac: [2, 0, 0, 0, 0, 0xff] };
        rtnetlink::create_veth(card, outside).map_err(LabError::Veth)?;
        let plugged = || -> io::Result<_> {
            // The card last: it has a carrier then, and sends at once.
            rtnetlink::raise(CABLE)?;
            rtnetlink::raise(CARD)?;
            rtnetlink::add_address(CARD, place.address, PREFIX)?;
            rtnetlink::add_neighbour(CARD, neighbour.address, neighbour.mac)?;
            Ok((PacketSocket::open()?, Interface::named(CABLE_NAME)?))
        };
        let (packets, cable) = plugged().map_err(super::step("plugging a veth pair"))?;
        Ok(Self { netns, packets, cable })
    }

    /// Moves the calling thread there: what it makes and reads next is this host's.
    pub(super) fn enter(&self) -> Result<(), LabError> {
        Ok(self.netns.enter()?)
    }

    /// The next frame that the host has sent, where one comes within this time.
    pub(super) fn sent(&self, wait: Duration) -> Result<Option<Frame>, LabError> {
        let frame = self.packets.receive(wait).map_err(super::step("receiving from a packet socket"))?;
        // What we have delivered comes in at the card.
        Ok(frame.filter(|frame| frame.interface == CABLE))
    }

    /// Lets a frame arrive.
    pub(super) fn deliver(&self, frame: &[u8]) -> Result<(), LabError> {
        self.packets.send(&self.cable, frame).map_err(super::step("sending on a packet socket"))
    }
}
