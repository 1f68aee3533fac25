//! Requests: the hosts and media types that the API accepts, and the path under which its links live.

use coupon_system::access::Role;
use serde_json::{Value, json};

use crate::helpers::System;

use super::raw_answer;

#[tokio::test]
async fn where_nobody_is_asked_only_a_host_that_no_other_site_can_have_is_served() {
    let flags = ["--public-url", "https://coupons.example/shop", "--allowed-hosts", "api,coupons.internal"];
    let system = System::builder().flags(&flags).start().await;
    let closed = System::builder().closed(&[Role::Operator]).start().await;
    let (open, closed) = (system.client.address(), closed.client.address());
    for (lines, in_open, in_closed) in [
        ("host: evil.example\r\norigin: http://evil.example\r\n", 403, 401),
        ("host: evil.example\r\nx-forwarded-host: localhost\r\n", 403, 401),
        ("host: localhost.evil.example\r\n", 403, 401),
        ("host: coupons.example\r\n", 200, 401),
        ("host: coupons.internal:3000\r\n", 200, 401),
        ("host: API:3000\r\n", 200, 401),
        ("host: localhost\r\n", 200, 401),
        ("host: x.localhost:1\r\n", 200, 401),
        ("host: 192.0.2.1:3000\r\n", 200, 401),
        ("host: [::1]:3000\r\n", 200, 401),
        ("", 400, 400),
        ("host:\r\n", 400, 400),
        ("host: localhost\r\nhost: localhost\r\n", 400, 400),
        ("host: a b\r\n", 400, 400),
    ] {
        for (address, expected) in [(open, in_open), (closed, in_closed)] {
            let answer = raw_answer(address, "POST", "/pause", lines).await;
            assert_eq!(answer.status, expected, "{lines:?}: {answer:?}");
        }
        let read = raw_answer(open, "GET", "/users", lines).await;
        assert_eq!(read.status, in_open, "{lines:?}: to read is no better");
        if in_open == 403 {
            assert!(read.body.contains("--allowed-hosts"), "{read:?}");
        }
    }
    let absolute = raw_answer(open, "GET", "http://evil.example/users", "host: localhost\r\n").await;
    assert_eq!(absolute.status, 400, "{absolute:?}");
    let absolute = raw_answer(open, "GET", "http://evil.example/users", "host: evil.example\r\n").await;
    assert_eq!(absolute.status, 403, "{absolute:?}");
    let absolute = raw_answer(open, "GET", "http://localhost:1/users", "host: localhost:1\r\n").await;
    assert_eq!(absolute.status, 200, "{absolute:?}");
}

#[tokio::test]
async fn a_body_that_says_it_is_something_else_than_utf_8_json_is_refused() {
    let system = System::start().await;
    let euc_kr = b"{\"name\":\"\xc8\xab\"}".to_vec();
    let utf_8 = br#"{"name":"x"}"#.to_vec();
    for (number, (header, value, body, status)) in [
        ("content-type", "application/json;charset=euc-kr", &euc_kr, 415),
        ("content-type", "application/json; charset=\"UTF-8\"", &utf_8, 201),
        ("content-type", "application/json; charset=utf-8; charset=euc-kr", &utf_8, 415),
        ("content-type", "application/json; version=2", &utf_8, 415),
        ("content-encoding", "gzip", &utf_8, 415),
        ("content-encoding", "identity", &utf_8, 201),
    ]
    .into_iter()
    .enumerate()
    {
        let mut request = system.client.request("POST", "/users").body(body.clone());
        if header != "content-type" {
            request = request.header("content-type", "application/json");
        }
        let answer = system.client.send(request.header(header, value)).await;
        assert_eq!(answer.status, status, "{number} {value}: {answer:?}");
        if status == 415 {
            assert_eq!(answer.code(), "unsupported-media-type");
        }
    }
}

/// Every path in a JSON value: each string that begins with a slash.
fn links(value: &serde_json::Value, found: &mut Vec<String>) {
    match value {
        serde_json::Value::String(text) if text.starts_with('/') => found.push(text.clone()),
        serde_json::Value::Array(items) => items.iter().for_each(|item| links(item, found)),
        serde_json::Value::Object(members) => members.values().for_each(|member| links(member, found)),
        _ => {}
    }
}

#[tokio::test]
async fn every_link_lives_under_the_path_of_the_public_url() {
    let flags = ["--public-url", "https://shop.example/coupons", "--user-held", "1", "--user-rate", "0"];
    let system = System::builder().flags(&flags).start().await;
    system.coupon("c", 2, 1).await;
    system.coupon("gone", 1, 1).await;
    system.users("u", 2).await;
    let queued = system.client.issue("u0", "c", None).await;
    let mut answers = vec![
        queued.clone(),
        system.client.get("/nowhere").await,
        system.client.get("/coupons?unknown=1").await,
        system.client.get("/problems").await,
        system.client.get("/problems/ended").await,
        system.client.post("/user-coupons", json!({})).await,
        system.client.post("/users", json!({"id": "new"})).await,
        system.client.get(&format!("/coupons?cursor={}", "y".repeat(9 * 1024))).await,
    ];
    system.worker();
    answers.push(system.client.decided(&queued.id()).await);
    answers.push(system.client.issue("u0", "c", None).await);
    for answer in &answers {
        let mut found = Vec::new();
        links(&answer.body, &mut found);
        found.extend(Some(answer.header("location").to_owned()).filter(|link| !link.is_empty()));
        assert!(!found.is_empty(), "{answer:?}");
        for link in found {
            assert!(link.starts_with("/coupons/"), "{link} in {answer:?}");
            let under = link.trim_start_matches("/coupons");
            let read = system.client.get(under).await;
            assert_eq!(read.status, 200, "{link} leads nowhere");
        }
    }
    // So does every path in a text.
    for language in ["en", "ko"] {
        let request = system.client.request("GET", "/problems").header("accept-language", language);
        let kinds = system.client.send(request).await;
        let texts = kinds.body.as_array().expect("a list").iter();
        let texts: Vec<&str> =
            texts.flat_map(|kind| [&kind["detail"], &kind["advice"]]).filter_map(Value::as_str).collect();
        let paths: Vec<&str> = texts
            .iter()
            .flat_map(|text| text.split([' ', '(']))
            .filter(|word| word.starts_with('/') && word.len() > 1)
            .collect();
        assert!(paths.len() >= 6, "{paths:?}");
        for path in paths {
            let under = path.strip_prefix("/coupons/");
            assert!(under.is_some_and(|under| !under.starts_with('{')), "{path} in {language}");
        }
    }
    for path in ["/nowhere", "/dead-letters/none"] {
        let detail = system.client.get(path).await.body["detail"].to_string();
        assert!(detail.contains(" /coupons/"), "{detail}");
    }
    let many: String = (0..200).map(|number| format!("x-{number}: y\r\n")).collect();
    let lines = format!("host: localhost\r\n{many}");
    let refused = raw_answer(system.client.address(), "GET", "/coupons", &lines).await;
    assert!(refused.body.contains(r#""type":"/coupons/problems/head-too-large""#), "{refused:?}");
}
