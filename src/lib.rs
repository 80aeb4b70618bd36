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

pub mod analysis;
pub mod cli;
pub mod commands;
pub mod filter;
pub mod lab;
pub mod model;
pub mod parallel;
pub mod sock_diag;
pub mod source;
pub mod sys;
pub mod view;
