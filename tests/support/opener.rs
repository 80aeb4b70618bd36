//! Opens sockets as a server does, either in this process, or as another user in a child process. This code is independent of
//! twtool.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, Command, Stdio};

use nix::errno::Errno;
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};

/// The environment variable with the instructions for a child.
pub(crate) const INSTRUCTIONS: &str = "TWTOOL_TEST_OPENS";

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "each is a socket option")]
pub(crate) struct Spec {
    /// The address and port.
    pub(crate) at: String,
    pub(crate) reuseaddr: bool,
    pub(crate) reuseport: bool,
    /// The value of `IPV6_V6ONLY`. `None`: the socket keeps the default.
    pub(crate) v6only: Option<bool>,
    /// `SO_BINDTODEVICE`.
    pub(crate) dev: Option<String>,
    pub(crate) freebind: bool,
    pub(crate) transparent: bool,
    pub(crate) mptcp: bool,
    pub(crate) listen: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Opened {
    /// The results of bind(), and of listen() if it was called: `ok`, or the name of the errno.
    Called(String, Option<String>),
    /// The call or option before bind() that failed, as a part of its name (`FREEBIND`).
    Refused(String),
}

fn name(result: io::Result<()>) -> String {
    match result {
        Ok(()) => "ok".to_owned(),
        Err(error) => format!("{:?}", Errno::from_raw(error.raw_os_error().expect("an errno"))),
    }
}

impl Spec {
    fn socket(&self) -> Result<Socket, String> {
        let at: SocketAddr = self.at.parse().expect("an address");
        let protocol = self.mptcp.then_some(Protocol::MPTCP);
        let step = |what: &str, result: io::Result<()>| result.map_err(|_| what.to_owned());
        let socket = Socket::new(Domain::for_address(at), Type::STREAM, protocol).map_err(|_| "socket".to_owned())?;
        step("SO_REUSEADDR", socket.set_reuse_address(self.reuseaddr))?;
        step("SO_REUSEPORT", socket.set_reuse_port(self.reuseport))?;
        let v6 = at.is_ipv6();
        if let Some(v6only) = self.v6only.filter(|_| v6) {
            step("IPV6_V6ONLY", socket.set_only_v6(v6only))?;
        }
        if let Some(dev) = &self.dev {
            step("SO_BINDTO", socket.bind_device(Some(dev.as_bytes())))?;
        }
        if self.freebind {
            step("FREEBIND", if v6 { socket.set_freebind_v6(true) } else { socket.set_freebind_v4(true) })?;
        }
        if self.transparent {
            step(
                "TRANSPARENT",
                if v6 { socket.set_ip_transparent_v6(true) } else { socket.set_ip_transparent_v4(true) },
            )?;
        }
        Ok(socket)
    }

    fn open(&self) -> (Opened, Option<Socket>) {
        let socket = match self.socket() {
            Ok(socket) => socket,
            Err(what) => return (Opened::Refused(what), None),
        };
        let at: SocketAddr = self.at.parse().expect("an address");
        let bound = socket.bind(&at.into());
        let listens = (self.listen && bound.is_ok()).then(|| name(socket.listen(8)));
        // A socket whose bind() failed holds no port.
        let kept = bound.is_ok().then_some(socket);
        (Opened::Called(name(bound), listens), kept)
    }
}

/// The opened sockets, in this process or in a child. Dropping this value closes them, and ends the child.
pub(crate) struct OpenedSockets {
    _sockets: Vec<Socket>,
    child: Option<(Child, ChildStdin)>,
}

impl Drop for OpenedSockets {
    fn drop(&mut self) {
        if let Some((mut child, stdin)) = self.child.take() {
            drop(stdin);
            child.wait().expect("our own child");
        }
    }
}

/// Opens the sockets one after the other as this user. Each socket stays open while the next ones are opened.
pub(crate) fn open(uid: u32, specs: &[Spec]) -> (Vec<Opened>, OpenedSockets) {
    if uid == nix::unistd::geteuid().as_raw() {
        let (opened, sockets): (Vec<_>, Vec<_>) = specs.iter().map(Spec::open).unzip();
        return (opened, OpenedSockets { _sockets: sockets.into_iter().flatten().collect(), child: None });
    }
    let instructions = serde_json::to_string(&(uid, specs)).expect("instructions");
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    let mut child = command
        .env(INSTRUCTIONS, instructions)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("this program again");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("read");
    let opened = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
    let stdin = child.stdin.take().expect("a pipe");
    (opened, OpenedSockets { _sockets: vec![], child: Some((child, stdin)) })
}

/// Follows the instructions in a child process: becomes the user, opens the sockets, prints the results, and keeps the sockets open
/// until its input ends.
pub(crate) fn run_instructions(instructions: &str) {
    let (uid, specs): (u32, Vec<Spec>) = serde_json::from_str(instructions).expect("instructions");
    setgroups(&[]).expect("setgroups");
    let gid = Gid::from_raw(uid);
    setresgid(gid, gid, gid).expect("setresgid");
    let uid = Uid::from_raw(uid);
    setresuid(uid, uid, uid).expect("setresuid");
    let (opened, _sockets): (Vec<_>, Vec<_>) = specs.iter().map(Spec::open).unzip();
    let mut out = io::stdout();
    writeln!(out, "{}", serde_json::to_string(&opened).expect("results")).expect("written");
    out.flush().expect("written");
    let _ = io::stdin().read_to_end(&mut vec![]);
}
