//! Port numbers, and two separate facts about a port: its RFC 6335 class, and its place in the port ranges of Linux.
//!
//! A class is a property of the number; the ranges are settings of a network namespace (`facts.rs`). Classes and ranges have separate
//! types, because people often confuse the class 49152-65535 with the ephemeral range of Linux.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

/// A TCP port number, 0 to 65535.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port(pub u16);

impl Port {
    /// The class of this number in RFC 6335, section 6.
    #[must_use]
    pub const fn class(self) -> PortClass {
        match self.0 {
            0..=1023 => PortClass::WellKnown,
            1024..=49151 => PortClass::Registered,
            49152..=65535 => PortClass::Dynamic,
        }
    }

    /// Whether this is port 0, which RFC 6335 (section 6) reserves. bind() to port 0 asks the kernel to choose a port.
    #[must_use]
    pub const fn reserved_by_rfc(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The three classes of RFC 6335, section 6. A class is only a name for a range of numbers. The kernel does not enforce it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PortClass {
    /// System Ports, 0-1023.
    WellKnown,
    /// User Ports, 1024-49151.
    Registered,
    /// Dynamic or Private Ports, 49152-65535.
    Dynamic,
}

impl PortClass {
    /// Every class, the lowest numbers first.
    pub const ALL: [Self; 3] = [Self::WellKnown, Self::Registered, Self::Dynamic];

    /// The name that scripts see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::WellKnown => "well-known",
            Self::Registered => "registered",
            Self::Dynamic => "dynamic",
        }
    }

    /// The class's numbers, both ends included.
    #[must_use]
    pub const fn bounds(self) -> PortRange {
        let (first, last) = match self {
            Self::WellKnown => (0, 1023),
            Self::Registered => (1024, 49151),
            Self::Dynamic => (49152, 65535),
        };
        PortRange { first: Port(first), last: Port(last) }
    }
}

/// Ports from `first` to `last`, both included. `first` is never greater than `last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortRange {
    first: Port,
    last: Port,
}

impl PortRange {
    /// The range; `None` if `first` is greater than `last`.
    #[must_use]
    pub fn new(first: Port, last: Port) -> Option<Self> {
        (first <= last).then_some(Self { first, last })
    }

    /// The range of one port.
    #[must_use]
    pub const fn one(port: Port) -> Self {
        Self { first: port, last: port }
    }

    /// The lowest port of the range.
    #[must_use]
    pub const fn first(self) -> Port {
        self.first
    }

    /// The highest port of the range.
    #[must_use]
    pub const fn last(self) -> Port {
        self.last
    }

    /// Whether the port lies in the range.
    #[must_use]
    pub fn contains(self, port: Port) -> bool {
        self.first <= port && port <= self.last
    }

    /// The number of ports in the range; at least one.
    #[must_use]
    pub fn count(self) -> u32 {
        u32::from(self.last.0 - self.first.0) + 1
    }

    /// The ports of the range, the lowest first.
    pub fn ports(self) -> impl Iterator<Item = Port> {
        (self.first.0..=self.last.0).map(Port)
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { self.first.fmt(f) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

/// `net.ipv4.ip_local_port_range`: the range from which connect() and bind() to port 0 choose a port in this network namespace
/// (ip-sysctl).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalPortRange(pub PortRange);

impl LocalPortRange {
    /// Whether the port lies in the range. The kernel may choose it, unless it is in [`LocalReservedPorts`].
    #[must_use]
    pub fn contains(self, port: Port) -> bool {
        self.0.contains(port)
    }
}

/// `net.ipv4.ip_local_reserved_ports`: ports that the kernel never chooses by itself. An explicit bind() can still use them
/// (ip-sysctl). The ranges have the kernel's order: the lowest first, and no range is adjacent to the next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalReservedPorts(pub Vec<PortRange>);

impl LocalReservedPorts {
    /// Whether the port is in the list.
    #[must_use]
    pub fn contains(&self, port: Port) -> bool {
        // A binary search, because the list can have 32,768 ranges, and some callers test every port.
        let at = self.0.partition_point(|range| range.last() < port);
        self.0.get(at).is_some_and(|range| range.contains(port))
    }

    /// The list with these ports added. Like the kernel, this function sorts the ranges and joins adjacent ranges.
    #[must_use]
    pub fn with(&self, ports: impl IntoIterator<Item = Port>) -> Self {
        let mut ranges: Vec<PortRange> = self.0.iter().copied().chain(ports.into_iter().map(PortRange::one)).collect();
        ranges.sort_by_key(|range| range.first());
        let mut joined: Vec<PortRange> = vec![];
        for range in ranges {
            match joined.last_mut() {
                Some(last) if range.first().0 <= last.last().0.saturating_add(1) => {
                    last.last = last.last.max(range.last());
                }
                _ => joined.push(range),
            }
        }
        Self(joined)
    }

    /// The number of ports of the range that are not in the list.
    #[must_use]
    pub fn count_unreserved(&self, range: PortRange) -> usize {
        range.ports().filter(|port| !self.contains(*port)).count()
    }
}

/// Prints the list in the kernel's notation: `8080,9000-9010`.
impl fmt::Display for LocalReservedPorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_ranges(f, &self.0)
    }
}

pub(super) fn write_ranges(f: &mut fmt::Formatter<'_>, ranges: &[PortRange]) -> fmt::Result {
    for (i, range) in ranges.iter().enumerate() {
        if i > 0 {
            f.write_str(",")?;
        }
        fmt::Display::fmt(range, f)?;
    }
    Ok(())
}

/// A port argument as typed: a number, a range, or a name that must still be looked up in /etc/services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortArg {
    /// `443`, or `8000-8099`.
    Range(PortRange),
    /// `https`.
    Name(String),
}

/// Prints a text that parses to the same argument.
impl fmt::Display for PortArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Range(range) => range.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// The allowed forms of a port argument, for the end of an error message.
pub const PORT_ARG_FORMS: &str = "a number 0-65535, a range like 8000-8099, or a TCP service name of /etc/services";

/// The allowed forms of an argument that names one port.
pub const ONE_PORT_FORMS: &str = "a number 0-65535 or a TCP service name of /etc/services";

/// The error for a text that is not a port argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortArgError(String);

impl PortArgError {
    /// The message for a command that takes only one port.
    #[must_use]
    pub fn for_one_port(&self) -> String {
        format!("{}; a port is {ONE_PORT_FORMS}", self.0)
    }
}

impl fmt::Display for PortArgError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; a port is {PORT_ARG_FORMS}", self.0)
    }
}

impl std::error::Error for PortArgError {}

impl FromStr for PortArg {
    type Err = PortArgError;

    fn from_str(text: &str) -> Result<Self, PortArgError> {
        let decimal = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
        let port = |s: &str| s.parse().map(Port).map_err(|_| PortArgError(format!("{s} is above 65535")));
        if text.is_empty() {
            return Err(PortArgError("the port is empty".into()));
        }
        if decimal(text) {
            return Ok(Self::Range(PortRange::one(port(text)?)));
        }
        if let Some((first, last)) = text.split_once('-')
            && decimal(first)
            && decimal(last)
        {
            return PortRange::new(port(first)?, port(last)?)
                .map(Self::Range)
                .ok_or_else(|| PortArgError(format!("the range {text} is reversed")));
        }
        // RFC 6335, section 5.1: a service name has at least one letter. Other texts need no look-up.
        let name = text.bytes().all(|b| b.is_ascii_graphic()) && text.bytes().any(|b| b.is_ascii_alphabetic());
        if !name || text.starts_with('-') {
            return Err(PortArgError(match text.parse::<SocketAddr>() {
                Ok(end) => format!(
                    "this is an address and a port; give the port {} alone, and use --addr {} for the address if the \
                     command has this option",
                    end.port(),
                    end.ip()
                ),
                Err(_) => "this is not a port".into(),
            }));
        }
        Ok(Self::Name(text.to_owned()))
    }
}

/// What the sockets of a network namespace show about a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortUse {
    /// Whether a listener is on the port; `None` if it is unknown whether a listener accepts the requested family.
    pub listening: Option<bool>,
    /// The number of TIME_WAIT buckets with this local port.
    pub time_wait: u64,
}

impl PortUse {
    /// Neither a listener nor a bucket.
    pub const NONE: Self = Self { listening: Some(false), time_wait: 0 };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_port_has_exactly_one_class_of_rfc_6335() {
        for number in 0..=u16::MAX {
            let port = Port(number);
            let holding: Vec<_> = PortClass::ALL.into_iter().filter(|c| c.bounds().contains(port)).collect();
            assert_eq!(holding, [port.class()], "port {port}");
        }
        for (number, class) in [(0, "well-known"), (1023, "well-known"), (1024, "registered"), (49151, "registered")] {
            assert_eq!(Port(number).class().name(), class);
        }
        assert_eq!((Port(49152).class().name(), Port(65535).class().name()), ("dynamic", "dynamic"));
    }

    #[test]
    fn ports_are_added_to_the_reserved_list_in_the_kernels_notation() {
        let list = |text: &str| {
            let range = |item: &str| {
                let (first, last) = item.split_once('-').unwrap_or((item, item));
                PortRange::new(Port(first.parse().expect("a port")), Port(last.parse().expect("a port")))
            };
            LocalReservedPorts(text.split(',').filter(|item| !item.is_empty()).filter_map(range).collect())
        };
        let held: Vec<u16> = (0..=u16::MAX).filter(|port| list("0,9-10,65535").contains(Port(*port))).collect();
        assert_eq!(held, [0, 9, 10, 65535]);
        for (before, added, after) in [
            ("", [8080].as_slice(), "8080"),
            ("8080,9000-9010", &[8081, 9011, 8079], "8079-8081,9000-9011"),
            ("9000-9010", &[9005], "9000-9010"),
            ("100-200", &[65535, 1, 65534], "1,100-200,65534-65535"),
            ("80,8080", &[], "80,8080"),
        ] {
            assert_eq!(list(before).with(added.iter().copied().map(Port)).to_string(), after);
        }
        let range = PortRange::new(Port(100), Port(109)).expect("forwards");
        assert_eq!(list("90-101,105").count_unreserved(range), 7);
    }

    #[test]
    fn a_port_argument_is_a_number_a_range_or_a_name() {
        assert_eq!("0".parse(), Ok(PortArg::Range(PortRange::one(Port(0)))));
        assert_eq!("65535".parse(), Ok(PortArg::Range(PortRange::one(Port(65535)))));
        assert_eq!("80-80".parse(), Ok(PortArg::Range(PortRange::one(Port(80)))));
        assert_eq!(
            "1020-1026".parse::<PortArg>(),
            Ok(PortArg::Range(PortRange::new(Port(1020), Port(1026)).expect("forwards")))
        );
        assert_eq!("https".parse(), Ok(PortArg::Name("https".into())));
        assert_eq!("iso-tsap".parse(), Ok(PortArg::Name("iso-tsap".into())));
    }

    #[test]
    fn the_error_of_a_bad_port_argument_lists_the_allowed_forms() {
        for bad in ["", "65536", "-1", "80-70", "80-", "-80", "80-65536", "99999999999999999999", "8 0", "80,81", "+80"]
        {
            let error = bad.parse::<PortArg>().expect_err(bad).to_string();
            assert!(error.contains("0-65535"), "{bad}: {error}");
        }
    }
}
