//! Reads TCP segments from Ethernet frames.

use etherparse::{NetSlice, SlicedPacket, TransportSlice};

use crate::model::experiment::{Flags, Segment, Side};
use crate::sys::packet::Frame;

/// The offset of the checksum in the TCP header (RFC 9293, section 3.1).
const CHECKSUM: usize = 16;

/// The initial sequence number of each side. Events show sequence numbers relative to it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct InitialSequences {
    client: u32,
    server: u32,
    /// Whether events show the client's numbers as they are on the wire.
    pub(super) client_raw: bool,
}

impl InitialSequences {
    const fn of(self, side: Side) -> u32 {
        match side {
            Side::Client if self.client_raw => 0,
            Side::Client => self.client,
            Side::Server => self.server,
        }
    }

    /// Reads the TCP segment in an IPv4 frame; `None` if the frame has none. A SYN sets the initial number of its sender.
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

/// Computes the TCP checksum, which a kernel leaves to its network card. Returns `None` if the frame has no TCP segment in IPv4.
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

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    use super::*;

    /// A frame of the server, port 80, with a correct TCP checksum.
    fn frame(seq: u32, syn: bool, payload: &[u8]) -> Frame {
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([192, 0, 2, 2], [192, 0, 2, 1], 64);
        let builder = builder.tcp(80, 40_000, seq, 1000).ack(7);
        let builder = if syn { builder.syn() } else { builder };
        let mut bytes = vec![];
        builder.write(&mut bytes, payload).expect("a frame");
        Frame { at: SystemTime::UNIX_EPOCH, interface: 1, bytes }
    }

    const fn sender(port: u16) -> Side {
        if port == 80 { Side::Server } else { Side::Client }
    }

    #[test]
    fn sequence_numbers_are_relative_to_the_syn_even_if_they_wrap_around() {
        let mut sequences = InitialSequences::default();
        let syn = sequences.read(frame(u32::MAX, true, b""), sender).expect("a segment");
        assert_eq!((syn.seq, syn.raw_seq, syn.flags.to_string().as_str()), (0, u32::MAX, "SYN ACK"));
        let data = sequences.read(frame(0, false, b"data"), sender).expect("a segment");
        assert_eq!((data.seq, data.from, data.payload.as_slice()), (1, Side::Server, b"data".as_slice()));
        assert_eq!((data.ack, data.raw_ack), (Some(7), Some(7)), "without the client's SYN, ack is the raw number");
    }

    #[test]
    fn an_incomplete_checksum_is_completed() {
        let whole = frame(1, false, b"odd");
        let mut partial = whole.clone();
        partial.bytes[34 + CHECKSUM..34 + CHECKSUM + 2].fill(0xaa);
        let read = InitialSequences::default().read(partial, sender).expect("a segment");
        assert_eq!(read.frame, whole.bytes);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..80), ipv4: bool) {
            // After the EtherType of IPv4 and the first byte of an IPv4 header, the parser reads further bytes.
            if ipv4 && bytes.len() > 14 {
                bytes[12..15].copy_from_slice(&[8, 0, 0x45]);
            }
            let frame = Frame { at: SystemTime::UNIX_EPOCH, interface: 1, bytes };
            let _ = InitialSequences::default().read(frame, sender);
        }

        // The whole frame has 57 bytes: 14 of Ethernet, 20 of IPv4, 20 of TCP, and 3 of data.
        #[test]
        fn a_cut_frame_is_rejected_without_a_panic(length in 0_usize..57) {
            let mut frame = frame(1, false, b"abc");
            frame.bytes.truncate(length);
            prop_assert_eq!(InitialSequences::default().read(frame, sender), None);
        }
    }
}
