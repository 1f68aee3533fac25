//! How fast the queue drains, by the readings that this process makes, and so how long an issuance waits.

use jiff::Timestamp;
use parking_lot::Mutex;

use crate::issuance::reserve::QueueProgress;

/// Two readings closer than this say little about a rate.
const WINDOW_MS: i64 = 200;
/// From acceptance to decision, when nothing is ahead.
const SHORTEST_WAIT_MS: u64 = 30;
/// The estimate when the queue does not seem to drain.
const LONGEST_WAIT_MS: u64 = 60_000;
/// The bounds of the time after which a client should poll.
const POLL_MS: std::ops::RangeInclusive<u64> = 100..=2_000;

/// Estimates the drain rate, for advice to clients only.
#[derive(Default)]
pub(crate) struct DrainRate {
    sample: Mutex<RateSample>,
}

#[derive(Default)]
struct RateSample {
    at: Option<(Timestamp, u64)>,
    per_second: f64,
}

/// How long an issuance will wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WaitEstimate {
    pub estimated_ms: u64,
    pub poll_after_ms: u64,
}

impl DrainRate {
    /// Takes a reading, and estimates the wait of the issuance that it was made for.
    pub fn estimate(&self, progress: &QueueProgress) -> WaitEstimate {
        let mut sample = self.sample.lock();
        match sample.at {
            Some((at, settled)) if settled <= progress.settled => {
                let elapsed_ms = progress.now.as_millisecond() - at.as_millisecond();
                if elapsed_ms >= WINDOW_MS {
                    let rate = (progress.settled - settled) as f64 * 1_000.0 / elapsed_ms as f64;
                    sample.per_second =
                        if sample.per_second > 0.0 { (sample.per_second + rate) / 2.0 } else { rate };
                    sample.at = Some((progress.now, progress.settled));
                }
            }
            // The first reading, or of a new epoch.
            _ => sample.at = Some((progress.now, progress.settled)),
        }
        let estimated_ms = match progress.ahead {
            0 => SHORTEST_WAIT_MS,
            // There is no rate yet, or nothing is decided.
            _ if sample.per_second < 1.0 => LONGEST_WAIT_MS.min(SHORTEST_WAIT_MS + progress.ahead),
            ahead => {
                ((ahead as f64 * 1_000.0 / sample.per_second) as u64 + SHORTEST_WAIT_MS).min(LONGEST_WAIT_MS)
            }
        };
        WaitEstimate { estimated_ms, poll_after_ms: estimated_ms.clamp(*POLL_MS.start(), *POLL_MS.end()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(ms: i64, settled: u64, ahead: u64) -> QueueProgress {
        QueueProgress { now: Timestamp::from_millisecond(ms).unwrap(), settled, ahead }
    }

    #[test]
    fn the_wait_is_what_is_ahead_over_the_rate_that_was_seen() {
        let rate = DrainRate::default();
        rate.estimate(&reading(0, 0, 0));
        let wait = rate.estimate(&reading(1_000, 2_000, 4_000));
        assert_eq!(wait.estimated_ms, 2_000 + SHORTEST_WAIT_MS);
        assert_eq!(wait.poll_after_ms, 2_000);
    }

    #[test]
    fn with_nothing_ahead_the_next_poll_is_soon() {
        let wait = DrainRate::default().estimate(&reading(0, 0, 0));
        assert_eq!((wait.estimated_ms, wait.poll_after_ms), (SHORTEST_WAIT_MS, 100));
    }
}
