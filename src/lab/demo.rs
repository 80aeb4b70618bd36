//! The experiment of `bind-test --demo`: a server closes a connection first, and then new sockets try to bind its port.
//!
//! In the first run, the old server does not set SO_REUSEADDR, and in the second run it does. Each run has its own network namespace, so
//! that the first bucket does not disturb the second run.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::{Endpoints, LabError, Server, for_each_socket};
use crate::model::bind::{BindAddr, ReuseOptions, ServerSetup};
use crate::model::demo::{DemoRun, Stage};
use crate::model::port::Port;
use crate::model::socket::{Socket, TcpState, TimeWaitBucket};
use crate::sys;
use crate::sys::sandbox;

/// Plays both runs. This moves the process permanently into new namespaces, so the process must have a single thread.
pub fn run(port: Port) -> Result<Vec<DemoRun>, LabError> {
    sandbox::enter_user_namespace()?;
    [ReuseOptions::NONE, ReuseOptions::REUSEADDR]
        .into_iter()
        .map(|options| {
            sandbox::enter_network_namespace()?;
            play_run(port, options, &mut |_, _| Ok(()))
        })
        .collect()
}

/// A callback for each stage, with the bucket if the server's end has become one.
pub(super) type EachStage<'a> = &'a mut dyn FnMut(&Stage, Option<TimeWaitBucket>) -> Result<(), LabError>;

/// Plays one run in the namespace of the calling thread, and calls `each` at every stage.
pub(super) fn play_run(port: Port, old_socket: ReuseOptions, each: EachStage) -> Result<DemoRun, LabError> {
    let localhost = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let addr = SocketAddr::new(localhost, port.0);
    let server = Server::listen(addr, old_socket)?;
    let connection = server.connect(addr, None)?;
    let server_end = Endpoints::of(&connection.server)?;
    let client_end = server_end.reversed();
    let mut stages = vec![];
    let mut record_stage = |step| -> Result<(), LabError> {
        let state = |found: Option<Socket>| found.map(|socket| socket.state());
        let found = server_end.find()?;
        let reached = Stage { step, server: state(found), client: state(client_end.find()?) };
        stages.push(reached);
        let bucket = match found {
            Some(Socket::Bucket(bucket)) => Some(bucket),
            _ => None,
        };
        each(&reached, bucket)
    };

    server_end.wait_for("server", TcpState::Established)?;
    record_stage("the client connected")?;
    // The listener closes first, as when a server stops. Only the connection remains on the port.
    drop(server);
    drop(connection.server);
    server_end.wait_for("server", TcpState::FinWait2)?;
    client_end.wait_for("client", TcpState::CloseWait)?;
    record_stage("the server closed first")?;
    drop(connection.client);
    server_end.wait_for("server", TcpState::TimeWait)?;
    record_stage("the client closed too")?;

    let mut buckets = vec![];
    for_each_socket(&mut |socket| match socket {
        Socket::Bucket(bucket) if bucket.tuple.local_port() == port => buckets.push(*bucket),
        _ => {}
    })?;
    let at = BindAddr { addr: localhost, scope: None };
    let attempts = sys::bind::attempts(&[at], port, true, &ServerSetup::default())?.attempts;
    Ok(DemoRun { old_socket, stages, buckets, attempts })
}
