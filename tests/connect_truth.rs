//! Compares `twtool connect-test` with the kernel. In random situations, a real connect() must have the result that the verdict
//! predicts. Neither `connect-test` nor `capacity` may change a bucket.

use std::any::Any;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};
use twtool::sys::sysctl;

use crate::support::connects::Client;
use crate::support::kernel::bucket_cookies;
use crate::support::outbound::{LOW, narrow_range, set};
use crate::support::random::Random;
use crate::support::situations::addr;
use crate::support::twtool::{Run, twtool};
use crate::support::{addresses, kernel, measured, netns, procfs, suite};

suite! {
    pure: [],
    netns: [
        the_verdict_predicts_the_result_of_a_later_connect,
        capacity_and_connect_test_change_no_bucket,
    ],
}

const SITUATIONS: u64 = 100;

const IPV4: [&str; 2] = ["127.0.0.1", "10.0.0.1"];
const IPV6: [&str; 2] = ["::1", "2001:db8::1"];
/// Source ports: one inside of the ephemeral range, and two outside.
const PORTS: [u16; 3] = [LOW, 15_060, 99];
const SERVERS: [u16; 2] = [443, 444];
const NO_SERVER: u16 = 445;

/// An address of the family. The first one is more frequent, so that sockets often conflict.
fn one_of(random: &mut Random, family: [&'static str; 2]) -> &'static str {
    family[usize::from(random.once_in(4))]
}

fn end(addr: &str, port: u16) -> SocketAddr {
    SocketAddr::new(addr.parse().expect("an address"), port)
}

/// A random namespace: settings and sockets.
struct World {
    servers: Vec<TcpListener>,
    kept: Vec<Box<dyn Any>>,
    /// A description of the sockets, for the message of a failure.
    made: Vec<String>,
    /// The addresses and ports that each call of [`Self::add`] has chosen. A socket with these ends need not exist.
    clients: Vec<Client>,
}

impl World {
    fn make(random: &mut Random) -> Self {
        addresses::add(IPV4[1]);
        addresses::add(IPV6[1]);
        let size = *random.of(&[2, 3, 4]);
        narrow_range(size);
        let timestamps = u32::from(!random.once_in(4));
        set("ipv4.tcp_timestamps", timestamps);
        let mut made = vec![format!("{size} ports, timestamps {timestamps}")];
        if random.once_in(4) {
            sysctl::write("ipv4.ip_local_reserved_ports", &(LOW + 1).to_string()).expect("the namespace is ours");
            made.push("the second port is reserved".into());
        }
        let servers = SERVERS.map(|port| TcpListener::bind(end("::", port)).expect("a server")).into();
        let mut world = Self { servers, kept: vec![], made, clients: vec![] };
        for _ in 0..=random.below(9) {
            world.add(random);
        }
        // Before Linux 6.14, connect() compares the age of a bucket in whole seconds, so its result depends on chance.
        if kernel::has_exact_ages() {
            let (reuse, delay) = (*random.of(&[0, 1, 2]), *random.of(&[1, 50_000]));
            set("ipv4.tcp_tw_reuse", reuse);
            set("ipv4.tcp_tw_reuse_delay", delay);
            world.made.push(format!("tcp_tw_reuse {reuse} after {delay} ms"));
            // Each bucket must be older than a delay of 1 ms, also for twtool, which computes the age from a timer in ticks. The
            // longest tick is 10 ms (HZ=100).
            thread::sleep(Duration::from_millis(25));
        }
        world
    }

    fn add(&mut self, random: &mut Random) {
        let family = if random.once_in(3) { IPV6 } else { IPV4 };
        let wildcard = if family == IPV4 { "0.0.0.0" } else { "::" };
        let (from, to) = (one_of(random, family), one_of(random, family));
        let at = if random.once_in(4) { wildcard } else { from };
        let (port, reuseaddr) = (*random.of(&PORTS), !random.once_in(3));
        let server = usize::from(random.once_in(4));
        let fixed = Client { from: Some(end(at, port)), to: end(to, SERVERS[server]), reuseaddr, no_port: false };
        let chosen = Client { from: Some(end(from, 0)), no_port: true, ..fixed };
        let (what, made) = match random.below(9) {
            0 | 1 => ("bucket", self.closed(&fixed, server, false)),
            2 => ("half closed", self.closed(&fixed, server, true)),
            3 => ("open", self.open(&fixed, server)),
            4 => ("bucket of a chosen port", self.closed(&chosen, server, false)),
            5 => (
                "every port open",
                self.open(&chosen, server).inspect(|()| while self.open(&chosen, server).is_some() {}),
            ),
            6 => ("listener", self.bound(at, port, reuseaddr, true)),
            7 => ("idle", self.bound(at, port, reuseaddr, false)),
            _ => ("bucket of a server", served(from, port, reuseaddr)),
        };
        self.clients.push(fixed);
        if made.is_some() {
            let option = if reuseaddr { " with SO_REUSEADDR" } else { "" };
            self.made.push(format!("{what}: {at} {port} to {}{option}", fixed.to));
        }
    }

    /// Connects the client to a server, and returns both ends.
    fn connection(&self, client: &Client, server: usize) -> Option<(Socket, TcpStream)> {
        let socket = client.connect().ok()?;
        socket.set_linger(None).expect("SO_LINGER");
        let (accepted, _) = self.servers[server].accept().expect("the other end");
        Some((socket, accepted))
    }

    fn open(&mut self, client: &Client, server: usize) -> Option<()> {
        let both = self.connection(client, server)?;
        self.kept.push(Box::new(both));
        Some(())
    }

    /// Makes a connection that the client closes first. With `half`, the server does not close it.
    fn closed(&mut self, client: &Client, server: usize, half: bool) -> Option<()> {
        let (socket, accepted) = self.connection(client, server)?;
        let ends =
            [socket.local_addr(), socket.peer_addr()].map(|end| end.expect("a name").as_socket().expect("an address"));
        drop(socket);
        comes_to(ends, 5);
        if half {
            self.kept.push(Box::new(accepted));
        } else {
            drop(accepted);
            comes_to(ends, 6);
        }
        Some(())
    }

    fn bound(&mut self, at: &str, port: u16, reuseaddr: bool, listens: bool) -> Option<()> {
        self.kept.push(Box::new(bind(end(at, port), reuseaddr, listens)?));
        Some(())
    }
}

/// Makes the bucket of a server that closed a connection first and has ended.
fn served(at: &str, port: u16, reuseaddr: bool) -> Option<()> {
    let listener = bind(end(at, port), reuseaddr, true)?;
    let client = Client { from: None, to: end(at, port), reuseaddr: false, no_port: false }.connect().ok()?;
    client.set_linger(None).expect("SO_LINGER");
    let (accepted, _) = listener.accept().expect("the other end");
    let ends =
        [accepted.local_addr(), accepted.peer_addr()].map(|end| end.expect("a name").as_socket().expect("an address"));
    drop(listener);
    drop(accepted);
    comes_to(ends, 5);
    drop(client);
    comes_to(ends, 6);
    Some(())
}

fn bind(at: SocketAddr, reuseaddr: bool, listens: bool) -> Option<Socket> {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, None).expect("a socket");
    socket.set_reuse_address(reuseaddr).expect("SO_REUSEADDR");
    if at.is_ipv6() {
        socket.set_only_v6(true).expect("IPV6_V6ONLY");
    }
    socket.bind(&at.into()).ok()?;
    if listens {
        socket.listen(8).ok()?;
    }
    Some(socket)
}

/// Waits until the socket with these ends has this state, a number of net/tcp_states.h.
#[track_caller]
fn comes_to(ends: [SocketAddr; 2], state: u8) {
    let deadline = Instant::now() + kernel::patience(Duration::from_secs(5));
    let plain = |(addr, port): (IpAddr, u16)| (addr.to_canonical(), port);
    let wanted = ends.map(|end| plain((end.ip(), end.port())));
    let is_there = |one: &procfs::Entry| [plain(one.local), plain(one.remote)] == wanted && one.state == state;
    while !procfs::sockets().iter().any(is_there) {
        assert!(Instant::now() < deadline, "{ends:?} does not come to state {state}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// A random client to test. It often conflicts with the sockets of the world.
fn client(random: &mut Random, world: &World) -> Client {
    if !random.once_in(3) {
        let known = *random.of(&world.clients);
        let from = known.from.filter(|_| !random.once_in(4));
        let client = Client { from, reuseaddr: from.is_some() && !random.once_in(3), ..known };
        return if known.to.is_ipv4() && random.once_in(4) { mapped(client) } else { client };
    }
    let family = if random.once_in(3) { IPV6 } else { IPV4 };
    let port = if random.once_in(8) { NO_SERVER } else { SERVERS[usize::from(random.once_in(4))] };
    let (to, from) = (end(one_of(random, family), port), one_of(random, family));
    let wildcard = if family == IPV4 { "0.0.0.0" } else { "::" };
    let source = match random.below(8) {
        0 | 1 => None,
        2 => Some(end(from, 0)),
        3 => Some(end(wildcard, *random.of(&PORTS))),
        4 if random.once_in(4) => {
            Some(end(if family == IPV4 { "192.0.2.9" } else { "2001:db8::9" }, *random.of(&PORTS)))
        }
        _ => Some(end(from, *random.of(&PORTS))),
    };
    let fixed = source.is_some_and(|source| source.port() > 0);
    let no_port = source.is_some() && !fixed && random.once_in(2);
    let client = Client { from: source, to, reuseaddr: fixed && !random.once_in(3), no_port };
    if family == IPV4 && random.once_in(4) { mapped(client) } else { client }
}

/// The same client with IPv4-mapped addresses, which need an AF_INET6 socket.
fn mapped(client: Client) -> Client {
    let mapped = |end: SocketAddr| match end.ip() {
        IpAddr::V4(v4) => SocketAddr::new(v4.to_ipv6_mapped().into(), end.port()),
        IpAddr::V6(_) => end,
    };
    Client { from: client.from.map(mapped), to: mapped(client.to), ..client }
}

/// Compares the answer of twtool with a real connect(). Returns the verdict and its cause, or the difference.
fn compare(client: &Client, run: &Run) -> Result<String, String> {
    let document = run.json();
    let word = |key: &str| document[key].as_str().unwrap_or("-").to_owned();
    let [verdict, cause, call, errno, inferred] = ["verdict", "cause", "call", "errno", "inferred"].map(word);
    let binds_alone = client.from.is_some_and(|from| from.port() == 0);
    if binds_alone {
        let plain = client.bind_failure().map_or("ok".into(), |(_, errno)| errno);
        if document["attempts"][0]["bind"] != plain {
            return Err(format!("bind() of the address alone is {plain}"));
        }
    }
    let (free, uncertain) = (document["free"].as_u64(), document["uncertain"].as_u64());
    let failure = client.connect_failure();
    let expected = match verdict.as_str() {
        "free" => failure.is_none(),
        "blocked" | "denied" => failure == Some((call_name(&call), errno)),
        "unknown" => match inferred.as_str() {
            "free" => failure.is_none(),
            "blocked" => failure == Some((call_name(&call), errno)),
            _ => free.is_some() && free == uncertain,
        },
        _ => false,
    };
    let code = match verdict.as_str() {
        "free" => 0,
        "unknown" => 2,
        _ => 1,
    };
    // On a kernel without IP_LOCAL_PORT_RANGE, twtool cannot test single ports. It warns about this, and the exit code may be 2.
    let code_fits = run.code == Some(code) || (run.code == Some(2) && !run.stderr.is_empty());
    if !expected || !code_fits {
        return Err(format!("the connect: {failure:?}"));
    }
    if let (Some(free), Some(uncertain), true) = (free, uncertain, client.to.port() != NO_SERVER) {
        let mut open = vec![];
        while let Ok(socket) = (Client { no_port: true, ..*client }).connect() {
            open.push(socket);
        }
        let further = open.len() as u64;
        // Each bind() above may have chosen a port that a socket uses on another address. Before Linux 6.18, connect() does not
        // choose this port afterwards.
        let lost = u64::from(binds_alone) + u64::from(binds_alone && !client.no_port);
        if !(free.saturating_sub(uncertain + lost)..=free).contains(&further) {
            return Err(format!("{further} connects succeeded"));
        }
    }
    Ok(format!("{verdict} {cause}"))
}

fn call_name(call: &str) -> &'static str {
    ["socket", "bind", "connect"].into_iter().find(|name| *name == call).unwrap_or("no call")
}

fn the_verdict_predicts_the_result_of_a_later_connect() {
    let seed = Random::seed();
    let mut random = Random::new(seed);
    let (mut wrong, mut words, mut buckets): (Vec<String>, BTreeMap<String, u32>, usize) = (vec![], BTreeMap::new(), 0);
    for number in 0..SITUATIONS {
        netns::on_thread_in_new_namespace(|| {
            let world = World::make(&mut random);
            let began = Instant::now();
            let client = client(&mut random, &world);
            let before = bucket_cookies();
            let line = client.arguments();
            let run = twtool(line.iter().map(String::as_str).chain(["--json"]));
            let after = bucket_cookies();
            buckets += before.len();
            let mut answer = compare(&client, &run);
            if before != after {
                answer = Err(format!("buckets before {before:?}, after {after:?}"));
            }
            kernel::needs_young_buckets(began);
            match answer {
                Ok(answer) => *words.entry(answer).or_default() += 1,
                Err(why) => {
                    wrong.push(format!("situation {number}, {client:?}: {why}\n  {}\n{run}", world.made.join("\n  ")));
                }
            }
        });
    }
    let counts: Vec<String> = words.iter().map(|(answer, count)| format!("{count} {answer}")).collect();
    measured(format!("connect-test: {SITUATIONS} situations with {buckets} buckets: {}", counts.join(", ")));
    assert!(wrong.is_empty(), "TWTOOL_SEED={seed}: {} of {SITUATIONS} differ\n{}", wrong.len(), wrong.join("\n"));
    assert!(buckets > 0 && words.len() >= 6, "too few kinds of situations: {words:?}");
}

fn capacity_and_connect_test_change_no_bucket() {
    addresses::add(IPV4[1]);
    narrow_range(100);
    let servers = SERVERS.map(|port| TcpListener::bind(end("::", port)).expect("a server")).into();
    let mut world = World { servers, kept: vec![], made: vec![], clients: vec![] };
    let clients = (0..75).map(|number: usize| {
        let family = if number.is_multiple_of(3) { IPV6 } else { IPV4 };
        let from = end(
            family[0],
            if number.is_multiple_of(5) { LOW + 1000 + u16::try_from(number).expect("small") } else { 0 },
        );
        (
            Client { from: Some(from), to: end(family[0], SERVERS[number % 2]), reuseaddr: true, no_port: false },
            number % 2,
        )
    });
    // One of the buckets, with port LOW + 1015, stays in FIN_WAIT_2.
    for (client, server) in clients {
        world.closed(&client, server, client.from.is_some_and(|from| from.port() == LOW + 1015)).expect("a connection");
    }
    // With this setting, connect() may take over each bucket in TIME_WAIT that is older than the delay.
    set("ipv4.tcp_tw_reuse", 1);
    if kernel::has_exact_ages() {
        set("ipv4.tcp_tw_reuse_delay", 1);
    }
    let before = bucket_cookies();
    assert!(before.len() == 75, "{} buckets", before.len());
    for args in [
        ["capacity", "--json"].as_slice(),
        &["capacity", "--to", "127.0.0.1:443", "--from", "127.0.0.1"],
        &["capacity", "--to", "[::1]:444"],
        &["connect-test", "127.0.0.1:443"],
        &["connect-test", "[::1]:444", "--from", "::1"],
        // The ends of the bucket that `taken` takes over below.
        &["connect-test", "127.0.0.1:444", "--from", "127.0.0.1:41005", "--with", "reuseaddr"],
    ] {
        let run = twtool(args);
        assert_eq!(bucket_cookies(), before, "{run}");
    }
    measured(format!("capacity and connect-test: {} buckets before and after", before.len()));
    // A real connect() takes a bucket over. This shows that the comparison of cookies can fail.
    let taken = Client {
        from: Some(addr("127.0.0.1:41005")),
        to: end("127.0.0.1", SERVERS[1]),
        reuseaddr: true,
        no_port: false,
    };
    assert_eq!(taken.connect_failure(), None);
    assert_eq!(before.len() - bucket_cookies().len(), 1);
}
