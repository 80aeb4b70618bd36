//! Gathers everything that monitoring shows of a network namespace, with one walk over all of its sockets.
//!
//! `summary`, `capacity` and `doctor` each need at least one such walk. The walk is most of their cost, so a survey makes one walk
//! for all of them:
//!
//! 1. Settings and counters are read before the walk.
//! 2. The walk counts buckets, keeps the sockets on ephemeral ports, and keeps listeners and sockets in CLOSE_WAIT.
//! 3. If sockets are in CLOSE_WAIT, a second walk reads these sockets with `struct tcp_info`, which has the time since the last
//!    ACK. The first walk does not request this structure, because the kernel locks each socket for it. If a listener has an ephemeral
//!    port, another walk lists the listeners whose port the kernel chose.
//! 4. After all namespaces, one search through the processes finds the owners of sockets in CLOSE_WAIT and of listeners on
//!    ephemeral ports.

use std::ops::ControlFlow;
use std::time::Duration;

use super::capacity::{ResolvedQuestion, conclude};
use super::health::{find_owners, open_sockets, settings};
use super::{Answer, Capacity, Checkup, PassOn, Snapshot, SnapshotError, interrupted};
use crate::analysis::capacity::sockets::RangeSockets;
use crate::analysis::direction;
use crate::analysis::monitoring::BucketCounts;
use crate::filter::Filter;
use crate::model::facts::{Facts, Setting, UnreadFacts};
use crate::model::health::{Health, OpenSockets};
use crate::model::listeners::Listeners;
use crate::model::port::PortRange;
use crate::model::socket::{FullSocket, Socket, StateSet, TcpState};
use crate::source::{self, Source, SourceChoice, SourceError, WalkEnd, read_fact};
use crate::sys;
use crate::sys::clock::Stopwatch;

/// What monitoring shows of one network namespace.
#[derive(Debug)]
pub struct Survey {
    /// Settings, counters, listeners, sockets in CLOSE_WAIT, and the ports of outbound connections.
    pub checkup: Checkup,
    /// The counts of the buckets.
    pub counts: BucketCounts,
    /// Whether nothing is missing.
    pub complete: bool,
    /// How often the walk was repeated after an interruption.
    pub repeats: u32,
    /// The number of sockets that a second dump added: sockets that the first dump lost, and new sockets.
    pub recovered: usize,
    /// How long it took to read the settings and counters.
    pub settings_took: Duration,
    /// How long it took to read and count the sockets.
    pub sockets_took: Duration,
}

/// The surveys of all network namespaces.
#[derive(Debug)]
pub struct Surveys {
    /// A survey of each namespace, in the order of the namespaces.
    pub namespaces: Vec<Survey>,
    /// How long the search for the owners of sockets took.
    pub owners_took: Duration,
}

impl Snapshot {
    /// Surveys each network namespace. Ports are not tested, so it stays uncertain whether some of them are explicitly bound (see
    /// [`CapacityQuestion::probe`](super::CapacityQuestion::probe)).
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub fn surveys(&self) -> Result<Answer<Surveys>, SnapshotError> {
        let mut namespaces = vec![];
        let ask = |_, pass_on: &mut PassOn<Survey>| {
            let answer = survey_here()?;
            let complete = answer.complete;
            let (survey, answer) = (answer.value, Answer { complete, warnings: answer.warnings, ..Answer::whole(()) });
            let _ = pass_on(survey);
            Ok(answer)
        };
        let mut answer = self.kernel_namespaces()?.ask(&ask, &mut |survey| {
            namespaces.push(survey);
            ControlFlow::Continue(())
        })?;
        if namespaces.is_empty() {
            return Err(SnapshotError::NoNamespace(answer.warnings));
        }
        let clock = Stopwatch::start();
        let mut unread = UnreadFacts::default();
        let sockets = namespaces.iter_mut().filter_map(|survey| {
            let Health { facts, sockets, .. } = &mut survey.checkup.health;
            Some((&*facts, sockets.as_mut().ok()?))
        });
        find_owners(sockets, &mut unread);
        answer.complete &= unread.0.is_empty();
        answer.warnings.extend(unread.sentences());
        Ok(answer.with(Surveys { namespaces, owners_took: clock.elapsed() }))
    }
}

struct WalkCounts {
    listeners: Listeners,
    counts: BucketCounts,
    /// `None` if the ephemeral range is unknown.
    range: Option<RangeSockets>,
    /// Listeners and sockets in CLOSE_WAIT.
    open: Vec<FullSocket>,
}

impl WalkCounts {
    fn new(range: Option<PortRange>) -> Self {
        Self {
            listeners: Listeners::default(),
            counts: BucketCounts::default(),
            range: range.map(RangeSockets::new),
            open: vec![],
        }
    }

    fn add(&mut self, range: Option<PortRange>, socket: &Socket) {
        match socket {
            Socket::Full(full) => {
                if full.state == TcpState::Listen {
                    self.listeners.add(*full);
                }
                if matches!(full.state, TcpState::Listen | TcpState::CloseWait) {
                    self.open.push(*full);
                }
            }
            Socket::Bucket(bucket) => {
                let direction = direction::infer_with_range(range, &self.listeners, &bucket.tuple, bucket.interface);
                self.counts.add(bucket, direction);
            }
        }
        if let Some(range) = &mut self.range {
            range.add(socket);
        }
    }
}

fn survey_here() -> Result<Answer<Survey>, SnapshotError> {
    let clock = Stopwatch::start();
    let mut unread = UnreadFacts::default();
    // Read the kernel's counts of sockets before the source opens its netlink socket, so that they do not include that socket.
    let states = if may_have_bound_inactive() { StateSet::ALL } else { StateSet::ALL.without(bound_inactive()) };
    let mut source = Source::kernel(SourceChoice::Auto)?;
    let buckets = source.bucket_facts();
    let reuse = source::tw_reuse(&mut unread);
    let settings = settings();
    let capabilities = read_fact(&mut unread, "/proc/thread-self/status", sys::capabilities::effective());
    let mut facts = source.facts().clone();
    let settings_took = clock.elapsed();

    let range = facts.local_port_range.map(|range| range.0);
    let (WalkCounts { counts, range: in_range, open, .. }, end) =
        source.collect(states, &Filter::TRUE, || WalkCounts::new(range), |walked, socket| walked.add(range, socket))?;
    let WalkEnd { complete, recovered, repeats } = end;
    let outbound = match in_range {
        Some(sockets) if facts.local_reserved_ports.is_some() => conclude(
            &source,
            facts.clone(),
            (sockets, end),
            (reuse, UnreadFacts::default()),
            &ResolvedQuestion::default(),
            false,
        )
        .map_err(|error| error.to_string()),
        Some(_) => Err(SnapshotError::Unread(Setting::LocalReservedPorts).to_string()),
        None => Err(SnapshotError::Unread(Setting::LocalPortRange).to_string()),
    };
    let sockets = with_last_acks(source, &facts, open, complete).map_err(|error| error.to_string());
    let complete = sockets.as_ref().map_or(complete, |open| open.complete);
    facts.unread.0.append(&mut unread.0);

    let mut warnings: Vec<String> = (!complete).then(interrupted).into_iter().collect();
    warnings.extend(facts.gaps(&[Setting::LocalPortRange, Setting::LocalReservedPorts]));
    let outbound = outbound.map(|Answer { value, complete, warnings: of_ports, .. }: Answer<Capacity>| {
        let new = of_ports.into_iter().filter(|warning| !complete && !warnings.contains(warning));
        warnings.extend(new.collect::<Vec<_>>());
        value
    });
    warnings.extend(sockets.as_ref().err().cloned());
    let sockets_took = clock.elapsed().saturating_sub(settings_took);
    let complete = warnings.is_empty();
    let health = Health { facts: without_descriptor(facts), settings, buckets, sockets, capabilities };
    let checkup = Checkup { health, outbound, made: None };
    let survey = Survey { checkup, counts, complete, repeats, recovered, settings_took, sockets_took };
    Ok(Answer { complete, warnings, ..Answer::whole(survey) })
}

/// Whether to request sockets that are bound but neither listen nor are connected. For them, the kernel walks a second table, which
/// has the bound ports of all namespaces. With 200 namespaces this doubles the cost of a survey.
fn may_have_bound_inactive() -> bool {
    !matches!(sys::counts::most_unlisted_tcp_sockets(), Ok(Some(0)))
}

fn bound_inactive() -> StateSet {
    StateSet::of(&[TcpState::BoundInactive])
}

/// Closes the descriptor for interface names, because there may be many namespaces.
fn without_descriptor(mut facts: Facts) -> Facts {
    facts.interfaces.store_names([]);
    facts
}

fn with_last_acks(
    mut source: Source,
    facts: &Facts,
    mut open: Vec<FullSocket>,
    mut complete: bool,
) -> Result<OpenSockets, SourceError> {
    if open.iter().any(|full| full.state == TcpState::CloseWait) {
        source = source.with_tcp_info();
        open.retain(|full| full.state == TcpState::Listen);
        let states = StateSet::of(&[TcpState::CloseWait]);
        let (found, end) = source.collect(states, &Filter::TRUE, Vec::new, |found: &mut Vec<FullSocket>, socket| {
            if let Socket::Full(full) = socket {
                found.push(*full);
            }
        })?;
        open.extend(found);
        complete &= end.complete;
    }
    open_sockets(&mut source, facts, open, complete)
}
