//! Redemption on the wire: its bodies, and a held coupon with what became of it.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::fields::{self, Fields};
use super::user_coupon::UserCoupon;
use crate::coupon::Expiry;
use crate::http::Problem;
use crate::redemption::{HeldCoupon, RedemptionChange, RedemptionEventKind, Reference};

/// A held coupon and its history.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct UserCouponWithHistory {
    #[serde(flatten)]
    pub coupon: UserCoupon,
    /// Its issue and every change since, the oldest first.
    pub history: Vec<Event>,
}

/// One thing that became of a held coupon.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = UserCouponEvent)]
pub(crate) struct Event {
    event: EventKind,
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
    /// What it was used for, of a use and its undoing.
    #[schema(required = true)]
    reference: Option<String>,
    /// Who did it. Null for the issue, and towards end users.
    #[schema(required = true)]
    by: Option<String>,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = UserCouponEventKind)]
pub(crate) enum EventKind {
    Issued,
    Used,
    Restored,
    Revoked,
}

impl From<RedemptionEventKind> for EventKind {
    fn from(what: RedemptionEventKind) -> Self {
        match what {
            RedemptionEventKind::Used => EventKind::Used,
            RedemptionEventKind::Restored => EventKind::Restored,
            RedemptionEventKind::Revoked => EventKind::Revoked,
        }
    }
}

impl UserCouponWithHistory {
    /// A held coupon as it was read; `named` tells who did what.
    pub fn new(held: &HeldCoupon, validity: &Expiry, named: bool) -> Self {
        let issued =
            Event { event: EventKind::Issued, at: held.decision.decided_at, reference: None, by: None };
        let changes = held.redemption.history.iter().map(|change| Event {
            event: change.what.into(),
            at: change.at,
            reference: change.reference.as_ref().map(ToString::to_string),
            by: named.then(|| change.by.clone()),
        });
        UserCouponWithHistory {
            coupon: UserCoupon::new(held, validity),
            history: std::iter::once(issued).chain(changes).collect(),
        }
    }
}

// Documents a body; `use_of` reads it.
/// A use.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"reference": "order-20261123-17"}))]
#[expect(dead_code, reason = "documents a body that is read field by field")]
pub(crate) struct UseUserCoupon {
    /// What it is used for, such as an order's number: visible ASCII characters. The same one again is the
    /// same use.
    #[schema(pattern = "^[!-~]{1,128}$")]
    reference: String,
}

// Documents a body; `restore_of` reads it.
/// The undoing of a use.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"reference": "order-20261123-17"}))]
#[expect(dead_code, reason = "documents a body that is read field by field")]
pub(crate) struct RestoreUserCoupon {
    /// Undoes the use with this reference, and no other.
    #[schema(pattern = "^[!-~]{1,128}$")]
    reference: Option<String>,
}

/// Reads a use from a body.
///
/// # Errors
/// 422 `invalid` with every error.
pub(crate) fn use_of(body: Value) -> Result<RedemptionChange, Problem> {
    let mut fields = Fields::of(body)?;
    let reference = fields.required("reference", fields::parsed::<Reference>);
    fields.finish(reference.map(|reference| RedemptionChange::Use { reference }))
}

/// Reads a restore from a body, which may be missing or null.
///
/// # Errors
/// 422 `invalid` with every error.
pub(crate) fn restore_of(body: Option<Value>) -> Result<RedemptionChange, Problem> {
    let Some(body) = body.filter(|body| !body.is_null()) else {
        return Ok(RedemptionChange::Restore { reference: None });
    };
    let mut fields = Fields::of(body)?;
    let reference = fields.optional("reference", fields::parsed::<Reference>);
    fields.finish(Some(RedemptionChange::Restore { reference }))
}
