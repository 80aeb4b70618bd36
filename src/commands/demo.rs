//! `twtool demo`: runs experiments that show why TIME_WAIT exists, in private namespaces that end with the program.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};

use super::{CommandError, Context, ExitStatus, Format, GlobalArgs, Prompt, bad_value, hide_refused};
use crate::lab::{self, CaptureFile, LabError};
use crate::model::experiment::{Comparison, LabEvent, LabEventKind, Scenario};
use crate::model::facts::Facts;
use crate::snapshot::Snapshot;
use crate::view;
use crate::view::human;
use crate::view::json::Envelope;
use crate::view::ladder::Ladder;

/// Arguments of `twtool demo`.
#[derive(Args, Clone, Debug)]
#[command(
    mut_args(|arg| hide_refused(arg, &["ipv4", "ipv6"], &[Format::Csv])),
    after_long_help = "\
Everything happens in private user and network namespaces, without root. twtool does not touch the interfaces, \
settings and sockets of the host. Even if a signal ends twtool, nothing is left behind. The file of --pcap appears \
when the experiment has ended. In the first four scenarios, both ends use the TCP of the running kernel, each in its \
own network namespace. twtool carries the segments between them. It can read the state of both ends while a segment is \
under way, drop a segment, or deliver an old segment late. In the other scenarios, the connections run over lo. twtool \
measures all values while the scenario runs.

How to read the diagram: each arrow is a segment. Beside the start of the arrow is the state of the sender while the segment \
was under way. Beside the end of the arrow is the state of the receiver after the segment arrived. Unless a note says \
otherwise, sequence numbers are relative: the first number of each side is shown as 0. sock_diag reports the states; 'gone' \
means that there is no socket.

Exit codes: 0 the kernel behaved as expected, 1 it did not, 2 wrong usage, or the experiment could not run.

Examples:
  twtool demo                          list the scenarios
  twtool demo four-way                 show how a connection ends
  twtool demo stale-segment --step     wait for the Enter key after each step
  twtool demo lost-ack --pcap ack.pcap && tshark -r ack.pcap
  twtool demo four-way --json | jq -c '.events[] | select(.segment) | [.segment.flags, .states]'
  twtool demo length                   measure the length of TIME_WAIT (about 62 s)
"
)]
pub struct DemoArgs {
    /// Scenario to run [default: list the scenarios]
    #[arg(value_enum)]
    scenario: Option<ScenarioArg>,
    /// Show the result step by step, and wait for the Enter key after each step; the experiment runs completely before the
    /// first step, so pauses do not change it
    #[arg(long, requires = "scenario")]
    step: bool,
    /// Also write the segments to a capture file for Wireshark and tshark
    #[arg(long, value_name = "FILE", requires = "scenario")]
    pcap: Option<PathBuf>,
    /// Let --pcap overwrite an existing file
    #[arg(long, requires = "pcap")]
    force: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ScenarioArg(Scenario);

impl ValueEnum for ScenarioArg {
    fn value_variants<'a>() -> &'a [Self] {
        const ALL: [ScenarioArg; Scenario::ALL.len()] = {
            let mut all = [ScenarioArg(Scenario::FourWay); Scenario::ALL.len()];
            let mut i = 0;
            while i < all.len() {
                all[i] = ScenarioArg(Scenario::ALL[i]);
                i += 1;
            }
            all
        };
        &ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.0.name()).help(self.0.title()))
    }
}

/// Runs the command.
///
/// # Errors
/// See [`CommandError`].
pub fn run(args: &DemoArgs, global: &GlobalArgs, context: &mut Context) -> Result<ExitStatus, CommandError> {
    let format = global.format();
    if format == Format::Csv {
        let why = "an experiment is not a flat table; use table, json or ndjson";
        return Err(bad_value(&"csv", "--output <FORMAT>", why));
    }
    if global.ipv4_on_the_wire() == Some(false) {
        return Err(CommandError::Usage("the argument '-6' cannot be used with demo, which uses IPv4".into()));
    }
    let mut facts = Snapshot::here().facts()?;
    // The experiment runs in several private namespaces, so the answer does not belong to one namespace.
    facts.netns = None;
    let Some(ScenarioArg(scenario)) = args.scenario else { return list(format, &facts, context) };
    if args.step && format != Format::Table {
        return Err(CommandError::Usage("the argument '--step' cannot be used with --output json or ndjson".into()));
    }
    if args.step && context.prompt.is_none() {
        let why = "the argument '--step' needs a terminal on standard input and standard error";
        return Err(CommandError::Usage(why.into()));
    }
    lab::enter()?;
    let mut capture = args.pcap.as_deref().map(|path| Capture::begin(path, args.force)).transpose()?;
    let countdown = context.err_terminal;
    let checks = match format {
        Format::Json => {
            let mut events = vec![];
            let checks = play(scenario, capture.as_mut(), countdown, context.err, &mut |event| {
                events.push(event.clone());
                Ok(())
            })?;
            view::experiment::document(context.out, envelope(&facts), scenario, &events, &checks)?;
            checks
        }
        Format::Ndjson => play(scenario, capture.as_mut(), countdown, context.err, &mut |event| {
            view::experiment::ndjson(context.out, event)?;
            context.out.flush()
        })?,
        Format::Table | Format::Csv => page(args, scenario, &facts, capture.as_mut(), context)?,
    };
    capture.map(Capture::finish).transpose()?;
    let agrees = checks.iter().all(|check| check.agrees);
    if !agrees {
        context.warn(&["this kernel did not behave as expected; please report it with this output".to_owned()]);
    }
    Ok(if agrees { ExitStatus::Yes } else { ExitStatus::No })
}

fn envelope(facts: &Facts) -> Envelope<'_> {
    Envelope { schema: "twtool.demo/1", facts, complete: true, warnings: &[] }
}

fn list(format: Format, facts: &Facts, context: &mut Context) -> Result<ExitStatus, CommandError> {
    match format {
        Format::Json => view::experiment::list_document(context.out, envelope(facts))?,
        Format::Ndjson => view::experiment::list_ndjson(context.out)?,
        Format::Table | Format::Csv => view::ladder::list(context.out, context.style)?,
    }
    Ok(ExitStatus::Yes)
}

/// Draws each event when it happens. With `--step`, draws the events after the experiment.
fn page(
    args: &DemoArgs,
    scenario: Scenario,
    facts: &Facts,
    capture: Option<&mut Capture>,
    context: &mut Context,
) -> Result<Vec<Comparison>, CommandError> {
    let countdown = context.err_terminal;
    let mut ladder = Ladder::begin(context.out, scenario, &facts.kernel, context.style)?;
    context.out.flush()?;
    let checks = if args.step {
        let mut events = vec![];
        let checks = play(scenario, capture, countdown, context.err, &mut |event| {
            events.push(event.clone());
            Ok(())
        })?;
        for step in events.chunk_by(|one, next| one.step == next.step) {
            step.iter().try_for_each(|event| ladder.event(context.out, event))?;
            context.out.flush()?;
            if let Some(prompt) = &mut context.prompt {
                wait_for_enter(prompt, context.err)?;
            }
        }
        checks
    } else {
        play(scenario, capture, countdown, context.err, &mut |event| {
            ladder.event(context.out, event)?;
            context.out.flush()
        })?
    };
    ladder.end(context.out, &checks)?;
    Ok(checks)
}

fn wait_for_enter(prompt: &mut Prompt, err: &mut dyn Write) -> io::Result<()> {
    let _ = write!(err, "      [Enter]");
    let _ = err.flush();
    prompt.input.read_line(&mut String::new())?;
    // Erase the line of the prompt, so that the page looks the same as without --step.
    let _ = write!(err, "\x1b[A\x1b[2K");
    err.flush()
}

/// Runs the experiment and passes each event except `Waiting` to `sink`. With `countdown`, shows the remaining time of a long pause on
/// standard error.
fn play(
    scenario: Scenario,
    mut capture: Option<&mut Capture>,
    countdown: bool,
    err: &mut dyn Write,
    sink: lab::LabEventSink,
) -> Result<Vec<Comparison>, CommandError> {
    let mut counting = false;
    let checks = lab::run(scenario, &mut |event: &LabEvent| {
        if let LabEventKind::Waiting(left) = event.kind {
            if countdown {
                counting = true;
                let _ = write!(err, "\r\x1b[2K      {} to go", human::duration(left));
                let _ = err.flush();
            }
            return Ok(());
        }
        if std::mem::take(&mut counting) {
            let _ = write!(err, "\r\x1b[2K");
        }
        if let (Some(capture), LabEventKind::Segment { segment, .. }) = (&mut capture, &event.kind) {
            view::pcap::segment(&mut capture.file, segment).map_err(|error| capture.failed(&error))?;
        }
        sink(event)
    });
    checks.map_err(|error| match error {
        LabError::Report(error) => CommandError::Output(error),
        error => CommandError::Lab(error),
    })
}

/// The file of `--pcap`.
struct Capture {
    path: PathBuf,
    file: CaptureFile,
}

impl Capture {
    /// Opens the file. `run` calls this before the experiment, so that an error does not come after a long wait.
    fn begin(path: &Path, replace: bool) -> Result<Self, CommandError> {
        let file = CaptureFile::create(path, replace).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => {
                let why = format!("the capture '{}' exists; --force replaces a regular file", path.display());
                CommandError::Usage(why)
            }
            io::ErrorKind::PermissionDenied => CommandError::Usage(format!(
                "the capture '{}' cannot be written: {error}; demo runs in a user namespace, where even root cannot write \
                 to the directories of other users; if you used sudo, run demo without it; otherwise choose a directory that you \
                 can write to",
                path.display()
            )),
            _ => CommandError::Usage(format!("the capture '{}' cannot be written: {error}", path.display())),
        })?;
        let mut capture = Self { path: path.to_owned(), file };
        view::pcap::header(&mut capture.file).map_err(|error| capture.failed(&error))?;
        Ok(capture)
    }

    fn failed(&self, error: &io::Error) -> io::Error {
        io::Error::other(format!("the capture '{}' cannot be written: {error}", self.path.display()))
    }

    fn finish(self) -> io::Result<()> {
        let Self { path, file } = self;
        file.finish()
            .map_err(|error| io::Error::other(format!("the capture '{}' cannot be written: {error}", path.display())))
    }
}
