//! API keys while the API runs.

use std::time::Instant;

use coupon_system::access::key::ApiKey;
use coupon_system::access::keyring::REVOKED_WITHIN;
use coupon_system::access::{KeyInsert, KeyStore, RevokeOutcome, Role};
use coupon_system::dev::servers::{MongoOptions, MongoServer};
use mongodb::bson::{DateTime, Document, doc};

use super::closed;
use crate::helpers::{System, api_key, at, eventually};

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
async fn an_expired_key_is_refused_and_told_so_and_ends_the_streams_it_opened() {
    let (system, _, _folder) = closed(&[]).await;
    let store = KeyStore::new(&system.backends.database);
    let (key, text) = api_key(&store, Role::Viewer).await;
    let client = system.client.with(&text);
    let stream = client.request("GET", "/events").send().await.expect("an answer");
    assert_eq!(stream.status(), 200);
    // So that the test need not be faster than the key expires.
    let expire = doc! {"$set": {"expiresAt": DateTime::from_millis(at(3).as_millisecond())}};
    let records = system.backends.database.collection::<Document>("api_keys");
    records.update_one(doc! {"_id": &key.id}, expire).await.expect("a write");
    assert!(stream.bytes().await.is_err(), "the stream breaks off");

    for (language, word) in [("en", "expired"), ("ko", "만료")] {
        let request = client.request("GET", "/queue").header("accept-language", language);
        let answer = client.send(request).await;
        assert_eq!((answer.status, answer.code()), (401, "unauthenticated"));
        let detail = answer.body["detail"].as_str().expect("a detail");
        assert!(detail.contains(word), "{detail}");
        assert!(answer.header("www-authenticate").contains("expired"), "{:?}", answer.headers);
    }
    // With another secret it is any key.
    let wrong = system.client.with(&format!("cpn_{}_{}", key.id, "0".repeat(64)));
    assert!(!wrong.get("/queue").await.header("www-authenticate").contains("expired"));
}

#[tokio::test]
async fn the_first_use_of_a_key_is_noted_within_seconds_and_one_that_is_not_used_has_none() {
    let (system, keys, _folder) = closed(&[Role::Viewer, Role::Operator]).await;
    let store = KeyStore::new(&system.backends.database);
    let before = at(0);
    assert_eq!(system.client.with(&keys[0]).get("/queue").await.status, 200);
    let used = eventually("the use is noted", async || {
        store.list().await.expect("a list").into_iter().find(|key| key.last_used_at.is_some())
    })
    .await;
    assert_eq!(used.role, Role::Viewer);
    assert!(used.last_used_at >= Some(before) && used.last_used_at <= Some(at(1)), "{used:?}");
    let listed = store.list().await.expect("a list");
    assert_eq!(listed.iter().filter(|key| key.last_used_at.is_some()).count(), 1);
}

#[tokio::test]
async fn a_record_of_an_older_version_is_a_key_that_never_expires_and_was_never_used() {
    let (system, _, _folder) = closed(&[]).await;
    let store = KeyStore::new(&system.backends.database);
    let (key, text) = api_key(&store, Role::Viewer).await;
    let records = system.backends.database.collection::<Document>("api_keys");
    let record = records.find_one(doc! {"_id": &key.id}).await.expect("a read").expect("a record");
    let fields: Vec<_> = record.keys().map(String::as_str).collect();
    // What the first version wrote, and all that it reads.
    assert_eq!(fields, ["_id", "name", "role", "hash", "createdAt", "revokedAt"]);
    assert_eq!(system.client.with(&text).get("/queue").await.status, 200);
    assert_eq!(store.list().await.expect("a list").pop(), Some(key));
}

#[tokio::test]
async fn expired_keys_make_room_for_new_ones_and_others_do_not() {
    let (system, _, _folder) = closed(&[]).await;
    let store = KeyStore::new(&system.backends.database);
    let records = system.backends.database.collection::<Document>("api_keys");
    let (key, _) = api_key(&store, Role::Viewer).await;
    let record = records.find_one(doc! {"_id": &key.id}).await.expect("a read").expect("a record");
    let others = (1..1_000).map(|number| {
        let mut record = record.clone();
        record.insert("_id", format!("k{number}"));
        record
    });
    records.insert_many(others).await.expect("they are written");
    let (new, _) = ApiKey::generate("new", Role::Viewer, None).expect("a key");
    assert_eq!(store.insert(&new).await.expect("an answer"), KeyInsert::TooMany);

    let expire = doc! {"$set": {"expiresAt": DateTime::from_millis(0)}};
    records.update_one(doc! {"_id": "k7"}, expire).await.expect("a write");
    assert_eq!(store.insert(&new).await.expect("an answer"), KeyInsert::New);
    let k7 = records.find_one(doc! {"_id": "k7"}).await.expect("a read").expect("a record");
    assert!(k7.get_datetime("revokedAt").is_ok(), "{k7}");
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
