#!/usr/bin/env python3
"""Runs the client of /developers in headless Chromium against a real API, behind a gateway that misbehaves.

Two clicks at once, lost answers, answers of somebody else, a reload, a browser without storage and a coupon
that is gone: each wish of a user gets one coupon and the right word. And an EventSource comes to rest.
Needs Chromium (on PATH, or COUPON_CHROMIUM) and a built couponctl; nothing from PyPI.

Usage: tests/browser/developers.py [PART OF A CHECK'S NAME]
"""

import copy
import email.utils
import fcntl
import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import defaultdict, deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
READY_MAX_SECONDS = 60
ANSWER_MAX_SECONDS = 60
# A name that is not this machine's: over plain http, a browser gives its pages fewer features.
HOST = "shop.test"


def chromium():
    """The browser's program."""
    named = os.environ.get("COUPON_CHROMIUM")
    found = named or next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None)
    if not found:
        sys.exit("no Chromium on PATH: install one, or name it with COUPON_CHROMIUM")
    return found


class Page:
    """A page of the browser, driven over a pipe by the DevTools protocol."""

    def __init__(self, folder):
        to_browser, self.writes = os.pipe()
        self.reads, from_browser = os.pipe()

        def set_up():
            # Both descriptors move away first: either may have the number that the other needs.
            ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (to_browser, from_browser)]
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        self.browser = subprocess.Popen(
            [chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
             f"--user-data-dir={folder}", "--remote-debugging-pipe", f"--host-resolver-rules=MAP {HOST} 127.0.0.1",
             "--no-proxy-server", "about:blank"],
            preexec_fn=set_up, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(to_browser)
        os.close(from_browser)
        self.last = 0
        self.answers = {}
        self.heard = threading.Condition()
        threading.Thread(target=self._listen, daemon=True).start()
        target = self.send("Target.createTarget", url="about:blank", session=None)["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True, session=None)
        self.session = attached["sessionId"]
        self.send("Page.enable")

    def _listen(self):
        rest = b""
        while chunk := os.read(self.reads, 65536):
            *messages, rest = (rest + chunk).split(b"\0")
            for message in map(json.loads, messages):
                with self.heard:
                    if "id" in message:
                        self.answers[message["id"]] = message
                    self.heard.notify_all()

    def send(self, method, session="own", **params):
        with self.heard:
            self.last += 1
            number = self.last
        message = {"id": number, "method": method, "params": params}
        if session == "own":
            message["sessionId"] = self.session
        os.write(self.writes, json.dumps(message).encode() + b"\0")
        with self.heard:
            assert self.heard.wait_for(lambda: number in self.answers, ANSWER_MAX_SECONDS), f"no answer to {method}"
            answer = self.answers.pop(number)
        assert "error" not in answer, (method, answer)
        return answer["result"]

    def open(self, url):
        self.send("Page.navigate", url=url)
        deadline = time.monotonic() + ANSWER_MAX_SECONDS
        while self.run("return [location.href, document.readyState].join(' ')") != f"{url} complete":
            assert time.monotonic() < deadline, f"{url} does not load"
            time.sleep(0.05)

    def run(self, script):
        """Runs the body of an async function, and returns what it returns."""
        told = self.send("Runtime.evaluate", expression=f"(async () => {{ {script} }})()",
                         awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def close(self):
        self.browser.terminate()
        self.browser.wait()


def call(url, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
        return json.load(answer)


def serve(folder):
    """Starts a system with data of its own. Returns its process and its URL."""
    log = open(f"{folder}/log", "wb")
    command = [ROOT / "target/debug/couponctl", "dev", "--listen", "127.0.0.1:0", "--data-dir",
               f"{folder}/data", "--log-format", "json"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
    for _ in range(READY_MAX_SECONDS * 10):
        for line in Path(f"{folder}/log").read_text().splitlines():
            if address := (json.loads(line) if line.startswith("{") else {}).get("listen"):
                return process, f"http://{address}"
        assert process.poll() is None, Path(f"{folder}/log").read_text()
        time.sleep(0.1)
    sys.exit("the system does not start")


class Gateway(ThreadingHTTPServer):
    """Stands between the browser and the API, and answers in its place as it is told.

    `plans` holds, for each user, what to do with their next requests, first come, first served: an
    Answer, or None to pass one on. `seen` holds what each user sent: method, path, key, and when.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, api):
        super().__init__(("127.0.0.1", 0), Handler)
        self.target = api.removeprefix("http://")
        self.plans, self.seen, self.users, self.streams = defaultdict(deque), defaultdict(list), {}, []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, *_):
        # A page breaks its connections off when the browser leaves it.
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(*_)


class Answer:
    """An answer of the gateway itself. With `after`, it forwards the request first and drops the answer."""

    def __init__(self, status, body=b"", media_type="text/html", after=False, **headers):
        self.status, self.after = status, after
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.headers = {"Content-Type": media_type, **headers}

    def late(self):
        late = copy.copy(self)
        late.after = True
        return late


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def serve(self):
        gateway, body = self.server, self.rfile.read(int(self.headers.get("content-length", 0)))
        path = self.path.split("?")[0]
        user = json.loads(body)["userId"] if path == "/user-coupons" else None
        if path.startswith("/issuances/"):
            user = gateway.users.get(path.split("/")[2])
            if path.endswith("/events"):
                gateway.streams.append(self.headers.get("last-event-id"))
        answer = None
        if user and not path.endswith("/events"):
            gateway.seen[user].append((self.command, path, self.headers.get("idempotency-key"), time.monotonic()))
            answer = gateway.plans[user].popleft() if gateway.plans[user] else None
        if answer and not answer.after:
            return self.send(answer.status, answer.headers.items(), answer.body)
        # To the API the request is of another origin: a proxy before it would send its own.
        dropped = {"host", "origin", "connection", "accept-encoding"}
        target = http.client.HTTPConnection(gateway.target, timeout=ANSWER_MAX_SECONDS)
        target.request(self.command, self.path, body, {n: v for n, v in self.headers.items() if n.lower() not in dropped})
        told = target.getresponse()
        if told.getheader("content-type") == "text/event-stream":
            return self.stream(told)
        told_body = told.read()
        target.close()
        if user and told.status in (200, 201, 202):
            gateway.users[json.loads(told_body)["id"]] = user
        if answer:
            return self.send(answer.status, answer.headers.items(), answer.body)
        self.send(told.status, told.getheaders(), told_body)

    do_GET = do_POST = serve

    def send(self, status, headers, body):
        if callable(status):
            return status(self)
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if status != 204:
            self.wfile.write(body)

    def stream(self, told):
        self.send_response_only(told.status)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        while part := told.read1(65536):
            self.wfile.write(part)

    def log_message(self, *_):
        pass


def break_off(handler):
    """Closes the connection without an answer."""
    handler.close_connection = True
    handler.connection.close()


JSON, PROBLEM = "application/json", "application/problem+json"


def ours(code, status, retryable, **more):
    """A problem as the service writes it."""
    return {"type": f"/problems/{code}", "title": code, "status": status, "detail": code, "code": code,
            "requestId": "r", "retryable": retryable, **more}


# What a gateway may answer in place of the service: none of it decides a request.
FOREIGN = {
    "a gateway's 502 in JSON": Answer(502, {"message": "Bad Gateway"}, JSON),
    "a 502 in JSON with a code that we have": Answer(502, {"code": "sold-out", "title": "Sold out"}, JSON),
    "a 409 in JSON that is no problem": Answer(409, ours("sold-out", 409, False), JSON),
    "a 409 in HTML": Answer(409, b"<h1>Conflict</h1>"),
    "another's problem": Answer(503, {"type": "about:blank", "title": "Down", "status": 503}, PROBLEM),
    "another's problem with a code": Answer(409, {**ours("sold-out", 409, False), "type": "https://gateway.test/errors/1"}, PROBLEM),
    "a problem of another status": Answer(502, ours("sold-out", 409, False), PROBLEM),
    "a login page": Answer(200, b"<!doctype html><title>Wi-Fi</title>"),
    "a login page that says it is JSON": Answer(200, b"<!doctype html>", JSON),
    "a way to a login page": Answer(302, Location="/developers"),
    "a 404 in HTML": Answer(404, b"<h1>Not Found</h1>"),
    "a 401 of a proxy": Answer(401, {"error": "unauthorized"}, JSON),
    "a 403 of a firewall": Answer(403, b"blocked"),
    "a 429 without a body": Answer(429),
    "a 504 without a body": Answer(504),
    "a 204": Answer(204),
    "a 413": Answer(413, b"<h1>Too large</h1>"),
    "JSON that is something else": Answer(200, {"ok": True}, JSON),
    "null": Answer(200, None, JSON),
    "a list": Answer(200, [], JSON),
    "text": Answer(200, "issued", JSON),
    "a state without its members": Answer(200, {"id": "x", "state": "issued"}, JSON),
    "a state of a later version": Answer(200, {"id": "x", "state": "deferred"}, JSON),
    "a problem of a later version that passes": Answer(409, ours("deferred", 409, True), PROBLEM),
    "an outcome of somebody else": Answer(200, {"id": "x", "state": "issued", "userId": "nobody", "couponId": "many", "serial": 1}, JSON),
    "an issuance with a strange type": Answer(200, {"id": "x", "state": "issued", "serial": 1}, "text/plain"),
    "our 503": Answer(503, ours("overloaded", 503, True, retryAfterMs=50), PROBLEM),
    "our 500": Answer(500, ours("internal", 500, False), PROBLEM),
    "our 408": Answer(408, ours("timeout", 408, True), PROBLEM),
    "a problem whose retryAfterMs is text": Answer(503, ours("overloaded", 503, True, retryAfterMs="soon"), PROBLEM),
    "no answer": Answer(break_off),
}

REQUEST = "const { requestCoupon } = await import('./assets/client.js'); const go = (u, c, o) => requestCoupon('.', u, c, o);"
# Fewer at once than the connections that a browser opens to a host, so that none waits for another.
MANY = """const all = async (users, go) => {
    const results = {}, left = [...users];
    const next = async () => { for (let user; (user = left.shift()); ) results[user] = await go(user); };
    await Promise.all(Array.from({ length: 6 }, next));
    return results;
};"""


class Check:
    """The checks, and what they are made with."""

    def __init__(self, api, page):
        self.api, self.page, self.gateway = api, page, Gateway(api)
        self.url = f"http://{HOST}:{self.gateway.server_address[1]}"

    def made(self, coupon, total, users=(), per_user=1):
        call(f"{self.api}/coupons", {"id": coupon, "name": coupon, "total": total, "perUser": per_user,
                                     "startsAt": "2026-01-01T00:00:00Z", "endsAt": "2099-01-01T00:00:00Z"})
        for user in users:
            call(f"{self.api}/users", {"id": user, "name": user})

    def held(self, user):
        return [one["id"] for one in call(f"{self.api}/user-coupons/{user}")["items"]]

    def keys(self, user):
        return [key for method, _, key, _ in self.gateway.seen[user] if method == "POST"]

    def fresh(self):
        """Reloads the page."""
        self.page.open(f"{self.url}/developers?{time.monotonic()}")

    def go(self, user, coupon, options="{}"):
        return self.page.run(REQUEST + f"return await go({user!r}, {coupon!r}, {options})")

    def stored(self, user, coupon):
        return self.page.run(f"return sessionStorage.getItem('coupon:{user}:{coupon}')")

    def the_page_shows_the_client_and_a_use_of_it_that_runs(self):
        self.made("shown", 10, ["s-en", "s-ko"])
        self.page.open(f"{self.url}/developers")
        assert self.page.run("return getComputedStyle(document.querySelector('main')).maxWidth") == "832px", "no style"
        for language in ("en", "ko"):
            told = self.page.run(f"""
                const text = await (await fetch('developers', {{ headers: {{ 'Accept-Language': {language!r} }} }})).text();
                const page = new DOMParser().parseFromString(text, 'text/html');
                const [client, use] = [...page.querySelectorAll('pre code')].map((code) => code.textContent);
                return {{ lang: page.documentElement.lang, client, use }};""")
            use = told["use"].replace('import { requestCoupon } from "./client.js";', "")
            use = use.replace("https://shop.example/coupons-api", ".").replace('"summer"', '"shown"')
            shown = self.page.run(f"""
                const {{ requestCoupon }} = await import('./assets/client.js');
                const user = 's-{language}', token = 'none', button = {{}}, shown = [], show = (text) => shown.push(text);
                {use}
                await button.onclick();
                await button.onclick();
                return [...shown, button.disabled];""")
            script = self.page.run("return await (await fetch('assets/client.js')).text()")
            assert told["lang"] == language and told["client"] == script, "the page shows another client"
            assert len(self.held(f"s-{language}")) == 1, shown
            number, again, disabled = [text for text in shown if "before you" not in str(text) and "앞에" not in str(text)]
            assert any(digit in number for digit in "12") and again and not disabled, shown

    def a_double_click_is_one_request(self):
        self.made("double", 5, ["d1"])
        self.fresh()
        twice = self.page.run(REQUEST + "return await Promise.all([go('d1', 'double'), go('d1', 'double')])")
        assert [one["outcome"] for one in twice] == ["issued", "issued"], twice
        assert twice[0]["issuance"]["id"] == twice[1]["issuance"]["id"], twice

    def after_one_is_issued_the_next_wish_is_a_new_one(self):
        self.made("two", 5, ["w1"], per_user=2)
        self.fresh()
        first, second, third = (self.go("w1", "two") for _ in range(3))
        assert [first["outcome"], second["outcome"], third["outcome"]] == ["issued", "issued", "already-issued"]
        assert first["issuance"]["id"] != second["issuance"]["id"], "the first was given again"
        assert len(set(self.keys("w1"))) == 3 and len(self.held("w1")) == 2

    def a_reload_in_the_middle_goes_on_with_the_same_request(self):
        self.made("reload", 5, ["r1"], per_user=2)
        self.fresh()
        # The browser leaves the page before it learns that the request was accepted.
        self.gateway.plans["r1"].append(Answer(503, after=True, **{"Retry-After": "30"}))
        self.page.run(REQUEST + "go('r1', 'reload').catch(() => {}); return")
        wait_for(lambda: self.held("r1"), "it is issued")
        self.fresh()
        ended = self.go("r1", "reload")
        assert ended["outcome"] == "issued" and self.held("r1") == [ended["issuance"]["id"]], ended
        assert len(set(self.keys("r1"))) == 1 and self.stored("r1", "reload") is None

    def what_the_service_did_not_say_decides_nothing(self):
        names = list(FOREIGN)
        users = [f"f{kind}{index}" for index in range(len(names)) for kind in "abc"]
        self.made("many", len(users) * 2, users, per_user=2)
        self.made("late", 1000)
        for index, name in enumerate(names):
            # In place of the first answer, of the answer to a request that arrived, and of a poll's answer.
            self.gateway.plans[f"fa{index}"].append(FOREIGN[name])
            self.gateway.plans[f"fb{index}"].append(FOREIGN[name].late())
            self.gateway.plans[f"fc{index}"].extend([None, FOREIGN[name]])
        self.fresh()
        ended = self.page.run(REQUEST + MANY + f"""
            // Without a wait the answer is that it is queued.
            const real = window.fetch, users = {json.dumps(users)};
            window.fetch = (url, request) => real(request.method === "POST" ? String(url).replace("?wait=5", "") : url, request);
            const ended = await all(users, (user) => go(user, "many"));
            window.fetch = real;
            return ended;""")
        for user in users:
            name, told = names[int(user[2:])], ended[user]
            assert told["outcome"] == "issued", (name, user, told)
            assert self.held(user) == [told["issuance"]["id"]], (name, user, told)
            assert len(set(self.keys(user))) == 1, (name, user, self.gateway.seen[user])
            assert not self.gateway.plans[user], (name, user, "it was not asked")

    def without_any_answer_it_is_unknown_and_asked_again_with_the_same_key(self):
        self.made("away", 5, ["a1"])
        self.fresh()
        self.gateway.plans["a1"].extend([Answer(502, {"message": "Bad Gateway"}, JSON)] * 2)
        first = self.go("a1", "away", "{ tries: 2 }")
        assert first == {"outcome": "unknown"} and self.stored("a1", "away") == self.keys("a1")[0], first
        assert self.go("a1", "away")["outcome"] == "issued"
        assert len(self.keys("a1")) == 3 and len(set(self.keys("a1"))) == 1, self.keys("a1")

    def a_problem_that_decides_nothing_keeps_the_key(self):
        problems = [ours("unauthenticated", 401, False), ours("forbidden", 403, False), ours("of-a-later-version", 409, False),
                    ours("outcome-unreadable", 500, False)]
        users = [f"k{index}" for index in range(len(problems))]
        self.made("kept", 10, users)
        self.fresh()
        for user, problem in zip(users, problems):
            self.gateway.plans[user].append(Answer(problem["status"], problem, PROBLEM + "; charset=utf-8"))
            told = self.go(user, "kept")
            assert told["outcome"] == problem["code"] and told["problem"]["code"] == problem["code"], told
            assert self.stored(user, "kept") == self.keys(user)[0]
            assert self.go(user, "kept")["outcome"] == "issued" and len(set(self.keys(user))) == 1

    def a_rejection_for_a_reason_of_a_later_version_ends_the_wish(self):
        self.made("later", 5, ["l1"])
        self.fresh()
        rejected = ours("of-a-later-version", 409, False, issuance="/issuances/1")
        self.gateway.plans["l1"].append(Answer(409, rejected, PROBLEM))
        assert self.go("l1", "later")["outcome"] == "of-a-later-version" and self.stored("l1", "later") is None

    def retry_after_is_heeded_in_every_form(self):
        in_three_seconds = email.utils.formatdate(time.time() + 4, usegmt=True)
        forms = {
            "t0": Answer(503, **{"Retry-After": "2"}),
            "t1": Answer(429, **{"rEtRY-aFTER": "2"}),
            "t2": Answer(503, **{"Retry-After": in_three_seconds}),
            "t3": Answer(503, ours("overloaded", 503, True, retryAfterMs=2000), PROBLEM, **{"Retry-After": "1"}),
        }
        self.made("timed", 10, forms)
        for user, answer in forms.items():
            self.gateway.plans[user].append(answer)
        self.fresh()
        ended = self.page.run(REQUEST + MANY + f"return await all({json.dumps(list(forms))}, (user) => go(user, 'timed'))")
        for user in forms:
            (_, _, _, first), (_, _, _, second) = self.gateway.seen[user][:2]
            assert ended[user]["outcome"] == "issued" and second - first >= 1.9, (user, second - first)

    def it_works_with_whatever_the_browser_offers(self):
        broken = {
            "no storage": "Object.defineProperty(window, 'sessionStorage', { value: null })",
            "storage that is forbidden": "Object.defineProperty(window, 'sessionStorage', { get() { throw new DOMException('', 'SecurityError'); } })",
            "storage that is full": "Storage.prototype.setItem = () => { throw new DOMException('', 'QuotaExceededError'); }",
            "storage that forgets": "Storage.prototype.setItem = () => {}; Storage.prototype.getItem = () => null",
            "storage that throws": "Storage.prototype.getItem = Storage.prototype.setItem = Storage.prototype.removeItem = () => { throw new Error(); }",
            "storage with something else in it": "for (const user of ['o5', 'p5']) sessionStorage.setItem(`coupon:${user}:offers`, '한 글')",
            "no AbortSignal.timeout": "delete AbortSignal.timeout",
        }
        self.made("offers", 100, [f"{kind}{index}" for index in range(len(broken)) for kind in "op"], per_user=2)
        for index, (name, script) in enumerate(broken.items()):
            self.fresh()
            assert self.page.run("return [isSecureContext, 'randomUUID' in crypto].join()") == "false,false"
            self.gateway.plans[f"o{index}"].append(Answer(502, {}, JSON, after=True))
            told = self.page.run(f"{script}; {REQUEST} const [user, other] = ['o{index}', 'p{index}'];"
                                 "const twice = await Promise.all([go(user, 'offers'), go(user, 'offers')]);"
                                 "return [...twice, await go(user, 'offers'), await go(other, 'offers')]")
            assert [one["outcome"] for one in told] == ["issued"] * 4, (name, told)
            assert told[0]["issuance"]["id"] == told[1]["issuance"]["id"] != told[2]["issuance"]["id"], (name, told)
            assert len(self.held(f"o{index}")) == 2, name

    def too_late_is_said_in_the_users_language_and_ends_the_wish(self):
        self.made("gone", 1, ["g1", "g2"])
        self.fresh()
        assert self.go("g1", "gone")["outcome"] == "issued"
        late = self.go("g2", "gone", "{ headers: { 'Accept-Language': 'ko' } }")
        assert late["outcome"] == "sold-out" and late["problem"]["title"] == "쿠폰 소진", late
        assert self.stored("g2", "gone") is None

    def what_is_queued_is_followed_to_its_end(self):
        self.made("queued", 1, ["q1"])
        self.fresh()
        queued = self.page.run(REQUEST + """
            const real = window.fetch; let asked = 0;
            window.fetch = (url, request) => real(String(url).replace("?wait=5", ""), request);
            const ended = await go("q1", "queued", { onQueued: () => asked++ });
            window.fetch = real;
            return { outcome: ended.outcome, asked };""")
        assert queued["outcome"] == "issued" and queued["asked"] >= 1, queued
        assert len(self.held("q1")) == 1

    def an_event_source_hears_the_outcome_once_and_comes_to_rest(self):
        self.made("stream", 1, ["e1"])
        self.fresh()
        id = self.go("e1", "stream")["issuance"]["id"]
        self.gateway.streams.clear()
        told = self.page.run(f"""
            const source = new EventSource('issuances/{id}/events'), heard = [];
            for (const name of ['queued', 'issued', 'rejected', 'message']) source.addEventListener(name, (event) => heard.push(event.type));
            await new Promise((done) => {{ source.onerror = () => source.readyState === EventSource.CLOSED && done(); }});
            return heard;""")
        assert told == ["issued"], told
        time.sleep(3)  # Longer than a browser waits before it connects again.
        assert self.gateway.streams == [None, "issued"], self.gateway.streams


def wait_for(look, what):
    deadline = time.monotonic() + ANSWER_MAX_SECONDS
    while not look():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def main():
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        system, api = serve(folder)
        page = None
        try:
            page = Page(f"{folder}/browser")
            check = Check(api, page)
            wanted = sys.argv[1] if len(sys.argv) > 1 else ""
            for name in [name for name in vars(Check) if name[0] != "_" and name.count("_") > 2 and wanted in name]:
                print(name.replace("_", " "), flush=True)
                getattr(check, name)()
        finally:
            if page:
                page.close()
            system.terminate()
            system.wait()
    print("the client of /developers does what its page says")


if __name__ == "__main__":
    main()
