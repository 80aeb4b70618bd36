//! The settings (sysctls) that twtool reads. [`SETTINGS`] describes each of them once: `doctor` shows and explains them, and
//! everything else takes their names from here.
//!
//! To add a setting that `doctor` only shows and explains, add an entry to the list (and its name to the example in
//! docs/commands/doctor.md, where a test looks for it). A setting with a verdict of its own has a function in `analysis::doctor` as well.

/// A setting below /proc/sys/net.
#[derive(Debug, PartialEq, Eq)]
pub struct Sysctl {
    /// Its name in sysctl(8), `net.ipv4.tcp_tw_reuse`.
    pub name: &'static str,
    /// Its name among the checks of `doctor`; `None` where it is only evidence for another check.
    pub check: Option<&'static str>,
    /// What it does.
    pub does: &'static str,
    /// What it does not do, although it is often said to.
    pub does_not: &'static str,
    /// Man page sections, RFC sections, and files of the kernel's documentation or source.
    pub sources: &'static [&'static str],
    /// The form of its value.
    pub form: Form,
    /// The default of the kernel.
    pub default: DefaultValue,
    /// What a kernel without the setting does; `None` where every kernel since 3.x has it, in the initial network namespace
    /// at least.
    pub absent: Option<&'static str>,
}

/// The form of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One number, which can be negative.
    Number,
    /// Two ports with white space between them. The value is in [`super::facts::Facts`].
    PortRange,
    /// Ports and ranges with commas between them. The value is in [`super::facts::Facts`].
    Ports,
    /// The first port that needs no privilege. The value is in [`super::facts::Facts`].
    PortStart,
}

/// The default of a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DefaultValue {
    /// The same on every kernel.
    Number(i64),
    /// The first number before the version, and the second since.
    Since(u32, u32, [i64; 2]),
    /// Half of `tcp_ehash_entries` (`tcp_set_hashinfo` in net/ipv4/tcp_ipv4.c).
    HalfOfHashTable,
    /// The first port and the last.
    PortRange((u16, u16)),
    /// An empty list.
    NoPorts,
    /// It depends on the machine, or there is none.
    Unknown,
}

impl Sysctl {
    /// Its name below /proc/sys/net, `ipv4.tcp_tw_reuse`.
    #[must_use]
    pub fn key(&self) -> &'static str {
        self.name.strip_prefix("net.").unwrap_or(self.name)
    }
}

/// The first and last port of `ip_local_port_range` as the kernel sets it (`inet_init_net` in net/ipv4/af_inet.c).
pub const DEFAULT_PORT_RANGE: (u16, u16) = (32768, 60999);

/// The kernel's `ip_unprivileged_port_start` (`PROT_SOCK` in include/net/sock.h).
pub const DEFAULT_PORT_START: u32 = 1024;

const PLAIN: Sysctl = Sysctl {
    name: "",
    check: None,
    does: "",
    does_not: "",
    sources: &[],
    form: Form::Number,
    default: DefaultValue::Number(0),
    absent: None,
};

macro_rules! settings {
    ($($constant:ident = $setting:expr;)*) => {
        $(
            #[doc = concat!("`", stringify!($constant), "` of [`SETTINGS`].")]
            pub static $constant: Sysctl = $setting;
        )*
        /// Every setting, in the order of `doctor`.
        pub static SETTINGS: &[&Sysctl] = &[$(&$constant),*];
    };
}

settings! {
    TCP_TW_REUSE = Sysctl {
        name: "net.ipv4.tcp_tw_reuse",
        check: Some("tcp_tw_reuse"),
        does: "Lets connect() take over a timewait bucket of the very same addresses and ports once its last segment is \
               older than tcp_tw_reuse_delay, where the old connection had timestamps and the new one offers them. 0: \
               never. 1: to any destination. 2: on loopback alone.",
        does_not: "It does nothing for bind() and nothing for a server whose port has buckets, and it does not shorten \
               TIME_WAIT.",
        sources: &[
            "Documentation/networking/ip-sysctl.rst, tcp_tw_reuse",
            "tcp(7), tcp_tw_reuse",
            "RFC 7323, section 5",
            "net/ipv4/tcp_ipv4.c, tcp_twsk_unique()",
        ],
        default: DefaultValue::Since(4, 19, [0, 2]),
        ..PLAIN
    };
    TCP_TW_REUSE_DELAY = Sysctl {
        name: "net.ipv4.tcp_tw_reuse_delay",
        check: Some("tcp_tw_reuse_delay"),
        does: "How many milliseconds must have passed since the last segment of a bucket before connect() may take it \
               over by tcp_tw_reuse.",
        does_not: "It does nothing where tcp_tw_reuse is 0 or there are no timestamps, and it does not change when a \
               bucket ends.",
        sources: &[
            "Documentation/networking/ip-sysctl.rst, tcp_tw_reuse_delay",
            "net/ipv4/tcp_ipv4.c, tcp_twsk_unique()",
        ],
        default: DefaultValue::Number(1000),
        absent: Some("This kernel has no such setting: there a bucket may be taken over after about 1 s, always."),
        ..PLAIN
    };
    TCP_TW_RECYCLE = Sysctl {
        name: "net.ipv4.tcp_tw_recycle",
        check: Some("tcp_tw_recycle"),
        does: "Kernels before 4.12 had it. It dropped SYNs by the timestamps that other hosts behind the same address had \
               sent, and so refused clients behind NAT.",
        does_not: "It cannot be switched on where it is absent, and advice to do so is of before 2017.",
        sources: &["tcp(7), tcp_tw_recycle (Linux 2.4 to Linux 4.11)"],
        absent: Some("Absent, as on every kernel since 4.12."),
        ..PLAIN
    };
    TCP_TW_TIMEOUT = Sysctl {
        name: "net.ipv4.tcp_tw_timeout",
        check: Some("tcp_tw_timeout"),
        does: "Sets how long TIME_WAIT lasts, on the kernels of some vendors. Mainline Linux has no such setting: there \
               it is 60 s, a constant.",
        does_not: "No other setting changes that length: neither tcp_fin_timeout nor tcp_tw_reuse does.",
        sources: &["include/net/tcp.h, TCP_TIMEWAIT_LEN", "RFC 9293, section 3.6.1"],
        default: DefaultValue::Unknown,
        absent: Some("Absent, as on mainline kernels: TIME_WAIT lasts 60 s (TCP_TIMEWAIT_LEN)."),
        ..PLAIN
    };
    TCP_MAX_TW_BUCKETS = Sysctl {
        name: "net.ipv4.tcp_max_tw_buckets",
        check: Some("tcp_max_tw_buckets"),
        does: "The most timewait buckets, TIME_WAIT and orphaned FIN_WAIT_2, that this network namespace keeps. At that \
               number a further close leaves no bucket, so old segments of that connection can reach its successor. \
               The default is half of the entries of the kernel's TCP hash table, which depends on memory.",
        does_not: "It is no tuning: a lower number takes protection away and makes nothing faster. It limits neither \
               connections nor ports.",
        sources: &[
            "Documentation/networking/ip-sysctl.rst, tcp_max_tw_buckets",
            "tcp(7), tcp_max_tw_buckets",
            "RFC 9293, section 3.6.1",
        ],
        default: DefaultValue::HalfOfHashTable,
        ..PLAIN
    };
    TCP_EHASH_ENTRIES = Sysctl {
        name: "net.ipv4.tcp_ehash_entries",
        does: "The entries of the kernel's TCP hash table, half of which is the default of tcp_max_tw_buckets. It is negative \
               in a network namespace that shares the table of the first one.",
        does_not: "It cannot be changed while the kernel runs.",
        sources: &["Documentation/networking/ip-sysctl.rst, tcp_ehash_entries", "net/ipv4/tcp_ipv4.c, tcp_set_hashinfo()"],
        default: DefaultValue::Unknown,
        ..PLAIN
    };
    TCP_FIN_TIMEOUT = Sysctl {
        name: "net.ipv4.tcp_fin_timeout",
        check: Some("tcp_fin_timeout"),
        does: "How many seconds an orphan stays in FIN_WAIT_2: this end has closed, and the peer has not.",
        does_not: "It does not change TIME_WAIT, which comes after FIN_WAIT_2.",
        sources: &[
            "Documentation/networking/ip-sysctl.rst, tcp_fin_timeout",
            "tcp(7), tcp_fin_timeout and TCP_LINGER2",
            "include/net/tcp.h, TCP_TIMEWAIT_LEN",
        ],
        default: DefaultValue::Number(60),
        ..PLAIN
    };
    TCP_TIMESTAMPS = Sysctl {
        name: "net.ipv4.tcp_timestamps",
        check: Some("tcp_timestamps"),
        does: "Offers timestamps on every segment. By them both ends tell old segments from new (PAWS), and by them alone \
               tcp_tw_reuse can take over a bucket. 1: with an offset of its own for each connection. 2: without.",
        does_not: "It does not change how long TIME_WAIT lasts, and a connection has timestamps only where both ends \
               offer them.",
        sources: &[
            "Documentation/networking/ip-sysctl.rst, tcp_timestamps",
            "tcp(7), tcp_timestamps",
            "RFC 7323, sections 3 and 5",
        ],
        default: DefaultValue::Number(1),
        ..PLAIN
    };
    TCP_RFC1337 = Sysctl {
        name: "net.ipv4.tcp_rfc1337",
        check: Some("tcp_rfc1337"),
        does: "0: a RST that fits a bucket ends it at once, before its time (RFC 1337 calls that assassination). 1: such a \
               RST is ignored.",
        does_not: "It does not change how long a bucket lasts that nobody resets, nor how many there are.",
        sources: &["RFC 1337", "tcp(7), tcp_rfc1337", "net/ipv4/tcp_minisocks.c"],
        ..PLAIN
    };
    IP_LOCAL_PORT_RANGE = Sysctl {
        name: "net.ipv4.ip_local_port_range",
        check: Some("ip_local_port_range"),
        does: "The ephemeral range: where connect() and bind() to port 0 look for a port of their own.",
        does_not: "It is not RFC 6335's class of dynamic ports, and no limit for all connections together: each \
               destination, an address and a port, has the range for itself. It does not bind servers, which may \
               choose any port.",
        sources: &[
            "Documentation/networking/ip-sysctl.rst, ip_local_port_range",
            "ip(7), ip_local_port_range",
            "RFC 6335, section 6",
        ],
        form: Form::PortRange,
        default: DefaultValue::PortRange(DEFAULT_PORT_RANGE),
        ..PLAIN
    };
    IP_LOCAL_RESERVED_PORTS = Sysctl {
        name: "net.ipv4.ip_local_reserved_ports",
        check: Some("ip_local_reserved_ports"),
        does: "Ports that connect() and bind() to port 0 never choose, so that they are there when a server starts.",
        does_not: "It does not keep a program from binding such a port by its number, and it does not end a connection \
               that has one already.",
        sources: &["Documentation/networking/ip-sysctl.rst, ip_local_reserved_ports"],
        form: Form::Ports,
        default: DefaultValue::NoPorts,
        ..PLAIN
    };
    IP_UNPRIVILEGED_PORT_START = Sysctl {
        name: "net.ipv4.ip_unprivileged_port_start",
        check: Some("ip_unprivileged_port_start"),
        does: "The first port that a program may bind without CAP_NET_BIND_SERVICE.",
        does_not: "It says nothing about connecting to such ports, and it need not be RFC 6335's bound of the well-known \
               ports.",
        sources: &[
            "Documentation/networking/ip-sysctl.rst, ip_unprivileged_port_start",
            "capabilities(7), CAP_NET_BIND_SERVICE",
            "RFC 6335, section 6",
        ],
        form: Form::PortStart,
        default: DefaultValue::Number(DEFAULT_PORT_START as i64),
        ..PLAIN
    };
    IP_AUTOBIND_REUSE = Sysctl {
        name: "net.ipv4.ip_autobind_reuse",
        check: Some("ip_autobind_reuse"),
        does: "1: bind() to port 0 may choose a port that other sockets have, where all of them set SO_REUSEADDR.",
        does_not: "It does nothing for connect() without bind(). For bind() before connect() the preferred way is \
               IP_BIND_ADDRESS_NO_PORT, which leaves the choice to connect().",
        sources: &["Documentation/networking/ip-sysctl.rst, ip_autobind_reuse", "ip(7), IP_BIND_ADDRESS_NO_PORT"],
        absent: Some("This kernel has no such setting, and behaves as with 0."),
        ..PLAIN
    };
    IP_NONLOCAL_BIND = Sysctl {
        name: "net.ipv4.ip_nonlocal_bind",
        check: Some("ip_nonlocal_bind"),
        does: "1: bind() takes IPv4 addresses that this machine does not have, or not yet.",
        does_not: "It does not help against EADDRINUSE, which is about the port.",
        sources: &["Documentation/networking/ip-sysctl.rst, ip_nonlocal_bind", "ip(7), ip_nonlocal_bind"],
        ..PLAIN
    };
    IPV6_NONLOCAL_BIND = Sysctl {
        name: "net.ipv6.ip_nonlocal_bind",
        check: Some("ipv6_ip_nonlocal_bind"),
        does: "1: bind() takes IPv6 addresses that this machine does not have, or not yet.",
        does_not: "It does not help against EADDRINUSE, which is about the port.",
        sources: &["Documentation/networking/ip-sysctl.rst, ip_nonlocal_bind (IPv6 variables)"],
        absent: Some("There is no such setting: no IPv6 here."),
        ..PLAIN
    };
    IPV6_BINDV6ONLY = Sysctl {
        name: "net.ipv6.bindv6only",
        check: Some("ipv6_bindv6only"),
        does: "Whether a new IPv6 socket is IPV6_V6ONLY. 0: a server on :: takes IPv4 connections too, and so conflicts \
               with one on 0.0.0.0.",
        does_not: "It does not change sockets that set IPV6_V6ONLY by themselves, nor those that are open.",
        sources: &["Documentation/networking/ip-sysctl.rst, bindv6only", "ipv6(7), IPV6_V6ONLY"],
        absent: Some("There is no such setting: no IPv6 here."),
        ..PLAIN
    };
    NF_CONNTRACK_COUNT = Sysctl {
        name: "net.netfilter.nf_conntrack_count",
        does: "The connections that netfilter tracks in this network namespace.",
        does_not: "It is there only where the module nf_conntrack is loaded.",
        sources: &["Documentation/networking/nf_conntrack-sysctl.rst, nf_conntrack_count"],
        default: DefaultValue::Unknown,
        ..PLAIN
    };
    NF_CONNTRACK_MAX = Sysctl {
        name: "net.netfilter.nf_conntrack_max",
        does: "The most connections that netfilter tracks. 0 is no maximum.",
        does_not: "It limits no connection of a machine where nothing is tracked.",
        sources: &["Documentation/networking/nf_conntrack-sysctl.rst, nf_conntrack_max"],
        default: DefaultValue::Unknown,
        ..PLAIN
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_is_explained_and_its_names_are_its_own() {
        for (i, setting) in SETTINGS.iter().enumerate() {
            let Sysctl { name, check, does, does_not, sources, .. } = setting;
            assert!(name.starts_with("net.") && !setting.key().starts_with("net."), "{name}");
            assert!(does.ends_with('.') && does_not.ends_with('.') && !sources.is_empty(), "{name}");
            let other = |other: &&&Sysctl| other.name == *name || check.is_some() && other.check == *check;
            assert_eq!(SETTINGS.iter().filter(other).count(), 1, "{i}: {name}");
        }
    }

    #[test]
    fn the_page_of_doctor_names_every_setting_that_it_shows() {
        let page = include_str!("../../docs/commands/doctor.md");
        for setting in SETTINGS.iter().filter(|setting| setting.check.is_some()) {
            let last = setting.name.rsplit('.').next().unwrap_or(setting.name);
            assert!(page.contains(last), "{}", setting.name);
        }
    }
}
