//! Every route, tried by every kind of caller.

use std::collections::HashSet;

use coupon_system::access::{KeyStore, RevokeOutcome, Role};
use ring::hmac;
use serde_json::{Value, json};

use super::{SECRET, claims, claims_with, closed, hs256, seconds_from_now, signed, token, unsigned};
use crate::helpers::{Client, api_key, eventually};

/// A route, and its answer to each known caller.
struct TableRow {
    method: &'static str,
    /// The path as the document writes it.
    route: &'static str,
    path: String,
    body: Option<Value>,
    may: AllowedStatuses,
}

/// The status for each of viewer, service, operator, the user, another user.
struct AllowedStatuses([u16; 5]);

const NO: u16 = 403;

/// Every caller, even without credentials.
fn anyone(status: u16) -> AllowedStatuses {
    AllowedStatuses([status; 5])
}

/// The user and every key; another user gets a 404.
fn readers(status: u16) -> AllowedStatuses {
    AllowedStatuses([status, status, status, status, 404])
}

fn watchers(status: u16) -> AllowedStatuses {
    AllowedStatuses([status, NO, status, NO, NO])
}

fn operators(status: u16) -> AllowedStatuses {
    AllowedStatuses([NO, NO, status, NO, NO])
}

/// Every key, but no user.
fn keys(status: u16) -> AllowedStatuses {
    AllowedStatuses([status, status, status, NO, NO])
}

fn redeemers(status: u16) -> AllowedStatuses {
    AllowedStatuses([NO, status, status, NO, NO])
}

fn row(method: &'static str, route: &'static str, path: impl Into<String>, may: AllowedStatuses) -> TableRow {
    TableRow { method, route, path: path.into(), body: None, may }
}

fn with_body(mut row: TableRow, body: Value) -> TableRow {
    row.body = Some(body);
    row
}

/// The issuances of u1 that the paths name: one is queued, the other was issued.
fn rows(queued: &str, issued: &str) -> Vec<TableRow> {
    let one = |route, path: &str, may| row("GET", route, path, may);
    let do_it = |route, path: &str, may| row("POST", route, path, may);
    let change = |what: &str, may| {
        let route = match what {
            "use" => "/user-coupons/{userId}/{id}/use",
            "restore" => "/user-coupons/{userId}/{id}/restore",
            _ => "/user-coupons/{userId}/{id}/revoke",
        };
        row("POST", route, format!("/user-coupons/u1/{issued}/{what}"), may)
    };
    let request = json!({"userId": "u1", "couponId": "c"});
    let everything = json!({"all": true, "reason": "a test"});
    let coupon = json!({"id": "new", "name": "new", "total": 1, "startsAt": "2026-01-01T00:00:00Z",
        "endsAt": "2036-01-01T00:00:00Z"});
    vec![
        // Another user names u1 in the body: the refusal reveals nothing, so it need not be a 404.
        with_body(do_it("/user-coupons", "/user-coupons", AllowedStatuses([NO, 202, 202, 202, NO])), request),
        one("/issuances/{id}", &format!("/issuances/{queued}"), readers(200)),
        one("/issuances/{id}/events", &format!("/issuances/{queued}/events"), readers(200)),
        one("/user-coupons/{userId}", "/user-coupons/u1", readers(200)),
        one("/user-coupons/{userId}/{id}", &format!("/user-coupons/u1/{issued}"), readers(200)),
        one("/users/{id}", "/users/u1", readers(200)),
        one("/coupons", "/coupons", anyone(200)),
        one("/coupons/{id}", "/coupons/c", anyone(200)),
        one("/livez", "/livez", anyone(200)),
        one("/healthz", "/healthz", anyone(200)),
        one("/readyz", "/readyz", anyone(200)),
        one("/users", "/users", watchers(200)),
        one("/events", "/events", watchers(200)),
        one("/caller", "/caller", watchers(200)),
        one("/audit", "/audit", watchers(200)),
        one("/queue", "/queue", watchers(200)),
        one("/workers", "/workers", watchers(200)),
        one("/dead-letters", "/dead-letters", watchers(200)),
        one("/dead-letters/{id}", &format!("/dead-letters/{queued}"), watchers(404)),
        one("/operator-actions", "/operator-actions", watchers(200)),
        one("/operator-actions/{id}", "/operator-actions/nonsense", watchers(404)),
        one("/problems", "/problems", anyone(200)),
        one("/problems/{code}", "/problems/ended", anyone(200)),
        one("/coupons/{id}/user-coupons", "/coupons/c/user-coupons", keys(200)),
        one("/outcomes", "/outcomes", keys(200)),
        // The same reference each time, so that the answer is the same for each caller.
        with_body(change("use", redeemers(200)), json!({"reference": "order-1"})),
        with_body(change("restore", redeemers(200)), json!({"reference": "order-1"})),
        change("revoke", redeemers(200)),
        with_body(do_it("/coupons", "/coupons", operators(201)), coupon),
        with_body(row("PATCH", "/coupons/{id}", "/coupons/c", operators(200)), json!({"name": "other"})),
        do_it("/coupons/{id}/pause", "/coupons/c/pause", operators(200)),
        do_it("/coupons/{id}/resume", "/coupons/c/resume", operators(200)),
        with_body(
            do_it("/coupons/{id}/restock", "/coupons/c/restock", operators(200)),
            json!({"total": 1_000}),
        ),
        do_it("/coupons/{id}/archive", "/coupons/new/archive", operators(200)),
        do_it("/pause", "/pause", operators(200)),
        do_it("/resume", "/resume", operators(200)),
        with_body(do_it("/users", "/users", operators(201)), json!({"id": "new"})),
        row("DELETE", "/users/{id}", "/users/new", operators(202)),
        do_it("/users/random", "/users/random?count=1", operators(201)),
        with_body(
            do_it("/dead-letters/redrive", "/dead-letters/redrive", operators(202)),
            everything.clone(),
        ),
        with_body(do_it("/dead-letters/discard", "/dead-letters/discard", operators(202)), everything),
        do_it("/dead-letters/{id}/redrive", &format!("/dead-letters/{queued}/redrive"), operators(404)),
        do_it("/dead-letters/{id}/discard", &format!("/dead-letters/{queued}/discard"), operators(404)),
        // The document does not contain this route.
        one("/metrics", "/metrics", AllowedStatuses([200, 200, 200, NO, NO])),
        one("/", "/", anyone(200)),
        one("/docs/", "/docs/", anyone(200)),
        one("/openapi.json", "/openapi.json", anyone(200)),
        one("/developers", "/developers", anyone(200)),
        one("/assets/client.js", "/assets/client.js", anyone(200)),
        one("/assets/pages.css", "/assets/pages.css", anyone(200)),
        one("/assets/try.js", "/assets/try.js", anyone(200)),
        one("/assets/try.css", "/assets/try.css", anyone(200)),
        one("/console", "/console", anyone(200)),
        one("/assets/console/{file}", "/assets/console/main.js", anyone(200)),
        one("/favicon.ico", "/favicon.ico", anyone(204)),
        one("no route", "/nothing/here", anyone(404)),
    ]
}

/// Credentials that must not work.
async fn bad_credentials(keys: &KeyStore, a_key: &str) -> Vec<(&'static str, Option<String>)> {
    let (revoked, revoked_text) = api_key(keys, Role::Operator).await;
    assert!(matches!(keys.revoke(&revoked.id).await, Ok(RevokeOutcome::Now(_))));
    let other_digit = if a_key.ends_with('0') { "1" } else { "0" };
    let unknown_key = format!("cpn_nobody_{}", "0".repeat(64));
    let with_claim = |name, value: Value| Some(hs256(SECRET, &claims_with("u1", name, value)));
    let without = |name: &str| {
        let mut claims = claims("u1");
        claims.as_object_mut().expect("an object").remove(name);
        Some(hs256(SECRET, &claims))
    };
    let hs512 = unsigned(&json!({"alg": "HS512"}), &claims("u1"));
    let of_512 = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA512, SECRET.as_bytes()), hs512.as_bytes());
    let none = unsigned(&json!({"alg": "none"}), &claims("u1"));
    // Signed with HS256, but the header says "none".
    let head_lies = unsigned(&json!({"alg": "none"}), &claims("u1"));
    let of_lie = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes()), head_lies.as_bytes());
    let critical = unsigned(&json!({"alg": "HS256", "crit": ["x"], "x": 1}), &claims("u1"));
    let of_critical = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes()), critical.as_bytes());
    vec![
        ("none", None),
        ("nonsense", Some("nonsense".into())),
        ("an unknown key", Some(unknown_key)),
        ("a wrong key", Some(format!("{}{other_digit}", &a_key[..a_key.len() - 1]))),
        ("no key", Some("cpn_".into())),
        ("a revoked key", Some(revoked_text)),
        ("an expired token", with_claim("exp", seconds_from_now(-60).into())),
        ("a token not yet good", with_claim("nbf", seconds_from_now(60).into())),
        ("another audience", with_claim("aud", "others".into())),
        ("another issuer", with_claim("iss", "https://other.example".into())),
        ("no audience", without("aud")),
        ("no issuer", without("iss")),
        ("no end", without("exp")),
        ("no subject", without("sub")),
        ("an empty subject", with_claim("sub", "".into())),
        ("another secret", Some(hs256("a secret that nobody has ever shared with us", &claims("u1")))),
        ("a wrong algorithm", Some(signed(hs512, of_512.as_ref()))),
        ("`none`", Some(format!("{none}."))),
        ("`none`, signed", Some(signed(head_lies, of_lie.as_ref()))),
        ("an extension that must be understood", Some(signed(critical, of_critical.as_ref()))),
    ]
}

/// Sends a row's request. A stream has no end, so only the problems' bodies are read.
async fn status(client: &Client, row: &TableRow) -> (u16, String) {
    let mut request = client.request(row.method, &row.path);
    if let Some(body) = &row.body {
        request = request.json(body);
    }
    let response = request.send().await.expect("an answer");
    let status = response.status().as_u16();
    if !response.status().is_client_error() && !response.status().is_server_error() {
        return (status, String::new());
    }
    let challenge = response.headers().get("www-authenticate").cloned();
    assert_eq!(challenge.is_some_and(|value| value.as_bytes().starts_with(b"Bearer")), status == 401);
    let problem: Value = response.json().await.expect("a problem");
    (status, problem["code"].as_str().expect("a code").to_owned())
}

#[tokio::test]
async fn every_route_answers_everybody_as_the_table_says() {
    let (system, keys, _folder) = closed(&[Role::Viewer, Role::Service, Role::Operator]).await;
    let coupon = system.coupon("c", 10, 1).await;
    let held = system.coupon("held", 10, 1).await;
    system.users("u", 3).await;
    let operator = system.client.with(&keys[2]);
    let issued = operator.issue("u1", held.as_str(), None).await.id();
    let worker = system.worker();
    operator.decided(&issued).await;
    worker.cancel();
    // No worker decides this one.
    eventually("the worker has gone", async || {
        // A busy one may seem dead, and go on.
        (operator.get("/workers").await.body == json!([])).then_some(())
    })
    .await;
    let queued = operator.issue("u1", coupon.as_str(), None).await.id();

    let store = KeyStore::new(&system.backends.database);
    let bad = bad_credentials(&store, &keys[2]).await;
    let mut good: Vec<(&str, Client)> = ["viewer", "service", "operator"]
        .into_iter()
        .zip(&keys)
        .map(|(name, key)| (name, system.client.with(key)))
        .collect();
    good.push(("the user", system.client.with(&token("u1"))));
    good.push(("another user", system.client.with(&token("u2"))));

    let rows = rows(&queued, &issued);
    let mut wrong = Vec::new();
    for row in &rows {
        let mut expect = |who: &str, expected: u16, (got, code): (u16, String)| {
            let code_fits = match expected {
                401 => code == "unauthenticated",
                403 => code == "forbidden",
                404 if row.route != "no route" => code.ends_with("-not-found"),
                _ => true,
            };
            if got != expected || !code_fits {
                wrong.push(format!("{} {}: {who}: {got} {code}, not {expected}", row.method, row.path));
            }
        };
        let is_public = row.may.0.iter().all(|status| *status == row.may.0[0]);
        for (who, credentials) in &bad {
            let client = credentials.as_ref().map_or(system.client.clone(), |text| system.client.with(text));
            let expected = if is_public { row.may.0[0] } else { 401 };
            expect(who, expected, status(&client, row).await);
        }
        for ((who, client), expected) in good.iter().zip(row.may.0) {
            expect(who, expected, status(client, row).await);
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");

    let document = system.client.get("/openapi.json").await.body;
    let mut routes = HashSet::new();
    for (path, item) in document["paths"].as_object().expect("paths") {
        for (method, operation) in item.as_object().expect("operations") {
            let method = method.to_uppercase();
            let row = rows.iter().find(|row| row.route == path && row.method == method);
            let row = row.unwrap_or_else(|| panic!("{method} {path} is not in the table"));
            assert!(routes.insert((row.method, row.route)));
            let is_public = row.may.0.iter().all(|status| *status == row.may.0[0]);
            assert_eq!(operation["security"] == json!([]), is_public, "{method} {path}");
            assert_eq!(operation["responses"].get("401").is_none(), is_public, "{method} {path}");
            // The document has a 403 for a foreign host on every route; here 403 means a forbidden caller.
            let forbidden = operation["responses"]["403"]["description"].as_str().expect("it is described");
            assert_eq!(!forbidden.contains("it is for"), is_public, "{method} {path}: {forbidden}");
        }
    }
    // Only routes that the document leaves out on purpose are in the table alone.
    let others = rows.len() - routes.len();
    assert_eq!(others, 13, "{routes:?}");
    system.drain().await;
}
