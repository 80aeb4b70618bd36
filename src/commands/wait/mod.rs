//! `twtool wait`: until a server could really bind a port, and then perhaps that server in place of this program.

mod reporter;
mod watch;

use std::ffi::OsString;
use std::io::{self, Write};
use std::time::Duration;

use clap::Args;

use super::netns::NetnsArgs;
use super::probe::{self, With};
use super::{Answer, CommandError, Context, Format, GlobalArgs, bad_value, interrupted};
use crate::analysis::next::{self, Failure};
use crate::analysis::waiting::{Ended, ROUND, Step, Waiting};
use crate::analysis::{advice, verdict};
use crate::filter::parser::{DURATION_FORMS, parse_duration};
use crate::model::addr::ScopedAddr;
use crate::model::bind::{Attempt, BindAddr, CallResult, Cause, Errno, Holder, ReuseOptions, ReuseportNote};
use crate::model::facts::{Facts, Setting};
use crate::model::port::{Port, PortArg};
use crate::source;
use crate::sys;
use crate::sys::clock::Stopwatch;
use crate::sys::interrupt::{Held, Interrupts};
use crate::view;
use crate::view::json::Envelope;
use crate::view::wait::Wait;
use reporter::Reporter;
use watch::Watch;

/// Arguments of `twtool wait`.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = "\
The end is proved by a real bind on every address, with the options that --with says. Until then the sockets in the way \
are watched by looking them up, ten times a second, and the port is bound again only when one has gone: a bucket lives \
longer than its timer says by up to some seconds, and shorter where somebody removes it. What cannot be looked up, a \
socket that is only bound, is looked for about once a second. A bind disturbs as that of bind-test does.

An address that is not there (EADDRNOTAVAIL) is waited for like a port. A bind that is denied (EACCES, no IPv6) ends the wait \
at once, because waiting does not change that. Port 0 is refused: the kernel chooses a free port for it, so there is nothing to wait for.

With -- COMMAND, standard output belongs to the command: what wait says goes to standard error, and it says nothing where \
it did not have to wait. Between the last bind and \
the command's own another program can take the port. It runs in twtool's network namespace, whatever --netns says.

Exit codes: 0 it can be bound, 1 the time is over or the bind is denied, 2 it cannot be told, 130 interrupted; with -- COMMAND those of the \
command, 126 where it cannot be run, 127 where there is none.

Examples:
  twtool wait 8080                              until a server with SO_REUSEADDR would get it
  twtool wait 8080 --with none -- ./server      start a server that sets no option when it can
  twtool wait 8080 --addr 192.0.2.1 --timeout 5m || echo 'still taken'
  twtool wait 8080 --timeout 0 -q && echo free  one look
  twtool wait 8080 -o ndjson | jq -r '.cause'   each change of state
  twtool wait 8080 --netns web -- ip netns exec web ./server
")]
pub struct WaitArgs {
    /// Port to wait for: a number 1-65535 or a TCP service name of /etc/services
    #[arg(value_name = "PORT")]
    port: PortArg,
    /// Address to bind; repeat for more [default: 0.0.0.0 and ::]
    #[arg(long, value_name = "ADDR", value_parser = probe::addr_arg)]
    addr: Vec<ScopedAddr>,
    /// What your server sets before bind()
    #[arg(long, value_enum, default_value_t = With::Reuseaddr, value_name = "OPTIONS")]
    with: With,
    /// Give up after this time, like 500ms, 10s or 5m; 0 tries once
    #[arg(long, value_name = "DURATION", default_value = "120s", value_parser = timeout, allow_negative_numbers = true)]
    timeout: Duration,
    /// Print nothing; the exit code tells
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    netns: NetnsArgs,
    /// Run this in place of twtool when the port can be bound
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

fn timeout(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    parse_duration(text).ok_or_else(|| format!("{DURATION_FORMS}; 0 tries once"))
}

/// Answers, or becomes the command.
///
/// # Errors
/// See [`CommandError`].
pub fn run(args: &WaitArgs, global: &GlobalArgs, context: &mut Context) -> Result<Answer, CommandError> {
    if global.format() == Format::Csv {
        return Err(bad_value(&"csv", "--output <FORMAT>", "a wait is not flat; there are table, json and ndjson"));
    }
    // Before there is another thread: a signal goes to any thread that does not hold it back.
    let interrupts = reporter::draws(args, global, context).then(Interrupts::hold).transpose()?;
    // A thread that looks into another namespace alone decides when signals are delivered (see `sys::bind::attempts`).
    let held = Held::all();
    let answer = args.netns.within(|| {
        held.release();
        answer(args, global, context, interrupts.as_ref())
    });
    drop((held, interrupts));
    let answer = answer?;
    match (answer, args.command.split_first()) {
        (Answer::Yes, Some((program, rest))) => {
            let source = sys::exec::replace(program, rest);
            Err(CommandError::Exec { program: program.clone(), source })
        }
        (answer, _) => Ok(answer),
    }
}

fn answer(
    args: &WaitArgs,
    global: &GlobalArgs,
    context: &mut Context,
    interrupts: Option<&Interrupts>,
) -> Result<Answer, CommandError> {
    let facts = source::kernel_facts();
    let port = probe::single_port(&args.port, &facts)?;
    if port.reserved_by_rfc() {
        return Err(bad_value(&port, "<PORT>", "the kernel chooses a free port for 0: there is nothing to wait for"));
    }
    let mut warnings = facts.gaps(&[Setting::LocalPortRange, Setting::UnprivilegedPortStart]);
    let known = warnings.is_empty();
    let addrs = probe::addresses(&args.addr, global, &facts, &mut warnings)?;

    let mut watch = Watch::new(port, &addrs, args.with.options())?;
    let target = Target { facts: &facts, port, addrs: &addrs, with: args.with.options(), timeout: args.timeout };
    let shell = args.netns.shell(context);
    let mut reporter = Reporter::new(args, global, context, interrupts);
    let outcome = target.wait(&mut watch, &mut reporter);
    reporter.clear();
    let outcome = outcome?;

    let bindable = outcome.bindable();
    warnings.extend(watch.warnings());
    warnings.extend((!watch.complete()).then(interrupted));
    warnings.extend(watch.note().warning().map(str::to_owned));
    warnings.extend(watch.unread());
    warnings.extend(probe::hidden_owners(&outcome.blocked_by));
    warnings.extend((!bindable).then(|| target.reasons(watch.attempts())).into_iter().flatten());
    // Where a holder may exist that the source cannot show, the answer is not whole.
    let unseen = outcome.cause == Cause::Unknown && !watch.bound_sockets_are_listed();
    let complete = known && watch.complete() && watch.unread().is_none() && !unseen;

    let now = Facts { taken_at: sys::clock::now(), ..facts.clone() };
    let next = if bindable {
        vec![]
    } else {
        next::steps(&Failure {
            shell: &shell,
            uid: sys::capabilities::effective_user(),
            facts: &facts,
            port,
            addrs: &addrs,
            with: target.with,
            cause: outcome.cause,
            holders: &outcome.blocked_by,
            free_in: outcome.remaining,
            waited: true,
        })
    };
    let wait = Wait { note_lost: watch.note() != ReuseportNote::Kept, next: &next, ..outcome.shown(&target) };
    // A command speaks for itself where it did not have to wait.
    let silent = bindable && !args.command.is_empty() && wait.waited < ROUND;
    let look = context.look;
    let envelope = Envelope { schema: "twtool.wait/1", facts: &now, complete, warnings: &warnings };
    say(args, context, |out| match global.format() {
        Format::Json => view::wait::document(out, envelope, &wait),
        Format::Ndjson => view::wait::ndjson(out, &wait),
        Format::Table | Format::Csv if silent => Ok(()),
        Format::Table | Format::Csv => view::wait::answer(out, &wait, look),
    })?;
    let answer = match (bindable, complete) {
        (true, _) => Answer::Yes,
        (false, true) => Answer::No,
        (false, false) => Answer::Incomplete,
    };
    // The reasons follow the verdict. Exit code 2 always has one.
    if !args.quiet || answer == Answer::Incomplete {
        context.warn(&warnings);
    }
    Ok(answer)
}

/// Writes at once, unless nothing is to be said. Where a command follows, standard output is the command's, and that
/// standard error cannot be written is no reason not to run it.
fn say(
    args: &WaitArgs,
    context: &mut Context,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), CommandError> {
    if args.quiet {
        return Ok(());
    }
    if args.command.is_empty() {
        write(context.out)?;
        context.out.flush()?;
    } else {
        let _ = write(context.err);
    }
    Ok(())
}

/// What is waited for, and how long.
struct Target<'a> {
    facts: &'a Facts,
    port: Port,
    addrs: &'a [BindAddr],
    with: ReuseOptions,
    timeout: Duration,
}

/// How it stands, or ended.
struct Outcome {
    /// `None`: it goes on.
    ended: Option<Ended>,
    waited: Duration,
    attempts: u32,
    blocked_by: Vec<Holder>,
    cause: Cause,
    remaining: Option<Duration>,
}

impl Target<'_> {
    /// Waits, and lets the reporter tell what happens meanwhile.
    fn wait(&self, watch: &mut Watch, reporter: &mut Reporter) -> Result<Outcome, CommandError> {
        let clock = Stopwatch::start();
        let mut waiting = Waiting::new(self.with == ReuseOptions::NONE, watch.looks_up(), self.timeout);
        loop {
            match waiting.next(clock.elapsed()) {
                Step::Bind { every_address } => {
                    let (bound, binds) = watch.bind(every_address)?;
                    waiting.bound(bound, binds, clock.elapsed());
                }
                Step::Look => {
                    let began = clock.elapsed();
                    let (sockets, explained) = watch.look()?;
                    let now = clock.elapsed();
                    waiting.looked(&sockets, explained, now.saturating_sub(began), now);
                }
                Step::LookUp(socket) => {
                    let found = watch.look_up(&socket)?;
                    waiting.looked_up(found, clock.elapsed());
                }
                Step::Pause(pause) => reporter.pause(self, watch, &waiting, clock, pause)?,
                Step::End(ended) => {
                    let outcome = self.outcome(watch, &waiting, Some(ended), clock.elapsed());
                    return self.with_exact_cause(outcome, watch, &waiting);
                }
            }
        }
    }

    /// How it stands.
    fn outcome(&self, watch: &Watch, waiting: &Waiting, ended: Option<Ended>, waited: Duration) -> Outcome {
        let blocked_by = watch.holders(waiting.known());
        Outcome {
            ended,
            waited,
            attempts: waiting.binds().saturating_add(watch.extra_binds()),
            cause: self.cause(watch, &blocked_by, false),
            remaining: waiting.remaining(waited),
            blocked_by,
        }
    }

    fn cause(&self, watch: &Watch, blocked_by: &[Holder], reuseaddr_works: bool) -> Cause {
        verdict::cause(self.facts, self.port, watch.attempts(), blocked_by, reuseaddr_works)
    }

    /// The same for a record or an answer, which name the cause: where only buckets block, one more bind finds out
    /// whether SO_REUSEADDR gets past them. The line on a terminal does not name the cause and needs no such bind.
    fn with_exact_cause(
        &self,
        mut outcome: Outcome,
        watch: &mut Watch,
        waiting: &Waiting,
    ) -> Result<Outcome, CommandError> {
        if verdict::only_buckets(outcome.cause) {
            let works = watch.reuseaddr_works(waiting.changes())?;
            outcome.cause = self.cause(watch, &outcome.blocked_by, works);
            outcome.attempts = waiting.binds().saturating_add(watch.extra_binds());
        }
        Ok(outcome)
    }

    /// Why binds failed, where it is not for the port being in use; each reason once.
    fn reasons(&self, attempts: &[Attempt]) -> Vec<String> {
        let mut reasons = vec![];
        for attempt in attempts {
            let reason = match attempt.bind {
                CallResult::Ok | CallResult::Failed(Errno::AddrInUse) => continue,
                CallResult::Failed(errno) => advice::denial(self.facts, self.port, attempt, errno),
            };
            if !reasons.contains(&reason) {
                reasons.push(reason);
            }
        }
        reasons
    }
}

impl Outcome {
    const fn bindable(&self) -> bool {
        matches!(self.ended, Some(Ended::Bindable))
    }

    /// Whether the bind fails for a reason that waiting does not change.
    const fn denied(&self) -> bool {
        matches!(self.ended, Some(Ended::Denied))
    }

    fn shown<'a>(&'a self, target: &Target<'a>) -> Wait<'a> {
        Wait {
            facts: target.facts,
            port: target.port,
            addrs: target.addrs,
            with: target.with,
            bindable: self.bindable(),
            denied: self.denied(),
            waited: self.waited,
            attempts: self.attempts,
            blocked_by: &self.blocked_by,
            cause: self.cause,
            remaining: self.remaining,
            note_lost: false,
            next: &[],
        }
    }
}
