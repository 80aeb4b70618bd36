//! The settings (sysctls) that twtool reads. [`SETTINGS`] describes each of them once, for `doctor` and for all other code.
//! docs/architecture.md has the steps to add a setting.

/// A setting below /proc/sys/net.
#[derive(Debug, PartialEq, Eq)]
pub struct Sysctl {
    /// The name in sysctl(8), `net.ipv4.tcp_tw_reuse`.
    pub name: &'static str,
    /// The id of its check in `doctor`; `None` if `doctor` uses the setting only for other checks.
    pub check: Option<&'static str>,
    /// Explains what the setting does.
    pub does: &'static str,
    /// A common false belief about it, corrected.
    pub does_not: &'static str,
    /// The sources: man page sections, RFC sections, and files of the kernel's documentation or source.
    pub sources: &'static [&'static str],
    /// The form of its value.
    pub form: Form,
    /// The default of the kernel.
    pub default: DefaultValue,
    /// Explains what an absent setting means, for example how a kernel without the setting behaves. `None` if the setting has no
    /// check, or if `doctor` reports an absent setting as unknown, because every kernel since 4.11 has it in the initial network namespace.
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
    /// One number on every kernel.
    Number(i64),
    /// A kernel version (major, minor) and two numbers: the default of older kernels, and the default since this version.
    Since(u32, u32, [i64; 2]),
    /// Half of `tcp_ehash_entries` (`tcp_set_hashinfo` in net/ipv4/tcp_ipv4.c).
    HalfOfHashTable,
    /// The first and the last port of a range.
    PortRange((u16, u16)),
    /// An empty list.
    NoPorts,
    /// The default depends on the machine, or there is none.
    Unknown,
}

impl Sysctl {
    /// The name below /proc/sys/net, `ipv4.tcp_tw_reuse`.
    #[must_use]
    pub fn key(&self) -> &'static str {
        self.name.strip_prefix("net.").unwrap_or(self.name)
    }
}

/// The default of `ip_local_port_range`: its first and last port (`inet_init_net` in net/ipv4/af_inet.c).
pub const DEFAULT_PORT_RANGE: (u16, u16) = (32768, 60999);

/// The default of `ip_unprivileged_port_start` (`PROT_SOCK` in include/net/sock.h).
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
            #[doc = concat!("The entry `", stringify!($constant), "` of [`SETTINGS`].")]
            pub static $constant: Sysctl = $setting;
        )*
        /// Every setting that twtool reads, in the order in which `doctor` shows them.
        pub static SETTINGS: &[&Sysctl] = &[$(&$constant),*];
    };
}

settings! {
    TCP_TW_REUSE = Sysctl {
        name: "net.ipv4.tcp_tw_reuse",
        check: Some("tcp_tw_reuse"),
        does: "Lets connect() take over a timewait bucket with the same addresses and ports when the bucket has been \
               in TIME_WAIT for longer than tcp_tw_reuse_delay. The connection of the bucket must have had TCP \
               timestamps; the new connection need not have them. 0: only if the \
               client has bound the source port. 1: to any destination. 2: on loopback only.",
        does_not: "It has no effect on bind() or on a server whose port has buckets, and it does not shorten TIME_WAIT.",
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
        does: "Sets the time in milliseconds after which connect() may take over a bucket (see tcp_tw_reuse). The \
               time starts when the bucket enters TIME_WAIT.",
        does_not: "It has no effect if tcp_tw_reuse is 0, or on buckets of connections without TCP timestamps. It does not \
                   change when a bucket ends.",
        sources: &[
            "Documentation/networking/ip-sysctl.rst, tcp_tw_reuse_delay",
            "net/ipv4/tcp_ipv4.c, tcp_twsk_unique()",
        ],
        default: DefaultValue::Number(1000),
        absent: Some("This kernel does not have the setting: connect() may take over a bucket after at most 1 s."),
        ..PLAIN
    };
    TCP_TW_RECYCLE = Sysctl {
        name: "net.ipv4.tcp_tw_recycle",
        check: Some("tcp_tw_recycle"),
        does: "Existed before Linux 4.12. It made the kernel compare the timestamps of all hosts behind one address, \
               so the kernel dropped SYNs of clients behind NAT.",
        does_not: "A kernel without the setting cannot switch it on. Advice to switch it on is for kernels before 4.12 \
                   (2017).",
        sources: &["tcp(7), tcp_tw_recycle (Linux 2.4 to Linux 4.11)"],
        absent: Some("Absent, as on every kernel since 4.12."),
        ..PLAIN
    };
    TCP_TW_TIMEOUT = Sysctl {
        name: "net.ipv4.tcp_tw_timeout",
        check: Some("tcp_tw_timeout"),
        does: "Sets how long TIME_WAIT lasts, on the kernels of some vendors. Mainline Linux has no such setting: the length \
               is a constant, 60 s.",
        does_not: "No other setting changes the length of TIME_WAIT. tcp_fin_timeout and tcp_tw_reuse do not.",
        sources: &["include/net/tcp.h, TCP_TIMEWAIT_LEN", "RFC 9293, section 3.6.1"],
        default: DefaultValue::Unknown,
        absent: Some("Absent, as on mainline kernels: TIME_WAIT lasts 60 s (TCP_TIMEWAIT_LEN)."),
        ..PLAIN
    };
    TCP_MAX_TW_BUCKETS = Sysctl {
        name: "net.ipv4.tcp_max_tw_buckets",
        check: Some("tcp_max_tw_buckets"),
        does: "Limits the timewait buckets (TIME_WAIT and orphaned FIN_WAIT_2) of this network namespace. At the \
               limit the kernel keeps no bucket after a close, so old segments of that connection can reach a later \
               connection between the same ends. The default is half of the entries of the kernel's TCP hash table, \
               which depends on memory.",
        does_not: "It is not for tuning: a lower number removes protection and makes nothing faster. It limits \
                   neither connections nor ports.",
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
        does: "Shows the number of entries of the kernel's TCP hash table. Half of this number is the default of \
               tcp_max_tw_buckets. The number is negative in a network namespace that shares the table of the initial namespace.",
        does_not: "It cannot be changed while the kernel runs.",
        sources: &["Documentation/networking/ip-sysctl.rst, tcp_ehash_entries", "net/ipv4/tcp_ipv4.c, tcp_set_hashinfo()"],
        default: DefaultValue::Unknown,
        ..PLAIN
    };
    TCP_FIN_TIMEOUT = Sysctl {
        name: "net.ipv4.tcp_fin_timeout",
        check: Some("tcp_fin_timeout"),
        does: "Sets how many seconds an orphan stays in FIN_WAIT_2, the state in which this end has closed and the peer has not. \
               A value N above 60 means 2 * (N - 60) seconds: half of this time as a full socket, and half as a bucket.",
        does_not: "It does not change TIME_WAIT, which comes after FIN_WAIT_2.",
        sources: &[
            "Documentation/networking/ip-sysctl.rst, tcp_fin_timeout",
            "tcp(7), tcp_fin_timeout and TCP_LINGER2",
            "net/ipv4/tcp_timer.c, tcp_keepalive_timer()",
            "include/net/tcp.h, TCP_TIMEWAIT_LEN",
        ],
        default: DefaultValue::Number(60),
        ..PLAIN
    };
    TCP_TIMESTAMPS = Sysctl {
        name: "net.ipv4.tcp_timestamps",
        check: Some("tcp_timestamps"),
        does: "Offers timestamps on every segment. With them both ends recognize old segments (PAWS). connect() takes over \
               a bucket only if its connection had them (tcp_tw_reuse). 1: each connection has its own random offset. \
               2: no offset.",
        does_not: "It does not change how long TIME_WAIT lasts, or the connections and buckets that exist. A connection has \
                   timestamps only if both ends offer them.",
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
        does: "Decides what a RST does to a bucket in TIME_WAIT. 0: the RST ends the bucket early (RFC 1337 calls that \
               assassination). 1: the kernel ignores it.",
        does_not: "It does not change the lifetime of a bucket that receives no RST, and it does not limit the number \
                   of buckets.",
        sources: &["RFC 1337", "tcp(7), tcp_rfc1337", "net/ipv4/tcp_minisocks.c"],
        ..PLAIN
    };
    IP_LOCAL_PORT_RANGE = Sysctl {
        name: "net.ipv4.ip_local_port_range",
        check: Some("ip_local_port_range"),
        does: "Sets the ephemeral range, in which connect() and bind() to port 0 search for a free port.",
        does_not: "It is not the class of dynamic ports of RFC 6335. It does not limit the total number of \
                   connections. Each destination (an address and a port) can use the whole range. Servers may bind \
                   any port.",
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
        does: "Lists ports that connect() and bind() to port 0 never choose, so that they are free when a server starts.",
        does_not: "A program can still bind such a port by its number, and a connection that already has such a port \
                   continues.",
        sources: &["Documentation/networking/ip-sysctl.rst, ip_local_reserved_ports"],
        form: Form::Ports,
        default: DefaultValue::NoPorts,
        ..PLAIN
    };
    IP_UNPRIVILEGED_PORT_START = Sysctl {
        name: "net.ipv4.ip_unprivileged_port_start",
        check: Some("ip_unprivileged_port_start"),
        does: "Sets the first port that a program may bind without CAP_NET_BIND_SERVICE.",
        does_not: "It does not restrict connections to ports below it, and it can differ from the end of the well-known ports of \
               RFC 6335.",
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
        does: "1: bind() to port 0 may choose a port that other sockets have, if the new socket and all of the other \
               sockets set SO_REUSEADDR.",
        does_not: "It has no effect on connect() without bind(). A client that binds its address should set \
               IP_BIND_ADDRESS_NO_PORT instead, which lets connect() choose the port.",
        sources: &["Documentation/networking/ip-sysctl.rst, ip_autobind_reuse", "ip(7), IP_BIND_ADDRESS_NO_PORT"],
        absent: Some("This kernel does not have the setting. It behaves as with 0."),
        ..PLAIN
    };
    IP_NONLOCAL_BIND = Sysctl {
        name: "net.ipv4.ip_nonlocal_bind",
        check: Some("ip_nonlocal_bind"),
        does: "1: bind() accepts IPv4 addresses that this machine does not have, or does not have yet.",
        does_not: "It does not help against EADDRINUSE, which is about the port.",
        sources: &["Documentation/networking/ip-sysctl.rst, ip_nonlocal_bind", "ip(7), ip_nonlocal_bind"],
        ..PLAIN
    };
    IPV6_NONLOCAL_BIND = Sysctl {
        name: "net.ipv6.ip_nonlocal_bind",
        check: Some("ipv6_ip_nonlocal_bind"),
        does: "1: bind() accepts IPv6 addresses that this machine does not have, or does not have yet.",
        does_not: "It does not help against EADDRINUSE, which is about the port.",
        sources: &["Documentation/networking/ip-sysctl.rst, ip_nonlocal_bind (IPv6 variables)"],
        absent: Some("This kernel does not have the setting, because IPv6 is missing."),
        ..PLAIN
    };
    IPV6_BINDV6ONLY = Sysctl {
        name: "net.ipv6.bindv6only",
        check: Some("ipv6_bindv6only"),
        does: "Sets the default of IPV6_V6ONLY for new sockets. 0: a server on :: accepts IPv4 connections too, so it \
               conflicts with a server on 0.0.0.0.",
        does_not: "It does not change sockets that set IPV6_V6ONLY themselves, nor sockets that are already open.",
        sources: &["Documentation/networking/ip-sysctl.rst, bindv6only", "ipv6(7), IPV6_V6ONLY"],
        absent: Some("This kernel does not have the setting, because IPv6 is missing."),
        ..PLAIN
    };
    NF_CONNTRACK_COUNT = Sysctl {
        name: "net.netfilter.nf_conntrack_count",
        does: "Shows the number of connections that netfilter tracks in this network namespace.",
        does_not: "It exists only if the module nf_conntrack is loaded.",
        sources: &["Documentation/networking/nf_conntrack-sysctl.rst, nf_conntrack_count"],
        default: DefaultValue::Unknown,
        ..PLAIN
    };
    NF_CONNTRACK_MAX = Sysctl {
        name: "net.netfilter.nf_conntrack_max",
        does: "Limits the connections that netfilter tracks. 0 means no limit.",
        does_not: "It does not affect connections that netfilter does not track.",
        sources: &["Documentation/networking/nf_conntrack-sysctl.rst, nf_conntrack_max"],
        default: DefaultValue::Unknown,
        ..PLAIN
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_is_explained_and_has_unique_names() {
        for (i, setting) in SETTINGS.iter().enumerate() {
            let Sysctl { name, check, does, does_not, sources, .. } = setting;
            assert!(name.starts_with("net.") && !setting.key().starts_with("net."), "{name}");
            assert!(does.ends_with('.') && does_not.ends_with('.') && !sources.is_empty(), "{name}");
            let other = |other: &&&Sysctl| other.name == *name || check.is_some() && other.check == *check;
            assert_eq!(SETTINGS.iter().filter(other).count(), 1, "{i}: {name}");
        }
    }

    #[test]
    fn the_page_of_doctor_names_every_setting_that_doctor_shows() {
        let page = include_str!("../../docs/commands/doctor.md");
        for setting in SETTINGS.iter().filter(|setting| setting.check.is_some()) {
            let last = setting.name.rsplit('.').next().unwrap_or(setting.name);
            assert!(page.contains(last), "{}", setting.name);
        }
    }
}
