//! The count of issued units that is kept with a coupon when it is retired. A worker that slept may insert a
//! record after it; then the ledger is right, and what is kept is counted anew.

use jiff::{SignedDuration, Timestamp};

use super::Auditor;
use super::finding::{Finding, FindingKind};
use crate::Failure;
use crate::coupon::Coupon;

/// Coupons that ended longer ago are looked at by an audit that is asked for, and not all the time.
const WATCHED_FOR: SignedDuration = SignedDuration::from_hours(24);
/// Coupons that are watched.
const WATCHED_MAX: usize = 50;

impl Auditor {
    /// Whether what is kept with a coupon, which is not loaded, differs from the ledger.
    pub(super) async fn final_count(&self, coupon: &Coupon) -> Result<Option<Finding>, Failure> {
        let Some(kept) = self.coupons.final_counts(&[coupon]).await?.remove(&coupon.id) else {
            return Ok(None);
        };
        let issued = self.ledger.issued_count(&coupon.id).await?;
        let detail = Some(format!("{kept} are kept, and the ledger has {issued}"));
        Ok((issued != u64::from(kept))
            .then(|| Finding { detail, ..Finding::new(FindingKind::FinalCountStale, Some(&coupon.id)) }))
    }

    /// Counts the issued units of a retired coupon anew, and keeps the count.
    pub(super) async fn recount_final(&self, coupon: &Coupon) -> Result<(), Failure> {
        let issued = self.ledger.issued_count(&coupon.id).await?;
        self.coupons.keep_final_count(&coupon.id, coupon.generation, issued).await
    }

    /// Counts anew what is stale of the coupons that were retired lately. Returns what was.
    pub(super) async fn watch_final_counts(&self) -> Result<Vec<Finding>, Failure> {
        let mut stale = Vec::new();
        for coupon in self.coupons.retired_since(Timestamp::now() - WATCHED_FOR, WATCHED_MAX).await? {
            if let Some(finding) = self.final_count(&coupon).await? {
                self.recount_final(&coupon).await?;
                stale.push(finding);
            }
        }
        Ok(stale)
    }
}
