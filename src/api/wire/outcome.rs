//! The feed of outcomes on the wire: lines of JSON.

use bytes::{BufMut, Bytes, BytesMut};
use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use crate::issuance::ledger::follow::{FollowPosition, FollowedDecision, FollowedRecord};
use crate::issuance::{Decision, Outcome};

/// One line of the feed: what was decided. Its last line is an [`OutcomesEnd`].
#[derive(Debug, Serialize, ToSchema)]
#[serde(tag = "outcome", rename_all = "camelCase")]
pub(crate) enum OutcomeLine {
    Issued {
        #[serde(flatten)]
        decided: Decided,
        /// The number of the unit, from 1 to the coupon's total.
        #[schema(example = 17)]
        serial: u32,
        /// Which of the user's units of this coupon it is, from 1.
        #[schema(example = 1)]
        nth: u8,
    },
    Rejected {
        #[serde(flatten)]
        decided: Decided,
        /// `already-issued`, `sold-out` or `discarded`.
        #[schema(example = "already-issued")]
        reason: &'static str,
    },
    /// Something was decided, and its record is damaged: ask an operator.
    Unreadable {
        /// Go on after this line with it.
        after: String,
        /// The issuance, as far as it can be told.
        id: String,
    },
}

/// What every decision has.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Decided {
    /// Go on after this line with it.
    #[schema(example = "gmWg_wAAAAE")]
    after: String,
    /// The issuance. Deliveries may repeat: this tells.
    #[schema(format = Uuid)]
    id: String,
    #[schema(example = "summer")]
    coupon_id: String,
    #[schema(example = "u1")]
    user_id: String,
    #[schema(value_type = String, format = DateTime)]
    accepted_at: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    decided_at: Timestamp,
}

/// The last line of an answer that is whole.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct OutcomesEnd {
    /// Always true; no other line has this member.
    #[schema(example = true)]
    end: bool,
    /// Where to go on.
    #[schema(example = "gmWg_wAAAAE")]
    after: String,
}

impl OutcomeLine {
    fn new(followed: FollowedDecision) -> Self {
        let after = followed.after.to_string();
        match followed.what {
            FollowedRecord::Unreadable(unreadable) => {
                OutcomeLine::Unreadable { after, id: unreadable.record }
            }
            FollowedRecord::Decided(decision) => match decision.outcome {
                Outcome::Issued { unit, nth } => {
                    let decided = Decided::new(after, &decision);
                    OutcomeLine::Issued { decided, serial: unit.serial(), nth }
                }
                // It is not followed.
                Outcome::Moved { .. } => OutcomeLine::Unreadable { after, id: decision.id.to_string() },
                Outcome::Rejected { reason, .. } => {
                    OutcomeLine::Rejected { decided: Decided::new(after, &decision), reason: reason.as_str() }
                }
            },
        }
    }
}

impl Decided {
    fn new(after: String, decision: &Decision) -> Self {
        Decided {
            after,
            id: decision.id.to_string(),
            coupon_id: decision.coupon.to_string(),
            user_id: decision.user.to_string(),
            accepted_at: decision.accepted_at,
            decided_at: decision.decided_at,
        }
    }
}

/// The lines of an answer, the last of them naming the place to go on from.
///
/// # Errors
/// An outcome cannot be serialised.
pub(crate) fn lines(read: Vec<FollowedDecision>, place: &FollowPosition) -> serde_json::Result<Bytes> {
    let mut out = BytesMut::new().writer();
    for followed in read {
        serde_json::to_writer(&mut out, &OutcomeLine::new(followed))?;
        out.get_mut().put_u8(b'\n');
    }
    serde_json::to_writer(&mut out, &OutcomesEnd { end: true, after: place.to_string() })?;
    out.get_mut().put_u8(b'\n');
    Ok(out.into_inner().freeze())
}
