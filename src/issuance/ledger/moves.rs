//! Units that were moved from one share of a coupon to another: records that commit a move under the very index that
//! issuing the unit would need.

use std::collections::{HashMap, HashSet};

use futures::TryStreamExt;
use mongodb::IndexModel;
use mongodb::bson::{Document, Uuid, doc};
use mongodb::options::{FindOptions, Hint, IndexOptions};
use serde::Deserialize;

use super::audit::CouponCursor;
use super::record::{MOVED, Shape, issuance, partition_of, unit_of};
use super::{Ledger, PAGE, operations_on, queries, readable};
use crate::Failure;
use crate::failure::Unreadable;
use crate::ids::{CouponId, IssuanceId, PartitionId, Shares, Unit};
use crate::mongo;

/// A unit that was moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MovedUnit {
    pub id: IssuanceId,
    /// As the share that it left knows it.
    pub unit: Unit,
    /// The partition of the share that it was moved to.
    pub to: PartitionId,
}

#[derive(Debug, Deserialize)]
pub(super) struct MovedRecord {
    #[serde(rename = "_id")]
    id: Uuid,
    unit: i64,
    to: i32,
}

impl Shape for MovedRecord {
    type Value = MovedUnit;
    const OF_ISSUED: bool = false;

    fn parse(self) -> Result<MovedUnit, String> {
        Ok(MovedUnit {
            id: issuance(self.id)?,
            unit: unit_of(self.unit).ok_or("its unit")?,
            to: partition_of(self.to).ok_or("its to")?,
        })
    }
}

/// Some of the moves of a coupon.
pub(crate) struct MovedRecords(CouponCursor);

impl MovedRecords {
    /// The next moves; none is the end.
    ///
    /// # Errors
    ///
    /// If MongoDB fails.
    pub(crate) async fn next(&mut self) -> Result<Vec<Result<MovedUnit, Unreadable>>, Failure> {
        self.0.page::<MovedRecord>("read which units were moved").await
    }
}

impl Ledger {
    /// Begins to read which units were moved away from this partition's share of a coupon.
    ///
    /// # Errors
    ///
    /// If MongoDB fails.
    pub(crate) async fn moved_away(&self, coupon: &CouponId) -> Result<MovedRecords, Failure> {
        let filter = queries::moved(&self.route(coupon).await?, coupon, None);
        self.moved(filter).await
    }

    /// Begins to read which units were moved to one share of a coupon, from the others.
    ///
    /// # Errors
    ///
    /// If MongoDB fails.
    pub(crate) async fn moved_to(
        &self,
        coupon: &CouponId,
        shares: &Shares,
        to: PartitionId,
    ) -> Result<MovedRecords, Failure> {
        let from = shares.partitions().iter().copied().filter(|from| *from != to);
        let filter = queries::moved(&self.layout().await?.route(from), coupon, Some(to));
        self.moved(filter).await
    }

    async fn moved(&self, filter: Document) -> Result<MovedRecords, Failure> {
        let projection = doc! {"unit": 1, "to": 1};
        let options = FindOptions::builder().projection(projection).batch_size(PAGE as u32).build();
        let records = self.records.clone_with_type();
        Ok(MovedRecords(CouponCursor::open("read which units were moved", records, filter, options).await?))
    }

    /// How many units were moved to each share of a coupon, by its partition; one that is missing got none. Damaged
    /// records are counted too.
    ///
    /// # Errors
    ///
    /// If MongoDB fails.
    pub(crate) async fn moved_counts(
        &self,
        coupon: &CouponId,
        shares: &Shares,
    ) -> Result<HashMap<PartitionId, u64>, Failure> {
        let route = self.layout().await?.route(shares.partitions().iter().copied());
        let matching = queries::moved(&route, coupon, None);
        let operations = operations_on(&matching);
        let pipeline = [doc! {"$match": matching}, doc! {"$group": {"_id": "$to", "count": {"$sum": 1_i64}}}];
        let records = self.records.clone_with_type::<Document>();
        let counted = operations.run("count the moved units", async move {
            let hint = Hint::Keys(queries::by_receiver());
            records.aggregate(pipeline).hint(hint).await?.try_collect::<Vec<_>>().await
        });
        let line = |line: &Document| {
            Some((partition_of(line.get_i32("_id").ok()?)?, u64::try_from(line.get_i64("count").ok()?).ok()?))
        };
        Ok(counted.await?.iter().filter_map(line).collect())
    }

    /// Those of some units that came to one share of a coupon by a move that the ledger has.
    ///
    /// # Errors
    ///
    /// If MongoDB fails.
    pub(crate) async fn arrived_among(
        &self,
        coupon: &CouponId,
        shares: &Shares,
        to: PartitionId,
        units: &[Unit],
    ) -> Result<HashSet<Unit>, Failure> {
        let before: Vec<Unit> = units.iter().filter_map(|unit| unit.before_move()).collect();
        if before.is_empty() {
            return Ok(HashSet::new());
        }
        let from = shares.partitions().iter().copied().filter(|from| *from != to);
        let filter = queries::moved_units(&self.layout().await?.route(from), coupon, to, &before);
        let options = FindOptions::builder().projection(doc! {"unit": 1, "to": 1}).build();
        let found = self.find::<MovedRecord>("read which units were moved", filter, options).await?;
        Ok(found.into_iter().filter_map(readable).filter_map(|moved| moved.unit.moved()).collect())
    }

    /// Those of some units that are not the share's in a partition: neither born there, nor moved there by a move that the
    /// ledger has. All, where the coupon has no share.
    ///
    /// # Errors
    ///
    /// If MongoDB fails.
    pub(crate) async fn foreign_among(
        &self,
        coupon: &CouponId,
        shares: &Shares,
        here: PartitionId,
        units: &[Unit],
    ) -> Result<HashSet<Unit>, Failure> {
        let Some(share) = shares.of(here) else { return Ok(units.iter().copied().collect()) };
        let not_born: HashSet<Unit> = units.iter().copied().filter(|unit| !share.bears(*unit)).collect();
        let moved: Vec<Unit> = not_born.iter().copied().collect();
        let arrived = self.arrived_among(coupon, shares, here, &moved).await?;
        Ok(not_born.difference(&arrived).copied().collect())
    }

    /// How many units were moved away from this partition's share of a coupon.
    ///
    /// # Errors
    ///
    /// If MongoDB fails.
    pub(crate) async fn moved_away_count(&self, coupon: &CouponId) -> Result<u64, Failure> {
        let filter = queries::moved(&self.route(coupon).await?, coupon, None);
        let (records, operations) = (self.records.clone(), operations_on(&filter));
        operations.run("count the moved units", async move { records.count_documents(filter).await }).await
    }

    /// Makes the index that reads of moves need, if it is missing. No coupon has several shares before.
    ///
    /// # Errors
    ///
    /// If MongoDB fails, or takes longer; it goes on, and a later call finds the index made.
    pub(crate) async fn ensure_indexed_moves(&self) -> Result<(), Failure> {
        let options = IndexOptions::builder()
            .name("moved_of_coupon".to_owned())
            .partial_filter_expression(doc! {"outcome": MOVED})
            .build();
        let index = IndexModel::builder().keys(queries::by_receiver()).options(options).build();
        let records = self.records.clone();
        mongo::run("make the index of moved units", async move { records.create_index(index).await })
            .await
            .map(drop)
    }
}
