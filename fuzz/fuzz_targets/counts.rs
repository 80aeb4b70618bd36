//! Parses files of /proc that contain numbers: net/netstat, net/sockstat, slabinfo, and the capabilities of PID/status. Each number in
//! the result is in the text.
#![no_main]

use libfuzzer_sys::fuzz_target;
use twtool::sys::{capabilities, counts, slab};
use twtool_fuzz::bounded;

fuzz_target!(|case: &[u8]| {
    if let Some(capabilities) = bounded(case, || capabilities::parse(case)) {
        let mask = format!("{:x}", capabilities.0);
        let text = String::from_utf8_lossy(case).to_lowercase();
        assert!(text.contains(&mask), "{mask} of {text:?}");
    }
    let Ok(text) = std::str::from_utf8(case) else { return };
    let text_has =
        |number: u64| text.split(|c: char| c.is_whitespace() || c == ':').any(|word| word.parse() == Ok(number));
    if let Some(size) = bounded(case, || slab::object_size(text)) {
        assert!(text_has(size), "{size} of {text:?}");
    }
    if let Some(sockstat) = bounded(case, || counts::parse_tcp_sockstat(text)) {
        let numbers = [sockstat.inuse, sockstat.orphan, sockstat.tw, sockstat.alloc, sockstat.mem];
        assert!(numbers.into_iter().all(text_has), "{sockstat:?} of {text:?}");
    }
    if let Some(counters) = bounded(case, || counts::parse_tcp_ext(text)) {
        // A search for every counter of a large file would be slow.
        for (name, number) in counters.0.iter().take(64) {
            assert!(text_has(*number) && text.contains(name.as_str()), "{name} {number} of {text:?}");
        }
    }
});
