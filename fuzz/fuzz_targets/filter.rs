//! Parses filter expressions. An error has a caret. A filter prints as an expression with the same meaning, and the part that the kernel
//! evaluates accepts every row that the filter accepts.
#![no_main]

use std::num::NonZeroU32;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use twtool::filter::parser::parse;
use twtool::model::facts::Facts;
use twtool::model::port::Port;
use twtool::model::row::{Direction, Row};
use twtool::model::socket::{Cookie, FourTuple, TimeWaitBucket};
use twtool::sock_diag::bytecode;
use twtool_fuzz::{bounded, facts};

static FACTS: LazyLock<Facts> = LazyLock::new(facts);
static ROWS: LazyLock<Vec<Row>> = LazyLock::new(rows);

fn rows() -> Vec<Row> {
    let mut rows = vec![];
    for (i, local) in ["127.0.0.1", "10.1.2.3", "::1", "2001:db8::1", "::ffff:10.0.0.1"].into_iter().enumerate() {
        for (j, (local_port, remote_port)) in
            [(0, 1), (80, 40000), (443, 65535), (40000, 443), (49152, 1023), (65535, 0)].into_iter().enumerate()
        {
            let addr = local.parse().expect("an address");
            let bucket = TimeWaitBucket {
                tuple: FourTuple::new((addr, Port(local_port)), (addr, Port(remote_port))),
                fin_wait_2: j % 2 == 0,
                expires_ms: [0, 1, 10_000, 59_999, 60_000, u32::MAX][j],
                interface: NonZeroU32::new(u32::try_from(i).expect("small") % 2),
                mark: [None, Some(0), Some(1), Some(u32::MAX)][j % 4],
                cookie: Cookie::new(1),
            };
            let direction = [Direction::Inbound, Direction::Outbound, Direction::Unknown][j % 3];
            rows.push(Row { bucket, direction, netns: 0 });
        }
    }
    rows
}

/// Checks a program as the kernel does (`inet_diag_bc_audit` and `valid_cc` in net/ipv4/inet_diag.c): every jump goes forward. Its
/// target is an instruction, the end (accept), or 4 bytes beyond the end (reject).
fn audit(program: &[u8]) {
    let mut starts = vec![];
    let mut at = 0;
    while at < program.len() {
        starts.push(at);
        assert!(program[at + 1] >= 4 && program[at + 1] % 4 == 0);
        at += usize::from(program[at + 1]);
    }
    assert_eq!(at, program.len());
    for &start in &starts {
        let target = start + usize::from(u16::from_ne_bytes([program[start + 2], program[start + 3]]));
        let known = target == program.len() || target == program.len() + 4 || starts.binary_search(&target).is_ok();
        assert!(target > start && known, "a jump from {start} to {target} in {program:?}");
    }
}

fuzz_target!(|case: &[u8]| {
    let Ok(text) = std::str::from_utf8(case) else { return };
    let (facts, rows) = (&*FACTS, &*ROWS);
    let parsed = match bounded(case, || parse(text, facts)) {
        Ok(parsed) => parsed,
        Err(mistake) => {
            let shown = mistake.to_string();
            assert!(shown.ends_with('^'), "{shown}");
            return;
        }
    };
    let filter = parsed.filter;
    let printed = filter.to_string();
    let again = parse(&printed, facts).unwrap_or_else(|mistake| panic!("{printed} {mistake}")).filter;
    let judged = bounded(case, || bytecode::judged_by_kernel(&filter));
    let left = bytecode::left_over(&filter);
    if let Some(program) = bounded(case, || bytecode::compile(&filter)) {
        audit(&program);
    }
    for row in rows {
        let passes = filter.accepts(row);
        assert_eq!(passes, again.accepts(row), "{text} prints as {printed}");
        assert!(!passes || judged.accepts(row), "{text}: the kernel would drop {row:?} by {judged}");
        assert_eq!(passes, judged.accepts(row) && left.accepts(row), "{text}: {judged} and {left}");
    }
});
