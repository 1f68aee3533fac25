//! Streams, held polls and an open API end when their credentials do.

use std::time::{Duration, Instant};

use coupon_system::access::keyring::REVOKED_WITHIN;
use coupon_system::access::{KeyStore, RevokeOutcome, Role};
use serde_json::json;

use super::tokens::{Es256Signer, with_set};
use super::{SECRET, claims_with, closed, hs256, seconds_from_now};
use crate::helpers::{API, CTL, Client, System, api_key, eventually, logging, program};

/// The longest time until an answer ends: if its credentials did not end it, it would last longer.
const HELD_MAX: Duration = Duration::from_secs(25);
/// The longest wait on a busy machine.
const BUSY: Duration = Duration::from_secs(10);

async fn opened(client: &Client, path: &str) -> reqwest::Response {
    let response = client.request("GET", path).send().await.expect("an answer");
    assert_eq!(response.status(), 200, "{path}");
    response
}

/// Reads a response to its end. Returns whether it broke off, and its text.
async fn cut(mut response: reqwest::Response) -> (bool, String) {
    let mut text = Vec::new();
    let read = async {
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) => text.extend_from_slice(&chunk),
                ended => return ended.is_err(),
            }
        }
    };
    let is_cut = tokio::time::timeout(Duration::from_secs(60), read).await.expect("the answer ends");
    (is_cut, String::from_utf8_lossy(&text).into_owned())
}

async fn revoke(system: &System, key: &str) {
    let id = key.split('_').nth(1).expect("an id");
    let revoked = KeyStore::new(&system.backends.database).revoke(id).await;
    assert!(matches!(revoked, Ok(RevokeOutcome::Now(_))), "{revoked:?}");
}

/// Writes this many issued units of a coupon into the ledger: more than the buffers between server and client hold.
async fn much_to_export(system: &System) {
    let coupon = system.coupon("large", 100_000, 1).await;
    system.write_issued(&coupon, "u", 1..=60_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_key_everything_that_it_was_opened_with_ends() {
    let (system, keys, _folder) = closed(&[Role::Service, Role::Viewer]).await;
    much_to_export(&system).await;
    let coupon = system.coupon("c", 10, 1).await;
    let queued = system.accepted("somebody", &coupon).await;
    let (service, viewer) = (system.client.with(&keys[0]), system.client.with(&keys[1]));
    let exports = [
        opened(&service, "/coupons/large/user-coupons").await,
        opened(&service, "/coupons/large/user-coupons?format=csv").await,
    ];
    let streams =
        [opened(&service, &format!("/issuances/{queued}/events")).await, opened(&viewer, "/events").await];
    let held = [
        (service.clone(), format!("/issuances/{queued}?wait=30")),
        (service.clone(), "/outcomes?wait=30".to_owned()),
    ];
    let held = held.map(|(client, path)| tokio::spawn(async move { client.get(&path).await }));
    eventually("somebody waits", async || (system.app.waiting() >= 2).then_some(())).await;

    revoke(&system, &keys[0]).await;
    revoke(&system, &keys[1]).await;
    let revoked_at = Instant::now();
    for stream in streams {
        assert!(cut(stream).await.0, "it looks as if it had ended by itself");
    }
    for held in held {
        let answer = held.await.expect("no panic");
        assert_eq!((answer.status, answer.code()), (401, "unauthenticated"));
    }
    assert!(revoked_at.elapsed() < REVOKED_WITHIN + BUSY, "{:?}", revoked_at.elapsed());
    for export in exports {
        let (is_cut, text) = cut(export).await;
        assert!(
            is_cut && !text.contains("\"end\"") && text.lines().count() < 60_000,
            "{}",
            text.lines().count()
        );
    }
    assert_eq!(service.get("/coupons/large/user-coupons").await.status, 401);
    system.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_token_everything_that_it_was_opened_with_ends() {
    let (system, _, _folder) = closed(&[]).await;
    let coupon = system.coupon("c", 10, 1).await;
    system.users("u", 2).await;
    let queued = system.accepted("u1", &coupon).await;
    // The leeway for differing clocks leaves three more seconds.
    let ending = hs256(SECRET, &claims_with("u1", "exp", seconds_from_now(-27)));
    let user = system.client.with(&ending);
    let began = Instant::now();
    let stream = opened(&user, &format!("/issuances/{queued}/events")).await;
    let waiting = user.clone();
    let path = format!("/issuances/{queued}?wait=30");
    let held = tokio::spawn(async move { waiting.get(&path).await });
    let waiting = user.clone();
    let requested = tokio::spawn(async move {
        let request = waiting.request("POST", "/user-coupons?wait=30");
        waiting.send(request.json(&json!({"userId": "u1", "couponId": "c"}))).await
    });
    assert!(cut(stream).await.0);
    assert_eq!(held.await.expect("no panic").status, 401);
    assert_eq!(requested.await.expect("no panic").status, 401);
    assert!(began.elapsed() < HELD_MAX, "{:?}", began.elapsed());
    // The issuance itself goes on.
    assert!(system.is_in_flight(queued).await);
    system.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_key_of_the_set_the_streams_of_its_tokens_end_and_others_go_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("jwks.json");
    let (leaving, staying) = (Es256Signer::new("leaving"), Es256Signer::new("staying"));
    let system = with_set(&file, "ES256", &[leaving.public(), staying.public()]).await;
    let coupon = system.coupon("c", 10, 1).await;
    let queued = system.accepted("u1", &coupon).await;
    let path = format!("/issuances/{queued}/events");
    let ending = opened(&system.client.with(&leaving.good()), &path).await;
    let mut going_on = opened(&system.client.with(&staying.good()), &path).await;
    std::fs::write(&file, json!({"keys": [staying.public()]}).to_string()).expect("it is written");
    assert!(cut(ending).await.0);
    let worker = system.worker();
    let mut text = String::new();
    while let Some(chunk) = going_on.chunk().await.expect("it is not cut") {
        text.push_str(&String::from_utf8_lossy(&chunk));
    }
    assert!(text.contains("event: issued"), "{text}");
    worker.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_api_is_closed_by_the_first_key_and_stays_so() {
    let system = System::start().await;
    let mut api = program(API, &system);
    api.args(["--listen", "127.0.0.1:0"]);
    let (_api, address, log) = logging(api).await;
    let clients = [system.client.clone(), Client::new(address)];
    let mut streams = Vec::new();
    for client in &clients {
        assert_eq!(client.get("/queue").await.status, 200);
        streams.push(opened(client, "/events").await);
    }
    let (key, text) = api_key(&KeyStore::new(&system.backends.database), Role::Viewer).await;
    let made_at = Instant::now();
    for client in &clients {
        eventually("credentials are asked for", async || {
            (client.get("/queue").await.status == 401).then_some(())
        })
        .await;
        assert_eq!(client.with(&text).get("/queue").await.status, 200);
    }
    assert!(made_at.elapsed() < REVOKED_WITHIN + BUSY, "{:?}", made_at.elapsed());
    log.says("a first API key exists").await;
    for stream in streams {
        assert!(cut(stream).await.0);
    }
    // The open API must not serve again.
    revoke(&system, &text).await;
    let viewer = clients[1].with(&text);
    eventually("it is revoked", async || (viewer.get("/queue").await.status == 401).then_some(())).await;
    for client in &clients {
        assert_eq!(client.get("/queue").await.status, 401, "{}", key.id);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dev_is_closed_by_the_first_key_too_whatever_its_record_says() {
    let (folder, mongodb, database) =
        (tempfile::tempdir().expect("a folder"), crate::helpers::mongodb().await, crate::helpers::database());
    let mut dev = tokio::process::Command::new(CTL);
    dev.args(["dev", "--listen", "127.0.0.1:0", "--mongodb-uri", &mongodb, "--mongodb-database", &database])
        .arg("--data-dir")
        .arg(folder.path())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .kill_on_drop(true);
    let (mut dev, address, log) = logging(dev).await;
    let client = Client::new(address);
    assert_eq!(client.get("/queue").await.status, 200);
    // A key of a later version counts as a key.
    let connected = coupon_system::mongo::connect(&mongodb, &database).await.expect("a URI");
    let keys = connected.collection::<mongodb::bson::Document>("api_keys");
    keys.insert_one(mongodb::bson::doc! {"_id": "of-later", "role": "emperor"}).await.expect("it is written");
    eventually("credentials are asked for", async || {
        (client.get("/queue").await.status == 401).then_some(())
    })
    .await;
    log.says("a first API key exists").await;
    crate::helpers::send(&dev, rustix::process::Signal::TERM);
    dev.wait().await.expect("it ends");
}
