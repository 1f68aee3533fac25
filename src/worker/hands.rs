//! The hands of a worker: each works on one batch until every entry of it is settled, set aside, or
//! somebody else's.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::breaker::Breaker;
use super::decide::{Decider, Left, Processed};
use super::{RETRY_FIRST, RETRY_LONGEST};
use crate::Failure;
use crate::backoff::Backoff;
use crate::issuance::ledger::Unreadable;
use crate::keys::EpochKeys;
use crate::partition::Partition;
use crate::queue::{Entry, dead};
use crate::recovery::Epoch;

/// An entry that MongoDB refuses is tried this many times, alone, before it is set aside.
pub const ATTEMPTS_MAX: u32 = 3;

/// What is unclear about one entry alone (its coupon's record is damaged, say) is tried this many times in
/// a row; then the hand is for others, and the sweep brings it back.
const UNCLEAR_MAX: u32 = 5;

pub(super) struct Hands {
    partition: Arc<Partition>,
    decider: Decider,
    breaker: Breaker,
    in_hand: Arc<InHand>,
}

/// Entries that a task of this process works on: a second delivery of one is left alone.
#[derive(Default)]
struct InHand(Mutex<HashSet<(Epoch, String)>>);

impl InHand {
    fn with<T>(&self, change: impl FnOnce(&mut HashSet<(Epoch, String)>) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }
}

/// Entries in hand; they are let go of when this is dropped, even by a panic.
pub(super) struct Batch {
    keys: EpochKeys,
    entries: Vec<Entry>,
    in_hand: Arc<InHand>,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        let epoch = self.keys.epoch();
        self.in_hand.with(|in_hand| {
            for entry in &self.entries {
                in_hand.remove(&(epoch, entry.entry.clone()));
            }
        });
    }
}

impl Hands {
    pub(super) fn new(partition: Arc<Partition>, decider: Decider) -> Self {
        Hands { partition, decider, breaker: Breaker::new(), in_hand: Arc::default() }
    }

    /// Waits until a hand is free and there is a point in using it.
    pub(super) async fn when_free(&self, free: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
        self.breaker.closed().await;
        // The semaphore is never closed.
        Arc::clone(free).acquire_owned().await.ok()
    }

    /// Takes entries in hand, but for those that are already.
    pub(super) fn take(&self, keys: EpochKeys, entries: Vec<Entry>) -> Batch {
        let epoch = keys.epoch();
        let entries = self.in_hand.with(|in_hand| {
            entries.into_iter().filter(|entry| in_hand.insert((epoch, entry.entry.clone()))).collect()
        });
        Batch { keys, entries, in_hand: Arc::clone(&self.in_hand) }
    }

    /// Works on a batch until it is done, or what is left of it is for a later sweep, or `shutdown` finds it
    /// waiting: then others claim the rest.
    pub(super) async fn work(&self, batch: Batch, shutdown: &CancellationToken) {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_LONGEST);
        let mut rest = batch.entries.clone();
        let mut unclear_rounds = 0;
        while !rest.is_empty() {
            match self.decider.process(&batch.keys, &rest).await {
                Ok(Processed::AnotherEpoch) => {
                    self.breaker.success();
                    return;
                }
                Ok(Processed::Here(left)) => {
                    self.breaker.success();
                    let mut unclear = Vec::new();
                    for (entry, why) in left {
                        match why {
                            Left::Refused(why) => self.alone(&batch.keys, entry, why, shutdown).await,
                            Left::Unreadable(unreadable) => {
                                self.set_aside(&batch.keys, &entry, 1, &unreadable_why(&unreadable)).await;
                            }
                            Left::Unclear(failure) => {
                                warn(1, &failure);
                                unclear.push(entry);
                            }
                        }
                    }
                    rest = unclear;
                    unclear_rounds += 1;
                    if unclear_rounds == UNCLEAR_MAX {
                        return;
                    }
                }
                Err(failure) => {
                    warn(rest.len(), &failure);
                    self.breaker.trouble();
                }
            }
            if rest.is_empty() || shutdown.is_cancelled() {
                return;
            }
            backoff.wait(shutdown).await;
        }
    }

    /// Tries one entry that MongoDB refused by itself, so that it is its own fault and no batch's, and
    /// sets it aside when its attempts have run out. Only refusals use up attempts.
    async fn alone(&self, keys: &EpochKeys, entry: Entry, mut why: String, shutdown: &CancellationToken) {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_LONGEST);
        let (mut attempts, mut unclear) = (0, 0);
        while attempts < ATTEMPTS_MAX {
            backoff.wait(shutdown).await;
            if shutdown.is_cancelled() {
                return;
            }
            match self.decider.process(keys, std::slice::from_ref(&entry)).await {
                Ok(Processed::AnotherEpoch) => return,
                Ok(Processed::Here(mut left)) => match left.pop() {
                    None => return,
                    Some((_, Left::Refused(again))) => {
                        attempts += 1;
                        why = again;
                    }
                    Some((_, Left::Unreadable(unreadable))) => {
                        return self
                            .set_aside(keys, &entry, attempts + 1, &unreadable_why(&unreadable))
                            .await;
                    }
                    Some((_, Left::Unclear(failure))) => {
                        warn(1, &failure);
                        unclear += 1;
                        if unclear == UNCLEAR_MAX {
                            return;
                        }
                    }
                },
                Err(failure) => warn(1, &failure),
            }
        }
        self.set_aside(keys, &entry, attempts, &why).await;
    }

    async fn set_aside(&self, keys: &EpochKeys, entry: &Entry, attempts: u32, why: &str) {
        match dead::set_aside(&self.partition, keys, &entry.entry, entry.id, attempts, why).await {
            Ok(true) => tracing::error!(
                issuance = %entry.id, coupon = %entry.coupon, partition = %entry.id.partition(), attempts, why,
                "set aside as a dead letter: redrive or discard it"
            ),
            Ok(false) => {}
            // It stays pending, and the next sweep tries it again.
            Err(failure) => warn(1, &failure),
        }
    }
}

/// What an operator reads of a decision that cannot be read.
fn unreadable_why(unreadable: &Unreadable) -> String {
    format!(
        "it is decided, but {unreadable}. Mend the record (collection user_coupons), or run the version that wrote \
         it; then redrive"
    )
}

fn warn(entries: usize, failure: &Failure) {
    tracing::warn!(entries, error = failure.chain(), "not decided yet; trying again");
}
