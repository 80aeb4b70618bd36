//! The documents agree with each other and with the program: each link has a target, the README is short, each subcommand has a
//! page that names its options, and docs/json.md names the JSON keys of every command except `trace`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

use serde_json::Value;
use twtool::lab::ActiveCloser;
use twtool::model::bind::ReuseOptions;
use twtool::model::command::Shell;
use twtool::view::steps::SysctlLineRecord;

use crate::support::situations::{bucket_of_client, bucket_of_server, half_closed, listen};
use crate::support::suite;
use crate::support::twtool::{PATH, subcommands, twtool};
use crate::support::watcher::Watcher;

suite! {
    pure: [
        every_link_leads_to_a_file_and_a_heading,
        a_reader_can_reach_every_document_from_the_readme,
        the_functions_of_this_file_find_links_and_headings_outside_of_code,
        the_readme_has_at_most_300_lines,
        every_subcommand_has_a_page_that_names_its_options_and_exit_codes,
    ],
    netns: [
        every_json_key_is_documented,
    ],
}

/// The README is only for the first ten minutes of a reader.
const README_LINES: usize = 300;

/// The Markdown files at the root of the project and under docs/. The key is the path from the root, the value is the text.
pub(crate) fn documents() -> BTreeMap<PathBuf, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = BTreeMap::new();
    let mut folders = vec![root.join("docs")];
    let mut add = |file: &Path| {
        if file.extension().is_some_and(|extension| extension == "md") {
            let name = file.strip_prefix(root).expect("below the root").to_owned();
            found.insert(name, fs::read_to_string(file).expect("a document"));
        }
    };
    let entries = |folder: &Path| fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    entries(root).for_each(|file| add(&file));
    while let Some(folder) = folders.pop() {
        for path in entries(&folder) {
            if path.is_dir() { folders.push(path) } else { add(&path) }
        }
    }
    found
}

/// The lines outside of code blocks, without code spans.
fn prose(text: &str) -> String {
    let mut fenced = false;
    let mut outside = String::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            outside.push_str(line);
            outside.push('\n');
        }
    }
    // A paragraph has an even number of backquotes, so every second piece is a code span.
    let paragraph = |text: &str| text.split('`').step_by(2).collect::<Vec<_>>().join("code");
    outside.split("\n\n").map(paragraph).collect::<Vec<_>>().join("\n\n")
}

/// The targets of `[text](target)`.
fn links(text: &str) -> Vec<String> {
    let prose = prose(text);
    let parts = prose.split("](").skip(1);
    parts.filter_map(|part| Some(part.split_once(')')?.0.trim().to_owned())).collect()
}

/// The anchors that GitHub makes of the headings.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut fenced = false;
    let mut found = BTreeSet::new();
    for line in text.lines() {
        fenced ^= line.starts_with("```");
        let Some(heading) = line.strip_prefix('#').filter(|_| !fenced) else { continue };
        let kept = |c: char| match c {
            ' ' => Some('-'),
            c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c.to_ascii_lowercase()),
            _ => None,
        };
        let anchor: String = heading.trim_start_matches('#').trim().chars().filter_map(kept).collect();
        let numbered = (1..).map(|n| format!("{anchor}-{n}"));
        let free = std::iter::once(anchor.clone()).chain(numbered).find(|anchor| !found.contains(anchor));
        found.extend(free);
    }
    found
}

/// The path to which a link in the document `from` leads, without `.` and `..`.
fn resolved(from: &Path, target: &str) -> PathBuf {
    let mut path = PathBuf::new();
    for part in from.parent().unwrap_or(Path::new("")).join(target).components() {
        match part {
            Component::ParentDir => {
                path.pop();
            }
            Component::CurDir => {}
            part => path.push(part),
        }
    }
    path
}

fn is_external(target: &str) -> bool {
    target.contains("://") || target.starts_with("mailto:")
}

fn every_link_leads_to_a_file_and_a_heading() {
    let documents = documents();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut broken = vec![];
    for (document, text) in &documents {
        for target in links(text).into_iter().filter(|target| !is_external(target)) {
            let (file, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let path = if file.is_empty() { document.clone() } else { resolved(document, file) };
            let leads = match documents.get(&path) {
                Some(text) => anchor.is_empty() || anchors(text).contains(anchor),
                None => anchor.is_empty() && root.join(&path).exists(),
            };
            if !leads {
                broken.push(format!("{}: {target}", document.display()));
            }
        }
    }
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

fn a_reader_can_reach_every_document_from_the_readme() {
    let documents = documents();
    let mut reached = BTreeSet::new();
    let mut next = vec![PathBuf::from("README.md")];
    while let Some(document) = next.pop() {
        let Some(text) = documents.get(&document) else { continue };
        if reached.insert(document.clone()) {
            let files = links(text).into_iter().filter(|target| !is_external(target));
            next.extend(files.map(|target| resolved(&document, target.split('#').next().unwrap_or_default())));
        }
    }
    let lost: Vec<_> =
        documents.keys().filter(|document| document.starts_with("docs") && !reached.contains(*document)).collect();
    assert!(lost.is_empty(), "{lost:?}");
}

fn the_functions_of_this_file_find_links_and_headings_outside_of_code() {
    let text = "# A `twtool` page\n[one](a.md#b), `[no](c.md)`\nand [two\nlines](../d)\n```sh\n# no\n[no](e)\n```\n## It's (2)\n## It's (2)\n";
    assert_eq!(links(text), ["a.md#b", "../d"]);
    assert_eq!(anchors(text), ["a-twtool-page", "its-2", "its-2-1"].map(str::to_owned).into());
    assert_eq!(resolved(Path::new("docs/commands/list.md"), "../json.md"), Path::new("docs/json.md"));
}

fn the_readme_has_at_most_300_lines() {
    let lines = documents()[Path::new("README.md")].lines().count();
    assert!(lines <= README_LINES, "README.md has {lines} lines");
}

/// The long options of a subcommand, without `--help` and the global options.
pub(crate) fn options(subcommand: &str) -> BTreeSet<String> {
    let help = twtool([subcommand, "--help"]).ok().stdout;
    let own = help.split("Global options:").next().unwrap_or_default();
    let lines = own.lines().map(str::trim_start).filter(|line| line.starts_with('-'));
    let long = lines.filter_map(|line| line.split_whitespace().find(|word| word.starts_with("--")));
    long.filter(|option| *option != "--help").map(str::to_owned).collect()
}

fn every_subcommand_has_a_page_that_names_its_options_and_exit_codes() {
    let documents = documents();
    let page = |subcommand: &str| {
        // One page describes `completions` and `man`.
        let name = if subcommand == "man" { "completions" } else { subcommand };
        let file = format!("docs/commands/{name}.md");
        documents.get(Path::new(&file)).unwrap_or_else(|| panic!("there is no {file}"))
    };
    let of_list = options("list");
    for subcommand in &subcommands() {
        let subcommand = subcommand.as_str();
        let text = page(subcommand);
        assert!(text.contains(&format!("twtool {subcommand}")), "{subcommand}");
        for option in options(subcommand) {
            // A page may link to the page of `list` instead of naming an option that both commands have.
            let named = text.contains(&option) || (of_list.contains(&option) && text.contains("](list.md"));
            assert!(named, "the page of {subcommand} does not name {option}");
        }
        let codes = ["completions", "man"].contains(&subcommand) || text.contains("\n## Exit codes\n");
        assert!(codes, "the page of {subcommand} has no exit codes");
    }
}

/// Collects the keys of all objects in the value, except below `evidence`, whose keys differ from check to check.
fn keys(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                found.insert(key.clone());
                if key != "evidence" {
                    keys(value, found);
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| keys(value, found)),
        _ => {}
    }
}

/// A section of docs/json.md.
struct Section {
    /// The words between backquotes.
    words: BTreeSet<String>,
    /// The words between backquotes in the first column of its tables.
    keys: BTreeSet<String>,
}

impl Section {
    fn of(text: &str, heading: &str) -> Self {
        let (_, section) =
            text.split_once(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("docs/json.md has no {heading}"));
        let section = section.split("\n## ").next().unwrap_or_default();
        let words = |line: &str| line.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
        let first = |line: &'_ str| line.strip_prefix("| ").and_then(|row| row.split(" |").next()).map(words);
        Self {
            words: section.lines().flat_map(words).collect(),
            keys: section.lines().filter_map(first).flatten().collect(),
        }
    }
}

/// Checks both directions: each key of an answer is documented, and each key in the first column of a table is in some answer.
fn every_json_key_is_documented() {
    let server = listen("127.0.0.1:8080");
    bucket_of_server(&server, "127.0.0.1:8080");
    bucket_of_client(&server, "127.0.0.1:8080");
    let _half = half_closed(&server, "127.0.0.1:8080", ActiveCloser::Server);
    let _inside_the_range =
        twtool::lab::Server::listen("127.0.0.1:40000".parse().expect("an address"), ReuseOptions::NONE);
    let text = &documents()[Path::new("docs/json.md")];
    let shared = ["Common keys", "Socket record", "Process record", "Holder record", "Command record"]
        .map(|heading| Section::of(text, heading));
    let mut seen: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let lines = [
        "list --fin-wait-2",
        "summary --by local-port,remote-addr,remote-port,destination,class,direction,netns,owner,unit,container",
        "port 8080",
        "bind-test 8080",
        "bind-test 40000",
        "bind-test 8080 --demo",
        "wait 8080 --timeout 0",
        "capacity",
        "capacity --to 127.0.0.1:8080 --min-free 100%",
        "connect-test 127.0.0.1:8080",
        "connect-test 127.0.0.1:8080 --from 127.0.0.1:8080",
        "doctor",
        "kill --local-port 8080 --dry-run",
        "watch --count 1",
        "demo",
        "demo reuse",
    ];
    // `why` is tested below. tests/trace.rs compares the keys of `trace` with its own list. The other commands in `others` print no JSON.
    let others = ["why", "trace", "metrics", "exporter", "completions", "man"];
    for name in subcommands() {
        let is_here = lines.iter().any(|line| line.split(' ').next() == Some(&name)) || others.contains(&name.as_str());
        assert!(is_here, "add a line for `twtool {name}`, so that its JSON keys are checked");
    }
    for line in lines {
        for format in ["json", "ndjson"] {
            // `watch` prints records and no document.
            if (line.starts_with("watch"), format) == (true, "json") {
                continue;
            }
            // `demo -o ndjson` lists the scenarios, but the section describes the events of a scenario.
            if (line, format) == ("demo", "ndjson") {
                continue;
            }
            let run = twtool(line.split(' ').chain(["-o", format]));
            let subcommand =
                if line.ends_with("--demo") { "bind-test-demo" } else { line.split(' ').next().unwrap_or_default() };
            let heading = format!("twtool.{subcommand}/1");
            let section = Section::of(text, &heading);
            let mut found = BTreeSet::new();
            run.ndjson().iter().for_each(|value| keys(value, &mut found));
            let known =
                |key: &&String| [&section].into_iter().chain(&shared).any(|section| section.words.contains(*key));
            let missing: Vec<_> = found.iter().filter(|key| !known(key)).collect();
            assert!(missing.is_empty() && !found.is_empty(), "{heading} in docs/json.md lacks {missing:?}{run}");
            seen.entry(heading).or_default().append(&mut found);
        }
    }
    let heading = "twtool.why/1";
    let section = Section::of(text, heading);
    let script = "\"$0\" bind-test 8080 --addr 127.0.0.1; \"$0\" bind-test 0 --addr 127.0.0.1 --listen";
    let run = twtool(["why", "-o", "ndjson", "--detach", "sh", "-c", script, PATH]);
    let records = crate::why::records(&run);
    for wanted in ["call", "note", "end"] {
        assert!(records.iter().any(|record| record["type"] == wanted), "{wanted}{run}");
    }
    let mut found = BTreeSet::new();
    for record in &records {
        keys(record, &mut found);
    }
    let known = |key: &&String| [&section].into_iter().chain(&shared).any(|section| section.words.contains(*key));
    let missing: Vec<_> = found.iter().filter(|key| !known(key)).collect();
    assert!(missing.is_empty(), "{heading} in docs/json.md lacks {missing:?}{run}");
    seen.insert(heading.into(), found);
    let mut watcher = Watcher::start("100ms", &[]);
    bucket_of_server(&server, "127.0.0.1:8080");
    while watcher.events.is_empty() {
        watcher.next_sample();
    }
    keys(&watcher.events[0], seen.entry("twtool.watch/1".into()).or_default());
    let mut nowhere = vec![];
    for (heading, seen) in &seen {
        nowhere.extend(Section::of(text, heading).keys.difference(seen).map(|key| format!("{heading}: {key}")));
    }
    let mut everywhere: BTreeSet<String> = seen.into_values().flatten().collect();
    // twtool prints lines for configuration files only in the initial network namespace, but the test runs in another namespace. So the
    // test makes such a line itself.
    let line = Shell::default().sysctl_line("net.ipv4.tcp_timestamps", "1").expect("a line");
    keys(&serde_json::to_value(SysctlLineRecord::all(&[line])).expect("records"), &mut everywhere);
    nowhere.extend(shared.iter().flat_map(|section| section.keys.difference(&everywhere)).cloned());
    assert!(nowhere.is_empty(), "docs/json.md has keys that no answer has: {nowhere:?}");
}
