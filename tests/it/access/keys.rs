//! API keys while the API runs.

use std::time::Instant;

use coupon_system::access::keyring::REVOKED_WITHIN;
use coupon_system::access::{KeyStore, RevokeOutcome, Role};
use coupon_system::dev::servers::{MongoOptions, MongoServer};
use mongodb::bson::{Document, doc};

use super::closed;
use crate::helpers::{System, api_key, eventually};

#[tokio::test]
async fn a_new_key_works_at_once_and_a_revoked_one_stops_within_the_bound() {
    let (system, _, _folder) = closed(&[]).await;
    let store = KeyStore::new(&system.backends.database);
    let (key, text) = api_key(&store, Role::Viewer).await;
    let client = system.client.with(&text);
    assert_eq!(client.get("/queue").await.status, 200);

    assert!(matches!(store.revoke(&key.id).await, Ok(RevokeOutcome::Now(_))));
    let revoked_at = Instant::now();
    eventually("the key is refused", async || (client.get("/queue").await.status == 401).then_some(())).await;
    assert!(revoked_at.elapsed() <= REVOKED_WITHIN, "{:?}", revoked_at.elapsed());
    assert!(matches!(store.revoke(&key.id).await, Ok(RevokeOutcome::Before(_))));
    assert!(matches!(store.revoke("nobody").await, Ok(RevokeOutcome::NotFound)));
}

#[tokio::test]
async fn of_a_key_only_a_hash_is_kept() {
    let (system, keys, _folder) = closed(&[Role::Operator]).await;
    let records = system.backends.database.collection::<Document>("api_keys");
    let record = records.find_one(doc! {}).await.expect("a read").expect("a record");
    let secret = keys[0].rsplit('_').next().expect("a secret");
    assert_eq!(secret.len(), 64);
    assert!(!format!("{record:?}").contains(secret));
    assert_eq!(record.get_str("role").expect("a role"), "operator");
    assert_eq!(record.get_binary_generic("hash").expect("a hash").len(), 32);
}

#[tokio::test]
async fn a_damaged_record_neither_lets_in_nor_keeps_others_from_being_revoked() {
    let (system, keys, _folder) = closed(&[Role::Viewer]).await;
    let store = KeyStore::new(&system.backends.database);
    let (damaged, text) = api_key(&store, Role::Viewer).await;
    let records = system.backends.database.collection::<Document>("api_keys");
    let changed = records
        .update_one(doc! {"_id": damaged.id}, doc! {"$set": {"role": "emperor"}})
        .await
        .expect("a write");
    assert_eq!(changed.modified_count, 1);
    assert_eq!(system.client.with(&text).get("/queue").await.status, 401);

    let good = system.client.with(&keys[0]);
    assert_eq!(good.get("/queue").await.status, 200);
    let id = keys[0].split('_').nth(1).expect("an id");
    assert!(matches!(store.revoke(id).await, Ok(RevokeOutcome::Now(_))));
    eventually("it is refused", async || (good.get("/queue").await.status == 401).then_some(())).await;
}

#[tokio::test]
async fn while_mongodb_is_away_known_keys_go_on_and_of_others_nothing_is_known() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut mongodb =
        MongoServer::start(MongoOptions::new(folder.path().join("mongodb"))).await.expect("it starts");
    let system = System::builder().mongodb(mongodb.url()).closed(&[Role::Viewer]).start().await;
    let keys = system.api_keys.clone();
    let known = system.client.with(&keys[0]);
    let unknown = system.client.with(&format!("cpn_nobody_{}", "0".repeat(64)));
    assert_eq!(unknown.get("/queue").await.status, 401);

    mongodb.stop().await.expect("it stops");
    eventually("it is not known whose key it is", async || {
        let answer = unknown.get("/queue").await;
        match answer.status {
            401 => None,
            503 => {
                assert_eq!(answer.code(), "unavailable");
                assert!(!answer.header("retry-after").is_empty());
                Some(())
            }
            other => panic!("{other}"),
        }
    })
    .await;
    // A request that needs only Redis.
    assert_eq!(known.get("/queue").await.status, 200);

    mongodb.restart().await.expect("it is back");
    eventually("nobody has it", async || (unknown.get("/queue").await.status == 401).then_some(())).await;
    assert_eq!(known.get("/queue").await.status, 200);
}
