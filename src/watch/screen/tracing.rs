//! Starts and ends the tracer of the screen, and shows whether this has worked.

use super::Screen;
use crate::snapshot::SnapshotError;
use crate::snapshot::owner_feed::Tracing;

impl Screen {
    /// Asks the collector to start a tracer, or to end it.
    pub(super) fn toggle_tracing(&mut self) {
        let message = match &self.latest.tracing {
            None => "a recording has no processes",
            Some(Tracing::Served(path)) => {
                self.state.message = Some(format!("a tracer runs already, and serves {}", path.display()));
                return;
            }
            Some(Tracing::Own(_)) => {
                self.wanted.tracer = Some(false);
                "the tracer ends"
            }
            Some(Tracing::Off | Tracing::Unreadable(_) | Tracing::Failed(_)) => {
                self.wanted.tracer = Some(true);
                "the tracer starts"
            }
        };
        self.state.message = Some(message.into());
    }

    /// Reports whether the tracer has started or ended as requested.
    pub(super) fn note_tracing(&mut self, started: Result<Tracing, SnapshotError>) {
        self.state.message = Some(match started {
            Ok(tracing) => {
                let message = match &tracing {
                    Tracing::Own(_) => "a tracer records who closes connections from now on; t ends it".into(),
                    Tracing::Failed(why) => format!("the tracer has failed: {why}"),
                    _ => "the tracer has ended".into(),
                };
                self.latest.tracing = Some(tracing);
                message
            }
            Err(error) if error.lacks_privilege() => format!("{error}\n{}", self.permit_tracing),
            Err(error) => error.to_string(),
        });
    }
}
