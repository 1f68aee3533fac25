//! `couponctl audit`: whether Redis and the ledger agree, and the repair of what drifted.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;

use clap::Args;
use futures::future::join_all;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::action::recorded;
use super::progress::ProgressLine;
use super::table::{TableColumn, clean, number, table, words};
use crate::access::ActionLog;
use crate::access::action::{self, command_status};
use crate::audit::{AuditReport, Auditor, Bracket, CouponReport, Finding, FindingKind, SettleMode, Severity};
use crate::config::{MongoConfig, RedisConfig};
use crate::coupon::{Coupon, by_share};
use crate::failure::{Fault, SetUpError};
use crate::ids::{CouponId, PartitionId, Unit};
use crate::mongo::Database;
use crate::process::Backends;
use crate::recovery::OpeningStatus;
use crate::redis::Partition;
use crate::{Failure, mongo, process, recovery};

/// Compares Redis with the ledger, unit by unit, and repairs what drifted.
///
/// The audit connects to Redis and MongoDB itself, and the system may serve meanwhile.
///
/// Without --full it brackets every loaded coupon: it reads how many units Redis has settled, how many the ledger has
/// issued, and how many Redis has out of stock. None of the three may be larger than the next. This is cheap, and
/// shows that something is wrong, but not what.
///
/// With --full it reads every unit and every issuance, and names each one that is wrong; it reads a suspicion again
/// before it reports it. It settles decided issuances that Redis has not heard of; without --repair it changes nothing
/// else.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  couponctl audit
  couponctl audit --full --coupon summer
  couponctl audit --full --repair --dry-run
  couponctl audit --full --repair --json > audit.json

A finding is \"broken\" (a promise does not hold: a person must act, and the finding
says how), \"drift\" (the accounts are wrong: --repair corrects them) or \"passing\"
(the system is dealing with it, and nothing is damaged).

JSON is one object: at, epoch, full, repair (null, \"dry-run\", \"done\"), verdict
(\"clean\", \"drift\", \"broken\"), unavailablePartitions (the numbers of those that
could not be audited), coupons [{coupon, loaded, holds, total, settledBefore,
issued, settledAfter, reserved, free, counted, settledNow, moreFindings}], findings
(those that remain), and mended (those repaired) or, with --dry-run, wouldMend, each
[{code, severity, coupon, serial, issuances, user, entry, detail, means, advice}]. A
member that does not apply is null.

Exit codes:
  0  clean, or everything is repaired
  1  the audit could not be finished, or not in every partition
  2  the command line is wrong
  3  drift remains
  4  something is broken, or another Redis serves this ledger
  5  the environment is wrong")]
pub(super) struct AuditArgs {
    /// Audit only this coupon (default: all coupons)
    #[arg(long, value_name = "ID")]
    coupon: Option<CouponId>,
    /// Read every unit and every issuance
    #[arg(long)]
    full: bool,
    /// Repair what drifted, then audit again; implies --full
    #[arg(long)]
    repair: bool,
    /// Show what --repair would repair, and change nothing
    #[arg(long, requires = "repair")]
    dry_run: bool,
    /// Why it is repaired, for the record of operators' actions: 1 to 200 characters
    #[arg(long, value_name = "TEXT", value_parser = action::reason, requires = "repair", conflicts_with = "dry_run")]
    reason: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    redis: RedisConfig,
    #[command(flatten)]
    mongodb: MongoConfig,
}

impl AuditArgs {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let mut backends = process::open(&self.redis, &self.mongodb).await?;
        let ended = match backends.spread().await {
            Ok(()) => self.run_on(&backends).await,
            Err(failure) => Err(away("MongoDB", &failure)),
        };
        mongo::close(&backends.database).await;
        ended
    }

    async fn run_on(&self, backends: &Backends) -> anyhow::Result<()> {
        if !self.repair || self.dry_run {
            return self.run_audit(backends).await;
        }
        let target = self.coupon.as_ref().map_or_else(|| "all coupons".to_owned(), CouponId::to_string);
        let input = recorded(Value::Null, self.reason.as_ref());
        let begun = ActionLog::begin_command(&backends.database, "couponctl audit --repair", target, input);
        let begun = begun.await.map_err(|failure| away("MongoDB", &failure))?;
        begun.carry_out(self.run_audit(backends), command_status).await
    }

    /// Why a partition cannot be audited, or the finding that is all there is to say of it: the data of a Redis beside
    /// which another serves proves nothing. `None` if it can be audited.
    async fn hindrance(partition: &Partition, database: &Database) -> Option<Result<Finding, Failure>> {
        match recovery::is_certified(partition).await {
            Ok(true) => None,
            Ok(false) => Some(match recovery::opening_status(partition, database).await {
                Ok(OpeningStatus::Elsewhere(why)) => {
                    Ok(Finding { detail: Some(why), ..Finding::new(FindingKind::AnotherRedis, None) })
                }
                Ok(_) => Err(Failure::Uncertified),
                Err(failure) => Err(failure),
            }),
            Err(failure) => Some(Err(failure)),
        }
    }

    async fn run_audit(&self, backends: &Backends) -> anyhow::Result<()> {
        let auditors = backends.partitions.each(|partition| {
            Auditor::new(Arc::clone(partition), backends.ledger.clone(), backends.coupons.clone())
        });
        let of_one = match &self.coupon {
            Some(id) => {
                let found = backends.coupons.get(id).await.map_err(|failure| away("MongoDB", &failure))?;
                let coupon = found.ok_or_else(|| anyhow::anyhow!("there is no coupon {id}"))?;
                for share in coupon.shares.partitions() {
                    backends.partitions.get(*share)?;
                }
                Some(coupon)
            }
            None => None,
        };
        let is_meant =
            |id: PartitionId| of_one.as_ref().is_none_or(|coupon: &Coupon| coupon.shares.of(id).is_some());
        let meant = || backends.partitions.iter().filter(|partition| is_meant(partition.id()));
        let (mut queues, mut unaudited) = (BTreeMap::new(), Unaudited::new());
        let asked = meant().map(|partition| Self::hindrance(partition, &backends.database));
        for (partition, hindrance) in meant().zip(join_all(asked).await) {
            match hindrance {
                None => {}
                Some(Ok(finding)) => drop(queues.insert(partition.id(), vec![finding])),
                Some(Err(failure)) => drop(unaudited.insert(partition.id(), failure)),
            }
        }
        if unaudited.len() == meant().count() {
            return Err(match unaudited.into_values().next() {
                Some(failure @ Failure::Redis { .. }) => away("Redis", &failure),
                Some(failure @ Failure::MongoDb { .. }) => away("MongoDB", &failure),
                Some(failure) => failure.into(),
                None => Failure::Uncertified.into(),
            });
        }
        let elsewhere: Vec<PartitionId> = queues.keys().copied().collect();
        let progress = ProgressLine::start();
        let (mut report, mut last): (_, Option<Coupon>) = (AuditReport::default(), None);
        let mut pages: Option<Vec<Coupon>> = of_one.clone().map(|coupon| vec![coupon]);
        loop {
            let page = match (&of_one, pages.take()) {
                (_, Some(page)) => page,
                (Some(_), None) => break,
                (None, None) => {
                    let page = auditors.first().coupons_after(last.as_ref()).await;
                    page.map_err(|failure| away("MongoDB", &failure))?
                }
            };
            let Some(next) = page.last().cloned() else { break };
            last = Some(next);
            let (groups, unknown) = by_share(&backends.partitions, page);
            for (partition, coupon) in unknown {
                if let Err(failure) = backends.partitions.get(partition) {
                    report.coupons.push(CouponReport::aborted(&coupon, &failure));
                }
            }
            for (partition, page) in groups {
                let id = partition.id();
                if unaudited.contains_key(&id) || elsewhere.contains(&id) {
                    continue;
                }
                // Every page checks the whole queue of its partition.
                match self.audit(auditors.get(id)?, &page, &progress, &mut report).await {
                    Ok(queue) => drop(queues.insert(id, queue)),
                    Err(failure) => drop(unaudited.insert(id, failure)),
                }
            }
        }
        // In a partition without coupons there is still the queue.
        for (partition, auditor) in backends.partitions.iter().zip(&auditors) {
            let id = partition.id();
            if is_meant(id) && !queues.contains_key(&id) && !unaudited.contains_key(&id) {
                match self.audit(auditor, &[], &progress, &mut report).await {
                    Ok(queue) => drop(queues.insert(id, queue)),
                    Err(failure) => drop(unaudited.insert(id, failure)),
                }
            }
        }
        progress.finish();
        if unaudited.len() == meant().count() {
            return Err(unaudited.into_values().next().unwrap_or(Failure::Uncertified).into());
        }
        report.queue = queues.into_values().flatten().collect();
        self.show(&report, &unaudited, backends)
    }

    /// Prints the report, and ends with its verdict.
    fn show(&self, report: &AuditReport, unaudited: &Unaudited, backends: &Backends) -> anyhow::Result<()> {
        let shown = match self.json {
            true => self.to_json(report, unaudited, backends)?,
            false => self.to_text(report, unaudited),
        };
        write!(std::io::stdout(), "{shown}")?;
        verdict(report)?;
        if unaudited.is_empty() {
            return Ok(());
        }
        let named: Vec<_> = unaudited.keys().map(ToString::to_string).collect();
        anyhow::bail!("partitions {} could not be audited; the others were", named.join(", "))
    }

    /// Audits one page of coupons of a partition as the flags say, and adds to the report. Returns the findings that belong
    /// to no coupon.
    async fn audit(
        &self,
        auditor: &Auditor,
        page: &[Coupon],
        progress: &ProgressLine,
        report: &mut AuditReport,
    ) -> Result<Vec<Finding>, Failure> {
        let show = |audited: &CouponReport| {
            let (coupon, findings) = (&audited.coupon, audited.findings.len());
            progress.state(&format!("audited coupon={coupon} findings={findings}"), true);
        };
        let mut audited = if self.repair && !self.dry_run {
            auditor.repair(page, show).await?
        } else if self.full || self.repair {
            let settling = if self.dry_run { SettleMode::ReadOnly } else { SettleMode::Settle };
            auditor.full(page, settling, show).await?
        } else {
            auditor.brackets(page, show).await?
        };
        report.coupons.append(&mut audited.coupons);
        report.repaired.append(&mut audited.repaired);
        Ok(audited.queue)
    }

    /// The findings that a repair would remove, for `--dry-run`.
    fn mendable<'a>(&self, report: &'a AuditReport) -> Vec<&'a Finding> {
        if !self.dry_run {
            return Vec::new();
        }
        report.findings().filter(|finding| finding.is_repairable()).collect()
    }

    fn to_text(&self, report: &AuditReport, unaudited: &Unaudited) -> String {
        let rows = report.coupons.iter().map(row).collect();
        let mut text = table(COLUMNS, rows, "there is no loaded coupon; --full audits the others");
        let settled: u64 = report.coupons.iter().map(|audited| audited.settled).sum();
        if settled > 0 {
            text.push_str(&format!(
                "\nsettled {settled} decided issuances that Redis had not been told of\n"
            ));
        }
        for finding in &report.repaired {
            text.push_str(&format!("\nmended  {}\n", clean(&finding.to_string())));
        }
        for finding in report.findings() {
            let severity = finding.kind.severity().as_str();
            let (means, advice) = (finding.kind.means(), finding.kind.advice());
            text.push_str(&format!("\n{severity:<7} {}\n", clean(&finding.to_string())));
            text.push_str(&format!("        {means}\n        {advice}\n"));
        }
        for finding in self.mendable(report) {
            text.push_str(&format!("\nwould mend  {}\n", clean(&finding.to_string())));
        }
        for audited in report.coupons.iter().filter(|audited| audited.more > 0) {
            let (coupon, more) = (&audited.coupon, audited.more);
            text.push_str(&format!("\n{coupon}: at least {more} more findings are not shown\n"));
        }
        for (partition, failure) in unaudited {
            text.push_str(&format!("\npartition {partition} could not be audited: {}\n", failure.chain()));
        }
        text
    }

    fn to_json(
        &self,
        report: &AuditReport,
        unaudited: &Unaudited,
        backends: &Backends,
    ) -> anyhow::Result<String> {
        let is_audited = |partition: &&Arc<Partition>| !unaudited.contains_key(&partition.id());
        let is_elsewhere = report.findings().all(|finding| finding.kind == FindingKind::AnotherRedis);
        let epochs: Vec<_> =
            backends.partitions.iter().filter(is_audited).map(|one| one.keys().epoch().to_string()).collect();
        let epoch = (report.worst().is_none() || !is_elsewhere).then(|| epochs.join(" "));
        let unavailable: Vec<u16> = unaudited.keys().map(|partition| partition.number()).collect();
        let coupons: Vec<_> = report.coupons.iter().map(coupon_to_json).collect();
        let findings: Vec<_> = report.findings().map(finding_to_json).collect();
        let repaired: Vec<_> = report.repaired.iter().map(finding_to_json).collect();
        let would: Vec<_> = self.mendable(report).into_iter().map(finding_to_json).collect();
        let mut body = json!({
            "at": Timestamp::now(),
            "epoch": epoch,
            "full": self.full || self.repair,
            "repair": match (self.repair, self.dry_run) {
                (false, _) => Value::Null,
                (true, true) => "dry-run".into(),
                (true, false) => "done".into(),
            },
            "verdict": report.worst().map_or("clean", Severity::as_str),
            "unavailablePartitions": unavailable,
            "coupons": coupons,
            "findings": findings,
            "mended": repaired,
        });
        if self.dry_run {
            body["wouldMend"] = would.into();
        }
        Ok(format!("{}\n", serde_json::to_string_pretty(&body)?))
    }
}

/// The partitions that could not be audited, each with the reason.
type Unaudited = BTreeMap<PartitionId, Failure>;

/// A server that does not answer: the environment is wrong, not the accounts.
fn away(server: &str, failure: &Failure) -> anyhow::Error {
    SetUpError(vec![format!("{server} does not answer: {}; is it running?", failure.chain())]).into()
}

fn verdict(report: &AuditReport) -> anyhow::Result<()> {
    let count = |severity| report.findings().filter(|found| found.kind.severity() == severity).count();
    let (broken, drift) = (count(Severity::Broken), count(Severity::Drift));
    match report.worst() {
        Some(Severity::Broken) => Err(Fault::Invariant(format!(
            "{broken} findings break a promise and need a person; {drift} more are drift"
        ))
        .into()),
        Some(Severity::Drift) => {
            Err(Fault::Threshold(format!("the accounts drifted: {drift} findings; see above")).into())
        }
        Some(Severity::Passing) | None => Ok(()),
    }
}

const COLUMNS: &[TableColumn] = &[
    words("COUPON"),
    words("HOLDS"),
    number("SETTLED"),
    number("ISSUED"),
    number("THEN SETTLED"),
    number("RESERVED"),
    number("FREE"),
    number("FINDINGS"),
];

fn row(audited: &CouponReport) -> Vec<String> {
    let findings = audited.findings.len() as u64 + audited.more;
    let mut row = vec![audited.coupon.to_string()];
    match &audited.bracket {
        Some(bracket) => row.extend([
            if bracket.holds() { "yes" } else { "NO" }.to_owned(),
            bracket.settled_before.to_string(),
            bracket.issued.to_string(),
            bracket.after.units.settled.to_string(),
            bracket.after.units.reserved().to_string(),
            bracket.after.units.remaining().to_string(),
        ]),
        None => row.extend(["not loaded", "-", "-", "-", "-", "-"].map(str::to_owned)),
    }
    row.push(findings.to_string());
    row
}

fn coupon_to_json(audited: &CouponReport) -> Value {
    let figure = |of: fn(&Bracket) -> u64| audited.bracket.as_ref().map(of);
    json!({
        "coupon": audited.coupon.as_str(),
        "loaded": audited.bracket.is_some(),
        "holds": audited.bracket.map(|bracket| bracket.holds()),
        "total": figure(|bracket| bracket.after.units.total),
        "settledBefore": figure(|bracket| bracket.settled_before),
        "issued": figure(|bracket| bracket.issued),
        "settledAfter": figure(|bracket| bracket.after.units.settled),
        "reserved": figure(|bracket| bracket.after.units.reserved()),
        "free": figure(|bracket| bracket.after.units.remaining()),
        "counted": audited.counted,
        "settledNow": audited.settled,
        "moreFindings": audited.more,
    })
}

fn finding_to_json(finding: &Finding) -> Value {
    let kind: FindingKind = finding.kind;
    json!({
        "code": kind.code(),
        "severity": kind.severity().as_str(),
        "coupon": finding.coupon.as_ref().map(CouponId::as_str),
        "serial": finding.unit.map(Unit::serial),
        "issuances": finding.issuances.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "user": finding.user.as_ref().map(|user| user.as_str()),
        "entry": finding.entry,
        "detail": finding.detail,
        "means": kind.means(),
        "advice": kind.advice(),
    })
}
