//! The machine, beside sock_diag: syscalls, /proc, clock, terminal, files. Values out; nothing is formatted for people.

pub mod bind;
pub mod capabilities;
pub mod clock;
pub mod counts;
pub mod errno;
pub mod exec;
pub mod file;
pub mod interfaces;
pub mod interrupt;
mod kernel_sockets;
pub mod netns;
pub mod owners;
pub mod packet;
pub mod port_probe;
pub mod proc_net_tcp;
mod reuseport_note;
pub mod route;
pub mod rtnetlink;
pub mod sandbox;
pub mod services;
pub mod setting;
pub mod slab;
pub mod stdout;
pub mod sysctl;
pub mod tcp_repair;
pub mod terminal;
pub mod udp;
