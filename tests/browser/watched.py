"""A page in Chromium, and everything that goes wrong on it."""

ANSWER_MAX_MS = 20_000


class Watched:
    """A page, and everything that went wrong on it."""

    def __init__(self, browser, **options):
        self.page = browser.new_page(**options)
        self.page.set_default_timeout(ANSWER_MAX_MS)
        self.wrong = []
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.wrong.append(f"uncaught: {error}"))
        self.page.on("requestfailed", self._failed)
        self.page.on("response", self._answered)

    def _said(self, message):
        if message.type in ("error", "warning"):
            self.wrong.append(f"console: {message.text}")

    def _failed(self, request):
        # A page breaks its streams off when the browser leaves it.
        if request.failure != "net::ERR_ABORTED":
            self.wrong.append(f"{request.method} {request.url}: {request.failure}")

    def _answered(self, response):
        if response.status >= 400:
            self.wrong.append(f"{response.request.method} {response.url}: {response.status}")

    def close(self):
        self.page.close()
        assert not self.wrong, "\n".join(self.wrong)
