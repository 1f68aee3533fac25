//! The documented answers that have no test elsewhere.

use coupon_system::coupon::Coupon;
use coupon_system::http::Code;
use serde_json::json;

use crate::helpers::{Answer, System, at};

/// Asserts what every problem has.
fn is_problem(answer: &Answer, status: u16, code: &str) {
    assert_eq!((answer.status, answer.code()), (status, code), "{answer:?}");
    assert_eq!(answer.header("content-type"), "application/problem+json");
    assert_eq!(answer.body["status"], status);
    assert_eq!(answer.body["type"], format!("/problems/{code}"));
    assert_eq!(answer.body["requestId"], answer.header("x-request-id"));
    assert!(answer.body["title"].is_string() && answer.body["detail"].is_string());
    assert!(Code::ALL.iter().any(|known| known.as_str() == code));
}

#[tokio::test]
async fn unknown_things_are_404_each_with_its_own_code() {
    let system = System::start().await;
    system.users("u", 1).await;
    system.coupon("c", 1, 1).await;
    let unknown = "019a0b1c-2d3e-7000-8f00-000000000000";
    let get = async |path: String| system.client.get(&path).await;
    is_problem(&get("/coupons/none".into()).await, 404, "coupon-not-found");
    is_problem(&get("/coupons/no%20id".into()).await, 404, "coupon-not-found");
    is_problem(&get("/users/none".into()).await, 404, "user-not-found");
    is_problem(&get("/user-coupons/none".into()).await, 404, "user-not-found");
    is_problem(&get(format!("/user-coupons/u0/{unknown}")).await, 404, "user-coupon-not-found");
    is_problem(&get(format!("/issuances/{unknown}")).await, 404, "issuance-not-found");
    is_problem(&get("/issuances/nonsense".into()).await, 404, "issuance-not-found");
    is_problem(&get("/nowhere".into()).await, 404, "not-found");
    is_problem(&system.client.issue("none", "c", None).await, 404, "user-not-found");
    is_problem(&system.client.issue("u0", "none", None).await, 404, "coupon-not-found");
    assert_eq!(system.stock(&"c".parse().expect("an id")).await.remaining, 1);
}

#[tokio::test]
async fn a_coupon_that_cannot_be_requested_says_why() {
    let system = System::start().await;
    system.users("u", 1).await;
    let record = system.coupon_record("base", 1, 1, at(-60), at(60)).await;
    let variants = [
        ("later", "not-started", Coupon { starts_at: at(50), ..record.clone() }),
        ("over", "ended", Coupon { ends_at: at(-1), ..record.clone() }),
        ("resting", "paused", Coupon { paused: true, ..record.clone() }),
        ("shelved", "archived", Coupon { archived: true, ..record.clone() }),
    ];
    for (id, code, variant) in variants {
        let variant = Coupon { id: id.parse().expect("an id"), ..variant };
        system.backends.coupons.insert(&variant).await.expect("it is written");
        system.backends.loaders().first().load(&variant.id).await.expect("it is loaded");
        let answer = system.client.issue("u0", id, None).await;
        is_problem(&answer, 409, code);
        assert_eq!(answer.body["retryable"], json!(["not-started", "paused"].contains(&code)));
    }
}

#[tokio::test]
async fn a_body_that_is_not_what_it_must_be_is_refused_by_the_field() {
    let system = System::start().await;
    system.users("u", 1).await;
    let post = |body: &str| system.client.request("POST", "/user-coupons").body(body.to_owned());
    let json_post = |body: &str| post(body).header("content-type", "application/json");
    let send = async |request| system.client.send(request).await;

    is_problem(&send(post("{}")).await, 415, "unsupported-media-type");
    is_problem(&send(json_post("")).await, 400, "malformed");
    is_problem(&send(json_post("{")).await, 400, "malformed");
    is_problem(&send(json_post(&format!("\"{}\"", "x".repeat(65 * 1024)))).await, 413, "too-large");
    for (body, pointers) in [
        ("[]", vec!["#"]),
        ("{}", vec!["#/userId", "#/couponId"]),
        (r#"{"userId":1,"couponId":"c"}"#, vec!["#/userId"]),
        (r#"{"userId":"a b","couponId":{"$gt":""}}"#, vec!["#/userId", "#/couponId"]),
        (r#"{"userId":"u0","couponId":"c","more":1}"#, vec!["#/more"]),
    ] {
        let answer = send(json_post(body)).await;
        is_problem(&answer, 422, "invalid");
        let told: Vec<_> = answer.body["errors"]
            .as_array()
            .expect("errors")
            .iter()
            .map(|error| error["pointer"].as_str())
            .collect();
        assert_eq!(told, pointers.into_iter().map(Some).collect::<Vec<_>>(), "{body}");
    }
    let key = system.client.issue("u0", "c", Some(&"k".repeat(256))).await;
    is_problem(&key, 422, "invalid");
    assert_eq!(key.body["errors"][0]["parameter"], "Idempotency-Key");
}

#[tokio::test]
async fn a_query_that_is_not_understood_is_refused_by_the_parameter() {
    let system = System::start().await;
    for (method, path, parameter) in [
        ("GET", "/coupons?limit=0", "limit"),
        ("GET", "/coupons?limit=x", "limit"),
        ("GET", "/coupons?cursor=x", "cursor"),
        ("GET", "/coupons?status=gone", "status"),
        ("GET", "/coupons?more=1", "more"),
        ("GET", "/users?limit=1&limit=2", "limit"),
        ("POST", "/users/random", "count"),
        ("POST", "/users/random?count=0", "count"),
        ("POST", "/users/random?count=100001", "count"),
    ] {
        let answer = system.client.send(system.client.request(method, path)).await;
        is_problem(&answer, 422, "invalid");
        assert_eq!(answer.body["errors"][0]["parameter"], parameter, "{path}");
    }
    assert_eq!(system.client.get("/coupons?limit=9999").await.status, 200, "more is brought down");
}

#[tokio::test]
async fn a_wrong_method_says_which_are_right() {
    let system = System::start().await;
    let answer = system.client.send(system.client.request("DELETE", "/coupons")).await;
    is_problem(&answer, 405, "method-not-allowed");
    assert!(answer.header("allow").contains("GET") && answer.header("allow").contains("POST"));
}

#[tokio::test]
async fn problems_are_in_the_clients_language() {
    let system = System::start().await;
    let korean =
        system.client.request("GET", "/coupons/none").header("accept-language", "ko-KR,ko;q=0.9,en;q=0.8");
    let answer = system.client.send(korean).await;
    is_problem(&answer, 404, "coupon-not-found");
    assert_eq!(
        (answer.header("content-language"), answer.body["title"].as_str()),
        ("ko", Some("쿠폰을 찾을 수 없음"))
    );
}

#[tokio::test]
async fn a_request_keeps_the_id_that_its_client_gave_it() {
    let system = System::start().await;
    let given = system.client.request("GET", "/coupons/none").header("x-request-id", "shop-42");
    assert_eq!(system.client.send(given).await.body["requestId"], "shop-42");
    let damaged = system.client.request("GET", "/coupons/none").header("x-request-id", "a b");
    assert_ne!(system.client.send(damaged).await.body["requestId"], "a b");
}

#[tokio::test]
async fn a_full_backlog_is_503_and_everything_accepted_is_still_decided() {
    let system = System::builder().flags(&["--backlog-max", "3"]).start().await;
    system.users("u", 5).await;
    system.coupon("c", 10, 1).await;
    let mut ids = Vec::new();
    for number in 0..5 {
        let answer = system.client.issue(&format!("u{number}"), "c", None).await;
        if number < 3 {
            ids.push(answer.id());
        } else {
            is_problem(&answer, 503, "overloaded");
            assert!(!answer.header("retry-after").is_empty() && answer.body["retryAfterMs"].is_u64());
        }
    }
    system.worker();
    for id in ids {
        assert_eq!(system.client.decided(&id).await.state(), "issued");
    }
    let late = system.client.issue("u4", "c", None).await;
    assert_eq!(late.status, 202, "it was safe to repeat");
}

#[tokio::test]
async fn users_who_are_not_registered_are_trusted_if_the_operator_says_so() {
    let system = System::builder().flags(&["--require-registered-users", "false"]).start().await;
    system.worker();
    system.coupon("c", 1, 1).await;
    let answer = system.client.issue("stranger", "c", None).await;
    assert_eq!(answer.status, 202);
    assert_eq!(system.client.decided(&answer.id()).await.state(), "issued");
    assert_eq!(system.client.get("/user-coupons/stranger").await.body["items"][0]["serial"], 1);
}

#[tokio::test]
async fn readiness_names_the_part_that_is_away_and_nothing_more() {
    let mut system = System::start().await;
    system.redis.kill().await.expect("it is killed");
    let answer = system.client.get("/readyz").await;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.body["redis"], "unavailable");
    assert_eq!(answer.body["mongodb"], "ok");
    assert_eq!(answer.body["degraded"], serde_json::json!(["redis"]));
    assert!(!answer.body.to_string().contains("127.0.0.1"));
    assert_eq!(system.client.get("/healthz").await.status, 200);
}

#[tokio::test]
async fn links_live_under_the_public_url() {
    let system =
        System::builder().flags(&["--public-url", "https://shop.example/coupons-api/"]).start().await;
    system.users("u", 1).await;
    system.coupon("c", 1, 1).await;
    let answer = system.client.issue("u0", "c", None).await;
    assert_eq!(answer.header("location"), format!("/coupons-api/issuances/{}", answer.id()));
    system.drain().await;
}
