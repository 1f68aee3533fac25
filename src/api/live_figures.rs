//! Live figures for consoles, as server-sent events: one reading a second, for a bounded number of
//! listeners. Reads: the queue's figures, heartbeats, the newest current coupons and their stock.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Extension, State};
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream;
use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};
use utoipa::ToSchema;

use super::App;
use super::coupons::with_stock;
use super::issuance_events::{KEEP_ALIVE, STREAM_MAX, STREAMED};
use super::open_requests::OpenRequest;
use super::query::Query;
use super::wire::coupon::Coupon;
use super::wire::event::ServerEvent;
use super::wire::queue::{Queue, Worker};
use crate::access::Caller;
use crate::http::addresses::Peer;
use crate::http::problem::jittered_ms;
use crate::http::{Code, Problem};
use crate::queue::{figures, registry};

/// Streams at once; one more is answered 503.
pub(super) const LISTENERS_MAX: usize = 50;
/// Coupons in one reading, the newest of the current ones.
const COUPONS_MAX: usize = 20;
const EVERY: Duration = Duration::from_secs(1);

/// One reading.
#[derive(Debug, Serialize, ToSchema)]
pub struct Figures {
    queue: Queue,
    workers: Vec<Worker>,
    /// The newest twenty of the current ones, with their stock.
    coupons: Vec<Coupon>,
}

/// Live figures, once a second.
///
/// Server-sent events: `figures`, or `unavailable` while they cannot be read. A stream ends after five
/// minutes, or when the service restarts: connect again.
#[utoipa::path(
    get, path = "/events", operation_id = "streamFigures", tag = "operations",
    responses((status = 200, description = "Events named `figures`; the data of each is a Figures in JSON",
        body = ServerEvent, content_type = "text/event-stream"))
)]
pub async fn events(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Extension(Peer(peer)): Extension<Peer>,
    headers: HeaderMap,
    query: Query,
) -> Result<Response, Problem> {
    query.finish()?;
    let held = app.held.listen(&caller, peer, &headers)?;
    let listening = Arc::clone(&app.listeners).try_acquire_owned();
    let place = listening
        .map_err(|_| Problem::new(Code::Overloaded).retry_after_ms(jittered_ms(NO_PLACE_RETRY_MS)))?;
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let ends_at = Instant::now() + STREAM_MAX;
    let telling = FiguresStream { app, ticks, ends_at, _place: place, _held: held };
    let events = stream::unfold(telling, async |mut telling| {
        let event = telling.next().await?;
        Some((Ok::<_, Infallible>(event), telling))
    });
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE);
    Ok((STREAMED, Sse::new(events).keep_alive(keep_alive)).into_response())
}

/// A listener who found no place should stay away for about this long.
const NO_PLACE_RETRY_MS: u64 = 10_000;

/// A stream under way.
struct FiguresStream {
    app: Arc<App>,
    ticks: Interval,
    ends_at: Instant,
    _place: OwnedSemaphorePermit,
    _held: OpenRequest,
}

impl FiguresStream {
    /// The next event; `None` ends the stream.
    async fn next(&mut self) -> Option<Event> {
        tokio::select! {
            () = self.app.stopping.cancelled() => return None,
            () = tokio::time::sleep_until(self.ends_at) => return None,
            _ = self.ticks.tick() => {}
        }
        match read(&self.app).await {
            Ok(figures) => Event::default().event("figures").json_data(figures).ok(),
            Err(problem) => Some(Event::default().event("unavailable").data(problem.code.as_str())),
        }
    }
}

async fn read(app: &App) -> Result<Figures, Problem> {
    let backlog = figures(&app.partition).await?;
    let beats = registry::beats(&app.partition).await?;
    let (coupons, _) = app.coupons.newest_current(Timestamp::now(), COUPONS_MAX).await?;
    Ok(Figures {
        queue: backlog.into(),
        workers: beats.into_iter().map(|beat| Worker::new(beat, backlog.now)).collect(),
        coupons: with_stock(app, coupons).await,
    })
}
