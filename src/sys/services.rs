//! /etc/services (services(5)), its TCP entries. An absent file is an empty table, because names are a convenience. A file
//! that cannot be read is reported.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Mutex;

use super::errno::{if_present, retry};
use super::file;
use crate::model::facts::{SERVICES, Unread};
use crate::model::name::text_of;
use crate::model::port::Port;
use crate::model::services::Services;

/// The most bytes of a file; Debian's has 13 KB.
const MOST: u64 = 4 << 20;

/// Reads the file. A network namespace that ip-netns(8) knows by a name may have one of its own, /etc/netns/NAME/services:
/// `ip netns exec` shows it to programs in place of /etc/services.
pub fn read(netns: Option<&OsStr>, unread: &mut Unread) -> Services {
    let own = netns.map(|name| content(&Path::new("/etc/netns").join(name).join("services"))).transpose();
    let services = own.and_then(|own| match own.flatten() {
        Some(bytes) => Ok(parse(&bytes)),
        None => Ok(content(Path::new(SERVICES))?.map_or_else(Services::default, shared)),
    });
    services.unwrap_or_else(|error| {
        unread.add(SERVICES, &error);
        Services::default()
    })
}

/// `None`: there is no such file.
fn content(path: &Path) -> io::Result<Option<Vec<u8>>> {
    if_present(retry(|| file::read(path, MOST)))
}

/// The table of /etc/services that was made last, and its text: whoever reads the same again, for many namespaces, shares it.
static LAST: Mutex<Option<(Vec<u8>, Services)>> = Mutex::new(None);

fn shared(bytes: Vec<u8>) -> Services {
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

/// `name port/protocol [alias ...] [# comment]`, an entry a line; lines of another form are passed over.
///
/// Bytes and not characters: every start of a program waits for this.
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

/// As isspace(3) has it, which getservbyname(3) goes by: the vertical tab, too.
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
    fn bytes_that_are_no_ascii_are_part_of_a_name_and_every_blank_of_c_parts_words() {
        let services = parse("vt\x0b8082/tcp\r\nno\u{a0}break 8083/tcp\n".as_bytes());
        assert_eq!((services.name(Port(8082)), services.name(Port(8083))), (Some("vt"), Some("no\u{a0}break")));
        assert_eq!(parse(b"\xff 8084/tcp").name(Port(8084)), Some(r"\xff"));
    }
}
