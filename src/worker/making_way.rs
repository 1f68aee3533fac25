//! Making way: while callers wait long until they are accepted, a worker drains a part of the time. Their requests and
//! its batches need the same Redis and, on a small machine, the same processors; and what is queued is safe.
//!
//! The worker works on one batch at a time and rests after it, longer while the [pressure](crate::issuance::pressure)
//! lasts and for less time once it is gone. It never stops: what was accepted is decided, if later.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::issuance::pressure;
use crate::metrics;
use crate::redis::Partition;

/// How often the worker asks whether callers wait.
const ASK_EVERY: Duration = Duration::from_millis(50);
/// Rests, in times of the work before them: the first one, and the longest.
const SHARE_FIRST: f64 = 0.5;
const SHARE_MAX: f64 = 4.0;
/// The longest rest of a worker whose entries have waited for [`LATE_AFTER`]: callers come first, but not for ever.
const SHARE_LATE: f64 = 1.0;
const LATE_AFTER: Duration = Duration::from_secs(60);
/// How much a rest grows or shrinks from one answer to the next.
const STEP: f64 = 1.5;
/// The longest rest, and the longest wait for the batches in hand before it.
const REST_MAX: Duration = Duration::from_secs(1);

/// How much a worker rests.
pub(super) struct MakingWay {
    partition: Arc<Partition>,
    share: RestShare,
    asked_at: Instant,
    /// When the last rest ended, or there was nothing to rest for.
    rested_at: Instant,
}

/// How long to rest, in times of the work before; 0 for not at all.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
struct RestShare(f64);

impl RestShare {
    /// The share after an answer to whether callers wait.
    fn next(self, callers_wait: bool) -> Self {
        let RestShare(share) = self;
        RestShare(if callers_wait {
            (share * STEP).clamp(SHARE_FIRST, SHARE_MAX)
        } else if share > SHARE_FIRST {
            share / STEP
        } else {
            0.0
        })
    }
}

impl MakingWay {
    pub(super) fn new(partition: Arc<Partition>) -> Self {
        let now = Instant::now();
        MakingWay { partition, share: RestShare::default(), asked_at: now, rested_at: now }
    }

    /// The worker keeps up with what comes: it need not rest.
    pub(super) fn keeps_up(&mut self) {
        self.share = RestShare::default();
        self.rested_at = Instant::now();
    }

    /// Rests before more is read, if callers wait: once the batches in hand, which hold permits of `free`, are done.
    /// `batches` is the number of permits, `age` how long the oldest entry of the last read had waited. Ends at
    /// `shutdown`.
    pub(super) async fn rest(
        &mut self,
        free: &Semaphore,
        batches: u32,
        age: Duration,
        shutdown: &CancellationToken,
    ) {
        if self.asked_at.elapsed() >= ASK_EVERY {
            self.asked_at = Instant::now();
            // Without an answer nobody is known to wait.
            let callers_wait = pressure::is_high(&self.partition).await.unwrap_or(false);
            self.share = self.share.next(callers_wait);
        }
        if self.share != RestShare::default() {
            let rest = async {
                // The semaphore is never closed.
                let _ = tokio::time::timeout(REST_MAX, free.acquire_many(batches)).await;
                let share = if age < LATE_AFTER { self.share.0 } else { self.share.0.min(SHARE_LATE) };
                let worked = self.rested_at.elapsed();
                tokio::time::sleep(worked.mul_f64(share).min(REST_MAX)).await;
            };
            metrics::RESTS.increment(1);
            shutdown.run_until_cancelled(rest).await;
        }
        self.rested_at = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rest_grows_to_its_bound_while_callers_wait_and_ends_soon_after() {
        let mut share = RestShare::default();
        assert_eq!(share.next(false), RestShare::default());
        for _ in 0..10 {
            share = share.next(true);
            assert!((SHARE_FIRST..=SHARE_MAX).contains(&share.0));
        }
        assert_eq!(share, RestShare(SHARE_MAX));
        let answers = (0..).take_while(|_| {
            share = share.next(false);
            share != RestShare::default()
        });
        assert!(answers.count() <= 6);
    }
}
