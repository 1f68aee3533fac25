//! Processes refuse to start with servers that could lose acknowledged data, or let a unit be issued twice.

use mongodb::IndexModel;
use mongodb::bson::{Document, doc};
use mongodb::options::IndexOptions;

use crate::helpers::{API, System, WORKER, program};

/// Asserts that both programs end with 5, and print all of these texts.
async fn are_refused(system: &System, said: &[&str]) {
    for (path, listen) in [(API, "--listen"), (WORKER, "--metrics-listen")] {
        let mut program = program(path, system);
        let output = program.args([listen, "127.0.0.1:0"]).output().await.expect("it runs");
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(5), "{told}");
        for said in said {
            assert!(told.contains(said), "{said:?} is not in: {told}");
        }
    }
}

#[tokio::test]
async fn redis_set_to_evict_or_to_lose_what_it_acknowledged_is_refused_with_what_to_do() {
    let system = System::start().await;
    for (name, right, wrong) in [
        ("maxmemory-policy", "noeviction", "allkeys-lru"),
        ("appendonly", "yes", "no"),
        ("appendfsync", "always", "no"),
        ("no-appendfsync-on-rewrite", "no", "yes"),
    ] {
        let _: () = system.command(&["CONFIG", "SET", name, wrong]).await;
        are_refused(&system, &[&format!("{name} {wrong}"), &format!("config set {name} {right}")]).await;
        let _: () = system.command(&["CONFIG", "SET", name, right]).await;
    }
}

#[tokio::test]
async fn an_index_of_the_right_name_that_does_not_hold_the_promise_is_refused() {
    let system = System::start().await;
    let coupon = system.coupon("c", 1, 1).await;
    system.accepted("u0", &coupon).await;
    let entries = system.take_entries().await;
    system.decider().process(&system.keys(), &entries).await.expect("the ledger is not empty");
    let ledger = system.backends.database.collection::<Document>("user_coupons");
    let (issued, occupied) = (doc! {"outcome": "issued"}, doc! {"unit": {"$exists": true}});
    for (name, keys, unique, only) in [
        ("unit_occupied_once", doc! {"p": 1, "couponId": 1, "unit": 1}, false, occupied.clone()),
        ("unit_occupied_once", doc! {"p": 1, "couponId": 1, "unit": 1}, true, issued.clone()),
        ("unit_occupied_once", doc! {"couponId": 1, "unit": 1}, true, occupied),
        ("user_within_limit_by_partition", doc! {"p": 1, "couponId": 1, "userId": 1}, true, issued),
    ] {
        ledger.drop_index(name).await.expect("it is dropped");
        let options = IndexOptions::builder()
            .name(name.to_owned())
            .unique(unique)
            .partial_filter_expression(only)
            .build();
        let altered = IndexModel::builder().keys(keys).options(options).build();
        ledger.create_index(altered).await.expect("it is made");
        are_refused(&system, &[name, "createIndex"]).await;
    }
}
