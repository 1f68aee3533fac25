//! The key set that verifies tokens: a wrong key affects only itself, and an empty set is valid.

use std::path::Path;

use serde_json::{Value, json};
use tokio::process::Command;

use super::tokens::{Es256Signer, becomes, status, with_set};
use super::{AUDIENCE, ISSUER, UNLIMITED};
use crate::helpers::{API, Client, System, eventually, logging, program_as_it_is};

/// An API that takes tokens signed with ES256.
fn api(system: &System, file: &Path) -> Command {
    let mut api = program_as_it_is(API, system);
    api.args(["--listen", "127.0.0.1:0", "--jwt-algorithm", "ES256", "--jwt-issuer", ISSUER]);
    api.args(["--jwt-audience", AUDIENCE, "--jwt-jwks-file"]).arg(file).args(UNLIMITED);
    api
}

fn write(file: &Path, keys: &[Value]) {
    std::fs::write(file, json!({"keys": keys}).to_string()).expect("it is written");
}

async fn get(address: std::net::SocketAddr, token: &str) -> u16 {
    Client::new(address).with(token).get("/users/u1").await.status
}

#[tokio::test]
async fn a_key_that_is_none_is_left_out_of_a_set_and_named_and_the_others_work() {
    let system = System::start().await;
    system.users("u", 2).await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("jwks.json");
    let good = Es256Signer::new("good");
    let without = |name: &str, kid: &str| {
        let mut key = good.public();
        key["kid"] = kid.into();
        key.as_object_mut().expect("an object").remove(name);
        key
    };
    let bad = [
        without("kty", "no-kty"),
        without("y", "no-y"),
        json!({"kty": "EC", "crv": "P-256", "kid": "short", "x": "AQAB", "y": "AQAB"}),
        json!({"kty": 7, "kid": "number"}),
        json!({"kty": "AKP", "alg": "ML-DSA-44", "kid": "of-later", "pub": "AQAB"}),
        json!("a key"),
        Value::Null,
    ];
    write(&file, &[&bad[..], &[good.public()]].concat());
    let (_api, address, log) = logging(api(&system, &file)).await;
    assert_eq!(get(address, &good.good()).await, 200);
    for kid in ["no-kty", "no-y", "short", "number", "of-later", "place 5", "place 6"] {
        assert!(log.says(kid).await.contains("left a key out"), "{kid}");
    }
}

#[tokio::test]
async fn an_empty_set_is_in_force_and_a_broken_one_is_not_and_has_an_age() {
    let system = System::start().await;
    system.users("u", 2).await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("jwks.json");
    let key = Es256Signer::new("key");
    write(&file, &[key.public()]);
    let (_api, address, log) = logging(api(&system, &file)).await;
    let token = key.good();
    assert_eq!(get(address, &token).await, 200);

    write(&file, &[]);
    eventually("every token is refused", async || (get(address, &token).await == 401).then_some(())).await;
    log.says("every token is refused").await;
    write(&file, &[key.public()]);
    eventually("it is good again", async || (get(address, &token).await == 200).then_some(())).await;

    let keys = coupon_system::access::KeyStore::new(&system.backends.database);
    let (_, viewer) = crate::helpers::api_key(&keys, coupon_system::access::Role::Viewer).await;
    let age = async || {
        let answer =
            Client::new(address).with(&viewer).request("GET", "/metrics").send().await.expect("an answer");
        let text = answer.text().await.expect("text");
        let line =
            text.lines().find(|line| line.starts_with("coupon_credentials_stale_seconds{source=\"tokens\"}"));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).expect("a gauge")
    };
    assert_eq!(age().await, 0.0);
    for broken in ["{\"keys\":", "{}", "[]", "{\"keys\":{}}"] {
        std::fs::write(&file, broken).expect("it is written");
        eventually("its age is told", async || (age().await > 0.0).then_some(())).await;
        assert_eq!(get(address, &token).await, 200, "{broken}");
        write(&file, &[key.public()]);
        eventually("it is fresh", async || (age().await == 0.0).then_some(())).await;
    }
    std::fs::remove_file(&file).expect("it is gone");
    eventually("its age is told", async || (age().await > 2.0).then_some(())).await;
    assert_eq!(get(address, &token).await, 200);
}

#[tokio::test]
async fn keys_with_one_kid_are_each_tried_and_a_token_without_one_is_for_the_only_key() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("jwks.json");
    // As when an issuer rotates keys and the new key lacks an id.
    let (old, new, other) = (Es256Signer::new("same"), Es256Signer::new("same"), Es256Signer::new("same"));
    let system = with_set(&file, "ES256", &[old.public(), new.public()]).await;
    let statuses = [
        status(&system, &old.good()).await,
        status(&system, &new.good()).await,
        status(&system, &other.good()).await,
    ];
    assert_eq!(statuses, [200, 200, 401]);
    let nameless = json!({"alg": "ES256"});
    assert_eq!(status(&system, &new.token(&nameless)).await, 401, "there are two that it could be of");
    write(&file, &[new.public()]);
    becomes(&system, &new.token(&nameless), 200).await;
    assert_eq!(status(&system, &old.token(&nameless)).await, 401);
}
