//! Clients whose port connect() chooses. The tests count how many calls of connect() succeed, and compare the number with the
//! answer of `twtool capacity`.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Socket, Type};
use twtool::sys::sysctl;

use super::situations::addr;
use super::{kernel, procfs};

/// The first port of the range of [`narrow_range`].
pub(crate) const LOW: u16 = 40_000;

/// Gives the namespace an ephemeral range of this many ports, and turns tcp_tw_reuse off.
pub(crate) fn narrow_range(size: u16) {
    sysctl::write("ipv4.ip_local_port_range", &format!("{LOW} {}", LOW + size - 1)).expect("the namespace is ours");
    set("ipv4.tcp_tw_reuse", 0);
}

pub(crate) fn set(name: &str, value: u32) {
    sysctl::write(name, &value.to_string()).expect("the namespace is ours");
}

#[track_caller]
pub(crate) fn serve(at: &str) -> TcpListener {
    TcpListener::bind(addr(at)).unwrap_or_else(|error| panic!("listening on {at}: {error}"))
}

/// A socket that is bound to this address and port, and neither listens nor connects.
#[track_caller]
pub(crate) fn bound(at: &str) -> Socket {
    let at = addr(at);
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, None).expect("a socket");
    socket.bind(&at.into()).unwrap_or_else(|error| panic!("binding {at}: {error}"));
    socket
}

/// Connects from a port that connect() chooses. connect() also chooses the address if `from` is `None`.
pub(crate) fn connect(from: Option<IpAddr>, to: SocketAddr) -> io::Result<Socket> {
    connect_with(from, to, |_| Ok(()))
}

/// Like [`connect()`], but first calls `prepare` with the new socket.
pub(crate) fn connect_with(
    from: Option<IpAddr>,
    to: SocketAddr,
    prepare: impl Fn(&Socket) -> io::Result<()>,
) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    prepare(&socket)?;
    if let Some(from) = from {
        setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
        socket.bind(&SocketAddr::new(from, 0).into())?;
    }
    socket.connect(&to.into())?;
    Ok(socket)
}

pub(crate) fn count_connects_until_full(connect: impl Fn() -> io::Result<Socket>) -> usize {
    let mut connected = vec![];
    loop {
        match connect() {
            Ok(socket) => connected.push(socket),
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => return connected.len(),
            Err(error) => panic!("connect() failed after {} connections: {error}", connected.len()),
        }
    }
}

#[track_caller]
pub(crate) fn connected(from: IpAddr, to: SocketAddr) -> Socket {
    connect(Some(from), to).unwrap_or_else(|error| panic!("connecting {from} to {to}: {error}"))
}

#[track_caller]
pub(crate) fn close_client_first(client: Socket, server: &TcpListener) {
    assert!(leaves_a_bucket(client, server), "the connection left no bucket");
}

/// Closes the client's end first, and returns whether that leaves a bucket.
fn leaves_a_bucket(client: Socket, server: &TcpListener) -> bool {
    let end = |addr: socket2::SockAddr| addr.as_socket().map(|addr| (addr.ip().to_canonical(), addr.port()));
    let local = client.local_addr().map(end).expect("a name").expect("an address");
    let accepted = loop {
        let (accepted, peer) = server.accept().expect("a connection");
        if (peer.ip().to_canonical(), peer.port()) == local {
            break accepted;
        }
    };
    drop(client);
    let half = reaches_state(local, 5);
    drop(accepted);
    half && reaches_state(local, 6)
}

/// Whether the socket with this local end reaches this state of net/tcp_states.h in time.
fn reaches_state(local: (IpAddr, u16), state: u8) -> bool {
    let deadline = Instant::now() + kernel::patience(Duration::from_secs(5));
    let is_there =
        |entry: &procfs::Entry| (entry.local.0.to_canonical(), entry.local.1) == local && entry.state == state;
    while !procfs::sockets().iter().any(is_there) {
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(1));
    }
    true
}

/// Makes buckets of clients whose port connect() chooses. At most five connections that leave no bucket are repeated.
#[track_caller]
pub(crate) fn buckets(count: usize, from: &str, server: &TcpListener) {
    let from = from.parse().expect("an address");
    let to = server.local_addr().expect("a name");
    let (mut made, mut tried) = (0, 0);
    while made < count {
        assert!(tried < count + 5, "{} of {tried} connections left no bucket", tried - made);
        tried += 1;
        made += usize::from(leaves_a_bucket(connected(from, to), server));
    }
}
