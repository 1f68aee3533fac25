//! Operators steer a campaign: pause, resume, restock, archive, edit. What was accepted before is
//! honoured. The record is changed first, then Redis; what does not reach Redis now is brought there
//! within seconds (see [`steer`]), so a change that was answered with 200 stands.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use jiff::Timestamp;

use super::App;
use super::coupons::with_stock;
use super::wire::coupon::{self as wire, EditCoupon, Restock};
use super::wire::problem::Problem as ProblemBody;
use super::wire::service::Service;
use crate::coupon::{Change, Changed, Coupon, CouponId, MAX_TOTAL, steer};
use crate::http::request::Json as Body;
use crate::http::{Code, Problem};

/// Somebody else's changes in between are met by reading again, this often.
const EDITS_MAX: usize = 5;

/// Stop accepting requests for a coupon.
#[utoipa::path(
    post, path = "/coupons/{id}/pause", operation_id = "pauseCoupon", tag = "steering", params(("id" = String, Path, example = "summer")),
    responses(
        (status = 200, description = "The coupon, paused", body = wire::Coupon),
        (status = 404, description = "`coupon-not-found`", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "`archived`", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn pause(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Result<Json<wire::Coupon>, Problem> {
    change(&app, &parse(&id)?, Change::Pause).await
}

/// Accept requests for a paused coupon again.
#[utoipa::path(
    post, path = "/coupons/{id}/resume", operation_id = "resumeCoupon", tag = "steering", params(("id" = String, Path, example = "summer")),
    responses(
        (status = 200, description = "The coupon, accepting requests again", body = wire::Coupon),
        (status = 404, description = "`coupon-not-found`", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "`archived`", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn resume(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Result<Json<wire::Coupon>, Problem> {
    change(&app, &parse(&id)?, Change::Resume).await
}

/// Take a coupon out of the offer, for good.
#[utoipa::path(
    post, path = "/coupons/{id}/archive", operation_id = "archiveCoupon", tag = "steering", params(("id" = String, Path, example = "summer")),
    responses(
        (status = 200, description = "The coupon, archived", body = wire::Coupon),
        (status = 404, description = "`coupon-not-found`", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "`archived`", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn archive(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Result<Json<wire::Coupon>, Problem> {
    change(&app, &parse(&id)?, Change::Archive).await
}

/// Add units. Not safe to repeat: each adds again.
#[utoipa::path(
    post, path = "/coupons/{id}/restock", operation_id = "restockCoupon", tag = "steering", request_body = Restock,
    params(("id" = String, Path, example = "summer")),
    responses(
        (status = 200, description = "The coupon, with the units added", body = wire::Coupon),
        (status = 404, description = "`coupon-not-found`", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "`archived`", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn restock(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    Body(body): Body,
) -> Result<Json<wire::Coupon>, Problem> {
    let add = wire::restock(body)?;
    change(&app, &parse(&id)?, Change::Restock { add }).await
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
pub async fn edit(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    Body(body): Body,
) -> Result<Json<wire::Coupon>, Problem> {
    let id = parse(&id)?;
    for _ in 0..EDITS_MAX {
        let coupon = app.coupons.get(&id).await?.ok_or_else(|| Problem::new(Code::CouponNotFound))?;
        // What may be changed depends on what it is, so it must still be that when it is changed.
        let edit = wire::edit(body.clone(), &coupon, Timestamp::now())?;
        match app.coupons.change(&id, &edit, Some(coupon.generation)).await? {
            Changed::Refused(_) => {}
            changed => return answer(&app, changed).await,
        }
    }
    Err(Problem::new(Code::Overloaded))
}

async fn change(app: &App, id: &CouponId, change: Change) -> Result<Json<wire::Coupon>, Problem> {
    answer(app, app.coupons.change(id, &change, None).await?).await
}

async fn answer(app: &App, changed: Changed) -> Result<Json<wire::Coupon>, Problem> {
    let coupon: Coupon = match changed {
        Changed::Now(coupon) => coupon,
        Changed::NotFound => return Err(Problem::new(Code::CouponNotFound)),
        Changed::Archived => return Err(Problem::new(Code::Archived)),
        Changed::Refused(coupon) => {
            let room = MAX_TOTAL - coupon.total;
            return Err(wire::wrong_restock(format!(
                "would make more than {MAX_TOTAL} units; {room} can be added"
            )));
        }
    };
    let service = app.services.get().await?;
    if let Err(failure) = steer::apply(&app.partition, service, std::slice::from_ref(&coupon)).await {
        tracing::warn!(coupon = %coupon.id, error = failure.chain(), "the change will reach Redis when it is back");
    }
    let shown = with_stock(app, vec![coupon]).await.pop();
    shown.map(Json).ok_or_else(|| Problem::new(Code::Internal))
}

fn parse(id: &str) -> Result<CouponId, Problem> {
    id.parse().map_err(|_| Problem::new(Code::CouponNotFound))
}

/// Stop accepting any request. What was accepted is decided, and polling goes on.
#[utoipa::path(post, path = "/pause", operation_id = "pauseService", tag = "steering", responses((status = 200, description = "The service, paused", body = Service)))]
pub async fn pause_all(State(app): State<Arc<App>>) -> Result<Json<Service>, Problem> {
    set_paused(&app, true).await
}

/// Accept requests again.
#[utoipa::path(post, path = "/resume", operation_id = "resumeService", tag = "steering", responses((status = 200, description = "The service, accepting requests again", body = Service)))]
pub async fn resume_all(State(app): State<Arc<App>>) -> Result<Json<Service>, Problem> {
    set_paused(&app, false).await
}

async fn set_paused(app: &App, paused: bool) -> Result<Json<Service>, Problem> {
    let service = app.services.set_paused(paused).await?;
    tracing::info!(paused, "an operator changed whether anything is accepted");
    if let Err(failure) = steer::apply(&app.partition, service, &[]).await {
        tracing::warn!(error = failure.chain(), "the change will reach Redis when it is back");
    }
    Ok(Json(Service { paused: service.paused }))
}
