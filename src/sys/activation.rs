//! The sockets that systemd passes to a service (sd_listen_fds(3)).

use std::io;
use std::net::TcpListener;
use std::os::fd::{BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;

use socket2::{Domain, SockRef, Type};

/// The first descriptor that systemd passes (`SD_LISTEN_FDS_START`).
const FIRST: RawFd = 3;

/// A listening socket that systemd has passed.
#[derive(Debug)]
pub enum InheritedListener {
    /// IPv4 or IPv6.
    Tcp(TcpListener),
    /// A Unix socket.
    Unix(UnixListener),
}

/// Returns the sockets that systemd has passed (`LISTEN_FDS` is their number), if `LISTEN_PID` names this process. Call it once, because
/// it takes over the descriptors from 3 on. Nothing else in the process may own them.
pub fn listeners() -> io::Result<Vec<InheritedListener>> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
    if number("LISTEN_PID") != Some(std::process::id()) {
        return Ok(vec![]);
    }
    let count = number("LISTEN_FDS").and_then(|count| RawFd::try_from(count).ok()).unwrap_or(0);
    (FIRST..FIRST.saturating_add(count)).map(adopt).collect()
}

#[expect(unsafe_code, reason = "no safe wrapper takes over a descriptor that another program has opened")]
fn adopt(descriptor: RawFd) -> io::Result<InheritedListener> {
    let wrong = |why: &str| io::Error::new(io::ErrorKind::InvalidInput, format!("descriptor {descriptor} is {why}"));
    // SAFETY: F_SETFD changes only the state of a descriptor number; any number is allowed.
    if unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) } == -1 {
        return Err(wrong("not open"));
    }
    // SAFETY: the descriptor is open, and nothing closes it during this function.
    let borrowed = unsafe { BorrowedFd::borrow_raw(descriptor) };
    let socket = SockRef::from(&borrowed);
    if socket.r#type()? != Type::STREAM || !socket.is_listener()? {
        return Err(wrong("not a listening stream socket (ListenStream= in systemd.socket(5))"));
    }
    socket.set_nonblocking(true)?;
    let domain = socket.domain()?;
    // SAFETY: the descriptor is open, and systemd passes it for this use alone. It was open when the program started, so no other
    // part of the program owns it.
    let owned = unsafe { OwnedFd::from_raw_fd(descriptor) };
    match domain {
        Domain::IPV4 | Domain::IPV6 => Ok(InheritedListener::Tcp(owned.into())),
        Domain::UNIX => Ok(InheritedListener::Unix(owned.into())),
        _ => Err(wrong("neither a TCP nor a Unix socket")),
    }
}
