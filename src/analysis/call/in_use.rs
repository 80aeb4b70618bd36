//! Explains EADDRINUSE of bind() and listen(): which socket holds the port, and what helps.

use std::collections::BTreeSet;

use super::{Explanation, FailedCall, FailedTcpCall, next_steps, options_text, setup_words};
use crate::analysis::advice::{self, BindEvidence, owner_names};
use crate::analysis::next;
use crate::analysis::verdict::{self, Conclusion};
use crate::analysis::{conflict, states};
use crate::model::bind::{Attempt, Cause, Holder, ServerSetup, Verdict};
use crate::model::call::{CallCause, CallName, SocketCall};
use crate::model::command::{Privilege, Step};
use crate::model::process::Owners;
use crate::model::socket::{Socket, TcpState};

pub(super) fn explain(called: &FailedTcpCall, attempt: &Attempt) -> Explanation {
    let FailedTcpCall { failed, facts, addr, socket, .. } = *called;
    let FailedCall { call, holders, shell, .. } = failed;
    let (port, with) = (addr.port, socket.reuse);
    // If the socket lacks SO_REUSEADDR, it is unknown whether the option would have helped. If the socket has it, the failure
    // shows that the option does not help.
    let cause = verdict::cause(facts, port, std::slice::from_ref(attempt), holders, !with.reuseaddr);
    let sockets = holders.iter().map(|holder| &holder.socket);
    let free_in = conflict::free_in(std::slice::from_ref(attempt), &sockets).filter(|_| verdict::only_buckets(cause));
    let blocking: Vec<&Holder> = holders.iter().filter(|holder| holder.blocks).collect();
    let held_by_itself = are_held_by(&blocking, failed.watched);
    let conclusion = Conclusion { verdict: Verdict::Blocked, cause, free_in };
    let evidence = BindEvidence {
        facts,
        port,
        with,
        attempts: std::slice::from_ref(attempt),
        holders,
        conclusion,
        bound_sockets_are_listed: failed.bound_sockets_are_listed,
        uid: call.process.uid,
        udp: false,
        setup: ServerSetup::default(),
    };
    let obstacle = if cause == Cause::Unknown && port.reserved_by_rfc() {
        "a full ephemeral range".into()
    } else {
        advice::obstacle(cause, blocking.iter().copied())
    };
    let mut explanation =
        Explanation::new(Some(Verdict::Blocked), CallCause::Port(cause), format!("blocked by {obstacle}"));
    explanation.free_in = free_in;
    explanation.held_by_itself = held_by_itself;
    let help = &mut explanation.help;
    if held_by_itself == Some(true) {
        help.advice.push(explain_self_conflict(call, &blocking));
    } else {
        help.commands = next_steps(called, cause, attempt, free_in);
        if !with.reuseaddr && matches!(cause, Cause::TimeWait | Cause::Connection) {
            let (port, addr) = (port.to_string(), attempt.at.text(facts));
            let setup = setup_words(socket, attempt);
            let words = ["bind-test", &port, "--addr", &addr].into_iter().chain(setup.iter().map(String::as_str));
            let test = shell.twtool(Privilege::None, &words.collect::<Vec<_>>());
            help.commands.push(Step::new(test, "test with real binds whether SO_REUSEADDR would help"));
        }
        help.append(next::reserve(shell, facts, port));
    }
    help.advice.extend(match cause {
        Cause::TimeWait => time_wait(&evidence),
        Cause::TimeWaitWithoutReuseaddr => old_without_reuseaddr(&evidence),
        Cause::Connection => connection(&evidence),
        Cause::Bound => bound(&evidence),
        Cause::Listener if held_by_itself == Some(true) => vec![],
        _ => advice::advise(&evidence),
    });
    help.advice.push(options_text(socket));
    explanation
}

/// Whether each of these sockets is open in a watched process; `None` if that is unknown. Sockets that no process has open do not count.
fn are_held_by(blocking: &[&Holder], watched: &BTreeSet<i32>) -> Option<bool> {
    let owned: Vec<&&Holder> = blocking.iter().filter(|holder| holder.owners != Owners::Nobody).collect();
    let unknown =
        |holder: &&&Holder| matches!(holder.owners, Owners::NotPermitted | Owners::NotRead | Owners::NotFound(_));
    if blocking.is_empty() || owned.iter().any(unknown) {
        return None;
    }
    Some(!owned.is_empty() && owned.iter().all(|holder| is_held_by(holder, watched)))
}

pub(super) fn is_held_by(holder: &Holder, watched: &BTreeSet<i32>) -> bool {
    matches!(&holder.owners, Owners::Found(processes) if processes.iter().any(|process| watched.contains(&process.pid)))
}

fn explain_self_conflict(call: &SocketCall, blocking: &[&Holder]) -> String {
    let by = owner_names(blocking.iter().copied());
    let why = match call.name {
        CallName::Listen => {
            "Two sockets of the program are bound to the same address and port, and only one can listen"
        }
        _ => {
            "The program binds the port more than once. Possible reasons: it binds a wildcard address and another address; it \
             binds 0.0.0.0 and a dual-stack :: (set IPV6_V6ONLY); a second worker does not set SO_REUSEPORT; or it repeats the \
             same bind"
        }
    };
    format!("The program itself holds the port: {by}. {why}.")
}

/// For example `1 TIME_WAIT socket is`.
fn buckets_are(evidence: &BindEvidence) -> String {
    let blocking = || evidence.holders.iter().filter(|holder| holder.blocks);
    let are = if blocking().count() == 1 { "is" } else { "are" };
    format!("{} {are}", advice::count_buckets_by_state(blocking()))
}

fn time_wait(evidence: &BindEvidence) -> Vec<String> {
    let buckets_are = buckets_are(evidence);
    vec![
        "Set SO_REUSEADDR on the listening socket before bind(). The connections that it accepts inherit the option, \
         and so do the TIME_WAIT sockets that they become (socket(7))."
            .into(),
        format!(
            "{buckets_are} on the port, and the program did not set SO_REUSEADDR. Whether the option helps today depends on the \
             sockets that closed: Linux checks the old and the new socket, and does not report the option of the old one."
        ),
    ]
}

fn old_without_reuseaddr(evidence: &BindEvidence) -> Vec<String> {
    let buckets_are = buckets_are(evidence);
    vec![format!(
        "{buckets_are} on the port. The program sets SO_REUSEADDR, and the sockets that closed did not all have it. Linux \
         checks the old and the new socket (socket(7)), so the option on the new one alone does not help. Once the \
         program has started, its own TIME_WAIT sockets do not block its later restarts, because the connections that \
         it accepts inherit the option."
    )]
}

fn connection(evidence: &BindEvidence) -> Vec<String> {
    let connections = || evidence.holders.iter().filter(|h| h.blocks && advice::is_connection(h.socket.state()));
    let mut advice = vec![if evidence.with.reuseaddr {
        "The program sets SO_REUSEADDR, and a socket on the port was opened without it. Linux checks the option of both \
         (socket(7))."
            .to_owned()
    } else {
        "The program did not set SO_REUSEADDR. Whether the option helps depends on the sockets on the port: Linux checks the \
         option of both (socket(7))."
            .into()
    }];
    let full = connections().filter_map(|holder| match holder.socket {
        Socket::Full(full) => states::explain(&full),
        Socket::Bucket(_) => None,
    });
    let mut explained: Vec<String> = full.collect();
    explained.sort_unstable();
    explained.dedup();
    advice.extend(explained);
    advice
}

fn bound(evidence: &BindEvidence) -> Vec<String> {
    let is_bound = |holder: &&Holder| matches!(holder.socket.state(), TcpState::Closed | TcpState::BoundInactive);
    let sockets = || evidence.holders.iter().filter(|holder| holder.blocks).filter(is_bound);
    let bound = if sockets().count() == 1 {
        "A socket is bound to the port and does not listen"
    } else {
        "Sockets are bound to the port and do not listen"
    };
    vec![format!("{bound}: {}. Stop what holds the port, or choose another port.", owner_names(sockets()))]
}
