//! The circuit breaker of a worker: while MongoDB or Redis cannot do their part, a worker that reads more only
//! holds entries that it cannot decide.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use crate::metrics;

/// While it is open, one batch in this time is let through: its entries may fare better than those that
/// opened it.
const PROBE_EVERY: Duration = Duration::from_secs(3);

/// Open after trouble, closed by the first success.
pub(super) struct Breaker {
    open: watch::Sender<bool>,
}

impl Breaker {
    pub(super) fn new() -> Self {
        Breaker { open: watch::Sender::new(false) }
    }

    pub(super) fn trouble(&self) {
        if !self.open.send_replace(true) {
            metrics::BREAKER_OPENED.increment(1);
            metrics::BREAKER_OPEN.increment(1.0);
            tracing::warn!("decisions are not possible now; next to nothing is read until they are");
        }
    }

    pub(super) fn success(&self) {
        if self.open.send_if_modified(std::mem::take) {
            metrics::BREAKER_OPEN.decrement(1.0);
            tracing::info!("decisions are possible again");
        }
    }

    /// Whether it is open.
    pub(super) fn is_open(&self) -> bool {
        *self.open.borrow()
    }

    /// Waits until it is closed, or a batch may be tried all the same.
    pub(super) async fn admits(&self) {
        // The sender is ours, so the wait cannot fail.
        let _ = timeout(PROBE_EVERY, self.open.subscribe().wait_for(|open| !open)).await;
    }
}
