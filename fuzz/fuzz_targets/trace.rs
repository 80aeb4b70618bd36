//! Parses the kernel's type information and the records of the BPF program.
#![no_main]

use libfuzzer_sys::fuzz_target;
use twtool::trace::BpfRecord;
use twtool::trace::btf::{Btf, BtfKind};
use twtool::trace::program::Offsets;
use twtool_fuzz::bounded;

fuzz_target!(|case: &[u8]| {
    bounded(case, || {
        let Ok(btf) = Btf::parse(case) else { return };
        let _ = Offsets::find(&btf);
        let _ = btf.id(BtfKind::Typedef, "btf_trace_inet_sock_set_state");
        for path in ["__sk_common.skc_num", "sk_err", "a", ""] {
            let _ = btf.field("sock", path, 2);
        }
    });
    if let Some(record) = BpfRecord::decode(case) {
        assert!(case.len() >= 256);
        assert!(record.task.is_none_or(|task| task.comm.len() <= 64 && task.cgroup_name.len() <= 4 * 96));
    }
});
