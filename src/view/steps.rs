//! Prints suggested commands, each below its purpose. A command is always one line, so that a user can copy it.

use std::borrow::Cow;
use std::io::{self, Write};

use serde::Serialize;

use super::human;
use super::style::TextStyle;
use crate::model::command::{LONGEST_LINE, Step, Suggestions, SysctlLine};

/// A command and its purpose, in JSON.
#[derive(Serialize)]
pub struct StepRecord<'a> {
    command: &'a str,
    purpose: &'a str,
    obstacle: Option<&'a str>,
}

impl<'a> StepRecord<'a> {
    /// Creates a record for each step.
    #[must_use]
    pub fn all(steps: &'a [Step]) -> Vec<Self> {
        let record =
            |Step { command, purpose, obstacle }: &'a Step| Self { command, purpose, obstacle: obstacle.as_deref() };
        steps.iter().map(record).collect()
    }
}

/// A line that keeps a setting after a restart, and the configuration file for it, in JSON.
#[derive(Serialize)]
pub struct SysctlLineRecord<'a> {
    file: &'a str,
    line: &'a str,
}

impl<'a> SysctlLineRecord<'a> {
    /// Creates a record for each line.
    #[must_use]
    pub fn all(lines: &'a [SysctlLine]) -> Vec<Self> {
        lines.iter().map(|SysctlLine { file, line }| Self { file, line }).collect()
    }
}

/// Writes commands below their purposes, then lines of configuration files, then advice.
pub fn write(out: &mut dyn Write, help: &Suggestions, indent: &str, style: TextStyle) -> io::Result<()> {
    help.commands.iter().try_for_each(|step| write_titled_line(out, &title(step), &step.command, indent, style))?;
    // A line of more than LONGEST_LINE bytes is omitted, because one of the commands writes it to the file.
    let short = help.sysctl_lines.iter().filter(|one| one.line.len() <= LONGEST_LINE);
    short.into_iter().try_for_each(|one| write_titled_line(out, &keep(one), &one.line, indent, style))?;
    help.advice.iter().try_for_each(|sentence| human::break_lines(out, sentence, indent, indent, style.width))
}

/// Writes suggested commands, each after an empty line.
pub fn write_next(out: &mut dyn Write, steps: &[Step], style: TextStyle) -> io::Result<()> {
    steps.iter().try_for_each(|step| {
        writeln!(out)?;
        write_titled_line(out, &title(step), &step.command, "", style)
    })
}

/// The title above a command: its purpose and, if the command fails here, the reason. Example:
/// `allow more buckets (needs CAP_NET_ADMIN, which root lacks here)`.
fn title(step: &Step) -> Cow<'_, str> {
    match &step.obstacle {
        Some(obstacle) => format!("{} ({obstacle})", step.purpose).into(),
        None => step.purpose.as_str().into(),
    }
}

fn keep(line: &SysctlLine) -> String {
    format!("keep it after a restart, in {}", line.file)
}

fn write_titled_line(out: &mut dyn Write, title: &str, line: &str, indent: &str, style: TextStyle) -> io::Result<()> {
    let mut title = title.chars();
    let first: String = title.next().into_iter().flat_map(char::to_uppercase).collect();
    human::break_lines(out, &format!("{first}{}:", title.as_str()), indent, indent, style.width)?;
    writeln!(out, "{indent}  {}", human::escape(line))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::command::Line;

    #[test]
    fn a_command_is_printed_on_one_line_below_its_purpose() {
        let obstacle = Some("needs CAP_NET_ADMIN, which sudo cannot give here".into());
        let step = Step::new(
            Line { text: "sudo ip netns exec web sysctl -w net.ipv4.tcp_timestamps=1".into(), obstacle },
            "switch timestamps on",
        );
        let line = SysctlLine { file: "/etc/sysctl.d/90-a.conf".into(), line: "net.ipv4.a = 1".into() };
        let long = SysctlLine { line: "1".repeat(LONGEST_LINE + 1), ..line.clone() };
        let help =
            Suggestions { commands: vec![step], sysctl_lines: vec![line, long], advice: vec!["Because.".into()] };
        let mut out = vec![];
        write(&mut out, &help, "  ", TextStyle { color: false, width: Some(30), unicode: false }).expect("written");
        assert_eq!(
            String::from_utf8_lossy(&out),
            "  Switch timestamps on (needs\n  CAP_NET_ADMIN, which sudo\n  cannot give here):\n    sudo ip netns exec web sysctl -w net.ipv4.tcp_timestamps=1\n  \
             Keep it after a restart, in\n  /etc/sysctl.d/90-a.conf:\n    net.ipv4.a = 1\n  Because.\n"
        );
    }
}
