//! Prints the answer of `twtool summary` as a text page or as JSON.

mod record;

use std::io::{self, Write};
use std::net::SocketAddr;

use unicode_width::UnicodeWidthStr;

use crate::analysis::groups::{GroupBy, GroupKey, Ranking, StateCounts};
use crate::analysis::history::RemainingTimes;
use crate::analysis::summary::Summary;
use crate::model::command::Suggestions;
use crate::model::facts::Facts;
use crate::model::port::Port;
use crate::view::chart::{self, Chart};
use crate::view::human;
use crate::view::json::{self, Envelope};
use crate::view::owner;
use crate::view::steps;
use crate::view::style::{Meaning, TextStyle};
use crate::view::table::{self, Heading};
use record::{COUNTERS, SPANS, payload};

const CLOSES: &str = "closes per second over the last minute";

/// The assumed width in columns if the width is unknown.
const ASSUMED_WIDTH: usize = 80;

/// The number of spaces between two tables side by side.
const GAP: usize = 3;

/// A summary to print, with the facts that contain the names of services and network namespaces.
#[derive(Clone, Copy)]
pub struct Content<'a> {
    /// The counts.
    pub summary: &'a Summary,
    /// The merged facts of all network namespaces.
    pub facts: &'a Facts,
    /// The facts of each network namespace.
    pub namespaces: &'a [Facts],
    /// Whether the summary can cover several network namespaces.
    pub several: bool,
    /// Commands and advice.
    pub help: &'a Suggestions,
    /// The kernel interface that the buckets were read from.
    pub source: &'static str,
}

/// Writes the JSON document.
pub fn document(out: &mut dyn Write, envelope: Envelope, content: &Content) -> io::Result<()> {
    json::document(out, envelope, payload(content))
}

/// Writes the payload as one record.
pub fn ndjson(out: &mut dyn Write, content: &Content) -> io::Result<()> {
    json::line(out, &payload(content))
}

/// Writes the page: totals, commands and advice, the closes of the last minute, groups, counters and limits.
pub fn page(out: &mut dyn Write, content: &Content, style: TextStyle) -> io::Result<()> {
    let summary = content.summary;
    head(out, content, style)?;
    if *content.help != Suggestions::default() {
        writeln!(out)?;
        steps::write(out, content.help, "", style)?;
    }
    writeln!(out)?;
    minute(out, summary, style)?;
    if summary.totals.all() > 0 {
        let (few, many): (Vec<&Ranking>, Vec<&Ranking>) = summary
            .groups
            .iter()
            .partition(|group| matches!(group.by, GroupBy::Class | GroupBy::Direction | GroupBy::Netns));
        let mut blocks = vec![remaining(&summary.times, style)?];
        blocks.extend(few.iter().map(|group| block(group, content, style)).collect::<io::Result<Vec<_>>>()?);
        side_by_side(out, &blocks, style)?;
        let blocks: Vec<Block> = many.iter().map(|group| block(group, content, style)).collect::<io::Result<_>>()?;
        side_by_side(out, &blocks, style)?;
        if let Some([traced, sampled, listener, same_destination]) = summary.evidence() {
            let totals = owner::totals(traced + sampled, listener + same_destination, summary.totals.all());
            human::break_lines(out, &totals, "", "", style.width)?;
        }
    }
    writeln!(out)?;
    counters(out, content, style)?;
    for limit in &summary.limits {
        human::break_lines(out, &limit.text, "- ", "  ", style.width)?;
    }
    Ok(())
}

fn head(out: &mut dyn Write, content: &Content, style: TextStyle) -> io::Result<()> {
    let summary = content.summary;
    let Summary { totals, memory, kernel, .. } = summary;
    let counted = |count: u32, state: &str| {
        style.paint(Meaning::Heading, format!("{} {state}", human::with_separators(count.into()))).to_string()
    };
    write!(out, "{}", counted(totals.time_wait, "TIME_WAIT"))?;
    if totals.fin_wait_2 > 0 {
        write!(out, " and {}", counted(totals.fin_wait_2, "FIN_WAIT_2"))?;
    }
    write!(out, " {}", if totals.all() == 1 { "bucket" } else { "buckets" })?;
    if content.several {
        let count = content.namespaces.len();
        let noun = if count == 1 { "namespace" } else { "namespaces" };
        write!(out, " in {} network {noun}", human::with_separators(count as u64))?;
    }
    writeln!(out)?;
    // tcp_max_tw_buckets limits the buckets of both IP versions together.
    let counted = if summary.one_family { kernel.sockstat.map(|sockstat| sockstat.tw) } else { Some(totals.all()) };
    let mut parts = vec![];
    parts.push(match kernel.max_tw_buckets.zip(counted) {
        Some((most, all)) => {
            let share = share_of_maximum(all, most, content.facts);
            if summary.one_family && most > 0 { format!("{share}, including the other IP version") } else { share }
        }
        None if content.several => "each namespace has its own tcp_max_tw_buckets".into(),
        None => "tcp_max_tw_buckets is unknown".into(),
    });
    let how = if memory.measured { "" } else { ", an estimate" };
    parts.push(format!(
        "{} of kernel memory ({} bytes each{how})",
        human::bytes(memory.bytes),
        memory.bytes_per_bucket
    ));
    human::break_lines(out, &parts.join("; "), "", "", style.width)?;
    human::break_lines(out, &summary.reconciliation(human::with_separators), "", "", style.width)
}

/// The share of `tcp_max_tw_buckets` that this number of buckets takes.
#[must_use]
pub fn share_of_maximum(all: u64, most: i64, facts: &Facts) -> String {
    match u64::try_from(most) {
        Ok(0) => "tcp_max_tw_buckets is 0: the kernel keeps no bucket after a close".into(),
        Ok(most) => format!("{} of tcp_max_tw_buckets ({})", percent(all, most), human::with_separators(most)),
        Err(_) if facts.kernel_since(6, 1) == Some(true) => format!("tcp_max_tw_buckets is {most}: no maximum"),
        Err(_) => format!(
            "tcp_max_tw_buckets is {most}: Linux 5.10 and earlier keep no bucket after a close, Linux 6.1 and later have no \
             maximum"
        ),
    }
}

/// A percentage with one decimal. Tiny non-zero values are "less than 0.1 %".
fn percent(part: u64, whole: u64) -> String {
    if part == 0 || whole == 0 {
        return "0 %".into();
    }
    let tenths = u128::from(part) * 1000 / u128::from(whole);
    if tenths == 0 { "less than 0.1 %".into() } else { format!("{}.{} %", tenths / 10, tenths % 10) }
}

fn minute(out: &mut dyn Write, summary: &Summary, style: TextStyle) -> io::Result<()> {
    let history = &summary.history;
    let title = style.paint(Meaning::Heading, CLOSES).to_string();
    let Some((peak, ago)) = history.peak() else {
        return writeln!(out, "{title}: unknown");
    };
    if history.total() == 0 && summary.at_maximum() {
        return writeln!(out, "{title}: unknown, because the kernel keeps no bucket after a close");
    }
    if history.total() == 0 {
        let whole = history.covered() == history.closes.len();
        return writeln!(out, "{title}: {}", if whole { "none" } else { "none in the seconds that are known" });
    }
    let mut parts = vec![format!("now {}", history.now().map_or_else(|| "unknown".into(), human::with_separators))];
    parts.extend(history.mean().map(|mean| format!("mean {}", chart::text_of(mean))));
    let when = if ago == 0 { "now".to_owned() } else { format!("{ago} s ago") };
    parts.push(format!("peak {} ({when})", human::with_separators(peak)));
    let chart = Chart { seconds: &history.closes, height: chart::HEIGHT };
    let per_bar = chart.seconds_per_bar(style);
    if per_bar > 1 {
        parts.push(format!("a bar is the mean of {per_bar} s"));
    }
    // Colour codes would count as width, so the line is wrapped before the title is coloured.
    let mut text = vec![];
    human::break_lines(&mut text, &format!("{CLOSES}: {}", parts.join(", ")), "", "", style.width)?;
    let text = String::from_utf8_lossy(&text);
    match text.strip_prefix(CLOSES) {
        Some(rest) => write!(out, "{title}{rest}")?,
        // In a very narrow terminal, the title itself is wrapped.
        None => write!(out, "{text}")?,
    }
    chart.write(out, style)
}

/// A small table as lines, to be printed beside other tables.
struct Block {
    lines: Vec<String>,
    width: usize,
}

impl Block {
    fn new(title: &'static str, more: &[Heading], rows: &[Vec<String>], style: TextStyle) -> io::Result<Self> {
        let mut text = vec![];
        let plain = TextStyle { color: false, width: Some(style.width.unwrap_or(ASSUMED_WIDTH)), ..style };
        let headings = [&[Heading::new(title), Heading::new("COUNT").right()], more].concat();
        table::write(&mut text, &headings, true, rows, plain)?;
        let lines: Vec<String> = String::from_utf8_lossy(&text).lines().map(str::to_owned).collect();
        let width = lines.iter().map(|line| line.width()).max().unwrap_or_default();
        Ok(Self { lines, width })
    }
}

fn row(label: String, count: u64) -> Vec<String> {
    vec![label, human::with_separators(count)]
}

fn remaining(times: &RemainingTimes, style: TextStyle) -> io::Result<Block> {
    let span = |&(over, up_to): &(usize, Option<usize>)| {
        let label = match up_to {
            Some(up_to) => format!("up to {up_to} s"),
            None => format!("over {over} s"),
        };
        (label, times.between(over, up_to))
    };
    let due = ("due".to_owned(), times.due());
    let mut rows: Vec<(String, u64)> = std::iter::once(due).chain(SPANS.iter().map(span)).collect();
    // On mainline kernels, no bucket in TIME_WAIT has more than 60 s left, so the row `over 60 s` is left out if it counts none.
    rows.retain(|(label, count)| *count > 0 || !label.starts_with("over"));
    let rows: Vec<Vec<String>> = rows.into_iter().map(|(label, count)| row(label, count)).collect();
    Block::new("REMAINING", &[], &rows, style)
}

fn block(group: &Ranking, content: &Content, style: TextStyle) -> io::Result<Block> {
    // If the ranking leaves out some keys, keys with one bucket are not shown either, because they would be an arbitrary selection of
    // many such keys.
    let is_shown = |(_, count): &&(GroupKey, StateCounts)| count.all() > 1 || group.others.all() == 0;
    let leading: Vec<&(GroupKey, StateCounts)> = group.top.iter().filter(is_shown).collect();
    let line = |(key, count): &&(GroupKey, StateCounts)| match *key {
        GroupKey::Owner(place) => {
            let owner = &group.owners[place];
            let mut cells = row(owner::group_name(owner, group.by), count.all());
            cells.push(owner::group_evidence(owner));
            cells
        }
        key => row(label(&key, content.facts, content.namespaces), count.all()),
    };
    let mut rows: Vec<Vec<String>> = leading.iter().map(line).collect();
    let others = group.distinct - leading.len();
    if others > 0 {
        let all: u64 = group.top.iter().map(|(_, count)| count.all()).sum::<u64>() + group.others.all();
        let rest = all - leading.iter().map(|(_, count)| count.all()).sum::<u64>();
        rows.push(row(format!("{} others", human::with_separators(others as u64)), rest));
    }
    let evidence: &[Heading] = if group.by.needs_owners() { &[Heading::new("EVIDENCE")] } else { &[] };
    for row in &mut rows {
        row.resize(2 + evidence.len(), String::new());
    }
    Block::new(title(group.by), evidence, &rows, style)
}

/// The title of the column with the keys of a group.
#[must_use]
pub const fn title(by: GroupBy) -> &'static str {
    match by {
        GroupBy::Class => "LOCAL CLASS",
        GroupBy::Direction => "DIRECTION",
        GroupBy::LocalPort => "LOCAL PORT",
        GroupBy::RemoteAddr => "REMOTE ADDRESS",
        GroupBy::RemotePort => "REMOTE PORT",
        GroupBy::Destination => "DESTINATION",
        GroupBy::Netns => "NETNS",
        GroupBy::Owner => "OWNER",
        GroupBy::Unit => "UNIT",
        GroupBy::Container => "CONTAINER",
    }
}

/// The text of a key. `facts` names services, and `namespaces` has the facts of each network namespace. A key of an owner gives
/// `unknown`, because only [`Ranking::owners`] has the names of owners.
#[must_use]
pub fn label(key: &GroupKey, facts: &Facts, namespaces: &[Facts]) -> String {
    let named = |text: String, port: Port| match facts.services.name(port) {
        Some(service) => format!("{text} ({})", human::escape(service)),
        None => text,
    };
    match *key {
        GroupKey::Class(class) => class.name().into(),
        GroupKey::Direction(direction) => direction.name().into(),
        GroupKey::LocalPort(port) | GroupKey::RemotePort(port) => named(port.to_string(), port),
        GroupKey::RemoteAddr(addr) => addr.to_string(),
        GroupKey::Destination(addr, port) => named(SocketAddr::new(addr, port.0).to_string(), port),
        GroupKey::Netns(place) => {
            let Facts { netns, netns_name, .. } = &namespaces[place];
            match (netns_name, netns) {
                (Some(name), _) => human::escape(name).into_owned(),
                (None, Some(netns)) => netns.to_string(),
                (None, None) => "unknown".into(),
            }
        }
        GroupKey::Owner(_) => "unknown".into(),
    }
}

/// Writes tables side by side, as many as fit into the width, with an empty line above each row of tables.
fn side_by_side(out: &mut dyn Write, blocks: &[Block], style: TextStyle) -> io::Result<()> {
    let room = style.width.unwrap_or(ASSUMED_WIDTH);
    let mut left = blocks;
    while !left.is_empty() {
        let mut used = 0;
        let fits = |block: &&Block| {
            used += block.width + GAP;
            used - GAP <= room
        };
        let beside = left.iter().take_while(fits).count().max(1);
        let (these, rest) = left.split_at(beside);
        writeln!(out)?;
        for i in 0..these.iter().map(|block| block.lines.len()).max().unwrap_or_default() {
            let mut line = String::new();
            for block in these {
                let text = block.lines.get(i).map_or("", String::as_str);
                line.push_str(text);
                line.push_str(&" ".repeat(block.width - text.width() + GAP));
            }
            let line = line.trim_end();
            if i == 0 {
                writeln!(out, "{}", style.paint(Meaning::Heading, line))?;
            } else {
                writeln!(out, "{line}")?;
            }
        }
        left = rest;
    }
    Ok(())
}

fn counters(out: &mut dyn Write, content: &Content, style: TextStyle) -> io::Result<()> {
    let summary = content.summary;
    let known: Vec<String> = COUNTERS
        .iter()
        .filter_map(|(_, name)| Some(format!("{name} {}", human::with_separators(summary.kernel.counter(name)?))))
        .collect();
    if known.is_empty() {
        return writeln!(out, "TcpExt counters are unknown");
    }
    let since =
        if content.several { "each network namespace was made, in total" } else { "this network namespace was made" };
    let text = format!("since {since}: {}", known.join(", "));
    human::break_lines(out, &text, "", "", style.width)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::summary::SummaryCounts;
    use crate::model::facts::tests::facts;
    use crate::model::kernel_counts::{BucketFacts, TcpExt, TcpSockstat};
    use crate::model::row::tests::row;
    use proptest::prelude::*;

    /// A summary of 500 closes in 50 s: 400 connections of clients to the local port 80 (`http`), and 100 connections to one IPv6
    /// destination.
    fn summary(limit: usize) -> Summary {
        let kernel = BucketFacts {
            max_tw_buckets: Some(262_144),
            sockstat: Some(TcpSockstat { inuse: 0, orphan: 0, tw: 503, alloc: 0, mem: 0 }),
            tcp_ext: Some(TcpExt([("TW".to_owned(), 12_345), ("TCPTimeWaitOverflow".to_owned(), 7)].into())),
            ..BucketFacts::default()
        };
        let mut counts = SummaryCounts::new(&GroupBy::DEFAULT, &kernel);
        for i in 0_u16..500 {
            let mut row = if i % 5 == 0 {
                row("2001:db8:1:2:3:4:5:6", 40_000 + i, "2001:db8:1111:2222:3333:4444:5555:6666", 443)
            } else {
                row("192.0.2.1", 80, "198.51.100.77", 33_000 + i)
            };
            row.bucket.expires_ms = 60_000 - u32::from(i) * 100;
            counts.add(&row.bucket, row.direction);
        }
        counts.summary(kernel, vec![], limit, false)
    }

    fn drawn(summary: &Summary, width: Option<usize>, unicode: bool) -> Vec<String> {
        let mut out = vec![];
        let facts = facts();
        let content = Content {
            summary,
            facts: &facts,
            namespaces: std::slice::from_ref(&facts),
            several: false,
            help: &Suggestions::default(),
            source: "sock_diag",
        };
        page(&mut out, &content, TextStyle { color: false, width, unicode }).expect("written");
        String::from_utf8(out).expect("text").lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_page_fits_the_width_of_its_terminal() {
        for width in [40, 80, 120] {
            for unicode in [true, false] {
                let lines = drawn(&summary(5), Some(width), unicode);
                assert!(lines.iter().all(|line| line.width() <= width), "{width}:\n{}", lines.join("\n"));
                assert!(unicode || lines.iter().all(|line| line.is_ascii()), "{}", lines.join("\n"));
            }
        }
        let wide = drawn(&summary(5), Some(120), true);
        assert!(wide.len() < 36, "one screen:\n{}", wide.join("\n"));
    }

    #[test]
    fn a_page_shows_counts_and_their_period() {
        let text = drawn(&summary(5), None, true).join("\n");
        for part in [
            "500 TIME_WAIT buckets\n0.1 % of tcp_max_tw_buckets (262,144); 125.0 KiB",
            "256 bytes each, an estimate",
            "3 more than were listed",
            "now 10, mean 8.3, peak 10 (now)",
            "up to 15 s     50",
            "well-known     400",
            "80 (http)     400",
            "198.51.100.77                             400",
            "[2001:db8:1111:2222:3333:4444:5555:6666]:443    100",
            "400 others",
            "TW 12,345, TCPTimeWaitOverflow 7",
            "- TCPTimeWaitOverflow is 7",
        ] {
            assert!(text.contains(part), "{part:?} is missing:\n{text}");
        }
    }

    #[test]
    fn keys_with_one_bucket_each_are_listed_only_if_no_key_is_left_out() {
        let lines = drawn(&summary(1000), Some(120), true);
        assert!(lines.iter().any(|line| line.contains("198.51.100.77:33001")));
        let lines = drawn(&summary(20), Some(120), true);
        assert!(!lines.iter().any(|line| line.contains("198.51.100.77:33")), "{}", lines.join("\n"));
    }

    #[test]
    fn a_share_is_never_rounded_to_0_or_100_percent() {
        let shares = [percent(0, 10), percent(1, 262_144), percent(9999, 10_000), percent(10, 10), percent(20, 10)];
        assert_eq!(shares, ["0 %", "less than 0.1 %", "99.9 %", "100.0 %", "200.0 %"]);
    }

    proptest! {
        #[test]
        fn no_line_is_wider_than_a_terminal_of_40_columns_or_more(width in 40_usize..160, unicode in any::<bool>()) {
            for line in drawn(&summary(5), Some(width), unicode) {
                prop_assert!(line.width() <= width, "{line}");
            }
        }
    }
}
