//! `couponctl key`, `action`, and `--token`.

use std::process::Stdio;

use coupon_system::access::Role;
use serde_json::Value;
use tokio::process::Command;

use super::closed;
use crate::helpers::{CTL, CommandOutput, System};

async fn ctl(system: &System, words: &[&str]) -> CommandOutput {
    let mut command = Command::new(CTL);
    command
        .args(words)
        .env("COUPON_API_URL", system.client.base())
        .env("COUPON_MONGODB_URI", &system.mongodb_uri)
        .env("COUPON_MONGODB_DATABASE", &system.database)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command.output().await.expect("it runs").into()
}

#[tokio::test]
async fn a_key_is_made_shown_once_used_listed_and_revoked() {
    let (system, _, _folder) = closed(&[]).await;
    system.coupon("c", 10, 1).await;
    let refused = ctl(&system, &["coupon", "pause", "c"]).await;
    assert_eq!(refused.code, Some(1), "{}", refused.err);
    assert!(
        refused.err.contains("401 unauthenticated") && refused.err.contains("COUPON_TOKEN"),
        "{}",
        refused.err
    );

    let made = ctl(&system, &["key", "create", "--name", "홍길동", "--role", "operator"]).await;
    assert_eq!(made.code, Some(0), "{}", made.err);
    let key = made.out.trim();
    assert!(key.starts_with("cpn_") && made.out.lines().count() == 1, "{}", made.out);
    let id = key.split('_').nth(1).expect("an id");
    assert!(made.err.contains(id) && !made.err.contains(key), "{}", made.err);
    let again = ctl(&system, &["key", "create", "--name", "x", "--role", "viewer", "--if-none"]).await;
    assert_eq!((again.code, again.out.as_str()), (Some(0), ""));

    let paused = ctl(&system, &["coupon", "pause", "c", "--token", key]).await;
    assert_eq!(paused.code, Some(0), "{}", paused.err);
    let listed = ctl(&system, &["action", "list", "--token", key]).await;
    assert_eq!(listed.code, Some(0), "{}", listed.err);
    assert!(listed.out.contains("홍길동") && listed.out.contains("/coupons/c/pause"), "{}", listed.out);
    let watched = ctl(&system, &["watch", "--for", "1", "--token", key]).await;
    assert_eq!(watched.code, Some(0), "{}", watched.err);

    let keys: Vec<Value> =
        serde_json::from_str(&ctl(&system, &["key", "list", "--json"]).await.out).expect("JSON");
    assert_eq!((keys.len(), &keys[0]["id"], &keys[0]["revokedAt"]), (1, &id.into(), &Value::Null));
    assert!(!keys[0].to_string().contains(key));
    assert_eq!(keys[0]["expiresAt"], Value::Null);
    let expiring = ["key", "create", "--name", "x", "--role", "viewer", "--json", "--expires-in", "36h"];
    let expiring = ctl(&system, &expiring).await;
    let expiring: Value = serde_json::from_str(&expiring.out).expect("JSON");
    let expires: jiff::Timestamp = expiring["expiresAt"].as_str().expect("a time").parse().expect("a time");
    let created: jiff::Timestamp = expiring["createdAt"].as_str().expect("a time").parse().expect("a time");
    let hours = expires.duration_since(created).as_secs_f64() / 3_600.0;
    assert!((35.99..=36.0).contains(&hours), "{hours}");
    assert!(ctl(&system, &["key", "list"]).await.out.contains(&format!("{expires:.0} (soon)")));
    let moment = "2036-01-01T00:00:00+09:00";
    let later =
        ctl(&system, &["key", "create", "--name", "x", "--role", "viewer", "--expires-at", moment]).await;
    assert_eq!(later.code, Some(0), "{}", later.err);
    assert!(ctl(&system, &["key", "list"]).await.out.contains("2035-12-31T15:00:00Z"));
    let revoked = ctl(&system, &["key", "revoke", id]).await;
    assert!(revoked.code == Some(0) && revoked.out.contains("5 s"), "{}{}", revoked.out, revoked.err);
    let nobody = ctl(&system, &["key", "revoke", "nobody"]).await;
    assert!(nobody.code == Some(1) && nobody.err.contains("key list"), "{}", nobody.err);
    assert!(ctl(&system, &["key", "list"]).await.out.contains("operator"));
    for wrong in [
        ["key", "create", "--name", "x", "--role", "emperor"],
        ["key", "create", "--name", " ", "--role", "viewer"],
    ] {
        assert_ne!(ctl(&system, &wrong).await.code, Some(0));
    }
    for (wrong, named) in [
        (["--expires-in", "1 month"], "--expires-in"),
        (["--expires-in", "0s"], "--expires-in"),
        (["--expires-at", "2020-01-01T00:00:00Z"], "future"),
    ] {
        let words = [&["key", "create", "--name", "x", "--role", "viewer"][..], &wrong].concat();
        let refused = ctl(&system, &words).await;
        assert!(refused.code != Some(0) && refused.err.contains(named), "{}", refused.err);
    }
}

#[tokio::test]
async fn a_rehearsal_sends_its_key_with_every_request() {
    let (system, keys, _folder) = closed(&[Role::Operator]).await;
    system.worker();
    let words = ["rush", "--users", "50", "--rate", "200", "--json", "--token", &keys[0]];
    let ended = ctl(&system, &words).await;
    assert_eq!(ended.code, Some(0), "{}{}", ended.out, ended.err);
    assert!(!ended.out.contains(&keys[0]));
}
