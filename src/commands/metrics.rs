//! `twtool metrics`: prints the metrics of network namespaces once, or writes them to a file for node_exporter.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::netns::ManyNetnsArgs;
use super::{CommandError, Context, ExitStatus, Format, GlobalArgs, bad_value, hide_format_and_version_options};
use crate::exporter::StartTracing;
use crate::filter::parser::parse_duration;
use crate::metrics::{self, CollectedSurveys, SampleLimits, SelfCounts, encoding};
use crate::snapshot::closes::{Closes, MethodChoice};
use crate::snapshot::{Selection, Snapshot};

/// Arguments of `twtool metrics`.
#[derive(Args, Clone, Debug)]
#[command(
    mut_args(hide_format_and_version_options),
    after_long_help = "\
Every metric is listed in docs/metrics.md. The label netns is the name of the network namespace in `ip netns`, or net:[INODE].

The text format 0.0.4 is for node_exporter's textfile collector and for promtool. twtool exporter serves the same metrics to \
Prometheus directly.

With --textfile, twtool puts the file in place only when it is complete, so that a reader never sees an incomplete file. An existing \
file keeps its owner and its permissions. If some metrics are missing, twtool still writes the file, with \
twtool_collection_complete 0.

Metrics have formats of their own and cover IPv4 and IPv6. So -4, -6, --json and -o json, ndjson and csv are errors.

Exit codes: 0 the metrics are complete, 2 they are missing or incomplete, or wrong usage.

Examples:
  twtool metrics                                   print the metrics of this network namespace
  twtool metrics | grep twtool_destination_free_ports
  twtool metrics --all-netns --max-destinations 5  all network namespaces, with 5 destinations each
  twtool metrics --textfile twtool.prom            write a file for node_exporter
  twtool metrics --format openmetrics
"
)]
pub struct MetricsArgs {
    /// Write to this file instead of standard output; the name must end with .prom
    #[arg(long, value_name = "FILE", value_parser = textfile)]
    textfile: Option<PathBuf>,
    /// Text format
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = FormatArg::Text)]
    format: FormatArg,
    #[command(flatten)]
    pub(super) collection: CollectionArgs,
}

/// Arguments of the commands that collect metrics.
#[derive(Args, Clone, Debug)]
pub struct CollectionArgs {
    /// For each network namespace, list at most N destinations (nearest to exhaustion), N server ports (most TIME_WAIT sockets) and N
    /// owners of sockets; add the rest as `others`
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u16).range(0..=1000))]
    max_destinations: u16,
    /// Report at most N network namespaces
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    max_netns: u32,
    /// Count a socket in CLOSE_WAIT as silent if the last ACK of the peer is at least this old
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = parse_duration)]
    close_wait_after: Duration,
    #[command(flatten)]
    namespaces: ManyNetnsArgs,
}

impl CollectionArgs {
    pub(super) fn bounds(&self) -> SampleLimits {
        SampleLimits { destinations: self.max_destinations.into(), namespaces: self.max_netns as usize }
    }

    /// Whether the command can enter network namespaces other than its own.
    pub(super) fn enters_namespaces(&self) -> bool {
        self.namespaces.selects_namespaces()
    }

    /// Prepares a trace of the closes in the selected network namespaces. The namespace of a container can change, because the container
    /// may restart. So with `--container`, as with `--all-netns`, the closes of every namespace are traced.
    pub(super) fn trace(&self) -> Result<StartTracing, CommandError> {
        let namespaces = if self.namespaces.can_change() { None } else { Some(self.namespaces.namespaces()?) };
        let start = || Ok(Closes::start(&Selection::default(), namespaces, MethodChoice::Bpf)?.value);
        Ok(Box::new(start))
    }

    /// Checks that the selected network namespaces can be opened.
    pub(super) fn check(&self) -> Result<(), CommandError> {
        self.namespaces.namespaces().map(drop)
    }

    pub(super) fn collect(&self) -> Result<CollectedSurveys, CommandError> {
        let answer = Snapshot::of(self.namespaces.namespaces()?).surveys()?;
        Ok(CollectedSurveys { answer, silent: self.close_wait_after, closes: None })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FormatArg {
    /// Prometheus text format 0.0.4
    Text,
    /// OpenMetrics 1.0.0
    #[value(name = "openmetrics")]
    OpenMetrics,
}

fn textfile(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.extension().is_some_and(|extension| extension == "prom") {
        Ok(path)
    } else {
        Err("the textfile collector of node_exporter reads only files whose names end with .prom".into())
    }
}

/// Refuses the global options that select a format or an IP version.
pub(super) fn refuse_formats(global: &GlobalArgs) -> Result<(), CommandError> {
    if global.format() != Format::Table {
        let format = match global.format() {
            Format::Json => "json",
            Format::Ndjson => "ndjson",
            Format::Csv | Format::Table => "csv",
        };
        return Err(bad_value(
            &format,
            "--output <FORMAT>",
            "metrics have formats of their own (twtool metrics --format; for the exporter, the Accept header of a request)",
        ));
    }
    match global.ipv4_on_the_wire() {
        None => Ok(()),
        Some(ipv4) => {
            let flag = if ipv4 { "-4" } else { "-6" };
            Err(CommandError::Usage(format!("'{flag}' cannot be used here: metrics cover IPv4 and IPv6 together")))
        }
    }
}

/// Runs the command.
///
/// # Errors
/// See [`CommandError`].
pub fn run(args: &MetricsArgs, global: &GlobalArgs, context: &mut Context) -> Result<ExitStatus, CommandError> {
    refuse_formats(global)?;
    let format = match args.format {
        FormatArg::Text => metrics::MetricsFormat::Text,
        FormatArg::OpenMetrics if args.textfile.is_some() => {
            return Err(CommandError::Usage(
                "'--textfile' needs '--format text': the textfile collector of node_exporter does not read OpenMetrics"
                    .into(),
            ));
        }
        FormatArg::OpenMetrics => metrics::MetricsFormat::OpenMetrics,
    };
    let mut own = SelfCounts::start();
    let collected = args.collection.collect()?;
    own.count(&collected.answer.value);
    let mut samples = metrics::collect(&collected, args.collection.bounds());
    own.add(&mut samples);
    let text = encoding::encode(&samples, format);
    context.warn(&collected.answer.warnings);
    match &args.textfile {
        Some(path) => metrics::textfile::write(path, &text)
            .map_err(|error| CommandError::Usage(format!("writing '{}' failed: {error}", path.display())))?,
        None => context.out.write_all(text.as_bytes())?,
    }
    Ok(ExitStatus::complete(collected.answer.complete))
}
