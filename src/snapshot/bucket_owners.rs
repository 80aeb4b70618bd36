//! Finds the owners of buckets: the processes that closed their connections. A tracer may have recorded the owners. If not, they are
//! inferred from live sockets.
//!
//! 1. A tracer (`twtool trace --serve`) keeps the closes of the last two minutes by cookie.
//! 2. A process that listens on the local port of a bucket has probably accepted the connection.
//! 3. A process that has a connection to the remote end of a bucket has probably opened the bucket's connection, too.
//!
//! Steps 2 and 3 are inferences: the process may have started after the bucket was made, and several processes can fit.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::RandomState;
use serde::{Deserialize, Serialize};

use super::recent_closes::{self, RecentClose};
use super::{Answer, CountedBuckets, Namespaces, PassOn, Snapshot, SnapshotError, SourceChoice};
use crate::analysis::doctor::BucketsByMaker;
use crate::analysis::groups::{GroupBy, StateCounts};
use crate::analysis::makers;
use crate::analysis::owner_counts::{OwnerCounts, OwnerGroup};
use crate::filter::Filter;
use crate::model::close::{MakerFacts, Method, Role};
use crate::model::facts::Facts;
use crate::model::owner::{Evidence, Owner};
use crate::model::port::Port;
use crate::model::process::{Owners, Process};
use crate::model::row::Row;
use crate::model::socket::{Cookie, FullSocket, Socket, StateSet, TcpState};
use crate::source::Source;
use crate::sys::{owner_socket, owners};

/// The maximum size of a tracer's response in bytes. A response has at most [`recent_closes::MAX_CLOSES`] lines, so a line can have
/// 1 KiB on average.
const MAX_BYTES: u64 = 256 << 20;

/// A line of JSON in which a tracer reports one close: the cookie of the socket, and the process that closed it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct TracedLine {
    /// The number of the close ([`RecentClose::number`]). A tracer of the released twtool 0.2.0 does not send it.
    #[serde(default)]
    pub number: u64,
    /// The cookie of the socket, in decimal digits.
    pub cookie: String,
    /// The pid of the process that closed the socket.
    pub pid: u32,
    /// Whether the pid belongs to the pid namespace of the tracer. If not, it belongs to the initial pid namespace.
    pub own_pid_namespace: bool,
    /// The name of the process.
    pub comm: String,
    /// The path of its cgroup.
    pub cgroup: Option<String>,
    /// `bpf` or `sampled`.
    pub method: String,
    /// `accepted`, `connected` or `unknown`. A tracer of the released twtool 0.2.0 does not send it.
    #[serde(default)]
    pub role: String,
}

/// The closes that a tracer has recorded, by cookie: the owner of each bucket, and the owner's role in the connection.
#[derive(Debug, Default)]
pub struct TracedOwners {
    owners: HashMap<Cookie, (Owner, Role), RandomState>,
    /// The number and the cookie of each close. The oldest close comes first.
    order: VecDeque<(u64, Cookie)>,
    /// The facts of each process, which all its buckets share.
    shared: HashMap<SharedKey, Arc<[MakerFacts]>, RandomState>,
    answer: TracerAnswer,
}

/// Whether a tracer has answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum TracerAnswer {
    /// No tracer runs: the socket does not exist, or no program listens on it.
    #[default]
    Off,
    /// A tracer has answered.
    Complete,
    /// A tracer may run, but this program cannot read it. The sentence names the socket and the reason.
    Unreadable(String),
}

impl TracerAnswer {
    /// Classifies the error of a read of this socket.
    #[must_use]
    pub fn failed(path: &Path, error: &io::Error) -> Self {
        let path = path.display();
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Self::Off,
            // The socket has the mode 0600.
            io::ErrorKind::PermissionDenied => Self::Unreadable(format!(
                "this user has no permission to read the tracer at {path}; run twtool as root or as the user who \
                 started the tracer"
            )),
            _ => Self::Unreadable(format!("the tracer at {path} could not be read: {error}")),
        }
    }
}

/// The pid, whether it belongs to the pid namespace of the tracer, and the name and the cgroup of the process.
type SharedKey = (u32, bool, String, Option<String>);

impl TracedOwners {
    /// Reads all closes from the tracer that serves this Unix socket.
    ///
    /// # Errors
    /// No tracer serves it, or the answer cannot be read.
    pub fn read(path: &Path) -> io::Result<Self> {
        Self::read_since(path, 0)
    }

    /// Reads the closes whose number is larger than `number`.
    ///
    /// # Errors
    /// See [`Self::read`].
    pub fn read_since(path: &Path, number: u64) -> io::Result<Self> {
        Self::parse(&owner_socket::read(path, number, MAX_BYTES)?)
    }

    fn parse(bytes: &[u8]) -> io::Result<Self> {
        let mut traced = Self { answer: TracerAnswer::Complete, ..Self::default() };
        for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let TracedLine { number, cookie, pid, own_pid_namespace, comm, cgroup, method, role } =
                serde_json::from_slice(line)?;
            let Some(cookie) = cookie.parse().ok().and_then(Cookie::new) else { continue };
            let evidence = if method == Method::Bpf.name() { Evidence::Traced } else { Evidence::Sampled };
            let role = [Role::Accepted, Role::Connected].into_iter().find(|one| one.name() == role);
            let key = (pid, own_pid_namespace, comm, cgroup);
            traced.insert(number, cookie, key, evidence, role.unwrap_or(Role::Unknown));
        }
        Ok(traced)
    }

    fn insert(&mut self, number: u64, cookie: Cookie, key: SharedKey, evidence: Evidence, role: Role) {
        let candidates = self.shared.entry(key).or_insert_with_key(|(pid, own_pid_namespace, comm, cgroup)| {
            let (pid, own_pid_namespace) = (*pid, *own_pid_namespace);
            let (comm, cgroup) = (comm.clone(), cgroup.clone());
            Arc::new([MakerFacts { pid, own_pid_namespace, comm, cgroup, ..MakerFacts::default() }])
        });
        let owner = Owner { candidates: Arc::clone(candidates), evidence };
        self.owners.insert(cookie, (owner, role));
        self.order.push_back((number, cookie));
    }

    /// Adds closes that twtool itself has recorded.
    pub fn add(&mut self, closes: Vec<RecentClose>) {
        for RecentClose { number, cookie, facts, method, role } in closes {
            let evidence = if method == Method::Bpf { Evidence::Traced } else { Evidence::Sampled };
            let key = (facts.pid, facts.own_pid_namespace, facts.comm.clone(), facts.cgroup.clone());
            self.insert(number, cookie, key, evidence, role);
        }
    }

    /// Adds the closes of a later response.
    pub fn append(&mut self, newer: Self) {
        let Self { mut owners, order, .. } = newer;
        for (number, cookie) in order {
            let Some((owner, role)) = owners.remove(&cookie) else { continue };
            let MakerFacts { pid, own_pid_namespace, comm, cgroup, .. } = owner.process();
            let key = (*pid, *own_pid_namespace, comm.clone(), cgroup.clone());
            self.insert(number, cookie, key, owner.evidence, role);
        }
    }

    /// Removes the closes that are older than [`recent_closes::KEEP_FOR`]. If there are more than [`recent_closes::MAX_CLOSES`], removes
    /// the oldest ones, too. `now` is the time of CLOCK_MONOTONIC.
    pub fn forget(&mut self, now: Duration) {
        let oldest = recent_closes::nanoseconds(now.saturating_sub(recent_closes::KEEP_FOR));
        let old = self.order.partition_point(|(number, _)| *number < oldest);
        let old = old.max(self.order.len().saturating_sub(recent_closes::MAX_CLOSES));
        for (_, cookie) in self.order.drain(..old) {
            self.owners.remove(&cookie);
        }
        self.shared.retain(|_, facts| Arc::strong_count(facts) > 1);
    }

    /// The number of the newest close; 0 if there is none.
    #[must_use]
    pub fn newest(&self) -> u64 {
        self.order.back().map_or(0, |(number, _)| *number)
    }

    /// No closes, because the read of this socket has failed with this error.
    #[must_use]
    pub fn unread(path: &Path, error: &io::Error) -> Self {
        Self { answer: TracerAnswer::failed(path, error), ..Self::default() }
    }

    /// Whether a tracer has answered.
    #[must_use]
    pub const fn answer(&self) -> &TracerAnswer {
        &self.answer
    }

    /// Whether no close is recorded, for example because no tracer runs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.owners.is_empty()
    }

    /// Whether a process has a pid of another pid namespace.
    #[must_use]
    pub fn has_foreign_pids(&self) -> bool {
        self.shared.keys().any(|(_, own, ..)| !own)
    }

    /// The owner of a bucket; `None` if the close of its connection is not recorded.
    #[must_use]
    pub fn owner(&self, row: &Row) -> Option<&Owner> {
        self.owners.get(&row.bucket.cookie?).map(|(owner, _)| owner)
    }

    /// Counts these buckets by their owner. Buckets without a recorded close are in the group of the unknown process.
    #[must_use]
    pub fn groups<'a>(&self, rows: impl Iterator<Item = &'a Row>) -> Vec<OwnerGroup> {
        let mut all = StateCounts::default();
        let owned = rows.filter_map(|row| {
            all.add(row.bucket.fin_wait_2);
            Some((row, self.owner(row)?))
        });
        let mut counts = OwnerCounts::new(makers::MakerGroupBy::Process);
        each_owner(owned, |owner, count| counts.add(owner, count));
        counts.groups(all)
    }

    /// The process that closed the connection of a bucket, and its role. `None` unless BPF traced the close: a sample
    /// shows only which process had the socket open.
    #[must_use]
    pub fn maker(&self, row: &Row) -> Option<(&MakerFacts, Role)> {
        let (owner, role) = self.owners.get(&row.bucket.cookie?)?;
        (owner.evidence == Evidence::Traced).then(|| (owner.process(), *role))
    }
}

/// Passes on each owner with the number of its buckets. It compares pointers, because the buckets of one owner share its facts.
fn each_owner<'a>(owned: impl Iterator<Item = (&'a Row, &'a Owner)>, mut each: impl FnMut(&Owner, StateCounts)) {
    let mut counts: HashMap<(*const MakerFacts, Evidence), (&Owner, StateCounts)> = HashMap::new();
    for (row, owner) in owned {
        let key = (owner.candidates.as_ptr(), owner.evidence);
        let (_, count) = counts.entry(key).or_insert_with(|| (owner, StateCounts::default()));
        count.add(row.bucket.fin_wait_2);
    }
    for (owner, count) in counts.into_values() {
        each(owner, count);
    }
}

/// The live sockets of a network namespace that are evidence for the owners of its buckets.
#[derive(Debug, Default)]
struct LiveSockets {
    listeners: HashMap<Port, Vec<FullSocket>>,
    connections: HashMap<(IpAddr, Port), Vec<FullSocket>>,
}

impl LiveSockets {
    fn read() -> Result<Self, SnapshotError> {
        let states = StateSet::of(&[TcpState::Listen, TcpState::Established, TcpState::CloseWait]);
        let mut source = Source::kernel(SourceChoice::Auto)?;
        let (live, _) = source.collect(states, &Filter::TRUE, Self::default, |live: &mut Self, socket| {
            let Socket::Full(full) = socket else { return };
            if full.state == TcpState::Listen {
                live.listeners.entry(full.tuple.local_port()).or_default().push(*full);
            } else {
                let remote = (full.tuple.remote_addr(), full.tuple.remote_port());
                live.connections.entry(remote).or_default().push(*full);
            }
        })?;
        Ok(live)
    }

    /// The kind of evidence for the owner of this bucket, and the sockets whose processes may be this owner, at most [`MAX_SOCKETS`].
    fn evidence(&self, row: &Row) -> Option<(Evidence, Vec<&FullSocket>)> {
        let tuple = &row.bucket.tuple;
        let covers = |listener: &&FullSocket| {
            let addr = listener.tuple.local_addr();
            let wildcard = addr.is_unspecified() && (addr.is_ipv6() || tuple.local_addr().is_ipv4());
            wildcard || addr == tuple.local_addr()
        };
        let listeners = self.listeners.get(&tuple.local_port()).into_iter().flatten().filter(covers);
        let listeners: Vec<&FullSocket> = listeners.take(MAX_SOCKETS).collect();
        if !listeners.is_empty() {
            return Some((Evidence::Listener, listeners));
        }
        let connections = self.connections.get(&(tuple.remote_addr(), tuple.remote_port()))?;
        Some((Evidence::SameDestination, connections.iter().take(MAX_SOCKETS).collect()))
    }
}

/// The index of the namespace, the kind of evidence, and one end of the bucket: the local end for [`Evidence::Listener`], otherwise
/// the remote end. Rows for which all three are equal have the same owner.
type EvidenceKey = (u32, Evidence, (IpAddr, Port));

/// Finds the owner of each row; `None` if it is unknown. [`Row::netns`] is an index into `facts`.
///
/// # Errors
/// The sockets could not be read in any namespace.
pub fn find(
    namespaces: &Namespaces,
    rows: &[&Row],
    facts: &[Facts],
    traced: &TracedOwners,
) -> Result<Answer<Vec<Option<Owner>>>, SnapshotError> {
    let mut found: Vec<Option<Owner>> = rows.iter().map(|row| traced.owner(row).cloned()).collect();
    if found.iter().all(Option::is_some) {
        return Ok(Answer::whole(found));
    }
    let mut live: BTreeMap<Option<u64>, LiveSockets> = BTreeMap::new();
    let ask = |_, pass_on: &mut PassOn<(Option<u64>, LiveSockets)>| {
        let netns = crate::source::kernel_facts().netns;
        let _ = pass_on((netns, LiveSockets::read()?));
        Ok(Answer::whole(()))
    };
    let answer = namespaces.ask(&ask, &mut |(netns, sockets)| {
        live.insert(netns, sockets);
        ControlFlow::Continue(())
    })?;
    let evidence = |row: &Row| live.get(&facts.get(row.netns as usize)?.netns)?.evidence(row);
    let unknown = |found: &[Option<Owner>]| (0..found.len()).filter(|i| found[*i].is_none()).collect::<Vec<_>>();
    let mut wanted: BTreeMap<NonZeroU32, FullSocket> = BTreeMap::new();
    for i in unknown(&found) {
        let sockets = evidence(rows[i]).map(|(_, sockets)| sockets).unwrap_or_default();
        wanted.extend(sockets.into_iter().filter_map(|socket| Some((socket.inode?, *socket))));
    }
    let processes = owners::find(wanted.values());
    let mut known: HashMap<EvidenceKey, Option<Owner>> = HashMap::new();
    for i in unknown(&found) {
        let Some((evidence, sockets)) = evidence(rows[i]) else { continue };
        let infer = || {
            let mut held = BTreeMap::new();
            for inode in sockets.into_iter().filter_map(|socket| socket.inode) {
                if let Some(Owners::Found(processes)) = processes.owners.get(&inode) {
                    held.extend(processes.iter().map(|process| (process.pid, process)));
                }
            }
            let facts = |(pid, process): (&i32, &&Process)| MakerFacts {
                pid: pid.unsigned_abs(),
                own_pid_namespace: true,
                comm: process.comm.clone(),
                cmdline: process.cmdline.clone(),
                cgroup: process.cgroup.clone(),
                kernel: false,
            };
            let candidates: Arc<[MakerFacts]> = held.iter().map(facts).collect();
            (!candidates.is_empty()).then_some(Owner { candidates, evidence })
        };
        let tuple = &rows[i].bucket.tuple;
        let end = match evidence {
            Evidence::Listener => (tuple.local_addr(), tuple.local_port()),
            _ => (tuple.remote_addr(), tuple.remote_port()),
        };
        found[i].clone_from(known.entry((rows[i].netns, evidence, end)).or_insert_with(infer));
    }
    let mut answer = answer.with(found);
    answer.warnings.extend(processes.failure);
    Ok(answer)
}

/// Adds the owner of each bucket to a summary, if one of its groups needs owners.
///
/// # Errors
/// See [`find`].
pub fn count(
    namespaces: &Namespaces,
    summarized: &mut CountedBuckets,
    traced: &TracedOwners,
) -> Result<Answer<()>, SnapshotError> {
    let rows = summarized.rows();
    let found = find(namespaces, &rows, &summarized.facts, traced)?;
    let owned = rows.iter().zip(&found.value).filter_map(|(row, owner)| Some((*row, owner.as_ref()?)));
    let mut counted = vec![];
    each_owner(owned, |owner, count| counted.push((owner.clone(), count)));
    for (owner, count) in counted {
        summarized.add_owner(&owner, count);
    }
    Ok(found.map(|_| ()))
}

impl Snapshot {
    /// Counts the TIME_WAIT buckets by the program that closed their connections. `ipv4` selects buckets with IPv4 (true) or IPv6
    /// (false) on the wire.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub fn made_buckets(
        &self,
        ipv4: Option<bool>,
        traced: &TracedOwners,
    ) -> Result<Answer<BucketsByMaker>, SnapshotError> {
        let answer = self.summary(&[GroupBy::Owner], ipv4)?;
        let mut made = BucketsByMaker::default();
        for row in answer.value.rows().into_iter().filter(|row| !row.bucket.fin_wait_2) {
            made.add(traced.maker(row), row.bucket.tuple.remote_addr());
        }
        Ok(answer.with(made))
    }
}

/// The maximum number of sockets whose processes are candidates for the owner of one bucket.
const MAX_SOCKETS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::row::tests::row;

    #[test]
    fn a_line_of_a_tracer_names_the_owner_of_the_bucket_with_its_cookie() {
        let lines = b"{\"cookie\":\"1\",\"pid\":7,\"own_pid_namespace\":true,\"comm\":\"web\",\"cgroup\":\"/a/web.service\",\"method\":\"bpf\"}\n\
            {\"cookie\":\"0\",\"pid\":7,\"own_pid_namespace\":true,\"comm\":\"web\",\"cgroup\":null,\"method\":\"bpf\",\"more\":1}\n";
        let traced = TracedOwners::parse(lines).expect("lines");
        let maker = traced.maker(&row("10.0.0.1", 80, "10.0.0.2", 40000)).expect("cookie 1");
        assert_eq!((maker.0.pid, maker.1), (7, Role::Unknown), "the line has no role");
        let owner = traced.owner(&row("10.0.0.1", 80, "10.0.0.2", 40000)).expect("cookie 1");
        assert_eq!(
            (owner.process().pid, owner.process().unit(), owner.evidence),
            (7, Some("web.service"), Evidence::Traced)
        );
        assert!(TracedOwners::parse(b"{\"cookie\":1}\n").is_err());
        assert!(TracedOwners::parse(b"").is_ok_and(|traced| traced.is_empty()));
    }

    #[test]
    fn only_a_missing_socket_or_one_without_a_program_means_that_no_tracer_runs() {
        let answer = |error: io::Error| TracerAnswer::failed(Path::new("/run/a"), &error);
        let folder = tempfile::tempdir().expect("a folder");
        let missing = folder.path().join("socket");
        assert_eq!(answer(TracedOwners::read(&missing).expect_err("no file")), TracerAnswer::Off);
        drop(std::os::unix::net::UnixListener::bind(&missing).expect("a socket"));
        assert_eq!(answer(TracedOwners::read(&missing).expect_err("no program")), TracerAnswer::Off);
        for (kind, expected) in [
            (io::ErrorKind::PermissionDenied, "no permission to read the tracer at /run/a; run twtool as root or as"),
            (io::ErrorKind::TimedOut, "the tracer at /run/a could not be read: "),
        ] {
            let TracerAnswer::Unreadable(why) = answer(kind.into()) else { panic!("{kind:?} is unreadable") };
            assert!(why.contains(expected), "{why}");
        }
    }

    #[test]
    fn closes_of_later_responses_are_added_and_old_ones_are_removed() {
        let line = |number: u64, cookie: u64| {
            format!(
                "{{\"number\":{number},\"cookie\":\"{cookie}\",\"pid\":7,\"own_pid_namespace\":false,\"comm\":\"web\",\
                 \"cgroup\":null,\"method\":\"sampled\"}}\n"
            )
        };
        let second = 1_000_000_000;
        let mut traced = TracedOwners::parse((line(second, 1) + &line(2 * second, 2)).as_bytes()).expect("lines");
        assert_eq!(traced.newest(), 2 * second);
        traced.append(TracedOwners::parse(line(9 * second, 3).as_bytes()).expect("a line"));
        assert_eq!((traced.newest(), traced.owners.len(), traced.shared.len()), (9 * second, 3, 1));
        assert!(traced.has_foreign_pids());
        traced.forget(recent_closes::KEEP_FOR + Duration::from_secs(2));
        assert_eq!((traced.owners.len(), traced.order.len()), (2, 2), "only the first close is older than 120 s");
        traced.forget(recent_closes::KEEP_FOR + Duration::from_secs(99));
        assert!(traced.is_empty() && traced.shared.is_empty() && !traced.has_foreign_pids());
        assert_eq!(traced.newest(), 0);
    }
}
