//! Proof, while the system goes on: do Redis's accounts and the ledger agree, and unit by unit?
//!
//! [`Auditor::bracket`] is cheap: three numbers a coupon. [`Auditor::full`] reads every unit and every
//! issuance of a coupon, in pages: what it cannot explain is read again before it is a [`Finding`], so
//! that what merely moved while it was read is no false alarm. [`Auditor::repair`] repairs what is
//! only a drift of accounts. [`keep_auditing`] is the task that does the cheap part all the time.

mod adopt;
mod background;
mod bracket;
mod coupon_audit;
mod figures;
mod final_count;
mod finding;
mod missing_units;
mod moves;
mod queue_snapshot;
mod quiet_moment;
mod recheck;
mod record_drift;
mod records;
mod repair;
mod reservations;
mod run;
mod summary;
mod unit_coverage;

use std::sync::Arc;

pub use background::keep_auditing;
pub use bracket::Bracket;
pub use coupon_audit::{CouponReport, SettleMode};
pub use figures::CouponFigures;
pub(crate) use finding::FINDINGS;
pub use finding::{Finding, FindingKind, Severity};
pub use run::{AuditReport, COUPONS_MAX};
pub use summary::{AuditSummary, latest};

use crate::Failure;
use crate::coupon::CouponStore;
use crate::issuance::Ledger;
use crate::redis::Partition;
use crate::service::ServiceStore;

/// Audits the coupons of one partition. Cheap to clone.
#[derive(Clone)]
pub struct Auditor {
    partition: Arc<Partition>,
    ledger: Ledger,
    coupons: CouponStore,
    services: ServiceStore,
}

impl Auditor {
    /// An auditor of a partition, its ledger and its coupons.
    pub fn new(partition: Arc<Partition>, ledger: Ledger, coupons: CouponStore) -> Self {
        let services = ServiceStore::new(&coupons.database());
        Auditor { ledger: ledger.within(partition.id()), partition, coupons, services }
    }
}

/// Why an audit was given up.
pub(crate) enum AuditAbort {
    /// Another epoch is open: what was read belongs to none. Begin again.
    AnotherEpoch,
    Failed(Failure),
}

impl From<Failure> for AuditAbort {
    fn from(failure: Failure) -> Self {
        AuditAbort::Failed(failure)
    }
}
