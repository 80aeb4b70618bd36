//! The integration tests: the binary and the library on the real kernel, in private namespaces.
//!
//! `main` enters a user namespace while the process has one thread. Then each test in the list `netns` of a `suite!` runs on its own
//! thread, in its own network namespace. So these tests need no root, and they do not change the network of the host. If namespaces are
//! forbidden, these tests are ignored with a message. With `TWTOOL_REQUIRE_NETNS=1`, they fail instead.

mod ask_as_the_server;
mod bad_input;
mod bind_causes;
mod bind_demo;
mod bind_free_in;
mod bind_holders;
mod bind_note;
mod bind_states;
mod bind_test;
mod capacity;
mod capacity_truth;
mod churn;
mod completions;
mod confinement;
mod connect_test;
mod connect_truth;
mod container;
mod crowded_port;
mod demo;
mod demo_traces;
mod directions;
mod doctor;
mod documents;
mod examples;
mod exporter;
mod exporter_trace;
mod faults;
mod filter;
mod holder_identity;
mod kernel_answers;
mod kill;
mod layers;
mod list;
mod list_flags;
mod manual;
mod metrics;
mod netns;
mod netns_refused;
mod next_steps;
mod obstacles;
mod port;
mod printed_commands;
mod privileges;
mod procfs_source;
mod prometheus;
mod recordings;
mod refusals;
mod settings;
mod streams;
mod summary;
mod summary_owners;
mod support;
#[cfg(feature = "tls")]
mod tls;
#[cfg(feature = "trace")]
mod trace;
#[cfg(feature = "trace")]
mod trace_owners;
mod wait;
mod wait_for_others;
mod watch;
mod watch_commands;
mod watch_fates;
mod watch_makers;
mod watch_screen;
mod watch_terminal;
mod why;
mod why_kinds;
mod why_process;
mod why_programs;

use std::io::Write as _;
use std::process::ExitCode;

use libtest_mimic::Arguments;
use nix::sys::signal::{SigHandler, Signal, signal};

fn suites() -> Vec<support::Suite> {
    vec![
        ask_as_the_server::suite(),
        bad_input::suite(),
        bind_causes::suite(),
        bind_demo::suite(),
        bind_free_in::suite(),
        bind_holders::suite(),
        bind_note::suite(),
        bind_states::suite(),
        bind_test::suite(),
        capacity::suite(),
        capacity_truth::suite(),
        churn::suite(),
        completions::suite(),
        confinement::suite(),
        connect_test::suite(),
        connect_truth::suite(),
        crowded_port::suite(),
        container::suite(),
        demo::suite(),
        demo_traces::suite(),
        directions::suite(),
        doctor::suite(),
        documents::suite(),
        examples::suite(),
        exporter::suite(),
        exporter_trace::suite(),
        faults::suite(),
        filter::suite(),
        holder_identity::suite(),
        kernel_answers::suite(),
        kill::suite(),
        layers::suite(),
        list::suite(),
        list_flags::suite(),
        manual::suite(),
        metrics::suite(),
        netns::suite(),
        netns_refused::suite(),
        next_steps::suite(),
        obstacles::suite(),
        port::suite(),
        printed_commands::suite(),
        privileges::suite(),
        procfs_source::suite(),
        prometheus::suite(),
        recordings::suite(),
        refusals::suite(),
        settings::suite(),
        streams::suite(),
        summary::suite(),
        summary_owners::suite(),
        #[cfg(feature = "tls")]
        tls::suite(),
        #[cfg(feature = "trace")]
        trace::suite(),
        #[cfg(feature = "trace")]
        trace_owners::suite(),
        wait::suite(),
        wait_for_others::suite(),
        watch::suite(),
        watch_commands::suite(),
        watch_fates::suite(),
        watch_makers::suite(),
        watch_screen::suite(),
        watch_terminal::suite(),
        why::suite(),
        why_kinds::suite(),
        why_process::suite(),
        why_programs::suite(),
    ]
}

fn main() -> ExitCode {
    // A test starts this program again to see what a panic in a demo leaves behind.
    if let Ok(scenario) = std::env::var(demo_traces::PANICKING) {
        demo_traces::panic_in(&scenario);
        return ExitCode::FAILURE;
    }
    // Another test runs this program again to see how a panic leaves the terminal.
    if std::env::var_os(watch_screen::PANICKING).is_some() {
        watch_screen::panic_on_a_screen();
    }
    // A test also starts this program again to open sockets as another user.
    if let Ok(instructions) = std::env::var(support::opener::INSTRUCTIONS) {
        support::opener::run_instructions(&instructions);
        return ExitCode::SUCCESS;
    }
    restore_default_actions();
    let args = Arguments::from_args();
    let suites = suites();
    if !args.list {
        support::tracer::prepare();
    }
    let namespaces = if args.list { Ok(()) } else { support::netns::prepare() };
    let trials = suites.iter().flat_map(|suite| suite.trials(&namespaces)).collect();
    let conclusion = libtest_mimic::run(&args, trials);
    // A test run cannot react to a write error on stderr.
    let mut stderr = std::io::stderr();
    if let Err(why) = &namespaces
        && conclusion.num_ignored > 0
    {
        let _ = writeln!(
            stderr,
            "\n*** {} tests of the real kernel were NOT RUN: {why}\n*** with {}, these tests fail instead\n",
            conclusion.num_ignored,
            support::netns::REQUIRE
        );
    }
    for number in support::measurements() {
        let _ = writeln!(stderr, "*** {number}");
    }
    for gap in support::gaps() {
        let _ = writeln!(stderr, "*** not checked: {gap}");
    }
    conclusion.exit_code()
}

/// Restores the default action of SIGINT and SIGHUP, for this process and the programs that the tests start. A shell without job control
/// starts its background jobs with SIGINT ignored, nohup(1) ignores SIGHUP, and twtool keeps an ignored signal ignored.
#[expect(unsafe_code, reason = "no safe wrapper changes the action of a signal")]
fn restore_default_actions() {
    for number in [Signal::SIGINT, Signal::SIGHUP] {
        // SAFETY: the default action runs no code of this process.
        unsafe { signal(number, SigHandler::SigDfl) }.expect("the default action of a signal");
    }
}
