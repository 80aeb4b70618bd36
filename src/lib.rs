//! Answers questions about TIME_WAIT and TCP ports on Linux, for programs:
//! - Which timewait buckets (the kernel's structures for sockets in TIME_WAIT) exist, and when do they end?
//! - Does bind() on a port work, and what blocks it?
//! - How many more connections to a destination are possible?
//! - Which settings and counters of the kernel show a problem?
//!
//! A [`Snapshot`] selects the source: network [`Namespaces`], and the kernel or a recording. A method that asks a
//! question returns an [`Answer`]: the value, whether it is complete, and warnings.
//!
//! ```
//! use twtool::{Selection, Snapshot};
//!
//! # fn main() -> Result<(), twtool::SnapshotError> {
//! let answer = Snapshot::here().count_buckets(&Selection::expression("dport = :443 and expires < 10s"))?;
//! println!("{} buckets, complete: {}", answer.value, answer.complete);
//! for warning in &answer.warnings {
//!     println!("{warning}");
//! }
//! # Ok(())
//! # }
//! ```
//!
//! `examples/` has two programs. Without the feature `cli`, which is on by default, the command line is not built.
//!
//! # How it is built
//!
//! Data flows one way, from the kernel to people and scripts:
//!
//! ```text
//!     kernel                                            people, scripts
//!       |                                                      ^
//!   sock_diag   sys   trace                                   view
//!        \      / \     |                                      ^
//!         source --> snapshot  --------->  analysis  ----------+
//!                       ^
//!        commands: arguments -> question -> snapshot -> analysis -> view
//! ```
//!
//! | folder | owns | may import |
//! |---|---|---|
//! | `model` | the types of the domain: ports, addresses, sockets, facts | std |
//! | `parallel` | ordered work on several cores | std |
//! | `filter` | the filter language | `model` |
//! | `sock_diag` | the kernel interface of that name | `model`, `filter`, `parallel`, `sys` |
//! | `sys` | other system calls, procfs, clocks, terminals | `model` |
//! | `trace` | live reports of which process closes a connection: a BPF program and its records | `model`, `sys` |
//! | `source` | one interface for three sources of sockets: sock_diag, procfs, a recording | `model`, `filter`, `sock_diag`, `sys` |
//! | `analysis` | conclusions from plain values, without I/O or clock | `model` |
//! | `snapshot` | collects everything that one answer needs, for one or many network namespaces | all above |
//! | `view` | formats values as text, JSON and csv | `model`, `analysis`, `parallel` |
//! | `lab` | experiments in private namespaces | `model`, `sock_diag`, `sys` |
//! | `watch` | repeated reads: events, streams, the live screen | `model`, `filter`, `snapshot`, `analysis`, `view`, `sys` |
//! | `metrics` | families and text formats of Prometheus | `model`, `analysis`, `snapshot`, `sys` |
//! | `exporter` | the HTTP server of the metrics | `snapshot`, `metrics`, `view`, `sys` |
//! | `commands` | arguments and exit codes | `model`, `filter`, `snapshot`, `analysis`, `view`, `watch`, `metrics`, `exporter`, `lab` |
//! | `cli`, `main` | selection of the command, standard streams | `commands`, `sys` |
//!
//! `snapshot` imports `analysis` because a question may depend on an inference: a filter tests the direction of a bucket, and a
//! wait names the cause of each failed bind. A test (`tests/layers.rs`) fails if an import breaks the table.
//!
//! `docs/architecture.md` has the steps to add a column, a question, a subcommand, a metric, a setting, or a word of the filter language.

#[cfg(not(target_os = "linux"))]
compile_error!("twtool reads interfaces of the Linux kernel (sock_diag, /proc) and builds only for Linux");

// The modules are public only for the program, the tests, the fuzz targets and the benchmarks of this package, and may change at any
// time. No macro declares them, because rustfmt does not follow modules that a macro declares.
#[cfg(target_os = "linux")]
#[doc(hidden)]
pub mod analysis;
#[cfg(all(target_os = "linux", feature = "cli"))]
#[doc(hidden)]
pub mod cli;
#[cfg(all(target_os = "linux", feature = "cli"))]
#[doc(hidden)]
pub mod commands;
#[cfg(all(target_os = "linux", feature = "exporter"))]
#[doc(hidden)]
pub mod exporter;
#[cfg(target_os = "linux")]
#[doc(hidden)]
pub mod filter;
#[cfg(all(target_os = "linux", feature = "cli"))]
#[doc(hidden)]
pub mod lab;
#[cfg(all(target_os = "linux", feature = "exporter"))]
#[doc(hidden)]
pub mod metrics;
#[cfg(target_os = "linux")]
#[doc(hidden)]
pub mod model;
#[cfg(target_os = "linux")]
#[doc(hidden)]
pub mod parallel;
#[cfg(target_os = "linux")]
#[doc(hidden)]
pub mod snapshot;
#[cfg(target_os = "linux")]
#[doc(hidden)]
pub mod sock_diag;
#[cfg(target_os = "linux")]
#[doc(hidden)]
pub mod source;
#[cfg(target_os = "linux")]
#[doc(hidden)]
pub mod sys;
#[cfg(all(target_os = "linux", feature = "trace"))]
#[doc(hidden)]
pub mod trace;
#[cfg(all(target_os = "linux", feature = "cli"))]
#[doc(hidden)]
pub mod view;
#[cfg(all(target_os = "linux", feature = "watch"))]
#[doc(hidden)]
pub mod watch;

#[cfg(target_os = "linux")]
#[doc(inline)]
pub use self::{
    analysis::{
        capacity::Destination,
        doctor::{Check, LeakThreshold},
        groups::GroupBy,
        summary::Summary,
        verdict::Conclusion,
    },
    model::{
        bind::{Attempt, Holder, ReuseOptions},
        command::Shell,
        facts::Facts,
        health::Health,
        port::{Port, PortArg},
        row::{Direction, Order, Row},
        socket::TimeWaitBucket,
    },
    snapshot::{
        Answer, Buckets, Capacity, CapacityQuestion, Checkup, CountedBuckets, Input, Namespaces, PortState, RowLimit,
        Selection, Snapshot, SnapshotError, SourceChoice, port::PortQuestion, port_use::PortUses,
    },
};
