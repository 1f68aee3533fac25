//! The background task, in every API process, that deletes rejections of coupons that ended long ago.
//! Idempotent and without input; periodic.
//!
//! A rejection is kept as long as a repetition of its request could be answered with it: a key's request
//! is recognised by it. Where the coupon has been over for the whole retention, a repetition is answered
//! that it is over. Issued records are kept: they are the accounts.
//!
//! Reads: coupons, the ledger, what is in flight. Writes: deletes rejections from the ledger. Wakes no other task.
//! The processes take turns, by a key that expires.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;

use crate::Failure;
use crate::coupon::CouponStore;
use crate::ids::CouponId;
use crate::issuance::Ledger;
use crate::issuance::lookup::read_in_flight;
use crate::redis::Partitions;
use crate::redis::turn::{background_round, first_to_answer};
use crate::runtime::background::IsBusy;
use crate::runtime::tasks::Rounds;

/// Between two rounds.
const EVERY: Duration = Duration::from_secs(3_600);
/// A round that fails is tried again after this.
const AGAIN: Duration = Duration::from_secs(60);
/// Rejections in one step.
const BATCH: i64 = 1_000;
/// Steps in one round; the next one goes on.
const STEPS_MAX: usize = 1_000;

/// What one round deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetentionRound {
    /// Coupons that ended before.
    pub coupons: usize,
    /// Rejections that were deleted.
    pub deleted: u64,
}

/// Deletes rejections whose retention is over.
#[derive(Clone)]
pub struct Retention {
    partitions: Partitions,
    ledger: Ledger,
    coupons: CouponStore,
    /// How long rejections are kept after the coupon's end.
    kept: SignedDuration,
}

impl Retention {
    /// Keeps rejections for `days` days after the end of their coupon; `None` for 0, which is for ever.
    pub fn new(partitions: Partitions, ledger: Ledger, coupons: CouponStore, days: u32) -> Option<Self> {
        let kept = SignedDuration::from_hours(24 * i64::from(days));
        (days > 0).then_some(Retention { partitions, ledger, coupons, kept })
    }

    /// Deletes until `shutdown`, in the background.
    pub(crate) async fn run(self, is_busy: IsBusy, shutdown: CancellationToken) {
        let mut rounds = Rounds::every(EVERY, &shutdown);
        // Not all processes as soon as they start.
        rounds.next_in(AGAIN.mul_f64(rand::random_range(0.5..1.5)));
        while rounds.next().await {
            // The next round goes on where this one is broken off.
            let Some(ended) = shutdown.run_until_cancelled(self.take_turn(&is_busy)).await else { return };
            if let Err(failure) = ended {
                tracing::debug!(error = failure.chain(), "old rejections could not be deleted; trying again");
                rounds.next_in(AGAIN);
            }
        }
    }

    async fn take_turn(&self, is_busy: &IsBusy) -> Result<(), Failure> {
        let partition = first_to_answer(&self.partitions).await?;
        let (turn, round) = (partition.keys().retain_turn(), self.round(Timestamp::now()));
        let retained = background_round(partition, turn, EVERY, is_busy, round).await?;
        if let Some(RetentionRound { coupons, deleted }) = retained
            && deleted > 0
        {
            tracing::info!(coupons, deleted, "deleted the rejections of coupons that ended long ago");
        }
        Ok(())
    }

    /// Deletes the rejections whose retention is over at `now`.
    ///
    /// # Errors
    ///
    /// If MongoDB or Redis fails.
    pub async fn round(&self, now: Timestamp) -> Result<RetentionRound, Failure> {
        let mut retained = RetentionRound { coupons: 0, deleted: 0 };
        let Ok(before) = now.checked_sub(self.kept) else { return Ok(retained) };
        let mut steps = 0;
        for coupon in self.coupons.ended_before(before).await? {
            retained.coupons += 1;
            loop {
                steps += 1;
                let (found, deleted) = self.step(&coupon, before).await?;
                retained.deleted += deleted;
                if found < BATCH as usize || deleted == 0 {
                    break;
                }
                if steps >= STEPS_MAX {
                    return Ok(retained);
                }
            }
        }
        Ok(retained)
    }

    /// One step of a coupon: how many were found, and how many deleted.
    async fn step(&self, coupon: &CouponId, before: Timestamp) -> Result<(usize, u64), Failure> {
        let found = self.ledger.old_rejections(coupon, before, BATCH).await?;
        let ids: Vec<_> = found.iter().copied().flatten().collect();
        if ids.is_empty() {
            return Ok((found.len(), 0));
        }
        // One that is still to be settled must stay: without it its entry would be decided anew. So does one of which
        // that is unknown, in a partition that does not answer, or that this process does not know.
        let mut settled = Vec::new();
        for (partition, ids) in self.partitions.group(ids, |id| id.partition()).0 {
            let in_flight = match read_in_flight(partition, &ids).await {
                Ok(in_flight) => in_flight,
                Err(failure) => {
                    let (partition, error) = (partition.id(), failure.chain());
                    tracing::debug!(%partition, error, "old rejections stay for now");
                    continue;
                }
            };
            settled.extend(
                ids.into_iter()
                    .zip(in_flight)
                    .filter_map(|(id, held)| held.is_ok_and(|held| held.is_none()).then_some(id)),
            );
        }
        Ok((found.len(), self.ledger.delete_rejections(&settled).await?))
    }
}
