#!/usr/bin/env python3
"""Measures this system beside two public ones that do a similar job, with wrk (Debian's package wrk), in turn.

Nothing of theirs is in this repository. Fetch what was measured; each is used as it is, and only configured:

    git clone https://github.com/pktony/coupon-system && git -C coupon-system checkout e1ab94d00f82b1976a299dd6fea03cb73a489e63
    git clone https://github.com/harsh-aghara/Yoink && git -C Yoink checkout 36b433983abf228d5af61ebb7e8bd0003912cfe4
    cargo build --release
    tests/bench/peers.py --ours target/release --nestjs coupon-system --bullmq Yoink

--nestjs   NestJS, a system of this one's name and routes: a Lua script counts the stock down in Redis, and the same
           request inserts the user's coupon into MongoDB. (MIT)
--bullmq   Express, a flash sale: a Lua script counts the stock down in Redis, BullMQ queues the order there, and a
           worker writes it into PostgreSQL in a transaction that counts the product's stock down too. (MIT by its
           README, ISC by its package.json)

It needs Node 20 with npm, PostgreSQL (Debian's package postgresql) and git. In a folder without node_modules it runs
`npm ci`, and then the project's own build; it downloads nothing else. redis-server and mongod are those of
deploy/fetch-servers.sh. Redis listens on port 6379, which the worker of --bullmq has in its code.

Each system has one process of its API and one of its worker (--nestjs has none, --bullmq has one more for failed
orders), fresh servers in each round, and Redis either as deploy/redis.conf has it (`always`: each write is synced to
the disk before its answer) or with Redis's defaults (`default`: snapshots, the newest a minute old under load).
MongoDB is a replica set of one, PostgreSQL is as its package has it; both sync before they answer.

    accepted/s       requests answered 2xx, a user each, over the time that wrk ran; workers drain meanwhile
    durable/s        records in the database over the time from the first request until the last record was there
    accept p99 ms    of all answers in that time
    processor µs     processor time of all the system's processes and servers for a record; what else runs on the
                     machine hardly changes it
    refused, broken  the share of answers that are not 2xx, and of requests without an answer
    small stock      units that there were; requests answered 2xx; records in the database (those too whose requests
                     were under way when wrk ended, also where the records are more than the accepted)
    asked twice      records in the database of one user who asked for the same coupon twice, and waited in between

Figures are printed as text: the smallest, the median and the largest of the rounds; --json FILE keeps them all. All
data is in temporary folders and is deleted at the end.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

import wrk

REPOSITORY = Path(__file__).parents[2]
COMMITS = {
    "nestjs": "e1ab94d00f82b1976a299dd6fea03cb73a489e63",
    "bullmq": "36b433983abf228d5af61ebb7e8bd0003912cfe4",
}
REDIS_PORT = 6379
REDIS = {
    # What `couponctl dev` gives it, which is deploy/redis.conf without its bound of memory.
    "always": ["--appendonly", "yes", "--appendfsync", "always", "--save", "", "--maxmemory-policy", "noeviction",
               "--auto-aof-rewrite-min-size", "4gb"],
    "default": [],
}
UNITS = 10_000_000
SMALL_STOCK = 500
# More than any system answers in one run: users whom --bullmq must know before they ask.
USERS = 300_000
WARM_UP_SECONDS = 3
SMALL_STOCK_SECONDS = 3
# Nothing is under way any more when the database has got no record for so long.
QUIET_SECONDS = 4
COUNT_EVERY_SECONDS = 0.25
DRAINED_MAX_SECONDS = 900
READY_MAX_SECONDS = 60


def processor_seconds():
    """What all processes that this one has started, and theirs, have used so far, in the kernel too."""
    parents, used = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rsplit(")", 1)[1].split()
            parents[int(stat.parent.name)] = int(fields[1])
            used[int(stat.parent.name)] = sum(map(int, fields[11:15]))
    total = 0
    for process, ticks in used.items():
        above = parents[process]
        while above in parents and above != os.getpid():
            above = parents[above]
        total += ticks if above == os.getpid() else 0
    return total / os.sysconf("SC_CLK_TCK")


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def wait_for(port):
    until = time.monotonic() + READY_MAX_SECONDS
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        if time.monotonic() > until:
            sys.exit(f"nothing listens on port {port}")
        time.sleep(0.05)


class Mongo:
    """As much of MongoDB's protocol as it takes to make a replica set and to count."""

    def __init__(self, port):
        self.connection = socket.create_connection(("127.0.0.1", port), 30)

    def command(self, database, **command):
        body = bson(command | {"$db": database})
        self.connection.sendall(struct.pack("<iiiiIB", 21 + len(body), 1, 0, 2013, 0, 0) + body)
        (length,) = struct.unpack("<i", self.read(4))
        return self.read(length - 4)

    def read(self, length):
        data = b""
        while len(data) < length:
            more = self.connection.recv(length - len(data))
            if not more:
                sys.exit("mongod has closed the connection")
            data += more
        return data

    def make_replica_set(self, port):
        members = [{"_id": 0, "host": f"127.0.0.1:{port}"}]
        self.command("admin", replSetInitiate={"_id": "rs0", "members": members})
        until = time.monotonic() + READY_MAX_SECONDS
        while b"\x08isWritablePrimary\0\1" not in self.command("admin", hello=1):
            if time.monotonic() > until:
                sys.exit("mongod does not become the primary")
            time.sleep(0.05)

    def count(self, collection):
        found = re.search(rb"\x10n\0(.{4})", self.command("coupon", count=collection), re.DOTALL)
        return struct.unpack("<i", found.group(1))[0] if found else 0


def bson(value):
    """A document of texts, integers, lists and documents."""
    parts = b""
    for name, one in value.items():
        key = name.encode() + b"\0"
        if isinstance(one, str):
            text = one.encode() + b"\0"
            parts += b"\2" + key + struct.pack("<i", len(text)) + text
        elif isinstance(one, list):
            parts += b"\4" + key + bson({str(place): item for place, item in enumerate(one)})
        elif isinstance(one, dict):
            parts += b"\3" + key + bson(one)
        else:
            parts += b"\x10" + key + struct.pack("<i", one)
    return struct.pack("<i", len(parts) + 5) + parts + b"\0"


class System:
    """A system with servers of its own, all of them fresh."""

    path, field = "/user-coupons", "couponId"
    stops_itself = False

    def __init__(self, folder, redis, data):
        self.folder, self.data, self.stack = Path(folder), Path(data), contextlib.ExitStack()
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        try:
            self.start_redis(redis)
            self.start_all()
            wait_for(self.port)
        except BaseException:
            self.stack.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stack.close()

    def start(self, name, command, ready, cwd=None, env=(), as_user=None):
        program = wrk.Program([str(part) for part in command], ready, self.data / f"{name}.log", cwd=cwd,
                              env=os.environ | dict(env), user=as_user)
        self.stack.callback(program.stop if self.stops_itself or ready is None else program.kill)
        return program

    def start_redis(self, settings):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", REDIS_PORT), 1):
            sys.exit(f"something listens on port {REDIS_PORT} already")
        program, libraries = server("redis")
        folder = self.data / "redis"
        folder.mkdir()
        command = [program, "--port", REDIS_PORT, "--bind", "127.0.0.1", "--dir", ".", *REDIS[settings]]
        self.start("redis", command, None, folder, {"LD_LIBRARY_PATH": libraries})
        wait_for(REDIS_PORT)

    def start_mongod(self):
        program, libraries = server("mongod")
        folder, port = self.data / "mongod", free_port()
        folder.mkdir()
        command = [program, "--dbpath", ".", "--bind_ip", "127.0.0.1", "--port", port, "--replSet", "rs0",
                   "--oplogSize", "990", "--wiredTigerCacheSizeGB", "0.25", "--quiet", "--nounixsocket"]
        self.start("mongod", command, None, folder, {"LD_LIBRARY_PATH": libraries})
        wait_for(port)
        self.mongo = Mongo(port)
        self.mongo.make_replica_set(port)
        return f"mongodb://127.0.0.1:{port}/coupon?replicaSet=rs0"

    def post(self, path, body):
        """The status and the answer."""
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def must_post(self, path, body):
        status, answer = self.post(path, body)
        if status >= 300:
            sys.exit(f"{path}: {status}: {answer}")
        return answer

    def drained(self):
        """Waits until no record is added any more: how many there are, and when the last was first seen."""
        count, seen = self.count(), time.monotonic()
        until = seen + DRAINED_MAX_SECONDS
        while time.monotonic() - seen < QUIET_SECONDS:
            time.sleep(COUNT_EVERY_SECONDS)
            now, count_before = time.monotonic(), count
            count = self.count()
            seen = now if count != count_before else seen
            if now > until:
                sys.exit(f"not drained after {DRAINED_MAX_SECONDS} s: {count} records")
        return count, seen


class Ours(System):
    stops_itself = True

    def start_all(self):
        mongodb = self.start_mongod()
        backing = ["--redis-url", f"redis://127.0.0.1:{REDIS_PORT}", "--mongodb-uri", mongodb]
        self.start("api", [self.folder / "coupon-api", "--open", "--require-registered-users", "false", "--listen",
                           f"127.0.0.1:{self.port}", *backing], "listen=")
        self.start("worker", [self.folder / "coupon-worker", "--metrics-listen", f"127.0.0.1:{free_port()}",
                              *backing], "the worker drains")

    def offer(self, units):
        times = {"startsAt": "2020-01-01T00:00:00Z", "endsAt": "2090-01-01T00:00:00Z"}
        return self.must_post("/coupons", {"name": "peers", "total": units, **times})["id"]

    def count(self):
        return self.mongo.count("user_coupons")


class Nestjs(System):
    @staticmethod
    def build(folder):
        if not (folder / "dist" / "main.js").exists():
            run(folder, "npm", "run", "build")

    def start_all(self):
        env = {"MONGO_DB": self.start_mongod(), "REDIS_HOST": "127.0.0.1", "REDIS_PORT": str(REDIS_PORT),
               "PORT": str(self.port), "NODE_ENV": "production"}
        self.start("api", ["node", "dist/main"], "successfully started", self.folder, env)

    def offer(self, units):
        coupon = uuid.uuid4().hex
        times = {"startDate": "2020-01-01T00:00:00Z", "endDate": "2090-01-01T00:00:00Z"}
        self.must_post("/coupons", {"couponId": coupon, "quantity": units, **times})
        return coupon

    def count(self):
        return self.mongo.count("usercoupons")


class Bullmq(System):
    path, field = "/api/v4/buy", "productId"

    @staticmethod
    def build(folder):
        if not (folder / "node_modules" / ".prisma" / "client" / "index.js").exists():
            # The engine for migrations would be downloaded, and is not used.
            run(folder, "npx", "--no-install", "prisma", "generate", env={"PRISMA_SCHEMA_ENGINE_BINARY": "/bin/true"})

    def start_all(self):
        self.start_postgres()
        for migration in sorted(self.folder.glob("prisma/migrations/*/migration.sql")):
            self.sql(migration.read_text())
        self.sql(f"""INSERT INTO "User" (id, name, email, "updatedAt")
            SELECT 'p1-' || n, 'user ' || n, n || '@example.com', now() FROM generate_series(1, {USERS}) n""")
        env = {"PORT": str(self.port), "NODE_ENV": "production", "DATABASE_URL": self.database,
               "REDIS_URL": f"redis://127.0.0.1:{REDIS_PORT}", "ALLOWED_ORIGINS": self.url,
               "WORKER_METRICS_PORT": str(free_port()), "DLQWORKER_METRICS_PORT": str(free_port())}
        for name, program, ready in [
            ("worker", "src/queues/workers/placeOrderWorker.js", "metrics available"),
            ("failed", "src/queues/workers/dlqWorker.js", "metrics available"),
            ("api", "src/server.js", "Server running"),
        ]:
            self.start(name, ["node", program], ready, self.folder, env)

    def start_postgres(self):
        programs = postgres_programs()
        folder, port = self.data / "postgres", free_port()
        folder.mkdir()
        # It does not run as root.
        user = "nobody" if os.geteuid() == 0 else None
        if user:
            shutil.chown(folder, user)
        subprocess.run([programs / "initdb", "--pgdata", folder, "--username", "postgres", "--auth", "trust",
                        "--encoding", "UTF8"], check=True, stdout=subprocess.DEVNULL, user=user, cwd=folder)
        self.start("postgres", [programs / "postgres", "-D", folder, "-p", port, "-h", "127.0.0.1", "-k", folder], None,
                   folder, as_user=user)
        wait_for(port)
        self.database = f"postgresql://postgres@127.0.0.1:{port}/postgres"
        psql = [programs / "psql", "--no-psqlrc", "-qtA", "-v", "ON_ERROR_STOP=1", "-d", self.database]
        until = time.monotonic() + READY_MAX_SECONDS
        while subprocess.run([*psql, "-c", "SELECT 1"], capture_output=True, check=False).returncode:
            if time.monotonic() > until:
                sys.exit("PostgreSQL does not answer")
            time.sleep(0.05)
        # One that stays: to start one for each count would take the processor from what is measured.
        self.psql = subprocess.Popen(psql, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.stack.callback(self.psql.kill)

    def sql(self, text):
        """Runs statements: the lines that they print."""
        self.psql.stdin.write(f"{text};\n\\echo done\n")
        self.psql.stdin.flush()
        lines = []
        while (line := self.psql.stdout.readline().rstrip("\n")) != "done":
            if self.psql.poll() is not None:
                sys.exit(f"PostgreSQL refuses: {text}")
            lines.append(line)
        return lines

    def offer(self, units):
        product = uuid.uuid4().hex
        self.sql(f"""INSERT INTO "Product" (id, name, price, stock, "updatedAt")
            VALUES ('{product}', '{product}', 1, {units}, now())""")
        return product

    def count(self):
        return int(self.sql('SELECT count(*) FROM "Order"')[0])


def run(folder, *command, env=()):
    print(f"{folder}: {' '.join(command)}", file=sys.stderr)
    subprocess.run(command, cwd=folder, check=True, env=os.environ | dict(env), stdout=sys.stderr)


def server(name):
    """A server program of this repository's tests, and where its libraries are."""
    found = subprocess.run(
        [REPOSITORY / "deploy" / "fetch-servers.sh", name], check=True, capture_output=True, text=True).stdout
    _, program, libraries = found.rstrip("\n").split("\t")
    return program, libraries


def postgres_programs():
    for folder in [Path(os.path.realpath(found)).parent for found in [shutil.which("postgres")] if found] + [
            *sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]:
        if (folder / "initdb").exists():
            return folder
    sys.exit("there is no PostgreSQL: apt-get install postgresql")


def prepare(name, kind, folder):
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, check=True, capture_output=True, text=True)
    if commit.stdout.strip() != COMMITS[name]:
        print(f"{folder} is not at {COMMITS[name]}, which was measured before", file=sys.stderr)
    if not (folder / "node_modules").exists():
        run(folder, "npm", "ci", "--no-audit", "--no-fund")
    kind.build(folder)


def load(system, offer, connections, seconds):
    figures = wrk.figures_of(wrk.wrk(system.url, offer, connections, seconds, "p", system.path, system.field))
    return figures | {"accepted": figures["requests"] - figures["refused"]}


def measure(system, arguments):
    """One round of a system: by connections."""
    by_connections = {}
    for connections in arguments.connections:
        load(system, system.offer(UNITS), connections, WARM_UP_SECONDS)
        before, _ = system.drained()

        offer, load_average = system.offer(UNITS), os.getloadavg()[0]
        used, began = processor_seconds(), time.monotonic()
        figures = load(system, offer, connections, arguments.seconds)
        after, last = system.drained()
        figures |= {"loadAverage": load_average, "records": after - before, "recordsSeconds": last - began,
                    "processorSeconds": processor_seconds() - used}

        small = load(system, system.offer(SMALL_STOCK), connections, SMALL_STOCK_SECONDS)
        before, (after, _) = after, system.drained()
        figures["smallStock"] = [SMALL_STOCK, small["requests"], small["accepted"], after - before]

        offer, body = system.offer(SMALL_STOCK), {"userId": "p1-1"}
        system.post(system.path, body | {system.field: offer})
        system.drained()
        system.post(system.path, body | {system.field: offer})
        before, (after, _) = after, system.drained()
        figures["askedTwice"] = after - before
        by_connections[connections] = figures
    return by_connections


def show(name, rounds):
    for connections in rounds[0]:
        of = [figures[connections] for figures in rounds]
        for title, read in [
            ("accepted/s", lambda one: one["accepted"] / one["seconds"]),
            ("durable/s", lambda one: one["records"] / one["recordsSeconds"]),
            ("accept p99 ms", lambda one: one["p99Ms"]),
            ("processor µs a record", lambda one: 1e6 * one["processorSeconds"] / max(1, one["records"])),
            ("refused %", lambda one: 100 * one["refused"] / max(1, one["requests"])),
            ("broken %", lambda one: 100 * one["broken"] / max(1, one["requests"])),
            ("records over accepted", lambda one: one["records"] / max(1, one["accepted"])),
            ("asked twice: records", lambda one: one["askedTwice"]),
            ("load average before", lambda one: one["loadAverage"]),
        ]:
            print(f"{name:<14}  {connections:>5} connections  {title:<24} {wrk.spread(map(read, of))}")
        for one in of:
            units, requests, accepted, records = one["smallStock"]
            print(f"{name:<14}  {connections:>5} connections  small stock              {units} units, "
                  f"{requests:,} requests: {accepted} answered 2xx, {records} records")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", type=Path, metavar="FOLDER", help="built programs: coupon-api, coupon-worker")
    parser.add_argument("--nestjs", type=Path, metavar="FOLDER", help="pktony/coupon-system, checked out")
    parser.add_argument("--bullmq", type=Path, metavar="FOLDER", help="harsh-aghara/Yoink, checked out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=8, help="of each run of wrk (default: 8)")
    parser.add_argument("--connections", type=int, nargs="+", default=[64, 1024])
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    kinds = {"ours": (Ours, arguments.ours), "nestjs": (Nestjs, arguments.nestjs), "bullmq": (Bullmq, arguments.bullmq)}
    runs = []
    for name, (kind, folder) in kinds.items():
        if folder is None:
            continue
        if name in COMMITS:
            prepare(name, kind, folder.resolve())
        # This system refuses to start where Redis does not sync each write.
        for redis in ["always"] if kind is Ours else REDIS:
            runs.append((f"{name} {redis}", kind, folder.resolve(), redis))
    if not runs:
        parser.error("name one folder at least")
    rounds = {name: [] for name, *_ in runs}
    for number in range(arguments.rounds):
        # The order changes, so that none is always the first.
        for name, kind, folder, redis in runs[:: 1 if number % 2 == 0 else -1]:
            with tempfile.TemporaryDirectory(prefix="coupon-peers-") as data:
                # PostgreSQL's user finds its folder in it.
                os.chmod(data, 0o711)
                with kind(folder, redis, data) as system:
                    rounds[name].append(measure(system, arguments))
            print(f"round {number + 1} of {arguments.rounds}: {name}", file=sys.stderr)
            if arguments.json:
                arguments.json.write_text(json.dumps({"cores": os.cpu_count(), "commits": COMMITS, "rounds": rounds}))
    for name, of in rounds.items():
        show(name, of)


if __name__ == "__main__":
    main()
