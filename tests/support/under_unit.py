"""Runs a command under the system call restrictions of a systemd unit, without systemd: under_unit.py UNIT[:DROP-IN] COMMAND...

It uses libseccomp, as systemd does (src/shared/seccomp-util.c), and the groups that `systemd-analyze syscall-filter` lists. It
applies SystemCallFilter, SystemCallErrorNumber, RestrictAddressFamilies, RestrictNamespaces and MemoryDenyWriteExecute.
Exit code 77 means that libseccomp or systemd-analyze is missing.
"""

import ctypes
import errno
import os
import socket
import subprocess
import sys

KILL_PROCESS, ALLOW, ERRNO = 0x80000000, 0x7FFF0000, 0x00050000
NOT_EQUAL, EQUAL, MASKED_EQUAL = 1, 4, 7
# The calls that make namespaces, each with the index of the argument that has the flags.
NAMESPACES = {"clone": 0, "unshare": 0}
CLONE_FLAGS = {
    "time": 0x00000080, "cgroup": 0x02000000, "uts": 0x04000000, "ipc": 0x08000000, "user": 0x10000000, "pid": 0x20000000,
    "net": 0x40000000, "mnt": 0x00020000,
}
PROT_WRITE, PROT_EXEC = 2, 4


class Compared(ctypes.Structure):
    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


try:
    LIBRARY = ctypes.CDLL("libseccomp.so.2")
except OSError:
    sys.exit(77)
LIBRARY.seccomp_init.restype = ctypes.c_void_p
LIBRARY.seccomp_init.argtypes = [ctypes.c_uint32]
LIBRARY.seccomp_rule_add_array.argtypes = [
    ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.POINTER(Compared),
]
LIBRARY.seccomp_load.argtypes = [ctypes.c_void_p]


class Filter:
    def __init__(self, default):
        self.default, self.context = default, LIBRARY.seccomp_init(default)

    def add(self, action, name, *compared):
        """Adds a rule for a system call. Ignores a call that this architecture does not have."""
        number = LIBRARY.seccomp_syscall_resolve_name(name.encode())
        if number < 0 or action == self.default:
            return
        array = (Compared * len(compared))(*(Compared(*one) for one in compared))
        result = LIBRARY.seccomp_rule_add_array(self.context, action, number, len(compared), array)
        if result not in (0, -errno.EEXIST):
            sys.exit(f"{name}: {os.strerror(-result)}")

    def load(self):
        result = LIBRARY.seccomp_load(self.context)
        if result:
            sys.exit(f"seccomp_load: {os.strerror(-result)}")


def settings(paths):
    found = {}
    for path in paths.split(":"):
        for line in open(path):
            name, equals, value = line.strip().partition("=")
            if equals and not line.startswith("#"):
                found.setdefault(name, []).append(value)
    return found


def members(word):
    """The system calls that a word of SystemCallFilter stands for."""
    if not word.startswith("@"):
        return {word}
    command = ["systemd-analyze", "syscall-filter", word]
    try:
        listed = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        sys.exit(77)
    if listed.returncode:
        # An older systemd ignores a group that it does not know.
        return set()
    words = [line.strip() for line in listed.stdout.splitlines()[1:]]
    return set().union(*(members(word) for word in words if word and not word.startswith("#")))


def system_calls(unit):
    """The system calls that the unit allows. Each line of SystemCallFilter adds calls, or removes them if it begins with ~."""
    allowed = members("@default")
    for line in unit["SystemCallFilter"]:
        removes, words = line.startswith("~"), line.lstrip("~").split()
        calls = set().union(*map(members, words))
        allowed = allowed - calls if removes else allowed | calls
    return allowed


def main():
    unit = settings(sys.argv[1])
    name = unit.get("SystemCallErrorNumber", [None])[-1]
    refused = ERRNO | getattr(errno, name) if name else KILL_PROCESS
    filters = []
    if unit.get("MemoryDenyWriteExecute") == ["yes"]:
        memory = Filter(ALLOW)
        both = PROT_WRITE | PROT_EXEC
        memory.add(ERRNO | errno.EPERM, "mmap", (2, MASKED_EQUAL, both, both))
        for call in ["mprotect", "pkey_mprotect"]:
            memory.add(ERRNO | errno.EPERM, call, (2, MASKED_EQUAL, PROT_EXEC, PROT_EXEC))
        filters.append(memory)
    # "yes" allows no kind of namespace.
    allowed = unit.get("RestrictNamespaces", ["no"])[-1].replace("yes", "").split()
    if allowed != ["no"]:
        namespaces = Filter(ALLOW)
        for flag in (flag for kind, flag in CLONE_FLAGS.items() if kind not in allowed):
            for call, argument in [*NAMESPACES.items(), ("setns", 1)]:
                namespaces.add(ERRNO | errno.EPERM, call, (argument, MASKED_EQUAL, flag, flag))
        # setns() with type 0 accepts every kind. A filter cannot read the flags of clone3(), which are in memory.
        namespaces.add(ERRNO | errno.EPERM, "setns", (1, EQUAL, 0, 0))
        namespaces.add(ERRNO | errno.ENOSYS, "clone3")
        filters.append(namespaces)
    families = [getattr(socket, word) for word in unit["RestrictAddressFamilies"][-1].split()]
    network = Filter(ALLOW)
    for family in range(64):
        if family not in families:
            network.add(ERRNO | errno.EAFNOSUPPORT, "socket", (0, EQUAL, family, 0))
    filters.append(network)
    calls = Filter(refused)
    for call in sorted(system_calls(unit)):
        calls.add(ALLOW, call)
    for one in [*filters, calls]:
        # The filter of system calls is loaded last, because it may refuse the call that loads a filter.
        one.load()
    os.execv(sys.argv[2], sys.argv[2:])


main()
