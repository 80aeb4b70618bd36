//! `free_in_ms` of `bind-test`: no bind works before this time has passed, and the value is null if twtool cannot know which buckets
//! block.

use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use serde_json::Value;
use socket2::{Domain, Socket, Type};
use twtool::lab::{ActiveCloser, Server};
use twtool::model::bind::ReuseOptions;
use twtool::sys::sysctl;

use crate::support::bind::{OpenSockets, bind};
use crate::support::netns::on_thread_in_new_namespace;
use crate::support::random::Random;
use crate::support::records::number;
use crate::support::situations::{addr, connect, half_closed};
use crate::support::twtool::twtool;
use crate::support::{kernel, not_checked, suite};

suite! {
    pure: [],
    netns: [
        free_in_is_null_if_another_bucket_may_block_longer,
        no_bind_works_before_free_in_has_passed,
    ],
}

/// Which server left a FIN_WAIT_2 bucket on port 8000.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Ipv4,
    /// A dual-stack server, after a connection over IPv4.
    Mapped,
    /// A dual-stack server, after a connection over IPv6.
    DualStack,
    Ipv6Only,
}

const KINDS: [Kind; 4] = [Kind::Ipv4, Kind::Mapped, Kind::DualStack, Kind::Ipv6Only];

impl Kind {
    fn server(self) -> Server {
        let at = match self {
            Self::Ipv4 => return Server::listen(addr("127.0.0.1:8000"), ReuseOptions::REUSEADDR).expect("listening"),
            Self::Mapped | Self::DualStack | Self::Ipv6Only => addr("[::]:8000"),
        };
        let socket = Socket::new(Domain::IPV6, Type::STREAM, None).expect("a socket");
        socket.set_only_v6(matches!(self, Self::Ipv6Only)).expect("IPV6_V6ONLY");
        socket.set_reuse_address(true).expect("SO_REUSEADDR");
        Server::listen_on(socket, at).expect("listening")
    }

    const fn client(self) -> &'static str {
        match self {
            Self::Ipv4 | Self::Mapped => "127.0.0.1:8000",
            Self::DualStack | Self::Ipv6Only => "[::1]:8000",
        }
    }

    /// Leaves a FIN_WAIT_2 bucket that lasts this number of seconds. The caller must keep the returned client that long.
    fn leave(self, seconds: u32) -> OpenSockets {
        sysctl::write("ipv4.tcp_fin_timeout", &seconds.to_string()).expect("the namespace is ours");
        let server = self.server();
        Box::new(half_closed(&server, self.client(), ActiveCloser::Server))
    }
}

fn answer(at: &[&str]) -> Value {
    let addrs: Vec<&str> = at.iter().flat_map(|at| ["--addr", *at]).collect();
    twtool([&["bind-test", "8000", "--with", "none", "--json"], &addrs[..]].concat()).json()
}

fn free_in_is_null_if_another_bucket_may_block_longer() {
    let _half = Kind::Mapped.leave(7);
    let server = Kind::DualStack.server();
    connect(&server, "[::1]:8000").close(ActiveCloser::Server).expect("a bucket");
    drop(server);
    let alone = answer(&["0.0.0.0"]);
    assert_eq!((&alone["verdict"], &alone["free_in_ms"]), (&"blocked".into(), &Value::Null), "{alone}");
    assert!(alone["advice"].to_string().contains("unknown"), "{alone}");
    // On :: both buckets certainly block, and the one that lasts longer decides.
    assert!(number(&answer(&["0.0.0.0", "::"]), "free_in_ms") > 50_000);
    assert!(number(&answer(&["127.0.0.1"]), "free_in_ms") <= 7_000);
    if !kernel::destroys_buckets() {
        return not_checked("that each of two buckets blocks on its own: this kernel has no SOCK_DESTROY of buckets");
    }
    twtool(["kill", "--local-port", "8000", "--fin-wait-2", "--local", "127.0.0.1", "--yes"]).ok();
    assert_eq!(bind("0.0.0.0", 8000, &[], false).0, "EADDRINUSE", "the other bucket blocks, too");
}

fn no_bind_works_before_free_in_has_passed() {
    const ADDRS: [&str; 4] = ["0.0.0.0", "127.0.0.1", "::", "::1"];
    let seed = Random::seed();
    let mut random = Random::new(seed);
    let situations: Vec<Vec<(Kind, u32)>> =
        (0..24).map(|_| (0..=random.below(3)).map(|_| (*random.of(&KINDS), *random.of(&[3, 5]))).collect()).collect();
    let failed = std::thread::scope(|scope| {
        let start = |situation| {
            scope.spawn(move || {
                // Each thread has its own table of descriptors. Otherwise a child that another thread starts would hold copies of the
                // listeners of this thread for a moment.
                unshare(CloneFlags::CLONE_FILES).expect("descriptors of its own");
                on_thread_in_new_namespace(|| check(situation, &ADDRS));
            })
        };
        let threads: Vec<_> = situations.iter().map(|situation| start(situation)).collect();
        threads.into_iter().map(|thread| thread.join().is_err()).filter(|failed| *failed).count()
    });
    assert!(failed == 0, "TWTOOL_SEED={seed}: {failed} of {} situations failed, see above", situations.len());
}

/// Runs bind-test for each address, and then binds each address until the bind works.
fn check(situation: &[(Kind, u32)], addrs: &[&'static str]) {
    // A timer of the kernel ends at a whole jiffy, which lasts at most 10 ms.
    const JIFFY: Duration = Duration::from_millis(10);
    let _kept: Vec<OpenSockets> = situation.iter().map(|(kind, seconds)| kind.leave(*seconds)).collect();
    let ask = |at: &&'static str| {
        let asked = Instant::now();
        (*at, asked, answer(&[*at]))
    };
    let mut waiting: Vec<_> = addrs.iter().map(ask).collect();
    let end = Instant::now() + kernel::patience(Duration::from_secs(60));
    while !waiting.is_empty() {
        waiting.retain(|(at, asked, document)| {
            if bind(at, 8000, &[], false).0 != "ok" {
                return true;
            }
            if let Some(free_in) = document["free_in_ms"].as_u64() {
                let early = Duration::from_millis(free_in).saturating_sub(asked.elapsed());
                assert!(early <= JIFFY, "{at} is free {early:?} before free_in_ms is over, {situation:?}\n{document}");
            }
            false
        });
        assert!(Instant::now() < end, "{waiting:?} {situation:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
