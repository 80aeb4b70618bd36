//! One file for each subcommand: its arguments, and a `run` that makes a question of them, asks the snapshot layer, lets
//! `analysis` conclude, and lets `view` print. This file has what they share.
//!
//! Arguments are parsed without asking the machine. The snapshot layer resolves names (services, interfaces) against the facts
//! of the source that answers, so that a replay resolves them as the recorded machine would have.

pub mod bind_test;
pub mod capacity;
mod columns;
pub mod demo;
pub mod doctor;
pub mod kill;
pub mod list;
pub mod netns;
pub mod port;
mod port_args;
mod recording;
mod selection;
pub mod summary;
pub mod wait;

use std::ffi::OsString;
use std::io::{self, BufRead, Write};
use std::os::unix::ffi::OsStrExt;

use clap::{Args, ValueEnum};

use crate::analysis::next;
use crate::lab::{self, LabError};
use crate::model::bind::Holder;
use crate::model::command::Caller;
use crate::model::facts::Facts;
use crate::model::name::text_of;
use crate::snapshot::SnapshotError;
use crate::snapshot::error::BadValue;
pub use crate::view::csv::Escaping;
use crate::view::human;
use crate::view::style::TextStyle;

/// Options of every command; behind its own in its help.
#[derive(Args, Clone, Debug)]
#[command(next_display_order = 900)]
pub struct GlobalArgs {
    /// How to print the answer
    #[arg(short, long, global = true, help_heading = "Global options", value_enum, default_value_t = Format::Table, value_name = "FORMAT")]
    pub output: Format,
    /// Same as -o json
    #[arg(long, global = true, help_heading = "Global options", conflicts_with = "output")]
    pub json: bool,
    /// When to colour; NO_COLOR in the environment turns auto off
    #[arg(long, global = true, help_heading = "Global options", value_enum, default_value_t = ColorChoice::Auto, value_name = "WHEN")]
    pub color: ColorChoice,
    /// Only IPv4 on the wire, IPv4-mapped sockets too
    #[arg(short = '4', long, global = true, help_heading = "Global options")]
    pub ipv4: bool,
    /// Only IPv6 on the wire
    #[arg(short = '6', long, global = true, help_heading = "Global options")]
    pub ipv6: bool,
}

impl GlobalArgs {
    /// The format, whichever way it was asked for.
    #[must_use]
    pub const fn format(&self) -> Format {
        if self.json { Format::Json } else { self.output }
    }

    /// `-4` alone: true; `-6` alone: false; neither or both: no restriction.
    #[must_use]
    pub const fn ipv4_on_the_wire(&self) -> Option<bool> {
        match (self.ipv4, self.ipv6) {
            (true, false) => Some(true),
            (false, true) => Some(false),
            _ => None,
        }
    }
}

/// Whether this kernel ends an orphan that is destroyed. It is tried only if an orphan is in the way, and unknown if no private
/// network namespace can be made.
fn ends_orphans(facts: &Facts, holders: &[Holder]) -> Option<bool> {
    if next::is_blocked_by_orphan(holders) { lab::orphan::are_ended(facts).ok() } else { None }
}

/// Output formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Aligned columns, for eyes
    Table,
    /// One JSON document
    Json,
    /// A JSON record a line
    Ndjson,
    /// A header line, then a record a line
    Csv,
}

/// When to colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ColorChoice {
    /// On a terminal
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// The world as a command sees it. It can go to another thread, for a command may run in another network namespace.
pub struct Context<'a> {
    /// Results.
    pub out: &'a mut (dyn Write + Send),
    /// Warnings.
    pub err: &'a mut (dyn Write + Send),
    /// How tables look there.
    pub style: TextStyle,
    /// Whether standard error is a terminal.
    pub err_terminal: bool,
    /// Who can be asked, where somebody can.
    pub prompt: Option<Prompt<'a>>,
    /// The caller of the command, for the commands that it prints.
    pub caller: Caller,
    /// What a command needs of the machine beside a snapshot.
    pub machine: Machine,
}

/// What a command needs of the machine beside a snapshot.
#[derive(Clone, Copy)]
pub struct Machine {
    /// The width of standard error now, if it is a terminal.
    pub stderr_width: fn() -> Option<usize>,
    /// Runs a program in place of this one; returns only if that fails.
    pub become_program: fn(&OsString, &[OsString]) -> io::Error,
}

/// Somebody at a terminal, who reads stderr and types.
pub struct Prompt<'a> {
    /// What is typed.
    pub input: &'a mut (dyn BufRead + Send),
    /// How tables look on stderr.
    pub style: TextStyle,
}

impl<'a> Prompt<'a> {
    /// Somebody who sees stderr in this width.
    pub fn new(input: &'a mut (dyn BufRead + Send), color: bool, width: Option<usize>, unicode: bool) -> Self {
        Self { input, style: TextStyle { color, width, unicode } }
    }
}

impl<'a> Context<'a> {
    /// Creates a context for non-interactive use. `width` is in columns, where standard output is a terminal; `unicode`
    /// reports whether characters beyond ASCII are shown.
    pub fn new(
        out: &'a mut (dyn Write + Send),
        err: &'a mut (dyn Write + Send),
        color: bool,
        width: Option<usize>,
        unicode: bool,
        caller: Caller,
        machine: Machine,
    ) -> Self {
        Self { out, err, style: TextStyle { color, width, unicode }, err_terminal: false, prompt: None, caller, machine }
    }

    /// Says each warning on stderr. That stderr cannot be written is no reason to fail.
    pub fn warn(&mut self, warnings: &[String]) {
        for warning in warnings {
            let _ = writeln!(self.err, "warning: {}", human::escape(warning));
        }
    }
}

/// How a command ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// Answered, yes: 0.
    Yes,
    /// Answered, no: 1.
    No,
    /// Not answered completely: 2.
    Incomplete,
}

impl ExitStatus {
    /// Yes if the answer is complete.
    #[must_use]
    pub const fn complete(complete: bool) -> Self {
        if complete { Self::Yes } else { Self::Incomplete }
    }
}

/// Why a command has no answer. The exit code is 2, unless the reader of the output went away or a command cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The arguments are wrong.
    #[error("{0}")]
    Usage(String),
    /// The question has no answer.
    #[error(transparent)]
    Snapshot(SnapshotError),
    /// Destroying an orphan would leave it in place, without a timer.
    #[error("orphans cannot be removed safely: {0}")]
    OrphansStay(String),
    /// The experiment could not be made.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// The command behind `--` cannot be run.
    #[error("running '{}' failed: {source}", program.display())]
    Exec {
        /// Its name, as typed.
        program: OsString,
        /// Why.
        source: io::Error,
    },
    /// The answer could not be written.
    #[error("writing the answer failed: {0}")]
    Output(#[from] io::Error),
}

impl From<SnapshotError> for CommandError {
    fn from(error: SnapshotError) -> Self {
        match error {
            SnapshotError::Observer(error) => Self::Output(error),
            error => Self::Snapshot(error),
        }
    }
}

impl CommandError {
    /// Reports the error on stderr. That stderr cannot be written is no reason to fail.
    pub fn report(&self, err: &mut dyn Write) {
        let message = self.to_string();
        let message = match self {
            // The expression stands below the message, and what is typed in it has no line feeds there.
            Self::Snapshot(SnapshotError::Filter(_)) => escaped_lines(&message),
            // A line feed comes from a name, and would begin a line that looks like ours.
            _ => human::escape(&message).into_owned(),
        };
        let _ = writeln!(err, "error: {message}");
        if let Some(hint) = self.hint() {
            let _ = writeln!(err, "hint: {}", escaped_lines(hint));
        }
    }

    /// The exit code; env(1)'s where a command cannot be run.
    #[must_use]
    pub fn code(&self) -> u8 {
        match self {
            Self::Exec { source, .. } if source.kind() == io::ErrorKind::NotFound => 127,
            Self::Exec { .. } => 126,
            _ => 2,
        }
    }

    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Snapshot(error) => error.hint(),
            Self::OrphansStay(_) => Some(
                "before Linux 6.11 (and without its fix) a destroyed orphan keeps its port and loses its timer, so that it may \
                 stay until the next boot; left alone it ends after tcp_orphan_retries retransmissions (tcp(7))",
            ),
            Self::Lab(LabError::Sandbox(_)) => Some(
                "the demonstration needs an unprivileged user namespace; what may forbid it: sysctl \
                 user.max_user_namespaces=0, kernel.unprivileged_userns_clone=0 (Debian), \
                 kernel.apparmor_restrict_unprivileged_userns=1 (Ubuntu), or a container's seccomp profile. Root in a \
                 virtual machine can always run it",
            ),
            Self::Lab(LabError::Veth(_)) => Some(
                "this scenario needs virtual Ethernet pairs: CONFIG_VETH in the kernel, or `modprobe veth` by root of the \
                 host. Those named reuse, exhaustion, length and port-zero need none",
            ),
            _ => None,
        }
    }
}

fn escaped_lines(text: &str) -> String {
    text.lines().map(human::escape).collect::<Vec<_>>().join("\n")
}

/// Reports a mistake in the arguments, in clap's words. `parse` is what found it.
pub fn report_usage(
    args: &[OsString],
    error: &clap::Error,
    color: bool,
    parse: impl FnOnce(Vec<String>) -> Option<clap::Error>,
    err: &mut dyn Write,
) {
    let text = |error: &clap::Error| if color { error.render().ansi().to_string() } else { error.render().to_string() };
    // clap repeats the arguments, and colours what is around them: so it is given escaped ones to repeat.
    let escaped = args.iter().map(|arg| human::escape(&text_of(arg.as_bytes())).into_owned()).collect();
    let message = match parse(escaped).filter(|again| again.kind() == error.kind()) {
        Some(error) => text(&error),
        None => escaped_lines(&error.render().to_string()) + "\n",
    };
    let _ = err.write_all(message.as_bytes());
}

/// A usage error about the value of an argument.
fn bad_value(value: &dyn std::fmt::Display, argument: &str, why: &str) -> CommandError {
    SnapshotError::from(BadValue::new(value, argument, why)).into()
}
