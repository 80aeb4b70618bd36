//! Tests of the parser, without a kernel: which rows an expression accepts, and the messages about mistakes.

use super::*;
use crate::model::facts::tests::facts;
use crate::model::row::Row;
use crate::model::row::tests::row;
use proptest::prelude::*;

fn accepts(text: &str, row: &Row) -> bool {
    parse(text, &facts()).unwrap_or_else(|error| panic!("{error}")).filter.accepts(row)
}

fn message(text: &str) -> String {
    parse(text, &facts()).expect_err(text).to_string()
}

#[test]
fn expressions_of_ss_select_the_expected_sockets() {
    let row = row("10.0.0.1", 80, "192.0.2.9", 40000);
    for (text, expected) in [
        ("", true),
        ("sport = :80", true),
        ("sport :80", true),
        ("sport = http", true),
        ("sport = :www", true),
        ("sport=80", true),
        ("sport != :80", false),
        ("sport ge 80 and sport le 80", true),
        ("sport > :80", false),
        ("sport gt 79", true),
        ("dport < :40000", false),
        ("dport <= :40000", true),
        ("dport > 65535", false),
        ("dport < 0", false),
        ("sport = *", true),
        ("src 10.0.0.1", true),
        ("src = 10.0.0.0/8", true),
        ("src 10.0.0.1:80", true),
        ("src 10.0.0.1:http", true),
        ("src 10.0.0.1:81", false),
        ("src :80", true),
        ("src *:80", true),
        ("dst *", true),
        ("dst != 192.0.2.0/24", false),
        ("src any:80", true),
        ("dst all", true),
        ("src 10/8", true),
        ("src 10.0/16:80", true),
        ("src 11/8", false),
        ("src 0/0", true),
        ("src inet:10.0.0.1:80", true),
        ("src inet::80", true),
        ("src inet6:any", false),
        ("dst inet6:*", false),
        ("dst ::/0", false),
        ("dst [::1]:80", false),
        ("not sport = :80", false),
        ("! sport = :80", false),
        ("!sport=:80 or dport=:40000", true),
        ("sport = :80 dport = :40000", true),
        ("sport = :80 dport = :1", false),
        ("sport = :80 && ( dport = :1 || dport = :40000 )", true),
        (r"\( sport = :80 \)", true),
    ] {
        assert_eq!(accepts(text, &row), expected, "{text}");
    }
    // An IPv4-mapped socket: an IPv6 socket with IPv4 on the wire.
    let mapped = self::row("::ffff:10.0.0.1", 80, "::ffff:192.0.2.9", 40_000);
    for (text, expected) in [("src inet:10.0.0.1", false), ("src inet6:any:80", true), ("src 10/8", true)] {
        assert_eq!(accepts(text, &mapped), expected, "{text}");
    }
}

#[test]
fn and_and_or_apply_from_left_to_right_and_mixing_them_gives_a_warning() {
    let row = row("10.0.0.1", 80, "192.0.2.9", 40000);
    // From left to right, this is (true or false) and false. If "and" had a higher precedence, the result would be true.
    let mixed = "sport = 80 or dport = 1 and dport = 2";
    assert!(!accepts(mixed, &row));
    let warnings = parse(mixed, &facts()).expect("a valid expression").warnings;
    assert!(warnings.len() == 1 && warnings[0].contains("left to right"), "{warnings:?}");
    let without_word = parse("sport = 80 or dport = 1 dport = 2", &facts()).expect("a valid expression");
    assert_eq!(without_word.warnings.len(), 1);
    let clear = parse("sport = 80 or (dport = 1 and dport = 2)", &facts()).expect("a valid expression");
    assert!(clear.warnings.is_empty() && clear.filter.accepts(&row));
}

#[test]
fn an_expression_can_test_more_than_addresses_and_ports() {
    let mut row = row("10.0.0.1", 40000, "192.0.2.9", 80);
    for (text, expected) in [
        ("expires < 10s", false),
        ("expires <= 10s", true),
        ("expires = 10s", true),
        ("expires != 10000ms", false),
        ("expires > 9.9995s", true),
        ("expires >= 10.0005s", false),
        ("expires = 10000500us", false),
        ("expires < 1ns", false),
        ("expires > 1500ns", true),
        ("expires < 2000000h", true),
        ("expires = 2000000h", false),
        ("expires > 2000000h", false),
        ("class = registered", true),
        ("local-class != registered", false),
        ("remote-class = well-known", true),
        ("direction = unknown", true),
        ("state = time-wait", true),
        ("state fin-wait-2", false),
        ("service = http", true),
        ("service != www", false),
        ("mapped", false),
        ("autobound", true),
        ("dev = lo", false),
        ("dev = 0", true),
        ("fwmark = 1", false),
    ] {
        assert_eq!(accepts(text, &row), expected, "{text}");
    }
    row.bucket.mark = Some(0x13);
    assert!(accepts("fwmark = 0x13", &row) && accepts("fwmark = 0x3/0xf", &row) && accepts("fwmark != 3", &row));
    row.bucket.interface = std::num::NonZeroU32::new(1);
    assert!(accepts("dev lo", &row) && accepts("dev = 1", &row));
}

#[test]
fn a_mistake_is_shown_with_a_caret_under_the_word_and_what_was_expected() {
    assert_eq!(
        message("dst 10.0.0.0/8 and sport = httpz"),
        format!(
            "invalid filter: 'httpz' is neither a port nor a TCP service of /etc/services; a port is {PORT_ARG_FORMS}\n  \
             dst 10.0.0.0/8 and sport = httpz\n  {:27}^^^^^",
            ""
        )
    );
    for (text, word, expected) in [
        ("sprt = :80", "'sprt'", "sport"),
        ("sport =", "the end", "a port"),
        ("sport = :65536", "'65536'", "0-65535"),
        ("sport < 80-90", "'80-90'", "range"),
        ("dst 10.0.0.0/33", "'/33'", "0-32"),
        ("dst 1.2.3", "'1.2.3'", "192.0.2.1"),
        ("dst fe80::1%nosuch", "'nosuch'", "lo"),
        ("dst > 10.0.0.1", "'>'", "= or !="),
        ("expires 10s", "'10s'", "comparison"),
        ("expires < 10", "'10'", "unit"),
        ("expires < -1s", "'-1s'", "not negative"),
        ("class = system", "'system'", "well-known"),
        ("direction = in", "'in'", "inbound"),
        ("state = listen", "'listen'", "time-wait"),
        ("service = nosuch", "'nosuch'", "/etc/services"),
        ("fwmark = red", "'red'", "0x1/0xff"),
        ("dev = nosuch", "'nosuch'", "lo"),
        ("( sport = 80", "')'", "the end"),
        ("sport = 80 )", "')'", "'('"),
        ("sport = 80 and", "the end", "a test"),
        ("and sport = 80", "'and'", "a test"),
        ("sport = 80 or or dport = 1", "'or'", "a test"),
        ("not", "the end", "a test"),
    ] {
        let message = message(text);
        let first = message.lines().next().unwrap_or_default();
        assert!(first.contains(word) && first.contains(expected) && message.ends_with('^'), "{text}: {message}");
    }
}

#[test]
fn a_mistake_is_shown_in_an_expression_of_any_length() {
    for length in [65_535, 65_536, 200_000] {
        let long = "a".repeat(length);
        assert!(message(&long).ends_with(&format!("\n  {}", "^".repeat(length))));
        let last = message(&format!("{}nosuch", "sport = 1 or ".repeat(length / 12)));
        assert!(last.ends_with(" ^^^^^^"));
    }
    // A wide character needs two carets, and each hidden character becomes one blank.
    let wide = message("dev 中文 and\u{202e}\n nosuch");
    assert!(wide.ends_with("\n  dev 中文 and   nosuch\n      ^^^^"), "{wide}");
}

#[test]
fn an_expression_that_is_nested_too_deeply_is_refused() {
    let deep = |n: usize| format!("{}sport = 80{}", "(".repeat(n), ")".repeat(n));
    assert!(parse(&deep(100), &facts()).is_ok());
    assert!(message(&deep(101)).contains("deeper than 100 levels"));
    assert!(parse(&format!("{}mapped", "not ".repeat(100)), &facts()).is_ok());
    assert!(message(&format!("{}mapped", "not ".repeat(101))).contains("deeper than 100 levels"));
    // After a group, its levels no longer count.
    assert!(parse(&format!("{} and {}", deep(100), deep(100)), &facts()).is_ok());
    assert!(message(&deep(100_000)).contains("deeper"));
    assert!(message(&"not ".repeat(100_000)).contains("deeper"));
    assert!(message(&"mapped or mapped and ".repeat(50_000)).contains("parentheses"));
    // A list with only "or" is not nested, however long it is.
    assert!(parse(&format!("mapped{}", " or mapped".repeat(50_000)), &facts()).is_ok());
}

/// Generates valid filter expressions.
pub(crate) fn expression() -> impl Strategy<Value = String> {
    let primary = prop_oneof![
        (prop_oneof!["sport", "dport"], prop_oneof!["=", "!=", "<", "<=", ">", ">="], any::<u16>())
            .prop_map(|(end, compare, port)| format!("{end} {compare} :{port}")),
        (prop_oneof!["src", "dst"], any::<u32>(), 0_u8..=32)
            .prop_map(|(end, addr, n)| format!("{end} {}/{n}", std::net::Ipv4Addr::from(addr))),
        (prop_oneof!["src", "dst"], any::<u128>(), 0_u8..=128)
            .prop_map(|(end, addr, n)| format!("{end} [{}]/{n}", std::net::Ipv6Addr::from(addr))),
        prop_oneof!["autobound", "mapped", "state = fin-wait-2", "class = dynamic", "direction = inbound"]
            .prop_map(String::from),
        (any::<u16>()).prop_map(|ms| format!("expires < {ms}ms")),
        (any::<u32>()).prop_map(|ns| format!("expires < {ns}ns")),
    ];
    primary.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            (inner.clone(), prop_oneof!["and", "or", ""], inner.clone())
                .prop_map(|(a, word, b)| format!("({a} {word} {b})")),
            inner.prop_map(|a| format!("not {a}")),
        ]
    })
}

proptest! {
    #[test]
    fn any_text_is_parsed_or_refused_without_a_panic(text in "[a-z0-9 ()!=<>&|:./%\\[\\]*ö-]{0,60}") {
        if let Err(error) = parse(&text, &facts()) {
            prop_assert!(error.to_string().contains('^'));
        }
    }

    #[test]
    fn a_printed_filter_accepts_the_same_rows_when_it_is_parsed_again(text in expression(), local in any::<u16>(), remote in any::<u16>(), expires_ms in 0_u32..5000) {
        let filter = parse(&text, &facts()).expect("a valid expression").filter;
        let again = parse(&filter.to_string(), &facts()).unwrap_or_else(|error| panic!("{text}: {error}")).filter;
        let mut row = row("10.0.0.1", local, "192.0.2.9", remote);
        row.bucket.expires_ms = expires_ms;
        prop_assert_eq!(filter.accepts(&row), again.accepts(&row), "{} / {}", text, filter);
    }
}

#[test]
fn a_long_duration_is_not_shortened_to_the_range_of_a_timer() {
    assert_eq!(parse_duration("2000h"), Ok(Duration::from_secs(2000 * 3600)));
    assert_eq!(parse_duration("99999999h"), Ok(Duration::from_secs(100 * 365 * 24 * 3600)));
}
