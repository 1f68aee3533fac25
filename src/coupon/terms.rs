//! The part of a coupon that Redis must have. No more of its record is read for it, so that nothing else in the record
//! (a discount of a later version, say) keeps the coupon from being loaded.

use std::collections::HashMap;

use jiff::Timestamp;
use mongodb::bson::{DateTime, Document, deserialize_from_slice, doc};
use serde::Deserialize;

use super::{Coupon, CouponId, CouponStore, MAX_TOTAL, store};
use crate::Failure;
use crate::ids::Shares;
use crate::mongo::from_bson_time;

/// The part of a coupon that Redis must have. Each field is that of a [`Coupon`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CouponTerms {
    pub id: CouponId,
    pub total: u32,
    pub per_user: u8,
    pub starts_at: Timestamp,
    pub ends_at: Timestamp,
    pub paused: bool,
    pub archived: bool,
    pub generation: i64,
    pub shares: Shares,
}

impl From<&Coupon> for CouponTerms {
    fn from(coupon: &Coupon) -> Self {
        CouponTerms {
            id: coupon.id.clone(),
            total: coupon.total,
            per_user: coupon.per_user,
            starts_at: coupon.starts_at,
            ends_at: coupon.ends_at,
            paused: coupon.paused,
            archived: coupon.archived,
            generation: coupon.generation,
            shares: coupon.shares.clone(),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TermsRecord {
    #[serde(rename = "_id")]
    id: String,
    total: i64,
    per_user: i64,
    starts_at: DateTime,
    ends_at: DateTime,
    paused: bool,
    archived: bool,
    generation: i64,
    #[serde(default)]
    partitions: Option<Vec<i32>>,
}

impl TermsRecord {
    fn projection() -> Document {
        doc! {
            "total": 1, "perUser": 1, "startsAt": 1, "endsAt": 1, "paused": 1, "archived": 1, "generation": 1,
            "partitions": 1,
        }
    }

    fn parse(self) -> Result<CouponTerms, String> {
        let total = u32::try_from(self.total).ok().filter(|total| *total <= MAX_TOTAL);
        Ok(CouponTerms {
            id: self.id.parse()?,
            total: total.ok_or("total")?,
            per_user: u8::try_from(self.per_user).map_err(|_| "perUser")?,
            starts_at: from_bson_time(self.starts_at),
            ends_at: from_bson_time(self.ends_at),
            paused: self.paused,
            archived: self.archived,
            generation: self.generation,
            shares: store::shares(self.partitions.as_deref())?,
        })
    }
}

impl CouponStore {
    /// The terms of one coupon.
    ///
    /// # Errors
    ///
    /// If MongoDB fails, or the record cannot be read.
    pub async fn terms(&self, id: &CouponId) -> Result<Option<CouponTerms>, Failure> {
        self.all_terms(std::slice::from_ref(id)).await?.remove(id).transpose()
    }

    /// The terms of those of some coupons that have a record, each on its own: of one that cannot be read, why.
    ///
    /// # Errors
    ///
    /// If MongoDB fails.
    pub(crate) async fn all_terms(
        &self,
        ids: &[CouponId],
    ) -> Result<HashMap<CouponId, Result<CouponTerms, Failure>>, Failure> {
        self.each("read the coupons' terms", ids, TermsRecord::projection(), |id, record| {
            let record = deserialize_from_slice::<TermsRecord>(record.as_bytes());
            record.map_err(|error| error.to_string()).and_then(TermsRecord::parse).map_err(|why| {
                Failure::Damaged { what: "the record of a coupon", why: format!("coupon {id}: {why}") }
            })
        })
        .await
    }
}
