//! The check for destinations that run out of ephemeral ports.

use super::{Check, Datum, Status, Subject};
use crate::analysis::capacity::{Conditions, Destination, advice};
use crate::model::command::Shell;
use crate::model::facts::Facts;
use crate::model::time::milliseconds;

/// The maximum number of destinations that the finding names.
const NAMED: usize = 3;

/// The maximum number of destinations in the evidence. `twtool capacity` lists all of them.
const SHOWN: usize = 20;

/// The outbound connections by destination, and the conditions that decide how many ports a destination can use.
#[derive(Clone, Copy, Debug)]
pub struct OutboundConnections<'a> {
    /// The destinations, the most urgent one first.
    pub destinations: &'a [Destination],
    /// The pool of ports, and how long a bucket holds a port.
    pub conditions: Conditions<'a>,
}

pub(super) fn check(outbound: Result<OutboundConnections, &str>, facts: &Facts, shell: &Shell) -> Check {
    let subject = Subject {
        id: "destinations",
        does: "Counts the destinations for which connect() has less than a tenth of its ports left, or will have none at the \
               present rate of closes. A destination is a remote address and port, seen from one local address.",
        does_not: "It does not compare the total number of TIME_WAIT sockets with the range, because each destination can use \
                   the whole range. The forecast is an inference from the present rate; twtool capacity shows the numbers.",
        sources: &[
            "ip(7), ip_local_port_range",
            "connect(2), EADDRNOTAVAIL",
            "net/ipv4/inet_hashtables.c, __inet_hash_connect()",
        ],
    };
    let outbound = match outbound {
        Ok(outbound) => outbound,
        Err(why) => {
            let finding = format!("It is unknown how many ports are left for each destination: {why}.");
            return Check::ok(subject, Datum::Unknown, Datum::Unknown).found(Status::Unknown, finding);
        }
    };
    let OutboundConnections { destinations, conditions } = outbound;
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
