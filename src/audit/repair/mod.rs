//! Repairing one finding. Each script reads again, in the moment of its write, all that makes the write
//! right; so a repair may be raced by requests, workers, recoveries and other repairs.

use super::adopt::{AdoptOutcome, CALLS_MAX, UNITS_A_CALL, adopt};
use super::finding::{Finding, FindingKind};
use super::{AuditAbort, Auditor};
use crate::Failure;
use crate::ids::{CouponId, IssuanceId, Unit};
use crate::issuance::Outcome;
use crate::issuance::lookup::read_in_flight;
use crate::issuance::reassign::{Reassigned, reassign};
use crate::issuance::shares::{Credited, credit};
use crate::redis::keys::{EpochKeys, GROUP};
use crate::redis::{Call, EpochBound, LuaScript};

macro_rules! scripts {
    ($($name:ident $file:literal;)*) => {
        $(static $name: LuaScript = LuaScript::new(include_str!($file));)*
    };
}

scripts! {
    BEGIN "begin.lua";
    RELEASE "release.lua";
    RECOUNT "recount.lua";
    TAKE "take.lua";
    DISCARD "discard.lua";
    PUT_BACK "put_back.lua";
    DROP "drop.lua";
    UNCOUNT "uncount.lua";
}

/// The outcome of repairing a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RepairOutcome {
    Repaired,
    /// The finding has changed since it was made, or too much goes on: audit again.
    Retry,
    /// The coupon misses records, and the unit may be theirs.
    Withheld,
    /// A person must decide what to do.
    NeedsPerson,
}

/// The right to repair one coupon, until another repair begins.
pub(super) struct CouponRepair<'a> {
    auditor: &'a Auditor,
    keys: EpochKeys,
    coupon: &'a CouponId,
    token: String,
}

impl<'a> CouponRepair<'a> {
    /// Begins a repair; `None` if the coupon is not loaded.
    pub(super) async fn begin(
        auditor: &'a Auditor,
        keys: &EpochKeys,
        coupon: &'a CouponId,
    ) -> Result<Option<CouponRepair<'a>>, AuditAbort> {
        let repair = CouponRepair { auditor, keys: keys.clone(), coupon, token: crate::ids::random_id() };
        let begun = repair
            .call(&BEGIN, |keys, call| {
                call.key(keys.coupon(coupon)).arg(&repair.token);
            })
            .await?;
        Ok((begun == "begun").then_some(repair))
    }

    /// Repairs what can be repaired of one coupon's findings. Returns what became of each, in their order.
    pub(super) async fn repair(&mut self, findings: &[Finding]) -> Result<Vec<RepairOutcome>, AuditAbort> {
        let missing = findings
            .iter()
            .any(|finding| finding.kind == FindingKind::RecordMissing || finding.may_hold_any_unit());
        let leaked: Vec<Unit> = findings
            .iter()
            .filter(|finding| finding.kind == FindingKind::SerialLeaked)
            .filter_map(|finding| finding.unit)
            .collect();
        let released = if missing { RepairOutcome::Withheld } else { self.release(&leaked).await? };
        let mut outcomes = Vec::with_capacity(findings.len());
        for finding in findings {
            outcomes.push(match finding.kind {
                FindingKind::SerialLeaked => released,
                _ => self.repair_finding(finding).await?,
            });
        }
        Ok(outcomes)
    }

    async fn repair_finding(&self, finding: &Finding) -> Result<RepairOutcome, AuditAbort> {
        let (id, user) = (finding.issuances.first().copied(), finding.user.as_ref());
        Ok(match (finding.kind, id, user, finding.unit) {
            (FindingKind::MoveNotCredited, Some(id), _, Some(unit)) => {
                let credited = credit(&self.auditor.partition, self.coupon, &[(id, unit)]).await?;
                repaired_if(credited != Credited::NotLoaded)
            }
            (
                FindingKind::RecordNotCounted | FindingKind::MoveNotCounted,
                Some(id),
                Some(user),
                Some(unit),
            ) => match adopt(&self.auditor.partition, &self.keys, self.coupon, id, user, unit).await? {
                AdoptOutcome::Now | AdoptOutcome::Before => RepairOutcome::Repaired,
                AdoptOutcome::InFlight | AdoptOutcome::NotLoaded | AdoptOutcome::BeyondTotal => {
                    RepairOutcome::Retry
                }
            },
            (FindingKind::SerialFreeAndIssued, _, _, Some(unit)) => {
                take(self.auditor, &self.keys, self.coupon, unit, None).await?
            }
            (FindingKind::SerialFreeAndInFlight, Some(id), _, Some(unit)) => {
                take(self.auditor, &self.keys, self.coupon, unit, Some(id)).await?
            }
            (
                FindingKind::SerialInFlightTwice | FindingKind::SerialInFlightAndIssued,
                Some(id),
                _,
                Some(unit),
            ) => self.reassign(id, unit).await?,
            (FindingKind::InFlightLost, Some(id), ..) => self.put_back(finding, id).await?,
            (FindingKind::EntryOrphaned, Some(id), ..) => self.drop_entry(finding, id).await?,
            (FindingKind::RejectionCounted | FindingKind::LendingCounted, Some(id), Some(user), _) => {
                let done = self.call(&UNCOUNT, |keys, call| {
                    call.key(keys.in_flight()).key(keys.coupon(self.coupon)).key(keys.holders(self.coupon));
                    call.arg(id.as_bytes().as_slice()).arg(user.as_str()).arg(u8::from(id.is_keyed()));
                });
                repaired_if(done.await? == "uncounted")
            }
            (FindingKind::FreeUnknown, ..) => {
                let member = finding.detail.as_deref().unwrap_or_default();
                let done = self.call(&DISCARD, |keys, call| {
                    call.key(keys.coupon(self.coupon)).key(keys.free(self.coupon)).arg(member);
                });
                repaired_if(done.await? == "discarded")
            }
            (FindingKind::CountDrifted, ..) => self.recount().await?,
            (FindingKind::CouponBehind, ..) => {
                let coupon = self.auditor.coupons.get(self.coupon).await?;
                repaired_if(self.auditor.catch_up(coupon.as_slice()).await?)
            }
            // A full audit settles it.
            (FindingKind::DecidedInFlight, ..) => RepairOutcome::Retry,
            _ => RepairOutcome::NeedsPerson,
        })
    }

    /// Gives units back that are nowhere.
    async fn release(&mut self, units: &[Unit]) -> Result<RepairOutcome, AuditAbort> {
        for chunk in units.chunks(UNITS_A_CALL as usize) {
            let next = crate::ids::random_id();
            let done = self.call(&RELEASE, |keys, call| {
                call.key(keys.coupon(self.coupon)).key(keys.free(self.coupon));
                call.arg(&self.token).arg(&next);
                for unit in chunk {
                    call.arg(unit.number());
                }
            });
            if done.await? != "released" {
                return Ok(RepairOutcome::Retry);
            }
            self.token = next;
        }
        Ok(RepairOutcome::Repaired)
    }

    async fn recount(&self) -> Result<RepairOutcome, AuditAbort> {
        let quiet = self.auditor.quiet_moment(&self.keys, self.coupon).await?;
        let Some(quiet) = quiet.filter(|quiet| quiet.in_flight == 0) else { return Ok(RepairOutcome::Retry) };
        let done = self.call(&RECOUNT, |keys, call| {
            call.key(keys.counters()).key(keys.coupon(self.coupon)).key(keys.free(self.coupon));
            call.arg(&self.token)
                .arg(quiet.accepted)
                .arg(quiet.figures.units.next)
                .arg(quiet.figures.units.free);
            call.arg(quiet.figures.units.settled).arg(quiet.issued);
        });
        Ok(repaired_if(done.await? == "counted"))
    }

    async fn reassign(&self, id: IssuanceId, old: Unit) -> Result<RepairOutcome, AuditAbort> {
        let found = read_in_flight(&self.auditor.partition, &[id]).await?.pop().transpose()?.flatten();
        let Some((held, _)) = found else { return Ok(RepairOutcome::Retry) };
        let partition = &self.auditor.partition;
        let done = reassign(partition, &self.keys, self.coupon, id, &held.entry, Some(old)).await?;
        Ok(repaired_if(matches!(done, Reassigned::To(_))))
    }

    async fn put_back(&self, finding: &Finding, id: IssuanceId) -> Result<RepairOutcome, AuditAbort> {
        let Some(entry) = &finding.entry else { return Ok(RepairOutcome::Retry) };
        let in_flight = self.auditor.in_flight_of(&self.keys, self.coupon).await?;
        let its_own = match finding.unit {
            Some(unit) if in_flight.values().all(|other| *other != Some(unit)) => {
                self.auditor.ledger.occupants(self.coupon, &[unit]).await?.is_empty()
            }
            _ => false,
        };
        let done = self.call(&PUT_BACK, |keys, call| {
            call.key(keys.stream()).key(keys.in_flight()).key(keys.counters()).key(keys.coupon(self.coupon));
            call.key(keys.holders(self.coupon)).key(keys.free(self.coupon));
            call.arg(id.as_bytes().as_slice()).arg(entry).arg(u8::from(its_own)).arg(GROUP);
        });
        Ok(match done.await?.as_str() {
            "put back" => RepairOutcome::Repaired,
            // Redis remembers no promise to its user, so whether to put it back cannot be determined.
            "strange" => RepairOutcome::NeedsPerson,
            _ => RepairOutcome::Retry,
        })
    }

    async fn drop_entry(&self, finding: &Finding, id: IssuanceId) -> Result<RepairOutcome, AuditAbort> {
        let Some(entry) = &finding.entry else { return Ok(RepairOutcome::Retry) };
        let Some(decision) = self.auditor.ledger.decisions(&[id]).await?.remove(&id) else {
            return Ok(RepairOutcome::Retry);
        };
        // A decision that cannot be read is left to a person.
        let Ok(decision) = decision else { return Ok(RepairOutcome::NeedsPerson) };
        if let Outcome::Issued { unit, .. } | Outcome::Moved { unit, .. } = decision.outcome {
            adopt(&self.auditor.partition, &self.keys, self.coupon, id, &decision.user, unit).await?;
        }
        let done = self.call(&DROP, |keys, call| {
            call.key(keys.stream()).key(keys.in_flight()).key(keys.dead());
            call.arg(GROUP).arg(entry).arg(id.as_bytes().as_slice());
        });
        Ok(repaired_if(done.await? == "dropped"))
    }

    async fn call(
        &self,
        script: &LuaScript,
        build: impl Fn(&EpochKeys, &mut Call) + Sync,
    ) -> Result<String, AuditAbort> {
        call(self.auditor, &self.keys, script, build).await
    }
}

async fn call(
    auditor: &Auditor,
    keys: &EpochKeys,
    script: &LuaScript,
    build: impl Fn(&EpochKeys, &mut Call) + Sync,
) -> Result<String, AuditAbort> {
    match auditor.partition.call_in_epoch(keys, script, "repair the accounts", build).await? {
        EpochBound::Epoch(mut reply) => reply.text().map_err(AuditAbort::Failed),
        EpochBound::AnotherEpoch => Err(AuditAbort::AnotherEpoch),
    }
}

/// Takes a unit out of the free ones: an issued one, or one in flight for `id`.
async fn take(
    auditor: &Auditor,
    keys: &EpochKeys,
    coupon: &CouponId,
    unit: Unit,
    id: Option<IssuanceId>,
) -> Result<RepairOutcome, AuditAbort> {
    let id = id.map(|id| id.as_bytes().to_vec()).unwrap_or_default();
    for _ in 0..CALLS_MAX {
        let done = call(auditor, keys, &TAKE, |keys, call| {
            call.key(keys.in_flight()).key(keys.coupon(coupon)).key(keys.free(coupon));
            call.arg(unit.number()).arg(id.as_slice()).arg(UNITS_A_CALL);
        });
        match done.await?.as_str() {
            "more" => {}
            done => return Ok(repaired_if(done == "taken")),
        }
    }
    Ok(RepairOutcome::Retry)
}

fn repaired_if(done: bool) -> RepairOutcome {
    if done { RepairOutcome::Repaired } else { RepairOutcome::Retry }
}

/// Repairs what a late insert leaves, and nothing else: counts the record, and takes its unit out of the
/// free ones, where it may be though the record was counted (it was in flight for another issuance then,
/// which has its own in the ledger). Both are right whatever else goes on: issued stays issued.
pub(super) async fn adopt_only(
    auditor: &Auditor,
    keys: &EpochKeys,
    coupon: &CouponId,
    findings: &[Finding],
) -> Result<u64, Failure> {
    let mut adopted = 0;
    for finding in findings {
        let done = match (finding.kind, finding.issuances.as_slice(), &finding.user, finding.unit) {
            (FindingKind::RecordNotCounted | FindingKind::MoveNotCounted, [id], Some(user), Some(unit)) => {
                // A deleted user's record may have got a pseudonym since it was read: then the next audit adopts it.
                let record = auditor.ledger.decisions(std::slice::from_ref(id)).await?.remove(id);
                if !record.is_some_and(|record| record.is_ok_and(|record| record.user == *user)) {
                    continue;
                }
                adopt(&auditor.partition, keys, coupon, *id, user, unit)
                    .await
                    .map(|done| done == AdoptOutcome::Now)
            }
            (FindingKind::MoveNotCredited, [id], _, Some(unit)) => {
                let credited = credit(&auditor.partition, coupon, &[(*id, unit)]).await;
                credited.map(|credited| credited == Credited::Here(1)).map_err(AuditAbort::Failed)
            }
            (FindingKind::SerialFreeAndIssued, _, _, Some(unit)) => {
                take(auditor, keys, coupon, unit, None).await.map(|done| done == RepairOutcome::Repaired)
            }
            _ => continue,
        };
        match done {
            Ok(done) => adopted += u64::from(done),
            // The rebuild has read the ledger.
            Err(AuditAbort::AnotherEpoch) => {}
            Err(AuditAbort::Failed(failure)) => return Err(failure),
        }
    }
    Ok(adopted)
}
