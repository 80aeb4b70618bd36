"""Closes connections in the ways that the arguments name, and prints the reports that `twtool trace` must make.

Each line of the output is a JSON object: pid, local and remote port, outcome, role. With `absent`, there must be no report for
these ports. The pid is null if the tracer cannot know the process. With `orphan`, the outcome can also be fin-wait-2, because an
orphan can become a bucket before the peer closes. `not_checked` is the reason why a way is not possible here.

Each function of `WAYS` is a way of closing. In it, `c` is the client's socket and `s` is the server's socket.
"""
import array
import ctypes
import fcntl
import json
import mmap
import os
import select
import signal
import socket
import struct
import sys
import threading

LINGER = socket.SO_LINGER


def ports_of(sock):
    return sock.getsockname()[1], sock.getpeername()[1]


def expect(pid, ports, outcome="time-wait", role="connected", orphan=True, **more):
    more["orphan"] = orphan
    print(json.dumps({"pid": pid, "local": ports[0], "remote": ports[1], "outcome": outcome, "role": role, **more}), flush=True)


def expect_none(ports):
    print(json.dumps({"absent": True, "local": ports[0], "remote": ports[1]}), flush=True)


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
    ports = ports_of(c)
    c.close()
    wait_for_end(s)
    expect_none(ports_of(s))
    s.close()
    expect(os.getpid(), ports)


def shutdown():
    c, s = pair()
    ports = ports_of(c)
    c.shutdown(socket.SHUT_WR)
    wait_for_end(s)
    s.close()
    wait_for_end(c)
    c.close()
    expect(os.getpid(), ports, orphan=False)


def accepted():
    c, s = pair()
    ports = ports_of(s)
    s.close()
    wait_for_end(c)
    expect_none(ports_of(c))
    c.close()
    expect(os.getpid(), ports, role="accepted")


def ended(way):
    """A child ends without close(): by itself, or by a signal."""
    c, s = pair()
    ports = ports_of(c)
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
    expect(pid, ports)


def fork():
    """Two processes have the socket. The last one that closes it is reported."""
    c, s = pair()
    ports = ports_of(c)
    go, release = os.pipe()
    pid = child(lambda: (os.read(go, 1), c.close()))
    c.close()
    os.write(release, b"x")
    os.waitpid(pid, 0)
    wait_for_end(s)
    s.close()
    expect(pid, ports)


def thread():
    c, s = pair()
    ports = ports_of(c)
    tids = []

    def run():
        tids.append(threading.get_native_id())
        c.close()

    one = threading.Thread(target=run)
    one.start()
    one.join()
    wait_for_end(s)
    s.close()
    expect(os.getpid(), ports, tid=tids[0])


def linger():
    c, s = pair()
    ports = ports_of(c)
    c.setsockopt(socket.SOL_SOCKET, LINGER, struct.pack("ii", 1, 5))
    closer = threading.Thread(target=c.close)
    closer.start()
    wait_for_end(s)
    s.close()
    closer.join()
    expect(os.getpid(), ports)


def linger_0():
    c, s = pair()
    expect_none(ports_of(c))
    expect_none(ports_of(s))
    c.setsockopt(socket.SOL_SOCKET, LINGER, struct.pack("ii", 1, 0))
    c.close()
    s.close()


def unread_data():
    """The client closes with unread data, so the kernel sends a RST."""
    c, s = pair()
    expect_none(ports_of(c))
    expect_none(ports_of(s))
    s.send(b"x")
    while c.recv(1, socket.MSG_PEEK) != b"x":
        pass
    c.close()
    s.close()


def is_bucket(ports):
    """Whether the socket with these ports is a bucket in FIN_WAIT_2: state 05 and timer 03."""
    with open("/proc/thread-self/net/tcp") as table:
        rows = [row.split() for row in table]
    return any(
        row[1].endswith(":%04X" % ports[0]) and row[2].endswith(":%04X" % ports[1]) and row[3] == "05" and row[5].startswith("03:")
        for row in rows
    )


def orphan():
    """The client's socket becomes a bucket in FIN_WAIT_2. The server's socket stays open until stdin ends."""
    while True:
        c, s = pair()
        ports = ports_of(c)
        c.close()
        wait_for_end(s)
        if is_bucket(ports):
            break
        # The kernel has kept the full socket, because the ACK came while close() had the socket locked.
        s.setsockopt(socket.SOL_SOCKET, LINGER, struct.pack("ii", 1, 0))
        s.close()
    expect(os.getpid(), ports, outcome="fin-wait-2")
    expect_none(ports_of(s))
    sys.stdin.read()


def half():
    """The client only shuts down, and closes after the server has closed. The server's socket stays open until stdin ends."""
    c, s = pair()
    c.shutdown(socket.SHUT_WR)
    wait_for_end(s)
    expect(None, ports_of(c))
    sys.stdin.read()
    s.close()
    wait_for_end(c)
    c.close()


def reset():
    """The server resets the connection after the client has shut down."""
    c, s = pair()
    ports = ports_of(c)
    c.shutdown(socket.SHUT_WR)
    wait_for_end(s)
    s.setsockopt(socket.SOL_SOCKET, LINGER, struct.pack("ii", 1, 0))
    s.close()
    try:
        c.recv(1)
    except ConnectionResetError:
        pass
    c.close()
    expect(os.getpid(), ports, outcome="aborted", orphan=False)


def ipv6():
    c, s = pair(socket.AF_INET6, "::1", "::1")
    ports = ports_of(c)
    c.close()
    wait_for_end(s)
    s.close()
    expect(os.getpid(), ports, family="ipv6")


def mapped():
    c, s = pair(socket.AF_INET6, "127.0.0.1", "::")
    ports = ports_of(s)
    s.close()
    wait_for_end(c)
    c.close()
    expect(os.getpid(), ports, role="accepted", family="ipv4-mapped")


def send(unix, fd):
    unix.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])


def passed():
    """The process that closes the socket has received it through a Unix socket."""
    c, s = pair()
    ports = ports_of(c)
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
    expect(pid, ports)


def in_flight():
    """The socket is only in a message of a Unix socket. Closing the Unix socket also closes the socket in the message."""
    c, s = pair()
    ports = ports_of(c)
    one, other = socket.socketpair(socket.AF_UNIX)
    send(one, c.fileno())
    c.close()
    one.close()
    other.close()
    wait_for_end(s)
    s.close()
    expect(os.getpid(), ports)


def garbage():
    """The socket is in a message that no process can receive, because the Unix socket with this message is only in a message, too."""
    c, s = pair()
    ports = ports_of(c)
    one, other = socket.socketpair(socket.AF_UNIX)
    send(other, one.fileno())
    send(other, c.fileno())
    c.close()
    one.close()
    other.close()
    s.settimeout(0.1)
    for _ in range(100):
        try:
            wait_for_end(s)
            break
        except TimeoutError:
            # When any Unix socket is closed, the kernel starts to collect unreachable sockets.
            for unix in socket.socketpair(socket.AF_UNIX):
                unix.close()
    s.close()
    # On newer kernels, a kernel worker collects unreachable sockets, so the report may name the worker.
    expect(os.getpid(), ports, collector=True)


class Ring:
    """An io_uring with one submission entry, made with io_uring_setup(2) and io_uring_enter(2)."""

    def __init__(self):
        self.call = ctypes.CDLL(None, use_errno=True).syscall
        parameters = ctypes.create_string_buffer(120)
        self.fd = self.call(425, 1, parameters)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        entries = struct.unpack_from("II", parameters)
        self.sq = struct.unpack_from("7I", parameters, 40)
        self.cq = struct.unpack_from("6I", parameters, 80)
        size = self.sq[6] + 4 * entries[0], self.cq[5] + 16 * entries[1]
        self.submissions = mmap.mmap(self.fd, size[0], mmap.MAP_SHARED, offset=0)
        self.completions = mmap.mmap(self.fd, size[1], mmap.MAP_SHARED, offset=0x8000000)
        self.requests = mmap.mmap(self.fd, 64 * entries[0], mmap.MAP_SHARED, offset=0x10000000)

    def close(self, fd, flags):
        """Closes a descriptor with IORING_OP_CLOSE."""
        self.requests[:64] = struct.pack("BBHi", 19, flags, 0, fd) + bytes(56)
        head, tail, array_at = self.sq[0], self.sq[1], self.sq[6]
        (number,) = struct.unpack_from("I", self.submissions, tail)
        struct.pack_into("I", self.submissions, array_at, 0)
        struct.pack_into("I", self.submissions, tail, number + 1)
        if self.call(426, self.fd, 1, 1, 1, None, 0) != 1:
            raise OSError(ctypes.get_errno(), "io_uring_enter")
        (result,) = struct.unpack_from("i", self.completions, self.cq[5] + 16 * (number % 2) + 8)
        if result != 0:
            raise OSError(-result, "IORING_OP_CLOSE")


def io_uring():
    """Closes two sockets with io_uring. With IOSQE_ASYNC (1 << 4), a kernel worker of the process makes the second close."""
    try:
        ring = Ring()
    except OSError as error:
        print(json.dumps({"not_checked": "io_uring_setup: %s" % error}), flush=True)
        return
    for flags in (0, 1 << 4):
        c, s = pair()
        ports = ports_of(c)
        ring.close(c.detach(), flags)
        wait_for_end(s)
        s.close()
        expect(os.getpid(), ports)


def both():
    """Each end shuts down before it receives the FIN of the other end. Each FIN waits behind data for which the receiver has no room."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    c = socket.socket()
    c.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    c.connect(listener.getsockname())
    s, _ = listener.accept()
    listener.close()
    ports, server_ports = ports_of(c), ports_of(s)
    for sock in (c, s):
        sock.setblocking(False)
        while True:
            try:
                sock.send(bytes(65536))
            except BlockingIOError:
                # The peer may still acknowledge data, which makes room.
                if not select.select([], [sock], [], 0.3)[1]:
                    break
        sock.setblocking(True)

    pid = child(lambda: s.shutdown(socket.SHUT_WR))
    os.waitpid(pid, 0)
    c.shutdown(socket.SHUT_WR)
    states = [sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] for sock in (c, s)]
    assert states == [4, 4], "both must be in FIN_WAIT_1 (4): %s" % states
    wait_for_end(c)
    # The client is in CLOSING: it has received the FIN of the server, but no acknowledgement of its own FIN.
    assert c.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == 11
    wait_for_end(s)
    c.close()
    s.close()
    expect(os.getpid(), ports, orphan=False)
    expect(pid, server_ports, role="accepted", orphan=False)


def linger2():
    """An orphan leaves no bucket if TCP_LINGER2 is -1, and leaves a bucket if TCP_LINGER2 is 3 s."""
    for seconds, outcome in ((-1, "aborted"), (3, "time-wait")):
        c, s = pair()
        ports = ports_of(c)
        c.setsockopt(socket.IPPROTO_TCP, socket.TCP_LINGER2, seconds)
        c.close()
        try:
            wait_for_end(s)
        except ConnectionResetError:
            pass
        s.close()
        expect(os.getpid(), ports, outcome=outcome, orphan=outcome == "time-wait")


def checksum(data):
    data += bytes(len(data) % 2)
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def fast_open():
    """A server shuts down a Fast Open connection before the handshake ends. Since Linux 6.9, the kernel sends the FIN only when it
    receives the last ACK of the handshake. The process that runs at that moment has nothing to do with the connection. The packets of the
    client are written to a TUN device."""
    try:
        tun = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(tun, 0x400454CA, struct.pack("16sH22x", b"fastopen", 0x1001))
    except OSError as error:
        print(json.dumps({"not_checked": "/dev/net/tun: %s" % error}), flush=True)
        return
    for line in ("addr add 10.99.0.1/24 dev fastopen", "link set fastopen up"):
        assert os.system("ip " + line) == 0
    with open("/proc/sys/net/ipv4/tcp_fastopen", "w") as setting:
        # With this value, servers accept data in a SYN without a cookie.
        setting.write(str(0x202))
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("10.99.0.1", 8100))
    server.listen(16)
    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 16)
    local, remote = socket.inet_aton("10.99.0.1"), socket.inet_aton("10.99.0.2")

    def packet(seq, ack, flags, data=b"", options=b""):
        header = struct.pack("!HHIIBBHHH", 40100, 8100, seq, ack, (20 + len(options)) // 4 << 4, flags, 65535, 0, 0)
        tcp = header + options + data
        pseudo = remote + local + struct.pack("!BBH", 0, 6, len(tcp))
        tcp = tcp[:16] + struct.pack("!H", checksum(pseudo + tcp)) + tcp[18:]
        ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(tcp), 1, 0, 64, 6, 0, remote, local)
        return ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:] + tcp

    def answer(flags):
        """Waits for a packet of the server with these flags. Returns the sequence number after this packet."""
        while select.select([tun], [], [], 5)[0]:
            got = os.read(tun, 2048)
            if got[9:10] == b"\x06" and got[33] & flags == flags:
                length = len(got) - 20 - (got[32] >> 4) * 4
                return struct.unpack_from("!I", got, 24)[0] + length + 1
        raise TimeoutError("no packet with the flags %#x" % flags)

    SYN, FIN, ACK = 2, 1, 16
    # The SYN has data and two options: MSS, and Fast Open without a cookie.
    os.write(tun, packet(1000, 0, SYN, b"hello", b"\x02\x04\x05\xb4\x22\x02\x01\x01"))
    s, _ = server.accept()
    ports = ports_of(s)
    assert s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == 3, "SYN_RECV"
    begin = answer(SYN | ACK)
    s.shutdown(socket.SHUT_WR)
    # A child writes the last ACK, so that the child is the process that runs when the kernel receives this ACK.
    os.waitpid(child(lambda: os.write(tun, packet(1006, begin, ACK))), 0)
    end = answer(FIN)
    os.write(tun, packet(1006, end, FIN | ACK))
    while s.recv(1024):
        pass
    s.close()
    expect(os.getpid(), ports, role="accepted", orphan=False)


def short_lived():
    """A hundred processes, each of which opens one connection and ends."""
    listener = socket.create_server(("127.0.0.1", 8099), backlog=128)
    expected = []
    for _ in range(100):
        report, tell = os.pipe()

        def run():
            c = socket.create_connection(("127.0.0.1", 8099))
            os.write(tell, json.dumps(ports_of(c)).encode())

        pid = child(run)
        s, _ = listener.accept()
        ports = json.loads(os.read(report, 100))
        os.close(report)
        os.close(tell)
        os.waitpid(pid, 0)
        wait_for_end(s)
        s.close()
        expected.append((pid, ports))
    for pid, ports in expected:
        expect(pid, ports)


def same_ends():
    """Closes a connection that always has the same two ports."""
    listener = socket.create_server(("127.0.0.1", 8097))
    c = socket.create_connection(("127.0.0.1", 8097), source_address=("127.0.0.1", 40097))
    s, _ = listener.accept()
    c.close()
    wait_for_end(s)
    s.close()
    expect(os.getpid(), (40097, 8097))


def renamed():
    """The name of the process contains an escape sequence and a line feed."""
    with open("/proc/self/comm", "w") as comm:
        comm.write("a\x1b[31m\nb")
    c, s = pair()
    ports = ports_of(c)
    c.close()
    wait_for_end(s)
    s.close()
    expect(os.getpid(), ports, comm="a\x1b[31m\nb")


WAYS = {
    "exit": lambda: ended("exit"),
    "kill": lambda: ended("kill"),
    **{
        one.__name__: one
        for one in [
            close, shutdown, accepted, fork, thread, linger, linger_0, unread_data, orphan, half, reset, ipv6, mapped, passed, in_flight,
            garbage, io_uring, both, linger2, fast_open, short_lived, same_ends, renamed,
        ]
    },
}

for way in sys.argv[1:]:
    WAYS[way]()
