//! How far a recovery has come: told to whoever shows it, and at the moments at which a test kills it.

use std::sync::Arc;

use crate::ids::CouponId;

/// A step that a recovery has just made.
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
    /// So many records of a coupon were read. Told again and again.
    Loading { coupon: CouponId, number: usize, of: usize, records: u64, of_records: u64 },
    /// So many entries of the queue were written. Told again and again.
    Queueing { entries: usize, of: usize },
    /// All that was built is there; the certificate is to be opened.
    Built,
    /// The certificate is open: the outage is over.
    Opened,
}

/// Is told of each step, in the task that recovers.
pub type ProgressCallback = Arc<dyn Fn(&RecoveryStep) + Send + Sync>;

/// For those who do not want to know.
pub fn ignore_progress() -> ProgressCallback {
    Arc::new(|_| {})
}
