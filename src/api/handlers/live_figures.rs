//! Live figures for consoles, as server-sent events: one reading a second, for a bounded number of listeners. It reads
//! the queue's figures, heartbeats, the newest current coupons and their stock.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::{Extension, State};
use axum::http::HeaderMap;
use axum::response::Response;
use axum::response::sse::Event;
use futures::stream;
use jiff::Timestamp;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};

use crate::access::Caller;
use crate::api::App;
use crate::api::state::coupon_catalog::CouponCatalog;
use crate::api::state::limits::{OpenRequest, Slot};
use crate::api::wire::event::{STREAM_MAX, ServerEvent, event_stream};
use crate::api::wire::figures::Figures;
use crate::api::wire::query::Query;
use crate::api::wire::queue::{Queue, Worker};
use crate::http::Problem;
use crate::http::addresses::Peer;
use crate::queue::{figures_of_all, registry};

/// Coupons in one reading, the newest of the current ones.
const COUPONS_MAX: usize = 20;
const EVERY: Duration = Duration::from_secs(1);

/// Live figures, once a second.
///
/// Server-sent events: `figures`, or `unavailable` while they cannot be read. A stream ends after five
/// minutes, or when the service restarts: connect again.
#[utoipa::path(
    get, path = "/events", operation_id = "streamFigures", tag = "operations",
    responses((status = 200, description = "Events named `figures`; the data of each is a Figures in JSON",
        body = ServerEvent, content_type = "text/event-stream"))
)]
pub(crate) async fn events(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Extension(Peer(peer)): Extension<Peer>,
    headers: HeaderMap,
    query: Query,
) -> Result<Response, Problem> {
    query.finish()?;
    let held = app.limits.open_requests.listen(&caller, peer, &headers)?;
    let slot = app.limits.figures.take()?;
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let ends_at = Instant::now() + STREAM_MAX;
    let figures = FiguresStream { app, ticks, ends_at, _slot: slot, _held: held };
    let events = stream::unfold(figures, async |mut figures| {
        let event = figures.next().await?;
        Some((Ok::<_, Infallible>(event), figures))
    });
    Ok(event_stream(events))
}

/// A stream under way.
struct FiguresStream {
    app: App,
    ticks: Interval,
    ends_at: Instant,
    _slot: Slot,
    _held: OpenRequest,
}

impl FiguresStream {
    /// The next event; `None` ends the stream.
    async fn next(&mut self) -> Option<Event> {
        tokio::select! {
            () = self.app.lifecycle.stopping.cancelled() => return None,
            () = tokio::time::sleep_until(self.ends_at) => return None,
            _ = self.ticks.tick() => {}
        }
        match read(&self.app.catalog).await {
            Ok(figures) => Event::default().event("figures").json_data(figures).ok(),
            Err(problem) => Some(Event::default().event("unavailable").data(problem.code.as_str())),
        }
    }
}

async fn read(catalog: &CouponCatalog) -> Result<Figures, Problem> {
    let (backlog, unavailable) = figures_of_all(&catalog.partitions).await?;
    let beats = catalog.partitions.ask_any("read the heartbeats", |partition| async move {
        Ok((backlog.now, registry::beats(&partition).await?))
    });
    let (beats, _) = beats.await?;
    let (coupons, _) = catalog.store.newest_current(Timestamp::now(), COUPONS_MAX).await?;
    Ok(Figures {
        queue: Queue::new(backlog, unavailable),
        workers: Worker::of_all(beats),
        coupons: catalog.with_stock(coupons).await,
    })
}
