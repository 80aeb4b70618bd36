//! Names of users, from /etc/passwd (passwd(5)). twtool parses the file itself, because a static binary must not load the
//! modules of nsswitch.conf(5). So users of LDAP and other services have numbers only.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::OnceLock;

use super::errno::{Refusal, retry};
use super::file;
use crate::model::name::text_of;
use crate::model::user::User;

/// The most bytes of the file.
const MOST: u64 = 4 << 20;

/// An entry of /etc/passwd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name.
    pub name: String,
    /// The number of the user.
    pub uid: u32,
    /// The number of its primary group.
    pub gid: u32,
}

/// The entries of /etc/passwd.
///
/// # Errors
/// The file cannot be read, or is too long.
pub fn read() -> io::Result<Vec<Entry>> {
    Ok(parse(&retry(|| file::read(Path::new("/etc/passwd"), MOST))?))
}

/// The user with this number. Its name is unknown if /etc/passwd has no entry for it or cannot be read.
#[must_use]
pub fn user(uid: u32) -> User {
    static NAMES: OnceLock<BTreeMap<u32, String>> = OnceLock::new();
    let names = NAMES.get_or_init(|| {
        let is_mapped = mapped_uids();
        let entries = read().unwrap_or_default().into_iter().filter(|entry| is_mapped(entry.uid));
        // The first entry of a number counts, as in getpwuid(3).
        entries.rev().map(|entry| (entry.uid, entry.name)).collect()
    });
    User { uid, name: names.get(&uid).cloned() }
}

/// Parses lines of the form `name:password:uid:gid:comment:home:shell`. Lines of another form are skipped.
#[must_use]
pub fn parse(bytes: &[u8]) -> Vec<Entry> {
    let entry = |line: &[u8]| {
        let mut fields = line.split(|byte| *byte == b':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let mut number = |skip| str::from_utf8(fields.nth(skip)?).ok()?.parse().ok();
        Some(Entry { name: text_of(name), uid: number(1)?, gid: number(0)? })
    };
    bytes.split(|byte| *byte == b'\n').filter_map(entry).collect()
}

/// Tests whether a number is a user of this user namespace. The kernel reports the users of others as the overflow uid (65534
/// by default, user_namespaces(7)), which has a name of its own in /etc/passwd.
fn mapped_uids() -> impl Fn(u32) -> bool {
    let map = retry(|| file::read(Path::new("/proc/self/uid_map"), MOST));
    // A kernel without user namespaces has no such file.
    let absent = map.as_ref().is_err_and(|error| Refusal::of(error) == Refusal::Absent);
    move |uid| map.as_ref().map_or(absent, |map| maps(map, uid))
}

/// Whether a line `first-inside first-outside count` has the number.
fn maps(map: &[u8], uid: u32) -> bool {
    let line = |line: &str| {
        let mut numbers = line.split_ascii_whitespace().map(str::parse::<u64>);
        let (Some(Ok(first)), Some(Ok(_)), Some(Ok(count))) = (numbers.next(), numbers.next(), numbers.next()) else {
            return false;
        };
        (first..first.saturating_add(count)).contains(&uid.into())
    };
    str::from_utf8(map).is_ok_and(|map| map.lines().any(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entries_of_passwd_have_a_name_a_user_and_a_group() {
        let entry = |name: &str, uid, gid| Entry { name: name.into(), uid, gid };
        let text = b"root:x:0:0:root:/root:/bin/sh\n+::::::\nbroken\nx:y:z:1::\nw\xff:x:33:34::/:/x\nlast::7:8";
        assert_eq!(parse(text), [entry("root", 0, 0), entry(r"w\xff", 33, 34), entry("last", 7, 8)]);
    }

    #[test]
    fn a_user_that_is_not_of_this_namespace_has_no_name() {
        assert!(maps(b"         0          0 4294967295\n", 65534));
        assert!(maps(b"0 1000 1\n1 100000 65536\n", 65534));
        assert!(!maps(b"0 1000 1\n", 65534) && maps(b"0 1000 1\n", 0) && !maps(b"", 0));
    }
}
