//! A coupon with issuances at every point of their lives.

use coupon_system::ids::{CouponId, IssuanceId};
use coupon_system::issuance::settle::settle;
use coupon_system::queue;
use coupon_system::queue::{DEAD_LETTER_CONSUMER, Entry, dead};
use coupon_system::redis::keys::GROUP;

use crate::helpers::{System, accounts_hold, discarded};

const TOTAL: u32 = 12;
const WHY: &str = "MongoDB would not take it";
const ATTEMPTS: u32 = 3;

/// A coupon with nine accepted requests. Two are settled; two are issued and one rejected in the ledger, and Redis does
/// not know; one is a dead letter; one is not delivered; two are pending for a dead worker.
pub struct BusyQueue {
    pub coupon: CouponId,
    pub dead: IssuanceId,
    pub rejected: IssuanceId,
    /// Those that are decided as issued.
    pub decided: Vec<Entry>,
    pub undecided: Vec<IssuanceId>,
}

impl BusyQueue {
    /// Makes such a coupon. The rejected request had unit 5, and the dead letter has unit 6.
    pub async fn make(system: &System, coupon: &str) -> Self {
        let coupon = system.coupon(&coupon.to_lowercase(), TOTAL, 1).await;
        for user in 0..8 {
            system.accepted(&format!("u{user}"), &coupon).await;
        }
        let (keys, entries, decider) = (system.keys(), system.take_entries().await, system.decider());
        decider.process(&keys, &entries[..2]).await.expect("settled");
        assert_eq!(decider.decide(&keys, &entries[2..4]).await.expect("decided").left.len(), 0);
        system.write(&[discarded(&entries[4])]).await;
        let dead = entries[5].id;
        let set_aside =
            dead::set_aside(system.partition(), &keys, &entries[5].entry, dead, ATTEMPTS, WHY).await;
        assert!(set_aside.expect("an answer"));
        let fresh = system.accepted("u8", &coupon).await;
        let undecided = vec![entries[6].id, entries[7].id, fresh];
        BusyQueue { coupon, dead, rejected: entries[4].id, decided: entries[2..4].to_vec(), undecided }
    }

    /// Redrives the dead letter, settles everything, and asserts the result.
    pub async fn ends_well(self, system: &System, when: &str) {
        let partition = system.partition();
        let letter = dead::get(partition, self.dead).await.expect("a look");
        let letter = letter.unwrap_or_else(|| panic!("{when}: the dead letter is gone"));
        assert_eq!((letter.attempts, letter.why.as_str()), (ATTEMPTS, WHY), "{when}");
        let entry = letter.in_flight.expect("it is in flight").entry;
        let owned: Vec<(String, String, u64, u64)> = system
            .command(&["XPENDING", &system.keys().stream(), GROUP, "-", "+", "10", DEAD_LETTER_CONSUMER])
            .await;
        assert_eq!(owned.iter().map(|owned| &owned.0).collect::<Vec<_>>(), [&entry], "{when}");
        // Another worker may settle them too; Redis does it once.
        let again = system.decider().decide(&system.keys(), &self.decided).await.expect("adopted");
        settle(partition, &system.keys(), &again.settlements).await.expect("an answer");

        assert!(dead::redrive(partition, self.dead).await.expect("an answer"));
        if system.queue().await.0 > system.queue().await.1 {
            let fresh = system.take_entries().await;
            system.decider().process(&system.keys(), &fresh).await.expect("settled");
        }
        let claimed = queue::claim(partition, &system.keys(), "the last worker", 100).await.expect("a claim");
        system.decider().process(&system.keys(), &claimed.entries).await.expect("settled");

        let stock = accounts_hold(system, &self.coupon).await;
        assert_eq!((stock.remaining, stock.issued), (4, 8), "{when}");
        let mut ids = self.undecided;
        ids.push(self.dead);
        ids.extend(self.decided.iter().map(|entry| entry.id));
        for id in ids {
            assert_eq!(
                system.client.get(&format!("/issuances/{id}")).await.state(),
                "issued",
                "{when}: {id}"
            );
        }
        let rejected = system.client.get(&format!("/issuances/{}", self.rejected)).await;
        assert_eq!(rejected.state(), "rejected", "{when}");
    }
}
