//! `twtool why`: runs a program, and explains each of its bind, listen and connect calls that fails.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::{ColorChoice, CommandError, Context, ExitStatus, Format, GlobalArgs, bad_value, hide_refused};
use crate::analysis::call::{self, Explanation, FailedCall, PortsLeft};
use crate::analysis::call_counts::{CallCounts, FailureKind};
use crate::filter::parser::parse_duration;
use crate::model::call::{CallName, CalledSocket, ProgramEnd, SocketCall, WatchNote};
use crate::model::command::{Caller, Shell};
use crate::model::name::text_of;
use crate::snapshot::call::{CallSituation, ProgramEvent, ProgramTarget, WatchEnd, situation, watch};
use crate::view::style::TextStyle;
use crate::view::why::{self as view, ExplainedCall, ProgramReport};

/// Arguments of `twtool why`.
#[derive(Args, Clone, Debug)]
#[command(mut_args(|arg| hide_refused(arg, &["json"], &[Format::Json, Format::Csv])), after_long_help = "\
COMMAND runs as it would without twtool. It keeps its own standard input and output, terminal, signals and exit status. Of \
the system calls of COMMAND, twtool stops only bind(), listen(), connect() and io_uring_setup(). (Exceptions: with --pid \
or --detach, before Linux 5.9, or if the kernel refuses twtool's seccomp filter, every system call stops the program, \
which slows it down a lot.) As under every tracer, COMMAND also stops for a moment when it gets a signal, starts a process \
or a thread, or executes another program. When a call fails, twtool reads the sockets of the network namespace before \
COMMAND continues. Then twtool prints on standard error the arguments of the call, the socket options, what blocks the \
call, and what helps. twtool does not repeat the call. It relies on the errno that COMMAND got.

twtool counts refused connections and timeouts, but does not explain them, because their cause is usually at the other end. It \
explains a repeated failure again only if the explanation has changed. At the end it prints where COMMAND listened and how \
many calls failed.

The kernel cannot remove the seccomp filter that twtool sets in the processes of COMMAND. If twtool ended first, their \
bind(), listen() and connect() calls would fail with ENOSYS. So twtool runs until all processes that COMMAND started have \
ended, including daemons. If SIGKILL ends twtool, the kernel ends these processes as well. With --pid or --detach, twtool \
sets no filter, and the processes continue without twtool.

Set-user-ID bits and file capabilities give COMMAND and its processes no privilege in two cases: twtool lacks \
CAP_SYS_PTRACE; or twtool lacks CAP_SYS_ADMIN and --detach is not given, because the seccomp filter then requires \
no_new_privs. twtool prints a note if COMMAND runs a program that has them. twtool does not see binds through io_uring, \
and prints a note if COMMAND uses io_uring. Another program (strace, gdb) cannot trace COMMAND at the same time.

Exit codes: the exit code of COMMAND, or 128+N if signal N ended it; 125 COMMAND cannot be watched; 126 COMMAND cannot be run; \
127 COMMAND is not found; 2 wrong usage. With --pid: 128+N if signal N ended twtool; 125 the process cannot be watched; 0 \
otherwise.

Examples:
  twtool why nginx                                explain why nginx does not start
  twtool why -- ./server --port 8080
  twtool why -o ndjson --log why.ndjson ./server  write records to a file
  twtool why -q ./server                          print failures, and notes about what can hide them
  twtool why --detach ./server                    stop watching as soon as the server listens
  twtool why --pid 4711 --timeout 2s              watch a running process for 2 seconds
")]
pub struct WhyArgs {
    /// Watch this running process instead of a new one
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(i32).range(1..), conflicts_with_all = ["command", "detach"], allow_negative_numbers = true)]
    pid: Option<i32>,
    /// Append to this file instead of writing to standard error
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Print only failures, and notes about what can hide or cause failures (io_uring, lost privileges)
    #[arg(short, long)]
    quiet: bool,
    /// With --pid or --detach: stop watching after this time, like 500ms, 10s or 5m; the program continues to run
    #[arg(long, value_name = "DURATION", value_parser = timeout, allow_negative_numbers = true)]
    timeout: Option<Duration>,
    /// Stop watching after the first listen() that succeeds; the program continues to run
    #[arg(long)]
    detach: bool,
    /// Command to run and to watch
    #[arg(required_unless_present = "pid", trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

fn timeout(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        Duration::ZERO => {
            Err("with this duration twtool would watch nothing; use a duration longer than 0s, like 500ms, 10s or 1m"
                .into())
        }
        time => Ok(time),
    }
}

/// Runs `twtool why`.
///
/// # Errors
/// See [`CommandError`].
pub fn run(args: &WhyArgs, global: &GlobalArgs, context: &mut Context) -> Result<ExitStatus, CommandError> {
    let records = match global.format() {
        Format::Table => false,
        Format::Ndjson => true,
        Format::Json | Format::Csv => {
            let format = if global.format() == Format::Csv { "csv" } else { "json" };
            return Err(bad_value(
                &format,
                "--output <FORMAT>",
                "calls are reported when they happen; use table or ndjson",
            ));
        }
    };
    if args.timeout.is_some() && args.pid.is_none() && !args.detach {
        return Err(CommandError::Usage(
            "the argument '--timeout' needs '--pid' or '--detach': otherwise twtool cannot stop watching before the \
             program ends"
                .into(),
        ));
    }
    let log = args.log.as_ref().map(|path| {
        let open = OpenOptions::new().append(true).create(true).open(path);
        open.map_err(|error| bad_value(&path.display(), "--log <FILE>", &error.to_string()))
    });
    let mut log: Option<File> = log.transpose()?;
    let target = match args.pid {
        Some(pid) => ProgramTarget::Process(pid),
        None => ProgramTarget::Command { words: args.command.clone(), detach: args.detach },
    };
    let style = match (&log, &context.prompt) {
        (Some(_), _) => TextStyle { color: false, width: None, unicode: true },
        (None, prompt) => TextStyle {
            color: prompt.as_ref().map_or(global.color == ColorChoice::Always, |prompt| prompt.style.color),
            width: (context.machine.stderr_width)(),
            unicode: true,
        },
    };
    let words: Vec<String> = args.command.iter().map(|word| text_of(word.as_bytes())).collect();
    let program = args.pid.map_or_else(|| words.first().cloned().unwrap_or_default(), |pid| format!("process {pid}"));
    let mut reporter = CallReporter {
        out: match &mut log {
            Some(file) => file,
            None => context.err,
        },
        style,
        records,
        quiet: args.quiet,
        ipv4: global.ipv4_on_the_wire(),
        command: words,
        caller: context.caller.clone(),
        call_counts: CallCounts::default(),
        failed: None,
    };
    let (watched, watched_for) = watch(&target, args.timeout, &mut |event, at| reporter.receive(event, at))?;
    let end = match watched {
        // The stub (the second twtool process, which executes the program) has printed the reason.
        WatchEnd::NotStarted(end) => return Ok(ExitStatus::Code(end.code())),
        WatchEnd::Ended(end) => Some(end),
        WatchEnd::ProcessLeft | WatchEnd::Interrupted(_) => None,
    };
    let call_counts = reporter.call_counts.clone();
    reporter.report(&ProgramReport { program: &program, end, call_counts: &call_counts, watched_for });
    let failure = reporter.failed.take();
    if let Some((path, error)) = args.log.as_ref().zip(failure) {
        context.warn(&[format!("the log '{}' is not complete: {error}", path.display())]);
    }
    Ok(match (watched, end) {
        (_, Some(end)) => ExitStatus::Code(end.code()),
        (WatchEnd::Interrupted(signal), None) => ExitStatus::Code(ProgramEnd::Signaled(signal).code()),
        (_, None) => ExitStatus::Yes,
    })
}

/// Writes and counts events. If writing fails, the program continues to run.
struct CallReporter<'a> {
    out: &'a mut dyn Write,
    style: TextStyle,
    records: bool,
    quiet: bool,
    ipv4: Option<bool>,
    command: Vec<String>,
    caller: Caller,
    call_counts: CallCounts,
    /// The first error of a write.
    failed: Option<io::Error>,
}

impl CallReporter<'_> {
    fn receive(&mut self, event: ProgramEvent, at: Duration) {
        match event {
            ProgramEvent::Note(note) => self.note(&note, at),
            ProgramEvent::Call { call, watched } => self.call(&call, watched),
        }
        let flushed = self.out.flush();
        self.wrote(flushed);
    }

    fn wrote(&mut self, result: io::Result<()>) {
        self.failed = self.failed.take().or(result.err());
    }

    fn note(&mut self, note: &WatchNote, at: Duration) {
        // These notes are about what can hide or cause failures.
        let matters = matches!(note, WatchNote::IoUring(_) | WatchNote::PrivilegeLost { .. });
        if self.quiet && !matters {
            return;
        }
        let wrote =
            if self.records { view::note_record(self.out, note, at) } else { view::note(self.out, note, self.style) };
        self.wrote(wrote);
    }

    fn report(&mut self, report: &ProgramReport) {
        if !self.quiet {
            let wrote = if self.records {
                view::report_record(self.out, report)
            } else {
                view::report(self.out, report, self.style)
            };
            self.wrote(wrote);
        }
    }

    fn call(&mut self, call: &SocketCall, watched: &BTreeSet<i32>) {
        let family = call.addr.as_ref().map(|addr| addr.addr.to_canonical().is_ipv4());
        if self.ipv4.is_some_and(|wanted| family.is_some_and(|ipv4| ipv4 != wanted)) || call::is_progress(call) {
            return;
        }
        let first = self.call_counts.add(call);
        let Some(kind) = FailureKind::new(call) else {
            if first && !self.quiet {
                let wrote = if self.records {
                    view::listens_record(self.out, call)
                } else {
                    view::listens(self.out, call, self.style)
                };
                self.wrote(wrote);
            }
            return;
        };
        if !call::is_explained(call) || !self.call_counts.is_due(&kind, call.at) {
            return;
        }
        let tcp = call.addr.is_some() && call.socket.as_ref().is_some_and(CalledSocket::uses_tcp);
        let situation = tcp.then(|| situation(call)).transpose();
        let (explanation, warnings) = match &situation {
            Ok(Some(situation)) => (self.explain(call, situation, watched), situation.warnings.clone()),
            Ok(None) => (self.explain_without_facts(call, watched), vec![]),
            Err(error) => (Explanation::unread(&error.to_string()), vec![]),
        };
        if !self.call_counts.explain(kind, &explanation, call.at) {
            return;
        }
        let found = situation.as_ref().ok().and_then(Option::as_ref);
        let found = found.map(|situation| (&situation.facts, situation.holders.as_slice()));
        let failed = ExplainedCall { call, explanation: &explanation, found, warnings: &warnings };
        let wrote = if self.records {
            view::failure_record(self.out, &failed)
        } else {
            view::failure(self.out, &failed, self.style)
        };
        self.wrote(wrote);
    }

    fn explain(&self, call: &SocketCall, situation: &CallSituation, watched: &BTreeSet<i32>) -> Explanation {
        let CallSituation { facts, holders, device, bound_sockets_are_listed, uid, .. } = situation;
        let unreachable;
        let ports_left = match &situation.capacity {
            None => None,
            Some(Ok(capacity)) => Some(PortsLeft::Counted(&capacity.destinations, capacity.conditions())),
            Some(Err(error)) => {
                unreachable = error.to_string();
                Some(PortsLeft::Unreachable(&unreachable))
            }
        };
        let attempt = call.as_attempt(*device).filter(|_| call.name != CallName::Connect);
        call::explain(&FailedCall {
            call,
            attempt: attempt.as_ref(),
            facts: Some(facts),
            holders,
            bound_sockets_are_listed: *bound_sockets_are_listed,
            ports_left,
            watched,
            uid: *uid,
            command: &self.command,
            shell: &Shell { netns: situation.netns.clone(), caller: self.caller.clone() },
        })
    }

    fn explain_without_facts(&self, call: &SocketCall, watched: &BTreeSet<i32>) -> Explanation {
        call::explain(&FailedCall {
            call,
            attempt: None,
            facts: None,
            holders: &[],
            bound_sockets_are_listed: true,
            ports_left: None,
            watched,
            uid: 0,
            command: &self.command,
            shell: &Shell { netns: None, caller: self.caller.clone() },
        })
    }
}
