//! Reads sockets from /proc/net/tcp and /proc/net/tcp6 (proc_pid_net(5)), for systems that refuse sock_diag.
//!
//! The files report less than sock_diag: timers in steps of 10 ms, no cookie, no mark, no interface, no IPV6_V6ONLY. Reading them is
//! slower, because the kernel formats each socket as text. The parser never panics.

use std::io::{self, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU32;
use std::ops::ControlFlow;
use std::path::Path;

use super::file;
use crate::model::name::text_of;
use crate::model::port::Port;
use crate::model::socket::{FourTuple, FullSocket, Socket, TcpState, TimeWaitBucket};

/// The value of the column `tr` for a timewait bucket (`get_timewait4_sock` in net/ipv4/tcp_ipv4.c).
const TIMER_TIMEWAIT: &str = "03";

/// The unit of the column `tm->when` in milliseconds: 1 / USER_HZ.
const TICK_MS: u32 = 10;

/// The maximum size of a line in bytes. The kernel pads IPv4 lines to 150 bytes (TMPSZ in net/ipv4/tcp_ipv4.c). IPv6 lines can be
/// longer, but are much shorter than this limit.
const LINE: u64 = 4096;

/// Passes every socket of both files to `each`, first the listeners of both files, then all other sockets. Ends when `each` breaks.
pub fn walk(each: &mut dyn FnMut(&Socket) -> ControlFlow<()>) -> io::Result<()> {
    let is_listener = |socket: &Socket| socket.state() == TcpState::Listen;
    let mut stopped = false;
    for (file, listeners) in [("tcp", true), ("tcp6", true), ("tcp", false), ("tcp6", false)] {
        read(file, &mut |socket| {
            if is_listener(socket) == listeners {
                let flow = each(socket);
                stopped = flow.is_break();
                return flow;
            }
            // Listeners come first in each file, so the passes for the listeners read little more than the listeners.
            if listeners { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        if stopped {
            break;
        }
    }
    Ok(())
}

fn read(file: &str, each: &mut dyn FnMut(&Socket) -> ControlFlow<()>) -> io::Result<()> {
    let path = format!("/proc/thread-self/net/{file}");
    let mut reader = match file::open(Path::new(&path)) {
        Ok(opened) => BufReader::new(opened),
        // A kernel without IPv6 has no such file.
        Err(error) if error.kind() == io::ErrorKind::NotFound && file == "tcp6" => return Ok(()),
        Err(error) => return Err(io::Error::new(error.kind(), format!("{path}: {error}"))),
    };
    let failed = |error: io::Error| io::Error::new(error.kind(), format!("{path}: {error}"));
    let mut line = vec![];
    file::read_line(&mut reader, LINE, &mut line).map_err(failed)?;
    loop {
        file::read_line(&mut reader, LINE, &mut line).map_err(failed)?;
        if line.is_empty() {
            return Ok(());
        }
        let socket = str::from_utf8(&line).ok().and_then(parse).ok_or_else(|| {
            let line = text_of(line.trim_ascii_end());
            io::Error::new(io::ErrorKind::InvalidData, format!("{path}: a line of unknown format: {line}"))
        })?;
        if each(&socket).is_break() {
            return Ok(());
        }
    }
}

/// Parses a line of /proc/net/tcp or tcp6: `sl: local remote st tx:rx tr:when retrnsmt uid timeout inode ...`.
#[must_use]
pub fn parse(line: &str) -> Option<Socket> {
    let mut words = line.split_ascii_whitespace();
    let (local, remote) = (words.nth(1)?, words.next()?);
    let state = TcpState::from_number(hex(words.next()?)?)?;
    let (timer, when) = words.nth(1)?.split_once(':')?;
    let uid = decimal(words.nth(1)?)?;
    let inode = decimal(words.nth(1)?)?;
    let (local, remote) = (end(local)?, end(remote)?);
    if local.0.is_ipv4() != remote.0.is_ipv4() {
        return None;
    }
    let tuple = FourTuple::new(local, remote);
    if timer == TIMER_TIMEWAIT {
        let fin_wait_2 = match state {
            TcpState::TimeWait => false,
            TcpState::FinWait2 => true,
            _ => return None,
        };
        let expires_ms = hex::<u32>(when)?.checked_mul(TICK_MS)?;
        return Some(Socket::Bucket(TimeWaitBucket {
            tuple,
            fin_wait_2,
            expires_ms,
            interface: None,
            mark: None,
            cookie: None,
        }));
    }
    if state == TcpState::TimeWait {
        return None;
    }
    let inode = NonZeroU32::new(inode);
    Some(Socket::Full(FullSocket {
        tuple,
        state,
        uid,
        inode,
        interface: None,
        mark: None,
        v6only: None,
        last_ack_ms: None,
        cookie: None,
    }))
}

/// Parses hexadecimal digits. Refuses a plus sign, which std accepts.
fn hex<T: TryFrom<u64>>(text: &str) -> Option<T> {
    let digits = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    u64::from_str_radix(text, 16).ok().filter(|_| digits)?.try_into().ok()
}

fn decimal(text: &str) -> Option<u32> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits)
}

/// Parses an address and a port: `0100007F:1F90`. Each 32-bit word of the address is a number in this machine's byte order.
fn end(text: &str) -> Option<(IpAddr, Port)> {
    let (addr, port) = text.split_once(':')?;
    let word = |at: usize| hex::<u32>(addr.get(at..at + 8)?).map(u32::to_ne_bytes);
    let addr = match addr.len() {
        8 => Ipv4Addr::from(word(0)?).into(),
        32 => {
            let words: Vec<[u8; 4]> = (0..32).step_by(8).map(word).collect::<Option<_>>()?;
            Ipv6Addr::from(<[u8; 16]>::try_from(words.concat()).ok()?).into()
        }
        _ => return None,
    };
    Some((addr, Port(hex(port)?)))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use proptest::prelude::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn lines_of_a_6_18_kernel_are_read() {
        let bucket =
            "   2: 0100007F:1F90 0100007F:A5B0 06 00000000:00000000 03:0000175F 00000000     0        0 0 3 00000000";
        let Some(Socket::Bucket(bucket)) = parse(bucket) else { panic!("no bucket") };
        assert_eq!((bucket.expires_ms, bucket.tuple.local_port()), (59830, Port(8080)));
        assert_eq!(bucket.tuple.local_addr().to_string(), "127.0.0.1");
        let mapped = "   0: 0000000000000000FFFF00000100007F:1538 0000000000000000FFFF00000100007F:88C6 05 00000000:00000000 \
                      03:00000001 00000000     0        0 0 3 00000000";
        let Some(Socket::Bucket(mapped)) = parse(mapped) else { panic!("no bucket") };
        assert_eq!((mapped.tuple.family.name(), mapped.fin_wait_2), ("ipv4-mapped", true));
        let listener = "   0: 00000000:01BB 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4711 1 \
                        00000000 100 0 0 10 0";
        let Some(Socket::Full(listener)) = parse(listener) else { panic!("no socket") };
        assert_eq!((listener.state, listener.uid), (TcpState::Listen, 1000));
        assert_eq!(listener.inode, NonZeroU32::new(4711));
    }

    #[test]
    fn lines_that_no_kernel_writes_are_refused() {
        let line = |local: &str, remote: &str, uid: &str| {
            format!("2: {local} {remote} 06 0:0 03:0000175F 00000000 {uid} 0 0 3 00000000")
        };
        let (v4, v6) = ("0100007F:1F90", "0000000000000000FFFF00000100007F:88C6");
        assert!(parse(&line(v4, v4, "0")).is_some() && parse(&line(v6, v6, "0")).is_some());
        // Both ends of a socket have the same family, and the kernel writes no plus sign.
        for (local, remote, uid) in [(v4, v6, "0"), (v6, v4, "0"), (v4, v4, "+0"), (v4, "0100007F:+F90", "0")] {
            assert_eq!(parse(&line(local, remote, uid)), None, "{local} {remote} {uid}");
        }
    }

    #[test]
    fn a_break_at_a_listener_ends_the_walk() {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a server");
        let _client = TcpStream::connect(server.local_addr().expect("a name")).expect("a connection");
        let mut states = vec![];
        walk(&mut |socket| {
            states.push(socket.state());
            ControlFlow::Break(())
        })
        .expect("the files can be read");
        assert_eq!(states, [TcpState::Listen]);
    }

    proptest! {
        #[test]
        fn an_arbitrary_line_never_panics(line in "[0-9A-F :ö+-]{0,160}") {
            let _ = parse(&line);
        }

        #[test]
        fn a_real_line_with_a_changed_letter_never_panics(at in 0_usize..100, letter in "[ -~ö]") {
            let mut line = "   2: 0100007F:1F90 0100007F:A5B0 06 00000000:00000000 03:0000175F 00000000     0        0 0 3 0".to_owned();
            let at = at % line.len();
            line.replace_range(at..=at, &letter);
            let _ = parse(&line);
        }
    }
}
