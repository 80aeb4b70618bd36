//! Runs `twtool trace` with BPF beside a test, and the script `closers.py`, which closes connections.
//!
//! BPF needs capabilities in the initial user namespace, but the tests run in another user namespace. So a shell starts the tracer.
//! The shell itself is started before the tests enter their user namespace. If the tests do not run as root, or if the kernel cannot
//! trace, a test ends as not checked.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, gettid};
use serde_json::Value;
use tempfile::TempDir;

use super::kernel::{NotChecked, patience};
use super::not_checked;
use super::twtool::{PATH, Run, program};

/// The input of the shell outside of the user namespace of the tests. The shell runs each line as a command.
static SHELL: Mutex<Option<ChildStdin>> = Mutex::new(None);

/// Starts the shell. Call it before the tests enter a user namespace.
pub(crate) fn prepare() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let shell = Command::new("sh")
        .args(["-c", "while read -r line; do eval \"$line\" & done"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    *SHELL.lock().expect("the shell") = shell.ok().and_then(|mut shell| shell.stdin.take());
}

/// A program that runs outside of the user namespace of the tests.
pub(crate) struct Outside {
    folder: TempDir,
}

impl Outside {
    /// Starts this command line of sh. Returns `None` if the tests do not run as root.
    pub(crate) fn start(line: &str) -> Option<Self> {
        let mut shell = SHELL.lock().expect("the shell");
        let stdin = shell.as_mut()?;
        let folder = tempfile::tempdir().expect("a folder");
        let at = folder.path().display();
        let line = format!(
            "cd {at}; {line} >out 2>err </dev/null & echo $! >pid.new; mv pid.new pid; wait $!; echo $? >code.new; mv code.new code"
        );
        writeln!(stdin, "{line}").expect("the shell reads");
        Some(Self { folder })
    }

    /// A file in the folder in which the program runs.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.file(name)).unwrap_or_default()
    }

    pub(crate) fn stdout(&self) -> String {
        self.read("out")
    }

    fn wait_for(&self, name: &str) -> String {
        until(&format!("{name}: {}", self.read("err")), || Some(self.read(name)).filter(|text| !text.is_empty()))
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.wait_for("pid").trim().parse().expect("a number"))
    }

    pub(crate) fn end(&self) -> Run {
        let code = self.wait_for("code");
        Run::from_parts("outside", code.trim().parse().ok(), self.stdout(), self.read("err"))
    }
}

/// Calls `get` every 5 ms until it returns a value. Panics after [`patience`] of 20 s.
#[track_caller]
pub(crate) fn until<T>(what: &str, mut get: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = get() {
            return found;
        }
        assert!(began.elapsed() < patience(Duration::from_secs(20)), "waited too long: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The reason why BPF cannot trace here. `None` if it can trace.
pub(crate) fn why_bpf_cannot_trace() -> Option<String> {
    static REASON: OnceLock<Option<String>> = OnceLock::new();
    let ask = || {
        let Some(run) = Outside::start(&format!("'{PATH}' trace --method bpf --duration 0s")) else {
            return Some("BPF: the tests do not run as root".into());
        };
        let run = run.end();
        (run.code != Some(0)).then(|| run.stderr.lines().next().unwrap_or("no reason").to_owned())
    };
    REASON.get_or_init(ask).clone()
}

pub(crate) fn needs_bpf() {
    if let Some(why) = why_bpf_cannot_trace() {
        std::panic::resume_unwind(Box::new(NotChecked(why)));
    }
    if program("python3").is_none() {
        std::panic::resume_unwind(Box::new(NotChecked("no python3, which closes the connections".into())));
    }
}

/// The path of the network namespace of the calling thread, for other processes.
pub(crate) fn own_netns() -> String {
    format!("/proc/{}/task/{}/ns/net", std::process::id(), gettid())
}

const CLOSERS: &str = include_str!("closers.py");

/// The command that closes connections in these ways of `closers.py`, in the calling thread's namespace.
pub(crate) fn closers(ways: &[&str]) -> Command {
    static SCRIPT: OnceLock<TempDir> = OnceLock::new();
    let write = || {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("closers.py"), CLOSERS).expect("written");
        folder
    };
    let mut command = Command::new("python3");
    command.arg(SCRIPT.get_or_init(write).path().join("closers.py")).args(ways);
    command
}

/// Closes connections in these ways of `closers.py`, and returns the reports that the script expects.
#[track_caller]
pub(crate) fn close(ways: &[&str]) -> Vec<Value> {
    let output = closers(ways).stdin(Stdio::null()).output().expect("python3");
    assert!(output.status.success(), "{ways:?}: {}", String::from_utf8_lossy(&output.stderr));
    expectations(&output.stdout)
}

pub(crate) fn expectations(output: &[u8]) -> Vec<Value> {
    String::from_utf8_lossy(output).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// A running `twtool trace` for the namespace of the calling thread. Dropping this value ends it.
pub(crate) struct Tracer {
    pub(crate) outside: Outside,
}

impl Tracer {
    /// Starts the tracer, and waits until it reports a close.
    #[track_caller]
    pub(crate) fn start(more: &str) -> Self {
        needs_bpf();
        let line = format!("'{PATH}' trace --method bpf --duration 5m --netns {} -o ndjson {more}", own_netns());
        let tracer = Self { outside: Outside::start(&line).expect("a shell") };
        until("the first record", || {
            let code = tracer.outside.read("code");
            assert!(code.is_empty(), "the tracer ended with {code}: {}", tracer.outside.read("err"));
            close(&["close"]);
            std::thread::sleep(Duration::from_millis(100));
            (!tracer.records().is_empty()).then_some(())
        });
        tracer
    }

    /// Starts a tracer with `--serve`, and closes a connection that it reports. Returns the tracer, the path of its socket, and the
    /// reports that [`close`] returns.
    #[track_caller]
    pub(crate) fn serve(folder: &TempDir) -> (Self, String, Vec<Value>) {
        let socket = folder.path().join("socket").to_str().expect("UTF-8").to_owned();
        let tracer = Self::start(&format!("--serve {socket}"));
        let expected = close(&["close"]);
        tracer.check(&expected);
        (tracer, socket, expected)
    }

    pub(crate) fn records(&self) -> Vec<Value> {
        let text = self.outside.stdout();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line:?}: {error}")))
            .collect()
    }

    /// Waits for the record of a close with these ends.
    #[track_caller]
    pub(crate) fn wait_for(&self, close: &Value) -> Value {
        until(&format!("the record of {close}"), || self.find(close))
    }

    fn find(&self, close: &Value) -> Option<Value> {
        let has_ends =
            |record: &Value| record["local_port"] == close["local"] && record["remote_port"] == close["remote"];
        self.records().into_iter().find(has_ends)
    }

    /// Waits for the record of each expected report, and compares both. Returns the records.
    #[track_caller]
    pub(crate) fn check(&self, expected: &[Value]) -> Vec<Value> {
        // The tracer reports connections in the order in which their full sockets end. So after the report of a later connection, the
        // reports of all sockets that ended before have arrived.
        let later = close(&["close"]);
        self.wait_for(later.last().expect("a close"));
        let mut found = vec![];
        for close in expected {
            if close["absent"] == true {
                assert_eq!(self.find(close), None, "no report expected: {close}");
                continue;
            }
            if let Some(why) = close["not_checked"].as_str() {
                not_checked(why);
                continue;
            }
            let record = self.wait_for(close);
            // A socket can be in a message of a Unix socket that no process can receive (`garbage` in closers.py). On newer kernels, a
            // kernel worker closes such a socket. On older kernels, the next process that closes a Unix socket does it.
            let collected = close["collector"] == true && record["process"]["kernel"] == true;
            assert!(collected || record["process"]["pid"] == close["pid"], "{close}\n{record}");
            assert_eq!(record["role"], close["role"], "{close}\n{record}");
            // An orphan can become a bucket before the peer closes.
            let either = close["orphan"] == true && record["outcome"] == "fin-wait-2";
            assert!(either || record["outcome"] == close["outcome"], "{close}\n{record}");
            for (key, place) in [
                ("tid", &record["process"]["tid"]),
                ("comm", &record["process"]["comm"]),
                ("family", &record["family"]),
            ] {
                assert!(close[key].is_null() || close[key] == *place, "{key}: {close}\n{record}");
            }
            assert_eq!((record["method"].as_str(), record["certain"].as_bool()), (Some("bpf"), Some(true)), "{record}");
            found.push(record);
        }
        found
    }

    pub(crate) fn stop(&self, signal: Signal) -> Run {
        kill(self.outside.pid(), signal).expect("a signal");
        self.outside.end()
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        if self.outside.read("code").is_empty() {
            let _ = kill(self.outside.pid(), Signal::SIGKILL);
        }
    }
}
