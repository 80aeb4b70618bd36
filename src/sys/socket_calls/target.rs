//! Reads the arguments of a stopped thread's call: the address in the memory of the thread, and the socket behind the descriptor.
//!
//! 1. process_vm_readv(2) reads the address.
//! 2. pidfd_getfd(2) copies the descriptor, and getsockopt(2) on the copy reads the options. The copy is closed before the
//!    thread continues, so that a close() of the program still ends the socket.
//!
//! If the process is not dumpable, the kernel refuses both steps to a tracer without CAP_SYS_PTRACE (ptrace(2)).

use std::fs;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::sys::socket::{getsockopt, sockopt};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use socket2::{Domain, Protocol, Socket, Type};

use crate::model::bind::ReuseOptions;
use crate::model::call::{CalledAddr, CalledSocket, CallingProcess};
use crate::model::health::Capability;
use crate::model::name::text_of;
use crate::model::port::Port;
use crate::sys::errno::{if_visible, retry};
use crate::sys::{capabilities, file, user_namespace};

/// The size of `struct sockaddr_in6`.
const LONGEST: usize = 28;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ReadAddr {
    Internet(CalledAddr),
    /// An address of another family, or an address that is too short.
    Other,
}

pub(super) fn read_addr(tid: i32, addr: u64, length: u64) -> io::Result<ReadAddr> {
    let mut bytes = [0; LONGEST];
    // The kernel uses the lower 32 bits of the argument, because the length is an int.
    let length = usize::try_from(length & 0xffff_ffff).unwrap_or(usize::MAX).min(LONGEST);
    let count = read_memory(tid, addr, &mut bytes[..length])?;
    Ok(parse_addr(&bytes[..count]).map_or(ReadAddr::Other, ReadAddr::Internet))
}

/// Reads the arguments of a call through socketcall, as three words.
pub(super) fn read_words(tid: i32, addr: u64) -> io::Result<[u32; 3]> {
    let mut bytes = [0; 12];
    // listen() has only two arguments, so the third word may be on an unmapped page.
    let count = read_memory(tid, addr, &mut bytes)?;
    if count < 8 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    Ok([word(0), word(4), word(8)])
}

fn read_memory(tid: i32, addr: u64, into: &mut [u8]) -> io::Result<usize> {
    let base = usize::try_from(addr).map_err(io::Error::other)?;
    let remote = [RemoteIoVec { base, len: into.len() }];
    Ok(process_vm_readv(nix::unistd::Pid::from_raw(tid), &mut [IoSliceMut::new(into)], &remote)?)
}

fn parse_addr(bytes: &[u8]) -> Option<CalledAddr> {
    let family = i32::from(u16::from_ne_bytes(*bytes.first_chunk()?));
    let port = Port(u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?));
    match family {
        libc::AF_INET => {
            let addr: [u8; 4] = *bytes.get(4..)?.first_chunk()?;
            Some(CalledAddr { addr: Ipv4Addr::from(addr).into(), port, scope: 0 })
        }
        libc::AF_INET6 => {
            let addr: [u8; 16] = *bytes.get(8..)?.first_chunk()?;
            // Old programs pass an address without the scope (24 bytes).
            let scope =
                bytes.get(24..).and_then(|rest| rest.first_chunk()).map_or(0, |scope| u32::from_ne_bytes(*scope));
            Some(CalledAddr { addr: Ipv6Addr::from(addr).into(), port, scope })
        }
        _ => None,
    }
}

pub(super) fn copy_descriptor(tid: i32, process: i32, descriptor: u64) -> io::Result<OwnedFd> {
    /// `PIDFD_THREAD` (since Linux 6.9).
    const THREAD: PidfdFlags = PidfdFlags::from_bits_retain(libc::O_EXCL.cast_unsigned());
    let number = i32::try_from(descriptor & 0xffff_ffff).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    let pid = |id| Pid::from_raw(id).ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH));
    let copy = |pidfd: OwnedFd| retry(|| Ok(pidfd_getfd(&pidfd, number, PidfdGetfdFlags::empty())?));
    if tid == process {
        return copy(retry(|| Ok(pidfd_open(pid(process)?, PidfdFlags::empty())?))?);
    }
    if let Ok(pidfd) = pidfd_open(pid(tid)?, THREAD) {
        return copy(pidfd);
    }
    // Before Linux 6.9: copy the descriptor of the main thread. That thread may have other descriptors (unshare(CLONE_FILES)), so compare
    // both inodes.
    let copied = copy(retry(|| Ok(pidfd_open(pid(process)?, PidfdFlags::empty())?))?)?;
    let inode = |path: String| retry(|| fs::metadata(&path)).map(|file| file.ino());
    let same = inode(format!("/proc/{tid}/fd/{number}"))? == inode(format!("/proc/self/fd/{}", copied.as_raw_fd()))?;
    if same { Ok(copied) } else { Err(io::Error::other("the thread has its own descriptors")) }
}

/// Describes a socket; `None` if it is not an Internet socket.
pub(super) fn describe(copy: OwnedFd) -> io::Result<Option<CalledSocket>> {
    let socket = Socket::from(copy);
    let ipv6 = match retry(|| socket.domain()) {
        Ok(Domain::IPV4) => false,
        Ok(Domain::IPV6) => true,
        Ok(_) => return Ok(None),
        // The descriptor is not a socket, so the call fails with the same errno.
        Err(error) if error.raw_os_error() == Some(libc::ENOTSOCK) => return Ok(None),
        Err(error) => return Err(error),
    };
    let kind = match retry(|| socket.r#type())? {
        Type::STREAM => "stream",
        Type::DGRAM => "dgram",
        _ => "other",
    };
    let protocol = match retry(|| socket.protocol())? {
        Some(Protocol::TCP) => "tcp".into(),
        Some(Protocol::UDP) => "udp".into(),
        Some(Protocol::MPTCP) => "mptcp".into(),
        other => other.map_or(0, i32::from).to_string(),
    };
    // If the kernel or the protocol does not have an option, or refuses the read, this function reports the option as not set.
    let flag = |read: &dyn Fn() -> io::Result<bool>| Ok::<_, io::Error>(if_visible(retry(read))?.unwrap_or(false));
    let reuse =
        ReuseOptions { reuseaddr: flag(&|| socket.reuse_address())?, reuseport: flag(&|| socket.reuse_port())? };
    let device = if_visible(retry(|| socket.device()))?.flatten();
    let device = device.map(|name| text_of(name.strip_suffix(b"\0").unwrap_or(&name)));
    let ip = |v4: &dyn Fn() -> io::Result<bool>, v6: &dyn Fn() -> io::Result<bool>| flag(if ipv6 { v6 } else { v4 });
    Ok(Some(CalledSocket {
        ipv6,
        kind,
        protocol,
        reuse,
        v6only: ipv6 && flag(&|| socket.only_v6())?,
        freebind: ip(&|| socket.freebind_v4(), &|| socket.freebind_v6())?,
        transparent: ip(&|| socket.ip_transparent_v4(), &|| socket.ip_transparent_v6())?,
        bind_address_no_port: flag(&|| Ok(getsockopt(&socket, sockopt::IpBindAddressNoPort)?))?,
        device: device.filter(|name| !name.is_empty()),
        local: local_addr(&socket)?.filter(|local| local.port() != 0 || !local.ip().is_unspecified()),
    }))
}

pub(super) fn local_addr(socket: &Socket) -> io::Result<Option<SocketAddr>> {
    Ok(if_visible(retry(|| socket.local_addr()))?.and_then(|local| local.as_socket()))
}

pub(super) fn called_addr(local: SocketAddr) -> CalledAddr {
    let scope = match local {
        SocketAddr::V4(_) => 0,
        SocketAddr::V6(v6) => v6.scope_id(),
    };
    CalledAddr { addr: local.ip(), port: Port(local.port()), scope }
}

pub(super) fn process_of(tid: i32) -> Option<i32> {
    let status = status(tid);
    parse_number(&status, "Tgid:")
}

fn status(tid: i32) -> Vec<u8> {
    capabilities::status_of(tid).unwrap_or_default()
}

fn parse_number(status: &[u8], name: &str) -> Option<i32> {
    str::from_utf8(capabilities::field(status, name)?).ok()?.parse().ok()
}

/// The number of seccomp filters of a thread (since Linux 5.9).
pub(super) fn seccomp_filters(tid: i32) -> Option<i32> {
    parse_number(&status(tid), "Seccomp_filters:")
}

/// The reason why twtool cannot trace this process, even as root.
pub(super) fn untraceable_reason(pid: i32) -> Option<&'static str> {
    let status = status(pid);
    let state = capabilities::field(&status, "State:")?;
    if pid.cast_unsigned() == std::process::id() {
        Some("it is twtool itself")
    } else if state.starts_with(b"Z") || state.starts_with(b"X") {
        Some("it has ended, and its parent has not waited for it yet")
    } else if capabilities::field(&status, "VmSize:").is_none() {
        // Only a process with its own memory has this line.
        Some("it is a kernel thread")
    } else {
        None
    }
}

/// The pid of the process that traces this thread; 0 if there is none.
pub(super) fn tracer(tid: i32) -> Option<i32> {
    parse_number(&status(tid), "TracerPid:")
}

pub(super) fn comm(tid: i32) -> String {
    /// An upper bound in bytes. A name has at most 15 bytes, or 63 for a thread of the kernel.
    const MAX_BYTES: u64 = 4096;
    let comm = retry(|| file::read(Path::new(&format!("/proc/{tid}/comm")), MAX_BYTES)).unwrap_or_default();
    text_of(comm.strip_suffix(b"\n").unwrap_or(&comm))
}

pub(super) fn process(tid: i32) -> CallingProcess {
    let status = status(tid);
    CallingProcess {
        pid: parse_number(&status, "Tgid:").unwrap_or(tid),
        tid,
        comm: comm(tid),
        uid: capabilities::effective_id(&status, "Uid:").filter(|uid| user_namespace::is_certain(*uid)),
        lost_privilege: false,
        netns: retry(|| fs::metadata(format!("/proc/{tid}/ns/net"))).ok().map(|file| file.ino()),
        no_new_privs: capabilities::parse_no_new_privs(&status),
        cap_net_bind_service: capabilities::parse(&status).map(|set| set.has(Capability::NetBindService)),
    }
}

/// Returns the program of a process if the program's file is set-user-ID or set-group-ID or has capabilities, but the process did not get
/// this privilege. `None` for an ordinary program, a program on a nosuid mount, and a process that has the privilege.
pub(super) fn lost_privilege(tid: i32) -> Option<LostPrivilege> {
    let path = format!("/proc/{tid}/exe");
    let file = retry(|| fs::metadata(&path)).ok()?;
    let mount = retry(|| Ok(rustix::fs::statvfs(path.as_str())?)).ok()?;
    if mount.f_flag.contains(rustix::fs::StatVfsMountFlags::NOSUID) {
        return None;
    }
    let status = status(tid);
    let effective = |name: &str| capabilities::effective_id(&status, name);
    // Mode bits of stat(2): set-user-ID, set-group-ID, and execution by the group. Without the last bit, set-group-ID marks mandatory
    // locking.
    let (setuid, setgid) = (file.mode() & 0o4000 != 0, file.mode() & 0o2010 == 0o2010);
    let user = setuid && effective("Uid:").is_some_and(|uid| uid != file.uid());
    let group = setgid && effective("Gid:").is_some_and(|gid| gid != file.gid());
    let mut bytes = [0_u8; 64];
    let has_capabilities =
        retry(|| Ok(rustix::fs::getxattr(path.as_str(), "security.capability", &mut bytes)?)).is_ok();
    let permitted = capabilities::field(&status, "CapPrm:").is_some_and(|set| set.iter().any(|digit| *digit != b'0'));
    let capabilities = has_capabilities && !permitted;
    let program = || {
        retry(|| fs::read_link(&path))
            .map_or_else(|_| "unknown".into(), |path| text_of(path.as_os_str().as_encoded_bytes()))
    };
    (user || group || capabilities).then(|| LostPrivilege { program: program(), capabilities })
}

pub(super) struct LostPrivilege {
    pub(super) program: String,
    /// Whether the process did not get the capabilities of the file. If false, it did not get the user or the group of the file.
    pub(super) capabilities: bool,
}

/// The local address of a socket after listen(). If the socket was not bound, listen() has bound it.
pub(super) fn address_now(copy: OwnedFd) -> Option<CalledAddr> {
    local_addr(&Socket::from(copy)).ok().flatten().map(called_addr)
}

/// The local address of a socket before listen(), or the unspecified address if the socket was not bound.
pub(super) fn address_before(socket: &CalledSocket) -> CalledAddr {
    let any: IpAddr = if socket.ipv6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    socket.local.map_or(CalledAddr { addr: any, port: Port(0), scope: 0 }, called_addr)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_16_24_and_28_bytes_are_parsed() {
        let mut v4 = libc::AF_INET.to_ne_bytes()[..2].to_vec();
        v4.extend([0x1f, 0x90, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
        let at = |bytes: &[u8]| parse_addr(bytes).map(|addr| (addr.addr.to_string(), addr.port.0, addr.scope));
        assert_eq!(at(&v4), Some(("127.0.0.1".into(), 8080, 0)));
        let mut v6 = libc::AF_INET6.to_ne_bytes()[..2].to_vec();
        v6.extend([0, 80, 0, 0, 0, 0]);
        v6.extend("fe80::1".parse::<Ipv6Addr>().expect("an address").octets());
        assert_eq!(at(&v6), Some(("fe80::1".into(), 80, 0)));
        v6.extend(7_u32.to_ne_bytes());
        assert_eq!(at(&v6), Some(("fe80::1".into(), 80, 7)));
        assert_eq!(at(&[1, 0, b'/', b'x']), None, "AF_UNIX");
        for cut in 0..8 {
            assert_eq!(at(&v4[..cut]), None);
        }
    }
}
