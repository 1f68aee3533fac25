//! The record of actions contains what `couponctl` does without the API.

use std::process::Stdio;

use coupon_system::access::{KeyStore, Role};
use mongodb::bson::{Document, doc};
use serde_json::{Value, json};
use tokio::process::Command;

use super::closed;
use crate::helpers::{CTL, System, program_as_it_is};

/// Runs a command on MongoDB alone.
async fn on_mongodb(system: &System, words: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(CTL);
    command.args(words).args(["--mongodb-uri", &system.mongodb_uri, "--mongodb-database", &system.database]);
    run(command).await
}

/// Runs a command on both servers.
async fn on_servers(system: &System, words: &[&str]) -> (Option<i32>, String, String) {
    let mut command = program_as_it_is(CTL, system);
    let given: Vec<_> = command.as_std().get_args().map(ToOwned::to_owned).collect();
    command = Command::new(CTL);
    command.args(words).args(given);
    run(command).await
}

async fn run(mut command: Command) -> (Option<i32>, String, String) {
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await.expect("it runs");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

async fn actions(system: &System, key: &str) -> Vec<Value> {
    let listed = system.client.with(key).get("/operator-actions").await;
    listed.body["items"].as_array().expect("items").clone()
}

#[tokio::test]
async fn who_makes_and_revokes_keys_and_mends_by_hand_is_recorded() {
    let (system, keys, _folder) = closed(&[Role::Viewer]).await;
    let create = ["key", "create", "--name", "홍길동", "--role", "operator", "--reason", "new here"];
    let (code, made, said) = on_mongodb(&system, &create).await;
    assert_eq!(code, Some(0), "{said}");
    let id = made.split('_').nth(1).expect("an id").to_owned();
    // An operator who has only the key can revoke it; the output does not repeat it.
    let (code, told, said) = on_mongodb(&system, &["key", "revoke", made.trim(), "--reason", "gone"]).await;
    assert_eq!(code, Some(0), "{said}");
    let secret = made.trim().rsplit('_').next().expect("a secret").to_owned();
    assert!(!told.contains(&secret) && !said.contains(&secret));
    assert_eq!(on_mongodb(&system, &["key", "revoke", "nobody"]).await.0, Some(1));
    // Commands that change nothing are no actions.
    assert_eq!(
        on_mongodb(&system, &["key", "create", "--name", "x", "--role", "viewer", "--if-none"]).await.0,
        Some(0)
    );
    assert_eq!(on_mongodb(&system, &["key", "list"]).await.0, Some(0));
    assert_eq!(on_servers(&system, &["audit", "--full"]).await.0, Some(0));
    assert_eq!(on_servers(&system, &["audit", "--repair", "--dry-run"]).await.0, Some(0));
    assert_eq!(on_servers(&system, &["audit", "--repair", "--reason", "drift"]).await.0, Some(0));
    assert_eq!(on_servers(&system, &["recover", "--reason", "moved"]).await.0, Some(0));
    assert_eq!(on_mongodb(&system, &["upgrade", "finish", "--yes", "--reason", "all new"]).await.0, Some(0));
    // A reason that would not be kept is refused.
    assert_eq!(on_servers(&system, &["audit", "--full", "--reason", "why"]).await.0, Some(2));

    let recorded = actions(&system, &keys[0]).await;
    let reason = |why: &str| json!({"reason": why}).to_string().into();
    let made = json!({"name": "홍길동", "role": "operator", "reason": "new here"});
    let expected = [
        ("couponctl upgrade finish", "0", 200, reason("all new")),
        ("couponctl recover", "0", 200, reason("moved")),
        ("couponctl audit --repair", "all coupons", 200, reason("drift")),
        ("couponctl key revoke", "nobody", 404, Value::Null),
        ("couponctl key revoke", id.as_str(), 200, reason("gone")),
        ("couponctl key create", id.as_str(), 201, made.to_string().into()),
    ];
    assert_eq!(recorded.len(), expected.len(), "{recorded:#?}");
    for (action, (what, target, status, input)) in recorded.iter().zip(expected) {
        assert_eq!((&action["action"], &action["status"]), (&json!(what), &json!(status)), "{action}");
        assert_eq!((&action["input"], &action["keyId"]), (&input, &Value::Null), "{what}");
        assert_eq!(action["target"], target, "{action}");
        let who = action["who"].as_str().expect("somebody");
        assert!(who.starts_with("couponctl (") && who.len() > "couponctl ()".len(), "{who}");
        assert!(!action.to_string().contains(&secret));
    }
    let mut list = Command::new(CTL);
    list.args(["action", "list", "--api-url", system.client.base(), "--token", &keys[0]]);
    let (_, listed, _) = run(list).await;
    assert!(listed.contains("couponctl key create") && listed.contains("couponctl key revoke"), "{listed}");
}

#[tokio::test]
async fn what_cannot_be_recorded_is_not_done_by_a_command_either() {
    let (system, keys, _folder) = closed(&[Role::Viewer]).await;
    let system_database = &system.backends.database;
    let refuse = doc! {"collMod": "operator_actions", "validator": {"who": "nobody"}};
    system_database.run_command(refuse).await.expect("it is changed");
    let (code, made, said) =
        on_mongodb(&system, &["key", "create", "--name", "x", "--role", "operator"]).await;
    assert_eq!((code, made.as_str()), (Some(5), ""), "{said}");
    assert!(said.contains("nothing was done"), "{said}");
    let id = keys[0].split('_').nth(1).expect("an id");
    assert_eq!(on_mongodb(&system, &["key", "revoke", id]).await.0, Some(5));
    let store = KeyStore::new(system_database);
    assert_eq!(store.active().await.expect("a look").keys.len(), 1);
    let records = system_database.collection::<Document>("operator_actions");
    assert_eq!(records.count_documents(doc! {}).await.expect("a count"), 0);
}
