//! `twtool kill`: remove timewait buckets before their time. Plan, show, ask, act, verify; never a live socket.

use std::collections::HashSet;
use std::io;

use clap::Args;

use super::netns::NetnsArgs;
use super::selection::{Query, SelectionArgs, gaps};
use super::{Answer, CommandError, Context, Format, GlobalArgs, interrupted};
use crate::filter::Filter;
use crate::model::listeners::Listeners;
use crate::model::outcome::Outcome;
use crate::model::row::Row;
use crate::model::socket::{Cookie, Socket, StateSet, TcpState};
use crate::sock_diag::destroy::{self, Answer as KernelAnswer, Destruction};
use crate::sock_diag::transport::Netlink;
use crate::source::{Choice, Source, SourceError, WalkEnd};
use crate::sys::errno;
use crate::view;
use crate::view::json::Envelope;
use crate::view::kill::{Plan, Report};

/// Arguments of `twtool kill`.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = "\
Which buckets: FILTER and flags as in `twtool list`, whose --help explains them; -4 and -6 select, too. TIME_WAIT alone, \
unless --fin-wait-2 or the filter names FIN_WAIT_2. A live socket is never touched: each request names both ends, the \
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
  twtool kill --all --fin-wait-2 --yes -o ndjson   a record each
")]
pub struct KillArgs {
    #[command(flatten)]
    selection: SelectionArgs,
    /// Remove every one, where nothing else selects
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
            "'--yes' is needed where nobody can be asked, for stdin or stderr is no terminal; '--dry-run' shows what would \
             be removed"
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
    let Found { rows, complete } = find(&query, &mut source)?;
    let mut warnings = gaps(&facts);
    warnings.extend((!complete).then(interrupted));
    warnings.extend((!args.yes && unprivileged(&rows)).then(|| {
        "removing them will probably be refused: it needs CAP_NET_ADMIN, and the marks that the kernel tells to that \
         capability alone are not told here"
            .into()
    }));
    context.warn(&warnings);

    let plan = Plan { rows: &rows, facts: &facts, with_state: query.states.contains(TcpState::FinWait2) };
    if asks && !rows.is_empty() && !agrees(context, &plan)? {
        let _ = writeln!(context.err, "nothing was removed");
        return Ok(Answer::Incomplete);
    }
    // Who was asked has seen the plan. Where it cannot be written, nothing is done; a reader that went away, as that of
    // `| head -1` does, has said --yes all the same.
    if !asks && !rows.is_empty() && global.format() == Format::Table {
        let shown = view::kill::plan(context.out, &plan, context.look).and_then(|()| context.out.flush());
        if let Err(error) = shown
            && error.kind() != io::ErrorKind::BrokenPipe
        {
            return Err(error.into());
        }
    }
    let removal = if args.dry_run { Removal::none(rows.len()) } else { remove(&rows, &query, &mut source)? };
    context.warn(&removal.warnings);

    let complete = complete && removal.verified;
    let report = Report { rows: &rows, outcomes: &removal.outcomes, facts: &facts, dry_run: args.dry_run };
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
    Ok(match rows.is_empty() {
        _ if failed || !complete => Answer::Incomplete,
        true => Answer::No,
        false => Answer::Yes,
    })
}

/// The buckets that are selected.
struct Found {
    rows: Vec<Row>,
    complete: bool,
}

/// Finds them, in the kernel's order: asking it for one after the other in that order is the fastest.
fn find(query: &Query, source: &mut Source) -> Result<Found, CommandError> {
    let facts = source.facts().clone();
    let ((_, rows), end) = source.collect(
        query.states,
        &query.filter,
        || (Listeners::default(), vec![]),
        |(listeners, rows), socket| rows.extend(query.row(listeners, &facts, socket)),
    )?;
    // What is removed may not hang on a guess.
    query.judged()?;
    query.directed(&facts)?;
    Ok(Found { rows, complete: end.complete })
}

/// Whether it seems that nothing may be removed: an inference, and not made for kernels that tell the mark of no bucket.
fn unprivileged(rows: &[Row]) -> bool {
    !rows.is_empty() && rows.iter().all(|row| row.bucket.mark.is_none())
}

/// Shows the plan and asks. Anything but yes is no.
fn agrees(context: &mut Context, plan: &Plan) -> Result<bool, CommandError> {
    let Some(person) = &mut context.person else { return Ok(false) };
    view::kill::plan(context.err, plan, person.look)?;
    view::kill::question(context.err, plan.rows.len())?;
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

/// Removes them, and looks again. What the kernel refuses for all of them is an error, for then nothing has changed.
fn remove(rows: &[Row], query: &Query, source: &mut Source) -> Result<Removal, CommandError> {
    if rows.is_empty() {
        return Ok(Removal::none(0));
    }
    // A socket of its own: an answer that was left unread cannot meet the second walk.
    let mut kernel = Netlink::open().map_err(SourceError::Open)?;
    let Destruction { answers, end } = destroy::run(&mut kernel, rows);
    let mut warnings = vec![];
    if let Err(error) = end {
        if !answers.contains(&KernelAnswer::Done) {
            return Err(error.into());
        }
        warnings.push(format!("not every bucket was asked for: {error}"));
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
        |row: &Row| left.as_ref().map(|left| row.bucket.cookie.is_none_or(|cookie| left.contains(&cookie)));
    let outcomes = rows.iter().zip(&answers).map(|(row, answer)| outcome(*answer, still_there(row))).collect();
    Ok(Removal { outcomes, verified, warnings })
}

/// The cookies of the buckets that the query could still mean.
fn left(query: &Query, source: &mut Source) -> Result<(HashSet<Cookie>, WalkEnd), SourceError> {
    let states = query.states.without(StateSet::of(&[TcpState::Listen]));
    source.collect(states, &query.filter, HashSet::new, |left, socket| {
        if let Socket::Bucket(bucket) = socket {
            left.extend(bucket.cookie);
        }
    })
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
