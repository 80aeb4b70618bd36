//! /proc/PID/cgroup: any bytes are the path of a line, or none.
#![no_main]

use libfuzzer_sys::fuzz_target;
use twtool::model::name::text_of;
use twtool::sys::owners::cgroup_path;
use twtool_fuzz::bounded;

fuzz_target!(|case: &[u8]| {
    let Some(path) = bounded(case, || cgroup_path(case)) else { return };
    let ends = |line: &[u8]| {
        let mut fields = line.splitn(3, |byte| *byte == b':');
        let (Some(_), Some(controllers), Some(rest)) = (fields.next(), fields.next(), fields.next()) else {
            return false;
        };
        text_of(rest) == path && (controllers.is_empty() || text_of(controllers).contains("name=systemd"))
    };
    assert!(case.split(|byte| *byte == b'\n').any(ends), "{path:?} of {}", text_of(case));
});
