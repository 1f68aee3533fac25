//! Using held coupons: one of several uses wins, a repeated use has the same answer, and the accounts stay the same.

use std::sync::Arc;
use std::time::{Duration, Instant};

use coupon_system::coupon::{Coupon, Validity};
use coupon_system::ids::CouponId;
use futures::future::join_all;
use mongodb::bson::{Document, doc};
use serde_json::{Value, json};
use tokio::sync::Barrier;

use crate::helpers::{Answer, System, at, eventually, obedient_mongodb};

/// The path of a user coupon that `u0` holds.
async fn held(system: &System, coupon: &CouponId) -> String {
    system.users("u", 1).await;
    system.worker();
    let accepted = system.client.issue("u0", coupon.as_str(), None).await;
    let decided = system.client.decided(&accepted.id()).await;
    decided.body["userCoupon"].as_str().expect("a link").to_owned()
}

/// A coupon whose units are valid for this long.
async fn valid(system: &System, validity: Validity) -> CouponId {
    let plain = system.coupon_record("template", 1, 1, at(-60), at(60)).await;
    let id: CouponId = "c".parse().expect("an id");
    let coupon = Coupon { id: id.clone(), validity, total: 10, per_user: 2, ..plain };
    system.backends.coupons.insert(&coupon).await.expect("it is written");
    system.backends.loaders().first().load(&id).await.expect("it is loaded");
    id
}

async fn use_it(system: &System, path: &str, reference: &str) -> Answer {
    system.client.post(&format!("{path}/use"), json!({"reference": reference})).await
}

async fn restore(system: &System, path: &str, reference: Option<&str>) -> Answer {
    system.client.post(&format!("{path}/restore"), json!({"reference": reference})).await
}

fn events(body: &Value) -> Vec<(&str, &str)> {
    let history = body["history"].as_array().expect("a history").iter();
    history
        .map(|event| (event["event"].as_str().expect("a name"), event["reference"].as_str().unwrap_or("-")))
        .collect()
}

#[track_caller]
fn refused(answer: &Answer, code: &str) {
    assert_eq!((answer.status, answer.code()), (409, code), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_thousand_concurrent_uses_of_one_coupon_one_succeeds() {
    const USES: usize = 2_000;
    const AGAIN_AFTER: Duration = Duration::from_millis(50);
    let system = System::start().await;
    let coupon = system.coupon("c", 10, 1).await;
    let path = held(&system, &coupon).await;
    let barrier = Arc::new(Barrier::new(USES));
    let uses = (0..USES).map(|number| {
        let (client, path, barrier) = (system.client.clone(), path.clone(), Arc::clone(&barrier));
        tokio::spawn(async move {
            barrier.wait().await;
            let reference = json!({"reference": format!("order-{number}")});
            // The API may refuse some of so many at once with 503; they try again.
            loop {
                let answer = client.post(&format!("{path}/use"), reference.clone()).await;
                if answer.status != 503 {
                    return answer;
                }
                tokio::time::sleep(AGAIN_AFTER).await;
            }
        })
    });
    let answers: Vec<_> = join_all(uses).await.into_iter().map(|joined| joined.expect("no panic")).collect();
    let (won, lost): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == 200);
    assert_eq!(won.len(), 1);
    let reference = won[0].body["reference"].as_str().expect("its reference");
    for answer in lost {
        refused(answer, "already-used");
        assert_eq!(answer.body["usedAt"], won[0].body["usedAt"]);
        assert_eq!(answer.body["reference"], reference);
    }
    let shown = system.client.get(&path).await;
    assert_eq!(
        (shown.body["status"].as_str(), shown.body["reference"].as_str()),
        (Some("used"), Some(reference))
    );
    assert_eq!(events(&shown.body), [("issued", "-"), ("used", reference)]);
    crate::helpers::accounts_hold(&system, &coupon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_reference_at_once_and_again_is_one_use_with_one_answer() {
    let system = System::start().await;
    let coupon = system.coupon("c", 10, 1).await;
    let path = held(&system, &coupon).await;
    let barrier = Arc::new(Barrier::new(100));
    let uses = (0..100).map(|_| {
        let (client, path, barrier) = (system.client.clone(), path.clone(), Arc::clone(&barrier));
        tokio::spawn(async move {
            barrier.wait().await;
            client.post(&format!("{path}/use"), json!({"reference": "o1"})).await
        })
    });
    let mut answers: Vec<_> =
        join_all(uses).await.into_iter().map(|joined| joined.expect("no panic")).collect();
    answers.push(use_it(&system, &path, "o1").await);
    assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
    assert!(answers.iter().all(|answer| answer.body == answers[0].body), "{answers:?}");
    assert_eq!(answers.iter().filter(|answer| !answer.is_replay()).count(), 1);
}

#[tokio::test]
async fn a_use_can_be_undone_and_then_another_one_made_but_a_late_repetition_makes_none() {
    let system = System::start().await;
    let coupon = system.coupon("c", 10, 1).await;
    let path = held(&system, &coupon).await;
    refused(&restore(&system, &path, None).await, "not-used");
    assert_eq!(use_it(&system, &path, "o1").await.status, 200);
    refused(&restore(&system, &path, Some("o2")).await, "not-used");
    let restored = restore(&system, &path, Some("o1")).await;
    assert_eq!((restored.status, restored.is_replay()), (200, false));
    assert_eq!(
        (&restored.body["status"], &restored.body["usedAt"], &restored.body["reference"]),
        (&json!("active"), &Value::Null, &Value::Null)
    );
    assert!(restore(&system, &path, Some("o1")).await.is_replay());
    refused(&restore(&system, &path, None).await, "not-used");

    refused(&use_it(&system, &path, "o1").await, "already-used");
    let used = use_it(&system, &path, "o2").await;
    assert_eq!((used.status, used.body["reference"].as_str()), (200, Some("o2")));
    refused(&use_it(&system, &path, "o1").await, "already-used");
    let late = restore(&system, &path, Some("o1")).await;
    assert_eq!((late.status, late.is_replay(), late.body["status"].as_str()), (200, true, Some("used")));

    // The body is optional.
    assert_eq!(use_it(&system, &path, "o3").await.code(), "already-used");
    let bare = system.client.send(system.client.request("POST", &format!("{path}/restore"))).await;
    assert_eq!(bare.status, 200, "{bare:?}");
    let all = [("issued", "-"), ("used", "o1"), ("restored", "o1"), ("used", "o2"), ("restored", "o2")];
    assert_eq!(events(&bare.body), all);
    for event in &bare.body["history"].as_array().expect("a history")[1..] {
        assert_eq!(event["by"], "open");
    }
    crate::helpers::accounts_hold(&system, &coupon).await;
}

#[tokio::test]
async fn a_revoked_coupon_is_taken_away_and_its_unit_and_place_stay_taken() {
    let system = System::start().await;
    let coupon = system.coupon("c", 10, 1).await;
    let path = held(&system, &coupon).await;
    assert_eq!(use_it(&system, &path, "o1").await.status, 200);
    let revoke = format!("{path}/revoke");
    let revoked = system.client.send(system.client.request("POST", &revoke)).await;
    assert_eq!((revoked.status, revoked.is_replay()), (200, false));
    let again = system.client.post(&revoke, json!({})).await;
    assert_eq!((again.status, again.is_replay(), &again.body), (200, true, &revoked.body));
    for answer in [use_it(&system, &path, "o1").await, restore(&system, &path, None).await] {
        refused(&answer, "revoked");
    }
    assert_eq!(system.client.issue("u0", "c", None).await.code(), "already-issued");
    let stock = crate::helpers::accounts_hold(&system, &coupon).await;
    assert_eq!((stock.issued, stock.remaining), (1, 9));

    // A rebuild counts it too, and keeps its history.
    let _: u64 = system.command(&["DEL", &system.keys().certificate()]).await;
    crate::helpers::recovered(&system).await;
    eventually("it answers again", async || {
        (system.client.issue("u0", "c", None).await.code() == "already-issued").then_some(())
    })
    .await;
    assert_eq!(system.client.get(&path).await.body, revoked.body);
    let stock = crate::helpers::accounts_hold(&system, &coupon).await;
    assert_eq!((stock.issued, stock.remaining), (1, 9));
}

#[tokio::test]
async fn what_has_expired_cannot_be_used_but_a_use_that_stands_is_still_recognised() {
    let system = System::start().await;
    let coupon = valid(&system, Validity::For("PT2S".parse().expect("a duration"))).await;
    let path = held(&system, &coupon).await;
    assert_eq!(use_it(&system, &path, "o1").await.status, 200);
    system.users("late", 1).await;
    let accepted = system.client.issue("late0", "c", None).await;
    let other =
        system.client.decided(&accepted.id()).await.body["userCoupon"].as_str().expect("a link").to_owned();
    eventually("it expires", async || {
        tokio::time::sleep(Duration::from_millis(50)).await;
        (system.client.get(&other).await.body["status"] == "expired").then_some(())
    })
    .await;
    let late = use_it(&system, &other, "o1").await;
    refused(&late, "expired");
    assert_eq!(late.body["validUntil"], system.client.get(&other).await.body["validUntil"]);
    assert!(use_it(&system, &path, "o1").await.is_replay());
    let restored = restore(&system, &path, None).await;
    assert_eq!((restored.status, restored.body["status"].as_str()), (200, Some("expired")));
    refused(&use_it(&system, &path, "o2").await, "expired");
}

#[tokio::test]
async fn the_moment_that_decides_about_validity_is_that_of_the_write() {
    let system = System::start().await;
    let coupon = valid(&system, Validity::Until(at(3_600))).await;
    let path = held(&system, &coupon).await;
    let store = coupon_system::redemption::RedemptionStore::new(&system.backends.database);
    let id = path.rsplit('/').next().expect("an id").parse().expect("an id");
    let held = store.get(&"u0".parse().expect("an id"), id).await.expect("a look").expect("it is held");
    // The record was read in time, and its validity has ended since.
    let early = coupon_system::redemption::HeldCoupon { now: at(-100), ..held };
    let change =
        coupon_system::redemption::RedemptionChange::Use { reference: "o1".parse().expect("a reference") };
    let changed = store.change(early, &change, Some(at(-50)), "test").await.expect("an answer");
    assert!(
        matches!(
            changed,
            coupon_system::redemption::RedemptionChangeOutcome::Refused(
                _,
                coupon_system::redemption::RedemptionRefusal::Expired { .. }
            )
        ),
        "{changed:?}"
    );
}

#[tokio::test]
async fn the_list_shows_each_coupon_as_it_is_now_and_filters_by_that() {
    let system = System::start().await;
    let coupon = system.coupon("c", 20, 10).await;
    system.users("u", 1).await;
    system.worker();
    let mut paths = Vec::new();
    for number in 0..6 {
        let accepted = system.client.issue("u0", coupon.as_str(), Some(&format!("k{number}"))).await;
        let decided = system.client.decided(&accepted.id()).await;
        paths.push(decided.body["userCoupon"].as_str().expect("a link").to_owned());
    }
    use_it(&system, &paths[0], "o1").await;
    use_it(&system, &paths[3], "o2").await;
    system.client.post(&format!("{}/revoke", paths[4]), json!({})).await;
    for (status, expected) in
        [("active", vec![5, 2, 1]), ("used", vec![3, 0]), ("revoked", vec![4]), ("expired", vec![])]
    {
        let (mut found, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = system.client.get(&format!("/user-coupons/u0?status={status}&limit=1{cursor}")).await;
            for item in page.body["items"].as_array().expect("items") {
                assert_eq!(item["status"], status);
                let path = format!("/user-coupons/u0/{}", item["id"].as_str().expect("an id"));
                found.push(paths.iter().position(|known| *known == path).expect("it is known"));
            }
            match page.body["nextCursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        assert_eq!(found, expected, "{status}");
    }
    let shown = system.client.get("/users/u0").await;
    let used: Vec<_> =
        shown.body["coupons"].as_array().expect("coupons").iter().map(|held| &held["status"]).collect();
    assert_eq!(used, ["active", "revoked", "used", "active", "active", "used"]);
}

#[tokio::test]
async fn what_is_wrong_or_somebody_elses_changes_nothing() {
    let system = System::start().await;
    let coupon = system.coupon("c", 10, 1).await;
    let path = held(&system, &coupon).await;
    let id = path.rsplit('/').next().expect("an id");
    for body in [
        json!({}),
        json!({"reference": ""}),
        json!({"reference": {"$gt": ""}}),
        json!({"reference": 1}),
        json!({"reference": "a b"}),
        json!({"reference": "x".repeat(129)}),
        json!({"reference": "o", "more": 1}),
    ] {
        let answer = system.client.post(&format!("{path}/use"), body.clone()).await;
        assert_eq!((answer.status, answer.code()), (422, "invalid"), "{body}");
    }
    for wrong in [
        format!("/user-coupons/u9/{id}"),
        "/user-coupons/u0/01a206a0-caad-7000-95cf-bcf9c90eb941".into(),
        "/user-coupons/u0/x".into(),
        format!("/user-coupons/%24ne/{id}"),
    ] {
        let answer = use_it(&system, &wrong, "o1").await;
        assert_eq!((answer.status, answer.code()), (404, "user-coupon-not-found"), "{wrong}");
    }
    assert_eq!(events(&system.client.get(&path).await.body), [("issued", "-")]);

    // A text that looks like a field or an operator of MongoDB is stored to the letter.
    let used = use_it(&system, &path, "$$ROOT.userId").await;
    assert_eq!(used.body["reference"], "$$ROOT.userId");
    let records = system.backends.database.collection::<Document>("user_coupons");
    let found = records.count_documents(doc! {"redemption.reference": "$$ROOT.userId"}).await;
    assert_eq!(found.expect("a count"), 1);
}

#[tokio::test]
async fn a_coupon_can_be_used_and_restored_fifty_times() {
    let system = System::start().await;
    let coupon = system.coupon("c", 10, 1).await;
    let path = held(&system, &coupon).await;
    for number in 0..50 {
        assert_eq!(use_it(&system, &path, &format!("o{number}")).await.status, 200);
        assert_eq!(restore(&system, &path, None).await.status, 200);
    }
    refused(&use_it(&system, &path, "o50").await, "already-used");
    assert_eq!(system.client.get(&path).await.body["history"].as_array().map(Vec::len), Some(101));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_while_mongodb_is_silent_is_answered_whoever_was_there_before() {
    /// Several times the number of requests that the API serves at once.
    const ASKING: usize = 250;
    let (mut mongodb, _folder) = obedient_mongodb().await;
    let system = System::builder().mongodb(mongodb.url()).start().await;
    mongodb.pause().await.expect("it is paused");
    let started = Instant::now();
    let path = "/user-coupons/u0/01a206a0-caad-7000-95cf-bcf9c90eb941";
    let answers = join_all((0..ASKING).map(|_| system.client.get(path))).await;
    assert!(answers.iter().all(|answer| answer.status == 503));
    // The time of an operation, and of the wait for its turn.
    assert!(started.elapsed() < Duration::from_secs(18), "{:?}", started.elapsed());
    mongodb.resume().expect("it goes on");
    eventually("it answers again", async || {
        (system.client.get(path).await.code() == "user-coupon-not-found").then_some(())
    })
    .await;
}
