//! Redemptions in MongoDB: a sub-document of the issued record. Every change is one compare-and-set on
//! the record's id, its user, that it is issued, and the version that was read; MongoDB's clock decides
//! about validity and writes the times. A change that comes second reads again, and is answered with the state that it finds.
//!
//! Reads are majority reads on the primary, never from a cache. That there is no such coupon is said only
//! after a linearizable read.

use std::sync::Arc;
use std::time::Duration;

use crate::mongo::Database;
use jiff::Timestamp;
use mongodb::Collection;
use mongodb::bson::{self, DateTime, Document, RawBsonRef, RawDocument, RawDocumentBuf, doc};
use mongodb::options::{FindOptions, Hint, ReadConcern, ReturnDocument};
use tokio::sync::Semaphore;

use super::record::{ACTIVE, FIELD, REVOKED, USED, redemption};
use super::{Redemption, RedemptionChange, RedemptionRefusal, RedemptionVerdict};
use crate::failure::Unreadable;
use crate::ids::{CouponId, IssuanceId, UserId};
use crate::issuance::ledger::{COLLECTION, Layout};
use crate::issuance::{Decision, Ledger, ledger};
use crate::mongo::{LINEARIZABLE_MAX, ListPage, from_bson_time, to_bson_time};
use crate::{Failure, mongo};

/// Changes and reads at once, so that a rush on one coupon leaves MongoDB to the others.
const AT_ONCE: usize = 64;
/// Those that wait for their turn; one more is refused.
const WAITING_MAX: usize = 16_384;
/// The longest that a turn is waited for: those before may each wait for MongoDB in vain.
const TURN_MAX: Duration = Duration::from_secs(5);
/// How often a change begins anew because another one came between.
const ATTEMPTS_MAX: usize = 5;
/// What is kept of the name of who made a change, in characters.
const BY_MAX: usize = 200;

/// Units in one page of [`RedemptionStore::units_after`].
pub(crate) const UNITS_PAGE: usize = 1_000;

/// Records in one answer of [`RedemptionStore::nameless_units`].
pub(crate) const NAMELESS_MAX: usize = 10_000;

/// A place in the list of what a user holds: a unit's time of issue and id.
pub(crate) type HeldCursor = (Timestamp, IssuanceId);

/// A coupon that a user holds, as it is at a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldCoupon {
    /// Its issue. Never a rejection.
    pub decision: Decision,
    pub redemption: Redemption,
    /// MongoDB's time of this reading.
    pub now: Timestamp,
}

/// The outcome of a change of a redemption.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedemptionChangeOutcome {
    Now(HeldCoupon),
    /// The change was made before; nothing was changed.
    Before(HeldCoupon),
    Refused(HeldCoupon, RedemptionRefusal),
    /// This user holds no such coupon (any more).
    NotFound,
}

/// Reads and changes the redemptions of held coupons. Cheap to clone.
#[derive(Clone)]
pub struct RedemptionStore {
    records: Collection<RawDocumentBuf>,
    ledger: Ledger,
    turns: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
}

impl RedemptionStore {
    /// The redemptions of this database.
    pub fn new(database: &Database) -> Self {
        RedemptionStore {
            records: database.collection(COLLECTION),
            ledger: Ledger::new(database),
            turns: Arc::new(Semaphore::new(AT_ONCE)),
            waiting: Arc::new(Semaphore::new(WAITING_MAX)),
        }
    }

    /// A coupon that a user holds; `None` if the ledger has no such issue.
    ///
    /// # Errors
    ///
    /// If MongoDB fails, too many requests wait, or the record cannot be read.
    pub async fn get(&self, user: &UserId, id: IssuanceId) -> Result<Option<HeldCoupon>, Failure> {
        let _turn = self.turn("read the user coupon").await?;
        self.read(user, id).await
    }

    /// A page of at most `limit` coupons that a user holds, newest first, from after one.
    ///
    /// # Errors
    ///
    /// If MongoDB fails.
    pub async fn held_by(
        &self,
        user: &UserId,
        after: Option<HeldCursor>,
        limit: usize,
    ) -> Result<ListPage<Result<HeldCoupon, Unreadable>, HeldCursor>, Failure> {
        let (filter, order) = (ledger::queries::issued_to(user, after), ledger::queries::newest_first());
        let found = self.find("list what the user holds", filter, order, limit).await?;
        let last = found.iter().rev().find_map(|document| place(document));
        let next = mongo::next_place(last, after.as_ref(), || (Timestamp::MAX, IssuanceId::LAST));
        Ok(ListPage {
            items: found.iter().map(|document| holding(document)).collect(),
            next: next.filter(|_| found.len() == limit),
        })
    }

    /// At most [`UNITS_PAGE`] units of a coupon that are held, with a serial above `after`, by serial. A
    /// page with fewer is the last.
    ///
    /// # Errors
    ///
    /// If MongoDB fails.
    pub async fn units_after(
        &self,
        coupon: &CouponId,
        after: u32,
    ) -> Result<Vec<Result<HeldCoupon, Unreadable>>, Failure> {
        let route = self.ledger.route(coupon).await?;
        let filter = ledger::queries::units_after(&route, coupon, after);
        let order = ledger::queries::by_unit(route.layout());
        let found = self.find("export a coupon's units", filter, order, UNITS_PAGE).await?;
        Ok(found.iter().map(|document| holding(document)).collect())
    }

    /// The units of a coupon that are held and name no serial: none of these can be read. At most
    /// [`NAMELESS_MAX`].
    ///
    /// # Errors
    ///
    /// If MongoDB fails.
    pub(crate) async fn nameless_units(&self, coupon: &CouponId) -> Result<Vec<Unreadable>, Failure> {
        let filter = ledger::queries::issued_nameless(&self.ledger.route(coupon).await?, coupon);
        let found = self.find("export a coupon's units", filter, doc! {"_id": 1}, NAMELESS_MAX).await?;
        Ok(found.iter().filter_map(|document| holding(document).err()).collect())
    }

    async fn find(
        &self,
        operation: &'static str,
        filter: Document,
        sort: Document,
        limit: usize,
    ) -> Result<Vec<RawDocumentBuf>, Failure> {
        let options =
            FindOptions::builder().sort(sort).limit(mongo::at_most(limit)).projection(fields()).build();
        ledger::operations_on(&filter).find(operation, &self.records, filter, options).await
    }

    /// Makes a change of `held`, which is valid until `end`, in the name of `by`. An `Err` leaves open
    /// whether it was made; the same change again finds out.
    pub async fn change(
        &self,
        held: HeldCoupon,
        change: &RedemptionChange,
        end: Option<Timestamp>,
        by: &str,
    ) -> Result<RedemptionChangeOutcome, Failure> {
        let _turn = self.turn("change the user coupon").await?;
        let (user, id) = (held.decision.user.clone(), held.decision.id);
        let mut held = held;
        for _ in 0..ATTEMPTS_MAX {
            match held.redemption.judge(change, end, held.now) {
                RedemptionVerdict::Made => return Ok(RedemptionChangeOutcome::Before(held)),
                RedemptionVerdict::Refused(refusal) => {
                    return Ok(RedemptionChangeOutcome::Refused(held, refusal));
                }
                RedemptionVerdict::Make => {}
            }
            if let Some(changed) = self.compare_and_set(&held, change, end, by).await? {
                return Ok(RedemptionChangeOutcome::Now(changed));
            }
            match self.read(&user, id).await? {
                Some(now) => held = now,
                None => return Ok(RedemptionChangeOutcome::NotFound),
            }
        }
        Err(Failure::Overloaded { operation: "change the user coupon" })
    }

    /// `None` if the record is not as it was read, or not valid any more.
    async fn compare_and_set(
        &self,
        held: &HeldCoupon,
        change: &RedemptionChange,
        end: Option<Timestamp>,
        by: &str,
    ) -> Result<Option<HeldCoupon>, Failure> {
        let end = end.filter(|_| matches!(change, RedemptionChange::Use { .. }));
        let layout = self.ledger.layout().await?;
        let filter = queries::unchanged(layout, &held.decision, held.redemption.version, end);
        let update = update(change, held, by);
        let records = self.records.clone();
        let operations = ledger::operations_on(&filter);
        let changed = operations.run("change the user coupon", async move {
            records
                .find_one_and_update(filter, update)
                .hint(Hint::Keys(ledger::queries::by_id()))
                .projection(fields())
                .return_document(ReturnDocument::After)
                .await
        });
        Ok(changed.await?.map(|document| holding(&document)).transpose()?)
    }

    async fn read(&self, user: &UserId, id: IssuanceId) -> Result<Option<HeldCoupon>, Failure> {
        let (records, filter) = (self.records.clone(), queries::issued(self.ledger.layout().await?, id));
        let operations = ledger::operations_on(&filter);
        let found = operations.run("read the user coupon", async move {
            let by_id = || Hint::Keys(ledger::queries::by_id());
            match records.find_one(filter.clone()).hint(by_id()).projection(fields()).await? {
                Some(found) => Ok(Some(found)),
                None => {
                    records
                        .find_one(filter)
                        .hint(by_id())
                        .projection(fields())
                        .read_concern(ReadConcern::linearizable())
                        .max_time(LINEARIZABLE_MAX)
                        .await
                }
            }
        });
        let found =
            found.await?.filter(|document| document.get_str("userId").is_ok_and(|id| id == user.as_str()));
        Ok(found.map(|document| holding(&document)).transpose()?)
    }

    async fn turn(&self, operation: &'static str) -> Result<impl Drop + '_, Failure> {
        let overloaded = || Failure::Overloaded { operation };
        let waiting = self.waiting.try_acquire().map_err(|_| overloaded())?;
        let turn = tokio::time::timeout(TURN_MAX, self.turns.acquire()).await;
        drop(waiting);
        turn.map_err(|_| overloaded())?.map_err(|_| overloaded())
    }
}

/// The fields of the ledger's record, the redemption, and MongoDB's time.
fn fields() -> Document {
    let mut fields = ledger::fields();
    fields.insert(FIELD, 1);
    fields.insert("now", "$$NOW");
    fields
}

/// The place of a record in the list of what its user holds; of one whose id is none, a place after it, among
/// those of the same moment. `None` if it does not say when it was issued.
fn place(document: &RawDocument) -> Option<HeldCursor> {
    let decided_at = from_bson_time(document.get_datetime("decidedAt").ok()?);
    let id = match document.get("_id").ok().flatten()? {
        RawBsonRef::Binary(id) => IssuanceId::from_bytes(id.bytes),
        // In the order of MongoDB these come after all ids.
        RawBsonRef::ObjectId(_)
        | RawBsonRef::Boolean(_)
        | RawBsonRef::DateTime(_)
        | RawBsonRef::Timestamp(_) => Some(IssuanceId::LAST),
        _ => None,
    };
    Some((decided_at, id.unwrap_or(IssuanceId::FIRST)))
}

fn holding(document: &RawDocument) -> Result<HeldCoupon, Unreadable> {
    let wrong = |why: String| Unreadable::of(document, true, why);
    let now = document.get_datetime("now").map_err(|error| wrong(error.to_string()))?;
    let redemption = match document.get(FIELD).map_err(|error| wrong(error.to_string()))? {
        None => Redemption::default(),
        Some(RawBsonRef::Document(inner)) => redemption(inner).map_err(wrong)?,
        Some(other) => return Err(wrong(format!("its redemption is {other:?}"))),
    };
    Ok(HeldCoupon { decision: ledger::decision_of(document)?, redemption, now: from_bson_time(now) })
}

/// What a change writes. What callers name is only ever a literal in it.
fn update(change: &RedemptionChange, held: &HeldCoupon, by: &str) -> Vec<Document> {
    let by: String = by.chars().take(BY_MAX).collect();
    let gone = "$$REMOVE";
    let literal = |text: &str| doc! {"$literal": text};
    let mut event = doc! {"what": change.event_kind().as_str(), "at": "$$NOW", "by": literal(&by)};
    let (status, used_at, reference) = match change {
        RedemptionChange::Use { reference } => {
            event.insert("reference", literal(reference.as_str()));
            (USED, "$$NOW", literal(reference.as_str()).into())
        }
        RedemptionChange::Restore { .. } => {
            // The reference of the use that is undone.
            if let super::RedemptionState::Used { reference: Some(reference), .. } = &held.redemption.state {
                event.insert("reference", literal(reference.as_str()));
            }
            (ACTIVE, gone, bson::Bson::from(gone))
        }
        RedemptionChange::Revoke => (REVOKED, gone, gone.into()),
    };
    let history = doc! {"$concatArrays": [{"$ifNull": [format!("${FIELD}.history"), []]}, [event]]};
    vec![doc! {"$set": {FIELD: {
        "status": status,
        "usedAt": used_at,
        "reference": reference,
        "version": held.redemption.version + 1,
        "history": history,
    }}}]
}

/// The filters that redemptions are asked and changed with. Each must be served by an index.
pub mod queries {
    use super::*;

    /// An issued record.
    pub fn issued(layout: Layout, id: IssuanceId) -> Document {
        let mut filter = ledger::queries::one(layout, id);
        filter.insert("outcome", ledger::ISSUED);
        filter
    }

    /// The same, if it still belongs to this user, its redemption has this version, and it is valid.
    pub fn unchanged(layout: Layout, decision: &Decision, version: i64, end: Option<Timestamp>) -> Document {
        let mut filter = issued(layout, decision.id);
        // The whole shard key: before version 7.1 mongos finds and modifies by nothing less.
        filter.insert("couponId", decision.coupon.as_str());
        filter.insert("userId", decision.user.as_str());
        // `null` is what a missing field is.
        let version = Some(version).filter(|version| *version > 0);
        filter.insert(format!("{FIELD}.version"), version);
        if let Some(end) = end {
            let end: DateTime = to_bson_time(end);
            filter.insert("$expr", doc! {"$lt": ["$$NOW", end]});
        }
        filter
    }
}
