//! Takes capabilities away from the thread of a test, and makes single system calls fail with a seccomp filter. The children of the
//! thread inherit both limits.

use std::collections::BTreeMap;

use caps::{CapSet, Capability};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// Makes the system call fail with this errno from now on. With `argument` (the number of an argument, a comparison and a value), the call
/// fails only if the comparison of that argument with the value is true.
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

/// Makes the creation of IPv6 sockets fail from now on, as in some sandboxes.
pub(crate) fn refuse_ipv6() {
    const AF_INET6: u64 = 10;
    refuse(libc::SYS_socket, Some((0, SeccompCmpOp::Eq, AF_INET6)), libc::EAFNOSUPPORT);
}

/// Makes the creation of netlink sockets fail from now on, as in some sandboxes.
pub(crate) fn refuse_netlink() {
    const AF_NETLINK: u64 = 16;
    refuse(libc::SYS_socket, Some((0, SeccompCmpOp::Eq, AF_NETLINK)), libc::EPERM);
}

/// Makes the creation of files without a name fail from now on, as on some filesystems (O_TMPFILE in open(2)).
pub(crate) fn refuse_files_without_a_name() {
    let flag = u64::from(libc::O_TMPFILE.cast_unsigned());
    refuse(libc::SYS_openat, Some((2, SeccompCmpOp::MaskedEq(flag), flag)), libc::EOPNOTSUPP);
}

/// Drops the capability. A program that uid 0 starts does not get it back.
pub(crate) fn drop_capability(capability: Capability) {
    // The bounding set comes first, because changing it needs CAP_SETPCAP.
    for set in [CapSet::Bounding, CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
        caps::drop(None, set, capability).unwrap_or_else(|error| panic!("dropping {capability} failed: {error}"));
    }
}

/// Drops all capabilities except CAP_SETFCAP, so that the thread is like an ordinary user. The tests have uid 0, which needs
/// CAP_SETFCAP to map itself into a user namespace (user_namespaces(7), since Linux 5.12).
pub(crate) fn drop_capabilities_but_setfcap() {
    keep_only(&[Capability::CAP_SETFCAP]);
}

/// Drops all capabilities except these. A program that uid 0 starts gets exactly these.
pub(crate) fn keep_only(kept: &[Capability]) {
    let held = caps::read(None, CapSet::Bounding).expect("the bounding set");
    let others =
        held.into_iter().filter(|capability| !kept.contains(capability) && *capability != Capability::CAP_SETPCAP);
    others.for_each(drop_capability);
    if !kept.contains(&Capability::CAP_SETPCAP) {
        drop_capability(Capability::CAP_SETPCAP);
    }
}
