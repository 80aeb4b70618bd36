//! Counts closes by network namespace, program and [`Role`] (which end opened the connection). A tracer reports the closes.
//!
//! A counter of Prometheus may only grow. So the counters cannot follow the N programs with the most closes: if a program left the N, its
//! closes would move to `others`, and its counter would shrink. The rules are:
//!
//! 1. In each network namespace, the first N programs that close a connection get a counter each.
//! 2. If there are N such programs, a further program replaces the one that has been idle longest, but only if that one has closed
//!    nothing for 10 minutes. The counter of the replaced program disappears, and starts at 0 if the program returns.
//! 3. If no program has been idle that long, the close of a further program counts for `others`, and stays there.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use crate::model::close::{Close, MakerFacts, Role};

/// The time without a close after which another program can replace a program.
const IDLE: Duration = Duration::from_secs(600);

/// The labels of a program: the unit and the container of its process, or the name of the process if it has neither. The pid is not a
/// label, because it changes with every restart.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProgramLabels {
    /// The name of the process; empty if there is a unit or a container.
    pub process: String,
    /// The systemd unit.
    pub unit: String,
    /// The id of the container.
    pub container: String,
}

impl ProgramLabels {
    fn of(facts: &MakerFacts) -> Self {
        let unit = facts.unit().unwrap_or_default().to_owned();
        let container = facts.container().map(|container| container.id.to_owned()).unwrap_or_default();
        let process = match (unit.is_empty() && container.is_empty(), facts.kernel) {
            (false, _) => String::new(),
            // The name of a kernel worker, like kworker/0:1, has numbers that change.
            (true, true) => "kernel worker".to_owned(),
            (true, false) => facts.comm.clone(),
        };
        Self { process, unit, container }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct ByRole([u64; 3]);

impl ByRole {
    const ROLES: [Role; 3] = [Role::Accepted, Role::Connected, Role::Unknown];

    fn add(&mut self, role: Role) {
        self.0[role as usize] += 1;
    }

    fn rows(self) -> impl Iterator<Item = (Role, u64)> {
        Self::ROLES.into_iter().zip(self.0).filter(|(_, closes)| *closes > 0)
    }
}

#[derive(Clone, Debug, Default)]
struct ProgramCounter {
    closes: ByRole,
    last: Duration,
}

/// The program or the group of programs whose closes a counter counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProgramGroup<'a> {
    /// A program.
    Program(&'a ProgramLabels),
    /// Processes that the tracer could not name.
    Unknown,
    /// Programs without a counter of their own.
    Others,
}

/// The closes in one network namespace.
#[derive(Clone, Debug, Default)]
pub struct NetnsCloses {
    programs: BTreeMap<ProgramLabels, ProgramCounter>,
    unknown: ByRole,
    others: ByRole,
    last: Duration,
    /// Before this time, no program can be replaced.
    full_until: Duration,
}

impl NetnsCloses {
    fn add(&mut self, close: &Close, elapsed: Duration, most: usize) {
        self.last = elapsed;
        let Some(maker) = &close.maker else { return self.unknown.add(close.role) };
        let program = ProgramLabels::of(&maker.facts);
        if !self.programs.contains_key(&program) && self.programs.len() >= most && !self.remove_idle_program(elapsed) {
            return self.others.add(close.role);
        }
        let count = self.programs.entry(program).or_default();
        count.closes.add(close.role);
        count.last = elapsed;
    }

    fn remove_idle_program(&mut self, elapsed: Duration) -> bool {
        if elapsed < self.full_until {
            return false;
        }
        let Some((program, last)) =
            self.programs.iter().map(|(program, count)| (program, count.last)).min_by_key(|one| one.1)
        else {
            return false;
        };
        self.full_until = last + IDLE;
        if elapsed < self.full_until {
            return false;
        }
        let program = program.clone();
        self.programs.remove(&program).is_some()
    }

    /// The counters of the network namespace.
    pub fn rows(&self) -> impl Iterator<Item = (ProgramGroup<'_>, Role, u64)> {
        let programs = self.programs.iter().map(|(program, count)| (ProgramGroup::Program(program), count.closes));
        let all = programs.chain([(ProgramGroup::Unknown, self.unknown), (ProgramGroup::Others, self.others)]);
        all.flat_map(|(whose, closes)| closes.rows().map(move |(role, closes)| (whose, role, closes)))
    }
}

/// The closes since tracing began, in at most `most_namespaces` network namespaces.
#[derive(Clone, Debug)]
pub struct CloseCounts {
    namespaces: HashMap<u64, NetnsCloses>,
    most_programs: usize,
    most_namespaces: usize,
    /// Closes that are missing because twtool did not read them in time.
    pub lost: u64,
    /// An upper bound of the closes that the BPF program missed.
    pub skipped: u64,
}

impl CloseCounts {
    /// Creates counts without closes, with the maximum numbers of programs in each namespace and of namespaces.
    #[must_use]
    pub fn new(most_programs: usize, most_namespaces: usize) -> Self {
        Self { namespaces: HashMap::new(), most_programs, most_namespaces, lost: 0, skipped: 0 }
    }

    /// Adds a close. `elapsed` is the time from the start of tracing to the read that returned this close.
    pub fn add(&mut self, close: &Close, elapsed: Duration) {
        if self.namespaces.len() < self.most_namespaces || self.namespaces.contains_key(&close.netns) {
            self.namespaces.entry(close.netns).or_default().add(close, elapsed, self.most_programs);
        }
    }

    /// Removes the namespaces that `inodes` does not contain and that had no close for 10 minutes.
    pub fn keep(&mut self, inodes: &BTreeSet<u64>, elapsed: Duration) {
        self.namespaces.retain(|inode, closes| inodes.contains(inode) || elapsed < closes.last + IDLE);
    }

    /// The closes in a network namespace.
    #[must_use]
    pub fn of(&self, inode: u64) -> Option<&NetnsCloses> {
        self.namespaces.get(&inode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::close::{Maker, Method, Outcome};
    use crate::model::port::Port;
    use crate::model::socket::FourTuple;
    use crate::model::user::User;
    use std::sync::Arc;
    use std::time::SystemTime;

    fn close(netns: u64, role: Role, facts: Option<MakerFacts>) -> Close {
        let end = |addr: &str, port| (addr.parse().expect("an address"), Port(port));
        let user = User { uid: 0, name: None };
        Close {
            at: SystemTime::UNIX_EPOCH,
            netns,
            cookie: None,
            tuple: FourTuple::new(end("10.0.0.1", 80), end("10.0.0.2", 40000)),
            interface: None,
            mark: None,
            outcome: Outcome::TimeWait,
            role,
            maker: facts.map(|facts| Maker { facts: Arc::new(facts), tid: 1, thread: String::new(), user }),
            method: Method::Bpf,
        }
    }

    fn facts(comm: &str, cgroup: &str) -> MakerFacts {
        MakerFacts { comm: comm.into(), cgroup: Some(cgroup.into()), ..MakerFacts::default() }
    }

    fn rows(counts: &CloseCounts) -> Vec<(String, &'static str, u64)> {
        let name = |whose| match whose {
            ProgramGroup::Program(ProgramLabels { process, unit, container }) => {
                format!("{process}|{unit}|{container}")
            }
            ProgramGroup::Unknown => "unknown".to_owned(),
            ProgramGroup::Others => "others".to_owned(),
        };
        let rows = counts.of(7).expect("closes").rows();
        rows.map(|(whose, role, closes)| (name(whose), role.name(), closes)).collect()
    }

    #[test]
    fn a_program_is_identified_by_its_unit_and_container_or_else_by_its_name() {
        let id = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
        let docker = format!("/system.slice/docker-{id}.scope");
        let mut counts = CloseCounts::new(9, 9);
        for one in [
            close(7, Role::Accepted, Some(facts("nginx", "/system.slice/nginx.service"))),
            close(7, Role::Accepted, Some(facts("other", "/system.slice/nginx.service"))),
            close(7, Role::Connected, Some(facts("nginx", "/system.slice/nginx.service"))),
            close(7, Role::Connected, Some(facts("app", &docker))),
            close(7, Role::Connected, Some(facts("bash", "/"))),
            close(7, Role::Unknown, Some(MakerFacts { kernel: true, ..facts("kworker/0:1", "/") })),
            close(7, Role::Unknown, None),
            close(8, Role::Unknown, None),
        ] {
            counts.add(&one, Duration::ZERO);
        }
        let expected = [
            ("|docker.scope|".replace("docker", &format!("docker-{id}")) + id, "connected", 1),
            ("|nginx.service|".into(), "accepted", 2),
            ("|nginx.service|".into(), "connected", 1),
            ("bash||".into(), "connected", 1),
            ("kernel worker||".into(), "unknown", 1),
            ("unknown".into(), "unknown", 1),
        ];
        assert_eq!(rows(&counts), expected);
    }

    #[test]
    fn no_counter_shrinks_and_only_an_idle_program_is_replaced() {
        let mut counts = CloseCounts::new(2, 9);
        let mut add = |name: &str, second| {
            counts.add(&close(7, Role::Accepted, Some(facts(name, "/"))), Duration::from_secs(second));
            rows(&counts).into_iter().map(|(name, _, closes)| (name.replace('|', ""), closes)).collect::<Vec<_>>()
        };
        let expected = |rows: &[(&str, u64)]| rows.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect::<Vec<_>>();
        add("a", 0);
        add("b", 1);
        (2..500).for_each(|second| drop(add("c", second)));
        assert_eq!(add("b", 500), expected(&[("a", 1), ("b", 1 + 1), ("others", 498)]));
        assert_eq!(add("c", 599), expected(&[("a", 1), ("b", 2), ("others", 499)]));
        // a has been idle for 10 minutes.
        assert_eq!(add("c", 600), expected(&[("b", 2), ("c", 1), ("others", 499)]));
        assert_eq!(add("a", 601), expected(&[("b", 2), ("c", 1), ("others", 500)]));
        // b has been idle since second 500.
        assert_eq!(add("a", 1100), expected(&[("a", 1), ("c", 1), ("others", 500)]));
    }

    #[test]
    fn the_number_of_namespaces_is_limited_and_ended_ones_are_removed() {
        let mut counts = CloseCounts::new(2, 2);
        for netns in [7, 8, 9, 7] {
            counts.add(&close(netns, Role::Accepted, None), Duration::ZERO);
        }
        assert!(counts.of(8).is_some() && counts.of(9).is_none());
        counts.keep(&BTreeSet::from([7]), Duration::from_secs(599));
        assert!(counts.of(8).is_some());
        counts.keep(&BTreeSet::from([7]), Duration::from_secs(600));
        assert!(counts.of(7).is_some() && counts.of(8).is_none());
    }
}
