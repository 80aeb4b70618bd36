//! Classifies the errnos of failed system calls, and names them (errno(3)).
//!
//! All code that reads or looks up an object uses one policy. Only the first two classes of this table are a definite answer. After every
//! other failure, it is unknown whether the object exists. So twtool repeats the call, or reports what it could not read. If a call itself
//! is the question (a bind(), a route look-up, the test of a port), other errnos are answers, too, for example EADDRINUSE.
//!
//! | [`FailureClass`] | what twtool concludes |
//! |---|---|
//! | `Absent` | the file or the process does not exist, or this kernel has no such setting, family or protocol |
//! | `Refused` | the caller has no permission to use the object, or a sandbox refuses the call |
//! | `Interrupted` | nothing: twtool repeats the call |
//! | `Exhausted` | nothing: twtool reports the failure; after ENOBUFS and ENOMEM, it first repeats the call up to three times |
//! | `Other` | nothing: twtool reports the failure |

use std::io;

use nix::errno::Errno;

/// The class of a failed system call: what the failure says about the requested object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureClass {
    /// The object does not exist, or the kernel does not support it.
    Absent,
    /// The caller has no permission to use the object.
    Refused,
    /// A signal interrupted the call.
    Interrupted,
    /// The kernel or the process lacks a resource for the call.
    Exhausted,
    /// Any other failure.
    Other,
}

impl FailureClass {
    /// Classifies an error. An error without an errno is [`Self::Other`].
    #[must_use]
    pub fn of(error: &io::Error) -> Self {
        let Some(errno) = error.raw_os_error().map(Errno::from_raw) else { return Self::Other };
        match errno {
            Errno::ENOENT
            | Errno::ENOTDIR
            | Errno::ESRCH
            | Errno::ENODEV
            | Errno::ENXIO
            | Errno::ENOSYS
            | Errno::EOPNOTSUPP
            | Errno::ENOPROTOOPT
            | Errno::EAFNOSUPPORT
            | Errno::EPROTONOSUPPORT
            | Errno::ECONNREFUSED => Self::Absent,
            Errno::EPERM | Errno::EACCES => Self::Refused,
            Errno::EINTR => Self::Interrupted,
            Errno::ENOBUFS | Errno::ENOMEM | Errno::EAGAIN | Errno::EMFILE | Errno::ENFILE => Self::Exhausted,
            _ => Self::Other,
        }
    }

    /// Whether the failure is a definite answer: the object does not exist, or the caller has no permission to use it.
    #[must_use]
    pub const fn is_definite(self) -> bool {
        matches!(self, Self::Absent | Self::Refused)
    }
}

/// The maximum number of repeats of a call for which the kernel had no memory.
const REPEATS: u32 = 3;

/// Makes a call, and repeats it after EINTR, and up to three times after ENOBUFS or ENOMEM. `call` must change nothing if it fails.
pub fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let mut repeats = 0;
    loop {
        let result = call();
        let errno = result.as_ref().err().and_then(io::Error::raw_os_error).map(Errno::from_raw);
        match errno {
            Some(Errno::EINTR) => {}
            Some(Errno::ENOBUFS | Errno::ENOMEM) if repeats < REPEATS => repeats += 1,
            _ => return result,
        }
    }
}

/// Converts an error of the class [`FailureClass::Absent`] to `None`. Every other failure remains an error.
pub fn if_present<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if FailureClass::of(&error) == FailureClass::Absent => Ok(None),
        Err(error) => Err(error),
    }
}

/// Converts an error of the class [`FailureClass::Absent`] or [`FailureClass::Refused`] to `None`. Every other failure remains an error.
pub fn if_visible<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match if_present(result) {
        Err(error) if FailureClass::of(&error) == FailureClass::Refused => Ok(None),
        result => result,
    }
}

macro_rules! names {
    ($errno:expr, $($name:ident)*) => {
        match $errno {
            $(Errno::$name => stringify!($name),)*
            _ => "an errno that has no name here",
        }
    };
}

/// The symbolic name of an errno.
#[must_use]
pub fn name(errno: i32) -> &'static str {
    names! {
        Errno::from_raw(errno),
        EPERM ENOENT ESRCH EINTR EIO ENXIO EBADF EAGAIN ENOMEM
        EACCES EFAULT ENODEV EINVAL ENFILE EMFILE EPIPE ENOSYS EADDRINUSE
        EADDRNOTAVAIL EAFNOSUPPORT EALREADY ECONNABORTED ECONNREFUSED ECONNRESET EDESTADDRREQ EHOSTDOWN EHOSTUNREACH
        EINPROGRESS EISCONN ENETDOWN ENETRESET ENETUNREACH ENOBUFS ENOPROTOOPT ENOTCONN ENOTDIR
        ENOTSOCK EOPNOTSUPP EPROTO EPROTONOSUPPORT EROFS ETIMEDOUT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(errno: Errno) -> io::Error {
        errno.into()
    }

    #[test]
    fn only_absence_and_refusal_are_definite_answers() {
        for errno in [Errno::ENOENT, Errno::ESRCH, Errno::EAFNOSUPPORT, Errno::EPROTONOSUPPORT, Errno::EOPNOTSUPP] {
            assert_eq!(FailureClass::of(&failed(errno)), FailureClass::Absent, "{errno}");
        }
        for errno in [Errno::EPERM, Errno::EACCES] {
            assert_eq!(FailureClass::of(&failed(errno)), FailureClass::Refused, "{errno}");
        }
        for errno in [Errno::ENOBUFS, Errno::ENOMEM, Errno::EMFILE, Errno::ENFILE, Errno::EINTR, Errno::EIO] {
            assert!(!FailureClass::of(&failed(errno)).is_definite(), "{errno}");
        }
        assert_eq!(FailureClass::of(&io::Error::other("no errno")), FailureClass::Other);
    }

    #[test]
    fn a_call_is_repeated_always_after_eintr_and_three_times_without_memory() {
        let calls = |errno: Errno, failures: u32| {
            let mut made = 0;
            let result = retry(|| {
                made += 1;
                if made <= failures { Err(failed(errno)) } else { Ok(()) }
            });
            (made, result.is_ok())
        };
        assert_eq!(calls(Errno::EINTR, 1000), (1001, true));
        assert_eq!(calls(Errno::ENOBUFS, 1), (2, true));
        assert_eq!(calls(Errno::ENOMEM, 1000), (REPEATS + 1, false));
        for errno in [Errno::EMFILE, Errno::ENFILE, Errno::EACCES, Errno::ENOENT, Errno::EIO] {
            assert_eq!(calls(errno, 1), (1, false), "{errno}");
        }
    }

    #[test]
    fn an_errno_has_its_symbolic_name() {
        assert_eq!([name(libc::EADDRINUSE), name(libc::EIO), name(libc::EPROTO)], ["EADDRINUSE", "EIO", "EPROTO"]);
        assert!(name(4000).contains("no name"));
    }

    #[test]
    fn if_present_returns_none_only_for_absence() {
        assert!(matches!(if_present(Ok(1)), Ok(Some(1))));
        assert!(matches!(if_present::<()>(Err(failed(Errno::ENOENT))), Ok(None)));
        assert!(if_present::<()>(Err(failed(Errno::EACCES))).is_err());
        assert!(if_present::<()>(Err(failed(Errno::EMFILE))).is_err());
    }
}
