"""Starts the programs of an unpacked Debian package with the settings of their units, and has them issue coupons.

Usage: services.py ROOT REDIS_URL MONGODB_URI

Each program runs with the command and the variables of its unit. Four things differ from a service: the credentials lie
in a temporary folder, the API listens on a free port, systemd does not confine it, and strace writes down the system calls.
Each of those must be one that the unit's SystemCallFilter allows.
"""

import configparser
import json
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

ROOT, REDIS_URL, MONGODB_URI = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
READY_MAX_SECONDS = 60
ISSUED = 50


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def sections(path):
    """Each setting of a unit with all its values, in their order."""

    class Lines(dict):
        def __setitem__(self, key, value):
            # configparser sets each value as a list, and then joins it.
            if isinstance(value, list) and key in self:
                self[key].extend(value)
            else:
                super().__setitem__(key, value)

    parser = configparser.RawConfigParser(strict=False, dict_type=Lines, empty_lines_in_values=False)
    parser.optionxform = str
    parser.read(path)
    return {name: {key: value.split("\n") for key, value in parser.items(name)} for name in parser.sections()}


def allowed_calls(filters):
    """The names of the system calls that these lines of SystemCallFilter allow."""

    def members(name):
        if not name.startswith("@"):
            return {name}
        lines = subprocess.check_output(["systemd-analyze", "syscall-filter", name], text=True).splitlines()
        found = set()
        for line in lines[1:]:
            word = line.strip()
            if word and not word.startswith("#"):
                found |= members(word)
        return found

    allowed = set()
    for line in filters:
        is_denied = line.startswith("~")
        for name in line.removeprefix("~").split():
            allowed = allowed - members(name) if is_denied else allowed | members(name)
    # Every filter allows what each process needs to run and to end.
    return allowed | members("@default")


class Service:
    """A unit of the package, as a process of this machine."""

    def __init__(self, unit, instance, folder, more):
        self.name = f"{unit}{instance}"
        self.settings = sections(ROOT / f"usr/lib/systemd/system/{unit}.service")["Service"]
        credentials = folder / "credentials"
        variables = {"PATH": "/usr/bin:/bin"}
        for line in self.settings["Environment"]:
            for assignment in line.split():
                key, value = assignment.split("=", 1)
                variables[key] = value.replace("%d", str(credentials)).replace("%i", instance)
        for line in self.settings["LoadCredential"]:
            name, path = line.split(":")
            assert path == f"/etc/coupon-system/{name}", line
            assert (credentials / name).exists(), line
        self.variables = variables | more
        [self.command] = self.settings["ExecStart"]
        self.log, self.trace = folder / f"{self.name}.log", folder / f"{self.name}.trace"

    def start(self):
        program = ROOT / self.command.lstrip("/")
        traced = ["strace", "-f", "-qq", "-o", self.trace, "-e", "signal=none"]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*traced, program], env=self.variables, stdout=log, stderr=log, cwd="/", start_new_session=True
            )

    def fail(self, why):
        raise SystemExit(f"{self.name}: {why}\n{self.log.read_text()}")

    def wait_until_ready(self, port):
        start = time.monotonic()
        while time.monotonic() - start < READY_MAX_SECONDS:
            if self.process.poll() is not None:
                self.fail(f"ended with {self.process.returncode}")
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
                    return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
        self.fail(f"is not ready within {READY_MAX_SECONDS} s")

    def end(self):
        """Stops it as systemd does, and looks at its system calls."""
        [traced] = pathlib.Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        subprocess.run(["kill", "-TERM", traced], check=True)
        [grace] = self.settings["TimeoutStopSec"]
        start = time.monotonic()
        try:
            status = self.process.wait(timeout=int(grace))
        except subprocess.TimeoutExpired:
            self.fail(f"did not end within {grace} s")
        if status:
            self.fail(f"ended with {status}")
        calls = set(re.findall(r"(?m)^\d+\s+(?:<\.\.\. )?(\w+)(?:\(| resumed)", self.trace.read_text()))
        # What strace does to start the program is not the program's.
        forbidden = calls - allowed_calls(self.settings["SystemCallFilter"])
        if forbidden:
            self.fail(f"its unit forbids these system calls: {sorted(forbidden)}")
        took = time.monotonic() - start
        print(f"{self.name}: ended {took:.1f} s after SIGTERM; the unit allows its {len(calls)} system calls")


def main():
    folder = pathlib.Path(tempfile.mkdtemp())
    services = []
    try:
        (folder / "credentials").mkdir()
        (folder / "credentials/redis-url").write_text(f"{REDIS_URL}\n")
        (folder / "credentials/mongodb-uri").write_text(f"{MONGODB_URI}\n")

        def ctl(*words):
            variables = {"COUPON_REDIS_URL": REDIS_URL, "COUPON_MONGODB_URI": MONGODB_URI}
            return subprocess.check_output([ROOT / "usr/bin/couponctl", *words], env=variables, text=True)

        key = ctl("key", "create", "--name", "test", "--role", "operator").strip()
        port, worker_port = free_port(), free_port()
        listen = {"COUPON_LISTEN": f"127.0.0.1:{port}", "COUPON_REQUIRE_REGISTERED_USERS": "false"}
        api = Service("coupon-api", "", folder, listen)
        worker = Service("coupon-worker@", str(worker_port), folder, {})
        services = [api, worker]
        for service, of in [(api, port), (worker, worker_port)]:
            service.start()
            service.wait_until_ready(of)

        def post(path, body):
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}{path}",
                json.dumps(body).encode(),
                {"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status

        coupon = {"id": "packed", "name": "packed", "total": ISSUED}
        coupon |= {"startsAt": "2020-01-01T00:00:00Z", "endsAt": "2100-01-01T00:00:00Z"}
        assert post("/coupons", coupon) == 201
        for user in range(ISSUED):
            assert post("/user-coupons", {"userId": f"u{user}", "couponId": "packed"}) == 202
        # The worker first: it finishes what it has in hand, and hands the rest back to the next one.
        worker.end()
        worker.start()
        worker.wait_until_ready(worker_port)
        issued, start = 0, time.monotonic()
        while issued < ISSUED and time.monotonic() - start < READY_MAX_SECONDS:
            audited = json.loads(ctl("audit", "--full", "--json"))["coupons"]
            issued = sum(coupon["issued"] for coupon in audited if coupon["coupon"] == "packed")
            time.sleep(0.1)
        assert issued == ISSUED, issued
        print(f"{issued} coupons are issued, and a full audit finds nothing")
        for service in services:
            service.end()
    finally:
        for service in services:
            if hasattr(service, "process") and service.process.poll() is None:
                service.process.send_signal(signal.SIGKILL)
        shutil.rmtree(folder)


main()
