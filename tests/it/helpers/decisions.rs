//! Requests and decisions that a test writes straight into Redis and the ledger, without the API and workers.

use coupon_system::ids::{CouponId, IssuanceId, PartitionId, Unit};
use coupon_system::issuance::ledger::Inserted;
use coupon_system::issuance::reserve::{QueueEntries, Request, Reserved, reserve};
use coupon_system::issuance::{Decision, Outcome, Reason};
use coupon_system::queue::Entry;

use super::{System, at};

/// A bound that no backlog of a test reaches.
pub const NO_BACKLOG_MAX: u64 = u64::MAX >> 12;
/// Requests in one call of the script.
const REQUESTS: usize = 250;
/// Decisions in one insert.
const DECISIONS: usize = 2_000;

/// A new request of a user, without a key.
pub fn request(user: &str, coupon: &CouponId) -> Request {
    let id = IssuanceId::generate(PartitionId::ONE);
    Request { id, coupon: coupon.clone(), user: user.parse().expect("an id"), key: None, trace: None }
}

/// A decision made now, about an issuance that was accepted now.
pub fn decided(id: IssuanceId, coupon: &CouponId, user: &str, outcome: Outcome) -> Decision {
    let (coupon, user) = (coupon.clone(), user.parse().expect("an id"));
    Decision { id, coupon, user, outcome, accepted_at: at(0), decided_at: at(0) }
}

/// The unit of a serial that was never moved.
pub fn native(serial: u32) -> Unit {
    Unit::native(serial).expect("a serial")
}

/// A decision made now that issues this unit of a coupon to a user.
pub fn issued_to(coupon: &CouponId, user: &str, serial: u32) -> Decision {
    decided(
        IssuanceId::generate(PartitionId::ONE),
        coupon,
        user,
        Outcome::Issued { unit: native(serial), nth: 1 },
    )
}

/// A decision made now about an entry.
pub fn decision(entry: &Entry, outcome: Outcome) -> Decision {
    Decision {
        accepted_at: entry.accepted_at,
        ..decided(entry.id, &entry.coupon, entry.user.as_str(), outcome)
    }
}

/// An operator's decision, made now, to discard an entry.
pub fn discarded(entry: &Entry) -> Decision {
    decision(entry, Outcome::Rejected { reason: Reason::Discarded, unit: entry.unit, lost: false })
}

impl System {
    /// Reserves a unit for each of these users, and asserts that each gets one.
    pub async fn accept_all(
        &self,
        coupon: &CouponId,
        users: impl Iterator<Item = String>,
    ) -> Vec<IssuanceId> {
        let users: Vec<_> = users.map(|user| (user, coupon)).collect();
        self.accept_for(&users).await
    }

    /// Reserves a unit of a coupon for each of these users, and asserts that each gets one.
    pub async fn accept_for(&self, users: &[(String, &CouponId)]) -> Vec<IssuanceId> {
        let mut ids = Vec::new();
        for batch in users.chunks(REQUESTS) {
            let batch: Vec<_> = batch.iter().map(|(user, coupon)| request(user, coupon)).collect();
            let answers = reserve(self.partition(), &batch, NO_BACKLOG_MAX, QueueEntries::OfMany).await;
            for answer in answers.expect("answers") {
                match answer {
                    Reserved::Accepted(queued) => ids.push(queued.id),
                    other => panic!("not accepted: {other:?}"),
                }
            }
        }
        ids
    }

    /// Writes decisions into the ledger, each of which must be the first about its issuance.
    pub async fn write(&self, decisions: &[Decision]) {
        for batch in decisions.chunks(DECISIONS) {
            let inserted = self.backends.ledger.insert(batch).await.expect("they are written");
            assert!(inserted.iter().all(|one| *one == Inserted::Decided), "{inserted:?}");
        }
    }

    /// Writes into the ledger that these units are issued, each to a user named `prefix` and its serial.
    pub async fn write_issued(&self, coupon: &CouponId, prefix: &str, serials: impl Iterator<Item = u32>) {
        let decisions: Vec<_> =
            serials.map(|serial| issued_to(coupon, &format!("{prefix}{serial}"), serial)).collect();
        self.write(&decisions).await;
    }
}
