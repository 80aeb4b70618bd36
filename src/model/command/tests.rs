//! Tests of the commands that twtool prints.

use super::*;
use crate::model::health::Capability::{Kill, NetAdmin, SysAdmin};

fn shell(netns: Option<&str>, root: bool) -> Shell {
    let netns = netns.map(|text| text.parse().expect("a namespace"));
    Shell { netns, caller: Caller { root, twtool_for_root: "/opt/twtool".into(), ..Caller::default() } }
}

#[test]
fn a_command_enters_the_namespace_by_the_name_pid_or_path_that_the_user_gave() {
    for (netns, expected) in [
        (None, "ss -tan"),
        (Some("web"), "ip netns exec web ss -tan"),
        (Some("4711"), "nsenter --net=/proc/4711/ns/net ss -tan"),
        (Some("/run/my nets/a"), "nsenter '--net=/run/my nets/a' ss -tan"),
    ] {
        assert_eq!(shell(netns, true).run(Privilege::None, &["ss", "-tan"]).text, expected);
    }
}

#[test]
fn a_container_is_entered_through_a_process_and_named_by_its_id() {
    let container = NetnsArg::Container("4f5a".parse().expect("an id"), 4711);
    let shell = Shell { netns: Some(container), ..shell(None, true) };
    assert_eq!(shell.run(Privilege::None, &["ss"]).text, "nsenter --net=/proc/4711/ns/net ss");
    assert_eq!(shell.twtool(Privilege::None, &["list"]).text, "twtool list --container 4f5a");
}

#[test]
fn a_command_that_needs_root_begins_with_sudo_unless_the_caller_is_root() {
    let (here, web) = (shell(None, false), shell(Some("web"), false));
    assert_eq!(here.run(Privilege::None, &["ss"]).text, "ss");
    assert_eq!(here.run(Privilege::Root, &["ss"]).text, "sudo ss");
    assert_eq!(web.run(Privilege::None, &["ss"]).text, "sudo ip netns exec web ss");
    assert_eq!(web.twtool(Privilege::None, &["list"]).text, "twtool list --netns web");
    assert_eq!(shell(None, true).twtool(Privilege::Root, &["kill", "--all"]).text, "twtool kill --all");
    assert_eq!(here.twtool(Privilege::Root, &["kill", "--all"]).text, "sudo /opt/twtool kill --all");
}

#[test]
fn a_command_that_would_fail_here_has_the_reason() {
    use Privilege::{Capability, None as Nothing, Root, Settings};
    const LOCKS: [SettingsLock; 2] = [SettingsLock::ReadOnly, SettingsLock::Refused];
    let set = |held: &[super::Capability]| Some(Capabilities(held.iter().map(|&one| 1 << one as u32).sum()));
    let obstacle = |netns, root, power: RootPower, privilege| {
        let mut shell = shell(netns, root);
        shell.caller.power = power;
        shell.run(privilege, &["x"]).obstacle
    };
    let power = RootPower { capabilities: set(&[NetAdmin]), ..RootPower::default() };
    let lacks = |who| move |name: &str| Some(format!("needs {name}, which {who} here"));
    for (root, lacks) in [(true, lacks("root lacks")), (false, lacks("sudo cannot give"))] {
        assert_eq!(obstacle(None, root, power, Capability(Kill)), lacks("CAP_KILL"));
        assert_eq!(obstacle(Some("web"), root, power, Nothing), lacks("CAP_SYS_ADMIN"));
        for free in [Nothing, Root, Settings, Capability(NetAdmin)] {
            assert_eq!(obstacle(None, root, power, free), None);
        }
        let entering = RootPower { capabilities: set(&[SysAdmin]), ..power };
        assert_eq!(obstacle(Some("web"), root, entering, Nothing), None);
        assert_eq!(obstacle(Some("web"), root, entering, Capability(NetAdmin)), lacks("CAP_NET_ADMIN"));
    }
    let [read_only, refused] = LOCKS.map(|lock| RootPower { settings: Some(lock), ..RootPower::default() });
    for (netns, root) in [(None, true), (None, false), (Some("web"), true)] {
        let why = obstacle(netns, root, read_only, Settings).expect("nobody can write there");
        assert_eq!(why, "cannot work here: /proc/sys/net is mounted read-only");
    }
    assert_eq!(obstacle(None, true, refused, Settings), lacks("root lacks")("CAP_NET_ADMIN"));
    // A refusal by access(2) does not apply to a command that sudo starts, or to another namespace.
    assert_eq!(obstacle(None, false, refused, Settings), None);
    assert_eq!(obstacle(Some("web"), true, refused, Settings), None);
    let no_sudo = RootPower { no_new_privs: true, ..RootPower::default() };
    assert_eq!((obstacle(None, true, no_sudo, Root), obstacle(None, false, no_sudo, Nothing)), (None, None));
    assert!(obstacle(None, false, no_sudo, Root).is_some_and(|why| why.contains("no_new_privs")));
}

#[test]
fn the_command_line_of_the_user_gets_one_more_flag() {
    let mut shell = shell(Some("web"), false);
    shell.caller.arguments = ["-4", "kill", "--netns", "web", "sport = :80"].map(OsString::from).to_vec();
    let line = "sudo /opt/twtool -4 kill --orphans --netns web 'sport = :80'";
    assert_eq!(shell.again_with(Privilege::Root, "kill", "--orphans").text, line);
}

#[test]
fn the_option_netns_stands_before_the_command_that_twtool_starts() {
    let line = shell(Some("web"), false).twtool(Privilege::None, &["wait", "80", "--", "./server", "--x"]);
    assert_eq!(line.text, "twtool wait 80 --netns web -- ./server --x");
}

#[test]
fn the_command_that_reserves_ports_is_short_however_long_the_list_is() {
    let list = |count: u16| {
        let ports = (0..count).map(|i| Port(10_001 + 2 * i));
        LocalReservedPorts::default().with(ports)
    };
    let reserve = |reserved: &LocalReservedPorts| shell(None, true).reserve([Port(8080)], Some(reserved));
    // If the list is too long to copy, a second command writes it to a file. For a list of more than 4 KB, a sentence advises
    // against sysctl -p.
    for (count, commands, sentences) in [(0, 1, 0), (100, 1, 0), (300, 2, 0), (23_000, 2, 1)] {
        let help = reserve(&list(count));
        assert_eq!((help.commands.len(), help.advice.len()), (commands, sentences), "{count}");
        assert!(help.commands.iter().all(|step| step.command.len() < 200));
        assert_eq!(
            help.sysctl_lines[0].line,
            format!("net.ipv4.ip_local_reserved_ports = {}", list(count).with([Port(8080)]))
        );
    }
    let others = |reserved: &LocalReservedPorts| reserve(reserved).commands[0].purpose.contains("others");
    assert_eq!((others(&list(0)), others(&list(1))), (false, true));
    let elsewhere = shell(Some("web"), true).reserve([Port(8080), Port(9000)], Some(&list(3)));
    assert_eq!(elsewhere.sysctl_lines, []);
    assert_eq!(
        elsewhere.commands[0].command,
        "ip netns exec web sh -c '{ read x; for p in 8080 9000; do echo $p >&0; done; } <>/proc/sys/net/ipv4/ip_local_reserved_ports'"
    );
    // 101 ranges are more than `MAX_RANGES`.
    let many = shell(None, true).reserve(list(101).0.iter().map(|range| range.first()), None);
    assert_eq!((many.commands.len(), many.advice.len()), (0, 1));
}

#[test]
fn a_setting_of_another_namespace_has_no_line_in_a_file() {
    let line = shell(None, true).sysctl_line("net.ipv4.tcp_timestamps", "1").expect("the caller's own namespace");
    assert_eq!(
        (line.file.as_str(), line.line.as_str()),
        ("/etc/sysctl.d/99-twtool-tcp_timestamps.conf", "net.ipv4.tcp_timestamps = 1")
    );
    assert_eq!(shell(Some("web"), true).sysctl_line("net.ipv4.tcp_timestamps", "1"), None);
    let mut entered = shell(None, true);
    entered.caller.in_initial_netns = false;
    assert_eq!(entered.sysctl_line("net.ipv4.tcp_timestamps", "1"), None, "in an entered namespace");
    let help = entered.reserve([Port(8080)], Some(&LocalReservedPorts::default()));
    assert_eq!((help.commands.len(), help.sysctl_lines), (1, vec![]));
}

#[test]
fn words_are_quoted_for_a_shell() {
    for (word, expected) in [
        ("a-b_c=1,2", "a-b_c=1,2"),
        ("", "''"),
        ("it's", r"'it'\''s'"),
        ("[::1]", "'[::1]'"),
        ("$(id)", "'$(id)'"),
        ("a\x1b'\\", r"$'a\x1b\'\\'"),
        ("a\u{202e}b", r"$'a\xe2\x80\xaeb'"),
        ("a\u{200b}b", r"$'a\xe2\x80\x8bb'"),
        ("a\u{9b}b", r"$'a\xc2\x9bb'"),
    ] {
        assert_eq!(quoted(word), expected);
    }
    assert_eq!(quoted(OsStr::from_bytes(b"a\xff")), r"$'a\xff'");
}
