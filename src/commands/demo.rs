//! `twtool demo`: why TIME_WAIT exists, seen on this kernel, in private namespaces that end with the program.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};

use super::{CommandError, Context, ExitStatus, Format, GlobalArgs, Prompt, bad_value};
use crate::lab::{self, CaptureFile, LabError};
use crate::model::experiment::{Comparison, LabEvent, EventKind, Scenario};
use crate::model::facts::Facts;
use crate::snapshot::Snapshot;
use crate::view;
use crate::view::human;
use crate::view::json::Envelope;
use crate::view::ladder::Ladder;

/// Arguments of `twtool demo`.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = "\
Everything happens in private user and network namespaces, without root: the host's interfaces, settings and sockets are \
not touched, and nothing is left when twtool ends, however it ends. In the first four scenarios both ends are the real \
kernel, in a namespace each, and twtool is the wire between them: it asks both kernels for their states while a segment \
is under way, loses one, or lets an old one come late. In the others the connections run over lo. Everything shown was \
measured in that run.

Reading the ladder: an arrow stands between the sender's state while the segment was under way, and the receiver's \
after it arrived. Sequence numbers count from each side's first. A state is what sock_diag lists; 'gone' is no socket.

Exit codes: 0 the kernel did what was expected, 1 it did something else (a finding), 2 the lab could not be built.

Examples:
  twtool demo                          what there is to see
  twtool demo four-way                 how a connection ends
  twtool demo stale-segment --step     wait for the Enter key after each step
  twtool demo lost-ack --pcap ack.pcap && tshark -r ack.pcap
  twtool demo four-way --json | jq -c '.events[] | select(.segment) | [.segment.flags, .states]'
  twtool demo length                   takes about 62 s
")]
pub struct DemoArgs {
    /// What to show [default: the list of what there is]
    #[arg(value_enum)]
    scenario: Option<ScenarioArg>,
    /// Wait for the Enter key before each step; the experiment itself does not wait, and is over by then
    #[arg(long, requires = "scenario")]
    step: bool,
    /// Also write the segments to a capture file, which Wireshark and tshark read
    #[arg(long, value_name = "FILE", requires = "scenario")]
    pcap: Option<PathBuf>,
    /// Replace the file of --pcap where it exists
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

/// ExitStatuss.
///
/// # Errors
/// See [`CommandError`].
pub fn run(args: &DemoArgs, global: &GlobalArgs, context: &mut Context) -> Result<ExitStatus, CommandError> {
    let format = global.format();
    if format == Format::Csv {
        let why = "an experiment is not flat; there are table, json and ndjson";
        return Err(bad_value(&"csv", "--output <FORMAT>", why));
    }
    if global.ipv4_on_the_wire() == Some(false) {
        return Err(CommandError::Usage("the argument '-6' cannot be used here: the lab speaks IPv4".into()));
    }
    let mut facts = Snapshot::here().facts()?;
    // The namespaces in which it happens are several, and gone when the answer is read.
    facts.netns = None;
    let Some(ScenarioArg(scenario)) = args.scenario else { return list(format, &facts, context) };
    if args.step && format != Format::Table {
        return Err(CommandError::Usage(
            "the argument '--step' is for the page, not for --output json or ndjson".into(),
        ));
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
        context.warn(&["this kernel did not do what was expected; please report it with this output".to_owned()]);
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

/// Draws while it happens; or, with `--step`, afterwards.
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
    // The line that Enter began is taken back: the page reads as without --step.
    let _ = write!(err, "\x1b[A\x1b[2K");
    err.flush()
}

/// Runs the experiment and passes its events on. `countdown`: long pauses are counted down on stderr.
fn play(
    scenario: Scenario,
    mut capture: Option<&mut Capture>,
    countdown: bool,
    err: &mut dyn Write,
    sink: lab::EventSink,
) -> Result<Vec<Comparison>, CommandError> {
    let mut counting = false;
    let checks = lab::run(scenario, &mut |event: &LabEvent| {
        if let EventKind::Waiting(left) = event.kind {
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
        if let (Some(capture), EventKind::Segment { segment, .. }) = (&mut capture, &event.kind) {
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
    fn begin(path: &Path, replace: bool) -> Result<Self, CommandError> {
        let file = CaptureFile::create(path, replace).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => {
                let why = format!("the capture '{}' exists; --force replaces a regular file", path.display());
                CommandError::Usage(why)
            }
            // As in sudo: the lab is in a user namespace by now, and this would else be known only when all is over.
            io::ErrorKind::PermissionDenied => CommandError::Usage(format!(
                "the capture '{}' cannot be written: {error}; the lab has no power over other users' folders even where \
                 root runs it, and needs no root",
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
