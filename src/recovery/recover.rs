//! Getting a partition certified again, under a lease: as it is where the data is intact, else rebuilt.

use std::time::{Duration, Instant};

use super::Step;
use super::certificate::{Closed, ClosedOn, Opening, certify, close, restarted};
use super::fence::CONFIRM_EVERY;
use super::forget;
use super::lease::{LASTS, Lease};
use super::progress::Watch;
use super::rebuild::rebuild;
use super::verify::{Verified, verify};
use crate::Failure;
use crate::coupon::CouponStore;
use crate::issuance::Ledger;
use crate::redis::Partition;
use crate::redis::keys::EpochKeys;
use crate::service::ServiceStore;

/// Well within the lease's length.
const RENEW_EVERY: Duration = Duration::from_secs(3);

/// Those who use a Redis notice within this that another is to be opened.
const NOTICED_AFTER: Duration = CONFIRM_EVERY.saturating_mul(2);

/// What a recovery works with.
pub struct Recovery<'a> {
    pub partition: &'a Partition,
    pub ledger: &'a Ledger,
    pub coupons: &'a CouponStore,
    pub services: &'a ServiceStore,
    /// One that was just taken.
    pub lease: &'a Lease,
    pub watch: &'a Watch,
    pub how: How,
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
    pub async fn run(&self) -> Result<Recovered, Failure> {
        tokio::select! {
            recovered = self.close_and_open() => recovered,
            lost = self.lose() => lost.map(|()| Recovered::Superseded),
        }
    }

    async fn close_and_open(&self) -> Result<Recovered, Failure> {
        let (last, on) = match close(self.partition, self.lease, self.how == How::Rebuild).await? {
            Closed::Superseded => return Ok(Recovered::Superseded),
            Closed::After { last, on } => (last, on),
        };
        (self.watch)(&Step::Closed);
        if let (How::VerifyFirst, Some(last)) = (self.how, &last)
            && let Some(recovered) = self.verified(last, &on).await?
        {
            return Ok(recovered);
        }
        rebuild(self, last, &on).await
    }

    /// Certifies the data as it is. `None` if it is not what was left there.
    async fn verified(&self, last: &EpochKeys, on: &ClosedOn) -> Result<Option<Recovered>, Failure> {
        let verified = match verify(self.partition, last, self.ledger, self.coupons, self.watch).await {
            Err(damaged) if damaged.is_of_one() => Verified::Damaged(damaged.chain()),
            verified => verified?,
        };
        let why = match verified {
            Verified::Damaged(why) => why,
            Verified::Intact { in_flight, coupons } => match self.certified(last, on).await? {
                Opening::Opened => {
                    (self.watch)(&Step::Opened);
                    self.opened(last);
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

    async fn certified(&self, last: &EpochKeys, on: &ClosedOn) -> Result<Opening, Failure> {
        let service = self.services.get().await?;
        if !self.remember(last, on).await? {
            return Ok(Opening::Superseded);
        }
        certify(self.partition, self.lease, last, service).await
    }

    /// Remembers what is about to be opened. Where it takes the place of a Redis that served a moment ago, and may
    /// live on, those who use that one notice before it is opened. Whether it may be opened.
    pub(super) async fn remember(&self, keys: &EpochKeys, on: &ClosedOn) -> Result<bool, Failure> {
        let if_silent = on.out_of_date && self.how == How::VerifyFirst;
        let remembered = self.lease.remember(keys.epoch(), &on.instance, if_silent).await?;
        if remembered && on.was_replica && self.lease.silent < NOTICED_AFTER {
            tokio::time::sleep(NOTICED_AFTER).await;
        }
        Ok(remembered)
    }

    /// Goes over to what was just opened. The next call finds out the rest.
    pub(super) fn opened(&self, keys: &EpochKeys) {
        self.partition.set_opening(crate::redis::Opening { epoch: keys.epoch(), term: 0 });
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
