//! What users hold.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, Path, State};
use jiff::Timestamp;

use super::App;
use super::query::Query;
use super::wire::page::{Asked, Page, cursor};
use super::wire::problem::Problem as ProblemBody;
use super::wire::user_coupon::{UserCoupon, UserCouponStatus};
use crate::access::Caller;
use crate::coupon::{CouponId, Validity};
use crate::http::{Code, Problem};
use crate::issuance::{Decision, IssuanceId, Outcome};
use crate::user::UserId;

/// What a user holds, newest first.
#[utoipa::path(
    get, path = "/user-coupons/{userId}", tag = "user coupons",
    params(
        ("userId" = String, Path, example = "u1"),
        ("status" = Option<UserCouponStatus>, Query, description = "Only these; a page may then have fewer than `limit`"),
        ("limit" = Option<u32>, Query, minimum = 1, description = "50 if not given, at most 500"),
        ("cursor" = Option<String>, Query, description = "The `nextCursor` of the page before"),
    ),
    responses(
        (status = 200, body = Page<UserCoupon>),
        (status = 404, description = "`user-not-found`", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn list(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Path(user): Path<String>,
    mut query: Query,
) -> Result<Json<Page<UserCoupon>>, Problem> {
    let user: UserId = user.parse().map_err(|_| Problem::new(Code::UserNotFound))?;
    let asked: Asked<IssuanceId> = Asked::read(&mut query)?;
    let wanted: Option<UserCouponStatus> = query.take("status", str::parse)?;
    query.finish()?;
    // Before anything tells whether there is such a user.
    if !caller.may_speak_for(&user) {
        return Err(Problem::new(Code::UserNotFound));
    }
    if let Some(registered) = &app.registered
        && !registered.contains(&user).await?
    {
        return Err(Problem::new(Code::UserNotFound));
    }
    let decisions = app.ledger.issued_to(&user, asked.after, asked.limit).await?;
    let last = decisions.last().filter(|_| decisions.len() == asked.limit);
    let next_cursor = last.map(|last| cursor(last.decided_at, last.id));
    let mut items = held(&app, &decisions).await?;
    items.retain(|item| wanted.is_none_or(|wanted| item.status == wanted));
    Ok(Json(Page { items, next_cursor }))
}

/// One unit that a user holds.
#[utoipa::path(
    get, path = "/user-coupons/{userId}/{id}", tag = "user coupons",
    params(
        ("userId" = String, Path, example = "u1"),
        ("id" = String, Path, description = "The id of its issuance"),
    ),
    responses(
        (status = 200, body = UserCoupon),
        (status = 404, description = "`user-coupon-not-found`", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn get(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Path((user, id)): Path<(String, String)>,
) -> Result<Json<UserCoupon>, Problem> {
    let not_found = || Problem::new(Code::UserCouponNotFound);
    let id: IssuanceId = id.parse().map_err(|_| not_found())?;
    let decision = app.lookup.decided(id).await?.ok_or_else(not_found)?;
    if !caller.may_speak_for(&decision.user)
        || decision.user.as_str() != user
        || !matches!(decision.outcome, Outcome::Issued { .. })
    {
        return Err(not_found());
    }
    held(&app, std::slice::from_ref(&*decision)).await?.pop().map(Json).ok_or_else(not_found)
}

/// The units of issued decisions, as they are now.
pub(super) async fn held(app: &App, decisions: &[Decision]) -> Result<Vec<UserCoupon>, Problem> {
    let now = Timestamp::now();
    let mut units = Vec::with_capacity(decisions.len());
    for decision in decisions {
        let validity = validity(app, &decision.coupon).await?;
        units.extend(UserCoupon::new(decision, &validity, now));
    }
    Ok(units)
}

async fn validity(app: &App, coupon: &CouponId) -> Result<Validity, Problem> {
    if let Some(known) = app.validities.get(coupon) {
        return Ok(known);
    }
    match app.coupons.get(coupon).await? {
        Some(found) => {
            app.validities.insert(coupon.clone(), found.validity.clone());
            Ok(found.validity)
        }
        None => Ok(Validity::Unlimited),
    }
}
