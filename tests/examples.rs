//! Runs each twtool command in code spans of the help, of the documents (except CHANGELOG.md) and of src/ (except comments), and each
//! line of twtool or sysctl in help examples and `console` blocks. twtool must not report wrong usage, and must end with exit code 0
//! or 1, unless the document shows an error below the line.
//! `Stage::run` replaces placeholders such as PORT, and changes lines that would not end or would take a minute.
//!
//! In these lines, `twtool` is a script that starts the binary under test and notes its exit code, so that a pipe does not hide the
//! code.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};

use tempfile::TempDir;
use twtool::lab::ActiveCloser;
use twtool::model::bind::ReuseOptions;
use twtool::sys::sysctl;

use crate::support::addresses;
use crate::support::bind::OpenSockets;
use crate::support::bucket_namespaces::show_only_own_processes;
use crate::support::commands::has;
use crate::support::dialogue::Dialogue;
use crate::support::private_proc::{
    OwnPidNamespace, Resident, in_new_namespace, mount_private_folders, name_this_namespace,
};
use crate::support::situations::{bucket_of_client, bucket_of_server, connect_from, half_closed, listen};
use crate::support::twtool::{PATH, Run, command, subcommands, twtool};
use crate::support::{kernel, measured, not_checked, suite};

suite! {
    pure: [
        a_line_is_separated_from_its_explanation,
    ],
    netns: [
        every_written_command_line_runs,
        every_written_demo_runs,
        every_written_command_line_over_all_namespaces_runs,
        a_wrong_line_is_found,
    ],
}

/// A command line in a text, and the documented result.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Line {
    text: String,
    /// Whether the document shows an error message below the line, for example the message on an old kernel.
    fails: bool,
    place: String,
}

/// The command lines of the help, of the documents and of src/, each once.
fn lines() -> Vec<Line> {
    let mut found = BTreeSet::new();
    let mut add = |text: &str, fails: bool, place: &str| {
        found.insert(Line { text: text.trim().to_owned(), fails, place: place.to_owned() });
    };
    let subcommands = subcommands();
    for words in [vec![]].into_iter().chain(subcommands.iter().map(|name| vec![name.as_str()])) {
        let place = format!("twtool {} --help", words.join(" "));
        let help = Run::of(command(words.iter().chain(&["--help"])).env("COLUMNS", "400")).ok().stdout;
        let (_, examples) = help.split_once("Examples:\n").unwrap_or_else(|| panic!("{place} has no examples"));
        let count = examples.lines().filter(|line| line.starts_with("  ")).count();
        assert!(count > 0, "{place}: no example");
        examples
            .lines()
            .filter(|line| line.starts_with("  "))
            .for_each(|line| add(without_explanation(line), false, &place));
        for span in spans(&help) {
            add(&span, false, &place);
        }
    }
    for (document, text) in crate::documents::documents() {
        let document = document.to_str().expect("UTF-8");
        // The changelog contains commands of earlier versions.
        if document == "CHANGELOG.md" {
            continue;
        }
        let mut blocks = text.split("```");
        while let (Some(prose), block) = (blocks.next(), blocks.next()) {
            for span in spans(prose) {
                add(&span, false, document);
            }
            let Some(console) = block.and_then(|block| block.strip_prefix("console\n")) else { continue };
            let mut lines = console.lines().peekable();
            while let Some(line) = lines.next() {
                let fails = lines.peek().is_some_and(|next| next.starts_with("error: "));
                // A line that twtool prints as the next step begins with blanks.
                match line.strip_prefix("$ ") {
                    Some(line) => add(line, fails, document),
                    None if line.starts_with("  ") => add(line, false, document),
                    None => {}
                }
            }
        }
    }
    for (path, text) in crate::layers::sources() {
        // In Rust, a string literal can continue in the next line after a backslash.
        let joined = crate::layers::code(&text).split("\\\n").map(str::trim_start).collect::<String>();
        for span in spans(&joined) {
            add(&span, false, &format!("src/{path}"));
        }
    }
    let typed = |line: &Line| {
        ["twtool ", "sudo twtool ", "sysctl ", "sudo sysctl "].iter().any(|begin| line.text.starts_with(begin))
    };
    let mut lines: Vec<Line> = found.into_iter().filter(typed).collect();
    lines.dedup_by(|a, b| a.text == b.text);
    lines
}

/// The command line before two blanks and an explanation. Blanks between quotes do not count.
pub(crate) fn without_explanation(line: &str) -> &str {
    let line = line.trim();
    let mut quoted = None;
    let mut before = 'x';
    for (at, c) in line.char_indices() {
        match (quoted, c) {
            (None, '\'' | '"') => quoted = Some(c),
            (Some(quote), c) if c == quote => quoted = None,
            (None, ' ') if before == ' ' => return line[..at].trim_end(),
            _ => {}
        }
        before = c;
    }
    line
}

fn a_line_is_separated_from_its_explanation() {
    assert_eq!(without_explanation("  twtool list 'a  b'   an explanation"), "twtool list 'a  b'");
    assert_eq!(without_explanation("  twtool list | jq \".x\""), "twtool list | jq \".x\"");
    assert_eq!(spans("see `twtool list -q` and `ss`, `twtool\nport 80`"), ["twtool list -q", "twtool port 80"]);
}

/// The command lines of twtool between backquotes.
fn spans(text: &str) -> Vec<String> {
    let span = |span: &str| span.split_whitespace().collect::<Vec<_>>().join(" ");
    // A paragraph has an even number of backquotes, so every second piece is a code span.
    let paragraphs = text.split("\n\n").flat_map(|paragraph| paragraph.split('`').skip(1).step_by(2));
    paragraphs.map(span).filter(|span| span.starts_with("twtool ") && !span.contains("...")).collect()
}

/// The environment in which the lines run: a folder with programs and a home folder, and four named network namespaces.
struct Stage {
    folder: TempDir,
    /// A process of the namespace `web`.
    resident: Resident,
    _kept: Vec<OpenSockets>,
}

impl Stage {
    /// `make` is called in each of the named namespaces.
    fn set(make: impl Fn() -> OpenSockets) -> Self {
        let mut kept = vec![];
        let mut resident = None;
        for netns in ["app", "cache", "db", "web"] {
            in_new_namespace(|| {
                name_this_namespace(netns);
                kept.push(make());
                resident = Some(Resident::start());
            });
        }
        let folder = tempfile::tempdir().expect("a folder");
        for below in ["bin", "home/.zfunc", "share/man/man1"] {
            fs::create_dir_all(folder.path().join(below)).expect("a folder");
        }
        for shell in [".local/share/bash-completion/completions", ".config/fish/completions"] {
            fs::create_dir_all(folder.path().join("home").join(shell)).expect("a folder");
        }
        let stage = Self { folder, resident: resident.expect("a process"), _kept: kept };
        stage.program("twtool", "\"$TWTOOL_BINARY\" \"$@\"\ncode=$?\necho $code >>\"$TWTOOL_CODES\"\nexit $code\n");
        // In the tests' user namespace, the caller is root. So this sudo only runs the command.
        stage.program("sudo", "exec \"$@\"\n");
        for server in ["python3", "nginx"] {
            stage.program(server, "echo started\n");
        }
        for missing in ["jq", "tshark", "man", "less"].into_iter().filter(|program| !has(program)) {
            not_checked(format!("whether {missing} accepts the output of twtool in examples: it is not installed"));
            stage.program(missing, "exec cat >/dev/null\n");
        }
        stage
    }

    fn program(&self, name: &str, script: &str) {
        let file = self.folder.path().join("bin").join(name);
        fs::write(&file, format!("#!/bin/sh\n{script}")).expect("written");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("executable");
    }

    fn run(&self, line: &Line) -> Result<(), String> {
        let here = tempfile::tempdir().expect("a folder");
        let server = here.path().join("server");
        fs::write(&server, "#!/bin/sh\necho started\n").expect("written");
        fs::set_permissions(&server, fs::Permissions::from_mode(0o755)).expect("executable");
        if line.text.contains("--replay") {
            twtool(["list", "--record", here.path().join("bug.twrec").to_str().expect("UTF-8")]).ok();
        }
        let share = self.folder.path().join("share");
        let replaced = [
            ("PORT", "8080"),
            ("FILE", "bug.twrec"),
            ("NAME", "web"),
            ("PID", &self.resident.pid()),
            ("4711", &self.resident.pid()),
            ("bash|zsh|fish", "bash"),
            ("/usr/local/share", share.to_str().expect("UTF-8")),
        ];
        let mut text = replaced.iter().fold(line.text.clone(), |text, (from, to)| text.replace(from, to));
        if text.contains("twtool watch") {
            text = text.replace("--duration 1m", "--duration 1s");
            // The screen needs a terminal, and watch_screen.rs tests it. Here the line prints records.
            if !text.contains("ndjson") {
                text = text.replace("twtool watch", "twtool watch -o ndjson");
            }
            // Without a limit, `watch` does not end.
            if !["--count", "--duration"].iter().any(|limit| text.contains(limit)) {
                text = text.replace("twtool watch ", "twtool watch --count 1 ");
            }
        }
        // In the tests' user namespace, the kernel refuses BPF. trace.rs tests `trace` itself, and here only its arguments are
        // checked.
        let traces = text.contains("twtool trace");
        if traces {
            text.truncate(text.find(" |").unwrap_or(text.len()));
        }
        let name_alone = text.strip_prefix("twtool ").is_some_and(|word| subcommands().iter().any(|name| name == word));
        if name_alone || traces || text.starts_with("twtool demo length") || text.contains("twtool exporter") {
            // The name of a command alone may lack arguments, `demo length` takes a minute, and an exporter does not end. So the line
            // gets --help: clap checks the other arguments first, and then the command does not run.
            text.push_str(" --help");
        }
        let codes = here.path().join("codes");
        let path = std::env::var("PATH").expect("PATH");
        let mut shell = Command::new("sh");
        shell.args(["-c", &text]).current_dir(here.path()).stdin(Stdio::null());
        shell.env("PATH", format!("{}:{path}", self.folder.path().join("bin").display()));
        shell.env("HOME", self.folder.path().join("home"));
        shell.env("TWTOOL_BINARY", PATH).env("TWTOOL_CODES", &codes);
        let asks = (text.contains("twtool kill") && !text.contains("--yes") && !text.contains("--dry-run"))
            || text.contains("--step");
        let run = if asks {
            let mut dialogue = Dialogue::of(shell);
            (0..40).for_each(|_| dialogue.types("y"));
            dialogue.end()
        } else {
            Run::of(&mut shell)
        };
        let codes = fs::read_to_string(codes).unwrap_or_default();
        let codes: Vec<&str> = codes.lines().collect();
        let old = text.contains("kill") && !(kernel::destroys_buckets() && kernel::ends_orphans());
        let error = run.stderr.lines().any(|line| line.starts_with("error: "));
        let allowed = |code: &&str| matches!(*code, "0" | "1") || (*code == "2" && (line.fails || old));
        let of_twtool = line.text.contains("twtool ");
        let pipes = line.text.contains("| jq") && !traces;
        let wrong = if of_twtool && codes.is_empty() {
            "twtool was not started"
        } else if run.stderr.contains("Usage: ") || run.stderr.contains("panicked") {
            "wrong usage"
        } else if !codes.iter().all(allowed) {
            "an unexpected exit code"
        } else if error && !line.fails && !old {
            "an error"
        } else if (pipes || !of_twtool) && run.code != Some(0) {
            "another program of the line fails"
        } else {
            return Ok(());
        };
        Err(format!("{}: {wrong}: {codes:?}{run}", line.place))
    }
}

/// Makes sockets of every kind that the lines ask for.
fn situation() -> OpenSockets {
    for addr in ["10.0.0.1", "192.0.2.1", "192.0.2.10", "2001:db8::1", "2001:db8::9"] {
        addresses::add(addr);
    }
    let web = listen("127.0.0.1:8080");
    bucket_of_server(&web, "127.0.0.1:8080");
    bucket_of_client(&web, "127.0.0.1:8080");
    let half = half_closed(&web, "127.0.0.1:8080", ActiveCloser::Server);
    let secure = listen("127.0.0.1:443");
    bucket_of_server(&secure, "127.0.0.1:443");
    let database = listen("10.0.0.1:5432");
    connect_from(&database, "10.0.0.1:5432", "10.0.0.1:45000").close(ActiveCloser::Client).expect("a bucket");
    let plain = twtool::lab::Server::listen("127.0.0.1:9000".parse().expect("an address"), ReuseOptions::NONE);
    bucket_of_server(&plain.expect("a server"), "127.0.0.1:9000");
    Box::new((half, secure, database))
}

/// Makes the addresses of the `wait` lines local. Their ports are free, so that each wait ends immediately.
fn free() -> OpenSockets {
    for addr in ["10.0.0.1", "192.0.2.1", "192.0.2.7"] {
        addresses::add(addr);
    }
    Box::new(())
}

fn every_written_command_line_runs() {
    run_all(|line| !line.contains("--all-netns") && !is_demo(line));
}

/// The demos have a test of their own, because they take the longest time.
fn every_written_demo_runs() {
    run_all(is_demo);
}

fn is_demo(line: &str) -> bool {
    line.contains("twtool demo") || line.contains("--demo")
}

fn run_all(chosen: fn(&str) -> bool) {
    mount_private_folders();
    let stage = Stage::set(free);
    let lines: Vec<Line> = lines().into_iter().filter(|line| chosen(&line.text)).collect();
    let mut wrong = vec![];
    for line in &lines {
        let waits = line.text.contains("twtool wait");
        let ended = in_new_namespace(|| {
            let _kept = if waits { free() } else { situation() };
            stage.run(line)
        });
        wrong.extend(ended.err());
    }
    measured(format!("examples: {} written command lines were run", lines.len()));
    assert!(wrong.is_empty(), "{} of {} lines\n{}", wrong.len(), lines.len(), wrong.concat());
}

fn every_written_command_line_over_all_namespaces_runs() {
    let pid_namespace = OwnPidNamespace::enter();
    let stage = Stage::set(situation);
    let _kept = situation();
    if !show_only_own_processes(&pid_namespace) {
        return;
    }
    for line in lines().iter().filter(|line| line.text.contains("--all-netns")) {
        stage.run(line).unwrap_or_else(|wrong| panic!("{wrong}"));
    }
}

fn a_wrong_line_is_found() {
    mount_private_folders();
    let stage = Stage::set(free);
    let line = |text: &str| Line { text: text.into(), fails: false, place: "here".into() };
    assert_eq!(stage.run(&line("twtool list | cat")), Ok(()));
    for wrong in [
        "twtool list --no-such-option",
        "twtool list --no-such-option | cat",
        "twtool list --json && twtool port 80 --jsn",
        "twtool demo length --no-such-option",
        "twtool no-such-command",
        "twtool list 'sport is 80'",
        "twtool list --netns nosuch",
        "twtool list --json | jq .sockets.no-such-key",
        "sysctl net.ipv4.no_such_setting",
    ] {
        if !wrong.contains("jq") || has("jq") {
            assert!(stage.run(&line(wrong)).is_err(), "{wrong}");
        }
    }
    // Each namespace has this setting, so the command changes only the namespace of the test.
    let range = "sysctl -w 'net.ipv4.ip_local_port_range=1024 65535'";
    assert_eq!(stage.run(&line(range)), Ok(()));
    assert_eq!(sysctl::read("ipv4.ip_local_port_range").expect("a range"), "1024\t65535");
}
