//! The live screen of `twtool watch`. Three things are separate: collecting, state and drawing.
//!
//! ```text
//!   keys, signals --> wait --> ScreenState::press --> Action       collector (a thread)
//!                      ^                |                |                  |
//!                      |                v                v                  v
//!                  time, reply        draw  <-------  Screen  <-------  SampleReply
//! ```
//!
//! 1. `Screen::turn` waits for a key, a signal, a reply or the time of the next sample (`sys::screen_input`).
//! 2. A key changes the `ScreenState`. If the key needs more, for example if it runs a command, `ScreenState::press` returns an
//!    `Action`.
//! 3. When a sample is due and the screen is not paused, the screen requests it from the collector.
//! 4. After each change, `draw::draw` makes a frame. ratatui writes only the cells that differ from the last frame.

mod actions;
mod collector;
mod counted;
mod details;
mod draw;
mod latest;
mod replies;
mod state;
mod tables;
pub mod terminal;
mod tracing;
mod widths;

#[cfg(test)]
mod tests;

use std::io;
use std::mem;
use std::path::PathBuf;
use std::time::Duration;

use ratatui::crossterm::event::{self, Event as Input, KeyEventKind, MouseEventKind};
use ratatui::layout::Rect;

pub use self::collector::FindNamespaces;
use self::collector::{RecordingChange, SampleReply, SampleRequest, SampleThread};
use self::draw::FrameContent;
use self::latest::LatestSample;
use self::state::{RowFacts, ScreenState, WHEEL};
use self::tables::{Listing, ScreenTable};
use self::terminal::{ScreenTerminal, TerminalGuard};
use self::widths::Widths;
use super::{CloseHistory, Sample, Sampler};
use crate::model::command::{Shell, quoted};
use crate::snapshot::bucket_sample::MIN_INTERVAL_PER_CPU_TIME;
use crate::snapshot::owner_feed::OwnerFeed;
use crate::snapshot::{Selection, SnapshotError};
use crate::sys::clock::{self, Stopwatch};
use crate::sys::screen_input::{PendingSignal, ScreenInput, Wakeup};
use crate::sys::terminal as tty;
use crate::view::style::TextStyle;

/// The interval at which remaining times are redrawn between two samples.
const COUNTDOWN: Duration = Duration::from_millis(500);

/// The shortest interval at which the free ports of destinations are calculated. The calculation reads every socket of the ephemeral
/// range. With 100,000 buckets, the screen took 9.2 % of a core when it calculated these ports every 3 s, and 5.3 % with another table
/// (Linux 6.18).
const CAPACITY: Duration = Duration::from_secs(5);

/// The options of the live screen.
pub struct ScreenOptions {
    /// What the sampler selects.
    pub selection: Selection,
    /// The wanted time between two samples.
    pub interval: Duration,
    /// Colours and characters.
    pub style: TextStyle,
    /// The shell in which the user runs commands.
    pub shell: Shell,
    /// Whether the screen can show several namespaces, so that commands about a row need the `--netns` of the row's namespace.
    pub several: bool,
    /// Finds the namespaces; `None` for a recorded series.
    pub namespaces: Option<FindNamespaces>,
    /// The owners of buckets, as far as a tracer has recorded them; `None` for a recorded series.
    pub owners: Option<OwnerFeed>,
    /// How the user can get the capabilities that a tracer needs.
    pub permit_tracing: String,
    /// The file of a recording, and whether it may replace an existing file.
    pub record: Option<(PathBuf, bool)>,
    /// The time limit of `--duration`.
    pub duration: Option<Duration>,
    /// The number of samples of `--count`.
    pub count: Option<u64>,
}

/// Why the live screen could not start, or why it ended early.
#[derive(Debug, thiserror::Error)]
pub enum ScreenError {
    /// The terminal cannot show the screen.
    #[error("the screen of watch needs a terminal for keys and text: {0}; -o ndjson works without a terminal")]
    NoTerminal(&'static str),
    /// The first sample, a later sample of a recorded series, or the recording failed.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The recorded series is empty.
    #[error("the recording has no sample")]
    Empty,
    /// The terminal failed.
    #[error("the terminal failed: {0}")]
    Terminal(#[from] io::Error),
    /// The thread that takes the samples has ended.
    #[error("the thread that reads the kernel has ended")]
    NoCollector,
}

/// Shows the screen until the user quits, a signal ends the program, or `--count` or `--duration` is reached.
///
/// # Errors
/// See [`ScreenError`]. The terminal is restored.
pub fn run(sampler: Sampler, options: ScreenOptions) -> Result<(), ScreenError> {
    if !tty::stdin_is_terminal() {
        return Err(ScreenError::NoTerminal("stdin is not a terminal"));
    }
    if !tty::stdout_is_terminal() {
        return Err(ScreenError::NoTerminal("stdout is not a terminal"));
    }
    if tty::is_dumb() {
        return Err(ScreenError::NoTerminal("TERM is dumb, empty or not set"));
    }
    // Block the signals before the first thread starts, because new threads inherit the mask.
    let input = ScreenInput::open()?;
    let ScreenOptions {
        selection,
        interval,
        style,
        shell,
        several,
        namespaces,
        owners,
        permit_tracing,
        record,
        duration,
        count,
    } = options;
    let can_ask_kernel = namespaces.is_some();
    let mut collector = SampleThread::start(sampler, namespaces, owners, input.waker()?)?;
    let mut state = ScreenState::new(interval);
    state.filter.clone_from(&selection.expression);
    state.recording = record.as_ref().map(|(path, _)| quoted(path).into_owned());
    let asked = Stopwatch::start();
    let (mut history, latest) = (CloseHistory::default(), first_sample(&input, &mut collector, interval, record)?);
    history.add(&latest.sample);
    let listing = Listing::new(state.table, 0, false, &latest, &history);
    let guard = TerminalGuard::take()?;
    let terminal = terminal::open(style.color, input.output()?)?;
    let mut screen = Screen {
        state,
        history,
        latest,
        listed: (ScreenTable::Sockets, 0, false),
        listing,
        widths: Widths::default(),
        collector,
        input,
        terminal,
        guard,
        style,
        shell,
        several,
        permit_tracing,
        capacity_asked: None,
        selection,
        can_ask_kernel,
        asked,
        taken: asked,
        running: asked,
        samples: 1,
        duration,
        count,
        frozen: None,
        held: None,
        ended: false,
        failed: None,
        wanted: PendingRequests::default(),
    };
    let outcome = screen.until_the_end();
    let Screen { collector, input, guard, terminal, failed, .. } = screen;
    drop(guard);
    // If the terminal is gone, ratatui's destructor would panic, because it prints an error to stderr, and that fails, too.
    mem::forget(terminal);
    // What was recorded so far is kept, however the screen ends.
    let finished = collector.finish();
    if let ScreenEnd::Signal(signal) = outcome? {
        input.deliver(signal)?;
    }
    finished?;
    failed.map_or(Ok(()), |error| Err(error.into()))
}

/// Takes the first sample before the screen has the terminal, so that an error is printed as for other commands.
fn first_sample(
    input: &ScreenInput,
    collector: &mut SampleThread,
    interval: Duration,
    record: Option<(PathBuf, bool)>,
) -> Result<LatestSample, ScreenError> {
    let recording = record.map(|(path, replace)| RecordingChange::Begin(path, replace));
    collector.ask(SampleRequest::BucketSample { interval, selection: None, capacity: false, recording });
    loop {
        match input.wait(None)? {
            Wakeup::Work => break,
            Wakeup::Signal(signal) => input.deliver(signal)?,
            Wakeup::HangUp => return Err(ScreenError::NoTerminal("the terminal is gone")),
            // The key stays in the terminal until the screen reads it. Until then, `wait` returns at once, so sleep.
            Wakeup::Key => clock::sleep(Duration::from_millis(10)),
            Wakeup::Resize | Wakeup::Continued | Wakeup::Time => {}
        }
    }
    let Some(SampleReply::Sampled { sample, recording, tracing, .. }) = collector.reply() else {
        return Err(ScreenError::NoCollector);
    };
    recording?;
    let (sample, counted) = (*sample)?.ok_or(ScreenError::Empty)?;
    let owners = collector.owners();
    Ok(LatestSample { sample, counted, capacity: vec![], owners, tracing, failure: None })
}

/// What the next requests must do, and the filter of the request that is under way.
#[derive(Debug, Default)]
struct PendingRequests {
    /// Whether to take a sample now, unless the screen is paused.
    now: bool,
    /// The filter that the next request applies.
    filter: Option<String>,
    /// The filter of the request that is under way.
    filter_asked: Option<String>,
    recording: Option<RecordingChange>,
    /// `true`: start a tracer. `false`: end it.
    tracer: Option<bool>,
}

enum ScreenEnd {
    /// The user quit, or `--count` or `--duration` was reached.
    Quit,
    /// The signal ends the program.
    Signal(PendingSignal),
}

struct Screen {
    state: ScreenState,
    history: CloseHistory,
    latest: LatestSample,
    listing: Listing,
    /// The table of the listing, the index of its order, and whether the order is reversed.
    listed: (ScreenTable, usize, bool),
    widths: Widths,
    collector: SampleThread,
    input: ScreenInput,
    terminal: ScreenTerminal,
    guard: TerminalGuard,
    style: TextStyle,
    shell: Shell,
    several: bool,
    permit_tracing: String,
    /// Measures the time since the last request for capacity; `None` if the next request need not wait for [`CAPACITY`].
    capacity_asked: Option<Stopwatch>,
    selection: Selection,
    /// Whether the screen reads the kernel. A replay has no capacity, and cannot be recorded.
    can_ask_kernel: bool,
    /// Measures the time since the last request for a sample.
    asked: Stopwatch,
    /// Measures the time since the request for the sample on the screen.
    taken: Stopwatch,
    running: Stopwatch,
    samples: u64,
    duration: Option<Duration>,
    count: Option<u64>,
    /// The age of the sample when the screen was paused or a replay ended; `None` while remaining times count down.
    frozen: Option<Duration>,
    /// The reply of a sample that was under way when the screen was paused.
    held: Option<SampleReply>,
    /// Whether a recorded series has no further sample.
    ended: bool,
    /// Why a recorded series could not be read to its end. The screen stays, and the program reports the error when it ends.
    failed: Option<SnapshotError>,
    wanted: PendingRequests,
}

impl Screen {
    fn until_the_end(&mut self) -> Result<ScreenEnd, ScreenError> {
        self.draw()?;
        loop {
            if self.count.is_some_and(|count| self.samples >= count) {
                return Ok(ScreenEnd::Quit);
            }
            if let Some(ending) = self.turn()? {
                return Ok(ending);
            }
        }
    }

    /// Waits for a key, a signal, a reply or the time of [`Self::time_left`], and handles it. Returns how the screen ends, if it ends.
    fn turn(&mut self) -> Result<Option<ScreenEnd>, ScreenError> {
        if !self.state.paused
            && let Some(reply) = self.held.take()
        {
            self.take(reply);
            self.draw()?;
        }
        self.ask();
        match self.input.wait(self.time_left())? {
            Wakeup::Key => {
                if let Some(ending) = self.keys()? {
                    return Ok(Some(ending));
                }
            }
            Wakeup::Work => self.receive()?,
            Wakeup::Signal(signal) if signal == PendingSignal::STOP => self.stop()?,
            Wakeup::Signal(signal) => return Ok(Some(ScreenEnd::Signal(signal))),
            Wakeup::HangUp => return Err(io::Error::other("the terminal is gone").into()),
            Wakeup::Continued => self.resume()?,
            Wakeup::Resize | Wakeup::Time => {}
        }
        if self.duration.is_some_and(|duration| self.running.elapsed() >= duration) {
            return Ok(Some(ScreenEnd::Quit));
        }
        self.draw()?;
        Ok(None)
    }

    fn age(&self) -> Duration {
        self.frozen.unwrap_or_else(|| self.taken.elapsed())
    }

    /// The time until the next sample, countdown or end; `None` if only a key, a signal or a reply can cause a change.
    fn time_left(&self) -> Option<Duration> {
        let sample = self.is_sampling().then(|| self.interval().saturating_sub(self.asked.elapsed()));
        let sample = sample.filter(|_| !self.collector.busy);
        let counts_down = self.frozen.is_none() && self.state.table == ScreenTable::Sockets && !self.listing.is_empty();
        let end = self.duration.map(|duration| duration.saturating_sub(self.running.elapsed()));
        [sample, counts_down.then_some(COUNTDOWN), end].into_iter().flatten().min()
    }

    fn is_sampling(&self) -> bool {
        !self.state.paused && !self.ended
    }

    /// The time between two samples. It is longer than the time that the user chose if a sample takes much processor time.
    fn interval(&self) -> Duration {
        let Sample { interval, processor_time, .. } = self.latest.sample;
        // A recording has its own interval.
        let least = if self.can_ask_kernel { processor_time * MIN_INTERVAL_PER_CPU_TIME } else { interval };
        least.max(self.state.interval)
    }

    /// Sends the next request if the collector is idle: for a tracer, a sample, a filter or the end of a recording.
    fn ask(&mut self) {
        if self.collector.busy {
            return;
        }
        let is_due = self.asked.elapsed() >= self.interval();
        let wanted = &mut self.wanted;
        let request = if let Some(starts) = wanted.tracer.take() {
            SampleRequest::Trace(starts)
        } else if !self.state.paused && !self.ended {
            if !(is_due || wanted.now || wanted.filter.is_some() || wanted.recording.is_some()) {
                return;
            }
            wanted.now = false;
            let recording = wanted.recording.take();
            // A filter that is typed while a sample is taken applies to the next sample.
            wanted.filter_asked = wanted.filter.take();
            let selection = wanted.filter_asked.clone().map(|expression| self.selection_with(expression));
            let on_screen = self.state.table == ScreenTable::Destinations && self.can_ask_kernel;
            let capacity = on_screen && self.capacity_asked.is_none_or(|asked| asked.elapsed() >= CAPACITY);
            if capacity {
                self.capacity_asked = Some(Stopwatch::start());
            }
            self.asked = Stopwatch::start();
            SampleRequest::BucketSample { interval: self.state.interval, selection, capacity, recording }
        } else if let Some(expression) = wanted.filter.take() {
            wanted.filter_asked = Some(expression.clone());
            SampleRequest::Select(self.selection_with(expression))
        } else if matches!(wanted.recording, Some(RecordingChange::End)) {
            wanted.recording = None;
            SampleRequest::EndRecording
        } else {
            return;
        };
        self.collector.ask(request);
    }

    fn selection_with(&self, expression: String) -> Selection {
        Selection { expression, ..self.selection.clone() }
    }

    /// Reads the keys that were typed. Returns how the screen ends, if one of them ends it.
    fn keys(&mut self) -> Result<Option<ScreenEnd>, ScreenError> {
        while event::poll(Duration::ZERO)? {
            let action = match event::read()? {
                Input::Key(key) if key.kind != KeyEventKind::Release => {
                    self.with_rows(|state, rows| state.press(key, rows))
                }
                Input::Mouse(mouse) => {
                    let lines = match mouse.kind {
                        MouseEventKind::ScrollUp => -WHEEL,
                        MouseEventKind::ScrollDown => WHEEL,
                        _ => continue,
                    };
                    self.with_rows(|state, rows| state.scroll(lines, rows));
                    None
                }
                _ => None,
            };
            self.list();
            if let Some(action) = action
                && let Some(ending) = self.act(action)?
            {
                return Ok(Some(ending));
            }
        }
        Ok(None)
    }

    /// Calls `change` with the state, and with facts about the rows of the table.
    fn with_rows<T>(&mut self, change: impl FnOnce(&mut ScreenState, RowFacts) -> T) -> T {
        let Self { state, listing, latest, history, terminal, .. } = self;
        let size: Rect = terminal.size().unwrap_or_default().into();
        let visible = draw::visible_rows(size, state, latest);
        let overlay_end = draw::overlay_end(size, state, latest);
        let identity = |row: usize| listing.identity(row, latest, history);
        change(state, RowFacts { count: listing.len(), visible, identity: &identity, overlay_end })
    }

    /// Rebuilds the list of rows if the table or its order has changed.
    fn list(&mut self) {
        let position = self.state.position();
        let of = (self.state.table, position.order, position.reverse);
        if self.listed == of {
            return;
        }
        self.relist();
        if self.state.table == ScreenTable::Destinations && self.is_sampling() && self.latest.capacity.is_empty() {
            self.wanted.now = self.can_ask_kernel;
        }
    }

    /// Rebuilds the list of rows, and finds the selected row in it.
    fn relist(&mut self) {
        let Self { state, latest, history, listed, listing, .. } = self;
        let position = state.position();
        *listed = (state.table, position.order, position.reverse);
        *listing = Listing::new(state.table, position.order, position.reverse, latest, history);
        let place = self
            .state
            .position()
            .selected
            .as_ref()
            .and_then(|(_, identity)| self.listing.find(identity, &self.latest, &self.history));
        self.with_rows(|state, rows| state.follow(rows, place));
    }

    /// Takes the terminal again, and draws all of it.
    fn resume(&mut self) -> Result<(), ScreenError> {
        self.guard.take_again()?;
        // If twtool is in the background, the kernel stops it in `take_again` until the shell brings it to the foreground, with
        // SIGCONT. Discard that signal. Otherwise twtool would take the terminal a second time, and leave raw mode for a moment.
        self.input.discard_continued()?;
        self.erase()?;
        Ok(self.draw()?)
    }

    /// Erases the terminal, so that the next frame is written whole. `Terminal::clear` would ask the terminal for the position of the
    /// cursor, and some terminals do not answer.
    fn erase(&mut self) -> io::Result<()> {
        let size = self.terminal.size()?;
        let erased = self.terminal.resize(size.into());
        self.unless_interrupted(erased)
    }

    /// Ignores an error of output that a signal interrupted. [`Self::turn`] handles that signal next.
    fn unless_interrupted(&self, result: io::Result<()>) -> io::Result<()> {
        if self.input.has_unreported_signal() { Ok(()) } else { result }
    }

    fn draw(&mut self) -> io::Result<()> {
        let stands_still = !self.is_sampling();
        if stands_still != self.frozen.is_some() {
            self.frozen = stands_still.then(|| self.taken.elapsed());
        }
        let (age, interval) = (self.age(), self.interval());
        // A recording has its own interval.
        let stretched = self.can_ask_kernel && interval > self.state.interval;
        let Self { state, latest, listing, history, style, terminal, widths, .. } = self;
        let shown = FrameContent { latest, listing, history, age, interval, stretched, style: *style };
        let drawn = terminal.draw(|frame| draw::draw(frame, state, &shown, widths)).map(|_| ());
        self.unless_interrupted(drawn)
    }
}
