//! Symbolic names of errnos (errno(3)).

use nix::errno::Errno;

/// The name of an errno that bind(2), listen(2), read(2), SOCK_DESTROY or their security hooks are known to give.
#[must_use]
pub fn name(errno: i32) -> &'static str {
    match Errno::from_raw(errno) {
        Errno::EPERM => "EPERM",
        Errno::ENOENT => "ENOENT",
        Errno::EACCES => "EACCES",
        Errno::EINVAL => "EINVAL",
        Errno::ENODEV => "ENODEV",
        Errno::ENOPROTOOPT => "ENOPROTOOPT",
        Errno::ENOBUFS => "ENOBUFS",
        Errno::ENOMEM => "ENOMEM",
        Errno::EOPNOTSUPP => "EOPNOTSUPP",
        Errno::ENETUNREACH => "ENETUNREACH",
        Errno::ECONNRESET => "ECONNRESET",
        Errno::EPIPE => "EPIPE",
        _ => "unknown",
    }
}
