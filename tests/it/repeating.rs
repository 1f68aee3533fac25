//! Requests whose answer was lost, and which the client repeats. A problem never calls an operation safe to repeat that
//! would act twice.

use std::collections::BTreeSet;

use coupon_system::dev::servers::MongoServer;
use mongodb::bson::{Document, doc};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::helpers::{Answer, System, at, fail, obedient_mongodb};

/// A system whose MongoDB loses acknowledgements when a test asks for it.
async fn forgetful() -> (System, MongoServer, TempDir) {
    let (mongodb, folder) = obedient_mongodb().await;
    (System::builder().mongodb(mongodb.url()).start().await, mongodb, folder)
}

/// Has MongoDB carry out the next of these commands on a collection and lose its acknowledgement.
async fn lose_acknowledgement(system: &System, command: &str, collection: &str) {
    let how: Document = doc! {
        "failCommands": [command],
        "namespace": format!("{}.{collection}", system.database),
        "writeConcernError": {"code": 64, "errmsg": "waiting for replication timed out"},
    };
    fail(system, doc! {"times": 1}, how).await;
}

async fn post_with_key(system: &System, path: &str, key: &str, body: Value) -> Answer {
    system.client.send(system.client.request("POST", path).header("idempotency-key", key).json(&body)).await
}

async fn total(system: &System, coupon: &str) -> u64 {
    system.client.get(&format!("/coupons/{coupon}")).await.body["stock"]["total"].as_u64().expect("a total")
}

/// Asserts that an answer leaves open what happened, and whether it calls the request repeatable.
#[track_caller]
fn assert_lost(answer: &Answer, is_repeatable: bool) {
    assert_eq!((answer.status, answer.code()), (503, "unavailable"), "{answer:?}");
    assert_eq!(answer.body["retryable"], is_repeatable, "{answer:?}");
    let detail = answer.body["detail"].as_str().expect("a detail");
    assert_eq!(detail.contains("safe to repeat"), is_repeatable, "{detail}");
}

#[tokio::test]
async fn a_restock_whose_answer_was_lost_is_repeated_and_adds_once() {
    let (system, _mongodb, _folder) = forgetful().await;
    system.coupon("c", 100, 1).await;
    lose_acknowledgement(&system, "findAndModify", "coupons").await;
    let lost = post_with_key(&system, "/coupons/c/restock", "k1", json!({"add": 50})).await;
    assert_lost(&lost, true);
    let repeated = post_with_key(&system, "/coupons/c/restock", "k1", json!({"add": 50})).await;
    assert_eq!((repeated.status, repeated.is_replay()), (200, true), "{repeated:?}");
    assert_eq!(repeated.body["stock"]["total"], 150);
    assert_eq!(total(&system, "c").await, 150);

    let other = post_with_key(&system, "/coupons/c/restock", "k2", json!({"add": 50})).await;
    assert_eq!((other.status, other.is_replay(), &other.body["stock"]["total"]), (200, false, &json!(200)));
    let reused = post_with_key(&system, "/coupons/c/restock", "k1", json!({"add": 51})).await;
    assert_eq!((reused.status, reused.code(), &reused.body["retryable"]), (422, "key-reused", &json!(false)));
    // The same key for another coupon is another key.
    system.coupon("d", 10, 1).await;
    assert_eq!(post_with_key(&system, "/coupons/d/restock", "k1", json!({"add": 1})).await.status, 200);
    assert_eq!((total(&system, "c").await, total(&system, "d").await), (200, 11));
}

#[tokio::test]
async fn a_restock_is_known_again_though_the_coupon_was_archived_or_restocked_often_since() {
    let system = System::start().await;
    system.coupon("c", 100, 1).await;
    for number in 0..50 {
        let key = format!("k{number}");
        assert_eq!(post_with_key(&system, "/coupons/c/restock", &key, json!({"add": 1})).await.status, 200);
    }
    let oldest = post_with_key(&system, "/coupons/c/restock", "k0", json!({"add": 1})).await;
    assert_eq!((oldest.status, oldest.is_replay()), (200, true));
    assert_eq!(total(&system, "c").await, 150);
    let record = system.backends.database.collection::<Document>("coupons").find_one(doc! {"_id": "c"}).await;
    let record = record.expect("an answer").expect("a record");
    let size = mongodb::bson::serialize_to_vec(&record).expect("BSON").len();
    assert!(size < 6_000, "keys are remembered in {size} bytes");

    assert_eq!(system.client.send(system.client.request("POST", "/coupons/c/archive")).await.status, 200);
    let after = post_with_key(&system, "/coupons/c/restock", "k7", json!({"add": 1})).await;
    assert_eq!((after.status, after.is_replay()), (200, true), "{after:?}");
    assert_eq!(
        post_with_key(&system, "/coupons/c/restock", "new", json!({"add": 1})).await.code(),
        "archived"
    );
}

#[tokio::test]
async fn units_are_added_with_a_key_or_up_to_a_total_and_never_taken_away() {
    let system = System::start().await;
    system.coupon("c", 100, 1).await;
    let without = system.client.post("/coupons/c/restock", json!({"add": 50})).await;
    assert_eq!((without.status, &without.body["errors"][0]["parameter"]), (422, &json!("Idempotency-Key")));
    for _ in 0..2 {
        let restocked = system.client.post("/coupons/c/restock", json!({"total": 150})).await;
        assert_eq!((restocked.status, &restocked.body["stock"]["total"]), (200, &json!(150)));
    }
    for (body, pointer) in [
        (json!({"total": 149}), "#/total"),
        (json!({"total": 10_000_001}), "#/total"),
        (json!({"total": 200, "add": 50}), "#/total"),
        (json!({}), "#/add"),
        (json!({"total": null}), "#/add"),
        (json!({"add": 50, "more": 1}), "#/more"),
    ] {
        let refused = post_with_key(&system, "/coupons/c/restock", "k", body.clone()).await;
        assert_eq!((refused.status, &refused.body["errors"][0]["pointer"]), (422, &json!(pointer)), "{body}");
    }
    let request = system.client.request("POST", "/coupons/c/restock").json(&json!({"add": 1}));
    let twice =
        system.client.send(request.header("idempotency-key", "a").header("idempotency-key", "b")).await;
    assert_eq!((twice.status, &twice.body["errors"][0]["parameter"]), (422, &json!("Idempotency-Key")));
    assert_eq!(total(&system, "c").await, 150);
}

#[tokio::test]
async fn many_repetitions_of_one_restock_at_once_add_once() {
    let system = System::start().await;
    system.coupon("c", 100, 1).await;
    let repetitions = (0..20).map(|_| post_with_key(&system, "/coupons/c/restock", "k", json!({"add": 5})));
    let answers = futures::future::join_all(repetitions).await;
    assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
    assert_eq!(answers.iter().filter(|answer| !answer.is_replay()).count(), 1);
    assert_eq!(total(&system, "c").await, 105);
}

#[tokio::test]
async fn what_is_made_under_a_generated_id_is_not_called_safe_to_repeat_and_tells_what_was_made() {
    let (system, _mongodb, _folder) = forgetful().await;
    let (starts_at, ends_at) = (at(0).to_string(), at(3600).to_string());
    let coupon = |id: Option<&str>, name: &str| json!({"id": id, "name": name, "total": 5, "startsAt": starts_at, "endsAt": ends_at});
    let lost = async |path: &str, body: Value| {
        lose_acknowledgement(&system, "insert", &path[1..]).await;
        system.client.post(path, body).await
    };
    assert_lost(&lost("/coupons", coupon(None, "n")).await, false);
    assert_lost(&lost("/coupons", coupon(Some("c"), "n")).await, true);
    let repeated = system.client.post("/coupons", coupon(Some("c"), "n")).await;
    assert_eq!((repeated.code(), &repeated.body["sameAsRequested"]), ("coupon-exists", &json!(true)));
    let other = system.client.post("/coupons", coupon(Some("c"), "another")).await;
    assert_eq!((other.code(), &other.body["sameAsRequested"]), ("coupon-exists", &json!(false)));

    assert_lost(&lost("/users", json!({"name": "n"})).await, false);
    assert_lost(&lost("/users", json!({"id": "hong", "name": "n"})).await, true);
    let repeated = system.client.post("/users", json!({"id": "hong", "name": "n"})).await;
    assert_eq!((repeated.code(), &repeated.body["sameAsRequested"]), ("user-exists", &json!(true)));
    let other = system.client.post("/users", json!({"id": "hong"})).await;
    assert_eq!((other.code(), &other.body["sameAsRequested"]), ("user-exists", &json!(false)));
}

#[tokio::test]
async fn users_at_random_are_registered_once_for_a_key() {
    let (system, _mongodb, _folder) = forgetful().await;
    let random = async |key: Option<&str>| {
        let request = system.client.request("POST", "/users/random?count=30");
        system
            .client
            .send(match key {
                Some(key) => request.header("idempotency-key", key),
                None => request,
            })
            .await
    };
    let registered = async || system.backends.users.list(None, 500).await.expect("the users").items.len();
    lose_acknowledgement(&system, "insert", "users").await;
    assert_lost(&random(None).await, false);
    let before = registered().await;
    lose_acknowledgement(&system, "insert", "users").await;
    assert_lost(&random(Some("k")).await, true);
    let repeated = random(Some("k")).await;
    assert_eq!((repeated.status, repeated.is_replay(), &repeated.body["created"]), (201, true, &json!(30)));
    assert_eq!(registered().await, before + 30);
    let again = random(Some("k")).await;
    assert_eq!(again.body["ids"], repeated.body["ids"]);
    let other = random(Some("l")).await;
    assert_eq!((other.status, other.is_replay()), (201, false));
    assert_eq!(registered().await, before + 60);
}

#[tokio::test]
async fn a_key_of_users_at_random_is_refused_for_another_count() {
    let system = System::start().await;
    let random = async |count: u32| {
        let path = format!("/users/random?count={count}");
        system.client.send(system.client.request("POST", &path).header("idempotency-key", "k")).await
    };
    assert_eq!(random(30).await.status, 201);
    for other in [1, 29, 31] {
        let reused = random(other).await;
        assert_eq!((reused.status, reused.code()), (422, "key-reused"), "{other}: {reused:?}");
    }
    assert!(random(30).await.is_replay());
    assert_eq!(system.backends.users.list(None, 500).await.expect("the users").items.len(), 30);
}

#[tokio::test]
async fn a_key_of_an_issuance_is_refused_for_another_coupon_of_the_same_user_whatever_became_of_the_first() {
    let system = System::start().await;
    system.users("u", 2).await;
    for coupon in ["a", "b", "c"] {
        system.coupon(coupon, 10, 2).await;
    }
    let refused = async || {
        let reused = system.client.issue("u0", "b", Some("k")).await;
        assert_eq!((reused.status, reused.code()), (422, "key-reused"), "{reused:?}");
        assert_eq!(reused.body["retryable"], false);
        assert_eq!(system.stock(&"b".parse().expect("an id")).await.remaining, 10);
    };
    let first = system.client.issue("u0", "a", Some("k")).await;
    assert_eq!(first.status, 202);
    refused().await;
    let repeated = system.client.issue("u0", "a", Some("k")).await;
    assert_eq!((repeated.status, repeated.is_replay(), repeated.id()), (202, true, first.id()));
    // The same key of another user is another key, and so is another key of this user.
    assert_eq!(system.client.issue("u1", "b", Some("k")).await.status, 202);
    let other = system.client.issue("u0", "c", Some("l")).await;
    assert_eq!(other.status, 202);
    system.worker();
    assert_eq!(system.client.decided(&first.id()).await.state(), "issued");
    let reused = system.client.issue("u0", "c", Some("k")).await;
    assert_eq!((reused.status, reused.code()), (422, "key-reused"), "{reused:?}");
    let repeated = system.client.issue("u0", "a", Some("k")).await;
    assert_eq!((repeated.status, repeated.is_replay(), repeated.id()), (200, true, first.id()));
    // A refused request has not used its key up.
    system.coupon_within("later", 10, 1, at(3600), at(7200)).await;
    assert_eq!(system.client.issue("u0", "later", Some("m")).await.code(), "not-started");
    assert_eq!(system.client.issue("u0", "c", Some("m")).await.status, 202);
    system.drain().await;
}

#[tokio::test]
async fn a_key_in_quotes_is_the_same_key_wherever_keys_are_taken() {
    let system = System::start().await;
    system.users("u", 2).await;
    for coupon in ["a", "b"] {
        system.coupon(coupon, 10, 2).await;
    }
    let (bare, quoted) = ("k \\ 1", r#""k \\ 1""#);
    let first = system.client.issue("u0", "a", Some(bare)).await;
    let repeated = system.client.issue("u0", "a", Some(quoted)).await;
    assert_eq!((repeated.status, repeated.is_replay(), repeated.id()), (202, true, first.id()));
    assert_eq!(system.client.issue("u0", "b", Some(quoted)).await.code(), "key-reused");

    assert_eq!(post_with_key(&system, "/coupons/a/restock", quoted, json!({"add": 5})).await.status, 200);
    let repeated = post_with_key(&system, "/coupons/a/restock", bare, json!({"add": 5})).await;
    assert_eq!((repeated.status, repeated.is_replay()), (200, true), "{repeated:?}");
    for other in [json!({"add": 6}), json!({"total": 15})] {
        let reused = post_with_key(&system, "/coupons/a/restock", bare, other).await;
        assert_eq!((reused.status, reused.code()), (422, "key-reused"), "{reused:?}");
    }
    assert_eq!(total(&system, "a").await, 15);

    let random = async |key: &str, count: u32| {
        let request = system.client.request("POST", &format!("/users/random?count={count}"));
        system.client.send(request.header("idempotency-key", key)).await
    };
    let made = random(bare, 3).await;
    let repeated = random(quoted, 3).await;
    assert_eq!((made.is_replay(), repeated.is_replay(), &repeated.body), (false, true, &made.body));
    assert_eq!(random(quoted, 4).await.code(), "key-reused");

    for wrong in [r#""k"#, r#""""#, r#""k";a=1"#] {
        let refused = system.client.issue("u1", "a", Some(wrong)).await;
        assert_eq!(
            (refused.status, &refused.body["errors"][0]["parameter"]),
            (422, &json!("Idempotency-Key")),
            "{wrong}"
        );
    }
    system.drain().await;
}

#[tokio::test]
async fn an_operators_change_whose_answer_was_lost_is_repeated_and_is_as_if_done_once() {
    let (system, _mongodb, _folder) = forgetful().await;
    system.coupon_within("c", 10, 1, at(3600), at(7200)).await;
    let send = async |method: &str, path: &str, body: Value| {
        system.client.send(system.client.request(method, path).json(&body)).await
    };
    let past = at(-1).to_string();
    for (method, path, body) in [
        ("PATCH", "/coupons/c", json!({"startsAt": past, "name": "now"})),
        ("POST", "/coupons/c/pause", json!(null)),
        ("POST", "/coupons/c/resume", json!(null)),
        ("PATCH", "/coupons/c", json!({"endsAt": at(9000).to_string()})),
        ("PATCH", "/coupons/c", json!({"endsAt": at(-1).to_string()})),
        ("POST", "/coupons/c/archive", json!(null)),
    ] {
        lose_acknowledgement(&system, "findAndModify", "coupons").await;
        assert_lost(&send(method, path, body.clone()).await, true);
        let repeated = send(method, path, body.clone()).await;
        assert_eq!(repeated.status, 200, "{method} {path} {body}: {repeated:?}");
    }
    let archived = send("POST", "/coupons/c/archive", json!(null)).await;
    assert_eq!(
        (archived.status, archived.is_replay(), &archived.body["status"]),
        (200, true, &json!("archived"))
    );
}

#[tokio::test]
async fn a_use_and_its_undoing_say_whether_they_can_be_repeated() {
    let (system, _mongodb, _folder) = forgetful().await;
    system.users("u", 1).await;
    system.coupon("c", 10, 1).await;
    system.worker();
    let accepted = system.client.issue("u0", "c", None).await;
    assert_eq!(system.client.decided(&accepted.id()).await.state(), "issued");
    let change = async |what: &str, body: Value| {
        system.client.post(&format!("/user-coupons/u0/{}/{what}", accepted.id()), body).await
    };
    for (what, body, is_repeatable) in [
        ("use", json!({"reference": "o1"}), true),
        ("restore", json!({"reference": "o1"}), true),
        ("use", json!({"reference": "o2"}), true),
        ("restore", json!({}), false),
        ("revoke", json!(null), true),
    ] {
        lose_acknowledgement(&system, "findAndModify", "user_coupons").await;
        assert_lost(&change(what, body.clone()).await, is_repeatable);
        if is_repeatable {
            let repeated = change(what, body).await;
            assert_eq!((repeated.status, repeated.is_replay()), (200, true), "{what}: {repeated:?}");
        }
    }
}

#[tokio::test]
async fn without_a_key_a_request_for_a_second_unit_is_not_called_safe_to_repeat() {
    let mut system = System::start().await;
    system.users("u", 1).await;
    system.coupon("one", 10, 1).await;
    system.coupon("two", 10, 2).await;
    system.client.get("/coupons/one").await;
    system.redis.stop().await.expect("it stops");
    for (coupon, key, is_repeatable) in
        [("one", None, true), ("two", None, false), ("one", Some("k"), true), ("two", Some("k"), true)]
    {
        let answer = system.client.issue("u0", coupon, key).await;
        assert_eq!(answer.status, 503, "{answer:?}");
        assert_eq!(answer.body["retryable"], is_repeatable, "{coupon} {key:?}: {answer:?}");
    }
}

#[tokio::test]
async fn a_dead_letter_that_was_discarded_before_is_answered_with_its_rejection() {
    let system = System::start().await;
    system.users("u", 1).await;
    system.coupon("c", 10, 1).await;
    system.poison(Some("u0")).await;
    let accepted = system.client.issue("u0", "c", None).await;
    system.worker();
    let path = format!("/dead-letters/{}", accepted.id());
    crate::helpers::eventually("it is set aside", async || {
        (system.client.get(&path).await.status == 200).then_some(())
    })
    .await;
    system.poison(None).await;
    let mut bodies = BTreeSet::new();
    for is_replay in [false, true, true] {
        let mut discarded =
            system.client.send(system.client.request("POST", &format!("{path}/discard"))).await;
        assert_eq!((discarded.status, discarded.is_replay()), (200, is_replay), "{discarded:?}");
        discarded.body["problem"]["requestId"].take();
        bodies.insert(discarded.body.to_string());
    }
    assert_eq!(bodies.len(), 1, "each answer is the same: {bodies:?}");
}

#[tokio::test]
async fn a_redrive_that_is_repeated_is_answered_as_it_was_until_the_dead_letter_is_discarded() {
    let system = System::start().await;
    system.users("u", 1).await;
    system.coupon("c", 10, 1).await;
    system.poison(Some("u0")).await;
    let accepted = system.client.issue("u0", "c", None).await;
    let path = format!("/dead-letters/{}", accepted.id());
    let redrive =
        async || system.client.send(system.client.request("POST", &format!("{path}/redrive"))).await;
    assert_eq!(redrive().await.status, 404, "it never was a dead letter");
    let worker = system.worker();
    let letter = crate::helpers::eventually("it is set aside", async || {
        let letter = system.client.get(&path).await;
        (letter.status == 200).then_some(letter.body)
    })
    .await;
    worker.cancel();
    crate::helpers::eventually("the worker has gone", async || {
        (system.client.get("/workers").await.body == json!([])).then_some(())
    })
    .await;
    for is_replay in [false, true, true] {
        let redriven = redrive().await;
        assert_eq!((redriven.status, redriven.is_replay()), (200, is_replay), "{redriven:?}");
        assert_eq!(redriven.body, letter);
    }
    // Set aside again, it is another dead letter; once that is discarded, nothing is in flight.
    system.worker();
    crate::helpers::eventually("it is set aside again", async || {
        (system.client.get(&path).await.status == 200).then_some(())
    })
    .await;
    system.poison(None).await;
    let discarded = system.client.send(system.client.request("POST", &format!("{path}/discard"))).await;
    assert_eq!(discarded.status, 200, "{discarded:?}");
    assert_eq!(redrive().await.status, 404);
}
