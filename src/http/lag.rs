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

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// How long one may stand in a queue for longer than a moment.
const TARGET: Duration = Duration::from_millis(50);
/// A moment.
const INTERVAL: Duration = Duration::from_millis(200);
/// How many must have been looked at while one stood in the queue: else it is not they who make it long.
const CROWD_MIN: u64 = 200;
/// The time is cut into slices. All who come in some of them are let in: one slice in so many where the
/// queue is but little longer than it should be, and where it is so many times as long, so many times
/// fewer.
const SLICE: Duration = Duration::from_millis(20);
const ONE_SLICE_IN: u128 = 8;
const TIMES_MAX: u128 = 8;

pub(super) struct Lag {
    /// Used by the one thread only, so nobody ever waits for it.
    state: Mutex<State>,
    /// Wakes the task that stands in the queue.
    somebody_came: Notify,
}

struct State {
    started: Instant,
    /// Who have come so far.
    come: u64,
    /// Since when the task stands in the queue, and who had come until then.
    queued: Option<(Instant, u64)>,
    /// When it last had its turn, and how long that took.
    measured: Option<(Instant, Duration)>,
    /// Whether the queue is being kept short.
    kept_short: bool,
    /// Since when that does not fit the queue.
    otherwise_since: Option<Instant>,
}

impl Default for Lag {
    fn default() -> Self {
        Lag { state: Mutex::new(State::new(Instant::now())), somebody_came: Notify::new() }
    }
}

impl Lag {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Measures, whenever somebody comes.
    pub async fn measure(self: Arc<Self>) {
        loop {
            self.somebody_came.notified().await;
            self.state().has_its_turn(Instant::now());
        }
    }

    /// Somebody has come: whether they are turned away.
    pub fn turns_away(&self) -> bool {
        let now = Instant::now();
        let mut state = self.state();
        if state.somebody_came(now) {
            self.somebody_came.notify_one();
        }
        state.turns_away_at(now)
    }
}

impl State {
    fn new(started: Instant) -> Self {
        State { started, come: 0, queued: None, measured: None, kept_short: false, otherwise_since: None }
    }

    /// Counts somebody; whether the task is to stand in the queue behind them.
    fn somebody_came(&mut self, now: Instant) -> bool {
        let is_first = self.queued.is_none();
        self.queued.get_or_insert((now, self.come));
        self.come += 1;
        is_first
    }

    /// The task has come to the end of the queue.
    fn has_its_turn(&mut self, now: Instant) {
        let Some((queued_at, _)) = self.queued else { return };
        self.forget_before(queued_at);
        let waited = self.waited(now);
        self.note(now, waited);
        self.queued = None;
    }

    /// Nobody had come for a while: what was before that says nothing of those who come now.
    fn forget_before(&mut self, come_at: Instant) {
        let is_old = |(measured_at, _)| come_at.saturating_duration_since(measured_at) > INTERVAL;
        if self.measured.is_none_or(is_old) {
            self.kept_short = false;
            self.otherwise_since = None;
        }
    }

    /// How long the task has stood in the queue because of others.
    fn waited(&self, now: Instant) -> Duration {
        match self.queued {
            Some((at, come_before)) if self.come - come_before >= CROWD_MIN => now - at,
            _ => Duration::ZERO,
        }
    }

    fn note(&mut self, now: Instant, lag: Duration) {
        self.measured = Some((now, lag));
        if self.kept_short == (lag > TARGET) {
            self.otherwise_since = None;
        } else if now - *self.otherwise_since.get_or_insert(now) >= INTERVAL {
            self.kept_short = !self.kept_short;
            self.otherwise_since = None;
        }
    }

    fn turns_away_at(&self, now: Instant) -> bool {
        let times = self.lag_at(now).as_micros() / TARGET.as_micros();
        let slice = (now - self.started).as_micros() / SLICE.as_micros();
        times > 0 && self.kept_short && !slice.is_multiple_of(ONE_SLICE_IN * times.min(TIMES_MAX))
    }

    fn lag_at(&self, now: Instant) -> Duration {
        let waited = self.waited(now);
        match self.measured {
            // Of longer ago, it says nothing about now.
            Some((at, lag)) if now - at <= TARGET => waited.max(lag),
            _ => waited,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = TARGET.saturating_add(Duration::from_micros(1));
    const SHORT: Duration = Duration::ZERO;

    /// How many in a hundred are turned away, of those who come from `now` on while the lag is this.
    fn turned_away(state: &mut State, now: Instant, is: Duration) -> usize {
        let slices = (ONE_SLICE_IN * TIMES_MAX) as u32;
        let come = (0..slices).map(|slice| now + slice * SLICE);
        let away = come.filter(|now| {
            state.measured = Some((*now, is));
            state.turns_away_at(*now)
        });
        away.count() * 100 / slices as usize
    }

    #[test]
    fn a_queue_that_is_long_for_a_moment_turns_nobody_away() {
        let began = Instant::now();
        let mut state = State::new(began);
        let almost = began + INTERVAL - Duration::from_micros(1);
        state.note(began, LONG);
        state.note(almost, LONG);
        assert_eq!(turned_away(&mut state, almost, LONG), 0);
        state.note(almost, SHORT);
        state.note(began + 2 * INTERVAL, LONG);
        assert_eq!(turned_away(&mut state, began + 2 * INTERVAL, LONG), 0, "it was short in between");
    }

    #[test]
    fn a_queue_that_stays_is_kept_short_until_it_has_been_short_for_a_moment() {
        let began = Instant::now();
        let mut state = State::new(began);
        state.note(began, LONG);
        let mut now = began + INTERVAL;
        state.note(now, LONG);
        for (times, away) in [(0, 0), (1, 87), (2, 93), (8, 98), (1_000, 98)] {
            assert_eq!(turned_away(&mut state, now, times * LONG), away, "{times} times as long");
        }
        now += INTERVAL;
        state.note(now, SHORT);
        state.note(now + INTERVAL - Duration::from_micros(1), SHORT);
        assert_eq!(turned_away(&mut state, now + INTERVAL, LONG), 87, "it is short only now");
        state.note(now + INTERVAL, SHORT);
        assert_eq!(turned_away(&mut state, now + INTERVAL, LONG), 0);
    }

    #[test]
    fn a_crowd_that_comes_after_a_silence_is_a_new_one() {
        let began = Instant::now();
        let mut state = State::new(began);
        state.note(began, LONG);
        state.forget_before(began + INTERVAL);
        state.note(began + INTERVAL, LONG);
        assert_eq!(turned_away(&mut state, began + INTERVAL, LONG), 87, "it went on");
        let later = began + 1_000 * INTERVAL;
        state.forget_before(later);
        state.note(later, LONG);
        assert_eq!(turned_away(&mut state, later, LONG), 0);
    }

    #[test]
    fn what_was_measured_long_ago_counts_no_more_but_who_still_waits_does() {
        let now = Instant::now();
        let mut state = State::new(now);
        state.note(now, LONG);
        assert_eq!(state.lag_at(now + TARGET), LONG);
        assert_eq!(state.lag_at(now + LONG), SHORT);
        for _ in 0..CROWD_MIN {
            state.somebody_came(now);
        }
        assert_eq!(state.lag_at(now + 10 * TARGET), 10 * TARGET);
    }

    /// On one thread, as it is used: what else the thread does, all others wait for.
    async fn held_up(lag: &Arc<Lag>, by: u64) -> Duration {
        let time = Duration::from_millis(20);
        for _ in 0..by {
            lag.turns_away();
        }
        std::thread::sleep(time);
        tokio::task::yield_now().await;
        let measured = lag.state().lag_at(Instant::now());
        assert!(measured.is_zero() || measured >= time, "{measured:?}");
        measured
    }

    #[tokio::test]
    async fn it_measures_how_long_a_crowd_keeps_others_waiting_and_nothing_else() {
        let lag = Arc::new(Lag::default());
        tokio::spawn(Arc::clone(&lag).measure());
        tokio::task::yield_now().await;
        assert!(held_up(&lag, 1).await.is_zero());
        assert!(!held_up(&lag, CROWD_MIN).await.is_zero());
        assert!(held_up(&lag, CROWD_MIN - 1).await.is_zero());
    }
}
