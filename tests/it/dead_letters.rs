//! Dead letters as operators meet them: many at once, the oldest first, filtered, and redriven or discarded by one
//! action.

use coupon_system::access::action::{ActionId, ActionProgress, ActionStart};
use coupon_system::access::{ActionLog, Caller, Role};
use coupon_system::config::Concurrency;
use coupon_system::ids::{CouponId, IssuanceId};
use coupon_system::issuance::reserve::{QueueEntries, Reserved, reserve};
use coupon_system::queue::Entry;
use coupon_system::queue::dead::{self, SetAside};
use jiff::Timestamp;
use mongodb::bson::{Document, doc};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::helpers::{
    API, Answer, Client, NO_BACKLOG_MAX, System, at, eventually, program, request, send, serving,
};

const WHY: &str = "Document failed validation (121)";

/// Sets an entry aside, as if this many seconds ago.
async fn set_aside(system: &System, entry: &Entry, why: &str, seconds: i64) {
    let (partition, keys) = (system.partition(), system.keys());
    assert!(dead::set_aside(partition, &keys, &entry.entry, entry.id, 3, why).await.expect("done"));
    let kept = format!("{} {} 3 {why}", entry.entry, at(-seconds).as_millisecond());
    let mut put = redis::cmd("HSET");
    put.arg(keys.dead()).arg(entry.id.as_bytes().as_slice()).arg(kept);
    put.query_async::<()>(&mut partition.connection()).await.expect("it is put");
}

/// A dead letter for each of these users of a coupon, with the reason and how many seconds ago it was set aside.
async fn dead_letters(system: &System, coupon: &CouponId, users: &[(&str, &str, i64)]) -> Vec<IssuanceId> {
    let mut ids = Vec::new();
    for (user, why, seconds) in users {
        ids.push(system.accepted(user, coupon).await);
        let entries = system.take_entries().await;
        set_aside(system, &entries[0], why, *seconds).await;
    }
    ids
}

fn ids_of(page: &Answer) -> Vec<IssuanceId> {
    let items = page.body["items"].as_array().expect("items").iter();
    items.map(|letter| letter["id"].as_str().expect("an id").parse().expect("an id")).collect()
}

/// Begins an action, and waits for its end.
async fn carried_out(client: &Client, verb: &str, body: Value) -> Value {
    let begun = client.post(&format!("/dead-letters/{verb}"), body).await;
    assert_eq!((begun.status, begun.body["endedAt"].is_null()), (202, true), "{begun:?}");
    let path = begun.header("location").to_owned();
    eventually("the action ends", async || {
        let action = client.get(&path).await.body;
        (!action["endedAt"].is_null()).then_some(action)
    })
    .await
}

fn counts(action: &Value) -> (u64, u64, u64) {
    let count = |name: &str| action["progress"][name].as_u64().expect("a count");
    (count("matched"), count("done"), count("failed"))
}

#[tokio::test]
async fn dead_letters_are_listed_the_oldest_first_filtered_and_page_by_page() {
    let system = System::start().await;
    system.leaves_in_flight();
    let (c, d) = (system.coupon("c", 10, 2).await, system.coupon("d", 10, 1).await);
    let of_c =
        dead_letters(&system, &c, &[("u1", WHY, 100), ("u2", "its coupon is gone", 7_200), ("u3", WHY, 10)])
            .await;
    let of_d = dead_letters(&system, &d, &[("u1", WHY, 200_000), ("u4", WHY, 50)]).await;
    let oldest_first = vec![of_d[0], of_c[1], of_c[0], of_d[1], of_c[2]];
    let list = async |query: &str| system.client.get(&format!("/dead-letters{query}")).await;

    let all = list("").await;
    assert_eq!((ids_of(&all), &all.body["matched"]), (oldest_first.clone(), &json!(5)), "{all:?}");
    assert!(all.body["nextCursor"].is_null());
    let (mut paged, mut query) = (Vec::new(), "?limit=2".to_owned());
    loop {
        let page = list(&query).await;
        assert_eq!(page.body["matched"], 5);
        paged.extend(ids_of(&page));
        match page.body["nextCursor"].as_str() {
            Some(cursor) => query = format!("?limit=2&cursor={cursor}"),
            None => break,
        }
    }
    assert_eq!(paged, oldest_first);

    for (query, expected) in [
        ("?couponId=d", vec![of_d[0], of_d[1]]),
        ("?userId=u1", vec![of_d[0], of_c[0]]),
        ("?couponId=c&userId=u1", vec![of_c[0]]),
        ("?reason=FAILED%20validation&couponId=c", vec![of_c[0], of_c[2]]),
        ("?minAge=PT1H", vec![of_d[0], of_c[1]]),
        ("?minAge=P2D", vec![of_d[0]]),
        ("?minAge=1m&maxAge=1h", vec![of_c[0]]),
        ("?couponId=nothing", vec![]),
    ] {
        let found = list(query).await;
        assert_eq!(ids_of(&found), expected, "{query}");
        assert_eq!(found.body["matched"], expected.len(), "{query}");
    }
    for (query, parameter) in [
        ("?couponId=a%20b", "couponId"),
        ("?userId=", "userId"),
        ("?reason=", "reason"),
        ("?minAge=15", "minAge"),
        ("?maxAge=-PT5M", "maxAge"),
        ("?limit=0", "limit"),
        ("?cursor=nonsense", "cursor"),
        ("?age=1", "age"),
    ] {
        let refused = list(query).await;
        assert_eq!(
            (refused.status, &refused.body["errors"][0]["parameter"]),
            (422, &json!(parameter)),
            "{query}"
        );
    }
}

#[tokio::test]
async fn all_that_match_are_redriven_or_discarded_and_the_record_says_which_why_and_how_many() {
    let system = System::builder().closed(&[Role::Operator, Role::Viewer]).start().await;
    let keys = &system.api_keys;
    let (operator, viewer) = (system.client.with(&keys[0]), system.client.with(&keys[1]));
    let (c, d) = (system.coupon("c", 10, 1).await, system.coupon("d", 10, 1).await);
    dead_letters(&system, &c, &[("u1", WHY, 0), ("u2", WHY, 0), ("u3", WHY, 0)]).await;
    dead_letters(&system, &d, &[("u1", WHY, 0), ("u2", WHY, 0)]).await;

    let body = json!({"filter": {"couponId": "c"}, "reason": "the validator is mended"});
    let refused = viewer.post("/dead-letters/redrive", body.clone()).await;
    assert_eq!((refused.status, refused.code()), (403, "forbidden"));
    let redriven = carried_out(&operator, "redrive", body.clone()).await;
    assert_eq!((counts(&redriven), &redriven["status"]), ((3, 3, 0), &json!(200)), "{redriven}");
    assert_eq!((&redriven["who"], &redriven["progress"]["running"]), (&json!("operator"), &json!(false)));
    let input: Value = serde_json::from_str(redriven["input"].as_str().expect("an input")).expect("JSON");
    assert_eq!(input, body);
    let worker = system.worker();
    assert_eq!(system.settled(&c).await.issued, 3);

    // The record names the user apart, so that it can be renamed when the user is deleted.
    let body = json!({"filter": {"userId": "u2"}, "reason": "refunded"});
    let discarded = carried_out(&operator, "discard", body.clone()).await;
    assert_eq!(counts(&discarded), (1, 1, 0));
    assert_eq!(discarded["input"], json!(body.to_string()));
    let records = system.backends.database.collection::<Document>("operator_actions");
    let record = records.find_one(doc! {"about": "u2"}).await.expect("an answer").expect("a record");
    assert!(!record.get_str("input").expect("an input").contains("u2"), "{record}");

    assert_eq!(
        counts(&carried_out(&operator, "discard", json!({"all": true, "reason": "the rest"})).await),
        (1, 1, 0)
    );
    let stock = system.settled(&d).await;
    assert_eq!((stock.remaining, stock.issued), (10, 0));
    assert_eq!(operator.get("/dead-letters").await.body["matched"], 0);
    // Asked for once more, as after a lost answer, there is nothing left to do.
    assert_eq!(
        counts(&carried_out(&operator, "discard", json!({"all": true, "reason": "again"})).await),
        (0, 0, 0)
    );
    assert_eq!(viewer.get("/operator-actions").await.body["items"].as_array().map(Vec::len), Some(4));
    worker.cancel();
    system.audited_clean().await;
}

#[tokio::test]
async fn an_operator_says_which_dead_letters_are_meant_and_why() {
    let system = System::start().await;
    for (body, pointer) in [
        (json!({"reason": "why"}), "#/filter"),
        (json!({"filter": {}, "reason": "why"}), "#/filter"),
        (json!({"filter": {"couponId": "c"}, "all": true, "reason": "why"}), "#/all"),
        (json!({"filter": {"minAge": "soon"}, "reason": "why"}), "#/filter/minAge"),
        (json!({"all": true}), "#/reason"),
    ] {
        for verb in ["redrive", "discard"] {
            let refused = system.client.post(&format!("/dead-letters/{verb}"), body.clone()).await;
            assert_eq!(
                (refused.status, &refused.body["errors"][0]["pointer"]),
                (422, &json!(pointer)),
                "{body}"
            );
        }
    }
}

#[tokio::test]
async fn what_mongodb_refuses_stays_a_dead_letter_and_the_others_are_discarded() {
    let system = System::start().await;
    let coupon = system.coupon("c", 10, 1).await;
    let ids = dead_letters(&system, &coupon, &[("u1", WHY, 0), ("u2", WHY, 0), ("u3", WHY, 0)]).await;
    system.poison(Some("u2")).await;
    let everything = json!({"all": true, "reason": "a test"});
    let discarded = carried_out(&system.client, "discard", everything.clone()).await;
    assert_eq!((counts(&discarded), &discarded["status"]), ((3, 2, 1), &json!(200)));
    assert_eq!(ids_of(&system.client.get("/dead-letters").await), [ids[1]]);
    system.poison(None).await;
    assert_eq!(counts(&carried_out(&system.client, "discard", everything).await), (1, 1, 0));
    system.audited_clean().await;
}

#[tokio::test]
async fn one_action_runs_at_a_time_and_that_of_a_killed_process_can_be_asked_for_again() {
    let system = System::start().await;
    let coupon = system.coupon("c", 10, 1).await;
    dead_letters(&system, &coupon, &[("u1", WHY, 0)]).await;
    // A process took the turn and began; then it was killed.
    let turn = system.keys().dead_letter_turn();
    let () = system.command(&["SET", &turn, "another", "PX", "20000"]).await;
    let (log, id) = (ActionLog::start(&system.backends.database), ActionId::generate());
    let begun = ActionStart {
        id,
        at: at(-60),
        caller: Caller::Open,
        action: "POST /dead-letters/redrive".into(),
        target: "/dead-letters/redrive".into(),
        about: None,
        input: None,
        request_id: "r".into(),
    };
    log.begin(begun).await.expect("it is recorded");
    let progress = |at: Timestamp| ActionProgress { at, matched: 2, done: 1, failed: 0 };
    let path = format!("/operator-actions/{id}");
    for (at, running) in [(at(0), true), (at(-40), false)] {
        log.progress(id, progress(at)).await.expect("it is recorded");
        let shown = system.client.get(&path).await.body;
        assert_eq!((counts(&shown), &shown["progress"]["running"]), ((2, 1, 0), &json!(running)));
        assert!(shown["endedAt"].is_null());
    }
    let body = json!({"filter": {"couponId": "c"}, "reason": "a test"});
    let refused = system.client.post("/dead-letters/redrive", body.clone()).await;
    assert_eq!(
        (refused.status, refused.code(), &refused.body["retryable"]),
        (409, "action-running", &json!(true))
    );

    let () = system.command(&["DEL", &turn]).await;
    assert_eq!(counts(&carried_out(&system.client, "redrive", body).await), (1, 1, 0));
    system.drain().await;
    assert_eq!(system.client.get("/operator-actions/nonsense").await.code(), "action-not-found");
}

/// Reserves for this many users, and sets all of them aside.
async fn many_dead_letters(system: &System, coupon: &CouponId, count: usize) {
    let users: Vec<String> = (0..count).map(|number| format!("dead-{number}")).collect();
    for users in users.chunks(500) {
        let requests: Vec<_> = users.iter().map(|user| request(user, coupon)).collect();
        let reserved = reserve(system.partition(), &requests, NO_BACKLOG_MAX, QueueEntries::OfOne).await;
        let reserved = reserved.expect("answers");
        assert!(reserved.iter().all(|one| matches!(one, Reserved::Accepted(_))), "{reserved:?}");
        let entries = system.take_entries().await;
        let aside: Vec<_> = entries
            .iter()
            .map(|Entry { entry, id, .. }| SetAside { entry, id: *id, attempts: 3, why: WHY })
            .collect();
        let done = dead::set_all_aside(system.partition(), &system.keys(), &aside).await.expect("an answer");
        assert!(done.len() == users.len() && done.iter().all(|done| *done));
    }
}

/// Has an API process discard many dead letters, and sends it a signal in the middle. Returns the action as it is
/// recorded then. The rest is done by asking again.
async fn broken_off(signal: Signal) -> Value {
    const DEAD: usize = 2_000;
    let system = System::start().await;
    let coupon = system.coupon("c", u32::try_from(DEAD).expect("a total"), 1).await;
    many_dead_letters(&system, &coupon, DEAD).await;
    let mut api = program(API, &system);
    api.args(["--listen", "127.0.0.1:0"]);
    let (mut api, address) = serving(api).await;
    let everything = json!({"all": true, "reason": "a test"});
    let begun = Client::new(address).post("/dead-letters/discard", everything.clone()).await;
    assert_eq!(begun.status, 202, "{begun:?}");
    let left = async || system.client.get("/queue").await.body["deadLetters"].as_u64().expect("a count");
    eventually("some are discarded", async || (left().await < DEAD as u64).then_some(())).await;
    send(&api, signal);
    api.wait().await.expect("it ends");

    let action = system.client.get(&format!("/operator-actions/{}", begun.id())).await.body;
    let left = left().await;
    assert!(left > 0, "it was broken off: {action}");
    // A killed process keeps its turn for half a minute.
    let _: u64 = system.command(&["DEL", &system.keys().dead_letter_turn()]).await;
    assert_eq!(counts(&carried_out(&system.client, "discard", everything).await), (left, left, 0));
    assert_eq!(system.stock(&coupon).await.remaining as usize, DEAD);
    system.audited_clean().await;
    action
}

#[tokio::test]
async fn what_a_killed_process_has_discarded_stays_so_and_asked_again_the_rest_is_discarded() {
    let action = broken_off(Signal::KILL).await;
    assert!(action["endedAt"].is_null(), "{action}");
}

#[tokio::test]
async fn a_process_that_is_stopped_records_that_its_action_did_not_come_to_its_end() {
    let action = broken_off(Signal::TERM).await;
    let (matched, done, failed) = counts(&action);
    assert!(done > 0 && done < matched && failed == 0, "{action}");
    assert_eq!((&action["status"], &action["code"]), (&json!(503), &json!("unavailable")));
    assert_eq!(action["progress"]["running"], false);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_dead_letters_are_redriven_in_one_action_while_requests_go_on_and_the_accounts_add_up() {
    const DEAD: usize = 10_000;
    const LIVE: usize = 600;
    let system = System::start().await;
    let coupon = system.coupon("c", u32::try_from(DEAD + LIVE).expect("a total"), 1).await;
    many_dead_letters(&system, &coupon, DEAD).await;
    assert_eq!(system.client.get("/queue").await.body["deadLetters"], DEAD);
    system.users("live-", LIVE).await;
    let worker = system.worker_with(Concurrency { batches: 4, batch_size: 500 });

    let (action, ()) = tokio::join!(
        carried_out(&system.client, "redrive", json!({"filter": {"couponId": "c"}, "reason": "a test"})),
        async {
            for number in 0..LIVE {
                let answer = system.client.issue(&format!("live-{number}"), "c", None).await;
                assert_eq!(answer.status, 202, "{answer:?}");
            }
        }
    );
    assert_eq!((counts(&action), &action["status"]), ((DEAD as u64, DEAD as u64, 0), &json!(200)));
    let stock = system.settled(&coupon).await;
    assert_eq!((stock.issued as usize, stock.remaining), (DEAD + LIVE, 0));
    assert_eq!(system.issued_serials(&coupon).await, (1..=stock.total).collect::<Vec<_>>());
    worker.cancel();
    system.audited_clean().await;
}
