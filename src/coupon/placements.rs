//! Where the units of coupons lie. It never changes, so what was read once is remembered.

use std::sync::Arc;

use quick_cache::sync::Cache;

use super::{CouponId, CouponStore};
use crate::Failure;
use crate::ids::PartitionId;

/// Coupons whose place is remembered.
const REMEMBERED: usize = 100_000;

/// Knows the partition of each coupon. Cheap to clone.
#[derive(Clone)]
pub struct Placements {
    coupons: CouponStore,
    remembered: Arc<Cache<CouponId, PartitionId>>,
}

impl Placements {
    /// Remembers nothing yet.
    pub fn new(coupons: CouponStore) -> Self {
        Placements { coupons, remembered: Arc::new(Cache::new(REMEMBERED)) }
    }

    /// The partition of a coupon, if it is remembered.
    pub(crate) fn remembered(&self, coupon: &CouponId) -> Option<PartitionId> {
        self.remembered.get(coupon)
    }

    /// The partition of a coupon; `None` if there is no such coupon.
    ///
    /// # Errors
    ///
    /// If MongoDB fails, or the coupon's record does not say.
    pub async fn of(&self, coupon: &CouponId) -> Result<Option<PartitionId>, Failure> {
        self.of_all(std::slice::from_ref(coupon)).await?.pop().unwrap_or(Ok(None))
    }

    /// The partitions of coupons, in their order: those that are not remembered are read with one query.
    ///
    /// # Errors
    ///
    /// If MongoDB fails. For a coupon whose record does not say, and for no other, [`Failure::Damaged`].
    pub(crate) async fn of_all(
        &self,
        coupons: &[CouponId],
    ) -> Result<Vec<Result<Option<PartitionId>, Failure>>, Failure> {
        let mut placed: Vec<_> = coupons.iter().map(|coupon| Ok(self.remembered(coupon))).collect();
        let is_unknown = |placed: &Result<Option<_>, Failure>| matches!(placed, Ok(None));
        let unknown = coupons.iter().zip(&placed).filter(|(_, placed)| is_unknown(placed));
        let unknown: Vec<CouponId> = unknown.map(|(coupon, _)| coupon.clone()).collect();
        if !unknown.is_empty() {
            let read = self.read(&unknown).await?;
            placed.iter_mut().filter(|placed| is_unknown(placed)).zip(read).for_each(|(at, read)| *at = read);
        }
        Ok(placed)
    }

    /// Reads the partitions of coupons with one query, and remembers them. The answers stand in the order of the coupons.
    ///
    /// # Errors
    ///
    /// If MongoDB fails.
    pub(crate) async fn read(
        &self,
        coupons: &[CouponId],
    ) -> Result<Vec<Result<Option<PartitionId>, Failure>>, Failure> {
        let found = self.coupons.placements(coupons).await?;
        let answer = |coupon: &CouponId| match found.get(coupon) {
            Some(Ok(partition)) => {
                self.remembered.insert(coupon.clone(), *partition);
                Ok(Some(*partition))
            }
            Some(Err(why)) => Err(Failure::Damaged {
                what: "where the units of the coupon lie",
                why: format!("coupon {coupon}: {why}"),
            }),
            None => Ok(None),
        };
        Ok(coupons.iter().map(answer).collect())
    }
}
