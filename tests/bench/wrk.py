#!/usr/bin/env python3
"""Measures the system with wrk, a load generator that is not its own (Debian's package wrk).

Each FOLDER holds built programs: coupon-api, coupon-worker, couponctl. With several, each round measures one after
the other, so that what changes on the machine meets all of them alike.

    tests/bench/wrk.py accept target/release            accepted per second over a bare handler; and while a worker drains
    tests/bench/wrk.py queued target/release            acceptance by second, with a million queued, and Redis's time for each
    tests/bench/wrk.py traces target/release            the first folder's API with traces off and on, and other folders',
                                                        all running side by side and loaded in short turns

Figures are printed as text; --json FILE keeps them all. All data is in a temporary folder and is deleted at the end.
"""

import argparse
import contextlib
import http.server
import itertools
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

HERE = Path(__file__).parent
READY_MAX_SECONDS = 60
DRAINED_MAX_SECONDS = 600
UNITS = 10_000_000
PREFIXES = (f"w{number}-" for number in itertools.count(1))


class Program:
    """A child process that says on one of its streams where it serves (`ready`, or nobody waits for it)."""

    def __init__(self, command, ready, log, **options):
        self.log = Path(log)
        with open(self.log, "wb") as out:
            self.child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, **options)
        if ready is None:
            return
        until = time.monotonic() + READY_MAX_SECONDS
        while not (found := re.search(ready, self.log.read_text())):
            if self.child.poll() is not None or time.monotonic() > until:
                self.kill()
                sys.exit(f"{command[0]} does not start:\n{self.log.read_text()}")
            time.sleep(0.05)
        self.said = found.groupdict()

    def stop(self):
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
            self.child.wait(60)

    def kill(self):
        self.child.kill()
        self.child.wait(60)


class System:
    """Fresh servers, and the programs of a folder on them."""

    def __init__(self, programs, folder, api_flags=(), api_env=None):
        self.programs, self.folder, self.stack = Path(programs), Path(folder), contextlib.ExitStack()
        # It starts the two servers. Its own API is not asked, and audits nothing.
        dev = self.start(
            [self.programs / "couponctl", "dev", "--fresh", "--workers", "0", "--audit-every", "0", "--open",
             "--listen", "127.0.0.1:0", "--data-dir", self.folder / "data"],
            r"Redis +(?P<redis>redis:\S+)\s+MongoDB +(?P<mongodb>mongodb:\S+)[\s\S]*serving the API", "dev")
        self.backing = ["--redis-url", dev.said["redis"], "--mongodb-uri", dev.said["mongodb"]]
        self.redis_pid = child_of(dev.child.pid, "redis-server", "valkey-server")
        self.api = api = self.start(
            [self.programs / "coupon-api", "--open", "--listen", "127.0.0.1:0", "--require-registered-users", "false",
             *self.backing, *api_flags], r"listen=\S*?(?P<port>\d+)\s", "api", env=os.environ | (api_env or {}))
        self.url = f"http://127.0.0.1:{api.said['port']}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stack.close()

    def start(self, command, ready, name, **options):
        program = Program([str(part) for part in command], ready, self.folder / f"{name}.log", **options)
        self.stack.callback(program.stop)
        return program

    def worker(self):
        command = [self.programs / "coupon-worker", "--metrics-listen", "127.0.0.1:0", *self.backing]
        return self.start(command, "the worker drains", "worker")

    def bare(self):
        command = [self.programs / "couponctl", "bench", "--serve-bare"]
        return self.start(command, r"127.0.0.1:(?P<port>\d+)", "bare")

    def post(self, path, body):
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            sys.exit(f"{path}: {error}: {error.read().decode()}")

    def coupon(self):
        body = {"name": "wrk", "total": UNITS, "startsAt": "2020-01-01T00:00:00Z", "endsAt": "2090-01-01T00:00:00Z"}
        return self.post("/coupons", body)["id"]

    def figure(self, name):
        """The sum of a metric's samples in the API process."""
        with urllib.request.urlopen(self.url + "/metrics", timeout=30) as answer:
            text = answer.read().decode()
        samples = re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.M)
        return sum(map(float, samples))

    def asks_redis(self):
        """A connection to Redis: sends a command, and returns its answer."""
        redis = socket.create_connection(re.search(r"//(.*):(\d+)", self.backing[1]).groups(), 30)
        answers = redis.makefile("rb")
        self.stack.callback(redis.close)

        def read():
            kind, rest = (line := answers.readline())[:1], line[1:-2].decode()
            if kind == b"-":
                sys.exit(f"Redis answers: {rest}")
            if kind == b"*":
                return [read() for _ in range(int(rest))]
            return answers.read(int(rest) + 2)[:-2].decode() if kind == b"$" and rest != "-1" else rest

        def call(*words):
            redis.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words))
            return read()

        return call

    def counter(self, name):
        """Reads one of Redis's counters of the partition, over a connection of its own: accepted, settled."""
        call = self.asks_redis()
        [key] = [key for key in call(b"KEYS", b"coupon:*:counters") if re.fullmatch(r"coupon:\S+:counters", key)]
        return lambda: max(0, int(call(b"HGET", key.encode(), name.encode())))

    def script_micros(self):
        """Reads how long Redis has run scripts, in microseconds."""
        call = self.asks_redis()
        return lambda: int(re.search(r"cmdstat_evalsha:calls=\d+,usec=(\d+)", call(b"INFO", b"commandstats"))[1])

    def drained(self):
        until = time.monotonic() + DRAINED_MAX_SECONDS
        while self.figure("coupon_backlog_issuances"):
            if time.monotonic() > until:
                sys.exit(f"the queue is not drained after {DRAINED_MAX_SECONDS} s")
            time.sleep(0.5)


def child_of(parent, *names):
    """The process with one of these names that this one started."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, started_by = re.match(r"\d+ \((.*)\) \S (\d+)", stat.read_text()).groups()
            if name in names and int(started_by) == parent:
                return int(stat.parent.name)
    sys.exit(f"process {parent} has started none of {names}")


def processor_seconds(pid):
    """What a process has used so far, in its own code and in the kernel."""
    own, kernel = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
    return (int(own) + int(kernel)) / os.sysconf("SC_CLK_TCK")


def wrk(url, coupon, connections, seconds, prefix=None, *path_and_field):
    return ["wrk", "--latency", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s",
            "-s", str(HERE / "user_each.lua"), url, "--", coupon, prefix or next(PREFIXES), *path_and_field]


def figures_of(command):
    """Runs wrk to its end: what user_each.lua counted."""
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"^FIGURES (.*)$", ran.stdout, re.MULTILINE)
    if ran.returncode or not found:
        sys.exit(f"wrk failed:\n{ran.stdout}{ran.stderr}")
    return json.loads(found.group(1))


def load(url, coupon, connections, seconds, **pids):
    """Asks for a coupon as fast as it is answered. The figures of wrk, those a second, and the processor time a request
    of wrk and of these processes."""
    before, waited = {name: processor_seconds(pid) for name, pid in pids.items()}, os.times()
    figures = figures_of(wrk(url, coupon, connections, seconds))
    if figures["broken"]:
        sys.exit(f"{figures['broken']} requests broke: {figures}")
    used = {name: processor_seconds(pid) - before[name] for name, pid in pids.items()}
    times = os.times()
    used["wrk"] = times.children_user + times.children_system - waited.children_user - waited.children_system
    return figures | {
        "perSecond": (figures["requests"] - figures["refused"]) / figures["seconds"],
        "processorMicros": {name: seconds * 1e6 / figures["requests"] for name, seconds in used.items()},
    }


def accept(programs, arguments, folder):
    """One round: the bare handler, the API alone, and the API while a worker drains what is queued until then."""
    figures = {}
    with System(programs, folder) as system:
        coupon = system.coupon()
        for connections in arguments.connections:
            bare = system.bare()
            url = f"http://127.0.0.1:{bare.said['port']}"
            found = {"bare": load(url, coupon, connections, arguments.seconds, handler=bare.child.pid)}
            bare.stop()
            load(system.url, coupon, connections, 1)
            pids = {"api": system.api.child.pid, "redis": system.redis_pid}
            found["accepted"] = load(system.url, coupon, connections, arguments.seconds, **pids)
            worker, settled = system.worker(), system.counter("settled")
            before = settled()
            found["draining"] = load(system.url, coupon, connections, arguments.seconds)
            found["drainedPerSecond"] = (settled() - before) / found["draining"]["seconds"]
            system.drained()
            worker.stop()
            found["ratio"] = found["accepted"]["perSecond"] / found["bare"]["perSecond"]
            found["drainingRatio"] = found["draining"]["perSecond"] / found["accepted"]["perSecond"]
            figures[connections] = found
    return figures


def spread(rounds, shape=",.2f"):
    """A figure of several rounds: the smallest, the median and the largest."""
    values = list(rounds)
    return "  ".join(f"{value:{shape}}" for value in (min(values), statistics.median(values), max(values)))


def show_accept(name, rounds):
    for connections in rounds[0]:
        of = [figures[connections] for figures in rounds]
        for title, read in [
            ("bare/s", lambda one: one["bare"]["perSecond"]),
            ("accepted/s", lambda one: one["accepted"]["perSecond"]),
            ("accepted over bare", lambda one: one["ratio"]),
            ("accept p99 ms", lambda one: one["accepted"]["p99Ms"]),
            ("while a worker drains/s", lambda one: one["draining"]["perSecond"]),
            ("that over accepted", lambda one: one["drainingRatio"]),
            ("p99 ms then", lambda one: one["draining"]["p99Ms"]),
            ("drained/s then", lambda one: one["drainedPerSecond"]),
            ("handler: processor µs", lambda one: one["bare"]["processorMicros"]["handler"]),
            ("wrk then: processor µs", lambda one: one["bare"]["processorMicros"]["wrk"]),
            ("API: processor µs", lambda one: one["accepted"]["processorMicros"]["api"]),
            ("Redis: processor µs", lambda one: one["accepted"]["processorMicros"]["redis"]),
            ("wrk: processor µs", lambda one: one["accepted"]["processorMicros"]["wrk"]),
        ]:
            print(f"{name}  {connections:>5} connections  {title:<24} {spread(map(read, of))}")


def queued(programs, arguments, folder):
    """Fills the queue, and asks on for a while. Accepted by second, as Redis counts; nobody drains."""
    connections = arguments.connections[-1]
    with System(programs, folder, ["--backlog-max", str(UNITS)]) as system:
        coupon, accepted = system.coupon(), system.counter("accepted")
        while accepted() < arguments.in_flight:
            load(system.url, coupon, connections, 5)
        generator = subprocess.Popen(wrk(system.url, coupon, connections, arguments.seconds + 3), stdout=subprocess.DEVNULL)
        system.stack.callback(generator.wait)
        time.sleep(1)
        script_micros, rates, micros = system.script_micros(), [], []
        before, began = (accepted(), script_micros()), time.monotonic()
        for second in range(1, arguments.seconds + 1):
            time.sleep(max(0, began + second - time.monotonic()))
            now = accepted(), script_micros()
            rates.append(now[0] - before[0])
            micros.append((now[1] - before[1]) / max(1, rates[-1]))
            before = now
    median = statistics.median(rates)
    return {"inFlight": arguments.in_flight, "bySecond": rates, "redisMicrosBySecond": micros, "median": median,
            "slowestOverMedian": min(rates) / median}


def show_queued(name, rounds):
    for figures in rounds:
        micros = figures["redisMicrosBySecond"]
        slowest = min(range(len(micros)), key=figures["bySecond"].__getitem__)
        print(f"{name}  {figures['inFlight']:,} queued  accepted a second: median {figures['median']:,.0f}, slowest "
              f"{figures['bySecond'][slowest]:,} ({figures['slowestOverMedian']:.2f} of it)  Redis's scripts, µs an "
              f"accepted request: median {statistics.median(micros):.1f}, in that second {micros[slowest]:.1f}")


class Collector(http.server.BaseHTTPRequestHandler):
    """Takes traces (OTLP), and throws them away."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.server.taken += len(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def traces(arguments):
    """APIs of several builds side by side, loaded in turn; nobody drains."""
    collector = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    collector.taken = 0
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{collector.server_port}"
    first, *others = arguments.programs
    builds = [(str(first), first, {}), (f"{first}, traced", first, {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint})]
    builds += [(str(programs), programs, {}) for programs in others]
    found = {}
    with contextlib.ExitStack() as stack:
        systems = {}
        for name, programs, env in builds:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="coupon-wrk-"))
            system = stack.enter_context(System(programs, folder, ["--backlog-max", str(UNITS)], env))
            systems[name] = system, system.coupon()
        for connections in arguments.connections:
            found[connections] = {name: [] for name in systems}
            for number in range(arguments.rounds + 1):
                for name, (system, coupon) in list(systems.items())[:: 1 if number % 2 == 0 else -1]:
                    pids = {"api": system.api.child.pid, "redis": system.redis_pid}
                    figures = load(system.url, coupon, connections, arguments.seconds, **pids)
                    if number:  # The first round warms up.
                        found[connections][name].append(figures)
    if not collector.taken:
        sys.exit("no spans have arrived")
    return found


def show_traces(found):
    for connections, builds in found.items():
        first, *_ = builds.values()
        for name, of in builds.items():
            for title, read in [
                ("accepted/s", lambda one: one["perSecond"]),
                ("API: processor µs", lambda one: one["processorMicros"]["api"]),
                ("Redis: processor µs", lambda one: one["processorMicros"]["redis"]),
            ]:
                shown = spread(map(read, of))
                ratios = spread((read(one) / read(beside) for one, beside in zip(of, first)), ".3f")
                print(f"{name}  {connections:>5} connections  {title:<20} {shown}   over the first: {ratios}")


def plot(figures):
    """An SVG of accepted requests by second, and of how long Redis's scripts ran for each."""
    rates, micros = figures["bySecond"], figures["redisMicrosBySecond"]
    width, height, left, right, top = 660, 240, 60, 40, 20
    across = [left + width * place / (len(rates) - 1) for place in range(len(rates))]
    text = '<text x="{:.0f}" y="{:.0f}" font-family="sans-serif" font-size="12" fill="{}" text-anchor="{}">{}</text>'
    grey, shown = "#777", []
    for values, colour, x, anchor, shape, title in [
        (rates, "#1a6fb0", left - 6, "end", ",.0f", f"accepted a second, with {figures['inFlight']:,} queued before"),
        (micros, "#b0531a", left + width + 6, "start", ".0f", "µs of Redis's scripts for each"),
    ]:
        highest = max(values) * 1.1
        line = " ".join(f"{at:.1f},{top + height * (1 - value / highest):.1f}" for at, value in zip(across, values))
        shown.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        shown += [text.format(x, top + height * (1 - share) + 4, colour, anchor, f"{highest * share:{shape}}")
                  for share in (0, 0.5, 1)]
        at, anchor = (left, "start") if values is rates else (left + width, "end")
        shown.append(text.format(at, 12, colour, anchor, title))
    shown += [text.format(across[second - 1], top + height + 18, grey, "middle", f"{second} s")
              for second in (1, len(rates) // 2, len(rates))]
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + right} {top + height + 26}">'
            + "".join(shown) + f'<path d="M{left} {top}V{top + height}H{left + width}V{top}" fill="none" stroke="{grey}"/>'
            "</svg>\n")


MEASURES = {"accept": (accept, show_accept), "queued": (queued, show_queued)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measure", choices=[*MEASURES, "traces"])
    parser.add_argument("programs", nargs="+", metavar="FOLDER", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, help="of each run of wrk (default: accept 6, queued 60, traces 3)")
    parser.add_argument("--connections", type=int, nargs="+", default=[64, 1024])
    parser.add_argument("--in-flight", type=int, default=1_000_000, metavar="NUMBER", help="issuances that are queued first")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="a plot of queued: the last round of the last folder")
    arguments = parser.parse_args()
    arguments.seconds = arguments.seconds or {"accept": 6, "queued": 60, "traces": 3}[arguments.measure]
    if arguments.measure == "traces":
        found = traces(arguments)
        show_traces(found)
        if arguments.json:
            arguments.json.write_text(json.dumps({"cores": os.cpu_count(), "measure": "traces", "rounds": found}))
        return
    measure, show = MEASURES[arguments.measure]
    rounds = {str(programs): [] for programs in arguments.programs}
    for number in range(arguments.rounds):
        # The order changes, so that none is always the first.
        for programs in list(rounds)[:: 1 if number % 2 == 0 else -1]:
            with tempfile.TemporaryDirectory(prefix="coupon-wrk-") as folder:
                rounds[programs].append(measure(programs, arguments, folder))
            print(f"round {number + 1} of {arguments.rounds}: {programs}", file=sys.stderr)
    for programs, of in rounds.items():
        show(programs, of)
    if arguments.svg:
        arguments.svg.write_text(plot(of[-1]))
    if arguments.json:
        arguments.json.write_text(json.dumps({"cores": os.cpu_count(), "measure": arguments.measure, "rounds": rounds}))


if __name__ == "__main__":
    main()
