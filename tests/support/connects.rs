//! A client that makes the system calls of an ordinary program. The tests compare its results with the answer of
//! `twtool connect-test`.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Socket, Type};

/// A client that connects to `to`. If `from` is set, it binds this address first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Client {
    pub(crate) from: Option<SocketAddr>,
    pub(crate) to: SocketAddr,
    pub(crate) reuseaddr: bool,
    /// IP_BIND_ADDRESS_NO_PORT.
    pub(crate) no_port: bool,
}

/// A call and its errno: `("connect", "EADDRNOTAVAIL")`.
pub(crate) type Failure = (&'static str, String);

fn failed(call: &'static str) -> impl Fn(io::Error) -> Failure {
    move |error| (call, format!("{:?}", Errno::from_raw(error.raw_os_error().expect("an errno"))))
}

impl Client {
    /// Connects, without waiting for a response. If the peer refuses the connection, that is also a success, because the kernel
    /// found a port for it.
    pub(crate) fn connect(&self) -> Result<Socket, Failure> {
        let Self { from, to, reuseaddr, no_port } = *self;
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).map_err(failed("socket"))?;
        socket.set_reuse_address(reuseaddr).expect("SO_REUSEADDR");
        socket.set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
        if let Some(from) = from {
            if no_port {
                setsockopt(&socket, sockopt::IpBindAddressNoPort, &true).expect("IP_BIND_ADDRESS_NO_PORT");
            }
            socket.bind(&from.into()).map_err(failed("bind"))?;
        }
        socket.set_nonblocking(true).expect("O_NONBLOCK");
        match socket.connect(&to.into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(failed("connect")(error)),
        }
        socket.set_nonblocking(false).expect("O_NONBLOCK");
        Ok(socket)
    }

    pub(crate) fn bind_failure(&self) -> Option<Failure> {
        let at = self.from.expect("an address to bind");
        let socket = Socket::new(Domain::for_address(at), Type::STREAM, None).expect("a socket");
        socket.set_reuse_address(self.reuseaddr).expect("SO_REUSEADDR");
        socket.bind(&at.into()).map_err(failed("bind")).err()
    }

    /// Connects, and returns the failure. A connection, if there is one, is reset at once.
    pub(crate) fn connect_failure(&self) -> Option<Failure> {
        self.connect().err()
    }

    pub(crate) fn arguments(&self) -> Vec<String> {
        let mut arguments = vec!["connect-test".to_owned(), self.to.to_string()];
        if let Some(from) = self.from {
            let typed = if from.port() == 0 { without_port(from) } else { from.to_string() };
            arguments.extend(["--from".into(), typed]);
        }
        let options = [(self.reuseaddr, "reuseaddr"), (self.no_port, "bind-address-no-port")];
        let options = options.into_iter().filter_map(|(set, name)| set.then_some(name));
        arguments.extend(options.flat_map(|name| ["--with".into(), name.into()]));
        arguments
    }
}

fn without_port(at: SocketAddr) -> String {
    match (at, at.ip()) {
        (SocketAddr::V6(v6), IpAddr::V6(addr)) if v6.scope_id() > 0 => format!("{addr}%{}", v6.scope_id()),
        (_, addr) => addr.to_string(),
    }
}
