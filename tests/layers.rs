//! Rules that the compiler does not check: which folder of src/ may import which other folder, that modules do not import each other in
//! a cycle, which files may use which crates, that one function reads all settings, and that every file has a description.
//!
//! The *checker* (the functions of this file) does not parse Rust, but searches in the text without comments. Every path that begins
//! with `crate::`, with `twtool::`, or with enough `super::` to leave the folder of the file counts as an import.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::suite;

suite! {
    pure: [
        every_import_follows_the_tables_of_layers_and_crates,
        the_modules_of_a_folder_form_no_cycle,
        the_checker_sees_cycles,
        every_file_begins_with_its_description,
        the_checker_sees_imports_of_every_form,
        the_checker_sees_crates_in_files_that_may_not_use_them,
        one_function_reads_all_files_below_proc_sys_and_sys,
    ],
    netns: [],
}

/// A part of src/, and the parts that it may import beside itself and std.
const LAYERS: [(&str, &[&str]); 17] = [
    ("parallel", &[]),
    ("model", &[]),
    ("filter", &["model"]),
    ("sock_diag", &["model", "filter", "parallel", "sys"]),
    ("sys", &["model"]),
    ("trace", &["model", "sys"]),
    ("analysis", &["model"]),
    ("view", &["model", "analysis", "parallel"]),
    ("source", &["model", "filter", "sock_diag", "sys"]),
    ("lab", &["model", "sock_diag", "sys"]),
    ("snapshot", &["model", "filter", "parallel", "sock_diag", "sys", "trace", "source", "analysis"]),
    // `sys` is for the terminal, its signals and clocks. The times and counters of a sample come from `snapshot`.
    ("watch", &["model", "filter", "snapshot", "analysis", "view", "sys"]),
    // `sys` writes the files for node_exporter, and reads the clock and the memory of this process.
    ("metrics", &["model", "analysis", "snapshot", "sys"]),
    ("exporter", &["snapshot", "metrics", "view", "sys"]),
    // Commands do not read the machine themselves, so they may not import `sys`.
    ("commands", &["model", "filter", "snapshot", "analysis", "view", "watch", "metrics", "exporter", "lab"]),
    // `cli` and `main` use `sys` to prepare the process, for example its standard streams and its confinement.
    ("cli", &["commands", "sys"]),
    ("main", &["cli", "commands", "sys"]),
];

/// Crates that only some files may use, and these files. Other crates may be used everywhere except in `model`.
const RESTRICTED: [(&str, &[&str]); 16] = [
    ("nix", &["sys/", "lab/", "sock_diag/transport.rs", "parallel.rs"]),
    ("libc", &["sys/", "sock_diag/transport.rs"]),
    ("rustix", &["sys/"]),
    ("socket2", &["sys/", "lab/"]),
    ("netlink_sys", &["sys/", "sock_diag/transport.rs"]),
    ("procfs", &["sys/"]),
    ("landlock", &["sys/"]),
    ("seccompiler", &["sys/"]),
    ("tempfile", &["sys/"]),
    ("terminal_size", &["sys/"]),
    ("comfy_table", &["view/"]),
    ("ratatui", &["watch/screen/"]),
    ("tokio", &["exporter/"]),
    ("hyper", &["exporter/"]),
    ("hyper_util", &["exporter/"]),
    ("rayon", &["parallel.rs"]),
];

fn every_import_follows_the_tables_of_layers_and_crates() {
    let mut violations = vec![];
    for (path, text) in sources() {
        violations.extend(imports(&path, &text));
        violations.extend(crates(&path, &text));
    }
    assert!(violations.is_empty(), "\n{}", violations.join("\n"));
}

fn the_modules_of_a_folder_form_no_cycle() {
    let cycles = cycles(&sources());
    assert!(cycles.is_empty(), "\n{}", cycles.join("\n"));
}

fn the_checker_sees_cycles() {
    let seen = |files: &[(&str, &str)]| {
        let files: Vec<_> = files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect();
        cycles(&files)
    };
    assert_eq!(
        seen(&[("view/a.rs", "use super::b::B;"), ("view/b.rs", "use super::c::C;"), ("view/c.rs", "")]).len(),
        0
    );
    let cycle =
        [("view/a.rs", "use super::{b::B, x};"), ("view/b.rs", "use crate::view::c;"), ("view/c.rs", "super::a::f()")];
    assert_eq!(seen(&cycle), ["view: a -> b -> c -> a"]);
    let deep = [("sys/a/mod.rs", ""), ("sys/a/x.rs", "use super::super::b::B;"), ("sys/b.rs", "use super::a;")];
    assert_eq!(seen(&deep), ["sys: a -> b -> a"]);
    assert_eq!(
        seen(&[("view/a.rs", "use super::b;"), ("view/b.rs", "#[cfg(test)]\nmod tests { use super::a; }")]).len(),
        0
    );
}

/// The import cycles between the modules of each folder of src/, one per line. The mod.rs of a folder is not one of these modules.
fn cycles(files: &[(String, String)]) -> Vec<String> {
    // The key is a folder and a module in it. The value has the names that the module imports from this folder.
    let mut imports: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
    for (path, text) in files {
        let code = code(text.split("#[cfg(test)]").next().unwrap_or(text));
        let path = path.trim_end_matches(".rs").trim_end_matches("/mod");
        let module: Vec<&str> = path.split('/').collect();
        for depth in 1..module.len() {
            let (folder, name) = (module[..depth].join("::"), module[depth].to_owned());
            let relative = after(&code, &"super::".repeat(module.len() - depth));
            let words = after(&code, &format!("crate::{folder}::")).into_iter().chain(relative);
            let others = words.filter(|word| *word != name).collect::<Vec<_>>();
            imports.entry((folder, name)).or_default().extend(others);
        }
    }
    let mut found = vec![];
    for (folder, first) in imports.keys() {
        let (mut ways, mut seen) = (vec![vec![first]], BTreeSet::new());
        while let Some(way) = ways.pop() {
            for next in imports.get(&(folder.clone(), way[way.len() - 1].clone())).into_iter().flatten() {
                if next == first {
                    // The search finds each cycle from each of its modules, and reports it only for the first one in the alphabet.
                    if way.iter().all(|name| first <= *name) {
                        let names: Vec<&str> = way.iter().chain([&first]).map(|name| name.as_str()).collect();
                        found.push(format!("{folder}: {}", names.join(" -> ")));
                    }
                } else if seen.insert(next) {
                    ways.push(way.iter().copied().chain([next]).collect());
                }
            }
        }
    }
    found
}

fn every_file_begins_with_its_description() {
    let silent: Vec<_> = sources().into_iter().filter(|(_, text)| !text.starts_with("//! ")).map(|(p, _)| p).collect();
    assert!(silent.is_empty(), "no //! at the top of {silent:?}");
}

fn the_checker_sees_imports_of_every_form() {
    let bad = |path: &str, text: &str| imports(path, text).len();
    assert_eq!(bad("model/port.rs", "use std::fmt;\nuse super::socket::Port;\nuse crate::model::addr;"), 0);
    assert_eq!(bad("model/port.rs", "use crate::sys;"), 1);
    assert_eq!(bad("model/port.rs", "    let now = crate::sys::clock::now();"), 1);
    assert_eq!(bad("model/port.rs", "use super::super::view;"), 1);
    assert_eq!(bad("view/mod.rs", "use super::source::Source;"), 1);
    assert_eq!(bad("filter/mod.rs", "use crate::{model::port, sys};"), 1);
    assert_eq!(
        bad("filter/mod.rs", "use crate::{\n    model::{port::Port, row},\n    sys::{bind, clock},\n    view,\n};"),
        2
    );
    assert_eq!(bad("source/mod.rs", "use crate::sys::{self, view};\nuse crate::sock_diag::dump;"), 0);
    assert_eq!(bad("main.rs", "fn main() { twtool::cli::run(twtool::source::x) }"), 1);
    assert_eq!(
        bad("view/json.rs", "//! Nothing of crate::sys here.\n/// Not crate::lab.\nlet a = 1; // crate::sys"),
        0
    );
    assert_eq!(bad("view/json.rs", "let a = b\"http://x\"; use crate::sys;"), 1);
    assert_eq!(bad("elsewhere/mod.rs", "fn f() {}"), 1, "a folder that is not in the table");
    assert_eq!(bad("model/port.rs", "use crate::elsewhere::x;"), 1);
}

fn the_checker_sees_crates_in_files_that_may_not_use_them() {
    assert_eq!(crates("model/port.rs", "use std::fmt;").len(), 0);
    assert_eq!(crates("model/port.rs", "#[derive(serde::Serialize)]\nstruct A;").len(), 1);
    assert_eq!(crates("analysis/verdict.rs", "use nix::unistd;").len(), 1);
    assert_eq!(crates("sys/netns.rs", "use nix::unistd;").len(), 0);
    assert_eq!(crates("sock_diag/dump.rs", "use netlink_sys::Socket;").len(), 1);
    assert_eq!(crates("sock_diag/transport.rs", "use netlink_sys::Socket;").len(), 0);
    assert_eq!(crates("source/recording.rs", "fn f() {}\n#[cfg(test)]\nmod tests { use tempfile::tempdir; }").len(), 0);
    assert!(dependencies().iter().any(|name| name == "netlink_packet_core"));
}

/// If a setting is a list, only the first read(2) returns data. So code that reads with a small buffer cuts the list. Therefore
/// `sys::setting::read` must read every file below /proc/sys and /sys. A test in settings.rs checks the calls of the running program.
fn one_function_reads_all_files_below_proc_sys_and_sys() {
    let readings: Vec<_> = sources().iter().flat_map(|(path, text)| readings_of_settings(path, text)).collect();
    assert!(readings.is_empty(), "\n{}", readings.join("\n"));

    let seen = |path: &str, text: &str| readings_of_settings(path, text).len();
    let setting = "const A: &str = \"/proc/sys/net\";\n";
    for opening in [
        "fs::read_to_string(A)",
        "std::fs::read(A)",
        "File::open(A)",
        "File::options().read(true).open(A)",
        "OpenOptions::new().open(A)",
        "file::open(A)",
        "super::file::read(A, 9)",
        "let bytes = read(A, 9)?;",
        "rustix::fs::open(A, flags, mode)",
        "openat(CWD, A, flags, mode)",
        "openat2(CWD, A, flags, mode, how)",
        "nix::fcntl::open(A, flags, mode)",
        "libc::open(A.as_ptr(), 0)",
        "procfs::process::Process::myself()",
        "fs::copy(A, b)",
        "Command::new(\"cat\").arg(A)",
        "retry(|| open(A))",
        "paths.iter().map(fs::read_to_string)",
    ] {
        assert_eq!(seen("sys/a.rs", &format!("{setting}{opening}")), 1, "{opening}");
    }
    assert_eq!(seen("sys/a.rs", "File::open(format!(\"/sys/class/{name}\"))"), 1);
    assert_eq!(seen("sys/a.rs", "Path::new(\"/\").join(\"proc/sys/net\"); fs::read(path)"), 1);
    assert_eq!(seen("sys/a.rs", "use super::file::read;"), 0, "no setting is named");
    assert_eq!(seen("sys/a.rs", "let path = \"/sys/x\";\nfile::read(Path::new(\"/proc/slabinfo\"), 9)"), 0);
    assert_eq!(seen("sys/a.rs", "let path = \"/proc/sys/x\";\nfs::write(path, text); setting::read(path)"), 0);
    assert_eq!(seen("sys/a.rs", &format!("{setting}fn read(name: &str) {{ setting::read(A) }}\nread(name)")), 0);
    assert_eq!(seen("sys/a.rs", "fs::read(\"/proc/self/status\")"), 0);
    assert_eq!(seen("sys/setting.rs", "const A: &str = \"/proc/sys/x\";\nFile::open(A)"), 0);
    assert_eq!(seen("sys/a.rs", "procfs::sys::net::x()"), 1, "a crate that reads settings");
}

/// Finds the lines of a source file that may read a file below /proc/sys or /sys without `setting::read`. If the source file contains such
/// a path, every line that opens a file counts, unless it calls `setting::read` or a function of this source file, or names another file
/// of /proc.
fn readings_of_settings(path: &str, text: &str) -> Vec<String> {
    /// Names in code that can open a file.
    const OPENING: [&str; 12] = [
        "open",
        "openat",
        "openat2",
        "read",
        "read_to_string",
        "options",
        "OpenOptions",
        "File",
        "copy",
        "procfs",
        "Command",
        "io_uring",
    ];
    let code = code(text.split("#[cfg(test)]").next().unwrap_or(text));
    let names_setting =
        |text: &str| ["\"/proc/sys/", "\"/sys/", "\"proc/sys/", "procfs::sys"].iter().any(|path| text.contains(path));
    if path == "sys/setting.rs" || !names_setting(&code) {
        return vec![];
    }
    let own = |word: &str| code.contains(&format!("fn {word}("));
    let opens = |line: &&str| {
        words(line).any(|(before, word)| {
            let declared = before.ends_with("fn ") || before.trim_start().starts_with("use ");
            let allowed = before.ends_with("setting::") || (own(word) && !before.ends_with([':', '.']));
            OPENING.contains(&word) && !declared && !allowed
        })
    };
    let elsewhere = |line: &&str| line.contains("\"/proc/") && !names_setting(line);
    let lines = code.lines().filter(|line| opens(line) && !elsewhere(line));
    lines.map(|line| format!("src/{path}: '{}' must be sys::setting::read", line.trim())).collect()
}

/// Each word of a line of code, with the text before it.
fn words(line: &str) -> impl Iterator<Item = (&str, &str)> {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let mut at = 0;
    std::iter::from_fn(move || {
        let begin = at + line[at..].find(word)?;
        let end = line[begin..].find(|c| !word(c)).map_or(line.len(), |length| begin + length);
        at = end;
        Some((&line[..begin], &line[begin..end]))
    })
}

/// The imports of a file of src/ that the table does not allow, one per line.
fn imports(path: &str, text: &str) -> Vec<String> {
    if path == "lib.rs" {
        return vec![];
    }
    let layer = path.split(['/', '.']).next().unwrap_or(path);
    let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == layer) else {
        return vec![format!("src/{path}: the layer table does not know '{layer}'")];
    };
    let mut imported = vec![];
    let code = code(text);
    for root in ["crate::", "twtool::"] {
        imported.extend(after(&code, root));
    }
    // `super::` leaves the folder in mod.rs, and `super::super::` leaves it in the files beside mod.rs. In an inline module, these paths
    // stay inside of the folder. So a path counts only if it leads to the name of a layer.
    let outwards = if path.ends_with("/mod.rs") || !path.contains('/') { "super::" } else { "super::super::" };
    let names = |name: &String| LAYERS.iter().any(|(layer, _)| layer == name);
    imported.extend(after(&code, outwards).into_iter().filter(names));

    let mut bad: Vec<_> = imported.into_iter().filter(|name| name != layer && !allowed.contains(&&**name)).collect();
    bad.sort();
    bad.dedup();
    bad.into_iter().map(|name| format!("src/{path}: '{layer}' must not import '{name}'")).collect()
}

/// The uses of crates that the rules do not allow in a file of src/, without its tests.
fn crates(path: &str, text: &str) -> Vec<String> {
    // Unit tests may use every crate.
    if path.contains("/tests/") {
        return vec![];
    }
    let code = code(text.split("#[cfg(test)]").next().unwrap_or(text));
    let uses = |name: &str| !after(&code, &format!("{name}::")).is_empty();
    let foreign = |name: &str| match RESTRICTED.iter().find(|(restricted, _)| *restricted == name) {
        Some((_, places)) => !places.iter().any(|place| path.starts_with(place)),
        None => path.starts_with("model/"),
    };
    let bad = dependencies().into_iter().filter(|name| foreign(name) && uses(name));
    bad.map(|name| format!("src/{path}: the crate '{name}' does not belong here")).collect()
}

/// The names that follow this beginning of a path: one name, or the names of a `{...}` group.
fn after(code: &str, root: &str) -> Vec<String> {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let mut names = vec![];
    for (at, _) in code.match_indices(root) {
        // If a longer path or word ends with this text, the match does not begin a path.
        if code[..at].ends_with(|c: char| word(c) || c == ':') {
            continue;
        }
        let rest = &code[at + root.len()..];
        let Some(group) = rest.strip_prefix('{') else {
            names.push(rest.chars().take_while(|&c| word(c)).collect());
            continue;
        };
        let (mut depth, mut first) = (0_usize, String::new());
        for c in group.chars() {
            match c {
                '}' if depth == 0 => break,
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 0 => names.push(std::mem::take(&mut first)),
                _ if depth == 0 && !c.is_whitespace() => first.push(c),
                _ => {}
            }
        }
        names.push(first);
    }
    let beginning = |name: String| name.split("::").next().unwrap_or_default().to_owned();
    names.into_iter().map(beginning).filter(|name| !name.is_empty() && name != "self").collect()
}

/// The text without line comments. A `//` in the middle of a word stays, because it may be part of a string literal.
pub(crate) fn code(text: &str) -> String {
    let line = |line: &str| {
        let cut = line.match_indices("//").find(|(at, _)| *at == 0 || line[..*at].ends_with(char::is_whitespace));
        format!("{}\n", cut.map_or(line, |(at, _)| &line[..at]))
    };
    text.lines().map(line).collect()
}

/// The names of the dependencies in Cargo.toml, as they stand in paths: with `_` in place of `-`.
fn dependencies() -> Vec<String> {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("Cargo.toml can be read");
    let section =
        manifest.split("cfg(target_os = \"linux\")'.dependencies]\n").nth(1).expect("Cargo.toml has dependencies");
    let lines = section.lines().take_while(|line| !line.starts_with('['));
    lines.filter_map(|line| Some(line.split_once(" = ")?.0.replace('-', "_"))).collect()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every .rs file below src/: its path from src/, and its text.
pub(crate) fn sources() -> Vec<(String, String)> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).expect("the folder can be read") {
            let path = entry.expect("its entries too").path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let src = root().join("src");
    let mut found = vec![];
    walk(&src, &mut found);
    found.sort();
    assert!(found.len() > 20, "src/ has more files than {}", found.len());
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("the file can be read");
        let name = path.strip_prefix(&src).expect("below src").to_str().expect("UTF-8").to_owned();
        (name, text)
    };
    found.into_iter().map(read).collect()
}
