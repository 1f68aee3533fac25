//! The feed of outcomes for the shop's other systems, which then need not read the database. It comes from the ledger
//! itself and is complete, unlike [`crate::issuance::Feed`], which is a hint for waiting requests.

use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderName, header};
use axum::response::{IntoResponse, Response};
use tokio::time::Instant;

use crate::api::App;
use crate::api::wire::problem::Problem as ProblemBody;
use crate::api::wire::query::Query;
use crate::api::wire::{outcome as wire, wait};
use crate::http::problem::jittered_ms;
use crate::http::{Code, Problem};
use crate::issuance::ledger::follow::{FollowPosition, FollowRead, FollowStart, Follower};

/// Outcomes in an answer without `limit`.
const LIMIT_DEFAULT: usize = 500;
/// A larger `limit` is brought down to this.
const LIMIT_MAX: usize = 5_000;
/// The header with the place to go on from; the last line has it, too.
const NEXT_AFTER: HeaderName = HeaderName::from_static("next-after");

/// What was decided, in the order in which it became certain, from a place on.
///
/// NDJSON: a line an outcome, and at the end a line with `end` and `after`. Each `after` is a place to go
/// on from; `Next-After` is the last. Without `after` the feed starts now: the answer may be empty, and
/// tells the place. With `wait` an answer comes as soon as there is an outcome.
///
/// A client that goes on from where an answer ended gets every outcome once; after a cut answer some come
/// again, with the same `id`. How far back a place may lie is how much history MongoDB keeps (its oplog):
/// `cursor-expired` says that it lies before that. To have everything: take a place here, then export each
/// coupon (`GET /coupons/{id}/user-coupons`), then follow from the place; what is in both has the same `id`.
/// For services and operators.
#[utoipa::path(
    get, path = "/outcomes", operation_id = "followOutcomes", tag = "exports",
    params(
        ("after" = Option<String>, Query, description = "An `after` of an earlier answer; now if not given"),
        ("limit" = Option<u32>, Query, minimum = 1, description = "500 if not given, at most 5000"),
        ("wait" = Option<u32>, Query, minimum = 0, description = "Seconds to wait for an outcome, at most 30; 0 if not given"),
    ),
    responses(
        (status = 200, description = "Each line is an OutcomeLine, the last an OutcomesEnd",
            body = String, content_type = "application/x-ndjson", headers(("Next-After" = String))),
        (status = 410, description = "`cursor-expired`", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn outcomes(State(app): State<App>, mut query: Query) -> Result<Response, Problem> {
    let after: Option<FollowPosition> = query.take("after", str::parse)?;
    let limit = query.take("limit", |text| match text.parse::<usize>() {
        Ok(limit) if limit > 0 => Ok(limit.min(LIMIT_MAX)),
        _ => Err("must be a whole number from 1 to 5000".into()),
    })?;
    let wait = wait::read(query)?;
    let slot = app.limits.followers.take()?;
    let follower = match app.issuing.ledger.follow(after.as_ref(), slot).await? {
        FollowStart::Following(follower) => follower,
        FollowStart::Gone => return Err(Problem::new(Code::CursorExpired)),
        FollowStart::NotAPlace => {
            let why = "must be the `after` of an earlier line or answer";
            return Err(Problem::invalid_parameter("after", why));
        }
    };
    answer(&app, follower, limit.unwrap_or(LIMIT_DEFAULT), wait.unwrap_or_default()).await
}

/// Reads until there is an outcome, or `wait` is over.
async fn answer(
    app: &App,
    mut follower: Follower,
    limit: usize,
    wait: Duration,
) -> Result<Response, Problem> {
    let deadline = Instant::now() + wait;
    loop {
        let (following, read) = follower.read(limit).await?;
        let FollowRead::Decisions(read) = read else { return Err(Problem::new(Code::CursorExpired)) };
        follower = following;
        if read.is_empty() && Instant::now() < deadline && !app.lifecycle.stopping.is_cancelled() {
            continue;
        }
        let place = follower.place();
        let place =
            place.ok_or_else(|| Problem::new(Code::Unavailable).retry_after_ms(jittered_ms(1_000)))?;
        let lines = wire::lines(read, &place).map_err(|error| {
            tracing::error!(%error, "an outcome cannot be written");
            Problem::new(Code::Internal)
        })?;
        let headers = [
            (header::CONTENT_TYPE, "application/x-ndjson"),
            (header::CACHE_CONTROL, "no-store"),
            (NEXT_AFTER, &place.to_string()),
        ];
        return Ok((headers, lines).into_response());
    }
}
