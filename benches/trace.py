#!/usr/bin/env python3
"""Measures the cost of `twtool trace`: how much it slows short connections on loopback, the time of its start, and its memory.

    cargo build --release && sudo python3 benches/trace.py target/release/twtool

It needs root (BPF, network namespaces) and a C compiler. It makes pairs of runs, one with the tracer and one without, in alternating
order. The connections of each run are in a new network namespace. With `leak` as the second argument, it instead makes 1,000,000
connections, and shows how the memory of the tracer changes.
"""
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time

CONNECTIONS = 20000
PAIRS = 21

LOAD = r"""
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double seconds(struct timeval t) { return t.tv_sec + t.tv_usec / 1e6; }

int main(int argc, char **argv) {
    int count = atoi(argv[1]), server = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(8080), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(server, (void *)&at, sizeof at) || listen(server, 4096)) return 1;
    struct timespec begin, end;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    if (fork() == 0) {
        for (int i = 0; i < count; i++) {
            char byte;
            int s = accept(server, 0, 0);
            while (read(s, &byte, 1) > 0);
            close(s);
        }
        _exit(0);
    }
    for (int i = 0; i < count; i++) {
        int c = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(c, (void *)&at, sizeof at)) { perror("connect"); return 1; }
        close(c);
    }
    wait(0);
    clock_gettime(CLOCK_MONOTONIC, &end);
    struct rusage own, child;
    getrusage(RUSAGE_SELF, &own);
    getrusage(RUSAGE_CHILDREN, &child);
    double cpu = seconds(own.ru_utime) + seconds(own.ru_stime) + seconds(child.ru_utime) + seconds(child.ru_stime);
    printf("%f %f\n", end.tv_sec - begin.tv_sec + (end.tv_nsec - begin.tv_nsec) / 1e9, cpu);
    return 0;
}
"""


def load(folder, count):
    command = "ip link set lo up; sysctl -qw net.ipv4.tcp_max_tw_buckets=1000000; exec %s/load %d" % (folder, count)
    done = subprocess.run(["unshare", "-n", "sh", "-c", command], capture_output=True, text=True, check=True)
    return [float(number) for number in done.stdout.split()]


def processor_time(pid):
    with open("/proc/%d/stat" % pid) as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid):
    with open("/proc/%d/status" % pid) as status:
        lines = dict(line.split(":", 1) for line in status)
    return {key: lines[key].strip() for key in ("VmHWM", "VmRSS", "RssAnon")}


MODES = (["-o", "ndjson"], ["--by", "process", "-o", "json"])


def start(twtool, mode, stderr=None):
    return subprocess.Popen([twtool, "trace", *mode], stdout=subprocess.DEVNULL, stderr=stderr, text=True)


def pairs(twtool, folder, mode):
    ratios = []
    print(*mode, flush=True)
    for number in range(PAIRS):
        cost = {}
        for traced in ([True, False] if number % 2 else [False, True]):
            tracer = start(twtool, mode) if traced else None
            time.sleep(0.3)
            before = processor_time(tracer.pid) if traced else 0
            wall, cpu = load(folder, CONNECTIONS)
            if traced:
                time.sleep(0.1)
                cpu += processor_time(tracer.pid) - before
                tracer.send_signal(signal.SIGTERM)
                tracer.wait()
            cost[traced] = (wall, cpu)
        ratios.append([cost[True][i] / cost[False][i] for i in (0, 1)])
        print("pair %d: %.0f connections/s, wall %.3f, processor time %.3f" % (
            number + 1, CONNECTIONS / cost[False][0], *ratios[-1]), flush=True)
    for name, values in zip(("wall", "processor time"), zip(*ratios)):
        low, middle, high = statistics.quantiles(values, n=4)
        print("%s: median %.3f, quartiles %.3f to %.3f (1 is the run without the tracer)" % (name, middle, low, high))


def has_attached(pid):
    """Whether twtool has attached its two copies of the BPF program."""
    links = 0
    try:
        for descriptor in os.listdir("/proc/%d/fd" % pid):
            # The kernel writes bpf_link or bpf-link.
            target = os.readlink("/proc/%d/fd/%s" % (pid, descriptor)).replace("-", "_")
            links += target == "anon_inode:bpf_link"
    except OSError:
        pass
    return links == 2


def starts(twtool):
    attached = []
    for _ in range(PAIRS):
        begin = time.monotonic()
        tracer = start(twtool, MODES[0], stderr=subprocess.PIPE)
        while not has_attached(tracer.pid):
            if tracer.poll() is not None:
                raise RuntimeError("twtool trace ended with status %d: %s" % (tracer.returncode, tracer.communicate()[1]))
            time.sleep(0.0003)
        attached.append(time.monotonic() - begin)
        tracer.send_signal(signal.SIGTERM)
        tracer.communicate()
    print("start, until the BPF program is attached: median %.1f ms" % (statistics.median(attached) * 1000))
    times, processor = [], []
    for _ in range(PAIRS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        begin = time.monotonic()
        subprocess.run([twtool, "trace", "--duration", "0s", "-o", "ndjson"], check=True, stdout=subprocess.DEVNULL)
        times.append(time.monotonic() - begin)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        processor.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    tracer = start(twtool, MODES[0])
    time.sleep(0.5)
    middle = [statistics.median(values) * 1000 for values in (times, processor)]
    print("start and end: median %.1f ms, processor time %.1f ms" % tuple(middle), "memory after the start:", memory(tracer.pid))
    tracer.kill()
    tracer.wait()


def leak(twtool, folder):
    tracer = subprocess.Popen([twtool, "trace", "--by", "process", "-o", "json"], stdout=subprocess.PIPE)
    time.sleep(0.5)
    closes = 0
    print("closes", closes, memory(tracer.pid), flush=True)
    while closes < 1_000_000:
        load(folder, CONNECTIONS)
        closes += CONNECTIONS
        if closes % 200_000 == 0:
            print("closes", closes, memory(tracer.pid), flush=True)
    tracer.send_signal(signal.SIGTERM)
    document = json.loads(tracer.communicate()[0])
    print("seen %(closes)d, named %(named)d, lost %(lost)d" % document)


def main():
    twtool = os.path.abspath(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        with open(folder + "/load.c", "w") as source:
            source.write(LOAD)
        subprocess.run(["cc", "-O2", "-o", folder + "/load", folder + "/load.c"], check=True)
        if sys.argv[2:] == ["leak"]:
            leak(twtool, folder)
        else:
            starts(twtool)
            for mode in MODES:
                pairs(twtool, folder, mode)


main()
