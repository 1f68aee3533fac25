//! All units are sold, wherever the users are.

use std::time::{Duration, Instant};

use futures::future::join_all;
use serde_json::json;

use super::{create, requested, shares_of, start, users_of};
use crate::helpers::eventually;

/// What a share tells for the others for at most this long, and some time for a busy machine to answer.
const SEEN_WITHIN: Duration = Duration::from_millis(1_500);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rush_for_one_coupon_over_many_shares_is_exact() {
    let system = start().await;
    let coupon = create(&system, "hot", 200, 4, 1).await;
    let users = system.users("u", 400).await;
    let _worker = system.worker();
    let accepted = join_all(users.iter().map(|user| requested(&system, user, &coupon))).await;
    assert_eq!(accepted.iter().filter(|accepted| **accepted).count(), 200);
    let stock = system.settled(&coupon).await;
    assert_eq!((stock.total, stock.remaining, stock.issued), (200, 0, 200));
    assert_eq!(system.issued_serials(&coupon).await, (1..=200).collect::<Vec<_>>());
    system.audited_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_of_one_share_get_the_units_of_all_and_nobody_is_told_sold_out_before() {
    let system = start().await;
    let coupon = create(&system, "hot", 60, 3, 1).await;
    let share = shares_of(&system, &coupon).await[1];
    let users = users_of(&system, &coupon, share, 62).await;
    let _worker = system.worker();
    for (number, user) in users.iter().enumerate() {
        assert_eq!(requested(&system, user, &coupon).await, number < 60, "request {number}");
    }
    let stock = system.settled(&coupon).await;
    assert_eq!((stock.remaining, stock.issued), (0, 60));
    assert_eq!(system.issued_serials(&coupon).await, (1..=60).collect::<Vec<_>>());
    system.audited_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_unit_finds_the_last_user_without_a_worker() {
    let system = start().await;
    system.leaves_in_flight();
    let coupon = create(&system, "hot", 2, 2, 1).await;
    let shares = shares_of(&system, &coupon).await;
    let users = users_of(&system, &coupon, shares[0], 3).await;
    assert!(requested(&system, &users[0], &coupon).await);
    assert!(requested(&system, &users[1], &coupon).await, "the unit of the other share");
    assert!(!requested(&system, &users[2], &coupon).await);
    let _worker = system.worker();
    assert_eq!(system.settled(&coupon).await.issued, 2);
    system.audited_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_it_was_sold_out_a_restock_is_seen_by_every_share_within_half_a_second() {
    let system = start().await;
    let coupon = create(&system, "hot", 6, 3, 1).await;
    let users = system.users("u", 40).await;
    let _worker = system.worker();
    let mut users = users.iter();
    for user in users.by_ref().take(6) {
        assert!(requested(&system, user, &coupon).await);
    }
    let shares = shares_of(&system, &coupon).await;
    for share in &shares {
        let latecomer = users_of(&system, &coupon, *share, 1).await;
        assert!(!requested(&system, &latecomer[0], &coupon).await);
    }
    let restocked = system.client.post("/coupons/hot/restock", json!({"total": 7})).await;
    assert_eq!(restocked.status, 200, "{restocked:?}");
    // The seventh unit is born in the first share; the user is of the second.
    let late = users_of(&system, &coupon, shares[1], 3).await;
    let started = Instant::now();
    eventually("the unit is sold", async || requested(&system, &late[1], &coupon).await.then_some(())).await;
    assert!(started.elapsed() < SEEN_WITHIN, "{:?}", started.elapsed());
    assert!(!requested(&system, &late[2], &coupon).await);
    assert_eq!(system.settled(&coupon).await.issued, 7);
    system.audited_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_may_hold_several_units_and_double_clicks_take_one() {
    let system = start().await;
    let coupon = create(&system, "hot", 30, 3, 3).await;
    let share = shares_of(&system, &coupon).await[2];
    let users = users_of(&system, &coupon, share, 10).await;
    let _worker = system.worker();
    let clicks = users.iter().flat_map(|user| {
        let clicks = (0..3).flat_map(move |unit| [(user, unit), (user, unit)]);
        clicks.collect::<Vec<_>>()
    });
    let answers = join_all(clicks.map(async |(user, unit)| {
        let key = format!("{user}-{unit}");
        loop {
            let answer = system.client.issue(user, coupon.as_str(), Some(&key)).await;
            match answer.status {
                202 | 200 => return answer.id().to_owned(),
                503 => {}
                _ => panic!("{answer:?}"),
            }
        }
    }));
    let mut ids = answers.await;
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 30);
    assert_eq!(system.settled(&coupon).await.issued, 30);
    for user in &users {
        let held = system.client.get(&format!("/user-coupons/{user}")).await;
        assert_eq!(held.body["items"].as_array().map(Vec::len), Some(3), "{held:?}");
        let again = system.client.issue(user, coupon.as_str(), None).await;
        assert_eq!((again.status, again.code()), (409, "already-issued"), "{again:?}");
    }
    system.audited_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coupon_has_no_more_shares_than_units_and_partitions() {
    let system = start().await;
    for (total, shares) in [(3, 4), (100, 9), (100, 0), (100, 65)] {
        let body = json!({"name": "n", "total": total, "shares": shares,
            "startsAt": "2020-01-01T00:00:00Z", "endsAt": "2090-01-01T00:00:00Z"});
        let refused = system.client.post("/coupons", body).await;
        assert_eq!((refused.status, refused.code()), (422, "invalid"), "{refused:?}");
        assert_eq!(refused.body["errors"][0]["pointer"], json!("#/shares"), "{refused:?}");
    }
}
