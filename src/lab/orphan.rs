//! Tests whether SOCK_DESTROY ends an orphan on this kernel, in a private network namespace. An orphan is a connection that has not
//! ended yet, and whose socket no process has open any more.
//!
//! Before Linux 6.11, `tcp_abort` (net/ipv4/tcp.c) only emptied the write queue of an orphan, and did not change its state. An orphan
//! in FIN_WAIT_1 then has no timer any more, and stays until its peer sends a segment (measured on Debian's 5.10.0-32).
//! Distributions have the fix in some older kernels (Debian's 6.1.176), so the version number alone is not enough.

use std::net::{Ipv4Addr, SocketAddr};
use std::thread;

use super::{ActiveCloser, Endpoints, LabError, Server, step};
use crate::model::bind::ReuseOptions;
use crate::model::facts::Facts;
use crate::model::row::Direction;
use crate::model::socket::{Socket, TcpState};
use crate::model::target::Target;
use crate::sock_diag::destroy;
use crate::sock_diag::transport::Netlink;
use crate::sys::{sandbox, sysctl};

/// Whether SOCK_DESTROY ends an orphan on this kernel. Since Linux 6.11 it does. Other kernels are tested.
///
/// # Errors
/// See [`test_sock_destroy`].
pub fn sock_destroy_works(facts: &Facts) -> Result<bool, LabError> {
    if facts.kernel_since(6, 11) == Some(true) { Ok(true) } else { test_sock_destroy() }
}

/// Tests whether SOCK_DESTROY ends an orphan in FIN_WAIT_2 that is a full socket (not a bucket).
///
/// # Errors
/// A step failed. For example, making the namespace fails without CAP_SYS_ADMIN.
pub fn test_sock_destroy() -> Result<bool, LabError> {
    thread::scope(|scope| {
        let experiment = scope.spawn(|| {
            sandbox::enter_network_namespace()?;
            experiment()
        });
        experiment.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn experiment() -> Result<bool, LabError> {
    // If tcp_fin_timeout is above 60 s (the length of TIME_WAIT), an orphan in FIN_WAIT_2 is a full socket at first.
    sysctl::write("ipv4.tcp_fin_timeout", "120").map_err(step("setting tcp_fin_timeout"))?;
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
    let server = Server::listen(at, ReuseOptions::NONE)?;
    let connection = server.connect(at, None)?;
    let ends = Endpoints::of(&connection.server)?;
    let _open = connection.close_half(ActiveCloser::Server)?;
    let socket = ends.wait_for("active closer", TcpState::FinWait2)?;
    let row = Target { socket, direction: Direction::Unknown }.row();
    let mut kernel = Netlink::open().map_err(step("opening a netlink socket"))?;
    let destruction = destroy::run(&mut kernel, &[row]);
    destruction.end.map_err(|error| std::io::Error::other(error.to_string())).map_err(step("SOCK_DESTROY"))?;
    Ok(!matches!(ends.find()?, Some(Socket::Full(_))))
}
