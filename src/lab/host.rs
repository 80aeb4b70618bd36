//! A host of the lab: a network namespace with a veth pair. One end is the host's Ethernet interface. At the other end, the lab receives
//! the frames that the host sends, and sends frames to the host.

use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use super::LabError;
use crate::sys::packet::{Frame, Interface, PacketSocket};
use crate::sys::rtnetlink::{self, VethEnd};
use crate::sys::sandbox::PrivateNetns;

/// The interface indices of the two ends of the veth pair: the host's interface, and the lab's end. They are above the indices that a
/// kernel uses in a new namespace.
const HOST_END: u32 = 100;
const LAB_END: u32 = 101;

const LAB_END_NAME: &str = "cable";

/// The length of the prefix of the lab's network: 192.0.2.0/24, which RFC 5737 reserves for examples (TEST-NET-1).
const PREFIX: u8 = 24;

#[derive(Clone, Copy, Debug)]
pub(super) struct HostAddress {
    pub(super) address: Ipv4Addr,
    pub(super) mac: [u8; 6],
}

#[derive(Debug)]
pub(super) struct Host {
    netns: PrivateNetns,
    packets: PacketSocket,
    lab_end: Interface,
}

impl Host {
    /// Makes a host, and moves the calling thread into its namespace. The host knows the neighbour's MAC address, so the host sends
    /// no ARP requests.
    pub(super) fn create(place: HostAddress, neighbour: HostAddress) -> Result<Self, LabError> {
        let netns = PrivateNetns::create()?;
        let host_end = VethEnd { index: HOST_END, name: "eth0", mac: place.mac };
        let lab_end = VethEnd { index: LAB_END, name: LAB_END_NAME, mac: [2, 0, 0, 0, 0, 0xff] };
        rtnetlink::create_veth(host_end, lab_end).map_err(LabError::Veth)?;
        let plugged = || -> io::Result<_> {
            // Raise the host's interface last: it then has a carrier, and can send at once.
            rtnetlink::raise(LAB_END)?;
            rtnetlink::raise(HOST_END)?;
            rtnetlink::add_address(HOST_END, place.address, PREFIX)?;
            rtnetlink::add_neighbour(HOST_END, neighbour.address, neighbour.mac)?;
            Ok((PacketSocket::open()?, Interface::named(LAB_END_NAME)?))
        };
        let (packets, lab_end) = plugged().map_err(super::step("setting up a veth pair"))?;
        Ok(Self { netns, packets, lab_end })
    }

    pub(super) fn enter(&self) -> Result<(), LabError> {
        Ok(self.netns.enter()?)
    }

    /// Returns the next frame that the host sends. Returns `None` if nothing arrives within this time, or if the next frame is one that
    /// the lab delivered.
    pub(super) fn next_frame(&self, wait: Duration) -> Result<Option<Frame>, LabError> {
        let frame = self.packets.receive(wait).map_err(super::step("receiving from a packet socket"))?;
        // The packet socket also receives the frames that the lab delivers, when they arrive on the host's interface.
        Ok(frame.filter(|frame| frame.interface == LAB_END))
    }

    pub(super) fn deliver(&self, frame: &[u8]) -> Result<(), LabError> {
        self.packets.send(&self.lab_end, frame).map_err(super::step("sending on a packet socket"))
    }
}
