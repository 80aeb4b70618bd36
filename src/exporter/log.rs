//! Log lines on standard error, one for each event, as logfmt or JSON.

use std::fmt::Write as _;
use std::io::Write as _;

use crate::sys;
use crate::view::human;

/// The form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// `ts=... level=info msg=listening address=127.0.0.1:16060`
    Logfmt,
    /// A JSON record.
    Json,
}

/// The severity of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Normal operation.
    Info,
    /// Something is missing, or failed and is tried again.
    Warn,
    /// Something failed, for example a collection.
    Error,
}

impl Level {
    const fn name(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

/// Writes the events of the exporter to standard error.
#[derive(Clone, Copy, Debug)]
pub struct Log(pub LogFormat);

impl Log {
    /// Writes an event with its details. Ignores write errors, because there is no other place to report them.
    pub fn event(self, level: Level, message: &str, details: &[(&str, &str)]) {
        let time = human::timestamp(sys::clock::now());
        let first = [("ts", time.as_str()), ("level", level.name()), ("msg", message)];
        let line = line(self.0, first.iter().chain(details));
        let _ = std::io::stderr().lock().write_all(line.as_bytes());
    }
}

fn line<'a>(format: LogFormat, pairs: impl Iterator<Item = &'a (&'a str, &'a str)>) -> String {
    match format {
        LogFormat::Json => {
            let pairs: serde_json::Map<_, _> = pairs.map(|(key, value)| ((*key).to_owned(), (*value).into())).collect();
            serde_json::Value::Object(pairs).to_string() + "\n"
        }
        LogFormat::Logfmt => {
            let mut text = String::new();
            for (key, value) in pairs {
                // Names of processes and namespaces may contain any character.
                let value = human::escape(value);
                let plain = !value.is_empty() && !value.contains([' ', '"', '=', '\\']);
                let separator = if text.is_empty() { "" } else { " " };
                // `write!` to a String does not fail.
                let _ = if plain {
                    write!(text, "{separator}{key}={value}")
                } else {
                    write!(text, "{separator}{key}=\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))
                };
            }
            text + "\n"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_whatever_its_values_are() {
        let pairs = [("msg", "a b"), ("netns", "x\ny=\"z\""), ("n", "5"), ("empty", "")];
        let logfmt = line(LogFormat::Logfmt, pairs.iter());
        assert_eq!(logfmt.matches('\n').count(), 1);
        assert!(logfmt.starts_with("msg=\"a b\" netns=\"") && logfmt.ends_with(" n=5 empty=\"\"\n"), "{logfmt}");
        let json = line(LogFormat::Json, pairs.iter());
        assert_eq!(json.matches('\n').count(), 1);
        let record: serde_json::Value = serde_json::from_str(&json).expect("a record");
        assert_eq!((record["netns"].as_str(), record["n"].as_str()), (Some("x\ny=\"z\""), Some("5")));
    }
}
