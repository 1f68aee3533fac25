//! Issuances on the wire.

use std::borrow::Cow;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::body;
use super::fields::{self, Fields};
use crate::http::{Code, Problem};
use crate::ids::{CouponId, IssuanceId, UserId};
use crate::issuance::Reason;

/// One accepted request and what became of it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(tag = "state", rename_all = "camelCase")]
pub(crate) enum Issuance {
    /// Waiting for its decision. It has no serial yet: a conflict may still change it.
    #[serde(rename_all = "camelCase")]
    Queued {
        #[schema(value_type = String, format = Uuid)]
        id: IssuanceId,
        #[schema(value_type = String, example = "summer")]
        coupon_id: CouponId,
        #[schema(value_type = String, example = "u1")]
        user_id: UserId,
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
        id: IssuanceId,
        #[schema(value_type = String, example = "summer")]
        coupon_id: CouponId,
        #[schema(value_type = String, example = "u1")]
        user_id: UserId,
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
        id: IssuanceId,
        #[schema(value_type = String, example = "summer")]
        coupon_id: CouponId,
        #[schema(value_type = String, example = "u1")]
        user_id: UserId,
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
pub(crate) struct RequestIssuance {
    #[schema(
        pattern = "^([A-Za-z0-9_:@-]|[A-Za-z0-9_:@-][A-Za-z0-9._:@-]|[.][A-Za-z0-9_:@-]|[A-Za-z0-9._:@-]{3,64})$"
    )]
    user_id: String,
    #[schema(
        pattern = "^([A-Za-z0-9_-]|[A-Za-z0-9_-][A-Za-z0-9._-]|[.][A-Za-z0-9_-]|[A-Za-z0-9._-]{3,64})$"
    )]
    coupon_id: String,
}

/// The same, to be parsed in one pass.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PlainRequest<'a> {
    #[serde(borrow)]
    user_id: Cow<'a, str>,
    #[serde(borrow)]
    coupon_id: Cow<'a, str>,
}

/// Reads from a body which user wants which coupon. A correct body is parsed in one pass; any other is read again field
/// by field, to name all its errors.
///
/// # Errors
/// 400 `malformed`, or 422 `invalid` with every error.
pub fn request(body: &[u8]) -> Result<(UserId, CouponId), Problem> {
    // Serde takes a list of the two for the object, too.
    if body.trim_ascii_start().first() == Some(&b'{')
        && let Ok(plain) = serde_json::from_slice::<PlainRequest<'_>>(body)
        && let (Ok(user), Ok(coupon)) = (plain.user_id.parse(), plain.coupon_id.parse())
    {
        return Ok((user, coupon));
    }
    let mut fields = Fields::of(body::parsed(body)?)?;
    let user = fields.required("userId", fields::parsed::<UserId>);
    let coupon = fields.required("couponId", fields::parsed::<CouponId>);
    fields.finish(user.zip(coupon))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_reads_the_same_at_once_and_field_by_field() {
        let (user, coupon) = request(br#" {"couponId": "summ\u0065r", "userId": "u1"} "#).unwrap();
        assert_eq!((user.as_str(), coupon.as_str()), ("u1", "summer"));
        let wrong = [
            (&b"{"[..], Code::Malformed),
            (b"[]", Code::Invalid),
            (br#"["u1", "summer"]"#, Code::Invalid),
            (br#"{"userId": "u1"}"#, Code::Invalid),
            (br#"{"userId": "u1", "couponId": "no/slash"}"#, Code::Invalid),
            (br#"{"userId": "u1", "couponId": "summer", "more": 1}"#, Code::Invalid),
            (br#"{"userId": 1, "couponId": "summer"}"#, Code::Invalid),
        ];
        for (body, code) in wrong {
            assert_eq!(request(body).unwrap_err().code, code, "{}", String::from_utf8_lossy(body));
        }
    }
}
