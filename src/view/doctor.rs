//! Prints the checks of `twtool doctor`, as a page or as JSON.

use std::io::{self, Write};

use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};

use super::human;
use super::json::{self, Envelope};
use super::steps::{self, StepRecord, SysctlLineRecord};
use super::style::{Meaning, TextStyle};
use crate::analysis::doctor::{Check, Datum, Status};

/// The maximum length in characters of a value on the page. Longer values are cut; JSON has the full value.
const LONGEST_VALUE: usize = 36;

/// The width of the lines that list checks with status ok, if the output is not a terminal.
const PIPE_WIDTH: usize = 100;

const INDENT: &str = "         ";

impl Serialize for Datum {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Unknown => serializer.serialize_none(),
            Self::Number(number) => serializer.serialize_i128(*number),
            Self::Text(text) => serializer.serialize_str(text),
            Self::List(items) => {
                let mut list = serializer.serialize_seq(Some(items.len()))?;
                items.iter().try_for_each(|item| list.serialize_element(item))?;
                list.end()
            }
            Self::Record(fields) => OrderedFields(fields).serialize(serializer),
        }
    }
}

/// A JSON object that keeps the order of its keys.
struct OrderedFields<'a>(&'a [(&'static str, Datum)]);

impl Serialize for OrderedFields<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        self.0.iter().try_for_each(|(key, value)| map.serialize_entry(key, value))?;
        map.end()
    }
}

/// A check in JSON. The order of fields is the order of keys in docs/json.md.
#[derive(serde::Serialize)]
struct CheckRecord<'a> {
    id: &'static str,
    status: &'static str,
    value: &'a Datum,
    default: &'a Datum,
    does: &'static str,
    does_not: &'static str,
    finding: Option<&'a str>,
    evidence: OrderedFields<'a>,
    commands: Vec<StepRecord<'a>>,
    lasting: Vec<SysctlLineRecord<'a>>,
    advice: &'a [String],
    sources: &'static [&'static str],
}

impl<'a> CheckRecord<'a> {
    fn new(check: &'a Check) -> Self {
        Self {
            id: check.subject.id,
            status: check.status.name(),
            value: &check.value,
            default: &check.default,
            does: check.subject.does,
            does_not: check.subject.does_not,
            finding: check.finding.as_deref(),
            evidence: OrderedFields(&check.evidence),
            commands: StepRecord::all(&check.help.commands),
            lasting: SysctlLineRecord::all(&check.help.sysctl_lines),
            advice: &check.help.advice,
            sources: check.subject.sources,
        }
    }
}

/// Writes the JSON document.
pub fn document(out: &mut (dyn Write + Send), envelope: Envelope, checks: &[Check]) -> io::Result<()> {
    #[derive(serde::Serialize)]
    struct Payload<'a> {
        checks: Vec<CheckRecord<'a>>,
    }
    json::document(out, envelope, Payload { checks: checks.iter().map(CheckRecord::new).collect() })
}

/// Writes one JSON record per check.
pub fn ndjson(out: &mut (dyn Write + Send), checks: &[Check]) -> io::Result<()> {
    checks.iter().try_for_each(|check| json::line(out, &CheckRecord::new(check)))
}

const fn meaning(status: Status) -> Meaning {
    match status {
        Status::Warning => Meaning::Bad,
        Status::Unknown => Meaning::Caution,
        Status::Note => Meaning::Heading,
        Status::Ok => Meaning::Good,
    }
}

/// Writes the page: the number of checks per status, then warnings, unknown checks and notes. Last come the names and values of the
/// checks with status ok, in a few lines, so that a warning stays visible on a small screen. With `verbose`, explains every check and
/// names its sources.
pub fn page(out: &mut (dyn Write + Send), checks: &[Check], verbose: bool, style: TextStyle) -> io::Result<()> {
    let of = |status| checks.iter().filter(move |check| check.status == status);
    let counted = |status: Status| {
        let count = of(status).count();
        let word = if count == 1 || !matches!(status, Status::Warning | Status::Note) { "" } else { "s" };
        (count > 0 || status == Status::Warning).then(|| format!("{count} {}{word}", status.name()))
    };
    let counts: Vec<String> = Status::ALL.into_iter().filter_map(counted).collect();
    writeln!(out, "{}", style.paint(Meaning::Heading, counts.join(", ")))?;
    if verbose {
        return Status::ALL.into_iter().flat_map(of).try_for_each(|check| {
            writeln!(out)?;
            write_explanation(out, check, style)
        });
    }
    for status in [Status::Warning, Status::Unknown, Status::Note] {
        for check in of(status) {
            writeln!(out)?;
            write_check(out, check, style)?;
        }
    }
    let fine: Vec<String> = of(Status::Ok).map(subject).collect();
    if fine.is_empty() {
        return Ok(());
    }
    writeln!(out)?;
    let first = format!("{:<width$}", Status::Ok.name(), width = INDENT.len());
    human::break_lines(out, &fine.join(", "), &first, INDENT, style.width.or(Some(PIPE_WIDTH)))
}

fn write_check(out: &mut (dyn Write + Send), check: &Check, style: TextStyle) -> io::Result<()> {
    heading(out, check, style)?;
    if let Some(finding) = &check.finding {
        human::break_lines(out, finding, INDENT, INDENT, style.width)?;
    }
    steps::write(out, &check.help, INDENT, style)
}

/// Writes the status, name and value of a check: `warning  close_wait = 3`.
fn heading(out: &mut (dyn Write + Send), check: &Check, style: TextStyle) -> io::Result<()> {
    let status = format!("{:<width$}", check.status.name(), width = INDENT.len() - 2);
    writeln!(out, "{}  {}", style.paint(meaning(check.status), status), human::escape(&subject(check)))
}

/// Formats the name and the value of a check, and the kernel's default if it is different: `tcp_fin_timeout = 30 (default 60)`.
fn subject(check: &Check) -> String {
    let id = check.subject.id;
    match (short_text(&check.value), short_text(&check.default)) {
        // If a check is ok and has no value, this kernel does not have the setting.
        (None, _) if check.status == Status::Ok => format!("{id} absent"),
        (None, _) => id.to_owned(),
        (Some(value), Some(default)) if value != default => format!("{id} = {value} (default {default})"),
        (Some(value), _) => format!("{id} = {value}"),
    }
}

fn write_explanation(out: &mut (dyn Write + Send), check: &Check, style: TextStyle) -> io::Result<()> {
    write_check(out, check, style)?;
    let under = format!("{INDENT}  ");
    let mut line =
        |title: &str, text: &str| human::break_lines(out, text, &format!("{INDENT}{title}: "), &under, style.width);
    line("does", check.subject.does)?;
    line("does not", check.subject.does_not)?;
    line("sources", &check.subject.sources.join("; "))
}

/// Formats a value as a short text; `None` for an unknown value and for a record.
fn short_text(datum: &Datum) -> Option<String> {
    let text = match datum {
        Datum::Unknown | Datum::Record(_) => return None,
        Datum::Number(number) => number.to_string(),
        Datum::Text(text) => text.clone(),
        Datum::List(items) if items.is_empty() => "none".into(),
        Datum::List(items) => return Some(short_list(items)),
    };
    let cut = text.chars().count() > LONGEST_VALUE;
    Some(if cut { text.chars().take(LONGEST_VALUE - 3).chain("...".chars()).collect() } else { text })
}

/// Lists as many items as fit, followed by the number of the others.
fn short_list(items: &[Datum]) -> String {
    let texts: Vec<String> = items.iter().filter_map(short_text).collect();
    let shortened = |shown: usize| match texts.len() - shown {
        0 => texts.join(","),
        more => format!("{} and {more} more", texts[..shown].join(",")),
    };
    let fits = |shown: &usize| shortened(*shown).chars().count() <= LONGEST_VALUE;
    // Each item takes at least one character, so at most this many items can fit.
    let most = texts.len().min(LONGEST_VALUE);
    shortened((1..=most).rev().find(fits).unwrap_or(most.min(1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::doctor::Subject;
    use crate::model::command::{Step, Suggestions};

    #[test]
    fn a_long_list_is_cut_and_shows_the_number_of_the_other_items() {
        let list =
            |texts: &[&str]| short_text(&Datum::List(texts.iter().map(|text| Datum::Text((*text).into())).collect()));
        assert_eq!(list(&[]).as_deref(), Some("none"));
        assert_eq!(list(&["8080", "9000-9010"]).as_deref(), Some("8080,9000-9010"));
        let long = ["10000-10001", "20000-20001", "30000-30001", "40000-40001"];
        assert_eq!(list(&long).as_deref(), Some("10000-10001,20000-20001 and 2 more"));
    }

    #[test]
    fn a_command_is_printed_on_one_line_even_on_a_narrow_terminal() {
        let line = "sysctl -w net.ipv4.tcp_max_tw_buckets=40000";
        let subject = Subject { id: "id", does: "does", does_not: "not", sources: &["RFC 9293"] };
        let check = Check {
            status: Status::Warning,
            finding: Some("A finding of several words.".into()),
            help: Suggestions {
                commands: vec![Step { command: line.into(), purpose: "do a thing".into(), obstacle: None }],
                advice: vec!["And some more words.".into()],
                ..Suggestions::default()
            },
            ..Check::ok(subject, Datum::Unknown, Datum::Unknown)
        };
        let mut out = vec![];
        let style = TextStyle { color: false, width: Some(24), unicode: false };
        page(&mut out, &[check], false, style).expect("written");
        let text = String::from_utf8(out).expect("text");
        assert!(text.contains(&format!("         Do a thing:\n           {line}\n         And some")), "{text}");
        assert!(text.lines().all(|text| text.contains(line) || text.len() <= 24), "{text}");
    }

    #[test]
    fn escape_sequences_in_values_and_findings_do_not_reach_the_terminal() {
        let subject = Subject { id: "id", does: "does", does_not: "not", sources: &["RFC 9293"] };
        let value = Datum::Text("\u{1b}[31m".into());
        let check = Check {
            value,
            finding: Some("evil\u{1b}[2J pid 7".into()),
            ..Check::ok(subject, Datum::Unknown, Datum::Unknown)
        };
        for (verbose, status) in [(false, Status::Note), (false, Status::Ok), (true, Status::Ok)] {
            let mut out = vec![];
            let style = TextStyle { color: false, width: None, unicode: false };
            page(&mut out, &[Check { status, ..check.clone() }], verbose, style).expect("written");
            assert!(!out.contains(&0x1b), "{}", String::from_utf8_lossy(&out));
        }
    }
}
