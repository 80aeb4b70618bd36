//! Reads the TCP entries of /etc/services (services(5)). If the file does not exist, the table is empty, because names are only a
//! convenience. A file that exists but cannot be read is reported.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Mutex;

use super::errno::{if_present, retry};
use super::file;
use crate::model::facts::{SERVICES, UnreadFacts};
use crate::model::name::text_of;
use crate::model::port::Port;
use crate::model::services::Services;

/// The maximum size of the file in bytes. The file of Debian has 13 KB.
const MAX_BYTES: u64 = 4 << 20;

/// Reads the table for a network namespace. A namespace with a name of ip-netns(8) may have its own file,
/// /etc/netns/NAME/services, which `ip netns exec` shows to programs in place of /etc/services.
pub fn read(netns: Option<&OsStr>, unread: &mut UnreadFacts) -> Services {
    let own = netns.map(|name| content(&Path::new("/etc/netns").join(name).join("services"))).transpose();
    let services = own.and_then(|own| match own.flatten() {
        Some(bytes) => Ok(parse(&bytes)),
        None => Ok(content(Path::new(SERVICES))?.map_or_else(Services::default, parse_once)),
    });
    services.unwrap_or_else(|error| {
        unread.add(SERVICES, &error);
        Services::default()
    })
}

fn content(path: &Path) -> io::Result<Option<Vec<u8>>> {
    if_present(retry(|| file::read(path, MAX_BYTES)))
}

/// The last table of /etc/services, and its text. Namespaces for which the text is the same share the table.
static LAST: Mutex<Option<(Vec<u8>, Services)>> = Mutex::new(None);

fn parse_once(bytes: Vec<u8>) -> Services {
    let Ok(mut last) = LAST.lock() else { return parse(&bytes) };
    match &*last {
        Some((text, services)) if *text == bytes => services.clone(),
        _ => {
            let services = parse(&bytes);
            *last = Some((bytes, services.clone()));
            services
        }
    }
}

/// Parses lines of the form `name port/protocol [alias ...] [# comment]`. Lines of another form are skipped.
///
/// The parser works on bytes, because that is faster, and most commands wait for it.
#[must_use]
pub fn parse<'a>(bytes: &'a [u8]) -> Services {
    let entry = |line: &'a [u8]| {
        let line = line.split(|byte| *byte == b'#').next()?;
        let mut words = line.split(|byte| is_blank(*byte)).filter(|word| !word.is_empty());
        let name = words.next()?;
        let port = str::from_utf8(words.next()?.strip_suffix(b"/tcp")?).ok()?.parse().ok().map(Port)?;
        Some((port, std::iter::once(name).chain(words).map(text_of)))
    };
    Services::new(bytes.split(|byte| *byte == b'\n').filter_map(entry))
}

/// The same blanks as in isspace(3), which getservbyname(3) uses. They include the vertical tab.
const fn is_blank(byte: u8) -> bool {
    byte.is_ascii_whitespace() || byte == 0x0b
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tcp_entries_give_names_and_aliases_and_the_first_entry_wins() {
        let services = parse(
            b"# comment\nhttp\t80/tcp\t\twww # WorldWideWeb\ntftp 69/udp\nhttp-too 80/tcp\n\nbroken\nhigh 70000/tcp\nhttp 81/tcp",
        );
        assert_eq!(services.name(Port(80)), Some("http"));
        assert_eq!((services.port("http"), services.port("www")), (Some(Port(80)), Some(Port(80))));
        assert_eq!(services.name(Port(81)), Some("http"));
        assert_eq!((services.port("tftp"), services.name(Port(69)), services.port("high")), (None, None, None));
    }

    #[test]
    fn bytes_outside_ascii_are_part_of_a_name_and_each_blank_of_isspace_separates_words() {
        let services = parse("vt\x0b8082/tcp\r\nno\u{a0}break 8083/tcp\n".as_bytes());
        assert_eq!((services.name(Port(8082)), services.name(Port(8083))), (Some("vt"), Some("no\u{a0}break")));
        assert_eq!(parse(b"\xff 8084/tcp").name(Port(8084)), Some(r"\xff"));
    }
}
