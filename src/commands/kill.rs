//! `twtool kill`: removes timewait buckets and, with --orphans, sockets in a closing state that no process has open.
//!
//! 1. Select the sockets.
//! 2. Show the plan with its risks. With --yes or --dry-run, only the table format shows it.
//! 3. Ask for confirmation, unless --yes is given.
//! 4. Remove the sockets.
//! 5. Verify that they are gone.
//!
//! kill never removes a socket that a process has open or could still accept.

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
use crate::model::target::{Target, count_by_kind};
use crate::snapshot::Snapshot;
use crate::snapshot::removal::{Candidates, ExcludedSockets, Removal};
use crate::view;
use crate::view::json::Envelope;
use crate::view::kill::{Plan, RemovalReport};

/// Arguments of `twtool kill`.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = "\
Selection: FILTER and the flags work as in `twtool list`; see its --help. -4 and -6 also count as filters, so `twtool kill -4` \
runs without --all. kill selects only TIME_WAIT sockets, unless --fin-wait-2 is given or the filter names FIN_WAIT_2. \
--orphans adds orphans: sockets in FIN_WAIT_1, FIN_WAIT_2, CLOSING or LAST_ACK that no process has open, and for which the kernel \
reports inode 0. Orphans have no remaining time, so a filter that contains `expires` excludes them. twtool looks up each orphan \
again immediately before the removal.

kill never removes a listener, or a socket that a process has open. Each request contains both ends, the interface and the \
kernel's cookie of the socket, so it removes exactly this socket or nothing. Afterwards, twtool checks that the sockets are gone.

Risk: TIME_WAIT has two purposes. First: it prevents delayed segments of the old connection from reaching a new connection with \
the same addresses and ports (RFC 9293, section 3.3.2, and RFC 1337). Second: if the last ACK was lost, the peer sends its FIN again, \
and the TIME_WAIT socket acknowledges it (RFC 9293, section 3.10.7.4). If you remove the socket, that peer gets a RST. If the new \
server can set SO_REUSEADDR, that is the better solution: `twtool bind-test PORT` shows whether it helps.

Requirements: CAP_NET_ADMIN in the user namespace that owns the network namespace, and a kernel with \
CONFIG_INET_DIAG_DESTROY. kill asks before it removes anything; --yes is required if stdin or stderr is not a terminal.

Exit codes: 0 all selected sockets are gone, 1 nothing matched, 2 otherwise, for example if you answer no. With --dry-run: 0 \
something matches, 1 nothing matches.

Examples:
  twtool kill --local-port 8080                    show the sockets of a port, and ask
  twtool kill 'sport = :8080' --yes && twtool bind-test 8080
  twtool kill --direction outbound --dry-run       show what would be removed
  twtool kill 'dst 10.0.0.0/8' --yes --json | jq '.destroyed, .failed'
  twtool kill --local-port 8080 --netns web        use the network namespace web of `ip netns`
  twtool kill --local-port 8080 --orphans          free a port after the peer vanished
  twtool kill --all --fin-wait-2 --yes -o ndjson   print one record per socket
")]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub struct KillArgs {
    #[command(flatten)]
    selection: SelectionArgs,
    /// Include sockets that no process has open and that are not timewait buckets, in FIN_WAIT_1, FIN_WAIT_2, CLOSING or LAST_ACK
    #[arg(long)]
    orphans: bool,
    /// Allow running without a filter
    #[arg(long)]
    all: bool,
    /// Remove without asking
    #[arg(short, long)]
    yes: bool,
    /// Show the sockets that would be removed, and remove nothing
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
    let Snapshot { namespaces, .. } = args.netns.snapshot()?;
    namespaces.within(|| plan_and_remove(args, global, context))
}

fn plan_and_remove(args: &KillArgs, global: &GlobalArgs, context: &mut Context) -> Result<ExitStatus, CommandError> {
    let asks = !args.yes && !args.dry_run;
    let mut found = Candidates::find(&args.selection.selection(global), args.orphans)?;
    if found.are_everything() && !args.all {
        return Err(CommandError::Usage(
            "no selection; give a FILTER or flags as for 'twtool list', or '--all'".into(),
        ));
    }
    let mut warnings = [found.filter_warnings.as_slice(), &found.warnings].concat();
    if asks && !found.targets.is_empty() && context.prompt.is_none() {
        return Err(CommandError::Usage(format!(
            "'--yes' is required to remove {} because stdin or stderr is not a terminal and kill cannot ask; '--dry-run' shows \
             what would be removed",
            count_by_kind(found.targets.iter()),
        )));
    }
    if found.targets.is_empty() {
        warnings.extend(hints(&found.others, &found.facts, &args.netns.shell(context)));
    }
    if !args.yes && found.probably_forbidden() {
        warnings.push(
            "the kernel will probably refuse to remove the sockets: removal needs CAP_NET_ADMIN. This user seems to lack it, \
             because the kernel hides the marks of sockets"
                .into(),
        );
    }
    context.warn(&warnings);

    let plan = Plan { targets: &found.targets, facts: &found.facts, with_state: args.orphans || found.with_state() };
    if asks && !found.targets.is_empty() && !confirm_removal(context, &plan)? {
        let _ = writeln!(context.err, "nothing was removed");
        return Ok(ExitStatus::Incomplete);
    }
    // A user who was asked has already seen the plan. If the plan cannot be written, nothing is removed. But a closed pipe, as
    // with `| head -1`, does not cancel --yes.
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
    let report = RemovalReport {
        targets,
        outcomes: &removal.outcomes,
        facts,
        fin_wait_2: found.with_state(),
        orphans: args.orphans,
        dry_run: args.dry_run,
    };
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

/// Suggests each flag that would select sockets. A suggestion has the command to run, or says that this kernel cannot remove the
/// sockets.
fn hints(others: &ExcludedSockets, facts: &Facts, shell: &Shell) -> Vec<String> {
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
        (!targets.is_empty()).then(|| format!("{} {verb}; {}", count_by_kind(targets.iter()), next()))
    };
    let fin_wait_2 = hint(&others.fin_wait_2, "--fin-wait-2", |facts| facts.destroys_buckets() != Some(false));
    let orphans = hint(&others.orphans, "--orphans", |facts| lab::orphan::sock_destroy_works(facts).unwrap_or(true));
    [fin_wait_2, orphans].into_iter().flatten().collect()
}

/// Shows the plan and asks for confirmation. Only `y` and `yes` confirm.
fn confirm_removal(context: &mut Context, plan: &Plan) -> Result<bool, CommandError> {
    let Some(prompt) = &mut context.prompt else { return Ok(false) };
    view::kill::plan(context.err, plan, prompt.style)?;
    view::kill::question(context.err, plan.targets)?;
    let mut typed = String::new();
    if prompt.input.read_line(&mut typed)? == 0 {
        // At the end of input, the cursor is still behind the question.
        writeln!(context.err)?;
    }
    Ok(matches!(typed.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

/// Returns an error if the selection contains an orphan, unless SOCK_DESTROY ends orphans on this kernel.
fn check_orphans(targets: &[Target], facts: &Facts) -> Result<(), CommandError> {
    if !targets.iter().any(Target::is_orphan) {
        return Ok(());
    }
    match lab::orphan::sock_destroy_works(facts) {
        Ok(true) => Ok(()),
        Ok(false) => Err(CommandError::OrphansStay("on this kernel, SOCK_DESTROY does not end an orphan".into())),
        Err(error) => Err(CommandError::OrphansStay(format!(
            "twtool could not test whether SOCK_DESTROY ends an orphan on this kernel: {error}"
        ))),
    }
}
