//! Reads of the ledger coupon by coupon: all records, whatever its indexes are, and some of them again.

use std::collections::{HashMap, HashSet};

use futures::TryStreamExt;
use mongodb::bson::{Document, RawDocumentBuf, doc};
use mongodb::options::{FindOptions, Hint};
use mongodb::{Collection, Cursor};

use super::layout::Layout;
use super::record::{HeldRecord, ISSUED, IdRecord, MOVED, OccupantRecord, Record, Shape, read};
use super::{Decision, HeldUnit, Ledger, PAGE, indexes, operations_on, queries, readable};
use crate::Failure;
use crate::failure::Unreadable;
use crate::ids::{CouponId, IssuanceId, Unit};
use crate::mongo::OperationLimit;

/// Misplaced records that are told of.
const MISPLACED_MAX: i64 = 100;

/// Every issued record of one coupon, all of one user's in a row. It is one cursor, so it leaves none out, whatever a
/// record's fields are and also where the unique indexes are gone.
pub struct IssuedRecords(CouponCursor);

/// A cursor over records of one coupon, and the bound of its operations. It is `None` at the end.
pub(super) struct CouponCursor {
    cursor: Option<Cursor<RawDocumentBuf>>,
    operations: OperationLimit,
}

impl IssuedRecords {
    /// The next records; none is the end.
    ///
    /// # Errors
    ///
    /// If MongoDB fails.
    pub async fn next(&mut self) -> Result<Vec<Result<HeldUnit, Unreadable>>, Failure> {
        self.0.page::<HeldRecord>("read the issued records").await
    }
}

/// Every rejection of one coupon.
pub(crate) struct RejectedRecords(CouponCursor);

impl RejectedRecords {
    /// The next records; none is the end.
    pub(crate) async fn next(&mut self) -> Result<Vec<Result<Decision, Unreadable>>, Failure> {
        self.0.page::<Record>("read the rejections").await
    }
}

impl CouponCursor {
    pub(super) async fn open(
        operation: &'static str,
        records: Collection<RawDocumentBuf>,
        filter: Document,
        options: FindOptions,
    ) -> Result<Self, Failure> {
        let operations = operations_on(&filter);
        let opened = operations
            .run(operation, async move { records.find(filter).with_options(options).await })
            .await?;
        Ok(CouponCursor { cursor: Some(opened), operations })
    }

    pub(super) async fn page<S: Shape>(
        &mut self,
        operation: &'static str,
    ) -> Result<Vec<Result<S::Value, Unreadable>>, Failure>
    where
        S::Value: Send + 'static,
    {
        let Some(mut cursor) = self.cursor.take() else { return Ok(Vec::new()) };
        let read = self.operations.run(operation, async move {
            let mut records = Vec::with_capacity(PAGE as usize);
            while records.len() < PAGE as usize {
                if !cursor.advance().await? {
                    return Ok((records, None));
                }
                records.push(read::<S>(cursor.current()));
            }
            Ok((records, Some(cursor)))
        });
        let (records, cursor) = read.await?;
        self.cursor = cursor;
        Ok(records)
    }
}

impl Ledger {
    /// Begins to read every issued record of a coupon.
    ///
    /// # Errors
    ///
    /// If MongoDB fails.
    pub async fn issued_records(&self, coupon: &CouponId) -> Result<IssuedRecords, Failure> {
        let route = self.route(coupon).await?;
        let options = FindOptions::builder()
            .sort(queries::by_user())
            .projection(HeldRecord::projection(route.layout()))
            .batch_size(PAGE as u32)
            .allow_disk_use(true)
            .build();
        let (records, filter) = (self.records.clone_with_type(), queries::issued(&route, coupon));
        Ok(IssuedRecords(CouponCursor::open("read the issued records", records, filter, options).await?))
    }

    /// Begins to read every rejection of a coupon.
    pub(crate) async fn rejected_records(&self, coupon: &CouponId) -> Result<RejectedRecords, Failure> {
        let filter = queries::rejected_after(&self.route(coupon).await?, coupon, None);
        let (records, options) =
            (self.records.clone_with_type(), FindOptions::builder().batch_size(PAGE as u32).build());
        Ok(RejectedRecords(CouponCursor::open("read the rejections", records, filter, options).await?))
    }

    /// Some of a coupon's issued records that lie in other partitions than the coupon's, or name none: no index holds
    /// their units together with the others. None while older versions may still have written such records.
    pub(crate) async fn misplaced(
        &self,
        coupon: &CouponId,
    ) -> Result<Vec<Result<HeldUnit, Unreadable>>, Failure> {
        let layout = self.layout().await?;
        if layout == Layout::Mixed {
            return Ok(Vec::new());
        }
        let filter = queries::issued_elsewhere(coupon, self.shares_of(coupon).await?.partitions());
        let projection = HeldRecord::projection(layout);
        let options = FindOptions::builder().limit(MISPLACED_MAX).projection(projection).build();
        self.find::<HeldRecord>("look for records in other partitions", filter, options).await
    }

    /// Those of `ids` that are issued.
    ///
    /// # Errors
    ///
    /// If MongoDB fails.
    pub async fn issued_among(&self, ids: &[IssuanceId]) -> Result<HashSet<IssuanceId>, Failure> {
        self.among(ids, &[ISSUED]).await
    }

    /// Those of `ids` whose decision keeps a unit out of stock: issued, or moved away.
    pub(crate) async fn taken_among(&self, ids: &[IssuanceId]) -> Result<HashSet<IssuanceId>, Failure> {
        self.among(ids, &[ISSUED, MOVED]).await
    }

    async fn among(&self, ids: &[IssuanceId], outcomes: &[&str]) -> Result<HashSet<IssuanceId>, Failure> {
        let mut filter = queries::these(self.layout().await?, ids);
        filter.insert("outcome", doc! {"$in": outcomes.to_vec()});
        let found = self.find::<IdRecord>("look for records", filter, id_options()).await?;
        Ok(found.into_iter().filter_map(readable).collect())
    }

    /// Those of `ids` that are decided; their records need not be readable.
    pub(crate) async fn decided_among(&self, ids: &[IssuanceId]) -> Result<HashSet<IssuanceId>, Failure> {
        let filter = queries::these(self.layout().await?, ids);
        let found = self.find::<IdRecord>("look for decisions", filter, id_options()).await?;
        Ok(found.into_iter().filter_map(readable).collect())
    }

    /// The numbers of issued units of some coupons, with one query, if they have few units. A coupon that is missing
    /// has none.
    pub(crate) async fn issued_counts(
        &self,
        coupons: &[CouponId],
    ) -> Result<HashMap<CouponId, u64>, Failure> {
        let mut counts = HashMap::new();
        if let [coupon] = coupons {
            counts.insert(coupon.clone(), self.issued_count(coupon).await?);
            return Ok(counts);
        }
        let route = self.route_of_any(coupons).await?;
        let (layout, matching) = (route.layout(), queries::issued_of(&route, coupons));
        let operations = operations_on(&matching);
        let pipeline =
            [doc! {"$match": matching}, doc! {"$group": {"_id": "$couponId", "count": {"$sum": 1_i64}}}];
        let records = self.records.clone_with_type::<Document>();
        let counted = operations.run("count the issued units", async move {
            let hint = Hint::Keys(indexes::user_keys(layout));
            records.aggregate(pipeline).hint(hint).await?.try_collect::<Vec<_>>().await
        });
        let Ok(counted) = counted.await else {
            // They have too many units for one query: one after another, each in parts.
            for coupon in coupons {
                counts.insert(coupon.clone(), self.issued_count(coupon).await?);
            }
            return Ok(counts);
        };
        for line in counted {
            let read = || Some((line.get_str("_id").ok()?.parse().ok()?, line.get_i64("count").ok()?));
            let Some((coupon, count)) = read() else { continue };
            counts.insert(coupon, u64::try_from(count).unwrap_or(0));
        }
        Ok(counts)
    }

    /// The records that occupy some units of a coupon: that issued them, or moved them away.
    pub(crate) async fn occupants(
        &self,
        coupon: &CouponId,
        units: &[Unit],
    ) -> Result<Vec<Result<(IssuanceId, Unit), Unreadable>>, Failure> {
        let route = self.route(coupon).await?;
        let filter = queries::occupants_of(&route, coupon, units);
        let options = FindOptions::builder().projection(OccupantRecord::projection(route.layout())).build();
        self.find::<OccupantRecord>("read what occupies the units", filter, options).await
    }

    /// Every record that issued one of these units of a coupon.
    pub(crate) async fn holders_of(
        &self,
        coupon: &CouponId,
        units: &[Unit],
    ) -> Result<Vec<Result<HeldUnit, Unreadable>>, Failure> {
        let route = self.route(coupon).await?;
        let filter = queries::holders_of(&route, coupon, units);
        let options = FindOptions::builder().projection(HeldRecord::projection(route.layout())).build();
        self.find::<HeldRecord>("read who holds the units", filter, options).await
    }
}

/// The options of a read by id that asks for ids alone.
fn id_options() -> FindOptions {
    FindOptions::builder().projection(IdRecord::projection()).hint(Hint::Keys(queries::by_id())).build()
}
