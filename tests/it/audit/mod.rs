//! The audit finds each kind of damage under its own name, and repairs it or says that it cannot. It never takes a
//! system that works for damage.

mod broken;
mod command;
mod drifted;
mod running;
mod unreadable;

use coupon_system::audit::{AuditReport, Finding, FindingKind};
use coupon_system::ids::{CouponId, IssuanceId, PartitionId, Unit};
use coupon_system::issuance::{Outcome, Reason};
use coupon_system::queue::Entry;
use redis::ToRedisArgs;

use crate::helpers::{System, decided, native};

/// A coupon of 20 units, 2 a user: units 1 to 6 are issued to `u0` to `u5`, 7 and 8 reserved for `u6`
/// and `u7`, 9 was given back by a rejection of `u9`, the rest was never touched.
struct AuditStage {
    system: System,
    coupon: CouponId,
    issued: Vec<IssuanceId>,
    queued: Vec<Entry>,
}

impl AuditStage {
    async fn start() -> Self {
        let system = System::start().await;
        system.leaves_in_flight();
        let coupon = system.coupon("c", 20, 2).await;
        let mut issued = Vec::new();
        for number in 0..6 {
            issued.push(system.accepted(&format!("u{number}"), &coupon).await);
        }
        let entries = system.take_entries().await;
        system.decider().process(&system.keys(), &entries).await.expect("they are decided");
        for user in ["u6", "u7", "u9"] {
            system.accepted(user, &coupon).await;
        }
        let mut queued = system.take_entries().await;
        let rejected = queued.pop().expect("three were taken");
        let tombstone = Outcome::Rejected { reason: Reason::Discarded, unit: rejected.unit, lost: false };
        let stage = AuditStage { system, coupon, issued, queued };
        stage.insert(rejected.id, "u9", tombstone).await;
        let decider = stage.system.decider();
        decider.process(&stage.system.keys(), &[rejected]).await.expect("it is settled");
        stage.system.audited_clean().await;
        stage
    }

    async fn insert(&self, id: IssuanceId, user: &str, outcome: Outcome) {
        self.system.write(&[decided(id, &self.coupon, user, outcome)]).await;
    }

    /// Inserts an issued record that Redis does not know.
    async fn late(&self, user: &str, serial: u32, nth: u8) -> IssuanceId {
        let id = IssuanceId::generate(PartitionId::ONE);
        self.insert(id, user, Outcome::Issued { unit: native(serial), nth }).await;
        id
    }

    async fn redis<T: redis::FromRedisValue>(&self, command: &str, words: impl ToRedisArgs) -> T {
        let done =
            redis::cmd(command).arg(words).query_async(&mut self.system.partition().connection()).await;
        done.expect("Redis does it")
    }

    async fn change(&self, command: &str, words: &[&[u8]]) {
        let changed: i64 = self.redis(command, words).await;
        assert_eq!(changed, 1, "{command} changed nothing");
    }

    fn coupon_key(&self) -> String {
        self.system.keys().coupon(&self.coupon)
    }

    fn free_key(&self) -> String {
        self.system.keys().free(&self.coupon)
    }

    fn holders_key(&self) -> String {
        self.system.keys().holders(&self.coupon)
    }

    /// Audits, and asserts that this is the only finding.
    async fn finds(&self, kind: FindingKind, serial: Option<u32>, ids: &[IssuanceId]) -> Finding {
        let report = self.system.audited().await;
        let findings: Vec<_> = report.findings().cloned().collect();
        let [finding] = findings.as_slice() else { panic!("not one finding, but {findings:#?}") };
        assert_eq!(finding.kind, kind, "{finding}");
        assert_eq!(finding.unit.map(Unit::serial), serial, "{finding}");
        let (mut found, mut wanted) = (finding.issuances.clone(), ids.to_vec());
        found.sort_unstable();
        wanted.sort_unstable();
        assert_eq!(found, wanted, "{finding}");
        finding.clone()
    }

    async fn repaired(&self) -> AuditReport {
        let coupon = self.system.backends.coupons.get(&self.coupon).await.expect("a read").expect("a coupon");
        self.system.auditor().repair(&[coupon], |_| {}).await.expect("a repair")
    }

    /// Repairs, and asserts that no finding remains, that workers still issue the queued requests, and that the audit is
    /// clean afterwards.
    async fn is_mended(&self) {
        let report = self.repaired().await;
        let left: Vec<_> = report.findings().map(ToString::to_string).collect();
        assert_eq!(left, Vec::<String>::new());
        assert!(!report.repaired.is_empty());
        self.system.audited_clean().await;
        self.system.worker();
        for entry in &self.queued {
            let outcome = crate::helpers::eventually("it is decided", async || {
                let decisions = self.system.backends.ledger.decisions(&[entry.id]).await.expect("a read");
                Some(decisions.get(&entry.id)?.as_ref().expect("it is readable").outcome)
            })
            .await;
            assert!(matches!(outcome, Outcome::Issued { .. }), "{outcome:?}");
        }
        self.system.settled(&self.coupon).await;
        self.system.audited_clean().await;
    }

    /// Repairs, and asserts that the finding remains.
    async fn stays(&self, kind: FindingKind) {
        let report = self.repaired().await;
        let left: Vec<_> = report.findings().map(|finding| finding.kind).collect();
        assert_eq!(left, [kind]);
        assert_eq!(report.repaired, []);
    }
}
