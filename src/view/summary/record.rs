//! The JSON payload of a summary.

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use crate::analysis::groups::{GroupBy, GroupKey, Ranking, StateCounts};
use crate::analysis::history::{History, RemainingTimes};
use crate::analysis::makers::MakerGroupKey;
use crate::analysis::owner_counts::OwnerGroup;
use crate::analysis::summary::Summary;
use crate::model::owner::Evidence;
use crate::view::owner::{ContainerRecord, pid_namespace};
use crate::view::steps::StepRecord;
use crate::view::summary::Content;

/// The `TcpExt` counters of a summary: the JSON key and the kernel's name for each. docs/commands/summary.md explains each.
pub(super) const COUNTERS: [(&str, &str); 7] = [
    ("tw", "TW"),
    ("tw_recycled", "TWRecycled"),
    ("tw_killed", "TWKilled"),
    ("tcp_time_wait_overflow", "TCPTimeWaitOverflow"),
    ("paws_timewait", "PAWSTimewait"),
    ("paws_estab", "PAWSEstab"),
    ("tcp_ack_skipped_time_wait", "TCPACKSkippedTimeWait"),
];

/// The intervals of remaining times in seconds: more than the first number, and at most the second. `None`: no upper limit.
pub(super) const SPANS: [(usize, Option<usize>); 6] =
    [(0, Some(1)), (1, Some(5)), (5, Some(15)), (15, Some(30)), (30, Some(60)), (60, None)];

#[derive(Serialize)]
pub(super) struct Payload<'a> {
    source: &'static str,
    totals: TotalsRecord,
    groups: OrderedObject<GroupRecord<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    owners: Option<OrderedObject<u64>>,
    history: HistoryRecord,
    remaining: Vec<SpanRecord>,
    memory: MemoryRecord,
    limits: Vec<LimitRecord<'a>>,
    commands: Vec<StepRecord<'a>>,
    counters: OrderedObject<Option<u64>>,
}

/// A JSON object that keeps the order of its keys.
struct OrderedObject<T>(Vec<(&'static str, T)>);

impl<T: Serialize> Serialize for OrderedObject<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
    }
}

#[derive(Serialize)]
struct TotalsRecord {
    time_wait: u32,
    fin_wait_2: u32,
    sockstat_tw: Option<u64>,
    sockstat_difference: Option<i64>,
    reconciliation: String,
    max_tw_buckets: Option<i64>,
}

#[derive(Serialize)]
struct GroupRecord<'a> {
    top: Vec<LineRecord<'a>>,
    others: u64,
    distinct: usize,
}

/// A row of a group. A value that `twtool list` also has, for example `local_port`, has the same JSON key here.
struct LineRecord<'a> {
    key: GroupKey,
    count: StateCounts,
    content: Content<'a>,
    group: &'a Ranking,
}

impl Serialize for LineRecord<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        match self.key {
            GroupKey::Class(class) => map.serialize_entry("local_class", class.name())?,
            GroupKey::Direction(direction) => map.serialize_entry("direction", direction.name())?,
            GroupKey::LocalPort(port) => {
                map.serialize_entry("local_port", &port.0)?;
                map.serialize_entry("local_class", port.class().name())?;
                map.serialize_entry("local_service", &self.content.facts.services.name(port))?;
            }
            GroupKey::Netns(place) => {
                let facts = &self.content.namespaces[place];
                map.serialize_entry("netns", &facts.netns)?;
                map.serialize_entry("netns_name", &facts.netns_name)?;
            }
            GroupKey::Owner(place) => serialize_owner(&self.group.owners[place], self.group.by, &mut map)?,
            GroupKey::RemoteAddr(addr) => map.serialize_entry("remote_addr", &addr)?,
            GroupKey::RemotePort(port) | GroupKey::Destination(_, port) => {
                if let GroupKey::Destination(addr, _) = self.key {
                    map.serialize_entry("remote_addr", &addr)?;
                }
                map.serialize_entry("remote_port", &port.0)?;
                map.serialize_entry("remote_class", port.class().name())?;
                map.serialize_entry("remote_service", &self.content.facts.services.name(port))?;
            }
        }
        map.serialize_entry("count", &self.count.all())?;
        map.serialize_entry("fin_wait_2", &self.count.fin_wait_2)?;
        map.end()
    }
}

/// The JSON key of each kind of evidence, in the order of `Evidence::ALL`.
const EVIDENCE: [&str; Evidence::ALL.len()] = ["traced", "sampled", "listener", "same_destination"];

fn serialize_owner<M: SerializeMap>(owner: &OwnerGroup, by: GroupBy, map: &mut M) -> Result<(), M::Error> {
    let group = match &owner.key {
        MakerGroupKey::Process(_) => "process",
        MakerGroupKey::Unit(_) => "unit",
        MakerGroupKey::Container(..) => "container",
        MakerGroupKey::Outside => "none",
        _ => "unknown",
    };
    map.serialize_entry("group", group)?;
    let process = if let MakerGroupKey::Process(process) = &owner.key { Some(process) } else { None };
    if by == GroupBy::Owner {
        map.serialize_entry("pid", &process.map(|process| process.pid))?;
        map.serialize_entry("pid_namespace", &process.map(|process| pid_namespace(process.own_pid_namespace)))?;
        map.serialize_entry("comm", &process.map(|process| &process.comm))?;
    }
    if by != GroupBy::Container {
        let unit = if let MakerGroupKey::Unit(unit) = &owner.key { Some(unit) } else { None };
        map.serialize_entry("unit", &unit.or_else(|| process?.unit.as_ref()))?;
    }
    if by != GroupBy::Unit {
        let of_process = || process?.container.as_ref().map(|(runtime, id)| (*runtime, id));
        let container =
            if let MakerGroupKey::Container(runtime, id) = &owner.key { Some((*runtime, id)) } else { of_process() };
        map.serialize_entry("container", &container.map(|(runtime, id)| ContainerRecord { runtime, id }))?;
    }
    let counts = EVIDENCE.into_iter().zip(owner.evidence.map(|evidence| evidence.buckets)).collect();
    map.serialize_entry("evidence", &OrderedObject(counts))?;
    let candidates = owner.evidence.iter().map(|evidence| evidence.candidates).max();
    map.serialize_entry("candidates", &candidates.filter(|candidates| *candidates > 0))
}

#[derive(Serialize)]
struct HistoryRecord {
    bucket_ms: u32,
    closes: Vec<Option<u64>>,
    total: u64,
    now_per_s: Option<u64>,
    mean_per_s: Option<f64>,
    peak_per_s: Option<u64>,
    peak_ago_ms: Option<usize>,
    covered_ms: usize,
    length_ms: u64,
    length_source: &'static str,
    largest_remaining_ms: Option<u32>,
}

#[derive(Serialize)]
struct SpanRecord {
    over_ms: Option<usize>,
    up_to_ms: Option<usize>,
    count: u64,
}

#[derive(Serialize)]
struct MemoryRecord {
    bytes: u64,
    bytes_per_bucket: u64,
    measured: bool,
}

#[derive(Serialize)]
struct LimitRecord<'a> {
    id: &'static str,
    found: bool,
    count: Option<u64>,
    text: &'a str,
}

impl HistoryRecord {
    fn new(history: &History, times: &RemainingTimes) -> Self {
        let peak = history.peak();
        Self {
            bucket_ms: 1000,
            closes: history.closes.to_vec(),
            total: history.total(),
            now_per_s: history.now(),
            mean_per_s: history.mean(),
            peak_per_s: peak.map(|(closes, _)| closes),
            peak_ago_ms: peak.map(|(_, seconds)| seconds * 1000),
            covered_ms: history.covered() * 1000,
            length_ms: u64::from(history.length.seconds) * 1000,
            length_source: history.length.source.name(),
            largest_remaining_ms: times.largest_ms(),
        }
    }
}

pub(super) fn payload<'a>(content: &Content<'a>) -> Payload<'a> {
    let Content { summary, source, help, .. } = *content;
    let Summary { totals, times, history, memory, limits, kernel, .. } = summary;
    let group = |group: &'a Ranking| {
        let top = group.top.iter().map(|&(key, count)| LineRecord { key, count, content: *content, group }).collect();
        (group.by.name(), GroupRecord { top, others: group.others.all(), distinct: group.distinct })
    };
    let owners = summary.evidence().map(|evidence| {
        let unknown = totals.all() - evidence.iter().sum::<u64>();
        OrderedObject(EVIDENCE.into_iter().zip(evidence).chain([("unknown", unknown)]).collect())
    });
    let due = SpanRecord { over_ms: None, up_to_ms: Some(0), count: times.due() };
    let spans = SPANS.map(|(over, up_to)| SpanRecord {
        over_ms: Some(over * 1000),
        up_to_ms: up_to.map(|seconds| seconds * 1000),
        count: times.between(over, up_to),
    });
    Payload {
        source,
        totals: TotalsRecord {
            time_wait: totals.time_wait,
            fin_wait_2: totals.fin_wait_2,
            sockstat_tw: kernel.sockstat.map(|sockstat| sockstat.tw),
            sockstat_difference: summary.sockstat_difference(),
            reconciliation: summary.reconciliation(|number| number.to_string()),
            max_tw_buckets: kernel.max_tw_buckets,
        },
        groups: OrderedObject(summary.groups.iter().map(group).collect()),
        owners,
        history: HistoryRecord::new(history, times),
        remaining: std::iter::once(due).chain(spans).collect(),
        memory: MemoryRecord {
            bytes: memory.bytes,
            bytes_per_bucket: memory.bytes_per_bucket,
            measured: memory.measured,
        },
        limits: limits
            .iter()
            .map(|limit| LimitRecord { id: limit.id, found: limit.found, count: limit.count, text: &limit.text })
            .collect(),
        commands: StepRecord::all(&help.commands),
        counters: OrderedObject(COUNTERS.iter().map(|(key, name)| (*key, kernel.counter(name))).collect()),
    }
}
