//! Coupons that lie in different partitions of the data: each is served from its own, and what belongs to all of them,
//! such as a user's deletion, reaches every one.

use std::collections::BTreeSet;

use coupon_system::ids::{CouponId, IssuanceId, PartitionId};
use coupon_system::queue::dead;
use coupon_system::recovery::{Deployment, Lease, LoadOutcome};
use coupon_system::redis::Partition;
use futures::future::join_all;
use serde_json::json;

use crate::helpers::{API, Client, System, couponctl, eventually, program, serving, stopped, worker};

/// Beside partition 0.
pub(super) const PARTITIONS: u16 = 5;

async fn start() -> System {
    System::builder().partitions(PARTITIONS).start().await
}

/// Creates a coupon by the API.
pub(super) async fn create(client: &Client, id: &str, total: u32) -> CouponId {
    let body = json!({"id": id, "name": "n", "total": total, "perUser": 1,
        "startsAt": "2020-01-01T00:00:00Z", "endsAt": "2090-01-01T00:00:00Z"});
    let created = client.post("/coupons", body).await;
    assert_eq!((created.status, &created.body["stock"]["remaining"]), (201, &json!(total)), "{created:?}");
    created.id().parse().expect("an id")
}

/// Creates coupons by the API, which lie in at least three partitions. Returns their ids.
pub(super) async fn coupons(system: &System, total: u32) -> Vec<CouponId> {
    let mut ids = Vec::new();
    for number in 0..6 {
        ids.push(create(&system.client, &format!("c{number}"), total).await);
    }
    let mut partitions = BTreeSet::new();
    for id in &ids {
        partitions.insert(system.partition_of(id).await.id());
    }
    assert!(partitions.len() >= 3 && !partitions.contains(&PartitionId::ONE), "{partitions:?}");
    ids
}

/// Lets each of these users request each of the coupons at the same time. Returns the ids of what was accepted.
pub(super) async fn rush(client: &Client, users: &[String], coupons: &[CouponId]) -> Vec<IssuanceId> {
    let requests = users.iter().flat_map(|user| coupons.iter().map(move |coupon| (user, coupon)));
    let answers = join_all(requests.map(async |(user, coupon)| {
        loop {
            let answer = client.issue(user, coupon.as_str(), None).await;
            match answer.status {
                202 => return Some(answer.id().parse().expect("an id")),
                409 if answer.code() == "sold-out" => return None,
                503 => {}
                _ => panic!("{answer:?}"),
            }
        }
    }));
    answers.await.into_iter().flatten().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rush_for_coupons_in_different_partitions_is_exact_for_each() {
    let system = start().await;
    let coupons = coupons(&system, 20).await;
    let users = system.users("u", 40).await;
    let _worker = system.worker();
    let accepted = rush(&system.client, &users, &coupons).await;
    assert_eq!(accepted.len(), coupons.len() * 20);
    for coupon in &coupons {
        let stock = system.settled(coupon).await;
        assert_eq!((stock.remaining, stock.issued), (0, 20), "{coupon}");
        assert_eq!(system.issued_serials(coupon).await, (1..=20).collect::<Vec<_>>(), "{coupon}");
    }
    // Polls find each in its own partition, by its id alone.
    for id in &accepted {
        assert_ne!(id.partition(), PartitionId::ONE);
        assert_eq!(system.client.get(&format!("/issuances/{id}")).await.state(), "issued");
    }
    let listed = system.client.get("/coupons").await;
    let remaining: Vec<_> = listed.body["items"]
        .as_array()
        .expect("items")
        .iter()
        .map(|coupon| &coupon["stock"]["remaining"])
        .collect();
    assert_eq!(remaining, vec![&json!(0); coupons.len()], "{listed:?}");
    system.audited_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_serve_every_partition_and_tell_of_each() {
    let mut system = start().await;
    let coupons = coupons(&system, 5).await;
    let users = system.users("u", 5).await;
    system.stop().await;
    let mut api = program(API, &system);
    api.args(["--listen", "127.0.0.1:0"]);
    let (api, address) = serving(api).await;
    let worker = worker(&system, &[]).await;
    system.client = Client::new(address);
    assert_eq!(rush(&system.client, &users, &coupons).await.len(), coupons.len() * users.len());
    for coupon in &coupons {
        assert_eq!(system.settled(coupon).await.issued, 5);
    }
    eventually("the metrics tell of each partition", async || {
        let metrics = system.client.request("GET", "/metrics").send().await.expect("an answer");
        let metrics = metrics.text().await.expect("a text");
        let backlogs =
            metrics.lines().filter(|line| line.starts_with("coupon_partition_backlog_issuances{partition="));
        (backlogs.count() == usize::from(PARTITIONS) + 1).then_some(())
    })
    .await;
    let workers = system.client.get("/workers").await;
    assert_eq!(workers.body.as_array().expect("workers").len(), 1, "one process has one name: {workers:?}");
    for child in [api, worker] {
        assert_eq!(stopped(child).await.code(), Some(0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_grows_and_its_earlier_coupons_stay_where_they_are() {
    let system = System::start().await;
    let before = system.coupon("before", 10, 1).await;
    assert_eq!(Deployment::grow(&system.backends.database, PARTITIONS).await.expect("it grows"), 0);
    assert_eq!(Deployment::grow(&system.backends.database, 2).await.expect("an answer"), PARTITIONS);
    let deployment = Deployment::read(&system.backends.database).await.expect("it is read");
    assert_eq!(deployment.partitions, PARTITIONS, "it never shrinks");
    let (api, address) = serving({
        let mut api = program(API, &system);
        api.args(["--listen", "127.0.0.1:0", "--audit-every", "0"]);
        api
    })
    .await;
    let worker = worker(&system, &[]).await;
    let grown = Client::new(address);
    eventually("every partition is certified", async || {
        (grown.get("/readyz").await.body["degraded"] == json!([])).then_some(())
    })
    .await;
    let later = create(&grown, "later", 5).await;
    let users = system.users("u", 6).await;
    for id in rush(&grown, &users[..5], &[before.clone(), later.clone()]).await {
        assert_eq!(grown.decided(&id.to_string()).await.state(), "issued");
    }
    let place = async |coupon: &CouponId| {
        let coupon = system.backends.coupons.get(coupon).await.expect("it is read").expect("there is one");
        coupon.shares.partitions()[0]
    };
    assert_eq!(place(&before).await, PartitionId::ONE);
    assert_ne!(place(&later).await, PartitionId::ONE);

    // The process in which the test runs has not heard of it yet.
    let refused = system.client.issue(&users[5], later.as_str(), None).await;
    assert_eq!((refused.status, refused.code()), (503, "unavailable"), "{refused:?}");
    let id = IssuanceId::generate(place(&later).await);
    assert_eq!(system.client.get(&format!("/issuances/{id}")).await.status, 503);
    let nowhere = IssuanceId::generate(PartitionId::new(PARTITIONS + 1).expect("a number"));
    for client in [&system.client, &grown] {
        assert_eq!(client.get(&format!("/issuances/{nowhere}")).await.status, 404);
    }
    for child in [api, worker] {
        assert_eq!(stopped(child).await.code(), Some(0));
    }
}

#[tokio::test]
async fn a_coupon_is_loaded_into_its_own_partition_only() {
    let system = start().await;
    let coupon = coupons(&system, 5).await.remove(0);
    let own = system.partition_of(&coupon).await.id();
    for (partition, loader) in system.backends.partitions.iter().zip(&system.backends.loaders()) {
        let expected = if partition.id() == own { LoadOutcome::Before } else { LoadOutcome::Unknown };
        assert_eq!(loader.load(&coupon).await.expect("an answer"), expected, "{}", partition.id());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_redis_loses_everything_every_partition_is_rebuilt_and_serves() {
    let system = start().await;
    let coupons = coupons(&system, 10).await;
    let users = system.users("u", 6).await;
    let accepted = rush(&system.client, &users, &coupons).await;
    system.drain().await;
    let _: () = system.command(&["FLUSHALL"]).await;
    let more = system.users("v", 6).await;
    let later = rush(&system.client, &more, &coupons).await;
    assert_eq!((accepted.len(), later.len()), (36, 24), "ten units of each were there");
    system.drain().await;
    system.audited_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_is_not_certified_refuses_requests_for_its_own_coupons_and_no_others() {
    let system = start().await;
    let coupons = coupons(&system, 10).await;
    let users = system.users("u", 2).await;
    let lost = system.partition_of(&coupons[0]).await;
    // Nobody can recover it for now.
    let lease = Lease::take(&system.backends.database, lost.id(), "another", 100).await.expect("an answer");
    let lease = lease.expect("it is free");
    let _: () = system.command(&["DEL", &lost.keys().certificate()]).await;
    for coupon in &coupons {
        let answer = system.client.issue(&users[0], coupon.as_str(), None).await;
        let expected = if system.partition_of(coupon).await.id() == lost.id() { 503 } else { 202 };
        assert_eq!(answer.status, expected, "{coupon}: {answer:?}");
    }
    let name = format!("partition {}", lost.id());
    let ready = eventually("the probe tells of it", async || {
        let ready = system.client.get("/readyz").await;
        (ready.body["degraded"] == json!([name])).then_some(ready)
    })
    .await;
    assert_eq!((ready.status, &ready.body["redis"]), (200, &json!("ok")), "{ready:?}");
    assert_eq!(system.client.get("/queue").await.body["unavailablePartitions"], json!([lost.id().number()]));
    let listed = couponctl(&system, &["partition", "list", "--json"]).await;
    listed.assert(0, &[], &[]);
    let states = listed.json();
    for state in states.as_array().expect("a list") {
        let is_lost = state["partition"] == lost.id().number();
        assert_eq!(state["state"], if is_lost { "warming-up" } else { "serves" }, "{state}");
    }

    lease.release().await.expect("it is given back");
    eventually("its coupons are served again", async || {
        let answer = system.client.issue(&users[1], coupons[0].as_str(), None).await;
        (answer.status == 202).then_some(())
    })
    .await;
    system.drain().await;
    system.audited_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_user_is_gone_from_every_partition() {
    let system =
        System::builder().partitions(PARTITIONS).flags(&["--user-deletion-delay", "2"]).start().await;
    let coupons = coupons(&system, 10).await;
    let user = system.users("leaves", 1).await;
    rush(&system.client, &user, &coupons).await;
    system.drain().await;
    let deleted = system.client.send(system.client.request("DELETE", "/users/leaves0")).await;
    assert_eq!(deleted.status, 202, "{deleted:?}");
    eventually("nothing is left of the user", async || {
        let keys: Vec<String> = system.command(&["KEYS", "*holders*"]).await;
        for key in &keys {
            if system.command::<bool>(&["HEXISTS", key, "leaves0"]).await {
                return None;
            }
        }
        assert_eq!(keys.len(), coupons.len());
        let left = system.backends.ledger.users().deletions().await.expect("they are read").0;
        left.is_empty().then_some(())
    })
    .await;
    system.audited_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_of_all_partitions_are_listed_together_and_redriven_by_one_action() {
    let system = start().await;
    let coupons = coupons(&system, 10).await;
    system.poison(Some("poor")).await;
    let user = vec!["poor".to_owned()];
    system.client.post("/users", json!({"id": "poor"})).await;
    let accepted: BTreeSet<_> = rush(&system.client, &user, &coupons).await.into_iter().collect();
    let _worker = system.worker();
    let listed = eventually("all are set aside", async || {
        let page = system.client.get("/dead-letters").await;
        (page.body["matched"] == accepted.len()).then_some(page)
    })
    .await;
    let ids = listed.body["items"].as_array().expect("items").iter();
    let ids: BTreeSet<IssuanceId> =
        ids.map(|letter| letter["id"].as_str().expect("an id").parse().expect("an id")).collect();
    assert_eq!(ids, accepted);
    let first = system.client.get("/dead-letters?limit=2").await;
    let next = first.body["nextCursor"].as_str().expect("there are more");
    let second = system.client.get(&format!("/dead-letters?limit=4&cursor={next}")).await;
    assert_eq!(second.body["items"].as_array().expect("items").len(), 4);
    assert_eq!(system.client.get("/queue").await.body["deadLetters"], accepted.len());

    system.poison(None).await;
    let begun = system.client.post("/dead-letters/redrive", json!({"all": true, "reason": "mended"})).await;
    assert_eq!(begun.status, 202, "{begun:?}");
    for id in &accepted {
        assert_eq!(system.client.decided(&id.to_string()).await.state(), "issued");
    }
    for coupon in &coupons {
        system.settled(coupon).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_commands_and_changes_reach_every_partition() {
    let system = start().await;
    let coupons = coupons(&system, 10).await;
    let users = system.users("u", 2).await;
    rush(&system.client, &users[..1], &coupons).await;
    system.drain().await;

    assert_eq!(system.client.post("/pause", json!({})).await.status, 200);
    for coupon in &coupons {
        let refused = system.client.issue(&users[1], coupon.as_str(), None).await;
        assert_eq!((refused.status, refused.code()), (409, "paused"));
    }
    assert_eq!(system.client.post("/resume", json!({})).await.status, 200);
    let restocked =
        system.client.post(&format!("/coupons/{}/restock", coupons[1]), json!({"total": 15})).await;
    assert_eq!((restocked.status, &restocked.body["stock"]["remaining"]), (200, &json!(14)), "{restocked:?}");

    let audited = couponctl(&system, &["audit", "--full", "--json"]).await;
    audited.assert(0, &[], &[]);
    assert_eq!(audited.json()["coupons"].as_array().expect("coupons").len(), coupons.len());
    // Of one partition only, and in one without a coupon of the page too.
    let partition: &Partition = system.partition_of(&coupons[2]).await;
    let free = partition.keys().free(&coupons[2]);
    let _: () = system.command(&["SADD", &free, "1"]).await;
    let audited = couponctl(&system, &["audit", "--full", "--json"]).await;
    audited.assert(3, &[], &[]);
    let findings = audited.json()["findings"].clone();
    assert_eq!(findings[0]["coupon"], coupons[2].as_str(), "{findings}");
    let _: () = system.command(&["SREM", &free, "1"]).await;

    let recovered = couponctl(&system, &["recover", "--rebuild", "--json"]).await;
    recovered.assert(0, &[], &[]);
    assert_eq!(recovered.json()["result"], "rebuilt");
    eventually("requests are accepted again", async || {
        let answer = system.client.issue(&users[1], coupons[0].as_str(), None).await;
        (answer.status == 202).then_some(())
    })
    .await;
    system.drain().await;
    system.audited_clean().await;
    let keys: Vec<String> = system.command(&["KEYS", "*"]).await;
    let tags: BTreeSet<_> = keys.iter().filter_map(|key| key.split(['{', '}']).nth(1)).collect();
    assert_eq!(tags.len(), usize::from(PARTITIONS) + 1, "{tags:?}");
    assert!(dead::scan(partition, 0, 10).await.expect("a page").0.is_empty());
}

#[tokio::test]
async fn a_user_who_repeats_a_request_with_its_key_gets_the_same_issuance_in_any_partition() {
    let system = start().await;
    for coupon in coupons(&system, 10).await {
        system.client.post("/users", json!({"id": "u"})).await;
        let first = system.client.issue("u", coupon.as_str(), Some(&format!("k-{coupon}"))).await;
        let again = system.client.issue("u", coupon.as_str(), Some(&format!("k-{coupon}"))).await;
        assert_eq!((first.status, again.status, first.id()), (202, 202, again.id()));
        assert!(again.is_replay());
        let id: IssuanceId = first.id().parse().expect("an id");
        assert_eq!(id.partition(), system.partition_of(&coupon).await.id());
    }
    system.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_that_was_routed_wrongly_is_found_where_it_lies_and_discarded() {
    let system = start().await;
    let coupon = coupons(&system, 10).await.remove(0);
    let own = system.partition_of(&coupon).await;
    let others = (1..=PARTITIONS).map(|number| PartitionId::new(number).expect("a number"));
    let other = others.into_iter().find(|other| *other != own.id()).expect("there is another");
    // Their ids name another partition than the one whose queue they are in, one of them one that there is not.
    let nowhere = PartitionId::new(PARTITIONS + 1).expect("a number");
    let ids = [other, other, nowhere].map(IssuanceId::generate);
    for (number, id) in ids.iter().enumerate() {
        let held = format!("0 {number} 1700000000000 1 {coupon} u{number}");
        let mut add = redis::cmd("XADD");
        let value = [id.as_bytes().as_slice(), held.as_bytes()].concat();
        add.arg(own.keys().stream()).arg("*").arg("2").arg(value);
        let entry: String = add.query_async(&mut own.connection()).await.expect("it is queued");
        let mut hold = redis::cmd("HSET");
        hold.arg(own.keys().in_flight()).arg(id.as_bytes().as_slice()).arg(format!("{entry} {held}"));
        let _: u64 = hold.query_async(&mut own.connection()).await.expect("it is in flight");
    }
    let _worker = system.worker();
    eventually("they are set aside", async || {
        (system.client.get("/dead-letters").await.body["matched"] == ids.len()).then_some(())
    })
    .await;
    let letter = system.client.get(&format!("/dead-letters/{}", ids[0])).await;
    assert_eq!(
        (letter.status, &letter.body["payload"]["couponId"]),
        (200, &json!(coupon.as_str())),
        "{letter:?}"
    );
    for id in [ids[0], ids[2]] {
        let discarded = system.client.post(&format!("/dead-letters/{id}/discard"), json!({})).await;
        assert_eq!((discarded.status, discarded.state()), (200, "rejected"), "{discarded:?}");
        assert_eq!(system.client.get(&format!("/dead-letters/{id}")).await.status, 404);
    }
    let begun =
        system.client.post("/dead-letters/discard", json!({"all": true, "reason": "misrouted"})).await;
    assert_eq!(begun.status, 202, "{begun:?}");
    eventually("none is left", async || {
        (system.client.get("/dead-letters").await.body["matched"] == 0).then_some(())
    })
    .await;
    assert_eq!(system.client.get(&format!("/issuances/{}", ids[1])).await.state(), "rejected");
    let in_flight: u64 = system.command(&["HLEN", &own.keys().in_flight()]).await;
    assert_eq!((in_flight, system.settled(&coupon).await.remaining), (0, 10));
}
