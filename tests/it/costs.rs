//! What the hot path asks of Redis, in commands: what they take differs from machine to machine, how many
//! there are does not.

use std::collections::BTreeMap;

use coupon_system::issuance::reserve::{Request, Reserved, reserve};
use coupon_system::issuance::settle::{Settled, Settlement, settle};
use coupon_system::issuance::{IssuanceId, Outcome};
use coupon_system::keys::PartitionId;
use coupon_system::queue::Entry;

use crate::helpers::{System, decision};

const BATCH: usize = 128;
/// Commands for all of a batch together; two are for a script that Redis has not seen before.
const SHARED_MAX: u64 = 17;

type Commands = BTreeMap<String, u64>;

/// What ran in between, but for the question itself.
fn between(before: &Commands, after: &Commands) -> (u64, Commands) {
    let mut ran = after.clone();
    ran.remove("info");
    for (name, count) in &mut ran {
        *count -= before.get(name).copied().unwrap_or(0);
    }
    ran.retain(|_, count| *count > 0);
    (ran.values().sum(), ran)
}

#[tokio::test]
async fn of_a_batch_a_reservation_costs_redis_one_command_and_a_settlement_none() {
    let system = System::start().await;
    let coupon = system.coupon("c", BATCH as u32, 1).await;
    let users = system.users("u", BATCH).await;
    let request = |user: &String| Request {
        id: IssuanceId::generate(PartitionId::ONE),
        coupon: coupon.clone(),
        user: user.parse().expect("an id"),
    };
    let requests: Vec<_> = users.iter().map(request).collect();

    let before = system.commands_run().await;
    let reserved = reserve(system.partition(), &requests, u64::MAX >> 12).await.expect("an answer");
    let (count, ran) = between(&before, &system.commands_run().await);
    assert!(reserved.iter().all(|one| matches!(one, Reserved::Accepted(_))), "{reserved:?}");
    assert!(count <= BATCH as u64 + SHARED_MAX, "{count} commands: {ran:?}");

    let entries = system.take_entries().await;
    let issued = |entry: &Entry| Settlement {
        entry: entry.entry.clone(),
        decision: decision(entry, Outcome::Issued { serial: entry.serial.expect("a unit"), nth: 1 }),
        holds: Vec::new(),
    };
    let decided: Vec<_> = entries.iter().map(issued).collect();
    let before = system.commands_run().await;
    let settled = settle(system.partition(), &system.keys(), &decided).await.expect("an answer");
    let (count, ran) = between(&before, &system.commands_run().await);
    assert!(settled.iter().all(|one| *one == Settled::Now), "{settled:?}");
    assert!(count <= SHARED_MAX, "{count} commands: {ran:?}");
}
