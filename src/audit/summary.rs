//! The result of the latest audit in the background, for operators to read at any process: kept in Redis, in the epoch
//! that it was made in.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::finding::{FINDINGS, FindingKind};
use crate::Failure;
use crate::redis::keys::EpochKeys;
use crate::redis::{Partition, cmd};

/// What one audit of all loaded coupons found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditSummary {
    /// When it ended, by the clock of the process that made it.
    pub ended_at: Timestamp,
    /// The number of coupons that it audited.
    pub coupons: u64,
    /// The code of each finding that is damage, and how many there are of it.
    pub findings: BTreeMap<String, u64>,
}

impl AuditSummary {
    /// Counts a finding here and in the metrics.
    pub(super) fn count(&mut self, kind: FindingKind) {
        FINDINGS.count(kind.code());
        *self.findings.entry(kind.code().to_owned()).or_default() += 1;
    }

    /// Both audits together, as of when the earlier one ended.
    pub(crate) fn with(mut self, other: Self) -> Self {
        self.ended_at = self.ended_at.min(other.ended_at);
        self.coupons += other.coupons;
        for (code, count) in other.findings {
            *self.findings.entry(code).or_default() += count;
        }
        self
    }

    /// Keeps it as the latest.
    pub(super) async fn keep(&self, partition: &Partition, keys: &EpochKeys) -> Result<(), Failure> {
        let findings: Vec<_> = self.findings.iter().map(|(code, count)| format!("{code} {count}")).collect();
        let mut set = cmd("HSET");
        set.arg(keys.audit_summary()).arg("ended_at").arg(self.ended_at.as_millisecond());
        set.arg("coupons").arg(self.coupons).arg("findings").arg(findings.join(","));
        partition.query("keep the result of the audit", &set).await
    }
}

/// The result of the latest audit since the last recovery; `None` if there was none yet, or it cannot be read.
///
/// # Errors
///
/// If Redis fails.
pub async fn latest(partition: &Partition) -> Result<Option<AuditSummary>, Failure> {
    let mut get = cmd("HMGET");
    get.arg(partition.keys().audit_summary()).arg(&["ended_at", "coupons", "findings"]);
    let (ended_at, coupons, findings): (Option<i64>, Option<u64>, Option<String>) =
        match partition.query("read the result of the audit", &get).await {
            Err(failure) if failure.is_of_one() => return Ok(None),
            read => read?,
        };
    let read = || {
        let count = |finding: &str| {
            let (code, count) = finding.split_once(' ')?;
            Some((code.to_owned(), count.parse().ok()?))
        };
        Some(AuditSummary {
            ended_at: Timestamp::from_millisecond(ended_at?).ok()?,
            coupons: coupons?,
            findings: findings?.split(',').filter_map(count).collect(),
        })
    };
    Ok(read())
}
