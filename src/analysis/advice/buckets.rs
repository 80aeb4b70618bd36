//! Advice where only timewait buckets are in the way of a bind.

use std::time::Duration;

use super::{BOTH_SIDES, Evidence, blocking, count, fewest_that_work, set};
use crate::model::bind::ReuseOptions;
use crate::model::row::Direction;
use crate::model::socket::{Socket, TimeWaitBucket};

/// Exact to the millisecond, as the kernel gave it.
fn seconds(time: Duration) -> String {
    format!("{}.{:03} s", time.as_secs(), time.subsec_millis())
}

/// The buckets in the way, with who opened their connections.
fn buckets(evidence: &Evidence) -> impl Iterator<Item = (TimeWaitBucket, Direction)> {
    blocking(evidence).filter_map(|holder| match holder.socket {
        Socket::Bucket(bucket) => Some((bucket, holder.direction)),
        Socket::Full(_) => None,
    })
}

/// `3 timewait buckets`.
fn buckets_counted(evidence: &Evidence) -> String {
    count(buckets(evidence).count(), "timewait bucket")
}

/// Why options work: the old sockets had them, between them.
fn had_too(evidence: &Evidence, options: ReuseOptions) -> String {
    let one = buckets(evidence).count() == 1;
    let had = match (options, one) {
        (ReuseOptions::BOTH, false) => "each had one of the two",
        (ReuseOptions::BOTH, true) => "had one of the two",
        _ => "had it too",
    };
    let who = if one { "the socket that left" } else { "the sockets that left" };
    format!("{who} {} {had}. {BOTH_SIDES}.", buckets_counted(evidence))
}

pub(super) fn timewait_reusable(evidence: &Evidence) -> String {
    let options = fewest_that_work(evidence).unwrap_or(evidence.with);
    format!("Set {options} on the listening socket before bind(): it works now, because {}", had_too(evidence, options))
}

/// What a time until the port is free is worth where there are FIN_WAIT_2 buckets.
pub(super) fn at_least(evidence: &Evidence) -> Option<String> {
    let free_in = evidence.conclusion.free_in?;
    buckets(evidence).any(|(bucket, _)| bucket.fin_wait_2).then(|| {
        format!(
            "The port is free in {} at the least, when the last timer ends: a FIN_WAIT_2 bucket is among them, and when its \
             peer closes it becomes TIME_WAIT with a fresh timer, 60 s on an unmodified kernel.",
            seconds(free_in)
        )
    })
}

pub(super) fn timewait_blocks(evidence: &Evidence) -> Vec<String> {
    let Evidence { facts, port, .. } = *evidence;
    let one = buckets(evidence).count() == 1;
    let mut advice = vec![];
    match fewest_that_work(evidence) {
        Some(ReuseOptions::REUSEADDR) => advice.push(timewait_reusable(evidence)),
        Some(options) => advice.push(format!(
            "{} It gets past because {}",
            set(options),
            had_too(evidence, options)
        )),
        None => advice.push(format!(
            "{} the port, and {} did not have SO_REUSEADDR when {} closed. {BOTH_SIDES}, so SO_REUSEADDR on the new socket \
             alone does not help.",
            if one { "1 timewait bucket holds".into() } else { format!("{} hold", buckets_counted(evidence)) },
            if one { "the socket that left it" } else { "at least one of the sockets that left them" },
            if one { "it" } else { "they" },
        )),
    }
    advice.extend(at_least(evidence).or_else(|| {
        let free_in = evidence.conclusion.free_in?;
        Some(format!(
            "Left alone, the port is free when the last timer ends, in {}. The kernel's timers are coarse and may end some \
             seconds late, and a retransmitted FIN restarts one (RFC 9293, section 3.10.7.4).",
            seconds(free_in)
        ))
    }));
    if buckets(evidence).any(|(_, direction)| direction == Direction::Outbound) {
        let cure = if facts.locally_reserved(port) == Some(true) {
            "The port is reserved now, so connect() chooses it no more: this connection is older, or its client bound the \
             port by itself."
        } else {
            "Clients rarely set SO_REUSEADDR, so the cure is to keep connect() off the port."
        };
        advice.push(format!(
            "By its ports, a connection was an outbound one (inferred): some client on this machine had port {port} as its \
             own. {cure}"
        ));
    } else if fewest_that_work(evidence) != Some(ReuseOptions::REUSEADDR) {
        advice.push(
            "For the next restart: let the server set SO_REUSEADDR before it binds; the connections that it accepts \
             inherit it, and so do the buckets that they leave (socket(7))."
                .into(),
        );
    }
    advice
}
