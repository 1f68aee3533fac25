"""Replaces the two APIs of the Compose file behind its proxy, one after the other, while clients send requests.

Usage: upgrade.py COMPOSE_FILE PROGRAMS REDIS_URL MONGODB_URI

The containers' commands run as processes of this machine, with the variables of their services. What differs: they
listen on free ports of the loopback address, which the proxy is told; Redis and MongoDB are those that are named, without
passwords; a container that is replaced keeps its address. API and worker send traces to a collector that .env would name.
"""

import asyncio
import csv
import http.server
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

import yaml
from load import COUPON, Clients

COMPOSE_FILE, PROGRAMS, REDIS_URL, MONGODB_URI = sys.argv[1:]
# How late the proxy must notice at least: the API has to bear this.
NOTICED_AFTER_SECONDS_MIN = 2
READY_MAX_SECONDS = 60
# On either side of the upgrade.
CALM_SECONDS = 3
# The proxy's socket, in the folder of this run.
FIGURES = "haproxy.sock"


def interpolated(text, variables):
    """A value of the Compose file: ${NAME}, ${NAME:-default}, ${NAME:+other}, ${NAME:?error}, and $$."""

    def value(found):
        if found[0] == "$$":
            return "$"
        name, operator, rest = found["name"], found["operator"], found["rest"]
        given = variables.get(name, "")
        if operator == ":-":
            return given or rest
        if operator == ":+":
            return interpolated(rest, variables) if given else ""
        if operator == ":?":
            assert given, f"{name}: {rest}"
        return given

    # One value may be within another.
    rest = r"(?P<rest>(?:[^{}]|\$\{[^}]*\})*)"
    pattern = r"\$\$|\$\{(?P<name>\w+)(?P<operator>:[-+?])?" + rest + r"\}"
    return re.sub(pattern, value, text)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Service:
    """A service of the Compose file, as a process of this machine."""

    def __init__(self, name, command, variables, port, folder):
        self.name, self.command, self.variables, self.port = name, command, variables, port
        self.log_path = folder / f"{name}.log"
        self.process = None

    def start(self):
        with self.log_path.open("a") as log:
            self.process = subprocess.Popen(self.command, env=self.variables, stdout=log, stderr=log)

    def log(self):
        return self.log_path.read_text()

    def fail(self, why):
        raise SystemExit(f"{self.name}: {why}\n{self.log()[-4000:]}")

    async def ready(self):
        """What `docker compose up --wait` waits for: the container's health check."""
        start = time.monotonic()
        while time.monotonic() - start < READY_MAX_SECONDS:
            if self.process.poll() is not None:
                self.fail(f"ended with {self.process.returncode}")
            status = await asyncio.to_thread(get_status, f"http://127.0.0.1:{self.port}/readyz")
            if status == 200:
                return
            await asyncio.sleep(0.1)
        self.fail(f"is not ready within {READY_MAX_SECONDS} s")

    async def stop(self, grace_seconds):
        self.process.send_signal(signal.SIGTERM)
        try:
            status = await asyncio.to_thread(self.process.wait, grace_seconds)
        except subprocess.TimeoutExpired:
            self.fail(f"did not end within the {grace_seconds} s that Compose gives it")
        if status != 0:
            self.fail(f"ended with {status}")


def get_status(url):
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return None


class Collector(http.server.ThreadingHTTPServer):
    """Takes traces, and remembers which services sent some."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            spans = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/v1/traces":
                self.server.senders |= {name for name in ["coupon-api", "coupon-worker"] if name.encode() in spans}
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    def __init__(self):
        super().__init__(("127.0.0.1", 0), self.Handler)
        self.senders = set()
        threading.Thread(target=self.serve_forever, daemon=True).start()


def services(folder, collector):
    compose = yaml.safe_load(pathlib.Path(COMPOSE_FILE).read_text())
    given = {
        "REDIS_PASSWORD": "x",
        "MONGO_APP_PASSWORD": "x",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}",
    }
    ports = {name: free_port() for name in ["api", "api-2", "proxy", "worker"]}

    def environment(name):
        declared = compose["services"][name]["environment"]
        # A variable without a value is one of .env.
        of_env = {key: given[key] for key, value in declared.items() if value is None and key in given}
        return of_env | {
            key: interpolated(str(value), given) for key, value in declared.items() if value is not None
        }

    path = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    apis = []
    for name in ["api", "api-2"]:
        variables = environment(name)
        assert variables["COUPON_LISTEN"] == "0.0.0.0:3000", variables
        variables |= {
            "COUPON_LISTEN": f"127.0.0.1:{ports[name]}",
            "COUPON_REDIS_URL": REDIS_URL,
            "COUPON_MONGODB_URI": MONGODB_URI,
            "COUPON_TRUSTED_PROXIES": "127.0.0.1",
        }
        apis.append(Service(name, compose["services"][name]["command"], path | variables, ports[name], folder))
    variables = environment("worker")
    assert variables["COUPON_METRICS_LISTEN"] == "0.0.0.0:9464", variables
    variables |= {
        "COUPON_METRICS_LISTEN": f"127.0.0.1:{ports['worker']}",
        "COUPON_REDIS_URL": REDIS_URL,
        "COUPON_MONGODB_URI": MONGODB_URI,
    }
    worker = Service("worker", compose["services"]["worker"]["command"], path | variables, ports["worker"], folder)
    variables = environment("proxy")
    assert (variables["API_1"], variables["API_2"]) == ("api:3000", "api-2:3000"), variables
    variables |= {
        "LISTEN": f"127.0.0.1:{ports['proxy']}",
        "API_1": f"127.0.0.1:{ports['api']}",
        "API_2": f"127.0.0.1:{ports['api-2']}",
    }
    # Beside the Compose file's: where this test asks for its figures.
    figures = folder / "figures.cfg"
    figures.write_text(f"global\n    stats socket {folder / FIGURES} level user\n")
    command = ["haproxy", "-W", "-db", "-f", "deploy/haproxy.cfg", "-f", figures]
    proxy = Service("proxy", command, path | variables, ports["proxy"], folder)
    grace = int(compose["services"]["api"]["stop_grace_period"].removesuffix("s"))
    return apis, proxy, worker, grace


async def noticed_after(proxy, api, asked):
    """Seconds from SIGTERM until the proxy said that the API is down."""
    line = f"Server ready/{api.name} is DOWN"
    before = proxy.log().count(line)
    while proxy.log().count(line) == before:
        await asyncio.sleep(0.02)
    return time.monotonic() - asked


async def trouble_with_apis(folder):
    """What the proxy met with the APIs and hid from clients, or did not: connections refused, answers broken off, and
    requests that it sent again."""
    reader, writer = await asyncio.open_unix_connection(folder / FIGURES)
    writer.write(b"show stat\n")
    table = (await reader.read()).decode().removeprefix("# ")
    writer.close()
    servers = [row for row in csv.DictReader(table.splitlines()) if row["svname"].startswith("api")]
    assert len(servers) == 4, table
    names = ["econ", "eresp", "wretr", "wredis"]
    return {name: total for name in names if (total := sum(int(server[name] or 0) for server in servers))}


async def upgrade(apis, proxy, grace):
    for api in apis:
        asked = time.monotonic()
        watch = asyncio.create_task(noticed_after(proxy, api, asked))
        await api.stop(grace)
        ended = time.monotonic() - asked
        noticed = await asyncio.wait_for(watch, READY_MAX_SECONDS)
        print(f"{api.name}: the proxy noticed {noticed:.1f} s after SIGTERM, the API ended after {ended:.1f} s")
        assert noticed >= NOTICED_AFTER_SECONDS_MIN, noticed
        assert ended > noticed, "the API ended while the proxy still sent it requests"
        api.start()
        await api.ready()
        print(f"{api.name}: its successor is ready")


def ctl(folder, *words):
    variables = {"COUPON_REDIS_URL": REDIS_URL, "COUPON_MONGODB_URI": MONGODB_URI}
    run = subprocess.run([folder / "bin/couponctl", *words], env=variables, capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(f"couponctl {' '.join(words)}: {run.returncode}\n{run.stdout}{run.stderr}")
    return run.stdout


async def run(folder):
    (folder / "bin").mkdir()
    for program in ["coupon-api", "coupon-worker", "couponctl"]:
        (folder / "bin" / program).symlink_to(pathlib.Path(PROGRAMS).resolve() / program)
    key = ctl(folder, "key", "create", "--name", "test", "--role", "operator").strip()
    collector = Collector()
    apis, proxy, worker, grace = services(folder, collector)
    everything = [*apis, proxy, worker]
    try:
        for service in everything:
            service.start()
        for service in everything:
            await service.ready()
        clients = Clients(proxy.port, key)
        await clients.prepare()
        stop = asyncio.Event()
        load = asyncio.create_task(clients.load(stop))
        await asyncio.sleep(CALM_SECONDS)
        await upgrade(apis, proxy, grace)
        await asyncio.sleep(CALM_SECONDS)
        stop.set()
        await load
        # A proxy that may send a request again, to the other API, hides that the first did not serve on.
        if trouble := await trouble_with_apis(folder):
            proxy.fail(f"the proxy had trouble with APIs that were replaced: {trouble}")
        if not clients.are_content():
            proxy.fail("requests failed")
        issued = 0
        start = time.monotonic()
        while issued < clients.sent and time.monotonic() - start < READY_MAX_SECONDS:
            audit = json.loads(ctl(folder, "audit", "--full", "--json"))
            issued = sum(coupon["issued"] for coupon in audit["coupons"] if coupon["coupon"] == COUPON)
            await asyncio.sleep(0.2)
    finally:
        for service in everything:
            if service.process and service.process.poll() is None:
                service.process.send_signal(signal.SIGTERM)
        for service in everything:
            if service.process:
                service.process.wait()
    assert issued == clients.sent, (issued, clients.sent)
    assert collector.senders == {"coupon-api", "coupon-worker"}, collector.senders
    print(f"{issued} coupons are issued, and a full audit finds nothing")


def main():
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(pathlib.Path(folder)))


main()
