//! Coupons in MongoDB: the collection `coupons`, by id.

use std::collections::HashMap;

use futures::TryStreamExt;
use jiff::{SignedDuration, Timestamp};
use mongodb::bson::{DateTime, Document, RawDocument, RawDocumentBuf, doc};
use mongodb::options::{FindOptions, ReadConcern, ReturnDocument};
use mongodb::{Collection, Cursor, Database};
use serde::{Deserialize, Serialize};

use super::restock::{self, Restock, RestockAmount};
use super::{Coupon, CouponId, CouponLimit, CouponTimeZone, Discount, Expiry, MAX_TOTAL, Validity};
use crate::Failure;
use crate::ids::{PartitionId, Shares};
use crate::mongo::{self, LINEARIZABLE_MAX, ListPage, NewestPlace, from_bson_time, to_bson_time};

/// Coupons in one answer of [`ChangedCoupons::next`].
const CHANGED_MAX: usize = 200;

/// Ids in one question.
const ASKED_MAX: usize = 1_000;

/// Coupons in one answer of [`CouponStore::ended_before`].
const ENDED_MAX: i64 = 100_000;

/// Coupons in one answer of [`CouponStore::opening_within`].
const OPENINGS_MAX: i64 = 10_000;

/// The field that keeps how many units of a coupon that is over were issued.
const FINAL_COUNT: &str = "finalCount";

/// Keeps coupons.
#[derive(Clone)]
pub struct CouponStore {
    pub(super) coupons: Collection<CouponDocument>,
}

/// The coupons that operators changed since a moment, the oldest change first, a page at a time.
pub struct ChangedCoupons {
    /// MongoDB's time when this was begun.
    pub began_at: Timestamp,
    cursor: Option<Cursor<Document>>,
}

/// From where on changes are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangesSince {
    Moment(Timestamp),
    /// This long before MongoDB's present.
    Ago(SignedDuration),
}

/// One page of [`ChangedCoupons`].
pub struct ChangedPage {
    /// A damaged record is left out.
    pub coupons: Vec<Coupon>,
    /// When the last of them was changed, by MongoDB's clock.
    pub changed_at: Option<Timestamp>,
}

impl ChangedCoupons {
    /// The coupons that follow; `None` is the end.
    ///
    /// # Errors
    ///
    /// If MongoDB fails.
    pub async fn next(&mut self) -> Result<Option<ChangedPage>, Failure> {
        let Some(mut cursor) = self.cursor.take() else { return Ok(None) };
        let read = mongo::run("read the changed coupons", async move {
            let mut records = Vec::new();
            while records.len() < CHANGED_MAX {
                match cursor.try_next().await? {
                    Some(record) => records.push(record),
                    None => return Ok((records, None)),
                }
            }
            Ok((records, Some(cursor)))
        });
        let (records, cursor) = read.await?;
        self.cursor = cursor;
        let changed_at = records.last().and_then(|record| record.get_datetime("changedAt").ok());
        let changed_at = changed_at.copied().map(from_bson_time);
        Ok(Some(ChangedPage { coupons: mongo::readable("a coupon", records), changed_at }))
    }
}

/// As much of a coupon as says what its opening brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CouponOpening {
    pub starts_at: Timestamp,
    /// Its units.
    pub total: u64,
}

/// The outcome of creating a coupon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CreateOutcome {
    New,
    /// The id is taken; nothing was changed.
    Exists,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CouponDocument {
    #[serde(rename = "_id")]
    id: String,
    name: String,
    total: i64,
    per_user: i32,
    starts_at: DateTime,
    ends_at: DateTime,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    discount: Option<DiscountRecord>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    min_order_amount: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    valid_until: Option<DateTime>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    valid_for: Option<String>,
    /// Missing: UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    time_zone: Option<String>,
    paused: bool,
    archived: bool,
    generation: i64,
    created_at: DateTime,
    changed_at: DateTime,
    /// The partition of each share of its units. Missing: `[0]`, as of coupons that were made when there was no other partition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    partitions: Option<Vec<i32>>,
}

/// As much of a record as says where its units lie.
#[derive(Debug, Deserialize)]
struct PlacementRecord {
    #[serde(default)]
    partitions: Option<Vec<i32>>,
}

impl PlacementRecord {
    fn projection() -> Document {
        doc! {"partitions": 1}
    }

    fn parse(record: &RawDocument) -> Result<Shares, String> {
        let PlacementRecord { partitions } =
            mongodb::bson::deserialize_from_slice(record.as_bytes()).map_err(|error| error.to_string())?;
        shares(partitions.as_deref())
    }
}

/// The shares that a record names.
pub(super) fn shares(numbers: Option<&[i32]>) -> Result<Shares, String> {
    let Some(numbers) = numbers else { return Ok(Shares::one(PartitionId::ONE)) };
    let partition = |number: &i32| PartitionId::new(u16::try_from(*number).ok()?);
    let partitions: Option<Vec<_>> = numbers.iter().map(partition).collect();
    partitions.and_then(Shares::new).ok_or("partitions".into())
}

/// What an operator may change of a coupon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CouponChange {
    Pause,
    Resume,
    /// For good.
    Archive,
    Restock(Restock),
    Edit {
        name: Option<String>,
        starts_at: Option<Timestamp>,
        ends_at: Option<Timestamp>,
    },
}

/// The outcome of a change.
#[derive(Debug, Clone, PartialEq)]
pub enum CouponChangeOutcome {
    /// The coupon as it is now.
    Now(Coupon),
    /// The change was made before; nothing was changed.
    Before(Coupon),
    /// The key of a restock was that of another.
    KeyReused,
    NotFound,
    /// The coupon is archived, and stays so.
    Archived,
    /// The coupon as it is: it has changed meanwhile, or would have more units than [`MAX_TOTAL`] or fewer than it has.
    Refused(Coupon),
}

/// As much of a record as limits are.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct LimitRecord {
    total: i64,
    per_user: i32,
}

impl LimitRecord {
    fn projection() -> Document {
        doc! {"total": 1, "perUser": 1}
    }

    fn parse(record: &RawDocument) -> Result<CouponLimit, String> {
        let LimitRecord { total, per_user } =
            mongodb::bson::deserialize_from_slice(record.as_bytes()).map_err(|error| error.to_string())?;
        Ok(CouponLimit {
            total: u32::try_from(total).map_err(|_| "its total")?,
            per_user: u8::try_from(per_user).map_err(|_| "its perUser")?,
        })
    }
}

/// As much of a record as says how long units are valid.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ExpiryRecord {
    #[serde(default)]
    valid_until: Option<DateTime>,
    #[serde(default)]
    valid_for: Option<String>,
    #[serde(default)]
    time_zone: Option<String>,
}

impl ExpiryRecord {
    fn projection() -> Document {
        doc! {"validUntil": 1, "validFor": 1, "timeZone": 1}
    }

    fn parse(record: &RawDocument) -> Result<Expiry, String> {
        let ExpiryRecord { valid_until, valid_for, time_zone } =
            mongodb::bson::deserialize_from_slice(record.as_bytes()).map_err(|error| error.to_string())?;
        Ok(Expiry { validity: validity(valid_until, valid_for)?, zone: zone(time_zone)? })
    }
}

fn validity(valid_until: Option<DateTime>, valid_for: Option<String>) -> Result<Validity, String> {
    match (valid_until, valid_for) {
        (None, None) => Ok(Validity::Unlimited),
        (Some(moment), None) => Ok(Validity::Until(from_bson_time(moment))),
        (None, Some(text)) => Ok(Validity::For(text.parse()?)),
        (Some(_), Some(_)) => Err("both validUntil and validFor".into()),
    }
}

fn zone(name: Option<String>) -> Result<CouponTimeZone, String> {
    name.map_or(Ok(CouponTimeZone::UTC), |name| name.parse())
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
enum DiscountRecord {
    Fixed { amount: i64, currency: String },
    Percent { percent: i32, max_amount: Option<i64>, currency: String },
}

impl CouponStore {
    /// The coupons of this database.
    pub fn new(database: &Database) -> Self {
        CouponStore { coupons: database.collection("coupons") }
    }

    /// The database that they are in.
    pub(crate) fn database(&self) -> Database {
        self.coupons.client().database(&self.coupons.namespace().db)
    }

    /// Writes a new coupon.
    ///
    /// # Errors
    ///
    /// If MongoDB fails.
    pub async fn insert(&self, coupon: &Coupon) -> Result<CreateOutcome, Failure> {
        let (coupons, record) = (self.coupons.clone(), CouponDocument::from(coupon));
        let result = mongo::run("create the coupon", async move {
            match coupons.insert_one(record).await {
                Ok(_) => Ok(CreateOutcome::New),
                Err(error) if mongo::is_duplicate_key(&error) => Ok(CreateOutcome::Exists),
                Err(error) => Err(error),
            }
        });
        result.await
    }

    /// Reads one coupon.
    ///
    /// # Errors
    ///
    /// If MongoDB fails, or the record cannot be read.
    pub async fn get(&self, id: &CouponId) -> Result<Option<Coupon>, Failure> {
        let (coupons, id) = (self.coupons.clone_with_type::<Document>(), id.as_str().to_owned());
        let found = mongo::run("read the coupon", async move { coupons.find_one(doc! {"_id": id}).await });
        found.await?.map(Coupon::try_from).transpose()
    }

    /// How long units of a coupon are valid; `None` if there is no such coupon. Nothing else of its record is
    /// read.
    ///
    /// # Errors
    ///
    /// If MongoDB fails, or the record cannot be read.
    pub async fn expiry(&self, id: &CouponId) -> Result<Option<Expiry>, Failure> {
        let coupons = self.coupons.clone_with_type::<RawDocumentBuf>();
        let filter = doc! {"_id": id.as_str()};
        let found = mongo::run("read how long the coupon is valid", async move {
            coupons.find_one(filter).projection(ExpiryRecord::projection()).await
        });
        let read = |record: RawDocumentBuf| {
            ExpiryRecord::parse(&record).map_err(|why| Failure::Damaged {
                what: "how long units of the coupon are valid",
                why: format!("coupon {id}: {why}"),
            })
        };
        found.await?.map(read).transpose()
    }

    /// The limits of these coupons, by id; or why a record does not say. Nothing else of the records is read.
    ///
    /// # Errors
    ///
    /// If MongoDB fails.
    pub async fn limits(
        &self,
        ids: &[CouponId],
    ) -> Result<HashMap<CouponId, Result<CouponLimit, String>>, Failure> {
        self.each("read the limits of coupons", ids, LimitRecord::projection(), |_, record| {
            LimitRecord::parse(record)
        })
        .await
    }

    /// Where the units of these coupons lie, by id; or why a record does not say. Nothing else of the records is read.
    ///
    /// # Errors
    ///
    /// If MongoDB fails.
    pub(crate) async fn placements(
        &self,
        ids: &[CouponId],
    ) -> Result<HashMap<CouponId, Result<Shares, String>>, Failure> {
        self.each("read where coupons lie", ids, PlacementRecord::projection(), |_, record| {
            PlacementRecord::parse(record)
        })
        .await
    }

    /// Reads the limit of one coupon: a linearizable read, so that `None` is certain.
    ///
    /// # Errors
    ///
    /// If MongoDB fails, or has no majority.
    pub(crate) async fn limit_linearizable(
        &self,
        id: &CouponId,
    ) -> Result<Option<Result<CouponLimit, String>>, Failure> {
        let (coupons, filter) = (self.coupons.clone_with_type::<RawDocumentBuf>(), doc! {"_id": id.as_str()});
        let found = mongo::run("read the coupon linearizably", async move {
            coupons
                .find_one(filter)
                .projection(LimitRecord::projection())
                .read_concern(ReadConcern::linearizable())
                .max_time(LINEARIZABLE_MAX)
                .await
        });
        Ok(found.await?.map(|record| LimitRecord::parse(&record)))
    }

    /// What `parse` makes of the record of each of these coupons that has one, by id.
    pub(super) async fn each<T>(
        &self,
        operation: &'static str,
        ids: &[CouponId],
        projection: Document,
        parse: impl Fn(&CouponId, &RawDocument) -> T,
    ) -> Result<HashMap<CouponId, T>, Failure> {
        let mut all = HashMap::with_capacity(ids.len());
        for ids in ids.chunks(ASKED_MAX) {
            let filter = doc! {"_id": {"$in": ids.iter().map(CouponId::as_str).collect::<Vec<_>>()}};
            let wanted = FindOptions::builder().projection(projection.clone()).build();
            let found = mongo::find::<RawDocumentBuf, _>(operation, &self.coupons, filter, wanted);
            all.extend(found.await?.iter().filter_map(|record| {
                let id = record.get_str("_id").ok()?.parse().ok()?;
                let parsed = parse(&id, record);
                Some((id, parsed))
            }));
        }
        Ok(all)
    }

    /// The records of these coupons. One that is missing has none; one that is damaged is a failure of its
    /// own.
    ///
    /// # Errors
    ///
    /// If MongoDB fails.
    pub(crate) async fn records_of(
        &self,
        ids: &[CouponId],
    ) -> Result<HashMap<CouponId, Result<Coupon, Failure>>, Failure> {
        self.each("read the coupons", ids, Document::new(), |_, record| {
            Coupon::try_from(Document::try_from(record).unwrap_or_default())
        })
        .await
    }

    /// A page of at most `limit` coupons, newest first, from after the one that a cursor names (its creation
    /// time and id). A damaged record is left out.
    ///
    /// # Errors
    ///
    /// If MongoDB fails.
    pub async fn list(
        &self,
        after: Option<NewestPlace>,
        limit: usize,
    ) -> Result<ListPage<Coupon, NewestPlace>, Failure> {
        let coupons = self.coupons.clone_with_type();
        mongo::newest_first_page("list the coupons", "a coupon", &coupons, doc! {}, after, limit).await
    }

    /// Changes a coupon, if its record is of this generation still (`None`: of any).
    ///
    /// # Errors
    ///
    /// If MongoDB fails, or the changed record cannot be read.
    pub async fn change(
        &self,
        id: &CouponId,
        change: &CouponChange,
        generation: Option<i64>,
    ) -> Result<CouponChangeOutcome, Failure> {
        let mut filter = doc! {"_id": id.as_str(), "archived": false};
        if let Some(generation) = generation {
            filter.insert("generation", generation);
        }
        let mut set = doc! {};
        let mut increase = doc! {"generation": 1_i64};
        let mut push = None;
        match change {
            CouponChange::Pause => drop(set.insert("paused", true)),
            CouponChange::Resume => drop(set.insert("paused", false)),
            CouponChange::Archive => drop(set.insert("archived", true)),
            CouponChange::Restock(restock) => {
                let most = match restock.units {
                    RestockAmount::Add(add) => MAX_TOTAL.saturating_sub(add),
                    RestockAmount::Total(total) => total,
                };
                filter.insert("total", doc! {"$lte": i64::from(most)});
                match restock.units {
                    RestockAmount::Add(add) => increase.insert("total", i64::from(add)),
                    RestockAmount::Total(total) => set.insert("total", i64::from(total)),
                };
                filter.extend(restock.is_new());
                push = restock.remembering();
            }
            CouponChange::Edit { name, starts_at, ends_at } => {
                set.extend(name.as_ref().map(|name| ("name".to_owned(), name.into())));
                set.extend(starts_at.map(|moment| ("startsAt".to_owned(), to_bson_time(moment).into())));
                set.extend(ends_at.map(|moment| ("endsAt".to_owned(), to_bson_time(moment).into())));
            }
        }
        let coupons = self.coupons.clone_with_type::<Document>();
        let changed = mongo::run("change the coupon", async move {
            // MongoDB's clock: those who read changes go by it, whichever process made them.
            let mut update = doc! {"$inc": increase, "$currentDate": {"changedAt": true}};
            if !set.is_empty() {
                update.insert("$set", set);
            }
            update.extend(push.map(|push| ("$push".to_owned(), push.into())));
            coupons.find_one_and_update(filter, update).return_document(ReturnDocument::After).await
        });
        match changed.await? {
            Some(record) => Coupon::try_from(record).map(CouponChangeOutcome::Now),
            None => self.unchanged(id, change).await,
        }
    }

    /// Why a change was not made.
    async fn unchanged(&self, id: &CouponId, change: &CouponChange) -> Result<CouponChangeOutcome, Failure> {
        let remembered = match change {
            CouponChange::Restock(restock) => self.remembers(id, restock).await?,
            _ => None,
        };
        Ok(match (self.get(id).await?, remembered) {
            (None, _) => CouponChangeOutcome::NotFound,
            (Some(coupon), Some(true)) => CouponChangeOutcome::Before(coupon),
            (Some(_), Some(false)) => CouponChangeOutcome::KeyReused,
            (Some(coupon), None) if coupon.archived => match change {
                CouponChange::Archive => CouponChangeOutcome::Before(coupon),
                _ => CouponChangeOutcome::Archived,
            },
            (Some(coupon), None) => CouponChangeOutcome::Refused(coupon),
        })
    }

    /// Whether the coupon was restocked so before; `None` if its record does not know the key.
    async fn remembers(&self, id: &CouponId, restock: &Restock) -> Result<Option<bool>, Failure> {
        let coupons = self.coupons.clone_with_type::<Document>();
        let id = id.as_str().to_owned();
        let record = mongo::run("read the coupon's restocks", async move {
            coupons.find_one(doc! {"_id": id}).projection(doc! {restock::FIELD: 1}).await
        });
        Ok(record.await?.and_then(|record| restock.is_remembered(&record)))
    }

    /// Begins to read the coupons that operators changed lately, by MongoDB's clock.
    ///
    /// # Errors
    ///
    /// If MongoDB fails.
    pub(crate) async fn changed_since(&self, since: ChangesSince) -> Result<ChangedCoupons, Failure> {
        let coupons = self.coupons.clone_with_type::<Document>();
        let database = self.database();
        let begun = mongo::run("read the changed coupons", async move {
            let hello = database.run_command(doc! {"hello": 1}).await?;
            let began_at =
                from_bson_time(*hello.get_datetime("localTime").map_err(mongodb::error::Error::custom)?);
            let moment = match since {
                ChangesSince::Moment(moment) => moment,
                ChangesSince::Ago(ago) => began_at - ago,
            };
            let cursor = coupons
                .find(doc! {"changedAt": {"$gte": to_bson_time(moment)}})
                .sort(doc! {"changedAt": 1})
                .batch_size(CHANGED_MAX as u32)
                .await?;
            Ok((began_at, cursor))
        });
        let (began_at, cursor) = begun.await?;
        Ok(ChangedCoupons { began_at, cursor: Some(cursor) })
    }

    /// At most `limit` of the coupons that may be asked for at `now` or later, newest first, and how
    /// many more there are. A damaged record is left out.
    ///
    /// # Errors
    ///
    /// If MongoDB fails.
    pub(crate) async fn newest_current(
        &self,
        now: Timestamp,
        limit: usize,
    ) -> Result<(Vec<Coupon>, u64), Failure> {
        let coupons = self.coupons.clone_with_type::<Document>();
        let filter = doc! {"endsAt": {"$gt": to_bson_time(now)}, "archived": false};
        const OPERATION: &str = "read the newest current coupons";
        let page =
            mongo::newest_first_page(OPERATION, "a coupon", &coupons, filter.clone(), None, limit).await?;
        let count = mongo::run(OPERATION, async move { coupons.count_documents(filter).await }).await?;
        let left_out = count.saturating_sub(page.items.len() as u64);
        Ok((page.items, left_out))
    }

    /// The coupons that open within a time and are not archived, the first to open first: at most `OPENINGS_MAX`. A
    /// damaged record is left out.
    ///
    /// # Errors
    ///
    /// If MongoDB fails.
    pub(crate) async fn opening_within(
        &self,
        from: Timestamp,
        to: Timestamp,
    ) -> Result<Vec<CouponOpening>, Failure> {
        let (from, to) = (to_bson_time(from), to_bson_time(to));
        // Its end is after its start; the index knows the ends.
        let filter =
            doc! {"archived": false, "endsAt": {"$gt": from}, "startsAt": {"$gte": from, "$lte": to}};
        let options = FindOptions::builder()
            .projection(doc! {"_id": 0, "startsAt": 1, "total": 1})
            .sort(doc! {"startsAt": 1})
            .limit(OPENINGS_MAX)
            .build();
        let found =
            mongo::find::<Document, _>("read which coupons open", &self.coupons, filter, options).await?;
        let opening = |record: &Document| {
            let starts_at = from_bson_time(*record.get_datetime("startsAt").ok()?);
            let total = record.get_i64("total").ok()?.try_into().ok()?;
            Some(CouponOpening { starts_at, total })
        };
        Ok(found.iter().filter_map(opening).collect())
    }

    /// At most `limit` coupons that had not ended by `moment` and are retired: a final count is kept with them
    /// ([`CouponStore::keep_final_count`]). The newest come first.
    ///
    /// # Errors
    ///
    /// If MongoDB fails.
    pub(crate) async fn retired_since(
        &self,
        moment: Timestamp,
        limit: usize,
    ) -> Result<Vec<Coupon>, Failure> {
        let coupons = self.coupons.clone_with_type::<Document>();
        let filter = doc! {FINAL_COUNT: {"$exists": true}, "endsAt": {"$gt": to_bson_time(moment)}};
        const OPERATION: &str = "read the coupons that were retired";
        Ok(mongo::newest_first_page(OPERATION, "a coupon", &coupons, filter, None, limit).await?.items)
    }

    /// At most `ENDED_MAX` coupons that ended before a moment.
    ///
    /// # Errors
    ///
    /// If MongoDB fails.
    pub async fn ended_before(&self, moment: Timestamp) -> Result<Vec<CouponId>, Failure> {
        let ids = FindOptions::builder().projection(doc! {"_id": 1}).limit(ENDED_MAX).build();
        let filter = ended_before(moment);
        let found = mongo::find::<Document, _>("read the coupons that ended", &self.coupons, filter, ids);
        Ok(found.await?.iter().filter_map(|coupon| coupon.get_str("_id").ok()?.parse().ok()).collect())
    }

    /// Keeps with a coupon that is over how many of its units were issued in all. It holds for this
    /// generation of the record only: putting the end off, or restocking, changes the record.
    ///
    /// # Errors
    ///
    /// If MongoDB fails.
    pub(crate) async fn keep_final_count(
        &self,
        id: &CouponId,
        generation: i64,
        issued: u64,
    ) -> Result<(), Failure> {
        let (coupons, filter) = (self.coupons.clone(), doc! {"_id": id.as_str(), "generation": generation});
        let issued = i64::try_from(issued).unwrap_or(i64::MAX);
        let kept = doc! {"$set": {FINAL_COUNT: {"issued": issued, "generation": generation}}};
        mongo::run("keep the final count", async move { coupons.update_one(filter, kept).await })
            .await
            .map(drop)
    }

    /// How many units of these coupons were issued in all, where that is kept
    /// ([`CouponStore::keep_final_count`]). Of no use for one that is not over.
    ///
    /// # Errors
    ///
    /// If MongoDB fails.
    pub async fn final_counts(&self, coupons: &[&Coupon]) -> Result<HashMap<CouponId, u32>, Failure> {
        let ids: Vec<&str> = coupons.iter().map(|coupon| coupon.id.as_str()).collect();
        let filter = doc! {"_id": {"$in": ids}, FINAL_COUNT: {"$exists": true}};
        let counts = FindOptions::builder().projection(doc! {FINAL_COUNT: 1}).build();
        let found = mongo::find::<Document, _>("read the final counts", &self.coupons, filter, counts);
        let mut kept = HashMap::new();
        for record in found.await? {
            let read = || {
                let id = record.get_str("_id").ok()?;
                let count = record.get_document(FINAL_COUNT).ok()?;
                let (generation, issued) = (count.get_i64("generation").ok()?, count.get_i64("issued").ok()?);
                let coupon = coupons.iter().find(|coupon| coupon.id.as_str() == id)?;
                Some((coupon, u32::try_from(issued).ok().filter(|_| generation == coupon.generation)?))
            };
            kept.extend(read().map(|(coupon, issued)| (coupon.id.clone(), issued)));
        }
        Ok(kept)
    }

    /// Ends coupons with their validity that would be issued beyond it, as versions before this one could make
    /// them. Returns how many.
    ///
    /// # Errors
    ///
    /// If MongoDB fails.
    pub async fn end_with_validity(&self) -> Result<u64, Failure> {
        let coupons = self.coupons.clone();
        let ended = mongo::run("end coupons with their validity", async move {
            let beyond = doc! {
                "archived": false,
                "endsAt": {"$gt": to_bson_time(Timestamp::now())},
                "validUntil": {"$type": "date"},
                "$expr": {"$gt": ["$endsAt", "$validUntil"]},
            };
            let end = doc! {"$set": {
                "endsAt": "$validUntil",
                "generation": {"$add": ["$generation", 1_i64]},
                "changedAt": "$$NOW",
            }};
            coupons.update_many(beyond, vec![end]).await
        });
        Ok(ended.await?.modified_count)
    }
}

/// The coupons that ended before a moment. Served by an index.
pub fn ended_before(moment: Timestamp) -> Document {
    doc! {"archived": {"$in": [true, false]}, "endsAt": {"$lt": to_bson_time(moment)}}
}

impl From<&Coupon> for CouponDocument {
    fn from(coupon: &Coupon) -> Self {
        let amount = |amount: u64| i64::try_from(amount).unwrap_or(i64::MAX);
        CouponDocument {
            id: coupon.id.to_string(),
            name: coupon.name.clone(),
            total: coupon.total.into(),
            per_user: coupon.per_user.into(),
            starts_at: to_bson_time(coupon.starts_at),
            ends_at: to_bson_time(coupon.ends_at),
            discount: coupon.discount.as_ref().map(|discount| match discount {
                Discount::Fixed { amount: off, currency } => {
                    DiscountRecord::Fixed { amount: amount(*off), currency: currency.as_str().to_owned() }
                }
                Discount::Percent { percent, max_amount, currency } => DiscountRecord::Percent {
                    percent: (*percent).into(),
                    max_amount: max_amount.map(amount),
                    currency: currency.as_str().to_owned(),
                },
            }),
            min_order_amount: coupon.min_order_amount.map(amount),
            valid_until: match &coupon.validity {
                Validity::Until(moment) => Some(to_bson_time(*moment)),
                _ => None,
            },
            valid_for: match &coupon.validity {
                Validity::For(duration) => Some(duration.as_str().to_owned()),
                _ => None,
            },
            time_zone: Some(&coupon.time_zone)
                .filter(|zone| **zone != CouponTimeZone::UTC)
                .map(|zone| zone.as_str().to_owned()),
            paused: coupon.paused,
            archived: coupon.archived,
            generation: coupon.generation,
            created_at: to_bson_time(coupon.created_at),
            changed_at: to_bson_time(coupon.created_at),
            partitions: Some(coupon.shares.partitions())
                .filter(|partitions| **partitions != [PartitionId::ONE])
                .map(|partitions| partitions.iter().map(|partition| partition.number().into()).collect()),
        }
    }
}

impl TryFrom<Document> for Coupon {
    type Error = Failure;

    fn try_from(record: Document) -> Result<Self, Failure> {
        let id = record.get("_id").map(ToString::to_string).unwrap_or_default();
        mongodb::bson::deserialize_from_document::<CouponDocument>(record)
            .map_err(|error| error.to_string())
            .and_then(Coupon::parse)
            .map_err(|why| Failure::Damaged { what: "the record of a coupon", why: format!("{id}: {why}") })
    }
}

impl Coupon {
    fn parse(record: CouponDocument) -> Result<Self, String> {
        let amount = |amount: i64| u64::try_from(amount).map_err(|_| "a negative amount".to_string());
        let discount = match record.discount {
            None => None,
            Some(DiscountRecord::Fixed { amount: off, currency }) => {
                Some(Discount::Fixed { amount: amount(off)?, currency: currency.parse()? })
            }
            Some(DiscountRecord::Percent { percent, max_amount, currency }) => Some(Discount::Percent {
                percent: u8::try_from(percent).map_err(|_| "percent")?,
                max_amount: max_amount.map(amount).transpose()?,
                currency: currency.parse()?,
            }),
        };
        Ok(Coupon {
            id: record.id.parse()?,
            name: record.name,
            total: u32::try_from(record.total).map_err(|_| "total")?,
            per_user: u8::try_from(record.per_user).map_err(|_| "perUser")?,
            starts_at: from_bson_time(record.starts_at),
            ends_at: from_bson_time(record.ends_at),
            discount,
            min_order_amount: record.min_order_amount.map(amount).transpose()?,
            validity: validity(record.valid_until, record.valid_for)?,
            time_zone: zone(record.time_zone)?,
            paused: record.paused,
            archived: record.archived,
            generation: record.generation,
            created_at: from_bson_time(record.created_at),
            shares: shares(record.partitions.as_deref())?,
        })
    }
}
