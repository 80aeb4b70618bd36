//! `bind-test` and `wait` with the options of the server: its socket options, its device, its user, and all addresses at once.
//! A *situation* is the sockets that exist on the port before the server starts. In random situations, the result is compared with binds of
//! the test itself in copies of the situation.

use std::process::Command;

use serde_json::{Value, json};
use twtool::lab::Server;
use twtool::model::bind::ReuseOptions;

use crate::support::bind::OPTION_SETS;
use crate::support::commands;
use crate::support::netns::{has_user, on_thread_in_new_namespace};
use crate::support::opener::{self, Opened, Spec};
use crate::support::random::Random;
use crate::support::situations::{addr, bucket_of_server};
use crate::support::twtool::{Run, twtool};
use crate::support::{measured, not_checked, suite};

suite! {
    pure: [],
    netns: [
        in_random_situations_the_answer_equals_independent_binds,
        a_server_on_both_wildcards_collides_with_itself,
        the_other_value_of_an_option_is_named_if_it_changes_the_verdict,
        a_bind_as_another_user_has_the_uid_of_that_user,
        a_bind_as_another_user_has_no_capability,
        root_learns_that_a_plain_user_cannot_bind_a_privileged_port,
        printed_commands_keep_the_options,
        the_listener_of_bind_test_accepts_no_connection,
        wrong_options_are_refused,
    ],
}

/// The uid of a user that is not root.
const OTHER: u32 = 33;

/// The server that a test asks about.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
struct Asked {
    port: u16,
    addrs: Vec<&'static str>,
    v6only: Option<bool>,
    dev: Option<&'static str>,
    freebind: bool,
    transparent: bool,
    mptcp: bool,
    user: Option<u32>,
    together: bool,
    /// The index of the value of `--with` in [`WITH`].
    with: usize,
}

const WITH: [&str; 4] = ["none", "reuseaddr", "reuseport", "both"];

fn socket_text(at: &str, port: u16) -> String {
    if at.contains(':') { format!("[{at}]:{port}") } else { format!("{at}:{port}") }
}

/// A function that opens the sockets of the server in a situation.
type Opening<'a> = dyn Fn() -> Vec<Opened> + Sync + 'a;

impl Asked {
    fn arguments(&self) -> Vec<String> {
        let mut words = vec![self.port.to_string(), "--with".into(), WITH[self.with].into()];
        words.extend(self.addrs.iter().flat_map(|at| ["--addr".to_owned(), (*at).to_owned()]));
        words.extend(self.v6only.iter().flat_map(|on| ["--v6only", if *on { "yes" } else { "no" }]).map(str::to_owned));
        words.extend(self.dev.iter().flat_map(|dev| ["--dev", dev]).map(str::to_owned));
        words.extend(self.user.iter().flat_map(|uid| ["--user".to_owned(), uid.to_string()]));
        for (flag, set) in [
            ("--freebind", self.freebind),
            ("--transparent", self.transparent),
            ("--mptcp", self.mptcp),
            ("--together", self.together),
        ] {
            words.extend(set.then(|| flag.to_owned()));
        }
        words
    }

    fn spec(&self, at: &str, options: &[&str]) -> Spec {
        Spec {
            at: socket_text(at, self.port),
            reuseaddr: options.contains(&"SO_REUSEADDR"),
            reuseport: options.contains(&"SO_REUSEPORT"),
            v6only: self.v6only,
            dev: self.dev.map(str::to_owned),
            freebind: self.freebind,
            transparent: self.transparent,
            mptcp: self.mptcp,
            listen: self.together,
        }
    }

    /// The results of a server with these options, on each address. `in_a_copy` runs a function in a copy of the situation.
    fn open(&self, options: &[&str], in_a_copy: &dyn Fn(&Opening) -> Vec<Opened>) -> Vec<Opened> {
        let uid = self.user.unwrap_or(0);
        let specs: Vec<Spec> = self.addrs.iter().map(|at| self.spec(at, options)).collect();
        let alone = |spec: &Spec| opener::open(uid, std::slice::from_ref(spec)).0;
        if self.together {
            in_a_copy(&|| opener::open(uid, &specs).0)
        } else if options.contains(&"SO_REUSEPORT") {
            // A bind with SO_REUSEPORT can leave a note in the kernel (docs/commands/bind-test.md), which can change the result of
            // the next bind.
            specs.iter().flat_map(|spec| in_a_copy(&|| alone(spec))).collect()
        } else {
            in_a_copy(&|| specs.iter().flat_map(alone).collect())
        }
    }
}

/// A socket on the port before the server starts.
#[derive(Clone, Debug)]
enum Before {
    /// The uid of the user who opens the socket, and the socket.
    Open(u32, Spec),
    /// A TIME_WAIT bucket.
    Bucket(&'static str, ReuseOptions),
}

/// Makes the sockets in this order. A socket that cannot be made is left out, in the situation and in each copy of it.
fn make(before: &[Before], Asked { port, dev, .. }: &Asked) -> Vec<opener::OpenedSockets> {
    let has = |one: &Before| matches!(one, Before::Open(_, spec) if spec.dev.as_deref() == Some(SECOND));
    if *dev == Some(SECOND) || before.iter().any(has) {
        second_device();
    }
    let mut kept = vec![];
    for one in before {
        match one {
            Before::Open(uid, spec) => kept.push(opener::open(*uid, std::slice::from_ref(spec)).1),
            Before::Bucket(at, options) => {
                let at = socket_text(at, *port);
                if let Ok(server) = Server::listen(addr(&at), *options) {
                    bucket_of_server(&server, &at);
                }
            }
        }
    }
    // Clears a note of SO_REUSEPORT, if this bind works.
    let _ = opener::open(0, &[Spec { at: format!("127.0.0.77:{port}"), ..Spec::default() }]);
    kept
}

const SECOND: &str = "tw0";

/// Makes a second network device. Returns its name, or `None` if no device can be made.
fn second_device() -> Option<&'static str> {
    let made = Command::new("ip").args(["link", "add", SECOND, "type", "veth", "peer", "name", "tw1"]).output();
    made.is_ok_and(|output| output.status.success()).then_some(SECOND)
}

struct Choices {
    devices: Vec<Option<&'static str>>,
    users: Vec<u32>,
    mptcp: bool,
}

impl Choices {
    fn here() -> Self {
        let devices: Vec<_> = [None, Some("lo")].into_iter().chain(second_device().map(Some)).collect();
        if devices.len() < 3 {
            not_checked("binds on a second device: no pair of veth devices can be made");
        }
        let users = if has_user(OTHER) { vec![0, OTHER] } else { vec![0] };
        if users.len() < 2 {
            not_checked("binds as another user: this user namespace has one user only");
        }
        let spec = Spec { at: "127.0.0.1:0".into(), mptcp: true, ..Spec::default() };
        let mptcp = matches!(&opener::open(0, &[spec]).0[..], [Opened::Called(bind, _)] if bind == "ok");
        if !mptcp {
            not_checked("binds of MPTCP sockets: this kernel has none");
        }
        Self { devices, users, mptcp }
    }

    fn situation(&self, random: &mut Random) -> (Vec<Before>, Asked) {
        const ADDRS: [&str; 6] = ["0.0.0.0", "::", "127.0.0.1", "::1", "127.0.0.2", "::ffff:127.0.0.1"];
        let port = if random.once_in(6) { 80 } else { 8080 };
        let mut before = vec![];
        for _ in 0..random.below(4) {
            if random.once_in(4) {
                before.push(Before::Bucket(random.of::<&str>(&["127.0.0.1", "::1"]), *random.of(&ReuseOptions::ALL)));
                continue;
            }
            let options = *random.of(&ReuseOptions::ALL);
            let spec = Spec {
                at: socket_text(random.of::<&str>(&ADDRS[..5]), port),
                reuseaddr: options.reuseaddr,
                reuseport: options.reuseport,
                v6only: *random.of(&[None, Some(true), Some(false)]),
                dev: random.of(&self.devices).map(str::to_owned),
                listen: !random.once_in(3),
                mptcp: self.mptcp && random.once_in(8),
                ..Spec::default()
            };
            before.push(Before::Open(if port < 1024 { 0 } else { *random.of(&self.users) }, spec));
        }
        // Buckets come first, because a listener of the situation could accept the connection that becomes a bucket.
        before.sort_by_key(|one| matches!(one, Before::Open(..)));
        let mut addrs = vec![];
        for _ in 0..=random.below(3) {
            let at = *random.of(&ADDRS);
            if !addrs.contains(&at) {
                addrs.push(at);
            }
        }
        let (freebind, transparent) = (random.once_in(5), random.once_in(8));
        if random.once_in(4) {
            addrs.push("192.0.2.1");
        }
        let asked = Asked {
            port,
            addrs,
            v6only: *random.of(&[None, None, Some(true), Some(false)]),
            dev: *random.of(&self.devices),
            freebind,
            transparent,
            mptcp: self.mptcp && random.once_in(6),
            user: random.once_in(2).then(|| *random.of(&self.users)),
            together: random.once_in(3),
            with: usize::try_from(random.below(4)).expect("an index"),
        };
        (before, asked)
    }
}

/// The results of bind() and listen() for each attempt, in the order of twtool. The error is an option that the kernel refuses.
fn independent(before: &[Before], asked: &Asked) -> Result<Vec<(String, Option<String>)>, String> {
    let in_a_copy = |open: &Opening| {
        on_thread_in_new_namespace(|| {
            let _kept = make(before, asked);
            open()
        })
    };
    let sets = OPTION_SETS.map(|options| asked.open(options, &in_a_copy));
    let mut attempts = vec![];
    for at in 0..asked.addrs.len() {
        for set in &sets {
            match &set[at] {
                Opened::Called(bind, listen) => attempts.push((bind.clone(), listen.clone())),
                Opened::Refused(option) => return Err(option.clone()),
            }
        }
    }
    Ok(attempts)
}

/// The verdict for a server with the options `with`, by the rules of docs/commands/bind-test.md.
fn verdict(attempts: &[(String, Option<String>)], with: usize) -> &'static str {
    let outcome = |(bind, listen): &(String, Option<String>)| match (bind.as_str(), listen.as_deref()) {
        ("ok", None | Some("ok")) => "ok".to_owned(),
        ("ok", Some(errno)) | (errno, _) => errno.to_owned(),
    };
    let of_address =
        |sets: &[(String, Option<String>)]| match (outcome(&sets[0]).as_str(), outcome(&sets[with]).as_str()) {
            ("ok", _) => 0,
            ("EADDRINUSE", "ok") => 1,
            ("EADDRINUSE", _) => 2,
            _ => 3,
        };
    let worst = attempts.chunks(OPTION_SETS.len()).map(of_address).max().unwrap_or(0);
    ["free", "reusable", "blocked", "denied"][worst]
}

/// The number of random situations; `TWTOOL_SITUATIONS` sets another number.
const SITUATIONS: u64 = 40;

fn in_random_situations_the_answer_equals_independent_binds() {
    let count = std::env::var("TWTOOL_SITUATIONS").map_or(SITUATIONS, |count| count.parse().expect("a number"));
    let (seed, choices) = (Random::seed(), Choices::here());
    let (mut verdicts, mut refused, mut notes) = ([0; 4], 0, 0);
    for number in 0..count {
        let mut random = Random::new(seed.wrapping_mul(1_000_003).wrapping_add(number));
        let (before, asked) = choices.situation(&mut random);
        let what = format!("TWTOOL_SEED={seed}, situation {number}: {asked:?} beside {before:?}");
        let expected = independent(&before, &asked);
        let (run, wait) = on_thread_in_new_namespace(|| {
            let _kept = make(&before, &asked);
            let words = asked.arguments();
            let run = twtool(["bind-test".into(), "--json".into()].into_iter().chain(words.clone()));
            (run, twtool(["wait".into(), "--timeout".into(), "0".into(), "--json".into()].into_iter().chain(words)))
        });
        let expected = match expected {
            Ok(expected) => expected,
            Err(option) => {
                refused += 1;
                assert!(run.code == Some(2) && run.stderr.contains(&option), "{option} is refused; {what}{run}");
                assert_eq!(wait.code, Some(2), "{what}{wait}");
                continue;
            }
        };
        let document = run.json();
        let note_lost = document["note_lost"] == true;
        notes += usize::from(note_lost);
        let records = document["attempts"].as_array().expect("attempts");
        assert_eq!(records.len(), expected.len(), "{what}{run}");
        for (record, (bind, listen)) in records.iter().zip(&expected) {
            // The results of these attempts depend on a note that a socket of the situation left.
            if note_lost && record["options"].to_string().contains("SO_REUSEPORT") {
                continue;
            }
            assert_eq!((&record["bind"], &record["listen"]), (&json!(bind), &json!(listen)), "{record}; {what}{run}");
        }
        // If the server sets SO_REUSEPORT, the verdict depends on that note, too.
        if note_lost && asked.with > 1 {
            continue;
        }
        let verdict = verdict(&expected, asked.with);
        assert_eq!(document["verdict"], verdict, "{what}{run}");
        verdicts[["free", "reusable", "blocked", "denied"].iter().position(|one| *one == verdict).expect("one")] += 1;
        let works = expected
            .chunks(4)
            .all(|sets| sets[asked.with].0 == "ok" && matches!(sets[asked.with].1.as_deref(), None | Some("ok")));
        if wait.json()["note_lost"] == false {
            assert_eq!(wait.json()["bindable"], works, "{what}{wait}");
        }
        other_verdict(&before, &asked, verdict, &document, &what);
    }
    measured(format!(
        "bind-test with options of servers: {count} situations; free, reusable, blocked, denied: {verdicts:?}; an option refused: \
         {refused}; a note lost: {notes}"
    ));
    assert!(count < 40 || verdicts.iter().all(|count| *count > 0), "{verdicts:?}");
}

/// If the answer has a verdict for the other value of IPV6_V6ONLY, compares this verdict with an independent bind.
fn other_verdict(before: &[Before], asked: &Asked, verdict_here: &str, document: &Value, what: &str) {
    let others = document["other_verdicts"].as_array().expect("a list");
    let other = others.iter().find(|other| other["option"].as_str().is_some_and(|option| option.contains("v6only")));
    let Some(other) = other else { return };
    let v6only = Some(other["option"] == "--v6only yes");
    let asked = Asked { v6only, ..asked.clone() };
    let expected = independent(before, &asked).expect("every option was accepted before");
    if document["note_lost"] == false {
        assert_eq!(other["verdict"], verdict(&expected, asked.with), "{other}; {what}");
    }
    assert_ne!(other["verdict"], verdict_here, "{what}");
}

fn answer(words: &str) -> Run {
    twtool(["bind-test", "--json"].into_iter().chain(words.split(' ')))
}

fn hold(at: &str) -> opener::OpenedSockets {
    let (opened, kept) = opener::open(0, &[Spec { at: at.into(), listen: true, ..Spec::default() }]);
    assert_eq!(opened, [Opened::Called("ok".into(), Some("ok".into()))]);
    kept
}

fn a_server_on_both_wildcards_collides_with_itself() {
    let run = answer("8080 --together").code(1);
    let document = run.json();
    assert_eq!((&document["verdict"], &document["cause"]), (&json!("blocked"), &json!("own-socket")), "{run}");
    assert_eq!(document["holders"], json!([]), "{run}");
    assert_eq!(document["as"]["together"], true, "{run}");
    let other = json!([{ "option": "--v6only yes", "verdict": "free", "cause": "none" }]);
    assert_eq!(document["other_verdicts"], other, "{run}");
    answer("8080").code(0);
    answer("8080 --together --v6only yes").code(0);
    answer("8080 --together --addr 127.0.0.1 --addr ::1").code(0);
    // Sockets of one server share the port with SO_REUSEPORT.
    let shared = answer("8080 --together --with reuseport").code(0).json();
    assert_eq!(shared["verdict"], "reusable");
    let page = twtool(["bind-test", "8080", "--together"]).code(1);
    page.prints("port 8080 (http-alt): blocked by the server's own socket on 0.0.0.0\n")
        .prints("with --v6only yes (nginx sets it for [::]:80), the verdict would be free\n");
    // Waiting does not help.
    let wait = twtool(["wait", "8080", "--together", "--json", "--timeout", "1h"]).code(1);
    assert_eq!((&wait.json()["cause"], &wait.json()["bindable"]), (&json!("own-socket"), &json!(false)), "{wait}");
    twtool(["wait", "8080", "--together", "--v6only", "yes", "--timeout", "0"]).code(0);
}

fn the_other_value_of_an_option_is_named_if_it_changes_the_verdict() {
    const LINE: &str = "with --v6only yes (nginx sets it for [::]:80), the verdict would be free\n";
    let held = hold("0.0.0.0:8080");
    twtool(["bind-test", "8080", "--addr", "::"]).code(1).prints(LINE);
    answer("8080 --addr :: --v6only yes").code(0);
    // 0.0.0.0 stays blocked with both values of IPV6_V6ONLY. For an option that the command line sets, there is no other verdict.
    for words in ["8080", "8080 --addr 0.0.0.0", "8080 --addr :: --v6only no"] {
        assert_eq!(answer(words).code(1).json()["other_verdicts"], json!([]), "{words}");
    }
    drop(held);
    assert_eq!(
        answer("8080 --addr ::").code(0).json()["other_verdicts"],
        json!([]),
        "an unused port is free with both values"
    );
    twtool(["bind-test", "8080", "--addr", "192.0.2.1"]).code(1).prints("with --freebind, the verdict would be free\n");
    answer("8080 --addr 192.0.2.1 --freebind").code(0);
    if twtool::sys::sysctl::write("ipv6.bindv6only", "1").is_err() {
        return not_checked("the other value if the system sets IPV6_V6ONLY: the setting cannot be written");
    }
    let _held = hold("0.0.0.0:8080");
    let page = twtool(["bind-test", "8080", "--addr", "::"]).code(0);
    page.prints("with --v6only no (some servers clear IPV6_V6ONLY), the verdict would be blocked\n");
}

fn a_bind_as_another_user_has_the_uid_of_that_user() {
    if !has_user(OTHER) {
        return not_checked("a bind as another user: this user namespace has one user only");
    }
    let user = OTHER.to_string();
    let run = answer(&format!("80 --user {user}")).code(1);
    let document = run.json();
    assert_eq!((&document["verdict"], &document["cause"]), (&json!("denied"), &json!("privileged-port")), "{run}");
    assert_eq!(document["as"]["uid"], OTHER, "{run}");
    assert!(
        !document["next"].to_string().contains("bind-test"),
        "no printed bind-test can give that user the privilege{run}"
    );
    answer(&format!("8080 --user {user}")).code(0);
    // Two sockets share a port with SO_REUSEPORT only if they have the same user.
    let share = Spec { at: "127.0.0.1:8080".into(), reuseport: true, listen: true, ..Spec::default() };
    let (_, _kept) = opener::open(OTHER, &[share]);
    let shares = |user: &str| answer(&format!("8080 --addr 127.0.0.1 --with reuseport{user}")).code;
    assert_eq!((shares(&format!(" --user {user}")), shares("")), (Some(0), Some(1)));
    let by_name = nix::unistd::User::from_uid(OTHER.into()).ok().flatten().map(|user| user.name);
    if let Some(name) = by_name {
        assert_eq!(shares(&format!(" --user {name}")), Some(0), "{name}");
    }
    // An unprivileged user cannot become another one.
    let mut command = Command::new("setpriv");
    command.args([
        &format!("--reuid={user}"),
        "--clear-groups",
        crate::support::twtool::PATH,
        "bind-test",
        "8080",
        "--user",
        "0",
    ]);
    match command.output() {
        Ok(output) if String::from_utf8_lossy(&output.stderr).contains("needs CAP_SETUID") => {
            assert_eq!(output.status.code(), Some(2));
        }
        other => not_checked(format!("--user without the privilege: {other:?}")),
    }
}

/// twtool can have the capabilities to bind port 80 and to become another user even if it does not run as root. The bind as another user
/// must not use them.
fn a_bind_as_another_user_has_no_capability() {
    if !has_user(OTHER) {
        return not_checked("a bind as another user: this user namespace has one user only");
    }
    commands::needs_program("setpriv");
    let bind_test = |reuid: u32, user: Option<u32>| {
        let sets = "+net_bind_service,+setuid,+setgid";
        let mut command = Command::new("setpriv");
        command.args([
            &format!("--reuid={reuid}"),
            "--clear-groups",
            &format!("--inh-caps={sets}"),
            &format!("--ambient-caps={sets}"),
        ]);
        command.args([crate::support::twtool::PATH, "bind-test", "80", "--addr", "127.0.0.1"]);
        command.args(user.into_iter().flat_map(|user| ["--user".into(), user.to_string()]));
        Run::of(&mut command)
    };
    bind_test(OTHER, None).code(0);
    for user in [OTHER, OTHER + 1] {
        bind_test(OTHER, Some(user)).code(1).prints("CAP_NET_BIND_SERVICE");
    }
    bind_test(OTHER, Some(0)).code(2).says("`--user root` needs root");
}

fn root_learns_that_a_plain_user_cannot_bind_a_privileged_port() {
    let advice = |words: &str| answer(words).json()["advice"].to_string();
    assert!(advice("80").contains("A plain user cannot bind port 80"), "{}", advice("80"));
    let _held = hold("0.0.0.0:443");
    assert!(advice("443").contains("A plain user cannot bind port 443"), "{}", advice("443"));
    assert!(!advice("8080").contains("plain user"));
    if has_user(OTHER) {
        assert!(!advice(&format!("80 --user {OTHER}")).contains("plain user"));
    }
}

fn printed_commands_keep_the_options() {
    let mut words = "8080 --addr 127.0.0.1 --with both --v6only yes --dev lo --freebind --together".to_owned();
    if has_user(OTHER) {
        words = format!("{words} --user {OTHER}");
    }
    let held = hold("127.0.0.1:8080");
    let run = answer(&words).code(1);
    let steps = run.json()["next"].clone();
    let commands = steps.as_array().expect("a list").iter().filter_map(|step| step["command"].as_str());
    let wait = commands.clone().find(|command| command.contains(" wait ")).expect("a wait").to_owned();
    for (flag, value) in
        [("--v6only", "yes"), ("--dev", "lo"), ("--freebind", ""), ("--together", ""), ("--with", "both")]
    {
        assert!(wait.contains(format!(" {flag} {value}").trim_end()), "{flag} {value} in {wait}");
    }
    assert!(!has_user(OTHER) || wait.contains(&format!("--user {OTHER}")), "{wait}");
    drop(held);
    // stderr may contain text: on a busy machine the first bind takes so long that wait prints its result.
    commands::run(&wait.replace("./server", "true")).code(0);

    // The printed kill selects only buckets that can block a bind on lo: buckets that are bound to lo or to no device (`dev = 0`).
    let server = Server::listen(addr("127.0.0.1:8080"), ReuseOptions::NONE).expect("a server");
    bucket_of_server(&server, "127.0.0.1:8080");
    drop(server);
    let run = answer("8080 --addr 127.0.0.1 --dev lo").code(1);
    let steps = run.json()["next"].clone();
    let kill = steps.as_array().expect("a list").iter().filter_map(|step| step["command"].as_str());
    let Some(kill) = kill.clone().find(|command| command.contains(" kill ")) else {
        return not_checked("the printed kill of a device: this kernel cannot remove buckets");
    };
    assert!(kill.contains("'dev = lo or dev = 0'"), "{kill}");
    commands::succeeds(&format!("{kill} --yes"));
    answer("8080 --addr 127.0.0.1 --dev lo").code(0);
}

fn the_listener_of_bind_test_accepts_no_connection() {
    // bind-test attaches a filter to each listener that it makes. The filter drops the SYN of a client.
    let Some(strace) = crate::support::twtool::program("strace") else {
        return not_checked("the filter of a test socket: strace is not installed");
    };
    let mut command = Command::new(strace);
    command.args([
        "-f",
        "-e",
        "trace=setsockopt,listen",
        crate::support::twtool::PATH,
        "bind-test",
        "8080",
        "--listen",
    ]);
    let run = Run::of(&mut command);
    if !run.stderr.contains("listen(") {
        return not_checked("the filter of a test socket: strace cannot trace here");
    }
    let calls: Vec<&str> =
        run.stderr.lines().filter(|line| line.contains("SO_ATTACH_FILTER") || line.contains("listen(")).collect();
    // Two addresses with four sets of options are eight listeners, each with a filter.
    assert!(calls.len() >= 16 && calls.chunks(2).all(|pair| pair[0].contains("ATTACH_FILTER")), "{run}");
}

fn wrong_options_are_refused() {
    for (words, named) in [
        ("8080 --dev nosuch", "nosuch"),
        ("8080 --v6only maybe", "maybe"),
        ("8080 --user nosuchuser", "nosuchuser"),
        ("8080 --user 4294967295", "4294967295"),
        ("8080 --demo --together", "--together"),
    ] {
        twtool(["bind-test"].into_iter().chain(words.split(' '))).refused(named);
        if !words.contains("--demo") {
            twtool(["wait", "--timeout", "0"].into_iter().chain(words.split(' '))).refused(named);
        }
    }
}
