//! A deployment on one Redis goes on on a cluster: its programs stop, and start with another `--redis-url`.

use futures::future::join_all;
use serde_json::json;

use super::deployment::*;
use crate::helpers::{at, cluster, eventually, redis};

/// Units of the coupon, users who hold one before, and users whose requests are undecided when the Redis is left.
const UNITS: u32 = 20;
const HOLDERS: usize = 12;
const UNDECIDED: usize = 3;
const USERS: usize = 40;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_redis_becomes_a_cluster_by_a_restart_and_a_rebuild_and_the_accounts_are_exact() {
    let (single, _folder) = redis().await;
    let deployment = Deployment::new().await;
    let (api, worker) = (deployment.api(&single.url()).await, deployment.worker(&single.url()).await);
    make_coupon(&api.client, UNITS).await;
    let users: Vec<String> = (0..USERS).map(|number| format!("u{number}")).collect();
    let mut held = Vec::new();
    for user in &users[..HOLDERS] {
        let id = issued_soon(&api.client, user).await.id();
        assert_eq!(api.client.decided(&id).await.state(), "issued");
        held.push(id);
    }
    worker.dies().await;
    let mut undecided = Vec::new();
    for user in &users[HOLDERS..HOLDERS + UNDECIDED] {
        undecided.push(issued_soon(&api.client, user).await.id());
    }
    api.dies().await;

    let folder = tempfile::tempdir().expect("a folder");
    let cluster = cluster(&folder, 0).await;
    let (api, _worker) = (deployment.api(&cluster.url()).await, deployment.worker(&cluster.url()).await);
    let served = issued_soon(&api.client, &users[0]).await;
    assert_eq!((served.status, served.code()), (409, "already-issued"), "{served:?}");
    for id in &held {
        assert_eq!(api.client.get(&format!("/issuances/{id}")).await.state(), "issued");
    }
    for id in &undecided {
        let answer = api.client.get(&format!("/issuances/{id}")).await;
        assert!(answer.status == 404 && answer.body["redisRecoveredAt"].is_string(), "{answer:?}");
    }

    let answers = join_all(users.iter().map(|user| issued_soon(&api.client, user))).await;
    let accepted: Vec<_> = answers.iter().filter(|answer| answer.status == 202).collect();
    assert_eq!(accepted.len(), UNITS as usize - HOLDERS, "{answers:?}");
    for answer in accepted {
        assert_eq!(api.client.decided(&answer.id()).await.state(), "issued");
    }
    let coupon = api.client.get("/coupons/c").await;
    let stock = &coupon.body["stock"];
    assert_eq!((&stock["remaining"], &stock["issued"]), (&json!(0), &json!(UNITS)), "{coupon:?}");

    // Coupons made from now on lie on the partitions that the cluster brought.
    let new = json!({"id": "new", "name": "n", "total": 1, "startsAt": at(-60).to_string(), "endsAt": at(3600).to_string()});
    assert_eq!(api.client.post("/coupons", new).await.status, 201);
    let id = eventually("the new coupon is served", async || {
        let answer = api.client.issue("u0", "new", None).await;
        (answer.status == 202).then(|| answer.id())
    })
    .await;
    assert_eq!(api.client.decided(&id).await.state(), "issued");
    let (code, said) = deployment.ctl(&["partition", "list", "--json"], &cluster.url()).await;
    let listed: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!((code, listed.as_array().map(Vec::len)), (Some(0), Some(65)), "{said}");
    let (code, said) = deployment.ctl(&["audit", "--full"], &cluster.url()).await;
    assert_eq!(code, Some(0), "{said}");
}
