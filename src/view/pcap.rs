//! Writes capture files for Wireshark, in the classic format with nanoseconds (draft-ietf-opsawg-pcap).

use std::io::{self, Write};
use std::time::SystemTime;

use crate::model::experiment::Segment;

/// The magic number of files with timestamps in nanoseconds.
const MAGIC: u32 = 0xa1b2_3c4d;

/// The link type of frames with an Ethernet header. On `lo`, the two addresses in the header are zero.
const LINKTYPE_ETHERNET: u32 = 1;

/// The maximum length of a frame in bytes, as in files of tcpdump.
const SNAP_LENGTH: u32 = 0x4_0000;

/// Writes the header of a capture file.
pub fn header(out: &mut dyn Write) -> io::Result<()> {
    // The version is 2.4. The time zone and the accuracy are always 0.
    let words = [MAGIC, u32::from_le_bytes([2, 0, 4, 0]), 0, 0, SNAP_LENGTH, LINKTYPE_ETHERNET];
    words.iter().try_for_each(|word| out.write_all(&word.to_le_bytes()))
}

/// Writes one segment as a frame.
pub fn segment(out: &mut dyn Write, segment: &Segment) -> io::Result<()> {
    let since = segment.at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seconds = u32::try_from(since.as_secs()).map_err(io::Error::other)?;
    let length = u32::try_from(segment.frame.len()).map_err(io::Error::other)?;
    let words = [seconds, since.subsec_nanos(), length, length];
    words.iter().try_for_each(|word| out.write_all(&word.to_le_bytes()))?;
    out.write_all(&segment.frame)
}
