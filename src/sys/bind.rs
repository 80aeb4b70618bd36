//! Makes bind attempts: each creates a socket, sets its options, binds it, listens on it if requested, and closes it.
//!
//! An attempt holds the port for microseconds. If it listens, a socket filter drops every packet, so that the attempt takes no
//! connection from the real server. The kernel may refuse the filter (see `Prober::open_here`).

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::num::NonZeroU32;

use nix::errno::Errno as NixErrno;
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use super::errno::{FailureClass, name, retry};
use super::interrupt::BlockedSignals;
use super::reuseport_note::NoteGuard;
use super::user_thread;
use crate::model::bind::{Attempt, BindAddr, CallResult, Errno, ReuseOptions, ReuseportNote, ServerSetup};
use crate::model::port::Port;

/// Why an attempt could not be made, so that its result is unknown.
#[derive(Debug, thiserror::Error)]
#[error("{call} for {addr} failed: {}: {source}", source.raw_os_error().map_or("no errno", name))]
pub struct AttemptError {
    call: &'static str,
    addr: IpAddr,
    source: io::Error,
}

/// The results of binds, and what they did to the kernel's note of SO_REUSEPORT (see `reuseport_note`).
#[derive(Debug)]
pub struct BindResults {
    /// The results, in the order of the addresses and of [`ReuseOptions::ALL`].
    pub attempts: Vec<Attempt>,
    /// What the binds did to the note.
    pub note: ReuseportNote,
}

impl AttemptError {
    /// What the user can do about the error.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        let refusal = FailureClass::of(&self.source);
        match self.call {
            "setgroups()" | "setresgid()" | "setresuid()" => Some(
                "--user needs CAP_SETUID and CAP_SETGID, which root has, and `--user root` needs root; a user that this user \
                 namespace does not map cannot be used",
            ),
            TRANSPARENT if refusal == FailureClass::Refused => {
                Some("IP_TRANSPARENT needs CAP_NET_ADMIN or CAP_NET_RAW (ip(7)); the server also needs one of these")
            }
            DEVICE if refusal == FailureClass::Refused => {
                Some("on kernels before 5.7, this needs CAP_NET_RAW, as SO_BINDTODEVICE does (socket(7))")
            }
            // With net.mptcp.enabled=0 the errno is ENOPROTOOPT. A kernel without MPTCP returns EPROTONOSUPPORT or EINVAL.
            MPTCP
                if matches!(
                    self.source.raw_os_error(),
                    Some(libc::ENOPROTOOPT | libc::EPROTONOSUPPORT | libc::EINVAL)
                ) =>
            {
                Some("MPTCP needs a kernel with CONFIG_MPTCP, and net.mptcp.enabled=1")
            }
            _ => None,
        }
    }
}

/// `BPF_RET | BPF_K` in linux/bpf_common.h: keeps 0 bytes of each packet.
const DROP_ALL: SockFilter = SockFilter::new(6, 0, 0, 0);

const TRANSPARENT: &str = "setsockopt(IP_TRANSPARENT)";
const DEVICE: &str = "setsockopt(SO_BINDTOIFINDEX)";
const MPTCP: &str = "socket(IPPROTO_MPTCP)";

/// Binds the port on every address with every set of options.
///
/// The kernel's notes of SO_REUSEPORT (see `reuseport_note`) must not change a result, nor remain for the next server:
/// 1. All signals are blocked, so that none ends the program between a bind and the bind that clears its note.
/// 2. The attempts with SO_REUSEPORT come first, because the other attempts clear the note that a server may have on the port.
///    IPv6 comes before IPv4, because a note about `0.0.0.0` also admits `::`. After each successful attempt its note
///    is cleared.
/// 3. If any attempt failed, the successful attempts with SO_REUSEPORT are repeated. If one of them fails now, it had succeeded
///    only because of a server's note, which is now lost.
/// 4. For a server that opens all addresses at once, the results come from `Prober::together`. There the notes of the
///    server's own sockets have an effect, as they do for the server.
pub fn attempts(
    addrs: &[BindAddr],
    port: Port,
    listen: bool,
    setup: &ServerSetup,
) -> Result<BindResults, AttemptError> {
    const ORDER: [ReuseOptions; 4] =
        [ReuseOptions::REUSEPORT, ReuseOptions::BOTH, ReuseOptions::REUSEADDR, ReuseOptions::NONE];
    let (ipv6, ipv4) = addrs.iter().copied().partition::<Vec<_>, _>(|at| at.addr.is_ipv6());
    let order = || ipv6.iter().chain(&ipv4).copied();
    let prober = Prober { port, listen, setup };
    let _blocked = BlockedSignals::block_all();
    let (mut attempts, mut uncleared): (Vec<Attempt>, Vec<Attempt>) = (vec![], vec![]);
    for options in ORDER {
        for at in order() {
            let (attempt, cleared) = prober.attempt_and_clear(at, options)?;
            uncleared.extend((!cleared).then_some(attempt));
            attempts.push(attempt);
        }
    }
    let mut note = ReuseportNote::Unchanged;
    // If every attempt succeeded, even without options, no result depends on a note.
    let taken = attempts.iter().any(|attempt| attempt.outcome() != CallResult::Ok);
    let shares = |attempt: &&mut Attempt| attempt.options.reuseport && attempt.outcome() == CallResult::Ok;
    for attempt in attempts.iter_mut().filter(shares).filter(|_| taken && !port.reserved_by_rfc()) {
        let (again, _) = prober.attempt_and_clear(attempt.at, attempt.options)?;
        if again.outcome() != CallResult::Ok {
            (*attempt, note) = (again, ReuseportNote::Lost);
        }
    }
    if prober.leaves_note(&uncleared, &attempts)? {
        note = ReuseportNote::Left;
    }
    let rank = |attempt: &Attempt| {
        let address = addrs.iter().position(|at| *at == attempt.at);
        (address, ReuseOptions::ALL.iter().position(|options| *options == attempt.options))
    };
    attempts.sort_by_key(rank);
    if setup.together {
        for options in ReuseOptions::ALL {
            let mut alone: Vec<&mut Attempt> = attempts.iter_mut().filter(|one| one.options == options).collect();
            let worked: Vec<CallResult> = alone.iter().map(|attempt| attempt.outcome()).collect();
            let (together, cleared) = prober.together(addrs, options)?;
            if !cleared && prober.leaves_note(&together, &together)? {
                note = ReuseportNote::Left;
            }
            for ((known, worked), new) in alone.iter_mut().zip(worked).zip(together) {
                let blocked_by_own_socket =
                    worked == CallResult::Ok && new.outcome() == CallResult::Failed(Errno::AddrInUse);
                **known = Attempt { blocked_by_own_socket, ..new };
            }
        }
    }
    Ok(BindResults { attempts, note })
}

/// Whether the note of an attempt admits a server that the kernel would refuse without the note. It admits no such server if all
/// sockets on the note's address share the port with SO_REUSEPORT anyway. A successful bind with only SO_REUSEPORT on that address
/// proves this. For a wildcard address, such a bind must also have succeeded on a dual-stack `::`, because the kernel treats all
/// wildcards as equal.
fn admits_refused_server(noted: &Attempt, attempts: &[Attempt]) -> bool {
    let works = |fits: &dyn Fn(&Attempt) -> bool| {
        let shares = |one: &&Attempt| one.options == ReuseOptions::REUSEPORT && one.bind == CallResult::Ok;
        attempts.iter().filter(shares).any(fits)
    };
    let wildcard = |at: &BindAddr| at.addr.to_canonical().is_unspecified();
    let everywhere = |one: &Attempt| wildcard(&one.at) && one.at.addr.is_ipv6() && !one.v6only;
    !works(&|one| one.at == noted.at) || (wildcard(&noted.at) && !works(&everywhere))
}

/// Binds one address with one set of options, and clears the note of that bind. This also clears the note of a server on the port. If
/// the attempt had SO_REUSEPORT and succeeded, this function repeats it, because only the result without any note counts.
pub fn attempt_alone(
    at: BindAddr,
    port: Port,
    options: ReuseOptions,
    setup: &ServerSetup,
) -> Result<(Attempt, ReuseportNote), AttemptError> {
    let prober = Prober { port, listen: false, setup };
    let _blocked = BlockedSignals::block_all();
    let (first, cleared) = prober.attempt_and_clear(at, options)?;
    if !options.reuseport || first.bind != CallResult::Ok {
        return Ok((first, ReuseportNote::Unchanged));
    }
    if !cleared {
        let left = prober.leaves_note(&[first], &[first])?;
        return Ok((first, if left { ReuseportNote::Left } else { ReuseportNote::Unchanged }));
    }
    let (again, _) = prober.attempt_and_clear(at, options)?;
    Ok((again, if again.bind == CallResult::Ok { ReuseportNote::Unchanged } else { ReuseportNote::Lost }))
}

/// Binds once, without SO_REUSEPORT, so that no note is left.
pub fn attempt_once(at: BindAddr, port: Port, reuseaddr: bool) -> Result<Attempt, AttemptError> {
    let options = if reuseaddr { ReuseOptions::REUSEADDR } else { ReuseOptions::NONE };
    let prober = Prober { port, listen: false, setup: &ServerSetup::default() };
    Ok(prober.attempt_and_clear(at, options)?.0)
}

/// Binds every address with one set of options, as a server does that opens all of them at once. Each bind must have succeeded alone
/// before. So an attempt that now fails with EADDRINUSE conflicts with the server's own sockets ([`Attempt::blocked_by_own_socket`]).
pub fn attempt_together(
    addrs: &[BindAddr],
    port: Port,
    options: ReuseOptions,
    setup: &ServerSetup,
) -> Result<(Vec<Attempt>, ReuseportNote), AttemptError> {
    let _blocked = BlockedSignals::block_all();
    let prober = Prober { port, listen: false, setup };
    let (mut attempts, cleared) = prober.together(addrs, options)?;
    let left = !cleared && prober.leaves_note(&attempts, &attempts)?;
    for attempt in &mut attempts {
        attempt.blocked_by_own_socket = attempt.outcome() == CallResult::Failed(Errno::AddrInUse);
    }
    Ok((attempts, if left { ReuseportNote::Left } else { ReuseportNote::Unchanged }))
}

struct Prober<'a> {
    port: Port,
    listen: bool,
    setup: &'a ServerSetup,
}

impl Prober<'_> {
    /// Makes an attempt and clears its note. The returned flag is false if no bind could clear the note.
    fn attempt_and_clear(&self, at: BindAddr, options: ReuseOptions) -> Result<(Attempt, bool), AttemptError> {
        let mut guard = self.guard(at, options)?;
        let (attempt, socket) = self.open(at, options, self.listen, &mut guard)?;
        drop(socket);
        Ok((attempt, guard.is_none_or(NoteGuard::clear)))
    }

    /// Opens the addresses in their order, keeps each socket open until the last attempt, and then clears the note. Each socket
    /// listens before the next is bound, because SO_REUSEADDR lets sockets of one server share a port until the first of them
    /// listens.
    fn together(&self, addrs: &[BindAddr], options: ReuseOptions) -> Result<(Vec<Attempt>, bool), AttemptError> {
        let Some(first) = addrs.first() else { return Ok((vec![], true)) };
        let mut guard = self.guard(*first, options)?;
        let mut opened = vec![];
        for at in addrs {
            opened.push(self.open(*at, options, true, &mut guard)?);
        }
        let attempts = opened.into_iter().map(|(attempt, _socket)| attempt).collect();
        Ok((attempts, guard.is_none_or(NoteGuard::clear)))
    }

    /// Whether a note that was not cleared admits a server that the kernel would refuse without the note. If the attempts set
    /// IPV6_V6ONLY, they do not show whether a dual-stack `::` can be bound, so this function also tries that bind.
    fn leaves_note(&self, noted: &[Attempt], attempts: &[Attempt]) -> Result<bool, AttemptError> {
        let leaves = |one: &Attempt| one.options.reuseport && one.bind == CallResult::Ok;
        let admits = |attempts: &[Attempt]| {
            noted.iter().filter(|one| leaves(one)).any(|one| admits_refused_server(one, attempts))
        };
        if !admits(attempts) || self.setup.v6only != Some(true) {
            return Ok(admits(attempts));
        }
        let setup = ServerSetup { v6only: Some(false), together: false, ..*self.setup };
        let dual_stack = BindAddr { addr: Ipv6Addr::UNSPECIFIED.into(), scope: None };
        let (shared, _) = Prober { setup: &setup, ..*self }.attempt_and_clear(dual_stack, ReuseOptions::REUSEPORT)?;
        Ok(admits(&[attempts, &[shared]].concat()))
    }

    /// Prepares to clear a note. The guard has the privileges of twtool, not those of the server's user.
    fn guard(&self, at: BindAddr, options: ReuseOptions) -> Result<Option<NoteGuard>, AttemptError> {
        let device = self.setup.device.or(at.scope);
        let guard = options.reuseport.then(|| NoteGuard::prepare(device)).transpose();
        guard.map_err(|source| AttemptError { call: "socket()", addr: at.addr, source })
    }

    /// Makes an attempt as the user of the server. A refusal that concerns the address or the port is a result; any other failure is
    /// an error, because it says nothing about the port.
    fn open(
        &self,
        at: BindAddr,
        options: ReuseOptions,
        listen: bool,
        guard: &mut Option<NoteGuard>,
    ) -> Result<(Attempt, Option<Socket>), AttemptError> {
        let opened = user_thread::run_as(self.setup.user, || self.open_here(at, options, listen, guard));
        opened.unwrap_or_else(|(call, source)| Err(AttemptError { call, addr: at.addr, source }))
    }

    fn open_here(
        &self,
        at: BindAddr,
        options: ReuseOptions,
        listen: bool,
        guard: &mut Option<NoteGuard>,
    ) -> Result<(Attempt, Option<Socket>), AttemptError> {
        let failed = |call| move |source| AttemptError { call, addr: at.addr, source };
        let device = self.setup.device.or(at.scope);
        let bind = CallResult::Ok;
        let mut attempt = Attempt {
            at,
            options,
            v6only: false,
            device,
            blocked_by_own_socket: false,
            bind,
            listen: None,
            bound: None,
        };
        let socket = match server_socket(at.addr, options, self.setup) {
            Ok(socket) => socket,
            Err(("socket()" | MPTCP, error)) if errno(&error) == Errno::FamilyNotSupported => {
                attempt.bind = CallResult::Failed(Errno::FamilyNotSupported);
                return Ok((attempt, None));
            }
            Err((call, error)) => return Err(failed(call)(error)),
        };
        if at.addr.is_ipv6() {
            attempt.v6only = retry(|| socket.only_v6()).map_err(failed("getsockopt(IPV6_V6ONLY)"))?;
        }
        attempt.bind = result(|| socket.bind(&socket_addr(at, self.port).into())).map_err(failed("bind()"))?;
        if attempt.bind == CallResult::Ok {
            let mut note =
                |port: Port| guard.iter_mut().filter(|_| !port.reserved_by_rfc()).for_each(|g| g.set_port(port));
            note(self.port);
            let name = retry(|| socket.local_addr()).map_err(failed("getsockname()"))?;
            attempt.bound = name.as_socket().map(|addr| Port(addr.port()));
            attempt.bound.into_iter().for_each(note);
            if listen {
                // The filter drops the SYN of a client that connects now. The client sends its SYN again after 1 s, to the real server.
                // MPTCP sockets accept no filter. Some kernels run only compiled filters (CONFIG_BPF_JIT_ALWAYS_ON). If the memory for
                // compiled filters (net.core.bpf_jit_limit) is used up, they refuse filters to users without CAP_BPF. Without the filter, a
                // client that connects now can get a RST.
                let _ = retry(|| socket.attach_filter(&[DROP_ALL]));
                attempt.listen = Some(result(|| socket.listen(1)).map_err(failed("listen()"))?);
            }
        }
        Ok((attempt, Some(socket)))
    }
}

/// Returns why AF_INET6 sockets cannot be created (`ipv6.disable=1`, or a sandbox); `None` if they can.
///
/// # Errors
/// socket() failed for a reason that has nothing to do with IPv6.
pub fn no_ipv6_sockets() -> Result<Option<io::Error>, AttemptError> {
    match retry(|| Socket::new(Domain::IPV6, Type::STREAM, None)) {
        Ok(_) => Ok(None),
        Err(error) if FailureClass::of(&error).is_definite() => Ok(Some(error)),
        Err(source) => Err(AttemptError { call: "socket()", addr: Ipv6Addr::UNSPECIFIED.into(), source }),
    }
}

/// Creates a TCP socket with these options, neither bound nor connected. IPV6_V6ONLY keeps the default of the namespace.
pub fn socket(addr: IpAddr, options: ReuseOptions) -> io::Result<Socket> {
    let domain = if addr.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = retry(|| Socket::new(domain, Type::STREAM, None))?;
    retry(|| socket.set_reuse_address(options.reuseaddr))?;
    retry(|| socket.set_reuse_port(options.reuseport))?;
    Ok(socket)
}

/// The error contains the name of the call that failed.
fn server_socket(
    addr: IpAddr,
    options: ReuseOptions,
    setup: &ServerSetup,
) -> Result<Socket, (&'static str, io::Error)> {
    let set = |call, set: &dyn Fn() -> io::Result<()>| retry(set).map_err(|error| (call, error));
    let (domain, is_ipv6) = if addr.is_ipv6() { (Domain::IPV6, true) } else { (Domain::IPV4, false) };
    let (protocol, call) = if setup.mptcp { (Some(Protocol::MPTCP), MPTCP) } else { (None, "socket()") };
    let socket = retry(|| Socket::new(domain, Type::STREAM, protocol)).map_err(|error| (call, error))?;
    set("setsockopt(SO_REUSEADDR)", &|| socket.set_reuse_address(options.reuseaddr))?;
    set("setsockopt(SO_REUSEPORT)", &|| socket.set_reuse_port(options.reuseport))?;
    if let Some(v6only) = setup.v6only.filter(|_| is_ipv6) {
        set("setsockopt(IPV6_V6ONLY)", &|| socket.set_only_v6(v6only))?;
    }
    if setup.device.is_some() {
        set(DEVICE, &|| socket.bind_device_by_index_v4(setup.device))?;
    }
    if setup.freebind {
        set("setsockopt(IP_FREEBIND)", &|| {
            if is_ipv6 { socket.set_freebind_v6(true) } else { socket.set_freebind_v4(true) }
        })?;
    }
    if setup.transparent {
        set(TRANSPARENT, &|| {
            if is_ipv6 { socket.set_ip_transparent_v6(true) } else { socket.set_ip_transparent_v4(true) }
        })?;
    }
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

/// Separates results from errors. An errno is a result only if it concerns the address or the port, or can come from a security
/// module.
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
