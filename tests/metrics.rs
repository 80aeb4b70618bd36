//! `twtool metrics`: the samples agree with the kernel, promtool accepts the format, and the number of series is limited.

#![expect(clippy::float_cmp, clippy::cast_precision_loss, reason = "the numbers are small counts, which are exact")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use twtool::metrics::{MetricFamily, MetricKind};
use twtool::sys::counts::most_unlisted_tcp_sockets;
use twtool::sys::sysctl;

use crate::support::commands::needs_program;
use crate::support::netns::has_user;
use crate::support::private_proc::{in_new_namespace, mount_private_folders, name_this_namespace};
use crate::support::procfs::tcp_ext;
use crate::support::situations::{Mixed, bucket_of_client, bucket_of_server, listen};
use crate::support::tracer::until;
use crate::support::twtool::{PATH, Run, twtool};
use crate::support::{kernel, suite};

suite! {
    pure: [
        every_family_is_documented,
        invalid_arguments_are_refused,
    ],
    netns: [
        promtool_finds_no_mistake,
        counts_agree_with_the_sockets,
        a_destination_has_the_numbers_of_capacity,
        doctor_check_samples_equal_the_checks_of_doctor,
        a_server_in_the_ephemeral_range_is_named,
        a_bound_socket_that_does_not_listen_is_counted,
        unix_sockets_are_not_counted_as_bound_tcp_sockets,
        the_number_of_series_is_limited,
        openmetrics_has_the_same_series,
        a_textfile_is_replaced_as_a_whole,
        the_user_nobody_gets_the_same_series_except_those_about_owners_and_capabilities,
        every_namespace_has_its_label,
    ],
}

/// The samples of a text in the format 0.0.4, by name and labels.
pub(crate) fn samples(text: &str) -> BTreeMap<String, f64> {
    let sample = |line: &str| {
        let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line:?} has no value"));
        (series.to_owned(), value.parse().unwrap_or_else(|_| panic!("{line:?} has no number")))
    };
    let mut all = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (series, value) = sample(line);
        assert!(all.insert(series, value).is_none(), "{line:?} occurs twice");
    }
    all
}

/// Adds the values of the samples that belong to a family and contain all these texts in their labels. Panics if there is no such sample.
#[track_caller]
pub(crate) fn sum(samples: &BTreeMap<String, f64>, family: MetricFamily, labels: &[&str]) -> f64 {
    let found: Vec<f64> = samples
        .iter()
        .filter(|(series, _)| series.split('{').next() == Some(family.name()))
        .filter(|(series, _)| labels.iter().all(|label| series.contains(label)))
        .map(|(_, value)| *value)
        .collect();
    assert!(!found.is_empty(), "no sample of {} with {labels:?}", family.name());
    found.iter().sum()
}

fn metrics(args: &[&str]) -> BTreeMap<String, f64> {
    samples(&twtool([&["metrics"], args].concat()).ok().stdout)
}

fn every_family_is_documented() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
    let text = fs::read_to_string(path).expect("docs/metrics.md");
    let rows: Vec<&str> = text.lines().filter(|line| line.starts_with("| `twtool_")).collect();
    let expected: Vec<String> = MetricFamily::ALL
        .iter()
        .map(|family| {
            let kind = if family.kind() == MetricKind::Info { "info" } else { family.kind().name() };
            let labels: Vec<String> = family.labels().iter().map(|label| format!("`{label}`")).collect();
            format!("| `{}` | {kind} | {} | {} |", family.name(), labels.join(", "), family.help())
        })
        .collect();
    assert_eq!(rows, expected, "docs/metrics.md and src/metrics/family.rs differ");
}

fn invalid_arguments_are_refused() {
    for (args, word) in [
        (&["-o", "json"][..], "json"),
        (&["--format", "json"], "json"),
        (&["--textfile", "twtool.txt"], "twtool.txt"),
        (&["--textfile", "x.prom", "--format", "openmetrics"], "--textfile"),
        (&["--max-destinations", "-1"], "-1"),
        (&["--max-destinations", "1001"], "1001"),
        (&["--max-netns", "0"], "0"),
        (&["-4"], "-4"),
        (&["--netns", "web", "--all-netns"], "--netns"),
    ] {
        twtool([&["metrics"], args].concat()).refused(word);
    }
}

#[track_caller]
pub(crate) fn promtool_accepts(text: &str) {
    let mut promtool = Command::new("promtool");
    promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = promtool.spawn().expect("promtool starts");
    child.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("written");
    let output = child.wait_with_output().expect("it ends");
    let run = Run::ended(&promtool, &output).ok();
    assert_eq!(run.stdout, "", "{text}");
}

fn promtool_finds_no_mistake() {
    needs_program("promtool");
    promtool_accepts(&twtool(["metrics"]).ok().stdout);
    let mixed = Mixed::make();
    let outside = listen("127.0.0.1:443");
    bucket_of_client(&outside, "127.0.0.1:443");
    let _in_range = listen("127.0.0.1:41500");
    promtool_accepts(&twtool(["metrics"]).ok().stdout);
    promtool_accepts(&twtool(["metrics", "--max-destinations", "0"]).ok().stdout);
    mixed.end();
}

fn counts_agree_with_the_sockets() {
    let mixed = Mixed::make();
    let samples = metrics(&[]);
    let sum = |labels: &[&str]| sum(&samples, MetricFamily::TimewaitSockets, labels);
    assert_eq!(sum(&["state=\"time-wait\""]), Mixed::TIME_WAIT as f64);
    assert_eq!(sum(&["state=\"fin-wait-2\""]), Mixed::FIN_WAIT_2 as f64);
    for (labels, flags) in [
        (["state=\"time-wait\"", "direction=\"inbound\""], ["--direction", "inbound"]),
        (["state=\"time-wait\"", "direction=\"outbound\""], ["--direction", "outbound"]),
        (["state=\"time-wait\"", "class=\"registered\""], ["--class", "registered"]),
    ] {
        let listed = twtool([&["list", "--count"][..], &flags].concat()).ok().stdout;
        assert_eq!(sum(&labels), listed.trim().parse::<f64>().expect("a number"), "{labels:?}");
    }
    // Linux 5.10 counts a bucket in TW only when the bucket ends. There TW is still 0, so there is no sample.
    if tcp_ext("TW") == 0 {
        assert!(!samples.keys().any(|series| series.starts_with(MetricFamily::TimewaitCreated.name())), "{samples:?}");
    } else {
        let created = crate::metrics::sum(&samples, MetricFamily::TimewaitCreated, &[]);
        assert!(created >= (Mixed::TIME_WAIT + Mixed::FIN_WAIT_2) as f64, "{created}");
    }
    let port = crate::metrics::sum(&samples, MetricFamily::ServerPortSockets, &["local_port=\"8080\""]);
    let listed = twtool(["list", "--count", "--local-port", "8080", "--direction", "inbound"]).ok().stdout;
    assert_eq!(port, listed.trim().parse::<f64>().expect("a number"));
    mixed.end();
}

fn a_destination_has_the_numbers_of_capacity() {
    sysctl::write("ipv4.ip_local_port_range", "41000 41099").expect("the namespace is ours");
    sysctl::write("ipv4.tcp_tw_reuse", "0").expect("the namespace is ours");
    let server = listen("127.0.0.1:443");
    (0..5).for_each(|_| bucket_of_client(&server, "127.0.0.1:443"));
    let destination = twtool(["capacity", "--no-probe", "--json"]).ok().records("destinations")[0].clone();
    let samples = metrics(&[]);
    let of = |family| sum(&samples, family, &["remote_addr=\"127.0.0.1\"", "remote_port=\"443\""]);
    for (family, key) in [
        (MetricFamily::DestinationFree, "free"),
        (MetricFamily::DestinationTimewait, "time_wait"),
        (MetricFamily::DestinationReusable, "reusable"),
        (MetricFamily::DestinationCeiling, "sustainable_per_s"),
    ] {
        let expected = destination[key].as_f64().unwrap_or_else(|| panic!("{key} in {destination}"));
        assert!((of(family) - expected).abs() < 0.01, "{key}: {} and {expected}", of(family));
    }
    // If the kernel does not list bound sockets, `uncertain` depends on a count of sockets that can change at any time.
    if kernel::lists_bound_sockets() {
        assert_eq!(Some(of(MetricFamily::DestinationUncertain)), destination["uncertain"].as_f64());
    }
    assert_eq!(of(MetricFamily::DestinationPool), 100.0);
    assert_eq!(of(MetricFamily::DestinationExhaustion), f64::INFINITY);
    assert_eq!(sum(&samples, MetricFamily::Destinations, &[]), 1.0);
}

fn doctor_check_samples_equal_the_checks_of_doctor() {
    let _server = listen("127.0.0.1:41500");
    sysctl::write("ipv4.ip_local_port_range", "41000 41999").expect("the namespace is ours");
    // The exit code depends on the kernel: on older kernels, some settings exist only in the initial namespace.
    let checks = twtool(["doctor", "--json"]).records("checks");
    let samples = metrics(&[]);
    let status = |series: &str, label: &str| series.contains(label);
    for check in &checks {
        let (id, expected) = (check["id"].as_str().expect("an id"), check["status"].as_str().expect("a status"));
        let of_check = |(series, _): &(&String, &f64)| status(series, &format!("check=\"{id}\""));
        let set: Vec<_> = samples.iter().filter(of_check).collect();
        assert_eq!(set.len(), 4, "{id}");
        let on: Vec<_> = set.iter().filter(|(_, value)| **value == 1.0).collect();
        assert!(on.len() == 1 && status(on[0].0, &format!("status=\"{expected}\"")), "{id} is {expected}: {set:?}");
    }
}

fn a_server_in_the_ephemeral_range_is_named() {
    sysctl::write("ipv4.ip_local_port_range", "41000 41999").expect("the namespace is ours");
    let _server = listen("127.0.0.1:41500");
    let samples = metrics(&[]);
    assert_eq!(sum(&samples, MetricFamily::UnreservedServers, &[]), 1.0);
    assert_eq!(sum(&samples, MetricFamily::UnreservedServer, &["local_port=\"41500\"", "process=\""]), 1.0);
    sysctl::write("ipv4.ip_local_reserved_ports", "41500").expect("the namespace is ours");
    assert_eq!(sum(&metrics(&[]), MetricFamily::UnreservedServers, &[]), 0.0);
}

fn a_bound_socket_that_does_not_listen_is_counted() {
    kernel::needs(kernel::lists_bound_sockets(), "a list of bound sockets that do not listen");
    sysctl::write("ipv4.ip_local_port_range", "41000 41099").expect("the namespace is ours");
    let bound = |samples: &BTreeMap<String, f64>| sum(samples, MetricFamily::EphemeralBound, &[]);
    assert_eq!(bound(&metrics(&[])), 0.0);
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.bind(&"127.0.0.1:41010".parse::<std::net::SocketAddr>().expect("an address").into()).expect("bound");
    let samples = metrics(&[]);
    assert_eq!((bound(&samples), sum(&samples, MetricFamily::PoolPorts, &[])), (1.0, 99.0));
}

fn unix_sockets_are_not_counted_as_bound_tcp_sockets() {
    kernel::needs(!Path::new("/proc/thread-self/net/rpc").exists(), "a network namespace without NFS");
    let most = || most_unlisted_tcp_sockets().expect("the kernel's counts");
    // The kernel counts a closed socket for a moment longer.
    until("no socket is left", || (most() == Some(0)).then_some(()));
    let _pair = std::os::unix::net::UnixStream::pair().expect("two sockets");
    let _datagrams = std::os::unix::net::UnixDatagram::unbound().expect("a socket");
    assert_eq!(most(), Some(0));
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.bind(&"127.0.0.1:41010".parse::<std::net::SocketAddr>().expect("an address").into()).expect("bound");
    assert_eq!(most(), Some(1));
}

fn the_number_of_series_is_limited() {
    sysctl::write("ipv4.tcp_tw_reuse", "0").expect("the namespace is ours");
    let ports = [443, 444, 445, 446];
    for port in ports {
        let at = format!("127.0.0.1:{port}");
        let server = listen(&at);
        bucket_of_client(&server, &at);
        bucket_of_server(&server, &at);
    }
    let _open: Vec<_> = ports.iter().map(|port| listen(&format!("127.0.0.1:{port}"))).collect();
    let all = metrics(&[]);
    assert_eq!(sum(&all, MetricFamily::Destinations, &[]), 4.0);
    let destinations = |samples: &BTreeMap<String, f64>| {
        samples.keys().filter(|series| series.starts_with(MetricFamily::DestinationFree.name())).count()
    };
    assert_eq!(destinations(&all), 4);
    let two = metrics(&["--max-destinations", "2"]);
    assert_eq!(destinations(&two), 3);
    for (family, label) in [
        (MetricFamily::DestinationTimewait, "remote_addr=\"others\""),
        (MetricFamily::ServerPortSockets, "local_port=\"others\""),
    ] {
        assert_eq!(sum(&two, family, &[label]), 2.0);
        assert_eq!(sum(&two, family, &[]), sum(&all, family, &[]), "the limit does not change the sum");
    }
    assert_eq!(destinations(&metrics(&["--max-destinations", "0"])), 1);
}

fn openmetrics_has_the_same_series() {
    let server = listen("127.0.0.1:443");
    bucket_of_client(&server, "127.0.0.1:443");
    let text = twtool(["metrics"]).ok().stdout;
    let open = twtool(["metrics", "--format", "openmetrics"]).ok().stdout;
    assert!(open.ends_with("\n# EOF\n"));
    let names = |text: &str| -> Vec<String> {
        text.lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| line.rsplit_once(' ').expect("a value").0.to_owned())
            .collect()
    };
    assert_eq!(names(&text), names(&open));
    // Each family has one block with one `# TYPE` line.
    let types: Vec<&str> = open.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
    assert_eq!(types.len(), types.iter().collect::<BTreeSet<_>>().len());
}

fn a_textfile_is_replaced_as_a_whole() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("twtool.prom");
    let write = || twtool(["metrics", "--textfile", file.to_str().expect("UTF-8")]).ok();
    write();
    let mode = || fs::metadata(&file).expect("it is there").mode() & 0o777;
    assert_eq!(mode() & 0o600, 0o600);
    let new = fs::File::create(folder.path().join("other")).expect("created");
    assert_eq!(mode(), new.metadata().expect("a file").mode() & 0o777, "the file has the mode that the umask gives");
    let first = fs::read_to_string(&file).expect("a text");
    assert!(first.contains("twtool_complete"));
    // A reader of the old file keeps the old content: the new file has another inode.
    let inode = fs::metadata(&file).expect("a file").ino();
    let still_open = fs::File::open(&file).expect("open");
    assert_eq!(write().stdout, "");
    assert_ne!(inode, fs::metadata(&file).expect("a file").ino());
    assert_eq!(still_open.metadata().expect("a file").len(), first.len() as u64);
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 2, "no partial file is left");
    let missing = folder.path().join("missing/twtool.prom");
    twtool(["metrics", "--textfile", missing.to_str().expect("UTF-8")]).refused("missing/twtool.prom");
}

fn the_user_nobody_gets_the_same_series_except_those_about_owners_and_capabilities() {
    kernel::needs(has_user(65534), "a run as another user");
    needs_program("setpriv");
    let mixed = Mixed::make();
    let of_nobody =
        Run::of(Command::new("setpriv").args(["--reuid=65534", "--clear-groups", PATH, "metrics"])).ok().stdout;
    let names = |text: &str| -> BTreeSet<String> {
        let names = samples(text).into_keys();
        // The user `nobody` does not see the owners in the labels of the info metrics, and lacks capabilities.
        names.filter(|series| !series.contains("_info{") && !series.contains("check=\"capabilities\"")).collect()
    };
    assert_eq!(names(&of_nobody), names(&twtool(["metrics"]).ok().stdout));
    mixed.end();
}

fn every_namespace_has_its_label() {
    mount_private_folders();
    let mut kept = vec![];
    for netns in ["web", "db"] {
        in_new_namespace(|| {
            name_this_namespace(netns);
            let server = listen("127.0.0.1:443");
            bucket_of_client(&server, "127.0.0.1:443");
            kept.push(server);
        });
    }
    let samples = metrics(&["--netns", "web", "--netns", "db"]);
    for netns in ["web", "db"] {
        assert_eq!(sum(&samples, MetricFamily::TimewaitSockets, &[&format!("netns=\"{netns}\"")]), 1.0);
    }
    assert_eq!(sum(&samples, MetricFamily::Namespaces, &[]), 2.0);
    let one = metrics(&["--netns", "web", "--netns", "db", "--max-netns", "1"]);
    assert_eq!(sum(&one, MetricFamily::NamespacesOmitted, &[]), 1.0);
    assert_eq!(sum(&one, MetricFamily::TimewaitSockets, &[]), 1.0);
}
