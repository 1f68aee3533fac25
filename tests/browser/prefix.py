"""A proxy that serves a system under a path, as a shop's own does.

    prefix.py LISTEN_PORT TARGET_PORT PREFIX

What is asked for elsewhere is 404.
"""

import http.client
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LISTEN, TARGET, PREFIX = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
# Headers of one connection, which a proxy does not forward.
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding"}


class Handler(BaseHTTPRequestHandler):
    def pass_on(self):
        if not self.path.startswith(f"{PREFIX}/"):
            self.send_error(404)
            return
        length = int(self.headers.get("content-length", 0))
        headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
        target = http.client.HTTPConnection("127.0.0.1", TARGET)
        target.request(self.command, self.path[len(PREFIX):], self.rfile.read(length), headers)
        answer = target.getresponse()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in HOP_BY_HOP:
                self.send_header(name, value)
        self.end_headers()
        while part := answer.read1(65536):
            self.wfile.write(part)
            self.wfile.flush()
        target.close()

    do_GET = do_POST = do_PATCH = do_DELETE = pass_on

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    # Many connections arrive at once; a client retries a refused one late.
    request_queue_size = 256
    daemon_threads = True

    def handle_error(self, *_):
        error = sys.exc_info()[1]
        # A browser that leaves a page breaks its streams off.
        if not isinstance(error, ConnectionError):
            super().handle_error(*_)


Server(("127.0.0.1", LISTEN), Handler).serve_forever()
