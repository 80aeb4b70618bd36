//! Turns surveys into samples. The number of samples of each network namespace has an upper bound, because remote hosts choose addresses
//! and programs choose ports. So only the most important addresses and ports get samples of their own.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use super::closes::{CloseCounts, NetnsCloses, ProgramGroup, ProgramLabels};
use super::family::MetricFamily;
use super::samples::Samples;
use crate::analysis::capacity::Destination;
use crate::analysis::doctor::sockets::unreserved_servers;
use crate::analysis::doctor::{LeakThreshold, Status};
use crate::analysis::summary::bucket_bytes;
use crate::model::command::Shell;
use crate::model::facts::Facts;
use crate::model::health::{CloseWait, Health};
use crate::model::port::PortClass;
use crate::model::process::{Owners, Process};
use crate::model::row::Direction;
use crate::model::setting::{NF_CONNTRACK_COUNT, NF_CONNTRACK_MAX, Sysctl};
use crate::snapshot::survey::{Survey, Surveys};
use crate::snapshot::{Answer, Capacity};

/// The label value of the sample that stands for all destinations, ports or programs without a sample of their own. Its value is
/// usually their sum; docs/metrics.md lists the exceptions.
const OTHERS: &str = "others";

/// The upper bounds of the number of samples.
#[derive(Clone, Copy, Debug)]
pub struct SampleLimits {
    /// The maximum number of destinations with samples of their own in each network namespace. The same maximum applies separately to
    /// server ports, to unreserved servers, to owners of sockets, and to programs that close connections.
    pub destinations: usize,
    /// The maximum number of network namespaces with samples.
    pub namespaces: usize,
}

/// The data that one collection has read.
#[derive(Debug)]
pub struct CollectedSurveys {
    /// The surveys.
    pub answer: Answer<Surveys>,
    /// A socket in CLOSE_WAIT counts as silent if the last ACK of its peer is at least this old.
    pub silent: Duration,
    /// The closes since the exporter started; `None` without `--trace`.
    pub closes: Option<CloseCounts>,
}

impl CollectedSurveys {
    /// The inode numbers of the network namespaces.
    #[must_use]
    pub fn inodes(&self) -> BTreeSet<u64> {
        let namespaces = self.answer.value.namespaces.iter();
        namespaces.filter_map(|survey| survey.checkup.health.facts.netns).collect()
    }
}

/// Turns the surveys into samples.
#[must_use]
pub fn collect(collected: &CollectedSurveys, bounds: SampleLimits) -> Samples {
    let Surveys { namespaces, owners_took } = &collected.answer.value;
    let mut samples = Samples::default();
    let mut labels = BTreeSet::new();
    for survey in namespaces.iter().take(bounds.namespaces) {
        let facts = &survey.checkup.health.facts;
        // Prometheus refuses two samples with equal labels. Two names can give the same label, because a byte that is not UTF-8 becomes
        // an escape like `\xff`, and another name can contain these four characters.
        let mut netns = label(facts);
        if !labels.insert(netns.clone()) {
            netns = inode(facts);
            if !labels.insert(netns.clone()) {
                continue;
            }
        }
        let closes = collected.closes.as_ref().zip(facts.netns).and_then(|(closes, inode)| closes.of(inode));
        let (most, silent) = (bounds.destinations, collected.silent);
        Namespace { samples: &mut samples, netns, survey, most, silent, closes }.add();
    }
    if let Some(closes) = &collected.closes {
        samples.add(MetricFamily::TraceLost, NO_LABELS, closes.lost);
        samples.add(MetricFamily::TraceSkipped, NO_LABELS, closes.skipped);
    }
    samples.add(MetricFamily::CollectionComplete, NO_LABELS, collected.answer.complete);
    samples.add(MetricFamily::Namespaces, NO_LABELS, namespaces.len());
    samples.add(MetricFamily::NamespacesOmitted, NO_LABELS, namespaces.len().saturating_sub(bounds.namespaces));
    let taken_at = namespaces.iter().map(|survey| survey.checkup.health.facts.taken_at).min();
    samples.add_known(MetricFamily::CollectionTime, NO_LABELS, taken_at.and_then(seconds_since_1970));
    let sum = |part: fn(&Survey) -> Duration| namespaces.iter().map(part).sum::<Duration>().as_secs_f64();
    samples.add(MetricFamily::CollectorDuration, ["settings"], sum(|survey| survey.settings_took));
    samples.add(MetricFamily::CollectorDuration, ["sockets"], sum(|survey| survey.sockets_took));
    samples.add(MetricFamily::CollectorDuration, ["owners"], owners_took.as_secs_f64());
    samples
}

/// The label values of a family without labels.
pub const NO_LABELS: [&str; 0] = [];

/// A time in seconds since 1970; `None` for an earlier time.
#[must_use]
pub fn seconds_since_1970(time: SystemTime) -> Option<f64> {
    Some(time.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs_f64())
}

/// The label of a network namespace: its name in ip-netns(8), or `net:[INODE]`. A name like `PID:COMM` is not used, because the pid
/// changes with every restart, and each new value of a label makes a new series.
fn label(facts: &Facts) -> String {
    facts.netns_name.clone().filter(|name| comm_of_lowest_process(name).is_none()).unwrap_or_else(|| inode(facts))
}

fn inode(facts: &Facts) -> String {
    facts.netns.map_or_else(|| "unknown".into(), |inode| format!("net:[{inode}]"))
}

/// The command name in a name like `PID:COMM`, which stands for the process with the lowest pid of a namespace. `None` for other names.
fn comm_of_lowest_process(name: &str) -> Option<&str> {
    let (pid, comm) = name.split_once(':')?;
    (!pid.is_empty() && pid.bytes().all(|byte| byte.is_ascii_digit())).then_some(comm)
}

struct Namespace<'a> {
    samples: &'a mut Samples,
    netns: String,
    survey: &'a Survey,
    most: usize,
    silent: Duration,
    closes: Option<&'a NetnsCloses>,
}

impl<'a> Namespace<'a> {
    fn health(&self) -> &'a Health {
        &self.survey.checkup.health
    }

    fn add(mut self) {
        let netns = || self.netns.clone();
        let facts = &self.health().facts;
        let inode = facts.netns.map(|inode| inode.to_string()).unwrap_or_default();
        let process = facts.netns_name.as_deref().and_then(comm_of_lowest_process).unwrap_or_default().to_owned();
        let complete = self.survey.complete;
        self.samples.add(MetricFamily::NetnsInfo, [netns(), inode, process], true);
        self.samples.add(MetricFamily::Complete, [netns()], complete);
        self.timewait();
        self.counters();
        self.server_ports();
        self.ports();
        self.unreserved_servers();
        self.close_wait();
        self.checks();
        self.closes();
        self.conntrack();
    }

    fn one(&mut self, family: MetricFamily, value: impl Into<super::samples::SampleValue>) {
        self.samples.add(family, [self.netns.clone()], value);
    }

    fn timewait(&mut self) {
        let survey = self.survey;
        let length = survey.counts.length(self.health().buckets.tw_timeout_s);
        for direction in Direction::ALL {
            for class in PortClass::ALL {
                let count = survey.counts.count(direction, class);
                for (state, number) in [("time-wait", count.time_wait), ("fin-wait-2", count.fin_wait_2)] {
                    let labels = [&self.netns, state, direction.name(), class.name()];
                    self.samples.add(MetricFamily::TimewaitSockets, labels, number);
                }
            }
            let closes = survey.counts.closes_per_s(direction, length);
            self.samples.add_known(MetricFamily::ClosesPerSecond, [&self.netns, direction.name()], closes);
        }
        if let Some(most) = self.health().buckets.max_tw_buckets {
            match (u64::try_from(most), self.health().facts.negative_maximum_is_none()) {
                (Ok(most), _) => self.one(MetricFamily::TimewaitMax, most),
                (Err(_), Some(true)) => self.one(MetricFamily::TimewaitMax, f64::INFINITY),
                (Err(_), Some(false)) => self.one(MetricFamily::TimewaitMax, 0_u64),
                (Err(_), None) => {}
            }
        }
        self.one(MetricFamily::TimewaitMemory, survey.counts.total() * bucket_bytes(&self.health().buckets));
    }

    fn counters(&mut self) {
        let buckets = &self.survey.checkup.health.buckets;
        let created = buckets.counter("TW").zip(buckets.counter("TWKilled"));
        let created = created.filter(|_| self.health().facts.counts_made_buckets() == Some(true));
        let created = created.map(|(long, short)| long.saturating_add(short));
        for (family, count) in [
            (MetricFamily::TimewaitCreated, created),
            (MetricFamily::TimewaitOverflow, buckets.counter("TCPTimeWaitOverflow")),
            (MetricFamily::TimewaitRecycled, buckets.counter("TWRecycled")),
        ] {
            self.samples.add_known(family, [&self.netns], count);
        }
        for (state, name) in [("syn-sent", "PAWSActive"), ("established", "PAWSEstab"), ("time-wait", "PAWSTimewait")] {
            self.samples.add_known(MetricFamily::PawsRejected, [&self.netns, state], buckets.counter(name));
        }
    }

    fn server_ports(&mut self) {
        let (top, others) = self.survey.counts.server_ports(self.most);
        let length = self.survey.counts.length(self.health().buckets.tw_timeout_s).seconds;
        let others = (others > 0).then(|| (OTHERS.to_owned(), others));
        for (port, sockets) in top.iter().map(|one| (one.port.to_string(), one.time_wait)).chain(others) {
            self.samples.add(MetricFamily::ServerPortSockets, [&self.netns, &port], sockets);
            self.samples.add(
                MetricFamily::ServerPortCloses,
                [&self.netns, &port],
                f64::from(sockets) / f64::from(length),
            );
        }
    }

    fn ports(&mut self) {
        let Ok(capacity) = &self.survey.checkup.outbound else { return };
        let pool = &capacity.pool;
        self.one(MetricFamily::EphemeralPorts, pool.range.count());
        self.one(MetricFamily::EphemeralReserved, pool.reserved.count());
        self.one(MetricFamily::EphemeralBound, pool.explicitly_bound.count());
        self.one(MetricFamily::EphemeralUncertain, pool.most_uncertain());
        self.one(MetricFamily::PoolPorts, pool.size);
        self.one(MetricFamily::Destinations, capacity.destinations.len());
        let (named, rest) = capacity.destinations.split_at(self.most.min(capacity.destinations.len()));
        for one in named {
            let interface = one.ends.interface.map(|index| index.to_string()).unwrap_or_default();
            let (local, remote) = (one.ends.local_addr.to_string(), one.ends.remote_addr.to_string());
            let labels = [local, interface, remote, one.ends.remote_port.to_string()];
            self.destination(&labels, std::slice::from_ref(one), capacity);
        }
        if !rest.is_empty() {
            self.destination(&[OTHERS.into(), String::new(), OTHERS.into(), OTHERS.into()], rest, capacity);
        }
    }

    /// Adds the samples of one destination, or of several together.
    fn destination(&mut self, labels: &[String; 4], all: &[Destination], capacity: &Capacity) {
        let netns = self.netns.clone();
        let [local, interface, remote, port] = labels;
        let labels = || [&netns, local, interface, remote, port];
        let sum = |part: fn(&Destination) -> u32| all.iter().map(|one| u64::from(part(one))).sum::<u64>();
        let least = |parts: &mut dyn Iterator<Item = f64>| parts.min_by(f64::total_cmp);
        let samples = &mut *self.samples;
        samples.add(MetricFamily::DestinationPool, labels(), capacity.pool.size);
        samples.add(MetricFamily::DestinationOpen, labels(), sum(|one| one.established + one.other));
        samples.add(MetricFamily::DestinationTimewait, labels(), sum(|one| one.time_wait));
        let reusable = all.iter().map(|one| one.reusable.map(u64::from)).sum::<Option<u64>>();
        samples.add_known(MetricFamily::DestinationReusable, labels(), reusable);
        samples.add_known(MetricFamily::DestinationFree, labels(), all.iter().map(|one| one.free).min());
        samples.add_known(MetricFamily::DestinationUncertain, labels(), all.iter().map(|one| one.uncertain).max());
        samples.add_known(
            MetricFamily::DestinationCloses,
            labels(),
            all.iter().map(|one| one.closes_per_s).sum::<Option<f64>>(),
        );
        let ceiling = least(&mut all.iter().filter_map(|one| one.sustainable_per_s));
        samples.add_known(MetricFamily::DestinationCeiling, labels(), ceiling);
        let exhausted = |one: &Destination| one.exhausted_in.map_or(f64::INFINITY, |time| time.as_secs_f64());
        samples.add_known(MetricFamily::DestinationExhaustion, labels(), least(&mut all.iter().map(exhausted)));
    }

    fn unreserved_servers(&mut self) {
        let Some(servers) = unreserved_servers(self.health()) else { return };
        self.one(MetricFamily::UnreservedServers, servers.len());
        for (port, listeners) in servers.iter().take(self.most) {
            let owner = listeners.iter().find_map(|one| OwnerLabels::found(&one.owners)).unwrap_or_default();
            let labels = [self.netns.clone(), port.to_string(), owner.process, owner.unit, owner.container];
            self.samples.add(MetricFamily::UnreservedServer, labels, true);
        }
    }

    fn close_wait(&mut self) {
        let Ok(open) = &self.survey.checkup.health.sockets else { return };
        self.one(MetricFamily::CloseWait, open.close_wait.len());
        // Without sock_diag it is unknown how long a socket has been silent.
        if open.close_wait.iter().any(|one| one.socket.last_ack_ms.is_none()) {
            return;
        }
        let is_silent =
            |one: &&CloseWait| one.socket.last_ack_ms.is_some_and(|ms| Duration::from_millis(ms.into()) >= self.silent);
        let (mut by_owner, mut not_accepted, mut unknown) = (BTreeMap::new(), BTreeMap::new(), 0_u64);
        for one in open.close_wait.iter().filter(is_silent) {
            match (OwnerLabels::found(&one.owners), &one.owners) {
                (Some(owner), _) => *by_owner.entry(owner).or_insert(0_u64) += 1,
                (None, Owners::Nobody) => *not_accepted.entry(one.socket.tuple.local_port()).or_insert(0_u64) += 1,
                (None, _) => unknown += 1,
            }
        }
        self.one(MetricFamily::CloseWaitUnknown, unknown);
        let (named, others) = largest(by_owner, self.most);
        for (owner, sockets) in named {
            let labels = [self.netns.clone(), owner.process, owner.unit, owner.container];
            self.samples.add(MetricFamily::CloseWaitSilent, labels, sockets);
        }
        if others > 0 {
            self.samples.add(MetricFamily::CloseWaitSilent, [&self.netns, OTHERS, "", ""], others);
        }
        let (named, others) = largest(not_accepted, self.most);
        let others = (others > 0).then(|| (OTHERS.to_owned(), others));
        for (port, sockets) in named.into_iter().map(|(port, sockets)| (port.to_string(), sockets)).chain(others) {
            self.samples.add(MetricFamily::CloseWaitNotAccepted, [&self.netns, &port], sockets);
        }
    }

    fn checks(&mut self) {
        // The commands in a check depend on the shell. The status does not.
        for check in self.survey.checkup.checks(LeakThreshold { silent: self.silent }, &Shell::default()) {
            for status in Status::ALL {
                let labels = [&self.netns, check.subject.id, status.name()];
                self.samples.add(MetricFamily::DoctorCheck, labels, check.status == status);
            }
        }
    }

    fn closes(&mut self) {
        let unknown = ProgramLabels::default();
        let others = ProgramLabels { process: OTHERS.to_owned(), ..ProgramLabels::default() };
        for (whose, role, closes) in self.closes.iter().flat_map(|closes| closes.rows()) {
            let ProgramLabels { process, unit, container } = match whose {
                ProgramGroup::Program(program) => program,
                ProgramGroup::Unknown => &unknown,
                ProgramGroup::Others => &others,
            };
            let labels = [self.netns.as_str(), process, unit, container, role.name()];
            self.samples.add(MetricFamily::TracedCloses, labels, closes);
        }
    }

    fn conntrack(&mut self) {
        let number = |setting: &Sysctl| {
            self.survey.checkup.health.settings.number(setting.key()).and_then(|number| u64::try_from(number).ok())
        };
        let (Some(entries), Some(most)) = (number(&NF_CONNTRACK_COUNT), number(&NF_CONNTRACK_MAX)) else { return };
        self.one(MetricFamily::ConntrackEntries, entries);
        match most {
            0 => self.one(MetricFamily::ConntrackMax, f64::INFINITY),
            most => self.one(MetricFamily::ConntrackMax, most),
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct OwnerLabels {
    process: String,
    unit: String,
    container: String,
}

impl OwnerLabels {
    fn found(owners: &Owners) -> Option<Self> {
        match owners {
            Owners::Found(processes) => processes.first().map(Self::of),
            _ => None,
        }
    }

    fn of(process: &Process) -> Self {
        Self {
            process: process.comm.clone(),
            unit: process.unit().unwrap_or_default().to_owned(),
            container: process.container().map(|container| container.id.to_owned()).unwrap_or_default(),
        }
    }
}

/// The `most` keys with the largest numbers, each with its number, and the sum of the other numbers.
fn largest<K: Ord + Clone>(counts: BTreeMap<K, u64>, most: usize) -> (Vec<(K, u64)>, u64) {
    let mut all: Vec<(K, u64)> = counts.into_iter().collect();
    // The sort is stable, so equal numbers stay in the order of their keys.
    all.sort_by_key(|(_, number)| std::cmp::Reverse(*number));
    let others = all.iter().skip(most).map(|(_, number)| number).sum();
    all.truncate(most);
    (all, others)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::facts::tests::facts;

    #[test]
    fn the_label_of_a_namespace_does_not_depend_on_a_process() {
        let named = |name: Option<&str>| label(&Facts { netns_name: name.map(str::to_owned), ..facts() });
        assert_eq!(named(Some("web")), "web");
        assert_eq!(named(Some("4711:nginx")), "net:[4026531840]");
        assert_eq!(named(None), "net:[4026531840]");
        assert_eq!(named(Some("a:b")), "a:b");
        assert_eq!(label(&Facts { netns: None, netns_name: None, ..facts() }), "unknown");
    }

    #[test]
    fn the_keys_with_the_largest_numbers_are_returned_and_the_other_numbers_are_summed() {
        let counts = BTreeMap::from([("a", 1), ("b", 5), ("c", 5), ("d", 2)]);
        assert_eq!(largest(counts.clone(), 2), (vec![("b", 5), ("c", 5)], 3));
        assert_eq!(largest(counts, 9).1, 0);
    }
}
