//! Makes requests of ptrace(2), as safe functions. The functions of nix are not used, because nix lacks PTRACE_LISTEN and real-time
//! signals.

use std::io;

/// The events of ptrace(2), with their numbers in a wait status.
pub(super) mod event {
    pub(in super::super) const FORK: i32 = libc::PTRACE_EVENT_FORK;
    pub(in super::super) const VFORK: i32 = libc::PTRACE_EVENT_VFORK;
    pub(in super::super) const CLONE: i32 = libc::PTRACE_EVENT_CLONE;
    pub(in super::super) const EXEC: i32 = libc::PTRACE_EVENT_EXEC;
    pub(in super::super) const SECCOMP: i32 = libc::PTRACE_EVENT_SECCOMP;
    pub(in super::super) const STOP: i32 = libc::PTRACE_EVENT_STOP;
}

/// A request whose arguments are plain numbers.
#[derive(Clone, Copy, Debug)]
pub(super) enum TraceRequest {
    /// Attaches to a thread without stopping it. The number is a set of options.
    Seize,
    /// Stops a seized thread.
    Interrupt,
    /// Leaves a stopped thread stopped until it gets SIGCONT. The request itself does not wait.
    Listen,
    /// Resumes a thread. The number is a signal to deliver, or 0.
    Cont,
    /// Resumes a thread until a system call begins or ends. The number is a signal to deliver, or 0.
    Syscall,
    /// Resumes a thread and detaches from it. The number is a signal to deliver, or 0.
    Detach,
}

/// Makes a request of ptrace(2). [`TraceRequest`] explains `number`.
pub(super) fn request(request: TraceRequest, tid: i32, number: i32) -> io::Result<()> {
    let request = match request {
        TraceRequest::Seize => libc::PTRACE_SEIZE,
        TraceRequest::Interrupt => libc::PTRACE_INTERRUPT,
        TraceRequest::Listen => libc::PTRACE_LISTEN,
        TraceRequest::Cont => libc::PTRACE_CONT,
        TraceRequest::Syscall => libc::PTRACE_SYSCALL,
        TraceRequest::Detach => libc::PTRACE_DETACH,
    };
    // SAFETY: these requests take numbers and no pointers. They change the other process, not this one.
    #[expect(unsafe_code, reason = "nix lacks PTRACE_LISTEN and real-time signals")]
    let result = unsafe { libc::ptrace(request, tid, 0_usize, libc::c_long::from(number)) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether the kernel itself answers ptrace(2), and not a seccomp filter. Process 0 does not exist, so the kernel answers ESRCH.
pub(super) fn is_answered_by_kernel() -> bool {
    request(TraceRequest::Cont, 0, 0).err().and_then(|error| error.raw_os_error()) == Some(libc::ESRCH)
}

fn fill<const WORDS: usize>(request: libc::c_uint, tid: i32, addr: usize) -> io::Result<[u64; WORDS]> {
    let mut words = [0_u64; WORDS];
    // SAFETY: each caller passes a request that writes at most `WORDS` words through its last argument.
    #[expect(unsafe_code, reason = "ptrace has no safe wrapper that works with every libc")]
    #[allow(clippy::useless_conversion, reason = "the type of a request differs between glibc and musl")]
    let result = unsafe { libc::ptrace(request.try_into().unwrap_or_default(), tid, addr, words.as_mut_ptr()) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(words) }
}

/// Reads the number of an event: for exec, the tid that the thread had when it called execve(2); for fork, vfork and clone, the tid of
/// the new thread.
pub(super) fn event_message(tid: i32) -> io::Result<i32> {
    const GETEVENTMSG: libc::c_uint = 0x4201;
    // The kernel writes one unsigned long.
    let [message] = fill::<1>(GETEVENTMSG, tid, 0)?;
    i32::try_from(message).map_err(io::Error::other)
}

/// Reads the number, the code (`si_code`) and the sender of the signal that a thread is about to get.
pub(super) fn signal_info(tid: i32) -> io::Result<(i32, i32, i32)> {
    const GETSIGINFO: libc::c_uint = 0x4202;
    // The kernel writes a siginfo_t of 128 bytes: three numbers, padding, and a union that begins with the sender.
    let words = fill::<16>(GETSIGINFO, tid, 0)?;
    let number = |at: usize| {
        let bytes = words[at / 2].to_ne_bytes();
        let half = if at.is_multiple_of(2) {
            [bytes[0], bytes[1], bytes[2], bytes[3]]
        } else {
            [bytes[4], bytes[5], bytes[6], bytes[7]]
        };
        i32::from_ne_bytes(half)
    };
    Ok((number(0), number(2), number(4)))
}

/// A stop at a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SyscallStop {
    /// The call begins.
    Entry {
        /// `AUDIT_ARCH_*` of linux/audit.h.
        arch: u32,
        /// The number of the call in that architecture.
        number: u64,
        /// The arguments.
        args: [u64; 6],
    },
    /// The call ends with this result: a negative number is an errno.
    Exit(i64),
}

/// Reads the system call at which a thread is stopped (`struct ptrace_syscall_info`, since Linux 5.3). `None`: another kind of stop.
pub(super) fn syscall_stop(tid: i32) -> io::Result<Option<SyscallStop>> {
    const GET_SYSCALL_INFO: libc::c_uint = 0x420e;
    const WORDS: usize = 11;
    const ENTRY: u8 = 1;
    const EXIT: u8 = 2;
    const SECCOMP: u8 = 3;
    // The kernel writes at most as many bytes as the third argument says: op, arch, two pointers, and a union.
    let words = fill::<WORDS>(GET_SYSCALL_INFO, tid, WORDS * size_of::<u64>())?;
    let [op, _, _, _, arch @ ..] = words[0].to_ne_bytes();
    Ok(match op {
        ENTRY | SECCOMP => Some(SyscallStop::Entry {
            arch: u32::from_ne_bytes(arch),
            number: words[3],
            args: [words[4], words[5], words[6], words[7], words[8], words[9]],
        }),
        EXIT => Some(SyscallStop::Exit(words[3].cast_signed())),
        _ => None,
    })
}
