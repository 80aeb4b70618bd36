//! twtool: the truth about TIME_WAIT and ports on Linux.
//!
//! Bytes come up from the kernel through [`sock_diag`], become [`model`] values, are reasoned about in [`analysis`], and
//! leave through [`view`]. Only [`commands`] connects these, and only `sock_diag::transport` and [`sys`] touch the
//! machine.
//!
//! ```text
//!            kernel                                        a person, a script
//!              |                                                    ^
//!   sock_diag (codec, dump, transport)    sys (binds, /proc, ...)   |
//!              |                            |                     view
//!              +--------- source -----------+                       ^
//!                            |                                      |
//!                        commands: model values -> filter, analysis +
//! ```
//!
//! | folder | may import |
//! |---|---|
//! | `model`, `parallel` | std |
//! | `filter`, `sys`, `analysis` | `model` |
//! | `sock_diag` | `model`, `filter`, `parallel` |
//! | `view` | `model`, `analysis`, `parallel` |
//! | `source` | `model`, `filter`, `sock_diag`, `sys` |
//! | `lab` | `model`, `sock_diag`, `sys` |
//! | `commands` | all above |
//! | `cli`, `main` | `commands`; `main` also `sys`, for the real environment |
//!
//! A test holds the table.

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
pub mod sock_diag;
#[cfg(target_os = "linux")]
pub mod source;
#[cfg(target_os = "linux")]
pub mod sys;
#[cfg(target_os = "linux")]
pub mod view;
