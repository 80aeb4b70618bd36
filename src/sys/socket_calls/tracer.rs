//! Runs the loop of the tracer: it waits for stops of the program, reads the calls of the program, and lets the program continue.
//!
//! | stop | what the tracer does |
//! |---|---|
//! | a watched call begins | reads the address and the socket, and continues the thread to the end of the call |
//! | a watched call ends | reports it to the observer |
//! | an exec | checks whether the program lost a privilege |
//! | a signal | passes it to the program |
//! | a process or a thread starts | records the new thread |
//! | a group stop (SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU) | leaves the thread stopped; if it is the command's main thread, also stops twtool |
//!
//! A thread can end at any moment (SIGKILL). After that, requests for the thread fail with ESRCH, and wait4(2) reports its end.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::process::{WaitOptions, wait};

use super::arch::{WatchedCall, through_socketcall, watched};
use super::ptrace::{self, SyscallStop, TraceRequest, event, request};
use super::signals::{self, Arrival, CommandSignals};
use super::start::TracedProgram;
use super::target::{self, ReadAddr};
use super::{ProgramEvent, WatchEnd, WatchError, failed};
use crate::model::bind::CallResult;
use crate::model::call::{
    CallName, CalledAddr, CalledSocket, CallingProcess, ProgramEnd, SocketCall, UnreadReason, WatchNote,
};
use crate::sys::bind::errno as named;
use crate::sys::errno::FailureClass;

const STOPPING: [i32; 4] = [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];

/// Signals that end the watch of a running process.
const ENDING: [i32; 4] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT];

/// After the end of the command, twtool waits this long before it reports that other processes of the program continue to run. They may
/// end soon: a terminal sends Ctrl-C or Ctrl-\ to all of them, and some need time for a core dump.
const ENDS_TOGETHER: Duration = Duration::from_millis(500);

/// The results of a call that a signal interrupted (`ERESTART*` in include/linux/errno.h). The kernel starts the call again, or the program
/// gets EINTR. twtool does not report these results.
const RESTARTS: std::ops::RangeInclusive<i64> = -516..=-512;

struct PendingCall {
    name: CallName,
    fd: u64,
    addr: Option<CalledAddr>,
    socket: Option<CalledSocket>,
    /// Why the address or the socket could not be read.
    unread: Option<UnreadReason>,
}

#[derive(Default)]
struct Thread {
    process: Option<i32>,
    call: Option<PendingCall>,
}

impl Thread {
    fn new(tid: i32) -> Self {
        Self { process: target::process_of(tid), call: None }
    }
}

#[expect(clippy::struct_excessive_bools, reason = "the fields are independent facts")]
pub(super) struct CallTracer<'a> {
    command: Option<i32>,
    threads: BTreeMap<i32, Thread>,
    slow: bool,
    detach: bool,
    signals: CommandSignals,
    observer: &'a mut dyn FnMut(ProgramEvent, Duration),
    began: Instant,
    deadline: Option<Instant>,
    /// Whether the command has replaced the stub.
    executed: bool,
    detaching: bool,
    end: Option<ProgramEnd>,
    /// When to report that other processes continue to run after the end of the command.
    runs_on_at: Option<Instant>,
    /// The processes that did not get the privilege of their program's file (`target::lost_privilege`), and the processes that they
    /// started.
    unprivileged: BTreeSet<i32>,
    /// The processes whose use of io_uring was reported, and the programs whose lost privilege was reported.
    reported: (BTreeSet<i32>, BTreeSet<String>),
}

impl<'a> CallTracer<'a> {
    pub(super) fn new(
        started: TracedProgram,
        signals: CommandSignals,
        timeout: Option<Duration>,
        observer: &'a mut dyn FnMut(ProgramEvent, Duration),
    ) -> Self {
        let TracedProgram { command, threads, slow, detach } = started;
        if let Some(reason) = slow {
            observer(ProgramEvent::Note(WatchNote::Slow(reason)), Duration::ZERO);
        }
        let began = Instant::now();
        Self {
            command,
            threads: threads.into_iter().map(|tid| (tid, Thread::new(tid))).collect(),
            slow: slow.is_some(),
            detach,
            signals,
            observer,
            began,
            deadline: timeout.and_then(|timeout| began.checked_add(timeout)),
            executed: command.is_none(),
            detaching: false,
            end: None,
            runs_on_at: None,
            unprivileged: BTreeSet::new(),
            reported: (BTreeSet::new(), BTreeSet::new()),
        }
    }

    pub(super) fn run(mut self) -> Result<(WatchEnd, Duration), WatchError> {
        loop {
            while let Some((tid, status)) = next_stop().map_err(failed("wait4()"))? {
                self.changed(tid, status);
            }
            if let Some(watched) = self.ended() {
                // A signal to the process group can end the program before twtool has read its own copy. Restoring the signal mask would
                // deliver this copy, which would end twtool before it reports anything. The copy has arrived: the kernel holds
                // tasklist_lock until it has sent all copies, and no process of the group can end meanwhile.
                let _ = self.signals.read_arrived();
                return Ok((watched, self.began.elapsed()));
            }
            let left = |at: Option<Instant>| at.map(|at| at.saturating_duration_since(Instant::now()));
            let until_detach = left(self.deadline.filter(|_| !self.detaching));
            if until_detach == Some(Duration::ZERO) {
                self.detach_all();
                continue;
            }
            let until_note = left(self.runs_on_at);
            if until_note == Some(Duration::ZERO) {
                self.report_running_on();
                continue;
            }
            self.signals.wait(until_detach.into_iter().chain(until_note).min()).map_err(failed("poll()"))?;
            for arrival in self.signals.read_arrived().map_err(failed("read()"))? {
                if self.command.is_some() {
                    // If the signal went to the whole process group, the command has usually stopped at its own copy by now. Read
                    // that stop first: it tells `pass_on` about the copy.
                    while let Some((tid, status)) = next_stop().map_err(failed("wait4()"))? {
                        self.changed(tid, status);
                    }
                    let to = self.receivers();
                    self.signals.pass_on(arrival, &to);
                } else if ENDING.contains(&arrival.signal) {
                    // The kernel detaches from the process when twtool ends, and the process continues.
                    return Ok((WatchEnd::Interrupted(arrival.signal), self.began.elapsed()));
                }
            }
        }
    }

    fn note(&mut self, note: WatchNote) {
        (self.observer)(ProgramEvent::Note(note), self.began.elapsed());
    }

    fn ended(&self) -> Option<WatchEnd> {
        if !self.threads.is_empty() {
            return None;
        }
        match (self.command, self.end) {
            (None, _) => Some(WatchEnd::ProcessLeft),
            (Some(_), None) => None,
            (Some(_), Some(end)) if self.executed => Some(WatchEnd::Ended(end)),
            (Some(_), Some(end)) => Some(WatchEnd::NotStarted(end)),
        }
    }

    /// The processes to which twtool passes the signals that it gets: the command, or after its end all other processes.
    fn receivers(&self) -> Vec<i32> {
        match (self.command, self.end) {
            (Some(command), None) => vec![command],
            _ => self.processes().into_iter().collect(),
        }
    }

    fn processes(&self) -> BTreeSet<i32> {
        self.threads.iter().map(|(tid, thread)| thread.process.unwrap_or(*tid)).collect()
    }

    fn changed(&mut self, tid: i32, status: i32) {
        match status & 0x7f {
            0x7f => self.stopped(tid, status >> 8 & 0xff, status >> 16),
            0 => self.exited(tid, ProgramEnd::Exited(u8::try_from(status >> 8 & 0xff).unwrap_or(u8::MAX))),
            signal => self.exited(tid, ProgramEnd::Signaled(signal)),
        }
    }

    fn exited(&mut self, tid: i32, end: ProgramEnd) {
        self.threads.remove(&tid);
        self.unprivileged.remove(&tid);
        if self.command != Some(tid) {
            return;
        }
        self.end = Some(end);
        self.runs_on_at = Instant::now().checked_add(ENDS_TOGETHER);
    }

    fn report_running_on(&mut self) {
        self.runs_on_at = None;
        let processes = self.processes().len();
        if let Some(end) = self.end.filter(|_| processes > 0 && !self.detaching) {
            let (filtered, detach) = (!self.slow, self.detach);
            self.note(WatchNote::RunsOn { end, processes, filtered, detach });
        }
    }

    fn stopped(&mut self, tid: i32, signal: i32, event: i32) {
        if self.detaching && !self.threads.contains_key(&tid) && self.command == Some(tid) {
            // The command is not traced any more, and a signal has stopped it. twtool stops, too.
            signals::stop_here();
            return;
        }
        self.threads.entry(tid).or_insert_with(|| Thread::new(tid));
        let is_signal = event == 0 && signal != libc::SIGTRAP | 0x80;
        if self.detaching {
            self.threads.remove(&tid);
            let _ = request(TraceRequest::Detach, tid, if is_signal { signal } else { 0 });
            return;
        }
        match event {
            _ if event == event::SECCOMP || (event == 0 && signal == libc::SIGTRAP | 0x80) => self.at_call(tid),
            event::EXEC => {
                self.at_exec(tid);
                self.resume(tid, 0);
            }
            event::STOP if STOPPING.contains(&signal) => {
                let _ = request(TraceRequest::Listen, tid, 0);
                if self.executed && self.command == Some(tid) {
                    signals::stop_here();
                }
            }
            event::FORK | event::VFORK | event::CLONE => {
                self.started(tid);
                self.resume(tid, 0);
            }
            event::STOP => self.resume(tid, 0),
            0 => {
                if self.command.is_some_and(|command| self.threads[&tid].process == Some(command))
                    && let Ok((signal, code, sender)) = ptrace::signal_info(tid)
                {
                    self.signals.reached_command(Arrival { signal, code, sender });
                }
                self.resume(tid, signal);
            }
            _ => self.resume(tid, 0),
        }
    }

    /// Records the process or thread that a traced thread has started. Otherwise the loop could end too early: the first stop of the new
    /// thread may be reported after the end of its parent, when no other thread is traced.
    fn started(&mut self, tid: i32) {
        // The new thread may already have stopped, continued and ended. Then it is not recorded.
        let is_traced = |new: &i32| target::tracer(*new) == Some(std::process::id().cast_signed());
        if let Some(new) = ptrace::event_message(tid).ok().filter(is_traced) {
            if self.unprivileged.contains(&self.process(tid)) {
                let process = target::process_of(new).unwrap_or(new);
                self.unprivileged.insert(process);
            }
            self.threads.entry(new).or_insert_with(|| Thread::new(new));
        }
    }

    /// Continues a thread until its watched call ends or the next one begins; with `slow`, until any system call begins or ends.
    fn resume(&mut self, tid: i32, signal: i32) {
        let in_call = self.threads.get(&tid).is_some_and(|thread| thread.call.is_some());
        let how = if self.slow || in_call { TraceRequest::Syscall } else { TraceRequest::Cont };
        let _ = request(how, tid, signal);
    }

    fn at_exec(&mut self, tid: i32) {
        // If a thread other than the main thread calls execve, it gets the tid of the main thread (ptrace(2)).
        if let Ok(former) = ptrace::event_message(tid)
            && former != tid
        {
            self.threads.remove(&former);
        }
        self.threads.insert(tid, Thread::new(tid));
        self.executed |= self.command == Some(tid);
        let process = self.process(tid);
        match target::lost_privilege(tid) {
            Some(target::LostPrivilege { program, capabilities }) => {
                self.unprivileged.insert(process);
                if self.reported.1.insert(program.clone()) {
                    let process = target::process(tid);
                    self.note(WatchNote::PrivilegeLost { process, program, capabilities });
                }
            }
            None => drop(self.unprivileged.remove(&process)),
        }
    }

    fn at_call(&mut self, tid: i32) {
        match ptrace::syscall_stop(tid) {
            Ok(Some(SyscallStop::Entry { arch, number, args })) => {
                let call = watched(arch, number, args).and_then(|call| self.begin(tid, call));
                if let Some(thread) = self.threads.get_mut(&tid) {
                    thread.call = call;
                }
            }
            Ok(Some(SyscallStop::Exit(result))) => {
                let call = self.threads.get_mut(&tid).and_then(|thread| thread.call.take());
                if let Some(call) = call.filter(|_| !RESTARTS.contains(&result)) {
                    self.finish(tid, call, result);
                }
            }
            Ok(None) | Err(_) => {}
        }
        if self.detaching {
            self.threads.remove(&tid);
            let _ = request(TraceRequest::Detach, tid, 0);
        } else {
            self.resume(tid, 0);
        }
    }

    fn process(&self, tid: i32) -> i32 {
        self.threads.get(&tid).and_then(|thread| thread.process).unwrap_or(tid)
    }

    fn copy(&self, tid: i32, fd: u64) -> io::Result<OwnedFd> {
        let process = self.process(tid);
        target::copy_descriptor(tid, process, fd)
    }

    /// Reads the call that begins. `None` if there is nothing to report at its end, for example because the socket is no Internet socket.
    fn begin(&mut self, tid: i32, call: WatchedCall) -> Option<PendingCall> {
        let (name, fd, place) = match call {
            WatchedCall::Bind { fd, addr, length } => (CallName::Bind, fd, Some((addr, length))),
            WatchedCall::Connect { fd, addr, length } => (CallName::Connect, fd, Some((addr, length))),
            WatchedCall::Listen { fd } => (CallName::Listen, fd, None),
            WatchedCall::SocketCall { call, args } => {
                let words = target::read_words(tid, args).ok()?;
                return self.begin(tid, through_socketcall(call, words)?);
            }
            WatchedCall::IoUringSetup => {
                let process = target::process(tid);
                if self.reported.0.insert(process.pid) {
                    self.note(WatchNote::IoUring(process));
                }
                return None;
            }
        };
        let mut begun = PendingCall { name, fd, addr: None, socket: None, unread: None };
        match place.map(|(addr, length)| target::read_addr(tid, addr, length)) {
            Some(Ok(ReadAddr::Other)) => return None,
            Some(Ok(ReadAddr::Internet(addr))) => begun.addr = Some(addr),
            // The address points to no memory, so the call fails with EFAULT.
            Some(Err(error)) if error.raw_os_error() == Some(libc::EFAULT) => return None,
            Some(Err(error)) => begun.unread = Some(unread_reason(&error)),
            None => {}
        }
        match self.copy(tid, fd).and_then(target::describe) {
            Ok(None) => return None,
            // The descriptor does not exist, so the call fails with the same errno.
            Err(error) if error.raw_os_error() == Some(libc::EBADF) => return None,
            Ok(Some(socket)) => {
                if name == CallName::Listen {
                    begun.addr = Some(target::address_before(&socket));
                }
                begun.socket = Some(socket);
            }
            Err(error) => begun.unread = Some(unread_reason(&error)),
        }
        Some(begun)
    }

    fn finish(&mut self, tid: i32, call: PendingCall, result: i64) {
        let PendingCall { name, fd, mut addr, socket, unread } = call;
        let result = match i32::try_from(-result) {
            // The connect() of a non-blocking socket continues in the background, so it has not failed.
            Ok(libc::EINPROGRESS) => CallResult::Ok,
            Ok(errno) if errno > 0 => CallResult::Failed(named(&io::Error::from_raw_os_error(errno))),
            _ => CallResult::Ok,
        };
        let listens = name == CallName::Listen && result == CallResult::Ok;
        if listens && let Ok(copy) = self.copy(tid, fd) {
            addr = target::address_now(copy).or(addr);
        }
        let at = self.began.elapsed();
        let lost_privilege = self.unprivileged.contains(&self.process(tid));
        let process = CallingProcess { lost_privilege, ..target::process(tid) };
        let call = SocketCall { name, result, addr, socket, unread, process, at };
        let watched = self.processes();
        let is_tcp = call.socket.as_ref().is_none_or(CalledSocket::uses_tcp);
        (self.observer)(ProgramEvent::Call { call, watched: &watched }, at);
        if listens && is_tcp && self.detach && !self.detaching {
            self.detach_all();
        }
    }

    /// Detaches from all threads, each at its next stop.
    fn detach_all(&mut self) {
        self.detaching = true;
        for tid in self.threads.keys() {
            let _ = request(TraceRequest::Interrupt, *tid, 0);
        }
        self.note(WatchNote::Detached);
    }
}

/// The next thread that has stopped or ended, with its wait status; `None` if there is none now.
fn next_stop() -> io::Result<Option<(i32, i32)>> {
    /// `__WALL`: wait for threads as well as processes.
    const ALL: WaitOptions = WaitOptions::from_bits_retain(0x4000_0000);
    loop {
        match wait(WaitOptions::NOHANG | WaitOptions::UNTRACED | ALL) {
            Ok(Some((pid, status))) => return Ok(Some((pid.as_raw_nonzero().get(), status.as_raw()))),
            Ok(None) | Err(rustix::io::Errno::CHILD) => return Ok(None),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn unread_reason(error: &io::Error) -> UnreadReason {
    UnreadReason { text: error.to_string(), not_permitted: FailureClass::of(error) == FailureClass::Refused }
}
