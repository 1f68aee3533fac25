//! Workers that die, sleep, lose entries, or get one that no worker can decide.

use coupon_system::ids::{CouponId, IssuanceId};
use coupon_system::queue;
use coupon_system::queue::{DEAD_LETTER_CONSUMER, ReadFrom, ReadOutcome, Reader, dead, registry};
use coupon_system::redis::keys::GROUP;

use crate::helpers::{System, eventually};

async fn accept(system: &System, coupon: &CouponId, count: usize) -> Vec<IssuanceId> {
    let mut ids = Vec::new();
    for number in 0..count {
        ids.push(system.accepted(&format!("u{number}"), coupon).await);
    }
    ids
}

/// Reads entries for a consumer that then does nothing with them.
async fn read_as(system: &System, consumer: &str, count: usize) -> usize {
    let mut reader = Reader::new(system.partition().client().clone(), consumer.into());
    match reader.read(&system.keys(), ReadFrom::New, count).await.expect("a read") {
        ReadOutcome::Entries(delivered) => delivered.count(),
        ReadOutcome::NoGroup => panic!("there is no group"),
    }
}

async fn claim_as(system: &System, consumer: &str, count: usize) -> usize {
    queue::claim(system.partition(), &system.keys(), consumer, count).await.expect("a claim").count()
}

async fn consumers(system: &System) -> Vec<String> {
    let keys = system.keys();
    let infos: Vec<std::collections::HashMap<String, redis::Value>> =
        system.command(&["XINFO", "CONSUMERS", &keys.stream(), GROUP]).await;
    infos.into_iter().map(|info| redis::from_redis_value(info["name"].clone()).expect("a name")).collect()
}

#[tokio::test]
async fn what_a_dead_worker_had_in_hand_is_finished_by_a_live_one() {
    let system = System::start().await;
    let coupon = system.coupon("c", 10, 1).await;
    let ids = accept(&system, &coupon, 7).await;
    assert_eq!(read_as(&system, "w-dead", 7).await, 7);
    system.worker();
    for id in ids {
        assert_eq!(system.client.decided(&id.to_string()).await.state(), "issued");
    }
    assert_eq!(system.settled(&coupon).await.issued, 7);
    assert_eq!(system.queue().await, (0, 0));
    eventually("the dead consumer is deleted", async || {
        (!consumers(&system).await.contains(&"w-dead".to_owned())).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_live_worker_keeps_its_entries_and_a_dead_one_is_deleted_only_when_it_has_none() {
    let system = System::start().await;
    system.leaves_in_flight();
    let coupon = system.coupon("c", 10, 1).await;
    accept(&system, &coupon, 3).await;
    let (partition, keys) = (system.partition(), system.keys());
    assert!(registry::beat(partition, &keys, "w-one", "pid=1").await.expect("a heartbeat"));
    assert_eq!(read_as(&system, "w-one", 3).await, 3);
    assert_eq!(claim_as(&system, "w-two", 10).await, 0, "w-one lives");
    assert_eq!(registry::beats(partition).await.expect("the beats")[0].says, "pid=1");

    assert_eq!(registry::leave(partition, "w-one").await.expect("it leaves"), 3);
    assert_eq!(claim_as(&system, "w-two", 2).await, 2);
    assert!(consumers(&system).await.contains(&"w-one".to_owned()), "it still has one");
    assert_eq!(claim_as(&system, "w-two", 2).await, 1);
    assert_eq!(claim_as(&system, "w-two", 2).await, 0);
    assert_eq!(consumers(&system).await, ["w-two"]);
    assert_eq!(system.queue().await, (3, 3), "nothing was lost on the way");
}

#[tokio::test]
async fn a_worker_that_slept_and_wakes_after_its_entries_were_claimed_changes_nothing() {
    let system = System::start().await;
    let coupon = system.coupon("c", 5, 1).await;
    accept(&system, &coupon, 5).await;
    let asleep = system.take_entries().await;
    system.worker();
    assert_eq!(system.settled(&coupon).await.issued, 5);
    system.decider().process(&system.keys(), &asleep).await.expect("it adopts what was decided");
    let stock = system.stock(&coupon).await;
    assert_eq!((stock.remaining, stock.reserved, stock.issued), (0, 0, 5));
    assert_eq!(system.issued_serials(&coupon).await, [1, 2, 3, 4, 5]);
}

#[tokio::test]
async fn a_delivery_that_never_arrived_is_found_again_by_the_worker_it_was_meant_for() {
    let system = System::start().await;
    let coupon = system.coupon("c", 5, 1).await;
    let lost = system.accepted("u0", &coupon).await;
    assert!(
        registry::beat(system.partition(), &system.keys(), "w-live", "pid=1").await.expect("a heartbeat")
    );
    let entry = {
        let mut reader = Reader::new(system.partition().client().clone(), "w-live".into());
        match reader.read(&system.keys(), ReadFrom::New, 1).await.expect("a read") {
            ReadOutcome::Entries(delivered) => delivered.last().expect("an entry").to_owned(),
            ReadOutcome::NoGroup => panic!("there is no group"),
        }
    };
    system.worker();
    let worker = eventually("the worker has a consumer", async || {
        consumers(&system).await.into_iter().find(|consumer| consumer != "w-live")
    })
    .await;
    // Redis has delivered the entry, but the worker never received it.
    system.command::<()>(&["XCLAIM", &system.keys().stream(), GROUP, &worker, "0", &entry, "JUSTID"]).await;
    assert_eq!(system.client.decided(&lost.to_string()).await.state(), "issued");
}

#[tokio::test]
async fn an_entry_that_was_trimmed_or_whose_consumer_was_deleted_is_appended_anew() {
    let system = System::start().await;
    let coupon = system.coupon("c", 5, 1).await;
    let trimmed = system.accepted("u0", &coupon).await;
    let stream = system.keys().stream();
    system.command::<()>(&["XTRIM", &stream, "MAXLEN", "0"]).await;
    let orphaned = system.accepted("u1", &coupon).await;
    assert_eq!(read_as(&system, "w-doomed", 5).await, 1);
    system.command::<()>(&["XGROUP", "DELCONSUMER", &stream, GROUP, "w-doomed"]).await;
    assert_eq!(system.queue().await, (1, 0));
    system.worker();
    for id in [trimmed, orphaned] {
        assert_eq!(system.client.decided(&id.to_string()).await.state(), "issued");
    }
    assert_eq!(system.settled(&coupon).await.issued, 2);
    assert_eq!(system.queue().await, (0, 0));
}

#[tokio::test]
async fn one_poison_entry_among_a_hundred_is_set_aside_alone_and_issued_when_redriven() {
    let system = System::start().await;
    let coupon = system.coupon("c", 100, 1).await;
    let ids = accept(&system, &coupon, 100).await;
    system.poison(Some("u50")).await;
    system.worker();
    let letter = eventually("it is set aside", async || {
        let (mut letters, _) = dead::scan(system.partition(), 0, 100).await.expect("a look");
        letters.pop()
    })
    .await;
    assert_eq!((letter.id, letter.attempts), (ids[50], 3));
    assert!(letter.why.contains("validation"), "{}", letter.why);
    eventually("the others are settled", async || (system.stock(&coupon).await.issued == 99).then_some(()))
        .await;
    let stock = system.stock(&coupon).await;
    assert_eq!((stock.remaining, stock.reserved), (0, 1), "its unit is still reserved for it");
    assert_eq!(system.client.get(&format!("/issuances/{}", ids[50])).await.state(), "queued");
    assert_eq!(system.queue().await, (1, 1));
    assert!(consumers(&system).await.contains(&DEAD_LETTER_CONSUMER.to_owned()));

    system.poison(None).await;
    assert!(dead::redrive(system.partition(), ids[50]).await.expect("it is sent through again"));
    assert_eq!(system.client.decided(&ids[50].to_string()).await.state(), "issued");
    let stock = system.settled(&coupon).await;
    assert_eq!((stock.remaining, stock.issued), (0, 100));
    assert_eq!(dead::get(system.partition(), ids[50]).await.expect("a look"), None);
    assert!(!dead::redrive(system.partition(), ids[50]).await.expect("an answer"), "it is one no more");
}

#[tokio::test]
async fn dead_letters_are_listed_shown_redriven_and_discarded_over_http() {
    let system = System::start().await;
    system.users("u", 2).await;
    let coupon = system.coupon("c", 2, 1).await;
    let id = system.client.issue("u0", "c", None).await.id();
    system.poison(Some("u0")).await;
    system.worker();
    let path = format!("/dead-letters/{id}");
    let send = async |method: &str, path: &str| system.client.send(system.client.request(method, path)).await;
    let shown = eventually("it is set aside", async || {
        let shown = send("GET", &path).await;
        (shown.status == 200).then_some(shown)
    })
    .await;
    assert_eq!(shown.body["attempts"], 3);
    assert_eq!(
        (shown.body["payload"]["userId"].as_str(), shown.body["payload"]["serial"].as_u64()),
        (Some("u0"), Some(1))
    );
    assert_eq!(send("GET", "/dead-letters").await.body["items"], serde_json::json!([shown.body]));
    assert_eq!(system.stock(&coupon).await.reserved, 1);
    let queue = send("GET", "/queue").await.body;
    assert_eq!(
        (&queue["backlog"], &queue["inFlight"], &queue["deadLetters"]),
        (&0.into(), &1.into(), &1.into())
    );

    // Workers still cannot decide it: it comes back.
    assert_eq!(send("POST", &format!("{path}/redrive")).await.status, 200);
    eventually("it is set aside again", async || (send("GET", &path).await.status == 200).then_some(()))
        .await;
    // MongoDB refuses even the rejection: the operator cannot discard it yet, and nothing is lost.
    assert_eq!(send("POST", &format!("{path}/discard")).await.status, 503);
    system.poison(None).await;
    let discarded = send("POST", &format!("{path}/discard")).await;
    assert_eq!((discarded.status, discarded.state()), (200, "rejected"));
    assert_eq!(discarded.body["problem"]["code"], "discarded");
    let again = send("POST", &format!("{path}/discard")).await;
    assert_eq!((again.status, again.header("idempotent-replayed")), (200, "true"));
    assert_eq!(send("POST", "/dead-letters/nonsense/discard").await.code(), "issuance-not-found");
    for path in [path.clone(), "/dead-letters/nonsense".into()] {
        assert_eq!(send("GET", &path).await.code(), "issuance-not-found");
        assert_eq!(send("POST", &format!("{path}/redrive")).await.code(), "issuance-not-found");
    }
    let stock = system.stock(&coupon).await;
    assert_eq!((stock.remaining, stock.reserved, stock.issued), (2, 0, 0));
    assert_eq!(system.client.issue("u0", "c", None).await.status, 202, "the user may try again");
    assert_eq!(system.settled(&coupon).await.issued, 1);
    assert_eq!(system.queue().await, (0, 0));
}

#[tokio::test]
async fn workers_are_listed_with_their_heartbeats() {
    let system = System::start().await;
    assert_eq!(system.client.get("/workers").await.body, serde_json::json!([]));
    let worker = system.worker();
    let listed = eventually("it says that it lives", async || {
        system.client.get("/workers").await.body.as_array().and_then(|workers| workers.first().cloned())
    })
    .await;
    assert_eq!(listed["alive"], true);
    worker.cancel();
    eventually("it has left", async || {
        (system.client.get("/workers").await.body == serde_json::json!([])).then_some(())
    })
    .await;
    assert_eq!(consumers(&system).await, Vec::<String>::new(), "and took its consumer with it");
}

#[tokio::test]
async fn an_entry_of_an_unknown_version_waits_and_the_others_are_decided() {
    let system = System::start().await;
    let coupon = system.coupon("c", 5, 1).await;
    let stream = system.keys().stream();
    let newer: String = system.command(&["XADD", &stream, "*", "v", "2", "what", "ever"]).await;
    let id = system.accepted("u0", &coupon).await;
    system.worker();
    assert_eq!(system.client.decided(&id.to_string()).await.state(), "issued");
    system.settled(&coupon).await;
    assert_eq!(system.queue().await, (1, 1), "it is pending, for a program that can read it");
    let left: Vec<(String, redis::Value)> = system.command(&["XRANGE", &stream, "-", "+"]).await;
    assert_eq!(left[0].0, newer);
    assert_eq!(dead::scan(system.partition(), 0, 10).await.expect("a look").0, []);
}

#[tokio::test]
async fn live_figures_come_once_a_second_and_end_when_the_service_stops() {
    let mut system = System::start().await;
    system.leaves_in_flight();
    let coupon = system.coupon("c", 5, 1).await;
    system.accepted("u0", &coupon).await;
    let mut stream = system.client.request("GET", "/events").send().await.expect("an answer");
    let mut told = String::new();
    while told.matches("event: figures").count() < 2 {
        let chunk = stream.chunk().await.expect("a chunk").expect("it goes on");
        told.push_str(&String::from_utf8_lossy(&chunk));
    }
    let data = told.lines().find_map(|line| line.strip_prefix("data: ")).expect("some data");
    let figures: serde_json::Value = serde_json::from_str(data).expect("JSON");
    assert_eq!(
        (&figures["queue"]["backlog"], &figures["coupons"][0]["stock"]["reserved"]),
        (&1.into(), &1.into())
    );
    let ending = async { while stream.chunk().await.expect("it ends well").is_some() {} };
    tokio::join!(system.stop(), ending);
}
