//! The user whom a token names, and the reasons to refuse a token.

use coupon_system::access::Role;
use coupon_system::ids::UserId;
use serde_json::{Value, json};

use super::{
    SECRET, UNLIMITED, claims, claims_with, closed, hs256, seconds_from_now, token, token_flags, unsigned,
};
use crate::helpers::{API, Client, System, logging, program_as_it_is};

#[tokio::test]
async fn an_issuers_usual_subjects_are_users_and_nobody_else_is_one_of_them() {
    let (system, keys, _folder) = closed(&[Role::Operator]).await;
    let operator = system.client.with(&keys[0]);
    system.coupon("c", 100, 1).await;
    let long = format!("https://issuer.example/users/{}", "7".repeat(300));
    let subjects = [
        "auth0|5f7c8ec7c33c6c004bbafe82",
        "110169484474386276334",
        "hong+coupons@example.com",
        "https://issuer.example/users/7",
        "8a1f6d1e-0f5c-4b1e-9d57-0a0f6e9d7a3b",
        "001234.0123456789abcdef0123456789abcdef.5678",
        "홍길동",
        &long,
    ];
    for subject in subjects {
        let registered = operator.post("/users", json!({"subject": subject})).await;
        assert_eq!(registered.status, 201, "{subject}: {registered:?}");
        let id = registered.body["id"].as_str().expect("an id").to_owned();
        assert_eq!(id == subject, subject.parse::<UserId>().is_ok(), "{subject}");
        let user = system.client.with(&token(subject));
        let issued = user.issue(&id, "c", None).await;
        assert_eq!(issued.status, 202, "{subject}: {issued:?}");
        assert_eq!(user.get(&format!("/issuances/{}", issued.id())).await.status, 200, "{subject}");
        // A person who may choose their subject must not reach another user by choosing that user's id.
        if id != subject {
            let forged = system.client.with(&token(&id));
            assert_eq!(forged.get(&format!("/issuances/{}", issued.id())).await.status, 404, "{subject}");
            assert_eq!(forged.issue(&id, "c", None).await.status, 403, "{subject}");
        }
        // The API tells a user their id.
        let wrong = user.issue("somebody", "c", None).await;
        assert!(wrong.status == 403 && wrong.body["detail"].as_str().is_some_and(|told| told.contains(&id)));
    }
    let both = operator.post("/users", json!({"id": "a", "subject": "b"})).await;
    assert_eq!((both.status, both.body["errors"][0]["pointer"].as_str()), (422, Some("#/subject")));
    system.drain().await;
}

#[tokio::test]
async fn a_token_may_be_as_long_as_a_head() {
    let (system, _, _folder) = closed(&[]).await;
    system.users("u", 2).await;
    for kilobytes in [1, 5, 20] {
        let roles = "r".repeat(kilobytes * 1_024);
        let answer =
            system.client.with(&hs256(SECRET, &claims_with("u1", "roles", roles))).get("/users/u1").await;
        assert_eq!(answer.status, 200, "{kilobytes} KiB: {answer:?}");
    }
}

#[tokio::test]
async fn what_is_refused_says_why_in_the_log_and_blames_expiry_only_when_that_is_it() {
    let system = System::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let mut api = program_as_it_is(API, &system);
    api.args(["--listen", "127.0.0.1:0"]).args(token_flags(&folder)).args(UNLIMITED);
    let (_api, address, log) = logging(api).await;
    let client = Client::new(address);
    let changed = |name: &str, value: Value| hs256(SECRET, &claims_with("u1", name, value));
    let mut without = claims("u1");
    without.as_object_mut().expect("an object").remove("aud");
    let unsigned = |head: Value| format!("{}.", unsigned(&head, &claims("u1")));
    let refused = [
        (changed("sub", json!("")), "its sub must not be empty"),
        (changed("sub", json!(7)), "sub"),
        (changed("iss", json!("https://shop.example/")), "a slash at the end too"),
        (changed("aud", json!(["app"])), "without --jwt-audience"),
        (hs256(SECRET, &without), "its aud is missing"),
        (changed("nbf", json!(seconds_from_now(3_600))), "not valid yet"),
        (hs256("another secret, which nobody here has ever heard of", &claims("u1")), "signature"),
        (unsigned(json!({"alg": "none"})), "none"),
        (unsigned(json!({"alg": "HS512"})), "another algorithm"),
        ("no.token.at-all".to_owned(), "no JSON Web Token"),
        ("opaque".to_owned(), "no JSON Web Token"),
        (format!("cpn_nobody_{}", "0".repeat(64)), "nobody"),
        ("cpn_cut_0123".to_owned(), "cut off"),
    ];
    for (bad, why) in &refused {
        let answer = client.with(bad).get("/users/u1").await;
        assert_eq!(answer.status, 401, "{why}");
        let told = answer.body["detail"].as_str().expect("a detail");
        assert!(
            !told.contains("expired") && !answer.header("www-authenticate").contains("expired"),
            "{told}"
        );
    }
    let expired = client.with(&changed("exp", json!(seconds_from_now(-60)))).get("/users/u1").await;
    assert!(expired.body["detail"].as_str().is_some_and(|told| told.contains("expired")), "{expired:?}");
    // Each kind of refusal has a line, and only one in a while.
    let told =
        ["must not be empty", "not valid yet", "has expired", "signature", "another algorithm", "cut off"];
    for why in
        told.into_iter().chain(["a slash at the end too", "without --jwt-audience", "no JSON Web Token"])
    {
        log.says(why).await;
    }
    log.says("\"nobody\\\"").await;
    for line in log.lines() {
        for (bad, _) in &refused {
            let secret = bad.rsplit(['.', '_']).next().unwrap_or_default();
            assert!(secret.len() < 20 || !line.contains(secret), "{line}");
        }
    }
    let lines = log.lines().iter().filter(|line| line.contains("credentials are refused")).count();
    for _ in 0..50 {
        assert_eq!(client.with("cpn_cut_0123").get("/users/u1").await.status, 401);
    }
    // The API still logs what comes after them.
    let basic = client.request("GET", "/users/u1").header("authorization", "Basic eDp5");
    assert_eq!(client.send(basic).await.status, 401);
    log.says("`Bearer`").await;
    let more = log.lines().iter().filter(|line| line.contains("credentials are refused")).count();
    assert!(more <= lines + 10, "{lines} lines became {more}");
}
