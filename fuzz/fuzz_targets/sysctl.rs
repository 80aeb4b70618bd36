//! Parses settings under /proc/sys. The printed form of a list of ports parses to the same list.
#![no_main]

use libfuzzer_sys::fuzz_target;
use twtool::model::port::Port;
use twtool::sys::sysctl::{parse_range, parse_ranges};
use twtool_fuzz::bounded;

fuzz_target!(|case: &[u8]| {
    let Ok(text) = std::str::from_utf8(case) else { return };
    if let Some(range) = parse_range(text) {
        let ports: Vec<u16> = text.split_whitespace().map(|word| word.parse().expect("a port")).collect();
        assert_eq!(ports, [range.0.first().0, range.0.last().0], "{text:?}");
    }
    let Some(list) = bounded(case, || parse_ranges(text)) else { return };
    assert_eq!(parse_ranges(&list.to_string()).as_ref(), Some(&list), "{text:?}");
    for item in text.split(',').filter(|item| !item.is_empty()).take(64) {
        let (first, last) = item.split_once('-').unwrap_or((item, item));
        for port in [first, last] {
            assert!(list.contains(Port(port.parse().expect("a port"))), "{port} of {text:?}");
        }
    }
});
