//! Builds the seccomp filter that stops a program at the watched system calls.
//!
//! The kernel runs the filter for each call (seccomp(2)). `SECCOMP_RET_TRACE` stops the thread for its tracer. Without a tracer, the
//! call fails with ENOSYS. A filter cannot be removed, so the tracer must stay until the last process with the filter has ended.

use std::io;

use libc::sock_filter;

use super::arch::{ALL, IO_URING_SETUP, SOCKETCALL_BIND, SOCKETCALL_CONNECT, SOCKETCALL_LISTEN};

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const JUMP_IF_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
#[cfg(target_endian = "little")]
const FIRST_ARGUMENT: u32 = 16;
#[cfg(target_endian = "big")]
const FIRST_ARGUMENT: u32 = 20;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const TRACE: u32 = libc::SECCOMP_RET_TRACE;

const fn op(code: u16, k: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf: 0, k }
}

/// Continues if the accumulator is `k`. Otherwise, skips the next `skipped` instructions.
const fn unless_equal_skip(k: u32, skipped: u8) -> sock_filter {
    sock_filter { code: JUMP_IF_EQUAL, jt: 0, jf: skipped, k }
}

fn program() -> Vec<sock_filter> {
    let traced = |numbers: &[u32]| -> Vec<sock_filter> {
        numbers.iter().flat_map(|number| [unless_equal_skip(*number, 1), op(RETURN, TRACE)]).collect()
    };
    let mut program = vec![op(LOAD, ARCH)];
    for arch in ALL {
        let mut block = vec![op(LOAD, NUMBER)];
        if arch.ignored_bit != 0 {
            block.push(op(AND, !arch.ignored_bit));
        }
        block.extend(traced(&[arch.bind, arch.listen, arch.connect, IO_URING_SETUP]));
        if let Some(number) = arch.socketcall {
            let calls = traced(&[SOCKETCALL_BIND, SOCKETCALL_CONNECT, SOCKETCALL_LISTEN]);
            block.push(unless_equal_skip(number, 1 + u8::try_from(calls.len()).unwrap_or(u8::MAX)));
            block.push(op(LOAD, FIRST_ARGUMENT));
            block.extend(calls);
        }
        block.push(op(RETURN, ALLOW));
        program.push(unless_equal_skip(arch.audit, u8::try_from(block.len()).unwrap_or(u8::MAX)));
        program.extend(block);
    }
    program.push(op(RETURN, ALLOW));
    program
}

/// Installs the filter for this process and all processes that it starts. Without CAP_SYS_ADMIN, this also sets no_new_privs, which
/// the kernel then requires (seccomp(2)). With no_new_privs, set-user-ID programs and file capabilities give no privilege.
pub(super) fn install() -> io::Result<()> {
    let mut program = program();
    match set_filter(&mut program) {
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => {
            rustix::thread::set_no_new_privs(true)?;
            set_filter(&mut program)
        }
        result => result,
    }
}

fn set_filter(program: &mut [sock_filter]) -> io::Result<()> {
    let length = libc::c_ushort::try_from(program.len()).map_err(io::Error::other)?;
    let program = libc::sock_fprog { len: length, filter: program.as_mut_ptr() };
    // SAFETY: the kernel copies the program during the call. The filter changes only calls that this process does not make
    // before it executes another program.
    #[expect(unsafe_code, reason = "seccomp has no safe wrapper that leaves no_new_privs alone")]
    let result = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::socket_calls::arch::{WatchedCall, watched};

    fn run(program: &[sock_filter], arch: u32, number: u32, first: u32) -> u32 {
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at];
            at += 1;
            match code {
                LOAD => {
                    accumulator = match k {
                        NUMBER => number,
                        ARCH => arch,
                        FIRST_ARGUMENT => first,
                        _ => panic!("offset {k}"),
                    }
                }
                AND => accumulator &= k,
                JUMP_IF_EQUAL => at += usize::from(if accumulator == k { jt } else { jf }),
                RETURN => return k,
                _ => panic!("code {code}"),
            }
        }
    }

    #[test]
    fn the_filter_stops_exactly_the_calls_that_the_tracer_knows() {
        let program = program();
        assert!(program.len() < 100, "{}", program.len());
        for arch in ALL {
            for number in (0..600).flat_map(|number| [number, number | arch.ignored_bit]) {
                for first in 0..8 {
                    let stops = run(&program, arch.audit, number, first) == TRACE;
                    let known = match watched(arch.audit, number.into(), [first.into(), 0, 0, 0, 0, 0]) {
                        Some(WatchedCall::SocketCall { call, .. }) => (2..=4).contains(&call),
                        other => other.is_some(),
                    };
                    assert_eq!(stops, known, "arch {:x}, call {number}, argument {first}", arch.audit);
                }
            }
        }
        assert_eq!(run(&program, 0, 49, 0), ALLOW, "calls of an unknown architecture are not watched");
    }
}
