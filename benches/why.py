#!/usr/bin/env python3
"""Measures the cost of `twtool why`: the requests per second, and per CPU time, of nginx with keep-alive connections.

    unshare -n sh -c 'ip link set lo up; python3 benches/why.py target/release/twtool 21'

Each pair has one run with twtool and one without it, in alternating order. The benchmark needs root, nginx and ab (apache2-utils).
"""

import pathlib
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time

REQUESTS = 60_000
CONFIG = """
user root root; daemon off; worker_processes 1; pid nginx.pid; error_log stderr; events { worker_connections 512; }
http { access_log off; keepalive_requests 1000000; client_body_temp_path b; proxy_temp_path p; fastcgi_temp_path f;
  uwsgi_temp_path u; scgi_temp_path s; server { listen 127.0.0.1:8080; location / { return 200 "ok"; } } }
"""


def cpu_ns(pid):
    """Returns the CPU time of the main threads of a process and of its running descendants, in nanoseconds."""
    children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    own = int(pathlib.Path(f"/proc/{pid}/schedstat").read_text().split()[0])
    return own + sum(map(cpu_ns, children))


def run(watch, folder):
    """Returns the requests per second, and the requests per nanosecond of CPU time."""
    command = [*watch, "nginx", "-p", folder, "-c", "nginx.conf"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while True:
        try:
            socket.create_connection(("127.0.0.1", 8080)).close()
            break
        except OSError:
            if server.poll() is not None:
                raise RuntimeError(f"nginx ended with status {server.returncode}")
            time.sleep(0.01)
    before = cpu_ns(server.pid)
    ab = ["ab", "-q", "-k", "-n", str(REQUESTS), "-c", "4", "http://127.0.0.1:8080/"]
    text = subprocess.run(ab, capture_output=True, text=True, check=True).stdout
    used = cpu_ns(server.pid) - before
    server.terminate()
    server.wait()
    return float(re.search(r"Requests per second:\s+([\d.]+)", text)[1]), REQUESTS / used


def main():
    twtool, pairs = sys.argv[1], int(sys.argv[2])
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        pathlib.Path(folder, "nginx.conf").write_text(CONFIG)
        ways = [[], [twtool, "why", "-q", "--"]]
        for number in range(pairs):
            order = [0, 1] if number % 2 == 0 else [1, 0]
            results = {way: run(ways[way], folder) for way in order}
            ratios.append([watched / plain for plain, watched in zip(results[0], results[1])])
    for name, values in zip(["requests per second", "requests per CPU time"], zip(*ratios)):
        print(f"{name}: {statistics.median(values):.3f} of the run without twtool ({min(values):.2f} to {max(values):.2f}, {pairs} pairs)")


main()
