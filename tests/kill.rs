//! `twtool kill` on the real kernel: which sockets it removes, and above all which sockets it does not remove.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::process::Stdio;

use caps::Capability;
use serde_json::{Value, json};
use twtool::lab::{self, ActiveCloser};
use twtool::model::row::{Direction, Row};
use twtool::model::socket::{Cookie, Socket};
use twtool::sock_diag::destroy::{self, Acknowledgement, Destruction};
use twtool::sock_diag::transport::Netlink;

use crate::support::dialogue::Dialogue;
use crate::support::procfs::{self, Entry, Identity};
use crate::support::records::{DOCUMENT_KEYS, LIST_KEYS, identity, of_entries, of_records, sorted};
use crate::support::situations::{
    Mixed, bucket_of_client, bucket_of_server, connect_from, half_closed, listen, many_buckets,
};
use crate::support::twtool::{Keys, Run, command, twtool};
use crate::support::varied::Varied;
use crate::support::{commands, crowd, kernel, limits, netns, suite};

suite! {
    pure: [
        without_a_selection_kill_is_refused,
        an_error_names_the_wrong_filter_or_option,
    ],
    netns: [
        without_a_terminal_yes_is_required,
        every_selected_kind_of_bucket_is_removed_and_no_other,
        a_bucket_that_was_bound_to_an_interface_is_removed,
        without_the_option_orphans_every_socket_that_is_not_a_bucket_stays,
        a_wrong_cookie_removes_nothing,
        a_connection_that_replaced_a_bucket_stays,
        a_bucket_that_is_gone_is_not_found,
        without_cap_net_admin_nothing_is_removed_and_the_capability_is_named,
        two_removals_at_the_same_time_never_fail,
        a_dry_run_changes_nothing_in_any_format,
        the_exit_code_is_1_if_no_socket_matches,
        after_a_kill_the_port_can_be_bound,
        one_run_removes_thousands_of_buckets_and_counts_them,
        documents_and_records_have_the_documented_keys,
        the_table_shows_the_plan_the_risk_and_the_counts,
        a_closed_pipe_does_not_stop_the_removal,
        if_the_plan_cannot_be_printed_a_full_disk_stops_the_removal_and_a_closed_pipe_does_not,
        an_interactive_user_sees_the_plan_and_is_asked,
        every_answer_except_yes_means_no,
        buckets_that_end_during_the_question_are_reported_as_gone,
        a_fin_wait_2_that_became_time_wait_during_the_question_is_removed,
        only_orphans_are_removed_and_no_socket_with_a_possible_owner,
        the_plan_for_orphans_shows_the_risk_and_asks,
        a_warning_names_the_flag_that_would_select_a_socket,
        no_command_is_printed_for_sockets_that_this_kernel_cannot_remove,
        several_ports_may_be_separated_by_commas,
        orphans_are_removed_only_if_this_kernel_ends_them,
    ],
}

fn kill(args: &[&str]) -> Run {
    twtool([&["kill", "--yes", "--json"], args].concat())
}

#[track_caller]
fn counts(run: &Run) -> [u64; 4] {
    let document = run.json();
    let failed = document["failed"].as_array().expect("a list").len() as u64;
    let number = |key: &str| document[key].as_u64().expect("a number");
    [number("matched"), number("destroyed"), number("gone"), failed]
}

fn without_a_selection_kill_is_refused() {
    for args in
        [["kill", "--yes"].as_slice(), &["kill", "-n"], &["kill", "--yes", "--fin-wait-2"], &["kill", "--yes", ""]]
    {
        twtool(args).refused("--all");
    }
}

fn without_a_terminal_yes_is_required() {
    let server = listen("127.0.0.1:8080");
    bucket_of_server(&server, "127.0.0.1:8080");
    twtool(["kill", "--all"]).refused("--yes").says("--dry-run").says("1 TIME_WAIT");
    twtool(["kill", "--local-port", "8080", "--json"]).refused("--yes");
    assert_eq!(procfs::bucket_count(), 1);
    // An error that --yes cannot solve is reported first.
    twtool(["kill"]).refused("no selection");
    twtool(["kill", "--local-port", "8081"]).code(1).prints("no TIME_WAIT socket matches");
}

fn an_error_names_the_wrong_filter_or_option() {
    twtool(["kill", "--yes", "dpor = :80"]).refused("dpor");
    twtool(["kill", "--yes", "--local-port", "httpz"]).refused("httpz");
    twtool(["kill", "--yes", "--remote", "1.2.3"]).refused("1.2.3");
    twtool(["kill", "--yes", "--all", "--sort", "local"]).refused("--sort");
    twtool(["kill", "--yes", "--all", "--replay", "x"]).refused("--replay");
}

fn in_time_wait(entry: &Entry, family: &str) -> bool {
    entry.identity().0 == family && entry.state == 6
}

/// Whether a kill removes this bucket.
type Rule = fn(&Entry) -> bool;

fn every_selected_kind_of_bucket_is_removed_and_no_other() {
    kernel::needs(kernel::destroys_buckets(), "SOCK_DESTROY of buckets");
    let mixed = Mixed::make();
    let mut left = procfs::buckets();
    let steps: [(&[&str], Rule); 5] = [
        (&["mapped"], |entry| in_time_wait(entry, "ipv4-mapped")),
        (&["state = fin-wait-2", "-4"], |entry| entry.state == 5 && entry.local.1 != 8081 && entry.remote.1 != 8081),
        (&["-6", "--local-port", "8081"], |entry| in_time_wait(entry, "ipv6") && entry.local.1 == 8081),
        (&["--remote-port", "8080"], |entry| in_time_wait(entry, "ipv4") && entry.remote.1 == 8080),
        (&["--all", "--fin-wait-2"], |_| true),
    ];
    for (args, goes) in steps {
        let (gone, rest): (Vec<_>, Vec<_>) = left.into_iter().partition(goes);
        assert!(!gone.is_empty(), "no bucket for {args:?} in this situation");
        let run = kill(args).ok();
        let all = gone.len() as u64;
        assert_eq!(counts(&run), [all, all, 0, 0], "{run}");
        assert_eq!(of_entries(&procfs::buckets()), of_entries(&rest), "the other buckets stay{run}");
        left = rest;
    }
    assert_eq!(left, [], "no bucket is left");
    mixed.end();
}

fn a_bucket_that_was_bound_to_an_interface_is_removed() {
    kernel::needs(kernel::destroys_buckets(), "SOCK_DESTROY of buckets");
    let varied = Varied::make();
    let all = procfs::time_wait().len();
    let run = kill(&["dev", "lo"]).ok();
    assert_eq!(counts(&run), [2, 2, 0, 0], "the buckets g and r of support/varied.rs{run}");
    assert_eq!(procfs::time_wait().len(), all - 2);
    let run = kill(&["fwmark = 0x13"]).ok();
    assert_eq!(counts(&run), [2, 2, 0, 0], "the buckets e and f of support/varied.rs{run}");
    varied.end();
}

/// The sockets that are not buckets, without their timers, which change.
fn live() -> Vec<String> {
    let live = procfs::sockets().into_iter().filter(|entry| entry.timer != 3);
    sorted(live.map(|Entry { local, remote, state, .. }| format!("{local:?} {remote:?} {state}")))
}

fn without_the_option_orphans_every_socket_that_is_not_a_bucket_stays() {
    kernel::needs(kernel::destroys_buckets(), "SOCK_DESTROY of buckets");
    let mixed = Mixed::make();
    let before = live();
    // Among them are two full sockets in FIN_WAIT_2 (5) and the ends of established connections (1).
    assert!(before.iter().filter(|socket| socket.ends_with(" 5")).count() == 2, "{before:?}");
    assert!(before.iter().any(|socket| socket.ends_with(" 1")), "{before:?}");
    let run = kill(&["--all", "--fin-wait-2"]).ok();
    let all = (Mixed::TIME_WAIT + Mixed::FIN_WAIT_2) as u64;
    assert_eq!(counts(&run), [all, all, 0, 0], "{run}");
    assert_eq!(procfs::buckets(), []);
    assert_eq!(live(), before, "every live socket stays");
    kill(&["--all", "--fin-wait-2"]).code(1);
    assert_eq!(live(), before);
    mixed.end();
}

/// The buckets that the kernel lists.
fn rows() -> Vec<Row> {
    let mut rows = vec![];
    lab::for_each_socket(&mut |socket| {
        if let Socket::Bucket(bucket) = socket {
            rows.push(Row { bucket: *bucket, direction: Direction::Unknown, netns: 0 });
        }
    })
    .expect("a dump");
    rows
}

fn destroy(rows: &[Row]) -> Vec<Acknowledgement> {
    let mut kernel = Netlink::open().expect("a netlink socket");
    let Destruction { answers, end } = destroy::run(&mut kernel, rows);
    end.expect("no request fails");
    answers
}

fn a_wrong_cookie_removes_nothing() {
    kernel::needs(kernel::destroys_buckets(), "SOCK_DESTROY of buckets");
    let mixed = Mixed::make();
    let (rows, before) = (rows(), of_entries(&procfs::buckets()));
    let mut wrong = rows.clone();
    for row in &mut wrong {
        row.bucket.cookie = row.bucket.cookie.and_then(|cookie| Cookie::new(cookie.number() + 1_000_000));
    }
    assert_eq!(destroy(&wrong), vec![Acknowledgement::NotFound; rows.len()]);
    for row in &mut wrong {
        row.bucket.cookie = None;
    }
    assert_eq!(
        destroy(&wrong),
        vec![Acknowledgement::NotFound; rows.len()],
        "a request without a cookie matches nothing"
    );
    assert_eq!(of_entries(&procfs::buckets()), before);
    assert_eq!(
        destroy(&rows),
        vec![Acknowledgement::Done; rows.len()],
        "with the right cookies, the buckets are removed"
    );
    assert_eq!(procfs::buckets(), []);
    mixed.end();
}

fn a_connection_that_replaced_a_bucket_stays() {
    let server = listen("127.0.0.1:8080");
    let (to, from) = ("127.0.0.1:8080", "127.0.0.1:41999");
    connect_from(&server, to, from).close(ActiveCloser::Server).expect("a bucket");
    let old = rows();
    assert_eq!(old.len(), 1);
    // The SYN of a new connection from the same port ends the bucket.
    let new = connect_from(&server, to, from);
    assert_eq!(procfs::buckets(), [], "the new connection has replaced the bucket");
    assert_eq!(destroy(&old), [Acknowledgement::NotFound]);
    (&new.client).write_all(b"still here").expect("written");
    let mut text = [0; 10];
    (&new.server).read_exact(&mut text).expect("read");
    assert_eq!(&text, b"still here");
}

fn a_bucket_that_is_gone_is_not_found() {
    kernel::needs(kernel::destroys_buckets(), "SOCK_DESTROY of buckets");
    let server = listen("127.0.0.1:8080");
    many_buckets(&server, "127.0.0.1:8080", 300);
    let rows = rows();
    assert_eq!(destroy(&rows), vec![Acknowledgement::Done; rows.len()]);
    assert_eq!(destroy(&rows), vec![Acknowledgement::NotFound; rows.len()]);
}

fn without_cap_net_admin_nothing_is_removed_and_the_capability_is_named() {
    let server = listen("127.0.0.1:8080");
    many_buckets(&server, "127.0.0.1:8080", 300);
    let before = of_entries(&procfs::buckets());
    limits::drop_capability(Capability::CAP_NET_ADMIN);
    for format in ["table", "json", "ndjson", "csv"] {
        let run = twtool(["kill", "--all", "--yes", "-o", format]).code(2);
        let run = run.says("EPERM").says("hint:").says("CAP_NET_ADMIN");
        // A table begins with the plan, which twtool prints before it removes a bucket.
        let shown =
            if format == "table" { run.stdout.contains("selected: 300 TIME_WAIT") } else { run.stdout.is_empty() };
        assert!(shown, "{run}");
    }
    assert_eq!(of_entries(&procfs::buckets()), before);
    let dry = twtool(["kill", "--all", "--dry-run", "--json"]).code(0);
    assert!(dry.json()["warnings"][0].as_str().is_some_and(|text| text.contains("CAP_NET_ADMIN")), "{dry}");
}

fn two_removals_at_the_same_time_never_fail() {
    kernel::needs(kernel::destroys_buckets(), "SOCK_DESTROY of buckets");
    crowd::make_room();
    crowd::gather(5000);
    let mut commands: Vec<_> = (0..2).map(|_| command(["kill", "--all", "--yes", "--json"])).collect();
    let start = |command: &mut std::process::Command| command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let children: Vec<_> = commands.iter_mut().map(|command| start(command).expect("it starts")).collect();
    let mut destroyed = 0;
    for (command, child) in commands.iter().zip(children) {
        let run = Run::ended(command, &child.wait_with_output().expect("it ends"));
        // If the second run starts after the first has removed every bucket, nothing matches, and the second run has exit code 1.
        assert!(matches!(run.code, Some(0 | 1)), "{run}");
        let [matched, own, gone, failed] = counts(&run);
        assert_eq!((own + gone, failed), (matched, 0), "{run}");
        destroyed += own;
    }
    assert!(destroyed >= 5000, "{destroyed} of 5000");
    assert_eq!(procfs::bucket_count(), 0);
}

fn a_dry_run_changes_nothing_in_any_format() {
    let mixed = Mixed::make();
    let before = of_entries(&procfs::buckets());
    let args = ["kill", "--all", "--fin-wait-2", "-n", "-o"];
    let run = |format| twtool(args.into_iter().chain([format])).ok();
    let table = run("table");
    assert!(table.stdout.ends_with("dry run: nothing was removed\n"), "{table}");
    assert!(table.stdout.contains("selected: 7 TIME_WAIT, 3 FIN_WAIT_2\n"), "{table}");
    let document = run("json").json();
    assert_eq!((&document["dry_run"], &document["matched"]), (&json!(true), &json!(10)));
    assert_eq!((&document["destroyed"], &document["gone"], &document["failed"]), (&json!(0), &json!(0), &json!([])));
    let records = run("ndjson").ndjson();
    assert_eq!(of_records(&records), before);
    assert!(records.iter().all(|r| r["outcome"] == "matched" && r["errno"] == Value::Null), "{records:?}");
    assert_eq!(run("csv").csv().1.len(), 10);
    // --yes does not override --dry-run.
    twtool(["kill", "--all", "--yes", "--dry-run"]).ok();
    assert_eq!(of_entries(&procfs::buckets()), before);
    mixed.end();
}

fn the_exit_code_is_1_if_no_socket_matches() {
    let server = listen("127.0.0.1:8080");
    bucket_of_server(&server, "127.0.0.1:8080");
    for extra in ["--yes", "--dry-run"] {
        let table = twtool(["kill", "--local-port", "9", extra]).code(1);
        assert_eq!((table.stdout.as_str(), table.stderr.as_str()), ("no TIME_WAIT socket matches\n", ""), "{table}");
        let json = twtool(["kill", "--local-port", "9", extra, "--json"]).code(1);
        assert_eq!(counts(&json), [0, 0, 0, 0]);
        assert_eq!(twtool(["kill", "--local-port", "9", extra, "-o", "ndjson"]).code(1).stdout, "");
    }
    assert_eq!(procfs::time_wait().len(), 1);
}

fn after_a_kill_the_port_can_be_bound() {
    kernel::needs(kernel::destroys_buckets(), "SOCK_DESTROY of buckets");
    // If the old socket had neither SO_REUSEADDR nor SO_REUSEPORT, no option of the new socket helps.
    let at = "127.0.0.1:8080";
    let server = lab::Server::listen(at.parse().expect("an address"), twtool::model::bind::ReuseOptions::NONE);
    let server = server.expect("a server");
    bucket_of_server(&server, at);
    drop(server);
    assert!(TcpListener::bind(at).is_err(), "std sets SO_REUSEADDR on the new socket only, which does not help");
    twtool(["bind-test", "8080"]).code(1);
    let run = kill(&["--local-port", "8080"]).ok();
    assert_eq!(counts(&run), [1, 1, 0, 0], "{run}");
    assert_eq!(twtool(["bind-test", "8080", "--json"]).ok().json()["verdict"], "free");
    TcpListener::bind(at).expect("the port is free");
}

fn one_run_removes_thousands_of_buckets_and_counts_them() {
    kernel::needs(kernel::destroys_buckets(), "SOCK_DESTROY of buckets");
    crowd::make_room();
    crowd::gather(6000);
    let before: Vec<Identity> = of_entries(&procfs::buckets());
    let (kept, gone): (Vec<_>, Vec<_>) = before.into_iter().partition(|bucket| bucket.1 == "127.0.0.1");
    assert!(kept.len() > 500 && gone.len() > 500, "{} and {}", kept.len(), gone.len());
    let run = twtool(["kill", "--local", "::1", "--yes", "-o", "ndjson"]).ok();
    let records = run.ndjson();
    assert_eq!(of_records(&records), gone, "one record for each removed bucket");
    assert!(records.iter().all(|record| record["outcome"] == "destroyed"));
    assert_eq!(of_entries(&procfs::buckets()), kept);
    let rest = kept.len() as u64;
    assert_eq!(counts(&kill(&["--all"]).ok()), [rest, rest, 0, 0]);
    assert_eq!(procfs::bucket_count(), 0);
}

fn documents_and_records_have_the_documented_keys() {
    kernel::needs(kernel::destroys_buckets(), "SOCK_DESTROY of buckets");
    let mixed = Mixed::make();
    let payload = ["matched", "destroyed", "gone", "failed", "dry_run"];
    let run = kill(&["--local-port", "8080"]).ok();
    assert_eq!(Keys::of(&run.stdout), [DOCUMENT_KEYS.as_slice(), &payload].concat(), "{run}");
    let document = run.json();
    assert_eq!((&document["schema"], &document["complete"]), (&json!("twtool.kill/1"), &json!(true)));
    assert_eq!((&document["warnings"], &document["dry_run"]), (&json!([]), &json!(false)));
    let keys = [LIST_KEYS.as_slice(), &["outcome", "errno"]].concat();
    let ndjson = twtool(["kill", "--local-port", "8081", "--yes", "-o", "ndjson"]).ok();
    assert!(!ndjson.stdout.is_empty());
    for line in ndjson.stdout.lines() {
        assert_eq!(Keys::of(line), keys, "{ndjson}");
    }
    let csv = twtool(["kill", "--all", "--yes", "-o", "csv"]).ok();
    let (header, rows) = csv.csv();
    assert_eq!(header, keys, "{csv}");
    assert!(!rows.is_empty() && rows.iter().all(|row| row.ends_with(&["destroyed".into(), String::new()])), "{csv}");
    mixed.end();
}

fn the_table_shows_the_plan_the_risk_and_the_counts() {
    kernel::needs(kernel::destroys_buckets(), "SOCK_DESTROY of buckets");
    let server = listen("127.0.0.1:8080");
    many_buckets(&server, "127.0.0.1:8080", 25);
    bucket_of_client(&server, "127.0.0.1:8080");
    let count = procfs::time_wait().len() - 1;
    let run = twtool(["kill", "--local-port", "8080", "--yes"]).ok();
    let lines: Vec<_> = run.stdout.lines().collect();
    assert_eq!(lines.len(), 1 + 20 + 1 + 2 + 1, "a header, the first rows, their number, two risks, the counts{run}");
    assert_eq!(lines[21], format!("selected: {count} TIME_WAIT, the first 20 shown"), "{run}");
    assert!(lines[22].contains("RFC 1337") && lines[23].contains("RFC 9293"), "{run}");
    assert_eq!(lines[24], format!("{count} destroyed, 0 already gone, 0 failed"), "{run}");
}

fn a_closed_pipe_does_not_stop_the_removal() {
    kernel::needs(kernel::destroys_buckets(), "SOCK_DESTROY of buckets");
    let server = listen("127.0.0.1:8080");
    many_buckets(&server, "127.0.0.1:8080", 2000);
    let mut command = command(["kill", "--all", "--yes", "-o", "ndjson"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("twtool can be started");
    let mut reader = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut line = String::new();
    reader.read_line(&mut line).expect("a line");
    drop(reader);
    let run = Run::ended(&command, &child.wait_with_output().expect("it ends"));
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""), "{run}");
    assert_eq!(procfs::buckets(), []);
}

fn if_the_plan_cannot_be_printed_a_full_disk_stops_the_removal_and_a_closed_pipe_does_not() {
    kernel::needs(kernel::destroys_buckets(), "SOCK_DESTROY of buckets");
    let server = listen("127.0.0.1:8080");
    many_buckets(&server, "127.0.0.1:8080", 3);
    let full = File::options().write(true).open("/dev/full").expect("/dev/full can be opened");
    let mut full_disk = command(["kill", "--all", "--yes"]);
    Run::of(full_disk.stdout(full)).code(2);
    assert_eq!(procfs::buckets().len(), 3);
    // If the reader has closed the pipe, --yes still removes the buckets.
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut unread = command(["kill", "--all", "--yes"]);
    assert_eq!(Run::of(unread.stdout(writer)).code, Some(0));
    assert_eq!(procfs::buckets(), []);
}

fn an_interactive_user_sees_the_plan_and_is_asked() {
    kernel::needs(kernel::destroys_buckets(), "SOCK_DESTROY of buckets");
    let mixed = Mixed::make();
    let mut dialogue = Dialogue::start(&["kill", "--all", "--fin-wait-2", "--color", "never"]);
    dialogue.until("Remove 10 buckets? [y/N] ");
    assert_eq!(procfs::buckets().len(), 10, "nothing is removed before the answer");
    dialogue.types("y");
    let run = dialogue.end().code(0);
    assert_eq!(run.stdout, "10 destroyed, 0 already gone, 0 failed\n", "{run}");
    assert!(run.stderr.lines().all(|line| line.chars().count() <= 80), "each line fits the terminal{run}");
    let states = run.stderr.lines().filter(|line| line.contains("time-wait") || line.contains("fin-wait-2")).count();
    assert_eq!(states, 10, "every row{run}");
    run.says("RFC 1337").says("RFC 9293");
    assert_eq!(procfs::buckets(), []);
    mixed.end();
}

fn every_answer_except_yes_means_no() {
    kernel::needs(kernel::destroys_buckets(), "SOCK_DESTROY of buckets");
    let server = listen("127.0.0.1:8080");
    bucket_of_server(&server, "127.0.0.1:8080");
    // U+0004 is Ctrl-D, the end of the input (termios(3), VEOF).
    for typed in ["", "n", "no", "yess", "ja", "\u{4}"] {
        let mut dialogue = Dialogue::start(&["kill", "--all", "--json"]);
        dialogue.until("Remove 1 bucket? [y/N] ");
        dialogue.types(typed);
        let run = dialogue.end().code(2).says("nothing was removed");
        assert_eq!(run.stdout, "", "{run}");
        assert_eq!(procfs::time_wait().len(), 1, "{typed:?}{run}");
    }
    let mut dialogue = Dialogue::start(&["kill", "--all", "--json"]);
    dialogue.until("? [y/N] ");
    dialogue.types(" YES ");
    assert_eq!(counts(&dialogue.end().code(0)), [1, 1, 0, 0]);
    // If nothing matches, there is no question.
    let run = Dialogue::start(&["kill", "--all"]).end().code(1);
    assert_eq!((run.stdout.as_str(), run.stderr.as_str()), ("no TIME_WAIT socket matches\n", ""), "{run}");
}

fn buckets_that_end_during_the_question_are_reported_as_gone() {
    kernel::needs(kernel::destroys_buckets(), "SOCK_DESTROY of buckets");
    let server = listen("127.0.0.1:8080");
    many_buckets(&server, "127.0.0.1:8080", 5);
    let mut rows = rows();
    let all = rows.len();
    rows.truncate(2);
    let mut dialogue = Dialogue::start(&["kill", "--all", "-o", "ndjson"]);
    dialogue.until("? [y/N] ");
    assert_eq!(destroy(&rows), [Acknowledgement::Done; 2]);
    // This bucket is made after the plan was printed.
    bucket_of_client(&server, "127.0.0.1:8080");
    let new = of_entries(&procfs::time_wait()).into_iter().find(|bucket| bucket.2 != 8080).expect("the new one");
    dialogue.types("y");
    let run = dialogue.end().code(0);
    let outcomes: Vec<_> = sorted(run.ndjson().iter().map(|record| record["outcome"].to_string()));
    assert_eq!(outcomes.iter().filter(|outcome| *outcome == "\"gone\"").count(), 2, "{run}");
    assert_eq!(outcomes.iter().filter(|outcome| *outcome == "\"destroyed\"").count(), all - 2, "{run}");
    assert!(run.ndjson().iter().all(|record| identity(record) != new), "{run}");
    assert_eq!(of_entries(&procfs::time_wait()), [new], "the new bucket was not in the plan, so it stays");
}

fn a_fin_wait_2_that_became_time_wait_during_the_question_is_removed() {
    kernel::needs(kernel::destroys_buckets(), "SOCK_DESTROY of buckets");
    let server = listen("127.0.0.1:8080");
    let open = half_closed(&server, "127.0.0.1:8080", ActiveCloser::Server);
    let mut dialogue = Dialogue::start(&["kill", "--all", "--fin-wait-2", "--json"]);
    dialogue.until("? [y/N] ");
    drop(open);
    while procfs::time_wait().is_empty() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    dialogue.types("y");
    let run = dialogue.end().code(0);
    assert_eq!(counts(&run), [1, 1, 0, 0], "the bucket kept its cookie{run}");
    assert_eq!(procfs::buckets(), []);
}

/// Fills the connection until the peer's window and the send buffer are full, so that a FIN stays unsent.
fn fill(socket: &socket2::Socket) {
    socket.set_nonblocking(true).expect("non-blocking");
    while let Ok(sent) = (&*socket).write(&[0; 4096]) {
        assert!(sent > 0);
    }
}

/// One orphan in each state on port 8080, and sockets that have an owner or may get one. They exist as long as this value.
struct Orphans {
    _open: Vec<socket2::Socket>,
    _server: lab::Server,
}

impl Orphans {
    /// FIN_WAIT_1, FIN_WAIT_2, LAST_ACK, CLOSING, as numbers of net/tcp_states.h.
    const STATES: [u8; 4] = [4, 5, 9, 11];

    fn make() -> Self {
        let server = listen("127.0.0.1:8080");
        let connect = || crate::support::situations::connect(&server, "127.0.0.1:8080");
        let mut open = vec![];
        // The peer does not read, so data and FIN stay queued.
        let fin_wait_1 = connect();
        fill(&fin_wait_1.server);
        drop(fin_wait_1.server);
        open.push(fin_wait_1.client);
        // The peer sends its FIN before this end closes.
        let last_ack = connect();
        last_ack.client.shutdown(std::net::Shutdown::Write).expect("shutdown()");
        fill(&last_ack.server);
        drop(last_ack.server);
        open.push(last_ack.client);
        // The peer sends its FIN after this end has closed.
        let closing = connect();
        fill(&closing.server);
        drop(closing.server);
        closing.client.shutdown(std::net::Shutdown::Write).expect("shutdown()");
        open.push(closing.client);
        // If tcp_fin_timeout is longer than TIME_WAIT, the orphan is a full socket first.
        let usual = twtool::sys::sysctl::read("ipv4.tcp_fin_timeout").expect("tcp_fin_timeout");
        twtool::sys::sysctl::write("ipv4.tcp_fin_timeout", "120").expect("the namespace is ours");
        open.push(connect().close_half(ActiveCloser::Server).expect("half closed"));
        twtool::sys::sysctl::write("ipv4.tcp_fin_timeout", &usual).expect("the namespace is ours");
        // Sockets with an owner: established, FIN_WAIT_2 and CLOSE_WAIT.
        for shut in [None, Some(true), Some(false)] {
            let connection = connect();
            let end = if shut == Some(true) { &connection.server } else { &connection.client };
            if shut.is_some() {
                end.shutdown(std::net::Shutdown::Write).expect("shutdown()");
            }
            open.extend([connection.server, connection.client]);
        }
        // Sockets that the server has not accepted yet: established and CLOSE_WAIT, with inode 0.
        for shut in [false, true] {
            let client = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
            client
                .connect(&"127.0.0.1:8080".parse::<std::net::SocketAddr>().expect("an address").into())
                .expect("connected");
            if shut {
                client.shutdown(std::net::Shutdown::Write).expect("shutdown()");
            }
            open.push(client);
        }
        let deadline = std::time::Instant::now() + kernel::patience(std::time::Duration::from_secs(20));
        while Self::there() != Self::STATES {
            assert!(std::time::Instant::now() < deadline, "the orphans do not appear: {:?}", procfs::sockets());
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        Self { _open: open, _server: server }
    }

    /// The states of the orphans that exist.
    fn there() -> Vec<u8> {
        let mut states = vec![];
        for name in ["tcp", "tcp6"] {
            let file = std::fs::read_to_string(format!("/proc/thread-self/net/{name}")).expect("it can be read");
            for line in file.lines().skip(1) {
                let fields: Vec<&str> = line.split_whitespace().collect();
                let state = u8::from_str_radix(fields[3], 16).expect("a state");
                let bucket = fields[5].starts_with("03:");
                states.extend((!bucket && fields[9] == "0" && Self::STATES.contains(&state)).then_some(state));
            }
        }
        states.sort_unstable();
        states
    }
}

/// The sockets on the servers' ports that are neither orphans nor buckets. The clients' sockets are left out, because the kernel
/// resets the peer of a removed orphan.
fn owned() -> Vec<String> {
    let mut all = vec![];
    lab::for_each_socket(&mut |socket| {
        if let Socket::Full(full) = socket
            && !full.is_orphan()
            && [8080, 9000].contains(&full.tuple.local_port().0)
        {
            all.push(format!("{:?} {:?} {:?}", full.tuple, full.state, full.inode));
        }
    })
    .expect("a dump");
    sorted(all)
}

fn only_orphans_are_removed_and_no_socket_with_a_possible_owner() {
    kernel::needs(kernel::ends_orphans(), "SOCK_DESTROY that ends an orphan");
    let orphans = Orphans::make();
    let server = listen("127.0.0.1:9000");
    bucket_of_server(&server, "127.0.0.1:9000");
    let before = owned();
    assert!(before.iter().filter(|socket| socket.ends_with("Established None")).count() > 0, "{before:?}");
    assert!(before.iter().filter(|socket| socket.ends_with("CloseWait None")).count() > 0, "{before:?}");
    // Without --orphans, no orphan is selected. With --orphans, an orphan is selected only if the filter matches.
    assert_eq!(counts(&kill(&["--local-port", "8080"]).code(1)), [0; 4]);
    assert_eq!(counts(&kill(&["--local-port", "8080", "--fin-wait-2"]).code(1)), [0; 4]);
    assert_eq!(counts(&kill(&["--orphans", "--local-port", "8081"]).code(1)), [0; 4]);
    assert_eq!(counts(&kill(&["--orphans", "--local-port", "8080", "expires > 0s"]).code(1)), [0; 4]);
    assert_eq!(Orphans::there(), Orphans::STATES);
    let run = twtool(["kill", "--orphans", "--local-port", "8080", "--yes", "-o", "ndjson"]).ok();
    let records = run.ndjson();
    let states = sorted(records.iter().map(|record| record["state"].as_str().expect("a state").to_owned()));
    assert_eq!(states, ["closing", "fin-wait-1", "fin-wait-2", "last-ack"], "{run}");
    for record in &records {
        assert_eq!((&record["outcome"], &record["expires_ms"]), (&json!("destroyed"), &Value::Null), "{record}");
    }
    assert_eq!(Orphans::there(), [0; 0], "{run}");
    assert_eq!(owned(), before, "every socket that has or may get an owner stays");
    assert_eq!(procfs::time_wait().len(), 1, "the bucket on the other port stays");
    let run = kill(&["--orphans", "--all"]).ok();
    assert_eq!(counts(&run), [1, 1, 0, 0], "buckets are selected as well{run}");
    assert_eq!(owned(), before);
    drop(orphans);
}

fn the_plan_for_orphans_shows_the_risk_and_asks() {
    kernel::needs(kernel::ends_orphans(), "SOCK_DESTROY that ends an orphan");
    let _orphans = Orphans::make();
    let dry = twtool(["kill", "--orphans", "--all", "--dry-run"]).ok();
    dry.prints("1 orphan in FIN_WAIT_1").prints("a RST, and loses the data");
    assert_eq!(Orphans::there(), Orphans::STATES);
    let mut dialogue = Dialogue::start(&["kill", "--orphans", "state = fin-wait-2", "--color", "never"]);
    dialogue.until("Remove 1 orphan? [y/N] ");
    dialogue.types("y");
    let run = dialogue.end().code(0);
    assert_eq!(run.stdout, "1 destroyed, 0 already gone, 0 failed\n", "{run}");
    assert_eq!(Orphans::there(), [4, 9, 11]);
}

fn a_warning_names_the_flag_that_would_select_a_socket() {
    kernel::needs(kernel::ends_orphans(), "SOCK_DESTROY that ends an orphan");
    kernel::needs(kernel::destroys_buckets(), "SOCK_DESTROY of buckets");
    let server = listen("127.0.0.1:8080");
    let open = half_closed(&server, "127.0.0.1:8080", ActiveCloser::Server);
    let run = twtool(["kill", "--local-port", "8080", "--yes"])
        .code(1)
        .says("1 FIN_WAIT_2 matches; --fin-wait-2 selects it: ");
    assert_eq!(run.stdout, "no TIME_WAIT socket matches\n", "{run}");
    let json = kill(&["--local-port", "8080"]).code(1);
    assert!(json.json()["warnings"][0].as_str().is_some_and(|warning| warning.contains("--fin-wait-2")), "{json}");
    let elsewhere = kill(&["--local-port", "9"]).code(1);
    assert_eq!(elsewhere.json()["warnings"], json!([]), "{elsewhere}");
    // The hint ends with the whole command.
    let hint = twtool(["kill", "--local-port", "8080", "--yes"]).code(1).stderr;
    commands::succeeds(hint.trim().rsplit(": ").next().expect("a command")).prints("1 destroyed");
    drop((open, server));
    let orphans = Orphans::make();
    let run = twtool(["kill", "--local-port", "8080", "--yes"]).code(1);
    let run = run.says("1 orphan in FIN_WAIT_1").says("--orphans selects them: ");
    commands::succeeds(run.stderr.trim().rsplit(": ").next().expect("a command")).prints("4 destroyed");
    drop(orphans);
}

fn no_command_is_printed_for_sockets_that_this_kernel_cannot_remove() {
    let hint = || twtool(["kill", "--local-port", "8080", "--yes"]).code(1).stderr;
    netns::on_thread_in_new_namespace(|| {
        let server = listen("127.0.0.1:8080");
        let open = half_closed(&server, "127.0.0.1:8080", ActiveCloser::Server);
        assert_eq!(hint().contains("cannot remove it"), !kernel::destroys_buckets(), "{}", hint());
        drop(open);
    });
    let orphans = Orphans::make();
    assert_eq!(hint().contains("cannot remove them"), !kernel::ends_orphans(), "{}", hint());
    drop(orphans);
}

fn several_ports_may_be_separated_by_commas() {
    kernel::needs(kernel::destroys_buckets(), "SOCK_DESTROY of buckets");
    let servers = ["127.0.0.1:8080", "127.0.0.1:8081", "127.0.0.1:8090", "127.0.0.1:8100"];
    for at in servers {
        bucket_of_server(&listen(at), at);
    }
    let count = |args: &[&str]| twtool([&["list", "--count"], args].concat()).ok().stdout;
    for flag in ["--port", "--local-port"] {
        assert_eq!(count(&[flag, "8080,8081"]), "2\n", "{flag}");
        assert_eq!(count(&[flag, "http-alt,8090-8099", flag, "8100"]), "3\n", "{flag}");
    }
    assert_eq!(count(&["--remote-port", "1,2"]), "0\n");
    twtool(["list", "--port", "8080,nosuch"]).refused("nosuch");
    twtool(["list", "--port", "8080,"]).code(2);
    assert_eq!(counts(&kill(&["--local-port", "8080,8100"]).ok()), [2, 2, 0, 0]);
    assert_eq!(procfs::time_wait().len(), 2);
}

fn orphans_are_removed_only_if_this_kernel_ends_them() {
    // This function tests in a private namespace whether SOCK_DESTROY ends an orphan. The result must be the same in this namespace.
    let before = (owned(), procfs::buckets());
    let ends = lab::orphan::test_sock_destroy().expect("a private network namespace");
    assert_eq!((owned(), procfs::buckets()), before, "the experiment leaves nothing in this namespace");
    let _orphans = Orphans::make();
    let run = kill(&["--orphans", "--all"]);
    assert_eq!(run.code, Some(if ends { 0 } else { 2 }), "{run}");
    assert_eq!(Orphans::there().len(), if ends { 0 } else { 4 });
}
