//! Carries out the keys that need more than the state of the screen, for example details, commands and recordings.

use std::io::{self, Write as _};
use std::process::Command;

use super::collector::RecordingChange;
use super::details::{self, Details, Place};
use super::state::{Action, Overlay};
use super::{Screen, ScreenEnd, ScreenError};
use crate::model::command::quoted;
use crate::snapshot::Selection;
use crate::sys::clock;
use crate::sys::screen_input::{PendingSignal, Wakeup};
use crate::view::human;

impl Screen {
    /// Carries out the action of a key. Returns how the screen ends, if the action ends it.
    pub(super) fn act(&mut self, action: Action) -> Result<Option<ScreenEnd>, ScreenError> {
        match action {
            Action::Quit => return Ok(Some(ScreenEnd::Quit)),
            Action::Interrupt => return Ok(Some(ScreenEnd::Signal(PendingSignal::INTERRUPT))),
            Action::Stop => self.stop()?,
            Action::Redraw => self.erase()?,
            Action::Filter(text) => self.filter(text),
            Action::Warnings => {
                let warnings = self.latest.warnings();
                if warnings.is_empty() {
                    self.state.message = Some("there is no warning".into());
                } else {
                    self.state.overlay = Some(Overlay::text("warnings", warnings));
                }
            }
            Action::Details | Action::Kill => self.open(&action),
            Action::RunKill(command) => return self.run_command(&command),
            Action::Record => self.toggle_recording(),
            Action::Trace => self.toggle_tracing(),
        }
        Ok(None)
    }

    /// Requests another filter. If the screen is paused or the recording has ended, the filter applies to the rows of the last sample. The
    /// facts of that sample may lack an interface, so a filter that may name one is then refused.
    fn filter(&mut self, expression: String) {
        let selection = Selection { expression, ..self.selection.clone() };
        if !self.is_sampling() && selection.may_name_an_interface() {
            let why = if self.ended { "the recording has ended" } else { "the screen is paused" };
            let message = format!("{why}, and a filter with an interface needs to read the sockets again");
            match &mut self.state.typed {
                Some(line) => line.error = Some(message),
                None => self.state.message = Some(message),
            }
            return;
        }
        self.wanted.filter = Some(selection.expression);
    }

    fn toggle_recording(&mut self) {
        if !self.can_ask_kernel {
            self.state.message = Some("a recording cannot be recorded again".into());
            return;
        }
        if let Some(path) = self.state.recording.take() {
            // If the request that begins the recording is not sent yet, nothing was recorded.
            self.state.message = Some(match self.wanted.recording.replace(RecordingChange::End) {
                Some(RecordingChange::Begin(..)) => {
                    self.wanted.recording = None;
                    "nothing was recorded".into()
                }
                _ => format!("to see the recording:\n{} watch --replay {path}", quoted(&self.shell.caller.twtool)),
            });
            return;
        }
        let time = human::timestamp(clock::now()).replace(['-', ':'], "");
        let path = format!("twtool-{}Z.twrec", time.split('.').next().unwrap_or_default());
        let begins = if self.state.paused { "the recording begins when you press p: " } else { "recording to " };
        self.state.message = Some(format!("{begins}{path}; w ends it"));
        self.wanted.recording = Some(RecordingChange::Begin(path.clone().into(), false));
        self.state.recording = Some(path);
    }

    /// Opens the details of the selected row, or the proposal to remove its sockets.
    fn open(&mut self, action: &Action) {
        let Self { state, listing, latest, history, shell, several, selection, style, .. } = self;
        let Some((row, _)) = state.position().selected else { return };
        let (Some(selected), [first, ..]) = (listing.at(row, latest, history), latest.namespaces()) else { return };
        let place = Place { shell, several: *several, selection, latest };
        if *action == Action::Details {
            let Details { title, lines } = details::describe(&selected, &first.facts, &place, *style);
            state.overlay = Some(Overlay::text(&title, lines));
            return;
        }
        match details::kill(&selected, &first.facts, &place) {
            Ok(line) => {
                let lines = details::proposal(&line);
                state.overlay = Some(Overlay { command: Some(line.text), ..Overlay::text("remove sockets", lines) });
            }
            Err(why) => state.message = Some(why),
        }
    }

    /// Gives the terminal to a command, and takes the terminal back after the user has read the result. Returns how the screen ends,
    /// if a signal arrived meanwhile.
    fn run_command(&mut self, command: &str) -> Result<Option<ScreenEnd>, ScreenError> {
        self.guard.give_back()?;
        let mut out = io::stdout();
        writeln!(out, "$ {}", human::escape(command))?;
        // The command is quoted for the shell. The trap makes the command ignore Ctrl-Z, because nothing would continue it.
        let line = format!("trap '' TSTP; {command}");
        let child = self.input.with_old_mask(|| Command::new("sh").args(["-c", &line]).spawn())?;
        if let Err(error) = child.and_then(|mut child| child.wait()) {
            writeln!(out, "running sh failed: {error}")?;
        }
        write!(out, "press Enter to return to twtool watch")?;
        out.flush()?;
        self.input.discard_terminal_signals()?;
        let mut ending = None;
        while ending.is_none() {
            match self.input.wait(None)? {
                Wakeup::Key => {
                    io::stdin().read_line(&mut String::new())?;
                    break;
                }
                Wakeup::Signal(signal) if signal != PendingSignal::STOP => ending = Some(ScreenEnd::Signal(signal)),
                Wakeup::HangUp => return Err(io::Error::other("the terminal is gone").into()),
                // The reply of a sample that is under way.
                Wakeup::Work => self.receive()?,
                _ => {}
            }
        }
        self.wanted.now = self.is_sampling();
        self.resume()?;
        Ok(ending)
    }

    /// Stops twtool until SIGCONT, as Ctrl-Z stops other programs.
    pub(super) fn stop(&mut self) -> Result<(), ScreenError> {
        self.guard.give_back()?;
        self.input.deliver(PendingSignal::STOP)?;
        self.input.discard_terminal_signals()?;
        self.resume()
    }
}
