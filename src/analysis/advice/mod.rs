//! Advice after a bind test: the permanent solution, and the reason with its source. [`super::next`] has the commands that help now.

mod buckets;
mod client;
mod denial;
mod obstacle;
mod own_socket;
mod ports;
mod sockets;

use super::verdict::Conclusion;
use crate::model::bind::{Attempt, CallResult, Cause, Holder, ReuseOptions, ServerSetup, Verdict};
use crate::model::facts::Facts;
use crate::model::port::Port;
pub use buckets::count_buckets_by_state;
pub use denial::{denial, denials, needed_options};
pub use obstacle::obstacle;
pub use own_socket::earlier_addresses;
pub use sockets::{is_connection, owner_names};

/// The result of a bind test, on which the advice is based.
#[derive(Clone, Copy, Debug)]
pub struct BindEvidence<'a> {
    /// The facts of the network namespace.
    pub facts: &'a Facts,
    /// The tested port.
    pub port: Port,
    /// The options that the server sets.
    pub with: ReuseOptions,
    /// One attempt for each address and option set.
    pub attempts: &'a [Attempt],
    /// Every socket on the port.
    pub holders: &'a [Holder],
    /// The verdict and its cause.
    pub conclusion: Conclusion,
    /// Whether the source of `holders` lists sockets that are bound and do not listen (sock_diag does, since Linux 6.8).
    pub bound_sockets_are_listed: bool,
    /// The effective user of the test; `None`: unknown.
    pub uid: Option<u32>,
    /// Whether a UDP socket uses the same port number. Always false if a TCP socket is on the port.
    pub udp: bool,
    /// The other options of the server.
    pub setup: ServerSetup,
}

/// Returns the advice for the result of a bind test, as sentences.
#[must_use]
pub fn advise(evidence: &BindEvidence) -> Vec<String> {
    let mut advice = client::sentences(evidence);
    advice.extend(match evidence.conclusion.cause {
        Cause::None | Cause::OwnSocket => vec![],
        Cause::TimeWait | Cause::TimeWaitWithoutReuseaddr => buckets::advise(evidence),
        Cause::Listener => sockets::listener(evidence),
        Cause::Connection => sockets::connection(evidence),
        Cause::Bound => sockets::bound(evidence),
        Cause::Unknown if evidence.conclusion.verdict != Verdict::Denied => {
            vec![ports::unlisted_socket_advice(evidence)]
        }
        Cause::PrivilegedPort | Cause::AddressNotLocal | Cause::FamilyUnsupported | Cause::Unknown => {
            denial::explain_denials(evidence)
        }
    });
    advice.extend(own_socket::collision(evidence));
    advice.extend(denial::plain_user(evidence));
    advice.extend(sockets::shared_socket(evidence));
    advice.extend(ports::ephemeral(evidence));
    advice.extend(evidence.udp.then(|| ports::udp(evidence)));
    advice
}

fn blocking<'a>(evidence: &BindEvidence<'a>) -> impl Iterator<Item = &'a Holder> + Clone {
    evidence.holders.iter().filter(|holder| holder.blocks)
}

/// A number with its noun, singular or plural: `1 socket`, `3 sockets`.
#[must_use]
pub fn counted_noun(n: usize, one: &str) -> String {
    if n == 1 { format!("1 {one}") } else { format!("{n} {one}s") }
}

/// The smallest set of options with which a bind works on every address. SO_REUSEADDR is preferred to SO_REUSEPORT.
fn fewest_that_work(evidence: &BindEvidence) -> Option<ReuseOptions> {
    let works = |options: &ReuseOptions| {
        let mut attempts = evidence.attempts.iter().filter(|attempt| attempt.options == *options).peekable();
        attempts.peek().is_some() && attempts.all(|attempt| attempt.outcome() == CallResult::Ok)
    };
    ReuseOptions::ALL.into_iter().find(works)
}

fn set_options_advice(options: ReuseOptions) -> String {
    let caution = if options.reuseport {
        " Use SO_REUSEPORT only if several servers are meant to share the port. It is not a general solution, because \
         it also lets a second server of the same user bind."
    } else {
        ""
    };
    format!(
        "Set {options} on the listening socket before bind(): it works now on every address that was tried.{caution}"
    )
}

const BOTH_SIDES: &str = "Linux checks the option of the old and of the new socket (socket(7), SO_REUSEADDR)";
