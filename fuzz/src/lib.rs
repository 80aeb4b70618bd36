//! Shared code of the fuzz targets: facts, an independent parser of netlink datagrams, and a memory counter.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::SystemTime;

use twtool::model::facts::{Facts, UnreadFacts};
use twtool::model::port::{LocalPortRange, LocalReservedPorts, Port, PortRange};
use twtool::model::services::Services;
use twtool::model::socket::{Cookie, Socket};
use twtool::sock_diag::request::Request;
use twtool::sock_diag::transport::{Commands, Transport};

static ALLOCATED_BYTES: AtomicUsize = AtomicUsize::new(0);
static PEAK_BYTES: AtomicUsize = AtomicUsize::new(0);

struct CountingAllocator;

impl CountingAllocator {
    fn add(bytes: usize) {
        PEAK_BYTES.fetch_max(ALLOCATED_BYTES.fetch_add(bytes, Relaxed) + bytes, Relaxed);
    }
}

// SAFETY: every call is passed on to the system allocator with unchanged arguments.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::add(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        ALLOCATED_BYTES.fetch_sub(layout.size(), Relaxed);
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Runs a case and checks its peak memory: at most 256 KiB (a table of service names takes 128 KiB) plus 64 bytes per byte of
/// the case.
pub fn bounded<T>(case: &[u8], run: impl FnOnce() -> T) -> T {
    let before = ALLOCATED_BYTES.load(Relaxed);
    PEAK_BYTES.store(before, Relaxed);
    let result = run();
    let most = PEAK_BYTES.load(Relaxed) - before;
    assert!(most <= 256 * 1024 + 64 * case.len(), "{most} bytes held for a case of {}", case.len());
    result
}

/// Facts of an example machine.
pub fn facts() -> Facts {
    Facts {
        taken_at: SystemTime::UNIX_EPOCH,
        kernel: "6.18.0".into(),
        netns: Some(1),
        netns_name: None,
        local_port_range: PortRange::new(Port(32768), Port(60999)).map(LocalPortRange),
        local_reserved_ports: Some(LocalReservedPorts(vec![])),
        unprivileged_port_start: Some(1024),
        services: Services::new([(Port(80), vec!["http", "www"]), (Port(443), vec!["https"])]),
        interfaces: [(NonZeroU32::MIN, "lo".to_owned())].into_iter().collect(),
        unread: UnreadFacts::default(),
    }
}

/// A transport that returns these datagrams and then an error.
pub struct Datagrams(pub std::vec::IntoIter<Vec<u8>>);

impl Transport for Datagrams {
    fn send(&mut self, _: &Request) -> io::Result<()> {
        Ok(())
    }

    fn recv(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        *buffer = self.0.next().ok_or(io::ErrorKind::WouldBlock)?;
        Ok(buffer.len())
    }
}

impl Commands for Datagrams {
    fn send_bytes(&mut self, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
}

/// Splits a case into datagrams. Two bytes before each datagram are its length, and the last datagram may be truncated.
pub fn datagrams(case: &[u8]) -> Vec<&[u8]> {
    let mut datagrams = vec![];
    let mut rest = case;
    while let Some((length, more)) = rest.split_first_chunk::<2>() {
        let (datagram, more) = more.split_at(usize::from(u16::from_le_bytes(*length)).min(more.len()));
        datagrams.push(datagram);
        rest = more;
    }
    datagrams
}

/// The codes of error messages, parsed independently of twtool (`struct nlmsgerr`).
pub fn errors<'a>(datagrams: impl Iterator<Item = &'a [u8]>) -> Vec<i32> {
    let code = |payload: &[u8]| Some(i32::from_ne_bytes(*payload.first_chunk()?));
    messages(datagrams).into_iter().filter(|(kind, _)| *kind == 2).filter_map(|(_, payload)| code(payload)).collect()
}

/// The payloads of socket messages, parsed independently of twtool (`struct nlmsghdr`: length, type).
pub fn sockets<'a>(datagrams: impl Iterator<Item = &'a [u8]>) -> Vec<&'a [u8]> {
    messages(datagrams).into_iter().filter(|(kind, _)| matches!(kind, 18 | 20)).map(|(_, payload)| payload).collect()
}

fn messages<'a>(datagrams: impl Iterator<Item = &'a [u8]>) -> Vec<(u16, &'a [u8])> {
    let mut found = vec![];
    for datagram in datagrams {
        let mut rest = datagram;
        while rest.len() >= 16 {
            let length = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
            let kind = u16::from_ne_bytes([rest[4], rest[5]]);
            if length < 16 || length > rest.len() {
                break;
            }
            found.push((kind, &rest[16..length]));
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
    found
}

/// Whether a socket has the values of these bytes, which are a `struct inet_diag_msg`.
pub fn payload_matches(payload: &[u8], socket: &Socket) -> bool {
    let u16_at = |at: usize| u16::from_be_bytes([payload[at], payload[at + 1]]);
    let u32_at = |at: usize| u32::from_ne_bytes([payload[at], payload[at + 1], payload[at + 2], payload[at + 3]]);
    let addr_at = |at: usize| match payload[0] {
        2 => u128::from_be_bytes([0; 16]) | 0xffff_0000_0000 | u128::from(u32::from_be(u32_at(at))),
        _ => payload[at..at + 16].iter().fold(0, |bits, &byte| bits << 8 | u128::from(byte)),
    };
    let tuple = socket.tuple();
    let same = (u16_at(4), u16_at(6)) == (tuple.local_port().0, tuple.remote_port().0)
        && (addr_at(8), addr_at(24)) == (tuple.local_bits(), tuple.remote_bits())
        && u32_at(40) == socket.interface().map_or(0, NonZeroU32::get)
        && u64::from(u32_at(44)) | u64::from(u32_at(48)) << 32 == socket.cookie().map_or(0, Cookie::number);
    same && match socket {
        Socket::Bucket(bucket) => {
            payload[2] == 3 && payload[1] == bucket.state() as u8 && u32_at(52) == bucket.expires_ms
        }
        Socket::Full(full) => {
            payload[2] != 3 && (u32_at(64), u32_at(68)) == (full.uid, full.inode.map_or(0, NonZeroU32::get))
        }
    }
}
