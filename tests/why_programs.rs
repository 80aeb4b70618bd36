//! `twtool why` on real servers. Its report equals the report of strace about another run of the same command, and each errno equals
//! the result of a bind that the test makes itself. A server that is not installed is reported as not checked.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use twtool::model::bind::ReuseOptions;

use crate::support::bind::{OpenSockets, bind};
use crate::support::commands::{has, needs_program};
use crate::support::kernel::patience;
use crate::support::netns::on_thread_in_new_namespace;
use crate::support::situations::{bucket_of_server, listen};
use crate::support::twtool::PATH;
use crate::support::{measured, not_checked, suite};

suite! {
    pure: [
        a_socket_is_followed_across_threads_and_split_lines,
    ],
    netns: [
        real_servers_are_reported_as_strace_reports_them,
    ],
}

/// The shell commands that start servers in the foreground, on ADDR and port 8080.
const SERVERS: [(&str, &str); 20] = [
    ("python3", "python3 -m http.server 8080 --bind ADDR"),
    ("nginx", "nginx -p . -c nginx.conf"),
    ("redis-server", "redis-server --port 8080 --bind ADDR --save ''"),
    ("node", "node -e \"require('http').createServer().listen(8080,'ADDR')\""),
    ("gunicorn", "gunicorn -b ADDR:8080 wsgiref.simple_server:demo_app"),
    ("lighttpd", "lighttpd -D -f lighttpd.conf"),
    ("memcached", "memcached -u root -U 0 -l ADDR -p 8080"),
    (
        "perl",
        "perl -MIO::Socket::INET -e 'IO::Socket::INET->new(Listen=>5,LocalAddr=>\"ADDR\",LocalPort=>8080,ReuseAddr=>1) or exit 1; sleep 99'",
    ),
    ("php", "php -S ADDR:8080"),
    ("ruby", "ruby -rsocket -e 'TCPServer.new(\"ADDR\",8080); sleep'"),
    ("busybox", "busybox httpd -f -p ADDR:8080"),
    ("socat", "socat TCP-LISTEN:8080,bind=ADDR,reuseaddr /dev/null"),
    ("nc", "nc -l ADDR 8080"),
    ("ncat", "ncat -l ADDR 8080"),
    ("iperf3", "iperf3 -s -B ADDR -p 8080"),
    ("haproxy", "haproxy -db -f haproxy.conf"),
    ("mosquitto", "mosquitto -c mosquitto.conf"),
    ("dnsmasq", "dnsmasq -k -p 8080 -a ADDR --bind-interfaces -C /dev/null -u root"),
    ("caddy", "caddy file-server --listen ADDR:8080"),
    ("webfsd", "webfsd -F -p 8080 -i ADDR"),
];

/// Configuration files, with ADDR in place of the address.
const FILES: [(&str, &str); 4] = [
    (
        "nginx.conf",
        "user root root; daemon off; master_process off; pid nginx.pid; error_log stderr; events {} http { access_log off; \
         client_body_temp_path b; proxy_temp_path p; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s; \
         server { listen ADDR:8080; } }",
    ),
    ("lighttpd.conf", "server.document-root = \".\"\nserver.bind = \"ADDR\"\nserver.port = 8080\n"),
    ("haproxy.conf", "defaults\n mode http\n timeout client 1s\nfrontend f\n bind ADDR:8080\n"),
    ("mosquitto.conf", "listener 8080 ADDR\n"),
];

/// Calls on TCP port 8080: the name of each call, the address, and the errno if the call failed.
type Calls = BTreeSet<(String, String, Option<String>)>;

struct ServerCase {
    name: &'static str,
    addr: &'static str,
    make: fn() -> OpenSockets,
    /// Whether a server can listen in this situation.
    listens: bool,
}

const SITUATIONS: [ServerCase; 4] = [
    ServerCase { name: "free", addr: "127.0.0.1", make: || Box::new(()), listens: true },
    ServerCase { name: "TIME_WAIT without SO_REUSEADDR", addr: "127.0.0.2", make: bucket, listens: false },
    ServerCase { name: "listener", addr: "127.0.0.1", make: || Box::new(listen("127.0.0.1:8080")), listens: false },
    ServerCase { name: "missing address", addr: "192.0.2.7", make: || Box::new(()), listens: false },
];

fn bucket() -> OpenSockets {
    let at = "127.0.0.2:8080";
    let old = twtool::lab::Server::listen(at.parse().expect("an address"), ReuseOptions::NONE).expect("a server");
    bucket_of_server(&old, at);
    Box::new(())
}

/// Runs a command until it ends. If `enough` is true for the complete lines of its log, the command gets SIGTERM. After 30 s, it gets
/// SIGKILL.
fn run(command: &mut Command, log: &Path, enough: impl Fn(&str) -> bool) {
    command.process_group(0);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("started");
    let deadline = Instant::now() + patience(Duration::from_secs(30));
    while child.try_wait().expect("a child").is_none() {
        let shown = fs::read_to_string(log).unwrap_or_default();
        let whole = shown.rsplit_once('\n').map_or("", |(whole, _)| whole);
        if Instant::now() > deadline {
            end(&child, Signal::SIGKILL);
        } else if enough(whole) {
            end(&child, Signal::SIGTERM);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    // strace may end before the server that it started. The server must not remain.
    end(&child, Signal::SIGKILL);
}

/// Ends the command and the processes that it started, because strace does not forward signals.
fn end(child: &Child, signal: Signal) {
    let group = Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
    let _ = killpg(group, signal);
}

/// The calls on TCP sockets that strace shows: failed binds and listens, and the listens that succeeded.
///
/// `strace -y` shows the inode of each socket. The inode stays the same if another thread or a child uses the socket.
fn calls_of_strace(log: &str) -> Calls {
    let (mut bound, mut datagram) = (BTreeMap::new(), BTreeSet::new());
    let mut calls = Calls::new();
    for line in calls_with_results(log) {
        let Some((head, result)) = line.rsplit_once(" = ") else { continue };
        let errno = result.strip_prefix("-1 ").and_then(|rest| rest.split(' ').next()).map(str::to_owned);
        let between = |begin: &str, end: &str| Some(head.split_once(begin)?.1.split_once(end)?.0.to_owned());
        let inode = |text: &str| Some(text.split_once("<socket:[")?.1.split_once("]>")?.0.to_owned());
        let socket = |call: &str| inode(&between(call, ",")?);
        if head.contains("socket(AF_INET") && head.contains("SOCK_DGRAM") {
            datagram.extend(inode(result));
        } else if let Some(socket) = socket("bind(").filter(|socket| !datagram.contains(socket)) {
            let addr = between("inet_addr(\"", "\"").or_else(|| between("inet_pton(AF_INET6, \"", "\""));
            let (Some(addr), true) = (addr, head.contains("htons(8080)")) else { continue };
            match errno {
                None => drop(bound.insert(socket, addr)),
                errno => drop(calls.insert(("bind".into(), addr, errno))),
            }
        } else if let Some(addr) = socket("listen(").and_then(|socket| bound.get(&socket)) {
            calls.insert(("listen".into(), addr.clone(), errno));
        }
    }
    calls
}

/// The calls of a log of `strace -f -o`, each on one line. strace splits a call into two lines if another thread makes a call at the
/// same time.
fn calls_with_results(log: &str) -> Vec<String> {
    let mut begun = BTreeMap::new();
    let mut calls = Vec::new();
    for line in log.lines() {
        // strace pads the thread's id with blanks.
        let (thread, call) = line.split_once(' ').unwrap_or((line, ""));
        if let Some(begin) = line.strip_suffix(" <unfinished ...>") {
            begun.insert(thread, begin);
        } else if let Some((_, end)) =
            call.trim_start().strip_prefix("<... ").and_then(|rest| rest.split_once(" resumed>"))
        {
            calls.extend(begun.remove(thread).map(|begin| format!("{begin}{end}")));
        } else {
            calls.push(line.to_owned());
        }
    }
    calls
}

fn a_listen(calls: &Calls) -> bool {
    calls.iter().any(|(call, ..)| call == "listen")
}

fn a_socket_is_followed_across_threads_and_split_lines() {
    let log = "\
        17    socket(AF_INET, SOCK_STREAM, IPPROTO_TCP) = 3<socket:[90]>\n\
        17    bind(3<socket:[90]>, {sa_family=AF_INET, sin_port=htons(8080), sin_addr=inet_addr(\"127.0.0.1\")}, 16 <unfinished ...>\n\
        18    listen(4<socket:[91]>, 9 <unfinished ...>\n\
        17    <... bind resumed>)               = 0\n\
        18    <... listen resumed>)             = 0\n\
        19    listen(3<socket:[90]>, 4096)      = 0";
    let listened = ("listen".to_owned(), "127.0.0.1".to_owned(), None);
    assert_eq!(calls_of_strace(log), Calls::from([listened]));
    assert!(calls_of_strace(log.rsplit_once('\n').expect("lines").0).is_empty());
}

/// The calls on TCP sockets that `why` reports, and their records.
fn calls_of_why(log: &str) -> (Calls, Vec<Value>) {
    let records = log.lines().map(|line| serde_json::from_str(line).expect("a record"));
    let calls = records.filter(|record: &Value| record["type"] == "call" && record["port"] == 8080);
    let tcp = calls.filter(|record| record["socket"]["protocol"] == "tcp" && record["call"] != "connect");
    let records: Vec<Value> = tcp.collect();
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let call = |record: &Value| {
        (text(&record["call"]).expect("a name"), text(&record["addr"]).expect("an address"), text(&record["errno"]))
    };
    (records.iter().map(call).collect(), records)
}

fn real_servers_are_reported_as_strace_reports_them() {
    needs_program("strace");
    let mut checked = 0;
    for (program, line) in SERVERS {
        if !has(program) {
            not_checked(format!("twtool why {program}: it is not installed"));
            continue;
        }
        for situation in &SITUATIONS {
            on_thread_in_new_namespace(|| check(program, line, situation));
            checked += 1;
        }
    }
    measured(format!("why: {checked} runs of real servers equal what strace and an independent bind report"));
    assert!(checked > 0, "no server is installed");
}

fn check(program: &str, line: &str, situation: &ServerCase) {
    let ServerCase { name, addr, make, listens } = *situation;
    let folder = folder(addr);
    let line = format!("exec {}", line.replace("ADDR", addr));
    let in_folder = |mut command: Command| {
        command.current_dir(folder.path()).env("PYTHONDONTWRITEBYTECODE", "1");
        command
    };
    // Each run has a namespace of its own, so that sockets of the previous run do not block it.
    let expected = on_thread_in_new_namespace(|| {
        let _kept = make();
        let log = folder.path().join("strace");
        let mut strace = Command::new("strace");
        strace
            .args(["-I", "1", "-f", "-y", "-qq", "-e", "trace=socket,bind,listen", "-e", "signal=none", "-o"])
            .arg(&log)
            .args(["sh", "-c", &line]);
        run(&mut in_folder(strace), &log, |log| listens && a_listen(&calls_of_strace(log)));
        calls_of_strace(&fs::read_to_string(&log).expect("a log"))
    });
    let _kept = make();
    let (calls, records) = {
        let log = folder.path().join("why");
        let mut why = Command::new(PATH);
        why.args(["why", "-o", "ndjson", "--log"]).arg(&log).args(["--", "sh", "-c", &line]);
        run(&mut in_folder(why), &log, |log| listens && a_listen(&calls_of_why(log).0));
        calls_of_why(&fs::read_to_string(&log).expect("a log"))
    };
    let seen: Vec<String> = records.iter().map(ToString::to_string).collect();
    assert_eq!(calls, expected, "{program}, {name}\n{}", seen.join("\n"));
    if calls.is_empty() {
        // For example, memcached needs setgroups(2), which a user namespace may refuse.
        not_checked(format!("twtool why {program}, {name}: the program does not reach bind() here"));
    }
    for record in records.iter().filter(|record| record["call"] == "bind") {
        let options: Vec<&str> =
            record["socket"]["options"].as_array().expect("options").iter().filter_map(Value::as_str).collect();
        let reuse: Vec<&str> = options.into_iter().filter(|option| option.starts_with("SO_REUSE")).collect();
        let independent = bind(record["addr"].as_str().expect("an address"), 8080, &reuse, false).0;
        assert_eq!(record["errno"], independent.as_str(), "{program}, {name}: {record}");
        let cause = match name {
            "listener" => "listener",
            "missing address" => "address-not-local",
            _ if reuse.contains(&"SO_REUSEADDR") => "time-wait-without-reuseaddr",
            _ => "time-wait",
        };
        assert_eq!(record["cause"], cause, "{program}, {name}: {record}");
    }
}

fn folder(addr: &str) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, text) in FILES {
        fs::write(folder.path().join(name), text.replace("ADDR", addr)).expect("written");
    }
    folder
}
