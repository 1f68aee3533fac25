//! Without a fitting certificate the API refuses requests at once, and a rebuild loses no accepted request.

use coupon_system::Failure;
use coupon_system::coupon::stock;
use coupon_system::queue::dead;
use coupon_system::recovery::{self, LoadOutcome};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::helpers::{CTL, System, at, eventually, recovered};

#[tokio::test]
async fn the_first_boot_is_a_recovery_of_nothing() {
    let system = System::start().await;
    assert!(recovery::is_certified(system.partition()).await.expect("an answer"));
    assert_eq!(system.client.get("/readyz").await.status, 200);
    assert_eq!(system.queue().await, (0, 0));
}

#[tokio::test]
async fn a_restarted_redis_is_refused_until_its_data_was_found_intact() {
    let mut system = System::start().await;
    system.users("u", 30).await;
    let coupon = system.coupon("c", 20, 1).await;
    let mut ids = Vec::new();
    for number in 0..20 {
        ids.push(system.client.issue(&format!("u{number}"), "c", None).await.id());
    }
    // Half of them are decided and settled; a quarter is decided, and Redis does not know.
    let entries = system.take_entries().await;
    system.decider().process(&system.keys(), &entries[..10]).await.expect("settled");
    system.decider().decide(&system.keys(), &entries[10..15]).await.expect("decided");
    let before = system.keys().epoch();

    system.redis.kill().await.expect("it is killed");
    let away = system.client.issue("u25", "c", None).await;
    assert_eq!((away.status, away.code()), (503, "unavailable"));
    assert!(!away.header("retry-after").is_empty());
    assert_eq!(system.client.get(&format!("/issuances/{}", ids[19])).await.status, 503, "never 404");
    assert_eq!(system.client.get("/coupons/c").await.body["stock"], serde_json::Value::Null);
    system.redis.restart().await.expect("it is back");
    recovered(&system).await;
    assert_eq!(system.keys().epoch(), before, "nothing was lost, so nothing was built anew");

    let stock = system.stock(&coupon).await;
    assert_eq!((stock.remaining, stock.reserved, stock.issued), (0, 10, 10));
    assert_eq!(system.queue().await.0, 10);
    system.worker();
    for id in &ids {
        assert_eq!(system.client.decided(id).await.state(), "issued");
    }
    assert_eq!(system.issued_serials(&coupon).await, (1..=20).collect::<Vec<_>>());
    assert_eq!(system.client.issue("u25", "c", None).await.code(), "sold-out");
    assert_eq!(system.client.issue("u3", "c", None).await.code(), "already-issued");
}

#[tokio::test]
async fn a_flushed_redis_is_noticed_and_rebuilt_from_the_ledger() {
    let system = System::start().await;
    system.users("u", 10).await;
    let coupon = system.coupon("c", 5, 1).await;
    let worker = system.worker();
    for number in 0..3 {
        let id = system.client.issue(&format!("u{number}"), "c", None).await.id();
        system.client.decided(&id).await;
    }
    system.settled(&coupon).await;
    worker.cancel();
    system.command::<redis::Value>(&["FLUSHALL"]).await;
    recovered(&system).await;
    let stock = system.stock(&coupon).await;
    assert_eq!((stock.remaining, stock.reserved, stock.issued), (2, 0, 3));
    assert_eq!(system.client.issue("u0", "c", None).await.code(), "already-issued");
    system.worker();
    let mut accepted = 0;
    for number in 3..10 {
        let answer = system.client.issue(&format!("u{number}"), "c", None).await;
        accepted += u32::from(answer.status == 202);
    }
    assert_eq!(accepted, 2);
    assert_eq!(system.settled(&coupon).await.issued, 5);
}

#[tokio::test]
async fn what_was_lost_with_redis_is_404_in_truth_and_its_unit_is_free_again() {
    let system = System::start().await;
    system.users("u", 1).await;
    let coupon = system.coupon("c", 1, 1).await;
    let lost = system.client.issue("u0", "c", None).await.id();
    system.command::<redis::Value>(&["FLUSHALL"]).await;
    let refused = system.client.get(&format!("/issuances/{lost}")).await;
    assert!([503, 404].contains(&refused.status), "{refused:?}");
    recovered(&system).await;
    assert_eq!(system.client.get(&format!("/issuances/{lost}")).await.code(), "issuance-not-found");
    assert_eq!(system.stock(&coupon).await.remaining, 1);
}

#[tokio::test]
async fn after_a_rebuild_an_old_workers_late_insert_cannot_oversell() {
    let system = System::start().await;
    let coupon = system.coupon("c", 2, 1).await;
    system.accepted("u0", &coupon).await;
    let (old_keys, old_entries) = (system.keys(), system.take_entries().await);
    system.command::<redis::Value>(&["FLUSHALL"]).await;
    recovered(&system).await;
    // Redis reserves units 1 and 2 again while the old worker still has unit 1 in hand.
    system.accepted("u1", &coupon).await;
    system.accepted("u2", &coupon).await;
    let entries = system.take_entries().await;
    system.decider().process(&old_keys, &old_entries).await.expect("it decides, and settles nothing");
    system.decider().process(&system.keys(), &entries).await.expect("they are decided");
    assert_eq!(system.issued_serials(&coupon).await, [1, 2]);
    let rejected: Vec<_> = system
        .backends
        .ledger
        .decisions(&entries.iter().map(|entry| entry.id).collect::<Vec<_>>())
        .await
        .expect("a read")
        .into_values()
        .map(|decision| decision.expect("it is readable"))
        .filter(|decision| matches!(decision.outcome, coupon_system::issuance::Outcome::Rejected { .. }))
        .collect();
    assert_eq!(rejected.len(), 1, "one of the two was rejected: the ledger had its unit");
    assert_eq!(system.queue().await, (0, 0));
}

#[tokio::test]
async fn two_keepers_at_once_rebuild_once() {
    let system = System::start().await;
    let first = system.keys().epoch();
    system
        .command::<redis::Value>(&["DEL", &coupon_system::redis::keys::certificate(system.partition().id())])
        .await;
    let (one, two) = (system.supervisor(), system.supervisor());
    let (one, two) = tokio::join!(one.ensure(), two.ensure());
    one.expect("no failure");
    two.expect("no failure");
    recovered(&system).await;
    assert_ne!(system.keys().epoch(), first);
    let keys: Vec<String> = redis::cmd("KEYS")
        .arg("coupon:*")
        .query_async(&mut system.partition().connection())
        .await
        .expect("the keys");
    let open = system.keys();
    let left: Vec<_> =
        keys.iter().filter(|key| !key.starts_with(open.prefix()) && **key != open.certificate()).collect();
    assert!(left.is_empty(), "keys of other epochs were left: {left:?}");
}

#[tokio::test]
async fn a_coupon_that_is_loaded_is_not_loaded_over() {
    let system = System::start().await;
    let coupon = system.coupon_record("c", 3, 1, at(-60), at(60)).await;
    let loader = system.backends.loaders().first().clone();
    assert_eq!(loader.load(&coupon.id).await.expect("a load"), LoadOutcome::Now);
    system.accepted("u0", &coupon.id).await;
    assert_eq!(loader.load(&coupon.id).await.expect("a load"), LoadOutcome::Before);
    assert_eq!(system.stock(&coupon.id).await.reserved, 1);
    system.drain().await;
}

#[tokio::test]
async fn while_nothing_is_certified_every_answer_is_503_and_says_when_to_come_back() {
    // No API runs whose supervisor would recover meanwhile.
    let (redis, _folder) = crate::helpers::redis().await;
    let nodes = coupon_system::redis::RedisNodes::open(&redis.url()).expect("a URL");
    let partition = coupon_system::redis::Partition::new(coupon_system::ids::PartitionId::ONE, &nodes);
    let refused = stock::read(&partition, &["c".parse().expect("an id")]).await;
    assert!(matches!(refused, Err(Failure::Uncertified)), "{refused:?}");
    let problem = coupon_system::http::Problem::from(Failure::Uncertified);
    let told = problem.to_value(coupon_system::http::Language::English, "r", "");
    assert_eq!((told["code"].as_str(), told["status"].as_u64()), (Some("warming-up"), Some(503)));
    assert!(told["retryAfterMs"].as_u64().is_some());
}

#[tokio::test]
async fn a_recoverer_that_slept_cannot_delete_what_its_successor_built() {
    let system = System::start().await;
    let coupon = system.coupon("c", 3, 1).await;
    let id = system.accepted("u0", &coupon).await;
    let forget = redis::Script::new(include_str!("../../src/recovery/forget.lua"));
    let keys = system.keys();
    let forgotten: Vec<String> = forget
        .key(keys.certificate())
        .key(keys.in_flight())
        .arg(coupon_system::redis::Epoch::new().to_string())
        .invoke_async(&mut system.partition().connection())
        .await
        .expect("an answer");
    assert_eq!(forgotten, ["superseded"]);
    assert!(system.is_in_flight(id).await);
    system.drain().await;
}

#[tokio::test]
async fn a_missing_group_is_rebuilt_and_what_was_accepted_is_decided() {
    let system = System::start().await;
    let coupon = system.coupon("c", 3, 1).await;
    let id = system.accepted("u0", &coupon).await;
    system.worker();
    system
        .command::<redis::Value>(&[
            "XGROUP",
            "DESTROY",
            &system.keys().stream(),
            coupon_system::redis::keys::GROUP,
        ])
        .await;
    let late = system.accepted("u1", &coupon).await;
    for id in [id, late] {
        let decided = eventually("it is decided", async || {
            let answer = system.client.get(&format!("/issuances/{id}")).await;
            (answer.status == 200 && answer.state() != "queued").then_some(answer)
        })
        .await;
        assert_eq!(decided.state(), "issued");
    }
}

#[tokio::test]
async fn while_somebody_else_recovers_a_keeper_asks_at_a_measured_pace() {
    let system = System::start().await;
    let certificate = coupon_system::redis::keys::certificate(system.partition().id());
    // Another process holds the lease, and is slow.
    let leases = system.backends.database.collection::<mongodb::bson::Document>("recovery");
    let held = mongodb::bson::doc! {"$set": {"holder": "slow", "until": mongodb::bson::DateTime::from_millis(at(14).as_millisecond())}};
    leases.update_one(mongodb::bson::doc! {}, held).await.expect("it is held");
    system.command::<redis::Value>(&["HSET", &certificate, "state", "closed"]).await;
    let (before, started) = (system.scripts_run().await, std::time::Instant::now());
    eventually("a while passes", async || (started.elapsed().as_millis() > 1_500).then_some(())).await;
    let asked = system.scripts_run().await - before;
    assert!(asked < 40, "{asked} calls in a second and a half");
}

/// `couponctl recover --json`: its exit code, what it printed, and what it said meanwhile.
async fn recover(system: &System, database: &str, flags: &[&str]) -> (Option<i32>, Value, String) {
    let mut command = Command::new(CTL);
    command.args(["recover", "--json", "--redis-url", &system.redis.url()]);
    command.args(["--mongodb-uri", &system.mongodb_uri, "--mongodb-database", database]).args(flags);
    let output = command.output().await.expect("it runs");
    let said = String::from_utf8(output.stderr).expect("UTF-8");
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap_or_default(), said)
}

#[tokio::test]
async fn by_hand_a_recovery_shows_its_steps_and_leaves_alone_what_is_certified() {
    let system = System::start().await;
    let coupon = system.coupon("c", 3, 1).await;
    system.accepted("u0", &coupon).await;
    let before = system.keys().epoch();
    let (code, result, _) = recover(&system, &system.database, &[]).await;
    assert_eq!((code, &result["result"]), (Some(0), &json!("certified")));

    let (code, result, said) = recover(&system, &system.database, &["--rebuild"]).await;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(
        (&result["result"], &result["inFlight"], &result["coupons"]),
        (&json!("rebuilt"), &json!(1), &json!(1))
    );
    for step in ["closed", "1 in flight", "1 of them undecided", "built", "open"] {
        assert!(said.contains(step), "no {step:?} in:\n{said}");
    }
    recovered(&system).await;
    assert_ne!(system.keys().epoch(), before);
    assert_eq!(system.stock(&coupon).await.reserved, 1);
    system.drain().await;
}

#[tokio::test]
async fn another_database_on_the_same_redis_is_refused_until_it_is_told_to_take_over() {
    let system = System::start().await;
    let coupon = system.coupon("c", 3, 1).await;
    let another = crate::helpers::database();
    let (code, _, said) = recover(&system, &another, &[]).await;
    assert_eq!(code, Some(5), "{said}");
    assert!(said.contains("another MongoDB database") && said.contains("--rebuild"), "{said}");
    assert_eq!(system.stock(&coupon).await.remaining, 3, "and it changed nothing");

    let (code, result, said) = recover(&system, &another, &["--rebuild"]).await;
    assert_eq!((code, &result["coupons"]), (Some(0), &json!(0)), "{said}");
    let (code, ..) = recover(&system, &another, &[]).await;
    assert_eq!(code, Some(0), "it is this one's now");
    let (code, ..) = recover(&system, &system.database, &[]).await;
    assert_eq!(code, Some(5), "and no longer that one's");
}

#[tokio::test]
async fn a_dead_letter_is_still_one_after_a_rebuild_and_can_be_redriven() {
    let system = System::start().await;
    let coupon = system.coupon("c", 3, 1).await;
    let (dead_id, id) = (system.accepted("u0", &coupon).await, system.accepted("u1", &coupon).await);
    let entries = system.take_entries().await;
    let why = "a reason with spaces";
    let keys = system.keys();
    assert!(
        dead::set_aside(system.partition(), &keys, &entries[0].entry, dead_id, 3, why).await.expect("done")
    );
    let before = dead::get(system.partition(), dead_id).await.expect("a look").expect("a dead letter");

    let (code, ..) = recover(&system, &system.database, &["--rebuild"]).await;
    assert_eq!(code, Some(0));
    recovered(&system).await;
    let after = dead::get(system.partition(), dead_id).await.expect("a look").expect("a dead letter");
    assert_eq!((after.set_aside_at, after.attempts, &after.why), (before.set_aside_at, 3, &before.why));
    system.worker();
    assert_eq!(system.client.decided(&id.to_string()).await.state(), "issued");
    assert!(system.is_in_flight(dead_id).await, "no worker was given it");
    assert!(dead::redrive(system.partition(), dead_id).await.expect("an answer"));
    assert_eq!(system.client.decided(&dead_id.to_string()).await.state(), "issued");
    system.settled(&coupon).await;
    assert_eq!(system.queue().await, (0, 0));
}
