//! The units that users hold, and until when each is valid.

use quick_cache::sync::Cache;

use crate::Failure;
use crate::coupon::{CouponStore, CouponTimeZone, Expiry, Validity};
use crate::ids::CouponId;
use crate::process::Backends;
use crate::redemption::RedemptionStore;

/// Coupons whose expiry is remembered.
const EXPIRIES_CACHED: usize = 10_000;

/// Reads and changes held units.
pub(crate) struct Holdings {
    pub redemptions: RedemptionStore,
    pub coupons: CouponStore,
    /// The expiry of a coupon never changes.
    expiries: Cache<CouponId, Expiry>,
}

impl Holdings {
    /// Remembers no expiry yet.
    pub fn new(backends: &Backends) -> Self {
        Holdings {
            redemptions: RedemptionStore::new(&backends.database),
            coupons: backends.coupons.clone(),
            expiries: Cache::new(EXPIRIES_CACHED),
        }
    }

    /// How long units of a coupon are valid. Those of a coupon without a record are valid without limit.
    ///
    /// # Errors
    /// The record cannot be read.
    pub async fn expiry(&self, coupon: &CouponId) -> Result<Expiry, Failure> {
        if let Some(known) = self.expiries.get(coupon) {
            return Ok(known);
        }
        match self.coupons.expiry(coupon).await? {
            Some(expiry) => {
                self.expiries.insert(coupon.clone(), expiry.clone());
                Ok(expiry)
            }
            None => Ok(Expiry { validity: Validity::Unlimited, zone: CouponTimeZone::UTC }),
        }
    }
}
