//! The textbook experiment: a server closes a connection first, and its port is tried again at once.
//!
//! Two runs, each in a network namespace of its own so that the first bucket cannot disturb the second: the old server
//! without SO_REUSEADDR, and with it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::{Ends, LabError, Server, for_each_socket};
use crate::model::bind::{BindAddr, ReuseOptions};
use crate::model::demo::{DemoRun, Stage};
use crate::model::port::Port;
use crate::model::socket::{Socket, TcpState};
use crate::sys;
use crate::sys::sandbox::{self, SandboxError};

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the two errors say it")]
pub enum DemoError {
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error(transparent)]
    Lab(#[from] LabError),
}

/// Does both runs. Moves the process into namespaces of its own for good; it must have one thread only.
pub fn run(port: Port) -> Result<Vec<DemoRun>, DemoError> {
    sandbox::enter_user_namespace()?;
    [ReuseOptions::NONE, ReuseOptions::REUSEADDR]
        .into_iter()
        .map(|options| {
            sandbox::enter_network_namespace()?;
            Ok(one(port, options)?)
        })
        .collect()
}

fn one(port: Port, old_socket: ReuseOptions) -> Result<DemoRun, LabError> {
    let localhost = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let addr = SocketAddr::new(localhost, port.0);
    let server = Server::listen(addr, old_socket)?;
    let connection = server.connect(addr, None)?;
    let server_end = Ends::of(&connection.server)?;
    let client_end = server_end.reversed();
    let mut stages = vec![];
    let mut look = |step| -> Result<(), LabError> {
        let state = |found: Option<Socket>| found.map(|socket| socket.state());
        let (server, client) = (state(server_end.find()?), state(client_end.find()?));
        stages.push(Stage { step, server, client });
        Ok(())
    };

    server_end.wait_for("server", TcpState::Established)?;
    look("the client connected")?;
    // The listener goes first, as when a server stops: what remains on the port is the connection alone.
    drop(server);
    drop(connection.server);
    server_end.wait_for("server", TcpState::FinWait2)?;
    client_end.wait_for("client", TcpState::CloseWait)?;
    look("the server closed first")?;
    drop(connection.client);
    server_end.wait_for("server", TcpState::TimeWait)?;
    look("the client closed too")?;

    let mut buckets = vec![];
    for_each_socket(&mut |socket| match socket {
        Socket::Bucket(bucket) if bucket.tuple.local_port() == port => buckets.push(bucket),
        _ => {}
    })?;
    let at = BindAddr { addr: localhost, scope: None };
    let attempts = sys::bind::attempts(&[at], port, true)?;
    Ok(DemoRun { old_socket, stages, buckets, attempts })
}
