//! Runs `twtool exporter` beside a test, and sends HTTP requests to it without a library.

use std::fs;
use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::kernel;
use super::twtool::command;

/// The default address of the exporter.
pub(crate) const ADDRESS: &str = "127.0.0.1:16060";

/// A running exporter in the network namespace of the calling thread. Dropping this value ends it.
pub(crate) struct Exporter {
    child: Child,
    log: Receiver<String>,
}

/// An HTTP response. The head is in lower case.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Exporter {
    /// Starts the exporter with these arguments, and waits until it listens on this number of addresses.
    #[track_caller]
    pub(crate) fn start_with(args: &[&str], addresses: usize) -> Self {
        Self::spawn(command([&["exporter"], args].concat()), addresses)
    }

    /// Starts a command that executes the exporter, and waits as [`Self::start_with`] does.
    #[track_caller]
    pub(crate) fn spawn(mut command: Command, addresses: usize) -> Self {
        let mut child =
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the command can be started");
        let lines = BufReader::new(child.stderr.take().expect("a pipe"));
        let (send, log) = channel();
        std::thread::spawn(move || lines.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        let exporter = Self { child, log };
        (0..addresses).for_each(|_| drop(exporter.wait_for_line("listening")));
        exporter
    }

    #[track_caller]
    pub(crate) fn start(args: &[&str]) -> Self {
        Self::start_with(args, 1)
    }

    #[track_caller]
    pub(crate) fn wait_for_line(&self, text: &str) -> String {
        loop {
            let line = self.log.recv_timeout(kernel::patience(Duration::from_secs(20)));
            let line = line.unwrap_or_else(|_| panic!("no line with {text:?}"));
            if line.contains(text) {
                return line;
            }
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).expect("a pid")), signal).expect("it runs");
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.child.wait().expect("it ends")
    }

    /// The value of the line of /proc/PID/status that begins with `name`.
    pub(crate) fn status(&self, name: &str) -> String {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("the line");
        line.trim_start_matches(':').trim().to_owned()
    }

    /// The context switches of all threads of the exporter, and the number of threads.
    pub(crate) fn switches(&self) -> (u64, usize) {
        let tasks: Vec<_> = fs::read_dir(format!("/proc/{}/task", self.pid())).expect("it runs").flatten().collect();
        let of_task = |task: &fs::DirEntry| -> u64 {
            let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
            let lines = status.lines().filter(|line| line.contains("ctxt_switches"));
            lines.filter_map(|line| line.split_whitespace().last()?.parse::<u64>().ok()).sum()
        };
        (tasks.iter().map(of_task).sum(), tasks.len())
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Connects to the default address.
#[track_caller]
pub(crate) fn connect() -> TcpStream {
    let stream = TcpStream::connect(ADDRESS).expect("the exporter listens");
    stream.set_read_timeout(Some(kernel::patience(Duration::from_secs(20)))).expect("a timeout");
    stream
}

#[track_caller]
pub(crate) fn get(path: &str) -> Response {
    ask(connect(), &format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))
}

/// Sends a request, and reads until the server closes the connection.
#[track_caller]
pub(crate) fn ask(mut stream: impl Read + Write, request: &str) -> Response {
    stream.write_all(request.as_bytes()).expect("written");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("a response");
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{text:?} is not a response"));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    Response { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
}
