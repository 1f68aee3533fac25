//! Sets a run up: registers users, and makes or takes a coupon.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::api::ServiceClient;
use super::plan::{EARLY, OPENING_MARGIN};

/// Users in one call; the service takes no more.
const REGISTER_MAX: usize = 100_000;
/// Users in one page of the list.
const PAGE: usize = 500;
/// A page may hold others' users: the most pages that are read for each page of ours.
const PAGES_PER_NEEDED_MAX: usize = 4;
/// Between the making of the coupon and the start of the run: connections are made in it.
const START_AFTER: Duration = Duration::from_millis(500);
/// A coupon that opens later than this is not waited for.
const OPENING_WAIT_MAX: Duration = Duration::from_secs(600);
/// A coupon that is made for a run is gone by itself after a day.
const ENDS_AFTER: Duration = Duration::from_secs(24 * 3_600);

/// The coupon of a run.
#[derive(Debug, Clone)]
pub struct CouponOffer {
    pub id: String,
    pub total: u64,
    pub per_user: u64,
    /// Units that were issued or reserved before.
    pub taken: u64,
    /// Made for this run: no other client requests it.
    pub is_own: bool,
    /// When the run starts: [`super::plan::RequestPlan::opening`] later the coupon is open.
    pub start: Instant,
}

/// Registers users and reads their ids back. The service names them, and tells ten of them; the
/// others are found in its list of users by the time of their registration, which they share.
pub(super) async fn register(api: &mut ServiceClient, count: usize) -> Result<Vec<String>, String> {
    let mut ids = Vec::with_capacity(count);
    while ids.len() < count {
        let more = (count - ids.len()).min(REGISTER_MAX);
        let made = api.post(&format!("/users/random?count={more}"), None).await?;
        let first = made["ids"][0].as_str().ok_or("the service registered no user")?;
        let created_at = api.get(&format!("/users/{first}")).await?["createdAt"].clone();
        ids.extend(registered_at(api, &created_at, more).await?);
    }
    Ok(ids)
}

async fn registered_at(
    api: &mut ServiceClient,
    created_at: &Value,
    count: usize,
) -> Result<Vec<String>, String> {
    let mut ids = Vec::with_capacity(count);
    let mut cursor = String::new();
    for _ in 0..(count.div_ceil(PAGE) + 1) * PAGES_PER_NEEDED_MAX {
        let page = api.get(&format!("/users?limit={PAGE}{cursor}")).await?;
        let users = page["items"].as_array().ok_or("the list of users has no items")?;
        let ours = users.iter().filter(|user| &user["createdAt"] == created_at);
        ids.extend(ours.filter_map(|user| user["id"].as_str()).map(str::to_owned));
        match page["nextCursor"].as_str() {
            Some(next) if ids.len() < count => cursor = format!("&cursor={next}"),
            _ => break,
        }
    }
    ids.truncate(count);
    match ids.len() {
        found if found == count => Ok(ids),
        found => Err(format!("{count} users were registered, and only {found} are in the list of users")),
    }
}

/// Makes a coupon that opens when the run wants it.
pub(super) async fn make(
    api: &mut ServiceClient,
    id: &str,
    total: u64,
    shares: Option<u32>,
    has_early_birds: bool,
) -> Result<CouponOffer, String> {
    let (redis_now, seen) = redis_now(api).await?;
    let lead = if has_early_birds { START_AFTER + EARLY } else { Duration::ZERO };
    let starts_at = redis_now + lead;
    let mut body = json!({
        "id": id, "name": "rush", "total": total,
        "startsAt": starts_at.to_string(), "endsAt": (redis_now + ENDS_AFTER).to_string(),
    });
    if let Some(shares) = shares {
        body["shares"] = shares.into();
    }
    api.post("/coupons", Some(&body)).await?;
    let start = if has_early_birds { seen + START_AFTER } else { Instant::now() + START_AFTER };
    if start < Instant::now() {
        return Err(
            "the coupon was open before the run could start: the service is too slow for early birds".into(),
        );
    }
    Ok(CouponOffer { id: id.to_owned(), total, per_user: 1, taken: 0, is_own: true, start })
}

/// Takes an existing coupon. If it has not opened, the start of the run is chosen so that it opens in time.
pub(super) async fn take(
    api: &mut ServiceClient,
    id: &str,
    has_early_birds: bool,
) -> Result<CouponOffer, String> {
    let coupon = api.get(&format!("/coupons/{id}")).await?;
    let (redis_now, seen) = redis_now(api).await?;
    let stock =
        super::sample::StockSample::of(&coupon).ok_or("the service does not know the coupon's stock now")?;
    let starts_at: Timestamp =
        coupon["startsAt"].as_str().and_then(|at| at.parse().ok()).ok_or("the coupon has no startsAt")?;
    let opens_in = Duration::try_from(starts_at.duration_since(redis_now)).unwrap_or_default();
    let lead = if has_early_birds { EARLY } else { Duration::ZERO };
    if has_early_birds && opens_in < lead + START_AFTER {
        return Err(format!("coupon {id} is open, or about to: there can be no early birds"));
    }
    if opens_in > OPENING_WAIT_MAX {
        let minutes = OPENING_WAIT_MAX.as_secs() / 60;
        return Err(format!("coupon {id} opens only at {starts_at}; a run waits {minutes} minutes at most"));
    }
    match coupon["status"].as_str() {
        Some("open" | "scheduled") => {}
        status => return Err(format!("coupon {id} is {}", status.unwrap_or("of no known status"))),
    }
    // The plan of a run with early birds has its own margin.
    let margin = if opens_in.is_zero() || has_early_birds { Duration::ZERO } else { OPENING_MARGIN };
    let start =
        (seen + opens_in + margin).checked_sub(lead).unwrap_or(seen).max(Instant::now() + START_AFTER);
    Ok(CouponOffer {
        id: id.to_owned(),
        total: stock.total,
        per_user: coupon["perUser"].as_u64().unwrap_or(1),
        taken: stock.issued + stock.reserved,
        is_own: false,
        start,
    })
}

/// Redis's time, which decides when a coupon is open, and the moment at which it was read.
async fn redis_now(api: &mut ServiceClient) -> Result<(Timestamp, Instant), String> {
    let asked = Instant::now();
    let queue = api.get("/queue").await?;
    let read_at = queue["readAt"].as_str().and_then(|at| at.parse().ok());
    Ok((read_at.ok_or("GET /queue does not tell the service's time")?, asked + asked.elapsed() / 2))
}
