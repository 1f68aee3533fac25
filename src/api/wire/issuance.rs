//! Issuances on the wire.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::coupon::CouponId;
use crate::http::fields::{self, Fields};
use crate::http::{Code, Problem};
use crate::issuance::Reason;
use crate::user::UserId;

/// One accepted request and what became of it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(tag = "state", rename_all = "camelCase")]
pub enum Issuance {
    /// Waiting for its decision. It has no serial yet: a conflict may still change it.
    #[serde(rename_all = "camelCase")]
    Queued {
        #[schema(value_type = String, format = Uuid)]
        id: String,
        #[schema(example = "summer")]
        coupon_id: String,
        #[schema(example = "u1")]
        user_id: String,
        /// How many are decided before it, about.
        #[schema(example = 412)]
        ahead: u64,
        #[schema(example = 60)]
        estimated_wait_ms: u64,
        /// Ask again after this.
        #[schema(example = 100)]
        poll_after_ms: u64,
        #[schema(value_type = String, format = DateTime)]
        accepted_at: Timestamp,
    },
    /// The user holds a unit.
    #[serde(rename_all = "camelCase")]
    Issued {
        #[schema(value_type = String, format = Uuid)]
        id: String,
        #[schema(example = "summer")]
        coupon_id: String,
        #[schema(example = "u1")]
        user_id: String,
        /// The number of the unit, from 1 to the coupon's total.
        #[schema(example = 17)]
        serial: u32,
        #[schema(value_type = String, format = DateTime)]
        accepted_at: Timestamp,
        #[schema(value_type = String, format = DateTime)]
        decided_at: Timestamp,
        /// Where the held unit is.
        #[schema(example = "/user-coupons/u1/019a0b1c-2d3e-7000-8f00-000000000000")]
        user_coupon: String,
    },
    /// There is no unit for it.
    #[serde(rename_all = "camelCase")]
    Rejected {
        #[schema(value_type = String, format = Uuid)]
        id: String,
        #[schema(example = "summer")]
        coupon_id: String,
        #[schema(example = "u1")]
        user_id: String,
        /// Why: `already-issued`, `sold-out` or `discarded`.
        #[schema(value_type = crate::api::wire::problem::Problem)]
        problem: Value,
        #[schema(value_type = String, format = DateTime)]
        accepted_at: Timestamp,
        #[schema(value_type = String, format = DateTime)]
        decided_at: Timestamp,
    },
}

impl Issuance {
    /// The name of its state.
    pub fn state(&self) -> &'static str {
        match self {
            Issuance::Queued { .. } => "queued",
            Issuance::Issued { .. } => "issued",
            Issuance::Rejected { .. } => "rejected",
        }
    }
}

impl From<Reason> for Code {
    fn from(reason: Reason) -> Self {
        match reason {
            Reason::AlreadyIssued => Code::AlreadyIssued,
            Reason::SoldOut => Code::SoldOut,
            Reason::Discarded => Code::Discarded,
        }
    }
}

// Documents a body; `request` reads it.
/// Who wants which coupon.
#[derive(ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(example = json!({"userId": "u1", "couponId": "summer"}))]
#[expect(dead_code, reason = "documents a body that is read field by field")]
pub struct RequestIssuance {
    #[schema(pattern = "^[A-Za-z0-9._:@-]{1,64}$")]
    user_id: String,
    #[schema(pattern = "^[A-Za-z0-9._-]{1,64}$")]
    coupon_id: String,
}

/// Reads who wants which coupon from a body.
pub fn request(body: Value) -> Result<(UserId, CouponId), Problem> {
    let mut fields = Fields::of(body)?;
    let user = fields.required("userId", fields::parsed::<UserId>);
    let coupon = fields.required("couponId", fields::parsed::<CouponId>);
    fields.finish(user.zip(coupon))
}
