//! Advice for a bind that only timewait buckets block.

use std::time::Duration;

use super::client;
use super::{BOTH_SIDES, BindEvidence, blocking, counted_noun, fewest_that_work, set_options_advice};
use crate::model::bind::{Holder, ReuseOptions, Verdict};
use crate::model::row::Direction;
use crate::model::socket::{Socket, TimeWaitBucket};

fn seconds(time: Duration) -> String {
    format!("{}.{:03} s", time.as_secs(), time.subsec_millis())
}

fn buckets(evidence: &BindEvidence) -> impl Iterator<Item = (TimeWaitBucket, Direction)> {
    blocking(evidence).filter_map(|holder| match holder.socket {
        Socket::Bucket(bucket) => Some((bucket, holder.direction)),
        Socket::Full(_) => None,
    })
}

/// Counts the buckets among the holders by state: `2 TIME_WAIT sockets and 1 FIN_WAIT_2 socket`.
pub fn count_buckets_by_state<'a>(holders: impl Iterator<Item = &'a Holder>) -> String {
    let (mut time_wait, mut fin_wait_2) = (0, 0);
    for holder in holders {
        match holder.socket {
            Socket::Bucket(bucket) if bucket.fin_wait_2 => fin_wait_2 += 1,
            Socket::Bucket(_) => time_wait += 1,
            Socket::Full(_) => {}
        }
    }
    let counted = [(time_wait, "TIME_WAIT socket"), (fin_wait_2, "FIN_WAIT_2 socket")];
    let named: Vec<String> = counted.into_iter().filter(|(n, _)| *n > 0).map(|(n, one)| counted_noun(n, one)).collect();
    named.join(" and ")
}

pub(super) fn advise(evidence: &BindEvidence) -> Vec<String> {
    let mut advice = vec![];
    let works = fewest_that_work(evidence);
    let one = buckets(evidence).count() == 1;
    let counted = count_buckets_by_state(blocking(evidence));
    let is_outbound = |(_, direction): (_, Direction)| direction == Direction::Outbound;
    match works {
        Some(ReuseOptions::REUSEADDR) => {
            advice.push("Set SO_REUSEADDR on the listening socket before bind(): it works now.".into());
        }
        Some(options) => advice.push(set_options_advice(options)),
        // If all buckets look outbound, a client probably left them, so advice for a server would not help.
        None if buckets(evidence).all(is_outbound) => {}
        None => advice.push(
            "For the next restart, set SO_REUSEADDR in the server before it binds. The connections that it accepts \
             inherit the option, and so do the TIME_WAIT sockets that they become (socket(7))."
                .into(),
        ),
    }
    if client::unexplained(evidence).any(|holder| matches!(holder.socket, Socket::Bucket(_))) {
        advice.push(outbound_connection(evidence));
    }
    if evidence.conclusion.verdict == Verdict::Blocked {
        advice.push(when_free(evidence));
    }
    let (hold, closed_by) =
        if one { ("holds", "The program that closed it had") } else { ("hold", "The programs that closed them had") };
    let set = match works {
        Some(ReuseOptions::BOTH) if one => "set one of the two options",
        Some(ReuseOptions::BOTH) => "each set one of the two options",
        Some(_) => "set the option too",
        None if one => "not set SO_REUSEADDR",
        None => "not all set SO_REUSEADDR",
    };
    let alone = if works.is_some() { "" } else { ", so SO_REUSEADDR on the new socket alone does not help" };
    advice.push(format!("{counted} {hold} the port. {closed_by} {set}. {BOTH_SIDES}{alone}."));
    advice
}

fn outbound_connection(evidence: &BindEvidence) -> String {
    let BindEvidence { facts, port, .. } = *evidence;
    let cure = if facts.locally_reserved(port) == Some(true) {
        "The port is reserved now, so connect() no longer chooses it. This connection is older, or its client bound \
         the port itself."
    } else {
        "Clients rarely set SO_REUSEADDR, so the remedy is to reserve the port for servers."
    };
    format!("A client on this machine used port {port} as its source port (inferred from the ports). {cure}")
}

fn when_free(evidence: &BindEvidence) -> String {
    let least = buckets(evidence).any(|(bucket, _)| bucket.fin_wait_2);
    let Some(free_in) = evidence.conclusion.free_in else {
        return "It is unknown when the port becomes free. Several sockets may block it, they end at different times, \
                and the kernel does not report whether the IPv6 sockets have IPV6_V6ONLY."
            .into();
    };
    let free_in = seconds(free_in);
    if least {
        format!(
            "Without any action the port is free in {free_in} at the earliest. When the peer of a FIN_WAIT_2 socket closes, \
             the socket becomes TIME_WAIT with a fresh timer, 60 s on an unmodified kernel."
        )
    } else {
        format!(
            "Without any action the port is free in {free_in}, when the last timer ends. These timers can end some seconds \
             late, and a retransmitted FIN restarts the timer of its socket (RFC 9293, section 3.10.7.4)."
        )
    }
}
