//! Where the units of coupons lie. It never changes, so what was read once is remembered.

use std::sync::Arc;

use quick_cache::sync::Cache;

use super::{Coupon, CouponId, CouponStore};
use crate::Failure;
use crate::ids::{PartitionId, Shares};
use crate::redis::PerPartition;

/// Something of each of some partitions, and the coupons that have a share there.
type CouponsIn<'a, T> = Vec<(&'a T, Vec<Coupon>)>;

/// Coupons by the partitions that they have shares in, one of each share; and those of partitions that this process does
/// not know, which keep nothing from being done to the others.
pub(crate) fn by_share<T>(
    known: &PerPartition<T>,
    coupons: impl IntoIterator<Item = Coupon>,
) -> (CouponsIn<'_, T>, Vec<(PartitionId, Coupon)>) {
    let shares = coupons.into_iter().flat_map(|coupon| {
        let partitions = coupon.shares.clone();
        let shares: Vec<_> = partitions.partitions().iter().map(|share| (*share, coupon.clone())).collect();
        shares
    });
    let (groups, unknown) = known.group(shares, |(partition, _)| *partition);
    let coupons = |shares: Vec<(PartitionId, Coupon)>| shares.into_iter().map(|(_, coupon)| coupon).collect();
    (groups.into_iter().map(|(one, shares)| (one, coupons(shares))).collect(), unknown)
}

/// Coupons whose place is remembered.
const REMEMBERED: usize = 100_000;

/// Knows the shares of each coupon. Cheap to clone.
#[derive(Clone)]
pub struct Placements {
    coupons: CouponStore,
    remembered: Arc<Cache<CouponId, Shares>>,
}

impl Placements {
    /// Remembers nothing yet.
    pub fn new(coupons: CouponStore) -> Self {
        Placements { coupons, remembered: Arc::new(Cache::new(REMEMBERED)) }
    }

    /// The shares of a coupon, if they are remembered.
    pub(crate) fn remembered(&self, coupon: &CouponId) -> Option<Shares> {
        self.remembered.get(coupon)
    }

    /// The shares of a coupon; `None` if there is no such coupon.
    ///
    /// # Errors
    ///
    /// If MongoDB fails, or the coupon's record does not say.
    pub async fn of(&self, coupon: &CouponId) -> Result<Option<Shares>, Failure> {
        self.of_all(std::slice::from_ref(coupon)).await?.pop().unwrap_or(Ok(None))
    }

    /// The shares of coupons, in their order: those that are not remembered are read with one query.
    ///
    /// # Errors
    ///
    /// If MongoDB fails. For a coupon whose record does not say, and for no other, [`Failure::Damaged`].
    pub(crate) async fn of_all(
        &self,
        coupons: &[CouponId],
    ) -> Result<Vec<Result<Option<Shares>, Failure>>, Failure> {
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

    /// Reads the shares of coupons with one query, and remembers them. The answers stand in the order of the coupons.
    ///
    /// # Errors
    ///
    /// If MongoDB fails.
    pub(crate) async fn read(
        &self,
        coupons: &[CouponId],
    ) -> Result<Vec<Result<Option<Shares>, Failure>>, Failure> {
        let found = self.coupons.placements(coupons).await?;
        let answer = |coupon: &CouponId| match found.get(coupon) {
            Some(Ok(shares)) => {
                self.remembered.insert(coupon.clone(), shares.clone());
                Ok(Some(shares.clone()))
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
