//! Gives a deleted user's records a pseudonym: the only change to a decision. Its unit, its nth and its outcome stay,
//! so the accounts do; the references of redemptions, by which the shop could recognise the user, go.

use std::collections::HashMap;

use jiff::Timestamp;
use mongodb::bson::{Bson, Document, Uuid, doc};
use mongodb::options::{FindOptions, Hint};
use serde::Deserialize;

use super::record::{HeldRecord, ISSUED, IdRecord, REJECTED, Shape, issuance};
use super::{HeldUnit, Ledger, operations_on, queries, readable};
use crate::access::Caller;
use crate::failure::Unreadable;
use crate::ids::{CouponId, IssuanceId, UserId};
use crate::user::{Deletion, UserStore};
use crate::{Failure, mongo};

/// Users in one query.
const USERS_ASKED_MAX: usize = 1_000;

/// The coupon and the id of an issued record.
#[derive(Deserialize)]
struct CouponRecord {
    #[serde(rename = "_id")]
    id: Uuid,
    #[serde(rename = "couponId")]
    coupon: String,
}

impl Shape for CouponRecord {
    type Value = (CouponId, IssuanceId);
    const OF_ISSUED: bool = true;

    fn parse(self) -> Result<Self::Value, String> {
        Ok((self.coupon.parse()?, issuance(self.id)?))
    }
}

impl Ledger {
    /// The users whose records these are.
    pub fn users(&self) -> &UserStore {
        &self.users
    }

    /// Whether a user has any record, issued or rejected.
    pub(crate) async fn has_records_of(&self, user: &UserId) -> Result<bool, Failure> {
        for outcome in [ISSUED, REJECTED] {
            let (records, filter) =
                (self.records.clone_with_type::<Document>(), queries::of_user(user, outcome));
            let found = mongo::run("look for records of the user", async move {
                records.find_one(filter).projection(doc! {"_id": 1}).await
            });
            if found.await?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The issued records of a user that were accepted before a moment, and those of the user's pseudonym, by coupon.
    pub(crate) async fn issued_by_coupon(
        &self,
        deletion: &Deletion,
        before: Timestamp,
    ) -> Result<HashMap<CouponId, Vec<IssuanceId>>, Failure> {
        let mut by_coupon: HashMap<CouponId, Vec<IssuanceId>> = HashMap::new();
        // In this order: a record that is renamed meanwhile is seen twice rather than never.
        for name in [&deletion.user, &deletion.pseudonym] {
            let filter = queries::of_user_before(name, ISSUED, before);
            let options = FindOptions::builder().projection(doc! {"couponId": 1}).build();
            let found = self.find::<CouponRecord>("read what the user holds", filter, options).await?;
            // Redis knows nothing of a record without an issuance's id or a coupon's.
            for (coupon, id) in found.into_iter().filter_map(readable) {
                let ids = by_coupon.entry(coupon).or_default();
                if !ids.contains(&id) {
                    ids.push(id);
                }
            }
        }
        Ok(by_coupon)
    }

    /// The units of a coupon that some users hold.
    ///
    /// # Errors
    ///
    /// If MongoDB fails.
    pub async fn held_by_any(
        &self,
        coupon: &CouponId,
        users: &[&UserId],
    ) -> Result<Vec<Result<HeldUnit, Unreadable>>, Failure> {
        let (route, mut held) = (self.route(coupon).await?, Vec::new());
        for users in users.chunks(USERS_ASKED_MAX) {
            let options = FindOptions::builder().projection(HeldRecord::projection(route.layout())).build();
            let filter = queries::held_by_any(&route, coupon, users);
            held.extend(self.find::<HeldRecord>("read what the users hold", filter, options).await?);
        }
        Ok(held)
    }

    /// Renames the records of a user that were accepted before a moment, and returns their number. It may be repeated.
    ///
    /// # Errors
    ///
    /// If MongoDB fails; that leaves open how many are renamed.
    pub async fn rename(&self, deletion: &Deletion, before: Timestamp) -> Result<u64, Failure> {
        let pseudonym = deletion.pseudonym.as_str();
        let literal = |text: &str| doc! {"$literal": text};
        let by = |user: &UserId| literal(&Caller::User(user.clone()).to_string());
        let who = doc! {"$cond": [
            {"$eq": ["$$event.by", by(&deletion.user)]}, by(&deletion.pseudonym), "$$event.by",
        ]};
        let event = doc! {"what": "$$event.what", "at": "$$event.at", "by": who};
        let history = doc! {"$map": {"input": "$redemption.history", "as": "event", "in": event}};
        let redeemed: Vec<Document> = vec![
            doc! {"$set": {"userId": literal(pseudonym), "redemption.history": history}},
            doc! {"$unset": "redemption.reference"},
        ];
        let plain = doc! {"$set": {"userId": pseudonym}};
        let mut renamed = 0;
        for (outcome, is_redeemed) in [(ISSUED, true), (ISSUED, false), (REJECTED, false)] {
            let mut filter = queries::of_user_before(&deletion.user, outcome, before);
            filter.insert("redemption", if is_redeemed { doc! {"$exists": true}.into() } else { Bson::Null });
            let records = self.records.clone();
            let (redeemed, plain) = (redeemed.clone(), plain.clone());
            let updated = mongo::run("rename the records of a deleted user", async move {
                if is_redeemed {
                    records.update_many(filter, redeemed).await
                } else {
                    records.update_many(filter, plain).await
                }
            });
            renamed += updated.await?.modified_count;
        }
        Ok(renamed)
    }

    /// The first `limit` rejections of a coupon that were decided before a moment; fewer if there are no more. `None`
    /// for one whose id is no issuance's.
    pub(crate) async fn old_rejections(
        &self,
        coupon: &CouponId,
        before: Timestamp,
        limit: i64,
    ) -> Result<Vec<Option<IssuanceId>>, Failure> {
        let options = FindOptions::builder().limit(limit).projection(IdRecord::projection()).build();
        let filter = queries::rejected_before(&self.route(coupon).await?, coupon, before);
        let found = self.find::<IdRecord>("look for old rejections", filter, options).await?;
        Ok(found.into_iter().map(readable).collect())
    }

    /// Deletes those of `ids` that are rejections, and returns their number.
    pub(crate) async fn delete_rejections(&self, ids: &[IssuanceId]) -> Result<u64, Failure> {
        let mut filter = queries::these(self.layout().await?, ids);
        filter.insert("outcome", REJECTED);
        let (records, operations) = (self.records.clone(), operations_on(&filter));
        let deleted = operations.run("delete old rejections", async move {
            records.delete_many(filter).hint(Hint::Keys(queries::by_id())).await
        });
        Ok(deleted.await?.deleted_count)
    }
}
