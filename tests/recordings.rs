//! `--record` and `--replay`: a replay gives the same bytes everywhere, a recording replaces a file only with `--force`, and an
//! error names the damaged file.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use caps::Capability;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::limits::{drop_capability, refuse, refuse_files_without_a_name};
use crate::support::netns::on_thread_in_new_namespace;
use crate::support::procfs;
use crate::support::records::cookies;
use crate::support::situations::{Mixed, bucket_of_server, listen, many_buckets};
use crate::support::twtool::{PATH, Run, command, twtool};
use crate::support::{not_checked, suite};

suite! {
    pure: [
        an_empty_file_is_refused,
        a_file_that_is_not_a_recording_is_refused,
        a_file_that_cannot_be_read_is_refused,
        a_file_that_is_not_regular_is_refused_at_once,
        a_recording_of_an_earlier_version_is_replayed,
    ],
    netns: [
        a_replay_gives_the_same_bytes_in_every_format,
        a_replay_gives_the_same_bytes_in_another_namespace,
        filters_select_the_same_rows_from_a_replay_and_from_the_kernel,
        a_recording_of_many_datagrams_is_complete,
        a_recording_is_complete_whatever_twtool_prints,
        a_recording_is_complete_after_a_closed_pipe,
        a_replay_reports_rows_that_were_not_recorded,
        an_existing_file_is_replaced_only_with_force,
        a_recording_that_cannot_be_written_is_refused,
        a_file_of_another_owner_is_not_replaced,
        a_failure_replaces_no_recording,
        a_signal_leaves_no_part_of_a_recording,
        a_full_disk_leaves_no_part_of_a_recording,
        a_recording_in_a_removed_folder_is_an_error,
        recordings_work_on_filesystems_without_unnamed_files,
        a_file_of_4_gib_is_refused_with_little_memory,
        a_truncated_recording_is_refused,
        a_recording_changed_by_hand_is_refused,
        recording_and_replaying_at_the_same_time_is_refused,
    ],
}

const FORMATS: [&str; 4] = ["table", "json", "ndjson", "csv"];

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).into_os_string().into_string().expect("UTF-8")
    }

    fn with(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        fs::write(self.path(name), content).expect("written");
        self.path(name)
    }

    fn names(&self) -> Vec<PathBuf> {
        fs::read_dir(self.0.path()).expect("a folder").map(|entry| entry.expect("an entry").path()).collect()
    }
}

fn list(args: &[&str]) -> Run {
    twtool([&["list"], args].concat())
}

fn a_replay_gives_the_same_bytes_in_every_format() {
    let (mixed, folder) = (Mixed::make(), Folder::new());
    for format in FORMATS {
        for more in [[].as_slice(), &["--fin-wait-2"], &["--fin-wait-2", "--sort", "local", "--reverse", "-4"]] {
            let file = folder.path(&format!("{format}-{}", more.len()));
            let live = list(&[&["-o", format, "--record", &file], more].concat()).ok();
            assert!(live.stdout.len() > 100, "the answer contains the buckets{live}");
            let replay = list(&[&["-o", format, "--replay", &file], more].concat()).ok();
            assert_eq!(live.stdout, replay.stdout, "{format} {more:?}");
        }
    }
    mixed.end();
}

fn a_replay_gives_the_same_bytes_in_another_namespace() {
    let (mixed, folder) = (Mixed::make(), Folder::new());
    let file = folder.path("recording");
    for format in FORMATS {
        let live = list(&["-o", format, "--fin-wait-2", "--record", &file, "--force"]).ok();
        assert!(live.stdout.len() > 100, "the answer contains the buckets{live}");
        let replay = on_thread_in_new_namespace(|| {
            // This namespace has other settings, listeners and buckets.
            twtool::sys::sysctl::write("ipv4.ip_local_port_range", "1024 2000").expect("the namespace is ours");
            let servers = [listen("127.0.0.1:9000"), listen("127.0.0.1:9001")];
            bucket_of_server(&servers[0], "127.0.0.1:9000");
            list(&["-o", format, "--fin-wait-2", "--replay", &file]).ok()
        });
        assert_eq!(live.stdout, replay.stdout, "{format}");
    }
    mixed.end();
}

fn filters_select_the_same_rows_from_a_replay_and_from_the_kernel() {
    let (mixed, folder) = (Mixed::make(), Folder::new());
    let file = folder.path("recording");
    list(&["--fin-wait-2", "--record", &file]).ok();
    for flags in [
        ["--local-port", "8080"].as_slice(),
        &["-6"],
        &["--direction", "inbound"],
        &["--local", "127.0.0.0/8", "--sort", "remote"],
        &["--class", "registered"],
        &["--fin-wait-2"],
        &["--fin-wait-2", "--limit", "3"],
        &[],
    ] {
        let (live, replay) =
            (list(&[&["--json"], flags].concat()).ok(), list(&[&["--json", "--replay", &file], flags].concat()).ok());
        let sorted_cookies = |run: &Run| {
            let mut cookies = cookies(&run.records("sockets"));
            // Two remaining times can be equal in one answer and different in the other, so the order of the rows is not compared.
            cookies.sort_unstable();
            cookies
        };
        if !flags.contains(&"--limit") {
            assert_eq!(sorted_cookies(&live), sorted_cookies(&replay), "{flags:?}");
        }
        assert_eq!(live.records("sockets").len(), replay.records("sockets").len(), "{flags:?}");
    }
    list(&["-q", "--replay", &file, "--local-port", "8080"]).code(0);
    list(&["-q", "--replay", &file, "--local-port", "1"]).code(1);
    mixed.end();
}

fn a_recording_of_many_datagrams_is_complete() {
    let (server, folder) = (listen("127.0.0.1:8080"), Folder::new());
    many_buckets(&server, "127.0.0.1:8080", 1500);
    for format in FORMATS {
        let file = folder.path(format);
        let live = list(&["-o", format, "--record", &file]).ok();
        assert!(live.stdout.lines().count() >= 1500 || format == "json", "the answer contains the buckets{live}");
        assert_eq!(live.stdout, list(&["-o", format, "--replay", &file]).ok().stdout, "{format}");
    }
}

fn a_recording_is_complete_whatever_twtool_prints() {
    let (mixed, folder) = (Mixed::make(), Folder::new());
    for (name, flags) in [
        ("quiet", ["-q"].as_slice()),
        ("count", &["--count"]),
        ("limit", &["--limit", "1", "-o", "ndjson"]),
        ("filter", &["--local-port", "8080"]),
    ] {
        let file = folder.path(name);
        list(&[&["--record", &file], flags].concat()).ok();
        assert_eq!(list(&["--count", "--replay", &file]).ok().stdout, format!("{}\n", Mixed::TIME_WAIT), "{name}");
    }
    let file = folder.path("none");
    list(&["-q", "--local-port", "1", "--record", &file]).code(1);
    assert_eq!(list(&["--count", "--replay", &file]).ok().stdout, format!("{}\n", Mixed::TIME_WAIT));
    assert_eq!(folder.names().len(), 5, "nothing else is left: {:?}", folder.names());
    mixed.end();
}

fn a_recording_is_complete_after_a_closed_pipe() {
    let (server, folder) = (listen("127.0.0.1:8080"), Folder::new());
    many_buckets(&server, "127.0.0.1:8080", 3000);
    let there = procfs::time_wait().len();
    for format in FORMATS {
        let file = folder.path(format);
        let mut command = command(["list", "-o", format, "--record", &file]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("twtool can be started");
        child.stdout.take().expect("a pipe").read_exact(&mut [0; 100]).expect("100 bytes");
        let run = Run::ended(&command, &child.wait_with_output().expect("it ends")).ok();
        let replay = list(&["--count", "--replay", &file]).ok();
        assert_eq!(replay.stdout, format!("{there}\n"), "{run}{replay}");
    }
}

fn a_replay_reports_rows_that_were_not_recorded() {
    let (mixed, folder) = (Mixed::make(), Folder::new());
    let file = folder.path("recording");
    list(&["--record", &file]).ok();
    for format in FORMATS {
        list(&["-o", format, "--fin-wait-2", "--replay", &file]).refused("recording").says("hint:");
    }
    list(&["--count", "--fin-wait-2", "--replay", &file]).refused("recording");
    list(&["-q", "--fin-wait-2", "--replay", &file]).refused("recording");
    mixed.end();
}

fn recordings_work_on_filesystems_without_unnamed_files() {
    refuse_files_without_a_name();
    an_existing_file_is_replaced_only_with_force();
}

fn an_existing_file_is_replaced_only_with_force() {
    let (mixed, folder) = (Mixed::make(), Folder::new());
    let file = folder.with("recording", "mine");
    for format in FORMATS {
        list(&["-o", format, "--record", &file]).refused(&file).says("--force");
        assert_eq!(fs::read_to_string(&file).expect("there"), "mine");
    }
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).expect("a mode");
    let before = fs::metadata(&file).map(|file| (file.mode(), file.uid(), file.gid())).expect("there");
    list(&["--record", &file, "--force"]).ok();
    let after = fs::metadata(&file).map(|file| (file.mode(), file.uid(), file.gid())).expect("there");
    assert_eq!((after, after.0 & 0o777), (before, 0o640), "mode and owner are those of the replaced file");
    assert_eq!(list(&["--replay", &file, "--count"]).ok().stdout, format!("{}\n", Mixed::TIME_WAIT));
    let other = folder.path("other");
    list(&["--record", &other, "--force"]).ok();

    // --force replaces only a regular file, not a link or a folder.
    let link = folder.path("link");
    std::os::unix::fs::symlink(&other, &link).expect("a link");
    list(&["--record", &link, "--force"]).refused(&link);
    assert_eq!(fs::read_link(&link).expect("still a link"), Path::new(&other));
    for path in [folder.path(""), folder.path("new/"), folder.path("..")] {
        list(&["--record", &path, "--force"]).refused("recording");
    }
    assert_eq!(folder.names().len(), 3, "nothing is left behind: {:?}", folder.names());
    mixed.end();
}

fn a_recording_that_cannot_be_written_is_refused() {
    let folder = Folder::new();
    for path in [folder.path("no/such/folder"), "/proc/recording".into()] {
        list(&["--record", &path]).refused(&path);
        list(&["-o", "ndjson", "--record", &path]).refused(&path);
    }
}

fn a_file_of_another_owner_is_not_replaced() {
    let folder = Folder::new();
    let file = folder.with("recording", "");
    let owner = |path: &str| fs::metadata(path).map(|file| (file.uid(), file.gid()));
    let own = owner(&file).expect("there");
    let foreign_file =
        ["/etc/shadow", "/etc/passwd"].into_iter().find(|path| owner(path).is_ok_and(|owner| owner != own));
    let Some(foreign_file) = foreign_file else {
        return not_checked("--force over a file of another owner: there is none here");
    };
    unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private mounts");
    mount(Some(foreign_file), file.as_str(), none, MsFlags::MS_BIND, none).expect("the other file, by this name");
    let before = fs::metadata(&file).map(|file| (file.dev(), file.ino())).expect("there");
    // Without CAP_CHOWN, twtool cannot give the new file the owner of the old one.
    drop_capability(Capability::CAP_CHOWN);
    for format in FORMATS {
        list(&["-o", format, "--record", &file, "--force"]).refused(&file).says("cannot be kept");
        assert_eq!(fs::metadata(&file).map(|file| (file.dev(), file.ino())).expect("there"), before);
        assert_eq!(folder.names().len(), 1, "{format}: {:?}", folder.names());
    }
}

fn a_failure_replaces_no_recording() {
    let (server, folder) = (listen("127.0.0.1:8080"), Folder::new());
    bucket_of_server(&server, "127.0.0.1:8080");
    let (old, new) = (folder.path("old"), folder.path("new"));
    list(&["--record", &old]).ok();
    let before = fs::read(&old).expect("there");
    refuse(libc::SYS_recvfrom, None, libc::ENOBUFS);
    for more in [["-o", "csv"].as_slice(), &["--json"], &["-q"], &["--count"]] {
        let args = |file| [&["--record", file, "--force"], more].concat();
        let run = list(&args(&old)).refused("No buffer space available").says(&format!("'{old}' is not replaced"));
        assert_eq!(fs::read(&old).expect("there"), before, "{run}");
        // A new recording contains the failure, so that a user can attach it to a bug report.
        list(&args(&new)).refused("No buffer space available");
        list(&["--replay", &new]).refused("No buffer space available");
        fs::remove_file(&new).expect("there");
        assert_eq!(folder.names().len(), 1, "{:?}", folder.names());
    }
    // A usage error creates no file, and replaces none.
    list(&["--record", &old, "--force", "nonsense"]).refused("nonsense");
    list(&["--record", &new, "nonsense"]).refused("nonsense");
    assert_eq!((fs::read(&old).expect("there"), folder.names().len()), (before, 1));
}

/// Starts a run that records, and reads 100 bytes of its output. The rest does not fit into a pipe, so the run cannot end before it is
/// read.
fn half_way(file: &str) -> (Command, Child) {
    let mut command = command(["list", "-o", "ndjson", "--record", file]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("twtool can be started");
    child.stdout.as_mut().expect("a pipe").read_exact(&mut [0; 100]).expect("100 bytes");
    (command, child)
}

fn a_signal_leaves_no_part_of_a_recording() {
    let (server, folder) = (listen("127.0.0.1:8080"), Folder::new());
    many_buckets(&server, "127.0.0.1:8080", 3000);
    let file = folder.path("recording");
    let ends = |signal: Signal, named: usize| {
        let (_, mut child) = half_way(&file);
        assert_eq!(folder.names().len(), named, "while it records, before {signal}: {:?}", folder.names());
        kill(Pid::from_raw(child.id().cast_signed()), signal).expect("a signal");
        assert_eq!(child.wait().expect("it ends").signal(), Some(signal as i32));
        assert_eq!(folder.names(), [] as [PathBuf; 0], "after {signal}");
    };
    let handled = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];
    // The kernel removes a file without a name when the process ends, even by SIGKILL.
    for signal in handled.into_iter().chain([Signal::SIGKILL, Signal::SIGABRT]) {
        ends(signal, 0);
    }
    // A file with a name must be removed by twtool itself, which twtool can do only at signals that it handles.
    refuse_files_without_a_name();
    for signal in handled {
        ends(signal, 1);
    }
    // twtool keeps ignoring a signal that its parent ignored, and SIGPIPE does not end it.
    let mut command = Command::new("sh");
    command.args(["-c", r#"trap "" HUP; exec "$0" list -o ndjson --record "$1""#, PATH, &file]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a shell");
    child.stdout.as_mut().expect("a pipe").read_exact(&mut [0; 100]).expect("100 bytes");
    for signal in [Signal::SIGHUP, Signal::SIGPIPE] {
        kill(Pid::from_raw(child.id().cast_signed()), signal).expect("a signal");
    }
    Run::ended(&command, &child.wait_with_output().expect("it ends")).ok();
    assert_eq!(folder.names(), [PathBuf::from(&file)]);
    list(&["--count", "--replay", &file]).ok();
}

fn a_full_disk_leaves_no_part_of_a_recording() {
    let (server, folder) = (listen("127.0.0.1:8080"), Folder::new());
    many_buckets(&server, "127.0.0.1:8080", 3000);
    unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private mounts");
    mount(Some("tmpfs"), folder.0.path(), Some("tmpfs"), MsFlags::empty(), Some("size=64k")).expect("a small disk");
    let check = || {
        for format in FORMATS {
            let run = list(&["-o", format, "--record", &folder.path("recording")]).code(2);
            run.says("recording").says("No space left on device");
            assert_eq!(folder.names(), [] as [PathBuf; 0], "{format}");
        }
    };
    check();
    refuse_files_without_a_name();
    check();
}

fn a_recording_in_a_removed_folder_is_an_error() {
    let (server, folder) = (listen("127.0.0.1:8080"), Folder::new());
    many_buckets(&server, "127.0.0.1:8080", 3000);
    let (gone, file) = (folder.path("gone"), folder.path("gone/recording"));
    fs::create_dir(&gone).expect("a folder");
    let (command, child) = half_way(&file);
    fs::remove_dir(&gone).expect("it is empty");
    // The folder with this name is now a different folder.
    fs::create_dir(&gone).expect("a folder");
    Run::ended(&command, &child.wait_with_output().expect("it ends")).code(2).says(&file).says("No such file");
    assert_eq!(fs::read_dir(&gone).expect("a folder").count(), 0);
}

fn a_file_that_is_not_regular_is_refused_at_once() {
    let folder = Folder::new();
    let fifo = folder.path("fifo");
    mkfifo(fifo.as_str(), Mode::S_IRWXU).expect("a FIFO");
    let link = folder.path("link");
    std::os::unix::fs::symlink(&fifo, &link).expect("a link");
    for path in [fifo.as_str(), &link, "/dev/urandom", "/dev/zero", &folder.path("")] {
        list(&["--replay", path]).refused(path).says("not a regular file");
    }
}

fn a_file_of_4_gib_is_refused_with_little_memory() {
    let folder = Folder::new();
    let recording = folder.path("recording");
    list(&["--record", &recording]).ok();
    let header = fs::read(&recording).expect("there").split_inclusive(|byte| *byte == b'\n').next().map(<[u8]>::to_vec);
    for (name, begin) in [("zeros", vec![]), ("header", header.expect("a header"))] {
        let file = folder.with(name, begin);
        File::options().write(true).open(&file).expect("there").set_len(4 << 30).expect("a sparse file");
        let script = r#"ulimit -v 500000; exec "$0" list --replay "$1""#;
        Run::of(Command::new("sh").args(["-c", script, PATH, &file]).stdin(Stdio::null())).refused(&file);
    }
}

/// Version 0.1.0 made the recording on Linux 6.18, in little-endian byte order. The expected rows are those that this version printed.
fn a_recording_of_an_earlier_version_is_replayed() {
    if cfg!(target_endian = "big") {
        return;
    }
    let folder = Folder::new();
    let file = folder.with("recording", include_bytes!("recordings/version-0.1.0.twrec"));
    let replay = |args: &[&str]| list(&[&["--json", "--replay", &file], args].concat()).ok();
    let run = replay(&["--fin-wait-2"]);
    assert_eq!(run.json()["taken_at"], "2026-11-29T13:54:43.326Z");
    let rows: Vec<Value> = run
        .records("sockets")
        .iter()
        .map(|row| {
            let end = |side: &str| {
                json!([row[format!("{side}_addr")], row[format!("{side}_port")], row[format!("{side}_service")]])
            };
            let what = ["family", "state", "direction", "expires_ms", "cookie"].map(|key| &row[key]);
            json!([end("local"), end("remote"), what])
        })
        .collect();
    let expected = json!([
        [["127.0.0.1", 80, "http"], ["127.0.0.1", 40000, null], ["ipv4", "time-wait", "inbound", 58_892, "22331292"],],
        [
            ["127.0.0.1", 8080, "http-alt"],
            ["127.0.0.1", 40002, null],
            ["ipv4-mapped", "time-wait", "inbound", 58_892, "22331291"],
        ],
        [["127.0.0.1", 8081, null], ["127.0.0.1", 40003, null], ["ipv4", "time-wait", "unknown", 58_892, "22331293"],],
        [["::1", 40001, null], ["::1", 443, "https"], ["ipv6", "time-wait", "outbound", 58_892, "22331295"],],
        [["127.0.0.1", 80, "http"], ["127.0.0.1", 40004, null], ["ipv4", "fin-wait-2", "inbound", 58_896, "22331294"],],
    ]);
    assert_eq!(json!(rows), expected, "{run}");
    assert_eq!(replay(&[]).records("sockets").len(), 4);
}

#[track_caller]
fn damaged(file: &str) {
    for format in FORMATS {
        let run = list(&["-o", format, "--replay", file]).refused(file);
        let first = run.stderr.lines().next().unwrap_or_default();
        assert!(first.len() < 400 && !first.contains('\x1b'), "one clear line{run}");
    }
    list(&["-q", "--replay", file]).refused(file);
    list(&["--count", "--replay", file]).refused(file);
}

fn an_empty_file_is_refused() {
    damaged(&Folder::new().with("recording", ""));
    damaged("/dev/null");
}

fn a_file_that_is_not_a_recording_is_refused() {
    let folder = Folder::new();
    for (name, content) in [
        ("line", b"\n".as_slice()),
        ("text", b"State Recv-Q Send-Q Local\n"),
        ("json", b"{}\n"),
        ("format", b"{\"format\": \"twtool-recording/999\"}\n"),
        ("binary", &[0, 255, 27, 91, 51, 49, 109, 10, 0]),
        ("elf", &fs::read(crate::support::twtool::PATH).expect("the binary")[..4096]),
    ] {
        damaged(&folder.with(name, content));
    }
}

fn a_file_that_cannot_be_read_is_refused() {
    let folder = Folder::new();
    damaged(&folder.path("no-such-file"));
    damaged(Path::new("/proc/self").to_str().expect("UTF-8"));
}

fn a_truncated_recording_is_refused() {
    let (mixed, folder) = (Mixed::make(), Folder::new());
    let file = folder.path("recording");
    list(&["--record", &file]).ok();
    let whole = fs::read(&file).expect("there");
    let lines: Vec<_> = whole.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at).collect();
    assert!(lines.len() >= 4, "facts, a request, a datagram, the end");
    // The file is cut within each line and after each line. The last line, which marks the end, is cut below.
    for (i, at) in lines.iter().enumerate().take(lines.len() - 1) {
        for cut in [at - 10, at + 1] {
            damaged(&folder.with(&format!("cut-{i}"), &whole[..cut]));
        }
    }
    damaged(&folder.with("end", &whole[..whole.len() - 3]));
    damaged(&folder.with("more", [whole.as_slice(), b"{}\n"].concat()));
    damaged(&folder.with("twice", [whole.as_slice(), &whole].concat()));
    mixed.end();
}

fn a_recording_changed_by_hand_is_refused() {
    let (mixed, folder) = (Mixed::make(), Folder::new());
    let file = folder.path("recording");
    list(&["--record", &file]).ok();
    let text = fs::read_to_string(&file).expect("there");
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").expect("a release");
    assert!(text.contains(kernel.trim()), "a recording contains the release of the kernel as text");
    damaged(&folder.with("kernel", text.replacen(kernel.trim(), "2.4.0", 1)));
    // One hexadecimal digit of the local port is changed (byte 5 after the netlink header of 16 bytes). The datagram is still well-formed,
    // but describes another socket.
    let at = text.find("\"datagram\":\"").expect("a datagram") + "\"datagram\":\"".len() + 16 * 2 + 5 * 2;
    let digit = if text.as_bytes()[at] == b'0' { "1" } else { "0" };
    damaged(&folder.with("digit", [&text[..at], digit, &text[at + 1..]].concat()));
    let lines: Vec<_> = text.lines().collect();
    let without: Vec<_> = lines.iter().filter(|line| !line.contains("datagram")).copied().collect();
    damaged(&folder.with("without", without.join("\n")));
    mixed.end();
}

fn recording_and_replaying_at_the_same_time_is_refused() {
    let folder = Folder::new();
    let (one, two) = (folder.path("one"), folder.path("two"));
    list(&["--record", &one]).ok();
    list(&["--replay", &one, "--record", &two]).refused("--re");
    assert!(!Path::new(&two).exists());
}
