//! The queue for operators: its figures, workers and dead letters.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::issuances::{Recipient, decided_issuance};
use crate::access::Caller;
use crate::access::action::{ActionGoesOn, ActionId};
use crate::api::App;
use crate::api::state::bulk_actions::BulkVerb;
use crate::api::state::issuance_pipeline::IssuancePipeline;
use crate::api::wire::action::{Action, ActionReason, check_reason};
use crate::api::wire::audit::Accounts;
use crate::api::wire::body::Json as Body;
use crate::api::wire::caller::KnownCaller;
use crate::api::wire::idempotency::replayed;
use crate::api::wire::issuance::Issuance;
use crate::api::wire::page::{PageParams, cursor};
use crate::api::wire::problem::Problem as ProblemBody;
use crate::api::wire::query::Query;
use crate::api::wire::queue::{self as wire, BulkBody, DeadLetter, DeadLetterPage, Queue, Worker};
use crate::audit::{self, AuditSummary};
use crate::coupon::stock;
use crate::http::problem::jittered_ms;
use crate::http::request::RequestId;
use crate::http::{Code, Language, Problem};
use crate::ids::IssuanceId;
use crate::issuance::Decision;
use crate::queue::{dead, figures_of_all, registry};
use crate::redis::Partition;

/// When to ask again while another action on dead letters is running.
const ACTION_RETRY_MS: u64 = 5_000;

/// How much waits, and for how long.
#[utoipa::path(get, path = "/queue", operation_id = "getQueue", tag = "operations", responses((status = 200, description = "The queue, at the moment of `readAt`", body = Queue)))]
pub(crate) async fn queue(State(issuing): State<Arc<IssuancePipeline>>) -> Result<Json<Queue>, Problem> {
    let (backlog, unavailable) = figures_of_all(&issuing.partitions).await?;
    Ok(Json(Queue::new(backlog, unavailable)))
}

/// Who sends this request, and what they may do.
#[utoipa::path(get, path = "/caller", operation_id = "getCaller", tag = "operations", responses((status = 200, description = "The sender", body = KnownCaller)))]
pub(crate) async fn caller(Extension(caller): Extension<Caller>) -> Json<KnownCaller> {
    Json(caller.into())
}

/// The latest audit of the accounts, and the latest recovery. The service audits by itself, again and again;
/// `couponctl audit` does so at once.
#[utoipa::path(get, path = "/audit", operation_id = "getAudit", tag = "operations", responses((status = 200, description = "Both, as far as there were any", body = Accounts)))]
pub(crate) async fn accounts(
    State(issuing): State<Arc<IssuancePipeline>>,
) -> Result<Json<Accounts>, Problem> {
    let read = issuing.partitions.ask_any("read the result of the audit", |partition| async move {
        // Reads the open epoch: what belongs to another is no answer.
        stock::read(&partition, &[]).await?;
        Ok((partition.opened_at(), audit::latest(&partition).await?))
    });
    let (read, unavailable) = read.await?;
    let recovered_at = read.iter().filter_map(|(opened_at, _)| *opened_at).max();
    // Until each partition was audited, the accounts were not.
    let audits: Option<Vec<_>> = read.into_iter().map(|(_, latest)| latest).collect();
    let latest = audits.and_then(|audits| audits.into_iter().reduce(AuditSummary::with));
    Ok(Json(Accounts::new(recovered_at, latest, unavailable)))
}

/// The workers that have sent a heartbeat.
#[utoipa::path(get, path = "/workers", operation_id = "listWorkers", tag = "operations", responses((status = 200, description = "All of them", body = Vec<Worker>)))]
pub(crate) async fn workers(
    State(issuing): State<Arc<IssuancePipeline>>,
) -> Result<Json<Vec<Worker>>, Problem> {
    let read = issuing.partitions.ask_any("read the heartbeats", |partition| async move {
        // Reads the open epoch, and the time by which heartbeats are judged.
        let (now, _) = stock::read(&partition, &[]).await?;
        Ok((now, registry::beats(&partition).await?))
    });
    let (read, _) = read.await?;
    Ok(Json(Worker::of_all(read)))
}

/// The entries that were set aside, the oldest first. All of them are read for each page.
#[utoipa::path(
    get, path = "/dead-letters", operation_id = "listDeadLetters", tag = "operations",
    params(
        ("couponId" = Option<String>, Query, description = "Only those of this coupon"),
        ("userId" = Option<String>, Query, description = "Only those of this user"),
        ("reason" = Option<String>, Query, min_length = 1, max_length = 500, description = "Only those whose reason has this part, in upper or lower case"),
        ("minAge" = Option<String>, Query, description = "Only those set aside at least so long ago: an ISO 8601 duration such as `PT15M`; a day has 24 hours"),
        ("maxAge" = Option<String>, Query, description = "Only those set aside at most so long ago: an ISO 8601 duration such as `P2D`"),
        ("limit" = Option<u32>, Query, minimum = 1, description = "50 if not given, at most 500"),
        ("cursor" = Option<String>, Query, description = "The `nextCursor` of the page before"),
    ),
    responses((status = 200, description = "A page of them", body = DeadLetterPage))
)]
pub(crate) async fn dead_letters(
    State(issuing): State<Arc<IssuancePipeline>>,
    mut query: Query,
) -> Result<Json<DeadLetterPage>, Problem> {
    let params: PageParams<IssuanceId> = PageParams::read(&mut query)?;
    let filter = wire::filter(&mut query)?;
    query.finish()?;
    let shown = |_, letter| DeadLetter::from(letter);
    let found = dead::search(&issuing.partitions, &filter, params.after, params.limit, shown).await?;
    let last = found.oldest.keys().next_back().filter(|_| found.has_more);
    Ok(Json(DeadLetterPage {
        next_cursor: last.map(|(at, id)| cursor(*at, id)),
        matched: found.matched,
        unavailable_partitions: wire::numbers(found.unavailable),
        items: found.oldest.into_values().collect(),
    }))
}

/// Send all dead letters through again that match, as one action.
///
/// It goes on after the answer: the action at `Location` says how far it is, and how it ended. One such action runs at
/// a time. Safe to repeat: what was redriven is no dead letter any more. One action takes a million at most, the
/// oldest.
#[utoipa::path(
    post, path = "/dead-letters/redrive", operation_id = "redriveDeadLetters", tag = "operations", request_body = BulkBody,
    responses(
        (status = 202, description = "Begun", body = Action, headers(("Location" = String))),
        (status = 409, description = "`action-running`", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn redrive_all(
    state: State<App>,
    action: Extension<ActionId>,
    body: Body,
) -> Result<Response, Problem> {
    begin(state, action, BulkVerb::Redrive, body).await
}

/// Reject all dead letters for good that match, as one action; their units are free again.
///
/// As with `POST /dead-letters/redrive`, it goes on after the answer. Where a worker decided first, that stands.
#[utoipa::path(
    post, path = "/dead-letters/discard", operation_id = "discardDeadLetters", tag = "operations", request_body = BulkBody,
    responses(
        (status = 202, description = "Begun", body = Action, headers(("Location" = String))),
        (status = 409, description = "`action-running`", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn discard_all(
    state: State<App>,
    action: Extension<ActionId>,
    body: Body,
) -> Result<Response, Problem> {
    begin(state, action, BulkVerb::Discard, body).await
}

async fn begin(
    State(app): State<App>,
    Extension(id): Extension<ActionId>,
    verb: BulkVerb,
    Body(body): Body,
) -> Result<Response, Problem> {
    if !app.bulk_actions.start(id, verb, wire::bulk(body)?).await? {
        return Err(Problem::new(Code::ActionRunning).retry_after_ms(jittered_ms(ACTION_RETRY_MS)));
    }
    // From here on the action records its own end, whatever becomes of the answer.
    let action = app.access.actions.get(id).await;
    let answer = match action.map_err(Problem::from) {
        Ok(Some(action)) => {
            let headers = [(header::LOCATION, app.links.action(id))];
            (StatusCode::ACCEPTED, headers, Json(Action::from(action))).into_response()
        }
        Ok(None) => Problem::new(Code::ActionNotFound).into_response(),
        Err(problem) => problem.into_response(),
    };
    Ok((Extension(ActionGoesOn), answer).into_response())
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
    let LetterPlace { id, partition, missing } = find(&issuing, &id).await?;
    let letter = dead::get(&partition, id).await?.ok_or_else(missing)?;
    Ok(Json(letter.into()))
}

/// Send a dead letter through again, after its cause is mended. Safe to repeat: within 15 minutes the answer is
/// the same, unless it was set aside again or discarded since.
#[utoipa::path(
    post, path = "/dead-letters/{id}/redrive", operation_id = "redriveDeadLetter", tag = "operations", request_body = Option<ActionReason>,
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
    body: Option<Body>,
) -> Result<Response, Problem> {
    check_reason(body)?;
    let LetterPlace { id, partition, missing } = find(&issuing, &id).await?;
    let is_redriven = dead::redrive(&partition, id).await?;
    let letter = dead::redriven(&partition, id).await?.ok_or_else(missing)?;
    if is_redriven {
        tracing::info!(issuance = %id, partition = %partition.id(), "a dead letter was sent through again");
    } else if issuing.lookup.decided(id).await?.is_some_and(|decision| decision.is_discarded()) {
        return Err(no_dead_letter());
    }
    let answer = Json(DeadLetter::from(letter)).into_response();
    Ok(if is_redriven { answer } else { replayed(answer) })
}

/// Reject a dead letter for good; its unit is free again. Answers with what is decided: if a worker
/// was first, that stands. Safe to repeat.
#[utoipa::path(
    post, path = "/dead-letters/{id}/discard", operation_id = "discardDeadLetter", tag = "operations", request_body = Option<ActionReason>,
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
    body: Option<Body>,
) -> Result<Response, Problem> {
    check_reason(body)?;
    let LetterPlace { id, partition, missing } = find(&app.issuing, &id).await?;
    let to = Recipient { language, request_id: &request_id };
    let answer = |decision: &Decision| Json(decided_issuance(&app.links, decision, to)).into_response();
    if let Some(decision) = dead::discard(&partition, &app.issuing.ledger, id).await? {
        tracing::info!(issuance = %id, partition = %partition.id(), "a dead letter was discarded");
        return Ok(answer(&decision));
    }
    let before = app.issuing.lookup.decided(id).await?.filter(|decision| decision.is_discarded());
    before.map(|decision| replayed(answer(&decision))).ok_or_else(missing)
}

/// Where to look for a dead letter.
struct LetterPlace<F> {
    id: IssuanceId,
    partition: Arc<Partition>,
    /// The answer if it is not there.
    missing: F,
}

/// Finds the partition in which a dead letter lies: that of its id, unless it was routed wrongly.
async fn find(
    issuing: &IssuancePipeline,
    id: &str,
) -> Result<LetterPlace<impl FnOnce() -> Problem + use<>>, Problem> {
    let id: IssuanceId = id.parse().map_err(|_| no_dead_letter())?;
    let (own, mut unavailable) = (issuing.partitions.get(id.partition()).ok(), Vec::new());
    let mut partition = own.map(Arc::clone);
    let is_there = match own {
        Some(own) => issuing.partitions.is_one() || dead::get(own, id).await?.is_some(),
        None => false,
    };
    if !is_there {
        let asked = issuing.partitions.ask_any("look for a dead letter", |partition| async move {
            Ok(dead::get(&partition, id).await?.map(|_| partition))
        });
        let (found, away) = asked.await?;
        partition = found.into_iter().flatten().next().or(partition);
        unavailable = away;
    }
    let Some(partition) = partition else {
        return Err(issuing.partition_of(id).await.err().unwrap_or_else(no_dead_letter));
    };
    let missing = move || match unavailable[..] {
        [] => no_dead_letter(),
        _ => Problem::new(Code::Unavailable).retry_after_ms(jittered_ms(ACTION_RETRY_MS)),
    };
    Ok(LetterPlace { id, partition, missing })
}

fn no_dead_letter() -> Problem {
    Problem::new(Code::IssuanceNotFound).with_detail("There is no dead letter with this id. If there was one, GET {base}/issuances/{id} tells what became of it.")
}
