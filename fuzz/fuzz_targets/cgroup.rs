//! Parses /proc/PID/cgroup. The path in the result is from a line without controllers (the unified hierarchy), from the line
//! name=systemd, or from a line that names a container.
#![no_main]

use libfuzzer_sys::fuzz_target;
use twtool::model::container::Container;
use twtool::model::name::text_of;
use twtool::model::process::{place_of_cgroup, unit_of_cgroup};
use twtool::sys::cgroup::path_of_process;
use twtool_fuzz::bounded;

fuzz_target!(|case: &[u8]| {
    let Some(path) = bounded(case, || path_of_process(case)) else { return };
    assert!(unit_of_cgroup(&path).is_none_or(|unit| path.contains(unit)));
    let container = Container::of_cgroup(&path);
    assert!(container.as_ref().is_none_or(|container| path.contains(container.id)));
    let _ = place_of_cgroup(&path);
    let has_path = |line: &[u8]| {
        let mut fields = line.splitn(3, |byte| *byte == b':');
        let (Some(_), Some(controllers), Some(rest)) = (fields.next(), fields.next(), fields.next()) else {
            return false;
        };
        let unified_or_systemd = controllers.is_empty() || text_of(controllers).contains("name=systemd");
        text_of(rest) == path && (unified_or_systemd || container.is_some())
    };
    assert!(case.split(|byte| *byte == b'\n').any(has_path), "{path:?} of {}", text_of(case));
});
