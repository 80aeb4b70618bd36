//! Settings of the kernel: twtool reads long lists completely, and accepts negative numbers. The printed commands change only the
//! settings that they name, and only in the selected namespace.

use std::fs::{self, File};
use std::io::Read as _;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};
use twtool::model::command::{Caller, Shell};
use twtool::model::port::{LocalReservedPorts, Port};
use twtool::sys::caller::caller;
use twtool::sys::sysctl;

use crate::faults::missing_strace;
use crate::support::answers::{COMMANDS, MixedSituation};
use crate::support::commands;
use crate::support::outbound::{LOW, connect, narrow_range, serve};
use crate::support::private_proc::{Resident, in_new_namespace, mount_private_folders, name_this_namespace};
use crate::support::records::{number, text};
use crate::support::settings::{every_second, read, reserve, reserved};
use crate::support::twtool::{PATH, Run, twtool};
use crate::support::{kernel, not_checked, procfs, suite};

suite! {
    pure: [
        the_initial_namespace_is_recognised,
    ],
    netns: [
        a_list_of_reserved_ports_of_any_length_is_read_whole,
        negative_settings_are_values,
        the_command_that_reserves_a_port_keeps_lists_of_any_length_in_every_shell,
        printed_commands_change_the_namespace_that_was_asked_about_and_no_other,
        no_sysctl_file_is_printed_outside_the_initial_namespace,
        systemd_sysctl_and_sysctl_accept_the_printed_line_for_a_file,
        the_commands_of_capacity_give_connect_more_ports,
        the_running_program_reads_each_setting_with_one_read,
    ],
}

const OWN: &str = "/proc/thread-self/ns/net";

#[track_caller]
fn check(id: &str) -> Value {
    let checks = twtool(["doctor", "--json"]).records("checks");
    checks.into_iter().find(|check| check["id"] == id).unwrap_or_else(|| panic!("no check {id}"))
}

/// Tests lists of 0 to 27,500 ports, which have up to 165 KB. Some are just below and above 32 bytes and 4 KB, because buffers often
/// have these sizes.
fn a_list_of_reserved_ports_of_any_length_is_read_whole() {
    sysctl::write("ipv4.ip_local_port_range", "10000 64999").expect("the namespace is ours");
    let folder = tempfile::tempdir().expect("a folder");
    for (i, count) in [0, 1, 5, 6, 7, 100, 682, 683, 850, 23_000, 27_500].into_iter().enumerate() {
        let ports = every_second(10_001, count);
        reserve(&ports);
        let list = read("ipv4.ip_local_reserved_ports");
        let capacity = twtool(["capacity", "--to", "127.0.0.1:9", "--json"]);
        let document = capacity.json();
        assert_eq!(document["reserved_ports"], list, "{} bytes", list.len());
        assert_eq!(number(&document, "pool"), 55_000 - u64::from(count), "{} bytes", list.len());
        let doctor = check("ip_local_reserved_ports");
        let value: Vec<&str> = doctor["value"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
        assert_eq!(value.join(","), list);
        if let Some(last) = ports.last() {
            let records = twtool(["port", &last.to_string(), &(last - 1).to_string(), "--json"]).ok().records("ports");
            assert_eq!([&records[0]["locally_reserved"], &records[1]["locally_reserved"]], [true, false]);
        }
        let file = folder.path().join(i.to_string());
        twtool(["list", "--record", file.to_str().expect("UTF-8")]).ok();
        let recording = fs::read_to_string(file).expect("a recording");
        let header: Value = serde_json::from_str(recording.lines().next().expect("a header")).expect("JSON");
        let recorded = header["local_reserved_ports"].as_array().expect("a list");
        assert_eq!(recorded.iter().map(|range| number_at(range, 0)).collect::<Vec<_>>(), reserved());
    }
}

#[track_caller]
fn number_at(range: &Value, i: usize) -> u16 {
    range[i].as_u64().and_then(|port| port.try_into().ok()).expect("a port")
}

/// Closes a connection. Returns true if the kernel keeps a bucket, and false if it counts a close without a bucket.
fn a_close_leaves_a_bucket() -> bool {
    let server = TcpListener::bind("127.0.0.1:0").expect("a server");
    let mut client = TcpStream::connect(server.local_addr().expect("an address")).expect("a connection");
    drop(server.accept().expect("the other end"));
    let end_of_file = client.read(&mut [0]).expect("the server's FIN");
    assert_eq!(end_of_file, 0);
    drop(client);
    loop {
        if procfs::bucket_count() > 0 {
            return true;
        }
        if check("tcp_timewait_overflow")["value"] != 0 {
            return false;
        }
    }
}

fn negative_settings_are_values() {
    sysctl::write("ipv4.tcp_max_tw_buckets", "-1").expect("the kernel accepts it");
    sysctl::write("ipv4.tcp_fin_timeout", "-7").expect("the kernel accepts it");
    let keeps = a_close_leaves_a_bucket();

    let maximum = check("tcp_max_tw_buckets");
    assert_eq!(maximum["value"], -1);
    let meaning = if keeps { "there is no limit" } else { "the kernel keeps no bucket" };
    assert!(text(&maximum, "finding").contains(meaning), "{maximum}");
    let timeout = check("tcp_fin_timeout");
    assert_eq!((&timeout["value"], &timeout["status"]), (&json!(-7), &json!("note")), "{timeout}");

    let summary = twtool(["summary", "--json"]).ok().json();
    assert_eq!(summary["totals"]["max_tw_buckets"], -1);
    let limits = summary["limits"].as_array().expect("limits");
    assert_eq!(limits.iter().any(|limit| limit["id"] == "at-maximum"), !keeps, "{limits:?}");
    twtool(["summary"]).ok().prints("tcp_max_tw_buckets is -1");
}

/// The check of `doctor` about servers whose port connect() may choose.
fn listeners(netns: &[&str]) -> Value {
    let run = twtool([&["doctor", "--json"], netns].concat());
    let check = run.records("checks").into_iter().find(|check| check["id"] == "ephemeral_listeners");
    check.unwrap_or_else(|| panic!("no such check{run}"))
}

fn the_command_that_reserves_a_port_keeps_lists_of_any_length_in_every_shell() {
    sysctl::write("ipv4.ip_local_port_range", "60000 60999").expect("the namespace is ours");
    let _servers = ["127.0.0.1:60001", "127.0.0.1:60003", "127.0.0.1:60004"].map(|at| TcpListener::bind(at).expect(at));
    // No port, 600 bytes, 5 KB and 140 KB.
    for count in [0, 100, 850, 23_400] {
        let ports = every_second(10_001, count);
        reserve(&ports);
        let check = listeners(&[]);
        let command = text(&check["commands"][0], "command").to_owned();
        assert!(command.len() < 200, "the command is short: {command}");
        let mut expected: Vec<u16> = ports.iter().copied().chain([60_001, 60_003, 60_004]).collect();
        expected.sort_unstable();
        expected.dedup();
        for shell in commands::SHELLS {
            if !commands::has(shell[0]) {
                not_checked(format!("printed commands in {}: it is not installed", shell[0]));
                continue;
            }
            reserve(&ports);
            commands::run_in(shell, &command).ok();
            assert_eq!(reserved(), expected, "{count} ports in {shell:?}: {command}");
        }
        // Reserved ports cause no warning.
        assert_eq!(listeners(&[])["value"], 0);
    }
}

fn printed_commands_change_the_namespace_that_was_asked_about_and_no_other() {
    mount_private_folders();
    let home = File::open(OWN).expect("a namespace");
    let (there, _server, resident) = in_new_namespace(|| {
        name_this_namespace("web");
        let server = TcpListener::bind("127.0.0.1:50003").expect("a server");
        (File::open(OWN).expect("a namespace"), server, Resident::start())
    });
    let reserved_there = |change: fn()| {
        setns(&there, CloneFlags::CLONE_NEWNET).expect("there");
        change();
        let ports = reserved();
        setns(&home, CloneFlags::CLONE_NEWNET).expect("back");
        ports
    };
    for word in ["web", "/run/netns/web", &resident.pid()] {
        reserve(&[45_000]);
        assert_eq!(reserved_there(|| reserve(&[50_001])), [50_001]);
        let check = listeners(&["--netns", word]);
        let command = text(&check["commands"][0], "command");
        commands::succeeds(command);
        assert_eq!(reserved(), [45_000], "the namespace in which twtool ran: {command}");
        assert_eq!(reserved_there(|| {}), [50_001, 50_003], "the namespace that was asked about: {command}");
        assert_eq!(check["lasting"], json!([]), "a file can only change the initial namespace");
        // The command that sets tcp_timestamps also changes only the selected namespace.
        sysctl::write("ipv4.tcp_timestamps", "0").expect("the namespace is ours");
        reserved_there(|| {
            sysctl::write("ipv4.tcp_timestamps", "0").expect("the namespace is ours");
            sysctl::write("ipv4.tcp_tw_reuse", "1").expect("the namespace is ours");
        });
        let checks = twtool(["doctor", "--json", "--netns", word]).records("checks");
        let check = checks.iter().find(|check| check["id"] == "tcp_timestamps").expect("a check");
        commands::run(text(&check["commands"][0], "command")).code(0);
        assert_eq!(read("ipv4.tcp_timestamps"), "0");
        reserved_there(|| assert_eq!(read("ipv4.tcp_timestamps"), "1"));
    }
}

fn the_initial_namespace_is_recognised() {
    let link = |pid: &str, of: &str| fs::read_link(format!("/proc/{pid}/ns/{of}")).ok();
    let here = caller(&[]).in_initial_netns;
    // twtool looks for the setting net.core.dev_weight. The test looks for net.ipv4.tcp_mem, which also exists only in the initial
    // namespace (net/ipv4/sysctl_net_ipv4.c).
    assert_eq!(here, Path::new("/proc/sys/net/ipv4/tcp_mem").exists());
    match (link("1", "pid"), link("1", "net"), link("self", "net")) {
        // 4026531836 is the number of the initial pid namespace. Its process 1 is in the initial network namespace.
        (Some(pid), Some(first), Some(own)) if pid.ends_with("pid:[4026531836]") => assert_eq!(here, first == own),
        _ => not_checked("the network namespace of process 1: it cannot be read, or need not be the initial one"),
    }
}

/// The files of sysctl.d change only the initial network namespace, and the test runs in another network namespace.
fn no_sysctl_file_is_printed_outside_the_initial_namespace() {
    assert!(!caller(&[]).in_initial_netns);
    narrow_range(8);
    let _server = serve("127.0.0.1:7000");
    reserve(&(LOW..LOW + 8).collect::<Vec<_>>());
    sysctl::write("ipv4.tcp_timestamps", "0").expect("the namespace is ours");
    let _listener = TcpListener::bind("127.0.0.1:40001").expect("a server");
    for args in [
        &["capacity", "--to", "127.0.0.1:7000"][..],
        &["connect-test", "127.0.0.1:7000"],
        &["bind-test", "40001"],
        &["port", "40001"],
        &["doctor", "--verbose"],
        &["why", "--", "bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/7000"],
    ] {
        let run = twtool(args);
        assert!(run.code.is_some_and(|code| code < 3 || args[0] == "why"), "{run}");
        assert!(args[0] != "why" || run.stderr.contains("EADDRNOTAVAIL"), "{run}");
        assert!(!run.stdout.contains("sysctl.d") && !run.stderr.contains("sysctl.d"), "{run}");
    }
    let json = twtool(["capacity", "--to", "127.0.0.1:7000", "--json"]).code(0).json();
    assert!(json["commands"].to_string().contains("ip_local_port_range"), "{json}");
    assert_eq!(json["lasting"], json!([]));
}

fn systemd_sysctl_and_sysctl_accept_the_printed_line_for_a_file() {
    mount_private_folders();
    fs::create_dir("/etc/sysctl.d").expect("a folder");
    sysctl::write("ipv4.ip_local_port_range", "60000 60999").expect("the namespace is ours");
    let _server = TcpListener::bind("127.0.0.1:60001").expect("a server");
    for count in [0, 100, 850, 23_400] {
        let ports = every_second(10_001, count);
        reserve(&ports);
        assert_eq!(listeners(&[])["lasting"], json!([]), "the namespace of the test is not the initial one");
        // This is what twtool would print in the initial namespace if that namespace had the settings of the test's namespace.
        let caller = Caller { in_initial_netns: true, ..caller(&[]) };
        let list = LocalReservedPorts::default().with(ports.iter().copied().map(Port));
        let help = Shell { netns: None, caller }.reserve([Port(60_001)], Some(&list));
        let (file, line) = (help.sysctl_lines[0].file.as_str(), help.sysctl_lines[0].line.as_str());
        // If the line is too long to copy, a command writes it.
        assert_eq!(help.commands.len(), if line.len() > 1000 { 2 } else { 1 });
        for step in &help.commands {
            commands::succeeds(&step.command);
        }
        if help.commands.len() == 1 {
            fs::write(file, format!("{line}\n")).expect("written");
        }
        assert_eq!(fs::read_to_string(file).expect("the file").trim_end(), line);
        let expected = [ports.as_slice(), &[60_001]].concat();
        assert_eq!(reserved(), expected);
        let long = line.len() > 4096;
        assert_eq!(help.advice.join(" ").contains("Load the file with systemd-sysctl"), long);
        let systemd = ["/usr/lib/systemd/systemd-sysctl", "/lib/systemd/systemd-sysctl"];
        let reader = systemd.into_iter().find(|path| Path::new(path).exists());
        let reader =
            reader.map(str::to_owned).or_else(|| (!long && commands::has("sysctl")).then(|| "sysctl -p".into()));
        let Some(reader) = reader else {
            not_checked(format!("a file with {count} reserved ports: systemd-sysctl is not installed"));
            continue;
        };
        reserve(&[]);
        commands::run(&format!("{reader} {file}")).code(0);
        assert_eq!(reserved(), expected, "{reader}");
    }
}

/// Runs `capacity`, which warns if this kernel does not support the test of single ports.
#[track_caller]
fn answered(args: &[&str]) -> Run {
    let run = twtool(args);
    if kernel::has_port_range_option() { run.ok() } else { run.code(0) }
}

fn the_commands_of_capacity_give_connect_more_ports() {
    narrow_range(8);
    let server = serve("127.0.0.1:7000");
    let to = server.local_addr().expect("an address");
    let args = ["capacity", "--to", "127.0.0.1:7000", "--json"];
    let _open: Vec<_> = (0..8).map(|_| connect(None, to).expect("one of eight ports")).collect();
    assert!(connect(None, to).is_err());
    let run = twtool(args);
    assert!(text(&run.json(), "verdict").contains("0 of 8 ports are left"), "{run}");
    run_the_commands(&run);
    connect(None, to).expect("a port of the wider range");
    assert_eq!(answered(&args).json()["verdict"], Value::Null);

    // If all ports of the range are reserved, twtool reports it even without `--to`.
    narrow_range(4);
    sysctl::write("ipv4.ip_unprivileged_port_start", "30000").expect("the namespace is ours");
    reserve(&(LOW..LOW + 4).collect::<Vec<_>>());
    let run = answered(&["capacity", "--json"]);
    assert!(text(&run.json(), "verdict").starts_with("No port of 40000-40003 is left"), "{run}");
    let page = answered(&["capacity"]);
    for command in run_the_commands(&run) {
        assert!(page.stdout.contains(&format!("\n  {command}\n")), "a line of its own{page}");
    }
    assert_eq!(read("ipv4.ip_local_port_range"), "30000\t65535", "the range begins at ip_unprivileged_port_start");
    assert_eq!(answered(&["capacity", "--json"]).json()["verdict"], Value::Null);
}

fn run_the_commands(run: &Run) -> Vec<String> {
    let printed = run.json()["commands"].as_array().expect("commands").clone();
    let commands: Vec<String> = printed.iter().map(|step| text(step, "command").to_owned()).collect();
    assert!(!commands.is_empty(), "{run}");
    for command in &commands {
        commands::succeeds(command);
    }
    commands
}

/// Checks the system calls of `COMMANDS` with strace. Each open of a file below /proc/sys or /sys is followed by one read(2) into a
/// buffer of at least 4095 bytes.
fn the_running_program_reads_each_setting_with_one_read() {
    /// Files that libraries read. The standard library reads the number of processors, and the crate procfs reads the kernel's
    /// version. These files contain no list that must be read with one read(2).
    const OF_LIBRARIES: [&str; 3] = ["/sys/fs/cgroup/", "/sys/devices/system/cpu", "/proc/sys/kernel/osrelease"];
    if let Some(why) = missing_strace() {
        return not_checked(format!("how the running program reads settings: {why}"));
    }
    let setting = |path: &str| {
        let below = ["/proc/sys/", "/sys/"].iter().any(|folder| path.starts_with(folder));
        below && !OF_LIBRARIES.iter().any(|folder| path.starts_with(folder))
    };
    let _situation = MixedSituation::make();
    // The lists have 480 bytes and 12 KB. The list of 12 KB does not fit into the first buffer of twtool.
    for count in [80, 2000] {
        reserve(&every_second(10_001, count));
        for (name, args) in COMMANDS {
            let folder = tempfile::tempdir().expect("a folder");
            let mut strace = Command::new("strace");
            strace.args([
                "-ff",
                "-y",
                "-qq",
                "-e",
                "trace=open,openat,openat2,read,pread64,readv,preadv,preadv2,mmap,sendfile",
            ]);
            strace.arg("-o").arg(folder.path().join("trace")).arg(PATH).args(args).stdin(Stdio::null());
            Run::of(&mut strace);
            let (mut opened, mut read) = (0, 0);
            for file in fs::read_dir(folder.path()).expect("traces") {
                let trace = fs::read_to_string(file.expect("a trace").path()).expect("text");
                // The lines look like these:
                // openat(AT_FDCWD</x>, "/proc/sys/y", O_RDONLY) = 4</proc/sys/y>
                // read(4</proc/sys/y>, "1\n", 4095) = 2
                let path = |text: &str| Some(text.split_once('<')?.1.split_once('>')?.0.to_owned());
                for line in trace.lines() {
                    let Some((call, rest)) = line.split_once('(') else { continue };
                    let Some((arguments, result)) = rest.rsplit_once(" = ") else { continue };
                    if call.starts_with("open") {
                        opened += usize::from(path(result).is_some_and(|path| setting(&path)));
                    } else if path(arguments).is_some_and(|path| setting(&path)) {
                        let room =
                            arguments.trim_end_matches(')').rsplit(", ").next().and_then(|n| n.parse::<u32>().ok());
                        assert!(call == "read" && room >= Some(4095), "{name}: {line}");
                        read += 1;
                    }
                }
            }
            assert_eq!(opened, read, "{name}: one read for each open");
            assert!(opened > 0 || name.starts_with("kill"), "{name}: it reads settings");
        }
    }
}
