//! The queue for operators: its figures, workers and dead letters.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, Path, State};
use axum::response::{IntoResponse, Response};

use super::issuances::{Recipient, decided_issuance};
use crate::api::App;
use crate::api::state::issuance_pipeline::IssuancePipeline;
use crate::api::wire::idempotency::replayed;
use crate::api::wire::issuance::Issuance;
use crate::api::wire::page::Page;
use crate::api::wire::problem::Problem as ProblemBody;
use crate::api::wire::query::Query;
use crate::api::wire::queue::{DeadLetter, Queue, Worker};
use crate::coupon::stock;
use crate::http::request::RequestId;
use crate::http::{Code, Language, Problem};
use crate::ids::IssuanceId;
use crate::issuance::Decision;
use crate::queue::{dead, figures, registry};

/// Dead letters in a page, about.
const PAGE: usize = 100;
/// Redis may answer a scan with an empty part; this many parts are read at most.
const SCANS_MAX: usize = 100;

/// How much waits, and for how long.
#[utoipa::path(get, path = "/queue", operation_id = "getQueue", tag = "operations", responses((status = 200, description = "The queue, at the moment of `readAt`", body = Queue)))]
pub(crate) async fn queue(State(issuing): State<Arc<IssuancePipeline>>) -> Result<Json<Queue>, Problem> {
    Ok(Json(figures(&issuing.partition).await?.into()))
}

/// The workers that have sent a heartbeat.
#[utoipa::path(get, path = "/workers", operation_id = "listWorkers", tag = "operations", responses((status = 200, description = "All of them", body = Vec<Worker>)))]
pub(crate) async fn workers(
    State(issuing): State<Arc<IssuancePipeline>>,
) -> Result<Json<Vec<Worker>>, Problem> {
    // Reads the open epoch, and the time by which heartbeats are judged.
    let (now, _) = stock::read(&issuing.partition, &[]).await?;
    let mut beats = registry::beats(&issuing.partition).await?;
    beats.sort_by(|one, other| one.consumer.cmp(&other.consumer));
    Ok(Json(beats.into_iter().map(|beat| Worker::new(beat, now)).collect()))
}

/// The entries that were set aside, in no order.
#[utoipa::path(
    get, path = "/dead-letters", operation_id = "listDeadLetters", tag = "operations",
    params(("cursor" = Option<String>, Query, description = "The `nextCursor` of the page before")),
    responses((status = 200, description = "A page of them", body = Page<DeadLetter>))
)]
pub(crate) async fn dead_letters(
    State(issuing): State<Arc<IssuancePipeline>>,
    mut query: Query,
) -> Result<Json<Page<DeadLetter>>, Problem> {
    let from = query.take("cursor", |text| {
        text.parse::<u64>().map_err(|_| "must be the nextCursor of an earlier page".to_string())
    })?;
    query.finish()?;
    let (mut letters, mut next) = dead::scan(&issuing.partition, from.unwrap_or(0), PAGE).await?;
    for _ in 1..SCANS_MAX {
        if !letters.is_empty() || next == 0 {
            break;
        }
        (letters, next) = dead::scan(&issuing.partition, next, PAGE).await?;
    }
    let next_cursor = Some(next).filter(|next| *next != 0).map(|next| next.to_string());
    Ok(Json(Page { items: letters.into_iter().map(DeadLetter::from).collect(), next_cursor }))
}

/// One entry that was set aside.
#[utoipa::path(
    get, path = "/dead-letters/{id}", operation_id = "getDeadLetter", tag = "operations",
    params(("id" = String, Path, description = "The issuance")),
    responses(
        (status = 200, description = "The dead letter", body = DeadLetter),
        (status = 404, description = "`issuance-not-found`: it is no dead letter", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn dead_letter(
    State(issuing): State<Arc<IssuancePipeline>>,
    Path(id): Path<String>,
) -> Result<Json<DeadLetter>, Problem> {
    let letter = dead::get(&issuing.partition, parse(&id)?).await?.ok_or_else(no_dead_letter)?;
    Ok(Json(letter.into()))
}

/// Send a dead letter through again, after its cause is mended. Safe to repeat: within 15 minutes the answer is
/// the same, unless it was set aside again or discarded since.
#[utoipa::path(
    post, path = "/dead-letters/{id}/redrive", operation_id = "redriveDeadLetter", tag = "operations",
    params(("id" = String, Path, description = "The issuance")),
    responses(
        (status = 200, description = "On its way, now or (`Idempotent-Replayed: true`) before; as it was set aside", body = DeadLetter,
            headers(("Idempotent-Replayed" = bool))),
        (status = 404, description = "`issuance-not-found`: it is no dead letter", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn redrive(
    State(issuing): State<Arc<IssuancePipeline>>,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let id = parse(&id)?;
    let is_redriven = dead::redrive(&issuing.partition, id).await?;
    let letter = dead::redriven(&issuing.partition, id).await?.ok_or_else(no_dead_letter)?;
    if is_redriven {
        tracing::info!(issuance = %id, partition = %id.partition(), "a dead letter was sent through again");
    } else if issuing.lookup.decided(id).await?.is_some_and(|decision| decision.is_discarded()) {
        return Err(no_dead_letter());
    }
    let answer = Json(DeadLetter::from(letter)).into_response();
    Ok(if is_redriven { answer } else { replayed(answer) })
}

/// Reject a dead letter for good; its unit is free again. Answers with what is decided: if a worker
/// was first, that stands. Safe to repeat.
#[utoipa::path(
    post, path = "/dead-letters/{id}/discard", operation_id = "discardDeadLetter", tag = "operations",
    params(("id" = String, Path, description = "The issuance")),
    responses(
        (status = 200, description = "Decided, now or (`Idempotent-Replayed: true`, discarded) before", body = Issuance,
            headers(("Idempotent-Replayed" = bool))),
        (status = 404, description = "`issuance-not-found`: it is no dead letter", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn discard(
    State(app): State<App>,
    Extension(RequestId(request_id)): Extension<RequestId>,
    language: Language,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let id = parse(&id)?;
    let to = Recipient { language, request_id: &request_id };
    let answer = |decision: &Decision| Json(decided_issuance(&app.links, decision, to)).into_response();
    if let Some(decision) = dead::discard(&app.issuing.partition, &app.issuing.ledger, id).await? {
        tracing::info!(issuance = %id, partition = %id.partition(), "a dead letter was discarded");
        return Ok(answer(&decision));
    }
    let before = app.issuing.lookup.decided(id).await?.filter(|decision| decision.is_discarded());
    before.map(|decision| replayed(answer(&decision))).ok_or_else(no_dead_letter)
}

fn parse(id: &str) -> Result<IssuanceId, Problem> {
    id.parse().map_err(|_| no_dead_letter())
}

fn no_dead_letter() -> Problem {
    Problem::new(Code::IssuanceNotFound).with_detail("There is no dead letter with this id. If there was one, GET {base}/issuances/{id} tells what became of it.")
}
