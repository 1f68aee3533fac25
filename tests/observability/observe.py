"""Asks a Prometheus that scrapes a running system what the dashboard asks, then stops the worker and waits for the alert.

Usage: observe.py API PROMETHEUS WORKER_PID DASHBOARDS

COUPON_TOKEN is an operator's key. Each wait is bounded, and ends as soon as what it waits for is there.
"""

import json
import os
import pathlib
import re
import signal
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

API, PROMETHEUS, WORKER, DASHBOARDS = sys.argv[1:]

# The age in the rule is 30 s; reading it, scraping and evaluating take some seconds more.
ALERT_MAX_SECONDS = 60
READY_MAX_SECONDS = 30
# These show nothing while all is well, or where there is one partition.
SILENT = re.compile(r" > 0|^ALERTS|coupon_partition_")


def get(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


def prometheus(path, **query):
    """What Prometheus answers; an error of a query is an exception with its text."""
    url = f"{PROMETHEUS}/api/v1/{path}?{urllib.parse.urlencode(query)}"
    try:
        answer = get(url)
    except urllib.error.HTTPError as error:
        raise SystemExit(f"{query}: {error.read().decode()}") from error
    assert answer["status"] == "success" and not answer.get("warnings"), answer
    return answer["data"]


def issue(user):
    """Requests the demo coupon."""
    request = urllib.request.Request(
        f"{API}/user-coupons",
        json.dumps({"userId": user, "couponId": "summer"}).encode(),
        {"content-type": "application/json", "authorization": f"Bearer {os.environ['COUPON_TOKEN']}"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 202, answer.status


def wait(what, seconds_max, found):
    start = time.monotonic()
    while not (value := found()):
        if time.monotonic() - start > seconds_max:
            raise SystemExit(f"not within {seconds_max} s: {what}")
        time.sleep(0.2)
    print(f"{time.monotonic() - start:5.1f} s  {what}")
    return value


def is_true(query):
    return lambda: prometheus("query", query=query)["result"]


def is_ready():
    try:
        with urllib.request.urlopen(f"{PROMETHEUS}/-/ready", timeout=10) as answer:
            return answer.status == 200
    except (urllib.error.URLError, ConnectionError):
        # It does not listen yet, or answers 503.
        return False


def queries():
    """Each query of each dashboard with its panel, with Grafana's variables as Grafana fills them in."""
    for path in sorted(pathlib.Path(DASHBOARDS).glob("*.json")):
        dashboard = json.loads(path.read_text())
        for panel in dashboard["panels"]:
            for target in panel.get("targets", []):
                yield panel["title"], target["expr"]
        for annotation in dashboard["annotations"]["list"]:
            yield annotation["name"], annotation["expr"]


def firing(alert):
    def found():
        alerts = prometheus("alerts")["alerts"]
        return [a for a in alerts if a["labels"]["alertname"] == alert and a["state"] == "firing"]

    return found


# A problem, so that there is one to show.
try:
    get(f"{API}/coupons/none")
except urllib.error.HTTPError as error:
    assert error.code == 404, error
wait("Prometheus is ready", READY_MAX_SECONDS, is_ready)
wait("Prometheus scrapes an API and a worker", READY_MAX_SECONDS, is_true('count(up{job=~"coupon-.+"} == 1) == 2'))
issue("u1")
# A rate needs two samples.
issued = 'sum(coupon_issued_total) > 0 and min(count_over_time(http_requests_total{route="/coupons/{id}"}[10s])) > 1'
wait("the worker issues, and Prometheus sees it", READY_MAX_SECONDS, is_true(issued))

asked = empty = 0
for title, query in queries():
    asked += 1
    query = query.replace("$deployment", ".*").replace("$__rate_interval", "10s")
    assert "$" not in query, f"{title}: a variable that this test does not know: {query}"
    now = time.time()
    result = prometheus("query_range", query=query, start=now - 10, end=now, step=1)["result"]
    if not result:
        empty += 1
        assert SILENT.search(query), f"{title}: nothing answers {query}"
print(f"        {asked} queries of the dashboard answered, {empty} of them with nothing, as they should while all is well")

groups = prometheus("rules")["groups"]
rules = [rule for group in groups for rule in group["rules"]]
assert rules and all(rule["health"] == "ok" for rule in rules), rules
early = [alert["labels"] for alert in prometheus("alerts")["alerts"] if alert["state"] == "firing"]
assert not early, early

os.kill(int(WORKER), signal.SIGTERM)
wait("the worker has stopped", READY_MAX_SECONDS, is_true("max(coupon_workers_alive) == 0"))
issue("u2")
[alert] = wait("CouponQueueNotDraining fires", ALERT_MAX_SECONDS, firing("CouponQueueNotDraining"))
print(f"        {alert['annotations']}")
wait("CouponNoWorker fires", ALERT_MAX_SECONDS, firing("CouponNoWorker"))
