//! A share's Redis loses its data, or is rebuilt, while units are on their way, and whoever moved them wakes up later.

use coupon_system::ids::PartitionId;
use coupon_system::recovery::is_certified;
use coupon_system::redis::Partition;
use rand::RngExt;

use super::{Mover, STEPS, Step, create, sells_out, shares_of, start};
use crate::helpers::{System, chance, eventually, rounds};

const TOTAL: u32 = 12;

/// What happens to a share's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loss {
    /// Everything is gone.
    Wiped,
    /// The certificate is gone: what survives in flight is kept, and the rest comes from the ledger.
    Rebuilt,
}

pub(super) fn partition(system: &System, id: PartitionId) -> &Partition {
    system.backends.partitions.get(id).expect("it is known")
}

/// Loses the data of a share, and waits until it is recovered.
pub(super) async fn lose(system: &System, id: PartitionId, loss: Loss) {
    let (partition, before) = (partition(system, id), partition(system, id).keys().epoch());
    let pattern = match loss {
        Loss::Wiped => format!("coupon:{{{}}}:*", id.tag()),
        Loss::Rebuilt => format!("coupon:{{{}}}:certificate", id.tag()),
    };
    let keys: Vec<String> = system.command(&["KEYS", &pattern]).await;
    let mut delete = vec!["DEL"];
    delete.extend(keys.iter().map(String::as_str));
    let _: u64 = system.command(&delete).await;
    eventually("the share is recovered", async || {
        (matches!(is_certified(partition).await, Ok(true)) && partition.keys().epoch() != before)
            .then_some(())
    })
    .await;
}

/// Whether the donor loses its data, and the receiver; and whether the mover goes on afterwards.
const CASES: [(bool, bool, bool); 6] = [
    (true, false, false),
    (true, false, true),
    (false, true, false),
    (false, true, true),
    (true, true, false),
    (true, true, true),
];

/// Of each loss and step one case, by chance; `COUPON_TEST_ROUNDS=6` takes all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_share_loses_its_data_at_any_step_of_a_move_and_every_unit_is_sold_once() {
    let mut chance = chance();
    for loss in [Loss::Wiped, Loss::Rebuilt] {
        for step in STEPS {
            let first: usize = chance.random_range(0..CASES.len());
            for number in 0..rounds(1).min(CASES.len()) {
                let (donor_loses, receiver_loses, goes_on) = CASES[(first + number) % CASES.len()];
                println!("{loss:?} after {step:?}: {donor_loses} {receiver_loses} {goes_on}");
                let system = start().await;
                let coupon = create(&system, "hot", TOTAL, 3, 1).await;
                let shares = shares_of(&system, &coupon).await;
                let mut mover = Mover::lends(&system, &coupon, shares[0], shares[1]).await;
                mover.goes_on(Step::Lent, step).await;
                if donor_loses {
                    lose(&system, shares[0], loss).await;
                }
                if receiver_loses {
                    lose(&system, shares[1], loss).await;
                }
                if goes_on {
                    mover.goes_on(step, Step::Settled).await;
                }
                drop(mover);
                let _worker = system.worker();
                sells_out(&system, &coupon, shares[2], TOTAL, TOTAL as usize).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mover_that_slept_through_a_sale_commits_nothing() {
    let system = start().await;
    let coupon = create(&system, "hot", TOTAL, 3, 1).await;
    let shares = shares_of(&system, &coupon).await;
    let mut mover = Mover::lends(&system, &coupon, shares[0], shares[1]).await;
    // The donor forgets that it lent units, and they are sold there.
    lose(&system, shares[0], Loss::Wiped).await;
    let _worker = system.worker();
    sells_out(&system, &coupon, shares[0], TOTAL, TOTAL as usize).await;
    assert_eq!(mover.goes_on(Step::Lent, Step::Settled).await, 0, "the ledger has issued both");
    assert_eq!(system.settled(&coupon).await.remaining, 0);
    system.audited_clean().await;
}
