//! Finds out which features this kernel has, because the suite also runs on older and newer kernels. A test calls [`needs`] for a
//! feature. If the feature is missing, the test is reported as not checked.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use netlink_sys::{Socket as Netlink, SocketAddr as NetlinkAddr, protocols::NETLINK_SOCK_DIAG};
use nix::errno::Errno;
use nix::{setsockopt_impl, sockopt_impl};
use socket2::{Domain, Socket, Type};
use twtool::sys::sysctl;

use super::crowd::Killer;
use super::{netns, procfs};

/// The reason why a test is not possible here. A panic with this value ends the test.
pub(crate) struct NotChecked(pub(crate) String);

/// Ends the test as not checked if `can` is false. `what` is the name of the missing feature.
pub(crate) fn needs(can: bool, what: &str) {
    if !can {
        std::panic::resume_unwind(Box::new(NotChecked(format!("this kernel has no {what}"))));
    }
}

/// The age up to which a test relies on a bucket. A bucket lasts 60 s. The test needs the remaining 10 s to read it.
pub(crate) const SAFE_AGE: Duration = Duration::from_secs(50);

/// Whether buckets that were made at this time certainly still exist.
pub(crate) fn is_young(made: Instant) -> bool {
    made.elapsed() < SAFE_AGE
}

/// Ends the test as not checked if buckets that were made at this time may have expired.
pub(crate) fn needs_young_buckets(made: Instant) {
    needs_time(is_young(made));
}

/// Ends the test as not checked if the machine was too slow for the 60 s of a bucket.
pub(crate) fn needs_time(was_in_time: bool) {
    if !was_in_time {
        std::panic::resume_unwind(Box::new(NotChecked("the buckets may have expired on this slow machine".into())));
    }
}

pub(crate) fn has_setting(name: &str) -> bool {
    sysctl::read(name).is_ok()
}

/// Whether connect() compares the age of a bucket in milliseconds, with `tcp_tw_reuse_delay` (since 6.14). Older kernels compare
/// whole seconds of their clock.
pub(crate) fn has_exact_ages() -> bool {
    has_setting("ipv4.tcp_tw_reuse_delay")
}

/// Whether the kernel has IP_LOCAL_PORT_RANGE (since 6.3), with which twtool tests single ports.
pub(crate) fn has_port_range_option() -> bool {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let asked = nix::sys::socket::setsockopt(&socket, PortRange, &0);
    assert!(matches!(asked, Ok(()) | Err(Errno::ENOPROTOOPT)), "IP_LOCAL_PORT_RANGE: {asked:?}");
    asked.is_ok()
}

/// From uapi/linux/in.h.
const IP_LOCAL_PORT_RANGE: libc::c_int = 51;

sockopt_impl!(PortRange, SetOnly, libc::IPPROTO_IP, IP_LOCAL_PORT_RANGE, u32);

/// Whether sock_diag lists a socket that is bound and neither listens nor is connected (since 6.8).
pub(crate) fn lists_bound_sockets() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        netns::on_thread_in_new_namespace(|| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
            socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)).into()).expect("bound");
            // State 13 is TCP_BOUND_INACTIVE.
            let answer = dump(1 << 13);
            kind(&answer) != NLMSG_DONE
        })
    })
}

/// The cookies of the buckets of both families. A bucket has timer 3.
pub(crate) fn bucket_cookies() -> BTreeSet<u64> {
    // The size of struct nlmsghdr, and the offsets of idiag_timer and idiag_cookie in struct inet_diag_msg.
    const HEADER: usize = 16;
    const TIMER: usize = 2;
    const COOKIE: usize = 44;
    let mut cookies = BTreeSet::new();
    for answer in [2, 10].map(|family| dump_family(family, 1 << 5 | 1 << 6)) {
        for message in messages(&answer).filter(|message| kind(message) != NLMSG_DONE) {
            let row = &message[HEADER..];
            if row[TIMER] == 3 {
                cookies.insert(u64::from_ne_bytes(row[COOKIE..COOKIE + 8].try_into().expect("eight bytes")));
            }
        }
    }
    cookies
}

/// The `nlmsg_type` of the last message of a dump.
const NLMSG_DONE: u16 = 3;

/// The messages in these datagrams, each with its header.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().expect("four bytes")) as usize;
        let (message, rest) = bytes.split_at(length.next_multiple_of(4).min(bytes.len()));
        bytes = rest;
        Some(message)
    })
}

fn kind(message: &[u8]) -> u16 {
    u16::from_ne_bytes([message[4], message[5]])
}

/// Asks sock_diag for the IPv4 sockets in these states, and returns the messages of the response. Bit N of `states` is the state with
/// the number N in net/tcp_states.h.
fn dump(states: u32) -> Vec<u8> {
    dump_family(2, states)
}

fn dump_family(family: u8, states: u32) -> Vec<u8> {
    // struct nlmsghdr: length, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST and NLM_F_DUMP. struct inet_diag_req_v2: family, TCP, states.
    let mut request = vec![];
    request.extend(72_u32.to_ne_bytes());
    request.extend(20_u16.to_ne_bytes());
    request.extend(0x301_u16.to_ne_bytes());
    request.extend([0; 8]);
    request.extend([family, 6, 0, 0]);
    request.extend(states.to_ne_bytes());
    request.resize(72, 0);
    let mut netlink = Netlink::new(NETLINK_SOCK_DIAG).expect("a netlink socket");
    netlink.bind_auto().expect("bound");
    netlink.connect(&NetlinkAddr::new(0, 0)).expect("connected");
    netlink.send(&request, 0).expect("sent");
    let mut answer = vec![];
    loop {
        let mut datagram = Vec::with_capacity(32 * 1024);
        netlink.recv(&mut datagram, 0).expect("an answer");
        let last = messages(&datagram).map(kind).last().expect("a message");
        answer.extend(datagram);
        if last == NLMSG_DONE {
            return answer;
        }
    }
}

/// Makes a bucket of a client in the namespace of the calling thread, and returns its ends.
fn make_bucket() -> (SocketAddr, SocketAddr) {
    let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 8080)).expect("a server");
    let client = TcpStream::connect((Ipv4Addr::LOCALHOST, 8080)).expect("a connection");
    let ends = (client.local_addr().expect("a name"), client.peer_addr().expect("a peer"));
    let accepted = server.accept().expect("a connection");
    drop(client);
    drop(accepted);
    let began = Instant::now();
    while procfs::time_wait().is_empty() {
        assert!(began.elapsed() < patience(Duration::from_secs(5)), "no bucket");
        std::thread::sleep(Duration::from_millis(1));
    }
    ends
}

/// Whether SOCK_DESTROY removes a timewait bucket (not on 5.10).
pub(crate) fn destroys_buckets() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        netns::on_thread_in_new_namespace(|| {
            Killer::new().destroy(make_bucket());
            procfs::bucket_count() == 0
        })
    })
}

/// Whether SOCK_DESTROY ends an orphan (since 6.11; some older kernels have the fix, for example Debian's 6.1.176). If not, the
/// orphan keeps its port.
pub(crate) fn ends_orphans() -> bool {
    twtool::lab::orphan::test_sock_destroy().expect("a private network namespace")
}

/// Whether the kernel reports the mark of a bucket to a caller with CAP_NET_ADMIN (not on 5.10).
pub(crate) fn lists_marks_of_buckets() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        netns::on_thread_in_new_namespace(|| {
            const INET_DIAG_MARK: u16 = 15;
            make_bucket();
            let answer = dump(1 << 6);
            // A message has a header (16 bytes), struct inet_diag_msg (72 bytes) and then the attributes.
            let row = &answer[16 + 72..answer.len().min(usize::from(answer[0]) + usize::from(answer[1]) * 256)];
            row.len() >= 4 && u16::from_ne_bytes([row[2], row[3]]) == INET_DIAG_MARK
        })
    })
}

/// How many times slower this machine is than a developer's machine: `TWTOOL_SLOWNESS`, or 1.
pub(crate) fn slowness() -> u32 {
    let factor = std::env::var("TWTOOL_SLOWNESS").ok();
    factor.map_or(1, |factor| factor.parse().expect("TWTOOL_SLOWNESS is a whole number"))
}

/// Multiplies a time limit, which is for a developer's machine, by [`slowness`].
pub(crate) fn patience(time: Duration) -> Duration {
    time * slowness()
}
