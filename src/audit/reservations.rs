//! Redis's side of a coupon: what is queued, and what is counted for each user.

use std::collections::{HashMap, HashSet};

use super::AuditAbort;
use super::coupon_audit::{CouponAudit, SettleMode};
use super::finding::{Finding, FindingKind};
use super::queue_snapshot::PAGE;
use super::recheck::{ConfirmedSuspicion, Suspicion, is_issued};
use crate::ids::{IssuanceId, Unit, UserId};
use crate::issuance::ledger::readable;
use crate::issuance::settle;
use crate::issuance::settle::settle;
use crate::issuance::shares::Mark;
use crate::queue::Entry;
use crate::redis::KeyScan;

impl CouponAudit<'_> {
    /// Stream entries whose issuance was not in flight.
    pub(super) async fn strays(&mut self, strays: Vec<Entry>) -> Result<(), AuditAbort> {
        let suspicions = strays.into_iter().map(|entry| Suspicion {
            user: Some(entry.user),
            unit: entry.unit,
            entry: Some(entry.entry),
            ..Suspicion::of(FindingKind::EntryOrphaned, entry.id)
        });
        let confirmed = self.confirm(suspicions.collect()).await?;
        let orphans = confirmed.iter().filter(|confirmed| {
            let decision = confirmed.decision.as_ref();
            decision.is_some_and(is_issued)
        });
        self.found.orphans = orphans.count() as u64;
        self.add(&confirmed);
        Ok(())
    }

    /// Decisions that Redis does not have, and units in flight that belong to another issuance.
    pub(super) async fn decided(&mut self, settling: SettleMode) -> Result<(), AuditAbort> {
        let ids: Vec<_> = self.in_flight.keys().copied().collect();
        let (mut decided, mut undecided) = (Vec::new(), Vec::new());
        for chunk in ids.chunks(PAGE) {
            let decisions = self.auditor.ledger.decisions(chunk).await?;
            for id in chunk {
                if decisions.contains_key(id) {
                    decided.push(Suspicion::of(FindingKind::DecidedInFlight, *id));
                } else {
                    undecided.push(*id);
                }
            }
        }
        let decided = self.confirm(decided).await?;
        if settling == SettleMode::Settle {
            self.settle(&decided).await?;
        }
        self.add(&decided);

        let mut suspicions = Vec::new();
        let mut first: HashMap<Unit, IssuanceId> = HashMap::new();
        undecided.sort_unstable();
        for id in undecided {
            let Some(unit) = self.in_flight[&id] else { continue };
            let suspect = |kind, second| Suspicion { unit: Some(unit), second, ..Suspicion::of(kind, id) };
            if self.found.occupied.as_ref().is_some_and(|occupied| occupied.contains(unit)) {
                suspicions.push(suspect(FindingKind::SerialInFlightAndIssued, None));
            } else if let Some(other) = first.insert(unit, id) {
                suspicions.push(suspect(FindingKind::SerialInFlightTwice, Some(other)));
            }
        }
        let confirmed = self.confirm(suspicions).await?;
        self.add(&confirmed);
        Ok(())
    }

    async fn settle(&mut self, decided: &[ConfirmedSuspicion]) -> Result<(), AuditAbort> {
        let mut settlements = Vec::new();
        for confirmed in decided {
            let Some(mut settlement) = confirmed.settlement() else { continue };
            let held = self.auditor.ledger.held_by(&self.coupon.id, &settlement.decision.user).await?;
            settlement.holds = held.into_iter().filter_map(readable).collect();
            settlements.push(settlement);
        }
        for batch in settlements.chunks(settle::BATCH_MAX) {
            for settled in settle(&self.auditor.partition, &self.keys, batch).await? {
                match settled {
                    settle::Settled::Now => self.found.settled += 1,
                    settle::Settled::GuardedOff | settle::Settled::Unreadable => {}
                    settle::Settled::AnotherEpoch => return Err(AuditAbort::AnotherEpoch),
                }
            }
        }
        Ok(())
    }

    /// What Redis counts, user by user: each id must be in flight or issued.
    pub(super) async fn holders(&mut self) -> Result<(), AuditAbort> {
        let mut scan = KeyScan::new("HSCAN", self.keys.holders(&self.coupon.id), PAGE);
        let mut seen = HashSet::new();
        // One that still has its stream entry is not missing: it is undecided. A scan may repeat itself.
        let lost = self.found.findings.iter().filter(|found| found.kind == FindingKind::InFlightLost);
        let mut reported: HashSet<IssuanceId> =
            lost.flat_map(|found| found.issuances.iter().copied()).collect();
        while let Some(page) =
            scan.next::<Vec<(Vec<u8>, Vec<u8>)>>(&self.auditor.partition, "read who holds it").await?
        {
            let mut counted = Vec::new();
            for (field, ids) in
                page.into_iter().filter(|(field, _)| !field.starts_with(b"!") && !Mark::is(field))
            {
                let user = std::str::from_utf8(&field).ok().and_then(|user| UserId::of_holder(user).ok());
                let (chunks, rest) = ids.as_chunks::<16>();
                let ids: Option<Vec<_>> = chunks.iter().map(|id| IssuanceId::from_bytes(*id)).collect();
                match (user, ids) {
                    (Some(user), Some(ids)) if rest.is_empty() => {
                        let ids = ids.into_iter().filter(|id| !self.in_flight.contains_key(id));
                        counted.extend(ids.map(|id| (id, user.clone())));
                    }
                    (user, _) => {
                        let detail = Some(format!("{:?}", String::from_utf8_lossy(&field)));
                        let finding =
                            Finding { user, detail, ..self.finding(FindingKind::HoldersUnreadable) };
                        if seen.insert(field) {
                            self.found.add([finding]);
                        }
                    }
                }
            }
            let mut suspicions = Vec::new();
            for chunk in counted.chunks(PAGE) {
                let ids: Vec<_> = chunk.iter().map(|(id, _)| *id).collect();
                let taken = self.auditor.ledger.taken_among(&ids).await?;
                for (id, user) in chunk {
                    let kind = match (taken.contains(id), user.share()) {
                        (false, _) => FindingKind::RecordMissing,
                        // What is settled is on its way no more.
                        (true, Some(_)) => FindingKind::LendingCounted,
                        (true, None) => continue,
                    };
                    suspicions.push(Suspicion { user: Some(user.clone()), ..Suspicion::of(kind, *id) });
                }
            }
            let mut confirmed = self.confirm(suspicions).await?;
            confirmed.retain(|confirmed| reported.insert(confirmed.suspicion.id));
            let missing = confirmed.iter().filter(|confirmed| confirmed.kind == FindingKind::RecordMissing);
            self.found.missing += missing.count() as u64;
            self.add(&confirmed);
        }
        Ok(())
    }
}
