//! `bind-test` and `wait` with the buckets of one or two old sockets, for every combination of the options of the old sockets and every
//! value of `--with`. Binds of the test itself decide which result is right.

use serde_json::Value;
use twtool::lab::{ActiveCloser, Server};
use twtool::model::bind::ReuseOptions;

use crate::support::bind::{OPTION_SETS, OpenSockets, bind};
use crate::support::situations::{addr, connect, half_closed};
use crate::support::suite;
use crate::support::twtool::{Run, twtool};

suite! {
    pure: [],
    netns: [
        bind_test_and_wait_agree_with_binds_of_the_test,
    ],
}

/// The values of `--with`, in the order of [`OPTION_SETS`].
const WITH: [&str; 4] = ["none", "reuseaddr", "reuseport", "both"];

/// For each of `olds`, a server with these options leaves a bucket (TIME_WAIT or FIN_WAIT_2) on port 8080 of its own address.
fn leave(olds: &[ReuseOptions], fin_wait_2: bool) -> OpenSockets {
    let mut open = vec![];
    for (last, old) in (1..).zip(olds) {
        let at = format!("127.0.0.{last}:8080");
        let server = Server::listen(addr(&at), *old).expect("listening");
        if fin_wait_2 {
            open.push(half_closed(&server, &at, ActiveCloser::Server));
        } else {
            connect(&server, &at).close(ActiveCloser::Server).expect("a bucket");
        }
    }
    Box::new(open)
}

fn bind_test_and_wait_agree_with_binds_of_the_test() {
    let all = ReuseOptions::ALL;
    let pairs = (0..4).flat_map(|a| (a..4).map(move |b| vec![all[a], all[b]]));
    let olds: Vec<Vec<ReuseOptions>> = all.iter().map(|old| vec![*old]).chain(pairs).collect();
    for olds in &olds {
        for fin_wait_2 in [false, true] {
            let situation = || leave(olds, fin_wait_2);
            // A bind with SO_REUSEPORT can change the result of the next bind, so each bind has its own situation.
            let works = OPTION_SETS.map(|options| {
                crate::support::netns::on_thread_in_new_namespace(|| {
                    let _kept = situation();
                    bind("0.0.0.0", 8080, options, false).0 == "ok"
                })
            });
            crate::support::netns::on_thread_in_new_namespace(|| {
                let _kept = situation();
                check(works, &format!("old sockets {olds:?}, FIN_WAIT_2 {fin_wait_2}"));
            });
        }
    }
}

/// Compares `bind-test` and `wait` with the binds of the test, for every value of `--with`.
fn check(works: [bool; 4], situation: &str) {
    let [none, reuseaddr, ..] = works;
    let cause = match (none, reuseaddr) {
        (true, _) => "none",
        (false, true) => "time-wait",
        (false, false) => "time-wait-without-reuseaddr",
    };
    for (with, ok) in WITH.into_iter().zip(works) {
        let verdict = if none {
            "free"
        } else if ok {
            "reusable"
        } else {
            "blocked"
        };
        let run = twtool(["bind-test", "8080", "--addr", "0.0.0.0", "--with", with, "--json"]).code(i32::from(!ok));
        let document = run.json();
        assert_eq!(
            (&document["verdict"], &document["cause"]),
            (&Value::from(verdict), &Value::from(cause)),
            "{situation}{run}"
        );
        advice_works(&document, works, &run);
        let wait = ["wait", "8080", "--addr", "0.0.0.0", "--with", with, "--timeout", "0", "--json"];
        let run = twtool(wait).code(i32::from(!ok));
        let document = run.json();
        let expected = if ok { "none" } else { cause };
        assert_eq!((&document["bindable"], &document["cause"]), (&Value::from(ok), &Value::from(expected)), "{run}");
    }
}

/// Checks that the options that the first advice names work. If it names none, checks that no options work. Without
/// advice, checks nothing.
fn advice_works(document: &Value, works: [bool; 4], run: &Run) {
    let Some(first) = document["advice"][0].as_str() else { return };
    // The advice never names the set without options, so no advice contains the first text.
    let sets = ["\u{0}", "SO_REUSEADDR", "SO_REUSEPORT", "SO_REUSEADDR and SO_REUSEPORT"];
    let named = (0..4).rev().find(|number| first.contains(&format!("Set {} on ", sets[*number])));
    match named {
        Some(number) => assert!(works[number], "{first}{run}"),
        None => assert_eq!(works[1..], [false; 3], "some options work, and the advice names none{run}"),
    }
}
