//! The progress and outcome of a request, as server-sent events.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Extension, Path, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};
use futures::stream;
use tokio::time::Instant;

use super::issuances::{
    Recipient, decided_issuance, is_seen_by, lost_or_unknown, not_found, parse_id, queued_issuance,
};
use crate::access::Caller;
use crate::api::App;
use crate::api::state::limits::OpenRequest;
use crate::api::wire::event::{STREAM_MAX, ServerEvent, event_stream};
use crate::api::wire::issuance::Issuance;
use crate::api::wire::problem::Problem as ProblemBody;
use crate::api::wire::query::Query;
use crate::http::addresses::Peer;
use crate::http::problem::jittered_ms;
use crate::http::request::RequestId;
use crate::http::{Language, Problem};
use crate::ids::IssuanceId;
use crate::issuance::feed::{POLL_EVERY, Waiter};
use crate::issuance::lookup::LookupResult;
use crate::issuance::reserve::{QueueProgress, QueuedIssuance};
use crate::issuance::{Decision, InFlight, Outcome};

/// At most one `queued` a second: one for each reading of the feed, whose next one may come a little early.
const QUEUED_EVERY_MIN: Duration = POLL_EVERY.saturating_sub(Duration::from_millis(100));
/// Clients connect again after one to two times this, so not all at once.
const RECONNECT_MS: u64 = 1_000;
/// Names the last event that a client received, when it connects again.
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// What becomes of a request, as it happens.
///
/// Server-sent events: `queued` at once, and again as fewer are ahead, at most once a second; then
/// `issued` or `rejected`, and the stream ends. The data of each is the issuance as a poll tells it, and
/// its id is its name. A stream may end undecided (after five minutes, or when the service restarts):
/// connect again then, with the last id as `Last-Event-ID`, as an `EventSource` does by itself. A client
/// that has heard the outcome is answered 204, at which an `EventSource` comes to rest.
///
/// An `EventSource` also stops for good at 404, 429 or 503: then poll `GET /issuances/{id}`. It cannot send
/// `Authorization`; a client that reads the stream with `fetch` can.
#[utoipa::path(
    get, path = "/issuances/{id}/events", operation_id = "streamIssuance", tag = "issuances",
    params(
        ("id" = String, Path, description = "From the answer to the request"),
        ("Last-Event-ID" = Option<String>, Header, description = "The id of the last event of an earlier stream"),
    ),
    responses(
        (status = 204, description = "The client has heard the outcome: there is nothing more to tell"),
        (status = 200, description = "Events named `queued`, `issued`, `rejected`; the data of each is an Issuance in JSON",
            body = ServerEvent, content_type = "text/event-stream"),
        (status = 404, description = "`issuance-not-found`", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
#[expect(clippy::too_many_arguments, reason = "axum hands each part of a request over by itself")]
pub(crate) async fn events(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Extension(RequestId(request_id)): Extension<RequestId>,
    Extension(Peer(peer)): Extension<Peer>,
    language: Language,
    headers: HeaderMap,
    Path(id): Path<String>,
    query: Query,
) -> Result<Response, Problem> {
    query.finish()?;
    let id = parse_id(&app.issuing, &id).await?;
    let (found, waiter) = app.issuing.feed.watch(id).await?;
    if found == LookupResult::Nowhere {
        return Err(lost_or_unknown(&app.issuing, id));
    }
    if !is_seen_by(&caller, &found) {
        return Err(not_found(&app.issuing, id));
    }
    if let (LookupResult::Decided(decision), Some(heard)) = (&found, headers.get(LAST_EVENT_ID))
        && heard == state(decision)
    {
        return Ok((StatusCode::NO_CONTENT, [(header::CACHE_CONTROL, "no-store")]).into_response());
    }
    let held = match &found {
        LookupResult::Queued { in_flight, .. } => {
            Some(app.limits.open_requests.stream(&caller, &in_flight.user, peer, &headers)?)
        }
        // The stream ends at once.
        _ => None,
    };
    let outcome = OutcomeStream {
        _held: held,
        app: app.clone(),
        id,
        language,
        request_id,
        first: Some(found),
        waiter,
        queued: None,
        ends_at: Instant::now() + STREAM_MAX,
    };
    let events = stream::unfold(outcome, async |mut outcome| {
        let event = outcome.next().await?;
        Some((Ok::<_, Infallible>(event), outcome))
    });
    Ok(event_stream(events))
}

/// A stream under way.
struct OutcomeStream {
    _held: Option<OpenRequest>,
    app: App,
    id: IssuanceId,
    language: Language,
    request_id: Arc<str>,
    /// What was found when the stream began, until it is sent.
    first: Option<LookupResult>,
    /// `None` once there is nothing more to wait for.
    waiter: Option<Waiter>,
    /// How many were ahead in the last `queued`, and when it was sent.
    queued: Option<(u64, Instant)>,
    ends_at: Instant,
}

impl OutcomeStream {
    /// The next event; `None` ends the stream.
    async fn next(&mut self) -> Option<Event> {
        loop {
            let found = match self.first.take() {
                Some(found) => found,
                None => tokio::time::timeout_at(self.ends_at, self.waiter.as_mut()?.next()).await.ok()??,
            };
            match found {
                LookupResult::Queued { in_flight, progress } => {
                    if let Some(event) = self.queued(&in_flight, progress) {
                        return Some(event);
                    }
                }
                LookupResult::Decided(decision) => {
                    self.waiter = None;
                    return self.decided(&decision);
                }
                // Lost with Redis's data: a client that connects again is told so.
                LookupResult::Nowhere => return None,
            }
        }
    }

    /// A `queued`, if it is the first, or if fewer are ahead than in the last one.
    fn queued(&mut self, in_flight: &InFlight, progress: QueueProgress) -> Option<Event> {
        let now = Instant::now();
        let first = match self.queued {
            None => true,
            Some((ahead, told_at)) if progress.ahead < ahead && now - told_at >= QUEUED_EVERY_MIN => false,
            Some(_) => return None,
        };
        self.queued = Some((progress.ahead, now));
        let queued = QueuedIssuance { id: self.id, accepted_at: in_flight.accepted_at, progress };
        let (issuance, _) = queued_issuance(&self.app.issuing, &queued, &in_flight.coupon, &in_flight.user);
        event(&issuance, first)
    }

    fn decided(&self, decision: &Decision) -> Option<Event> {
        let to = Recipient { language: self.language, request_id: &self.request_id };
        event(&decided_issuance(&self.app.links, decision, to), self.queued.is_none())
    }
}

/// The event of an issuance; the first event of a stream also says when to connect again.
fn event(issuance: &Issuance, first: bool) -> Option<Event> {
    let event = Event::default().event(issuance.state()).id(issuance.state());
    let event = if first { event.retry(Duration::from_millis(jittered_ms(RECONNECT_MS))) } else { event };
    event.json_data(issuance).ok()
}

/// The id of the event of a decision.
fn state(decision: &Decision) -> &'static str {
    match decision.outcome {
        Outcome::Issued { .. } => "issued",
        Outcome::Rejected { .. } | Outcome::Moved { .. } => "rejected",
    }
}
