//! Where the units of coupons lie, for requests: many that ask for one coupon at the same time share one read.

use std::time::Duration;

use crate::Failure;
use crate::coupon::{CouponStore, Placements};
use crate::ids::{CouponId, PartitionId, Shares};
use crate::redis::Partitions;
use crate::runtime::batch::{Batcher, Bounds};

/// A request that would wait longer for MongoDB is refused with 503.
const BOUNDS: Bounds = Bounds { batch: 1_000, calls: 2, waiting: 32_768, wait: Duration::from_secs(2) };

/// Knows the shares of each coupon. Where partition 0 is the only one, nothing is read.
pub(crate) enum PlacementReader {
    One(Shares),
    Any(SharedPlacements),
}

pub(crate) struct SharedPlacements {
    placements: Placements,
    reading: Batcher<CouponId, Option<Shares>>,
}

impl PlacementReader {
    /// Remembers nothing yet.
    pub fn start(partitions: &Partitions, coupons: &CouponStore) -> Self {
        if partitions.is_one() {
            return PlacementReader::One(Shares::one(PartitionId::ONE));
        }
        let placements = Placements::new(coupons.clone());
        let read = placements.clone();
        let reading = Batcher::start("read where coupons lie", BOUNDS, move |ids: Vec<CouponId>| {
            let placements = read.clone();
            async move { placements.read(&ids).await }
        });
        PlacementReader::Any(SharedPlacements { placements, reading })
    }

    /// The shares of a coupon; `None` if there is no such coupon.
    ///
    /// # Errors
    ///
    /// If MongoDB fails, or the coupon's record does not say.
    pub async fn of(&self, coupon: &CouponId) -> Result<Option<Shares>, Failure> {
        let SharedPlacements { placements, reading } = match self {
            PlacementReader::One(shares) => return Ok(Some(shares.clone())),
            PlacementReader::Any(any) => any,
        };
        match placements.remembered(coupon) {
            Some(shares) => Ok(Some(shares)),
            // Boxed, so that what few requests need does not enlarge the future of all.
            None => Box::pin(reading.ask(coupon.clone())).await,
        }
    }
}
