//! How far a thread that serves connections is behind, which is how long a request waits there until it is taken;
//! and which requests are shed because of that.
//!
//! A task measures the delay: a request wakes it, it stands in the thread's queue like any other task, and compares
//! the clock when its turn has come. There is one such task, so it costs next to nothing, and nothing at all while
//! no request arrives. Only a delay that many requests make counts: shedding does not help a thread that something
//! else holds up.
//!
//! A burst makes the queue long for a moment, and all its requests are served. A queue that stays long only makes
//! every request wait and serves no more of them. So once it has been long for an interval it is kept short (after
//! Nichols and Jacobson, "Controlling Queue Delay", 2012). Shedding is work, too: a thread that does little else
//! still admits some requests, fewer the further it is behind; and not one now and then but all of a short slice of
//! time, since requests that arrive together are cheap.
//!
//! Measured with `bench --only overload`: with it, requests at five times capacity are accepted within 0.6 to 1 s at the
//! 99th percentile, and the bench ends after 90 s; without it, the bench had not ended after 140 s.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Instant;

use tokio::sync::Notify;

/// The delay that a queue may have for longer than [`INTERVAL_US`].
const TARGET_US: u64 = 50_000;
/// How long a burst may last.
const INTERVAL_US: u64 = 200_000;
/// Requests that must have been taken while the task stood in the queue: with fewer, something else makes it long.
const CROWD_MIN: u64 = 200;
/// Time is cut into slices of this length, and all requests of an admitting slice are admitted.
const SLICE_US: u64 = 20_000;
/// While the delay is one to two times the target, one slice in this many admits; at n times, one in n times as many.
const ONE_SLICE_IN: u64 = 8;
/// Beyond this many times the target no fewer slices admit.
const TIMES_MAX: u64 = 8;

/// The delay of one thread. All times are in microseconds; moments are counted from the start, and are never 0.
pub(super) struct QueueDelay {
    started: Instant,
    /// Requests that have arrived so far.
    arrived: AtomicU64,
    /// Since when the task stands in the queue, 0 if it does not.
    queued_at: AtomicU64,
    /// Requests that had arrived until then.
    arrived_before: AtomicU64,
    /// When the task last had its turn, and the delay until then.
    measured_at: AtomicU64,
    measured: AtomicU64,
    /// Whether the queue is being kept short.
    kept_short: AtomicBool,
    /// Since when the delay says the opposite of `kept_short`; 0 if it does not.
    otherwise_since: AtomicU64,
    queue: Notify,
}

impl Default for QueueDelay {
    fn default() -> Self {
        let [arrived, queued_at, arrived_before, measured_at, measured, otherwise_since] = Default::default();
        QueueDelay {
            started: Instant::now(),
            arrived,
            queued_at,
            arrived_before,
            measured_at,
            measured,
            kept_short: AtomicBool::new(false),
            otherwise_since,
            queue: Notify::new(),
        }
    }
}

impl QueueDelay {
    /// Microseconds since the start.
    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX).max(1)
    }

    /// Measures the delay, whenever a request has arrived.
    pub async fn measure(self: Arc<Self>) {
        loop {
            self.queue.notified().await;
            let now = self.now();
            self.forget_before(self.queued_at.load(Relaxed));
            self.note(now, self.waited(now));
            self.queued_at.store(0, Relaxed);
        }
    }

    /// Forgets the last measurement, if no request had arrived for an interval before `arrived_at`: it says nothing
    /// about now.
    fn forget_before(&self, arrived_at: u64) {
        if arrived_at.saturating_sub(self.measured_at.load(Relaxed)) > INTERVAL_US {
            self.kept_short.store(false, Relaxed);
            self.otherwise_since.store(0, Relaxed);
        }
    }

    /// How long the task has stood in the queue because of requests.
    fn waited(&self, now: u64) -> u64 {
        let meanwhile = self.arrived.load(Relaxed) - self.arrived_before.load(Relaxed);
        match self.queued_at.load(Relaxed) {
            queued_at if queued_at > 0 && meanwhile >= CROWD_MIN => now - queued_at,
            _ => 0,
        }
    }

    /// Notes a measured delay.
    fn note(&self, now: u64, delay: u64) {
        self.measured.store(delay, Relaxed);
        self.measured_at.store(now, Relaxed);
        let kept_short = self.kept_short.load(Relaxed);
        let since = match self.otherwise_since.load(Relaxed) {
            _ if kept_short == (delay > TARGET_US) => 0,
            0 => now,
            since if now - since >= INTERVAL_US => {
                self.kept_short.store(!kept_short, Relaxed);
                0
            }
            since => since,
        };
        self.otherwise_since.store(since, Relaxed);
    }

    /// Whether a request that arrives now is shed.
    pub fn sheds(&self) -> bool {
        let (now, arrived_before) = (self.now(), self.arrived.fetch_add(1, Relaxed));
        if self.queued_at.load(Relaxed) == 0 {
            self.queued_at.store(now, Relaxed);
            self.arrived_before.store(arrived_before, Relaxed);
            self.queue.notify_one();
        }
        self.sheds_at(now)
    }

    fn sheds_at(&self, now: u64) -> bool {
        let times = self.delay_at(now) / TARGET_US;
        times > 0
            && self.kept_short.load(Relaxed)
            && !(now / SLICE_US).is_multiple_of(ONE_SLICE_IN * times.min(TIMES_MAX))
    }

    fn delay_at(&self, now: u64) -> u64 {
        let waited = self.waited(now);
        // A measurement of longer ago says nothing about now.
        let is_fresh = now - self.measured_at.load(Relaxed) <= TARGET_US;
        if is_fresh { waited.max(self.measured.load(Relaxed)) } else { waited }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const LONG: u64 = TARGET_US + 1;

    /// How many in a hundred requests are shed from `now` on while the delay is this.
    fn shed(delay: &QueueDelay, now: u64, is: u64) -> u64 {
        const SLICES: u64 = ONE_SLICE_IN * TIMES_MAX;
        let come = (0..SLICES).map(|slice| now + slice * SLICE_US);
        let away = come.filter(|now| {
            delay.measured.store(is, Relaxed);
            delay.measured_at.store(*now, Relaxed);
            delay.sheds_at(*now)
        });
        away.count() as u64 * 100 / SLICES
    }

    #[test]
    fn a_queue_that_is_long_for_a_moment_sheds_nothing() {
        let delay = QueueDelay::default();
        delay.note(1, LONG);
        delay.note(INTERVAL_US, LONG);
        assert_eq!(shed(&delay, INTERVAL_US, LONG), 0);
        delay.note(INTERVAL_US, 0);
        delay.note(2 * INTERVAL_US, LONG);
        assert_eq!(shed(&delay, 2 * INTERVAL_US, LONG), 0, "it was short in between");
    }

    #[test]
    fn a_queue_that_stays_is_kept_short_until_it_has_been_short_for_a_moment() {
        let delay = QueueDelay::default();
        delay.note(1, LONG);
        delay.note(1 + INTERVAL_US, LONG);
        let mut now = 1 + INTERVAL_US;
        for (times, away) in [(0, 0), (1, 87), (2, 93), (8, 98), (1_000, 98)] {
            assert_eq!(shed(&delay, now, times * LONG), away, "{times} times as long");
        }
        now += INTERVAL_US;
        delay.note(now, 0);
        delay.note(now + INTERVAL_US - 1, 0);
        assert_eq!(shed(&delay, now + INTERVAL_US, LONG), 87, "it is short only now");
        delay.note(now + INTERVAL_US, 0);
        assert_eq!(shed(&delay, now + INTERVAL_US, LONG), 0);
    }

    #[test]
    fn a_crowd_that_comes_after_a_silence_is_a_new_one() {
        let delay = QueueDelay::default();
        delay.note(1, LONG);
        delay.forget_before(1 + INTERVAL_US);
        delay.note(1 + INTERVAL_US, LONG);
        assert_eq!(shed(&delay, 1 + INTERVAL_US, LONG), 87, "it went on");
        let later = 10 * INTERVAL_US * ONE_SLICE_IN * TIMES_MAX;
        delay.forget_before(later);
        delay.note(later, LONG);
        assert_eq!(shed(&delay, later, LONG), 0);
    }

    #[test]
    fn what_was_measured_long_ago_counts_no_more_but_who_still_waits_does() {
        let delay = QueueDelay::default();
        let now = 10 * INTERVAL_US;
        delay.note(now, LONG);
        assert_eq!(delay.delay_at(now + TARGET_US), LONG);
        assert_eq!(delay.delay_at(now + TARGET_US + 1), 0);
        delay.queued_at.store(now, Relaxed);
        delay.arrived.store(CROWD_MIN, Relaxed);
        assert_eq!(delay.delay_at(now + 10 * TARGET_US), 10 * TARGET_US);
    }

    /// On one thread, as it is used: what else the thread does, all others wait for.
    async fn held_up(delay: &Arc<QueueDelay>, by: u64) -> Duration {
        let time = Duration::from_millis(20);
        for _ in 0..by {
            delay.sheds();
        }
        std::thread::sleep(time);
        tokio::task::yield_now().await;
        let measured = Duration::from_micros(delay.delay_at(delay.now()));
        assert!(measured.is_zero() || measured >= time, "{measured:?}");
        measured
    }

    #[tokio::test]
    async fn it_measures_how_long_a_crowd_keeps_others_waiting_and_nothing_else() {
        let delay = Arc::new(QueueDelay::default());
        tokio::spawn(Arc::clone(&delay).measure());
        tokio::task::yield_now().await;
        assert!(held_up(&delay, 1).await.is_zero());
        assert!(!held_up(&delay, CROWD_MIN).await.is_zero());
        assert!(held_up(&delay, CROWD_MIN - 1).await.is_zero());
    }
}
