//! How workers share the partitions, and one worker its turns among them.

use std::time::{Duration, Instant};

use coupon_system::config::Concurrency;
use coupon_system::issuance::reserve::{QueueEntries, Reserved, reserve};
use coupon_system::queue::registry;
use mongodb::bson::{Binary, Document, doc, spec::BinarySubtype};

use crate::helpers::{
    NO_BACKLOG_MAX, System, WORKER, eventually, fail, obedient_mongodb, program_on, request, serving, stopped,
};
use crate::partitions::{PARTITIONS, coupons, rush};

/// More than the driver of the worker could wait for at once.
const STUCK: usize = 80;
/// By then all hangs that can.
const HUNG_BY: Duration = Duration::from_secs(3);
/// Much longer than a decision takes, and shorter than an operation waits for MongoDB.
const SOON: Duration = Duration::from_secs(8);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_cannot_decide_leaves_its_partitions_to_others() {
    let (mongodb, _folder) = obedient_mongodb().await;
    let system = System::builder().mongodb(mongodb.url()).partitions(PARTITIONS).start().await;
    let coupons = coupons(&system, 10).await;
    let users = system.users("u", 2).await;
    // For this one MongoDB takes no record.
    let no_insert = doc! {"failCommands": ["insert"], "errorCode": 50, "appName": "sick"};
    fail(&system, "alwaysOn", no_insert).await;
    let separator = if system.mongodb_uri.contains('?') { "&" } else { "?" };
    let uri = format!("{}{separator}appName=sick", system.mongodb_uri);
    let mut sick = program_on(WORKER, &system, &uri);
    sick.args(["--metrics-listen", "127.0.0.1:0"]);
    let (sick, _) = serving(sick).await;
    let stuck = rush(&system.client, &users[..1], &coupons).await;
    for coupon in &coupons {
        let partition = system.partition_of(coupon).await;
        eventually("its heartbeat says that it reads nothing", async || {
            let beats = registry::beats(partition).await.expect("they are read");
            beats.iter().any(|beat| beat.says.ends_with("idle=true")).then_some(())
        })
        .await;
    }
    let _sound = system.worker();
    for id in rush(&system.client, &users[1..], &coupons).await {
        assert_eq!(system.client.decided(&id.to_string()).await.state(), "issued");
    }
    fail(&system, "off", doc! {"failCommands": ["insert"]}).await;
    for id in stuck {
        assert_eq!(system.client.decided(&id.to_string()).await.state(), "issued");
    }
    assert_eq!(stopped(sick).await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_hangs_in_one_partition_takes_no_turns_from_the_others() {
    let system = System::builder().partitions(PARTITIONS).start().await;
    let coupons = coupons(&system, STUCK as u32).await;
    let hung = system.partition_of(&coupons[0]).await;
    let mut stuck = Vec::new();
    for number in 0..STUCK {
        let asked = [request(&format!("s{number}"), &coupons[0])];
        let asked = asked.map(|request| coupon_system::issuance::reserve::Request {
            id: coupon_system::ids::IssuanceId::generate(hung.id()),
            ..request
        });
        match &reserve(hung, &asked, NO_BACKLOG_MAX, QueueEntries::OfOne).await.expect("an answer")[..] {
            [Reserved::Accepted(queued)] => stuck.push(queued.id),
            other => panic!("{other:?}"),
        }
    }
    // MongoDB lets nobody else write what a transaction has written, until that ends.
    let client = system.backends.database.client();
    let mut session = client.start_session().await.expect("a session");
    session.start_transaction().await.expect("it begins");
    let records = system.backends.database.collection::<Document>("user_coupons");
    let locks = stuck.iter().map(|id| {
        let id = Binary { subtype: BinarySubtype::Uuid, bytes: id.as_bytes().to_vec() };
        doc! {"_id": id, "p": i32::from(hung.id().number())}
    });
    records.insert_many(locks).session(&mut session).await.expect("they are locked");
    let _worker = system.worker_with(Concurrency { batches: 64, batch_size: 1 });
    tokio::time::sleep(HUNG_BY).await;
    let users = system.users("u", 3).await;
    for user in users.chunks(1) {
        let asked = Instant::now();
        for id in rush(&system.client, user, &coupons[1..]).await {
            if id.partition() != hung.id() {
                assert_eq!(system.client.decided(&id.to_string()).await.state(), "issued");
            }
        }
        assert!(asked.elapsed() < SOON, "{:?}", asked.elapsed());
    }
    session.abort_transaction().await.expect("it ends");
    for coupon in &coupons {
        system.settled(coupon).await;
    }
    system.audited_clean().await;
}
