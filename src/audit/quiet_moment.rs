//! Whether Redis has settled as many units as the ledger has issued: it can be determined only in a
//! moment in which nothing was reserved or settled.

use std::time::Duration;

use super::figures::{CouponFigures, figures};
use super::queue_snapshot::PAGE;
use super::{AuditAbort, Auditor};
use crate::ids::{CouponId, IssuanceId};
use crate::redis::keys::EpochKeys;

/// Attempts to find a quiet moment.
const ATTEMPTS_MAX: usize = 8;
const PAUSE: Duration = Duration::from_millis(20);

/// A quiet moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct QuietMoment {
    pub figures: CouponFigures,
    /// Reservations of the partition so far.
    pub accepted: u64,
    /// Issued by the ledger.
    pub issued: u64,
    /// Of these, in flight.
    pub issued_in_flight: u64,
    /// In flight, of this coupon.
    pub in_flight: u64,
}

impl Auditor {
    /// Finds a moment in which nothing moved, seen alike twice; `None` if there is too much going on, or
    /// the coupon is not loaded.
    pub(super) async fn quiet_moment(
        &self,
        keys: &EpochKeys,
        coupon: &CouponId,
    ) -> Result<Option<QuietMoment>, AuditAbort> {
        let mut last = None;
        for attempt in 0..ATTEMPTS_MAX {
            if attempt > 0 {
                tokio::time::sleep(PAUSE).await;
            }
            let now = self.quiet_moment_once(keys, coupon).await?;
            if now.is_some() && now == last {
                return Ok(now);
            }
            last = now;
        }
        Ok(None)
    }

    async fn quiet_moment_once(
        &self,
        keys: &EpochKeys,
        coupon: &CouponId,
    ) -> Result<Option<QuietMoment>, AuditAbort> {
        let coupons = std::slice::from_ref(coupon);
        let before = figures(&self.partition, keys, coupons).await?;
        let Some(Some(now)) = before.coupons.first().copied() else { return Ok(None) };
        let ids: Vec<_> = self.in_flight_of(keys, coupon).await?.into_keys().collect();
        let first = self.count_issued(&ids).await?;
        let issued = self.ledger.issued_count(coupon).await?;
        let second = self.count_issued(&ids).await?;
        let after = figures(&self.partition, keys, coupons).await?;
        Ok((before == after && first == second).then_some(QuietMoment {
            figures: now,
            accepted: before.accepted,
            issued,
            issued_in_flight: first,
            in_flight: ids.len() as u64,
        }))
    }

    async fn count_issued(&self, ids: &[IssuanceId]) -> Result<u64, AuditAbort> {
        let mut count = 0;
        for chunk in ids.chunks(PAGE) {
            count += self.ledger.issued_among(chunk).await?.len() as u64;
        }
        Ok(count)
    }
}
