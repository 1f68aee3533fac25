//! Coupons: operators create them, anyone reads them.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::access::Caller;
use crate::api::App;
use crate::api::state::coupon_catalog::CouponCatalog;
use crate::api::wire::body::Json as Body;
use crate::api::wire::coupon::{self as wire, CreateCoupon};
use crate::api::wire::page::{Page, PageParams, cursor};
use crate::api::wire::problem::Problem as ProblemBody;
use crate::api::wire::query::Query;
use crate::coupon::{CouponStatus, CreateOutcome, stock};
use crate::http::{Code, Problem};
use crate::ids::CouponId;
use crate::issuance::ledger::Layout;
use crate::recovery::load_all;

/// A page of one status reads more coupons than it shows: coupons in one read, and reads of a page.
const READ_AT_ONCE: usize = stock::BATCH_MAX;
const READS_MAX: usize = 20;

/// Make a coupon. It can be requested at once, or from `startsAt` on.
///
/// Safe to repeat with an `id` of yours: `sameAsRequested` then tells whether an earlier attempt made it.
/// Without one, each request makes another coupon.
#[utoipa::path(
    post, path = "/coupons", operation_id = "createCoupon", tag = "coupons", request_body = CreateCoupon,
    responses(
        (status = 201, description = "Made", body = wire::Coupon, headers(("Location" = String))),
        (status = 409, description = "`coupon-exists`; `sameAsRequested` tells whether it is exactly what this request asks for, as after a lost answer", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn create(State(app): State<App>, Body(body): Body) -> Result<Response, Problem> {
    let is_named = body["id"].is_string();
    let (mut coupon, shares) = wire::create(body, crate::mongo::now_in_milliseconds())?;
    let partitions = &app.catalog.partitions;
    let is_migrated = app.issuing.ledger.layout().await? == Layout::Partitioned;
    let shares = match (shares, is_migrated) {
        (None, true) => partitions.shares_by_default(coupon.total),
        (None | Some(1), false) => 1,
        (Some(_), false) => return Err(wire::shares_before_migration()),
        (Some(shares), true) => shares,
    };
    coupon.shares =
        partitions.place(&coupon.id, shares).ok_or_else(|| wire::too_many_shares(partitions.shares_max()))?;
    if shares > 1 {
        app.issuing.ledger.ensure_indexed_moves().await?;
    }
    // With a generated id a repetition would create another coupon.
    let created = app.catalog.store.insert(&coupon).await;
    if created.map_err(|failure| Problem::from(failure).repeatable(is_named))? == CreateOutcome::Exists {
        let existing = app.catalog.store.get(&coupon.id).await?;
        let is_same = existing.is_some_and(|existing| existing.is_offered_as(&coupon));
        return Err(Problem::new(Code::CouponExists).with("sameAsRequested", is_same));
    }
    // If Redis does not answer now, the first request loads the coupon.
    if let Err(failure) = load_all(&app.catalog.loaders, &coupon).await {
        tracing::warn!(coupon = %coupon.id, error = failure.chain(), "the new coupon will be loaded on demand");
    }
    let location = app.links.coupon(&coupon.id);
    let coupon = app.catalog.changed(coupon).await;
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(coupon)).into_response())
}

/// One coupon, with its live stock.
#[utoipa::path(
    get, path = "/coupons/{id}", operation_id = "getCoupon", tag = "coupons",
    params(("id" = String, Path, example = "summer")),
    responses(
        (status = 200, description = "The coupon", body = wire::Coupon),
        (status = 404, description = "`coupon-not-found`", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn get(
    State(catalog): State<Arc<CouponCatalog>>,
    Path(id): Path<String>,
) -> Result<Json<wire::Coupon>, Problem> {
    // No coupon has an id that cannot be parsed.
    let id: CouponId = id.parse().map_err(|_| Problem::new(Code::CouponNotFound))?;
    catalog.get(id).await?.map(Json).ok_or_else(|| Problem::new(Code::CouponNotFound))
}

/// All coupons, newest first, with their live stock.
///
/// Without a key, few such lists are read at a time: one more is answered 503 `overloaded`.
#[utoipa::path(
    get, path = "/coupons", operation_id = "listCoupons", tag = "coupons",
    params(
        ("status" = Option<CouponStatus>, Query, description = "Only these, as they are now; a page that is not the last has fewer than `limit` only if 10,000 others are in between, or many whose records cannot be read"),
        ("limit" = Option<u32>, Query, minimum = 1, description = "50 if not given, at most 500"),
        ("cursor" = Option<String>, Query, description = "The `nextCursor` of the page before"),
    ),
    responses((status = 200, description = "A page of them", body = Page<wire::Coupon>))
)]
pub(crate) async fn list(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    mut query: Query,
) -> Result<Json<Page<wire::Coupon>>, Problem> {
    let params: PageParams<String> = PageParams::read(&mut query)?;
    let wanted = query.take("status", |text| {
        CouponStatus::ALL.into_iter().find(|status| status.as_str() == text).ok_or_else(|| {
            format!("must be one of {}", CouponStatus::ALL.map(CouponStatus::as_str).join(", "))
        })
    })?;
    query.finish()?;
    // Held until the list is read or the client is gone.
    let _slot = app.limits.list_slot(&caller).await?;

    let (mut items, mut after) = (Vec::new(), params.after);
    for _ in 0..READS_MAX {
        let at_once = if wanted.is_some() { READ_AT_ONCE } else { params.limit - items.len() };
        let page = app.catalog.store.list(after, at_once).await?;
        after = page.next;
        let snapshots = app.catalog.snapshots(page.items).await;
        let issued = app.catalog.issued_of(&snapshots).await;
        for snapshot in snapshots {
            if wanted.is_some_and(|wanted| !snapshot.may_have(wanted)) {
                continue;
            }
            let place = (snapshot.coupon.created_at, snapshot.coupon.id.to_string());
            let issued = issued.get(&snapshot.coupon.id).copied();
            let shown = snapshot.into_wire(issued);
            if wanted.is_none_or(|wanted| shown.is(wanted)) {
                items.push(shown);
            }
            if items.len() == params.limit {
                after = Some(place);
                break;
            }
        }
        if items.len() == params.limit || after.is_none() {
            break;
        }
    }
    let next_cursor = after.map(|(time, id)| cursor(time, id));
    Ok(Json(Page { items, next_cursor }))
}
