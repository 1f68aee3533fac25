//! The sub-document `redemption` of an issued record, and its way from there. Missing means: never used.

use mongodb::bson::{self, DateTime, RawDocument};
use serde::Deserialize;

use super::{Redemption, RedemptionEvent, RedemptionEventKind, RedemptionState};
use crate::mongo::from_bson_time;

/// The name of the sub-document.
pub(super) const FIELD: &str = "redemption";

pub(super) const ACTIVE: &str = "active";
pub(super) const USED: &str = "used";
pub(super) const REVOKED: &str = "revoked";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RedemptionRecord {
    status: String,
    used_at: Option<DateTime>,
    reference: Option<String>,
    version: i64,
    history: Vec<RedemptionEventRecord>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RedemptionEventRecord {
    what: String,
    at: DateTime,
    reference: Option<String>,
    by: String,
}

/// What the sub-document says, or what is wrong with it.
pub(super) fn redemption(document: &RawDocument) -> Result<Redemption, String> {
    let record: RedemptionRecord =
        bson::deserialize_from_slice(document.as_bytes()).map_err(|error| error.to_string())?;
    let state = match (record.status.as_str(), record.used_at) {
        (ACTIVE, None) => RedemptionState::Active,
        (USED, Some(at)) => RedemptionState::Used {
            at: from_bson_time(at),
            reference: record.reference.map(|text| text.parse()).transpose()?,
        },
        (REVOKED, _) => RedemptionState::Revoked,
        (status, used_at) => return Err(format!("its redemption is {status:?}, used at {used_at:?}")),
    };
    let history = record.history.into_iter().map(event).collect::<Result<_, _>>()?;
    Ok(Redemption { state, version: record.version, history })
}

fn event(record: RedemptionEventRecord) -> Result<RedemptionEvent, String> {
    Ok(RedemptionEvent {
        what: match record.what.as_str() {
            USED => RedemptionEventKind::Used,
            "restored" => RedemptionEventKind::Restored,
            REVOKED => RedemptionEventKind::Revoked,
            other => return Err(format!("{other:?} is no change of a redemption")),
        },
        at: from_bson_time(record.at),
        reference: record.reference.map(|text| text.parse()).transpose()?,
        by: record.by,
    })
}
