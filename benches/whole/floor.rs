//! The *floor*: a process that requests the buckets from the kernel and discards the response. The benchmark compares twtool with it.
//!
//! It uses nothing from `src/`, so that a faster twtool does not also lower the floor.

use std::io;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};

/// The buckets that the floor requests.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Floor {
    All,
    /// Buckets of local port 443.
    Port443,
}

const TCPDIAG_GETSOCK: u16 = 18;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// NLM_F_REQUEST | NLM_F_DUMP
const FLAGS: u16 = 0x301;
/// LISTEN | TIME_WAIT, as `twtool list` requests them (`--count` without a filter requests only TIME_WAIT).
const STATES: u32 = 1 << 10 | 1 << 6;

/// `struct nlmsghdr`, `struct inet_diag_req`, and the INET_DIAG_REQ_BYTECODE attribute (uapi/linux/inet_diag.h).
fn request(floor: Floor) -> Vec<u8> {
    let port = 443_u16.to_ne_bytes();
    let program: &[u8] = match floor {
        Floor::All => &[],
        // S_GE 443 and S_LE 443. After each operation, a second header contains the port. To reject a socket, an operation jumps to
        // 4 bytes beyond the end.
        Floor::Port443 => &[2, 8, 20, 0, 0, 0, port[0], port[1], 3, 8, 12, 0, 0, 0, port[0], port[1]],
    };
    let attribute = if program.is_empty() { 0 } else { 4 + program.len() };
    let u16_of = |n: usize| u16::try_from(n).unwrap_or(u16::MAX).to_ne_bytes();
    let mut bytes = vec![];
    bytes.extend(u16_of(76 + attribute));
    bytes.extend([0, 0]);
    bytes.extend(TCPDIAG_GETSOCK.to_ne_bytes());
    bytes.extend(FLAGS.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([0; 52]);
    bytes.extend(STATES.to_ne_bytes());
    bytes.extend([0; 4]);
    if !program.is_empty() {
        bytes.extend(u16_of(attribute));
        bytes.extend(1_u16.to_ne_bytes());
        bytes.extend(program);
    }
    bytes
}

pub(crate) fn run(floor: Floor) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&request(floor), 0)?;
    let mut buffer = Vec::with_capacity(64 * 1024);
    loop {
        buffer.clear();
        socket.recv(&mut buffer, 0)?;
        if ends(&buffer)? {
            return Ok(());
        }
    }
}

/// Whether a datagram contains NLMSG_DONE.
fn ends(datagram: &[u8]) -> io::Result<bool> {
    let mut rest = datagram;
    while let Some(&[a, b, c, d, kind_a, kind_b]) = rest.first_chunk() {
        match u16::from_ne_bytes([kind_a, kind_b]) {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => return Err(io::Error::other("the kernel refuses the dump")),
            _ => {}
        }
        let length = u32::from_ne_bytes([a, b, c, d]) as usize;
        rest = rest.get(length.next_multiple_of(4).max(16)..).unwrap_or_default();
    }
    Ok(false)
}
