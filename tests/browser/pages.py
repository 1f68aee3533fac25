"""Opens the pages of a running system in Chromium, and uses them, under their content policy.

    pages.py BASE CHROMIUM

BASE is where a browser reaches the service, perhaps with a path. Everything that a person would do
there must work, and nothing may be said on the console: no error, no refused script or style.
"""

import re
import sys

from playwright.sync_api import expect, sync_playwright

ANSWER_MAX_MS = 20_000


class Watched:
    """A page, and everything that went wrong on it."""

    def __init__(self, browser):
        self.page = browser.new_page()
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
        # A page that is left breaks its streams off.
        if request.failure != "net::ERR_ABORTED":
            self.wrong.append(f"{request.method} {request.url}: {request.failure}")

    def _answered(self, response):
        if response.status >= 400:
            self.wrong.append(f"{response.request.method} {response.url}: {response.status}")

    def close(self):
        self.page.close()
        assert not self.wrong, "\n".join(self.wrong)


def try_it(browser, base):
    """Requests the demo coupon as a new user, and waits until it is issued."""
    watched = Watched(browser)
    page = watched.page
    page.goto(f"{base}/")
    page.locator("#coupons input[type=radio]").first.check(force=True)
    page.locator("#random-user").click()
    page.locator("#press").click()
    expect(page.locator("#ticket .serial span")).to_have_text(re.compile(r"\d"))
    page.locator("#rush-count").fill("20")
    page.locator("#rush-start").click()
    expect(page.locator('#rush-result [data-value="issued"]')).to_have_text("20", timeout=ANSWER_MAX_MS)
    watched.close()


def swagger(browser, base):
    """Comes without the slash at the end, reads the document, and sends a request from it."""
    watched = Watched(browser)
    page = watched.page
    page.goto(f"{base}/docs")
    assert page.url.startswith(f"{base}/docs/"), page.url
    expect(page.locator(".info .title")).to_contain_text("Coupon System")
    operation = page.locator(".opblock-get", has=page.locator('[data-path="/coupons"]'))
    operation.locator(".opblock-summary-control").click()
    operation.get_by_role("button", name="Try it out").click()
    operation.get_by_role("button", name="Execute").click()
    expect(operation.locator(".live-responses-table tbody .response-col_status").first).to_contain_text("200")
    expect(operation.locator(".request-url")).to_contain_text(f"{base}/coupons")
    # What else there is to open brings styles of its own.
    page.locator(".opblock-post .opblock-summary-control").first.click()
    page.locator("section.models button").first.click()
    watched.close()


def main():
    base, chromium = sys.argv[1].rstrip("/"), sys.argv[2]
    with sync_playwright() as playwright:
        # A sandbox needs rights that containers do not give.
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for check in (try_it, swagger):
            check(browser, base)
            print(f"   {check.__name__}: {base}")
        browser.close()


main()
