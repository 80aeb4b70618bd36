//! Bind attempts: each makes a socket, sets its options, binds it, perhaps listens on it, and closes it.
//!
//! This is the only place that touches the tested port. It holds it for microseconds, and never listens unless asked.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::num::NonZeroU32;

use nix::errno::Errno as NixErrno;
use socket2::{Domain, Socket, Type};

use super::errno::{Refusal, name, retry};
use super::interrupt::Held;
use super::reuseport_note::NoteGuard;
use crate::model::bind::{Attempt, BindAddr, CallResult, Errno, ReuseOptions, ReuseportNote};
use crate::model::port::Port;

/// Why an attempt could not be made at all.
#[derive(Debug, thiserror::Error)]
#[error("{call} for {addr} failed: {}: {source}", source.raw_os_error().map_or("no errno", name))]
pub struct AttemptError {
    call: &'static str,
    addr: IpAddr,
    source: io::Error,
}

/// What the binds gave, and what became of the kernel's note of SO_REUSEPORT.
#[derive(Debug)]
pub struct Tried {
    /// In the order of the addresses and of [`ReuseOptions::ALL`].
    pub attempts: Vec<Attempt>,
    /// Of a server on the port, or of the attempts.
    pub note: ReuseportNote,
}

/// Tries every option set on every address.
///
/// No attempt is answered by the note of another, and none is left for the next server (see `reuseport_note`):
/// 1. All signals are held back, so that none ends the program between a bind and the one that clears its note.
/// 2. The attempts with SO_REUSEPORT come first, because the others clear the note that a server may have on the port. IPv6
///    comes before IPv4: a note about `0.0.0.0` lets `::` in, too. After each that worked its note is cleared.
/// 3. Those that worked are made again. One that fails now was let in by the note of a server, which is gone.
pub fn attempts(addrs: &[BindAddr], port: Port, listen: bool) -> Result<Tried, AttemptError> {
    const ORDER: [ReuseOptions; 4] =
        [ReuseOptions::REUSEPORT, ReuseOptions::BOTH, ReuseOptions::REUSEADDR, ReuseOptions::NONE];
    let (ipv6, ipv4) = addrs.iter().copied().partition::<Vec<_>, _>(|at| at.addr.is_ipv6());
    let order = || ipv6.iter().chain(&ipv4).copied();
    let _held = Held::all();
    let (mut attempts, mut uncleared): (Vec<Attempt>, Vec<Attempt>) = (vec![], vec![]);
    for options in ORDER {
        for at in order() {
            let (attempt, cleared) = attempt_and_clear(at, port, options, listen)?;
            uncleared.extend((!cleared).then_some(attempt));
            attempts.push(attempt);
        }
    }
    let mut note = ReuseportNote::Kept;
    // A port that is free for everything has no other socket, and so no note.
    let taken = attempts.iter().any(|attempt| attempt.outcome() != CallResult::Ok);
    let shares = |attempt: &&mut Attempt| attempt.options.reuseport && attempt.outcome() == CallResult::Ok;
    for attempt in attempts.iter_mut().filter(shares).filter(|_| taken && !port.reserved_by_rfc()) {
        let (again, _) = attempt_and_clear(attempt.at, port, attempt.options, listen)?;
        if again.outcome() != CallResult::Ok {
            (*attempt, note) = (again, ReuseportNote::Lost);
        }
    }
    if uncleared.iter().any(|attempt| lets_others_in(attempt, &attempts)) {
        note = ReuseportNote::Left;
    }
    let place = |attempt: &Attempt| {
        let address = addrs.iter().position(|at| *at == attempt.at);
        (address, ReuseOptions::ALL.iter().position(|options| *options == attempt.options))
    };
    attempts.sort_by_key(place);
    Ok(Tried { attempts, note })
}

/// Whether the note of an attempt lets a server in that the kernel would refuse without it. It does not where every socket
/// that the note's address covers shares the port by SO_REUSEPORT anyway: where a bind with SO_REUSEPORT alone worked there,
/// and also on `::` where the note is about an IPv4 wildcard or about IPv6 only, because the kernel takes all wildcards for
/// equal.
fn lets_others_in(noted: &Attempt, attempts: &[Attempt]) -> bool {
    let works = |fits: &dyn Fn(&Attempt) -> bool| {
        let shares = |one: &&Attempt| one.options == ReuseOptions::REUSEPORT && one.bind == CallResult::Ok;
        attempts.iter().filter(shares).any(fits)
    };
    let wildcard = |at: &BindAddr| at.addr.to_canonical().is_unspecified();
    let everywhere = |one: &Attempt| wildcard(&one.at) && one.at.addr.is_ipv6() && !one.v6only;
    !works(&|one| one.at == noted.at) || (wildcard(&noted.at) && !works(&everywhere))
}

/// Tries one option set on one address, and leaves no note of it. One that worked with SO_REUSEPORT is made again when its
/// note is cleared: it counts only if it works without the note of another server, which is gone then.
pub fn attempt_alone(
    at: BindAddr,
    port: Port,
    options: ReuseOptions,
) -> Result<(Attempt, ReuseportNote), AttemptError> {
    let _held = Held::all();
    let (first, cleared) = attempt_and_clear(at, port, options, false)?;
    if !options.reuseport || first.bind != CallResult::Ok {
        return Ok((first, ReuseportNote::Kept));
    }
    if !cleared {
        return Ok((first, if lets_others_in(&first, &[first]) { ReuseportNote::Left } else { ReuseportNote::Kept }));
    }
    let (again, _) = attempt_and_clear(at, port, options, false)?;
    Ok((again, if again.bind == CallResult::Ok { ReuseportNote::Kept } else { ReuseportNote::Lost }))
}

/// Tries it, and clears its note. The flag is false where a note was left that no bind clears.
fn attempt_and_clear(
    at: BindAddr,
    port: Port,
    options: ReuseOptions,
    listen: bool,
) -> Result<(Attempt, bool), AttemptError> {
    let guard = options.reuseport.then(NoteGuard::prepare).transpose();
    let mut guard = guard.map_err(|source| AttemptError { call: "socket()", addr: at.addr, source })?;
    let attempt = attempt(at, port, options, listen, &mut guard)?;
    Ok((attempt, guard.is_none_or(NoteGuard::clear)))
}

/// Tries it. What the kernel says of the address and port is an answer; anything else is an error.
///
/// # Errors
/// socket() failed for another reason than its family, an option could not be set, or the kernel had no room for a call: that
/// says nothing about the port.
fn attempt(
    at: BindAddr,
    port: Port,
    options: ReuseOptions,
    listen: bool,
    guard: &mut Option<NoteGuard>,
) -> Result<Attempt, AttemptError> {
    let failed = |call| move |source| AttemptError { call, addr: at.addr, source };
    let mut attempt = Attempt { at, options, v6only: false, bind: CallResult::Ok, listen: None, bound: None };
    let socket = match socket(at.addr, options) {
        Ok(socket) => socket,
        Err(error) if errno(&error) == Errno::FamilyNotSupported => {
            attempt.bind = CallResult::Failed(Errno::FamilyNotSupported);
            return Ok(attempt);
        }
        Err(error) => return Err(failed("socket()")(error)),
    };
    if at.addr.is_ipv6() {
        attempt.v6only = retry(|| socket.only_v6()).map_err(failed("getsockopt(IPV6_V6ONLY)"))?;
    }
    attempt.bind = result(|| socket.bind(&socket_addr(at, port).into())).map_err(failed("bind()"))?;
    if attempt.bind == CallResult::Ok {
        let mut note = |port: Port| guard.iter_mut().filter(|_| !port.reserved_by_rfc()).for_each(|g| g.left_on(port));
        note(port);
        let name = retry(|| socket.local_addr()).map_err(failed("getsockname()"))?;
        attempt.bound = name.as_socket().map(|addr| Port(addr.port()));
        attempt.bound.into_iter().for_each(note);
        if listen {
            attempt.listen = Some(result(|| socket.listen(1)).map_err(failed("listen()"))?);
        }
    }
    Ok(attempt)
}

/// Why AF_INET6 sockets cannot be made, where they cannot (`ipv6.disable=1`, or a sandbox).
///
/// # Errors
/// socket() failed for a reason that says nothing about IPv6.
pub fn no_ipv6_sockets() -> Result<Option<io::Error>, AttemptError> {
    match retry(|| Socket::new(Domain::IPV6, Type::STREAM, None)) {
        Ok(_) => Ok(None),
        Err(error) if Refusal::of(&error).is_answer() => Ok(Some(error)),
        Err(source) => Err(AttemptError { call: "socket()", addr: Ipv6Addr::UNSPECIFIED.into(), source }),
    }
}

/// A TCP socket with these options, neither bound nor connected; IPV6_V6ONLY stays as the system has it.
pub fn socket(addr: IpAddr, options: ReuseOptions) -> io::Result<Socket> {
    let domain = if addr.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = retry(|| Socket::new(domain, Type::STREAM, None))?;
    retry(|| socket.set_reuse_address(options.reuseaddr))?;
    retry(|| socket.set_reuse_port(options.reuseport))?;
    Ok(socket)
}

/// The address in the form that bind() takes.
#[must_use]
pub fn socket_addr(at: BindAddr, port: Port) -> SocketAddr {
    match at.addr {
        IpAddr::V4(v4) => (v4, port.0).into(),
        IpAddr::V6(v6) => SocketAddrV6::new(v6, port.0, 0, at.scope.map_or(0, NonZeroU32::get)).into(),
    }
}

/// What the kernel says of the address and the port. Only the errnos that bind(2), listen(2) and the hooks of security modules
/// document for that are an answer; any other failure stays an error.
fn result(call: impl FnMut() -> io::Result<()>) -> io::Result<CallResult> {
    match retry(call) {
        Ok(()) => Ok(CallResult::Ok),
        Err(error) => match error.raw_os_error().map(NixErrno::from_raw) {
            Some(
                NixErrno::EADDRINUSE
                | NixErrno::EACCES
                | NixErrno::EPERM
                | NixErrno::EADDRNOTAVAIL
                | NixErrno::EAFNOSUPPORT
                | NixErrno::EINVAL
                | NixErrno::ENODEV,
            ) => Ok(CallResult::Failed(errno(&error))),
            _ => Err(error),
        },
    }
}

/// The errno of a failed call, by name.
#[must_use]
pub fn errno(error: &io::Error) -> Errno {
    match error.raw_os_error().map(NixErrno::from_raw) {
        Some(NixErrno::EADDRINUSE) => Errno::AddrInUse,
        Some(NixErrno::EACCES) => Errno::Access,
        Some(NixErrno::EADDRNOTAVAIL) => Errno::AddrNotAvailable,
        Some(NixErrno::EAFNOSUPPORT) => Errno::FamilyNotSupported,
        Some(other) => Errno::Other(name(other as i32)),
        None => Errno::Other("unknown"),
    }
}
