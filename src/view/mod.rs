//! Output formats: tables and pages for people, and JSON, ndjson and csv for programs.
//!
//! JSON, ndjson and csv have exact values, except that `trace` and `watch` round rates and shares to three decimals. Tables and pages
//! round and shorten values.

pub mod bind_test;
pub mod capacity;
pub mod chart;
pub mod column;
pub mod connect_test;
pub mod csv;
pub mod doctor;
pub mod experiment;
mod fast_path;
mod holder;
pub mod human;
pub mod json;
pub mod kill;
pub mod ladder;
pub mod list;
pub mod owner;
pub mod pcap;
pub mod port;
pub mod record;
pub mod steps;
pub mod style;
pub mod summary;
pub mod table;
pub mod text;
#[cfg(feature = "trace")]
pub mod trace;
pub mod value;
pub mod wait;
pub mod why;
