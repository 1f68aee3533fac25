"""Clients that request coupons, 100 times a second.

Usage: load.py PORT KEY STOP_FILE: sends requests until the file exists; fails if one failed

The load is open: a request is sent at its time, however the ones before it fare. Every second one opens a connection of
its own, as a refused connection would show there; the others share connections that are kept, as in browsers.
"""

import asyncio
import collections
import json
import pathlib
import re
import sys
import time

COUPON = "upgraded"
REQUESTS_PER_SECOND = 100
USERS = 200
# Requests of one user, each with a key of its own.
PER_USER = 100
ANSWER_MAX_SECONDS = 60


class Clients:
    """Sends requests through the proxy, and remembers how each ended."""

    def __init__(self, port, key):
        self.port, self.key = port, key
        self.ends = collections.Counter()
        self.idle = []
        self.sent = 0

    async def post(self, path, body, keeps, headers=""):
        """Sends one request; returns its status, or what went wrong with the connection."""
        connection = self.idle.pop() if keeps and self.idle else None
        try:
            if connection is None:
                connection = await asyncio.open_connection("127.0.0.1", self.port)
            reader, writer = connection
            payload = json.dumps(body).encode()
            head = (
                f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {self.key}\r\n{headers}"
                f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n"
                f"Connection: {'keep-alive' if keeps else 'close'}\r\n\r\n"
            )
            writer.write(head.encode() + payload)
            answer = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            length = re.search(r"(?im)^content-length: (\d+)", answer)
            await reader.readexactly(int(length[1]))
            if keeps and not re.search(r"(?im)^connection: close", answer):
                self.idle.append(connection)
            else:
                writer.close()
            return int(answer.split()[1])
        except (OSError, EOFError) as error:
            return type(error).__name__

    async def prepare(self):
        """Makes the coupon and the users."""
        coupon = {
            "id": COUPON, "name": COUPON, "total": USERS * PER_USER, "perUser": PER_USER,
            "startsAt": "2020-01-01T00:00:00Z", "endsAt": "2100-01-01T00:00:00Z",
        }
        made = [await self.post("/coupons", coupon, True)]
        made += [await self.post("/users", {"id": f"customer{number}"}, True) for number in range(USERS)]
        assert set(made) == {201}, collections.Counter(made)

    async def request(self, number):
        body = {"userId": f"customer{number % USERS}", "couponId": COUPON}
        sending = self.post("/user-coupons", body, number % 2 == 0, f"Idempotency-Key: {number}\r\n")
        try:
            end = await asyncio.wait_for(sending, ANSWER_MAX_SECONDS)
        except TimeoutError:
            end = "no answer"
        self.ends[end] += 1

    async def load(self, stop):
        start, requests = time.monotonic(), []
        while not stop.is_set():
            requests.append(asyncio.create_task(self.request(self.sent)))
            self.sent += 1
            await asyncio.sleep(max(0, start + self.sent / REQUESTS_PER_SECOND - time.monotonic()))
        await asyncio.gather(*requests)

    def are_content(self):
        """Whether each request was accepted."""
        assert self.sent <= USERS * PER_USER, "more users are needed for so long an upgrade"
        print(f"{self.sent} requests, by their answer: {dict(self.ends)}")
        return self.ends == {202: self.sent}


async def main(port, key, stop_file):
    clients, stop = Clients(int(port), key), asyncio.Event()
    await clients.prepare()
    load = asyncio.create_task(clients.load(stop))
    print("the load is on", flush=True)
    while not pathlib.Path(stop_file).exists():
        await asyncio.sleep(0.1)
    stop.set()
    await load
    sys.exit(0 if clients.are_content() else 1)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
