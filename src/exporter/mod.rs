//! `twtool exporter`: serves metrics to Prometheus by HTTP. A *scrape* is one request of Prometheus for the metrics. A *collection*
//! reads the data for them, and can serve several scrapes.
//!
//! ```text
//!  scrape ----> server ----> http ----> collector ----> a thread that collects (snapshot)
//!  scrape ---->   |                         |
//!  scrape ---->   limits and time-outs      one result for all scrapes within the minimum interval
//! ```
//!
//! | file | contents |
//! |---|---|
//! | `listen` | the addresses: TCP, Unix sockets, and sockets that systemd passes |
//! | `server` | accepts connections, limits their number and their time, and ends them at a signal |
//! | `stream` | one connection, with a time limit for writing |
//! | `http` | requests and responses |
//! | `connections` | the open connections, and counts of responses and of connections that the exporter closed |
//! | `collector` | one collection for all scrapes of a short time |
//! | `web_config`, `security` (feature `tls`) | TLS and basic authentication |
//! | `tracing` | counts closes by unit, container or process name, with a BPF program (`--trace`) |
//! | `page` | the page at `/` |
//! | `log` | one line per event |
//!
//! One thread serves all connections. landlock and seccomp confine this thread, because any client can send it bytes
//! (`sys::confinement`). The main thread starts a thread for each collection: a thread that the server starts would be confined, too,
//! and could not read the files of other processes.
//!
//! An exporter without connections sets no timer. The main thread and the server thread wait in system calls, and the threads that help
//! with long lists (`parallel`) sleep. With `--trace`, a third thread reads the closes at least every 50 ms.

mod collector;
mod connections;
mod http;
pub mod listen;
pub mod log;
mod page;
#[cfg(feature = "tls")]
mod security;
mod server;
mod stream;
mod tracing;
#[cfg(feature = "tls")]
mod web_config;

use std::io;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use crate::metrics::{CollectedSurveys, SampleLimits};
use crate::snapshot::SnapshotError;
use crate::sys;
use crate::sys::capabilities::Need;
use crate::sys::confinement::{self, ActiveConfinement};

pub use listen::Address;
pub use log::LogFormat;
use tracing::ClosesThread;
pub use tracing::StartTracing;

/// The settings of the exporter.
pub struct ExporterOptions {
    /// The addresses to listen on, besides the sockets of systemd. If there is neither an address nor such a socket, the exporter listens
    /// on [`Address::DEFAULT`].
    pub listen: Vec<Address>,
    /// A collection serves all scrapes that begin within this time after its start.
    pub min_interval: Duration,
    /// A scrape waits at most this long for a collection.
    pub deadline: Duration,
    /// The form of log lines.
    pub log: LogFormat,
    /// The upper bounds of the number of samples.
    pub bounds: SampleLimits,
    /// Whether a collection enters other network namespaces.
    pub enters_namespaces: bool,
    /// The web configuration file, with TLS and basic authentication.
    #[cfg(feature = "tls")]
    pub web_config: Option<std::path::PathBuf>,
}

/// How long a thread that has compared a password waits for the next one before it ends.
const SPARE_THREAD: Duration = Duration::from_millis(100);

/// A function that reads the network namespaces for one collection.
pub type Collect = dyn Fn() -> Result<CollectedSurveys, String> + Send + Sync;

/// Sends jobs to the main thread, which runs each job on a thread without the confinement of the server. `None` ends the
/// loop of the main thread.
type Jobs = Sender<Option<Box<dyn FnOnce() + Send>>>;

fn start_jobs(jobs: &Receiver<Option<Box<dyn FnOnce() + Send>>>) {
    while let Ok(Some(job)) = jobs.recv() {
        // If no thread can be started, the job is dropped, and the scrapes that wait for it fail.
        let _ = thread::Builder::new().name("collect".into()).spawn(job);
    }
}

/// Why the exporter cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ExporterError {
    /// An address cannot be used.
    #[error("listening on {address} failed: {source}")]
    Listen {
        /// The address.
        address: String,
        /// The cause.
        source: io::Error,
    },
    /// The sockets of systemd cannot be used.
    #[error("the sockets of LISTEN_FDS cannot be used: {0}")]
    Activation(io::Error),
    /// The web configuration file cannot be used.
    #[cfg(feature = "tls")]
    #[error("the web configuration file cannot be used: {0}")]
    WebConfig(String),
    /// The runtime or the signal handlers cannot be started.
    #[error("starting the exporter failed: {0}")]
    Start(io::Error),
    /// The capabilities that the exporter does not need could not be dropped.
    #[error("dropping capabilities failed: {0}")]
    Capabilities(io::Error),
    /// Closes cannot be traced.
    #[error(transparent)]
    Trace(#[from] SnapshotError),
}

impl ExporterError {
    /// Advice for the user about this error, if there is any.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        if let Self::Trace(error) = self { error.hint() } else { None }
    }
}

/// Serves metrics until SIGTERM or SIGINT. With `trace`, it also counts closes.
///
/// # Errors
/// See [`ExporterError`].
pub fn run(options: &ExporterOptions, collect: Box<Collect>, trace: Option<StartTracing>) -> Result<(), ExporterError> {
    #[cfg(feature = "tls")]
    let security = server::AccessControl::read(options.web_config.as_deref()).map_err(ExporterError::WebConfig)?;
    #[cfg(not(feature = "tls"))]
    let security = server::AccessControl;
    let mut listeners = listen::inherited_listeners().map_err(ExporterError::Activation)?;
    let addresses: &[Address] =
        if listeners.is_empty() && options.listen.is_empty() { &[Address::DEFAULT] } else { &options.listen };
    for address in addresses {
        // A socket of systemd, or an earlier --listen, can already have the address.
        if listeners.iter().any(|listener| listener.address() == address.to_string()) {
            continue;
        }
        let failed = |source| ExporterError::Listen { address: address.to_string(), source };
        listeners.push(address.bind().map_err(failed)?);
    }
    let may_confine = !confinement::is_filtered();
    // The thread that traces needs capabilities to load its BPF program, so it starts before the exporter drops them.
    let tracing = trace.map(|trace| ClosesThread::start(trace, options, may_confine)).transpose()?;
    // Binding may have needed a capability. From here on the exporter only reads.
    let mut needs = vec![Need::OwnersOfSockets];
    needs.extend(options.enters_namespaces.then_some(Need::OtherNamespaces));
    let kept = sys::capabilities::keep_only(&needs).map_err(ExporterError::Capabilities)?;
    if may_confine {
        confinement::for_exporter();
    }
    let folders: Vec<_> = listeners.iter().filter_map(listen::Listener::folder).collect();
    let (jobs, work) = channel();
    let serve = || {
        let folders: Vec<&Path> = folders.iter().map(AsRef::as_ref).collect();
        let confined = may_confine.then(|| confinement::for_requests(&folders));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .thread_keep_alive(SPARE_THREAD)
            .build()
            .map_err(ExporterError::Start)?;
        let log = [("capabilities", list(&kept)), ("confinement", names(confined))];
        let served = server::serve(options, listeners, (collect, tracing), &log, security, jobs.clone());
        let served = runtime.block_on(served).map_err(ExporterError::Start);
        // The exporter does not wait for a collection that still runs.
        let _ = jobs.send(None);
        served
    };
    thread::scope(|scope| {
        let server = thread::Builder::new().name("serve".into()).spawn_scoped(scope, serve);
        let server = server.map_err(ExporterError::Start)?;
        start_jobs(&work);
        server.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn list(words: &[&str]) -> String {
    if words.is_empty() { "none".to_owned() } else { words.join(",") }
}

/// Names what confines the thread that handles requests. `None` means that the exporter was already confined when it started.
fn names(confined: Option<ActiveConfinement>) -> String {
    let Some(ActiveConfinement { landlock, seccomp }) = confined else { return "inherited".to_owned() };
    let words = landlock.map(|_| "landlock").into_iter().chain(seccomp.then_some("seccomp"));
    list(&words.collect::<Vec<_>>())
}
