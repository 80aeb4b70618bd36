//! The subcommands. The file of a subcommand has its arguments, and a function `run`, which builds a question from the arguments, asks
//! the snapshot layer, calls `analysis` and passes the conclusions to `view`. Several subcommands share this file and `netns`,
//! `port_args`, `recording`, `selection` and `tracer`.
//!
//! Argument parsing reads nothing from the machine. The snapshot layer resolves names (services, interfaces) with the facts
//! of its source. A replay therefore resolves them as on the recorded machine.

pub mod bind_test;
pub mod capacity;
mod columns;
pub mod complete;
pub mod connect_test;
pub mod demo;
pub mod doctor;
#[cfg(feature = "exporter")]
pub mod exporter;
pub mod kill;
pub mod list;
#[cfg(feature = "exporter")]
pub mod metrics;
pub mod netns;
pub mod port;
mod port_args;
mod recording;
mod selection;
pub mod summary;
#[cfg(feature = "trace")]
pub mod trace;
mod tracer;
pub mod wait;
#[cfg(feature = "watch")]
pub mod watch;
pub mod why;

use std::ffi::{OsStr, OsString};
use std::io::{self, BufRead, Write};
use std::os::unix::ffi::OsStrExt;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::error::{ContextKind, ContextValue};
use clap::{Args, ValueEnum};

use crate::analysis::next;
use crate::lab::{self, LabError};
use crate::model::bind::Holder;
use crate::model::command::Caller;
use crate::model::facts::Facts;
use crate::model::name::text_of;
use crate::snapshot::SnapshotError;
use crate::snapshot::call::WatchError;
use crate::snapshot::error::BadValue;
pub use crate::view::csv::Escaping;
use crate::view::human;
use crate::view::style::TextStyle;

/// Options of every command. The help lists them after the options of the command.
#[derive(Args, Clone, Debug)]
#[command(next_display_order = 900)]
pub struct GlobalArgs {
    /// Output format
    #[arg(short, long, global = true, help_heading = "Global options", value_enum, default_value_t = Format::Table, value_name = "FORMAT")]
    pub output: Format,
    /// Same as -o json
    #[arg(long, global = true, help_heading = "Global options", conflicts_with = "output")]
    pub json: bool,
    /// When to use colors; with auto, NO_COLOR in the environment turns colors off
    #[arg(long, global = true, help_heading = "Global options", value_enum, default_value_t = ColorChoice::Auto, value_name = "WHEN")]
    pub color: ColorChoice,
    /// Only IPv4 on the wire, including IPv4-mapped IPv6 sockets
    #[arg(short = '4', long, global = true, help_heading = "Global options")]
    pub ipv4: bool,
    /// Only IPv6 on the wire
    #[arg(short = '6', long, global = true, help_heading = "Global options")]
    pub ipv6: bool,
}

impl GlobalArgs {
    /// The output format, from `--output` or `--json`.
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

/// Hides the global options that select a format or an IP version, for a command that has no use for them.
pub(crate) fn hide_format_and_version_options(arg: clap::Arg) -> clap::Arg {
    hide_refused(arg, &["output", "json", "ipv4", "ipv6"], &[])
}

/// Hides the global options and the output formats that a command refuses. They are not in its help, manual page and completions. The
/// command still parses the words, so that it can explain why it refuses them.
fn hide_refused(arg: clap::Arg, options: &[&str], formats: &[Format]) -> clap::Arg {
    if options.contains(&arg.get_id().as_str()) {
        return arg.hide(true);
    }
    if arg.get_id() != "output" {
        return arg;
    }
    let value = |format: &Format| format.to_possible_value().map(|value| value.hide(formats.contains(format)));
    let values = PossibleValuesParser::new(Format::value_variants().iter().filter_map(value));
    arg.value_parser(values.try_map(|text| Format::from_str(&text, false)))
}

/// Whether SOCK_DESTROY ends an orphan on this kernel; `None` if no orphan blocks the port, or if the kernel cannot be tested.
fn ends_orphans(facts: &Facts, holders: &[Holder]) -> Option<bool> {
    if next::is_blocked_by_orphan(holders) { lab::orphan::sock_destroy_works(facts).ok() } else { None }
}

/// Output formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Aligned columns for reading
    Table,
    /// One JSON document
    Json,
    /// One JSON record per line
    Ndjson,
    /// A header line, then one record per line
    Csv,
}

/// When to use colors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ColorChoice {
    /// Only on a terminal
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// The output streams and the environment of a command. It is `Send` because a command for another network namespace runs on
/// another thread.
pub struct Context<'a> {
    /// Standard output, for results.
    pub out: &'a mut (dyn Write + Send),
    /// Standard error, for warnings.
    pub err: &'a mut (dyn Write + Send),
    /// The style of text on standard output.
    pub style: TextStyle,
    /// Whether standard error is a terminal.
    pub err_terminal: bool,
    /// The interactive terminal, if there is one.
    pub prompt: Option<Prompt<'a>>,
    /// The user that runs twtool, and the name of the program. The commands that twtool prints depend on them.
    pub caller: Caller,
    /// The system calls that commands make outside the snapshot layer.
    pub machine: Machine,
}

/// System calls that commands make outside the snapshot layer.
#[derive(Clone, Copy)]
pub struct Machine {
    /// Returns the current width of standard error, if it is a terminal.
    pub stderr_width: fn() -> Option<usize>,
    /// Replaces this program by another (execvp). Returns only on failure.
    pub become_program: fn(&OsString, &[OsString]) -> io::Error,
    /// Checks that `become_program` would find the program.
    pub find_program: fn(&OsStr) -> io::Result<()>,
}

/// An interactive terminal: questions go to standard error, and the user types the answer.
pub struct Prompt<'a> {
    /// Standard input, where the user types.
    pub input: &'a mut (dyn BufRead + Send),
    /// The style of text on standard error.
    pub style: TextStyle,
}

impl<'a> Prompt<'a> {
    /// Creates a prompt for a standard error with this width in columns.
    pub fn new(input: &'a mut (dyn BufRead + Send), color: bool, width: Option<usize>, unicode: bool) -> Self {
        Self { input, style: TextStyle { color, width, unicode } }
    }
}

impl<'a> Context<'a> {
    /// Creates a context for non-interactive use. `width` is the width of standard output in columns if it is a terminal;
    /// `unicode` tells whether the terminal shows characters beyond ASCII.
    pub fn new(
        out: &'a mut (dyn Write + Send),
        err: &'a mut (dyn Write + Send),
        color: bool,
        width: Option<usize>,
        unicode: bool,
        caller: Caller,
        machine: Machine,
    ) -> Self {
        Self {
            out,
            err,
            style: TextStyle { color, width, unicode },
            err_terminal: false,
            prompt: None,
            caller,
            machine,
        }
    }

    /// Prints warnings on standard error. Ignores write errors, because the answer itself is on standard output.
    pub fn warn(&mut self, warnings: &[String]) {
        for warning in warnings {
            let _ = writeln!(self.err, "warning: {}", human::escape(warning));
        }
    }
}

/// The exit status of a command that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// The answer is yes: exit code 0.
    Yes,
    /// The answer is no: exit code 1.
    No,
    /// The answer is incomplete: exit code 2.
    Incomplete,
    /// Another exit code, for example of a watched program.
    Code(u8),
}

impl ExitStatus {
    /// Returns `Yes` for a complete answer and `Incomplete` otherwise.
    #[must_use]
    pub const fn complete(complete: bool) -> Self {
        if complete { Self::Yes } else { Self::Incomplete }
    }
}

/// Why a command has no answer.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The arguments are wrong, or a failure has no variant of its own.
    #[error("{0}")]
    Usage(String),
    /// The snapshot layer could not answer.
    #[error(transparent)]
    Snapshot(SnapshotError),
    /// Destroying an orphan on this kernel would leave it in place without a timer, or the kernel could not be tested.
    #[error("orphans cannot be removed safely: {0}")]
    OrphansStay(String),
    /// The experiment could not be run.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// The command behind `--` cannot be run.
    #[error("running '{}' failed: {source}", program.display())]
    Exec {
        /// The program, as typed.
        program: OsString,
        /// The cause.
        source: io::Error,
    },
    /// The program cannot be watched.
    #[error(transparent)]
    Watch(#[from] WatchError),
    /// The exporter cannot run.
    #[cfg(feature = "exporter")]
    #[error(transparent)]
    Exporter(#[from] crate::exporter::ExporterError),
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
    /// Prints the error and its hint on standard error. Ignores write errors.
    pub fn report(&self, err: &mut dyn Write) {
        let message = self.to_string();
        let message = match self {
            // A filter error has several lines: the message, the expression and a caret. The expression has no line feeds.
            Self::Snapshot(SnapshotError::Filter(_)) => escaped_lines(&message),
            // In other messages, a line feed comes from a name (of a program, file or user), which could imitate a line of twtool.
            _ => human::escape(&message).into_owned(),
        };
        let _ = writeln!(err, "error: {message}");
        if let Some(hint) = self.hint() {
            let _ = writeln!(err, "hint: {}", escaped_lines(hint));
        }
    }

    /// The exit code: 126 and 127 as in env(1) if COMMAND cannot be run, 125 if it cannot be watched, else 2.
    #[must_use]
    pub fn code(&self) -> u8 {
        match self {
            Self::Exec { source, .. } if source.kind() == io::ErrorKind::NotFound => 127,
            Self::Exec { .. } => 126,
            Self::Watch(_) => 125,
            _ => 2,
        }
    }

    /// The hint below the error: what the user can do.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Snapshot(error) => error.hint(),
            #[cfg(feature = "exporter")]
            Self::Exporter(error) => error.hint(),
            Self::Watch(WatchError::Unwatchable(why)) => Some(why.hint),
            Self::OrphansStay(_) => Some(
                "leave the orphan alone; it ends by itself (tcp_orphan_retries, tcp_fin_timeout in tcp(7)). On kernels \
                 before 6.11 without the backported fix, a destroyed orphan keeps its port and loses its timer, and can \
                 stay until the next boot",
            ),
            Self::Lab(LabError::Sandbox(_)) => Some(
                "the experiments need an unprivileged user namespace. These settings forbid it: \
                 user.max_user_namespaces=0, kernel.unprivileged_userns_clone=0 (Debian), \
                 kernel.apparmor_restrict_unprivileged_userns=1 (Ubuntu), or the seccomp profile of a container. Root in a \
                 virtual machine can always run them",
            ),
            Self::Lab(LabError::Veth(_)) => Some(
                "this scenario needs virtual Ethernet pairs: a kernel with CONFIG_VETH, or `modprobe veth` as root of the \
                 host. The scenarios reuse, exhaustion, length and port-zero do not need them",
            ),
            _ => None,
        }
    }
}

fn escaped_lines(text: &str) -> String {
    text.lines().map(human::escape).collect::<Vec<_>>().join("\n")
}

/// Prints a usage error of clap on standard error. `parse` parses arguments again.
pub fn report_usage(
    args: &[OsString],
    error: &clap::Error,
    color: bool,
    parse: impl FnOnce(Vec<String>) -> Option<clap::Error>,
    err: &mut dyn Write,
) {
    let text = |error: &clap::Error| if color { error.render().ansi().to_string() } else { error.render().to_string() };
    // clap quotes arguments in a colored message. Escaping the whole message would destroy the colors. So clap parses the arguments
    // again, after they are escaped.
    let escaped = args.iter().map(|arg| human::escape(&text_of(arg.as_bytes())).into_owned()).collect();
    let message = match parse(escaped).filter(|again| again.kind() == error.kind()) {
        Some(error) => text(&without_misleading_tips(error)),
        None => escaped_lines(&error.render().to_string()) + "\n",
    };
    let _ = err.write_all(message.as_bytes());
    if let Some(tip) = tip(args, error) {
        let _ = writeln!(err, "\n  tip: {tip}");
    }
}

/// Removes clap's tip to write `-- --flag`: no positional argument of twtool begins with a hyphen, except words of a command.
fn without_misleading_tips(mut error: clap::Error) -> clap::Error {
    if let Some(ContextValue::StyledStrs(tips)) = error.get(ContextKind::Suggested) {
        let kept = tips.iter().filter(|tip| !tip.to_string().contains("as a value")).cloned().collect();
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(kept));
    }
    error
}

/// A tip about a word that the command does not accept: what the user probably meant.
fn tip(args: &[OsString], error: &clap::Error) -> Option<&'static str> {
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidArg) else { return None };
    if error.kind() != clap::error::ErrorKind::UnknownArgument || word.starts_with('-') {
        return None;
    }
    match args.get(1)?.to_str()? {
        "wait" => Some("put -- before the command: twtool wait PORT -- COMMAND"),
        "capacity" => Some("--to ADDR[:PORT] selects a destination"),
        _ => None,
    }
}

fn bad_value(value: &dyn std::fmt::Display, argument: &str, why: &str) -> CommandError {
    SnapshotError::from(BadValue::new(value, argument, why)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_system_call_that_fails_with_epipe_is_not_a_failed_write_of_the_answer() {
        let closed_pipe = || io::Error::from(io::ErrorKind::BrokenPipe);
        let written = CommandError::from(SnapshotError::Observer(closed_pipe()));
        assert!(matches!(written, CommandError::Output(_)), "{written}");
        let error = CommandError::from(SnapshotError::System { action: "waiting for signals", source: closed_pipe() });
        assert!(matches!(error, CommandError::Snapshot(_)), "with this errno, Output would give the exit code 0");
        assert_eq!(
            (error.code(), error.to_string().split_once(": ").map(|text| text.0)),
            (2, Some("waiting for signals failed"))
        );
    }
}
