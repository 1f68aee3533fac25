//! Rate limits: all API processes share them, and the service works without them.

use std::net::SocketAddr;
use std::time::Instant;

use coupon_system::access::Role;
use coupon_system::metrics::names;
use coupon_system::recovery::is_certified;
use futures::future::join_all;
use tokio::process::Child;

use crate::access::{token, token_flags};
use crate::helpers::{API, Answer, Client, System, eventually, program, recovered, serving};

async fn api(system: &System, flags: &[&str]) -> (Child, SocketAddr) {
    let mut api = program(API, system);
    api.args(["--listen", "127.0.0.1:0", "--audit-every", "0"]).args(flags);
    serving(api).await
}

async fn buckets(system: &System) -> Vec<String> {
    system.command(&["KEYS", "coupon:{limit*}:limit:*"]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_users_limit_is_one_for_all_api_processes() {
    const BURST: usize = 20;
    /// What a process lets pass without asking.
    const SHARE: usize = BURST / 4;
    let system = System::start().await;
    system.users("u", 2).await;
    system.coupon("c", 9, 1).await;
    let flags = ["--user-rate", "1", "--user-burst", "20"];
    let (one, two) = tokio::join!(api(&system, &flags), api(&system, &flags));
    let clients = [Client::new(one.1), Client::new(two.1)];

    let asked = Instant::now();
    // Concurrent requests count too, although they are not answered yet.
    let answers = join_all((0..150).map(|number| clients[number % 2].issue("u0", "c", None))).await;
    let admitted = answers.iter().filter(|answer| answer.status == 202).count();
    let limited: Vec<_> = answers.into_iter().filter(|answer| answer.status == 429).collect();
    assert_eq!(admitted + limited.len(), 150);
    let most = BURST + 2 * SHARE + asked.elapsed().as_secs() as usize + 1;
    assert!((BURST..=most).contains(&admitted), "{admitted} of {BURST}, at most {most}");
    for answer in &limited {
        is_limited(answer, "user", "20;w=20");
    }
    let other = clients[0].issue("u1", "c", None).await;
    assert_eq!((other.status, other.header("ratelimit")), (202, "\"user\";r=19;t=1"), "somebody else");
    assert_eq!(buckets(&system).await.len(), 1, "who asks as people do is not in Redis");

    for client in &clients {
        eventually("limited in both", async || {
            (client.issue("u0", "c", None).await.status == 429).then_some(())
        })
        .await;
    }
    eventually("the user may ask again", async || {
        (clients[0].issue("u0", "c", None).await.status == 202).then_some(())
    })
    .await;
    let expires: i64 = system.command(&["PTTL", &buckets(&system).await[0]]).await;
    assert!((1..=41_000).contains(&expires), "{expires}");
    system.drain().await;
}

/// Asserts what every 429 has.
fn is_limited(answer: &Answer, limit: &str, policy: &str) {
    assert_eq!((answer.status, answer.code()), (429, "rate-limited"), "{answer:?}");
    let retry_ms = answer.body["retryAfterMs"].as_u64().expect("a time");
    let seconds = retry_ms.div_ceil(1_000);
    assert!(retry_ms > 0);
    assert_eq!(answer.body["limit"], limit);
    assert_eq!(answer.body["retryable"], true);
    assert_eq!(answer.header("retry-after"), seconds.to_string());
    assert_eq!(answer.header("ratelimit-policy"), format!("\"{limit}\";q={policy}"));
    assert_eq!(answer.header("ratelimit"), format!("\"{limit}\";r=0;t={seconds}"));
}

/// A request that a proxy forwards.
async fn forwarded(system: &System, path: &str, name: &str, value: &str) -> Answer {
    let request = system.client.request("GET", path).header(name, value).header("accept-language", "ko");
    system.client.send(request).await
}

const ADDRESS: [&str; 4] = ["--address-rate", "0.01", "--address-burst", "3"];

#[tokio::test]
async fn an_address_is_what_a_trusted_proxy_says_and_nothing_that_a_client_writes() {
    let flags = [&ADDRESS[..], &["--trusted-proxies", "127.0.0.0/8,10.0.0.0/8"]].concat();
    let system = System::builder().flags(&flags).start().await;
    let xff = "x-forwarded-for";
    for number in 0..3 {
        // First an address that the client made up, last one of a trusted proxy.
        let value = format!("203.0.113.{number}, 198.51.100.1, 10.0.0.7");
        assert_eq!(forwarded(&system, "/coupons", xff, &value).await.status, 200);
    }
    let answer = forwarded(&system, "/coupons", xff, "203.0.113.9, 198.51.100.1").await;
    is_limited(&answer, "address", "3;w=300");
    assert_eq!(answer.body["title"], "요청이 너무 잦음");
    assert_eq!(forwarded(&system, "/openapi.json", xff, "198.51.100.1").await.status, 429, "any route");
    is_limited(&forwarded(&system, "/readyz", xff, "198.51.100.1").await, "address", "3;w=300");
    for path in ["/livez", "/healthz", "/metrics"] {
        assert_eq!(forwarded(&system, path, xff, "198.51.100.1").await.status, 200, "{path}");
    }
    assert_eq!(forwarded(&system, "/coupons", xff, "198.51.100.2").await.status, 200, "somebody else");
    // A /64 belongs to one customer.
    for number in 0..3 {
        let value = format!("2001:db8:0:1::{number}");
        assert_eq!(forwarded(&system, "/coupons", xff, &value).await.status, 200);
    }
    assert_eq!(forwarded(&system, "/coupons", xff, "2001:db8:0:1:f::").await.status, 429);
    assert_eq!(forwarded(&system, "/coupons", xff, "2001:db8:0:2::").await.status, 200);
    // The API ignores the header that the proxies do not write: all these requests come from the proxy itself.
    for number in 0..3 {
        let value = format!("for=198.51.100.{}", 100 + number);
        assert_eq!(forwarded(&system, "/coupons", "forwarded", &value).await.status, 200);
    }
    assert_eq!(forwarded(&system, "/coupons", "forwarded", "for=198.51.100.200").await.status, 429);
}

#[tokio::test]
async fn without_trusted_proxies_nobody_says_where_they_come_from() {
    let system = System::builder().flags(&ADDRESS).start().await;
    for number in 0..3 {
        let value = format!("198.51.100.{number}");
        assert_eq!(forwarded(&system, "/coupons", "x-forwarded-for", &value).await.status, 200);
    }
    assert_eq!(forwarded(&system, "/coupons", "x-forwarded-for", "198.51.100.9").await.status, 429);
}

#[tokio::test]
async fn who_shows_bad_credentials_or_seeks_routes_is_counted_by_the_address_and_who_has_a_key_is_not() {
    let system = System::builder().closed(&[Role::Viewer]).flags(&ADDRESS).start().await;
    let keys = system.api_keys.clone();
    let stranger = system.client.with("nonsense");
    let unknown = system.client.with(&format!("cpn_nobody_{}", "0".repeat(64)));
    assert_eq!(stranger.get("/queue").await.status, 401);
    assert_eq!(unknown.get("/queue").await.status, 401);
    assert_eq!(system.client.get("/nowhere").await.status, 404);
    for path in ["/queue", "/users/u1", "/nowhere", "/coupons"] {
        is_limited(&stranger.get(path).await, "address", "3;w=300");
        is_limited(&unknown.get(path).await, "address", "3;w=300");
    }
    // A scrape with the wrong key is answered 401.
    assert_eq!(stranger.get("/metrics").await.status, 401);
    for _ in 0..5 {
        assert_eq!(system.client.with(&keys[0]).get("/queue").await.status, 200);
    }
}

#[tokio::test]
async fn whatever_a_user_asks_for_counts() {
    let folder = tempfile::tempdir().expect("a folder");
    let flags = token_flags(&folder);
    let mut flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    flags.extend(["--user-rate", "0.01", "--user-burst", "4"]);
    let system = System::builder().closed(&[]).flags(&flags).start().await;
    system.users("u", 9).await;
    let none = "019a0b1c-2d3e-7000-8f00-000000000000";
    let paths = [
        "/users/u{n}".to_owned(),
        "/user-coupons/u{n}".to_owned(),
        format!("/user-coupons/u{{n}}/{none}"),
        format!("/issuances/{none}"),
        format!("/issuances/{none}/events"),
        // Refused before the handler.
        "/issuances/%ff".to_owned(),
        format!("/issuances/{none}?wait=soon"),
    ];
    for (number, path) in paths.iter().enumerate() {
        let path = path.replace("{n}", &number.to_string());
        let user = system.client.with(&token(&format!("u{number}")));
        for left in (0..4).rev() {
            let answer = user.get(&path).await;
            assert_ne!(answer.status, 429, "{path}");
            assert_eq!(answer.header("ratelimit-policy"), "\"user\";q=4;w=400", "{path}");
            let told = answer.header("ratelimit");
            assert!(told.starts_with(&format!("\"user\";r={left};t=")), "{path}: {told}");
        }
        is_limited(&user.get(&path).await, "user", "4;w=400");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_limiter_cannot_say_it_lets_pass_and_counts() {
    let mut system = System::start().await;
    // The API asks again soon; until then the last answer holds.
    let (_api, address) = api(&system, &["--address-rate", "0.5", "--address-burst", "3"]).await;
    let client = Client::new(address);
    while client.get("/coupons").await.status != 429 {}

    let set = async |value: &str| {
        let set: String = system.command(&["CONFIG", "SET", "maxmemory", value]).await;
        assert_eq!(set, "OK");
    };
    set("1").await;
    let passed = async || {
        let text = client.request("GET", "/metrics").send().await.expect("an answer").text().await;
        let text = text.expect("a text");
        let line = text.lines().find_map(|line| line.strip_prefix(names::UNLIMITED)?.strip_prefix(' '));
        line.expect("it is served").parse::<u64>().expect("a number")
    };
    eventually("full, it lets pass", async || {
        (client.get("/coupons").await.status == 200 && passed().await > 0).then_some(())
    })
    .await;
    set("0").await;
    eventually("it limits again", async || (client.get("/coupons").await.status == 429).then_some(())).await;

    let before = passed().await;
    system.redis.kill().await.expect("it is killed");
    eventually("gone, it lets pass", async || {
        (client.get("/coupons").await.status == 200 && passed().await > before).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_recovery_deletes_the_keys_of_old_epochs_and_leaves_the_limits() {
    let system = System::builder().flags(&ADDRESS).start().await;
    while system.client.get("/coupons").await.status != 429 {}
    let before = buckets(&system).await;
    assert_eq!(before.len(), 1);
    let old = system.keys();
    let deleted: u64 = system.command(&["DEL", &old.certificate(), &old.counters()]).await;
    assert_eq!(deleted, 2);
    recovered(&system).await;
    assert!(is_certified(system.partition()).await.expect("an answer") && system.keys() != old);
    assert_eq!(buckets(&system).await, before);
    let left: Vec<String> = system.command(&["KEYS", &format!("{}*", old.prefix())]).await;
    assert!(left.is_empty(), "{left:?}");
}
