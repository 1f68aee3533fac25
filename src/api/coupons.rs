//! Coupons: made by operators, looked at by anyone.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Extension, Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::future::join_all;
use jiff::Timestamp;

use super::App;
use super::query::Query;
use super::wire::coupon::{self as wire, CreateCoupon};
use super::wire::page::{Page, PageParams, cursor};
use super::wire::problem::Problem as ProblemBody;
use crate::Failure;
use crate::access::Caller;
use crate::coupon::{Coupon, CouponStatus, CreateOutcome, Stock, stock};
use crate::http::request::Json as Body;
use crate::http::{Code, Problem};
use crate::ids::CouponId;
use crate::recovery::Loader;
use crate::redis::Partition;
use crate::runtime::damage::damaged;

/// With a status, a page has to look at more coupons than it shows: so many at a time, so often at most.
const LOOKED_AT_ONCE: usize = stock::BATCH_MAX;
const LOOKS_MAX: usize = 20;
/// Whoever looks waits no longer for coupons that Redis does not have; they are loaded all the same.
const LOAD_WAIT_MAX: Duration = Duration::from_secs(2);

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
pub async fn create(State(app): State<Arc<App>>, Body(body): Body) -> Result<Response, Problem> {
    let is_named = body["id"].is_string();
    let coupon = wire::create(body, crate::mongo::now_in_milliseconds())?;
    // Under another id that is generated it would be another coupon.
    let created = app.coupons.insert(&coupon).await;
    if created.map_err(|failure| Problem::from(failure).repeatable(is_named))? == CreateOutcome::Exists {
        let there = app.coupons.get(&coupon.id).await?;
        let is_same = there.is_some_and(|there| there.is_offered_as(&coupon));
        return Err(Problem::new(Code::CouponExists).with("sameAsRequested", is_same));
    }
    // Redis may be away now: then the first request loads it.
    if let Err(failure) = app.loader.load(&coupon.id).await {
        tracing::warn!(coupon = %coupon.id, error = failure.chain(), "the new coupon will be loaded on demand");
    }
    let location = app.links.coupon(&coupon.id);
    let coupon = one_with_stock(&app, coupon).await;
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
    let issued = match looked.known {
        StockReading::NotLoaded => Some(app.issued_counts.of(&looked.coupon).await?),
        StockReading::Live(_) | StockReading::Unknown => None,
    };
    Ok(Json(looked.shown(issued)))
}

/// All coupons, newest first, with their live stock.
///
/// Without a key, few such lists are read at a time: one more is answered 503 `overloaded`.
#[utoipa::path(
    get, path = "/coupons", operation_id = "listCoupons", tag = "coupons",
    params(
        ("status" = Option<wire::Status>, Query, description = "Only these, as they are now; a page that is not the last has fewer than `limit` only if 10,000 others are in between, or many whose records cannot be read"),
        ("limit" = Option<u32>, Query, minimum = 1, description = "50 if not given, at most 500"),
        ("cursor" = Option<String>, Query, description = "The `nextCursor` of the page before"),
    ),
    responses((status = 200, description = "A page of them", body = Page<wire::Coupon>))
)]
pub async fn list(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    mut query: Query,
) -> Result<Json<Page<wire::Coupon>>, Problem> {
    let asked: PageParams<String> = PageParams::read(&mut query)?;
    let wanted = query.take("status", |text| {
        CouponStatus::ALL.into_iter().find(|status| status.as_str() == text).ok_or_else(|| {
            format!("must be one of {}", CouponStatus::ALL.map(CouponStatus::as_str).join(", "))
        })
    })?;
    query.finish()?;
    // Kept until the list is read, or the client has gone.
    let _place = app.public_lists.enter(&caller).await?;

    let (mut items, mut after) = (Vec::new(), asked.after);
    for _ in 0..LOOKS_MAX {
        let at_once = if wanted.is_some() { LOOKED_AT_ONCE } else { asked.limit - items.len() };
        let page = app.coupons.list(after, at_once).await?;
        after = page.next;
        let looked = looked_at(&app.partition, &app.loader, page.items).await;
        let issued = issued_of(&app, &looked).await;
        for looked in looked {
            if wanted.is_some_and(|wanted| !looked.may_be(wanted)) {
                continue;
            }
            let place = (looked.coupon.created_at, looked.coupon.id.to_string());
            let issued = issued.get(&looked.coupon.id).copied();
            let shown = looked.shown(issued);
            if wanted.is_none_or(|wanted| shown.is(wanted)) {
                items.push(shown);
            }
            if items.len() == asked.limit {
                after = Some(place);
                break;
            }
        }
        if items.len() == asked.limit || after.is_none() {
            break;
        }
    }
    let next_cursor = after.map(|(time, id)| cursor(time, id));
    Ok(Json(Page { items, next_cursor }))
}

/// Adds stock and status to a coupon that an operator made or changed: that is done, whatever hinders this.
pub(super) async fn one_with_stock(app: &App, coupon: Coupon) -> wire::Coupon {
    let (known, now) = match stock::read(&app.partition, std::slice::from_ref(&coupon.id)).await {
        Ok((now, mut stocks)) => (stocks.pop().map_or(StockReading::Unknown, StockReading::of), now),
        Err(_) => (StockReading::Unknown, Timestamp::now()),
    };
    let issued = match known {
        StockReading::NotLoaded => app.issued_counts.of(&coupon).await.ok(),
        StockReading::Live(_) | StockReading::Unknown => None,
    };
    CouponSnapshot { coupon, known, now }.shown(issued)
}

/// What was issued of those that Redis does not have, as far as that is known without counting.
async fn issued_of(app: &App, looked: &[CouponSnapshot]) -> HashMap<CouponId, u32> {
    let not_loaded = looked.iter().filter(|looked| matches!(looked.known, StockReading::NotLoaded));
    let not_loaded: Vec<_> = not_loaded.map(|looked| &looked.coupon).collect();
    app.issued_counts.known(&not_loaded).await
}

/// Adds stock and status. Nothing is counted for it: where a count would have to be, the stock is null.
pub(super) async fn with_stock(app: &App, coupons: Vec<Coupon>) -> Vec<wire::Coupon> {
    let looked = looked_at(&app.partition, &app.loader, coupons).await;
    let issued = issued_of(app, &looked).await;
    let shown = looked.into_iter().map(|looked| {
        let issued = issued.get(&looked.coupon.id).copied();
        looked.shown(issued)
    });
    shown.collect()
}

/// Adds what Redis knows. A coupon that can be asked for and that Redis does not have is loaded first.
pub(super) async fn looked_at(
    partition: &Partition,
    loader: &Loader,
    coupons: Vec<Coupon>,
) -> Vec<CouponSnapshot> {
    let ids: Vec<CouponId> = coupons.iter().map(|coupon| coupon.id.clone()).collect();
    let (now, mut known) = known_of(partition, &ids).await;
    let is_due = |coupon: &Coupon| !coupon.archived && coupon.ends_at > now;
    let unloaded: Vec<usize> = (0..ids.len())
        .filter(|place| matches!(known[*place], StockReading::NotLoaded) && is_due(&coupons[*place]))
        .collect();
    if !unloaded.is_empty() {
        let asked: Vec<CouponId> = unloaded.iter().map(|place| ids[*place].clone()).collect();
        // One that is not loaded in time, or cannot be, is shown without its stock.
        let loads = join_all(asked.iter().map(|id| loader.load(id)));
        let _ = tokio::time::timeout(LOAD_WAIT_MAX, loads).await;
        let (_, now_known) = known_of(partition, &asked).await;
        for (place, now_known) in unloaded.into_iter().zip(now_known) {
            known[place] = match now_known {
                StockReading::NotLoaded => StockReading::Unknown,
                known => known,
            };
        }
    }
    coupons.into_iter().zip(known).map(|(coupon, known)| CouponSnapshot { coupon, known, now }).collect()
}

async fn known_of(partition: &Partition, ids: &[CouponId]) -> (Timestamp, Vec<StockReading>) {
    match stock::read(partition, ids).await {
        Ok((now, stocks)) => (now, stocks.into_iter().map(StockReading::of).collect()),
        Err(failure) => {
            tracing::debug!(error = failure.chain(), "the stock is unknown");
            (Timestamp::now(), vec![StockReading::Unknown; ids.len()])
        }
    }
}

/// A coupon and what Redis knew of it at that moment.
#[derive(Clone)]
pub(super) struct CouponSnapshot {
    coupon: Coupon,
    known: StockReading,
    now: Timestamp,
}

#[derive(Clone, Copy)]
enum StockReading {
    Live(Stock),
    NotLoaded,
    Unknown,
}

impl StockReading {
    fn of(stock: Result<Option<Stock>, Failure>) -> Self {
        match stock {
            Ok(stock) => stock.map_or(StockReading::NotLoaded, StockReading::Live),
            Err(damaged) => {
                damaged!(damaged.chain(); error = damaged.chain(), "a coupon is shown without its stock");
                StockReading::Unknown
            }
        }
    }
}

impl CouponSnapshot {
    /// Units that one user may hold.
    pub fn per_user(&self) -> u8 {
        self.coupon.per_user
    }

    /// Whether it may have this status, as far as that can be told without the ledger.
    fn may_be(&self, wanted: CouponStatus) -> bool {
        let remaining = match self.known {
            StockReading::Live(stock) => Some(stock.remaining),
            StockReading::NotLoaded | StockReading::Unknown => None,
        };
        let status = CouponStatus::of(&self.coupon, remaining, self.now);
        let may_be_sold_out = status == CouponStatus::Open && matches!(self.known, StockReading::NotLoaded);
        status == wanted || may_be_sold_out && wanted == CouponStatus::SoldOut
    }

    /// As it is shown. Where Redis does not have a coupon, nothing of it is in flight, and what was
    /// `issued` is all there is to know; where Redis is away the stock is unknown.
    pub fn shown(self, issued: Option<u32>) -> wire::Coupon {
        let CouponSnapshot { coupon, known, now } = self;
        let stock = match known {
            StockReading::Live(stock) => Some(stock),
            StockReading::NotLoaded => issued.map(|issued| {
                let issued = issued.min(coupon.total);
                Stock { total: coupon.total, remaining: coupon.total - issued, reserved: 0, issued }
            }),
            StockReading::Unknown => None,
        };
        wire::Coupon::new(coupon, stock, now)
    }
}
