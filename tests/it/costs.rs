//! The number of Redis commands that the hot path needs. Unlike their duration, it is the same on every machine.

use std::collections::BTreeMap;

use coupon_system::issuance::Outcome;
use coupon_system::issuance::reserve::{QueueEntries, Reserved, reserve};
use coupon_system::issuance::settle::{Settled, Settlement, settle};
use coupon_system::queue::Entry;

use crate::helpers::{NO_BACKLOG_MAX, System, decision, request};

const BATCH: usize = 128;
/// Commands that a whole batch shares, including the one that reads the statistics.
const SHARED_MAX: u64 = 17;
/// Batches to measure. Background tasks run commands too, but not always: the smallest count is that of a batch alone.
const BATCHES: usize = 5;

type CommandCounts = BTreeMap<String, u64>;

/// The commands that have run since `before`.
async fn since(before: &CommandCounts, system: &System) -> CommandCounts {
    let mut ran = system.commands_run().await;
    for (name, count) in &mut ran {
        *count -= before.get(name).copied().unwrap_or(0);
    }
    ran.retain(|_, count| *count > 0);
    ran
}

/// The fewest of all in several batches.
fn least(batches: &[CommandCounts]) -> u64 {
    let counts = batches.iter().map(|ran| ran.values().sum());
    counts.min().expect("a batch")
}

#[tokio::test]
async fn of_a_batch_a_reservation_costs_redis_one_command_and_a_settlement_none() {
    let system = System::start().await;
    let coupon = system.coupon("c", (BATCHES * BATCH) as u32, 1).await;
    let users = system.users("u", BATCHES * BATCH).await;
    let issued = |entry: &Entry| Settlement {
        of: entry.of,
        entry: entry.entry.clone(),
        decision: decision(entry, Outcome::Issued { unit: entry.unit.expect("a unit"), nth: 1 }),
        holds: Vec::new(),
    };
    let (mut reserving, mut settling) = (Vec::new(), Vec::new());
    for users in users.chunks(BATCH) {
        let requests: Vec<_> = users.iter().map(|user| request(user, &coupon)).collect();
        let before = system.commands_run().await;
        let reserved = reserve(system.partition(), &requests, NO_BACKLOG_MAX, QueueEntries::OfOne)
            .await
            .expect("an answer");
        let ran = since(&before, &system).await;
        assert!(reserved.iter().all(|one| matches!(one, Reserved::Accepted(_))), "{reserved:?}");
        assert_eq!(ran.get("xadd"), Some(&(BATCH as u64)), "{ran:?}");
        reserving.push(ran);

        let decided: Vec<_> = system.take_entries().await.iter().map(issued).collect();
        let before = system.commands_run().await;
        let settled = settle(system.partition(), &system.keys(), &decided).await.expect("an answer");
        let ran = since(&before, &system).await;
        assert_eq!(settled, [Settled::Now; BATCH]);
        assert_eq!(ran.get("xack"), Some(&1), "{ran:?}");
        settling.push(ran);
    }
    assert!(least(&reserving) <= BATCH as u64 + SHARED_MAX, "{reserving:#?}");
    assert!(least(&settling) <= SHARED_MAX, "{settling:#?}");
}
