//! `twtool kill`: remove timewait buckets, and with --orphans closing sockets that no process has. Plan, show, ask, act,
//! verify; never a socket that a process has open or could still accept.

use std::collections::HashSet;
use std::io;

use clap::Args;

use super::netns::NetnsArgs;
use super::selection::{Query, SelectionArgs, gaps};
use super::{Answer, CommandError, Context, Format, GlobalArgs, interrupted};
use crate::filter::Filter;
use crate::lab;
use crate::model::command::Shell;
use crate::model::facts::Facts;
use crate::model::health::Capability;
use crate::model::listeners::Listeners;
use crate::model::outcome::Outcome;
use crate::model::row::Row;
use crate::model::socket::{Cookie, Socket, StateSet, TcpState};
use crate::model::target::{ORPHAN_STATES, Target, counted};
use crate::sock_diag::destroy::{self, Answer as KernelAnswer, Destruction};
use crate::sock_diag::transport::Netlink;
use crate::source::{Choice, Source, SourceError, WalkEnd, open_netlink};
use crate::sys::{capabilities, errno};
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

/// Answers.
///
/// # Errors
/// See [`CommandError`].
pub fn run(args: &KillArgs, global: &GlobalArgs, context: &mut Context) -> Result<Answer, CommandError> {
    let asks = !args.yes && !args.dry_run;
    if asks && context.person.is_none() {
        return Err(CommandError::Usage(
            "'--yes' is needed because stdin or stderr is no terminal, so kill cannot ask; '--dry-run' shows what would be \
             removed"
                .into(),
        ));
    }
    args.netns.within(|| answer(args, global, context))
}

fn answer(args: &KillArgs, global: &GlobalArgs, context: &mut Context) -> Result<Answer, CommandError> {
    let asks = !args.yes && !args.dry_run;
    // procfs has no cookies, so there is nothing to fall back to.
    let mut source = Source::kernel(Choice::SockDiag)?;
    let query = Query::new(&args.selection, global, source.facts(), true)?;
    if query.filter == Filter::TRUE && !args.all {
        return Err(CommandError::Usage(
            "nothing says which buckets to remove; give a FILTER or flags as for 'twtool list', or '--all'".into(),
        ));
    }
    context.warn(&query.warnings);
    let facts = source.facts().clone();
    let Found { targets, others, complete: found_all } = find(&query, args.orphans, &mut source)?;
    facts.interfaces.look_up(targets.iter().filter_map(|target| target.socket.interface()));
    let mut warnings = gaps(&facts);
    let complete = found_all && warnings.is_empty();
    warnings.extend((!found_all).then(interrupted));
    if targets.is_empty() {
        warnings.extend(others.hints(&args.netns.shell(context)));
    }
    warnings.extend((!args.yes && unprivileged(&targets, &facts)).then(|| {
        "the kernel will probably refuse to remove them: that needs CAP_NET_ADMIN, and it hides the marks of sockets from \
         this caller, as it does without that capability"
            .into()
    }));
    context.warn(&warnings);

    let plan = Plan { targets: &targets, facts: &facts, with_state: args.orphans || query.with_state() };
    if asks && !targets.is_empty() && !agrees(context, &plan)? {
        let _ = writeln!(context.err, "nothing was removed");
        return Ok(Answer::Incomplete);
    }
    // Who was asked has seen the plan. Where it cannot be written, nothing is done; a reader that went away, as that of
    // `| head -1` does, has said --yes all the same.
    if !asks && !targets.is_empty() && global.format() == Format::Table {
        let shown = view::kill::plan(context.out, &plan, context.look).and_then(|()| context.out.flush());
        if let Err(error) = shown
            && error.kind() != io::ErrorKind::BrokenPipe
        {
            return Err(error.into());
        }
    }
    let removal = if args.dry_run { Removal::none(targets.len()) } else { remove(&targets, &query, &mut source)? };
    context.warn(&removal.warnings);

    let complete = complete && removal.verified;
    let (outcomes, orphans) = (&removal.outcomes, args.orphans);
    let report = Report { targets: &targets, outcomes, facts: &facts, orphans, dry_run: args.dry_run };
    match global.format() {
        Format::Json => {
            let warnings = [query.warnings.as_slice(), &warnings, &removal.warnings].concat();
            let envelope = Envelope { schema: "twtool.kill/1", facts: &facts, complete, warnings: &warnings };
            view::kill::document(context.out, envelope, &report)?;
        }
        Format::Ndjson => view::kill::ndjson(context.out, &report)?,
        Format::Csv => view::kill::csv(context.out, &report)?,
        Format::Table => view::kill::summary(context.out, &report, context.look)?,
    }
    let failed = removal.outcomes.iter().any(|outcome| matches!(outcome, Outcome::Failed(_)));
    Ok(match targets.is_empty() {
        _ if failed || !complete => Answer::Incomplete,
        true => Answer::No,
        false => Answer::Yes,
    })
}

/// The buckets and orphans that are selected.
struct Found {
    targets: Vec<Target>,
    others: Others,
    complete: bool,
}

/// What the filter passes as well, and only another flag selects.
#[derive(Default)]
struct Others {
    fin_wait_2: Vec<Target>,
    orphans: Vec<Target>,
}

impl Others {
    /// Which commands would select something, a sentence each.
    fn hints(&self, shell: &Shell) -> Vec<String> {
        let hint = |targets: &Vec<Target>, flag| {
            let (verb, them) = if targets.len() == 1 { ("matches", "it") } else { ("match", "them") };
            let select = || format!("{flag} selects {them}: {}", shell.again_with("kill", flag));
            (!targets.is_empty()).then(|| format!("{} {verb}; {}", counted(targets.iter()), select()))
        };
        [hint(&self.fin_wait_2, "--fin-wait-2"), hint(&self.orphans, "--orphans")].into_iter().flatten().collect()
    }
}

/// Finds them, in the kernel's order: asking it for one after the other in that order is the fastest.
fn find(query: &Query, orphans: bool, source: &mut Source) -> Result<Found, CommandError> {
    let facts = source.facts().clone();
    let ((_, targets, others), end) = source.collect(
        query.states.union(ORPHAN_STATES),
        &query.filter,
        || (Listeners::default(), vec![], Others::default()),
        |(listeners, targets, others), socket| match socket {
            Socket::Full(full) if full.is_orphan() => {
                let found = if orphans { targets } else { &mut others.orphans };
                found.extend(query.orphan(listeners, &facts, full));
            }
            Socket::Bucket(bucket) if !query.states.contains(bucket.state()) => {
                others.fin_wait_2.extend(query.row(listeners, &facts, socket).map(Target::from));
            }
            _ => targets.extend(query.row(listeners, &facts, socket).map(Target::from)),
        },
    )?;
    // What is removed may not depend on a guess.
    query.judged()?;
    query.directed(&facts)?;
    Ok(Found { targets, others, complete: end.complete })
}

/// Whether it seems that nothing may be removed, an inference: the kernel tells marks to CAP_NET_ADMIN alone. Linux 5.10
/// tells the mark of a bucket to nobody, so there only the caller's own capabilities count.
fn unprivileged(targets: &[Target], facts: &Facts) -> bool {
    let unmarked = !targets.is_empty() && targets.iter().all(|target| target.row().bucket.mark.is_none());
    let privileged = || capabilities::effective().is_ok_and(|set| set.has(Capability::NetAdmin));
    unmarked && (facts.kernel_since(6, 1) != Some(false) || !privileged())
}

/// Shows the plan and asks. Anything but yes is no.
fn agrees(context: &mut Context, plan: &Plan) -> Result<bool, CommandError> {
    let Some(person) = &mut context.person else { return Ok(false) };
    view::kill::plan(context.err, plan, person.look)?;
    view::kill::question(context.err, plan.targets)?;
    let mut typed = String::new();
    if person.input.read_line(&mut typed)? == 0 {
        // The end of the input ends no line.
        writeln!(context.err)?;
    }
    Ok(matches!(typed.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

/// What came of the attempt.
struct Removal {
    outcomes: Vec<Outcome>,
    /// The kernel was asked again, and told everything.
    verified: bool,
    warnings: Vec<String>,
}

impl Removal {
    /// None was made.
    fn none(rows: usize) -> Self {
        Self { outcomes: vec![Outcome::Matched; rows], verified: true, warnings: vec![] }
    }
}

/// Removes them, and looks again. What the kernel refuses for all of them is an error, because then nothing has changed.
fn remove(targets: &[Target], query: &Query, source: &mut Source) -> Result<Removal, CommandError> {
    if targets.is_empty() {
        return Ok(Removal::none(0));
    }
    // A socket of its own: an answer that was left unread cannot meet the second walk.
    let mut kernel = open_netlink()?;
    let mut answers = vec![KernelAnswer::None; targets.len()];
    let mut warnings = vec![];
    // Orphans first: a kernel that destroys no buckets destroys full sockets.
    remove_orphans(targets, &mut answers, &mut kernel, source, &mut warnings)?;
    let at: Vec<usize> = (0..targets.len()).filter(|&i| !targets[i].is_orphan()).collect();
    let buckets: Vec<Row> = at.iter().map(|&i| targets[i].row()).collect();
    let Destruction { answers: of_buckets, end } = destroy::run(&mut kernel, &buckets);
    for (&i, answer) in at.iter().zip(of_buckets) {
        answers[i] = answer;
    }
    if let Err(error) = end {
        if error.changed_nothing() && !answers.contains(&KernelAnswer::Done) {
            return Err(error.into());
        }
        warnings.push(format!("not every answer of the kernel came: {error}"));
    }
    let left = left(query, source);
    let verified = matches!(&left, Ok((_, WalkEnd { complete: true })));
    let left = match left {
        Ok((left, end)) => {
            warnings.extend((!end.complete).then(interrupted));
            Some(left)
        }
        Err(error) => {
            warnings.push(format!("whether they are gone could not be verified: {error}"));
            None
        }
    };
    let still_there =
        |target: &Target| left.as_ref().map(|left| target.socket.cookie().is_none_or(|cookie| left.contains(&cookie)));
    let outcomes = targets.iter().zip(&answers).map(|(target, answer)| outcome(*answer, still_there(target))).collect();
    Ok(Removal { outcomes, verified, warnings })
}

/// Removes the orphans among the targets, each after a look at what it is now.
///
/// # Errors
/// A kernel on which that would leave a socket without a timer, and what the kernel refuses for the first of them.
fn remove_orphans(
    targets: &[Target],
    answers: &mut [KernelAnswer],
    kernel: &mut Netlink,
    source: &mut Source,
    warnings: &mut Vec<String>,
) -> Result<(), CommandError> {
    let mut orphans = targets.iter().zip(answers).filter(|(target, _)| target.is_orphan()).peekable();
    if orphans.peek().is_none() {
        return Ok(());
    }
    orphans_can_be_destroyed(source)?;
    let mut any = false;
    for (target, answer) in orphans {
        // It may have become a bucket meanwhile, with the same cookie.
        let is_orphan = |now: &Socket| match now {
            Socket::Full(full) => full.is_orphan(),
            Socket::Bucket(_) => true,
        };
        let now = match source.look_up(&target.socket) {
            Err(error) if !any => return Err(error.into()),
            Err(error) => {
                warnings.push(format!("not every orphan was asked for: {error}"));
                return Ok(());
            }
            Ok(now) => now,
        };
        *answer = match now {
            None => KernelAnswer::NotFound,
            Some(now) if !is_orphan(&now) => KernelAnswer::None,
            Some(now) => {
                let row = Target { socket: now, ..*target }.row();
                let Destruction { answers, end } = destroy::run(kernel, &[row]);
                if let Err(error) = end {
                    if error.changed_nothing() && !any {
                        return Err(error.into());
                    }
                    warnings.push(format!("not every answer of the kernel came: {error}"));
                    return Ok(());
                }
                any = true;
                answers[0]
            }
        };
    }
    Ok(())
}

/// Since Linux 6.11 SOCK_DESTROY ends an orphan. An older kernel is asked in a private network namespace.
fn orphans_can_be_destroyed(source: &Source) -> Result<(), CommandError> {
    if source.facts().kernel_since(6, 11) == Some(true) {
        return Ok(());
    }
    match lab::orphan::ends_when_destroyed() {
        Ok(true) => Ok(()),
        Ok(false) => Err(CommandError::OrphansStay("this kernel does not end an orphan that is destroyed".into())),
        Err(error) => Err(CommandError::OrphansStay(format!(
            "whether this kernel ends an orphan that is destroyed could not be tried: {error}"
        ))),
    }
}

/// The cookies of the sockets that the query could still mean.
fn left(query: &Query, source: &mut Source) -> Result<(HashSet<Cookie>, WalkEnd), SourceError> {
    let states = query.states.union(ORPHAN_STATES).without(StateSet::of(&[TcpState::Listen]));
    source.collect(states, &query.filter, HashSet::new, |left, socket| left.extend(socket.cookie()))
}

/// What an answer means, beside what the second look says: whether the bucket is still there, where that is known.
fn outcome(answer: KernelAnswer, still_there: Option<bool>) -> Outcome {
    match (answer, still_there) {
        (KernelAnswer::Done, Some(false) | None) => Outcome::Destroyed,
        (KernelAnswer::NotFound, Some(false) | None) | (KernelAnswer::Failed(_) | KernelAnswer::None, Some(false)) => {
            Outcome::Gone
        }
        (KernelAnswer::NotFound, Some(true)) => Outcome::Failed(Some("ENOENT")),
        (KernelAnswer::Failed(number), _) => Outcome::Failed(Some(errno::name(number))),
        (KernelAnswer::Done | KernelAnswer::None, _) => Outcome::Failed(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_destroyed_when_the_kernel_said_so_and_does_not_show_it_any_more() {
        const EINVAL: i32 = 22;
        for (answer, still_there, expected) in [
            (KernelAnswer::Done, Some(false), Outcome::Destroyed),
            (KernelAnswer::Done, None, Outcome::Destroyed),
            (KernelAnswer::Done, Some(true), Outcome::Failed(None)),
            (KernelAnswer::NotFound, Some(false), Outcome::Gone),
            (KernelAnswer::NotFound, None, Outcome::Gone),
            (KernelAnswer::NotFound, Some(true), Outcome::Failed(Some("ENOENT"))),
            (KernelAnswer::Failed(EINVAL), Some(false), Outcome::Gone),
            (KernelAnswer::Failed(EINVAL), Some(true), Outcome::Failed(Some("EINVAL"))),
            (KernelAnswer::Failed(EINVAL), None, Outcome::Failed(Some("EINVAL"))),
            (KernelAnswer::None, Some(false), Outcome::Gone),
            (KernelAnswer::None, Some(true), Outcome::Failed(None)),
            (KernelAnswer::None, None, Outcome::Failed(None)),
        ] {
            assert_eq!(outcome(answer, still_there), expected, "{answer:?}, {still_there:?}");
        }
    }
}
