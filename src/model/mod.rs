//! The types of the domain: ports, addresses, sockets, and the facts of a network namespace, as plain values.
//!
//! These types do no I/O and read no clock. They format single values, and phrases that several layers need. The module imports
//! only std, so that every other layer can use it.

pub mod addr;
pub mod bind;
pub mod call;
pub mod close;
pub mod command;
pub mod container;
pub mod demo;
pub mod experiment;
pub mod facts;
pub mod health;
pub mod interfaces;
pub mod kernel_counts;
pub mod listeners;
pub mod name;
pub mod netns;
pub mod owner;
pub mod port;
pub mod port_set;
pub mod process;
pub mod removal;
pub mod row;
pub mod services;
pub mod setting;
pub mod socket;
pub mod target;
pub mod time;
pub mod tw_reuse;
pub mod user;
