//! The full audit: every unit and every issuance of a coupon, in pages, while the system goes on.
//!
//! The order of reading keeps false suspicions few: the figures, then what is in flight, then the
//! ledger, then dedupe, then the free units. A unit that was in flight and is issued, or one that was
//! free and still is, is seen where it is; the few that moved otherwise are read again.

use std::collections::{HashMap, HashSet};

use super::figures::{BATCH_MAX, CouponFigures, figures};
use super::finding::{Finding, FindingKind};
use super::queue_snapshot::QueueSnapshot;
use super::recheck::{ConfirmedSuspicion, Suspicion};
use super::{AuditAbort, Auditor, Bracket};
use crate::Failure;
use crate::coupon::Coupon;
use crate::coupon::UnitSet;
use crate::ids::{CouponId, IssuanceId, Share, Unit};
use crate::redis::keys::EpochKeys;

/// Findings of one coupon that are kept; more of them are only counted.
pub const FINDINGS_MAX: usize = 5_000;

/// The result of auditing one coupon.
#[derive(Debug, Clone)]
pub struct CouponReport {
    pub coupon: CouponId,
    /// `None` if it is not loaded: then only the ledger was audited.
    pub bracket: Option<Bracket>,
    pub findings: Vec<Finding>,
    /// Findings, or suspicions, beyond the first 5,000.
    pub more: u64,
    /// Whether the count of settled units could be compared: not while too much goes on.
    pub counted: bool,
    /// Decided issuances that this audit settled in Redis.
    pub settled: u64,
}

impl CouponReport {
    pub(super) fn of(coupon: &Coupon, bracket: Option<Bracket>) -> Self {
        let coupon = coupon.id.clone();
        CouponReport { coupon, bracket, findings: Vec::new(), more: 0, counted: false, settled: 0 }
    }
}

impl CouponReport {
    /// The report of an audit that ended at something that cannot be read.
    pub(crate) fn aborted(coupon: &Coupon, failure: &Failure) -> Self {
        let kind = match failure.root() {
            Failure::Damaged { what: "data in Redis" | "the figures of the coupon in Redis", .. } => {
                FindingKind::CouponUnreadable
            }
            _ => FindingKind::RecordUnreadable,
        };
        let mut audited = CouponReport::of(coupon, None);
        let detail = Some(format!("the audit of the coupon ended there: {}", failure.chain()));
        audited.findings.push(Finding { detail, ..Finding::new(kind, Some(&coupon.id)) });
        audited
    }
}

/// Whether an audit settles what it finds decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SettleMode {
    /// Settle what is decided and still in flight.
    Settle,
    ReadOnly,
}

/// What Redis has of a whole batch of coupons, read before each of them is audited.
pub(super) struct AuditSnapshot {
    pub keys: EpochKeys,
    figures: HashMap<CouponId, CouponFigures>,
    pub queue: QueueSnapshot,
    set_aside: u64,
    /// Coupons whose figures are damaged, each with what is wrong.
    damaged: HashMap<CouponId, String>,
}

impl AuditSnapshot {
    /// Findings that belong to no coupon of the batch.
    pub(super) fn findings(&self) -> Vec<Finding> {
        let mut findings = self.queue.findings.clone();
        if self.set_aside > 0 {
            let detail = Some(format!("{} of them", self.set_aside));
            findings.push(Finding { detail, ..Finding::new(FindingKind::InFlightSetAside, None) });
        }
        findings
    }
}

impl Auditor {
    /// Reads the figures of the coupons, and then what is in flight.
    pub(super) async fn snapshot(
        &self,
        keys: &EpochKeys,
        coupons: &[Coupon],
    ) -> Result<AuditSnapshot, AuditAbort> {
        let ids: Vec<_> = coupons.iter().map(|coupon| coupon.id.clone()).collect();
        let (mut known, mut damaged) = (HashMap::new(), HashMap::new());
        let (mut last, mut set_aside) = ("0-0".to_owned(), 0);
        for batch in ids.chunks(BATCH_MAX) {
            let moment = figures(&self.partition, keys, batch).await?;
            let loaded = batch.iter().cloned().zip(moment.coupons);
            known.extend(loaded.filter_map(|(id, figures)| Some((id, figures?))));
            damaged.extend(moment.damaged);
            (last, set_aside) = (moment.last_entry, moment.set_aside);
        }
        let queue = self.read_queue(keys, &last).await?;
        Ok(AuditSnapshot { keys: keys.clone(), figures: known, queue, set_aside, damaged })
    }

    /// Audits one coupon of a scene.
    pub(super) async fn audit_one(
        &self,
        snapshot: &mut AuditSnapshot,
        coupon: &Coupon,
        settling: SettleMode,
    ) -> Result<CouponReport, AuditAbort> {
        let mut audit = CouponAudit {
            auditor: self,
            keys: snapshot.keys.clone(),
            coupon,
            share: coupon.shares.of(self.partition.id()).unwrap_or(Share::WHOLE),
            figures: snapshot.figures.get(&coupon.id).copied(),
            in_flight: snapshot.queue.by_coupon.remove(&coupon.id).unwrap_or_default(),
            found: CouponFindings::default(),
        };
        audit.ledger().await?;
        audit.rejections().await?;
        if let Some(what) = snapshot.damaged.remove(&coupon.id) {
            // Against figures that cannot be read nothing can be held.
            audit.found.add([Finding { detail: Some(what), ..audit.finding(FindingKind::CouponUnreadable) }]);
            return Ok(audit.found.audited(coupon, None));
        }
        if audit.figures.is_none() {
            audit.not_loaded().await?;
            audit.found.add(self.final_count(coupon).await?);
            return Ok(audit.found.audited(coupon, None));
        }
        audit.record().await?;
        audit.strays(snapshot.queue.strays.remove(&coupon.id).unwrap_or_default()).await?;
        audit.decided(settling).await?;
        audit.holders().await?;
        audit.units().await?;
        audit.count().await?;
        let mut bracket = self.bracket_under(&snapshot.keys, &coupon.id).await?;
        if bracket.is_some_and(|bracket| !bracket.holds()) && audit.found.findings.is_empty() {
            // What was between two readings may be settled at the next one.
            bracket = self.bracket_under(&snapshot.keys, &coupon.id).await?;
            if bracket.is_some_and(|bracket| !bracket.holds()) {
                audit.found.add([Finding::new(FindingKind::FiguresDisagree, Some(&coupon.id))]);
            }
        }
        Ok(audit.found.audited(coupon, bracket))
    }
}

#[derive(Default)]
pub(super) struct CouponFindings {
    pub findings: Vec<Finding>,
    pub more: u64,
    pub counted: bool,
    pub settled: u64,
    /// Units that the ledger says are issued, or moved away.
    pub occupied: Option<UnitSet>,
    /// Issued records that Redis does not count, those among them whose promise is broken included.
    pub not_counted: u64,
    /// Orphans that are issued: whether they were counted cannot be determined.
    pub orphans: u64,
    pub missing: u64,
    /// Issued records that cannot be read and do not say which unit they hold.
    pub nameless: u64,
}

impl CouponFindings {
    pub(super) fn add(&mut self, findings: impl IntoIterator<Item = Finding>) {
        for finding in findings {
            if self.findings.len() < FINDINGS_MAX {
                self.findings.push(finding);
            } else {
                self.more += 1;
            }
        }
    }

    fn audited(self, coupon: &Coupon, bracket: Option<Bracket>) -> CouponReport {
        let CouponFindings { findings, more, counted, settled, .. } = self;
        CouponReport { findings, more, counted, settled, ..CouponReport::of(coupon, bracket) }
    }

    /// The units that a kind of finding is about.
    pub(super) fn units_of(&self, kind: FindingKind) -> HashSet<Unit> {
        self.findings.iter().filter(|found| found.kind == kind).filter_map(|found| found.unit).collect()
    }
}

/// The audit of one coupon: what was read of it, and what was found.
pub(super) struct CouponAudit<'a> {
    pub auditor: &'a Auditor,
    pub keys: EpochKeys,
    pub coupon: &'a Coupon,
    /// What of the coupon lies in the partition.
    pub share: Share,
    pub figures: Option<CouponFigures>,
    pub in_flight: HashMap<IssuanceId, Option<Unit>>,
    pub found: CouponFindings,
}

impl CouponAudit<'_> {
    pub(super) fn finding(&self, kind: FindingKind) -> Finding {
        Finding::new(kind, Some(&self.coupon.id))
    }

    pub(super) async fn confirm(
        &self,
        suspicions: Vec<Suspicion>,
    ) -> Result<Vec<ConfirmedSuspicion>, AuditAbort> {
        self.auditor.confirm(&self.keys, &self.coupon.id, suspicions).await
    }

    pub(super) fn add(&mut self, confirmed: &[ConfirmedSuspicion]) {
        self.found.add(confirmed.iter().map(|confirmed| confirmed.finding(&self.coupon.id)));
    }
}
