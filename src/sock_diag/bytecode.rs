//! Compiles the part of a filter that the kernel can evaluate into a program (INET_DIAG_REQ_BYTECODE in uapi/linux/inet_diag.h).
//!
//! The program tests ports and addresses. The kernel cannot test the remaining time or the direction. The compiler does not use the
//! kernel's tests of the interface and of the mark: Linux 5.10, for example, takes 0 for the mark of a bucket. So the program accepts
//! every row that the filter accepts, and sometimes more rows.
//!
//! A program is a list of instructions. Each instruction tests a socket and jumps forward. A jump to the end of the program accepts
//! the socket. A jump to 4 bytes after the end rejects it (`inet_diag_bc_run` in net/ipv4/inet_diag.c):
//!
//! ```text
//! struct inet_diag_bc_op   { __u8 code, yes; __u16 no; };      the jumps, in bytes from this instruction
//! struct inet_diag_hostcond { __u8 family, prefix_len; int port; __be32 addr[]; };
//! ```

use std::net::IpAddr;

use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6};

use crate::filter::{End, Filter};
use crate::model::addr::Prefix;
use crate::model::port::{Port, PortRange};

const JMP: u8 = 1;
const S_GE: u8 = 2;
const S_LE: u8 = 3;
const D_GE: u8 = 4;
const D_LE: u8 = 5;
const AUTO: u8 = 6;
const S_COND: u8 = 7;
const D_COND: u8 = 8;

/// The port of a host condition that accepts every port.
const ANY_PORT: i32 = -1;

/// The maximum length of a program in bytes. The netlink attribute that contains the program has a u16 for the length.
const LONGEST: usize = 60_000;

/// Returns the part of a filter that the kernel can evaluate. It accepts every row that the whole filter accepts.
#[must_use]
pub fn judged_by_kernel(filter: &Filter) -> Filter {
    approximate(filter, true)
}

/// Reduces a filter to tests that the kernel can evaluate. If `wider`, the result accepts every row that the filter
/// accepts; otherwise it accepts no row that the filter rejects.
fn approximate(filter: &Filter, wider: bool) -> Filter {
    match filter {
        Filter::Port(..) | Filter::Addr(..) => filter.clone(),
        Filter::Not(test) => match approximate(test, !wider) {
            Filter::All(tests) if tests.is_empty() => Filter::FALSE,
            Filter::Any(tests) if tests.is_empty() => Filter::TRUE,
            other => other.negated(),
        },
        Filter::All(tests) => {
            let mut tests: Vec<Filter> = tests.iter().map(|test| approximate(test, wider)).collect();
            tests.retain(|test| *test != Filter::TRUE);
            if tests.contains(&Filter::FALSE) { Filter::FALSE } else { Filter::all(tests) }
        }
        Filter::Any(tests) => {
            let mut tests: Vec<Filter> = tests.iter().map(|test| approximate(test, wider)).collect();
            tests.retain(|test| *test != Filter::FALSE);
            if tests.contains(&Filter::TRUE) { Filter::TRUE } else { Filter::any(tests) }
        }
        _ if wider => Filter::TRUE,
        _ => Filter::FALSE,
    }
}

/// Returns the part of a filter that remains to be evaluated after the kernel has evaluated its part.
#[must_use]
pub fn left_over(filter: &Filter) -> Filter {
    let judged = |test: &Filter| judged_by_kernel(test) == *test;
    match filter {
        filter if judged(filter) => Filter::TRUE,
        Filter::All(tests) => Filter::all(tests.iter().filter(|test| !judged(test)).cloned().collect()),
        filter => filter.clone(),
    }
}

/// Compiles a filter. The program also accepts every listener, because the direction of a bucket is inferred from the listeners.
/// Returns `None` if the kernel can evaluate no part of the filter, or if the program would be too long.
#[must_use]
pub fn compile(filter: &Filter) -> Option<Vec<u8>> {
    let judged = judged_by_kernel(filter);
    if judged == Filter::TRUE {
        return None;
    }
    // The remote port of a listener is 0.
    let listener = Filter::Port(End::Remote, PortRange::one(Port(0)));
    let mut program = Program::default();
    program.test(&Filter::Any(vec![judged, listener]), REJECT);
    program.finish()
}

/// Returns the program that accepts sockets whose port the kernel chose (`SOCK_BINDPORT_LOCK` is not set). Its result
/// is meaningless for buckets, because a bucket does not keep that flag.
#[must_use]
pub fn autobound() -> Option<Vec<u8>> {
    let mut program = Program::default();
    program.instruction(AUTO, &[], REJECT);
    program.finish()
}

/// A jump target whose position in the program may not be known yet.
type JumpTarget = usize;

/// The jump target 4 bytes after the end.
const REJECT: JumpTarget = 0;

#[derive(Default)]
struct Program {
    bytes: Vec<u8>,
    /// The position of each jump target. The first target is [`REJECT`].
    targets: Vec<Option<usize>>,
    /// The positions of instructions, each with the target that its `no` jumps to.
    jumps: Vec<(usize, JumpTarget)>,
}

impl Program {
    fn new_target(&mut self) -> JumpTarget {
        if self.targets.is_empty() {
            self.targets.push(None);
        }
        self.targets.push(None);
        self.targets.len() - 1
    }

    fn place(&mut self, target: JumpTarget) {
        self.targets[target] = Some(self.bytes.len());
    }

    /// Appends an instruction that continues after its operand if its test is true, and jumps to `otherwise` if it is false.
    fn instruction(&mut self, code: u8, operand: &[u8], otherwise: JumpTarget) {
        let at = self.bytes.len();
        self.jumps.push((at, otherwise));
        // `yes` is a u8. The longest instruction has 4 + 8 + 16 bytes.
        let length = u8::try_from(4 + operand.len()).unwrap_or(u8::MAX);
        self.bytes.extend([code, length, 0, 0]);
        self.bytes.extend(operand);
    }

    /// Appends an instruction whose operand is a port. The port is in the `no` field of a second header.
    fn port(&mut self, code: u8, port: Port, otherwise: JumpTarget) {
        let [low, high] = port.0.to_ne_bytes();
        self.instruction(code, &[0, 0, low, high], otherwise);
    }

    fn jump(&mut self, to: JumpTarget) {
        self.instruction(JMP, &[], to);
    }

    /// Appends code that continues if the filter is true, and jumps to `otherwise` if it is false.
    fn test(&mut self, filter: &Filter, otherwise: JumpTarget) {
        match filter {
            Filter::All(tests) => tests.iter().for_each(|test| self.test(test, otherwise)),
            Filter::Any(tests) => match tests.split_last() {
                None => self.jump(otherwise),
                Some((last, others)) => {
                    let holds = self.new_target();
                    for test in others {
                        let next = self.new_target();
                        self.test(test, next);
                        self.jump(holds);
                        self.place(next);
                    }
                    self.test(last, otherwise);
                    self.place(holds);
                }
            },
            Filter::Not(test) => {
                let holds = self.new_target();
                self.test(test, holds);
                self.jump(otherwise);
                self.place(holds);
            }
            Filter::Port(end, range) => {
                let (at_least, at_most) = match end {
                    End::Local => (S_GE, S_LE),
                    End::Remote => (D_GE, D_LE),
                };
                // Omit a bound that is true for every port, because the kernel would test it for each socket.
                if range.first() > Port(0) {
                    self.port(at_least, range.first(), otherwise);
                }
                if range.last() < Port(u16::MAX) {
                    self.port(at_most, range.last(), otherwise);
                }
            }
            Filter::Addr(end, prefix) => self.addr(*end, *prefix, otherwise),
            // `judged_by_kernel` has removed these tests.
            Filter::Interface(_)
            | Filter::Mark { .. }
            | Filter::Direction(_)
            | Filter::ExpiresUnder(_)
            | Filter::FinWait2 => {}
        }
    }

    fn addr(&mut self, end: End, prefix: Prefix, otherwise: JumpTarget) {
        let code = match end {
            End::Local => S_COND,
            End::Remote => D_COND,
        };
        let mut operand = vec![0, prefix.length(), 0, 0];
        operand.extend(ANY_PORT.to_ne_bytes());
        match prefix.addr() {
            IpAddr::V4(v4) => {
                operand[0] = AF_INET;
                operand.extend(v4.octets());
            }
            IpAddr::V6(v6) => {
                operand[0] = AF_INET6;
                operand.extend(v6.octets());
            }
        }
        self.instruction(code, &operand, otherwise);
    }

    fn finish(mut self) -> Option<Vec<u8>> {
        let end = self.bytes.len();
        if end > LONGEST {
            return None;
        }
        for (at, target) in self.jumps {
            let position = if target == REJECT { end + 4 } else { self.targets[target]? };
            let no = u16::try_from(position - at).ok()?;
            self.bytes[at + 2..at + 4].copy_from_slice(&no.to_ne_bytes());
        }
        Some(self.bytes)
    }
}

/// Runs a program as the kernel does (`inet_diag_bc_run`), for tests.
#[cfg(test)]
pub(crate) fn run(program: &[u8], row: &crate::model::row::Row) -> bool {
    use crate::model::socket::Family;
    let tuple = &row.bucket.tuple;
    let entry_v6 = tuple.family != Family::Ipv4;
    let mut at = 0;
    while at < program.len() {
        let (code, yes) = (program[at], usize::from(program[at + 1]));
        let no = usize::from(u16::from_ne_bytes([program[at + 2], program[at + 3]]));
        let operand = || u16::from_ne_bytes([program[at + 6], program[at + 7]]);
        let host = |port: Port, bits: u128| {
            let (family, length) = (program[at + 4], u32::from(program[at + 5]));
            let want = i32::from_ne_bytes([program[at + 8], program[at + 9], program[at + 10], program[at + 11]]);
            let top = |bits: u128, width: u32| if length == 0 { 0 } else { (bits << (128 - width)) >> (128 - length) };
            let family_fits = match family {
                AF_INET => !entry_v6 || bits >> 32 == 0xffff,
                _ => entry_v6,
            };
            let bytes = &program[at + 12..at + yes];
            let width = u32::try_from(bytes.len() * 8).expect("short");
            let wanted = bytes.iter().fold(0_u128, |all, &byte| all << 8 | u128::from(byte));
            (want == -1 || want == i32::from(port.0)) && family_fits && top(bits, width) == top(wanted, width)
        };
        let holds = match code {
            JMP => false,
            S_GE => tuple.local_port().0 >= operand(),
            S_LE => tuple.local_port().0 <= operand(),
            D_GE => tuple.remote_port().0 >= operand(),
            D_LE => tuple.remote_port().0 <= operand(),
            S_COND => host(tuple.local_port(), tuple.local_bits()),
            D_COND => host(tuple.remote_port(), tuple.remote_bits()),
            other => panic!("instruction {other}"),
        };
        at += if holds { yes } else { no };
    }
    at == program.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::parser::{self, tests::expression};
    use crate::model::facts::tests::facts;
    use crate::model::row::Row;
    use crate::model::row::tests::row;
    use proptest::prelude::*;

    fn parse(text: &str) -> Filter {
        parser::parse(text, &facts()).unwrap_or_else(|error| panic!("{error}")).filter
    }

    /// Checks what the kernel's `valid_cc` and `inet_diag_bc_audit` check: every jump goes forward to an instruction,
    /// to the end, or to 4 bytes after it.
    fn audit(program: &[u8]) {
        let mut starts = vec![];
        let mut at = 0;
        while at < program.len() {
            starts.push(at);
            assert!(program[at + 1] >= 4 && program[at + 1].is_multiple_of(4));
            at += usize::from(program[at + 1]);
        }
        assert_eq!(at, program.len());
        for &start in &starts {
            let target = start + usize::from(u16::from_ne_bytes([program[start + 2], program[start + 3]]));
            assert!(target > start && (target >= program.len() || starts.contains(&target)));
            assert!(target <= program.len() + 4 && target.is_multiple_of(4));
        }
    }

    #[test]
    fn the_program_for_autobound_sockets_is_one_instruction_that_accepts_or_rejects() {
        let program = autobound().expect("a program");
        assert_eq!(program, [&[6, 4][..], &8_u16.to_ne_bytes()].concat());
        audit(&program);
    }

    #[test]
    fn tests_that_the_kernel_cannot_evaluate_are_left_out_and_so_exclude_no_row() {
        for (text, judged) in [
            ("sport = 80 and expires < 5s", "sport = 80"),
            ("sport = 80 or expires < 5s", "sport >= 0"),
            ("not (sport = 80 and expires < 5s)", "sport >= 0"),
            ("not (sport = 80 or expires < 5s)", "not sport = 80"),
            ("direction = inbound", "sport >= 0"),
            (
                "(sport = 80 or dport = 80) and (dst 10.0.0.0/8 or mapped) and not direction = unknown",
                "(sport = 80 or dport = 80) and (dst 10.0.0.0/8 or src [::ffff:0.0.0.0]/96)",
            ),
        ] {
            assert_eq!(judged_by_kernel(&parse(text)).to_string(), judged, "{text}");
        }
        assert_eq!(compile(&parse("expires < 5s")), None);
        assert_eq!(left_over(&parse("sport = 80 and expires < 5s")).to_string(), "expires < 5s");
        assert_eq!(left_over(&parse("sport = 80 or dport = 80")), Filter::TRUE);
    }

    #[test]
    fn a_listener_passes_every_program() {
        let program = compile(&parse("sport = 80 and dst 10.0.0.1")).expect("a program");
        assert!(run(&program, &row("127.0.0.1", 9, "0.0.0.0", 0)));
        assert!(!run(&program, &row("127.0.0.1", 9, "10.0.0.1", 1)));
    }

    fn any_row() -> impl Strategy<Value = Row> {
        // A small set of values, so that filters often match.
        let addr = prop_oneof![Just("10.0.0.1"), Just("127.0.0.1"), Just("192.168.1.9")];
        let port = prop_oneof![1_u16..=1000, 32760_u16..=32780, 49140_u16..=65535];
        (0..3, addr.clone(), port.clone(), addr, port).prop_map(|(kind, local, local_port, remote, remote_port)| {
            let form = |addr: &str| match kind {
                0 => addr.to_owned(),
                1 => format!("::ffff:{addr}"),
                _ => format!("2001:db8::{addr}"),
            };
            row(&form(local), local_port, &form(remote), remote_port)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn the_kernels_part_accepts_every_row_that_the_whole_filter_accepts(text in expression(), row in any_row()) {
            let filter = parse(&text);
            let judged = judged_by_kernel(&filter);
            prop_assert!(!filter.accepts(&row) || judged.accepts(&row));
            if let Some(program) = compile(&filter) {
                audit(&program);
                prop_assert_eq!(run(&program, &row), judged.accepts(&row), "{}", judged);
            }
        }
    }
}
