//! Checks whether a UDP socket uses a port (/proc/net/udp and udp6, proc_pid_net(5)).

use std::fs::File;
use std::io::{self, BufRead, BufReader};

use super::errno::{if_visible, retry};
use crate::model::port::Port;

/// Whether a UDP socket in the calling thread's network namespace is bound to the port. A file that does not exist (udp6 without IPv6) or
/// that the caller may not read is skipped.
pub fn has_port(port: Port) -> io::Result<bool> {
    for name in ["udp", "udp6"] {
        let path = format!("/proc/thread-self/net/{name}");
        let failed = |error: io::Error| io::Error::new(error.kind(), format!("{path}: {error}"));
        let Some(file) = if_visible(retry(|| File::open(&path))).map_err(failed)? else { continue };
        for line in BufReader::new(file).lines().skip(1) {
            if local_port(&line.map_err(failed)?) == Some(port) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Parses the local port, which is in the second field of a line: `0100007F:1F90`.
fn local_port(line: &str) -> Option<Port> {
    let (_, port) = line.split_whitespace().nth(1)?.split_once(':')?;
    u16::from_str_radix(port, 16).ok().map(Port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_local_port_is_read_and_not_the_remote_one() {
        let line =
            " 3010: 0100007F:1F90 0200007F:0035 07 00000000:00000000 00:00000000 00000000     0        0 16 2 0 0";
        assert_eq!(local_port(line), Some(Port(8080)));
        assert_eq!(local_port(""), None);
    }
}
