//! Whether callers wait at the door. Whoever asks for a unit comes before what is safely queued: so every API process
//! measures how long its callers wait until they are accepted, and while that is long it says so in Redis, where
//! workers read it and make way. When nobody asks, workers take everything.
//!
//! Only callers who are accepted count, and only if they are a crowd: making way helps nobody else. Nor does it help
//! while the queue is full. Then the opposite is needed, and no process says anything.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::reserve::Reserved;
use crate::redis::{Partition, cmd, keys};
use crate::runtime::background::IsBusy;
use crate::runtime::tasks::Rounds;
use crate::{Failure, metrics};

/// The time over which waits are averaged.
const WINDOW: Duration = Duration::from_millis(100);
/// Callers wait long if they wait longer than this on average, and longer by a quarter than they did at the best of
/// times: where the disk is slow, every caller waits for it. Where workers made way from 2.5 ms on only, a fast machine
/// accepted 64 connections' requests at half the rate while one worker drained; from 1 ms on at four fifths.
const LONG_US: u64 = 1_000;
/// From this average wait on callers wait long however slow the disk is: also where they did from the start.
const LONG_ANYWHERE_US: u64 = 10_000;
/// How much of the shortest wait is added to it in each window, so that it is not remembered for ever: one part in this
/// many, which doubles it in twelve minutes.
const FORGOTTEN: u64 = 10_000;
/// Accepted callers of a window that are a crowd: fewer, a worker decides as they come.
const CROWD_MIN: u64 = 10;
/// How long what was said in Redis is valid: until the end of the next window, and a little longer.
const SAID_FOR: Duration = Duration::from_millis(150);

/// How many callers a process has refused because too many wait, whichever partition they asked for. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct TurnedAway(Arc<AtomicU64>);

impl TurnedAway {
    /// A caller was refused.
    pub(crate) fn count(&self) {
        self.0.fetch_add(1, Relaxed);
    }
}

/// What happened at the door of one partition in one API process in the present window, and how the last one was.
#[derive(Debug, Default)]
pub struct Pressure {
    accepted: AtomicU64,
    waited_us: AtomicU64,
    turned_away: TurnedAway,
    /// The number of those who were turned away before this window.
    turned_away_before: AtomicU64,
    found_full: AtomicU64,
    last_turned_away: AtomicU64,
    /// The average wait of the best window, in nanoseconds; 0 while unknown.
    shortest_ns: AtomicU64,
}

impl Pressure {
    /// Nobody has asked yet.
    pub(super) fn new(turned_away: TurnedAway) -> Self {
        Pressure { turned_away, ..Pressure::default() }
    }

    /// A caller was answered after so long.
    pub(super) fn answered(&self, answer: &Result<Reserved, Failure>, waited: Duration) {
        match answer {
            Ok(Reserved::Accepted(_)) => {
                self.accepted.fetch_add(1, Relaxed);
                self.waited_us.fetch_add(u64::try_from(waited.as_micros()).unwrap_or(u64::MAX), Relaxed);
            }
            Ok(Reserved::BacklogFull) => drop(self.found_full.fetch_add(1, Relaxed)),
            _ => {}
        }
    }

    /// Ends a window. Returns whether callers waited long in it.
    fn end_window(&self) -> bool {
        let [accepted, waited_us, found_full] =
            [&self.accepted, &self.waited_us, &self.found_full].map(|count| count.swap(0, Relaxed));
        let turned_away = self.turned_away.0.load(Relaxed);
        let turned_away = turned_away - self.turned_away_before.swap(turned_away, Relaxed);
        self.last_turned_away.store(turned_away + found_full, Relaxed);
        if accepted < CROWD_MIN {
            return false;
        }
        let wait_us = waited_us / accepted;
        let shortest_ns = match self.shortest_ns.load(Relaxed) {
            0 => wait_us * 1_000,
            known => (known + known / FORGOTTEN).min(wait_us * 1_000),
        };
        self.shortest_ns.store(shortest_ns, Relaxed);
        let a_quarter_longer_us = shortest_ns * 5 / 4 / 1_000;
        let is_long = wait_us > a_quarter_longer_us.clamp(LONG_US, LONG_ANYWHERE_US);
        found_full == 0 && (turned_away > 0 || is_long)
    }

    /// Says whether callers were turned away in the last window: then background work waits.
    pub(crate) fn is_busy(self: &Arc<Self>) -> IsBusy {
        let pressure = Arc::clone(self);
        Arc::new(move || pressure.last_turned_away.load(Relaxed) > 0)
    }
}

/// Measures until `shutdown`, and says in Redis while callers wait long.
pub(crate) async fn keep_saying(
    pressure: Arc<Pressure>,
    partition: Arc<Partition>,
    shutdown: CancellationToken,
) {
    let mut rounds = Rounds::every(WINDOW, &shutdown);
    while rounds.next().await {
        if !pressure.end_window() {
            continue;
        }
        metrics::PRESSED.increment(1);
        let mut set = cmd("SET");
        set.arg(keys::pressure(partition.id())).arg(1).arg("PX").arg(SAID_FOR.as_millis() as u64);
        if let Err(failure) = partition.query::<()>("say that callers wait", &set).await {
            tracing::debug!(error = failure.chain(), "workers could not be told that callers wait");
        }
    }
}

/// Whether an API process said lately that callers wait long. What would be valid for longer than it can was said before
/// Redis's clock was set back: it is over.
pub(crate) async fn is_high(partition: &Partition) -> Result<bool, Failure> {
    let mut left = cmd("PTTL");
    left.arg(keys::pressure(partition.id()));
    let left_ms: i64 = partition.query("ask whether callers wait", &left).await?;
    Ok((0..=SAID_FOR.as_millis() as i64).contains(&left_ms))
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::super::reserve::{QueueProgress, QueuedIssuance};
    use super::*;
    use crate::ids::{IssuanceId, PartitionId};

    const LONG: Duration = Duration::from_micros(LONG_US);

    fn accepted() -> Result<Reserved, Failure> {
        let now = Timestamp::UNIX_EPOCH;
        Ok(Reserved::Accepted(QueuedIssuance {
            id: IssuanceId::generate(PartitionId::ONE),
            accepted_at: now,
            progress: QueueProgress { now, settled: 0, ahead: 0 },
        }))
    }

    fn window(
        pressure: &Pressure,
        answers: impl Iterator<Item = Result<Reserved, Failure>>,
        waited: Duration,
    ) -> bool {
        answers.for_each(|answer| pressure.answered(&answer, waited));
        pressure.end_window()
    }

    #[test]
    fn it_is_high_while_a_crowd_waits_long_to_be_accepted() {
        let pressure = Pressure::default();
        let crowd = || (0..CROWD_MIN).map(|_| accepted());
        assert!(!window(&pressure, crowd(), LONG), "not longer than it may be");
        assert!(window(&pressure, crowd(), 2 * LONG));
        assert!(!window(&pressure, crowd().skip(1), 2 * LONG), "a few");
        assert!(!window(&pressure, crowd().map(|_| Ok(Reserved::SoldOut)), 2 * LONG), "they get nothing");
        assert!(!pressure.end_window(), "nobody asked");
    }

    #[test]
    fn where_every_caller_waits_for_the_disk_only_a_longer_wait_is_long() {
        let (pressure, disk) = (Pressure::default(), 2 * LONG);
        let crowd = || (0..CROWD_MIN).map(|_| accepted());
        assert!(!window(&pressure, crowd(), disk));
        assert!(!window(&pressure, crowd(), disk * 5 / 4) && window(&pressure, crowd(), disk * 4 / 3));
        assert!(!window(&pressure, crowd(), LONG) && window(&pressure, crowd(), disk), "the disk was not it");
        let forgotten = (0..).take_while(|_| window(&pressure, crowd(), disk)).count();
        assert!((4_000..6_000).contains(&forgotten), "{forgotten} windows");
    }

    #[test]
    fn it_is_high_while_callers_are_turned_away_unless_the_queue_is_full() {
        let pressure = Arc::new(Pressure::default());
        let is_busy = pressure.is_busy();
        let crowd = || (0..CROWD_MIN).map(|_| accepted());
        pressure.turned_away.count();
        assert!(!is_busy(), "the window is not over");
        assert!(window(&pressure, crowd(), Duration::ZERO) && is_busy());
        let full = crowd().chain([Ok(Reserved::BacklogFull)]);
        assert!(!window(&pressure, full, 2 * LONG), "workers must make room");
        assert!(is_busy(), "and the audit must not keep them from it");
        assert!(!window(&pressure, crowd(), LONG) && !is_busy());
    }
}
