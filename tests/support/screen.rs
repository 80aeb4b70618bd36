//! Runs `twtool watch` on a terminal, and keeps a model of the screen. The model knows only the escape sequences that twtool writes.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{FlowArg, Termios, tcflow, tcgetattr};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::kernel;
use super::tracer::Outside;
use super::twtool::PATH;

pub(crate) struct Screen {
    child: Child,
    /// The user's side of the terminal (the master side of pty(7)).
    user: File,
    /// The path of the program's side, from /proc/thread-self/fd. `None` if /proc does not show this thread.
    program: Option<PathBuf>,
    /// The kernel's modes of the terminal before the program started.
    before: Termios,
    /// The characters of each line. The model takes every character as one column wide.
    lines: Vec<Vec<char>>,
    /// The line and the column of the cursor, from 0.
    cursor: (usize, usize),
    /// Everything that the program has written.
    pub(crate) written: Vec<u8>,
    /// The number of bytes of `written` that are already in `lines`.
    read: usize,
    /// The private modes that the program has set: 1049 is the alternate screen, 25 a visible cursor, 1000 the mouse.
    modes: Vec<u16>,
    /// For a screen of [`Self::outside`]: the program outside of the tests' namespaces, and the folder of its exit code.
    outside: Option<(Outside, TempDir)>,
}

/// How long a test waits for a change of the screen, or for the end of the program.
const PATIENCE: Duration = Duration::from_secs(30);

/// The private modes of a terminal before a program changes them.
const USUAL: [u16; 1] = [25];

impl Screen {
    pub(crate) fn start(mut command: Command, (columns, lines): (u16, u16)) -> Self {
        let size = Winsize { ws_row: lines, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let terminal = openpty(&size, None).expect("a terminal");
        let program: OwnedFd = terminal.slave;
        let copy = || program.try_clone().expect("a copy");
        command.stdin(copy()).stdout(copy()).stderr(copy());
        if command.get_envs().all(|(name, _)| name != "TERM") {
            command.env("TERM", "xterm-256color");
        }
        if command.get_envs().all(|(name, _)| name != "LC_ALL") {
            command.env("LC_ALL", "C.UTF-8");
        }
        // The kernel ignores SIGTSTP in an orphaned process group: a group in which no process has a parent in another group of the
        // same session. So the program gets its own group. The group of its parent is that of the test.
        command.process_group(0);
        // openpty(3) does not set close-on-exec, and try_clone() does. So the program does not inherit the user's side.
        let user = File::from(terminal.master).try_clone().expect("a copy");
        let before = tcgetattr(&user).expect("modes");
        let child = command.spawn().expect("twtool can be started");
        let program = std::fs::read_link(format!("/proc/thread-self/fd/{}", program.as_raw_fd())).ok();
        let lines = vec![vec![' '; columns.into()]; lines.into()];
        Self {
            child,
            user,
            program,
            before,
            lines,
            cursor: (0, 0),
            written: vec![],
            read: 0,
            modes: USUAL.to_vec(),
            outside: None,
        }
    }

    /// Starts twtool with these arguments on a terminal, outside of the user namespace of the tests, because the kernel refuses BPF
    /// in that namespace. The `child` of this screen is a shell that only waits until twtool has ended. Returns `None` if the tests
    /// do not run as root, or if the terminal has no path.
    pub(crate) fn outside(arguments: &str, size: (u16, u16)) -> Option<Self> {
        let mut wait = Command::new("sh");
        wait.args([
            "-c",
            "for turn in $(seq 6000); do [ ! -s \"$0\" ] || break; sleep 0.05; done; exit \"$(cat \"$0\")\"",
        ]);
        let folder = tempfile::tempdir().expect("a folder");
        let code = folder.path().join("code");
        wait.arg(&code);
        let mut screen = Self::start(wait, size);
        let terminal = screen.program.clone()?;
        let (terminal, code) = (terminal.display(), code.display());
        let line = format!(
            "sh -c \"TERM=xterm-256color LC_ALL=C.UTF-8 '{PATH}' {arguments} <{terminal} >{terminal} 2>&1; echo \\$? >{code}\""
        );
        screen.outside = Some((Outside::start(&line)?, folder));
        Some(screen)
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a process"))
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("our own child");
    }

    pub(crate) fn text(&self) -> String {
        let line = |line: &Vec<char>| line.iter().collect::<String>().trim_end().to_owned();
        self.lines.iter().map(line).collect::<Vec<_>>().join("\n")
    }

    /// The words on the screen, with one space between them instead of other spaces and line breaks.
    pub(crate) fn words(&self) -> String {
        self.text().split_whitespace().collect::<Vec<_>>().join(" ")
    }

    pub(crate) fn types(&mut self, keys: &str) {
        self.user.write_all(keys.as_bytes()).expect("typed");
    }

    #[track_caller]
    pub(crate) fn until(&mut self, condition: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + kernel::patience(PATIENCE);
        while !condition(self) {
            assert!(self.is_ready(deadline), "the condition did not become true; the screen was:\n{}", self.text());
            assert!(self.read(), "the program has ended; the screen was:\n{}", self.text());
        }
    }

    #[track_caller]
    pub(crate) fn until_shown(&mut self, text: &str) {
        let deadline = Instant::now() + kernel::patience(PATIENCE);
        while !self.text().contains(text) {
            assert!(self.is_ready(deadline), "expected {text:?}; the screen was:\n{}", self.text());
            assert!(self.read(), "expected {text:?}; the program has ended; the screen was:\n{}", self.text());
        }
    }

    /// Reads the available output, or waits for output. Returns false at its end.
    fn read(&mut self) -> bool {
        let mut bytes = [0; 16 * 1024];
        // If the program's side is closed, read() fails with EIO.
        let count = self.user.read(&mut bytes).unwrap_or(0);
        self.written.extend_from_slice(&bytes[..count]);
        self.interpret();
        count > 0
    }

    pub(crate) fn resize(&mut self, (columns, lines): (u16, u16)) {
        let size = set_size(&self.user, columns, lines);
        assert!(size, "the terminal gets another size");
        self.lines = vec![vec![' '; columns.into()]; lines.into()];
        self.signal(Signal::SIGWINCH);
    }

    /// Whether all modes of the terminal are as they were before the program started.
    pub(crate) fn is_restored(&self) -> bool {
        self.has_its_modes() && self.modes == USUAL
    }

    /// Whether the kernel's modes of the terminal are as they were before the program started.
    pub(crate) fn has_its_modes(&self) -> bool {
        tcgetattr(&self.user).expect("modes") == self.before
    }

    /// Stops the output of the terminal, as Ctrl-S does.
    pub(crate) fn stop_output(&self) {
        let name = self.program.as_ref().expect("/proc shows this thread");
        let program =
            File::options().read(true).write(true).custom_flags(libc::O_NOCTTY).open(name).expect("it is there");
        tcflow(&program, FlowArg::TCOOFF).expect("stopped");
    }

    /// Waits for the end of the program without reading its output. If the program does not end in time, kills it and returns `None`.
    pub(crate) fn ends_without_a_reader(&mut self) -> Option<ExitStatus> {
        let deadline = Instant::now() + kernel::patience(PATIENCE);
        while Instant::now() < deadline {
            let status = self.child.try_wait().expect("our own child");
            if status.is_some() {
                return status;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.child.kill().expect("our own child");
        self.child.wait().expect("our own child");
        None
    }

    pub(crate) fn await_stop(&self) {
        let status = waitpid(self.pid(), Some(WaitPidFlag::WUNTRACED)).expect("our own child");
        assert!(matches!(status, WaitStatus::Stopped(_, Signal::SIGTSTP)), "{status:?}");
    }

    /// Reads all available output, without waiting.
    pub(crate) fn drain(&mut self) {
        while self.is_ready(Instant::now()) && self.read() {}
    }

    /// Waits until output is available, or until the deadline. Returns whether output is available.
    fn is_ready(&self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut descriptors = [PollFd::new(self.user.as_fd(), PollFlags::POLLIN)];
        poll(&mut descriptors, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)).is_ok_and(|count| count > 0)
    }

    /// Closes the user's side, as a lost connection does, and waits for the end of the program.
    pub(crate) fn hang_up(mut self) -> ExitStatus {
        drop(self.user);
        self.child.wait().expect("our own child")
    }

    /// Reads all output, and waits for the end of the program.
    pub(crate) fn end(&mut self) -> ExitStatus {
        while self.read() {}
        self.child.wait().expect("our own child")
    }

    /// Interprets the bytes that are new in `written`, and changes the model of the screen.
    fn interpret(&mut self) {
        while let Some((length, what)) = next(&self.written[self.read..]) {
            self.read += length;
            match what {
                What::Letter(letter) => self.put(letter),
                What::Move(line, column) => self.cursor = (line, column),
                What::Clear => self.lines.iter_mut().for_each(|line| line.fill(' ')),
                What::Mode(mode, true) => self.modes.push(mode),
                What::Mode(mode, false) => self.modes.retain(|other| *other != mode),
                What::Nothing => {}
            }
        }
        self.modes.sort_unstable();
        self.modes.dedup();
    }

    fn put(&mut self, letter: char) {
        let (line, column) = self.cursor;
        match letter {
            '\n' => self.cursor.0 += 1,
            '\r' => self.cursor.1 = 0,
            letter => {
                if let Some(cell) = self.lines.get_mut(line).and_then(|line| line.get_mut(column)) {
                    *cell = letter;
                }
                self.cursor.1 += 1;
            }
        }
        // A line feed on the last line scrolls the screen.
        if self.cursor.0 >= self.lines.len() {
            let width = self.lines[0].len();
            self.lines.remove(0);
            self.lines.push(vec![' '; width]);
            self.cursor.0 -= 1;
        }
    }
}

fn set_size(terminal: &File, columns: u16, lines: u16) -> bool {
    // stty(1) sets the size of the terminal on its standard input.
    let input = terminal.try_clone().expect("a copy");
    let mut stty = Command::new("stty");
    let size = ["cols".to_owned(), columns.to_string(), "rows".to_owned(), lines.to_string()];
    stty.args(size).stdin(input).status().is_ok_and(|status| status.success())
}

/// A character or an escape sequence that a program writes to a terminal.
#[derive(Debug, PartialEq)]
enum What {
    Letter(char),
    /// Moves the cursor to a line and a column, from 0.
    Move(usize, usize),
    Clear,
    /// Sets (`true`) or resets a private mode.
    Mode(u16, bool),
    Nothing,
}

/// The first character or sequence in these bytes, and its length in bytes. `None` if it is not complete.
fn next(bytes: &[u8]) -> Option<(usize, What)> {
    if let Some(sequence) = bytes.strip_prefix(b"\x1b[") {
        let end = sequence.iter().position(|byte| (0x40..=0x7e).contains(byte))?;
        let words = std::str::from_utf8(&sequence[..end]).expect("ASCII");
        let number = |word: Option<&str>| word.and_then(|word| word.parse::<usize>().ok()).unwrap_or(1);
        let what = match sequence[end] {
            b'H' => {
                let mut words = words.split(';');
                What::Move(number(words.next()) - 1, number(words.next()) - 1)
            }
            b'J' => What::Clear,
            set @ (b'h' | b'l') => {
                let mode = words.strip_prefix('?').and_then(|mode| mode.parse().ok());
                mode.map_or(What::Nothing, |mode| What::Mode(mode, set == b'h'))
            }
            _ => What::Nothing,
        };
        return Some((2 + end + 1, what));
    }
    let length = match bytes.first()? {
        0x1b => return (bytes.len() > 1).then_some((2, What::Nothing)),
        0..0x80 => 1,
        0xc0..0xe0 => 2,
        0xe0..0xf0 => 3,
        _ => 4,
    };
    let letter = std::str::from_utf8(bytes.get(..length)?).expect("UTF-8").chars().next()?;
    Some((length, What::Letter(letter)))
}
