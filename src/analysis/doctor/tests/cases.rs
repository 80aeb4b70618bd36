//! Changes to a healthy machine, and what each check then reports.

use super::*;

/// A change to the healthy machine, and what the check `id` then reports. `finding` and `advice` are parts of the texts.
pub(super) struct Case {
    pub(super) id: &'static str,
    change: Box<dyn Fn(&mut Health)>,
    pub(super) status: Status,
    pub(super) finding: &'static str,
    pub(super) advice: &'static str,
}

fn case(id: &'static str, change: impl Fn(&mut Health) + 'static, status: Status, finding: &'static str) -> Case {
    Case { id, change: Box::new(change), status, finding, advice: "" }
}

impl Case {
    fn advises(self, advice: &'static str) -> Self {
        Self { advice, ..self }
    }

    pub(super) fn health(&self) -> Health {
        let mut health = healthy();
        (self.change)(&mut health);
        health
    }
}

pub(super) fn set(name: &'static str, value: &'static str) -> impl Fn(&mut Health) {
    move |health| drop(health.settings.0.insert(name, SettingValue::Value(value.into())))
}

pub(super) fn both(a: impl Fn(&mut Health), b: impl Fn(&mut Health)) -> impl Fn(&mut Health) {
    move |health| {
        a(health);
        b(health);
    }
}

/// Removes a setting, as on a kernel that does not have it.
pub(super) fn gone(name: &'static str) -> impl Fn(&mut Health) {
    move |health| drop(health.settings.0.insert(name, SettingValue::Absent))
}

pub(super) fn counter(name: &'static str, value: u64) -> impl Fn(&mut Health) {
    move |health| {
        let counters = health.buckets.tcp_ext.as_mut().expect("counters");
        counters.0.insert(name.into(), value);
    }
}

/// Sets the number of buckets in /proc/net/sockstat.
pub(super) fn buckets(tw: u64) -> impl Fn(&mut Health) {
    move |health| health.buckets.sockstat = Some(TcpSockstat { inuse: 0, orphan: 0, tw, alloc: 0, mem: 0 })
}

pub(super) fn facts(change: impl Fn(&mut Facts)) -> impl Fn(&mut Health) {
    move |health| change(&mut health.facts)
}

pub(super) fn range(low: u16, high: u16) -> Option<PortRange> {
    PortRange::new(Port(low), Port(high))
}

pub(super) fn full(state: TcpState, port: u16, last_ack_ms: Option<u32>) -> FullSocket {
    let local = (IpAddr::from(Ipv4Addr::LOCALHOST), Port(port));
    let remote = (IpAddr::from(Ipv4Addr::UNSPECIFIED), Port(0));
    FullSocket {
        tuple: FourTuple::new(local, remote),
        state,
        uid: 1000,
        inode: NonZeroU32::new(4711),
        interface: None,
        mark: None,
        v6only: None,
        last_ack_ms,
        cookie: Cookie::new(1),
    }
}

pub(super) fn nginx() -> Owners {
    let cgroup = Some("/system.slice/nginx.service".into());
    Owners::Found(vec![Process { pid: 7, comm: "nginx".into(), cgroup, ..Process::default() }])
}

pub(super) fn listens(port: u16, autobound: Option<bool>, owners: fn() -> Owners) -> impl Fn(&mut Health) {
    move |health| {
        let socket = full(TcpState::Listen, port, None);
        let open = health.sockets.as_mut().expect("sockets");
        open.listeners.push(OpenListener { socket, autobound, owners: owners() });
    }
}

pub(super) fn close_waits(count: usize, last_ack_ms: Option<u32>, owners: fn() -> Owners) -> impl Fn(&mut Health) {
    move |health| {
        let socket = full(TcpState::CloseWait, 8080, last_ack_ms);
        let open = health.sockets.as_mut().expect("sockets");
        let user = Some(User { uid: 1000, name: None });
        open.close_wait.extend((0..count).map(|_| CloseWait { socket, owners: owners(), user: user.clone() }));
    }
}

pub(super) fn timewait_cases() -> Vec<Case> {
    use Status::{Note, Ok, Unknown, Warning};
    let (reuse, stamps) = ("ipv4.tcp_tw_reuse", "ipv4.tcp_timestamps");
    vec![
        case("tcp_tw_reuse", set(reuse, "1"), Ok, "every destination"),
        case("tcp_tw_reuse", set(reuse, "0"), Note, "Off"),
        case("tcp_tw_reuse", set(reuse, "3"), Note, "3 is a value"),
        case("tcp_tw_reuse", set(reuse, "on"), Unknown, "holds 'on'"),
        case("tcp_tw_reuse", gone(reuse), Unknown, "no /proc/sys/net/ipv4/tcp_tw_reuse"),
        case("tcp_tw_reuse_delay", set("ipv4.tcp_tw_reuse_delay", "50"), Note, "50 ms"),
        case("tcp_tw_reuse_delay", gone("ipv4.tcp_tw_reuse_delay"), Ok, "does not have the setting"),
        case("tcp_tw_recycle", set("ipv4.tcp_tw_recycle", "0"), Ok, "Off"),
        case("tcp_tw_recycle", set("ipv4.tcp_tw_recycle", "1"), Warning, "NAT").advises("tcp_tw_recycle=0"),
        case("tcp_tw_timeout", set("ipv4.tcp_tw_timeout", "20"), Note, "20: only kernels of some vendors"),
        // 90 % of the limit of the healthy machine, 131072, is 117964.8.
        case("tcp_max_tw_buckets", buckets(117_964), Ok, "117964 buckets"),
        case("tcp_max_tw_buckets", buckets(117_965), Warning, "117965 buckets").advises("tcp_max_tw_buckets=262144"),
        case(
            "tcp_max_tw_buckets",
            set("ipv4.tcp_max_tw_buckets", "1000"),
            Note,
            "1000 is less than the kernel's default 131072",
        ),
        case("tcp_max_tw_buckets", set("ipv4.tcp_max_tw_buckets", "0"), Warning, "keeps no bucket").advises("=131072"),
        case("tcp_max_tw_buckets", |health| health.buckets.sockstat = None, Unknown, "sockstat"),
        case(
            "tcp_max_tw_buckets",
            |health| {
                let why = SettingValue::Unreadable("Permission denied".into());
                health.settings.0.insert("ipv4.tcp_max_tw_buckets", why);
            },
            Unknown,
            "tcp_max_tw_buckets failed: Permission denied",
        ),
        case("tcp_timewait_overflow", counter("TCPTimeWaitOverflow", 1), Warning, "For 1 close since")
            .advises("again later"),
        case("tcp_timewait_overflow", counter("TCPTimeWaitOverflow", 37), Warning, "For 37 closes since"),
        case("tcp_timewait_overflow", |health| health.buckets.tcp_ext = None, Unknown, "netstat"),
        case(
            "tcp_fin_timeout",
            set("ipv4.tcp_fin_timeout", "15"),
            Note,
            "after 15 s, or after 3.5 retransmission timeouts",
        ),
        case("tcp_timestamps", both(set(stamps, "0"), set(reuse, "0")), Note, "PAWS"),
        case("tcp_timestamps", set(stamps, "0"), Note, "tcp_tw_reuse is 2"),
        case("tcp_timestamps", both(set(stamps, "0"), set(reuse, "1")), Warning, "tcp_tw_reuse is 1")
            .advises("tcp_timestamps=1"),
        case("tcp_timestamps", set(stamps, "2"), Ok, "no random offset"),
        case("tcp_timestamps", set(stamps, "9"), Note, "9 is a value"),
        case("tcp_fin_timeout", set("ipv4.tcp_fin_timeout", "-1"), Note, "-1: the kernel ends"),
        case("tcp_max_tw_buckets", set("ipv4.tcp_max_tw_buckets", "-1"), Note, "-1: the kernel compares"),
        case(
            "tcp_max_tw_buckets",
            both(set("ipv4.tcp_max_tw_buckets", "-1"), facts(|facts| facts.kernel = "5.10.0".into())),
            Warning,
            "-1: the kernel keeps no bucket",
        )
        .advises("tcp_max_tw_buckets=131072"),
        case(
            "tcp_max_tw_buckets",
            both(set("ipv4.tcp_max_tw_buckets", "0"), gone("ipv4.tcp_ehash_entries")),
            Warning,
            "The kernel keeps no bucket after a close",
        )
        .advises("TCP established hash table entries"),
        case(
            "tcp_max_tw_buckets",
            |health| {
                gone("ipv4.tcp_ehash_entries")(health);
                set("ipv4.tcp_max_tw_buckets", "10")(health);
                buckets(9)(health);
            },
            Warning,
            "9 buckets",
        )
        .advises("tcp_max_tw_buckets=20"),
        case(
            "tcp_max_tw_buckets",
            |health| {
                let why = SettingValue::Unreadable("Input/output error".into());
                health.settings.0.insert("ipv4.tcp_ehash_entries", why);
            },
            Unknown,
            "tcp_ehash_entries failed: Input/output error",
        ),
        case("tcp_rfc1337", set("ipv4.tcp_rfc1337", "1"), Ok, "does not end"),
        case("tcp_rfc1337", set("ipv4.tcp_rfc1337", "7"), Note, "7 is a value"),
    ]
}

pub(super) fn port_cases() -> Vec<Case> {
    use Status::{Note, Ok, Unknown, Warning};
    let ranged = |low, high| facts(move |facts| facts.local_port_range = range(low, high).map(LocalPortRange));
    let reserved = |low, high| {
        facts(move |facts| {
            facts.local_reserved_ports = Some(LocalReservedPorts(range(low, high).into_iter().collect()));
        })
    };
    vec![
        case("ip_local_port_range", ranged(50000, 50099), Note, "The range has 100 ports; the default has 28232"),
        case("ip_local_port_range", ranged(1024, 65535), Ok, "has 64512 ports"),
        case("ip_local_port_range", facts(|facts| facts.local_port_range = None), Unknown, "ip_local_port_range"),
        case("ip_local_reserved_ports", reserved(32768, 32777), Ok, "10 of 28232. Left: 28222"),
        case("ip_local_reserved_ports", reserved(30000, 65535), Warning, "EADDRNOTAVAIL").advises("Remove ports"),
        case("ip_local_reserved_ports", facts(|facts| facts.local_reserved_ports = None), Unknown, "ip_local_reserved"),
        case(
            "ip_unprivileged_port_start",
            facts(|facts| facts.unprivileged_port_start = Some(0)),
            Note,
            "Every program",
        ),
        case("ip_unprivileged_port_start", facts(|facts| facts.unprivileged_port_start = Some(80)), Note, "Ports 1-79"),
        case(
            "ip_unprivileged_port_start",
            facts(|facts| facts.unprivileged_port_start = Some(2)),
            Note,
            "Port 1 needs",
        ),
        case("nf_conntrack", tracked("89", "100"), Ok, "89 of nf_conntrack_max 100 (89 %)"),
        case("nf_conntrack", tracked("90", "100"), Warning, "90 of nf_conntrack_max 100 (90 %)").advises("table full"),
        case("nf_conntrack", tracked("90", "0"), Ok, "there is no maximum"),
        case("nf_conntrack", set("netfilter.nf_conntrack_count", "90"), Unknown, "could not be read"),
        case(
            "ip_unprivileged_port_start",
            facts(|facts| facts.unprivileged_port_start = None),
            Unknown,
            "could not be",
        ),
        case("ip_autobind_reuse", set("ipv4.ip_autobind_reuse", "1"), Note, "another socket has"),
        case("ip_autobind_reuse", gone("ipv4.ip_autobind_reuse"), Ok, "does not have the setting"),
        case("ip_nonlocal_bind", set("ipv4.ip_nonlocal_bind", "1"), Note, "not local"),
        case("ip_nonlocal_bind", gone("ipv4.ip_nonlocal_bind"), Unknown, "no /proc/sys/net/ipv4/ip_nonlocal_bind"),
        case("ipv6_ip_nonlocal_bind", set("ipv6.ip_nonlocal_bind", "1"), Note, "not local"),
        case("ipv6_ip_nonlocal_bind", gone("ipv6.ip_nonlocal_bind"), Ok, "IPv6 is missing"),
        case("ipv6_bindv6only", set("ipv6.bindv6only", "1"), Note, "does not accept IPv4"),
        case("ipv6_bindv6only", gone("ipv6.bindv6only"), Ok, "IPv6 is missing"),
    ]
}

pub(super) fn socket_cases() -> Vec<Case> {
    use Status::{Note, Ok, Unknown, Warning};
    let id = "ephemeral_listeners";
    let nobody = || Owners::Nobody;
    let hidden = || Owners::NotPermitted;
    let fails: fn(&mut Health) = |health| health.sockets = Err("refused".into());
    vec![
        case(
            id,
            listens(40000, Some(false), nginx),
            Warning,
            "1 server port lies in ip_local_port_range and is not reserved: 40000 (nginx pid 7 (nginx.service))",
        )
        .advises("net.ipv4.ip_local_reserved_ports = 8000,40000 connect() never"),
        case(
            id,
            both(listens(40001, Some(false), nginx), listens(40000, Some(false), hidden)),
            Warning,
            "2 server ports lie in ip_local_port_range and are not reserved: 40000, 40001 (nginx",
        )
        .advises("= 8000,40000-40001 connect() never"),
        case(id, both(listens(40000, Some(true), nginx), listens(40000, Some(false), nginx)), Warning, "40000"),
        case(
            id,
            listens(40000, None, nginx),
            Note,
            "It is unknown whether the kernel or the program chose the port. If a program chose its port,",
        )
        .advises("= 8000,40000 connect() never"),
        case(
            id,
            both(listens(40000, None, nginx), listens(40001, None, nginx)),
            Note,
            "It is unknown whether the kernel or the programs chose the ports. If a program chose its port,",
        ),
        case(
            id,
            both(listens(40000, Some(false), nginx), facts(|facts| facts.local_port_range = None)),
            Unknown,
            "range",
        ),
        case(id, fails, Unknown, "refused"),
        case("close_wait", close_waits(12, Some(3000), nginx), Ok, "12 sockets, none silent for 60 s"),
        case(
            "close_wait",
            close_waits(9, Some(60_000), nginx),
            Note,
            "nginx pid 7 (nginx.service) has 9 (the oldest has been in CLOSE_WAIT for at least 60 s)",
        ),
        case("close_wait", close_waits(10, Some(59_999), nginx), Ok, "none silent"),
        case(
            "close_wait",
            close_waits(10, Some(61_500), nginx),
            Warning,
            "has 10 (the oldest has been in CLOSE_WAIT for at least 61.5 s)",
        )
        .advises("close()"),
        case("close_wait", close_waits(10, Some(60_000), nobody), Warning, "the accept queue of port 8080"),
        case("close_wait", close_waits(10, Some(60_000), hidden), Warning, "an unknown process of uid 1000"),
        case(
            "close_wait",
            both(close_waits(9, Some(60_000), nginx), close_waits(9, Some(60_000), hidden)),
            Note,
            "nginx",
        ),
        case("close_wait", close_waits(10, None, nginx), Note, "unknown for how long"),
        case("close_wait", close_waits(1, None, nginx), Ok, "unknown for how long"),
        case("close_wait", fails, Unknown, "refused"),
        case(
            "tcp_diag",
            |health| health.sockets.as_mut().expect("sockets").fallback = Some("no netlink".into()),
            Note,
            "no netlink; /proc/net/tcp answers",
        )
        .advises("seccomp"),
        case("tcp_diag", fails, Unknown, "refused"),
        case("capabilities", |_| {}, Ok, "with CAP_NET_BIND_SERVICE, bind-test can"),
        case(
            "capabilities",
            close_waits(1, Some(0), hidden),
            Note,
            "CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH are missing",
        ),
        case(
            "capabilities",
            both(close_waits(1, Some(0), hidden), |health| health.capabilities = Some(Capabilities(u64::MAX))),
            Note,
            "another user namespace",
        ),
        case("capabilities", |health| health.capabilities = Some(Capabilities(u64::MAX)), Ok, ""),
        case("capabilities", |health| health.capabilities = None, Unknown, "effective set"),
    ]
}

pub(super) fn tracked(count: &'static str, most: &'static str) -> impl Fn(&mut Health) {
    both(set("netfilter.nf_conntrack_count", count), set("netfilter.nf_conntrack_max", most))
}

pub(super) fn all_cases() -> Vec<Case> {
    [timewait_cases(), port_cases(), socket_cases()].into_iter().flatten().collect()
}
