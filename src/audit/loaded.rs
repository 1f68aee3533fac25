//! Which coupons there are to audit.

use super::{Auditor, COUPONS_MAX};
use crate::Failure;
use crate::coupon::Coupon;

impl Auditor {
    /// At most [`COUPONS_MAX`] coupons, newest first, from after one of them.
    pub async fn coupons_after(&self, after: Option<&Coupon>) -> Result<Vec<Coupon>, Failure> {
        let after = after.map(|coupon| (coupon.created_at, coupon.id.to_string()));
        let mut page = self.coupons.list(after, COUPONS_MAX).await?;
        // Where none of a page can be read there may be others behind it.
        while let (true, Some(next)) = (page.items.is_empty(), page.next) {
            page = self.coupons.list(Some(next), COUPONS_MAX).await?;
        }
        Ok(page.items)
    }
}
