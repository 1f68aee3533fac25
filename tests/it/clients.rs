//! What developers of clients rely on: streams that end, amounts of money, and answers of gateways.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use reqwest::Response;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::time::timeout;

use crate::helpers::{CTL, System, discarded};

/// The longest wait for an answer: much longer than one takes, much shorter than the longest stream.
const PROMPTLY: Duration = Duration::from_secs(30);

/// Decides what is queued.
async fn decide(system: &System) {
    let entries = system.take_entries().await;
    system.decider().process(&system.keys(), &entries).await.expect("decided");
}

/// Rejects what is queued.
async fn discard(system: &System) {
    let entries = system.take_entries().await;
    system.write(&[discarded(&entries[0])]).await;
    system.decider().process(&system.keys(), &entries).await.expect("it is settled");
}

/// Opens the events of an issuance as a browser that received this event last.
async fn events(system: &System, id: &str, last_heard: Option<&str>) -> Response {
    let mut request = system.client.request("GET", &format!("/issuances/{id}/events"));
    if let Some(last_heard) = last_heard {
        request = request.header("last-event-id", last_heard);
    }
    request.send().await.expect("an answer")
}

/// The lines of a stream until it ends.
async fn lines(stream: Response) -> Vec<String> {
    let text = timeout(PROMPTLY, stream.text()).await.expect("it ends").expect("text");
    text.lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn a_stream_of_a_decided_issuance_is_over_for_who_heard_the_outcome_and_for_nobody_else() {
    let system = System::start().await;
    let coupon = system.coupon("c", 5, 1).await;
    let issued = system.accepted("u0", &coupon).await.to_string();
    decide(&system).await;
    let rejected = system.accepted("u1", &coupon).await.to_string();
    discard(&system).await;

    for (id, state, other) in [(&issued, "issued", "rejected"), (&rejected, "rejected", "issued")] {
        // A first connection, and one that has received only that the issuance is queued.
        for last_heard in [None, Some(""), Some("queued"), Some(other)] {
            let stream = events(&system, id, last_heard).await;
            assert_eq!(stream.status(), 200, "{state} after {last_heard:?}");
            assert_eq!(stream.headers()["cache-control"], "no-store");
            assert_eq!(stream.headers()["x-accel-buffering"], "no");
            let lines = lines(stream).await;
            for line in [format!("event: {state}"), format!("id: {state}")] {
                assert!(lines.contains(&line), "{line} is not in {lines:?}");
            }
            assert!(lines.iter().any(|line| line.starts_with("retry: ")), "{lines:?}");
        }
        // An EventSource stops at this status.
        let over = events(&system, id, Some(state)).await;
        assert_eq!((over.status().as_u16(), over.headers().get("content-type")), (204, None));
        assert_eq!(over.headers()["cache-control"], "no-store");
        assert_eq!(lines(over).await, Vec::<String>::new());
    }
    let unknown = events(&system, "019a0b1c-2d3e-7000-8f00-000000000000", Some("issued")).await;
    assert_eq!(unknown.status(), 404, "nobody was told of it");
}

#[tokio::test]
async fn a_client_that_connects_again_before_the_decision_hears_the_outcome() {
    let system = System::start().await;
    let coupon = system.coupon("c", 5, 1).await;
    let id = system.accepted("u0", &coupon).await.to_string();
    for last_heard in ["queued", "issued"] {
        let mut stream = events(&system, &id, Some(last_heard)).await;
        assert_eq!(stream.status(), 200, "it is not decided, whatever the client says");
        let first = timeout(PROMPTLY, stream.chunk()).await.expect("it speaks").expect("no error");
        let first = String::from_utf8(first.expect("an event").to_vec()).expect("text");
        assert!(first.contains("event: queued\n") && first.contains("id: queued\n"), "{first}");
    }
    let stream = events(&system, &id, Some("queued")).await;
    decide(&system).await;
    let lines = lines(stream).await;
    assert!(lines.contains(&"event: issued".to_owned()), "{lines:?}");
}

#[tokio::test]
async fn amounts_are_in_a_currency_of_iso_4217() {
    let system = System::start().await;
    let made = async |currency: &str| {
        let discount = json!({"type": "percent", "percent": 10, "maxAmount": 1050, "currency": currency});
        let body = json!({
            "name": "n", "total": 1, "startsAt": "2026-01-01T00:00:00Z", "endsAt": "2099-01-01T00:00:00Z",
            "discount": discount, "minOrderAmount": 2000,
        });
        system.client.post("/coupons", body).await
    };
    for currency in ["USD", "JPY", "KWD"] {
        let answer = made(currency).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        assert_eq!(answer.body["discount"]["maxAmount"], 1050);
        assert_eq!(answer.body["minOrderAmount"], 2000);
    }
    for currency in ["ABC", "XAU", "usd"] {
        let answer = made(currency).await;
        assert_eq!((answer.status, answer.code()), (422, "invalid"), "{currency}");
        assert_eq!(answer.body["errors"][0]["pointer"], "#/discount/currency");
    }
}

/// A gateway before the API: it gives the answers that the test lists, then forwards requests.
async fn gateway(api: &str, answers: Vec<(u16, &'static str, &'static str)>) -> String {
    let client = coupon_system::cli::client::builder().expect("TLS").no_proxy().build().expect("a client");
    let api = api.to_owned();
    let answers = Arc::new(Mutex::new(VecDeque::from(answers)));
    let handle = async move |request: Request| {
        let next = answers.lock().expect("no panic").pop_front();
        if let Some((status, media_type, body)) = next {
            let status = StatusCode::from_u16(status).expect("a status");
            return (status, [(header::CONTENT_TYPE, media_type)], body.to_owned()).into_response();
        }
        let (parts, body) = request.into_parts();
        let body = axum::body::to_bytes(body, 64 * 1024).await.expect("a body");
        let sent = client.request(parts.method, format!("{api}{}", parts.uri)).body(body);
        let sent = sent.header(header::CONTENT_TYPE, "application/json").send().await.expect("an answer");
        let (status, kind) = (sent.status(), sent.headers()[header::CONTENT_TYPE].clone());
        (status, [(header::CONTENT_TYPE, kind)], sent.text().await.expect("text")).into_response()
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(axum::serve(listener, axum::Router::new().fallback(handle)).into_future());
    format!("http://{address}")
}

#[tokio::test]
async fn couponctl_takes_only_the_service_for_the_service() {
    let system = System::start().await;
    system.users("u", 1).await;
    system.coupon("c", 5, 1).await;
    system.worker();
    let issue = async |answers: Vec<(u16, &'static str, &'static str)>| {
        let gateway = gateway(system.client.base(), answers).await;
        let mut command = Command::new(CTL);
        command.args(["issue", "u0", "c", "--key", "k", "--wait", "--api-url", &gateway]).kill_on_drop(true);
        let ended = command.output().await.expect("it runs");
        let words = format!("{}{}", text(&ended.stdout), text(&ended.stderr));
        (ended.status.code().expect("a code"), words)
    };
    // Only the gateway said so: the client must not report that the coupon is sold out.
    for (status, media_type, body) in [
        (502, "application/json", r#"{"code":"sold-out","title":"Sold out"}"#),
        (503, "application/problem+json", r#"{"type":"about:blank","code":"sold-out","status":503}"#),
        (200, "text/html", "<!doctype html>"),
        (200, "text/html", r#"{"state":"issued"}"#),
    ] {
        let (code, words) = issue(vec![(status, media_type, body)]).await;
        assert!(code == 1 && words.contains("not as the Coupon System's API does"), "{words}");
        assert!(!words.contains("old out"), "{words}");
        assert_eq!(words.contains("may have happened"), status >= 500, "{words}");
    }
    let (code, words) = issue(vec![(200, "application/json", r#"{"id":"x","state":"melting"}"#)]).await;
    assert!(code == 1 && words.contains("does not know: melting"), "{words}");
    // The client follows an accepted request although the gateway fails for a while.
    let queued = r#"{"id":"ID","state":"queued","pollAfterMs":20}"#;
    let first = system.client.post("/user-coupons", json!({"userId": "u0", "couponId": "c"})).await;
    let queued: &'static str = queued.replace("ID", &first.id()).leak();
    let lost = (502, "application/json", r#"{"message":"Bad Gateway"}"#);
    let (code, words) = issue(vec![(202, "application/json", queued), lost]).await;
    assert!(code == 0 && words.contains("issued"), "{words}");
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("text")
}
