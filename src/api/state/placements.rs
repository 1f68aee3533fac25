//! Where the units of coupons lie: each request asks for it, and it never changes.

use std::time::Duration;

use quick_cache::sync::Cache;

use crate::Failure;
use crate::coupon::CouponStore;
use crate::ids::{CouponId, PartitionId};
use crate::redis::Partitions;
use crate::runtime::batch::{Batcher, Bounds};

/// Coupons whose place is remembered.
const REMEMBERED: usize = 100_000;
/// A request that would wait longer for MongoDB is refused with 503.
const BOUNDS: Bounds = Bounds { batch: 1_000, calls: 2, waiting: 32_768, wait: Duration::from_secs(2) };

/// Knows the partition of each coupon. Where partition 0 is the only one, nothing is read.
pub(crate) struct Placements(Option<Known>);

struct Known {
    remembered: Cache<CouponId, PartitionId>,
    reading: Batcher<CouponId, Option<PartitionId>>,
}

impl Known {
    async fn read(&self, coupon: &CouponId) -> Result<Option<PartitionId>, Failure> {
        let found = self.reading.ask(coupon.clone()).await?;
        if let Some(partition) = found {
            self.remembered.insert(coupon.clone(), partition);
        }
        Ok(found)
    }
}

impl Placements {
    /// Remembers nothing yet.
    pub fn start(partitions: &Partitions, coupons: &CouponStore) -> Self {
        Placements((!partitions.is_one()).then(|| {
            let coupons = coupons.clone();
            let reading = Batcher::start("read where coupons lie", BOUNDS, move |ids: Vec<CouponId>| {
                let coupons = coupons.clone();
                async move {
                    let found = coupons.placements(&ids).await?;
                    let place = |id| match found.get(id) {
                        Some(Err(why)) => Err(Failure::Damaged {
                            what: "where the units of the coupon lie",
                            why: format!("coupon {id}: {why}"),
                        }),
                        Some(Ok(place)) => Ok(Some(*place)),
                        None => Ok(None),
                    };
                    Ok(ids.iter().map(place).collect())
                }
            });
            Known { remembered: Cache::new(REMEMBERED), reading }
        }))
    }

    /// The partition of a coupon; `None` if there is no such coupon.
    ///
    /// # Errors
    ///
    /// If MongoDB fails, or the coupon's record does not say.
    pub async fn of(&self, coupon: &CouponId) -> Result<Option<PartitionId>, Failure> {
        let Some(known) = &self.0 else { return Ok(Some(PartitionId::ONE)) };
        match known.remembered.get(coupon) {
            Some(partition) => Ok(Some(partition)),
            // Boxed, so that what few requests need does not enlarge the future of all.
            None => Box::pin(known.read(coupon)).await,
        }
    }
}
