//! The retry lane: entries that were not decided with their batch, each for a reason of its own. The worker tries
//! them again together, beside its batches, so that no batch waits for them. Each still gets an answer of its own:
//! the insert is unordered, and MongoDB says of every document what is wrong with it.
//!
//! An entry that MongoDB refuses again and again, or whose coupon has no record, becomes a dead letter; so does one
//! that is decided and cannot be read. An attempt whose result is unknown does not count.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::batch_runner::BatchRunner;
use super::decide::{BatchOutcome, Unsettled};
use super::in_progress::Batch;
use super::{RETRY_FIRST, RETRY_LONGEST, warn};
use crate::failure::Unreadable;
use crate::queue::dead::SetAside;
use crate::queue::{Entry, dead};
use crate::runtime::damage::damaged;

/// An entry becomes a dead letter when MongoDB has refused it this many times, each time for itself.
pub const ATTEMPTS_MAX: u32 = 3;
/// An entry becomes a dead letter when its coupon had no record this many times, each time for certain.
const COUPON_READS_MAX: u32 = 3;
/// The pause before the coupon's record is read again.
const READ_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Entries in the lane at most. Of more, those without attempts leave first, because they may wait for ever; the
/// sweep brings them back.
const WAITING_MAX: usize = 20_000;
/// Entries that are tried again together.
const BATCH: usize = 500;
/// How often the lane checks whether an entry is due.
const CHECK_EVERY: Duration = Duration::from_millis(50);

#[derive(Default)]
pub(super) struct RetryLane(Mutex<Vec<RetryEntry>>);

/// An entry in the lane.
pub(super) struct RetryEntry {
    /// Of one entry.
    batch: Batch,
    refused: u32,
    without_coupon: u32,
    /// The pause before the next try, and when it is over.
    pause: Duration,
    due: Instant,
}

impl RetryEntry {
    pub(super) fn new(batch: Batch) -> Self {
        RetryEntry { batch, refused: 0, without_coupon: 0, pause: RETRY_FIRST, due: Instant::now() }
    }

    /// Whether it becomes a dead letter after a few more attempts. To begin anew would put that off.
    fn has_attempts(&self) -> bool {
        self.refused > 0 || self.without_coupon > 0
    }

    fn wait(&mut self) {
        self.due = Instant::now() + self.pause.mul_f64(rand::random_range(0.5..1.0));
        self.pause = (self.pause * 2).min(RETRY_LONGEST);
    }
}

impl RetryLane {
    fn with<T>(&self, change: impl FnOnce(&mut Vec<RetryEntry>) -> T) -> T {
        change(&mut self.0.lock())
    }

    fn put(&self, stuck: impl IntoIterator<Item = RetryEntry>) {
        self.with(|waiting| {
            waiting.extend(stuck);
            let_go(waiting, WAITING_MAX, RetryEntry::has_attempts);
        });
    }

    /// Some entries that are due, all of one epoch.
    fn take_due(&self) -> Vec<RetryEntry> {
        let now = Instant::now();
        self.with(|waiting| {
            let mut epoch = None;
            let mut room = BATCH;
            let is_due = |stuck: &mut RetryEntry| {
                let of = stuck.batch.keys.epoch();
                let due = room > 0 && stuck.due <= now && *epoch.get_or_insert(of) == of;
                room -= usize::from(due);
                due
            };
            waiting.extract_if(.., is_due).collect()
        })
    }
}

/// Removes what is more than `most`: the newest of those that need not be kept, then the newest.
fn let_go<T>(waiting: &mut Vec<T>, most: usize, is_kept: impl Fn(&T) -> bool) {
    let mut kept = waiting.iter().filter(|one| is_kept(one)).count().min(most);
    let mut others = most - kept;
    waiting.retain(|one| {
        let room = if is_kept(one) { &mut kept } else { &mut others };
        let stays = *room > 0;
        *room -= usize::from(stays);
        stays
    });
}

impl BatchRunner {
    /// Tries the entries again that are due, until `shutdown`: then other workers claim the rest.
    pub(super) async fn keep_lane(self: Arc<Self>, shutdown: CancellationToken) {
        while !shutdown.is_cancelled() {
            let due = self.lane.take_due();
            if due.is_empty() {
                tokio::time::sleep(CHECK_EVERY).await;
            } else {
                self.try_again(due).await;
            }
        }
    }

    async fn try_again(&self, mut due: Vec<RetryEntry>) {
        let Some(keys) = due.first().map(|stuck| stuck.batch.keys.clone()) else { return };
        let entries: Vec<Entry> = due.iter().flat_map(|stuck| stuck.batch.entries()).cloned().collect();
        match self.process(&keys, &entries).await {
            Ok(BatchOutcome::AnotherEpoch) => self.breaker.success(),
            Ok(BatchOutcome::Here(left)) => {
                if left.iter().any(|(_, why)| !matches!(why, Unsettled::Unclear(_)))
                    || left.len() < entries.len()
                {
                    self.breaker.success();
                }
                // Each is of an entry of one.
                let mut stuck: HashMap<String, RetryEntry> = due
                    .into_iter()
                    .flat_map(|stuck| Some((stuck.batch.entries().first()?.entry.clone(), stuck)))
                    .collect();
                let left =
                    left.into_iter().filter_map(|(entry, why)| Some((stuck.remove(&entry.entry)?, why)));
                self.sort_out(left.collect()).await;
            }
            Err(failure) => {
                warn(entries.len(), &failure);
                self.breaker.trouble();
                due.iter_mut().for_each(RetryEntry::wait);
                self.lane.put(due);
            }
        }
    }

    /// Puts each entry of a batch that is left where its reason says: into the lane, or aside as a dead letter.
    pub(super) async fn sort_out(&self, left: Vec<(RetryEntry, Unsettled)>) {
        let (mut back, mut aside) = (Vec::new(), Vec::new());
        let (mut unclear, mut trouble) = (0, None);
        for (mut stuck, why) in left {
            let Some(entry) = stuck.batch.entries().first() else { continue };
            match why {
                Unsettled::Refused(why) => {
                    stuck.refused += 1;
                    if stuck.refused >= ATTEMPTS_MAX {
                        aside.push((stuck.refused, why, stuck));
                    } else {
                        back.push(stuck);
                    }
                }
                Unsettled::NoCoupon => {
                    stuck.without_coupon += 1;
                    stuck.pause = READ_AGAIN_AFTER;
                    if stuck.without_coupon >= COUPON_READS_MAX {
                        aside.push((stuck.without_coupon, without_coupon(entry), stuck));
                    } else {
                        back.push(stuck);
                    }
                }
                Unsettled::Unreadable(unreadable) => aside.push((1, unreadable_why(&unreadable), stuck)),
                Unsettled::CouponDamaged(why) => {
                    if let Some(pause) = self.parked.park(&entry.coupon) {
                        damaged!(
                            entry.coupon; coupon = %entry.coupon, why, pause_ms = pause.as_millis(),
                            "nothing of the coupon can be decided: mend its record in MongoDB (total and \
                             perUser), or audit it (couponctl audit --full); the others go on"
                        );
                    }
                }
                Unsettled::GuardedOff => stuck.batch.pass_over(),
                Unsettled::Unclear(failure) => {
                    unclear += 1;
                    trouble = Some(failure);
                    back.push(stuck);
                }
            }
        }
        if let Some(failure) = trouble {
            warn(unclear, &failure);
        }
        back.iter_mut().for_each(RetryEntry::wait);
        self.lane.put(back);
        self.set_aside(aside).await;
    }

    /// Sets entries aside, all of one epoch.
    async fn set_aside(&self, mut aside: Vec<(u32, String, RetryEntry)>) {
        let Some(keys) = aside.first().map(|(.., stuck)| stuck.batch.keys.clone()) else { return };
        let letters: Vec<_> = aside
            .iter()
            .flat_map(|(attempts, why, stuck)| {
                stuck.batch.entries().iter().map(|entry| SetAside {
                    entry: &entry.entry,
                    id: entry.id,
                    attempts: *attempts,
                    why,
                })
            })
            .collect();
        match dead::set_all_aside(&self.partition, &keys, &letters).await {
            Ok(done) => {
                for ((attempts, why, stuck), done) in aside.into_iter().zip(done) {
                    let Some(entry) = stuck.batch.entries().first() else { continue };
                    if done {
                        tracing::error!(
                            issuance = %entry.id, coupon = %entry.coupon, partition = %entry.id.partition(),
                            attempts, why, "set aside as a dead letter: redrive or discard it"
                        );
                    } else {
                        // Nothing in flight names it.
                        stuck.batch.pass_over();
                    }
                }
            }
            // The next attempt finds out anew.
            Err(failure) => {
                warn(aside.len(), &failure);
                aside.iter_mut().for_each(|(.., stuck)| stuck.wait());
                self.lane.put(aside.into_iter().map(|(.., stuck)| stuck));
            }
        }
    }
}

/// The reason that an operator reads of an entry whose coupon has no record.
fn without_coupon(entry: &Entry) -> String {
    format!(
        "coupon {} has no record in MongoDB (collection coupons). Restore the record, then redrive; or discard",
        entry.coupon
    )
}

/// The reason that an operator reads of a decision that cannot be read.
fn unreadable_why(unreadable: &Unreadable) -> String {
    format!(
        "it is decided, but {unreadable}. Mend the record (collection user_coupons), or run the version that wrote \
         it; then redrive"
    )
}

#[cfg(test)]
mod tests {
    use super::let_go;

    #[test]
    fn what_comes_to_its_end_is_not_crowded_out_by_what_may_wait_for_ever() {
        let left = |waiting: &str, most: usize| {
            let mut waiting: Vec<char> = waiting.chars().collect();
            let_go(&mut waiting, most, char::is_ascii_uppercase);
            waiting.into_iter().collect::<String>()
        };
        assert_eq!(left("abcde", 5), "abcde");
        assert_eq!(left("abcde", 3), "abc");
        assert_eq!(left("abcdeXY", 5), "abcXY");
        assert_eq!(left("aXbYcZ", 3), "XYZ");
        assert_eq!(left("WaXbYcZ", 2), "WX");
    }
}
