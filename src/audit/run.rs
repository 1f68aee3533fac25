//! Auditing many coupons, and repairing those that need it.

use super::bracket::EPOCHS_MAX;
use super::coupon_audit::{CouponReport, SettleMode};
use super::finding::{Finding, FindingKind, Severity};
use super::repair::{CouponRepair, RepairOutcome, adopt_only};
use super::{AuditAbort, Auditor};
use crate::Failure;
use crate::coupon::Coupon;
use crate::ids::CouponId;
use crate::redis::keys::EpochKeys;

/// Coupons that share one reading of the queue.
pub const COUPONS_MAX: usize = 200;
/// Repairing one thing may show another (an orphan's unit, once its entry is gone).
const PASSES_MAX: usize = 4;

/// The result of an audit.
#[derive(Debug, Clone, Default)]
pub struct AuditReport {
    pub coupons: Vec<CouponReport>,
    /// Findings that belong to no coupon.
    pub queue: Vec<Finding>,
    /// Findings that a repair repaired, in this order.
    pub repaired: Vec<Finding>,
}

impl AuditReport {
    /// All findings that are left.
    pub fn findings(&self) -> impl Iterator<Item = &Finding> {
        self.queue.iter().chain(self.coupons.iter().flat_map(|audited| &audited.findings))
    }

    /// The worst of them; `None` if there is no damage.
    pub fn worst(&self) -> Option<Severity> {
        let more = self.coupons.iter().any(|audited| audited.more > 0).then_some(Severity::Drift);
        let found = self.findings().map(|finding| finding.kind.severity()).max();
        found.max(more).filter(|severity| *severity > Severity::Passing)
    }
}

impl Auditor {
    /// At most [`COUPONS_MAX`] coupons, newest first, from after one of them.
    ///
    /// # Errors
    ///
    /// If MongoDB fails.
    pub async fn coupons_after(&self, after: Option<&Coupon>) -> Result<Vec<Coupon>, Failure> {
        let after = after.map(|coupon| (coupon.created_at, coupon.id.to_string()));
        let mut page = self.coupons.list(after, COUPONS_MAX).await?;
        // Where none of a page can be read there may be others behind it.
        while let (true, Some(next)) = (page.items.is_empty(), page.next) {
            page = self.coupons.list(Some(next), COUPONS_MAX).await?;
        }
        Ok(page.items)
    }

    /// Brackets those of the coupons that are loaded.
    ///
    /// # Errors
    ///
    /// If Redis or MongoDB fails.
    pub async fn brackets(
        &self,
        coupons: &[Coupon],
        mut done: impl FnMut(&CouponReport),
    ) -> Result<AuditReport, Failure> {
        let mut report = AuditReport::default();
        for coupon in coupons {
            let audited = match self.bracket_twice(coupon).await {
                Ok(Some(audited)) => audited,
                Ok(None) => continue,
                Err(failure) if failure.is_of_one() => CouponReport::aborted(coupon, &failure),
                Err(failure) => return Err(failure),
            };
            done(&audited);
            report.coupons.push(audited);
        }
        let keys = self.partition.keys();
        report.queue = self.without_record(&keys, std::iter::empty()).await?;
        report.queue.extend(self.service_findings(&keys).await?);
        Ok(report)
    }

    /// `None` if it is not loaded.
    async fn bracket_twice(&self, coupon: &Coupon) -> Result<Option<CouponReport>, Failure> {
        let mut bracket = self.bracket(&coupon.id).await?;
        if bracket.is_some_and(|bracket| !bracket.holds()) {
            bracket = self.bracket(&coupon.id).await?;
        }
        let Some(bracket) = bracket else { return Ok(None) };
        let mut audited = CouponReport::of(coupon, Some(bracket));
        if !bracket.holds() {
            audited.findings.push(Finding::new(FindingKind::FiguresDisagree, Some(&coupon.id)));
        }
        match self.missed_change(&self.partition.keys(), &coupon.id).await {
            Ok(missed_change) => audited.findings.extend(missed_change.map(|missed_change| Finding {
                detail: Some(missed_change),
                ..Finding::new(FindingKind::CouponBehind, Some(&coupon.id))
            })),
            // The next audit finds it.
            Err(AuditAbort::AnotherEpoch) => {}
            Err(AuditAbort::Failed(failure)) => return Err(failure),
        }
        Ok(Some(audited))
    }

    /// Audits coupons unit by unit; at most [`COUPONS_MAX`] share one reading of the queue. `done` is
    /// called with each report.
    ///
    /// # Errors
    ///
    /// If Redis or MongoDB fails, or no attempt ended in the epoch in which it began.
    pub async fn full(
        &self,
        coupons: &[Coupon],
        settling: SettleMode,
        mut done: impl FnMut(&CouponReport),
    ) -> Result<AuditReport, Failure> {
        let mut report = AuditReport::default();
        // Without coupons there is still the queue.
        let pages = coupons.chunks(COUPONS_MAX).chain(coupons.is_empty().then_some(coupons));
        for (number, page) in pages.enumerate() {
            let (audited, queue) = self.full_page(page, settling, &mut done).await?;
            report.coupons.extend(audited);
            // Every page reads the whole queue: its findings are reported once.
            if number == 0 {
                report.queue = queue;
            }
        }
        Ok(report)
    }

    async fn full_page(
        &self,
        coupons: &[Coupon],
        settling: SettleMode,
        done: &mut impl FnMut(&CouponReport),
    ) -> Result<(Vec<CouponReport>, Vec<Finding>), Failure> {
        'epochs: for _ in 0..EPOCHS_MAX {
            let keys = self.partition.keys();
            let mut snapshot = match self.snapshot(&keys, coupons).await {
                Ok(snapshot) => snapshot,
                Err(AuditAbort::AnotherEpoch) => continue,
                Err(AuditAbort::Failed(failure)) => return Err(failure),
            };
            let mut queue = snapshot.findings();
            queue.extend(self.without_record(&keys, snapshot.queue.by_coupon.keys()).await?);
            queue.extend(self.service_findings(&keys).await?);
            let mut all = Vec::with_capacity(coupons.len());
            for coupon in coupons {
                match self.audit_one(&mut snapshot, coupon, settling).await {
                    Ok(audited) => {
                        done(&audited);
                        all.push(audited);
                    }
                    Err(AuditAbort::AnotherEpoch) => continue 'epochs,
                    Err(AuditAbort::Failed(failure)) if failure.is_of_one() => {
                        let audited = CouponReport::aborted(coupon, &failure);
                        done(&audited);
                        all.push(audited);
                    }
                    Err(AuditAbort::Failed(failure)) => return Err(failure),
                }
            }
            return Ok((all, queue));
        }
        Err(Failure::Uncertified)
    }

    /// Audits coupons, repairs what can be repaired, and audits again what was repaired: the report says what
    /// is left.
    ///
    /// # Errors
    ///
    /// If Redis or MongoDB fails.
    pub async fn repair(
        &self,
        coupons: &[Coupon],
        mut done: impl FnMut(&CouponReport),
    ) -> Result<AuditReport, Failure> {
        let mut report = self.full(coupons, SettleMode::Settle, &mut done).await?;
        for place in 0..report.coupons.len() {
            if report.coupons[place].findings.is_empty() {
                continue;
            }
            let id = &report.coupons[place].coupon;
            let Some(coupon) = coupons.iter().find(|coupon| coupon.id == *id) else { continue };
            match self.repair_one(coupon, &mut report.repaired).await {
                Ok(left) => report.coupons[place] = left,
                // What was found is left, and why nothing more is done about it.
                Err(failure) if failure.is_of_one() => {
                    let aborted = CouponReport::aborted(coupon, &failure);
                    let found = &mut report.coupons[place].findings;
                    if !found.iter().any(|finding| finding.kind == FindingKind::CouponUnreadable) {
                        found.extend(aborted.findings);
                    }
                }
                Err(failure) => return Err(failure),
            }
        }
        let is_repairable = |finding: &mut Finding| {
            matches!(finding.kind, FindingKind::ServiceBehind | FindingKind::CountersUnreadable)
        };
        let found: Vec<_> = report.queue.extract_if(.., is_repairable).collect();
        if !found.is_empty() {
            let keys = self.partition.keys();
            self.repair_service(&keys, &found).await?;
            let left: Vec<_> = self.service_findings(&keys).await?.extract_if(.., is_repairable).collect();
            let is_left = |finding: &Finding| left.iter().any(|left| left.kind == finding.kind);
            report.repaired.extend(found.into_iter().filter(|finding| !is_left(finding)));
            report.queue.extend(left);
        }
        Ok(report)
    }

    async fn repair_one(
        &self,
        coupon: &Coupon,
        repaired: &mut Vec<Finding>,
    ) -> Result<CouponReport, Failure> {
        for _ in 0..PASSES_MAX {
            match self.repair_pass(coupon, repaired).await {
                Ok(Some(left)) => return Ok(left),
                Ok(None) | Err(AuditAbort::AnotherEpoch) => {}
                Err(AuditAbort::Failed(failure)) => return Err(failure),
            }
        }
        let audited =
            self.full(std::slice::from_ref(coupon), SettleMode::Settle, |_| {}).await?.coupons.pop();
        audited.ok_or(Failure::Uncertified)
    }

    /// Makes one pass. Returns the report if nothing was repaired, else `None`.
    async fn repair_pass(
        &self,
        coupon: &Coupon,
        repaired: &mut Vec<Finding>,
    ) -> Result<Option<CouponReport>, AuditAbort> {
        let keys = self.partition.keys();
        // Before anything is read: what is in flight later, and was leaked, was not given back before.
        let repair = CouponRepair::begin(self, &keys, &coupon.id).await?;
        let mut snapshot = self.snapshot(&keys, std::slice::from_ref(coupon)).await?;
        let audited = self.audit_one(&mut snapshot, coupon, SettleMode::Settle).await?;
        let Some(mut repair) = repair else {
            let stale = audited.findings.iter().find(|finding| finding.kind == FindingKind::FinalCountStale);
            let Some(stale) = stale else { return Ok(Some(audited)) };
            self.renew_final_counts(&[coupon]).await?;
            repaired.push(stale.clone());
            return Ok(None);
        };
        let outcomes = repair.repair(&audited.findings).await?;
        let any = outcomes.contains(&RepairOutcome::Repaired) || audited.settled > 0;
        let done =
            audited.findings.iter().zip(outcomes).filter(|(_, outcome)| *outcome == RepairOutcome::Repaired);
        repaired.extend(done.map(|(finding, _)| finding.clone()));
        Ok((!any).then_some(audited))
    }

    /// Adopts the late inserts among the findings of an audit. Returns how many there were.
    ///
    /// # Errors
    ///
    /// If Redis or MongoDB fails.
    pub async fn adopt(&self, coupon: &CouponId, findings: &[Finding]) -> Result<u64, Failure> {
        let keys: EpochKeys = self.partition.keys();
        adopt_only(self, &keys, coupon, findings).await
    }
}
