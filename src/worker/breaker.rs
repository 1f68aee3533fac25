//! While MongoDB or Redis cannot do their part, reading more only fills hands that cannot work.

use tokio::sync::watch;

use crate::metrics;

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
            tracing::warn!("decisions are not possible now; nothing more is read until they are");
        }
    }

    pub(super) fn success(&self) {
        if self.open.send_if_modified(std::mem::take) {
            metrics::BREAKER_OPEN.decrement(1.0);
            tracing::info!("decisions are possible again");
        }
    }

    /// Waits until it is closed.
    pub(super) async fn closed(&self) {
        // The sender is ours, so the wait cannot fail.
        let _ = self.open.subscribe().wait_for(|open| !open).await;
    }
}
