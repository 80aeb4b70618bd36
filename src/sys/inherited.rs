//! Reads two properties that this process inherited: whether standard output is closed, and whether SIGPIPE is ignored. The Rust
//! runtime changes both before main(): it opens /dev/null in place of closed standard descriptors, and ignores SIGPIPE. So a
//! function in `.init_array` reads both properties before the runtime starts.

use std::sync::atomic::{AtomicBool, Ordering};

static STDOUT_WAS_CLOSED: AtomicBool = AtomicBool::new(false);
static SIGPIPE_WAS_IGNORED: AtomicBool = AtomicBool::new(false);

extern "C" fn read() {
    // SAFETY: fcntl(F_GETFD) only reads the state of a descriptor, and every number is allowed. nix's wrapper takes a
    // `BorrowedFd`, which must be open, but this code checks whether the descriptor is open.
    #[expect(unsafe_code, reason = "no safe wrapper takes a descriptor that may be closed")]
    let closed = unsafe { libc::fcntl(libc::STDOUT_FILENO, libc::F_GETFD) } == -1;
    STDOUT_WAS_CLOSED.store(closed, Ordering::Relaxed);
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action, sigaction() only writes the present action to the variable. Zeros are valid in each of its fields.
    #[expect(unsafe_code, reason = "no safe wrapper reads an action without a change")]
    let handler = unsafe {
        libc::sigaction(libc::SIGPIPE, std::ptr::null(), action.as_mut_ptr());
        action.assume_init().sa_sigaction
    };
    SIGPIPE_WAS_IGNORED.store(handler == libc::SIG_IGN, Ordering::Relaxed);
}

// SAFETY: functions in .init_array run once before main(), single-threaded, as extern "C" fn() (System V ABI). This one
// makes system calls and stores to statics. It does not need the Rust runtime.
#[expect(unsafe_code, reason = "placing a static in a named section")]
#[used]
#[unsafe(link_section = ".init_array")]
static READ: extern "C" fn() = read;

/// Whether standard output was closed when this process started.
pub(super) fn stdout_was_closed() -> bool {
    STDOUT_WAS_CLOSED.load(Ordering::Relaxed)
}

/// Whether SIGPIPE was ignored when this process started, as systemd does for its services (`IgnoreSIGPIPE=`).
pub(super) fn sigpipe_was_ignored() -> bool {
    SIGPIPE_WAS_IGNORED.load(Ordering::Relaxed)
}
