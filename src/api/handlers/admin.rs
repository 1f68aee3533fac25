//! Operators steer a campaign: pause, resume, restock, archive, edit. Requests accepted before are honoured. A
//! handler changes the record first, then Redis; [`admin_sync`] brings to Redis within seconds what does not reach
//! it now, so a change that was answered with 200 stands.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use futures::future::join_all;
use jiff::Timestamp;

use crate::api::state::coupon_catalog::CouponCatalog;
use crate::api::wire::action::{ActionReason, check_reason};
use crate::api::wire::body::Json as Body;
use crate::api::wire::coupon::{self as wire, EditCoupon, RestockCoupon};
use crate::api::wire::idempotency::{IdempotencyKeyHeader, IdempotencyKeyParam, replayed};
use crate::api::wire::problem::Problem as ProblemBody;
use crate::api::wire::service::Service;
use crate::coupon::{
    Coupon, CouponChange, CouponChangeOutcome, Restock, RestockAmount, RestockKey, admin_sync,
};
use crate::http::{Code, Problem};
use crate::ids::CouponId;

/// How often an edit reads again when another change came between.
const EDITS_MAX: usize = 5;

/// Stop accepting requests for a coupon.
#[utoipa::path(
    post, path = "/coupons/{id}/pause", operation_id = "pauseCoupon", tag = "steering", request_body = Option<ActionReason>, params(("id" = String, Path, example = "summer")),
    responses(
        (status = 200, description = "The coupon, paused", body = wire::Coupon),
        (status = 404, description = "`coupon-not-found`", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "`archived`", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn pause(
    State(catalog): State<Arc<CouponCatalog>>,
    Path(id): Path<String>,
    body: Option<Body>,
) -> Result<Response, Problem> {
    check_reason(body)?;
    change(&catalog, &parse(&id)?, CouponChange::Pause).await
}

/// Accept requests for a paused coupon again.
#[utoipa::path(
    post, path = "/coupons/{id}/resume", operation_id = "resumeCoupon", tag = "steering", request_body = Option<ActionReason>, params(("id" = String, Path, example = "summer")),
    responses(
        (status = 200, description = "The coupon, accepting requests again", body = wire::Coupon),
        (status = 404, description = "`coupon-not-found`", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "`archived`", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn resume(
    State(catalog): State<Arc<CouponCatalog>>,
    Path(id): Path<String>,
    body: Option<Body>,
) -> Result<Response, Problem> {
    check_reason(body)?;
    change(&catalog, &parse(&id)?, CouponChange::Resume).await
}

/// Take a coupon out of the offer, for good.
#[utoipa::path(
    post, path = "/coupons/{id}/archive", operation_id = "archiveCoupon", tag = "steering", request_body = Option<ActionReason>, params(("id" = String, Path, example = "summer")),
    responses(
        (status = 200, description = "Archived, now or (`Idempotent-Replayed: true`) before", body = wire::Coupon,
            headers(("Idempotent-Replayed" = bool))),
        (status = 404, description = "`coupon-not-found`", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn archive(
    State(catalog): State<Arc<CouponCatalog>>,
    Path(id): Path<String>,
    body: Option<Body>,
) -> Result<Response, Problem> {
    check_reason(body)?;
    change(&catalog, &parse(&id)?, CouponChange::Archive).await
}

/// Add units, or say how many there are to be in all. Units are never taken away.
///
/// Safe to repeat: `add` needs an `Idempotency-Key`, and adds once for each. The coupon remembers the keys of
/// its latest 50 restocks; the same request again is answered with the coupon as it is now and
/// `Idempotent-Replayed: true`. `total` needs no key.
#[utoipa::path(
    post, path = "/coupons/{id}/restock", operation_id = "restockCoupon", tag = "steering", request_body = RestockCoupon,
    params(
        ("id" = String, Path, example = "summer"),
        IdempotencyKeyParam,
    ),
    responses(
        (status = 200, description = "Restocked, now or (`Idempotent-Replayed: true`) before", body = wire::Coupon,
            headers(("Idempotent-Replayed" = bool))),
        (status = 404, description = "`coupon-not-found`", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "`archived`", body = ProblemBody, content_type = "application/problem+json"),
        (status = 422, description = "`key-reused`: the key was that of another restock of this coupon", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn restock(
    State(catalog): State<Arc<CouponCatalog>>,
    Path(id): Path<String>,
    key: IdempotencyKeyHeader,
    Body(body): Body,
) -> Result<Response, Problem> {
    let units = wire::restock(body)?;
    let key = key.parse()?.map(|key| RestockKey::of(key.as_str()));
    if key.is_none() && matches!(units, RestockAmount::Add(_)) {
        return Err(Problem::invalid_parameter(
            "Idempotency-Key",
            "is missing: it makes sure that a repeated request does not add the units twice; or send total",
        ));
    }
    change(&catalog, &parse(&id)?, CouponChange::Restock(Restock { units, key })).await
}

/// Change the name, `startsAt` until it started, or `endsAt`: later, or a moment that is past to end
/// it now.
#[utoipa::path(
    patch, path = "/coupons/{id}", operation_id = "editCoupon", tag = "steering", request_body = EditCoupon,
    params(("id" = String, Path, example = "summer")),
    responses(
        (status = 200, description = "The coupon, changed", body = wire::Coupon),
        (status = 404, description = "`coupon-not-found`", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "`archived`", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn edit(
    State(catalog): State<Arc<CouponCatalog>>,
    Path(id): Path<String>,
    Body(body): Body,
) -> Result<Response, Problem> {
    let id = parse(&id)?;
    for _ in 0..EDITS_MAX {
        let coupon = catalog.store.get(&id).await?.ok_or_else(|| Problem::new(Code::CouponNotFound))?;
        // What may be edited depends on the coupon that was read, so the edit holds only for that generation.
        let edit = wire::edit(body.clone(), &coupon, Timestamp::now())?;
        match catalog.store.change(&id, &edit, Some(coupon.generation)).await? {
            CouponChangeOutcome::Refused(_) => {}
            changed => return answer(&catalog, changed).await,
        }
    }
    Err(Problem::new(Code::Overloaded))
}

async fn change(catalog: &CouponCatalog, id: &CouponId, change: CouponChange) -> Result<Response, Problem> {
    match (catalog.store.change(id, &change, None).await?, change) {
        (CouponChangeOutcome::Refused(coupon), CouponChange::Restock(restock)) => {
            Err(wire::wrong_restock(&coupon, restock.units))
        }
        (changed, _) => answer(catalog, changed).await,
    }
}

async fn answer(catalog: &CouponCatalog, changed: CouponChangeOutcome) -> Result<Response, Problem> {
    let (coupon, is_replay): (Coupon, bool) = match changed {
        CouponChangeOutcome::Now(coupon) => (coupon, false),
        CouponChangeOutcome::Before(coupon) => (coupon, true),
        CouponChangeOutcome::KeyReused => return Err(Problem::new(Code::KeyReused)),
        CouponChangeOutcome::NotFound => return Err(Problem::new(Code::CouponNotFound)),
        CouponChangeOutcome::Archived => return Err(Problem::new(Code::Archived)),
        // Other changes came between every time.
        CouponChangeOutcome::Refused(_) => return Err(Problem::new(Code::Overloaded)),
    };
    let service = catalog.services.get().await?;
    let applied = coupon.shares.partitions().iter().map(async |share| {
        let partition = catalog.partitions.get(*share)?;
        admin_sync::apply(partition, service, std::slice::from_ref(&coupon)).await
    });
    for failure in join_all(applied).await.into_iter().filter_map(Result::err) {
        tracing::warn!(coupon = %coupon.id, error = failure.chain(), "the change will reach Redis when it is back");
    }
    let answer = Json(catalog.changed(coupon).await).into_response();
    Ok(if is_replay { replayed(answer) } else { answer })
}

fn parse(id: &str) -> Result<CouponId, Problem> {
    id.parse().map_err(|_| Problem::new(Code::CouponNotFound))
}

/// Stop accepting any request. What was accepted is decided, and polling goes on.
#[utoipa::path(
    post, path = "/pause", operation_id = "pauseService", tag = "steering", request_body = Option<ActionReason>,
    responses((status = 200, description = "The service, paused", body = Service))
)]
pub(crate) async fn pause_all(
    State(catalog): State<Arc<CouponCatalog>>,
    body: Option<Body>,
) -> Result<Json<Service>, Problem> {
    check_reason(body)?;
    set_paused(&catalog, true).await
}

/// Accept requests again.
#[utoipa::path(
    post, path = "/resume", operation_id = "resumeService", tag = "steering", request_body = Option<ActionReason>,
    responses((status = 200, description = "The service, accepting requests again", body = Service))
)]
pub(crate) async fn resume_all(
    State(catalog): State<Arc<CouponCatalog>>,
    body: Option<Body>,
) -> Result<Json<Service>, Problem> {
    check_reason(body)?;
    set_paused(&catalog, false).await
}

async fn set_paused(catalog: &CouponCatalog, paused: bool) -> Result<Json<Service>, Problem> {
    let service = catalog.services.set_paused(paused).await?;
    tracing::info!(paused, "an operator paused or resumed the service");
    let applied = catalog.partitions.ask_all("change the service's state", |partition| async move {
        admin_sync::apply(&partition, service, &[]).await
    });
    for failure in applied.await.into_iter().filter_map(Result::err) {
        tracing::warn!(error = failure.chain(), "the change will reach Redis when it is back");
    }
    Ok(Json(Service { paused: service.paused }))
}
