//! Reads and writes settings of the calling thread's network namespace in /proc/sys/net (ip-sysctl in the kernel's
//! documentation).

use std::fs;
use std::io;
use std::path::PathBuf;

use super::setting;
use crate::model::port::{LocalPortRange, LocalReservedPorts, Port, PortRange};
use crate::model::setting::{IP_LOCAL_PORT_RANGE, IP_LOCAL_RESERVED_PORTS, IP_UNPRIVILEGED_PORT_START};

fn path(name: &str) -> PathBuf {
    PathBuf::from("/proc/sys/net").join(name.replace('.', "/"))
}

/// Reads the text of a setting below /proc/sys/net, for example `read("ipv4.ip_local_port_range")`.
pub fn read(name: &str) -> io::Result<String> {
    setting::read(&path(name))
}

/// Changes a setting below /proc/sys/net. twtool does this only in private namespaces.
pub fn write(name: &str, value: &str) -> io::Result<()> {
    fs::write(path(name), value)
}

/// Reads `net.ipv4.ip_local_port_range`.
pub fn local_port_range() -> io::Result<LocalPortRange> {
    or_invalid_data(parse_range(&read(IP_LOCAL_PORT_RANGE.key())?))
}

/// Parses a range of ports: two numbers with white space between them.
#[must_use]
pub fn parse_range(text: &str) -> Option<LocalPortRange> {
    let (low, high) = text.split_once(char::is_whitespace)?;
    PortRange::new(Port(low.parse().ok()?), Port(high.trim().parse().ok()?)).map(LocalPortRange)
}

/// Reads `net.ipv4.ip_local_reserved_ports`.
pub fn local_reserved_ports() -> io::Result<LocalReservedPorts> {
    or_invalid_data(parse_ranges(&read(IP_LOCAL_RESERVED_PORTS.key())?))
}

/// Reads `net.ipv4.ip_unprivileged_port_start`.
pub fn unprivileged_port_start() -> io::Result<u32> {
    or_invalid_data(read(IP_UNPRIVILEGED_PORT_START.key())?.parse().ok())
}

/// Reads a setting that is one number. It may be negative, because the kernel accepts `tcp_max_tw_buckets=-1`.
pub fn number(name: &str) -> io::Result<i64> {
    or_invalid_data(read(name)?.parse().ok())
}

fn or_invalid_data<T>(value: Option<T>) -> io::Result<T> {
    value.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "its format is unknown"))
}

/// Parses ports and ranges that are separated by commas.
#[must_use]
pub fn parse_ranges(text: &str) -> Option<LocalReservedPorts> {
    let range = |item: &str| {
        let (first, last) = item.split_once('-').unwrap_or((item, item));
        PortRange::new(Port(first.parse().ok()?), Port(last.parse().ok()?))
    };
    text.split(',')
        .filter(|item| !item.is_empty())
        .map(range)
        .collect::<Option<_>>()
        .map(|ranges| LocalReservedPorts(ranges).with([]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_ports_are_parsed_and_printed_in_the_notation_of_the_setting() {
        for text in ["", "8080", "8080,9000-9010,65535"] {
            assert_eq!(parse_ranges(text).map(|ranges| ranges.to_string()).as_deref(), Some(text));
        }
        assert_eq!(parse_ranges("80-70"), None);
        assert_eq!(parse_ranges("x"), None);
    }
}
