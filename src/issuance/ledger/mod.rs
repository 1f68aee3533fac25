//! The ledger: MongoDB's `user_coupons`, the record of truth. It has one document for each issuance, under the
//! issuance's id, written once: the first insert decides, and every other worker reads the winner.
//!
//! Unique indexes ([`indexes`]), and no checks of the program, make sure that no unit is issued twice and that no
//! user holds more than the limit.
//!
//! Where several documents are read at once, one that this version cannot read is a value among the others
//! ([`Unreadable`]), and no error. Its issuance is decided, its unit taken and its user's limit used; only its
//! content is unknown.

mod audit;
pub mod follow;
pub mod indexes;
mod layout;
pub mod migration;
#[cfg(test)]
mod mongos_answers;
mod moves;
pub(crate) mod order;
pub mod queries;
mod record;
mod renaming;

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use crate::mongo::{Database, to_bson_time};
use jiff::Timestamp;
use mongodb::Collection;
use mongodb::bson::{Bson, Document, RawDocumentBuf, doc};
use mongodb::error::{ErrorKind, InsertManyError};
use mongodb::options::{FindOptions, Hint, ReadConcern};

use super::{Decision, IssuanceId};
use crate::coupon::{CouponStore, MAX_TOTAL, Placements};
use crate::failure::Unreadable;
use crate::ids::{CouponId, PartitionId, Shares, Unit, UserId};
use crate::mongo::{LINEARIZABLE_MAX, Unwritten};
use crate::runtime::damage::damaged;
use crate::user::UserStore;
use crate::{Failure, metrics, mongo};
pub use audit::IssuedRecords;
pub(crate) use layout::{BY_PARTITION, LayoutReader, operations_on};
pub use layout::{Layout, Route};
pub(crate) use moves::MovedUnit;
use record::{HeldRecord, IdRecord, REJECTED, Record, Shape, read};
pub(crate) use record::{ISSUED, decision_of, fields, uuid};

/// The name of the ledger's collection.
pub(crate) const COLLECTION: &str = "user_coupons";

/// Writes and reads the ledger. Cheap to clone.
#[derive(Clone)]
pub struct Ledger {
    records: Collection<Record>,
    layout: LayoutReader,
    users: UserStore,
    placements: Placements,
    /// Where coupons are read: in this partition alone, or in all that they lie in.
    within: Option<PartitionId>,
}

/// The result for one document of an insert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inserted {
    /// This decision stands.
    Decided,
    /// A unique index holds one of its keys: its own id (decided before), its serial, or the user's nth.
    Conflict,
    /// MongoDB refuses this document for good.
    Refused(String),
    /// It is unknown whether it was written, or whether another attempt will be.
    Unknown(String),
}

/// The holder of a unit, and which of the user's units it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldUnit {
    pub id: IssuanceId,
    pub user: UserId,
    pub unit: Unit,
    pub nth: u8,
}

impl Ledger {
    /// The ledger of this database.
    pub fn new(database: &Database) -> Self {
        Ledger {
            records: database.collection(COLLECTION),
            layout: LayoutReader::new(database),
            users: UserStore::new(database),
            placements: Placements::new(CouponStore::new(database)),
            within: None,
        }
    }

    /// The same ledger, of which a coupon's records are read wherever they lie.
    pub(crate) fn of_all_shares(&self) -> Self {
        Ledger { within: None, ..self.clone() }
    }

    /// Which fields the records have.
    ///
    /// # Errors
    ///
    /// If MongoDB fails.
    pub async fn layout(&self) -> Result<Layout, Failure> {
        self.layout.get().await
    }

    /// The same ledger, of which only the records in one partition are read where a coupon's are: those of its share of the
    /// coupon. What is read by ids is read wherever it lies.
    pub(crate) fn within(&self, partition: PartitionId) -> Self {
        Ledger { within: Some(partition), ..self.clone() }
    }

    /// The shares of a coupon's units, fixed at its creation. A coupon without a record counts as one from before there
    /// were several partitions.
    ///
    /// # Errors
    ///
    /// If MongoDB fails, or the coupon's record does not say.
    pub async fn shares_of(&self, coupon: &CouponId) -> Result<Shares, Failure> {
        Ok(self.placements.of(coupon).await?.unwrap_or_else(|| Shares::one(PartitionId::ONE)))
    }

    /// The route to the records of some coupons.
    async fn route_of_any(&self, coupons: &[CouponId]) -> Result<Route, Failure> {
        let layout = self.layout().await?;
        if let Some(partition) = self.within {
            return Ok(layout.route([partition]));
        }
        let mut partitions = Vec::with_capacity(coupons.len());
        for shares in self.placements.of_all(coupons).await? {
            partitions
                .extend_from_slice(shares?.unwrap_or_else(|| Shares::one(PartitionId::ONE)).partitions());
        }
        Ok(layout.route(partitions))
    }

    /// Those of these coupons whose records name no share in this partition. A coupon without a record, or whose record
    /// does not say, is none of them.
    ///
    /// # Errors
    ///
    /// If MongoDB fails.
    pub(crate) async fn not_in(
        &self,
        partition: PartitionId,
        coupons: &[CouponId],
    ) -> Result<HashSet<CouponId>, Failure> {
        let placed = self.placements.of_all(coupons).await?;
        let is_elsewhere = |placed: &Result<Option<Shares>, _>| matches!(placed, Ok(Some(shares)) if shares.of(partition).is_none());
        let elsewhere = coupons.iter().zip(placed).filter(|(_, placed)| is_elsewhere(placed));
        Ok(elsewhere.map(|(coupon, _)| coupon.clone()).collect())
    }

    /// The route to a coupon's records.
    pub(crate) async fn route(&self, coupon: &CouponId) -> Result<Route, Failure> {
        self.route_of_any(std::slice::from_ref(coupon)).await
    }

    /// Inserts decisions.
    ///
    /// # Errors
    ///
    /// If MongoDB fails. Then nothing is known about any of them: what the driver does not name as failed counts as
    /// written only where it reports a bulk insert without a write-concern error.
    pub async fn insert(&self, decisions: &[Decision]) -> Result<Vec<Inserted>, Failure> {
        let places = order::places(decisions);
        let documents: Vec<Record> = places.iter().map(|place| Record::from(&decisions[*place])).collect();
        let (records, layout) = (self.records.clone(), self.layout().await?);
        let ids: Vec<IssuanceId> = decisions.iter().map(|decision| decision.id).collect();
        let operations = operations_on(&layout::route_of_ids(layout, &ids).filter());
        let inserted = operations.run("write the ledger", async move {
            let mut outcomes = vec![Inserted::Decided; places.len()];
            match records.insert_many(documents).ordered(false).await {
                Ok(_) => Ok(outcomes),
                Err(error) => {
                    let ErrorKind::InsertMany(failed) = &*error.kind else { return Err(error) };
                    let Some(unwritten) = unwritten(failed) else { return Err(error) };
                    for (index, inserted) in unwritten {
                        outcomes[places[index]] = inserted;
                    }
                    Ok(outcomes)
                }
            }
        });
        let started = Instant::now();
        let inserted = inserted.await;
        metrics::LEDGER_INSERT_SECONDS.record(started.elapsed());
        inserted
    }

    /// The decisions about `ids` that a majority knows. An id that is missing is not decided.
    ///
    /// # Errors
    ///
    /// If MongoDB fails.
    pub async fn decisions(
        &self,
        ids: &[IssuanceId],
    ) -> Result<HashMap<IssuanceId, Result<Decision, Unreadable>>, Failure> {
        let filter = queries::these(self.layout().await?, ids);
        let options = FindOptions::builder().hint(Hint::Keys(queries::by_id())).build();
        let found = self.find::<Record>("read the ledger", filter, options).await?;
        let id = |one: &Result<Decision, Unreadable>| match one {
            Ok(decision) => Some(decision.id),
            Err(unreadable) => unreadable.id,
        };
        Ok(found.into_iter().filter_map(|one| Some((id(&one)?, one))).collect())
    }

    /// The decision about one issuance, or `None`: a linearizable read, so that a miss is certain.
    ///
    /// # Errors
    ///
    /// If MongoDB fails.
    pub(crate) async fn decision_linearizable(
        &self,
        id: IssuanceId,
    ) -> Result<Option<Result<Decision, Unreadable>>, Failure> {
        let (records, filter) =
            (self.records.clone_with_type::<RawDocumentBuf>(), queries::one(self.layout().await?, id));
        let operations = operations_on(&filter);
        let found = operations.run("read the ledger for certain", async move {
            records
                .find_one(filter)
                .hint(Hint::Keys(queries::by_id()))
                .read_concern(ReadConcern::linearizable())
                .max_time(LINEARIZABLE_MAX)
                .await
        });
        Ok(found.await?.map(|document| read::<Record>(&document)))
    }

    /// The units of a coupon that a user holds.
    ///
    /// # Errors
    ///
    /// If MongoDB fails.
    pub async fn held_by(
        &self,
        coupon: &CouponId,
        user: &UserId,
    ) -> Result<Vec<Result<HeldUnit, Unreadable>>, Failure> {
        let route = self.route(coupon).await?;
        let options = FindOptions::builder().projection(HeldRecord::projection(route.layout())).build();
        let filter = queries::held_by(&route, coupon, user);
        self.find::<HeldRecord>("read what the user holds", filter, options).await
    }

    /// The issuance that holds a unit.
    ///
    /// # Errors
    ///
    /// If MongoDB fails.
    pub async fn holder_of(
        &self,
        coupon: &CouponId,
        unit: Unit,
    ) -> Result<Option<Result<HeldUnit, Unreadable>>, Failure> {
        Ok(self.holders_of(coupon, &[unit]).await?.pop())
    }

    /// Whether a unit is lost to an issuance: another one holds it, or it was moved away.
    pub(crate) async fn is_lost(
        &self,
        coupon: &CouponId,
        unit: Unit,
        id: IssuanceId,
    ) -> Result<bool, Failure> {
        let occupants = self.occupants(coupon, &[unit]).await?;
        Ok(occupants.iter().any(|one| match one {
            Ok((other, _)) => *other != id,
            Err(unreadable) => unreadable.id != Some(id),
        }))
    }

    /// The number of issued units of a coupon. It is counted in parts, so that each ends well within the bound of an
    /// operation; an insert meanwhile may be counted or not. A record that names no unit holds one all the same.
    ///
    /// # Errors
    ///
    /// If MongoDB fails.
    pub async fn issued_count(&self, coupon: &CouponId) -> Result<u64, Failure> {
        self.issued_count_within(coupon, mongo::OPERATION_TIMEOUT).await
    }

    /// The same; MongoDB gives up a part that takes longer than `part_max`.
    pub(crate) async fn issued_count_within(
        &self,
        coupon: &CouponId,
        part_max: Duration,
    ) -> Result<u64, Failure> {
        const OPERATION: &str = "count the issued units";
        let route = self.route(coupon).await?;
        let layout = route.layout();
        let filter = queries::issued_between(&route, coupon, 0, MAX_TOTAL);
        let records = self.records.clone_with_type::<RawDocumentBuf>();
        let operations = operations_on(&filter);
        let last = operations.run(OPERATION, async move {
            let highest = records.find_one(filter).sort(queries::highest_first(layout));
            highest.projection(HeldRecord::projection(layout)).await
        });
        let last = match last.await?.map(|document| read::<HeldRecord>(&document)) {
            Some(Ok(held)) => held.unit.number(),
            // Higher than any coupon's total: a few empty parts are counted.
            Some(Err(unreadable)) => unreadable.unit.map_or(MAX_TOTAL, Unit::number),
            None => 0,
        };
        let mut count = 0;
        for filter in
            [queries::issued_nameless(&route, coupon), queries::units_after(&route, coupon, MAX_TOTAL)]
        {
            let records = self.records.clone();
            let counted = async move { records.count_documents(filter).await };
            count += operations.run(OPERATION, counted).await?;
        }
        let mut above = 0;
        while above < last {
            let upto = above.saturating_add(COUNTED_AT_ONCE).min(last);
            let (records, filter) =
                (self.records.clone(), queries::issued_between(&route, coupon, above, upto));
            let counted = async move { records.count_documents(filter).max_time(part_max).await };
            count += operations.run(OPERATION, counted).await?;
            above = upto;
        }
        Ok(count)
    }

    /// The ids of a coupon's rejected issuances that follow `after`; the rest of their records need not be readable.
    /// An empty page is the end.
    ///
    /// # Errors
    ///
    /// If MongoDB fails.
    pub async fn rejected_page(
        &self,
        coupon: &CouponId,
        after: Option<IssuanceId>,
    ) -> Result<Vec<IssuanceId>, Failure> {
        let sorted = FindOptions::builder().sort(doc! {"_id": 1}).limit(PAGE);
        let options = sorted.projection(IdRecord::projection()).build();
        let filter = queries::rejected_after(&self.route(coupon).await?, coupon, after);
        let found = self.find::<IdRecord>("read the coupon's rejections", filter, options).await?;
        Ok(found.into_iter().filter_map(readable).collect())
    }

    /// Every document that fits the filter, in a shape, or as unreadable.
    async fn find<S: Shape>(
        &self,
        operation: &'static str,
        filter: Document,
        options: FindOptions,
    ) -> Result<Vec<Result<S::Value, Unreadable>>, Failure> {
        let found: Vec<RawDocumentBuf> =
            operations_on(&filter).find(operation, &self.records, filter, options).await?;
        Ok(found.iter().map(|document| read::<S>(document)).collect())
    }
}

/// The documents of an insert that were not written, by their places in it; `None` if nothing is known of the others
/// either: the majority did not confirm them.
fn unwritten(failed: &InsertManyError) -> Option<Vec<(usize, Inserted)>> {
    if failed.write_concern_error.is_some() {
        return None;
    }
    let errors = failed.write_errors.as_deref().unwrap_or_default().iter();
    let unwritten = errors.map(|failed| {
        let why = format!("{} ({})", failed.message, failed.code);
        let inserted = match Unwritten::by(failed.code) {
            Unwritten::Conflict => Inserted::Conflict,
            Unwritten::Refused => Inserted::Refused(why),
            Unwritten::Unknown => Inserted::Unknown(why),
        };
        (failed.index, inserted)
    });
    Some(unwritten.collect())
}

/// The issuance that holds a unit, if its record says so.
pub(crate) fn id_of(held: &Result<HeldUnit, Unreadable>) -> Option<IssuanceId> {
    held.as_ref().map_or_else(|unreadable| unreadable.id, |held| Some(held.id))
}

/// A record that can be read; one that cannot is logged and left out, so that a list still has the others.
pub(crate) fn readable<T>(one: Result<T, Unreadable>) -> Option<T> {
    one.inspect_err(|unreadable| {
        damaged!(unreadable.record; error = %unreadable, "a record is left out");
    })
    .ok()
}

/// What can be read of a page, and what cannot.
pub(crate) fn parted<T>(page: Vec<Result<T, Unreadable>>) -> (Vec<T>, Vec<Unreadable>) {
    let (mut read, mut unreadable) = (Vec::with_capacity(page.len()), Vec::new());
    for one in page {
        match one {
            Ok(one) => read.push(one),
            Err(one) => unreadable.push(one),
        }
    }
    (read, unreadable)
}

/// Serials in one part of a count: one to two seconds of MongoDB's time.
const COUNTED_AT_ONCE: u32 = 1_000_000;
/// Documents in one page.
const PAGE: i64 = 5_000;
