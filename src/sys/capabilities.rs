//! The capabilities of the calling thread (capabilities(7), proc_pid_status(5)).

use std::fs;

use crate::model::health::Capabilities;

/// Its effective set; `None` where it cannot be read.
#[must_use]
pub fn effective() -> Option<Capabilities> {
    parse(&fs::read_to_string("/proc/thread-self/status").ok()?)
}

/// The hexadecimal mask of the line `CapEff:`.
fn parse(status: &str) -> Option<Capabilities> {
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(mask.trim(), 16).ok().map(Capabilities)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_set_is_read_and_no_other() {
        let status = "Name:\tsh\nCapPrm:\t0000000000003000\nCapEff:\t0000000000001000\nCapBnd:\t000001ffffffffff\n";
        assert_eq!(parse(status), Some(Capabilities(0x1000)));
        assert_eq!(parse("Name:\tsh\n"), None);
        assert_eq!(parse("CapEff:\tx\n"), None);
    }
}
