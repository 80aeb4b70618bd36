//! The capabilities and the user of the calling thread (capabilities(7), proc_pid_status(5)).

use std::fs;
use std::io;

use super::errno::retry;
use crate::model::health::Capabilities;

/// Its effective set.
pub fn effective() -> io::Result<Capabilities> {
    // The name of the program, which is in it, need not be UTF-8.
    let status = retry(|| fs::read("/proc/thread-self/status"))?;
    parse(&status).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it has no effective set"))
}

/// The effective user of the calling thread.
#[must_use]
pub fn effective_user() -> u32 {
    nix::unistd::geteuid().as_raw()
}

/// The hexadecimal mask of the line `CapEff:`.
#[must_use]
pub fn parse(status: &[u8]) -> Option<Capabilities> {
    let mask = status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"CapEff:"))?.trim_ascii();
    let digits = mask.iter().all(u8::is_ascii_hexdigit);
    u64::from_str_radix(str::from_utf8(mask).ok()?, 16).ok().filter(|_| digits).map(Capabilities)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_set_is_read_and_no_other() {
        let status = b"Name:\t\xff\nCapPrm:\t0000000000003000\nCapEff:\t0000000000001000\nCapBnd:\t000001ffffffffff\n";
        assert_eq!(parse(status), Some(Capabilities(0x1000)));
        assert_eq!(parse(b"Name:\tsh\n"), None);
        assert_eq!(parse(b"CapEff:\tx\n"), None);
        assert_eq!(parse(b"CapEff:\t+1\n"), None);
    }
}
