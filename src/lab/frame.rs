//! TCP segments out of Ethernet frames. Pure.

use etherparse::{NetSlice, SlicedPacket, TransportSlice};

use crate::model::experiment::{Flags, Segment, Side};
use crate::sys::packet::Frame;

/// Where TCP's checksum stands in its header (RFC 9293, section 3.1).
const CHECKSUM: usize = 16;

/// The first sequence number of each side, by which all others are counted.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Numbers {
    client: u32,
    server: u32,
    /// The client's numbers are told as they are on the wire.
    pub(super) client_raw: bool,
}

impl Numbers {
    const fn of(self, side: Side) -> u32 {
        match side {
            Side::Client if self.client_raw => 0,
            Side::Client => self.client,
            Side::Server => self.server,
        }
    }

    /// Reads the segment in an IPv4 frame; a SYN begins its sender's count. `None`: there is none.
    pub(super) fn read(&mut self, frame: Frame, sender: impl Fn(u16) -> Side) -> Option<Segment> {
        let Frame { at, mut bytes, .. } = frame;
        complete_checksum(&mut bytes)?;
        let packet = SlicedPacket::from_ethernet(&bytes).ok()?;
        let Some(TransportSlice::Tcp(tcp)) = &packet.transport else { return None };
        let from = sender(tcp.source_port());
        let flags = Flags { fin: tcp.fin(), syn: tcp.syn(), rst: tcp.rst(), psh: tcp.psh(), ack: tcp.ack() };
        let raw_seq = tcp.sequence_number();
        if flags.syn {
            match from {
                Side::Client => self.client = raw_seq,
                Side::Server => self.server = raw_seq,
            }
        }
        let raw_ack = flags.ack.then(|| tcp.acknowledgment_number());
        let seq = raw_seq.wrapping_sub(self.of(from));
        let ack = raw_ack.map(|ack| ack.wrapping_sub(self.of(from.other())));
        let payload = tcp.payload().to_vec();
        drop(packet);
        Some(Segment { from, flags, seq, ack, raw_seq, raw_ack, payload, at, frame: bytes })
    }
}

/// Computes the TCP checksum that a kernel leaves to its network card.
fn complete_checksum(frame: &mut [u8]) -> Option<()> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Tcp(tcp))) = (&packet.net, &packet.transport) else {
        return None;
    };
    let header = ip.header();
    let checksum = tcp.calc_checksum_ipv4(header.source(), header.destination()).ok()?;
    let ethernet = packet.link.as_ref()?.to_header()?.header_len();
    let at = ethernet + usize::from(header.ihl()) * 4 + CHECKSUM;
    drop(packet);
    frame.get_mut(at..at + 2)?.copy_from_slice(&checksum.to_be_bytes());
    Some(())
}
