"""Plays request, poll and use with a client that was generated from the served document.

Usage: clients.py URL KEY, with the generated package on the path.
"""

import sys

from coupon_client import AuthenticatedClient
from coupon_client.api.coupons import get_coupon
from coupon_client.api.issuances import get_issuance, request_issuance
from coupon_client.api.user_coupons import list_user_coupons, use_user_coupon
from coupon_client.models import (
    CouponStatus, FixedDiscount, IssuedIssuance, PageUserCoupon, Problem, QueuedIssuance, RequestIssuance,
    UserCouponStatus, UserCouponWithHistory, UseUserCoupon,
)

URL, KEY = sys.argv[1:]
USER, COUPON = "u2", "summer"
api = AuthenticatedClient(base_url=URL, token=KEY)

coupon = get_coupon.sync(COUPON, client=api)
assert coupon.status == CouponStatus.OPEN and isinstance(coupon.discount, FixedDiscount), coupon
assert coupon.stock.remaining > 0 and coupon.starts_at < coupon.ends_at, coupon

body = RequestIssuance(user_id=USER, coupon_id=COUPON)
issuance = request_issuance.sync(client=api, body=body, idempotency_key="python-1")
assert isinstance(issuance, QueuedIssuance), issuance
while isinstance(issuance, QueuedIssuance):
    issuance = get_issuance.sync(str(issuance.id), client=api, wait=10)
assert isinstance(issuance, IssuedIssuance) and issuance.decided_at >= issuance.accepted_at, issuance

used = use_user_coupon.sync(USER, str(issuance.id), client=api, body=UseUserCoupon(reference="order-2"))
assert isinstance(used, UserCouponWithHistory) and used.status == UserCouponStatus.USED, used
assert [change.event.value for change in used.history] == ["issued", "used"], used
held = list_user_coupons.sync(USER, client=api, status=UserCouponStatus.USED)
assert isinstance(held, PageUserCoupon) and held.items[0].serial == issuance.serial, held

again = request_issuance.sync(client=api, body=body)
assert isinstance(again, Problem) and again.code == "already-issued" and len(again.user_coupons) == 1, again
wrong = request_issuance.sync(client=api, body=RequestIssuance(user_id="..", coupon_id=COUPON))
assert isinstance(wrong, Problem) and wrong.errors[0].pointer == "#/userId", wrong
print(f"   {USER} used number {issuance.serial}")
