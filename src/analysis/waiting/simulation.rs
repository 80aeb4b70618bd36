//! Simulated waits whose correct result is known: sockets appear and end at given times, timers end late, and some listed sockets
//! do not block the bind. Time passes when the wait pauses, and a little in each bind, list and look-up.

use std::net::IpAddr;
use std::time::Duration;

use proptest::prelude::*;

use super::{BindOutcome, WaitEnd, WaitProgress, WaitStep};
use crate::model::port::Port;
use crate::model::socket::{FourTuple, FullSocket, Socket, TcpState, TimeWaitBucket};

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum SimulatedKind {
    /// A timewait bucket, and the time at which its timer ends.
    Bucket {
        timer: Duration,
    },
    Connection,
    Listener,
    /// A listener that another listener of its SO_REUSEPORT group hides from look-ups.
    HiddenListener,
    /// A socket that is bound and does not listen.
    Bound,
}

#[derive(Clone, Copy, Debug)]
struct SimulatedSocket {
    kind: SimulatedKind,
    born: Duration,
    dies: Duration,
    /// Whether the socket blocks a bind.
    blocks: bool,
}

impl SimulatedSocket {
    fn alive(&self, now: Duration) -> bool {
        self.born <= now && now < self.dies
    }

    fn socket(&self, number: usize, now: Duration, cookies: bool) -> Socket {
        let number = u16::try_from(number).expect("few");
        let addr: IpAddr = [127, 0, 0, 1].into();
        let cookie = crate::model::socket::Cookie::new(u64::from(number) + 1).filter(|_| cookies);
        let tuple = FourTuple::new((addr, Port(80)), (addr, Port(number)));
        let state = match self.kind {
            SimulatedKind::Bucket { timer } => {
                let expires_ms = u32::try_from(timer.saturating_sub(now).as_millis()).expect("a minute");
                return Socket::Bucket(TimeWaitBucket {
                    tuple,
                    fin_wait_2: false,
                    expires_ms,
                    interface: None,
                    mark: None,
                    cookie,
                });
            }
            SimulatedKind::Connection => TcpState::Established,
            SimulatedKind::Listener | SimulatedKind::HiddenListener => TcpState::Listen,
            SimulatedKind::Bound => TcpState::BoundInactive,
        };
        Socket::Full(FullSocket {
            tuple,
            state,
            uid: 0,
            inode: None,
            interface: None,
            mark: None,
            v6only: None,
            last_ack_ms: None,
            cookie,
        })
    }
}

struct SimulatedWait {
    ended: WaitEnd,
    at: Duration,
    binds: u32,
    lists: u32,
    look_ups: u32,
}

/// Runs a wait against these sockets. `plain` means that the bind sets no option. `looks_up` means that the source can look up a
/// single socket.
fn wait(
    world: &[SimulatedSocket],
    plain: bool,
    looks_up: bool,
    timeout: Duration,
    list_takes: Duration,
) -> SimulatedWait {
    let mut waiting = WaitProgress::new(plain, looks_up, timeout);
    let (mut now, mut lists, mut look_ups) = (Duration::ZERO, 0, 0);
    let socket = |number: usize, now| world[number].socket(number, now, looks_up);
    let listed = |now| (0..world.len()).filter(move |&number| world[number].alive(now));
    for _ in 0..1_000_000 {
        match waiting.next(now) {
            WaitStep::Bind { .. } => {
                now += Duration::from_micros(20);
                let in_use = world.iter().any(|simulated| simulated.alive(now) && simulated.blocks);
                waiting.report_bind(if in_use { BindOutcome::InUse } else { BindOutcome::All }, 1, now);
            }
            WaitStep::List => {
                lists += 1;
                now += list_takes;
                let sockets: Vec<Socket> = listed(now).map(|number| socket(number, now)).collect();
                waiting.report_list(&sockets, !sockets.is_empty(), list_takes, now);
            }
            WaitStep::LookUp(wanted) => {
                look_ups += 1;
                now += Duration::from_micros(5);
                let number = usize::from(wanted.tuple().remote_port().0);
                let found = world[number].alive(now)
                    && !matches!(world[number].kind, SimulatedKind::HiddenListener | SimulatedKind::Bound);
                waiting.report_look_up(found.then(|| socket(number, now)), now);
            }
            WaitStep::Pause(pause) => {
                assert!(!pause.is_zero(), "a pause of zero");
                now += pause;
            }
            WaitStep::End(ended) => return SimulatedWait { ended, at: now, binds: waiting.binds(), lists, look_ups },
        }
    }
    panic!("no end at {now:?} after {} binds, {lists} lists and {look_ups} look-ups", waiting.binds());
}

/// The first time at which nothing has blocked the port for `long`; `None` if that time is not before `until`.
fn free_for(world: &[SimulatedSocket], long: Duration, until: Duration) -> Option<Duration> {
    let mut ends: Vec<Duration> = world.iter().map(|simulated| simulated.dies).collect();
    ends.push(Duration::ZERO);
    ends.sort_unstable();
    let free = |at: Duration| world.iter().all(|a| !a.blocks || a.dies <= at || a.born > at + long);
    ends.into_iter().find(|&at| free(at)).map(|at| at + long).filter(|&at| at < until)
}

fn bucket(timer: u64, late: u64) -> SimulatedSocket {
    SimulatedSocket {
        kind: SimulatedKind::Bucket { timer: ms(timer) },
        born: Duration::ZERO,
        dies: ms(timer + late),
        blocks: true,
    }
}

fn wait_with_look_ups(world: &[SimulatedSocket], plain: bool) -> SimulatedWait {
    wait(world, plain, true, ms(120_000), ms(1))
}

#[test]
fn a_free_port_takes_one_bind_and_no_list() {
    let free = wait_with_look_ups(&[], false);
    assert_eq!((free.ended, free.binds, free.lists, free.at < ms(1)), (WaitEnd::Bindable, 1, 0, true));
}

#[test]
fn a_wait_lasts_as_long_as_the_bucket() {
    for plain in [true, false] {
        // The wait ends at most 120 ms after the bucket: a round begins every 100 ms. In 62 s there are about 620 rounds of one look-up.
        let one = wait_with_look_ups(&[bucket(60_000, 1_900)], plain);
        assert_eq!(one.ended, WaitEnd::Bindable);
        assert!(one.at >= ms(61_900) && one.at <= ms(62_020), "{:?}", one.at);
        assert!(one.binds <= 3 && one.lists <= 2, "{} binds, {} lists", one.binds, one.lists);
        assert!((600..700).contains(&one.look_ups), "{} look-ups", one.look_ups);
    }
}

#[test]
fn a_wait_without_options_looks_up_one_of_thousands_of_buckets_per_round() {
    let many: Vec<SimulatedSocket> = (0..5000).map(|i| bucket(40_000 + i * 4, 1_000)).collect();
    let plain = wait_with_look_ups(&many, true);
    assert!(plain.at <= ms(60_996 + 1_000 + 150) && plain.binds <= 3 && plain.lists <= 2, "{:?}", plain.at);
    assert!(plain.look_ups < 1000, "{} look-ups", plain.look_ups);
    let shared = wait_with_look_ups(&many, false);
    assert!(shared.at <= ms(60_996 + 1_000 + 150) && shared.binds < 100, "{:?} {}", shared.at, shared.binds);
}

#[test]
fn a_timeout_of_zero_binds_once_and_lists_once() {
    let blocked = wait(&[bucket(60_000, 0)], false, true, Duration::ZERO, ms(1));
    assert_eq!((blocked.ended, blocked.binds, blocked.lists), (WaitEnd::TimedOut, 1, 1));
    let free = wait(&[], false, true, Duration::ZERO, ms(1));
    assert_eq!((free.ended, free.binds), (WaitEnd::Bindable, 1));
}

#[test]
fn sockets_without_look_up_are_listed_once_a_second_and_less_often_if_listing_is_slow() {
    let bound = SimulatedSocket { kind: SimulatedKind::Bound, dies: ms(30_500), ..bucket(0, 0) };
    let hidden = SimulatedSocket { kind: SimulatedKind::HiddenListener, ..bound };
    for simulated in [bound, hidden] {
        let short = wait(&[simulated], true, true, ms(120_000), ms(1));
        assert!(short.at < ms(31_600) && (28..=36).contains(&short.lists), "{:?} {}", short.at, short.lists);
        let long = wait(&[simulated], true, true, ms(120_000), ms(50));
        assert!(long.at < ms(36_000) && long.lists <= 9, "{:?} {}", long.at, long.lists);
    }
    let procfs = wait(&[bucket(60_000, 1_000)], true, false, ms(120_000), ms(1));
    assert!(procfs.at < ms(61_250) && procfs.binds < 5, "{:?} {}", procfs.at, procfs.binds);
}

#[test]
fn a_blocking_socket_that_is_not_listed_causes_one_bind_a_second() {
    let mut waiting = WaitProgress::new(false, true, ms(10_000));
    let mut now = Duration::ZERO;
    loop {
        match waiting.next(now) {
            WaitStep::Bind { .. } => waiting.report_bind(BindOutcome::InUse, 1, now),
            WaitStep::List => waiting.report_list(&[], false, Duration::ZERO, now),
            WaitStep::Pause(pause) => now += pause,
            WaitStep::LookUp(_) => panic!("nothing is known"),
            WaitStep::End(ended) => break assert_eq!((ended, now), (WaitEnd::TimedOut, ms(10_000))),
        }
    }
    assert!((10..=16).contains(&waiting.binds()), "{}", waiting.binds());
}

#[test]
fn a_missing_address_is_retried_once_a_second_and_a_denied_bind_is_not_retried() {
    let mut waiting = WaitProgress::new(false, true, ms(10_000));
    assert_eq!(waiting.next(ms(0)), WaitStep::Bind { every_address: true });
    waiting.report_bind(BindOutcome::NotAvailable, 2, ms(0));
    assert_eq!(waiting.next(ms(0)), WaitStep::Pause(ms(1000)));
    assert_eq!(waiting.next(ms(1000)), WaitStep::Bind { every_address: false });
    waiting.report_bind(BindOutcome::Denied, 1, ms(1000));
    assert_eq!(waiting.next(ms(1000)), WaitStep::End(WaitEnd::Denied));
}

#[test]
fn a_restarted_timer_changes_the_remaining_time() {
    let mut waiting = WaitProgress::new(true, true, ms(120_000));
    let at = |now: u64| bucket(now + 30_000, 0).socket(0, ms(now), true);
    assert_eq!(waiting.next(ms(0)), WaitStep::Bind { every_address: true });
    waiting.report_bind(BindOutcome::InUse, 2, ms(0));
    assert_eq!(waiting.next(ms(0)), WaitStep::List);
    waiting.report_list(&[at(0)], true, ms(1), ms(0));
    assert_eq!(waiting.next(ms(0)), WaitStep::Pause(ms(100)));
    assert_eq!(waiting.remaining(ms(90)), Some(ms(29_910)));
    assert!(matches!(waiting.next(ms(100)), WaitStep::LookUp(_)));
    waiting.report_look_up(Some(bucket(60_100, 0).socket(0, ms(100), true)), ms(100));
    assert_eq!(waiting.remaining(ms(200)), Some(ms(59_900)));
}

fn world(shared: bool) -> impl Strategy<Value = Vec<SimulatedSocket>> {
    let bucket =
        (0_u64..60_000, 0_u64..2_050, prop::option::weighted(0.3, 0_u64..60_000)).prop_map(|(timer, late, killed)| {
            (SimulatedKind::Bucket { timer: ms(timer) }, killed.unwrap_or(timer + late).min(timer + late))
        });
    let other = (
        prop_oneof![
            Just(SimulatedKind::Connection),
            Just(SimulatedKind::Listener),
            Just(SimulatedKind::HiddenListener),
            Just(SimulatedKind::Bound)
        ],
        0_u64..50_000,
    );
    let blocks = if shared { any::<bool>().boxed() } else { Just(true).boxed() };
    let born = prop_oneof![4 => Just(0_u64), 1 => 0_u64..50_000];
    let simulated = (prop_oneof![5 => bucket, 1 => other], blocks, born).prop_map(|((kind, dies), blocks, born)| {
        SimulatedSocket { kind, born: ms(born), dies: ms(dies.max(born)), blocks }
    });
    prop::collection::vec(simulated, 0..40)
}

fn check(world: &[SimulatedSocket], plain: bool, looks_up: bool) -> Result<(), TestCaseError> {
    const TIMEOUT: Duration = ms(70_000);
    let got = wait(world, plain, looks_up, TIMEOUT, ms(1));
    let watched = |simulated: &SimulatedSocket| {
        matches!(simulated.kind, SimulatedKind::Bucket { .. } | SimulatedKind::Connection)
    };
    // The longest time from the end of the last blocking socket to the end of the wait. The end of a socket that cannot be
    // looked up shows only in the list of sockets, which is read once a second.
    let patience = if looks_up && world.iter().all(watched) { ms(150) } else { ms(1_200) };
    let blocked = world.iter().any(|simulated| simulated.alive(got.at) && simulated.blocks);
    match got.ended {
        WaitEnd::Bindable => prop_assert!(!blocked),
        WaitEnd::TimedOut => prop_assert!(got.at >= TIMEOUT && blocked),
        WaitEnd::Denied => prop_assert!(false),
    }
    if let Some(latest) = free_for(world, patience, TIMEOUT) {
        prop_assert!(got.at <= latest, "the wait ended at {:?}, but could have ended at {latest:?}", got.at);
    }
    // The limit is two binds per second on average. A minute that has begun counts as a whole minute.
    let most_binds = 120 * (1 + got.at.as_secs() / 60);
    prop_assert!(u64::from(got.binds) < most_binds, "{} binds in {:?}", got.binds, got.at);
    Ok(())
}

proptest! {
    #[test]
    fn a_wait_without_options_ends_after_the_last_socket(world in world(false)) {
        check(&world, true, true)?;
    }

    #[test]
    fn a_wait_with_options_ends_after_the_last_blocking_socket(world in world(true)) {
        check(&world, false, true)?;
    }

    #[test]
    fn without_look_ups_a_wait_ends_at_most_1_2_s_late(world in world(true), plain in any::<bool>()) {
        let blocks = |simulated: &SimulatedSocket| SimulatedSocket { blocks: plain || simulated.blocks, ..*simulated };
        check(&world.iter().map(blocks).collect::<Vec<_>>(), plain, false)?;
    }
}
