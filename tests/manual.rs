//! The manual pages: docs/man/ contains what this binary writes, each command has a page with the texts of its help, and mandoc
//! finds no mistake in the pages.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::commands::needs_program;
use crate::support::suite;
use crate::support::twtool::{Run, command, subcommands, twtool};

suite! {
    pure: [
        the_pages_are_current,
        every_command_has_a_page_with_the_texts_of_its_help,
        without_dir_one_page_is_printed,
        old_pages_are_replaced_and_other_files_of_the_folder_stay,
        unwritable_folders_and_unknown_commands_are_refused,
        mandoc_finds_no_mistake,
        man_shows_commands_that_can_be_copied,
    ],
    netns: [],
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/man")
}

/// The pages in a folder, by the names of their files.
fn pages(folder: &Path) -> BTreeMap<String, String> {
    let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry"));
    let page = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().expect("UTF-8");
        (name, fs::read_to_string(entry.path()).expect("a page"))
    };
    entries.map(page).collect()
}

fn the_pages_are_current() {
    let now = tempfile::tempdir().expect("a folder");
    twtool(["man", "--dir", now.path().to_str().expect("UTF-8")]).ok();
    let (now, kept) = (pages(now.path()), pages(&folder()));
    let names = |pages: &BTreeMap<String, String>| pages.keys().cloned().collect::<Vec<_>>();
    let cure = "run `cargo run -- man --dir docs/man`";
    assert_eq!(names(&now), names(&kept), "docs/man/ lacks the page of a command, or has a page too many: {cure}");
    for (name, page) in &now {
        let differing = page.lines().zip(kept[name].lines()).find(|(now, kept)| now != kept);
        assert!(*page == kept[name], "docs/man/{name} is stale: {cure}; first difference: {differing:?}");
    }
}

/// The text of a page as a reader sees it.
fn plain(page: &str) -> String {
    let marks = [("\\fB", ""), ("\\fI", ""), ("\\fR", ""), ("\\&", "")];
    let signs = [("\\-", "-"), ("\\(aq", "'"), ("\\(ga", "`"), ("\\(ha", "^"), ("\\(ti", "~"), ("\\e", "\\")];
    marks.iter().chain(&signs).fold(page.to_owned(), |text, (from, to)| text.replace(from, to))
}

fn every_command_has_a_page_with_the_texts_of_its_help() {
    let pages = pages(&folder());
    let names = subcommands();
    assert_eq!(pages.len(), names.len() + 1, "{:?}", pages.keys());
    for words in [vec![]].into_iter().chain(names.iter().map(|name| vec![name.as_str()])) {
        let name =
            format!("{}.1", std::iter::once("twtool").chain(words.iter().copied()).collect::<Vec<_>>().join("-"));
        let page = plain(&pages[&name]);
        let sections = ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "\"EXIT STATUS\"", "EXAMPLES", "\"SEE ALSO\""];
        let found: Vec<_> = sections.iter().map(|section| page.find(&format!("\n.SH {section}\n"))).collect();
        assert!(found.iter().all(Option::is_some) && found.is_sorted(), "{name}: {sections:?} at {found:?}");
        let help = Run::of(command(words.iter().chain(&["--help"])).env("COLUMNS", "2000")).ok().stdout;
        let has = |text: &str| assert!(page.contains(text), "{name}: {text:?} is missing\n{page}");
        let options = help.lines().map(str::trim_start).filter(|line| line.starts_with('-'));
        options.filter_map(|line| line.split(' ').find(|word| word.starts_with("--"))).for_each(has);
        let headings = ["Usage:", "Commands:", "Arguments:", "Options:", "Global options:", "Exit codes:", "Examples:"];
        let paragraphs = help.split("\n\n").filter(|text| !text.starts_with(' '));
        for text in paragraphs.filter(|text| !headings.iter().any(|heading| text.starts_with(heading))) {
            text.lines().for_each(|line| has(line.trim_start_matches("  - ").replace('`', "").trim()));
        }
        let (_, examples) = help.split_once("Examples:\n").expect("examples");
        for example in examples.lines().filter(|line| line.starts_with("  ")) {
            let command = crate::examples::without_explanation(example);
            has(&format!("\n.nf\n{command}\n.fi\n"));
            let explanation = example.trim().strip_prefix(command).unwrap_or_default().trim().replace('`', "");
            has(&explanation);
        }
    }
}

fn without_dir_one_page_is_printed() {
    let pages = pages(&folder());
    assert_eq!(twtool(["man"]).ok().stdout, pages["twtool.1"]);
    for name in subcommands() {
        assert_eq!(twtool(["man", &name]).ok().stdout, pages[&format!("twtool-{name}.1")]);
    }
    assert_eq!(twtool(["-o", "csv", "man"]).ok().stdout, pages["twtool.1"]);
}

fn old_pages_are_replaced_and_other_files_of_the_folder_stay() {
    let parent = tempfile::tempdir().expect("a folder");
    let new = parent.path().join("share/man/man1");
    fs::create_dir_all(&new).expect("a folder");
    fs::write(new.join("twtool.1"), "old").expect("written");
    fs::write(new.join("other.1"), "other").expect("written");
    let run = twtool(["man", "--dir", new.to_str().expect("UTF-8")]).ok();
    assert_eq!(run.stdout, "");
    assert_eq!(fs::read_to_string(new.join("other.1")).expect("kept"), "other");
    fs::remove_file(new.join("other.1")).expect("removed");
    assert_eq!(pages(&new), pages(&folder()));
}

fn unwritable_folders_and_unknown_commands_are_refused() {
    twtool(["man", "no-such-command"]).refused("no-such-command").says("bind-test");
    twtool(["man", "list", "--dir", "/"]).refused("--dir");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("file");
    fs::write(&file, "").expect("written");
    twtool(["man", "--dir", file.to_str().expect("UTF-8")]).refused("file");
    let occupied = folder.path().join("man1");
    fs::create_dir_all(occupied.join("twtool.1")).expect("a folder");
    twtool(["man", "--dir", occupied.to_str().expect("UTF-8")]).refused("twtool.1");
}

fn mandoc_finds_no_mistake() {
    needs_program("mandoc");
    for name in pages(&folder()).keys() {
        let run = Run::of(Command::new("mandoc").args(["-T", "lint", "-W", "warning"]).arg(folder().join(name))).ok();
        assert_eq!(run.stdout, "", "{name}");
    }
}

/// troff can replace hyphens and quotes with typographic ones, which a shell does not understand.
fn man_shows_commands_that_can_be_copied() {
    needs_program("mandoc");
    for name in subcommands() {
        let help = Run::of(command([&name, "--help"]).env("COLUMNS", "2000")).ok().stdout;
        let (_, examples) = help.split_once("Examples:\n").expect("examples");
        let page = folder().join(format!("twtool-{name}.1"));
        let shown = Run::of(Command::new("mandoc").args(["-T", "utf8", "-O", "width=200"]).arg(page)).ok().stdout;
        // mandoc prints a bold character twice, with a backspace between the two.
        let mut plain = String::new();
        let mut characters = shown.chars().peekable();
        while let Some(c) = characters.next() {
            if characters.next_if_eq(&'\u{8}').is_none() {
                plain.push(c);
            }
        }
        for example in examples.lines().filter(|line| line.starts_with("  ")) {
            let command = crate::examples::without_explanation(example);
            assert!(plain.contains(command), "{name}: {command}\n{plain}");
        }
    }
}
