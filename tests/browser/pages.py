"""Opens the pages of a running system in Chromium, and uses them, under their content policy.

    pages.py BASE CHROMIUM

BASE is where a browser reaches the service, perhaps with a path. Everything that a person would do
there must work, and nothing may be said on the console: no error, no refused script or style.
"""

import re
import sys

from playwright.sync_api import expect, sync_playwright

from watched import ANSWER_MAX_MS, Watched

def try_it(browser, base):
    """Requests the demo coupon as a new user, and waits until it is issued."""
    watched = Watched(browser)
    page = watched.page
    page.goto(f"{base}/")
    page.locator("#coupons input[type=radio]").first.check(force=True)
    page.locator("#random-user").click()
    # Pressing the button before that answer registers the same user again, and the API correctly answers 409.
    expect(page.locator("#user-note")).to_contain_text("Registered")
    page.locator("#press").click()
    expect(page.locator("#ticket .serial span")).to_have_text(re.compile(r"\d"))
    page.locator("#rush-count").fill("20")
    page.locator("#rush-start").click()
    expect(page.locator('#rush-result [data-value="issued"]')).to_have_text("20", timeout=ANSWER_MAX_MS)
    watched.close()


def coupon(id, **more):
    """A coupon as the API writes it."""
    return {"id": id, "name": id, "perUser": 1, "startsAt": "2026-01-01T00:00:00Z", "endsAt": "2099-01-01T00:00:00Z",
            "discount": None, "minOrderAmount": None, "validUntil": None, "validFor": None, "status": "open",
            "stock": {"total": 5, "remaining": 5, "reserved": 0, "issued": 0}, "createdAt": "2026-01-01T00:00:00Z", **more}


def fixed(amount, currency):
    return {"type": "fixed", "amount": amount, "currency": currency}


# Coupons as the service may write them, and the lines that the page must show in English and in Korean.
OFFERS = {
    "usd": ({"discount": fixed(500, "USD")}, "$5.00 off", "US$5.00 할인"),
    "cents": ({"discount": fixed(5, "USD")}, "$0.05 off", "US$0.05 할인"),
    "krw": ({"discount": fixed(5000, "KRW")}, "₩5,000 off", "5,000원 할인"),
    "jpy": ({"discount": fixed(500, "JPY")}, "¥500 off", "JP¥500 할인"),
    "bhd": ({"discount": fixed(1500, "BHD")}, "BHD 1.500 off", "BHD 1.500 할인"),
    # A browser's own number of digits may differ from that of ISO 4217.
    "lak": ({"discount": fixed(150, "LAK")}, "LAK 1.50 off", "LAK 1.50 할인"),
    "most": ({"discount": {"type": "percent", "percent": 10, "maxAmount": 1050, "currency": "USD"}, "minOrderAmount": 2000},
             "10% off, up to $10.50 · orders from $20.00", "10% 할인 (최대 US$10.50) · US$20.00 이상 주문 시"),
    "percent": ({"discount": {"type": "percent", "percent": 10, "maxAmount": None, "currency": "USD"}}, "10% off", "10% 할인"),
    "unknown-money": ({"discount": fixed(500, "ABC")}, "500 minor units of ABC off", "ABC 최소 단위 500 할인"),
    "later-discount": ({"discount": {"type": "gift", "item": "mug"}}, "gift", "gift"),
    "no-discount": ({"minOrderAmount": 2000}, "1 per user", "1인당 1장"),
    "later-status": ({"status": "melting"}, "1 per user", "1인당 1장"),
    "no-stock": ({"stock": None}, "1 per user", "1인당 1장"),
    "markup": ({"name": "<img src=x onerror=document.title='run'><b>&amp;"}, "1 per user", "1인당 1장"),
    "long": ({"name": "쿠폰W" * 33}, "1 per user", "1인당 1장"),
}


def try_it_with_anything(browser, base):
    """Shows coupons as a service may write them: money in every currency, and values that the page does not know."""
    watched = Watched(browser)
    page = watched.page
    told = {"items": [coupon(id, **more) for id, (more, _, _) in OFFERS.items()], "nextCursor": None}
    page.route("**/coupons?limit=*", lambda route: route.fulfill(json=told))
    page.goto(f"{base}/")
    for language in (1, 2):
        page.locator(f'[data-lang="{("en", "ko")[language - 1]}"]').click()
        for id, words in OFFERS.items():
            row = page.locator(".coupon", has=page.locator(f'input[value="{id}"]'))
            expect(row.locator(".offer")).to_contain_text(words[language])
            expect(row.locator(".name")).to_have_text(words[0].get("name", id))
    melting = page.locator(".coupon", has=page.locator('input[value="later-status"]'))
    expect(melting.locator(".pill")).to_have_text("melting")
    unknown = page.locator(".coupon", has=page.locator('input[value="no-stock"]'))
    expect(unknown.locator(".unknown")).to_be_visible()
    assert page.title() == "Coupon System" and page.locator(".coupon .name *").count() == 0, "a name was run"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it is wider than the window"
    watched.close()


def try_it_behind_anything(browser, base):
    """Requests while a gateway answers first: that decides nothing, and the page repeats the same request."""
    watched = Watched(browser)
    page, keys = watched.page, []
    answers = [
        {"status": 502, "json": {"code": "sold-out", "title": "Sold out"}},
        {"status": 200, "body": "<!doctype html><title>Wi-Fi</title>", "content_type": "text/html"},
        {"status": 202, "json": {"id": "x", "state": "melting"}},
    ]

    def disturb(route):
        if route.request.method != "POST":
            return route.fallback()
        keys.append(route.request.headers["idempotency-key"])
        return route.fulfill(**answers[len(keys) - 1]) if len(keys) <= len(answers) else route.fallback()

    page.route(lambda url: url.endswith("/user-coupons"), disturb)
    page.goto(f"{base}/")
    page.locator("#coupons input[type=radio]").first.check(force=True)
    page.locator("#random-user").click()
    expect(page.locator("#user-note")).to_contain_text("Registered")
    page.locator("#press").click()
    expect(page.locator("#headline")).to_have_text("No answer yet")
    page.locator("#press").click()
    expect(page.locator("#ticket .serial span")).to_have_text(re.compile(r"\d"))
    assert len(keys) == 4 and len(set(keys)) == 1, keys
    # This check caused the 502.
    watched.wrong = [wrong for wrong in watched.wrong if "502" not in wrong]
    watched.close()


def swagger(browser, base):
    """Opens the page without the slash at the end, reads the document, and sends a request from it."""
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
    # The other parts that one can open bring styles of their own.
    page.locator(".opblock-post .opblock-summary-control").first.click()
    page.locator("section.models button").first.click()
    watched.close()


def main():
    base, chromium = sys.argv[1].rstrip("/"), sys.argv[2]
    with sync_playwright() as playwright:
        # Chromium's sandbox needs rights that containers do not give.
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for check in (try_it, try_it_with_anything, try_it_behind_anything, swagger):
            check(browser, base)
            print(f"   {check.__name__}: {base}")
        browser.close()


main()
