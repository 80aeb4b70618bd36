//! Tests the conclusion about connect() without a kernel: each decision, in the kernel's order.

use super::*;
use crate::model::bind::ReuseOptions;
use crate::model::bind::tests::attempt as attempt_on;
use crate::model::facts::tests::facts;
use crate::model::port::{LocalReservedPorts, PortRange};
use crate::model::port_set::PortSet;
use crate::model::row::Direction;
use crate::model::row::tests::row;
use crate::model::socket::FullSocket;
use crate::model::tw_reuse::ReuseMode;

const FROM: &str = "192.0.2.9";
const TO: &str = "192.0.2.1";

fn at(addr: &str) -> BindAddr {
    BindAddr { addr: addr.parse().expect(addr), scope: None }
}

fn attempt(options: ReuseOptions, bind: CallResult) -> Attempt {
    Attempt { options, ..attempt_on(FROM, bind) }
}

/// A client with a fixed source port, whose connect() works.
fn situation() -> Situation {
    let reuse = TwReuse {
        mode: Some(ReuseMode::Off),
        delay: Duration::from_secs(1),
        whole_seconds: false,
        timestamps: Some(true),
    };
    Situation {
        facts: facts(),
        to: at(TO),
        to_port: Port(443),
        from: Some(at(FROM)),
        from_port: Some(Port(15060)),
        with: ReuseOptions::NONE,
        bind_address_no_port: false,
        attempts: vec![attempt(ReuseOptions::NONE, CallResult::Ok)],
        route: Ok(FROM.parse().expect(FROM)),
        holders: vec![],
        bound_sockets_are_listed: true,
        reuse,
        choice: None,
        uid: 0,
    }
}

fn holder(socket: Socket) -> Holder {
    Holder::of(socket, Direction::Outbound, true)
}

fn bucket(remote: &str, remote_port: u16, interface: Option<u32>) -> Holder {
    let mut bucket = row(FROM, 15060, remote, remote_port).bucket;
    (bucket.expires_ms, bucket.interface) = (41_000, interface.and_then(NonZeroU32::new));
    holder(Socket::Bucket(bucket))
}

fn failed(bind: Errno) -> Vec<Attempt> {
    vec![attempt(ReuseOptions::NONE, CallResult::Failed(bind))]
}

#[test]
fn bind_decides_before_the_route_and_the_route_before_the_port() {
    let same = vec![bucket(TO, 443, None)];
    let unreachable = Err(Errno::Other("ENETUNREACH"));
    let first =
        Situation { attempts: failed(Errno::AddrInUse), route: unreachable, holders: same.clone(), ..situation() };
    let conclusion = first.conclude();
    assert_eq!((conclusion.verdict, conclusion.cause), (ConnectVerdict::Blocked, ConnectCause::TimeWait));
    assert_eq!(conclusion.failure, Some((FailingCall::Bind, Errno::AddrInUse)));
    assert_eq!(conclusion.free_in, Some(Duration::from_secs(41)));
    let second = Situation { attempts: situation().attempts, ..first };
    let conclusion = second.conclude();
    assert_eq!((conclusion.verdict, conclusion.cause), (ConnectVerdict::Denied, ConnectCause::NoRoute));
    let third = Situation { route: situation().route, ..second };
    assert_eq!(third.conclude().verdict, ConnectVerdict::Unknown);
    assert_eq!(Situation { holders: vec![], ..third }.conclude(), ConnectConclusion::FREE);
}

#[test]
fn timestamps_decide_the_inferred_verdict_about_a_bucket_of_the_same_connection() {
    for (timestamps, inferred) in
        [(Some(true), Some(ConnectVerdict::Free)), (Some(false), Some(ConnectVerdict::Blocked)), (None, None)]
    {
        let reuse = TwReuse { timestamps, ..situation().reuse };
        let conclusion = Situation { reuse, holders: vec![bucket(TO, 443, None)], ..situation() }.conclude();
        assert_eq!(
            (conclusion.verdict, conclusion.cause, conclusion.inferred),
            (ConnectVerdict::Unknown, ConnectCause::TimeWait, inferred)
        );
    }
    for other in [bucket(TO, 444, None), bucket("192.0.2.2", 443, None), bucket(TO, 443, Some(7))] {
        assert_eq!(Situation { holders: vec![other], ..situation() }.conclude(), ConnectConclusion::FREE);
    }
}

#[test]
fn the_wait_command_is_printed_even_if_the_kernel_cannot_remove_the_bucket() {
    use crate::model::command::{Caller, Shell};
    let shell = Shell { netns: None, caller: Caller { root: true, ..Caller::default() } };
    for (kernel, kills) in [("5.10.0", false), ("6.18.0", true)] {
        let attempts = failed(Errno::AddrInUse);
        let mut blocked = Situation { attempts, holders: vec![bucket(TO, 443, None)], ..situation() };
        kernel.clone_into(&mut blocked.facts.kernel);
        let help = advice::advise(&blocked, &blocked.conclude(), &shell, None);
        let has = |word: &str| help.commands.iter().any(|step| step.command.contains(word));
        assert_eq!((has(" wait "), has(" kill ")), (true, kills), "{kernel}: {:?}", help.commands);
    }
}

#[test]
fn an_open_connection_with_the_same_addresses_and_ports_blocks_connect() {
    let full = |state| {
        holder(Socket::Full(FullSocket {
            tuple: row(FROM, 15060, TO, 443).bucket.tuple,
            state,
            uid: 0,
            inode: None,
            interface: None,
            mark: None,
            v6only: None,
            last_ack_ms: None,
            cookie: None,
        }))
    };
    let conclusion = Situation { holders: vec![full(TcpState::CloseWait)], ..situation() }.conclude();
    assert_eq!((conclusion.verdict, conclusion.cause), (ConnectVerdict::Blocked, ConnectCause::AddressInUse));
    assert_eq!(conclusion.failure, Some((FailingCall::Connect, Errno::AddrNotAvailable)));
}

#[test]
fn an_errno_of_bind_other_than_eaddrinuse_gives_the_verdict_denied() {
    for (errno, cause, call) in [
        (Errno::AddrNotAvailable, ConnectCause::AddressNotLocal, FailingCall::Bind),
        (Errno::FamilyNotSupported, ConnectCause::FamilyUnsupported, FailingCall::Socket),
        (Errno::Other("EINVAL"), ConnectCause::Unknown, FailingCall::Bind),
        // The port needs no privilege: a security module or a sandbox refused the bind.
        (Errno::Access, ConnectCause::Unknown, FailingCall::Bind),
    ] {
        let conclusion = Situation { attempts: failed(errno), ..situation() }.conclude();
        assert_eq!((conclusion.verdict, conclusion.cause), (ConnectVerdict::Denied, cause));
        assert_eq!(conclusion.failure, Some((call, errno)));
    }
    let privileged = Situation { attempts: failed(Errno::Access), from_port: Some(Port(99)), ..situation() };
    assert_eq!(privileged.conclude().cause, ConnectCause::PrivilegedPort);
}

fn chosen(free: u32, uncertain: u32, reusable: Option<u32>) -> ConnectConclusion {
    let choice = Some(choice(free, uncertain, reusable));
    Situation { from: None, from_port: None, attempts: vec![], choice, ..situation() }.conclude()
}

/// A pool of 8 ports.
fn choice(free: u32, uncertain: u32, reusable: Option<u32>) -> PortChoice {
    let ports = PortRange::new(Port(40_000), Port(40_007)).expect("forwards");
    let ends = super::super::capacity::sockets::ConnectionEnds {
        ipv6: false,
        local_addr: FROM.parse().expect(FROM),
        remote_addr: TO.parse().expect(TO),
        remote_port: Port(443),
        interface: None,
    };
    let destination = Destination {
        ends,
        established: 0,
        time_wait: 4,
        other: 0,
        reusable,
        reusable_within_1s: reusable,
        free,
        uncertain,
        closes_per_s: None,
        closes_per_s_now: None,
        sustainable_per_s: None,
        exhausted_in: None,
        first_released: Some(Duration::from_secs(3)),
    };
    let pool = Pool::new(ports, &LocalReservedPorts::default(), &PortSet::default(), &PortSet::default(), 0);
    PortChoice { pool, length: Length::learn(None, None), destination }
}

#[test]
fn the_verdict_is_free_only_if_a_port_is_certainly_left() {
    let verdict = |free, uncertain, reusable| {
        let conclusion = chosen(free, uncertain, reusable);
        (conclusion.verdict, conclusion.cause, conclusion.inferred)
    };
    assert_eq!(verdict(8, 0, Some(0)), (ConnectVerdict::Free, ConnectCause::None, None));
    assert_eq!(verdict(3, 1, Some(1)), (ConnectVerdict::Free, ConnectCause::None, None));
    assert_eq!(verdict(0, 0, Some(0)), (ConnectVerdict::Blocked, ConnectCause::Exhausted, None));
    assert_eq!(verdict(2, 0, Some(2)), (ConnectVerdict::Unknown, ConnectCause::TimeWait, Some(ConnectVerdict::Free)));
    assert_eq!(verdict(2, 2, Some(0)), (ConnectVerdict::Unknown, ConnectCause::Unknown, None));
    assert_eq!(
        verdict(0, 0, None),
        (ConnectVerdict::Unknown, ConnectCause::TimeWait, None),
        "without the settings of tcp_tw_reuse"
    );
    assert_eq!(chosen(0, 0, Some(0)).free_in, Some(Duration::from_secs(3)));
    assert_eq!((chosen(2, 2, Some(0)).free, chosen(2, 2, Some(0)).free_in), (Some(2), None));
}

#[test]
fn for_an_address_without_a_port_the_call_that_chooses_the_port_decides() {
    let three_left = choice(3, 0, Some(0));
    let none_left = choice(0, 0, Some(0));
    let conclude = |bind: CallResult, bind_address_no_port, choice: &PortChoice| {
        let attempts = vec![attempt(ReuseOptions::NONE, bind)];
        let choice = Some(choice.clone());
        let conclusion =
            Situation { attempts, from_port: None, choice, bind_address_no_port, ..situation() }.conclude();
        (conclusion.verdict, conclusion.cause, conclusion.failure.map(|(call, _)| call), conclusion.free)
    };
    let in_use = CallResult::Failed(Errno::AddrInUse);
    let blocked = |call, free| (ConnectVerdict::Blocked, ConnectCause::Exhausted, Some(call), Some(free));
    let free = |free| (ConnectVerdict::Free, ConnectCause::None, None, Some(free));
    assert_eq!(conclude(in_use, false, &three_left), blocked(FailingCall::Bind, 3));
    assert_eq!(conclude(in_use, true, &three_left), free(3));
    assert_eq!(conclude(in_use, true, &none_left), blocked(FailingCall::Connect, 0));
    assert_eq!(conclude(CallResult::Ok, false, &none_left), free(0));
    assert_eq!(conclude(CallResult::Ok, true, &none_left), blocked(FailingCall::Connect, 0));
}
