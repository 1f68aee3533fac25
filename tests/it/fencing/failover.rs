//! A replica takes the place of its primary, and the primary lives on or comes back.

use std::time::Duration;

use coupon_system::dev::servers::RedisServer;
use coupon_system::ids::PartitionId;
use coupon_system::redis::keys::certificate;

use crate::helpers::{eventually, redis};

use super::deployment::*;

/// B, a replica of A, is promoted, and A's address leads to it, while every connection to A stays open.
async fn demoted(follow: impl Fn(&RedisServer) -> String) {
    let (a, _a) = redis().await;
    let (b, _b) = replica(&a).await;
    let (address, deployment) = (MovableAddress::of(&a).await, Deployment::new().await);
    let (api, worker) = (deployment.api(&address.url()).await, deployment.worker(&address.url()).await);
    make_coupon(&api.client, 5).await;
    let id = issued_soon(&api.client, "u0").await.id();
    assert_eq!(api.client.decided(&id).await.state(), "issued");
    follows(&b, &a).await;

    let _: ::redis::Value = tell(&b, &["REPLICAOF", "NO", "ONE"]).await;
    address.leads_to(&b);
    let port = follow(&b);
    let _: ::redis::Value = tell(&a, &["REPLICAOF", "127.0.0.1", &port]).await;
    let next = issued_soon(&api.client, "u1").await;
    assert_eq!(next.status, 202, "{next:?}");
    assert_eq!(api.client.decided(&next.id()).await.state(), "issued", "the worker is there too");
    ready(&api.client).await;
    ready(&worker.client).await;
    eventually("the outcome feed listens there", async || {
        let channels: Vec<String> = tell(&b, &["PUBSUB", "CHANNELS", "coupon:*"]).await;
        (channels.len() == 1).then_some(())
    })
    .await;
    // The programs have left A: its only client is this test's.
    eventually("A is left", async || {
        let clients: String = tell(&a, &["CLIENT", "LIST", "TYPE", "normal"]).await;
        let listeners: String = tell(&a, &["CLIENT", "LIST", "TYPE", "pubsub"]).await;
        (clients.trim().lines().count() <= 1 && listeners.trim().is_empty()).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_became_a_replica_of_its_successor_is_left_on_every_connection() {
    demoted(|b| b.port().to_string()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_is_read_only_though_its_certificate_fits_is_left_on_every_connection() {
    // A follows a server that it never reaches, so that its data stays the same.
    demoted(|_| "1".to_owned()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_primary_that_comes_back_with_a_certificate_that_fits_is_rebuilt_before_it_answers() {
    let (a, _a) = redis().await;
    let (mut b, _b) = replica(&a).await;
    let (address, deployment) = (MovableAddress::of(&a).await, Deployment::new().await);
    let api = deployment.api(&address.url()).await;
    make_coupon(&api.client, 3).await;
    let kept = issued_soon(&api.client, "u0").await.id();
    follows(&b, &a).await;
    let held = async |server: &RedisServer| -> (String, u64) {
        tell(server, &["HMGET", &certificate(PartitionId::ONE), "epoch", "term"]).await
    };
    let (first, _) = held(&a).await;

    // B takes over while A is out of reach, so that A is not demoted.
    let _: ::redis::Value = tell(&b, &["REPLICAOF", "NO", "ONE"]).await;
    address.leads_to(&b);
    address.cut();
    let lost = issued_soon(&api.client, "u1").await;
    assert_eq!(lost.status, 202, "{lost:?}");
    let (_, term) = held(&b).await;

    // B dies, and A returns with its old data.
    b.kill().await.expect("it is killed");
    address.leads_to(&a);
    address.cut();
    let fresh = deployment.api(&address.url()).await;
    let poll = format!("/issuances/{}", lost.id());
    for client in [&fresh.client, &api.client] {
        eventually("the truth is told", async || {
            let answer = client.get(&poll).await;
            keeps_its_word(&answer);
            (answer.status == 404).then_some(())
        })
        .await;
    }
    let (epoch, later) = held(&a).await;
    assert!(epoch != first && later > term, "rebuilt: {first} {epoch}, {term} {later}");
    // What A accepted before the failover, and still has, is decided.
    assert_eq!(fresh.client.get(&format!("/issuances/{kept}")).await.state(), "queued");
    let _worker = deployment.worker(&address.url()).await;
    assert_eq!(api.client.decided(&kept).await.state(), "issued");
    let next = issued_soon(&fresh.client, "u2").await;
    assert_eq!(fresh.client.decided(&next.id()).await.state(), "issued");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_lives_on_beside_its_successor_accepts_nothing_that_the_other_does_not_know() {
    let (a, _a) = redis().await;
    let (b, _b) = replica(&a).await;
    let (address, deployment) = (MovableAddress::of(&a).await, Deployment::new().await);
    let api = deployment.api(&address.url()).await;
    make_coupon(&api.client, 10_000).await;
    issued_soon(&api.client, "u").await;
    follows(&b, &a).await;

    // B is promoted, and new connections lead to it; A is not demoted, and connections to A stay open.
    let _: ::redis::Value = tell(&b, &["REPLICAOF", "NO", "ONE"]).await;
    address.leads_to(&b);
    let started = std::time::Instant::now();
    let accepting = tokio::spawn({
        let client = api.client.clone();
        async move {
            let mut accepted = Vec::new();
            while started.elapsed() < Duration::from_secs(8) {
                let answer = client.issue(&format!("u{}", accepted.len()), "c", None).await;
                if answer.status == 202 {
                    accepted.push(answer.id());
                }
                // The pace of users who arrive one by one.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            accepted
        }
    });
    let fresh = deployment.api(&address.url()).await;
    ready(&fresh.client).await;
    let accepted = accepting.await.expect("no panic");
    assert!(!accepted.is_empty());
    ready(&api.client).await;
    for id in accepted {
        for client in [&api.client, &fresh.client] {
            let answer = client.get(&format!("/issuances/{id}")).await;
            // What A accepted before B was opened is lost with A, and the answer says so.
            assert!(answer.status == 200 || answer.body["redisRecoveredAt"].is_string(), "{answer:?}");
        }
    }
}
