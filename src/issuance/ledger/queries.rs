//! The filters and orders of the ledger's reads. An index must serve each.
//!
//! Each names the partitions by its [`Route`], but for those that read what a user holds of any coupon: a user's
//! records may lie in every partition, so mongos asks every shard, once each, which is cheaper than one seek for each
//! partition.

use super::*;

use layout::route_of_ids;

/// The records of some issuances.
pub fn these(layout: Layout, ids: &[IssuanceId]) -> Document {
    let mut filter = route_of_ids(layout, ids).filter();
    filter.insert("_id", doc! {"$in": ids.iter().copied().map(uuid).collect::<Vec<_>>()});
    filter
}

/// The record of one issuance.
pub fn one(layout: Layout, id: IssuanceId) -> Document {
    let mut filter = route_of_ids(layout, &[id]).filter();
    filter.insert("_id", uuid(id));
    filter
}

/// The index that serves reads by id. Named, because a filter that has more than `_id` has the planner try others.
pub(crate) fn by_id() -> Document {
    doc! {"_id": 1}
}

/// Every issued unit of a coupon.
pub fn issued(route: &Route, coupon: &CouponId) -> Document {
    let mut filter = of(route, coupon);
    filter.insert("outcome", ISSUED);
    filter
}

/// Every issued unit of some coupons.
pub fn issued_of(route: &Route, coupons: &[CouponId]) -> Document {
    let mut filter = route.filter();
    filter.insert("couponId", doc! {"$in": coupons.iter().map(CouponId::as_str).collect::<Vec<_>>()});
    filter.insert("outcome", ISSUED);
    filter
}

fn of(route: &Route, coupon: &CouponId) -> Document {
    let mut filter = route.filter();
    filter.insert("couponId", coupon.as_str());
    filter
}

fn issued_with(route: &Route, coupon: &CouponId, unit: impl Into<Bson>) -> Document {
    let mut filter = issued(route, coupon);
    filter.insert(route.layout().unit(), unit);
    filter
}

/// Those with a serial above one and up to another.
pub fn issued_between(route: &Route, coupon: &CouponId, above: u32, upto: u32) -> Document {
    issued_with(route, coupon, doc! {"$gt": i64::from(above), "$lte": i64::from(upto)})
}

/// Those that name no unit: it is no number above 0. With an index for those that have none at all.
pub fn issued_nameless(route: &Route, coupon: &CouponId) -> Document {
    match route.layout() {
        Layout::Mixed => issued_with(route, coupon, doc! {"$not": {"$gt": 0_i64}}),
        Layout::Partitioned => {
            let missing = issued_with(route, coupon, Bson::Null);
            let wrong = doc! {"$exists": true, "$ne": Bson::Null, "$not": {"$gt": 0_i64}};
            doc! {"$or": [missing, issued_with(route, coupon, wrong)]}
        }
    }
}

/// The order in which the highest unit comes first.
pub fn highest_first(layout: Layout) -> Document {
    doc! {"couponId": -1, layout.unit(): -1}
}

/// The issued units of a coupon with a serial above one.
pub fn units_after(route: &Route, coupon: &CouponId, after: u32) -> Document {
    issued_with(route, coupon, doc! {"$gt": i64::from(after)})
}

/// The order of units, in which [`units_after`] are exported.
pub fn by_unit(layout: Layout) -> Document {
    doc! {"couponId": 1, layout.unit(): 1}
}

/// The order in which all of one user's units of a coupon are next to each other.
pub fn by_user() -> Document {
    doc! {"couponId": 1, "userId": 1, "nth": 1}
}

/// The units of a coupon that a user holds.
pub fn held_by(route: &Route, coupon: &CouponId, user: &UserId) -> Document {
    let mut filter = issued(route, coupon);
    filter.insert("userId", user.as_str());
    filter
}

/// The units of a coupon that some users hold.
pub fn held_by_any(route: &Route, coupon: &CouponId, users: &[&UserId]) -> Document {
    let users: Vec<&str> = users.iter().map(|user| user.as_str()).collect();
    let mut filter = issued(route, coupon);
    filter.insert("userId", doc! {"$in": users});
    filter
}

/// The records that hold one of these units.
pub fn holders_of(route: &Route, coupon: &CouponId, units: &[Unit]) -> Document {
    let units: Vec<i64> = units.iter().map(|unit| unit.number().into()).collect();
    issued_with(route, coupon, doc! {"$in": units})
}

/// The records that occupy one of these units.
pub(super) fn occupants_of(route: &Route, coupon: &CouponId, units: &[Unit]) -> Document {
    let mut filter = holders_of(route, coupon, units);
    // The index of the mixed layout has issued records alone, and no unit is moved there.
    if route.layout() == Layout::Partitioned {
        filter.remove("outcome");
    }
    filter
}

/// The moves of a coupon away from some partitions, to any or to one.
pub(super) fn moved(route: &Route, coupon: &CouponId, to: Option<PartitionId>) -> Document {
    let mut filter = of(route, coupon);
    filter.insert("outcome", record::MOVED);
    if let Some(to) = to {
        filter.insert("to", layout::number(to));
    }
    filter
}

/// The moves of some units to a share. The index of occupied units serves it.
pub(super) fn moved_units(route: &Route, coupon: &CouponId, to: PartitionId, units: &[Unit]) -> Document {
    let mut filter = occupants_of(route, coupon, units);
    filter.extend(doc! {"outcome": record::MOVED, "to": layout::number(to)});
    filter
}

/// The order in which the moves of a coupon to one share are next to each other.
pub(super) fn by_receiver() -> Document {
    doc! {"p": 1, "couponId": 1, "to": 1}
}

/// The issued records of a coupon that lie in other partitions than the coupon's, or in none.
pub fn issued_elsewhere(coupon: &CouponId, partitions: &[PartitionId]) -> Document {
    let numbers: Vec<i32> = partitions.iter().copied().map(layout::number).collect();
    doc! {"p": {"$nin": numbers}, "couponId": coupon.as_str(), "outcome": ISSUED}
}

/// The units that a user holds, of any coupon.
pub fn issued_to(user: &UserId, after: Option<(Timestamp, IssuanceId)>) -> Document {
    let mut filter = match after {
        None => doc! {},
        Some((decided_at, id)) => mongo::after_newest_first("decidedAt", decided_at, uuid(id)),
    };
    filter.insert("userId", user.as_str());
    filter.insert("outcome", ISSUED);
    filter
}

/// The order of [`issued_to`].
pub fn newest_first() -> Document {
    doc! {"decidedAt": -1, "_id": -1}
}

/// The records of a user with an outcome, of any coupon.
pub fn of_user(user: &UserId, outcome: &str) -> Document {
    doc! {"userId": user.as_str(), "outcome": outcome}
}

/// Those that were accepted before a moment.
pub(super) fn of_user_before(user: &UserId, outcome: &str, moment: Timestamp) -> Document {
    let mut filter = of_user(user, outcome);
    filter.insert("acceptedAt", doc! {"$lt": to_bson_time(moment)});
    filter
}

/// The rejections of a coupon that follow one, by id.
pub fn rejected_after(route: &Route, coupon: &CouponId, after: Option<IssuanceId>) -> Document {
    let follows = after.map_or_else(|| doc! {"$type": "binData"}, |id| doc! {"$gt": uuid(id)});
    let mut filter = of(route, coupon);
    filter.extend(doc! {"outcome": REJECTED, "_id": follows});
    filter
}

/// The rejections of a coupon that were decided before a moment.
pub fn rejected_before(route: &Route, coupon: &CouponId, before: Timestamp) -> Document {
    let mut filter = of(route, coupon);
    filter.extend(doc! {"outcome": REJECTED, "decidedAt": {"$lt": to_bson_time(before)}});
    filter
}

/// Records with an outcome that name no partition: those of older versions.
pub(super) fn without_partition(outcome: &str) -> Document {
    doc! {"p": Bson::Null, "outcome": outcome}
}
