//! Bad words on the command line: the error names the word and the allowed values, stdout is empty, and the exit code is 2.

use std::fs;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use twtool::model::name::is_hidden;

use crate::support::private_proc;
use crate::support::situations::{bucket_of_server, listen};
use crate::support::suite;
use crate::support::twtool::{Run, subcommands, twtool};

suite! {
    pure: [
        bad_ports_are_named_with_the_allowed_forms,
        common_mistakes_get_a_tip,
        bad_addresses_are_named_with_the_allowed_forms,
        scopes_that_do_not_exist_are_named,
        unknown_words_are_named_with_the_existing_ones,
        bad_durations_are_named_with_the_allowed_forms,
        hostile_words_do_not_reach_the_terminal,
    ],
    netns: [
        a_service_name_of_65536_letters_causes_no_panic,
        a_fifo_instead_of_the_services_file_does_not_block,
        the_help_lists_exactly_the_formats_that_a_command_accepts,
    ],
}

fn a_service_name_of_65536_letters_causes_no_panic() {
    private_proc::mount_private_folders();
    let server = listen("127.0.0.1:8080");
    bucket_of_server(&server, "127.0.0.1:8080");
    // Rust stores the width of a format string in 16 bits, so twtool must not pad a longer name with such a width.
    let name = "s".repeat(65_536);
    fs::write("/etc/services", format!("{name} 8080/tcp\n")).expect("written");
    for args in
        [["list"].as_slice(), &["summary"], &["port", "8080"], &["bind-test", "8080"], &["kill", "--all", "--dry-run"]]
    {
        let run = twtool(args);
        assert!(run.code.is_some_and(|code| code < 2), "{args:?}: {:?} {:.2000}", run.code, run.stderr);
    }
    let run = twtool(["list", "sport", &name, "and", &format!("{name}x")]).code(2);
    assert!(run.stderr.ends_with("^\n"), "{:.2000}", run.stderr);
    twtool(["port", &name]).ok();
}

fn a_fifo_instead_of_the_services_file_does_not_block() {
    private_proc::mount_private_folders();
    fs::remove_file("/etc/services").expect("it was there");
    fs::create_dir("/etc/netns/web").expect("a folder");
    private_proc::name_this_namespace("web");
    for fifo in ["/etc/services", "/etc/netns/web/services"] {
        mkfifo(fifo, Mode::S_IRWXU).expect("a FIFO");
        for args in
            [["list", "--count"].as_slice(), &["port", "80"], &["bind-test", "8080"], &["list", "--netns", "web"]]
        {
            assert!(twtool(args).code.is_some(), "{args:?}");
        }
    }
}

/// Commands that take a port: the words before the port, and the words after the port.
const PORT_PLACES: [(&[&str], &[&str]); 7] = [
    (&["port"], &[]),
    (&["list", "--port"], &[]),
    (&["list", "--local-port"], &["--json"]),
    (&["list", "--remote-port"], &["-q"]),
    (&["bind-test"], &[]),
    (&["kill", "--port"], &["--yes"]),
    (&["wait"], &["--timeout", "0"]),
];

#[track_caller]
fn refused(args: &[&str], word: &str, allowed: &[&str]) -> Run {
    let run = twtool(args).refused(word);
    for text in allowed {
        assert!(run.stderr.contains(text), "expected {text:?} on stderr as an allowed form{run}");
    }
    run
}

fn bad_ports_are_named_with_the_allowed_forms() {
    for (before, after) in PORT_PLACES {
        for bad in
            ["65536", "99999999999999999999", "-1", "0x50", "httpz", "80-70", "80-65536", "80,81", "8 0", "1e3", "+80"]
        {
            let args = [before, &[bad], after].concat();
            let flag = before.iter().any(|word| word.starts_with("--"));
            // The flags that select rows take a list, so a comma is no mistake.
            if flag && bad.contains(',') {
                continue;
            }
            // A positional port does not allow negative numbers, because clap would then take -4 and -6 as ports. So clap parses -1 as an
            // option.
            let option = bad == "-1" && !flag;
            refused(&args, bad, if option { &["Usage"] } else { &["65535"] });
        }
        // An error cannot show an empty word, but it still lists the allowed values.
        let run = twtool([before, &[""], after].concat()).code(2);
        assert!(run.stdout.is_empty() && run.stderr.contains("65535"), "{run}");
    }
    // -4 and -6 may come before or after the port.
    for args in [["port", "-6", "80"], ["port", "80", "-4"], ["bind-test", "-4", "80"], ["wait", "-6", "0"]] {
        assert!(!twtool(args).stderr.contains("unexpected"), "{args:?}");
    }
    for command in ["bind-test", "wait"] {
        for bad in ["8000-8099", ":9999", "httpz", "65536"] {
            let run = refused(&[command, bad], bad, &["65535", "/etc/services"]);
            assert!(!run.stderr.contains("a range"), "the error offers a range, which {command} does not take{run}");
        }
    }
    refused(&["port", "80", "httpz", "443"], "httpz", &["/etc/services"]);
}

fn common_mistakes_get_a_tip() {
    refused(&["bind-test", "127.0.0.1:8080"], "127.0.0.1:8080", &["8080 alone", "--addr 127.0.0.1"]);
    refused(&["wait", "[::1]:8080"], "[::1]:8080", &["8080 alone", "--addr ::1"]);
    for bad in ["8080", ":8080", "port"] {
        refused(&["list", bad], bad, &["'sport = :8080'", "--port 8080"]);
        refused(&["kill", bad, "--yes"], bad, &["'sport = :8080'", "--port 8080"]);
    }
    refused(&["wait", "8080", "echo", "x"], "echo", &["-- before the command"]);
    refused(&["capacity", "192.0.2.1:443"], "192.0.2.1:443", &["--to ADDR[:PORT]"]);
    for args in [["list", "--nosuch"].as_slice(), &["kill", "--nosuch"], &["bind-test", "8080", "--nosuch"]] {
        let run = refused(args, "--nosuch", &["Usage"]);
        assert!(!run.stderr.contains("-- --nosuch"), "the tip of clap would make --nosuch a word of a filter{run}");
    }
    for (typed, meant) in [(vec!["help"], vec!["--help"]), (vec!["help", "list"], vec!["list", "--help"])] {
        assert_eq!(twtool(&typed).ok().stdout, twtool(&meant).ok().stdout, "{typed:?}");
    }
    refused(&["help", "nosuch"], "nosuch", &[]);
}

fn bad_addresses_are_named_with_the_allowed_forms() {
    for flag in ["--local", "--remote"] {
        for bad in ["1.2.3", "::g", "localhost", "1.2.3.4.5", "1.2.3.256", "127.0.0.1:80", "[::1]:80", "fe80::1%"] {
            refused(&["list", flag, bad], bad.trim_start_matches("fe80::1"), &["IPv6"]);
        }
        refused(&["list", flag, "10.0.0.0/33"], "/33", &["32"]);
        refused(&["list", flag, "::/129"], "/129", &["128"]);
        refused(&["list", flag, "10.0.0.0/-1"], "/-1", &["32"]);
        refused(&["list", flag, "10.0.0.0/x"], "/x", &["32"]);
        refused(&["list", flag, "10.0.0.0/"], "/", &["32"]);
        let run = twtool(["list", flag, ""]).code(2);
        assert!(run.stdout.is_empty() && run.stderr.contains("IPv6"), "{run}");
    }
    for bad in ["1.2.3", "::g", "localhost", "10.0.0.0/8"] {
        for command in ["bind-test", "wait"] {
            refused(&[command, "9000", "--addr", bad], bad, &["IPv6"]);
        }
    }
}

fn scopes_that_do_not_exist_are_named() {
    refused(&["list", "--local", "fe80::1%nosuch"], "nosuch", &["lo"]);
    refused(&["list", "--remote", "fe80::/64", "--local", "fe80::1%nosuch"], "nosuch", &[]);
    refused(&["bind-test", "9000", "--addr", "fe80::1%nosuch"], "nosuch", &["lo"]);
    refused(&["list", "--local", "fe80::1%4294967295"], "4294967295", &["lo"]);
    refused(&["list", "--local", "127.0.0.1%lo"], "%lo", &["IPv6"]);
}

fn unknown_words_are_named_with_the_existing_ones() {
    refused(&["list", "--columns", "nosuch", "-o", "csv"], "nosuch", &["local_port", "cookie"]);
    refused(&["list", "--columns", "local_port,nosuch"], "nosuch", &["local_port", "cookie"]);
    let run = twtool(["list", "--columns", ""]).code(2);
    assert!(run.stdout.is_empty() && run.stderr.contains("local_port"), "{run}");
    refused(&["list", "-o", "xml"], "xml", &["table", "json", "ndjson", "csv"]);
    refused(&["port", "80", "--output", "yaml"], "yaml", &["table", "json", "ndjson", "csv"]);
    refused(&["list", "--class", "system"], "system", &["well-known", "registered", "dynamic"]);
    refused(&["list", "--direction", "in"], "in", &["inbound", "outbound", "unknown"]);
    refused(&["list", "--sort", "cookie"], "cookie", &["expires", "local", "remote", "none"]);
    refused(&["list", "--color", "perhaps"], "perhaps", &["auto", "always", "never"]);
    refused(&["bind-test", "9000", "--with", "magic"], "magic", &["none", "reuseaddr", "reuseport", "both"]);
    refused(&["completions", "tcsh"], "tcsh", &["bash", "zsh", "fish"]);
}

fn bad_durations_are_named_with_the_allowed_forms() {
    for bad in ["soon", "10", "-5s", "10x", "1e400s", "99999999999999999999s"] {
        refused(&["list", &format!("--expires-under={bad}")], bad, &["10s"]);
        refused(&["doctor", &format!("--close-wait-after={bad}")], bad, &["10s"]);
    }
    for bad in ["soon", "10", "-5s", "10x", "1e400s", "00"] {
        refused(&["wait", "9000", &format!("--timeout={bad}")], bad, &["10s", "0 tries once"]);
    }
    // Each of these durations has a number and a unit, so the error must not ask for them.
    for (args, why) in [
        (&["why", "--timeout", "0s", "--", "true"][..], "longer than 0s"),
        (&["why", "--timeout", "0ms", "--", "true"], "longer than 0s"),
        (&["why", "--timeout=-5s", "--", "true"], "not negative"),
        (&["wait", "9000", "--timeout=-5s"], "not negative"),
        (&["list", "--expires-under=-5s"], "not negative"),
        (&["list", "expires < -5s"], "not negative"),
        (&["doctor", "--close-wait-after=99999999999999999999s"], "too large"),
    ] {
        let run = twtool(args).code(2).says(why);
        assert!(!run.stderr.contains("a number with a unit"), "{run}");
    }
    refused(&["why", "--timeout", "0", "--", "true"], "0", &["a number with a unit"]);
    let run = twtool(["list", "--expires-under", ""]).code(2);
    assert!(run.stdout.is_empty() && run.stderr.contains("10s"), "{run}");
}

/// Arguments with which the command ends soon. On an unoccupied address, the exporter would run until a signal.
fn arguments_of(command: &str) -> &'static [&'static str] {
    match command {
        "watch" => &["--count", "1", "--interval", "10ms"],
        "exporter" => &["--listen", "127.0.0.1:8080"],
        // Without --by, `trace` refuses json.
        "trace" => &["--by", "process", "--method", "sampled", "--duration", "10ms"],
        "port" | "bind-test" => &["8080"],
        "wait" => &["8080", "--timeout", "0"],
        "why" => &["--", "true"],
        "connect-test" => &["127.0.0.1:8080"],
        "kill" => &["--all", "--dry-run"],
        "completions" => &["bash"],
        "list" | "summary" | "metrics" | "capacity" | "doctor" | "demo" | "man" => &[],
        other => panic!("the test needs arguments for {other}"),
    }
}

fn listed_formats(help: &str) -> Vec<&str> {
    let Some((_, about)) = help.split_once("-o, --output <FORMAT>\n") else { return vec![] };
    let lines = about.lines().take_while(|line| !line.trim_start().starts_with("--"));
    lines.filter_map(|line| line.trim_start().strip_prefix("- ")?.split_once(':').map(|(format, _)| format)).collect()
}

fn the_help_lists_exactly_the_formats_that_a_command_accepts() {
    let _occupied = listen("127.0.0.1:8080");
    for command in subcommands() {
        let command = command.as_str();
        let help = twtool([command, "--help"]).ok();
        let formats = listed_formats(&help.stdout);
        if ["completions", "man"].contains(&command) {
            // These commands accept and ignore the following options.
            let options = ["--output", "--json", "--ipv4", "--ipv6"];
            assert!(options.iter().all(|option| !help.stdout.contains(option)), "{help}");
            continue;
        }
        let run = |options: &[&str]| twtool([&[command], options, arguments_of(command)].concat());
        let refuses = |run: &Run, option: &str| run.stderr.lines().next().is_some_and(|line| line.contains(option));
        let check = |listed: bool, options: &[&str], refused_as: &str| {
            let run = run(options);
            if listed {
                return assert!(!refuses(&run, refused_as), "the help lists {options:?}{run}");
            }
            assert!(refuses(&run, refused_as), "the help does not list {options:?}{run}");
            let run = run.refused(refused_as);
            if refused_as.contains("--output") {
                let named = formats.is_empty() || formats.iter().any(|format| run.stderr.contains(format));
                assert!(named, "expected an accepted format on stderr{run}");
            }
        };
        for format in ["table", "json", "ndjson", "csv"] {
            let listed = formats.contains(&format);
            // The table is the default, so twtool cannot recognize that a user has asked for it.
            if listed || format != "table" {
                check(listed, &["-o", format], &format!("'{format}' for '--output <FORMAT>'"));
            }
        }
        check(help.stdout.contains("--json\n"), &["--json"], "'json' for '--output <FORMAT>'");
        for (option, long) in [("-4", "--ipv4\n"), ("-6", "--ipv6\n")] {
            // `demo` uses IPv4, so it accepts -4.
            if (command, option) != ("demo", "-4") {
                check(help.stdout.contains(long), &[option], &format!("'{option}'"));
            }
        }
    }
}

fn hostile_words_do_not_reach_the_terminal() {
    for args in [
        ["port", "\x1b[31mred"].as_slice(),
        &["list", "--local", "\x1b]0;title\x07"],
        &["list", "--columns", "\x1b[2J"],
        &["list", "--replay", "/nosuch/\x1b[2J"],
        &["\x1b[2J"],
    ] {
        let run = twtool(args).code(2);
        assert!(run.stdout.is_empty(), "{run}");
        assert!(!run.stderr.contains('\x1b'), "escape sequences of an argument on stderr: {:?}", run.stderr);
    }
    // A C1 control character, bidirectional and invisible characters, and a second line that looks like an error of twtool.
    let word = "x\u{9b}2J\u{202e}\u{2066}\u{200b}\x07\nerror: y";
    let path = format!("/nosuch/{word}");
    for color in ["never", "always"] {
        for args in [
            ["port", word].as_slice(),
            &["list", "--local", word],
            &["list", "--columns", word],
            &["list", "--replay", &path],
            &["list", "--record", &path],
            &["list", "--netns", word],
            &["list", "--netns", &path],
            &["list", "--nosuch", word],
            &["list", &format!("--{word}")],
            &["list", "dev", word],
            &["list", "sport", word],
            &["list", "--limit", word],
            &["demo", word],
            &["demo", "reuse", "--pcap", &path],
            &["bind-test", "--addr", word, "80"],
            &["bind-test", "--with", word, "80"],
            &["capacity", "--to", word],
            &["connect-test", word],
            &["connect-test", "127.0.0.1:80", "--from", word],
            &["connect-test", "127.0.0.1:80", "--with", word],
            &["completions", word],
            &[word],
        ] {
            let run = twtool([args, &["--color", color]].concat()).code(2);
            let text = run.stderr.replace("\x1b[0m", "");
            // With colours, clap writes SGR sequences (ESC [ digits m) of its own. Remove them, and nothing else.
            let mut parts = text.split("\x1b[");
            let mut text = parts.next().unwrap_or_default().to_owned();
            for part in parts {
                text.push_str(
                    part.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';').strip_prefix('m').expect("SGR"),
                );
            }
            let hidden = |c: char| c != '\n' && is_hidden(c);
            assert!(!text.contains(hidden), "{args:?} {color}: {text:?}");
            assert!(
                !text.contains("\nerror:"),
                "{args:?} {color}: the second line of the word looks like an error: {text:?}"
            );
        }
    }
}
