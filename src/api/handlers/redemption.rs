//! The shop uses held coupons, restores used ones, and revokes them. Every answer is the coupon with its history;
//! every request is safe to repeat, except a restore without a reference.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, Path, State};
use axum::response::{IntoResponse, Response};

use super::user_coupons::found;
use crate::access::{Caller, Role};
use crate::api::state::holdings::Holdings;
use crate::api::wire::body::Json as Body;
use crate::api::wire::idempotency::replayed;
use crate::api::wire::problem::Problem as ProblemBody;
use crate::api::wire::redemption::{
    RestoreUserCoupon, UseUserCoupon, UserCouponWithHistory, restore_of, use_of,
};
use crate::http::{Code, Problem};
use crate::metrics;
use crate::redemption::{RedemptionChange, RedemptionChangeOutcome, RedemptionRefusal, USES_MAX};

/// Use a coupon, for a service or an operator. One of many wins; the others get 409.
///
/// Idempotent by its reference: the same one again gets the same answer, `Idempotent-Replayed: true`,
/// whatever the time. A reference whose use was restored does not use the coupon again: use another.
#[utoipa::path(
    post, path = "/user-coupons/{userId}/{id}/use", operation_id = "useUserCoupon", tag = "user coupons", request_body = UseUserCoupon,
    params(("userId" = String, Path, example = "u1"), ("id" = String, Path, description = "The id of its issuance")),
    responses(
        (status = 200, description = "It is used, for this reference", body = UserCouponWithHistory,
            headers(("Idempotent-Replayed" = bool))),
        (status = 404, description = "`user-coupon-not-found`", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "`already-used` with `usedAt`, for services and operators also `reference`; `expired`; `revoked`",
            body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn use_it(
    State(holdings): State<Arc<Holdings>>,
    Extension(caller): Extension<Caller>,
    Path(path): Path<(String, String)>,
    Body(body): Body,
) -> Result<Response, Problem> {
    change(&holdings, &caller, path, use_of(body)?).await
}

/// Undo a use, for a service or an operator: the order was cancelled.
///
/// With a `reference` it undoes the use with that one only, and is idempotent: repeated, it undoes no
/// later use. Without one, a repetition is answered `not-used`. Whether the coupon is still valid is
/// another matter.
#[utoipa::path(
    post, path = "/user-coupons/{userId}/{id}/restore", operation_id = "restoreUserCoupon", tag = "user coupons",
    request_body = Option<RestoreUserCoupon>,
    params(("userId" = String, Path, example = "u1"), ("id" = String, Path, description = "The id of its issuance")),
    responses(
        (status = 200, description = "It is not used, or not by this reference any more", body = UserCouponWithHistory,
            headers(("Idempotent-Replayed" = bool))),
        (status = 404, description = "`user-coupon-not-found`", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "`not-used`, `revoked`", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn restore(
    State(holdings): State<Arc<Holdings>>,
    Extension(caller): Extension<Caller>,
    Path(path): Path<(String, String)>,
    body: Option<Body>,
) -> Result<Response, Problem> {
    change(&holdings, &caller, path, restore_of(body.map(|Body(body)| body))?).await
}

/// Take a coupon away for good, for a service or an operator, used or not. It frees neither the unit nor
/// the user's limit. Safe to repeat.
#[utoipa::path(
    post, path = "/user-coupons/{userId}/{id}/revoke", operation_id = "revokeUserCoupon", tag = "user coupons",
    params(("userId" = String, Path, example = "u1"), ("id" = String, Path, description = "The id of its issuance")),
    responses(
        (status = 200, description = "It is revoked", body = UserCouponWithHistory,
            headers(("Idempotent-Replayed" = bool))),
        (status = 404, description = "`user-coupon-not-found`", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn revoke(
    State(holdings): State<Arc<Holdings>>,
    Extension(caller): Extension<Caller>,
    Path(path): Path<(String, String)>,
) -> Result<Response, Problem> {
    change(&holdings, &caller, path, RedemptionChange::Revoke).await
}

async fn change(
    holdings: &Holdings,
    caller: &Caller,
    (user, id): (String, String),
    change: RedemptionChange,
) -> Result<Response, Problem> {
    let held = found(holdings, caller, &user, &id).await?;
    let validity = holdings.expiry(&held.decision.coupon).await?;
    let end = validity.of(held.decision.decided_at);
    let answer = |held| Json(UserCouponWithHistory::new(&held, &validity, is_named(caller))).into_response();
    // Without a reference a restore undoes any use, also one that came after the first attempt.
    let is_repeatable = !matches!(change, RedemptionChange::Restore { reference: None });
    let changed = holdings.redemptions.change(held, &change, end, &caller.to_string()).await;
    match changed.map_err(|failure| Problem::from(failure).repeatable(is_repeatable))? {
        RedemptionChangeOutcome::Now(held) => {
            metrics::REDEEMED.count(change.event_kind().as_str());
            Ok(answer(held))
        }
        RedemptionChangeOutcome::Before(held) => Ok(replayed(answer(held))),
        RedemptionChangeOutcome::NotFound => Err(Problem::new(Code::UserCouponNotFound)),
        RedemptionChangeOutcome::Refused(_, refusal) => {
            let problem = refused(refusal, caller);
            metrics::REDEMPTION_REFUSED.count(problem.code.as_str());
            Err(problem)
        }
    }
}

fn refused(refusal: RedemptionRefusal, caller: &Caller) -> Problem {
    match refusal {
        RedemptionRefusal::Used { at, reference } => {
            let problem = Problem::new(Code::AlreadyUsed).with("usedAt", at.to_string());
            match reference.filter(|_| sees_references(caller)) {
                Some(reference) => problem.with("reference", reference.as_str()),
                None => problem,
            }
        }
        RedemptionRefusal::Spent => Problem::new(Code::AlreadyUsed).with_detail(
            "This reference used the coupon before, and that use was restored; use another reference.",
        ),
        RedemptionRefusal::UsedUp => Problem::new(Code::AlreadyUsed).with_detail(format!(
            "This coupon was used and restored {USES_MAX} times; it cannot be used again."
        )),
        RedemptionRefusal::NotUsed => Problem::new(Code::NotUsed),
        RedemptionRefusal::UsedForAnother => Problem::new(Code::NotUsed)
            .with_detail("This coupon is used, but not for this reference; nothing was changed."),
        RedemptionRefusal::Expired { end } => Problem::new(Code::Expired).with("validUntil", end.to_string()),
        RedemptionRefusal::Revoked => Problem::new(Code::Revoked),
    }
}

/// Whether the history in an answer names who did what.
pub(crate) fn is_named(caller: &Caller) -> bool {
    matches!(caller, Caller::Open | Caller::Key { .. })
}

fn sees_references(caller: &Caller) -> bool {
    matches!(caller, Caller::Open | Caller::Key { role: Role::Operator | Role::Service, .. })
}
