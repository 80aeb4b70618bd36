//! Turns surveys of network namespaces into metrics of Prometheus, as text. A *survey* is what twtool has read about one namespace
//! (`snapshot::survey`). A *family* is a metric with one name; its *samples* differ in the values of their labels.
//!
//! | file | contents |
//! |---|---|
//! | `family` | every family: name, type, labels, help |
//! | `samples` | the samples of one collection |
//! | `self_counts` | the samples about twtool itself |
//! | `closes` | counts the closes that a tracer reports |
//! | `survey` | turns surveys into samples, and limits their number |
//! | `encoding` | the text formats 0.0.4 and OpenMetrics |
//! | `textfile` | writes a file for the textfile collector of node_exporter |
//!
//! The encoder is part of twtool, because the crate `prometheus-client` writes only OpenMetrics. promtool 2.42 and node_exporter
//! 1.5 (Debian 12) refuse OpenMetrics: a counter has another name in its `# TYPE` line, and the types `info` and `unknown` do not
//! exist in 0.0.4.

pub mod closes;
pub mod encoding;
pub mod family;
pub mod samples;
pub mod self_counts;
pub mod survey;
pub mod textfile;

pub use closes::CloseCounts;
pub use encoding::MetricsFormat;
pub use family::{MetricFamily, MetricKind};
pub use samples::Samples;
pub use self_counts::SelfCounts;
pub use survey::{CollectedSurveys, SampleLimits, collect};
