//! Coupons: made by operators, looked at by anyone.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;

use super::App;
use super::query::Query;
use super::wire::coupon::{self as wire, CreateCoupon};
use super::wire::page::{Asked, Page, cursor};
use super::wire::problem::Problem as ProblemBody;
use crate::Failure;
use crate::coupon::{Coupon, CouponId, Created, Status, Stock, stock};
use crate::http::request::Json as Body;
use crate::http::{Code, Problem};
use crate::issuance::Ledger;
use crate::partition::Partition;

/// A filter that few coupons pass is not followed for longer than this many pages.
const FILTERED_PAGES_MAX: usize = 20;

/// Make a coupon. It can be requested at once, or from `startsAt` on.
#[utoipa::path(
    post, path = "/coupons", operation_id = "createCoupon", tag = "coupons", request_body = CreateCoupon,
    responses(
        (status = 201, description = "Made", body = wire::Coupon, headers(("Location" = String))),
        (status = 409, description = "`coupon-exists`", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn create(State(app): State<Arc<App>>, Body(body): Body) -> Result<Response, Problem> {
    let coupon = wire::create(body, crate::now_in_milliseconds())?;
    if app.coupons.insert(&coupon).await? == Created::Exists {
        return Err(Problem::new(Code::CouponExists));
    }
    // Redis may be away now: then the first request loads it.
    if let Err(failure) = app.loader.load(&coupon.id).await {
        tracing::warn!(coupon = %coupon.id, error = failure.chain(), "the new coupon will be loaded on demand");
    }
    let location = app.links.coupon(&coupon.id);
    let coupon = with_stock(&app, vec![coupon]).await.pop();
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
pub async fn get(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Json<wire::Coupon>, Problem> {
    // An id that no coupon can have is one that none has.
    let id: CouponId = id.parse().map_err(|_| Problem::new(Code::CouponNotFound))?;
    let looked = app.looks.ask(id).await?.ok_or_else(|| Problem::new(Code::CouponNotFound))?;
    Ok(Json(looked.shown(&app.ledger).await))
}

/// All coupons, newest first, with their live stock.
#[utoipa::path(
    get, path = "/coupons", operation_id = "listCoupons", tag = "coupons",
    params(
        ("status" = Option<wire::Status>, Query, description = "Only these"),
        ("limit" = Option<u32>, Query, minimum = 1, description = "50 if not given, at most 500"),
        ("cursor" = Option<String>, Query, description = "The `nextCursor` of the page before"),
    ),
    responses((status = 200, description = "A page of them", body = Page<wire::Coupon>))
)]
pub async fn list(
    State(app): State<Arc<App>>,
    mut query: Query,
) -> Result<Json<Page<wire::Coupon>>, Problem> {
    let mut asked: Asked<CouponId> = Asked::read(&mut query)?;
    let wanted = query.take("status", |text| {
        Status::ALL
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or_else(|| format!("must be one of {}", Status::ALL.map(Status::as_str).join(", ")))
    })?;
    query.finish()?;

    let mut items = Vec::new();
    let mut next_cursor = None;
    for _ in 0..FILTERED_PAGES_MAX {
        let wanted_now = asked.limit - items.len();
        let page = app.coupons.list(asked.after.take(), wanted_now).await?;
        asked.after =
            page.last().filter(|_| page.len() == wanted_now).map(|last| (last.created_at, last.id.clone()));
        next_cursor = asked.after.as_ref().map(|(time, id)| cursor(*time, id));
        items.extend(
            with_stock(&app, page)
                .await
                .into_iter()
                .filter(|coupon| wanted.is_none_or(|wanted| coupon.is(wanted))),
        );
        if items.len() == asked.limit || next_cursor.is_none() {
            break;
        }
    }
    Ok(Json(Page { items, next_cursor }))
}

/// Adds stock and status.
pub(super) async fn with_stock(app: &App, coupons: Vec<Coupon>) -> Vec<wire::Coupon> {
    let mut shown = Vec::with_capacity(coupons.len());
    for looked in looked_at(&app.partition, coupons).await {
        shown.push(looked.shown(&app.ledger).await);
    }
    shown
}

/// Adds what Redis knows.
pub(super) async fn looked_at(partition: &Partition, coupons: Vec<Coupon>) -> Vec<Looked> {
    let ids: Vec<CouponId> = coupons.iter().map(|coupon| coupon.id.clone()).collect();
    let (now, stocks) = match stock::read(partition, &ids).await {
        Ok((now, stocks)) => (now, stocks.into_iter().map(Known::of).collect()),
        Err(failure) => {
            tracing::debug!(error = failure.chain(), "the stock is unknown");
            (Timestamp::now(), vec![Known::Unknown; ids.len()])
        }
    };
    coupons.into_iter().zip(stocks).map(|(coupon, known)| Looked { coupon, known, now }).collect()
}

/// A coupon and what Redis knew of it at that moment.
#[derive(Clone)]
pub(super) struct Looked {
    coupon: Coupon,
    known: Known,
    now: Timestamp,
}

#[derive(Clone, Copy)]
enum Known {
    Live(Stock),
    NotLoaded,
    Unknown,
}

impl Known {
    fn of(stock: Result<Option<Stock>, Failure>) -> Self {
        match stock {
            Ok(stock) => stock.map_or(Known::NotLoaded, Known::Live),
            Err(damaged) => {
                tracing::error!(error = damaged.chain(), "a coupon is shown without its stock");
                Known::Unknown
            }
        }
    }
}

impl Looked {
    /// As it is shown. Where Redis does not have a coupon, nothing of it is in flight and the ledger
    /// knows; where Redis is away the stock is unknown.
    pub async fn shown(self, ledger: &Ledger) -> wire::Coupon {
        let Looked { coupon, known, now } = self;
        let stock = match known {
            Known::Live(stock) => Some(stock),
            Known::NotLoaded => ledger.issued_count(&coupon.id).await.ok().map(|issued| {
                let issued = u32::try_from(issued).unwrap_or(u32::MAX).min(coupon.total);
                Stock { total: coupon.total, remaining: coupon.total - issued, reserved: 0, issued }
            }),
            Known::Unknown => None,
        };
        wire::Coupon::new(coupon, stock, now)
    }
}
