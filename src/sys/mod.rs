//! Wraps the operating system except sock_diag: system calls, /proc, clocks, the terminal, files.

#[cfg(feature = "exporter")]
pub mod activation;
pub mod bind;
#[cfg(feature = "trace")]
pub mod bpf;
#[cfg(feature = "cli")]
pub mod caller;
pub mod capabilities;
pub mod cgroup;
pub mod clock;
#[cfg(feature = "cli")]
pub mod confinement;
pub mod counts;
pub mod descriptors;
pub mod errno;
#[cfg(feature = "cli")]
pub mod exec;
pub mod file;
pub mod folder;
#[cfg(feature = "cli")]
mod inherited;
pub mod interfaces;
pub mod interrupt;
mod kernel_sockets;
pub mod netns;
#[cfg(feature = "exporter")]
pub mod own_process;
#[cfg(feature = "cli")]
pub mod owner_socket;
pub mod owners;
#[cfg(feature = "cli")]
pub mod packet;
pub mod port_probe;
pub mod proc_net_tcp;
mod reuseport_note;
pub mod route;
#[cfg(feature = "cli")]
pub mod rtnetlink;
#[cfg(feature = "cli")]
pub mod sandbox;
#[cfg(feature = "watch")]
pub mod screen_input;
#[cfg(feature = "watch")]
pub mod screen_output;
#[cfg(feature = "watch")]
mod screen_signals;
pub mod services;
pub mod setting;
pub mod slab;
#[cfg(feature = "cli")]
pub mod socket_calls;
#[cfg(feature = "cli")]
pub mod stdout;
pub mod sysctl;
#[cfg(feature = "cli")]
pub mod tcp_repair;
#[cfg(feature = "cli")]
pub mod terminal;
pub mod udp;
pub mod unlisted;
mod user_namespace;
mod user_thread;
pub mod users;
