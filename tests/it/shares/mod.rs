//! Coupons whose units lie in several shares: each sells its own, the last units go where the last people are, and nobody
//! is told "sold out" while a unit is left.

mod attacks;
mod looks;
mod losing;
mod moving;
mod nodes;
mod racing;
mod scripts;
mod selling;

use std::sync::atomic::{AtomicU32, Ordering};

use coupon_system::audit::SettleMode;
use coupon_system::ids::{CouponId, PartitionId};
use coupon_system::issuance::Decision;
use coupon_system::issuance::ledger::Inserted;
use coupon_system::issuance::reserve::QueueEntries;
use coupon_system::issuance::settle::{Settlement, settle};
use coupon_system::issuance::shares::{Lent, credit_moved, lend};
use coupon_system::redis::Partition;
use coupon_system::redis::keys::EpochKeys;
use serde_json::json;

use crate::helpers::{System, eventually};

/// Beside partition 0.
const PARTITIONS: u16 = 8;

async fn start() -> System {
    System::builder().partitions(PARTITIONS).start().await
}

/// Creates a coupon in several shares by the API, and returns its id.
async fn create(system: &System, id: &str, total: u32, shares: u32, per_user: u8) -> CouponId {
    let body = json!({"id": id, "name": "n", "total": total, "perUser": per_user, "shares": shares,
        "startsAt": "2020-01-01T00:00:00Z", "endsAt": "2090-01-01T00:00:00Z"});
    let created = system.client.post("/coupons", body).await;
    assert_eq!((created.status, &created.body["stock"]["remaining"]), (201, &json!(total)), "{created:?}");
    assert_eq!(created.body["shares"], json!(shares), "{created:?}");
    created.id().parse().expect("an id")
}

/// The partitions of a coupon's shares, in their order.
async fn shares_of(system: &System, coupon: &CouponId) -> Vec<PartitionId> {
    system.backends.ledger.shares_of(coupon).await.expect("they are read").partitions().to_vec()
}

/// So that each call registers users of its own.
static USERS: AtomicU32 = AtomicU32::new(0);

/// Registers users who are served by one share of a coupon.
async fn users_of(system: &System, coupon: &CouponId, share: PartitionId, count: usize) -> Vec<String> {
    let shares = system.backends.ledger.shares_of(coupon).await.expect("they are read");
    let prefix = format!("p{share}-{}-", USERS.fetch_add(1, Ordering::Relaxed));
    let users = system.users(&prefix, 20 + count * 2 * shares.partitions().len()).await;
    let served =
        users.into_iter().filter(|user| shares.route(coupon, &user.parse().expect("an id")) == share);
    let served: Vec<String> = served.take(count).collect();
    assert_eq!(served.len(), count, "there are enough users of partition {share}");
    served
}

/// Requests a coupon, again and again as long as the answer is 503. Returns whether it was accepted; else it is sold out.
async fn requested(system: &System, user: &str, coupon: &CouponId) -> bool {
    loop {
        let answer = system.client.issue(user, coupon.as_str(), None).await;
        match answer.status {
            202 => return true,
            409 if answer.code() == "sold-out" => return false,
            503 => {}
            _ => panic!("{answer:?}"),
        }
    }
}

/// How far a process comes with a move before it dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Lent,
    Committed,
    Credited,
    Settled,
}

const STEPS: [Step; 4] = [Step::Lent, Step::Committed, Step::Credited, Step::Settled];

/// A process that moves units from one share to another, step by step.
struct Mover<'a> {
    system: &'a System,
    donor: &'a Partition,
    /// As it knew the donor when it began.
    keys: EpochKeys,
    lent: Vec<Lent>,
}

impl<'a> Mover<'a> {
    /// Lends units: half of what the donor has.
    async fn lends(system: &'a System, coupon: &CouponId, donor: PartitionId, to: PartitionId) -> Self {
        let donor = system.backends.partitions.get(donor).expect("it is known");
        let keys = donor.keys();
        let lent = lend(donor, coupon, to, QueueEntries::OfMany).await.expect("an answer");
        assert!(!lent.is_empty());
        Mover { system, donor, keys, lent }
    }

    fn decisions(&self) -> Vec<Decision> {
        self.lent.iter().map(|lent| lent.decision.clone()).collect()
    }

    /// Goes on from one step to another. Returns how many of the moves are this process's.
    async fn goes_on(&mut self, from: Step, to: Step) -> usize {
        let is_due = |step: Step| from < step && step <= to;
        if is_due(Step::Committed) {
            let inserted = self.system.backends.ledger.insert(&self.decisions()).await.expect("an answer");
            let mut inserted = inserted.into_iter();
            self.lent.retain(|_| inserted.next() == Some(Inserted::Decided));
        }
        if is_due(Step::Credited) {
            credit_moved(&self.system.backends.partitions, &self.decisions()).await;
        }
        if is_due(Step::Settled) && !self.lent.is_empty() {
            let settlements = self.lent.iter().cloned().map(Settlement::from).collect::<Vec<_>>();
            // Where another epoch is open, its recovery has dealt with the entries.
            settle(self.donor, &self.keys, &settlements).await.expect("an answer");
        }
        self.lent.len()
    }
}

/// Audits every share of a coupon in full as the background task does.
async fn adopted(system: &System, coupon: &CouponId) -> u64 {
    let record = system.backends.coupons.get(coupon).await.expect("a look").expect("its record");
    let mut adopted = 0;
    for share in record.shares.partitions() {
        let auditor = system.auditor_of(system.backends.partitions.get(*share).expect("it is known"));
        let report = auditor.full(std::slice::from_ref(&record), SettleMode::Settle, |_| {}).await;
        let findings = &report.expect("an audit").coupons[0].findings;
        adopted += auditor.adopt(coupon, findings).await.expect("an answer");
    }
    adopted
}

/// Sells every unit that is left to users of one share, one after another, asserts that each gets one and that nobody else
/// does, and audits.
async fn sells_out(system: &System, coupon: &CouponId, share: PartitionId, total: u32, left: usize) {
    let users = users_of(system, coupon, share, left + 1).await;
    let (last, buyers) = users.split_last().expect("one more");
    for (number, user) in buyers.iter().enumerate() {
        assert!(requested(system, user, coupon).await, "buyer {number} of {left}");
    }
    assert!(!requested(system, last, coupon).await);
    eventually("all is issued", async || {
        (system.issued_serials(coupon).await.len() as u32 == total).then_some(())
    })
    .await;
    assert_eq!(system.issued_serials(coupon).await, (1..=total).collect::<Vec<_>>());
    let stock = system.settled(coupon).await;
    assert_eq!((stock.remaining, stock.issued), (0, total));
    adopted(system, coupon).await;
    system.audited_clean().await;
}
