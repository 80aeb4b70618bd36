//! Ethernet frames of the calling thread's network namespace, in and out (packet(7)). Needs CAP_NET_RAW there, which
//! the maker of a private namespace has.

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

/// Room for one frame: an IPv4 packet and its Ethernet header.
const BUFFER: usize = 64 * 1024 + 14;

/// A frame that came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// When, by the kernel's stamp.
    pub at: SystemTime,
    /// At which interface, by its index.
    pub interface: u32,
    /// The Ethernet header and what follows. The kernel leaves checksums of its own packets to the network card, so
    /// those of TCP are not computed yet (`CHECKSUM_PARTIAL`).
    pub bytes: Vec<u8>,
}

/// Frames go to the device at once. Its queue would drop them until the kernel has noticed, which takes up to a second,
/// that a new veth pair has a carrier.
#[derive(Clone, Copy)]
struct QdiscBypass;
nix::setsockopt_impl!(QdiscBypass, libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, bool, SetBool);

/// An older stamp is of another clock: Linux 5.10 stamps what TCP sends with its monotonic clock.
const CREDIBLE_AGE: Duration = Duration::from_secs(60);

/// A raw packet socket that sees each IPv4 frame once: where it comes in. What is sent on `lo` comes in there.
#[derive(Debug)]
pub struct PacketSocket(Socket);

impl PacketSocket {
    /// Opens it in the calling thread's namespace, where it stays.
    pub fn open() -> io::Result<Self> {
        let ipv4 = u16::try_from(libc::ETH_P_IP).map_err(io::Error::other)?;
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(i32::from(ipv4.to_be()))))?;
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
        setsockopt(&socket, QdiscBypass, &true)?;
        Ok(Self(socket))
    }

    /// The next frame, where one comes within this time.
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
        // Frames are kept, and most are short.
        bytes.shrink_to_fit();
        let interface = u32::try_from(interface).map_err(io::Error::other)?;
        Ok(Some(Frame { at: stamp.unwrap_or(now), interface, bytes }))
    }

    /// Sends a frame, Ethernet header first, on this interface.
    pub fn send(&self, on: &Interface, frame: &[u8]) -> io::Result<()> {
        sendto(self.0.as_raw_fd(), frame, &on.0, MsgFlags::empty())?;
        Ok(())
    }
}

/// An interface that frames can be sent on.
#[derive(Clone, Copy, Debug)]
pub struct Interface(LinkAddr);

impl Interface {
    /// The interface of this name in the calling thread's namespace.
    pub fn named(name: &str) -> io::Result<Self> {
        let link = |found: nix::ifaddrs::InterfaceAddress| found.address.and_then(|addr| addr.as_link_addr().copied());
        let mut interfaces = getifaddrs()?.filter(|found| found.interface_name == name);
        interfaces.find_map(link).map(Self).ok_or_else(|| io::Error::from(Errno::ENODEV))
    }
}
