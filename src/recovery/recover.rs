//! Getting a partition certified again, under a lease: as it is where the data is intact, else rebuilt.

use std::time::{Duration, Instant};

use super::Step;
use super::certificate::{Closed, Opening, certify, close, restarted};
use super::forget;
use super::lease::{LASTS, Lease};
use super::progress::Watch;
use super::rebuild::rebuild;
use super::verify::{Verified, verify};
use crate::Failure;
use crate::coupon::CouponStore;
use crate::issuance::Ledger;
use crate::keys::EpochKeys;
use crate::partition::Partition;
use crate::service::ServiceStore;

/// Well within the lease's length.
const RENEW_EVERY: Duration = Duration::from_secs(3);

/// What a recovery works with.
pub struct Recovery<'a> {
    pub partition: &'a Partition,
    pub ledger: &'a Ledger,
    pub coupons: &'a CouponStore,
    pub services: &'a ServiceStore,
    /// One that was just taken.
    pub lease: &'a Lease,
    pub watch: &'a Watch,
}

/// What to do about data that is not certified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// Certify it as it is if it is intact, else rebuild.
    VerifyFirst,
    Rebuild,
}

/// What a recovery came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovered {
    /// The data was intact: the epoch that was open last is open again.
    Verified { in_flight: usize, coupons: usize },
    /// A new epoch is open.
    Rebuilt { survivors: usize, decided: usize, coupons: usize },
    /// Somebody else recovers, or has done so.
    Superseded,
}

impl Recovery<'_> {
    /// Recovers. An `Err` leaves the certificate closed, for the next attempt.
    pub async fn run(&self, how: How) -> Result<Recovered, Failure> {
        tokio::select! {
            recovered = self.close_and_open(how) => recovered,
            lost = self.lose() => lost.map(|()| Recovered::Superseded),
        }
    }

    async fn close_and_open(&self, how: How) -> Result<Recovered, Failure> {
        let last = match close(self.partition, self.lease, how == How::Rebuild).await? {
            Closed::Superseded => return Ok(Recovered::Superseded),
            Closed::After(last) => last,
        };
        (self.watch)(&Step::Closed);
        if let (How::VerifyFirst, Some(last)) = (how, &last)
            && let Some(recovered) = self.verified(last).await?
        {
            return Ok(recovered);
        }
        rebuild(self, last).await
    }

    /// Certifies the data as it is. `None` if it is not what was left there.
    async fn verified(&self, last: &EpochKeys) -> Result<Option<Recovered>, Failure> {
        let verified = match verify(self.partition, last, self.ledger, self.coupons, self.watch).await {
            Err(damaged) if damaged.is_damage() => Verified::Damaged(damaged.chain()),
            verified => verified?,
        };
        let why = match verified {
            Verified::Damaged(why) => why,
            Verified::Intact { in_flight, coupons } => match self.certified(last).await? {
                Opening::Opened => {
                    (self.watch)(&Step::Opened);
                    self.partition.set_epoch(last.epoch());
                    forget::leftovers(self.partition, last).await;
                    return Ok(Some(Recovered::Verified { in_flight, coupons }));
                }
                Opening::Superseded => return Ok(Some(Recovered::Superseded)),
                Opening::Restarted => return Err(restarted()),
                Opening::Incomplete(what) => format!("{what}: missing"),
            },
        };
        (self.watch)(&Step::Damaged { why });
        Ok(None)
    }

    async fn certified(&self, last: &EpochKeys) -> Result<Opening, Failure> {
        certify(self.partition, self.lease, last, self.services.get().await?).await
    }

    /// Renews the lease until it is lost. That MongoDB is away for a moment does not lose it yet.
    async fn lose(&self) -> Result<(), Failure> {
        let mut renewed = Instant::now();
        loop {
            tokio::time::sleep(RENEW_EVERY).await;
            match self.lease.renew().await {
                Ok(true) => renewed = Instant::now(),
                Ok(false) => return Ok(()),
                Err(failure) if renewed.elapsed() + RENEW_EVERY > LASTS => return Err(failure),
                Err(failure) => {
                    tracing::warn!(error = failure.chain(), "the recovery lease could not be renewed yet")
                }
            }
        }
    }
}
