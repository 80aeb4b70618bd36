//! Puts the replies of the collector on the screen.

use std::sync::Arc;

use super::collector::{RecordingChange, SampleReply};
use super::tables::ScreenTable;
use super::{Screen, ScreenError};
use crate::filter::Filter;
use crate::model::facts::Facts;
use crate::snapshot::{Selection, SnapshotError};

impl Screen {
    /// Receives the reply of the collector. If the screen is paused, it keeps a new sample until the pause ends or another reply arrives.
    pub(super) fn receive(&mut self) -> Result<(), ScreenError> {
        let reply = self.collector.reply().ok_or(ScreenError::NoCollector)?;
        if self.state.paused && matches!(reply, SampleReply::Sampled { .. }) {
            self.held = Some(reply);
            return Ok(());
        }
        // Show the held sample first, because later replies refer to it.
        if let Some(held) = self.held.take() {
            self.take(held);
        }
        self.take(reply);
        Ok(())
    }

    /// Puts a reply on the screen.
    pub(super) fn take(&mut self, reply: SampleReply) {
        let (sample, capacity, recording) = match reply {
            SampleReply::Sampled { sample, capacity, recording, tracing } => {
                self.latest.tracing = tracing;
                (sample, capacity, recording)
            }
            SampleReply::Selected(selected) => {
                match selected {
                    Ok((selected, counted)) => {
                        self.latest.sample.reselect(selected);
                        self.latest.counted = counted;
                        self.replace_warnings();
                        self.history.add_closes(&self.latest.sample);
                        self.use_filter();
                    }
                    Err(error) => self.filter_failed(&error),
                }
                return self.relist();
            }
            SampleReply::EndedRecording(ended) => return self.note_recording(ended),
            SampleReply::Traced(started) => return self.note_tracing(started),
        };
        match *sample {
            Ok(Some((sample, counted))) => {
                self.samples += 1;
                self.taken = self.asked;
                self.frozen = self.frozen.map(|_| self.taken.elapsed());
                self.latest.sample = sample;
                self.latest.counted = counted;
                self.latest.failure = None;
                self.use_filter();
                self.history.add(&self.latest.sample);
            }
            Ok(None) => {
                self.ended = true;
                self.state.message = Some("end of the recording".into());
            }
            Err(error) if self.can_ask_kernel || error.is_about_the_selection() => self.filter_failed(&error),
            Err(error) => {
                self.ended = true;
                self.latest.failure = Some(format!("the replay has ended early: {error}"));
                self.failed = Some(error);
            }
        }
        // Drop old numbers of free ports. They would be wrong when the table of destinations is shown again.
        if !capacity.is_empty() || self.state.table != ScreenTable::Destinations {
            self.latest.capacity.clear();
        }
        if self.state.table != ScreenTable::Destinations {
            self.capacity_asked = None;
        }
        for answer in capacity {
            match answer {
                Ok(answer) => self.latest.capacity.push(answer),
                Err(error) => self.latest.failure = Some(error.to_string()),
            }
        }
        self.note_recording(recording);
        self.relist();
    }

    /// Replaces the warnings about the words of the old filter with the warnings about the new one.
    fn replace_warnings(&mut self) {
        let Some(facts) = self.latest.namespaces().first().map(|netns| Arc::clone(&netns.facts)) else { return };
        let about = |selection: &Selection| selection.resolve(&facts).map(|(_, warnings)| warnings).unwrap_or_default();
        let new = self.wanted.filter_asked.clone().map(|expression| about(&self.selection_with(expression)));
        let old = about(&self.selection);
        let warnings = &mut self.latest.sample.warnings;
        warnings.retain(|warning| !old.contains(warning));
        warnings.splice(0..0, new.unwrap_or_default());
    }

    /// Applies the requested filter, if there is one, to the screen and to the events so far.
    fn use_filter(&mut self) {
        let Some(expression) = self.wanted.filter_asked.take() else { return };
        self.selection.expression.clone_from(&expression);
        self.state.filter = expression;
        // The filter line stays open if the user entered another filter meanwhile.
        if self.wanted.filter.is_none() {
            self.state.typed = None;
        }
        // The events of one namespace in one sample share their facts, so the filter is resolved once for all of them.
        let mut last: Option<(Arc<Facts>, Option<Filter>)> = None;
        let selection = &self.selection;
        self.history.retain_events(|event| {
            if last.as_ref().is_none_or(|(facts, _)| !Arc::ptr_eq(facts, &event.facts)) {
                last = Some((Arc::clone(&event.facts), selection.resolve(&event.facts).ok().map(|(filter, _)| filter)));
            }
            last.as_ref().and_then(|(_, filter)| filter.as_ref()).is_some_and(|filter| filter.accepts(&event.row))
        });
    }

    /// Reports why a filter or a sample has failed.
    fn filter_failed(&mut self, error: &SnapshotError) {
        let filter = self.wanted.filter_asked.take();
        if let (Some(line), Some(_)) = (&mut self.state.typed, filter) {
            line.error = Some(error.to_string());
        } else {
            self.sample_failed(error);
        }
    }

    fn note_recording(&mut self, result: Result<(), SnapshotError>) {
        if let Err(error) = result {
            self.state.message = Some(format!("recording failed: {error}"));
            self.state.recording = None;
        }
    }

    fn sample_failed(&mut self, error: &SnapshotError) {
        self.latest.failure = Some(format!("the last read failed: {error}"));
        // The cause can be the recording, for example a full disk. Ending the recording keeps the screen usable.
        if self.state.recording.take().is_some() {
            self.wanted.recording = Some(RecordingChange::End);
            self.state.message = Some("the recording has ended, because a read failed".into());
        }
    }
}
