//! What a worker must know of a coupon: how many units there are, and how many one user may hold.

use quick_cache::sync::Cache;

use crate::Failure;
use crate::coupon::{CouponId, CouponStore};

const CACHED: usize = 10_000;

/// The limits of one coupon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limit {
    pub total: u32,
    pub per_user: u8,
}

/// Remembers limits. A limit never changes, and a total only grows: an old one refuses too much,
/// never too little, and whoever is refused reads it again.
pub(super) struct Limits {
    store: CouponStore,
    known: Cache<CouponId, Limit>,
}

impl Limits {
    pub(super) fn new(store: CouponStore) -> Self {
        Limits { store, known: Cache::new(CACHED) }
    }

    pub(super) async fn of(&self, coupon: &CouponId) -> Result<Limit, Failure> {
        match self.known.get(coupon) {
            Some(limit) => Ok(limit),
            None => self.read(coupon).await,
        }
    }

    /// Whether there is a unit of this number: by memory, or else by a fresh look.
    pub(super) async fn has_unit(&self, coupon: &CouponId, serial: u32) -> Result<bool, Failure> {
        Ok(serial <= self.of(coupon).await?.total || serial <= self.read(coupon).await?.total)
    }

    async fn read(&self, coupon: &CouponId) -> Result<Limit, Failure> {
        let Some(found) = self.store.get(coupon).await? else {
            return Err(Failure::MongoDb {
                operation: "read the coupon",
                source: format!("coupon {coupon} has issuances in flight and no record").into(),
            });
        };
        let limit = Limit { total: found.total, per_user: found.per_user };
        self.known.insert(coupon.clone(), limit);
        Ok(limit)
    }
}
