//! Operators change a campaign while it runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use coupon_system::ids::CouponId;
use futures::future::join_all;
use serde_json::json;

use crate::helpers::{Answer, System, at, eventually};

async fn post(system: &System, path: &str) -> Answer {
    system.client.send(system.client.request("POST", path)).await
}

async fn patch(system: &System, path: &str, body: serde_json::Value) -> Answer {
    system.client.send(system.client.request("PATCH", path).json(&body)).await
}

#[tokio::test]
async fn a_paused_coupon_honours_what_it_accepted_and_goes_on_when_resumed() {
    let system = System::start().await;
    system.users("u", 2).await;
    system.coupon("c", 5, 1).await;
    let accepted = system.client.issue("u0", "c", None).await;
    let paused = post(&system, "/coupons/c/pause").await;
    assert_eq!((paused.status, paused.body["status"].as_str()), (200, Some("paused")));
    let refused = system.client.issue("u1", "c", None).await;
    assert_eq!((refused.status, refused.code()), (409, "paused"));
    let again = system.client.issue("u0", "c", None).await;
    assert_eq!((again.status, again.id()), (202, accepted.id()), "who was accepted keeps their place");
    system.worker();
    assert_eq!(system.client.decided(&accepted.id()).await.state(), "issued");

    assert_eq!(post(&system, "/coupons/c/resume").await.body["status"], "open");
    assert_eq!(system.client.issue("u1", "c", None).await.status, 202);
    assert_eq!(post(&system, "/coupons/none/pause").await.code(), "coupon-not-found");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restock_in_mid_rush_issues_exactly_the_new_total() {
    let system = System::start().await;
    let coupon = system.coupon("c", 50, 1).await;
    let users = system.users("u", 300).await;
    system.worker();
    let restocked = Arc::new(AtomicBool::new(false));
    let requests = users.iter().map(|user| {
        let (client, user, restocked) = (system.client.clone(), user.clone(), Arc::clone(&restocked));
        tokio::spawn(async move {
            loop {
                // "Sold out" is final only for a request that was sent after the restock.
                let last_word = restocked.load(Ordering::SeqCst);
                let answer = client.issue(&user, "c", None).await;
                if answer.code() != "sold-out" || last_word {
                    return answer;
                }
            }
        })
    });
    let rush = tokio::spawn(join_all(requests.collect::<Vec<_>>()));
    eventually("it is sold out", async || (system.stock(&coupon).await.remaining == 0).then_some(())).await;
    let stocked = system.client.post("/coupons/c/restock", json!({"total": 120})).await;
    assert_eq!((stocked.status, stocked.body["stock"]["total"].clone()), (200, json!(120)));
    restocked.store(true, Ordering::SeqCst);
    rush.await.expect("no panic");
    let stock = system.settled(&coupon).await;
    assert_eq!((stock.total, stock.remaining, stock.issued), (120, 0, 120));
    assert_eq!(system.issued_serials(&coupon).await, (1..=120).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_restock_beyond_the_largest_total_is_refused_by_the_field() {
    let system = System::start().await;
    system.coupon("c", 10, 1).await;
    for add in [9_999_991, 0] {
        let request = system.client.request("POST", "/coupons/c/restock").json(&json!({"add": add}));
        let refused = system.client.send(request.header("idempotency-key", "k")).await;
        assert_eq!((refused.status, refused.body["errors"][0]["pointer"].as_str()), (422, Some("#/add")));
    }
    assert_eq!(system.client.get("/coupons/c").await.body["stock"]["total"], 10);
}

#[tokio::test]
async fn an_archived_coupon_stays_archived() {
    let system = System::start().await;
    system.users("u", 1).await;
    system.coupon("c", 10, 1).await;
    assert_eq!(post(&system, "/coupons/c/archive").await.body["status"], "archived");
    assert_eq!(system.client.issue("u0", "c", None).await.code(), "archived");
    assert_eq!(post(&system, "/coupons/c/archive").await.status, 200);
    for path in ["/coupons/c/resume", "/coupons/c/pause"] {
        assert_eq!(post(&system, path).await.code(), "archived", "{path}");
    }
    assert_eq!(patch(&system, "/coupons/c", json!({"name": "x"})).await.code(), "archived");
}

#[tokio::test]
async fn an_edit_moves_what_may_still_be_moved() {
    let system = System::start().await;
    system.users("u", 2).await;
    system.coupon_within("later", 5, 1, at(600), at(1200)).await;
    let opened =
        patch(&system, "/coupons/later", json!({"startsAt": at(-1).to_string(), "name": "now"})).await;
    assert_eq!((opened.status, opened.body["name"].as_str()), (200, Some("now")), "{opened:?}");
    assert_eq!(system.client.issue("u0", "later", None).await.status, 202);

    for (body, pointer) in [
        (json!({"startsAt": at(60).to_string()}), "#/startsAt"),
        (json!({"endsAt": at(900).to_string()}), "#/endsAt"),
        (json!({"total": 9}), "#/total"),
        (json!({"name": ""}), "#/name"),
    ] {
        let refused = patch(&system, "/coupons/later", body).await;
        assert_eq!((refused.status, refused.body["errors"][0]["pointer"].as_str()), (422, Some(pointer)));
    }
    let longer = at(2400);
    assert_eq!(patch(&system, "/coupons/later", json!({"endsAt": longer.to_string()})).await.status, 200);
    assert_eq!(system.client.issue("u1", "later", None).await.status, 202);
    let ended = patch(&system, "/coupons/later", json!({"endsAt": at(-1).to_string()})).await;
    assert_eq!((ended.status, ended.body["status"].as_str()), (200, Some("ended")), "{ended:?}");
    system.users("late", 1).await;
    assert_eq!(system.client.issue("late0", "later", None).await.code(), "ended");
    system.drain().await;
}

#[tokio::test]
async fn while_the_service_is_paused_nothing_is_accepted_and_everything_is_decided() {
    let system = System::start().await;
    system.users("u", 2).await;
    system.coupon("c", 5, 1).await;
    let accepted = system.client.issue("u0", "c", None).await;
    assert_eq!(post(&system, "/pause").await.body, json!({"paused": true}));
    assert_eq!(system.client.issue("u1", "c", None).await.code(), "paused");
    system.worker();
    assert_eq!(system.client.decided(&accepted.id()).await.state(), "issued");
    // A rebuild does not forget it.
    let flushed: redis::RedisResult<()> =
        redis::cmd("FLUSHALL").query_async(&mut system.partition().connection()).await;
    flushed.expect("it is flushed");
    let answer = eventually("it is recovered", async || {
        let answer = system.client.issue("u1", "c", None).await;
        (answer.status != 503).then_some(answer)
    })
    .await;
    assert_eq!(answer.code(), "paused");
    assert_eq!(post(&system, "/resume").await.body, json!({"paused": false}));
    assert_eq!(system.client.issue("u1", "c", None).await.status, 202);
    system.drain().await;
}

#[tokio::test]
async fn a_change_that_did_not_reach_redis_arrives_by_itself() {
    let system = System::start().await;
    system.users("u", 1).await;
    let coupon: CouponId = system.coupon("c", 5, 1).await;
    // As if the process died between its writes to MongoDB and Redis.
    let change = coupon_system::coupon::CouponChange::Pause;
    system.backends.coupons.change(&coupon, &change, None).await.expect("it is changed");
    eventually("Redis hears of it", async || {
        let state: Option<u8> = redis::cmd("HGET")
            .arg(system.keys().coupon(&coupon))
            .arg("paused")
            .query_async(&mut system.partition().connection())
            .await
            .expect("an answer");
        (state == Some(1)).then_some(())
    })
    .await;
    assert_eq!(system.client.issue("u0", "c", None).await.code(), "paused");
}
