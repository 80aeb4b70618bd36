//! Draws an experiment as a ladder diagram: the client on the left, the server on the right, and the time from top to bottom.
//!
//! There are two layouts:
//!
//! - Scenarios about segments: a segment is an arrow between two states, as in the figures of RFC 9293: the state of the sender while
//!   the segment was under way, and the state of the receiver after the segment arrived. Routine segments share one line, and other
//!   routine events are left out.
//! - Scenarios about the results of system calls: one line per call. Routine segments are left out, and other segments are one line of
//!   text. `reuse` ends with a matrix of its results.

use std::io::{self, Write};

use unicode_width::UnicodeWidthStr;

use super::human;
use super::style::{Meaning, TextStyle};
use crate::model::bind::Errno;
use crate::model::experiment::{
    Actor, Comparison, Fate, LabEvent, LabEventKind, ReturnValue, Scenario, Segment, Side, States,
};
use crate::model::socket::TcpState;

/// Widths in characters: the page, the time, a state, and an arrow.
const WIDTH: usize = 80;
const TIME: usize = 5;
const STATE: usize = 15;
const ARROW: usize = WIDTH - TIME - 2 * STATE - 3;

/// Widths in characters in the matrix of the scenario `reuse`: the heading of a row, and a cell.
const OPTIONS: usize = 15;
const CELL: usize = 13;

const INDENT: &str = "      ";

#[derive(Clone, Copy)]
struct Strokes {
    line: &'static str,
    late: &'static str,
    right: &'static str,
    left: &'static str,
    lost: &'static str,
    good: &'static str,
    bad: &'static str,
}

const UNICODE: Strokes =
    Strokes { line: "─", late: "╌", right: "▶", left: "◀", lost: "✗", good: "✓", bad: "✗" };
const ASCII: Strokes = Strokes { line: "-", late: ".", right: ">", left: "<", lost: "X", good: "ok", bad: "NO" };

/// Draws the events of an experiment as a ladder diagram.
pub struct Ladder {
    style: TextStyle,
    strokes: Strokes,
    parts: u32,
    /// The flags of segments that are not drawn yet.
    folded: Vec<String>,
    /// Whether the last line was an arrow. In this case, an empty line precedes the next call or observation.
    arrow: bool,
    /// The last routine segment ([`LabEvent::routine`]) that is not drawn yet.
    before: Option<LabEvent>,
    /// The current row of the matrix.
    row: Option<String>,
    /// Whether the results of this part have begun. An empty line precedes only the first result.
    checks_begun: bool,
}

impl Ladder {
    /// Writes the heading of the page.
    pub fn begin(out: &mut dyn Write, scenario: Scenario, kernel: &str, style: TextStyle) -> io::Result<Self> {
        let title = format!("{}: {}", scenario.name(), scenario.title());
        writeln!(out, "{}", style.paint(Meaning::Heading, title))?;
        let both = "both ends use this kernel, each in its own network namespace; twtool carries the segments";
        let one = "in a private network namespace";
        let setting = if scenario.is_about_segments() { both } else { one };
        aside(out, style, &format!("On this kernel ({kernel}); {setting}."), "")?;
        let strokes = if style.unicode { UNICODE } else { ASCII };
        Ok(Self {
            style,
            strokes,
            parts: 0,
            folded: vec![],
            arrow: false,
            before: None,
            row: None,
            checks_begun: false,
        })
    }

    /// Draws an event.
    pub fn event(&mut self, out: &mut dyn Write, event: &LabEvent) -> io::Result<()> {
        if !event.scenario.is_about_segments() {
            if let LabEventKind::Segment { segment, .. } = &event.kind {
                self.folded.extend((!event.routine).then(|| segment.flags.to_string()));
                return Ok(());
            }
            self.unfold(out)?;
        }
        if event.routine && !matches!(event.kind, LabEventKind::Comparison(_)) {
            if let LabEventKind::Segment { segment, .. } = &event.kind {
                self.folded.push(segment.flags.to_string());
                self.before = Some(event.clone());
            }
            return Ok(());
        }
        if let Some(last) = self.before.take() {
            self.routine(out, &last)?;
            self.arrow = true;
        }
        let arrow = matches!(event.kind, LabEventKind::Segment { .. });
        if std::mem::replace(&mut self.arrow, arrow)
            && matches!(event.kind, LabEventKind::Call { .. } | LabEventKind::Observation)
        {
            writeln!(out)?;
        }
        match &event.kind {
            LabEventKind::Part => self.part(out, event)?,
            LabEventKind::Call { call, outcome } => {
                let result = match outcome {
                    ReturnValue::Failed(errno) => format!("{call} = {}", errno.name()),
                    ReturnValue::Read(data) if data.is_empty() => format!("{call} = \"\" (the end)"),
                    ReturnValue::Read(data) => format!("{call} = \"{data}\""),
                    ReturnValue::Value(value) => format!("{call} = {value}"),
                    ReturnValue::Done => call.clone(),
                };
                self.call(out, event, &result, outcome.errno())?;
            }
            LabEventKind::Segment { segment, fate } => self.segment(out, event, segment, *fate)?,
            LabEventKind::Observation if !event.scenario.is_about_segments() => {
                let timer = event.timer.map_or("none".into(), human::duration);
                self.call(out, event, &format!("shortest remaining time of all buckets = {timer}"), None)?;
            }
            LabEventKind::Observation => self.states(out, event)?,
            LabEventKind::Comparison(check) if event.scenario == Scenario::Reuse => return self.cell(out, check),
            LabEventKind::Comparison(check) => return self.check(out, check),
            LabEventKind::Waiting(_) => return Ok(()),
        }
        match &event.note {
            Some(note) if event.kind != LabEventKind::Part => aside(out, self.style, note, INDENT),
            _ => Ok(()),
        }
    }

    /// Writes how many results were as expected.
    pub fn end(&mut self, out: &mut dyn Write, checks: &[Comparison]) -> io::Result<()> {
        self.unfold(out)?;
        let wrong = checks.iter().filter(|check| !check.agrees).count();
        let all = checks.len();
        writeln!(out)?;
        if wrong == 0 {
            let text = format!("This kernel behaved as expected in all {all} points.");
            writeln!(out, "{}", self.style.paint(Meaning::Good, text))
        } else {
            let text = format!("A finding: this kernel behaved differently than expected in {wrong} of {all} points.");
            writeln!(out, "{}", self.style.paint(Meaning::Bad, text))
        }
    }

    fn part(&mut self, out: &mut dyn Write, event: &LabEvent) -> io::Result<()> {
        self.parts += 1;
        self.checks_begun = false;
        writeln!(out)?;
        // Each part of the scenario `reuse` is a row of the matrix, so it has no title.
        if event.scenario != Scenario::Reuse {
            let title = format!("{}. {}", self.parts, event.part);
            writeln!(out, "{}", self.style.paint(Meaning::Heading, title))?;
        }
        if let Some(note) = &event.note {
            aside(out, self.style, note, "   ")?;
        }
        if event.scenario.is_about_segments() {
            writeln!(out)?;
            let head = format!("{:>TIME$} {:<STATE$} {:ARROW$} {:>STATE$}", "ms", "CLIENT", "", "SERVER");
            writeln!(out, "{}", self.style.paint(Meaning::Heading, head))?;
        }
        Ok(())
    }

    fn call(&self, out: &mut dyn Write, event: &LabEvent, text: &str, errno: Option<Errno>) -> io::Result<()> {
        let time = event.since.as_millis();
        let text = human::escape(text);
        let painted = |text: &str| match errno {
            Some(_) => self.style.paint(Meaning::Bad, text.to_owned()).to_string(),
            None => text.to_owned(),
        };
        let room = WIDTH - TIME - 1;
        if !event.scenario.is_about_segments() {
            let said = match event.states {
                Some(_) => format!("{text}: {}", states_in_words(event)),
                None => text.into_owned(),
            };
            let mut lines = vec![];
            human::break_lines(&mut lines, &said, &format!("{:<6}  ", event.actor.name()), "        ", Some(room))?;
            let lines: Vec<&str> = str::from_utf8(&lines).unwrap_or_default().lines().collect();
            return writeln!(out, "{time:>TIME$} {}", painted(&lines.join("\n      ")));
        }
        let blank = match event.actor {
            Actor::Side(Side::Client) => 0,
            Actor::Side(Side::Server) => room.saturating_sub(text.width()),
            Actor::Lab => room.saturating_sub(text.width() + 4) / 2,
        };
        let text = match event.actor {
            Actor::Side(_) => painted(&text),
            Actor::Lab => self.style.paint(Meaning::Caution, format!("[ {text} ]")).to_string(),
        };
        writeln!(out, "{time:>TIME$} {:blank$}{text}", "")?;
        if event.states.is_some() { self.states(out, event) } else { Ok(()) }
    }

    fn segment(&self, out: &mut dyn Write, event: &LabEvent, segment: &Segment, fate: Fate) -> io::Result<()> {
        let Strokes { line, late, right, left, lost, .. } = self.strokes;
        let ack = segment.ack.map(|ack| format!(" ack {ack}")).unwrap_or_default();
        let payload = String::from_utf8_lossy(&segment.payload);
        let payload = if payload.is_empty() { String::new() } else { format!(" \"{}\"", human::escape(&payload)) };
        let end = if fate == Fate::Lost { " lost" } else { "" };
        let text = format!("{} seq {}{ack}{payload}{end}", segment.flags, segment.seq);
        let stroke = if fate == Fate::Late { late } else { line };
        // The arrow of a lost segment ends before the other side.
        let gap = if fate == Fate::Lost { 4 } else { 0 };
        let strokes = ARROW.saturating_sub(text.width() + 3 + gap);
        let (near, far) = (strokes / 2, strokes - strokes / 2);
        let head = |arrow: &'static str| if fate == Fate::Lost { lost } else { arrow };
        let meaning = match fate {
            _ if segment.flags.rst => Meaning::Bad,
            Fate::Lost => Meaning::Bad,
            Fate::Late => Meaning::Caution,
            Fate::Arrived => Meaning::Heading,
        };
        let text = self.style.paint(meaning, text);
        let arrow = match segment.from {
            Side::Client => {
                format!("{} {text} {}{}{:gap$}", stroke.repeat(near), stroke.repeat(far), head(right), "")
            }
            Side::Server => {
                format!("{:gap$}{}{} {text} {}", "", head(left), stroke.repeat(near), stroke.repeat(far))
            }
        };
        let (client, server) = self.state_texts(event);
        let line = format!("{:>TIME$} {client} {arrow} {server}", event.since.as_millis());
        // Trim the blanks at the end of the line: an unknown state is blank, and the arrow of a lost segment ends with blanks.
        writeln!(out, "{}", line.trim_end())
    }

    /// Draws the routine segments that are not drawn yet in one line, with the states after the last of them.
    fn routine(&mut self, out: &mut dyn Write, last: &LabEvent) -> io::Result<()> {
        let Strokes { line, left, right, .. } = self.strokes;
        let folded = std::mem::take(&mut self.folded);
        let text = match folded.len() {
            0..=3 => folded.join(", "),
            count => format!("{count} segments as before"),
        };
        let strokes = ARROW.saturating_sub(text.len() + 4);
        let (near, far) = (line.repeat(strokes / 2), line.repeat(strokes - strokes / 2));
        let (client, server) = self.state_texts(last);
        writeln!(out, "{:>TIME$} {client} {left}{near} {text} {far}{right} {server}", last.since.as_millis())
    }

    fn states(&self, out: &mut dyn Write, event: &LabEvent) -> io::Result<()> {
        let (client, server) = self.state_texts(event);
        writeln!(out, "{:TIME$} {client} {:ARROW$} {server}", "", "")
    }

    /// The states of both sides, padded and coloured.
    fn state_texts(&self, event: &LabEvent) -> (String, String) {
        let States { client, server } = event.states.unwrap_or_default();
        let (client_text, server_text) = plain_state_texts(event);
        let paint = |state: Option<TcpState>, text: String| match state {
            Some(TcpState::TimeWait) => self.style.paint(Meaning::Caution, text).to_string(),
            None => self.style.paint(Meaning::Aside, text).to_string(),
            Some(_) => text,
        };
        (paint(client, format!("{client_text:<STATE$}")), paint(server, format!("{server_text:>STATE$}")))
    }

    fn check(&mut self, out: &mut dyn Write, check: &Comparison) -> io::Result<()> {
        if !self.checks_begun {
            self.checks_begun = true;
            writeln!(out)?;
        }
        let (mark, meaning, said) = if check.agrees {
            (self.strokes.good, Meaning::Good, check.observed.clone())
        } else {
            (self.strokes.bad, Meaning::Bad, format!("expected {}; observed {}", check.expected, check.observed))
        };
        let line = format!("{}: {said}", check.what);
        let mut text = vec![];
        human::break_lines(&mut text, &line, "", "     ", Some(WIDTH - 1 - mark.width()))?;
        write!(out, "{} {}", self.style.paint(meaning, mark), String::from_utf8_lossy(&text))
    }

    /// Writes one cell of the matrix. `part` (the options of the old socket) selects the row, and `what` (the options of the
    /// new socket) the column.
    fn cell(&mut self, out: &mut dyn Write, check: &Comparison) -> io::Result<()> {
        if !self.checks_begun {
            self.checks_begun = true;
            writeln!(out)?;
            let new = format!("{:CELL$} {:CELL$} {:CELL$} both", "no option", "SO_REUSEADDR", "SO_REUSEPORT");
            for head in [format!("  {:OPTIONS$} NEW SOCKET SETS", "OLD SOCKET HAD"), format!("  {:OPTIONS$} {new}", "")]
            {
                writeln!(out, "{}", self.style.paint(Meaning::Heading, head))?;
            }
        }
        if self.row.as_ref() != Some(&check.part) {
            self.row = Some(check.part.clone());
            let part = if check.part.contains(" and ") { "both" } else { &check.part };
            write!(out, "  {part:<OPTIONS$}")?;
        }
        let meaning = match check.observed.as_str() {
            _ if !check.agrees => Meaning::Bad,
            "ok" => Meaning::Good,
            _ => Meaning::Aside,
        };
        let mark = if check.agrees { "" } else { self.strokes.bad };
        let text = format!("{}{mark}", check.observed);
        let padding = if check.what.contains(" and ") { 0 } else { CELL.saturating_sub(text.width()) };
        let end = if padding == 0 { "\n" } else { "" };
        write!(out, " {}{:padding$}{end}", self.style.paint(meaning, text), "")
    }

    /// Writes a line with the segments of the previous calls.
    fn unfold(&mut self, out: &mut dyn Write) -> io::Result<()> {
        let folded = std::mem::take(&mut self.folded);
        if folded.is_empty() {
            return Ok(());
        }
        aside(out, self.style, &format!("on the wire: {}", folded.join(", ")), INDENT)
    }
}

/// The states of both sides as text. TIME_WAIT also has its remaining time.
fn plain_state_texts(event: &LabEvent) -> (String, String) {
    let States { client, server } = event.states.unwrap_or_default();
    let text = |state: Option<TcpState>| match (state, event.timer) {
        (Some(TcpState::TimeWait), Some(timer)) => format!("time-wait {}", human::duration(timer)),
        (Some(state), _) => state.name().to_owned(),
        (None, _) if event.states.is_none() => String::new(),
        (None, _) => "gone".to_owned(),
    };
    (text(client), text(server))
}

fn states_in_words(event: &LabEvent) -> String {
    let (client, server) = plain_state_texts(event);
    format!("client {}, server {}", client.trim(), server.trim())
}

/// Writes a dimmed note, wrapped to the page.
fn aside(out: &mut dyn Write, style: TextStyle, text: &str, indent: &str) -> io::Result<()> {
    let mut lines = vec![];
    human::break_lines(&mut lines, text, indent, indent, Some(WIDTH))?;
    let lines = String::from_utf8_lossy(&lines).into_owned();
    lines.lines().try_for_each(|line| writeln!(out, "{}", style.paint(Meaning::Aside, line)))
}

/// Writes the list of scenarios.
pub fn list(out: &mut dyn Write, style: TextStyle) -> io::Result<()> {
    let width = Scenario::ALL.iter().map(|scenario| scenario.name().len()).max().unwrap_or_default();
    Scenario::ALL.iter().try_for_each(|scenario| {
        let name = style.paint(Meaning::Heading, format!("{:<width$}", scenario.name()));
        writeln!(out, "{name}  {}", scenario.title())
    })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::model::experiment::Flags;

    const STYLE: TextStyle = TextStyle { color: false, width: None, unicode: false };

    fn event(kind: LabEventKind, actor: Actor, states: Option<States>) -> LabEvent {
        LabEvent {
            scenario: Scenario::LostAck,
            part: "A part".into(),
            step: 1,
            since: Duration::from_millis(1234),
            routine: false,
            actor,
            kind,
            states,
            timer: Some(Duration::from_millis(59_999)),
            note: None,
        }
    }

    fn fin(from: Side, fate: Fate, payload: &[u8]) -> LabEvent {
        let flags = Flags { fin: true, ack: true, ..Flags::default() };
        let segment = Segment {
            from,
            flags,
            seq: 1,
            ack: Some(2),
            raw_seq: 1001,
            raw_ack: Some(7),
            payload: payload.to_vec(),
            at: SystemTime::UNIX_EPOCH,
            frame: vec![],
        };
        let states = States { client: Some(TcpState::LastAck), server: Some(TcpState::TimeWait) };
        event(LabEventKind::Segment { segment, fate }, Actor::Side(from), Some(states))
    }

    fn drawn(events: &[LabEvent]) -> Vec<String> {
        let mut out = vec![];
        let mut ladder = Ladder::begin(&mut out, Scenario::LostAck, "6.18", STYLE).expect("written");
        out.clear();
        for event in events {
            ladder.event(&mut out, event).expect("written");
        }
        String::from_utf8(out).expect("text").lines().map(str::to_owned).collect()
    }

    #[test]
    fn the_arrow_of_a_lost_segment_ends_before_the_receiver() {
        let lines = drawn(&[
            fin(Side::Client, Fate::Arrived, b""),
            fin(Side::Server, Fate::Arrived, b""),
            fin(Side::Client, Fate::Lost, b""),
            fin(Side::Server, Fate::Late, b"a\x1b"),
        ]);
        let expected = [
            " 1234 last-ack        ---------- FIN ACK seq 1 ack 2 ----------> time-wait 59.9s",
            " 1234 last-ack        <---------- FIN ACK seq 1 ack 2 ---------- time-wait 59.9s",
            " 1234 last-ack        ----- FIN ACK seq 1 ack 2 lost ------X     time-wait 59.9s",
            r#" 1234 last-ack        <..... FIN ACK seq 1 ack 2 "a\u{1b}" ..... time-wait 59.9s"#,
        ];
        assert_eq!(lines, expected);
        assert!(lines.iter().all(|line| line.width() == WIDTH));
    }

    #[test]
    fn the_line_of_a_lost_segment_without_states_has_no_blanks_at_the_end() {
        let lost = LabEvent { states: None, ..fin(Side::Client, Fate::Lost, b"") };
        let [line] = &drawn(&[lost])[..] else { panic!("one line") };
        assert!(line.ends_with("lost ------X"), "{line:?}");
    }

    #[test]
    fn a_call_is_drawn_on_the_side_of_its_caller() {
        let call = |actor| {
            let outcome = ReturnValue::Failed(Errno::Other("ECONNRESET"));
            event(LabEventKind::Call { call: "read()".into(), outcome }, actor, None)
        };
        let lines = drawn(&[call(Actor::Side(Side::Client)), call(Actor::Side(Side::Server)), call(Actor::Lab)]);
        assert_eq!(lines[0], " 1234 read() = ECONNRESET");
        assert_eq!(lines[1].width(), WIDTH);
        assert!(lines[1].ends_with("   read() = ECONNRESET"));
        assert!(lines[2].ends_with("[ read() = ECONNRESET ]"));
    }
}
