//! How far a thread that serves connections is behind: how long what comes in now waits until it is
//! looked at; and who is turned away because of that.
//!
//! Measured by a task that is woken when somebody comes, stands in the queue like everybody, and looks
//! at the clock when its turn has come. One at a time, so it costs next to nothing, and nothing at all
//! while nobody comes. Only what many people make counts: to turn some away does not help a thread that
//! is held up by something else.
//!
//! When many come at once the queue is long for a moment, and all are served. A queue that stays is of
//! no use to anybody: it makes all wait and no more be served. So once it has stayed for a while it is
//! kept short (after Nichols and Jacobson, "Controlling Queue Delay", 2012). To turn people away is work,
//! too: a thread that has its hands full with that lets some in all the same, the fewer the further it is
//! behind; and not one now and then but all of a short time, since what comes together is cheap.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Instant;

use tokio::sync::Notify;

/// How long a queue may be for longer than a moment, as the time that one stands in it, in microseconds.
const TARGET: u64 = 50_000;
/// A moment, in microseconds.
const INTERVAL: u64 = 200_000;
/// How many must have been looked at while one stood in the queue: else it is not they who make it long.
const CROWD_MIN: u64 = 200;
/// The time is cut into slices of so many microseconds. All who come in some of them are let in: one slice
/// in so many where the queue is but little longer than it should be, and where it is so many times as
/// long, so many times fewer.
const SLICE: u64 = 20_000;
const ONE_SLICE_IN: u64 = 8;
const TIMES_MAX: u64 = 8;

/// All times are in microseconds; moments are counted from the start, and are never 0.
pub(super) struct QueueDelay {
    started: Instant,
    /// Who have come so far.
    come: AtomicU64,
    /// Since when the task stands in the queue, 0 if it does not, and who had come until then.
    queued_at: AtomicU64,
    come_before: AtomicU64,
    /// When it last had its turn, and how long that took.
    measured_at: AtomicU64,
    measured: AtomicU64,
    /// Whether the queue is being kept short.
    kept_short: AtomicBool,
    /// Since when that does not fit the queue; 0 if it does.
    otherwise_since: AtomicU64,
    queue: Notify,
}

impl Default for QueueDelay {
    fn default() -> Self {
        let [come, queued_at, come_before, measured_at, measured, otherwise_since] = Default::default();
        QueueDelay {
            started: Instant::now(),
            come,
            queued_at,
            come_before,
            measured_at,
            measured,
            kept_short: AtomicBool::new(false),
            otherwise_since,
            queue: Notify::new(),
        }
    }
}

impl QueueDelay {
    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX).max(1)
    }

    /// Measures, whenever somebody comes.
    pub async fn measure(self: Arc<Self>) {
        loop {
            self.queue.notified().await;
            let now = self.now();
            self.forget_before(self.queued_at.load(Relaxed));
            self.note(now, self.waited(now));
            self.queued_at.store(0, Relaxed);
        }
    }

    /// Nobody had come for a while: what was before that says nothing of those who come now.
    fn forget_before(&self, come_at: u64) {
        if come_at.saturating_sub(self.measured_at.load(Relaxed)) > INTERVAL {
            self.kept_short.store(false, Relaxed);
            self.otherwise_since.store(0, Relaxed);
        }
    }

    /// How long the task has stood in the queue because of others.
    fn waited(&self, now: u64) -> u64 {
        let meanwhile = self.come.load(Relaxed) - self.come_before.load(Relaxed);
        match self.queued_at.load(Relaxed) {
            queued_at if queued_at > 0 && meanwhile >= CROWD_MIN => now - queued_at,
            _ => 0,
        }
    }

    fn note(&self, now: u64, lag: u64) {
        self.measured.store(lag, Relaxed);
        self.measured_at.store(now, Relaxed);
        let kept_short = self.kept_short.load(Relaxed);
        let since = match self.otherwise_since.load(Relaxed) {
            _ if kept_short == (lag > TARGET) => 0,
            0 => now,
            since if now - since >= INTERVAL => {
                self.kept_short.store(!kept_short, Relaxed);
                0
            }
            since => since,
        };
        self.otherwise_since.store(since, Relaxed);
    }

    /// Somebody has come: whether they are turned away.
    pub fn turns_away(&self) -> bool {
        let (now, come_before) = (self.now(), self.come.fetch_add(1, Relaxed));
        if self.queued_at.load(Relaxed) == 0 {
            self.queued_at.store(now, Relaxed);
            self.come_before.store(come_before, Relaxed);
            self.queue.notify_one();
        }
        self.turns_away_at(now)
    }

    fn turns_away_at(&self, now: u64) -> bool {
        let times = self.lag_at(now) / TARGET;
        times > 0
            && self.kept_short.load(Relaxed)
            && !(now / SLICE).is_multiple_of(ONE_SLICE_IN * times.min(TIMES_MAX))
    }

    fn lag_at(&self, now: u64) -> u64 {
        let waited = self.waited(now);
        // Of longer ago, it says nothing about now.
        let is_fresh = now - self.measured_at.load(Relaxed) <= TARGET;
        if is_fresh { waited.max(self.measured.load(Relaxed)) } else { waited }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const LONG: u64 = TARGET + 1;

    /// How many in a hundred are turned away, of those who come from `now` on while the lag is this.
    fn turned_away(lag: &QueueDelay, now: u64, is: u64) -> u64 {
        const SLICES: u64 = ONE_SLICE_IN * TIMES_MAX;
        let come = (0..SLICES).map(|slice| now + slice * SLICE);
        let away = come.filter(|now| {
            lag.measured.store(is, Relaxed);
            lag.measured_at.store(*now, Relaxed);
            lag.turns_away_at(*now)
        });
        away.count() as u64 * 100 / SLICES
    }

    #[test]
    fn a_queue_that_is_long_for_a_moment_turns_nobody_away() {
        let lag = QueueDelay::default();
        lag.note(1, LONG);
        lag.note(INTERVAL, LONG);
        assert_eq!(turned_away(&lag, INTERVAL, LONG), 0);
        lag.note(INTERVAL, 0);
        lag.note(2 * INTERVAL, LONG);
        assert_eq!(turned_away(&lag, 2 * INTERVAL, LONG), 0, "it was short in between");
    }

    #[test]
    fn a_queue_that_stays_is_kept_short_until_it_has_been_short_for_a_moment() {
        let lag = QueueDelay::default();
        lag.note(1, LONG);
        lag.note(1 + INTERVAL, LONG);
        let mut now = 1 + INTERVAL;
        for (times, away) in [(0, 0), (1, 87), (2, 93), (8, 98), (1_000, 98)] {
            assert_eq!(turned_away(&lag, now, times * LONG), away, "{times} times as long");
        }
        now += INTERVAL;
        lag.note(now, 0);
        lag.note(now + INTERVAL - 1, 0);
        assert_eq!(turned_away(&lag, now + INTERVAL, LONG), 87, "it is short only now");
        lag.note(now + INTERVAL, 0);
        assert_eq!(turned_away(&lag, now + INTERVAL, LONG), 0);
    }

    #[test]
    fn a_crowd_that_comes_after_a_silence_is_a_new_one() {
        let lag = QueueDelay::default();
        lag.note(1, LONG);
        lag.forget_before(1 + INTERVAL);
        lag.note(1 + INTERVAL, LONG);
        assert_eq!(turned_away(&lag, 1 + INTERVAL, LONG), 87, "it went on");
        let later = 10 * INTERVAL * ONE_SLICE_IN * TIMES_MAX;
        lag.forget_before(later);
        lag.note(later, LONG);
        assert_eq!(turned_away(&lag, later, LONG), 0);
    }

    #[test]
    fn what_was_measured_long_ago_counts_no_more_but_who_still_waits_does() {
        let lag = QueueDelay::default();
        let now = 10 * INTERVAL;
        lag.note(now, LONG);
        assert_eq!(lag.lag_at(now + TARGET), LONG);
        assert_eq!(lag.lag_at(now + TARGET + 1), 0);
        lag.queued_at.store(now, Relaxed);
        lag.come.store(CROWD_MIN, Relaxed);
        assert_eq!(lag.lag_at(now + 10 * TARGET), 10 * TARGET);
    }

    /// On one thread, as it is used: what else the thread does, all others wait for.
    async fn held_up(lag: &Arc<QueueDelay>, by: u64) -> Duration {
        let time = Duration::from_millis(20);
        for _ in 0..by {
            lag.turns_away();
        }
        std::thread::sleep(time);
        tokio::task::yield_now().await;
        let measured = Duration::from_micros(lag.lag_at(lag.now()));
        assert!(measured.is_zero() || measured >= time, "{measured:?}");
        measured
    }

    #[tokio::test]
    async fn it_measures_how_long_a_crowd_keeps_others_waiting_and_nothing_else() {
        let lag = Arc::new(QueueDelay::default());
        tokio::spawn(Arc::clone(&lag).measure());
        tokio::task::yield_now().await;
        assert!(held_up(&lag, 1).await.is_zero());
        assert!(!held_up(&lag, CROWD_MIN).await.is_zero());
        assert!(held_up(&lag, CROWD_MIN - 1).await.is_zero());
    }
}
