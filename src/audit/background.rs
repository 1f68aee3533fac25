//! The background task, in every API process, that proves the accounts all the time. Idempotent and
//! without input; every [`audit_every`](crate::config::ApiLimits::audit_every) seconds.
//!
//! Brackets every loaded coupon. Those whose numbers do not stand in order twice it audits in full, many with one
//! reading of the queue, settles what is decided, adopts late inserts (they are what a recovery can leave by itself), and
//! logs the rest as an error: repairs are an operator's. What is kept of coupons that were retired lately is
//! counted anew where it is stale. The first rounds after a recovery audit every
//! coupon in full: while much is in flight, a few late inserts fit into the bracket.
//!
//! Reads: coupons, the ledger, Redis. Writes: what settling and adopting write. Counting the ledger is
//! work for MongoDB, so the processes take turns, by a key that expires: were there two at once, they
//! would only do the same twice.

use std::collections::HashSet;
use std::time::Duration;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::coupon_audit::{CouponReport, SettleMode};
use super::finding::{Finding, FindingKind};
use super::run::COUPONS_MAX;
use super::{AuditAbort, AuditSummary, Auditor};
use crate::coupon::Coupon;
use crate::ids::CouponId;
use crate::redis::cmd;
use crate::redis::keys::EpochKeys;
use crate::redis::turn::background_round;
use crate::runtime::background::IsBusy;
use crate::runtime::damage::damaged;
use crate::runtime::tasks::Rounds;
use crate::{Failure, metrics, recovery};

/// Between the two brackets of a coupon whose numbers do not stand in order.
const PAUSE: Duration = Duration::from_millis(500);
/// Rounds after a recovery that audit in full.
const FULL_ROUNDS: u64 = 2;
/// Findings of a coupon in one line of the log.
const LOGGED_MAX: usize = 20;

/// Audits until `shutdown`, about as often as `every`, in the background.
pub async fn keep_auditing(auditor: Auditor, every: Duration, is_busy: IsBusy, shutdown: CancellationToken) {
    // With some jitter, so that it is not always the same process's turn.
    let pause = || every.mul_f64(rand::random_range(0.9..1.1));
    let mut rounds = Rounds::every(pause(), &shutdown);
    while rounds.next().await {
        let turn = auditor.partition.keys().audit_turn();
        let round = background_round(&auditor.partition, turn, every, &is_busy, auditor.round());
        // A round that is broken off is begun anew by another process.
        let Some(audited) = shutdown.run_until_cancelled(round).await else { return };
        if let Err(failure) = audited {
            tracing::debug!(error = failure.chain(), "the audit failed; it runs again at the next turn");
        }
        rounds.next_in(pause());
    }
}

impl Auditor {
    async fn round(&self) -> Result<(), Failure> {
        let keys = self.partition.keys();
        let rounds = self.full_rounds(&keys).await?;
        let in_full = rounds < FULL_ROUNDS;
        let mut summary = AuditSummary::default();
        self.check_records(&keys, &mut summary).await?;
        let mut suspects = Vec::new();
        // What is no coupon's id among them is named by `check_records`.
        for id in recovery::loaded_members(&self.partition, &keys).await?.coupons {
            match self.check_coupon(&keys, &id, in_full, &mut summary).await {
                Ok(Some(suspect)) => suspects.push(suspect),
                Ok(None) => {
                    metrics::AUDITED.increment(1);
                    summary.coupons += 1;
                }
                Err(failure) => cannot_be_audited(&id, failure, &mut summary)?,
            }
        }
        let mut queue = Vec::new();
        for page in suspects.chunks(COUPONS_MAX) {
            // Every page reads the whole queue: its findings are reported once.
            queue = self.audit_in_full(page, &mut summary).await?;
        }
        report_findings(queue, &mut summary);
        report_findings(self.watch_final_counts().await?, &mut summary);
        summary.ended_at = Timestamp::now();
        metrics::AUDIT_LAST.set(summary.ended_at.as_second() as f64);
        summary.keep(&self.partition, &keys).await?;
        if in_full {
            let mut set = cmd("SET");
            set.arg(keys.audited()).arg(rounds + 1);
            self.partition.query::<()>("remember that it was audited in full", &set).await?;
        }
        Ok(())
    }

    /// How often everything was audited in full since the last recovery: never, if that cannot be read.
    async fn full_rounds(&self, keys: &EpochKeys) -> Result<u64, Failure> {
        let mut get = cmd("GET");
        get.arg(keys.audited());
        match self.partition.query::<Option<u64>>("read how often it was audited in full", &get).await {
            Ok(rounds) => Ok(rounds.unwrap_or(0)),
            Err(failure) if failure.is_of_one() => Ok(0),
            Err(failure) => Err(failure),
        }
    }

    /// Names the coupons that are loaded, or have something in flight, and have no record that can be read, and
    /// mends what Redis holds of the service and of the queue.
    async fn check_records(&self, keys: &EpochKeys, summary: &mut AuditSummary) -> Result<(), Failure> {
        let in_flight = match recovery::coupons_in_flight(&self.partition, keys).await {
            // A full audit says what is wrong with the queue.
            Err(failure) if failure.is_of_one() => HashSet::new(),
            in_flight => in_flight?,
        };
        let mut findings = self.without_record(keys, in_flight.iter()).await?;
        let service_findings = self.service_findings(keys).await?;
        self.repair_service(keys, &service_findings).await?;
        findings.extend(service_findings);
        report_findings(findings, summary);
        Ok(())
    }

    /// Catches up with what Redis missed of a coupon, and compares its numbers. Returns it if it must be audited in
    /// full.
    async fn check_coupon(
        &self,
        keys: &EpochKeys,
        id: &CouponId,
        in_full: bool,
        summary: &mut AuditSummary,
    ) -> Result<Option<Coupon>, Failure> {
        // A coupon that is loaded and has no record is named already.
        let coupon = match self.coupons.get(id).await {
            Ok(Some(coupon)) => coupon,
            Ok(None) => return Ok(None),
            Err(failure) if failure.is_of_one() => return Ok(None),
            Err(failure) => return Err(failure),
        };
        match self.missed_change(keys, id).await {
            Ok(Some(missed_change)) => {
                let record = self.coupons.get(id).await?;
                self.catch_up(record.as_slice()).await?;
                summary.count(FindingKind::CouponBehind);
                tracing::error!(coupon = %id, missed_change, "Redis had missed an operator's change; the audit has written it");
            }
            Ok(None) | Err(AuditAbort::AnotherEpoch) => {}
            Err(AuditAbort::Failed(failure)) => return Err(failure),
        }
        Ok((in_full || self.disagrees(&coupon).await?).then_some(coupon))
    }

    /// Whether a coupon's numbers do not stand in order, or units do not arrive that were moved here, twice.
    async fn disagrees(&self, coupon: &Coupon) -> Result<bool, Failure> {
        let disagrees = async || -> Result<bool, Failure> {
            let Some(bracket) = self.bracket(&coupon.id).await? else { return Ok(false) };
            Ok(!bracket.holds() || self.awaits_units(coupon, &bracket).await?)
        };
        if !disagrees().await? {
            return Ok(false);
        }
        tokio::time::sleep(PAUSE).await;
        disagrees().await
    }

    /// Audits coupons in full, at most [`COUPONS_MAX`]. Returns what was found that belongs to none of them.
    async fn audit_in_full(
        &self,
        coupons: &[Coupon],
        summary: &mut AuditSummary,
    ) -> Result<Vec<Finding>, Failure> {
        let report = self.full(coupons, SettleMode::Settle, |_| metrics::AUDITED.increment(1)).await?;
        summary.coupons += report.coupons.len() as u64;
        for audited in &report.coupons {
            if let Err(failure) = self.adopt_and_report(audited, summary).await {
                cannot_be_audited(&audited.coupon, failure, summary)?;
            }
        }
        Ok(report.queue)
    }

    async fn adopt_and_report(
        &self,
        audited: &CouponReport,
        summary: &mut AuditSummary,
    ) -> Result<(), Failure> {
        let damage: Vec<&Finding> = audited.findings.iter().filter(|finding| finding.is_damage()).collect();
        for finding in &damage {
            summary.count(finding.kind);
        }
        let adopted = self.adopt(&audited.coupon, &audited.findings).await?;
        metrics::ADOPTED.increment(adopted);
        if damage.is_empty() {
            let settled = audited.settled;
            tracing::debug!(coupon = %audited.coupon, settled, "the accounts agree with the ledger again");
            return Ok(());
        }
        let logged: Vec<_> = damage.iter().take(LOGGED_MAX).map(ToString::to_string).collect();
        let logged = logged.join("; ");
        damaged!(
            logged; coupon = %audited.coupon, count = damage.len(), adopted, findings = logged,
            "the accounts do not agree with the ledger; couponctl audit --full says what to do"
        );
        Ok(())
    }
}

/// Passes a failure on, unless it is of one coupon: that must not keep the others from being audited.
fn cannot_be_audited(id: &CouponId, failure: Failure, summary: &mut AuditSummary) -> Result<(), Failure> {
    if !failure.is_of_one() {
        return Err(failure);
    }
    summary.count(FindingKind::CouponUnreadable);
    damaged!(id; coupon = %id, error = failure.chain(), "the coupon cannot be audited");
    Ok(())
}

/// Counts and logs findings, each by itself.
fn report_findings(findings: Vec<Finding>, summary: &mut AuditSummary) {
    for finding in findings.into_iter().filter(Finding::is_damage) {
        summary.count(finding.kind);
        damaged!(finding; %finding, advice = finding.kind.advice(), "{}", finding.kind.means());
    }
}
