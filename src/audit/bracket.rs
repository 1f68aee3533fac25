//! The bracket: three numbers that must stand in order, read while the system goes on.
//!
//! First what Redis has settled, then what the ledger has issued, then what Redis has out of stock. A
//! unit is out of stock before it is in the ledger, and in the ledger before it is settled; none of
//! these is ever undone for an issued one. So settled (earlier) ≤ issued ≤ out (later), whatever goes on
//! in between. With nothing in flight at the last reading, all that is out must be settled, and issued; with
//! nothing but dead letters, which are undecided, all that is issued must be settled.

use super::figures::{CouponFigures, figures};
use super::{AuditAbort, Auditor};
use crate::Failure;
use crate::ids::CouponId;
use crate::redis::keys::EpochKeys;

/// How often an audit is begun again because another epoch was opened.
pub(super) const EPOCHS_MAX: usize = 5;

/// Three readings of one loaded coupon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bracket {
    /// Settled by Redis, before the ledger was asked.
    pub settled_before: u64,
    /// Issued by the ledger.
    pub issued: u64,
    /// Redis, after the ledger was asked.
    pub after: CouponFigures,
    /// Whether nothing of any coupon was in flight at the last reading.
    pub at_rest: bool,
    /// Whether nothing moved from the first reading to the last, with nothing in flight but dead letters.
    pub only_dead: bool,
}

impl Bracket {
    /// Whether the numbers stand in order.
    pub fn holds(&self) -> bool {
        let in_order = self.settled_before <= self.issued && self.issued <= self.after.units.taken();
        in_order
            && (!self.at_rest || self.after.units.decided() == self.after.units.taken())
            && (!self.only_dead || self.issued == self.after.units.decided())
    }
}

impl Auditor {
    /// Brackets one coupon; `None` if it is not loaded.
    ///
    /// # Errors
    ///
    /// [`Failure::Damaged`] if its figures in Redis cannot be read; else if Redis or MongoDB fails.
    pub async fn bracket(&self, coupon: &CouponId) -> Result<Option<Bracket>, Failure> {
        for _ in 0..EPOCHS_MAX {
            match self.bracket_under(&self.partition.keys(), coupon).await {
                Err(AuditAbort::AnotherEpoch) => {}
                Err(AuditAbort::Failed(failure)) => return Err(failure),
                Ok(bracket) => return Ok(bracket),
            }
        }
        Err(Failure::Uncertified)
    }

    pub(super) async fn bracket_under(
        &self,
        keys: &EpochKeys,
        coupon: &CouponId,
    ) -> Result<Option<Bracket>, AuditAbort> {
        let coupons = std::slice::from_ref(coupon);
        let before = figures(&self.partition, keys, coupons).await?;
        let mut issued = self.ledger.issued_count(coupon).await?;
        if before.coupons.iter().flatten().any(|figures| figures.units.shares > 1) {
            issued += self.ledger.moved_away_count(coupon).await?;
        }
        let after = figures(&self.partition, keys, coupons).await?;
        if let Some((coupon, what)) = before.damaged.first().or(after.damaged.first()) {
            let why = format!("coupon {coupon}: {what}");
            return Err(Failure::Damaged { what: "the figures of the coupon in Redis", why }.into());
        }
        let still = before == after && after.in_flight == after.dead;
        Ok(match (before.coupons.as_slice(), after.coupons.as_slice()) {
            ([Some(before)], [Some(now)]) => Some(Bracket {
                settled_before: before.units.decided(),
                issued,
                after: *now,
                at_rest: after.in_flight == 0,
                only_dead: still,
            }),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coupon::UnitCounters;

    /// A bracket of a coupon of which five units are taken.
    fn bracket(settled_before: u64, issued: u64, settled_after: u64) -> Bracket {
        let units = UnitCounters { total: 10, next: 6, settled: settled_after, ..UnitCounters::default() };
        let after = CouponFigures { units, generation: 1 };
        Bracket { settled_before, issued, after, at_rest: false, only_dead: false }
    }

    #[test]
    fn settled_issued_and_taken_stand_in_order_and_are_the_same_at_rest() {
        assert!(bracket(2, 3, 3).holds() && bracket(5, 5, 5).holds());
        assert!(!bracket(3, 2, 3).holds(), "a record is missing");
        assert!(!bracket(3, 6, 3).holds(), "more is issued than was taken");
        let at_rest = |bracket| Bracket { at_rest: true, ..bracket };
        assert!(at_rest(bracket(5, 5, 5)).holds() && !at_rest(bracket(3, 3, 3)).holds());
        let only_dead = |bracket| Bracket { only_dead: true, ..bracket };
        assert!(only_dead(bracket(3, 3, 3)).holds() && !only_dead(bracket(3, 4, 3)).holds());
    }
}
