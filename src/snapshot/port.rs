//! Examines one port: lists every socket on it with its processes, and binds the port with every set of options.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::error::{BadValue, SnapshotError};
use super::holders::{PortSockets, hidden_owners, holders, sockets_on};
use super::{Answer, Snapshot, interrupted};
use crate::analysis::conflict;
use crate::analysis::verdict::{self, Conclusion};
use crate::model::addr::ScopedAddr;
use crate::model::bind::{
    Attempt, BindAddr, CallResult, Errno, Holder, OtherVerdict, ReuseOptions, ReuseportNote, ServerSetup,
    UnspecifiedOption, UserIds,
};
use crate::model::facts::{Facts, Setting};
use crate::model::port::{Port, PortArg};
use crate::model::user::UserArg;
use crate::source::{self, Source, SourceChoice};
use crate::sys;
use crate::sys::bind::BindResults;

/// The maximum number of rounds. A round lists the sockets and binds the port. It is repeated until both results are consistent.
const ROUNDS: u32 = 3;

/// A bind test: the port, and the addresses and options of the server. Names are resolved in the network namespace of the question.
#[derive(Clone, Debug)]
pub struct PortQuestion {
    /// The port.
    pub port: PortArg,
    /// The addresses; if empty, `0.0.0.0` and `::`.
    pub addrs: Vec<ScopedAddr>,
    /// Only addresses with IPv4 (true) or IPv6 (false) on the wire.
    pub ipv4: Option<bool>,
    /// The other options of the server.
    pub server: ServerQuestion,
}

/// The other options of a server, with names as the user typed them. See [`ServerSetup`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, missing_docs, reason = "the fields of ServerSetup")]
pub struct ServerQuestion {
    pub v6only: Option<bool>,
    pub device: Option<String>,
    pub freebind: bool,
    pub transparent: bool,
    pub mptcp: bool,
    pub user: Option<UserArg>,
    pub together: bool,
}

/// A bind test with an option that the question does not specify.
#[derive(Clone, Debug)]
pub struct Alternative {
    /// The option.
    pub option: UnspecifiedOption,
    /// The results of the binds, as in [`PortState::attempts`].
    pub attempts: Vec<Attempt>,
}

/// The results of bind() on a port, and every socket on it.
#[derive(Clone, Debug)]
pub struct PortState {
    /// The facts of the network namespace.
    pub facts: Facts,
    /// The port.
    pub port: Port,
    /// The addresses that were bound.
    pub addrs: Vec<BindAddr>,
    /// The results of the binds: one for each address and each set of options.
    pub attempts: Vec<Attempt>,
    /// What the binds did to the kernel's note of SO_REUSEPORT on the port.
    pub note: ReuseportNote,
    /// The other options of the server.
    pub setup: ServerSetup,
    /// The results with options that the question does not specify, if the answer can depend on them.
    pub alternatives: Vec<Alternative>,
    /// Every socket on the port.
    pub holders: Vec<Holder>,
    /// Whether the source lists sockets that are bound and do not listen.
    pub bound_sockets_are_listed: bool,
    /// The effective user of twtool.
    pub uid: u32,
    /// Whether a UDP socket uses the port and no TCP socket does.
    pub udp: bool,
}

impl PortState {
    /// The verdict for a server that sets these options.
    #[must_use]
    pub fn conclude(&self, with: ReuseOptions) -> Conclusion {
        verdict::conclude(&self.facts, self.port, with, &self.attempts, &self.holders)
    }

    /// The options that change the verdict for this server, each with the verdict that it gives.
    #[must_use]
    pub fn other_verdicts(&self, with: ReuseOptions) -> Vec<OtherVerdict> {
        let verdict = self.conclude(with).verdict;
        let other = |alternative: &Alternative| {
            let Conclusion { verdict, cause, .. } =
                verdict::conclude(&self.facts, self.port, with, &alternative.attempts, &self.holders);
            OtherVerdict { option: alternative.option, verdict, cause }
        };
        self.alternatives.iter().map(other).filter(|other| other.verdict != verdict).collect()
    }
}

impl Snapshot {
    /// Binds a port with every set of options, and lists the sockets on it, in one network namespace. Each attempt
    /// holds the port for microseconds. If `listen`, each attempt also listens, and a filter drops the packets of real clients,
    /// unless the kernel refuses the filter.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub fn port(&self, question: &PortQuestion, listen: bool) -> Result<Answer<PortState>, SnapshotError> {
        self.kernel_namespaces()?.within_with_signals(|| {
            let facts = source::kernel_facts();
            let port = single_port(&question.port, &facts)?;
            let mut answer = Answer { warnings: facts.gaps(&Setting::ALL), ..Answer::whole(()) };
            answer.complete = answer.warnings.is_empty();
            let addrs = addresses(question, &facts, &mut answer.warnings)?;
            let mut source = Source::kernel_with(SourceChoice::Auto, facts.clone())?;
            let setup = server_setup(&question.server, &facts)?;
            let Round { results: BindResults { attempts, mut note }, sockets, consistent } =
                bind_and_list(&mut source, &addrs, port, listen, &setup)?;
            let mut alternatives = vec![];
            for (option, setup) in unspecified_options(&setup, &attempts, !sockets.list.is_empty()) {
                let results = sys::bind::attempts(&addrs, port, listen, &setup)?;
                note = note.max(results.note);
                alternatives.push(Alternative { option, attempts: results.attempts });
            }
            answer.complete &= sockets.complete && sockets.unread.is_none();
            answer.warnings.extend((!sockets.complete).then(interrupted));
            answer.warnings.extend((!consistent).then(|| {
                "the bind results and the kernel's list of sockets were not consistent, although twtool tried three times: sockets come and go, or \
                 the list lacks one"
                    .into()
            }));
            answer.warnings.extend(note.warning().map(str::to_owned));
            answer.warnings.extend(sockets.warnings);
            answer.warnings.extend(sockets.unread);
            // Look for a UDP socket only if no TCP socket explains the result.
            let udp = if sockets.list.is_empty() { sys::udp::has_port(port) } else { Ok(false) };
            let udp = udp.unwrap_or_else(|error| {
                answer.complete = false;
                answer.warnings.push(format!("it is unknown whether a UDP socket uses the port: {error}"));
                false
            });
            let (holders, unread) = holders(&mut source, &plain(&attempts), sockets.list, BTreeMap::new());
            answer.complete &= unread.is_none();
            answer.warnings.extend(unread);
            answer.warnings.extend(hidden_owners(&holders));
            let bound_sockets_are_listed = sockets.bound_sockets_are_listed;
            let uid = sys::capabilities::effective_user();
            Ok(answer.with(PortState {
                facts,
                port,
                addrs,
                attempts,
                note,
                setup,
                alternatives,
                holders,
                bound_sockets_are_listed,
                uid,
                udp,
            }))
        })
    }
}

impl Snapshot {
    /// The one port that an argument names, in one network namespace.
    ///
    /// # Errors
    /// The argument names no port, or several.
    pub fn single_port(&self, arg: &PortArg) -> Result<Port, SnapshotError> {
        single_port(arg, &self.facts()?)
    }
}

struct Round {
    results: BindResults,
    sockets: PortSockets,
    consistent: bool,
}

fn bind_and_list(
    source: &mut Source,
    addrs: &[BindAddr],
    port: Port,
    listen: bool,
    setup: &ServerSetup,
) -> Result<Round, SnapshotError> {
    until_consistent(|| {
        let sockets = sockets_on(source, port)?;
        let results = sys::bind::attempts(addrs, port, listen, setup)?;
        // No socket has port 0, so there is no list to compare.
        let consistent = port.reserved_by_rfc() || conflict::consistent(&plain(&results.attempts), &sockets.sockets());
        Ok((Round { results, sockets, consistent }, consistent))
    })
}

/// Runs at most [`ROUNDS`] rounds, until the binds and the list of sockets of a round are consistent. They can be inconsistent if a
/// socket opens or closes between them.
pub(super) fn until_consistent<T>(
    mut round: impl FnMut() -> Result<(T, bool), SnapshotError>,
) -> Result<T, SnapshotError> {
    for _ in 1..ROUNDS {
        if let (value, true) = round()? {
            return Ok(value);
        }
    }
    Ok(round()?.0)
}

fn plain(attempts: &[Attempt]) -> Vec<Attempt> {
    attempts.iter().filter(|attempt| attempt.options == ReuseOptions::NONE).copied().collect()
}

/// The options that the question does not specify and that can change the verdict, each with the setup that has the option.
fn unspecified_options(
    setup: &ServerSetup,
    attempts: &[Attempt],
    is_used: bool,
) -> Vec<(UnspecifiedOption, ServerSetup)> {
    let mut open = vec![];
    let ipv6 = attempts
        .iter()
        .find(|attempt| attempt.at.addr.is_ipv6() && attempt.bind != CallResult::Failed(Errno::FamilyNotSupported));
    // On an unused port, IPV6_V6ONLY changes the result only if the addresses are bound together.
    if let Some(attempt) = ipv6.filter(|_| setup.v6only.is_none() && (is_used || setup.together)) {
        let v6only = !attempt.v6only;
        open.push((UnspecifiedOption::V6only(v6only), ServerSetup { v6only: Some(v6only), ..*setup }));
    }
    let absent = attempts.iter().any(|attempt| attempt.bind == CallResult::Failed(Errno::AddrNotAvailable));
    if absent && !setup.freebind && !setup.transparent {
        open.push((UnspecifiedOption::Freebind, ServerSetup { freebind: true, ..*setup }));
    }
    open
}

/// Resolves the names of a question in the calling thread's network namespace.
pub(super) fn server_setup(question: &ServerQuestion, facts: &Facts) -> Result<ServerSetup, SnapshotError> {
    let ServerQuestion { v6only, device, freebind, transparent, mptcp, user, together } = question;
    let index = |name: &String| facts.interface_index(name).map_err(|why| BadValue::new(name, "--dev <IFACE>", &why));
    Ok(ServerSetup {
        v6only: *v6only,
        device: device.as_ref().map(index).transpose()?,
        freebind: *freebind,
        transparent: *transparent,
        mptcp: *mptcp,
        user: user.as_ref().map(user_ids).transpose()?,
        together: *together,
    })
}

fn user_ids(user: &UserArg) -> Result<UserIds, SnapshotError> {
    let bad = |why: String| BadValue::new(user, "--user <NAME|UID>", &why);
    let entries = match (sys::users::read(), user) {
        (Ok(entries), _) => entries,
        // A uid needs no entry in /etc/passwd.
        (Err(_), UserArg::Uid(_)) => vec![],
        (Err(error), UserArg::Name(_)) => return Err(bad(format!("/etc/passwd could not be read: {error}")).into()),
    };
    let ids = match user {
        UserArg::Uid(uid) => {
            let gid = entries.iter().find(|entry| entry.uid == *uid).map(|entry| entry.gid);
            Some(UserIds { uid: *uid, gid })
        }
        UserArg::Name(name) => {
            let entry = entries.iter().find(|entry| entry.name == *name);
            entry.map(|entry| UserIds { uid: entry.uid, gid: Some(entry.gid) })
        }
    };
    Ok(ids.ok_or_else(|| bad("/etc/passwd has no such user; use a number for a user that it does not have".into()))?)
}

pub(super) fn single_port(arg: &PortArg, facts: &Facts) -> Result<Port, SnapshotError> {
    facts.one_port(arg).map_err(|why| BadValue::new(arg, "<PORT>", &why).into())
}

/// The addresses to bind, each once.
pub(super) fn addresses(
    question: &PortQuestion,
    facts: &Facts,
    warnings: &mut Vec<String>,
) -> Result<Vec<BindAddr>, SnapshotError> {
    let PortQuestion { addrs: typed, ipv4: family, .. } = question;
    if typed.is_empty() {
        let mut addrs = vec![];
        if *family != Some(false) {
            addrs.push(BindAddr { addr: Ipv4Addr::UNSPECIFIED.into(), scope: None });
        }
        let v6 = BindAddr { addr: Ipv6Addr::UNSPECIFIED.into(), scope: None };
        match family {
            Some(true) => {}
            Some(false) => addrs.push(v6),
            None => match sys::bind::no_ipv6_sockets()? {
                None => addrs.push(v6),
                Some(why) => warnings.push(format!("IPv6 sockets cannot be created here, so :: is left out: {why}")),
            },
        }
        return Ok(addrs);
    }
    let mut addrs: Vec<BindAddr> = vec![];
    for typed in typed {
        let argument = "--addr <ADDR>";
        let scope = typed.scope.as_deref().map(|scope| facts.interface_index(scope)).transpose();
        let scope = scope.map_err(|why| BadValue::new(typed, argument, &why))?;
        if scope.is_some() && !matches!(typed.addr, IpAddr::V6(v6) if v6.is_unicast_link_local()) {
            return Err(
                BadValue::new(typed, argument, "only a link-local address (fe80::/10) has a scope (ipv6(7))").into()
            );
        }
        let ipv4 = matches!(typed.addr.to_canonical(), IpAddr::V4(_));
        if family.is_some_and(|wanted| wanted != ipv4) {
            let flag = if ipv4 { "-6" } else { "-4" };
            return Err(BadValue::new(typed, argument, &format!("{flag} selects the other IP version")).into());
        }
        let at = BindAddr { addr: typed.addr, scope };
        if !addrs.contains(&at) {
            addrs.push(at);
        }
    }
    Ok(addrs)
}
