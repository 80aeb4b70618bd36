//! Makes populations of timewait buckets, which last a minute.
//!
//! Several threads open and close connections. Each thread has its own listeners, called a *lane* in this file. The end that closes first
//! changes every ten connections. The buckets are IPv4, IPv6 and IPv4-mapped, on many addresses and ports. Every hundredth bucket is on
//! local port 443.

use std::error::Error;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use twtool::sys::{sandbox, sysctl};

/// TCP_TIMEWAIT_LEN.
const LIFE: Duration = Duration::from_secs(60);

/// The number of connections that a lane has open at once.
const BATCH: usize = 16;

/// The number of listeners in each list of a [`Lane`].
const PORTS: u16 = 10;

/// The buckets in the network namespace of the main thread.
pub(crate) struct Population {
    begun: Instant,
}

impl Population {
    /// Moves the calling thread, which must be the main thread, into a new namespace and creates this many buckets there. The
    /// buckets of the previous namespace end with it.
    pub(crate) fn make(buckets: usize) -> Result<Self, Box<dyn Error>> {
        sandbox::enter_network_namespace()?;
        sysctl::write("ipv4.tcp_max_tw_buckets", "4000000")?;
        sysctl::write("ipv4.ip_local_port_range", "1024 65535")?;
        sysctl::write("ipv4.tcp_tw_reuse", "0")?;
        let begun = Instant::now();
        let lanes = if buckets < 1000 { 1 } else { thread::available_parallelism()?.get() };
        // Create all listeners first, because a connection of another lane can take any free port.
        let open: Vec<Lane> = (0..lanes).map(Lane::open).collect::<io::Result<_>>()?;
        let made: io::Result<()> = thread::scope(|scope| {
            let share = |lane: usize| buckets / lanes + usize::from(lane < buckets % lanes);
            let makers: Vec<_> =
                open.iter().enumerate().map(|(i, lane)| scope.spawn(move || lane.make(share(i)))).collect();
            makers.into_iter().try_for_each(|maker| maker.join().unwrap_or_else(|_| Err(io::Error::other("panic"))))
        });
        made.map_err(|error| format!("making {buckets} buckets: {error}"))?;
        Ok(Self { begun })
    }

    /// Whether all buckets will still exist after this time.
    pub(crate) fn outlives(&self, next: Duration) -> bool {
        self.begun.elapsed() + next < LIFE
    }

    /// The current number of buckets, as the kernel counts them for the namespace.
    pub(crate) fn count_buckets() -> Result<u32, Box<dyn Error>> {
        let sockstat = fs::read_to_string("/proc/thread-self/net/sockstat")?;
        let count = sockstat.lines().find(|line| line.starts_with("TCP:")).and_then(|line| line.split(" tw ").nth(1));
        let count = count.and_then(|rest| rest.split(' ').next()).ok_or("no 'tw' in /proc/net/sockstat")?;
        Ok(count.parse()?)
    }
}

/// Creates this many buckets in the namespace of the calling thread, and returns the number that the kernel counts there.
pub(crate) fn make_here(buckets: usize) -> Result<u32, Box<dyn Error>> {
    sysctl::write("ipv4.ip_local_port_range", "1024 65535")?;
    sysctl::write("ipv4.tcp_tw_reuse", "0")?;
    Lane::open(0)?.make(buckets)?;
    Population::count_buckets()
}

/// The listeners of one thread. No other thread connects to them.
struct Lane {
    ipv4: Vec<TcpListener>,
    dual: Vec<TcpListener>,
    https: TcpListener,
}

impl Lane {
    fn open(lane: usize) -> io::Result<Self> {
        let lane = u8::try_from(lane).map_err(io::Error::other)?;
        // Lane 0 uses the ports 2000 to 2019, lane 1 the next 20 ports, and so on.
        let first = 2000 + u16::from(lane) * 2 * PORTS;
        let listen = |addr: IpAddr, first: u16| -> io::Result<Vec<TcpListener>> {
            (first..first + PORTS).map(|port| TcpListener::bind((addr, port))).collect()
        };
        Ok(Self {
            ipv4: listen(Ipv4Addr::UNSPECIFIED.into(), first)?,
            dual: listen(Ipv6Addr::UNSPECIFIED.into(), first + PORTS)?,
            https: TcpListener::bind((Ipv4Addr::new(127, 0, lane, 1), 443))?,
        })
    }

    fn make(&self, share: usize) -> io::Result<()> {
        let mut open = Vec::with_capacity(BATCH);
        for i in 0..share {
            open.push(self.connection(i)?);
            if open.len() == BATCH || i + 1 == share {
                for (first, second) in open.drain(..) {
                    drop(first);
                    drop(second);
                }
            }
        }
        Ok(())
    }

    /// Opens the connection with this number. Returns the end that closes first, and the other end.
    fn connection(&self, i: usize) -> io::Result<(TcpStream, TcpStream)> {
        if i.is_multiple_of(100) {
            let client = TcpStream::connect(self.https.local_addr()?)?;
            return Ok((self.https.accept()?.0, client));
        }
        let port = i / 20 % usize::from(PORTS);
        let octet = |n: usize| u8::try_from(n % 16 + 1).unwrap_or(1);
        let ipv4 = Ipv4Addr::new(127, 1, octet(i / 200), octet(i / 3200));
        let (listener, addr): (_, IpAddr) = match i % 10 {
            0..=5 => (&self.ipv4[port], ipv4.into()),
            6 | 7 => (&self.dual[port], Ipv6Addr::LOCALHOST.into()),
            _ => (&self.dual[port], ipv4.to_ipv6_mapped().into()),
        };
        let client = TcpStream::connect(SocketAddr::new(addr, listener.local_addr()?.port()))?;
        let (server, _) = listener.accept()?;
        Ok(if (i / 10).is_multiple_of(2) { (server, client) } else { (client, server) })
    }
}
