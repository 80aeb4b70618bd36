//! Parses words of a command line. The printed form of an address, prefix, port or namespace parses to the same value.
#![no_main]

use std::ffi::OsString;
use std::fmt::{Debug, Display};
use std::os::unix::ffi::OsStringExt;
use std::str::FromStr;

use libfuzzer_sys::fuzz_target;
use twtool::filter::parser::parse_duration;
use twtool::model::addr::{ScopedAddr, ScopedEnd, ScopedPrefix};
use twtool::model::command::quoted;
use twtool::model::name::is_hidden;
use twtool::model::netns::NetnsArg;
use twtool::model::port::PortArg;
use twtool_fuzz::bounded;

fn round_trip<T: FromStr + Display + Debug + PartialEq>(text: &str) {
    if let Ok(value) = bounded(text.as_bytes(), || text.parse::<T>()) {
        let printed = value.to_string();
        assert!(printed.parse::<T>().is_ok_and(|again| again == value), "{text:?} prints as {printed:?}");
    }
}

fuzz_target!(|case: &[u8]| {
    let word = OsString::from_vec(case.to_vec());
    // A quoted word must not contain characters that are hidden or that control a terminal.
    assert!(!quoted(&word).contains(is_hidden));
    if let Ok(arg) = bounded(case, || NetnsArg::try_from(word.clone())) {
        assert_eq!(NetnsArg::try_from(arg.word()), Ok(arg));
    }
    let Ok(text) = std::str::from_utf8(case) else { return };
    round_trip::<ScopedAddr>(text);
    round_trip::<ScopedEnd>(text);
    round_trip::<ScopedPrefix>(text);
    round_trip::<PortArg>(text);
    let _ = bounded(case, || parse_duration(text));
});
