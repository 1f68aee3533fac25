//! Processes that have not heard yet that the deployment has more partitions than at their start, and ids and coupons in
//! partitions that a process does not know.

use coupon_system::coupon::Coupon;
use coupon_system::ids::{IssuanceId, PartitionId, Shares};
use coupon_system::privacy::Eraser;
use coupon_system::recovery::Deployment;
use futures::future::join_all;
use mongodb::bson::{Document, doc};

use crate::helpers::{API, System, at, eventually, logging, program, serving, stopped};
use crate::partitions::{PARTITIONS, create};

/// A short delay, but still twice the time for which a process may miss deletions.
const DELAY: &[&str] = &["--user-deletion-delay", "2"];
const POLLS: usize = 200;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_the_deployment_has_outgrown_deletes_no_user_and_says_so() {
    let system = System::builder().flags(DELAY).start().await;
    system.users("leaves", 1).await;
    let api = || {
        let mut api = program(API, &system);
        api.args(["--listen", "127.0.0.1:0", "--audit-every", "0"]).args(DELAY);
        api
    };
    let (older, _, log) = logging(api()).await;
    let database = &system.backends.database;
    Deployment::grow(database, PARTITIONS).await.expect("it grows");
    let deleted = system.client.send(system.client.request("DELETE", "/users/leaves0")).await;
    assert_eq!(deleted.status, 202, "{deleted:?}");
    let said = log.says("this process deletes no user").await;
    assert!(said.contains("restart it"), "{said}");
    let (deletions, now) = system.backends.ledger.users().deletions().await.expect("they are read");
    assert_eq!(deletions.len(), 1, "it is left to a process that knows every partition");
    let eraser =
        Eraser::new(system.backends.partitions.clone(), system.backends.ledger.clone(), database.clone());
    let refused = eraser.erase(&deletions[0], now).await.expect_err("it may have something there");
    assert!(refused.to_string().contains("restart it"), "{refused}");

    let (newer, _) = serving(api()).await;
    eventually("a process that knows them all deletes the user", async || {
        let left = system.backends.ledger.users().deletions().await.expect("they are read").0;
        left.is_empty().then_some(())
    })
    .await;
    for child in [older, newer] {
        assert_eq!(stopped(child).await.code(), Some(0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn polls_of_ids_in_a_partition_that_there_is_not_share_their_reads() {
    let system = System::builder().partitions(PARTITIONS).start().await;
    let database = &system.backends.database;
    database.run_command(doc! {"profile": 2}).await.expect("it keeps what it is sent");
    let nowhere = PartitionId::new(900).expect("a number");
    let paths: Vec<_> = (0..POLLS).map(|_| format!("/issuances/{}", IssuanceId::generate(nowhere))).collect();
    for answer in join_all(paths.iter().map(|path| system.client.get(path))).await {
        assert_eq!((answer.status, answer.code()), (404, "issuance-not-found"), "{answer:?}");
    }
    database.run_command(doc! {"profile": 0}).await.expect("it stops");
    let profile = database.collection::<Document>("system.profile");
    let certain = doc! {"command.find": "recovery", "command.readConcern.level": "linearizable"};
    let reads = profile.count_documents(certain).await.expect("a count");
    assert!((1..=POLLS as u64 / 2).contains(&reads), "{reads} reads");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coupon_in_a_partition_that_a_process_does_not_know_keeps_no_others_stock_from_being_shown() {
    let system = System::builder().partitions(PARTITIONS).start().await;
    create(&system.client, "known", 20).await;
    let plain = Coupon::new("unknown".parse().expect("an id"), 5, at(-3600), at(3600));
    let partition = PartitionId::new(PARTITIONS + 1).expect("a number");
    let coupon = Coupon { created_at: at(0), shares: Shares::one(partition), ..plain };
    system.backends.coupons.insert(&coupon).await.expect("it is written");
    let shows = async |remaining: u32| {
        let line = format!("coupon_stock_remaining_units{{coupon=\"known\"}} {remaining}\n");
        eventually("the gauge shows the stock", async || {
            let metrics = system.client.request("GET", "/metrics").send().await.expect("an answer");
            metrics.text().await.expect("a text").contains(&line).then_some(())
        })
        .await;
    };
    shows(20).await;
    system.users("u", 1).await;
    assert_eq!(system.client.issue("u0", "known", None).await.status, 202);
    shows(19).await;
    let listed = system.client.get("/coupons").await;
    assert_eq!(listed.body["items"].as_array().map(Vec::len), Some(2), "{listed:?}");
    system.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_of_many_coupons_asks_once_where_they_lie() {
    let system = System::start().await;
    let mut accepted = Vec::new();
    for number in 0..12 {
        let coupon = system.coupon(&format!("c{number}"), 5, 1).await;
        accepted.push(system.accepted("u", &coupon).await);
    }
    let entries = system.take_entries().await;
    assert_eq!(entries.len(), accepted.len());
    let database = &system.backends.database;
    database.run_command(doc! {"profile": 2}).await.expect("it keeps what it is sent");
    let decided = system.decider().process(&system.keys(), &entries).await;
    database.run_command(doc! {"profile": 0}).await.expect("it stops");
    decided.expect("they are decided");
    let profile = database.collection::<Document>("system.profile");
    let mut found = profile.find(doc! {"command.find": "coupons"}).await.expect("a look");
    let mut sizes = Vec::new();
    while found.advance().await.expect("the next") {
        let sent = found.deserialize_current().expect("a document");
        let filter = sent.get_document("command").and_then(|command| command.get_document("filter"));
        let ids = filter.and_then(|filter| filter.get_document("_id")).and_then(|id| id.get_array("$in"));
        sizes.push(ids.map_or(1, Vec::len));
    }
    // One for their limits, one for their partitions; the gauges read others.
    let of_all = sizes.iter().filter(|size| **size == entries.len()).count();
    assert!(of_all == 2 && sizes.iter().filter(|size| **size == 1).count() < entries.len() / 2, "{sizes:?}");
}
