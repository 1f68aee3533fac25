//! What MongoDB remembers: which Redis was opened last, and who recovers it.

use std::sync::Arc;

use clap::Parser;
use coupon_system::config::ApiCommand;
use coupon_system::ids::{IssuanceId, PartitionId};
use coupon_system::issuance::reserve::Reserved;
use coupon_system::process;
use coupon_system::recovery::{
    CertifyOutcome, ProgressCallback, RecoveryMode, RecoveryOutcome, RecoveryStep, ignore_progress,
};
use coupon_system::redis::keys::certificate;
use coupon_system::service::ServiceStore;
use mongodb::bson::{DateTime, Document, doc};
use tokio_util::sync::CancellationToken;

use crate::helpers::{System, at, eventually, recovered, redis};

use super::deployment::*;

#[tokio::test]
async fn nothing_is_404_once_another_redis_was_opened() {
    let system = System::start().await;
    let leases = system.backends.database.collection::<Document>("recovery");
    let another = vec![doc! {"$set": {
        "opened": {"term": {"$add": ["$term", 1]}, "epoch": "", "instance": "another/0"}, "servedAt": "$$NOW",
    }}];
    leases.update_one(doc! {}, another).await.expect("it is written");
    let nobodys = IssuanceId::generate(PartitionId::ONE);
    let answer = system.client.get(&format!("/issuances/{nobodys}")).await;
    assert_eq!((answer.status, answer.code()), (503, "warming-up"), "{answer:?}");
    eventually("it takes the place of the one that serves no more", async || {
        let answer = system.client.get(&format!("/issuances/{nobodys}")).await;
        keeps_its_word(&answer);
        (answer.status == 404).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_a_program_that_does_not_know_of_openings_has_opened_is_remembered() {
    let deployment = Deployment::new().await;
    let (server, _folder) = redis().await;
    let api = deployment.api(&server.url()).await;
    make_coupon(&api.client, 1).await;
    let leases = deployment.leases().await;
    let before = leases.find_one(doc! {}).await.expect("a read").expect("a lease");
    let opened = before.get_document("opened").expect("it is remembered").clone();
    for forgotten in [
        doc! {"$unset": {"opened": "", "servedAt": ""}},
        doc! {"$set": {"opened": {"term": 0_i64, "epoch": "", "instance": "another/0"}}},
    ] {
        leases.update_one(doc! {}, forgotten).await.expect("it is forgotten");
        let (code, said) = deployment.ctl(&["check"], &server.url()).await;
        assert_eq!(code, Some(0), "{said}");
        ready(&api.client).await;
        // Neither the term nor the epoch is another: nothing was recovered for it.
        eventually("it is remembered again", async || {
            let lease = leases.find_one(doc! {}).await.expect("a read").expect("a lease");
            (lease.get_document("opened").is_ok_and(|now| *now == opened)).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_recovery_lease_that_ends_later_than_any_can_is_free() {
    let system = System::start().await;
    let leases = system.backends.database.collection::<Document>("recovery");
    let until = DateTime::from_millis(at(3600).as_millisecond());
    let held = doc! {"$set": {"holder": "of before the clock was put back", "until": until}};
    leases.update_one(doc! {}, held).await.expect("it is written");
    system.command::<::redis::Value>(&["DEL", &certificate(PartitionId::ONE)]).await;
    recovered(&system).await;
    assert_eq!(system.client.get("/readyz").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_that_a_recoverer_found_out_of_date_is_not_certified_by_the_next_one_if_it_dies() {
    let mut system = System::start().await;
    system.leaves_in_flight();
    let coupon = system.coupon("c", 5, 1).await;
    system.accepted("u0", &coupon).await;
    system.stop().await;
    // Another Redis is opened, the service is paused there, and then no process uses it any more.
    let (other, _folder) = redis().await;
    let (other_url, uri) = (other.url(), system.mongodb_uri.clone());
    let command = ApiCommand::parse_from([
        "x",
        "--redis-url",
        &other_url,
        "--mongodb-uri",
        &uri,
        "--mongodb-database",
        &system.database,
    ]);
    let there = process::connect_to_any(&command.redis, &command.mongodb).await.expect("they fit");
    let opened = there
        .recovery_supervisors()
        .next()
        .expect("that of partition 0")
        .recover(RecoveryMode::Rebuild, &ignore_progress(), &CancellationToken::new())
        .await;
    assert!(matches!(opened, Ok(CertifyOutcome::Recovered(RecoveryOutcome::Rebuilt { .. }))), "{opened:?}");
    ServiceStore::new(&system.backends.database).set_paused(true).await.expect("it is paused");

    let stop = CancellationToken::new();
    let dies = stop.clone();
    let watch: ProgressCallback = Arc::new(move |step| {
        if matches!(step, RecoveryStep::Closed) {
            dies.cancel();
        }
    });
    let keeper = system.supervisor();
    assert!(keeper.ensure().await.is_err(), "the other was seen to serve a moment ago");
    eventually("the first recoverer has closed it, and died", async || {
        let _ = keeper.recover(RecoveryMode::VerifyFirst, &watch, &stop).await;
        stop.is_cancelled().then_some(())
    })
    .await;
    let key = certificate(PartitionId::ONE);
    let held: (String, Option<String>, Option<String>) =
        system.command(&["HMGET", &key, "state", "epoch", "behind"]).await;
    assert!(matches!(&held, (state, None, Some(_)) if state == "closed"), "{held:?}");

    // The other serves again. By the term alone, this Redis would be the later one now.
    assert!(
        there
            .recovery_supervisors()
            .next()
            .expect("that of partition 0")
            .ensure()
            .await
            .expect("it is certified")
    );
    let next = system.supervisor();
    let kept = next.recover(RecoveryMode::VerifyFirst, &ignore_progress(), &CancellationToken::new()).await;
    assert!(kept.is_err(), "it keeps out: {kept:?}");
    let kept = eventually("the other is silent, and this one takes its place", async || {
        match next.recover(RecoveryMode::VerifyFirst, &ignore_progress(), &CancellationToken::new()).await {
            Ok(CertifyOutcome::Watching) | Err(_) => None,
            kept => Some(kept),
        }
    })
    .await;
    assert!(
        matches!(kept, Ok(CertifyOutcome::Recovered(RecoveryOutcome::Rebuilt { survivors: 1, .. }))),
        "{kept:?}"
    );
    assert_eq!(system.command::<Option<String>>(&["HGET", &key, "behind"]).await, None);
    let answer = system.reserve("u1", &coupon).await;
    assert!(matches!(answer, Reserved::Paused), "the pause that it missed holds: {answer:?}");
}
