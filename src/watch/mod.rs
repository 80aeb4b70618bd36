//! `twtool watch`: samples the buckets repeatedly, determines what happened to each, and streams or draws the result.
//!
//! ```text
//!   kernel or recorded series                                     output
//!   snapshot::bucket_sample  ----->  Sampler (a Tracker  -- Sample -->  stream
//!                                    per namespace)      -- Sample -->  CloseHistory  --->  screen
//! ```
//!
//! | file | owns |
//! |---|---|
//! | `events` | [`Event`]: what can happen to a bucket, and what proves it |
//! | `sample` | [`Sample`]: one sample of each namespace, as a plain value with its events |
//! | `tracker` | the comparison of two samples by cookie |
//! | `sampler` | [`Sampler`], which takes samples |
//! | `history` | [`CloseHistory`]: closes per second and the recent events |
//! | `screen` | the live screen |
//! | `stream` | samples and events as ndjson |
//!
//! A [`Sampler`] can work on one thread while another thread draws, because samples are plain values and `Send`.

pub mod events;
pub mod history;
pub mod sample;
pub mod sampler;
pub mod screen;
pub mod stream;
#[cfg(test)]
mod tests;
mod tracker;

pub use self::events::{Event, EventKind};
pub use self::history::CloseHistory;
pub use self::sample::{NetnsSample, Reselection, Sample};
pub use self::sampler::Sampler;
