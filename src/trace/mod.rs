//! Reports live which process closes a TCP connection, with a BPF program. See [`Tracer`].
//!
//! | file | owns |
//! |---|---|
//! | `insn` | an assembler of BPF instructions |
//! | `btf` | a parser of BTF, the kernel's description of its types |
//! | `program` | the BPF program |
//! | `record` | the record of a close, and its decoder |
//!
//! # Why no BPF library
//!
//! twtool must start tracing within 30 ms, and with at most 24 MiB of memory. aya 0.14 needs 45 ms and 46 MiB (Linux 6.18, 2026-11-26).
//! aya spends most of this on parsing the whole BTF of the kernel, but the BPF program of twtool reads fewer than 30 members. libbpf needs
//! a C compiler and libelf. So twtool assembles the program in memory, and `sys::bpf` calls bpf(2).

pub mod btf;
pub mod insn;
pub mod program;
pub mod record;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use self::btf::{Btf, BtfError, BtfKind};
use self::program::{Maps, Offsets};
pub use self::record::{BpfRecord, Task};
use crate::sys::bpf::{self, MapKind, Object, Ring};
use crate::sys::errno::{self, FailureClass};
use crate::sys::{file, netns};

/// The size of the ring buffer in bytes. At 50,000 closes per second, the buffer holds the closes of 0.3 s.
pub const RING_BYTES: u32 = 4 << 20;

/// The maximum number of entries in the map PENDING (see [`program`]). An entry stores which process closed a socket, while this socket
/// is in FIN_WAIT_1, FIN_WAIT_2 or CLOSING.
pub const PENDING: u32 = 16 * 1024;

/// The reason why closes cannot be traced.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The kernel does not describe its types.
    #[error("the kernel's type information (BTF) cannot be read: {path}: {0}", path = btf::KERNEL)]
    NoBtf(io::Error),
    /// The kernel lacks a type or a member.
    #[error(transparent)]
    Btf(#[from] BtfError),
    /// The caller lacks a capability, or a sandbox refuses bpf(2).
    #[error("{call} returned {}", errno::name(.errno.raw_os_error().unwrap_or_default()))]
    NotPermitted {
        /// The command of bpf(2).
        call: &'static str,
        /// EPERM or EACCES.
        errno: io::Error,
    },
    /// bpf(2) failed for another reason, for example because the kernel lacks a feature.
    #[error("{call} failed: {source}{}", needed_kernel(.call))]
    Failed {
        /// The command of bpf(2).
        call: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The kernel lacks the functions that the program calls.
    #[error("Linux {0} is too old: BPF can name the process that closes a connection since Linux 5.12")]
    Old(String),
    /// The kernel's verifier rejects the program.
    #[error("the kernel rejects the BPF program: {0}")]
    Rejected(String),
}

/// The kernel version that a command of bpf(2) needs, as the end of a message; empty for most commands.
fn needed_kernel(call: &str) -> &'static str {
    if call == RING_CREATE { "; ring buffers need Linux 5.8" } else { "" }
}

impl TraceError {
    /// Whether the kernel refused bpf(2), usually because a capability is missing.
    #[must_use]
    pub const fn is_about_privilege(&self) -> bool {
        matches!(self, Self::NotPermitted { .. })
    }

    fn of(call: &'static str, error: io::Error) -> Self {
        match FailureClass::of(&error) {
            FailureClass::Refused => Self::NotPermitted { call, errno: error },
            _ => Self::Failed { call, source: error },
        }
    }
}

const MAP_CREATE: &str = "BPF_MAP_CREATE";
const RING_CREATE: &str = "BPF_MAP_CREATE of a ring buffer";
const PROG_LOAD: &str = "BPF_PROG_LOAD";
const TRACEPOINT_OPEN: &str = "BPF_RAW_TRACEPOINT_OPEN";

/// Traces the closes in every network namespace, from [`Tracer::start`] until the `Tracer` is dropped.
pub struct Tracer {
    ring: Ring,
    lost: Object,
    /// The two copies of the program (see [`program`]).
    programs: [Object; 2],
    /// The kernel detaches the copies when twtool closes these descriptors.
    _attached: [Object; 2],
}

impl Tracer {
    /// Loads the BPF program, and attaches it.
    ///
    /// # Errors
    /// See [`TraceError`].
    pub fn start() -> Result<Self, TraceError> {
        // Before Linux 5.11, the kernel also returns EPERM if the maps exceed RLIMIT_MEMLOCK. Then an error about a missing capability
        // would be wrong. So on every kernel that is too old to trace, `TraceError::Old` replaces the error.
        Self::load().map_err(|error| {
            let kernel = netns::kernel_release();
            if is_old(&kernel) { TraceError::Old(kernel) } else { error }
        })
    }

    fn load() -> Result<Self, TraceError> {
        // Creating the first map before reading the BTF shows early whether the caller has CAP_BPF.
        let pending = bpf::make_map(MapKind::LruHash, program::KEY, u32::from(record::LENGTH.unsigned_abs()), PENDING);
        let pending = pending.map_err(|error| TraceError::of(MAP_CREATE, error))?;
        let lost = bpf::make_map(MapKind::Array, 4, 8, 1).map_err(|error| TraceError::of(MAP_CREATE, error))?;
        let ring = Ring::new(RING_BYTES).map_err(|error| TraceError::of(RING_CREATE, error))?;
        let (offsets, tracepoint) = {
            let bytes = file::read(Path::new(btf::KERNEL), btf::MAX_BYTES).map_err(TraceError::NoBtf)?;
            let btf = Btf::parse(&bytes)?;
            (Offsets::find(&btf)?, btf.id(BtfKind::Typedef, program::TRACEPOINT)?)
        };
        let maps = Maps { pending: pending.number(), ring: ring.number(), lost: lost.number(), ring_bytes: RING_BYTES };
        let load = |untyped| load(&program::assemble(&offsets, maps, untyped), tracepoint);
        // In lockdown mode "confidentiality", the kernel rejects a program that calls bpf_probe_read_kernel.
        let (first, untyped) = match load(true) {
            Err(TraceError::Rejected(_)) => (load(false)?, false),
            loaded => (loaded?, true),
        };
        let attach = |program: &Object| bpf::attach(program).map_err(|error| TraceError::of(TRACEPOINT_OPEN, error));
        let programs = [first, load(untyped)?];
        let attached = [attach(&programs[0])?, attach(&programs[1])?];
        Ok(Self { ring, lost, programs, _attached: attached })
    }

    /// Calls `each` with every close since the previous call of `drain`.
    pub fn drain(&mut self, each: &mut dyn FnMut(BpfRecord)) {
        self.ring.drain(&mut |bytes| {
            if let Some(record) = BpfRecord::decode(bytes) {
                each(record);
            }
        });
    }

    /// The number of closes that were lost because the ring buffer was full.
    ///
    /// # Errors
    /// bpf(2) failed.
    pub fn lost(&self) -> io::Result<u64> {
        bpf::read_array(&self.lost, 0)
    }

    /// An upper bound of the number of closes that neither copy of the program has seen, because both were already running on the core.
    /// For each copy, the kernel counts all skipped runs, at a close and at every other change of a TCP state.
    ///
    /// # Errors
    /// bpf(2) failed.
    pub fn skipped(&self) -> io::Result<u64> {
        let [first, second] = &self.programs;
        Ok(bpf::recursion_misses(first)?.min(bpf::recursion_misses(second)?))
    }
}

/// The kernel wakes readers of this descriptor each time about another quarter of the ring buffer is full.
impl AsFd for Tracer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

/// Whether the kernel is older than 5.12.
fn is_old(kernel: &str) -> bool {
    let mut numbers = kernel.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse::<u32>().ok());
    numbers.next().zip(numbers.next()).is_some_and(|version| version < (5, 12))
}

/// Loads a program. The log of the verifier costs time, so it is requested only if the kernel rejects the program.
fn load(code: &[u8], tracepoint: u32) -> Result<Object, TraceError> {
    let error = match bpf::load_program(code, tracepoint, None) {
        Ok(program) => return Ok(program),
        Err(error) => error,
    };
    // EPERM means that a capability is missing or a sandbox refuses bpf(2). EACCES and EINVAL come from the verifier.
    if error.kind() == io::ErrorKind::PermissionDenied
        && errno::name(error.raw_os_error().unwrap_or_default()) == "EPERM"
    {
        return Err(TraceError::of(PROG_LOAD, error));
    }
    let mut log = vec![0; 256 * 1024];
    match bpf::load_program(code, tracepoint, Some(&mut log)) {
        Ok(program) => Ok(program),
        Err(_) => Err(match reason(&log) {
            Some(reason) => TraceError::Rejected(reason),
            None => TraceError::Failed { call: PROG_LOAD, source: error },
        }),
    }
}

/// Finds the reason for a rejection: the last line of the verifier's log that is not a statistic.
fn reason(log: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(log.split(|byte| *byte == 0).next()?).into_owned();
    let line = text.lines().rev().find(|line| !line.is_empty() && !line.starts_with("processed "))?;
    Some(line.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert!(is_old("5.10.0-33-cloud-amd64") && is_old("4.19.0"));
        assert!(!is_old("5.12.0") && !is_old("6.1.0-50") && !is_old("unknown"));
    }

    #[test]
    fn the_reason_is_the_last_line_before_the_statistics() {
        let log = b"0: R1=ctx()\nunknown func bpf_get_socket_cookie#46\nprocessed 12 insns (limit 1000000)\n\0\0";
        assert_eq!(reason(log).as_deref(), Some("unknown func bpf_get_socket_cookie#46"));
        assert_eq!(reason(b"\0\0"), None);
    }
}
