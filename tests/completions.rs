//! The generated files under completions/ are what this binary prints, so that a distribution may install them without
//! running it.

use crate::support::suite;
use crate::support::twtool::{Run, twtool};

suite! {
    pure: [
        the_bash_completions_are_current,
        the_zsh_completions_are_current,
        the_fish_completions_are_current,
        other_shells_are_refused,
        the_version_names_the_commit_and_the_features,
    ],
    netns: [],
}

/// Compares bytes; the files are long, so a failure shows the first line that differs, and the cure.
#[track_caller]
fn current(args: &[&str], file: &str, kept: &str) {
    let Run { stdout, .. } = twtool(args).ok();
    if stdout == kept {
        return;
    }
    let (mut printed, mut written) = (stdout.lines(), kept.lines());
    let differing = std::iter::from_fn(|| match (printed.next(), written.next()) {
        (None, None) => None,
        both => Some(both),
    });
    let first = differing.enumerate().find(|(_, (printed, written))| printed != written);
    let args = args.join(" ");
    panic!("completions/{file} is stale: run `cargo run -- {args} > completions/{file}`; first difference: {first:?}");
}

fn the_bash_completions_are_current() {
    current(&["completions", "bash"], "twtool.bash", include_str!("../completions/twtool.bash"));
}

fn the_zsh_completions_are_current() {
    current(&["completions", "zsh"], "_twtool", include_str!("../completions/_twtool"));
}

fn the_fish_completions_are_current() {
    current(&["completions", "fish"], "twtool.fish", include_str!("../completions/twtool.fish"));
}

fn other_shells_are_refused() {
    twtool(["completions", "tcsh"]).refused("tcsh");
    twtool(["completions"]).code(2);
}

fn the_version_names_the_commit_and_the_features() {
    let run = twtool(["--version"]).ok();
    let lines: Vec<&str> = run.stdout.lines().collect();
    let [version, commit, "features: cli"] = lines[..] else { panic!("three lines{run}") };
    assert_eq!(version, concat!("twtool ", env!("CARGO_PKG_VERSION")));
    assert_eq!(twtool(["-V"]).ok().stdout.trim_end(), version);
    // A package has no repository. A commit that was made since the build is not in it.
    let commit = commit.strip_prefix("commit: ").expect("a commit");
    let commit = commit.strip_suffix("-modified").unwrap_or(commit);
    assert!(commit == "unknown" || (commit.len() >= 12 && commit.bytes().all(|b| b.is_ascii_hexdigit())), "{run}");
}
