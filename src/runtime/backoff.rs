//! Pauses between attempts: growing, bounded, and with jitter, so that many workers do not come back
//! in step.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    pub(crate) fn new(first: Duration, longest: Duration) -> Self {
        Backoff { first, longest, next: first }
    }

    pub(crate) fn reset(&mut self) {
        self.next = self.first;
    }

    /// Pauses for between half and all of the next length, or until `shutdown`.
    pub(crate) async fn wait(&mut self, shutdown: &CancellationToken) {
        let pause = self.next.mul_f64(rand::random_range(0.5..1.0));
        self.next = (self.next * 2).min(self.longest);
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}
