//! Filter expressions on the real kernel. In a live run, the kernel evaluates a part of the filter. In a replay, only twtool evaluates
//! the filter. A random expression must select the same rows in both, and in ss, if ss has the tests of the expression. Each form of
//! expression also has an expected result that was written by hand.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use caps::Capability;

use crate::support::limits::drop_capability;
use crate::support::random::Random;
use crate::support::twtool::{Run, command, twtool};
use crate::support::varied::{BUCKETS, Varied, letters};
use crate::support::{kernel, netns, not_checked, services, suite};

suite! {
    pure: [],
    netns: [
        random_expressions_select_the_same_rows_in_the_kernel_in_twtool_and_in_ss,
        random_expressions_that_ss_does_not_have_select_the_same_rows_in_the_kernel_and_in_twtool,
        every_form_selects_the_expected_rows,
        flags_and_an_expression_must_both_hold,
        an_expression_may_be_one_argument_or_many,
        mixing_and_with_or_gives_a_warning,
        a_mistake_is_shown_with_a_caret_under_its_word,
        long_expressions_are_answered_and_deep_ones_refused,
        the_part_that_the_kernel_evaluates_is_explained,
        an_unreported_mark_is_not_treated_as_no_mark,
        a_recording_made_with_a_filter_supports_every_filter,
    ],
}

const COLUMNS: [&str; 6] = ["list", "-o", "csv", "--no-header", "--columns", "local,remote"];

/// The letters of the buckets (see support/varied.rs) that `twtool list` prints with these additional arguments.
#[track_caller]
fn selected(more: &[&str]) -> String {
    let run = twtool(COLUMNS.iter().chain(more)).code(0);
    letters(run.stdout.lines().map(|line| line.split_once(',').expect("two columns")))
}

fn all() -> String {
    BUCKETS.iter().map(|bucket| bucket.0).collect()
}

// Random expressions

/// The number of expressions in a run of the test; smaller on a slow machine.
fn count() -> usize {
    1000 / kernel::slowness() as usize
}

/// How long the buckets of one `Varied::make` (one *population*) are used: half of their lifetime.
const FRESH: Duration = Duration::from_secs(30);

/// Makes random expressions about [`BUCKETS`].
struct Generator {
    random: Random,
    /// Whether to use only tests that ss also has, and evaluates as the kernel does.
    for_ss: bool,
    services: Vec<(String, u16)>,
}

impl Generator {
    fn new(seed: u64, for_ss: bool) -> Self {
        let services = services::tcp().into_iter().filter(|s| [22, 80, 443, 5432, 8080].contains(&s.port));
        Self { random: Random::new(seed), for_ss, services: services.map(|s| (s.name, s.port)).collect() }
    }

    fn list(&mut self, depth: u64, positive: bool) -> String {
        let mut text = self.test(depth, positive);
        for _ in 0..self.random.below(3) {
            let joint = *self.random.of(&["and", "or", "&", "|", "&&", "||", "and", "or", ""]);
            text = format!("{text} {joint} {}", self.test(depth, positive));
        }
        text
    }

    fn test(&mut self, depth: u64, positive: bool) -> String {
        match self.random.below(10) {
            0 | 1 => {
                let not = *self.random.of(&["not", "!"]);
                format!("{not} {}", self.test(depth, !positive))
            }
            2..=4 if depth > 0 => format!("( {} )", self.list(depth - 1, positive)),
            _ => self.primary(positive),
        }
    }

    fn primary(&mut self, positive: bool) -> String {
        match self.random.below(12) {
            0..=4 => {
                let end = *self.random.of(&["sport", "dport"]);
                let compare = *self.random.of(&[
                    "=", "==", "!=", "<", "<=", ">", ">=", "eq", "ne", "neq", "lt", "le", "leq", "gt", "ge", "geq", "",
                ]);
                format!("{end} {compare} {}{}", self.random.of(&[":", ""]), self.port())
            }
            5..=9 => {
                let (end, compare) = (*self.random.of(&["src", "dst"]), *self.random.of(&["", "=", "=="]));
                format!("{end} {compare} {}", self.host())
            }
            10 if !self.for_ss => self.beyond_ss(),
            10 => {
                let compare = *self.random.of(&["", "=", "!="]);
                match self.random.below(2) {
                    0 => format!("dev {compare} {}", self.random.of(&["lo", "1", "0"])),
                    _ => format!(
                        "fwmark {compare} {}",
                        self.random.of(&["0x13", "19", "1", "0", "0x3/0xf", "1/1", "0x10/0x12"])
                    ),
                }
            }
            // Inside of a `not`, the result of ss differs from the result of twtool; see `beyond_ss`.
            _ if positive => "autobound".to_owned(),
            _ => format!("sport = :{}", self.port()),
        }
    }

    /// A port of a bucket, a port next to it, a limit of a port class or of the ephemeral range, or the name of a service.
    fn port(&mut self) -> String {
        if !self.services.is_empty() && self.random.once_in(6) {
            return self.random.of(&self.services).0.clone();
        }
        let (_, local, remote) = *self.random.of(&BUCKETS);
        let end = *self.random.of(&[local, remote]);
        let port: u16 = end.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).expect("a port");
        let port = match self.random.below(8) {
            0 => port.saturating_sub(1),
            1 => port.saturating_add(1),
            2 => *self.random.of(&[0, 1, 1023, 1024, 32767, 32768, 49151, 49152, 60999, 61000, 65535]),
            _ => port,
        };
        port.to_string()
    }

    /// An address of a bucket with or without a port, a prefix, or a port alone.
    ///
    /// ss evaluates the expression again on the rows that the kernel returned. There it compares the first bits of addresses without
    /// regard to their family (`inet_addr_match` in lib/utils.c of iproute2): for ss, 127.0.0.1 is in ::/0, and ::1 is in 0.0.0.0. So ss
    /// gets only prefixes with which no address of the other family begins.
    fn host(&mut self) -> String {
        let (_, local, remote) = *self.random.of(&BUCKETS);
        let (addr, _) = self.random.of(&[local, remote]).rsplit_once(':').expect("an end");
        let bare = addr.trim_matches(['[', ']']);
        let (v6, shortest) = (addr.starts_with('['), if self.for_ss { 8 } else { 0 });
        let length = shortest + self.random.below(if v6 { 129 } else { 33 } - shortest);
        match self.random.below(8) {
            0 => format!("{}:{}", self.random.of(&["", "*"]), self.port()),
            1 if !self.for_ss => {
                (*self.random.of(&["0.0.0.0/0", "::/0", "0.0.0.0", "[::]/1", "128.0.0.0/1"])).to_owned()
            }
            1 => (*self.random.of(&["*", "::ffff:0.0.0.0/96", ":*", "192.0.2.0/24", "2001:db8::/32"])).to_owned(),
            2 | 3 => format!("{addr}:{}", self.port()),
            // ss does not accept a prefix in brackets, or a whole IPv6 address without brackets.
            4 | 5 => format!("{bare}/{length}"),
            6 if !v6 => format!("{bare}/{length}:{}", self.port()),
            // In this syntax, a mapped address is an IPv6 address.
            7 if !v6 => format!("::ffff:{bare}/{}", 96 + length),
            _ => addr.to_owned(),
        }
    }

    /// A test that ss does not have, or evaluates by other rules than the kernel.
    fn beyond_ss(&mut self) -> String {
        let class = *self.random.of(&["well-known", "registered", "dynamic"]);
        let tests = [
            // For the kernel, `autobound` is true for every bucket. So in ss, `not autobound` selects no row, although ss itself
            // would compare the port with the ephemeral range.
            "autobound".to_owned(),
            "mapped".to_owned(),
            format!("{} {class}", self.random.of(&["class =", "class !=", "remote-class =", "local-class"])),
            format!("direction = {}", self.random.of(&["inbound", "outbound", "unknown"])),
            // These limits are far from the remaining times, so the time of the run does not matter.
            format!("expires {}", self.random.of(&["< 1ms", "> 1ms", "<= 2m", "> 2m"])),
            format!("sport {} {}-65535", self.random.of(&["=", "!="]), self.random.below(65536)),
            format!("dst != {}", self.host()),
            format!("src {}", self.host()),
        ];
        self.random.of(&tests).clone()
    }
}

fn random_expressions_select_the_same_rows_in_the_kernel_in_twtool_and_in_ss() {
    let with_ss = Command::new("ss").arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !with_ss {
        not_checked("filters against ss: ss is not installed");
    }
    differential(true, with_ss);
}

fn random_expressions_that_ss_does_not_have_select_the_same_rows_in_the_kernel_and_in_twtool() {
    differential(false, false);
}

/// Makes random expressions, and compares all implementations on each.
fn differential(for_ss: bool, with_ss: bool) {
    kernel::needs(kernel::lists_marks_of_buckets(), "marks of buckets, which some expressions ask for");
    let seed = Random::seed();
    let mut generator = Generator::new(seed, for_ss);
    let count = count();
    let expressions: Vec<String> = (0..count).map(|_| generator.list(3, true)).collect();
    let asked = Asked::default();
    while asked.next.load(Ordering::Relaxed) < count {
        netns::on_thread_in_new_namespace(|| compare(&expressions, &asked, with_ss));
    }
    let (selective, failures) = (asked.selective.into_inner(), asked.failures.into_inner().expect("no panic held it"));
    let failed = failures.len();
    assert!(failed == 0, "TWTOOL_SEED={seed}: {failed} of {count} differ:\n{}", failures.join("\n"));
    assert!(selective * 3 > count, "only {selective} of {count} expressions tell rows apart");
}

/// How far the comparison has come.
#[derive(Default)]
struct Asked {
    next: AtomicUsize,
    /// Expressions that select some rows and not others.
    selective: AtomicUsize,
    failures: Mutex<Vec<String>>,
}

/// Compares the answers of the kernel, the replay and ss for the remaining expressions, until one population of buckets is too old.
fn compare(expressions: &[String], asked: &Asked, with_ss: bool) {
    let varied = Varied::make();
    let began = Instant::now();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("recording").into_os_string().into_string().expect("UTF-8");
    twtool(["list", "--record", &file]).ok();
    let work = || {
        while began.elapsed() < FRESH
            && let Some(expression) = expressions.get(asked.next.fetch_add(1, Ordering::Relaxed))
        {
            // The recording was made without a filter, so in the replay twtool evaluates the whole filter.
            let (live, replayed) = (selected(&[expression]), selected(&["--replay", &file, expression]));
            let ss = if with_ss { in_ss(expression) } else { live.clone() };
            if live != replayed || live != ss {
                let failure = format!("{expression}\n  kernel: {live}\n  replay: {replayed}\n  ss:     {ss}");
                asked.failures.lock().expect("no panic holds it").push(failure);
            }
            let is_selective = !live.is_empty() && live.len() < BUCKETS.len();
            asked.selective.fetch_add(usize::from(is_selective), Ordering::Relaxed);
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    varied.end();
}

/// The letters of the buckets that ss selects.
fn in_ss(expression: &str) -> String {
    let run = Run::of(Command::new("ss").args(["-tanH", "state", "time-wait", expression]).stdin(Stdio::null()));
    let run = run.ok();
    let ends: Vec<[String; 2]> = run
        .stdout
        .lines()
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [_, _, local, remote, ..] = words[..] else { panic!("a line of another form: {line}{run}") };
            // ss prints a mapped address in brackets, and the interface of a bound socket after the address.
            [local, remote].map(|end| {
                let (addr, port) = end.rsplit_once(':').expect("an end");
                let addr = addr.split_once('%').map_or(addr, |(addr, _)| addr);
                match addr.strip_prefix("[::ffff:") {
                    Some(mapped) => format!("{}:{port}", mapped.trim_end_matches(']')),
                    None => format!("{addr}:{port}"),
                }
            })
        })
        .collect();
    letters(ends.iter().map(|[local, remote]| (local.as_str(), remote.as_str())))
}

// Expressions with an expected result

/// Every form of an expression, and the letters of the rows that it selects. FIN_WAIT_2 rows match only if the expression tests
/// the state.
#[rustfmt::skip]
const FORMS: &[(&str, &str)] = &[
    // Ports, with every comparison, sign and word.
    ("sport = :443", "abcq"), ("sport == :443", "abcq"), ("sport eq :443", "abcq"), ("sport :443", "abcq"), ("sport 443", "abcq"),
    ("sport != :443", "defghijklmnoprst"), ("sport ne 443", "defghijklmnoprst"), ("sport neq 443", "defghijklmnoprst"),
    ("dport < :1024", "dghjt"), ("dport lt 1024", "dghjt"), ("dport <= :1024", "adghjt"), ("dport le 1024", "adghjt"), ("dport leq 1024", "adghjt"),
    ("dport > :60006", "is"), ("dport gt 60006", "is"), ("dport >= :60006", "fis"), ("dport ge 60006", "fis"), ("dport geq 60006", "fis"),
    ("sport < 0", ""), ("sport <= 0", ""), ("sport >= 0", "abcdefghijklmnopqrst"), ("sport > 65535", ""), ("sport >= 65535", "jt"), ("sport = *", "abcdefghijklmnopqrst"),
    ("sport=:443", "abcq"), ("sport=443", "abcq"), ("sport>=:65535", "jt"), ("sport = :8080-8081", "kms"), ("sport != 1-60000", "jpt"),
    ("dport = 0", ""),
    // Addresses: plain, prefixes, with a port, a port alone, IPv6, mapped.
    ("src 127.0.0.1", "abcghjl"), ("src = 127.0.0.1", "abcghjl"), ("src == 127.0.0.1", "abcghjl"), ("src != 127.0.0.1", "defikmnopqrst"),
    ("src ne 127.0.0.1", "defikmnopqrst"), ("src eq 127.0.0.1", "abcghjl"), ("src=127.0.0.1", "abcghjl"),
    ("src 10.0.0.0/8", "defk"), ("src 10.1.0.0/16", "efk"), ("src 10.9.9.9/8", "defk"), ("src 127.0.0.2/31", "i"), ("src 10.1.2.3/32", "efk"),
    ("src 0.0.0.0/0", "abcdefghijkl"), ("src 10.1.2.3:22", "ef"), ("src 10.1.2.3:8080", "k"), ("src 10.0.0.0/8:8080", "k"), ("src 10.1.2.3:1", ""),
    ("src :8080", "kms"), ("src *:8080", "kms"), ("src *", "abcdefghijklmnopqrst"), ("src *:*", "abcdefghijklmnopqrst"), ("src 10.1.2.3:*", "efk"),
    ("dst 192.168.1.9", "f"), ("dst 192.168.0.0/16", "f"), ("dst :443", "dh"), ("dst 127.0.0.1:443", "dh"),
    ("src [::1]", "nqrs"), ("src ::1", "nqrs"), ("src [::1]:443", "q"), ("src 2001:db8::/32", "mopt"), ("src [2001:db8::]/32", "mopt"), ("src [2001:db8::]/48:8080", "m"),
    ("dst [2001:db8::1]", "ps"), ("dst [2001:db8:1::2]:8080", "n"), ("dst != [::1]", "abcdefghijklnopst"),
    ("src ::/0", "kmnopqrst"), ("src ::ffff:10.1.2.3", "k"), ("src ::ffff:10.0.0.0/104", "k"), ("src [::ffff:10.1.2.3]:8080", "k"), ("mapped", "k"), ("not mapped and src 10.0.0.0/8", "def"),
    ("src 0/0", "abcdefghijkl"), ("src 10/8", "defk"), ("src any", "abcdefghijklmnopqrst"), ("src all:8080", "kms"), ("src default", "abcdefghijklmnopqrst"),
    ("src inet:any", "abcdefghijl"), ("src inet6:*", "kmnopqrst"), ("src inet::8080", ""), ("src inet6::8080", "kms"), ("src inet:10.0.0.0/8", "def"),
    ("src 203.0.113.1", ""), ("src [::1]:8080-8090", "s"),
    // Interfaces and marks.
    ("dev = lo", "gr"), ("dev lo", "gr"), ("dev == lo", "gr"), ("dev != lo", "abcdefhijklmnopqst"), ("dev = 1", "gr"), ("dev = 0", "abcdefhijklmnopqst"), ("dev = 77", ""),
    ("fwmark = 0x13", "ef"), ("fwmark 0x13", "ef"), ("fwmark = 19", "ef"), ("fwmark = 1", "hs"), ("fwmark = 1/1", "efhs"), ("fwmark = 0x3/0xf", "ef"), ("fwmark = 0X13/0xFF", "ef"),
    ("fwmark != 0", "efhs"), ("fwmark = 0", "abcdgijklmnopqrt"), ("fwmark = 0/0", "abcdefghijklmnopqrst"), ("fwmark = 0x13/0x3", ""),
    // The ephemeral range is 32768-60999.
    ("autobound", "dhilnpr"), ("not autobound", "abcefgjkmoqst"), ("autobound and dport = :443", "dh"),
    // `and`, `or` and a missing operator have the same precedence, from left to right. `not` applies only to the next test.
    ("sport = :443 and dport = :1024", "a"), ("sport = :443 & dport = :1024", "a"), ("sport = :443 && dport = :1024", "a"), ("sport = :443 dport = :1024", "a"),
    ("sport = :22 or sport = :80", "efg"), ("sport = :22 | sport = :80", "efg"), ("sport = :22 || sport = :80", "efg"), ("sport=22||sport=80", "efg"),
    ("not sport < :50000", "jpt"), ("! sport < :50000", "jpt"), ("!sport<:50000", "jpt"), ("not not sport = :22", "ef"), ("!(sport=22 or sport ne 22)", ""),
    ("not sport = :443 and dport = :1024", ""), ("not ( sport = :443 and dport = :1024 ) and sport = :443", "bcq"),
    ("( sport = :22 )", "ef"), ("((sport = :22))", "ef"), (r"\( sport = :22 \)", "ef"), ("( sport = :443 or sport = :80 ) and ( dport < :2000 )", "ag"),
    ("sport = :443 or sport = :80 and dport = :1023", "g"), ("sport = :443 or ( sport = :80 and dport = :1023 )", "abcgq"),
    ("sport = :80 or sport = :443 dport = :1024", "a"), ("dport = :1024 and sport = :443 or sport = :80", "ag"),
    ("", "abcdefghijklmnopqrst"), ("  ", "abcdefghijklmnopqrst"),
    // Tests that ss does not have.
    ("expires < 10s", ""), ("expires <= 60s", "abcdefghijklmnopqrst"), ("expires > 500ms", "abcdefghijklmnopqrst"), ("expires >= 1s and sport = :22", "ef"), ("expires = 61s", ""), ("expires != 61s and sport = :22", "ef"), ("expires lt 1m and expires > 10s and sport = 22", "ef"),
    ("class = well-known", "abcefgq"), ("local-class = registered", "dhklmnors"), ("class = dynamic", "ijpt"), ("class dynamic", "ijpt"), ("class != dynamic", "abcdefghklmnoqrs"),
    ("remote-class = well-known", "dghjt"), ("remote-class = dynamic", "cfis"), ("remote-class != registered", "cdfghijst"),
    ("direction = inbound", "abcefkmoqs"), ("direction = outbound", "dhilnpr"), ("direction = unknown", "gjt"), ("direction != inbound", "dghijlnprt"), ("direction unknown", "gjt"),
    ("state = time-wait", "abcdefghijklmnopqrst"), ("state = fin-wait-2", "uv"), ("state != time-wait", "uv"), ("state fin-wait-2 and sport = :443", "u"), ("state = fin-wait-2 or sport = :22", "efuv"),
    ("not state = fin-wait-2 and sport = :443", "abcq"),
];

/// Forms with the name of a service. Each is tested only if /etc/services has this name with this port.
#[rustfmt::skip]
const NAMED: &[(&str, u16, &str, &str)] = &[
    ("https", 443, "sport = :https", "abcq"), ("https", 443, "sport = https", "abcq"), ("https", 443, "sport > https", "dhijklmnoprst"),
    ("https", 443, "src 127.0.0.1:https", "abc"), ("https", 443, "dst *:https", "dh"), ("https", 443, "dst :https", "dh"),
    ("https", 443, "service = https", "abcdhq"), ("https", 443, "service https", "abcdhq"), ("https", 443, "service != https", "efgijklmnoprst"),
    ("ssh", 22, "src 10.1.2.3:ssh", "ef"), ("postgresql", 5432, "src [2001:db8::1]:postgresql", "o"), ("postgresql", 5432, "service = postgresql", "op"),
];

fn every_form_selects_the_expected_rows() {
    let known: Vec<_> = services::tcp();
    let mut forms = FORMS.to_vec();
    if !kernel::lists_marks_of_buckets() {
        not_checked("forms with fwmark: this kernel has no marks of buckets");
        forms.retain(|(expression, _)| !expression.contains("fwmark"));
    }
    for &(name, port, expression, expected) in NAMED {
        if known.iter().any(|service| service.name == name && service.port == port) {
            forms.push((expression, expected));
        } else {
            not_checked(format!("'{expression}': /etc/services has no {name} {port}/tcp"));
        }
    }
    let (mut left, mut wrong) = (forms.iter(), vec![]);
    while !left.as_slice().is_empty() {
        // A slow machine needs more than one population.
        netns::on_thread_in_new_namespace(|| {
            let varied = Varied::make();
            let began = Instant::now();
            while began.elapsed() < FRESH
                && let Some(&(expression, expected)) = left.next()
            {
                let found = selected(&[expression]);
                if found != expected {
                    wrong.push(format!("{expression}\n  expected {expected}\n  found    {found}"));
                }
            }
            varied.end();
        });
    }
    assert!(wrong.is_empty(), "{} of {} forms:\n{}", wrong.len(), forms.len(), wrong.join("\n"));
}

fn flags_and_an_expression_must_both_hold() {
    let varied = Varied::make();
    for (flags, expression, expected) in [
        ("--local-port 443", "dport >= 40000", "bcq"),
        ("--local-port 443 --local-port 22", "src 10.0.0.0/8 or src [::1]", "efq"),
        ("--local 127.0.0.0/8", "sport = :443 or sport = :22", "abc"),
        ("--remote 127.0.0.1", "not sport = :443", "dehjkl"),
        ("-6", "sport = :8080", "ms"),
        ("-4", "sport = :8080", "k"),
        ("--class dynamic", "dport = :1", "jt"),
        ("--direction outbound", "class = registered", "dhlnr"),
        ("--expires-under 2m", "sport = :22", "ef"),
        ("--expires-under 1s", "sport = :22", ""),
        ("--fin-wait-2", "sport = :443", "abcqu"),
        ("--fin-wait-2 --local-port 443", "state = fin-wait-2", "u"),
        ("--port 443 -4", "state != time-wait or dport = :443", "dhu"),
    ] {
        let args: Vec<&str> = flags.split(' ').chain([expression]).collect();
        assert_eq!(selected(&args), expected, "{flags} '{expression}'");
    }
    let count = twtool(["list", "--count", "sport = :443", "-4"]).ok();
    assert_eq!(count.stdout, "3\n");
    twtool(["list", "-q", "sport = :443"]).ok();
    twtool(["list", "-q", "sport = :444"]).code(1);
    assert_eq!(twtool(["list", "--json", "sport = :443", "--limit", "2"]).ok().records("sockets").len(), 2);
    varied.end();
}

fn an_expression_may_be_one_argument_or_many() {
    let varied = Varied::make();
    assert_eq!(selected(&["sport", "=", ":443", "and", "(", "dport", "<", "2000", ")"]), "a");
    assert_eq!(selected(&["sport = :443", "dport < 2000"]), "a");
    assert_eq!(selected(&["not", "sport", "<", ":50000", "--local", "127.0.0.1"]), "j");
    assert_eq!(selected(&["!", "sport < :50000"]), "jpt");
    varied.end();
}

fn mixing_and_with_or_gives_a_warning() {
    let varied = Varied::make();
    for (expression, read_as) in [
        ("sport = 80 or sport = 443 and dport = 1024", "(sport = 80 or sport = 443) and dport = 1024"),
        ("sport = 80 or sport = 443 dport = 1024", "(sport = 80 or sport = 443) and dport = 1024"),
        ("sport = 80 and dport = 1023 or sport = 443", "(sport = 80 and dport = 1023) or sport = 443"),
    ] {
        let run = twtool(["list", "--json", expression]).code(0);
        let warnings = run.json()["warnings"].clone();
        let warning = warnings[0].as_str().unwrap_or_else(|| panic!("no warning in the document{run}"));
        assert!(warning.contains("left to right") && warning.contains(read_as), "{run}");
        assert_eq!(run.stderr, format!("warning: {warning}\n"), "printed once on stderr, too{run}");
        for args in [["-o", "ndjson"].as_slice(), &["-o", "csv"], &[], &["--count"], &["-q"], &["--explain-filter"]] {
            let run = twtool(["list", expression].iter().chain(args)).code(0);
            assert_eq!(run.stderr, format!("warning: {warning}\n"), "{run}");
        }
        // The expression in the warning has the same meaning, and causes no warning.
        assert_eq!(selected(&[read_as]), selected(&[expression]));
        twtool(["list", read_as]).ok();
    }
    for clear in [
        "sport = 80 or (sport = 443 and dport = 1024)",
        "sport = 80 or sport = 443 or dport = 1",
        "not sport = 1 not sport = 2",
    ] {
        let run = twtool(["list", "--json", clear]).ok();
        assert_eq!(run.json()["warnings"], serde_json::json!([]));
    }
    varied.end();
}

/// Wrong expressions. Each has the word that the carets mark, and a text that the first line of the message contains.
const MISTAKES: &[(&str, &str, &str)] = &[
    ("sprt = :80", "sprt", "sport"),
    ("dst 10.0.0.0/8 and sport = httpz", "httpz", "/etc/services"),
    ("sport = :65536", ":65536", "65535"),
    ("sport = 8o", "8o", "8o"),
    ("sport > 80-90", "80-90", "range"),
    ("sport = 90-80", "90-80", "90"),
    ("sport = = 80", "=", "port"),
    ("dst 10.0.0.0/33", "10.0.0.0/33", "0-32"),
    ("dst [::1", "[::1", "address"),
    ("dst [::1]/129", "[::1]/129", "0-128"),
    ("dst example.org", "example.org", "address"),
    ("dst < 10.0.0.1", "<", "="),
    ("dev = eth9", "eth9", "lo"),
    // The ioctl() calls of netdevice(7) accept this name for lo.
    ("dev = lo:80", "lo:80", "lo"),
    ("fwmark = red", "red", "0x1"),
    ("fwmark > 1", ">", "="),
    ("fwmark = 0x1ffffffff", "0x1ffffffff", "32-bit"),
    ("autobound = 1", "=", "sport"),
    ("expires 10s", "10s", "comparison"),
    ("expires < 10", "10", "unit"),
    ("expires < -1s", "-1s", "a duration is not negative"),
    ("class = ephemeral", "ephemeral", "dynamic"),
    ("direction = in", "in", "inbound"),
    ("state = listen", "listen", "time-wait"),
    ("service = nosuchservice", "nosuchservice", "/etc/services"),
    ("( sport = 80", "(", "')'"),
    ("sport = 80 )", ")", "'('"),
    ("sport = 80 or or dport = 1", "or", "expected"),
    ("and sport = 80", "and", "expected"),
];

fn a_mistake_is_shown_with_a_caret_under_its_word() {
    for &(expression, word, names) in MISTAKES {
        for format in ["table", "json", "ndjson", "csv"] {
            let run = twtool(["list", "-o", format, expression]).refused("invalid filter");
            let lines: Vec<&str> = run.stderr.lines().collect();
            let carets = lines.iter().position(|line| !line.is_empty() && line.trim_matches([' ', '^']).is_empty());
            let carets = carets.unwrap_or_else(|| panic!("no carets{run}"));
            let (shown, marks) = (lines[carets - 1], lines[carets]);
            assert!(shown.ends_with(expression), "the expression stands above the carets{run}");
            let (first, end) = (marks.find('^').expect("a caret"), marks.len());
            assert_eq!(shown.get(first..end), Some(word), "the carets stand under the word{run}");
            // If a word occurs twice in a row (`or or`, `= =`), the second one is the mistake.
            let doubled = format!("{word} {word}");
            assert!(!shown[first..].starts_with(&doubled), "the second word is the mistake{run}");
            assert!(lines[0].contains(names), "expected {names:?} in the first line{run}");
        }
    }
    for unfinished in ["sport =", "sport = 80 and", "not", "dst", "expires <"] {
        let run = twtool(["list", unfinished]).refused("the end");
        let at = run.stderr.lines().find_map(|line| line.trim_end().strip_suffix('^')).map(str::len);
        assert_eq!(at, Some(2 + unfinished.len()), "the caret stands after the end{run}");
    }
    twtool(["list", "-q", "sprt"]).refused("sprt");
    twtool(["list", "--count", "sprt"]).refused("sprt");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("recording");
    twtool(["list".as_ref(), "--record".as_ref(), file.as_os_str(), "sprt".as_ref()]).refused("sprt");
    assert!(!file.exists(), "a wrong filter makes no recording");
}

fn long_expressions_are_answered_and_deep_ones_refused() {
    let varied = Varied::make();
    let ports: Vec<String> = (20..3000).map(|port| format!("sport = {port}")).collect();
    // The kernel does not accept a filter of this length, so twtool evaluates the filter.
    assert_eq!(selected(&[&ports.join(" or ")]), "abcefgq");
    assert_eq!(selected(&[&ports.join(" and ")]), "");
    let deep = ["(".repeat(5000) + "sport = 1" + &")".repeat(5000), "not ".repeat(20_000) + "sport = 1"];
    let alternating = "sport=1 or sport=2 and ".repeat(3000) + "sport=3";
    for expression in deep.iter().chain([&alternating]) {
        for args in [["--count"].as_slice(), &["--explain-filter"]] {
            let run = twtool(["list", expression].iter().chain(args)).code(2);
            assert!(run.stdout.is_empty() && run.stderr.contains("than 100"), "{:.300}", run.stderr);
        }
    }
    varied.end();
}

fn the_part_that_the_kernel_evaluates_is_explained() {
    let lines = |args: &[&str]| -> Vec<String> {
        twtool(["list", "--explain-filter"].iter().chain(args)).ok().stdout.lines().map(str::to_owned).collect()
    };
    for (expression, by_kernel, here) in [
        ("sport = :443 and expires < 5s", "sport = 443", "expires < 5s"),
        ("sport = :443 and dst 10.0.0.0/8", "sport = 443 and dst 10.0.0.0/8", "nothing"),
        ("direction = inbound", "nothing", "direction = inbound"),
        ("sport = :443 or direction = inbound", "nothing", "sport = 443 or direction = inbound"),
        ("not ( sport = :443 or direction = inbound )", "not sport = 443", "not (sport = 443 or direction = inbound)"),
        ("dst [2001:db8::]/32 and fwmark = 1", "dst [2001:db8::]/32", "fwmark = 0x1/0xffffffff"),
    ] {
        let lines = lines(&[expression]);
        let has = |label: &str, text: &str| lines.iter().any(|line| line.starts_with(label) && line.contains(text));
        assert!(has("evaluated by the kernel:", by_kernel), "{expression}: {lines:?}");
        assert!(has("evaluated by twtool:", here), "{expression}: {lines:?}");
    }
    let flags = lines(&["--local-port", "443", "--expires-under", "5s"]);
    assert_eq!(flags, lines(&["sport = :443 and expires < 5s"]), "flags build the same tree");
    assert!(!lines(&[]).is_empty(), "a missing filter is explained, too");
}

fn an_unreported_mark_is_not_treated_as_no_mark() {
    let varied = Varied::make();
    drop_capability(Capability::CAP_NET_ADMIN);
    for expression in ["fwmark = 0x13", "fwmark != 0x13", "not fwmark = 0x13"] {
        for args in [["-o", "table"].as_slice(), &["--json"], &["-o", "ndjson"], &["-o", "csv"], &["--count"], &["-q"]]
        {
            twtool(["list", expression].iter().chain(args)).refused("fwmark").says("CAP_NET_ADMIN");
        }
    }
    // Some rows pass whatever their mark is. ndjson and csv contain these rows, and twtool reports that the answer is incomplete.
    // For -q, one row is enough.
    let partly = "fwmark = 0x13 or sport = :443";
    for args in [["-o", "table"].as_slice(), &["--json"], &["--count"]] {
        twtool(["list", partly].iter().chain(args)).refused("fwmark").says("CAP_NET_ADMIN");
    }
    for format in ["ndjson", "csv"] {
        twtool(["list", partly, "-o", format]).code(2).says("fwmark").says("CAP_NET_ADMIN");
    }
    twtool(["list", "-q", partly]).ok();
    // If no row depends on the mark, the answer is complete.
    assert_eq!(selected(&["sport = :443 or fwmark = 1 or not sport = :443"]), selected(&[]));
    assert_eq!(selected(&["fwmark = 0/0 and sport = :443"]), "abcq");
    assert_eq!(selected(&["sport = :1 and fwmark = 1"]), "");
    // Filters without the mark have an answer.
    assert_eq!(selected(&["sport = :443"]), "abcq");
    assert_eq!(selected(&["dev = lo"]), "gr");
    varied.end();
}

fn a_recording_made_with_a_filter_supports_every_filter() {
    let varied = Varied::make();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("recording").into_os_string().into_string().expect("UTF-8");
    assert_eq!(selected(&["--record", &file, "sport = :443"]), "abcq");
    varied.end();
    assert!(Path::new(&file).exists());
    assert_eq!(selected(&["--replay", &file]), all());
    assert_eq!(selected(&["--replay", &file, "sport = :22"]), "ef");
    assert_eq!(selected(&["--replay", &file, "dev = lo"]), "gr");
    if kernel::lists_marks_of_buckets() {
        assert_eq!(selected(&["--replay", &file, "dev = lo or fwmark = 1"]), "ghrs");
    } else {
        not_checked("a recording and fwmark: this kernel has no marks of buckets");
    }
    let bytes = |args: &[&str]| Run::of(&mut command(["list", "--replay", &file].iter().chain(args))).ok().stdout;
    assert_eq!(
        bytes(&["--json", "sport = :22"]),
        bytes(&["--json", "--local-port", "22"]),
        "a flag and an expression give the same bytes"
    );
}
