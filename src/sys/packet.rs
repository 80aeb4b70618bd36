//! Receives and sends Ethernet frames in the calling thread's network namespace (packet(7)). This needs CAP_NET_RAW
//! there, which the creator of a private namespace has.

use std::io::{self, IoSliceMut};
use std::os::fd::AsRawFd;
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::sockopt::SetBool;
use nix::sys::socket::{ControlMessageOwned, LinkAddr, MsgFlags, recvmsg, sendto, setsockopt, sockopt};
use nix::sys::time::TimeSpec;
use socket2::{Domain, Protocol, Socket, Type};

use super::clock;

/// The size of a buffer for one frame: an IPv4 packet and its Ethernet header.
const BUFFER: usize = 64 * 1024 + 14;

/// A received frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The kernel's timestamp, or the time of the read if that timestamp is missing or not credible.
    pub at: SystemTime,
    /// The index of the interface that received the frame.
    pub interface: u32,
    /// The Ethernet header and the packet. If this machine sent the packet, the TCP checksum may be missing, because the kernel can
    /// leave its calculation to the network card (`CHECKSUM_PARTIAL`).
    pub bytes: Vec<u8>,
}

/// The socket option that sends frames directly to the device, and not through its queue. The kernel needs up to a second to notice
/// that a new veth pair has a carrier. Until then, the queue of the device drops frames.
#[derive(Clone, Copy)]
struct QdiscBypass;
nix::setsockopt_impl!(QdiscBypass, libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, bool, SetBool);

/// The maximum age of a timestamp. An older timestamp comes from another clock: Linux 5.10 uses its monotonic clock for packets that
/// TCP sends.
const CREDIBLE_AGE: Duration = Duration::from_secs(60);

/// A raw packet socket that receives each incoming IPv4 frame once. A frame that is sent on `lo` also comes in on `lo`.
#[derive(Debug)]
pub struct PacketSocket(Socket);

impl PacketSocket {
    /// Opens a socket in the calling thread's network namespace. The socket remains in that namespace.
    pub fn open() -> io::Result<Self> {
        let ipv4 = u16::try_from(libc::ETH_P_IP).map_err(io::Error::other)?;
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(i32::from(ipv4.to_be()))))?;
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
        setsockopt(&socket, QdiscBypass, &true)?;
        Ok(Self(socket))
    }

    /// Receives the next frame; `None` if no frame arrives within the time `wait`, or if a signal interrupts the call.
    pub fn receive(&self, wait: Duration) -> io::Result<Option<Frame>> {
        let flags = if wait.is_zero() {
            MsgFlags::MSG_DONTWAIT
        } else {
            self.0.set_read_timeout(Some(wait))?;
            MsgFlags::empty()
        };
        let mut bytes = vec![0; BUFFER];
        let mut control = nix::cmsg_space!(TimeSpec);
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let message = match recvmsg::<LinkAddr>(self.0.as_raw_fd(), &mut parts, Some(&mut control), flags) {
            Ok(message) => message,
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        let now = clock::now();
        let stamp = message.cmsgs()?.find_map(|part| match part {
            ControlMessageOwned::ScmTimestampns(since) => Some(SystemTime::UNIX_EPOCH + Duration::from(since)),
            _ => None,
        });
        let stamp = stamp.filter(|stamp| now.duration_since(*stamp).is_ok_and(|age| age < CREDIBLE_AGE));
        let interface = message.address.map_or(0, |from| from.ifindex());
        let length = message.bytes;
        bytes.truncate(length);
        // Callers keep frames, and most frames are short.
        bytes.shrink_to_fit();
        let interface = u32::try_from(interface).map_err(io::Error::other)?;
        Ok(Some(Frame { at: stamp.unwrap_or(now), interface, bytes }))
    }

    /// Sends a frame, which begins with the Ethernet header, on this interface.
    pub fn send(&self, on: &Interface, frame: &[u8]) -> io::Result<()> {
        sendto(self.0.as_raw_fd(), frame, &on.0, MsgFlags::empty())?;
        Ok(())
    }
}

/// An interface that frames can be sent on.
#[derive(Clone, Copy, Debug)]
pub struct Interface(LinkAddr);

impl Interface {
    /// Finds the interface with this name in the calling thread's network namespace.
    pub fn named(name: &str) -> io::Result<Self> {
        let link = |found: nix::ifaddrs::InterfaceAddress| found.address.and_then(|addr| addr.as_link_addr().copied());
        let mut interfaces = getifaddrs()?.filter(|found| found.interface_name == name);
        interfaces.find_map(link).map(Self).ok_or_else(|| io::Error::from(Errno::ENODEV))
    }
}
