//! Held units on the wire.

use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use crate::coupon::Expiry;
use crate::issuance::Outcome;
use crate::redemption::{HeldCoupon, RedemptionState};

/// A unit of a coupon that a user holds.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct UserCoupon {
    /// The id of the issuance that it came of.
    #[schema(value_type = String, format = Uuid)]
    id: String,
    #[schema(example = "summer")]
    coupon_id: String,
    #[schema(example = "u1")]
    user_id: String,
    /// The number of the unit, from 1 to the coupon's total.
    #[schema(example = 17)]
    serial: u32,
    /// Which of the user's units of this coupon it is, from 1.
    #[schema(example = 1)]
    nth: u8,
    pub status: UserCouponStatus,
    #[schema(value_type = String, format = DateTime)]
    issued_at: Timestamp,
    #[schema(required = true, value_type = Option<String>, format = DateTime)]
    valid_until: Option<Timestamp>,
    #[schema(required = true, value_type = Option<String>, format = DateTime)]
    used_at: Option<Timestamp>,
    /// What it was used for, such as an order's number.
    #[schema(required = true)]
    reference: Option<String>,
}

/// Whether a held unit can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) enum UserCouponStatus {
    Active,
    Used,
    Expired,
    Revoked,
}

impl std::str::FromStr for UserCouponStatus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "active" => Ok(UserCouponStatus::Active),
            "used" => Ok(UserCouponStatus::Used),
            "expired" => Ok(UserCouponStatus::Expired),
            "revoked" => Ok(UserCouponStatus::Revoked),
            _ => Err("must be active, used, expired or revoked".into()),
        }
    }
}

impl UserCoupon {
    /// A held unit as it was read, at the moment that it was.
    pub fn new(held: &HeldCoupon, validity: &Expiry) -> Self {
        let decision = &held.decision;
        let (serial, nth) = match decision.outcome {
            Outcome::Issued { unit, nth } => (unit.serial(), nth),
            Outcome::Rejected { .. } | Outcome::Moved { .. } => (0, 0),
        };
        let valid_until = validity.of(decision.decided_at);
        let (status, used_at, reference) = match &held.redemption.state {
            RedemptionState::Revoked => (UserCouponStatus::Revoked, None, None),
            RedemptionState::Used { at, reference } => {
                (UserCouponStatus::Used, Some(*at), reference.as_ref())
            }
            RedemptionState::Active if valid_until.is_some_and(|end| held.now >= end) => {
                (UserCouponStatus::Expired, None, None)
            }
            RedemptionState::Active => (UserCouponStatus::Active, None, None),
        };
        UserCoupon {
            id: decision.id.to_string(),
            coupon_id: decision.coupon.to_string(),
            user_id: decision.user.to_string(),
            serial,
            nth,
            status,
            issued_at: decision.decided_at,
            valid_until,
            used_at,
            reference: reference.map(ToString::to_string),
        }
    }
}
