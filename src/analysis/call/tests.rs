//! Tests the explanations without a kernel.

use super::*;
use crate::model::bind::{CallResult, ReuseOptions};
use crate::model::call::CallingProcess;
use crate::model::command::Caller;
use crate::model::facts::tests::facts;
use crate::model::port::Port;
use crate::model::process::Owners;
use crate::model::process::Process;
use crate::model::row::Direction;
use crate::model::row::tests::row;
use crate::model::socket::{FourTuple, FullSocket, Socket, TcpState};
use crate::model::target::tests::full;

/// A bind() to 127.0.0.1 on this port that failed with this errno.
fn call(port: u16, errno: Errno) -> SocketCall {
    SocketCall {
        name: CallName::Bind,
        result: CallResult::Failed(errno),
        addr: Some(CalledAddr { addr: [127, 0, 0, 1].into(), port: Port(port), scope: 0 }),
        socket: Some(CalledSocket {
            ipv6: false,
            kind: "stream",
            protocol: "tcp".into(),
            reuse: ReuseOptions::NONE,
            v6only: false,
            freebind: false,
            transparent: false,
            bind_address_no_port: false,
            device: None,
            local: None,
        }),
        unread: None,
        process: CallingProcess {
            pid: 7,
            tid: 7,
            comm: "server".into(),
            uid: Some(1000),
            lost_privilege: false,
            netns: None,
            no_new_privs: Some(true),
            cap_net_bind_service: Some(false),
        },
        at: Duration::ZERO,
    }
}

fn explained(call: &SocketCall, holders: &[Holder]) -> Explanation {
    explain(&FailedCall {
        call,
        attempt: call.as_attempt(None).as_ref(),
        facts: Some(&facts()),
        holders,
        bound_sockets_are_listed: true,
        ports_left: None,
        watched: &BTreeSet::from([7]),
        uid: 1000,
        command: &["server".into()],
        shell: &Shell { netns: None, caller: Caller::default() },
    })
}

#[test]
fn advice_does_not_mention_setcap_if_twtool_removed_the_privilege() {
    let advised = |lost| {
        let mut call = call(80, Errno::Access);
        call.process.lost_privilege = lost;
        format!("{:?}", explained(&call, &[]).help)
    };
    assert!(advised(false).contains("setcap"), "{}", advised(false));
    assert!(
        advised(true).contains("If twtool has CAP_SYS_ADMIN and CAP_SYS_PTRACE (root on the host), the process"),
        "{}",
        advised(true)
    );
    assert!(
        !advised(true).contains("setcap") && advised(true).contains("twtool causes this failure"),
        "{}",
        advised(true)
    );
}

#[test]
fn eacces_despite_the_capability_is_explained_by_the_user_namespace_or_a_security_module() {
    let mut call = call(80, Errno::Access);
    call.process.cap_net_bind_service = Some(true);
    let Explanation { headline, cause, help, .. } = explained(&call, &[]);
    assert_eq!(
        headline,
        "port 80 needs CAP_NET_BIND_SERVICE, and the kernel or a security module refuses the bind although the process has the \
         capability in its own user namespace"
    );
    assert_eq!(cause, CallCause::Port(Cause::Unknown));
    assert!(format!("{help:?}").contains("network_namespaces(7)"), "{help:?}");
}

#[test]
fn no_command_ends_the_watched_program() {
    let bucket = row("127.0.0.1", 8080, "127.0.0.1", 40_000).bucket;
    let listening = FourTuple::new(([127, 0, 0, 1].into(), Port(8080)), ([0; 4].into(), Port(0)));
    let holder = |owners| {
        let socket = match owners {
            Owners::Nobody => Socket::Bucket(bucket),
            _ => Socket::Full(FullSocket { tuple: listening, ..full(TcpState::Listen, 1) }),
        };
        Holder { owners, ..Holder::of(socket, Direction::Inbound, true) }
    };
    let of = |pid| Owners::Found(vec![Process { pid, comm: "server".into(), ..Process::default() }]);
    // The watched process is pid 7.
    for (owners, itself) in [
        (vec![of(7)], Some(true)),
        (vec![of(7), Owners::Nobody], Some(true)),
        (vec![of(7), of(8)], Some(false)),
        (vec![of(7), Owners::NotPermitted], None),
        (vec![of(8)], Some(false)),
        (vec![Owners::Nobody], Some(false)),
        (vec![], None),
    ] {
        let holders: Vec<Holder> = owners.into_iter().map(holder).collect();
        let explanation = explained(&call(8080, Errno::AddrInUse), &holders);
        assert_eq!(explanation.held_by_itself, itself, "{holders:?}");
        let ends =
            |pid: &str| explanation.help.commands.iter().any(|step| step.command.ends_with(&format!("kill {pid}")));
        assert!(!ends("7"), "{explanation:?}");
        assert_eq!(ends("8"), holders.iter().any(|holder| holder.owners == of(8)), "{explanation:?}");
    }
}
