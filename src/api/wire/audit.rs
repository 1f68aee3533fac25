//! The state of the accounts on the wire.

use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use super::queue::numbers;
use crate::audit::AuditSummary;
use crate::ids::PartitionId;

/// Whether Redis and the ledger agree, as far as the service audits it by itself.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Accounts {
    /// When the data in Redis was last recovered, or first certified.
    #[schema(required = true, value_type = Option<String>, format = DateTime)]
    recovered_at: Option<Timestamp>,
    /// The latest audit since then; null if there was none yet.
    #[schema(required = true)]
    audit: Option<Audit>,
    /// The numbers of the partitions that do not answer: nothing of them is in what is said here.
    #[schema(example = json!([]))]
    unavailable_partitions: Vec<u16>,
}

/// An audit of all coupons that are loaded in Redis.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Audit {
    #[schema(value_type = String, format = DateTime)]
    ended_at: Timestamp,
    #[schema(example = 12)]
    coupons: u64,
    /// What is wrong; nothing if it is empty. `couponctl audit --full` names each, and says what to do.
    findings: Vec<FindingCount>,
}

/// Findings of one kind.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct FindingCount {
    #[schema(example = "coupon-unreadable")]
    code: String,
    #[schema(example = 1)]
    count: u64,
}

impl Accounts {
    /// The state as it was read.
    pub fn new(
        recovered_at: Option<Timestamp>,
        latest: Option<AuditSummary>,
        unavailable: Vec<PartitionId>,
    ) -> Self {
        let audit = latest.map(|AuditSummary { ended_at, coupons, findings }| Audit {
            ended_at,
            coupons,
            findings: findings.into_iter().map(|(code, count)| FindingCount { code, count }).collect(),
        });
        Accounts { recovered_at, audit, unavailable_partitions: numbers(unavailable) }
    }
}
