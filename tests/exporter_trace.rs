//! `twtool exporter --trace`: the counters agree with the closes of the tests' processes, and the thread that traces drops all
//! capabilities, except CAP_BPF on older kernels.

#![expect(clippy::float_cmp, reason = "the numbers are small counts, which are exact")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use twtool::metrics::MetricFamily;

use crate::confinement::is_active;
use crate::metrics::{promtool_accepts, samples, sum};
use crate::support::cgroup::Cgroup;
use crate::support::exporter::{Exporter, ask, get};
use crate::support::kernel::patience;
use crate::support::netns::{has_user, on_thread_in_new_namespace};
use crate::support::private_proc::Resident;
use crate::support::tracer::{Outside, close, closers, expectations, needs_bpf, own_netns, until};
use crate::support::twtool::{PATH, program, twtool};
use crate::support::{not_checked, suite};
use crate::trace::{close_many, fewest_counted};

suite! {
    pure: [],
    netns: [
        closes_are_counted_by_program_and_role,
        a_unit_has_one_counter_for_all_its_processes,
        programs_above_the_limit_share_one_counter,
        each_network_namespace_has_its_own_counters,
        the_thread_that_traces_keeps_at_most_cap_bpf,
        tracing_needs_exactly_two_capabilities,
        the_documented_unit_lines_for_trace_are_enough,
        a_signal_ends_an_exporter_that_traces,
        closes_that_the_exporter_did_not_read_in_time_are_counted_as_lost,
        without_trace_no_metric_of_the_tracer_is_served,
    ],
}

/// An exporter that runs outside the user namespace of the tests, but in the calling thread's network namespace. The exporter listens on
/// a Unix socket, because it would also count the closes of scrapes over TCP.
struct Tracing(Outside);

impl Tracing {
    /// Starts `twtool exporter --trace` with these arguments. `before` is put in front of the command.
    #[track_caller]
    fn start(before: &str, args: &str) -> Self {
        needs_bpf();
        let command = format!("'{PATH}' exporter --trace --listen unix:socket --min-interval 0s {args}");
        // Some tests run the exporter as another user, who must be able to make the socket in this folder.
        let line = format!("chmod 777 .; nsenter --net={} {before} {command}", own_netns());
        let exporter = Self(Outside::start(&line).expect("a shell"));
        until("the exporter listens", || {
            let log = fs::read_to_string(exporter.0.file("err")).unwrap_or_default();
            assert!(!exporter.0.file("code").exists(), "it has ended: {log}");
            log.contains("msg=listening").then_some(())
        });
        exporter
    }

    fn scrape(&self) -> String {
        let stream = UnixStream::connect(self.0.file("socket")).expect("the exporter listens");
        ask(stream, "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").body
    }

    /// The counters of closes, by their labels except `netns`.
    fn counters(&self) -> BTreeMap<String, f64> {
        let mut counters = BTreeMap::new();
        for (series, value) in samples(&self.scrape()) {
            let Some(labels) = series.strip_prefix("twtool_traced_closes_total{netns=\"") else { continue };
            let (_, labels) = labels.split_once("\",").expect("a role");
            *counters.entry(labels.trim_end_matches('}').to_owned()).or_default() += value;
        }
        counters
    }

    #[track_caller]
    fn counts(&self, expected: &BTreeMap<String, f64>) {
        let began = Instant::now();
        loop {
            let now = self.counters();
            if now == *expected {
                return;
            }
            let more = |(labels, number): &(&String, &f64)| now.get(*labels).is_some_and(|counted| counted > *number);
            let late = began.elapsed() > patience(Duration::from_secs(20));
            assert!(!late && !expected.iter().any(|one| more(&one)), "{now:?} instead of {expected:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The name of each thread of the exporter, and the value of this field in the thread's status file in /proc.
    fn threads(&self, field: &str) -> Vec<(String, String)> {
        let line = |status: &str, name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            Some(line.trim_start_matches(':').trim().to_owned())
        };
        let tasks = fs::read_dir(format!("/proc/{}/task", self.0.pid())).expect("it runs").flatten();
        let statuses = tasks.filter_map(|task| fs::read_to_string(task.path().join("status")).ok());
        statuses.filter_map(|status| Some((line(&status, "Name")?, line(&status, field)?))).collect()
    }
}

impl Drop for Tracing {
    fn drop(&mut self) {
        // The exporter may run as another user. Only a shell outside of the tests' user namespace can kill it then.
        if !self.0.file("code").exists()
            && let Some(killed) = Outside::start(&format!("kill -KILL {}", self.0.pid()))
        {
            killed.end();
        }
    }
}

/// Adds closes to the expected counters. `closes` are the lines that closers.py printed.
fn add(expected: &mut BTreeMap<String, f64>, program: &str, closes: &[Value]) {
    for close in closes.iter().filter(|close| close["absent"] != true) {
        let role = close["role"].as_str().expect("a role");
        *expected.entry(format!("{program},role=\"{role}\"")).or_default() += 1.0;
    }
}

fn closes_are_counted_by_program_and_role() {
    let exporter = Tracing::start("", "");
    assert_eq!(exporter.counters(), BTreeMap::new());
    let mut expected = BTreeMap::new();
    add(&mut expected, "process=\"python3\"", &close(&["close", "accepted", "accepted", "exit", "linger_0"]));
    assert_eq!(expected.len(), 2, "both roles");
    exporter.counts(&expected);
    add(&mut expected, "process=\"python3\"", &close(&["close"]));
    // The name of this process has an escape character and a line feed.
    add(&mut expected, "process=\"a\u{1b}[31m\\nb\"", &close(&["renamed"]));
    exporter.counts(&expected);
    if program("promtool").is_some() {
        promtool_accepts(&exporter.scrape());
    }
    let all = samples(&exporter.scrape());
    assert_eq!(sum(&all, MetricFamily::TraceLost, &[]), 0.0);
    assert!(sum(&all, MetricFamily::TraceSkipped, &[]) < 1000.0);
}

fn a_unit_has_one_counter_for_all_its_processes() {
    let cgroup = match Cgroup::make("twtool-shop.service") {
        Ok(cgroup) => cgroup,
        Err(why) => return not_checked(format!("closes of a unit: {why}")),
    };
    let exporter = Tracing::start("", "");
    let mut expected = BTreeMap::new();
    for _ in 0..2 {
        let closers = closers(&["close", "renamed"]);
        let mut shell = Command::new("sh");
        shell.args(["-c", "for file in $FILES; do echo $$ >$file; done; exec \"$@\"", "sh"]);
        shell.arg(closers.get_program()).args(closers.get_args()).env("FILES", cgroup.files().join(" "));
        let output = shell.stdin(Stdio::null()).output().expect("sh");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        add(&mut expected, "unit=\"twtool-shop.service\"", &expectations(&output.stdout));
    }
    exporter.counts(&expected);
}

fn programs_above_the_limit_share_one_counter() {
    let exporter = Tracing::start("", "--max-destinations 1");
    let mut expected = BTreeMap::new();
    add(&mut expected, "process=\"python3\"", &close(&["close"]));
    exporter.counts(&expected);
    add(&mut expected, "process=\"others\"", &close(&["renamed"]));
    add(&mut expected, "process=\"python3\"", &close(&["accepted"]));
    add(&mut expected, "process=\"others\"", &close(&["renamed"]));
    exporter.counts(&expected);
}

fn each_network_namespace_has_its_own_counters() {
    let exporter = Tracing::start("", "--all-netns");
    let netns = |all: &BTreeMap<String, f64>, family: MetricFamily| -> BTreeSet<String> {
        let series = all.keys().filter(|series| series.starts_with(&format!("{}{{", family.name())));
        series.map(|series| series.split('"').nth(1).expect("a label").to_owned()).collect()
    };
    let label = || format!("net:[{}]", fs::metadata("/proc/thread-self/ns/net").expect("a namespace").ino());
    let (made, there) = channel();
    let (done, wait) = channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            on_thread_in_new_namespace(move || {
                // twtool finds a namespace by its processes.
                let _resident = Resident::start();
                close(&["close", "accepted"]);
                made.send(label()).expect("the test waits");
                let _ = wait.recv();
            });
        });
        let (here, there) = (label(), there.recv().expect("a namespace"));
        close(&["close"]);
        until("the closes of both namespaces", || {
            let all = samples(&exporter.scrape());
            // Each namespace with counters of closes also has the other metrics.
            let (traced, complete) = (netns(&all, MetricFamily::TracedCloses), netns(&all, MetricFamily::Complete));
            assert!(traced.is_subset(&complete), "{traced:?} {complete:?}");
            let closes = |netns: &str| {
                let series = format!("{}{{netns=\"{netns}\"", MetricFamily::TracedCloses.name());
                all.iter().filter(|(one, _)| one.starts_with(&series)).map(|(_, closes)| closes).sum::<f64>()
            };
            let is_unknown = |series: &&String| series.contains("role=\"unknown\"");
            let role_is_known = all
                .keys()
                .filter(is_unknown)
                .all(|series| !series.contains(&format!("\"{here}\"")) && !series.contains(&format!("\"{there}\"")));
            ((closes(&here), closes(&there)) == (1.0, 2.0)).then(|| assert!(role_is_known, "{all:?}"))
        });
        drop(done);
    });
}

fn the_thread_that_traces_keeps_at_most_cap_bpf() {
    let exporter = Tracing::start("", "");
    exporter.scrape();
    let (ptrace, read_search, bpf) = (1 << 19, 1 << 2, 1 << 39);
    let permitted = exporter.threads("CapPrm");
    assert_eq!(permitted, exporter.threads("CapEff"));
    for (name, set) in &permitted {
        let set = u64::from_str_radix(set, 16).expect("a mask");
        // Before Linux 5.19, if kernel.unprivileged_bpf_disabled is set, reading the counters of the BPF program needs CAP_BPF. In this
        // case the thread keeps CAP_BPF.
        let expected = if name == "trace" { [0, bpf] } else { [ptrace | read_search; 2] };
        assert!(expected.contains(&set), "{permitted:?}");
    }
    for expected in ["trace", "serve"] {
        assert!(permitted.iter().any(|(name, _)| name == expected), "{permitted:?}");
    }
    let filters = exporter.threads("Seccomp");
    let expected = if is_active("seccomp") { "2" } else { "0" };
    assert!(filters.iter().all(|(_, mode)| mode == expected), "{filters:?}");
}

fn tracing_needs_exactly_two_capabilities() {
    // BPF needs capabilities in the initial user namespace. The test has them only in its own.
    twtool(["exporter", "--trace"]).refused("closes cannot be traced");
    needs_bpf();
    if !has_user(65534) || program("setpriv").is_none() {
        return not_checked("the capabilities of exporter --trace: there is no other user or no setpriv");
    }
    let with = |names: &[&str]| {
        let list = [&["-all"][..], names].concat().join(",+");
        format!(
            "setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps={list} --ambient-caps={list} --bounding-set={list}"
        )
    };
    for names in [&["bpf"][..], &["perfmon"], &["net_admin"], &[]] {
        let line = format!("{} '{PATH}' exporter --trace --listen 127.0.0.1:0", with(names));
        let run = Outside::start(&line).expect("a shell").end();
        run.code(2).says("CAP_BPF and CAP_PERFMON");
    }
    let exporter = Tracing::start(&with(&["bpf", "perfmon"]), "");
    let mut expected = BTreeMap::new();
    add(&mut expected, "process=\"python3\"", &close(&["close", "accepted"]));
    exporter.counts(&expected);
    let kept = exporter.threads("CapPrm");
    assert!(kept.iter().all(|(name, set)| name == "trace" || set == "0000000000000000"), "{kept:?}");
}

/// Runs the exporter as its systemd unit does, with the lines for --trace from docs/commands/exporter.md.
fn the_documented_unit_lines_for_trace_are_enough() {
    needs_bpf();
    for name in ["setpriv", "python3", "systemd-analyze"] {
        if program(name).is_none() {
            return not_checked(format!("exporter --trace in its unit: {name} is not installed"));
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| fs::read_to_string(root.join(path)).expect("a text");
    let page = read("docs/commands/exporter.md");
    let lines = page.split("```ini\n[Service]\nAmbientCapabilities=").nth(1).and_then(|rest| rest.split("```").next());
    let (capabilities, lines) = lines.and_then(|lines| lines.split_once('\n')).expect("the lines of the page");
    let list: Vec<String> = capabilities.split(' ').map(|one| one.to_lowercase().replace("cap_", "+")).collect();
    let list = format!("-all,{}", list.join(","));
    let unit = read("packaging/systemd/twtool-exporter.service").replace("[Install]", &format!("{lines}\n[Install]"));
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("twtool-exporter.service");
    fs::write(&path, unit).expect("written");
    let before = format!(
        "setpriv --no-new-privs --inh-caps={list} --bounding-set={list} python3 {} {}",
        root.join("tests/support/under_unit.py").display(),
        path.display()
    );
    let exporter = Tracing::start(&before, "");
    let mut expected = BTreeMap::new();
    add(&mut expected, "process=\"python3\"", &close(&["close", "accepted"]));
    exporter.counts(&expected);
    assert!(exporter.threads("Seccomp").iter().all(|(_, mode)| mode == "2"));
}

fn a_signal_ends_an_exporter_that_traces() {
    // The thread that traces may read the signal from its signalfd before the signal handler of the server runs. The exporter must end in
    // both orders.
    for number in 0..10 {
        let exporter = Tracing::start("", "");
        let signal = if number % 2 == 0 { Signal::SIGTERM } else { Signal::SIGINT };
        kill(exporter.0.pid(), signal).expect("a signal");
        exporter.0.end().code(0).says("msg=ended");
    }
}

fn closes_that_the_exporter_did_not_read_in_time_are_counted_as_lost() {
    let exporter = Tracing::start("", "");
    kill(exporter.0.pid(), Signal::SIGSTOP).expect("a signal");
    close_many(4, 5000);
    kill(exporter.0.pid(), Signal::SIGCONT).expect("a signal");
    #[expect(clippy::cast_precision_loss, reason = "the number is small")]
    let fewest = fewest_counted(20_000) as f64;
    until("all closes are counted or lost", || {
        let all = samples(&exporter.scrape());
        let [lost, skipped] =
            [MetricFamily::TraceLost, MetricFamily::TraceSkipped].map(|family| sum(&all, family, &[]));
        (lost > 0.0 && exporter.counters().values().sum::<f64>() + lost + skipped >= fewest).then_some(())
    });
}

fn without_trace_no_metric_of_the_tracer_is_served() {
    let _exporter = Exporter::start(&[]);
    let text = get("/metrics").body;
    assert!(!text.contains("twtool_trace") && text.contains("twtool_complete"), "{text}");
}
