//! What a test takes away from its thread, and from what the thread spawns: capabilities, and syscalls by a seccomp
//! filter. It ends with the thread.

use std::collections::BTreeMap;

use caps::{CapSet, Capability};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// From now on the syscall fails with this errno; with an argument given, only where that argument fits.
pub(crate) fn refuse(syscall: i64, argument: Option<(u8, SeccompCmpOp, u64)>, errno: i32) {
    let condition = |(number, operator, value)| {
        SeccompCondition::new(number, SeccompCmpArgLen::Dword, operator, value).expect("a condition")
    };
    let rule = argument.map(|argument| SeccompRule::new(vec![condition(argument)]).expect("a rule"));
    let rules = BTreeMap::from([(syscall, rule.into_iter().collect())]);
    let arch = std::env::consts::ARCH.try_into().expect("seccompiler knows the architecture");
    let action = SeccompAction::Errno(errno.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, action, arch).expect("a filter");
    let program: BpfProgram = filter.try_into().expect("a program");
    seccompiler::apply_filter(&program).expect("a filter can be applied");
}

/// From now on there are no IPv6 sockets, as in some sandboxes.
pub(crate) fn refuse_ipv6() {
    const AF_INET6: u64 = 10;
    refuse(libc::SYS_socket, Some((0, SeccompCmpOp::Eq, AF_INET6)), libc::EAFNOSUPPORT);
}

/// From now on no file can be made without a name, as on some filesystems (O_TMPFILE in open(2)).
pub(crate) fn refuse_files_without_a_name() {
    let flag = u64::from(libc::O_TMPFILE.cast_unsigned());
    refuse(libc::SYS_openat, Some((2, SeccompCmpOp::MaskedEq(flag), flag)), libc::EOPNOTSUPP);
}

/// Takes the capability away; a program started by uid 0 does not get it back.
pub(crate) fn drop_capability(capability: Capability) {
    // The bounding set first: changing it needs CAP_SETPCAP.
    for set in [CapSet::Bounding, CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
        caps::drop(None, set, capability).unwrap_or_else(|error| panic!("dropping {capability} failed: {error}"));
    }
}

/// Takes all of them away, as from an ordinary user, but for CAP_SETFCAP: uid 0, which the tests are in their namespace,
/// needs it to map itself into a user namespace (user_namespaces(7), since Linux 5.12); other users do not.
pub(crate) fn drop_capabilities_but_setfcap() {
    let held = caps::read(None, CapSet::Bounding).expect("the bounding set");
    let needed = [Capability::CAP_SETFCAP, Capability::CAP_SETPCAP];
    held.into_iter().filter(|capability| !needed.contains(capability)).for_each(drop_capability);
    // Last, as it is what taking away needs.
    drop_capability(Capability::CAP_SETPCAP);
}
