"""Closes connections in one of many ways, and prints which process and which ends must be reported.

Each line of the output is a JSON object: pid, local, remote, outcome, role. `absent` has ends for which there must be no report.
"""
import array
import json
import os
import signal
import socket
import struct
import sys
import threading

LINGER = socket.SO_LINGER


def ends(sock):
    return sock.getsockname()[1], sock.getpeername()[1]


def say(pid, of, outcome="time-wait", role="connected", orphan=True, **more):
    more["orphan"] = orphan
    print(json.dumps({"pid": pid, "local": of[0], "remote": of[1], "outcome": outcome, "role": role, **more}), flush=True)


def absent(of):
    print(json.dumps({"absent": True, "local": of[0], "remote": of[1]}), flush=True)


def pair(family=socket.AF_INET, addr="127.0.0.1", server="127.0.0.1", port=0):
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listener.bind((server, port))
    listener.listen(16)
    client = socket.create_connection((addr, listener.getsockname()[1]))
    accepted, _ = listener.accept()
    listener.close()
    return client, accepted


def wait_for_end(sock):
    while sock.recv(1024):
        pass


def child(run):
    pid = os.fork()
    if pid == 0:
        try:
            run()
        finally:
            os._exit(0)
    return pid


def close():
    c, s = pair()
    of = ends(c)
    c.close()
    wait_for_end(s)
    absent(ends(s))
    s.close()
    say(os.getpid(), of)


def shutdown():
    c, s = pair()
    of = ends(c)
    c.shutdown(socket.SHUT_WR)
    wait_for_end(s)
    s.close()
    wait_for_end(c)
    c.close()
    say(os.getpid(), of, orphan=False)


def accepted():
    c, s = pair()
    of = ends(s)
    s.close()
    wait_for_end(c)
    absent(ends(c))
    c.close()
    say(os.getpid(), of, role="accepted")


def ended(way):
    c, s = pair()
    of = ends(c)
    go, release = os.pipe()

    def run():
        os.read(go, 1)
        if way == "kill":
            os.kill(os.getpid(), signal.SIGKILL)

    # The child ends after the parent has closed its copy of the socket.
    pid = child(run)
    c.close()
    os.write(release, b"x")
    os.waitpid(pid, 0)
    wait_for_end(s)
    s.close()
    say(pid, of)


def fork():
    c, s = pair()
    of = ends(c)
    go, release = os.pipe()
    pid = child(lambda: (os.read(go, 1), c.close()))
    c.close()
    os.write(release, b"x")
    os.waitpid(pid, 0)
    wait_for_end(s)
    s.close()
    say(pid, of)


def thread():
    c, s = pair()
    of = ends(c)
    tids = []

    def run():
        tids.append(threading.get_native_id())
        c.close()

    one = threading.Thread(target=run)
    one.start()
    one.join()
    wait_for_end(s)
    s.close()
    say(os.getpid(), of, tid=tids[0])


def linger():
    c, s = pair()
    of = ends(c)
    c.setsockopt(socket.SOL_SOCKET, LINGER, struct.pack("ii", 1, 5))
    closer = threading.Thread(target=c.close)
    closer.start()
    wait_for_end(s)
    s.close()
    closer.join()
    # close() returns when the peer has acknowledged the FIN, perhaps before the peer closes.
    say(os.getpid(), of)


def linger_0():
    c, s = pair()
    absent(ends(c))
    absent(ends(s))
    c.setsockopt(socket.SOL_SOCKET, LINGER, struct.pack("ii", 1, 0))
    c.close()
    s.close()


def unread_data():
    c, s = pair()
    absent(ends(c))
    absent(ends(s))
    s.send(b"x")
    while c.recv(1, socket.MSG_PEEK) != b"x":
        pass
    c.close()
    s.close()


def is_bucket(of):
    """Whether the socket with these ends is a bucket in FIN_WAIT_2: state 05 and timer 03."""
    with open("/proc/thread-self/net/tcp") as table:
        rows = [row.split() for row in table]
    return any(
        row[1].endswith(":%04X" % of[0]) and row[2].endswith(":%04X" % of[1]) and row[3] == "05" and row[5].startswith("03:")
        for row in rows
    )


def orphan():
    while True:
        c, s = pair()
        of = ends(c)
        c.close()
        wait_for_end(s)
        if is_bucket(of):
            break
        # The kernel has kept the whole socket, because the ACK came while close() had it locked.
        s.setsockopt(socket.SOL_SOCKET, LINGER, struct.pack("ii", 1, 0))
        s.close()
    say(os.getpid(), of, outcome="fin-wait-2")
    absent(ends(s))
    sys.stdin.read()


def half():
    c, s = pair()
    c.shutdown(socket.SHUT_WR)
    wait_for_end(s)
    say(None, ends(c))
    sys.stdin.read()
    s.close()
    wait_for_end(c)
    c.close()


def reset():
    c, s = pair()
    of = ends(c)
    c.shutdown(socket.SHUT_WR)
    wait_for_end(s)
    s.setsockopt(socket.SOL_SOCKET, LINGER, struct.pack("ii", 1, 0))
    s.close()
    try:
        c.recv(1)
    except ConnectionResetError:
        pass
    c.close()
    say(os.getpid(), of, outcome="aborted")


def ipv6():
    c, s = pair(socket.AF_INET6, "::1", "::1")
    of = ends(c)
    c.close()
    wait_for_end(s)
    s.close()
    say(os.getpid(), of, family="ipv6")


def mapped():
    c, s = pair(socket.AF_INET6, "127.0.0.1", "::")
    of = ends(s)
    s.close()
    wait_for_end(c)
    c.close()
    say(os.getpid(), of, role="accepted", family="ipv4-mapped")


def send(unix, fd):
    unix.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])


def passed():
    c, s = pair()
    of = ends(c)
    go, release = os.pipe()
    one, other = socket.socketpair(socket.AF_UNIX)

    def run():
        one.close()
        c.close()
        _, rights, _, _ = other.recvmsg(1, socket.CMSG_SPACE(4))
        os.read(go, 1)
        os.close(array.array("i", rights[0][2])[0])

    pid = child(run)
    send(one, c.fileno())
    c.close()
    os.write(release, b"x")
    os.waitpid(pid, 0)
    wait_for_end(s)
    s.close()
    say(pid, of)


def in_flight():
    c, s = pair()
    of = ends(c)
    one, other = socket.socketpair(socket.AF_UNIX)
    send(one, c.fileno())
    c.close()
    one.close()
    other.close()
    wait_for_end(s)
    s.close()
    say(os.getpid(), of)


def short_lived():
    listener = socket.create_server(("127.0.0.1", 8099), backlog=128)
    expected = []
    for _ in range(100):
        report, tell = os.pipe()

        def run():
            c = socket.create_connection(("127.0.0.1", 8099))
            os.write(tell, json.dumps(ends(c)).encode())

        pid = child(run)
        s, _ = listener.accept()
        of = json.loads(os.read(report, 100))
        os.close(report)
        os.close(tell)
        os.waitpid(pid, 0)
        wait_for_end(s)
        s.close()
        expected.append((pid, of))
    for pid, of in expected:
        say(pid, of)


def same_ends():
    listener = socket.create_server(("127.0.0.1", 8097))
    c = socket.create_connection(("127.0.0.1", 8097), source_address=("127.0.0.1", 40097))
    s, _ = listener.accept()
    c.close()
    wait_for_end(s)
    s.close()
    say(os.getpid(), (40097, 8097))


def renamed():
    """The name of the process is a control sequence."""
    with open("/proc/self/comm", "w") as comm:
        comm.write("a\x1b[31m\nb")
    c, s = pair()
    of = ends(c)
    c.close()
    wait_for_end(s)
    s.close()
    say(os.getpid(), of, comm="a\x1b[31m\nb")


WAYS = {
    "exit": lambda: ended("exit"),
    "kill": lambda: ended("kill"),
    **{
        one.__name__: one
        for one in [
            close, shutdown, accepted, fork, thread, linger, linger_0, unread_data, orphan, half, reset, ipv6, mapped, passed, in_flight,
            short_lived, same_ends, renamed,
        ]
    },
}

for way in sys.argv[1:]:
    WAYS[way]()
