//! The data of `twtool doctor`: everything that the command has read in one network namespace. `analysis::doctor` judges the data.

use std::collections::BTreeMap;

use super::facts::Facts;
use super::kernel_counts::BucketFacts;
use super::process::Owners;
use super::setting::{Form, SETTINGS};
use super::socket::FullSocket;
use super::user::User;

/// The result of reading a setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SettingValue {
    /// The text of the setting, without surrounding white space.
    Value(String),
    /// The file does not exist: this kernel, or this network namespace, does not have the setting.
    Absent,
    /// The setting could not be read, for this reason.
    Unreadable(String),
}

/// Settings below /proc/sys/net by their names there, for example `ipv4.tcp_tw_reuse`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings(pub BTreeMap<&'static str, SettingValue>);

impl Settings {
    /// The keys of the settings that are numbers. The settings of ports are in [`Facts`].
    pub fn keys() -> impl Iterator<Item = &'static str> {
        SETTINGS.iter().filter(|setting| setting.form == Form::Number).map(|setting| setting.key())
    }

    /// The result of reading a setting. A setting that was not read counts as absent.
    #[must_use]
    pub fn value(&self, name: &str) -> &SettingValue {
        self.0.get(name).unwrap_or(&SettingValue::Absent)
    }

    /// The number in a setting; `None` if the setting has no number.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<i64> {
        match self.value(name) {
            SettingValue::Value(text) => text.parse().ok(),
            SettingValue::Absent | SettingValue::Unreadable(_) => None,
        }
    }
}

/// The capabilities that `doctor` reports, or that a command printed by twtool can need (capabilities(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the kernel's names")]
pub enum Capability {
    DacReadSearch = 2,
    Kill = 5,
    NetBindService = 10,
    NetAdmin = 12,
    SysPtrace = 19,
    SysAdmin = 21,
}

impl Capability {
    /// The capabilities that `doctor` reports, in the order of their numbers.
    pub const REPORTED: [Self; 5] =
        [Self::DacReadSearch, Self::NetBindService, Self::NetAdmin, Self::SysPtrace, Self::SysAdmin];

    /// The kernel's name of the capability.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::DacReadSearch => "CAP_DAC_READ_SEARCH",
            Self::Kill => "CAP_KILL",
            Self::NetBindService => "CAP_NET_BIND_SERVICE",
            Self::NetAdmin => "CAP_NET_ADMIN",
            Self::SysPtrace => "CAP_SYS_PTRACE",
            Self::SysAdmin => "CAP_SYS_ADMIN",
        }
    }
}

/// A set of capabilities, as a mask in which each capability is the bit of its number (`CapEff` in /proc/thread-self/status).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities(pub u64);

impl Capabilities {
    /// Whether the capability is in the set.
    #[must_use]
    pub const fn has(self, capability: Capability) -> bool {
        self.0 & (1 << capability as u32) != 0
    }
}

/// A listener, its owners, and whether the kernel or the program chose its port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenListener {
    /// The socket.
    pub socket: FullSocket,
    /// Whether the kernel chose its port (bind() to port 0, or listen() without bind()); `None` if the source does not report
    /// it, or if no listener of the namespace has a port in `ip_local_port_range`.
    pub autobound: Option<bool>,
    /// The processes that have the socket open. twtool searches for them only if the port lies in `ip_local_port_range`. Otherwise
    /// the value is [`Owners::Nobody`].
    pub owners: Owners,
}

/// A socket in CLOSE_WAIT: the peer has closed, and the program here has not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloseWait {
    /// The socket. It has been in CLOSE_WAIT for at least `last_ack_ms`, because the peer's FIN carries an ACK.
    pub socket: FullSocket,
    /// The processes that have the socket open.
    pub owners: Owners,
    /// The user that created the socket; `None` if the user is unknown.
    pub user: Option<User>,
}

/// Listeners and sockets in CLOSE_WAIT of the network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenSockets {
    /// Sockets in state LISTEN.
    pub listeners: Vec<OpenListener>,
    /// Sockets in state CLOSE_WAIT.
    pub close_wait: Vec<CloseWait>,
    /// Why the sockets come from /proc/net/tcp instead of sock_diag; `None` if they come from sock_diag.
    pub fallback: Option<String>,
    /// Whether both lists are complete, as far as the kernel reports it.
    pub complete: bool,
}

/// The data of one checkup of a network namespace.
#[derive(Clone, Debug, PartialEq)]
pub struct Health {
    /// Kernel, time, port ranges.
    pub facts: Facts,
    /// The settings of [`Settings::keys`].
    pub settings: Settings,
    /// The kernel's counts of buckets, and its settings about buckets.
    pub buckets: BucketFacts,
    /// Sockets, or why they could not be read.
    pub sockets: Result<OpenSockets, String>,
    /// The capabilities of the caller; `None` if they could not be read.
    pub capabilities: Option<Capabilities>,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::model::facts::tests::facts;
    use crate::model::kernel_counts::{TcpExt, TcpSockstat};

    /// A network namespace with the kernel's default settings (except that port 8000 is reserved), a hash table of 262,144 entries, and
    /// no sockets.
    pub(crate) fn healthy() -> Health {
        const VALUES: [(&str, &str); 11] = [
            ("ipv4.tcp_tw_reuse", "2"),
            ("ipv4.tcp_tw_reuse_delay", "1000"),
            ("ipv4.tcp_max_tw_buckets", "131072"),
            ("ipv4.tcp_ehash_entries", "-262144"),
            ("ipv4.tcp_fin_timeout", "60"),
            ("ipv4.tcp_timestamps", "1"),
            ("ipv4.tcp_rfc1337", "0"),
            ("ipv4.ip_autobind_reuse", "0"),
            ("ipv4.ip_nonlocal_bind", "0"),
            ("ipv6.ip_nonlocal_bind", "0"),
            ("ipv6.bindv6only", "0"),
        ];
        let known: Vec<_> = Settings::keys().collect();
        let reading = |(name, value): (&'static str, &str)| {
            assert!(known.contains(&name), "{name} is not a setting");
            (name, SettingValue::Value(value.into()))
        };
        let counters = ["TCPTimeWaitOverflow", "TWRecycled"].map(|name| (name.to_owned(), 0));
        Health {
            facts: facts(),
            settings: Settings(VALUES.map(reading).into()),
            buckets: BucketFacts {
                max_tw_buckets: Some(131_072),
                sockstat: Some(TcpSockstat { inuse: 0, orphan: 0, tw: 0, alloc: 0, mem: 0 }),
                tcp_ext: Some(TcpExt(counters.into())),
                ..BucketFacts::default()
            },
            sockets: Ok(OpenSockets { complete: true, ..OpenSockets::default() }),
            capabilities: Some(Capabilities(0)),
        }
    }

    #[test]
    fn a_capability_is_a_bit_of_the_set() {
        let set = Capabilities(1 << 12 | 1 << 21);
        let held: Vec<_> = Capability::REPORTED.into_iter().filter(|one| set.has(*one)).map(Capability::name).collect();
        assert_eq!(held, ["CAP_NET_ADMIN", "CAP_SYS_ADMIN"]);
    }

    #[test]
    fn a_setting_has_a_number_only_if_its_text_is_a_number() {
        let mut settings = healthy().settings;
        assert_eq!(settings.number("ipv4.tcp_ehash_entries"), Some(-262_144));
        assert_eq!(settings.number("ipv4.tcp_tw_recycle"), None);
        settings.0.insert("ipv4.tcp_rfc1337", SettingValue::Unreadable("Permission denied".into()));
        assert_eq!(settings.number("ipv4.tcp_rfc1337"), None);
    }
}
