//! The count of issued units that is kept with a coupon when it is retired. A worker that slept may insert a
//! record after it; then the ledger is right, and what is kept is counted anew.

use jiff::{SignedDuration, Timestamp};

use super::Auditor;
use super::finding::{Finding, FindingKind};
use crate::Failure;
use crate::coupon::Coupon;
use crate::ids::CouponId;

/// The final counts of coupons that ended longer ago are checked only by an audit that an operator asks for.
const WATCHED_FOR: SignedDuration = SignedDuration::from_hours(24);
/// Coupons that are watched.
const WATCHED_MAX: usize = 50;

impl Auditor {
    /// The findings about those of these coupons, which are not loaded, whose final count is not the ledger's, each
    /// with the coupon and the ledger's count.
    async fn stale_final_counts<'a>(
        &self,
        coupons: &[&'a Coupon],
    ) -> Result<Vec<(&'a Coupon, u64, Finding)>, Failure> {
        let kept = self.coupons.final_counts(coupons).await?;
        if kept.is_empty() {
            return Ok(Vec::new());
        }
        let ids: Vec<CouponId> = kept.keys().cloned().collect();
        // What is kept is the number of all shares together.
        let issued = self.ledger.of_all_shares().issued_counts(&ids).await?;
        let stale = coupons.iter().filter_map(|coupon| {
            let (kept, issued) = (*kept.get(&coupon.id)?, issued.get(&coupon.id).copied().unwrap_or(0));
            let detail = Some(format!("{kept} are kept, and the ledger has {issued}"));
            let finding = Finding { detail, ..Finding::new(FindingKind::FinalCountStale, Some(&coupon.id)) };
            (issued != u64::from(kept)).then_some((*coupon, issued, finding))
        });
        Ok(stale.collect())
    }

    /// Whether the final count of a coupon, which is not loaded, differs from the ledger.
    pub(super) async fn final_count(&self, coupon: &Coupon) -> Result<Option<Finding>, Failure> {
        Ok(self.stale_final_counts(&[coupon]).await?.pop().map(|(.., finding)| finding))
    }

    /// Replaces the final counts of these coupons that are stale by those of the ledger. Returns what was found.
    pub(super) async fn renew_final_counts(&self, coupons: &[&Coupon]) -> Result<Vec<Finding>, Failure> {
        let mut findings = Vec::new();
        for (coupon, issued, finding) in self.stale_final_counts(coupons).await? {
            self.coupons.keep_final_count(&coupon.id, coupon.generation, issued).await?;
            findings.push(finding);
        }
        Ok(findings)
    }

    /// Renews the stale final counts of the coupons that were retired lately.
    pub(super) async fn watch_final_counts(&self) -> Result<Vec<Finding>, Failure> {
        let mut retired = self.coupons.retired_since(Timestamp::now() - WATCHED_FOR, WATCHED_MAX).await?;
        retired.retain(|coupon| coupon.shares.partitions()[0] == self.partition.id());
        self.renew_final_counts(&retired.iter().collect::<Vec<_>>()).await
    }
}
