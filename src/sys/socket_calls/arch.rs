//! Lists the numbers of the watched system calls.

pub(super) struct Arch {
    /// `AUDIT_ARCH_*` of linux/audit.h.
    pub(super) audit: u32,
    /// The bit that the variant x32 sets in its numbers; 0 if the architecture has no such variant.
    pub(super) ignored_bit: u32,
    pub(super) bind: u32,
    pub(super) listen: u32,
    pub(super) connect: u32,
    /// `socketcall`, through which old i386 programs make every socket call.
    pub(super) socketcall: Option<u32>,
}

/// The number of io_uring_setup(2). It is the same in all architectures of [`ALL`], which share new numbers since Linux 5.1.
pub(super) const IO_URING_SETUP: u32 = 425;

/// Values of the first argument of socketcall (linux/net.h).
pub(super) const SOCKETCALL_BIND: u32 = 2;
pub(super) const SOCKETCALL_CONNECT: u32 = 3;
pub(super) const SOCKETCALL_LISTEN: u32 = 4;

/// `__X32_SYSCALL_BIT` of asm/unistd.h.
const X32: u32 = 0x4000_0000;

/// The architectures that twtool supports, and i386 and arm, whose programs the kernels of x86-64 and aarch64 also run.
pub(super) const ALL: [Arch; 5] = [
    // x86-64 and x32.
    Arch { audit: 0xc000_003e, ignored_bit: X32, bind: 49, listen: 50, connect: 42, socketcall: None },
    // i386.
    Arch { audit: 0x4000_0003, ignored_bit: 0, bind: 361, listen: 363, connect: 362, socketcall: Some(102) },
    // aarch64.
    Arch { audit: 0xc000_00b7, ignored_bit: 0, bind: 200, listen: 201, connect: 203, socketcall: None },
    // arm.
    Arch { audit: 0x4000_0028, ignored_bit: 0, bind: 282, listen: 284, connect: 283, socketcall: None },
    // riscv64.
    Arch { audit: 0xc000_00f3, ignored_bit: 0, bind: 200, listen: 201, connect: 203, socketcall: None },
];

/// A watched call, with the arguments that are in the registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WatchedCall {
    Bind {
        fd: u64,
        addr: u64,
        length: u64,
    },
    Listen {
        fd: u64,
    },
    Connect {
        fd: u64,
        addr: u64,
        length: u64,
    },
    /// The arguments are at most three 32-bit words at the address `args`.
    SocketCall {
        call: u32,
        args: u64,
    },
    IoUringSetup,
}

pub(super) fn watched(audit: u32, number: u64, args: [u64; 6]) -> Option<WatchedCall> {
    let arch = ALL.iter().find(|arch| arch.audit == audit)?;
    let number = u32::try_from(number).ok()? & !arch.ignored_bit;
    let [fd, addr, length, ..] = args;
    Some(match number {
        _ if number == arch.bind => WatchedCall::Bind { fd, addr, length },
        _ if number == arch.listen => WatchedCall::Listen { fd },
        _ if number == arch.connect => WatchedCall::Connect { fd, addr, length },
        _ if Some(number) == arch.socketcall => WatchedCall::SocketCall { call: u32::try_from(fd).ok()?, args: addr },
        IO_URING_SETUP => WatchedCall::IoUringSetup,
        _ => return None,
    })
}

/// The call that an i386 program makes through socketcall, with the three words of its arguments.
pub(super) fn through_socketcall(call: u32, [fd, addr, length]: [u32; 3]) -> Option<WatchedCall> {
    let (fd, addr, length) = (fd.into(), addr.into(), length.into());
    match call {
        SOCKETCALL_BIND => Some(WatchedCall::Bind { fd, addr, length }),
        SOCKETCALL_LISTEN => Some(WatchedCall::Listen { fd }),
        SOCKETCALL_CONNECT => Some(WatchedCall::Connect { fd, addr, length }),
        _ => None,
    }
}
