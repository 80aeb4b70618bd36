//! Prints the free ports of destinations, in each output format.

use std::io::{self, Write};
use std::net::SocketAddr;

use serde::Serialize;

use super::human;
use super::json::{self, Envelope};
use super::steps::{self, StepRecord, SysctlLineRecord};
use super::style::TextStyle;
use super::table::{self, Heading};
use super::text::Text;
use super::value::Value;
use crate::analysis::capacity::{Conditions, Destination, advice};
use crate::model::command::Suggestions;
use crate::model::facts::Facts;
use crate::model::time::milliseconds;
use crate::model::tw_reuse::ReuseMode;

/// The answer of `twtool capacity`, with the advice to print.
#[derive(Clone, Copy, Debug)]
pub struct CapacityReport<'a> {
    /// Facts of the network namespace, for the names of services and interfaces.
    pub facts: &'a Facts,
    /// The name of the kernel interface from which the sockets were read.
    pub source: &'static str,
    /// The pool of ports, how long TIME_WAIT lasts, and when connect() may take over a bucket.
    pub conditions: Conditions<'a>,
    /// The destinations to show.
    pub destinations: &'a [Destination],
    /// The number of all destinations, including those that are not shown.
    pub total: usize,
    /// The number of destinations below `--min-free`; `None` without that flag.
    pub below_min_free: Option<usize>,
    /// Commands and advice.
    pub help: &'a Suggestions,
}

#[derive(Serialize)]
struct Payload<'a> {
    source: &'static str,
    range: RangeRecord,
    reserved: u32,
    explicitly_bound: u32,
    uncertain: u32,
    pool: u32,
    reserved_ports: String,
    explicitly_bound_ports: String,
    time_wait_ms: u64,
    tcp_tw_reuse: Option<u8>,
    tcp_tw_reuse_delay_ms: u64,
    tcp_timestamps: Option<bool>,
    total: usize,
    below_min_free: Option<usize>,
    destinations: Vec<DestinationRecord<'a>>,
    verdict: Option<String>,
    commands: Vec<StepRecord<'a>>,
    lasting: Vec<SysctlLineRecord<'a>>,
    advice: &'a [String],
}

#[derive(Serialize)]
struct RangeRecord {
    low: u16,
    high: u16,
    size: u32,
}

/// A destination in JSON and csv. The order of fields is the order of keys.
#[derive(Serialize)]
struct DestinationRecord<'a> {
    local_addr: String,
    remote_addr: String,
    remote_port: u16,
    pool: u32,
    established: u32,
    time_wait: u32,
    reusable: Option<u32>,
    reusable_within_1s: Option<u32>,
    other: u32,
    free: u32,
    uncertain: u32,
    closes_per_s: Option<f64>,
    closes_per_s_now: Option<f64>,
    /// `None` means that there is no limit.
    sustainable_per_s: Option<f64>,
    /// `None` means that the ports are never exhausted at this rate.
    exhausted_in_ms: Option<u64>,
    remote_service: Option<&'a str>,
    interface: Option<String>,
}

const KEYS: &str = "local_addr,remote_addr,remote_port,pool,established,time_wait,reusable,reusable_within_1s,other,free,\
                    uncertain,closes_per_s,closes_per_s_now,sustainable_per_s,exhausted_in_ms,remote_service,interface";

impl<'a> DestinationRecord<'a> {
    fn new(destination: &Destination, pool: u32, facts: &'a Facts) -> Self {
        let ends = destination.ends;
        Self {
            local_addr: ends.local_addr.to_string(),
            remote_addr: ends.remote_addr.to_string(),
            remote_port: ends.remote_port.0,
            pool,
            established: destination.established,
            time_wait: destination.time_wait,
            reusable: destination.reusable,
            reusable_within_1s: destination.reusable_within_1s,
            other: destination.other,
            free: destination.free,
            uncertain: destination.uncertain,
            closes_per_s: destination.closes_per_s,
            closes_per_s_now: destination.closes_per_s_now,
            sustainable_per_s: destination.sustainable_per_s,
            exhausted_in_ms: destination.exhausted_in.map(milliseconds),
            remote_service: facts.services.name(ends.remote_port),
            interface: ends.interface.map(|index| facts.interface_name(index)),
        }
    }

    fn append_csv(&self, csv: &mut Text) {
        let number = |number: Option<u32>| number.map_or(Value::Unknown, |number| Value::Number(number.into()));
        let count = |count: u32| Value::Number(count.into());
        let rates = [self.closes_per_s, self.closes_per_s_now, self.sustainable_per_s]
            .map(|rate| rate.map(|rate| format!("{rate:?}")));
        let [closes, closes_now, sustainable] =
            rates.each_ref().map(|rate| rate.as_deref().map_or(Value::Unknown, Value::Text));
        let fields = [
            Value::Text(&self.local_addr),
            Value::Text(&self.remote_addr),
            Value::Number(self.remote_port.into()),
            count(self.pool),
            count(self.established),
            count(self.time_wait),
            number(self.reusable),
            number(self.reusable_within_1s),
            count(self.other),
            count(self.free),
            count(self.uncertain),
            closes,
            closes_now,
            sustainable,
            self.exhausted_in_ms.map_or(Value::Unknown, Value::Number),
            self.remote_service.map_or(Value::Unknown, Value::Text),
            self.interface.as_deref().map_or(Value::Unknown, Value::Text),
        ];
        Value::append_csv_line(fields, csv);
    }
}

fn records<'a>(capacity: &CapacityReport<'a>) -> impl Iterator<Item = DestinationRecord<'a>> {
    let CapacityReport { facts, conditions, destinations, .. } = *capacity;
    destinations.iter().map(move |destination| DestinationRecord::new(destination, conditions.pool.size, facts))
}

/// Writes the JSON document.
pub fn document(out: &mut (dyn Write + Send), envelope: Envelope, capacity: &CapacityReport) -> io::Result<()> {
    let Conditions { pool, reuse, length } = capacity.conditions;
    let payload = Payload {
        source: capacity.source,
        range: RangeRecord { low: pool.range.first().0, high: pool.range.last().0, size: pool.range.count() },
        reserved: pool.reserved.count(),
        explicitly_bound: pool.explicitly_bound.count(),
        uncertain: pool.most_uncertain(),
        pool: pool.size,
        reserved_ports: pool.reserved.to_string(),
        explicitly_bound_ports: pool.explicitly_bound.to_string(),
        time_wait_ms: u64::from(length.seconds) * 1000,
        tcp_tw_reuse: reuse.mode.map(ReuseMode::number),
        tcp_tw_reuse_delay_ms: milliseconds(reuse.delay),
        tcp_timestamps: reuse.timestamps,
        total: capacity.total,
        below_min_free: capacity.below_min_free,
        destinations: records(capacity).collect(),
        verdict: advice::verdict(capacity.destinations, pool),
        commands: StepRecord::all(&capacity.help.commands),
        lasting: SysctlLineRecord::all(&capacity.help.sysctl_lines),
        advice: &capacity.help.advice,
    };
    json::document(out, envelope, payload)
}

/// Writes one JSON record per destination.
pub fn ndjson(out: &mut (dyn Write + Send), capacity: &CapacityReport) -> io::Result<()> {
    records(capacity).try_for_each(|record| json::line(out, &record))
}

/// Writes csv with a header line.
pub fn csv(out: &mut (dyn Write + Send), capacity: &CapacityReport) -> io::Result<()> {
    let mut text = Text::from(format!("{KEYS}\n"));
    records(capacity).for_each(|record| record.append_csv(&mut text));
    out.write_all(text.as_bytes())
}

/// The headings of the table of destinations.
pub const HEADINGS: [Heading; 10] = [
    Heading::new("FROM"),
    Heading::new("TO"),
    Heading { drop_order: 3, ..Heading::new("ESTAB").right() },
    Heading::new("TIME_WAIT").right(),
    Heading { drop_order: 1, ..Heading::new("REUSABLE").right() },
    Heading { drop_order: 5, ..Heading::new("OTHER").right() },
    Heading::new("FREE").right(),
    Heading { drop_order: 2, ..Heading::new("CLOSES/s").right() },
    Heading { drop_order: 4, ..Heading::new("CEILING/s").right() },
    Heading::new("EXHAUSTED"),
];

/// Writes the page: the pool, the destinations, notes about their numbers, and advice.
pub fn page(out: &mut (dyn Write + Send), capacity: &CapacityReport, style: TextStyle) -> io::Result<()> {
    let CapacityReport { facts, conditions, destinations, total, help, .. } = *capacity;
    let pool = conditions.pool;
    let number = |count: u32| human::with_separators(count.into());
    let line = format!(
        "ports {} ({}), {} reserved, {} explicitly bound: {} for each local address and destination",
        pool.range,
        number(pool.range.count()),
        number(pool.reserved.count()),
        number(pool.explicitly_bound.count()),
        number(pool.size),
    );
    human::break_lines(out, &line, "", "  ", style.width)?;
    writeln!(out)?;
    let mut notes = vec![];
    if destinations.is_empty() && total == 0 {
        writeln!(out, "no outbound connections to show")?;
    } else {
        let rows: Vec<Vec<String>> = destinations.iter().map(|destination| cells(destination, facts)).collect();
        let left_out = table::write(out, &HEADINGS, true, rows.as_slice(), style)?;
        notes.extend((!left_out.is_empty()).then(|| format!("no room for {}", left_out.join(", "))));
    }
    notes.extend((destinations.len() < total).then(|| {
        format!(
            "the {} most urgent of {} destinations; --top shows more",
            destinations.len(),
            human::with_separators(total as u64)
        )
    }));
    notes.extend(
        capacity
            .below_min_free
            .map(|below| format!("{below} of {} below --min-free", human::with_separators(total as u64))),
    );
    notes.extend(destinations.iter().any(|one| one.reusable.is_some_and(|count| count > 0)).then(|| {
        "free includes reusable buckets, which connect() can take over if their connection had TCP timestamps"
            .to_owned()
    }));
    notes.extend(uncertain(conditions, destinations));
    notes.iter().try_for_each(|note| human::break_lines(out, note, "", "  ", style.width))?;
    if let Some(verdict) = advice::verdict(destinations, pool) {
        writeln!(out)?;
        human::break_lines(out, &verdict, "", "", style.width)?;
    }
    if *help != Suggestions::default() {
        writeln!(out)?;
    }
    steps::write(out, help, "", style)
}

/// Explains why there may be fewer free ports than the table shows; `None` if the numbers are exact.
#[must_use]
pub fn uncertain(conditions: Conditions, destinations: &[Destination]) -> Option<String> {
    let Conditions { pool, reuse, .. } = conditions;
    let most = destinations.iter().map(|one| one.uncertain).max().filter(|most| *most > 0)?;
    let mut reasons = vec![];
    if pool.uncertain.count() > 0 {
        reasons.push("it is unknown which ports of connections are explicitly bound".to_owned());
    }
    if pool.unlisted > 0 {
        let may_exist = match pool.unlisted {
            u32::MAX => "it is unknown how many exist".into(),
            1 => "one may exist".into(),
            many => format!("up to {} may exist", human::with_separators(many.into())),
        };
        reasons.push(format!("this kernel does not list bound sockets, and {may_exist}"));
    }
    if reuse.whole_seconds && destinations.iter().any(|one| one.reusable.is_some() && one.time_wait + one.other > 0) {
        reasons.push(
            "this kernel counts ages in whole seconds, so connect() may not yet take over some buckets that free counts"
                .into(),
        );
    }
    if reasons.is_empty() {
        reasons.push(
            "in a range with an odd number of ports, the kernel's search skips the lowest or the highest port".into(),
        );
    }
    Some(format!("free may be up to {most} too high: {}", reasons.join("; ")))
}

/// Formats the cells of a destination, in the order of [`HEADINGS`].
#[must_use]
pub fn cells(destination: &Destination, facts: &Facts) -> Vec<String> {
    let ends = destination.ends;
    let interface = ends.interface.map(|index| format!("%{}", facts.interface_name(index))).unwrap_or_default();
    let service = facts.services.name(ends.remote_port).map(|name| format!(" ({name})")).unwrap_or_default();
    let to = format!("{}{service}", SocketAddr::new(ends.remote_addr, ends.remote_port.0));
    let rate = |rate: Option<f64>| match rate {
        None => "-".into(),
        // A small number has two decimals: with a narrow range of ports, the ceiling can be below one connection per second.
        Some(rate) if rate > 0.0 && rate < 10.0 => format!("{rate:.2}"),
        Some(rate) => format!("{rate:.1}"),
    };
    let exhausted = match destination.exhausted_in {
        // The model predicts the exhaustion from closes only, not from connections that stay open.
        None if destination.closes_per_s == Some(0.0) => "no closes".into(),
        None => "not at this rate".into(),
        Some(time) if time.is_zero() => "now".into(),
        Some(time) => format!("in {}", human::duration(time)),
    };
    vec![
        human::escape(&format!("{}{interface}", ends.local_addr)).into_owned(),
        human::escape(&to).into_owned(),
        destination.established.to_string(),
        destination.time_wait.to_string(),
        destination.reusable.map_or("-".into(), |count| count.to_string()),
        destination.other.to_string(),
        destination.free.to_string(),
        rate(destination.closes_per_s_now),
        rate(destination.sustainable_per_s),
        exhausted,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::capacity::Pool;
    use crate::analysis::capacity::sockets::ConnectionEnds;
    use crate::analysis::history::Length;
    use crate::model::facts::tests::facts;
    use crate::model::port::{LocalReservedPorts, Port, PortRange};
    use crate::model::port_set::PortSet;
    use crate::model::tw_reuse::{ReuseMode, TwReuse};
    use std::time::Duration;
    use unicode_width::UnicodeWidthStr;

    fn destination(addr: &str, exhausted_in: Option<Duration>) -> Destination {
        let addr = addr.parse().expect(addr);
        let ends =
            ConnectionEnds { ipv6: true, local_addr: addr, remote_addr: addr, remote_port: Port(80), interface: None };
        Destination {
            ends,
            established: 1234,
            time_wait: 26_000,
            other: 5,
            reusable: Some(12),
            reusable_within_1s: Some(13),
            free: 998,
            uncertain: 7,
            closes_per_s: Some(433.4),
            closes_per_s_now: Some(437.5),
            sustainable_per_s: Some(470.5),
            exhausted_in,
            first_released: None,
        }
    }

    fn text(width: Option<usize>) -> String {
        let facts = facts();
        let range = PortRange::new(Port(32768), Port(60999)).expect("forwards");
        let uncertain: PortSet = range.ports().take(7).collect();
        let pool = Pool::new(range, &LocalReservedPorts::default(), &PortSet::default(), &uncertain, 0);
        let (mode, delay) = (Some(ReuseMode::LoopbackOnly), Duration::from_secs(1));
        let reuse = TwReuse { mode, delay, whole_seconds: false, timestamps: Some(true) };
        let destinations = [
            destination("2001:db8:1234:5678:9abc:def0:1234:5678", Some(Duration::from_millis(12_345))),
            destination("2001:db8::2", None),
            destination("127.0.0.1", Some(Duration::ZERO)),
        ];
        let advice =
            "Something that takes more than one line of eighty columns, because it is so very long.".to_owned();
        let help = Suggestions { advice: vec![advice], ..Suggestions::default() };
        let capacity = CapacityReport {
            facts: &facts,
            source: "sock_diag",
            conditions: Conditions { pool: &pool, reuse, length: Length::learn(None, None) },
            destinations: &destinations,
            total: 20,
            below_min_free: Some(3),
            help: &help,
        };
        let mut out = vec![];
        page(&mut out, &capacity, TextStyle { color: false, width, unicode: false }).expect("written");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn the_page_fits_the_terminal_and_keeps_the_important_columns() {
        for width in [60, 80, 120] {
            let page = text(Some(width));
            assert!(page.lines().all(|line| line.width() <= width), "{width}:\n{page}");
            for part in ["FREE", "TIME_WAIT", "998", "26000", "in 12.3s", "now", "Something"] {
                assert!(page.contains(part), "{part} at {width}:\n{page}");
            }
        }
        let page = text(None);
        for part in [
            "not at this rate",
            "REUSABLE",
            "437.5",
            "470.5",
            "the 3 most urgent of 20 destinations; --top shows more\n3 of 20 below --min-free\n",
            "free may be up to 7 too high: it is unknown which ports of connections are explicitly bound\n",
        ] {
            assert!(page.contains(part), "{part}:\n{page}");
        }
    }
}
