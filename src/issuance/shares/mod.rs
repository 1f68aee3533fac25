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

use super::ledger::MovedUnit;
use crate::Failure;
use crate::ids::{CouponId, IssuanceId};
use crate::redis::keys::EpochKeys;
use crate::redis::{Partition, cmd};

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

/// Those of some moves of a coupon that a share has no mark of, in the epoch of `keys`.
///
/// # Errors
///
/// If Redis fails.
pub(crate) async fn without_mark(
    partition: &Partition,
    keys: &EpochKeys,
    coupon: &CouponId,
    mark: Mark,
    moves: Vec<MovedUnit>,
) -> Result<Vec<MovedUnit>, Failure> {
    if moves.is_empty() {
        return Ok(Vec::new());
    }
    let mut command = cmd("HMGET");
    command.arg(keys.holders(coupon));
    for moved in &moves {
        command.arg(mark.field(moved.id));
    }
    let marks: Vec<Option<Vec<u8>>> = partition.query("read which units were moved", &command).await?;
    Ok(moves.into_iter().zip(marks).filter(|(_, mark)| mark.is_none()).map(|(moved, _)| moved).collect())
}
