#!/usr/bin/env python3
"""Runs the client of /developers in headless Chromium against a real API.

Two clicks at once, a lost answer, a reload and a coupon that is gone: each user gets one coupon and the
right word. Needs Chromium (on PATH, or COUPON_CHROMIUM) and a built couponctl; nothing from PyPI.

Usage: tests/browser/developers.py
"""

import base64
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
READY_MAX_SECONDS = 60
ANSWER_MAX_SECONDS = 60


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
            # Out of the way first: either may be where the other must be.
            ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (to_browser, from_browser)]
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        self.browser = subprocess.Popen(
            [chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
             f"--user-data-dir={folder}", "--remote-debugging-pipe", "about:blank"],
            preexec_fn=set_up, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(to_browser)
        os.close(from_browser)
        self.last = 0
        self.answers = {}
        self.heard = threading.Condition()
        self.paused = None  # called with each request that is held back
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
                if message.get("method") == "Fetch.requestPaused":
                    # Not here: an answer to it is read here.
                    threading.Thread(target=self.paused, args=[message["params"]], daemon=True).start()
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


def made(api, coupon, total, users):
    call(f"{api}/coupons", {"id": coupon, "name": coupon, "total": total,
                            "startsAt": "2026-01-01T00:00:00Z", "endsAt": "2099-01-01T00:00:00Z"})
    for user in users:
        call(f"{api}/users", {"id": user, "name": user})


REQUEST = "const { requestCoupon } = await import('./assets/client.js'); const go = (u, c, o) => requestCoupon('.', u, c, o);"


def check(api, page):
    made(api, "browser", 2, ["b1", "b2", "b3", "b4"])
    held = lambda user: call(f"{api}/user-coupons/{user}")["items"]

    page.open(f"{api}/developers")
    assert page.run("return document.querySelector('pre code').textContent") == page.run(
        "return await (await fetch('assets/client.js')).text()"), "the page shows another client"
    assert page.run("return getComputedStyle(document.querySelector('main')).maxWidth") == "832px", "no style"

    print("a double click is one request")
    twice = page.run(REQUEST + "return await Promise.all([go('b1', 'browser'), go('b1', 'browser')])")
    assert [one["outcome"] for one in twice] == ["issued", "issued"], twice
    assert twice[0]["issuance"]["id"] == twice[1]["issuance"]["id"], twice

    print("a click after a reload gets the same coupon")
    page.open(f"{api}/developers?again")
    again = page.run(REQUEST + "return await go('b1', 'browser')")
    assert again["issuance"]["id"] == twice[0]["issuance"]["id"], again

    print("a request whose answer is lost, and one that is turned away, are sent again")
    seen = []

    def disturb(held_back):
        """Lets the first request through and loses its answer; turns the second away; then stands aside."""
        request = held_back["requestId"]
        if "responseStatusCode" not in held_back and "responseErrorReason" not in held_back:
            if held_back["request"]["method"] == "POST" and len(seen) == 1:
                seen.append("turned away")
                body = base64.b64encode(b'{"code":"overloaded","retryAfterMs":50}').decode()
                page.send("Fetch.fulfillRequest", requestId=request, responseCode=503, body=body)
            else:
                page.send("Fetch.continueRequest", requestId=request, interceptResponse=True)
        elif not seen:
            seen.append("lost")
            page.send("Fetch.failRequest", requestId=request, errorReason="ConnectionReset")
        else:
            seen.append("answered")
            page.send("Fetch.continueResponse", requestId=request)

    page.paused = disturb
    page.send("Fetch.enable", patterns=[{"urlPattern": "*/user-coupons*"}])
    stubborn = page.run(REQUEST + "return await go('b2', 'browser')")
    page.send("Fetch.disable")
    assert seen[:3] == ["lost", "turned away", "answered"], seen
    assert stubborn["outcome"] == "issued", stubborn
    assert [one["id"] for one in held("b2")] == [stubborn["issuance"]["id"]]

    print("whoever comes too late is told so, in their language")
    late = page.run(REQUEST + "return await go('b3', 'browser', { headers: { 'Accept-Language': 'ko' } })")
    assert late["outcome"] == "sold-out" and late["problem"]["title"] == "쿠폰 소진", late
    assert page.run("return sessionStorage.getItem('coupon:b3:browser')") is None

    print("a request that is queued is followed to its end")
    made(api, "queued", 1, [])
    queued = page.run(REQUEST + """
        const real = window.fetch; let asked = 0;
        window.fetch = (url, request) => real(String(url).replace("?wait=5", ""), request);
        const ended = await go("b4", "queued", { onQueued: () => asked++ });
        window.fetch = real;
        return { outcome: ended.outcome, asked };""")
    assert queued["outcome"] == "issued" and queued["asked"] >= 1, queued
    assert len(held("b1")) == 1 and len(held("b3")) == 0 and len(held("b4")) == 1


def main():
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        system, api = serve(folder)
        page = None
        try:
            page = Page(f"{folder}/browser")
            check(api, page)
        finally:
            if page:
                page.close()
            system.terminate()
            system.wait()
    print("the client of /developers does what its page says")


if __name__ == "__main__":
    main()
