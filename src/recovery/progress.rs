//! How far a recovery has come: for the log, for `couponctl recover`, and for tests that stop it at a step.

use std::sync::Arc;

use crate::ids::CouponId;

/// A step that a recovery has just completed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecoveryStep {
    /// The certificate is closed: every script refuses.
    Closed,
    /// What is in flight was read.
    Read { in_flight: usize },
    /// One loaded coupon was compared with the ledger.
    Compared { coupon: CouponId, number: usize, of: usize },
    /// The data is not what was left there.
    Damaged { why: String },
    /// What the ledger has decided was left out.
    Sorted { undecided: usize },
    /// This many records of a coupon were read. Reported repeatedly.
    Loading { coupon: CouponId, number: usize, of: usize, records: u64, of_records: u64 },
    /// This many entries of the queue were written. Reported repeatedly.
    Queueing { entries: usize, of: usize },
    /// All that was built is there; the certificate is to be opened.
    Built,
    /// The certificate is open: the outage is over.
    Opened,
}

/// Called with each step, in the task that recovers: it must not block.
pub type ProgressCallback = Arc<dyn Fn(&RecoveryStep) + Send + Sync>;

/// A callback that ignores all steps.
pub fn ignore_progress() -> ProgressCallback {
    Arc::new(|_| {})
}
