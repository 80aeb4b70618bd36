//! Makes bind attempts: each creates a socket, sets its options, binds it, listens on it if requested, and closes it.
//!
//! Only this module touches the tested port. An attempt holds the port for microseconds. It listens only if requested.

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

/// Why an attempt could not be made, so that its result is unknown.
#[derive(Debug, thiserror::Error)]
#[error("{call} for {addr} failed: {}: {source}", source.raw_os_error().map_or("no errno", name))]
pub struct AttemptError {
    call: &'static str,
    addr: IpAddr,
    source: io::Error,
}

/// The results of binds, and the state of the kernel's note of SO_REUSEPORT after them.
#[derive(Debug)]
pub struct Tried {
    /// The results, in the order of the addresses and of [`ReuseOptions::ALL`].
    pub attempts: Vec<Attempt>,
    /// The state of the note that a server has on the port, or that the attempts have left.
    pub note: ReuseportNote,
}

/// Binds the port on every address with every set of options.
///
/// The kernel's notes of SO_REUSEPORT (see `reuseport_note`) must not change a result, nor remain for the next server:
/// 1. All signals are blocked, so that none ends the program between a bind and the bind that clears its note.
/// 2. The attempts with SO_REUSEPORT come first, because the others clear the note that a server may have on the port.
///    IPv6 comes before IPv4, because a note about `0.0.0.0` also admits `::`. After each successful attempt its note
///    is cleared.
/// 3. The successful attempts are repeated. If one fails now, the note of a server had admitted it. That note is lost.
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
    // If every attempt succeeds, the port has no other socket, and so no note.
    let taken = attempts.iter().any(|attempt| attempt.outcome() != CallResult::Ok);
    let shares = |attempt: &&mut Attempt| attempt.options.reuseport && attempt.outcome() == CallResult::Ok;
    for attempt in attempts.iter_mut().filter(shares).filter(|_| taken && !port.reserved_by_rfc()) {
        let (again, _) = attempt_and_clear(attempt.at, port, attempt.options, listen)?;
        if again.outcome() != CallResult::Ok {
            (*attempt, note) = (again, ReuseportNote::Lost);
        }
    }
    if uncleared.iter().any(|attempt| admits_others(attempt, &attempts)) {
        note = ReuseportNote::Left;
    }
    let rank = |attempt: &Attempt| {
        let address = addrs.iter().position(|at| *at == attempt.at);
        (address, ReuseOptions::ALL.iter().position(|options| *options == attempt.options))
    };
    attempts.sort_by_key(rank);
    Ok(Tried { attempts, note })
}

/// Whether the note of an attempt admits a server that the kernel would refuse without it. It does not if all sockets
/// on the note's address share the port with SO_REUSEPORT anyway. A successful bind with only SO_REUSEPORT on that
/// address shows that. For a wildcard address such a bind must also have succeeded on a dual-stack `::`, because the
/// kernel treats all wildcards as equal.
fn admits_others(noted: &Attempt, attempts: &[Attempt]) -> bool {
    let works = |fits: &dyn Fn(&Attempt) -> bool| {
        let shares = |one: &&Attempt| one.options == ReuseOptions::REUSEPORT && one.bind == CallResult::Ok;
        attempts.iter().filter(shares).any(fits)
    };
    let wildcard = |at: &BindAddr| at.addr.to_canonical().is_unspecified();
    let everywhere = |one: &Attempt| wildcard(&one.at) && one.at.addr.is_ipv6() && !one.v6only;
    !works(&|one| one.at == noted.at) || (wildcard(&noted.at) && !works(&everywhere))
}

/// Binds one address with one set of options, and clears the note of that bind. A successful attempt with SO_REUSEPORT
/// is repeated after that, because it counts only if it succeeds without the note of another server, which is cleared,
/// too.
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
        return Ok((first, if admits_others(&first, &[first]) { ReuseportNote::Left } else { ReuseportNote::Kept }));
    }
    let (again, _) = attempt_and_clear(at, port, options, false)?;
    Ok((again, if again.bind == CallResult::Ok { ReuseportNote::Kept } else { ReuseportNote::Lost }))
}

/// Binds once, without SO_REUSEPORT, so that no note is left.
pub fn attempt_once(at: BindAddr, port: Port, reuseaddr: bool) -> Result<Attempt, AttemptError> {
    let options = if reuseaddr { ReuseOptions::REUSEADDR } else { ReuseOptions::NONE };
    attempt(at, port, options, false, &mut None)
}

/// Makes an attempt and clears its note. Returns false with the attempt if no bind could clear the note.
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

/// Makes an attempt. A refusal that concerns the address or the port is a result; any other failure is an error.
///
/// # Errors
/// socket() failed for a reason other than the family, an option could not be set, or the kernel lacked resources. Such
/// a failure has no information about the port.
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
        let mut note = |port: Port| guard.iter_mut().filter(|_| !port.reserved_by_rfc()).for_each(|g| g.set_port(port));
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

/// Returns why AF_INET6 sockets cannot be created (`ipv6.disable=1`, or a sandbox); `None` if they can.
///
/// # Errors
/// socket() failed for a reason that has nothing to do with IPv6.
pub fn no_ipv6_sockets() -> Result<Option<io::Error>, AttemptError> {
    match retry(|| Socket::new(Domain::IPV6, Type::STREAM, None)) {
        Ok(_) => Ok(None),
        Err(error) if Refusal::of(&error).is_answer() => Ok(Some(error)),
        Err(source) => Err(AttemptError { call: "socket()", addr: Ipv6Addr::UNSPECIFIED.into(), source }),
    }
}

/// Creates a TCP socket with these options, neither bound nor connected. IPV6_V6ONLY keeps the default of the system.
pub fn socket(addr: IpAddr, options: ReuseOptions) -> io::Result<Socket> {
    let domain = if addr.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = retry(|| Socket::new(domain, Type::STREAM, None))?;
    retry(|| socket.set_reuse_address(options.reuseaddr))?;
    retry(|| socket.set_reuse_port(options.reuseport))?;
    Ok(socket)
}

/// Converts an address to the form that bind() needs.
#[must_use]
pub fn socket_addr(at: BindAddr, port: Port) -> SocketAddr {
    match at.addr {
        IpAddr::V4(v4) => (v4, port.0).into(),
        IpAddr::V6(v6) => SocketAddrV6::new(v6, port.0, 0, at.scope.map_or(0, NonZeroU32::get)).into(),
    }
}

/// Separates results from errors. Only the errnos that bind(2), listen(2) and the hooks of security modules document
/// for the address and the port are results. Any other failure remains an error.
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

/// Converts the errno of a failed call.
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
