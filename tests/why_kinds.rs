//! `twtool why` on special programs: a program with io_uring, one in another network namespace, one with file capabilities, one for
//! another architecture, and a systemd service.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use rustix::fs::XattrFlags;
use serde_json::Value;

use crate::support::commands::{has, needs_program};
use crate::support::netns::has_user;
use crate::support::situations::listen;
use crate::support::twtool::{PATH, Run, command, program};
use crate::support::{not_checked, suite};
use crate::why::{of_type, records, why};

suite! {
    pure: [
        the_drop_in_of_the_documents_is_valid,
    ],
    netns: [
        a_program_that_uses_io_uring_gets_a_note,
        a_program_in_another_network_namespace_is_explained_there,
        file_capabilities_are_lost_without_root_and_kept_with_it,
        a_32_bit_program_is_watched,
    ],
}

fn a_program_that_uses_io_uring_gets_a_note() {
    needs_program("python3");
    // 425 is io_uring_setup on x86-64, arm64 and most other architectures.
    let script = "import ctypes; print(ctypes.CDLL(None, use_errno=True).syscall(425, 1, ctypes.create_string_buffer(120)), ctypes.get_errno())";
    let (run, notes) = why(&["python3", "-c", script]);
    let run = run.code(0);
    let notes = of_type(&notes, "note");
    if notes.is_empty() && run.stdout.starts_with("-1 ") {
        return not_checked(format!("why on a program with io_uring: a sandbox refuses it: {}", run.stdout.trim()));
    }
    assert_eq!((notes.len(), &notes[0]["note"]), (1, &"io-uring".into()), "{run}");
    assert_eq!(notes[0]["process"]["comm"], "python3", "{run}");
    let quiet = Run::of(&mut command(["why", "-q", "python3", "-c", script])).code(0);
    assert!(quiet.stderr.contains("uses io_uring"), "{quiet}");
}

fn a_program_in_another_network_namespace_is_explained_there() {
    needs_program("python3");
    let Some(unshare) = program("unshare") else { return not_checked("why across namespaces: there is no unshare(1)") };
    let _here = listen("0.0.0.0:8080");
    let script = "from socket import *\nimport os\na = create_server(('0.0.0.0', 8080))\nprint(os.stat('/proc/self/ns/net').st_ino, flush=True)\ntry: socket().bind(('0.0.0.0', 8080))\nexcept OSError: pass\ntry: socket().connect(('192.0.2.7', 80))\nexcept OSError: pass";
    let unshare = unshare.display().to_string();
    let (run, all) = why(&[&unshare, "--net", "python3", "-c", script]);
    let run = run.code(0);
    let netns: Value = run.stdout.trim().parse::<u64>().expect("an inode").into();
    let calls = of_type(&all, "call");
    let failed: Vec<&&Value> = calls.iter().filter(|call| !call["errno"].is_null()).collect();
    assert_eq!(failed.len(), 2, "{run}");
    for call in &failed {
        assert_eq!(call["process"]["netns"], netns, "{run}");
    }
    let [in_use, unreachable] = [failed[0], failed[1]];
    // The server in twtool's own namespace does not block the port.
    assert_eq!((&in_use["cause"], &in_use["held_by_itself"]), (&"listener".into(), &true.into()), "{run}");
    let holders = in_use["holders"].as_array().expect("a list");
    assert!(holders.len() == 1 && holders[0]["netns"] == netns, "{run}");
    assert_eq!(unreachable["cause"], "no-route", "{run}");
    let step = unreachable["next"][0]["command"].as_str().expect("a command");
    let pid = unreachable["process"]["pid"].to_string();
    assert!(step.contains("nsenter") && step.contains(&pid), "the command enters the namespace: {step}");
}

/// The ID of a user other than root.
const OTHER: u32 = 33;

fn file_capabilities_are_lost_without_root_and_kept_with_it() {
    if !has_user(OTHER) {
        return not_checked("why on file capabilities: this user namespace has one user only");
    }
    let folder = tempfile::tempdir().expect("a folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("our own folder");
    let server = folder.path().join("server");
    fs::copy(PATH, &server).expect("a copy");
    // `struct vfs_cap_data` of linux/capability.h: revision 2 with the effective flag, and CAP_NET_BIND_SERVICE.
    let capabilities = [0x0200_0001_u32, 1 << 10, 0, 0, 0].map(u32::to_le_bytes).concat();
    let written = rustix::fs::setxattr(&server, "security.capability", &capabilities, XattrFlags::empty());
    let words = [server.to_str().expect("a name"), "bind-test", "80", "--addr", "127.0.0.1", "--json"];
    let as_other = |words: &[&str]| Command::new(words[0]).args(&words[1..]).uid(OTHER).gid(OTHER).output();
    let plain = as_other(&words);
    let has_effect = plain.as_ref().is_ok_and(|plain| plain.status.success());
    if written.is_err() || !has_effect {
        return not_checked(format!("why on file capabilities: they have no effect here: {written:?}, {plain:?}"));
    }
    let mut why = Command::new(PATH);
    why.args(["why", "-o", "ndjson"]).args(words).uid(OTHER).gid(OTHER);
    let lost = Run::of(&mut why);
    let all = records(&lost);
    let notes = of_type(&all, "note");
    assert_eq!((notes.len(), &notes[0]["note"]), (1, &"privilege-lost".into()), "{lost}");
    assert!(notes[0]["text"].to_string().contains("has file capabilities, and does not get them"), "{lost}");
    let calls = of_type(&all, "call");
    assert!(!calls.is_empty(), "{lost}");
    for call in calls {
        assert_eq!((&call["errno"], &call["cause"]), (&"EACCES".into(), &"privileged-port".into()), "{lost}");
        assert!(call["advice"].to_string().contains("twtool causes this failure"), "{lost}");
    }
    if !has("setpriv") {
        return not_checked("why on file capabilities under root: there is no setpriv(1)");
    }
    let mut why = Command::new(PATH);
    let user = [format!("--reuid={OTHER}"), format!("--regid={OTHER}"), "--clear-groups".into()];
    why.args(["why", "-o", "ndjson", "setpriv"]).args(user).args(words);
    let kept = Run::of(&mut why).code(0);
    assert!(of_type(&records(&kept), "note").is_empty() && of_type(&records(&kept), "call").is_empty(), "{kept}");
}

/// Returns an ELF program for i386. It binds 192.0.2.7:8080 twice: first through socketcall(2), then through bind(2) directly.
/// It exits with the errno of the second bind.
fn program_of_i386() -> Vec<u8> {
    const CODE: [&[u8]; 6] = [
        // socketcall(SYS_SOCKET, {AF_INET, SOCK_STREAM, 0}); esi keeps the descriptor.
        b"\x6a\x00\x6a\x01\x6a\x02\x89\xe1\xbb\x01\0\0\0\xb8\x66\0\0\0\xcd\x80\x89\xc6",
        // The struct sockaddr_in on the stack, to which edi points.
        b"\x6a\x00\x6a\x00\x68\xc0\x00\x02\x07\x68\x02\x00\x1f\x90\x89\xe7",
        // socketcall(SYS_BIND, {esi, edi, 16})
        b"\x6a\x10\x57\x56\x89\xe1\xbb\x02\0\0\0\xb8\x66\0\0\0\xcd\x80",
        // bind(esi, edi, 16), which is system call 361.
        b"\x89\xf3\x89\xf9\xba\x10\0\0\0\xb8\x69\x01\0\0\xcd\x80",
        // exit(-eax)
        b"\x89\xc3\xf7\xdb\xb8\x01\0\0\0\xcd\x80",
        b"",
    ];
    const BASE: u32 = 0x0804_8000;
    let code = CODE.concat();
    let size = 84 + u32::try_from(code.len()).expect("short");
    let mut elf = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x03\0\x01\0\0\0".to_vec();
    for word in [BASE + 84, 52, 0, 0] {
        elf.extend(word.to_le_bytes());
    }
    for half in [52_u16, 32, 1, 0, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    // One segment, which can be read and executed.
    for word in [1, 0, BASE, BASE, size, size, 5, 0x1000] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(code);
    elf
}

fn a_32_bit_program_is_watched() {
    if !cfg!(target_arch = "x86_64") {
        return not_checked("why on a 32-bit program: the test has one for x86 only");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("i386");
    fs::write(&file, program_of_i386()).expect("written");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("our own file");
    match Command::new(&file).status() {
        Ok(status) if status.code() == Some(libc::EADDRNOTAVAIL) => {}
        other => return not_checked(format!("why on an i386 program: this kernel does not run it: {other:?}")),
    }
    let (run, all) = why(&[file.to_str().expect("a name")]);
    let run = run.code(libc::EADDRNOTAVAIL);
    let call = of_type(&all, "call")[0];
    let seen = ["call", "errno", "addr"].map(|key| call[key].as_str().unwrap_or_default());
    assert_eq!((seen, &call["port"]), (["bind", "EADDRNOTAVAIL", "192.0.2.7"], &8080.into()), "{run}");
    let end = of_type(&all, "end")[0];
    assert_eq!(
        (&end["calls"], &end["failed"][0]["count"]),
        (&2.into(), &2.into()),
        "through socketcall and directly{run}"
    );
}

/// Checks the drop-in file that docs/commands/why.md shows for a systemd service.
fn the_drop_in_of_the_documents_is_valid() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/commands/why.md");
    let page = fs::read_to_string(page).expect("the page");
    let (_, text) = page.split_once("```ini\n").expect("a drop-in file");
    let (text, _) = text.split_once("```").expect("its end");
    let Some(analyze) = program("systemd-analyze") else {
        return not_checked("the drop-in file for a service: systemd-analyze is not installed");
    };
    let folder = tempfile::tempdir().expect("a folder");
    let unit = folder.path().join("web.service");
    let server = program("true").expect("true");
    let original = format!("[Service]\nType=forking\nPIDFile=/run/web.pid\nExecStart={}\n", server.display());
    fs::write(&unit, original).expect("written");
    let verify = || Run::of(Command::new(&analyze).args(["verify", "--man=no", "--recursive-errors=no"]).arg(&unit));
    let before = verify();
    if before.code != Some(0) {
        return not_checked(format!("the drop-in file for a service: systemd-analyze does not work here{before}"));
    }
    let drop_in = folder.path().join("web.service.d");
    fs::create_dir(&drop_in).expect("a folder");
    let write = |text: &str| fs::write(drop_in.join("why.conf"), text).expect("written");
    write(&text.replace("/usr/bin/twtool", PATH));
    let run = verify().code(0);
    assert!(!run.stderr.contains("why.conf"), "{run}");
    // A wrong path in the drop-in must give an error. This proves that systemd-analyze reads the drop-in.
    write(&text.replace("/usr/bin/twtool", "/no/such/twtool"));
    let wrong = verify();
    assert!(wrong.stderr.contains("/no/such/twtool"), "{wrong}");
}
