//! Completions: the scripts in completions/ equal the output of this binary, twtool offers the values of this machine, and real
//! shells offer or insert each value as one word.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use tempfile::TempDir;

use crate::support::commands::needs_program;
use crate::support::private_proc::{in_new_namespace, mount_private_folders, name_this_namespace};
use crate::support::situations::{bucket_of_server, listen};
use crate::support::twtool::{PATH, Run, subcommands, twtool};
use crate::support::{measured, suite};

suite! {
    pure: [
        the_printed_scripts_equal_the_files_in_completions,
        every_command_and_option_is_offered,
        listed_values_are_offered_also_after_a_comma,
        words_of_a_filter_and_names_of_commands_are_offered,
        paths_are_offered,
        no_error_is_reported_if_no_word_can_be_offered,
        other_shells_are_refused,
        the_version_names_the_commit_and_the_features,
    ],
    netns: [
        namespaces_are_offered_except_names_with_control_characters_or_invalid_utf8,
        ports_in_use_and_names_of_services_are_offered,
        values_come_from_the_namespace_that_the_line_selects,
        bash_inserts_each_value_as_one_word,
        fish_offers_each_value,
        zsh_inserts_each_value_as_one_word,
    ],
}

fn the_printed_scripts_equal_the_files_in_completions() {
    for (shell, file) in [("bash", "twtool.bash"), ("zsh", "_twtool"), ("fish", "twtool.fish")] {
        let kept = fs::read_to_string(scripts().join(file)).expect("a script");
        assert_eq!(twtool(["completions", shell]).ok().stdout, kept);
    }
}

fn scripts() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("completions")
}

/// The candidates for the last word of a line, each with its description.
#[track_caller]
fn offered(line: &str) -> Vec<(String, String)> {
    let words: Vec<&str> = line.split(' ').collect();
    let index = (words.len() - 1).to_string();
    let run = twtool(["__complete", &index, "--"].into_iter().chain(words)).ok();
    let pair = |line: &str| line.split_once('\t').map(|(value, help)| (value.to_owned(), help.to_owned()));
    run.stdout.lines().map(|line| pair(line).unwrap_or_else(|| panic!("a value and a description{run}"))).collect()
}

#[track_caller]
fn values(line: &str) -> Vec<String> {
    offered(line).into_iter().map(|(value, _)| value).collect()
}

fn every_command_and_option_is_offered() {
    let begun = Instant::now();
    let commands = values("twtool ");
    measured(format!("completions: {:?} for one list of candidates in this build", begun.elapsed()));
    assert_eq!(commands, subcommands());
    for command in subcommands() {
        let offered = values(&format!("twtool {command} --"));
        let place = |option: &str| offered.iter().position(|value| value == option);
        assert!(place("--help") < place("--color"), "{command}: the options of the command come first: {offered:?}");
        for option in crate::documents::options(&command).into_iter().chain(["--color".into(), "--help".into()]) {
            assert!(offered.contains(&option), "{command} {option}: {offered:?}");
        }
    }
}

fn listed_values_are_offered_also_after_a_comma() {
    assert_eq!(values("twtool list --columns local,remote_p"), ["local,remote_port"]);
    assert_eq!(values("twtool list --columns=local,remote_p"), ["--columns=local,remote_port"]);
    assert_eq!(values("twtool summary --by local-port,d"), ["local-port,destination", "local-port,direction"]);
    assert_eq!(values("twtool list -o n"), ["ndjson"]);
    let scenarios = twtool(["demo", "--json"]).ok().records("scenarios");
    let scenarios: Vec<_> = scenarios.iter().map(|one| one["scenario"].as_str().expect("a name").to_owned()).collect();
    assert_eq!(values("twtool demo "), scenarios);
    let (value, help) = &offered("twtool list --columns mar")[0];
    assert!(value == "mark" && help.contains("SO_MARK"), "{value}: {help}");
}

fn words_of_a_filter_and_names_of_commands_are_offered() {
    assert_eq!(values("twtool list sport = :443 and dp"), ["dport"]);
    assert_eq!(values("twtool kill n"), ["not"]);
    assert_eq!(values("twtool man bind"), ["bind-test"]);
    for word in values("twtool list ").into_iter().filter(|word| !["and", "or"].contains(&word.as_str())) {
        let judged = twtool(["list", "--explain-filter", &word]);
        assert!(!judged.stderr.contains(&format!("found '{word}'")), "{word}{judged}");
    }
}

fn paths_are_offered() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::create_dir(folder.path().join("deep")).expect("a folder");
    fs::write(folder.path().join("deep/bug.twrec"), "").expect("a file");
    let path = folder.path().to_str().expect("UTF-8");
    for option in ["list --replay", "list --netns", "wait 80 -- cat"] {
        assert_eq!(values(&format!("twtool {option} {path}/de")), [format!("{path}/deep/")]);
        assert_eq!(values(&format!("twtool {option} {path}/deep/b")), [format!("{path}/deep/bug.twrec")]);
    }
}

fn no_error_is_reported_if_no_word_can_be_offered() {
    for line in [
        "twtool nosuch ",
        "twtool list --no-such-option ",
        "twtool list --netns nosuch --port ",
        "twtool list --netns 2147483647 dev ",
        "twtool list --netns .. --port ",
        "twtool port zzz",
        "twtool list --limit ",
        "twtool -- ",
    ] {
        let found = values(line);
        assert!(!found.iter().any(|value| value.starts_with(|c: char| c.is_ascii_digit())), "{line}: {found:?}");
    }
    let beyond = twtool(["__complete", "7", "--", "twtool"]).ok();
    assert_eq!(beyond.stdout, "");
}

/// Names with characters that a shell interprets.
const FOREIGN: [&str; 6] = ["a b", "q'uote", "d\"quote", "*", "$(touch owned)", "x;touch owned"];

/// Makes the network namespace `web` and one for each name of [`FOREIGN`], and a folder with a script `twtool`. For completions, the
/// script runs the binary. Otherwise it prints its arguments.
fn stage() -> TempDir {
    mount_private_folders();
    for foreign in FOREIGN.into_iter().chain(["web"]) {
        in_new_namespace(|| name_this_namespace(foreign));
    }
    let folder = tempfile::tempdir().expect("a folder");
    let program = folder.path().join("twtool");
    let script = "#!/bin/sh\nif [ \"$1\" = __complete ]; then exec \"$TWTOOL_BINARY\" \"$@\"; fi\n\
                  printf 'RAN'; printf '<%s>' \"$@\"; echo '>END'\n";
    fs::write(&program, script).expect("a program");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("executable");
    folder
}

/// Runs `script` with the shell `program`. The folder of the stage is the current folder and comes first in PATH.
#[track_caller]
fn shell(program: &str, options: &[&str], script: &str, stage: &TempDir) -> String {
    let mut command = Command::new(program);
    let path = std::env::var("PATH").expect("PATH");
    command.args(options).args(["-c", script]).current_dir(stage.path()).stdin(Stdio::null());
    command.env("PATH", format!("{}:{path}", stage.path().display())).env("TWTOOL_BINARY", PATH);
    command.env("HOME", stage.path()).env("SCRIPTS", scripts()).env("TERM", "xterm").env_remove("ZDOTDIR");
    let run = Run::of(&mut command).ok();
    assert!(!stage.path().join("owned").exists(), "a name was run as a command{run}");
    run.stdout
}

fn namespaces_are_offered_except_names_with_control_characters_or_invalid_utf8() {
    mount_private_folders();
    for foreign in FOREIGN.into_iter().chain(["web", "new\nline", "esc\u{1b}[31m", "tab\tb"]) {
        in_new_namespace(|| name_this_namespace(foreign));
    }
    in_new_namespace(|| name_this_namespace(std::ffi::OsStr::from_bytes(b"\xff")));
    let mut expected = FOREIGN.map(str::to_owned).to_vec();
    expected.push("web".into());
    expected.sort();
    assert_eq!(values("twtool list --netns "), expected);
    assert_eq!(values("twtool port 80 --netns=w"), ["--netns=web"]);
}

fn ports_in_use_and_names_of_services_are_offered() {
    let server = listen("127.0.0.1:8080");
    bucket_of_server(&server, "127.0.0.1:8080");
    let buckets = twtool(["list", "--json"]).ok().records("sockets");
    let remote = buckets[0]["remote_port"].to_string();
    drop(server);
    bucket_of_server(&listen("127.0.0.1:9000"), "127.0.0.1:9000");
    let _listener = listen("127.0.0.1:9001");
    assert_eq!(values("twtool list --local-port "), ["9001", "8080", "9000"]);
    assert_eq!(values("twtool bind-test 90"), ["9001", "9000"]);
    assert_eq!(values("twtool list --port 80,90"), ["80,9001", "80,9000"]);
    assert!(values("twtool list --remote-port ").contains(&remote));
    assert_eq!(offered("twtool port 9001")[0].1, "listening");
    assert!(offered("twtool port 8080")[0].1.ends_with("1 TIME_WAIT"));
    let https = fs::read_to_string("/etc/services").is_ok_and(|text| text.contains("\nhttps"));
    assert_eq!(values("twtool wait htt").contains(&"https".to_owned()), https);
}

fn values_come_from_the_namespace_that_the_line_selects() {
    mount_private_folders();
    let mut kept = vec![];
    in_new_namespace(|| {
        name_this_namespace("web");
        kept.push(listen("127.0.0.1:7777"));
    });
    let _here = listen("127.0.0.1:8888");
    assert_eq!(values("twtool list --port "), ["8888"]);
    assert_eq!(values("twtool list --netns web --port "), ["7777"]);
    assert_eq!(values("twtool list --netns=web --port="), ["--port=7777"]);
    assert_eq!(values("twtool list --netns web dev "), ["lo"]);
}

/// The test calls the registered function as bash calls it, and evaluates each completed word as bash evaluates the line.
fn bash_inserts_each_value_as_one_word() {
    needs_program("bash");
    let stage = stage();
    let ask = |line: &str, words: &str| {
        let script = format!(
            "source \"$SCRIPTS/twtool.bash\"; complete -p twtool >/dev/null || exit 3
            COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMP_LINE={line}; COMP_POINT=${{#COMP_LINE}}
            _twtool twtool \"${{COMP_WORDS[COMP_CWORD]}}\" x 2>&1
            for word in \"${{COMPREPLY[@]}}\"; do eval \"set -- $word\"; echo \"$#:$1\"; done"
        );
        shell("bash", &["--norc"], &script, &stage).lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let mut all: Vec<_> = FOREIGN.iter().chain(&["web"]).map(|name| format!("1:{name}")).collect();
    all.sort();
    assert_eq!(ask("'twtool list --netns '", "twtool list --netns ''"), all);
    // bash splits at the equals sign, and replaces what follows it.
    assert_eq!(ask("'twtool list --netns=w'", "twtool list --netns = w"), ["1:web"]);
    assert_eq!(ask("'twtool list --netns='", "twtool list --netns ="), all);
    assert_eq!(ask("'twtool list --netns a\\ '", "twtool list --netns 'a\\ '"), ["1:a b"]);
    // Behind an open quote, only values that need no quotes are offered.
    assert_eq!(ask("'twtool list --netns \"w'", "twtool list --netns '\"w'"), ["1:web"]);
    assert_eq!(
        ask("'twtool   list  --columns local,remote_p'", "twtool list --columns local,remote_p"),
        ["1:local,remote_port"]
    );
    let missing =
        "source \"$SCRIPTS/twtool.bash\"; COMP_WORDS=(twtool l); COMP_CWORD=1 COMP_LINE='twtool l' COMP_POINT=8
        _twtool nosuch l x";
    assert_eq!(shell("bash", &["--norc"], missing, &stage), "");
}

fn fish_offers_each_value() {
    needs_program("fish");
    let stage = stage();
    let ask = |line: &str| {
        let script = format!("source $SCRIPTS/twtool.fish; complete -C {line}");
        shell("fish", &["--no-config"], &script, &stage).lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let mut all: Vec<_> = FOREIGN.iter().chain(&["web"]).map(|name| (*name).to_owned()).collect();
    all.sort();
    let mut found = ask("'twtool list --netns '");
    found.sort();
    assert_eq!(found, all);
    assert_eq!(ask("'twtool list --netns=w'"), ["--netns=web"]);
    assert_eq!(ask("'twtool list --netns \\'w'"), ["web"]);
    assert_eq!(ask("'twtool list --netns a\\ '"), ["a b"]);
    assert_eq!(ask("'twtool list --columns local,remote_p'"), ["local,remote_port\tRemote port"]);
    assert_eq!(ask("'~/twtool demo r'").len(), 1);
    let missing = "source $SCRIPTS/twtool.fish; complete -c nosuch -f -a '(__twtool_complete)'; complete -C 'nosuch l'";
    assert_eq!(shell("fish", &["--no-config"], missing, &stage), "");
}

/// A zsh on a terminal completes a typed line, and runs it.
fn zsh_inserts_each_value_as_one_word() {
    needs_program("zsh");
    let stage = stage();
    let ask = |typed: &str, end: &str, until: &str| {
        let script = format!(
            "zmodload zsh/zpty || exit 3
            zpty z zsh -f -i
            zpty -w z \"PS1=; fpath=($SCRIPTS \\$fpath); autoload -Uz compinit; compinit -u -D; echo REA''DY\"
            zpty -r z line '*READY*'
            zpty -w -n z \"twtool \"{typed}$'\\t'\"{end}\"
            zpty -r z line '*{until}*'
            print -r -- \"$line\""
        );
        shell("zsh", &["-f"], &script, &stage)
    };
    let run = |typed: &str| {
        let shown = ask(typed, "\n", ">END");
        let (_, ran) = shown.split_once("RAN").unwrap_or_else(|| panic!("twtool was not run: {shown}"));
        ran.split(">END").next().unwrap_or_default().to_owned()
    };
    for (typed, expected) in [
        ("'list --netns w'", "<list><--netns><web>"),
        ("'list --netns=w'", "<list><--netns=web>"),
        ("'list --netns a'", "<list><--netns><a b>"),
        ("'list --netns q'", "<list><--netns><q'uote>"),
        ("'list --netns d'", "<list><--netns><d\"quote>"),
        ("'list --netns x'", "<list><--netns><x;touch owned>"),
        ("'list --netns \\$'", "<list><--netns><$(touch owned)>"),
        ("'list --columns local,remote_p'", "<list><--columns><local,remote_port>"),
    ] {
        assert_eq!(format!("{}>", run(typed)), format!("{expected}>"), "{typed}");
    }
    // If several values are possible, zsh shows each value in full, with its description.
    let shown = ask("'summary --by local-port,'", "", "Network namespace");
    assert!(shown.contains("local-port,destination  Remote address and port"), "{shown}");
}

fn other_shells_are_refused() {
    twtool(["completions", "tcsh"]).refused("tcsh");
    twtool(["completions"]).code(2);
}

fn the_version_names_the_commit_and_the_features() {
    let run = twtool(["--version"]).ok();
    let lines: Vec<&str> = run.stdout.lines().collect();
    let [version, commit, "features: cli, watch, exporter, trace"] = lines[..] else { panic!("three lines{run}") };
    assert_eq!(version, concat!("twtool ", env!("CARGO_PKG_VERSION")));
    assert_eq!(twtool(["-V"]).ok().stdout.trim_end(), version);
    // A build from a package has no repository, so its commit is unknown. The test does not compare the commit with that of the
    // repository, because the binary may be older.
    let commit = commit.strip_prefix("commit: ").expect("a commit");
    let commit = commit.strip_suffix("-modified").unwrap_or(commit);
    assert!(commit == "unknown" || (commit.len() >= 12 && commit.bytes().all(|b| b.is_ascii_hexdigit())), "{run}");
}
