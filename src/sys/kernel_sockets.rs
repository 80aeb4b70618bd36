//! Finds evidence that the kernel itself opened a TCP socket.
//!
//! sock_diag does not mark such sockets. They have an inode like the sockets of processes, but no process has them
//! open.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::path::Path;

use netlink_packet_core::{
    NLA_HEADER_SIZE, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer, NlaBuffer, NlasIterator,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC};

use super::errno::{if_visible, retry};
use crate::model::port::Port;
use crate::model::process::KernelPart;
use crate::model::socket::{FullSocket, TcpState};

/// A kernel module that opens TCP sockets: its purpose, its names in /sys/module, and its default port.
struct Module {
    does: &'static str,
    names: &'static [&'static str],
    port: Port,
    /// Whether the port is the remote port, because the module connects and does not listen.
    remote: bool,
}

const fn listens(does: &'static str, names: &'static [&'static str], port: u16) -> Module {
    Module { does, names, port: Port(port), remote: false }
}

const fn connects(does: &'static str, names: &'static [&'static str], port: u16) -> Module {
    Module { does, names, port: Port(port), remote: true }
}

const MODULES: [Module; 16] = [
    listens("SMB server", &["ksmbd"], 445),
    listens("NFS server", &["nfsd"], 2049),
    listens("iSCSI target", &["iscsi_target_mod"], 3260),
    listens("NVMe target", &["nvmet_tcp"], 4420),
    listens("NVMe target", &["nvmet_tcp"], 8009),
    listens("RDS over TCP", &["rds_tcp"], 16385),
    listens("Distributed Lock Manager", &["dlm"], 21064),
    listens("OCFS2 cluster", &["ocfs2_nodemanager"], 7777),
    listens("DRBD", &["drbd_transport_tcp", "drbd"], 7788),
    listens("Lustre", &["ksocklnd"], 988),
    connects("NFS client", &["nfsv4", "nfsv3", "nfs"], 2049),
    connects("SMB client", &["cifs"], 445),
    connects("Ceph client", &["libceph"], 6789),
    connects("Ceph client", &["libceph"], 3300),
    connects("NVMe over TCP", &["nvme_tcp"], 4420),
    connects("NBD client", &["nbd"], 10809),
];

/// Finds the part of the kernel that opened each socket, if there is evidence. The keys are inodes.
///
/// `no_process` states that no process of the machine has the sockets open. A loaded module is evidence only if this is true.
pub(super) fn find(sockets: &[FullSocket], no_process: bool) -> io::Result<BTreeMap<NonZeroU32, KernelPart>> {
    if sockets.is_empty() {
        return Ok(BTreeMap::new());
    }
    let listening = sockets.iter().any(|socket| socket.state == TcpState::Listen);
    let endpoints = if listening { if_visible(retry(mptcp_endpoints))?.unwrap_or_default() } else { BTreeSet::new() };
    let loaded = |name: &str| Path::new("/sys/module").join(name).exists();
    let part = |socket: &FullSocket| {
        let end = (socket.tuple.local_addr(), socket.tuple.local_port());
        if socket.state == TcpState::Listen && endpoints.contains(&end) {
            return Some(KernelPart::MptcpEndpoint);
        }
        if no_process { module(socket, loaded) } else { None }
    };
    Ok(sockets.iter().filter_map(|socket| Some((socket.inode?, part(socket)?))).collect())
}

fn module(socket: &FullSocket, loaded: impl Fn(&str) -> bool) -> Option<KernelPart> {
    let fits = |module: &&Module| {
        let (listens, tuple) = (socket.state == TcpState::Listen, &socket.tuple);
        if module.remote { !listens && tuple.remote_port() == module.port } else { tuple.local_port() == module.port }
    };
    MODULES.iter().filter(fits).find_map(|module| {
        let name = module.names.iter().find(|name| loaded(name))?;
        Some(KernelPart::Module { does: module.does, module: name })
    })
}

/// Lists the addresses and ports on which the kernel itself listens for MPTCP in the calling thread's network namespace. They are the
/// endpoints that were added with a port (ip-mptcp(8)).
fn mptcp_endpoints() -> io::Result<BTreeSet<(IpAddr, Port)>> {
    // linux/mptcp_pm.h
    const GET_ADDR: u8 = 3;
    const ATTR_ADDR: u16 = 1;
    let mut socket = Socket::new(NETLINK_GENERIC)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let family = generic_family(&mut socket, "mptcp_pm")?;
    let mut endpoints = BTreeSet::new();
    ask(&mut socket, family, NLM_F_DUMP, &[GET_ADDR, 1, 0, 0], &mut |attributes| {
        endpoints
            .extend(attributes.iter().filter(|(kind, _)| *kind == ATTR_ADDR).filter_map(|(_, value)| endpoint(value)));
    })?;
    Ok(endpoints)
}

fn generic_family(socket: &mut Socket, name: &str) -> io::Result<u16> {
    // linux/genetlink.h
    const GENL_ID_CTRL: u16 = 16;
    const CTRL_CMD_GETFAMILY: u8 = 3;
    const CTRL_ATTR_FAMILY_ID: u16 = 1;
    const CTRL_ATTR_FAMILY_NAME: u16 = 2;
    let length = u16::try_from(4 + name.len() + 1).map_err(io::Error::other)?;
    let mut payload = vec![CTRL_CMD_GETFAMILY, 1, 0, 0];
    payload.extend(length.to_ne_bytes());
    payload.extend(CTRL_ATTR_FAMILY_NAME.to_ne_bytes());
    payload.extend(name.bytes());
    payload.push(0);
    payload.resize(payload.len().next_multiple_of(4), 0);
    let mut number = None;
    ask(socket, GENL_ID_CTRL, 0, &payload, &mut |attributes| {
        let id = attributes.iter().find(|(kind, _)| *kind == CTRL_ATTR_FAMILY_ID);
        number = id.and_then(|(_, value)| value.first_chunk().copied()).map(u16::from_ne_bytes);
    })?;
    number.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))
}

type AttributeList<'a> = [(u16, &'a [u8])];

fn ask(
    socket: &mut Socket,
    family: u16,
    flags: u16,
    payload: &[u8],
    each: &mut dyn FnMut(&AttributeList),
) -> io::Result<()> {
    const HEADER: usize = 16;
    let length = u32::try_from(HEADER + payload.len()).map_err(io::Error::other)?;
    let mut request = length.to_ne_bytes().to_vec();
    request.extend(family.to_ne_bytes());
    request.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    request.extend([0; 8]);
    request.extend(payload);
    socket.send(&request, 0)?;
    loop {
        let mut datagram = Vec::with_capacity(64 * 1024);
        socket.recv(&mut datagram, 0)?;
        if read(&datagram, family, each)? || flags & NLM_F_DUMP == 0 {
            return Ok(());
        }
    }
}

/// Returns whether the datagram is the last one of a dump.
fn read(datagram: &[u8], family: u16, each: &mut dyn FnMut(&AttributeList)) -> io::Result<bool> {
    let mut rest = datagram;
    while !rest.is_empty() {
        let message = NetlinkBuffer::new_checked(rest).map_err(io::Error::other)?;
        match message.message_type() {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let code = message.payload().first_chunk().copied().map_or(0, i32::from_ne_bytes);
                return Err(io::Error::from_raw_os_error(code.saturating_neg()));
            }
            kind if kind == family => {
                // `struct genlmsghdr` comes before the attributes.
                each(&attributes(message.payload().get(4..).unwrap_or_default()));
            }
            other => return Err(io::Error::other(format!("a netlink message of unexpected type {other}"))),
        }
        rest = rest.get((message.length() as usize).next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(datagram.is_empty())
}

fn attributes(bytes: &[u8]) -> Vec<(u16, &[u8])> {
    fn read(attribute: NlaBuffer<&[u8]>) -> (u16, &[u8]) {
        let (kind, length) = (attribute.kind(), attribute.length().into());
        (kind, attribute.into_inner().get(NLA_HEADER_SIZE..length).unwrap_or_default())
    }
    NlasIterator::new(bytes).map_while(Result::ok).map(read).collect()
}

/// Parses the address and port of an endpoint (`MPTCP_PM_ATTR_ADDR`). `None` without a port: such an endpoint has no listener.
fn endpoint(value: &[u8]) -> Option<(IpAddr, Port)> {
    // linux/mptcp_pm.h
    const ADDR4: u16 = 3;
    const ADDR6: u16 = 4;
    const PORT: u16 = 5;
    let attributes = attributes(value);
    let find = |wanted: u16| attributes.iter().find(|(kind, _)| *kind == wanted).map(|(_, value)| *value);
    let v4 = || Some(IpAddr::from(*find(ADDR4)?.first_chunk::<4>()?));
    let v6 = || Some(IpAddr::from(*find(ADDR6)?.first_chunk::<16>()?));
    let port = u16::from_ne_bytes(*find(PORT)?.first_chunk()?);
    Some((v4().or_else(v6)?, Port(port)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::socket::FourTuple;
    use proptest::prelude::*;

    fn socket(state: TcpState, local: u16, remote: u16) -> FullSocket {
        let end = |port| ("127.0.0.1".parse().expect("an address"), Port(port));
        FullSocket {
            tuple: FourTuple::new(end(local), end(remote)),
            state,
            uid: 0,
            inode: NonZeroU32::new(7),
            interface: None,
            mark: None,
            v6only: None,
            last_ack_ms: None,
            cookie: None,
        }
    }

    #[test]
    fn a_module_is_evidence_only_if_it_is_loaded_and_uses_the_port() {
        let named = |socket: FullSocket, loaded: &[&str]| module(&socket, |name| loaded.contains(&name));
        let module = |does, module| Some(KernelPart::Module { does, module });
        assert_eq!(named(socket(TcpState::Listen, 445, 0), &["ksmbd", "cifs"]), module("SMB server", "ksmbd"));
        assert_eq!(named(socket(TcpState::Listen, 445, 0), &["cifs"]), None, "a client does not listen");
        assert_eq!(named(socket(TcpState::Listen, 446, 0), &["ksmbd"]), None);
        assert_eq!(named(socket(TcpState::Established, 2049, 700), &["nfsd"]), module("NFS server", "nfsd"));
        assert_eq!(named(socket(TcpState::Established, 700, 2049), &["nfs"]), module("NFS client", "nfs"));
        assert_eq!(named(socket(TcpState::Established, 700, 2049), &["nfsd"]), None);
        assert!(find(&[socket(TcpState::Listen, 445, 0)], false).is_ok_and(|found| found.is_empty()));
    }

    /// The response of Linux 6.18 to `ip mptcp endpoint show` with the endpoint `127.0.0.1 port 7777 id 1 signal`.
    fn answer() -> Vec<u8> {
        let attribute = |kind: u16, value: &[u8]| {
            let length = u16::try_from(4 + value.len()).expect("short");
            let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
            bytes.extend(value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes
        };
        let parts = [
            attribute(1, &2_u16.to_ne_bytes()),
            attribute(5, &7777_u16.to_ne_bytes()),
            attribute(2, &[1]),
            attribute(6, &1_u32.to_ne_bytes()),
            attribute(3, &[127, 0, 0, 1]),
        ];
        let payload = [vec![3, 1, 0, 0], attribute(0x8001, &parts.concat())].concat();
        let mut message = u32::try_from(16 + payload.len()).expect("short").to_ne_bytes().to_vec();
        message.extend(30_u16.to_ne_bytes());
        message.extend([0; 10]);
        message.extend(payload);
        message
    }

    #[test]
    fn the_address_and_port_of_an_endpoint_are_parsed() {
        let mut found = vec![];
        let last =
            read(&answer(), 30, &mut |attributes| found.extend(attributes.iter().map(|(_, value)| endpoint(value))));
        assert!(last.is_ok_and(|last| !last));
        assert_eq!(found, [Some(("127.0.0.1".parse().expect("an address"), Port(7777)))]);
    }

    proptest! {
        #[test]
        fn arbitrary_and_damaged_answers_never_panic(
            noise in proptest::collection::vec(any::<u8>(), 0..80), at in 0_usize..80, byte in any::<u8>(),
        ) {
            let mut each = |attributes: &AttributeList| {
                let _ = attributes.iter().filter_map(|(_, value)| endpoint(value)).count();
            };
            let _ = read(&noise, 30, &mut each);
            let mut damaged = answer();
            let length = damaged.len();
            damaged[at % length] = byte;
            let _ = read(&damaged, 30, &mut each);
        }
    }
}
