#!/usr/bin/env python3
"""What recording costs: CPU time of a request, memory, and stalls while bodies are written.

    cargo build --release -p tollgate-cli
    bench/store.py [--tollgate FILE] [--secs 8] [--rounds 3] [--only cpu,memory,stalls] [--markdown FILE]

Needs nginx (the origin), wrk (the load) and Linux. The proxy runs as `--mode reverse:http://…`, once with `--store off`
and once with `--store disk`, in turn. CPU time is that of the proxy's whole process, its store's thread included, from
/proc. Nothing here passes or fails: on a busy machine the numbers are larger, and the pairs still compare.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
TICKS = os.sysconf("SC_CLK_TCK")
CONNECTIONS = 24
DIFFERENT = 1000
LARGE = 1 << 20
GIB = 1 << 30


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(port, process):
    for _ in range(1000):
        if process.poll() is not None:
            sys.exit(f"{process.args[0]} ended with {process.returncode}")
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.01)
    sys.exit(f"nothing listens on port {port}")


def text(n, size):
    """JSON of so many bytes, different for each number."""
    numbers = random.Random(n)
    out = json.dumps({"id": n, "name": f"item{n}", "values": []})[:-2]
    while len(out) < size - 12:
        out += f"{numbers.randrange(1000)},"
    return (out + "0]}").ljust(size)[:size]


class Origin:
    """nginx with bodies of 1 KiB and of 1 MiB."""

    def __init__(self, folder):
        self.port = free_port()
        root = os.path.join(folder, "www")
        os.makedirs(root)
        # nginx's workers may be another user.
        os.chmod(folder, 0o755)
        for n in range(DIFFERENT):
            with open(os.path.join(root, f"{n}.json"), "w", encoding="ascii") as file:
                file.write(text(n, 1024))
        for n in range(16):
            with open(os.path.join(root, f"large{n}"), "wb") as file:
                file.write(random.Random(n).randbytes(LARGE))
        conf = os.path.join(folder, "nginx.conf")
        with open(conf, "w", encoding="ascii") as file:
            file.write(
                f"daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.log;\n"
                "events { worker_connections 1024; }\n"
                "http { access_log off; keepalive_requests 1000000000; sendfile on; open_file_cache max=2000;\n"
                "types { application/json json; } default_type application/octet-stream;\n"
                f"client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;\n"
                f"uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;\n"
                f"server {{ listen 127.0.0.1:{self.port}; root {root}; }} }}\n"
            )
        self.process = subprocess.Popen(["nginx", "-c", conf], stderr=subprocess.DEVNULL)
        wait_for(self.port, self.process)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


class Proxy:
    """Tollgate in front of the origin, with its store or without."""

    def __init__(self, tollgate, origin, store):
        self.folder = tempfile.mkdtemp(prefix="tollgate-bench-")
        self.port = free_port()
        command = [tollgate, "-q", "--mode", f"reverse:http://127.0.0.1:{origin.port}@127.0.0.1:{self.port}"]
        command += ["--data-dir", os.path.join(self.folder, "data"), "--store", store]
        if store == "disk":
            command += ["--store-dir", os.path.join(self.folder, "flows"), "--store-max-size", "8g"]
        self.process = subprocess.Popen(command)
        wait_for(self.port, self.process)

    def cpu(self):
        """Seconds of CPU time that the process has taken."""
        with open(f"/proc/{self.process.pid}/stat", encoding="ascii") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def resident(self):
        """MiB of memory."""
        with open(f"/proc/{self.process.pid}/status", encoding="ascii") as file:
            return int(re.search(r"VmRSS:\s+(\d+)", file.read())[1]) / 1024

    def rest(self):
        """Waits until what was recorded is written: until it takes no more CPU time."""
        before, quiet = self.cpu(), 0
        while quiet < 5:
            time.sleep(0.1)
            now = self.cpu()
            quiet = quiet + 1 if now - before < 0.015 else 0
            before = now

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def wrk(port, seconds, path, script=None):
    """Loads the port; answers how many requests were answered."""
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s"]
    if script:
        command += ["-s", script]
    said = subprocess.run(
        [*command, f"http://127.0.0.1:{port}{path}"], stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    bad = re.search(r"Non-2xx.*|Socket errors.*", said)
    if bad:
        print(f"  wrk says: {bad[0]}", file=sys.stderr)
    return int(re.search(r"(\d+) requests in", said)[1])


def cpu(options, origin, folder):
    """Microseconds of CPU time for each request, without and with a store, for one body and for many."""
    script = os.path.join(folder, "different.lua")
    with open(script, "w", encoding="ascii") as file:
        file.write(
            "local n = 0\nfunction request() n = (n + 1) % " + str(DIFFERENT) + "\n"
            'return wrk.format("GET", "/" .. n .. ".json") end\n'
        )
    for what, lua in [("one response of 1 KiB", None), ("1000 responses of 1 KiB, JSON", script)]:
        seen = {"off": [], "disk": []}
        for _ in range(options.rounds):
            for store, all_of in seen.items():
                proxy = Proxy(options.tollgate, origin, store)
                wrk(proxy.port, 1, "/1.json", lua)
                proxy.rest()
                before = proxy.cpu()
                requests = wrk(proxy.port, options.secs, "/1.json", lua)
                proxy.rest()
                all_of.append((proxy.cpu() - before) / requests * 1e6)
                proxy.stop()
        off, disk = (statistics.median(all_of) for all_of in seen.values())
        rounds = " ".join(f"{a:.1f}/{b:.1f}" for a, b in zip(seen["off"], seen["disk"]))
        yield (
            f"CPU of a request, {CONNECTIONS} connections, {what}",
            f"{off:.1f} µs off, {disk:.1f} µs on: {disk / off:.2f} × ({rounds})",
        )


def memory(options, origin, _folder):
    """What is resident after 100 000 requests."""
    proxy = Proxy(options.tollgate, origin, "disk")
    requests = 0
    while requests < 100_000:
        requests += wrk(proxy.port, 1, "/1.json")
    proxy.rest()
    yield f"memory after {requests} recorded requests", f"{proxy.resident():.1f} MiB"
    proxy.stop()


def fetch(connection, path, buffer):
    """One request over a connection that is kept."""
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())
    got = connection.recv_into(buffer)
    head = bytes(buffer[:got])
    end = head.index(b"\r\n\r\n") + 4
    left = int(re.search(rb"content-length: (\d+)", head, re.I)[1]) - (got - end)
    while left > 0:
        got = connection.recv_into(buffer, min(left, len(buffer)))
        if got == 0:
            sys.exit("the proxy closed the connection")
        left -= got


def download(port, megabytes, pace):
    """Fetches bodies of 1 MiB, at most so many a second. A process of its own."""
    connection = socket.create_connection(("127.0.0.1", port))
    buffer = bytearray(1 << 18)
    begin = time.perf_counter()
    for n in range(megabytes):
        fetch(connection, f"/large{n % 16}", buffer)
        time.sleep(max(0, begin + n / pace - time.perf_counter()))


def stalls(options, origin, _folder):
    """Latencies of small requests while 1 GiB of bodies passes."""
    for store in ("off", "disk"):
        proxy = Proxy(options.tollgate, origin, store)
        command = [sys.executable, __file__, "--download", str(proxy.port), "--pace", str(options.pace)]
        bodies = subprocess.Popen(command)
        latencies = []
        connection = socket.create_connection(("127.0.0.1", proxy.port))
        buffer = bytearray(1 << 14)
        while bodies.poll() is None:
            begin = time.perf_counter()
            fetch(connection, "/1.json", buffer)
            latencies.append((time.perf_counter() - begin) * 1e3)
            time.sleep(0.001)
        latencies.sort()
        at = lambda share: latencies[min(len(latencies) - 1, int(len(latencies) * share))]
        over = sum(latency > 5 for latency in latencies)
        yield (
            f"small requests while 1 GiB of bodies passes, store {'on' if store == 'disk' else store}",
            f"{len(latencies)} requests: p50 {at(0.5):.2f} ms, p99 {at(0.99):.2f}, p99.9 {at(0.999):.2f}, "
            f"max {latencies[-1]:.2f}; {over} over 5 ms",
        )
        proxy.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tollgate", default=os.path.join(HERE, "../target/release/tollgate"))
    parser.add_argument("--secs", type=int, default=8, help="how long each load runs")
    parser.add_argument("--rounds", type=int, default=3, help="how often; the median counts")
    parser.add_argument("--only", default="cpu,memory,stalls", help="what is measured")
    parser.add_argument("--pace", type=int, default=100, help="MiB of bodies a second")
    parser.add_argument("--markdown", help="a file for the table")
    parser.add_argument("--download", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.download:
        return download(options.download, GIB // LARGE, options.pace)
    folder = tempfile.mkdtemp(prefix="tollgate-bench-")
    origin = Origin(folder)
    rows = []
    try:
        for name in options.only.split(","):
            for row in {"cpu": cpu, "memory": memory, "stalls": stalls}[name](options, origin, folder):
                print(f"{row[0]}: {row[1]}", flush=True)
                rows.append(row)
    finally:
        origin.stop()
        shutil.rmtree(folder, ignore_errors=True)
    if options.markdown:
        with open(options.markdown, "w", encoding="utf-8") as file:
            file.write("| what | measured |\n|---|---|\n")
            file.writelines(f"| {what} | {value} |\n" for what, value in rows)


if __name__ == "__main__":
    main()
