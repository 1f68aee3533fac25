//! The units of a coupon: free, reserved, issued, each exactly one of these; and how many are settled.

use std::collections::HashMap;

use super::AuditAbort;
use super::coupon_audit::{CouponAudit, CouponFindings, FINDINGS_MAX};
use super::figures::figures;
use super::finding::{Finding, FindingKind};
use super::missing_units::SOUGHT_MAX;
use super::queue_snapshot::PAGE;
use super::quiet_moment::QuietMoment;
use super::recheck::Suspicion;
use crate::coupon::MAX_TOTAL;
use crate::coupon::SerialSet;
use crate::ids::IssuanceId;
use crate::issuance::ledger::readable;
use crate::redis::{KeyScan, pipe};

impl CouponAudit<'_> {
    /// The free set against what is issued and in flight, and that every unit is somewhere.
    pub(super) async fn units(&mut self) -> Result<(), AuditAbort> {
        let Some(first) = self.figures else { return Ok(()) };
        let mut holders: HashMap<u32, IssuanceId> = HashMap::new();
        for (id, serial) in self.in_flight.iter().filter(|(_, serial)| **serial > 0) {
            holders.insert(*serial, *id);
        }
        let issued = self.found.issued.take().unwrap_or_else(|| SerialSet::up_to(0));
        let coupons = std::slice::from_ref(&self.coupon.id);
        let now = figures(&self.auditor.partition, &self.keys, coupons).await?;
        // The next serial only grows, so whatever was seen in flight or issued is below it by now.
        let Some(Some(now)) = now.coupons.first() else { return Ok(()) };
        let next = u32::try_from(now.units.next).unwrap_or(u32::MAX);

        let mut free = SerialSet::up_to(MAX_TOTAL);
        let (mut taken, mut unknown) = (Vec::new(), Vec::new());
        let mut scan = KeyScan::new("SSCAN", self.keys.free(&self.coupon.id), PAGE);
        while let Some(page) =
            scan.next::<Vec<Vec<u8>>>(&self.auditor.partition, "read the free units").await?
        {
            for member in page {
                let serial = std::str::from_utf8(&member).ok().and_then(|text| text.parse::<u32>().ok());
                let canonical = serial.filter(|serial| serial.to_string().as_bytes() == member);
                match canonical {
                    Some(serial) if (1..next).contains(&serial) => {
                        let is_taken = issued.contains(serial) || holders.contains_key(&serial);
                        if free.insert(serial) && is_taken && taken.len() < FINDINGS_MAX {
                            taken.push(serial);
                        }
                    }
                    _ if unknown.len() < FINDINGS_MAX => unknown.push(member),
                    _ => self.found.more += 1,
                }
            }
        }
        self.unknown(unknown).await?;
        let above = (next..=self.coupon.total).filter(|serial| issued.contains(*serial));
        taken
            .extend(above.chain(holders.keys().copied().filter(|serial| *serial >= next)).take(FINDINGS_MAX));
        self.taken(taken, &issued, &holders).await?;

        let end = u32::try_from(first.units.next.min(first.units.total + 1)).unwrap_or(u32::MAX);
        let lost = self.found.serials_of(FindingKind::InFlightLost);
        let mut sought: Vec<u32> = (1..end)
            .filter(|serial| !issued.contains(*serial) && !free.contains(*serial))
            .filter(|serial| !holders.contains_key(serial) && !lost.contains(serial))
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
            let serial = text.parse::<u32>().ok().filter(|serial| serial.to_string() == text);
            let known = next.is_none_or(|next| serial.is_some_and(|serial| (1..next).contains(&serial)));
            if is_free && !known {
                let finding =
                    Finding { serial, detail: Some(text), ..self.finding(FindingKind::FreeUnknown) };
                self.found.add([finding]);
            }
        }
        Ok(())
    }

    /// Units that are free, and issued or in flight as well.
    async fn taken(
        &mut self,
        serials: Vec<u32>,
        issued: &SerialSet,
        holders: &HashMap<u32, IssuanceId>,
    ) -> Result<(), AuditAbort> {
        let mut suspicions = Vec::new();
        for serial in &serials {
            if let Some(id) = holders.get(serial) {
                let suspicion = Suspicion::of(FindingKind::SerialFreeAndInFlight, *id);
                suspicions.push(Suspicion { serial: Some(*serial), ..suspicion });
            }
        }
        let serials: Vec<_> = serials.into_iter().filter(|serial| issued.contains(*serial)).collect();
        for chunk in serials.chunks(PAGE) {
            let holders = self.auditor.ledger.holders_of(&self.coupon.id, chunk).await?;
            for held in holders.into_iter().filter_map(readable) {
                suspicions.push(Suspicion {
                    user: Some(held.user),
                    serial: Some(held.serial),
                    ..Suspicion::of(FindingKind::SerialFreeAndIssued, held.id)
                });
            }
        }
        let confirmed = self.confirm(suspicions).await?;
        self.add(&confirmed);
        Ok(())
    }

    /// Units that are nowhere. Where records are missing, or do not say which unit they hold, the units may
    /// be theirs.
    fn leaked(&mut self, serials: Vec<u32>) {
        let nameless = usize::try_from(self.found.nameless).unwrap_or(usize::MAX);
        if serials.len() <= nameless {
            return;
        }
        let missing = self.found.findings.iter_mut().filter(|found| found.kind == FindingKind::RecordMissing);
        let missing: Vec<_> = missing.collect();
        if serials.len() > missing.len().saturating_add(nameless) {
            let kept = (!missing.is_empty() || nameless > 0)
                .then(|| "kept back: it may belong to a record that is missing or cannot be read".to_owned());
            let leaked = serials.iter().map(|serial| Finding {
                serial: Some(*serial),
                detail: kept.clone(),
                ..Finding::new(FindingKind::SerialLeaked, Some(&self.coupon.id))
            });
            let leaked: Vec<_> = leaked.collect();
            self.found.add(leaked);
            return;
        }
        let all = serials.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
        let alone = serials.len() == 1 && missing.len() == 1;
        for found in missing {
            if alone {
                found.serial = serials.first().copied();
            } else if !serials.is_empty() {
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
        let units = UnitCounters { total: 100, next: 11, settled, free: 0 };
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
