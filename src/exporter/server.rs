//! Accepts connections, limits their number and their time, and ends them at a signal.
//!
//! Limits against clients that are slow, silent or many:
//! - The head of a request (its first line and its header fields) must be complete 30 s after the connection became idle, and must fit
//!   into 16 KiB.
//! - A write fails if the client reads nothing for 10 s.
//! - At most 512 connections are open. A further connection replaces the one that has been idle longest. If every connection has a
//!   request in progress, it replaces the one whose request began first.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioTimer;
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use super::collector::Collector;
use super::connections::Connections;
use super::listen::Listener;
use super::log::{Level, Log};
#[cfg(feature = "tls")]
use super::security::Security;
use super::stream::{ClientStream, LimitedStream};
use super::tracing::ClosesThread;
use super::{Collect, ExporterOptions, Jobs, http};

/// The time for the head of a request, and for a TLS handshake. An idle connection is closed after this time, too.
const HEAD_TIME: Duration = Duration::from_secs(30);

const WRITE_TIME: Duration = Duration::from_secs(10);

const MAX_HEAD: usize = 16 * 1024;

/// The time for the requests that are in progress when a signal ends the exporter.
const DRAIN_TIME: Duration = Duration::from_secs(10);

/// The pause after a failed accept(2), for example because there is no free descriptor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The access control that is in force. SIGHUP replaces it by the present content of the web configuration file.
#[cfg(feature = "tls")]
#[derive(Clone)]
pub(super) struct AccessControl {
    path: Option<std::path::PathBuf>,
    current: Arc<std::sync::RwLock<Arc<Security>>>,
}

#[cfg(feature = "tls")]
impl AccessControl {
    pub(super) fn read(path: Option<&std::path::Path>) -> Result<Self, String> {
        let security = path.map(Security::read).transpose()?.unwrap_or_default();
        Ok(Self {
            path: path.map(std::path::Path::to_owned),
            current: Arc::new(std::sync::RwLock::new(security.into())),
        })
    }

    /// Reads the web configuration file again. If that fails, the previous configuration stays in force.
    fn reload(&self) -> Result<(), String> {
        if let Some(path) = &self.path {
            let new = Arc::new(Security::read(path)?);
            *self.current.write().unwrap_or_else(std::sync::PoisonError::into_inner) = new;
        }
        Ok(())
    }

    pub(super) fn current(&self) -> Arc<Security> {
        Arc::clone(&self.current.read().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// Makes the TLS handshake, if the web configuration file requires TLS.
    async fn accept(&self, stream: Box<dyn ClientStream>) -> io::Result<Box<dyn ClientStream>> {
        let Some(acceptor) = self.current().acceptor.clone() else { return Ok(stream) };
        let accepted = tokio::time::timeout(HEAD_TIME, acceptor.accept(stream)).await;
        Ok(Box::new(accepted.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??))
    }
}

/// The access control of a build without TLS: every client is served.
#[cfg(not(feature = "tls"))]
#[derive(Clone, Copy)]
pub(super) struct AccessControl;

#[cfg(not(feature = "tls"))]
impl AccessControl {
    #[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "the same signature as with TLS")]
    fn reload(self) -> Result<(), String> {
        Ok(())
    }

    #[expect(clippy::unused_async, reason = "the same signature as with TLS")]
    async fn accept(self, stream: Box<dyn ClientStream>) -> io::Result<Box<dyn ClientStream>> {
        Ok(stream)
    }
}

#[derive(Clone)]
struct ServerState {
    collector: Arc<Collector>,
    connections: Arc<Connections>,
    security: AccessControl,
    /// Becomes true when the exporter ends.
    ending: watch::Receiver<bool>,
}

/// Serves until SIGTERM or SIGINT. `log_details` are the capabilities and the confinement of the exporter, for the log.
pub(super) async fn serve(
    options: &ExporterOptions,
    listeners: Vec<Listener>,
    (collect, tracing): (Box<Collect>, Option<Arc<ClosesThread>>),
    log_details: &[(&str, String)],
    security: AccessControl,
    jobs: Jobs,
) -> io::Result<()> {
    let log = Log(options.log);
    let collector =
        Collector::new(collect, tracing, options.bounds, options.min_interval, options.deadline, log, jobs.clone());
    let (end, ending) = watch::channel(false);
    #[allow(clippy::clone_on_copy, reason = "AccessControl is Copy only without TLS")]
    let shared = ServerState { collector, connections: Arc::default(), security: security.clone(), ending };
    // Without a handler, a signal would end the process at once. So the handlers are installed before the first connection.
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut accepting = JoinSet::new();
    for listener in listeners {
        let address = listener.address();
        let log_details = log_details.iter().map(|(name, value)| (*name, value.as_str()));
        log.event(
            Level::Info,
            "listening",
            &[("address", address.as_str())].into_iter().chain(log_details).collect::<Vec<_>>(),
        );
        accepting.spawn(accept(listener, shared.clone(), log));
    }
    let signal = loop {
        tokio::select! {
            _ = terminate.recv() => break "SIGTERM",
            _ = interrupt.recv() => break "SIGINT",
            _ = hang_up.recv() => match reload(&security, &jobs).await {
                Ok(()) => log.event(Level::Info, "reloaded", &[("signal", "SIGHUP")]),
                Err(why) => log.event(Level::Error, "not reloaded", &[("reason", &why)]),
            },
        }
    };
    log.event(Level::Info, "ending", &[("signal", signal)]);
    let _ = end.send(true);
    // Each task closes its listener, answers the requests that are in progress, and ends.
    let drained = tokio::time::timeout(DRAIN_TIME, async { while accepting.join_next().await.is_some() {} }).await;
    log.event(Level::Info, "ended", &[("requests", if drained.is_ok() { "all answered" } else { "some cut off" })]);
    Ok(())
}

/// Reads the web configuration file again, on a thread that may read files.
async fn reload(security: &AccessControl, jobs: &Jobs) -> Result<(), String> {
    let (send, reloaded) = oneshot::channel();
    #[allow(clippy::clone_on_copy, reason = "AccessControl is Copy only without TLS")]
    let security = security.clone();
    let _ = jobs.send(Some(Box::new(move || drop(send.send(security.reload())))));
    reloaded.await.unwrap_or_else(|_| Err("no thread can be started".to_owned()))
}

/// Accepts connections until the exporter ends. Then it waits until these connections have ended.
async fn accept(listener: Listener, shared: ServerState, log: Log) {
    let mut tasks = JoinSet::new();
    let mut ending = shared.ending.clone();
    let mut accepted = match Accepting::new(&listener) {
        Ok(accepted) => accepted,
        Err(error) => {
            log.event(Level::Error, "accepting failed", &[("reason", &error.to_string())]);
            return;
        }
    };
    let mut failing = false;
    loop {
        tokio::select! {
            () = ended(&mut ending) => break,
            stream = accepted.next() => match stream {
                Ok(stream) => {
                    failing = false;
                    tasks.spawn(connection(stream, shared.clone()));
                }
                Err(error) => {
                    if !failing {
                        log.event(Level::Warn, "accepting failed", &[("reason", &error.to_string())]);
                    }
                    failing = true;
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = tasks.join_next() => {}
        }
    }
    drop(accepted);
    drop(listener);
    while tasks.join_next().await.is_some() {}
}

async fn ended(ending: &mut watch::Receiver<bool>) {
    // The wait fails if the sender is gone. That also means that the exporter ends.
    let _ = ending.wait_for(|ending| *ending).await;
}

enum Accepting {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Accepting {
    fn new(listener: &Listener) -> io::Result<Self> {
        Ok(match listener {
            Listener::Tcp(listener) => Self::Tcp(TcpListener::from_std(listener.try_clone()?)?),
            Listener::Unix(listener, _) => Self::Unix(UnixListener::from_std(listener.try_clone()?)?),
        })
    }

    async fn next(&mut self) -> io::Result<Box<dyn ClientStream>> {
        Ok(match self {
            Self::Tcp(listener) => Box::new(listener.accept().await?.0),
            Self::Unix(listener) => Box::new(listener.accept().await?.0),
        })
    }
}

/// Serves one connection until it ends, until another connection replaces it, or until the exporter ends.
async fn connection(stream: Box<dyn ClientStream>, shared: ServerState) {
    let ServerState { collector, connections, security, mut ending } = shared;
    let (id, close) = connections.register();
    let stream = tokio::select! {
        stream = security.accept(stream) => stream,
        () = close.notified() => return,
        () = ended(&mut ending) => Err(io::ErrorKind::Interrupted.into()),
    };
    let stream = match stream {
        Ok(stream) => stream,
        Err(error) => {
            connections.remove(id, error.kind() == io::ErrorKind::TimedOut);
            return;
        }
    };
    let service = service_fn(|request: Request<hyper::body::Incoming>| {
        connections.set_busy(id, true);
        let (collector, connections) = (Arc::clone(&collector), Arc::clone(&connections));
        #[cfg(feature = "tls")]
        let security = security.current();
        async move {
            #[cfg(feature = "tls")]
            let permitted = {
                let header = request.headers().get(hyper::header::AUTHORIZATION);
                security.permits(header.map(hyper::header::HeaderValue::as_bytes)).await
            };
            #[cfg(not(feature = "tls"))]
            let permitted = true;
            let response = http::respond(request, permitted, collector, Arc::clone(&connections)).await;
            connections.set_busy(id, false);
            Ok::<_, Infallible>(response)
        }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME).max_buf_size(MAX_HEAD);
    let served = http.serve_connection(LimitedStream::new(stream, WRITE_TIME), service);
    let mut served = std::pin::pin!(served);
    let mut graceful = false;
    let ended = loop {
        tokio::select! {
            ended = served.as_mut() => break ended,
            () = close.notified() => return,
            () = ended(&mut ending), if !graceful => {
                graceful = true;
                served.as_mut().graceful_shutdown();
            }
        }
    };
    let timeout = |error: &hyper::Error| {
        let io = std::error::Error::source(error).and_then(|source| source.downcast_ref::<io::Error>());
        error.is_timeout() || io.is_some_and(|io| io.kind() == io::ErrorKind::TimedOut)
    };
    connections.remove(id, ended.is_err_and(|error| timeout(&error)));
}
