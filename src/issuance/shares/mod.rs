//! The shares of one coupon: moving units from one to another, and finding out whether all are sold out.
//!
//! A unit on its way is an issuance whose user is a share ([`UserId::of_share`](crate::ids::UserId::of_share)):
//!
//! 1. `lend.lua` takes units out of the free ones of the donor's share and queues an issuance for each;
//! 2. the ledger gets a record of each, [`Outcome::Moved`](super::Outcome), under the very index that issuing the unit there
//!    would need: that commits the move;
//! 3. `credit.lua` gives the unit, with one hop more, to the receiver's share, once an id;
//! 4. the donor settles it.
//!
//! Whoever asks for units does all four at once ([`refill`]). If it stops on the way, a worker finds the issuance in the
//! donor's stream and does the rest; what is committed and not credited, the audit of the receiver credits.
//!
//! An empty share says "sold out" only if somebody has looked at all shares lately ([`look`]): at one instant each was
//! empty and nothing was on its way.

mod credit;
mod lend;
mod look;
pub(crate) mod refill;

pub use credit::credit_moved;
pub(crate) use credit::{Credited, credit};
pub use lend::{Lent, lend};
pub use look::{Looked, Sight, look};
pub(crate) use refill::{Refill, Refills};

use crate::ids::IssuanceId;

/// What a share remembers of a move, in the hash of its holders: so that it is counted once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mark {
    /// The unit came here.
    Credited,
    /// The unit left.
    MovedAway,
}

impl Mark {
    /// The field of a move.
    pub(crate) fn field(self, id: IssuanceId) -> Vec<u8> {
        let kind: &[u8] = match self {
            Mark::Credited => b"+",
            Mark::MovedAway => b"-",
        };
        [kind, id.as_bytes()].concat()
    }

    /// Whether a field of the hash of holders is a mark.
    pub(crate) fn is(field: &[u8]) -> bool {
        matches!(field.first(), Some(b'+' | b'-'))
    }
}
