//! `twtool kill`: removes timewait buckets, and with --orphans closing sockets that no process has. Plan, show, ask, act,
//! verify; never a socket that a process has open or could still accept.

use std::io;

use clap::Args;

use super::netns::NetnsArgs;
use super::selection::SelectionArgs;
use super::{CommandError, Context, ExitStatus, Format, GlobalArgs};
use crate::lab;
use crate::model::command::{Privilege, Shell};
use crate::model::facts::Facts;
use crate::model::health::Capability;
use crate::model::removal::RemovalResult;
use crate::model::target::{Target, counted};
use crate::snapshot::Snapshot;
use crate::snapshot::removal::{Candidates, Others, Removal};
use crate::view;
use crate::view::json::Envelope;
use crate::view::kill::{Plan, Report};

/// Arguments of `twtool kill`.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = "\
Which buckets: FILTER and flags as in `twtool list`, whose --help explains them; -4 and -6 select, too. TIME_WAIT alone, \
unless --fin-wait-2 or the filter names FIN_WAIT_2. --orphans also selects FIN_WAIT_1, FIN_WAIT_2, CLOSING and LAST_ACK \
sockets that no process has: the kernel reports inode 0 for them. They have no remaining time, so a test on it selects none of \
them. Each is looked up again just before it is removed. A live socket is never touched: each request names both ends, the \
interface and the kernel's cookie of the bucket that was shown, so that it hits that one or nothing. Afterwards the kernel \
is asked again whether they are gone.

What it risks: TIME_WAIT keeps delayed segments of the old connection out of a new one between the same ends (RFC 1337), \
and answers a peer that missed the last ACK (RFC 9293, section 3.6.1); without it, that peer gets a RST. Where the new \
server can set SO_REUSEADDR, that is the better way: `twtool bind-test PORT` says whether it helps.

It needs CAP_NET_ADMIN in the user namespace that owns the network namespace, and a kernel with CONFIG_INET_DIAG_DESTROY. \
It asks before it removes; where stdin or stderr is no terminal, --yes is needed.

Exit codes: 0 all of them are gone, 1 nothing matched, 2 otherwise, also where the question was not answered with yes. With \
--dry-run: 0 something matches, 1 nothing does.

Examples:
  twtool kill --local-port 8080                    shows them, and asks
  twtool kill 'sport = :8080' --yes && twtool bind-test 8080
  twtool kill --direction outbound --dry-run       what would be removed?
  twtool kill 'dst 10.0.0.0/8' --yes --json | jq '.destroyed, .failed'
  twtool kill --local-port 8080 --netns web        in the network namespace web of `ip netns`
  twtool kill --local-port 8080 --orphans          the peer vanished, and its connection holds the port
  twtool kill --all --fin-wait-2 --yes -o ndjson   a record each
")]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub struct KillArgs {
    #[command(flatten)]
    selection: SelectionArgs,
    /// Include closing sockets that no process has: FIN_WAIT_1, FIN_WAIT_2, CLOSING, LAST_ACK
    #[arg(long)]
    orphans: bool,
    /// Allow running without a filter
    #[arg(long)]
    all: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// Show what would be removed, and remove nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    #[command(flatten)]
    netns: NetnsArgs,
}

/// Runs the command.
///
/// # Errors
/// See [`CommandError`].
pub fn run(args: &KillArgs, global: &GlobalArgs, context: &mut Context) -> Result<ExitStatus, CommandError> {
    let asks = !args.yes && !args.dry_run;
    if asks && context.prompt.is_none() {
        return Err(CommandError::Usage(
            "'--yes' is needed because stdin or stderr is no terminal, so kill cannot ask; '--dry-run' shows what would be \
             removed"
                .into(),
        ));
    }
    let Snapshot { namespaces, .. } = args.netns.snapshot()?;
    namespaces.within(|| plan_and_remove(args, global, context))
}

fn plan_and_remove(args: &KillArgs, global: &GlobalArgs, context: &mut Context) -> Result<ExitStatus, CommandError> {
    let asks = !args.yes && !args.dry_run;
    let mut found = Candidates::find(&args.selection.selection(global), args.orphans)?;
    if found.are_everything() && !args.all {
        return Err(CommandError::Usage(
            "nothing says which buckets to remove; give a FILTER or flags as for 'twtool list', or '--all'".into(),
        ));
    }
    let mut warnings = [found.about_words.as_slice(), &found.warnings].concat();
    if found.targets.is_empty() {
        warnings.extend(hints(&found.others, &found.facts, &args.netns.shell(context)));
    }
    if !args.yes && found.seem_forbidden() {
        warnings.push(
            "the kernel will probably refuse to remove them: that needs CAP_NET_ADMIN, and it hides the marks of sockets from \
             this caller, as it does without that capability"
                .into(),
        );
    }
    context.warn(&warnings);

    let plan = Plan { targets: &found.targets, facts: &found.facts, with_state: args.orphans || found.with_state() };
    if asks && !found.targets.is_empty() && !agrees(context, &plan)? {
        let _ = writeln!(context.err, "nothing was removed");
        return Ok(ExitStatus::Incomplete);
    }
    // Whoever was asked has seen the plan. If it cannot be written, nothing is done. A reader that went away, as that of
    // `| head -1` does, does not take back --yes.
    if !asks && !found.targets.is_empty() && global.format() == Format::Table {
        let written = view::kill::plan(context.out, &plan, context.style).and_then(|()| context.out.flush());
        if let Err(error) = written
            && error.kind() != io::ErrorKind::BrokenPipe
        {
            return Err(error.into());
        }
    }
    let removal = if args.dry_run {
        Removal::none(found.targets.len())
    } else {
        check_orphans(&found.targets, &found.facts)?;
        found.remove()?
    };
    context.warn(&removal.warnings);
    warnings.extend(removal.warnings);

    let complete = found.complete && removal.verified;
    let Candidates { targets, facts, .. } = &found;
    let report = Report { targets, outcomes: &removal.outcomes, facts, orphans: args.orphans, dry_run: args.dry_run };
    match global.format() {
        Format::Json => {
            let envelope = Envelope { schema: "twtool.kill/1", facts, complete, warnings: &warnings };
            view::kill::document(context.out, envelope, &report)?;
        }
        Format::Ndjson => view::kill::ndjson(context.out, &report)?,
        Format::Csv => view::kill::csv(context.out, &report)?,
        Format::Table => view::kill::summary(context.out, &report, context.style)?,
    }
    let failed = removal.outcomes.iter().any(|outcome| matches!(outcome, RemovalResult::Failed(_)));
    Ok(match targets.is_empty() {
        _ if failed || !complete => ExitStatus::Incomplete,
        true => ExitStatus::No,
        false => ExitStatus::Yes,
    })
}

/// A sentence for each flag that would select something: with the command, or that this kernel cannot remove them.
fn hints(others: &Others, facts: &Facts, shell: &Shell) -> Vec<String> {
    let hint = |targets: &[Target], flag, is_possible: fn(&Facts) -> bool| {
        let (verb, them) = if targets.len() == 1 { ("matches", "it") } else { ("match", "them") };
        let next = || {
            if !is_possible(facts) {
                return format!("{flag} selects {them}, but this kernel cannot remove {them}");
            }
            let line = shell.again_with(Privilege::Capability(Capability::NetAdmin), "kill", flag);
            let obstacle = line.obstacle.map(|obstacle| format!(" ({obstacle})")).unwrap_or_default();
            format!("{flag} selects {them}: {}{obstacle}", line.text)
        };
        (!targets.is_empty()).then(|| format!("{} {verb}; {}", counted(targets.iter()), next()))
    };
    let fin_wait_2 = hint(&others.fin_wait_2, "--fin-wait-2", |facts| facts.destroys_buckets() != Some(false));
    let orphans = hint(&others.orphans, "--orphans", |facts| lab::orphan::are_ended(facts).unwrap_or(true));
    [fin_wait_2, orphans].into_iter().flatten().collect()
}

/// Shows the plan and asks. Anything but yes is no.
fn agrees(context: &mut Context, plan: &Plan) -> Result<bool, CommandError> {
    let Some(prompt) = &mut context.prompt else { return Ok(false) };
    view::kill::plan(context.err, plan, prompt.style)?;
    view::kill::question(context.err, plan.targets)?;
    let mut typed = String::new();
    if prompt.input.read_line(&mut typed)? == 0 {
        // The end of the input ends no line.
        writeln!(context.err)?;
    }
    Ok(matches!(typed.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

/// Checks that destroying an orphan ends it.
fn check_orphans(targets: &[Target], facts: &Facts) -> Result<(), CommandError> {
    if !targets.iter().any(Target::is_orphan) {
        return Ok(());
    }
    match lab::orphan::are_ended(facts) {
        Ok(true) => Ok(()),
        Ok(false) => Err(CommandError::OrphansStay("this kernel does not end an orphan that is destroyed".into())),
        Err(error) => Err(CommandError::OrphansStay(format!(
            "whether this kernel ends an orphan that is destroyed could not be tried: {error}"
        ))),
    }
}
