//! Adds addresses to `lo`, and renames `lo` (rtnetlink(7)).

use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::kernel;

/// Adds the address to `lo`, with the full prefix length.
#[track_caller]
pub(crate) fn add(addr: &str) {
    const RTM_NEWADDR: u16 = 20;
    const NLM_F_CREATE: u16 = 0x400;
    const IFA_ADDRESS: u16 = 1;
    const IFA_LOCAL: u16 = 2;
    const IFA_F_NODAD: u8 = 2;
    const LOOPBACK: u32 = 1;
    let (family, bytes) = match addr.parse().unwrap_or_else(|_| panic!("not an IP address: {addr}")) {
        IpAddr::V4(v4) => (2_u8, v4.octets().to_vec()),
        IpAddr::V6(v6) => (10, v6.octets().to_vec()),
    };
    let length = u8::try_from(bytes.len()).expect("short");
    // struct ifaddrmsg, then the address as IFA_LOCAL and as IFA_ADDRESS. IFA_F_NODAD skips duplicate address detection.
    let mut body = vec![family, length * 8, IFA_F_NODAD, 0];
    body.extend(LOOPBACK.to_ne_bytes());
    for kind in [IFA_LOCAL, IFA_ADDRESS] {
        body.extend(u16::from(4 + length).to_ne_bytes());
        body.extend(kind.to_ne_bytes());
        body.extend(&bytes);
    }
    ask(RTM_NEWADDR, NLM_F_CREATE, &body, &format!("adding {addr} to lo"));
    if let Ok(v6) = addr.parse() {
        wait_until_local(v6);
    }
}

#[track_caller]
pub(crate) fn rename_loopback(name: &str) {
    const RTM_NEWLINK: u16 = 16;
    const IFLA_IFNAME: u16 = 3;
    const IFF_UP: u32 = 1;
    let link = |flags: u32| [0_u32, 1, flags, IFF_UP].map(u32::to_ne_bytes).concat();
    // Older kernels rename an interface only if it is down.
    ask(RTM_NEWLINK, 0, &link(0), "taking lo down");
    let length = u16::try_from(5 + name.len()).expect("short");
    let mut named = link(IFF_UP);
    named.extend([length.to_ne_bytes(), IFLA_IFNAME.to_ne_bytes()].concat());
    named.extend(name.bytes().chain([0]));
    named.resize(named.len().next_multiple_of(4), 0);
    ask(RTM_NEWLINK, 0, &named, &format!("renaming lo to {name}"));
}

#[track_caller]
fn ask(kind: u16, flags: u16, body: &[u8], what: &str) {
    let mut request = u32::try_from(16 + body.len()).expect("short").to_ne_bytes().to_vec();
    request.extend(kind.to_ne_bytes());
    request.extend((NLM_F_REQUEST | NLM_F_ACK | flags).to_ne_bytes());
    request.extend([0; 8]);
    request.extend(body);

    let mut socket = Socket::new(NETLINK_ROUTE).expect("a routing socket");
    socket.bind_auto().expect("bound");
    socket.connect(&SocketAddr::new(0, 0)).expect("connected");
    socket.send(&request, 0).expect("sent");
    let mut answer = Vec::with_capacity(4096);
    socket.recv(&mut answer, 0).expect("an answer");
    let code = answer.get(16..20).and_then(|code| code.try_into().ok()).map(i32::from_ne_bytes);
    assert_eq!(code, Some(0), "{what}");
}

/// Waits until the kernel has the local route of the IPv6 address. A work queue adds that route. Until then, packets to the
/// address fail with "network unreachable".
#[track_caller]
fn wait_until_local(addr: Ipv6Addr) {
    const RTF_LOCAL: u32 = 0x8000_0000;
    let digits = format!("{:032x}", addr.to_bits());
    let deadline = Instant::now() + kernel::patience(Duration::from_secs(10));
    // The fields of a line: destination and its length, source and its length, next hop, metric, two counts, flags, interface.
    let is_local = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields[0] == digits && u32::from_str_radix(fields[8], 16).is_ok_and(|flags| flags & RTF_LOCAL != 0)
    };
    let routes = || std::fs::read_to_string("/proc/thread-self/net/ipv6_route").expect("routes");
    while !routes().lines().any(is_local) {
        assert!(Instant::now() < deadline, "no local route to {addr}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
