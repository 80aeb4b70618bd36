//! Long lists: they are complete while short-lived buckets appear and end (*churn*), and work with a reader that is slow or closes the
//! pipe.

use std::collections::{HashMap, HashSet};
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use twtool::sys::counts::{self, ReadPass};

use crate::support::crowd::{Killer, churn, gather, make_room};
use crate::support::situations::{bucket_of_client, listen};
use crate::support::twtool::{Run, command, twtool};
use crate::support::{kernel, measured, netns, not_checked, records, suite};

suite! {
    pure: [],
    netns: [
        dumps_under_churn_miss_no_bucket_and_repeat_none,
        dumps_of_a_small_hash_table_miss_no_bucket_and_repeat_none,
        removals_during_a_pause_of_the_reader_hide_no_other_bucket,
        a_slow_reader_gets_every_row_and_twtool_needs_little_memory,
        closing_the_pipe_ends_a_long_list,
        table_counts_give_an_upper_bound_of_the_number_of_removed_sockets,
    ],
}

const MANY: usize = 30_000;

/// The number of long-lived buckets, of short-lived buckets per second, and of dumps. `TWTOOL_FULL=1` gives the numbers of a busy
/// server.
fn numbers() -> (usize, usize, usize) {
    if std::env::var_os("TWTOOL_FULL").is_some() { (50_000, 5_000, 200) } else { (5_000, 1_000, 30) }
}

/// Stops the churn thread, also if the test fails. Otherwise the failed test would wait for that thread forever.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn cookies(args: &[&str]) -> Vec<u64> {
    let run = twtool(["list", "-o", "csv", "--columns", "cookie", "--no-header"].iter().chain(args)).ok();
    run.stdout.lines().map(|line| line.parse().unwrap_or_else(|_| panic!("no cookie: {line}"))).collect()
}

fn dumps_under_churn_miss_no_bucket_and_repeat_none() {
    dump_under_churn();
}

/// The namespace has its own hash table, with one to two chains for each long-lived bucket. Its chains are longer than usual, so the
/// kernel pauses a dump within a chain more often.
fn dumps_of_a_small_hash_table_miss_no_bucket_and_repeat_none() {
    let chains = u32::try_from(numbers().0).expect("few");
    if netns::with_chains(chains, dump_under_churn).is_none() {
        not_checked("dumps of a small hash table: this kernel has no tcp_child_ehash_entries");
    }
}

fn dump_under_churn() {
    kernel::needs(kernel::destroys_buckets(), "SOCK_DESTROY of buckets");
    let (long_lived, a_second, dumps) = numbers();
    make_room();
    let born = Instant::now();
    gather(long_lived);
    let expected: HashSet<u64> = cookies(&[]).into_iter().collect();
    assert_eq!(expected.len(), long_lived, "the long-lived buckets, before the churn starts");

    let (stop, made) = (AtomicBool::new(false), AtomicUsize::new(0));
    let (mut done, mut missed, mut repeated) = (0, 0, 0);
    let (mut short_lived, mut most) = (HashSet::new(), 0);
    let began = Instant::now();
    let traffic = thread::scope(|scope| {
        let traffic = scope.spawn(|| churn(a_second, &stop, &made));
        let stop = StopOnDrop(&stop);
        while made.load(Ordering::Relaxed) == 0 && !traffic.is_finished() {
            thread::yield_now();
        }
        // Continue until some short-lived buckets have ended, too.
        let enough = |done| done >= dumps && made.load(Ordering::Relaxed) > a_second / 2;
        while !enough(done) && kernel::is_young(born) {
            let found = cookies(if done % 2 == 0 { &[] } else { &["--fin-wait-2"] });
            let mut times: HashMap<u64, usize> = HashMap::new();
            for cookie in found {
                *times.entry(cookie).or_default() += 1;
            }
            missed += expected.iter().filter(|&cookie| !times.contains_key(cookie)).count();
            repeated += expected.iter().filter(|&cookie| times.get(cookie).is_some_and(|&n| n > 1)).count();
            let others: Vec<u64> = times.into_keys().filter(|cookie| !expected.contains(cookie)).collect();
            most = most.max(others.len());
            short_lived.extend(others);
            done += 1;
        }
        drop(stop);
        traffic.join().expect("the churn thread does not panic")
    });
    let took = began.elapsed();
    measured(format!(
        "churn: {done} dumps of {long_lived} long-lived buckets in {took:.1?} missed {missed} and repeated {repeated}; beside \
         them {} short-lived ones, {} a second ({} destroyed, {} reset, {} expired), {} of them seen, at most {most} at once",
        traffic.all(),
        traffic.all() * 1000 / usize::try_from(traffic.took.as_millis()).expect("not for ever").max(1),
        traffic.destroyed,
        traffic.reset,
        traffic.expired,
        short_lived.len(),
    ));
    assert_eq!((missed, repeated), (0, 0), "long-lived buckets missed and repeated, in {done} dumps");
    if done < dumps {
        return not_checked(format!(
            "{} of {dumps} dumps under churn: the buckets may have expired on this slow machine",
            dumps - done
        ));
    }
    assert!(
        short_lived.len() > most,
        "no short-lived bucket appeared or ended: {} in all, {most} at the same time",
        short_lived.len()
    );
}

fn removals_during_a_pause_of_the_reader_hide_no_other_bucket() {
    const ROWS: usize = 20_000;
    // The size in bytes of the output for about three datagrams of the kernel.
    const PIECE: u64 = 256 * 1024;
    const PAUSE: Duration = Duration::from_millis(30);
    kernel::needs(kernel::destroys_buckets(), "SOCK_DESTROY of buckets");
    let pause_the_reader = || {
        make_room();
        let born = Instant::now();
        gather(ROWS);
        let before = twtool(["list", "-o", "ndjson"]).ok().ndjson();
        let mut killer = Killer::new();
        let mut command = command(["list", "-o", "ndjson"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("twtool can be started");
        let mut pipe = child.stdout.take().expect("a pipe");
        let (mut text, mut gone) = (vec![], HashSet::new());
        for turn in 0.. {
            if (&mut pipe).take(PIECE).read_to_end(&mut text).expect("some bytes") == 0 {
                break;
            }
            // twtool waits for the reader now. The test removes buckets everywhere in the table, but never many adjacent ones.
            thread::sleep(PAUSE);
            for record in before.iter().skip(turn * 7 % 40).step_by(40) {
                if gone.insert(cookie_of(record)) {
                    killer.destroy(ends(record));
                }
            }
        }
        let mut output = child.wait_with_output().expect("it ends");
        kernel::needs_young_buckets(born);
        output.stdout = text;
        let run = Run::ended(&command, &output);
        assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""), "{PAUSE:?}");
        let mut times: HashMap<String, usize> = HashMap::new();
        for record in run.ndjson() {
            *times.entry(cookie_of(&record)).or_default() += 1;
        }
        let stayed: Vec<String> = before.iter().map(cookie_of).filter(|cookie| !gone.contains(cookie)).collect();
        let missed = stayed.iter().filter(|&cookie| !times.contains_key(cookie)).count();
        let repeated = times.values().filter(|&&n| n > 1).count();
        measured(format!(
            "a reader that pauses for {PAUSE:?}: {missed} of {} missed, {repeated} repeated, while {} were removed",
            stayed.len(),
            gone.len(),
        ));
        assert_eq!((missed, repeated), (0, 0), "missed and repeated, {PAUSE:?}");
        assert!(gone.len() > ROWS / 4 && stayed.len() > ROWS / 4);
    };
    if netns::with_chains(1000, pause_the_reader).is_none() {
        not_checked("a reader that pauses over long chains: this kernel has no tcp_child_ehash_entries");
    }
}

fn table_counts_give_an_upper_bound_of_the_number_of_removed_sockets() {
    let server = listen("127.0.0.1:8080");
    let earlier = counts::table_counts(ReadPass::Earlier).expect("counts");
    let removed = || counts::table_counts(ReadPass::Later).expect("counts").removed_since(&earlier);
    assert_eq!(removed(), 0, "before the first close");
    for closes in 1..=5 {
        bucket_of_client(&server, "127.0.0.1:8080");
        // Each close removes the sockets of both ends from the table. The upper bound may also count the bucket that one end leaves.
        assert!((2 * closes..=3 * closes).contains(&removed()), "{} of {closes} closes", removed());
    }
    // The file exists since Linux 6.1.
    if Path::new("/proc/sys/net/ipv4/tcp_ehash_entries").exists() {
        let chains = counts::chains().expect("chains");
        assert!(chains.is_power_of_two() && chains > 1, "{chains} chains");
    }
}

fn cookie_of(record: &Value) -> String {
    records::text(record, "cookie").to_owned()
}

fn ends(record: &Value) -> (SocketAddr, SocketAddr) {
    let end = |addr, port| {
        let port = u16::try_from(records::number(record, port)).expect("a port");
        SocketAddr::new(records::text(record, addr).parse().expect("an address"), port)
    };
    (end("local_addr", "local_port"), end("remote_addr", "remote_port"))
}

/// The anonymous memory of a running child in KiB; `None` if the child has ended. Anonymous memory does not include the program's file,
/// whose size depends on the build.
fn anonymous_kib(child: &Child) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.split_whitespace().next()?.parse().ok()
}

fn a_slow_reader_gets_every_row_and_twtool_needs_little_memory() {
    make_room();
    let born = Instant::now();
    gather(MANY);
    let expected: HashSet<u64> = cookies(&[]).into_iter().collect();
    kernel::needs_young_buckets(born);
    assert_eq!(expected.len(), MANY);
    for format in ["ndjson", "csv"] {
        let mut command = command(["list", "-o", format]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("twtool can be started");
        let mut pipe = child.stdout.take().expect("a pipe");
        let (mut text, mut peak) = (vec![], 0);
        let mut buffer = vec![0; 10_000];
        loop {
            let length = pipe.read(&mut buffer).expect("some bytes");
            if length == 0 {
                break;
            }
            text.extend_from_slice(&buffer[..length]);
            peak = peak.max(anonymous_kib(&child).unwrap_or(0));
            // Read the first 2 MB at 1 MB per second, and the rest as fast as possible.
            if text.len() < 2_000_000 {
                thread::sleep(Duration::from_millis(10));
            }
        }
        let mut output = child.wait_with_output().expect("it ends");
        if !kernel::is_young(born) {
            return not_checked(format!(
                "a slow reader of {format}: the buckets may have expired on this slow machine"
            ));
        }
        output.stdout = text;
        let run = Run::ended(&command, &output);
        assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""), "{format}: {} bytes", run.stdout.len());
        let found: Vec<u64> = if format == "csv" {
            let (header, rows) = run.csv();
            let at = header.iter().position(|key| key == "cookie").expect("a column");
            rows.iter().map(|row| row[at].parse().expect("a number")).collect()
        } else {
            crate::support::records::cookies(&run.ndjson())
        };
        assert_eq!(found.len(), MANY, "{format}: every row, once");
        assert_eq!(found.into_iter().collect::<HashSet<_>>(), expected, "{format}");
        measured(format!("a slow reader: {MANY} rows of {format} from {peak} KiB of anonymous memory"));
        assert!((1..=4096).contains(&peak), "{format}: {peak} KiB of memory, and the limit is 4 MiB");
    }
}

fn closing_the_pipe_ends_a_long_list() {
    make_room();
    gather(MANY);
    for format in ["ndjson", "csv"] {
        let began = Instant::now();
        let mut command = command(["list", "-o", format]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("twtool can be started");
        let mut reader = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut line = String::new();
        reader.read_line(&mut line).expect("a line");
        drop(reader);
        let run = Run::ended(&command, &child.wait_with_output().expect("it ends"));
        assert!(line.ends_with('\n'), "{format}: {line:?}");
        assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""), "{format}{run}");
        measured(format!("one line of {MANY} of {format}: {:.0?}", began.elapsed()));
    }
}
