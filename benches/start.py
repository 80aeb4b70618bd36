"""Measures the time from the start to the end of the static twtool, and of an empty program that is linked the same way.

    unshare -n sh -c 'ip link set lo up; python3 benches/start.py "$(packaging/static)" 101'

It makes 10 TIME_WAIT sockets in its network namespace, so run it in a separate namespace, as above. The second argument is the number
of pairs. In each pair both programs run, in alternating order. The output goes to /dev/null. The wall time includes the time that Python
needs to start the process. On a busy machine, the processor time is more reliable.
"""

import os
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time

COMMANDS = [["list"], ["list", "-o", "ndjson"], ["list", "--count"], ["port", "443"], ["--version"]]


def main():
    program, pairs = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 101
    kept = buckets(10)
    with tempfile.TemporaryDirectory() as folder:
        source, empty, copy = (os.path.join(folder, name) for name in ["empty.rs", "empty", "twtool"])
        with open(source, "w") as file:
            file.write("fn main() {}\n")
        # The flags of packaging/static on x86_64, and of the release profile.
        flags = ["-Ctarget-feature=+crt-static", "-Clink-arg=-Wl,-z,pack-relative-relocs"]
        flags += ["-Copt-level=3", "-Cpanic=abort", "-Cstrip=symbols", "-Clto=thin", "-Ccodegen-units=1"]
        subprocess.run(["rustc", *flags, "-o", empty, source], check=True)
        # A copy starts faster than the file that the linker wrote, and an installation also makes a copy.
        subprocess.run(["cp", program, copy], check=True)
        print(f"sizes: twtool {os.path.getsize(copy)} bytes, empty {os.path.getsize(empty)} bytes; {pairs} pairs; load {os.getloadavg()[0]:.1f}")
        print(f"a sock_diag dump of TIME_WAIT and LISTEN sockets (IPv4): {statistics.median(walk() for _ in range(101)) * 1e3:.2f} ms")
        for words in COMMANDS:
            measured, base = [], []
            for number in range(pairs + 2):
                sides = [(measured, [copy, *words]), (base, [empty])]
                for times, command in sides if number % 2 else reversed(sides):
                    cost = run(command)
                    # The first two pairs fill the caches.
                    if number >= 2:
                        times.append(cost)
            for at, what in enumerate(["wall", "processor"]):
                one, other = ([cost[at] for cost in side] for side in (measured, base))
                ratios = sorted(left / right for left, right in zip(one, other))
                print(
                    f"{' '.join(words):14} {what:9} median {statistics.median(one) * 1e3:.2f} ms, empty"
                    f" {statistics.median(other) * 1e3:.2f} ms, ratio of the pairs {statistics.median(ratios):.2f} (quartiles"
                    f" {ratios[pairs // 4]:.2f} to {ratios[pairs * 3 // 4]:.2f}), fastest {min(one) * 1e3:.2f} and"
                    f" {min(other) * 1e3:.2f} ms"
                )
    for one in kept:
        one.close()


def run(command):
    quiet = [(os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0)]
    began = time.perf_counter()
    pid = os.posix_spawn(command[0], command, {}, file_actions=quiet)
    _, status, usage = os.wait4(pid, 0)
    elapsed = time.perf_counter() - began
    if status:
        sys.exit(f"{command} ended with {status}")
    return elapsed, usage.ru_utime + usage.ru_stime


def walk():
    """Returns the time of a sock_diag dump in seconds."""
    states = 1 << 6 | 1 << 10  # TIME_WAIT and LISTEN
    request = struct.pack("=IHHII", 72, 20, 0x301, 0, 0) + struct.pack("=BBBBI48x", socket.AF_INET, socket.IPPROTO_TCP, 0, 0, states)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 4) as kernel:
        kernel.settimeout(5)
        began = time.perf_counter()
        kernel.send(request)
        while True:
            data = kernel.recv(1 << 16)
            kind = struct.unpack_from("=H", data, 4)[0]
            if kind == 2:  # NLMSG_ERROR, with the negative errno after the header
                error = -struct.unpack_from("=i", data, 16)[0]
                raise OSError(error, f"sock_diag refuses the dump: {os.strerror(error)}")
            # NLMSG_DONE (type 3) is the only or the last message of the last datagram.
            if kind == 3 or data[-20:].startswith(struct.pack("=IH", 20, 3)):
                return time.perf_counter() - began


def buckets(count):
    server = socket.create_server(("127.0.0.1", 0))
    for _ in range(count):
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
        accepted.close()
        client.close()
    return [server]


main()
