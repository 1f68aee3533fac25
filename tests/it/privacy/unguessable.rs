//! The name, the coupon and the key of a deleted user do not lead to their records.

use coupon_system::ids::PartitionId;
use coupon_system::redis::Epoch;
use mongodb::bson::{DateTime, Document, doc};
use ring::hmac;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{delete, gone};
use crate::helpers::{API, CTL, Client, System, database, eventually, mongodb, program, serving};

const USER: &str = "guessed@example.com";
const KEY: &str = "order-1";

/// What is hashed into the id of a keyed issuance.
fn parts() -> Vec<u8> {
    [USER, "c", KEY].iter().flat_map(|part| [part.as_bytes(), &[0]].concat()).collect()
}

/// A hash as the id of an issuance.
fn id(hash: &[u8]) -> String {
    let mut bytes: [u8; 16] = hash[..16].try_into().expect("it is longer");
    bytes[6] = 0x80;
    bytes[7] = u8::try_from(PartitionId::ONE.number()).expect("small");
    bytes[8] = 0x80 | bytes[8] & 0x3f;
    uuid::Uuid::from_bytes(bytes).to_string()
}

/// The id without a secret, which anybody can compute.
fn guessed() -> String {
    id(&Sha256::digest(parts()))
}

/// The id with a secret.
fn with_secret(secret: &[u8]) -> String {
    id(hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), &parts()).as_ref())
}

async fn secret_of(system: &System, collection: &str) -> Option<Vec<u8>> {
    let collection = system.backends.database.collection::<Document>(collection);
    let one = collection.find_one(doc! {"idSecret": {"$exists": true}}).await.expect("a look")?;
    Some(one.get_binary_generic("idSecret").expect("bytes").clone())
}

#[tokio::test]
async fn the_id_of_a_keyed_issuance_of_a_deleted_user_cannot_be_computed_even_with_the_deployments_secret() {
    let system = System::builder().flags(&["--user-deletion-delay", "1"]).start().await;
    system.coupon("c", 10, 1).await;
    system.worker();
    assert_eq!(system.client.post("/users", json!({"id": USER})).await.status, 201);
    let own = secret_of(&system, "users").await.expect("the user has one");
    let deployments = secret_of(&system, "recovery").await.expect("the deployment has one");
    let issued = system.client.issue(USER, "c", Some(KEY)).await.id();
    assert_eq!(issued, with_secret(&own));
    system.client.decided(&issued).await;
    let again = system.client.issue(USER, "c", Some(KEY)).await;
    assert!(again.is_replay() && again.id() == issued, "{again:?}");
    assert_eq!(delete(&system, USER).await.status, 202);
    gone(&system, USER).await;

    assert_eq!(secret_of(&system, "users").await, None, "it went with them");
    for computed in [guessed(), with_secret(&deployments)] {
        assert_eq!(system.client.get(&format!("/issuances/{computed}")).await.status, 404);
    }
    // The answers to a new user with the same name and key do not reveal it either.
    assert_eq!(system.client.post("/users", json!({"id": USER})).await.status, 201);
    let fresh = system.client.issue(USER, "c", Some(KEY)).await;
    assert!(fresh.status == 202 && !fresh.is_replay() && fresh.id() != issued, "{fresh:?}");
    assert_eq!(system.client.decided(&fresh.id()).await.state(), "issued");
    system.audited_clean().await;
}

#[tokio::test]
async fn where_ids_are_trusted_the_deployments_secret_is_needed() {
    let flags = ["--require-registered-users", "false", "--user-deletion-delay", "1"];
    let system = System::builder().flags(&flags).start().await;
    system.coupon("c", 10, 1).await;
    system.worker();
    let issued = system.client.issue(USER, "c", Some(KEY)).await.id();
    assert_ne!(issued, guessed());
    system.client.decided(&issued).await;
    let again = system.client.issue(USER, "c", Some(KEY)).await;
    assert!(again.is_replay() && again.id() == issued, "{again:?}");
    assert_eq!(delete(&system, USER).await.status, 202);
    gone(&system, USER).await;
    assert_eq!(system.client.get(&format!("/issuances/{}", guessed())).await.status, 404);
}

/// An API process on the system's servers.
async fn another_api(system: &System) -> (tokio::process::Child, Client) {
    let mut api = program(API, system);
    api.args(["--listen", "127.0.0.1:0", "--user-rate", "0"]);
    let (api, address) = serving(api).await;
    (api, Client::new(address))
}

#[tokio::test]
async fn in_a_deployment_of_an_older_version_ids_stay_as_they_were_until_an_operator_says_that_it_is_gone() {
    let (uri, database) = (mongodb().await, database());
    let connected = coupon_system::mongo::connect(&uri, &database).await.expect("a URI");
    // As an older version leaves it.
    let lease = doc! {
        "_id": i32::from(PartitionId::ONE.number()), "term": 0_i64, "until": DateTime::from_millis(0),
        "ledger": Epoch::new().to_string(),
    };
    connected.collection::<Document>("recovery").insert_one(lease).await.expect("it is written");
    let system = System::builder().mongodb(uri).database(database).flags(&["--user-rate", "0"]).start().await;
    system.coupon("c", 10, 2).await;
    assert_eq!(system.client.post("/users", json!({"id": USER})).await.status, 201);
    let before = system.client.issue(USER, "c", Some(KEY)).await;
    assert_eq!((before.status, before.id()), (202, guessed()), "as an older version beside it computes it");

    let mut finish = tokio::process::Command::new(CTL);
    finish.args(["upgrade", "finish", "--yes", "--mongodb-uri", &system.mongodb_uri]);
    let finished = finish.args(["--mongodb-database", &system.database]).output().await.expect("it runs");
    let said = String::from_utf8_lossy(&finished.stdout).into_owned();
    assert!(finished.status.success() && said.contains("restart the APIs"), "{said}");
    // The running process goes on as before; both agree on users whom either registered.
    let (_api, other) = another_api(&system).await;
    assert_eq!(other.post("/users", json!({"id": "later"})).await.status, 201);
    for (user, is_guessed) in [(USER, true), ("later", false)] {
        let ids = [&system.client, &other].map(async |client| client.issue(user, "c", Some(KEY)).await.id());
        let [one, two] = futures::future::join_all(ids).await.try_into().expect("two");
        assert_eq!(one, two, "{user}");
        assert_eq!(one == guessed(), is_guessed, "{user}");
    }
    assert!(secret_of(&system, "users").await.is_some());
    let worker = system.worker();
    eventually("it is issued", async || {
        (system.client.get(&format!("/issuances/{}", guessed())).await.state() == "issued").then_some(())
    })
    .await;
    // It stays a replay after the decision.
    let again = other.issue(USER, "c", Some(KEY)).await;
    assert!(again.status == 200 && again.id() == guessed(), "{again:?}");
    worker.cancel();
}
