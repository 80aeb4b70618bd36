//! The facts of a network namespace that an answer needs in addition to the sockets: kernel, time, port ranges, names.
//!
//! `None` means that a fact is unknown, never that a default applies.

use std::num::NonZeroU32;
use std::time::SystemTime;

use super::interfaces::Interfaces;
use super::port::{LocalPortRange, LocalReservedPorts, ONE_PORT_FORMS, PORT_ARG_FORMS, Port, PortArg, PortRange};
use super::services::Services;
use super::setting;

/// The file of service names.
pub const SERVICES: &str = "/etc/services";

/// The facts of one network namespace at one time.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// When the sockets were read.
    pub taken_at: SystemTime,
    /// The release of the kernel, as `uname -r` prints it.
    pub kernel: String,
    /// Inode number of the network namespace.
    pub netns: Option<u64>,
    /// The name of the namespace: its name in ip-netns(8), or `PID:COMM` of its process with the lowest pid.
    pub netns_name: Option<String>,
    /// `net.ipv4.ip_local_port_range`.
    pub local_port_range: Option<LocalPortRange>,
    /// `net.ipv4.ip_local_reserved_ports`.
    pub local_reserved_ports: Option<LocalReservedPorts>,
    /// `net.ipv4.ip_unprivileged_port_start`: for a port below this number, bind() needs CAP_NET_BIND_SERVICE.
    pub unprivileged_port_start: Option<u32>,
    /// Names of /etc/services.
    pub services: Services,
    /// Names of interfaces.
    pub interfaces: Interfaces,
    /// The facts that could not be read.
    pub unread: UnreadFacts,
}

/// The names of facts that could not be read although they may exist, each with the reason. Facts that this kernel or namespace does not
/// have are not in the list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnreadFacts(pub Vec<(String, String)>);

impl UnreadFacts {
    /// Adds the name of a fact, and the reason why it could not be read.
    pub fn add(&mut self, what: &str, why: &impl ToString) {
        self.0.push((what.to_owned(), why.to_string()));
    }

    /// A sentence for each of these facts.
    #[must_use]
    pub fn sentences(&self) -> Vec<String> {
        self.0.iter().map(|(what, why)| format!("{what} could not be read: {why}")).collect()
    }

    fn reason(&self, what: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name == what).map(|(_, why)| why.as_str())
    }
}

/// A setting that answers depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields of Facts")]
pub enum Setting {
    LocalPortRange,
    LocalReservedPorts,
    UnprivilegedPortStart,
}

impl Setting {
    /// Every setting.
    pub const ALL: [Self; 3] = [Self::LocalPortRange, Self::LocalReservedPorts, Self::UnprivilegedPortStart];

    /// The name of the setting in sysctl(8).
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::LocalPortRange => setting::IP_LOCAL_PORT_RANGE.name,
            Self::LocalReservedPorts => setting::IP_LOCAL_RESERVED_PORTS.name,
            Self::UnprivilegedPortStart => setting::IP_UNPRIVILEGED_PORT_START.name,
        }
    }
}

impl Facts {
    /// A sentence for each setting in `needed` that could not be read, and for each unread fact that is not a setting.
    #[must_use]
    pub fn gaps(&self, needed: &[Setting]) -> Vec<String> {
        let missing = |setting: &&Setting| match setting {
            Setting::LocalPortRange => self.local_port_range.is_none(),
            Setting::LocalReservedPorts => self.local_reserved_ports.is_none(),
            Setting::UnprivilegedPortStart => self.unprivileged_port_start.is_none(),
        };
        let sentence = |setting: &Setting| {
            let reason = self.unread.reason(setting.name()).map(|why| format!(" ({why})")).unwrap_or_default();
            format!("{} could not be read{reason}: everything that depends on it is unknown", setting.name())
        };
        let settings = needed.iter().filter(missing).map(sentence);
        settings.chain(self.other_gaps()).collect()
    }

    /// A sentence for each unread fact that is not one of the settings.
    #[must_use]
    pub fn other_gaps(&self) -> Vec<String> {
        let is_setting = |what: &str| Setting::ALL.iter().any(|setting| setting.name() == what);
        let others = self.unread.0.iter().filter(|(what, _)| !is_setting(what)).cloned().collect();
        UnreadFacts(others).sentences().into_iter().chain(self.interfaces.failure()).collect()
    }

    /// Whether the kernel has this version or a later one; `None` if its release does not begin with a version.
    #[must_use]
    pub fn kernel_since(&self, major: u32, minor: u32) -> Option<bool> {
        let mut numbers = self.kernel.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
        let version = (numbers.next()?.ok()?, numbers.next()?.ok()?);
        Some(version >= (major, minor))
    }

    /// Whether the counter TW of TcpExt counts a bucket when the kernel makes it, as Linux 6.1 does. Linux 5.10 counts a bucket when it
    /// ends. (Both were measured.)
    #[must_use]
    pub fn counts_made_buckets(&self) -> Option<bool> {
        self.as_6_1_and_not_as_5_10()
    }

    /// Whether a negative tcp_max_tw_buckets means that there is no maximum. `inet_twsk_alloc` in net/ipv4/inet_timewait_sock.c
    /// compares the count and the setting as unsigned numbers on 6.1 and later. Linux 5.10 compares them as signed numbers, so with a
    /// negative setting it keeps no bucket.
    #[must_use]
    pub fn negative_maximum_is_none(&self) -> Option<bool> {
        self.as_6_1_and_not_as_5_10()
    }

    /// Whether the kernel behaves like Linux 6.1, for behaviour that was measured on 6.1 and is the opposite on 5.10. `None` for the
    /// versions between them, which were not measured.
    fn as_6_1_and_not_as_5_10(&self) -> Option<bool> {
        match (self.kernel_since(6, 1)?, self.kernel_since(5, 11)?) {
            (true, _) => Some(true),
            (false, false) => Some(false),
            _ => None,
        }
    }

    /// Whether SOCK_DESTROY is known to remove timewait buckets: 5.10 answers EOPNOTSUPP, 6.1 removes them (measured). The result is
    /// false for the versions between 5.10 and 6.1, which were not measured.
    #[must_use]
    pub fn destroys_buckets(&self) -> Option<bool> {
        self.kernel_since(6, 1)
    }

    /// Whether it is proven that SOCK_DESTROY removes no timewait bucket (measured on 5.10).
    #[must_use]
    pub fn never_destroys_buckets(&self) -> bool {
        self.kernel_since(5, 11) == Some(false)
    }

    /// Whether the port lies in `ip_local_port_range`.
    #[must_use]
    pub fn ephemeral(&self, port: Port) -> Option<bool> {
        self.local_port_range.map(|range| range.contains(port))
    }

    /// Whether the port is in `ip_local_reserved_ports`.
    #[must_use]
    pub fn locally_reserved(&self, port: Port) -> Option<bool> {
        self.local_reserved_ports.as_ref().map(|reserved| reserved.contains(port))
    }

    /// Whether the port is below `ip_unprivileged_port_start`. Port 0 never is, because bind() to port 0 gets a port of the
    /// local range.
    #[must_use]
    pub fn privileged(&self, port: Port) -> Option<bool> {
        self.unprivileged_port_start.map(|start| port.0 != 0 && u32::from(port.0) < start)
    }

    /// The name of an interface. If the name is unknown, for example because the interface does not exist any more: `if` and the index
    /// (`if7`), as in ss.
    #[must_use]
    pub fn interface_name(&self, index: NonZeroU32) -> String {
        self.interfaces.name(index).unwrap_or_else(|| format!("if{index}"))
    }

    /// The index of an interface that the user named by its name or number.
    ///
    /// # Errors
    /// The namespace has no such interface (then the error lists the existing interfaces), or a request to the kernel failed.
    pub fn interface_index(&self, word: &str) -> Result<NonZeroU32, String> {
        let interfaces = self.interfaces.list();
        let by_name = interfaces.iter().find(|(_, name)| *name == word).map(|(index, _)| *index);
        let by_number = || word.parse().ok().filter(|index| interfaces.contains_key(index));
        by_name.or_else(by_number).ok_or_else(|| {
            if let Some(failure) = self.interfaces.failure() {
                return failure;
            }
            let names: Vec<_> = interfaces.values().map(String::as_str).collect();
            format!("this network namespace has no interface '{word}'; it has {}", names.join(", "))
        })
    }

    /// The ports that an argument names.
    ///
    /// # Errors
    /// /etc/services does not have the service name for TCP (then the error lists the allowed forms of a port), or could not be read.
    pub fn ports(&self, arg: &PortArg) -> Result<PortRange, String> {
        self.look_up(arg, PORT_ARG_FORMS)
    }

    /// The one port that an argument names.
    ///
    /// # Errors
    /// The same as for [`Self::ports`]. It is also an error if the argument is a range.
    pub fn one_port(&self, arg: &PortArg) -> Result<Port, String> {
        let range = self.look_up(arg, ONE_PORT_FORMS)?;
        if range.first() != range.last() {
            return Err(format!("only one port can be tested; a port is {ONE_PORT_FORMS}"));
        }
        Ok(range.first())
    }

    fn look_up(&self, arg: &PortArg, forms: &str) -> Result<PortRange, String> {
        match arg {
            PortArg::Range(range) => Ok(*range),
            PortArg::Name(name) => self.services.port(name).map(PortRange::one).ok_or_else(|| {
                if let Some(why) = self.unread.reason(SERVICES) {
                    return format!("{SERVICES} could not be read: {why}");
                }
                format!("'{name}' is neither a port nor a TCP service of /etc/services; a port is {forms}")
            }),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A namespace with the kernel's default ranges, the reserved port 8000, and `http` (with the alias `www`) as its only service.
    pub(crate) fn facts() -> Facts {
        Facts {
            taken_at: SystemTime::UNIX_EPOCH,
            kernel: "6.18.0".into(),
            netns: Some(4_026_531_840),
            netns_name: Some("web".into()),
            local_port_range: PortRange::new(Port(32768), Port(60999)).map(LocalPortRange),
            local_reserved_ports: Some(LocalReservedPorts(vec![PortRange::one(Port(8000))])),
            unprivileged_port_start: Some(1024),
            services: Services::new([(Port(80), ["http", "www"])]),
            interfaces: [(NonZeroU32::MIN, "lo".to_owned())].into_iter().collect(),
            unread: UnreadFacts::default(),
        }
    }

    #[test]
    fn unread_facts_are_named_with_their_reason() {
        let mut facts = Facts { local_port_range: None, ..facts() };
        assert_eq!(facts.gaps(&[]), Vec::<String>::new());
        facts.unread.add("net.ipv4.ip_local_port_range", &"Input/output error");
        facts.unread.add(SERVICES, &"Permission denied");
        let services = "/etc/services could not be read: Permission denied".to_owned();
        assert_eq!(facts.gaps(&[]), std::slice::from_ref(&services));
        let range = "net.ipv4.ip_local_port_range could not be read (Input/output error): everything that depends on \
                     it is unknown";
        assert_eq!(facts.gaps(&[Setting::LocalPortRange]), [range.to_owned(), services.clone()]);
        assert_eq!(facts.ports(&"nosuch".parse().expect("a name")), Err(services));
        assert!(facts.ports(&"http".parse().expect("a name")).is_ok());
    }

    #[test]
    fn an_interface_is_found_by_name_or_number_and_the_error_names_an_unknown_one() {
        let facts = facts();
        assert_eq!(facts.interface_index("lo"), facts.interface_index("1"));
        assert!(facts.interface_index("nosuch").is_err_and(|e| e.contains("'nosuch'") && e.contains("lo")));
        assert!(NonZeroU32::new(7).is_some_and(|seven| facts.interface_name(seven) == "if7"));
    }

    #[test]
    fn an_interface_of_another_namespace_gets_an_index_that_no_interface_here_has() {
        let mut facts = facts();
        facts.interfaces.add_absent(&["eth0".to_owned(), "lo".into(), "eth1".into()]);
        let index = |name: &str| facts.interface_index(name).map(NonZeroU32::get);
        assert_eq!(index("lo"), Ok(1));
        assert!(["eth0", "eth1"].iter().all(|name| index(name).is_ok_and(|index| i32::try_from(index).is_err())));
        assert_ne!(index("eth0"), index("eth1"));
        assert!(index("eth2").is_err());
    }

    #[test]
    fn a_name_is_a_port_only_if_the_services_file_has_it() {
        let port = |text: &str| facts().ports(&text.parse().expect("a port argument"));
        assert_eq!(port("www"), Ok(PortRange::one(Port(80))));
        assert!(port("httpz").is_err_and(|e| e.contains("'httpz'") && e.contains("0-65535")));
    }

    #[test]
    fn port_0_is_never_privileged() {
        assert_eq!(facts().privileged(Port(0)), Some(false));
        assert_eq!((facts().privileged(Port(1023)), facts().privileged(Port(1024))), (Some(true), Some(false)));
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        let since = |kernel: &str| Facts { kernel: kernel.into(), ..facts() }.kernel_since(6, 8);
        assert_eq!(
            ["6.8.0", "6.18.44-fc", "7.0", "6.7.9", "5.15.0-91-generic"].map(since),
            [Some(true), Some(true), Some(true), Some(false), Some(false)]
        );
        assert_eq!(["unknown", "6", ""].map(since), [None; 3]);
    }

    #[test]
    fn facts_that_could_not_be_read_are_unknown_and_reported() {
        let facts = Facts { local_port_range: None, ..facts() };
        assert_eq!(facts.ephemeral(Port(40000)), None);
        assert!(facts.gaps(&Setting::ALL).iter().any(|gap| gap.contains("ip_local_port_range")));
        assert!(facts.gaps(&[Setting::UnprivilegedPortStart]).is_empty());
    }
}
