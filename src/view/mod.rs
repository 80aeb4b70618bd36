//! Values in, bytes out: tables for eyes, JSON, NDJSON and CSV for programs.
//!
//! Every writer takes `&mut dyn Write`. Machine formats carry exact values; only tables round and shorten.

pub mod bind_test;
pub mod capacity;
mod chart;
pub mod column;
pub mod csv;
pub mod doctor;
pub mod experiment;
mod holder;
pub mod human;
pub mod json;
pub mod kill;
pub mod ladder;
pub mod list;
pub mod pcap;
pub mod port;
pub mod record;
pub mod steps;
pub mod style;
pub mod summary;
pub mod table;
pub mod text;
mod usual;
pub mod value;
pub mod wait;
