//! Operators change a coupon while its last units move.

use std::time::Duration;

use futures::future::join_all;
use serde_json::json;

use super::{adopted, create, shares_of, start, users_of};

/// Rounds of the race: each has another interleaving.
const ROUNDS: u32 = 4;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restocks_and_pauses_race_the_end_game_and_every_unit_is_issued_once() {
    let system = start().await;
    let _worker = system.worker();
    for round in 0..ROUNDS {
        let (total, more) = (12, 5);
        let coupon = create(&system, &format!("hot-{round}"), total, 4, 1).await;
        let share = shares_of(&system, &coupon).await[1];
        let users = users_of(&system, &coupon, share, 30).await;
        let rush = join_all(users.iter().map(async |user| {
            // Whoever is told "sold out" or "paused" comes back until the operators are done and all is sold.
            for _ in 0..60 {
                let answer = system.client.issue(user, coupon.as_str(), None).await;
                match (answer.status, answer.status == 202) {
                    (_, true) => return true,
                    (503, _) => {}
                    (409 | 429, _) if ["sold-out", "paused", "rate-limited"].contains(&answer.code()) => {
                        tokio::time::sleep(Duration::from_millis(60)).await;
                    }
                    _ => panic!("{answer:?}"),
                }
            }
            false
        }));
        let operators = async {
            for change in
                [("pause", json!({})), ("resume", json!({})), ("restock", json!({"total": total + more}))]
            {
                tokio::time::sleep(Duration::from_millis(5 + u64::from(round) * 7)).await;
                let changed = system.client.post(&format!("/coupons/{coupon}/{}", change.0), change.1).await;
                assert_eq!(changed.status, 200, "{changed:?}");
            }
        };
        let (sold, ()) = tokio::join!(rush, operators);
        assert_eq!(sold.iter().filter(|sold| **sold).count(), (total + more) as usize, "round {round}");
        let stock = system.settled(&coupon).await;
        assert_eq!((stock.remaining, stock.issued), (0, total + more), "round {round}");
        assert_eq!(system.issued_serials(&coupon).await, (1..=total + more).collect::<Vec<_>>());
        adopted(&system, &coupon).await;
        system.audited_clean().await;
    }
}
