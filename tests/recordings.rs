//! `--record` and `--replay`: the same bytes anywhere, nothing overwritten, and a damaged file named.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tempfile::TempDir;

use crate::support::netns::elsewhere;
use crate::support::procfs;
use crate::support::records::cookies;
use crate::support::situations::{Mixed, bucket_of_server, listen, many_buckets};
use crate::support::suite;
use crate::support::twtool::{Run, command, twtool};

suite! {
    pure: [
        an_empty_file_is_refused,
        a_file_of_anything_else_is_refused,
        a_file_that_cannot_be_read_is_refused,
    ],
    netns: [
        a_replay_gives_the_same_bytes_in_every_format,
        a_replay_gives_the_same_bytes_in_another_namespace,
        a_replay_can_be_filtered_as_the_kernel_can,
        a_recording_of_many_datagrams_is_whole,
        a_recording_is_whole_whatever_was_printed,
        a_recording_is_whole_where_the_reader_went_away,
        rows_that_were_not_recorded_are_said_to_be_missing,
        an_existing_file_is_kept_unless_forced,
        a_recording_that_cannot_be_written_is_refused,
        a_recording_cut_off_is_refused,
        a_recording_changed_by_hand_is_refused,
        recording_and_replaying_at_once_is_refused,
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
            assert!(live.stdout.len() > 100, "the situation itself{live}");
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
        assert!(live.stdout.len() > 100, "the situation itself{live}");
        let replay = elsewhere(|| {
            // Everything that an answer depends on is another here.
            twtool::sys::sysctl::write("ipv4.ip_local_port_range", "1024 2000").expect("the namespace is ours");
            let servers = [listen("127.0.0.1:9000"), listen("127.0.0.1:9001")];
            bucket_of_server(&servers[0], "127.0.0.1:9000");
            list(&["-o", format, "--fin-wait-2", "--replay", &file]).ok()
        });
        assert_eq!(live.stdout, replay.stdout, "{format}");
    }
    mixed.end();
}

fn a_replay_can_be_filtered_as_the_kernel_can() {
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
        let order = |run: &Run| {
            let mut cookies = cookies(&run.records("sockets"));
            // Remaining times are equal in one reading and not in another: the order among them is no promise.
            cookies.sort_unstable();
            cookies
        };
        if !flags.contains(&"--limit") {
            assert_eq!(order(&live), order(&replay), "{flags:?}");
        }
        assert_eq!(live.records("sockets").len(), replay.records("sockets").len(), "{flags:?}");
    }
    list(&["-q", "--replay", &file, "--local-port", "8080"]).code(0);
    list(&["-q", "--replay", &file, "--local-port", "1"]).code(1);
    mixed.end();
}

fn a_recording_of_many_datagrams_is_whole() {
    let (server, folder) = (listen("127.0.0.1:8080"), Folder::new());
    many_buckets(&server, "127.0.0.1:8080", 1500);
    for format in FORMATS {
        let file = folder.path(format);
        let live = list(&["-o", format, "--record", &file]).ok();
        assert!(live.stdout.lines().count() >= 1500 || format == "json", "the situation itself{live}");
        assert_eq!(live.stdout, list(&["-o", format, "--replay", &file]).ok().stdout, "{format}");
    }
}

fn a_recording_is_whole_whatever_was_printed() {
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

fn a_recording_is_whole_where_the_reader_went_away() {
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

fn rows_that_were_not_recorded_are_said_to_be_missing() {
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

fn an_existing_file_is_kept_unless_forced() {
    let (mixed, folder) = (Mixed::make(), Folder::new());
    let file = folder.with("recording", "mine");
    for format in FORMATS {
        list(&["-o", format, "--record", &file]).refused(&file).says("--force");
        assert_eq!(fs::read_to_string(&file).expect("there"), "mine");
    }
    list(&["--record", &file, "--force"]).ok();
    assert_eq!(list(&["--replay", &file, "--count"]).ok().stdout, format!("{}\n", Mixed::TIME_WAIT));
    let other = folder.path("other");
    list(&["--record", &other, "--force"]).ok();

    // Only a regular file is replaced: what a link points to, or a device, is somebody else's.
    let link = folder.path("link");
    std::os::unix::fs::symlink(&other, &link).expect("a link");
    list(&["--record", &link, "--force"]).refused(&link);
    list(&["--record", &folder.path(""), "--force"]).refused("recording");
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

fn a_file_of_anything_else_is_refused() {
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

fn a_recording_cut_off_is_refused() {
    let (mixed, folder) = (Mixed::make(), Folder::new());
    let file = folder.path("recording");
    list(&["--record", &file]).ok();
    let whole = fs::read(&file).expect("there");
    let lines: Vec<_> = whole.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at).collect();
    assert!(lines.len() >= 4, "facts, a request, a datagram, the end");
    // After each line, and within it.
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
    assert!(text.contains(kernel.trim()), "a recording can be read by people");
    damaged(&folder.with("kernel", text.replacen(kernel.trim(), "2.4.0", 1)));
    // A digit of a datagram: still well-formed, and yet another socket.
    let at = text.find("\"datagram\":\"").expect("a datagram") + "\"datagram\":\"".len() + 16 * 2 + 5 * 2;
    let digit = if text.as_bytes()[at] == b'0' { "1" } else { "0" };
    damaged(&folder.with("digit", [&text[..at], digit, &text[at + 1..]].concat()));
    let lines: Vec<_> = text.lines().collect();
    let without: Vec<_> = lines.iter().filter(|line| !line.contains("datagram")).copied().collect();
    damaged(&folder.with("without", without.join("\n")));
    mixed.end();
}

fn recording_and_replaying_at_once_is_refused() {
    let folder = Folder::new();
    let (one, two) = (folder.path("one"), folder.path("two"));
    list(&["--record", &one]).ok();
    list(&["--replay", &one, "--record", &two]).refused("--re");
    assert!(!Path::new(&two).exists());
}
