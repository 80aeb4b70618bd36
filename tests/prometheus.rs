//! Prometheus scrapes three exporters. Each exporter runs in a network namespace that stands for a machine. If BPF can trace here,
//! Prometheus also scrapes an exporter with --trace. One machine runs out of ports: the alert must fire before connect() fails, and resolve
//! when connect() works again. The query of every panel of the boards must return a result.
//!
//! The three exporters get their listening sockets from the namespace of Prometheus, as systemd would pass them. So no network between
//! the namespaces is necessary.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use twtool::sys::sysctl;

use crate::support::commands::needs_program;
use crate::support::exporter::ask;
use crate::support::private_proc::in_new_namespace;
use crate::support::situations::{bucket_of_server, listen};
use crate::support::tracer::{Outside, own_netns, why_bpf_cannot_trace};
use crate::support::twtool::{PATH, Run, twtool};
use crate::support::{kernel, not_checked, suite};

suite! {
    pure: [
        the_rules_pass_their_tests,
        promtool_accepts_the_scrape_example_and_the_daemon_set_adds_no_capability,
    ],
    netns: [
        the_lines_of_the_readme_work_as_pasted,
        node_exporter_serves_the_textfile,
        an_alert_fires_before_connect_fails_and_every_panel_has_series,
    ],
}

fn packaging(below: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging").join(below)
}

fn promtool(args: &[&str]) -> Run {
    Run::of(Command::new("promtool").args(args).current_dir(packaging("prometheus")))
}

fn the_rules_pass_their_tests() {
    needs_program("promtool");
    promtool(&["test", "rules", "twtool.rules.test.yml"]).code(0);
    promtool(&["check", "rules", "twtool.rules.yml"]).code(0);
    let rules = fs::read_to_string(packaging("prometheus/twtool.rules.yml")).expect("rules");
    let tests = fs::read_to_string(packaging("prometheus/twtool.rules.test.yml")).expect("tests");
    let alerts: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert_eq!(alerts.len(), 8);
    for alert in alerts {
        assert!(tests.contains(alert), "{alert} has no test");
    }
}

fn promtool_accepts_the_scrape_example_and_the_daemon_set_adds_no_capability() {
    needs_program("promtool");
    promtool(&["check", "config", "scrape.yml"]).code(0);
    // The DaemonSet runs as a user without any capability. A test of the exporter shows that the exporter needs none.
    let daemon_set = fs::read_to_string(packaging("prometheus/kubernetes.yml")).expect("a text");
    let lines: Vec<&str> = daemon_set.lines().map(str::trim).filter(|line| !line.starts_with('#')).collect();
    for line in ["capabilities: {drop: [ALL]}", "allowPrivilegeEscalation: false", "runAsNonRoot: true"] {
        assert!(lines.contains(&line), "{line}");
    }
    assert!(!lines.iter().any(|line| line.contains("add:") || line.contains("privileged:")), "{lines:?}");
}

/// Runs the lines of the README that start an exporter, read its metrics, and check the files of packaging/prometheus.
fn the_lines_of_the_readme_work_as_pasted() {
    needs_program("promtool");
    needs_program("curl");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = fs::read_to_string(root.join("README.md")).expect("a text");
    let block = readme.split("```sh\n").find(|block| block.contains("twtool exporter")).expect("a block");
    let lines = block.split("```").next().expect("lines");
    assert_eq!(lines.lines().count(), 5);
    let bin = tempfile::tempdir().expect("a folder");
    std::os::unix::fs::symlink(PATH, bin.path().join("twtool")).expect("a link");
    let path = format!("{}:{}", bin.path().display(), std::env::var("PATH").expect("PATH"));
    let server = TcpListener::bind("127.0.0.1:443").expect("bound");
    use_a_port(&server).expect("a TIME_WAIT socket");
    // `set -e` ends the shell at the first line that fails. The exporter ends with the shell.
    let script = format!("set -e; trap 'kill $!' EXIT\n{lines}");
    let run =
        Run::of(Command::new("bash").args(["-c", &script]).current_dir(root).env("PATH", path).stdin(Stdio::null()));
    run.code(0).prints("twtool_destination_free_ports{");
}

fn node_exporter_serves_the_textfile() {
    needs_program("prometheus-node-exporter");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("twtool.prom");
    twtool(["metrics", "--textfile", file.to_str().expect("UTF-8")]).ok();
    let mut command = Command::new("prometheus-node-exporter");
    command.args(["--collector.disable-defaults", "--collector.textfile", "--web.listen-address=127.0.0.1:9100"]);
    command.arg(format!("--collector.textfile.directory={}", folder.path().display()));
    let _node_exporter = Prometheus(command.stderr(Stdio::null()).spawn().expect("node_exporter starts"));
    wait_until("node_exporter listens", || TcpStream::connect("127.0.0.1:9100").is_ok());
    let stream = TcpStream::connect("127.0.0.1:9100").expect("it listens");
    let page = ask(stream, "GET /metrics HTTP/1.0\r\nHost: x\r\n\r\n").body;
    assert!(page.contains("\nnode_textfile_scrape_error 0\n"), "{page}");
    assert!(page.contains("\ntwtool_collection_complete 1\n"), "{page}");
    assert!(page.contains("\n# HELP twtool_timewait_sockets Timewait buckets"), "{page}");
}

/// A network namespace that stands for a machine, with an exporter.
struct Machine {
    netns: File,
    exporter: Child,
    address: String,
}

impl Machine {
    fn start(address: &str) -> Self {
        let socket = TcpListener::bind(address).expect("bound");
        fcntl(&socket, FcntlArg::F_SETFD(FdFlag::empty())).expect("inheritable");
        let (netns, exporter) = in_new_namespace(|| {
            // A shell passes the socket as descriptor 3 and keeps its process ID in exec.
            let options = "--min-interval 0s --close-wait-after 0s";
            let script = format!("LISTEN_PID=$$ LISTEN_FDS=1 exec {PATH} exporter {options} 3<&{}", socket.as_raw_fd());
            let exporter =
                Command::new("bash").args(["-c", &script]).stderr(Stdio::null()).spawn().expect("bash starts");
            (File::open("/proc/thread-self/ns/net").expect("a namespace"), exporter)
        });
        Self { netns, exporter, address: address.to_owned() }
    }

    /// Runs a function in the namespace of this machine, on the same thread.
    fn within<T>(&self, run: impl FnOnce() -> T) -> T {
        let home = File::open("/proc/thread-self/ns/net").expect("a namespace");
        setns(&self.netns, CloneFlags::CLONE_NEWNET).expect("entered");
        let result = run();
        setns(home, CloneFlags::CLONE_NEWNET).expect("back again");
        result
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.exporter.kill();
        let _ = self.exporter.wait();
    }
}

/// A running Prometheus, or node_exporter.
struct Prometheus(Child);

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Prometheus {
    const ADDRESS: &str = "127.0.0.1:9090";

    fn start(folder: &Path, targets: &[&str]) -> Self {
        let config = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: ['{}']\nscrape_configs:\n- {{job_name: twtool, \
             static_configs: [{{targets: {targets:?}}}]}}\n",
            packaging("prometheus/twtool.rules.yml").display()
        );
        fs::write(folder.join("prometheus.yml"), config).expect("written");
        let mut command = Command::new("prometheus");
        command.arg("--config.file=prometheus.yml").arg("--storage.tsdb.path=data");
        command.arg(format!("--web.listen-address={}", Self::ADDRESS)).current_dir(folder);
        Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("prometheus starts"))
    }

    /// Sends a request to the HTTP interface. Returns `None` if Prometheus does not answer yet.
    fn api(path: &str) -> Option<Value> {
        let stream = TcpStream::connect(Self::ADDRESS).ok()?;
        let response = ask(stream, &format!("GET /api/v1/{path} HTTP/1.0\r\nHost: x\r\n\r\n"));
        let answer: Value = serde_json::from_str(&response.body).ok()?;
        assert!(answer["status"] == "success" || response.status == 503, "{path}: {answer}");
        Some(answer["data"].clone())
    }

    /// The result of a query. The result is empty if Prometheus does not answer yet.
    fn query(query: &str) -> Vec<Value> {
        let escaped = query.bytes().fold(String::new(), |text, byte| format!("{text}%{byte:02x}"));
        let data = Self::api(&format!("query?query={escaped}"));
        data.and_then(|data| data["result"].as_array().cloned()).unwrap_or_default()
    }

    fn firing(alert: &str) -> Vec<String> {
        let firing = Self::query(&format!("ALERTS{{alertname=\"{alert}\",alertstate=\"firing\"}}"));
        firing.iter().map(|one| one["metric"]["instance"].as_str().expect("an instance").to_owned()).collect()
    }
}

#[track_caller]
fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + kernel::patience(Duration::from_secs(60));
    while !holds() {
        assert!(Instant::now() < deadline, "it takes too long until {what}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Connects to the server from a port that the kernel chooses, and closes as the client. So the port stays in TIME_WAIT.
fn use_a_port(server: &TcpListener) -> io::Result<()> {
    let client = TcpStream::connect("127.0.0.1:443")?;
    let mut accepted = server.accept()?.0;
    drop(client);
    // The end of the input is the FIN of the client.
    assert_eq!(accepted.read(&mut [0])?, 0);
    Ok(())
}

fn an_alert_fires_before_connect_fails_and_every_panel_has_series() {
    const ALERT: &str = "TwtoolDestinationExhaustion";
    needs_program("prometheus");
    needs_program("bash");
    let machines = ["127.0.0.1:17001", "127.0.0.1:17002", "127.0.0.1:17003"].map(Machine::start);
    let [busy, ..] = &machines;
    let mut kept = vec![];
    let server = busy.within(|| {
        sysctl::write("ipv4.ip_local_port_range", "40000 40199").expect("the namespace is ours");
        sysctl::write("ipv4.tcp_tw_reuse", "0").expect("the namespace is ours");
        let server = TcpListener::bind("127.0.0.1:443").expect("bound");
        // The panels need a server inside the range, an inbound TIME_WAIT socket, and (below) a socket in CLOSE_WAIT.
        let inside = listen("127.0.0.1:40050");
        bucket_of_server(&inside, "127.0.0.1:40050");
        kept.push(inside);
        server
    });
    let half_closed =
        busy.within(|| (TcpStream::connect("127.0.0.1:443").expect("connected"), server.accept().expect("accepted")));
    half_closed.0.shutdown(std::net::Shutdown::Write).expect("shutdown()");

    let folder = tempfile::tempdir().expect("a folder");
    let traced = ExporterThatTraces::start();
    let targets = machines.iter().map(|machine| machine.address.as_str());
    let targets: Vec<&str> = targets.chain(traced.as_ref().map(|_| ExporterThatTraces::ADDRESS)).collect();
    let _prometheus = Prometheus::start(folder.path(), &targets);
    wait_until("the machines are scraped", || Prometheus::query("up == 1").len() == targets.len());
    assert_eq!(Prometheus::firing(ALERT), Vec::<String>::new());

    let step = || busy.within(|| (0..4).try_for_each(|_| use_a_port(&server)));
    wait_until("the alert fires", || {
        step().expect("connect() works until the alert fires");
        !Prometheus::firing(ALERT).is_empty()
    });
    assert_eq!(Prometheus::firing(ALERT), [busy.address.as_str()], "only the machine that runs out");
    step().expect("connect() still works when the alert fires");
    wait_until("connect() fails", || step().is_err_and(|error| error.kind() == io::ErrorKind::AddrNotAvailable));
    wait_until("no port is left", || {
        let exhausted = Prometheus::query("twtool_destination_exhaustion_seconds == 0");
        exhausted.len() == 1 && Prometheus::firing(ALERT) == [busy.address.as_str()]
    });
    every_panel_has_series(&busy.address, traced.is_some());

    // `twtool capacity` advises this setting. With it, connect() may take over TIME_WAIT sockets that are at least 1 s old.
    busy.within(|| sysctl::write("ipv4.tcp_tw_reuse", "1").expect("the namespace is ours"));
    wait_until("the alert resolves", || Prometheus::firing(ALERT).is_empty());
    step().expect("connect() works again");
    drop(kept);
}

/// An exporter with --trace in the network namespace of the test.
struct ExporterThatTraces(Outside);

impl ExporterThatTraces {
    const ADDRESS: &str = "127.0.0.1:17004";

    /// Starts the exporter. Returns `None` if BPF cannot trace here.
    fn start() -> Option<Self> {
        if let Some(why) = why_bpf_cannot_trace() {
            not_checked(format!("the panels about traced closes: {why}"));
            return None;
        }
        let line = format!("nsenter --net={} '{PATH}' exporter --trace --listen {}", own_netns(), Self::ADDRESS);
        Outside::start(&line).map(Self)
    }
}

impl Drop for ExporterThatTraces {
    fn drop(&mut self) {
        let _ = kill(self.0.pid(), Signal::SIGKILL);
    }
}

/// The query that counts the series by the values of a variable. Its result is empty if no series has the label.
fn count_of_values(label_values: &str, instance: &str) -> String {
    let values = label_values.strip_prefix("label_values(").and_then(|query| query.strip_suffix(')'));
    let (series, label) = values.and_then(|values| values.rsplit_once(", ")).expect("a query for values");
    let series = series.replace("$job", "twtool").replace("$instance", instance);
    let (name, selector) = series.trim_end_matches('}').split_once('{').unwrap_or((&series, ""));
    let separator = if selector.is_empty() { "" } else { ", " };
    format!("count by ({label}) ({name}{{{selector}{separator}{label}!=\"\"}})")
}

/// Sends the query of every panel, and asserts that the result is not empty. Replaces the variables of a board as Grafana does. Only
/// one exporter has metrics of traced closes.
fn every_panel_has_series(instance: &str, traced: bool) {
    let mut queries = vec![];
    for (board, instances) in [("grafana/fleet.json", ".*"), ("grafana/machine.json", instance)] {
        let text = fs::read_to_string(packaging(board)).expect("a board");
        let board: Value = serde_json::from_str(&text).expect("JSON");
        for panel in board["panels"].as_array().expect("panels") {
            for target in panel["targets"].as_array().expect("targets") {
                let query = target["expr"].as_str().expect("a query");
                let about_traced = query.contains("twtool_trace");
                if about_traced && !traced {
                    continue;
                }
                let instances = if about_traced { ExporterThatTraces::ADDRESS } else { instances };
                let query = query.replace("$job", "twtool").replace("$instance", instances).replace("$netns", ".*");
                assert!(!query.contains('$'), "{query}");
                queries.push((panel["title"].as_str().expect("a title").to_owned(), query));
            }
        }
        for variable in board["templating"]["list"].as_array().expect("variables") {
            // The values of a variable come from a query like `label_values(METRIC, LABEL)`.
            let Some(query) = variable["query"]["query"].as_str() else {
                assert_eq!(variable["type"], "datasource", "{variable}");
                continue;
            };
            let query = count_of_values(query, instance);
            assert!(!query.contains('$'), "{query}");
            queries.push((format!("the variable {}", variable["name"]), query));
        }
    }
    assert!(queries.len() > 40, "{}", queries.len());
    // The rates of some panels need two scrapes, so their first results are empty.
    let deadline = Instant::now() + kernel::patience(Duration::from_secs(20));
    loop {
        let empty: Vec<_> = queries.iter().filter(|(_, query)| Prometheus::query(query).is_empty()).collect();
        if empty.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "panels without series: {empty:#?}");
        std::thread::sleep(Duration::from_millis(500));
    }
    for typo in ["label_values(twtool_build_info, jobs)", "label_values(twtool_build_info{job=\"$job\"}, instances)"] {
        let query = count_of_values(typo, instance);
        assert_eq!(Prometheus::query(&query), Vec::<Value>::new(), "no series has the label: {query}");
    }
}
