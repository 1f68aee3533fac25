//! A coupon's issued units in the order of their serials, a page at a time: whoever exports millions
//! holds one page.

use mongodb::options::FindOptions;

use super::{Ledger, PAGE_SIZE, queries};
use crate::Failure;
use crate::coupon::CouponId;
use crate::issuance::Decision;

/// Units in one page of [`Ledger::units_after`].
pub const UNITS_PAGE: usize = 1_000;

impl Ledger {
    /// At most [`UNITS_PAGE`] issued units of a coupon with a serial above `after`, by serial. A page with
    /// fewer is the last.
    pub async fn units_after(&self, coupon: &CouponId, after: u32) -> Result<Vec<Decision>, Failure> {
        let options = FindOptions::builder()
            .sort(queries::by_serial())
            .limit(i64::try_from(UNITS_PAGE).unwrap_or(i64::MAX))
            .batch_size(PAGE_SIZE)
            .build();
        self.find("export a coupon's units", queries::units_after(coupon, after), options).await
    }
}
