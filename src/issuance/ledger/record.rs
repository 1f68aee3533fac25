//! The shape of a ledger document, and its way to and from a [`Decision`].
//!
//! Documents are read one by one, and what cannot be read is a value of its own ([`Unreadable`]): one
//! that is damaged, or that another version wrote, is not the trouble of those that are read with it.

use mongodb::bson::{self, Bson, DateTime, Document, RawBsonRef, RawDocument, Uuid, doc};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::HeldUnit;
use super::layout::{Layout, number};
use crate::failure::Unreadable;
use crate::ids::{IssuanceId, PartitionId, Unit, UserId};
use crate::issuance::{Decision, Outcome};
use crate::mongo::{from_bson_time, to_bson_time};

pub(crate) const ISSUED: &str = "issued";
pub(super) const REJECTED: &str = "rejected";
pub(super) const MOVED: &str = "moved";

/// Ids are [`mongodb::bson::Uuid`] everywhere: other ways to write a UUID give another encoding, and
/// two encodings of one id never match.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Record {
    #[serde(rename = "_id")]
    id: Uuid,
    /// The partition of its id; missing where an older version wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    p: Option<i32>,
    outcome: String,
    coupon_id: String,
    /// Missing where a unit was moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    user_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    serial: Option<i64>,
    /// The number of the unit that it occupies: one that is issued, or was moved away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unit: Option<i64>,
    /// The hop of the unit of a rejection, which occupies none; missing if that is 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hop: Option<i32>,
    /// The partition that a unit was moved to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    to: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nth: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lost: Option<bool>,
    accepted_at: DateTime,
    decided_at: DateTime,
}

pub(crate) fn uuid(id: IssuanceId) -> Uuid {
    Uuid::from_bytes(*id.as_bytes())
}

impl Unreadable {
    /// What can be told of a document. `of_issued`: it need not say that it is issued.
    pub(crate) fn of(document: &RawDocument, of_issued: bool, why: String) -> Self {
        let field = |name: &str| document.get(name).ok().flatten();
        let id = field("_id").and_then(|id| Bson::try_from(id).ok());
        let bytes = match &id {
            Some(Bson::Binary(binary)) => <[u8; 16]>::try_from(binary.bytes.as_slice()).ok(),
            _ => None,
        };
        let occupies = match field("outcome") {
            Some(outcome) => outcome.as_str().is_some_and(|outcome| [ISSUED, MOVED].contains(&outcome)),
            None => of_issued,
        };
        Unreadable {
            record: match bytes {
                Some(bytes) => Uuid::from_bytes(bytes).to_string(),
                None => id.map(|id| id.to_string()).unwrap_or_default(),
            },
            id: bytes.and_then(IssuanceId::from_bytes),
            user: field("userId").and_then(|user| user.as_str()?.parse().ok()),
            unit: field("unit").or_else(|| field("serial")).filter(|_| occupies).and_then(unit),
            why,
        }
    }
}

/// The unit that a whole number is, whatever its type.
fn unit(value: RawBsonRef<'_>) -> Option<Unit> {
    let number = match value {
        RawBsonRef::Int32(number) => number.into(),
        RawBsonRef::Int64(number) => number,
        RawBsonRef::Double(number) if number.fract() == 0.0 => number as i64,
        _ => return None,
    };
    unit_of(number)
}

pub(super) fn unit_of(number: i64) -> Option<Unit> {
    u32::try_from(number).ok().and_then(Unit::new)
}

pub(super) fn partition_of(number: i32) -> Option<PartitionId> {
    u16::try_from(number).ok().and_then(PartitionId::new)
}

/// As much of a document as one read needs.
pub(super) trait Shape: DeserializeOwned {
    type Value;
    /// Only issued records are read in this shape, so that they need not say so.
    const OF_ISSUED: bool;

    /// The value, or what is wrong.
    fn parse(self) -> Result<Self::Value, String>;
}

/// Reads a document in a shape.
pub(super) fn read<S: Shape>(document: &RawDocument) -> Result<S::Value, Unreadable> {
    bson::deserialize_from_slice::<S>(document.as_bytes())
        .map_err(|error| error.to_string())
        .and_then(S::parse)
        .map_err(|why| Unreadable::of(document, S::OF_ISSUED, why))
}

impl From<&Decision> for Record {
    fn from(decision: &Decision) -> Self {
        let mut record = Record {
            id: uuid(decision.id),
            p: Some(number(decision.id.partition())),
            outcome: String::new(),
            coupon_id: decision.coupon.to_string(),
            user_id: Some(decision.user.to_string()),
            serial: None,
            unit: None,
            hop: None,
            to: None,
            nth: None,
            reason: None,
            lost: None,
            accepted_at: to_bson_time(decision.accepted_at),
            decided_at: to_bson_time(decision.decided_at),
        };
        match decision.outcome {
            Outcome::Issued { unit, nth } => {
                record.outcome = ISSUED.into();
                record.serial = Some(unit.serial().into());
                record.unit = Some(unit.number().into());
                record.nth = Some(nth.into());
            }
            Outcome::Moved { unit, to } => {
                record.outcome = MOVED.into();
                record.user_id = None;
                record.serial = Some(unit.serial().into());
                record.unit = Some(unit.number().into());
                record.to = Some(number(to));
            }
            Outcome::Rejected { reason, unit, lost } => {
                record.outcome = REJECTED.into();
                record.serial = unit.map(|unit| unit.serial().into());
                record.hop = unit.map(|unit| unit.hop() as i32).filter(|hop| *hop > 0);
                record.reason = Some(reason.as_str().into());
                record.lost = Some(lost);
            }
        }
        record
    }
}

/// The fields of a decision, for a projection.
pub(crate) fn fields() -> Document {
    doc! {
        "p": 1, "outcome": 1, "couponId": 1, "userId": 1, "serial": 1, "unit": 1, "hop": 1, "to": 1, "nth": 1, "reason": 1,
        "lost": 1, "acceptedAt": 1, "decidedAt": 1,
    }
}

/// The decision that a document holds, whatever else it holds.
pub(crate) fn decision_of(document: &RawDocument) -> Result<Decision, Unreadable> {
    read::<Record>(document)
}

/// What an issued document says of its unit, and no more: a coupon has up to millions.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct HeldRecord {
    #[serde(rename = "_id")]
    id: Uuid,
    user_id: String,
    /// Whichever field the ledger's layout has for it.
    #[serde(alias = "serial")]
    unit: i64,
    nth: i32,
}

impl HeldRecord {
    pub(super) fn projection(layout: Layout) -> Document {
        doc! {"userId": 1, layout.unit(): 1, "nth": 1}
    }
}

impl Shape for HeldRecord {
    type Value = HeldUnit;
    const OF_ISSUED: bool = true;

    fn parse(self) -> Result<HeldUnit, String> {
        Ok(HeldUnit {
            id: issuance(self.id)?,
            user: self.user_id.parse()?,
            unit: unit_of(self.unit).ok_or("its unit")?,
            nth: u8::try_from(self.nth).map_err(|_| "its nth")?,
        })
    }
}

/// Which unit a document occupies, and no more.
#[derive(Debug, Deserialize)]
pub(super) struct OccupantRecord {
    #[serde(rename = "_id")]
    id: Uuid,
    /// Whichever field the ledger's layout has for it.
    #[serde(alias = "serial")]
    unit: i64,
}

impl OccupantRecord {
    pub(super) fn projection(layout: Layout) -> Document {
        doc! {layout.unit(): 1}
    }
}

impl Shape for OccupantRecord {
    type Value = (IssuanceId, Unit);
    const OF_ISSUED: bool = true;

    fn parse(self) -> Result<Self::Value, String> {
        Ok((issuance(self.id)?, unit_of(self.unit).ok_or("its unit")?))
    }
}

/// Whose a document is, and no more: whatever it says, it is there.
#[derive(Debug, Deserialize)]
pub(super) struct IdRecord {
    #[serde(rename = "_id")]
    id: Uuid,
}

impl IdRecord {
    pub(super) fn projection() -> Document {
        doc! {"_id": 1}
    }
}

impl Shape for IdRecord {
    type Value = IssuanceId;
    const OF_ISSUED: bool = false;

    fn parse(self) -> Result<IssuanceId, String> {
        issuance(self.id)
    }
}

/// The issuance that an `_id` is.
pub(super) fn issuance(id: Uuid) -> Result<IssuanceId, String> {
    IssuanceId::from_bytes(id.bytes()).ok_or_else(|| "its _id is no issuance id".into())
}

impl Record {
    /// The unit that it occupies, or that was in flight for a rejected one.
    fn unit_of_fields(&self) -> Result<Option<Unit>, String> {
        let Some(serial) = self.serial else {
            return self.unit.map_or(Ok(None), |_| Err("it has a unit, and no serial".into()));
        };
        let hop = self.hop.unwrap_or(0);
        let of_serial = u32::try_from(serial).ok().and_then(Unit::native).ok_or("its serial")?;
        let unit = match self.unit {
            Some(number) => unit_of(number),
            None => unit_of(serial + (i64::from(hop) << 24)),
        };
        match unit {
            Some(unit) if unit.serial() == of_serial.serial() => Ok(Some(unit)),
            _ => Err("its unit is not that of its serial".into()),
        }
    }
}

impl Shape for Record {
    type Value = Decision;
    const OF_ISSUED: bool = false;

    fn parse(self) -> Result<Decision, String> {
        let unit = self.unit_of_fields()?;
        let id = issuance(self.id)?;
        if self.p.is_some_and(|p| p != number(id.partition())) {
            return Err("its p is not the partition of its _id".into());
        }
        let outcome = match self.outcome.as_str() {
            ISSUED => Outcome::Issued {
                unit: unit.ok_or("it has no serial")?,
                nth: self.nth.and_then(|nth| u8::try_from(nth).ok()).ok_or("it has no nth")?,
            },
            REJECTED => Outcome::Rejected {
                reason: self.reason.as_deref().ok_or("it has no reason")?.parse()?,
                unit,
                lost: self.lost.unwrap_or(false),
            },
            MOVED => {
                let to = self.to.and_then(partition_of).ok_or("its to")?;
                Outcome::Moved { unit: unit.ok_or("it has no serial")?, to }
            }
            other => return Err(format!("its outcome is {other:?}")),
        };
        Ok(Decision {
            id,
            coupon: self.coupon_id.parse()?,
            user: match outcome {
                Outcome::Moved { to, .. } => UserId::of_share(to),
                _ => UserId::of_holder(self.user_id.as_deref().ok_or("it has no userId")?)?,
            },
            outcome,
            accepted_at: from_bson_time(self.accepted_at),
            decided_at: from_bson_time(self.decided_at),
        })
    }
}

#[cfg(test)]
mod tests {
    use mongodb::bson::RawDocumentBuf;

    use super::*;
    use crate::issuance::Reason;

    fn issued(id: IssuanceId) -> Document {
        doc! {
            "_id": uuid(id), "outcome": ISSUED, "couponId": "c", "userId": "u", "serial": 7_i64, "nth": 1,
            "acceptedAt": DateTime::now(), "decidedAt": DateTime::now(),
        }
    }

    #[test]
    fn what_cannot_be_read_still_says_whose_it_is_and_which_unit_it_holds() {
        let id = IssuanceId::generate(PartitionId::ONE);
        let rejected = doc! {"outcome": REJECTED, "reason": "of-a-later-version"};
        for (changes, unit) in [
            (doc! {"serial": 7.0, "nth": "one"}, Some(7)),
            (doc! {"serial": 7}, None),
            (doc! {"unit": 8_i64}, Some(8)),
            (doc! {"unit": "seven"}, None),
            (doc! {"p": 5}, Some(7)),
            (doc! {"serial": "7"}, None),
            (doc! {"serial": -7_i64}, None),
            (doc! {"serial": Bson::Null}, None),
            (doc! {"userId": 5}, Some(7)),
            (doc! {"userId": "a b"}, Some(7)),
            (doc! {"couponId": Bson::Null}, Some(7)),
            (doc! {"decidedAt": "today"}, Some(7)),
            (doc! {"outcome": "lent"}, None),
            (doc! {"outcome": 1}, None),
            (rejected, None),
        ] {
            let mut document = issued(id);
            document.extend(changes.clone());
            let raw = RawDocumentBuf::try_from(&document).unwrap();
            match read::<Record>(&raw) {
                // A whole number is a serial in any of BSON's types of whole numbers.
                Ok(_) => assert_eq!(changes, doc! {"serial": 7}),
                Err(Unreadable { record, id: told, unit: held, why, .. }) => {
                    assert_eq!(
                        (record, told, held),
                        (id.to_string(), Some(id), unit.and_then(Unit::native)),
                        "{changes}"
                    );
                    assert!(!why.is_empty(), "{changes}");
                }
            }
        }
    }

    #[test]
    fn a_unit_that_was_moved_keeps_its_serial() {
        let mut document = issued(IssuanceId::generate(PartitionId::ONE));
        document.insert("unit", (3_i64 << 24) + 7);
        let raw = RawDocumentBuf::try_from(&document).unwrap();
        let unit = Unit::new((3 << 24) + 7);
        assert_eq!(read::<Record>(&raw).unwrap().unit(), unit);
        document.remove("serial");
        let raw = RawDocumentBuf::try_from(&document).unwrap();
        assert_eq!(Some(read::<HeldRecord>(&raw).unwrap().unit), unit);
    }

    #[test]
    fn every_decision_survives_its_record() {
        let (id, other) = (IssuanceId::generate(PartitionId::ONE), PartitionId::new(9).unwrap());
        let unit = Unit::new((2 << 24) + 7).unwrap();
        let rejected = |unit| Outcome::Rejected { reason: Reason::SoldOut, unit, lost: true };
        for (outcome, user) in [
            (Outcome::Issued { unit, nth: 2 }, "u"),
            (rejected(Some(unit)), "u"),
            (rejected(Unit::native(7)), "u"),
            (rejected(None), "=9"),
            (Outcome::Moved { unit, to: other }, "=9"),
        ] {
            let at = crate::mongo::now_in_milliseconds();
            let (coupon, user) = ("c".parse().unwrap(), UserId::of_holder(user).unwrap());
            let decision = Decision { id, coupon, user, outcome, accepted_at: at, decided_at: at };
            let raw = bson::serialize_to_raw_document_buf(&Record::from(&decision)).unwrap();
            assert_eq!(read::<Record>(&raw).unwrap(), decision);
        }
    }

    #[test]
    fn a_record_whose_id_is_none_is_told_by_what_it_has() {
        let mut document = issued(IssuanceId::generate(PartitionId::ONE));
        document.insert("_id", "seven");
        let raw = RawDocumentBuf::try_from(&document).unwrap();
        let unreadable = read::<HeldRecord>(&raw).unwrap_err();
        assert_eq!(
            (unreadable.record.as_str(), unreadable.id, unreadable.unit),
            ("\"seven\"", None, Unit::native(7))
        );
    }
}
