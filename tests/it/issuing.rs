//! A campaign: many users, few units, one outcome for each.

use std::collections::HashSet;
use std::sync::Arc;

use futures::future::join_all;
use tokio::sync::Barrier;

use crate::helpers::{System, at};

/// All of them at once.
async fn rush(system: &System, users: &[String], coupon: &str) -> Vec<crate::helpers::Answer> {
    let barrier = Arc::new(Barrier::new(users.len()));
    let requests = users.iter().map(|user| {
        let (client, user, coupon) = (system.client.clone(), user.clone(), coupon.to_owned());
        let barrier = Arc::clone(&barrier);
        tokio::spawn(async move {
            barrier.wait().await;
            client.issue(&user, &coupon, None).await
        })
    });
    join_all(requests).await.into_iter().map(|joined| joined.expect("no panic")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_users_rush_for_a_hundred_units_and_a_hundred_get_one_each() {
    let system = System::start().await;
    let coupon = system.coupon("summer", 100, 1).await;
    let users = system.users("u", 500).await;
    for _ in 0..3 {
        system.worker();
    }
    let answers = rush(&system, &users, "summer").await;
    let accepted: Vec<_> = answers.iter().filter(|answer| answer.status == 202).collect();
    assert_eq!(accepted.len(), 100);
    assert!(answers.iter().filter(|answer| answer.status != 202).all(|answer| answer.code() == "sold-out"));

    let mut serials = HashSet::new();
    for answer in accepted {
        assert_eq!(answer.header("location"), format!("/issuances/{}", answer.id()));
        let decided = system.client.decided(&answer.id()).await;
        assert_eq!(decided.state(), "issued");
        assert!(serials.insert(decided.body["serial"].as_u64().expect("a serial")));
    }
    assert_eq!(serials, (1..=100).collect());
    let stock = system.settled(&coupon).await;
    assert_eq!((stock.remaining, stock.reserved, stock.issued), (0, 0, 100));
    assert_eq!(system.issued_serials(&coupon).await, (1..=100).collect::<Vec<_>>());
    assert_eq!(system.queue().await, (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_user_on_fifty_connections_gets_one_unit_and_one_id() {
    let system = System::builder().flags(&["--user-rate", "0"]).start().await;
    let coupon = system.coupon("summer", 10, 1).await;
    system.users("u", 1).await;
    let same_user = vec!["u0".to_owned(); 50];

    let answers = rush(&system, &same_user, "summer").await;
    assert!(answers.iter().all(|answer| answer.status == 202), "{answers:?}");
    let ids: HashSet<_> = answers.iter().map(|answer| answer.id()).collect();
    assert_eq!(ids.len(), 1);
    assert_eq!(answers.iter().filter(|answer| !answer.is_replay()).count(), 1);
    assert_eq!(system.stock(&coupon).await.reserved, 1);

    system.worker();
    let id = answers[0].id();
    assert_eq!(system.client.decided(&id).await.state(), "issued");
    let stock = system.settled(&coupon).await;
    assert_eq!((stock.remaining, stock.issued), (9, 1));
    let late = rush(&system, &same_user, "summer").await;
    assert!(late.iter().all(|answer| answer.code() == "already-issued"), "{late:?}");
    assert_eq!(late[0].body["userCoupons"], serde_json::json!([format!("/user-coupons/u0/{id}")]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_unit_goes_to_one_of_many() {
    let system = System::start().await;
    system.worker();
    let users = system.users("u", 20).await;
    for round in 0..10 {
        let name = format!("last-{round}");
        let coupon = system.coupon(&name, 1, 1).await;
        let answers = rush(&system, &users, &name).await;
        assert_eq!(answers.iter().filter(|answer| answer.status == 202).count(), 1, "round {round}");
        let stock = system.settled(&coupon).await;
        assert_eq!((stock.remaining, stock.issued), (0, 1));
    }
}

#[tokio::test]
async fn a_coupon_opens_at_its_time_without_a_restart() {
    let system = System::start().await;
    system.worker();
    system.users("u", 1).await;
    // So that a busy machine asks before it, too.
    let starts_at = at(3);
    system.coupon_within("soon", 1, 1, starts_at, at(60)).await;
    let early = system.client.issue("u0", "soon", None).await;
    assert_eq!((early.status, early.code()), (409, "not-started"));
    assert_eq!(early.body["startsAt"], starts_at.to_string());
    assert!(early.body["retryAfterMs"].as_u64().is_some_and(|ms| ms <= 3_000), "{early:?}");

    let accepted = crate::helpers::eventually("the coupon opens", async || {
        let answer = system.client.issue("u0", "soon", None).await;
        (answer.status == 202).then_some(answer)
    })
    .await;
    let accepted_at: jiff::Timestamp =
        accepted.body["acceptedAt"].as_str().expect("a time").parse().expect("a time");
    assert!(accepted_at >= starts_at);
    assert_eq!(system.client.decided(&accepted.id()).await.state(), "issued");
}

#[tokio::test]
async fn a_coupon_whose_maker_died_before_loading_it_is_loaded_by_the_first_request() {
    let system = System::start().await;
    system.worker();
    system.users("u", 1).await;
    system.coupon_record("orphan", 5, 1, at(-60), at(60)).await;
    let shown = system.client.get("/coupons/orphan").await;
    assert_eq!(
        shown.body["stock"],
        serde_json::json!({"total": 5, "remaining": 5, "reserved": 0, "issued": 0})
    );
    let answer = system.client.issue("u0", "orphan", None).await;
    assert_eq!(answer.status, 202);
    assert_eq!(system.client.decided(&answer.id()).await.body["serial"], 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_limit_of_three_each_user_gets_up_to_three_units() {
    let system = System::start().await;
    system.worker();
    system.worker();
    let coupon = system.coupon("three", 100, 3).await;
    let users = system.users("u", 4).await;
    let requests =
        users.iter().flat_map(|user| (0..5).map(move |attempt| (user.clone(), format!("key-{attempt}"))));
    let answers = join_all(requests.map(|(user, key)| {
        let client = system.client.clone();
        async move { client.issue(&user, "three", Some(&key)).await }
    }))
    .await;
    assert_eq!(answers.iter().filter(|answer| answer.status == 202).count(), 12);
    assert_eq!(answers.iter().filter(|answer| answer.code() == "already-issued").count(), 8);
    let stock = system.settled(&coupon).await;
    assert_eq!((stock.remaining, stock.issued), (88, 12));
    for user in &users {
        let held = system.client.get(&format!("/user-coupons/{user}")).await;
        let mut nths: Vec<_> =
            held.body["items"].as_array().expect("items").iter().map(|unit| unit["nth"].as_u64()).collect();
        nths.sort_unstable();
        assert_eq!(nths, [Some(1), Some(2), Some(3)]);
    }
}
