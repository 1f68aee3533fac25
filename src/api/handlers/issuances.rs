//! Requesting a coupon, and polling for the outcome.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Extension, Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;

use crate::access::Caller;
use crate::api::App;
use crate::api::middleware::guard::only_for;
use crate::api::state::drain_rate::WaitEstimate;
use crate::api::state::issuance_pipeline::IssuancePipeline;
use crate::api::wire::body::RawJson;
use crate::api::wire::idempotency::{IdempotencyKeyHeader, IdempotencyKeyParam, REPLAYED, TRUE, replayed};
use crate::api::wire::issuance::{Issuance, RequestIssuance};
use crate::api::wire::links::Links;
use crate::api::wire::problem::Problem as ProblemBody;
use crate::api::wire::query::Query;
use crate::api::wire::{issuance as wire, wait};
use crate::http::problem::jittered_ms;
use crate::http::request::RequestId;
use crate::http::{Code, Language, Problem};
use crate::ids::{CouponId, IssuanceId, Shares, UserId};
use crate::issuance::lookup::LookupResult;
use crate::issuance::reserve::{QueuedIssuance, Request, Reserved};
use crate::issuance::shares::Refill;
use crate::issuance::{Decision, KeyTag, Outcome, Reason, closed_coupon};
use crate::metrics;
use crate::runtime::traces::TraceParent;

/// How often a coupon that Redis does not have is loaded for one request: it may be retired again in between.
const LOADS_MAX: usize = 3;
/// A request whose share of its coupon is empty waits no longer than this for a unit.
const HELD_MAX: Duration = Duration::from_secs(1);
/// A client that is refused because the backlog is full should wait about this long.
const BACKLOG_RETRY_MS: u64 = 2_000;

/// Request a coupon. The answer comes at once; the outcome is at its `Location`.
///
/// Safe to repeat with an `Idempotency-Key`: the same request has the same id for ever. Without one the same
/// user gets the same id only while the request is queued; where a user may hold several units, a later
/// repetition takes another. A key names one request of its user: with another coupon it is `key-reused`, until at
/// least 250,000 later requests were accepted.
///
/// With `wait` the answer is the outcome, if there is one in time: 201, or 409 with the reason.
///
/// Where the units of a coupon lie in several shares, and that of the user is empty, the API holds the request for a second
/// at most: until a unit of another share has come, or all shares are known to be empty (`sold-out`). If a share that
/// may have units does not answer, nor any other has some, the answer is `share-unreachable`, and nothing was accepted.
#[utoipa::path(
    post, path = "/user-coupons", operation_id = "requestIssuance", tag = "issuances", request_body = RequestIssuance,
    params(
        IdempotencyKeyParam,
        ("wait" = Option<u32>, Query, minimum = 0, description = "Seconds to wait for the outcome, at most 30; 0 if not given"),
    ),
    responses(
        (status = 201, description = "With `wait`: issued. `Location` is the user coupon. With `Idempotent-Replayed: true` it was queued before",
            body = Issuance, headers(("Location" = String), ("Idempotent-Replayed" = bool))),
        (status = 202, description = "Accepted, and queued: poll `Location`. With `Idempotent-Replayed: true` it was queued before",
            body = Issuance, headers(("Location" = String), ("Retry-After" = u32), ("Idempotent-Replayed" = bool))),
        (status = 200, description = "The same key's request was issued before", body = Issuance,
            headers(("Idempotent-Replayed" = bool))),
        (status = 404, description = "`coupon-not-found`, `user-not-found`", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "`already-issued`, `sold-out`, `not-started`, `ended`, `paused`, `archived`, `discarded`; \
            of `already-issued`, `userCoupons` and `issuances` link the newest 20 that the user holds or has in flight; \
            of what was accepted and then rejected, `issuance` is the link",
            body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "`share-unreachable`: a part of the service that may have units of the coupon does not answer, and the others have none",
            body = ProblemBody, content_type = "application/problem+json"),
        (status = 422, description = "`key-reused`: the key was that of an accepted request of the user for another coupon", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
#[expect(clippy::too_many_arguments, reason = "axum hands each part of a request over by itself")]
pub(crate) async fn request(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Extension(RequestId(request_id)): Extension<RequestId>,
    trace: Option<Extension<Arc<TraceParent>>>,
    language: Language,
    key: IdempotencyKeyHeader,
    query: Query,
    RawJson(body): RawJson,
) -> Result<Response, Problem> {
    let wait = wait::read(query)?;
    let (user, coupon) = wire::request(&body)?;
    only_for(&caller, &user)?;
    let fields = app.limits.user.count(&caller, &user).await?;
    let answer = async {
        let key = key.parse()?;
        let shares = app.issuing.placements.of(&coupon).await?;
        let Some(known_user) = app.users.find(&user).await? else {
            return Err(Problem::new(Code::UserNotFound));
        };
        let secret = known_user.id_secret.as_ref();
        // Before the request takes a unit: a user with too many waiting requests is refused, and takes none.
        let _held = match wait {
            Some(_) => Some(Box::new(app.limits.open_requests.hold_for_outcome(&caller, &user)?)),
            None => None,
        };
        let shares = shares.ok_or_else(|| Problem::new(Code::CouponNotFound))?;
        let partition = shares.route(&coupon, &user);
        let id = match &key {
            Some(key) => IssuanceId::from_key(partition, secret, &user, &coupon, key),
            None => IssuanceId::generate(partition),
        };
        let key = key.map(|key| KeyTag::new(secret, &user, &key));
        let trace = trace.map(|Extension(trace)| trace);
        let request = Request { id, coupon, user, key, trace };
        let to = Recipient { language, request_id: &request_id };
        let reserved = match reserve(&app, &request, &shares).await {
            Ok(reserved) => reserved,
            Err(problem) => return Err(Box::pin(left_open(&app, &request, problem)).await),
        };
        if let Reserved::Accepted(queued) = &reserved {
            tracing::debug!(issuance = %queued.id, partition = %queued.id.partition(), "accepted");
        }
        match reserved {
            Reserved::Accepted(queued) if wait.is_none() => Ok(accepted(&app, &request, &queued)),
            // Boxed, so that what few requests need does not enlarge the future of all.
            reserved => Box::pin(conclude(&app, &request, reserved, wait, to)).await,
        }
    };
    fields.on(answer.await)
}

/// Says whether a request that failed is safe to repeat. If the failure leaves open whether it was accepted, a
/// repetition without a key could take another unit, unless the user may hold only one.
async fn left_open(app: &App, request: &Request, problem: Problem) -> Problem {
    if problem.code != Code::Unavailable || request.id.is_keyed() {
        return problem;
    }
    let read = app.catalog.read(request.coupon.clone()).await;
    problem.repeatable(read.is_ok_and(|read| read.is_some_and(|snapshot| snapshot.coupon.per_user == 1)))
}

/// The answer to a request for every result of the reservation.
async fn conclude(
    app: &App,
    request: &Request,
    reserved: Reserved,
    wait: Option<Duration>,
    to: Recipient<'_>,
) -> Result<Response, Problem> {
    match reserved {
        Reserved::Accepted(queued) => answer_queued(app, request, queued, wait, to).await,
        Reserved::Replayed(queued) => {
            let answered = answer_queued(app, request, queued, wait, to).await;
            answered.map(replayed).map_err(|problem| match problem.code {
                // The earlier attempt is lost, so this is no replay.
                Code::Unavailable => problem,
                _ => problem.with_header(REPLAYED, TRUE),
            })
        }
        Reserved::ReplayIssued(id) | Reserved::ReplayRejected(id) => {
            let decided = app.issuing.lookup.decided(id).await?;
            let decision =
                decided.ok_or_else(|| Problem::new(Code::Unavailable).retry_after_ms(jittered_ms(1_000)))?;
            if decision.user != request.user {
                // An earlier user had the same id, and was deleted.
                return Err(Problem::new(Code::Discarded).with_header(REPLAYED, TRUE));
            }
            match decision.outcome {
                Outcome::Issued { .. } => {
                    Ok(replayed(axum::Json(decided_issuance(&app.links, &decision, to)).into_response()))
                }
                Outcome::Rejected { reason, .. } => {
                    Err(rejected(&app.links, id, reason).with_header(REPLAYED, TRUE))
                }
                Outcome::Moved { .. } => Err(Problem::new(Code::IssuanceNotFound)),
            }
        }
        refused => Err(refusal(&app.links, &request.user, refused)),
    }
}

/// The language and the request id of an answer: a rejection in it is a problem in words.
#[derive(Clone, Copy)]
pub(crate) struct Recipient<'a> {
    pub(crate) language: Language,
    pub(crate) request_id: &'a str,
}

/// The answer to a request that is queued: its outcome, if the client waits and it is decided in time; otherwise
/// 202.
async fn answer_queued(
    app: &App,
    request: &Request,
    mut queued: QueuedIssuance,
    wait: Option<Duration>,
    to: Recipient<'_>,
) -> Result<Response, Problem> {
    let Some(wait) = wait else { return Ok(accepted(app, request, &queued)) };
    match app.issuing.feed.wait_for_outcome(queued.id, wait).await {
        Ok(LookupResult::Decided(decision)) => match decision.outcome {
            Outcome::Issued { .. } => {
                let location = app.links.user_coupon(&decision.user, decision.id);
                let issuance = decided_issuance(&app.links, &decision, to);
                Ok((StatusCode::CREATED, [(header::LOCATION, location)], axum::Json(issuance))
                    .into_response())
            }
            Outcome::Rejected { reason, .. } => Err(rejected(&app.links, decision.id, reason)),
            Outcome::Moved { .. } => Err(Problem::new(Code::IssuanceNotFound)),
        },
        Ok(LookupResult::Queued { progress, .. }) => {
            queued.progress = progress;
            Ok(accepted(app, request, &queued))
        }
        // Accepted, and lost with Redis's data before it was decided: the same request starts anew.
        Ok(LookupResult::Nowhere) => Err(Problem::new(Code::Unavailable).retry_after_ms(jittered_ms(1_000))),
        // It is accepted, also if its outcome cannot be read now.
        Err(failure) => {
            tracing::debug!(issuance = %queued.id, error = failure.chain(), "could not wait for the outcome");
            Ok(accepted(app, request, &queued))
        }
    }
}

/// The problem of a request that was accepted and then rejected.
fn rejected(links: &Links, id: IssuanceId, reason: Reason) -> Problem {
    Problem::new(reason.into()).with("issuance", links.issuance(id))
}

/// Reserves a unit. A coupon that Redis does not have is loaded first; for one that is over the ledger answers. Where the
/// user's share of the coupon is empty, the request waits for a unit of another.
async fn reserve(app: &App, request: &Request, shares: &Shares) -> Result<Reserved, Problem> {
    let lane = app.issuing.lane_of(request.id)?;
    let answer = lane.reservations.reserve(request.clone()).await?;
    if matches!(answer, Reserved::Drained) {
        app.issuing.refills.renew(&request.coupon, shares);
    }
    if !matches!(answer, Reserved::NotLoaded { .. } | Reserved::Dry) {
        return Ok(answer);
    }
    // Boxed, so that what few requests need does not enlarge the future of all.
    Box::pin(async move {
        match answer {
            Reserved::NotLoaded { now } => load_and_reserve(app, request, shares, now).await,
            _ => hold(app, request, shares).await,
        }
    })
    .await
}

/// Holds a request whose share of the coupon is empty, until a unit was moved there, or all shares are known to be empty.
async fn hold(app: &App, request: &Request, shares: &Shares) -> Result<Reserved, Problem> {
    let held = Instant::now();
    let answer = async {
        let (lane, coupon) = (app.issuing.lane_of(request.id)?, &request.coupon);
        let mut loads = 0;
        while held.elapsed() < HELD_MAX {
            match app.issuing.refills.refill(coupon, shares, request.id.partition()).await? {
                Refill::AskAgain => {}
                Refill::NotLoaded(partitions) if loads < LOADS_MAX => {
                    loads += 1;
                    for partition in partitions.iter() {
                        app.catalog.load(coupon, *partition).await?;
                    }
                    // Loading may take so long that the user has been deleted meanwhile.
                    if !app.users.knows(&request.user).await? {
                        return Err(Problem::new(Code::UserNotFound));
                    }
                }
                // What was loaded and still cannot be looked at is damaged.
                Refill::NotLoaded(partitions) | Refill::Unreachable(partitions) => {
                    tracing::debug!(%coupon, ?partitions, "a request is refused: there may be units that cannot be reached");
                    return Err(Problem::new(Code::ShareUnreachable).retry_after_ms(jittered_ms(1_000)));
                }
            }
            match lane.reservations.reserve(request.clone()).await? {
                Reserved::Dry => {}
                Reserved::NotLoaded { .. } => drop(app.catalog.load(coupon, request.id.partition()).await?),
                answered => return Ok(answered),
            }
        }
        // Others were faster each time.
        Err(Problem::new(Code::Overloaded).retry_after_ms(jittered_ms(1_000)))
    };
    let answer = answer.await;
    metrics::HELD_SECONDS.record(held.elapsed());
    answer
}

/// Reserves a unit of a coupon that Redis did not have at `now`, by its clock.
async fn load_and_reserve(
    app: &App,
    request: &Request,
    shares: &Shares,
    mut now: Timestamp,
) -> Result<Reserved, Problem> {
    for _ in 0..LOADS_MAX {
        let Some(coupon) = app.catalog.store.get(&request.coupon).await? else {
            return Err(Problem::new(Code::CouponNotFound));
        };
        if coupon.archived || coupon.ends_at <= now {
            return Ok(closed_coupon::answer(&app.issuing.ledger, &coupon, request).await?);
        }
        app.catalog.load(&coupon.id, request.id.partition()).await?;
        // Loading may take so long that the user has been deleted meanwhile.
        if !app.users.knows(&request.user).await? {
            return Err(Problem::new(Code::UserNotFound));
        }
        let lane = app.issuing.lane_of(request.id)?;
        now = match lane.reservations.reserve(request.clone()).await? {
            Reserved::NotLoaded { now } => now,
            Reserved::Dry => return Box::pin(hold(app, request, shares)).await,
            answered => return Ok(answered),
        };
    }
    Err(Problem::new(Code::Unavailable).retry_after_ms(jittered_ms(1_000)))
}

/// The problem of a request that got no unit.
fn refusal(links: &Links, user: &UserId, refused: Reserved) -> Problem {
    let problem = Problem::new(refused.code().unwrap_or(Code::Internal));
    match refused {
        Reserved::AtLimit { issued, in_flight } => {
            let held: Vec<_> = issued.into_iter().map(|id| links.user_coupon(user, id)).collect();
            let problem = problem.with("userCoupons", held);
            if in_flight.is_empty() {
                return problem;
            }
            let queued: Vec<_> = in_flight.into_iter().map(|id| links.issuance(id)).collect();
            problem.with("issuances", queued)
        }
        Reserved::NotStarted { now, starts_at } => {
            let wait_ms = starts_at.as_millisecond() - now.as_millisecond();
            problem
                .with("startsAt", starts_at.to_string())
                .retry_after_ms(u64::try_from(wait_ms).unwrap_or(0))
        }
        Reserved::BacklogFull => problem.retry_after_ms(jittered_ms(BACKLOG_RETRY_MS)),
        _ => problem,
    }
}

fn accepted(app: &App, request: &Request, queued: &QueuedIssuance) -> Response {
    let (issuance, estimate) = queued_issuance(&app.issuing, queued, &request.coupon, &request.user);
    let headers = [
        (header::LOCATION, app.links.issuance(queued.id)),
        (header::RETRY_AFTER, estimate.poll_after_ms.div_ceil(1_000).to_string()),
    ];
    (StatusCode::ACCEPTED, headers, axum::Json(issuance)).into_response()
}

/// What became of a request. With `wait`, as soon as it is decided.
#[utoipa::path(
    get, path = "/issuances/{id}", operation_id = "getIssuance", tag = "issuances",
    params(
        ("id" = String, Path, description = "From the answer to the request"),
        ("wait" = Option<u32>, Query, minimum = 0, description = "Seconds to wait for the outcome, at most 30; 0 if not given"),
    ),
    responses(
        (status = 200, description = "Queued, issued or rejected; while queued, `Retry-After` and `pollAfterMs` say when to ask again",
            body = Issuance, headers(("Retry-After" = u32))),
        (status = 404, description = "`issuance-not-found`", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn get(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Extension(RequestId(request_id)): Extension<RequestId>,
    language: Language,
    Path(id): Path<String>,
    query: Query,
) -> Result<Response, Problem> {
    let wait = wait::read(query)?;
    let id = parse_id(&app.issuing, &id).await?;
    let mut held = None;
    let found = match wait {
        // The caller waits only for an issuance of their own.
        Some(wait) => {
            let may_wait = |found: &LookupResult| match (is_seen_by(&caller, found), found) {
                (true, LookupResult::Queued { in_flight, .. }) => {
                    held.insert(app.limits.open_requests.hold_for_outcome(&caller, &in_flight.user)).is_ok()
                }
                (may_see, _) => may_see,
            };
            app.issuing.feed.wait_for_outcome_if(id, wait, may_wait).await?
        }
        None => app.issuing.lookup.find(id).await?,
    };
    if !is_seen_by(&caller, &found) {
        return Err(not_found(&app.issuing, id));
    }
    if let Some(Err(too_many)) = held {
        return Err(too_many);
    }
    match found {
        LookupResult::Queued { in_flight, progress } => {
            let queued = QueuedIssuance { id, accepted_at: in_flight.accepted_at, progress };
            let (issuance, estimate) =
                queued_issuance(&app.issuing, &queued, &in_flight.coupon, &in_flight.user);
            let retry_after = [(header::RETRY_AFTER, estimate.poll_after_ms.div_ceil(1_000).to_string())];
            Ok((retry_after, axum::Json(issuance)).into_response())
        }
        LookupResult::Decided(decision) => {
            let to = Recipient { language, request_id: &request_id };
            Ok(axum::Json(decided_issuance(&app.links, &decision, to)).into_response())
        }
        LookupResult::Nowhere => Err(lost_or_unknown(&app.issuing, id)),
    }
}

/// Whether the caller may see what was found. To the caller another user's issuance does not exist.
pub(crate) fn is_seen_by(caller: &Caller, found: &LookupResult) -> bool {
    match found {
        LookupResult::Queued { in_flight, .. } => caller.may_speak_for(&in_flight.user),
        LookupResult::Decided(decision) => caller.may_speak_for(&decision.user),
        LookupResult::Nowhere => true,
    }
}

/// The problem of an id that is neither in flight nor decided. An id from before Redis's data was last recovered may
/// have been accepted, and lost with Redis's data.
pub(crate) fn lost_or_unknown(issuing: &IssuancePipeline, id: IssuanceId) -> Problem {
    if older_than_data(issuing, id).is_some() {
        metrics::LOST.increment(1);
    }
    not_found(issuing, id)
}

/// The problem of an id that does not exist for the caller.
pub(crate) fn not_found(issuing: &IssuancePipeline, id: IssuanceId) -> Problem {
    let problem = Problem::new(Code::IssuanceNotFound);
    match older_than_data(issuing, id) {
        Some(recovered_at) => problem.with("redisRecoveredAt", recovered_at.to_string()),
        None => problem,
    }
}

/// When Redis's data was last recovered, if the id was generated before.
fn older_than_data(issuing: &IssuancePipeline, id: IssuanceId) -> Option<Timestamp> {
    let recovered_at = issuing.partitions.get(id.partition()).ok()?.opened_at()?;
    let made_at = id.made_at()?;
    (made_at < recovered_at).then_some(recovered_at)
}

/// Parses the id of an issuance, which is of a partition that there is.
pub(crate) async fn parse_id(issuing: &IssuancePipeline, id: &str) -> Result<IssuanceId, Problem> {
    let id = id.parse().map_err(|_| Problem::new(Code::IssuanceNotFound))?;
    issuing.partition_of(id).await?;
    Ok(id)
}

/// A queued issuance on the wire, and the estimate of its wait.
pub(crate) fn queued_issuance(
    issuing: &IssuancePipeline,
    queued: &QueuedIssuance,
    coupon: &CouponId,
    user: &UserId,
) -> (Issuance, WaitEstimate) {
    let estimate = issuing.estimate(queued);
    let issuance = Issuance::Queued {
        id: queued.id,
        coupon_id: coupon.clone(),
        user_id: user.clone(),
        ahead: queued.progress.ahead,
        estimated_wait_ms: estimate.estimated_ms,
        poll_after_ms: estimate.poll_after_ms,
        accepted_at: queued.accepted_at,
    };
    (issuance, estimate)
}

/// A decided issuance on the wire.
pub(crate) fn decided_issuance(links: &Links, decision: &Decision, to: Recipient<'_>) -> Issuance {
    let (id, coupon_id, user_id) = (decision.id, decision.coupon.clone(), decision.user.clone());
    let (accepted_at, decided_at) = (decision.accepted_at, decision.decided_at);
    match decision.outcome {
        Outcome::Issued { unit, .. } => {
            let (user_coupon, serial) = (links.user_coupon(&decision.user, decision.id), unit.serial());
            Issuance::Issued { id, coupon_id, user_id, serial, accepted_at, decided_at, user_coupon }
        }
        Outcome::Rejected { .. } | Outcome::Moved { .. } => {
            let code = match decision.outcome {
                Outcome::Rejected { reason, .. } => reason.into(),
                // It was no request, but a unit on its way.
                _ => Code::IssuanceNotFound,
            };
            let problem = Problem::new(code).to_value(to.language, to.request_id, links.prefix());
            Issuance::Rejected { id, coupon_id, user_id, problem, accepted_at, decided_at }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The whole future of each request in hand is in memory, whichever way the request takes.
    const FUTURE_BYTES_MAX: usize = 1_024;

    fn size_of_future<A, B, C, D, E, F, G, H, R>(_: fn(A, B, C, D, E, F, G, H) -> R) -> usize {
        size_of::<R>()
    }

    #[test]
    fn a_request_in_hand_is_small() {
        let bytes = size_of_future(request);
        assert!(bytes <= FUTURE_BYTES_MAX, "{bytes}");
    }
}
