//! Two Redis for one ledger, and two ledgers in one Redis.

use jiff::Timestamp;
use mongodb::bson::doc;
use serde_json::json;

use crate::helpers::{eventually, redis};

use super::deployment::*;

/// Two Redis serve one ledger at once; the second is never opened while the first serves.
async fn beside(one: &str, other: &str) {
    let deployment = Deployment::new().await;
    let api = deployment.api(one).await;
    make_coupon(&api.client, 2).await;
    let id = issued_soon(&api.client, "u0").await.id();

    let second = deployment.api(other).await;
    eventually("the second says why it is not certified, again and again", async || {
        (second.said("another Redis") >= 8).then_some(())
    })
    .await;
    for answer in [
        second.client.get(&format!("/issuances/{id}")).await,
        second.client.issue("u0", "c", None).await,
        second.client.get("/readyz").await,
    ] {
        assert_eq!((answer.status, answer.code()), (503, "warming-up"), "{answer:?}");
    }
    let (code, said) = deployment.ctl(&["audit", "--json"], other).await;
    assert!(code == Some(4) && said.contains("\"code\": \"another-redis\""), "{said}");
    for (words, exits) in [
        (&["check"] as &[&str], 5),
        (&["audit"], 4),
        (&["audit", "--full", "--repair"], 4),
        (&["recover"], 5),
    ] {
        let (code, said) = deployment.ctl(words, other).await;
        assert_eq!(code, Some(exits), "{words:?}: {said}");
        assert!(said.contains("another Redis") && said.contains("--redis-url"), "{words:?}: {said}");
    }
    for words in [&["check"] as &[&str], &["audit", "--full"], &["recover"]] {
        let (code, said) = deployment.ctl(words, one).await;
        assert_eq!(code, Some(0), "{words:?}: {said}");
    }
    let worker = deployment.worker(one).await;
    assert_eq!(api.client.decided(&id).await.state(), "issued", "the first goes on");

    // When no process uses the first any more, the second takes its place by itself.
    worker.dies().await;
    api.dies().await;
    let next = issued_soon(&second.client, "u1").await;
    assert_eq!(next.status, 202, "{next:?}");
    assert_eq!(second.client.get(&format!("/issuances/{id}")).await.state(), "issued");
    let coupon = second.client.get("/coupons/c").await;
    assert_eq!(coupon.body["stock"]["issued"], json!(1), "{coupon:?}");
    // The first does not take the place back.
    let first = deployment.api(one).await;
    eventually("the first says so now", async || (first.said("another Redis") >= 2).then_some(())).await;
    assert_eq!(first.client.issue("u2", "c", None).await.code(), "warming-up");
    let (code, said) = deployment.ctl(&["check"], one).await;
    assert!(code == Some(5) && said.contains("another Redis"), "{said}");

    // An operator makes it take the place back, and the second then keeps out.
    let (code, said) = deployment.ctl(&["recover", "--rebuild"], one).await;
    assert_eq!(code, Some(0), "{said}");
    eventually("the second notices", async || {
        (second.client.issue("u2", "c", None).await.code() == "warming-up").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_redis_beside_one_that_serves_is_not_certified_and_says_why() {
    let ((one, _one), (other, _other)) = (redis().await, redis().await);
    beside(&one.url(), &other.url()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_database_of_the_same_redis_is_a_second_redis() {
    let (server, _folder) = redis().await;
    beside(&server.url(), &format!("{}/1", server.url())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_deployments_in_one_redis_do_not_hear_each_others_outcomes() {
    let (server, _folder) = redis().await;
    let (production, staging) = (Deployment::new().await, Deployment::new().await);
    let api = production.api(&server.url()).await;
    make_coupon(&api.client, 1).await;
    let listening = async |count: usize| {
        eventually("so many channels are listened to", async || {
            let channels: Vec<String> = tell(&server, &["PUBSUB", "CHANNELS", "coupon:*"]).await;
            (channels.len() == count).then_some(channels)
        })
        .await
    };
    let own = listening(1).await.remove(0);
    let other_api = staging.api(&format!("{}/1", server.url())).await;
    make_coupon(&other_api.client, 1).await;
    let others = listening(2).await.into_iter().find(|channel| *channel != own).expect("another");

    let id = issued_soon(&api.client, "u0").await.id();
    let now = Timestamp::now().as_millisecond();
    let announced = format!("{id} I 1 1 {now} {now} c u0");
    let heard: u64 = tell(&server, &["PUBLISH", &others, &announced]).await;
    assert_eq!(heard, 1, "by the other deployment alone");
    assert_eq!(api.client.get(&format!("/issuances/{id}?wait=1")).await.state(), "queued");
    let _: u64 = tell(&server, &["PUBLISH", &own, &announced]).await;
    eventually("what is announced on its own channel is heard", async || {
        (api.client.get(&format!("/issuances/{id}")).await.state() == "issued").then_some(())
    })
    .await;
    let lease = production.leases().await.find_one(doc! {}).await.expect("a read").expect("a lease");
    assert!(own.ends_with(lease.get_str("ledger").expect("its name")), "{own}");
}
