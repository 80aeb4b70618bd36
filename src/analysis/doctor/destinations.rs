//! The check of ports that connect() has left: which destinations run out of them.

use std::time::Duration;

use super::{Check, Datum, Status, Subject};
use crate::analysis::capacity::{Conditions, Destination, advice};
use crate::model::command::Shell;
use crate::model::facts::Facts;

/// Destinations that the finding names; the evidence has more.
const NAMED: usize = 3;

/// Destinations in the evidence; `twtool capacity` has all.
const SHOWN: usize = 20;

/// What is open to whom, and what decides how many ports there are.
#[derive(Clone, Copy, Debug)]
pub struct Outbound<'a> {
    /// The one with the fewest free ports first.
    pub destinations: &'a [Destination],
    /// The pool, and when it gets ports back.
    pub conditions: Conditions<'a>,
}

/// `Err`: why nothing is known.
pub(super) fn check(outbound: Result<Outbound, &str>, facts: &Facts, shell: &Shell) -> Check {
    let subject = Subject {
        id: "destinations",
        does: "Counts the destinations, each an address and a port as seen from one local address, that connect() has fewer \
               than a tenth of its ports left for, or that run out of them at the present rate of closes.",
        does_not: "The number of all TIME_WAIT says nothing here: each destination has the range for itself. That a \
                   destination runs out at the present rate is an inference; twtool capacity has its numbers.",
        sources: &[
            "ip(7), ip_local_port_range",
            "connect(2), EADDRNOTAVAIL",
            "net/ipv4/inet_hashtables.c, __inet_hash_connect()",
        ],
    };
    let outbound = match outbound {
        Ok(outbound) => outbound,
        Err(why) => {
            let finding = format!("How many ports destinations have left is not known: {why}.");
            return Check::ok(subject, Datum::Unknown, Datum::Unknown).found(Status::Unknown, finding);
        }
    };
    let Outbound { destinations, conditions } = outbound;
    let pool = conditions.pool;
    let short: Vec<&Destination> = destinations.iter().filter(|one| advice::is_short(one, pool)).collect();
    let records = short.iter().take(SHOWN).map(|one| record(one)).collect();
    let check = Check::ok(subject, short.len().into(), Datum::Unknown)
        .with("all_destinations", destinations.len())
        .with("pool", Some(pool.size))
        .with("short", Datum::List(records));
    if short.is_empty() {
        return check;
    }
    let mut named: Vec<String> = short.iter().take(NAMED).map(|one| advice::ports_left(one, pool.size)).collect();
    named.extend((short.len() > NAMED).then(|| format!("{} more", short.len() - NAMED)));
    check.found(Status::Warning, format!("{}.", named.join("; "))).helped_by(advice::advise(
        destinations,
        &conditions,
        facts,
        shell,
    ))
}

fn record(one: &Destination) -> Datum {
    let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    Datum::Record(vec![
        ("local_addr", one.ends.local_addr.to_string().into()),
        ("remote_addr", one.ends.remote_addr.to_string().into()),
        ("remote_port", Datum::Number(one.ends.remote_port.0.into())),
        ("established", Some(one.established).into()),
        ("time_wait", Some(one.time_wait).into()),
        ("other", Some(one.other).into()),
        ("free", Some(one.free).into()),
        ("uncertain", Some(one.uncertain).into()),
        ("exhausted_in_ms", one.exhausted_in.map(milliseconds).into()),
    ])
}
