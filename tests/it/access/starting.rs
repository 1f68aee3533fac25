//! Which settings an API starts with, and how it refuses others.

use std::process::Stdio;

use coupon_system::access::{KeyStore, Role};
use tokio::process::Command;

use super::token_flags;
use crate::helpers::{
    API, CTL, Client, System, api_key, database, mongodb, program_as_it_is, serving, stopped,
};

/// The output of an API process that must refuse to start.
async fn refused(system: &System, flags: &[String]) -> String {
    let mut api = program_as_it_is(API, system);
    api.args(["--listen", "127.0.0.1:0"]).args(flags);
    let output = api.output().await.expect("it runs");
    let said = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(5), "{flags:?}: {said}");
    said
}

fn flags(words: &str) -> Vec<String> {
    words.split_whitespace().map(str::to_owned).collect()
}

#[tokio::test]
async fn an_api_without_credentials_or_with_contradicting_ones_is_refused_with_what_to_do() {
    let system = System::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let tokens = token_flags(&folder);
    let said = refused(&system, &[]).await;
    for part in ["couponctl key create", "--jwt-algorithm", "--open"] {
        assert!(said.contains(part), "{said}");
    }
    let said = refused(&system, &flags("--jwt-algorithm HS256 --jwt-issuer shop")).await;
    assert!(said.contains("--jwt-audience") && said.contains("--jwt-secret-file"), "{said}");
    let said = refused(&system, &[tokens.clone(), flags("--open")].concat()).await;
    assert!(said.contains("--jwt-"), "{said}");
    let mut missing = tokens.clone();
    missing.last_mut().expect("a file").push_str(".not");
    assert!(refused(&system, &missing).await.contains("cannot be read"));
    std::fs::write(folder.path().join("short"), "short").expect("it is written");
    *missing.last_mut().expect("a file") = folder.path().join("short").to_str().expect("UTF-8").into();
    assert!(refused(&system, &missing).await.contains("32 bytes"));

    let store = KeyStore::new(&system.backends.database);
    let (key, text) = api_key(&store, Role::Viewer).await;
    assert!(refused(&system, &flags("--open")).await.contains("1 active API keys"));
    let mut api = program_as_it_is(API, &system);
    api.args(["--listen", "127.0.0.1:0"]);
    let (api, address) = serving(api).await;
    assert_eq!(Client::new(address).get("/queue").await.status, 401);
    assert_eq!(Client::new(address).with(&text).get("/queue").await.status, 200);
    assert_eq!(stopped(api).await.code(), Some(0));

    store.revoke(&key.id).await.expect("it is revoked");
    refused(&system, &[]).await;
    let mut api = program_as_it_is(API, &system);
    api.args(["--listen", "127.0.0.1:0"]).env("COUPON_OPEN", "true");
    let (api, address) = serving(api).await;
    assert_eq!(Client::new(address).get("/queue").await.status, 200);
    assert_eq!(stopped(api).await.code(), Some(0));
}

#[tokio::test]
async fn dev_is_not_open_to_other_machines_unless_it_is_told_to() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut dev = Command::new(CTL);
    dev.args(["dev", "--listen", "0.0.0.0:0", "--mongodb-uri", &mongodb().await])
        .args(["--mongodb-database", &database(), "--data-dir"])
        .arg(folder.path())
        .kill_on_drop(true)
        .stdin(Stdio::null());
    let output = dev.output().await.expect("it runs");
    let said = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(5), "{said}");
    assert!(said.contains("0.0.0.0") && said.contains("--open"), "{said}");
}
