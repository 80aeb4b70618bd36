//! Prints the result of a wait for a port as text or JSON, and its status line on a terminal.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::time::Duration;

use serde::Serialize;
use unicode_width::UnicodeWidthStr;

use super::holder::{self, HolderRecord, SetupRecord};
use super::human;
use super::json::{self, Envelope};
use super::steps::{self, StepRecord};
use super::style::{Meaning, TextStyle};
use crate::analysis::advice;
use crate::model::bind::{BindAddr, Cause, Holder, ReuseOptions, ServerSetup};
use crate::model::command::Step;
use crate::model::facts::Facts;
use crate::model::port::Port;
use crate::model::socket::Socket;
use crate::model::time::milliseconds;

/// The maximum width of the progress bar in columns.
const BAR: usize = 30;

/// The width of `^C`, which the terminal echoes behind the line at an interrupt (termios(3), ECHOCTL).
const ECHO: usize = 2;

/// The minimum width of the progress bar in columns.
const LEAST_BAR: usize = 8;

/// The state or the result of a wait.
#[derive(Clone, Copy, Debug)]
pub struct WaitReport<'a> {
    /// The facts of the network namespace.
    pub facts: &'a Facts,
    /// The port to wait for.
    pub port: Port,
    /// The addresses to bind.
    pub addrs: &'a [BindAddr],
    /// The socket options that the server sets.
    pub with: ReuseOptions,
    /// The other options of the server.
    pub setup: ServerSetup,
    /// The addresses that the server has already bound, if its sockets on these addresses block its next bind.
    pub collision: Option<&'a str>,
    /// Whether a bind works on every address.
    pub bindable: bool,
    /// Whether a bind fails for a reason that waiting does not change.
    pub denied: bool,
    /// The time since the wait began.
    pub waited: Duration,
    /// The number of bind attempts.
    pub attempts: u32,
    /// The sockets that block the bind.
    pub blocked_by: &'a [Holder],
    /// The reason why the bind fails.
    pub cause: Cause,
    /// The longest remaining time, if only buckets block the bind.
    pub remaining: Option<Duration>,
    /// Whether the binds may have erased or replaced the kernel's SO_REUSEPORT note of a server (docs/commands/bind-test.md).
    pub note_lost: bool,
    /// Suggested commands.
    pub next: &'a [Step],
}

#[derive(Serialize)]
struct Payload<'a> {
    port: u16,
    addrs: Vec<String>,
    options: Vec<&'static str>,
    r#as: SetupRecord,
    bindable: bool,
    waited_ms: u64,
    attempts: u32,
    blocked_by: Vec<HolderRecord<'a>>,
    cause: &'static str,
    note_lost: bool,
    next: Vec<StepRecord<'a>>,
}

fn payload<'a>(wait: &WaitReport<'a>) -> Payload<'a> {
    Payload {
        port: wait.port.0,
        addrs: wait.addrs.iter().map(|at| at.text(wait.facts)).collect(),
        options: wait.with.names(),
        r#as: SetupRecord::new(&wait.setup, wait.facts),
        bindable: wait.bindable,
        waited_ms: milliseconds(wait.waited),
        attempts: wait.attempts,
        blocked_by: wait.blocked_by.iter().map(|holder| HolderRecord::new(holder, wait.facts)).collect(),
        cause: wait.cause.name(),
        note_lost: wait.note_lost,
        next: StepRecord::all(wait.next),
    }
}

/// Writes the JSON document.
pub fn document(out: &mut dyn Write, envelope: Envelope, wait: &WaitReport) -> io::Result<()> {
    json::document(out, envelope, payload(wait))
}

/// Writes the state as one JSON record.
pub fn ndjson(out: &mut dyn Write, wait: &WaitReport) -> io::Result<()> {
    json::line(out, &payload(wait))
}

/// Writes the result as text.
pub fn page(out: &mut (dyn Write + Send), wait: &WaitReport, style: TextStyle) -> io::Result<()> {
    let WaitReport { facts, port, with, .. } = *wait;
    let service = facts.services.name(port).map(|name| format!(" ({})", human::escape(name))).unwrap_or_default();
    let waited = human::duration(wait.waited);
    write!(out, "port {port}{service}: ")?;
    if wait.bindable {
        writeln!(out, "{} with {with}, after {waited}", style.paint(Meaning::Good, "bindable"))
    } else if wait.denied {
        writeln!(out, "{}: {}", style.paint(Meaning::Bad, "denied"), human::escape(&obstacle(wait)))?;
        steps::write_next(out, wait.next, style)
    } else {
        let not = style.paint(Meaning::Bad, "not bindable");
        writeln!(out, "{not} with {with}, after {waited}: {}", human::escape(&obstacle(wait)))?;
        steps::write_next(out, wait.next, style)?;
        holder::write_processes(out, wait.blocked_by, style)
    }
}

/// Describes in a few words what blocks the bind. The text contains process names, so the caller must escape it.
fn obstacle(wait: &WaitReport) -> String {
    let full = || wait.blocked_by.iter().filter(|holder| matches!(holder.socket, Socket::Full(_)));
    match wait.cause {
        Cause::None => "nothing".into(),
        Cause::TimeWait | Cause::TimeWaitWithoutReuseaddr => buckets(wait),
        Cause::Listener => {
            format!("{} listens{}", advice::owner_names(of_cause(wait)), on_interfaces(of_cause(wait), wait.facts))
        }
        Cause::Connection => {
            format!(
                "{} has a connection{}",
                advice::owner_names(of_cause(wait)),
                on_interfaces(of_cause(wait), wait.facts)
            )
        }
        Cause::Bound => format!("{} has bound it{}", advice::owner_names(full()), on_interfaces(full(), wait.facts)),
        Cause::AddressNotLocal => {
            let addrs: Vec<String> = wait.addrs.iter().map(|at| at.text(wait.facts)).collect();
            format!("this network namespace does not have the address yet ({})", addrs.join(", "))
        }
        Cause::PrivilegedPort => "the port needs CAP_NET_BIND_SERVICE".into(),
        Cause::OwnSocket => {
            format!("the server's own socket on {} blocks the bind", wait.collision.unwrap_or("another address"))
        }
        Cause::FamilyUnsupported => "sockets of this address family cannot be created here".into(),
        Cause::Unknown if wait.denied => "the kernel refuses the bind".into(),
        Cause::Unknown => "a socket that this kernel does not list blocks the port".into(),
    }
}

/// ` on eth0` if every holder is bound to an interface, because the port may be free on another interface.
fn on_interfaces<'a>(holders: impl Iterator<Item = &'a Holder>, facts: &Facts) -> String {
    let names: Option<BTreeSet<String>> =
        holders.map(|holder| holder.socket.interface().map(|index| facts.interface_name(index))).collect();
    let names: Vec<String> = names.into_iter().flatten().collect();
    if names.is_empty() { String::new() } else { format!(" on {}", names.join(" and ")) }
}

/// Returns the listeners if the cause is a listener. Otherwise returns the sockets that are neither listeners nor buckets.
fn of_cause<'a>(wait: &WaitReport<'a>) -> impl Iterator<Item = &'a Holder> + Clone {
    let listeners = wait.cause == Cause::Listener;
    wait.blocked_by.iter().filter(move |holder| match holder.socket {
        Socket::Full(full) => (full.state == crate::model::socket::TcpState::Listen) == listeners,
        Socket::Bucket(_) => false,
    })
}

fn buckets(wait: &WaitReport) -> String {
    let holders = || wait.blocked_by.iter();
    let least = holders().any(|holder| matches!(holder.socket, Socket::Bucket(bucket) if bucket.fin_wait_2));
    let time = match wait.remaining {
        None => String::new(),
        Some(Duration::ZERO) => ", due: gone within seconds".into(),
        Some(left) if least => format!(", at least {} to go", human::duration(left)),
        Some(left) => format!(", {} to go", human::duration(left)),
    };
    format!("{}{time}", advice::count_buckets_by_state(holders()))
}

/// A status line on a terminal, redrawn in place and cleared at the end. For that, it uses only carriage returns and spaces, which every
/// terminal supports.
#[derive(Debug, Default)]
pub struct StatusLine {
    drawn: usize,
    /// The longest remaining time so far, which the whole bar represents.
    longest: Duration,
}

impl StatusLine {
    /// Draws the state in a terminal of `width` columns. `timeout` is the timeout of the whole wait.
    pub fn draw(&mut self, out: &mut dyn Write, wait: &WaitReport, timeout: Duration, width: usize) -> io::Result<()> {
        let left = timeout.saturating_sub(wait.waited);
        let (share, ends) = match wait.remaining {
            Some(remaining) => {
                self.longest = self.longest.max(remaining);
                let gone = self.longest.saturating_sub(remaining);
                let ends = (left < remaining).then(|| format!("; timeout in {}", human::duration(left)));
                (share(gone, self.longest), ends.unwrap_or_default())
            }
            None => (share(wait.waited, timeout), format!("; timeout in {}", human::duration(left))),
        };
        let text = format!("port {}: {}{ends}", wait.port, human::escape(&obstacle(wait)));
        // Leave room for `^C`, and leave the last column empty, because some terminals wrap after it.
        let room = width.saturating_sub(1 + ECHO);
        let mut line = human::cut(&text, room);
        let bar = room.saturating_sub(line.width() + 3).min(BAR);
        if bar >= LEAST_BAR {
            let full = bar * share / 100;
            line.extend([" [", &"#".repeat(full), &"-".repeat(bar - full), "]"]);
        }
        let blanks = self.drawn.saturating_sub(line.width()).min(room.saturating_sub(line.width()));
        self.drawn = line.width();
        out.write_all(format!("\r{line}{}", " ".repeat(blanks)).as_bytes())?;
        out.flush()
    }

    /// Clears the line if one was drawn.
    pub fn clear(&mut self, out: &mut dyn Write) -> io::Result<()> {
        let drawn = std::mem::take(&mut self.drawn);
        if drawn == 0 {
            return Ok(());
        }
        let blanks = drawn + ECHO;
        out.write_all(format!("\r{}\r", " ".repeat(blanks)).as_bytes())?;
        out.flush()
    }
}

/// The share in percent.
fn share(part: Duration, whole: Duration) -> usize {
    let share = (part.as_millis() * 100).checked_div(whole.as_millis()).unwrap_or(100);
    usize::try_from(share).unwrap_or(100).min(100)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::facts::tests::facts;
    use crate::model::process::{Owners, Process};
    use crate::model::row::Direction;
    use crate::model::row::tests::row;
    use crate::model::socket::{FullSocket, TcpState};
    use proptest::prelude::*;

    fn bucket(fin_wait_2: bool) -> Holder {
        let mut bucket = row("127.0.0.1", 80, "127.0.0.1", 40000).bucket;
        bucket.fin_wait_2 = fin_wait_2;
        Holder::of(Socket::Bucket(bucket), Direction::Unknown, true)
    }

    fn listener(comm: &str) -> Holder {
        let socket = Socket::Full(FullSocket {
            tuple: row("127.0.0.1", 80, "0.0.0.0", 0).bucket.tuple,
            state: TcpState::Listen,
            uid: 0,
            inode: None,
            interface: None,
            mark: None,
            v6only: None,
            last_ack_ms: None,
            cookie: None,
        });
        let owners = Owners::Found(vec![Process { pid: 7, comm: comm.into(), ..Process::default() }]);
        Holder { owners, ..Holder::of(socket, Direction::Unknown, true) }
    }

    fn wait<'a>(facts: &'a Facts, blocked_by: &'a [Holder], cause: Cause, remaining: Option<u64>) -> WaitReport<'a> {
        WaitReport {
            facts,
            port: Port(80),
            addrs: &[],
            with: ReuseOptions::REUSEADDR,
            setup: ServerSetup::default(),
            collision: None,
            bindable: false,
            denied: false,
            waited: Duration::from_secs(5),
            attempts: 1,
            blocked_by,
            cause,
            remaining: remaining.map(Duration::from_millis),
            note_lost: false,
            next: &[],
        }
    }

    fn drawn(line: &mut StatusLine, wait: &WaitReport, width: usize) -> String {
        let mut out = vec![];
        line.draw(&mut out, wait, Duration::from_secs(120), width).expect("written");
        String::from_utf8(out).expect("text")
    }

    const BUCKETS: Cause = Cause::TimeWaitWithoutReuseaddr;

    #[test]
    fn the_line_counts_down_and_its_bar_grows() {
        let (facts, held) = (facts(), [bucket(false)]);
        let mut line = StatusLine::default();
        let first = drawn(&mut line, &wait(&facts, &held, BUCKETS, Some(40_000)), 80);
        assert_eq!(first, format!("\rport 80: 1 TIME_WAIT socket, 40.0s to go [{}]", "-".repeat(30)));
        let later = drawn(&mut line, &wait(&facts, &held, BUCKETS, Some(9_900)), 80);
        assert_eq!(
            later,
            format!("\rport 80: 1 TIME_WAIT socket, 9.9s to go [{}{}] ", "#".repeat(22), "-".repeat(8)),
            "blanks cover the end of the longer line"
        );
        let due = drawn(&mut line, &wait(&facts, &held, BUCKETS, Some(0)), 80);
        assert!(due.contains("due: gone within seconds ["), "{due}");
        let mut out = vec![];
        line.clear(&mut out).expect("written");
        line.clear(&mut out).expect("written");
        let width = due.trim_start_matches('\r').trim_end().len() + 2;
        assert_eq!(
            String::from_utf8(out).expect("text"),
            format!("\r{}\r", " ".repeat(width)),
            "the second clear writes nothing"
        );
    }

    #[test]
    fn the_line_shows_a_timeout_that_ends_before_the_remaining_time() {
        let facts = facts();
        let held = [bucket(false), bucket(true)];
        let line = drawn(&mut StatusLine::default(), &wait(&facts, &held, BUCKETS, Some(200_000)), 120);
        assert!(
            line.contains("1 TIME_WAIT socket and 1 FIN_WAIT_2 socket, at least 3m20s to go; timeout in 1m55s ["),
            "{line}"
        );
        let held = [listener("nginx")];
        let line = drawn(&mut StatusLine::default(), &wait(&facts, &held, Cause::Listener, None), 80);
        assert!(line.starts_with("\rport 80: nginx (pid 7) listens; timeout in 1m55s [#---"), "{line}");
    }

    #[test]
    fn a_process_name_does_not_control_the_status_line() {
        let (facts, held) = (facts(), [listener("\x1b[2J\r\n")]);
        let line = drawn(&mut StatusLine::default(), &wait(&facts, &held, Cause::Listener, None), 200);
        assert!(!line[1..].contains(['\x1b', '\r', '\n']), "{line:?}");
        let mut out = vec![];
        page(
            &mut out,
            &wait(&facts, &held, Cause::Listener, None),
            TextStyle { color: false, width: None, unicode: true },
        )
        .expect("ok");
        let text = String::from_utf8(out).expect("text");
        assert!(
            text.starts_with("port 80 (http): not bindable with SO_REUSEADDR, after 5.0s: ") && !text.contains('\x1b'),
            "{text:?}"
        );
        assert_eq!(text.lines().collect::<Vec<_>>()[1..], ["", "PID  USER  COMMAND", "  7  -     -"]);
    }

    proptest! {
        #[test]
        fn no_line_is_as_wide_as_the_terminal(width in 1_usize..200, comm in "\\PC{0,15}", before in 0_usize..200) {
            let (facts, held) = (facts(), [listener(&comm)]);
            let mut line = StatusLine { drawn: before, longest: Duration::ZERO };
            let text = drawn(&mut line, &wait(&facts, &held, Cause::Listener, None), width);
            prop_assert!(text[1..].width() + 2 < width.max(3), "{:?}", text);
        }
    }
}
