//! twtool: the truth about TIME_WAIT and TCP ports on Linux.
//!
//! Data flows one way. Bytes come up from the kernel through [`sock_diag`] and [`sys`] and become [`model`] values. The
//! [`snapshot`] layer gathers everything that one answer needs into plain values, [`analysis`] draws conclusions from them, and
//! [`view`] prints them.
//!
//! ```text
//!     kernel                                            people, scripts
//!       |                                                      ^
//!   sock_diag   sys                                           view
//!        \      /                                              ^
//!         source  ------>  snapshot  ------>  analysis  -------+
//!                             ^
//!        commands: arguments -> question -> snapshot -> analysis -> view
//! ```
//!
//! | folder | owns | may import |
//! |---|---|---|
//! | `model` | the vocabulary: ports, addresses, sockets, facts | std |
//! | `parallel` | ordered work on several cores | std |
//! | `filter` | the filter language | `model` |
//! | `sock_diag` | the kernel interface of that name | `model`, `filter`, `parallel` |
//! | `sys` | every other system call, procfs, clocks, terminals | `model` |
//! | `source` | this kernel, procfs or a recording, behind one interface | `model`, `filter`, `sock_diag`, `sys` |
//! | `analysis` | conclusions from plain values, without I/O or clock | `model` |
//! | `snapshot` | one question, one typed answer, for one or many network namespaces | all above |
//! | `view` | values in, bytes out | `model`, `analysis`, `parallel` |
//! | `lab` | experiments in private namespaces | `model`, `sock_diag`, `sys` |
//! | `commands` | arguments and exit codes | `model`, `filter`, `snapshot`, `analysis`, `view`, `lab` |
//! | `cli`, `main` | dispatch, the real environment | `commands`, `sys` |
//!
//! `snapshot` imports `analysis` because a question may depend on an inference: a filter tests the direction of a bucket, and a
//! wait names the cause of each failed bind. A test holds the table.

#[cfg(not(target_os = "linux"))]
compile_error!("twtool reads interfaces of the Linux kernel (sock_diag, /proc) and builds for Linux alone");

#[cfg(target_os = "linux")]
pub mod analysis;
#[cfg(target_os = "linux")]
pub mod cli;
#[cfg(target_os = "linux")]
pub mod commands;
#[cfg(target_os = "linux")]
pub mod filter;
#[cfg(target_os = "linux")]
pub mod lab;
#[cfg(target_os = "linux")]
pub mod model;
#[cfg(target_os = "linux")]
pub mod parallel;
#[cfg(target_os = "linux")]
pub mod snapshot;
#[cfg(target_os = "linux")]
pub mod sock_diag;
#[cfg(target_os = "linux")]
pub mod source;
#[cfg(target_os = "linux")]
pub mod sys;
#[cfg(target_os = "linux")]
pub mod view;
