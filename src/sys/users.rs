//! Reads the names of users from /etc/passwd (passwd(5)). twtool parses the file itself, because a static binary must not load the
//! modules of nsswitch.conf(5). So twtool shows only the uid of a user who is defined in LDAP or another service.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::OnceLock;

use super::errno::retry;
use super::file;
use super::user_namespace::is_certain;
use crate::model::name::text_of;
use crate::model::user::User;

/// The maximum size of the file in bytes.
const MAX_BYTES: u64 = 4 << 20;

/// An entry of /etc/passwd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name.
    pub name: String,
    /// The uid.
    pub uid: u32,
    /// The gid of the primary group.
    pub gid: u32,
}

/// Reads the entries of /etc/passwd.
///
/// # Errors
/// The file cannot be read, or is too long.
pub fn read() -> io::Result<Vec<Entry>> {
    Ok(parse(&retry(|| file::read(Path::new("/etc/passwd"), MAX_BYTES))?))
}

/// Returns the user with this uid; `None` if the kernel reports this uid for several users. The name is unknown if /etc/passwd has no
/// entry for the uid or cannot be read.
#[must_use]
pub fn user(uid: u32) -> Option<User> {
    static NAMES: OnceLock<BTreeMap<u32, String>> = OnceLock::new();
    let names = NAMES.get_or_init(|| {
        // If several entries have the same uid, the first one counts, as in getpwuid(3).
        read().unwrap_or_default().into_iter().rev().map(|entry| (entry.uid, entry.name)).collect()
    });
    is_certain(uid).then(|| User { uid, name: names.get(&uid).cloned() })
}

/// Parses lines that begin with `name:password:uid:gid` (passwd(5)). Other lines are skipped.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_passwd_are_parsed_and_other_lines_are_skipped() {
        let entry = |name: &str, uid, gid| Entry { name: name.into(), uid, gid };
        let text = b"root:x:0:0:root:/root:/bin/sh\n+::::::\nbroken\nx:y:z:1::\nw\xff:x:33:34::/:/x\nlast::7:8";
        assert_eq!(parse(text), [entry("root", 0, 0), entry(r"w\xff", 33, 34), entry("last", 7, 8)]);
    }
}
