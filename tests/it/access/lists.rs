//! A record that cannot be read is missing from a list, and nothing else is.

use coupon_system::access::{KeyStore, RevokeOutcome, Role};
use mongodb::bson::{DateTime, Document, doc};
use serde_json::{Value, json};

use super::closed;
use crate::helpers::{API, CTL, Client, System, api_key, at, logging, program_as_it_is};

/// All items of a list, page by page.
async fn all(client: &Client, path: &str, limit: usize) -> Vec<Value> {
    let (mut items, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = client.get(&format!("{path}?limit={limit}{cursor}")).await;
        assert_eq!(page.status, 200, "{page:?}");
        items.extend(page.body["items"].as_array().expect("items").clone());
        match page.body["nextCursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return items,
        }
    }
}

async fn plant(system: &System, collection: &str, document: Document) {
    let collection = system.backends.database.collection::<Document>(collection);
    collection.insert_one(document).await.expect("it is planted");
}

fn names(items: &[Value], name: &str) -> Vec<String> {
    items.iter().map(|item| item[name].as_str().expect("text").to_owned()).collect()
}

#[tokio::test]
async fn lists_go_on_past_records_that_cannot_be_read() {
    let system = System::start().await;
    for number in 0..6 {
        system.coupon(&format!("c{number}"), 10, 1).await;
        assert_eq!(system.client.post("/users", json!({"id": format!("u{number}")})).await.status, 201);
        // Unreadable records between the others, and more in a row than a page has.
        for more in 0..3 {
            let created_at = DateTime::from_millis(at(0).as_millisecond());
            let id = format!("bad-{number}-{more}");
            plant(&system, "users", doc! {"_id": &id, "name": 7, "createdAt": created_at}).await;
            let later = doc! {
                "_id": &id, "createdAt": created_at, "endsAt": DateTime::MAX, "archived": false,
                "discount": {"type": "of later"},
            };
            plant(&system, "coupons", later).await;
        }
    }
    plant(&system, "users", doc! {"_id": "no-time", "name": "n"}).await;
    plant(&system, "coupons", doc! {"_id": "no-time", "name": "n"}).await;
    let ids = |prefix: char| (0..6).rev().map(|number| format!("{prefix}{number}")).collect::<Vec<_>>();
    for limit in [1, 2, 5, 50] {
        assert_eq!(names(&all(&system.client, "/users", limit).await, "id"), ids('u'), "{limit}");
        assert_eq!(names(&all(&system.client, "/coupons", limit).await, "id"), ids('c'), "{limit}");
    }

    let done = all(&system.client, "/operator-actions", 50).await.len();
    let ago = mongodb::bson::Uuid::from_bytes(*uuid::Uuid::now_v7().as_bytes());
    plant(&system, "operator_actions", doc! {"_id": ago, "who": 7}).await;
    assert_eq!(system.client.post("/users", json!({"id": "last"})).await.status, 201);
    for limit in [1, 50] {
        assert_eq!(all(&system.client, "/operator-actions", limit).await.len(), done + 1, "{limit}");
    }
    // The live figures name the newest of the current coupons.
    let mut events = system.client.request("GET", "/events").send().await.expect("an answer");
    let first = events.chunk().await.expect("it is open").expect("an event");
    let first = String::from_utf8_lossy(&first).into_owned();
    assert!(first.contains("event: figures") && first.contains("\"c5\""), "{first}");
}

#[tokio::test]
async fn one_key_that_cannot_be_read_takes_no_other_away_and_can_be_revoked() {
    let (system, keys, _folder) = closed(&[Role::Viewer]).await;
    let store = KeyStore::new(&system.backends.database);
    let created_at = DateTime::from_millis(at(0).as_millisecond());
    plant(
        &system,
        "api_keys",
        doc! {"_id": "oflater", "name": "n", "role": "auditor", "createdAt": created_at},
    )
    .await;
    plant(&system, "api_keys", doc! {"_id": "damaged"}).await;
    let (later, _) = api_key(&store, Role::Service).await;

    let mut api = program_as_it_is(API, &system);
    api.args(["--listen", "127.0.0.1:0"]);
    let (_api, address, log) = logging(api).await;
    assert_eq!(Client::new(address).with(&keys[0]).get("/queue").await.status, 200);
    log.says("oflater").await;
    log.says("damaged").await;

    let listed = store.list().await.expect("a list");
    assert!(listed.iter().any(|key| key.id == later.id) && listed.len() == 2, "{listed:?}");
    assert_eq!(store.active().await.expect("a look").unreadable, 2);
    assert_eq!(store.revoke("damaged").await.expect("an answer"), RevokeOutcome::Unreadable);
    assert_eq!(store.active().await.expect("a look").unreadable, 1);
    let mut revoke = tokio::process::Command::new(CTL);
    revoke.args(["key", "revoke", "oflater", "--mongodb-uri", &system.mongodb_uri]);
    let revoked = revoke.args(["--mongodb-database", &system.database]).output().await.expect("it runs");
    assert!(revoked.status.success() && String::from_utf8_lossy(&revoked.stdout).contains("cannot be read"));
    assert_eq!(store.active().await.expect("a look").unreadable, 0);
}

#[tokio::test]
async fn a_user_whose_record_cannot_be_read_is_alone_in_that() {
    let system = System::start().await;
    system.leaves_in_flight();
    system.coupon("c", 10, 1).await;
    // In one write: the API reads ahead who is registered, and would remember what could be read for a moment.
    let users = system.backends.database.collection::<Document>("users");
    let now = DateTime::from_millis(at(0).as_millisecond());
    let unreadable = doc! {"_id": "unreadable", "name": "u", "createdAt": now, "idSecret": "of later"};
    users.insert_one(unreadable).await.expect("a write");
    system.users("u", 2).await;
    let client = &system.client;
    let answers = futures::future::join_all(
        ["u0", "unreadable", "u1"].map(async |user| client.issue(user, "c", Some("key")).await.status),
    );
    // The id of the key cannot be read.
    assert_eq!(answers.await, [202, 503, 202]);
}
