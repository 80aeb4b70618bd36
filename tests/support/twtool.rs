//! Runs the binary, and checks its output. A failed check prints the whole run.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;

/// The binary under test.
pub(crate) const PATH: &str = env!("CARGO_BIN_EXE_twtool");

/// Environment variables that change the output of programs. They are removed unless a test sets them.
const OUTPUT_VARIABLES: [&str; 5] = ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "COLUMNS", "RUST_BACKTRACE"];

/// The path of the program of this name, from the directories in the environment variable `PATH`.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// A command that runs the binary with these arguments, in the calling thread's namespace, without a terminal.
pub(crate) fn command(args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
    let mut command = Command::new(PATH);
    command.args(args).stdin(Stdio::null());
    for name in OUTPUT_VARIABLES {
        command.env_remove(name);
    }
    command
}

pub(crate) fn twtool(args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Run {
    Run::of(&mut command(args))
}

pub(crate) fn subcommands() -> Vec<String> {
    let help = twtool(["-h"]).ok().stdout;
    let (_, list) = help.split_once("\nCommands:\n").expect("a list of commands");
    let names = list.lines().take_while(|line| !line.is_empty()).filter_map(|line| {
        let name = line.strip_prefix("  ")?.split(' ').next()?;
        (!name.is_empty()).then(|| name.to_owned())
    });
    let names: Vec<String> = names.collect();
    assert!(names.len() > 10, "{names:?}");
    names
}

pub(crate) struct Run {
    command: String,
    /// The exit code. `None` if a signal ended the process.
    pub(crate) code: Option<i32>,
    /// All of stdout. Bytes that are not UTF-8 are replaced.
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { command, code, stdout, stderr } = self;
        let line = "-".repeat(72);
        write!(f, "\n{line}\n$ {command}\nexit: {code:?}\n--- stdout\n{stdout}\n--- stderr\n{stderr}\n{line}\n")
    }
}

impl Run {
    pub(crate) fn of(command: &mut Command) -> Self {
        let output = command.output().expect("the command can be started");
        Self::ended(command, &output)
    }

    pub(crate) fn ended(command: &Command, output: &Output) -> Self {
        let words: Vec<OsString> =
            std::iter::once(command.get_program()).chain(command.get_args()).map(OsStr::to_owned).collect();
        let words: Vec<_> = words.iter().map(|word| format!("{}", word.display())).collect();
        Self {
            command: words.join(" "),
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    pub(crate) fn from_parts(command: &str, code: Option<i32>, stdout: String, stderr: String) -> Self {
        Self { command: command.to_owned(), code, stdout, stderr }
    }

    /// Asserts exit code 0 and an empty stderr.
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        let run = self.code(0);
        assert!(run.stderr.is_empty(), "expected nothing on stderr{run}");
        run
    }

    /// Asserts this exit code, and that the program did not panic.
    #[track_caller]
    pub(crate) fn code(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "expected exit code {code}{self}");
        assert!(!self.stderr.contains("panicked"), "twtool panicked{self}");
        self
    }

    /// Asserts exit code 2, an empty stdout, and this word in the first line of stderr.
    #[track_caller]
    pub(crate) fn refused(self, word: &str) -> Self {
        let run = self.code(2);
        assert!(run.stdout.is_empty(), "expected nothing on stdout{run}");
        let first = run.stderr.lines().next().unwrap_or_default();
        assert!(first.contains(word), "expected {word:?} in the first line of stderr{run}");
        run
    }

    /// Asserts that stderr contains this text.
    #[track_caller]
    pub(crate) fn says(self, text: &str) -> Self {
        assert!(self.stderr.contains(text), "expected {text:?} on stderr{self}");
        self
    }

    /// Asserts that stdout contains this text.
    #[track_caller]
    pub(crate) fn prints(self, text: &str) -> Self {
        assert!(self.stdout.contains(text), "expected {text:?} on stdout{self}");
        self
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("stdout is not JSON: {error}{self}"))
    }

    /// The records under this key of the JSON document.
    #[track_caller]
    pub(crate) fn records(&self, key: &str) -> Vec<Value> {
        match self.json().get(key) {
            Some(Value::Array(records)) => records.clone(),
            other => panic!("expected an array {key:?}, found {other:?}{self}"),
        }
    }

    #[track_caller]
    pub(crate) fn ndjson(&self) -> Vec<Value> {
        assert!(self.stdout.is_empty() || self.stdout.ends_with('\n'), "the last line has no line feed{self}");
        let line =
            |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line:?} is not JSON: {error}{self}"));
        self.stdout.lines().map(line).collect()
    }

    /// Stdout as csv: the header, and the records.
    #[track_caller]
    pub(crate) fn csv(&self) -> (Vec<String>, Vec<Vec<String>>) {
        let mut reader = csv::Reader::from_reader(self.stdout.as_bytes());
        let fields = |record: &csv::StringRecord| record.iter().map(str::to_owned).collect();
        let header = fields(reader.headers().unwrap_or_else(|error| panic!("no csv header: {error}{self}")));
        let record = |record: csv::Result<_>| fields(&record.unwrap_or_else(|error| panic!("bad csv: {error}{self}")));
        (header, reader.records().map(record).collect())
    }
}

/// The keys of a JSON object in the order of the text.
pub(crate) struct Keys(pub(crate) Vec<String>);

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Keys;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Keys, A::Error> {
                let mut keys = vec![];
                while let Some((key, _)) = map.next_entry::<String, serde::de::IgnoredAny>()? {
                    keys.push(key);
                }
                Ok(Keys(keys))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

impl Keys {
    /// The keys of the document itself.
    #[track_caller]
    pub(crate) fn of(text: &str) -> Vec<String> {
        serde_json::from_str::<Self>(text).expect("a JSON object").0
    }

    /// The keys of every record in a JSON document.
    #[track_caller]
    pub(crate) fn of_records(text: &str) -> Vec<Vec<String>> {
        #[derive(serde::Deserialize)]
        struct Document {
            #[serde(alias = "sockets", alias = "ports", alias = "destinations")]
            records: Vec<Keys>,
        }
        let document: Document = serde_json::from_str(text).expect("a document with records");
        document.records.into_iter().map(|keys| keys.0).collect()
    }
}
