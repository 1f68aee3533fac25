//! Getting a partition certified again, under a lease: as it is where the data is intact, else rebuilt.

use std::time::{Duration, Instant};

use super::RecoveryStep;
use super::certificate::{CloseOutcome, ClosedInstance, OpenOutcome, certify, close, restarted};
use super::fence::CONFIRM_EVERY;
use super::lease::{LEASE_LENGTH, Lease};
use super::old_epochs;
use super::progress::ProgressCallback;
use super::rebuild::rebuild;
use super::verify::{VerifyOutcome, verify};
use crate::Failure;
use crate::coupon::CouponStore;
use crate::issuance::Ledger;
use crate::redis::Partition;
use crate::redis::keys::EpochKeys;
use crate::service::ServiceStore;

/// Well within the lease's length.
const RENEW_EVERY: Duration = Duration::from_secs(3);

/// Processes that use a Redis notice within this that another is to be opened.
const NOTICED_AFTER: Duration = CONFIRM_EVERY.saturating_mul(2);

/// A recovery of one partition, and what it works with.
pub struct Recovery<'a> {
    pub partition: &'a Partition,
    pub ledger: &'a Ledger,
    pub coupons: &'a CouponStore,
    pub services: &'a ServiceStore,
    /// One that was just taken.
    pub lease: &'a Lease,
    pub progress: &'a ProgressCallback,
    pub mode: RecoveryMode,
}

/// What to do about data that is not certified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecoveryMode {
    /// Certify it as it is if it is intact, else rebuild.
    VerifyFirst,
    Rebuild,
}

/// The outcome of a recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecoveryOutcome {
    /// The data was intact: the epoch that was open last is open again.
    Verified { in_flight: usize, coupons: usize },
    /// A new epoch is open.
    Rebuilt { survivors: usize, decided: usize, coupons: usize },
    /// Another process recovers, or has done so.
    Superseded,
}

impl RecoveryOutcome {
    /// The outcome of two partitions together: rebuilt, if one of them was.
    pub(crate) fn with(self, other: Self) -> Self {
        use RecoveryOutcome::{Rebuilt, Superseded, Verified};
        match (self, other) {
            (Superseded, one) | (one, Superseded) => one,
            (Verified { in_flight: a, coupons: b }, Verified { in_flight, coupons }) => {
                Verified { in_flight: a + in_flight, coupons: b + coupons }
            }
            (Verified { in_flight, coupons: a }, Rebuilt { survivors, decided, coupons })
            | (Rebuilt { survivors, decided, coupons }, Verified { in_flight, coupons: a }) => {
                Rebuilt { survivors: survivors + in_flight, decided, coupons: coupons + a }
            }
            (Rebuilt { survivors: a, decided: b, coupons: c }, Rebuilt { survivors, decided, coupons }) => {
                Rebuilt { survivors: a + survivors, decided: b + decided, coupons: c + coupons }
            }
        }
    }
}

impl Recovery<'_> {
    /// Recovers. An `Err` leaves the certificate closed, for the next attempt.
    pub async fn run(&self) -> Result<RecoveryOutcome, Failure> {
        tokio::select! {
            recovered = self.close_and_open() => recovered,
            lost = self.renew_until_lost() => lost.map(|()| RecoveryOutcome::Superseded),
        }
    }

    async fn close_and_open(&self) -> Result<RecoveryOutcome, Failure> {
        let (last, on) = match close(self.partition, self.lease, self.mode == RecoveryMode::Rebuild).await? {
            CloseOutcome::Superseded => return Ok(RecoveryOutcome::Superseded),
            CloseOutcome::After { last, on } => (last, on),
        };
        (self.progress)(&RecoveryStep::Closed);
        if let (RecoveryMode::VerifyFirst, Some(last)) = (self.mode, &last)
            && let Some(recovered) = self.verified(last, &on).await?
        {
            return Ok(recovered);
        }
        rebuild(self, last, &on).await
    }

    /// Certifies the data as it is. `None` if it is not what was left there.
    async fn verified(
        &self,
        last: &EpochKeys,
        on: &ClosedInstance,
    ) -> Result<Option<RecoveryOutcome>, Failure> {
        let verified = match verify(self.partition, last, self.ledger, self.coupons, self.progress).await {
            Err(damaged) if damaged.is_of_one() => VerifyOutcome::Damaged(damaged.chain()),
            verified => verified?,
        };
        let why = match verified {
            VerifyOutcome::Damaged(why) => why,
            VerifyOutcome::Intact { in_flight, coupons } => match self.certified(last, on).await? {
                OpenOutcome::Opened => {
                    (self.progress)(&RecoveryStep::Opened);
                    self.opened(last);
                    old_epochs::delete_leftovers(self.partition, last).await;
                    return Ok(Some(RecoveryOutcome::Verified { in_flight, coupons }));
                }
                OpenOutcome::Superseded => return Ok(Some(RecoveryOutcome::Superseded)),
                OpenOutcome::Restarted => return Err(restarted()),
                OpenOutcome::Incomplete(what) => format!("{what}: missing"),
            },
        };
        (self.progress)(&RecoveryStep::Damaged { why });
        Ok(None)
    }

    async fn certified(&self, last: &EpochKeys, on: &ClosedInstance) -> Result<OpenOutcome, Failure> {
        let service = self.services.get().await?;
        if !self.remember(last, on).await? {
            return Ok(OpenOutcome::Superseded);
        }
        certify(self.partition, self.lease, last, service).await
    }

    /// Remembers what is about to be opened. Where it takes the place of a Redis that served a moment ago, and may
    /// live on, those who use that one notice before it is opened. Whether it may be opened.
    pub(super) async fn remember(&self, keys: &EpochKeys, on: &ClosedInstance) -> Result<bool, Failure> {
        let if_silent = on.out_of_date && self.mode == RecoveryMode::VerifyFirst;
        let remembered = self.lease.remember(keys.epoch(), &on.instance, if_silent).await?;
        if remembered && on.was_replica && self.lease.silent < NOTICED_AFTER {
            tokio::time::sleep(NOTICED_AFTER).await;
        }
        Ok(remembered)
    }

    /// Makes this process use the epoch that was just opened. The next call learns its term.
    pub(super) fn opened(&self, keys: &EpochKeys) {
        self.partition.set_opening(crate::redis::Opening { epoch: keys.epoch(), term: 0 });
    }

    /// Renews the lease until it is lost. That MongoDB is away for a moment does not lose it yet.
    async fn renew_until_lost(&self) -> Result<(), Failure> {
        let mut renewed = Instant::now();
        loop {
            tokio::time::sleep(RENEW_EVERY).await;
            match self.lease.renew().await {
                Ok(true) => renewed = Instant::now(),
                Ok(false) => return Ok(()),
                Err(failure) if renewed.elapsed() + RENEW_EVERY > LEASE_LENGTH => return Err(failure),
                Err(failure) => {
                    tracing::warn!(error = failure.chain(), "the recovery lease could not be renewed yet")
                }
            }
        }
    }
}
