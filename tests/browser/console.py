"""Uses the operators' console of a running system in Chromium, as a viewer and as an operator.

    console.py BASE CHROMIUM VIEWER_KEY OPERATOR_KEY MONGODB_URI [SCREENSHOTS]

BASE is where a browser reaches the service, perhaps with a path. Each view must be free of what axe-core finds, in both
languages, light and dark, at the width of a phone and of a desk, and never wider than the window. With SCREENSHOTS, a
folder, a picture of each is kept there. MONGODB_URI is for making dead letters: MongoDB refuses records for a while.
"""

import json
import re
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import axe_playwright_python
import pymongo
from playwright.sync_api import expect, sync_playwright

from watched import ANSWER_MAX_MS, Watched

AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text()
WIDTHS = (360, 1440)
DEAD_MAX_SECONDS = 60


class Api:
    """The API, as an operator's program asks it."""

    def __init__(self, base, key):
        self.base, self.key = base, key

    def send(self, method, path, body=None):
        request = urllib.request.Request(f"{self.base}/{path}", method=method)
        request.add_header("authorization", f"Bearer {self.key}")
        if body is not None:
            request.add_header("content-type", "application/json")
            request.data = json.dumps(body).encode()
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)


def open_console(browser, base, key, language="en", width=1440, scheme="light"):
    """A page of its own on which the owner of a key has signed in."""
    watched = Watched(browser, viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = watched.page
    page.goto(f"{base}/console")
    page.locator(f'[data-lang="{language}"]').click()
    # Without credentials the service answers 401, and the page asks for a key.
    page.locator("#key").fill(key)
    page.locator("#key-form button").click()
    expect(page.locator("#views")).to_be_visible()
    watched.wrong.clear()
    return watched


def go(page, view):
    """Goes to a view, and waits until it shows what it is about."""
    page.evaluate("view => { location.hash = view; }", view)
    shown = f'#view[data-view="{view.split("/")[0]}"]'
    expect(page.locator(f"{shown} td:not(:empty), {shown} dd:not(:empty)").first).to_be_visible()


def make_dead_letters(api, mongodb_uri, coupon, users):
    """Has MongoDB refuse the records of a coupon until the requests of these users are dead letters."""
    database = pymongo.MongoClient(mongodb_uri).get_database("coupon")
    before = api.send("GET", "dead-letters?limit=1")["matched"]
    database.command("collMod", "user_coupons", validator={"couponId": {"$ne": coupon}})
    for user in users:
        try:
            api.send("POST", "users", {"id": user})
        except urllib.error.HTTPError as error:
            assert error.code == 409, error
        api.send("POST", "user-coupons", {"userId": user, "couponId": coupon})
    waited_since = time.monotonic()
    while api.send("GET", "dead-letters?limit=1")["matched"] < before + len(users):
        assert time.monotonic() - waited_since < DEAD_MAX_SECONDS, "the requests never became dead letters"
        time.sleep(0.2)
    database.command("collMod", "user_coupons", validator={})


def check_accessibility(page, where):
    page.evaluate(AXE)
    found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")["violations"]
    told = [f"{where}: {one['id']}: {one['help']}: {[node['target'] for node in one['nodes']]}" for one in found]
    assert not told, "\n".join(told)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{where}: it is wider than the window"


def every_view(browser, base, keys, issuance, screenshots):
    """Opens each view at each width, in both languages and both schemes."""
    views = {"campaigns": "campaigns", "campaign": "campaign/console", "dead-letters": "dead-letters",
             "search": f"search/{issuance}", "user": "search/dead-1", "accounts": "accounts", "actions": "actions"}
    for language in ("en", "ko"):
        for width in WIDTHS:
            for scheme in ("light", "dark"):
                watched = open_console(browser, base, keys["operator"], language, width, scheme)
                page = watched.page
                for name, view in views.items():
                    go(page, view)
                    where = f"{name} {language} {width} {scheme}"
                    check_accessibility(page, where)
                    if screenshots:
                        page.screenshot(path=f"{screenshots}/{where.replace(' ', '-')}.png", full_page=True)
                watched.close()


def sign_in(browser, base, screenshots):
    """A wrong key is refused in words, and the form is accessible."""
    for language, refused in (("en", "Unauthenticated"), ("ko", "인증되지 않음")):
        watched = Watched(browser, viewport={"width": 360, "height": 800})
        page = watched.page
        page.goto(f"{base}/console")
        page.locator(f'[data-lang="{language}"]').click()
        expect(page.locator("#sign-in")).to_be_visible()
        page.locator("#key").fill("cpn_nobody_" + "0" * 64)
        page.locator("#key-form button").click()
        expect(page.locator("#sign-in-problem")).to_contain_text(refused)
        check_accessibility(page, f"sign-in {language}")
        if screenshots:
            page.screenshot(path=f"{screenshots}/sign-in-{language}.png", full_page=True)
        # These are what was asked for.
        watched.wrong = [wrong for wrong in watched.wrong if "401" not in wrong]
        watched.close()


def as_viewer(browser, base, keys):
    """A viewer sees everything and no button that changes anything; and the routes refuse all the same."""
    watched = open_console(browser, base, keys["viewer"])
    page = watched.page
    expect(page.locator("#caller")).to_contain_text("viewer")
    page.get_by_role("link", name="Console test").click()
    expect(page.locator("#view h2").first).to_have_text("Console test")
    for view in ("campaign/console", "dead-letters"):
        go(page, view)
        for name in ("Pause", "Resume", "Restock", "End now", "Redrive", "Discard"):
            expect(page.get_by_role("button", name=re.compile(f"^{name}"))).to_have_count(0)
    expect(page.locator("#view tbody tr")).to_have_count(3)
    status = page.evaluate(
        """async () => (await fetch('coupons/console/pause', { method: 'POST',
            headers: { authorization: `Bearer ${sessionStorage.getItem('coupon-console-key')}` } })).status""")
    assert status == 403, status
    # This check caused it.
    watched.wrong = [wrong for wrong in watched.wrong if "403" not in wrong]
    assert keys["viewer"] not in page.url and not page.evaluate("JSON.stringify(localStorage)").count("cpn_")
    page.get_by_role("button", name="Sign out").click()
    expect(page.locator("#sign-in")).to_be_visible()
    assert page.evaluate("sessionStorage.getItem('coupon-console-key')") == ""
    watched.close()


def confirm(page, reason, before=lambda dialog: None):
    """Gives a reason in the dialog and confirms."""
    dialog = page.locator("#dialog")
    expect(dialog).to_be_visible()
    before(dialog)
    page.locator("#dialog-reason").fill(reason)
    check_accessibility(page, "dialog")
    page.locator("#dialog-ok").click()
    expect(dialog).to_be_hidden()


def as_operator(browser, base, keys):
    """An operator takes a campaign through pausing, resuming, restocking and its end, and dead letters through both ways."""
    watched = open_console(browser, base, keys["operator"])
    page = watched.page
    page.get_by_role("link", name="Console test").click()
    expect(page.locator("#view .pill").first).to_have_text("Open")
    page.get_by_role("button", name="Pause").click()
    # Nothing happens without a reason, nor after "Cancel".
    page.locator("#dialog-ok").click()
    expect(page.locator("#dialog-note")).to_contain_text("reason")
    page.locator("#dialog-cancel").click()
    expect(page.locator("#view .pill").first).to_have_text("Open")
    page.get_by_role("button", name="Pause").click()
    confirm(page, "the provider is away")
    expect(page.locator("#view .pill").first).to_have_text("Paused")
    expect(page.locator("#view")).to_contain_text("the provider is away")
    page.get_by_role("button", name="Resume").click()
    confirm(page, "it is back")
    expect(page.locator("#view .pill").first).to_have_text("Open")
    page.get_by_role("button", name="Restock").click()
    confirm(page, "more were printed", lambda dialog: dialog.locator("#units").fill("25"))
    expect(page.locator("#view .figures")).to_contain_text("125")

    go(page, "dead-letters/console")
    expect(page.locator("#view tbody tr")).to_have_count(3)
    page.locator("#filter-userId").fill("dead-1")
    page.get_by_role("button", name="Show").click()
    expect(page.locator("#view tbody tr")).to_have_count(1)
    page.get_by_role("button", name="Redrive all 1").click()
    confirm(page, "MongoDB takes records again")
    expect(page.locator("#view")).to_contain_text("Ended: 1 of 1 done, 0 failed")
    expect(page.locator("#view")).to_contain_text("No dead letters match.")
    # Without a filter everything is meant, and that must be said.
    go(page, "dead-letters")
    page.get_by_role("button", name="Discard all 2").click()
    page.locator("#dialog-reason").fill("refunded")
    page.locator("#dialog-ok").click()
    expect(page.locator("#dialog-note")).to_contain_text("every dead letter")
    confirm(page, "refunded", lambda dialog: dialog.locator("#everything").check())
    expect(page.locator("#view")).to_contain_text("Ended: 2 of 2 done, 0 failed")

    go(page, "search/dead-1")
    expect(page.locator("#view")).to_contain_text("Active")
    go(page, "actions")
    expect(page.locator("#view tbody tr").first).to_contain_text("refunded")
    request_id = page.locator("#view tbody tr").first.locator("td").last.inner_text()
    go(page, f"search/{request_id}")
    expect(page.locator("#view")).to_contain_text("POST /dead-letters/discard")
    go(page, "campaign/console")
    page.get_by_role("button", name="End now").click()
    confirm(page, "the campaign is over")
    expect(page.locator("#view .pill").first).to_have_text("Ended")
    # There was no user with the id of that request.
    watched.wrong = [wrong for wrong in watched.wrong if "404" not in wrong]
    watched.close()


def main():
    base, chromium, viewer, operator, mongodb_uri = sys.argv[1:6]
    screenshots = sys.argv[6] if len(sys.argv) > 6 else None
    keys = {"viewer": viewer, "operator": operator}
    api = Api(base, operator)
    api.send("POST", "coupons", {"id": "console", "name": "Console test", "total": 100, "startsAt": "2026-01-01T00:00:00Z",
                                 "endsAt": "2099-01-01T00:00:00Z"})
    make_dead_letters(api, mongodb_uri, "console", ["dead-1", "dead-2", "dead-3"])
    issuance = api.send("GET", "dead-letters?limit=1")["items"][0]["id"]
    with sync_playwright() as playwright:
        # Chromium's sandbox needs rights that containers do not give.
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for check, arguments in ((sign_in, (screenshots,)), (every_view, (keys, issuance, screenshots)), (as_viewer, (keys,)),
                                 (as_operator, (keys,))):
            check(browser, base, *arguments)
            print(f"   console {check.__name__}: {base}")
        browser.close()


main()
