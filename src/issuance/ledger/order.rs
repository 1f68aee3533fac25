//! The order in which decisions are inserted.
//!
//! To find out whether a unit is taken, MongoDB looks for its nearest neighbours in the unique index and
//! walks over every key that its snapshot does not see. Units are handed out in a row, so next to a batch
//! stand the keys of the batches that are inserted at the same time, all of them unseen. A key between
//! two of the same batch has neighbours that are seen: so the highest unit of a coupon goes first, then
//! the others from the lowest up. With 16 inserts at once, of 500 each, mongod took 27 µs of processor time
//! for a document where in plain order it took 175, and skipped 10 keys for it instead of 3,000.

use crate::issuance::{Decision, Outcome};

/// The places of `decisions`, in the order in which to insert them.
pub(super) fn places(decisions: &[Decision]) -> Vec<usize> {
    let unit = |place: &usize| match decisions[*place].outcome {
        Outcome::Issued { unit, .. } | Outcome::Moved { unit, .. } => {
            (&decisions[*place].coupon, unit.number())
        }
        Outcome::Rejected { .. } => (&decisions[*place].coupon, 0),
    };
    let mut places: Vec<usize> = (0..decisions.len()).collect();
    places.sort_by_key(unit);
    for one_coupon in places.chunk_by_mut(|one, other| unit(one).0 == unit(other).0) {
        arrange(one_coupon);
    }
    places
}

/// Brings what is in the order of its units, all of one coupon, into the order of inserts.
pub(crate) fn arrange<T>(by_unit: &mut [T]) {
    if !by_unit.is_empty() {
        by_unit.rotate_right(1);
    }
}
