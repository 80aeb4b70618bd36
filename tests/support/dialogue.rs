//! An interactive run of a command: stdin and stderr are a terminal of 80 columns, and stdout is a pipe.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::pty::{Winsize, openpty};

use super::kernel::patience;
use super::twtool::{Run, command};

pub(crate) struct Dialogue {
    command: Command,
    child: Child,
    /// The user's side of the terminal (the master side of pty(7)).
    user: File,
    /// The text on the terminal so far, including the echo of typed text.
    screen: String,
    asked: usize,
}

impl Dialogue {
    pub(crate) fn start(args: &[&str]) -> Self {
        Self::of(command(args))
    }

    pub(crate) fn of(mut command: Command) -> Self {
        let size = Winsize { ws_row: 40, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let terminal = openpty(&size, None).expect("a terminal");
        let program = File::from(terminal.slave);
        command.stdin(program.try_clone().expect("a copy")).stdout(Stdio::piped()).stderr(program);
        let child = command.spawn().expect("twtool can be started");
        // This closes the descriptors that `command` had of the program's side of the terminal. While this process has them, read()
        // does not report the end of the child.
        command.stdin(Stdio::null()).stderr(Stdio::null());
        Self { command, child, user: terminal.master.into(), screen: String::new(), asked: 0 }
    }

    #[track_caller]
    pub(crate) fn until(&mut self, text: &str) {
        while !self.screen.contains(text) {
            assert!(self.read(), "expected {text:?} on the terminal, found:\n{}", self.screen);
        }
    }

    /// Waits for the next prompt: the n-th call reads until the screen contains this text n times. Returns false if the run ends
    /// first.
    pub(crate) fn asks(&mut self, text: &str) -> bool {
        self.asked += 1;
        while self.shown(text) < self.asked {
            if !self.read() {
                return false;
            }
        }
        true
    }

    pub(crate) fn shown(&self, text: &str) -> usize {
        self.screen.matches(text).count()
    }

    /// Reads the available output. Returns false at its end.
    fn read(&mut self) -> bool {
        let mut bytes = [0; 4096];
        // If the program's side was closed, read() fails with EIO.
        let count = self.user.read(&mut bytes).unwrap_or(0);
        self.screen.push_str(&String::from_utf8_lossy(&bytes[..count]));
        count > 0
    }

    pub(crate) fn types(&mut self, line: &str) {
        writeln!(self.user, "{line}").expect("typed");
    }

    /// Types a control character, such as Ctrl-C for `C`.
    pub(crate) fn types_control(&mut self, letter: char) {
        let byte = u8::try_from(letter).expect("a letter") & 0x1f;
        self.user.write_all(&[byte]).expect("typed");
    }

    /// Waits until the foreground process group of the terminal has a process of this name.
    pub(crate) fn await_child_named(&self, name: &str) {
        let deadline = Instant::now() + patience(Duration::from_secs(20));
        loop {
            assert!(Instant::now() < deadline, "no process {name} in the foreground");
            let group = nix::unistd::tcgetpgrp(&self.user).expect("a group").as_raw();
            let all = Command::new("ps").args(["-e", "-o", "pgid=,comm="]).output();
            let shown = String::from_utf8_lossy(&all.expect("ps runs").stdout).into_owned();
            let fits = |line: &str| {
                let mut words = line.split_whitespace();
                words.next() == Some(&group.to_string()) && words.next() == Some(name)
            };
            if shown.lines().any(fits) {
                return;
            }
            std::thread::yield_now();
        }
    }

    /// Reads to the end of the run. Its stderr is the text on the screen.
    pub(crate) fn end(mut self) -> Run {
        while self.read() {}
        let mut output = self.child.wait_with_output().expect("the child ends");
        output.stderr = self.screen.replace("\r\n", "\n").into_bytes();
        Run::ended(&self.command, &output)
    }
}
