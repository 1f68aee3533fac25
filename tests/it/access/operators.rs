//! Operators' routes on a listener of their own.

use std::time::Duration;

use coupon_system::access::Role;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::helpers::{System, eventually};

const OPERATOR_LISTEN: [&str; 2] = ["--operator-listen", "127.0.0.1:0"];

#[tokio::test]
async fn with_a_listener_for_operators_the_public_one_does_not_know_their_routes() {
    let system = System::builder().flags(&OPERATOR_LISTEN).start().await;
    system.coupon("c", 10, 1).await;
    system.users("u", 1).await;
    let operators = system.operators_client.clone().expect("a listener");
    for (method, path) in [
        ("GET", "/queue"),
        ("GET", "/workers"),
        ("GET", "/events"),
        ("GET", "/users"),
        ("GET", "/operator-actions"),
        ("GET", "/metrics"),
        ("GET", "/console"),
        ("GET", "/assets/console/main.js"),
        ("POST", "/coupons/c/pause"),
        ("POST", "/pause"),
    ] {
        let public = system.client.send(system.client.request(method, path)).await;
        assert_eq!((public.status, public.code()), (404, "not-found"), "{path}");
        let own = operators.request(method, path).send().await.expect("an answer");
        assert!(own.status().is_success(), "{path}: {}", own.status());
    }
    // These share their path with a route that is public.
    for (method, path) in [("POST", "/coupons"), ("PATCH", "/coupons/c"), ("POST", "/users/random?count=1")] {
        let public = system.client.send(system.client.request(method, path)).await;
        assert_eq!((public.status, public.code()), (405, "method-not-allowed"), "{path}");
    }
    for path in ["/coupons/c", "/healthz", "/readyz", "/users/u0", "/docs/", "/"] {
        assert_eq!(system.client.get(path).await.status, 200, "{path}");
        assert_eq!(operators.get(path).await.status, 200, "{path}");
    }
    assert_eq!(operators.get("/caller").await.body, json!({"who": "open", "role": "operator"}));
    let (public, own) = (system.client.get("/openapi.json").await, operators.get("/openapi.json").await);
    assert!(public.body["paths"].get("/queue").is_none() && own.body["paths"].get("/queue").is_some());
    assert!(public.body["paths"]["/coupons"].get("post").is_none());
    assert!(own.body["paths"]["/coupons"].get("post").is_some());
}

#[tokio::test]
async fn the_listener_for_operators_asks_for_credentials_too() {
    let system = System::builder().closed(&[Role::Viewer]).flags(&OPERATOR_LISTEN).start().await;
    let keys = system.api_keys.clone();
    let operators = system.operators_client.clone().expect("a listener");
    assert_eq!(operators.get("/queue").await.status, 401);
    assert_eq!(operators.with(&keys[0]).get("/queue").await.status, 200);
    assert_eq!(system.client.with(&keys[0]).get("/queue").await.status, 404);
    // A browser asks for a page without any; the page holds nothing.
    assert_eq!(operators.get("/console").await.status, 200);
}

#[tokio::test]
async fn the_console_may_load_nothing_from_elsewhere_and_all_that_it_names_is_there() {
    let system = System::start().await;
    let page = system.client.request("GET", "/console").send().await.expect("an answer");
    let policy = page.headers()["content-security-policy"].to_str().expect("text").to_owned();
    assert!(policy.contains("default-src 'none'; script-src 'self'; style-src 'self'"), "{policy}");
    let mut texts = vec![page.text().await.expect("text")];
    let named = regex::Regex::new(r#"(?:src|href)="(assets/[^"]+)"|from '\./([^']+)'"#).expect("a pattern");
    let (mut at, mut seen) = (0, Vec::new());
    while at < texts.len() {
        let found: Vec<String> = named
            .captures_iter(&texts[at])
            .map(|found| match found.get(1) {
                Some(path) => format!("/{}", path.as_str()),
                None => format!("/assets/console/{}", &found[2]),
            })
            .filter(|path| !seen.contains(path))
            .collect();
        for path in found {
            if seen.contains(&path) {
                continue;
            }
            let file = system.client.request("GET", &path).send().await.expect("an answer");
            assert_eq!(file.status(), 200, "{path}");
            assert_eq!(file.headers()["content-security-policy"], policy.as_str(), "{path}");
            texts.push(file.text().await.expect("text"));
            seen.push(path);
        }
        at += 1;
    }
    assert_eq!(seen.len(), 9, "{seen:?}");
    assert_eq!(system.client.get("/assets/console/other.js").await.status, 404);
}

#[tokio::test]
async fn an_operator_reads_who_they_are_and_how_the_accounts_are() {
    let system = System::builder().closed(&[Role::Viewer, Role::Service]).start().await;
    let viewer = system.client.with(&system.api_keys[0]);
    assert_eq!(viewer.get("/caller").await.body, json!({"who": "viewer", "role": "viewer"}));
    assert_eq!(system.client.with(&system.api_keys[1]).get("/caller").await.status, 403);
    system.coupon("c", 10, 1).await;
    let before = viewer.get("/audit").await.body;
    assert!(before["recoveredAt"].is_string() && before["audit"].is_null(), "{before}");
    // Redis counts a unit as issued that the ledger does not have.
    let () =
        system.command(&["HSET", &system.keys().coupon(&"c".parse().expect("an id")), "settled", "1"]).await;
    let stop = CancellationToken::new();
    let auditing = system.keep_auditing(Duration::from_millis(50), &stop);
    let audit = eventually("an audit has ended", async || {
        let audit = viewer.get("/audit").await.body["audit"].clone();
        (!audit.is_null()).then_some(audit)
    })
    .await;
    stop.cancel();
    auditing.await.expect("it ends");
    assert_eq!(audit["coupons"], 1);
    let findings = audit["findings"].as_array().expect("findings");
    assert!(findings.iter().any(|finding| finding["count"].as_u64() > Some(0)), "{audit}");
}
