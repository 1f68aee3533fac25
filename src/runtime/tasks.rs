//! Background tasks that do the same again and again.

use std::any::Any;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::backoff::Backoff;

/// The pause before a task that panicked is started anew: the first, and the longest. One that has run for longer than
/// that begins with the first again.
const RESTART_FIRST: Duration = Duration::from_millis(200);
const RESTART_LONGEST: Duration = Duration::from_secs(15);

/// Runs what should run until `shutdown`, and starts it anew after a pause if it panics. Without it the process would
/// look alive and no more do `what` it does; and if the process ended, all of its other tasks would end for this one.
pub(crate) async fn restarted<F: Future<Output = ()>>(
    what: &str,
    shutdown: &CancellationToken,
    mut start: impl FnMut() -> F,
) {
    let mut backoff = Backoff::new(RESTART_FIRST, RESTART_LONGEST);
    loop {
        let began = Instant::now();
        let Err(panic) = AssertUnwindSafe(async { start().await }).catch_unwind().await else { return };
        tracing::error!(why = panic_text(&*panic), "a panic ended what was to {what}; it is started anew");
        if shutdown.is_cancelled() {
            return;
        }
        if began.elapsed() > RESTART_LONGEST {
            backoff.reset();
        }
        backoff.wait(shutdown).await;
    }
}

/// Does `work`, beside tasks that it needs. What is left of these ends with it.
///
/// # Panics
///
/// As soon as one of the tasks does.
pub(crate) async fn beside<T>(
    tasks: impl IntoIterator<Item = AbortOnDropHandle<()>>,
    work: impl Future<Output = T>,
) -> T {
    let mut tasks: FuturesUnordered<_> = tasks.into_iter().collect();
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            biased;
            Some(ended) = tasks.next() => if let Err(error) = ended && error.is_panic() {
                resume_unwind(error.into_panic());
            },
            done = &mut work => return done,
        }
    }
}

/// How long it is until the next of the moments, a `period` apart, that are the same for all tasks of this process.
pub(crate) fn until_tick(period: Duration) -> Duration {
    static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);
    let since = BEGAN.elapsed().as_nanos() % period.as_nanos().max(1);
    period.saturating_sub(Duration::from_nanos(u64::try_from(since).unwrap_or(0)))
}

/// What a panic says.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no text")
}

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

    #[tokio::test(start_paused = true)]
    async fn what_panics_is_started_anew_until_it_ends_and_not_after_shutdown() {
        let (shutdown, mut started) = (CancellationToken::new(), 0);
        restarted("count", &shutdown, || {
            started += 1;
            let number = started;
            async move { assert!(number > 3, "number {number}") }
        })
        .await;
        assert_eq!(started, 4);
        shutdown.cancel();
        restarted("count", &shutdown, || {
            started += 1;
            async { panic!("again") }
        })
        .await;
        assert_eq!(started, 5);
    }

    #[tokio::test]
    async fn a_task_that_panics_ends_the_work_beside_it_by_that_panic() {
        let spawn = |panics: bool| {
            AbortOnDropHandle::new(tokio::spawn(async move { assert!(!panics, "the task's own words") }))
        };
        assert_eq!(beside([spawn(false)], async { 7 }).await, 7);
        let beside = beside([spawn(false), spawn(true)], std::future::pending::<()>());
        let panic = AssertUnwindSafe(beside).catch_unwind().await.expect_err("it is passed on");
        assert_eq!(panic_text(&*panic), "the task's own words");
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
