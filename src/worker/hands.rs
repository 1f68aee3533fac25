//! The hands of a worker: each works on one batch until every entry of it is settled, somebody else's, or
//! left to the [side lane](super::lane) for a reason of its own.

use std::collections::HashSet;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::breaker::Breaker;
use super::decide::{Decider, Left, Processed};
use super::in_hand::{Batch, InHand};
use super::lane::{Lane, Stuck};
use super::parked::Parked;
use super::{RETRY_FIRST, RETRY_LONGEST, warn};
use crate::backoff::Backoff;
use crate::keys::EpochKeys;
use crate::partition::Partition;
use crate::queue::Entry;

/// How often a hand tries a batch of which nobody can tell anything about any entry, although MongoDB and
/// Redis answer; then it goes to the side lane, and the hand is for others.
const UNCLEAR_MAX: u32 = 5;

pub(super) struct Hands {
    pub(super) partition: Arc<Partition>,
    pub(super) decider: Decider,
    pub(super) breaker: Breaker,
    pub(super) parked: Parked,
    in_hand: Arc<InHand>,
    pub(super) lane: Lane,
}

impl Hands {
    pub(super) fn new(partition: Arc<Partition>, decider: Decider) -> Self {
        Hands {
            partition,
            decider,
            breaker: Breaker::new(),
            parked: Parked::default(),
            in_hand: Arc::new(InHand::new()),
            lane: Lane::default(),
        }
    }

    /// Waits until a hand is free and there is a point in using it.
    pub(super) async fn when_free(&self, free: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
        self.breaker.admits().await;
        // The semaphore is never closed.
        Arc::clone(free).acquire_owned().await.ok()
    }

    /// Takes entries in hand, but for those that are already, and those that wait for their coupon.
    pub(super) fn take(&self, keys: EpochKeys, mut entries: Vec<Entry>) -> Batch {
        entries.retain(|entry| !self.parked.has(&entry.coupon));
        InHand::take(&self.in_hand, keys, entries)
    }

    /// Works on a batch until it is done, or what is left of it is in the side lane, or `shutdown` finds it
    /// waiting: then others claim the rest.
    pub(super) async fn work(&self, mut batch: Batch, shutdown: &CancellationToken) {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_LONGEST);
        let mut unclear_rounds = 0;
        loop {
            match self.decider.process(&batch.keys, batch.entries()).await {
                Ok(Processed::AnotherEpoch) => return self.breaker.success(),
                Ok(Processed::Here(left)) => {
                    let unclear = left.iter().filter(|(_, why)| matches!(why, Left::Unclear(_))).count();
                    let all_are_unclear = unclear == batch.entries().len();
                    if !all_are_unclear {
                        self.breaker.success();
                        self.release_coupons(&batch, &left);
                    }
                    if !all_are_unclear || unclear_rounds == UNCLEAR_MAX {
                        let stuck = left.into_iter().filter_map(|(entry, why)| {
                            Some((Stuck::new(batch.take_out(&entry.entry)?), why))
                        });
                        return self.sort_out(stuck.collect()).await;
                    }
                    // All alike: that is nobody's own trouble.
                    if let Some((_, Left::Unclear(failure))) = left.first() {
                        warn(unclear, failure);
                    }
                    self.breaker.trouble();
                    unclear_rounds += 1;
                }
                Err(failure) => {
                    warn(batch.entries().len(), &failure);
                    self.breaker.trouble();
                }
            }
            if shutdown.is_cancelled() {
                return;
            }
            backoff.wait(shutdown).await;
        }
    }

    /// Coupons of which nothing is left for the coupon's reason wait no longer.
    fn release_coupons(&self, batch: &Batch, left: &[(Entry, Left)]) {
        let damaged = left.iter().filter(|(_, why)| matches!(why, Left::CouponDamaged(_)));
        let damaged: HashSet<_> = damaged.map(|(entry, _)| &entry.coupon).collect();
        let coupons = batch.entries().iter().map(|entry| &entry.coupon);
        self.parked.release(coupons.filter(|coupon| !damaged.contains(coupon)));
    }
}
