//! Units that were moved between the shares of a coupon: Redis must have each where the ledger says that it is.

use super::AuditAbort;
use super::coupon_audit::CouponAudit;
use super::finding::{Finding, FindingKind};
use super::recheck::SETTLING;
use super::{Auditor, Bracket};
use crate::Failure;
use crate::coupon::{Coupon, UnitSet};
use crate::ids::{IssuanceId, Share, Shares, Unit, UserId};
use crate::issuance::ledger::{MovedUnit, parted, readable};
use crate::issuance::lookup::read_in_flight;
use crate::issuance::shares::{Mark, without_mark};

impl CouponAudit<'_> {
    /// Makes room in `occupied` for what was moved here, adds what was moved away, and finds the moves that Redis does
    /// not have.
    pub(super) async fn moves(&mut self, shares: &Shares, occupied: &mut UnitSet) -> Result<(), AuditAbort> {
        if self.share == Share::WHOLE {
            return Ok(());
        }
        let (ledger, coupon, here) = (&self.auditor.ledger, &self.coupon.id, self.auditor.partition.id());
        let (mut uncredited, mut uncounted) = (Vec::new(), Vec::new());
        let mut arrived = ledger.moved_to(coupon, shares, here).await?;
        loop {
            let page = arrived.next().await?;
            if page.is_empty() {
                break;
            }
            let page: Vec<_> = page.into_iter().filter_map(readable).collect();
            page.iter().filter_map(|moved| moved.unit.moved()).for_each(|unit| occupied.arrive(unit));
            uncredited.extend(self.without_mark(Mark::Credited, page).await?);
        }
        let mut left = ledger.moved_away(coupon).await?;
        loop {
            let page = left.next().await?;
            if page.is_empty() {
                break;
            }
            let (mut page, unreadable) = parted(page);
            // Its unit is out of stock, whether it says which or not: given back, it would be issued here and where it went.†
            self.unreadable(unreadable, occupied);
            for moved in &page {
                occupied.insert(moved.unit);
                if moved.to == here || shares.of(moved.to).is_none() {
                    self.found.add([Finding {
                        unit: Some(moved.unit),
                        issuances: vec![moved.id],
                        detail: Some(format!("its to, {}, is no other share of the coupon", moved.to)),
                        ..self.finding(FindingKind::RecordUnreadable)
                    }]);
                }
            }
            page.retain(|moved| !self.in_flight.contains_key(&moved.id));
            uncounted.extend(self.without_mark(Mark::MovedAway, page).await?);
        }
        if uncredited.is_empty() && uncounted.is_empty() {
            return Ok(());
        }
        // Whoever moves them goes on well within this.
        tokio::time::sleep(SETTLING).await;
        for moved in self.without_mark(Mark::Credited, uncredited).await? {
            let finding = Finding {
                unit: moved.unit.moved(),
                issuances: vec![moved.id],
                ..self.finding(FindingKind::MoveNotCredited)
            };
            self.found.add([finding]);
        }
        let ids: Vec<IssuanceId> = uncounted.iter().map(|moved| moved.id).collect();
        let in_flight = read_in_flight(&self.auditor.partition, &ids).await?;
        let settled = uncounted.into_iter().zip(in_flight).filter(|(_, held)| matches!(held, Ok(None)));
        let settled = settled.map(|(moved, _)| moved).collect();
        for moved in self.without_mark(Mark::MovedAway, settled).await? {
            let finding = Finding {
                unit: Some(moved.unit),
                issuances: vec![moved.id],
                user: Some(UserId::of_share(moved.to)),
                ..self.finding(FindingKind::MoveNotCounted)
            };
            self.found.add([finding]);
        }
        Ok(())
    }

    /// Those of some moves that Redis has no mark of; none if the coupon is not loaded.
    async fn without_mark(&self, mark: Mark, moves: Vec<MovedUnit>) -> Result<Vec<MovedUnit>, AuditAbort> {
        if self.figures.is_none() {
            return Ok(Vec::new());
        }
        Ok(without_mark(&self.auditor.partition, &self.keys, &self.coupon.id, mark, moves).await?)
    }
}

impl Auditor {
    /// Whether the ledger has moved more units to this share of a coupon than it has been credited with.
    pub(super) async fn awaits_units(&self, coupon: &Coupon, bracket: &Bracket) -> Result<bool, Failure> {
        if coupon.shares.count() == 1 {
            return Ok(false);
        }
        let moved = self.ledger.moved_counts(&coupon.id, &coupon.shares).await?;
        Ok(moved.get(&self.partition.id()).copied().unwrap_or(0) > bracket.after.units.credited)
    }

    /// Whether the ledger has the move by which a unit came to this partition.
    pub(super) async fn has_arrived(&self, coupon: &Coupon, unit: Unit) -> Result<bool, Failure> {
        let (here, units) = (self.partition.id(), [unit]);
        Ok(!self.ledger.arrived_among(&coupon.id, &coupon.shares, here, &units).await?.is_empty())
    }
}
