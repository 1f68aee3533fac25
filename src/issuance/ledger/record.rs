//! The shape of a ledger document, and its way to and from a [`Decision`].

use mongodb::bson::{self, DateTime, Document, Uuid, doc};
use serde::{Deserialize, Serialize};

use super::Held;
use crate::Failure;
use crate::issuance::{Decision, IssuanceId, Outcome};
use crate::mongo::{from_bson_time, to_bson_time};

pub(crate) const ISSUED: &str = "issued";
pub(super) const REJECTED: &str = "rejected";

/// Ids are [`mongodb::bson::Uuid`] everywhere: other ways to write a UUID give another encoding, and
/// two encodings of one id never match.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Record {
    #[serde(rename = "_id")]
    id: Uuid,
    outcome: String,
    coupon_id: String,
    user_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    serial: Option<i64>,
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

/// The failure of a document that this program cannot have written.
pub(super) fn damaged(id: impl std::fmt::Display, why: impl std::fmt::Display) -> Failure {
    Failure::Damaged { what: "a record of the ledger", why: format!("{id}: {why}") }
}

impl From<&Decision> for Record {
    fn from(decision: &Decision) -> Self {
        let mut record = Record {
            id: uuid(decision.id),
            outcome: String::new(),
            coupon_id: decision.coupon.to_string(),
            user_id: decision.user.to_string(),
            serial: None,
            nth: None,
            reason: None,
            lost: None,
            accepted_at: to_bson_time(decision.accepted_at),
            decided_at: to_bson_time(decision.decided_at),
        };
        match decision.outcome {
            Outcome::Issued { serial, nth } => {
                record.outcome = ISSUED.into();
                record.serial = Some(serial.into());
                record.nth = Some(nth.into());
            }
            Outcome::Rejected { reason, serial, lost } => {
                record.outcome = REJECTED.into();
                record.serial = serial.map(i64::from);
                record.reason = Some(reason.as_str().into());
                record.lost = Some(lost);
            }
        }
        record
    }
}

pub(super) fn decision(record: Record) -> Result<Decision, Failure> {
    let id = record.id;
    parse(record).map_err(|why| damaged(id, why))
}

/// The fields of a decision, for a projection.
pub(crate) fn fields() -> Document {
    doc! {
        "outcome": 1, "couponId": 1, "userId": 1, "serial": 1, "nth": 1, "reason": 1, "lost": 1,
        "acceptedAt": 1, "decidedAt": 1,
    }
}

/// The decision that a document holds, whatever else it holds.
pub(crate) fn decision_of(document: Document) -> Result<Decision, Failure> {
    let id = document.get("_id").map(ToString::to_string).unwrap_or_default();
    bson::deserialize_from_document(document).map_err(|error| damaged(id, error)).and_then(decision)
}

/// What an issued document says of its unit, and no more: a coupon has up to millions.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct HeldRecord {
    #[serde(rename = "_id")]
    id: Uuid,
    user_id: String,
    serial: i64,
    nth: i32,
}

impl HeldRecord {
    pub(super) fn projection() -> Document {
        doc! {"userId": 1, "serial": 1, "nth": 1}
    }

    pub(super) fn parse(self) -> Result<Held, Failure> {
        let id = self.id;
        let parse = || {
            Ok::<_, String>(Held {
                id: IssuanceId::from_bytes(id.bytes()).ok_or("its id")?,
                user: self.user_id.parse()?,
                serial: u32::try_from(self.serial).map_err(|_| "its serial")?,
                nth: u8::try_from(self.nth).map_err(|_| "its nth")?,
            })
        };
        parse().map_err(|why| damaged(id, why))
    }
}

fn parse(record: Record) -> Result<Decision, String> {
    let serial = record.serial.map(|serial| u32::try_from(serial).map_err(|_| "its serial")).transpose()?;
    let outcome = match record.outcome.as_str() {
        ISSUED => Outcome::Issued {
            serial: serial.ok_or("it has no serial")?,
            nth: record.nth.and_then(|nth| u8::try_from(nth).ok()).ok_or("it has no nth")?,
        },
        REJECTED => Outcome::Rejected {
            reason: record.reason.ok_or("it has no reason")?.parse()?,
            serial,
            lost: record.lost.unwrap_or(false),
        },
        other => return Err(format!("its outcome is {other:?}")),
    };
    Ok(Decision {
        id: IssuanceId::from_bytes(record.id.bytes()).ok_or("its id")?,
        coupon: record.coupon_id.parse()?,
        user: record.user_id.parse()?,
        outcome,
        accepted_at: from_bson_time(record.accepted_at),
        decided_at: from_bson_time(record.decided_at),
    })
}
