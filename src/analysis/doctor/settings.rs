//! What holds for every check of a setting: one that is not there, one that cannot be read, one that is no number.

use super::{Check, Datum, Status, Subject};
use crate::model::health::{Health, Reading};

/// A setting with a number, and what becomes of it where there is none.
pub(super) struct Setting {
    /// What it is about.
    pub(super) subject: Subject,
    /// Its name below /proc/sys/net.
    pub(super) name: &'static str,
    /// The kernel's default.
    pub(super) default: Option<i64>,
    /// What a kernel does that has no such setting; `None` where every kernel since 3.x has it, in the initial network
    /// namespace at least.
    pub(super) absent: Option<&'static str>,
}

impl Setting {
    /// The check of its number by `judge`, which is given a check in order and the number.
    pub(super) fn check(self, health: &Health, judge: impl FnOnce(Check, i64) -> Check) -> Check {
        let Self { subject, name, default, absent } = self;
        let file = format!("/proc/sys/net/{}", name.replace('.', "/"));
        let nothing = |status, finding| {
            let default = if absent.is_some() && status == Status::Ok { Datum::Unknown } else { default.into() };
            Check::ok(subject, Datum::Unknown, default).found(status, finding)
        };
        match health.settings.reading(name) {
            Reading::Value(text) => match text.parse::<i64>() {
                Ok(number) => judge(Check::ok(subject, Datum::Number(number.into()), default.into()), number),
                Err(_) => nothing(Status::Unknown, format!("{file} holds '{text}', which is no number.")),
            },
            Reading::Absent => match absent {
                Some(then) => nothing(Status::Ok, then.to_owned()),
                None => nothing(
                    Status::Unknown,
                    format!(
                        "There is no {file} here: on older kernels the setting is one for the whole machine and seen in \
                         the initial network namespace alone, or a sandbox hides it."
                    ),
                ),
            },
            Reading::Unreadable(why) => nothing(Status::Unknown, format!("Reading {file} failed: {why}.")),
        }
    }
}
