//! A user sees only their own data; for all else the API answers 404.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{closed, token};
use crate::helpers::{Answer, System};
use coupon_system::ids::{IssuanceId, PartitionId};

/// The API holds a poll of a queued issuance for longer than this.
const WAITED: Duration = Duration::from_secs(25);

/// An answer without the parts that differ each time.
fn said(answer: Answer) -> (u16, Value) {
    let mut body = answer.body;
    body["requestId"] = Value::Null;
    (answer.status, body)
}

async fn seen(system: &System, user: &str, path: &str) -> (u16, Value) {
    said(system.client.with(&token(user)).get(path).await)
}

#[tokio::test]
async fn what_is_somebody_elses_is_answered_exactly_as_what_is_not_there() {
    let (system, _, _folder) = closed(&[]).await;
    let coupon = system.coupon("c", 10, 1).await;
    let held = system.coupon("held", 10, 1).await;
    system.users("u", 3).await;
    let u1 = system.client.with(&token("u1"));
    let issued = u1.issue("u1", held.as_str(), None).await.id();
    let worker = system.worker();
    assert_eq!(u1.decided(&issued).await.state(), "issued");
    worker.cancel();
    let queued = u1.issue("u1", coupon.as_str(), None).await.id();
    let nobodys = IssuanceId::generate(PartitionId::ONE).to_string();

    for (theirs, none) in [
        (format!("/issuances/{queued}"), format!("/issuances/{nobodys}")),
        (format!("/issuances/{issued}"), format!("/issuances/{nobodys}")),
        (format!("/issuances/{queued}?wait=30"), format!("/issuances/{nobodys}?wait=30")),
        (format!("/issuances/{queued}/events"), format!("/issuances/{nobodys}/events")),
        (format!("/issuances/{issued}/events"), format!("/issuances/{nobodys}/events")),
        ("/user-coupons/u1".into(), "/user-coupons/nobody".into()),
        (format!("/user-coupons/u1/{issued}"), format!("/user-coupons/u1/{nobodys}")),
        (format!("/user-coupons/u2/{issued}"), format!("/user-coupons/u2/{nobodys}")),
        ("/users/u1".into(), "/users/nobody".into()),
    ] {
        let asked_at = Instant::now();
        let hidden = seen(&system, "u2", &theirs).await;
        assert!(asked_at.elapsed() < WAITED, "{theirs}");
        assert_eq!(hidden.0, 404, "{theirs}");
        assert_eq!(hidden, seen(&system, "u2", &none).await, "{theirs}");
    }
    for (path, status) in [
        (format!("/issuances/{queued}"), 200),
        (format!("/issuances/{issued}?wait=1"), 200),
        ("/user-coupons/u1".into(), 200),
        (format!("/user-coupons/u1/{issued}"), 200),
        ("/users/u1".into(), 200),
    ] {
        assert_eq!(seen(&system, "u1", &path).await.0, status, "{path}");
    }
}

#[tokio::test]
async fn a_token_requests_for_its_subject_and_for_nobody_else() {
    let (system, _, _folder) = closed(&[]).await;
    system.coupon("c", 10, 1).await;
    system.users("u", 3).await;
    let u1 = system.client.with(&token("u1"));
    let refused = u1.issue("u2", "c", None).await;
    assert_eq!((refused.status, refused.code()), (403, "forbidden"));
    // The answer does not reveal either whether the user exists.
    assert_eq!(said(u1.issue("nobody", "c", None).await), said(refused));
    let accepted = u1.issue("u1", "c", None).await;
    assert_eq!((accepted.status, &accepted.body["userId"]), (202, &json!("u1")));
    assert_eq!(system.queue().await.0, 1);
    system.drain().await;
}

#[tokio::test]
async fn two_sets_of_credentials_are_none() {
    let (system, _, _folder) = closed(&[]).await;
    system.users("u", 2).await;
    let request = system.client.with(&token("u1")).request("GET", "/users/u1").bearer_auth(token("u1"));
    let answer = system.client.send(request).await;
    assert_eq!((answer.status, answer.code()), (401, "unauthenticated"));
    let korean = system.client.request("GET", "/users/u1").header("accept-language", "ko");
    assert_eq!(system.client.send(korean).await.body["title"], "인증되지 않음");
}
