//! Which coupons there are to audit.

use super::figures::figures;
use super::{Auditor, COUPONS_MAX, Stop};
use crate::Failure;
use crate::coupon::Coupon;

impl Auditor {
    /// At most [`COUPONS_MAX`] coupons, newest first, from after one of them.
    pub async fn coupons_after(&self, after: Option<&Coupon>) -> Result<Vec<Coupon>, Failure> {
        let after = after.map(|coupon| (coupon.created_at, coupon.id.clone()));
        self.coupons.list(after, COUPONS_MAX).await
    }

    /// Those of `coupons` that are loaded, at most [`COUPONS_MAX`].
    pub(super) async fn loaded(&self, coupons: Vec<Coupon>) -> Result<Vec<Coupon>, Failure> {
        let ids: Vec<_> = coupons.iter().map(|coupon| coupon.id.clone()).collect();
        match figures(&self.partition, &self.partition.keys(), &ids).await {
            Ok(moment) => {
                let both = coupons.into_iter().zip(moment.coupons);
                Ok(both.filter_map(|(coupon, figures)| figures.map(|_| coupon)).collect())
            }
            // It is asked again at the next round.
            Err(Stop::AnotherEpoch) => Err(Failure::Uncertified),
            Err(Stop::Failed(failure)) => Err(failure),
        }
    }
}
