//! Deleting users: no data of them is left, and the accounts still add up, whatever happens meanwhile.

mod deleting;
mod halfway;
mod hearing;
mod retaining;
mod unguessable;

use coupon_system::ids::PartitionId;
use coupon_system::redis::Epoch;
use coupon_system::redis::keys::EpochKeys;
use futures::TryStreamExt;
use mongodb::bson::{Document, doc};

use crate::helpers::{Answer, System, eventually};

/// Requests a deletion.
async fn delete(system: &System, user: &str) -> Answer {
    system.client.send(system.client.request("DELETE", &format!("/users/{user}"))).await
}

/// Waits until a deletion is carried out.
async fn gone(system: &System, user: &str) {
    let users = system.backends.database.collection::<Document>("users");
    eventually("the user is gone", async || {
        let left = users.count_documents(doc! {"_id": user}).await.expect("a count");
        (left == 0).then_some(())
    })
    .await;
}

/// Everything in MongoDB and in Redis that contains the text.
async fn traces(system: &System, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for name in system.backends.database.list_collection_names().await.expect("names") {
        let documents = system.backends.database.collection::<Document>(&name).find(doc! {}).await;
        let documents: Vec<Document> = documents.expect("a cursor").try_collect().await.expect("documents");
        let with = documents.iter().map(ToString::to_string).filter(|document| document.contains(text));
        found.extend(with.map(|document| format!("{name}: {document}")));
    }
    let keys: Vec<String> = system.command(&["KEYS", "*"]).await;
    for key in keys {
        let kind: String = system.command(&["TYPE", &key]).await;
        let value: redis::Value = match kind.as_str() {
            "hash" => system.command(&["HGETALL", &key]).await,
            "set" => system.command(&["SMEMBERS", &key]).await,
            "stream" => system.command(&["XRANGE", &key, "-", "+"]).await,
            "string" => system.command(&["GET", &key]).await,
            "none" => continue,
            other => panic!("a key of type {other}"),
        };
        if key.contains(text) || contains(&value, text.as_bytes()) {
            found.push(format!("{key}: {value:?}"));
        }
    }
    found
}

fn contains(value: &redis::Value, text: &[u8]) -> bool {
    match value {
        redis::Value::BulkString(bytes) => bytes.windows(text.len()).any(|part| part == text),
        redis::Value::SimpleString(simple) => simple.as_bytes().windows(text.len()).any(|part| part == text),
        redis::Value::Array(values) | redis::Value::Set(values) => {
            values.iter().any(|value| contains(value, text))
        }
        redis::Value::Map(pairs) => {
            pairs.iter().any(|(key, value)| contains(key, text) || contains(value, text))
        }
        redis::Value::Nil | redis::Value::Int(_) | redis::Value::Okay => false,
        other => panic!("a value that is not looked into: {other:?}"),
    }
}

/// The scan finds a user before the deletion: otherwise it could never fail.
#[tokio::test]
async fn the_scan_for_traces_finds_a_user_everywhere() {
    let system = System::start().await;
    let coupon = system.coupon("c", 3, 1).await;
    system.users("trace-", 2).await;
    system.accepted("trace-0", &coupon).await;
    let keys = EpochKeys::new(PartitionId::ONE, system.keys().epoch());
    assert_ne!(keys.epoch(), Epoch::UNKNOWN);
    let found = traces(&system, "trace-0").await;
    for place in ["users", &keys.stream(), &keys.in_flight(), &keys.holders(&coupon)] {
        assert!(found.iter().any(|trace| trace.starts_with(&format!("{place}: "))), "{place} in {found:?}");
    }
    let entries = system.take_entries().await;
    system.decider().process(&system.keys(), &entries).await.expect("it is issued");
    assert!(traces(&system, "trace-0").await.iter().any(|trace| trace.starts_with("user_coupons: ")));
    assert_eq!(traces(&system, "trace-9").await, Vec::<String>::new());
}
