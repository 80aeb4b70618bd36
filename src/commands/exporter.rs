//! `twtool exporter`: serves the metrics of network namespaces to Prometheus.

use std::time::Duration;

use clap::{Args, ValueEnum};

use super::metrics::{CollectionArgs, refuse_formats};
use super::{CommandError, ExitStatus, GlobalArgs, hide_format_and_version_options};
use crate::exporter::{self, Address, ExporterOptions, LogFormat};
use crate::filter::parser::parse_duration;

/// Arguments of `twtool exporter`.
#[derive(Args, Clone, Debug)]
#[command(
    mut_args(hide_format_and_version_options),
    after_long_help = "\
/metrics serves the metrics of `twtool metrics`: in the text format 0.0.4 of Prometheus, or as OpenMetrics if the Accept header \
prefers it. The path / shows a page with the present state. /-/healthy answers without a collection.

A collection serves all scrapes that begin within --min-interval after the collection began. The exporter collects only for a \
request. It needs no capability for its own network namespace. With CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH it names the owners of \
sockets of other users; \
with CAP_SYS_ADMIN it enters other network namespaces (--netns, --container, --all-netns); with CAP_BPF and CAP_PERFMON it counts \
closes by unit or container (--trace). After it has opened its addresses and loaded its BPF program, it drops every capability that \
it does not need any more, and uses landlock and seccomp to confine the thread that reads requests.

systemd can pass the sockets (systemd.socket(5), LISTEN_FDS). They replace the default address.

After SIGTERM or SIGINT, the exporter finishes the requests in progress, waits at most 10 s for them, and ends.

Prometheus keeps a list of default ports for exporters (9100-9999). The default port of twtool is outside that range.

Metrics have formats of their own and cover IPv4 and IPv6. So --json, -4, -6 and -o json, ndjson and csv are errors.

Exit codes: 0 ended by a signal, 2 wrong usage, or an address, a network namespace or --trace cannot be used.

Examples:
  twtool exporter                                     serve this network namespace on 127.0.0.1:16060
  twtool exporter --listen 127.0.0.1:16061 --listen '[::1]:16061'
  twtool exporter --listen unix:twtool.sock           serve on a Unix socket
  twtool exporter --all-netns --log json              all network namespaces, log lines as JSON
  twtool exporter --trace                             also count closes by unit or container
"
)]
pub struct ExporterArgs {
    /// Listen on this address: ADDR:PORT, [ADDR]:PORT or unix:PATH; repeat for more [default: 127.0.0.1:16060]
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Vec<Address>,
    /// Answer a scrape with the last collection if that began less than this time ago
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = parse_duration)]
    min_interval: Duration,
    /// Answer a scrape with 503 if it has waited this long for a collection
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_duration)]
    deadline: Duration,
    /// Count the closes of connections by unit or container and by role, with a BPF program (needs CAP_BPF and CAP_PERFMON)
    #[arg(long)]
    trace: bool,
    /// Read TLS settings and users from this web configuration file of Prometheus
    #[cfg(feature = "tls")]
    #[arg(long = "web.config.file", value_name = "FILE")]
    web_config: Option<std::path::PathBuf>,
    /// Form of the log lines on standard error
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = LogArg::Logfmt)]
    log: LogArg,
    #[command(flatten)]
    collection: CollectionArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogArg {
    /// key=value
    Logfmt,
    /// One JSON record per line
    Json,
}

/// Runs the command until a signal ends it.
///
/// # Errors
/// See [`CommandError`].
pub fn run(args: &ExporterArgs, global: &GlobalArgs) -> Result<ExitStatus, CommandError> {
    refuse_formats(global)?;
    // A wrong namespace is an error at the start, and not only at each scrape.
    args.collection.clone().check()?;
    let options = ExporterOptions {
        listen: args.listen.clone(),
        min_interval: args.min_interval,
        deadline: args.deadline,
        log: match args.log {
            LogArg::Logfmt => LogFormat::Logfmt,
            LogArg::Json => LogFormat::Json,
        },
        bounds: args.collection.bounds(),
        enters_namespaces: args.collection.enters_namespaces(),
        #[cfg(feature = "tls")]
        web_config: args.web_config.clone(),
    };
    let collection = args.collection.clone();
    // Each collection uses a fresh clone, which searches for the container again, because the container may have restarted.
    let collect = move || collection.clone().collect().map_err(|error| error.to_string());
    let trace = args.trace.then(|| args.collection.trace()).transpose()?;
    exporter::run(&options, Box::new(collect), trace)?;
    Ok(ExitStatus::Yes)
}
