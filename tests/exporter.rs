//! `twtool exporter` on real sockets: responses, several scrapers, hostile clients, signals, and sockets that systemd passes.

#![expect(clippy::float_cmp, reason = "the numbers are small counts, which are exact")]

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use twtool::metrics::MetricFamily;
use twtool::sys::sysctl;

use crate::metrics::{promtool_accepts, samples, sum};
use crate::support::exporter::{ADDRESS, Exporter, ask, connect, get};
use crate::support::situations::{bucket_of_client, listen};
use crate::support::twtool::{PATH, Run, program, twtool};
use crate::support::{kernel, suite};

suite! {
    pure: [
        invalid_arguments_are_refused,
    ],
    netns: [
        metrics_and_pages_are_served,
        promtool_accepts_a_scrape,
        a_browser_shows_the_page,
        openmetrics_is_served_to_a_client_that_prefers_it,
        one_collection_serves_many_scrapers,
        a_thousand_idle_connections_do_not_block_a_new_client,
        requests_that_are_too_large_or_wrong_are_refused,
        a_client_that_never_reads_does_not_block_other_clients,
        slow_and_half_open_connections_end,
        an_idle_exporter_does_not_wake_up,
        sighup_keeps_a_request_in_progress_and_sigterm_ends_the_exporter,
        several_addresses_and_a_unix_socket_are_served,
        sockets_that_systemd_passes_are_used,
        unneeded_capabilities_are_dropped,
        an_address_in_use_is_reported,
    ],
}

fn invalid_arguments_are_refused() {
    for (args, word) in [
        (&["--listen", "localhost:1"][..], "localhost:1"),
        (&["--listen", "16060"], "16060"),
        (&["--listen", "unix:"], "unix:"),
        (&["--log", "xml"], "xml"),
        (&["--min-interval", "1"], "1"),
        (&["--netns", "no-such-namespace"], "no-such-namespace"),
        (&["-o", "json"], "json"),
        (&["-6"], "-6"),
    ] {
        twtool([&["exporter"], args].concat()).refused(word);
    }
}

fn metrics_and_pages_are_served() {
    sysctl::write("ipv4.tcp_tw_reuse", "0").expect("the namespace is ours");
    let server = listen("127.0.0.1:443");
    bucket_of_client(&server, "127.0.0.1:443");
    let exporter = Exporter::start(&[]);
    let scrape = get("/metrics");
    assert_eq!(scrape.status, 200, "{scrape:?}");
    assert!(scrape.head.contains("content-type: text/plain; version=0.0.4; charset=utf-8"), "{}", scrape.head);
    assert!(scrape.head.contains(&format!("content-length: {}", scrape.body.len())), "{}", scrape.head);
    let values = samples(&scrape.body);
    assert_eq!(sum(&values, MetricFamily::TimewaitSockets, &["direction=\"outbound\""]), 1.0);
    assert_eq!(sum(&values, MetricFamily::ExporterCollections, &[]), 1.0);
    // Each further response has a sample of each family about the exporter itself.
    for family in MetricFamily::ALL.into_iter().filter(|family| family.name().starts_with("twtool_exporter_")) {
        let again = samples(&get("/metrics").body);
        sum(&again, family, &[]);
    }
    let page = get("/");
    assert!(page.head.contains("text/html") && page.body.contains("127.0.0.1:443"), "{page:?}");
    assert_eq!((get("/-/healthy").status, get("/nothing").status), (200, 404));
    let head = ask(connect(), "HEAD /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    let post = ask(connect(), "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    assert!(post.status == 405 && post.head.contains("allow: get, head"), "{post:?}");
    drop(exporter);
}

fn a_browser_shows_the_page() {
    crate::support::commands::needs_program("chromium");
    sysctl::write("ipv4.tcp_tw_reuse", "0").expect("the namespace is ours");
    let server = listen("127.0.0.1:443");
    bucket_of_client(&server, "127.0.0.1:443");
    let _exporter = Exporter::start(&[]);
    let folder = tempfile::tempdir().expect("a folder");
    let mut chromium = std::process::Command::new("chromium");
    chromium.args(["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]);
    chromium.arg(format!("--user-data-dir={}", folder.path().display())).arg(format!("http://{ADDRESS}/"));
    chromium.env("HOME", folder.path());
    let page = Run::of(&mut chromium).code(0);
    // The document that the browser has built contains the table.
    page.prints("<td>127.0.0.1:443</td>").prints("<th>Namespace</th>").prints("<tbody>");
}

fn promtool_accepts_a_scrape() {
    crate::support::commands::needs_program("promtool");
    let _exporter = Exporter::start(&[]);
    get("/metrics");
    promtool_accepts(&get("/metrics").body);
}

fn openmetrics_is_served_to_a_client_that_prefers_it() {
    let _exporter = Exporter::start(&[]);
    let accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    let request = format!("GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\nConnection: close\r\n\r\n");
    let scrape = ask(connect(), &request);
    assert!(scrape.head.contains("application/openmetrics-text; version=1.0.0"), "{}", scrape.head);
    assert!(scrape.body.ends_with("\n# EOF\n") && scrape.body.matches("# EOF").count() == 1);
}

fn one_collection_serves_many_scrapers() {
    let exporter = Exporter::start(&["--min-interval", "1h"]);
    let scrapers: Vec<_> = (0..10).map(|_| connect()).collect();
    let request = "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let bodies: Vec<String> = scrapers.into_iter().map(|stream| ask(stream, request).body).collect();
    let time = |body: &String| sum(&samples(body), MetricFamily::CollectionTime, &[]);
    assert!(bodies.iter().all(|body| time(body) == time(&bodies[0])));
    assert_eq!(sum(&samples(&get("/metrics").body), MetricFamily::ExporterCollections, &[]), 1.0);
    drop(exporter);
    let _exporter = Exporter::start(&["--min-interval", "0s"]);
    (0..3).for_each(|_| drop(get("/metrics")));
    assert_eq!(sum(&samples(&get("/metrics").body), MetricFamily::ExporterCollections, &[]), 4.0);
}

fn a_thousand_idle_connections_do_not_block_a_new_client() {
    let exporter = Exporter::start(&[]);
    get("/metrics");
    let idle: Vec<_> = (0..1000)
        .map(|number| {
            let mut stream = connect();
            // Every second client has begun a request.
            if number % 2 == 0 {
                stream.write_all(b"GET /metrics HTTP/1.1\r\nHost:").expect("written");
            }
            stream
        })
        .collect();
    let scrape = get("/metrics");
    assert_eq!(scrape.status, 200);
    let values = samples(&scrape.body);
    assert!(sum(&values, MetricFamily::ExporterConnections, &[]) <= 512.0);
    assert!(sum(&values, MetricFamily::ExporterClosed, &["reason=\"replaced\""]) >= 400.0);
    let memory = sum(&values, MetricFamily::ProcessMemory, &[]);
    // Without the limit of 512 connections, each further connection would add 16 KiB. With the limit, an unoptimized build needs
    // about 33 MiB.
    assert!(memory < 40.0 * 1024.0 * 1024.0, "{memory}");
    // The thread that collects ends a moment after the scrape has its result. Two threads stay, one for requests and one that starts
    // collections, and also the worker threads for long lists, which are fewer than the cores.
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let deadline = Instant::now() + kernel::patience(Duration::from_secs(20));
    while exporter.switches().1 > 2 + cores {
        assert!(Instant::now() < deadline, "there are {} threads", exporter.switches().1);
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(idle);
}

fn requests_that_are_too_large_or_wrong_are_refused() {
    let _exporter = Exporter::start(&[]);
    for (request, statuses) in [
        (format!("GET /metrics HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(1 << 20)), [431, 400]),
        (format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "x".repeat(1 << 20)), [431, 414]),
        ("nonsense\r\n\r\n".into(), [400, 400]),
        (format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(2000)), [431, 400]),
    ] {
        let mut stream = connect();
        // The server may close the connection before it has read everything.
        let _ = stream.write_all(request.as_bytes());
        let mut text = vec![];
        let _ = stream.read_to_end(&mut text);
        let text = String::from_utf8_lossy(&text);
        let refused = statuses.iter().any(|status| text.starts_with(&format!("HTTP/1.1 {status} ")));
        assert!(refused || text.is_empty(), "{text:.200}");
    }
    assert_eq!(get("/metrics").status, 200);
}

fn a_client_that_never_reads_does_not_block_other_clients() {
    let _exporter = Exporter::start(&["--min-interval", "1h"]);
    let silent: Vec<_> = (0..50)
        .map(|_| {
            let stream = connect();
            socket2::SockRef::from(&stream).set_recv_buffer_size(2048).expect("a small buffer");
            let mut stream = stream;
            let _ = stream.write_all("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".repeat(200).as_bytes());
            stream
        })
        .collect();
    let values = samples(&get("/metrics").body);
    let memory = sum(&values, MetricFamily::ProcessMemory, &[]);
    // 200 responses for each of 50 connections would need more than 150 MiB. An exporter that does not keep them needs about 33 MiB
    // (unoptimized build).
    assert!(memory < 40.0 * 1024.0 * 1024.0, "{memory}");
    // After the time limit for writing, the exporter closes these connections.
    let deadline = Instant::now() + kernel::patience(Duration::from_secs(40));
    while sum(&samples(&get("/metrics").body), MetricFamily::ExporterClosed, &["reason=\"timeout\""]) < 50.0 {
        assert!(Instant::now() < deadline, "connections are still open");
        std::thread::sleep(Duration::from_millis(200));
    }
    drop(silent);
}

/// Makes this side of a connection silent, as if the machine were switched off: a filter drops each packet that arrives. (A closed socket
/// would send a FIN, or answer a late packet with a RST.)
fn vanish(stream: &TcpStream) {
    // BPF_RET with 0: keep 0 bytes of the packet.
    socket2::SockRef::from(stream).attach_filter(&[socket2::SockFilter::new(0x06, 0, 0, 0)]).expect("a filter");
}

fn slow_and_half_open_connections_end() {
    let exporter = Exporter::start(&[]);
    let open = || sum(&samples(&get("/metrics").body), MetricFamily::ExporterConnections, &[]);
    assert_eq!(open(), 1.0);
    // These clients vanish: before a request, within the head of a request, and after a response.
    let mut half_open = vec![];
    for sent in ["", "GET /metrics HTTP/1.1\r\nHost:", "GET /-/healthy HTTP/1.1\r\nHost: x\r\n\r\n"] {
        let mut stream = connect();
        stream.write_all(sent.as_bytes()).expect("written");
        if sent.ends_with("\r\n\r\n") {
            stream.read_exact(&mut [0; 12]).expect("a response");
        }
        half_open.push(stream);
    }
    half_open.iter().for_each(vanish);
    // This client sends the head of its request very slowly.
    let mut slow = connect();
    slow.write_all(b"GET /metrics HTTP/1.1\r\nX: ").expect("written");
    assert_eq!(open(), 5.0, "the exporter does not know that three peers are gone");
    let deadline = Instant::now() + kernel::patience(Duration::from_secs(90));
    while slow.write_all(b"x").is_ok() {
        assert!(Instant::now() < deadline, "the slow connection is still open");
        assert_eq!(get("/-/healthy").status, 200, "other clients are served");
        std::thread::sleep(Duration::from_millis(300));
    }
    while open() > 1.0 {
        assert!(Instant::now() < deadline, "half-open connections are still open");
        std::thread::sleep(Duration::from_millis(300));
    }
    let values = samples(&get("/metrics").body);
    assert_eq!(sum(&values, MetricFamily::ExporterClosed, &["reason=\"timeout\""]), 4.0);
    drop((exporter, half_open));
}

fn an_idle_exporter_does_not_wake_up() {
    let exporter = Exporter::start(&[]);
    let mut open = connect();
    open.write_all(b"GET /-/healthy HTTP/1.1\r\nHost: x\r\n\r\n").expect("written");
    get("/metrics");
    drop(open);
    // Wait until the exporter has closed the connections and its collecting thread has ended.
    let mut before = exporter.switches();
    let deadline = Instant::now() + kernel::patience(Duration::from_secs(60));
    loop {
        assert!(Instant::now() < deadline, "it still wakes up: {before:?}");
        std::thread::sleep(Duration::from_millis(200));
        let now = exporter.switches();
        // Two threads stay: one for requests, and one that starts collections.
        if now == before && now.1 == 2 {
            break;
        }
        before = now;
    }
    // With TWTOOL_FULL=1, the test observes the exporter for a minute.
    let whole = std::env::var_os("TWTOOL_FULL").is_some();
    std::thread::sleep(Duration::from_secs(if whole { 60 } else { 5 }));
    assert_eq!(exporter.switches(), before);
}

fn sighup_keeps_a_request_in_progress_and_sigterm_ends_the_exporter() {
    let mut exporter = Exporter::start(&["--log", "json"]);
    let mut waiting = connect();
    waiting.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n").expect("written");
    let _idle = connect();
    get("/-/healthy");
    exporter.signal(Signal::SIGHUP);
    let line = exporter.wait_for_line("reloaded");
    let record: serde_json::Value = serde_json::from_str(&line).expect("a record");
    assert_eq!(record["level"], "info");
    // The end of the request arrives after the reload.
    waiting.write_all(b"\r\n").expect("written");
    let mut first = [0; 12];
    waiting.read_exact(&mut first).expect("a response");
    assert_eq!(&first, b"HTTP/1.1 200");
    exporter.signal(Signal::SIGTERM);
    exporter.wait_for_line("ended");
    assert_eq!(exporter.wait().code(), Some(0));
    assert!(TcpStream::connect(ADDRESS).is_err());
}

fn several_addresses_and_a_unix_socket_are_served() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("twtool.sock");
    let unix = format!("unix:{}", path.display());
    let mut exporter = Exporter::start_with(&["--listen", ADDRESS, "--listen", "[::1]:16060", "--listen", &unix], 3);
    let request = "GET /-/healthy HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    assert_eq!(ask(connect(), request).status, 200);
    assert_eq!(ask(TcpStream::connect("[::1]:16060").expect("IPv6"), request).status, 200);
    assert_eq!(ask(UnixStream::connect(&path).expect("a Unix socket"), request).status, 200);
    exporter.signal(Signal::SIGTERM);
    assert_eq!(exporter.wait().code(), Some(0));
    assert!(!path.exists(), "the file is removed");
}

fn sockets_that_systemd_passes_are_used() {
    let request = "GET /-/healthy HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let listen = format!("--listen {ADDRESS}");
    // The default address is opened only if it is given, and only once.
    for (passed, listen, is_opened) in
        [("127.0.0.1:16070", "", false), ("127.0.0.1:16070", &*listen, true), (ADDRESS, &*listen, true)]
    {
        let socket = std::net::TcpListener::bind(passed).expect("bound");
        nix::fcntl::fcntl(&socket, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).expect("inheritable");
        // The shell passes the socket as descriptor 3. exec keeps the process ID of the shell, so LISTEN_PID is correct.
        let script = format!("LISTEN_PID=$$ LISTEN_FDS=1 exec {PATH} exporter {listen} 3<&{}", socket.as_raw_fd());
        let mut child = std::process::Command::new("bash").args(["-c", &script]).spawn().expect("bash starts");
        drop(socket);
        assert_eq!(ask(TcpStream::connect(passed).expect("the socket listens"), request).status, 200);
        assert_eq!(TcpStream::connect(ADDRESS).is_ok(), is_opened);
        let _ = child.kill();
        let _ = child.wait();
    }
}

fn unneeded_capabilities_are_dropped() {
    let mask = |exporter: &Exporter| u64::from_str_radix(&exporter.status("CapEff"), 16).expect("a mask");
    let (ptrace, read_search, admin) = (1 << 19, 1 << 2, 1 << 21);
    let exporter = Exporter::start(&[]);
    assert_eq!(mask(&exporter), ptrace | read_search);
    assert_eq!(exporter.status("CapEff"), exporter.status("CapPrm"));
    assert_eq!(get("/metrics").status, 200);
    drop(exporter);
    let exporter = Exporter::start(&["--netns", "/proc/self/ns/net"]);
    assert_eq!(mask(&exporter), ptrace | read_search | admin);
    drop(exporter);
    // Root of a container often has CAP_DAC_OVERRIDE and not CAP_DAC_READ_SEARCH.
    let set = rustix::thread::CapabilitySet::DAC_READ_SEARCH;
    rustix::thread::remove_capability_from_bounding_set(set).expect("the thread has all capabilities");
    let exporter = Exporter::start(&[]);
    let dac_override = 1 << 1;
    assert_eq!(mask(&exporter), ptrace | dac_override);
    drop(exporter);
    if program("setpriv").is_some() {
        // Without any capability, the collection is still complete.
        let mut command = std::process::Command::new("setpriv");
        command.args(["--inh-caps=-all", "--bounding-set=-all", PATH, "exporter"]);
        let mut child = command.spawn().expect("setpriv starts");
        let deadline = Instant::now() + kernel::patience(Duration::from_secs(20));
        while TcpStream::connect(ADDRESS).is_err() {
            assert!(Instant::now() < deadline, "it does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        let values = samples(&get("/metrics").body);
        assert_eq!(sum(&values, MetricFamily::CollectionComplete, &[]), 1.0);
        let _ = child.kill();
        let _ = child.wait();
    }
}

fn an_address_in_use_is_reported() {
    let _taken = std::net::TcpListener::bind(ADDRESS).expect("bound");
    twtool(["exporter"]).refused(ADDRESS);
}
