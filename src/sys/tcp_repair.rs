//! Sets the initial sequence number of a connection with TCP_REPAIR and related options (uapi/linux/tcp.h). They need CAP_NET_ADMIN over
//! the socket's network namespace.

use std::io;

use nix::sys::socket::sockopt::SetStruct;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::Socket;

/// `TCP_SEND_QUEUE`.
const SEND_QUEUE: u32 = 2;

#[derive(Clone, Copy)]
struct RepairQueue;
nix::setsockopt_impl!(RepairQueue, libc::IPPROTO_TCP, libc::TCP_REPAIR_QUEUE, u32, SetStruct<'_, u32>);

#[derive(Clone, Copy)]
struct QueueSeq;
nix::setsockopt_impl!(QueueSeq, libc::IPPROTO_TCP, libc::TCP_QUEUE_SEQ, u32, SetStruct<'_, u32>);

/// Sets the sequence number of the SYN of a socket that is not connected yet. With 0, the kernel chooses the number. This function resets
/// SO_REUSEADDR, so set that option afterwards.
pub fn set_initial_sequence(socket: &Socket, number: u32) -> io::Result<()> {
    setsockopt(socket, sockopt::TcpRepair, &1)?;
    setsockopt(socket, RepairQueue, &SEND_QUEUE)?;
    setsockopt(socket, QueueSeq, &number)?;
    setsockopt(socket, sockopt::TcpRepair, &0)?;
    Ok(())
}
