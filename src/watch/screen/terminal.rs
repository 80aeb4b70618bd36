//! Puts the terminal into the modes of the live screen: raw mode, the alternate screen, and reports of the mouse wheel. [`TerminalGuard`]
//! restores the previous modes at the end, after an error, on a panic in any thread, and before the program ends or stops because of a
//! signal that `ScreenSignals` blocks.

use std::io::{self, BufWriter};
use std::panic;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::queue;
use ratatui::crossterm::style::{Print, ResetColor, force_color_output};
use ratatui::crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode};

use crate::sys::screen_output::{ScreenOutput, write_within};

/// Makes the terminal report buttons and the wheel (1000) in the extended form (1006). Reports of movements stay off, because they
/// would load a slow line.
const MOUSE_ON: &str = "\x1b[?1000h\x1b[?1006h";
const MOUSE_OFF: &str = "\x1b[?1006l\x1b[?1000l";

/// The time limit of a write to a terminal that accepts no text. It is long enough for a slow line to send what is in its buffers.
const PATIENCE: Duration = Duration::from_secs(3);

/// Whether the screen has the terminal.
static TAKEN: AtomicBool = AtomicBool::new(false);

static HOOK: Once = Once::new();

/// The size of the output buffer in bytes. It is large enough to write most frames in one piece.
const FRAME: usize = 64 * 1024;

/// The terminal that ratatui draws on.
pub type ScreenTerminal = Terminal<CrosstermBackend<BufWriter<ScreenOutput>>>;

/// Holds the terminal in the modes of the live screen. Dropping the guard restores the previous modes.
#[derive(Debug)]
pub struct TerminalGuard(());

impl TerminalGuard {
    /// Takes the terminal.
    ///
    /// # Errors
    /// The terminal refuses raw mode, or cannot be written to.
    pub fn take() -> io::Result<Self> {
        HOOK.call_once(|| {
            let before = panic::take_hook();
            panic::set_hook(Box::new(move |info| {
                // The message must appear on the normal screen. With `panic = "abort"` no value is dropped afterwards.
                let _ = give_back();
                before(info);
            }));
        });
        let guard = Self(());
        guard.take_again()?;
        Ok(guard)
    }

    /// Takes the terminal after [`Self::give_back`], or after another program has changed its modes.
    ///
    /// # Errors
    /// As for [`Self::take`].
    pub fn take_again(&self) -> io::Result<()> {
        // give_back() makes crossterm forget the saved modes. So enable_raw_mode() saves the present modes, and the next give_back()
        // restores these.
        give_back()?;
        TAKEN.store(true, Ordering::SeqCst);
        enable_raw_mode()?;
        let mut text = vec![];
        queue!(text, EnterAlternateScreen, Print(MOUSE_ON))?;
        write_within(PATIENCE, &text)
    }

    /// Restores the previous modes of the terminal until [`Self::take_again`].
    ///
    /// # Errors
    /// The terminal cannot be written to.
    pub fn give_back(&self) -> io::Result<()> {
        give_back()
    }
}

impl Drop for TerminalGuard {
    fn drop(&mut self) {
        let _ = give_back();
    }
}

/// Restores the terminal, if the screen has it.
fn give_back() -> io::Result<()> {
    if !TAKEN.swap(false, Ordering::SeqCst) {
        return Ok(());
    }
    let mut text = vec![];
    queue!(text, ResetColor, Print(MOUSE_OFF), Show, LeaveAlternateScreen)?;
    let written = write_within(PATIENCE, &text);
    // The modes are restored even if the terminal does not take text any more.
    disable_raw_mode()?;
    written
}

/// Opens ratatui's view of the terminal. If `color` is false, no colour is ever written.
///
/// # Errors
/// The size of the terminal cannot be read.
pub fn open(color: bool, output: ScreenOutput) -> io::Result<ScreenTerminal> {
    // crossterm follows NO_COLOR by itself, but not --color.
    force_color_output(color);
    Terminal::new(CrosstermBackend::new(BufWriter::with_capacity(FRAME, output)))
}
