//! Sends requests when they are planned, whatever became of those before, over a fixed number of kept
//! connections.
//!
//! A request that is due while every connection is busy waits, and its time runs from the moment it
//! was planned: a service that is slow is not asked less, nor flattered. With every moment at zero
//! it is a closed loop: each connection sends as soon as it is answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::connection::{ExchangeError, RawConnection, RawResponse};
use super::target::LoadTarget;

/// What the loop sends, and what takes its answers. Shared by all connections.
pub trait Workload: Send + Sync + 'static {
    /// Appends a request that each connection sends once, before any planned one; by default none.
    fn write_first(&self, _request: &mut Vec<u8>) {}

    /// Appends the bytes of the request with this number.
    fn write(&self, number: usize, request: &mut Vec<u8>);

    /// Takes the answer to request `number`, which was planned for `planned` and sent at `sent`.
    fn answered(
        &self,
        number: usize,
        planned: Instant,
        sent: Instant,
        answer: Result<RawResponse<'_>, ExchangeError>,
    );

    /// Request `number` was not sent: too many were waiting.
    fn dropped(&self, number: usize);
}

/// Bounds of the generator.
#[derive(Debug, Clone, Copy)]
pub struct LoadBounds {
    /// Connections, each with one request at a time.
    pub connections: usize,
    /// Requests that are due and unanswered; those beyond this number are dropped.
    pub in_flight_max: usize,
    /// The longest that an answer is waited for.
    pub answer_max: Duration,
}

/// Sends request `n` at `schedule[n]` after `start`, in order, until all are answered or dropped.
/// After `stop` no more are sent.
pub async fn run<C: Workload>(
    target: &Arc<LoadTarget>,
    schedule: Arc<[Duration]>,
    start: Instant,
    bounds: LoadBounds,
    crowd: Arc<C>,
    stop: CancellationToken,
) {
    let next = Arc::new(AtomicUsize::new(0));
    let mut lanes = JoinSet::new();
    for _ in 0..bounds.connections.min(schedule.len()) {
        lanes.spawn(lane(
            RawConnection::new(Arc::clone(target)),
            Arc::clone(&schedule),
            Arc::clone(&next),
            start,
            bounds,
            Arc::clone(&crowd),
            stop.clone(),
        ));
    }
    lanes.join_all().await;
}

async fn lane<C: Workload>(
    mut connection: RawConnection,
    schedule: Arc<[Duration]>,
    next: Arc<AtomicUsize>,
    start: Instant,
    bounds: LoadBounds,
    crowd: Arc<C>,
    stop: CancellationToken,
) {
    // Ahead of time, so that the first requests do not pay for it; if it fails, they tell.
    let _ = connection.open().await;
    let mut request = Vec::new();
    crowd.write_first(&mut request);
    if !request.is_empty() {
        let _ = connection.exchange(&request, bounds.answer_max).await;
    }
    while !stop.is_cancelled() {
        let number = next.fetch_add(1, Ordering::Relaxed);
        let Some(offset) = schedule.get(number) else { return };
        let planned = start + *offset;
        let now = Instant::now();
        if planned > now {
            tokio::select! {
                () = tokio::time::sleep_until(planned.into()) => {}
                () = stop.cancelled() => return,
            }
        } else if waiting(&schedule, number, now - start) + bounds.connections > bounds.in_flight_max {
            crowd.dropped(number);
            continue;
        }
        request.clear();
        crowd.write(number, &mut request);
        let sent = Instant::now();
        let answer = connection.exchange(&request, bounds.answer_max).await;
        crowd.answered(number, planned, sent, answer);
    }
}

/// The number of requests that are due after request `number`.
fn waiting(schedule: &[Duration], number: usize, elapsed: Duration) -> usize {
    schedule[number..].partition_point(|at| *at <= elapsed).saturating_sub(1)
}
