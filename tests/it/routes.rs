//! Every operation on the ledger names the partitions, so that mongos can send it where the records lie.

use coupon_system::ids::{IssuanceId, PartitionId};
use coupon_system::issuance::{Decision, Outcome, Reason};
use coupon_system::privacy::Retention;
use coupon_system::recovery::{RecoveryMode, ignore_progress};
use futures::TryStreamExt;
use mongodb::bson::{Bson, Document, doc};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::helpers::{
    System, as_an_older_version_made_it, at, database, decided, discarded, eventually, mongodb, supervisor,
};

/// Has MongoDB note every operation on the database.
async fn noted(system: &System) {
    let database = &system.backends.database;
    let room = doc! {"create": "system.profile", "capped": true, "size": 64_i64 << 20};
    database.run_command(room).await.expect("there is room for all of it");
    database.run_command(doc! {"profile": 2}).await.expect("it notes what runs");
}

/// Whether the filter, or each of its alternatives, names the partition.
fn is_routed(filter: &Document) -> bool {
    let alternatives =
        || filter.get_array("$or").ok()?.iter().map(Bson::as_document).collect::<Option<Vec<_>>>();
    filter.contains_key("p") || alternatives().is_some_and(|all| all.iter().all(|one| is_routed(one)))
}

/// Reads by user of any coupon: mongos asks every shard.
fn is_of_one_user(filter: &Document) -> bool {
    filter.contains_key("userId") && !filter.contains_key("couponId")
}

/// Whether the filter names ids of issuances.
fn is_by_id(filter: &Document) -> bool {
    match filter.get("_id") {
        Some(Bson::Document(of)) => of.contains_key("$in"),
        id => id.is_some(),
    }
}

/// The filter of a find, a count or a change, or the first stage of an aggregation.
fn filter_of(command: &Document) -> Option<Document> {
    let filter = ["filter", "query", "q"].iter().find_map(|name| command.get_document(name).ok());
    let stages = || command.get_array("pipeline").ok()?.first()?.as_document()?.get_document("$match").ok();
    filter.or_else(stages).cloned()
}

/// Asserts that each noted operation on the ledger is routed, and that an index served it.
async fn all_are_routed(system: &System) {
    let database = &system.backends.database;
    database.run_command(doc! {"profile": 0}).await.expect("it stops");
    let of_ledger = doc! {
        "ns": format!("{}.user_coupons", system.database),
        "op": {"$in": ["query", "update", "remove", "command"]},
    };
    let found =
        database.collection::<Document>("system.profile").find(of_ledger).await.expect("they are read");
    let (mut routed, mut scattered) = (0, 0);
    for operation in found.try_collect::<Vec<_>>().await.expect("all of them") {
        let command = operation.get_document("command").expect("it has one");
        let named = command.keys().next().expect("it has a name");
        if ["listIndexes", "createIndexes", "collMod", "create"].contains(&named.as_str()) {
            continue;
        }
        let filter = filter_of(command).unwrap_or_else(|| panic!("it has no filter: {command}"));
        let plan = operation.get_str("planSummary").unwrap_or_default();
        assert!(!plan.contains("COLLSCAN"), "no index serves it: {plan}: {command}");
        if is_routed(&filter) {
            routed += 1;
            assert!(!is_by_id(&filter) || plan == "IXSCAN { _id: 1 }", "{plan}: {command}");
        } else {
            scattered += 1;
            assert!(is_of_one_user(&filter), "it names no partition: {command}");
        }
    }
    assert!(routed > 20 && scattered > 2, "{routed} and {scattered}: next to nothing was noted");
}

/// What the system does with the ledger, all of it but to follow its changes.
async fn a_whole_life(system: &System) {
    system.users("u", 6).await;
    let coupon = system.coupon("c", 5, 1).await;
    let other = system.coupon("other", 5, 2).await;
    // Rejected; given another unit than the one that is taken; asked for, step by step.
    let rejected = system.accepted("u4", &other).await;
    let entry = system.take_entries().await.remove(0);
    system.write(&[discarded(&entry)]).await;
    system.decider().process(&system.keys(), &[entry]).await.expect("it adopts");
    assert_eq!(system.client.decided(&rejected.to_string()).await.state(), "rejected");
    let moved = system.accepted("u5", &other).await;
    let entries = system.take_entries().await;
    system.write_issued(&other, "x", 1..=2).await;
    system.decider().process(&system.keys(), &entries).await.expect("it takes another unit");
    assert_eq!(system.client.decided(&moved.to_string()).await.state(), "issued");
    assert_eq!(system.client.get("/issuances/00000000-0000-7000-8000-000000000001").await.status, 404);
    let worker = system.worker();
    let ids = system.accept_all(&coupon, (0..3).map(|number| format!("u{number}"))).await;
    for id in &ids {
        assert_eq!(system.client.decided(&id.to_string()).await.state(), "issued");
    }
    worker.cancel();
    // Used, listed, exported.
    let held = format!("/user-coupons/u0/{}", ids[0]);
    for (path, body) in [
        (format!("{held}/use"), json!({"reference": "order"})),
        (format!("{held}/restore"), json!({"reference": "order"})),
        (format!("{held}/revoke"), json!({})),
    ] {
        assert_eq!(system.client.post(&path, body).await.status, 200, "{path}");
    }
    for path in ["/user-coupons/u0?limit=1", "/users/u0", "/coupons/c", "/coupons/c/user-coupons"] {
        assert_eq!(
            system.client.request("GET", path).send().await.expect("an answer").status(),
            200,
            "{path}"
        );
    }
    assert_eq!(system.client.get("/user-coupons/u0/00000000-0000-7000-8000-000000000001").await.status, 404);
    // Audited, recovered, forgotten.
    system.audited().await;
    let backends = &system.backends;
    let coupons = system.auditor().coupons_after(None).await.expect("the coupons");
    system.auditor().brackets(&coupons, |_| {}).await.expect("an audit");
    system.auditor().repair(&coupons, |_| {}).await.expect("a repair");
    for mode in [RecoveryMode::VerifyFirst, RecoveryMode::Rebuild] {
        let keeper = supervisor(backends);
        keeper.recover(mode, &ignore_progress(), &CancellationToken::new()).await.expect("it is recovered");
    }
    system.backends.loaders().first().load(&coupon).await.expect("it is loaded");
    let past = at(-500 * 24 * 3_600);
    let old = system.coupon_record("old", 5, 1, past, past + jiff::SignedDuration::from_secs(60)).await;
    let outcome = Outcome::Rejected { reason: Reason::Discarded, unit: None, lost: false };
    let rejection = decided(IssuanceId::generate(PartitionId::ONE), &old.id, "gone", outcome);
    system.write(&[Decision { accepted_at: past, decided_at: past, ..rejection }]).await;
    let retention =
        Retention::new(backends.partitions.clone(), backends.ledger.clone(), backends.coupons.clone(), 400);
    assert_eq!(retention.expect("a retention").round(at(0)).await.expect("a round").deleted, 1);
    let deleted = system.client.send(system.client.request("DELETE", "/users/u1")).await;
    assert!([202, 204].contains(&deleted.status), "{deleted:?}");
    let users = backends.database.collection::<Document>("users");
    eventually("the user is forgotten", async || {
        (users.count_documents(doc! {"_id": "u1"}).await.expect("a count") == 0).then_some(())
    })
    .await;
}

const DELAY: &[&str] = &["--user-deletion-delay", "2"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_operation_on_the_ledger_names_its_partitions() {
    let system = System::builder().flags(DELAY).start().await;
    noted(&system).await;
    a_whole_life(&system).await;
    all_are_routed(&system).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_operation_on_a_ledger_of_the_last_release_does_too() {
    let name = database();
    let connected = coupon_system::mongo::connect(&mongodb().await, &name).await.expect("a URI");
    as_an_older_version_made_it(&connected).await;
    let system = System::builder().flags(DELAY).database(name).start().await;
    noted(&system).await;
    a_whole_life(&system).await;
    all_are_routed(&system).await;
}
