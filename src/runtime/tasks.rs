//! Background tasks that do the same again and again.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// The rounds of a task, with a pause before each, until shutdown. `while rounds.next().await { … }` does one.
pub(crate) struct Rounds {
    period: Duration,
    next_in: Duration,
    shutdown: CancellationToken,
}

impl Rounds {
    /// Rounds with a pause of `period` before each.
    pub(crate) fn every(period: Duration, shutdown: &CancellationToken) -> Self {
        Rounds { period, next_in: period, shutdown: shutdown.clone() }
    }

    /// The same, but the first round is at once.
    pub(crate) fn now_and_every(period: Duration, shutdown: &CancellationToken) -> Self {
        Rounds { next_in: Duration::ZERO, ..Rounds::every(period, shutdown) }
    }

    /// Another pause before the next round, and only before that one.
    pub(crate) fn next_in(&mut self, pause: Duration) {
        self.next_in = pause;
    }

    /// Waits for the next round. Returns whether there is one, which there is not after shutdown.
    pub(crate) async fn next(&mut self) -> bool {
        let pause = std::mem::replace(&mut self.next_in, self.period);
        self.shutdown.run_until_cancelled(tokio::time::sleep(pause)).await.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(1);
    const LONG: Duration = Duration::from_secs(3_600);

    #[tokio::test]
    async fn the_round_in_which_shutdown_comes_is_the_last() {
        let shutdown = CancellationToken::new();
        let (mut rounds, mut done) = (Rounds::now_and_every(SHORT, &shutdown), 0);
        while rounds.next().await {
            done += 1;
            if done == 3 {
                shutdown.cancel();
            }
        }
        assert_eq!(done, 3);
        assert!(!Rounds::now_and_every(SHORT, &shutdown).next().await, "nor does one begin after it");
    }

    #[tokio::test]
    async fn shutdown_ends_a_pause() {
        let shutdown = CancellationToken::new();
        let mut rounds = Rounds::every(LONG, &shutdown);
        let (goes_on, ()) = tokio::join!(rounds.next(), async { shutdown.cancel() });
        assert!(!goes_on);
    }

    #[tokio::test]
    async fn another_pause_is_for_the_next_round_only() {
        let shutdown = CancellationToken::new();
        let mut rounds = Rounds::every(LONG, &shutdown);
        rounds.next_in(Duration::ZERO);
        assert!(rounds.next().await);
        assert_eq!(rounds.next_in, LONG);
    }
}
