//! Parses /etc/services. For UTF-8, the table equals the table of a second, independent parser.
#![no_main]

use libfuzzer_sys::fuzz_target;
use twtool::model::name::text_of;
use twtool::model::port::Port;
use twtool::sys::services::parse;
use twtool_fuzz::bounded;

fn entry(line: &str) -> Option<(Port, Vec<&str>)> {
    let line = line.split('#').next()?;
    let mut words: Vec<&str> = line.split([' ', '\t', '\r', '\x0b', '\x0c']).filter(|word| !word.is_empty()).collect();
    (words.len() > 1)
        .then(|| words.remove(1))?
        .split_once('/')
        .and_then(|(port, protocol)| (protocol == "tcp").then_some((Port(port.parse().ok()?), words)))
}

fuzz_target!(|case: &[u8]| {
    let services = bounded(case, || parse(case));
    for (port, names) in services.entries() {
        assert!(services.name(port).is_some());
        for name in names {
            assert!(!name.is_empty() && services.port(name).is_some(), "{name:?}");
            assert!(!name.contains([' ', '\t', '\n', '#']));
        }
    }
    let Ok(text) = std::str::from_utf8(case) else { return };
    let expected: Vec<(Port, Vec<&str>)> = text.split('\n').filter_map(entry).collect();
    let found: Vec<(Port, Vec<&str>)> = services.entries().map(|(port, names)| (port, names.collect())).collect();
    assert_eq!(found, expected, "{}", text_of(case));
});
