//! Rate limits of an address, and how many streams and held requests a user may have open.

use std::time::Duration;

use coupon_system::access::Role;
use serde_json::json;

use crate::access::{token, token_flags};
use crate::helpers::{Answer, Client, System, eventually};

use super::raw_answer;

/// Asserts that an answer tells of the limit of its address.
fn tells_limit(answer: &Answer) {
    assert_eq!(answer.header("ratelimit-policy"), "\"address\";q=8;w=800", "{answer:?}");
    assert!(answer.header("ratelimit").starts_with("\"address\";r="), "{answer:?}");
}

#[tokio::test]
async fn an_answer_that_two_limits_count_tells_of_both() {
    let flags =
        ["--address-rate", "0.01", "--address-burst", "8", "--user-rate", "0.01", "--user-burst", "4"];
    let system = System::builder().flags(&flags).start().await;
    system.users("u", 1).await;
    system.coupon("c", 9, 1).await;
    let accepted = system.client.issue("u0", "c", None).await;
    let all = |name: &str| -> Vec<_> {
        accepted.headers.get_all(name).iter().map(|value| value.to_str().expect("text")).collect()
    };
    assert_eq!(accepted.status, 202, "{accepted:?}");
    assert_eq!(all("ratelimit-policy"), ["\"user\";q=4;w=400", "\"address\";q=8;w=800"]);
    assert_eq!(all("ratelimit"), ["\"user\";r=3;t=100", "\"address\";r=7;t=100"]);
    system.drain().await;
}

#[tokio::test]
async fn every_answer_to_an_address_counts_and_a_key_never_does() {
    let flags = ["--address-rate", "0.01", "--address-burst", "8"];
    let system = System::builder().closed(&[Role::Service]).flags(&flags).start().await;
    let keys = system.api_keys.clone();
    // Answers that come from before the handlers.
    let long = format!("/coupons?cursor={}", "y".repeat(9 * 1024));
    for (path, status) in
        [("/coupons?unknown=1", 422), (&*long, 414), ("/nowhere", 404), ("/queue", 401), ("/readyz", 200)]
    {
        let answer = system.client.get(path).await;
        assert_eq!(answer.status, status, "{path}");
        tells_limit(&answer);
    }
    let post = system.client.request("POST", "/coupons").json(&json!({}));
    let post = system.client.send(post).await;
    assert_eq!(post.status, 401);
    tells_limit(&post);
    let put = system.client.send(system.client.request("PUT", "/problems")).await;
    assert_eq!(put.status, 405);
    tells_limit(&put);
    // A request that hyper refuses.
    let many: String = (0..200).map(|number| format!("x-{number}: y\r\n")).collect();
    let lines = format!("host: localhost\r\n{many}");
    assert_eq!(raw_answer(system.client.address(), "GET", "/coupons", &lines).await.status, 431);
    for path in ["/coupons", "/coupons?unknown=1", &*long, "/nowhere", "/queue", "/readyz", "/problems"] {
        let answer = system.client.get(path).await;
        assert_eq!((answer.status, answer.code()), (429, "rate-limited"), "{path}");
    }
    let service = system.client.with(&keys[0]);
    for path in ["/coupons", "/coupons?unknown=1", "/readyz", "/queue", "/problems"] {
        for _ in 0..10 {
            let answer = service.get(path).await;
            assert_ne!(answer.status, 429, "{path}");
            assert_eq!(answer.header("ratelimit"), "", "{path}: nothing counts it");
        }
    }
    let unknown = system.client.with(&format!("cpn_nobody_{}", "0".repeat(64)));
    assert_eq!(unknown.get("/coupons").await.status, 429, "a key that is none");
    assert_eq!(system.client.get("/livez").await.status, 200);
}

/// Opens a stream. An `Err` is the status of an answer that is not one.
async fn open_stream(client: &Client, path: &str) -> Result<reqwest::Response, u16> {
    let response = client.request("GET", path).send().await.expect("an answer");
    if response.status() == 200 { Ok(response) } else { Err(response.status().as_u16()) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_user_holds_few_streams_and_waiting_requests_and_hinders_no_other() {
    let folder = tempfile::tempdir().expect("a folder");
    let flags = token_flags(&folder);
    let mut flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    flags.extend(["--user-rate", "0", "--user-held", "3"]);
    let closed = System::builder().closed(&[Role::Service, Role::Viewer]).flags(&flags).start().await;
    let keys = closed.api_keys.clone();
    let open = System::builder()
        .flags(&["--user-rate", "0", "--user-held", "3", "--address-streams", "5"])
        .start()
        .await;
    for system in [&closed, &open] {
        let coupon = system.coupon("c", 9, 1).await;
        system.users("u", 3).await;
        let is_open = std::ptr::eq(system, &open);
        let client =
            |user: &str| if is_open { system.client.clone() } else { system.client.with(&token(user)) };
        let [one, other] = [system.accepted("u0", &coupon).await, system.accepted("u1", &coupon).await];
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(
                open_stream(&client("u0"), &format!("/issuances/{one}/events")).await.expect("a stream"),
            );
        }
        let path = format!("/issuances/{one}/events");
        let asking = client("u0");
        let events = tokio::time::timeout(Duration::from_secs(60), asking.get(&path)).await;
        let events = events.expect("a fourth stream is refused");
        let held_poll = client("u0").get(&format!("/issuances/{one}?wait=20")).await;
        let held_request = client("u0").request("POST", "/user-coupons?wait=20");
        let held_request = held_request.json(&json!({"userId": "u0", "couponId": "c"}));
        let held_request = client("u0").send(held_request).await;
        for refused in [events, held_poll, held_request] {
            assert_eq!((refused.status, refused.code()), (429, "rate-limited"), "{refused:?}");
            assert_eq!(refused.body["limit"], "user-held");
        }
        assert_eq!(client("u0").get(&format!("/issuances/{one}")).await.status, 200, "to poll is no matter");
        held.push(
            open_stream(&client("u1"), &format!("/issuances/{other}/events")).await.expect("another's"),
        );
        held.remove(0);
        let stream = eventually("there is room again", async || {
            open_stream(&client("u0"), &format!("/issuances/{one}/events")).await.ok()
        })
        .await;
        held.push(stream);
        if is_open {
            held.push(
                open_stream(&client("u1"), &format!("/issuances/{other}/events")).await.expect("a fifth"),
            );
            let sixth = open_stream(&client("u1"), &format!("/issuances/{other}/events")).await;
            assert_eq!(sixth.err(), Some(429), "one address");
        } else {
            // A service key waits for many users.
            let service = system.client.with(&keys[0]);
            for _ in 0..5 {
                let path = format!("/issuances/{one}/events");
                held.push(open_stream(&service, &path).await.expect("a service's"));
            }
            let viewer = system.client.with(&keys[1]);
            for _ in 0..10 {
                held.push(open_stream(&viewer, "/events").await.expect("live figures"));
            }
            assert_eq!(open_stream(&viewer, "/events").await.err(), Some(429), "one key");
        }
        system.drain().await;
    }
}
