//! What Enter and `k` show about a row: all its values, advice, and the commands that help.

use std::net::SocketAddr;

use super::counted::MakerCount;
use super::latest::{LatestSample, name_of};
use super::tables::SelectedRow;
use crate::analysis::capacity::advice;
use crate::analysis::doctor::BucketsByMaker;
use crate::analysis::groups::{GroupBy, GroupKey, StateCounts};
use crate::analysis::makers;
use crate::filter::Filter;
use crate::model::close::MakerFacts;
use crate::model::command::{Line, Privilege, Shell, Step, Suggestions};
use crate::model::facts::Facts;
use crate::model::health::Capability;
use crate::model::netns::NetnsArg;
use crate::model::row::{Direction, Row};
use crate::snapshot::{Namespaces, Selection, Snapshot};
use crate::view::column::Column;
use crate::view::record::SocketRecord;
use crate::view::style::TextStyle;
use crate::view::text::Text;
use crate::view::{capacity, owner, steps, summary};
use crate::watch::EventKind;

pub(super) struct Details {
    pub(super) title: String,
    pub(super) lines: Vec<String>,
}

/// What the commands and the advice about a row depend on.
pub(super) struct Place<'a> {
    /// The shell of the caller, with the `--netns` of `twtool watch`.
    pub(super) shell: &'a Shell,
    /// Whether the screen shows several namespaces, so that each row needs its own `--netns`.
    pub(super) several: bool,
    pub(super) selection: &'a Selection,
    /// The last sample, with the owners of its buckets.
    pub(super) latest: &'a LatestSample,
}

impl Place<'_> {
    /// The shell for a namespace; `None` if no `--netns` argument is known for it.
    fn shell(&self, facts: &Facts) -> Option<Shell> {
        if !self.several {
            return Some(self.shell.clone());
        }
        let name = facts.netns_name.as_deref()?;
        // The name is `PID:COMM`, or a name of ip-netns(8).
        let process = name.split_once(':').and_then(|(pid, _)| pid.parse::<NetnsArg>().ok());
        let candidates = process.into_iter().chain(name.parse::<NetnsArg>().ok());
        let leads_there = |arg: &NetnsArg| {
            let namespaces = Namespaces::named(std::slice::from_ref(arg)).ok();
            namespaces.and_then(|namespaces| Snapshot::of(namespaces).facts().ok()?.netns) == facts.netns
        };
        let netns = candidates.into_iter().find(leads_there)?;
        Some(Shell { netns: Some(netns), caller: self.shell.caller.clone() })
    }

    /// The arguments that select the sockets of a group. If the screen has no filter, they are `option`. Otherwise they are one expression
    /// that combines the filter of the screen with `test`.
    fn narrowed(&self, option: [&str; 2], test: &str, facts: &Facts) -> Vec<String> {
        match self.selection.resolve(facts) {
            Ok((filter, _)) if filter != Filter::TRUE => vec![format!("({filter}) and {test}")],
            Ok(_) | Err(_) => option.map(str::to_owned).to_vec(),
        }
    }
}

/// The facts of a row's namespace. For a group or a maker, which can have buckets of several namespaces: the facts of the first namespace.
fn facts_of<'a>(selected: &'a SelectedRow, first: &'a Facts) -> &'a Facts {
    match selected {
        SelectedRow::Socket(_, facts) | SelectedRow::Netns(facts, _) => facts,
        SelectedRow::Destination(_, capacity) => &capacity.facts,
        SelectedRow::Group(..) | SelectedRow::Maker(_) => first,
        SelectedRow::Event(event) => &event.facts,
    }
}

/// The expression that selects one socket.
fn expression_of(row: &Row) -> String {
    let tuple = &row.bucket.tuple;
    let local = SocketAddr::new(tuple.local_addr(), tuple.local_port().0);
    let remote = SocketAddr::new(tuple.remote_addr(), tuple.remote_port().0);
    let device = row.bucket.interface.map(|index| format!(" and dev = {index}")).unwrap_or_default();
    format!("src {local} and dst {remote}{device}")
}

/// The command that removes the sockets of a row. The error is the reason why there is no such command.
pub(super) fn kill(selected: &SelectedRow, first: &Facts, place: &Place) -> Result<Line, String> {
    let facts = facts_of(selected, first);
    let waiting = |count: &StateCounts| count.time_wait == 0 && count.fin_wait_2 > 0;
    let (mut words, fin_wait_2) = match selected {
        SelectedRow::Socket(row, _) => (vec![expression_of(row)], row.bucket.fin_wait_2),
        SelectedRow::Event(event) => (vec![expression_of(&event.row)], event.row.bucket.fin_wait_2),
        SelectedRow::Destination(one, _) => {
            let remote = SocketAddr::new(one.ends.remote_addr, one.ends.remote_port.0);
            (vec![format!("src {} and dst {remote}", bracketed(one.ends.local_addr))], false)
        }
        SelectedRow::Group(key, count) => {
            if place.several {
                return Err("these sockets are in several network namespaces; choose one of them with --netns".into());
            }
            let words = match key {
                GroupKey::LocalPort(port) => {
                    place.narrowed(["--local-port", &port.to_string()], &format!("sport = :{port}"), facts)
                }
                GroupKey::RemoteAddr(addr) => {
                    place.narrowed(["--remote", &addr.to_string()], &format!("dst {}", bracketed(*addr)), facts)
                }
                _ => return Err("there is no command for this group".into()),
            };
            (words, waiting(count))
        }
        SelectedRow::Maker(_) => {
            return Err("no command removes the sockets of one process; choose a socket, a port or a peer".into());
        }
        SelectedRow::Netns(_, count) => match place.selection.resolve(facts) {
            Ok((filter, _)) if filter != Filter::TRUE => (vec![filter.to_string()], waiting(count)),
            Ok(_) | Err(_) => (vec!["--all".into()], waiting(count)),
        },
    };
    let shell = place.shell(facts).ok_or_else(|| format!("twtool knows no --netns argument for {}", name_of(facts)))?;
    words.insert(0, "kill".into());
    words.extend(fin_wait_2.then(|| "--fin-wait-2".into()));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    Ok(shell.twtool(Privilege::Capability(Capability::NetAdmin), &words))
}

/// An address in the syntax of filters.
fn bracketed(addr: std::net::IpAddr) -> String {
    if addr.is_ipv6() { format!("[{addr}]") } else { addr.to_string() }
}

/// The question that the screen asks before it runs a command that removes sockets.
#[must_use]
pub(super) fn proposal(line: &Line) -> Vec<String> {
    let mut lines = vec![
        "This command removes buckets of the selected row:".to_owned(),
        String::new(),
        format!("  {}", line.text),
        String::new(),
        "It shows the sockets and the risk, and asks before it removes anything. It needs CAP_NET_ADMIN.".to_owned(),
    ];
    lines.extend(line.obstacle.as_ref().map(|obstacle| format!("It {obstacle}.")));
    lines.push("Run it now? [y/N]".into());
    lines
}

#[must_use]
pub(super) fn describe(selected: &SelectedRow, first: &Facts, place: &Place, style: TextStyle) -> Details {
    let facts = facts_of(selected, first);
    let (title, values) = match selected {
        SelectedRow::Socket(row, facts) => {
            let owner = place.latest.shows_owners().then(|| owner::cells(place.latest.owner(row).as_ref()));
            let owner =
                owner.into_iter().flat_map(|[name, evidence]| [value("OWNER", &name), value("EVIDENCE", &evidence)]);
            ("socket".to_owned(), owner.chain(values_of(row, facts)).collect())
        }
        SelectedRow::Destination(one, capacity) => {
            let cells = capacity::cells(one, &capacity.facts);
            let named = capacity::HEADINGS.iter().zip(cells);
            let lines = named.map(|(heading, cell)| value(heading.title, &cell)).collect();
            ("destination".to_owned(), lines)
        }
        SelectedRow::Group(key, count) => {
            let (by, label) = match key {
                GroupKey::LocalPort(_) => ("LOCAL PORT", summary::label(key, first, &[])),
                _ => ("REMOTE ADDRESS", summary::label(key, first, &[])),
            };
            (label.clone(), [vec![value(by, &label)], counts(*count)].concat())
        }
        SelectedRow::Maker(MakerCount { group, .. }) => {
            let name = owner::group_name(group, GroupBy::Owner);
            let evidence = value("EVIDENCE", &owner::group_evidence(group));
            (name.clone(), [vec![value("MAKER", &name)], counts(group.count), vec![evidence]].concat())
        }
        SelectedRow::Netns(facts, count) => (name_of(facts), counts(*count)),
        SelectedRow::Event(event) => {
            let certain = if event.certain { "yes" } else { "no" };
            let own = [value("EVENT", event.kind.name()), value("CERTAIN", certain), meaning(event.kind).to_owned()];
            (event.kind.name().to_owned(), own.into_iter().chain(values_of(&event.row, &event.facts)).collect())
        }
    };
    let mut help = Suggestions::default();
    if let SelectedRow::Maker(maker) = selected {
        help.advice = about_maker(&maker.group.key, place.latest);
    } else if let Some(shell) = place.shell(facts) {
        help.append(advise(selected, &shell));
    }
    if let Ok(line) = kill(selected, first, place) {
        help.commands.push(Step::new(line, "remove these sockets (it shows the risk and asks)"));
    }
    let mut text = vec![];
    // Writing to memory cannot fail.
    let _ = steps::write(&mut text, &help, "", TextStyle { color: false, width: None, ..style });
    // The advice comes first, because the values may not fit on the screen.
    let advice = String::from_utf8_lossy(&text);
    let lines = advice.lines().map(str::to_owned).chain([String::new()]).chain(values).collect();
    Details { title, lines }
}

fn value(title: &str, cell: &str) -> String {
    format!("{title:<15} {cell}")
}

fn counts(count: StateCounts) -> Vec<String> {
    vec![value("TIME_WAIT", &count.time_wait.to_string()), value("FIN_WAIT_2", &count.fin_wait_2.to_string())]
}

fn values_of(row: &Row, facts: &Facts) -> Vec<String> {
    let record = SocketRecord::of_row(row, facts);
    let line = |column: &'static Column| {
        let mut text = Text::default();
        column.append_cell(&record, &mut text);
        value(column.title, &String::from(text))
    };
    Column::of_record().map(line).collect()
}

fn advise(selected: &SelectedRow, shell: &Shell) -> Suggestions {
    let mut help = Suggestions::default();
    let mut step = |words: &[&str], purpose: &str| {
        help.commands.push(Step::new(shell.twtool(Privilege::None, words), purpose));
    };
    match selected {
        SelectedRow::Socket(row, _) if row.direction == Direction::Outbound => {
            let remote = SocketAddr::new(row.bucket.tuple.remote_addr(), row.bucket.tuple.remote_port().0);
            step(&["capacity", "--to", &remote.to_string()], "see how many ports this destination has left");
        }
        SelectedRow::Socket(row, _) => {
            let port = row.bucket.tuple.local_port().to_string();
            step(&["bind-test", &port], "see whether this socket keeps a server from its port");
        }
        SelectedRow::Destination(one, capacity) => {
            help.append(advice::advise(std::slice::from_ref(*one), &capacity.conditions(), &capacity.facts, shell));
        }
        SelectedRow::Group(GroupKey::LocalPort(port), _) => {
            step(&["bind-test", &port.to_string()], "see whether a server can bind this port");
            step(&["list", "--local-port", &port.to_string()], "list the sockets of this port");
        }
        SelectedRow::Group(GroupKey::RemoteAddr(addr), _) => {
            step(&["list", "--remote", &addr.to_string()], "list the sockets of this peer");
        }
        SelectedRow::Group(..) | SelectedRow::Event(_) | SelectedRow::Maker(_) => {}
        SelectedRow::Netns(..) => step(&["doctor"], "check the settings and counters of this network namespace"),
    }
    help
}

/// The conclusions of `twtool doctor` about the buckets of one process.
fn about_maker(key: &makers::MakerGroupKey, latest: &LatestSample) -> Vec<String> {
    if *key == makers::MakerGroupKey::Unknown {
        let why = "The tracer has recorded no close of these sockets: they closed before it started, a close was lost, or the kernel \
                   did not show the process.";
        return vec![why.into()];
    }
    let makers::MakerGroupKey::Process(process) = key else { return vec![] };
    let owners = latest.owners();
    // Compare the pid first. It differs for most rows, and then no key is built.
    let is_it = |facts: &MakerFacts| facts.pid == process.pid && makers::MakerGroupKey::of_process(facts) == *key;
    let is_its = |row: &&Row| !row.bucket.fin_wait_2 && owners.owner(row).is_some_and(|owner| is_it(owner.process()));
    let mut made = BucketsByMaker::default();
    for row in latest.namespaces().iter().flat_map(|netns| netns.rows.iter()).filter(is_its) {
        made.add(owners.maker(row), row.bucket.tuple.remote_addr());
    }
    made.conclusions()
}

const fn meaning(kind: EventKind) -> &'static str {
    match kind {
        EventKind::Entered => "This end has closed the connection first.",
        EventKind::BecameTimeWait => "The peer has closed too, so the timer has started again with its full length.",
        EventKind::Expired => "The timer ended. The bucket no longer holds its port.",
        EventKind::Restarted => {
            "The peer has sent its FIN again, or another segment with an ACK. It may not have received the last ACK."
        }
        EventKind::Destroyed => "SOCK_DESTROY removed the bucket, as 'twtool kill' and 'ss -K' do.",
        EventKind::TakenOver => "A new connection between the same ends has replaced the bucket.",
        EventKind::Reset => "The peer has sent a RST.",
        EventKind::Gone => {
            "The bucket ended before its time. A RST, a new connection or SOCK_DESTROY may have removed it."
        }
    }
}
