//! The units that users hold.

use axum::Json;
use axum::extract::{Extension, Path, State};

use super::redemption::is_named;
use crate::Failure;
use crate::access::Caller;
use crate::api::App;
use crate::api::state::holdings::Holdings;
use crate::api::wire::page::{Page, PageParams, cursor};
use crate::api::wire::problem::Problem as ProblemBody;
use crate::api::wire::query::Query;
use crate::api::wire::redemption::UserCouponWithHistory;
use crate::api::wire::user_coupon::{UserCoupon, UserCouponStatus};
use crate::http::{Code, Problem};
use crate::ids::{IssuanceId, UserId};
use crate::issuance::ledger::readable;
use crate::mongo::ListPage;
use crate::redemption::{HeldCoupon, HeldCursor};
use crate::runtime::damage::damaged;

/// A page of one status reads more units than it shows: units in one read, and reads of a page.
const READ_AT_ONCE: usize = 500;
const READS_MAX: usize = 10;

/// What a user holds, newest first.
#[utoipa::path(
    get, path = "/user-coupons/{userId}", operation_id = "listUserCoupons", tag = "user coupons",
    params(
        ("userId" = String, Path, example = "u1"),
        ("status" = Option<UserCouponStatus>, Query, description = "Only these, as they are now; a page that is not the last has fewer than `limit` only if 5,000 others are in between, or many whose records cannot be read"),
        ("limit" = Option<u32>, Query, minimum = 1, description = "50 if not given, at most 500"),
        ("cursor" = Option<String>, Query, description = "The `nextCursor` of the page before"),
    ),
    responses(
        (status = 200, description = "A page of them", body = Page<UserCoupon>),
        (status = 404, description = "`user-not-found`", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn list(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(user): Path<String>,
    mut query: Query,
) -> Result<Json<Page<UserCoupon>>, Problem> {
    let user: UserId = user.parse().map_err(|_| Problem::new(Code::UserNotFound))?;
    let params: PageParams<IssuanceId> = PageParams::read(&mut query)?;
    let wanted: Option<UserCouponStatus> = query.take("status", str::parse)?;
    query.finish()?;
    // Checked first, so that no answer tells whether another user exists.
    if !caller.may_speak_for(&user) || !app.users.knows(&user).await? {
        return Err(Problem::new(Code::UserNotFound));
    }
    let page = held_page(&app.holdings, &user, params.after, params.limit, wanted).await?;
    let next_cursor = page.next.map(|(time, id)| cursor(time, id));
    Ok(Json(Page { items: page.items, next_cursor }))
}

/// A page of at most `limit` of the units that a user holds, newest first, after a cursor; with `wanted` only units of
/// this status. A unit that cannot be read, or whose expiry cannot be read, is left out, and named in the log.
///
/// # Errors
/// MongoDB does not answer.
pub(crate) async fn held_page(
    holdings: &Holdings,
    user: &UserId,
    mut after: Option<HeldCursor>,
    limit: usize,
    wanted: Option<UserCouponStatus>,
) -> Result<ListPage<UserCoupon, HeldCursor>, Failure> {
    let mut items = Vec::new();
    for _ in 0..READS_MAX {
        let at_once = if wanted.is_some() { READ_AT_ONCE } else { limit - items.len() };
        let page = holdings.redemptions.held_by(user, after, at_once).await?;
        for holding in page.items.into_iter().filter_map(readable) {
            let place = (holding.decision.decided_at, holding.decision.id);
            match shown(holdings, &holding).await {
                Ok(item) if wanted.is_none_or(|wanted| item.status == wanted) => items.push(item),
                Ok(_) => {}
                Err(failure) if failure.is_of_one() => {
                    damaged!(holding.decision.id; id = %holding.decision.id, error = failure.chain(), "a user coupon is left out");
                }
                Err(failure) => return Err(failure),
            }
            if items.len() == limit {
                return Ok(ListPage { items, next: Some(place) });
            }
        }
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    Ok(ListPage { items, next: after })
}

/// One unit that a user holds, with its history.
#[utoipa::path(
    get, path = "/user-coupons/{userId}/{id}", operation_id = "getUserCoupon", tag = "user coupons",
    params(
        ("userId" = String, Path, example = "u1"),
        ("id" = String, Path, description = "The id of its issuance"),
    ),
    responses(
        (status = 200, description = "The user coupon, with its history", body = UserCouponWithHistory),
        (status = 404, description = "`user-coupon-not-found`", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn get(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path((user, id)): Path<(String, String)>,
) -> Result<Json<UserCouponWithHistory>, Problem> {
    let held = found(&app.holdings, &caller, &user, &id).await?;
    let validity = app.holdings.expiry(&held.decision.coupon).await?;
    Ok(Json(UserCouponWithHistory::new(&held, &validity, is_named(&caller))))
}

/// The held unit that a path names.
///
/// # Errors
/// 404 `user-coupon-not-found`, also if the caller may not see it.
pub(crate) async fn found(
    holdings: &Holdings,
    caller: &Caller,
    user: &str,
    id: &str,
) -> Result<HeldCoupon, Problem> {
    let not_found = || Problem::new(Code::UserCouponNotFound);
    let user: UserId = user.parse().map_err(|_| not_found())?;
    let id: IssuanceId = id.parse().map_err(|_| not_found())?;
    if !caller.may_speak_for(&user) {
        return Err(not_found());
    }
    holdings.redemptions.get(&user, id).await?.ok_or_else(not_found)
}

/// A held unit on the wire, as it is now.
async fn shown(holdings: &Holdings, holding: &HeldCoupon) -> Result<UserCoupon, Failure> {
    Ok(UserCoupon::new(holding, &holdings.expiry(&holding.decision.coupon).await?))
}
