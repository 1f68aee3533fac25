//! Headers for browsers: CORS, and what a page may do with an answer.

use coupon_system::access::Role;

use crate::helpers::{API, Answer, RawConnection, System, program};

const SHOP: &str = "https://shop.example";

async fn ask(system: &System, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    let request = headers
        .iter()
        .fold(system.client.request(method, path), |request, (name, value)| request.header(*name, *value));
    system.client.send(request).await
}

#[tokio::test]
async fn only_the_shops_own_scripts_may_call() {
    const ASKS: (&str, &str) = ("access-control-request-method", "POST");
    let open = System::builder()
        .flags(&["--cors-origins", "https://shop.example,http://localhost:8080"])
        .start()
        .await;
    let closed = System::start().await;
    let unknown = "/issuances/019a0b1c-2d3e-7000-8f00-000000000000";
    let too_long = format!("/coupons?cursor={}", "y".repeat(9 * 1024));
    for (system, origin, method, path, status, allowed) in [
        (&open, SHOP, "OPTIONS", "/user-coupons", 204, true),
        (&open, "http://localhost:8080", "OPTIONS", "/user-coupons", 204, true),
        (&open, SHOP, "GET", "/coupons", 200, true),
        (&open, SHOP, "GET", unknown, 404, true),
        (&open, SHOP, "POST", "/user-coupons", 415, true),
        // A script must be able to read why a request was refused before any handler ran.
        (&open, SHOP, "GET", "/coupons?unknown=1", 422, true),
        (&open, SHOP, "GET", &too_long, 414, true),
        (&open, SHOP, "GET", "/nowhere", 404, true),
        (&open, "https://shop.example.evil", "OPTIONS", "/user-coupons", 405, false),
        (&open, "http://shop.example", "OPTIONS", "/user-coupons", 405, false),
        (&open, "https://sub.shop.example", "GET", "/coupons", 200, false),
        (&open, "null", "GET", "/coupons", 200, false),
        (&closed, SHOP, "OPTIONS", "/user-coupons", 405, false),
        (&closed, SHOP, "GET", "/coupons", 200, false),
    ] {
        let case = format!("{origin} {method} {path}");
        let mut headers = vec![("origin", origin)];
        headers.extend((method == "OPTIONS").then_some(ASKS));
        let answer = ask(system, method, path, &headers).await;
        assert_eq!(answer.status, status, "{case}");
        assert_eq!(answer.header("access-control-allow-origin"), if allowed { origin } else { "" }, "{case}");
        assert!(!answer.headers.contains_key("access-control-allow-credentials"), "{case}");
        let varies = answer.headers.get_all("vary").iter().any(|value| value == "origin");
        assert_eq!(varies, std::ptr::eq(system, &open), "{case}");
    }
    let asked = ask(&open, "OPTIONS", "/user-coupons", &[("origin", SHOP), ASKS]).await;
    for (header, named) in [
        ("access-control-allow-methods", &["GET", "POST", "PATCH", "DELETE"][..]),
        (
            "access-control-allow-headers",
            &["authorization", "content-type", "idempotency-key", "accept-language"],
        ),
        ("access-control-max-age", &["7200"]),
        ("cache-control", &["no-store"]),
    ] {
        assert!(named.iter().all(|name| asked.header(header).contains(name)), "{header}: {asked:?}");
    }
    let answer = ask(&open, "GET", "/coupons", &[("origin", SHOP)]).await;
    for name in [
        "location",
        "retry-after",
        "idempotent-replayed",
        "ratelimit",
        "ratelimit-policy",
        "x-request-id",
        "next-after",
        "www-authenticate",
    ] {
        assert!(answer.header("access-control-expose-headers").contains(name), "{name}: {answer:?}");
    }
    assert_eq!(ask(&open, "OPTIONS", "/coupons", &[("origin", SHOP)]).await.status, 405, "it asks nothing");
    assert_eq!(ask(&open, "GET", "/coupons", &[]).await.header("vary"), "origin");
}

#[tokio::test]
async fn where_nobody_is_asked_a_page_of_another_site_does_nothing_through_a_browser() {
    let flags = ["--cors-origins", SHOP, "--public-url", "https://coupons.example/api"];
    let system = System::builder().flags(&flags).start().await;
    system.coupon("c", 1, 1).await;
    let own = format!("http://{}", system.client.address());
    for (origin, status) in [
        ("https://evil.example", 403),
        ("http://localhost:1", 403),
        ("null", 403),
        (own.as_str(), 200),
        ("https://coupons.example", 200),
        (SHOP, 200),
    ] {
        let answer = ask(&system, "POST", "/coupons/c/pause", &[("origin", origin)]).await;
        assert_eq!(answer.status, status, "{origin}: {answer:?}");
        assert_eq!(ask(&system, "GET", "/queue", &[("origin", origin)]).await.status, 200, "{origin} looks");
    }
    // Where callers need credentials, the browser adds none of its own, so that no such rule is needed.
    let closed = System::builder().closed(&[Role::Operator]).start().await;
    let keys = closed.api_keys.clone();
    let resumed = closed.client.with(&keys[0]).request("POST", "/resume").header("origin", "null");
    assert_eq!(closed.client.send(resumed).await.status, 200);
}

#[tokio::test]
async fn an_origin_that_no_browser_would_send_is_refused_at_the_start() {
    let system = System::start().await;
    for wrong in ["*", "https://shop.example/", "shop.example"] {
        let mut api = program(API, &system);
        let ended =
            api.args(["--listen", "127.0.0.1:0", "--cors-origins", wrong]).output().await.expect("it ends");
        assert_eq!(ended.status.code(), Some(2), "{wrong}");
        assert!(String::from_utf8_lossy(&ended.stderr).contains("must be an origin such as"), "{wrong}");
    }
}

/// A path of the document, with a value for each parameter.
fn filled(path: &str) -> String {
    path.split('/')
        .map(|part| if part.starts_with('{') { "none" } else { part })
        .collect::<Vec<_>>()
        .join("/")
}

#[tokio::test]
async fn every_answer_of_every_route_tells_browsers_to_leave_it_alone() {
    let system = System::start().await;
    let document = system.client.get("/openapi.json").await.body;
    let paths = document["paths"].as_object().expect("paths").iter();
    let mut asked: Vec<(String, String)> = paths
        .flat_map(|(path, item)| {
            let methods = item.as_object().expect("operations").keys();
            methods.map(|method| (method.to_uppercase(), filled(path))).collect::<Vec<_>>()
        })
        .collect();
    let others = [
        "/metrics",
        "/openapi.json",
        "/",
        "/assets/try.js",
        "/assets/try.css",
        "/docs/",
        "/nowhere",
        "/favicon.ico",
    ];
    asked.extend(others.map(|path| ("GET".to_owned(), path.to_owned())));
    asked.push(("BREW".to_owned(), "/coupons".to_owned()));
    for (method, path) in asked {
        // The test does not read to the end: a stream stays open for minutes.
        let answer = system.client.request(&method, &path).send().await.expect("an answer");
        let header = |name: &str| {
            let values: Vec<_> = answer.headers().get_all(name).iter().collect();
            assert!(values.len() <= 1, "{method} {path}: {name} is there twice");
            values.first().and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
        };
        assert_eq!(header("x-content-type-options"), "nosniff", "{method} {path}");
        assert_eq!(header("referrer-policy"), "no-referrer", "{method} {path}");
        assert!(!header("x-request-id").is_empty(), "{method} {path}");
        let caching = header("cache-control");
        let content = header("content-type");
        let is_page =
            ["text/html", "text/css", "text/javascript"].iter().any(|kind| content.starts_with(kind));
        let expected = if is_page { "no-cache" } else { "no-store" };
        assert_eq!(caching, expected, "{method} {path}");
        if is_page {
            let policy = header("content-security-policy");
            assert!(policy.starts_with("default-src 'none'; script-src 'self';"), "{path}: {policy}");
            assert!(
                policy.contains("frame-ancestors 'none'") && policy.contains("base-uri 'none'"),
                "{path}"
            );
            assert_eq!(header("cross-origin-opener-policy"), "same-origin", "{path}");
        }
    }
}

#[tokio::test]
async fn swagger_lives_under_the_public_path() {
    let system = System::builder().flags(&["--public-url", "https://shop.example/coupons-api"]).start().await;
    let mut raw = RawConnection::connect(system.client.address()).await;
    raw.send("GET /docs HTTP/1.1\r\nhost: localhost\r\n\r\n").await.expect("it is taken");
    let moved = raw.answer().await;
    assert_eq!(moved.status, 307);
    // Links are relative, so that they work under any path prefix.
    assert!(moved.head.contains("\r\nlocation: docs/\r\n"), "{moved:?}");
    let document = system.client.get("/openapi.json").await.body;
    assert_eq!(document["servers"], serde_json::json!([{"url": "/coupons-api"}]));
    let plain = System::start().await;
    assert_eq!(plain.client.get("/openapi.json").await.body["servers"], serde_json::json!([{"url": "/"}]));
}

#[tokio::test]
async fn a_parameter_that_a_route_does_not_know_is_refused_by_every_route() {
    let system = System::start().await;
    let document = system.client.get("/openapi.json").await.body;
    for (path, item) in document["paths"].as_object().expect("paths") {
        for method in item.as_object().expect("operations").keys() {
            let path = format!("{}?unknown=1", filled(path));
            let answer = ask(&system, &method.to_uppercase(), &path, &[]).await;
            assert_eq!((answer.status, answer.code()), (422, "invalid"), "{method} {path}");
            assert_eq!(answer.body["errors"][0]["parameter"], "unknown", "{method} {path}");
        }
    }
}

#[tokio::test]
async fn json_that_two_readers_could_read_differently_is_refused() {
    let system = System::start().await;
    for body in [
        r#"{"userId":"u0","userId":"u1","couponId":"c"}"#.to_owned(),
        format!("{}{}", "[".repeat(500), "]".repeat(500)),
    ] {
        let request =
            system.client.request("POST", "/user-coupons").header("content-type", "application/json");
        let answer = system.client.send(request.body(body)).await;
        assert_eq!((answer.status, answer.code()), (400, "malformed"));
    }
}
