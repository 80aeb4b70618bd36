//! Waits in a world whose truth is known: sockets come and go at given times, the kernel's timers are late, some sockets
//! are in the list that are not in the way. Time passes only when the wait lets it.

use std::net::IpAddr;
use std::time::Duration;

use proptest::prelude::*;

use super::{Bound, Ended, Step, Waiting};
use crate::model::port::Port;
use crate::model::socket::{FourTuple, FullSocket, Socket, TcpState, TimeWaitBucket};

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// A timewait bucket whose timer ends then.
    Bucket {
        timer: Duration,
    },
    Connection,
    Listener,
    /// A listener that another of its SO_REUSEPORT group hides from look-ups.
    HiddenListener,
    /// Bound and nothing more.
    Bound,
}

#[derive(Clone, Copy, Debug)]
struct Actor {
    kind: Kind,
    born: Duration,
    dies: Duration,
    /// Whether a bind runs into it. Those that it does not run into have the options that the bind has.
    blocks: bool,
}

impl Actor {
    fn alive(&self, now: Duration) -> bool {
        self.born <= now && now < self.dies
    }

    fn socket(&self, number: usize, now: Duration, cookies: bool) -> Socket {
        let number = u16::try_from(number).expect("few");
        let addr: IpAddr = [127, 0, 0, 1].into();
        let cookie = crate::model::socket::Cookie::new(u64::from(number) + 1).filter(|_| cookies);
        let tuple = FourTuple::new((addr, Port(80)), (addr, Port(number)));
        let state = match self.kind {
            Kind::Bucket { timer } => {
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
            Kind::Connection => TcpState::Established,
            Kind::Listener | Kind::HiddenListener => TcpState::Listen,
            Kind::Bound => TcpState::BoundInactive,
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

struct Outcome {
    ended: Ended,
    at: Duration,
    binds: u32,
    looks: u32,
    look_ups: u32,
}

/// Waits in this world. A bind is checked against the truth by the world itself.
fn wait(actors: &[Actor], plain: bool, looks_up: bool, timeout: Duration, look_takes: Duration) -> Outcome {
    let mut waiting = Waiting::new(plain, looks_up, timeout);
    let (mut now, mut looks, mut look_ups) = (Duration::ZERO, 0, 0);
    let socket = |number: usize, now| actors[number].socket(number, now, looks_up);
    let listed = |now| (0..actors.len()).filter(move |&number| actors[number].alive(now));
    for _ in 0..1_000_000 {
        match waiting.next(now) {
            Step::Bind { .. } => {
                now += Duration::from_micros(20);
                let in_use = actors.iter().any(|actor| actor.alive(now) && actor.blocks);
                waiting.bound(if in_use { Bound::InUse } else { Bound::All }, 1, now);
            }
            Step::Look => {
                looks += 1;
                now += look_takes;
                let sockets: Vec<Socket> = listed(now).map(|number| socket(number, now)).collect();
                waiting.looked(&sockets, !sockets.is_empty(), look_takes, now);
            }
            Step::LookUp(wanted) => {
                look_ups += 1;
                now += Duration::from_micros(5);
                let number = usize::from(wanted.tuple().remote_port().0);
                let found =
                    actors[number].alive(now) && !matches!(actors[number].kind, Kind::HiddenListener | Kind::Bound);
                waiting.looked_up(found.then(|| socket(number, now)), now);
            }
            Step::Pause(pause) => {
                assert!(!pause.is_zero(), "a pause of nothing");
                now += pause;
            }
            Step::End(ended) => return Outcome { ended, at: now, binds: waiting.binds(), looks, look_ups },
        }
    }
    panic!("no end at {now:?} after {} binds, {looks} looks and {look_ups} look-ups", waiting.binds());
}

/// When the port has been free for this long.
fn free_for(actors: &[Actor], long: Duration, until: Duration) -> Option<Duration> {
    let mut ends: Vec<Duration> = actors.iter().map(|actor| actor.dies).collect();
    ends.push(Duration::ZERO);
    ends.sort_unstable();
    let free = |at: Duration| actors.iter().all(|a| !a.blocks || a.dies <= at || a.born > at + long);
    ends.into_iter().find(|&at| free(at)).map(|at| at + long).filter(|&at| at < until)
}

fn bucket(timer: u64, late: u64) -> Actor {
    Actor { kind: Kind::Bucket { timer: ms(timer) }, born: Duration::ZERO, dies: ms(timer + late), blocks: true }
}

fn outcome(actors: &[Actor], plain: bool) -> Outcome {
    wait(actors, plain, true, ms(120_000), ms(1))
}

#[test]
fn a_free_port_takes_one_bind_and_no_look() {
    let free = outcome(&[], false);
    assert_eq!((free.ended, free.binds, free.looks, free.at < ms(1)), (Ended::Bindable, 1, 0, true));
}

#[test]
fn a_bucket_is_waited_for_through_its_whole_life() {
    for plain in [true, false] {
        let one = outcome(&[bucket(60_000, 1_900)], plain);
        assert_eq!(one.ended, Ended::Bindable);
        assert!(one.at >= ms(61_900) && one.at <= ms(62_020), "{:?}", one.at);
        assert!(one.binds <= 3 && one.looks <= 2, "{} binds, {} looks", one.binds, one.looks);
        assert!((600..700).contains(&one.look_ups), "{} look-ups", one.look_ups);
    }
}

#[test]
fn thousands_of_buckets_cost_a_plain_wait_one_look_up_a_round() {
    let many: Vec<Actor> = (0..5000).map(|i| bucket(40_000 + i * 4, 1_000)).collect();
    let plain = outcome(&many, true);
    assert!(plain.at <= ms(60_996 + 1_000 + 150) && plain.binds <= 3 && plain.looks <= 2, "{:?}", plain.at);
    assert!(plain.look_ups < 1000, "{} look-ups", plain.look_ups);
    let shared = outcome(&many, false);
    assert!(shared.at <= ms(60_996 + 1_000 + 150) && shared.binds < 100, "{:?} {}", shared.at, shared.binds);
}

#[test]
fn a_wait_of_no_time_binds_once_and_says_what_it_saw() {
    let blocked = wait(&[bucket(60_000, 0)], false, true, Duration::ZERO, ms(1));
    assert_eq!((blocked.ended, blocked.binds, blocked.looks), (Ended::TimedOut, 1, 1));
    let free = wait(&[], false, true, Duration::ZERO, ms(1));
    assert_eq!((free.ended, free.binds), (Ended::Bindable, 1));
}

#[test]
fn what_cannot_be_looked_up_is_looked_for_once_a_second_and_less_often_where_that_takes_long() {
    let bound = Actor { kind: Kind::Bound, dies: ms(30_500), ..bucket(0, 0) };
    let hidden = Actor { kind: Kind::HiddenListener, ..bound };
    for actor in [bound, hidden] {
        let short = wait(&[actor], true, true, ms(120_000), ms(1));
        assert!(short.at < ms(31_600) && (28..=36).contains(&short.looks), "{:?} {}", short.at, short.looks);
        let long = wait(&[actor], true, true, ms(120_000), ms(50));
        assert!(long.at < ms(36_000) && long.looks <= 9, "{:?} {}", long.at, long.looks);
    }
    let procfs = wait(&[bucket(60_000, 1_000)], true, false, ms(120_000), ms(1));
    assert!(procfs.at < ms(61_250) && procfs.binds < 5, "{:?} {}", procfs.at, procfs.binds);
}

#[test]
fn a_holder_that_is_not_listed_is_tried_once_a_second() {
    let mut waiting = Waiting::new(false, true, ms(10_000));
    let mut now = Duration::ZERO;
    loop {
        match waiting.next(now) {
            Step::Bind { .. } => waiting.bound(Bound::InUse, 1, now),
            Step::Look => waiting.looked(&[], false, Duration::ZERO, now),
            Step::Pause(pause) => now += pause,
            Step::LookUp(_) => panic!("nothing is known"),
            Step::End(ended) => break assert_eq!((ended, now), (Ended::TimedOut, ms(10_000))),
        }
    }
    assert!((10..=16).contains(&waiting.binds()), "{}", waiting.binds());
}

#[test]
fn an_address_that_is_missing_is_tried_once_a_second_and_a_refusal_never_again() {
    let mut waiting = Waiting::new(false, true, ms(10_000));
    assert_eq!(waiting.next(ms(0)), Step::Bind { every_address: true });
    waiting.bound(Bound::NotAvailable, 2, ms(0));
    assert_eq!(waiting.next(ms(0)), Step::Pause(ms(1000)));
    assert_eq!(waiting.next(ms(1000)), Step::Bind { every_address: false });
    waiting.bound(Bound::Denied, 1, ms(1000));
    assert_eq!(waiting.next(ms(1000)), Step::End(Ended::Denied));
}

#[test]
fn a_timer_that_starts_again_is_followed() {
    let mut waiting = Waiting::new(true, true, ms(120_000));
    let at = |now: u64| bucket(now + 30_000, 0).socket(0, ms(now), true);
    assert_eq!(waiting.next(ms(0)), Step::Bind { every_address: true });
    waiting.bound(Bound::InUse, 2, ms(0));
    assert_eq!(waiting.next(ms(0)), Step::Look);
    waiting.looked(&[at(0)], true, ms(1), ms(0));
    assert_eq!(waiting.next(ms(0)), Step::Pause(ms(100)));
    assert_eq!(waiting.remaining(ms(90)), Some(ms(29_910)));
    assert!(matches!(waiting.next(ms(100)), Step::LookUp(_)));
    waiting.looked_up(Some(bucket(60_100, 0).socket(0, ms(100), true)), ms(100));
    assert_eq!(waiting.remaining(ms(200)), Some(ms(59_900)));
}

fn actors(shared: bool) -> impl Strategy<Value = Vec<Actor>> {
    let bucket =
        (0_u64..60_000, 0_u64..2_050, prop::option::weighted(0.3, 0_u64..60_000)).prop_map(|(timer, late, killed)| {
            (Kind::Bucket { timer: ms(timer) }, killed.unwrap_or(timer + late).min(timer + late))
        });
    let other = (
        prop_oneof![Just(Kind::Connection), Just(Kind::Listener), Just(Kind::HiddenListener), Just(Kind::Bound)],
        0_u64..50_000,
    );
    let blocks = if shared { any::<bool>().boxed() } else { Just(true).boxed() };
    let born = prop_oneof![4 => Just(0_u64), 1 => 0_u64..50_000];
    let actor = (prop_oneof![5 => bucket, 1 => other], blocks, born).prop_map(|((kind, dies), blocks, born)| Actor {
        kind,
        born: ms(born),
        dies: ms(dies.max(born)),
        blocks,
    });
    prop::collection::vec(actor, 0..40)
}

fn check(actors: &[Actor], plain: bool, looks_up: bool) -> Result<(), TestCaseError> {
    const TIMEOUT: Duration = ms(70_000);
    let got = wait(actors, plain, looks_up, TIMEOUT, ms(1));
    let watched = |actor: &Actor| matches!(actor.kind, Kind::Bucket { .. } | Kind::Connection);
    // From a disappearance to the end; what cannot be looked up is looked for once a second.
    let patience = if looks_up && actors.iter().all(watched) { ms(150) } else { ms(1_200) };
    let blocked = actors.iter().any(|actor| actor.alive(got.at) && actor.blocks);
    match got.ended {
        Ended::Bindable => prop_assert!(!blocked),
        Ended::TimedOut => prop_assert!(got.at >= TIMEOUT && blocked),
        Ended::Denied => prop_assert!(false),
    }
    if let Some(latest) = free_for(actors, patience, TIMEOUT) {
        prop_assert!(got.at <= latest, "it ended at {:?}, and could have at {:?}", got.at, latest);
    }
    let bound = 120 * (1 + got.at.as_secs() / 60);
    prop_assert!(u64::from(got.binds) < bound, "{} binds in {:?}", got.binds, got.at);
    Ok(())
}

proptest! {
    #[test]
    fn a_plain_wait_ends_when_the_last_has_gone(actors in actors(false)) {
        check(&actors, true, true)?;
    }

    #[test]
    fn a_wait_with_options_ends_when_the_last_that_does_not_share_has_gone(actors in actors(true)) {
        check(&actors, false, true)?;
    }

    #[test]
    fn without_look_ups_a_wait_ends_about_a_second_later(actors in actors(true), plain in any::<bool>()) {
        let blocks = |actor: &Actor| Actor { blocks: plain || actor.blocks, ..*actor };
        check(&actors.iter().map(blocks).collect::<Vec<_>>(), plain, false)?;
    }
}
