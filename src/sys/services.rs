//! /etc/services (services(5)), its TCP entries. An absent file is an empty table: names are a convenience.

use crate::model::facts::Services;
use crate::model::port::Port;

/// Reads the file.
#[must_use]
pub fn read() -> Services {
    std::fs::read("/etc/services").map_or_else(|_| Services::default(), |bytes| parse(&String::from_utf8_lossy(&bytes)))
}

/// `name port/protocol [alias ...] [# comment]`, an entry a line; lines of another form are passed over.
fn parse(text: &str) -> Services {
    let entry = |line: &str| {
        let mut words = line.split('#').next()?.split_whitespace();
        let name = words.next()?;
        let port = words.next()?.strip_suffix("/tcp")?.parse().ok().map(Port)?;
        Some((port, std::iter::once(name).chain(words).map(str::to_owned).collect()))
    };
    Services::new(text.lines().filter_map(entry).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tcp_entries_give_names_and_aliases_and_the_first_entry_wins() {
        let services = parse(
            "# comment\nhttp\t80/tcp\t\twww # WorldWideWeb\ntftp 69/udp\nhttp-too 80/tcp\n\nbroken\nhigh 70000/tcp\nhttp 81/tcp",
        );
        assert_eq!(services.name(Port(80)), Some("http"));
        assert_eq!((services.port("http"), services.port("www")), (Some(Port(80)), Some(Port(80))));
        assert_eq!(services.name(Port(81)), Some("http"));
        assert_eq!((services.port("tftp"), services.name(Port(69)), services.port("high")), (None, None, None));
    }
}
