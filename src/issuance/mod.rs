//! One accepted request and its life: `queued`, then `issued` or `rejected`.
//!
//! [`Reservations`] takes a unit and queues the issuance in one script; the [`Ledger`] decides it, once; [`settle`]
//! tells Redis the outcome; [`Lookup`] answers what became of it, and [`Feed`] waits for that.

pub(crate) mod closed_coupon;
mod coupon_index;
pub mod feed;
mod flight;
mod keyed;
pub mod ledger;
pub mod lookup;
mod outcome_metrics;
pub(crate) mod pressure;
pub mod reassign;
pub mod reserve;
pub mod settle;
pub mod shares;
pub(crate) mod trace_parents;

pub(crate) use feed::Feed;
pub use flight::InFlight;
pub use keyed::{IdempotencyKey, KeyTag};
pub use ledger::Ledger;
pub use lookup::Lookup;
pub(crate) use reserve::Reservations;

use jiff::Timestamp;

use crate::ids::{CouponId, IssuanceId, PartitionId, Unit, UserId};

/// The decision about an issuance, made once. The ledger keeps it under the issuance's id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    pub id: IssuanceId,
    pub coupon: CouponId,
    pub user: UserId,
    pub outcome: Outcome,
    /// When the request was accepted, by Redis's clock.
    pub accepted_at: Timestamp,
    /// When the worker wrote the decision, by its own clock.
    pub decided_at: Timestamp,
}

impl Decision {
    /// The unit that was issued.
    pub fn unit(&self) -> Option<Unit> {
        match self.outcome {
            Outcome::Issued { unit, .. } => Some(unit),
            Outcome::Rejected { .. } | Outcome::Moved { .. } => None,
        }
    }

    /// The serial of the unit that was issued.
    pub fn serial(&self) -> Option<u32> {
        self.unit().map(Unit::serial)
    }

    /// Whether an operator discarded the issuance.
    pub(crate) fn is_discarded(&self) -> bool {
        matches!(self.outcome, Outcome::Rejected { reason: Reason::Discarded, .. })
    }
}

/// How an issuance ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Issued {
        /// Its serial is 1 to the coupon's total.
        unit: Unit,
        /// Which of the user's units of this coupon it is: 1 to the limit.
        nth: u8,
    },
    Rejected {
        reason: Reason,
        /// That which was in flight for it, if any.
        unit: Option<Unit>,
        /// Whether that unit is lost: another record holds it, so it is not given back.
        lost: bool,
    },
    /// No request's: a unit left its partition for another share of the coupon.
    Moved {
        /// As the partition that it left knows it.
        unit: Unit,
        to: PartitionId,
    },
}

/// Declares the reasons: name, text on the wire and in the ledger, and what keeps the user's next request from
/// being accepted and rejected again.
macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident $text:literal)*) => {
        /// Why an issuance was rejected.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Reason { $($(#[$doc])* $name,)* }

        impl Reason {
            /// Every reason.
            pub const ALL: &[Reason] = &[$(Reason::$name,)*];

            /// The name on the wire and in the ledger.
            pub fn as_str(self) -> &'static str {
                match self { $(Reason::$name => $text,)* }
            }
        }

        impl std::str::FromStr for Reason {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($text => Ok(Reason::$name),)*
                    _ => Err(format!("{text:?} is no reason of a rejection")),
                }
            }
        }
    };
}

reasons! {
    /// The user holds as many as the limit allows. `settle.lua` writes what the user holds into Redis, so that
    /// `reserve.lua` refuses the next request.
    AlreadyIssued "already-issued"
    /// Its unit was lost to an older record and no other was free. The lost unit is not given back, so that
    /// `reserve.lua` finds none for the next request either.
    SoldOut "sold-out"
    /// An operator discarded it. This says nothing about the user's next request, which may be accepted and issued.
    Discarded "discarded"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_read_as_it_is_written() {
        for reason in Reason::ALL {
            assert_eq!(reason.as_str().parse(), Ok(*reason));
        }
    }
}
