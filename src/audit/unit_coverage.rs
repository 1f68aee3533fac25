//! The units of a coupon: free, reserved, issued, each exactly one of these; and how many are settled.

use std::collections::{HashMap, HashSet};

use super::AuditAbort;
use super::coupon_audit::{CouponAudit, CouponFindings, FINDINGS_MAX};
use super::figures::figures;
use super::finding::{Finding, FindingKind};
use super::missing_units::SOUGHT_MAX;
use super::queue_snapshot::PAGE;
use super::quiet_moment::QuietMoment;
use super::recheck::Suspicion;
use crate::coupon::MAX_TOTAL;
use crate::coupon::UnitSet;
use crate::ids::{IssuanceId, Unit};
use crate::issuance::ledger::readable;
use crate::redis::{KeyScan, pipe};

impl CouponAudit<'_> {
    /// The free set against what is issued and in flight, and that every unit is somewhere.
    pub(super) async fn units(&mut self) -> Result<(), AuditAbort> {
        let Some(first) = self.figures else { return Ok(()) };
        let held = self.in_flight.iter().filter_map(|(id, unit)| Some(((*unit)?, *id)));
        let holders: HashMap<Unit, IssuanceId> = held.collect();
        let issued = self.found.occupied.take().unwrap_or_else(|| UnitSet::of(self.share, 0));
        let coupons = std::slice::from_ref(&self.coupon.id);
        let now = figures(&self.auditor.partition, &self.keys, coupons).await?;
        // The next serial only grows, so whatever was seen in flight or issued is below it by now.
        let Some(Some(now)) = now.coupons.first() else { return Ok(()) };
        let next = u32::try_from(now.units.next).unwrap_or(u32::MAX);

        let mut free = UnitSet::of(self.share, MAX_TOTAL);
        issued.arrived().for_each(|unit| free.arrive(unit));
        let (mut taken, mut unknown) = (Vec::new(), Vec::new());
        let mut scan = KeyScan::new("SSCAN", self.keys.free(&self.coupon.id), PAGE);
        while let Some(page) =
            scan.next::<Vec<Vec<u8>>>(&self.auditor.partition, "read the free units").await?
        {
            for member in page {
                let unit = std::str::from_utf8(&member).ok().and_then(|text| text.parse::<Unit>().ok());
                match unit {
                    Some(unit) if free.has_room_for(unit) && (unit.hop() > 0 || unit.serial() < next) => {
                        let is_taken = issued.contains(unit) || holders.contains_key(&unit);
                        if free.insert(unit) && is_taken && taken.len() < FINDINGS_MAX {
                            taken.push(unit);
                        }
                    }
                    _ if unknown.len() < FINDINGS_MAX => unknown.push(member),
                    _ => self.found.more += 1,
                }
            }
        }
        self.unknown(unknown).await?;
        let is_above = |unit: &Unit| unit.hop() == 0 && unit.serial() >= next;
        let above =
            issued.born_below(self.coupon.total + 1).filter(|unit| is_above(unit) && issued.contains(*unit));
        taken.extend(above.chain(holders.keys().copied().filter(is_above)).take(FINDINGS_MAX));
        self.taken(taken, &issued, &holders).await?;

        let end = u32::try_from(first.units.next.min(first.units.total + 1)).unwrap_or(u32::MAX);
        let lost = self.found.units_of(FindingKind::InFlightLost);
        let in_transit = self.found.units_of(FindingKind::MoveNotCredited);
        let arrived = issued.arrived().filter(|unit| !in_transit.contains(unit));
        let mut sought: Vec<Unit> = issued
            .born_below(end)
            .chain(arrived)
            .filter(|unit| !issued.contains(*unit) && !free.contains(*unit))
            .filter(|unit| !holders.contains_key(unit) && !lost.contains(unit))
            .take(SOUGHT_MAX + 1)
            .collect();
        if sought.len() > SOUGHT_MAX {
            sought.truncate(SOUGHT_MAX);
            self.found.more += 1;
        }
        let leaked = self.auditor.missing_units(&self.keys, &self.coupon.id, sought).await?;
        self.leaked(leaked);
        Ok(())
    }

    /// Members of the free set that are no unit, or would be handed out by the counter as well.
    async fn unknown(&mut self, members: Vec<Vec<u8>>) -> Result<(), AuditAbort> {
        for member in members {
            let (next, is_free): (Option<u32>, bool) = self
                .auditor
                .partition
                .query_all(
                    "read the free set",
                    pipe()
                        .atomic()
                        .cmd("HGET")
                        .arg(self.keys.coupon(&self.coupon.id))
                        .arg("next")
                        .cmd("SISMEMBER")
                        .arg(self.keys.free(&self.coupon.id))
                        .arg(&member),
                )
                .await?;
            let text = String::from_utf8_lossy(&member).into_owned();
            let unit = text.parse::<Unit>().ok();
            let known = match (next, unit) {
                (None, _) => true,
                (Some(_), None) => false,
                (Some(_), Some(unit)) if unit.hop() > 0 => {
                    self.auditor.has_arrived(self.coupon, unit).await?
                }
                (Some(next), Some(unit)) => self.share.bears(unit) && unit.serial() < next,
            };
            if is_free && !known {
                let finding = Finding { unit, detail: Some(text), ..self.finding(FindingKind::FreeUnknown) };
                self.found.add([finding]);
            }
        }
        Ok(())
    }

    /// Units that are free, and issued or in flight as well.
    async fn taken(
        &mut self,
        units: Vec<Unit>,
        issued: &UnitSet,
        holders: &HashMap<Unit, IssuanceId>,
    ) -> Result<(), AuditAbort> {
        let mut suspicions = Vec::new();
        for unit in &units {
            if let Some(id) = holders.get(unit) {
                let suspicion = Suspicion::of(FindingKind::SerialFreeAndInFlight, *id);
                suspicions.push(Suspicion { unit: Some(*unit), ..suspicion });
            }
        }
        let units: Vec<_> = units.into_iter().filter(|unit| issued.contains(*unit)).collect();
        for chunk in units.chunks(PAGE) {
            let holders = self.auditor.ledger.holders_of(&self.coupon.id, chunk).await?;
            let mut held_by = HashSet::new();
            for held in holders.into_iter().filter_map(readable) {
                held_by.insert(held.id);
                suspicions.push(Suspicion {
                    user: Some(held.user),
                    unit: Some(held.unit),
                    ..Suspicion::of(FindingKind::SerialFreeAndIssued, held.id)
                });
            }
            // Those that were moved away.
            let occupants = self.auditor.ledger.occupants(&self.coupon.id, chunk).await?;
            let moved = occupants.into_iter().filter_map(readable).filter(|(id, _)| !held_by.contains(id));
            suspicions.extend(moved.map(|(id, unit)| Suspicion {
                unit: Some(unit),
                ..Suspicion::of(FindingKind::SerialFreeAndIssued, id)
            }));
        }
        let confirmed = self.confirm(suspicions).await?;
        self.add(&confirmed);
        Ok(())
    }

    /// Units that are nowhere. Where records are missing, or do not say which unit they hold, the units may
    /// be theirs.
    fn leaked(&mut self, units: Vec<Unit>) {
        let nameless = usize::try_from(self.found.nameless).unwrap_or(usize::MAX);
        if units.len() <= nameless {
            return;
        }
        let missing = self.found.findings.iter_mut().filter(|found| found.kind == FindingKind::RecordMissing);
        let missing: Vec<_> = missing.collect();
        if units.len() > missing.len().saturating_add(nameless) {
            let kept = (!missing.is_empty() || nameless > 0)
                .then(|| "kept back: it may belong to a record that is missing or cannot be read".to_owned());
            let leaked = units.iter().map(|unit| Finding {
                unit: Some(*unit),
                detail: kept.clone(),
                ..Finding::new(FindingKind::SerialLeaked, Some(&self.coupon.id))
            });
            let leaked: Vec<_> = leaked.collect();
            self.found.add(leaked);
            return;
        }
        let all = units.iter().map(|unit| unit.serial().to_string()).collect::<Vec<_>>().join(", ");
        let alone = units.len() == 1 && missing.len() == 1;
        for found in missing {
            if alone {
                found.unit = units.first().copied();
            } else if !units.is_empty() {
                found.detail = Some(format!("its unit is one of {all}"));
            }
        }
    }

    /// How many are settled, if a quiet moment can be found.
    pub(super) async fn count(&mut self) -> Result<(), AuditAbort> {
        let Some(quiet) = self.auditor.quiet_moment(&self.keys, &self.coupon.id).await? else {
            return Ok(());
        };
        self.found.counted = true;
        if let Some(drift) = count_drift(&quiet, &self.found) {
            self.found.add([Finding { detail: Some(drift), ..self.finding(FindingKind::CountDrifted) }]);
        }
        Ok(())
    }
}

/// How many units are settled by Redis and by the ledger, if the findings about the coupon do not explain that the
/// two differ.
fn count_drift(quiet: &QuietMoment, found: &CouponFindings) -> Option<String> {
    // What is not counted may have been adopted meanwhile; of an orphan it cannot be determined.
    let settled_by_ledger = quiet.issued.saturating_sub(quiet.issued_in_flight);
    let least = (settled_by_ledger + found.missing).saturating_sub(found.not_counted + found.orphans);
    // A record that names no unit is not among the issued ones, and may have been settled.
    let most = settled_by_ledger + found.missing + found.nameless;
    let settled = quiet.figures.units.settled;
    (settled < least || settled > most).then(|| format!("{settled} settled, {settled_by_ledger} issued"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::CouponFigures;
    use crate::coupon::UnitCounters;

    /// Ten units are issued, two of them still in flight.
    fn quiet(settled: u64) -> QuietMoment {
        let units = UnitCounters { total: 100, next: 11, settled, ..UnitCounters::default() };
        let figures = CouponFigures { units, generation: 1 };
        QuietMoment { figures, accepted: 10, issued: 10, issued_in_flight: 2, in_flight: 2 }
    }

    #[test]
    fn a_count_has_drifted_if_no_finding_explains_it() {
        let none = CouponFindings::default();
        assert_eq!(count_drift(&quiet(8), &none), None);
        assert_eq!(count_drift(&quiet(7), &none).as_deref(), Some("7 settled, 8 issued"));
        assert!(count_drift(&quiet(9), &none).is_some());
        let not_counted = CouponFindings { not_counted: 1, ..CouponFindings::default() };
        assert_eq!(count_drift(&quiet(7), &not_counted), None, "it may have been adopted meanwhile, or not");
        assert_eq!(count_drift(&quiet(8), &not_counted), None);
        let missing = CouponFindings { missing: 1, ..CouponFindings::default() };
        assert_eq!(count_drift(&quiet(9), &missing), None, "Redis counts a record that is gone");
        assert!(count_drift(&quiet(8), &missing).is_some());
        let nameless = CouponFindings { nameless: 1, ..CouponFindings::default() };
        assert_eq!(count_drift(&quiet(9), &nameless), None, "a record without a unit may have been settled");
    }
}
