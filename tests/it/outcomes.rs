//! The feed of outcomes tells every decision once, whatever breaks.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use coupon_system::dev::servers::{MongoOptions, MongoServer};
use coupon_system::ids::{CouponId, IssuanceId, PartitionId};
use futures::TryStreamExt;
use futures::future::join_all;
use mongodb::bson::{Binary, Bson, Document, doc, spec::BinarySubtype};
use rand::RngExt;
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::helpers::{CTL, System, chance, eventually, fail, issued_to, obedient_mongodb, send, worker};

/// The outcomes of an answer, and the place after them.
#[derive(Debug)]
struct OutcomeLine {
    outcomes: Vec<Value>,
    after: String,
}

/// Reads one answer of the feed to its last line.
async fn told(system: &System, query: &str) -> OutcomeLine {
    let request = system.client.request("GET", &format!("/outcomes{query}"));
    let response = request.send().await.expect("an answer");
    assert_eq!(response.status(), 200, "{query}");
    assert_eq!(response.headers()["content-type"], "application/x-ndjson");
    let next = response.headers()["next-after"].to_str().expect("text").to_owned();
    let text = response.text().await.expect("a body");
    let mut outcomes: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let end = outcomes.pop().expect("a last line");
    assert_eq!(end, json!({"end": true, "after": next}));
    OutcomeLine { outcomes, after: next }
}

/// Id and outcome of every record of the ledger.
async fn ledger(system: &System) -> BTreeMap<String, String> {
    let records = system.backends.database.collection::<Document>("user_coupons");
    let found: Vec<Document> =
        records.find(doc! {}).await.expect("a look").try_collect().await.expect("records");
    let id = |record: &Document| match record.get("_id") {
        Some(Bson::Binary(id)) => id.to_uuid().expect("a UUID").to_string(),
        other => panic!("{other:?}"),
    };
    let outcome = |record: &Document| record.get_str("outcome").expect("an outcome").to_owned();
    found.iter().map(|record| (id(record), outcome(record))).collect()
}

async fn issued(system: &System, coupon: &CouponId, user: &str, serial: u32) {
    system.write(&[issued_to(coupon, user, serial)]).await;
}

/// A mongod of the test's own, and a system on it.
async fn alone() -> (System, MongoServer, TempDir) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut options = MongoOptions::new(folder.path().join("mongodb"));
    // MongoDB keeps the changes since its last checkpoint: it makes one a second.
    options.extra_args = ["--syncdelay", "1"].map(Into::into).to_vec();
    let mongodb = MongoServer::start(options).await.expect("it starts");
    let system =
        System::builder().mongodb(mongodb.url()).flags(&["--require-registered-users=false"]).start().await;
    (system, mongodb, folder)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_follows_a_rush_is_told_every_decision_once_though_a_worker_is_killed() {
    const REQUESTS: u32 = 3_000;
    const REJECTED: u32 = 30;
    let system = System::builder().flags(&["--require-registered-users=false"]).start().await;
    let coupon = system.coupon("c", 10_000, 1).await;
    let started = told(&system, "").await;
    assert!(started.outcomes.is_empty());
    // These users hold the coupon already, and Redis does not know: their requests are rejected.
    for number in 0..REJECTED {
        issued(&system, &coupon, &format!("u{number}"), 9_000 + number).await;
    }
    let mut workers =
        join_all((0..3).map(|_| worker(&system, &["--batch", "20", "--concurrency", "2"]))).await;
    let requests = join_all((0..REQUESTS).map(|number| {
        let (system, coupon) = (&system, &coupon);
        async move { system.accepted(&format!("u{number}"), coupon).await }
    }));
    let kill = async {
        eventually("some are decided", async || {
            (system.backends.ledger.issued_count(&coupon).await.expect("a count") > 300).then_some(())
        })
        .await;
        send(&workers[0], Signal::KILL);
    };

    let mut chance = chance();
    let expected = REQUESTS + REJECTED;
    let follow = async {
        let mut seen: BTreeMap<String, String> = BTreeMap::new();
        let mut after = started.after;
        while seen.len() < expected as usize {
            let query = format!("?after={after}&limit={}&wait=2", chance.random_range(1..400));
            // A client that breaks an answer off resumes from its last line.
            let patience = match chance.random_bool(0.3) {
                true => Duration::from_millis(chance.random_range(0..30)),
                false => Duration::from_secs(30),
            };
            let Ok(told) = tokio::time::timeout(patience, told(&system, &query)).await else { continue };
            for line in told.outcomes {
                let text = |name: &str| line[name].as_str().expect("text").to_owned();
                let twice = seen.insert(text("id"), text("outcome"));
                assert_eq!(twice, None, "told twice: {line}");
                after = text("after");
                // A client may resume from any line.
                if chance.random_bool(0.01) {
                    break;
                }
            }
        }
        (seen, after)
    };
    let (accepted, (), (seen, after)) = tokio::join!(requests, kill, async {
        tokio::time::timeout(Duration::from_secs(120), follow).await.expect("everything is told in time")
    });
    assert!(told(&system, &format!("?after={after}")).await.outcomes.is_empty(), "nothing is told beyond");
    assert_eq!(seen, ledger(&system).await);
    assert!(accepted.iter().all(|id| seen.contains_key(&id.to_string())));
    assert_eq!(seen.values().filter(|outcome| *outcome == "rejected").count(), REJECTED as usize);
    assert!(!workers.remove(0).wait().await.expect("it ended").success());
    // The killed worker may have left decided entries that are not settled.
    system.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_then_an_export_then_the_feed_have_every_unit() {
    let system = System::builder().flags(&["--require-registered-users=false"]).start().await;
    let coupon = system.coupon("c", 10_000, 1).await;
    let insert = async {
        for serial in 1..=1_500 {
            issued(&system, &coupon, &format!("u{serial}"), serial).await;
        }
    };
    let read = async {
        eventually("some are issued", async || {
            (system.backends.ledger.issued_count(&coupon).await.expect("a count") > 100).then_some(())
        })
        .await;
        let place = told(&system, "").await.after;
        let request =
            system.client.request("GET", "/coupons/c/user-coupons").send().await.expect("an answer");
        let text = request.text().await.expect("a body");
        let exported: BTreeSet<String> = text
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).expect("JSON"))
            .filter_map(|line| line["id"].as_str().map(str::to_owned))
            .collect();
        (place, exported)
    };
    let ((), (mut place, mut units)) = tokio::join!(insert, read);
    let exported = units.len();
    assert!((101..1_500).contains(&exported), "the export ran amid the inserts: {exported}");
    loop {
        let told = told(&system, &format!("?after={place}")).await;
        place = told.after;
        if told.outcomes.is_empty() {
            break;
        }
        units.extend(told.outcomes.iter().map(|line| line["id"].as_str().expect("an id").to_owned()));
    }
    assert_eq!(units, ledger(&system).await.into_keys().collect());
}

#[tokio::test]
async fn a_wait_ends_with_the_first_outcome_or_with_a_place() {
    let mut system = System::builder().flags(&["--require-registered-users=false"]).start().await;
    let coupon = system.coupon("c", 10, 1).await;
    let place = told(&system, "?wait=1").await;
    assert!(place.outcomes.is_empty());
    let query = format!("?after={}&wait=30", place.after);
    let (told_of, ()) = tokio::join!(told(&system, &query), issued(&system, &coupon, "u1", 3));
    let [line] = &told_of.outcomes[..] else { panic!("{told_of:?}") };
    assert_eq!(
        (&line["outcome"], &line["userId"], &line["couponId"], &line["serial"]),
        (&json!("issued"), &json!("u1"), &json!("c"), &json!(3))
    );
    assert!(told(&system, &format!("?after={}", told_of.after)).await.outcomes.is_empty());

    // A service that stops answers the clients that wait.
    let request = system.client.request("GET", &format!("/outcomes?after={}&wait=30", told_of.after)).send();
    let request = tokio::spawn(request);
    eventually("it waits", async || {
        let (system, place) = (&system, &told_of.after);
        (told(system, &format!("?after={place}")).await.outcomes.is_empty()).then_some(())
    })
    .await;
    let stopped = tokio::time::timeout(Duration::from_secs(15), system.stop()).await;
    stopped.expect("it stops before the wait is over");
    let answer = request.await.expect("no panic");
    assert!(answer.is_ok_and(|answer| answer.status() == 200));
}

#[tokio::test]
async fn a_damaged_record_is_told_of_and_stops_nobody() {
    let system = System::start().await;
    let coupon = system.coupon("c", 10, 1).await;
    let place = told(&system, "").await.after;
    let id = IssuanceId::generate(PartitionId::ONE);
    let binary = Binary { subtype: BinarySubtype::Uuid, bytes: id.as_bytes().to_vec() };
    let records = system.backends.database.collection::<Document>("user_coupons");
    records
        .insert_one(doc! {"_id": binary, "p": 0, "outcome": "maybe", "secret": "x"})
        .await
        .expect("written");
    issued(&system, &coupon, "u1", 1).await;
    let told = told(&system, &format!("?after={place}")).await;
    let [damaged, good] = &told.outcomes[..] else { panic!("{told:?}") };
    assert_eq!((&damaged["outcome"], &damaged["id"]), (&json!("unreadable"), &json!(id.to_string())));
    assert!(!damaged.to_string().contains("secret"));
    assert_eq!(good["outcome"], "issued");
}

#[tokio::test]
async fn what_is_no_place_is_invalid_and_one_of_another_ledger_is_gone() {
    let (system, other) = (System::start().await, System::start().await);
    let coupon = other.coupon("c", 10, 1).await;
    let place = told(&other, "").await.after;
    issued(&other, &coupon, "u1", 1).await;
    let told = told(&other, &format!("?after={place}")).await;
    let foreign = told.outcomes[0]["after"].as_str().expect("a place").to_owned();
    // MongoDB notices with the next decision: the feed tells nothing from the place of another server.
    issued(&system, &system.coupon("c", 10, 1).await, "u1", 1).await;
    let gone = system.client.get(&format!("/outcomes?after={foreign}")).await;
    assert_eq!((gone.status, gone.code()), (410, "cursor-expired"), "{gone:?}");
    let cut = &foreign[..foreign.len() / 2];
    for wrong in ["", "%00", "AAAA", "gg==", "zzzzzzzz", "////", cut, &"A".repeat(3_000)] {
        let answer = system.client.get(&format!("/outcomes?after={wrong}")).await;
        assert_eq!((answer.status, answer.code()), (422, "invalid"), "{wrong}: {answer:?}");
    }
    for wrong in ["limit=0", "wait=x", "more=1", "limit=-1"] {
        assert_eq!(other.client.get(&format!("/outcomes?{wrong}")).await.code(), "invalid", "{wrong}");
    }
    let few = other.client.request("GET", &format!("/outcomes?after={place}&limit=1")).send().await;
    assert_eq!(few.expect("an answer").text().await.expect("a body").lines().count(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn followers_are_bounded_and_whoever_leaves_leaves_no_cursor() {
    let (system, _mongodb, _folder) = alone().await;
    let cursors = async || {
        let status = system.backends.database.run_command(doc! {"serverStatus": 1}).await.expect("a status");
        let open = status.get_document("metrics").and_then(|metrics| metrics.get_document("cursor"));
        open.and_then(|cursor| cursor.get_document("open"))
            .expect("figures")
            .get_i64("total")
            .expect("a total")
    };
    let before = cursors().await;
    let waiting: Vec<_> = (0..16)
        .map(|_| {
            let client = system.client.clone();
            tokio::spawn(async move {
                // The read below may have taken its place.
                while client.get("/outcomes?wait=30").await.status == 503 {}
            })
        })
        .collect();
    let refused = eventually("all places are taken", async || {
        let answer = system.client.get("/outcomes").await;
        (answer.status == 503).then_some(answer)
    })
    .await;
    assert_eq!(refused.code(), "overloaded");
    assert!(!refused.header("retry-after").is_empty());
    for one in waiting {
        one.abort();
    }
    eventually("every cursor is closed", async || (cursors().await <= before).then_some(())).await;
    told(&system, "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_that_mongodb_has_forgotten_is_gone_and_no_mongodb_is_unavailable() {
    // Twelve of these are twice as much as this mongod keeps.
    const FILLER_BYTES: usize = 12 << 20;
    const FILLERS: usize = 12;
    let (system, mut mongodb, _folder) = alone().await;
    let coupon = system.coupon("c", 10, 1).await;
    let place = told(&system, "").await.after;
    issued(&system, &coupon, "u1", 1).await;
    assert_eq!(told(&system, &format!("?after={place}")).await.outcomes.len(), 1);
    let filler = system.backends.database.collection::<Document>("filler");
    // A read returns everything after the place, so the test deletes the history first.
    for _ in 0..FILLERS {
        filler.insert_one(doc! {"filler": "x".repeat(FILLER_BYTES)}).await.expect("written");
    }
    let gone = eventually("the history is overwritten", async || {
        filler.insert_one(doc! {"filler": "x".repeat(FILLER_BYTES)}).await.expect("written");
        let answer = system.client.get(&format!("/outcomes?after={place}")).await;
        (answer.status != 200).then_some(answer)
    })
    .await;
    assert_eq!((gone.status, gone.code(), &gone.body["retryable"]), (410, "cursor-expired", &json!(false)));

    let place = told(&system, "").await.after;
    mongodb.kill().await.expect("it is killed");
    let away = system.client.get(&format!("/outcomes?after={place}")).await;
    assert_eq!((away.status, away.code()), (503, "unavailable"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_that_mongodb_stumbles_over_once_is_as_good_as_ever() {
    const INTERRUPTED: i32 = 11_601;
    let (mongodb, _folder) = obedient_mongodb().await;
    let system = System::builder().mongodb(mongodb.url()).start().await;
    let coupon = system.coupon("c", 10, 1).await;
    let place = told(&system, "").await.after;
    issued(&system, &coupon, "u1", 1).await;
    let how = doc! {
        "failCommands": ["aggregate"], "errorCode": INTERRUPTED,
        "namespace": format!("{}.user_coupons", system.database),
    };
    fail(&system, doc! {"times": 1}, how.clone()).await;
    assert_eq!(told(&system, &format!("?after={place}")).await.outcomes.len(), 1);
    fail(&system, "alwaysOn", how).await;
    let away = system.client.get(&format!("/outcomes?after={place}")).await;
    assert_eq!((away.status, away.code()), (503, "unavailable"), "{away:?}");
}

#[tokio::test]
async fn couponctl_follows_and_says_where_to_go_on() {
    let system = System::start().await;
    let coupon = system.coupon("c", 10, 1).await;
    let place = told(&system, "").await.after;
    issued(&system, &coupon, "u1", 7).await;
    let run = async |words: &[&str]| {
        let mut command = tokio::process::Command::new(CTL);
        command.args(["outcome", "follow", "--once"]).args(words).env("COUPON_API_URL", system.client.base());
        let output = command.output().await.expect("it runs");
        (
            output.status.success(),
            String::from_utf8(output.stdout).expect("UTF-8"),
            String::from_utf8(output.stderr).expect("UTF-8"),
        )
    };
    let (ok, out, err) = run(&["--after", &place]).await;
    assert!(ok && out.contains("c  u1  issued    #7"), "{out}{err}");
    let next = err.split("--after ").nth(1).and_then(|rest| rest.split('`').next()).expect("a place");
    let (ok, out, _) = run(&["--after", next]).await;
    assert!(ok && out.is_empty(), "{out}");
    let (_, out, _) = run(&["--json", "--after", &place]).await;
    assert_eq!(serde_json::from_str::<Value>(&out).expect("a line")["serial"], 7);
    let (ok, _, err) = run(&["--after", "AAAA"]).await;
    assert!(!ok && err.contains("after"), "{err}");
}
